/* packs.cuh: values of tensors in packs of up to 16 bytes, and commands whose threads each make a pack of a result. */
#ifndef WEFT_CUDA_PACKS_CUH
#define WEFT_CUDA_PACKS_CUH

#include "kernel.cuh"

#include <stdint.h>

/* How many values of a type are 16 bytes. */
template <class T> constexpr int pack_of = 16 / sizeof(T);

static inline bool in_packs(const void *p)
{
    return (uintptr_t)p % 16 == 0;
}

template <class T, int N>
__device__ __forceinline__ void pack_floats(float (&v)[N], const pack<T, N> &from)
{
    for (int i = 0; i < N; i++)
        v[i] = to_float(from.v[i]);
}

/* N values from p on, which is a multiple of 16 bytes, or of theirs where they are fewer. */
template <class T, int N> __device__ __forceinline__ void pack_load(float (&v)[N], const T *p)
{
    constexpr int M = N < pack_of<T> ? N : pack_of<T>;
    for (int k = 0; k < N; k += M) {
        pack<T, M> from = *(const pack<T, M> *)(p + k);
        for (int i = 0; i < M; i++)
            v[k + i] = to_float(from.v[i]);
    }
}

template <class T, int N> __device__ __forceinline__ void pack_store(T *p, const float (&v)[N])
{
    constexpr int M = N < pack_of<T> ? N : pack_of<T>;
    for (int k = 0; k < N; k += M) {
        pack<T, M> to;
        for (int i = 0; i < M; i++)
            to.v[i] = from_float<T>(v[k + i]);
        *(pack<T, M> *)(p + k) = to;
    }
}

/* p becomes v, or larger by it. */
template <class T, int N>
__device__ __forceinline__ void pack_put(T *p, const float (&v)[N], bool add)
{
    float sum[N] = {};
    if (add)
        pack_load(sum, (const T *)p);
    for (int i = 0; i < N; i++)
        sum[i] += v[i];
    pack_store(p, sum);
}

template <int N, class T> __device__ __forceinline__ void pack_copy(T *to, const T *from)
{
    *(pack<T, N> *)to = *(const pack<T, N> *)from;
}

/* The activations that most values go through are told apart once a pack. */
template <int N> __device__ __forceinline__ void pack_act(float (&v)[N], int act)
{
    if (act == ACT_SILU)
        for (int i = 0; i < N; i++)
            v[i] = element_act(v[i], ACT_SILU);
    else if (act != ACT_NONE)
        for (int i = 0; i < N; i++)
            v[i] = element_act(v[i], act);
}

/* d *= slope of act at v */
template <int N>
__device__ __forceinline__ void pack_slope(float (&d)[N], const float (&v)[N], int act)
{
    if (act == ACT_SILU)
        for (int i = 0; i < N; i++)
            d[i] *= element_slope(v[i], ACT_SILU);
    else if (act != ACT_NONE)
        for (int i = 0; i < N; i++)
            d[i] *= element_slope(v[i], act);
}

/* ---- a pack a thread ---------------------------------------------------------------------------
 *
 * What such a command's arguments begin with; they have a member
 *
 *     template <class T, int N> __device__ void make(size_t at, const void *params) const;
 *
 * that makes values [at, at + N) of a result of n. `packed`: the result and all that it is made of begin at multiples of
 * 16 bytes, and no pack goes from one row of channels into the next where rows are treated apart. */
struct each {
    size_t n;
    int type, packed;
};

template <class T, int N, class A>
static __global__ void __launch_bounds__(256) make_each(const A a, const void *params)
{
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at + N <= a.n)
        a.template make<T, N>(at, params);
    else
        for (; at < a.n; at++)
            a.template make<T, 1>(at, params);
}

template <class T, class A> static int each_as(struct cuda *c, const A &a, const void *params)
{
    constexpr int N = pack_of<T>;
    return a.packed ? launch(c, make_each<T, N, A>, div_up(a.n, 256 * N), 256, 0, a, params)
                    : launch(c, make_each<T, 1, A>, div_up(a.n, 256), 256, 0, a, params);
}

template <class A> static int go_each(struct cuda *c, const void *args, const void *params)
{
    const A &a = *(const A *)args;
#define EACH_AS(T) each_as<T>(c, a, params)
    return BY_TYPE(a.type, EACH_AS);
#undef EACH_AS
}

/* Arguments for a result of n values. `packed` so far says that c channels are whole packs (c 0: it does not matter), and
 * nothing of addresses. */
template <class A> static A each_of(struct device *dev, size_t n, size_t c)
{
    A a = zeroed<A>();
    a.n = n;
    a.type = cuda_of(dev)->type;
    a.packed = c % (a.type == DT_F32 ? 4 : 8) == 0;
    return a;
}

template <class A>
static int push_each(struct device *dev, const A &a, const void *params, size_t n_params,
                     struct err *err)
{
    return cuda_push(dev, go_each<A>, &a, sizeof a, params, n_params, err);
}

#endif
