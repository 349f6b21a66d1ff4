/* The denoise loop. Read generator_run first. */
#include "generate.h"

#include "canvas.h"
#include "layout.h"
#include "maps.h"
#include "refine.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

struct generator {
    const struct model *m;
    struct run pass;               /* one forward pass at a time */
    struct run keep;               /* what lives as long as the pictures */
    size_t pass_bytes, keep_bytes; /* what the prepared pictures need of them */
    struct canvas *canvas;         /* [n], the pictures in hand */
    int n;
    struct turn *turn; /* [n] of those that are not done */
    struct batch batch;

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
    run_init(&g->keep, m->dev);
    return 0;
}

static void forget_pictures(struct generator *g)
{
    for (int i = 0; g->canvas && i < g->n; i++)
        canvas_release(&g->canvas[i]);
    batch_release(&g->batch);
    free(g->canvas);
    free(g->turn);
    g->canvas = NULL;
    g->turn = NULL;
    g->n = 0;
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
    run_release(&g->pass);
    run_release(&g->keep);
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
static int see_to_folding(struct generator *g, const struct picture *p, int n, struct err *err)
{
    bool any = p[0].fold && p[0].n_use;
    for (int i = 1; i < n; i++)
        if (any != (p[i].fold && p[i].n_use) ||
            (any && !same_fold(p[0].use, p[0].n_use, p[i].use, p[i].n_use)))
            return err_set(err, ERR_ARG, "--fold: pictures made together share all adapters");
    int rc = 0;
    if (!any)
        forget_fold(g);
    else if (!same_fold(p[0].use, p[0].n_use, g->folded, g->n_folded))
        rc = fold(g, &p[0], err);
    g->batch.fold = g->fold_unet;
    return rc;
}

/* ---- preparing ------------------------------------------------------------------------------- */

/* Everything that lives as long as the pictures, in this order each time. */
static void place(struct generator *g)
{
    for (int i = 0; i < g->n; i++)
        canvas_place(&g->canvas[i], &g->keep);
}

/* The turns of those of the pictures [first, last) that have an evaluation of this number. With kinds their actions
 * are only like what they will be. */
static int turns(struct generator *g, int first, int last, int eval, bool kinds)
{
    int n = 0;
    for (int i = first; i < last; i++) {
        struct canvas *c = &g->canvas[i];
        if (!canvas_turn(c, eval, &g->turn[n]))
            continue;
        if (kinds)
            g->turn[n].a = &c->passes.kind[c->passes.which[eval]];
        else
            passes_next(&c->passes, eval, &c->action);
        n++;
    }
    return n;
}

static int evaluations(const struct generator *g)
{
    int n = 0;
    for (int i = 0; i < g->n; i++)
        n = passes_evals(&g->canvas[i].passes) > n ? passes_evals(&g->canvas[i].passes) : n;
    return n;
}

/* Whether the pictures [first, last) run the same at two evaluations. */
static bool alike(const struct generator *g, int first, int last, int a, int b)
{
    bool same = true;
    for (int i = first; i < last && same; i++) {
        const struct canvas *c = &g->canvas[i];
        int n = passes_evals(&c->passes);
        same = (a < n) == (b < n) && (a >= n || c->passes.which[a] == c->passes.which[b]);
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

/* Each kind of evaluation of the pictures [first, last) once, measured or made ready. *flops grows by what all
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
        int n = turns(g, first, last, e, true);
        for (int k = 0; k < n && rc == 0; k++)
            rc = moves(g, &g->turn[k], prepare, &one, err);
        rc = rc < 0 ? rc : batch_measure(&g->batch, g->turn, n, prepare, &g->pass_bytes, &one, err);
        *flops += times * one;
    }
    return rc;
}

/* Every pass there will be without computing: only sizes and costs, or also packing the weights. */
static int all_passes(struct generator *g, bool prepare, struct err *err)
{
    double flops = 0;
    int rc = g->n == 1 && !prepare ? 0 : all_turns(g, 0, g->n, prepare, &flops, err);
    for (int i = 0; i < g->n && rc == 0; i++) {
        struct canvas *c = &g->canvas[i];
        flops = 0;
        if (!prepare)
            rc = all_turns(g, i, i + 1, false, &flops, err);
        rc = rc < 0 ? rc
                    : passes_measure(&c->passes, &g->pass, g->fold_text, prepare, &g->pass_bytes,
                                     &flops, err);
        rc = rc < 0 ? rc : canvas_measure(c, &g->pass, prepare, &g->pass_bytes, &flops, err);
        c->cost.flops += prepare ? 0 : flops;
    }
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

static int take_pictures(struct generator *g, const struct picture *p, int n, struct err *err)
{
    int rows = 0, layers = 1, rc = 0;
    g->canvas = calloc((size_t)n, sizeof *g->canvas);
    g->turn = calloc((size_t)n, sizeof *g->turn);
    if (!g->canvas || !g->turn)
        return err_nomem(err, (size_t)n * sizeof *g->canvas);
    for (int i = 0; i < n && rc == 0; i++) {
        struct canvas *c = &g->canvas[i];
        assert(p[i].prompt && p[i].negative);
        g->n = i + 1;
        rc = canvas_open(c, g->m, &p[i], err);
        rows += c->passes.rows;
        layers = c->cond.n_layer > layers ? c->cond.n_layer : layers;
    }
    rc = rc < 0 ? rc : see_to_folding(g, p, n, err);
    g->batch.m = g->m;
    g->batch.run = &g->pass;
    return rc < 0 ? rc : batch_room(&g->batch, rows, layers, err);
}

int generator_prepare(struct generator *g, const struct picture *p, int n, struct cost *cost,
                      struct err *err)
{
    struct cost none = {0}, *total = cost ? cost : &none;
    memset(total, 0, sizeof *total);
    forget_pictures(g);
    g->pass_bytes = 0;
    int rc = take_pictures(g, p, n, err);
    if (rc < 0)
        return rc;
    run_measure(&g->keep);
    place(g);
    g->keep_bytes = g->keep.plan.peak;
    rc = run_check(&g->keep, err);
    rc = rc < 0 ? rc : all_passes(g, false, err);
    if (rc < 0)
        return rc;
    size_t bytes = g->keep_bytes + g->pass_bytes;
    for (int i = 0; i < n; i++) {
        struct cost *c = &g->canvas[i].cost;
        c->passes = g->canvas[i].passes.total;
        c->bytes = total->bytes = bytes;
        c->weights = weight_bytes(g, &p[i]);
        total->passes += c->passes;
        total->flops += c->flops;
        total->weights = c->weights > total->weights ? c->weights : total->weights;
    }
    g->ready = true;
    return 0;
}

const struct cost *generator_cost(const struct generator *g, int i)
{
    return &g->canvas[i].cost;
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Memory and packed weights: what can fail does so before the first step. */
static int get_ready(struct generator *g, struct err *err)
{
    int rc = run_reserve(&g->keep, g->keep_bytes, err);
    rc = rc < 0 ? rc : run_reserve(&g->pass, g->pass_bytes, err);
    if (rc < 0)
        return rc;
    place(g);
    rc = all_passes(g, true, err);
    return rc < 0 ? rc : run_reserve(&g->pass, g->pass_bytes, err);
}

static int start(struct generator *g, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < g->n && rc == 0; i++) {
        rc = passes_encode(&g->canvas[i].passes, &g->pass, g->fold_text, err);
        rc = rc < 0 ? rc : canvas_start(&g->canvas[i], &g->pass, &g->keep, err);
    }
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

static int advance(struct generator *g, int eval, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < g->n && rc == 0; i++)
        if (eval < passes_evals(&g->canvas[i].passes))
            rc = canvas_advance(&g->canvas[i], eval, &g->keep, err);
    return rc;
}

static int go_on(generate_progress *progress, void *user, int done, int total, struct err *err)
{
    return progress && progress(user, done, total) ? err_set(err, ERR_STOPPED, "stopped") : 0;
}

static int finish(struct generator *g, struct image *im, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < g->n && rc == 0; i++)
        rc = canvas_end(&g->canvas[i], &g->pass, &g->keep, &im[i], err);
    for (int i = 0; i < g->n && rc < 0; i++)
        image_release(&im[i]);
    return rc;
}

int generator_run(struct generator *g, struct image *im, generate_progress *progress, void *user,
                  struct err *err)
{
    if (!g->ready)
        return err_set(err, ERR_ARG, "no picture was prepared");
    memset(im, 0, (size_t)g->n * sizeof *im);
    int n = evaluations(g), rc = get_ready(g, err);
    rc = rc < 0 ? rc : start(g, err);
    for (int i = 0; i < n && rc == 0; i++) {
        rc = go_on(progress, user, i, n, err);
        for (int k = 0; k < g->n && rc == 0; k++)
            rc = canvas_rewind(&g->canvas[k], i, &g->pass, &g->keep, err);
        rc = rc < 0 ? rc : predict(g, turns(g, 0, g->n, i, false), err);
        rc = rc < 0 ? rc : advance(g, i, err);
    }
    rc = rc < 0 ? rc : go_on(progress, user, n, n, err);
    return rc < 0 ? rc : finish(g, im, err);
}

int generator_look(struct generator *g, int i, struct err *err)
{
    return canvas_look(&g->canvas[i], &g->keep, err);
}

const float *generator_mask(const struct generator *g, int i, int adapter, int *h, int *w)
{
    const struct maps *m = g->canvas[i].passes.maps;
    if (g->canvas[i].passes.refine)
        return refine_values(g->canvas[i].passes.refine, adapter, h, w);
    return m ? maps_values(m, adapter, h, w) : NULL;
}

const float *generator_words(const struct generator *g, int i, int adapter, int *h, int *w)
{
    const struct passes *p = &g->canvas[i].passes;
    if (p->refine)
        return refine_words(p->refine, adapter, h, w);
    return p->maps ? maps_attended(p->maps, adapter, h, w) : NULL;
}

const struct passes *generator_passes(const struct generator *g, int i)
{
    return &g->canvas[i].passes;
}

const float *generator_latent(const struct generator *g, int i, size_t *n)
{
    *n = tensor_count(&g->canvas[i].slot[SLOT_X]);
    return g->canvas[i].host;
}
