/* Every op of every backend against the same op in double, and the promises that pictures rest on:
 * the same bits for any number of threads and rows. */
#include "unet/ops.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Relative error that float32 arithmetic in any sensible order stays within. */
#define BOUND 2e-6

/* Seeds from one row of a tensor to the next. */
#define ROW_SEEDS 977

/* What one device makes of an op: inputs in, result out, both on the host. */
struct io {
    struct run r;
    float *y;
    size_t n;
};

typedef void op_fn(struct run *r, const void *arg, struct tensor *y);

/* Runs fn on the device and returns the host copy of its result. */
static struct io compute(struct device *dev, op_fn *fn, const void *arg)
{
    struct io io = {0};
    struct tensor y;
    struct err err;

    run_init(&io.r, dev);
    run_measure(&io.r);
    fn(&io.r, arg, &y);
    cr_assert_eq(run_commit(&io.r, &err), 0, "%s", err.msg);
    fn(&io.r, arg, &y);
    cr_assert_eq(run_check(&io.r, &err), 0, "%s", err.msg);
    io.n = tensor_count(&y);
    io.y = malloc(io.n * sizeof *io.y);
    dev->be->download(dev, io.y, &y, &err);
    return io;
}

static void drop(struct io *io)
{
    free(io->y);
    run_release(&io->r);
}

static struct tensor filled(struct run *r, int n, int h, int w, int c, unsigned seed)
{
    struct tensor t = run_tensor(r, n, h, w, c);
    size_t count = tensor_count(&t);
    float *f = malloc(count * sizeof *f);
    /* each row has its own values, whatever rows stand beside it */
    for (int i = 0; i < n; i++)
        test_fill(f + count / (size_t)n * (size_t)i, count / (size_t)n,
                  seed + (unsigned)i * ROW_SEEDS);
    op_upload(r, &t, f);
    free(f);
    return t;
}

/* Against ref64 on ref and on cpu with each instruction set; and cpu's bits with one thread. */
static void check(const char *what, op_fn *fn, const void *arg, double bound)
{
    static const struct {
        const char *backend;
        enum isa isa;
    } on[] = {{"ref", ISA_PLAIN}, {"cpu", ISA_PLAIN}, {"cpu", ISA_AVX2}, {"cpu", ISA_AVX512}};
    struct device *d64 = test_device("ref64");
    struct io want = compute(d64, fn, arg);

    for (size_t i = 0; i < sizeof on / sizeof *on; i++) {
        struct device *dev = test_device_isa(on[i].backend, on[i].isa, 2);
        if (dev->isa != on[i].isa) { /* the processor lacks it */
            device_close(dev);
            continue;
        }
        struct io got = compute(dev, fn, arg);
        double e = test_error(got.y, want.y, want.n);
        cr_expect_leq(e, bound, "%s on %s/%d: %.2e", what, on[i].backend, (int)on[i].isa, e);
        struct device *one = test_device_isa(on[i].backend, on[i].isa, 1);
        struct io alone = compute(one, fn, arg);
        cr_expect(!memcmp(got.y, alone.y, got.n * sizeof *got.y),
                  "%s on %s/%d: threads change bits", what, on[i].backend, (int)on[i].isa);
        drop(&got);
        drop(&alone);
        device_close(dev);
        device_close(one);
    }
    drop(&want);
    device_close(d64);
}

/* ---- layers ---------------------------------------------------------------------------------- */

struct layer_case {
    int n, h, w, in, out, k, stride;
    int pad[4];
    bool bias, accumulate;
    struct layer *l; /* set by the caller */
};

static void fill_layer(struct layer *l, const struct layer_case *c, float *w, float *b)
{
    size_t n = (size_t)c->out * (size_t)c->in * (size_t)c->k * (size_t)c->k;
    test_fill(w, n, 7);
    for (size_t i = 0; i < n; i++)
        w[i] /= sqrtf((float)(c->in * c->k * c->k));
    test_fill(b, (size_t)c->out, 8);
    *l = (struct layer){.name = "test",
                        .site = -1,
                        .out = c->out,
                        .in = c->in,
                        .kh = c->k,
                        .kw = c->k,
                        .stride = c->stride};
    memcpy(l->pad, c->pad, sizeof l->pad);
    l->w = (struct array){.dtype = DT_F32, .ndim = 4, .data = w};
    l->w.dim[0] = (uint64_t)c->out;
    l->w.dim[1] = (uint64_t)c->in;
    l->w.dim[2] = l->w.dim[3] = (uint64_t)c->k;
    if (c->bias) {
        l->b = (struct array){.dtype = DT_F32, .ndim = 1, .data = b};
        l->b.dim[0] = (uint64_t)c->out;
    }
}

