/* A delta's factors as float32, and what can be said of their product without forming it. */
#include "backend.h"
#include "delta.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* No weight of any model is larger; a file that says so wants memory, not pictures. */
#define MOST_VALUES ((size_t)1 << 28) /* of one factor */
#define MOST_PLACES ((uint64_t)1 << 33)

/* ---- loading --------------------------------------------------------------------------------- */

/* Values beyond the first dim. */
static size_t width_of(const struct array *a)
{
    size_t n = 1;
    for (int i = 1; i < a->ndim; i++)
        n *= a->dim[i];
    return n;
}

static int bad(const char *what, const char *why, struct err *err)
{
    return err_set(err, ERR_FORMAT, "%s: %s", what, why);
}

/* A matrix that can be one: some rows and columns, of a type weft computes with. */
static int check_array(const struct array *a, const char *what, struct err *err)
{
    if (a->ndim < 1 || a->ndim > 4 || !array_count(a) || a->dim[0] > INT32_MAX)
        return bad(what, "a factor is no matrix", err);
    if (!array_readable(a))
        return err_set(err, ERR_UNSUPPORTED, "%s: type %s is not computed with", what,
                       dtype_name(a->dtype));
    return 0;
}

static int load_array(float **out, const struct array *a, const char *what, struct err *err)
{
    int rc = check_array(a, what, err);
    if (rc < 0)
        return rc;
    size_t n = array_count(a);
    *out = malloc(n * sizeof **out);
    if (!*out)
        return err_nomem(err, n * sizeof **out);
    return array_to_finite(a, *out, what, err);
}

/* p [rows, cols] becomes [cols, rows]. */
static int turn(float **p, size_t rows, size_t cols, struct err *err)
{
    float *q = malloc(rows * cols * sizeof *q);
    if (!q)
        return err_nomem(err, rows * cols * sizeof *q);
    for (size_t i = 0; i < rows; i++)
        for (size_t j = 0; j < cols; j++)
            q[j * rows + i] = (*p)[i * cols + j];
    free(*p);
    *p = q;
    return 0;
}

/* b [q, in] becomes [p, in * k]: t [p, q, k] times b. */
static int apply_core(struct wide *w, const struct array *t, const char *what, struct err *err)
{
    float *core = NULL, *b = NULL;
    size_t p = array_dim(t, 0), q = array_dim(t, 1), k = width_of(t) / (q ? q : 1);
    int rc = load_array(&core, t, what, err);

    if (rc == 0 && (t->ndim < 2 || q != (size_t)w->rank))
        rc = bad(what, "its middle factor does not fit", err);
    if (rc == 0 && p * k > MOST_VALUES / w->cols)
        rc = bad(what, "its factors are too large", err);
    if (rc == 0 && !(b = calloc(p * w->cols * k, sizeof *b)))
        rc = err_nomem(err, p * w->cols * k * sizeof *b);
    for (size_t i = 0; i < p && rc == 0; i++)
        for (size_t j = 0; j < q; j++)
            for (size_t c = 0; c < w->cols; c++)
                for (size_t l = 0; l < k; l++)
                    b[(i * w->cols + c) * k + l] +=
                        core[(i * q + j) * k + l] * w->b[j * w->cols + c];
    free(core);
    if (rc < 0) {
        free(b);
        return rc;
    }
    free(w->b);
    w->b = b;
    w->rank = (int)p;
    w->cols *= k;
    return 0;
}

static int load_wide(struct wide *w, const struct factor *f, const char *what, struct err *err)
{
    if (f->full.data) {
        int rc = load_array(&w->b, &f->full, what, err);
        w->rows = rc == 0 ? (int)f->full.dim[0] : 0;
        w->cols = width_of(&f->full);
        return rc;
    }
    if (!f->a.data || !f->b.data)
        return bad(what, "one of two factors is missing", err);
    int rc = load_array(&w->b, &f->b, what, err);
    rc = rc < 0 ? rc : load_array(&w->a, &f->a, what, err);
    if (rc < 0)
        return rc;
    w->rank = (int)f->b.dim[0];
    w->cols = width_of(&f->b);
    if (f->t.data)
        rc = apply_core(w, &f->t, what, err);
    size_t rows = f->a.dim[0], inner = width_of(&f->a);
    if (rc == 0 && f->across) {
        rc = turn(&w->a, rows, inner, err);
        rows = inner;
        inner = f->a.dim[0];
    }
    if (rc == 0 && (inner != (size_t)w->rank || rows > INT32_MAX))
        rc = bad(what, "its factors do not multiply", err);
    w->rows = (int)rows;
    return rc;
}

