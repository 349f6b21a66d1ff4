/* Gradients of ops; those of layers and gates are in ops_layer.c. */
#include "stage.h"

#include <stdlib.h>

/* Where dx is: of its own, added to, or at dy's place. */
enum { BACK_OUT, BACK_ADD, BACK_IN_PLACE };

static struct tensor *result(struct stage *s, unsigned where, int n, int h, int w, int c)
{
    return where == BACK_ADD ? stage_changed(s, n, h, w, c) : stage_out(s, n, h, w, c);
}

/* dy, and dx, which has its shape. */
static struct tensor *dy_and_dx(struct stage *s, const struct spec *c, unsigned where,
                                struct tensor **dx)
{
    bool same = where == BACK_IN_PLACE;
    struct tensor *dy =
        same ? stage_changed(s, c->n, c->h, c->w, c->c) : stage_in(s, c->n, c->h, c->w, c->c);
    *dx = same ? dy : result(s, where, c->n, c->h, c->w, c->c);
    return dy;
}

static int run_activate_back(struct stage *s, const struct spec *c)
{
    const struct form_of in = {ROLE_IN, 3, 0, false, false};
    unsigned where = c->how / 5;
    struct tensor *x = stage_tensor(s, c->n, c->h, c->w, c->c, &in), *dx,
                  *dy = dy_and_dx(s, c, where, &dx);
    return s->dev->be->activate_back(s->dev, dx, x, (enum act)(c->how % 5), dy, where == BACK_ADD,
                                     &s->err);
}

static int run_geglu_back(struct stage *s, const struct spec *c)
{
    struct tensor *x = stage_in(s, c->n, c->h, c->w, 2 * c->c),
                  *dy = stage_in(s, c->n, c->h, c->w, c->c),
                  *dx = result(s, c->how, c->n, c->h, c->w, 2 * c->c);
    return s->dev->be->geglu_back(s->dev, dx, x, dy, c->how == BACK_ADD, &s->err);
}

/* Both, or one alone; either added to. */
static int run_concat_back(struct stage *s, const struct spec *c)
{
    const bool add_a = c->how & 1, add_b = c->how & 2;
    unsigned which = c->how / 4;
    struct tensor *dy = stage_in(s, c->n, c->h, c->w, c->c + 1 + c->d), *da = NULL, *db = NULL;
    if (which != 1)
        da = result(s, add_a, c->n, c->h, c->w, c->c);
    if (which != 2)
        db = result(s, add_b, c->n, c->h, c->w, 1 + c->d);
    return s->dev->be->concat_back(s->dev, da, add_a, db, add_b, dy, &s->err);
}

static int run_upsample_back(struct stage *s, const struct spec *c)
{
    const int h[] = {2 * c->h, 2 * c->h - 1, c->h, 3 * c->h + 1},
              w[] = {2 * c->w, 2 * c->w - 1, c->w, 2 * c->w + 3};
    unsigned k = c->how / 2;
    struct tensor *dy = stage_in(s, c->n, h[k], w[k], c->c),
                  *dx = result(s, c->how % 2, c->n, c->h, c->w, c->c);
    return s->dev->be->upsample_back(s->dev, dx, dy, c->how % 2 == BACK_ADD, &s->err);
}

/* ---- norms ----------------------------------------------------------------------------------- */

static int run_group_norm_back(struct stage *s, const struct spec *c)
{
    unsigned where = c->how % 3;
    const bool more = c->how / 3 % 2, far = c->how / 6 % 2;
    const struct form_of in = {ROLE_IN, 1, far ? 30 : 0, false, false};
    struct norm *g = stage_norm(s, c->c, c->d);
    struct tensor *x = stage_tensor(s, c->n, c->h, c->w, c->c, &in), *dx,
                  *add = more ? stage_in(s, c->n, 1, 1, c->c) : NULL,
                  *dy = dy_and_dx(s, c, where, &dx);
    s->slack = far ? 30 : 0;
    return s->dev->be->group_norm_back(s->dev, dx, g, x, add, (enum act)(c->how % 5), dy,
                                       where == BACK_ADD, &s->err);
}

static int run_layer_norm_back(struct stage *s, const struct spec *c)
{
    const struct form_of in = {ROLE_IN, 1, c->how > 2 ? 30 : 0, false, false};
    unsigned where = c->how % 3;
    struct norm *g = stage_norm(s, c->c, 0);
    struct tensor *x = stage_tensor(s, c->n, c->h, c->w, c->c, &in), *dx,
                  *dy = dy_and_dx(s, c, where, &dx);
    s->slack = c->how > 2 ? 30 : 0;
    return s->dev->be->layer_norm_back(s->dev, dx, g, x, dy, where == BACK_ADD, &s->err);
}

/* As in ops.c, and no group so small that its gradient is but a difference of what cancels. */
static void fit_group_norm(struct spec *c)
{
    c->d = 1 + c->d % 8;
    c->c = (c->c + c->d - 1) / c->d * c->d;
    c->h += c->c / c->d * c->h * c->w < 6 ? 6 : 0;
}

static void fit_layer_norm(struct spec *c)
{
    c->c += c->c < 12 ? 12 : 0;
}

/* d groups */
static const struct spec group_norms[] = {
    {1, 3, 2, 2, 2, 0, 0},   {2, 3, 5, 6, 3, 0, 0},      {1, 4, 4, 32, 8, 0, 0},
    {3, 5, 7, 20, 5, 0, 0},  {2, 9, 11, 33, 3, 0, 0},    {1, 33, 30, 24, 4, 0, 0},
    {2, 4, 4, 96, 32, 0, 0}, {1, 16, 16, 320, 32, 0, 0}, {1, 4, 4, 1280, 32, 0, 0},
};