/* The rows from `first` on. */
static void run_layer_from(struct run *r, const struct layer_case *c, unsigned first,
                           struct tensor *y)
{
    struct tensor x = filled(r, c->n, c->h, c->w, c->in, 3 + first * ROW_SEEDS);
    *y = run_layer_tensor(r, c->l, &x);
    if (c->accumulate) {
        struct tensor old = filled(r, y->n, y->h, y->w, y->c, 4 + first * ROW_SEEDS);
        op_copy(r, y, &old);
    }
    op_layer(r, y, c->l, &x, c->accumulate);
}

static void run_layer(struct run *r, const void *arg, struct tensor *y)
{
    run_layer_from(r, arg, 0, y);
}

static const struct layer_case layer_cases[] = {
    {1, 1, 1, 32, 128, 1, 1, {0}, true, false, NULL},  /* time embedding */
    {2, 77, 1, 40, 24, 1, 1, {0}, false, false, NULL}, /* text keys */
    {2, 9, 11, 20, 33, 1, 1, {0}, true, true, NULL},   /* odd everything */
    {3, 16, 16, 96, 96, 1, 1, {0}, true, true, NULL},
    {1, 8, 8, 64, 4, 1, 1, {0}, false, false, NULL}, /* to a low rank */
    {1, 8, 8, 4, 64, 1, 1, {0}, false, true, NULL},  /* and back */
    {2, 16, 16, 32, 48, 3, 1, {1, 1, 1, 1}, true, false, NULL},
    {1, 9, 11, 5, 7, 3, 1, {1, 1, 1, 1}, true, true, NULL},
    {2, 12, 10, 16, 16, 3, 2, {1, 1, 1, 1}, true, false, NULL},
    {1, 9, 7, 16, 16, 3, 2, {1, 1, 1, 1}, true, false, NULL},
    {1, 12, 12, 8, 8, 3, 2, {0, 0, 1, 1}, true, false, NULL}, /* the encoder's lopsided padding */
    {1, 32, 32, 4, 32, 3, 1, {1, 1, 1, 1}, true, false, NULL},
    {1, 32, 32, 32, 3, 3, 1, {1, 1, 1, 1}, true, false, NULL},
    {1, 32, 32, 320, 320, 3, 1, {1, 1, 1, 1}, true, true, NULL},
    {1, 32, 32, 320, 1280, 1, 1, {0}, true, false, NULL},
};

Test(backend, layers)
{
    for (size_t i = 0; i < sizeof layer_cases / sizeof *layer_cases; i++) {
        struct layer_case c = layer_cases[i];
        struct layer l;
        char what[80];
        float *w = malloc((size_t)c.out * (size_t)c.in * (size_t)(c.k * c.k) * sizeof *w);
        float *b = malloc((size_t)c.out * sizeof *b);
        fill_layer(&l, &c, w, b);
        c.l = &l;
        snprintf(what, sizeof what, "layer %zu (%dx%d %d->%d k%d s%d)", i, c.h, c.w, c.in, c.out,
                 c.k, c.stride);
        /* the packed form belongs to a device: check() opens many, so each gets a fresh layer */
        struct device *d64 = test_device("ref64");
        struct io want = compute(d64, run_layer, &c);
        layer_release(d64, &l);
        for (int isa = ISA_PLAIN; isa <= ISA_AVX512; isa++)
            for (int threads = 1; threads <= 2; threads++) {
                struct device *dev =
                    test_device_isa(isa == ISA_PLAIN ? "ref" : "cpu", (enum isa)isa, threads);
                struct io got = compute(dev, run_layer, &c);
                double e = test_error(got.y, want.y, want.n);
                cr_expect_leq(e, BOUND, "%s on %s: %.2e", what, dev->be->name, e);
                layer_release(dev, &l);
                drop(&got);
                device_close(dev);
            }
        drop(&want);
        device_close(d64);
        free(w);
        free(b);
    }
}

