/* Adapters as files again: conversions and computed ones must read back as the same deltas. */
#include "store/adapter.h"
#include "store/adapter_write.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define DATA "tests/golden/data/deltas/"

static struct adapter_file *opened(const char *path)
{
    struct adapter_file *f = NULL;
    struct err err;
    cr_assert_eq(adapter_file_open(&f, path, &err), 0, "%s", err.msg);
    return f;
}

static struct matrices loaded(const struct adapter_file *f)
{
    struct matrices m;
    struct err err;
    cr_assert_eq(matrices_load(&m, &f->list, &err), 0, "%s", err.msg);
    return m;
}

/* |a - b| / |b| over all sites. */
static double distance(const struct matrices *a, const struct matrices *b)
{
    double aa = matrices_inner(a, a), bb = matrices_inner(b, b), ab = matrices_inner(a, b);
    return sqrt(fabs(aa + bb - 2 * ab) / bb);
}

static void remove_all(char *dir)
{
    char command[300];
    snprintf(command, sizeof command, "rm -r '%s'", dir);
    cr_expect_eq(system(command), 0);
}

Test(adapter_write, every_style_says_the_same)
{
    static const char *const style[] = {"kohya", "diffusers", "peft"};
    static const char *const kase[] = {"locon.safetensors", "locon-bf16-i64.safetensors",
                                       "peft-lora", "peft-patterns"};
    char dir[] = "/tmp/weft-write-XXXXXX", path[300];
    struct err err;
    cr_assert(mkdtemp(dir));
    for (size_t k = 0; k < sizeof kase / sizeof *kase; k++)
        for (int s = 0; s < 3; s++) {
            snprintf(path, sizeof path, DATA "%s", kase[k]);
            struct adapter_file *from = opened(path), *to;
            snprintf(path, sizeof path, "%s/%zu-%s%s", dir, k, style[s],
                     s == 2 ? "" : ".safetensors");
            cr_assert_eq(adapter_convert(path, style[s], &from->list, NULL, 0, &err), 0, "%s",
                         err.msg);
            to = opened(path);
            struct matrices a = loaded(from), b = loaded(to);
            cr_expect_eq(a.n, b.n);
            cr_expect_str_eq(to->style, s ? "peft" : "kohya");
            for (int i = 0; i < a.n; i++) {
                const struct wide *x = &a.item[i].m.f[0], *y = &b.item[i].m.f[0];
                cr_expect_str_eq(a.item[i].site, b.item[i].site);
                cr_expect_eq(x->rank, y->rank);
                cr_expect_arr_eq(x->b, y->b, (size_t)x->rank * x->cols * sizeof *x->b);
            }
            cr_expect_leq(distance(&b, &a), 1e-7, "%s as %s", kase[k], style[s]);
            matrices_release(&a);
            matrices_release(&b);
            adapter_file_close(from);
            adapter_file_close(to);
        }
    remove_all(dir);
}

/* DoRA goes from LyCORIS's spelling to PEFT's and back without a bit lost. */
Test(adapter_write, dora_there_and_back)
{
    char dir[] = "/tmp/weft-write-XXXXXX", there[300], back[300];
    struct err err;
    cr_assert(mkdtemp(dir));
    snprintf(there, sizeof there, "%s/there.safetensors", dir);
    snprintf(back, sizeof back, "%s/back.safetensors", dir);
    struct adapter_file *a = opened(DATA "dora.safetensors"), *b, *c;
    cr_assert_eq(adapter_convert(there, "diffusers", &a->list, NULL, 0, &err), 0, "%s", err.msg);
    b = opened(there);
    cr_assert_eq(adapter_convert(back, "kohya", &b->list, NULL, 0, &err), 0, "%s", err.msg);
    c = opened(back);
    cr_assert_eq(a->list.n, c->list.n);
    for (int i = 0; i < a->list.n; i++) {
        const struct delta *x = &a->list.item[i].d, *y = &c->list.item[i].d;
        size_t n = array_count(&x->magnitude) * 2;
        cr_expect_str_eq(a->list.item[i].site, c->list.item[i].site);
        cr_expect_eq(x->by_column, y->by_column);
        cr_expect_arr_eq(x->magnitude.data, y->magnitude.data, n);
    }
    adapter_file_close(a);
    adapter_file_close(b);
    adapter_file_close(c);
    remove_all(dir);
}

