#include "tape.h"

#include "ops_branches.h"

#include <stdlib.h>
#include <string.h>

/* What is known of a tensor, by its block. */
struct seen {
    bool wanted;        /* it depends on what is wanted */
    int kept;           /* by so many steps */
    struct tensor back; /* its gradient so far; c 0: none */
};

struct tape {
    struct run *r;
    struct step *step;
    int n, cap;
    struct seen *seen; /* by block */
    unsigned n_seen;
};

int tape_new(struct tape **out, struct err *err)
{
    *out = calloc(1, sizeof **out);
    return *out ? 0 : err_nomem(err, sizeof **out);
}

void tape_free(struct tape *t)
{
    if (!t)
        return;
    free(t->step);
    free(t->seen);
    free(t);
}

void tape_begin(struct tape *t, struct run *r)
{
    t->r = r;
    t->n = 0;
    if (t->seen)
        memset(t->seen, 0, t->n_seen * sizeof *t->seen);
    r->tape = t;
}

/* NULL only for want of memory. */
static struct seen *seen_of(struct tape *t, unsigned block)
{
    if (block >= t->n_seen) {
        unsigned n = block + block / 2 + 64;
        struct seen *more = realloc(t->seen, n * sizeof *more);
        if (!more) {
            err_nomem(&t->r->err, n * sizeof *more);
            return NULL;
        }
        memset(more + t->n_seen, 0, (n - t->n_seen) * sizeof *more);
        t->seen = more;
        t->n_seen = n;
    }
    return &t->seen[block];
}

static bool is_wanted(const struct tape *t, const struct tensor *x)
{
    return x->block < t->n_seen && t->seen[x->block].wanted;
}

void tape_want(struct tape *t, const struct tensor *x)
{
    struct seen *s = seen_of(t, x->block);
    if (s)
        s->wanted = true;
}

/* ---- keeping --------------------------------------------------------------------------------- */

static void keep(struct tape *t, const struct tensor *x)
{
    struct seen *s = seen_of(t, x->block);
    if (!s)
        return;
    s->kept++;
    arena_hold(&t->r->plan, x->block);
}

static void let(struct tape *t, const struct tensor *x)
{
    t->seen[x->block].kept--;
    arena_let(&t->r->plan, x->block);
}

/* y is about to be overwritten: whoever kept it keeps a copy. */
static void save(struct tape *t, const struct tensor *y)
{
    struct run *r = t->r;
    if (y->block >= t->n_seen || !t->seen[y->block].kept)
        return;
    struct tensor old = *y, copy = run_like(r, y);
    r->tape = NULL;
    op_copy(r, &copy, &old);
    r->tape = t;
    for (int i = 0; i < t->n && !r->err.code; i++)
        for (int k = 0; k < t->step[i].n && t->step[i].keeps; k++)
            if (t->step[i].x[k].block == old.block) {
                keep(t, &copy);
                let(t, &old);
                t->step[i].x[k] = copy;
            }
    run_drop(r, &copy); /* the steps hold it */
}

static struct step *next_step(struct tape *t)
{
    if (t->n == t->cap) {
        int cap = t->cap ? 2 * t->cap : 256;
        struct step *more = realloc(t->step, (size_t)cap * sizeof *more);
        if (!more) {
            err_nomem(&t->r->err, (size_t)cap * sizeof *more);
            return NULL;
        }
        t->step = more;
        t->cap = cap;
    }
    return &t->step[t->n];
}

void tape_note(struct run *r, const struct step *s)
{
    struct tape *t = r->tape;
    unsigned needs = 0;
    if (!t || r->err.code)
        return;
    bool same = false;
    for (int i = 0; i < s->n; i++) {
        needs |= is_wanted(t, &s->x[i]) ? 1u << i : 0;
        same |= s->x[i].block == s->y.block;
    }
    struct step *to = needs ? next_step(t) : NULL;
    if (to) {
        *to = *s;
        for (int i = 0; i < s->n; i++)
            to->of[i] = s->x[i].block;
        to->needs = needs;
        to->same = same;
        to->branch = r->branch;
        to->n_branch = r->n_branch;
        t->n++;
        for (int i = 0; i < s->n && s->keeps; i++)
            keep(t, &s->x[i]);
    }
    save(t, &s->y);
    struct seen *y = seen_of(t, s->y.block);
    if (y)
        y->wanted = needs || (s->more && y->wanted);
}

void tape_refuse(struct run *r, const struct tensor *x, const char *what)
{
    if (r->tape && is_wanted(r->tape, x) && !r->err.code)
        err_set(&r->err, ERR_UNSUPPORTED, "there are no gradients through %s", what);
}

/* ---- the way back ---------------------------------------------------------------------------- */

void tape_seed(struct tape *t, const struct tensor *y, const float *dy)
{
    struct seen *s = seen_of(t, y->block);
    if (!s || !s->wanted || t->r->err.code)
        return;
    struct tensor g = run_like(t->r, y);
    t->r->tape = NULL; /* from here on nothing is noted */
    op_upload(t->r, &g, dy);
    if (s->back.c) { /* some came before */
        op_add(t->r, &s->back, &g);
        run_drop(t->r, &g);
    } else {
        s->back = g;
    }
}

/* Where what comes back to a tensor like x goes, whose block was that, which is wanted; *add: some is there. */
static struct tensor *into(struct tape *t, const struct tensor *x, unsigned block, bool *add)
{
    struct tensor *back = &t->seen[block].back;
    *add = back->c != 0;
    if (!*add)
        *back = run_like(t->r, x);
    return back;
}