/* A row's result is the same bits alone, in a batch of two and of five, with one to four threads. */
Test(backend, layer_rows_do_not_depend_on_their_neighbours)
{
    for (size_t i = 0; i < sizeof layer_cases / sizeof *layer_cases; i++) {
        struct layer_case c = layer_cases[i];
        struct layer l;
        float *w = malloc((size_t)c.out * (size_t)c.in * (size_t)(c.k * c.k) * sizeof *w);
        float *b = malloc((size_t)c.out * sizeof *b), *first = NULL;
        size_t row = 0;
        fill_layer(&l, &c, w, b);
        c.l = &l;
        for (int k = 0; k < 6; k++) {
            static const int rows[] = {1, 2, 5, 1, 2, 5}, threads[] = {2, 2, 2, 1, 3, 4};
            struct device *dev = test_device_isa("cpu", ISA_BEST, threads[k]);
            c.n = rows[k];
            struct io got = compute(dev, run_layer, &c);
            if (!first) {
                row = got.n;
                first = malloc(row * sizeof *first);
                memcpy(first, got.y, row * sizeof *first);
            }
            cr_expect(!memcmp(first, got.y, row * sizeof *first),
                      "layer %zu: row 0 of %d differs from row 0 alone", i, rows[k]);
            layer_release(dev, &l);
            drop(&got);
            device_close(dev);
        }
        free(first);
        free(w);
        free(b);
    }
}

/* ---- Winograd ----------------------------------------------------------------------------- */

static const struct layer_case winograd_cases[] = {
    {1, 8, 8, 160, 160, 3, 1, {1, 1, 1, 1}, true, false, NULL},
    {3, 16, 16, 96, 96, 3, 1, {1, 1, 1, 1}, true, true, NULL},
    {2, 32, 32, 32, 32, 3, 1, {1, 1, 1, 1}, true, false, NULL},
    {1, 10, 14, 48, 80, 3, 1, {1, 1, 1, 1}, false, false, NULL}, /* the last block not full */
    {3, 4, 18, 32, 112, 3, 1, {1, 1, 1, 1}, false, true, NULL},  /* blocks of two rows */
    {1, 64, 4, 128, 32, 3, 1, {1, 1, 1, 1}, true, true, NULL},
    {1, 16, 16, 320, 320, 3, 1, {1, 1, 1, 1}, true, false, NULL},
};

/* Layers that must not be: odd, too narrow, too few tiles, too many weights, not padded all around. */
static const struct layer_case direct_cases[] = {
    {1, 9, 16, 96, 96, 3, 1, {1, 1, 1, 1}, true, false, NULL},
    {1, 16, 16, 96, 24, 3, 1, {1, 1, 1, 1}, true, false, NULL},
    {8, 4, 4, 96, 96, 3, 1, {1, 1, 1, 1}, true, false, NULL},
    {1, 16, 16, 512, 512, 3, 1, {1, 1, 1, 1}, true, false, NULL},
    {1, 16, 16, 96, 96, 3, 1, {0, 0, 1, 1}, true, false, NULL},
    {1, 16, 16, 96, 96, 3, 2, {1, 1, 1, 1}, true, false, NULL},
};

/* The case's layer, which its owner releases with drop_layer. */
static void make_layer(struct layer *l, struct layer_case *c)
{
    float *w = malloc((size_t)c->out * (size_t)c->in * (size_t)(c->k * c->k) * sizeof *w);
    float *b = malloc((size_t)c->out * sizeof *b);
    fill_layer(l, c, w, b);
    if (!c->bias)
        free(b);
    c->l = l;
}

static void drop_layer(struct layer *l)
{
    free((void *)l->w.data);
    free((void *)l->b.data);
}

/* Whether oneDNN has the products that Winograd wants; WEFT_TEST_ISA limits only our own kernels. */
static bool has_brgemm(void)
{
    __builtin_cpu_init();
    return __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx512dq") && !getenv("ONEDNN_MAX_CPU_ISA");
}

static void check_winograd(struct layer_case c, enum isa isa, int threads, bool is,
                           const struct io *want)
{
    struct device *dev = test_device_isa("cpu", isa, threads);
    struct layer l;
    make_layer(&l, &c);
    struct io got = compute(dev, run_layer, &c);
    const char *kind = dev->be->layer_kind(&l, 0);
    double e = test_error(got.y, want->y, want->n);
    cr_expect_leq(e, BOUND, "%dx%d %d -> %d: %.2e", c.h, c.w, c.in, c.out, e);
    if (has_brgemm())
        cr_expect_eq(!strncmp(kind, "winograd", 8), is, "%dx%d %d -> %d runs on %s", c.h, c.w, c.in,
                     c.out, kind);
    layer_release(dev, &l);
    drop_layer(&l);
    drop(&got);
    device_close(dev);
}

