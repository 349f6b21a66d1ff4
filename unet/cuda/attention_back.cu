/* Gradients of attention, as FlashAttention-2 has them (Dao 2023). With weights p = softmax(s scale), s = q kᵀ, and dp = dout vᵀ,
 *
 *     mean = sum over keys of p dp, ds = p (dp - mean)
 *     dq = scale ds k, dk = scale dsᵀ q, dv = pᵀ dout
 *
 * No weights are kept. A first pass finds for each query log2 of the sum of exp2(s scale2), with which the weights are made
 * again, and its mean; then tiles of queries have their dq, and tiles of keys their dk and dv. All passes are one: a block
 * keeps 64 rows of x and y, and goes over rows of u and w a tile at a time, s = x uᵀ, dp = y wᵀ, dx = scale ds u:
 *
 *     queries  x = q, y = dout, u = k, w = v
 *     keys     x = k, y = v, u = q, w = dout, s and dp are the other way round, and dv = p w
 *
 * 16-bit values take device_mma, weights and ds rounded to that type; float32, heads of more than 160 channels, and such
 * as are not whole packs of 8 values, float32.
 */
#include "attention.cuh"

#include <assert.h>

enum pass { PASS_STATS, PASS_QUERIES, PASS_KEYS, PASS_VALUES, PASS_KEYS_VALUES };

struct back_args {
    void *dx, *dv; /* NULL: not wanted */
    const void *x, *y, *u, *w;
    float *stats; /* of a head of a row of the batch: [2][stats_of(lq)], sums and means */
    int add, add_v;
    attention_heads h;
};

/* Queries beyond the last are there, with an infinite sum: their weights are 0. */
static __host__ __device__ __forceinline__ int stats_of(int lq)
{
    return (lq + 63) / 64 * 64;
}

static __device__ __forceinline__ float *stats_at(const back_args &a)
{
    return a.stats + ((size_t)blockIdx.z * a.h.heads + blockIdx.y) * 2 * stats_of(a.h.lq);
}

/* The rows of u and w that some of the block's 64 from `first` on are with: from begin to end. */
struct span {
    int begin, end;
};

template <bool TURNED>
__device__ __forceinline__ span span_of(const attention_heads &h, int first, int tile)
{
    if (TURNED)
        return {h.causal ? first / tile * tile : 0, h.lq};
    return {0, h.causal ? min(h.lk, first + 64) : h.lk};
}

/* A query's sum and mean from those of its columns, less `top`, the largest exponent. */
static __device__ __forceinline__ void stats_store(const back_args &a, int query, float top,
                                                   float sum, float mean)
{
    float *to = stats_at(a) + query;
    bool there = query < a.h.lq;
    to[0] = there ? top + log2f(sum) : INFINITY;
    to[stats_of(a.h.lq)] = there ? mean / sum : 0;
}

/* ---- 16-bit values --------------------------------------------------------------------------- */

/* 4 warps of 16 rows each; D channels, a multiple of 8. */
template <int D> struct back_sizes {
    enum {
        THREADS = 128,
        STEPS = (D + 15) / 16, /* of 16 channels, with zeros */
        COLUMNS = D <= 80 ? 64 : 32,
        STRIDE = 16 * STEPS + 8,
        ROWS_TILE = 64 * STRIDE,
        TILE = COLUMNS * STRIDE,
        STAGE = 2 * TILE + 4 * COLUMNS, /* u, w; stats as float32 */
        ROOM = 2 * ROWS_TILE + 2 * STAGE
    };
    typedef padded<STRIDE> layout;
};

/* Of a tile of queries. */
template <int COLUMNS>
__device__ __forceinline__ void load_stats(float *to, const back_args &a, int first)
{
    int i = (int)threadIdx.x, at = i % (COLUMNS / 4) * 4, of = i / (COLUMNS / 4);
    if (i < COLUMNS / 2)
        device_copy16(to + of * COLUMNS + at, stats_at(a) + of * stats_of(a.h.lq) + first + at,
                      true);
}

