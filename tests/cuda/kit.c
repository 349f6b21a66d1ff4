#include "kit.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* n values about normal that live as long as the kit. */
static float *block(struct kit *k, size_t n, double scale, uint64_t seed)
{
    float *v = room_for(n, sizeof *v);
    k->block = realloc(k->block, (size_t)(k->n_block + 1) * sizeof *k->block);
    if (!k->block)
        exit(1);
    k->block[k->n_block++] = v;
    fill(v, n, seed + 31 * (uint64_t)k->n_block);
    for (size_t i = 0; i < n; i++)
        v[i] = (float)((double)v[i] * scale);
    return v;
}

static struct array matrix(const float *v, int rows, size_t cols)
{
    return (struct array){
        .dtype = DT_F32, .ndim = 2, .dim = {(uint64_t)rows, (uint64_t)cols}, .data = v};
}

static struct array vector(const float *v, int n)
{
    return (struct array){.dtype = DT_F32, .ndim = 1, .dim = {(uint64_t)n}, .data = v};
}

/* [out, rank] [rank, in, kh, kw], about `size` in each value. */
static struct factor product(struct kit *k, int out, int in, int kh, int kw, int rank, double size,
                             uint64_t seed)
{
    double each = sqrt(size / sqrt((double)rank));
    size_t cols = (size_t)in * (size_t)(kh * kw);
    struct factor f = {.a = matrix(block(k, (size_t)(out * rank), each, seed), out, (size_t)rank)};
    f.b = matrix(block(k, (size_t)rank * cols, each, seed), rank, cols);
    f.b.ndim = 4;
    f.b.dim[1] = (uint64_t)in, f.b.dim[2] = (uint64_t)kh, f.b.dim[3] = (uint64_t)kw;
    return f;
}

/* Root mean square of a layer's weight; *rows: of norms of its rows, [out]. */
static double weight_size(const struct layer *l, float *rows)
{
    size_t n = array_count(&l->w), inner = n / (size_t)l->out;
    float *w = room_for(n, sizeof *w);
    double all = 0;
    array_to_f32(&l->w, w);
    for (int i = 0; i < l->out; i++) {
        double s = 0;
        for (size_t c = 0; c < inner; c++)
            s += (double)w[(size_t)i * inner + c] * (double)w[(size_t)i * inner + c];
        rows[i] = (float)sqrt(s);
        all += s;
    }
    free(w);
    return sqrt(all / (double)n);
}

static void set_magnitude(struct kit *k, struct delta *d, const struct layer *l, const float *rows,
                          uint64_t seed)
{
    float *v = block(k, (size_t)l->out, .1, seed);
    for (int i = 0; i < l->out; i++)
        v[i] = rows[i] * (1 + v[i]);
    d->magnitude = matrix(v, l->out, 1);
}

static void set_kron(struct kit *k, struct delta *d, const struct layer *l, double size,
                     uint64_t seed)
{
    int out = l->out % 2 ? 1 : 2, in = l->in % 2 ? 1 : 2;
    size_t inner = (size_t)(l->in / in) * (size_t)(l->kh * l->kw);
    d->kind = DELTA_KRON;
    d->f[0].full = matrix(block(k, (size_t)(out * in), 1, seed), out, (size_t)in);
    d->f[1].full =
        matrix(block(k, (size_t)(l->out / out) * inner, size, seed), l->out / out, inner);
}

static void set_delta(struct kit *k, struct delta *d, unsigned kind, const struct layer *l,
                      int rank, double strength, uint64_t seed)
{
    float *rows = room_for((size_t)l->out, sizeof *rows);
    size_t inner = (size_t)l->in * (size_t)(l->kh * l->kw);
    double size = strength * weight_size(l, rows);
    d->kind = DELTA_PRODUCT;
    switch (kind) {
    case KIT_WHOLE:
        d->f[0].full = matrix(block(k, (size_t)l->out * inner, size, seed), l->out, inner);
        break;
    case KIT_LOHA:
        d->kind = DELTA_HADAMARD;
        d->f[1] = product(k, l->out, l->in, l->kh, l->kw, rank, 1, seed);
        d->f[0] = product(k, l->out, l->in, l->kh, l->kw, rank, size, seed);
        break;
    case KIT_LOKR: set_kron(k, d, l, size, seed); break;
    case KIT_IA3:
        d->kind = DELTA_GAIN;
        d->v = vector(block(k, (size_t)l->out, strength, seed), l->out);
        break;
    case KIT_BIAS:
        d->kind = DELTA_BIAS;
        d->v = vector(block(k, (size_t)l->out, .1 * strength, seed), l->out);
        break;
    case KIT_GLORA:
        d->kind = DELTA_GLORA;
        d->f[1] = product(k, l->in, l->in, 1, 1, rank, .3 / sqrt((double)l->in), seed);
        d->f[1].b.ndim = 2;
        /* fall through */
    default: d->f[0] = product(k, l->out, l->in, l->kh, l->kw, rank, size, seed);
    }
    if (kind == KIT_DORA)
        set_magnitude(k, d, l, rows, seed);
    free(rows);
}

