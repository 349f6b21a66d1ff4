/* Gates (gates.h), forwards: y += h + sum_i gain o sigmoid(z_i) o u_i.
 *
 * A block takes 16 places of one row. u_i = t_i up_i is made twice, by tiles of 32 channels a warp, rather than kept: once for
 * its mean and deviation at each place, once to go through the gate; 2 x 2 rank c operations a place, which are nothing by
 * device_mma, save memory. up is rounded to the type of t on the way, as weights of layers are. Where there are too few
 * places for as many blocks as the chip runs at once, the two are launched apart, and channels are split, too.
 *
 * Sums over channels are put together in an order that depends on their number only.
 */
#include "gates.cuh"

#include <assert.h>

enum {
    WARPS = 5, /* widths of Stable Diffusion are multiples of 5 * COLUMNS */
    THREADS = 32 * WARPS,
    WIDE_THREADS = 512
};

/* ---- what goes in ---------------------------------------------------------------------------- */

/* A block's places. */
template <class T> struct gate_tile {
    matrix<T> h, y;
    matrix<float> gate;
    const T
        *t; /* in shared memory, [PLACES, stride]; stride 0: the tensor itself, [PLACES, ranks] */
    int stride, ranks;
    const gate_head *head;
    size_t row; /* its first, of all rows of channels */
    int place;  /* and in its row of places */
};

/* Words of t for lane (g, q): ranks 4q and three more from k on, of one of an adapter's places. */
template <class T>
__device__ __forceinline__ void t_words(unsigned (&w)[2], const gate_tile<T> &tile,
                                        const gate_item &a, int place, int k)
{
    if (tile.stride) {
        pack<unsigned, 2> two =
            *(const pack<unsigned, 2> *)(tile.t + place * tile.stride + a.staged + k);
        w[0] = two.v[0];
        w[1] = two.v[1];
        return;
    }
    const T *from = tile.t + (size_t)place * tile.ranks + a.at + k;
    int left = place < tile.h.n ? a.width - k : 0;
    for (int i = 0; i < 2; i++)
        w[i] = value_bits(from + 2 * i, 2 * i < left) |
               value_bits(from + 2 * i + 1, 2 * i + 1 < left) << 16;
}

/* What up is multiplied by before it is rounded, and u divided by: small values of float16 have few digits. */
template <class T> static __device__ __forceinline__ float up_scale(void)
{
    return 1;
}
template <> __device__ __forceinline__ float up_scale<half>(void)
{
    return 64;
}

/* u [2][8] of channels from `column` on: lane (g, q) gets those from 8q on, of places g and g + 8. The order of ranks within
 * a product is free: lane q has 4q to 4q + 3 of 16. So is that of its columns: lane g has four side by side of up. */
template <class T>
__device__ __forceinline__ void product(float (&u)[2][8], const gate_tile<T> &tile,
                                        const gate_item &a, int column)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const matrix<float> up(tile.head->up + (size_t)a.at * tile.h.c, a.width, tile.h.c);
    const float scale = up_scale<T>();
    float acc[4][4] = {};
    for (int k = 0; k < a.width; k += 16) {
        unsigned w[2][2];
        float b[4][4];
        UNROLL
        for (int i = 0; i < 4; i++)
            up.four(b[i], k + 4 * q + i, column + 4 * g);
        t_words(w[0], tile, a, g, k + 4 * q);
        t_words(w[1], tile, a, g + 8, k + 4 * q);
        const unsigned left[4] = {w[0][0], w[1][0], w[0][1], w[1][1]};
        UNROLL
        for (int j = 0; j < 4; j++) {
            const unsigned right[2] = {word_of(scale * b[0][j], scale * b[1][j], T()),
                                       word_of(scale * b[2][j], scale * b[3][j], T())};
            device_mma(acc[j], left, right, T());
        }
    }
    UNROLL
    for (int i = 0; i < 16; i++)
        u[i / 8][i % 8] = acc[i % 4][i / 8 * 2 + i % 8 / 4] / scale;
}

static __device__ __forceinline__ void product(float (&u)[2][8], const gate_tile<float> &tile,
                                               const gate_item &a, int column)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const matrix<float> up(tile.head->up + (size_t)a.at * tile.h.c, a.width, tile.h.c);
    int stride = tile.stride ? tile.stride : tile.ranks;
    const float *t = tile.t + (tile.stride ? a.staged : a.at);
    UNROLL
    for (int i = 0; i < 16; i++)
        u[i / 8][i % 8] = 0;
    for (int k = 0; k < a.width; k++) {
        eight<float> b = up.load(k, column + 8 * q);
        UNROLL
        for (int r = 0; r < 2; r++) {
            float v = g + 8 * r < tile.h.n ? t[(size_t)(g + 8 * r) * stride + k] : 0;
            UNROLL
            for (int j = 0; j < 8; j++)
                u[r][j] += v * b.w[j];
        }
    }
}

