#include "rotate.h"

#include "backend.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* ---- R from Q -------------------------------------------------------------------------------- */

/* a [n, n] becomes its inverse (Gauss-Jordan with row pivots). False: singular. */
static bool invert(double *a, double *inv, int n)
{
    memset(inv, 0, (size_t)n * (size_t)n * sizeof *inv);
    for (int i = 0; i < n; i++)
        inv[i * n + i] = 1;
    for (int c = 0; c < n; c++) {
        int p = c;
        for (int i = c + 1; i < n; i++)
            p = fabs(a[i * n + c]) > fabs(a[p * n + c]) ? i : p;
        double top = a[p * n + c];
        if (!(fabs(top) > 1e-300))
            return false;
        for (int j = 0; j < n; j++) {
            double x = a[p * n + j], y = inv[p * n + j];
            a[p * n + j] = a[c * n + j];
            inv[p * n + j] = inv[c * n + j];
            a[c * n + j] = x / top;
            inv[c * n + j] = y / top;
        }
        for (int i = 0; i < n; i++) {
            double f = a[i * n + c];
            for (int j = 0; j < n && i != c && f != 0; j++) {
                a[i * n + j] -= f * a[c * n + j];
                inv[i * n + j] -= f * inv[c * n + j];
            }
        }
    }
    return true;
}

static void multiply(double *out, const double *a, const double *b, int n)
{
    memset(out, 0, (size_t)n * (size_t)n * sizeof *out);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < n; k++)
            for (int j = 0; j < n; j++)
                out[i * n + j] += a[i * n + k] * b[k * n + j];
}

/* q [n, n] from one block of the file. */
static void skew(double *q, const float *block, int n, enum delta_skew how)
{
    int at = 0;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++)
            q[i * n + j] =
                how == SKEW_TRIANGLE || how == SKEW_NONE
                    ? 0
                    : (how == SKEW_HALF ? .5 : 1) * ((double)block[i * n + j] - block[j * n + i]);
    for (int i = 0; i < n && how == SKEW_TRIANGLE; i++)
        for (int j = i + 1; j < n; j++, at++) {
            q[i * n + j] = block[at];
            q[j * n + i] = -(double)block[at];
        }
}

/* r = I + 2q + 2q^2 + 2q^3 + q^4, as PEFT's five terms. tmp: two of [n, n]. */
static void neumann(double *r, const double *q, double *tmp, int n)
{
    size_t nn = (size_t)n * (size_t)n;
    double *power = tmp, *next = tmp + nn;
    memcpy(power, q, nn * sizeof *q);
    for (size_t i = 0; i < nn; i++)
        r[i] = (i % (size_t)(n + 1) == 0) + 2 * q[i];
    for (int k = 2; k <= 4; k++) {
        multiply(next, power, q, n);
        memcpy(power, next, nn * sizeof *q);
        for (size_t i = 0; i < nn; i++)
            r[i] += (k < 4 ? 2 : 1) * power[i];
    }
}

/* r = (I + q) (I - q)^-1; PEFT's exact form has the other sign of q. tmp: three of [n, n]. */
static bool cayley(double *r, const double *q, double *tmp, int n, double sign)
{
    size_t nn = (size_t)n * (size_t)n;
    double *plus = tmp, *minus = tmp + nn, *inverse = tmp + 2 * nn;
    for (size_t i = 0; i < nn; i++) {
        double one = i % (size_t)(n + 1) == 0;
        plus[i] = one + sign * q[i];
        minus[i] = one - sign * q[i];
    }
    if (!invert(minus, inverse, n))
        return false;
    multiply(r, plus, inverse, n);
    return true;
}

/* ---- the factors ----------------------------------------------------------------------------- */

struct shape {
    int stages, blocks, size; /* matrices a stage, and their size */
    size_t one;               /* values of a block in the file */
};

