#include "encoder.h"

#include "algebra.h"

#include "unet/config.h"
#include "unet/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct encoder_site {
    int at;                       /* of the model's sites */
    double norm;                  /* |W| */
    float *left, *right, *weight; /* [p, out], [q, in kh kw], [part, p q] */
};

/* ---- opening --------------------------------------------------------------------------------- */

static void read_sizes(struct encoder *e, struct config *c)
{
    int n = config_ints(c, "sketch", 0, e->sketch, 2), parts = config_ints(c, "dim", 0, e->part, 2);
    if (config_nums(c, "match", e->match, 4) != 4)
        config_fail(c, "match is not four numbers");
    e->states = config_int(c, "states", 64);
    bool good = n == 2 && parts == 2 && e->states >= 1 && e->states <= 1024;
    for (int i = 0; i < 2 && good; i++)
        good = e->sketch[i] >= 1 && e->sketch[i] <= 256 && e->part[i] >= 1 && e->part[i] <= 2048;
    if (!good)
        config_fail(c, "its sizes do not make an encoder of adapters");
    e->dim = e->part[0] + e->part[1];
}

/* A matrix of the file as floats in memory of its own. */
static float *take(struct loader *ld, const char *name, int rows, int cols)
{
    uint64_t dim[2] = {(uint64_t)rows, (uint64_t)cols};
    struct array a = {0};
    loader_array(ld, &a, name, rows ? 2 : 1, rows ? dim : dim + 1);
    if (ld->err.code)
        return NULL;
    float *v = malloc(array_count(&a) * sizeof *v);
    if (!v)
        loader_fail(ld, ERR_NOMEM, "out of memory for the encoder's weights");
    else
        array_to_finite(&a, v, name, &ld->err);
    return v;
}

static double weight_norm(const struct layer *l, struct loader *ld)
{
    size_t n = array_count(&l->w);
    float *w = malloc(n * sizeof *w);
    double sum = 0;
    if (!w)
        loader_fail(ld, ERR_NOMEM, "out of memory for a layer's weights");
    else if (array_to_finite(&l->w, w, l->name, &ld->err) == 0)
        for (size_t i = 0; i < n; i++)
            sum += (double)w[i] * w[i];
    free(w);
    return sqrt(sum);
}

static void take_site(struct encoder *e, struct encoder_site *s, const char *name,
                      struct loader *ld)
{
    s->at = sites_find(&e->m->sites, name);
    const struct layer *l = s->at < 0 ? NULL : e->m->sites.at[s->at].layer;
    if (!l) {
        loader_fail(ld, ERR_MISMATCH, "the encoder was made for another model: this one has no %s",
                    name);
        return;
    }
    loader_enter(ld, "sites.%d", (int)(s - e->site));
    s->norm = weight_norm(l, ld);
    s->left = take(ld, "left", e->sketch[0], l->out);
    s->right = take(ld, "right", e->sketch[1], l->in * l->kh * l->kw);
    s->weight = take(ld, "weight", e->part[0], e->sketch[0] * e->sketch[1]);
    loader_leave(ld);
}

enum { MOST_SITES = 1024 };

static int take_sites(struct encoder *e, struct config *c, struct loader *ld)
{
    const char *name[MOST_SITES];
    e->n_site = config_strs(c, "sites", name, MOST_SITES);
    if (e->n_site < 1)
        config_fail(c, "sites is not a list of names");
    if (config_done(c, &ld->err) < 0)
        return ld->err.code;
    e->site = calloc((size_t)e->n_site, sizeof *e->site);
    if (!e->site)
        loader_fail(ld, ERR_NOMEM, "out of memory for the encoder's sites");
    for (int i = 0; i < e->n_site && !ld->err.code; i++)
        take_site(e, &e->site[i], name[i], ld);
    return ld->err.code;
}

static void take_maps(struct encoder *e, struct loader *ld)
{
    static const char *const name[2] = {"sketch", "answer"};
    const int in[2] = {e->scorer->clip->dim, responder_width(e->re)};
    for (int i = 0; i < 2 && !ld->err.code; i++) {
        loader_enter(ld, "%s", name[i]);
        e->map[i].bias = take(ld, "bias", 0, e->part[i]);
        e->map[i].text = take(ld, "text", e->part[i], in[i]);
        e->map[i].mean = take(ld, "mean", 0, in[i]);
        loader_leave(ld);
    }
    e->main = take(ld, "answer.main", e->states, in[1]);
    e->weight = take(ld, "answer.weight", e->part[1], e->states * (e->states + 1) / 2);
}

static int load(struct encoder *e, struct source *from, struct err *err)
{
    struct loader ld = {.dev = e->m->dev,
                        .weights = e->weights = from->weights,
                        .sites = &e->layers,
                        .part = COMPONENT_TEXT};
    from->weights = NULL;
    const char *model = config_str(from->config, "model", "");
    if (strcmp(model, e->m->fingerprint))
        return err_set(err, ERR_MISMATCH, "%s: the encoder was made for another model",
                       config_path(from->config));
    read_sizes(e, from->config);
    take_sites(e, from->config, &ld);
    if (!ld.err.code)
        take_maps(e, &ld);
    return loader_done(&ld, NULL, err);
}

