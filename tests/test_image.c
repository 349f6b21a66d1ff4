#include "tests/shared.h"
#include "unet/file.h"
#include "unet/image.h"
#include "unet/safetensors.h"

#include <limits.h>
#include <string.h>
#include <zlib.h>

static struct safetensors *goldens(void)
{
    struct safetensors *st = NULL;
    struct err err = {0};
    cr_assert_eq(safetensors_open(&st, "tests/golden/data/image.safetensors", &err), 0, "%s",
                 err.msg);
    return st;
}

static const struct array *golden(const struct safetensors *st, const char *kind, const char *name)
{
    char key[128];
    snprintf(key, sizeof key, "%s.%s", kind, name);
    const struct array *a = safetensors_find(st, key);
    cr_assert_not_null(a, "%s", key);
    return a;
}

/* The view has the pixels [h, w, 3] of a golden. */
static struct image image_of(const struct array *a)
{
    cr_assert(a->ndim == 3 && a->dim[2] == 3 && a->dtype == DT_U8);
    return (struct image){.w = (int)a->dim[1], .h = (int)a->dim[0], .rgb = (uint8_t *)a->data};
}

static void check_same(const struct image *a, const struct image *b, const char *what)
{
    cr_assert(a->w == b->w && a->h == b->h, "%s: %d x %d, not %d x %d", what, a->w, a->h, b->w,
              b->h);
    cr_assert_arr_eq(a->rgb, b->rgb, (size_t)a->w * (size_t)a->h * 3, "%s", what);
}

/* ---- reading --------------------------------------------------------------------------------- */

/* Every kind of PNG, against the pixels Pillow reads: exactly equal. */
Test(image, reads_every_kind_of_png)
{
    struct safetensors *st = goldens();
    int n = 0;
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const char *name = safetensors_name(st, i);
        if (strncmp(name, "png.", 4))
            continue;
        struct image im = {0}, want = image_of(golden(st, "rgb", name + 4));
        struct err err = {0};
        const struct array *png = safetensors_at(st, i);
        cr_assert_eq(image_decode_png(png->data, array_count(png), &im, NULL, &err), 0, "%s: %s",
                     name, err.msg);
        check_same(&im, &want, name);
        image_release(&im);
        n++;
    }
    cr_assert_geq(n, 29);
    safetensors_close(st);
}

static void check_text(const struct image_texts *t, const char *key, const char *value)
{
    const char *found = image_text_find(t, key);
    cr_assert_not_null(found, "%s is missing", key);
    cr_assert_str_eq(found, value, "%s is \"%s\"", key, found);
}

Test(image, reads_every_kind_of_text)
{
    struct safetensors *st = goldens();
    struct image im = {0};
    struct image_texts t = {0};
    struct err err = {0};
    const struct array *png = golden(st, "png", "texts");
    cr_assert_eq(image_decode_png(png->data, array_count(png), &im, &t, &err), 0, "%s", err.msg);
    cr_assert_eq(t.n, 5);
    check_text(&t, "parameters", "a café\nSteps: 20");
    check_text(&t, "unicode", "日本語 🍎");
    check_text(&t, "late", "after the pixels");
    cr_assert_eq(strlen(image_text_find(&t, "packed")), 300);
    cr_assert_eq(strncmp(image_text_find(&t, "packed"), "long long ", 10), 0);
    cr_assert_eq(strlen(image_text_find(&t, "packed unicode")), 360);
    cr_assert_eq(strncmp(image_text_find(&t, "packed unicode"), "日本日", 9), 0);
    cr_assert_null(image_text_find(&t, "Parameters"));
    image_release(&im);
    image_texts_release(&t);
    cr_assert(!t.text && !t.n);

    png = golden(st, "png", "odd-texts");
    cr_assert_eq(image_decode_png(png->data, array_count(png), &im, &t, &err), 0, "%s", err.msg);
    cr_assert_eq(t.n, 2);
    check_text(&t, "claims", "café");
    check_text(&t, "café", "");
    image_release(&im);
    image_texts_release(&t);
    safetensors_close(st);
}

