#include "refine.h"

#include "attended.h"
#include "contrast.h"
#include "maps.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { PLACES_TOGETHER = 1024 }; /* latents of more go one by one */
#define TAU .5                   /* of the contrast */

struct refine {
    struct passes *of;
    struct tape *tape;
    struct attended seen;
    int *key, *label,
        n_key; /* [passes, keys] of the texts in hand: tokens, and whose each is; -1: nobody's */
    float *map, *back;         /* [passes, keys, places] */
    float *own_map, *own_back; /* of those that are somebody's, close together */
    int *own_label;
    size_t room;
    float *sum, *rows;             /* of gradients; of those of a batch */
    double *sums;                  /* the loss's own room */
    struct mask **part;            /* [adapters + 1], the last the base's */
    int own[COMPOSE_MAX_ADAPTERS]; /* each adapter's pass in the last action with parts, -1: none */
    float *values;                 /* the same, [adapters + 1, h*w] */
    double flops;
};

/* ---- opening --------------------------------------------------------------------------------- */

/* The condition that says what the picture is of; its words are looked for. */
static int main_row(const struct passes *p)
{
    return p->guided ? 1 : 0;
}

/* Tokens of adapters' words in a text, into key and label or not (NULL); how many. */
static int words_of(const struct passes *of, int text, int *key, int *label)
{
    int k = 0;
    for (int i = 0; i < of->p->n_use; i++) {
        int n;
        const unsigned char *owns = maps_tokens(of->maps, text, i, &n);
        for (int j = 0; j < n; j++) {
            if (!owns[j])
                continue;
            if (key) {
                key[k] = j;
                label[k] = i;
            }
            k++;
        }
    }
    return k;
}

/* The tokens of all adapters in each pass's text, as many for all and in all steps: where one has fewer, -1, which is
 * nobody's. */
static void find_keys(struct refine *f, const struct turn *t)
{
    for (int p = 0; p < t->a->n_pass; p++) {
        int text = passes_words(f->of, t->a, p, main_row(f->of), t->step);
        int *key = f->key + p * f->n_key, *label = f->label + p * f->n_key;
        for (int k = words_of(f->of, text, key, label); k < f->n_key; k++)
            key[k] = label[k] = -1;
    }
}

int refine_open(struct refine **out, struct passes *of, struct err *err)
{
    struct refine *f = calloc(1, sizeof *f);
    const struct conditions *c = of->cond;
    int factor = of->m->vae->factor, h = of->p->h / factor, w = of->p->w / factor,
        n = of->p->n_use + 1;
    *out = f;
    if (!f)
        return err_nomem(err, sizeof *f);
    f->of = of;
    f->seen.region = -1;
    memset(f->own, -1, sizeof f->own);
    for (int k = 0; k < c->n_text; k++) {
        int words = words_of(of, k, NULL, NULL);
        f->n_key = words > f->n_key ? words : f->n_key;
    }
    f->seen.n = f->n_key;
    size_t most = (size_t)f->n_key * (size_t)n + 1;
    f->key = malloc(most * sizeof *f->key);
    f->label = malloc(most * sizeof *f->label);
    f->own_label = malloc(most * sizeof *f->label);
    f->part = calloc((size_t)n, sizeof *f->part);
    size_t z = (size_t)h * (size_t)w * (size_t)of->m->vae->latent;
    f->sum = malloc((1 + BATCH_ROWS) * z * sizeof *f->sum);
    f->rows = f->sum ? f->sum + z : NULL;
    int rc = f->key && f->label && f->own_label && f->part && f->sum
                 ? tape_new(&f->tape, err)
                 : err_nomem(err, most * sizeof *f->key);
    for (int i = 0; i < n && rc == 0; i++) {
        rc = mask_new(&f->part[i], of->m->dev, err);
        if (rc == 0 && !mask_at(f->part[i], h, w, true, err))
            rc = ERR_NOMEM;
    }
    return rc;
}