static int load_two(struct matrix *m, const struct delta *d, const char *what, struct err *err)
{
    int rc = load_wide(&m->f[0], &d->f[0], what, err);
    rc = rc < 0 ? rc : load_wide(&m->f[1], &d->f[1], what, err);
    if (rc < 0)
        return rc;
    m->rows = m->f[0].rows;
    m->cols = m->f[0].cols;
    if (m->kind == DELTA_HADAMARD)
        return m->f[1].rows == m->rows && m->f[1].cols == m->cols
                   ? 0
                   : bad(what, "its two products have different shapes", err);
    if ((int64_t)m->rows * m->f[1].rows > INT32_MAX || m->cols > INT32_MAX / m->f[1].cols)
        return bad(what, "its factors are too large", err);
    m->rows *= m->f[1].rows;
    m->cols *= m->f[1].cols;
    return 0;
}

static int by_place(const void *a, const void *b)
{
    const uint64_t *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* Whole numbers of any type, as 32 bits. */
static int load_index(uint32_t *out, const struct array *a, size_t from, size_t n, size_t limit,
                      const char *what, struct err *err)
{
    for (size_t i = from; i < from + n; i++) {
        int64_t v = -1;
        if (a->dtype == DT_I64)
            memcpy(&v, (const char *)a->data + i * 8, 8);
        else if (a->dtype == DT_I32) {
            int32_t w;
            memcpy(&w, (const char *)a->data + i * 4, 4);
            v = w;
        } else {
            return bad(what, "its places are no whole numbers", err);
        }
        if (v < 0 || (uint64_t)v >= limit)
            return bad(what, "a place lies outside the weight", err);
        out[i - from] = (uint32_t)v;
    }
    return 0;
}

/* rows and cols are not in the file: what is needed to hold the places; the binder checks W. */
static int load_sparse(struct matrix *m, const struct delta *d, const char *what, struct err *err)
{
    size_t n = array_count(&d->v);
    const struct array *r = &d->row, *c = d->col.data ? &d->col : &d->row;
    size_t from = d->col.data ? 0 : n;
    int rc = load_array(&m->v, &d->v, what, err);
    if (rc == 0 && (!r->data || array_count(r) != n + from || array_count(c) != n + from))
        rc = bad(what, "it has another number of places than values", err);
    uint64_t *key = rc == 0 ? malloc((n + 1) * 2 * sizeof *key) : NULL;
    m->row = rc == 0 ? malloc((n + 1) * sizeof *m->row) : NULL;
    m->col = rc == 0 ? malloc((n + 1) * sizeof *m->col) : NULL;
    if (rc == 0 && (!key || !m->row || !m->col))
        rc = err_nomem(err, n * 24);
    rc = rc < 0 ? rc : load_index(m->row, r, 0, n, INT32_MAX, what, err);
    rc = rc < 0 ? rc : load_index(m->col, c, from, n, INT32_MAX, what, err);
    for (size_t i = 0; i < n && rc == 0; i++) {
        key[2 * i] = (uint64_t)m->row[i] << 32 | m->col[i];
        key[2 * i + 1] = 0;
        memcpy(&key[2 * i + 1], &m->v[i], sizeof(float));
    }
    if (rc == 0)
        qsort(key, n, 2 * sizeof *key, by_place);
    for (size_t i = 0; i < n && rc == 0; i++) {
        m->row[i] = (uint32_t)(key[2 * i] >> 32);
        m->col[i] = (uint32_t)key[2 * i];
        memcpy(&m->v[i], &key[2 * i + 1], sizeof(float));
        m->rows = m->row[i] + 1 > (uint32_t)m->rows ? (int)m->row[i] + 1 : m->rows;
        m->cols = m->col[i] + 1 > m->cols ? m->col[i] + 1 : m->cols;
        if (i && key[2 * i] == key[2 * i - 2])
            rc = bad(what, "it changes one place twice", err);
    }
    m->n = n;
    free(key);
    return rc;
}

static int load_kind(struct matrix *m, const struct delta *d, const char *what, struct err *err)
{
    int rc;
    switch (m->kind) {
    case DELTA_PRODUCT:
        rc = load_wide(&m->f[0], &d->f[0], what, err);
        m->rows = m->f[0].rows;
        m->cols = m->f[0].cols;
        return rc;
    case DELTA_HADAMARD:
    case DELTA_KRON: return load_two(m, d, what, err);
    case DELTA_SPARSE: return load_sparse(m, d, what, err);
    default:
        return err_set(err, ERR_UNSUPPORTED, "%s: %s is known only with the model's weight", what,
                       delta_kind_name(d));
    }
}

int matrix_load(struct matrix *m, const struct delta *d, const char *what, struct err *err)
{
    memset(m, 0, sizeof *m);
    m->kind = d->kind == DELTA_GLORA ? DELTA_PRODUCT : d->kind;
    m->scale = d->scale;
    if (!isfinite(d->scale))
        return bad(what, "alpha is not a finite number", err);
    int rc = load_kind(m, d, what, err);
    if (rc == 0 && m->cols > MOST_PLACES / (uint64_t)m->rows)
        rc = bad(what, "its factors are too large", err);
    return rc;
}

int matrix_load_factor(struct matrix *m, const struct factor *f, const char *what, struct err *err)
{
    struct delta d = {.kind = DELTA_PRODUCT, .f = {*f}, .scale = 1};
    return matrix_load(m, &d, what, err);
}

void matrix_release(struct matrix *m)
{
    for (int i = 0; i < 2; i++) {
        free(m->f[i].a);
        free(m->f[i].b);
    }
    free(m->row);
    free(m->col);
    free(m->v);
    memset(m, 0, sizeof *m);
}

/* ---- rows ------------------------------------------------------------------------------------ */

/* out [cols] = row i of a factor, times s */
static void wide_row(const struct wide *w, int i, float s, float *out)
{
    size_t n = w->cols;
    if (w->rank == 0) {
        for (size_t c = 0; c < n; c++)
            out[c] = s * w->b[(size_t)i * n + c];
        return;
    }
    memset(out, 0, n * sizeof *out);
    for (int k = 0; k < w->rank; k++) {
        float f = s * w->a[(size_t)i * (size_t)w->rank + (size_t)k];
        const float *b = w->b + (size_t)k * n;
        for (size_t c = 0; c < n; c++)
            out[c] += f * b[c];
    }
}

static void hadamard_row(const struct matrix *m, int i, float *out)
{
    const struct wide *w = &m->f[1];
    wide_row(&m->f[0], i, m->scale, out);
    for (size_t c0 = 0; c0 < m->cols; c0 += 256) {
        size_t n = m->cols - c0 < 256 ? m->cols - c0 : 256;
        float t[256] = {0};
        for (int k = 0; k < (w->rank ? w->rank : 1); k++) {
            const float *b = w->b + (size_t)(w->rank ? k : i) * w->cols + c0;
            float f = w->rank ? w->a[(size_t)i * (size_t)w->rank + (size_t)k] : 1;
            for (size_t c = 0; c < n; c++)
                t[c] += f * b[c];
        }
        for (size_t c = 0; c < n; c++)
            out[c0 + c] *= t[c];
    }
}

/* Entry (i, c) of a factor. */
static float wide_at(const struct wide *w, int i, size_t c)
{
    if (w->rank == 0)
        return w->b[(size_t)i * w->cols + c];
    float s = 0;
    for (int k = 0; k < w->rank; k++)
        s += w->a[(size_t)i * (size_t)w->rank + (size_t)k] * w->b[(size_t)k * w->cols + c];
    return s;
}

static void kron_row(const struct matrix *m, int i, float *out)
{
    const struct wide *a = &m->f[0], *b = &m->f[1];
    size_t n = b->cols;
    float *last = out + (a->cols - 1) * n; /* the second factor's row; overwritten at the end */
    wide_row(b, i % b->rows, m->scale, last);
    for (size_t c = 0; c < a->cols; c++) {
        float f = wide_at(a, i / b->rows, c);
        for (size_t j = 0; j < n; j++)
            out[c * n + j] = f * last[j];
    }
}

static void sparse_row(const struct matrix *m, int i, float *out)
{
    size_t lo = 0, hi = m->n;
    memset(out, 0, m->cols * sizeof *out);
    while (lo < hi) {
        size_t mid = (lo + hi) / 2;
        if (m->row[mid] < (uint32_t)i)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (; lo < m->n && m->row[lo] == (uint32_t)i; lo++)
        out[m->col[lo]] = m->scale * m->v[lo];
}

void matrix_rows(const struct matrix *m, int row0, int n, float *out)
{
    for (int i = 0; i < n; i++) {
        float *o = out + (size_t)i * m->cols;
        if (m->kind == DELTA_PRODUCT)
            wide_row(&m->f[0], row0 + i, m->scale, o);
        else if (m->kind == DELTA_HADAMARD)
            hadamard_row(m, row0 + i, o);
        else if (m->kind == DELTA_KRON)
            kron_row(m, row0 + i, o);
        else
            sparse_row(m, row0 + i, o);
    }
}

/* ---- inner products -------------------------------------------------------------------------- */

static double dot(const float *a, const float *b, size_t n, size_t step_a, size_t step_b)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)a[i * step_a] * b[i * step_b];
    return s;
}

