#include "util.h"

#include "unet/safetensors.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct device *test_device_isa(const char *backend, enum isa isa, int threads)
{
    struct device_options o = {.threads = threads, .isa = isa};
    struct device *dev = NULL;
    struct err err;
    cr_assert_eq(device_open(&dev, backend, &o, &err), 0, "%s", err.msg);
    return dev;
}

struct device *test_device(const char *backend)
{
    const char *want = getenv("WEFT_TEST_ISA");
    enum isa isa = ISA_BEST;
    if (want)
        isa = !strcmp(want, "plain") ? ISA_PLAIN : !strcmp(want, "avx2") ? ISA_AVX2 : ISA_AVX512;
    return test_device_isa(backend, isa, 2);
}

double test_error(const float *a, const float *b, size_t n)
{
    double d = 0, s = 0;
    for (size_t i = 0; i < n; i++) {
        double e = (double)a[i] - b[i];
        d += e * e;
        s += (double)b[i] * b[i];
    }
    double r = sqrt(s > 0 ? d / s : d);
    return isnan(r) ? INFINITY : r;
}

void test_fill(float *x, size_t n, unsigned seed)
{
    uint64_t s = seed * 2654435761u + 1;
    for (size_t i = 0; i < n; i++) {
        float v = 0;
        for (int k = 0; k < 4; k++) {
            s = s * 6364136223846793005u + 1442695040888963407u;
            v += (float)(s >> 40) * 0x1p-24f - 0.5f;
        }
        x[i] = v * 1.7320508f;
    }
}

float *test_floats(const struct safetensors *st, const char *name, size_t *n)
{
    const struct array *a = safetensors_find(st, name);
    cr_assert(a, "no %s", name);
    *n = array_count(a);
    float *v = malloc(*n * sizeof *v);
    cr_assert(v);
    array_to_f32(a, v);
    return v;
}
