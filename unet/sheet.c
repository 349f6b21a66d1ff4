#include "sheet.h"

#include "pen.h"

#include <stdlib.h>
#include <string.h>

enum { MAX_LINES = 6, GROUND = 255 };

static const uint8_t ink[3] = {34, 34, 34};

/* Bytes of s that stand in one line of w pixels: up to a space where there is one, at least one
 * character. *skip: the space behind them. */
static size_t one_line(const struct pen *p, const char *s, int w, size_t *skip)
{
    size_t at = 0, space = 0;
    int32_t c;
    *skip = 0;
    for (int x = 0, n; (n = pen_next(s + at, &c)) > 0; at += (size_t)n) {
        if (c == '\n') {
            *skip = 1;
            return at;
        }
        x += pen_advance(p, c);
        if (x > w && at) {
            *skip = space || c == ' ';
            return space ? space : at;
        }
        if (c == ' ')
            space = at;
    }
    return at;
}

static int count_lines(const struct pen *p, const char *s, int w)
{
    int n = 0;
    for (size_t skip; s && *s && n < MAX_LINES; n++) {
        s += one_line(p, s, w, &skip);
        s += skip;
    }
    return n;
}

/* s from the corner x, y, at most w pixels wide. */
static void draw_text(const struct pen *p, struct image *im, int x, int y, int w, const char *s)
{
    for (int i = 0; s && *s && i < MAX_LINES; i++) {
        size_t skip, n = one_line(p, s, w, &skip);
        bool more = i == MAX_LINES - 1 && s[n + skip];
        pen_bytes(p, im, x, y + i * pen_line(p) + pen_ascent(p), w, ink, s, n, more);
        s += n + skip;
    }
}

/* Where everything stands. */
struct layout {
    int gap, title, head, side, foot; /* pixels of the parts that hold words; 0: there are none */
    int w, h;
};

/* The widest line, broken at most. */
static int widest(const struct pen *p, const char *const *text, int n, int most)
{
    int w = 0;
    int32_t c;
    for (int i = 0; text && i < n; i++)
        for (const char *s = text[i] ? text[i] : ""; *s && w < most;) {
            int x = 0;
            for (int k; (k = pen_next(s, &c)) > 0 && c != '\n'; s += k)
                x += pen_advance(p, c);
            s += *s == '\n';
            w = x > w ? x : w;
        }
    return w < most ? w : most;
}

static int tallest(const struct pen *p, const char *const *text, int n, int w)
{
    int most = 0;
    for (int i = 0; text && i < n; i++) {
        int lines = count_lines(p, text[i], w);
        most = lines > most ? lines : most;
    }
    return most * pen_line(p);
}

static int lay_out(struct layout *l, const struct sheet *s, const struct pen *p, struct err *err)
{
    l->gap = pen_line(p) / 2;
    l->side = widest(p, s->row, s->rows, s->w / 2);
    int64_t w = l->gap + (l->side ? l->side + l->gap : 0) + (int64_t)s->columns * (s->w + l->gap);
    l->title = tallest(p, &s->title, 1, (int)(w > IMAGE_MAX_SIDE ? 1 : w - 2 * l->gap));
    l->head = tallest(p, s->column, s->columns, s->w);
    l->foot = tallest(p, s->label, s->columns * s->rows, s->w);
    int64_t h = l->gap + (l->title ? l->title + l->gap : 0) + l->head + (l->head ? l->gap : 0) +
                (int64_t)s->rows * (s->h + l->foot + l->gap);
    if (w > IMAGE_MAX_SIDE || h > IMAGE_MAX_SIDE)
        return err_set(err, ERR_ARG,
                       "a sheet of %lld x %lld pixels: at most %d a side; fewer or smaller cells",
                       (long long)w, (long long)h, IMAGE_MAX_SIDE);
    l->w = (int)w;
    l->h = (int)h;
    return 0;
}

static int put(struct image *to, const struct image *im, int x, int y, int w, int h,
               struct err *err)
{
    struct image fitted = {0};
    bool same = im->w == w && im->h == h;
    int rc = same ? 0 : image_resize(&fitted, im, w, h, IMAGE_LANCZOS, err);
    const struct image *from = same ? im : &fitted;
    for (int i = 0; i < h && rc == 0; i++)
        memcpy(to->rgb + 3 * ((size_t)(y + i) * (size_t)to->w + (size_t)x),
               from->rgb + 3 * (size_t)i * (size_t)w, 3 * (size_t)w);
    image_release(&fitted);
    return rc;
}

static int fill(struct image *out, const struct sheet *s, const struct layout *l,
                const struct pen *p, struct err *err)
{
    int y = l->gap, rc = 0;
    if (l->title) {
        draw_text(p, out, l->gap, y, l->w - 2 * l->gap, s->title);
        y += l->title + l->gap;
    }
    int left = l->gap + (l->side ? l->side + l->gap : 0);
    for (int j = 0; j < s->columns && l->head; j++)
        draw_text(p, out, left + j * (s->w + l->gap), y, s->w, s->column[j]);
    y += l->head + (l->head ? l->gap : 0);
    for (int i = 0; i < s->rows; i++, y += s->h + l->foot + l->gap) {
        if (l->side)
            draw_text(p, out, l->gap, y, l->side, s->row[i]);
        for (int j = 0; j < s->columns && rc == 0; j++) {
            int k = i * s->columns + j, x = left + j * (s->w + l->gap);
            if (s->picture[k].rgb)
                rc = put(out, &s->picture[k], x, y, s->w, s->h, err);
            if (s->label)
                draw_text(p, out, x, y + s->h, s->w, s->label[k]);
        }
    }
    return rc;
}

int sheet_draw(struct image *out, const struct sheet *s, struct err *err)
{
    struct pen *p = NULL;
    struct layout l = {0};
    int size = s->w / 18;

    memset(out, 0, sizeof *out);
    int rc = pen_open(&p, size < 11 ? 11 : size > 28 ? 28 : size, err);
    rc = rc < 0 ? rc : lay_out(&l, s, p, err);
    if (rc == 0) {
        size_t n = 3 * (size_t)l.w * (size_t)l.h;
        *out = (struct image){.w = l.w, .h = l.h, .rgb = malloc(n)};
        rc = out->rgb ? 0 : err_nomem(err, n);
        if (rc == 0)
            memset(out->rgb, GROUND, n);
    }
    rc = rc < 0 ? rc : fill(out, s, &l, p, err);
    pen_close(p);
    if (rc < 0)
        image_release(out);
    return rc;
}
