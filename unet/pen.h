/* pen.h: words in pictures, by FreeType with a font of the system.
 *
 *     struct pen *p;
 *     pen_open(&p, 14, &err);                                  // pixels
 *     pen_text(p, &image, 10, 10, 200, (uint8_t[]){34, 34, 34}, "watercolour");
 *     pen_close(p);
 *
 * The font is $WEFT_FONT, else DejaVu Sans. Texts are UTF-8; what is none is drawn as U+FFFD. One
 * character behind the other, left to right, without kerning: enough for names.
 */
#ifndef WEFT_PEN_H
#define WEFT_PEN_H

#include "image.h"

#include <stdbool.h>

struct pen;

/* size: of the font, in pixels. ERR_IO when no font is found. */
int pen_open(struct pen **out, int size, struct err *err);
void pen_close(struct pen *p);

/* Pixels from one line to the next, and from a line's top to where its letters stand. */
int pen_line(const struct pen *p);
int pen_ascent(const struct pen *p);

/* The next character of a text, and how many bytes it takes; 0 at the end. */
int pen_next(const char *s, int32_t *c);
/* Pixels that a character moves on; 0 where the font cannot say. */
int pen_advance(const struct pen *p, int32_t c);
/* Pixels that a text takes in one line. */
int pen_width(const struct pen *p, const char *s);

/* One character, standing on the line y. What is outside of the picture is left out. */
void pen_character(const struct pen *p, struct image *im, int x, int y, const uint8_t rgb[3],
                   int32_t c);
/* n bytes of s standing on the line y, at most w pixels wide; more: they end in an ellipsis. */
void pen_bytes(const struct pen *p, struct image *im, int x, int y, int w, const uint8_t rgb[3],
               const char *s, size_t n, bool more);
/* One line whose upper left corner is x, y; an ellipsis where it does not fit into w pixels. */
void pen_text(const struct pen *p, struct image *im, int x, int y, int w, const uint8_t rgb[3],
              const char *s);

#endif
