/* Gates (gates.h), backwards, as gate_back.inc has it:
 *
 *     dz_i = dy o gain o u_i o s_i o (1 - s_i)
 *     du_i = dy o gain o s_i + LN'(dz_i o (own + cross o nh))      dt_i = du_i up_i^T
 *     dh += LN'(sum_i dz_i o (base + cross o nu_i))
 *
 * A block takes P places of one row, its threads channels; all in float32, by plain products: this is for learning, where
 * it is beside a layer's own way back. P is 4, so that what is read of up serves as many, or 1 where places are few.
 */
#include "gates.cuh"

#include <assert.h>

enum { WARPS = 8, THREADS = 32 * WARPS, RANKS = 32 /* of t that are in shared memory at a time */ };

/* What a block works with; u, dn [P, c], rest [c]. */
template <class T, int P> struct back {
    const gate_head *head;
    const T *h, *dy;
    int n, c, place; /* n of the P places are there */
    float *u, *dn, *rest, *t, *room;
    float mean_h[P], rstd_h[P], mean_u[P], rstd_u[P];
    float word[P];
};

/* v [M] summed up over the block, the same in all its threads. */
template <int M> __device__ __forceinline__ void sums_of(float (&v)[M], float *room)
{
    int lane = (int)threadIdx.x % 32, warp = (int)threadIdx.x / 32;
    UNROLL
    for (int m = 0; m < M; m++) {
        v[m] = warp_sum(v[m]);
        if (lane == 0)
            room[warp * M + m] = v[m];
    }
    __syncthreads();
    UNROLL
    for (int m = 0; m < M; m++) {
        v[m] = 0;
        for (int k = 0; k < WARPS; k++)
            v[m] += room[k * M + m];
    }
    __syncthreads();
}

/* Mean and 1 / deviation of what get(place, channel) gives. */
template <int P, class G>
__device__ __forceinline__ void norm_of(float (&mean)[P], float (&rstd)[P], int c, float *room,
                                        const G &get)
{
    float sum[P] = {}, square[P] = {};
    for (int i = (int)threadIdx.x; i < c; i += THREADS) {
        UNROLL
        for (int p = 0; p < P; p++)
            sum[p] += get(p, i);
    }
    sums_of(sum, room);
    UNROLL
    for (int p = 0; p < P; p++)
        mean[p] = sum[p] / (float)c;
    for (int i = (int)threadIdx.x; i < c; i += THREADS) {
        UNROLL
        for (int p = 0; p < P; p++) {
            float d = get(p, i) - mean[p];
            square[p] += d * d;
        }
    }
    sums_of(square, room);
    UNROLL
    for (int p = 0; p < P; p++)
        rstd[p] = 1 / sqrtf(square[p] / (float)c + 1e-5f);
}

/* u = t up of one adapter. */
template <class T, int P>
__device__ __forceinline__ void make_u(const back<T, P> &b, const gate_item &a)
{
    const T *t = (const T *)b.head->t + (size_t)b.place * b.head->ranks + a.at;
    const float *up = b.head->up + (size_t)a.at * b.c;
    for (int from = 0; from < a.width; from += RANKS) {
        int n = min(a.width - from, (int)RANKS);
        __syncthreads();
        for (int i = (int)threadIdx.x; i < n * b.n; i += THREADS)
            b.t[i % n * P + i / n] = to_float(t[(size_t)(i / n) * b.head->ranks + from + i % n]);
        __syncthreads();
        for (int i = (int)threadIdx.x; i < b.c; i += THREADS) {
            float sum[P];
            UNROLL
            for (int p = 0; p < P; p++)
                sum[p] = from ? b.u[p * b.c + i] : 0;
            for (int k = 0; k < n; k++) {
                float v = up[(size_t)(from + k) * b.c + i];
                UNROLL
                for (int p = 0; p < P; p++)
                    sum[p] += p < b.n ? b.t[k * P + p] * v : 0;
            }
            UNROLL
            for (int p = 0; p < P; p++)
                b.u[p * b.c + i] = sum[p];
        }
    }
}

/* Of one adapter at one place and channel. */
struct gate_slopes {
    float own, base;  /* of z by n(u), by n(h), times dz */
    float nu, direct; /* n(u); dy o gain o s */
};

