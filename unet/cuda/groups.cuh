/* groups.cuh: how a group norm cuts rows into blocks, and sums over a block's groups.
 *
 * Each row [hw, c] is cut into pieces of places and into slabs of channels: whole groups, so that what a block reads of a
 * place is enough together. A block keeps its values in registers while it finds their mean and then the squares of what
 * they differ from it, so that nothing cancels; those of all parts of a group are merged (Chan et al. 1979). How a row is
 * cut depends on its own shape only.
 */
#ifndef WEFT_CUDA_GROUPS_CUH
#define WEFT_CUDA_GROUPS_CUH

#include "packs.cuh"

enum {
    HELD = 8,  /* places of which a thread holds a pack */
    SLAB = 64, /* channels of a block, at least */
    WARPS = 8  /* of a block that has a row or group a warp */
};

/* How rows are cut: into units of channels, which are slabs of whole groups, or where one group is too wide for a block its
 * tiles; and into pieces of places. A group's parts are a piece and tile each. */
struct cut {
    int hw, c, groups, cg; /* cg: channels of a group */
    int slab;              /* groups of a slab; 1 where tiles are more than 1 */
    int width;             /* channels of a unit, at most */
    int tiles, units;
    int lanes; /* places that a block reads at once */
    int step;  /* places of a piece, at most; lanes * HELD or fewer */
    int pieces, parts;
};

struct group_args {
    void *y; /* or dx */
    const void *x, *add, *dy;
    const float *gamma, *beta;
    /* [n, groups, parts, 2]: mean and M2; on the way back sums of d and of d times the normed x. */
    float *stats, *sums;
    /* [n, groups, 2]: the same of whole groups, where parts are many, or NULL. */
    float *all_stats, *all_sums;
    cut k;
    int rows, type, packed, act, add_to;
    float eps;
};

/* For blocks of at most so many threads, a column of n channels each. */
static cut cut_for(const struct tensor *x, int groups, int n, int threads)
{
    cut k = zeroed<cut>();
    k.hw = x->h * x->w;
    k.c = x->c;
    k.groups = groups;
    k.cg = x->c / groups;
    k.slab = 1;
    while (k.slab < groups && (k.slab * k.cg < SLAB || k.slab * k.cg % n))
        k.slab++;
    int width = k.slab * k.cg;
    k.width = width < threads * n ? width : threads * n;
    k.tiles = (int)div_up((size_t)width, (size_t)k.width);
    k.units = (int)div_up((size_t)groups, (size_t)k.slab) * k.tiles;
    int most = threads / (k.width / n), enough = (k.hw + 3) / 4;
    k.lanes = most < enough ? most : enough;
    k.pieces = (int)div_up((size_t)k.hw, (size_t)k.lanes * HELD);
    k.step = (int)div_up((size_t)k.hw, (size_t)k.pieces);
    k.pieces = (int)div_up((size_t)k.hw, (size_t)k.step);
    k.parts = k.pieces * k.tiles;
    return k;
}

/* ---- where a thread is ----------------------------------------------------------------------- */

struct spot {
    size_t row;
    int group, groups; /* of the block: first, how many */
    int tile, channel, width;
    int piece, from, to; /* places */
    int column, lane;    /* the thread's first channel and place, counted from the block's */
    bool on;             /* it has any */
};

template <int N> static __device__ __forceinline__ spot spot_of(const cut &k)
{
    spot s;
    int unit = (int)(blockIdx.x / k.pieces % k.units), columns = k.width / N;
    s.row = blockIdx.x / k.pieces / k.units;
    s.group = unit / k.tiles * k.slab;
    s.groups = min(k.slab, k.groups - s.group);
    s.tile = unit % k.tiles;
    s.channel = s.group * k.cg + s.tile * k.width;
    s.width = min(k.width, s.groups * k.cg - s.tile * k.width);
    s.piece = (int)(blockIdx.x % k.pieces);
    s.from = s.piece * k.step;
    s.to = min(k.hw, s.from + k.step);
    s.lane = (int)threadIdx.x / columns;
    s.column = (int)threadIdx.x % columns * N;
    s.on = s.lane < k.lanes && s.column < s.width;
    return s;
}

/* The thread's packs of x: n of places lane, lane + lanes, … */
template <class T, int N> struct held {
    pack<T, N> v[HELD];
    int n;
};

