#include "pen.h"

#include <ft2build.h>
#include FT_FREETYPE_H

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

#define ELLIPSIS 0x2026

static const char *const fonts[] = {
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf", "/usr/share/fonts/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf", "/usr/share/fonts/TTF/DejaVuSans.ttf"};

struct pen {
    FT_Library library;
    FT_Face face;
};

void pen_close(struct pen *p)
{
    if (!p)
        return;
    if (p->face)
        FT_Done_Face(p->face);
    if (p->library)
        FT_Done_FreeType(p->library);
    free(p);
}

static int load(struct pen *p, const char *file, int size, struct err *err)
{
    if (FT_Init_FreeType(&p->library))
        return err_nomem(err, sizeof p->library);
    if (FT_New_Face(p->library, file, 0, &p->face) || FT_Set_Pixel_Sizes(p->face, 0, (FT_UInt)size))
        return err_set(err, ERR_FORMAT, "%.200s: not a font that FreeType can read", file);
    return 0;
}

int pen_open(struct pen **out, int size, struct err *err)
{
    const char *file = getenv("WEFT_FONT");
    for (size_t i = 0; i < sizeof fonts / sizeof *fonts && !file; i++)
        file = access(fonts[i], R_OK) == 0 ? fonts[i] : NULL;
    *out = NULL;
    if (!file)
        return err_set(err, ERR_IO,
                       "no font for the words in pictures: install fonts-dejavu-core, or name a "
                       "font file in WEFT_FONT");
    struct pen *p = calloc(1, sizeof *p);
    int rc = p ? load(p, file, size, err) : err_nomem(err, sizeof *p);
    if (rc < 0) {
        pen_close(p);
        return rc;
    }
    *out = p;
    return 0;
}

int pen_line(const struct pen *p)
{
    return (int)((p->face->size->metrics.height + 63) >> 6);
}

int pen_ascent(const struct pen *p)
{
    return (int)((p->face->size->metrics.ascender + 63) >> 6);
}

int pen_next(const char *s, int32_t *c)
{
    if (!*s)
        return 0;
    utf8proc_ssize_t n = utf8proc_iterate((const utf8proc_uint8_t *)s, -1, c);
    if (n > 0)
        return (int)n;
    *c = 0xfffd;
    return 1;
}

int pen_advance(const struct pen *p, int32_t c)
{
    if (FT_Load_Char(p->face, (FT_ULong)c, FT_LOAD_DEFAULT))
        return 0;
    return (int)(p->face->glyph->advance.x >> 6);
}

int pen_width(const struct pen *p, const char *s)
{
    int32_t c;
    int w = 0;
    for (int n; (n = pen_next(s, &c)) > 0; s += n)
        w += pen_advance(p, c);
    return w;
}

/* Blended into the picture. */
void pen_character(const struct pen *p, struct image *im, int x, int y, const uint8_t rgb[3],
                   int32_t c)
{
    if (FT_Load_Char(p->face, (FT_ULong)c, FT_LOAD_RENDER))
        return;
    const FT_GlyphSlot g = p->face->glyph;
    if (g->bitmap.pixel_mode != FT_PIXEL_MODE_GRAY)
        return;
    for (int i = 0; i < (int)g->bitmap.rows; i++)
        for (int j = 0; j < (int)g->bitmap.width; j++) {
            int px = x + g->bitmap_left + j, py = y - g->bitmap_top + i;
            if (px < 0 || py < 0 || px >= im->w || py >= im->h)
                continue;
            int a = g->bitmap.buffer[i * g->bitmap.pitch + j];
            uint8_t *to = im->rgb + 3 * ((size_t)py * (size_t)im->w + (size_t)px);
            for (int k = 0; k < 3; k++)
                to[k] = (uint8_t)((to[k] * (255 - a) + rgb[k] * a + 127) / 255);
        }
}

void pen_bytes(const struct pen *p, struct image *im, int x, int y, int w, const uint8_t rgb[3],
               const char *s, size_t n, bool more)
{
    int32_t c;
    int end = x + w - (more ? pen_advance(p, ELLIPSIS) : 0);
    for (size_t at = 0, k; at < n; at += k, x += pen_advance(p, c)) {
        k = (size_t)pen_next(s + at, &c);
        if (more && x + pen_advance(p, c) > end)
            break;
        pen_character(p, im, x, y, rgb, c);
    }
    if (more)
        pen_character(p, im, x, y, rgb, ELLIPSIS);
}

void pen_text(const struct pen *p, struct image *im, int x, int y, int w, const uint8_t rgb[3],
              const char *s)
{
    pen_bytes(p, im, x, y + pen_ascent(p), w, rgb, s, strlen(s), pen_width(p, s) > w);
}
