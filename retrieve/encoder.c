#include "encoder.h"

#include "algebra.h"

#include "unet/config.h"
#include "unet/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SINGULAR = 16 }; /* values looked at */

struct encoder_site {
    int at, kind;                 /* of the model's sites; of the token's weights */
    double norm;                  /* |W| */
    float *left, *right, *narrow; /* [p, out], [q, in kh kw], [kept, p q] */
};

/* ---- opening --------------------------------------------------------------------------------- */

static void read_sizes(struct encoder *e, struct config *c)
{
    int n = config_ints(c, "sketch", 0, e->sketch, 2);
    if (config_nums(c, "match", e->match, 3) != 3)
        config_fail(c, "match is not three numbers");
    clip_tower_read(&e->tower, c, 4);
    e->dim = config_int(c, "projection_dim", 128);
    e->kept = config_int(c, "kept", 32);
    e->spectrum = config_int(c, "spectrum", 8);
    e->kinds = config_int(c, "kinds", 0);
    e->tokens_in = e->kept + e->spectrum + 2;
    if (n != 2 || e->sketch[0] < 1 || e->sketch[0] > 256 || e->sketch[1] < 1 ||
        e->sketch[1] > 256 || e->dim < 1 || e->dim > 4096 || e->kept < 1 || e->kept > 4096 ||
        e->spectrum < 0 || e->spectrum > SINGULAR || e->kinds < 1 || e->kinds > 1024)
        config_fail(c, "its sizes do not make an encoder of adapters");
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

static void take_site(struct encoder *e, struct encoder_site *s, const char *name, int right,
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
    s->right = take(ld, "right", right, l->in * l->kh * l->kw);
    s->narrow = take(ld, "narrow", e->kept, e->sketch[0] * right);
    loader_leave(ld);
}

enum { MOST_SITES = 1024 };

static int take_sites(struct encoder *e, struct config *c, struct loader *ld)
{
    const char *name[MOST_SITES];
    int kind[MOST_SITES];
    e->n_site = config_strs(c, "sites", name, MOST_SITES);
    if (e->n_site < 1 || config_ints(c, "kind", 0, kind, MOST_SITES) != e->n_site)
        config_fail(c, "sites and kind are not lists of one length");
    if (config_done(c, &ld->err) < 0)
        return ld->err.code;
    e->site = calloc((size_t)e->n_site, sizeof *e->site);
    if (!e->site)
        loader_fail(ld, ERR_NOMEM, "out of memory for the encoder's sites");
    for (int i = 0; i < e->n_site && !ld->err.code; i++) {
        if (kind[i] < 0 || kind[i] >= e->kinds)
            loader_fail(ld, ERR_FORMAT, "kind %d of a site is not one of %d", kind[i], e->kinds);
        e->site[i].kind = kind[i];
        take_site(e, &e->site[i], name[i], e->sketch[1], ld);
    }
    return ld->err.code;
}

static void take_rest(struct encoder *e, struct loader *ld)
{
    int width = e->tower.width;
    e->kind_w = calloc((size_t)e->kinds, sizeof *e->kind_w);
    e->kind_b = calloc((size_t)e->kinds, sizeof *e->kind_b);
    if (!e->kind_w || !e->kind_b)
        loader_fail(ld, ERR_NOMEM, "out of memory for the encoder");
    for (int i = 0; i < e->kinds && !ld->err.code; i++) {
        loader_enter(ld, "kinds.%d", i);
        e->kind_w[i] = take(ld, "weight", width, e->tokens_in);
        e->kind_b[i] = take(ld, "bias", 0, width);
        loader_leave(ld);
    }
    e->position = take(ld, "position", e->n_site + 1, width);
    e->absent = take(ld, "absent", 0, width);
    e->head = take(ld, "projection.weight", e->dim, width);
    e->bias = take(ld, "projection.bias", 0, e->dim);
    e->text = take(ld, "text.weight", e->dim, e->scorer->clip->dim);
    e->mean = take(ld, "text.mean", 0, e->scorer->clip->dim);
    clip_tower_load(&e->tower, ld);
    loader_norm(ld, &e->final, "final_layer_norm", width, 0, 1e-5f);
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
        take_rest(e, &ld);
    return loader_done(&ld, NULL, err);
}

int encoder_open(struct encoder **out, const struct model *m, const char *dir, const char *scorer,
                 struct err *err)
{
    struct encoder *e = calloc(1, sizeof *e);
    struct source from;
    *out = NULL;
    if (!e)
        return err_nomem(err, sizeof *e);
    e->m = m;
    run_init(&e->run, m->dev);
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
        free(e->site[i].narrow);
    }
    for (int i = 0; i < e->kinds; i++) {
        if (e->kind_w)
            free(e->kind_w[i]);
        if (e->kind_b)
            free(e->kind_b[i]);
    }
    float *own[] = {e->position, e->absent, e->head, e->bias, e->text, e->mean};
    for (size_t i = 0; i < sizeof own / sizeof *own; i++)
        free(own[i]);
    free(e->site);
    free(e->kind_w);
    free(e->kind_b);
    clip_tower_release(&e->tower, e->m->dev);
    norm_release(e->m->dev, &e->final);
    sites_release(&e->layers);
    weights_close(e->weights);
    scorer_close(e->scorer);
    run_release(&e->run);
    free(e);
}