static __device__ __forceinline__ size_t first_at(const cut &k, const spot &s)
{
    return (s.row * k.hw + s.from + s.lane) * k.c + s.channel + s.column;
}

static __device__ __forceinline__ int places_of(const cut &k, const spot &s)
{
    int left = s.to - s.from - s.lane;
    return s.on && left > 0 ? (left + k.lanes - 1) / k.lanes : 0;
}

template <class T, int N>
static __device__ __forceinline__ void hold(held<T, N> &h, const T *x, const cut &k, const spot &s)
{
    const T *p = x + first_at(k, s);
    h.n = places_of(k, s);
    for (int i = 0; i < HELD; i++)
        if (i < h.n)
            h.v[i] = *(const pack<T, N> *)(p + (size_t)i * k.lanes * k.c);
}

/* What is added to x, in the thread's channels. */
template <class T, int N>
static __device__ __forceinline__ void added(float (&a)[N], const void *add, const cut &k,
                                             const spot &s)
{
    for (int i = 0; i < N; i++)
        a[i] = 0;
    if (add && s.on)
        pack_load(a, (const T *)add + s.row * k.c + s.channel + s.column);
}

/* Values of the block's groups for the thread's channels. */
template <int N>
static __device__ __forceinline__ void of_groups(float (&v)[N], const float *group, const cut &k,
                                                 const spot &s)
{
    int at = s.column / k.cg, left = k.cg - s.column % k.cg;
    at = k.tiles > 1 ? 0 : at;
    for (int i = 0; i < N; i++, left--) {
        if (left == 0 && k.tiles == 1) {
            at++;
            left = k.cg;
        }
        v[i] = group[s.on ? at : 0];
    }
}

/* ---- sums over a block ----------------------------------------------------------------------- */

/* total[i] = sum of v in the channels of the block's i-th group, over all threads. room: [lanes, width] floats. */
template <int N>
static __device__ __forceinline__ void group_sums(float *total, float *room, const float (&v)[N],
                                                  const cut &k, const spot &s)
{
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, threads = (int)blockDim.x;
    int turns = min(max(threads / k.width, 1), k.lanes);
    if (s.on)
        pack_store(room + s.lane * k.width + s.column, v);
    __syncthreads();
    for (int at = (int)threadIdx.x; at < turns * k.width; at += threads)
        if (at % k.width < s.width) {
            float sum = 0;
            for (int i = at; i < k.lanes * k.width; i += turns * k.width)
                sum += room[i];
            room[at] = sum;
        }
    __syncthreads();
    for (int g = warp; g < s.groups; g += threads / 32) {
        int first = g * k.cg, n = min(k.cg, s.width - first);
        float sum = 0;
        for (int at = lane; at < turns * n; at += 32)
            sum += room[at / n * k.width + first + at % n];
        sum = warp_sum(sum);
        if (lane == 0)
            total[g] = sum;
    }
    __syncthreads();
}

/* Mean and M2 of the block's part of each of its groups. */
template <class T, int N>
static __device__ __forceinline__ void group_stats(float *mean, float *m2, float *room,
                                                   const held<T, N> &h, const float (&a)[N],
                                                   const cut &k, const spot &s)
{
    float v[N], sum[N] = {}, from[N];
    int channels = k.tiles > 1 ? s.width : k.cg;
    float count = (float)(s.to - s.from) * (float)channels;
    for (int i = 0; i < HELD; i++)
        if (i < h.n) {
            pack_floats(v, h.v[i]);
            for (int j = 0; j < N; j++)
                sum[j] += v[j] + a[j];
        }
    group_sums(mean, room, sum, k, s);
    of_groups(from, mean, k, s);
    __syncthreads();
    for (int g = (int)threadIdx.x; g < s.groups; g += (int)blockDim.x)
        mean[g] /= count;
    for (int j = 0; j < N; j++) {
        from[j] /= count;
        sum[j] = 0;
    }
    for (int i = 0; i < HELD; i++)
        if (i < h.n) {
            pack_floats(v, h.v[i]);
            for (int j = 0; j < N; j++) {
                float d = v[j] + a[j] - from[j];
                sum[j] += d * d;
            }
        }
    group_sums(m2, room, sum, k, s);
}

/* ---- parts of a group, merged by a warp ------------------------------------------------------- */

