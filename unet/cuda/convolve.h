/* convolve.h: convolutions by cuDNN's graph API, planned once a shape; weights [out, kh, kw, in].
 * Tensors are told to it as [n, c, h, w] with the strides of channels last.
 */
#ifndef WEFT_CUDA_CONVOLVE_H
#define WEFT_CUDA_CONVOLVE_H

#include "cuda.h"

struct conv_shape {
    int n, h, w, in; /* of x */
    int out, kh, kw, stride;
    int pad_h, pad_w; /* on both sides */
    int oh, ow;       /* of y */
    bool back;        /* dx of dy */
    bool accumulate;
    bool bias;
    int align; /* bytes that all addresses are a multiple of */
};

struct conv;

/* How to make y; the device's until it is closed. NULL after an error. */
const struct conv *conv_plan(struct device *dev, const struct conv_shape *s, struct err *err);
/* Whether it adds the bias itself. */
bool conv_has_bias(const struct conv *p);
size_t conv_workspace(const struct conv *p);
const char *conv_kind(const struct conv *p);
/* A command: `to` = or += what comes of `from`: y of x, or dx of dy. b: where the plan adds it. It works `behind` bytes into
 * cuda_scratch(), what is before that stays. */
int conv_push(struct device *dev, const struct conv *p, void *to, const void *from, const void *w,
              const void *b, size_t behind, struct err *err);

#endif
