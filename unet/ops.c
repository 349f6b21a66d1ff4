#include "ops_branches.h"
#include "tape.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

void run_init(struct run *r, struct device *dev)
{
    memset(r, 0, sizeof *r);
    r->dev = dev;
}

void run_measure(struct run *r)
{
    run_reset(r);
    r->measuring = true;
    r->preparing = false;
    r->plan.peak = 0;
    r->flops = 0;
}

void run_prepare(struct run *r)
{
    run_measure(r);
    r->preparing = true;
}

void run_begin(struct run *r, bool prepare)
{
    if (prepare)
        run_prepare(r);
    else
        run_measure(r);
}

void run_bare(struct run *r)
{
    r->fold = NULL;
    r->watch = NULL;
    r->gate_watch = NULL;
    r->map_watch = NULL;
    r->regions = NULL;
    r->gates = NULL;
    r->branch = NULL;
    r->n_branch = 0;
}

int run_commit(struct run *r, struct err *err)
{
    int rc = run_check(r, err);
    return rc < 0 ? rc : run_reserve(r, r->plan.peak, err);
}

int run_reserve(struct run *r, size_t bytes, struct err *err)
{
    r->measuring = r->preparing = false;
    arena_clear(&r->plan);
    if (bytes <= r->size)
        return 0;
    r->dev->be->free(r->dev, r->memory);
    r->size = 0;
    r->memory = r->dev->be->alloc(r->dev, bytes);
    if (!r->memory)
        return err_nomem(err, bytes);
    r->size = bytes;
    return 0;
}

void run_reset(struct run *r)
{
    arena_clear(&r->plan);
    err_clear(&r->err);
    r->tape = NULL;
}

int run_check(const struct run *r, struct err *err)
{
    if (r->err.code && err)
        *err = r->err;
    return r->err.code;
}

void run_release(struct run *r)
{
    if (r->dev)
        r->dev->be->free(r->dev, r->memory);
    arena_release(&r->plan);
    free(r->norm);
    memset(r, 0, sizeof *r);
}

/* Room in the arena; *p is NULL while measuring and after an error. */
static unsigned take(struct run *r, size_t bytes, void **p)
{
    size_t at = 0;

    *p = NULL;
    if (r->err.code)
        return 0;
    unsigned id = arena_take(&r->plan, bytes, &at);
    if (!id)
        err_nomem(&r->err, bytes);
    else if (!r->measuring && at + bytes > r->size)
        err_set(&r->err, ERR_NOMEM, "the run needs more memory than was measured: %zu of %zu bytes",
                at + bytes, r->size);
    else if (!r->measuring)
        *p = r->memory + at;
    return id;
}

struct tensor run_tensor(struct run *r, int n, int h, int w, int c)
{
    struct tensor t = {.dev = r->dev, .n = n, .h = h, .w = w, .c = c, .wide = r->wide};
    assert(n > 0 && h > 0 && w > 0 && c > 0);
    t.block = take(r, tensor_count(&t) * tensor_value_size(&t), &t.data);
    return t;
}

struct tensor run_like(struct run *r, const struct tensor *t)
{
    return run_tensor(r, t->n, t->h, t->w, t->c);
}

struct tensor run_layer_tensor(struct run *r, const struct layer *l, const struct tensor *x)
{
    int h = (x->h + l->pad[0] + l->pad[2] - l->kh) / l->stride + 1;
    int w = (x->w + l->pad[1] + l->pad[3] - l->kw) / l->stride + 1;
    return run_tensor(r, x->n, h, w, l->out);
}

unsigned run_mark(const struct run *r)
{
    return arena_mark(&r->plan);
}

void run_pop(struct run *r, unsigned mark)
{
    arena_pop(&r->plan, mark);
}

void run_drop(struct run *r, const struct tensor *t)
{
    arena_drop(&r->plan, t->block);
}

void run_replace(struct run *r, struct tensor *t, struct tensor next)
{
    run_drop(r, t);
    *t = next;
}

void op_upload(struct run *r, struct tensor *t, const float *host)
{
    if (live(r))
        r->dev->be->upload(r->dev, t, host, &r->err);
}

/* ---- norms ----------------------------------------------------------------------------------- */

/* gamma and beta as the branches make them for one row; false: as they are. */
static bool row_norm(struct run *r, const struct norm *g, int row, float *gamma, float *beta)
{
    bool any = false;
    int i = -1;
    for (const struct bound *b = next_bound(r, g->site, &i, NULL); b;
         b = next_bound(r, g->site, &i, b)) {
        const struct branch *br = &r->branch[i];
        if (row < br->row0 || row >= br->row1)
            continue;
        if (!any)
            norm_values(g, gamma, beta);
        any = true;
        norm_add(gamma, beta, g->c, b, br->strength);
    }
    return any;
}

