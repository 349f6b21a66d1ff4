/* image.h: pictures in files. PNG, 8 bits, RGB; text chunks.
 *
 *     struct image im = {.w = 512, .h = 512, .rgb = pixels};
 *     struct image_text text[] = {{"parameters", "a red apple\nSteps: 20, …"}};
 *     image_write_png("apple.png", &im, text, 1, &err);
 */
#ifndef WEFT_IMAGE_H
#define WEFT_IMAGE_H

#include "err.h"

#include <stddef.h>
#include <stdint.h>

#define IMAGE_MAX_SIDE 16384 /* pixels, read, written or resized */

struct image {
    int w, h;
    uint8_t *rgb; /* [h, w, 3]; owned, freed by image_release */
};

struct image_text {
    char *key, *value; /* value is UTF-8: written as tEXt when it is Latin-1, else as iTXt */
};
struct image_texts {
    struct image_text *text; /* owned */
    size_t n;
};

/* Writes to a temporary name beside path and renames: path is never half-written. */
int image_write_png(const char *path, const struct image *im, const struct image_text *text,
                    size_t n_text, struct err *err);
/* The same into memory; *out is malloc'd. */
int image_encode_png(uint8_t **out, size_t *size, const struct image *im,
                     const struct image_text *text, size_t n_text, struct err *err);
/* Reads any PNG as 8-bit RGB (alpha over white, palettes and grey expanded, 16 bits cut to 8).
 * text may be NULL. Fill with zero first; release both. Texts come back as UTF-8, wherever in the
 * file they are; beyond 64 of them, or one beyond 16 MiB, they are left out. */
int image_read_png(const char *path, struct image *im, struct image_texts *text, struct err *err);
int image_decode_png(const void *bytes, size_t size, struct image *im, struct image_texts *text,
                     struct err *err);
const char *image_text_find(const struct image_texts *t, const char *key);

/* Resamples as Pillow does with its filter of the same name; windows are widened when shrinking. */
enum image_filter { IMAGE_LANCZOS, IMAGE_BICUBIC, IMAGE_BILINEAR };
int image_resize(struct image *out, const struct image *im, int w, int h, enum image_filter filter,
                 struct err *err);
/* The rectangle of that corner and size, which must lie within im. */
int image_crop(struct image *out, const struct image *im, int x, int y, int w, int h,
               struct err *err);

void image_release(struct image *im);
void image_texts_release(struct image_texts *t);

#endif
