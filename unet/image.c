#include "image.h"

#include "file.h"

#include <assert.h>
#include <png.h>
#include <setjmp.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

#define FILE_MAX      ((size_t)1 << 30)
#define TEXT_CHUNKS   64
#define TEXT_BYTES    (16u << 20)         /* of one chunk, unpacked */
#define LIBPNG_MEMORY ((size_t)128 << 20) /* bytes libpng may hold: bounds all text together */

/* ---- text ------------------------------------------------------------------------------------ */

enum { NOT_UTF8 = -1, NOT_LATIN1 = 0, IS_LATIN1 = 1 };

/* Writes the Latin-1 form of a UTF-8 text to out, which has room for strlen(s) + 1 bytes; out may
 * be NULL. */
static int utf8_to_latin1(const char *s, char *out)
{
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)s;
    bool fits = true;
    for (size_t left = strlen(s); left > 0;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t n = utf8proc_iterate(p, (utf8proc_ssize_t)left, &c);
        if (n < 1)
            return NOT_UTF8;
        p += n;
        left -= (size_t)n;
        fits = fits && c < 256;
        if (out)
            *out++ = (char)c;
    }
    if (out)
        *out = 0;
    return fits ? IS_LATIN1 : NOT_LATIN1;
}

static char *latin1_to_utf8(const char *s)
{
    char *out = malloc(2 * strlen(s) + 1), *o = out;
    if (!out)
        return NULL;
    for (const unsigned char *p = (const unsigned char *)s; *p; p++) {
        if (*p >= 0x80)
            *o++ = (char)(0xc0 | *p >> 6);
        *o++ = (char)(*p < 0x80 ? *p : 0x80 | (*p & 0x3f));
    }
    *o = 0;
    return out;
}

/* What the PNG standard asks of a keyword, already in Latin-1. */
static bool key_ok(const char *key)
{
    size_t n = strlen(key);
    if (n < 1 || n > 79 || key[0] == ' ' || key[n - 1] == ' ' || strstr(key, "  "))
        return false;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)key[i];
        if (c < 32 || (c > 126 && c < 161))
            return false;
    }
    return true;
}

const char *image_text_find(const struct image_texts *t, const char *key)
{
    for (size_t i = 0; i < t->n; i++)
        if (!strcmp(t->text[i].key, key))
            return t->text[i].value;
    return NULL;
}

void image_texts_release(struct image_texts *t)
{
    for (size_t i = 0; i < t->n; i++) {
        free(t->text[i].key);
        free(t->text[i].value);
    }
    free(t->text);
    *t = (struct image_texts){0};
}

void image_release(struct image *im)
{
    free(im->rgb);
    *im = (struct image){0};
}

/* ---- both ways ------------------------------------------------------------------------------- */

/* Everything that must survive libpng's longjmp lives here, not in locals. */
struct job {
    png_structp png;
    png_infop info;
    const uint8_t *in; /* what is still to be read */
    size_t left;
    uint8_t *out; /* what has been written, of room bytes */
    size_t size, room;
    uint8_t *pixels; /* [h, w, channels] */
    png_bytep *rows;
    size_t w, h, channels;
    size_t memory;  /* bytes libpng holds */
    size_t missing; /* bytes that could not be had, or 0 */
    struct err *err;
    int rc;
};

static void on_error(png_structp png, png_const_charp msg)
{
    struct job *j = png_get_error_ptr(png);
    if (j->missing)
        j->rc = err_nomem(j->err, j->missing);
    else if (j->in)
        j->rc = err_set(j->err, ERR_FORMAT, "damaged PNG, get it again: %s", msg);
    else /* nothing we hand to libpng is wrong */
        j->rc = err_set(j->err, ERR_NOMEM, "the PNG cannot be made: %s", msg);
    png_longjmp(png, 1);
}

/* Warnings are about chunks that do not touch the pixels. */
static void on_warning(png_structp png, png_const_charp msg)
{
    (void)png;
    (void)msg;
}

static void no_memory(struct job *j, size_t bytes)
{
    j->missing = bytes;
    png_error(j->png, "out of memory");
}