/* Close to double on all instruction sets, and taken where it should be. */
static void check_against_ref(const struct layer_case *at, bool is)
{
    struct device *d64 = test_device("ref64");
    struct layer_case c = *at;
    struct layer l;
    make_layer(&l, &c);
    struct io want = compute(d64, run_layer, &c);
    for (int isa = ISA_PLAIN; isa <= ISA_AVX512; isa++)
        check_winograd(c, (enum isa)isa, 1 + isa % 2, is, &want);
    layer_release(d64, &l);
    drop_layer(&l);
    drop(&want);
    device_close(d64);
}

Test(backend, winograd)
{
    for (size_t i = 0; i < sizeof winograd_cases / sizeof *winograd_cases; i++)
        check_against_ref(&winograd_cases[i], true);
    for (size_t i = 0; i < sizeof direct_cases / sizeof *direct_cases; i++)
        check_against_ref(&direct_cases[i], false);
}

struct some_rows {
    struct layer_case c;
    unsigned first;
};

static void run_some_rows(struct run *r, const void *arg, struct tensor *y)
{
    const struct some_rows *s = arg;
    run_layer_from(r, &s->c, s->first, y);
}

static struct io some_rows(const struct layer_case *c, enum isa isa, int threads, int n,
                           unsigned first)
{
    struct device *dev = test_device_isa("cpu", isa, threads);
    struct some_rows s = {*c, first};
    struct layer l;
    s.c.n = n;
    make_layer(&l, &s.c);
    struct io io = compute(dev, run_some_rows, &s);
    layer_release(dev, &l);
    drop_layer(&l);
    return io;
}

/* With the device it ran on. */
static void drop_rows(struct io *io)
{
    struct device *dev = io->r.dev;
    drop(io);
    device_close(dev);
}

/* Each of eight rows that go together has the bits it has alone, with any number of threads and, as sums
 * are all that our kernels do here, any instruction set. */
Test(backend, winograd_has_the_same_bits_in_company)
{
    for (size_t i = 0; i < sizeof winograd_cases / sizeof *winograd_cases; i++) {
        const struct layer_case *c = &winograd_cases[i];
        struct io all = some_rows(c, ISA_BEST, 2, 8, 0);
        size_t row = all.n / 8;
        for (unsigned k = 0; k < 8; k++) {
            struct io one = some_rows(c, k == 3 ? ISA_PLAIN : ISA_BEST, 1 + (int)(k % 3), 1, k);
            cr_expect(!memcmp(all.y + k * row, one.y, row * sizeof *one.y),
                      "%dx%d %d -> %d: row %u of eight differs from it alone", c->h, c->w, c->in,
                      c->out, k);
            drop_rows(&one);
        }
        for (int n = 2; n < 8; n++) {
            struct io few = some_rows(c, ISA_BEST, 3, n, 0);
            cr_expect(!memcmp(all.y, few.y, few.n * sizeof *few.y), "%d rows of eight differ", n);
            drop_rows(&few);
        }
        drop_rows(&all);
    }
}

/* ---- what oneDNN chose ----------------------------------------------------------------------- */

/* Runs one layer shape and says which implementation oneDNN took. */
static void expect_fast(const struct layer_case *shape)
{
    struct device *dev = test_device("cpu");
    struct layer_case c = *shape;
    struct layer l;
    float *w = malloc((size_t)c.out * (size_t)c.in * (size_t)(c.k * c.k) * sizeof *w);
    float *b = malloc((size_t)c.out * sizeof *b);
    fill_layer(&l, &c, w, b);
    c.l = &l;
    struct io got = compute(dev, run_layer, &c);
    const char *kind = dev->be->layer_kind(&l, 0);
    cr_assert(kind && !dev->be->layer_kind(&l, 1));
    printf("%dx%d %d -> %d k%d s%d%s: %s\n", c.h, c.w, c.in, c.out, c.k, c.stride,
           c.accumulate ? " +=" : "", kind);
    cr_expect(!strstr(kind, "ref") && !strstr(kind, "gemm:"), "%dx%d %d -> %d k%d runs on %s", c.h,
              c.w, c.in, c.out, c.k, kind);
    layer_release(dev, &l);
    drop(&got);
    free(w);
    free(b);
    device_close(dev);
}

/* No convolution or product that our models make may fall to oneDNN's reference or im2col path. The
 * list is every kind of layer of SD 1.5, of its autoencoder and of the demo model, at its own shape or,
 * where that would take long, at fewer places. */
