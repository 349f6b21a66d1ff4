#include "batch.h"

#include "areas.h"
#include "gatemap.h"
#include "influence.h"
#include "maps.h"
#include "refine.h"

#include "unet/bind.h"
#include "unet/gates.h"
#include "unet/tape.h"

#include <stdlib.h>
#include <string.h>

int batch_room(struct batch *b, int rows, int n_layer, struct err *err)
{
    free(b->todo);
    free(b->layer);
    b->todo = calloc((size_t)rows + 1, sizeof *b->todo);
    b->layer = calloc((size_t)n_layer, sizeof *b->layer);
    return b->todo && b->layer ? 0 : err_nomem(err, (size_t)rows * sizeof *b->todo);
}

void batch_drop(struct batch *b, const struct adapter *a)
{
    int n = 0;
    for (int i = 0; i < b->n_joint; i++) {
        bool has = false;
        for (int k = 0; k < b->joint[i]->n; k++)
            has = has || b->joint[i]->adapter[k] == a;
        if (has)
            joint_free(b->joint[i]);
        else
            b->joint[n++] = b->joint[i];
    }
    b->n_joint = n;
    n = 0;
    for (int i = 0; i < b->n_common; i++) {
        bool has = false;
        for (int k = 0; k < b->common[i].n; k++)
            has = has || b->common[i].of[k] == a;
        if (has)
            adapter_free(b->common[i].a);
        else
            b->common[n++] = b->common[i];
    }
    b->n_common = n;
}

void batch_release(struct batch *b)
{
    for (int i = 0; i < b->n_joint; i++)
        joint_free(b->joint[i]);
    for (int i = 0; i < b->n_common; i++)
        adapter_free(b->common[i].a);
    free(b->joint);
    free(b->common);
    free(b->todo);
    free(b->layer);
    b->joint = NULL;
    b->n_joint = 0;
    b->common = NULL;
    b->n_common = 0;
    b->todo = NULL;
    b->layer = NULL;
}

/* ---- which rows ------------------------------------------------------------------------------ */

static const struct pass *pass_of(const struct place *p)
{
    return &p->turn->a->pass[p->pass];
}

static bool is_short(const struct place *p)
{
    return pass_of(p)->deep == DEEP_REUSE;
}

/* Whether two rows run the same layers on the same shapes. */
static bool together(const struct place *a, const struct place *b)
{
    const struct conditions *c = a->turn->of->cond, *d = b->turn->of->cond;
    bool apart = pass_of(a)->regions || pass_of(b)->regions; /* regions are one picture's */
    return is_short(a) == is_short(b) && (!apart || (a->turn == b->turn && a->pass == b->pass)) &&
           tensor_same_shape(a->turn->x, b->turn->x) &&
           c->n_chunk * c->length == d->n_chunk * d->length && c->n_layer == d->n_layer;
}

static void all_rows(struct batch *b, struct turn *turn, int n)
{
    b->n_todo = 0;
    for (int i = 0; i < n; i++)
        for (int pass = 0; pass < turn[i].a->n_pass; pass++)
            for (int row = 0; row < turn[i].of->cond->n_row; row++)
                if (passes_run(turn[i].of, &turn[i].a->pass[pass], row))
                    b->todo[b->n_todo++] = (struct place){&turn[i], pass, row};
}

/* The next rows that go together, into b->at: whole passes first, since short ones may need what they keep.
 * 0: no more. */
static int next_rows(struct batch *b)
{
    int first = 0, n = 0, rest = 0;
    if (!b->n_todo)
        return 0;
    while (first < b->n_todo && is_short(&b->todo[first]))
        first++;
    struct place key = b->todo[first < b->n_todo ? first : 0];
    for (int i = 0; i < b->n_todo; i++) {
        if (n < BATCH_ROWS && together(&key, &b->todo[i]))
            b->at[n++] = b->todo[i];
        else
            b->todo[rest++] = b->todo[i];
    }
    b->n_todo = rest;
    return n;
}

/* ---- adapters -------------------------------------------------------------------------------- */

/* Whether a pass looks where words are attended to, and whether adapters act there. */
static bool is_looking(const struct pass *q)
{
    return q->attend.sharp > 0 && q->attend.when != ATTEND_FOUND;
}

static bool is_masked(const struct pass *q)
{
    return q->attend.sharp > 0 && q->attend.when != ATTEND_LOOK;
}

static bool is_common_of(const struct common *c, const struct branch *b, int n, int rank)
{
    bool same = c->n == n && c->rank == rank;
    for (int i = 0; i < n && same; i++)
        same = c->of[i] == b[i].adapter && c->strength[i] == b[i].strength;
    return same;
}

