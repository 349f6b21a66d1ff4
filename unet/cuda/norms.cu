/* Group and layer norms, and the ways back. A group norm is two launches: what the blocks find of their parts (groups.cuh),
 * and what is made of all parts; where a row is but one piece one launch does both. */
#include "groups.cuh"

#include <assert.h>

enum {
    PIECE = 256,    /* threads of a block */
    WHOLE = 384,    /* the same, where a block has whole groups */
    PARTS_MOST = 64 /* each block merges so many by itself */
};

/* ---- there ----------------------------------------------------------------------------------- */

/* Of the activations only those that norms of pictures have are worth code for each pack that is held. */
template <class T, int N>
static __device__ __forceinline__ void apply(const group_args &a, const held<T, N> &h,
                                             const float (&more)[N], const float *mean,
                                             const float *rstd, const spot &s)
{
    float v[N], off[N], scale[N], beta[N];
    size_t at = first_at(a.k, s), next = (size_t)a.k.lanes * a.k.c;
    if (h.n == 0)
        return;
    of_groups(off, mean, a.k, s);
    of_groups(scale, rstd, a.k, s);
    pack_load(v, a.gamma + s.channel + s.column);
    pack_load(beta, a.beta + s.channel + s.column);
    for (int i = 0; i < N; i++) {
        off[i] = more[i] - off[i];
        scale[i] *= v[i];
    }
    if (a.act == ACT_NONE || a.act == ACT_SILU) {
        for (int p = 0; p < HELD; p++)
            if (p < h.n) {
                pack_floats(v, h.v[p]);
                for (int i = 0; i < N; i++)
                    v[i] = (v[i] + off[i]) * scale[i] + beta[i];
                if (a.act == ACT_SILU)
                    for (int i = 0; i < N; i++)
                        v[i] = element_act(v[i], ACT_SILU);
                pack_store((T *)a.y + at + p * next, v);
            }
        return;
    }
    for (int p = 0; p < h.n; p++) {
        pack_load(v, (const T *)a.x + at + p * next);
        for (int i = 0; i < N; i++)
            v[i] = element_act((v[i] + off[i]) * scale[i] + beta[i], a.act);
        pack_store((T *)a.y + at + p * next, v);
    }
}

/* One piece a row: all at once. */
template <class T, int N>
static __global__ void __launch_bounds__(WHOLE, 1) group_norm_whole(const group_args a)
{
    DYNAMIC_SHARED(float, room);
    float *mean = room + a.k.lanes * a.k.width, *m2 = mean + a.k.slab, more[N];
    const spot s = spot_of<N>(a.k);
    float all = (float)a.k.hw * (float)a.k.cg;
    held<T, N> h;
    hold(h, (const T *)a.x, a.k, s);
    added<T>(more, a.add, a.k, s);
    group_stats(mean, m2, room, h, more, a.k, s);
    for (int g = (int)threadIdx.x; g < s.groups; g += (int)blockDim.x)
        m2[g] = 1 / sqrtf(m2[g] / all + a.eps);
    __syncthreads();
    apply(a, h, more, mean, m2, s);
}

template <class T, int N>
static __global__ void __launch_bounds__(PIECE, 2) group_norm_stats(const group_args a)
{
    DYNAMIC_SHARED(float, room);
    float *mean = room + a.k.lanes * a.k.width, *m2 = mean + a.k.slab, more[N];
    const spot s = spot_of<N>(a.k);
    held<T, N> h;
    hold(h, (const T *)a.x, a.k, s);
    added<T>(more, a.add, a.k, s);
    group_stats(mean, m2, room, h, more, a.k, s);
    note_part(a.stats, mean, m2, a.k, s);
}

