#include "scatter.h"

#include "labels.h"
#include "pen.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GROUND = 255, LEAST_SIDE = 320, MOAT = 6 }; /* MOAT: letters' heights between groups */
#define CROWD 0.26 /* share of a picture of unsaid size that names take */

static const uint8_t ink[3] = {34, 34, 34}, grey[3] = {120, 120, 120}, pale[3] = {176, 176, 176},
                     rest[3] = {150, 150, 150}, shade[3] = {244, 243, 238};
static const uint8_t colours[SCATTER_COLOURS][3] = {
    {45, 108, 182}, {226, 120, 25}, {40, 150, 72},  {206, 52, 56}, {137, 84, 190}, {20, 158, 172},
    {214, 82, 158}, {134, 88, 56},  {156, 154, 22}, {32, 48, 112}, {122, 182, 40}, {240, 168, 0}};

/* All that is decided before anything is drawn. Pixels. */
struct plan {
    struct pen *pen, *words, *large; /* of names; of the legend; of the title and headings */
    int font, margin, head, foot;    /* head, foot: heights above and below the dots */
    int most;                        /* of a name */
    int land_w, land_h;              /* the room and a margin around */
    struct labels_room room;
    struct label *label; /* [groups + n] headings, then dots by weight */
    int *of;             /* [groups + n] the dot a label is of */
    int headings;
};

static void plan_release(struct plan *p)
{
    pen_close(p->pen);
    pen_close(p->words);
    pen_close(p->large);
    free(p->label);
    free(p->of);
}

static const uint8_t *colour_of(int kind)
{
    return kind >= 0 && kind < SCATTER_COLOURS ? colours[kind] : rest;
}

/* ---- drawing --------------------------------------------------------------------------------- */

static void blend(struct image *im, int x, int y, const uint8_t rgb[3], float cover)
{
    if (cover <= 0 || x < 0 || y < 0 || x >= im->w || y >= im->h)
        return;
    uint8_t *to = im->rgb + 3 * ((size_t)y * (size_t)im->w + (size_t)x);
    cover = fminf(cover, 1);
    for (int k = 0; k < 3; k++)
        to[k] = (uint8_t)lroundf((float)to[k] + ((float)rgb[k] - (float)to[k]) * cover);
}

/* A line with round ends, `wide` pixels wide; of no length: a disc. Pixel centres are whole numbers. */
static void stroke(struct image *im, const float from[2], const float to[2], float wide,
                   const uint8_t rgb[3])
{
    float dx = to[0] - from[0], dy = to[1] - from[1], d2 = dx * dx + dy * dy, r = wide / 2;
    int x0 = (int)floorf(fminf(from[0], to[0]) - r - 1),
        x1 = (int)ceilf(fmaxf(from[0], to[0]) + r + 1),
        y0 = (int)floorf(fminf(from[1], to[1]) - r - 1),
        y1 = (int)ceilf(fmaxf(from[1], to[1]) + r + 1);
    for (int y = y0; y <= y1; y++)
        for (int x = x0; x <= x1; x++) {
            float px = (float)x - from[0], py = (float)y - from[1];
            float t = d2 > 0 ? fmaxf(0, fminf(1, (px * dx + py * dy) / d2)) : 0;
            blend(im, x, y, rgb, r + .5f - hypotf(px - t * dx, py - t * dy));
        }
}

static void disc(struct image *im, float x, float y, float radius, const uint8_t rgb[3])
{
    stroke(im, (float[]){x, y}, (float[]){x, y}, 2 * radius, rgb);
}

/* The legend, row by row as wide as the picture; im NULL: only measured. Returns its height. */
static int legend(const struct scatter *s, const struct plan *p, struct image *im, int top)
{
    int high = pen_line(p->words), x = p->margin, y = 0, right = s->w - p->margin;
    for (int i = 0; i < s->kinds; i++) {
        if (!s->kind[i])
            continue;
        int text = pen_width(p->words, s->kind[i]), wide = high + text;
        if (x > p->margin && x + wide > right) {
            x = p->margin;
            y += high * 5 / 4;
        }
        if (im) {
            float r = p->room.radius * (float)high / (float)pen_line(p->pen);
            disc(im, (float)x + r, (float)(top + y) + (float)high / 2, r, colour_of(i));
            pen_text(p->words, im, x + high, top + y, right - x - high, ink, s->kind[i]);
        }
        x += wide + high;
    }
    return y + (x > p->margin ? high * 5 / 4 : 0);
}

