/* Winograd's convolution: tiles in and out, and the weight. The products between are onednn.c's. */
#include "winograd.h"

#include <omp.h>
#include <string.h>

/* Weights grow to 16/9: layers whose weights stay small are those whose activations are large. */
#define MOST_WEIGHTS 131072

/* Channels, in and out, of a block's tiles together: 64 bytes each, which stay in the second level cache. */
#define MOST_CHANNELS 12288

/* The largest block of which every row has four to share out among threads. Blocks of 8 were measured
 * to have 92 to 100 % of the speed of those of 32. */
static int block_for(int tiles, int channels)
{
    int block = 32;
    while (block > 8 && (block * 4 > tiles || block * channels > MOST_CHANNELS))
        block /= 2;
    return block;
}

int winograd_block(const struct layer *l, const struct tensor *x)
{
    int tiles = x->h / 2 * (x->w / 2);
    bool fits = l->kh == 3 && l->kw == 3 && l->stride == 1;
    for (int i = 0; i < 4; i++)
        fits = fits && l->pad[i] == 1;
    fits = fits && x->h % 2 == 0 && x->w % 2 == 0 && x->h >= 4 && x->w >= 4 && tiles >= 16;
    fits = fits && l->in % 16 == 0 && l->out % 16 == 0 && l->in >= 32 && l->out >= 32;
    if (!fits || (size_t)l->in * (size_t)l->out > MOST_WEIGHTS)
        return 0;
    return block_for(tiles, l->in + l->out);
}

/* One row of G times three taps. */
static void spread_taps(double out[4], double a, double b, double c)
{
    out[0] = a;
    out[1] = (a + b + c) / 2;
    out[2] = (a - b + c) / 2;
    out[3] = c;
}

void winograd_weight(float *u, const float *w, int in, int out)
{
    size_t apart = (size_t)in * (size_t)out;
    for (size_t o = 0; o < (size_t)out; o++)
        for (size_t i = 0; i < (size_t)in; i++, w += 9) {
            double t[3][4], v[4];
            for (int k = 0; k < 3; k++)
                spread_taps(t[k], w[k], w[3 + k], w[6 + k]);
            for (size_t r = 0; r < 4; r++) {
                spread_taps(v, t[0][r], t[1][r], t[2][r]);
                for (size_t k = 0; k < 4; k++)
                    u[(r * 4 + k) * apart + i * (size_t)out + o] = (float)v[k];
            }
        }
}

/* Floats of a block at c channels, and of a thread. */
static size_t block_floats(const struct winograd *g, int c)
{
    return (size_t)WINOGRAD_POINTS * (size_t)g->block * (size_t)c;
}

static size_t thread_bytes(const struct winograd *g)
{
    size_t floats = block_floats(g, g->in) + block_floats(g, g->out) + (size_t)g->in;
    return (floats * sizeof(float) + g->room + 63) / 64 * 64;
}

size_t winograd_scratch(const struct device *dev, const struct winograd *g)
{
    return (size_t)dev->threads * thread_bytes(g);
}

/* What all threads share. */
struct job {
    const struct kernels *k;
    const struct winograd *g;
    struct tensor *y;
    const struct tensor *x;
    const float *bias;
    bool accumulate;
    size_t across, each, tiles; /* tiles of a line, of a row, of all */
};

/* The tile's 4 x 4 places, of which the outermost may lie outside x and are zeros. */
static void places_in(const struct job *j, size_t tile, const float *zeros, const float *at[16])
{
    const struct tensor *x = j->x;
    int top = 2 * (int)(tile % j->each / j->across) - 1, left = 2 * (int)(tile % j->across) - 1;
    const float *row =
        (const float *)x->data + tile / j->each * (size_t)x->h * (size_t)x->w * (size_t)x->c;
    for (int i = 0; i < 4; i++)
        for (int k = 0; k < 4; k++) {
            int h = top + i, w = left + k;
            bool inside = h >= 0 && h < x->h && w >= 0 && w < x->w;
            at[i * 4 + k] =
                inside ? row + ((size_t)h * (size_t)x->w + (size_t)w) * (size_t)x->c : zeros;
        }
}

static void places_out(const struct job *j, size_t tile, float *at[4])
{
    size_t w = (size_t)j->y->w, c = (size_t)j->y->c;
    size_t line = tile / j->across, left = 2 * (tile % j->across);
    at[0] = (float *)j->y->data + (2 * line * w + left) * c;
    at[1] = at[0] + c;
    at[2] = at[0] + w * c;
    at[3] = at[2] + c;
}

/* The tiles from `first` on, in a thread's own room. Beyond the last tile are zeros, so that the product
 * is always the same one. */
static int run_block(const struct job *j, size_t first, int thread, float *mine)
{
    const struct winograd *g = j->g;
    size_t block = (size_t)g->block, in = (size_t)g->in, out = (size_t)g->out;
    size_t here = j->tiles - first < block ? j->tiles - first : block;
    float *v = mine, *m = v + block_floats(g, g->in), *zeros = m + block_floats(g, g->out);

    memset(zeros, 0, in * sizeof *zeros);
    for (size_t t = 0; t < here; t++) {
        const float *at[16];
        places_in(j, first + t, zeros, at);
        j->k->winograd_in(v + t * in, block * in, at, in);
    }
    for (size_t p = 0; p < WINOGRAD_POINTS && here < block; p++)
        memset(v + (p * block + here) * in, 0, (block - here) * in * sizeof *v);
    int rc = g->product(g->user, thread, v, m, zeros + in);
    for (size_t t = 0; t < here && rc == 0; t++) {
        float *at[4];
        places_out(j, first + t, at);
        j->k->winograd_out(at, m + t * out, block * out, j->bias, j->accumulate, out);
    }
    return rc;
}

int winograd_run(struct device *dev, const struct winograd *g, struct tensor *y,
                 const struct tensor *x, const float *bias, bool accumulate, void *scratch)
{
    struct job j = {kernels_of(dev), g, y, x, bias, accumulate, 0, 0, 0};
    size_t block = (size_t)g->block, bytes = thread_bytes(g);
    int rc = 0;

    j.across = (size_t)x->w / 2;
    j.each = (size_t)x->h / 2 * j.across;
    j.tiles = (size_t)x->n * j.each;
    if (j.tiles <= block)
        return run_block(&j, 0, 0, scratch);
#pragma omp parallel for schedule(static) num_threads(dev->threads) reduction(min : rc)
    for (size_t i = 0; i < j.tiles; i += block) {
        int thread = omp_get_thread_num();
        int bad = run_block(&j, i, thread, (void *)((char *)scratch + (size_t)thread * bytes));
        rc = bad < rc ? bad : rc;
    }
    return rc;
}
