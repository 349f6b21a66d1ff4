/* The denoise loop. Read generator_run first. */
#include "generate.h"

#include "canvas.h"
#include "layout.h"
#include "maps.h"
#include "refine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* A picture in hand, or room for one. */
struct slot {
    struct canvas canvas;
    struct run keep;   /* what lives as long as the picture */
    size_t keep_bytes; /* what it needs of that */
    int eval;          /* evaluations that are over */
    int ran;           /* the kind of the last, -1: none */
    bool used;
};

struct generator {
    const struct model *m;
    struct run pass;    /* one forward pass at a time */
    size_t pass_bytes;  /* what the pictures in hand need of it */
    struct slot **slot; /* [n]; they stay where they are */
    int n;
    struct turn *turn; /* [n] of those that are not done */
    struct batch batch;
    bool changed; /* others are in hand than at the last step */

    struct use *folded; /* the adapters in the folded weights */
    int n_folded;
    struct fold *fold_unet, *fold_text;
    bool ready;
};

int generator_open(struct generator **out, const struct model *m, struct err *err)
{
    struct generator *g = calloc(1, sizeof *g);
    *out = g;
    if (!g)
        return err_nomem(err, sizeof *g);
    g->m = m;
    run_init(&g->pass, m->dev);
    return 0;
}

static void empty(struct slot *s)
{
    if (s->used)
        canvas_release(&s->canvas);
    s->used = false;
}

/* Their memory stays. */
static void forget_pictures(struct generator *g)
{
    for (int i = 0; i < g->n; i++)
        empty(g->slot[i]);
    batch_release(&g->batch);
    g->pass_bytes = 0;
    g->ready = false;
}

static void forget_fold(struct generator *g)
{
    fold_free(g->fold_unet);
    fold_free(g->fold_text);
    free(g->folded);
    g->folded = NULL;
    g->n_folded = 0;
    g->fold_unet = g->fold_text = NULL;
}

void generator_forget(struct generator *g)
{
    if (!g)
        return;
    forget_pictures(g);
    forget_fold(g);
}

void generator_close(struct generator *g)
{
    if (!g)
        return;
    generator_forget(g);
    for (int i = 0; i < g->n; i++) {
        run_release(&g->slot[i]->keep);
        free(g->slot[i]);
    }
    run_release(&g->pass);
    free(g->slot);
    free(g->turn);
    free(g);
}

/* ---- folding --------------------------------------------------------------------------------- */

static bool same_fold(const struct use *a, int n_a, const struct use *b, int n_b)
{
    bool same = n_a == n_b;
    for (int i = 0; i < n_a && same; i++)
        same = a[i].adapter == b[i].adapter && a[i].unet == b[i].unet && a[i].te == b[i].te;
    return same;
}

static int fold(struct generator *g, const struct picture *p, struct err *err)
{
    size_t n = (size_t)p->n_use;
    const struct adapter **a = malloc((n + 1) * sizeof *a);
    float *s = malloc((n + 1) * sizeof *s);
    forget_fold(g);
    g->folded = malloc((n + 1) * sizeof *g->folded);
    int rc = a && s && g->folded ? 0 : err_nomem(err, n * sizeof *a);
    for (size_t i = 0; i < n && rc == 0; i++) {
        g->folded[i] = p->use[i];
        a[i] = p->use[i].adapter;
        s[i] = p->use[i].unet;
    }
    if (rc == 0)
        rc = fold_new(&g->fold_unet, &g->m->sites, COMPONENT_UNET, (int)n, a, s, err);
    for (size_t i = 0; i < n && rc == 0; i++)
        s[i] = p->use[i].te;
    if (rc == 0)
        rc = fold_new(&g->fold_text, &g->m->sites, COMPONENT_TEXT, (int)n, a, s, err);
    g->n_folded = rc == 0 ? (int)n : 0;
    free(a);
    free(s);
    return rc;
}