/* <a b, a' b'> = sum over k, l of (a^T a')_kl (b b'^T)_kl */
static double inner_product(const struct wide *x, const struct wide *y)
{
    size_t rx = (size_t)x->rank, ry = (size_t)y->rank;
    double s = 0;
    for (size_t k = 0; k < rx; k++)
        for (size_t l = 0; l < ry; l++)
            s += dot(x->a + k, y->a + l, (size_t)x->rows, rx, ry) *
                 dot(x->b + k * x->cols, y->b + l * y->cols, x->cols, 1, 1);
    return s;
}

/* Row by row; each row's share is kept apart, so that threads do not change the sum. */
static double inner_rows(const struct matrix *a, const struct matrix *b)
{
    double *part = calloc((size_t)a->rows + 1, sizeof *part), s = 0;
    bool failed = !part;

#pragma omp parallel
    {
        float *x = malloc(2 * a->cols * sizeof *x);
        bool mine = x != NULL && part != NULL;
#pragma omp for schedule(static)
        for (int i = 0; i < a->rows; i++) {
            if (!mine)
                continue;
            matrix_rows(a, i, 1, x);
            if (b != a)
                matrix_rows(b, i, 1, x + a->cols);
            part[i] = dot(x, b == a ? x : x + a->cols, a->cols, 1, 1);
        }
        if (!mine) {
#pragma omp atomic write
            failed = true;
        }
        free(x);
    }
    for (int i = 0; i < a->rows && part; i++)
        s += part[i];
    free(part);
    return failed ? NAN : s;
}

