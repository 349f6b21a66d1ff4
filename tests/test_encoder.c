/* Adapters and texts as vectors, by a small encoder that was never trained (tests/golden/encoder.py). */
#include "repo_fixture.h"
#include "shell.h"
#include "util.h"

#include "retrieve/encoder.h"
#include "retrieve/find.h"
#include "store/adapter.h"
#include "store/adapter_write.h"
#include "unet/matrices.h"
#include "unet/safetensors.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define ADAPTERS "assets/adapters/"
#define ENCODER  "tests/golden/data/encoder"

struct encoding {
    struct device *dev;
    struct model *m;
    struct responder *re;
    struct encoder *e;
};

static void encoding_open_as(struct encoding *c, const char *dir)
{
    struct err err;
    c->dev = test_device("cpu");
    cr_assert_eq(model_open(&c->m, c->dev, "assets/model", &err), 0, "%s", err.msg);
    cr_assert_eq(responder_open(&c->re, c->m, NULL, 0, &err), 0, "%s", err.msg);
    cr_assert_eq(encoder_open(&c->e, c->m, c->re, dir, "assets/scorer", &err), 0, "%s", err.msg);
}

static void encoding_open(struct encoding *c)
{
    encoding_open_as(c, ENCODER);
}

static void encoding_close(struct encoding *c)
{
    encoder_close(c->e);
    responder_close(c->re);
    model_close(c->m);
    device_close(c->dev);
}

struct vector {
    float v[1024];
    double strength;
};

static int read_path(struct encoding *c, const char *path, struct vector *out)
{
    struct adapter_file *f;
    struct adapter *a;
    struct bind_report report = {0};
    struct err err;
    cr_assert_eq(adapter_file_open(&f, path, &err), 0, "%s", err.msg);
    cr_assert_eq(adapter_bind(&a, c->dev, &c->m->sites, &f->list, "it", true, &report, &err), 0,
                 "%s", err.msg);
    struct response answer;
    cr_assert_eq(responder_read(c->re, a, &answer, &err), 0, "%s", err.msg);
    int rc = encoder_read(c->e, a, &answer, out->v, &out->strength, &err);
    cr_assert_geq(rc, 0, "%s", err.msg);
    response_release(&answer);
    bind_report_release(&report);
    adapter_free(a);
    adapter_file_close(f);
    return rc;
}

static void ask(struct encoding *c, const char *text, struct vector *to)
{
    struct query q;
    struct err err;
    cr_assert_eq(responder_ask(c->re, text, &q, &err), 0, "%s", err.msg);
    cr_assert_eq(encoder_ask(c->e, text, &q, to->v, &err), 0, "%s", err.msg);
    query_release(&q);
}

static double cosine(const struct encoding *c, const struct vector *a, const struct vector *b)
{
    double s = 0;
    for (int i = 0; i < c->e->dim; i++)
        s += (double)a->v[i] * b->v[i];
    return s;
}

/* ---- against the training code --------------------------------------------------------------- */

/* Of each kind one adapter, merged by peft or lycoris-lora and read by the encoder in PyTorch, and texts, to 1e-4
 * (tests/golden/encoder.py). */
Test(encoder, vectors_are_those_of_the_training_code)
{
    struct encoding c;
    struct safetensors *st;
    struct err err;
    int kinds = 0, texts = 0;
    encoding_open(&c);
    cr_assert_eq(safetensors_open(&st, "tests/golden/data/encoder.safetensors", &err), 0, "%s",
                 err.msg);
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const char *name = safetensors_name(st, i);
        const struct array *a = safetensors_at(st, i);
        struct vector got;
        float want[1024];
        cr_assert_leq(array_count(a), 1024);
        cr_assert_eq(array_to_finite(a, want, name, &err), 0);
        if (!strncmp(name, "text: ", 6)) {
            ask(&c, name + 6, &got);
            texts++;
        } else {
            char path[128];
            snprintf(path, sizeof path, ADAPTERS "%.*s.safetensors", (int)strcspn(name, " "), name);
            read_path(&c, path, &got);
            if (strstr(name, " strength")) {
                cr_expect_float_eq(got.strength, want[0], 1e-4 * want[0], "%s", name);
                continue;
            }
            kinds++;
        }
        cr_expect_lt(test_error(got.v, want, (size_t)c.e->dim), 1e-4, "%s", name);
    }
    cr_expect_geq(kinds, 5);
    cr_expect_geq(texts, 3);
    safetensors_close(st);
    encoding_close(&c);
}

/* ---- what must make no difference ------------------------------------------------------------ */