/* Every cut of a file is an error, with nothing to release and one line of message. */
Test(image, cut_files_are_errors)
{
    struct safetensors *st = goldens();
    static const char *const names[] = {"texts", "rgb-alpha16-interlaced", "palette8-alpha"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        const struct array *png = golden(st, "png", names[i]);
        for (size_t n = 0; n < array_count(png); n++) {
            struct image im = {0};
            struct image_texts t = {0};
            struct err err = {0};
            int rc = image_decode_png(png->data, n, &im, &t, &err);
            cr_assert_eq(rc, ERR_FORMAT, "%s cut to %zu bytes", names[i], n);
            cr_assert(!im.rgb && !t.text);
            cr_assert_null(strchr(err.msg, '\n'));
            cr_assert_gt(strlen(err.msg), 10);
        }
    }
    safetensors_close(st);
}

Test(image, other_files_are_named)
{
    static const struct {
        const char *bytes, *phrase;
        size_t size;
        int code;
    } bad[] = {
        {"", "the file is empty", 0, ERR_FORMAT},
        {"\xff\xd8\xff\xe0\0\x10JFIF", "a JPEG", 10, ERR_UNSUPPORTED},
        {"RIFF\0\0\0\0WEBP", "a WebP", 12, ERR_UNSUPPORTED},
        {"GIF89a\0\0\0\0", "a GIF", 10, ERR_UNSUPPORTED},
        {"\x89PNG\n\n\x1a\n", "not a PNG", 8, ERR_FORMAT},
        {"\x89PN", "not a PNG", 3, ERR_FORMAT},
        {"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\x40\1\0\0\0\1\x8\2\0\0\0", "16385 x 1 pixels", 29,
         ERR_UNSUPPORTED},
        {"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\xff\xff\xff\xff\x8\2\0\0\0", "4294967295 pixels",
         29, ERR_UNSUPPORTED},
        {"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\0\0\0\0\1\x8\2\0\0\0\0\0\0\0", "damaged PNG", 33,
         ERR_FORMAT},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct image im = {0};
        struct err err = {0};
        cr_assert_eq(image_decode_png(bad[i].bytes, bad[i].size, &im, NULL, &err), bad[i].code,
                     "%zu: %s", i, err.msg);
        cr_assert_not_null(strstr(err.msg, bad[i].phrase), "%s", err.msg);
    }
}

/* ---- writing --------------------------------------------------------------------------------- */

static struct image pattern(int w, int h)
{
    struct image im = {.w = w, .h = h, .rgb = malloc((size_t)w * (size_t)h * 3)};
    uint32_t u = 1;
    for (int i = 0; i < w * h * 3; i++) {
        u = u * 1664525 + 1013904223;
        im.rgb[i] = (uint8_t)(i / 3 % w * 2 + (u >> 28));
    }
    return im;
}

