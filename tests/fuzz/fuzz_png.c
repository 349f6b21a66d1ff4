/* Fuzzes image.c. The first byte chooses what the rest is: a whole file, a file whose checksums are
 * put right first, or a recipe for one. Pictures that can be read are written, read again and
 * compared. */
#include "memory_file.h"
#include "unet/image.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
const char *__asan_default_options(void);

/* The biggest pictures find no memory, which must be an error as any other. */
const char *__asan_default_options(void)
{
    return "allocator_may_return_null=1:max_allocation_size_mb=256";
}

struct bytes {
    uint8_t *p;
    size_t n;
};

static const char signature[] = "\x89PNG\r\n\x1a\n";

static void put32(uint8_t *p, uint32_t v)
{
    for (int i = 0; i < 4; i++)
        p[i] = (uint8_t)(v >> (24 - 8 * i));
}

static uint32_t get32(const uint8_t *p)
{
    return (uint32_t)p[0] << 24 | (uint32_t)p[1] << 16 | (uint32_t)p[2] << 8 | p[3];
}

static void add(struct bytes *b, const void *p, size_t n)
{
    b->p = realloc(b->p, b->n + n + 1);
    memcpy(b->p + b->n, p, n);
    b->n += n;
}

static void add_chunk(struct bytes *b, const char *type, const void *data, size_t n)
{
    uint8_t head[8], tail[4];
    put32(head, (uint32_t)n);
    memcpy(head + 4, type, 4);
    add(b, head, 8);
    add(b, data, n);
    put32(tail, (uint32_t)crc32(0, b->p + b->n - n - 4, (uInt)n + 4));
    add(b, tail, 4);
}

/* front, then data packed, as one chunk. */
static void add_packed(struct bytes *b, const char *type, const void *front, size_t n_front,
                       const uint8_t *data, size_t n)
{
    uLongf packed = compressBound(n);
    uint8_t *p = malloc(n_front + packed);
    memcpy(p, front, n_front);
    compress2(p + n_front, &packed, data, n, 1);
    add_chunk(b, type, p, n_front + packed);
    free(p);
}

/* The chunks of data one after the other, each with the right checksum. */
static struct bytes repair(const uint8_t *data, size_t size)
{
    struct bytes b = {0};
    add(&b, signature, 8);
    for (size_t at = 8; at + 12 <= size;) {
        size_t n = get32(data + at);
        if (n > size - at - 12)
            n = size - at - 12;
        add_chunk(&b, (const char *)data + at + 4, data + at + 8, n);
        at += n + 12;
    }
    return b;
}

static void add_any_chunk(struct bytes *b, unsigned kind, const uint8_t *data, size_t n)
{
    static const char *const types[] = {"PLTE", "tRNS", "tEXt", "gAMA", "sBIT", "bKGD", "IDAT",
                                        "pHYs", "iTXt", "zTXt", "quQu", "cHRM", "sRGB", "hIST"};
    if (kind % 17 == 14)
        add_packed(b, "zTXt", "key\0", 5, data, n);
    else if (kind % 17 == 15)
        add_packed(b, "iTXt", "key\0\1\0en\0k", 11, data, n);
    else if (kind % 17 == 16)
        add_packed(b, "iCCP", "key\0", 5, data, n);
    else
        add_chunk(b, types[kind % 17], data, n);
}

struct recipe {
    const uint8_t *p;
    size_t left;
};

/* The next n bytes of the recipe, or as many as are left. */
static const uint8_t *take(struct recipe *r, size_t *n)
{
    const uint8_t *p = r->p;
    *n = *n < r->left ? *n : r->left;
    r->p += *n;
    r->left -= *n;
    return p;
}

static unsigned take_byte(struct recipe *r)
{
    size_t n = 1;
    const uint8_t *p = take(r, &n);
    return n ? *p : 0;
}

static void cook_chunks(struct bytes *b, struct recipe *r, unsigned count)
{
    for (unsigned i = 0; i < count; i++) {
        unsigned kind = take_byte(r);
        size_t n = take_byte(r);
        const uint8_t *data = take(r, &n);
        add_any_chunk(b, kind, data, n);
    }
}