/* Everything above the dots. Returns its height. */
static int head(const struct scatter *s, const struct plan *p, struct image *im)
{
    int y = p->margin, w = s->w - 2 * p->margin, gap = pen_line(p->words) / 3;
    if (s->title) {
        if (im)
            pen_text(p->large, im, p->margin, y, w, ink, s->title);
        y += pen_line(p->large);
    }
    if (s->note) {
        if (im)
            pen_text(p->words, im, p->margin, y, w, grey, s->note);
        y += pen_line(p->words) + gap;
    }
    return y + legend(s, p, im, y) + gap;
}

/* How much of a pixel lies within `far` of a box. */
static float reach(const int box[4], int x, int y, float far)
{
    float dx = fmaxf(0, fmaxf((float)(box[0] - x), (float)(x - box[2]))),
          dy = fmaxf(0, fmaxf((float)(box[1] - y), (float)(y - box[3])));
    return fmaxf(0, fminf(1, far + .5f - hypotf(dx, dy)));
}

/* Around a dot and its name: what is there of land, by the pixel. */
static void raise_land(uint8_t *land, const struct plan *p, const struct label *l)
{
    int r = (int)p->room.radius, x = (int)l->x, y = (int)l->y, far = p->room.moat / 2 - 2,
        box[4] = {x - r, y - r, x + r, y + r};
    if (l->shown) {
        const int own[4] = {l->left, l->top, l->left + l->w, l->top + l->h};
        for (int k = 0; k < 4; k++)
            if (k < 2 ? own[k] < box[k] || l->heading : own[k] > box[k] || l->heading)
                box[k] = own[k];
    }
    for (int i = box[1] - far - 1; i <= box[3] + far + 1; i++)
        for (int j = box[0] - far - 1; j <= box[2] + far + 1; j++) {
            int px = j + p->margin, py = i + p->margin;
            if (px < 0 || py < 0 || px >= p->land_w || py >= p->land_h)
                continue;
            uint8_t *to = land + (size_t)py * (size_t)p->land_w + (size_t)px,
                    v = (uint8_t)(255 * reach(box, j, i, (float)far));
            *to = *to > v ? *to : v;
        }
}

/* Groups are islands: a shade around all that is theirs. */
static int draw_land(struct image *im, const struct scatter *s, struct plan *p, struct err *err)
{
    p->land_w = p->room.w + 2 * p->margin;
    p->land_h = p->room.h + 2 * p->margin;
    uint8_t *land = calloc((size_t)p->land_w * (size_t)p->land_h, 1);
    if (!land)
        return err_nomem(err, (size_t)p->land_w * (size_t)p->land_h);
    for (int i = 0; i < p->headings + s->n; i++)
        raise_land(land, p, &p->label[i]);
    for (int y = 0; y < p->land_h; y++)
        for (int x = 0; x < p->land_w; x++)
            blend(im, x, y + p->head - p->margin, shade,
                  land[(size_t)y * (size_t)p->land_w + (size_t)x] / 255.f);
    free(land);
    return 0;
}

static void draw_name(struct image *im, const struct scatter *s, const struct plan *p, int i)
{
    const struct label *l = &p->label[i];
    bool heading = i < p->headings;
    const char *text = heading ? s->group[i] : s->dot[p->of[i]].name;
    uint8_t dark[3];
    if (!l->shown)
        return;
    for (int k = 0; k < 3 && !heading; k++) /* of its dot's colour, and dark enough to be read */
        dark[k] = (uint8_t)(colour_of(s->dot[p->of[i]].kind)[k] * 6 / 10);
    pen_text(heading ? p->large : p->pen, im, p->margin + l->left, p->head + l->top, l->w,
             heading ? grey : dark, text);
}

static void draw(struct image *im, const struct scatter *s, const struct plan *p)
{
    char foot[100];
    int n = p->headings + s->n;
    float ox = (float)p->margin, oy = (float)p->head;
    for (int i = 0; i < n; i++) {
        const struct label *l = &p->label[i];
        if (l->line)
            stroke(im, (float[]){l->x + ox, l->y + oy}, (float[]){l->end[0] + ox, l->end[1] + oy},
                   1, pale);
    }
    for (int i = p->headings; i < n; i++) {
        const struct label *l = &p->label[i];
        disc(im, l->x + ox, l->y + oy, p->room.radius, colour_of(s->dot[p->of[i]].kind));
    }
    for (int i = 0; i < n; i++)
        draw_name(im, s, p, i);
    if (s->labelled < s->n) {
        snprintf(foot, sizeof foot, "%d of %d have no name here: there is no room",
                 s->n - s->labelled, s->n);
        pen_text(p->words, im, p->margin, s->h - p->margin / 2 - pen_line(p->words),
                 s->w - 2 * p->margin, grey, foot);
    }
}