Test(image, what_is_written_can_be_read)
{
    static const int sides[][2] = {{1, 1}, {3, 5}, {64, 64}, {515, 33}};
    char parameters[] = "a café\nNegative prompt: \"x\"\nSteps: 20", ascii[] = "plain";
    char unicode[] = "日本語 🍎", empty[] = "", latin_key[] = "clé", json[] = "{\"seed\": 7}";
    struct image_text text[] = {{(char[]){"parameters"}, parameters},
                                {(char[]){"weft"}, json},
                                {(char[]){"unicode"}, unicode},
                                {(char[]){"empty"}, empty},
                                {latin_key, ascii},
                                {latin_key, unicode}};
    size_t n_text = sizeof text / sizeof *text;
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++) {
        struct image im = pattern(sides[i][0], sides[i][1]), back = {0};
        struct image_texts t = {0};
        struct err err = {0};
        uint8_t *bytes = NULL, *again = NULL;
        size_t size, size2;
        cr_assert_eq(image_encode_png(&bytes, &size, &im, text, n_text, &err), 0, "%s", err.msg);
        cr_assert_eq(image_decode_png(bytes, size, &back, &t, &err), 0, "%s", err.msg);
        check_same(&back, &im, "read back");
        cr_assert_eq(t.n, n_text);
        for (size_t k = 0; k < n_text; k++) {
            cr_assert_str_eq(t.text[k].key, text[k].key);
            cr_assert_str_eq(t.text[k].value, text[k].value);
        }
        check_text(&t, "clé", "plain");
        cr_assert_eq(image_encode_png(&again, &size2, &im, text, n_text, &err), 0);
        cr_assert_eq(size, size2);
        cr_assert_arr_eq(bytes, again, size, "the same picture gave other bytes");
        free(bytes);
        free(again);
        image_release(&im);
        image_release(&back);
        image_texts_release(&t);
    }
}

/* The type of the chunk that holds a text, found in the file itself. */
static const char *chunk_of(const uint8_t *png, size_t size, const char *key)
{
    static char type[5];
    for (size_t at = 8; at + 12 <= size;) {
        size_t n =
            (size_t)png[at] << 24 | (size_t)png[at + 1] << 16 | png[at + 2] << 8 | png[at + 3];
        memcpy(type, png + at + 4, 4);
        if (!strcmp(type + 2, "Xt") && !strcmp((const char *)png + at + 8, key))
            return type;
        at += n + 12;
    }
    return NULL;
}

Test(image, latin1_is_text_and_the_rest_is_international)
{
    struct image im = pattern(2, 2);
    struct image_text text[] = {{(char[]){"a"}, (char[]){"café"}},
                                {(char[]){"b"}, (char[]){"ÿ Ā"}}};
    struct err err = {0};
    uint8_t *bytes = NULL;
    size_t size;
    cr_assert_eq(image_encode_png(&bytes, &size, &im, text, 2, &err), 0, "%s", err.msg);
    cr_assert_str_eq(chunk_of(bytes, size, "a"), "tEXt");
    cr_assert_str_eq(chunk_of(bytes, size, "b"), "iTXt");
    cr_assert_not_null(memmem(bytes, size, "caf\xe9", 4));
    cr_assert_not_null(memmem(bytes, size, "ÿ Ā", strlen("ÿ Ā")));
    cr_assert_null(memmem(bytes, size, "tIME", 4));
    free(bytes);
    image_release(&im);
}

Test(image, keys_and_texts_that_no_png_can_hold)
{
    char key80[81];
    memset(key80, 'k', 80);
    key80[80] = 0;
    char *keys[] = {
        (char[]){""},   key80,           (char[]){" a"},    (char[]){"a "},   (char[]){"a  b"},
        (char[]){"鍵"}, (char[]){"a\n"}, (char[]){"a\xff"}, (char[]){"\x7f"}, (char[]){"\xc2\x85"}};
    struct image im = pattern(2, 2);
    uint8_t *bytes = NULL;
    size_t size;
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct image_text text = {keys[i], (char[]){"v"}};
        struct err err = {0};
        cr_assert_eq(image_encode_png(&bytes, &size, &im, &text, 1, &err), ERR_ARG, "%s", keys[i]);
        cr_assert_null(bytes);
    }
    key80[79] = 0;
    struct image_text good = {key80, (char[]){"v"}}, bad = {(char[]){"k"}, (char[]){"\xe9t\xe9"}};
    struct err err = {0};
    cr_assert_eq(image_encode_png(&bytes, &size, &im, &good, 1, &err), 0, "%s", err.msg);
    free(bytes);
    cr_assert_eq(image_encode_png(&bytes, &size, &im, &bad, 1, &err), ERR_ARG);
    cr_assert_not_null(strstr(err.msg, "not UTF-8"), "%s", err.msg);
    im.w = 0;
    cr_assert_eq(image_encode_png(&bytes, &size, &im, NULL, 0, &err), ERR_ARG);
    im.w = 16385;
    cr_assert_eq(image_encode_png(&bytes, &size, &im, NULL, 0, &err), ERR_ARG);
    image_release(&im);
}