/* ---- reading --------------------------------------------------------------------------------- */

union block {
    size_t size;
    max_align_t align;
};

static png_voidp take_memory(png_structp png, png_alloc_size_t size)
{
    struct job *j = png_get_mem_ptr(png);
    if (size > LIBPNG_MEMORY - j->memory)
        return NULL;
    union block *b = malloc(sizeof *b + size);
    if (!b) {
        j->missing = size;
        return NULL;
    }
    b->size = size;
    j->memory += size;
    return b + 1;
}

static void give_memory(png_structp png, png_voidp p)
{
    struct job *j = png_get_mem_ptr(png);
    union block *b = (union block *)p - 1;
    j->memory -= b->size;
    free(b);
}

static void read_bytes(png_structp png, png_bytep to, size_t n)
{
    struct job *j = png_get_io_ptr(png);
    if (n > j->left)
        png_error(png, "the file ends early");
    memcpy(to, j->in, n);
    j->in += n;
    j->left -= n;
}

/* Asks libpng for 8-bit RGB, with a fourth channel where the picture has any transparency. */
static void ask_for_rgb(struct job *j)
{
    int colour = png_get_color_type(j->png, j->info);
    bool alpha = colour & PNG_COLOR_MASK_ALPHA || png_get_valid(j->png, j->info, PNG_INFO_tRNS);
    png_set_expand(j->png);
    png_set_strip_16(j->png);
    if (!(colour & PNG_COLOR_MASK_COLOR))
        png_set_gray_to_rgb(j->png);
    png_set_interlace_handling(j->png);
    png_read_update_info(j->png, j->info);
    j->w = png_get_image_width(j->png, j->info);
    j->h = png_get_image_height(j->png, j->info);
    j->channels = alpha ? 4 : 3;
    if (png_get_rowbytes(j->png, j->info) != j->w * j->channels)
        png_error(j->png, "its rows have another size than its header says");
}

static int read_picture(struct job *j)
{
    if (setjmp(png_jmpbuf(j->png)))
        return j->rc;
    png_set_read_fn(j->png, j, read_bytes);
    png_set_user_limits(j->png, IMAGE_MAX_SIDE, IMAGE_MAX_SIDE);
    png_set_chunk_cache_max(j->png, TEXT_CHUNKS + 2); /* libpng stops two short of what is set */
    png_set_chunk_malloc_max(j->png, TEXT_BYTES);
    png_read_info(j->png, j->info);
    ask_for_rgb(j);
    size_t bytes = j->w * j->h * j->channels;
    j->pixels = malloc(bytes);
    j->rows = malloc(j->h * sizeof *j->rows);
    if (!j->pixels || !j->rows)
        no_memory(j, bytes);
    for (size_t y = 0; y < j->h; y++)
        j->rows[y] = j->pixels + y * j->w * j->channels;
    png_read_image(j->png, j->rows);
    png_read_end(j->png, j->info);
    return 0;
}

/* Lays [h, w, 4] over white, in place, as [h, w, 3]. */
static void flatten(uint8_t *p, size_t pixels)
{
    for (size_t i = 0; i < pixels; i++) {
        unsigned a = p[4 * i + 3];
        for (size_t c = 0; c < 3; c++)
            p[3 * i + c] = (uint8_t)((p[4 * i + c] * a + 255 * (255 - a) + 127) / 255);
    }
}

/* Keys, tEXt and zTXt are Latin-1. An iTXt that claims to be UTF-8 and is not is taken as Latin-1,
 * too, so that no byte is lost. */
static int copy_texts(struct job *j, struct image_texts *out)
{
    png_textp text = NULL;
    int n = 0;
    png_get_text(j->png, j->info, &text, &n);
    out->text = calloc((size_t)n + 1, sizeof *out->text);
    if (!out->text)
        return err_nomem(j->err, (size_t)n * sizeof *out->text);
    for (int i = 0; i < n; i++) {
        struct image_text *t = &out->text[out->n++];
        bool utf8 = text[i].compression >= PNG_ITXT_COMPRESSION_NONE &&
                    utf8_to_latin1(text[i].text, NULL) != NOT_UTF8;
        t->key = latin1_to_utf8(text[i].key);
        t->value = utf8 ? strdup(text[i].text) : latin1_to_utf8(text[i].text);
        if (!t->key || !t->value)
            return err_nomem(j->err, strlen(text[i].text));
    }
    return 0;
}