/* Takes a tile's scores into what is known of the row's halves: of this lane's columns until the end. */
template <int N>
__device__ __forceinline__ void to_stats(const float (&s)[N][4], const float (&dp)[N][4],
                                         float (&top)[2], float (&sum)[2], float (&mean)[2],
                                         float scale2)
{
    UNROLL
    for (int half = 0; half < 2; half++) {
        float most = -INFINITY, add = 0, add_mean = 0;
        UNROLL
        for (int j = 0; j < N; j++)
            most = fmaxf(most, fmaxf(s[j][2 * half], s[j][2 * half + 1]));
        most = fmaxf(top[half], quad_max(most) * scale2);
        float base = base_of(most), shrink = exp2f(top[half] - base);
        UNROLL
        for (int i = 0; i < 2 * N; i++) {
            float w = exp2f(fmaf(s[i / 2][2 * half + i % 2], scale2, -base));
            add += w;
            add_mean = fmaf(w, dp[i / 2][2 * half + i % 2], add_mean);
        }
        sum[half] = fmaf(sum[half], shrink, add);
        mean[half] = fmaf(mean[half], shrink, add_mean);
        top[half] = most;
    }
}

/* s becomes weights, dp becomes ds. stats: of a lane's two rows, sums and means, or TURNED in shared memory of the tile's
 * columns. */
template <bool TURNED, int N>
__device__ __forceinline__ void to_slopes(float (&s)[N][4], float (&dp)[N][4],
                                          const float (&mine)[2][2], const float *stats,
                                          float scale2)
{
    stats += threadIdx.x % 4 * 2;
    UNROLL
    for (int i = 0; i < 4 * N; i++) {
        int j = i / 4, e = i % 4, at = 8 * j + e % 2;
        float sum = TURNED ? stats[at] : mine[0][e / 2];
        float mean = TURNED ? stats[8 * N + at] : mine[1][e / 2];
        s[j][e] = exp2f(fmaf(s[j][e], scale2, -sum));
        dp[j][e] = s[j][e] * (dp[j][e] - mean);
    }
}

template <class T, int N>
__device__ __forceinline__ void back_store(void *to, const float (&d)[1][N][4], int row, int rows,
                                           float scale, int add, const attention_heads &h)
{
    UNROLL
    for (int half = 0; half < 2; half++) {
        int at = row + 8 * half;
        if (at >= rows)
            break;
        T *p = (T *)to + head_at(h, rows) + (size_t)at * h.heads * h.d;
        UNROLL
        for (int j = 0; j < N; j++)
            store_two(p, 8 * j + threadIdx.x % 4 * 2, d[0][j][2 * half] * scale,
                      d[0][j][2 * half + 1] * scale, add, h.d);
    }
}

/* s += x uᵀ, and with DP dp += y wᵀ, of a warp's 16 rows and a tile. */
template <class T, int D, bool DP, int N>
__device__ __forceinline__ void back_scores(float (&s)[1][N][4], float (&dp)[1][N][4],
                                            const T *rows, const T *tile)
{
    typedef back_sizes<D> z;
    typedef typename z::layout L;
    int first = threadIdx.x / 32 * 16;
    UNROLL
    for (int step = 0; step < z::STEPS; step++) {
        unsigned part[1][4];
        load_a<T, L>(part[0], rows, first, 2 * step);
        add_turned<T, L>(s, part, tile, 0, 2 * step);
        if (!DP)
            continue;
        load_a<T, L>(part[0], rows + z::ROWS_TILE, first, 2 * step);
        add_turned<T, L>(dp, part, tile + z::TILE, 0, 2 * step);
    }
}

static __device__ __forceinline__ void back_stats(const back_args &a, int row,
                                                  const float (&top)[2], const float (&sum)[2],
                                                  const float (&mean)[2])
{
    for (int half = 0; half < 2; half++) {
        float all = quad_sum(sum[half]), all_mean = quad_sum(mean[half]);
        if (threadIdx.x % 4 == 0)
            stats_store(a, row + 8 * half, top[half], all, all_mean);
    }
}