template <class T, int N>
static __global__ void __launch_bounds__(PIECE, 2) group_norm_apply(const group_args a)
{
    DYNAMIC_SHARED(float, mean);
    float *rstd = mean + a.k.slab, more[N];
    const spot s = spot_of<N>(a.k);
    held<T, N> h;
    hold(h, (const T *)a.x, a.k, s);
    added<T>(more, a.add, a.k, s);
    block_stats(mean, rstd, a, s);
    __syncthreads();
    apply(a, h, more, mean, rstd, s);
}

/* ---- and back -------------------------------------------------------------------------------- */

/* What the thread's channels need: n = (x + off) rstd, d = dy slope(n gamma + beta) gamma. */
template <int N> struct channels {
    float off[N], rstd[N], gamma[N], beta[N];
};

template <class T, int N>
static __device__ __forceinline__ void channels_of(channels<N> &ch, const group_args &a,
                                                   const float *mean, const float *rstd,
                                                   const spot &s)
{
    float m[N];
    added<T>(ch.off, a.add, a.k, s);
    of_groups(m, mean, a.k, s);
    of_groups(ch.rstd, rstd, a.k, s);
    for (int i = 0; i < N; i++)
        ch.off[i] -= m[i];
    if (s.on) {
        pack_load(ch.gamma, a.gamma + s.channel + s.column);
        pack_load(ch.beta, a.beta + s.channel + s.column);
    }
}

/* d and n of a pack. */
template <class T, int N>
static __device__ __forceinline__ void comes_back(float (&d)[N], float (&n)[N], const group_args &a,
                                                  const channels<N> &ch, size_t at)
{
    float v[N];
    pack_load(n, (const T *)a.x + at);
    pack_load(d, (const T *)a.dy + at);
    for (int i = 0; i < N; i++) {
        n[i] = (n[i] + ch.off[i]) * ch.rstd[i];
        v[i] = n[i] * ch.gamma[i] + ch.beta[i];
        d[i] *= ch.gamma[i];
    }
    pack_slope(d, v, a.act);
}

template <class T, int N>
static __global__ void __launch_bounds__(PIECE, 2) group_norm_back_sums(const group_args a)
{
    DYNAMIC_SHARED(float, room);
    float *mean = room + a.k.lanes * a.k.width, *rstd = mean + a.k.slab;
    float d[N], n[N], sum[N] = {}, sum_n[N] = {};
    const spot s = spot_of<N>(a.k);
    channels<N> ch;
    block_stats(mean, rstd, a, s);
    __syncthreads();
    channels_of<T>(ch, a, mean, rstd, s);
    __syncthreads();
    for (int i = 0, places = places_of(a.k, s); i < places; i++) {
        comes_back<T>(d, n, a, ch, first_at(a.k, s) + (size_t)i * a.k.lanes * a.k.c);
        for (int j = 0; j < N; j++) {
            sum[j] += d[j];
            sum_n[j] += d[j] * n[j];
        }
    }
    group_sums(mean, room, sum, a.k, s);
    group_sums(rstd, room, sum_n, a.k, s);
    note_part(a.sums, mean, rstd, a.k, s);
}

template <class T, int N>
static __global__ void __launch_bounds__(PIECE, 2) group_norm_back_apply(const group_args a)
{
    DYNAMIC_SHARED(float, mean);
    float *rstd = mean + a.k.slab, *sum = rstd + a.k.slab, *sum_n = sum + a.k.slab;
    float d[N], n[N], g[N], gn[N];
    const spot s = spot_of<N>(a.k);
    channels<N> ch;
    block_stats(mean, rstd, a, s);
    block_sums(sum, sum_n, a, s);
    __syncthreads();
    channels_of<T>(ch, a, mean, rstd, s);
    of_groups(g, sum, a.k, s);
    of_groups(gn, sum_n, a.k, s);
    for (int i = 0, places = places_of(a.k, s); i < places; i++) {
        size_t at = first_at(a.k, s) + (size_t)i * a.k.lanes * a.k.c;
        comes_back<T>(d, n, a, ch, at);
        for (int j = 0; j < N; j++)
            d[j] = ch.rstd[j] * (d[j] - g[j] - n[j] * gn[j]);
        pack_put((T *)a.y + at, d, a.add_to);
    }
}