/* ---- sizes and places ------------------------------------------------------------------------ */

struct ranked {
    float weight; /* or a coordinate */
    int i;
};

static int heaviest_first(const void *a, const void *b)
{
    const struct ranked *p = a, *q = b;
    if (p->weight != q->weight)
        return p->weight < q->weight ? 1 : -1;
    return p->i - q->i;
}

/* Letters are larger where there are few names, smaller in a small picture. */
static int font_size(const struct scatter *s)
{
    int font = s->n <= 60 ? 16 : s->n <= 500 ? 14 : 12, side = s->w < s->h ? s->w : s->h;
    return side && side / 45 < font ? (side / 45 < 11 ? 11 : side / 45) : font;
}

static int take_room(struct plan *p, const struct scatter *s, struct err *err)
{
    size_t n = (size_t)s->groups + (size_t)s->n + 1;
    p->font = font_size(s);
    p->margin = (s->group && s->groups > 1 ? 3 : 2) * p->font;
    p->most = 20 * p->font;
    p->room.radius = (float)(int)((float)p->font * .35f);
    p->room.gap = p->font / 4;
    p->headings = s->group ? s->groups : 0;
    p->room.moat = p->headings > 1 ? MOAT * p->font : 0;
    p->label = calloc(n, sizeof *p->label);
    p->of = calloc(n, sizeof *p->of);
    if (!p->label || !p->of)
        return err_nomem(err, n * sizeof *p->label);
    return pen_open(&p->pen, p->font, err);
}

/* Words that are not names grow with the picture, so that they can be read when it is shown smaller. */
static int open_words(struct plan *p, const struct scatter *s, struct err *err)
{
    int words = s->w / 140 > p->font ? s->w / 140 : p->font;
    int rc = pen_open(&p->words, words, err);
    return rc < 0 ? rc : pen_open(&p->large, words * 3 / 2, err);
}

/* Labels of dots with their words' sizes, the heaviest first. *area: of all, as labels.c reckons. */
static int make_labels(struct plan *p, const struct scatter *s, double *area, struct err *err)
{
    struct ranked *by = malloc(((size_t)s->n + 1) * sizeof *by);
    if (!by)
        return err_nomem(err, (size_t)s->n * sizeof *by);
    for (int i = 0; i < s->n; i++)
        by[i] = (struct ranked){s->dot[i].weight, i};
    qsort(by, (size_t)s->n, sizeof *by, heaviest_first);
    *area = 0;
    for (int i = 0; i < s->n; i++) {
        struct label *l = &p->label[p->headings + i];
        const struct scatter_dot *d = &s->dot[by[i].i];
        int w = pen_width(p->pen, d->name);
        p->of[p->headings + i] = by[i].i;
        *l = (struct label){.w = w < p->most ? w : p->most,
                            .h = pen_line(p->pen),
                            .group = p->headings ? d->group : 0};
        *area += (l->w + 2.0 * (double)p->room.radius + 3.0 * p->room.gap) * (l->h + 2);
    }
    free(by);
    return 0;
}

/* The picture's size where none is asked for, and what of it is for dots. */
static int make_room(struct plan *p, struct scatter *s, double area, struct err *err)
{
    bool own = !s->w;
    int high = (int)fmin(fmax(sqrt(area / CROWD * 3 / 4), 600), 2700) / 4 * 4;
    if (own)
        s->w = high / 3 * 4 + 2 * p->margin;
    int rc = open_words(p, s, err);
    if (rc < 0)
        return rc;
    p->head = head(s, p, NULL);
    p->foot = p->margin + pen_line(p->words);
    if (own)
        s->h = p->head + high + p->foot;
    p->room.w = s->w - 2 * p->margin;
    p->room.h = s->h - p->head - p->foot;
    if (s->w < LEAST_SIDE || s->h < LEAST_SIDE || p->room.h < LEAST_SIDE / 2)
        return err_set(err, ERR_ARG, "%d x %d pixels are too few for this picture", s->w, s->h);
    if (s->w > IMAGE_MAX_SIDE || s->h > IMAGE_MAX_SIDE)
        return err_set(err, ERR_ARG, "%d x %d pixels: at most %d a side", s->w, s->h,
                       IMAGE_MAX_SIDE);
    return 0;
}

