#include "layout.h"

#include "areas.h"
#include "attended.h"
#include "contrast.h"
#include "maps.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct layout {
    struct passes *of;
    struct tape *tape;
    int n;                 /* regions */
    struct attended *seen; /* [n + 1]: each region's words; self attention */
    int *key;              /* [n, tokens] */
    unsigned char *in;     /* [n, places] */
    float *self, *back;    /* [places, places]: rows are queries; what comes back */
    float *host;           /* a latent and as much again */
    double *sums;          /* the loss's own room */
    double last;           /* loss of the step before; NAN: none yet */
    bool stays;
};

/* ---- opening --------------------------------------------------------------------------------- */

int layout_open(struct layout **out, struct passes *of, struct err *err)
{
    struct layout *f = calloc(1, sizeof *f);
    int n = of->areas->n, tokens = of->cond->n_chunk * of->cond->length;
    *out = f;
    if (!f)
        return err_nomem(err, sizeof *f);
    f->of = of;
    f->n = n;
    f->seen = calloc((size_t)n + 1, sizeof *f->seen);
    f->key = malloc(((size_t)(n * tokens) + 1) * sizeof *f->key);
    if (!f->seen || !f->key)
        return err_nomem(err, (size_t)(n * tokens) * sizeof *f->key);
    for (int i = 0; i < n; i++) {
        struct attended *a = &f->seen[i];
        int all;
        const unsigned char *own =
            maps_tokens(of->maps, of->areas->text[i], of->areas->adapter[i], &all);
        a->region = i;
        a->key = f->key + i * tokens;
        for (int k = 0; k < all; k++)
            if (own[k])
                f->key[i * tokens + a->n++] = k;
    }
    f->seen[n].region = ATTENDED_SELF;
    return tape_new(&f->tape, err);
}

void layout_close(struct layout *f)
{
    if (!f)
        return;
    for (int i = 0; f->seen && i <= f->n; i++)
        attended_release(&f->seen[i]);
    tape_free(f->tape);
    free(f->seen);
    free(f->key);
    free(f->in);
    free(f->self);
    free(f->host);
    free(f->sums);
    free(f);
}

void layout_restart(struct layout *f)
{
    f->last = NAN;
    f->stays = false;
}

/* ---- looking --------------------------------------------------------------------------------- */

static void saw(void *user, struct run *r, int cross, int region, const struct tensor *q,
                const struct tensor *k, const struct attention *how)
{
    struct layout *f = user;
    for (int i = 0; i <= f->n; i++)
        if ((f->seen[i].n || region == ATTENDED_SELF) &&
            attended_counts(&f->seen[i], f->of->m->unet, cross, region))
            attended_see(&f->seen[i], r, q, k, how);
}

static void saw_self(void *user, struct run *r, int cross, const struct tensor *q,
                     const struct tensor *k, const struct attention *how)
{
    saw(user, r, cross, ATTENDED_SELF, q, k, how);
}

static void look(struct layout *f, struct batch *b, struct turn *t, struct look *l)
{
    const struct refine_step *s = &t->a->refine;
    const struct unet *u = f->of->m->unet;
    const struct place at = {t, 0, f->of->guided ? 1 : 0};
    for (int i = 0; i <= f->n; i++) {
        f->seen[i].level = attended_level(u, s->divide);
        f->seen[i].first = s->up ? u->up_cross : 0;
        attended_begin(&f->seen[i], 1);
    }
    l->watch = (struct map_watch){
        .saw = saw, .user = f, .until = attended_until(u, f->seen[0].level), .saw_self = saw_self};
    batch_look(b, &at, 1, l);
    for (int i = 0; i <= f->n; i++)
        attended_end(&f->seen[i]);
}

/* Room for what is of the maps' size, once that is known, and the regions at that size. */
static int make_room(struct layout *f, const struct turn *t, struct err *err)
{
    const struct attended *a = &f->seen[f->n];
    size_t places = (size_t)a->h * (size_t)a->w, z = tensor_count(t->x);
    if (f->in)
        return 0;
    f->in = calloc((size_t)f->n * places, 1);
    f->self = calloc(2 * places * places, sizeof *f->self);
    f->host = malloc(2 * z * sizeof *f->host);
    f->sums = malloc(layout_room(a->h, a->w) * sizeof *f->sums);
    f->back = f->self + places * places;
    return f->in && f->self && f->host && f->sums ? 0 : err_nomem(err, z * sizeof *f->host);
}

