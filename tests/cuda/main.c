/* Tests of a device, above all of a GPU: every op, networks, whole pictures, against the same in double.
 *
 *     weft-test-cuda [--data DIR] [--values f32|f16|bf16|all] [--filter WORDS] [--quick] …
 *
 * A line a group; 0 where all is well or there is no GPU, 1 else. */
#include "check.h"

#include <omp.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { TOLD_MOST = 12 }; /* failures of a group that are told one by one */

struct options options = {.data = "tests/golden/data",
                          .device = "cuda",
                          .seed = 1,
                          .fuzz = -1,
                          .values = {[DT_F32] = true, [DT_F16] = true, [DT_BF16] = true}};

/* The group in hand. */
static struct {
    const char *name;
    enum dtype type;
    int passed, failed;
    double worst, of; /* the error nearest to its bound, or farthest beyond */
    bool over, skipped;
    jmp_buf end;
} now;

static int passed, failed;

/* ---- checks ---------------------------------------------------------------------------------- */

static void tell(uint64_t seed, const char *why, const char *fmt, va_list list)
{
    if (now.failed++ >= TOLD_MOST)
        return;
    printf("  FAILED %s: ", now.name);
    vprintf(fmt, list);
    printf(", %s, %s, seed %llu\n", dtype_name(now.type), why, (unsigned long long)seed);
}

void expect(double error, double bound, uint64_t seed, const char *fmt, ...)
{
    char why[80];
    va_list list;
    double of = bound > 0 ? bound : 1e-30;
    if (!now.of || error / of >= now.worst / now.of) {
        now.worst = error;
        now.of = of;
    }
    if (error <= bound) {
        now.passed++;
        return;
    }
    snprintf(why, sizeof why, "error %.3g, bound %.3g", error, bound);
    va_start(list, fmt);
    tell(seed, why, fmt, list);
    va_end(list);
}

void expect_that(bool is, uint64_t seed, const char *fmt, ...)
{
    va_list list;
    now.passed += is;
    va_start(list, fmt);
    if (!is)
        tell(seed, "not so", fmt, list);
    va_end(list);
}

void must(int rc, const struct err *err, const char *fmt, ...)
{
    char why[400];
    va_list list;
    if (rc >= 0)
        return;
    snprintf(why, sizeof why, "%.380s", err ? err->msg : "it failed");
    va_start(list, fmt);
    tell(options.seed, why, fmt, list);
    va_end(list);
    now.over = true;
    longjmp(now.end, 1);
}

void skipped(const char *fmt, ...)
{
    va_list list;
    if (now.skipped)
        return;
    now.skipped = true;
    printf("  skipped in %s, %s: ", now.name, dtype_name(now.type));
    va_start(list, fmt);
    vprintf(fmt, list);
    va_end(list);
    printf("\n");
}

void figure(const char *fmt, ...)
{
    va_list list;
    if (!options.figures)
        return;
    printf("  %s %s: ", now.name, dtype_name(now.type));
    va_start(list, fmt);
    vprintf(fmt, list);
    va_end(list);
    printf("\n");
}

/* ---- groups ---------------------------------------------------------------------------------- */

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static bool is_wanted(const struct group *g, enum dtype type)
{
    return (!options.filter || strstr(g->name, options.filter)) &&
           (!(g->when & GROUP_LARGE) || options.large) &&
           (!(g->when & GROUP_MODEL) || options.model) &&
           !(options.quick && ((g->when & GROUP_ONCE && type != DT_F32) ||
                               (g->when & GROUP_TWICE && type == DT_BF16)));
}

/* A group that ends early may leave anything behind, so the next has a device of its own. */
static void run_group(const struct group *g, struct device **dev, enum dtype type)
{
    struct err err;
    memset(&now, 0, sizeof now);
    now.name = g->name;
    now.type = type;
    double start = seconds();
    if (setjmp(now.end) == 0) {
        if (!*dev)
            must(device_make(dev, options.device, type, &err), &err, "opening %s", options.device);
        g->run(*dev, type);
    } else {
        *dev = NULL;
    }
    printf("%-22s %-4s %6d passed", g->name, dtype_name(type), now.passed);
    if (now.of)
        printf("  worst %.2g of %.2g", now.worst, now.of);
    printf("  %.2f s", seconds() - start);
    if (now.failed)
        printf("  %d FAILED%s", now.failed, now.over ? ", ended early" : "");
    printf("\n");
    fflush(stdout);
    passed += now.passed;
    failed += now.failed;
}