/* ---- launches -------------------------------------------------------------------------------- */

template <class T, int N> static int group_norm_as(struct cuda *c, const group_args &a)
{
    const cut &k = a.k;
    unsigned grid = (unsigned)a.rows * (unsigned)(k.units * k.pieces);
    unsigned block = div_up((size_t)(k.lanes * (k.width / N)), 32) * 32;
    unsigned merges = div_up((size_t)a.rows * (size_t)k.groups, WARPS);
    size_t few = 4 * (size_t)k.slab * sizeof(float);
    size_t shared = (size_t)(k.lanes * k.width) * sizeof(float) + few;
    if (!a.stats)
        return launch(c, group_norm_whole<T, N>, grid, block, shared, a);
    int rc = launch(c, group_norm_stats<T, N>, grid, block, shared, a);
    if (rc == 0 && a.all_stats)
        rc = launch(c, merge, merges, 32 * WARPS, 0, a, 0);
    if (rc == 0 && !a.dy)
        return launch(c, group_norm_apply<T, N>, grid, block, few, a);
    if (rc == 0)
        rc = launch(c, group_norm_back_sums<T, N>, grid, block, shared, a);
    if (rc == 0 && a.all_stats)
        rc = launch(c, merge, merges, 32 * WARPS, 0, a, 1);
    return rc < 0 ? rc : launch(c, group_norm_back_apply<T, N>, grid, block, few, a);
}

static int go_group_norm(struct cuda *c, const void *args, const void *)
{
    const group_args &a = *(const group_args *)args;
#define GROUP_NORM_AS(T) (a.packed ? group_norm_as<T, pack_of<T>>(c, a) : group_norm_as<T, 1>(c, a))
    return BY_TYPE(a.type, GROUP_NORM_AS);
#undef GROUP_NORM_AS
}

/* Takes room in the scratch; false: there is none. */
static bool take_room(struct device *dev, group_args *a, struct err *err)
{
    size_t whole = 2 * (size_t)a->rows * (size_t)a->k.groups, parts = whole * (size_t)a->k.parts;
    bool many = a->k.parts > PARTS_MOST;
    size_t sets = a->dy ? 2 : 1, bytes = sets * (parts + (many ? whole : 0)) * sizeof(float);
    a->stats = (float *)cuda_scratch(dev, bytes);
    if (!a->stats) {
        cuda_short(dev, bytes, err);
        return false;
    }
    a->sums = a->stats + (sets - 1) * parts;
    a->all_stats = many ? a->stats + sets * parts : NULL;
    a->all_sums = many ? a->all_stats + (sets - 1) * whole : NULL;
    return true;
}

/* dy NULL: the norm itself. */
static int group_norm(struct device *dev, struct tensor *y, const struct norm *g,
                      const struct tensor *x, const struct tensor *add, enum act act,
                      const struct tensor *dy, bool add_to, struct err *err)
{
    group_args a = zeroed<group_args>();
    int type = cuda_of(dev)->type, n = type == DT_F32 ? 4 : 8;
    assert(!x->wide && !y->wide && x->c % g->groups == 0);
    a.y = y->data;
    a.x = x->data;
    a.add = add ? add->data : NULL;
    a.dy = dy ? dy->data : NULL;
    a.gamma = g->gamma;
    a.beta = g->beta;
    a.rows = x->n;
    a.type = type;
    a.act = act;
    a.add_to = add_to;
    a.eps = g->eps;
    a.packed = x->c % n == 0 && in_packs(a.y) && in_packs(a.x) && in_packs(a.add) &&
               in_packs(a.dy) && in_packs(a.gamma) && in_packs(a.beta);
    if (a.packed) {
        a.k = cut_for(x, g->groups, n, PIECE);
        a.packed = a.k.tiles == 1 || a.k.slab == 1;
    }
    n = a.packed ? n : 1;
    a.k = cut_for(x, g->groups, n, WHOLE);
    if (a.k.parts > 1 || dy) {
        a.k = cut_for(x, g->groups, n, PIECE);
        if (!take_room(dev, &a, err))
            return err ? err->code : ERR_NOMEM;
    }
    return cuda_push(dev, go_group_norm, &a, sizeof a, NULL, 0, err);
}

