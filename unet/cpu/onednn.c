/* oneDNN: convolutions and matrix products. The only file that knows it.
 *
 * Activations stay channels-last; weights are reordered once into the layout oneDNN asks for. A
 * primitive is made for each shape a layer meets and kept with the layer. A linear layer is a matrix
 * product where that runs on brgemm, whose rows do not depend on how many there are; elsewhere
 * (AVX2) it is a 1 x 1 convolution, since the general product there adds up in an order that varies
 * with the number of rows. Both were checked bit for bit, and tests/test_backend.c holds them to it.
 * Convolutions that gain by it are Winograd's (winograd.h), whose products are a brgemm too.
 */
#include "onednn.h"
#include "winograd.h"

#include <dnnl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if DNNL_VERSION_MAJOR >= 3
typedef dnnl_memory_desc_t desc; /* an opaque pointer */
typedef const_dnnl_memory_desc_t const_desc;
#define DESC(d) (d)
#else
typedef dnnl_memory_desc_t desc; /* a struct */
typedef const dnnl_memory_desc_t *const_desc;
#define DESC(d) (&(d))
#endif

struct onednn {
    dnnl_engine_t engine;
    dnnl_stream_t stream;
};

/* A weight in one of oneDNN's layouts. Shapes of one layer nearly always agree on it. */
struct packed {
    struct packed *next;
    desc d;
    void *data;
};

/* What a primitive takes beside its weight, and for each thread but one, more or less: measured. */
enum { PRIMITIVE_BYTES = 4096, LANE_BYTES = 2560 };

/* What a thread that runs a primitive has of its own. */
struct lane {
    dnnl_stream_t stream;
    dnnl_memory_t src, dst, scratch;
};

/* The layer on one shape. */
struct primitive {
    struct primitive *next;
    int n, h, w;
    bool accumulate;
    bool lone; /* planned for one thread */
    dnnl_primitive_t p;
    dnnl_memory_t weight, bias;
    size_t scratch_size;
    struct winograd winograd; /* block not 0: p is its products */
    char name[48];            /* oneDNN's implementation, "brgconv:avx512_core" */
    int lanes;
    struct lane lane[]; /* one, or for Winograd one a thread */
};

static int failed(struct err *err, const struct layer *l, dnnl_status_t s, const char *what)
{
    return err_set(err, s == dnnl_out_of_memory ? ERR_NOMEM : ERR_UNSUPPORTED,
                   "%s: oneDNN could not %s (status %d)", l->name, what, (int)s);
}

int onednn_open(struct onednn **out, struct err *err)
{
    struct onednn *d = calloc(1, sizeof *d);
    if (!d)
        return err_nomem(err, sizeof *d);
    if (dnnl_engine_create(&d->engine, dnnl_cpu, 0) != dnnl_success ||
        dnnl_stream_create(&d->stream, d->engine, dnnl_stream_default_flags) != dnnl_success) {
        onednn_close(d);
        return err_set(err, ERR_UNSUPPORTED, "oneDNN finds no CPU engine");
    }
    *out = d;
    return 0;
}

void onednn_close(struct onednn *d)
{
    if (!d)
        return;
    if (d->stream)
        dnnl_stream_destroy(d->stream);
    if (d->engine)
        dnnl_engine_destroy(d->engine);
    free(d);
}

/* ---- the differences between oneDNN 2 and 3 -------------------------------------------------- */

static dnnl_status_t desc_tag(desc *d, int ndim, const dnnl_dims_t dims, dnnl_format_tag_t tag)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_create_with_tag(d, ndim, dims, dnnl_f32, tag);
#else
    return dnnl_memory_desc_init_by_tag(d, ndim, dims, dnnl_f32, tag);
#endif
}

static void desc_drop(desc *d)
{
#if DNNL_VERSION_MAJOR >= 3
    if (*d)
        dnnl_memory_desc_destroy(*d);
    *d = NULL;
#else
    (void)d;
#endif
}

