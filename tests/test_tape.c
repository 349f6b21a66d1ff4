/* Gradients: every op's against finite differences in double, every backend's against those. */
#include "unet/tape.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Relative, over all values: of a backend's gradient beside ref64's; of ref64's beside differences of the loss, whose own
 * error of second order is what is left. */
#define BOUND       2e-5
#define DIFFERENCES 2e-5

/* ---- ops ------------------------------------------------------------------------------------- */

enum { CASE_LAYERS = 4, WIDE = 24 };

/* What a graph is made of: layers and norms of its own, all WIDE or as it says. */
struct parts {
    struct layer l[CASE_LAYERS];
    struct norm group, row;
    float *w[CASE_LAYERS], *b[CASE_LAYERS], *norm;
    unsigned *region; /* [h*w] of x */
};

struct graph {
    const char *name;
    struct tensor (*make)(struct run *r, const struct parts *p, const struct tensor *x);
    int n, h, w, c;
    int kernel, stride, pad[4]; /* of the first layer; 0: 1 x 1 */
    enum act act;
};

static const struct graph *now; /* the case in hand, for those that ask its act */

static struct tensor layer_(struct run *r, const struct parts *p, const struct tensor *x)
{
    struct tensor y = run_layer_tensor(r, &p->l[0], x);
    op_layer(r, &y, &p->l[0], x, false);
    return y;
}

static struct tensor norm_(struct run *r, const struct parts *p, const struct tensor *x)
{
    struct tensor y = run_like(r, x);
    op_group_norm(r, &y, &p->group, x, NULL, now->act);
    return y;
}

/* A norm in place of what a layer gave, with a value a channel besides; then the layer's other half, x itself. */
static struct tensor norm_in_place(struct run *r, const struct parts *p, const struct tensor *x)
{
    struct tensor more = run_tensor(r, x->n, 1, 1, x->c), y = layer_(r, p, x);
    float *v = malloc(tensor_count(&more) * sizeof *v);
    test_fill(v, tensor_count(&more), 9);
    op_upload(r, &more, v);
    free(v);
    op_group_norm(r, &y, &p->group, &y, &more, ACT_SILU);
    op_layer(r, &y, &p->l[1], x, true);
    return y;
}

/* As a transformer block: x grows in place by what was made of its norm, twice, and the norm's place is used again. */
static struct tensor residual(struct run *r, const struct parts *p, const struct tensor *x)
{
    struct tensor y = run_like(r, x), h = run_like(r, x);
    op_copy(r, &y, x);
    for (int i = 0; i < 2; i++) {
        unsigned mark = run_mark(r);
        struct tensor t = run_like(r, x);
        op_layer_norm(r, &h, &p->row, &y);
        op_layer(r, &t, &p->l[2 * i], &h, false);
        op_activate(r, &t, &t, now->act);
        op_layer(r, &y, &p->l[2 * i + 1], &t, true);
        run_pop(r, mark);
    }
    return y;
}

static struct tensor attention_(struct run *r, const struct parts *p, const struct tensor *x)
{
    const struct attention how = {
        .heads = 3, .causal = now->act == ACT_GELU, .region = now->act ? NULL : p->region};
    struct tensor q = run_like(r, x), k = run_like(r, x), v = run_like(r, x), o = run_like(r, x);
    op_layer(r, &q, &p->l[0], x, false);
    op_layer(r, &k, &p->l[1], x, false);
    op_layer(r, &v, &p->l[2], x, false);
    op_attention(r, &o, &q, &k, &v, &how);
    return o;
}

/* Keys and values that do not depend on x. */
static struct tensor attention_to_text(struct run *r, const struct parts *p, const struct tensor *x)
{
    const struct attention how = {.heads = 2};
    struct tensor text = run_tensor(r, x->n, 77, 1, x->c), q = run_like(r, x), o = run_like(r, x);
    float *v = malloc(tensor_count(&text) * sizeof *v);
    test_fill(v, tensor_count(&text), 3);
    op_upload(r, &text, v);
    free(v);
    op_layer(r, &q, &p->l[0], x, false);
    op_attention(r, &o, &q, &text, &text, &how);
    return o;
}

