/* regions.h: regions of a picture that attend to texts of their own.
 *
 *     struct regions *g;
 *     regions_new(&g, dev, 2, &err);
 *     regions_set(g, 0, values, 64, 64, &err);              // how much of each place is region 0's
 *     g->at[0] = (struct region){.text = &text, .branch = b, .n_branch = 1, …};
 *     run.regions = g;
 *     regions_free(g);
 *
 * At a cross attention a place q gives
 *
 *     rest(q) out(Attn(q, K, V)) + sum over regions i of w_i(q) out_i(Attn(q, K_i, V_i))
 *
 * K, V and out with the branches `rest`, K_i, V_i and out_i of the region's text and with its branches. w_i is one part of as
 * many as there are regions that q is in, rest 1 in none (LoRA-Composer, Yang et al. 2024, region-aware injection); the
 * queries are made as without regions. With `alone` places of self attention do not see those of other regions
 * (attention.region), their concept isolation: who is in two sees both.
 *
 * A place of an attention is in a region where that covers at least `least` of it.
 */
#ifndef WEFT_REGIONS_H
#define WEFT_REGIONS_H

#include "ops.h"

enum { REGIONS_MAX = 32 };

struct region {
    const struct tensor *text; /* as the pass's own (unet_text.at): rows, layers */
    const struct branch *branch;
    int n_branch;
};

/* Regions at one size of attention. */
struct region_level {
    int h, w;
    unsigned *host, *bits; /* [h*w]: which a place is in, a bit each; bits: device memory */
    float *weight;         /* [n + 1, h*w]: w_i, then rest; device memory */
    float *room;
};

struct regions {
    struct device *dev;
    int n;
    float least;
    bool alone;
    struct region at[REGIONS_MAX];
    const struct branch *rest; /* outside of all; borrowed */
    int n_rest;
    float *values[REGIONS_MAX]; /* as they were set; owned */
    int h[REGIONS_MAX], w[REGIONS_MAX];
    size_t room[REGIONS_MAX]; /* values they have room for */
    struct region_level *level;
    int n_level;
};
int regions_new(struct regions **out, struct device *dev, int n, float least, struct err *err);
void regions_free(struct regions *g);
/* values [h, w] of 0 to 1, copied; also between passes, and then, of no more values than before, it cannot fail. */
int regions_set(struct regions *g, int i, const float *values, int h, int w, struct err *err);
/* With `more` a size that was never asked for is added, else, or without memory, that is NULL. */
const struct region_level *regions_at(struct regions *g, int h, int w, bool more, struct err *err);

#endif
