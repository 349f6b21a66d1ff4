#include "unet.h"

#include "regions.h"

#include <math.h>

/* get_timestep_embedding: sines and cosines of t at width/2 frequencies, in float32 as torch does. */
static struct tensor time_waves(const struct unet *u, struct run *r, const double *t, int n)
{
    float row[UNET_MAX_WAVES] = {0};
    int width = u->width[0], half = width / 2;
    struct tensor y = run_tensor(r, n, 1, 1, width);

    for (int i = 0; i < n; i++) {
        struct tensor yi = tensor_rows(&y, i, 1);
        for (int k = 0; k < half; k++) {
            float e = (float)(-log(10000.0)) * (float)k / (float)(half - u->freq_shift);
            float a = (float)t[i] * expf(e);
            row[u->flip_sin_to_cos ? half + k : k] = sinf(a);
            row[u->flip_sin_to_cos ? k : half + k] = cosf(a);
        }
        op_upload(r, &yi, row);
    }
    return y;
}

/* silu(time_embedding(t)): every resnet wants it after its silu. [n, 1, time_width] */
static struct tensor time_embedding(const struct unet *u, struct run *r, const double *t, int n)
{
    struct tensor y = run_tensor(r, n, 1, 1, u->time_width);
    unsigned mark = run_mark(r);
    struct tensor w = time_waves(u, r, t, n);
    struct tensor a = layer_forward(&u->time1, r, &w);
    op_activate(r, &a, &a, ACT_SILU);
    op_layer(r, &y, &u->time2, &a, false);
    op_activate(r, &y, &y, ACT_SILU);
    run_pop(r, mark);
    return y;
}

/* Whether the pass is over behind a cross attention. */
static bool is_over(const struct run *r, int cross)
{
    return r->map_watch && r->map_watch->until && cross + 1 >= r->map_watch->until;
}

/* Self attention: x += to_out(softmax(q kT) v), all from h. */
static void attend_self(const struct unet_attention *a, struct run *r, struct tensor *x,
                        const struct tensor *h, int cross)
{
    struct attention how = {.heads = a->heads};
    unsigned mark = run_mark(r);
    const struct region_level *l = r->regions && r->regions->alone
                                       ? regions_at(r->regions, x->h, x->w, r->measuring, &r->err)
                                       : NULL;
    how.region = l ? l->bits : NULL;
    struct tensor q = layer_forward(&a->q, r, h);
    struct tensor k = layer_forward(&a->k, r, h);
    struct tensor v = layer_forward(&a->v, r, h);
    struct tensor o = run_like(r, &q);
    op_attention(r, &o, &q, &k, &v, &how);
    if (r->map_watch && r->map_watch->saw_self)
        r->map_watch->saw_self(r->map_watch->user, r, cross, &q, &k, &how);
    op_layer(r, x, &a->out, &o, true);
    run_pop(r, mark);
}

/* What the queries q make of one text: x += share o to_out(softmax(q kT) v), in full without a share. */
static void attend_text(const struct unet_attention *a, struct run *r, struct tensor *x,
                        const struct tensor *q, const struct tensor *text, int cross, int region,
                        const float *at)
{
    const struct attention how = {.heads = a->heads};
    unsigned mark = run_mark(r);
    struct tensor k = layer_forward(&a->k, r, text);
    if (is_over(r, cross)) { /* what is watched, and no more */
        r->map_watch->saw(r->map_watch->user, r, cross, region, q, &k, &how);
        return;
    }
    struct tensor v = layer_forward(&a->v, r, text), o = run_like(r, q);
    op_attention(r, &o, q, &k, &v, &how);
    if (r->map_watch)
        r->map_watch->saw(r->map_watch->user, r, cross, region, q, &k, &how);
    if (r->regions) {
        const struct share share = {.width = x->c, .s = 1, .at = at};
        struct tensor y = layer_forward(&a->out, r, &o);
        op_scale(r, &y, 1, &share);
        op_add(r, x, &y);
    } else {
        op_layer(r, x, &a->out, &o, true);
    }
    run_pop(r, mark);
}

