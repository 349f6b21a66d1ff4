/* What a device promises beside the numbers of its ops: what is sent comes back, in the order it was asked for; NaN stays NaN;
 * damaged weights are refused; a row's values do not hang on the rows beside it. */
#include "check.h"

#include "unet/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static struct tensor tensor_new(struct device *dev, int n, int h, int w, int c, bool wide)
{
    struct tensor t = {.dev = dev, .n = n, .h = h, .w = w, .c = c, .wide = wide};
    struct err err;
    t.data = dev->be->alloc(dev, tensor_count(&t) * tensor_value_size(&t));
    must(t.data ? 0 : err_nomem(&err, tensor_count(&t)), &err, "a tensor");
    return t;
}

static void send(struct tensor *t, const float *host)
{
    struct err err;
    must(t->dev->be->upload(t->dev, t, host, &err), &err, "upload");
}

static void fetch(const struct tensor *t, float *host)
{
    struct err err;
    must(t->dev->be->download(t->dev, host, t, &err), &err, "download");
}

static void tensor_free(struct tensor *t)
{
    t->dev->be->free(t->dev, t->data);
}

/* y = a x + b */
static void affine(struct tensor *y, const struct tensor *x, double a, double b)
{
    struct err err;
    must(y->dev->be->affine(y->dev, y, x, a, b, &err), &err, "affine");
}

/* ---- there and back -------------------------------------------------------------------------- */

/* Zeros, the largest and the smallest, halves between two values, what does not fit, then anything. */
static void fill_hard(float *v, size_t n, uint64_t seed)
{
    static const float hard[] = {
        0,        -0.f,      1,           1.00048828125f, 1.00146484375f, 65504,    65519,
        65520,    -70000,    6e-8f,       2.98e-8f,       1e-40f,         3.39e38f, -3.39e38f,
        INFINITY, -INFINITY, 1.00390625f, 1.01171875f,    1e-5f,          -6.1e-5f, 1.5f};
    fill(v, n, seed);
    for (size_t i = 0; i < sizeof hard / sizeof *hard && i < n; i++)
        v[i] = hard[i];
}

/* To the device and back is the rounding of tensor.h and nothing else; rows, too. */
static void check_transfer(struct device *dev, enum dtype type)
{
    static const int shapes[][4] = {
        {1, 1, 1, 1},    {2, 3, 5, 7},    {3, 1, 1, 33},
        {1, 128, 64, 2}, {2, 64, 128, 2}, {1, 65, 127, 3},
    };
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++)
        for (int wide = 0; wide < 2; wide++) {
            const int *s = shapes[i];
            struct tensor t = tensor_new(dev, s[0], s[1], s[2], s[3], wide);
            size_t n = tensor_count(&t), one = n / (size_t)s[0];
            float *v = room_for(2 * n, sizeof *v), *got = v + n;
            uint64_t seed = seed_of("transfer", i);
            fill_hard(v, n, seed);
            send(&t, v);
            struct tensor last = tensor_rows(&t, s[0] - 1, 1);
            fetch(&last, got);
            fill(v + (n - one), one, seed + 1);
            send(&last, v + (n - one));
            fetch(&t, got);
            round_to(v, n, wide ? DT_F32 : type);
            expect_that(!memcmp(v, got, n * sizeof *v), seed, "%d x %d x %d x %d there and back",
                        s[0], s[1], s[2], s[3]);
            free(v);
            tensor_free(&t);
        }
}

/* Ops that were asked for first see what was there then: of tensors, of floats that are stored anew, of memory and layers that
 * are let go. */