/* A shipped adapter's factors, changed by hand, in a file of their own. */
struct changed {
    struct encoding c;
    struct matrices m;
    char dir[64], path[128];
    struct vector as_is;
};

static void reload(struct changed *t)
{
    struct adapter_file *f;
    struct err err;
    matrices_release(&t->m);
    cr_assert_eq(adapter_file_open(&f, ADAPTERS "kite.safetensors", &err), 0, "%s", err.msg);
    cr_assert_eq(matrices_load(&t->m, &f->list, &err), 0, "%s", err.msg);
    adapter_file_close(f);
}

static void changed_open(struct changed *t, const char *encoder)
{
    memset(t, 0, sizeof *t);
    encoding_open_as(&t->c, encoder);
    snprintf(t->dir, sizeof t->dir, "/tmp/weft-test-XXXXXX");
    cr_assert(mkdtemp(t->dir));
    snprintf(t->path, sizeof t->path, "%.60s/it.safetensors", t->dir);
    reload(t);
    cr_assert_eq(read_path(&t->c, ADAPTERS "kite.safetensors", &t->as_is), 0);
}

static void changed_close(struct changed *t)
{
    unlink(t->path);
    rmdir(t->dir);
    matrices_release(&t->m);
    encoding_close(&t->c);
}

/* The cosine with what it was, and its strength by what that was. */
static double now(struct changed *t, double *strength)
{
    struct vector v;
    struct err err;
    cr_assert_eq(adapter_write(t->path, "diffusers", &t->m, NULL, 0, &err), 0, "%s", err.msg);
    cr_assert_eq(read_path(&t->c, t->path, &v), 0);
    if (strength)
        *strength = v.strength / t->as_is.strength;
    double cos = cosine(&t->c, &v, &t->as_is);
    reload(t);
    return cos;
}

/* B T and T^-1 A: T has 1, s, s^2 … on its diagonal and a half beside it. */
static void disguise(struct wide *f, double s)
{
    int r = f->rank;
    for (int k = 0; k < r; k++) {
        for (int i = 0; i < f->rows; i++)
            f->a[i * r + k] = (float)(f->a[i * r + k] * pow(s, k));
        for (size_t j = 0; j < f->cols; j++)
            f->b[(size_t)k * f->cols + j] = (float)(f->b[(size_t)k * f->cols + j] / pow(s, k));
    }
    for (int k = 1; k < r; k++) {
        for (int i = 0; i < f->rows; i++)
            f->a[i * r + k] += .5f * f->a[i * r + k - 1];
        for (size_t j = 0; j < f->cols; j++)
            f->b[(size_t)(k - 1) * f->cols + j] -= .5f * f->b[(size_t)k * f->cols + j];
    }
}

static void pad(struct wide *f, int more)
{
    int r = f->rank, n = r + more;
    float *a = calloc((size_t)f->rows * (size_t)n, sizeof *a);
    float *b = calloc((size_t)n * f->cols, sizeof *b);
    for (int i = 0; i < f->rows; i++)
        memcpy(a + i * n, f->a + i * r, (size_t)r * sizeof *a);
    memcpy(b, f->b, (size_t)r * f->cols * sizeof *b);
    free(f->a);
    free(f->b);
    *f = (struct wide){f->rows, n, f->cols, a, b};
}

static void halve(float *v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        uint32_t u;
        memcpy(&u, &v[i], sizeof u);
        u = (u + 0xfff + (u >> 13 & 1)) & ~0x1fffu; /* ten bits of fraction, as float16 */
        memcpy(&v[i], &u, sizeof u);
    }
}

/* The same dW in other factors, well and badly conditioned, with empty ranks, by its singular vectors, in half
 * precision: cosine 0.999 and more. */
Test(encoder, only_the_product_counts)
{
    struct changed t;
    struct err err;
    double kept;
    changed_open(&t, ENCODER);
    static const double steep[] = {1, 2, 10, 100};
    for (int k = 0; k < 4; k++) {
        for (int i = 0; i < t.m.n; i++)
            disguise(&t.m.item[i].m.f[0], steep[k]);
        cr_expect_gt(now(&t, NULL), .999, "steep %g", steep[k]);
    }
    for (int i = 0; i < t.m.n; i++)
        pad(&t.m.item[i].m.f[0], 1 + i % 5);
    cr_expect_gt(now(&t, NULL), .999, "padded");
    cr_assert_eq(matrices_truncate(&t.m, 1000, 1, &kept, &err), 0, "%s", err.msg);
    cr_expect_gt(now(&t, NULL), .999, "by singular vectors");
    for (int i = 0; i < t.m.n; i++) {
        struct wide *f = &t.m.item[i].m.f[0];
        halve(f->a, (size_t)(f->rows * f->rank));
        halve(f->b, (size_t)f->rank * f->cols);
    }
    cr_expect_gt(now(&t, NULL), .999, "halved");
    changed_close(&t);
}

