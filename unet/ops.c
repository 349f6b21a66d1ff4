#include "ops.h"

#include "bind.h"
#include "gates.h"

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
    struct tensor t = {.dev = r->dev, .n = n, .h = h, .w = w, .c = c};
    assert(n > 0 && h > 0 && w > 0 && c > 0);
    t.block = take(r, tensor_count(&t) * r->dev->value_size, &t.data);
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

/* True where the op is to be computed now. */
static bool live(const struct run *r)
{
    return !r->err.code && !r->measuring;
}

void op_upload(struct run *r, struct tensor *t, const float *host)
{
    if (live(r))
        r->dev->be->upload(r->dev, t, host, &r->err);
}

static void one_layer(struct run *r, struct tensor *y, const struct layer *l,
                      const struct tensor *x, bool accumulate)
{
    assert(x->c == l->in && y->c == l->out && x->n == y->n);
    r->flops += 2.0 * (double)tensor_count(y) * l->in * l->kh * l->kw;
    if (live(r))
        r->dev->be->layer(r->dev, y, l, x, accumulate, &r->err);
    else if (r->preparing && !r->err.code)
        r->dev->be->layer_prepare(r->dev, y, l, x, accumulate, &r->err);
}

/* y += up(s o down(x)), each rank scaled by its adapter's strength; b[0] is the first of the joint's branches. */
static void chain_joined(struct run *r, struct tensor *y, const struct joined *j,
                         const struct branch *b, const struct tensor *x)
{
    unsigned mark = run_mark(r);
    struct tensor t = run_layer_tensor(r, &j->down, x);
    float s[2 * JOINT_MAX];
    bool plain = true;
    for (int k = 0; k < j->n; k++) {
        s[k] = b[j->part[k]].strength;
        plain &= s[k] == 1;
    }
    one_layer(r, &t, &j->down, x, false);
    if (!plain)
        op_scale(r, &t, j->n, j->width, s);
    if (b->route.keep > 0)
        op_route(r, &t, &b->route);
    one_layer(r, y, &j->up, &t, true);
    run_pop(r, mark);
}

/* y += s * up(down(x)), or s * down(x) where there is no up. */
static void chain(struct run *r, struct tensor *y, const struct layer *down, const struct layer *up,
                  const struct tensor *x, double s)
{
    unsigned mark = run_mark(r);
    struct tensor t = run_layer_tensor(r, down, x);
    const struct tensor *src[2] = {&t, y};
    double coef[2] = {s, 1};

    one_layer(r, &t, down, x, false);
    if (up->out) {
        op_lincomb(r, &t, 1, coef, src, 0);
        one_layer(r, y, up, &t, true);
    } else {
        op_lincomb(r, y, 2, coef, src, 0);
    }
    run_pop(r, mark);
}

/* Whether what a branch adds at a site goes through gates there. */
static bool is_gated(const struct run *r, const struct branch *b, int site)
{
    return b->gated && r->gates && r->gates->at[site];
}

/* What the branches in force do at a site, but for those that go through gates: the next bound delta after *b of branch *i, or NULL at the end.
 * Begin with *i = -1. */
static const struct bound *next_bound(const struct run *r, int site, int *i, const struct bound *b)
{
    if (site < 0)
        return NULL;
    if (b && b->next)
        return b->next;
    while (++*i < r->n_branch)
        if (r->branch[*i].adapter->at[site] && r->branch[*i].strength != 0 &&
            !is_gated(r, &r->branch[*i], site))
            return r->branch[*i].adapter->at[site];
    return NULL;
}

/* y += strength * (gain o h + shift) on each branch's rows. */
static void add_gains(struct run *r, struct tensor *y, const struct tensor *h, int site)
{
    int i = -1;
    for (const struct bound *b = next_bound(r, site, &i, NULL); b; b = next_bound(r, site, &i, b)) {
        const struct branch *br = &r->branch[i];
        if (!b->side.gain)
            continue;
        struct tensor ys = tensor_rows(y, br->row0, br->row1 - br->row0);
        struct tensor hs = tensor_rows(h, br->row0, br->row1 - br->row0);
        if (live(r))
            r->dev->be->gain(r->dev, &ys, &hs, br->strength * b->factor, b->side.gain,
                             b->side.shift, &r->err);
    }
}