/* Refuses what libpng would, with a better message. */
static int check_start(const uint8_t *p, size_t size, struct err *err)
{
    static const struct {
        const char *magic, *name;
    } kinds[] = {{"\xff\xd8\xff", "a JPEG"}, {"RIFF", "a WebP"}, {"GIF8", "a GIF"}};
    if (size < 8 || png_sig_cmp(p, 0, 8)) {
        for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++)
            if (size > 4 && !memcmp(p, kinds[i].magic, strlen(kinds[i].magic)))
                return err_set(err, ERR_UNSUPPORTED,
                               "not a PNG: this is %s picture, convert it to PNG", kinds[i].name);
        return err_set(err, ERR_FORMAT, "not a PNG: %s",
                       size ? "its first bytes are not those of a PNG" : "the file is empty");
    }
    if (size >= 24) {
        uint32_t w = png_get_uint_32(p + 16), h = png_get_uint_32(p + 20);
        if (w > IMAGE_MAX_SIDE || h > IMAGE_MAX_SIDE)
            return err_set(err, ERR_UNSUPPORTED, "%u x %u pixels, weft takes at most %d a side", w,
                           h, IMAGE_MAX_SIDE);
    }
    return 0;
}

int image_decode_png(const void *bytes, size_t size, struct image *im, struct image_texts *text,
                     struct err *err)
{
    struct job j = {.in = bytes, .left = size, .err = err};
    struct image_texts found = {0};

    int rc = check_start(bytes, size, err);
    if (rc < 0)
        return rc;
    j.png = png_create_read_struct_2(PNG_LIBPNG_VER_STRING, &j, on_error, on_warning, &j,
                                     take_memory, give_memory);
    j.info = j.png ? png_create_info_struct(j.png) : NULL;
    if (!j.info) {
        rc = err_nomem(err, size);
        goto out;
    }
    rc = read_picture(&j);
    if (rc < 0)
        goto out;
    if (text)
        rc = copy_texts(&j, &found);
    if (rc < 0)
        goto out;
    im->w = (int)j.w;
    im->h = (int)j.h;
    im->rgb = j.pixels;
    if (j.channels == 4) {
        flatten(j.pixels, j.w * j.h);
        uint8_t *less = realloc(j.pixels, j.w * j.h * 3);
        im->rgb = less ? less : j.pixels;
    }
    j.pixels = NULL;
    if (text) {
        *text = found;
        found = (struct image_texts){0};
    }
out:
    png_destroy_read_struct(&j.png, &j.info, NULL);
    free(j.rows);
    free(j.pixels);
    image_texts_release(&found);
    return rc;
}

int image_read_png(const char *path, struct image *im, struct image_texts *text, struct err *err)
{
    char *bytes = NULL;
    size_t size = 0;
    int rc = file_read(&bytes, &size, path, FILE_MAX, err);
    if (rc < 0)
        return rc;
    rc = image_decode_png(bytes, size, im, text, err);
    if (rc < 0)
        err_prefix(err, "%s", path);
    free(bytes);
    return rc;
}

/* ---- writing --------------------------------------------------------------------------------- */

static void write_bytes(png_structp png, png_bytep from, size_t n)
{
    struct job *j = png_get_io_ptr(png);
    if (n > j->room - j->size) {
        size_t room = 2 * j->room + n + 65536;
        uint8_t *more = realloc(j->out, room);
        if (!more)
            no_memory(j, room);
        j->out = more;
        j->room = room;
    }
    memcpy(j->out + j->size, from, n);
    j->size += n;
}

static void write_flush(png_structp png)
{
    (void)png;
}