template <class T, int D, int PASS>
__global__ void __launch_bounds__(128, 2) back(back_args a, const attention_params *params)
{
    typedef back_sizes<D> z;
    typedef typename z::layout L;
    constexpr bool TURNED = PASS >= PASS_KEYS, DX = PASS != PASS_STATS && PASS != PASS_VALUES;
    constexpr bool DV = PASS >= PASS_VALUES, DP = PASS != PASS_VALUES;
    constexpr int N = z::COLUMNS / 8;
    DYNAMIC_SHARED(T, room);
    const attention_heads &h = a.h;
    int rows = TURNED ? h.lk : h.lq, columns = TURNED ? h.lq : h.lk;
    view<T> x = view_of<T>(h, a.x, rows), y = view_of<T>(h, a.y, rows);
    view<T> u = view_of<T>(h, a.u, columns), w = view_of<T>(h, a.w, columns);
    int first = blockIdx.x * 64, row = first + threadIdx.x / 32 * 16 + threadIdx.x % 32 / 4;
    sight see = sight_of(h, params);
    span all = span_of<TURNED>(h, first, z::COLUMNS);
    T *stages = room + 2 * z::ROWS_TILE;
    auto load = [&](int from, T *to) {
        load_rows<T, L, z::COLUMNS, 2 * z::STEPS, z::THREADS>(to, u, h, from, 0);
        load_rows<T, L, z::COLUMNS, 2 * z::STEPS, z::THREADS>(to + z::TILE, w, h, from, 0);
        if (TURNED)
            load_stats<z::COLUMNS>((float *)(to + 2 * z::TILE), a, from);
    };

    load_rows<T, L, 64, 2 * z::STEPS, z::THREADS>(room, x, h, first, 0);
    if (DP)
        load_rows<T, L, 64, 2 * z::STEPS, z::THREADS>(room + z::ROWS_TILE, y, h, first, 0);
    if (all.begin < all.end)
        load(all.begin, stages);
    device_copy_group();
    float mine[2][2] = {}, top[2] = {-INFINITY, -INFINITY};
    if (PASS == PASS_QUERIES)
        for (int i = 0; i < 4; i++)
            mine[i / 2][i % 2] = stats_at(a)[i / 2 * stats_of(h.lq) + row + i % 2 * 8];
    float dx[1][D / 8][4] = {}, dv[1][D / 8][4] = {};
    for (int from = all.begin, stage = 0; from < all.end; from += z::COLUMNS, stage ^= 1) {
        const T *tile = stages + stage * z::STAGE;
        device_copied_but<0>();
        __syncthreads();
        if (from + z::COLUMNS < all.end)
            load(from + z::COLUMNS, stages + (stage ^ 1) * z::STAGE);
        device_copy_group();

        float s[1][N][4] = {}, dp[1][N][4] = {};
        back_scores<T, D, DP>(s, dp, room, tile);
        if (TURNED ? hides(see, from, first, 64) : hides(see, first, from, z::COLUMNS))
            hide<TURNED>(s[0], see, row, from + threadIdx.x % 4 * 2);
        if (PASS == PASS_STATS) {
            to_stats(s[0], dp[0], top, mine[0], mine[1], h.scale2);
            continue;
        }
        to_slopes<TURNED>(s[0], dp[0], mine, (const float *)(tile + 2 * z::TILE), h.scale2);
        unsigned weight[1][N / 2][4];
        if (DV && a.dv) {
            to_a<T>(weight[0], s[0]);
            add_product<T, L>(dv, weight, tile + z::TILE, 0);
        }
        if (DX && a.dx) {
            to_a<T>(weight[0], dp[0]);
            add_product<T, L>(dx, weight, tile, 0);
        }
    }
    if (PASS == PASS_STATS)
        back_stats(a, row, top, mine[0], mine[1]);
    if (DX && a.dx)
        back_store<T>(a.dx, dx, row, rows, h.scale, a.add, h);
    if (DV && a.dv)
        back_store<T>(a.dv, dv, row, rows, 1, a.add_v, h);
}

/* ---- plain ----------------------------------------------------------------------------------- */

/* As to_stats, of 4 rows of 64 columns. */
static __device__ __forceinline__ void plain_stats(const float (&s)[4][4], const float (&dp)[4][4],
                                                   float (&top)[4], float (&sum)[4],
                                                   float (&mean)[4], float scale2)
{
    UNROLL
    for (int i = 0; i < 4; i++) {
        float most = row_max(fmaxf(fmaxf(s[i][0], s[i][1]), fmaxf(s[i][2], s[i][3]))) * scale2;
        most = fmaxf(top[i], most);
        float base = base_of(most), shrink = exp2f(top[i] - base), add = 0, add_mean = 0;
        UNROLL
        for (int j = 0; j < 4; j++) {
            float w = exp2f(fmaf(s[i][j], scale2, -base));
            add += w;
            add_mean = fmaf(w, dp[i][j], add_mean);
        }
        sum[i] = fmaf(sum[i], shrink, add);
        mean[i] = fmaf(mean[i], shrink, add_mean);
        top[i] = most;
    }
}

/* As to_slopes, from stats in device memory; rows from `row`, columns from `column` 16 apart. */
template <bool TURNED>
__device__ __forceinline__ void plain_slopes(float (&s)[4][4], float (&dp)[4][4],
                                             const back_args &a, int row, int column)
{
    const float *sums = stats_at(a), *means = sums + stats_of(a.h.lq);
    UNROLL
    for (int i = 0; i < 16; i++) {
        int query = TURNED ? column + 16 * (i % 4) : row + i / 4;
        float &w = s[i / 4][i % 4], &ds = dp[i / 4][i % 4];
        w = exp2f(fmaf(w, a.h.scale2, -sums[query]));
        ds = w * (ds - means[query]);
    }
}

