/* Layers on the GPU: their weights go there once; products are cuBLASLt's (matmul.c), convolutions cuDNN's (convolve.c). */
#include "convolve.h"
#include "matmul.h"

#include <stdlib.h>
#include <string.h>

/* A layer as it lies on the device, and how it runs on the shapes it has met. */
struct cuda_weights {
    void *w, *b; /* [out, kh, kw, in] and [out] of the device's type; b NULL: none */
    size_t bytes;
    const char **kind;
    int n_kind;
};

/* ---- weights --------------------------------------------------------------------------------- */

static bool is_native(enum dtype t)
{
    return t == DT_F32 || t == DT_F16 || t == DT_BF16;
}

/* a's values as they are in its file, or as float32, in the device's memory; NULL after an error, or for want of memory. */
static void *raw(struct cuda *c, const struct array *a, const char *name, enum dtype *type,
                 struct err *err)
{
    size_t n = array_count(a);
    float *host = NULL;
    void *p = NULL;
    *type = is_native(a->dtype) ? a->dtype : DT_F32;
    size_t bytes = n * dtype_bits(*type) / 8;
    if (!is_native(a->dtype) && !(host = malloc(n * sizeof *host)))
        err_nomem(err, n * sizeof *host);
    else if ((host ? array_to_finite(a, host, name, err) : array_finite(a, name, err)) == 0 &&
             (p = cuda_take(c, bytes))) {
        cuda_failed(c, cudaMemcpyAsync(p, host ? (const void *)host : a->data, bytes,
                                       cudaMemcpyHostToDevice, c->stream));
        cuda_failed(c, cudaStreamSynchronize(c->stream)); /* the host's copy may go */
    }
    free(host);
    return p;
}

/* The array as the device has it: [out, in, kh, kw] turned to [out, kh, kw, in]. */
static void *bring(struct device *dev, const struct array *a, const struct layer *l, bool weight,
                   struct err *err)
{
    struct cuda *c = cuda_of(dev);
    enum dtype type;
    void *from = raw(c, a, l->name, &type, err),
         *p = from ? cuda_take(c, array_count(a) * dev->value_size) : NULL;
    if (p && weight)
        cuda_convert_weight(c, p, c->type, from, type, l->out, l->in, l->kh, l->kw);
    else if (p)
        cuda_convert(c, p, c->type, from, type, array_count(a));
    cuda_give(c, from);
    return p;
}

static void drop(struct device *dev, struct cuda_weights *p)
{
    dev->be->free(dev, p->w);
    dev->be->free(dev, p->b);
    free(p->kind);
    free(p);
}

/* What is made at first use, or an error. The packed form is a cache; the layer itself is not changed. */
static int pack(struct device *dev, const struct layer *cl, struct cuda_weights **out,
                struct err *err)
{
    struct layer *l = (struct layer *)cl;
    *out = l->impl;
    if (*out)
        return 0;
    struct cuda_weights *p = calloc(1, sizeof *p);
    if (!p)
        return err_nomem(err, sizeof *p);
    err_clear(err);
    p->w = bring(dev, &l->w, l, true, err);
    if (p->w && l->b.data)
        p->b = bring(dev, &l->b, l, false, err);
    int rc = cuda_check(dev, err);
    if (rc == 0 && (!p->w || (l->b.data && !p->b)))
        rc = err->code ? err->code : err_nomem(err, array_count(&l->w) * dev->value_size);
    if (rc < 0) {
        drop(dev, p);
        return rc;
    }
    p->bytes = (array_count(&l->w) + (p->b ? (size_t)l->out : 0)) * dev->value_size;
    *out = l->impl = p;
    return 0;
}

const void *cuda_weight(struct device *dev, const struct layer *l, struct err *err)
{
    struct cuda_weights *p;
    struct err own = {.code = 0};
    return pack(dev, l, &p, err ? err : &own) < 0 ? NULL : p->w;
}

size_t cuda_layer_bytes(const struct layer *l)
{
    const struct cuda_weights *p = l->impl;
    return p ? p->bytes : 0;
}

const char *cuda_layer_kind(const struct layer *l, int i)
{
    const struct cuda_weights *p = l->impl;
    return p && i >= 0 && i < p->n_kind ? p->kind[i] : NULL;
}

void cuda_layer_release(struct device *dev, struct layer *l)
{
    if (l->impl)
        drop(dev, l->impl);
    l->impl = NULL;
}

/* ---- shapes ---------------------------------------------------------------------------------- */

static bool is_product(const struct layer *l)
{
    return l->kh * l->kw == 1 && l->stride == 1 && !l->pad[0] && !l->pad[1] && !l->pad[2] &&
           !l->pad[3];
}

/* Paddings that differ on opposite sides are made beforehand: not every engine of cuDNN has them. */
static bool is_lopsided(const struct layer *l)
{
    return l->pad[0] != l->pad[2] || l->pad[1] != l->pad[3];
}

/* Bytes of x with such padding around it, in whole lines of 256; 0: it is not needed. */
static size_t padded_bytes(const struct layer *l, const struct tensor *x)
{
    size_t h = (size_t)(x->h + l->pad[0] + l->pad[2]), w = (size_t)(x->w + l->pad[1] + l->pad[3]);
    size_t bytes = (size_t)x->n * h * w * (size_t)x->c * x->dev->value_size;
    return is_lopsided(l) ? (bytes + 255) / 256 * 256 : 0;
}

/* 16, or a value, whichever the addresses are multiples of. While measuring they are not known: as arenas have them. */
static int align_of(const struct device *dev, const void *a, const void *b)
{
    return ((uintptr_t)a | (uintptr_t)b) % 16 ? (int)dev->value_size : 16;
}