extern "C" int cuda_group_norm(struct device *dev, struct tensor *y, const struct norm *g,
                               const struct tensor *x, const struct tensor *add, enum act act,
                               struct err *err)
{
    return group_norm(dev, y, g, x, add, act, NULL, false, err);
}

extern "C" int cuda_group_norm_back(struct device *dev, struct tensor *dx, const struct norm *g,
                                    const struct tensor *x, const struct tensor *more, enum act act,
                                    const struct tensor *dy, bool add, struct err *err)
{
    return group_norm(dev, dx, g, x, more, act, dy, add, err);
}

/* ---- layer norms ----------------------------------------------------------------------------- */

struct layer_args {
    void *y; /* or dx */
    const void *x, *dy;
    const float *gamma, *beta;
    size_t rows;
    int c, type, packed, add;
    float eps;
    int pad;
};

/* A warp a row. Where K is not 0 a lane holds K packs, which are all; else the row is read once more at each step. */
template <class T, int N, int K>
static __global__ void __launch_bounds__(32 * WARPS) layer_norm_rows(const layer_args a)
{
    size_t row = blockIdx.x * (size_t)WARPS + threadIdx.x / 32;
    int first = (int)threadIdx.x % 32 * N, turns = K ? K : (a.c + 32 * N - 1) / (32 * N);
    if (row >= a.rows)
        return;
    const T *x = (const T *)a.x + row * a.c;
    pack<T, N> held[K ? K : 1];
    float v[N], gamma[N], beta[N], sum = 0, squares = 0;
    for (int k = 0; k < K; k++)
        if (first + k * 32 * N < a.c)
            held[k] = *(const pack<T, N> *)(x + first + k * 32 * N);
    auto values = [&](int k) {
        if (K)
            pack_floats(v, held[K ? k : 0]);
        else
            pack_load(v, x + first + k * 32 * N);
    };
    for (int k = 0; k < turns; k++)
        if (first + k * 32 * N < a.c) {
            values(k);
            for (int i = 0; i < N; i++)
                sum += v[i];
        }
    float mean = warp_sum(sum) / (float)a.c;
    for (int k = 0; k < turns; k++)
        if (first + k * 32 * N < a.c) {
            values(k);
            for (int i = 0; i < N; i++)
                squares += (v[i] - mean) * (v[i] - mean);
        }
    float rstd = 1 / sqrtf(warp_sum(squares) / (float)a.c + a.eps);
    for (int k = 0; k < turns; k++) {
        int at = first + k * 32 * N;
        if (at < a.c) {
            values(k);
            pack_load(gamma, a.gamma + at);
            pack_load(beta, a.beta + at);
            for (int i = 0; i < N; i++)
                v[i] = (v[i] - mean) * rstd * gamma[i] + beta[i];
            pack_store((T *)a.y + row * a.c + at, v);
        }
    }
}

