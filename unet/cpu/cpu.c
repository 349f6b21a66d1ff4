/* The CPU backend: oneDNN for layers (onednn.c), our own kernels for the rest (kernels.inc). This file
 * cuts tensors into pieces and spreads them over threads. */
#include "cpu.h"

#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

extern const struct backend backend_cpu;

static const struct kernels *kernels_for(enum isa want, enum isa *got)
{
#if defined(__x86_64__)
    __builtin_cpu_init();
    if ((want == ISA_BEST || want == ISA_AVX512) && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl")) {
        *got = ISA_AVX512;
        return &kernels_avx512;
    }
    if (want != ISA_PLAIN && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) {
        *got = ISA_AVX2;
        return &kernels_avx2;
    }
#else
    (void)want;
#endif
    *got = ISA_PLAIN;
    return &kernels_plain;
}

static void cpu_close(struct device *dev)
{
    struct cpu *c = dev->impl;
    if (!c)
        return;
    onednn_close(c->dnnl);
    free(c->scratch);
    free(c);
}

static int cpu_open(struct device *dev, const struct device_options *o, struct err *err)
{
    struct cpu *c = calloc(1, sizeof *c);
    if (!c)
        return err_nomem(err, sizeof *c);
    dev->value_size = sizeof(float);
    dev->impl = c;
    c->k = kernels_for(o->isa, &dev->isa);
    omp_set_num_threads(dev->threads);
    int rc = onednn_open(&c->dnnl, err);
    if (rc < 0)
        cpu_close(dev);
    return rc;
}

void *cpu_alloc(struct device *dev, size_t bytes)
{
    (void)dev;
    void *p = NULL;
    return posix_memalign(&p, 64, bytes ? bytes : 1) ? NULL : p;
}

void cpu_free(struct device *dev, void *p)
{
    (void)dev;
    free(p);
}

void *cpu_scratch(struct device *dev, size_t bytes)
{
    struct cpu *c = dev->impl;
    if (bytes > c->scratch_size) {
        free(c->scratch);
        c->scratch = cpu_alloc(dev, bytes);
        c->scratch_size = c->scratch ? bytes : 0;
    }
    return c->scratch;
}

static void cpu_store(struct device *dev, float *p, const float *host, size_t n)
{
    (void)dev;
    memcpy(p, host, n * sizeof *p);
}

static int cpu_upload(struct device *dev, struct tensor *t, const float *host, struct err *err)
{
    (void)dev, (void)err;
    memcpy(t->data, host, tensor_count(t) * sizeof *host);
    return 0;
}

static int cpu_download(struct device *dev, float *host, const struct tensor *t, struct err *err)
{
    (void)dev, (void)err;
    memcpy(host, t->data, tensor_count(t) * sizeof *host);
    return 0;
}

static int cpu_layer_op(struct device *dev, struct tensor *y, const struct layer *l,
                        const struct tensor *x, bool accumulate, struct err *err)
{
    /* The layer's packed form is a cache; the layer itself is not changed. */
    return onednn_layer(dev, y, (struct layer *)l, x, accumulate, err);
}

static int cpu_layer_prepare(struct device *dev, const struct tensor *y, const struct layer *l,
                             const struct tensor *x, bool accumulate, struct err *err)
{
    return onednn_layer_prepare(dev, y, (struct layer *)l, x, accumulate, err);
}

static int cpu_layer_back_prepare(struct device *dev, const struct tensor *dx,
                                  const struct layer *l, const struct tensor *dy, bool add,
                                  struct err *err)
{
    return onednn_layer_back_prepare(dev, dx, (struct layer *)l, dy, add, err);
}

static int cpu_layer_back(struct device *dev, struct tensor *dx, const struct layer *l,
                          const struct tensor *dy, bool add, void *scratch, struct err *err)
{
    return onednn_layer_back(dev, dx, (struct layer *)l, dy, add, scratch, err);
}

/* ---- norms ----------------------------------------------------------------------------------- */

/* Places a piece of group norm covers: about 64 KiB of x, and the same for every run. */
static size_t piece_rows(int c)
{
    size_t rows = 16384 / (size_t)c;
    return rows < 8 ? 8 : rows;
}

/* Merges the pieces' means and squared differences in order (Chan et al. 1979) and turns them, for
 * one row, into a scale and a shift a channel. */
