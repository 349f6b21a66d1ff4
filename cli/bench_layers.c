/* Timing, the limits of a device as measured, and single ops beside them. */
#include "bench.h"
#include "cli.h"
#include "device.h"

#include "unet/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

/* ---- timing ---------------------------------------------------------------------------------- */

int bench_wait(const struct tensor *t, struct err *err)
{
    const struct backend *be = t->dev->be;
    struct tensor one = *t;
    float value;
    if (!be->flush)
        return 0;
    one.n = one.h = one.w = one.c = 1;
    int rc = be->flush(t->dev, err);
    return rc < 0 ? rc : be->download(t->dev, &value, &one, err);
}

/* Seconds of each of n, one behind the other. */
static int time_round(const struct bench_job *j, int n, double *seconds, struct err *err)
{
    int rc = 0;
    double began = cli_now();
    for (int i = 0; i < n && rc == 0; i++)
        rc = j->go(j->user, err);
    rc = rc < 0 ? rc : bench_wait(j->t, err);
    *seconds = (cli_now() - began) / n;
    return rc;
}

int bench_best(const struct bench_job *j, double *seconds, struct err *err)
{
    enum { ROUNDS = 20, MOST = 256 };
    const double enough = .2, one = .04; /* seconds of all rounds, of a round */
    bool later = j->t->dev->be->flush;
    int n = 1, rc = bench_wait(j->t, err);
    double t = 0, all = 0;
    /* What comes for the first time is cold; a list of commands is captured as a graph the second time. */
    for (int i = 0; i < (later ? 3 : 1) && rc == 0; i++)
        rc = time_round(j, 1, &t, err);
    if (later && t < one)
        n = (int)fmin(one / t, MOST);
    int least = n > 1 ? 5 /* so many in a row may be another list */ : t < 1 ? 3 : 1;
    *seconds = INFINITY;
    for (int i = 0; rc == 0 && i < ROUNDS && (i < least || all < enough); i++) {
        rc = time_round(j, n, &t, err);
        all += t * n;
        *seconds = fmin(*seconds, t);
    }
    return rc;
}

/* ---- layers ---------------------------------------------------------------------------------- */

struct shape {
    const char *name;
    int n, h, w, in, out, k;
};

/* A layer of a shape, its weights zero. */
static int make_layer(struct layer *l, const struct shape *s, struct err *err)
{
    size_t n = (size_t)s->out * (size_t)s->in * (size_t)(s->k * s->k);
    float *w = calloc(n, sizeof *w);
    *l = (struct layer){
        .name = s->name,
        .site = -1,
        .out = s->out,
        .in = s->in,
        .kh = s->k,
        .kw = s->k,
        .stride = 1,
        .w = {.dtype = DT_F32,
              .ndim = 4,
              .data = w,
              .dim = {(uint64_t)s->out, (uint64_t)s->in, (uint64_t)s->k, (uint64_t)s->k}}};
    for (int i = 0; i < 4; i++)
        l->pad[i] = s->k / 2;
    return w ? 0 : err_nomem(err, n * sizeof *w);
}

/* Best seconds of one layer on one shape; on a processor zero weights cost the same. */
static int time_now(struct run *r, const struct layer *l, const struct shape *s, double *best,
                    struct err *err)
{
    int rc = 0;
    run_measure(r);
    for (int i = 0; i < 7 && rc == 0; i++) {
        struct tensor x = run_tensor(r, s->n, s->h, s->w, s->in);
        struct tensor y = run_layer_tensor(r, l, &x);
        if (i == 0) {
            rc = run_commit(r, err);
            continue;
        }
        op_affine(r, &x, &x, 0, 0);
        double t = cli_now();
        op_layer(r, &y, l, &x, false);
        t = cli_now() - t;
        rc = run_check(r, err);
        *best = i > 1 && t < *best ? t : *best;
        run_reset(r);
    }
    return rc;
}

