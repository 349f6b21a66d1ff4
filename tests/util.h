/* util.h: what the suites share. */
#ifndef WEFT_TESTS_UTIL_H
#define WEFT_TESTS_UTIL_H

#include "unet/backend.h"

/* A device of that backend; dies when it cannot be had. WEFT_TEST_ISA (plain, avx2, avx512) limits our
 * own kernels, so that a whole run of the suite can be repeated on another path. */
struct device *test_device(const char *backend);
struct device *test_device_isa(const char *backend, enum isa isa, int threads);

/* |a - b| / |b| in L2; |a| when b is all zero. NaN anywhere gives infinity. */
double test_error(const float *a, const float *b, size_t n);

/* The values of a named array of a golden file, which must be there: new, *n of them. */
struct safetensors;
float *test_floats(const struct safetensors *st, const char *name, size_t *n);
/* n values about normal, the same for the same seed. */
void test_fill(float *x, size_t n, unsigned seed);

#endif