static int shape_of(struct shape *s, const struct rotation *r, int n, const char *what,
                    struct err *err)
{
    const struct array *a = &r->blocks;
    int want = r->butterfly ? 4 : r->skew == SKEW_TRIANGLE ? 2 : 3;
    *s = (struct shape){.stages = 1};
    if (a->ndim != want || !array_count(a))
        return err_set(err, ERR_FORMAT, "%s: its rotation has %d dims, not %d", what, a->ndim,
                       want);
    const uint64_t *d = a->dim + (r->butterfly ? 1 : 0);
    uint64_t size = d[1];
    s->one = (size_t)d[1];
    if (r->skew == SKEW_TRIANGLE)
        size = (uint64_t)((1 + sqrt(1 + 8 * (double)d[1])) / 2);
    else
        s->one *= (size_t)d[1];
    if (size < 1 || size > (uint64_t)n || d[0] > (uint64_t)n ||
        (d[0] * size != (uint64_t)n && !(d[0] == 1 && (uint64_t)n % size == 0)) ||
        (r->skew == SKEW_TRIANGLE ? size * (size - 1) / 2 != d[1] : d[1] != d[2]) ||
        (r->butterfly && (a->dim[0] > 16 || size % 2)))
        return err_set(err, ERR_MISMATCH,
                       "its rotation is of %llu blocks of %llu, the weight of %d",
                       (unsigned long long)d[0], (unsigned long long)size, n);
    s->stages = r->butterfly ? (int)a->dim[0] : 1;
    s->blocks = (int)d[0];
    s->size = (int)size;
    if (s->stages > 1 &&
        ((int64_t)s->size << (s->stages - 1) > n || n % (s->size << (s->stages - 1))))
        return err_set(err, ERR_MISMATCH, "its rotation has %d stages of %d, the weight is of %d",
                       s->stages, s->size, n);
    return 0;
}

/* Which row stands at each place of a stage, so that its blocks are neighbours. */
static void places(int *place, int n, int stage, int size, bool butterfly, bool peft)
{
    int r = size / 2, chunks = 2 << stage, span = r * chunks;
    for (int i = 0; i < n; i++)
        place[i] = i;
    if (stage == 0 && (peft || !butterfly))
        return;
    for (int i0 = 0; i0 < n; i0 += span) {
        if (peft) { /* chunks of r: the even ones first, then the odd, seen from the other side */
            for (int m = 0; m < chunks; m++)
                for (int t = 0; t < r; t++) {
                    int pos = m < chunks / 2 ? 2 * m : 2 * (m - chunks / 2) + 1;
                    place[i0 + pos * r + t] = i0 + m * r + t;
                }
        } else { /* rows half a span apart become neighbours */
            for (int k = 0; k < span / 2; k++)
                for (int g = 0; g < 2; g++)
                    place[i0 + 2 * k + g] = i0 + g * (span / 2) + k;
        }
    }
}

/* v_i = sum_j r[i, j] v_j over the rows idx[0 … size), for all c: element (i, c) is w[i * si + c * sc]. */
static void turn(float *w, const int *idx, const double *r, int size, size_t si, size_t sc,
                 size_t count, bool across, float *buf)
{
    for (size_t c = 0; c < count; c++) {
        for (int j = 0; j < size; j++)
            buf[j] = w[(size_t)idx[j] * si + c * sc];
        for (int i = 0; i < size; i++) {
            double s = 0;
            for (int j = 0; j < size; j++)
                s += (across ? r[j * size + i] : r[i * size + j]) * buf[j];
            w[(size_t)idx[i] * si + c * sc] = (float)s;
        }
    }
}

/* The largest Frobenius norm over all blocks is bounded, as one vector. */
static double shrink(const float *blocks, const struct shape *s, const struct rotation *r,
                     double *q)
{
    double sum = 0;
    if (!(r->bound > 0))
        return 1;
    for (int b = 0; b < s->stages * s->blocks; b++) {
        skew(q, blocks + (size_t)b * s->one, s->size, r->skew);
        for (int i = 0; i < s->size * s->size; i++)
            sum += q[i] * q[i];
    }
    sum = sqrt(sum) + 1e-8;
    return sum > r->bound ? r->bound / sum : 1;
}