/* kohya's, diffusers' and peft's spelling of one adapter. */
Test(encoder, the_layout_makes_no_difference)
{
    static const char *const style[] = {"kohya", "diffusers"};
    struct changed t;
    struct err err;
    changed_open(&t, ENCODER);
    for (int i = 0; i < 2; i++) {
        struct vector v;
        cr_assert_eq(adapter_write(t.path, style[i], &t.m, NULL, 0, &err), 0, "%s", err.msg);
        cr_assert_eq(read_path(&t.c, t.path, &v), 0);
        cr_expect_gt(cosine(&t.c, &v, &t.as_is), .999, "%s", style[i]);
    }
    changed_close(&t);
}

/* A stronger adapter has the same vector and another strength. */
Test(encoder, strength_is_told_apart)
{
    struct changed t;
    changed_open(&t, ENCODER);
    static const double by[] = {.25, .5, 2};
    for (int k = 0; k < 3; k++) {
        double strength;
        for (int i = 0; i < t.m.n; i++)
            t.m.item[i].m.scale *= (float)by[k];
        cr_expect_gt(now(&t, &strength), .99999, "times %g", by[k]);
        cr_expect_float_eq(strength, by[k], 1e-3);
    }
    changed_close(&t);
}

static void drop(struct matrices *m, int i)
{
    matrix_release(&m->item[i].m);
    free(m->item[i].site);
    memmove(&m->item[i], &m->item[i + 1], (size_t)(m->n - i - 1) * sizeof *m->item);
    m->n--;
}

/* The shipped encoder and an adapter of rank 4: how like its vector stays with fewer ranks, and with sites left out. Less
 * is ever less like: .9996, .992, .942 of 3, 2, 1 ranks; .964, .909, .812 without an 8th, a 4th, half of the sites. */
Test(encoder, falls_off_gently)
{
    static const double least_by_rank[] = {0, .9, .98, .99}, least_by_share[] = {.95, .88, .78};
    struct changed t;
    struct err err;
    double kept, last = 1;
    changed_open(&t, "assets/retriever");
    for (int rank = 3; rank >= 1; rank--) {
        cr_assert_eq(matrices_truncate(&t.m, rank, 1, &kept, &err), 0, "%s", err.msg);
        double cos = now(&t, NULL);
        cr_expect_gt(cos, least_by_rank[rank], "rank %d: %g", rank, cos);
        cr_expect_lt(cos, last, "rank %d: %g", rank, cos);
        last = cos;
    }
    last = 1;
    for (int k = 0; k < 3; k++) { /* every 8th, 4th, 2nd left out */
        int step = 8 >> k, n = t.m.n;
        for (int i = n - 1; i >= 0; i--)
            if (i % step == 0)
                drop(&t.m, i);
        double cos = now(&t, NULL);
        cr_expect_gt(cos, least_by_share[k], "every %d left out: %g", step, cos);
        cr_expect_lt(cos, last);
        last = cos;
    }
    changed_close(&t);
}

/* ---- in a repository ------------------------------------------------------------------------- */

static int count(void *user, int done, int total)
{
    (void)done;
    *(int *)user = total;
    return 0;
}

/* All that is found for a text; the repository is opened and closed. */
static int found(struct encoding *c, const char *home, enum repo_mode mode, struct found *to,
                 int *read)
{
    struct repo *r;
    struct finder *f;
    struct found *list;
    struct err err;
    int n, unread;
    *read = 0;
    cr_assert_eq(repo_open(&r, home, mode, &err), 0, "%s", err.msg);
    cr_assert_eq(finder_open(&f, r, c->m, ENCODER, "assets/scorer", &err), 0, "%s", err.msg);
    cr_expect_float_eq(finder_least(f), .3, 1e-12);
    cr_assert_eq(finder_read(f, count, read, &unread, &err), 0, "%s", err.msg);
    cr_expect_eq(unread, 0);
    cr_assert_eq(finder_ask(f, "a kite", &list, &n, &err), 0, "%s", err.msg);
    cr_assert_leq(n, 8);
    memcpy(to, list, (size_t)n * sizeof *to);
    for (int i = 0; i < n; i++)
        cr_expect_float_eq(finder_alike(f, list[i].key, list[i].key), 1, 1e-5);
    free(list);
    finder_close(f);
    repo_close(r);
    return n;
}