/* A norm of x + more, or with dy the way back: y becomes, or with `add` larger by, what comes of dy. */
struct norm_call {
    const struct norm *g;
    const struct tensor *x, *more, *dy;
    enum act act;
    bool add;
};

static void one_norm(struct run *r, struct tensor *y, const struct norm_call *c)
{
    const struct backend *be = r->dev->be;
    if (!live(r))
        return;
    if (c->dy && c->g->groups)
        be->group_norm_back(r->dev, y, c->g, c->x, c->more, c->act, c->dy, c->add, &r->err);
    else if (c->dy)
        be->layer_norm_back(r->dev, y, c->g, c->x, c->dy, c->add, &r->err);
    else if (c->g->groups)
        be->group_norm(r->dev, y, c->g, c->x, c->more, c->act, &r->err);
    else
        be->layer_norm(r->dev, y, c->g, c->x, &r->err);
}

static float *norm_room(struct run *r, size_t n)
{
    if (n > r->n_norm) {
        float *p = realloc(r->norm, n * sizeof *p);
        if (!p) {
            err_nomem(&r->err, n * sizeof *p);
            return NULL;
        }
        r->norm = p;
        r->n_norm = n;
    }
    return r->norm;
}

/* A norm that adapters change runs row by row, each row with its own gamma and beta. */
static void norm_layer(struct run *r, struct tensor *y, struct norm_call all)
{
    int i = -1;
    if (r->fold && all.g->site >= 0 && r->fold->norm[all.g->site])
        all.g = r->fold->norm[all.g->site];
    if (!next_bound(r, all.g->site, &i, NULL)) {
        one_norm(r, y, &all);
        return;
    }
    void *device = NULL;
    size_t c = (size_t)all.g->c;
    unsigned id = take(r, 2 * c * sizeof(float), &device);
    float *v = norm_room(r, 2 * c);
    for (int row = 0; row < y->n && live(r); row++) {
        struct tensor ys = tensor_rows(y, row, 1), xs = tensor_rows(all.x, row, 1), more, dy;
        struct norm own = *all.g;
        struct norm_call one = all;
        one.g = &own;
        one.x = &xs;
        if (all.more) {
            more = tensor_rows(all.more, row, 1);
            one.more = &more;
        }
        if (all.dy) {
            dy = tensor_rows(all.dy, row, 1);
            one.dy = &dy;
        }
        if (row_norm(r, all.g, row, v, v + c)) {
            own.gamma = device;
            own.beta = own.gamma + c;
            r->dev->be->store(r->dev, own.gamma, v, 2 * c);
        }
        one_norm(r, &ys, &one);
    }
    arena_drop(&r->plan, id);
}

void op_group_norm(struct run *r, struct tensor *y, const struct norm *g, const struct tensor *x,
                   const struct tensor *add, enum act act)
{
    assert(tensor_same_shape(x, y) && x->c == g->c && g->groups > 0);
    assert(!add || (add->n == x->n && add->c == x->c && add->h * add->w == 1));
    struct step s = {.kind = STEP_GROUP_NORM, .y = *y, .x = {*x}, .n = 1, .keeps = true};
    s.what = g;
    s.act = act;
    if (add) {
        tape_refuse(r, add, "what a norm is given besides");
        s.x[s.n++] = *add;
    }
    tape_note(r, &s);
    norm_layer(r, y, (struct norm_call){.g = g, .x = x, .more = add, .act = act});
}

void op_layer_norm(struct run *r, struct tensor *y, const struct norm *g, const struct tensor *x)
{
    assert(tensor_same_shape(x, y) && x->c == g->c && g->groups == 0);
    const struct step s = {
        .kind = STEP_LAYER_NORM, .y = *y, .x = {*x}, .n = 1, .keeps = true, .what = g};
    tape_note(r, &s);
    norm_layer(r, y, (struct norm_call){.g = g, .x = x});
}

void norm_back(struct run *r, struct tensor *dx, const struct norm *g, const struct tensor *x,
               const struct tensor *more, enum act act, const struct tensor *dy, bool add)
{
    norm_layer(r, dx,
               (struct norm_call){.g = g, .x = x, .more = more, .dy = dy, .act = act, .add = add});
}

void op_attention(struct run *r, struct tensor *o, const struct tensor *q, const struct tensor *k,
                  const struct tensor *v, const struct attention *a)
{
    assert(tensor_same_shape(o, q) && tensor_same_shape(k, v) && q->c == k->c && q->n == k->n);
    assert(q->c % a->heads == 0);
    const struct step s = {
        .kind = STEP_ATTENTION, .y = *o, .x = {*q, *k, *v}, .n = 3, .keeps = true, .how = *a};
    tape_note(r, &s);
    double lq = (double)q->h * q->w, lk = (double)k->h * k->w;
    r->flops += 4.0 * q->n * lq * lk * q->c;
    void *scratch = NULL;
    unsigned id = take(r, r->dev->be->attention_scratch(r->dev, q, k, a), &scratch);
    if (live(r))
        r->dev->be->attention(r->dev, o, q, k, v, a, scratch, &r->err);
    arena_drop(&r->plan, id);
}