struct timed {
    struct run *r;
    const struct layer *l;
    struct tensor x, y;
};

static int go_layer(void *user, struct err *err)
{
    struct timed *t = user;
    op_layer(t->r, &t->y, t->l, &t->x, false);
    return run_check(t->r, err);
}

void bench_fill(float *v, size_t n)
{
    uint32_t x = 1;
    for (size_t i = 0; i < n; i++) {
        x = x * 1664525 + 1013904223;
        v[i] = (float)(x >> 8) / (1 << 24) - .5f;
    }
}

/* The same where it is done later. Zeros would take less power than numbers do, and be quicker for it. */
static int time_later(struct run *r, struct layer *l, const struct shape *s, double *best,
                      struct err *err)
{
    struct timed t = {r, l, {0}, {0}};
    size_t n = (size_t)s->n * (size_t)(s->h * s->w) * (size_t)s->in;
    float *x = malloc(n * sizeof *x);
    if (!x)
        return err_nomem(err, n * sizeof *x);
    bench_fill(x, n);
    bench_fill((float *)l->w.data, array_count(&l->w));
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++) {
        if (i == 0)
            run_measure(r);
        t.x = run_tensor(r, s->n, s->h, s->w, s->in);
        t.y = run_layer_tensor(r, l, &t.x);
        rc = i == 0 ? run_commit(r, err) : 0;
    }
    if (rc == 0) {
        op_upload(r, &t.x, x);
        rc = bench_best(&(struct bench_job){go_layer, &t, &t.y}, best, err);
    }
    free(x);
    return rc;
}

static int time_layer(struct device *dev, const struct shape *s, double *best, struct err *err)
{
    struct layer l;
    struct run r;
    *best = INFINITY;
    run_init(&r, dev);
    int rc = make_layer(&l, s, err);
    if (rc == 0)
        rc = dev->be->flush ? time_later(&r, &l, s, best, err) : time_now(&r, &l, s, best, err);
    layer_release(dev, &l);
    run_release(&r);
    free((void *)l.w.data);
    return rc;
}

static double shape_flops(const struct shape *s)
{
    return 2.0 * s->n * s->h * s->w * s->in * s->out * s->k * s->k;
}

/* The layers that most of Stable Diffusion 1.5's time goes to, two rows (guidance) at 512 x 512. */
int bench_layers(struct device *dev, const struct bench_limits *of, bool json, struct err *err)
{
    static const struct shape shapes[] = {
        {"conv 3x3 320 -> 320, 64x64", 2, 64, 64, 320, 320, 3},
        {"conv 3x3 640 -> 320, 64x64", 2, 64, 64, 640, 320, 3},
        {"conv 3x3 640 -> 640, 32x32", 2, 32, 32, 640, 640, 3},
        {"conv 3x3 1280 -> 1280, 16x16", 2, 16, 16, 1280, 1280, 3},
        {"conv 3x3 2560 -> 1280, 8x8", 2, 8, 8, 2560, 1280, 3},
        {"linear 320 -> 2560, 64x64 (ff in)", 2, 64, 64, 320, 2560, 1},
        {"linear 1280 -> 320, 64x64 (ff out)", 2, 64, 64, 1280, 320, 1},
        {"linear 1280 -> 1280, 16x16", 2, 16, 16, 1280, 1280, 1},
        {"conv 3x3 96 -> 96, 16x16 (demo)", 2, 16, 16, 96, 96, 3},
        {"conv 3x3 32 -> 32, 32x32 (demo)", 2, 32, 32, 32, 32, 3},
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && rc == 0; i++) {
        char name[80];
        double t;
        rc = time_layer(dev, &shapes[i], &t, err);
        if (rc < 0)
            break;
        bench_figure(json, shapes[i].name, shape_flops(&shapes[i]) / t / of->scale, of->unit);
        snprintf(name, sizeof name, "%s, of the ceiling", shapes[i].name);
        bench_figure(json, name, 100 * shape_flops(&shapes[i]) / t / of->flops, "%");
    }
    return rc;
}