static int write_picture(struct job *j, const png_text *text, size_t n_text)
{
    if (setjmp(png_jmpbuf(j->png)))
        return j->rc;
    png_set_write_fn(j->png, j, write_bytes, write_flush);
    png_set_IHDR(j->png, j->info, (png_uint_32)j->w, (png_uint_32)j->h, 8, PNG_COLOR_TYPE_RGB,
                 PNG_INTERLACE_NONE, PNG_COMPRESSION_TYPE_BASE, PNG_FILTER_TYPE_BASE);
    png_set_compression_level(j->png, 4);
    if (n_text)
        png_set_text(j->png, j->info, text, (int)n_text);
    png_write_info(j->png, j->info);
    for (size_t y = 0; y < j->h; y++)
        png_write_row(j->png, j->pixels + y * j->w * 3);
    png_write_end(j->png, j->info);
    return 0;
}

/* libpng's form of one text. Its key and text are malloc'd. */
static int make_text(png_text *to, const struct image_text *from, struct err *err)
{
    to->key = malloc(strlen(from->key) + 1);
    to->text = malloc(strlen(from->value) + 1);
    if (!to->key || !to->text)
        return err_nomem(err, strlen(from->key) + strlen(from->value) + 2);
    if (utf8_to_latin1(from->key, to->key) != IS_LATIN1 || !key_ok(to->key))
        return err_set(err, ERR_ARG,
                       "\"%.80s\" cannot be the key of a text in a PNG (1 to 79 printable Latin-1 "
                       "characters)",
                       from->key);
    to->compression = PNG_TEXT_COMPRESSION_NONE;
    switch (utf8_to_latin1(from->value, to->text)) {
    case IS_LATIN1: return 0;
    case NOT_LATIN1:
        to->compression = PNG_ITXT_COMPRESSION_NONE;
        memcpy(to->text, from->value, strlen(from->value) + 1);
        return 0;
    default: return err_set(err, ERR_ARG, "the text \"%s\" for a PNG is not UTF-8", from->key);
    }
}

int image_encode_png(uint8_t **out, size_t *size, const struct image *im,
                     const struct image_text *text, size_t n_text, struct err *err)
{
    struct job j = {.pixels = im->rgb, .w = (size_t)im->w, .h = (size_t)im->h, .err = err};
    png_text *texts = NULL;
    int rc = 0;

    *out = NULL;
    assert(im->rgb);
    if (im->w < 1 || im->h < 1 || im->w > IMAGE_MAX_SIDE || im->h > IMAGE_MAX_SIDE)
        return err_set(err, ERR_ARG, "%d x %d pixels, weft writes 1 to %d a side", im->w, im->h,
                       IMAGE_MAX_SIDE);
    texts = calloc(n_text + 1, sizeof *texts);
    j.png = png_create_write_struct(PNG_LIBPNG_VER_STRING, &j, on_error, on_warning);
    j.info = j.png ? png_create_info_struct(j.png) : NULL;
    if (!texts || !j.info) {
        rc = err_nomem(err, n_text * sizeof *texts);
        goto out;
    }
    for (size_t i = 0; i < n_text; i++) {
        rc = make_text(&texts[i], &text[i], err);
        if (rc < 0)
            goto out;
    }
    rc = write_picture(&j, texts, n_text);
    if (rc < 0)
        goto out;
    *out = j.out;
    *size = j.size;
    j.out = NULL;
out:
    png_destroy_write_struct(&j.png, &j.info);
    for (size_t i = 0; texts && i < n_text; i++) {
        free(texts[i].key);
        free(texts[i].text);
    }
    free(texts);
    free(j.out);
    return rc;
}

int image_write_png(const char *path, const struct image *im, const struct image_text *text,
                    size_t n_text, struct err *err)
{
    uint8_t *bytes = NULL;
    size_t size = 0;
    int rc = image_encode_png(&bytes, &size, im, text, n_text, err);
    if (rc < 0)
        err_prefix(err, "%s", path);
    else
        rc = file_replace(path, bytes, size, err);
    free(bytes);
    return rc;
}