static struct bytes cook(const uint8_t *data, size_t size)
{
    static const uint8_t depths[] = {1, 2, 4, 8, 16}, colours[] = {0, 2, 3, 4, 6};
    struct recipe r = {data, size};
    struct bytes b = {0};
    uint8_t header[13] = {0}, raw[255 * 32];
    unsigned w = take_byte(&r), h = take_byte(&r);
    put32(header, w == 255 ? IMAGE_MAX_SIDE : w % 33);
    put32(header + 4, h == 255 ? IMAGE_MAX_SIDE : h % 33);
    header[8] = depths[take_byte(&r) % 5];
    header[9] = colours[take_byte(&r) % 5];
    header[12] = take_byte(&r) % 2;
    size_t n_raw = take_byte(&r) * 32;
    unsigned before = take_byte(&r) % 8, after = take_byte(&r) % 4;
    for (size_t i = 0; i < n_raw; i++)
        raw[i] = i % 7 ? data[i % size] : data[i % size] % 5; /* there are 5 row filters */
    add(&b, signature, 8);
    add_chunk(&b, "IHDR", header, 13);
    cook_chunks(&b, &r, before);
    add_packed(&b, "IDAT", "", 0, raw, n_raw);
    cook_chunks(&b, &r, after);
    add_chunk(&b, "IEND", "", 0);
    return b;
}

static bool same_texts(const struct image_texts *a, const struct image_texts *b)
{
    bool same = a->n == b->n;
    for (size_t i = 0; same && i < a->n; i++)
        same =
            !strcmp(a->text[i].key, b->text[i].key) && !strcmp(a->text[i].value, b->text[i].value);
    return same;
}

static void check(const struct image *im, const struct image_texts *t)
{
    struct image back = {0}, other = {0};
    struct image_texts texts = {0};
    struct err err = {0};
    uint8_t *png = NULL;
    size_t size = 0;
    int rc = image_encode_png(&png, &size, im, t->text, t->n, &err);
    assert(!rc || rc == ERR_ARG);
    bool with_texts = !rc;
    if (!with_texts) { /* a key may be read that must not be written */
        rc = image_encode_png(&png, &size, im, NULL, 0, &err);
        assert(!rc);
    }
    rc = image_decode_png(png, size, &back, &texts, &err);
    assert(!rc && (!with_texts || same_texts(t, &texts)));
    assert(back.w == im->w && back.h == im->h);
    assert(!memcmp(back.rgb, im->rgb, (size_t)im->w * (size_t)im->h * 3));
    rc = image_resize(&other, im, 1 + im->h % 99, 1 + im->w % 99, (enum image_filter)(im->w % 3),
                      &err);
    assert(!rc && other.rgb);
    for (size_t i = 0; i < t->n; i++)
        assert(image_text_find(t, t->text[i].key));
    const char *any = image_text_find(t, "parameters");
    assert(!any || t->n > 0);
    image_release(&other);
    image_release(&back);
    image_texts_release(&texts);
    free(png);
}

/* Big pictures only cost time, except those that are refused. */
static bool worth_it(const struct bytes *b)
{
    if (b->n < 24)
        return b->n > 0;
    uint64_t w = get32(b->p + 16), h = get32(b->p + 20);
    return w * h < 1 << 16 || w * h >= 1 << 28 || w > IMAGE_MAX_SIDE || h > IMAGE_MAX_SIDE;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct bytes b = {0};
    struct image im = {0};
    struct image_texts texts = {0};
    struct err err = {0};

    if (size < 2)
        return 0;
    if (data[0] % 3 == 0)
        add(&b, data + 1, size - 1);
    else if (data[0] % 3 == 1)
        b = repair(data + 1, size - 1);
    else
        b = cook(data + 1, size - 1);
    if (worth_it(&b)) {
        b.p = realloc(b.p, b.n); /* just that size, so that reading past it shows */
        struct memory_file m;
        int rc;
        if (data[0] > 247) { /* now and then from a file */
            memory_file_open(&m, b.p, b.n);
            rc = image_read_png(m.path, &im, &texts, &err);
            memory_file_close(&m);
        } else {
            rc = image_decode_png(b.p, b.n, &im, &texts, &err);
        }
        assert(rc == err.code && !rc == !!im.rgb && !rc == !err.msg[0]);
        if (!rc)
            check(&im, &texts);
    }
    image_release(&im);
    image_texts_release(&texts);
    free(b.p);
    return 0;
}
