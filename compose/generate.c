/* The denoise loop. Read generator_run first. */
#include "generate.h"

#include "passes.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct generator {
    const struct model *m;
    struct use *use;
    struct compose_adapter *fact; /* [n_use] */
    int n_use;
    struct compose *compose;
    struct fold *fold_unet, *fold_text;

    struct run pass;               /* one forward pass at a time */
    struct run keep;               /* what lives as long as the picture */
    size_t pass_bytes, keep_bytes; /* what the prepared picture needs of them */

    struct picture p; /* the prepared picture */
    struct conditions cond;
    struct sampler *sampler;
    struct rng rng;
    struct tensor slot[SLOT_COUNT];
    struct passes passes;
    float *host; /* [c, h, w] and [h, w, c]: noise on its way to the device */
    bool ready;
};

void picture_init(struct picture *p, const struct model *m)
{
    memset(p, 0, sizeof *p);
    p->w = p->h = m->unet->sample_size * m->vae->factor;
    p->steps = 30;
    p->cfg = 7;
    p->clip_skip = 1;
    p->denoise = 1;
}

/* ---- opening --------------------------------------------------------------------------------- */

static int fold_all(struct generator *g, struct err *err)
{
    size_t n = (size_t)g->n_use;
    if (!compose_is_constant(g->compose))
        return err_set(err, ERR_ARG,
                       "--fold is for merge with one strength in both halves: %s acts beside "
                       "the weights",
                       g->compose->strategy->name);
    const struct adapter **a = malloc((n + 1) * sizeof *a);
    float *s = malloc((n + 1) * sizeof *s);
    int rc = a && s ? 0 : err_nomem(err, n * sizeof *a);

    for (size_t i = 0; i < n && rc == 0; i++) {
        a[i] = g->use[i].adapter;
        if (g->use[i].from || g->use[i].to)
            rc = err_set(err, ERR_ARG, "%s acts in some steps only: it cannot be folded",
                         a[i]->name);
        s[i] = g->use[i].unet;
    }
    if (rc == 0)
        rc = fold_new(&g->fold_unet, &g->m->sites, COMPONENT_UNET, g->n_use, a, s, err);
    for (size_t i = 0; i < n && rc == 0; i++)
        s[i] = g->use[i].te;
    if (rc == 0)
        rc = fold_new(&g->fold_text, &g->m->sites, COMPONENT_TEXT, g->n_use, a, s, err);
    free(a);
    free(s);
    return rc;
}

/* Texts are encoded once: what changes the text encoder cannot come and go with the steps. */
static int check_uses(const struct generator *g, struct err *err)
{
    for (int i = 0; i < g->n_use; i++) {
        const struct use *u = &g->use[i];
        if ((u->from || u->to) && u->te != 0 && u->adapter->matched_in[COMPONENT_TEXT])
            return err_set(err, ERR_ARG,
                           "%s acts in some steps only, but it changes the text encoder too, which "
                           "runs once; te=0 leaves that out",
                           u->adapter->name);
    }
    return 0;
}

int generator_open(struct generator **out, const struct model *m, const struct use *use, int n_use,
                   const char *compose, bool fold, struct err *err)
{
    struct generator *g = calloc(1, sizeof *g);
    size_t n = (size_t)n_use;
    int rc = 0;

    *out = NULL;
    if (!g)
        return err_nomem(err, sizeof *g);
    g->m = m;
    run_init(&g->pass, m->dev);
    run_init(&g->keep, m->dev);
    g->use = malloc((n + 1) * sizeof *g->use);
    g->fact = calloc(n + 1, sizeof *g->fact);
    rc = g->use && g->fact ? compose_open(&g->compose, compose ? compose : "merge", err)
                           : err_nomem(err, n * sizeof *g->use);
    if (rc == 0) {
        if (n)
            memcpy(g->use, use, n * sizeof *use);
        g->n_use = n_use;
        rc = check_uses(g, err);
        rc = rc == 0 && fold && n ? fold_all(g, err) : rc;
    }
    if (rc < 0) {
        generator_close(g);
        return rc;
    }
    *out = g;
    return 0;
}

static void forget_picture(struct generator *g)
{
    conditions_release(&g->cond);
    sampler_close(g->sampler);
    passes_release(&g->passes);
    free(g->host);
    g->sampler = NULL;
    g->host = NULL;
    g->ready = false;
}