static bool has_gain(const struct run *r, int site)
{
    int i = -1;
    for (const struct bound *b = next_bound(r, site, &i, NULL); b; b = next_bound(r, site, &i, b))
        if (b->side.gain)
            return true;
    return false;
}

/* The layer itself. Gains need its output h alone: it is made apart. */
static void base_layer(struct run *r, struct tensor *y, const struct layer *l,
                       const struct tensor *x, bool accumulate)
{
    const struct layer *use = l;
    if (r->fold && l->site >= 0 && r->fold->at[l->site])
        use = r->fold->at[l->site];
    if (!has_gain(r, l->site)) {
        one_layer(r, y, use, x, accumulate);
        return;
    }
    unsigned mark = run_mark(r);
    struct tensor h = run_like(r, y);
    one_layer(r, &h, use, x, false);
    if (accumulate)
        op_add(r, y, &h);
    else
        op_copy(r, y, &h);
    add_gains(r, y, &h, l->site);
    run_pop(r, mark);
}

/* y += what a bound delta adds but for its gains. */
static void add_chains(struct run *r, struct tensor *y, const struct bound *b, float strength,
                       const struct tensor *x, bool joined)
{
    double s = (double)strength * b->factor * b->side.scale;
    if (b->side.down.out && !(joined && b->side.up.out))
        chain(r, y, &b->side.down, &b->side.up, x, s);
    if (b->side.up2.out && !joined)
        chain(r, y, &b->side.down2, &b->side.up2, x, s);
}

/* All that one adapter adds at a site. */
static struct tensor whole_part(struct run *r, const struct branch *b, int site,
                                const struct tensor *h, const struct tensor *x)
{
    struct tensor u = run_like(r, h);
    op_affine(r, &u, h, 0, 0);
    for (const struct bound *d = b->adapter->at[site]; d; d = d->next) {
        if (d->side.gain && live(r))
            r->dev->be->gain(r->dev, &u, h, b->strength * d->factor, d->side.gain, d->side.shift,
                             &r->err);
        add_chains(r, &u, d, b->strength, x, false);
    }
    return u;
}

/* What the branches b[0], b[1], ... of a joint's rows add, through the gates: y += h + that, or y += that where y is h. */
static void gate_layer(struct run *r, struct tensor *y, const struct layer *l,
                       const struct tensor *h, const struct branch *b, const struct tensor *x)
{
    const struct joined *j = b->joint->at[l->site];
    struct tensor t, u[GATE_MOST];
    const struct tensor *at[GATE_MOST];
    int width[GATE_MOST], n = 0;
    unsigned mark = run_mark(r);
    struct gating in = {.up = j ? j->turned : NULL,
                        .width = width,
                        .u = at,
                        .gate = r->gates->at[l->site],
                        .wave = r->wave ? r->wave + (size_t)b->row0 * GATE_WAVES : NULL};
    float s[2 * JOINT_MAX];
    for (int i = 0; i < b->joint->n; i++) {
        width[n] = 0;
        at[n] = NULL;
        for (int k = 0; j && k < j->n; k++) {
            s[k] = b[j->part[k]].strength;
            width[n] += j->part[k] == i ? j->width[k] : 0;
        }
        if (!width[n] && b[i].adapter->at[l->site]) {
            u[n] = whole_part(r, &b[i], l->site, h, x);
            at[n] = &u[n];
        }
        n += width[n] || at[n];
    }
    in.n = n;
    if (j) {
        t = run_layer_tensor(r, &j->down, x);
        one_layer(r, &t, &j->down, x, false);
        op_scale(r, &t, j->n, j->width, s);
        in.t = &t;
    }
    op_gate(r, y, h, &in);
    run_pop(r, mark);
}

static bool any_gated(const struct run *r, int site)
{
    bool any = false;
    for (int i = 0; i < r->n_branch && site >= 0 && !any; i++)
        any = is_gated(r, &r->branch[i], site);
    return any;
}

static void add_rows(struct run *r, struct tensor *y, const struct tensor *h, int row0, int row1)
{
    if (row1 <= row0)
        return;
    struct tensor ys = tensor_rows(y, row0, row1 - row0), hs = tensor_rows(h, row0, row1 - row0);
    op_add(r, &ys, &hs);
}