static void add_layer(struct kit *k, const struct site *s, unsigned kinds, int rank,
                      double strength, uint64_t seed)
{
    const struct layer *l = s->layer;
    unsigned kind = 0;
    struct random r = {seed};
    struct err err;
    if (!(kinds & KIT_MIX) || (kinds & KIT_LINEAR && l->kh * l->kw != 1))
        return;
    while (!(kind & kinds))
        kind = 1u << random_int(&r, 0, 7);
    struct delta *d = delta_list_add(&k->list, s->name, &err);
    must(d ? 0 : err.code, &err, "a delta");
    set_delta(k, d, kind, l, rank, strength, seed);
}

static void add_norm(struct kit *k, const struct site *s, double strength, uint64_t seed)
{
    struct err err;
    for (int i = 0; i < 2; i++) {
        struct delta *d = delta_list_add(&k->list, s->name, &err);
        must(d ? 0 : err.code, &err, "a delta");
        d->kind = i ? DELTA_BIAS : DELTA_NORM;
        d->v = vector(block(k, (size_t)s->norm->c, strength, seed + (uint64_t)i), s->norm->c);
    }
}

struct kit *kit_new(const struct model *m, const char *name, unsigned kinds, int rank,
                    double strength, uint64_t seed)
{
    struct kit *k = room_for(1, sizeof *k);
    struct bind_report report = {0};
    struct err err;
    for (int i = 0; i < m->sites.n; i++) {
        const struct site *s = &m->sites.at[i];
        uint64_t own = seed + 1000003 * (uint64_t)i;
        if (s->part == COMPONENT_VAE || (s->part == COMPONENT_TEXT && !(kinds & KIT_TEXT)))
            continue;
        if (s->layer && i % 7 != 3) /* not at all sites */
            add_layer(k, s, kinds, rank, strength, own);
        else if (s->norm && kinds & KIT_NORMS)
            add_norm(k, s, strength, own);
    }
    must(adapter_bind(&k->a, m->dev, &m->sites, &k->list, name, false, &report, &err), &err,
         "binding %s", name);
    expect_that(report.n == 0, seed, "%s fits: %s", name, report.n ? report.line[0] : "");
    bind_report_release(&report);
    return k;
}

void kit_free(struct kit *k)
{
    if (!k)
        return;
    adapter_free(k->a);
    delta_list_release(&k->list);
    for (int i = 0; i < k->n_block; i++)
        free(k->block[i]);
    free(k->block);
    free(k);
}

/* ---- gates ----------------------------------------------------------------------------------- */

/* [GATE_ROWS, c] */
static float *gate_values(int c, bool plain, uint64_t seed)
{
    float *v = room_for((size_t)(GATE_ROWS * c), sizeof *v);
    fill(v, (size_t)(GATE_ROWS * c), seed);
    for (int i = 0; i < GATE_ROWS * c; i++) {
        int row = i / c;
        bool looks = row == GATE_BASE || row == GATE_OWN || row == GATE_CROSS;
        v[i] = !plain ? .5f * v[i] + (row == GATE_GAIN) : looks ? 0 : v[row * c];
    }
    return v;
}

struct gates *kit_gates(const struct model *m, uint64_t seed)
{
    struct gates *g = room_for(1, sizeof *g);
    size_t sites = (size_t)m->sites.n;
    struct err err;
    g->dev = m->dev;
    g->n_site = m->sites.n;
    g->at = room_for(sites, sizeof *g->at);
    g->host = room_for(sites, sizeof *g->host);
    g->plain = room_for(sites, sizeof *g->plain);
    for (int i = 0, turn = 0; i < g->n_site; i++) {
        const struct layer *l = m->sites.at[i].layer;
        if (m->sites.at[i].part != COMPONENT_UNET || !l || turn++ % 3 == 2)
            continue;
        size_t n = (size_t)(GATE_ROWS * l->out);
        g->plain[i] = turn % 3 == 1;
        g->host[i] = gate_values(l->out, g->plain[i], seed + (uint64_t)i);
        g->at[i] = g->dev->be->alloc(g->dev, n * sizeof(float));
        must(g->at[i] ? 0 : err_nomem(&err, n), &err, "gates");
        g->dev->be->store(g->dev, g->at[i], g->host[i], n);
    }
    return g;
}

const char *kit_model(bool small)
{
    return data_path(small ? "tiny-sd2" : "tiny-sd1");
}