static void run_type(enum dtype type)
{
    static const struct group *const all[] = {device_groups, op_groups,     layer_groups,
                                              back_groups,   list_groups,   network_groups,
                                              step_groups,   picture_groups};
    struct device *dev = NULL;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        for (const struct group *g = all[i]; g->name; g++)
            if (is_wanted(g, type))
                run_group(g, &dev, type);
    device_close(dev);
}

/* ---- the program ----------------------------------------------------------------------------- */

static _Noreturn void usage(const char *why)
{
    fprintf(stderr,
            "%s\n--data DIR --model DIR --device cuda|cpu|ref|rounded --values f32|f16|bf16|all\n"
            "--filter WORDS --seed N --fuzz N --quick --large --figures --required\n",
            why);
    exit(1);
}

static void read_values(const char *s)
{
    static const struct {
        const char *name;
        enum dtype type;
    } known[] = {{"f32", DT_F32}, {"f16", DT_F16}, {"bf16", DT_BF16}};
    bool any = false;
    for (int i = 0; i < 3; i++) {
        options.values[known[i].type] = !strcmp(s, "all") || !strcmp(s, known[i].name);
        any = any || options.values[known[i].type];
    }
    if (!any)
        usage(s);
}

static void read_options(int n, char **arg)
{
    for (int i = 1; i < n; i++) {
        const char *key = arg[i], *v = i + 1 < n ? arg[i + 1] : NULL;
        bool *const flag = !strcmp(key, "--quick")      ? &options.quick
                           : !strcmp(key, "--large")    ? &options.large
                           : !strcmp(key, "--figures")  ? &options.figures
                           : !strcmp(key, "--required") ? &options.required
                                                        : NULL;
        const char **word = !strcmp(key, "--data")     ? &options.data
                            : !strcmp(key, "--model")  ? &options.model
                            : !strcmp(key, "--device") ? &options.device
                            : !strcmp(key, "--filter") ? &options.filter
                                                       : NULL;
        if (flag) {
            *flag = true;
            continue;
        }
        if (!v)
            usage(key);
        i++;
        if (word)
            *word = v;
        else if (!strcmp(key, "--values"))
            read_values(v);
        else if (!strcmp(key, "--seed"))
            options.seed = strtoull(v, NULL, 10);
        else if (!strcmp(key, "--fuzz"))
            options.fuzz = atoi(v);
        else
            usage(key);
    }
}

/* Whether there is a device at all, in float32; what it computes in, as it says itself. */
static bool has_device(void)
{
    struct device *dev = NULL;
    struct err err;
    if (device_make(&dev, options.device, DT_F32, &err) < 0) {
        printf("skipped: no CUDA device (%s)\n", err.msg);
        return false;
    }
    options.values[DT_F16] = options.values[DT_F16] && dev->be->narrow;
    options.values[DT_BF16] = options.values[DT_BF16] && dev->be->narrow;
    printf("%s: %s; seed %llu\n", dev->be->name, dev->be->about, (unsigned long long)options.seed);
    device_close(dev);
    return true;
}

int main(int n, char **arg)
{
    static const enum dtype types[] = {DT_F32, DT_F16, DT_BF16};
    double start = seconds();
    read_options(n, arg);
    if (options.quick) /* small as all is, threads only wait for each other */
        omp_set_num_threads(1);
    if (!has_device())
        return options.required;
    for (int i = 0; i < 3; i++)
        if (options.values[types[i]])
            run_type(types[i]);
    device_close(device_exact());
    printf("%d passed, %d failed (%.1f s)\n", passed, failed, seconds() - start);
    return failed > 0;
}