/* Cross attention to the pass's text, and to those of regions. */
static void attend_texts(const struct unet_attention *a, struct run *r, struct tensor *x,
                         const struct tensor *h, const struct unet_text *text, int cross)
{
    struct regions *g = r->regions;
    unsigned mark = run_mark(r);
    int layer = text->n > 1 ? cross : 0;
    struct tensor q = layer_forward(&a->q, r, h);
    if (!g) {
        attend_text(a, r, x, &q, &text->at[layer], cross, -1, NULL);
        run_pop(r, mark);
        return;
    }
    const struct region_level *l = regions_at(g, x->h, x->w, r->measuring, &r->err);
    const struct branch *branch = r->branch;
    size_t places = (size_t)x->h * (size_t)x->w;
    int n = r->n_branch;
    for (int i = 0; i <= g->n && l; i++) {
        bool own = i < g->n;
        r->branch = own ? g->at[i].branch : g->rest;
        r->n_branch = own ? g->at[i].n_branch : g->n_rest;
        attend_text(a, r, x, &q, own ? &g->at[i].text[layer] : &text->at[layer], cross,
                    own ? i : -1, l->weight + (size_t)i * places);
    }
    r->branch = branch;
    r->n_branch = n;
    run_pop(r, mark);
}

/* false: the pass is over. */
static bool block_forward(const struct unet_block *b, struct run *r, struct tensor *x,
                          const struct unet_text *text)
{
    unsigned mark = run_mark(r);
    struct tensor h = run_like(r, x);

    op_layer_norm(r, &h, &b->norm1, x);
    attend_self(&b->attn1, r, x, &h, b->cross);
    op_layer_norm(r, &h, &b->norm2, x);
    attend_texts(&b->attn2, r, x, &h, text, b->cross);
    if (is_over(r, b->cross))
        return false;

    op_layer_norm(r, &h, &b->norm3, x);
    struct tensor g = run_tensor(r, x->n, x->h, x->w, b->ff_out.in);
    unsigned inner = run_mark(r);
    struct tensor wide = layer_forward(&b->ff_in, r, &h);
    op_geglu(r, &g, &wide);
    run_pop(r, inner);
    op_layer(r, x, &b->ff_out, &g, true);
    run_pop(r, mark);
    return true;
}

/* x becomes x + transformer(x), in place. false: the pass is over. */
static bool transformer_forward(const struct unet_transformer *t, struct run *r, struct tensor *x,
                                const struct unet_text *text)
{
    unsigned mark = run_mark(r);
    struct tensor h = run_tensor(r, x->n, x->h, x->w, t->in.out);
    unsigned inner = run_mark(r);
    struct tensor g = run_like(r, x);

    op_group_norm(r, &g, &t->norm, x, NULL, ACT_NONE);
    op_layer(r, &h, &t->in, &g, false);
    run_pop(r, inner);
    for (int i = 0; i < t->n_block; i++)
        if (!block_forward(&t->block[i], r, &h, text))
            return false;
    op_layer(r, x, &t->out, &h, true);
    run_pop(r, mark);
    return true;
}

/* h becomes resnet(h beside skip); both are dropped. */
static void up_resnet(const struct resnet *b, struct run *r, struct tensor *h,
                      const struct tensor *skip, const struct tensor *time)
{
    struct tensor cat = run_tensor(r, h->n, h->h, h->w, h->c + skip->c);
    op_concat(r, &cat, h, skip);
    run_drop(r, skip);
    run_replace(r, h, resnet_forward(b, r, &cat, time));
    run_drop(r, &cat);
}

#define MAX_SKIPS 256

/* What the way down leaves for the way up. */
struct skips {
    struct tensor at[MAX_SKIPS];
    int n;
};

/* false: the pass is over; so of all below. */
static bool down_level(const struct unet_level *l, struct run *r, struct tensor *h,
                       struct skips *skips, const struct tensor *time, const struct unet_text *text)
{
    for (int j = 0; j < l->n; j++) {
        *h = resnet_forward(&l->resnet[j], r, h, time);
        if (l->transformer && !transformer_forward(&l->transformer[j], r, h, text))
            return false;
        skips->at[skips->n++] = *h;
    }
    return true;
}

