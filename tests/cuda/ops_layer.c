/* Layers, and what adapters do beside them: chains, shares, routes, gates. */
#include "stage.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- layers ---------------------------------------------------------------------------------- */

/* In c, out d, kernel e; with a bias, onto what is there, as its file has it. */
static int run_layer(struct stage *s, const struct spec *c)
{
    static const enum dtype stored[] = {DT_F32, DT_F16, DT_BF16, DT_F64};
    const bool bias = c->how & 1, add = c->how & 2;
    struct layer *l = stage_layer(s, c->c, c->d, c->e, bias, stored[c->how / 2 % 4]);
    int h = layer_side(l, c->h, false), w = layer_side(l, c->w, true);
    struct tensor *x = stage_in(s, c->n, c->h, c->w, c->c),
                  *y = add ? stage_changed(s, c->n, h, w, c->d) : stage_out(s, c->n, h, w, c->d);
    const struct backend *be = s->dev->be;
    struct tensor nx = *x, ny = *y;
    nx.data = ny.data = NULL;
    int rc = s->turn ? 0 : be->layer_prepare(s->dev, &ny, l, &nx, add, &s->err);
    return rc < 0 ? rc : be->layer(s->dev, y, l, x, add, &s->err);
}

/* dx = W^T dy; d of which dx has c. */
static int run_layer_back(struct stage *s, const struct spec *c)
{
    const bool add = c->how & 1;
    struct layer *l = stage_layer(s, c->c, c->d, c->e, c->how & 2, DT_F32);
    int h = layer_side(l, c->h, false), w = layer_side(l, c->w, true);
    struct tensor *dy = stage_in(s, c->n, h, w, c->d),
                  *dx = add ? stage_changed(s, c->n, c->h, c->w, c->c)
                            : stage_out(s, c->n, c->h, c->w, c->c);
    const struct backend *be = s->dev->be;
    struct tensor nx = *dx, ny = *dy;
    nx.data = ny.data = NULL;
    void *scratch = stage_room(s, be->layer_back_scratch(l, dx, dy));
    int rc = s->turn ? 0 : be->layer_back_prepare(s->dev, &nx, l, &ny, add, &s->err);
    return rc < 0 ? rc : be->layer_back(s->dev, dx, l, dy, add, scratch, &s->err);
}

static void fit_layer(struct spec *c)
{
    struct layer l;
    c->d = 1 + c->d;
    c->e %= KERNELS;
    kernel_of(&l, c->e);
    c->h += c->h < l.kh ? l.kh : 0;
    c->w += c->w < l.kw ? l.kw : 0;
}

static const struct spec layers[] = {
    {1, 1, 1, 1, 1, 0, 0},     {2, 3, 5, 5, 7, 1, 0},     {1, 4, 4, 4, 16, 1, 0},
    {1, 5, 4, 8, 8, 2, 0},     {2, 4, 4, 8, 5, 3, 0},     {2, 9, 11, 20, 33, 0, 0},
    {1, 9, 11, 5, 7, 1, 0},    {1, 9, 7, 16, 16, 2, 0},   {2, 12, 10, 16, 24, 3, 0},
    {2, 5, 6, 12, 9, 4, 0},    {1, 8, 6, 3, 32, 5, 0},    {1, 7, 7, 6, 10, 6, 0},
    {1, 7, 8, 6, 10, 7, 0},    {1, 6, 5, 7, 9, 8, 0},     {1, 1, 1, 320, 1280, 0, 0},
    {2, 77, 1, 768, 40, 0, 0}, {2, 16, 16, 96, 96, 1, 0}, {1, 16, 16, 4, 320, 1, 0},
    {2, 8, 8, 320, 4, 1, 0},   {1, 8, 8, 320, 320, 1, 0}, {1, 16, 16, 320, 64, 2, 0},
    {2, 8, 8, 320, 640, 0, 0}, {1, 4, 4, 1280, 64, 1, 0},
};

/* ---- shares and routes ----------------------------------------------------------------------- */

/* By place, in device memory: how much comes in, and w of the gates, of which some are shut. */
struct places {
    const float *mask, *words;
};

static struct places places_of(struct stage *s, int places)
{
    size_t n = (size_t)places;
    float *v = stage_values(s, n, 1, 300 + s->turn);
    struct places at;
    for (int i = 3; i < places; i += 7)
        v[i] = i % 2 ? GATE_SHUT : -20;
    at.words = stage_floats(s, v, n);
    for (int i = 0; i < places; i++)
        v[i] = fminf(fmaxf(v[i] + .5f, 0), 1);
    at.mask = stage_floats(s, v, n);
    free(v);
    return at;
}

