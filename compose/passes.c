#include "passes.h"

#include "areas.h"
#include "influence.h"
#include "layout.h"
#include "maps.h"
#include "refine.h"
#include "variants.h"

#include <stdlib.h>
#include <string.h>

enum half passes_half(const struct passes *p, int row)
{
    return p->guided && row == 0 ? HALF_UNCOND : HALF_COND;
}

bool passes_run(const struct passes *p, const struct pass *q, int row)
{
    return q->mix[passes_half(p, row)] != 0;
}

/* ---- texts ----------------------------------------------------------------------------------- */

/* area: of the adapters that have one, that one's (-1: nobody's) alone. */
static struct text_set set_of(const struct passes *p, const struct action *a, const struct pass *q,
                              enum half half, int area)
{
    struct text_set s = {0};
    for (int i = q->act0; i < q->act0 + q->n_act; i++) {
        const struct use *u = &p->p->use[a->act[i].adapter];
        float strength = (float)(u->te * a->act[i].w[half]);
        int own = q->regions && p->areas ? areas_of(p->areas, a->act[i].adapter) : -1;
        if (p->p->fold || strength == 0 || !u->adapter->matched_in[COMPONENT_TEXT] ||
            (own >= 0 && own != area))
            continue;
        s.adapter[s.n] = a->act[i].adapter;
        s.strength[s.n++] = strength;
    }
    return s;
}

static bool same_set(const struct text_set *a, const struct text_set *b)
{
    return a->n == b->n && !memcmp(a->adapter, b->adapter, (size_t)a->n * sizeof *a->adapter) &&
           !memcmp(a->strength, b->strength, (size_t)a->n * sizeof *a->strength);
}

static int find_set(const struct passes *p, const struct text_set *s)
{
    int i = 0;
    while (i < p->n_set && !same_set(&p->set[i], s))
        i++;
    return i;
}

static const struct tensor *text_in(const struct passes *p, const struct action *a, int pass,
                                    int row, int area, int text)
{
    struct text_set s = set_of(p, a, &a->pass[pass], passes_half(p, row), area);
    return &p->hidden[find_set(p, &s) * p->cond->n_text + text];
}

const struct tensor *passes_text(const struct passes *p, const struct action *a, int pass, int row,
                                 int step)
{
    return text_in(p, a, pass, row, -1, passes_words(p, a, pass, row, step));
}

int passes_words(const struct passes *p, const struct action *a, int pass, int row, int step)
{
    const struct pass *q = &a->pass[pass];
    if (!p->variants || !q->placed || passes_half(p, row) == HALF_UNCOND)
        return conditions_at(p->cond, row, step);
    int own = q->owner < 0 ? p->variants->n : q->owner;
    return p->variants->text[own] == p->variants->plain ? conditions_at(p->cond, row, step)
                                                        : p->variants->text[own];
}

const struct tensor *passes_area_text(const struct passes *p, const struct action *a, int pass,
                                      int row, int step, int area)
{
    bool negative = passes_half(p, row) == HALF_UNCOND;
    return text_in(p, a, pass, row, area,
                   negative ? conditions_at(p->cond, row, step) : p->areas->text[area]);
}

/* ---- planning -------------------------------------------------------------------------------- */

/* Whether both run the same layers on the same rows. */
static bool same_kind(const struct action *a, const struct action *b)
{
    bool same = a->n_pass == b->n_pass && a->n_act == b->n_act && a->refine.how == b->refine.how &&
                a->refine.times == b->refine.times && a->refine.relay == b->refine.relay &&
                !(a->refine.mask > 0) == !(b->refine.mask > 0);
    for (int i = 0; i < a->n_pass && same; i++)
        same = a->pass[i].n_act == b->pass[i].n_act && a->pass[i].deep == b->pass[i].deep &&
               !(a->pass[i].attend.sharp > 0) == !(b->pass[i].attend.sharp > 0) &&
               a->pass[i].attend.when == b->pass[i].attend.when &&
               a->pass[i].regions == b->pass[i].regions && a->pass[i].alone == b->pass[i].alone &&
               !a->pass[i].mix[0] == !b->pass[i].mix[0] && !a->pass[i].mix[1] == !b->pass[i].mix[1];
    for (int i = 0; i < a->n_act && same; i++) {
        const double *v = a->act[i].w, *w = b->act[i].w;
        same = a->act[i].adapter == b->act[i].adapter && !v[0] == !w[0] && !v[1] == !w[1] &&
               (v[0] == v[1]) == (w[0] == w[1]);
    }
    return same;
}

/* Room for one more of size bytes behind n. */
static int grow(void *list, int n, size_t size, struct err *err)
{
    void **at = list, *more;
    if (n & (n - 1)) /* full at powers of two */
        return 0;
    more = realloc(*at, (size_t)(n ? 2 * n : 1) * size);
    if (!more)
        return err_nomem(err, (size_t)n * size);
    *at = more;
    return 0;
}

