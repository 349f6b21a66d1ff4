/* Layers, and what adapters do beside them: sums, joints, routing, gates. Read op_layer first. */
#include "mask.h"
#include "ops_branches.h"
#include "tape.h"

#include <assert.h>
#include <math.h>

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

/* Where a layer's rows are places: the mask at its result's size. */
static const float *places_of(struct run *r, struct mask *m, const struct layer *l,
                              const struct tensor *t)
{
    return m && !l->placeless ? mask_at(m, t->h, t->w, r->measuring, &r->err) : NULL;
}

/* w of a branch at a layer. */
static const float *words_at(struct run *r, const struct branch *b, const struct layer *l,
                             const struct tensor *t)
{
    struct mask *m = b->kinds & route_kind(l->name) ? b->routed[route_level(l->name)] : NULL;
    return places_of(r, m ? m : b->words, l, t);
}

bool is_whole(const struct run *r, const struct branch *b, const struct layer *l)
{
    return !b || (!(b->mask && !l->placeless) && !is_shared(r, b, l->site));
}

/* How much of it comes in at one of its rows, by its mask and by gates that are a number a place. */
static struct share share_of(struct run *r, const struct branch *b, const struct layer *l,
                             const struct tensor *t, int row)
{
    struct share p = {.width = t->c, .s = 1, .at = places_of(r, b->mask, l, t)};
    if (!is_shared(r, b, l->site))
        return p;
    const float *wave = r->wave ? r->wave + (size_t)(b->row0 + row) * GATE_WAVES : NULL;
    float z[2];
    p.s = gates_line(r->gates, l->site, l->out, wave, z);
    p.gate = !p.at;
    p.bias = z[0];
    p.words = z[1];
    if (p.at) /* it has its place, and no words */
        p.s /= 1 + expf(-z[0]);
    else
        p.at = words_at(r, b, l, t);
    return p;
}

/* The rows that are scaled alike: all, or one by one, since gates follow each row's time. */
static int step_of(const struct run *r, const struct branch *b, const struct layer *l,
                   const struct tensor *t)
{
    return is_shared(r, b, l->site) ? 1 : t->n;
}

void op_share(struct run *r, struct tensor *t, const struct branch *b, const struct layer *l)
{
    for (int row = 0, n; row < t->n && !is_whole(r, b, l); row += n) {
        n = step_of(r, b, l, t);
        struct tensor rows = tensor_rows(t, row, n);
        const struct share p = share_of(r, b, l, t, row);
        op_scale(r, &rows, 1, &p);
    }
}

void op_shares(struct run *r, struct tensor *t, const struct joined *j, const struct branch *b,
               const struct layer *l)
{
    struct share p[2 * JOINT_MAX];
    bool all = true;
    for (int k = 0; k < j->n; k++)
        all = all && b[j->part[k]].strength == 1 && is_whole(r, &b[j->part[k]], l);
    for (int row = 0, n; row < t->n && !all; row += n) {
        n = step_of(r, b, l, t);
        struct tensor rows = tensor_rows(t, row, n);
        for (int k = 0; k < j->n; k++) {
            p[k] = share_of(r, &b[j->part[k]], l, t, row);
            p[k].width = j->width[k];
            p[k].s *= b[j->part[k]].strength;
        }
        op_scale(r, &rows, j->n, p);
    }
}

/* y += up(s o down(x)), each rank by its adapter's strength and share; b[0] is the first of the joint's branches. */
static void chain_joined(struct run *r, struct tensor *y, const struct layer *l,
                         const struct joined *j, const struct branch *b, const struct tensor *x)
{
    unsigned mark = run_mark(r);
    struct tensor t = run_layer_tensor(r, &j->down, x);
    one_layer(r, &t, &j->down, x, false);
    op_shares(r, &t, j, b, l);
    if (b->route.keep > 0)
        op_route(r, &t, &b->route);
    one_layer(r, y, &j->up, &t, true);
    run_pop(r, mark);
}

/* y += s * up(down(x)), or s * down(x) where there is no up; of which as much comes in as of the branch (NULL: all). */
static void chain(struct run *r, struct tensor *y, const struct layer *down, const struct layer *up,
                  const struct tensor *x, double s, const struct branch *of, const struct layer *l)
{
    unsigned mark = run_mark(r);
    struct tensor t = run_layer_tensor(r, down, x);
    const struct tensor *src[2] = {&t, y};
    double coef[2] = {s, 1};

    one_layer(r, &t, down, x, false);
    op_share(r, &t, of, l);
    if (up->out) {
        op_lincomb(r, &t, 1, coef, src, 0);
        one_layer(r, y, up, &t, true);
    } else {
        op_lincomb(r, y, 2, coef, src, 0);
    }
    run_pop(r, mark);
}