/* Adds a chunk before the end of a PNG. */
static void add_chunk(uint8_t **png, size_t *size, const char *type, const void *data, size_t n)
{
    uint8_t *p = realloc(*png, *size + n + 12), *at = p + *size - 12;
    memmove(at + n + 12, at, 12);
    for (int i = 0; i < 4; i++)
        at[i] = (uint8_t)(n >> (24 - 8 * i));
    memcpy(at + 4, type, 4);
    memcpy(at + 8, data, n);
    uLong crc = crc32(crc32(0, NULL, 0), at + 4, (uInt)n + 4);
    for (int i = 0; i < 4; i++)
        at[8 + n + (size_t)i] = (uint8_t)(crc >> (24 - 8 * i));
    *png = p;
    *size += n + 12;
}

Test(image, no_more_than_64_texts_are_read)
{
    struct image im = pattern(2, 2), back = {0};
    struct image_texts t = {0};
    struct err err = {0};
    uint8_t *png = NULL;
    size_t size;
    char key[20];
    cr_assert_eq(image_encode_png(&png, &size, &im, NULL, 0, &err), 0);
    for (int i = 0; i < 70; i++) {
        snprintf(key, sizeof key, "k%02d%cv", i, 0);
        add_chunk(&png, &size, "tEXt", key, 5);
    }
    cr_assert_eq(image_decode_png(png, size, &back, &t, &err), 0, "%s", err.msg);
    cr_assert_eq(t.n, 64);
    check_text(&t, "k63", "v");
    free(png);
    image_release(&im);
    image_release(&back);
    image_texts_release(&t);
}

/* A text of n bytes, packed. */
static void add_packed(uint8_t **png, size_t *size, size_t n)
{
    char *text = malloc(n);
    memset(text, 'a', n);
    uLongf packed = compressBound(n);
    uint8_t *data = malloc(packed + 3);
    memcpy(data, "k\0\0", 3);
    cr_assert_eq(compress2(data + 3, &packed, (uint8_t *)text, n, 1), Z_OK);
    add_chunk(png, size, "zTXt", data, packed + 3);
    free(data);
    free(text);
}

Test(image, texts_that_unpack_to_too_much_are_left_out)
{
    struct image im = pattern(2, 2), back = {0};
    struct image_texts t = {0};
    struct err err = {0};
    uint8_t *png = NULL;
    size_t size;
    cr_assert_eq(image_encode_png(&png, &size, &im, NULL, 0, &err), 0);
    add_packed(&png, &size, (15u << 20));
    add_packed(&png, &size, (17u << 20));
    cr_assert_eq(image_decode_png(png, size, &back, &t, &err), 0, "%s", err.msg);
    cr_assert_eq(t.n, 1);
    cr_assert_eq(strlen(t.text[0].value), 15u << 20);
    check_same(&back, &im, "the pixels do not suffer");
    image_release(&back);
    image_texts_release(&t);

    for (int i = 0; i < 20; i++)
        add_packed(&png, &size, (15u << 20));
    cr_assert_eq(image_decode_png(png, size, &back, &t, &err), 0, "%s", err.msg);
    cr_assert(t.n >= 2 && t.n <= 8, "%zu texts of 15 MiB in 128 MiB", t.n);
    free(png);
    image_release(&im);
    image_release(&back);
    image_texts_release(&t);
}