/* Shares of n parts of c channels side by side: plain, by place, through gates, by both. */
static void make_shares(struct share *p, int n, int c, unsigned how, int turn, struct places at)
{
    for (int k = 0; k < n; k++) {
        unsigned kind = ((unsigned)k + how) % 4;
        p[k] = (struct share){.width = c / n + (k < c % n),
                              .s = (turn ? .5f : 1) * (.7f - .2f * (float)(k % 5)),
                              .at = kind == 1   ? at.mask
                                    : kind == 3 ? at.words
                                                : NULL,
                              .gate = kind & 2,
                              .bias = .4f - .1f * (float)k,
                              .words = k % 2 ? -2 : 1};
    }
}

enum { PARTS_MOST = 64 };

static int run_scale(struct stage *s, const struct spec *c)
{
    struct share p[PARTS_MOST];
    int n = 1 + c->d % PARTS_MOST;
    n = n < c->c ? n : c->c;
    struct tensor *y = stage_changed(s, c->n, c->h, c->w, c->c);
    make_shares(p, n, c->c, c->how, s->turn, places_of(s, c->h * c->w));
    int rc = s->dev->be->scale(s->dev, y, n, p, &s->err);
    memset(p, 0xff, sizeof p);
    return rc;
}

/* tau, keep, least; SMOOTH: nobody is cut off */
enum { ROUTES = 6, SMOOTH = 5 };
static const struct route routes[ROUTES] = {{1, .5f, 0},  {.2f, 1, .1f},    {.05f, .4f, 0},
                                            {1e9f, 1, 0}, {.3f, .01f, .5f}, {.5f, 1, 0}};

static int run_route(struct stage *s, const struct spec *c)
{
    const struct form_of f = {ROLE_CHANGED, 1, 0, false, true};
    struct tensor *t = stage_tensor(s, c->n, c->h, c->w, c->c, &f);
    struct route how = routes[(c->how + (unsigned)s->turn) % ROUTES];
    int rc = s->dev->be->route(s->dev, t, &how, &s->err);
    memset(&how, 0xff, sizeof how);
    return rc;
}

/* ---- chains ---------------------------------------------------------------------------------- */

/* How chains stand: several of different ranks, with parts, for all rows alike or each its own, with a route, of rows of
 * which some have none, two that share their layers. */
enum {
    CHAIN_PARTS = 1,
    CHAIN_ALIKE = 2,
    CHAIN_ROUTE = 4,
    CHAIN_SHARED = 8,
    CHAIN_HOWS = 16,
    CHAIN_PARTS_MOST = 40
};

static const char *chains_cannot(const struct device *dev, unsigned how)
{
    const struct backend *be = dev->be;
    bool all = how & (CHAIN_PARTS | CHAIN_ROUTE | CHAIN_SHARED);
    if (!be->chains)
        return "the device has no chains";
    return all && !be->chains_all ? "the device has chains without parts and routes" : NULL;
}

/* Whose pieces are cut off by a route must not hang on how what comes down was rounded: in 16 bits that is whole numbers,
 * or nobody is cut off. */
static const struct route *chain_route(const struct stage *s, const struct spec *c, int i)
{
    bool hard = s->type == DT_F32 || !(c->how & CHAIN_PARTS);
    return c->how & CHAIN_ROUTE ? &routes[hard ? (i + s->turn) % ROUTES : SMOOTH] : NULL;
}

/* The i-th, on some rows of x and y; at: values by place. part: room for all its shares. */
static struct chain make_chain(struct stage *s, const struct spec *c, int i, struct tensor x,
                               struct tensor y, const struct chain *first, struct share *part,
                               struct places at)
{
    bool again = c->how & CHAIN_SHARED && i;
    int rank = 1 + c->e + 5 * i;
    struct chain k = {.x = x, .y = y, .s = (s->turn ? -.6 : 1) * (1 + .1 * i)};
    k.down = again ? first->down : stage_layer(s, c->c, rank, 0, false, DT_F32);
    s->whole = false;
    k.up = again ? first->up : stage_layer(s, rank, c->d, 0, false, DT_F32);
    k.t = *stage_tensor(s, x.n, c->h, c->w, k.down->out, &(struct form_of){.role = ROLE_ROOM});
    k.route = chain_route(s, c, i);
    if (!(c->how & CHAIN_PARTS))
        return k;
    k.part = part;
    k.alike = c->how & CHAIN_ALIKE;
    k.n_part = k.down->out < 2 ? 1 : k.down->out < 64 ? 2 : CHAIN_PARTS_MOST;
    for (int r = 0; r < (k.alike ? 1 : x.n); r++)
        make_shares(part + r * k.n_part, k.n_part, k.down->out, (unsigned)(i + r) + c->how / 4,
                    s->turn, at);
    return k;
}