Test(backend, onednn_takes_no_slow_path)
{
    static const struct layer_case shapes[] = {
        /* in and out */
        {2, 64, 64, 4, 320, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {2, 64, 64, 320, 4, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {2, 32, 32, 4, 32, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {2, 32, 32, 32, 4, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        /* resnets, alone and onto a shortcut; odd sizes */
        {2, 64, 64, 320, 320, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {2, 64, 64, 320, 320, 3, 1, {1, 1, 1, 1}, true, true, NULL},
        {1, 32, 32, 960, 640, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {2, 16, 16, 1280, 1280, 3, 1, {1, 1, 1, 1}, true, true, NULL},
        {2, 8, 8, 2560, 1280, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {2, 9, 11, 320, 320, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {2, 16, 16, 96, 96, 3, 1, {1, 1, 1, 1}, true, true, NULL},
        {2, 8, 8, 256, 160, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {1, 128, 128, 16, 16, 3, 1, {1, 1, 1, 1}, true, true, NULL},
        /* downsampling, both paddings */
        {2, 64, 64, 320, 320, 3, 2, {1, 1, 1, 1}, true, false, NULL},
        {2, 9, 11, 320, 320, 3, 2, {1, 1, 1, 1}, true, false, NULL},
        {1, 64, 64, 128, 128, 3, 2, {0, 0, 1, 1}, true, false, NULL},
        /* the autoencoder */
        {1, 64, 64, 4, 512, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {1, 128, 128, 128, 128, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {1, 128, 128, 128, 3, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        {1, 64, 64, 3, 128, 3, 1, {1, 1, 1, 1}, true, false, NULL},
        /* linear, and 1x1 convolutions */
        {2, 64, 64, 320, 320, 1, 1, {0}, true, true, NULL},
        {2, 77, 1, 768, 320, 1, 1, {0}, false, false, NULL},
        {2, 64, 64, 320, 2560, 1, 1, {0}, true, false, NULL},
        {2, 1, 1, 320, 1280, 1, 1, {0}, true, false, NULL},
        {2, 32, 32, 960, 640, 1, 1, {0}, true, false, NULL},
        {1, 9, 11, 8, 8, 1, 1, {0}, true, false, NULL},
        /* low-rank factors */
        {2, 64, 64, 320, 16, 1, 1, {0}, false, false, NULL},
        {2, 64, 64, 16, 320, 1, 1, {0}, false, true, NULL},
        {2, 16, 16, 96, 4, 1, 1, {0}, false, false, NULL},
        {2, 16, 16, 4, 96, 1, 1, {0}, false, true, NULL},
        {2, 32, 32, 320, 4, 3, 1, {1, 1, 1, 1}, false, false, NULL},
    };
    struct device *dev = test_device_isa("cpu", ISA_BEST, 1);
    bool wide = dev->isa == ISA_AVX512 && !getenv("ONEDNN_MAX_CPU_ISA");
    device_close(dev);
    if (!wide)
        cr_skip_test("only where oneDNN may use AVX-512");
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        expect_fast(&shapes[i]);
}

/* ---- norms ----------------------------------------------------------------------------------- */

struct norm_case {
    int n, h, w, c, groups;
    bool add;
    enum act act;
    float offset; /* a mean far from zero is where a careless variance fails */
};

static void run_norm(struct run *r, const void *arg, struct tensor *y)
{
    const struct norm_case *c = arg;
    float gamma[512], beta[512];
    struct array g = {.dtype = DT_F32, .ndim = 1, .dim = {(uint64_t)c->c}, .data = gamma};
    struct array b = {.dtype = DT_F32, .ndim = 1, .dim = {(uint64_t)c->c}, .data = beta};
    struct norm norm;
    struct err err;
    struct tensor x = filled(r, c->n, c->h, c->w, c->c, 5), add;

    test_fill(gamma, (size_t)c->c, 11);
    test_fill(beta, (size_t)c->c, 12);
    cr_assert_eq(norm_init(r->dev, &norm, "norm", c->groups, 1e-5f, &g, &b, &err), 0);
    op_affine(r, &x, &x, 1, c->offset);
    *y = run_like(r, &x);
    if (c->add)
        add = filled(r, c->n, 1, 1, c->c, 6);
    if (c->groups)
        op_group_norm(r, y, &norm, &x, c->add ? &add : NULL, c->act);
    else
        op_layer_norm(r, y, &norm, &x);
    norm_release(r->dev, &norm);
}

Test(backend, norms)
{
    static const struct norm_case cases[] = {
        {2, 16, 16, 32, 16, false, ACT_SILU, 0}, {1, 9, 11, 96, 16, true, ACT_SILU, 0},
        {2, 8, 8, 320, 32, true, ACT_NONE, 3},   {1, 1, 1, 32, 8, false, ACT_SILU, 0},
        {1, 64, 64, 16, 8, false, ACT_GELU, 30}, {3, 5, 7, 20, 5, true, ACT_SILU, -30},
        {2, 77, 1, 96, 0, false, ACT_NONE, 0},   {1, 9, 11, 33, 0, false, ACT_NONE, 5},
        {5, 3, 1, 512, 0, false, ACT_NONE, -30}, {1, 4, 4, 5, 0, false, ACT_NONE, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char what[60];
        snprintf(what, sizeof what, "norm %zu (%d channels, %d groups)", i, cases[i].c,
                 cases[i].groups);
        /* the input itself, with an offset of 30, is only good to 30 * 2^-24 */
        check(what, run_norm, &cases[i], fabsf(cases[i].offset) > 1 ? 1e-5 : BOUND);
    }
}

/* ---- attention ------------------------------------------------------------------------------- */

struct attention_case {
    int n, hq, wq, lk, c, heads;
    bool causal;
    float sharp; /* scale of the queries: large makes the softmax nearly one key */
};

static void run_attention(struct run *r, const void *arg, struct tensor *y)
{
    const struct attention_case *c = arg;
    struct attention a = {.heads = c->heads, .causal = c->causal};
    struct tensor q = filled(r, c->n, c->hq, c->wq, c->c, 21);
    struct tensor k = filled(r, c->n, c->lk, 1, c->c, 22), v = filled(r, c->n, c->lk, 1, c->c, 23);
    op_affine(r, &q, &q, c->sharp, 0);
    *y = run_like(r, &q);
    op_attention(r, y, &q, &k, &v, &a);
}

Test(backend, attention)
{
    static const struct attention_case cases[] = {
        {2, 16, 16, 256, 96, 3, false, 1},  {1, 8, 8, 32, 160, 5, false, 1},
        {2, 77, 1, 77, 96, 2, true, 1},     {1, 130, 1, 130, 40, 1, true, 8},
        {1, 500, 1, 500, 16, 2, true, 3},   {1, 9, 11, 1, 40, 2, false, 1},
        {1, 20, 20, 1000, 80, 2, false, 1}, {1, 7, 9, 385, 64, 1, false, 20},
        {1, 6, 6, 90, 512, 1, false, 1},    {2, 1, 1, 3, 3, 1, false, 1},
        {1, 5, 5, 49, 35, 7, false, 1},     {1, 5, 5, 49, 20, 1, false, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char what[80];
        snprintf(what, sizeof what, "attention %zu (%d x %d, %d wide, %d heads)", i,
                 cases[i].hq * cases[i].wq, cases[i].lk, cases[i].c, cases[i].heads);
        check(what, run_attention, &cases[i], 4e-6);
    }
}

/* One NaN makes its own row NaN, on every device, and no other row anything else: damaged weights must not
 * end as a picture. */
static void run_attention_nan(struct run *r, const void *arg, struct tensor *y)
{
    struct attention a = {.heads = 2};
    struct tensor q = filled(r, 1, 5, 9, 32, 21), k = filled(r, 1, 70, 1, 32, 22);
    float *f = malloc(45 * 32 * sizeof *f);
    test_fill(f, 45 * 32, 21);
    f[*(const int *)arg * 32 + 20] = NAN;
    op_upload(r, &q, f);
    free(f);
    *y = run_like(r, &q);
    op_attention(r, y, &q, &k, &k, &a);
}

Test(backend, attention_keeps_nan)
{
    static const struct {
        const char *backend;
        enum isa isa;
    } on[] = {{"ref", ISA_PLAIN}, {"cpu", ISA_PLAIN}, {"cpu", ISA_AVX2}, {"cpu", ISA_AVX512}};
    for (size_t i = 0; i < sizeof on / sizeof *on; i++)
        for (int row = 0; row < 45; row += 11) {
            struct device *dev = test_device_isa(on[i].backend, on[i].isa, 2);
            struct io io = compute(dev, run_attention_nan, &row);
            for (int j = 0; j < 45 * 32; j++)
                cr_assert_eq(isnan(io.y[j]) != 0, j / 32 == row && j % 32 >= 16,
                             "%s/%d: row %d, value %d is %g", on[i].backend, (int)on[i].isa, row, j,
                             (double)io.y[j]);
            drop(&io);
            device_close(dev);
        }
}

/* ---- the rest -------------------------------------------------------------------------------- */

struct shape {
    int n, h, w, c, what;
};

static void run_act(struct run *r, const void *arg, struct tensor *y)
{
    const struct shape *s = arg;
    struct tensor x = filled(r, s->n, s->h, s->w, s->c, 31);
    op_affine(r, &x, &x, 4, 0); /* far into both tails */
    *y = run_like(r, &x);
    op_activate(r, y, &x, (enum act)s->what);
}

static void run_geglu(struct run *r, const void *arg, struct tensor *y)
{
    const struct shape *s = arg;
    struct tensor x = filled(r, s->n, s->h, s->w, 2 * s->c, 32);
    *y = run_tensor(r, s->n, s->h, s->w, s->c);
    op_geglu(r, y, &x);
}

static void run_lincomb(struct run *r, const void *arg, struct tensor *y)
{
    static const double coef[] = {0.3, -1.7, 2.5, 0.01};
    const struct shape *s = arg;
    struct tensor x[4];
    const struct tensor *p[4];
    for (int i = 0; i < 4; i++) {
        x[i] = filled(r, s->n, s->h, s->w, s->c, 40 + (unsigned)i);
        p[i] = &x[i];
    }
    *y = x[1]; /* the result may lie on an input */
    op_lincomb(r, y, 4, coef, p, s->what ? 1.5 : 0);
}

static void run_affine(struct run *r, const void *arg, struct tensor *y)
{
    const struct shape *s = arg;
    *y = filled(r, s->n, s->h, s->w, s->c, 35);
    op_affine(r, y, y, -0.7, 0.3);
}

static void run_scale(struct run *r, const void *arg, struct tensor *y)
{
    const struct shape *s = arg;
    size_t places = (size_t)s->h * (size_t)s->w;
    float *m = malloc(2 * places * sizeof *m);
    struct share part[] = {{1, -.7f, NULL, false, 0, 0},
                           {4, .01f, s->what ? m : NULL, false, 0, 0},
                           {6, 3, s->what ? m + places : NULL, true, .4f, -2},
                           {2, 1, m, false, 0, 0}};
    test_fill(m, 2 * places, 38);
    *y = filled(r, s->n, s->h, s->w, 13, 37);
    op_scale(r, y, 4, part);
    free(m);
}

static void run_route(struct run *r, const void *arg, struct tensor *y)
{
    const struct shape *s = arg;
    const struct route how = {.2f, s->what ? 1 : .4f, s->what ? .1f : 0};
    *y = filled(r, s->n, s->h, s->w, s->c, 39);
    op_route(r, y, &how);
}

/* Three adapters: a product, one that is given, a product; onto h or beside it. */
static void run_gate(struct run *r, const void *arg, struct tensor *y)
{
    static const int width[] = {4, 0, 3};
    const struct shape *s = arg;
    size_t c = (size_t)s->c, places = (size_t)s->h * (size_t)s->w;
    float *gate = malloc(GATE_ROWS * c * sizeof *gate), *up = malloc(7 * c * sizeof *up),
          wave[3 * GATE_WAVES];
    struct tensor t = filled(r, s->n, s->h, s->w, 7, 71), u = filled(r, s->n, s->h, s->w, s->c, 72),
                  h = filled(r, s->n, s->h, s->w, s->c, 73);
    const struct tensor *given[] = {NULL, &u, NULL};
    float *w = malloc(places * sizeof *w);
    const float *words[] = {w, NULL, s->what ? w : NULL};
    struct gating in = {3, &t, up, width, given, words, gate, wave};
    test_fill(w, places, 78);
    test_fill(gate, GATE_ROWS * c, 74);
    test_fill(up, 7 * c, 75);
    test_fill(wave, 3 * GATE_WAVES, 76);
    *y = h;
    if (s->what)
        *y = filled(r, s->n, s->h, s->w, s->c, 77);
    op_gate(r, y, &h, &in);
    free(gate);
    free(up);
    free(w);
}

static void run_concat(struct run *r, const void *arg, struct tensor *y)
{
    const struct shape *s = arg;
    struct tensor a = filled(r, s->n, s->h, s->w, s->c, 51);
    struct tensor b = filled(r, s->n, s->h, s->w, s->what, 52);
    *y = run_tensor(r, s->n, s->h, s->w, s->c + s->what);
    op_concat(r, y, &a, &b);
}

static void run_upsample(struct run *r, const void *arg, struct tensor *y)
{
    const struct shape *s = arg;
    struct tensor x = filled(r, s->n, s->h, s->w, s->c, 61);
    *y = run_tensor(r, s->n, 2 * s->h - s->what, 2 * s->w - s->what, s->c);
    op_upsample(r, y, &x);
}

Test(backend, elementwise)
{
    for (int act = ACT_NONE; act <= ACT_QUICK_GELU; act++) {
        const struct shape s = {2, 31, 17, 5, act};
        check("activation", run_act, &s, BOUND);
    }
    const struct shape g[] = {{2, 16, 16, 96, 0}, {1, 9, 11, 13, 0}, {1, 1, 1, 3, 0}};
    for (size_t i = 0; i < 3; i++)
        check("geglu", run_geglu, &g[i], BOUND);
    const struct shape l[] = {{2, 16, 16, 96, 0}, {1, 9, 11, 13, 1}, {1, 1, 1, 3, 0}};
    for (size_t i = 0; i < 3; i++)
        check("lincomb", run_lincomb, &l[i], BOUND);
    for (size_t i = 0; i < 3; i++)
        check("affine", run_affine, &l[i], BOUND);
    for (size_t i = 0; i < 3; i++)
        check("scale", run_scale, &l[i], BOUND);
    for (size_t i = 0; i < 3; i++)
        check("route", run_route, &l[i], BOUND);
    for (size_t i = 0; i < 3; i++)
        check("gates", run_gate, &l[i], BOUND);
    const struct shape c[] = {{2, 16, 16, 96, 32}, {1, 9, 11, 13, 7}};
    for (size_t i = 0; i < 2; i++)
        check("concat", run_concat, &c[i], 1e-7); /* rounding of the input to float only */
    const struct shape u[] = {{2, 8, 8, 96, 0}, {1, 9, 11, 5, 1}, {1, 5, 6, 3, 1}};
    for (size_t i = 0; i < 3; i++)
        check("upsample", run_upsample, &u[i], 1e-7);
}

/* ---- the arena ------------------------------------------------------------------------------- */

Test(arena, uses_space_again_and_never_overlaps)
{
    struct arena a = {0};
    size_t at[3];
    unsigned id[3];
    for (int i = 0; i < 3; i++)
        id[i] = arena_take(&a, 1000, &at[i]);
    cr_assert(at[0] == 0 && at[1] == 1024 && at[2] == 2048);
    arena_drop(&a, id[1]);
    size_t b, c, d;
    arena_take(&a, 2000, &b); /* does not fit the gap */
    arena_take(&a, 512, &c);  /* does */
    arena_take(&a, 512, &d);
    cr_assert(b == 3072 && c == 1024 && d == 1536);
    cr_assert_eq(a.peak, 3072 + 2048);
    unsigned mark = arena_mark(&a);
    arena_take(&a, 10000, &b);
    arena_pop(&a, mark);
    cr_assert_eq(a.n, 5);
    arena_release(&a);
}

/* Ten thousand random takes and drops: no two live blocks share a byte. */
Test(arena, random_traffic)
{
    enum { MAX = 64 };
    struct arena a = {0};
    struct {
        size_t at, size;
        unsigned id;
    } live[MAX];
    int n = 0;
    uint64_t s = 1;
    for (int step = 0; step < 10000; step++) {
        s = s * 6364136223846793005u + 1442695040888963407u;
        if (n == MAX || (n > 0 && (s >> 60) < 7)) {
            int k = (int)(s >> 33) % n;
            arena_drop(&a, live[k].id);
            live[k] = live[--n];
            continue;
        }
        live[n].size = (size_t)(s >> 40) % 5000 + 1;
        live[n].id = arena_take(&a, live[n].size, &live[n].at);
        for (int i = 0; i < n; i++)
            cr_assert(live[i].at + live[i].size <= live[n].at ||
                      live[n].at + live[n].size <= live[i].at);
        n++;
    }
    arena_release(&a);
}

Test(run, says_when_it_was_not_measured)
{
    struct device *dev = test_device("cpu");
    struct run r;
    struct err err;
    run_init(&r, dev);
    run_measure(&r);
    run_tensor(&r, 1, 8, 8, 4);
    cr_assert_eq(run_commit(&r, &err), 0);
    run_tensor(&r, 1, 8, 8, 400);
    cr_assert_eq(run_check(&r, &err), ERR_NOMEM);
    run_release(&r);
    device_close(dev);
}
