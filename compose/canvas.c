#include "canvas.h"

#include "areas.h"
#include "layout.h"
#include "maps.h"
#include "refine.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void picture_init(struct picture *p, const struct model *m)
{
    memset(p, 0, sizeof *p);
    p->w = p->h = m->unet->sample_size * m->vae->factor;
    p->steps = 30;
    p->cfg = 7;
    p->clip_skip = 1;
    p->denoise = 1;
}

/* ---- planning -------------------------------------------------------------------------------- */

/* Whether the negative prompt has a part in the picture. */
static bool is_guided(const struct picture *p)
{
    return p->cfg != 1 || p->prompt->n_part != 1 || p->prompt->part[0].weight != 1;
}

/* Texts are encoded once: what changes the text encoder cannot come and go with the steps. */
static int check_use(const struct picture *p, const struct use *u, struct err *err)
{
    const char *name = u->adapter->name;
    if ((u->from || u->to) && u->te != 0 && u->adapter->matched_in[COMPONENT_TEXT])
        return err_set(err, ERR_ARG,
                       "%s acts in some steps only, but it changes the text encoder too, which "
                       "runs once; te=0 leaves that out",
                       name);
    if (u->from > p->steps || (u->to && u->to < u->from))
        return err_set(err, ERR_ARG, "%s never acts: from %d to %d of %d steps", name, u->from,
                       u->to ? u->to : p->steps, p->steps);
    if (p->fold && (u->from || u->to || u->where))
        return err_set(err, ERR_ARG, "%s acts in some %s only: it cannot be folded", name,
                       u->where ? "places" : "steps");
    return 0;
}

static int check(const struct canvas *c, struct err *err)
{
    const struct picture *p = &c->p;
    int f = c->m->vae->factor;
    if (p->w < f || p->h < f || p->w % f || p->h % f || p->w > 8192 || p->h > 8192)
        return err_set(err, ERR_ARG,
                       "%dx%d cannot be made: sides are multiples of %d for this model, up to 8192",
                       p->w, p->h, f);
    if (p->clip_skip < 1 || p->clip_skip > c->m->text->tower.layers)
        return err_set(err, ERR_ARG, "clip skip %d: this text encoder has 1 to %d", p->clip_skip,
                       c->m->text->tower.layers);
    if (p->init && (p->init->w != p->w || p->init->h != p->h))
        return err_set(err, ERR_ARG, "the picture to start from is %dx%d, not %dx%d", p->init->w,
                       p->init->h, p->w, p->h);
    if (p->words && words_width(p->words) != c->m->text->tower.width)
        return err_set(err, ERR_MISMATCH, "words of %d values, the text encoder takes %d",
                       words_width(p->words), c->m->text->tower.width);
    if (!isfinite(p->cfg) || p->cfg < -1000 || p->cfg > 1000)
        return err_set(err, ERR_ARG, "cfg %g makes no picture", p->cfg);
    if (p->tile && (p->tile < 8 || p->tile > 4096 || p->tile % 4))
        return err_set(err, ERR_ARG, "tile %d: 8 to 4096 latent places, a multiple of 4", p->tile);
    int rc = 0;
    for (int i = 0; i < p->n_use && rc == 0; i++)
        rc = check_use(p, &p->use[i], err);
    return rc;
}

/* The strategy from its beginning: what it was asked before is forgotten. */
static int start_compose(struct canvas *c, struct err *err)
{
    struct compose_facts facts = {.n_adapter = c->p.n_use, .adapter = c->fact, .steps = c->p.steps};
    for (int i = 0; i < c->p.n_use; i++) {
        const struct use *u = &c->p.use[i];
        c->fact[i] = (struct compose_adapter){.strength = u->unet,
                                              .part = u->part,
                                              .match = u->match,
                                              .high = u->high,
                                              .placed = (u->words && *u->words) || u->where,
                                              .boxed = u->where != NULL,
                                              .from = u->from,
                                              .to = u->to};
    }
    return compose_start(c->compose, &facts, err);
}

