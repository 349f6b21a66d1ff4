/* adapters.cuh: what chains, gates and adapters.cu share: values of rows at any address, shares and routes of ranks. */
#ifndef WEFT_CUDA_ADAPTERS_CUH
#define WEFT_CUDA_ADAPTERS_CUH

#include "kernel.cuh"

/* Loops over what is in registers; loops that need no more of them. */
#ifdef __CUDACC__
#define UNROLL    _Pragma("unroll")
#define NO_UNROLL _Pragma("unroll 1")
#else
#define UNROLL
#define NO_UNROLL
#endif

/* ---- eight values side by side ----------------------------------------------------------------- */

/* Those of 16 bits as four words, of which fragments of tiles are made; the first is the lower half of the first. */
template <class T> struct eight {
    typedef unsigned word;
    word w[4];
};
template <> struct eight<float> {
    typedef float word;
    word w[8];
};

/* Bytes in which rows of c values can be read from p on: 16, 8, or 0: one value at a time. */
template <class T> __device__ __forceinline__ int reach_of(const T *p, int c)
{
    size_t bits = (size_t)p | (size_t)c * sizeof(T);
    return bits % 16 == 0 ? 16 : bits % 8 == 0 ? 8 : 0;
}

static __device__ __forceinline__ unsigned value_bits(const void *p, bool there)
{
    return there ? *(const unsigned short *)p : 0u;
}

/* Those from p on, of which `left` are there; zeros beyond. By a reach of REACH. */
template <int REACH, class T>
__device__ __forceinline__ void eight_by(eight<T> &to, const T *p, int left)
{
    constexpr int N = REACH ? REACH / 4 : 1; /* words */
    UNROLL
    for (int i = 0; i < 4; i += N)
        if (REACH) {
            pack<unsigned, N> some = {};
            if (2 * i < left)
                some = *(const pack<unsigned, N> *)(p + 2 * i);
            UNROLL
            for (int j = 0; j < N; j++)
                to.w[i + j] = some.v[j];
        } else {
            to.w[i] = value_bits(p + 2 * i, 2 * i < left) |
                      value_bits(p + 2 * i + 1, 2 * i + 1 < left) << 16;
        }
}
template <int REACH>
__device__ __forceinline__ void eight_by(eight<float> &to, const float *p, int left)
{
    constexpr int N = REACH ? REACH / 4 : 1;
    UNROLL
    for (int i = 0; i < 8; i += N) {
        pack<float, N> some = {};
        if (i < left)
            some = *(const pack<float, N> *)(p + i);
        UNROLL
        for (int j = 0; j < N; j++)
            to.w[i + j] = some.v[j];
    }
}

static __device__ __forceinline__ float2 two_of(unsigned w, half)
{
    __half2 two;
    memcpy(&two, &w, sizeof two);
    return make_float2(__low2float(two), __high2float(two));
}
static __device__ __forceinline__ float2 two_of(unsigned w, bf16)
{
    __nv_bfloat162 two;
    memcpy(&two, &w, sizeof two);
    return make_float2(__low2float(two), __high2float(two));
}
static __device__ __forceinline__ unsigned word_of(float low, float high, half)
{
    unsigned w;
    __half2 two = __floats2half2_rn(low, high);
    memcpy(&w, &two, sizeof w);
    return w;
}
static __device__ __forceinline__ unsigned word_of(float low, float high, bf16)
{
    unsigned w;
    __nv_bfloat162 two = __floats2bfloat162_rn(low, high);
    memcpy(&w, &two, sizeof w);
    return w;
}

template <class T> __device__ __forceinline__ void floats_of(float (&v)[8], const eight<T> &from)
{
    UNROLL
    for (int i = 0; i < 4; i++) {
        float2 two = two_of(from.w[i], T());
        v[2 * i] = two.x;
        v[2 * i + 1] = two.y;
    }
}
static __device__ __forceinline__ void floats_of(float (&v)[8], const eight<float> &from)
{
    UNROLL
    for (int i = 0; i < 8; i++)
        v[i] = from.w[i];
}

template <class T> __device__ __forceinline__ eight<T> eight_of(const float (&v)[8])
{
    eight<T> to;
    UNROLL
    for (int i = 0; i < 4; i++)
        to.w[i] = word_of(v[2 * i], v[2 * i + 1], T());
    return to;
}
template <> __device__ __forceinline__ eight<float> eight_of<float>(const float (&v)[8])
{
    eight<float> to;
    UNROLL
    for (int i = 0; i < 8; i++)
        to.w[i] = v[i];
    return to;
}

/* To p on, as many as are `left` there. */
template <class T>
__device__ __forceinline__ void eight_store(T *p, const float (&v)[8], int left, int reach)
{
    typedef pack<typename eight<T>::word, 4> four;
    constexpr int N = 16 / sizeof(T);
    if (reach == 16) {
        eight<T> all = eight_of<T>(v);
        UNROLL
        for (int i = 0; i < 8; i += N) {
            four some;
            UNROLL
            for (int j = 0; j < 4; j++)
                some.v[j] = all.w[i / N * 4 + j];
            if (i < left)
                *(four *)(p + i) = some;
        }
    } else {
        UNROLL
        for (int i = 0; i < 8; i++)
            if (i < left)
                p[i] = from_float<T>(v[i]);
    }
}

