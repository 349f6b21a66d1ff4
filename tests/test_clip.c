/* CLIP's two towers and the preprocessing of pictures against transformers (tests/golden/clip.py).
 * WEFT_PARITY_CLIP=DIR[:DIR…] adds real sizes made by hand. */
#include "unet/safetensors.h"
#include "unet/scorer.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Relative error of embeddings; pixels may be off by one of 255 here and there. */
#define BOUND 1e-4

static float *values(const struct safetensors *st, const char *name, size_t *n)
{
    const struct array *a = safetensors_find(st, name);
    cr_assert(a, "no %s", name);
    *n = array_count(a);
    float *f = malloc(*n * sizeof *f);
    array_to_f32(a, f);
    return f;
}

static void compare(const char *dir, const char *what, const float *got, const float *want,
                    size_t n)
{
    double e = test_error(got, want, n);
    if (getenv("WEFT_PARITY_CLIP"))
        printf("%s: %-8s %.2e\n", dir, what, e);
    cr_expect_leq(e, BOUND, "%s: %s is off by %.2e", dir, what, e);
}

static void check_texts(struct scorer *s, const struct safetensors *st, const char *dir)
{
    const struct array *ids = safetensors_find(st, "ids");
    int n = (int)ids->dim[0], len = (int)ids->dim[1];
    int32_t *copy = malloc(array_count(ids) * sizeof *copy);
    struct err err;
    size_t count;
    memcpy(copy, ids->data, array_count(ids) * sizeof *copy);
    float *want = values(st, "text", &count), *got = malloc(count * sizeof *got);
    run_measure(&s->run);
    clip_embed_text(s->clip, &s->run, copy, n, len);
    cr_assert_eq(run_commit(&s->run, &err), 0);
    struct tensor y = clip_embed_text(s->clip, &s->run, copy, n, len);
    cr_assert_eq(run_check(&s->run, &err), 0, "%s", err.msg);
    s->dev->be->download(s->dev, got, &y, &err);
    compare(dir, "text", got, want, count);
    run_reset(&s->run);
    free(copy);
    free(want);
    free(got);
}

static void check_images(struct scorer *s, const struct safetensors *st, const char *dir)
{
    const struct array *a = safetensors_find(st, "image");
    struct image im = {.h = (int)a->dim[0], .w = (int)a->dim[1], .rgb = (uint8_t *)a->data};
    size_t n, k, dim = (size_t)s->clip->dim;
    struct err err;
    float *pixels = values(st, "pixels", &n), *px = malloc(n * sizeof *px);
    cr_assert_eq(scorer_pixels(s, &im, px, &err), 0, "%s", err.msg);
    compare(dir, "pixels", px, pixels, n);
    float *want = values(st, "vision", &k), *got = malloc(3 * dim * sizeof *got);
    cr_assert_eq(scorer_image(s, &im, got, &err), 0, "%s", err.msg);
    double length = 0;
    for (size_t i = 0; i < dim; i++)
        length += (double)want[i] * want[i];
    for (size_t i = 0; i < dim; i++)
        want[i] = (float)(want[i] / sqrt(length));
    compare(dir, "vision", got, want, dim);
    /* several at once are the same bits as one */
    const struct image three[3] = {im, im, im};
    float *all = malloc(3 * dim * sizeof *all);
    cr_assert_eq(scorer_images(s, three, 3, all, &err), 0);
    for (int i = 0; i < 3; i++)
        cr_expect(!memcmp(all + (size_t)i * dim, got, dim * sizeof *got), "row %d differs", i);
    free(pixels);
    free(px);
    free(want);
    free(got);
    free(all);
}

static void check(const char *dir, const char *backend)
{
    struct device *dev = test_device(backend);
    struct scorer *s = NULL;
    struct safetensors *st = NULL;
    struct err err;
    char path[500];
    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    cr_assert_eq(scorer_open(&s, dev, dir, &err), 0, "%s", err.msg);
    cr_assert_eq(safetensors_open(&st, path, &err), 0, "%s", err.msg);
    check_texts(s, st, dir);
    check_images(s, st, dir);
    safetensors_close(st);
    scorer_close(s);
    device_close(dev);
}

Test(clip, towers_of_a_tiny_model)
{
    check("tests/golden/data/tiny-clip", "cpu");
    check("tests/golden/data/tiny-clip", "ref");
}

Test(clip, by_hand, .timeout = 0)
{
    const char *dirs = getenv("WEFT_PARITY_CLIP");
    char *copy = dirs ? strdup(dirs) : NULL, *save = NULL;
    if (!dirs)
        cr_skip_test("WEFT_PARITY_CLIP names no folder made by tests/golden/clip.py");
    for (char *d = strtok_r(copy, ":", &save); d; d = strtok_r(NULL, ":", &save))
        check(d, "cpu");
    free(copy);
}

Test(clip, texts_and_pictures_of_any_size)
{
    struct device *dev = test_device("cpu");
    struct scorer *s = NULL;
    struct err err;
    float a[64], b[64];
    char text[4000] = "";
    uint8_t rgb[200 * 40 * 3];
    cr_assert_eq(scorer_open(&s, dev, "tests/golden/data/tiny-clip", &err), 0, "%s", err.msg);
    cr_assert_eq(scorer_text(s, "", a, &err), 0);
    for (int i = 0; i < 200; i++)
        strcat(text, "an owl ");
    cr_assert_eq(scorer_text(s, text, b, &err), 0, "%s", err.msg); /* cut, not refused */
    cr_assert_eq(scorer_text(s, text, a, &err), 0);
    cr_expect_float_eq(scorer_cosine(s, a, b), 1, 1e-6);
    for (size_t i = 0; i < sizeof rgb; i++)
        rgb[i] = (uint8_t)(i * 7);
    const struct image wide = {200, 40, rgb}, high = {40, 200, rgb}, dot = {1, 1, rgb};
    cr_assert_eq(scorer_image(s, &wide, a, &err), 0, "%s", err.msg);
    cr_assert_eq(scorer_image(s, &high, a, &err), 0, "%s", err.msg);
    cr_assert_eq(scorer_image(s, &dot, a, &err), 0, "%s", err.msg);
    scorer_close(s);
    device_close(dev);
}