/* to = or += from times the weight, or back. */
static struct matmul_shape matmul_of(const struct layer *l, const struct tensor *to,
                                     const struct tensor *from, bool back, bool accumulate)
{
    return (struct matmul_shape){.m = to->n * to->h * to->w,
                                 .n = to->c,
                                 .k = from->c,
                                 .turned = !back,
                                 .bias = !back && l->b.data,
                                 .accumulate = accumulate,
                                 .align = align_of(to->dev, to->data, from->data)};
}

/* x and y as the layer itself has them, also on its way back. */
static struct conv_shape conv_of(const struct layer *l, const struct tensor *x,
                                 const struct tensor *y, bool back, bool accumulate)
{
    bool apart = is_lopsided(l);
    return (struct conv_shape){.n = x->n,
                               .h = x->h + (apart ? l->pad[0] + l->pad[2] : 0),
                               .w = x->w + (apart ? l->pad[1] + l->pad[3] : 0),
                               .in = l->in,
                               .out = l->out,
                               .kh = l->kh,
                               .kw = l->kw,
                               .stride = l->stride,
                               .pad_h = apart ? 0 : l->pad[0],
                               .pad_w = apart ? 0 : l->pad[1],
                               .oh = y->h,
                               .ow = y->w,
                               .back = back,
                               .accumulate = accumulate && !(back && apart),
                               .bias = !back && l->b.data,
                               .align = align_of(x->dev, x->data, y->data)};
}

static void note_kind(struct cuda_weights *p, const char *kind)
{
    for (int i = 0; i < p->n_kind; i++)
        if (!strcmp(p->kind[i], kind))
            return;
    const char **more = realloc(p->kind, (size_t)(p->n_kind + 1) * sizeof *more);
    if (!more)
        return;
    p->kind = more;
    p->kind[p->n_kind++] = kind;
}

/* ---- there and back -------------------------------------------------------------------------- */

/* How a layer runs: as one or the other. */
struct way {
    struct cuda_weights *weights;
    const struct matmul *matmul;
    const struct conv *conv;
    size_t padded;
};

/* x and y may have no data. */
static int way_of(struct device *dev, const struct layer *l, const struct tensor *x,
                  const struct tensor *y, bool back, bool accumulate, struct way *way,
                  struct err *err)
{
    *way = (struct way){.padded = padded_bytes(l, x)};
    int rc = pack(dev, l, &way->weights, err);
    if (rc < 0)
        return rc;
    if (is_product(l)) {
        const struct matmul_shape s = matmul_of(l, back ? x : y, back ? y : x, back, accumulate);
        way->matmul = matmul_plan(dev, &s, err);
        note_kind(way->weights, "cublaslt");
    } else {
        const struct conv_shape s = conv_of(l, x, y, back, accumulate);
        way->conv = conv_plan(dev, &s, err);
        note_kind(way->weights, way->conv ? conv_kind(way->conv) : "");
    }
    if (!way->matmul && !way->conv)
        return err->code;
    size_t bytes =
        way->matmul ? matmul_workspace(way->matmul) : way->padded + conv_workspace(way->conv);
    return !bytes || cuda_scratch(dev, bytes) ? 0 : cuda_short(dev, bytes, err);
}

int cuda_layer_prepare(struct device *dev, const struct tensor *y, const struct layer *l,
                       const struct tensor *x, bool accumulate, struct err *err)
{
    struct err own = {.code = 0};
    struct way way;
    return way_of(dev, l, x, y, false, accumulate, &way, err ? err : &own);
}

int cuda_layer(struct device *dev, struct tensor *y, const struct layer *l, const struct tensor *x,
               bool accumulate, struct err *err)
{
    struct err own = {.code = 0};
    struct way way;
    err = err ? err : &own;
    int rc = way_of(dev, l, x, y, false, accumulate, &way, err);
    if (rc < 0)
        return rc;
    const struct cuda_weights *w = way.weights;
    if (way.matmul)
        return matmul_push(dev, way.matmul, y->data, x->data, w->w, w->b, err);
    const void *from = x->data;
    if (way.padded) {
        from = cuda_scratch(dev, way.padded);
        rc = cuda_pad(dev, (void *)from, x, l->pad, err);
    }
    if (rc == 0)
        rc = conv_push(dev, way.conv, y->data, from, w->w, w->b, way.padded, err);
    return rc < 0 || !w->b || conv_has_bias(way.conv) ? rc : cuda_bias(dev, y, w->b, err);
}

size_t cuda_layer_back_scratch(const struct layer *l, const struct tensor *dx,
                               const struct tensor *dy)
{
    (void)l, (void)dx, (void)dy;
    return 0;
}

int cuda_layer_back_prepare(struct device *dev, const struct tensor *dx, const struct layer *l,
                            const struct tensor *dy, bool add, struct err *err)
{
    struct err own = {.code = 0};
    struct way way;
    return way_of(dev, l, dx, dy, true, add, &way, err ? err : &own);
}

int cuda_layer_back(struct device *dev, struct tensor *dx, const struct layer *l,
                    const struct tensor *dy, bool add, void *scratch, struct err *err)
{
    struct err own = {.code = 0};
    struct way way;
    (void)scratch;
    err = err ? err : &own;
    int rc = way_of(dev, l, dx, dy, true, add, &way, err);
    if (rc < 0)
        return rc;
    const void *w = way.weights->w;
    if (way.matmul)
        return matmul_push(dev, way.matmul, dx->data, dy->data, w, NULL, err);
    void *to = way.padded ? cuda_scratch(dev, way.padded) : dx->data;
    rc = conv_push(dev, way.conv, to, dy->data, w, NULL, way.padded, err);
    return rc < 0 || !way.padded ? rc : cuda_unpad(dev, dx, to, l->pad, add, err);
}