static int read_regions(struct layout *f, struct err *err)
{
    const struct attended *a = &f->seen[f->n];
    size_t places = (size_t)a->h * (size_t)a->w;
    const struct region_level *l = regions_at(f->of->areas->g, a->h, a->w, true, err);
    for (size_t k = 0; l && k < (size_t)f->n * places; k++)
        f->in[k] = l->host[k % places] >> k / places & 1;
    return l ? 0 : ERR_NOMEM;
}

/* ---- the loss -------------------------------------------------------------------------------- */

static double losses(struct layout *f, const struct refine_step *s)
{
    struct attended *self = &f->seen[f->n];
    size_t places = (size_t)self->h * (size_t)self->w, all = places * places;
    const double factor[LAYOUT_LOSSES] = {(double)s->enhance, (double)s->fill, (double)s->apart};
    double loss[LAYOUT_LOSSES] = {0};
    for (size_t i = 0; i < all; i++) /* maps are [key, query] */
        f->self[i] = self->map[i % places * places + i / places];
    memset(f->back, 0, all * sizeof *f->back);
    for (int i = 0; i < f->n; i++) {
        struct attended *a = &f->seen[i];
        memset(a->back, 0, (size_t)a->n * places * sizeof *a->back);
        layout_loss(loss, factor, self->h, self->w, f->in + (size_t)i * places, a->map, a->n,
                    a->back, f->self, f->back, f->sums);
    }
    for (size_t i = 0; i < all; i++)
        self->back[i % places * places + i / places] = f->back[i];
    return loss[LAYOUT_ENHANCE] + loss[LAYOUT_FILL] + loss[LAYOUT_APART];
}

/* Whether the picture is to stay where it is after this step. */
static bool is_done(struct layout *f, const struct turn *t, double loss)
{
    bool grew = loss > f->last && 10 * t->step >= f->of->p->steps;
    f->last = loss;
    return grew;
}

/* ---- laying anew ----------------------------------------------------------------------------- */

static void mean_of(const float *z, size_t n, double *mean, double *dev)
{
    *mean = *dev = 0;
    for (size_t i = 0; i < n; i++)
        *mean += (double)z[i] / (double)n;
    for (size_t i = 0; i < n; i++)
        *dev += ((double)z[i] - *mean) * ((double)z[i] - *mean) / (double)n;
    *dev = sqrt(*dev);
}

/* The smallest box of cells around a region; false: it has none. */
static bool box_of(const unsigned char *in, int h, int w, int box[4])
{
    box[0] = h, box[1] = w, box[2] = box[3] = -1;
    for (int p = 0; p < h * w; p++)
        if (in[p]) {
            box[0] = p / w < box[0] ? p / w : box[0];
            box[1] = p % w < box[1] ? p % w : box[1];
            box[2] = p / w > box[2] ? p / w : box[2];
            box[3] = p % w > box[3] ? p % w : box[3];
        }
    return box[2] >= 0;
}

/* Where a box of that size has the most of a map: *y, *x. */
static void best_of(const float *map, int h, int w, const int box[4], int *y, int *x)
{
    double most = -1;
    for (int i = 0; i + box[2] - box[0] < h; i++)
        for (int j = 0; j + box[3] - box[1] < w; j++) {
            double sum = 0;
            for (int k = 0; k <= box[2] - box[0]; k++)
                for (int l = 0; l <= box[3] - box[1]; l++)
                    sum += (double)map[(i + k) * w + j + l];
            if (sum > most) {
                most = sum;
                *y = i;
                *x = j;
            }
        }
}