/* What the n branches have in common: made the first time, which is while measuring. NULL after an error. */
static const struct adapter *common_of(struct batch *b, const struct branch *branch, int n,
                                       int rank)
{
    for (int i = 0; i < b->n_common; i++)
        if (is_common_of(&b->common[i], branch, n, rank))
            return b->common[i].a;
    struct common *more = realloc(b->common, (size_t)(b->n_common + 1) * sizeof *more), *c;
    if (!more) {
        err_nomem(&b->run->err, sizeof *more);
        return NULL;
    }
    b->common = more;
    c = &more[b->n_common];
    *c = (struct common){.n = n, .rank = rank};
    for (int i = 0; i < n; i++) {
        c->of[i] = branch[i].adapter;
        c->strength[i] = branch[i].strength;
    }
    if (b->run->err.code || adapter_common(&c->a, &b->m->sites, COMPONENT_UNET, n, c->of,
                                           c->strength, rank, &b->run->err) < 0)
        return NULL;
    b->n_common++;
    return c->a;
}

/* The adapters of one row of the batch as branches; how many there are. */
static int row_branches(struct batch *b, int row, struct branch *to)
{
    const struct turn *t = b->at[row].turn;
    const struct pass *q = pass_of(&b->at[row]);
    enum half half = passes_half(t->of, b->at[row].row);
    int n = 0;
    for (int i = q->act0; i < q->act0 + q->n_act; i++) {
        const struct pass_act *act = &t->a->act[i];
        const struct use *u = &t->of->p->use[act->adapter];
        float strength = (float)(u->unet * act->w[half]);
        if (strength == 0 || (q->regions == REGIONS_CROSS && t->of->areas &&
                              areas_of(t->of->areas, act->adapter) >= 0))
            continue;
        to[n] = (struct branch){.adapter = u->adapter,
                                .row0 = row,
                                .row1 = row + 1,
                                .strength = strength,
                                .part = n,
                                .route = q->route,
                                .gated = q->gated};
        if (t->of->maps) {
            to[n].mask = maps_mask(t->of->maps, act->adapter, is_masked(q));
            to[n].words = q->gated ? maps_words(t->of->maps, act->adapter) : NULL;
            to[n].kinds = q->attend.kinds;
            for (int k = 0; k < ROUTE_LEVELS; k++)
                to[n].routed[k] = maps_routed(t->of->maps, act->adapter, (enum route_level)k);
        }
        n++;
    }
    const struct adapter *common =
        q->common.rank && n > 1 && n < JOINT_MAX ? common_of(b, to, n, q->common.rank) : NULL;
    if (common) {
        to[n] = (struct branch){.adapter = common,
                                .row0 = row,
                                .row1 = row + 1,
                                .strength = q->common.s,
                                .part = n,
                                .gated = q->gated};
        n++;
    }
    return n;
}

static bool same_route(const struct route *a, const struct route *b)
{
    return a->tau == b->tau && a->keep == b->keep && a->least == b->least;
}

static bool same_branches(const struct branch *a, const struct branch *b, int n)
{
    bool same = true;
    for (int i = 0; i < n && same; i++)
        same = a[i].adapter == b[i].adapter && a[i].strength == b[i].strength &&
               same_route(&a[i].route, &b[i].route) && a[i].gated == b[i].gated &&
               a[i].mask == b[i].mask && a[i].words == b[i].words && a[i].kinds == b[i].kinds;
    return same;
}

static enum joint_for purpose(const struct branch *b)
{
    return b->gated ? JOINT_GATE : b->route.keep > 0 ? JOINT_ROUTE : JOINT_SUM;
}

static bool is_of(const struct joint *j, const struct branch *b, int n)
{
    bool same = j->n == n && j->what == purpose(b);
    for (int i = 0; i < n && same; i++)
        same = j->adapter[i] == b[i].adapter;
    return same;
}

/* The adapters of a set as one: made the first time, which is while measuring. */
static const struct joint *joint_of(struct batch *b, const struct branch *branch, int n)
{
    const struct adapter *adapter[COMPOSE_MAX_ADAPTERS];
    for (int i = 0; i < b->n_joint; i++)
        if (is_of(b->joint[i], branch, n))
            return b->joint[i];
    if (b->run->err.code)
        return NULL;
    struct joint **more = realloc(b->joint, (size_t)(b->n_joint + 1) * sizeof *more);
    if (!more) {
        err_nomem(&b->run->err, sizeof *more);
        return NULL;
    }
    b->joint = more;
    for (int i = 0; i < n; i++)
        adapter[i] = branch[i].adapter;
    if (joint_new(&more[b->n_joint], &b->m->sites, COMPONENT_UNET, n, adapter, purpose(branch),
                  &b->run->err) < 0)
        return NULL;
    return more[b->n_joint++];
}

