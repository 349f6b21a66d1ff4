/* Ops that are no matrix products: values one by one, norms, attention. */
#include "stage.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Odd ones, ones of a single value, near multiples of packs, warps and tiles; then shapes of Stable Diffusion, at fewer
 * places. {n, h, w, c, d, e} */
static const struct spec plain[] = {
    {1, 1, 1, 1, 1, 1, 0},     {2, 3, 5, 7, 3, 2, 0},     {1, 4, 4, 16, 4, 3, 0},
    {3, 1, 1, 33, 5, 1, 0},    {1, 5, 13, 63, 2, 9, 0},   {2, 9, 11, 13, 7, 4, 0},
    {1, 31, 17, 5, 1, 5, 0},   {2, 16, 16, 96, 32, 8, 0}, {1, 77, 1, 129, 8, 3, 0},
    {2, 16, 16, 320, 4, 6, 0}, {2, 8, 8, 1280, 64, 7, 0},
};

/* ---- sums ------------------------------------------------------------------------------------ */

/* In place, wide in, wide out. */
static int run_affine(struct stage *s, const struct spec *c)
{
    const bool in_place = c->how & 1, x_wide = c->how & 2, y_wide = c->how & 4;
    const struct form_of in = {in_place ? ROLE_CHANGED : ROLE_IN, 1, 0, x_wide, false},
                         out = {ROLE_OUT, 0, 0, y_wide, false};
    struct tensor *x = stage_tensor(s, c->n, c->h, c->w, c->c, &in),
                  *y = in_place ? x : stage_tensor(s, c->n, c->h, c->w, c->c, &out);
    return s->dev->be->affine(s->dev, y, x, s->turn ? -.7 : 1, s->turn ? .3 : 0, &s->err);
}

/* Of how many the sums of a sampler and of a mix of passes are. */
enum { TERMS_MOST = 12 };

static int run_lincomb(struct stage *s, const struct spec *c)
{
    const bool in_place = c->how & 1, clamped = c->how & 2, y_wide = c->how & 4, some = c->how & 8;
    struct tensor *x[TERMS_MOST], *y;
    const struct tensor *p[TERMS_MOST];
    double coef[TERMS_MOST];
    int n = 1 + c->d % TERMS_MOST, at = n / 2;
    for (int i = 0; i < n; i++) {
        bool is_y = in_place && i == at;
        const struct form_of f = {is_y ? ROLE_CHANGED : ROLE_IN, 1, 0,
                                  is_y ? y_wide : some && i % 2 == 0, false};
        x[i] = stage_tensor(s, c->n, c->h, c->w, c->c, &f);
        p[i] = x[i];
        coef[i] = (i % 2 ? -1 : 1) * (.3 + i) * (s->turn ? .5 : 1);
    }
    const struct form_of out = {ROLE_OUT, 0, 0, y_wide, false};
    y = in_place ? x[at] : stage_tensor(s, c->n, c->h, c->w, c->c, &out);
    int rc = s->dev->be->lincomb(s->dev, y, n, coef, p, clamped ? 1.5 + s->turn : 0, &s->err);
    memset(coef, 0xff, sizeof coef); /* the caller's, which may be gone */
    return rc;
}

/* ---- functions of a value -------------------------------------------------------------------- */

static int run_activate(struct stage *s, const struct spec *c)
{
    const bool in_place = c->how >= 5;
    const struct form_of in = {in_place ? ROLE_CHANGED : ROLE_IN, 4, 0, false, false};
    struct tensor *x = stage_tensor(s, c->n, c->h, c->w, c->c, &in),
                  *y = in_place ? x : stage_out(s, c->n, c->h, c->w, c->c);
    return s->dev->be->activate(s->dev, y, x, (enum act)(c->how % 5), &s->err);
}

static int run_geglu(struct stage *s, const struct spec *c)
{
    struct tensor *x = stage_in(s, c->n, c->h, c->w, 2 * c->c),
                  *y = stage_out(s, c->n, c->h, c->w, c->c);
    return s->dev->be->geglu(s->dev, y, x, &s->err);
}

static int run_gain(struct stage *s, const struct spec *c)
{
    const bool in_place = c->how & 1, shifted = c->how & 2;
    struct tensor *y = stage_changed(s, c->n, c->h, c->w, c->c),
                  *h = in_place ? y : stage_in(s, c->n, c->h, c->w, c->c);
    float *v = stage_values(s, 2 * (size_t)c->c, .5, s->turn),
          *gain = stage_floats(s, v, (size_t)c->c),
          *shift = stage_floats(s, v + c->c, (size_t)c->c);
    free(v);
    return s->dev->be->gain(s->dev, y, h, s->turn ? -.4 : 1, gain, shifted ? shift : NULL, &s->err);
}

/* ---- moving ---------------------------------------------------------------------------------- */

