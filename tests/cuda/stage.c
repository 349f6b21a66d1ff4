#include "stage.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Beside what is written; exact in 16 bits. */
static const float guard = 12.25f;

/* ---- tensors --------------------------------------------------------------------------------- */

static void take(struct stage *s, struct piece *p, int n, int h, int w, int c, bool wide)
{
    int beside = s->within;
    p->whole =
        (struct tensor){.dev = s->dev, .n = n + 2 * beside, .h = h, .w = w, .c = c, .wide = wide};
    p->all = tensor_count(&p->whole);
    p->whole.data = s->dev->be->alloc(s->dev, p->all * tensor_value_size(&p->whole));
    struct err err;
    must(p->whole.data ? 0 : err_nomem(&err, p->all), &err, "a tensor");
    p->t = tensor_rows(&p->whole, beside, n);
    p->count = tensor_count(&p->t);
    p->from = (size_t)beside * (p->count / (size_t)n);
    p->host = room_for(p->all, sizeof *p->host);
    p->before = room_for(p->count, sizeof *p->before);
}

struct tensor *stage_tensor(struct stage *s, int n, int h, int w, int c, const struct form_of *f)
{
    struct piece *p = &s->piece[s->at_piece];
    if (s->at_piece == s->n_piece) {
        take(s, p, n, h, w, c, f->wide);
        s->n_piece++;
    }
    float *v = p->host + p->from;
    p->role = f->role;
    for (size_t i = 0; i < p->all; i++)
        p->host[i] = f->role == ROLE_IN ? NAN : guard;
    fill(v, p->count, s->seed + 7919 * (uint64_t)s->at_piece + 104729 * (uint64_t)s->turn);
    for (size_t i = 0; i < p->count; i++) {
        size_t place = i / (size_t)c;
        v[i] = (float)((double)v[i] * f->scale + f->offset);
        if (s->whole && f->role == ROLE_IN)
            v[i] = rintf(v[i]);
        if (f->zeros && place % 5 == 3)
            v[i] = 0;
        if (f->role == ROLE_OUT || f->role == ROLE_ROOM)
            v[i] = NAN;
    }
    round_to(v, p->count, f->wide ? DT_F32 : s->type);
    memcpy(p->before, v, p->count * sizeof *v);
    s->at_piece++;
    must(s->dev->be->upload(s->dev, &p->whole, p->host, &s->err), &s->err, "upload");
    return &p->t;
}

struct tensor *stage_in(struct stage *s, int n, int h, int w, int c)
{
    return stage_tensor(s, n, h, w, c, &(struct form_of){.role = ROLE_IN, .scale = 1});
}

struct tensor *stage_out(struct stage *s, int n, int h, int w, int c)
{
    return stage_tensor(s, n, h, w, c, &(struct form_of){.role = ROLE_OUT});
}

struct tensor *stage_changed(struct stage *s, int n, int h, int w, int c)
{
    return stage_tensor(s, n, h, w, c, &(struct form_of){.role = ROLE_CHANGED, .scale = 1});
}

float *stage_floats(struct stage *s, const float *host, size_t n)
{
    struct err err;
    void **p = &s->memory[s->at_memory];
    if (s->at_memory++ == s->n_memory) {
        *p = s->dev->be->alloc(s->dev, n * sizeof(float));
        s->n_memory++;
    }
    must(*p ? 0 : err_nomem(&err, n), &err, "memory");
    s->dev->be->store(s->dev, *p, host, n);
    return *p;
}

void *stage_room(struct stage *s, size_t bytes)
{
    size_t n = bytes / sizeof(float) + 1;
    float *nan = room_for(n, sizeof *nan);
    for (size_t i = 0; i < n; i++)
        nan[i] = NAN;
    void *p = stage_floats(s, nan, n);
    free(nan);
    return p;
}

float *stage_values(struct stage *s, size_t n, double scale, int which)
{
    float *v = room_for(n, sizeof *v);
    fill(v, n, s->seed + 15485863 * (uint64_t)(which + 1));
    for (size_t i = 0; i < n; i++)
        v[i] = (float)((double)v[i] * scale);
    return v;
}

/* ---- layers and norms ------------------------------------------------------------------------ */

void kernel_of(struct layer *l, int kernel)
{
    static const struct {
        int k, stride, pad[4];
    } known[KERNELS] = {
        {1, 1, {0}}, {3, 1, {1, 1, 1, 1}}, {3, 2, {1, 1, 1, 1}}, {3, 2, {0, 0, 1, 1}}, {3, 1, {0}},
        {2, 2, {0}}, {5, 1, {2, 2, 2, 2}}, {1, 2, {0}},          {3, 1, {2, 1, 0, 1}},
    };
    l->kh = l->kw = known[kernel].k;
    l->stride = known[kernel].stride;
    memcpy(l->pad, known[kernel].pad, sizeof l->pad);
}

int layer_side(const struct layer *l, int side, bool width)
{
    int room = side + l->pad[width] + l->pad[2 + width] - (width ? l->kw : l->kh);
    return room < 0 ? 0 : room / l->stride + 1;
}