int encoder_open(struct encoder **out, const struct model *m, const struct responder *re,
                 const char *dir, const char *scorer, struct err *err)
{
    struct encoder *e = calloc(1, sizeof *e);
    struct source from;
    *out = NULL;
    if (!e)
        return err_nomem(err, sizeof *e);
    e->m = m;
    e->re = re;
    char *file = file_join(dir, "model.safetensors");
    int rc = file ? hash_file(e->name, file, err) : err_nomem(err, strlen(dir));
    rc = rc < 0 ? rc : scorer_open(&e->scorer, m->dev, scorer, err);
    if (rc == 0 && (rc = source_open(&from, dir, "model", err)) == 0) {
        rc = load(e, &from, err);
        source_close(&from);
    }
    free(file);
    if (rc < 0)
        encoder_close(e);
    else
        *out = e;
    return rc;
}

void encoder_close(struct encoder *e)
{
    if (!e)
        return;
    for (int i = 0; e->site && i < e->n_site; i++) {
        free(e->site[i].left);
        free(e->site[i].right);
        free(e->site[i].weight);
    }
    for (int i = 0; i < 2; i++) {
        free(e->map[i].bias);
        free(e->map[i].text);
        free(e->map[i].mean);
    }
    free(e->main);
    free(e->weight);
    free(e->site);
    sites_release(&e->layers);
    weights_close(e->weights);
    scorer_close(e->scorer);
    free(e);
}

/* ---- what is told of an adapter -------------------------------------------------------------- */

/* to [n, m] = a [n, k] b^T, b [m, k] */
static void product(float *to, const float *a, const float *b, int n, int m, size_t k)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < m; j++) {
            const float *x = a + (size_t)i * k, *y = b + (size_t)j * k;
            float s[8] = {0}, rest = 0;
            size_t c = 0;
            for (; c + 8 <= k; c += 8)
                for (size_t u = 0; u < 8; u++)
                    s[u] += x[c + u] * y[c + u];
            for (; c < k; c++)
                rest += x[c] * y[c];
            for (int u = 0; u < 8; u++)
                rest += s[u];
            to[i * m + j] = rest;
        }
}

/* All that is bound there, of whatever kind, as one matrix. */
static int gather(struct matrix *m, const struct bound *b, const struct layer *l, const char *site,
                  struct err *err)
{
    memset(m, 0, sizeof *m);
    if (bound_is_product(b)) {
        int rc = matrix_load(m, &b->d, site, err);
        m->scale *= b->factor;
        return rc;
    }
    size_t inner = (size_t)l->in * (size_t)l->kh * (size_t)l->kw;
    *m = (struct matrix){.kind = DELTA_PRODUCT,
                         .rows = l->out,
                         .cols = inner,
                         .scale = 1,
                         .f[0] = {.rows = l->out, .cols = inner}};
    return bound_whole(&m->f[0].b, b, l, err);
}

/* to [p, q] = L dW R^T / |dW|; *norm = |dW|. dW = up down, or whole: then up is 1. */
static int sketch(const struct encoder *e, const struct encoder_site *s, const struct matrix *m,
                  float *to, double *norm, struct err *err)
{
    const struct layer *l = e->m->sites.at[s->at].layer;
    const struct wide *f = &m->f[0];
    int p = e->sketch[0], q = e->sketch[1], rank = f->rank, n = rank ? rank : m->rows;
    float *lu = malloc((size_t)(p + q) * (size_t)n * sizeof *lu);
    float *up = malloc((size_t)l->out * (size_t)(rank ? rank : 1) * sizeof *up);
    int rc = lu && up ? 0 : err_nomem(err, (size_t)l->out * (size_t)n * sizeof *up);
    *norm = matrix_norm(m);
    if (rc == 0) {
        float *rd = lu + (size_t)p * (size_t)n;
        for (int i = 0; i < l->out; i++) /* [rank, out] */
            for (int k = 0; k < rank; k++)
                up[(size_t)k * (size_t)l->out + (size_t)i] =
                    f->a[(size_t)i * (size_t)rank + (size_t)k];
        if (rank)
            product(lu, s->left, up, p, rank, (size_t)l->out);
        product(rd, s->right, f->b, q, n, (size_t)l->in * (size_t)l->kh * (size_t)l->kw);
        product(to, rank ? lu : s->left, rd, p, q, (size_t)n);
        for (int i = 0; i<p * q && * norm> 0; i++)
            to[i] = (float)(to[i] * m->scale / *norm);
    }
    free(up);
    free(lu);
    return rc;
}