static int desc_copy(desc *to, const_desc from)
{
#if DNNL_VERSION_MAJOR >= 3
    return dnnl_memory_desc_clone(to, from) == dnnl_success ? 0 : -1;
#else
    *to = *from;
    return 0;
#endif
}

/* What a layer runs as. */
enum way { WAY_CONV, WAY_MATMUL, WAY_WINOGRAD };

/* The shapes of one call. */
struct shape {
    desc src, weight, dst, bias;
    dnnl_dims_t stride, pad_l, pad_r;
    enum way way;
    int block; /* tiles at once, for WAY_WINOGRAD */
};

static dnnl_status_t operation(dnnl_primitive_desc_t *pd, const struct shape *s, bool has_bias,
                               dnnl_primitive_attr_t attr, dnnl_engine_t engine)
{
#if DNNL_VERSION_MAJOR >= 3
    const_desc bias = has_bias ? s->bias : NULL;
    dnnl_dims_t dilate = {0, 0};
    if (s->way != WAY_CONV)
        return dnnl_matmul_primitive_desc_create(pd, engine, s->src, s->weight, bias, s->dst, attr);
    return dnnl_convolution_forward_primitive_desc_create(
        pd, engine, dnnl_forward_inference, dnnl_convolution_direct, s->src, s->weight, bias,
        s->dst, s->stride, dilate, s->pad_l, s->pad_r, attr);
#else
    const_desc bias = has_bias ? &s->bias : NULL;
    dnnl_status_t rc;
    if (s->way != WAY_CONV) {
        dnnl_matmul_desc_t d;
        rc = dnnl_matmul_desc_init(&d, &s->src, &s->weight, bias, &s->dst);
        return rc == dnnl_success ? dnnl_primitive_desc_create(pd, &d, attr, engine, NULL) : rc;
    }
    dnnl_convolution_desc_t d;
    rc = dnnl_convolution_forward_desc_init(&d, dnnl_forward_inference, dnnl_convolution_direct,
                                            &s->src, &s->weight, bias, &s->dst, s->stride, s->pad_l,
                                            s->pad_r);
    return rc == dnnl_success ? dnnl_primitive_desc_create(pd, &d, attr, engine, NULL) : rc;
#endif
}

/* ---- shapes ---------------------------------------------------------------------------------- */

static void shape_drop(struct shape *s)
{
    desc_drop(&s->src);
    desc_drop(&s->weight);
    desc_drop(&s->dst);
    desc_drop(&s->bias);
}

static dnnl_status_t shape_matmul(struct shape *s, const struct layer *l, const struct tensor *x)
{
    dnnl_dim_t rows = (dnnl_dim_t)x->n * x->h * x->w;
    dnnl_dims_t src = {rows, l->in}, w = {l->in, l->out}, dst = {rows, l->out}, b = {1, l->out};
    dnnl_status_t rc = desc_tag(&s->src, 2, src, dnnl_ab);
    rc = rc == dnnl_success ? desc_tag(&s->weight, 2, w, dnnl_format_tag_any) : rc;
    rc = rc == dnnl_success ? desc_tag(&s->dst, 2, dst, dnnl_ab) : rc;
    s->way = WAY_MATMUL;
    return rc == dnnl_success ? desc_tag(&s->bias, 2, b, dnnl_ab) : rc;
}

static dnnl_status_t shape_conv(struct shape *s, const struct layer *l, const struct tensor *x,
                                const struct tensor *y)
{
    dnnl_dims_t src = {x->n, l->in, x->h, x->w}, w = {l->out, l->in, l->kh, l->kw};
    dnnl_dims_t dst = {y->n, l->out, y->h, y->w}, b = {l->out};
    dnnl_status_t rc = desc_tag(&s->src, 4, src, dnnl_nhwc);
    rc = rc == dnnl_success ? desc_tag(&s->weight, 4, w, dnnl_format_tag_any) : rc;
    rc = rc == dnnl_success ? desc_tag(&s->dst, 4, dst, dnnl_nhwc) : rc;
    for (int i = 0; i < 2; i++) {
        s->stride[i] = l->stride;
        s->pad_l[i] = l->pad[i];
        s->pad_r[i] = l->pad[i + 2];
    }
    s->way = WAY_CONV;
    return rc == dnnl_success ? desc_tag(&s->bias, 1, b, dnnl_a) : rc;
}