static int lowest_first(const void *a, const void *b)
{
    const struct ranked *p = a, *q = b;
    if (p->weight != q->weight)
        return p->weight < q->weight ? -1 : 1;
    return p->i - q->i;
}

/* One coordinate of all labels' dots to 0 … 1: half of it as it is, half by rank, so that a few far off do not
 * squeeze all others. by [n] is room. */
static void scale_one(const struct plan *p, const struct scatter *s, int c, struct ranked *by)
{
    for (int i = 0; i < s->n; i++) {
        const struct scatter_dot *d = &s->dot[p->of[p->headings + i]];
        by[i] = (struct ranked){c ? d->y : d->x, p->headings + i};
    }
    qsort(by, (size_t)s->n, sizeof *by, lowest_first);
    float low = by[0].weight, wide = by[s->n - 1].weight - low;
    for (int i = 0; i < s->n; i++) {
        float to = wide > 0 ? (by[i].weight - low) / wide / 2 + i / (s->n - 1.f) / 2 : .5f;
        *(c ? &p->label[by[i].i].y : &p->label[by[i].i].x) = to;
    }
}

/* Places to pixels; names stand at the right of their dots, and crowds grow, so some is left free around. */
static int scale_dots(const struct plan *p, const struct scatter *s, struct err *err)
{
    struct ranked *by = malloc(((size_t)s->n + 1) * sizeof *by);
    if (!by)
        return err_nomem(err, (size_t)s->n * sizeof *by);
    for (int c = 0; c < 2 && s->n; c++)
        scale_one(p, s, c, by);
    for (int i = p->headings; i < p->headings + s->n; i++) {
        p->label[i].x = (.05f + .82f * p->label[i].x) * (float)p->room.w;
        p->label[i].y = (.06f + .88f * p->label[i].y) * (float)p->room.h;
    }
    free(by);
    return 0;
}

/* Each over the middle of its dots. */
static void put_headings(const struct plan *p, const struct scatter *s)
{
    for (int g = 0; g < p->headings; g++) {
        struct label *l = &p->label[g];
        double x = 0;
        float top = (float)p->room.h;
        int n = 0;
        for (int i = p->headings; i < p->headings + s->n; i++)
            if (s->dot[p->of[i]].group == g) {
                x += p->label[i].x;
                top = fminf(top, p->label[i].y);
                n++;
            }
        *l = (struct label){.w = pen_width(p->large, s->group[g]),
                            .h = pen_line(p->large),
                            .heading = true,
                            .group = g};
        l->x = n ? (float)(x / n) : 0;
        l->y = fmaxf(top - 1.5f * (float)l->h, (float)l->h / 2);
    }
}

int scatter_draw(struct image *out, struct scatter *s, struct err *err)
{
    struct plan p = {0};
    double area = 0;
    memset(out, 0, sizeof *out);
    int rc = take_room(&p, s, err);
    rc = rc < 0 ? rc : make_labels(&p, s, &area, err);
    rc = rc < 0 ? rc : make_room(&p, s, area, err);
    rc = rc < 0 ? rc : scale_dots(&p, s, err);
    if (rc == 0) {
        put_headings(&p, s);
        labels_spread(p.label, p.headings + s->n, &p.room);
        rc = labels_place(p.label, p.headings + s->n, &p.room, &s->labelled, err);
    }
    size_t n = 3 * (size_t)s->w * (size_t)s->h;
    if (rc == 0 && !(out->rgb = malloc(n)))
        rc = err_nomem(err, n);
    if (rc == 0) {
        out->w = s->w;
        out->h = s->h;
        memset(out->rgb, GROUND, n);
        head(s, &p, out);
        rc = p.headings ? draw_land(out, s, &p, err) : 0;
        draw(out, s, &p);
    }
    for (int i = p.headings; i < p.headings + s->n && rc == 0; i++) {
        struct scatter_dot *d = &s->dot[p.of[i]];
        d->px = p.label[i].x + (float)p.margin;
        d->py = p.label[i].y + (float)p.head;
        d->labelled = p.label[i].shown;
    }
    plan_release(&p);
    if (rc < 0)
        image_release(out);
    return rc;
}
