/* The CUDA backend: opening a device, its memory, what goes to it and comes back. Ops are in the .cu files and layers.c;
 * list.c runs them. */
#include "cuda.h"

#include "dnn.h"
#include "matmul.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct backend backend_cuda;

/* ---- opening --------------------------------------------------------------------------------- */

int cuda_failed(struct cuda *c, cudaError_t rc)
{
    if (rc == cudaSuccess)
        return 0;
    cudaGetLastError(); /* told here; the thread forgets it */
    if (!c->broken.code)
        err_set(&c->broken, rc == cudaErrorMemoryAllocation ? ERR_NOMEM : ERR_IO,
                "GPU %s: %s (%s)%s", c->name, cudaGetErrorString(rc), cudaGetErrorName(rc),
                rc == cudaErrorMemoryAllocation ? "; a smaller picture or batch takes less" : "");
    return c->broken.code;
}

int cuda_check(struct device *dev, struct err *err)
{
    const struct err *broken = &cuda_of(dev)->broken;
    if (broken->code && err)
        *err = *broken;
    return broken->code;
}

void cuda_trim(struct cuda *c)
{
    cudaMemPool_t pool;
    cudaGetLastError();
    cudaStreamSynchronize(c->stream);
    if (cudaDeviceGetDefaultMemPool(&pool, 0) == cudaSuccess)
        cudaMemPoolTrimTo(pool, 0);
}

static void cuda_close(struct device *dev)
{
    struct cuda *c = cuda_of(dev);
    if (!c)
        return;
    if (c->stream)
        cudaStreamSynchronize(c->stream);
    cuda_list_free(c); /* graphs before the plans whose kernels they have */
    cuda_dnn_close(c->dnn);
    cuda_blas_close(c->blas);
    if (c->stream) {
        cuda_trim(c);
        cudaStreamDestroy(c->stream);
    }
    free(c);
    dev->impl = NULL;
}

/* Freed memory stays with the process: adapters come and go without asking the driver. */
static cudaError_t keep_memory(void)
{
    cudaMemPool_t pool;
    uint64_t all = UINT64_MAX;
    cudaError_t rc = cudaDeviceGetDefaultMemPool(&pool, 0);
    return rc != cudaSuccess ? rc
                             : cudaMemPoolSetAttribute(pool, cudaMemPoolAttrReleaseThreshold, &all);
}

static int find_chip(struct device *dev, struct err *err)
{
    struct cuda *c = cuda_of(dev);
    struct cudaDeviceProp about;
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc != cudaSuccess || n < 1)
        return err_set(err, ERR_UNSUPPORTED,
                       "there is no CUDA GPU here (%s); --device cpu needs none",
                       rc != cudaSuccess ? cudaGetErrorString(rc) : "none was found");
    rc = cudaSetDevice(0);
    rc = rc != cudaSuccess ? rc : cudaGetDeviceProperties(&about, 0);
    if (rc != cudaSuccess)
        return err_set(err, ERR_IO, "the GPU cannot be used: %s", cudaGetErrorString(rc));
    if (about.major < 8)
        return err_set(err, ERR_UNSUPPORTED,
                       "GPU %s has compute capability %d.%d; 8.0 (Ampere) is the least; --device "
                       "cpu needs none",
                       about.name, about.major, about.minor);
    memcpy(c->name, about.name, sizeof c->name - 1);
    snprintf(dev->about, sizeof dev->about, "%s, values %s, sums F32", c->name,
             dtype_name(c->type));
    c->major = about.major;
    c->processors = about.multiProcessorCount;
    c->shared_most = (int)about.sharedMemPerBlockOptin;
    return 0;
}

static int cuda_open(struct device *dev, const struct device_options *o, struct err *err)
{
    struct cuda *c = calloc(1, sizeof *c);
    if (!c)
        return err_nomem(err, sizeof *c);
    dev->impl = c;
    c->type = o->values;
    dev->value_size = c->type == DT_F32 ? 4 : 2;
    int rc = c->type == DT_F32 || c->type == DT_F16 || c->type == DT_BF16
                 ? 0
                 : err_set(err, ERR_ARG, "a GPU computes in F32, F16 or BF16, not in %s",
                           dtype_name(c->type));
    rc = rc < 0 ? rc : find_chip(dev, err);
    if (rc == 0 &&
        (cuda_failed(c, keep_memory()) < 0 ||
         cuda_failed(c, cudaStreamCreateWithFlags(&c->stream, cudaStreamNonBlocking)) < 0))
        rc = cuda_check(dev, err);
    rc = rc < 0 ? rc : cuda_list_new(c, err);
    rc = rc < 0 ? rc : cuda_blas_open(&c->blas, c, err);
    rc = rc < 0 ? rc : cuda_dnn_open(&c->dnn, c, err);
    if (rc < 0)
        cuda_close(dev);
    return rc;
}

/* ---- memory ---------------------------------------------------------------------------------- */