static int run_concat(struct stage *s, const struct spec *c)
{
    struct tensor *a = stage_in(s, c->n, c->h, c->w, c->c),
                  *b = stage_in(s, c->n, c->h, c->w, 1 + c->d),
                  *y = stage_out(s, c->n, c->h, c->w, c->c + 1 + c->d);
    return s->dev->be->concat(s->dev, y, a, b, &s->err);
}

static int run_upsample(struct stage *s, const struct spec *c)
{
    const int h[] = {2 * c->h, 2 * c->h - 1, c->h, 3 * c->h + 1},
              w[] = {2 * c->w, 2 * c->w - 1, c->w, 2 * c->w + 3};
    struct tensor *x = stage_in(s, c->n, c->h, c->w, c->c),
                  *y = stage_out(s, c->n, h[c->how], w[c->how], c->c);
    return s->dev->be->upsample(s->dev, y, x, &s->err);
}

/* ---- norms ----------------------------------------------------------------------------------- */

/* A mean of 100 is for so many values: of two that are nearly alike float32 does not know how far apart they are. */
enum { FAR_LEAST = 8 };

/* In place, with a value a channel besides, with a mean of 100; an activation each. */
static int run_group_norm(struct stage *s, const struct spec *c)
{
    const bool in_place = c->how & 1, more = c->how & 2,
               far = c->how & 4 && c->h * c->w * c->c / c->d >= FAR_LEAST;
    const struct form_of in = {in_place ? ROLE_CHANGED : ROLE_IN, 1, far ? 100 : 0, false, false};
    struct norm *g = stage_norm(s, c->c, c->d);
    struct tensor *x = stage_tensor(s, c->n, c->h, c->w, c->c, &in),
                  *y = in_place ? x : stage_out(s, c->n, c->h, c->w, c->c),
                  *add = more ? stage_in(s, c->n, 1, 1, c->c) : NULL;
    s->slack = far ? 20 : 0; /* of 100, float32 knows 2^-18 at best */
    return s->dev->be->group_norm(s->dev, y, g, x, add, (enum act)(c->how % 5), &s->err);
}

static int run_layer_norm(struct stage *s, const struct spec *c)
{
    const bool in_place = c->how & 1, far = c->how & 2 && c->c >= FAR_LEAST;
    const struct form_of in = {in_place ? ROLE_CHANGED : ROLE_IN, 1, far ? 100 : 0, false, false};
    struct norm *g = stage_norm(s, c->c, 0);
    struct tensor *x = stage_tensor(s, c->n, c->h, c->w, c->c, &in),
                  *y = in_place ? x : stage_out(s, c->n, c->h, c->w, c->c);
    s->slack = far ? 20 : 0;
    return s->dev->be->layer_norm(s->dev, y, g, x, &s->err);
}

static void fit_groups(struct spec *c)
{
    c->d = 1 + c->d % 8;
    c->c = (c->c + c->d - 1) / c->d * c->d;
}

/* Of two values that are nearly alike float32 knows no variance. */
static void fit_group_norm(struct spec *c)
{
    fit_groups(c);
    c->h += c->h * c->w * c->c / c->d < 4 ? 4 : 0;
}

static void fit_layer_norm(struct spec *c)
{
    c->c += c->c < 4 ? 4 : 0;
}

/* d groups */
static const struct spec group_norms[] = {
    {1, 5, 1, 1, 1, 0, 0},      {2, 3, 5, 6, 3, 0, 0},      {1, 1, 1, 32, 8, 0, 0},
    {3, 5, 7, 20, 5, 0, 0},     {2, 9, 11, 33, 3, 0, 0},    {1, 31, 17, 16, 8, 0, 0},
    {2, 4, 4, 96, 32, 0, 0},    {2, 16, 16, 320, 32, 0, 0}, {1, 8, 8, 1280, 32, 0, 0},
    {1, 64, 64, 128, 32, 0, 0}, {1, 5, 3, 2560, 32, 0, 0},
};

static const struct spec layer_norms[] = {
    {1, 1, 1, 4, 0, 0, 0},   {2, 3, 5, 7, 0, 0, 0},    {1, 4, 4, 16, 0, 0, 0},
    {3, 3, 1, 33, 0, 0, 0},  {1, 9, 11, 96, 0, 0, 0},  {2, 77, 1, 129, 0, 0, 0},
    {2, 8, 8, 320, 0, 0, 0}, {2, 77, 1, 768, 0, 0, 0}, {1, 8, 8, 1280, 0, 0, 0},
};

/* ---- attention ------------------------------------------------------------------------------- */

