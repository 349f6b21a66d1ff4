#include "areas.h"

#include "batch.h"
#include "maps.h"
#include "relevance.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Of a place that lies in a region not quite, as boxes' edges do. */
static const float inside = .999f, half = .5f;

/* How long a separator of clauses is that stands here; 0: none does. */
static size_t separator(const char *p)
{
    return strchr(",;.\n", *p) ? 1 : !strncasecmp(p, " and ", 5) ? 5 : 0;
}

/* The clause of a text that a place in it is of, new. */
static char *clause(const char *text, const char *at)
{
    const char *first = text, *end = at;
    for (const char *p = text; p < at; p++)
        if (separator(p))
            first = p + separator(p) <= at ? p + separator(p) : first;
    while (*end && !separator(end))
        end++;
    first += strspn(first, " ");
    return strndup(first, (size_t)(end - first));
}

/* The text of a region, new: its own; of one that is looked for in the picture, the picture's; what that says of its words;
 * its words. */
static char *text_of(const struct picture *p, const struct use *u)
{
    const char *words = u->words ? u->words : "", *prompt = p->prompt->part[0].text;
    if (u->prompt)
        return strdup(u->prompt);
    if (!u->where)
        return strdup(prompt);
    for (const char *g = words; *g; g += strcspn(g, "\n"), g += *g == '\n') {
        const char *at = relevance_find(prompt, g, strcspn(g, ",\n"));
        if (at)
            return clause(prompt, at);
    }
    return strndup(words, strcspn(words, "\n"));
}

static int add_area(struct areas *a, int adapter, struct err *err)
{
    struct passes *of = a->of;
    const struct use *u = &of->p->use[adapter];
    char *text = text_of(of->p, u);
    a->free[a->n] = !u->where;
    a->adapter[a->n] = adapter;
    int rc =
        text ? conditions_add(of->cond, of->m->tokenizer, of->p->words, text, &a->text[a->n], err)
             : err_nomem(err, 64);
    a->n++;
    free(text);
    return rc;
}

int areas_open(struct areas **out, struct passes *of, struct err *err)
{
    struct areas *a = calloc(1, sizeof *a);
    int rc = 0, uses = of->p->n_use;
    bool boxes = true;
    *out = a;
    if (!a)
        return err_nomem(err, sizeof *a);
    a->of = of;
    for (int i = 0; i < uses && rc == 0; i++) {
        const struct use *u = &of->p->use[i];
        if (!u->where && !(u->words && *u->words && of->compose->strategy->probe))
            continue;
        if (a->n == REGIONS_MAX)
            return err_set(err, ERR_ARG, "%s: a picture has at most %d regions",
                           of->compose->strategy->name, REGIONS_MAX);
        boxes = boxes && u->where;
        rc = add_area(a, i, err);
    }
    if (rc == 0 && of->cond->n_layer > 1 && of->cond->n_layer != of->m->unet->n_cross)
        rc = err_set(
            err, ERR_MISMATCH,
            "prompt of a region: a word has vectors for %d cross attentions, this model has %d: it "
            "was made for another base",
            of->cond->n_layer, of->m->unet->n_cross);
    if (rc < 0 || !a->n)
        return rc;
    a->branch = calloc((size_t)(a->n + 1) * BATCH_ROWS * (size_t)uses, sizeof *a->branch);
    a->hidden = calloc((size_t)a->n * (size_t)of->m->unet->n_cross, sizeof *a->hidden);
    if (!a->branch || !a->hidden)
        return err_nomem(err, (size_t)a->n * sizeof *a->branch);
    rc = regions_new(&a->g, of->m->dev, a->n, boxes ? inside : half, err);
    for (int i = 0; i < a->n && rc == 0; i++) {
        const struct use *u = &of->p->use[a->adapter[i]];
        static const float room[MAPS_PLACES] = {0}; /* of what is to follow */
        rc = u->where ? regions_set(a->g, i, u->where, u->where_h, u->where_w, err)
                      : regions_set(a->g, i, room, MAPS_PLACES, 1, err);
    }
    if (rc == 0)
        areas_restart(a);
    return rc;
}

void areas_close(struct areas *a)
{
    if (!a)
        return;
    regions_free(a->g);
    free(a->branch);
    free(a->hidden);
    free(a);
}

void areas_restart(struct areas *a)
{
    const float all = 1;
    for (int i = 0; i < a->n; i++)
        if (a->free[i])
            regions_set(a->g, i, &all, 1, 1, NULL);
}

void areas_follow(struct areas *a)
{
    for (int i = 0; i < a->n; i++) {
        int h, w;
        const float *v = maps_values(a->of->maps, a->adapter[i], &h, &w);
        if (a->free[i] && v)
            regions_set(a->g, i, v, h, w, NULL);
    }
}

int areas_of(const struct areas *a, int adapter)
{
    int i = 0;
    while (i < a->n && a->adapter[i] != adapter)
        i++;
    return i < a->n ? i : -1;
}

/* The adapters that act in a region at one row (-1: outside of all) as branches behind to; how many. */
static int row_branches(const struct areas *a, const struct place *p, int row, int region,
                        struct branch *to)
{
    const struct action *x = p->turn->a;
    const struct pass *q = &x->pass[p->pass];
    enum half side = passes_half(a->of, p->row);
    int n = 0;
    for (int i = q->act0; i < q->act0 + q->n_act; i++) {
        const struct use *u = &a->of->p->use[x->act[i].adapter];
        float strength = (float)(u->unet * x->act[i].w[side]);
        int own = areas_of(a, x->act[i].adapter);
        if (strength != 0 && (own < 0 || own == region))
            to[n++] = (struct branch){
                .adapter = u->adapter, .row0 = row, .row1 = row + 1, .strength = strength};
    }
    return n;
}

/* Texts of region i for all rows, side by side in its tensors. */
static void set_texts(struct areas *a, struct run *r, const struct place *at, int n, int i,
                      struct tensor *hidden)
{
    const struct conditions *c = a->of->cond;
    for (int k = 0; k < c->n_layer; k++)
        hidden[k] = run_tensor(r, n, c->n_chunk * c->length, 1, a->of->m->text->tower.width);
    for (int row = 0; row < n; row++) {
        const struct place *p = &at[row];
        const struct tensor *text =
            passes_area_text(a->of, p->turn->a, p->pass, p->row, p->turn->step, i);
        for (int k = 0; k < c->n_layer; k++) {
            struct tensor to = tensor_rows(&hidden[k], row, 1), from = tensor_rows(text, k, 1);
            op_copy(r, &to, &from);
        }
    }
}

void areas_rows(struct areas *a, struct run *r, const struct place *at, int n)
{
    const struct conditions *c = a->of->cond;
    size_t uses = (size_t)a->of->p->n_use;
    for (int i = 0; i <= a->n; i++) {
        struct branch *own = a->branch + (size_t)i * BATCH_ROWS * uses;
        int n_own = 0;
        for (int row = 0; row < n; row++)
            n_own += row_branches(a, &at[row], row, i < a->n ? i : -1, own + n_own);
        if (i == a->n) {
            a->g->rest = own;
            a->g->n_rest = n_own;
            continue;
        }
        struct tensor *hidden = a->hidden + (size_t)i * (size_t)c->n_layer;
        set_texts(a, r, at, n, i, hidden);
        a->g->at[i] = (struct region){.text = hidden, .branch = own, .n_branch = n_own};
    }
    a->g->alone = at->turn->a->pass[at->pass].alone;
    r->regions = a->g;
}
