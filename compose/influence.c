#include "influence.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int find_block(struct influence *in, const char *name)
{
    int k = 0;
    while (k < in->n_block && strcmp(in->block[k], name))
        k++;
    if (k == in->n_block)
        snprintf(in->block[in->n_block++], sizeof *in->block, "%s", name);
    return k;
}

/* The blocks in the order of the model's sites, the text encoder's behind them. */
static int list_blocks(struct influence *in, const struct sites *s, struct err *err)
{
    size_t n = (size_t)s->n;
    in->block = calloc(n + 1, sizeof *in->block);
    in->block_of = calloc(n + 1, sizeof *in->block_of);
    if (!in->block || !in->block_of)
        return err_nomem(err, n * sizeof *in->block);
    for (int text = 0; text < 2; text++)
        for (int i = 0; i < s->n; i++) {
            char name[32];
            if (s->at[i].part == COMPONENT_VAE || text != (s->at[i].part == COMPONENT_TEXT))
                continue;
            site_block(name, sizeof name, s->at[i].name);
            in->block_of[i] = find_block(in, name);
        }
    return 0;
}

int influence_init(struct influence *in, const struct model *m, const struct picture *p,
                   struct err *err)
{
    int f = m->vae->factor;
    *in = (struct influence){.p = p,
                             .n_adapter = p->n_use,
                             .n_step = p->steps,
                             .h = (p->h / f + 1) / 2,
                             .w = (p->w / f + 1) / 2};
    if (p->fold)
        return err_set(err, ERR_ARG,
                       "--explain: folded adapters cannot be told apart; leave --fold out");
    int rc = list_blocks(in, &m->sites, err);
    if (rc < 0)
        return rc;
    size_t cells = (size_t)in->n_adapter * (size_t)in->n_block * (size_t)in->n_step + 1,
           places = (size_t)in->n_adapter * (size_t)in->h * (size_t)in->w + 1;
    in->part = calloc(cells, sizeof *in->part);
    in->base = calloc(cells, sizeof *in->base);
    in->over = calloc(places, sizeof *in->over);
    in->under = calloc(places, sizeof *in->under);
    return in->part && in->base && in->over && in->under ? 0
                                                         : err_nomem(err, cells * sizeof *in->part);
}

int influence_want_pairs(struct influence *in, struct err *err)
{
    size_t n = (size_t)in->n_adapter + 1;
    in->pair = calloc(n * n, sizeof *in->pair);
    in->held = calloc(n, sizeof *in->held);
    return in->pair && in->held ? 0 : err_nomem(err, n * n * sizeof *in->pair);
}

void influence_release(struct influence *in)
{
    for (int i = 0; in->held && i < in->n_adapter; i++)
        free(in->held[i].part);
    free(in->held);
    free(in->pair);
    free(in->block);
    free(in->block_of);
    free(in->part);
    free(in->base);
    free(in->over);
    free(in->under);
    free(in->host);
    memset(in, 0, sizeof *in);
}

static size_t cell(const struct influence *in, int adapter, int block, int step)
{
    return ((size_t)adapter * (size_t)in->n_block + (size_t)block) * (size_t)in->n_step +
           (size_t)step;
}

double influence_of(const struct influence *in, int adapter, int block, int step)
{
    double part = 0, base = 0;
    for (int b = block < 0 ? 0 : block; b < (block < 0 ? in->n_block - 1 : block + 1); b++)
        for (int s = step < 0 ? 0 : step; s < (step < 0 ? in->n_step : step + 1); s++) {
            part += in->part[cell(in, adapter, b, s)];
            base += in->base[cell(in, adapter, b, s)];
        }
    return base > 0 ? sqrt(part / base) : 0;
}

void influence_map(const struct influence *in, int adapter, float *map)
{
    size_t n = (size_t)in->h * (size_t)in->w, at = (size_t)adapter * n;
    for (size_t i = 0; i < n; i++)
        map[i] = in->under[at + i] > 0 ? (float)sqrt(in->over[at + i] / in->under[at + i]) : 0;
}