void op_activate(struct run *r, struct tensor *y, const struct tensor *x, enum act act)
{
    assert(tensor_same_shape(x, y));
    const struct step s = {
        .kind = STEP_ACTIVATE, .y = *y, .x = {*x}, .n = 1, .keeps = true, .act = act};
    tape_note(r, &s);
    if (live(r))
        r->dev->be->activate(r->dev, y, x, act, &r->err);
}

void op_geglu(struct run *r, struct tensor *y, const struct tensor *x)
{
    assert(x->c == 2 * y->c && x->n == y->n && x->h == y->h && x->w == y->w);
    const struct step s = {.kind = STEP_GEGLU, .y = *y, .x = {*x}, .n = 1, .keeps = true};
    tape_note(r, &s);
    if (live(r))
        r->dev->be->geglu(r->dev, y, x, &r->err);
}

void op_lincomb(struct run *r, struct tensor *y, int n, const double *coef,
                const struct tensor *const *x, double clamp)
{
    struct step s = {.kind = STEP_SUM, .y = *y};
    for (int i = 0; i < n; i++) {
        assert(tensor_same_shape(y, x[i]));
        if (clamp > 0 || i >= STEP_MOST) {
            tape_refuse(r, x[i], "such a sum");
            continue;
        }
        s.coef[s.n] = coef[i];
        s.x[s.n++] = *x[i];
    }
    tape_note(r, &s);
    if (live(r))
        r->dev->be->lincomb(r->dev, y, n, coef, x, clamp, &r->err);
}

void op_affine(struct run *r, struct tensor *y, const struct tensor *x, double a, double b)
{
    assert(tensor_same_shape(y, x));
    const struct step s = {.kind = STEP_SUM, .y = *y, .x = {*x}, .n = 1, .coef = {a}};
    tape_note(r, &s);
    if (live(r))
        r->dev->be->affine(r->dev, y, x, a, b, &r->err);
}

void op_scale(struct run *r, struct tensor *y, int n, const struct share *part)
{
    const struct share none = {0};
    int c = 0;
    for (int i = 0; i < n; i++)
        c += part[i].width;
    assert(c == y->c);
    (void)c;
    if (n > 1)
        tape_refuse(r, y, "parts that are scaled apart");
    const struct step s = {
        .kind = STEP_SCALE, .y = *y, .x = {*y}, .n = 1, .share = n ? part[0] : none};
    tape_note(r, &s);
    if (live(r))
        r->dev->be->scale(r->dev, y, n, part, &r->err);
}

void op_route(struct run *r, struct tensor *t, const struct route *how)
{
    assert(how->keep > 0 && how->keep <= 1 && how->tau > 0);
    tape_refuse(r, t, "routes");
    if (live(r))
        r->dev->be->route(r->dev, t, how, &r->err);
}

void op_gate(struct run *r, struct tensor *y, const struct tensor *h, const struct gating *in)
{
    assert(tensor_same_shape(y, h) && in->n <= GATE_MOST);
    r->flops += 2.0 * (double)tensor_count(y) * (in->t ? in->t->c : 0);
    tape_refuse(r, h, "gates");
    if (live(r))
        r->dev->be->gate(r->dev, y, h, in, &r->err);
}

void op_copy(struct run *r, struct tensor *y, const struct tensor *x)
{
    const double one[1] = {1};
    op_lincomb(r, y, 1, one, &x, 0);
}

void op_add(struct run *r, struct tensor *y, const struct tensor *x)
{
    double one[2] = {1, 1};
    const struct tensor *src[2] = {y, x};
    op_lincomb(r, y, 2, one, src, 0);
}

void op_concat(struct run *r, struct tensor *y, const struct tensor *a, const struct tensor *b)
{
    assert(y->c == a->c + b->c && a->h == b->h && a->w == b->w && a->n == b->n && y->n == a->n);
    const struct step s = {.kind = STEP_CONCAT, .y = *y, .x = {*a, *b}, .n = 2};
    tape_note(r, &s);
    if (live(r))
        r->dev->be->concat(r->dev, y, a, b, &r->err);
}

void op_upsample(struct run *r, struct tensor *y, const struct tensor *x)
{
    assert(y->n == x->n && y->c == x->c);
    const struct step s = {.kind = STEP_UPSAMPLE, .y = *y, .x = {*x}, .n = 1};
    tape_note(r, &s);
    if (live(r))
        r->dev->be->upsample(r->dev, y, x, &r->err);
}
