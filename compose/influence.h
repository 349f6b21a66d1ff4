/* influence.h: who did what in a picture: an influence receipt.
 *
 *     struct influence in;
 *     influence_init(&in, model, &picture, &err);
 *     picture.influence = &in;                    // filled in while the picture is made
 *     …
 *     influence_of(&in, 0, -1, -1);               // 0.08: what adapter 0 added is 8 % of what was there
 *     influence_release(&in);
 *
 * Adapters act beside their layers, so what one adds can be seen apart: |s B A x| beside |W x|, both over all
 * channels and places of the conditional rows. Norms that an adapter changes are left out. Watching costs each
 * such layer once more and changes no pixel.
 */
#ifndef WEFT_INFLUENCE_H
#define WEFT_INFLUENCE_H

#include "generate.h"

/* What two adapters add at the same places, over all layers that both change. */
struct influence_pair {
    double a, b;     /* sums of squares of what each adds there */
    double dot;      /* sum of the products a b */
    double together; /* sum over places of |a| |b| */
};

struct influence {
    const struct picture *p;
    int n_adapter, n_step, n_block;
    char (*block)[32]; /* [n_block] "unet.down_blocks.1"; the text encoder's is the last */
    int *block_of;     /* [n_site] */
    double *part,
        *base; /* [n_adapter, n_block, n_step]: sums of squares of what it added, of what was there */
    int h, w; /* of the maps: half the latent's */
    double *over,
        *under; /* [n_adapter, h*w]: the same by place, at layers of that size, over all steps */
    struct influence_pair *pair; /* [n_adapter, n_adapter], first < second; NULL: not wanted */
    struct held {                /* what an adapter last added, for pairs */
        const struct layer *l;
        int step, row;
        float *part;
        size_t n, room;
    } * held;    /* [n_adapter] */
    float *host; /* two tensors on their way */
    size_t n_host;
};

/* p's adapters, steps and size are those of the picture that will be watched; kept until influence_release. ERR_ARG
 * where they are folded. Release it also after an error. */
int influence_init(struct influence *in, const struct model *m, const struct picture *p,
                   struct err *err);
/* From here on pairs are looked at too. */
int influence_want_pairs(struct influence *in, struct err *err);
void influence_release(struct influence *in);

/* What the adapter added beside what was there, as a ratio; block -1: all of the UNet; step (from 0) -1: all. The
 * text encoder counts as step 0. 0 where it did not act. */
double influence_of(const struct influence *in, int adapter, int block, int step);
/* The same by place, into map[h*w]. */
void influence_map(const struct influence *in, int adapter, float *map);

/* How much two adapters act at the same places, 0 to 1, and in the same direction there, -1 to 1. */
double influence_overlap(const struct influence *in, int a, int b);
double influence_cosine(const struct influence *in, int a, int b);

/* For batch.c and passes.c: row `row` of what adapter `a` added to a layer that gave base; step from 0. */
int influence_add(struct influence *in, const struct adapter *a, int step, const struct layer *l,
                  const struct tensor *base, const struct tensor *part, int row, struct err *err);

#endif