/* Columns 16 apart of a row. */
template <class T, int N>
__device__ __forceinline__ void plain_store(T *to, const float (&d)[N], int column, float scale,
                                            bool add, int columns)
{
    UNROLL
    for (int j = 0; j < N; j++)
        if (column + 16 * j < columns) {
            T *p = to + column + 16 * j;
            *p = from_float<T>(fmaf(d[j], scale, add ? to_float(*p) : 0));
        }
}

/* 16 N channels of the gradient at a time. */
template <class T, int N, int PASS>
__global__ void __launch_bounds__(256, N <= 5 ? 2 : 1)
    plain_back(back_args a, const attention_params *params)
{
    constexpr bool TURNED = PASS >= PASS_KEYS, VALUES = PASS == PASS_VALUES;
    DYNAMIC_SHARED(float, room);
    const attention_heads &h = a.h;
    int rows = TURNED ? h.lk : h.lq, columns = TURNED ? h.lq : h.lk;
    view<T> x = view_of<T>(h, a.x, rows), y = view_of<T>(h, a.y, rows);
    view<T> u = view_of<T>(h, a.u, columns), w = view_of<T>(h, a.w, columns);
    int first = blockIdx.x * 64, tx = threadIdx.x % 16, row = first + threadIdx.x / 16 * 4;
    sight see = sight_of(h, params);
    span all = span_of<TURNED>(h, first, 64);
    T *to = (T *)(VALUES ? a.dv : a.dx) + head_at(h, rows) + (size_t)row * h.heads * h.d;
    for (int column = 0; column < (PASS == PASS_STATS ? 1 : h.d); column += 16 * N) {
        float d[4][N] = {}, top[4], sum[4] = {}, mean[4] = {};
        for (int i = 0; i < 4; i++)
            top[i] = -INFINITY;
        for (int from = all.begin; from < all.end; from += 64) {
            float s[4][4], dp[4][4] = {};
            plain_scores(s, x, first, u, from, h, room);
            if (!VALUES)
                plain_scores(dp, y, first, w, from, h, room);
            if (TURNED ? hides(see, from, first, 64) : hides(see, first, from, 64))
                plain_hide<TURNED>(s, see, row, from + tx);
            if (PASS == PASS_STATS) {
                plain_stats(s, dp, top, sum, mean, h.scale2);
                continue;
            }
            plain_slopes<TURNED>(s, dp, a, row, from + tx);
            plain_share(room, VALUES ? s : dp);
            plain_product(d, VALUES ? w : u, from, column, h, room);
        }
        UNROLL
        for (int i = 0; i < 4; i++) {
            if constexpr (PASS == PASS_STATS) {
                float all_sum = row_sum(sum[i]), all_mean = row_sum(mean[i]);
                if (tx == 0)
                    stats_store(a, row + i, top[i], all_sum, all_mean);
            } else if (row + i < rows) {
                plain_store(to + (size_t)i * h.heads * h.d, d[i], column + tx, VALUES ? 1 : h.scale,
                            VALUES ? a.add_v : a.add, h.d);
            }
        }
    }
}

/* ---- launching ------------------------------------------------------------------------------- */

struct back_call {
    void *d[3];
    const void *q, *k, *v, *dout;
    float *stats;
    int add[3], rows; /* of the batch */
    attention_heads h;
};

static back_args args_of(const back_call &t, bool turned)
{
    back_args a = zeroed<back_args>();
    a.dx = t.d[turned ? 1 : 0];
    a.dv = t.d[2];
    a.x = turned ? t.k : t.q;
    a.y = turned ? t.v : t.dout;
    a.u = turned ? t.q : t.k;
    a.w = turned ? t.dout : t.v;
    a.stats = t.stats;
    a.add = t.add[turned ? 1 : 0];
    a.add_v = t.add[2];
    a.h = t.h;
    return a;
}

static dim3 grid_of(const back_call &t, bool turned)
{
    return dim3(div_up((size_t)(turned ? t.h.lk : t.h.lq), 64), (unsigned)t.h.heads,
                (unsigned)t.rows);
}

template <class T, int D, int PASS>
static int launch_back(struct cuda *c, const back_call &t, const attention_params *p)
{
    typedef back_sizes<D> z;
    return launch(c, back<T, D, PASS>, grid_of(t, PASS >= PASS_KEYS), z::THREADS,
                  z::ROOM * sizeof(T), args_of(t, PASS >= PASS_KEYS), p);
}

