#include "convolve.h"

#include "dnn.h"

#include <stdio.h>
#include <stdlib.h>

enum { UID_X = 1, UID_W, UID_Y, UID_B, UID_SUM };

struct conv {
    struct conv_shape shape;
    cudnnBackendDescriptor_t plan;
    int64_t workspace;
    bool bias; /* within */
    char kind[48];
    struct conv *next;
};

void conv_free_all(struct cuda_dnn *d)
{
    for (int i = 0; i < DNN_BUCKETS; i++)
        for (struct conv *p = d->conv[i], *next; p; p = next) {
            next = p->next;
            cudnnBackendDestroyDescriptor(p->plan);
            free(p);
        }
}

/* ---- plans ----------------------------------------------------------------------------------- */

static cudnnBackendDescriptor_t convolution(struct dnn_build *b, const struct conv_shape *s)
{
    const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    const int64_t dims = 2, one[2] = {1, 1}, stride[2] = {s->stride, s->stride},
                  pad[2] = {s->pad_h, s->pad_w};
    cudnnBackendDescriptor_t d = dnn_make(b, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    dnn_set(b, d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    dnn_set(b, d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    dnn_set(b, d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &dims);
    dnn_set(b, d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, one);
    dnn_set(b, d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
    dnn_set(b, d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
    dnn_set(b, d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
    dnn_finalize(b, d);
    return d;
}

/* y = conv(x) + beta y, or dx of dy. */
static cudnnBackendDescriptor_t conv_op(struct dnn_build *b, const struct conv_shape *s,
                                        cudnnBackendDescriptor_t x, cudnnBackendDescriptor_t w,
                                        cudnnBackendDescriptor_t y)
{
    const float alpha = 1, beta = s->accumulate ? 1 : 0;
    cudnnBackendDescriptor_t how = convolution(b, s);
    cudnnBackendDescriptor_t d =
        dnn_make(b, s->back ? CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR
                            : CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
    dnn_set(b, d,
            s->back ? CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA
                    : CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA,
            CUDNN_TYPE_FLOAT, 1, &alpha);
    dnn_set(b, d,
            s->back ? CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA
                    : CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA,
            CUDNN_TYPE_FLOAT, 1, &beta);
    dnn_set_desc(b, d,
                 s->back ? CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC
                         : CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC,
                 how);
    dnn_set_desc(b, d,
                 s->back ? CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W
                         : CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W,
                 w);
    dnn_set_desc(b, d,
                 s->back ? CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX
                         : CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
                 x);
    dnn_set_desc(b, d,
                 s->back ? CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY
                         : CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
                 y);
    dnn_finalize(b, d);
    return d;
}

/* y = x + bias */
static cudnnBackendDescriptor_t bias_op(struct dnn_build *b, cudnnBackendDescriptor_t x,
                                        cudnnBackendDescriptor_t bias, cudnnBackendDescriptor_t y)
{
    const cudnnPointwiseMode_t mode = CUDNN_POINTWISE_ADD;
    const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    cudnnBackendDescriptor_t how = dnn_make(b, CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    dnn_set(b, how, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    dnn_set(b, how, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    dnn_finalize(b, how);
    cudnnBackendDescriptor_t d = dnn_make(b, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    dnn_set_desc(b, d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, how);
    dnn_set_desc(b, d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    dnn_set_desc(b, d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, bias);
    dnn_set_desc(b, d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    dnn_finalize(b, d);
    return d;
}

/* [n, c, h, w], channels last. */
static cudnnBackendDescriptor_t tensor(struct dnn_build *b, int64_t uid, int n, int c, int h, int w,
                                       cudnnDataType_t type, int align, enum dnn_place place)
{
    const int64_t dim[4] = {n, c, h, w}, stride[4] = {(int64_t)c * h * w, 1, (int64_t)c * w, c};
    return dnn_tensor(b, uid, dim, stride, type, align, place);
}

/* With `accumulate` it is the convolution alone, whose beta is made for that: graphs of several operations must not be in
 * place. */
static cudnnBackendDescriptor_t graph_of(struct dnn_build *b, const struct cuda_dnn *on,
                                         const struct conv_shape *s, cudnnDataType_t type,
                                         bool bias)
{
    cudnnBackendDescriptor_t op[2];
    cudnnBackendDescriptor_t x =
        tensor(b, UID_X, s->n, s->in, s->h, s->w, type, s->align, DNN_DEVICE);
    cudnnBackendDescriptor_t w =
        tensor(b, UID_W, s->out, s->in, s->kh, s->kw, type, s->align, DNN_DEVICE);
    cudnnBackendDescriptor_t y =
        tensor(b, UID_Y, s->n, s->out, s->oh, s->ow, type, s->align, DNN_DEVICE);
    if (bias) {
        cudnnBackendDescriptor_t sum =
            tensor(b, UID_SUM, s->n, s->out, s->oh, s->ow, CUDNN_DATA_FLOAT, 16, DNN_VIRTUAL);
        cudnnBackendDescriptor_t add =
            tensor(b, UID_B, 1, s->out, 1, 1, type, s->align, DNN_DEVICE);
        op[0] = conv_op(b, s, x, w, sum);
        op[1] = bias_op(b, sum, add, y);
    } else {
        op[0] = conv_op(b, s, x, w, y);
    }
    return dnn_graph(b, on, op, bias ? 2 : 1);
}

/* Tries a graph with engines of one kind. */
static bool try_plan(struct conv *p, struct cuda *c, bool bias, bool slow)
{
    struct dnn_build b = dnn_begin();
    cudnnDataType_t type = dnn_type(c->type);
    cudnnBackendDescriptor_t graph = graph_of(&b, c->dnn, &p->shape, type, bias);
    if (b.rc == CUDNN_STATUS_SUCCESS)
        p->plan = dnn_plan(c->dnn, graph, type, slow, &p->workspace);
    dnn_end(&b);
    p->bias = bias;
    snprintf(p->kind, sizeof p->kind, "cudnn%s%s", bias ? " with bias" : "",
             slow ? ", compiled" : "");
    return p->plan != NULL;
}

static bool same(const struct conv_shape *a, const struct conv_shape *b)
{
    return a->n == b->n && a->h == b->h && a->w == b->w && a->in == b->in && a->out == b->out &&
           a->kh == b->kh && a->kw == b->kw && a->stride == b->stride && a->pad_h == b->pad_h &&
           a->pad_w == b->pad_w && a->oh == b->oh && a->ow == b->ow && a->back == b->back &&
           a->accumulate == b->accumulate && a->bias == b->bias && a->align == b->align;
}

const struct conv *conv_plan(struct device *dev, const struct conv_shape *s, struct err *err)
{
    struct cuda *c = cuda_of(dev);
    unsigned hash = ((unsigned)s->n * 31 + (unsigned)s->in) * 31 + (unsigned)(s->out + s->h);
    struct conv **at = &c->dnn->conv[(hash ^ hash >> 6) % DNN_BUCKETS], *p = *at;
    while (p && !same(&p->shape, s))
        p = p->next;
    if (p)
        return p;
    p = calloc(1, sizeof *p);
    if (!p) {
        err_nomem(err, sizeof *p);
        return NULL;
    }
    p->shape = *s;
    bool whole = s->bias && !s->accumulate;
    if (!(whole && try_plan(p, c, true, false)) && !try_plan(p, c, false, false) &&
        !try_plan(p, c, false, true)) {
        err_set(err, ERR_UNSUPPORTED,
                "cuDNN has no convolution of [%d, %d, %d, %d] by [%d, %d, %d], stride %d, in %s",
                s->n, s->h, s->w, s->in, s->out, s->kh, s->kw, s->stride, dtype_name(c->type));
        free(p);
        return NULL;
    }
    p->next = *at;
    *at = p;
    return p;
}

bool conv_has_bias(const struct conv *p)
{
    return p->bias;
}

size_t conv_workspace(const struct conv *p)
{
    return (size_t)p->workspace;
}

const char *conv_kind(const struct conv *p)
{
    return p->kind;
}

/* ---- running --------------------------------------------------------------------------------- */

struct conv_args {
    const struct conv *plan;
    void *x, *w, *y, *b, *workspace;
};

static int go(struct cuda *c, const void *args, const void *params)
{
    const struct conv_args *a = args;
    static const int64_t uid[4] = {UID_X, UID_W, UID_Y, UID_B};
    void *const at[4] = {a->x, a->w, a->y, a->b};
    (void)params;
    return dnn_run(c, a->plan->plan, a->plan->bias ? 4 : 3, uid, at, a->workspace, "a convolution");
}

int conv_push(struct device *dev, const struct conv *p, void *to, const void *from, const void *w,
              const void *b, size_t behind, struct err *err)
{
    bool back = p->shape.back;
    struct conv_args a = {.plan = p,
                          .x = back ? to : (void *)from,
                          .y = back ? (void *)from : to,
                          .w = (void *)w,
                          .b = (void *)b};
    size_t bytes = behind + (size_t)p->workspace;
    char *room = p->workspace ? cuda_scratch(dev, bytes) : NULL;
    if (p->workspace && !room)
        return cuda_short(dev, bytes, err);
    a.workspace = room ? room + behind : NULL;
    return cuda_push(dev, go, &a, sizeof a, NULL, 0, err);
}
