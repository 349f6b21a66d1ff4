/* kernel.cuh: what kernels share: types, conversions, sums over warps and blocks, launching from a list (cuda.h). */
#ifndef WEFT_CUDA_KERNEL_CUH
#define WEFT_CUDA_KERNEL_CUH

#include "device.cuh"

extern "C" {
#include "cuda.h"
}

#include <string.h>

typedef __half half;
typedef __nv_bfloat16 bf16;

static __device__ __forceinline__ float to_float(float v)
{
    return v;
}
static __device__ __forceinline__ float to_float(half v)
{
    return __half2float(v);
}
static __device__ __forceinline__ float to_float(bf16 v)
{
    return __bfloat162float(v);
}

/* To nearest, ties to even. */
template <class T> __device__ __forceinline__ T from_float(float v);
template <> __device__ __forceinline__ float from_float<float>(float v)
{
    return v;
}
template <> __device__ __forceinline__ half from_float<half>(float v)
{
    return __float2half_rn(v);
}
template <> __device__ __forceinline__ bf16 from_float<bf16>(float v)
{
    return __float2bfloat16_rn(v);
}

/* N values that are loaded and stored in one go; N * sizeof(T) is 2 to 16, and the address a multiple of it. */
template <class T, int N> struct __align__(N * sizeof(T)) pack
{
    T v[N];
};

static __device__ __forceinline__ float warp_sum(float v)
{
    for (int step = 16; step; step /= 2)
        v += __shfl_xor_sync(0xffffffffu, v, step);
    return v;
}

static __device__ __forceinline__ float warp_max(float v)
{
    for (int step = 16; step; step /= 2)
        v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, step));
    return v;
}

/* The same in all threads of a block of whole warps, at most 1024; room: 33 floats of shared memory. All threads take part;
 * room may be used again at once. */
static __device__ __forceinline__ float block_sum(float v, float *room)
{
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = (blockDim.x + 31) / 32;
    v = warp_sum(v);
    if (lane == 0)
        room[warp] = v;
    __syncthreads();
    if (warp == 0) {
        v = warp_sum(lane < warps ? room[lane] : 0);
        if (lane == 0)
            room[32] = v;
    }
    __syncthreads();
    v = room[32];
    __syncthreads();
    return v;
}

static inline unsigned div_up(size_t a, size_t b)
{
    return (unsigned)((a + b - 1) / b);
}

/* A launch from within a command (cuda.h): 0, or the failure, noted. */
template <class... P, class... A>
static inline int launch(struct cuda *c, void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes,
                         A... args)
{
    return cuda_failed(c, device_launch(kernel, grid, block, bytes, c->stream, args...));
}

/* CALL(T) with T the type of the device's values. */
#define BY_TYPE(type_, CALL)                                                                       \
    ((type_) == DT_F16 ? CALL(half) : (type_) == DT_BF16 ? CALL(bf16) : CALL(float))

/* Arguments are compared byte by byte (cuda.h): begin them as zeros, padding and all. */
template <class A> static inline A zeroed(void)
{
    A a;
    memset((void *)&a, 0, sizeof a);
    return a;
}

#endif