/* What the i-th adapter adds, or with i -1 h, likewise. */
template <class T>
__device__ __forceinline__ void values_of(float (&v)[2][8], const gate_tile<T> &tile, int i,
                                          int column)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    const gate_item *a = &tile.head->item[i < 0 ? 0 : i];
    if (i >= 0 && a->width) {
        product(v, tile, *a, column);
        return;
    }
    matrix<T> from =
        i < 0 ? tile.h : matrix<T>((const T *)a->u + tile.row * tile.h.c, tile.h.n, tile.h.c);
    floats_of(v[0], from.load(g, column + 8 * q));
    floats_of(v[1], from.load(g + 8, column + 8 * q));
}

/* ---- norms ------------------------------------------------------------------------------------- */

/* Mean and 1 / deviation of what values_of gives, at each place; a whole block's work. room: STRANDS * PLACES. */
template <class T>
__device__ __forceinline__ void norms_of(float2 *to, const gate_tile<T> &tile, int i, moments *room)
{
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32, warps = (int)blockDim.x / 32;
    for (int s = warp; s < STRANDS; s += warps) {
        moments m[2] = {};
        for (int column = s * COLUMNS; column < tile.h.c; column += STRANDS * COLUMNS) {
            float v[2][8];
            int n = tile.h.c - column - lane % 4 * 8;
            values_of(v, tile, i, column);
            m[0].add(v[0], n);
            m[1].add(v[1], n);
        }
        UNROLL
        for (int r = 0; r < 2; r++) {
            m[r].merge(m[r].of_lane(1));
            m[r].merge(m[r].of_lane(2));
            if (lane % 4 == 0)
                room[s * PLACES + lane / 4 + 8 * r] = m[r];
        }
    }
    __syncthreads();
    for (int place = warp; place < PLACES; place += warps) {
        moments m = room[lane * PLACES + place];
        for (int by = 1; by < STRANDS; by *= 2)
            m.merge(m.of_lane(by));
        if (lane == 0)
            to[place] = make_float2(m.mean, 1 / sqrtf(m.m2 / (float)tile.h.c + 1e-5f));
    }
    __syncthreads();
}

/* ---- through the gates ----------------------------------------------------------------------- */

/* bias + time s(t): lane (g, q) makes that of channel 8q + g, of the eight that it takes. */
template <class T>
__device__ __forceinline__ float at_rest(const gate_tile<T> &tile, const float *wave, int column)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4, c = column + 8 * q + g;
    if (c >= tile.gate.c)
        return 0;
    float z = tile.gate.p[(size_t)GATE_BIAS * tile.gate.c + c];
    for (int k = 0; k < GATE_WAVES; k++)
        z += wave[k] * tile.gate.p[(size_t)(GATE_TIME + k) * tile.gate.c + c];
    return z;
}

/* sum += gain o sigmoid(z) o u of one adapter. */
template <class T>
__device__ __forceinline__ void
let_in(float (&sum)[2][8], const gate_tile<T> &tile, const float (&u)[2][8], const eight<T> (&h)[2],
       float rest, const float2 *of_h, const float2 *of_u, const float *words, int column)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    UNROLL
    for (int half = 0; half < 8; half += 4) {
        float bias[4], gain[4], base[4], own[4], cross[4], word[4];
        int at = column + 8 * q + half;
        tile.gate.four(base, GATE_BASE, at);
        tile.gate.four(own, GATE_OWN, at);
        tile.gate.four(cross, GATE_CROSS, at);
        tile.gate.four(gain, GATE_GAIN, at);
        tile.gate.four(word, GATE_WORDS, at);
        UNROLL
        for (int j = 0; j < 4; j++)
            bias[j] = __shfl_sync(0xffffffffu, rest, 4 * (half + j) + q);
        UNROLL
        for (int r = 0; r < 2; r++) {
            float2 nh = of_h[g + 8 * r], nu = of_u[g + 8 * r];
            float w = words[g + 8 * r], v[8];
            floats_of(v, h[r]);
            UNROLL
            for (int j = 0; j < 4; j++) {
                float a = (v[half + j] - nh.x) * nh.y, b = (u[r][half + j] - nu.x) * nu.y;
                float z =
                    bias[j] + word[j] * gate_word(w) + base[j] * a + (own[j] + cross[j] * a) * b;
                if (!gate_shut(w))
                    sum[r][half + j] += gain[j] * element_sigmoid(z) * u[r][half + j];
            }
        }
    }
}