static dnnl_status_t shape_winograd(struct shape *s, const struct layer *l, int block)
{
    dnnl_dims_t src = {WINOGRAD_POINTS, block, l->in}, w = {WINOGRAD_POINTS, l->in, l->out};
    dnnl_dims_t dst = {WINOGRAD_POINTS, block, l->out};
    dnnl_status_t rc = desc_tag(&s->src, 3, src, dnnl_abc);
    rc = rc == dnnl_success ? desc_tag(&s->weight, 3, w, dnnl_format_tag_any) : rc;
    s->way = WAY_WINOGRAD;
    s->block = block;
    return rc == dnnl_success ? desc_tag(&s->dst, 3, dst, dnnl_abc) : rc;
}

/* Memory of oneDNN's own is never wanted: only handles to ours. */
static dnnl_status_t handle(dnnl_memory_t *m, const_desc d, const struct onednn *dn, void *p)
{
    return dnnl_memory_create(m, d, dn->engine, p);
}

/* ---- weights --------------------------------------------------------------------------------- */

/* The layer's weight in the order of the file, as an [in, out] matrix or [out, in, kh, kw]; or what
 * winograd_weight makes of it. */
static dnnl_status_t source_desc(desc *d, const struct layer *l, enum way way)
{
    dnnl_dims_t m = {l->in, l->out}, c = {l->out, l->in, l->kh, l->kw};
    dnnl_dims_t u = {WINOGRAD_POINTS, l->in, l->out};
    if (way == WAY_WINOGRAD)
        return desc_tag(d, 3, u, dnnl_abc);
    return way == WAY_MATMUL ? desc_tag(d, 2, m, dnnl_ba) : desc_tag(d, 4, c, dnnl_oihw);
}

static dnnl_status_t reorder(const struct onednn *dn, const_desc from, float *src, const_desc to,
                             void *dst)
{
    dnnl_primitive_desc_t pd = NULL;
    dnnl_primitive_t p = NULL;
    dnnl_memory_t a = NULL, b = NULL;
    dnnl_status_t rc =
        dnnl_reorder_primitive_desc_create(&pd, from, dn->engine, to, dn->engine, NULL);
    rc = rc == dnnl_success ? dnnl_primitive_create(&p, pd) : rc;
    rc = rc == dnnl_success ? handle(&a, from, dn, src) : rc;
    rc = rc == dnnl_success ? handle(&b, to, dn, dst) : rc;
    if (rc == dnnl_success) {
        dnnl_exec_arg_t args[] = {{DNNL_ARG_FROM, a}, {DNNL_ARG_TO, b}};
        rc = dnnl_primitive_execute(p, dn->stream, 2, args);
        rc = rc == dnnl_success ? dnnl_stream_wait(dn->stream) : rc;
    }
    if (a)
        dnnl_memory_destroy(a);
    if (b)
        dnnl_memory_destroy(b);
    if (p)
        dnnl_primitive_destroy(p);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    return rc;
}

/* from [out, in, kh, kw], a weight of the layer that l is the way back of, as l's: [in, out, kh, kw] upside down. */
static void turn_over(float *to, const float *from, const struct layer *l)
{
    size_t taps = (size_t)l->kh * (size_t)l->kw, in = (size_t)l->in, out = (size_t)l->out;
    for (size_t i = 0; i < in; i++)
        for (size_t o = 0; o < out; o++)
            for (size_t k = 0; k < taps; k++)
                to[(o * in + i) * taps + k] = from[(i * out + o) * taps + taps - 1 - k];
}

