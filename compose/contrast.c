#include "contrast.h"

#include <math.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

/* ---- CLoRA ----------------------------------------------------------------------------------- */

static size_t smallest(const float *m, size_t places)
{
    size_t at = 0;
    for (size_t p = 1; p < places; p++)
        at = m[p] < m[at] ? p : at;
    return at;
}

/* z [places] = (m - its least) / length. 0: all is alike. */
static double unit(double *z, const float *m, size_t places)
{
    double sum = 0, least = (double)m[smallest(m, places)];
    for (size_t p = 0; p < places; p++) {
        z[p] = (double)m[p] - least;
        sum += z[p] * z[p];
    }
    for (size_t p = 0; p < places && sum > 0; p++)
        z[p] /= sqrt(sum);
    return sqrt(sum);
}

static double dot(const double *a, const double *b, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += a[i] * b[i];
    return s;
}

/* NT-Xent of s [n, n] and, into g [n, n], its gradient. */
static double nt_xent(const double *s, const int *label, int n, double tau, double *g)
{
    double loss = 0;
    int pairs = 0;
    for (int a = 0; a < n; a++)
        for (int p = 0; p < n; p++)
            pairs += a != p && label[a] == label[p];
    for (int a = 0; a < n; a++) {
        double others = 0;
        for (int k = 0; k < n; k++)
            others += label[k] != label[a] ? exp((s[a * n + k] - 1) / tau) : 0;
        for (int p = 0; p < n; p++) {
            if (a == p || label[a] != label[p])
                continue;
            double own = exp((s[a * n + p] - 1) / tau), all = own + others;
            loss -= log(own / all) / pairs;
            g[a * n + p] -= (1 - own / all) / (tau * pairs);
            for (int k = 0; k < n; k++)
                if (label[k] != label[a])
                    g[a * n + k] += exp((s[a * n + k] - 1) / tau) / all / (tau * pairs);
        }
    }
    return loss;
}

size_t contrast_room(int n, size_t places)
{
    size_t k = (size_t)n;
    return (k + 1) * places + 2 * k * k + k;
}

double contrast_loss(const float *m, const int *label, int n, size_t places, double tau,
                     float *back, double *room)
{
    size_t nn = (size_t)n * (size_t)n, least;
    double *z = room, *s = z + (size_t)n * places, *g = s + nn, *dz = g + nn, *length = dz + places;
    memset(g, 0, nn * sizeof *g);
    for (int i = 0; i < n; i++)
        length[i] = unit(z + (size_t)i * places, m + (size_t)i * places, places);
    for (int i = 0; i < n; i++)
        for (int k = 0; k < n; k++)
            s[i * n + k] = dot(z + (size_t)i * places, z + (size_t)k * places, places);
    double loss = nt_xent(s, label, n, tau, g);
    for (int i = 0; i < n; i++) {
        const double *zi = z + (size_t)i * places;
        float *to = back + (size_t)i * places;
        double sum = 0;
        memset(dz, 0, places * sizeof *dz);
        for (int k = 0; k < n; k++)
            for (size_t p = 0; p < places; p++)
                dz[p] += (g[i * n + k] + g[k * n + i]) * z[(size_t)k * places + p];
        double along = dot(dz, zi, places);
        least = smallest(m + (size_t)i * places, places);
        for (size_t p = 0; p < places; p++) {
            double d = length[i] > 0 ? (dz[p] - along * zi[p]) / length[i] : 0;
            to[p] = (float)d;
            sum += d;
        }
        to[least] -= (float)sum;
    }
    return loss;
}

/* ---- LoRA-Composer --------------------------------------------------------------------------- */

struct box {
    int h, w, cells, k; /* k: of its cells the largest that count */
    const unsigned char *in;
    double *gauss;            /* [h*w] */
    double *s, *ds;           /* [h*w]: a smoothed map, and what comes back to it */
    double *v;                /* [h*w * h*w]: what the largest are sought of */
    unsigned char *top, *out; /* the same: which were found; where they may be */
};

static const double kernel[2][2] = {{.3319, .1221}, {.1221, .0449}};

static int mirrored(int i, int n)
{
    i = i < 0 ? -i : i;
    i = i >= n ? 2 * n - 2 - i : i;
    return n == 1 ? 0 : i;
}

/* What a cell's (i, j)-th neighbour, -1 to 1 each way, counts in 3 x 3 smoothing with mirrored edges, and where it is. */
static double neighbour(const struct box *b, int cell, int i, int j, int *at)
{
    *at = mirrored(cell / b->w + i, b->h) * b->w + mirrored(cell % b->w + j, b->w);
    return kernel[abs(i)][abs(j)];
}

/* s += m smoothed */
static void smooth(const struct box *b, const float *m)
{
    for (int c = 0; c < 9 * b->h * b->w; c++) {
        int at;
        double f = neighbour(b, c / 9, c % 3 - 1, c / 3 % 3 - 1, &at);
        b->s[c / 9] += f * (double)m[at];
    }
}

/* back += that of ds */
static void smooth_back(const struct box *b, float *back)
{
    for (int c = 0; c < 9 * b->h * b->w; c++) {
        int at;
        double f = neighbour(b, c / 9, c % 3 - 1, c / 3 % 3 - 1, &at);
        back[at] += (float)(f * b->ds[c / 9]);
    }
}

