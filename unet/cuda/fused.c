#include "fused.h"

#include "dnn.h"

#include <math.h>
#include <stdlib.h>

/* From Hopper on, whose wgmma attention.cu does not use, and where there is enough to do. cuDNN has it for heads of whole
 * 16-byte lines, up to 128 channels on all of these chips. */
enum { MAJOR_LEAST = 9, PLACES_LEAST = 1024, WIDTH_MOST = 128 };

enum { UID_Q = 1, UID_K, UID_V, UID_O, UID_SCALE };

struct fused {
    int n, heads, width, lq, lk;
    cudnnBackendDescriptor_t plan; /* NULL: cuDNN has none */
    int64_t workspace;
    struct fused *next;
};

void fused_free_all(struct cuda_dnn *d)
{
    for (struct fused *p = d->fused, *next; p; p = next) {
        next = p->next;
        if (p->plan)
            cudnnBackendDestroyDescriptor(p->plan);
        free(p);
    }
}

/* [n, heads, places, width] of a tensor [n, places, heads * width]. */
static cudnnBackendDescriptor_t heads(struct dnn_build *b, int64_t uid, const struct fused *p,
                                      int places, cudnnDataType_t type)
{
    const int64_t c = (int64_t)p->heads * p->width, dim[4] = {p->n, p->heads, places, p->width},
                  stride[4] = {c * places, p->width, c, 1};
    return dnn_tensor(b, uid, dim, stride, type, 16, DNN_DEVICE);
}

/* cuDNN 9, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR: o = softmax(scale q k^T) v. */
static void plan(struct cuda *c, struct fused *p)
{
    static const int64_t one[4] = {1, 1, 1, 1};
    struct dnn_build b = dnn_begin();
    cudnnDataType_t type = dnn_type(c->type);
    cudnnBackendDescriptor_t q = heads(&b, UID_Q, p, p->lq, type),
                             k = heads(&b, UID_K, p, p->lk, type),
                             v = heads(&b, UID_V, p, p->lk, type),
                             o = heads(&b, UID_O, p, p->lq, type);
    cudnnBackendDescriptor_t scale =
        dnn_tensor(&b, UID_SCALE, one, one, CUDNN_DATA_FLOAT, 4, DNN_HOST);
    cudnnBackendDescriptor_t op = dnn_make(&b, CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    dnn_set_desc(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, q);
    dnn_set_desc(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, k);
    dnn_set_desc(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, v);
    dnn_set_desc(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, o);
    dnn_set_desc(&b, op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, scale);
    dnn_finalize(&b, op);
    cudnnBackendDescriptor_t graph = dnn_graph(&b, c->dnn, &op, 1);
    if (b.rc == CUDNN_STATUS_SUCCESS)
        p->plan = dnn_plan(c->dnn, graph, type, true, &p->workspace);
    dnn_end(&b);
}

static const struct fused *plan_of(struct cuda *c, const struct tensor *q, const struct tensor *k,
                                   int n_heads)
{
    const struct fused s = {
        .n = q->n, .heads = n_heads, .width = q->c / n_heads, .lq = q->h * q->w, .lk = k->h * k->w};
    struct fused *p = c->dnn->fused;
    while (p && (p->n != s.n || p->heads != s.heads || p->width != s.width || p->lq != s.lq ||
                 p->lk != s.lk))
        p = p->next;
    if (p || !(p = malloc(sizeof *p)))
        return p;
    *p = s;
    plan(c, p);
    p->next = c->dnn->fused;
    c->dnn->fused = p;
    return p;
}

struct fused_args {
    const struct fused *plan;
    void *o, *q, *k, *v, *workspace;
};

static int go(struct cuda *c, const void *args, const void *params)
{
    static const int64_t uid[5] = {UID_Q, UID_K, UID_V, UID_O, UID_SCALE};
    const struct fused_args *a = args;
    float scale = (float)(1 / sqrt((double)a->plan->width));
    void *const at[5] = {a->q, a->k, a->v, a->o, &scale};
    (void)params;
    return dnn_run(c, a->plan->plan, 5, uid, at, a->workspace, "an attention");
}

static bool is_for(const struct cuda *c, const struct tensor *o, const struct tensor *q,
                   const struct tensor *k, const struct tensor *v, const struct attention *a)
{
    int width = q->c / a->heads;
    uintptr_t all =
        (uintptr_t)o->data | (uintptr_t)q->data | (uintptr_t)k->data | (uintptr_t)v->data;
    return c->type != DT_F32 && c->major >= MAJOR_LEAST && !a->causal && !a->region &&
           width % 8 == 0 && width <= WIDTH_MOST && q->h * q->w >= PLACES_LEAST &&
           k->h * k->w >= PLACES_LEAST && all % 16 == 0;
}

bool fused_attention(struct device *dev, struct tensor *o, const struct tensor *q,
                     const struct tensor *k, const struct tensor *v, const struct attention *a,
                     int *rc, struct err *err)
{
    struct cuda *c = cuda_of(dev);
    const struct fused *p = is_for(c, o, q, k, v, a) ? plan_of(c, q, k, a->heads) : NULL;
    if (!p || !p->plan)
        return false;
    struct fused_args f = {.plan = p, .o = o->data, .q = q->data, .k = k->data, .v = v->data};
    if (p->workspace && !(f.workspace = cuda_scratch(dev, (size_t)p->workspace)))
        *rc = cuda_short(dev, (size_t)p->workspace, err);
    else
        *rc = cuda_push(dev, go, &f, sizeof f, NULL, 0, err);
    return true;
}
