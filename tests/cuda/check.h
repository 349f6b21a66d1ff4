/* check.h: what the device tests share: options, groups of checks, bounds, numbers to compute with.
 *
 *     static void check_add(struct device *dev, enum dtype type)
 *     {
 *         must(op(…, &err), &err, "add");            // or the group is over
 *         expect(error_of(got, want, n), bound_of(BOUND_ONCE, type), seed, "add %d", n);
 *     }
 *     const struct group groups[] = {{"ops/add", check_add, 0}, {NULL, NULL, 0}};
 *
 * One program without a framework, so that it runs where only a driver and the libraries of the backend are.
 */
#ifndef WEFT_TESTS_CUDA_CHECK_H
#define WEFT_TESTS_CUDA_CHECK_H

#include "unet/backend.h"

struct options {
    const char *data;   /* tests/golden/data */
    const char *model;  /* a folder, for pictures of its size; NULL: none */
    const char *device; /* "cuda"; others to test the tests */
    const char *filter; /* of groups' names; NULL: all */
    uint64_t seed;
    int fuzz;        /* random shapes an op; below 0: as `quick` says */
    bool quick;      /* small shapes, few steps: for an emulator */
    bool large;      /* tensors of more than 2^31 values */
    bool required;   /* no device is a failure */
    bool figures;    /* every group's errors are told */
    bool values[16]; /* by enum dtype */
};
extern struct options options;

/* ---- groups ---------------------------------------------------------------------------------- */

typedef void group_fn(struct device *dev, enum dtype type);

/* Only with --large; only with --model; with --quick only in float32, or not in bfloat16. */
enum { GROUP_LARGE = 1, GROUP_MODEL = 2, GROUP_ONCE = 4, GROUP_TWICE = 8 };
struct group {
    const char *name;
    group_fn *run;
    unsigned when;
};
extern const struct group device_groups[], op_groups[], layer_groups[], back_groups[],
    list_groups[], network_groups[], step_groups[], picture_groups[]; /* each ends with name NULL */

/* Counts a check, and tells of a failure: what it was, its error, bound, type and seed. */
void expect(double error, double bound, uint64_t seed, const char *fmt, ...)
    __attribute__((format(printf, 4, 5)));
/* The same of something that is so or not. */
void expect_that(bool is, uint64_t seed, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* A call that must work, else the group is over: what it holds is lost. */
void must(int rc, const struct err *err, const char *fmt, ...)
    __attribute__((format(printf, 3, 4)));
/* Told once a group: something that this device, or these values, cannot be asked. */
void skipped(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
/* A line of its own, with --figures. */
void figure(const char *fmt, ...) __attribute__((format(printf, 1, 2)));
int fuzz_count(int quick, int full);

/* ---- devices --------------------------------------------------------------------------------- */

/* By name; "rounded" is ref with every result rounded to `type` (rounded.c), which is where bounds for 16 bits come from. */
int device_make(struct device **out, const char *name, enum dtype type, struct err *err);
int rounded_open(struct device **out, enum dtype type, struct err *err);
/* In double: what everything is held against. Opened at first use, closed at the end. */
struct device *device_exact(void);
/* Chains by a device's other ops, one after another. */
int chains_apart(struct device *dev, const struct chain *c, int n, struct err *err);

/* ---- bounds ---------------------------------------------------------------------------------- */

/* Relative errors, in L2 over all values, that a result stays within where its inputs are exact:
 *   ONCE     computed in float32 and rounded once: 2^-11 in float16, 2^-8 in bfloat16
 *   SUM      sums of products, whose parts may be rounded on the way
 *   BACK     gradients, where differences of such sums are summed up
 * and networks of the test data, twice what "rounded" is off by at most over eight seeds:
 *   NET      one pass; NET_BACK its gradient
 */
enum limit { BOUND_EXACT, BOUND_ONCE, BOUND_SUM, BOUND_BACK, BOUND_NET, BOUND_NET_BACK };
double bound_of(enum limit b, enum dtype type);
/* |a - b| / |b| in L2; |a| when b is all zero; infinity where NaN meets a number. Or, where that is more, a sixteenth of the
 * largest |a_i - b_i| beside the larger of |b_i| and b's root mean square: one wrong value among many is not lost. b's root
 * mean square counts as `least` where it is less: a value that nearly cancels has no relative error to speak of. */
double error_of(const float *got, const float *want, size_t n, double least);

/* ---- numbers --------------------------------------------------------------------------------- */

struct random {
    uint64_t s;
};
/* The case's own: the same whichever groups run. */
uint64_t seed_of(const char *what, uint64_t i);
uint64_t random_next(struct random *r);
/* lo to hi, both included. */
int random_int(struct random *r, int lo, int hi);
/* About normal. */
void fill(float *x, size_t n, uint64_t seed);
void round_to(float *x, size_t n, enum dtype type);
float rounded_to(float x, enum dtype type);
void *room_for(size_t n, size_t size);
/* DATA/NAME, in a buffer that the next call uses again. */
const char *data_path(const char *name);

#endif
