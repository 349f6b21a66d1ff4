/* Attention (backend.h), as FlashAttention-2 has it (Dao 2023): a block keeps its queries, and goes over the keys and values a
 * tile at a time, with the largest score and the sum of the weights so far.
 *
 *   flash   16-bit values, heads of up to 160 channels: queries in registers
 *   wide    16-bit values, up to 512 (the VAE's): queries in shared memory, keys and values 64 channels at a time
 *   plain   float32, what is wider, and heads that are not whole packs of 8 values
 *
 * Sums are float32; the products of 16-bit values take the weights rounded to that type. How wide a tile of queries is does
 * not change a query's result.
 */
#include "attention.cuh"

extern "C" {
#include "fused.h"
}

#include <assert.h>

struct attention_args {
    void *o;
    const void *q, *k, *v;
    attention_heads h;
};

/* Keys that some of `queries` queries from `first` on see. */
static __device__ __forceinline__ int keys_of(const attention_heads &h, int first, int queries)
{
    return h.causal ? min(h.lk, first + queries) : h.lk;
}

/* ---- flash ----------------------------------------------------------------------------------- */

/* 4 warps of 16 M queries each; D channels, a multiple of 8. Two stages, each of tiles of keys and of values. */
template <int D, int M> struct flash_sizes {
    enum {
        THREADS = 128,
        BLOCKS = M == 1 && D != 80 && D != 160 ? 3 : 2, /* a multiprocessor, by their registers */
        QUERIES = 64 * M,
        STEPS = (D + 15) / 16, /* of 16 channels, with zeros */
        KEYS = D <= 80 ? 64 : 32,
        STRIDE = 16 * STEPS + 8,
        TILE = KEYS * STRIDE,
        ROOM = 4 * TILE
    };
    typedef padded<STRIDE> layout;
};

/* Scores of a row's two halves become weights; top and sum are of this lane's columns until the end. What was summed up
 * before has to be multiplied by `shrink`. */
