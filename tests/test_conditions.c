/* What prompts become: rows, schedules, and word weights with A1111's own normalisation. */
#include "compose/conditions.h"
#include "unet/model.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MODEL "tests/golden/data/tiny-sd1"

struct fixture {
    struct device *dev;
    struct model *m;
    struct run pass, keep;
    struct conditions c;
};

static void fixture_open(struct fixture *f, const char *text, const char *negative, int steps)
{
    struct prompt p, n;
    struct err err;
    memset(f, 0, sizeof *f);
    f->dev = test_device("cpu");
    cr_assert_eq(model_open(&f->m, f->dev, MODEL, &err), 0, "%s", err.msg);
    cr_assert_eq(prompt_read(&p, text, &err), 0);
    cr_assert_eq(prompt_read_negative(&n, negative ? negative : "", &err), 0);
    cr_assert_eq(conditions_parse(&f->c, f->m->tokenizer, NULL, f->m->text->positions, &p,
                                  negative ? &n : NULL, steps, &err),
                 0, "%s", err.msg);
    prompt_release(&p);
    prompt_release(&n);
    run_init(&f->pass, f->dev);
    run_init(&f->keep, f->dev);
}

static void place(struct fixture *f, struct tensor *hidden)
{
    for (int i = 0; i < f->c.n_text; i++)
        hidden[i] = run_tensor(&f->keep, 1, f->c.n_chunk * f->c.length, 1, f->m->text->tower.width);
}

/* The encoding of text k, on the host. */
static float *encoded(struct fixture *f, int k)
{
    struct tensor hidden[64];
    struct err err;
    cr_assert_lt(f->c.n_text, 64);
    run_measure(&f->keep);
    place(f, hidden);
    cr_assert_eq(run_commit(&f->keep, &err), 0);
    place(f, hidden);
    cr_assert_eq(conditions_encode(&f->c, f->m->text, 0, &f->pass, hidden, &err), 0, "%s", err.msg);
    float *host = malloc(tensor_count(&hidden[k]) * sizeof *host);
    f->dev->be->download(f->dev, host, &hidden[k], &err);
    return host;
}

static void fixture_close(struct fixture *f)
{
    conditions_release(&f->c);
    run_release(&f->pass);
    run_release(&f->keep);
    model_close(f->m);
    device_close(f->dev);
}

/* z * weight, then * mean(z) / mean(z * weight) over the chunk, as A1111's process_tokens does. */
Test(conditions, words_are_weighted_as_a1111_does)
{
    struct fixture plain, heavy;
    fixture_open(&plain, "a red apple", NULL, 10);
    fixture_open(&heavy, "a (red:1.5) [apple]", NULL, 10);
    size_t len = (size_t)plain.c.length, width = (size_t)plain.m->text->tower.width;
    const struct prompt_chunks *a = &plain.c.chunks[0], *b = &heavy.c.chunks[0];
    cr_assert(!memcmp(a->id, b->id, len * sizeof *a->id), "other tokens");
    cr_assert(!a->weighted && b->weighted);
    float *z = encoded(&plain, 0), *got = encoded(&heavy, 0);
    double before = 0, after = 0;
    int touched = 0;
    for (size_t i = 0; i < len; i++) {
        touched += b->weight[i] != 1;
        for (size_t k = 0; k < width; k++) {
            before += (double)z[i * width + k];
            after += (double)z[i * width + k] * (double)b->weight[i];
        }
    }
    cr_assert_geq(touched, 2, "no token has a weight");
    float *want = malloc(len * width * sizeof *want);
    for (size_t i = 0; i < len * width; i++)
        want[i] = (float)((double)z[i] * (double)b->weight[i / width] * before / after);
    double e = test_error(got, want, len * width);
    cr_expect_leq(e, 1e-6, "off by %.2e", e);
    cr_expect_gt(test_error(got, z, len * width), 1e-2, "the weights had no effect");
    free(z);
    free(got);
    free(want);
    fixture_close(&plain);
    fixture_close(&heavy);
}

Test(conditions, rows_and_schedules)
{
    struct fixture f;
    fixture_open(&f, "a [red:blue:0.5] key AND [owl|fox]:0.25", "bad [worse:7]", 10);
    cr_assert_eq(f.c.n_row, 3);
    cr_expect_eq(f.c.row[1].weight, 1);
    cr_expect_eq(f.c.row[2].weight, 0.25);
    for (int step = 0; step < 10; step++) { /* A1111 counts from 0 and tests step <= until */
        int n = conditions_at(&f.c, 0, step), a = conditions_at(&f.c, 1, step);
        cr_expect_eq(n, step <= 7 ? 0 : 1, "negative at step %d: %d", step, n);
        cr_expect_eq(a, step <= 5 ? 2 : 3, "first part at step %d: %d", step, a);
        const struct prompt_stages *s = &f.c.row[2].stages;
        const char *text = s->stage[conditions_at(&f.c, 2, step) - f.c.row[2].first].text;
        cr_expect(strstr(text, step < 2 || step % 2 ? "owl" : "fox"), "second part at step %d: %s",
                  step, text);
    }
    fixture_close(&f);
}

/* Long texts make every row as long as the longest, so that all fit in one batch. */
Test(conditions, rows_are_equally_long)
{
    struct fixture f;
    char text[2000] = "";
    for (int i = 0; i < 100; i++)
        strcat(text, "an owl ");
    fixture_open(&f, text, "", 5);
    cr_assert_eq(f.c.n_row, 2);
    cr_assert_gt(f.c.n_chunk, 1);
    cr_assert_eq(f.c.chunks[0].n_chunk, f.c.chunks[1].n_chunk);
    float *z = encoded(&f, 0);
    size_t n = (size_t)f.c.n_chunk * (size_t)f.c.length * (size_t)f.m->text->tower.width;
    for (size_t i = 0; i < n; i++)
        cr_assert(isfinite(z[i]));
    free(z);
    fixture_close(&f);
}

/* In a negative prompt AND is a word and a number at the end is text; <lora:…> is refused. */
Test(conditions, negative_prompts_are_plain)
{
    struct prompt n;
    struct err err;
    cr_assert_eq(prompt_read_negative(&n, "ratio 16:9 AND y:2", &err), 0);
    cr_assert_eq(n.n_part, 1);
    cr_expect_str_eq(n.part[0].text, "ratio 16:9 AND y:2");
    cr_expect_eq(n.part[0].weight, 1);
    prompt_release(&n);
    cr_assert_eq(prompt_read_negative(&n, "x <lora:y:1>", &err), ERR_ARG);
}
