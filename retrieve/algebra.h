/* algebra.h: the little linear algebra that finding needs.
 *
 *     double value[3], a[9] = {…};                   // symmetric
 *     eigen(a, 3, value, &err);                      // row k of a: the eigenvector of value[k], which rise
 *     double length = vector_unit(v, n);             // v to length 1
 *     double likeness = vector_dot(v, w, n);
 */
#ifndef WEFT_ALGEBRA_H
#define WEFT_ALGEBRA_H

#include "unet/err.h"

#include <stdbool.h>

/* a [n, n], symmetric, becomes its eigenvectors, a row each (LAPACK's dsyev). ERR_FORMAT where a is not finite. */
int eigen(double *a, int n, double *value, struct err *err);
/* c [n, m] = a b + beta c (BLAS' dgemm); a is [n, k], or across: [k, n] and taken so; b [k, m]. */
void multiply(double *c, const double *a, const double *b, int n, int k, int m, bool across,
              double beta);

void multiply_floats(float *c, const float *a, const float *b, int n, int k, int m);
/* c [m, m] += a^T a, a [n, m], of which only the half c[i m + j], i >= j, is made (BLAS' dsyrk). */
void add_gram(double *c, const double *a, int n, int m);

double vector_dot(const float *a, const float *b, int n);
/* Returns the length that v had; a vector of zeros stays one. */
double vector_unit(float *v, int n);

#endif