template <class T, int N, int PASS>
static int launch_plain(struct cuda *c, const back_call &t, const attention_params *p)
{
    return launch(c, plain_back<T, N, PASS>, grid_of(t, PASS >= PASS_KEYS), PLAIN_THREADS,
                  PLAIN_ROOM * sizeof(float), args_of(t, PASS >= PASS_KEYS), p);
}

template <class T, int D>
static int go_back(struct cuda *c, const back_call &t, const attention_params *p)
{
    int rc = launch_back<T, D, PASS_STATS>(c, t, p);
    if (rc == 0 && t.d[0])
        rc = launch_back<T, D, PASS_QUERIES>(c, t, p);
    if constexpr (D <= 80) {
        if (rc == 0 && (t.d[1] || t.d[2]))
            rc = launch_back<T, D, PASS_KEYS_VALUES>(c, t, p);
    } else { /* both sums are too many registers */
        if (rc == 0 && t.d[1])
            rc = launch_back<T, D, PASS_KEYS>(c, t, p);
        if (rc == 0 && t.d[2])
            rc = launch_back<T, D, PASS_VALUES>(c, t, p);
    }
    return rc;
}

template <class T, int N>
static int go_plain(struct cuda *c, const back_call &t, const attention_params *p)
{
    int rc = launch_plain<T, 1, PASS_STATS>(c, t, p);
    if (rc == 0 && t.d[0])
        rc = launch_plain<T, N, PASS_QUERIES>(c, t, p);
    if (rc == 0 && t.d[1])
        rc = launch_plain<T, N, PASS_KEYS>(c, t, p);
    if (rc == 0 && t.d[2])
        rc = launch_plain<T, N, PASS_VALUES>(c, t, p);
    return rc;
}

template <class T> static int go_any(struct cuda *c, const back_call &t, const attention_params *p)
{
    int d = t.h.d;
    if (d <= 48)
        return go_plain<T, 3>(c, t, p);
    if (d <= 80)
        return go_plain<T, 5>(c, t, p);
    return d <= 160 ? go_plain<T, 10>(c, t, p) : go_plain<T, 32>(c, t, p);
}

template <class T>
static int go_narrow(struct cuda *c, const back_call &t, const attention_params *p)
{
    int d = t.h.d;
    if (!t.h.packs || d > 160)
        return go_any<T>(c, t, p);
    if (d <= 40)
        return go_back<T, 40>(c, t, p);
    if (d <= 64)
        return go_back<T, 64>(c, t, p);
    return d <= 80 ? go_back<T, 80>(c, t, p) : go_back<T, 160>(c, t, p);
}

static int go(struct cuda *c, const void *args, const void *params)
{
    const back_call &t = *(const back_call *)args;
    const attention_params *p = (const attention_params *)params;
    return t.h.type == DT_F16    ? go_narrow<half>(c, t, p)
           : t.h.type == DT_BF16 ? go_narrow<bf16>(c, t, p)
                                 : go_any<float>(c, t, p);
}

extern "C" size_t cuda_attention_back_scratch(struct device *dev, const struct tensor *q,
                                              const struct tensor *k, const struct attention *a)
{
    (void)dev, (void)k;
    return (size_t)q->n * (size_t)a->heads * 2 * (size_t)stats_of(q->h * q->w) * sizeof(float);
}

extern "C" int cuda_attention_back(struct device *dev, struct tensor *const d[3], const bool add[3],
                                   const struct tensor *q, const struct tensor *k,
                                   const struct tensor *v, const struct attention *a,
                                   const struct tensor *dout, void *scratch, struct err *err)
{
    assert(!q->wide && !k->wide && !v->wide && !dout->wide && attention_aligned(scratch));
    if (!d[0] && !d[1] && !d[2])
        return 0;
    back_call t = zeroed<back_call>();
    t.h = attention_heads_of(dev, q, k, a);
    const struct tensor *all[7] = {q, k, v, dout, d[0], d[1], d[2]};
    for (int i = 0; i < 7; i++)
        t.h.packs = t.h.packs && (!all[i] || attention_aligned(all[i]->data));
    for (int i = 0; i < 3; i++)
        if (d[i]) {
            t.d[i] = d[i]->data;
            t.add[i] = add[i];
        }
    t.q = q->data;
    t.k = k->data;
    t.v = v->data;
    t.dout = dout->data;
    t.stats = (float *)scratch;
    t.rows = q->n;
    attention_params p = {a->region};
    return cuda_push(dev, go, &t, sizeof t, a->region ? &p : NULL, a->region ? sizeof p : 0, err);
}