/* Vectors come out of a repository that keeps them, one that was only read, and files, as the same: likenesses are
 * inner products, scores follow from likeness and answer. */
Test(encoder, finds_in_a_repository)
{
    static const char *const what[] = {"kite", "beaver", "llama", "genie", "turkey", "tower"};
    const char *path[6];
    char file[6][64];
    struct encoding c;
    struct fixture f;
    struct found first[8], kept[8], again[8];
    struct vector v, q;
    double odds[6], all = 1;
    int read;
    encoding_open(&c);
    fixture_open(&f);
    for (int i = 0; i < 6; i++) {
        snprintf(file[i], sizeof file[i], ADAPTERS "%s.safetensors", what[i]);
        path[i] = file[i];
    }
    struct repo_sum sum;
    cr_assert_eq(repo_add(f.r, path, 6, &(struct repo_add){0}, &sum, &f.err), 0, "%s", f.err.msg);
    cr_assert_eq(sum.added, 6);
    cr_assert_eq(found(&c, f.home, REPO_READ, first, &read), 6);
    cr_expect_eq(read, 6);
    cr_assert_eq(found(&c, f.home, REPO_WRITE, kept, &read), 6);
    cr_expect_eq(read, 6, "nothing was kept by a reader");
    cr_assert_eq(found(&c, f.home, REPO_READ, again, &read), 6);
    cr_expect_eq(read, 0, "all was kept");
    ask(&c, "a kite", &q);
    for (int i = 0; i < 6; i++) {
        struct repo_adapter a;
        cr_expect_eq(first[i].key, kept[i].key);
        cr_expect_eq(again[i].key, kept[i].key);
        cr_expect_float_eq(first[i].likeness, kept[i].likeness, 1e-5);
        cr_expect_float_eq(again[i].answer, kept[i].answer, 1e-6);
        odds[i] = encoder_odds(c.e, kept[i].likeness, kept[i].answer);
        all += odds[i];
        cr_assert_eq(repo_at(f.r, kept[i].key, &a, &f.err), 0);
        cr_assert_eq(read_path(&c, a.path, &v), 0);
        cr_expect_float_eq(kept[i].likeness, cosine(&c, &v, &q), 1e-5, "%s", a.name);
        repo_adapter_release(&a);
    }
    for (int i = 0; i < 6; i++)
        cr_expect_float_eq(kept[i].score, odds[i] / all, 1e-9);
    fixture_close(&f);
    encoding_close(&c);
}

/* weft add reads weights and search need not; two things are found at once, with where they act; similar tells who does
 * the same though its weights are others. */
Test(encoder, on_the_command_line)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "add", "assets/adapters", "--home", in(&s, "home"), "--unread", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(access(in(&s, "home/index"), F_OK) != 0);
    weft(&s, "search", "a melon next to a saxophone", "-k", "3", "--weights-only", "--json",
         "--home", in(&s, "home"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"melon\"") && strstr(s.out, "\"saxophone\""), "%s", s.out);
    cr_expect(strstr(s.out, "most to melon, in "), "%s", s.out);
    cr_expect(strstr(s.out, " to_v (") || strstr(s.out, " to_k ("), "%s", s.out);
    weft(&s, "similar", "kite", "--json", "--home", in(&s, "home"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"otter\"") && strstr(s.out, "\"weights\":null"), "%s", s.out);
    cr_expect(strstr(s.out, "cosine of what they do"), "%s", s.out);
    shell_close(&s);
}

/* ---- what is refused ------------------------------------------------------------------------- */

Test(encoder, belongs_to_one_model)
{
    struct device *dev = test_device("cpu");
    struct model *m;
    struct encoder *e;
    struct err err;
    cr_assert_eq(model_open(&m, dev, "tests/golden/data/tiny-sd1", &err), 0, "%s", err.msg);
    cr_expect_eq(encoder_open(&e, m, NULL, ENCODER, "assets/scorer", &err), ERR_MISMATCH);
    cr_expect(strstr(err.msg, "another model"), "%s", err.msg);
    cr_expect_null(e);
    cr_expect_eq(encoder_open(&e, m, NULL, "assets/scorer", "assets/scorer", &err), ERR_MISMATCH);
    cr_expect_eq(encoder_open(&e, m, NULL, "tests", "assets/scorer", &err), ERR_IO);
    model_close(m);
    device_close(dev);
}