/* Regions of the places: none, a few, some in several. */
static const unsigned *regions_at(struct stage *s, int places)
{
    float *bits = room_for((size_t)places, sizeof *bits);
    for (int i = 0; i < places; i++) {
        unsigned in = (unsigned)(i * 7 + s->turn) % 5;
        in = in == 4 ? 0x80000001u : in;
        memcpy(&bits[i], &in, sizeof in); /* as regions.c sends them */
    }
    float *at = stage_floats(s, bits, (size_t)places);
    free(bits);
    return (const unsigned *)(const void *)at;
}

/* Of n rows, h * w queries, d keys, e heads of c channels. */
enum { SOFT, SHARP, CAUSAL, REGIONS, ATTENTIONS };

static int run_attention(struct stage *s, const struct spec *c)
{
    const struct form_of in = {ROLE_IN, c->how == SHARP ? 12 : 1, 0, false, false};
    int width = c->c * c->e;
    bool own = c->how == REGIONS || c->how == CAUSAL; /* places attend to places */
    struct tensor *q = stage_tensor(s, c->n, c->h, c->w, width, &in),
                  *k = stage_in(s, c->n, own ? c->h : c->d, own ? c->w : 1, width),
                  *v = stage_in(s, c->n, k->h, k->w, width),
                  *o = stage_out(s, c->n, c->h, c->w, width);
    const struct attention a = {.heads = c->e,
                                .causal = c->how == CAUSAL,
                                .region = c->how == REGIONS ? regions_at(s, c->h * c->w) : NULL};
    void *scratch = stage_room(s, s->dev->be->attention_scratch(s->dev, q, k, &a));
    s->slack = c->how == SHARP ? 2 : 0;
    return s->dev->be->attention(s->dev, o, q, k, v, &a, scratch, &s->err);
}

static void fit_attention(struct spec *c)
{
    c->d = 1 + c->d;
    c->e = 1 + c->e;
}

static const struct spec attentions[] = {
    {1, 1, 1, 1, 1, 1, 0},      {2, 3, 5, 7, 17, 2, 0},   {1, 4, 4, 8, 16, 2, 0},
    {1, 5, 5, 20, 49, 1, 0},    {2, 9, 7, 16, 65, 1, 0},  {1, 8, 8, 40, 77, 2, 0},
    {1, 5, 13, 33, 64, 3, 0},   {2, 8, 8, 64, 128, 1, 0}, {1, 77, 1, 64, 77, 2, 0},
    {1, 9, 15, 80, 130, 2, 0},  {1, 7, 9, 160, 77, 2, 0}, {1, 12, 12, 512, 144, 1, 0},
    {2, 16, 16, 40, 256, 8, 0},
};

/* ---- the groups ------------------------------------------------------------------------------ */

#define ANY                                                                                        \
    {                                                                                              \
        3, 12, 12, 300, 40, 8, 0                                                                   \
    }

GROUP(affine, .bound = BOUND_ONCE, .least = .5, .hows = 8, SHAPES(plain, 3), .most = ANY)
GROUP(lincomb, .bound = BOUND_ONCE, .least = .5, .hows = 16, SHAPES(plain, 3), .most = ANY)
GROUP(activate, .bound = BOUND_ONCE, .least = .5, .hows = 10, SHAPES(plain, 3), .most = ANY)
GROUP(geglu, .bound = BOUND_ONCE, .least = .5, .hows = 1, SHAPES(plain, 4), .most = ANY)
GROUP(gain, .bound = BOUND_ONCE, .least = .5, .hows = 4, SHAPES(plain, 3), .most = ANY)
GROUP(concat, .bound = BOUND_EXACT, .hows = 1, SHAPES(plain, 4), .most = ANY)
GROUP(upsample, .bound = BOUND_EXACT, .hows = 4, SHAPES(plain, 3), .most = ANY)
GROUP(group_norm, .bound = BOUND_ONCE, .least = .1, .hows = 8, SHAPES(group_norms, 3), .most = ANY,
      .fit = fit_group_norm)
GROUP(layer_norm, .bound = BOUND_ONCE, .least = .1, .hows = 4, SHAPES(layer_norms, 4), .most = ANY,
      .fit = fit_layer_norm)
GROUP(attention, .bound = BOUND_SUM, .hows = ATTENTIONS, SHAPES(attentions, 3),
      .most = {2, 12, 12, 96, 140, 3, 0}, .fit = fit_attention)

const struct group op_groups[] = {
    {"ops/affine", check_affine, 0},
    {"ops/lincomb", check_lincomb, 0},
    {"ops/activate", check_activate, 0},
    {"ops/geglu", check_geglu, 0},
    {"ops/gain", check_gain, 0},
    {"ops/concat", check_concat, 0},
    {"ops/upsample", check_upsample, 0},
    {"ops/group_norm", check_group_norm, 0},
    {"ops/layer_norm", check_layer_norm, 0},
    {"ops/attention", check_attention, 0},
    {NULL, NULL, 0},
};