static bool is_product(const struct layer *l)
{
    return l->out && l->kh * l->kw == 1 && l->stride == 1;
}

/* Shares of parts of chains that run at once. */
struct share_room {
    struct share at[512];
    int n;
};

/* A joint's products at a layer as one chain, with the shares of its parts; b[0] is the first of its branches. False: they
 * are more than that. */
static bool joint_chain(struct run *r, const struct branch *b, const struct joined *j,
                        const struct layer *l, struct chain *c, struct share_room *room)
{
    int n = b->joint->n, rows = is_shared(r, b, l->site) ? c->x.n : 1;
    bool all = is_product(&j->down) && is_product(&j->up);
    for (int k = 0; k < n && all; k++) {
        const struct bound *d = acts(r, &b[k], l->site);
        all = !d || (j->has[k] && d->side.up.out && !d->next);
    }
    if (!all || room->n + rows * j->n > (int)(sizeof room->at / sizeof *room->at))
        return false;
    c->down = &j->down;
    c->up = &j->up;
    c->s = 1;
    c->t = run_layer_tensor(r, c->down, &c->x);
    c->part = &room->at[room->n];
    c->n_part = j->n;
    c->alike = rows == 1;
    c->route = b->route.keep > 0 ? &b->route : NULL;
    for (int row = 0; row < rows; row++)
        for (int k = 0; k < j->n; k++) {
            struct share *p = &room->at[room->n++];
            *p = share_of(r, &b[j->part[k]], l, &c->t, row);
            p->width = j->width[k];
            p->s *= b[j->part[k]].strength;
        }
    return true;
}

/* What the i-th branch, or the joint that it begins, does at a layer as one chain. Returns the branch behind; i: that is more
 * than a chain, or than this backend's; c->down NULL: it is nothing. */
static int as_chain(struct run *r, int i, const struct tensor *y, const struct layer *l,
                    const struct tensor *x, struct chain *c, struct share_room *room)
{
    const struct branch *br = &r->branch[i];
    const struct joined *j = br->joint ? br->joint->at[l->site] : NULL;
    const struct bound *b = acts(r, br, l->site);
    int rows = br->row1 - br->row0;
    bool all = r->dev->be->chains_all;
    *c = (struct chain){.x = tensor_rows(x, br->row0, rows), .y = tensor_rows(y, br->row0, rows)};
    if (all && j && !br->part && !is_gated(r, br, l->site))
        return acts(r, &br[j->part[0]], l->site) && joint_chain(r, br, j, l, c, room)
                   ? i + br->joint->n
                   : i;
    if (!b)
        return i + 1;
    if (j || (!all && (br->joint || !is_whole(r, br, l))) || b->next ||
        !is_product(&b->side.down) || !is_product(&b->side.up) || b->side.up2.out ||
        room->n + rows > (int)(sizeof room->at / sizeof *room->at))
        return i;
    c->down = &b->side.down;
    c->up = &b->side.up;
    c->s = (double)br->strength * b->factor * b->side.scale;
    c->t = run_layer_tensor(r, c->down, &c->x);
    if (is_whole(r, br, l))
        return i + 1;
    c->part = &room->at[room->n];
    c->n_part = 1;
    c->alike = step_of(r, br, l, &c->t) != 1;
    for (int row = 0; row < (c->alike ? 1 : rows); row++)
        room->at[room->n++] = share_of(r, br, l, &c->t, row);
    return i + 1;
}

/* Whether the n-th chain, of rows from row0 on, goes with those before it, whose rows end with row1. */
static bool goes_with(const struct run *r, const struct chain *c, int n, int row0, int row1)
{
    bool same = false;
    for (int k = 0; k < n && !r->dev->be->chains_all; k++)
        same = same || c[k].down == c[n].down;
    return row0 >= row1 && !same;
}

/* Chains of branches from the i-th on, on rows that none shares: *n of them, and the branch behind the last. */
static int gather(struct run *r, int i, const struct tensor *y, const struct layer *l,
                  const struct tensor *x, struct chain *c, struct share_room *room, int *n)
{
    int row1 = 0;
    *n = room->n = 0;
    while (i < r->n_branch && *n < CHAINS_MOST) {
        const struct branch *br = &r->branch[i];
        int behind = as_chain(r, i, y, l, x, &c[*n], room);
        bool is = c[*n].down != NULL;
        if (behind == i || (is && !goes_with(r, c, *n, br->row0, row1)))
            break;
        row1 = is ? br->row1 : row1;
        *n += is;
        i = behind;
    }
    return i;
}

