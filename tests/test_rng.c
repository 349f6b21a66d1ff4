#include "unet/rng.h"

#include <criterion/criterion.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN "tests/golden/data/rng.txt"

static uint64_t fnv(const float *v, size_t n)
{
    uint64_t h = UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &v[i], 4);
        for (int b = 0; b < 4; b++)
            h = (h ^ (bits >> (8 * b) & 255)) * UINT64_C(0x100000001b3);
    }
    return h;
}

/* The first or the last values of a call, as the golden keeps them. */
static void check_values(FILE *f, const float *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t want, got;
        cr_assert_eq(fscanf(f, "%" SCNx32, &want), 1);
        memcpy(&got, &v[i], 4);
        cr_assert_eq(got, want, "value %zu of %zu is %08" PRIx32 ", not %08" PRIx32, i, n, got,
                     want);
    }
}

/* Plays every generator of the golden file of one kind; bit for bit. */
static void check_golden(const char *kind, enum rng_kind k, int expected_cases)
{
    FILE *f = fopen(GOLDEN, "r");
    cr_assert_not_null(f, "%s is missing: run from the repository's root", GOLDEN);
    char name[16];
    uint64_t seed;
    int calls, cases = 0;
    while (fscanf(f, "%15s %" SCNu64 " %d", name, &seed, &calls) == 3) {
        struct rng r;
        bool mine = !strcmp(name, kind);
        cases += mine;
        rng_init(&r, k, seed);
        for (int i = 0; i < calls; i++) {
            size_t n;
            uint64_t hash;
            cr_assert_eq(fscanf(f, "%zu %" SCNx64, &n, &hash), 2);
            if (!mine) {
                for (size_t j = 0; j < (n <= 40 ? n : 16); j++)
                    cr_assert_eq(fscanf(f, "%*x"), 0);
                continue;
            }
            float *v = malloc(n * sizeof *v);
            rng_normal(&r, v, n);
            check_values(f, v, n <= 40 ? n : 8);
            if (n > 40)
                check_values(f, v + n - 8, 8);
            cr_assert_eq(fnv(v, n), hash, "%s seed %" PRIu64 " call %d (n %zu)", kind, seed, i, n);
            free(v);
        }
    }
    cr_assert(feof(f));
    fclose(f);
    cr_assert_eq(cases, expected_cases);
}

Test(rng, torch_bit_for_bit)
{
    check_golden("torch", RNG_TORCH, 4 * 16);
}

Test(rng, philox_bit_for_bit)
{
    check_golden("philox", RNG_PHILOX, 4);
}

/* What A1111's rng_philox.py says torch.randn((3, 4)) is on CUDA, seed 0; half a place of a
 * float. */
Test(rng, philox_is_what_cuda_gives)
{
    static const double want[12] = {-0.92466259, -0.42534415, -2.6438457,  0.14518388,
                                    -0.12086647, -0.57972564, -0.62285122, -0.32838709,
                                    -1.07454231, -0.36314407, -1.67105067, 2.26550497};
    struct rng r;
    float v[12];
    rng_init(&r, RNG_PHILOX, 0);
    rng_normal(&r, v, 12);
    for (int i = 0; i < 12; i++)
        cr_assert_float_eq(v[i], want[i], 1.5e-7);
    /* the next call has a counter of its own */
    float w[12];
    rng_normal(&r, w, 12);
    cr_assert_neq(v[0], w[0]);
}

/* The reference output of MT19937 for its default seed, 5489: the 10,000th value. */
Test(rng, mersenne_twister)
{
    struct rng r;
    uint32_t v = 0;
    rng_init(&r, RNG_TORCH, 5489);
    cr_assert_eq(rng_u32(&r), 3499211612u);
    for (int i = 1; i < 10000; i++)
        v = rng_u32(&r);
    cr_assert_eq(v, 4123659995u);
}

Test(rng, torch_keeps_32_bits_of_the_seed)
{
    struct rng a, b, c;
    float x[64], y[64], z[64];
    rng_init(&a, RNG_TORCH, 7);
    rng_init(&b, RNG_TORCH, (UINT64_C(123) << 32) | 7);
    rng_init(&c, RNG_PHILOX, 7);
    rng_normal(&a, x, 64);
    rng_normal(&b, y, 64);
    cr_assert_arr_eq(x, y, sizeof x);
    rng_normal(&c, x, 64);
    rng_init(&c, RNG_PHILOX, (UINT64_C(123) << 32) | 7);
    rng_normal(&c, z, 64);
    cr_assert_neq(memcmp(x, z, sizeof x), 0);
}

/* Two generators never disturb each other, and nothing is drawn for nothing. */
Test(rng, generators_are_apart)
{
    struct rng a, b, c;
    float x[40], y[40], z[40];
    rng_init(&a, RNG_TORCH, 3);
    rng_init(&b, RNG_TORCH, 3);
    rng_init(&c, RNG_TORCH, 4);
    rng_normal(&a, x, 5);
    rng_normal(&c, z, 40);
    rng_normal(&a, x + 5, 0);
    rng_normal(&a, x + 5, 35);
    rng_normal(&b, y, 5);
    rng_normal(&b, y + 5, 35);
    cr_assert_arr_eq(x, y, sizeof x);
}

Test(rng, is_normal)
{
    enum { N = 1 << 16 };
    for (int k = 0; k < 2; k++) {
        struct rng r;
        float *v = malloc(N * sizeof *v);
        double m = 0, s = 0;
        rng_init(&r, k ? RNG_PHILOX : RNG_TORCH, 11);
        rng_normal(&r, v, N);
        for (int i = 0; i < N; i++) {
            cr_assert(isfinite(v[i]));
            m += v[i] / N;
            s += (double)v[i] * v[i] / N;
        }
        /* five standard errors */
        cr_assert_float_eq(m, 0, 5 / sqrt(N));
        cr_assert_float_eq(s, 1, 5 * sqrt(2.0 / N));
        free(v);
    }
}