/* The layer's weight as floats, new. */
static int plain_weight(float **out, const struct layer *l, struct err *err)
{
    const struct cpu_layer *cl = l->impl;
    size_t n = array_count(&l->w);
    float *file = malloc(n * sizeof *file), *turned = cl->turned ? malloc(n * sizeof *file) : NULL;
    int rc = file && (turned || !cl->turned) ? array_to_finite(&l->w, file, l->name, err)
                                             : err_nomem(err, n * sizeof *file);
    if (rc == 0 && turned) {
        turn_over(turned, file, l);
        *out = turned;
        free(file);
        return 0;
    }
    free(turned);
    if (rc == 0)
        *out = file;
    else
        free(file);
    return rc;
}

/* The weight that source_desc describes, new. */
static int source_weight(float **out, const struct layer *l, enum way way, struct err *err)
{
    size_t n = WINOGRAD_POINTS * (size_t)l->in * (size_t)l->out;
    float *plain = NULL, *u = NULL;
    int rc = plain_weight(&plain, l, err);
    if (rc < 0 || way != WAY_WINOGRAD) {
        *out = plain;
        return rc;
    }
    u = malloc(n * sizeof *u);
    if (u)
        winograd_weight(u, plain, l->in, l->out);
    else
        rc = err_nomem(err, n * sizeof *u);
    free(plain);
    *out = u;
    return rc;
}

/* Converts, checks and reorders the layer's weight to `to`. */
static int pack(struct device *dev, const struct onednn *dn, struct layer *l, enum way way,
                const_desc to, struct packed **out, struct err *err)
{
    struct packed *k = calloc(1, sizeof *k);
    float *plain = NULL;
    desc from;
    int rc = k ? source_weight(&plain, l, way, err) : err_nomem(err, sizeof *k);

    memset(&from, 0, sizeof from);
    if (rc < 0)
        goto out;
    k->data = cpu_alloc(dev, dnnl_memory_desc_get_size(to));
    if (!k->data) {
        rc = err_nomem(err, dnnl_memory_desc_get_size(to));
        goto out;
    }
    dnnl_status_t s = source_desc(&from, l, way);
    s = s == dnnl_success ? reorder(dn, DESC(from), plain, to, k->data) : s;
    if (s != dnnl_success || desc_copy(&k->d, to) < 0) {
        rc = failed(err, l, s, "reorder the weight");
        goto out;
    }
    *out = k;
    k = NULL;
out:
    if (k)
        cpu_free(dev, k->data);
    free(k);
    free(plain);
    desc_drop(&from);
    return rc;
}

static int packed_for(struct device *dev, const struct onednn *dn, struct layer *l, enum way way,
                      const_desc want, struct packed **out, struct err *err)
{
    struct cpu_layer *cl = l->impl;
    for (struct packed *k = cl->packed; k; k = k->next)
        if (dnnl_memory_desc_equal(DESC(k->d), want)) {
            *out = k;
            return 0;
        }
    int rc = pack(dev, dn, l, way, want, out, err);
    if (rc < 0)
        return rc;
    (*out)->next = cl->packed;
    cl->packed = *out;
    return 0;
}

static int bias_for(struct device *dev, struct layer *l, struct err *err)
{
    struct cpu_layer *cl = l->impl;
    if (!l->b.data || cl->bias)
        return 0;
    float *b = cpu_alloc(dev, (size_t)l->out * sizeof *b);
    if (!b)
        return err_nomem(err, (size_t)l->out * sizeof *b);
    int rc = array_to_finite(&l->b, b, l->name, err);
    if (rc < 0) {
        cpu_free(dev, b);
        return rc;
    }
    cl->bias = b;
    return 0;
}

/* ---- primitives ------------------------------------------------------------------------------ */

static void memory_drop(dnnl_memory_t m)
{
    if (m)
        dnnl_memory_destroy(m);
}

static void primitive_free(struct primitive *p)
{
    for (int i = 0; i < p->lanes; i++) {
        memory_drop(p->lane[i].src);
        memory_drop(p->lane[i].dst);
        memory_drop(p->lane[i].scratch);
        if (p->lane[i].stream)
            dnnl_stream_destroy(p->lane[i].stream);
    }
    memory_drop(p->weight);
    memory_drop(p->bias);
    if (p->p)
        dnnl_primitive_destroy(p->p);
    free(p);
}