/* ---- tokens ---------------------------------------------------------------------------------- */

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

/* What is taken of one site's dW. */
struct look {
    double norm, sigma[SINGULAR];
    int n_sigma;
    float *sketch; /* [p, q] */
};

/* dW = up down, each of few columns or rows. */
static int look_at(const struct encoder *e, const struct encoder_site *s, const struct matrix *m,
                   struct look *out, struct err *err)
{
    const struct layer *l = e->m->sites.at[s->at].layer;
    int p = e->sketch[0], q = e->sketch[1];
    size_t inner = (size_t)l->in * (size_t)l->kh * (size_t)l->kw;
    struct matrix few;
    double kept;
    int rc = matrix_truncate(&few, m, SINGULAR, &kept, out->sigma, err);
    if (rc < 0)
        return rc;
    out->n_sigma = few.f[0].rank;
    matrix_release(&few);
    out->norm = matrix_norm(m);
    int rank = m->f[0].rank ? m->f[0].rank : m->rows;
    float *up = malloc((size_t)l->out * (size_t)rank * sizeof *up);
    float *lu = malloc((size_t)(p + q) * (size_t)rank * sizeof *lu);
    if (up && lu) {
        float *rd = lu + (size_t)p * (size_t)rank;
        for (int i = 0; i < l->out; i++) /* [rank, out] */
            for (int k = 0; k < rank; k++)
                up[(size_t)k * (size_t)l->out + (size_t)i] =
                    m->f[0].rank ? m->f[0].a[(size_t)i * (size_t)rank + (size_t)k] : i == k;
        product(lu, s->left, up, p, rank, (size_t)l->out);
        product(rd, s->right, m->f[0].b, q, rank, inner);
        product(out->sketch, lu, rd, p, q, (size_t)rank);
        for (int i = 0; i < p * q; i++)
            out->sketch[i] *= m->scale;
    } else {
        rc = err_nomem(err, (size_t)l->out * (size_t)rank * sizeof *up);
    }
    free(up);
    free(lu);
    return rc;
}

