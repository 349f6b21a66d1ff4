#include "gatemap.h"

#include "unet/bind.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

int gatemap_init(struct gatemap *g, const struct model *m, const struct picture *p, struct err *err)
{
    *g = (struct gatemap){.p = p, .n_adapter = p->n_use, .n_site = m->sites.n, .n_step = p->steps};
    size_t n = (size_t)p->n_use * (size_t)m->sites.n * (size_t)p->steps * GATEMAP_PLACES + 1;
    g->sum = calloc(n, sizeof *g->sum);
    g->count = calloc(n, sizeof *g->count);
    return g->sum && g->count ? 0 : err_nomem(err, n * sizeof *g->sum);
}

void gatemap_release(struct gatemap *g)
{
    free(g->sum);
    free(g->count);
    free(g->host);
    memset(g, 0, sizeof *g);
}

static size_t cell(const struct gatemap *g, int adapter, int site, int step)
{
    return (((size_t)adapter * (size_t)g->n_site + (size_t)site) * (size_t)g->n_step +
            (size_t)step) *
           GATEMAP_PLACES;
}

double gatemap_mean(const struct gatemap *g, int adapter, int site, int step)
{
    double sum = 0, n = 0;
    for (int s = site < 0 ? 0 : site; s < (site < 0 ? g->n_site : site + 1); s++)
        for (int t = step < 0 ? 0 : step; t < (step < 0 ? g->n_step : step + 1); t++)
            for (int i = 0; i < GATEMAP_PLACES; i++) {
                sum += (double)g->sum[cell(g, adapter, s, t) + (size_t)i];
                n += (double)g->count[cell(g, adapter, s, t) + (size_t)i];
            }
    return n > 0 ? sum / n : NAN;
}

/* Of the cells that `by` puts in one class: how many, and the sum of their means. */
struct group {
    double n, sum;
};

void gatemap_explained(const struct gatemap *g, double share[GATEMAP_BY])
{
    const int classes[] = {g->n_site, g->n_step, GATEMAP_PLACES, g->n_adapter};
    size_t most = (size_t)g->n_site + (size_t)g->n_step + GATEMAP_PLACES + (size_t)g->n_adapter;
    struct group *group = calloc(GATEMAP_BY * most, sizeof *group), all = {0, 0};
    double square = 0;
    for (int k = 0; k < GATEMAP_BY; k++)
        share[k] = NAN;
    for (int a = 0; group && a < g->n_adapter; a++)
        for (int s = 0; s < g->n_site; s++)
            for (int t = 0; t < g->n_step; t++)
                for (int i = 0; i < GATEMAP_PLACES; i++) {
                    size_t at = cell(g, a, s, t) + (size_t)i;
                    const int of[] = {s, t, i, a};
                    if (g->count[at] == 0)
                        continue;
                    double v = (double)g->sum[at] / (double)g->count[at];
                    all.n++;
                    all.sum += v;
                    square += v * v;
                    for (int k = 0; k < GATEMAP_BY; k++) {
                        group[(size_t)k * most + (size_t)of[k]].n++;
                        group[(size_t)k * most + (size_t)of[k]].sum += v;
                    }
                }
    double mean = all.n > 0 ? all.sum / all.n : 0, total = square - all.n * mean * mean;
    for (int k = 0; group && k < GATEMAP_BY && total > 0; k++) {
        double between = 0;
        for (int c = 0; c < classes[k]; c++) {
            const struct group *one = &group[(size_t)k * most + (size_t)c];
            between += one->n > 0 ? one->n * pow(one->sum / one->n - mean, 2) : 0;
        }
        share[k] = between / total;
    }
    free(group);
}

static float *room(struct gatemap *g, size_t n, struct err *err)
{
    if (n > g->n_host) {
        float *more = realloc(g->host, n * sizeof *more);
        if (!more) {
            err_nomem(err, n * sizeof *more);
            return NULL;
        }
        g->host = more;
        g->n_host = n;
    }
    return g->host;
}

/* u [c] of a place: given, or what came down times its part of the joint's up [c, wide]. */
static void place_of(float *u, int c, const float *given, const float *t, const struct layer *up,
                     int first, int width)
{
    const float *w = up ? up->w.data : NULL;
    for (int i = 0; i < c; i++) {
        double s = given ? (double)given[i] : 0;
        for (int k = first; k < first + width && w; k++)
            s += (double)t[k] * (double)w[(size_t)i * (size_t)up->in + (size_t)k];
        u[i] = (float)s;
    }
}

/* Which square of the grid a place lies in, and how many there are of it: -1: all. */
static int square_of(const struct tensor *h, int place)
{
    if (h->h == 1 || h->w == 1)
        return -1;
    return place / h->w * GATEMAP_SIDE / h->h * GATEMAP_SIDE + place % h->w * GATEMAP_SIDE / h->w;
}

static void add_mean(struct gatemap *g, size_t at, int square, const float *value, int c)
{
    double mean = 0;
    for (int i = 0; i < c; i++)
        mean += (double)value[i] / c;
    for (int q = square < 0 ? 0 : square; q < (square < 0 ? GATEMAP_PLACES : square + 1); q++) {
        g->sum[at + (size_t)q] += (float)mean;
        g->count[at + (size_t)q]++;
    }
}

static int index_of(const struct gatemap *g, const struct adapter *a)
{
    int k = 0;
    while (k < g->n_adapter && g->p->use[k].adapter != a)
        k++;
    return k;
}

int gatemap_add(struct gatemap *g, struct run *r, const struct layer *l, const struct branch *b,
                const struct tensor *h, const struct gating *in, int row, int step, struct err *err)
{
    int c = h->c, places = h->h * h->w, wide = in->t ? in->t->c : 0, rc = 0;
    size_t n = (size_t)places * (size_t)c, nt = (size_t)places * (size_t)wide;
    bool plain = gates_plain(g->p->gates, l->site); /* whatever h and u are */
    const struct joined *j = b->joint->at[l->site];
    float *host = room(g, 2 * n + nt + 2 * (size_t)c, err);
    if (!host)
        return err->code;
    float *given = host + n, *t = given + n, *u = t + nt, *value = u + c;
    struct tensor one = tensor_rows(h, row, 1);
    if (plain)
        memset(host, 0, (2 * n + nt + (size_t)c) * sizeof *host);
    else
        rc = r->dev->be->download(r->dev, host, &one, err);
    if (rc == 0 && wide) {
        one = tensor_rows(in->t, row, 1);
        rc = r->dev->be->download(r->dev, t, &one, err);
    }
    for (int a = 0, first = 0; a < in->n && rc == 0; first += in->width[a++]) {
        int k = index_of(g, b[a].adapter);
        if (k == g->n_adapter || (!in->u[a] && !in->width[a]))
            continue;
        if (in->u[a]) {
            one = tensor_rows(in->u[a], row, 1);
            rc = r->dev->be->download(r->dev, given, &one, err);
        }
        for (int i = 0; i < places && rc == 0; i++) {
            if (!plain)
                place_of(u, c, in->u[a] ? given + (size_t)i * (size_t)c : NULL,
                         t + (size_t)i * (size_t)wide, j ? &j->up : NULL, first, in->width[a]);
            gates_values(g->p->gates, l->site, c, host + (size_t)i * (size_t)c, u,
                         in->wave + (size_t)row * GATE_WAVES, in->words[a] ? in->words[a][i] : 0,
                         value);
            add_mean(g, cell(g, k, l->site, step), square_of(h, i), value, c);
        }
    }
    return rc;
}
