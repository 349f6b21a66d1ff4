/* Sums and truncations of deltas: exact by concatenation, nearest by singular values (LAPACK). */
#include "delta.h"

#include <assert.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* LAPACK, as Fortran has it: matrices by columns, lwork -1 asks for the workspace. */
void dgesdd_(const char *job, const int *m, const int *n, double *a, const int *lda, double *s,
             double *u, const int *ldu, double *vt, const int *ldvt, double *work, const int *lwork,
             int *iwork, int *info, size_t job_length);
void dgeqrf_(const int *m, const int *n, double *a, const int *lda, double *tau, double *work,
             const int *lwork, int *info);
void dorgqr_(const int *m, const int *n, const int *k, double *a, const int *lda, const double *tau,
             double *work, const int *lwork, int *info);

/* ---- sums ------------------------------------------------------------------------------------ */

/* What rank a matrix has as one product, 0: it is none. */
static int product_rank(const struct matrix *m)
{
    if (m->kind == DELTA_PRODUCT)
        return m->f[0].rank;
    if (m->kind == DELTA_KRON && m->f[1].rank &&
        m->f[0].cols <= (size_t)INT_MAX / (size_t)m->f[1].rank)
        return (int)m->f[0].cols * m->f[1].rank;
    return 0;
}

/* Column k of the up factor, row k of the down factor. */
static void product_pair(const struct matrix *m, int k, float w, float *up, size_t step,
                         float *down)
{
    const struct wide *a = &m->f[0], *b = &m->f[1];
    if (m->kind == DELTA_PRODUCT) {
        for (int i = 0; i < m->rows; i++)
            up[(size_t)i * step] = w * a->a[(size_t)i * (size_t)a->rank + (size_t)k];
        memcpy(down, a->b + (size_t)k * m->cols, m->cols * sizeof *down);
        return;
    }
    int c = k / b->rank, l = k % b->rank; /* kron(A, u v): column c of A beside column l of u */
    for (int i = 0; i < m->rows; i++) {
        float s = 0;
        const struct wide one = *a;
        int r = i / b->rows;
        for (int q = 0; q < one.rank; q++)
            s += one.a[(size_t)r * (size_t)one.rank + (size_t)q] *
                 one.b[(size_t)q * one.cols + (size_t)c];
        s = one.rank ? s : one.b[(size_t)r * one.cols + (size_t)c];
        up[(size_t)i * step] = w * s * b->a[(size_t)(i % b->rows) * (size_t)b->rank + (size_t)l];
    }
    memset(down, 0, m->cols * sizeof *down);
    memcpy(down + (size_t)c * b->cols, b->b + (size_t)l * b->cols, b->cols * sizeof *down);
}

static int product_new(struct matrix *out, int rows, size_t cols, int rank, struct err *err)
{
    size_t r = (size_t)rank;
    *out = (struct matrix){.kind = DELTA_PRODUCT, .rows = rows, .cols = cols, .scale = 1};
    out->f[0] = (struct wide){.rows = rows, .rank = rank, .cols = cols};
    out->f[0].a = calloc((size_t)rows * r + 1, sizeof(float));
    out->f[0].b = calloc(r * cols + 1, sizeof(float));
    if (out->f[0].a && out->f[0].b)
        return 0;
    matrix_release(out);
    return err_nomem(err, r * ((size_t)rows + cols) * sizeof(float));
}

int matrix_sum(struct matrix *out, int n, const struct matrix *const *m, const double *w,
               struct err *err)
{
    int64_t rank = 0;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < n; i++) {
        int r = product_rank(m[i]);
        if (r == 0)
            return err_set(err, ERR_UNSUPPORTED, "has no exact sum of low rank");
        if (m[i]->rows != m[0]->rows || m[i]->cols != m[0]->cols)
            return err_set(err, ERR_MISMATCH, "the shapes differ");
        rank += r;
    }
    if (rank > INT_MAX / 2)
        return err_set(err, ERR_UNSUPPORTED, "the ranks add up to too much");
    int rc = product_new(out, m[0]->rows, m[0]->cols, (int)rank, err);
    int at = 0;
    for (int i = 0; i < n && rc == 0; i++)
        for (int k = 0; k < product_rank(m[i]); k++, at++)
            product_pair(m[i], k, (float)(w[i] * m[i]->scale), out->f[0].a + at, (size_t)rank,
                         out->f[0].b + (size_t)at * out->cols);
    return rc;
}

/* ---- singular values ------------------------------------------------------------------------- */

static int lapack_failed(int info, struct err *err)
{
    return err_set(err, ERR_UNSUPPORTED, "the singular values were not found (LAPACK says %d)",
                   info);
}