/* ---- what only moves numbers ----------------------------------------------------------------- */

enum op { GROUP_NORM, LAYER_NORM, GEGLU, SUM, OPS };

struct moved {
    enum op op;
    struct run r;
    struct norm norm[2];
    struct tensor x, z, y;
};

static int go_op(void *user, struct err *err)
{
    struct moved *t = user;
    const struct tensor *two[2] = {&t->x, &t->z};
    const double coef[2] = {.5, .5};
    if (t->op == GROUP_NORM)
        op_group_norm(&t->r, &t->y, &t->norm[0], &t->x, NULL, ACT_SILU);
    else if (t->op == LAYER_NORM)
        op_layer_norm(&t->r, &t->y, &t->norm[1], &t->x);
    else if (t->op == GEGLU)
        op_geglu(&t->r, &t->y, &t->x);
    else
        op_lincomb(&t->r, &t->y, 2, coef, two, 0);
    return run_check(&t->r, err);
}

static int time_op(struct moved *t, int rows, int c, double *seconds, double *bytes,
                   struct err *err)
{
    enum { SIDE = 64 };
    struct run *r = &t->r;
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++) {
        if (i == 0)
            run_measure(r);
        t->x = run_tensor(r, rows, SIDE, SIDE, t->op == GEGLU ? 8 * c : c);
        t->y = run_tensor(r, rows, SIDE, SIDE, t->op == GEGLU ? 4 * c : c);
        t->z = t->op == SUM ? run_like(r, &t->x) : t->x;
        rc = i == 0 ? run_commit(r, err) : 0;
    }
    op_affine(r, &t->x, &t->x, 0, .5);
    op_affine(r, &t->z, &t->z, 0, .5);
    rc = rc < 0 ? rc : bench_best(&(struct bench_job){go_op, t, &t->y}, seconds, err);
    *bytes = (double)(tensor_count(&t->x) * (t->op == SUM ? 2 : 1) + tensor_count(&t->y)) *
             (double)r->dev->value_size;
    return rc;
}

/* At SD 1.5's first level; what a cache holds goes faster than memory. */
int bench_ops(struct device *dev, int batch, const struct bench_limits *of, bool json,
              struct err *err)
{
    enum { WIDE = 320 };
    static const char *const name[OPS] = {"group norm and silu", "layer norm", "geglu",
                                          "sum of two"};
    float one[WIDE];
    const struct array a = {.dtype = DT_F32, .ndim = 1, .dim = {WIDE}, .data = one};
    struct moved t = {.op = GROUP_NORM};
    char text[120];
    for (int i = 0; i < WIDE; i++)
        one[i] = 1;
    run_init(&t.r, dev);
    int rc = norm_init(dev, &t.norm[0], name[0], 32, 1e-5f, &a, &a, err);
    rc = rc < 0 ? rc : norm_init(dev, &t.norm[1], name[1], 0, 1e-5f, &a, &a, err);
    for (int i = 0; i < OPS && rc == 0; i++) {
        double seconds, bytes;
        t.op = (enum op)i;
        rc = time_op(&t, 2 * batch, WIDE, &seconds, &bytes, err);
        if (rc < 0)
            break;
        int n = snprintf(text, sizeof text, "%s, 64x64, %d picture%s: ", name[i], batch,
                         batch == 1 ? "" : "s");
        snprintf(text + n, sizeof text - (size_t)n, "speed");
        bench_figure(json, text, bytes / seconds / 1e9, "GB/s");
        snprintf(text + n, sizeof text - (size_t)n, "of the memory ceiling");
        bench_figure(json, text, 100 * bytes / seconds / of->bytes, "%");
    }
    norm_release(dev, &t.norm[0]);
    norm_release(dev, &t.norm[1]);
    run_release(&t.r);
    return rc;
}

/* ---- limits ---------------------------------------------------------------------------------- */