void generator_close(struct generator *g)
{
    if (!g)
        return;
    forget_picture(g);
    fold_free(g->fold_unet);
    fold_free(g->fold_text);
    run_release(&g->pass);
    run_release(&g->keep);
    compose_close(g->compose);
    free(g->use);
    free(g->fact);
    free(g);
}

static void no_adapters(struct generator *g)
{
    g->pass.fold = NULL;
    g->pass.n_branch = 0;
}

/* ---- preparing ------------------------------------------------------------------------------- */

/* Whether the negative prompt has a part in the picture. */
static bool is_guided(const struct picture *p)
{
    return p->cfg != 1 || p->prompt->n_part != 1 || p->prompt->part[0].weight != 1;
}

static int check_picture(const struct generator *g, const struct picture *p, struct err *err)
{
    int f = g->m->vae->factor;
    if (p->w < f || p->h < f || p->w % f || p->h % f || p->w > 8192 || p->h > 8192)
        return err_set(err, ERR_ARG,
                       "%dx%d cannot be made: sides are multiples of %d for this model, up to 8192",
                       p->w, p->h, f);
    if (p->clip_skip < 1 || p->clip_skip > g->m->text->tower.layers)
        return err_set(err, ERR_ARG, "clip skip %d: this text encoder has 1 to %d", p->clip_skip,
                       g->m->text->tower.layers);
    if (p->init && (p->init->w != p->w || p->init->h != p->h))
        return err_set(err, ERR_ARG, "the picture to start from is %dx%d, not %dx%d", p->init->w,
                       p->init->h, p->w, p->h);
    if (p->words && words_width(p->words) != g->m->text->tower.width)
        return err_set(err, ERR_MISMATCH, "words of %d values, the text encoder takes %d",
                       words_width(p->words), g->m->text->tower.width);
    if (!isfinite(p->cfg) || p->cfg < -1000 || p->cfg > 1000)
        return err_set(err, ERR_ARG, "cfg %g makes no picture", p->cfg);
    if (p->tile && (p->tile < 8 || p->tile > 4096 || p->tile % 4))
        return err_set(err, ERR_ARG, "tile %d: 8 to 4096 latent places, a multiple of 4", p->tile);
    for (int i = 0; i < g->n_use; i++) {
        const struct use *u = &g->use[i];
        if (u->from > p->steps || (u->to && u->to < u->from))
            return err_set(err, ERR_ARG, "%s never acts: from %d to %d of %d steps",
                           u->adapter->name, u->from, u->to ? u->to : p->steps, p->steps);
    }
    return 0;
}

/* Everything that lives as long as the picture, in this order each time. */
static void place(struct generator *g)
{
    int h = g->p.h / g->m->vae->factor, w = g->p.w / g->m->vae->factor, c = g->m->vae->latent;
    for (int i = 0; i < SLOT_COUNT; i++)
        g->slot[i] = run_tensor(&g->keep, 1, h, w, c);
    passes_place(&g->passes);
}

/* The strategy from its beginning: what it was asked before is forgotten. */
static int start_compose(struct generator *g, struct err *err)
{
    struct compose_facts facts = {.n_adapter = g->n_use, .adapter = g->fact, .steps = g->p.steps};
    for (int i = 0; i < g->n_use; i++)
        g->fact[i] = (struct compose_adapter){.strength = g->use[i].unet,
                                              .part = g->use[i].part,
                                              .match = g->use[i].match,
                                              .high = g->use[i].high,
                                              .from = g->use[i].from,
                                              .to = g->use[i].to};
    return compose_start(g->compose, &facts, err);
}

static int plan_passes(struct generator *g, struct err *err)
{
    g->passes = (struct passes){.m = g->m,
                                .use = g->use,
                                .fold_unet = g->fold_unet,
                                .fold_text = g->fold_text,
                                .cond = &g->cond,
                                .p = &g->p,
                                .guided = is_guided(&g->p),
                                .pass = &g->pass,
                                .keep = &g->keep};
    int rc = start_compose(g, err);
    return rc < 0 ? rc : passes_plan(&g->passes, g->compose, g->sampler, err);
}

/* Host memory, and how much the device will be asked for. */
static int plan_memory(struct generator *g, struct err *err)
{
    run_measure(&g->keep);
    place(g);
    int rc = run_check(&g->keep, err);
    if (rc < 0)
        return rc;
    g->keep_bytes = g->keep.plan.peak;
    g->host = malloc(2 * tensor_count(&g->slot[0]) * sizeof *g->host);
    return g->host ? 0 : err_nomem(err, 2 * tensor_count(&g->slot[0]) * sizeof *g->host);
}

