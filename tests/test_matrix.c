/* What is said of a delta without forming it, against the same in full: norms, inner products, sums,
 * truncations. */
#include "unet/delta.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Sums in double against sums in double of float32 rows. */
#define BOUND 1e-6

static struct array floats(unsigned seed, int ndim, uint64_t a, uint64_t b, uint64_t c, uint64_t d)
{
    struct array x = {.dtype = DT_F32, .ndim = ndim, .dim = {a, b, c, d}};
    float *v = malloc(array_count(&x) * sizeof *v);
    test_fill(v, array_count(&x), seed);
    x.data = v;
    return x;
}

static void factor_free(struct factor *f)
{
    free((void *)f->full.data);
    free((void *)f->a.data);
    free((void *)f->b.data);
    free((void *)f->t.data);
}

/* Deltas of 24 x 36: of every kind of factors that a file can have. */
enum { LOW, LOWER, CORE, WHOLE, HADA, KRON, KRON_LOW, KRON_ODD, COO, KINDS };

static void make(struct delta *d, int kind)
{
    unsigned s = (unsigned)kind * 10 + 1;
    static int64_t place[2][6] = {{0, 5, 5, 23, 7, 7}, {35, 2, 3, 0, 9, 8}};
    memset(d, 0, sizeof *d);
    d->scale = 0.5f + 0.25f * (float)kind;
    struct factor *f = d->f;
    switch (kind) {
    case LOW:
    case LOWER:
        f[0].a = floats(s, 2, 24, kind == LOW ? 5 : 2, 1, 1);
        f[0].b = floats(s + 1, 4, kind == LOW ? 5 : 2, 4, 3, 3);
        break;
    case CORE:
        f[0].a = floats(s, 2, 24, 3, 1, 1);
        f[0].b = floats(s + 1, 2, 2, 4, 1, 1);
        f[0].t = floats(s + 2, 4, 3, 2, 3, 3);
        break;
    case WHOLE: f[0].full = floats(s, 2, 24, 36, 1, 1); break;
    case HADA:
        d->kind = DELTA_HADAMARD;
        f[0].a = floats(s, 2, 24, 2, 1, 1), f[0].b = floats(s + 1, 2, 2, 36, 1, 1);
        f[1].a = floats(s + 2, 2, 24, 3, 1, 1), f[1].b = floats(s + 3, 2, 3, 36, 1, 1);
        break;
    case KRON:
    case KRON_LOW:
    case KRON_ODD:
        d->kind = DELTA_KRON;
        f[0].full = floats(s, 2, kind == KRON_ODD ? 3 : 4, kind == KRON_ODD ? 9 : 6, 1, 1);
        if (kind == KRON) {
            f[1].full = floats(s + 1, 2, 6, 6, 1, 1);
        } else {
            f[1].a = floats(s + 1, 2, kind == KRON_ODD ? 8 : 6, 2, 1, 1);
            f[1].b = floats(s + 2, 2, 2, kind == KRON_ODD ? 4 : 6, 1, 1);
        }
        break;
    default:
        d->kind = DELTA_SPARSE;
        d->v = floats(s, 1, 6, 1, 1, 1);
        d->row = (struct array){.dtype = DT_I64, .ndim = 2, .dim = {2, 6}, .data = place};
    }
}

struct all {
    struct delta d[KINDS];
    struct matrix m[KINDS];
    float *whole[KINDS];
};

static void all_init(struct all *a)
{
    struct err err;
    for (int k = 0; k < KINDS; k++) {
        make(&a->d[k], k);
        cr_assert_eq(matrix_load(&a->m[k], &a->d[k], "x", &err), 0, "%d: %s", k, err.msg);
        cr_assert_eq(a->m[k].rows, 24);
        cr_assert_eq(a->m[k].cols, 36);
        a->whole[k] = malloc(24 * 36 * sizeof(float));
        matrix_rows(&a->m[k], 0, 24, a->whole[k]);
    }
}

static void all_release(struct all *a)
{
    for (int k = 0; k < KINDS; k++) {
        matrix_release(&a->m[k]);
        factor_free(&a->d[k].f[0]);
        factor_free(&a->d[k].f[1]);
        free((void *)a->d[k].v.data);
        free(a->whole[k]);
    }
}

static double inner(const float *a, const float *b)
{
    double s = 0;
    for (int i = 0; i < 24 * 36; i++)
        s += (double)a[i] * b[i];
    return s;
}

Test(matrix, inner_products_of_every_pair_of_kinds)
{
    struct all a;
    all_init(&a);
    for (int i = 0; i < KINDS; i++)
        for (int j = 0; j < KINDS; j++) {
            double want = inner(a.whole[i], a.whole[j]);
            double size = sqrt(inner(a.whole[i], a.whole[i]) * inner(a.whole[j], a.whole[j]));
            double got = matrix_inner(&a.m[i], &a.m[j]);
            cr_expect(fabs(got - want) <= BOUND * size, "kinds %d and %d: %g, not %g", i, j, got,
                      want);
        }
    for (int i = 0; i < KINDS; i++)
        cr_expect_float_eq(matrix_norm(&a.m[i]), sqrt(inner(a.whole[i], a.whole[i])),
                           BOUND * matrix_norm(&a.m[i]), "kind %d", i);
    all_release(&a);
}