/* Of n rows of c channels to d, ranks about e. */
static int run_chains(struct stage *s, const struct spec *c)
{
    struct chain of[CHAINS_MOST];
    struct share part[CHAINS_MOST * 2 * CHAIN_PARTS_MOST];
    bool exact = s->dev == device_exact(), whole = s->type != DT_F32 && c->how & CHAIN_ROUTE;
    int n = 0;
    s->whole = whole;
    struct tensor *x = stage_in(s, c->n, c->h, c->w, c->c),
                  *y = stage_changed(s, c->n, c->h, c->w, c->d);
    const struct places at = places_of(s, c->h * c->w);
    s->cannot = exact ? NULL : chains_cannot(s->dev, c->how);
    if (s->cannot)
        return 0;
    for (int row = 0; row < c->n && n < CHAINS_MOST; n++) {
        int rows = n % 3 == 1 && row + 2 <= c->n ? 2 : 1;
        s->whole = whole;
        of[n] = make_chain(s, c, n, tensor_rows(x, row, rows), tensor_rows(y, row, rows), of,
                           &part[2 * CHAIN_PARTS_MOST * n], at);
        row += rows + (n == 1); /* one row has none */
    }
    if (exact)
        return chains_apart(s->dev, of, n, &s->err);
    int rc = s->dev->be->chains(s->dev, of, n, true, &s->err);
    rc = rc < 0 ? rc : s->dev->be->chains(s->dev, of, n, false, &s->err);
    memset(of, 0xff, sizeof of);
    memset(part, 0xff, sizeof part);
    return rc;
}

static void fit_chains(struct spec *c)
{
    c->d = 1 + c->d * 3;
}

static const struct spec chains[] = {
    {1, 1, 1, 1, 1, 0, 0},      {3, 2, 3, 5, 7, 3, 0},      {2, 4, 4, 16, 16, 4, 0},
    {3, 2, 2, 9, 24, 76, 0},    {3, 2, 3, 12, 7, 1050, 0},  {8, 3, 3, 33, 17, 8, 0},
    {5, 9, 11, 20, 40, 3, 0},   {2, 16, 16, 96, 96, 16, 0}, {2, 77, 1, 129, 65, 1, 0},
    {4, 8, 8, 320, 320, 31, 0}, {2, 8, 8, 640, 80, 64, 0},  {8, 3, 5, 24, 40, 255, 0},
    {3, 2, 3, 8, 9, 2077, 0},
};

/* ---- gates ----------------------------------------------------------------------------------- */

/* Which adapters are products, of how many ranks; those of kind 1 are given, of kind 2 are nothing here. */
static int gate_kind(const struct spec *c, int i)
{
    return c->how & 4 ? 0 : (i + (int)c->d) % 4 == 1 ? 1 : (i + (int)c->d) % 4 == 2 ? 2 : 0;
}

struct gate_room {
    int width[GATE_MOST], wide;
    const struct tensor *u[GATE_MOST];
    const float *words[GATE_MOST];
    float *wave;
};

/* e adapters of ranks about d; what comes down of them as `t`, if anything. */
static struct gating make_gating(struct stage *s, const struct spec *c, struct gate_room *room,
                                 bool given)
{
    size_t ch = (size_t)c->c;
    struct gating in = {.n = 1 + c->e % GATE_MOST};
    const float *at = places_of(s, c->h * c->w).words;
    memset(room, 0, sizeof *room);
    for (int i = 0; i < in.n; i++) {
        int kind = given ? gate_kind(c, i) : 0;
        room->width[i] = kind == 0 ? 1 + (c->d + i) % 9 : 0;
        room->wide += room->width[i];
        room->words[i] = c->how & 2 && i % 2 == 0 ? at : NULL;
        if (kind == 1)
            room->u[i] = stage_in(s, c->n, c->h, c->w, c->c);
    }
    float *up = stage_values(s, (size_t)room->wide * ch, .5, 400 + s->turn),
          *gate = stage_values(s, GATE_ROWS * ch, .5, 402 + s->turn);
    room->wave = stage_values(s, (size_t)c->n * GATE_WAVES, 1, 404 + s->turn);
    if (room->wide) {
        in.t = stage_in(s, c->n, c->h, c->w, room->wide);
        in.up = stage_floats(s, up, (size_t)room->wide * ch);
    }
    in.gate = stage_floats(s, gate, GATE_ROWS * ch);
    in.width = room->width;
    in.u = room->u;
    in.words = room->words;
    in.wave = room->wave;
    free(up);
    free(gate);
    return in;
}