static struct tensor act_(struct run *r, const struct parts *p, const struct tensor *x)
{
    struct tensor y = run_like(r, x);
    (void)p;
    op_activate(r, &y, x, now->act);
    return y;
}

static struct tensor geglu_(struct run *r, const struct parts *p, const struct tensor *x)
{
    struct tensor wide = run_tensor(r, x->n, x->h, x->w, 2 * x->c), y = run_like(r, x);
    op_layer(r, &wide, &p->l[3], x, false);
    op_geglu(r, &y, &wide);
    return y;
}

static struct tensor sums(struct run *r, const struct parts *p, const struct tensor *x)
{
    struct tensor y = layer_(r, p, x);
    const struct tensor *src[3] = {x, &y, x};
    const double coef[3] = {.5, -2, .25};
    op_lincomb(r, &y, 3, coef, src, 0);
    op_affine(r, &y, &y, 1.5, 2);
    op_add(r, &y, x);
    return y;
}

/* Beside itself as a layer made it, and made larger. */
static struct tensor concat_up(struct run *r, const struct parts *p, const struct tensor *x)
{
    struct tensor y = layer_(r, p, x), both = run_tensor(r, x->n, x->h, x->w, 2 * x->c),
                  up = run_tensor(r, x->n, 2 * x->h - 1, 2 * x->w, 2 * x->c);
    op_concat(r, &both, &y, x);
    op_upsample(r, &up, &both);
    return up;
}

static const struct graph graphs[] = {
    {.name = "linear", .make = layer_, .n = 2, .h = 5, .w = 3, .c = WIDE},
    {.name = "3 x 3",
     .make = layer_,
     .n = 2,
     .h = 6,
     .w = 5,
     .c = WIDE,
     .kernel = 3,
     .pad = {1, 1, 1, 1}},
    {.name = "3 x 3, Winograd's",
     .make = layer_,
     .n = 2,
     .h = 8,
     .w = 10,
     .c = 48,
     .kernel = 3,
     .pad = {1, 1, 1, 1}},
    {.name = "3 x 3 without pads", .make = layer_, .n = 1, .h = 6, .w = 5, .c = WIDE, .kernel = 3},
    {.name = "by two, even",
     .make = layer_,
     .n = 2,
     .h = 8,
     .w = 6,
     .c = WIDE,
     .kernel = 3,
     .stride = 2,
     .pad = {1, 1, 1, 1}},
    {.name = "by two, odd",
     .make = layer_,
     .n = 2,
     .h = 7,
     .w = 9,
     .c = WIDE,
     .kernel = 3,
     .stride = 2,
     .pad = {1, 1, 1, 1}},
    {.name = "by two, pads on one side",
     .make = layer_,
     .n = 1,
     .h = 8,
     .w = 6,
     .c = WIDE,
     .kernel = 3,
     .stride = 2,
     .pad = {0, 0, 1, 1}},
    {.name = "group norm", .make = norm_, .n = 2, .h = 5, .w = 7, .c = WIDE},
    {.name = "group norm, silu",
     .make = norm_,
     .n = 2,
     .h = 33,
     .w = 30,
     .c = WIDE,
     .act = ACT_SILU},
    {.name = "group norm, gelu", .make = norm_, .n = 1, .h = 3, .w = 3, .c = WIDE, .act = ACT_GELU},
    {.name = "group norm in place", .make = norm_in_place, .n = 3, .h = 4, .w = 4, .c = WIDE},
    {.name = "residual", .make = residual, .n = 2, .h = 3, .w = 5, .c = WIDE, .act = ACT_GELU},
    {.name = "attention", .make = attention_, .n = 2, .h = 9, .w = 11, .c = WIDE, .act = ACT_SILU},
    {.name = "attention, 64 places",
     .make = attention_,
     .n = 1,
     .h = 8,
     .w = 8,
     .c = WIDE,
     .act = ACT_SILU},
    {.name = "attention, 6 places",
     .make = attention_,
     .n = 1,
     .h = 3,
     .w = 2,
     .c = WIDE,
     .act = ACT_SILU},
    {.name = "attention, causal",
     .make = attention_,
     .n = 1,
     .h = 9,
     .w = 11,
     .c = WIDE,
     .act = ACT_GELU},
    {.name = "attention in regions", .make = attention_, .n = 2, .h = 9, .w = 11, .c = WIDE},
    {.name = "attention to a text", .make = attention_to_text, .n = 2, .h = 6, .w = 6, .c = WIDE},
    {.name = "silu", .make = act_, .n = 1, .h = 5, .w = 5, .c = 7, .act = ACT_SILU},
    {.name = "gelu", .make = act_, .n = 1, .h = 5, .w = 5, .c = 7, .act = ACT_GELU},
    {.name = "gelu by tanh", .make = act_, .n = 1, .h = 5, .w = 5, .c = 7, .act = ACT_GELU_TANH},
    {.name = "quick gelu", .make = act_, .n = 1, .h = 5, .w = 5, .c = 7, .act = ACT_QUICK_GELU},
    {.name = "geglu", .make = geglu_, .n = 2, .h = 3, .w = 3, .c = WIDE},
    {.name = "sums", .make = sums, .n = 2, .h = 3, .w = 3, .c = WIDE},
    {.name = "concat and up", .make = concat_up, .n = 2, .h = 3, .w = 4, .c = WIDE},
};