/* dx = rstd (d - mean d - n mean(d n)), n the normed x, d = gamma dy. */
template <class T, int N>
static __global__ void __launch_bounds__(32 * WARPS) layer_norm_back_rows(const layer_args a)
{
    size_t row = blockIdx.x * (size_t)WARPS + threadIdx.x / 32;
    int first = (int)threadIdx.x % 32 * N;
    if (row >= a.rows)
        return;
    const T *x = (const T *)a.x + row * a.c, *dy = (const T *)a.dy + row * a.c;
    float v[N], d[N], gamma[N], sum = 0, squares = 0, sum_d = 0, sum_dv = 0;
    for (int at = first; at < a.c; at += 32 * N) {
        pack_load(v, x + at);
        for (int i = 0; i < N; i++)
            sum += v[i];
    }
    float mean = warp_sum(sum) / (float)a.c;
    for (int at = first; at < a.c; at += 32 * N) {
        pack_load(v, x + at);
        pack_load(d, dy + at);
        pack_load(gamma, a.gamma + at);
        for (int i = 0; i < N; i++) {
            squares += (v[i] - mean) * (v[i] - mean);
            sum_d += d[i] * gamma[i];
            sum_dv += d[i] * gamma[i] * (v[i] - mean);
        }
    }
    float rstd = 1 / sqrtf(warp_sum(squares) / (float)a.c + a.eps);
    float mean_d = warp_sum(sum_d) / (float)a.c, mean_dn = warp_sum(sum_dv) / (float)a.c * rstd;
    for (int at = first; at < a.c; at += 32 * N) {
        pack_load(v, x + at);
        pack_load(d, dy + at);
        pack_load(gamma, a.gamma + at);
        for (int i = 0; i < N; i++)
            d[i] = rstd * (d[i] * gamma[i] - mean_d - (v[i] - mean) * rstd * mean_dn);
        pack_put((T *)a.y + row * a.c + at, d, a.add);
    }
}

template <class T> static int layer_norm_as(struct cuda *c, const layer_args &a)
{
    constexpr int N = pack_of<T>;
    unsigned grid = div_up(a.rows, WARPS), block = 32 * WARPS;
    if (a.dy)
        return a.packed ? launch(c, layer_norm_back_rows<T, N>, grid, block, 0, a)
                        : launch(c, layer_norm_back_rows<T, 1>, grid, block, 0, a);
    if (!a.packed)
        return launch(c, layer_norm_rows<T, 1, 0>, grid, block, 0, a);
    if (a.c <= 5 * 32 * N)
        return launch(c, layer_norm_rows<T, N, 5>, grid, block, 0, a);
    return a.c <= 10 * 32 * N ? launch(c, layer_norm_rows<T, N, 10>, grid, block, 0, a)
                              : launch(c, layer_norm_rows<T, N, 0>, grid, block, 0, a);
}

static int go_layer_norm(struct cuda *c, const void *args, const void *)
{
    const layer_args &a = *(const layer_args *)args;
#define LAYER_NORM_AS(T) layer_norm_as<T>(c, a)
    return BY_TYPE(a.type, LAYER_NORM_AS);
#undef LAYER_NORM_AS
}

static int layer_norm(struct device *dev, struct tensor *y, const struct norm *g,
                      const struct tensor *x, const struct tensor *dy, bool add, struct err *err)
{
    layer_args a = zeroed<layer_args>();
    assert(!x->wide && !y->wide && !(dy && dy->wide));
    a.y = y->data;
    a.x = x->data;
    a.dy = dy ? dy->data : NULL;
    a.gamma = g->gamma;
    a.beta = g->beta;
    a.rows = tensor_count(x) / (size_t)x->c;
    a.c = x->c;
    a.type = cuda_of(dev)->type;
    a.packed = a.c % (a.type == DT_F32 ? 4 : 8) == 0 && in_packs(a.y) && in_packs(a.x) &&
               in_packs(a.dy) && in_packs(a.gamma) && in_packs(a.beta);
    a.add = add;
    a.eps = g->eps;
    return cuda_push(dev, go_layer_norm, &a, sizeof a, NULL, 0, err);
}

extern "C" int cuda_layer_norm(struct device *dev, struct tensor *y, const struct norm *g,
                               const struct tensor *x, struct err *err)
{
    return layer_norm(dev, y, g, x, NULL, false, err);
}

extern "C" int cuda_layer_norm_back(struct device *dev, struct tensor *dx, const struct norm *g,
                                    const struct tensor *x, const struct tensor *dy, bool add,
                                    struct err *err)
{
    return layer_norm(dev, dx, g, x, dy, add, err);
}