static void *scratch_of(struct run *r, size_t bytes, struct tensor *room)
{
    *room = (struct tensor){0};
    if (!bytes)
        return NULL;
    *room = run_tensor(r, 1, 1, 1, (int)((bytes + r->dev->value_size - 1) / r->dev->value_size));
    return room->data;
}

/* Counted as 5 products where the attention itself has 2. */
static void attention_back(struct tape *t, const struct step *s, const struct tensor *dy)
{
    struct run *r = t->r;
    const struct backend *be = r->dev->be;
    struct tensor to[3], *d[3] = {NULL}, room;
    bool add[3] = {false};
    for (int i = 0; i < 3; i++)
        if (s->needs >> i & 1) {
            to[i] = *into(t, &s->x[i], s->of[i], &add[i]);
            d[i] = &to[i];
        }
    double one = 2.0 * s->x[0].n * s->x[0].h * s->x[0].w * s->x[1].h * s->x[1].w * s->x[0].c;
    r->flops += one * (2 + (d[0] != NULL) + (d[1] != NULL) + (d[2] != NULL));
    void *p = scratch_of(r, be->attention_back_scratch(r->dev, &s->x[0], &s->x[1], &s->how), &room);
    if (live(r))
        be->attention_back(r->dev, d, add, &s->x[0], &s->x[1], &s->x[2], &s->how, dy, p, &r->err);
    if (room.c)
        run_drop(r, &room);
}

/* y = sum of coef x: also where y is among them, whose gradient then stays where it is. */
static void sum_back(struct tape *t, const struct step *s, struct tensor *dy)
{
    double self = 0;
    for (int i = 0; i < s->n; i++) {
        bool add;
        if (s->of[i] == s->y.block)
            self += s->coef[i];
        if (s->of[i] == s->y.block || !(s->needs >> i & 1))
            continue;
        struct tensor *to = into(t, &s->x[i], s->of[i], &add);
        const struct tensor *src[2] = {dy, to};
        const double coef[2] = {s->coef[i], 1};
        op_lincomb(t->r, to, add ? 2 : 1, coef, src, 0);
    }
    const struct tensor *src[1] = {dy};
    if (self != 0 && self != 1)
        op_lincomb(t->r, dy, 1, &self, src, 0);
}

static void concat_back(struct tape *t, const struct step *s, const struct tensor *dy)
{
    struct tensor to[2], *d[2] = {NULL};
    bool add[2] = {false};
    for (int i = 0; i < 2; i++)
        if (s->needs >> i & 1) {
            to[i] = *into(t, &s->x[i], s->of[i], &add[i]);
            d[i] = &to[i];
        }
    if (live(t->r))
        t->r->dev->be->concat_back(t->r->dev, d[0], add[0], d[1], add[1], dy, &t->r->err);
}

/* Steps of one input. */
static void one_back(struct tape *t, const struct step *s, struct tensor *dx,
                     const struct tensor *dy, bool add)
{
    struct run *r = t->r;
    const struct backend *be = r->dev->be;
    if (s->kind == STEP_LAYER) {
        layer_back(r, dx, s->what, &s->x[0], dy, add);
        return;
    }
    if (s->kind == STEP_GROUP_NORM || s->kind == STEP_LAYER_NORM) {
        norm_back(r, dx, s->what, &s->x[0], s->n > 1 ? &s->x[1] : NULL, s->act, dy, add);
        return;
    }
    if (s->kind == STEP_SCALE) {
        struct tensor same = *dx; /* dy, in place */
        op_scale(r, &same, 1, &s->share);
        return;
    }
    if (!live(r))
        return;
    if (s->kind == STEP_ACTIVATE)
        be->activate_back(r->dev, dx, &s->x[0], s->act, dy, add, &r->err);
    else if (s->kind == STEP_GEGLU)
        be->geglu_back(r->dev, dx, &s->x[0], dy, add, &r->err);
    else
        be->upsample_back(r->dev, dx, dy, add, &r->err);
}

static void step_back(struct tape *t, const struct step *s)
{
    struct tensor dy = t->seen[s->y.block].back;
    bool add = false;
    if (!dy.c)
        return;
    if (s->kind == STEP_ATTENTION) {
        attention_back(t, s, &dy);
    } else if (s->kind == STEP_SUM) {
        sum_back(t, s, &dy);
    } else if (s->kind == STEP_CONCAT) {
        concat_back(t, s, &dy);
    } else {
        struct tensor *dx = s->same ? &dy : into(t, &s->x[0], s->of[0], &add);
        one_back(t, s, dx, &dy, add);
    }
    if (s->same || s->more)
        return;
    run_drop(t->r, &dy);
    t->seen[s->y.block].back = (struct tensor){0};
}

struct tensor tape_back(struct tape *t, const struct tensor *x)
{
    struct run *r = t->r;
    bool add = false;
    const struct branch *branch = r->branch;
    int n_branch = r->n_branch;
    r->tape = NULL;
    for (int i = t->n - 1; i >= 0 && !r->err.code; i--) {
        struct step *s = &t->step[i];
        r->branch = s->branch;
        r->n_branch = s->n_branch;
        step_back(t, s);
        for (int k = 0; k < s->n && s->keeps; k++)
            let(t, &s->x[k]);
    }
    r->branch = branch;
    r->n_branch = n_branch;
    if (!is_wanted(t, x)) /* there was no memory to want it */
        return (struct tensor){0};
    struct tensor *dx = into(t, x, x->block, &add);
    float *zero = add ? NULL : calloc(tensor_count(x) + 1, sizeof *zero);
    if (!add && !zero)
        err_nomem(&r->err, tensor_count(x) * sizeof *zero);
    else if (!add)
        op_upload(r, dx, zero);
    free(zero);
    return *dx;
}