/* to [part] += the site's share of the map; what it gives to the sketches' length and to the strength, squared. */
static int add_site(const struct encoder *e, const struct encoder_site *s, const struct bound *b,
                    float *to, double *length, double *strength, struct err *err)
{
    const struct site *site = &e->m->sites.at[s->at];
    int n = e->sketch[0] * e->sketch[1];
    struct matrix m;
    double norm = 0;
    float *x = malloc((size_t)(n + e->part[0]) * sizeof *x);
    if (!x)
        return err_nomem(err, (size_t)(n + e->part[0]) * sizeof *x);
    float *y = x + n;
    int rc = gather(&m, b, site->layer, site->name, err);
    rc = rc < 0 ? rc : sketch(e, s, &m, x, &norm, err);
    matrix_release(&m);
    if (rc == 0 && norm > 0) {
        product(y, x, s->weight, 1, e->part[0], (size_t)n);
        for (int i = 0; i < e->part[0]; i++)
            to[i] += y[i];
        *length += vector_dot(x, x, n);
        *strength += norm / s->norm * (norm / s->norm);
    }
    free(x);
    return rc;
}

static int by_sketch(const struct encoder *e, const struct adapter *a, float *to, double *strength,
                     struct err *err)
{
    double length = 0;
    int rc = 0;
    *strength = 0;
    for (int i = 0; i < e->n_site && rc == 0; i++)
        if (a->at[e->site[i].at])
            rc = add_site(e, &e->site[i], a->at[e->site[i].at], to, &length, strength, err);
    *strength = sqrt(*strength);
    for (int i = 0; i < e->part[0] && length > 0; i++)
        to[i] = (float)(to[i] / sqrt(length)) + e->map[0].bias[i];
    return rc < 0 ? rc : !(length > 0);
}

static int by_answer(const struct encoder *e, const struct response *answer, float *to,
                     struct err *err)
{
    int n = e->states, width = responder_width(e->re), upper = n * (n + 1) / 2;
    float *row = malloc((size_t)RESPONSE_ROWS * (size_t)(width + n) * sizeof *row);
    float *g = malloc((size_t)upper * sizeof *g);
    double length = 0;
    if (row && g) {
        float *x = row + RESPONSE_ROWS * width, *at = g;
        response_raise(e->re, answer, row);
        product(x, row, e->main, RESPONSE_ROWS, n, (size_t)width);
        for (int i = 0; i < n; i++)
            for (int j = i; j < n; j++) {
                double s = 0;
                for (int k = 0; k < RESPONSE_ROWS; k++)
                    s += (double)x[k * n + i] * x[k * n + j];
                length += (i == j ? 1 : 2) * s * s;
                *at++ = (float)s;
            }
        product(to, g, e->weight, 1, e->part[1], (size_t)upper);
        for (int i = 0; i < e->part[1]; i++)
            to[i] = length > 0 ? (float)(to[i] / sqrt(length)) + e->map[1].bias[i] : 0;
    }
    int rc = row && g ? 0 : err_nomem(err, (size_t)RESPONSE_ROWS * (size_t)width * sizeof *row);
    free(row);
    free(g);
    return rc;
}

/* ---- vectors --------------------------------------------------------------------------------- */

static int finish(const struct encoder *e, float *out, struct err *err)
{
    vector_unit(out, e->part[0]);
    vector_unit(out + e->part[0], e->part[1]);
    for (int i = 0; i < e->dim; i++) {
        if (!isfinite(out[i]))
            return err_set(err, ERR_FORMAT,
                           "the encoder makes nothing of it: its weights are damaged");
        out[i] *= (float)sqrt(.5);
    }
    return 0;
}

int encoder_read(const struct encoder *e, const struct adapter *a, const struct response *answer,
                 float *out, double *strength, struct err *err)
{
    memset(out, 0, (size_t)e->dim * sizeof *out);
    int silent = by_sketch(e, a, out, strength, err), rc = silent;
    if (rc >= 0 && !answer->silent)
        rc = by_answer(e, answer, out + e->part[0], err);
    rc = rc < 0 ? rc : finish(e, out, err);
    return rc < 0 ? rc : silent && answer->silent;
}

double encoder_odds(const struct encoder *e, double likeness, double answer)
{
    double x = e->match[0] + e->match[1] * (isfinite(likeness) ? likeness : 0) +
               e->match[2] * (answer > -3 ? fmin(answer, 3) : -3);
    return exp(x);
}

int encoder_ask(struct encoder *e, const char *text, const struct query *q, float *out,
                struct err *err)
{
    const int in[2] = {e->scorer->clip->dim, responder_width(e->re)};
    float *v = malloc((size_t)(in[0] + in[1]) * sizeof *v);
    if (!v)
        return err_nomem(err, (size_t)(in[0] + in[1]) * sizeof *v);
    float *of[2] = {v, v + in[0]};
    int rc = scorer_text(e->scorer, text, of[0], err);
    rc = rc < 0 ? rc : query_mean(e->re, q, of[1], err);
    for (int k = 0; k < 2 && rc == 0; k++) {
        for (int i = 0; i < in[k]; i++)
            of[k][i] -= e->map[k].mean[i];
        product(out + (k ? e->part[0] : 0), of[k], e->map[k].text, 1, e->part[k], (size_t)in[k]);
    }
    rc = rc < 0 ? rc : finish(e, out, err);
    free(v);
    return rc;
}