static int open_compose(struct canvas *c, struct err *err)
{
    size_t n = (size_t)c->p.n_use;
    c->fact = calloc(n + 1, sizeof *c->fact);
    if (!c->fact)
        return err_nomem(err, n * sizeof *c->fact);
    int rc = compose_open(&c->compose, c->p.compose ? c->p.compose : "merge", err);
    if (rc == 0 && c->p.fold && n && !compose_is_constant(c->compose))
        rc = err_set(err, ERR_ARG,
                     "--fold is for merge with one strength in both halves: %s acts beside "
                     "the weights",
                     c->compose->strategy->name);
    if (rc == 0 && c->compose->strategy->gates && n && !c->p.gates)
        rc = err_set(err, ERR_ARG,
                     "%s needs gates that were learnt for this model, and there are none: "
                     "assets/train/gates.py learns them",
                     c->compose->strategy->name);
    return rc < 0 ? rc : start_compose(c, err);
}

static int open_sampler(struct canvas *c, struct err *err)
{
    const struct picture *p = &c->p;
    struct sampler_options o = {.name = p->sampler,
                                .steps = p->steps,
                                .sigmas = p->sigmas,
                                .eta = p->eta,
                                .denoise = p->init ? p->denoise : 1};
    int rc = sampler_open(&c->sampler, &c->m->schedule, &o, err);
    if (rc == ERR_FORMAT)
        err_prefix(err, "%s/scheduler/scheduler_config.json", c->m->dir);
    return rc;
}

static int read_prompts(struct canvas *c, struct err *err)
{
    const struct picture *p = &c->p;
    int rc = conditions_parse(&c->cond, c->m->tokenizer, p->words, c->m->text->positions, p->prompt,
                              is_guided(p) ? p->negative : NULL, p->steps, err);
    if (rc == 0 && c->cond.n_layer > 1 && c->cond.n_layer != c->m->unet->n_cross)
        rc =
            err_set(err, ERR_MISMATCH,
                    "prompt: a word has vectors for %d cross attentions, this model has %d: it was "
                    "made for another base",
                    c->cond.n_layer, c->m->unet->n_cross);
    return rc;
}

int canvas_open(struct canvas *c, const struct model *m, const struct picture *p, struct err *err)
{
    *c = (struct canvas){.m = m, .p = *p};
    if ((int64_t)p->tile * m->vae->factor >= p->w && (int64_t)p->tile * m->vae->factor >= p->h)
        c->p.tile = 0; /* one square holds it all */
    size_t places =
        (size_t)(p->h / m->vae->factor) * (size_t)(p->w / m->vae->factor) * (size_t)m->vae->latent;
    int rc = check(c, err);
    rc = rc < 0 ? rc : open_sampler(c, err);
    rc = rc < 0 ? rc : read_prompts(c, err);
    rc = rc < 0 ? rc : open_compose(c, err);
    c->passes = (struct passes){.m = m,
                                .p = &c->p,
                                .cond = &c->cond,
                                .compose = c->compose,
                                .sampler = c->sampler,
                                .guided = is_guided(p)};
    rc = rc < 0 ? rc : passes_plan(&c->passes, err);
    if (rc == 0 && !(c->host = malloc(2 * places * sizeof *c->host)))
        rc = err_nomem(err, 2 * places * sizeof *c->host);
    return rc;
}

void canvas_release(struct canvas *c)
{
    passes_release(&c->passes);
    conditions_release(&c->cond);
    sampler_close(c->sampler);
    compose_close(c->compose);
    free(c->fact);
    free(c->host);
    memset(c, 0, sizeof *c);
}

void canvas_place(struct canvas *c, struct run *keep)
{
    int h = c->p.h / c->m->vae->factor, w = c->p.w / c->m->vae->factor;
    keep->wide = true; /* steps add up in them */
    for (int i = 0; i < SLOT_COUNT; i++)
        c->slot[i] = run_tensor(keep, 1, h, w, c->m->vae->latent);
    keep->wide = false;
    passes_place(&c->passes, keep);
}

/* The picture in pixels, or one tile of it: what the autoencoder works on at once. */
static void pixel_size(const struct canvas *c, int *h, int *w)
{
    int f = c->m->vae->factor, most = c->p.tile ? c->p.tile * f : c->p.w + c->p.h;
    *h = c->p.h < most ? c->p.h : most;
    *w = c->p.w < most ? c->p.w : most;
}