/* Folded weights serve all pictures in hand, or none. They stay for the next pictures of the same adapters. */
static int see_to_folding(struct generator *g, const struct picture *p, struct err *err)
{
    bool any = p->fold && p->n_use;
    int rc = 0;
    for (int i = 0; i < g->n; i++) {
        const struct picture *q = &g->slot[i]->canvas.p;
        if (g->slot[i]->used && (any != (q->fold && q->n_use) ||
                                 (any && !same_fold(p->use, p->n_use, q->use, q->n_use))))
            return err_set(err, ERR_ARG, "--fold: pictures made together share all adapters");
    }
    if (!any)
        forget_fold(g);
    else if (!same_fold(p->use, p->n_use, g->folded, g->n_folded))
        rc = fold(g, p, err);
    g->batch.fold = g->fold_unet;
    return rc;
}

/* ---- preparing ------------------------------------------------------------------------------- */

/* Evaluations of a slot's picture. */
static int evals_of(const struct generator *g, int i)
{
    return g->slot[i]->used ? passes_evals(&g->slot[i]->canvas.passes) : 0;
}

/* Which of its kinds one of them is. */
static int kind_of(const struct generator *g, int i, int eval)
{
    return g->slot[i]->canvas.passes.which[eval];
}

/* The turns of those of the slots [first, last) that have an evaluation of this number, below 0: their own next, with
 * actions that are only like what they will be. */
static int turns_like(struct generator *g, int first, int last, int eval)
{
    int n = 0;
    for (int i = first; i < last; i++) {
        struct canvas *c = &g->slot[i]->canvas;
        int at = eval < 0 ? g->slot[i]->eval : eval;
        if (at >= evals_of(g, i) || !canvas_turn(c, at, &g->turn[n]))
            continue;
        g->turn[n++].a = &c->passes.kind[kind_of(g, i, at)];
    }
    return n;
}

static int evaluations(const struct generator *g)
{
    int n = 0;
    for (int i = 0; i < g->n; i++)
        n = evals_of(g, i) > n ? evals_of(g, i) : n;
    return n;
}

/* Whether the slots [first, last) run the same at two evaluations. */
static bool alike(const struct generator *g, int first, int last, int a, int b)
{
    bool same = true;
    for (int i = first; i < last && same; i++) {
        int n = evals_of(g, i);
        same = (a < n) == (b < n) && (a >= n || kind_of(g, i, a) == kind_of(g, i, b));
    }
    return same;
}

/* What a picture's move before its passes takes. */
static int moves(struct generator *g, struct turn *t, bool prepare, double *flops, struct err *err)
{
    switch (t->a->refine.how) {
    case REFINE_CONTRAST:
        return refine_measure(t->of->refine, &g->batch, t, prepare, &g->pass_bytes, flops, err);
    case REFINE_LAYOUT:
        return layout_measure(t->of->layout, &g->batch, t, prepare, &g->pass_bytes, flops, err);
    case REFINE_NONE: break;
    }
    return 0;
}

/* Each kind of evaluation of the slots [first, last) once, measured or made ready. *flops grows by what all
 * evaluations cost. */
static int all_turns(struct generator *g, int first, int last, bool prepare, double *flops,
                     struct err *err)
{
    int n_eval = evaluations(g), rc = 0;
    for (int e = 0; e < n_eval && rc == 0; e++) {
        int seen = 0, times = 0;
        while (!alike(g, first, last, seen, e))
            seen++;
        if (seen < e)
            continue;
        for (int k = e; k < n_eval; k++)
            times += alike(g, first, last, e, k);
        double one = 0;
        int n = turns_like(g, first, last, e);
        for (int k = 0; k < n && rc == 0; k++)
            rc = moves(g, &g->turn[k], prepare, &one, err);
        rc = rc < 0 ? rc : batch_measure(&g->batch, g->turn, n, prepare, &g->pass_bytes, &one, err);
        *flops += times * one;
    }
    return rc;
}

/* Every pass of one picture by itself without computing: only sizes and costs, or also packing the weights. */
static int own_passes(struct generator *g, int i, bool prepare, struct err *err)
{
    struct canvas *c = &g->slot[i]->canvas;
    double flops = 0;
    int rc = all_turns(g, i, i + 1, prepare, &flops, err);
    rc = rc < 0 ? rc
                : passes_measure(&c->passes, &g->pass, g->fold_text, prepare, &g->pass_bytes,
                                 &flops, err);
    rc = rc < 0 ? rc : canvas_measure(c, &g->pass, prepare, &g->pass_bytes, &flops, err);
    c->cost.flops += prepare ? 0 : flops;
    return rc;
}

