/* A few hundred numbers of an adapter from which inner products can be told roughly. */
#include "matrices.h"

#include <stdlib.h>
#include <string.h>

/* splitmix64 (Steele, Lea, Flood 2014) */
static uint64_t next(uint64_t *s)
{
    uint64_t z = (*s += 0x9e3779b97f4a7c15u);
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

/* FNV-1a */
static uint64_t seed_of(const char *site)
{
    uint64_t h = 0xcbf29ce484222325u;
    for (; *site; site++)
        h = (h ^ (unsigned char)*site) * 0x100000001b3u;
    return h;
}

static void signs(float *out, size_t n, uint64_t *state)
{
    for (size_t i = 0; i < n; i += 64) {
        uint64_t bits = next(state);
        for (size_t k = i; k < n && k < i + 64; k++, bits >>= 1)
            out[k] = bits & 1 ? 1 : -1;
    }
}

static double dot(const float *a, const float *b, size_t n, size_t step)
{
    float s[8] = {0}, rest = 0;
    size_t i = 0;
    if (step == 1)
        for (; i + 8 <= n; i += 8)
            for (int k = 0; k < 8; k++)
                s[k] += a[i + (size_t)k] * b[i + (size_t)k];
    for (; i < n; i++)
        rest += a[i * step] * b[i];
    for (int k = 0; k < 8; k++)
        rest += s[k];
    return rest;
}

/* g^T (a b) h */
static double through(const struct wide *w, const float *g, const float *h)
{
    double s = 0;
    size_t n = w->cols, r = (size_t)w->rank;
    for (size_t k = 0; k < (r ? r : (size_t)w->rows); k++) {
        double left = r ? dot(w->a + k, g, (size_t)w->rows, r) : g[k];
        s += left * dot(w->b + k * n, h, n, 1);
    }
    return s;
}

/* The same for kinds that must be looked at row by row. */
static double through_rows(const struct matrix *m, const float *g, const float *h, float *row)
{
    double s = 0;
    for (int i = 0; i < m->rows; i++) {
        matrix_rows(m, i, 1, row);
        s += g[i] * dot(row, h, m->cols, 1);
    }
    return s;
}

static void add_site(const struct matrices_item *it, double *sum, float *g, float *h, float *row)
{
    const struct matrix *m = &it->m;
    uint64_t state = seed_of(it->site);
    for (int k = 0; k < SKETCH_SIZE; k++) {
        signs(g, (size_t)m->rows, &state);
        signs(h, m->cols, &state);
        sum[k] += m->kind == DELTA_PRODUCT ? m->scale * through(&m->f[0], g, h)
                                           : through_rows(m, g, h, row);
    }
}

int matrices_sketch(const struct matrices *a, float out[SKETCH_SIZE], struct err *err)
{
    double(*sum)[SKETCH_SIZE] = calloc((size_t)a->n + 1, sizeof *sum);
    bool failed = !sum;
    memset(out, 0, SKETCH_SIZE * sizeof *out);
#pragma omp parallel for schedule(dynamic)
    for (int i = 0; i < a->n; i++) {
        const struct matrix *m = &a->item[i].m;
        float *g = sum ? malloc(((size_t)m->rows + 2 * m->cols) * sizeof *g) : NULL;
        if (g) {
            add_site(&a->item[i], sum[i], g, g + m->rows, g + m->rows + m->cols);
        } else {
#pragma omp atomic write
            failed = true;
        }
        free(g);
    }
    for (int k = 0; k < SKETCH_SIZE && !failed; k++) { /* in order of sites, whatever the threads */
        double s = 0;
        for (int i = 0; i < a->n; i++)
            s += sum[i][k];
        out[k] = (float)s;
    }
    free(sum);
    return failed ? err_nomem(err, (size_t)a->n * sizeof *sum) : 0;
}

double sketch_inner(const float a[SKETCH_SIZE], const float b[SKETCH_SIZE])
{
    double s = 0;
    for (int k = 0; k < SKETCH_SIZE; k++)
        s += (double)a[k] * b[k];
    return s / SKETCH_SIZE;
}