int canvas_measure(struct canvas *c, struct run *pass, bool prepare, size_t *peak, double *flops,
                   struct err *err)
{
    int h, w, f = c->m->vae->factor;
    pixel_size(c, &h, &w);
    run_begin(pass, prepare);
    struct tensor z = run_tensor(pass, 1, h / f, w / f, c->m->vae->latent);
    vae_decode(c->m->vae, pass, &z);
    *flops += (double)c->p.h * c->p.w / ((double)h * w) * pass->flops;
    *peak = pass->plan.peak > *peak ? pass->plan.peak : *peak;
    int rc = run_check(pass, err);
    if (rc < 0 || !c->p.init)
        return rc;
    run_begin(pass, prepare);
    struct tensor x = run_tensor(pass, 1, c->p.h, c->p.w, 3);
    vae_encode(c->m->vae, pass, &x);
    *flops += pass->flops;
    *peak = pass->plan.peak > *peak ? pass->plan.peak : *peak;
    return run_check(pass, err);
}

/* ---- the latent ------------------------------------------------------------------------------ */

/* [c, h, w], torch's order, to [h, w, c]. */
static void channels_last(float *to, const float *from, size_t places, size_t c)
{
    for (size_t i = 0; i < places; i++)
        for (size_t k = 0; k < c; k++)
            to[i * c + k] = from[k * places + i];
}

/* Standard normal noise of the latent's size, as torch.randn([1, c, h, w]) draws it. */
static const float *draw_noise(struct canvas *c)
{
    size_t n = tensor_count(&c->slot[SLOT_N]), k = (size_t)c->m->vae->latent;
    rng_normal(&c->rng, c->host, n);
    channels_last(c->host + n, c->host, n / k, k);
    return c->host + n;
}

/* The latent of p.init in slot X: drawn from what the encoder says, with the picture's own noise. */
static int encode_init(struct canvas *c, struct run *pass, struct run *keep, struct err *err)
{
    const struct image *im = c->p.init;
    const struct vae *v = c->m->vae;
    size_t n = (size_t)im->w * (size_t)im->h * 3,
           places = tensor_count(&c->slot[0]) / (size_t)v->latent;
    float *px = malloc(n * sizeof *px),
          *moments = malloc(places * 2 * (size_t)v->latent * sizeof *px);
    float *z = malloc(places * (size_t)v->latent * sizeof *z);
    int rc = px && moments && z ? 0 : err_nomem(err, n * sizeof *px);

    if (rc == 0) {
        for (size_t i = 0; i < n; i++)
            px[i] = (float)im->rgb[i] / 255.0f * 2 - 1;
        run_reset(pass);
        struct tensor x = run_tensor(pass, 1, im->h, im->w, 3);
        op_upload(pass, &x, px);
        struct tensor y = vae_encode(v, pass, &x);
        rc = run_check(pass, err);
        rc = rc < 0 ? rc : pass->dev->be->download(pass->dev, moments, &y, err);
    }
    if (rc == 0) {
        vae_draw(v, z, moments, draw_noise(c), places);
        op_upload(keep, &c->slot[SLOT_X], z);
    }
    free(px);
    free(moments);
    free(z);
    return rc;
}

/* The first latent, and all that goes with it. */
static int begin(struct canvas *c, struct run *pass, struct run *keep, struct err *err)
{
    struct tensor *x = &c->slot[SLOT_X], *noise = &c->slot[SLOT_N];
    const struct tensor *both[2] = {x, noise};
    double coef[2] = {c->sampler->start_signal, c->sampler->start_noise};

    rng_init(&c->rng, c->p.rng, c->p.seed);
    int rc = start_compose(c, err);
    if (rc == 0 && c->p.init)
        rc = encode_init(c, pass, keep, err);
    if (rc < 0)
        return rc;
    op_upload(keep, noise, draw_noise(c));
    if (c->p.init)
        op_lincomb(keep, x, 2, coef, both, 0);
    else
        op_affine(keep, x, noise, c->sampler->init_scale, 0);
    return run_check(keep, err);
}

int canvas_start(struct canvas *c, struct run *pass, struct run *keep, struct err *err)
{
    if (c->passes.maps)
        maps_restart(c->passes.maps);
    if (c->passes.areas)
        areas_restart(c->passes.areas);
    if (c->passes.refine)
        refine_restart(c->passes.refine);
    if (c->passes.layout)
        layout_restart(c->passes.layout);
    return begin(c, pass, keep, err);
}

