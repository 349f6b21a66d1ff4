/* layout.h: a picture of regions moved, before an evaluation of the model, so that each region's words are attended to
 * inside it, all over it, and its places do not look outside (layout_loss of contrast.h; LoRA-Composer's).
 *
 *     struct layout *f;
 *     layout_open(&f, &passes, &err);                       // passes.areas is there
 *     layout_measure(f, &batch, &turn, false, &peak, &flops, &err);
 *     layout_run(f, &batch, &turn, &err);                   // turn.x has moved
 *     layout_close(f);
 *
 * The prompt's row alone is looked at. With action.refine.relay the first latent is laid anew before: each region gets the
 * piece of its size where its words were attended to most, and all is scaled to the mean and deviation it had.
 * The picture stays where it is once a tenth of the steps is done and the loss has grown.
 */
#ifndef WEFT_LAYOUT_H
#define WEFT_LAYOUT_H

#include "batch.h"

struct layout;
int layout_open(struct layout **out, struct passes *of, struct err *err);
void layout_close(struct layout *f);
/* A picture begins (again). */
void layout_restart(struct layout *f);
int layout_measure(struct layout *f, struct batch *b, struct turn *t, bool prepare, size_t *peak,
                   double *flops, struct err *err);
int layout_run(struct layout *f, struct batch *b, struct turn *t, struct err *err);

/* z [h*w, c] laid anew, in place: to the cells of region i (in [n][mh*mw] not 0) goes the piece of z of the same size whose
 * cells have the most of map [n][mh*mw] in all; then the mean and deviation of all values are again what they were. room has
 * as many values as z. A cell is h / mh by w / mw places. */
void layout_relay(float *z, float *room, int h, int w, int c, int n, int mh, int mw,
                  const unsigned char *const *in, const float *const *map);

#endif
