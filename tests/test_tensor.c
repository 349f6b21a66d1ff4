#include "unet/tensor.h"

#include <criterion/criterion.h>
#include <math.h>
#include <string.h>

static float float_of(uint32_t u)
{
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t bits_of(float f)
{
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

/* The value of a finite half by the definition of the format. */
static double half_value(unsigned h)
{
    int exp = (int)(h >> 10 & 31), man = (int)(h & 1023);
    double v = exp ? ldexp(1024 + man, exp - 25) : ldexp(man, -24);
    return h & 0x8000 ? -v : v;
}

/* The half nearest to v, ties to even, by rounding v to a multiple of its quantum. */
static unsigned nearest_half(double v)
{
    unsigned sign = signbit(v) ? 0x8000 : 0;
    double a = fabs(v);
    int exp = 0;
    if (a >= 65520) /* half way from the largest half to the next power of two */
        return sign | 0x7c00;
    frexp(a, &exp);
    exp = a < 0x1p-14 ? -14 : exp - 1;
    unsigned steps = (unsigned)nearbyint(ldexp(a, 10 - exp));
    return sign | (exp == -14 ? steps : (unsigned)(exp + 14) * 1024 + steps);
}

Test(tensor, every_half_becomes_its_value)
{
    for (unsigned h = 0; h < 65536; h++) {
        float f = half_to_f32((uint16_t)h);
        if ((h & 0x7fff) < 0x7c00) {
            cr_assert_eq(bits_of(f), bits_of((float)half_value(h)), "%04x", h);
        } else if ((h & 0x7fff) == 0x7c00) {
            cr_assert(isinf(f) && !signbit(f) == !(h & 0x8000), "%04x", h);
        } else {
            cr_assert(isnan(f) && !signbit(f) == !(h & 0x8000), "%04x", h);
        }
    }
}

Test(tensor, every_half_survives_a_round_trip)
{
    for (unsigned h = 0; h < 65536; h++) {
        unsigned back = f32_to_half(half_to_f32((uint16_t)h));
        if ((h & 0x7fff) <= 0x7c00)
            cr_assert_eq(back, h, "%04x came back as %04x", h, back);
        else
            cr_assert((back & 0x7fff) > 0x7c00 && (back & 0x8000) == (h & 0x8000), "%04x", h);
    }
}

static void check_half(float f)
{
    cr_assert_eq(f32_to_half(f), nearest_half(f), "%a: %04x, not %04x", (double)f, f32_to_half(f),
                 nearest_half(f));
    cr_assert_eq(f32_to_half(-f), nearest_half(-f), "%a", (double)-f);
}

/* Every value that decides: each half, each middle of two, and the floats beside them. */
Test(tensor, floats_round_to_the_nearest_half)
{
    for (unsigned h = 0; h < 0x7c00; h++) {
        double here = half_value(h), next = h < 0x7bff ? half_value(h + 1) : 65536;
        float mid = (float)((here + next) / 2), at[] = {(float)here, mid};
        for (int i = 0; i < 2; i++) {
            check_half(at[i]);
            check_half(nextafterf(at[i], 1e30f));
            check_half(nextafterf(at[i], 0));
        }
    }
    uint32_t u = 12345;
    for (int i = 0; i < 500000; i++) {
        u = u * 1664525 + 1013904223;
        if ((u & 0x7fffffff) <= 0x7f800000)
            check_half(float_of(u & 0x7fffffff));
    }
    cr_assert_eq(f32_to_half(INFINITY), 0x7c00);
    cr_assert_eq(f32_to_half(-INFINITY), 0xfc00);
    for (uint32_t nan = 0x7f800001; nan; nan = nan == 0x7f800001 ? 0x7fffffff : 0) {
        cr_assert((f32_to_half(float_of(nan)) & 0x7fff) > 0x7c00);
        cr_assert_eq(f32_to_half(float_of(nan | 0x80000000)) & 0x8000, 0x8000);
    }
}

Test(tensor, every_bfloat16_survives_a_round_trip)
{
    for (unsigned h = 0; h < 65536; h++) {
        float f = bf16_to_f32((uint16_t)h);
        cr_assert_eq(bits_of(f), h << 16, "%04x", h);
        unsigned back = f32_to_bf16(f);
        if ((h & 0x7fff) <= 0x7f80)
            cr_assert_eq(back, h, "%04x came back as %04x", h, back);
        else
            cr_assert((back & 0x7fff) > 0x7f80 && (back & 0x8000) == (h & 0x8000), "%04x", h);
    }
}

/* Of the two bfloat16 around a float the nearer, by distance in double; of equals the even one. */
Test(tensor, floats_round_to_the_nearest_bfloat16)
{
    static const uint32_t low[] = {0, 1, 0x7fff, 0x8000, 0x8001, 0xffff};
    for (uint32_t h = 0; h < 0x7f80; h++) {
        double below = (double)float_of(h << 16);
        double above = h < 0x7f7f ? (double)float_of((h + 1) << 16) : 0x1p128;
        for (int i = 0; i < 6; i++) {
            float f = float_of(h << 16 | low[i]);
            double d = (double)f - below, u = above - (double)f;
            unsigned want = d < u ? h : d > u ? h + 1 : h + (h & 1);
            cr_assert_eq(f32_to_bf16(f), want, "%a: %04x, not %04x", (double)f, f32_to_bf16(f),
                         want);
            cr_assert_eq(f32_to_bf16(-f), want | 0x8000);
        }
    }
    cr_assert((f32_to_bf16(float_of(0x7f800001)) & 0x7fff) > 0x7f80);
    cr_assert((f32_to_bf16(float_of(0xffffffff)) & 0x7fff) > 0x7f80);
}

Test(tensor, types_have_names_and_sizes)
{
    static const struct {
        const char *name;
        unsigned bits;
    } want[] = {{"F32", 32},    {"F64", 64},        {"F16", 16},        {"BF16", 16},
                {"I64", 64},    {"I32", 32},        {"I16", 16},        {"I8", 8},
                {"U64", 64},    {"U32", 32},        {"U16", 16},        {"U8", 8},
                {"BOOL", 8},    {"C64", 64},        {"F8_E4M3", 8},     {"F8_E5M2", 8},
                {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"F6_E2M3", 6},
                {"F6_E3M2", 6}, {"F4", 4}};
    cr_assert_eq(sizeof want / sizeof *want, DT_COUNT);
    for (int i = 0; i < DT_COUNT; i++) {
        int t = dtype_parse(want[i].name);
        cr_assert_geq(t, 0, "%s", want[i].name);
        cr_assert_str_eq(dtype_name((enum dtype)t), want[i].name);
        cr_assert_eq(dtype_bits((enum dtype)t), want[i].bits, "%s", want[i].name);
    }
    cr_assert_eq(dtype_parse("f32"), -1);
    cr_assert_eq(dtype_parse("F3"), -1);
    cr_assert_eq(dtype_parse(""), -1);
}

Test(tensor, shapes)
{
    char buf[64];
    struct array scalar = {.dtype = DT_F32}, a = {.dtype = DT_F16, .ndim = 2, .dim = {320, 768}};
    struct array none = {.dtype = DT_F32, .ndim = 3, .dim = {2, 0, 5}};
    cr_assert_eq(array_count(&scalar), 1);
    cr_assert_eq(array_count(&a), 245760);
    cr_assert_eq(array_count(&none), 0);
    cr_assert_str_eq(array_shape(&scalar, buf, sizeof buf), "[]");
    cr_assert_str_eq(array_shape(&a, buf, sizeof buf), "[320, 768]");
    cr_assert_str_eq(array_shape(&none, buf, sizeof buf), "[2, 0, 5]");
    memset(buf, 'x', sizeof buf);
    array_shape(&a, buf, 6);
    cr_assert_str_eq(buf, "[320,", "cut, but ended");
    cr_assert_eq(buf[6], 'x');
}

/* Every readable type, stored at an odd address. */
#define CHECK_TYPE(dt, ctype, ...)                                                                 \
    do {                                                                                           \
        static const ctype v[] = {__VA_ARGS__};                                                    \
        enum { N = sizeof v / sizeof *v };                                                         \
        char bytes[sizeof v + 1];                                                                  \
        float out[N];                                                                              \
        memcpy(bytes + 1, v, sizeof v);                                                            \
        struct array a = {.dtype = dt, .ndim = 1, .dim = {N}, .data = bytes + 1};                  \
        cr_assert(array_readable(&a));                                                             \
        array_to_f32(&a, out);                                                                     \
        for (int i = 0; i < N; i++)                                                                \
            cr_assert_eq(out[i], want[i], "%s %d: %a, not %a", dtype_name(dt), i, (double)out[i],  \
                         (double)want[i]);                                                         \
    } while (0)

Test(tensor, arrays_of_every_type)
{
    {
        static const float want[] = {1.5f, -0x1p-149f, 3e38f};
        CHECK_TYPE(DT_F32, float, 1.5f, -0x1p-149f, 3e38f);
    }
    { /* to nearest, ties to even */
        static const float want[] = {1, 0x1.000002p0f, -0x1.000004p0f, INFINITY, 0};
        CHECK_TYPE(DT_F64, double, 0x1.000001p0, 0x1.0000010000001p0, -0x1.000003p0, 1e300, 1e-300);
    }
    {
        static const float want[] = {1, -2, 65504, 0x1p-24f};
        CHECK_TYPE(DT_F16, uint16_t, 0x3c00, 0xc000, 0x7bff, 1);
    }
    {
        static const float want[] = {1, -2, 0x1.fep127f};
        CHECK_TYPE(DT_BF16, uint16_t, 0x3f80, 0xc000, 0x7f7f);
    }
    {
        static const float want[] = {-0x1p63f, 0x1p63f, 16777216, 16777220, -1};
        CHECK_TYPE(DT_I64, int64_t, INT64_MIN, INT64_MAX, 16777217, 16777219, -1);
    }
    {
        static const float want[] = {-0x1p31f, 0x1p31f, -7};
        CHECK_TYPE(DT_I32, int32_t, INT32_MIN, INT32_MAX, -7);
    }
    {
        static const float want[] = {-32768, 32767, -7};
        CHECK_TYPE(DT_I16, int16_t, INT16_MIN, INT16_MAX, -7);
    }
    {
        static const float want[] = {-128, 127, -7};
        CHECK_TYPE(DT_I8, int8_t, INT8_MIN, INT8_MAX, -7);
    }
    {
        static const float want[] = {0x1p64f, 7};
        CHECK_TYPE(DT_U64, uint64_t, UINT64_MAX, 7);
    }
    {
        static const float want[] = {0x1p32f, 7};
        CHECK_TYPE(DT_U32, uint32_t, UINT32_MAX, 7);
    }
    {
        static const float want[] = {65535, 7};
        CHECK_TYPE(DT_U16, uint16_t, UINT16_MAX, 7);
    }
    {
        static const float want[] = {255, 7};
        CHECK_TYPE(DT_U8, uint8_t, 255, 7);
    }
    {
        static const float want[] = {0, 1, 1};
        CHECK_TYPE(DT_BOOL, uint8_t, 0, 1, 2);
    }
}

Test(tensor, packed_types_are_not_readable)
{
    for (int t = DT_C64; t < DT_COUNT; t++) {
        struct array a = {.dtype = (enum dtype)t};
        cr_assert_not(array_readable(&a), "%s", dtype_name((enum dtype)t));
    }
}

Test(tensor, counts_and_shapes_of_activations)
{
    struct tensor a = {.n = 2, .h = 64, .w = 64, .c = 320}, b = a;
    cr_assert_eq(tensor_count(&a), (size_t)2 * 64 * 64 * 320);
    cr_assert(tensor_same_shape(&a, &b));
    b.c = 321;
    cr_assert_not(tensor_same_shape(&a, &b));
    struct tensor huge = {.n = 1000, .h = 4096, .w = 4096, .c = 4096};
    cr_assert_eq(tensor_count(&huge), (size_t)1000 << 36, "counted in 64 bits");
}
