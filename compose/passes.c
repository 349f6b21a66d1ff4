#include "passes.h"

#include <stdlib.h>
#include <string.h>

/* ---- the adapters of a pass ------------------------------------------------------------------ */

static enum half half_of(const struct passes *p, int row)
{
    return p->guided && row == 0 ? HALF_UNCOND : HALF_COND;
}

static struct text_set set_of(const struct passes *p, const struct action *a, const struct pass *q,
                              enum half half)
{
    struct text_set s = {0};
    for (int i = q->act0; i < q->act0 + q->n_act; i++) {
        const struct use *u = &p->use[a->act[i].adapter];
        float strength = (float)(u->te * a->act[i].w[half]);
        if (p->fold_text || strength == 0 || !u->adapter->matched_in[COMPONENT_TEXT])
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

/* ---- planning -------------------------------------------------------------------------------- */

/* Whether both run the same layers on the same rows. */
static bool same_kind(const struct action *a, const struct action *b)
{
    bool same = a->n_pass == b->n_pass && a->n_act == b->n_act;
    for (int i = 0; i < a->n_pass && same; i++)
        same = a->pass[i].n_act == b->pass[i].n_act && a->pass[i].deep == b->pass[i].deep;
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

static int note_kind(struct passes *p, const struct action *a, struct err *err)
{
    int i = 0, rc = 0;
    while (i < p->n_kind && !same_kind(&p->kind[i], a))
        i++;
    if (i == p->n_kind) {
        rc = grow(&p->kind, p->n_kind, sizeof *p->kind, err);
        rc = rc < 0 ? rc : grow(&p->times, p->n_kind, sizeof *p->times, err);
        if (rc < 0)
            return rc;
        p->kind[p->n_kind] = *a;
        p->times[p->n_kind++] = 0;
    }
    p->times[i]++;
    return 0;
}

static int note_sets(struct passes *p, const struct action *a, struct err *err)
{
    for (int i = 0; i < a->n_pass; i++)
        for (int half = p->guided ? HALF_UNCOND : HALF_COND; half <= HALF_COND; half++) {
            struct text_set s = set_of(p, a, &a->pass[i], (enum half)half);
            if (find_set(p, &s) < p->n_set)
                continue;
            int rc = grow(&p->set, p->n_set, sizeof *p->set, err);
            if (rc < 0)
                return rc;
            p->set[p->n_set++] = s;
        }
    return 0;
}

static int note(struct passes *p, const struct action *a, struct err *err)
{
    int rows = a->n_pass * p->cond->n_row, most = p->cond->n_row;
    most = most > PASSES_ROWS ? most : PASSES_ROWS;
    p->total += rows;
    rows = rows < most ? rows : most;
    p->rows = p->rows > rows ? p->rows : rows;
    for (int i = 0; i < a->n_pass; i++)
        if (a->pass[i].deep != DEEP_PLAIN && a->pass[i].slot >= p->n_slot)
            p->n_slot = a->pass[i].slot + 1;
    int rc = note_kind(p, a, err);
    return rc < 0 ? rc : note_sets(p, a, err);
}

static int take_host(struct passes *p, struct err *err)
{
    size_t rows = (size_t)p->rows, texts = (size_t)p->n_set * (size_t)p->cond->n_text,
           deep = (size_t)p->n_slot * (size_t)p->cond->n_row;
    p->hidden = calloc(texts, sizeof *p->hidden);
    p->deep = calloc(deep + 1, sizeof *p->deep);
    p->row = calloc(rows, sizeof *p->row);
    p->layer = calloc((size_t)p->cond->n_layer, sizeof *p->layer);
    p->now = calloc(rows, sizeof *p->now);
    p->t = calloc(rows, sizeof *p->t);
    p->place = calloc(rows, sizeof *p->place);
    p->branch = calloc(4 * COMPOSE_MAX_ADAPTERS, sizeof *p->branch);
    return p->hidden && p->deep && p->row && p->layer && p->now && p->t && p->place && p->branch
               ? 0
               : err_nomem(err, texts * sizeof *p->hidden);
}

void passes_next(const struct passes *p, struct compose *c, const struct sampler *s, int eval,
                 struct action *a)
{
    struct compose_now now = {.step = s->eval[eval].step, .eval = eval};
    for (int i = 0; i < p->cond->n_row; i++)
        now.texts = now.texts * 31 + (unsigned)conditions_at(p->cond, i, now.step);
    compose_next(c, &now, a);
}

int passes_plan(struct passes *p, struct compose *c, const struct sampler *s, struct err *err)
{
    struct action a;
    int rc = 0;
    for (int i = 0; i < s->n_eval && rc == 0; i++) {
        passes_next(p, c, s, i, &a);
        rc = note(p, &a, err);
    }
    if (rc == 0 && p->n_slot && !unet_deep_channels(p->m->unet))
        rc = err_set(err, ERR_ARG, "deepcache: this UNet has one level, nothing lies deep in it");
    return rc < 0 ? rc : take_host(p, err);
}

void passes_place(struct passes *p)
{
    const struct conditions *c = p->cond;
    int f = p->m->vae->factor, h = p->p->h / f, w = p->p->w / f, tokens = c->n_chunk * c->length;
    p->x = run_tensor(p->keep, p->rows, h, w, p->m->vae->latent);
    p->text = run_tensor(p->keep, c->n_layer * p->rows, tokens, 1, p->m->text->tower.width);
    for (int i = 0; i < p->n_set * c->n_text; i++)
        p->hidden[i] = run_tensor(p->keep, c->n_layer, tokens, 1, p->m->text->tower.width);
    for (int i = 0; i < p->n_slot * c->n_row; i++)
        p->deep[i] = run_tensor(p->keep, 1, h, w, unet_deep_channels(p->m->unet));
    for (int i = 0; i < p->rows; i++)
        p->now[i] = NULL;
}

/* ---- a batch --------------------------------------------------------------------------------- */

/* The branches of rows [first, first + n) of the batch, which are one pass. */
static void add_branches(struct passes *p, const struct action *a, int first, int n)
{
    const struct pass *q = &a->pass[p->place[first].pass];
    int uncond = half_of(p, p->place[first].row) == HALF_UNCOND;
    for (int i = q->act0; i < q->act0 + q->n_act; i++) {
        const struct pass_act *act = &a->act[i];
        const struct use *u = &p->use[act->adapter];
        bool one = !uncond || act->w[0] == act->w[1];
        int middle = one ? first : first + 1;
        if (!one && act->w[HALF_UNCOND] != 0)
            p->branch[p->pass->n_branch++] =
                (struct branch){u->adapter, first, middle, (float)(u->unet * act->w[HALF_UNCOND])};
        if (middle < first + n && act->w[HALF_COND] != 0)
            p->branch[p->pass->n_branch++] = (struct branch){u->adapter, middle, first + n,
                                                             (float)(u->unet * act->w[HALF_COND])};
    }
}

static void set_branches(struct passes *p, const struct action *a, int n)
{
    p->pass->fold = p->fold_unet;
    p->pass->branch = p->branch;
    p->pass->n_branch = 0;
    for (int i = 0, k; i < n && !p->fold_unet; i = k) {
        for (k = i + 1; k < n && p->place[k].pass == p->place[i].pass; k++)
            ;
        add_branches(p, a, i, k - i);
    }
}

/* Brings each row's text into the batch, where it is another than before. */
static void set_texts(struct passes *p, const struct action *a, int n, int step)
{
    for (int i = 0; i < n; i++) {
        struct text_set s = set_of(p, a, &a->pass[p->place[i].pass], half_of(p, p->place[i].row));
        const struct tensor *h = &p->hidden[find_set(p, &s) * p->cond->n_text +
                                            conditions_at(p->cond, p->place[i].row, step)];
        if (p->now[i] == h)
            continue;
        for (int k = 0; k < p->cond->n_layer; k++) {
            struct tensor row = tensor_rows(&p->text, k * p->rows + i, 1),
                          from = tensor_rows(h, k, 1);
            op_copy(p->keep, &row, &from);
        }
        p->now[i] = h;
    }
}

/* Runs n rows; x and text are those of the batch. */
static struct tensor run_rows(struct passes *p, const struct action *a, int n)
{
    struct unet_deep deep = {.row = p->row};
    struct tensor x = tensor_rows(&p->x, 0, n);
    const struct unet_text text = {p->layer, p->cond->n_layer};
    for (int i = 0; i < text.n; i++)
        p->layer[i] = tensor_rows(&p->text, i * p->rows, n);
    for (int i = 0; i < n; i++) {
        const struct pass *q = &a->pass[p->place[i].pass];
        memset(&p->row[i], 0, sizeof p->row[i]);
        if (q->deep != DEEP_PLAIN)
            p->row[i] = p->deep[q->slot * p->cond->n_row + p->place[i].row];
        deep.reuse = q->deep == DEEP_REUSE;
    }
    set_branches(p, a, n);
    return unet_forward(p->m->unet, p->pass, &x, p->t, &text, &deep);
}

/* Where the batches of an action have come to. */
struct cursor {
    int reuse, from;
};

/* The next rows that go together, into p->place: whole passes first, then short ones. 0: no more. */
static int next_rows(struct passes *p, const struct action *a, struct cursor *c)
{
    int n = 0, all = a->n_pass * p->cond->n_row;
    while (!n && c->reuse < 2) {
        for (; c->from < all && n < p->rows; c->from++) {
            int pass = c->from / p->cond->n_row;
            if ((a->pass[pass].deep == DEEP_REUSE) == c->reuse)
                p->place[n++] = (struct place){pass, c->from % p->cond->n_row};
        }
        if (!n)
            *c = (struct cursor){.reuse = c->reuse + 1};
    }
    return n;
}

/* What a row counts in uncond + cfg * sum_i weight_i (cond_i - uncond), as A1111 mixes the parts of a
 * prompt, each half being the mean that the action asks for. */
static double weight_of(const struct passes *p, const struct action *a, struct place at)
{
    const struct conditions *c = p->cond;
    double rest = 1;
    if (!p->guided)
        return a->pass[at.pass].mix[HALF_COND];
    if (at.row > 0)
        return p->p->cfg * c->row[at.row].weight * a->pass[at.pass].mix[HALF_COND];
    for (int i = 1; i < c->n_row; i++)
        rest -= p->p->cfg * c->row[i].weight;
    return rest * a->pass[at.pass].mix[HALF_UNCOND];
}

/* The next n rows of an evaluation, mixed in behind those before. */
static int predict_rows(struct passes *p, const struct action *a, const struct passes_at *at, int n,
                        const struct tensor *x, struct tensor *mix, bool *begun, struct err *err)
{
    for (int i = 0; i < n; i++) {
        struct tensor row = tensor_rows(&p->x, i, 1);
        op_affine(p->keep, &row, x, at->in_scale, 0);
        p->t[i] = at->t;
    }
    set_texts(p, a, n, at->step);
    run_reset(p->pass);
    struct tensor y = run_rows(p, a, n);
    int rc = run_check(p->pass, err);
    for (int i = 0; i < n && rc == 0; i++) {
        struct tensor row = tensor_rows(&y, i, 1);
        const struct tensor *src[2] = {&row, mix};
        double coef[2] = {weight_of(p, a, p->place[i]), 1};
        op_lincomb(p->keep, mix, *begun ? 2 : 1, coef, src, 0);
        *begun = true;
    }
    return rc < 0 ? rc : run_check(p->keep, err);
}

int passes_predict(struct passes *p, const struct action *a, const struct passes_at *at,
                   const struct tensor *x, struct tensor *mix, struct err *err)
{
    struct cursor c = {0};
    bool begun = false;
    int n, rc = 0;
    while (rc == 0 && (n = next_rows(p, a, &c)) > 0)
        rc = predict_rows(p, a, at, n, x, mix, &begun, err);
    return rc;
}

/* ---- beforehand ------------------------------------------------------------------------------ */

static void begin(struct passes *p, bool prepare)
{
    if (prepare)
        run_prepare(p->pass);
    else
        run_measure(p->pass);
}

/* Ends one pass of the kind: its size and, so many times, its cost. */
static int end(struct passes *p, double times, size_t *peak, double *flops, struct err *err)
{
    *peak = p->pass->plan.peak > *peak ? p->pass->plan.peak : *peak;
    *flops += times * p->pass->flops;
    return run_check(p->pass, err);
}

static void set_text_adapters(struct passes *p, const struct text_set *s)
{
    p->pass->fold = p->fold_text;
    p->pass->branch = p->branch;
    p->pass->n_branch = s->n;
    for (int i = 0; i < s->n; i++)
        p->branch[i] =
            (struct branch){p->use[s->adapter[i]].adapter, 0, p->cond->n_chunk, s->strength[i]};
}

int passes_go_through(struct passes *p, bool prepare, size_t *peak, double *flops, struct err *err)
{
    const struct conditions *c = p->cond;
    int rc = 0;
    for (int i = 0; i < p->n_set && rc == 0; i++) {
        begin(p, prepare);
        set_text_adapters(p, &p->set[i]);
        clip_text_forward(p->m->text, p->pass, c->words, c->chunks[0].id, c->n_chunk, c->length,
                          p->p->clip_skip - 1, 0);
        rc = end(p, c->n_encode, peak, flops, err);
    }
    for (int i = 0; i < p->n_kind && rc == 0; i++) {
        struct cursor at = {0};
        for (int n; rc == 0 && (n = next_rows(p, &p->kind[i], &at)) > 0;) {
            begin(p, prepare);
            run_rows(p, &p->kind[i], n);
            rc = end(p, p->times[i], peak, flops, err);
        }
    }
    return rc;
}

int passes_encode(struct passes *p, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < p->n_set && rc == 0; i++) {
        set_text_adapters(p, &p->set[i]);
        rc = conditions_encode(p->cond, p->m->text, p->p->clip_skip - 1, p->pass,
                               &p->hidden[i * p->cond->n_text], err);
    }
    return rc;
}

void passes_release(struct passes *p)
{
    free(p->kind);
    free(p->times);
    free(p->set);
    free(p->hidden);
    free(p->deep);
    free(p->row);
    free(p->layer);
    free(p->now);
    free(p->t);
    free(p->place);
    free(p->branch);
    memset(p, 0, sizeof *p);
}