/* The fastest of some products and convolutions that suit a processor well. */
static int find_flops(struct device *dev, double *flops, struct err *err)
{
    static const struct shape s[] = {{"product 1024 x 1024 x 1024", 1, 1024, 1, 1024, 1024, 1},
                                     {"product 512 x 2048 x 1024", 1, 512, 1, 2048, 1024, 1},
                                     {"product 384 x 1280 x 1280", 1, 384, 1, 1280, 1280, 1},
                                     /* of odd sides: in as many products as are counted */
                                     {"convolution 96, 17 x 17", 2, 17, 17, 96, 96, 3},
                                     {"convolution 160, 9 x 9", 2, 9, 9, 160, 160, 3}};
    int rc = 0;
    for (size_t i = 0; i < sizeof s / sizeof *s && rc == 0; i++) {
        double t;
        rc = time_layer(dev, &s[i], &t, err);
        *flops = rc == 0 ? fmax(*flops, shape_flops(&s[i]) / t) : 0;
    }
    return rc;
}

/* Or of products up to 8192 x 8192 x 8192, each as long as the one before is quick. */
static int find_flops_later(struct device *dev, double *flops, struct err *err)
{
    double t = 0;
    int rc = 0;
    for (int n = 1024; n <= 8192 && t < .02 && rc == 0; n *= 2) {
        const struct shape s = {"product", 1, n, 1, n, n, 1};
        rc = time_layer(dev, &s, &t, err);
        *flops = rc == 0 ? fmax(*flops, shape_flops(&s) / t) : 0;
    }
    return rc;
}

static int go_copy(void *user, struct err *err)
{
    struct timed *t = user;
    op_copy(t->r, &t->y, &t->x);
    return run_check(t->r, err);
}

/* Bytes a second of a copy, read and written, of a tensor that no cache holds; of a smaller one where that is slow. */
static int find_bytes(struct device *dev, double *bytes, struct err *err)
{
    enum { WIDE = 1024 };
    struct run r;
    struct timed t = {.r = &r};
    double seconds = 0, most = dev->be->flush ? 1 << 30 : 1 << 28;
    int rc = 0;
    run_init(&r, dev);
    for (double size = 1 << 24; size <= most && seconds < .05 && rc == 0; size *= 4) {
        int rows = (int)(size / WIDE / (double)dev->value_size);
        for (int i = 0; i < 2 && rc == 0; i++) {
            if (i == 0)
                run_measure(&r);
            t.x = run_tensor(&r, 1, rows, 1, WIDE);
            t.y = run_like(&r, &t.x);
            rc = i == 0 ? run_commit(&r, err) : 0;
        }
        if (rc == 0) {
            op_affine(&r, &t.x, &t.x, 0, 1);
            rc = bench_best(&(struct bench_job){go_copy, &t, &t.y}, &seconds, err);
        }
        *bytes = 2 * size / seconds;
    }
    run_release(&r);
    return rc;
}

int bench_limits(struct bench_limits *l, struct device *dev, const struct device_choice *on,
                 bool json, struct err *err)
{
    bool later = dev->be->flush;
    char name[40];
    *l = (struct bench_limits){.scale = later ? 1e12 : 1e9, .unit = later ? "TFLOP/s" : "GFLOP/s"};
    snprintf(name, sizeof name, "%s ceiling",
             !later                 ? "float32"
             : on->precision        ? on->precision
             : dev->value_size == 2 ? "f16"
                                    : "f32");
    int rc = later ? find_flops_later(dev, &l->flops, err) : find_flops(dev, &l->flops, err);
    if (rc == 0)
        bench_figure(json, name, l->flops / l->scale, l->unit);
    rc = rc < 0 ? rc : find_bytes(dev, &l->bytes, err);
    if (rc == 0)
        bench_figure(json, "memory ceiling, a copy", l->bytes / 1e9, "GB/s");
    return rc;
}
