/* fused.h: attention without masks by cuDNN's fused operation, for the sizes and chips where that is quicker than
 * attention.cu. */
#ifndef WEFT_CUDA_FUSED_H
#define WEFT_CUDA_FUSED_H

#include "cuda.h"

/* True, and a command was put into the list, or *rc is the failure; false: it is not for this one. */
bool fused_attention(struct device *dev, struct tensor *o, const struct tensor *q,
                     const struct tensor *k, const struct tensor *v, const struct attention *a,
                     int *rc, struct err *err);

#endif
