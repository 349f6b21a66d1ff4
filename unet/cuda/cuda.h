/* cuda.h: what the files of the CUDA backend share.
 *
 * Nothing runs when an op is called. It puts a command at the end of a list: a function and its arguments. When something has
 * to be known or moved (download, upload, free, the end of a step) the list is run, on one stream. A list that comes again,
 * as every step's does, is captured into a CUDA graph the second time, and from then on launched as one.
 *
 * A command has two kinds of arguments:
 *   args     what it is: shapes, where tensors and weights lie. Lists are told apart by these, byte by byte, so padding has
 *            to be zero.
 *   params   what may differ from one time to the next: strengths, coefficients, masks, gates, which adapters. They are
 *            copied to the device before each run, and kernels read them there: other adapters are the same graph.
 *
 * So an op is, in a .cu file (kernel.cuh):
 *
 *     struct affine_args { void *y; const void *x; size_t n; int type, pad; };
 *     struct affine_params { float a, b; };
 *     static int go(struct cuda *c, const void *args, const void *params)    // params: in device memory
 *     {
 *         const affine_args *a = (const affine_args *)args;
 *         return launch(c, kernel<float>, grid, block, 0, *a, (const affine_params *)params);
 *     }
 *     extern "C" int cuda_affine(struct device *dev, struct tensor *y, …)
 *     {
 *         affine_args a = zeroed<affine_args>();
 *         …
 *         return cuda_push(dev, go, &a, sizeof a, &p, sizeof p, err);
 *     }
 *
 * `go` runs at any later time, perhaps while a graph is captured: it must only launch, on c->stream, and neither allocate
 * nor wait nor look at tensors or at what the caller had on its stack.
 */
#ifndef WEFT_CUDA_H
#define WEFT_CUDA_H

#include "../backend.h"

#include <cuda_runtime.h>

struct cuda_list; /* list.c */
struct cuda_blas; /* matmul.c */
struct cuda_dnn;  /* convolve.c */

struct cuda {
    cudaStream_t stream;
    enum dtype type; /* of values: DT_F32, DT_F16, DT_BF16 */
    int major;       /* of its compute capability */
    int processors;  /* multiprocessors */
    int shared_most; /* bytes of shared memory a block may have */
    struct cuda_list *list;
    struct cuda_blas *blas;
    struct cuda_dnn *dnn;
    struct err broken; /* the first failure of a command; it fails whatever is asked next */
    char name[128];    /* of the chip */
};

static inline struct cuda *cuda_of(const struct device *dev)
{
    return (struct cuda *)dev->impl;
}

/* Type of a tensor's values: the device's, or float32 where it is wide. */
static inline enum dtype cuda_type(const struct tensor *t)
{
    return t->wide ? DT_F32 : cuda_of(t->dev)->type;
}

static inline size_t cuda_bytes(const struct tensor *t)
{
    return tensor_count(t) * (t->wide || cuda_of(t->dev)->type == DT_F32 ? 4 : 2);
}

/* ---- list.c ---------------------------------------------------------------------------------- */

typedef int cuda_go(struct cuda *c, const void *args, const void *params);

enum { CUDA_ARGS_MOST = 512, CUDA_PARAMS_MOST = 1 << 16 };

/* Appends; args and params are copied. params NULL: none. */
int cuda_push(struct device *dev, cuda_go *go, const void *args, size_t n_args, const void *params,
              size_t n_params, struct err *err);
/* n bytes of the host to device memory: as a command where they are few, so that time and small masks go with the graph. */
int cuda_put(struct device *dev, void *to, const void *from, size_t n, struct err *err);
/* Runs what is in the list; does not wait for it. */
int cuda_flush(struct device *dev, struct err *err);
/* Device memory that commands may use while they run, one after another: at least so many bytes; lists that were captured
 * with a smaller one are forgotten. NULL: there is none. Not from within a command. */
void *cuda_scratch(struct device *dev, size_t bytes);
/* 0, or notes what CUDA says went wrong and returns ERR_IO: the device is of no use any more. */
int cuda_failed(struct cuda *c, cudaError_t rc);
/* Device memory, 256-byte aligned, until cuda_give; of the stream's order, and not from within a command. NULL: there is none,
 * and nothing else has happened. */
void *cuda_take(struct cuda *c, size_t bytes);
void cuda_give(struct cuda *c, void *p);
/* Waits, and gives what is free but kept back to the driver, so that it can be had in another piece, or by a library. */
void cuda_trim(struct cuda *c);
/* Why there is no memory: the device is broken, or there is too little. */
int cuda_short(struct device *dev, size_t bytes, struct err *err);
/* 0, or the first failure of all, which stays. */
int cuda_check(struct device *dev, struct err *err);

struct device_runs cuda_runs(const struct device *dev);

int cuda_list_new(struct cuda *c, struct err *err);
void cuda_list_free(struct cuda *c);

/* ---- ops: those of backend.h that have no file of their own are in elements.cu ---------------- */

int cuda_layer(struct device *dev, struct tensor *y, const struct layer *l, const struct tensor *x,
               bool accumulate, struct err *err);
int cuda_layer_prepare(struct device *dev, const struct tensor *y, const struct layer *l,
                       const struct tensor *x, bool accumulate, struct err *err);