static void group_finish(const struct norm *g, const double *mean, const double *m2, size_t pieces,
                         size_t rows, size_t hw, const float *add, float *scale, float *shift)
{
    int cg = g->c / g->groups;
    for (int k = 0; k < g->groups; k++) {
        double n = 0, m = 0, s = 0;
        for (size_t p = 0; p < pieces; p++) {
            size_t here = p + 1 < pieces ? rows : hw - p * rows;
            double np = (double)here * cg, d = mean[p * (size_t)g->groups + (size_t)k] - m;
            m += d * np / (n + np);
            s += m2[p * (size_t)g->groups + (size_t)k] + d * d * n * np / (n + np);
            n += np;
        }
        double rstd = 1 / sqrt(s / n + g->eps);
        for (int i = k * cg; i < (k + 1) * cg; i++) {
            double sc = rstd * g->gamma[i];
            scale[i] = (float)sc;
            shift[i] = (float)(g->beta[i] + ((add ? add[i] : 0) - m) * sc);
        }
    }
}

static int cpu_group_norm(struct device *dev, struct tensor *y, const struct norm *g,
                          const struct tensor *x, const struct tensor *add, enum act act,
                          struct err *err)
{
    const struct kernels *k = kernels_of(dev);
    size_t c = (size_t)x->c, hw = (size_t)x->h * (size_t)x->w, n = (size_t)x->n;
    size_t rows = piece_rows(x->c), pieces = (hw + rows - 1) / rows, groups = (size_t)g->groups;
    size_t stats = n * pieces * groups;
    size_t bytes =
        2 * stats * sizeof(double) + (2 * n * c + (size_t)dev->threads * 2 * c) * sizeof(float);
    double *mean = cpu_scratch(dev, bytes);
    if (!mean)
        return err_nomem(err, bytes);
    double *m2 = mean + stats;
    float *scale = (void *)(m2 + stats), *shift = scale + n * c, *tmp = shift + n * c;
    const float *px = x->data, *pa = add ? add->data : NULL;
    float *py = y->data;

#pragma omp parallel num_threads(dev->threads)
    {
        float *mine = tmp + (size_t)omp_get_thread_num() * 2 * c;
#pragma omp for schedule(static)
        for (size_t i = 0; i < n * pieces; i++) {
            size_t row = i / pieces, from = i % pieces * rows;
            size_t here = hw - from < rows ? hw - from : rows;
            k->group_stats(px + (row * hw + from) * c, pa ? pa + row * c : NULL, here, g->c,
                           g->groups, mean + i * groups, m2 + i * groups, mine);
        }
#pragma omp for schedule(static)
        for (size_t row = 0; row < n; row++)
            group_finish(g, mean + row * pieces * groups, m2 + row * pieces * groups, pieces, rows,
                         hw, pa ? pa + row * c : NULL, scale + row * c, shift + row * c);
#pragma omp for schedule(static)
        for (size_t i = 0; i < n * pieces; i++) {
            size_t row = i / pieces, from = i % pieces * rows;
            size_t here = hw - from < rows ? hw - from : rows;
            size_t at = (row * hw + from) * c;
            k->group_apply(py + at, px + at, here, c, scale + row * c, shift + row * c, act);
        }
    }
    return 0;
}

static int cpu_layer_norm(struct device *dev, struct tensor *y, const struct norm *g,
                          const struct tensor *x, struct err *err)
{
    (void)err;
    const struct kernels *k = kernels_of(dev);
    size_t c = (size_t)x->c, rows = tensor_count(x) / c, step = CHUNK / c + 1;
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t r = 0; r < rows; r += step)
        k->layer_norm((float *)y->data + r * c, (const float *)x->data + r * c,
                      rows - r < step ? rows - r : step, c, g->gamma, g->beta, g->eps);
    return 0;
}

/* ---- attention ------------------------------------------------------------------------------- */

/* The sizes of one call, in floats. */
struct plan {
    size_t heads, d, d_pad, lq, lk, lk_pad;
    size_t keys, values; /* packed, a head of a row */
    size_t work;         /* a thread */
    size_t tiles;        /* of queries, a head of a row */
};

static struct plan attention_plan(const struct device *dev, const struct tensor *q,
                                  const struct tensor *kt, const struct attention *a)
{
    const struct kernels *k = kernels_of(dev);
    size_t w = (size_t)k->width, panel = (size_t)k->key_panel;
    struct plan p = {.heads = (size_t)a->heads, .d = (size_t)(q->c / a->heads)};
    p.lq = (size_t)q->h * (size_t)q->w;
    p.lk = (size_t)kt->h * (size_t)kt->w;
    p.d_pad = (p.d + w - 1) / w * w;
    p.lk_pad = (p.lk + panel - 1) / panel * panel;
    p.keys = p.lk_pad * p.d;
    p.values = p.lk * p.d_pad;
    p.work = attention_work((int)p.d_pad);
    p.tiles = (p.lq + ATTENTION_QUERIES - 1) / ATTENTION_QUERIES;
    return p;
}