Test(adapter_write, refuses_what_a_style_cannot_hold)
{
    static const struct {
        const char *kase, *style, *words;
    } no[] = {
        {"loha.safetensors", "kohya", "LoHa"},
        {"locon-tucker.safetensors", "diffusers", "middle factor"},
        {"dora-columns.safetensors", "diffusers", "DoRA by columns"},
        {"locon.safetensors", "comfy", "there are kohya, diffusers, peft"},
    };
    char path[300];
    struct err err;
    for (size_t i = 0; i < sizeof no / sizeof *no; i++) {
        snprintf(path, sizeof path, DATA "%s", no[i].kase);
        struct adapter_file *f = opened(path);
        cr_expect(adapter_convert("/tmp/weft-never", no[i].style, &f->list, NULL, 0, &err) < 0);
        cr_expect(strstr(err.msg, no[i].words), "%s", err.msg);
        cr_expect(access("/tmp/weft-never", F_OK) < 0);
        adapter_file_close(f);
    }
}

/* 0.7 A + 0.5 B, of different ranks and kinds, written and read: the exact sum; then the best of rank 3, and
 * what it says it lost. */
Test(adapter_write, sums_and_lower_ranks)
{
    char path[] = "/tmp/weft-write-XXXXXX.safetensors";
    struct err err;
    struct adapter_file *fa = opened(DATA "locon.safetensors"),
                        *fb = opened(DATA "lokr.safetensors");
    struct matrices a = loaded(fa), b = loaded(fb), sum, back;
    const double w[] = {0.7, 0.5};
    double kept;
    close(mkstemps(path, 12));
    cr_assert_eq(matrices_sum(&sum, 2, (const struct matrices *const[]){&a, &b}, w, &err),
                 ERR_UNSUPPORTED);
    cr_expect(strstr(err.msg, "no exact sum"), "%s", err.msg);
    matrices_release(&sum);
    adapter_file_close(fb);
    matrices_release(&b);

    fb = opened(DATA "peft-lora");
    b = loaded(fb);
    cr_assert_eq(matrices_sum(&sum, 2, (const struct matrices *const[]){&a, &b}, w, &err), 0, "%s",
                 err.msg);
    double want =
        .49 * matrices_inner(&a, &a) + .25 * matrices_inner(&b, &b) + .7 * matrices_inner(&a, &b);
    cr_expect_float_eq(matrices_inner(&sum, &sum) / want, 1, 1e-6);
    cr_assert_eq(adapter_write(path, "kohya", &sum, NULL, 0, &err), 0, "%s", err.msg);
    struct adapter_file *f = opened(path);
    back = loaded(f);
    cr_expect_leq(distance(&back, &sum), 2e-4); /* a difference of squares: half the digits */
    matrices_release(&back);
    adapter_file_close(f);

    struct matrices whole;
    cr_assert_eq(matrices_sum(&whole, 2, (const struct matrices *const[]){&a, &b}, w, &err), 0);
    cr_assert_eq(matrices_truncate(&sum, 3, 1, &kept, &err), 0, "%s", err.msg);
    cr_expect(kept < 0.999 && kept > 0.5, "kept %g", kept);
    double d = distance(&sum, &whole);
    cr_expect_float_eq(d * d, 1 - kept, 1e-5);
    cr_assert_eq(matrices_truncate(&whole, 100, 0.9, &kept, &err), 0, "%s", err.msg);
    cr_expect(kept >= 0.9 && kept < 1, "kept %g", kept);
    unlink(path);
    matrices_release(&a), matrices_release(&b), matrices_release(&sum), matrices_release(&whole);
    adapter_file_close(fa);
    adapter_file_close(fb);
}