static bool up_level(const struct unet_level *l, struct run *r, struct tensor *h,
                     struct skips *skips, const struct tensor *time, const struct unet_text *text)
{
    for (int j = 0; j < l->n; j++) {
        up_resnet(&l->resnet[j], r, h, &skips->at[--skips->n], time);
        if (l->transformer && !transformer_forward(&l->transformer[j], r, h, text))
            return false;
    }
    if (l->sampler.out) { /* to the size of the next skip, which is odd where the latent was */
        const struct tensor *next = &skips->at[skips->n - 1];
        run_replace(r, h, upsample_forward(&l->sampler, r, h, next->h, next->w));
    }
    return true;
}

/* From below the first level to above the last. */
static bool deep_levels(const struct unet *u, struct run *r, struct tensor *h, struct skips *skips,
                        const struct tensor *time, const struct unet_text *text)
{
    for (int i = 0; i < u->levels; i++) {
        if (i > 0 && !down_level(&u->down[i], r, h, skips, time, text))
            return false;
        if (u->down[i].sampler.out)
            skips->at[skips->n++] = *h = layer_forward(&u->down[i].sampler, r, h);
    }
    *h = resnet_forward(&u->mid_resnet[0], r, h, time);
    if (!transformer_forward(&u->mid_transformer, r, h, text))
        return false;
    run_replace(r, h, resnet_forward(&u->mid_resnet[1], r, h, time));
    for (int i = 0; i < u->levels - 1; i++)
        if (!up_level(&u->up[i], r, h, skips, time, text))
            return false;
    return true;
}

/* Cross attentions of a level. */
static int crosses(const struct unet_level *l)
{
    int n = 0;
    for (int i = 0; i < l->n && l->transformer; i++)
        n += l->transformer[i].n_block;
    return n;
}

int unet_cross_level(const struct unet *u, int cross)
{
    int level = 0, up = 0;
    for (; level < u->levels; level++)
        if ((cross -= crosses(&u->down[level])) < 0)
            return level;
    if ((cross -= u->mid_transformer.n_block) < 0)
        return u->levels - 1;
    while (up < u->levels - 1 && (cross -= crosses(&u->up[up])) >= 0)
        up++;
    return u->levels - 1 - up;
}

int unet_deep_channels(const struct unet *u)
{
    const struct unet_level *l = u->levels > 1 ? &u->up[u->levels - 2] : NULL;
    return !l ? 0 : l->sampler.out ? l->sampler.out : l->resnet[l->n - 1].conv2.out;
}

static struct tensor reused(const struct unet *u, struct run *r, const struct tensor *x,
                            const struct unet_deep *deep)
{
    struct tensor h = run_tensor(r, x->n, x->h, x->w, unet_deep_channels(u));
    for (int i = 0; i < x->n; i++) {
        struct tensor row = tensor_rows(&h, i, 1);
        op_copy(r, &row, &deep->row[i]);
    }
    return h;
}

struct tensor unet_forward(const struct unet *u, struct run *r, const struct tensor *x,
                           const double *t, const struct unet_text *text,
                           const struct unet_deep *deep)
{
    struct tensor time = time_embedding(u, r, t, x->n);
    struct tensor h = layer_forward(&u->conv_in, r, x);
    struct skips skips = {.at = {h}, .n = 1};

    const struct tensor none = {0};

    if (!down_level(&u->down[0], r, &h, &skips, &time, text))
        return none;
    if (deep && deep->reuse)
        h = reused(u, r, x, deep);
    else if (!deep_levels(u, r, &h, &skips, &time, text))
        return none;
    for (int i = 0; deep && !deep->reuse && i < x->n; i++) {
        struct tensor row = tensor_rows(&h, i, 1);
        if (deep->row[i].c)
            op_copy(r, &deep->row[i], &row);
    }
    if (!up_level(&u->up[u->levels - 1], r, &h, &skips, &time, text))
        return none;

    run_drop(r, &time);
    op_group_norm(r, &h, &u->norm_out, &h, NULL, ACT_SILU);
    run_replace(r, &h, layer_forward(&u->conv_out, r, &h));
    return h;
}
