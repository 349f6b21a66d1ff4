/* The way back through a layer: that of ops_layer.c, with each weight turned over, in any order. Read layer_back first. */
#include "ops_branches.h"
#include "tape.h"

/* dx = or += W^T dy */
static void one_back(struct run *r, struct tensor *dx, const struct layer *l,
                     const struct tensor *dy, bool add)
{
    const struct backend *be = r->dev->be;
    size_t bytes = be->layer_back_scratch(l, dx, dy), value = r->dev->value_size;
    struct tensor room = {0};
    if (bytes)
        room = run_tensor(r, 1, 1, 1, (int)((bytes + value - 1) / value));
    r->flops += 2.0 * (double)tensor_count(dy) * l->in * l->kh * l->kw;
    if (live(r))
        be->layer_back(r->dev, dx, l, dy, add, room.data, &r->err);
    else if (r->preparing && !r->err.code)
        be->layer_back_prepare(r->dev, dx, l, dy, add, &r->err);
    if (bytes)
        run_drop(r, &room);
}

/* Through up, then down: dx += s down^T (share o up^T dy). */
static void chain_back(struct run *r, struct tensor *dx, const struct layer *down,
                       const struct layer *up, const struct tensor *dy, double s,
                       const struct branch *of, const struct layer *l)
{
    unsigned mark = run_mark(r);
    struct tensor t = run_tensor(r, dy->n, dy->h, dy->w, down->out);
    const struct tensor *src[1] = {up->out ? &t : dy};
    if (up->out)
        one_back(r, &t, up, dy, false);
    op_lincomb(r, &t, 1, &s, src, 0);
    op_share(r, &t, of, l);
    one_back(r, dx, down, &t, true);
    run_pop(r, mark);
}

static void joined_back(struct run *r, struct tensor *dx, const struct layer *l,
                        const struct joined *j, const struct branch *b, const struct tensor *dy)
{
    unsigned mark = run_mark(r);
    struct tensor t = run_tensor(r, dy->n, dy->h, dy->w, j->up.in);
    one_back(r, &t, &j->up, dy, false);
    op_shares(r, &t, j, b, l);
    one_back(r, dx, &j->down, &t, true);
    run_pop(r, mark);
}

/* y is h and what gains make of it: dh = dy + share o s gain o dy. */
static void gains_back(struct run *r, struct tensor *dh, const struct tensor *dy,
                       const struct layer *l)
{
    int i = -1;
    op_copy(r, dh, dy);
    for (const struct bound *b = next_bound(r, l->site, &i, NULL); b;
         b = next_bound(r, l->site, &i, b)) {
        const struct branch *br = &r->branch[i];
        if (!b->side.gain)
            continue;
        unsigned mark = run_mark(r);
        struct tensor to = tensor_rows(dh, br->row0, br->row1 - br->row0),
                      from = tensor_rows(dy, br->row0, br->row1 - br->row0), u = run_like(r, &from);
        op_affine(r, &u, &from, 0, 0);
        if (live(r))
            r->dev->be->gain(r->dev, &u, &from, (double)br->strength * (double)b->factor,
                             b->side.gain, NULL, &r->err);
        op_share(r, &u, br, l);
        op_add(r, &to, &u);
        run_pop(r, mark);
    }
}

static void refuse(struct run *r, const struct layer *l, const char *what)
{
    if (!r->err.code)
        err_set(&r->err, ERR_UNSUPPORTED, "%s: there are no gradients through %s", l->name, what);
}

static bool any_routed(const struct run *r, int site)
{
    bool any = false;
    for (int i = 0; i < r->n_branch && site >= 0; i++)
        any |= r->branch[i].adapter->at[site] && r->branch[i].route.keep > 0;
    return any;
}

