/* chains.cuh: chains of products, y += s up(route(share o down(x))), those of a whole batch in one launch.
 *
 * What the chains are, their weights, ranks, strengths, shares and routes, is in the parameters: other adapters are the same
 * graph. A block takes 16 places of one row:
 *
 *     t [16, rank] = x down^T      160 ranks at a time, by groups of warps for 32 each; a group's warps take every so many
 *                                  columns of x, and what they find is summed up in their order
 *     shares, routes               on t, in shared memory, as float32
 *     y [16, N] += s t up^T        t rounded to y's type; by warps, 32 columns each, which read and write y once
 *
 * How sums are split depends on ranks and widths only: a row's result is the same in whatever batch. Operands go from device
 * memory straight into the fragments of tiles. The order of columns within a product is free as long as both sides have
 * the same: here lane (g, q), with g = lane / 4 and q = lane % 4, holds eight columns from 8q on, in one load.
 */
#ifndef WEFT_CUDA_CHAINS_CUH
#define WEFT_CUDA_CHAINS_CUH

#include "adapters.cuh"

enum {
    PLACES = 16,
    WARPS = 10, /* widths of Stable Diffusion are multiples of 10 COLUMNS; groups are of 10, 5, 2 */
    THREADS = 32 * WARPS,
    RANKS = 32,           /* of a warp at a time */
    DEPTH = 32,           /* columns of a product that a warp takes at a time */
    COLUMNS = 32,         /* of y, likewise */
    SUMS_ROW = RANKS + 8, /* values between rows of sums in shared memory: no banks meet */
    PARTS_MOST = 2000
};

struct chain_item {
    const void *x, *down, *up;
    void *y;
    float s;
    int rank;
    routing route;
    int n_part, part; /* parts of a row, and where in all parts they begin; n_part 0: in full */
    int step;         /* from the parts of one row to those of the next */
};

/* Parts stand behind it. */
struct chains_head {
    int first[CHAINS_MOST + 1]; /* blocks of each chain; those from the last on have none */
    int pad[3];
    chain_item chain[CHAINS_MOST];
};

struct chains_args {
    int type, k, n;     /* of x and y: values and columns */
    int places, across; /* of a row; blocks for them */
    int blocks, splits; /* in all; of y's columns, `share` in each */
    int share;
    int stride; /* words between rows of t in shared memory */
    int parts;  /* room for them in the parameters */
};

/* What a block does: n places of a row from `place` on. */
struct chain_tile {
    const chain_item *c;
    int row, place, n;
};

template <class T>
__device__ __forceinline__ matrix<T> rows_of(const void *p, const chain_tile &tile, int places,
                                             int c)
{
    return matrix<T>((const T *)p + ((size_t)tile.row * places + tile.place) * c, tile.n, c);
}

/* d [16, 8] += a b, of eight columns of a and rows of b each lane: all 32. a0, a1: places g and g + 8; b: column g. */
template <class T>
__device__ __forceinline__ void multiply(float (&d)[4], const eight<T> &a0, const eight<T> &a1,
                                         const eight<T> &b)
{
    UNROLL
    for (int i = 0; i < 4; i += 2) {
        const unsigned left[4] = {a0.w[i], a1.w[i], a0.w[i + 1], a1.w[i + 1]},
                       right[2] = {b.w[i], b.w[i + 1]};
        device_mma(d, left, right, T());
    }
}

static __device__ __forceinline__ float dot(const eight<float> &a, const eight<float> &b)
{
    float sum = 0;
    UNROLL
    for (int i = 0; i < 8; i++)
        sum += a.w[i] * b.w[i];
    return sum;
}

/* ---- down ------------------------------------------------------------------------------------ */

/* acc [16, 8 TILES] += x down^T over columns first + i step, DEPTH of each, where down's ranks begin at `rank`; DEEP of
 * those are loaded together. */
template <int REACH, int TILES, int DEEP, class T>
__device__ __forceinline__ void come_down(float (&acc)[4][4], const matrix<T> &x,
                                          const matrix<T> &down, int rank, int first, int step)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    NO_UNROLL
    for (int k = first; k < x.c; k += DEEP * step) {
        eight<T> a[DEEP][2], b[DEEP][TILES];
        UNROLL
        for (int d = 0; d < DEEP; d++) {
            int at = k + d * step + 8 * q;
            UNROLL
            for (int r = 0; r < 2; r++)
                a[d][r] = x.template by<REACH>(g + 8 * r, at);
            UNROLL
            for (int t = 0; t < TILES; t++)
                b[d][t] = down.template by<REACH>(rank + 8 * t + g, at);
        }
        UNROLL
        for (int i = 0; i < DEEP * TILES; i++)
            multiply(acc[i % TILES], a[i / TILES][0], a[i / TILES][1], b[i / TILES][i % TILES]);
    }
}

