/* Nothing is allocated once a picture's steps are under way: counted over the whole process, libraries included,
 * by standing in for malloc. One exception: dnnl_primitive_execute makes a table of its arguments each time, which
 * the C API gives no way to keep; what it takes must be given back before it returns. */
#include "compose_fixture.h"

#include <dlfcn.h>
#include <dnnl.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#ifdef __SANITIZE_ADDRESS__
#define COUNTED false /* the sanitizer has a malloc of its own */
static long allocations(void)
{
    return 0;
}
static long live(void)
{
    return 0;
}
#else
#define COUNTED true
/* glibc's own, below the names that everything links to. */
extern void *__libc_malloc(size_t n);
extern void *__libc_calloc(size_t n, size_t size);
extern void *__libc_realloc(void *p, size_t n);
extern void *__libc_memalign(size_t align, size_t n);
void *memalign(size_t align, size_t n);

extern void __libc_free(void *p);

static long count, held; /* outside of oneDNN's execute; blocks in use */
static int within;       /* oneDNN's execute */

static long allocations(void)
{
    return __atomic_load_n(&count, __ATOMIC_RELAXED);
}

static long live(void)
{
    return __atomic_load_n(&held, __ATOMIC_RELAXED);
}

static void counted(void)
{
    if (!__atomic_load_n(&within, __ATOMIC_RELAXED))
        __atomic_add_fetch(&count, 1, __ATOMIC_RELAXED);
    __atomic_add_fetch(&held, 1, __ATOMIC_RELAXED);
}

dnnl_status_t dnnl_primitive_execute(const_dnnl_primitive_t primitive, dnnl_stream_t stream, int n,
                                     const dnnl_exec_arg_t *args)
{
    static dnnl_status_t (*real)(const_dnnl_primitive_t, dnnl_stream_t, int,
                                 const dnnl_exec_arg_t *);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "dnnl_primitive_execute");
    __atomic_add_fetch(&within, 1, __ATOMIC_RELAXED);
    dnnl_status_t st = real(primitive, stream, n, args);
    __atomic_sub_fetch(&within, 1, __ATOMIC_RELAXED);
    return st;
}

void *malloc(size_t n)
{
    counted();
    return __libc_malloc(n);
}

void *calloc(size_t n, size_t size)
{
    counted();
    return __libc_calloc(n, size);
}

void *realloc(void *p, size_t n)
{
    counted();
    if (p)
        __atomic_sub_fetch(&held, 1, __ATOMIC_RELAXED);
    return __libc_realloc(p, n);
}

void free(void *p)
{
    if (p)
        __atomic_sub_fetch(&held, 1, __ATOMIC_RELAXED);
    __libc_free(p);
}

void *memalign(size_t align, size_t n)
{
    counted();
    return __libc_memalign(align, n);
}

void *aligned_alloc(size_t align, size_t n)
{
    return memalign(align, n);
}

int posix_memalign(void **out, size_t align, size_t n)
{
    *out = memalign(align, n);
    return *out ? 0 : ENOMEM;
}
#endif

enum { STEPS = 9 };

static int on_step(void *user, int done, int total)
{
    long(*at)[2] = user;
    (void)total;
    if (done <= STEPS) {
        at[done][0] = allocations();
        at[done][1] = live();
    }
    return 0;
}

/* Every strategy alone, and at the end all of them together with samplers that draw noise. */
static void check(struct fixture *f, const char *const *compose, int n)
{
    struct generator *g;
    struct picture p[16];
    struct image im[16];
    struct err err;
    long at[STEPS + 1][2];
    for (int i = 0; i < n; i++) {
        picture_init(&p[i], f->m);
        p[i].prompt = &f->prompt;
        p[i].negative = &f->negative;
        p[i].steps = STEPS;
        p[i].compose = compose[i];
        p[i].use = f->use;
        p[i].n_use = 2;
        p[i].gates = f->gates;
        p[i].sampler = i % 2 ? "euler_a" : NULL;
    }
    cr_assert_eq(generator_open(&g, f->m, &err), 0);
    cr_assert_eq(generator_prepare(g, p, n, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(generator_run(g, im, on_step, at, &err), 0, "%s", err.msg);
    for (int i = 1; i < STEPS; i++)
        cr_expect(at[i + 1][0] == at[i][0] && at[i + 1][1] == at[i][1],
                  "%s: step %d of %d allocates %ld times, %ld blocks more are held", compose[0],
                  i + 1, STEPS, at[i + 1][0] - at[i][0], at[i + 1][1] - at[i][1]);
    for (int i = 0; i < n; i++)
        image_release(&im[i]);
    generator_close(g);
}

Test(allocation, none_after_the_first_step)
{
    static const char *const compose[] = {"merge",
                                          "switch:tau=2",
                                          "composite",
                                          "cmlora",
                                          "wswitch",
                                          "merge:deepcache=3",
                                          "merge:uncond=base",
                                          "mora",
                                          "gated",
                                          "attend:keep=.2",
                                          "router",
                                          "freefuse",
                                          "clora:rate=5,extra=1",
                                          "clora:memory=least",
                                          "composer:rate=5",
                                          "regions"};
    struct fixture f;
    if (!COUNTED)
        cr_skip_test("the sanitizer's malloc cannot be counted");
    long before = allocations();
    void *volatile one = calloc(3, 5);
    free(one);
    cr_assert_eq(allocations(), before + 1, "malloc is not ours: nothing would be counted");
    fixture_open(&f, "an [owl:castle:3]");
    for (size_t i = 0; i < sizeof compose / sizeof *compose; i++)
        check(&f, &compose[i], 1);
    check(&f, compose, sizeof compose / sizeof *compose);
    fixture_close(&f);
}
