/* cuda_bf16.h: bfloat16 and its conversions, for tests: the few that weft uses of NVIDIA's header of that name. */
#ifndef WEFT_EMULATOR_CUDA_BF16_H
#define WEFT_EMULATOR_CUDA_BF16_H

#include <cuda_fp16.h>

struct __nv_bfloat16 {
    unsigned short bits;
};
struct __align__(4) __nv_bfloat162
{
    __nv_bfloat16 x, y;
};

static inline __nv_bfloat16 __ushort_as_bfloat16(unsigned short u)
{
    return {u};
}
static inline unsigned short __bfloat16_as_ushort(__nv_bfloat16 h)
{
    return h.bits;
}

static inline float __bfloat162float(__nv_bfloat16 h)
{
    return emulator_float((unsigned)h.bits << 16);
}

/* To nearest, ties to even; NaN is 0x7fff. */
static inline __nv_bfloat16 __float2bfloat16_rn(float v)
{
    unsigned u = emulator_bits(v);
    if ((u & 0x7fffffff) > 0x7f800000)
        return {0x7fff};
    return {(unsigned short)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}

static inline __nv_bfloat162 __halves2bfloat162(__nv_bfloat16 low, __nv_bfloat16 high)
{
    return {low, high};
}
static inline __nv_bfloat162 __floats2bfloat162_rn(float low, float high)
{
    return {__float2bfloat16_rn(low), __float2bfloat16_rn(high)};
}
static inline float __low2float(__nv_bfloat162 v)
{
    return __bfloat162float(v.x);
}
static inline float __high2float(__nv_bfloat162 v)
{
    return __bfloat162float(v.y);
}
static inline float2 __bfloat1622float2(__nv_bfloat162 v)
{
    return {__bfloat162float(v.x), __bfloat162float(v.y)};
}

#endif