static dnnl_status_t attributes(dnnl_primitive_attr_t *attr, bool accumulate)
{
    dnnl_post_ops_t ops = NULL;
    dnnl_status_t rc = dnnl_primitive_attr_create(attr);
    rc = rc == dnnl_success
             ? dnnl_primitive_attr_set_scratchpad_mode(*attr, dnnl_scratchpad_mode_user)
             : rc;
    if (rc != dnnl_success || !accumulate)
        return rc;
    rc = dnnl_post_ops_create(&ops);
#if DNNL_VERSION_MAJOR >= 3
    rc = rc == dnnl_success ? dnnl_post_ops_append_sum(ops, 1, 0, dnnl_data_type_undef) : rc;
#else
    rc = rc == dnnl_success ? dnnl_post_ops_append_sum(ops, 1) : rc;
#endif
    rc = rc == dnnl_success ? dnnl_primitive_attr_set_post_ops(*attr, ops) : rc;
    if (ops)
        dnnl_post_ops_destroy(ops);
    return rc;
}

static const char *impl_name(dnnl_primitive_desc_t pd)
{
    const char *s = NULL;
    dnnl_primitive_desc_query(pd, dnnl_query_impl_info_str, 0, (void *)&s);
    return s ? s : "?";
}

/* oneDNN plans for as many threads as there are when it is asked, but each of Winograd's products is one
 * thread's. Sets how many, and returns how many there were. */
static int plan_for(int threads)
{
    int before = omp_get_max_threads();
    if (threads != before)
        omp_set_num_threads(threads);
    return before;
}

/* Winograd's way, where oneDNN has a brgemm for it: *pd stays NULL else. */
static dnnl_status_t choose_winograd(const struct onednn *dn, const struct layer *l, int block,
                                     struct shape *s, dnnl_primitive_desc_t *pd)
{
    dnnl_primitive_attr_t attr = NULL;
    dnnl_status_t rc = attributes(&attr, false);
    int before = plan_for(1);

    rc = rc == dnnl_success ? shape_winograd(s, l, block) : rc;
    rc = rc == dnnl_success ? operation(pd, s, false, attr, dn->engine) : rc;
    if (rc != dnnl_success || strncmp(impl_name(*pd), "brg", 3) != 0) {
        if (*pd)
            dnnl_primitive_desc_destroy(*pd);
        *pd = NULL;
        shape_drop(s);
        s->block = 0;
    }
    plan_for(before);
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    return rc;
}

/* What oneDNN offers for the layer on this shape: a matrix product where its rows are independent
 * of one another, else a convolution, Winograd's or its own. The number of rows has no say in it. */
static dnnl_status_t choose(const struct onednn *dn, const struct layer *l, const struct tensor *x,
                            const struct tensor *y, bool accumulate, struct shape *s,
                            dnnl_primitive_desc_t *pd)
{
    bool linear = l->kh * l->kw == 1 && l->stride == 1 && !l->pad[0] && !l->pad[1];
    int block = winograd_block(l, x);
    dnnl_primitive_attr_t attr = NULL;

    *pd = NULL;
    if (block && choose_winograd(dn, l, block, s, pd) == dnnl_success && *pd)
        return dnnl_success;
    dnnl_status_t rc = attributes(&attr, accumulate);
    if (rc == dnnl_success && linear) {
        rc = shape_matmul(s, l, x);
        rc = rc == dnnl_success ? operation(pd, s, l->b.data != NULL, attr, dn->engine) : rc;
        if (rc == dnnl_success && !strncmp(impl_name(*pd), "brg", 3))
            goto out;
        if (*pd)
            dnnl_primitive_desc_destroy(*pd);
        *pd = NULL;
        shape_drop(s);
    }
    rc = shape_conv(s, l, x, y);
    rc = rc == dnnl_success ? operation(pd, s, l->b.data != NULL, attr, dn->engine) : rc;
out:
    if (attr)
        dnnl_primitive_attr_destroy(attr);
    return rc;
}