/* y of channels from `column` on. of_h: norms of h, then of each adapter. */
template <class T>
__device__ __forceinline__ void put_columns(const gate_tile<T> &tile, const float *wave,
                                            const float2 *of_h, const float *words, int column)
{
    int g = threadIdx.x % 32 / 4, q = threadIdx.x % 4;
    bool same = tile.y.p == tile.h.p;
    float rest = at_rest(tile, wave, column), sum[2][8] = {};
    eight<T> h[2] = {tile.h.load(g, column + 8 * q), tile.h.load(g + 8, column + 8 * q)};
    for (int i = 0; i < tile.head->n; i++) {
        float u[2][8];
        if (!tile.head->item[i].width && !tile.head->item[i].u)
            continue;
        values_of(u, tile, i, column);
        let_in(sum, tile, u, h, rest, of_h, of_h + (1 + i) * PLACES, words + i * PLACES, column);
    }
    UNROLL
    for (int r = 0; r < 2; r++) {
        float v[8], y[8];
        floats_of(v, h[r]);
        floats_of(y, tile.y.load(g + 8 * r, column + 8 * q));
        UNROLL
        for (int j = 0; j < 8; j++)
            v[j] = same ? v[j] + sum[r][j] : y[j] + v[j] + sum[r][j];
        if (g + 8 * r < tile.y.n)
            eight_store((T *)tile.y.p + (size_t)(g + 8 * r) * tile.y.c + column + 8 * q, v,
                        tile.y.c - column - 8 * q, tile.y.reach);
    }
}

/* ---- blocks ---------------------------------------------------------------------------------- */

/* Shared memory of a block; t stands behind it. */
struct gate_room {
    float2 norm[(1 + GATE_MOST) * PLACES];
    moments strand[STRANDS * PLACES];
    float words[GATE_MOST * PLACES];
};

template <class T>
__device__ __forceinline__ gate_tile<T> tile_of(const gate_args &a, const gate_head *head,
                                                T *staged)
{
    int block = (int)blockIdx.x, row = block / a.across, place = block % a.across * PLACES;
    int n = min(a.places - place, (int)PLACES);
    size_t at = (size_t)row * a.places + place;
    gate_tile<T> tile = {matrix<T>((const T *)head->h + at * a.c, n, a.c),
                         matrix<T>((const T *)head->y + at * a.c, n, a.c),
                         matrix<float>(head->gate, GATE_ROWS, a.c),
                         staged,
                         a.stride,
                         head->ranks,
                         head,
                         at,
                         place};
    if (!a.stride)
        tile.t = (const T *)head->t + at * head->ranks;
    return tile;
}

/* What of t belongs to adapters [first, end), each padded by zeros to whole products, to shared memory. */
template <class T>
__device__ __forceinline__ void stage(T *to, const gate_tile<T> &tile, int first, int end)
{
    const T *t = (const T *)tile.head->t + tile.row * tile.ranks;
    for (int i = first; i < end && tile.stride; i++) {
        const gate_item &a = tile.head->item[i];
        int wide = (a.width + 15) / 16 * 16;
        for (int at = (int)threadIdx.x; at < wide * PLACES; at += (int)blockDim.x) {
            int place = at / wide, k = at % wide;
            to[place * tile.stride + a.staged + k] = place < tile.h.n && k < a.width
                                                         ? t[(size_t)place * tile.ranks + a.at + k]
                                                         : from_float<T>(0);
        }
    }
    __syncthreads();
}

/* Norms alone, to a.norms: of h by blocks (x, 0), of the i-th adapter by (x, 1 + i). */
template <class T>
__global__ void __launch_bounds__(WIDE_THREADS) gate_norms(const gate_args a, const gate_head *head)
{
    DYNAMIC_SHARED(gate_room, room);
    T *t = (T *)(room + 1);
    int i = (int)blockIdx.y - 1;
    if (i >= head->n || (i >= 0 && !head->item[i].width && !head->item[i].u))
        return;
    const gate_tile<T> tile = tile_of<T>(a, head, t);
    stage(t, tile, i < 0 ? 0 : i, i + 1);
    norms_of(room->norm, tile, i, room->strand);
    if (threadIdx.x < PLACES)
        a.norms[((size_t)blockIdx.x * a.items + blockIdx.y) * PLACES + threadIdx.x] =
            room->norm[threadIdx.x];
}