size_t attention_work(int d_pad)
{
    size_t row = 2 * (size_t)d_pad + ATTENTION_KEYS + 2;
    return (ATTENTION_QUERIES * row + 15) / 16 * 16;
}

static size_t cpu_attention_scratch(struct device *dev, const struct tensor *q,
                                    const struct tensor *k, const struct attention *a)
{
    struct plan p = attention_plan(dev, q, k, a);
    return ((size_t)q->n * p.heads * (p.keys + p.values) + (size_t)dev->threads * p.work) *
           sizeof(float);
}

static void attention_pack(const struct kernels *k, const struct plan *p, size_t row, size_t head,
                           size_t c, const float *key, const float *value, float *kp, float *vp)
{
    size_t at = row * p->lk * c + head * p->d;
    k->pack_keys(kp, key + at, c, (int)p->lk, (int)p->d);
    k->pack_values(vp, value + at, c, (int)p->lk, (int)p->d);
}

static int cpu_attention(struct device *dev, struct tensor *o, const struct tensor *q,
                         const struct tensor *kt, const struct tensor *vt,
                         const struct attention *a, void *scratch, struct err *err)
{
    (void)err;
    const struct kernels *k = kernels_of(dev);
    const struct plan p = attention_plan(dev, q, kt, a);
    size_t c = (size_t)q->c, pairs = (size_t)q->n * p.heads;
    float *keys = scratch, *values = keys + pairs * p.keys, *work = values + pairs * p.values;

#pragma omp parallel num_threads(dev->threads)
    {
        float *mine = work + (size_t)omp_get_thread_num() * p.work;
#pragma omp for schedule(static)
        for (size_t i = 0; i < pairs; i++)
            attention_pack(k, &p, i / p.heads, i % p.heads, c, kt->data, vt->data,
                           keys + i * p.keys, values + i * p.values);
#pragma omp for schedule(static)
        for (size_t i = 0; i < pairs * p.tiles; i++) {
            size_t pair = i / p.tiles, first = i % p.tiles * ATTENTION_QUERIES;
            size_t at = (pair / p.heads * p.lq + first) * c + pair % p.heads * p.d;
            size_t left = p.lq - first;
            struct attention_tile t = {
                .d = (int)p.d,
                .d_pad = (int)p.d_pad,
                .lk = (int)p.lk,
                .lk_pad = (int)p.lk_pad,
                .q = (const float *)q->data + at,
                .q_stride = c,
                .n_q = left < ATTENTION_QUERIES ? (int)left : ATTENTION_QUERIES,
                .first = (int)first,
                .causal = a->causal,
                .region = a->region,
                .kp = keys + pair * p.keys,
                .vp = values + pair * p.values,
                .o = (float *)o->data + at,
                .o_stride = c,
                .work = mine,
            };
            k->attention(&t);
        }
    }
    return 0;
}

/* ---- elementwise ----------------------------------------------------------------------------- */

static size_t chunk(size_t i, size_t n)
{
    return n - i < CHUNK ? n - i : CHUNK;
}

static int cpu_activate(struct device *dev, struct tensor *y, const struct tensor *x, enum act act,
                        struct err *err)
{
    (void)err;
    const struct kernels *k = kernels_of(dev);
    size_t n = tensor_count(x);
    float *py = y->data;
    const float *px = x->data;
    if (is_small(n)) {
        k->activate(py, px, n, act);
        return 0;
    }
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t i = 0; i < n; i += CHUNK)
        k->activate(py + i, px + i, chunk(i, n), act);
    return 0;
}

static int cpu_geglu(struct device *dev, struct tensor *y, const struct tensor *x, struct err *err)
{
    (void)err;
    const struct kernels *k = kernels_of(dev);
    size_t c = (size_t)y->c, rows = tensor_count(y) / c, step = CHUNK / c + 1;
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t r = 0; r < rows; r += step)
        k->geglu((float *)y->data + r * c, (const float *)x->data + r * 2 * c,
                 rows - r < step ? rows - r : step, c);
    return 0;
}

#define MAX_TERMS 16

static void lincomb_chunk(const struct kernels *k, struct tensor *y, int n, const float *f,
                          const struct tensor *const *x, float clamp, size_t i)
{
    const float *px[MAX_TERMS];
    for (int j = 0; j < n; j++)
        px[j] = (const float *)x[j]->data + i;
    k->lincomb((float *)y->data + i, chunk(i, tensor_count(y)), n, f, px, clamp);
}