/* Neighbours whose adapters are the same share their branches. How a row is computed depends on its own adapters
 * alone, never on who stands beside it. */
static void set_branches(struct batch *b, int n)
{
    struct run *r = b->run;
    struct branch *last = b->branch, *next = b->branch; /* of the rows before; of this one */
    int n_last = 0;
    r->fold = b->fold;
    r->branch = b->branch;
    for (int i = 0; i < n && !b->fold; i++) {
        int k = row_branches(b, i, next);
        if (k > 0 && k == n_last && same_branches(last, next, k)) {
            for (int p = 0; p < k; p++)
                last[p].row1++;
            continue;
        }
        for (int p = 0; p < k && (k > 1 || next->gated); p++)
            next[p].joint = joint_of(b, next, k);
        last = next;
        n_last = k;
        next += k;
    }
    r->n_branch = (int)(next - b->branch);
}

/* A branch's rows to the receipts of their pictures. */
static void saw(void *user, struct run *r, const struct layer *l, const struct branch *br,
                const struct tensor *base, const struct tensor *part)
{
    struct batch *b = user;
    for (int i = br->row0; i < br->row1 && !r->err.code; i++) {
        const struct turn *t = b->at[i].turn;
        if (t->of->p->influence && passes_half(t->of, b->at[i].row) == HALF_COND)
            influence_add(t->of->p->influence, br->adapter, t->step, l, base, part, i - br->row0,
                          &r->err);
    }
}

/* What goes through the gates of some rows to the maps of their pictures. */
static void saw_gates(void *user, struct run *r, const struct layer *l, const struct branch *br,
                      const struct tensor *h, const struct gating *in)
{
    struct batch *b = user;
    for (int i = br->row0; i < br->row1 && !r->err.code; i++) {
        const struct turn *t = b->at[i].turn;
        if (t->of->p->gatemap && passes_half(t->of, b->at[i].row) == HALF_COND)
            gatemap_add(t->of->p->gatemap, r, l, br, h, in, i - br->row0, t->step, &r->err);
    }
}

/* What the rows of a cross attention attend to, to the maps of their pictures. */
static void saw_maps(void *user, struct run *r, int cross, int region, const struct tensor *q,
                     const struct tensor *k, const struct attention *how)
{
    struct batch *b = user;
    (void)region;
    for (int i = 0; i < q->n && !r->err.code; i++) {
        const struct turn *t = b->at[i].turn;
        if (is_looking(pass_of(&b->at[i])) && passes_half(t->of, b->at[i].row) == HALF_COND)
            maps_add(t->of->maps, r, cross, q, k, how, i,
                     conditions_at(t->of->cond, b->at[i].row, t->step), &r->err);
    }
}

static void set_watch(struct batch *b, int n)
{
    b->run->watch = NULL;
    b->run->gate_watch = NULL;
    b->run->map_watch = NULL;
    b->watch = (struct watch){saw, b};
    b->gate_watch = (struct gate_watch){saw_gates, b};
    b->map_watch = (struct map_watch){.saw = saw_maps, .user = b};
    for (int i = 0; i < n; i++) {
        if (b->at[i].turn->of->p->influence)
            b->run->watch = &b->watch;
        if (b->at[i].turn->of->p->gatemap)
            b->run->gate_watch = &b->gate_watch;
        if (is_looking(pass_of(&b->at[i])))
            b->run->map_watch = &b->map_watch;
    }
}

/* ---- running --------------------------------------------------------------------------------- */

/* Latents and texts of n rows, side by side. */
static struct tensor bring(struct batch *b, int n)
{
    const struct turn *t = b->at[0].turn;
    const struct conditions *c = t->of->cond;
    struct run *r = b->run;
    struct tensor x = run_tensor(r, n, t->x->h, t->x->w, t->x->c);
    for (int k = 0; k < c->n_layer; k++)
        b->layer[k] = run_tensor(r, n, c->n_chunk * c->length, 1, b->m->text->tower.width);
    for (int i = 0; i < n; i++) {
        const struct place *p = &b->at[i];
        const struct tensor *text =
            passes_text(p->turn->of, p->turn->a, p->pass, p->row, p->turn->step);
        struct tensor to = tensor_rows(&x, i, 1);
        op_affine(r, &to, p->turn->x, p->turn->in_scale, 0);
        for (int k = 0; k < c->n_layer; k++) {
            struct tensor from = tensor_rows(text, k, 1);
            to = tensor_rows(&b->layer[k], i, 1);
            op_copy(r, &to, &from);
        }
    }
    return x;
}

