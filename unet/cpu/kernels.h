/* kernels.h: the CPU backend's own arithmetic: what oneDNN has not, or not in one pass.
 *
 * One source (kernels.inc) compiled for AVX-512, AVX2 and plain vectors; the device picks a table when
 * it is opened. A kernel works on one piece of one tensor on the calling thread; who calls it spreads
 * the pieces over threads. What a piece gives depends on nothing but its own input, so results are the
 * same for any number of threads and rows. All arrays are float32 and need not be aligned.
 */
#ifndef WEFT_CPU_KERNELS_H
#define WEFT_CPU_KERNELS_H

#include "../backend.h"

/* Queries a tile of attention, and keys a step. */
#define ATTENTION_QUERIES 64
#define ATTENTION_KEYS    384

struct attention_tile {
    int d;          /* channels of a head */
    int d_pad;      /* rounded up to whole vectors */
    int lk, lk_pad; /* keys; rounded up to whole panels of keys */
    const float *q; /* first query; rows q_stride apart */
    size_t q_stride;
    int n_q;   /* 1 … ATTENTION_QUERIES */
    int first; /* place of the first query, for the causal mask */
    bool causal;
    const unsigned *region; /* of all places, or NULL (backend.h) */
    const float *kp, *vp;   /* packed by pack_keys and pack_values */
    float *o;               /* rows o_stride apart */
    size_t o_stride;
    float *work; /* attention_work() floats */
};

/* One head of one row of an attention, whose gradients are wanted. Rows of all are `stride` apart. */
struct attention_back {
    int d, d_pad, lq, lk, lk_pad; /* as above */
    size_t stride;
    bool causal;
    const unsigned *region;
    const float *q, *k, *v, *dout;
    float *dx[3]; /* of q, k, v; NULL: not wanted */
    bool add[3];
    float *work; /* attention_back_work() floats */
};

/* Places that go through gates at once. */
#define GATE_PLACES 8

struct gate_tile {
    int c, n; /* channels, places: 1 … GATE_PLACES */
    float *y;
    const float *h; /* y itself, or what y becomes larger by */
    int adapters;
    const float *t; /* [n], t_stride apart */
    size_t t_stride;
    const float *up;
    const int *width;
    const float *const *u;     /* [adapters]; NULL where width is not 0 */
    const float *const *words; /* [adapters], each [n]; NULL: 0 */
    const float *gate, *wave;
    float *work; /* gate_work() floats */
};

struct kernels {
    const char *name;
    int width;     /* floats a vector */
    int key_panel; /* keys are packed in panels of so many */

    void (*activate)(float *y, const float *x, size_t n, enum act act);
    /* rows of 2c to rows of c */
    void (*geglu)(float *y, const float *x, size_t rows, size_t c);
    void (*lincomb)(float *y, size_t n, int terms, const float *coef, const float *const *x,
                    float clamp);
    void (*affine)(float *y, const float *x, size_t n, float a, float b);
    void (*layer_norm)(float *y, const float *x, size_t rows, size_t c, const float *gamma,
                       const float *beta, float eps);

    /* Mean and sum of squared differences from it of each group over `rows` rows of x + add.
     * tmp has 2c floats. */
    void (*group_stats)(const float *x, const float *add, size_t rows, int c, int groups,
                        double *mean, double *m2, float *tmp);
    /* y = act(x * scale + shift), a channel at a time. */
    void (*group_apply)(float *y, const float *x, size_t rows, size_t c, const float *scale,
                        const float *shift, enum act act);

    /* k [lk, d], rows stride apart, to panels [lk_pad / key_panel][d][key_panel]. */
    void (*pack_keys)(float *out, const float *k, size_t stride, int lk, int d);
    /* v [lk, d] to panels of at most three vectors, [panel][lk][width of the panel]. */
    void (*pack_values)(float *out, const float *v, size_t stride, int lk, int d);
    void (*attention)(const struct attention_tile *t);
    void (*attention_back)(const struct attention_back *t);
    /* Gradients (backend.h): dx becomes what comes of dy, or with `add` larger by it. */
    void (*activate_back)(float *dx, const float *x, const float *dy, size_t n, enum act act,
                          bool add);
    void (*geglu_back)(float *dx, const float *x, const float *dy, size_t rows, size_t c, bool add);
    void (*layer_norm_back)(float *dx, const float *x, const float *dy, size_t rows, size_t c,
                            const float *gamma, float eps, bool add);
    /* Sums over rows of dz and dz x, a channel at a time, z = x * scale + shift, dz = dy act'(z). */
    void (*group_back_sums)(float *sum, float *sum_x, const float *x, const float *dy, size_t rows,
                            size_t c, const float *scale, const float *shift, enum act act);
    /* dx = dz * scale + x * by_x + rest */
    void (*group_back)(float *dx, const float *x, const float *dy, size_t rows, size_t c,
                       const float *scale, const float *shift, const float *by_x, const float *rest,
                       enum act act, bool add);
    void (*gate)(const struct gate_tile *t);
    /* t [rows, c]; work: c floats, rounded up to vectors */
    void (*route)(float *t, size_t rows, size_t c, const struct route *how, float *work);
    /* A tile of Winograd's convolution (winograd.h), c a multiple of 16: places to what goes into the 16
     * products, which lie `apart` floats from each other; and what comes of these to places. */
    void (*winograd_in)(float *v, size_t apart, const float *const x[16], size_t c);
    void (*winograd_out)(float *const y[4], const float *m, size_t apart, const float *bias,
                         bool add, size_t c);
};

extern const struct kernels kernels_plain, kernels_avx2, kernels_avx512;

/* Floats of work a tile needs. */
size_t attention_work(int d_pad);
size_t attention_back_work(int d_pad, int lk, int lk_pad);
size_t gate_work(int c);

#endif