static void drop_gating(struct gate_room *room, const struct spec *c)
{
    memset(room->wave, 0xff, (size_t)c->n * GATE_WAVES * sizeof *room->wave);
    free(room->wave);
    memset(room, 0xff, sizeof *room);
}

static int run_gate(struct stage *s, const struct spec *c)
{
    const bool in_place = c->how & 1;
    struct gate_room room;
    struct tensor *y = stage_changed(s, c->n, c->h, c->w, c->c),
                  *h = in_place ? y : stage_in(s, c->n, c->h, c->w, c->c);
    const struct gating in = make_gating(s, c, &room, true);
    int rc = s->dev->be->gate(s->dev, y, h, &in, &s->err);
    drop_gating(&room, c);
    return rc;
}

static int run_gate_back(struct stage *s, const struct spec *c)
{
    struct gate_room room;
    struct tensor *h = stage_in(s, c->n, c->h, c->w, c->c),
                  *dy = stage_in(s, c->n, c->h, c->w, c->c),
                  *dh = stage_changed(s, c->n, c->h, c->w, c->c);
    const struct gating in = make_gating(s, c, &room, false);
    struct tensor *dt = stage_out(s, c->n, c->h, c->w, room.wide);
    int rc = s->dev->be->gate_back(s->dev, dh, dt, h, &in, dy, &s->err);
    drop_gating(&room, c);
    return rc;
}

static void fit_gate(struct spec *c)
{
    c->c += c->c < 3 ? 3 : 0;
}

static const struct spec gates[] = {
    {1, 1, 1, 4, 0, 0, 0},   {2, 3, 5, 7, 3, 2, 0},    {3, 2, 2, 33, 1, 3, 0},
    {1, 4, 4, 16, 2, 31, 0}, {2, 9, 11, 96, 5, 2, 0},  {1, 7, 3, 129, 8, 5, 0},
    {2, 8, 8, 320, 4, 3, 0}, {1, 4, 4, 1280, 7, 1, 0},
};

/* Ranks side by side, and pieces. */
static const struct spec pieces[] = {
    {1, 1, 1, 1, 0, 0, 0},    {2, 3, 5, 7, 2, 0, 0},    {1, 4, 4, 16, 3, 0, 0},
    {3, 9, 11, 13, 4, 0, 0},  {2, 8, 8, 32, 1, 0, 0},   {1, 5, 7, 65, 9, 0, 0},
    {2, 16, 16, 12, 2, 0, 0}, {1, 3, 3, 300, 31, 0, 0}, {1, 2, 2, 1100, 63, 0, 0},
};

/* ---- the groups ------------------------------------------------------------------------------ */

GROUP(layer, .bound = BOUND_SUM, .least = .1, .hows = 8, SHAPES(layers, 4),
      .most = {3, 10, 10, 70, 60, 8, 0}, .fit = fit_layer)
GROUP(layer_back, .bound = BOUND_SUM, .least = .1, .hows = 4, SHAPES(layers, 4),
      .most = {2, 10, 10, 60, 60, 8, 0}, .fit = fit_layer)
GROUP(scale, .bound = BOUND_ONCE, .least = .01, .hows = 4, SHAPES(pieces, 3),
      .most = {3, 9, 9, 130, 70, 0, 0})
GROUP(route, .bound = BOUND_ONCE, .least = .01, .hows = ROUTES, SHAPES(pieces, 3),
      .most = {3, 9, 9, 260, 0, 0, 0})
GROUP(chains, .bound = BOUND_SUM, .least = 1, .hows = CHAIN_HOWS, SHAPES(chains, 5),
      .most = {8, 8, 8, 200, 50, 66, 0}, .fit = fit_chains)
GROUP(gate, .bound = BOUND_SUM, .least = .1, .hows = 8, SHAPES(gates, 3),
      .most = {3, 7, 7, 140, 9, 6, 0}, .fit = fit_gate)
GROUP(gate_back, .bound = BOUND_BACK, .hows = 4, SHAPES(gates, 3), .most = {3, 7, 7, 140, 9, 6, 0},
      .fit = fit_gate)

const struct group layer_groups[] = {
    {"ops/layer", check_layer, 0},
    {"ops/scale", check_scale, 0},
    {"ops/route", check_route, 0},
    {"ops/chains", check_chains, 0},
    {"ops/gate", check_gate, 0},
    {"back/layer_back", check_layer_back, 0},
    {"back/gate_back", check_gate_back, 0},
    {NULL, NULL, 0},
};
