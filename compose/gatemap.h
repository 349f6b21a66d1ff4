/* gatemap.h: how far the gates of a picture open, by adapter, site, step and place.
 *
 *     struct gatemap g;
 *     gatemap_init(&g, model, &picture, &err);
 *     picture.gatemap = &g;                       // filled in while the picture is made
 *     ...
 *     gatemap_mean(&g, 0, site, step);            // of sigmoid(z), over channels and places
 *     gatemap_explained(&g, share);
 *     gatemap_release(&g);
 *
 * The conditional rows only. Places are a grid of GATEMAP_SIDE x GATEMAP_SIDE over the picture; where texts arrive
 * (keys and values of cross attention) there is but one.
 */
#ifndef WEFT_GATEMAP_H
#define WEFT_GATEMAP_H

#include "generate.h"

#include "unet/gates.h"
#include "unet/ops.h"

enum { GATEMAP_SIDE = 8, GATEMAP_PLACES = GATEMAP_SIDE * GATEMAP_SIDE };
enum gatemap_by { BY_SITE, BY_STEP, BY_PLACE, BY_ADAPTER, GATEMAP_BY };

struct gatemap {
    const struct picture *p;
    int n_adapter, n_site, n_step;
    float *sum, *count; /* [n_adapter, n_site, n_step, GATEMAP_PLACES] */
    float *host;        /* tensors on their way */
    size_t n_host;
};

/* p's adapters, gates and steps are those of the picture that will be watched; kept until gatemap_release. Release it
 * also after an error. */
int gatemap_init(struct gatemap *g, const struct model *m, const struct picture *p,
                 struct err *err);
void gatemap_release(struct gatemap *g);
/* Mean over channels and places; site or step -1: over all. NAN where the adapter met no gate. */
double gatemap_mean(const struct gatemap *g, int adapter, int site, int step);
/* What part of the variance of all cells (adapter, site, step, place) lies between the means by each; the rest is
 * of several together. */
void gatemap_explained(const struct gatemap *g, double share[GATEMAP_BY]);

/* For batch.c: row `row` of what went through a site's gates; step from 0. */
int gatemap_add(struct gatemap *g, struct run *r, const struct layer *l, const struct branch *b,
                const struct tensor *h, const struct gating *in, int row, int step,
                struct err *err);

#endif
