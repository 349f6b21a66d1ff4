#include "layout.h"

#include "unet/rng.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define PERPLEXITY 30.0
#define EARLY      12.0f /* how much stronger affinities are at first: clusters form */

enum { EARLY_ROUNDS = 250, ROUNDS = 750, LANES = 8, SEED = 1 };

/* One island in the making. Coordinates are apart, x then y, and padded to whole LANES. */
struct tsne {
    int n, dim, k, room; /* k: neighbours; room: n, padded */
    float *x;            /* [n, dim] */
    int *near;           /* [n, k] */
    float *p;            /* [n, k]: squared distances, then affinities */
    float *y[2], *step[2], *gain[2], *force[2];
    float *block; /* owns all floats */
};

static void tsne_release(struct tsne *t)
{
    free(t->block);
    free(t->near);
}

static int tsne_init(struct tsne *t, int n, int dim, struct err *err)
{
    int most = (int)(3 * PERPLEXITY);
    *t = (struct tsne){.n = n, .dim = dim, .k = n - 1 < most ? n - 1 : most};
    t->room = (n + LANES - 1) / LANES * LANES;
    size_t edges = (size_t)n * (size_t)t->k, all = (size_t)n * (size_t)dim, room = (size_t)t->room;
    t->block = calloc(all + edges + 8 * room + 1, sizeof *t->block);
    t->near = calloc(edges + 1, sizeof *t->near);
    if (!t->block || !t->near)
        return err_nomem(err, (all + edges + 8 * room) * sizeof *t->block);
    t->x = t->block;
    t->p = t->x + all;
    for (int i = 0; i < 2; i++) {
        t->y[i] = t->p + edges + (size_t)(4 * i) * room;
        t->step[i] = t->y[i] + room;
        t->gain[i] = t->step[i] + room;
        t->force[i] = t->gain[i] + room;
        for (int k = 0; k < t->room; k++)
            t->gain[i][k] = 1;
        for (int k = n; k < t->room; k++)
            t->y[i][k] = 1e15f; /* so far off that it pushes nobody */
    }
    return 0;
}

/* ---- where it begins ------------------------------------------------------------------------- */