Test(image, files)
{
    char dir[] = "/tmp/weft-test-XXXXXX", path[64];
    struct image im = pattern(20, 10), back = {0};
    struct image_text text = {(char[]){"parameters"}, (char[]){"p"}};
    struct image_text wrong = {(char[]){""}, (char[]){"p"}};
    struct image_texts t = {0};
    struct err err = {0};
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a.png", dir);
    cr_assert_eq(image_write_png(path, &im, &text, 1, &err), 0, "%s", err.msg);
    cr_assert_eq(image_read_png(path, &back, &t, &err), 0, "%s", err.msg);
    check_same(&back, &im, "read back");
    check_text(&t, "parameters", "p");
    cr_assert_eq(image_write_png(path, &im, &wrong, 1, &err), ERR_ARG);
    cr_assert_eq(strncmp(err.msg, path, strlen(path)), 0, "%s", err.msg);
    image_release(&back);
    cr_assert_eq(image_read_png(path, &back, NULL, &err), 0, "the old file is still whole");
    unlink(path);
    cr_assert_eq(image_read_png(path, &back, NULL, &err), ERR_IO);
    cr_assert_eq(strncmp(err.msg, path, strlen(path)), 0, "%s", err.msg);
    cr_assert_eq(file_replace(path, "x", 1, &err), 0);
    image_release(&back);
    cr_assert_eq(image_read_png(path, &back, NULL, &err), ERR_FORMAT);
    cr_assert_eq(strncmp(err.msg, path, strlen(path)), 0, "%s", err.msg);
    unlink(path);
    cr_assert_eq(rmdir(dir), 0, "something was left behind");
    image_release(&im);
    image_texts_release(&t);
}

/* ---- resizing -------------------------------------------------------------------------------- */

static enum image_filter filter_of(const char *name)
{
    return strstr(name, ".bicubic.")    ? IMAGE_BICUBIC
           : strstr(name, ".bilinear.") ? IMAGE_BILINEAR
                                        : IMAGE_LANCZOS;
}

/* Against Pillow's filters: within 1 of 255 everywhere, equal on more than 99 % of all values. */
Test(image, resizes_as_pillow_does)
{
    struct safetensors *st = goldens();
    size_t same = 0, all = 0;
    int n = 0;
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const char *name = safetensors_name(st, i);
        char source[16];
        if (sscanf(name, "resize.%15[a-z].", source) != 1)
            continue;
        struct image from = image_of(golden(st, "from", source)), out = {0};
        struct image want = image_of(safetensors_at(st, i));
        struct err err = {0};
        cr_assert_eq(image_resize(&out, &from, want.w, want.h, filter_of(name), &err), 0, "%s",
                     err.msg);
        cr_assert(out.w == want.w && out.h == want.h);
        for (int k = 0; k < out.w * out.h * 3; k++) {
            int d = out.rgb[k] - want.rgb[k];
            cr_assert(d >= -1 && d <= 1, "%s: value %d is %d, not %d", name, k, out.rgb[k],
                      want.rgb[k]);
            same += d == 0;
            all++;
        }
        image_release(&out);
        n++;
    }
    cr_assert_eq(n, 22);
    cr_assert_gt((double)same, 0.99 * (double)all, "%zu of %zu", same, all);
    safetensors_close(st);
}

Test(image, resizing_to_the_same_size_copies)
{
    struct image im = pattern(9, 4), out = {0};
    struct err err = {0};
    cr_assert_eq(image_resize(&out, &im, 9, 4, IMAGE_LANCZOS, &err), 0, "%s", err.msg);
    cr_assert_neq(out.rgb, im.rgb);
    check_same(&out, &im, "copy");
    image_release(&im);
    image_release(&out);
}

/* Weights sum to one: a flat picture stays flat at any size. */
Test(image, a_flat_picture_stays_flat)
{
    static const int sizes[] = {1, 2, 3, 5, 7, 16, 31, 64, 100, 257};
    enum { N = sizeof sizes / sizeof *sizes };
    for (int i = 0; i < N * N; i++) {
        struct image im = {.w = sizes[i % N], .h = 3}, out = {0};
        struct err err = {0};
        im.rgb = malloc((size_t)im.w * 9);
        memset(im.rgb, 201, (size_t)im.w * 9);
        cr_assert_eq(image_resize(&out, &im, sizes[i / N], 5, IMAGE_LANCZOS, &err), 0, "%s",
                     err.msg);
        for (int k = 0; k < out.w * out.h * 3; k++)
            cr_assert_eq(out.rgb[k], 201, "%d to %d", im.w, out.w);
        image_release(&im);
        image_release(&out);
    }
}