template <class T, int P>
__device__ __forceinline__ gate_slopes slopes_of(const back<T, P> &b, int p, int i)
{
    const float *g = b.head->gate + i;
    float nh = (to_float(b.h[(size_t)p * b.c + i]) - b.mean_h[p]) * b.rstd_h[p];
    float u = b.u[p * b.c + i], nu = (u - b.mean_u[p]) * b.rstd_u[p];
    float cross = g[(size_t)GATE_CROSS * b.c], own = g[(size_t)GATE_OWN * b.c] + cross * nh;
    float base = g[(size_t)GATE_BASE * b.c];
    float z = b.rest[i] + g[(size_t)GATE_WORDS * b.c] * gate_word(b.word[p]) + base * nh + own * nu;
    float s = element_sigmoid(z);
    float d =
        gate_shut(b.word[p]) ? 0 : to_float(b.dy[(size_t)p * b.c + i]) * g[(size_t)GATE_GAIN * b.c];
    float dz = d * u * s * (1 - s);
    gate_slopes to = {dz * own, dz * (base + cross * nu), nu, d * s};
    return to;
}

/* dn += what comes back to n(h); u becomes du. */
template <class T, int P> __device__ __forceinline__ void turn_back(const back<T, P> &b)
{
    float sum[2 * P] = {};
    for (int i = (int)threadIdx.x; i < b.c; i += THREADS) {
        UNROLL
        for (int p = 0; p < P; p++)
            if (p < b.n) {
                gate_slopes s = slopes_of(b, p, i);
                sum[2 * p] += s.own;
                sum[2 * p + 1] += s.own * s.nu;
                b.dn[p * b.c + i] += s.base;
            }
    }
    sums_of(sum, b.room);
    for (int i = (int)threadIdx.x; i < b.c; i += THREADS) {
        UNROLL
        for (int p = 0; p < P; p++)
            if (p < b.n) {
                gate_slopes s = slopes_of(b, p, i);
                float mean = (sum[2 * p] + s.nu * sum[2 * p + 1]) / (float)b.c;
                b.u[p * b.c + i] = (s.own - mean) * b.rstd_u[p] + s.direct;
            }
    }
    __syncthreads();
}

/* dt of one adapter: a rank a warp. */
template <class T, int P>
__device__ __forceinline__ void put_dt(const back<T, P> &b, const gate_item &a)
{
    int lane = (int)threadIdx.x % 32;
    T *dt = (T *)b.head->dt + (size_t)b.place * b.head->ranks + a.at;
    for (int k = (int)threadIdx.x / 32; k < a.width; k += WARPS) {
        const float *up = b.head->up + (size_t)(a.at + k) * b.c;
        float sum[P] = {};
        for (int i = lane; i < b.c; i += 32) {
            float v = up[i];
            UNROLL
            for (int p = 0; p < P; p++)
                sum[p] += p < b.n ? b.u[p * b.c + i] * v : 0;
        }
        UNROLL
        for (int p = 0; p < P; p++) {
            sum[p] = warp_sum(sum[p]);
            if (lane == 0 && p < b.n)
                dt[(size_t)p * b.head->ranks + k] = from_float<T>(sum[p]);
        }
    }
}

/* dh += what comes back to it, through its norm. */
template <class T, int P> __device__ __forceinline__ void put_dh(const back<T, P> &b)
{
    T *dh = (T *)b.head->dh + (size_t)b.place * b.c;
    float sum[2 * P] = {};
    for (int i = (int)threadIdx.x; i < b.c; i += THREADS) {
        UNROLL
        for (int p = 0; p < P; p++)
            if (p < b.n) {
                float dn = b.dn[p * b.c + i], h = to_float(b.h[(size_t)p * b.c + i]);
                sum[2 * p] += dn;
                sum[2 * p + 1] += dn * (h - b.mean_h[p]) * b.rstd_h[p];
            }
    }
    sums_of(sum, b.room);
    for (int i = (int)threadIdx.x; i < b.c; i += THREADS) {
        UNROLL
        for (int p = 0; p < P; p++)
            if (p < b.n) {
                float nh = (to_float(b.h[(size_t)p * b.c + i]) - b.mean_h[p]) * b.rstd_h[p];
                float mean = (sum[2 * p] + nh * sum[2 * p + 1]) / (float)b.c;
                T *to = dh + (size_t)p * b.c + i;
                *to = from_float<T>(to_float(*to) + (b.dn[p * b.c + i] - mean) * b.rstd_h[p]);
            }
    }
}

/* Floats that a block needs for its channels. */
template <int P> static __host__ __device__ __forceinline__ size_t room_of(int c)
{
    return (size_t)(2 * P + 1) * (size_t)c;
}