static int cpu_lincomb(struct device *dev, struct tensor *y, int n, const double *coef,
                       const struct tensor *const *x, double clamp, struct err *err)
{
    const struct kernels *k = kernels_of(dev);
    size_t count = tensor_count(y);
    float f[MAX_TERMS];
    if (n < 1 || n > MAX_TERMS)
        return err_set(err, ERR_ARG, "a sum of %d tensors; 1 to %d can be had", n, MAX_TERMS);
    for (int i = 0; i < n; i++)
        f[i] = (float)coef[i];
    if (is_small(count)) {
        lincomb_chunk(k, y, n, f, x, (float)clamp, 0);
        return 0;
    }
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t i = 0; i < count; i += CHUNK)
        lincomb_chunk(k, y, n, f, x, (float)clamp, i);
    return 0;
}

static int cpu_affine(struct device *dev, struct tensor *y, const struct tensor *x, double a,
                      double b, struct err *err)
{
    (void)err;
    const struct kernels *k = kernels_of(dev);
    size_t n = tensor_count(x);
    float *py = y->data;
    const float *px = x->data;
    if (is_small(n)) {
        k->affine(py, px, n, (float)a, (float)b);
        return 0;
    }
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t i = 0; i < n; i += CHUNK)
        k->affine(py + i, px + i, chunk(i, n), (float)a, (float)b);
    return 0;
}

static void concat_row(float *y, const float *a, size_t ca, const float *b, size_t cb, size_t r)
{
    memcpy(y + r * (ca + cb), a + r * ca, ca * sizeof *y);
    memcpy(y + r * (ca + cb) + ca, b + r * cb, cb * sizeof *y);
}

static int cpu_concat(struct device *dev, struct tensor *y, const struct tensor *a,
                      const struct tensor *b, struct err *err)
{
    (void)err;
    size_t ca = (size_t)a->c, cb = (size_t)b->c, rows = tensor_count(a) / ca;
    if (is_small(rows * (ca + cb))) {
        for (size_t r = 0; r < rows; r++)
            concat_row(y->data, a->data, ca, b->data, cb, r);
        return 0;
    }
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t r = 0; r < rows; r++)
        concat_row(y->data, a->data, ca, b->data, cb, r);
    return 0;
}

static int cpu_upsample(struct device *dev, struct tensor *y, const struct tensor *x,
                        struct err *err)
{
    (void)err;
    float sh = (float)x->h / (float)y->h, sw = (float)x->w / (float)y->w;
    size_t c = (size_t)y->c;
#pragma omp parallel for collapse(2) schedule(static) num_threads(dev->threads)
    for (int n = 0; n < y->n; n++)
        for (int i = 0; i < y->h; i++) {
            const float *from = (const float *)x->data +
                                ((size_t)n * (size_t)x->h + (size_t)element_nearest(i, sh, x->h)) *
                                    (size_t)x->w * c;
            float *to =
                (float *)y->data + ((size_t)n * (size_t)y->h + (size_t)i) * (size_t)y->w * c;
            for (int j = 0; j < y->w; j++)
                memcpy(to + (size_t)j * c, from + (size_t)element_nearest(j, sw, x->w) * c,
                       c * sizeof *to);
        }
    return 0;
}

const struct backend backend_cpu = {
    .name = "cpu",
    .about = "oneDNN, and our own kernels for AVX-512, AVX2 and plain processors",
    .open = cpu_open,
    .close = cpu_close,
    .alloc = cpu_alloc,
    .free = cpu_free,
    .store = cpu_store,
    .upload = cpu_upload,
    .download = cpu_download,
    .layer_prepare = cpu_layer_prepare,
    .chains = onednn_chains,
    .layer_kind = onednn_layer_kind,
    .layer_bytes = onednn_layer_bytes,
    .layer_release = onednn_layer_release,
    .layer = cpu_layer_op,
    .group_norm = cpu_group_norm,
    .layer_norm = cpu_layer_norm,
    .attention_scratch = cpu_attention_scratch,
    .attention = cpu_attention,
    .activate = cpu_activate,
    .geglu = cpu_geglu,
    .lincomb = cpu_lincomb,
    .affine = cpu_affine,
    .gain = cpu_gain,
    .scale = cpu_scale,
    .route = cpu_route,
    .gate = cpu_gate,
    .concat = cpu_concat,
    .upsample = cpu_upsample,
    .layer_back_scratch = onednn_layer_back_scratch,
    .layer_back_prepare = cpu_layer_back_prepare,
    .layer_back = cpu_layer_back,
    .group_norm_back = cpu_group_norm_back,
    .layer_norm_back = cpu_layer_norm_back,
    .attention_back_scratch = cpu_attention_back_scratch,
    .attention_back = cpu_attention_back,
    .activate_back = cpu_activate_back,
    .geglu_back = cpu_geglu_back,
    .concat_back = cpu_concat_back,
    .upsample_back = cpu_upsample_back,
    .gate_back = cpu_gate_back,
};