/* The same by single products: acc has what device_mma would leave there. */
template <int REACH, int TILES, int DEEP>
__device__ __forceinline__ void come_down(float (&acc)[4][4], const matrix<float> &x,
                                          const matrix<float> &down, int rank, int first, int step)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    for (int k = first; k < x.c; k += step)
        for (int at = k; at < k + DEPTH; at += 8) {
            eight<float> a[2] = {x.by<REACH>(g, at), x.by<REACH>(g + 8, at)};
            UNROLL
            for (int i = 0; i < 2 * TILES; i++) {
                eight<float> b = down.by<REACH>(rank + i / 2 * 8 + 2 * q + i % 2, at);
                acc[i / 2][i % 2] += dot(a[0], b);
                acc[i / 2][2 + i % 2] += dot(a[1], b);
            }
        }
}

/* A warp's columns, for ranks from `rank` on, at most RANKS. */
template <class T>
__device__ __forceinline__ void warp_down(float (&acc)[4][4], const chain_tile &tile,
                                          const chains_args &a, int rank, int first, int step)
{
    const chain_item &c = *tile.c;
    const matrix<T> x = rows_of<T>(c.x, tile, a.places, a.k), down((const T *)c.down, c.rank, a.k);
    bool fast = x.reach == 16 && down.reach == 16;
    if (rank >= c.rank)
        return;
    if (!fast)
        come_down<0, 4, 1>(acc, x, down, rank, first, step);
    else if (c.rank - rank > RANKS / 2)
        come_down<16, 4, 2>(acc, x, down, rank, first, step);
    else
        come_down<16, 2, 4>(acc, x, down, rank, first, step);
}

/* One warp's sums to shared memory, [PLACES, SUMS_ROW]. */
static __device__ __forceinline__ void put_sums(float *to, const float (&acc)[4][4])
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    UNROLL
    for (int i = 0; i < 8; i++) {
        int t = i / 2, r = i % 2;
        pack<float, 2> two = {{acc[t][2 * r], acc[t][2 * r + 1]}};
        *(pack<float, 2> *)(to + (g + 8 * r) * SUMS_ROW + 8 * t + 2 * q) = two;
    }
}

/* Column `rank` of t, a place: of T, or float32 where routes follow. */
template <class T>
__device__ __forceinline__ void put_rank(float *t, int stride, int place, int rank, float v,
                                         bool whole)
{
    if (whole)
        t[place * stride + rank] = v;
    else
        ((T *)(t + place * stride))[rank] = from_float<T>(v);
}

/* Sums of each group's warps, times shares, to t, for ranks from `rank` on. */
template <int GROUPS, class T>
__device__ __forceinline__ void put_down(float *t, const float *sums, const chain_tile &tile,
                                         const part *parts, int stride, int rank)
{
    const chain_item &c = *tile.c;
    constexpr int all = GROUPS * RANKS, warps = WARPS / GROUPS;
    int i = (int)threadIdx.x % all;
    const float *from = sums + i / RANKS * warps * PLACES * SUMS_ROW + i % RANKS;
    const part *p = c.n_part && rank + i < c.rank ? parts + c.part + tile.row * c.step : NULL;
    bool whole = sizeof(T) == 4 || c.route.keep;
    int step = whole ? 8 : DEPTH; /* zeros up to whole ones, which products take */
    if (rank + i >= (c.rank + step - 1) / step * step)
        return;
    while (p && p->end <= rank + i)
        p++;
    NO_UNROLL
    for (int r = (int)threadIdx.x / all; r < PLACES; r += THREADS / all) {
        float v = 0;
        UNROLL
        for (int k = 0; k < warps; k++)
            v += from[(k * PLACES + r) * SUMS_ROW];
        if (p && r < tile.n)
            v *= share_at(*p, tile.place + r);
        put_rank<T>(t, stride, r, rank + i, v, whole);
    }
}

/* A row of t to its type, in place; zeros up to what a step of a product takes. */
template <class T> __device__ __forceinline__ void narrow_row(float *t, int n, int lane)
{
    T *to = (T *)t;
    for (int i = lane; i < (n + DEPTH - 1) / DEPTH * DEPTH; i += 32) {
        float v = i < n ? t[i] : 0;
        __syncwarp();
        to[i] = from_float<T>(v);
        __syncwarp();
    }
}
template <> __device__ __forceinline__ void narrow_row<float>(float *, int, int)
{
}