template <class T, int P>
__global__ void __launch_bounds__(THREADS, 2) gates_back(const gate_args a, const gate_head *head)
{
    DYNAMIC_SHARED(float, shared);
    int row = (int)blockIdx.x / a.across, first = (int)blockIdx.x % a.across * P;
    const float *wave = (const float *)(head + 1) + (size_t)row * GATE_WAVES;
    back<T, P> b;
    b.head = head;
    b.c = a.c;
    b.n = min(a.places - first, (int)P);
    b.place = row * a.places + first;
    b.h = (const T *)head->h + (size_t)b.place * a.c;
    b.dy = (const T *)head->dy + (size_t)b.place * a.c;
    b.t = shared;
    b.room = b.t + RANKS * P;
    b.u = a.room ? a.room + blockIdx.x * room_of<P>(a.c) : b.room + 2 * P * WARPS;
    b.dn = b.u + (size_t)P * a.c;
    b.rest = b.dn + (size_t)P * a.c;
    for (int i = (int)threadIdx.x; i < a.c; i += THREADS) {
        float z = head->gate[(size_t)GATE_BIAS * a.c + i];
        for (int k = 0; k < GATE_WAVES; k++)
            z += wave[k] * head->gate[(size_t)(GATE_TIME + k) * a.c + i];
        b.rest[i] = z;
        for (int p = 0; p < P; p++)
            b.dn[(size_t)p * a.c + i] = 0;
    }
    norm_of(b.mean_h, b.rstd_h, a.c, b.room,
            [&](int p, int i) { return p < b.n ? to_float(b.h[(size_t)p * a.c + i]) : 0; });
    for (int i = 0; i < head->n; i++) {
        const gate_item &item = head->item[i];
        if (!item.width)
            continue;
        UNROLL
        for (int p = 0; p < P; p++)
            b.word[p] = item.words && p < b.n ? item.words[first + p] : 0;
        make_u(b, item);
        norm_of(b.mean_u, b.rstd_u, a.c, b.room, [&](int p, int k) { return b.u[p * a.c + k]; });
        turn_back(b);
        put_dt(b, item);
    }
    put_dh(b);
}

template <class T, int P>
static int go_as(struct cuda *c, const gate_args &a, const gate_head *head)
{
    size_t floats = RANKS * P + 2 * P * WARPS + (a.room ? 0 : room_of<P>(a.c));
    return launch(c, gates_back<T, P>, (unsigned)(a.rows * a.across), THREADS,
                  floats * sizeof(float), a, head);
}

static int go_gate_back(struct cuda *c, const void *args, const void *params)
{
    const gate_args &a = *(const gate_args *)args;
#define BACK_AS(T)                                                                                 \
    (a.items == 4 ? go_as<T, 4>(c, a, (const gate_head *)params)                                   \
                  : go_as<T, 1>(c, a, (const gate_head *)params))
    return BY_TYPE(a.type, BACK_AS);
#undef BACK_AS
}

extern "C" int cuda_gate_back(struct device *dev, struct tensor *dh, struct tensor *dt,
                              const struct tensor *h, const struct gating *in,
                              const struct tensor *dy, struct err *err)
{
    const struct cuda *c = cuda_of(dev);
    gate_call call;
    int rc = 0;
    assert(!dh->wide && !dt->wide && !h->wide && !dy->wide && in->t);
    for (int row = 0, n; row < h->n && rc == 0; row += n) {
        gate_args a = zeroed<gate_args>();
        n = call.begin(&a, h, in, row);
        call.head.dy = tensor_rows(dy, row, n).data;
        call.head.dh = tensor_rows(dh, row, n).data;
        call.head.dt = tensor_rows(dt, row, n).data;
        bool many = (size_t)n * (size_t)a.places >= 8 * (size_t)c->processors &&
                    room_of<4>(a.c) * sizeof(float) <= 64 * 1024;
        a.items = many ? 4 : 1;
        a.across = (int)div_up((size_t)a.places, (size_t)a.items);
        size_t bytes = room_of<1>(a.c) * sizeof(float), blocks = (size_t)n * (size_t)a.across;
        if (!many && bytes + 1024 > (size_t)c->shared_most) {
            a.room = (float *)cuda_scratch(dev, blocks * bytes);
            if (!a.room)
                return cuda_short(dev, blocks * bytes, err);
        }
        rc = cuda_push(dev, go_gate_back, &a, sizeof a, &call, call.bytes(n), err);
    }
    return rc;
}