void layout_relay(float *z, float *room, int h, int w, int c, int n, int mh, int mw,
                  const unsigned char *const *in, const float *const *map)
{
    size_t all = (size_t)h * (size_t)w * (size_t)c, row = (size_t)w * (size_t)c;
    int sh = h / mh, sw = w / mw, box[4];
    double mean[2], dev[2];
    memcpy(room, z, all * sizeof *z);
    mean_of(z, all, &mean[0], &dev[0]);
    for (int i = 0; i < n; i++) {
        int y = 0, x = 0;
        if (!box_of(in[i], mh, mw, box))
            continue;
        best_of(map[i], mh, mw, box, &y, &x);
        for (int k = 0; k < (box[2] - box[0] + 1) * sh; k++)
            memcpy(z + (size_t)(box[0] * sh + k) * row + (size_t)(box[1] * sw * c),
                   room + (size_t)(y * sh + k) * row + (size_t)(x * sw * c),
                   (size_t)((box[3] - box[1] + 1) * sw * c) * sizeof *z);
    }
    mean_of(z, all, &mean[1], &dev[1]);
    for (size_t i = 0; i < all && dev[1] > 0; i++)
        z[i] = (float)(((double)z[i] - mean[1]) / dev[1] * dev[0] + mean[0]);
}

/* The picture's latent, by what was seen of it. */
static int relay(struct layout *f, struct batch *b, struct turn *t, struct err *err)
{
    const struct attended *self = &f->seen[f->n];
    const unsigned char *in[REGIONS_MAX];
    const float *map[REGIONS_MAX];
    size_t places = (size_t)self->h * (size_t)self->w;
    struct tensor x = *t->x;
    int rc = b->run->dev->be->download(b->run->dev, f->host, &x, err);
    for (int i = 0; i < f->n; i++) {
        struct attended *a = &f->seen[i];
        in[i] = f->in + (size_t)i * places;
        for (int k = 1; k < a->n; k++) /* of all its words, into the first one's place */
            for (size_t p = 0; p < places; p++)
                a->map[p] += a->map[(size_t)k * places + p];
        map[i] = a->n ? a->map : f->self; /* whatever: it has no words */
    }
    if (rc < 0)
        return rc;
    layout_relay(f->host, f->host + tensor_count(&x), x.h, x.w, x.c, f->n, self->h, self->w, in,
                 map);
    return b->run->dev->be->upload(b->run->dev, &x, f->host, err);
}

/* ---- both ------------------------------------------------------------------------------------ */

/* One pass forth, and back. */
static int one_step(struct layout *f, struct batch *b, struct turn *t, struct err *err)
{
    struct look l = {.tape = f->tape};
    look(f, b, t, &l);
    int rc = make_room(f, t, err);
    rc = rc < 0 ? rc : read_regions(f, err);
    if (rc < 0)
        return rc;
    double loss = losses(f, &t->a->refine);
    for (int i = 0; i <= f->n; i++)
        attended_seed(&f->seen[i], f->tape);
    struct tensor dx = tape_back(f->tape, &l.x);
    turn_move(b->run, t, &dx, (double)t->a->refine.rate);
    f->stays = !b->run->measuring && is_done(f, t, loss);
    return run_check(b->run, err);
}

int layout_measure(struct layout *f, struct batch *b, struct turn *t, bool prepare, size_t *peak,
                   double *flops, struct err *err)
{
    int times = t->a->refine.times + t->a->refine.relay;
    run_begin(b->run, prepare);
    int rc = times ? one_step(f, b, t, err) : 0;
    *peak = b->run->plan.peak > *peak ? b->run->plan.peak : *peak;
    *flops += times * b->run->flops;
    layout_restart(f);
    run_bare(b->run);
    return rc;
}

int layout_run(struct layout *f, struct batch *b, struct turn *t, struct err *err)
{
    int rc = 0;
    if (t->a->refine.relay) {
        struct look l = {0};
        run_reset(b->run);
        look(f, b, t, &l);
        rc = run_check(b->run, err);
        rc = rc < 0 ? rc : read_regions(f, err);
        rc = rc < 0 ? rc : relay(f, b, t, err);
    }
    for (int i = 0; i < t->a->refine.times && !f->stays && rc == 0; i++) {
        run_reset(b->run);
        rc = one_step(f, b, t, err);
    }
    run_bare(b->run);
    return rc;
}