/* t, with shares and routes: as many groups of warps as there are RANKS, if not more, at a time. */
template <class T>
__device__ __forceinline__ void all_down(float *t, float *sums, const chain_tile &tile,
                                         const part *parts, const chains_args &a)
{
    const chain_item &c = *tile.c;
    int warp = (int)threadIdx.x / 32, lane = (int)threadIdx.x % 32;
    int groups = c.rank <= RANKS ? 1 : c.rank <= 2 * RANKS ? 2 : 5;
    int warps = groups == 1 ? WARPS : groups == 2 ? WARPS / 2 : WARPS / 5;
    int group = groups == 1 ? 0 : groups == 2 ? warp / (WARPS / 2) : warp / (WARPS / 5);
    for (int rank = 0; rank < c.rank; rank += groups * RANKS) {
        float acc[4][4] = {};
        warp_down<T>(acc, tile, a, rank + group * RANKS, (warp - group * warps) * DEPTH,
                     warps * DEPTH);
        put_sums(sums + warp * PLACES * SUMS_ROW, acc);
        __syncthreads();
        if (groups == 1)
            put_down<1, T>(t, sums, tile, parts, a.stride, rank);
        else if (groups == 2)
            put_down<2, T>(t, sums, tile, parts, a.stride, rank);
        else
            put_down<5, T>(t, sums, tile, parts, a.stride, rank);
        __syncthreads();
    }
    if (!c.route.keep)
        return;
    for (int r = warp; r < PLACES; r += WARPS) {
        route_row(t + r * a.stride, c.rank, c.route, lane);
        __syncwarp();
        narrow_row<T>(t + r * a.stride, c.rank, lane);
    }
    __syncthreads();
}

/* ---- up -------------------------------------------------------------------------------------- */

/* acc [16, 32] = t up^T for y's columns from `column` on: lane (g, q) gets those from 8q on of places g and g + 8, the
 * (2j + e)-th as acc[j][e] and acc[j][2 + e]. */
template <int REACH, class T>
__device__ __forceinline__ void go_up(float (&acc)[4][4], const float *t, int stride,
                                      const matrix<T> &up, int column)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, row = column + g / 2 * 8 + g % 2;
    NO_UNROLL
    for (int k = 0; k < up.c; k += DEPTH) {
        eight<T> a[2], b[4];
        UNROLL
        for (int j = 0; j < 4; j++)
            b[j] = up.template by<REACH>(row + 2 * j, k + 8 * q);
        UNROLL
        for (int r = 0; r < 2; r++)
            eight_by<16>(a[r], (const T *)(t + (g + 8 * r) * stride) + k + 8 * q, 8);
        UNROLL
        for (int j = 0; j < 4; j++)
            multiply(acc[j], a[0], a[1], b[j]);
    }
}

template <int REACH>
__device__ __forceinline__ void go_up(float (&acc)[4][4], const float *t, int stride,
                                      const matrix<float> &up, int column)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    for (int k = 0; k < up.c; k += 8) {
        eight<float> a[2];
        UNROLL
        for (int r = 0; r < 2; r++)
            eight_by<16>(a[r], t + (g + 8 * r) * stride + k, 8);
        UNROLL
        for (int j = 0; j < 8; j++) {
            eight<float> b = up.by<REACH>(column + 8 * q + j, k);
            acc[j / 2][j % 2] += dot(a[0], b);
            acc[j / 2][2 + j % 2] += dot(a[1], b);
        }
    }
}

/* The block's part of y's columns. */
template <int REACH, class T>
__device__ __forceinline__ void columns_up(const float *t, const matrix<T> &up, const matrix<T> &y,
                                           float s, const chains_args &a)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, warp = (int)threadIdx.x / 32;
    int end = min(((int)blockIdx.y + 1) * a.share, y.c);
    for (int at = (int)blockIdx.y * a.share + warp * COLUMNS; at < end; at += WARPS * COLUMNS) {
        int column = at + 8 * q;
        float acc[4][4] = {};
        eight<T> was[2] = {y.load(g, column), y.load(g + 8, column)};
        go_up<REACH>(acc, t, a.stride, up, at);
        UNROLL
        for (int r = 0; r < 2; r++) {
            float v[8];
            floats_of(v, was[r]);
            UNROLL
            for (int j = 0; j < 8; j++)
                v[j] += s * acc[j / 2][2 * r + j % 2];
            if (g + 8 * r < y.n)
                eight_store((T *)y.p + ((g + 8 * r) * y.c + column), v, y.c - column, y.reach);
        }
    }
}

template <class T>
__device__ __forceinline__ void all_up(const float *t, const chain_tile &tile, const chains_args &a)
{
    const chain_item &c = *tile.c;
    const matrix<T> up((const T *)c.up, a.n, c.rank), y = rows_of<T>(c.y, tile, a.places, a.n);
    if (up.reach == 16)
        columns_up<16>(t, up, y, c.s, a);
    else if (up.reach == 8)
        columns_up<8>(t, up, y, c.s, a);
    else
        columns_up<0>(t, up, y, c.s, a);
}

template <class T>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 4 ? 1 : 2)
    add_chains(const chains_args a, const chains_head *head)
{
    DYNAMIC_SHARED(float, sums);
    float *t = sums + WARPS * PLACES * SUMS_ROW;
    int block = (int)blockIdx.x, i = 0;
    if (block >= head->first[CHAINS_MOST])
        return;
    while (block >= head->first[i + 1])
        i++;
    block -= head->first[i];
    int row = block / a.across, place = block % a.across * PLACES;
    const chain_tile tile = {&head->chain[i], row, place, min(a.places - place, (int)PLACES)};
    all_down<T>(t, sums, tile, (const part *)(head + 1), a);
    all_up<T>(t, tile, a);
}

#endif