static void check_order(struct device *dev, enum dtype type)
{
    enum { N = 40, C = 24 };
    struct tensor x = tensor_new(dev, 1, N, 1, C, false), y = tensor_new(dev, 1, N, 1, C, false),
                  z = tensor_new(dev, 1, N, 1, C, false);
    float a[N * C], b[N * C], got[N * C], want[N * C], gain[2][C], w[C * C];
    const struct backend *be = dev->be;
    struct err err;
    uint64_t seed = seed_of("order", 0);
    fill(a, N * C, seed);
    fill(b, N * C, seed + 1);
    fill(gain[0], C, seed + 2);
    fill(gain[1], C, seed + 3);
    fill(w, C * C, seed + 4);
    round_to(a, N * C, type);
    round_to(b, N * C, type);
    round_to(w, C * C, type);
    for (int turn = 0; turn < 4; turn++) { /* the same commands again and again */
        float *g = be->alloc(dev, C * sizeof *g), *spare = be->alloc(dev, N * C * sizeof *spare);
        struct layer l = {.name = "passing", .site = -1, .in = C, .out = C};
        l.kh = l.kw = l.stride = 1;
        l.w = (struct array){.dtype = DT_F32, .ndim = 2, .dim = {C, C}, .data = w};
        send(&x, a);
        affine(&y, &x, 2, 0);
        send(&x, b);
        affine(&z, &x, 1, 0);
        be->store(dev, g, gain[0], C);
        must(be->gain(dev, &y, &z, 1, g, NULL, &err), &err, "gain");
        be->store(dev, g, gain[1], C);
        must(be->gain(dev, &y, &z, .5, g, NULL, &err), &err, "gain");
        be->free(dev, g);
        be->free(dev, spare);
        spare = be->alloc(dev, N * C * sizeof *spare); /* likely the same place */
        memset(want, 0xff, sizeof want);
        be->store(dev, spare, want, N * C);
        fetch(&y, got);
        for (int i = 0; i < N * C; i++)
            want[i] = 2 * a[i] + b[i] * gain[0][i % C] + .5f * b[i] * gain[1][i % C];
        expect(error_of(got, want, N * C, 0), bound_of(BOUND_SUM, type), seed,
               "turn %d: gains that are stored anew", turn);
        must(be->layer(dev, &y, &l, &x, false, &err), &err, "layer");
        layer_release(dev, &l);
        be->free(dev, spare);
        fetch(&y, got);
        for (int i = 0; i < N * C; i++) {
            double sum = 0;
            for (int k = 0; k < C; k++)
                sum += (double)b[i / C * C + k] * (double)w[i % C * C + k];
            want[i] = (float)sum;
        }
        expect(error_of(got, want, N * C, 0), bound_of(BOUND_SUM, type), seed,
               "turn %d: a layer that is let go", turn);
        a[turn] += 1;
        round_to(a, N * C, type);
    }
    tensor_free(&x);
    tensor_free(&y);
    tensor_free(&z);
}

/* ---- what is damaged ------------------------------------------------------------------------- */

enum { NAN_N = 3, NAN_PLACES = 45, NAN_C = 32, NAN_ALL = NAN_N * NAN_PLACES * NAN_C };

typedef int nan_fn(struct device *dev, struct tensor *y, const struct tensor *x, void *scratch,
                   struct err *err);

static int nan_lincomb(struct device *dev, struct tensor *y, const struct tensor *x, void *scratch,
                       struct err *err)
{
    const double one = 1;
    (void)scratch;
    return dev->be->lincomb(dev, y, 1, &one, &x, 1.5, err);
}

static int nan_activate(struct device *dev, struct tensor *y, const struct tensor *x, void *scratch,
                        struct err *err)
{
    (void)scratch;
    return dev->be->activate(dev, y, x, ACT_SILU, err);
}

static int nan_attention(struct device *dev, struct tensor *y, const struct tensor *x,
                         void *scratch, struct err *err)
{
    const struct attention a = {.heads = 2};
    struct tensor k = *x; /* the first row's places; of x only queries of other rows have NaN */
    k.n = 1;
    struct tensor q = tensor_rows(x, 1, 1), o = tensor_rows(y, 1, 1);
    return dev->be->attention(dev, &o, &q, &k, &k, &a, scratch, err);
}

static int nan_norm(struct device *dev, struct tensor *y, const struct tensor *x, void *scratch,
                    struct err *err)
{
    float v[NAN_C];
    const struct array a = {.dtype = DT_F32, .ndim = 1, .dim = {NAN_C}, .data = v};
    struct norm g;
    (void)scratch;
    for (int i = 0; i < NAN_C; i++)
        v[i] = 1;
    must(norm_init(dev, &g, "norm", 4, 1e-5f, &a, &a, err), err, "a norm");
    int rc = dev->be->group_norm(dev, y, &g, x, NULL, ACT_SILU, err);
    norm_release(dev, &g);
    return rc;
}

/* One NaN in x, at row 1: where NaN must be in y, and nowhere else in what the op writes. */
static void nan_case(struct device *dev, const char *name, nan_fn *fn, int place, int channel,
                     bool (*is_hit)(int place, int channel, int p, int c), int row0, int rows)
{
    struct tensor x = tensor_new(dev, NAN_N, 9, 5, NAN_C, false),
                  y = tensor_new(dev, NAN_N, 9, 5, NAN_C, false);
    const struct attention a = {.heads = 2};
    void *scratch = dev->be->alloc(dev, dev->be->attention_scratch(dev, &x, &x, &a));
    float *v = room_for(2 * NAN_ALL, sizeof *v), *got = v + NAN_ALL;
    uint64_t seed = seed_of(name, (uint64_t)place);
    struct err err;
    bool right = true;
    fill(v, NAN_ALL, seed);
    v[(NAN_PLACES + place) * NAN_C + channel] = NAN;
    send(&x, v);
    fill(v, NAN_ALL, seed + 1);
    send(&y, v);
    must(fn(dev, &y, &x, scratch, &err), &err, "%s", name);
    fetch(&y, got);
    for (int i = row0 * NAN_PLACES * NAN_C; i < (row0 + rows) * NAN_PLACES * NAN_C; i++) {
        int row = i / NAN_C / NAN_PLACES, p = i / NAN_C % NAN_PLACES;
        bool hit = row == 1 && is_hit(place, channel, p, i % NAN_C);
        right = right && (isnan(got[i]) != 0) == hit;
    }
    expect_that(right, seed, "%s: NaN of place %d stays there", name, place);
    free(v);
    dev->be->free(dev, scratch);
    tensor_free(&x);
    tensor_free(&y);
}