Test(matrix, a_sum_is_exact)
{
    struct all a;
    struct err err;
    struct matrix sum;
    float got[24 * 36], want[24 * 36];
    all_init(&a);
    const struct matrix *m[] = {&a.m[LOW], &a.m[CORE], &a.m[KRON_LOW], &a.m[KRON_ODD]};
    const int kind[] = {LOW, CORE, KRON_LOW, KRON_ODD};
    const double w[] = {0.7, -1, 0.3, 2};
    cr_assert_eq(matrix_sum(&sum, 4, m, w, &err), 0, "%s", err.msg);
    cr_expect_eq(sum.f[0].rank, 5 + 3 + 6 * 2 + 9 * 2);
    matrix_rows(&sum, 0, 24, got);
    memset(want, 0, sizeof want);
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 24 * 36; i++)
            want[i] += (float)w[k] * a.whole[kind[k]][i];
    cr_expect_leq(test_error(got, want, 24 * 36), BOUND);
    matrix_release(&sum);
    const struct matrix *dense[] = {&a.m[LOW], &a.m[WHOLE]};
    cr_expect_eq(matrix_sum(&sum, 2, dense, w, &err), ERR_UNSUPPORTED);
    all_release(&a);
}

/* Eckart-Young: what is kept and what is lost make up the whole, and no lower-rank matrix is nearer; a rank
 * as large as the matrix's own loses nothing. */
Test(matrix, truncation_keeps_what_it_says)
{
    struct all a;
    struct err err;
    float got[24 * 36];
    all_init(&a);
    for (int k = 0; k < KINDS; k++) {
        double norm = inner(a.whole[k], a.whole[k]), before = 2, sigma[24];
        for (int rank = 1; rank <= 24; rank += rank < 6 ? 1 : 9) {
            struct matrix t;
            double kept, lost = 0;
            cr_assert_eq(matrix_truncate(&t, &a.m[k], rank, &kept, sigma, &err), 0, "%s", err.msg);
            cr_expect_leq(t.f[0].rank, rank);
            matrix_rows(&t, 0, 24, got);
            for (int i = 0; i < 24 * 36; i++)
                lost += ((double)got[i] - a.whole[k][i]) * ((double)got[i] - a.whole[k][i]);
            cr_expect_float_eq(lost / norm + kept, 1, 1e-5, "kind %d rank %d", k, rank);
            cr_expect_leq(lost / norm, before + 1e-9);
            for (int i = 1; i < t.f[0].rank; i++)
                cr_expect_leq(sigma[i], sigma[i - 1]);
            before = lost / norm;
            matrix_release(&t);
        }
        cr_expect_leq(before, 1e-9, "kind %d at full rank", k);
    }
    all_release(&a);
}

Test(matrix, refuses_what_does_not_multiply)
{
    struct delta d;
    struct matrix m;
    struct err err;
    make(&d, LOW);
    d.f[0].a.dim[1] = 4;
    d.f[0].a.dim[0] = 30;
    cr_expect_eq(matrix_load(&m, &d, "x", &err), ERR_FORMAT);
    matrix_release(&m);
    factor_free(&d.f[0]);
    make(&d, COO);
    int64_t place[12] = {0, 1, 2, 3, 4, -1, 0, 0, 0, 0, 0, 0}, twice[12] = {0};
    d.row.data = place;
    cr_expect_eq(matrix_load(&m, &d, "x", &err), ERR_FORMAT);
    cr_expect(strstr(err.msg, "outside"), "%s", err.msg);
    matrix_release(&m);
    d.row.data = twice;
    cr_expect_eq(matrix_load(&m, &d, "x", &err), ERR_FORMAT);
    cr_expect(strstr(err.msg, "twice"), "%s", err.msg);
    matrix_release(&m);
    free((void *)d.v.data);
}

/* Found by fuzzing: LAPACK loops for ever on infinities, which finite factors can make. */
Test(matrix, truncation_of_what_overflows_is_refused)
{
    struct delta d;
    struct matrix m, t;
    struct err err;
    double kept;
    make(&d, HADA);
    for (int i = 0; i < 2; i++) {
        ((float *)d.f[i].a.data)[0] = 3e38f;
        ((float *)d.f[i].b.data)[0] = 3e38f;
    }
    cr_assert_eq(matrix_load(&m, &d, "x", &err), 0);
    cr_expect_eq(matrix_truncate(&t, &m, 2, &kept, NULL, &err), ERR_FORMAT);
    cr_expect(strstr(err.msg, "too large"), "%s", err.msg);
    matrix_release(&t);
    matrix_release(&m);
    factor_free(&d.f[0]);
    factor_free(&d.f[1]);
}
