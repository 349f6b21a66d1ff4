/* norms.h: how much an adapter changes, block by block, for `weft show`.
 *
 *     struct norms n;
 *     if (norms_init(&n, &matrices))
 *         norms_print(&n);
 */
#ifndef WEFT_NORMS_H
#define WEFT_NORMS_H

#include "unet/matrices.h"

#define NORMS_MAX 24

struct norms {
    struct {
        char name[32];
        double norm; /* Frobenius, of all dW in the block */
    } block[NORMS_MAX];
    int n;
    double all;
};
/* Returns how many blocks there are. */
int norms_init(struct norms *n, const struct matrices *m);
/* A line a block, with a bar. */
void norms_print(const struct norms *n);

#endif