static bool hits_value(int place, int channel, int p, int c)
{
    return place == p && channel == c;
}

static bool hits_head(int place, int channel, int p, int c)
{
    return place == p && channel / (NAN_C / 2) == c / (NAN_C / 2);
}

static bool hits_group(int place, int channel, int p, int c)
{
    (void)place, (void)p;
    return channel / (NAN_C / 4) == c / (NAN_C / 4);
}

static void check_nan(struct device *dev, enum dtype type)
{
    (void)type;
    for (int place = 0; place < NAN_PLACES; place += 11) {
        nan_case(dev, "lincomb", nan_lincomb, place, 20, hits_value, 0, NAN_N);
        nan_case(dev, "activate", nan_activate, place, 20, hits_value, 0, NAN_N);
        nan_case(dev, "attention", nan_attention, place, 20, hits_head, 1, 1);
        nan_case(dev, "group_norm", nan_norm, place, 20, hits_group, 0, NAN_N);
    }
}

/* Weights that are no numbers, or of a type nobody computes with, are refused by name; the device goes on. */
static void check_refusals(struct device *dev, enum dtype type)
{
    float w[64], b[8];
    struct tensor x = tensor_new(dev, 1, 4, 1, 8, false), y = tensor_new(dev, 1, 4, 1, 8, false);
    struct err err;
    uint64_t seed = seed_of("refusals", 0);
    for (int k = 0; k < 5; k++) {
        struct layer l = {
            .name = "hurt.layer", .site = -1, .in = 8, .out = 8, .kh = 1, .kw = 1, .stride = 1};
        fill(w, 64, seed);
        fill(b, 8, seed + 1);
        w[37] = k == 0 ? NAN : k == 1 ? -INFINITY : w[37];
        b[3] = k == 2 ? NAN : b[3];
        l.w = (struct array){
            .dtype = k == 3 ? DT_F8_E4M3 : DT_F32, .ndim = 2, .dim = {8, 8}, .data = w};
        l.b = (struct array){.dtype = DT_F32, .ndim = 1, .dim = {8}, .data = b};
        err_clear(&err);
        int rc = dev->be->layer_prepare(dev, &y, &l, &x, false, &err);
        expect_that(k == 4 ? rc == 0 : rc < 0 && strstr(err.msg, "hurt.layer"), seed, "case %d: %s",
                    k, rc < 0 ? err.msg : "it was taken");
        layer_release(dev, &l);
    }
    tensor_free(&x);
    tensor_free(&y);
    (void)type;
}

/* ---- rows ------------------------------------------------------------------------------------ */

enum { ROWS = 5, ROW_H = 6, ROW_W = 5, ROW_C = 40 };

/* Some of what a network does to a row, by `what`; weights are [C, C, 3, 3] of it. */
static struct tensor row_op(struct run *r, int what, const struct layer *l, const struct norm *g,
                            const struct tensor *x)
{
    const struct attention a = {.heads = 2};
    struct tensor y = run_like(r, x);
    switch (what) {
    case 0: op_layer_norm(r, &y, g, x); break;
    case 1: op_group_norm(r, &y, g, x, NULL, ACT_SILU); break;
    case 2: op_attention(r, &y, x, x, x, &a); break;
    case 3: op_activate(r, &y, x, ACT_GELU); break;
    default: op_layer(r, &y, &l[what - 4], x, false);
    }
    return y;
}

static float *row_values(struct device *dev, int what, const struct layer *l, const struct norm *g,
                         const float *host, int row0, int rows)
{
    struct run r;
    struct err err;
    struct tensor y;
    size_t n = (size_t)(rows * ROW_H * ROW_W * ROW_C);
    float *got = room_for(n, sizeof *got);
    run_init(&r, dev);
    for (int live = 0; live < 2; live++) {
        if (live)
            must(run_commit(&r, &err), &err, "rows");
        else
            run_prepare(&r);
        struct tensor x = run_tensor(&r, rows, ROW_H, ROW_W, ROW_C);
        op_upload(&r, &x, host + row0 * ROW_H * ROW_W * ROW_C);
        y = row_op(&r, what, l, g, &x);
    }
    must(run_check(&r, &err), &err, "rows");
    fetch(&y, got);
    run_release(&r);
    return got;
}