/* a [m, n] by columns = u [m, k] diag(s) vt [k, n], k = min(m, n). a is overwritten; the three are new. */
static int svd(double *a, int m, int n, double **u, double **s, double **vt, struct err *err)
{
    int k = m < n ? m : n, lwork = -1, info = 0;
    double size = 0, *work = NULL;
    *u = *s = *vt = NULL;
    for (size_t i = 0; i < (size_t)m * (size_t)n; i++)
        if (!isfinite(a[i])) /* LAPACK would not come back */
            return err_set(err, ERR_FORMAT, "its values are too large to be multiplied");
    int *iwork = malloc(8 * (size_t)k * sizeof *iwork);
    *u = malloc((size_t)m * (size_t)k * sizeof **u);
    *s = malloc((size_t)k * sizeof **s);
    *vt = malloc((size_t)k * (size_t)n * sizeof **vt);
    int rc = iwork && *u && *s && *vt ? 0 : err_nomem(err, (size_t)m * (size_t)k * sizeof **u);
    if (rc == 0) {
        dgesdd_("S", &m, &n, a, &m, *s, *u, &m, *vt, &k, &size, &lwork, iwork, &info, 1);
        lwork = (int)size;
        work = malloc((size_t)lwork * sizeof *work);
        rc = work ? 0 : err_nomem(err, (size_t)lwork * sizeof *work);
    }
    if (rc == 0) {
        dgesdd_("S", &m, &n, a, &m, *s, *u, &m, *vt, &k, work, &lwork, iwork, &info, 1);
        rc = info ? lapack_failed(info, err) : 0;
    }
    free(work);
    free(iwork);
    return rc;
}

/* a [m, n] by columns becomes Q [m, k]; r [k, n] by columns is new. k = min(m, n). */
static int qr(double *a, int m, int n, double **r, struct err *err)
{
    int k = m < n ? m : n, lwork = -1, info = 0;
    double size[2] = {0}, *tau = malloc((size_t)k * sizeof *tau), *work = NULL;
    *r = calloc((size_t)k * (size_t)n, sizeof **r);
    int rc = tau && *r ? 0 : err_nomem(err, (size_t)k * (size_t)n * sizeof **r);
    if (rc == 0) {
        dgeqrf_(&m, &n, a, &m, tau, &size[0], &lwork, &info);
        dorgqr_(&m, &k, &k, a, &m, tau, &size[1], &lwork, &info);
        lwork = (int)(size[0] > size[1] ? size[0] : size[1]);
        work = malloc((size_t)lwork * sizeof *work);
        rc = work ? 0 : err_nomem(err, (size_t)lwork * sizeof *work);
    }
    if (rc == 0) {
        dgeqrf_(&m, &n, a, &m, tau, work, &lwork, &info);
        for (int j = 0; j < n; j++)
            for (int i = 0; i <= j && i < k; i++)
                (*r)[(size_t)j * (size_t)k + (size_t)i] = a[(size_t)j * (size_t)m + (size_t)i];
        if (info == 0)
            dorgqr_(&m, &k, &k, a, &m, tau, work, &lwork, &info);
        rc = info ? lapack_failed(info, err) : 0;
    }
    free(work);
    free(tau);
    return rc;
}

/* How many singular values remain, and what part of the squared norm. */
static int keep_count(const double *s, int n, int rank, double *kept)
{
    double all = 0, some = 0;
    int k = 0;
    while (k < n && k < rank && s[k] > s[0] * 1e-7)
        k++;
    for (int i = 0; i < n; i++) {
        all += s[i] * s[i];
        some += i < k ? s[i] * s[i] : 0;
    }
    *kept = all > 0 ? some / all : 1;
    return k > 0 ? k : 1;
}

/* Both factors' orthogonal bases, and the small matrix between them: U V = Qu (Ru Rv^T) Qv^T. */
struct core {
    double *qu, *ru, *qv, *rv,
        *mid; /* by columns: [rows, ku], [ku, r], [cols, kv], [kv, r], [ku, kv] */
    int ku, kv;
};

static void core_release(struct core *c)
{
    free(c->qu);
    free(c->ru);
    free(c->qv);
    free(c->rv);
    free(c->mid);
}