/* What comes back through the gates of some rows: dh += that, dx += what comes down of their adapters. */
static void gates_back(struct run *r, struct tensor *dx, struct tensor *dh, const struct layer *l,
                       const struct branch *b, const struct tensor *x, const struct tensor *h,
                       const struct tensor *dy)
{
    struct tensor t, u[GATE_MOST];
    struct gating_room room;
    unsigned mark = run_mark(r);
    const struct joined *j = b->joint->at[l->site];
    const struct gating in = gating_of(r, l, h, b, x, &t, u, &room);
    for (int i = 0; i < in.n; i++)
        if (in.u[i])
            refuse(r, l, "gates of what is no product");
    if (j) {
        struct tensor dt = run_like(r, &t);
        if (live(r))
            r->dev->be->gate_back(r->dev, dh, &dt, h, &in, dy, &r->err);
        op_shares(r, &dt, j, b, l);
        one_back(r, dx, &j->down, &dt, true);
    }
    run_pop(r, mark);
}

/* A layer with gates: its own output is made again, which they look at. */
static void gated_back(struct run *r, struct tensor *dx, const struct layer *l,
                       const struct layer *use, const struct tensor *x, const struct tensor *dy,
                       bool add)
{
    unsigned mark = run_mark(r);
    struct tensor h = run_like(r, dy), dh = run_like(r, dy), down = run_like(r, dx);
    if (has_gain(r, l->site))
        refuse(r, l, "gates beside gains");
    base_layer(r, &h, l, x, false);
    op_copy(r, &dh, dy);
    op_affine(r, &down, x, 0, 0);
    for (int i = 0; i < r->n_branch; i++) {
        const struct branch *b = &r->branch[i];
        if (b->part || !is_gated(r, b, l->site))
            continue;
        int n = b->row1 - b->row0;
        struct tensor xs = tensor_rows(x, b->row0, n), hs = tensor_rows(&h, b->row0, n),
                      dhs = tensor_rows(&dh, b->row0, n), dys = tensor_rows(dy, b->row0, n),
                      dxs = tensor_rows(&down, b->row0, n);
        gates_back(r, &dxs, &dhs, l, b, &xs, &hs, &dys);
    }
    one_back(r, dx, use, &dh, add);
    op_add(r, dx, &down);
    run_pop(r, mark);
}

void layer_back(struct run *r, struct tensor *dx, const struct layer *l, const struct tensor *x,
                const struct tensor *dy, bool add)
{
    const struct layer *use =
        r->fold && l->site >= 0 && r->fold->at[l->site] ? r->fold->at[l->site] : l;
    unsigned mark = run_mark(r);
    struct tensor dh = *dy;
    int i = -1;
    if (any_routed(r, l->site))
        refuse(r, l, "routes");
    if (any_gated(r, l->site)) {
        gated_back(r, dx, l, use, x, dy, add);
    } else {
        if (has_gain(r, l->site)) {
            dh = run_like(r, dy);
            gains_back(r, &dh, dy, l);
        }
        one_back(r, dx, use, &dh, add);
    }
    run_pop(r, mark);
    for (const struct bound *b = next_bound(r, l->site, &i, NULL); b;
         b = next_bound(r, l->site, &i, b)) {
        const struct branch *br = &r->branch[i];
        const struct joined *j = br->joint ? br->joint->at[l->site] : NULL;
        double s = (double)br->strength * (double)b->factor * (double)b->side.scale;
        bool joined = j && j->has[br->part];
        struct tensor dxs = tensor_rows(dx, br->row0, br->row1 - br->row0);
        struct tensor dys = tensor_rows(dy, br->row0, br->row1 - br->row0);
        if (j && br->part == j->part[0])
            joined_back(r, &dxs, l, j, br - br->part, &dys);
        if (b->side.down.out && !(joined && b->side.up.out))
            chain_back(r, &dxs, &b->side.down, &b->side.up, &dys, s, br, l);
        if (b->side.up2.out && !joined)
            chain_back(r, &dxs, &b->side.down2, &b->side.up2, &dys, s, br, l);
    }
}