/* exp(-(u2 + v2) / 2), u and v from -1 to 1 over the region's rows and columns, its largest 1. */
static void fill_gauss(struct box *b)
{
    int top = b->h, bottom = -1, left = b->w, right = -1;
    double most = 0;
    for (int y = 0; y < b->h; y++)
        for (int x = 0; x < b->w; x++)
            if (b->in[y * b->w + x]) {
                top = y < top ? y : top;
                bottom = y > bottom ? y : bottom;
                left = x < left ? x : left;
                right = x > right ? x : right;
            }
    for (int turn = 0; turn < 2; turn++)
        for (int y = top; y <= bottom; y++)
            for (int x = left; x <= right; x++) {
                double u = bottom > top ? 2.0 * (y - top) / (bottom - top) - 1 : -1;
                double v = right > left ? 2.0 * (x - left) / (right - left) - 1 : -1;
                double g = exp(-(u * u + v * v) / 2);
                if (turn)
                    b->gauss[y * b->w + x] = g / most;
                else
                    most = fmax(most, g);
            }
}

/* The k largest of v [n] where `in` says so are marked in top; their mean. */
static double mean_of_largest(const double *v, const unsigned char *in, size_t n, int k,
                              unsigned char *top)
{
    double sum = 0;
    memset(top, 0, n);
    for (int i = 0; i < k; i++) {
        size_t best = n;
        for (size_t p = 0; p < n; p++)
            if (in[p] && !top[p] && (best == n || v[p] > v[best]))
                best = p;
        if (best == n)
            return i ? sum / i : 0;
        top[best] = 1;
        sum += v[best];
    }
    return sum / k;
}

static double enhance(struct box *b, double factor)
{
    size_t n = (size_t)(b->h * b->w);
    for (size_t p = 0; p < n; p++)
        b->v[p] = b->s[p] * b->gauss[p];
    double mean = mean_of_largest(b->v, b->in, n, b->k, b->top), loss = 8 * fmax(0, 1 - mean);
    for (size_t p = 0; p < n && loss > 0; p++)
        b->ds[p] -= b->top[p] ? factor * 8 / b->k * b->gauss[p] : 0;
    return factor * loss;
}

/* The largest of n cells from `at` on, `step` apart, is to be 1 where the region has any there. */
static double fill_line(struct box *b, int at, int step, int n, double factor)
{
    int best = -1;
    for (int i = 0; i < n; i++) {
        int p = at + i * step;
        if (b->in[p] && (best < 0 || b->s[p] > b->s[best]))
            best = p;
    }
    if (best < 0)
        return 0;
    b->ds[best] += b->s[best] < 1 ? -factor : factor;
    return factor * fabs(b->s[best] - 1);
}

static double fill(struct box *b, double factor)
{
    double loss = 0;
    for (int x = 0; x < b->w; x++)
        loss += fill_line(b, x, b->w, b->h, factor * 2 / b->w);
    for (int y = 0; y < b->h; y++)
        loss += fill_line(b, y * b->w, 1, b->w, factor * 2 / b->h);
    return loss;
}

static double apart(struct box *b, const float *self, float *back, double factor)
{
    size_t n = (size_t)(b->h * b->w);
    for (size_t i = 0; i < n * n; i++) {
        b->v[i] = (double)self[i];
        b->out[i] = b->in[i / n] && !b->in[i % n];
    }
    double loss = 10 * fmax(0, mean_of_largest(b->v, b->out, n * n, b->k, b->top));
    for (size_t i = 0; i < n * n && loss > 0; i++)
        back[i] += b->top[i] ? (float)(factor * 10 / b->k) : 0;
    return factor * loss;
}

size_t layout_room(int h, int w)
{
    size_t n = (size_t)h * (size_t)w, bytes = 2 * n * n;
    return 3 * n + n * n + (bytes + sizeof(double) - 1) / sizeof(double);
}

void layout_loss(double loss[LAYOUT_LOSSES], const double factor[LAYOUT_LOSSES], int h, int w,
                 const unsigned char *in, const float *map, int tokens, float *back,
                 const float *self, float *self_back, double *room)
{
    size_t n = (size_t)h * (size_t)w;
    struct box b = {.h = h, .w = w, .in = in, .gauss = room};
    for (size_t p = 0; p < n; p++)
        b.cells += in[p] != 0;
    if (!b.cells)
        return;
    b.k = b.cells / 5 ? b.cells / 5 : 1;
    b.s = b.gauss + n;
    b.ds = b.s + n;
    b.v = b.ds + n;
    b.top = (unsigned char *)(b.v + n * n);
    b.out = b.top + n * n;
    memset(b.gauss, 0, n * sizeof *b.gauss);
    fill_gauss(&b);
    for (int t = 0; t < tokens; t++) {
        memset(b.s, 0, 2 * n * sizeof *b.s);
        smooth(&b, map + (size_t)t * n);
        loss[LAYOUT_ENHANCE] += enhance(&b, factor[LAYOUT_ENHANCE]);
        loss[LAYOUT_FILL] += fill(&b, factor[LAYOUT_FILL]);
        smooth_back(&b, back + (size_t)t * n);
    }
    if (self)
        loss[LAYOUT_APART] += apart(&b, self, self_back, factor[LAYOUT_APART]);
}