/* The picture in pixels, or one tile of it: what the autoencoder works on at once. */
static void pixel_size(const struct generator *g, int *h, int *w)
{
    int f = g->m->vae->factor, most = g->p.tile ? g->p.tile * f : g->p.w + g->p.h;
    *h = g->p.h < most ? g->p.h : most;
    *w = g->p.w < most ? g->p.w : most;
}

/* Goes through one kind of pass without computing: only sizes, or also packing the weights. */
typedef void pass_fn(struct generator *g);

static void decode_pass(struct generator *g)
{
    int h, w, f = g->m->vae->factor;
    no_adapters(g);
    pixel_size(g, &h, &w);
    struct tensor z = run_tensor(&g->pass, 1, h / f, w / f, g->m->vae->latent);
    vae_decode(g->m->vae, &g->pass, &z);
}

static void encode_pass(struct generator *g)
{
    no_adapters(g);
    struct tensor x = run_tensor(&g->pass, 1, g->p.h, g->p.w, 3);
    vae_encode(g->m->vae, &g->pass, &x);
}

static int all_passes(struct generator *g, bool prepare, struct cost *cost, struct err *err)
{
    int h, w;
    double flops = 0;
    int rc = passes_go_through(&g->passes, prepare, &g->pass_bytes, &flops, err);
    if (cost)
        cost->flops = flops;
    pixel_size(g, &h, &w);
    const struct {
        pass_fn *fn;
        double times;
    } pass[] = {{decode_pass, (double)g->p.h * g->p.w / ((double)h * w)},
                {encode_pass, g->p.init ? 1 : 0}};

    for (size_t i = 0; i < sizeof pass / sizeof *pass && rc == 0; i++) {
        if (pass[i].times == 0)
            continue;
        if (prepare)
            run_prepare(&g->pass);
        else
            run_measure(&g->pass);
        pass[i].fn(g);
        rc = run_check(&g->pass, err);
        if (g->pass.plan.peak > g->pass_bytes)
            g->pass_bytes = g->pass.plan.peak;
        if (cost)
            cost->flops += pass[i].times * g->pass.flops;
    }
    no_adapters(g);
    return rc;
}

/* Packed weights are float32: four bytes a value, the folded ones once more, and the adapters' own. */
static size_t weight_bytes(const struct generator *g)
{
    size_t n = 0;
    for (int i = 0; i < g->m->sites.n; i++) {
        if (!g->m->sites.at[i].layer)
            continue;
        size_t one = array_count(&g->m->sites.at[i].layer->w) * sizeof(float);
        bool folded =
            (g->fold_unet && g->fold_unet->at[i]) || (g->fold_text && g->fold_text->at[i]);
        n += one + (folded ? one : 0);
    }
    for (int i = 0; i < g->n_use; i++)
        n += adapter_bytes(g->use[i].adapter);
    return n;
}