/* Layer i is WIDE in and out, but for the last, which is twice that out; the first has the graph's kernel and channels. */
static void parts_open(struct parts *p, struct device *dev, const struct graph *g)
{
    struct err err;
    memset(p, 0, sizeof *p);
    for (int i = 0; i < CASE_LAYERS; i++) {
        struct layer *l = &p->l[i];
        int k = i == 0 && g->kernel ? g->kernel : 1, in = i == 0 ? g->c : WIDE,
            out = i == 3 && g->make == geglu_ ? 2 * WIDE : in;
        size_t n = (size_t)(out * in * k * k);
        p->w[i] = malloc(n * sizeof(float));
        p->b[i] = malloc((size_t)out * sizeof(float));
        test_fill(p->w[i], n, (unsigned)i + 1);
        test_fill(p->b[i], (size_t)out, (unsigned)i + 11);
        for (size_t j = 0; j < n; j++)
            p->w[i][j] *= .3f / (float)k;
        *l = (struct layer){
            .name = "l", .site = -1, .out = out, .in = in, .kh = k, .kw = k, .stride = 1};
        l->stride = i == 0 && g->stride ? g->stride : 1;
        memcpy(l->pad, i == 0 ? g->pad : (int[4]){0}, sizeof l->pad);
        l->w = (struct array){.dtype = DT_F32, .ndim = 4, .data = p->w[i]};
        l->w.dim[0] = (uint64_t)out, l->w.dim[1] = (uint64_t)in,
        l->w.dim[2] = l->w.dim[3] = (uint64_t)k;
        l->b = (struct array){.dtype = DT_F32, .ndim = 1, .dim = {(uint64_t)out}, .data = p->b[i]};
    }
    p->norm = malloc(2 * WIDE * sizeof(float));
    test_fill(p->norm, 2 * WIDE, 5);
    const struct array gamma = {.dtype = DT_F32, .ndim = 1, .dim = {WIDE}, .data = p->norm},
                       beta = {.dtype = DT_F32, .ndim = 1, .dim = {WIDE}, .data = p->norm + WIDE};
    cr_assert_eq(norm_init(dev, &p->group, "g", 4, 1e-5f, &gamma, &beta, &err), 0);
    cr_assert_eq(norm_init(dev, &p->row, "r", 0, 1e-5f, &gamma, &beta, &err), 0);
    p->region = calloc((size_t)(g->h * g->w), sizeof *p->region);
    for (int i = 0; i < g->h * g->w; i++) /* none, the first, the second, both */
        p->region[i] = (unsigned)(i % g->w * 4 / g->w);
}