void refine_close(struct refine *f)
{
    if (!f)
        return;
    for (int i = 0; f->part && i <= f->of->p->n_use; i++)
        mask_free(f->part[i]);
    tape_free(f->tape);
    attended_release(&f->seen);
    free(f->key);
    free(f->label);
    free(f->own_label);
    free(f->map);
    free(f->part);
    free(f->values);
    free(f->sums);
    free(f->sum);
    free(f);
}

void refine_restart(struct refine *f)
{
    const float all = 1;
    for (int i = 0; i <= f->of->p->n_use; i++)
        mask_set(f->part[i], &all, 1, 1);
}

struct mask *refine_part(const struct refine *f, int i)
{
    return f->part[i < 0 ? f->of->p->n_use : i];
}

const float *refine_values(const struct refine *f, int i, int *h, int *w)
{
    *h = f->seen.h;
    *w = f->seen.w;
    return f->values ? f->values + (size_t)i * (size_t)*h * (size_t)*w : NULL;
}

/* ---- looking --------------------------------------------------------------------------------- */

static void saw(void *user, struct run *r, int cross, int region, const struct tensor *q,
                const struct tensor *k, const struct attention *how)
{
    struct refine *f = user;
    if (attended_counts(&f->seen, f->of->m->unet, cross, region))
        attended_see(&f->seen, r, q, k, how);
}

/* Rows of a pass: its negative and its prompt, or that alone. */
static int rows_of(const struct refine *f, const struct turn *t)
{
    return t->a->refine.halves && f->of->guided ? 2 : 1;
}

/* Passes that go together. */
static int together(const struct refine *f, const struct turn *t)
{
    int rows = rows_of(f, t), n = BATCH_ROWS / rows;
    if (t->a->refine.least || t->x->h * t->x->w > PLACES_TOGETHER)
        n = 1;
    return n < t->a->n_pass ? n : t->a->n_pass;
}

/* What n passes of the action from the first on attend to. With a tape the way back is open. */
static void look(struct refine *f, struct batch *b, struct turn *t, int first, int n,
                 struct look *l)
{
    struct place at[BATCH_ROWS];
    int rows = 0;
    for (int i = first; i < first + n; i++)
        for (int k = rows_of(f, t) - 1; k >= 0; k--)
            at[rows++] = (struct place){t, i, main_row(f->of) - k};
    l->watch = (struct map_watch){
        .saw = saw, .user = f, .until = attended_until(f->of->m->unet, f->seen.level)};
    f->seen.key = f->key + first * f->n_key;
    f->seen.rows_a_key = rows_of(f, t);
    attended_begin(&f->seen, rows);
    batch_look(b, at, rows, l);
    attended_end(&f->seen);
}

static int grow(void *list, size_t bytes, struct err *err)
{
    void **at = list, *more = realloc(*at, bytes);
    if (!more)
        return err_nomem(err, bytes);
    *at = more;
    return 0;
}

/* Room for the maps of all passes, once their size is known, which is while measuring. */
static int make_room(struct refine *f, int passes, struct err *err)
{
    size_t places = (size_t)f->seen.h * (size_t)f->seen.w, n = (size_t)passes * (size_t)f->n_key,
           parts = (size_t)(f->of->p->n_use + 1) * places;
    if (n * places <= f->room && f->values)
        return 0;
    int rc = grow(&f->map, (4 * n * places + 1) * sizeof *f->map, err);
    rc = rc < 0 ? rc : grow(&f->values, parts * sizeof *f->values, err);
    rc = rc < 0 ? rc : grow(&f->sums, contrast_room((int)n, places) * sizeof *f->sums, err);
    if (rc < 0)
        return rc;
    memset(f->values, 0, parts * sizeof *f->values);
    f->back = f->map + n * places;
    f->own_map = f->back + n * places;
    f->own_back = f->own_map + n * places;
    f->room = n * places;
    return 0;
}