/* All that is bound there, of whatever kind, as one matrix. */
static int gather(struct matrix *m, const struct bound *b, const struct layer *l, const char *site,
                  struct err *err)
{
    memset(m, 0, sizeof *m);
    if (b->simple && b->d.kind == DELTA_PRODUCT && b->d.f[0].a.data && !b->next) {
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
    m->f[0].b = calloc((size_t)l->out * inner, sizeof(float));
    int rc = m->f[0].b ? 0 : err_nomem(err, (size_t)l->out * inner * sizeof(float));
    for (; b && rc == 0; b = b->next)
        rc = bound_add(b, l, m->f[0].b, NULL, 1, err);
    return rc;
}

/* The numbers of a token: sketch, spectrum, and (later) its share. */
static int describe(const struct encoder *e, const struct encoder_site *s, const struct bound *b,
                    float *to, double *norm, struct err *err)
{
    const struct site *site = &e->m->sites.at[s->at];
    int n = e->sketch[0] * e->sketch[1];
    struct matrix m;
    struct look k = {.sketch = malloc((size_t)n * sizeof(float))};
    double sum = 0, squares = 0;
    int rc = k.sketch ? gather(&m, b, site->layer, site->name, err)
                      : err_nomem(err, (size_t)n * sizeof(float));
    if (k.sketch) {
        rc = rc < 0 ? rc : look_at(e, s, &m, &k, err);
        matrix_release(&m);
    }
    *norm = rc == 0 ? k.norm : 0;
    if (*norm > 0) {
        for (int i = 0; i < n; i++)
            k.sketch[i] = (float)(k.sketch[i] / k.norm);
        product(to, k.sketch, s->narrow, 1, e->kept, (size_t)n);
        for (int i = 0; i < k.n_sigma; i++) {
            sum += k.sigma[i];
            squares += k.sigma[i] * k.sigma[i];
        }
        for (int i = 0; i < e->spectrum; i++)
            to[e->kept + i] = i < k.n_sigma ? (float)(k.sigma[i] / k.norm) : 0;
        to[e->kept + e->spectrum] = (float)(sum * sum / squares / SINGULAR);
    }
    free(k.sketch);
    return rc;
}

/* x [n_site + 1, width] */
static void embed(const struct encoder *e, float *told, const double *norm, double strength,
                  float *x)
{
    int width = e->tower.width, in = e->tokens_in;
    memcpy(x, e->position, (size_t)(e->n_site + 1) * (size_t)width * sizeof *x);
    for (int i = 0; i < e->n_site; i++) {
        const struct encoder_site *s = &e->site[i];
        const float *w = e->kind_w[s->kind], *token = e->absent;
        float *to = x + (size_t)i * (size_t)width, *t = told + (size_t)i * (size_t)in;
        if (norm[i] > 0)
            t[in - 1] = (float)(log(fmax(norm[i] / s->norm / strength, 1e-4)) / 2 + 1);
        for (int k = 0; k < width; k++) {
            double sum = norm[i] > 0 ? e->kind_b[s->kind][k] : token[k];
            for (int c = 0; c < in && norm[i] > 0; c++)
                sum += (double)w[k * in + c] * t[c];
            to[k] += (float)sum;
        }
    }
}

static int unit(float *v, int n, struct err *err)
{
    double length = vector_unit(v, n);
    if (!(length > 0) || !isfinite(length))
        return err_set(err, ERR_FORMAT, "the encoder makes nothing of it: its weights are damaged");
    return 0;
}

/* x [n_site + 1, width] to state [width], the last token's. */
static int forward(struct encoder *e, const float *x, float *state, struct err *err)
{
    int n = e->n_site + 1, width = e->tower.width, rc = 0;
    float *all = malloc((size_t)n * (size_t)width * sizeof *all);
    if (!all)
        return err_nomem(err, (size_t)n * (size_t)width * sizeof *all);
    for (int live = 0; live < 2 && rc == 0; live++) {
        if (!live)
            run_measure(&e->run);
        struct tensor t = run_tensor(&e->run, 1, n, 1, width);
        op_upload(&e->run, &t, x);
        clip_tower_forward(&e->tower, &e->run, &t, false, 0);
        op_layer_norm(&e->run, &t, &e->final, &t);
        rc = live ? run_check(&e->run, err) : run_commit(&e->run, err);
        if (rc == 0 && live)
            rc = e->m->dev->be->download(e->m->dev, all, &t, err);
    }
    run_reset(&e->run);
    memcpy(state, all + (size_t)(n - 1) * (size_t)width, (size_t)width * sizeof *state);
    free(all);
    return rc;
}

/* ---- vectors --------------------------------------------------------------------------------- */

int encoder_read(struct encoder *e, const struct adapter *a, float *out, double *strength,
                 struct err *err)
{
    size_t n = (size_t)e->n_site, width = (size_t)e->tower.width;
    float *told = calloc(n * (size_t)e->tokens_in, sizeof *told);
    float *x = malloc((n + 2) * width * sizeof *x);
    double *norm = calloc(n, sizeof *norm), squares = 0;
    int rc = told && x && norm ? 0 : err_nomem(err, n * width * sizeof *x);
    for (int i = 0; i < e->n_site && rc == 0; i++) {
        const struct encoder_site *s = &e->site[i];
        if (!a->at[s->at])
            continue;
        rc = describe(e, s, a->at[s->at], told + (size_t)i * (size_t)e->tokens_in, &norm[i], err);
        squares += norm[i] / s->norm * (norm[i] / s->norm);
    }
    *strength = sqrt(squares);
    memset(out, 0, (size_t)e->dim * sizeof *out);
    if (rc == 0 && squares > 0) {
        float *state = x + (n + 1) * width;
        embed(e, told, norm, *strength, x);
        rc = forward(e, x, state, err);
        if (rc == 0) {
            product(out, state, e->head, 1, e->dim, width);
            for (int i = 0; i < e->dim; i++)
                out[i] += e->bias[i];
            rc = unit(out, e->dim, err);
        }
    }
    free(told);
    free(x);
    free(norm);
    return rc < 0 ? rc : !(squares > 0);
}

double encoder_match(const struct encoder *e, double likeness, double answer)
{
    double x = e->match[0] + e->match[1] * (isfinite(likeness) ? likeness : 0) +
               e->match[2] * (answer > -3 ? fmin(answer, 3) : -3);
    return 1 / (1 + exp(-x));
}

int encoder_ask(struct encoder *e, const char *text, float *out, struct err *err)
{
    int n = e->scorer->clip->dim;
    float *v = malloc((size_t)n * sizeof *v);
    int rc = v ? scorer_text(e->scorer, text, v, err) : err_nomem(err, (size_t)n * sizeof *v);
    for (int i = 0; i < n && rc == 0; i++)
        v[i] -= e->mean[i];
    if (rc == 0)
        product(out, v, e->text, 1, e->dim, (size_t)n);
    rc = rc < 0 ? rc : unit(out, e->dim, err);
    free(v);
    return rc;
}