const char *cuda_layer_kind(const struct layer *l, int i);
size_t cuda_layer_bytes(const struct layer *l);
void cuda_layer_release(struct device *dev, struct layer *l);
size_t cuda_layer_back_scratch(const struct layer *l, const struct tensor *dx,
                               const struct tensor *dy);
int cuda_layer_back_prepare(struct device *dev, const struct tensor *dx, const struct layer *l,
                            const struct tensor *dy, bool add, struct err *err);
int cuda_layer_back(struct device *dev, struct tensor *dx, const struct layer *l,
                    const struct tensor *dy, bool add, void *scratch, struct err *err);
/* The weight on the device, [out, kh, kw, in] of the device's type, made at first use; NULL after an error. */
const void *cuda_weight(struct device *dev, const struct layer *l, struct err *err);

/* chains.cu, gates.cu, gates_back.cu, adapters.cu */
int cuda_chains(struct device *dev, const struct chain *c, int n, bool prepare, struct err *err);
int cuda_gain(struct device *dev, struct tensor *y, const struct tensor *h, double s,
              const float *gain, const float *shift, struct err *err);
int cuda_scale(struct device *dev, struct tensor *y, int n, const struct share *part,
               struct err *err);
int cuda_route(struct device *dev, struct tensor *t, const struct route *how, struct err *err);
int cuda_gate(struct device *dev, struct tensor *y, const struct tensor *h, const struct gating *in,
              struct err *err);
int cuda_gate_back(struct device *dev, struct tensor *dh, struct tensor *dt, const struct tensor *h,
                   const struct gating *in, const struct tensor *dy, struct err *err);

/* norms.cu */
int cuda_group_norm(struct device *dev, struct tensor *y, const struct norm *g,
                    const struct tensor *x, const struct tensor *add, enum act act,
                    struct err *err);
int cuda_layer_norm(struct device *dev, struct tensor *y, const struct norm *g,
                    const struct tensor *x, struct err *err);
int cuda_group_norm_back(struct device *dev, struct tensor *dx, const struct norm *g,
                         const struct tensor *x, const struct tensor *more, enum act act,
                         const struct tensor *dy, bool add, struct err *err);
int cuda_layer_norm_back(struct device *dev, struct tensor *dx, const struct norm *g,
                         const struct tensor *x, const struct tensor *dy, bool add,
                         struct err *err);

/* attention.cu, attention_back.cu */
size_t cuda_attention_scratch(struct device *dev, const struct tensor *q, const struct tensor *k,
                              const struct attention *a);
int cuda_attention(struct device *dev, struct tensor *o, const struct tensor *q,
                   const struct tensor *k, const struct tensor *v, const struct attention *a,
                   void *scratch, struct err *err);
size_t cuda_attention_back_scratch(struct device *dev, const struct tensor *q,
                                   const struct tensor *k, const struct attention *a);
int cuda_attention_back(struct device *dev, struct tensor *const d[3], const bool add[3],
                        const struct tensor *q, const struct tensor *k, const struct tensor *v,
                        const struct attention *a, const struct tensor *dout, void *scratch,
                        struct err *err);

/* elements.cu */
int cuda_activate(struct device *dev, struct tensor *y, const struct tensor *x, enum act act,
                  struct err *err);
int cuda_geglu(struct device *dev, struct tensor *y, const struct tensor *x, struct err *err);
int cuda_lincomb(struct device *dev, struct tensor *y, int n, const double *coef,
                 const struct tensor *const *x, double clamp, struct err *err);
int cuda_affine(struct device *dev, struct tensor *y, const struct tensor *x, double a, double b,
                struct err *err);
int cuda_concat(struct device *dev, struct tensor *y, const struct tensor *a,
                const struct tensor *b, struct err *err);
int cuda_upsample(struct device *dev, struct tensor *y, const struct tensor *x, struct err *err);
int cuda_activate_back(struct device *dev, struct tensor *dx, const struct tensor *x, enum act act,
                       const struct tensor *dy, bool add, struct err *err);
int cuda_geglu_back(struct device *dev, struct tensor *dx, const struct tensor *x,
                    const struct tensor *dy, bool add, struct err *err);
int cuda_concat_back(struct device *dev, struct tensor *da, bool add_a, struct tensor *db,
                     bool add_b, const struct tensor *dy, struct err *err);
int cuda_upsample_back(struct device *dev, struct tensor *dx, const struct tensor *dy, bool add,
                       struct err *err);

/* weights.cu, run at once on c->stream (not commands): n values of type `from` (DT_F32, DT_F16, DT_BF16) to type `to`;
 * [out, in, kh, kw] becomes [out, kh, kw, in]. */
int cuda_convert(struct cuda *c, void *y, enum dtype to, const void *x, enum dtype from, size_t n);
int cuda_convert_weight(struct cuda *c, void *y, enum dtype to, const void *x, enum dtype from,
                        int out, int in, int kh, int kw);

/* weights.cu, as commands: x [n, h, w, c] within zeros: y [n, h + pad[0] + pad[2], w + pad[1] + pad[3], c], and back: dx
 * becomes, or with `add` larger by, the middle of dy. Of the device's type. */
int cuda_pad(struct device *dev, void *y, const struct tensor *x, const int pad[4],
             struct err *err);
int cuda_unpad(struct device *dev, struct tensor *dx, const void *dy, const int pad[4], bool add,
               struct err *err);
/* y [rows, c] += b [c], as a command. */
int cuda_bias(struct device *dev, struct tensor *y, const void *b, struct err *err);

#endif
