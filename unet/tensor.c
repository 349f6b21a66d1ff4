#include "tensor.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

static const struct {
    const char *name;
    unsigned bits;
    bool readable;
} types[DT_COUNT] = {
    [DT_F32] = {"F32", 32, true},
    [DT_F64] = {"F64", 64, true},
    [DT_F16] = {"F16", 16, true},
    [DT_BF16] = {"BF16", 16, true},
    [DT_I64] = {"I64", 64, true},
    [DT_I32] = {"I32", 32, true},
    [DT_I16] = {"I16", 16, true},
    [DT_I8] = {"I8", 8, true},
    [DT_U64] = {"U64", 64, true},
    [DT_U32] = {"U32", 32, true},
    [DT_U16] = {"U16", 16, true},
    [DT_U8] = {"U8", 8, true},
    [DT_BOOL] = {"BOOL", 8, true},
    [DT_C64] = {"C64", 64, false},
    [DT_F8_E4M3] = {"F8_E4M3", 8, false},
    [DT_F8_E5M2] = {"F8_E5M2", 8, false},
    [DT_F8_E8M0] = {"F8_E8M0", 8, false},
    [DT_F8_E4M3FNUZ] = {"F8_E4M3FNUZ", 8, false},
    [DT_F8_E5M2FNUZ] = {"F8_E5M2FNUZ", 8, false},
    [DT_F6_E2M3] = {"F6_E2M3", 6, false},
    [DT_F6_E3M2] = {"F6_E3M2", 6, false},
    [DT_F4] = {"F4", 4, false},
};

const char *dtype_name(enum dtype t)
{
    return types[t].name;
}

int dtype_parse(const char *name)
{
    for (int i = 0; i < DT_COUNT; i++)
        if (!strcmp(types[i].name, name))
            return i;
    return -1;
}

unsigned dtype_bits(enum dtype t)
{
    return types[t].bits;
}

size_t array_count(const struct array *a)
{
    size_t n = 1;
    for (int i = 0; i < a->ndim; i++)
        n *= a->dim[i];
    return n;
}

uint64_t array_dim(const struct array *a, int i)
{
    return i < a->ndim ? a->dim[i] : 1;
}

const char *array_shape(const struct array *a, char *buf, size_t size)
{
    size_t n = 0;
    for (int i = 0; i <= a->ndim && n < size; i++) {
        int w = i == a->ndim ? snprintf(buf + n, size - n, i ? "]" : "[]")
                             : snprintf(buf + n, size - n, "%s%llu", i ? ", " : "[",
                                        (unsigned long long)a->dim[i]);
        n += w > 0 ? (size_t)w : 0;
    }
    return buf;
}

bool array_readable(const struct array *a)
{
    return types[a->dtype].readable;
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

float half_to_f32(uint16_t h)
{
    uint32_t sign = (uint32_t)(h & 0x8000) << 16, exp = h >> 10 & 31, man = h & 0x3ff;
    if (exp == 31)
        return float_of(sign | 0x7f800000 | man << 13);
    if (exp)
        return float_of(sign | (exp + 112) << 23 | man << 13);
    float f = (float)man * 0x1p-24f;
    return sign ? -f : f;
}

uint16_t f32_to_half(float f)
{
    uint32_t u = bits_of(f), sign = u >> 16 & 0x8000, mag = u & 0x7fffffff;
    if (mag > 0x7f800000)
        return (uint16_t)(sign | 0x7e00);
    if (mag >= 0x477ff000) /* rounds to 65536 or more */
        return (uint16_t)(sign | 0x7c00);
    if (mag < 0x38800000) { /* below 2^-14: the sum's last bits are the subnormal, rounded */
        float r = float_of(mag) + 0.5f;
        return (uint16_t)(sign | (bits_of(r) - bits_of(0.5f)));
    }
    return (uint16_t)(sign | (mag - 0x38000000 + 0xfff + (mag >> 13 & 1)) >> 13);
}

float bf16_to_f32(uint16_t h)
{
    return float_of((uint32_t)h << 16);
}

uint16_t f32_to_bf16(float f)
{
    uint32_t u = bits_of(f);
    if ((u & 0x7fffffff) > 0x7f800000)
        return (uint16_t)(u >> 16 | 0x40);
    return (uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16);
}

/* ---- whole arrays ---------------------------------------------------------------------------- */

/* Values a thread takes at once. A model has a thousand million of them: one thread would be felt. */
#define PIECE (1 << 16)

#if defined(__x86_64__)
/* Half precision by the processor's own instruction, eight at a time. What has AVX2 has F16C too. */
__attribute__((target("avx,f16c"))) static size_t halves_f16c(float *out, const char *in, size_t n)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_cvtph_ps(_mm_loadu_si128((const void *)(in + 2 * i))));
    return i;
}

