#include "rng.h"

#include <assert.h>
#include <math.h>
#include <string.h>

#define MT_N 624
#define MT_M 397
#define PI   3.141592653589793238462643383279502884

/* ---- MT19937, Matsumoto and Nishimura 1998 ------------------------------------------------- */

static void mt_seed(struct rng *r, uint32_t seed)
{
    r->mt[0] = seed;
    for (uint32_t i = 1; i < MT_N; i++) {
        uint32_t p = r->mt[i - 1];
        r->mt[i] = 1812433253u * (p ^ p >> 30) + i;
    }
    r->left = 0;
}

static uint32_t mt_twist(uint32_t high, uint32_t low)
{
    uint32_t y = (high & 0x80000000u) | (low & 0x7fffffffu);
    return y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
}

static void mt_refill(struct rng *r)
{
    uint32_t *mt = r->mt;
    int i = 0;
    for (; i < MT_N - MT_M; i++)
        mt[i] = mt[i + MT_M] ^ mt_twist(mt[i], mt[i + 1]);
    for (; i < MT_N - 1; i++)
        mt[i] = mt[i + MT_M - MT_N] ^ mt_twist(mt[i], mt[i + 1]);
    mt[i] = mt[MT_M - 1] ^ mt_twist(mt[i], mt[0]);
    r->left = MT_N;
}

uint32_t rng_u32(struct rng *r)
{
    assert(r->kind == RNG_TORCH);
    if (r->left == 0)
        mt_refill(r);
    uint32_t y = r->mt[MT_N - r->left--];
    y ^= y >> 11;
    y ^= y << 7 & 0x9d2c5680u;
    y ^= y << 15 & 0xefc60000u;
    return y ^ y >> 18;
}

/* 53 bits; the first draw is the high word. */
static double uniform_double(struct rng *r)
{
    uint64_t high = rng_u32(r);
    uint64_t bits = high << 32 | rng_u32(r);
    return (double)(bits & ((UINT64_C(1) << 53) - 1)) * 0x1p-53;
}

/* 24 bits. */
static float uniform_float(struct rng *r)
{
    return (float)(rng_u32(r) & 0xffffff) * 0x1p-24f;
}

/* Box-Muller over 16 uniform values: the first eight are radii, the last eight angles, and cosines
 * and sines land in their places. The angle is rounded to float only after the product, and all the
 * rest is float: there is no sum in it that a compiler could fuse. */
static void normal_16(float *v)
{
    for (int i = 0; i < 8; i++) {
        float radius = sqrtf(-2.0f * logf(1.0f - v[i]));
        float angle = (float)(2.0 * PI * (double)v[i + 8]);
        v[i] = radius * cosf(angle);
        v[i + 8] = radius * sinf(angle);
    }
}

static void fill_uniform(struct rng *r, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++)
        out[i] = uniform_float(r);
}

/* Fewer than 16: pairs in double, the second of a pair kept for the next call. */
static double normal_double(struct rng *r)
{
    if (r->has_spare) {
        r->has_spare = 0;
        return r->spare;
    }
    double u1 = uniform_double(r), u2 = uniform_double(r);
    double radius = sqrt(-2.0 * log1p(-u2));
    double angle = 2.0 * PI * u1;
    r->spare = radius * sin(angle);
    r->has_spare = 1;
    return radius * cos(angle);
}

static void normal_torch(struct rng *r, float *out, size_t n)
{
    if (n < 16) {
        for (size_t i = 0; i < n; i++)
            out[i] = (float)normal_double(r);
        return;
    }
    fill_uniform(r, out, n);
    for (size_t i = 0; i + 16 <= n; i += 16)
        normal_16(out + i);
    if (n % 16) {
        /* What is left over is too short for a group of 16: the last 16 are drawn anew. */
        fill_uniform(r, out + n - 16, 16);
        normal_16(out + n - 16);
    }
}

/* ---- Philox4x32-10, Salmon et al. 2011 ------------------------------------------------------ */

static void philox(uint32_t c[4], uint64_t key)
{
    uint32_t k0 = (uint32_t)key, k1 = (uint32_t)(key >> 32);
    for (int round = 0; round < 10; round++) {
        uint64_t a = UINT64_C(0xD2511F53) * c[0];
        uint64_t b = UINT64_C(0xCD9E8D57) * c[2];
        c[0] = (uint32_t)(b >> 32) ^ c[1] ^ k0;
        c[1] = (uint32_t)b;
        c[2] = (uint32_t)(a >> 32) ^ c[3] ^ k1;
        c[3] = (uint32_t)a;
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
}

/* The counter is (call, 0, position); of the four words the first two make one normal value. CUDA
 * does the last lines in float, so it differs from this by some 3e-7. */
static void normal_philox(struct rng *r, float *out, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t c[4] = {r->offset, 0, (uint32_t)i, (uint32_t)((uint64_t)i >> 32)};
        philox(c, r->seed);
        double u = (c[0] + 0.5) * 0x1p-32, v = (c[1] + 0.5) * 0x1p-32;
        out[i] = (float)(sqrt(-2.0 * log(u)) * sin(2.0 * PI * v));
    }
    r->offset++;
}

/* -------------------------------------------------------------------------------------------- */

void rng_init(struct rng *r, enum rng_kind kind, uint64_t seed)
{
    memset(r, 0, sizeof *r);
    r->kind = kind;
    r->seed = seed;
    if (kind == RNG_TORCH)
        mt_seed(r, (uint32_t)seed);
}

void rng_normal(struct rng *r, float *out, size_t n)
{
    if (r->kind == RNG_TORCH)
        normal_torch(r, out, n);
    else
        normal_philox(r, out, n);
}