/* Packed weights are float32: four bytes a value, the folded ones once more, and the adapters' own. */
static size_t weight_bytes(const struct generator *g, const struct picture *p)
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
    for (int i = 0; i < p->n_use; i++)
        n += adapter_bytes(p->use[i].adapter);
    for (int i = 0; i < g->batch.n_joint; i++)
        n += joint_bytes(g->batch.joint[i]);
    return n;
}

static int add_slot(struct generator *g, struct err *err)
{
    size_t n = (size_t)g->n + 1;
    struct slot **slot = realloc(g->slot, n * sizeof *slot);
    if (!slot)
        return err_nomem(err, n * sizeof *slot);
    g->slot = slot;
    struct turn *turn = realloc(g->turn, n * sizeof *turn);
    if (!turn)
        return err_nomem(err, n * sizeof *turn);
    g->turn = turn;
    g->slot[g->n] = calloc(1, sizeof **slot);
    if (!g->slot[g->n])
        return err_nomem(err, sizeof **slot);
    run_init(&g->slot[g->n++]->keep, g->m->dev);
    return 0;
}

/* Plans a picture into a slot that is free, and says what it costs by itself. */
static int open_slot(struct generator *g, int i, const struct picture *p, struct err *err)
{
    struct slot *s = g->slot[i];
    struct canvas *c = &s->canvas;
    int rows = 0, layers = 1;
    assert(p->prompt && p->negative && !s->used);
    s->used = true; /* a canvas is released also after an error */
    s->eval = 0;
    s->ran = -1;
    int rc = canvas_open(c, g->m, p, err);
    rc = rc < 0 ? rc : see_to_folding(g, p, err);
    for (int k = 0; k < g->n && rc == 0; k++) {
        const struct canvas *in_hand = &g->slot[k]->canvas;
        if (!g->slot[k]->used)
            continue;
        rows += in_hand->passes.rows;
        layers = in_hand->cond.n_layer > layers ? in_hand->cond.n_layer : layers;
    }
    g->batch.m = g->m;
    g->batch.run = &g->pass;
    g->changed = true;
    rc = rc < 0 ? rc : batch_room(&g->batch, rows, layers, err);
    if (rc < 0)
        return rc;
    run_measure(&s->keep);
    canvas_place(c, &s->keep);
    s->keep_bytes = s->keep.plan.peak;
    rc = run_check(&s->keep, err);
    rc = rc < 0 ? rc : own_passes(g, i, false, err);
    c->cost.passes = c->passes.total;
    c->cost.bytes = s->keep_bytes + g->pass_bytes;
    c->cost.weights = rc < 0 ? 0 : weight_bytes(g, p);
    return rc;
}

int generator_check(const struct model *m, const struct picture *p, struct err *err)
{
    struct canvas c;
    int rc = canvas_open(&c, m, p, err);
    canvas_release(&c);
    return rc;
}

int generator_prepare(struct generator *g, const struct picture *p, int n, struct cost *cost,
                      struct err *err)
{
    struct cost none = {0}, *total = cost ? cost : &none;
    double flops = 0;
    int rc = 0;
    memset(total, 0, sizeof *total);
    forget_pictures(g);
    while (rc == 0 && g->n < n)
        rc = add_slot(g, err);
    for (int i = 0; i < n && rc == 0; i++)
        rc = open_slot(g, i, &p[i], err);
    if (rc == 0 && n > 1)
        rc = all_turns(g, 0, n, false, &flops, err);
    if (rc < 0)
        return rc;
    total->bytes = g->pass_bytes;
    for (int i = 0; i < n; i++)
        total->bytes += g->slot[i]->keep_bytes;
    for (int i = 0; i < n; i++) {
        struct cost *c = &g->slot[i]->canvas.cost;
        c->bytes = total->bytes;
        total->passes += c->passes;
        total->flops += c->flops;
        total->weights = c->weights > total->weights ? c->weights : total->weights;
    }
    g->ready = true;
    return 0;
}