static __device__ __forceinline__ float part_count(const cut &k, int part)
{
    int piece = part / k.tiles, tile = part % k.tiles;
    int places = min(k.step, k.hw - piece * k.step);
    int channels = k.tiles > 1 ? min(k.width, k.cg - tile * k.width) : k.cg;
    return (float)places * (float)channels;
}

/* *mean and *m2 of a whole group. */
static __device__ __forceinline__ void merge_stats(float *mean, float *m2, const float *parts,
                                                   const cut &k)
{
    float all = (float)k.hw * (float)k.cg, base = parts[0], off = 0, sum = 0;
    for (int p = (int)threadIdx.x % 32; p < k.parts; p += 32)
        off += part_count(k, p) * (parts[2 * p] - base);
    *mean = base + warp_sum(off) / all;
    for (int p = (int)threadIdx.x % 32; p < k.parts; p += 32) {
        float d = parts[2 * p] - *mean;
        sum += parts[2 * p + 1] + part_count(k, p) * d * d;
    }
    *m2 = warp_sum(sum);
}

static __device__ __forceinline__ void merge_sums(float *a, float *b, const float *parts,
                                                  const cut &k)
{
    float sum[2] = {0, 0};
    for (int p = (int)threadIdx.x % 32; p < k.parts; p += 32) {
        sum[0] += parts[2 * p];
        sum[1] += parts[2 * p + 1];
    }
    *a = warp_sum(sum[0]);
    *b = warp_sum(sum[1]);
}

/* Mean and 1 / deviation of each of the block's groups. */
static __device__ __forceinline__ void block_stats(float *mean, float *rstd, const group_args &a,
                                                   const spot &s)
{
    float all = (float)a.k.hw * (float)a.k.cg, m, m2;
    for (int g = (int)threadIdx.x / 32; g < s.groups; g += (int)blockDim.x / 32) {
        size_t group = s.row * a.k.groups + s.group + g;
        if (a.all_stats) {
            m = a.all_stats[2 * group];
            m2 = a.all_stats[2 * group + 1];
        } else {
            merge_stats(&m, &m2, a.stats + 2 * group * a.k.parts, a.k);
        }
        if (threadIdx.x % 32 == 0) {
            mean[g] = m;
            rstd[g] = 1 / sqrtf(m2 / all + a.eps);
        }
    }
}

/* Means of d and of d n over each of the block's groups. */
static __device__ __forceinline__ void block_sums(float *d, float *dn, const group_args &a,
                                                  const spot &s)
{
    float all = (float)a.k.hw * (float)a.k.cg, v, w;
    for (int g = (int)threadIdx.x / 32; g < s.groups; g += (int)blockDim.x / 32) {
        size_t group = s.row * a.k.groups + s.group + g;
        if (a.all_sums) {
            v = a.all_sums[2 * group];
            w = a.all_sums[2 * group + 1];
        } else {
            merge_sums(&v, &w, a.sums + 2 * group * a.k.parts, a.k);
        }
        if (threadIdx.x % 32 == 0) {
            d[g] = v / all;
            dn[g] = w / all;
        }
    }
}

/* A warp a group. */
static __global__ void __launch_bounds__(32 * WARPS) merge(const group_args a, int sums)
{
    size_t group = blockIdx.x * (size_t)WARPS + threadIdx.x / 32;
    float v, w;
    if (group >= (size_t)a.rows * a.k.groups)
        return;
    if (sums)
        merge_sums(&v, &w, a.sums + 2 * group * a.k.parts, a.k);
    else
        merge_stats(&v, &w, a.stats + 2 * group * a.k.parts, a.k);
    float *to = (sums ? a.all_sums : a.all_stats) + 2 * group;
    if (threadIdx.x % 32 == 0) {
        to[0] = v;
        to[1] = w;
    }
}

/* Notes two sums of the block's part of each group. */
static __device__ __forceinline__ void note_part(float *to, const float *first, const float *second,
                                                 const cut &k, const spot &s)
{
    for (int g = (int)threadIdx.x; g < s.groups; g += (int)blockDim.x) {
        float *at =
            to + 2 * ((s.row * k.groups + s.group + g) * k.parts + s.piece * k.tiles + s.tile);
        at[0] = first[g];
        at[1] = second[g];
    }
}

#endif