/* Means over a pass's rows. */
static void take_maps(struct refine *f, int first, int n, int rows)
{
    size_t one = (size_t)f->n_key * (size_t)f->seen.h * (size_t)f->seen.w;
    for (int i = 0; i < n; i++)
        for (size_t p = 0; p < one; p++) {
            float sum = 0;
            for (int k = 0; k < rows; k++)
                sum += f->seen.map[(size_t)(i * rows + k) * one + p];
            f->map[(size_t)(first + i) * one + p] = sum / (float)rows;
        }
}

static void give_back(struct refine *f, int first, int n, int rows)
{
    size_t one = (size_t)f->n_key * (size_t)f->seen.h * (size_t)f->seen.w;
    for (int i = 0; i < n * rows; i++)
        for (size_t p = 0; p < one; p++)
            f->seen.back[(size_t)i * one + p] =
                f->back[(size_t)(first + i / rows) * one + p] / (float)rows;
}

/* Maps that are nobody's are left out, and come back as 0. */
static void contrast(struct refine *f, int passes)
{
    size_t places = (size_t)f->seen.h * (size_t)f->seen.w, one = places * sizeof *f->map;
    int all = passes * f->n_key, n = 0;
    for (int i = 0; i < all; i++)
        if (f->label[i] >= 0) {
            memcpy(f->own_map + (size_t)n * places, f->map + (size_t)i * places, one);
            f->own_label[n++] = f->label[i];
        }
    contrast_loss(f->own_map, f->own_label, n, places, TAU, f->own_back, f->sums);
    n = 0;
    for (int i = 0; i < all; i++) {
        float *back = f->back + (size_t)i * places;
        if (f->label[i] >= 0)
            memcpy(back, f->own_back + (size_t)n++ * places, one);
        else
            memset(back, 0, one);
    }
}

/* ---- moving ---------------------------------------------------------------------------------- */

static void begin(struct batch *b, int kind)
{
    if (kind < 0)
        run_reset(b->run);
    else
        run_begin(b->run, kind > 0);
}

/* Notes what a pass takes, while measuring. */
static int done(struct refine *f, struct batch *b, size_t *peak, struct err *err)
{
    if (peak && b->run->plan.peak > *peak)
        *peak = b->run->plan.peak;
    f->flops += b->run->measuring ? b->run->flops : 0;
    return run_check(b->run, err);
}

/* Maps of all passes, without a way back. kind: 0 measures, 1 prepares, -1 runs. */
static int look_once(struct refine *f, struct batch *b, struct turn *t, int kind, size_t *peak,
                     struct err *err)
{
    int passes = t->a->n_pass, n = together(f, t), rc = 0;
    for (int first = 0; first < passes && rc == 0; first += n) {
        int here = passes - first < n ? passes - first : n;
        struct look l = {0};
        begin(b, kind);
        look(f, b, t, first, here, &l);
        rc = done(f, b, peak, err);
        rc = rc < 0 ? rc : make_room(f, passes, err);
        if (rc == 0)
            take_maps(f, first, here, rows_of(f, t));
    }
    return rc;
}

/* The sum of the rows of dx so far: the picture stays where it is until all have been looked at. */
static int collect(struct refine *f, struct run *r, const struct tensor *dx, bool first,
                   struct err *err)
{
    struct tensor one = tensor_rows(dx, 0, 1);
    size_t n = tensor_count(&one);
    int rc = r->dev->be->download(r->dev, f->rows, dx, err);
    for (size_t i = 0; i < n && first; i++)
        f->sum[i] = 0;
    for (size_t i = 0; i < n * (size_t)dx->n && rc == 0; i++)
        f->sum[i % n] += f->rows[i];
    return rc;
}

static int move_all(struct refine *f, struct batch *b, struct turn *t, int kind, size_t *peak,
                    struct err *err)
{
    begin(b, kind);
    struct tensor dx = run_like(b->run, t->x);
    op_upload(b->run, &dx, f->sum);
    turn_move(b->run, t, &dx, (double)t->a->refine.rate);
    return done(f, b, peak, err);
}