int generator_prepare(struct generator *g, const struct picture *p, struct cost *cost,
                      struct err *err)
{
    struct cost none = {0};
    struct sampler_options o = {.name = p->sampler,
                                .steps = p->steps,
                                .sigmas = p->sigmas,
                                .eta = p->eta,
                                .denoise = p->init ? p->denoise : 1};
    cost = cost ? cost : &none;
    memset(cost, 0, sizeof *cost);
    forget_picture(g);
    assert(p->prompt && (p->negative || !is_guided(p)));
    int rc = check_picture(g, p, err);
    if (rc < 0)
        return rc;
    g->p = *p;
    if ((int64_t)p->tile * g->m->vae->factor >= p->w &&
        (int64_t)p->tile * g->m->vae->factor >= p->h)
        g->p.tile = 0; /* one square holds it all */
    rc = sampler_open(&g->sampler, &g->m->schedule, &o, err);
    if (rc == ERR_FORMAT)
        err_prefix(err, "%s/scheduler/scheduler_config.json", g->m->dir);
    rc = rc < 0 ? rc
                : conditions_parse(&g->cond, g->m->tokenizer, p->words, g->m->text->positions,
                                   p->prompt, is_guided(p) ? p->negative : NULL, p->steps, err);
    if (rc == 0 && g->cond.n_layer > 1 && g->cond.n_layer != g->m->unet->n_cross)
        rc =
            err_set(err, ERR_MISMATCH,
                    "prompt: a word has vectors for %d cross attentions, this model has %d: it was "
                    "made for another base",
                    g->cond.n_layer, g->m->unet->n_cross);
    g->pass_bytes = 0;
    rc = rc < 0 ? rc : plan_passes(g, err);
    rc = rc < 0 ? rc : plan_memory(g, err);
    rc = rc < 0 ? rc : all_passes(g, false, cost, err);
    if (rc < 0)
        return rc;
    cost->passes = g->passes.total;
    cost->bytes = g->keep_bytes + g->pass_bytes;
    cost->weights = weight_bytes(g);
    g->ready = true;
    return 0;
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* [c, h, w], torch's order, to [h, w, c]. */
static void channels_last(float *to, const float *from, size_t places, size_t c)
{
    for (size_t i = 0; i < places; i++)
        for (size_t k = 0; k < c; k++)
            to[i * c + k] = from[k * places + i];
}

/* Standard normal noise of the latent's size, as torch.randn([1, c, h, w]) draws it. */
static const float *draw_noise(struct generator *g)
{
    size_t n = tensor_count(&g->slot[SLOT_N]), c = (size_t)g->m->vae->latent;
    rng_normal(&g->rng, g->host, n);
    channels_last(g->host + n, g->host, n / c, c);
    return g->host + n;
}

/* The latent of p.init in slot X: drawn from what the encoder says, with the picture's own noise. */
static int encode_init(struct generator *g, struct err *err)
{
    const struct image *im = g->p.init;
    const struct vae *v = g->m->vae;
    size_t n = (size_t)im->w * (size_t)im->h * 3,
           places = tensor_count(&g->slot[0]) / (size_t)v->latent;
    float *px = malloc(n * sizeof *px),
          *moments = malloc(places * 2 * (size_t)v->latent * sizeof *px);
    float *z = malloc(places * (size_t)v->latent * sizeof *z);
    int rc = px && moments && z ? 0 : err_nomem(err, n * sizeof *px);

    if (rc == 0) {
        for (size_t i = 0; i < n; i++)
            px[i] = (float)im->rgb[i] / 255.0f * 2 - 1;
        run_reset(&g->pass);
        struct tensor x = run_tensor(&g->pass, 1, im->h, im->w, 3);
        op_upload(&g->pass, &x, px);
        struct tensor y = vae_encode(v, &g->pass, &x);
        rc = run_check(&g->pass, err);
        rc = rc < 0 ? rc : g->pass.dev->be->download(g->pass.dev, moments, &y, err);
    }
    if (rc == 0) {
        vae_draw(v, z, moments, draw_noise(g), places);
        op_upload(&g->keep, &g->slot[SLOT_X], z);
    }
    free(px);
    free(moments);
    free(z);
    return rc;
}

/* Slot X before the first step. */
static int start(struct generator *g, struct err *err)
{
    struct tensor *x = &g->slot[SLOT_X], *noise = &g->slot[SLOT_N];
    const struct tensor *both[2] = {x, noise};
    double coef[2] = {g->sampler->start_signal, g->sampler->start_noise};

    if (!g->p.init) {
        op_upload(&g->keep, noise, draw_noise(g));
        op_affine(&g->keep, x, noise, g->sampler->init_scale, 0);
        return run_check(&g->keep, err);
    }
    int rc = encode_init(g, err);
    if (rc < 0)
        return rc;
    op_upload(&g->keep, noise, draw_noise(g));
    op_lincomb(&g->keep, x, 2, coef, both, 0);
    return run_check(&g->keep, err);
}

/* One evaluation of the model into slot M. */
static int evaluate(struct generator *g, int eval, struct err *err)
{
    const struct sampler_eval *e = &g->sampler->eval[eval];
    struct passes_at at = {.step = e->step, .t = e->t, .in_scale = e->in_scale};
    struct action a;
    passes_next(&g->passes, g->compose, g->sampler, eval, &a);
    return passes_predict(&g->passes, &a, &at, &g->slot[SLOT_X], &g->slot[SLOT_M], err);
}

/* What the sampler does with slot M. */
static int advance(struct generator *g, const struct sampler_eval *e, struct err *err)
{
    bool drawn = false;
    for (int i = 0; i < e->n_op; i++) {
        const struct sampler_op *op = &e->op[i];
        const struct tensor *src[SAMPLER_MAX_TERMS];
        for (int k = 0; k < op->n; k++) {
            if (op->src[k] == SLOT_N && !drawn)
                op_upload(&g->keep, &g->slot[SLOT_N], draw_noise(g));
            drawn = drawn || op->src[k] == SLOT_N;
            src[k] = &g->slot[op->src[k]];
        }
        op_lincomb(&g->keep, &g->slot[op->dst], op->n, op->coef, src, op->clamp);
    }
    return run_check(&g->keep, err);
}

static int became_nan(struct err *err)
{
    return err_set(
        err, ERR_FORMAT,
        "the picture became NaN: the weights of the model or of an adapter are damaged, or "
        "a strength is far too high");
}

/* Slot X to the host, where NaN must stop here. */
static int final_latent(struct generator *g, struct err *err)
{
    size_t n = tensor_count(&g->slot[SLOT_X]);
    int rc = generator_look(g, err);
    for (size_t i = 0; i < n && rc == 0; i++)
        if (!isfinite(g->host[i]))
            rc = became_nan(err);
    return rc;
}

static int decode(struct generator *g, struct image *im, struct err *err)
{
    const struct vae *v = g->m->vae;
    size_t n = (size_t)g->p.w * (size_t)g->p.h * 3;
    float *rgb = malloc(n * sizeof *rgb);
    int rc = 0;

    im->w = g->p.w;
    im->h = g->p.h;
    im->rgb = malloc(n);
    if (!rgb || !im->rgb) {
        rc = err_nomem(err, n * sizeof *rgb);
    } else if (g->p.tile) {
        rc = vae_decode_tiled(v, &g->pass, rgb, g->host, g->p.h / v->factor, g->p.w / v->factor,
                              g->p.tile, err);
    } else {
        run_reset(&g->pass);
        struct tensor y = vae_decode(v, &g->pass, &g->slot[SLOT_X]);
        rc = run_check(&g->pass, err);
        rc = rc < 0 ? rc : g->pass.dev->be->download(g->pass.dev, rgb, &y, err);
    }
    for (size_t i = 0; i < n && rc == 0; i++) {
        if (!isfinite(rgb[i]))
            rc = became_nan(err);
        float f = rgb[i] * 0.5f + 0.5f;
        f = f < 0 ? 0 : f > 1 ? 1 : f;
        im->rgb[i] = rc < 0 ? 0 : (uint8_t)lrintf(f * 255);
    }
    free(rgb);
    if (rc < 0)
        image_release(im);
    return rc;
}

/* Memory and packed weights: what can fail does so before the first step. */
static int get_ready(struct generator *g, struct err *err)
{
    int rc = run_reserve(&g->keep, g->keep_bytes, err);
    rc = rc < 0 ? rc : run_reserve(&g->pass, g->pass_bytes, err);
    if (rc < 0)
        return rc;
    place(g);
    rc = all_passes(g, true, NULL, err);
    return rc < 0 ? rc : run_reserve(&g->pass, g->pass_bytes, err);
}

static int go_on(generate_progress *progress, void *user, int done, int total, struct err *err)
{
    return progress && progress(user, done, total) ? err_set(err, ERR_STOPPED, "stopped") : 0;
}

int generator_run(struct generator *g, struct image *im, generate_progress *progress, void *user,
                  struct err *err)
{
    memset(im, 0, sizeof *im);
    if (!g->ready)
        return err_set(err, ERR_ARG, "no picture was prepared");
    int n = g->sampler->n_eval, rc = get_ready(g, err);
    rng_init(&g->rng, g->p.rng, g->p.seed);
    rc = rc < 0 ? rc : start_compose(g, err);
    rc = rc < 0 ? rc : passes_encode(&g->passes, err);
    no_adapters(g);
    rc = rc < 0 ? rc : start(g, err);
    for (int i = 0; i < n && rc == 0; i++) {
        rc = go_on(progress, user, i, n, err);
        rc = rc < 0 ? rc : evaluate(g, i, err);
        rc = rc < 0 ? rc : advance(g, &g->sampler->eval[i], err);
    }
    no_adapters(g);
    rc = rc < 0 ? rc : go_on(progress, user, n, n, err);
    rc = rc < 0 ? rc : final_latent(g, err);
    return rc < 0 ? rc : decode(g, im, err);
}

int generator_look(struct generator *g, struct err *err)
{
    return g->keep.dev->be->download(g->keep.dev, g->host, &g->slot[SLOT_X], err);
}

const float *generator_latent(const struct generator *g, size_t *n)
{
    *n = tensor_count(&g->slot[SLOT_X]);
    return g->host;
}