static size_t halves_fast(float *out, const char *in, size_t n)
{
    return __builtin_cpu_supports("avx2") ? halves_f16c(out, in, n) : 0;
}
#else
static size_t halves_fast(float *out, const char *in, size_t n)
{
    (void)out, (void)in, (void)n;
    return 0;
}
#endif

/* Stored arrays need not be aligned: every value is copied out. */
#define CONVERT(type, expr)                                                                        \
    for (size_t i = 0; i < n; i++) {                                                               \
        type v;                                                                                    \
        memcpy(&v, in + i * sizeof v, sizeof v);                                                   \
        out[i] = expr;                                                                             \
    }                                                                                              \
    break

static void convert(enum dtype t, float *out, const char *in, size_t n)
{
    switch (t) {
    case DT_F32: memcpy(out, in, n * sizeof *out); break;
    case DT_F64: CONVERT(double, (float)v);
    case DT_F16: {
        size_t done = halves_fast(out, in, n);
        for (size_t i = done; i < n; i++) {
            uint16_t v;
            memcpy(&v, in + i * sizeof v, sizeof v);
            out[i] = half_to_f32(v);
        }
        break;
    }
    case DT_BF16: CONVERT(uint16_t, bf16_to_f32(v));
    case DT_I64: CONVERT(int64_t, (float)v);
    case DT_I32: CONVERT(int32_t, (float)v);
    case DT_I16: CONVERT(int16_t, (float)v);
    case DT_I8: CONVERT(int8_t, (float)v);
    case DT_U64: CONVERT(uint64_t, (float)v);
    case DT_U32: CONVERT(uint32_t, (float)v);
    case DT_U16: CONVERT(uint16_t, (float)v);
    case DT_U8: CONVERT(uint8_t, (float)v);
    case DT_BOOL: CONVERT(uint8_t, v ? 1.0f : 0.0f);
    default: break;
    }
}

void array_to_f32(const struct array *a, float *out)
{
    size_t n = array_count(a), bytes = types[a->dtype].bits / 8;
    assert(array_readable(a));
#pragma omp parallel for schedule(static) if (n > 4 * PIECE)
    for (size_t i = 0; i < n; i += PIECE)
        convert(a->dtype, out + i, (const char *)a->data + i * bytes,
                n - i < PIECE ? n - i : PIECE);
}

/* Whether any of n values has all bits of its exponent set. */
#define ANY_BAD(type, mask)                                                                        \
    for (size_t i = 0; i < n; i++) {                                                               \
        type v;                                                                                    \
        memcpy(&v, in + i * sizeof v, sizeof v);                                                   \
        bad |= (v & (type)(mask)) == (type)(mask);                                                 \
    }                                                                                              \
    break

static bool any_bad(enum dtype t, const char *in, size_t n)
{
    int bad = 0;
    switch (t) {
    case DT_F32: ANY_BAD(uint32_t, 0x7f800000);
    case DT_F64: ANY_BAD(uint64_t, 0x7ff0000000000000);
    case DT_F16: ANY_BAD(uint16_t, 0x7c00);
    case DT_BF16: ANY_BAD(uint16_t, 0x7f80);
    default: break; /* whole numbers */
    }
    return bad;
}

ptrdiff_t array_first_bad(const struct array *a)
{
    size_t n = array_count(a), bytes = types[a->dtype].bits / 8;
    const char *in = a->data;
    int bad = 0;
#pragma omp parallel for schedule(static) reduction(| : bad) if (n > 4 * PIECE)
    for (size_t i = 0; i < n; i += PIECE)
        bad |= any_bad(a->dtype, in + i * bytes, n - i < PIECE ? n - i : PIECE);
    for (size_t i = 0; bad && i < n; i++)
        if (any_bad(a->dtype, in + i * bytes, 1))
            return (ptrdiff_t)i;
    return -1;
}

size_t tensor_count(const struct tensor *t)
{
    return (size_t)t->n * (size_t)t->h * (size_t)t->w * (size_t)t->c;
}

bool tensor_same_shape(const struct tensor *a, const struct tensor *b)
{
    return a->n == b->n && a->h == b->h && a->w == b->w && a->c == b->c;
}