/* Our own kernels give a row the same bits alone and in a batch. Libraries may sum in another order for another number of
 * rows: of layers only the bound is asked, and told whether it is the same. */
static void check_rows(struct device *dev, enum dtype type)
{
    static const char *const name[] = {"layer_norm", "group_norm", "attention",
                                       "activate",   "linear",     "3 x 3"};
    enum { ONE = ROW_H * ROW_W * ROW_C };
    float *v = room_for(ROWS * ONE, sizeof *v), *w = room_for(ROW_C * ROW_C * 9, sizeof *w);
    uint64_t seed = seed_of("rows", 0);
    struct norm g[2];
    struct layer l[2];
    struct err err;
    fill(v, ROWS * ONE, seed);
    fill(w, ROW_C * ROW_C * 9, seed + 1);
    const struct array of = {.dtype = DT_F32, .ndim = 1, .dim = {ROW_C}, .data = w};
    for (int k = 0; k < 2; k++) {
        must(norm_init(dev, &g[k], "norm", k ? 4 : 0, 1e-5f, &of, &of, &err), &err, "a norm");
        l[k] = (struct layer){.name = "rows", .site = -1, .in = ROW_C, .out = ROW_C, .stride = 1};
        l[k].kh = l[k].kw = k ? 3 : 1;
        for (int i = 0; i < 4; i++)
            l[k].pad[i] = k;
        l[k].w = (struct array){.dtype = DT_F32, .ndim = 4, .data = w};
        l[k].w.dim[0] = l[k].w.dim[1] = ROW_C;
        l[k].w.dim[2] = l[k].w.dim[3] = k ? 3 : 1;
    }
    for (int what = 0; what < 6; what++) {
        float *all = row_values(dev, what, l, &g[what == 1], v, 0, ROWS);
        for (int row = 0; row < ROWS; row += 2) {
            float *one = row_values(dev, what, l, &g[what == 1], v, row, 1);
            bool same = !memcmp(one, all + row * ONE, ONE * sizeof *one);
            if (what < 4)
                expect_that(same, seed, "%s: row %d alone has the bits it has in a batch",
                            name[what], row);
            else
                expect(error_of(one, all + row * ONE, ONE, 0), bound_of(BOUND_SUM, type), seed,
                       "%s: row %d", name[what], row);
            if (!same)
                figure("%s: row %d has other bits in a batch", name[what], row);
            free(one);
        }
        free(all);
    }
    for (int k = 0; k < 2; k++) {
        norm_release(dev, &g[k]);
        layer_release(dev, &l[k]);
    }
    free(v);
    free(w);
}

/* ---- large ----------------------------------------------------------------------------------- */

/* Where places are beyond 2^31 values: the last row is as it should be. */
static void check_large(struct device *dev, enum dtype type)
{
    enum { N = 2102, PLACES = 1024, C = 1000, ONE = PLACES * C };
    struct tensor t = tensor_new(dev, N, PLACES, 1, C, false), last = tensor_rows(&t, N - 1, 1),
                  first = tensor_rows(&t, 0, 1);
    float *v = room_for(2 * ONE, sizeof *v), *got = v + ONE;
    struct err err;
    uint64_t seed = seed_of("large", 0);
    fill(v, ONE, seed);
    round_to(v, ONE, type);
    send(&first, v);
    send(&last, v);
    affine(&t, &t, 2, 1);
    for (int k = 0; k < 2; k++) {
        fetch(k ? &last : &first, got);
        for (int i = 0; i < ONE; i++)
            got[i] = (got[i] - 1) / 2;
        expect(error_of(got, v, ONE, 0), 2 * bound_of(BOUND_ONCE, type), seed, "affine, end %d", k);
    }
    send(&first, v);
    send(&last, v);
    must(dev->be->activate(dev, &t, &t, ACT_GELU, &err), &err, "activate");
    float *other = room_for(ONE, sizeof *other);
    fetch(&first, got);
    fetch(&last, other);
    expect_that(!memcmp(got, other, ONE * sizeof *got) && memcmp(got, v, ONE * sizeof *got), seed,
                "activate: both ends alike");
    free(other);
    free(v);
    tensor_free(&t);
}

const struct group device_groups[] = {
    {"device/transfer", check_transfer, 0},
    {"device/order", check_order, 0},
    {"device/nan", check_nan, 0},
    {"device/refusals", check_refusals, 0},
    {"device/rows", check_rows, 0},
    {"device/large", check_large, GROUP_LARGE},
    {NULL, NULL, 0},
};