/* One step against the gradient. */
static int one_step(struct refine *f, struct batch *b, struct turn *t, int kind, size_t *peak,
                    struct err *err)
{
    int passes = t->a->n_pass, n = together(f, t), rows = rows_of(f, t), rc = 0;
    bool once = n == passes;
    if (!once)
        rc = look_once(f, b, t, kind, peak, err);
    if (!once && rc == 0)
        contrast(f, passes);
    for (int first = 0; first < passes && rc == 0; first += n) {
        int here = passes - first < n ? passes - first : n;
        struct look l = {.tape = f->tape};
        begin(b, kind);
        look(f, b, t, first, here, &l);
        rc = make_room(f, passes, err);
        if (once && rc == 0) {
            take_maps(f, first, here, rows);
            contrast(f, passes);
        }
        if (rc < 0)
            break;
        give_back(f, first, here, rows);
        attended_seed(&f->seen, f->tape);
        struct tensor dx = tape_back(f->tape, &l.x);
        if (once)
            turn_move(b->run, t, &dx, (double)t->a->refine.rate);
        rc = done(f, b, peak, err);
        rc = rc < 0 || once || kind >= 0 ? rc : collect(f, b->run, &dx, first == 0, err);
    }
    if (!once && rc == 0)
        rc = move_all(f, b, t, kind, peak, err);
    return rc;
}

/* ---- parts ----------------------------------------------------------------------------------- */

/* The pass that is adapter i's, -1: none. */
static int pass_of(const struct action *a, int adapter)
{
    for (int i = 0; i < a->n_pass; i++)
        if (a->pass[i].placed && a->pass[i].owner == adapter)
            return i;
    return -1;
}

/* A word's map onto to: 1 where it is above its share of its most; or by `most` all of it. */
static void add_word(float *to, const float *map, size_t places, float mask, bool most)
{
    float top = 0;
    for (size_t p = 0; p < places; p++)
        top = fmaxf(top, map[p]);
    for (size_t p = 0; p < places; p++)
        to[p] = most ? to[p] + map[p] : map[p] > mask * top ? 1 : to[p];
}

/* Over its mean, and 0 where it is below its share of its most. */
static void even_out(float *to, size_t places, float mask)
{
    double mean = 0;
    float top = 0;
    for (size_t p = 0; p < places; p++) {
        mean += (double)to[p] / (double)places;
        top = fmaxf(top, to[p]);
    }
    for (size_t p = 0; p < places; p++)
        to[p] = to[p] > mask * top ? (float)((double)to[p] / mean) : 0;
}

/* How much a place is adapter i's, by its own words in its own pass; 0: not at all. false: they are nowhere. */
static bool mark(const struct refine *f, const struct action *a, int i, float *to)
{
    size_t places = (size_t)f->seen.h * (size_t)f->seen.w;
    const struct use *u = &f->of->p->use[i];
    int pass = f->own[i];
    bool any = false;
    if (u->where && pass >= 0) {
        mask_resample(to, f->seen.h, f->seen.w, u->where, u->where_h, u->where_w);
        for (size_t p = 0; p < places; p++)
            to[p] = to[p] >= .5f ? INFINITY : 0;
        return true;
    }
    for (int k = 0; k < f->n_key && pass >= 0; k++)
        if (f->label[pass * f->n_key + k] == i) {
            const float *map = f->map + ((size_t)pass * (size_t)f->n_key + (size_t)k) * places;
            add_word(to, map, places, a->refine.mask, a->refine.most);
            any = true;
        }
    if (any && a->refine.most)
        even_out(to, places, a->refine.mask);
    return any;
}

