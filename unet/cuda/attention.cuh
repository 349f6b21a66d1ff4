/* attention.cuh: what attention and its gradients share: which keys a query sees, tiles of rows in shared memory, products of
 * tiles. Weights are powers of two: exp(s scale) = exp2(s scale2). A block has 64 or 128 queries or keys of a head of a row
 * of the batch: its number in the grid is (tile, head, row).
 */
#ifndef WEFT_CUDA_ATTENTION_CUH
#define WEFT_CUDA_ATTENTION_CUH

#include "kernel.cuh"

/* Loops over what is in registers. */
#ifdef __CUDACC__
#define UNROLL _Pragma("unroll")
#else
#define UNROLL
#endif

/* What a call is about; in args. */
struct attention_heads {
    int heads, d, lq, lk; /* d: channels a head */
    int causal, regions;  /* flags */
    int packs;            /* a head's rows begin at, and are, whole packs of 16 bytes */
    int type;
    float scale, scale2; /* 1 / sqrt(d), and that times log2(e) */
};

struct attention_params {
    const unsigned *region;
};

static inline attention_heads attention_heads_of(struct device *dev, const struct tensor *q,
                                                 const struct tensor *k, const struct attention *a)
{
    attention_heads h = zeroed<attention_heads>();
    h.heads = a->heads;
    h.d = q->c / a->heads;
    h.lq = q->h * q->w;
    h.lk = k->h * k->w;
    h.causal = a->causal;
    h.regions = a->region != NULL;
    h.type = cuda_of(dev)->type;
    h.scale = (float)(1 / sqrt((double)h.d));
    h.scale2 = (float)(1.4426950408889634 / sqrt((double)h.d));
    h.packs = h.d * (h.type == DT_F32 ? 4 : 2) % 16 == 0;
    return h;
}

static inline bool attention_aligned(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

/* The block's head of a tensor: rows of h.heads * h.d values apart. */
template <class T> struct view {
    const T *at;
    int rows;
};

static __device__ __forceinline__ size_t head_at(const attention_heads &h, int rows)
{
    return ((size_t)blockIdx.z * rows * h.heads + blockIdx.y) * h.d;
}

template <class T>
__device__ __forceinline__ view<T> view_of(const attention_heads &h, const void *p, int rows)
{
    return {(const T *)p + head_at(h, rows), rows};
}

/* ---- masks ----------------------------------------------------------------------------------- */

struct sight {
    const unsigned *region; /* NULL: none */
    int causal, lq, lk;
};

static __device__ __forceinline__ sight sight_of(const attention_heads &h,
                                                 const attention_params *p)
{
    return {h.regions ? p->region : NULL, h.causal, h.lq, h.lk};
}

static __device__ __forceinline__ unsigned region_of(const sight &w, int place, int places)
{
    return w.region && place < places ? w.region[place] : 0;
}

/* in_query, in_key: their regions. */
static __device__ __forceinline__ bool is_seen(const sight &w, int query, int key,
                                               unsigned in_query, unsigned in_key)
{
    return key < w.lk && (!w.causal || key <= query) && !element_hidden(in_query, in_key);
}

/* Whether some of `keys` keys are hidden from some queries, both from these on. */
static __device__ __forceinline__ bool hides(const sight &w, int query, int key, int keys)
{
    return w.region || key + keys > w.lk || (w.causal && key + keys - 1 > query);
}

/* What is hidden becomes -infinity. Scores as device_mma has them, of rows `row` and row + 8 with columns 8 apart from
 * `column` on; TURNED: rows are keys. */
template <bool TURNED, int N>
__device__ __forceinline__ void hide(float (&s)[N][4], const sight &w, int row, int column)
{
    int rows = TURNED ? w.lk : w.lq, columns = TURNED ? w.lq : w.lk;
    unsigned in[2] = {region_of(w, row, rows), region_of(w, row + 8, rows)};
    UNROLL
    for (int i = 0; i < 2 * N; i++) {
        int at = column + i / 2 * 8 + i % 2;
        unsigned there = region_of(w, at, columns);
        UNROLL
        for (int half = 0; half < 2; half++) {
            int mine = row + 8 * half;
            if (!is_seen(w, TURNED ? at : mine, TURNED ? mine : at, in[half], there))
                s[i / 2][2 * half + i % 2] = -INFINITY;
        }
    }
}

/* Of the four lanes that share a row of device_mma's result. */
static __device__ __forceinline__ float quad_max(float v)
{
    v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 1));
    return fmaxf(v, __shfl_xor_sync(0xffffffffu, v, 2));
}
static __device__ __forceinline__ float quad_sum(float v)
{
    v += __shfl_xor_sync(0xffffffffu, v, 1);
    return v + __shfl_xor_sync(0xffffffffu, v, 2);
}