static const struct spec layer_norms[] = {
    {1, 1, 1, 7, 0, 0, 0},   {2, 3, 5, 16, 0, 0, 0},  {3, 3, 1, 33, 0, 0, 0},
    {1, 9, 11, 96, 0, 0, 0}, {2, 8, 8, 320, 0, 0, 0}, {1, 4, 4, 1280, 0, 0, 0},
};

/* ---- attention ------------------------------------------------------------------------------- */

static const unsigned *regions_at(struct stage *s, int places)
{
    float *bits = room_for((size_t)places, sizeof *bits);
    for (int i = 0; i < places; i++)
        ((unsigned *)(void *)bits)[i] = (unsigned)(i * 3 + s->turn) % 4;
    float *at = stage_floats(s, bits, (size_t)places);
    free(bits);
    return (const unsigned *)(const void *)at;
}

/* Which of the three are wanted and added to; plain, causal, in regions. */
static int run_attention_back(struct stage *s, const struct spec *c)
{
    static const unsigned wanted[4] = {7, 1, 6, 5};
    unsigned kind = c->how / 4, want = wanted[c->how % 4];
    const bool add[3] = {c->how & 1, c->how & 2, c->how & 2};
    int width = c->c * c->e;
    bool own = kind > 0;
    struct tensor *q = stage_in(s, c->n, c->h, c->w, width),
                  *k = stage_in(s, c->n, own ? c->h : c->d, own ? c->w : 1, width),
                  *v = stage_in(s, c->n, k->h, k->w, width),
                  *dout = stage_in(s, c->n, c->h, c->w, width), *d[3] = {NULL};
    for (int i = 0; i < 3; i++)
        if (want >> i & 1)
            d[i] = result(s, add[i], c->n, i ? k->h : c->h, i ? k->w : c->w, width);
    const struct attention a = {.heads = c->e,
                                .causal = kind == 1,
                                .region = kind == 2 ? regions_at(s, c->h * c->w) : NULL};
    void *scratch = stage_room(s, s->dev->be->attention_back_scratch(s->dev, q, k, &a));
    return s->dev->be->attention_back(s->dev, d, add, q, k, v, &a, dout, scratch, &s->err);
}

/* One key alone has a gradient of nothing: there is nothing to be close to. */
static void fit_attention(struct spec *c)
{
    c->d = 3 + c->d;
    c->e = 1 + c->e;
    c->h += c->h * c->w < 3 ? 3 : 0;
}

static const struct spec attentions[] = {
    {1, 3, 1, 1, 3, 1, 0},     {2, 3, 5, 7, 17, 2, 0},   {1, 4, 4, 8, 16, 2, 0},
    {2, 9, 7, 16, 65, 1, 0},   {1, 8, 8, 40, 77, 2, 0},  {1, 5, 13, 33, 64, 3, 0},
    {1, 9, 11, 80, 130, 1, 0}, {1, 7, 9, 160, 77, 2, 0}, {1, 16, 16, 40, 256, 4, 0},
};

static const struct spec plain[] = {
    {1, 1, 1, 1, 1, 0, 0},    {2, 3, 5, 7, 3, 0, 0},    {1, 4, 4, 16, 15, 0, 0},
    {3, 1, 1, 33, 5, 0, 0},   {2, 9, 11, 13, 7, 0, 0},  {1, 31, 17, 5, 1, 0, 0},
    {1, 77, 1, 129, 8, 0, 0}, {2, 8, 8, 320, 63, 0, 0}, {1, 4, 4, 1280, 319, 0, 0},
};

/* ---- the groups ------------------------------------------------------------------------------ */

#define ANY                                                                                        \
    {                                                                                              \
        3, 10, 10, 200, 40, 0, 0                                                                   \
    }

GROUP(activate_back, .bound = BOUND_ONCE, .least = .1, .hows = 15, SHAPES(plain, 3), .most = ANY)
GROUP(geglu_back, .bound = BOUND_ONCE, .least = .1, .hows = 2, SHAPES(plain, 3), .most = ANY)
GROUP(concat_back, .bound = BOUND_ONCE, .least = .1, .hows = 12, SHAPES(plain, 3), .most = ANY)
GROUP(upsample_back, .bound = BOUND_ONCE, .least = .1, .hows = 8, SHAPES(plain, 3), .most = ANY)
GROUP(group_norm_back, .bound = BOUND_BACK, .hows = 12, SHAPES(group_norms, 3), .most = ANY,
      .fit = fit_group_norm)
GROUP(layer_norm_back, .bound = BOUND_BACK, .hows = 6, SHAPES(layer_norms, 3), .most = ANY,
      .fit = fit_layer_norm)
GROUP(attention_back, .bound = BOUND_BACK, .hows = 12, SHAPES(attentions, 3),
      .most = {2, 9, 9, 90, 90, 2, 0}, .fit = fit_attention)

const struct group back_groups[] = {
    {"back/activate_back", check_activate_back, 0},
    {"back/geglu_back", check_geglu_back, 0},
    {"back/concat_back", check_concat_back, 0},
    {"back/upsample_back", check_upsample_back, 0},
    {"back/group_norm_back", check_group_norm_back, 0},
    {"back/layer_norm_back", check_layer_norm_back, 0},
    {"back/attention_back", check_attention_back, 0},
    {NULL, NULL, 0},
};