static dnnl_status_t lane_fill(struct lane *a, const struct onednn *dn, const struct shape *s,
                               const_desc scratch)
{
    dnnl_status_t rc = dnnl_stream_create(&a->stream, dn->engine, dnnl_stream_default_flags);
    rc = rc == dnnl_success ? handle(&a->src, DESC(s->src), dn, NULL) : rc;
    rc = rc == dnnl_success ? handle(&a->dst, DESC(s->dst), dn, NULL) : rc;
    if (rc == dnnl_success && scratch)
        rc = handle(&a->scratch, scratch, dn, NULL);
    return rc;
}

static dnnl_status_t primitive_fill(struct primitive *p, const struct onednn *dn,
                                    dnnl_primitive_desc_t pd, const struct shape *s,
                                    struct packed *k, float *bias)
{
    const_desc scratch = dnnl_primitive_desc_query_md(pd, dnnl_query_scratchpad_md, 0);
    bool winograd = s->way == WAY_WINOGRAD;
    snprintf(p->name, sizeof p->name, "%s%s", winograd ? "winograd+" : "", impl_name(pd));
    p->scratch_size = scratch ? dnnl_memory_desc_get_size(scratch) : 0;
    int before = plan_for(winograd ? 1 : omp_get_max_threads());
    dnnl_status_t rc = dnnl_primitive_create(&p->p, pd);
    plan_for(before);
    rc = rc == dnnl_success ? handle(&p->weight, DESC(k->d), dn, k->data) : rc;
    if (rc == dnnl_success && bias && !winograd)
        rc = handle(&p->bias, DESC(s->bias), dn, bias);
    for (int i = 0; i < p->lanes && rc == dnnl_success; i++)
        rc = lane_fill(&p->lane[i], dn, s, p->scratch_size ? scratch : NULL);
    return rc;
}

/* Runs p on the calling thread's lane. */
static dnnl_status_t execute(struct primitive *p, int thread, void *src, void *dst, void *scratch)
{
    struct lane *a = &p->lane[thread];
    dnnl_exec_arg_t args[5] = {
        {DNNL_ARG_SRC, a->src}, {DNNL_ARG_WEIGHTS, p->weight}, {DNNL_ARG_DST, a->dst}};
    int n = 3;
    dnnl_memory_set_data_handle(a->src, src);
    dnnl_memory_set_data_handle(a->dst, dst);
    if (p->bias)
        args[n++] = (dnnl_exec_arg_t){DNNL_ARG_BIAS, p->bias};
    if (a->scratch) {
        dnnl_memory_set_data_handle(a->scratch, scratch);
        args[n++] = (dnnl_exec_arg_t){DNNL_ARG_SCRATCHPAD, a->scratch};
    }
    dnnl_status_t rc = dnnl_primitive_execute(p->p, a->stream, n, args);
    return rc == dnnl_success ? dnnl_stream_wait(a->stream) : rc;
}

/* Winograd's products of one block (winograd.h). */
static int product(void *user, int thread, float *v, float *m, void *room)
{
    dnnl_status_t rc = execute(user, thread, v, m, room);
    return rc == dnnl_success ? 0 : -(int)rc;
}

static struct winograd winograd_of(struct primitive *p, const struct layer *l, int block)
{
    return (struct winograd){.in = l->in,
                             .out = l->out,
                             .block = block,
                             .room = p->scratch_size,
                             .product = product,
                             .user = p};
}

static struct primitive *primitive_alloc(const struct tensor *x, bool accumulate, bool lone,
                                         int lanes)
{
    struct primitive *p = calloc(1, sizeof *p + (size_t)lanes * sizeof *p->lane);
    if (!p)
        return NULL;
    p->n = x->n;
    p->h = x->h;
    p->w = x->w;
    p->accumulate = accumulate;
    p->lone = lone;
    p->lanes = lanes;
    return p;
}