/* base_layer, and what goes through gates. They need the layer's own output h: where that is to be added to y, it is
 * made apart. */
static void gated_layer(struct run *r, struct tensor *y, const struct layer *l,
                        const struct tensor *x, bool accumulate)
{
    unsigned mark = run_mark(r);
    struct tensor h = *y;
    int done = 0;
    if (accumulate)
        h = run_like(r, y);
    base_layer(r, &h, l, x, false);
    for (int i = 0; i < r->n_branch; i++) {
        const struct branch *b = &r->branch[i];
        if (b->part || !is_gated(r, b, l->site))
            continue;
        int n = b->row1 - b->row0;
        struct tensor ys = tensor_rows(y, b->row0, n), hs = tensor_rows(&h, b->row0, n),
                      xs = tensor_rows(x, b->row0, n);
        if (accumulate)
            add_rows(r, y, &h, done, b->row0);
        gate_layer(r, &ys, l, &hs, b, &xs);
        done = b->row1;
    }
    if (accumulate)
        add_rows(r, y, &h, done, y->n);
    run_pop(r, mark);
}

/* What the layer gives on a branch's rows, and what the branch adds to that. */
static void watch_branch(struct run *r, const struct watch *w, const struct layer *l,
                         const struct tensor *x, const struct branch *b)
{
    const struct branch *all = r->branch;
    int n = r->n_branch;
    unsigned mark = run_mark(r);
    struct tensor xs = tensor_rows(x, b->row0, b->row1 - b->row0);
    struct tensor base = run_layer_tensor(r, l, &xs), part = run_like(r, &base);
    const struct branch one = {.adapter = b->adapter, .row1 = xs.n, .strength = b->strength};
    const struct tensor *src[2] = {&part, &base};
    const double minus[2] = {1, -1};
    r->n_branch = 0;
    op_layer(r, &base, l, &xs, false);
    r->branch = &one;
    r->n_branch = 1;
    op_layer(r, &part, l, &xs, false);
    r->branch = all;
    r->n_branch = n;
    op_lincomb(r, &part, 2, minus, src, 0);
    if (live(r))
        w->saw(w->user, r, l, b, &base, &part);
    run_pop(r, mark);
}

static void watch_layer(struct run *r, const struct layer *l, const struct tensor *x)
{
    const struct watch *w = r->watch;
    r->watch = NULL;
    for (int i = 0; i < r->n_branch && l->site >= 0; i++)
        if (r->branch[i].adapter->at[l->site] && r->branch[i].strength != 0)
            watch_branch(r, w, l, x, &r->branch[i]);
    r->watch = w;
}