static double dot(const double *a, const double *b, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

/* v becomes of unit length, without what it has of u (or NULL); zero where nothing is left. */
static void orthonormal(double *v, const double *u, int n)
{
    double c = u ? dot(u, v, n) : 0, before = dot(v, v, n), s;
    for (int i = 0; u && i < n; i++)
        v[i] -= c * u[i];
    s = dot(v, v, n);
    s = s > 1e-20 * before && s > 0 ? 1 / sqrt(s) : 0;
    for (int i = 0; i < n; i++)
        v[i] *= s;
}

/* out = C v, C being the covariance times n; along[n] = (x - mean) v. */
static void covariance(const struct tsne *t, const double *mean, const double *v, double *out,
                       float *along)
{
    memset(out, 0, (size_t)t->dim * sizeof *out);
    for (int i = 0; i < t->n; i++) {
        const float *x = t->x + (size_t)i * (size_t)t->dim;
        double s = 0;
        for (int k = 0; k < t->dim; k++)
            s += (x[k] - mean[k]) * v[k];
        for (int k = 0; k < t->dim; k++)
            out[k] += s * (x[k] - mean[k]);
        along[i] = (float)s;
    }
}

/* The first two principal components of x into y, by orthogonal iteration. */
static int principal(struct tsne *t, struct rng *r, struct err *err)
{
    enum { TURNS = 40 };
    size_t dim = (size_t)t->dim;
    double *mean = calloc(5 * dim + 1, sizeof *mean), *v[2], *next[2];
    float *start = malloc((2 * dim + 1) * sizeof *start);
    if (!mean || !start) {
        free(mean);
        free(start);
        return err_nomem(err, 5 * dim * sizeof *mean);
    }
    rng_normal(r, start, 2 * dim);
    for (int i = 0; i < t->n; i++)
        for (size_t k = 0; k < dim; k++)
            mean[k] += t->x[(size_t)i * dim + k] / (double)t->n;
    for (size_t i = 0; i < 2; i++) {
        v[i] = mean + (1 + 2 * i) * dim;
        next[i] = v[i] + dim;
        for (size_t k = 0; k < dim; k++)
            v[i][k] = start[i * dim + k];
    }
    for (int turn = 0; turn <= TURNS; turn++)
        for (int i = 0; i < 2; i++) {
            orthonormal(v[i], i ? v[0] : NULL, t->dim);
            covariance(t, mean, v[i], next[i], t->y[i]);
            if (turn < TURNS)
                memcpy(v[i], next[i], dim * sizeof **v);
        }
    free(mean);
    free(start);
    return 0;
}

/* Places from which t-SNE starts: tiny, and no two the same. */
static void shrink(struct tsne *t, struct rng *r)
{
    double s = 0;
    float noise[2];
    for (int i = 0; i < t->n; i++)
        s += (double)t->y[0][i] * t->y[0][i];
    s = sqrt(s / t->n);
    float scale = s > 1e-6 ? (float)(1e-4 / s) : 0, jitter = s > 1e-6 ? 1e-6f : 1e-4f;
    for (int i = 0; i < t->n; i++) {
        rng_normal(r, noise, 2);
        for (int k = 0; k < 2; k++)
            t->y[k][i] = t->y[k][i] * scale + noise[k] * jitter;
    }
}

/* ---- affinities ------------------------------------------------------------------------------ */

static float inner(const float *a, const float *b, int n)
{
    float s[LANES] = {0}, sum = 0;
    int i = 0;
    for (; i + LANES <= n; i += LANES) {
#pragma omp simd
        for (int k = 0; k < LANES; k++)
            s[k] += a[i + k] * b[i + k];
    }
    for (; i < n; i++)
        sum += a[i] * b[i];
    for (int k = 0; k < LANES; k++)
        sum += s[k];
    return sum;
}

/* The k nearest of i, nearest first, among equals those that come first. */
static void nearest(const struct tsne *t, int i, int *near, float *d)
{
    const float *x = t->x + (size_t)i * (size_t)t->dim;
    int have = 0;
    for (int j = 0; j < t->n; j++) {
        if (j == i)
            continue;
        float v = fmaxf(0, 2 - 2 * inner(x, t->x + (size_t)j * (size_t)t->dim, t->dim));
        if (have == t->k && v >= d[have - 1])
            continue;
        int at = have < t->k ? have++ : have - 1;
        for (; at && d[at - 1] > v; at--) {
            d[at] = d[at - 1];
            near[at] = near[at - 1];
        }
        d[at] = v;
        near[at] = j;
    }
}

/* Squared distances become exp(-beta d) / sum, beta such that the entropy is that of `perplexity` equal
 * neighbours (2008, section 2). */
static void affinities(float *d, int k, double perplexity)
{
    double low = 0, high = INFINITY, beta = 1, sum = 1, least = d[0];
    for (int turn = 0; turn < 60; turn++) {
        double h = 0;
        sum = 0;
        for (int j = 0; j < k; j++) {
            double e = exp(-beta * (d[j] - least));
            sum += e;
            h += e * beta * (d[j] - least);
        }
        h = log(fmax(sum, 1)) + h / sum - log(perplexity); /* the nearest has 1 */
        if (fabs(h) < 1e-5)
            break;
        if (h > 0)
            low = beta;
        else
            high = beta;
        beta = isinf(high) ? 2 * beta : (low + high) / 2;
    }
    for (int j = 0; j < k; j++)
        d[j] = (float)(exp(-beta * (d[j] - least)) / sum);
}

/* Families of adapters are small, so the perplexity is, too: half the root of n, 5 to PERPLEXITY. */
static void find_neighbours(struct tsne *t)
{
    double perplexity = fmin(fmin(fmax(5, sqrt(t->n) / 2), PERPLEXITY), (t->n - 1) / 3.0);
#pragma omp parallel for schedule(dynamic, 16)
    for (int i = 0; i < t->n; i++) {
        size_t at = (size_t)i * (size_t)t->k;
        nearest(t, i, t->near + at, t->p + at);
        affinities(t->p + at, t->k, perplexity);
    }
}

/* ---- the descent ----------------------------------------------------------------------------- */

/* What all others push i by, and what i has in the sum over all pairs. */
static double repel(const struct tsne *t, int i, float force[2])
{
    const float *px = t->y[0], *py = t->y[1];
    float x = px[i], y = py[i], sx[LANES] = {0}, sy[LANES] = {0}, sz[LANES] = {0};
    for (int j = 0; j < t->room; j += LANES) {
#pragma omp simd
        for (int k = 0; k < LANES; k++) {
            float dx = x - px[j + k], dy = y - py[j + k], q = 1 / (1 + dx * dx + dy * dy);
            sz[k] += q;
            sx[k] += q * q * dx;
            sy[k] += q * q * dy;
        }
    }
    double z = -1; /* less itself */
    force[0] = force[1] = 0;
    for (int k = 0; k < LANES; k++) {
        z += sz[k];
        force[0] += sx[k];
        force[1] += sy[k];
    }
    return z;
}

/* The gradient into force: 4 sum (exaggerated p_ij - q_ij) (y_i - y_j) / (1 + |y_i - y_j|^2), p being the mean
 * of both directions; so each edge pulls both of its ends. z [n] is room. */
static void gradient(struct tsne *t, float exaggeration, double *z)
{
    double all = 0;
#pragma omp parallel for schedule(static)
    for (int i = 0; i < t->n; i++) {
        float f[2];
        z[i] = repel(t, i, f);
        t->force[0][i] = f[0];
        t->force[1][i] = f[1];
    }
    for (int i = 0; i < t->n; i++) /* in order, whatever the threads */
        all += z[i];
    float part = all > 0 ? (float)(-4 / all) : 0, pull = 4 * exaggeration / (2 * (float)t->n);
    for (int c = 0; c < 2; c++)
        for (int i = 0; i < t->n; i++)
            t->force[c][i] *= part;
    for (int i = 0; i < t->n; i++)
        for (int e = 0; e < t->k; e++) {
            size_t at = (size_t)i * (size_t)t->k + (size_t)e;
            int j = t->near[at];
            float dx = t->y[0][i] - t->y[0][j], dy = t->y[1][i] - t->y[1][j],
                  w = pull * t->p[at] / (1 + dx * dx + dy * dy);
            t->force[0][i] += w * dx;
            t->force[1][i] += w * dy;
            t->force[0][j] -= w * dx;
            t->force[1][j] -= w * dy;
        }
}

/* With momentum and a gain for each number, as the paper's own program does. */
static void move(struct tsne *t, float momentum, float rate)
{
    for (int c = 0; c < 2; c++) {
        float *y = t->y[c], *step = t->step[c], *gain = t->gain[c], *force = t->force[c];
        double mean = 0;
        for (int i = 0; i < t->n; i++) {
            gain[i] = (force[i] > 0) != (step[i] > 0) ? gain[i] + .2f : gain[i] * .8f;
            gain[i] = fmaxf(gain[i], .01f);
            step[i] = momentum * step[i] - rate * gain[i] * force[i];
            y[i] += step[i];
            mean += y[i];
        }
        for (int i = 0; i < t->n; i++)
            y[i] -= (float)(mean / t->n);
    }
}

/* ---- islands --------------------------------------------------------------------------------- */

/* What is done of all islands, for progress. */
struct doing {
    int (*progress)(void *user, int done, int total);
    void *user;
    double done, total; /* pairs times rounds */
};

static int tell(const struct doing *d)
{
    return d->progress && d->progress(d->user, (int)(100 * d->done / d->total), 100);
}

static int descend(struct tsne *t, struct doing *d, struct err *err)
{
    double *z = malloc((size_t)t->n * sizeof *z);
    /* a rate that grows with n: Belkina and others, Nature Communications 10, 2019 */
    float rate = fmaxf((float)t->n / (EARLY * 4), 50);
    if (!z)
        return err_nomem(err, (size_t)t->n * sizeof *z);
    for (int k = 0; k < ROUNDS; k++) {
        bool early = k < EARLY_ROUNDS;
        d->done += (double)t->n * t->n;
        if (tell(d)) {
            free(z);
            return err_set(err, ERR_STOPPED, "stopped");
        }
        gradient(t, early ? EARLY : 1, z);
        move(t, early ? .5f : .8f, rate);
    }
    free(z);
    return 0;
}

/* Turned so that it is widest from left to right, around 0, with about one place a unit of area. */
static void level(struct tsne *t)
{
    double s[3] = {0}, m[2] = {0};
    for (int i = 0; i < t->n; i++)
        for (int c = 0; c < 2; c++)
            m[c] += t->y[c][i] / (double)t->n;
    for (int i = 0; i < t->n; i++) {
        double x = t->y[0][i] - m[0], y = t->y[1][i] - m[1];
        s[0] += x * x;
        s[1] += y * y;
        s[2] += x * y;
    }
    double turn = atan2(2 * s[2], s[0] - s[1]) / 2, c = cos(turn), d = sin(turn);
    double scale = s[0] + s[1] > 0 ? .6 * t->n / sqrt(s[0] + s[1]) : 0;
    for (int i = 0; i < t->n; i++) {
        double x = t->y[0][i] - m[0], y = t->y[1][i] - m[1];
        t->y[0][i] = (float)(scale * (c * x + d * y));
        t->y[1][i] = (float)(scale * (c * y - d * x));
    }
}

/* The island's vectors to its places. Three or fewer lie in a plane as they are. */
static int lay_out(struct tsne *t, struct doing *d, struct err *err)
{
    struct rng r;
    rng_init(&r, RNG_TORCH, SEED);
    int rc = principal(t, &r, err);
    if (rc == 0 && t->n > 3) {
        shrink(t, &r);
        find_neighbours(t);
        rc = descend(t, d, err);
    }
    if (rc == 0)
        level(t);
    return rc;
}

struct disc {
    double x, y, r;
    int island, n;
};

static int largest_first(const void *a, const void *b)
{
    const struct disc *p = a, *q = b;
    if (p->r != q->r)
        return p->r < q->r ? 1 : -1;
    return p->island - q->island;
}

static bool touches(const struct disc *all, int n, double x, double y, double r)
{
    for (int i = 0; i < n; i++)
        if (hypot(x - all[i].x, y - all[i].y) < r + all[i].r)
            return true;
    return false;
}

/* Discs side by side, the largest in the middle, wider than high. */
static void pack(struct disc *all, int n)
{
    enum { WAYS = 48 };
    qsort(all, (size_t)n, sizeof *all, largest_first);
    for (int i = 1; i < n; i++) {
        bool found = false;
        for (double away = all[0].r; !found; away += all[0].r / 20)
            for (int k = 0; k < WAYS && !found; k++) {
                double turn = (k % 2 ? k + 1 : -k) * 3.14159265358979 / WAYS;
                all[i].x = 1.4 * away * cos(turn);
                all[i].y = away * sin(turn);
                found = !touches(all, i, all[i].x, all[i].y, all[i].r);
            }
    }
}

/* Island k: its vectors, its places, and the disc they need. */
static int one_island(struct disc *disc, const float *x, int n, int dim, const int *island,
                      struct doing *d, float *place, struct err *err)
{
    struct tsne t;
    int at = 0, rc = tsne_init(&t, disc->n, dim, err);
    for (int i = 0; i < n && rc == 0; i++)
        if (!island || island[i] == disc->island)
            memcpy(t.x + (size_t)at++ * (size_t)dim, x + (size_t)i * (size_t)dim,
                   (size_t)dim * sizeof *x);
    rc = rc < 0 ? rc : lay_out(&t, d, err);
    at = 0;
    for (int i = 0; i < n && rc == 0; i++)
        if (!island || island[i] == disc->island) {
            place[2 * i] = t.y[0][at];
            place[2 * i + 1] = t.y[1][at++];
            disc->r = fmax(disc->r, hypot(place[2 * i], place[2 * i + 1]));
        }
    disc->r += 1.2; /* the gap */
    tsne_release(&t);
    return rc;
}

/* Moves places to their islands' discs and scales all to -1 … 1. */
static void settle(const struct disc *disc, int islands, int n, const int *island, float *place)
{
    float least[2] = {INFINITY, INFINITY}, most[2] = {-INFINITY, -INFINITY};
    for (int i = 0; i < n; i++)
        for (int c = 0; c < 2; c++) {
            for (int k = 0; k < islands && island; k++)
                if (disc[k].island == island[i])
                    place[2 * i + c] += (float)(c ? disc[k].y : disc[k].x);
            least[c] = fminf(least[c], place[2 * i + c]);
            most[c] = fmaxf(most[c], place[2 * i + c]);
        }
    float wide = fmaxf(most[0] - least[0], most[1] - least[1]) / 2;
    for (int i = 0; i < n; i++)
        for (int c = 0; c < 2; c++)
            place[2 * i + c] = wide > 0 ? (place[2 * i + c] - (least[c] + most[c]) / 2) / wide : 0;
}

int layout_plane(const float *x, int n, int dim, const int *island,
                 int (*progress)(void *user, int done, int total), void *user, float *place,
                 struct err *err)
{
    struct doing d = {.progress = progress, .user = user};
    int islands = n > 0;
    for (int i = 0; island && i < n; i++)
        islands = island[i] >= islands ? island[i] + 1 : islands;
    struct disc *disc = calloc((size_t)islands + 1, sizeof *disc);
    if (!disc)
        return err_nomem(err, (size_t)islands * sizeof *disc);
    for (int i = 0; i < n; i++)
        disc[island ? island[i] : 0].n++;
    for (int k = 0; k < islands; k++) {
        disc[k].island = k;
        d.total += (double)disc[k].n * disc[k].n * ROUNDS;
    }
    int rc = 0;
    for (int k = 0; k < islands && rc == 0; k++)
        if (disc[k].n)
            rc = one_island(&disc[k], x, n, dim, island, &d, place, err);
    if (rc == 0 && n) {
        pack(disc, islands);
        settle(disc, islands, n, island, place);
    }
    free(disc);
    return rc;
}