static int block_matrix(double *m, const float *block, const struct shape *s,
                        const struct rotation *r, double scale, double *tmp, const char *what,
                        struct err *err)
{
    int nn = s->size * s->size;
    double *q = tmp + 3 * nn;
    if (r->skew == SKEW_NONE) {
        for (int i = 0; i < nn; i++)
            m[i] = block[i];
        return 0;
    }
    skew(q, block, s->size, r->skew);
    for (int i = 0; i < nn; i++)
        q[i] *= scale;
    if (r->neumann)
        neumann(m, q, tmp, s->size);
    else if (!cayley(m, q, tmp, s->size, r->columns ? -1 : 1))
        return err_set(err, ERR_FORMAT, "%s: its rotation cannot be inverted", what);
    return 0;
}

static int rescale_rows(float *w, int out, size_t inner, const struct array *gain, const char *what,
                        struct err *err)
{
    float *g = malloc(((size_t)out + 1) * sizeof *g);
    int rc = g ? 0 : err_nomem(err, (size_t)out * sizeof *g);
    if (rc == 0 && (array_count(gain) != (size_t)out || !array_readable(gain)))
        rc = err_set(err, ERR_MISMATCH, "it rescales %zu rows, the weight has %d",
                     array_count(gain), out);
    rc = rc < 0 ? rc : array_to_finite(gain, g, what, err);
    for (int i = 0; i < out && rc == 0; i++)
        for (size_t c = 0; c < inner; c++)
            w[(size_t)i * inner + c] *= g[i];
    free(g);
    return rc;
}

int rotate(float *w, int out, int in, int taps, const struct rotation *r, const char *what,
           struct err *err)
{
    struct shape s;
    size_t inner = (size_t)in * (size_t)taps;
    int n = r->columns ? (int)inner : out;
    int rc = shape_of(&s, r, n, what, err);
    if (rc < 0)
        return rc;
    size_t nn = (size_t)s.size * (size_t)s.size, values = array_count(&r->blocks);
    float *blocks = malloc(values * sizeof *blocks), *buf = malloc((size_t)s.size * sizeof *buf);
    double *tmp = malloc(5 * nn * sizeof *tmp), *m = tmp ? tmp + 4 * nn : NULL;
    int *place = malloc((size_t)n * sizeof *place);

    if (!blocks || !buf || !tmp || !place)
        rc = err_nomem(err, (values + 5 * nn) * sizeof *tmp);
    if (rc == 0 && !array_readable(&r->blocks))
        rc = err_set(err, ERR_UNSUPPORTED, "%s: type %s is not computed with", what,
                     dtype_name(r->blocks.dtype));
    rc = rc < 0 ? rc : array_to_finite(&r->blocks, blocks, what, err);
    double scale = rc == 0 ? shrink(blocks, &s, r, tmp) : 1;
    for (int i = 0; i < s.stages && rc == 0; i++) {
        places(place, n, i, s.size, r->butterfly, r->columns);
        for (int b = 0; b < n / s.size && rc == 0; b++) {
            int which = s.blocks == 1 ? 0 : b; /* one block may serve all */
            if (b == 0 || s.blocks > 1)
                rc = block_matrix(m, blocks + (size_t)(i * s.blocks + which) * s.one, &s, r, scale,
                                  tmp, what, err);
            if (rc == 0)
                turn(w, place + b * s.size, m, s.size, r->columns ? 1 : inner,
                     r->columns ? inner : 1, r->columns ? (size_t)out : inner, r->across, buf);
        }
    }
    if (rc == 0 && r->gain.data)
        rc = rescale_rows(w, out, inner, &r->gain, what, err);
    free(blocks);
    free(buf);
    free(tmp);
    free(place);
    return rc;
}
