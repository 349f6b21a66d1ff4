/* winograd.h: 3 x 3 convolutions with 16 products where 36 would be (Lavin & Gray 2016, F(2 x 2, 3 x 3)).
 *
 * Each tile of 2 x 2 results comes of 4 x 4 places d: Y = A^T [(G g G^T) * (B^T d B)] A. Over all
 * channels the products in the middle are 16 matrices of tiles times 16 of weights, which whoever runs
 * this does (onednn.c); the rest is here and in kernels_winograd.inc. oneDNN has a Winograd of its own,
 * but none for activations whose channels are last.
 *
 * Tiles go in blocks of one fixed size, and each block through one thread. What a tile becomes depends
 * on nothing else: not on the other rows, nor on the number of threads. Nor does winograd_block.
 *
 *     struct winograd g = {.in = l->in, .out = l->out, .block = winograd_block(l, x), ...};
 *     if (g.block)
 *         rc = winograd_run(dev, &g, y, x, bias, false, cpu_scratch(dev, winograd_scratch(dev, &g)));
 */
#ifndef WEFT_CPU_WINOGRAD_H
#define WEFT_CPU_WINOGRAD_H

#include "cpu.h"

#define WINOGRAD_POINTS 16

struct winograd {
    int in, out; /* channels */
    int block;   /* tiles */
    size_t room; /* bytes that product wants a thread */
    /* m [16, block, out] = v [16, block, in] times the weight [16, in, out], on the calling thread,
     * which is one of several. 0, or what winograd_run is to return. */
    int (*product)(void *user, int thread, float *v, float *m, void *room);
    void *user;
};

/* Tiles a block of the layer on x's height and width; 0: it is no such layer, or would not gain. */
int winograd_block(const struct layer *l, const struct tensor *x);
/* u [16, in, out] = G g G^T of w [out, in, 3, 3]. */
void winograd_weight(float *u, const float *w, int in, int out);

/* Bytes for all threads. */
size_t winograd_scratch(const struct device *dev, const struct winograd *g);
/* y = W x + bias, or y += W x + bias; bias may be NULL. 0, or what product returned. */
int winograd_run(struct device *dev, const struct winograd *g, struct tensor *y,
                 const struct tensor *x, const float *bias, bool accumulate, void *scratch);

#endif