static void parts_close(struct parts *p, struct device *dev)
{
    for (int i = 0; i < CASE_LAYERS; i++) {
        layer_release(dev, &p->l[i]);
        free(p->w[i]), free(p->b[i]);
    }
    norm_release(dev, &p->group);
    norm_release(dev, &p->row);
    free(p->norm), free(p->region);
}

/* The graph's loss, the sum of its result times numbers of its own, and the gradient of that: dx [count of x], NULL: not
 * wanted. The loss is summed from doubles where the device has them. */
static double run_graph(struct device *dev, const struct graph *g, const float *x, float *dx)
{
    struct parts p;
    struct run r;
    struct tape *t;
    struct err err;
    struct tensor in, y, back;
    double loss = 0;
    now = g;
    parts_open(&p, dev, g);
    cr_assert_eq(tape_new(&t, &err), 0);
    run_init(&r, dev);
    for (int turn = 0; turn < 2; turn++) {
        if (turn == 0)
            run_prepare(&r);
        else
            cr_assert_eq(run_commit(&r, &err), 0, "%s: %s", g->name, err.msg);
        tape_begin(t, &r);
        in = run_tensor(&r, g->n, g->h, g->w, g->c);
        op_upload(&r, &in, x);
        tape_want(t, &in);
        y = g->make(&r, &p, &in);
        size_t n = tensor_count(&y);
        float *dy = malloc(n * sizeof *dy);
        test_fill(dy, n, 77);
        for (size_t i = 0; i < n && turn && dev->value_size == sizeof(double); i++)
            loss += (double)dy[i] * ((const double *)y.data)[i];
        tape_seed(t, &y, dy);
        back = tape_back(t, &in);
        free(dy);
    }
    cr_assert_eq(run_check(&r, &err), 0, "%s: %s", g->name, err.msg);
    if (dx)
        cr_assert_eq(dev->be->download(dev, dx, &back, &err), 0);
    tape_free(t);
    run_release(&r);
    parts_close(&p, dev);
    return loss;
}

static void check_graph(struct device *d64, const struct graph *g)
{
    static const struct {
        const char *backend;
        enum isa isa;
    } on[] = {{"ref", ISA_PLAIN}, {"cpu", ISA_PLAIN}, {"cpu", ISA_AVX2}, {"cpu", ISA_AVX512}};
    size_t n = (size_t)(g->n * g->h * g->w * g->c);
    float *x = malloc(4 * n * sizeof *x), *near = x + n, *want = near + n, *got = want + n;
    const double step = 1.0 / 4096; /* x and its steps are exact in float */
    double along = 0, side[2];
    test_fill(x, n, 21);
    for (size_t i = 0; i < n; i++)
        x[i] = rintf(x[i] * 4096) / 4096;
    run_graph(d64, g, x, want);
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < n; i++)
            near[i] = x[i] + (float)((s ? -step : step) * (double)((int)(i * 7 % 5) - 2));
        side[s] = run_graph(d64, g, near, NULL);
    }
    for (size_t i = 0; i < n; i++)
        along += (double)want[i] * (double)((int)(i * 7 % 5) - 2);
    double found = (side[0] - side[1]) / (2 * step);
    cr_expect_leq(fabs(found - along), DIFFERENCES * (fabs(found) + 1),
                  "%s: along a line %g, by differences %g", g->name, along, found);
    for (size_t i = 0; i < sizeof on / sizeof *on; i++) {
        struct device *dev = test_device_isa(on[i].backend, on[i].isa, 2);
        if (dev->isa == on[i].isa) {
            memset(got, 0xff, n * sizeof *got);
            run_graph(dev, g, x, got);
            double e = test_error(got, want, n);
            cr_expect_leq(e, BOUND, "%s on %s/%d: %.2e", g->name, on[i].backend, (int)on[i].isa, e);
        }
        device_close(dev);
    }
    free(x);
}

Test(tape, ops)
{
    struct device *d64 = test_device("ref64");
    for (size_t i = 0; i < sizeof graphs / sizeof *graphs; i++)
        check_graph(d64, &graphs[i]);
    device_close(d64);
}