/* Its words' maps summed, as they were when the picture last looked; over back, which is not needed any more. */
const float *refine_words(struct refine *f, int i, int *h, int *w)
{
    size_t places = (size_t)f->seen.h * (size_t)f->seen.w;
    float most = 0;
    *h = f->seen.h;
    *w = f->seen.w;
    if (!f->n_key || f->own[i] < 0)
        return NULL;
    memset(f->back, 0, places * sizeof *f->back);
    for (int k = 0; k < f->n_key; k++)
        for (size_t p = 0; p < places && f->label[f->own[i] * f->n_key + k] == i; p++) {
            f->back[p] += f->map[((size_t)f->own[i] * (size_t)f->n_key + (size_t)k) * places + p];
            most = fmaxf(most, f->back[p]);
        }
    for (size_t p = 0; p < places && most > 0; p++)
        f->back[p] /= most;
    return most > 0 ? f->back : NULL;
}

static void share_out(struct refine *f, const struct action *a)
{
    size_t places = (size_t)f->seen.h * (size_t)f->seen.w;
    int n = f->of->p->n_use;
    float *base = f->values + (size_t)n * places;
    bool at[COMPOSE_MAX_ADAPTERS];
    memset(f->values, 0, (size_t)(n + 1) * places * sizeof *f->values);
    for (int i = 0; i < n; i++) {
        f->own[i] = pass_of(a, i);
        at[i] = mark(f, a, i, f->values + (size_t)i * places);
    }
    for (size_t p = 0; p < places; p++) {
        float most = 0, sum = 0;
        for (int i = 0; i < n; i++)
            most = fmaxf(most, f->values[(size_t)i * places + p]);
        base[p] = most > 0 ? 0 : 1;
        for (int i = 0; i < n; i++) {
            float *here = f->values + (size_t)i * places + p;
            *here = *here > 0 && (!a->refine.most || *here == most);
            if (!at[i] && f->own[i] >= 0) /* who is nowhere to be found is where nobody is */
                *here = base[p];
        }
        for (int i = 0; i <= n; i++)
            sum += f->values[(size_t)i * places + p];
        for (int i = 0; i <= n; i++)
            f->values[(size_t)i * places + p] /= sum;
    }
    for (int i = 0; i <= n; i++)
        mask_set(f->part[i], f->values + (size_t)i * places, f->seen.h, f->seen.w);
}

/* ---- both ------------------------------------------------------------------------------------ */

static void get_ready(struct refine *f, const struct turn *t)
{
    const struct refine_step *s = &t->a->refine;
    f->seen.level = attended_level(f->of->m->unet, s->divide);
    f->seen.first = s->up ? f->of->m->unet->up_cross : 0;
    find_keys(f, t);
}

int refine_measure(struct refine *f, struct batch *b, struct turn *t, bool prepare, size_t *peak,
                   double *flops, struct err *err)
{
    int rc = 0, times = t->a->refine.times;
    get_ready(f, t);
    if (!f->n_key) { /* places are given, or nobody has any */
        f->seen.h = (t->x->h + t->a->refine.divide - 1) / t->a->refine.divide;
        f->seen.w = (t->x->w + t->a->refine.divide - 1) / t->a->refine.divide;
        return make_room(f, t->a->n_pass, err);
    }
    f->flops = 0;
    if (times)
        rc = one_step(f, b, t, prepare, peak, err);
    *flops += times * f->flops;
    f->flops = 0;
    if (rc == 0 && t->a->refine.mask > 0)
        rc = look_once(f, b, t, prepare, peak, err);
    *flops += f->flops;
    run_bare(b->run);
    return rc;
}

int refine_run(struct refine *f, struct batch *b, struct turn *t, struct err *err)
{
    int rc = 0;
    get_ready(f, t);
    for (int i = 0; i < t->a->refine.times && f->n_key && rc == 0; i++)
        rc = one_step(f, b, t, -1, NULL, err);
    if (rc == 0 && t->a->refine.mask > 0 && f->n_key)
        rc = look_once(f, b, t, -1, NULL, err);
    if (rc == 0 && t->a->refine.mask > 0)
        share_out(f, t->a);
    run_bare(b->run);
    return rc;
}