static double inner_wide(const struct wide *x, const struct wide *y)
{
    if (x->rank && y->rank)
        return inner_product(x, y);
    struct matrix a = {
        .kind = DELTA_PRODUCT, .rows = x->rows, .cols = x->cols, .scale = 1, .f = {*x}};
    struct matrix b = {
        .kind = DELTA_PRODUCT, .rows = y->rows, .cols = y->cols, .scale = 1, .f = {*y}};
    return inner_rows(&a, &b);
}

static double inner_sparse(const struct matrix *a, const struct matrix *b)
{
    double s = 0;
    for (size_t i = 0, j = 0; i < a->n && j < b->n;) {
        uint64_t x = (uint64_t)a->row[i] << 32 | a->col[i];
        uint64_t y = (uint64_t)b->row[j] << 32 | b->col[j];
        if (x == y)
            s += (double)a->v[i] * b->v[j];
        i += x <= y;
        j += y <= x;
    }
    return s;
}

double matrix_inner(const struct matrix *a, const struct matrix *b)
{
    double s = (double)a->scale * b->scale;
    if (a->kind == DELTA_SPARSE && b->kind == DELTA_SPARSE)
        return s * inner_sparse(a, b);
    assert(a->rows == b->rows && a->cols == b->cols);
    if (a->kind == DELTA_PRODUCT && b->kind == DELTA_PRODUCT)
        return s * inner_wide(&a->f[0], &b->f[0]);
    if (a->kind == DELTA_KRON && b->kind == DELTA_KRON && a->f[0].rows == b->f[0].rows &&
        a->f[0].cols == b->f[0].cols)
        return s * inner_wide(&a->f[0], &b->f[0]) * inner_wide(&a->f[1], &b->f[1]);
    return inner_rows(a, b);
}

double matrix_norm(const struct matrix *m)
{
    double s = matrix_inner(m, m);
    return s > 0 ? sqrt(s) : s; /* rounding may leave a hair below zero, NAN stays */
}
