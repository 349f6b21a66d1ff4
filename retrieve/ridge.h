/* ridge.h: what is learnt from few examples, with what would have been said of each had it not been seen.
 *
 *     struct ridge g;
 *     ridge_fit(&g, k, y, n, out, &err);         // k [n, n] inner products of examples, y [n, out]
 *     ridge_apply(&g, k_new, to);                // k_new [n] of a new one with each, to [out]
 *     g.left_out                                 // [n, out]: of each example without itself
 *     ridge_release(&g);
 *
 * Kernel ridge regression (Saunders, Gammerman & Vovk 1998): W = (K + lambda)^-1 Y, the answer to x is k(x)^T W. With
 * H = K (K + lambda)^-1, the answer to example i of what was learnt without it is y_i - (y_i - (H Y)_i) / (1 - H_ii),
 * exact for a fixed lambda (Allen 1974), which is chosen by the squared error of those answers.
 */
#ifndef WEFT_RIDGE_H
#define WEFT_RIDGE_H

#include "unet/err.h"

struct ridge {
    int n, out;
    float *w;        /* [n, out]; owned */
    float *left_out; /* [n, out]; owned */
    double lambda;   /* in units of the mean of K's diagonal */
};
/* k is used up. ERR_ARG for fewer than three examples. Release after any result. */
int ridge_fit(struct ridge *g, double *k, const float *y, int n, int out, struct err *err);
void ridge_apply(const struct ridge *g, const double *k, float *to);
void ridge_release(struct ridge *g);

#endif