/* All of them at once where the backend can, which is what a batch of many adapters needs (S-LoRA, Sheng et al. 2023). */
static void run_chains(struct run *r, struct chain *c, int n)
{
    const struct backend *be = r->dev->be;
    if (be->chains && !r->err.code && (!r->measuring || r->preparing)) {
        be->chains(r->dev, c, n, r->preparing, &r->err);
    } else {
        for (int i = 0; i < n; i++) {
            const struct tensor *t = &c[i].t;
            one_layer(r, &c[i].t, c[i].down, &c[i].x, false);
            op_lincomb(r, &c[i].t, 1, &c[i].s, &t, 0);
            one_layer(r, &c[i].y, c[i].up, &c[i].t, true);
        }
    }
}

/* y += strength * (gain o h + shift), of which as much comes in as of the branch (NULL: all). */
static void add_gain(struct run *r, struct tensor *y, const struct tensor *h, const struct bound *b,
                     float strength, const struct branch *of, const struct layer *l)
{
    unsigned mark = run_mark(r);
    struct tensor u = *y;
    if (!b->side.gain)
        return;
    bool whole = is_whole(r, of, l);
    if (!whole) {
        u = run_like(r, y);
        op_affine(r, &u, h, 0, 0);
    }
    if (live(r))
        r->dev->be->gain(r->dev, &u, h, strength * b->factor, b->side.gain, b->side.shift, &r->err);
    op_share(r, &u, of, l);
    if (!whole)
        op_add(r, y, &u);
    run_pop(r, mark);
}

static void add_gains(struct run *r, struct tensor *y, const struct tensor *h,
                      const struct layer *l)
{
    int i = -1;
    for (const struct bound *b = next_bound(r, l->site, &i, NULL); b;
         b = next_bound(r, l->site, &i, b)) {
        const struct branch *br = &r->branch[i];
        struct tensor ys = tensor_rows(y, br->row0, br->row1 - br->row0);
        struct tensor hs = tensor_rows(h, br->row0, br->row1 - br->row0);
        add_gain(r, &ys, &hs, b, br->strength, br, l);
    }
}

bool has_gain(const struct run *r, int site)
{
    int i = -1;
    for (const struct bound *b = next_bound(r, site, &i, NULL); b; b = next_bound(r, site, &i, b))
        if (b->side.gain)
            return true;
    return false;
}

/* The layer itself. Gains need its output h alone: it is made apart. */
void base_layer(struct run *r, struct tensor *y, const struct layer *l, const struct tensor *x,
                bool accumulate)
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
    add_gains(r, y, &h, l);
    run_pop(r, mark);
}

/* y += what a bound delta adds but for its gains. */
static void add_chains(struct run *r, struct tensor *y, const struct bound *b, float strength,
                       const struct tensor *x, bool joined, const struct branch *of,
                       const struct layer *l)
{
    double s = (double)strength * b->factor * b->side.scale;
    if (b->side.down.out && !(joined && b->side.up.out))
        chain(r, y, &b->side.down, &b->side.up, x, s, of, l);
    if (b->side.up2.out && !joined)
        chain(r, y, &b->side.down2, &b->side.up2, x, s, of, l);
}

/* All that one adapter adds at a site. */
static struct tensor whole_part(struct run *r, const struct branch *b, const struct layer *l,
                                const struct tensor *h, const struct tensor *x)
{
    struct tensor u = run_like(r, h);
    op_affine(r, &u, h, 0, 0);
    for (const struct bound *d = b->adapter->at[l->site]; d; d = d->next) {
        add_gain(r, &u, h, d, b->strength, NULL, l);
        add_chains(r, &u, d, b->strength, x, false, NULL, l);
    }
    op_share(r, &u, b, l);
    return u;
}

struct gating gating_of(struct run *r, const struct layer *l, const struct tensor *h,
                        const struct branch *b, const struct tensor *x, struct tensor *t,
                        struct tensor *u, struct gating_room *room)
{
    const struct joined *j = b->joint->at[l->site];
    struct gating in = {.n = b->joint->n,
                        .up = j ? j->turned : NULL,
                        .width = room->width,
                        .u = room->at,
                        .words = room->words,
                        .gate = r->gates->at[l->site],
                        .wave = r->wave ? r->wave + (size_t)b->row0 * GATE_WAVES : NULL};
    for (int i = 0; i < in.n; i++) {
        room->width[i] = 0;
        room->at[i] = NULL;
        room->words[i] = words_at(r, &b[i], l, h);
        for (int k = 0; j && k < j->n; k++)
            room->width[i] += j->part[k] == i ? j->width[k] : 0;
        if (!room->width[i] && b[i].adapter->at[l->site]) {
            u[i] = whole_part(r, &b[i], l, h, x);
            room->at[i] = &u[i];
        }
    }
    if (j) {
        *t = run_layer_tensor(r, &j->down, x);
        one_layer(r, t, &j->down, x, false);
        op_shares(r, t, j, b, l);
        in.t = t;
    }
    return in;
}