/* n values as a file holds them, at an address that is aligned to nothing. */
static void *stored_as(const float *v, size_t n, enum dtype type)
{
    size_t size = dtype_bits(type) / 8;
    char *p = room_for(n * size + 1, 1), *at = p + 1;
    for (size_t i = 0; i < n; i++) {
        double d = (double)v[i];
        uint16_t h = type == DT_F16 ? f32_to_half(v[i]) : f32_to_bf16(v[i]);
        memcpy(at + i * size,
               type == DT_F64   ? (const void *)&d
               : type == DT_F32 ? (const void *)&v[i]
                                : (const void *)&h,
               size);
    }
    return at;
}

/* Rounded to what is stored, and to what the device computes in. */
static struct array array_like(struct stage *s, size_t n, double scale, int which, enum dtype type)
{
    float *v = stage_values(s, n, s->whole ? 1 : scale, which);
    for (size_t i = 0; i < n && s->whole; i++)
        v[i] = rintf(v[i]);
    if (type == DT_F16 || type == DT_BF16)
        round_to(v, n, type);
    round_to(v, n, s->type);
    struct array a = {.dtype = type, .ndim = 1, .dim = {n}, .data = stored_as(v, n, type)};
    free(v);
    return a;
}

struct layer *stage_layer(struct stage *s, int in, int out, int kernel, bool bias,
                          enum dtype stored)
{
    struct layer *l = s->layer[s->at_layer];
    if (s->at_layer++ < s->n_layer)
        return l;
    l = s->layer[s->n_layer++] = room_for(1, sizeof *l);
    *l = (struct layer){.name = "test", .site = -1, .in = in, .out = out};
    kernel_of(l, kernel);
    size_t inner = (size_t)in * (size_t)(l->kh * l->kw), n = (size_t)out * inner;
    l->w = array_like(s, n, 1 / sqrt((double)inner), 100 + s->n_layer, stored);
    l->w.ndim = 4;
    l->w.dim[0] = (uint64_t)out, l->w.dim[1] = (uint64_t)in;
    l->w.dim[2] = (uint64_t)l->kh, l->w.dim[3] = (uint64_t)l->kw;
    if (bias)
        l->b = array_like(s, (size_t)out, 1, 200 + s->n_layer, stored);
    return l;
}

struct norm *stage_norm(struct stage *s, int c, int groups)
{
    struct norm *g = s->norm[s->at_norm];
    if (s->at_norm++ < s->n_norm)
        return g;
    g = s->norm[s->n_norm++] = room_for(1, sizeof *g);
    float *v = stage_values(s, 2 * (size_t)c, 1, 50 + s->n_norm);
    const struct array gamma = {.dtype = DT_F32, .ndim = 1, .dim = {(uint64_t)c}, .data = v},
                       beta = {.dtype = DT_F32, .ndim = 1, .dim = {(uint64_t)c}, .data = v + c};
    must(norm_init(s->dev, g, "norm", groups, 1e-5f, &gamma, &beta, &s->err), &s->err, "a norm");
    free(v);
    return g;
}

static void release_layer(struct stage *s, struct layer *l)
{
    layer_release(s->dev, l);
    free((char *)l->w.data - 1);
    if (l->b.data)
        free((char *)l->b.data - 1);
    free(l);
}

static void stage_release(struct stage *s)
{
    for (int i = 0; i < s->n_piece; i++) {
        s->dev->be->free(s->dev, s->piece[i].whole.data);
        free(s->piece[i].host);
        free(s->piece[i].before);
    }
    for (int i = 0; i < s->n_memory; i++)
        s->dev->be->free(s->dev, s->memory[i]);
    for (int i = 0; i < s->n_layer; i++)
        release_layer(s, s->layer[i]);
    for (int i = 0; i < s->n_norm; i++) {
        norm_release(s->dev, s->norm[i]);
        free(s->norm[i]);
    }
    memset(s, 0, sizeof *s);
}

/* ---- running --------------------------------------------------------------------------------- */

/* One turn of the op on the stage's device, and all its tensors back on the host. */
static int run_turn(struct stage *s, const struct op *op, const struct spec *c, int turn)
{
    s->turn = turn;
    s->at_piece = s->at_memory = s->at_layer = s->at_norm = 0;
    err_clear(&s->err);
    int rc = op->run(s, c);
    for (int i = 0; i < s->n_piece && rc == 0 && !s->cannot; i++)
        rc = s->dev->be->download(s->dev, s->piece[i].host, &s->piece[i].whole, &s->err);
    return rc;
}

static const char *spec_text(const struct op *op, const struct spec *c, const struct stage *s)
{
    static char buf[200];
    snprintf(buf, sizeof buf, "%s {%d, %d, %d, %d, %d, %d, how %u}%s turn %d", op->name, c->n, c->h,
             c->w, c->c, c->d, c->e, c->how, s->within ? " within rows" : "", s->turn);
    return buf;
}