const struct cost *generator_cost(const struct generator *g, int i)
{
    return &g->slot[i]->canvas.cost;
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Memory and packed weights of one picture, its texts and its first latent: what can fail does so before its first
 * step. */
static int begin(struct generator *g, int i, struct err *err)
{
    struct slot *s = g->slot[i];
    int rc = run_reserve(&s->keep, s->keep_bytes, err);
    rc = rc < 0 ? rc : run_reserve(&g->pass, g->pass_bytes, err);
    if (rc < 0)
        return rc;
    canvas_place(&s->canvas, &s->keep);
    s->eval = 0;
    s->ran = -1;
    rc = own_passes(g, i, true, err);
    rc = rc < 0 ? rc : run_reserve(&g->pass, g->pass_bytes, err);
    rc = rc < 0 ? rc : passes_encode(&s->canvas.passes, &g->pass, g->fold_text, err);
    return rc < 0 ? rc : canvas_start(&s->canvas, &g->pass, &s->keep, err);
}

/* The batches that the next step runs, where they are others than the last one's. Of prepared pictures all are ready. */
static int ready_batches(struct generator *g, struct err *err)
{
    double flops = 0;
    if (g->ready)
        return 0;
    for (int i = 0; i < g->n && !g->changed; i++)
        if (g->slot[i]->eval < evals_of(g, i))
            g->changed = g->slot[i]->ran != kind_of(g, i, g->slot[i]->eval);
    if (!g->changed)
        return 0;
    int n = turns_like(g, 0, g->n, -1);
    int rc = batch_measure(&g->batch, g->turn, n, true, &g->pass_bytes, &flops, err);
    rc = rc < 0 ? rc : run_reserve(&g->pass, g->pass_bytes, err);
    g->changed = rc < 0;
    return rc;
}

/* What the model says of n pictures, moved before where they are to be. */
static int predict(struct generator *g, int n, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        struct turn *t = &g->turn[i];
        if (t->a->refine.how == REFINE_CONTRAST)
            rc = refine_run(t->of->refine, &g->batch, t, err);
        else if (t->a->refine.how == REFINE_LAYOUT)
            rc = layout_run(t->of->layout, &g->batch, t, err);
    }
    return rc < 0 ? rc : batch_predict(&g->batch, g->turn, n, err);
}

int generator_step(struct generator *g, struct err *err)
{
    int n = 0, rc = ready_batches(g, err);
    for (int i = 0; i < g->n && rc == 0; i++) {
        struct slot *s = g->slot[i];
        struct canvas *c = &s->canvas;
        if (s->eval >= evals_of(g, i))
            continue;
        rc = canvas_rewind(c, s->eval, &g->pass, &s->keep, err);
        canvas_turn(c, s->eval, &g->turn[n++]);
        passes_next(&c->passes, s->eval, &c->action);
    }
    rc = rc < 0 ? rc : predict(g, n, err);
    for (int i = 0; i < g->n && rc == 0; i++) {
        struct slot *s = g->slot[i];
        if (s->eval >= evals_of(g, i))
            continue;
        rc = canvas_advance(&s->canvas, s->eval, &s->keep, err);
        s->ran = kind_of(g, i, s->eval);
        if (++s->eval == evals_of(g, i))
            g->changed = true;
    }
    const struct backend *be = g->m->dev->be;
    return rc < 0 || !be->flush ? rc : be->flush(g->m->dev, err);
}

static int go_on(generate_progress *progress, void *user, int done, int total, struct err *err)
{
    return progress && progress(user, done, total) ? err_set(err, ERR_STOPPED, "stopped") : 0;
}

static int finish(struct generator *g, struct image *im, int n, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++)
        rc = canvas_end(&g->slot[i]->canvas, &g->pass, &g->slot[i]->keep, &im[i], err);
    for (int i = 0; i < n && rc < 0; i++)
        image_release(&im[i]);
    return rc;
}

static int in_hand(const struct generator *g)
{
    int n = 0;
    for (int i = 0; i < g->n; i++)
        n += g->slot[i]->used;
    return n;
}