/* n rows of c values, one behind another, fewer than 2^31. */
template <class T> struct matrix {
    const T *p;
    int n, c, reach;

    __device__ matrix(const T *p_, int n_, int c_) : p(p_), n(n_), c(c_), reach(reach_of(p_, c_))
    {
    }

    /* Eight from column k of a row on; zeros where there is no such row or column. REACH is at most its own. */
    template <int REACH> __device__ __forceinline__ eight<T> by(int row, int k) const
    {
        eight<T> to;
        eight_by<REACH>(to, p + (row * c + k), row < n ? c - k : 0);
        return to;
    }
    __device__ __forceinline__ eight<T> load(int row, int k) const
    {
        return reach == 16 ? by<16>(row, k) : by<0>(row, k);
    }
    /* Four of float32 likewise. */
    __device__ __forceinline__ void four(float (&v)[4], int row, int k) const
    {
        const T *from = p + (row * c + k);
        int left = row < n ? c - k : 0;
        pack<float, 4> some = {};
        if (reach == 16) {
            if (left > 0)
                some = *(const pack<float, 4> *)from;
        } else {
            UNROLL
            for (int i = 0; i < 4; i++)
                some.v[i] = i < left ? from[i] : 0;
        }
        UNROLL
        for (int i = 0; i < 4; i++)
            v[i] = some.v[i];
    }
};

/* ---- shares ------------------------------------------------------------------------------------ */

/* struct share on the device, for channels up to `end` from where the one before it ends. */
struct part {
    const float *at;
    float s, bias, words;
    int gate, end, pad;
};

/* Fills n parts of shares side by side, and zeros up to `room`. */
static inline void parts_fill(part *to, const struct share *from, int n, int room)
{
    memset((void *)to, 0, (size_t)room * sizeof *to);
    for (int k = 0, end = 0; k < n; k++) {
        end += from[k].width;
        to[k].at = from[k].at;
        to[k].s = from[k].s;
        to[k].bias = from[k].bias;
        to[k].words = from[k].words;
        to[k].gate = from[k].gate;
        to[k].end = end;
    }
}

/* Parameters take as many bytes for each of these numbers of parts, so that a list stays the same list. */
static inline int parts_class(int n)
{
    return n <= 1 ? n : n <= 32 ? 32 : n <= 256 ? 256 : 2000;
}

static __device__ __forceinline__ float share_at(const part &p, int place)
{
    float at = p.at ? p.at[place] : p.gate ? 0.0f : 1.0f;
    return element_share(p.s, p.gate, p.bias, p.words, at);
}

/* ---- routes ------------------------------------------------------------------------------------ */

/* struct route for a number of pieces. */
struct routing {
    float tau, least;
    int keep; /* 0: none */
};

static inline routing routing_of(const struct route *how, int pieces)
{
    routing r = {1, 0, 0};
    if (how && how->keep > 0) {
        r.tau = how->tau;
        r.least = how->least;
        r.keep = (int)ceilf(how->keep * (float)pieces);
    }
    return r;
}

static __device__ __forceinline__ unsigned bits_of(float v)
{
    unsigned u;
    memcpy(&u, &v, sizeof u);
    return u;
}

/* The k-th largest of n sizes |v|, as bits, whose order is the same: bit by bit, the largest number that k of them reach;
 * or any that just k of them do. */
template <class T>
__device__ __forceinline__ unsigned kth_largest(const T *v, int n, int k, int lane)
{
    unsigned found = 0;
    for (int bit = 30; bit >= 0; bit--) {
        unsigned wanted = found | 1u << bit;
        float count = 0;
        for (int i = lane; i < n; i += 32)
            count += bits_of(fabsf(to_float(v[i]))) >= wanted ? 1.0f : 0.0f;
        count = warp_sum(count);
        if (count >= (float)k)
            found = wanted;
        if (count == (float)k)
            break;
    }
    return found;
}

/* One place's n pieces by how much each counts (route.h); a warp's work. */
template <class T>
__device__ __forceinline__ void route_row(T *v, int n, const routing &how, int lane)
{
    float most = 0, sum = 0;
    for (int i = lane; i < n; i += 32)
        most = fmaxf(most, fabsf(to_float(v[i])));
    most = warp_max(most);
    if (most == 0)
        return;
    for (int i = lane; i < n; i += 32) {
        float z = to_float(v[i]) / most;
        sum += z * z;
    }
    float norm = most * sqrtf(warp_sum(sum));
    unsigned edge = how.keep < n ? kth_largest(v, n, how.keep, lane) : 0;
    for (int i = lane; i < n; i += 32) {
        float x = to_float(v[i]);
        bool in = bits_of(fabsf(x)) >= edge;
        v[i] = from_float<T>(in ? x * element_route(x, most, norm, how.tau, how.least) : 0.0f);
    }
}

#endif