template <int N>
__device__ __forceinline__ void to_weights(float (&s)[N][4], float (&top)[2], float (&sum)[2],
                                           float (&shrink)[2], float scale2)
{
    UNROLL
    for (int half = 0; half < 2; half++) {
        float most = -INFINITY, part = 0;
        UNROLL
        for (int j = 0; j < N; j++)
            most = fmaxf(most, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        most = fmaxf(top[half], quad_max(most) * scale2);
        float base = base_of(most);
        shrink[half] = exp2f(top[half] - base);
        UNROLL
        for (int i = 0; i < 2 * N; i++) {
            float &w = s[i / 2][2 * half + i % 2];
            w = exp2f(fmaf(w, scale2, -base));
            part += w;
        }
        sum[half] = fmaf(sum[half], shrink[half], part);
        top[half] = most;
    }
}

/* One tile of keys and values for a warp's 16 M queries, of which `row` is this lane's first. */
template <class T, int D, int M>
__device__ __forceinline__ void
flash_tile(float (&o)[M][D / 8][4], float (&top)[M][2], float (&sum)[M][2],
           const unsigned (&q)[flash_sizes<D, M>::STEPS][M][4], const T *keys, const T *values,
           int row, int first, bool hidden, const sight &w, float scale2)
{
    typedef flash_sizes<D, M> z;
    float s[M][z::KEYS / 8][4] = {};
    UNROLL
    for (int step = 0; step < z::STEPS; step++)
        add_turned<T, typename z::layout>(s, q[step], keys, 0, 2 * step);
    unsigned weight[M][z::KEYS / 16][4];
    UNROLL
    for (int m = 0; m < M; m++) {
        float shrink[2];
        if (hidden)
            hide<false>(s[m], w, row + 16 * m, first + threadIdx.x % 4 * 2);
        to_weights(s[m], top[m], sum[m], shrink, scale2);
        UNROLL
        for (int i = 0; i < D / 8 * 4; i++)
            o[m][i / 4][i % 4] *= shrink[i % 4 / 2];
        to_a<T>(weight[m], s[m]);
    }
    add_product<T, typename z::layout>(o, weight, values, 0);
}

template <class T, int D, int M>
__device__ __forceinline__ void flash_store(const attention_args &a, const float (&o)[M][D / 8][4],
                                            const float (&sum)[M][2], int row)
{
    const attention_heads &h = a.h;
    UNROLL
    for (int i = 0; i < 2 * M; i++) {
        float one = 1 / quad_sum(sum[i / 2][i % 2]);
        int at = row + 8 * i;
        T *to = (T *)a.o + head_at(h, h.lq) + (size_t)at * h.heads * h.d;
        if (at >= h.lq)
            continue;
        UNROLL
        for (int j = 0; j < D / 8; j++) {
            const float *both = o[i / 2][j] + i % 2 * 2;
            store_two(to, 8 * j + threadIdx.x % 4 * 2, both[0] * one, both[1] * one, false, h.d);
        }
    }
}

template <class T, int D, int M>
__global__ void __launch_bounds__(128, flash_sizes<D, M>::BLOCKS)
    flash(attention_args a, const attention_params *p)
{
    typedef flash_sizes<D, M> z;
    typedef typename z::layout L;
    DYNAMIC_SHARED(T, room);
    const attention_heads &h = a.h;
    view<T> q = view_of<T>(h, a.q, h.lq), k = view_of<T>(h, a.k, h.lk),
            v = view_of<T>(h, a.v, h.lk);
    int first = blockIdx.x * z::QUERIES, warp = threadIdx.x / 32;
    int row = first + warp * 16 * M + threadIdx.x % 32 / 4, end = keys_of(h, first, z::QUERIES);
    sight w = sight_of(h, p);
    auto load = [&](int key, T *to) {
        load_rows<T, L, z::KEYS, 2 * z::STEPS, z::THREADS>(to, k, h, key, 0);
        load_rows<T, L, z::KEYS, 2 * z::STEPS, z::THREADS>(to + z::TILE, v, h, key, 0);
    };

    /* The queries stand where the second stage will. */
    static_assert(z::QUERIES <= 2 * z::KEYS, "queries within a stage");
    load_rows<T, L, z::QUERIES, 2 * z::STEPS, z::THREADS>(room + 2 * z::TILE, q, h, first, 0);
    load(0, room);
    device_copy_group();
    device_copied_but<0>();
    __syncthreads();
    unsigned mine[z::STEPS][M][4];
    UNROLL
    for (int i = 0; i < z::STEPS * M; i++)
        load_a<T, L>(mine[i / M][i % M], room + 2 * z::TILE, 16 * (warp * M + i % M), i / M * 2);

    float o[M][D / 8][4] = {}, top[M][2], sum[M][2];
    for (int i = 0; i < 2 * M; i++)
        top[i / 2][i % 2] = -INFINITY, sum[i / 2][i % 2] = 0;
    for (int key = 0, stage = 0; key < end; key += z::KEYS, stage ^= 1) {
        const T *keys = room + stage * 2 * z::TILE;
        device_copied_but<0>();
        __syncthreads();
        if (key + z::KEYS < end)
            load(key + z::KEYS, room + (stage ^ 1) * 2 * z::TILE);
        device_copy_group();
        flash_tile<T, D, M>(o, top, sum, mine, keys, keys + z::TILE, row, key,
                            hides(w, first, key, z::KEYS), w, h.scale2);
    }
    flash_store<T, D, M>(a, o, sum, row);
}

/* ---- wide ------------------------------------------------------------------------------------ */

/* 8 warps have 64 queries: warp w those from 16 (w % 4) on, and of each tile of 64 keys, and of 64 channels of o, the half
 * w / 4. The halves of a row's weights meet in shared memory. Tiles are [64][64]: N of queries; 3 that keys and values go
 * through, N of keys and N of values in turn; weights. */
template <int N> struct wide_sizes {
    enum { THREADS = 256, TILE = 64 * 64, STAGES = 3, ROOM = (N + STAGES + 1) * TILE };
};

/* Brings the i-th tile of keys or values. */
template <class T, int N>
__device__ __forceinline__ void wide_load(T *stages, int i, int end, const view<T> &k,
                                          const view<T> &v, const attention_heads &h)
{
    typedef wide_sizes<N> z;
    int key = i / (2 * N) * 64, part = i % (2 * N);
    const view<T> from = {part < N ? k.at : v.at, k.rows};
    if (key < end)
        load_rows<T, swizzled, 64, 8, z::THREADS>(stages + i % z::STAGES * z::TILE, from, h, key,
                                                  part % N * 64);
    device_copy_group();
}

/* A warp's scores become weights, half of a row's, and go to `shared` [64][64]. tops: room for [2][64]. */
template <class T>
__device__ __forceinline__ void wide_weights(float (&s)[4][4], float (&top)[2], float (&sum)[2],
                                             float (&shrink)[2], T *shared, float *tops,
                                             float scale2)
{
    int lane = threadIdx.x % 32, part = threadIdx.x / 128;
    int row = threadIdx.x / 32 % 4 * 16 + lane / 4;
    UNROLL
    for (int half = 0; half < 2; half++) {
        float most = -INFINITY;
        UNROLL
        for (int j = 0; j < 4; j++)
            most = fmaxf(most, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        most = quad_max(most) * scale2;
        if (lane % 4 == 0)
            tops[part * 64 + row + 8 * half] = most;
    }
    __syncthreads();
    UNROLL
    for (int half = 0; half < 2; half++) {
        int at = row + 8 * half;
        float most = fmaxf(top[half], fmaxf(tops[at], tops[64 + at])), add = 0;
        float base = base_of(most);
        shrink[half] = exp2f(top[half] - base);
        UNROLL
        for (int j = 0; j < 4; j++) {
            float w0 = exp2f(fmaf(s[j][2 * half], scale2, -base));
            float w1 = exp2f(fmaf(s[j][2 * half + 1], scale2, -base));
            add += w0 + w1;
            *(unsigned *)(shared + swizzled::at(at, 4 * part + j) + lane % 4 * 2) =
                word_of<T>(w0, w1);
        }
        sum[half] = fmaf(sum[half], shrink[half], add);
        top[half] = most;
    }
}

template <class T, int N>
__device__ __forceinline__ void wide_store(const attention_args &a, const float (&o)[N][1][4][4],
                                           const float (&sum)[2], int row, int part, float *sums)
{
    const attention_heads &h = a.h;
    int lane = threadIdx.x % 32, here = row % 64;
    UNROLL
    for (int half = 0; half < 2; half++) {
        float all = quad_sum(sum[half]);
        if (lane % 4 == 0)
            sums[part * 64 + here + 8 * half] = all;
    }
    __syncthreads();
    UNROLL
    for (int half = 0; half < 2; half++) {
        int at = row + 8 * half;
        float one = 1 / (sums[here + 8 * half] + sums[64 + here + 8 * half]);
        T *to = (T *)a.o + head_at(h, h.lq) + (size_t)at * h.heads * h.d;
        if (at >= h.lq)
            break;
        UNROLL
        for (int i = 0; i < 4 * N; i++) {
            const float *both = o[i / 4][0][i % 4] + 2 * half;
            store_two(to, i / 4 * 64 + part * 32 + i % 4 * 8 + lane % 4 * 2, both[0] * one,
                      both[1] * one, false, h.d);
        }
    }
}

template <class T, int N>
__global__ void __launch_bounds__(256) wide(attention_args a, const attention_params *p)
{
    typedef wide_sizes<N> z;
    __shared__ float tops[128];
    DYNAMIC_SHARED(T, room);
    T *stages = room + N * z::TILE, *weights = stages + z::STAGES * z::TILE;
    const attention_heads &h = a.h;
    view<T> q = view_of<T>(h, a.q, h.lq), k = view_of<T>(h, a.k, h.lk),
            v = view_of<T>(h, a.v, h.lk);
    int lane = threadIdx.x % 32, group = threadIdx.x / 32 % 4 * 16, part = threadIdx.x / 128;
    int first = blockIdx.x * 64, row = first + group + lane / 4, end = keys_of(h, first, 64);
    sight w = sight_of(h, p);

    for (int i = 0; i < N; i++)
        load_rows<T, swizzled, 64, 8, z::THREADS>(room + i * z::TILE, q, h, first, 64 * i);
    wide_load<T, N>(stages, 0, end, k, v, h);
    wide_load<T, N>(stages, 1, end, k, v, h);
    float o[N][1][4][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0};
    int turn = 0;
    /* The next tile: it is there for all, and the place of the one before is free. */
    auto next = [&] {
        device_copied_but<1>();
        __syncthreads();
        wide_load<T, N>(stages, turn + 2, end, k, v, h);
        return (const T *)stages + turn++ % z::STAGES * z::TILE;
    };
    for (int key = 0; key < end; key += 64) {
        float s[1][4][4] = {}, shrink[2];
        for (int i = 0; i < N; i++) {
            const T *keys = next();
            UNROLL
            for (int step = 0; step < 4; step++) {
                unsigned mine[1][4];
                load_a<T, swizzled>(mine[0], room + i * z::TILE, group, 2 * step);
                add_turned<T, swizzled>(s, mine, keys, 32 * part, 2 * step);
            }
        }
        if (hides(w, first, key, 64))
            hide<false>(s[0], w, row, key + 32 * part + lane % 4 * 2);
        wide_weights(s[0], top, sum, shrink, weights, tops, h.scale2);
        unsigned weight[1][4][4];
        UNROLL
        for (int i = 0; i < N; i++) {
            const T *values = next();
            UNROLL
            for (int j = 0; j < 4 && i == 0; j++)
                load_a<T, swizzled>(weight[0][j], weights, group, 2 * j);
            UNROLL
            for (int j = 0; j < 16; j++)
                o[i][0][j / 4][j % 4] *= shrink[j % 4 / 2];
            add_product<T, swizzled>(o[i], weight, values, 4 * part);
        }
    }
    wide_store<T, N>(a, o, sum, row, part, tops);
}

/* ---- plain ----------------------------------------------------------------------------------- */

/* As to_weights, of 4 rows of 64 columns. */
static __device__ __forceinline__ void
plain_weights(float (&s)[4][4], float (&top)[4], float (&sum)[4], float (&shrink)[4], float scale2)
{
    UNROLL
    for (int i = 0; i < 4; i++) {
        float most = row_max(fmaxf(fmaxf(s[i][0], s[i][1]), fmaxf(s[i][2], s[i][3]))) * scale2;
        most = fmaxf(top[i], most);
        float base = base_of(most), part = 0;
        shrink[i] = exp2f(top[i] - base);
        UNROLL
        for (int j = 0; j < 4; j++) {
            s[i][j] = exp2f(fmaf(s[i][j], scale2, -base));
            part += s[i][j];
        }
        sum[i] = fmaf(sum[i], shrink[i], part);
        top[i] = most;
    }
}

/* 16 N channels of o at a time. */
template <class T, int N>
__global__ void __launch_bounds__(256, N <= 5 ? 2 : 1)
    plain(attention_args a, const attention_params *p)
{
    DYNAMIC_SHARED(float, room);
    const attention_heads &h = a.h;
    view<T> q = view_of<T>(h, a.q, h.lq), k = view_of<T>(h, a.k, h.lk),
            v = view_of<T>(h, a.v, h.lk);
    int first = blockIdx.x * PLAIN_ROWS, end = keys_of(h, first, PLAIN_ROWS);
    int tx = threadIdx.x % 16, row = first + threadIdx.x / 16 * 4;
    sight w = sight_of(h, p);
    for (int column = 0; column < h.d; column += 16 * N) {
        float o[4][N] = {}, top[4], sum[4], shrink[4], s[4][4];
        for (int i = 0; i < 4; i++)
            top[i] = -INFINITY, sum[i] = 0;
        for (int key = 0; key < end; key += 64) {
            plain_scores(s, q, first, k, key, h, room);
            if (hides(w, first, key, 64))
                plain_hide<false>(s, w, row, key + tx);
            plain_weights(s, top, sum, shrink, h.scale2);
            plain_share(room, s);
            UNROLL
            for (int i = 0; i < 4 * N; i++)
                o[i / N][i % N] *= shrink[i / N];
            plain_product(o, v, key, column, h, room);
        }
        UNROLL
        for (int i = 0; i < 4; i++) {
            float one = 1 / row_sum(sum[i]);
            T *to = (T *)a.o + head_at(h, h.lq) + (size_t)(row + i) * h.heads * h.d;
            UNROLL
            for (int j = 0; j < N; j++)
                if (row + i < h.lq && column + tx + 16 * j < h.d)
                    to[column + tx + 16 * j] = from_float<T>(o[i][j] * one);
        }
    }
}

/* ---- launching ------------------------------------------------------------------------------- */

static dim3 grid_of(const attention_args &a, int rows, int queries)
{
    return dim3(div_up((size_t)a.h.lq, (size_t)queries), (unsigned)a.h.heads, (unsigned)rows);
}

struct attention_call {
    attention_args a;
    int rows, pad; /* of the batch */
};

template <class T, int D, int M>
static int launch_flash(struct cuda *c, const attention_call &t, const attention_params *p)
{
    typedef flash_sizes<D, M> z;
    return launch(c, flash<T, D, M>, grid_of(t.a, t.rows, z::QUERIES), z::THREADS,
                  z::ROOM * sizeof(T), t.a, p);
}

template <class T, int N>
static int launch_wide(struct cuda *c, const attention_call &t, const attention_params *p)
{
    typedef wide_sizes<N> z;
    return launch(c, wide<T, N>, grid_of(t.a, t.rows, 64), z::THREADS, z::ROOM * sizeof(T), t.a, p);
}

template <class T, int N>
static int launch_plain(struct cuda *c, const attention_call &t, const attention_params *p)
{
    return launch(c, plain<T, N>, grid_of(t.a, t.rows, PLAIN_ROWS), PLAIN_THREADS,
                  PLAIN_ROOM * sizeof(float), t.a, p);
}

template <class T>
static int go_plain(struct cuda *c, const attention_call &t, const attention_params *p)
{
    int d = t.a.h.d;
    if (d <= 48)
        return launch_plain<T, 3>(c, t, p);
    if (d <= 80)
        return launch_plain<T, 5>(c, t, p);
    return d <= 160 ? launch_plain<T, 10>(c, t, p) : launch_plain<T, 32>(c, t, p);
}

/* Tiles of 128 queries take half the reads of keys, where there are enough tiles for all of the chip. */
template <class T>
static int go_narrow(struct cuda *c, const attention_call &t, const attention_params *p)
{
    int d = t.a.h.d;
    bool many = t.a.h.lq >= 2048;
    if (!t.a.h.packs || d > 512)
        return go_plain<T>(c, t, p);
    if (d <= 40)
        return many ? launch_flash<T, 40, 2>(c, t, p) : launch_flash<T, 40, 1>(c, t, p);
    if (d <= 64)
        return many ? launch_flash<T, 64, 2>(c, t, p) : launch_flash<T, 64, 1>(c, t, p);
    if (d <= 80)
        return launch_flash<T, 80, 1>(c, t, p);
    if (d <= 128)
        return launch_flash<T, 128, 1>(c, t, p);
    if (d <= 160)
        return launch_flash<T, 160, 1>(c, t, p);
    return d <= 256 ? launch_wide<T, 4>(c, t, p) : launch_wide<T, 8>(c, t, p);
}

static int go(struct cuda *c, const void *args, const void *params)
{
    const attention_call &t = *(const attention_call *)args;
    const attention_params *p = (const attention_params *)params;
    return t.a.h.type == DT_F16    ? go_narrow<half>(c, t, p)
           : t.a.h.type == DT_BF16 ? go_narrow<bf16>(c, t, p)
                                   : go_plain<float>(c, t, p);
}

extern "C" size_t cuda_attention_scratch(struct device *dev, const struct tensor *q,
                                         const struct tensor *k, const struct attention *a)
{
    (void)dev, (void)q, (void)k, (void)a;
    return 0;
}

extern "C" int cuda_attention(struct device *dev, struct tensor *o, const struct tensor *q,
                              const struct tensor *k, const struct tensor *v,
                              const struct attention *a, void *scratch, struct err *err)
{
    int rc;
    (void)scratch;
    assert(!o->wide && !q->wide && !k->wide && !v->wide);
    if (fused_attention(dev, o, q, k, v, a, &rc, err))
        return rc;
    attention_call t = zeroed<attention_call>();
    t.rows = q->n;
    t.a.o = o->data;
    t.a.q = q->data;
    t.a.k = k->data;
    t.a.v = v->data;
    t.a.h = attention_heads_of(dev, q, k, a);
    t.a.h.packs = t.a.h.packs && attention_aligned(o->data) && attention_aligned(q->data) &&
                  attention_aligned(k->data) && attention_aligned(v->data);
    attention_params p = {a->region};
    return cuda_push(dev, go, &t, sizeof t, a->region ? &p : NULL, a->region ? sizeof p : 0, err);
}
