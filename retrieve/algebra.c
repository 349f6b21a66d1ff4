#include "algebra.h"

#include <math.h>
#include <stdlib.h>

/* LAPACK and BLAS, by columns. */
void dsyev_(const char *job, const char *half, const int *n, double *a, const int *lda, double *w,
            double *work, const int *lwork, int *info, size_t job_len, size_t half_len);
void dgemm_(const char *ta, const char *tb, const int *m, const int *n, const int *k,
            const double *alpha, const double *a, const int *lda, const double *b, const int *ldb,
            const double *beta, double *c, const int *ldc, size_t ta_len, size_t tb_len);

void dsyrk_(const char *half, const char *t, const int *n, const int *k, const double *alpha,
            const double *a, const int *lda, const double *beta, double *c, const int *ldc,
            size_t half_len, size_t t_len);

void sgemm_(const char *ta, const char *tb, const int *m, const int *n, const int *k,
            const float *alpha, const float *a, const int *lda, const float *b, const int *ldb,
            const float *beta, float *c, const int *ldc, size_t ta_len, size_t tb_len);

int eigen(double *a, int n, double *value, struct err *err)
{
    int lwork = 8 * n, info = 0;
    double *work = malloc((size_t)lwork * sizeof *work);
    if (!work)
        return err_nomem(err, (size_t)lwork * sizeof *work);
    for (size_t i = 0; i < (size_t)n * (size_t)n; i++) /* LAPACK would not come back */
        info = info || !isfinite(a[i]);
    if (!info)
        dsyev_("V", "L", &n, a, &n, value, work, &lwork, &info, 1, 1);
    free(work);
    return info ? err_set(err, ERR_FORMAT, "what is known of the adapters is not finite") : 0;
}

void multiply(double *c, const double *a, const double *b, int n, int k, int m, bool across,
              double beta)
{
    const double one = 1;
    if (n && m && k)
        dgemm_("N", across ? "T" : "N", &m, &n, &k, &one, b, &m, a, across ? &n : &k, &beta, c, &m,
               1, 1);
}

void multiply_floats(float *c, const float *a, const float *b, int n, int k, int m)
{
    const float one = 1, zero = 0;
    if (n && m && k)
        sgemm_("N", "N", &m, &n, &k, &one, b, &m, a, &k, &zero, c, &m, 1, 1);
}

void add_gram(double *c, const double *a, int n, int m)
{
    const double one = 1;
    if (n && m)
        dsyrk_("U", "N", &m, &n, &one, a, &m, &one, c, &m, 1, 1);
}

double vector_dot(const float *a, const float *b, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += (double)a[i] * b[i];
    return s;
}

double vector_unit(float *v, int n)
{
    double length = sqrt(vector_dot(v, v, n));
    for (int i = 0; i < n; i++)
        v[i] = length > 0 ? (float)(v[i] / length) : 0;
    return length;
}