/* Exponents are taken less the largest so far; while there is none, less 0. */
static __device__ __forceinline__ float base_of(float top)
{
    return top == -INFINITY ? 0 : top;
}

/* ---- tiles of 16-bit values, products by device_mma ------------------------------------------ */

/* Where a pack of 8 values of a row is; 8 rows' packs, as device_ldmatrix takes them, are in different banks: with an odd
 * number of packs a row, or where packs of a row change places by its number. */
template <int STRIDE> struct padded {
    static __device__ __forceinline__ int at(int row, int p)
    {
        return row * STRIDE + 8 * p;
    }
};
struct swizzled { /* rows of 64 values */
    static __device__ __forceinline__ int at(int row, int p)
    {
        return row * 64 + ((p ^ row % 8) * 8);
    }
};

/* Rows [first, first + ROWS), 8 PACKS columns from `column` on, zeros where there are none. By all threads of the block;
 * h.packs. */
template <class T, class L, int ROWS, int PACKS, int THREADS>
__device__ __forceinline__ void load_rows(T *to, const view<T> &from, const attention_heads &h,
                                          int first, int column)
{
    const T *tile = from.at + (size_t)first * h.heads * h.d + column;
    int rows = from.rows - first, columns = h.d - column, c = h.heads * h.d;
    UNROLL
    for (int k = 0; k < (ROWS * PACKS + THREADS - 1) / THREADS; k++) {
        int i = k * THREADS + (int)threadIdx.x, row = i / PACKS, in = i % PACKS * 8;
        if (ROWS * PACKS % THREADS && i >= ROWS * PACKS)
            break;
        bool there = row < rows && in < columns;
        device_copy16(to + L::at(row, in / 8), there ? tile + row * c + in : from.at, there);
    }
}

/* Two values in a word, the first in the lower half. */
template <class T> __device__ __forceinline__ unsigned word_of(float low, float high);
template <> __device__ __forceinline__ unsigned word_of<half>(float low, float high)
{
    __half2 v = __floats2half2_rn(low, high);
    unsigned u;
    memcpy(&u, &v, sizeof u);
    return u;
}
template <> __device__ __forceinline__ unsigned word_of<bf16>(float low, float high)
{
    __nv_bfloat162 v = __floats2bfloat162_rn(low, high);
    unsigned u;
    memcpy(&u, &v, sizeof u);
    return u;
}

/* A [16, 16]: rows from `row`, columns from 8 p of a tile. */
template <class T, class L>
__device__ __forceinline__ void load_a(unsigned (&a)[4], const T *tile, int row, int p)
{
    int lane = threadIdx.x % 32;
    device_ldmatrix(a, tile + L::at(row + lane % 16, p + lane / 16));
}

/* s[m] += a[m] bᵀ: b [8 N, 16], rows from `row`, columns from 8 p of a tile. */
template <class T, class L, int M, int N>
__device__ __forceinline__ void add_turned(float (&s)[M][N][4], const unsigned (&a)[M][4],
                                           const T *tile, int row, int p)
{
    static_assert(N % 2 == 0, "rows in sixteens");
    int lane = threadIdx.x % 32;
    UNROLL
    for (int j = 0; j < N / 2; j++) {
        unsigned r[4];
        device_ldmatrix(r, tile + L::at(row + 16 * j + lane / 16 * 8 + lane % 8, p + lane / 8 % 2));
        const unsigned low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
        UNROLL
        for (int m = 0; m < M; m++) {
            device_mma(s[m][2 * j], a[m], low, T());
            device_mma(s[m][2 * j + 1], a[m], high, T());
        }
    }
}