void op_layer(struct run *r, struct tensor *y, const struct layer *l, const struct tensor *x,
              bool accumulate)
{
    int i = -1;
    if (r->watch)
        watch_layer(r, l, x);
    if (any_gated(r, l->site))
        gated_layer(r, y, l, x, accumulate);
    else
        base_layer(r, y, l, x, accumulate);
    for (const struct bound *b = next_bound(r, l->site, &i, NULL); b;
         b = next_bound(r, l->site, &i, b)) {
        const struct branch *br = &r->branch[i];
        const struct joined *j = br->joint ? br->joint->at[l->site] : NULL;
        struct tensor xs = tensor_rows(x, br->row0, br->row1 - br->row0);
        struct tensor ys = tensor_rows(y, br->row0, br->row1 - br->row0);
        if (j && br->part == j->part[0])
            chain_joined(r, &ys, j, br - br->part, &xs);
        add_chains(r, &ys, b, br->strength, &xs, j && j->has[br->part]);
    }
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

static void one_norm(struct run *r, struct tensor *y, const struct norm *g, const struct tensor *x,
                     const struct tensor *add, enum act act)
{
    if (!live(r))
        return;
    if (g->groups)
        r->dev->be->group_norm(r->dev, y, g, x, add, act, &r->err);
    else
        r->dev->be->layer_norm(r->dev, y, g, x, &r->err);
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
static void norm_layer(struct run *r, struct tensor *y, const struct norm *g,
                       const struct tensor *x, const struct tensor *add, enum act act)
{
    int i = -1;
    if (r->fold && g->site >= 0 && r->fold->norm[g->site])
        g = r->fold->norm[g->site];
    if (!next_bound(r, g->site, &i, NULL)) {
        one_norm(r, y, g, x, add, act);
        return;
    }
    void *device = NULL;
    size_t c = (size_t)g->c;
    unsigned id = take(r, 2 * c * sizeof(float), &device);
    float *v = norm_room(r, 2 * c);
    for (int row = 0; row < x->n && live(r); row++) {
        struct tensor ys = tensor_rows(y, row, 1), xs = tensor_rows(x, row, 1);
        struct tensor as = add ? tensor_rows(add, row, 1) : (struct tensor){0};
        struct norm own = *g;
        if (row_norm(r, g, row, v, v + c)) {
            own.gamma = device;
            own.beta = own.gamma + c;
            r->dev->be->store(r->dev, own.gamma, v, 2 * c);
        }
        one_norm(r, &ys, &own, &xs, add ? &as : NULL, act);
    }
    arena_drop(&r->plan, id);
}

void op_group_norm(struct run *r, struct tensor *y, const struct norm *g, const struct tensor *x,
                   const struct tensor *add, enum act act)
{
    assert(tensor_same_shape(x, y) && x->c == g->c && g->groups > 0);
    assert(!add || (add->n == x->n && add->c == x->c && add->h * add->w == 1));
    norm_layer(r, y, g, x, add, act);
}

void op_layer_norm(struct run *r, struct tensor *y, const struct norm *g, const struct tensor *x)
{
    assert(tensor_same_shape(x, y) && x->c == g->c && g->groups == 0);
    norm_layer(r, y, g, x, NULL, ACT_NONE);
}

void op_attention(struct run *r, struct tensor *o, const struct tensor *q, const struct tensor *k,
                  const struct tensor *v, const struct attention *a)
{
    assert(tensor_same_shape(o, q) && tensor_same_shape(k, v) && q->c == k->c && q->n == k->n);
    assert(q->c % a->heads == 0);
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
    if (live(r))
        r->dev->be->activate(r->dev, y, x, act, &r->err);
}

void op_geglu(struct run *r, struct tensor *y, const struct tensor *x)
{
    assert(x->c == 2 * y->c && x->n == y->n && x->h == y->h && x->w == y->w);
    if (live(r))
        r->dev->be->geglu(r->dev, y, x, &r->err);
}

void op_lincomb(struct run *r, struct tensor *y, int n, const double *coef,
                const struct tensor *const *x, double clamp)
{
    for (int i = 0; i < n; i++)
        assert(tensor_same_shape(y, x[i]));
    if (live(r))
        r->dev->be->lincomb(r->dev, y, n, coef, x, clamp, &r->err);
}

void op_affine(struct run *r, struct tensor *y, const struct tensor *x, double a, double b)
{
    assert(tensor_same_shape(y, x));
    if (live(r))
        r->dev->be->affine(r->dev, y, x, a, b, &r->err);
}

void op_scale(struct run *r, struct tensor *y, int n, const int *width, const float *s)
{
    int c = 0;
    for (int i = 0; i < n; i++)
        c += width[i];
    assert(c == y->c);
    (void)c;
    if (live(r))
        r->dev->be->scale(r->dev, y, n, width, s, &r->err);
}

void op_route(struct run *r, struct tensor *t, const struct route *how)
{
    assert(how->keep > 0 && how->keep <= 1 && how->tau > 0);
    if (live(r))
        r->dev->be->route(r->dev, t, how, &r->err);
}

void op_gate(struct run *r, struct tensor *y, const struct tensor *h, const struct gating *in)
{
    assert(tensor_same_shape(y, h) && in->n <= GATE_MOST);
    r->flops += 2.0 * (double)tensor_count(y) * (in->t ? in->t->c : 0);
    if (live(r))
        r->dev->be->gate(r->dev, y, h, in, &r->err);
}

void op_copy(struct run *r, struct tensor *y, const struct tensor *x)
{
    double one = 1;
    op_lincomb(r, y, 1, &one, &x, 0);
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
    if (live(r))
        r->dev->be->concat(r->dev, y, a, b, &r->err);
}

void op_upsample(struct run *r, struct tensor *y, const struct tensor *x)
{
    assert(y->n == x->n && y->c == x->c);
    if (live(r))
        r->dev->be->upsample(r->dev, y, x, &r->err);
}
