/* matmul.h: matrix products by cuBLASLt, planned once a shape.
 *
 * cuBLASLt 13: "cublasLtMatmul()", column-major. A row-major [rows, width] is a column-major [width, rows], so that
 * y = x w^T is Y^T = W X^T there: A is the weight, B is x, D is y, and the bias is a vector along D's rows.
 */
#ifndef WEFT_CUDA_MATMUL_H
#define WEFT_CUDA_MATMUL_H

#include "cuda.h"

struct matmul_shape {
    int m, n, k;
    bool turned; /* the weight is [n, k]; else [k, n] */
    bool bias, accumulate;
    int align; /* bytes that all addresses are a multiple of */
};

struct matmul;

int cuda_blas_open(struct cuda_blas **out, struct cuda *c, struct err *err);
void cuda_blas_close(struct cuda_blas *b);

/* How to make y [m, n] of x [m, k]; the device's until it is closed. NULL after an error. */
const struct matmul *matmul_plan(struct device *dev, const struct matmul_shape *s, struct err *err);
/* Bytes of cuda_scratch() that it works in. */
size_t matmul_workspace(const struct matmul *p);
/* A command: y = or += x w^T + b. b NULL where the shape says none. */
int matmul_push(struct device *dev, const struct matmul *p, void *y, const void *x, const void *w,
                const void *b, struct err *err);

#endif