/* o[m] += w[m] b: w [16, 16 K], b [16 K, 8 N], all rows, columns from 8 p of a tile. */
template <class T, class L, int M, int N, int K>
__device__ __forceinline__ void add_product(float (&o)[M][N][4], const unsigned (&w)[M][K][4],
                                            const T *tile, int p)
{
    static_assert(K % 2 == 0, "rows in thirty-twos");
    int lane = threadIdx.x % 32;
    UNROLL
    for (int k = 0; k < K; k += 2)
        UNROLL
    for (int j = 0; j < N; j++) {
        unsigned r[4];
        device_ldmatrix_turned(r, tile + L::at(16 * k + lane, p + j));
        const unsigned low[2] = {r[0], r[1]}, high[2] = {r[2], r[3]};
        UNROLL
        for (int m = 0; m < M; m++) {
            device_mma(o[m][j], w[m][k], low, T());
            device_mma(o[m][j], w[m][k + 1], high, T());
        }
    }
}

/* Results of a product as the A of the next. */
template <class T, int N>
__device__ __forceinline__ void to_a(unsigned (&w)[N / 2][4], const float (&s)[N][4])
{
    UNROLL
    for (int i = 0; i < 2 * N; i++)
        w[i / 4][i % 4] = word_of<T>(s[i / 2][i % 2 * 2], s[i / 2][i % 2 * 2 + 1]);
}

/* Two columns of a head's row, if it has them; `add`: to what is there. */
template <class T>
__device__ __forceinline__ void store_two(T *row, int column, float v0, float v1, bool add, int d)
{
    if (column >= d)
        return;
    pack<T, 2> *to = (pack<T, 2> *)(row + column);
    if (add)
        v0 += to_float(to->v[0]), v1 += to_float(to->v[1]);
    *to = {{from_float<T>(v0), from_float<T>(v1)}};
}

/* ---- tiles of float32, for all types and heads of any width ----------------------------------- */

/* A block of 256 threads has 64 rows; with 64 columns, thread (x, y) of [16, 16] has rows 4 y + i and columns x + 16 j. */
enum {
    PLAIN_ROWS = 64,
    PLAIN_THREADS = 256,
    PLAIN_CHUNK = 32,      /* channels at a time */
    PLAIN_STRIDE = 32 + 4, /* of rows of them */
    PLAIN_WEIGHTS = 64 + 4 /* of rows of weights */
};
/* Floats of shared memory: two chunks, or rows to be summed up; weights. */
enum { PLAIN_TILE = 2 * PLAIN_ROWS * PLAIN_STRIDE, PLAIN_ROOM = PLAIN_TILE + 64 * PLAIN_WEIGHTS };

template <class T, int ROWS, int WIDTH, int STRIDE>
__device__ __forceinline__ void plain_load(float *to, const view<T> &from, const attention_heads &h,
                                           int first, int column)
{
    for (int i = (int)threadIdx.x; i < ROWS * WIDTH / 4; i += PLAIN_THREADS) {
        int row = i / (WIDTH / 4), at = i % (WIDTH / 4) * 4, left = h.d - column - at;
        pack<float, 4> v = {{0, 0, 0, 0}};
        if (first + row < from.rows && left > 0) {
            const T *p = from.at + (size_t)(first + row) * h.heads * h.d + column + at;
            pack<T, 4> t;
            if (h.packs)
                t = *(const pack<T, 4> *)p;
            for (int e = 0; e < 4; e++)
                v.v[e] = h.packs ? to_float(t.v[e]) : e < left ? to_float(p[e]) : 0;
        }
        *(pack<float, 4> *)(to + row * STRIDE + at) = v;
    }
}