int generator_run(struct generator *g, struct image *im, generate_progress *progress, void *user,
                  struct err *err)
{
    if (!g->ready)
        return err_set(err, ERR_ARG, "no picture was prepared");
    int n = in_hand(g), evals = evaluations(g), rc = 0;
    double flops = 0;
    memset(im, 0, (size_t)n * sizeof *im);
    for (int i = 0; i < n && rc == 0; i++)
        rc = begin(g, i, err);
    if (rc == 0 && n > 1)
        rc = all_turns(g, 0, n, true, &flops, err);
    rc = rc < 0 ? rc : run_reserve(&g->pass, g->pass_bytes, err);
    for (int i = 0; i < evals && rc == 0; i++) {
        rc = go_on(progress, user, i, evals, err);
        rc = rc < 0 ? rc : generator_step(g, err);
    }
    rc = rc < 0 ? rc : go_on(progress, user, evals, evals, err);
    return rc < 0 ? rc : finish(g, im, n, err);
}

/* ---- pictures that come and go --------------------------------------------------------------- */

int generator_join(struct generator *g, const struct picture *p, int *slot, struct err *err)
{
    int i = 0, rc = 0;
    while (i < g->n && g->slot[i]->used)
        i++;
    if (i == g->n)
        rc = add_slot(g, err);
    rc = rc < 0 ? rc : open_slot(g, i, p, err);
    if (rc < 0 && i < g->n)
        generator_leave(g, i);
    *slot = i;
    g->ready = false;
    return rc;
}

int generator_begin(struct generator *g, int i, struct err *err)
{
    return begin(g, i, err);
}

int generator_left(const struct generator *g, int i)
{
    return evals_of(g, i) - g->slot[i]->eval;
}

int generator_take(struct generator *g, int i, struct image *im, struct err *err)
{
    struct slot *s = g->slot[i];
    memset(im, 0, sizeof *im);
    int rc = canvas_end(&s->canvas, &g->pass, &s->keep, im, err);
    generator_leave(g, i);
    return rc;
}

/* Whether a picture in hand has it. */
static bool has_adapter(const struct generator *g, const struct adapter *a)
{
    bool has = false;
    for (int i = 0; i < g->n; i++)
        for (int k = 0; g->slot[i]->used && k < g->slot[i]->canvas.p.n_use; k++)
            has = has || g->slot[i]->canvas.p.use[k].adapter == a;
    return has;
}

void generator_leave(struct generator *g, int i)
{
    const struct use *use = g->slot[i]->canvas.p.use;
    int n = g->slot[i]->used ? g->slot[i]->canvas.p.n_use : 0;
    empty(g->slot[i]);
    for (int k = 0; k < n; k++)
        if (!has_adapter(g, use[k].adapter))
            batch_drop(&g->batch, use[k].adapter);
    g->changed = true;
}

void generator_drop(struct generator *g, const struct adapter *a)
{
    for (int i = 0; i < g->n_folded; i++)
        if (g->folded[i].adapter == a) {
            forget_fold(g);
            break;
        }
}

/* ---- looking --------------------------------------------------------------------------------- */

int generator_look(struct generator *g, int i, struct err *err)
{
    return canvas_look(&g->slot[i]->canvas, &g->slot[i]->keep, err);
}

const float *generator_mask(const struct generator *g, int i, int adapter, int *h, int *w)
{
    const struct passes *p = &g->slot[i]->canvas.passes;
    if (p->refine)
        return refine_values(p->refine, adapter, h, w);
    return p->maps ? maps_values(p->maps, adapter, h, w) : NULL;
}

const float *generator_words(const struct generator *g, int i, int adapter, int *h, int *w)
{
    const struct passes *p = &g->slot[i]->canvas.passes;
    if (p->refine)
        return refine_words(p->refine, adapter, h, w);
    return p->maps ? maps_attended(p->maps, adapter, h, w) : NULL;
}

const struct passes *generator_passes(const struct generator *g, int i)
{
    return &g->slot[i]->canvas.passes;
}

const float *generator_latent(const struct generator *g, int i, size_t *n)
{
    *n = tensor_count(&g->slot[i]->canvas.slot[SLOT_X]);
    return g->slot[i]->canvas.host;
}