/* Runs the n rows of b->at. look: for what they attend to, or NULL. */
static struct tensor run_rows(struct batch *b, int n, struct look *look)
{
    struct tensor x = bring(b, n);
    const struct unet_text text = {b->layer, b->at[0].turn->of->cond->n_layer};
    const struct unet_deep deep = {.row = b->deep, .reuse = is_short(&b->at[0])};
    for (int i = 0; i < n; i++) {
        const struct passes *of = b->at[i].turn->of;
        const struct pass *q = pass_of(&b->at[i]);
        memset(&b->deep[i], 0, sizeof b->deep[i]);
        if (q->deep != DEEP_PLAIN)
            b->deep[i] = of->deep[q->slot * of->cond->n_row + b->at[i].row];
        b->t[i] = b->at[i].turn->t;
        gate_waves(b->t[i], b->wave[i]);
        b->run->gates = of->p->gates ? of->p->gates : b->run->gates;
    }
    b->run->wave = b->wave[0];
    set_branches(b, n);
    b->run->regions = NULL;
    if (pass_of(&b->at[0])->regions && b->at[0].turn->of->areas->n)
        areas_rows(b->at[0].turn->of->areas, b->run, b->at, n);
    set_watch(b, look ? 0 : n);
    if (look) {
        b->run->map_watch = &look->watch;
        look->x = x;
    }
    if (look && look->tape) {
        tape_begin(look->tape, b->run);
        tape_want(look->tape, &x);
    }
    return unet_forward(b->m->unet, b->run, &x, b->t, &text, look ? NULL : &deep);
}

void turn_move(struct run *r, struct turn *t, const struct tensor *dx, double rate)
{
    struct tensor x = *t->x;
    for (int i = 0; i < dx->n; i++) {
        struct tensor row = tensor_rows(dx, i, 1);
        const struct tensor *src[2] = {&x, &row};
        const double coef[2] = {1, -rate / t->in_scale};
        op_lincomb(r, &x, 2, coef, src, 0);
    }
}

void batch_look(struct batch *b, const struct place *at, int n, struct look *l)
{
    memcpy(b->at, at, (size_t)n * sizeof *at);
    run_rows(b, n, l);
}

/* Passes of an action that run in a half and have parts. */
static int parts_in(const struct passes *of, const struct action *a, int row)
{
    int n = 0;
    for (int i = 0; i < a->n_pass; i++)
        n += a->pass[i].placed && passes_run(of, &a->pass[i], row);
    return n;
}

/* A placed row's output counts in its part of the picture, where several have parts: so often more there. */
static void take_part(struct run *r, const struct turn *t, const struct place *p,
                      struct tensor *row)
{
    const struct pass *q = pass_of(p);
    int parts = q->placed ? parts_in(t->of, t->a, p->row) : 0;
    if (parts < 2)
        return;
    struct mask *m = refine_part(t->of->refine, q->owner);
    const struct share share = {
        .width = row->c, .s = (float)parts, .at = mask_at(m, row->h, row->w, false, &r->err)};
    op_scale(r, row, 1, &share);
}

int batch_measure(struct batch *b, struct turn *turn, int n, bool prepare, size_t *peak,
                  double *flops, struct err *err)
{
    int rc = 0;
    all_rows(b, turn, n);
    for (int k; rc == 0 && (k = next_rows(b)) > 0;) {
        run_begin(b->run, prepare);
        run_rows(b, k, NULL);
        *peak = b->run->plan.peak > *peak ? b->run->plan.peak : *peak;
        *flops += b->run->flops;
        rc = run_check(b->run, err);
    }
    run_bare(b->run);
    return rc;
}

int batch_predict(struct batch *b, struct turn *turn, int n, struct err *err)
{
    int rc = 0;
    all_rows(b, turn, n);
    for (int k; rc == 0 && (k = next_rows(b)) > 0;) {
        run_reset(b->run);
        struct tensor y = run_rows(b, k, NULL);
        for (int i = 0; i < k; i++) {
            struct turn *t = b->at[i].turn;
            struct tensor row = tensor_rows(&y, i, 1);
            take_part(b->run, t, &b->at[i], &row);
            const struct tensor *src[2] = {&row, t->mix};
            double coef[2] = {passes_weight(t->of, t->a, b->at[i].pass, b->at[i].row), 1};
            op_lincomb(b->run, t->mix, t->begun ? 2 : 1, coef, src, 0);
            t->begun = true;
        }
        rc = run_check(b->run, err);
    }
    for (int i = 0; i < n && rc == 0; i++)
        for (int k = 0; k < turn[i].a->n_pass; k++)
            if (is_looking(&turn[i].a->pass[k]))
                maps_turn(turn[i].of->maps, &turn[i].a->pass[k].attend);
    run_bare(b->run);
    return rc;
}