void *cuda_take(struct cuda *c, size_t bytes)
{
    void *p = NULL;
    cudaError_t rc = cudaMallocAsync(&p, bytes ? bytes : 1, c->stream);
    if (rc == cudaErrorMemoryAllocation) {
        cuda_trim(c);
        rc = cudaMallocAsync(&p, bytes ? bytes : 1, c->stream);
    }
    if (rc == cudaErrorMemoryAllocation)
        cudaGetLastError(); /* the caller says so */
    else
        cuda_failed(c, rc);
    return rc == cudaSuccess ? p : NULL;
}

void cuda_give(struct cuda *c, void *p)
{
    if (p)
        cuda_failed(c, cudaFreeAsync(p, c->stream));
}

int cuda_short(struct device *dev, size_t bytes, struct err *err)
{
    int rc = cuda_check(dev, err);
    return rc < 0 ? rc : err_nomem(err, bytes);
}

static void *cuda_alloc(struct device *dev, size_t bytes)
{
    return cuda_take(cuda_of(dev), bytes);
}

static void cuda_free(struct device *dev, void *p)
{
    if (!p)
        return;
    cuda_flush(dev, NULL);
    cuda_give(cuda_of(dev), p);
}

/* ---- there and back -------------------------------------------------------------------------- */

static void cuda_store(struct device *dev, float *p, const float *host, size_t n)
{
    struct cuda *c = cuda_of(dev);
    struct err err;
    if (cuda_put(dev, p, host, n * sizeof *p, &err) < 0 && !c->broken.code)
        c->broken = err; /* who stores cannot be told */
}

/* Values of t's type, between t and float32 of the host. */
static void narrow(void *to, const float *from, size_t n, enum dtype type)
{
    uint16_t *h = to;
    for (size_t i = 0; i < n; i++)
        h[i] = type == DT_F16 ? f32_to_half(from[i]) : f32_to_bf16(from[i]);
}

static void widen(float *to, const void *from, size_t n, enum dtype type)
{
    const uint16_t *h = from;
    for (size_t i = 0; i < n; i++)
        to[i] = type == DT_F16 ? half_to_f32(h[i]) : bf16_to_f32(h[i]);
}

static int cuda_upload(struct device *dev, struct tensor *t, const float *host, struct err *err)
{
    enum dtype type = cuda_type(t);
    size_t bytes = cuda_bytes(t);
    uint16_t *room = type == DT_F32 ? NULL : malloc(bytes);
    if (type != DT_F32 && !room)
        return err_nomem(err, bytes);
    if (room)
        narrow(room, host, tensor_count(t), type);
    int rc = cuda_put(dev, t->data, room ? (const void *)room : host, bytes, err);
    free(room);
    return rc;
}

static int cuda_download(struct device *dev, float *host, const struct tensor *t, struct err *err)
{
    struct cuda *c = cuda_of(dev);
    enum dtype type = cuda_type(t);
    size_t n = tensor_count(t), bytes = cuda_bytes(t);
    uint16_t *room = type == DT_F32 ? NULL : malloc(bytes);
    if (type != DT_F32 && !room)
        return err_nomem(err, bytes);
    int rc = cuda_flush(dev, err);
    if (rc == 0) {
        cuda_failed(c, cudaMemcpyAsync(room ? (void *)room : host, t->data, bytes,
                                       cudaMemcpyDeviceToHost, c->stream));
        cuda_failed(c, cudaStreamSynchronize(c->stream));
        rc = cuda_check(dev, err);
    }
    if (rc == 0 && room)
        widen(host, room, n, type);
    free(room);
    return rc;
}

const struct backend backend_cuda = {
    .name = "cuda",
    .about = "cuBLASLt, cuDNN and our own kernels, for NVIDIA GPUs from Ampere on",
    .narrow = true,
    .open = cuda_open,
    .close = cuda_close,
    .alloc = cuda_alloc,
    .free = cuda_free,
    .store = cuda_store,
    .flush = cuda_flush,
    .runs = cuda_runs,
    .upload = cuda_upload,
    .download = cuda_download,
    .layer_prepare = cuda_layer_prepare,
    .layer_kind = cuda_layer_kind,
    .layer_bytes = cuda_layer_bytes,
    .layer_release = cuda_layer_release,
    .layer = cuda_layer,
    .chains = cuda_chains,
    .chains_all = true,
    .group_norm = cuda_group_norm,
    .layer_norm = cuda_layer_norm,
    .attention_scratch = cuda_attention_scratch,
    .attention = cuda_attention,
    .activate = cuda_activate,
    .geglu = cuda_geglu,
    .lincomb = cuda_lincomb,
    .affine = cuda_affine,
    .gain = cuda_gain,
    .scale = cuda_scale,
    .route = cuda_route,
    .gate = cuda_gate,
    .concat = cuda_concat,
    .upsample = cuda_upsample,
    .layer_back_scratch = cuda_layer_back_scratch,
    .layer_back_prepare = cuda_layer_back_prepare,
    .layer_back = cuda_layer_back,
    .group_norm_back = cuda_group_norm_back,
    .layer_norm_back = cuda_layer_norm_back,
    .attention_back_scratch = cuda_attention_back_scratch,
    .attention_back = cuda_attention_back,
    .activate_back = cuda_activate_back,
    .geglu_back = cuda_geglu_back,
    .concat_back = cuda_concat_back,
    .upsample_back = cuda_upsample_back,
    .gate_back = cuda_gate_back,
};