int canvas_rewind(struct canvas *c, int eval, struct run *pass, struct run *keep, struct err *err)
{
    if (!eval || eval != c->passes.n_probe)
        return 0;
    if (c->passes.areas)
        areas_follow(c->passes.areas);
    return begin(c, pass, keep, err);
}

bool canvas_turn(struct canvas *c, int eval, struct turn *t)
{
    if (eval >= passes_evals(&c->passes))
        return false;
    const struct sampler_eval *e = &c->sampler->eval[passes_eval(&c->passes, eval)];
    *t = (struct turn){.of = &c->passes,
                       .a = &c->action,
                       .step = e->step,
                       .t = e->t,
                       .in_scale = e->in_scale,
                       .x = &c->slot[SLOT_X],
                       .mix = &c->slot[SLOT_M]};
    return true;
}

int canvas_advance(struct canvas *c, int eval, struct run *keep, struct err *err)
{
    const struct sampler_eval *e = &c->sampler->eval[passes_eval(&c->passes, eval)];
    bool drawn = false;
    for (int i = 0; i < e->n_op; i++) {
        const struct sampler_op *op = &e->op[i];
        const struct tensor *src[SAMPLER_MAX_TERMS];
        for (int k = 0; k < op->n; k++) {
            if (op->src[k] == SLOT_N && !drawn)
                op_upload(keep, &c->slot[SLOT_N], draw_noise(c));
            drawn = drawn || op->src[k] == SLOT_N;
            src[k] = &c->slot[op->src[k]];
        }
        op_lincomb(keep, &c->slot[op->dst], op->n, op->coef, src, op->clamp);
    }
    return run_check(keep, err);
}

static int became_nan(struct err *err)
{
    return err_set(
        err, ERR_FORMAT,
        "the picture became NaN: the weights of the model or of an adapter are damaged, or "
        "a strength is far too high");
}

int canvas_look(struct canvas *c, struct run *keep, struct err *err)
{
    return keep->dev->be->download(keep->dev, c->host, &c->slot[SLOT_X], err);
}

/* ---- pixels ---------------------------------------------------------------------------------- */

/* Values in [-1, 1] to bytes; NaN must stop here. */
static int to_bytes(uint8_t *to, const float *rgb, size_t n, struct err *err)
{
    for (size_t i = 0; i < n; i++) {
        float f = rgb[i] * 0.5f + 0.5f;
        if (!isfinite(rgb[i]))
            return became_nan(err);
        f = f < 0 ? 0 : f > 1 ? 1 : f;
        to[i] = (uint8_t)lrintf(f * 255);
    }
    return 0;
}

static int decode(struct canvas *c, struct run *pass, struct image *im, struct err *err)
{
    const struct vae *v = c->m->vae;
    size_t n = (size_t)c->p.w * (size_t)c->p.h * 3;
    float *rgb = malloc(n * sizeof *rgb);
    int rc = 0;

    im->w = c->p.w;
    im->h = c->p.h;
    im->rgb = malloc(n);
    if (!rgb || !im->rgb) {
        rc = err_nomem(err, n * sizeof *rgb);
    } else if (c->p.tile) {
        rc = vae_decode_tiled(v, pass, rgb, c->host, c->p.h / v->factor, c->p.w / v->factor,
                              c->p.tile, err);
    } else {
        run_reset(pass);
        struct tensor y = vae_decode(v, pass, &c->slot[SLOT_X]);
        rc = run_check(pass, err);
        rc = rc < 0 ? rc : pass->dev->be->download(pass->dev, rgb, &y, err);
    }
    rc = rc < 0 ? rc : to_bytes(im->rgb, rgb, n, err);
    free(rgb);
    if (rc < 0)
        image_release(im);
    return rc;
}

int canvas_end(struct canvas *c, struct run *pass, struct run *keep, struct image *im,
               struct err *err)
{
    size_t n = tensor_count(&c->slot[SLOT_X]);
    int rc = canvas_look(c, keep, err);
    for (size_t i = 0; i < n && rc == 0; i++)
        if (!isfinite(c->host[i]))
            rc = became_nan(err);
    return rc < 0 ? rc : decode(c, pass, im, err);
}