/* s = x yᵀ, 64 rows of each. */
template <class T>
__device__ __forceinline__ void plain_scores(float (&s)[4][4], const view<T> &x, int x_first,
                                             const view<T> &y, int y_first,
                                             const attention_heads &h, float *room)
{
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    float *px = room, *py = room + PLAIN_ROWS * PLAIN_STRIDE;
    for (int i = 0; i < 16; i++)
        s[i / 4][i % 4] = 0;
    for (int first = 0; first < h.d; first += PLAIN_CHUNK) {
        __syncthreads();
        plain_load<T, PLAIN_ROWS, PLAIN_CHUNK, PLAIN_STRIDE>(px, x, h, x_first, first);
        plain_load<T, PLAIN_ROWS, PLAIN_CHUNK, PLAIN_STRIDE>(py, y, h, y_first, first);
        __syncthreads();
        for (int e = 0; e < PLAIN_CHUNK; e += 4) {
            pack<float, 4> vx[4], vy[4];
            UNROLL
            for (int i = 0; i < 4; i++) {
                vx[i] = *(const pack<float, 4> *)(px + (4 * ty + i) * PLAIN_STRIDE + e);
                vy[i] = *(const pack<float, 4> *)(py + (tx + 16 * i) * PLAIN_STRIDE + e);
            }
            UNROLL
            for (int i = 0; i < 64; i++)
                s[i / 16][i / 4 % 4] =
                    fmaf(vx[i / 16].v[i % 4], vy[i / 4 % 4].v[i % 4], s[i / 16][i / 4 % 4]);
        }
    }
}

template <bool TURNED>
__device__ __forceinline__ void plain_hide(float (&s)[4][4], const sight &w, int row, int column)
{
    int rows = TURNED ? w.lk : w.lq, columns = TURNED ? w.lq : w.lk;
    UNROLL
    for (int i = 0; i < 16; i++) {
        int r = row + i / 4, c = column + 16 * (i % 4);
        if (!is_seen(w, TURNED ? c : r, TURNED ? r : c, region_of(w, r, rows),
                     region_of(w, c, columns)))
            s[i / 4][i % 4] = -INFINITY;
    }
}

/* Weights of all threads side by side, to be read after the next barrier. */
static __device__ __forceinline__ void plain_share(float *room, const float (&s)[4][4])
{
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    UNROLL
    for (int i = 0; i < 16; i++)
        room[PLAIN_TILE + (4 * ty + i / 4) * PLAIN_WEIGHTS + tx + i % 4 * 16] = s[i / 4][i % 4];
}

/* o += weights y: rows 4 y + i, columns x + 16 j of the 16 N from `column` on; 64 rows of y. */
template <class T, int N>
__device__ __forceinline__ void plain_product(float (&o)[4][N], const view<T> &y, int first,
                                              int column, const attention_heads &h, float *room)
{
    constexpr int ROWS = N <= 4 ? 64 : N <= 9 ? 32 : N <= 18 ? 16 : 8;
    static_assert(ROWS * 16 * N <= PLAIN_TILE, "within the room");
    int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    const float *w = room + PLAIN_TILE + 4 * ty * PLAIN_WEIGHTS;
    for (int part = 0; part < 64; part += ROWS) {
        __syncthreads();
        plain_load<T, ROWS, 16 * N, 16 * N>(room, y, h, first + part, column);
        __syncthreads();
        for (int k = 0; k < ROWS; k += 4) {
            pack<float, 4> v[4];
            UNROLL
            for (int i = 0; i < 4; i++)
                v[i] = *(const pack<float, 4> *)(w + i * PLAIN_WEIGHTS + part + k);
            UNROLL
            for (int j = 0; j < 4 * N; j++) {
                float b = room[(k + j % 4) * 16 * N + tx + j / 4 * 16];
                UNROLL
                for (int i = 0; i < 4; i++)
                    o[i][j / 4] = fmaf(v[i].v[j % 4], b, o[i][j / 4]);
            }
        }
    }
}

/* Of the sixteen lanes that share rows. */
static __device__ __forceinline__ float row_max(float v)
{
    for (int step = 8; step; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}
static __device__ __forceinline__ float row_sum(float v)
{
    for (int step = 8; step; step /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

#endif