static struct influence_pair *pair_of(const struct influence *in, int a, int b)
{
    return &in->pair[a < b ? a * in->n_adapter + b : b * in->n_adapter + a];
}

double influence_overlap(const struct influence *in, int a, int b)
{
    const struct influence_pair *p = pair_of(in, a, b);
    return p->a > 0 && p->b > 0 ? p->together / sqrt(p->a * p->b) : 0;
}

double influence_cosine(const struct influence *in, int a, int b)
{
    const struct influence_pair *p = pair_of(in, a, b);
    return p->a > 0 && p->b > 0 ? p->dot / sqrt(p->a * p->b) : 0;
}

static void add_pair(struct influence_pair *p, const float *a, const float *b, int places, int c)
{
    for (int i = 0; i < places; i++) {
        double aa = 0, bb = 0, ab = 0;
        for (int k = 0; k < c; k++) {
            double x = a[i * c + k], y = b[i * c + k];
            aa += x * x;
            bb += y * y;
            ab += x * y;
        }
        p->a += aa;
        p->b += bb;
        p->dot += ab;
        p->together += sqrt(aa * bb);
    }
}

/* What adapter k added, beside all that others added at the same layer for the same row; then it is kept for
 * those that come after it. */
static int add_pairs(struct influence *in, int k, const struct held *new, int places, int c,
                     struct err *err)
{
    struct held *h = &in->held[k];
    for (int j = 0; j < in->n_adapter; j++) {
        const struct held *o = &in->held[j];
        if (j != k && o->l == new->l && o->step == new->step && o->row == new->row)
            add_pair(pair_of(in, j, k), j < k ? o->part : new->part, j < k ? new->part : o->part,
                     places, c);
    }
    if (new->n > h->room) {
        float *more = realloc(h->part, new->n * sizeof *more);
        if (!more)
            return err_nomem(err, new->n * sizeof *more);
        h->part = more;
        h->room = new->n;
    }
    memcpy(h->part, new->part, new->n * sizeof *h->part);
    h->l = new->l;
    h->step = new->step;
    h->row = new->row;
    h->n = new->n;
    return 0;
}

/* One row of each on the host. */
static int fetch(struct influence *in, const struct tensor *base, const struct tensor *part,
                 int row, struct err *err)
{
    struct tensor b = tensor_rows(base, row, 1), p = tensor_rows(part, row, 1);
    size_t n = tensor_count(&b);
    if (2 * n > in->n_host) {
        float *more = realloc(in->host, 2 * n * sizeof *more);
        if (!more)
            return err_nomem(err, 2 * n * sizeof *more);
        in->host = more;
        in->n_host = 2 * n;
    }
    const struct backend *be = base->dev->be;
    int rc = be->download(base->dev, in->host, &b, err);
    return rc < 0 ? rc : be->download(base->dev, in->host + n, &p, err);
}

static double squares(const float *x, int n)
{
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i] * (double)x[i];
    return sum;
}

int influence_add(struct influence *in, const struct adapter *a, int step, const struct layer *l,
                  const struct tensor *base, const struct tensor *part, int row, struct err *err)
{
    int k = 0, places = base->h * base->w, rc = fetch(in, base, part, row, err);
    while (k < in->n_adapter && in->p->use[k].adapter != a)
        k++;
    if (rc < 0 || k == in->n_adapter)
        return rc;
    size_t at = cell(in, k, in->block_of[l->site], step);
    bool mapped = base->h == in->h && base->w == in->w;
    for (int i = 0; i < places; i++) {
        double b = squares(in->host + i * base->c, base->c),
               p = squares(in->host + (places + i) * base->c, base->c);
        in->base[at] += b;
        in->part[at] += p;
        if (mapped) {
            in->under[k * places + i] += b;
            in->over[k * places + i] += p;
        }
    }
    size_t n = (size_t)places * (size_t)base->c;
    const struct held new = {.l = l, .step = step, .row = row, .part = in->host + n, .n = n};
    return in->pair ? add_pairs(in, k, &new, places, base->c, err) : 0;
}