static int core_init(struct core *c, const struct matrix *m, struct err *err)
{
    const struct wide *w = &m->f[0];
    int rows = m->rows, cols = (int)m->cols, r = w->rank;
    size_t nu = (size_t)rows * (size_t)r, nv = (size_t)cols * (size_t)r;
    memset(c, 0, sizeof *c);
    c->ku = rows < r ? rows : r;
    c->kv = cols < r ? cols : r;
    c->qu = malloc(nu * sizeof(double));
    c->qv = malloc(nv * sizeof(double));
    c->mid = calloc((size_t)c->ku * (size_t)c->kv, sizeof(double));
    if (!c->qu || !c->qv || !c->mid)
        return err_nomem(err, (nu + nv) * sizeof(double));
    for (int k = 0; k < r; k++)
        for (int i = 0; i < rows; i++)
            c->qu[(size_t)k * (size_t)rows + (size_t)i] =
                w->a[(size_t)i * (size_t)r + (size_t)k] * (double)m->scale;
    for (size_t i = 0; i < nv; i++) /* rows of V are the columns of V^T */
        c->qv[i] = w->b[i];
    int rc = qr(c->qu, rows, r, &c->ru, err);
    rc = rc < 0 ? rc : qr(c->qv, cols, r, &c->rv, err);
    for (int k = 0; k < r && rc == 0; k++)
        for (int j = 0; j < c->kv; j++)
            for (int i = 0; i < c->ku; i++)
                c->mid[(size_t)j * (size_t)c->ku + (size_t)i] +=
                    c->ru[(size_t)k * (size_t)c->ku + (size_t)i] *
                    c->rv[(size_t)k * (size_t)c->kv + (size_t)j];
    return rc;
}

static int truncate_product(struct matrix *out, const struct matrix *m, int rank, double *kept,
                            double *sigma, struct err *err)
{
    struct core c;
    double *u = NULL, *s = NULL, *vt = NULL;
    int rows = m->rows, cols = (int)m->cols;
    int rc = core_init(&c, m, err), n = c.ku < c.kv ? c.ku : c.kv;
    rc = rc < 0 ? rc : svd(c.mid, c.ku, c.kv, &u, &s, &vt, err);
    int k = rc == 0 ? keep_count(s, n, rank, kept) : 0;
    rc = rc < 0 ? rc : product_new(out, rows, m->cols, k, err);
    for (int l = 0; l < k && rc == 0; l++) {
        for (int i = 0; i < rows; i++) {
            double x = 0;
            for (int j = 0; j < c.ku; j++)
                x += c.qu[(size_t)j * (size_t)rows + (size_t)i] *
                     u[(size_t)l * (size_t)c.ku + (size_t)j];
            out->f[0].a[(size_t)i * (size_t)k + (size_t)l] = (float)(x * s[l]);
        }
        for (int i = 0; i < cols; i++) {
            double x = 0;
            for (int j = 0; j < c.kv; j++)
                x += c.qv[(size_t)j * (size_t)cols + (size_t)i] *
                     vt[(size_t)j * (size_t)n + (size_t)l];
            out->f[0].b[(size_t)l * (size_t)cols + (size_t)i] = (float)x;
        }
    }
    if (rc == 0 && sigma)
        memcpy(sigma, s, (size_t)k * sizeof *s);
    core_release(&c);
    free(u);
    free(s);
    free(vt);
    return rc;
}

static int truncate_whole(struct matrix *out, const struct matrix *m, int rank, double *kept,
                          double *sigma, struct err *err)
{
    int rows = m->rows, cols = (int)m->cols, n = rows < cols ? rows : cols;
    size_t count = (size_t)rows * (size_t)cols;
    double *a = malloc(count * sizeof *a), *u = NULL, *s = NULL, *vt = NULL;
    float *row = malloc((size_t)cols * sizeof *row);
    int rc = a && row ? 0 : err_nomem(err, count * sizeof *a);

    for (int i = 0; i < rows && rc == 0; i++) {
        matrix_rows(m, i, 1, row);
        for (int j = 0; j < cols; j++)
            a[(size_t)j * (size_t)rows + (size_t)i] = row[j];
    }
    rc = rc < 0 ? rc : svd(a, rows, cols, &u, &s, &vt, err);
    int k = rc == 0 ? keep_count(s, n, rank, kept) : 0;
    rc = rc < 0 ? rc : product_new(out, rows, m->cols, k, err);
    for (int l = 0; l < k && rc == 0; l++) {
        for (int i = 0; i < rows; i++)
            out->f[0].a[(size_t)i * (size_t)k + (size_t)l] =
                (float)(u[(size_t)l * (size_t)rows + (size_t)i] * s[l]);
        for (int j = 0; j < cols; j++)
            out->f[0].b[(size_t)l * (size_t)cols + (size_t)j] =
                (float)vt[(size_t)j * (size_t)n + (size_t)l];
    }
    if (rc == 0 && sigma)
        memcpy(sigma, s, (size_t)k * sizeof *s);
    free(a);
    free(row);
    free(u);
    free(s);
    free(vt);
    return rc;
}

int matrix_truncate(struct matrix *out, const struct matrix *m, int rank, double *kept,
                    double *sigma, struct err *err)
{
    memset(out, 0, sizeof *out);
    assert(rank > 0 && m->cols <= INT_MAX);
    if (m->kind == DELTA_PRODUCT && m->f[0].rank)
        return truncate_product(out, m, rank, kept, sigma, err);
    return truncate_whole(out, m, rank, kept, sigma, err);
}