Test(image, sizes_that_cannot_be)
{
    static const int bad[][2] = {{0, 1}, {1, 0}, {-1, 5}, {16385, 1}, {1, INT_MAX}};
    struct image im = pattern(2, 2), out = {0};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct err err = {0};
        cr_assert_eq(image_resize(&out, &im, bad[i][0], bad[i][1], IMAGE_LANCZOS, &err), ERR_ARG);
        cr_assert_null(out.rgb);
    }
    image_release(&im);
}

/* ---- files from outside ---------------------------------------------------------------------- */

Test(image, outside_pictures_with_their_texts)
{
    static const struct {
        const char *file, *key, *part;
    } good[] = {
        {"parsers/AUTOMATIC1111/automatic1111_cropped.png", "parameters", "Steps: "},
        {"parsers/AUTOMATIC1111/automatic1111_stealth.png", NULL, NULL},
        {"parsers/ComfyUI/img2img_cropped.png", "prompt", "KSampler"},
        {"parsers/ComfyUI/night_evening_day_morning_cropped.png", "workflow", "\"nodes\""},
        {"parsers/ComfyUI/noisy_latents_3_subjects_cropped.png", "prompt", "KSampler"},
        {"parsers/ComfyUI/unclip_2pass_cropped.png", "prompt", "KSampler"},
        {"parsers/Fooocus/fooocus1_cropped.png", "parameters", "base_model"},
        {"parsers/InvokeAI/invokeai_dream1.png", "Dream", "-s"},
        {"parsers/InvokeAI/invokeai_imeta1.png", "invokeai_metadata", "prompt"},
        {"parsers/InvokeAI/invokeai_sdmeta1.png", "sd-metadata", "prompt"},
        {"parsers/NovelAI/novelai1_cropped.png", "Comment", "steps"},
        {"bad_images/empty_image.png", NULL, NULL},
        {"bad_images/text_after_idat.png", "parameters", "photo of a duck"},
    };
    char path[PATH_MAX], name[128];
    for (size_t i = 0; i < sizeof good / sizeof *good; i++) {
        struct image im = {0};
        struct image_texts t = {0};
        struct err err = {0};
        snprintf(name, sizeof name, "png/%s", good[i].file);
        shared_path(path, sizeof path, name);
        cr_assert_eq(image_read_png(path, &im, &t, &err), 0, "%s", err.msg);
        cr_assert(im.rgb && im.w > 0 && im.h > 0);
        if (good[i].key) {
            const char *v = image_text_find(&t, good[i].key);
            cr_assert_not_null(v, "%s has no %s", path, good[i].key);
            cr_assert_not_null(strstr(v, good[i].part), "%s: %s", path, v);
        }
        image_release(&im);
        image_texts_release(&t);
    }
}

Test(image, outside_pictures_that_are_no_png)
{
    static const char *const bad[] = {"bad_images/empty_file.png", "bad_images/empty_image.jpg",
                                      "parsers/AUTOMATIC1111/automatic1111_cropped.jpg"};
    char path[PATH_MAX], name[128];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct image im = {0};
        struct err err = {0};
        snprintf(name, sizeof name, "png/%s", bad[i]);
        shared_path(path, sizeof path, name);
        cr_assert_lt(image_read_png(path, &im, NULL, &err), 0);
        cr_assert_not_null(strstr(err.msg, "not a PNG"), "%s", err.msg);
        cr_assert_not_null(strstr(err.msg, path), "%s", err.msg);
    }
}
