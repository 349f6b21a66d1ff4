#include "attended.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void attended_begin(struct attended *a, int rows)
{
    a->rows = rows;
    a->layers = a->n_made = 0;
    if (a->map)
        memset(a->map, 0, a->values * sizeof *a->map);
}

bool attended_counts(const struct attended *a, const struct unet *u, int cross, int region)
{
    return a->region == region && cross >= a->first && unet_cross_level(u, cross) == a->level;
}

static int fail(struct run *r, size_t bytes)
{
    return err_nomem(&r->err, bytes);
}

static int grow(float **list, size_t n, struct run *r)
{
    float *more = realloc(*list, n * sizeof *more);
    if (!more)
        return fail(r, n * sizeof *more);
    *list = more;
    return 0;
}

static int make_room(struct attended *a, struct run *r, const struct tensor *q,
                     const struct tensor *k)
{
    size_t places = (size_t)q->h * (size_t)q->w, keys = (size_t)k->h * (size_t)k->w,
           need = (places > keys ? places : keys) * (size_t)a->rows * (size_t)q->c;
    bool first = !a->layers;
    if (!a->key)
        a->n = (int)keys;
    if (need > a->room) {
        if (grow(&a->host, need, r) < 0)
            return ERR_NOMEM;
        a->room = need;
    }
    if (!first)
        return 0;
    a->h = q->h;
    a->w = q->w;
    size_t all = (size_t)a->rows * (size_t)a->n * places;
    if (all <= a->values)
        return 0;
    if (grow(&a->map, all, r) < 0 || grow(&a->back, all, r) < 0)
        return ERR_NOMEM;
    memset(a->map, 0, all * sizeof *a->map);
    memset(a->back, 0, all * sizeof *a->back);
    a->values = all;
    return 0;
}

/* Values [rows, keys, c]: keys first .. first + n, a channel each in every head. */
static void write_values(const struct attended *a, int first, int n, size_t keys, size_t c,
                         size_t d)
{
    memset(a->host, 0, (size_t)a->rows * keys * c * sizeof *a->host);
    for (size_t row = 0; row < (size_t)a->rows; row++)
        for (int i = 0; i < n; i++) {
            size_t of = a->rows_a_key ? row / (size_t)a->rows_a_key * (size_t)a->n : 0;
            size_t key = (size_t)(a->key ? a->key[of + (size_t)(first + i)] : first + i);
            for (size_t e = (size_t)i; e < c && key < keys; e += d)
                a->host[(row * keys + key) * c + e] = 1;
        }
}

/* Adds what came, [rows, places, c], to the maps. */
static void take(const struct attended *a, const struct made *m)
{
    size_t places = (size_t)a->h * (size_t)a->w, c = (size_t)m->o.c, d = c / (size_t)m->heads;
    for (size_t row = 0; row < (size_t)a->rows; row++)
        for (int i = 0; i < m->n; i++) {
            float *map = a->map + (row * (size_t)a->n + (size_t)(m->first + i)) * places;
            for (size_t p = 0; p < places; p++)
                for (size_t e = (size_t)i; e < c; e += d)
                    map[p] += a->host[(row * places + p) * c + e] / (float)m->heads;
        }
}

static struct made *next_made(struct attended *a, struct run *r)
{
    if (a->n_made == a->cap) {
        int cap = a->cap ? 2 * a->cap : 16;
        struct made *more = realloc(a->made, (size_t)cap * sizeof *more);
        if (!more) {
            fail(r, (size_t)cap * sizeof *more);
            return NULL;
        }
        a->made = more;
        a->cap = cap;
    }
    return &a->made[a->n_made++];
}

void attended_see(struct attended *a, struct run *r, const struct tensor *q, const struct tensor *k,
                  const struct attention *how)
{
    size_t d = (size_t)(q->c / how->heads), keys = (size_t)k->h * (size_t)k->w;
    if (r->err.code || (r->measuring && make_room(a, r, q, k) < 0))
        return;
    unsigned mark = run_mark(r);
    for (int first = 0; first < a->n && !r->err.code; first += (int)d) {
        int n = a->n - first < (int)d ? a->n - first : (int)d;
        struct tensor v = run_like(r, k), o = run_like(r, q);
        struct made *m = next_made(a, r);
        if (!m)
            break;
        *m = (struct made){.o = o, .first = first, .n = n, .heads = how->heads};
        write_values(a, first, n, keys, (size_t)q->c, d);
        op_upload(r, &v, a->host);
        op_attention(r, &o, q, k, &v, how);
        if (r->measuring || r->err.code || r->dev->be->download(r->dev, a->host, &o, &r->err) < 0)
            continue;
        take(a, m);
    }
    a->layers++;
    run_pop(r, mark);
}

void attended_end(struct attended *a)
{
    size_t all = (size_t)(a->rows * a->n) * (size_t)(a->h * a->w);
    for (size_t i = 0; i < all && a->layers; i++)
        a->map[i] /= (float)a->layers;
}

void attended_seed(struct attended *a, struct tape *t)
{
    size_t places = (size_t)a->h * (size_t)a->w;
    for (int k = 0; k < a->n_made; k++) {
        const struct made *m = &a->made[k];
        size_t c = (size_t)m->o.c, d = c / (size_t)m->heads;
        float share = 1 / (float)(m->heads * a->layers);
        memset(a->host, 0, (size_t)a->rows * places * c * sizeof *a->host);
        for (size_t row = 0; row < (size_t)a->rows; row++)
            for (int i = 0; i < m->n; i++) {
                const float *back =
                    a->back + (row * (size_t)a->n + (size_t)(m->first + i)) * places;
                for (size_t p = 0; p < places; p++)
                    for (size_t e = (size_t)i; e < c; e += d)
                        a->host[(row * places + p) * c + e] = back[p] * share;
            }
        tape_seed(t, &m->o, a->host);
    }
}

void attended_release(struct attended *a)
{
    free(a->map);
    free(a->back);
    free(a->made);
    free(a->host);
    a->map = a->back = a->host = NULL;
    a->made = NULL;
    a->cap = a->n_made = 0;
    a->room = a->values = 0;
}

int attended_until(const struct unet *u, int level)
{
    int until = 0;
    for (int i = 0; i < u->n_cross; i++)
        if (unet_cross_level(u, i) == level)
            until = i + 1;
    return until;
}

int attended_level(const struct unet *u, int divide)
{
    int want = (int)lround(log2((double)divide)), best = -1;
    for (int i = 0; i < u->levels; i++)
        if (attended_until(u, i) && (best < 0 || abs(i - want) <= abs(best - want)))
            best = i;
    return best < 0 ? 0 : best;
}