/* What lies beside a tensor must be what it was. */
static bool is_kept(const struct piece *p)
{
    for (size_t i = 0; i < p->all; i++) {
        float v = p->host[i];
        bool inside = i >= p->from && i < p->from + p->count;
        if (!inside && (p->role == ROLE_IN ? !isnan(v) : v != guard))
            return false;
    }
    return true;
}

static void compare(const struct op *op, const struct spec *c, const struct stage *got,
                    const struct stage *want)
{
    const char *what = spec_text(op, c, got);
    for (int i = 0; i < got->n_piece; i++) {
        const struct piece *p = &got->piece[i];
        const float *v = p->host + p->from;
        enum dtype type = p->t.wide ? DT_F32 : got->type;
        double bound = bound_of(op->bound, type);
        if (type == DT_F32 && got->slack > 0)
            bound *= got->slack;
        if (p->role == ROLE_IN)
            expect_that(!memcmp(v, p->before, p->count * sizeof *v), got->seed,
                        "%s: input %d is what it was", what, i);
        else if (p->role != ROLE_ROOM)
            expect(error_of(v, want->piece[i].host, p->count, op->least), bound, got->seed, "%s%s",
                   what, i ? ", a further tensor" : "");
        expect_that(is_kept(p), got->seed, "%s: what lies beside tensor %d is what it was", what,
                    i);
    }
}

/* The first turn's results, to be met again. */
static float **keep(const struct stage *s)
{
    float **kept = room_for(STAGE_MOST, sizeof *kept);
    for (int i = 0; i < s->n_piece; i++) {
        kept[i] = room_for(s->piece[i].all, sizeof **kept);
        memcpy(kept[i], s->piece[i].host, s->piece[i].all * sizeof **kept);
    }
    return kept;
}

static bool is_same(const struct stage *s, float **kept)
{
    bool same = true;
    for (int i = 0; i < s->n_piece; i++)
        same = same && (s->piece[i].role == ROLE_ROOM ||
                        !memcmp(kept[i], s->piece[i].host, s->piece[i].all * sizeof **kept));
    return same;
}

static void drop(float **kept)
{
    for (int i = 0; i < STAGE_MOST; i++)
        free(kept[i]);
    free(kept);
}

static void run_or_fail(struct stage *s, const struct op *op, const struct spec *c, int turn)
{
    must(run_turn(s, op, c, turn), &s->err, "%s", spec_text(op, c, s));
}

static void check_spec(struct device *dev, enum dtype type, const struct op *op,
                       const struct spec *c, uint64_t seed)
{
    struct stage want = {.dev = device_exact(), .type = type, .seed = seed}, got[2];
    int ways = options.quick ? 1 : 2;
    float **first = NULL;
    for (int k = 0; k < ways; k++)
        got[k] = (struct stage){
            .dev = dev, .type = type, .seed = seed, .within = k || (options.quick && seed % 2)};
    for (int turn = 0; turn < 2; turn++) {
        run_or_fail(&want, op, c, turn);
        for (int k = 0; k < ways; k++) {
            run_or_fail(&got[k], op, c, turn);
            if (got[k].cannot)
                skipped("%s", got[k].cannot);
            else
                compare(op, c, &got[k], &want);
        }
        if (turn == 0)
            first = keep(&got[0]);
    }
    if (!options.quick && !got[0].cannot) {
        run_or_fail(&got[0], op, c, 0);
        expect_that(is_same(&got[0], first), seed, "%s: the same bits again",
                    spec_text(op, c, &got[0]));
    }
    drop(first);
    stage_release(&want);
    for (int k = 0; k < ways; k++)
        stage_release(&got[k]);
}

static struct spec random_spec(const struct op *op, struct random *r)
{
    const struct spec *m = &op->most;
    struct spec c = {.n = random_int(r, 1, m->n),
                     .h = random_int(r, 1, m->h),
                     .w = random_int(r, 1, m->w),
                     .c = random_int(r, 1, random_int(r, 0, 1) ? m->c : (m->c + 3) / 4),
                     .d = random_int(r, 0, m->d),
                     .e = random_int(r, 0, m->e),
                     .how = (unsigned)random_int(r, 0, (int)op->hows - 1)};
    if (random_int(r, 0, 2) == 0) /* widths that whole packs and tiles fit */
        c.c = (c.c + 15) / 16 * 16;
    if (op->fit)
        op->fit(&c);
    return c;
}

void check_op(struct device *dev, enum dtype type, const struct op *op)
{
    int n = options.quick ? op->n_quick : op->n_shape, fuzz = fuzz_count(2, 24);
    uint64_t seed = seed_of(op->name, 0);
    struct random r = {seed};
    for (int i = 0; i < n; i++)
        for (unsigned how = 0; how < op->hows; how++) {
            struct spec c = op->shape[i];
            c.how = how;
            if (options.quick && how && (how + (unsigned)i) % 3) /* a third of them each */
                continue;
            check_spec(dev, type, op, &c, seed + 1000 * (uint64_t)i + how);
        }
    for (int i = 0; i < fuzz && op->most.n; i++) {
        const struct spec c = random_spec(op, &r);
        check_spec(dev, type, op, &c, seed + 1000000 + (uint64_t)i);
    }
}
