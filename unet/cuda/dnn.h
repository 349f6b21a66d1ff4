/* dnn.h: cuDNN's graph API as convolve.c and fused.c use it.
 *
 * cuDNN 9, "Graph API": descriptors of tensors and operations make a graph, heuristics propose engines for it, a plan is one
 * of them made ready. A build collects descriptors and the first failure, after which everything does nothing.
 *
 *     struct dnn_build b = dnn_begin();
 *     cudnnBackendDescriptor_t x = dnn_tensor(&b, uid, dim, stride, type, align, false), …
 *     … dnn_make, dnn_set, dnn_finalize: an operation …
 *     graph = dnn_graph(&b, d, &op, 1);
 *     plan = dnn_plan(d, graph, type, false, &workspace);
 *     dnn_end(&b);
 */
#ifndef WEFT_CUDA_DNN_H
#define WEFT_CUDA_DNN_H

#include "cuda.h"

#include <cudnn.h>

struct conv;
struct fused;

enum { DNN_BUCKETS = 64 };

struct cuda_dnn {
    cudnnHandle_t handle;           /* NULL: plans can be made, for `chip`, but not run */
    cudnnBackendDescriptor_t chip;  /* what to plan for, where there is no handle */
    struct conv *conv[DNN_BUCKETS]; /* plans by a hash of their shapes */
    struct fused *fused;            /* a list */
};

int cuda_dnn_open(struct cuda_dnn **out, struct cuda *c, struct err *err);
void cuda_dnn_close(struct cuda_dnn *d);

struct dnn_build {
    cudnnBackendDescriptor_t made[16];
    int n;
    cudnnStatus_t rc;
};

struct dnn_build dnn_begin(void);
void dnn_end(struct dnn_build *b);
cudnnBackendDescriptor_t dnn_make(struct dnn_build *b, cudnnBackendDescriptorType_t what);
void dnn_set(struct dnn_build *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
             cudnnBackendAttributeType_t type, int64_t n, const void *values);
void dnn_set_desc(struct dnn_build *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                  cudnnBackendDescriptor_t value);
void dnn_finalize(struct dnn_build *b, cudnnBackendDescriptor_t d);

/* Where a tensor's values are. */
enum dnn_place {
    DNN_DEVICE,
    DNN_VIRTUAL, /* nowhere: between operations */
    DNN_HOST     /* one value, handed over by itself */
};
cudnnBackendDescriptor_t dnn_tensor(struct dnn_build *b, int64_t uid, const int64_t dim[4],
                                    const int64_t stride[4], cudnnDataType_t type, int align,
                                    enum dnn_place place);
cudnnBackendDescriptor_t dnn_graph(struct dnn_build *b, const struct cuda_dnn *on,
                                   const cudnnBackendDescriptor_t *op, int n);

cudnnDataType_t dnn_type(enum dtype t);
/* The first fit of what heuristics propose, in their order of speed: the same bits each time, sums of float32, float32 never
 * as TF32; compiled beforehand unless `slow`. NULL: there is none. Freed with cudnnBackendDestroyDescriptor. */
cudnnBackendDescriptor_t dnn_plan(const struct cuda_dnn *on, cudnnBackendDescriptor_t graph,
                                  cudnnDataType_t type, bool slow, int64_t *workspace);
/* From within a command: runs a plan on n tensors. 0, or the failure, noted with `what`. */
int dnn_run(struct cuda *c, cudnnBackendDescriptor_t plan, int n, const int64_t *uid,
            void *const *at, void *workspace, const char *what);

/* Frees those of a device (convolve.c, fused.c). */
void conv_free_all(struct cuda_dnn *d);
void fused_free_all(struct cuda_dnn *d);

#endif
