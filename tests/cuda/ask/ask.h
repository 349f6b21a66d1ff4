/* ask.h: asks for plans for a chip that is only described, and for many shapes (shapes.c). */
#ifndef WEFT_TESTS_CUDA_ASK_H
#define WEFT_TESTS_CUDA_ASK_H

#include "unet/cuda/convolve.h"
#include "unet/cuda/dnn.h"

struct asked {
    struct device dev;
    struct cuda cuda;
    struct cuda_dnn dnn;
    const char *chip;
    const char *of; /* the network in hand */
    int passed, failed;
    int n_bias, n_plain, n_compiled; /* plans by kind */
};

/* Plans it, unless that was done before, and checks the plan. */
void ask(struct asked *a, const struct conv_shape *s);

void ask_networks(struct asked *a);
void ask_odd_shapes(struct asked *a);

#endif