/* What the branches b[0], b[1], ... of a joint's rows add, through the gates: y += h + that, or y += that where y is h. */
static void gate_layer(struct run *r, struct tensor *y, const struct layer *l,
                       const struct tensor *h, const struct branch *b, const struct tensor *x)
{
    struct tensor t, u[GATE_MOST];
    struct gating_room room;
    unsigned mark = run_mark(r);
    const struct gating in = gating_of(r, l, h, b, x, &t, u, &room);
    if (r->gate_watch && live(r))
        r->gate_watch->saw(r->gate_watch->user, r, l, b, h, &in);
    op_gate(r, y, h, &in);
    run_pop(r, mark);
}

/* Tells of gates that are no more than shares: widths say who acts, what they add is not made. */
static void watch_shares(struct run *r, const struct layer *l, const struct tensor *y)
{
    for (int i = 0; i < r->n_branch && live(r); i++) {
        const struct branch *b = &r->branch[i];
        const struct tensor *none[GATE_MOST] = {NULL},
                            h = tensor_rows(y, b->row0, b->row1 - b->row0);
        const float *words[GATE_MOST];
        int width[GATE_MOST];
        const struct gating in = {.n = b->joint ? b->joint->n : 0,
                                  .width = width,
                                  .u = none,
                                  .words = words,
                                  .gate = r->gates->at[l->site],
                                  .wave = r->wave + (size_t)b->row0 * GATE_WAVES};
        if (b->part || !is_shared(r, b, l->site))
            continue;
        for (int k = 0; k < in.n; k++) {
            width[k] = b[k].adapter->at[l->site] != NULL;
            words[k] = words_at(r, &b[k], l, &h);
        }
        r->gate_watch->saw(r->gate_watch->user, r, l, b, &h, &in);
    }
}

bool any_gated(const struct run *r, int site)
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

/* What the i-th branch adds; returns the next. Branches of other adapters behind it may be taken along. */
static int add_branch(struct run *r, int i, struct tensor *y, const struct layer *l,
                      const struct tensor *x)
{
    struct chain c[CHAINS_MOST];
    struct share_room room;
    bool all = r->dev->be->chains_all;
    unsigned mark = run_mark(r);
    int n, behind = gather(r, i, y, l, x, c, &room, &n);
    if (n > (all ? 0 : 1))
        run_chains(r, c, n);
    run_pop(r, mark);
    if (behind > i && (all || n > 1))
        return behind;
    const struct branch *br = &r->branch[i];
    const struct joined *j = br->joint ? br->joint->at[l->site] : NULL;
    struct tensor xs = tensor_rows(x, br->row0, br->row1 - br->row0);
    struct tensor ys = tensor_rows(y, br->row0, br->row1 - br->row0);
    for (const struct bound *b = acts(r, br, l->site); b; b = b->next) {
        if (j && br->part == j->part[0])
            chain_joined(r, &ys, l, j, br - br->part, &xs);
        add_chains(r, &ys, b, br->strength, &xs, j && j->has[br->part], br, l);
    }
    return i + 1;
}

void op_layer(struct run *r, struct tensor *y, const struct layer *l, const struct tensor *x,
              bool accumulate)
{
    struct tape *tape = r->tape;
    const struct step s = {
        .kind = STEP_LAYER,
        .y = *y,
        .x = {*x},
        .n = 1,
        .more = accumulate,
        .keeps = tape && any_gated(r, l->site), /* gates look at what the layer makes of it */
        .what = l};
    tape_note(r, &s);
    r->tape = NULL; /* what follows is part of the one step */
    if (r->watch)
        watch_layer(r, l, x);
    if (any_gated(r, l->site))
        gated_layer(r, y, l, x, accumulate);
    else
        base_layer(r, y, l, x, accumulate);
    if (r->gate_watch && l->site >= 0)
        watch_shares(r, l, y);
    for (int i = 0; i < r->n_branch;)
        i = add_branch(r, i, y, l, x);
    r->tape = tape;
}