static int note_kind(struct passes *p, const struct action *a, int eval, struct err *err)
{
    int i = 0, rc = 0;
    while (i < p->n_kind && !same_kind(&p->kind[i], a))
        i++;
    if (i == p->n_kind) {
        rc = grow(&p->kind, p->n_kind, sizeof *p->kind, err);
        if (rc < 0)
            return rc;
        p->kind[p->n_kind++] = *a;
    }
    p->which[eval] = i;
    return 0;
}

static int note_set(struct passes *p, const struct text_set *s, struct err *err)
{
    if (find_set(p, s) < p->n_set)
        return 0;
    int rc = grow(&p->set, p->n_set, sizeof *p->set, err);
    if (rc == 0)
        p->set[p->n_set++] = *s;
    return rc;
}

static int note_sets(struct passes *p, const struct action *a, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < a->n_pass; i++)
        for (int half = p->guided ? HALF_UNCOND : HALF_COND; half <= HALF_COND; half++) {
            int areas = a->pass[i].regions && p->areas ? p->areas->n : 0;
            for (int k = -1; k < areas && a->pass[i].mix[half] != 0 && rc == 0; k++) {
                struct text_set s = set_of(p, a, &a->pass[i], (enum half)half, k);
                rc = note_set(p, &s, err);
            }
        }
    return rc;
}

static bool is_placed(const struct picture *p)
{
    bool any = false;
    for (int i = 0; i < p->n_use; i++)
        any |= p->use[i].where != NULL;
    return any;
}

/* Maps, and whose words stand in the texts that are no row's. */
static int open_maps(struct passes *p, struct err *err)
{
    const struct variants *v = p->variants;
    int rc = maps_open(&p->maps, p->m, p->p, p->cond, p->compose->strategy, err);
    for (int i = 0; p->areas && i < p->areas->n && rc == 0; i++)
        rc = maps_say(p->maps, p->cond, p->areas->text[i], p->areas->adapter[i],
                      p->p->use[p->areas->adapter[i]].words, err);
    for (int k = 0; v && k <= v->n && rc == 0; k++)
        for (int i = 0; i < v->n && v->text[k] != v->plain && rc == 0; i++) {
            const char *own = variants_words(v, v->text[k], i);
            rc = p->p->use[i].where ? 0
                                    : maps_say(p->maps, p->cond, v->text[k], i,
                                               own ? own : p->p->use[i].words, err);
        }
    return rc;
}

static int note(struct passes *p, const struct action *a, int eval, struct err *err)
{
    int rows = 0, rc = 0;
    for (int i = 0; i < a->n_pass && rc == 0; i++) {
        for (int k = 0; k < p->cond->n_row; k++)
            rows += passes_run(p, &a->pass[i], k);
        bool looks = a->pass[i].attend.sharp > 0 || is_placed(p->p) || a->refine.how;
        if (looks && !p->maps)
            rc = open_maps(p, err);
    }
    if (rc == 0 && a->refine.how == REFINE_CONTRAST && !p->refine)
        rc = refine_open(&p->refine, p, err);
    if (rc == 0 && a->refine.how == REFINE_LAYOUT && !p->layout)
        rc = layout_open(&p->layout, p, err);
    p->total += rows;
    p->rows = p->rows > rows ? p->rows : rows;
    for (int i = 0; i < a->n_pass; i++)
        if (a->pass[i].deep != DEEP_PLAIN && a->pass[i].slot >= p->n_slot)
            p->n_slot = a->pass[i].slot + 1;
    rc = rc < 0 ? rc : note_kind(p, a, eval, err);
    return rc < 0 ? rc : note_sets(p, a, err);
}

int passes_evals(const struct passes *p)
{
    return p->n_probe + p->sampler->n_eval;
}

int passes_eval(const struct passes *p, int eval)
{
    return eval < p->n_probe ? eval : eval - p->n_probe;
}

void passes_next(const struct passes *p, int eval, struct action *a)
{
    int of = passes_eval(p, eval);
    struct compose_now now = {
        .step = p->sampler->eval[of].step, .eval = of, .probe = eval < p->n_probe};
    for (int i = 0; i < p->cond->n_row; i++)
        now.texts = now.texts * 31 + (unsigned)conditions_at(p->cond, i, now.step);
    compose_next(p->compose, &now, a);
}