static int primitive_new(struct device *dev, const struct onednn *dn, struct layer *l,
                         const struct tensor *x, const struct tensor *y, bool accumulate, bool lone,
                         struct primitive **out, struct err *err)
{
    struct cpu_layer *cl = l->impl;
    struct primitive *p = NULL;
    dnnl_primitive_desc_t pd = NULL;
    struct packed *k = NULL;
    struct shape s;
    int rc = 0, before = plan_for(lone ? 1 : omp_get_max_threads());

    memset(&s, 0, sizeof s);
    dnnl_status_t st = choose(dn, l, x, y, accumulate, &s, &pd);
    if (st != dnnl_success) {
        rc = failed(err, l, st, "be asked for this shape");
        goto out;
    }
    p = primitive_alloc(x, accumulate, lone, s.way == WAY_WINOGRAD ? dev->threads : 1);
    if (!p) {
        rc = err_nomem(err, sizeof *p);
        goto out;
    }
    const_desc want = dnnl_primitive_desc_query_md(pd, dnnl_query_weights_md, 0);
    rc = packed_for(dev, dn, l, s.way, want, &k, err);
    rc = rc < 0 ? rc : bias_for(dev, l, err);
    if (rc < 0)
        goto out;
    st = primitive_fill(p, dn, pd, &s, k, cl->bias);
    if (st != dnnl_success) {
        rc = failed(err, l, st, "make the primitive");
        goto out;
    }
    p->winograd = winograd_of(p, l, s.block);
    p->next = cl->primitive;
    cl->primitive = *out = p;
    p = NULL;
out:
    plan_for(before);
    if (p)
        primitive_free(p);
    if (pd)
        dnnl_primitive_desc_destroy(pd);
    shape_drop(&s);
    return rc;
}

static int primitive_for(struct device *dev, const struct onednn *dn, struct layer *l,
                         const struct tensor *x, const struct tensor *y, bool accumulate, bool lone,
                         struct primitive **out, struct err *err)
{
    struct cpu_layer *cl = l->impl;
    if (!cl) {
        l->impl = cl = calloc(1, sizeof *cl);
        if (!cl)
            return err_nomem(err, sizeof *cl);
    }
    for (struct primitive *p = cl->primitive; p; p = p->next)
        if (p->n == x->n && p->h == x->h && p->w == x->w && p->accumulate == accumulate &&
            p->lone == lone) {
            *out = p;
            return 0;
        }
    return primitive_new(dev, dn, l, x, y, accumulate, lone, out, err);
}

/* What p wants of cpu_scratch. */
static size_t scratch_of(const struct device *dev, const struct primitive *p)
{
    return p->winograd.block ? winograd_scratch(dev, &p->winograd) : p->scratch_size;
}

int onednn_layer_prepare(struct device *dev, const struct tensor *y, struct layer *l,
                         const struct tensor *x, bool accumulate, struct err *err)
{
    const struct onednn *dn = ((struct cpu *)dev->impl)->dnnl;
    struct primitive *p = NULL;
    int rc = primitive_for(dev, dn, l, x, y, accumulate, false, &p, err);
    size_t bytes = rc == 0 ? scratch_of(dev, p) : 0;
    return bytes && !cpu_scratch(dev, bytes) ? err_nomem(err, bytes) : rc;
}

int onednn_layer(struct device *dev, struct tensor *y, struct layer *l, const struct tensor *x,
                 bool accumulate, struct err *err)
{
    const struct onednn *dn = ((struct cpu *)dev->impl)->dnnl;
    struct primitive *p = NULL;
    int rc = primitive_for(dev, dn, l, x, y, accumulate, false, &p, err);
    if (rc < 0)
        return rc;

    size_t bytes = scratch_of(dev, p);
    void *scratch = bytes ? cpu_scratch(dev, bytes) : NULL;
    if (bytes && !scratch)
        return err_nomem(err, bytes);
    const struct cpu_layer *cl = l->impl;
    dnnl_status_t st;
    if (p->winograd.block)
        st = (dnnl_status_t)-winograd_run(dev, &p->winograd, y, x, cl->bias, accumulate, scratch);
    else
        st = execute(p, 0, x->data, y->data, scratch);
    return st == dnnl_success ? 0 : failed(err, l, st, "run");
}