template <class T>
__global__ void __launch_bounds__(THREADS, sizeof(T) == 4 ? 2 : 3)
    let_through(const gate_args a, const gate_head *head)
{
    DYNAMIC_SHARED(gate_room, room);
    T *t = (T *)(room + 1);
    const gate_tile<T> tile = tile_of<T>(a, head, t);
    for (int at = (int)threadIdx.x; at < head->n * PLACES; at += THREADS) {
        const float *words = head->item[at / PLACES].words;
        room->words[at] = words && at % PLACES < tile.h.n ? words[tile.place + at % PLACES] : 0.0f;
    }
    if (a.norms)
        for (int at = (int)threadIdx.x; at < (1 + head->n) * PLACES; at += THREADS)
            room->norm[at] = a.norms[(size_t)blockIdx.x * a.items * PLACES + at];
    stage(t, tile, 0, head->n);
    for (int i = -1; i < head->n && !a.norms; i++)
        if (i < 0 || head->item[i].width || head->item[i].u)
            norms_of(room->norm + (1 + i) * PLACES, tile, i, room->strand);
    const float *wave = (const float *)(head + 1) + (size_t)(blockIdx.x / a.across) * GATE_WAVES;
    int end = min(((int)blockIdx.y + 1) * a.share, a.c);
    int column = (int)blockIdx.y * a.share + (int)threadIdx.x / 32 * COLUMNS;
    for (; column < end; column += WARPS * COLUMNS)
        put_columns(tile, wave, room->norm, room->words, column);
}

/* ---- launching ------------------------------------------------------------------------------- */

static size_t shared_bytes(const gate_args &a)
{
    return sizeof(gate_room) + (size_t)PLACES * (size_t)a.stride * (a.type == DT_F32 ? 4 : 2);
}

template <class T> static int go_as(struct cuda *c, const gate_args &a, const gate_head *head)
{
    size_t bytes = shared_bytes(a);
    unsigned blocks = (unsigned)(a.rows * a.across);
    int rc = a.norms ? launch(c, gate_norms<T>, dim3(blocks, (unsigned)a.items), WIDE_THREADS,
                              bytes, a, head)
                     : 0;
    return rc < 0 ? rc
                  : launch(c, let_through<T>, dim3(blocks, (unsigned)a.splits), THREADS, bytes, a,
                           head);
}

static int go_gate(struct cuda *c, const void *args, const void *params)
{
    const gate_args &a = *(const gate_args *)args;
#define GATE_AS(T) go_as<T>(c, a, (const gate_head *)params)
    return BY_TYPE(a.type, GATE_AS);
#undef GATE_AS
}

/* Where there are few blocks, norms are made apart and channels split. */
static int plan(struct device *dev, gate_args *a, int n, int staged, struct err *err)
{
    static const int strides[3] = {144, 528, 2064}; /* rows begin in banks of their own */
    const struct cuda *c = cuda_of(dev);
    int blocks = a->rows * a->across, most = (int)div_up((size_t)a->c, WARPS * COLUMNS);
    for (int i = 0; i < 3 && !a->stride; i++)
        a->stride = staged <= strides[i] ? strides[i] : 0;
    if (shared_bytes(*a) > (size_t)c->shared_most)
        a->stride = 0;
    a->splits = 1;
    a->share = a->c;
    if (blocks >= c->processors)
        return 0;
    for (a->items = 2; a->items < 1 + n;)
        a->items *= 2;
    size_t bytes = (size_t)blocks * (size_t)a->items * PLACES * sizeof(float2);
    a->norms = (float2 *)cuda_scratch(dev, bytes);
    int wanted = 3 * c->processors / blocks;
    a->share = (int)div_up((size_t)most, (size_t)(wanted < most ? wanted : most)) * WARPS * COLUMNS;
    a->splits = (int)div_up((size_t)a->c, (size_t)a->share);
    return a->norms ? 0 : cuda_short(dev, bytes, err);
}

extern "C" int cuda_gate(struct device *dev, struct tensor *y, const struct tensor *h,
                         const struct gating *in, struct err *err)
{
    gate_call call;
    int rc = 0;
    assert(!y->wide && !h->wide);
    for (int row = 0, n; row < y->n && rc == 0; row += n) {
        gate_args a = zeroed<gate_args>();
        n = call.begin(&a, h, in, row);
        call.head.y = tensor_rows(y, row, n).data;
        rc = plan(dev, &a, in->n, call.staged, err);
        rc = rc < 0 ? rc : cuda_push(dev, go_gate, &a, sizeof a, &call, call.bytes(n), err);
    }
    return rc;
}
