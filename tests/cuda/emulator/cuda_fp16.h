/* cuda_fp16.h: half precision and its conversions, for tests: the few that weft uses of NVIDIA's header of that name. */
#ifndef WEFT_EMULATOR_CUDA_FP16_H
#define WEFT_EMULATOR_CUDA_FP16_H

#include <cuda_runtime.h>

struct __half {
    unsigned short bits;
};
struct __align__(4) __half2
{
    __half x, y;
};

static inline unsigned emulator_bits(float v)
{
    unsigned u;
    memcpy(&u, &v, 4);
    return u;
}
static inline float emulator_float(unsigned u)
{
    float v;
    memcpy(&v, &u, 4);
    return v;
}

static inline __half __ushort_as_half(unsigned short u)
{
    return {u};
}
static inline unsigned short __half_as_ushort(__half h)
{
    return h.bits;
}

static inline float __half2float(__half h)
{
    unsigned u = h.bits & 0x7fff, sign = (unsigned)(h.bits & 0x8000) << 16;
    if (u < 0x400) { /* subnormal: a multiple of 2^-24 */
        float v = (float)u * emulator_float(0x33800000);
        return sign ? -v : v;
    }
    return emulator_float(sign | (u >= 0x7c00 ? u << 13 | 0x7f800000 : (u << 13) + 0x38000000));
}

/* To nearest, ties to even; beyond 65504 infinity; NaN is 0x7fff. */
static inline __half __float2half_rn(float v)
{
    unsigned u = emulator_bits(v), sign = u >> 16 & 0x8000;
    u &= 0x7fffffff;
    if (u > 0x7f800000)
        return {0x7fff};
    if (u >= 0x477ff000)
        return {(unsigned short)(sign | 0x7c00)};
    if (u < 0x38800000) /* subnormal: 0.5 has its unit, 2^-24, as the last place */
        u = emulator_bits(emulator_float(u) + 0.5f) - 0x3f000000;
    else
        u = (u + 0xfff + (u >> 13 & 1) - 0x38000000) >> 13;
    return {(unsigned short)(sign | u)};
}

static inline __half2 __halves2half2(__half low, __half high)
{
    return {low, high};
}
static inline __half2 __floats2half2_rn(float low, float high)
{
    return {__float2half_rn(low), __float2half_rn(high)};
}
static inline float __low2float(__half2 v)
{
    return __half2float(v.x);
}
static inline float __high2float(__half2 v)
{
    return __half2float(v.y);
}
static inline float2 __half22float2(__half2 v)
{
    return {__half2float(v.x), __half2float(v.y)};
}

#endif
