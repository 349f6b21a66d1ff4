/* refine.h: a picture moved, before an evaluation of the model, so that its places attend as a loss of contrast.h wants.
 *
 *     struct refine *f;
 *     refine_open(&f, &passes, &err);                       // where an action asks for it (compose.h)
 *     refine_measure(f, &batch, &turn, false, &peak, &flops, &err);
 *     refine_run(f, &batch, &turn, &err);                   // turn.x has moved, parts are known
 *     refine_close(f);
 *
 * One step of rate a: z <- z - a dL/dz, z being what the model is given. Of CLoRA's loss the maps are those of all passes
 * of the action, of the tokens of all adapters' words in each; as many rows as fit go forth and back in one batch, where
 * they all do, else forth one after another, then again with the way back (as much memory for many adapters as for one).
 * Then each pass has a part in the picture: an adapter's where one of its own words' maps is above action.refine.mask of
 * its largest value, the base's where no adapter's is; shared evenly where several are (CLoRA's), or by action.refine.most all
 * of a place is that one's whose words' maps, summed and over their mean, are largest.
 *
 * Of the layout loss there is one pass, of regions.
 */
#ifndef WEFT_REFINE_H
#define WEFT_REFINE_H

#include "batch.h"

struct refine;
int refine_open(struct refine **out, struct passes *of, struct err *err);
void refine_close(struct refine *f);
/* A picture begins (again). */
void refine_restart(struct refine *f);
int refine_measure(struct refine *f, struct batch *b, struct turn *t, bool prepare, size_t *peak,
                   double *flops, struct err *err);
int refine_run(struct refine *f, struct batch *b, struct turn *t, struct err *err);
/* The part of the picture of adapter i's pass, -1: the base's; NULL: all of it. */
struct mask *refine_part(const struct refine *f, int i);
/* The same as numbers, [*h, *w], borrowed; NULL: not known. */
const float *refine_values(const struct refine *f, int i, int *h, int *w);

/* How much its own words are attended to in its own pass, the most 1, likewise. */
const float *refine_words(struct refine *f, int i, int *h, int *w);

#endif