int passes_plan(struct passes *p, struct err *err)
{
    const struct compose_strategy *how = p->compose->strategy;
    int steps = how->probe ? how->probe(p->compose) : 0, rc = 0;
    struct action a;
    while (p->n_probe < p->sampler->n_eval && p->sampler->eval[p->n_probe].step < steps)
        p->n_probe++;
    int n = passes_evals(p);
    p->which = calloc((size_t)n + 1, sizeof *p->which);
    if (!p->which)
        return err_nomem(err, (size_t)n * sizeof *p->which);
    if (how->regions && p->p->n_use) /* before anything counts texts */
        rc = areas_open(&p->areas, p, err);
    if (how->variants && p->p->n_use)
        rc = variants_open(&p->variants, p, err);
    for (int i = 0; i < n && rc == 0; i++) {
        passes_next(p, i, &a);
        rc = note(p, &a, i, err);
    }
    if (rc == 0 && p->n_slot && !unet_deep_channels(p->m->unet))
        rc = err_set(err, ERR_ARG, "deepcache: this UNet has one level, nothing lies deep in it");
    if (rc < 0)
        return rc;
    size_t texts = (size_t)p->n_set * (size_t)p->cond->n_text,
           deep = (size_t)p->n_slot * (size_t)p->cond->n_row;
    p->hidden = calloc(texts + 1, sizeof *p->hidden);
    p->deep = calloc(deep + 1, sizeof *p->deep);
    return p->hidden && p->deep ? 0 : err_nomem(err, (texts + deep) * sizeof *p->deep);
}

void passes_place(struct passes *p, struct run *keep)
{
    const struct conditions *c = p->cond;
    int f = p->m->vae->factor, h = p->p->h / f, w = p->p->w / f;
    for (int i = 0; i < p->n_set * c->n_text; i++)
        p->hidden[i] =
            run_tensor(keep, c->n_layer, c->n_chunk * c->length, 1, p->m->text->tower.width);
    for (int i = 0; i < p->n_slot * c->n_row; i++)
        p->deep[i] = run_tensor(keep, 1, h, w, unet_deep_channels(p->m->unet));
}

double passes_weight(const struct passes *p, const struct action *a, int pass, int row)
{
    const struct conditions *c = p->cond;
    double rest = 1;
    if (!p->guided)
        return a->pass[pass].mix[HALF_COND];
    if (row > 0)
        return p->p->cfg * c->row[row].weight * a->pass[pass].mix[HALF_COND];
    for (int i = 1; i < c->n_row; i++)
        rest -= p->p->cfg * c->row[i].weight;
    return rest * a->pass[pass].mix[HALF_UNCOND];
}

/* ---- the text encoder ------------------------------------------------------------------------ */

/* branch has room for COMPOSE_MAX_ADAPTERS. */
static void set_adapters(const struct passes *p, struct run *r, const struct fold *fold,
                         const struct text_set *s, struct branch *branch)
{
    r->fold = fold;
    r->branch = branch;
    r->n_branch = s->n;
    for (int i = 0; i < s->n; i++)
        branch[i] = (struct branch){.adapter = p->p->use[s->adapter[i]].adapter,
                                    .row1 = p->cond->n_chunk,
                                    .strength = s->strength[i]};
}

/* What adapters do to the texts. */
static void saw(void *user, struct run *r, const struct layer *l, const struct branch *br,
                const struct tensor *base, const struct tensor *part)
{
    const struct passes *p = user;
    for (int i = 0; i < br->row1 - br->row0 && !r->err.code; i++)
        influence_add(p->p->influence, br->adapter, 0, l, base, part, i, &r->err);
}

int passes_measure(const struct passes *p, struct run *r, const struct fold *fold, bool prepare,
                   size_t *peak, double *flops, struct err *err)
{
    struct branch branch[COMPOSE_MAX_ADAPTERS];
    const struct watch watch = {saw, (void *)p};
    const struct conditions *c = p->cond;
    int rc = 0;
    for (int i = 0; i < p->n_set && rc == 0; i++) {
        run_begin(r, prepare);
        set_adapters(p, r, fold, &p->set[i], branch);
        r->watch = p->p->influence ? &watch : NULL;
        clip_text_forward(p->m->text, r, c->words, c->chunks[0].id, c->n_chunk, c->length,
                          p->p->clip_skip - 1, 0);
        *peak = r->plan.peak > *peak ? r->plan.peak : *peak;
        *flops += c->n_encode * r->flops;
        rc = run_check(r, err);
    }
    run_bare(r);
    return rc;
}

int passes_encode(struct passes *p, struct run *r, const struct fold *fold, struct err *err)
{
    struct branch branch[COMPOSE_MAX_ADAPTERS];
    const struct watch watch = {saw, p};
    int rc = 0;
    for (int i = 0; i < p->n_set && rc == 0; i++) {
        set_adapters(p, r, fold, &p->set[i], branch);
        r->watch = p->p->influence ? &watch : NULL;
        rc = conditions_encode(p->cond, p->m->text, p->p->clip_skip - 1, r,
                               &p->hidden[i * p->cond->n_text], err);
    }
    run_bare(r);
    return rc;
}

void passes_release(struct passes *p)
{
    refine_close(p->refine);
    layout_close(p->layout);
    areas_close(p->areas);
    variants_close(p->variants);
    maps_close(p->maps);
    free(p->kind);
    free(p->which);
    free(p->set);
    free(p->hidden);
    free(p->deep);
    memset(p, 0, sizeof *p);
}