/* ---- chains ---------------------------------------------------------------------------------- */

/* A chain's two products, each one thread's. */
static int chain_primitives(struct device *dev, const struct chain *c, struct primitive *p[2],
                            struct err *err)
{
    const struct onednn *dn = ((struct cpu *)dev->impl)->dnnl;
    int rc = primitive_for(dev, dn, (struct layer *)c->down, &c->x, &c->t, false, true, &p[0], err);
    return rc < 0 ? rc
                  : primitive_for(dev, dn, (struct layer *)c->up, &c->t, &c->y, true, true, &p[1],
                                  err);
}

static dnnl_status_t run_chain(const struct device *dev, const struct chain *c,
                               struct primitive *const p[2], void *scratch)
{
    float *t = c->t.data;
    const float *from = t, s = (float)c->s;
    dnnl_status_t st = execute(p[0], 0, c->x.data, t, scratch);
    kernels_of(dev)->lincomb(t, tensor_count(&c->t), 1, &s, &from, 0);
    return st == dnnl_success ? execute(p[1], 0, t, c->y.data, scratch) : st;
}

int onednn_chains(struct device *dev, const struct chain *c, int n, bool prepare, struct err *err)
{
    struct primitive *p[CHAINS_MOST][2];
    size_t each = 0;
    int rc = 0, bad = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        rc = chain_primitives(dev, &c[i], p[i], err);
        for (int k = 0; k < 2 && rc == 0; k++)
            each = p[i][k]->scratch_size > each ? p[i][k]->scratch_size : each;
    }
    each = (each + 63) / 64 * 64;
    char *scratch = rc == 0 && each ? cpu_scratch(dev, each * (size_t)n) : NULL;
    if (rc == 0 && each && !scratch)
        rc = err_nomem(err, each * (size_t)n);
    if (rc < 0 || prepare)
        return rc;
#pragma omp parallel for schedule(dynamic) num_threads(dev->threads) reduction(max : bad)
    for (int i = 0; i < n; i++) {
        int st = (int)run_chain(dev, &c[i], p[i], each ? scratch + (size_t)i * each : NULL);
        bad = st > bad ? st : bad;
    }
    return bad ? failed(err, c->down, (dnnl_status_t)bad, "run") : 0;
}

/* ---- what a layer has ------------------------------------------------------------------------ */

const char *onednn_layer_kind(const struct layer *l, int i)
{
    const struct cpu_layer *cl = l->impl;
    const struct primitive *p = cl ? cl->primitive : NULL;
    for (; p && i > 0; i--)
        p = p->next;
    return p ? p->name : NULL;
}

size_t onednn_layer_bytes(const struct layer *l)
{
    const struct cpu_layer *cl = l->impl;
    size_t n = 0;
    for (const struct packed *k = cl ? cl->packed : NULL; k; k = k->next)
        n += dnnl_memory_desc_get_size(DESC(k->d));
    for (const struct primitive *p = cl ? cl->primitive : NULL; p; p = p->next)
        n += PRIMITIVE_BYTES + (size_t)(p->lanes - 1) * LANE_BYTES;
    return n;
}

void onednn_layer_release(struct device *dev, struct layer *l)
{
    struct cpu_layer *cl = l->impl;
    if (!cl)
        return;
    while (cl->primitive) {
        struct primitive *p = cl->primitive;
        cl->primitive = p->next;
        primitive_free(p);
    }
    while (cl->packed) {
        struct packed *k = cl->packed;
        cl->packed = k->next;
        desc_drop(&k->d);
        cpu_free(dev, k->data);
        free(k);
    }
    cpu_free(dev, cl->bias);
    if (cl->back)
        onednn_layer_release(dev, cl->back);
    free(cl->back);
    free(cl);
    l->impl = NULL;
}
