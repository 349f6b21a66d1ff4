#include "labels.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define FILL 0.4 /* share of the room that is kept free for words; more and nothing can move */

enum { GROW = 40, SETTLE = 400, TURN = 128 }; /* sweeps; words that are placed together */
#define STRETCH 1.5f                          /* in one sweep */

/* ---- moving dots apart ----------------------------------------------------------------------- */

struct box {
    float x, y; /* centre */
    float a, b; /* half of its width and height */
    float off;  /* from the dot to the centre, x */
    int group;
};

static struct box box_of(const struct label *l, const struct labels_room *room, bool word)
{
    float r = room->radius + 1, right = r, b = r;
    if (l->heading)
        return (struct box){l->x, l->y, l->w / 2.f + (float)room->gap, l->h / 2.f + 1, 0, l->group};
    if (word) {
        right = room->radius + (float)(2 * room->gap + l->w) + 1;
        b = fmaxf(r, l->h / 2.f + 1);
    }
    float off = (right - r) / 2;
    return (struct box){l->x + off, l->y, (right + r) / 2, b, off, l->group};
}

/* Keeps a box within the room; one that is larger stands at its left. */
static void clamp(struct box *p, const struct labels_room *room)
{
    p->x = fmaxf(fminf(p->x, (float)room->w - p->a), p->a);
    p->y = fmaxf(fminf(p->y, (float)room->h - p->b), p->b);
}

/* By y, nearly sorted already from the sweep before. */
static void sort_by_y(const struct box *at, int *order, int n)
{
    for (int i = 1; i < n; i++) {
        int k = order[i], j = i;
        for (; j && at[order[j - 1]].y > at[k].y; j--)
            order[j] = order[j - 1];
        order[j] = k;
    }
}

/* Half of what two boxes must move from each other. grow: along the line between them. */
static bool push(const struct box *p, const struct box *q, float moat, bool grow, float *dx,
                 float *dy)
{
    float x = q->x - p->x, y = q->y - p->y, a = p->a + q->a, b = p->b + q->b;
    if (p->group != q->group) {
        a += moat;
        b += moat;
    }
    if (fabsf(x) >= a || fabsf(y) >= b)
        return false;
    if (grow && (x || y)) {
        float t = fminf(x ? a / fabsf(x) : STRETCH, y ? b / fabsf(y) : STRETCH);
        t = (fminf(t, STRETCH) - 1) / 2;
        *dx = x * t;
        *dy = y * t;
    } else if (b - fabsf(y) <= a - fabsf(x)) {
        *dx = 0;
        *dy = copysignf((b - fabsf(y)) / 2 + .01f, y);
    } else {
        *dx = copysignf((a - fabsf(x)) / 2 + .01f, x);
        *dy = 0;
    }
    return true;
}

/* Returns how many pairs lay on each other. */
static int sweep(struct box *at, int *order, int n, float tallest, bool grow,
                 const struct labels_room *room)
{
    int hits = 0;
    sort_by_y(at, order, n);
    for (int i = 0; i < n; i++) {
        struct box *p = &at[order[i]];
        for (int j = i + 1; j < n; j++) {
            struct box *q = &at[order[j]];
            float dx, dy;
            if (q->y - p->y >
                2 * tallest + (float)room->moat + 16) /* may have moved since they were sorted */
                break;
            if (!push(p, q, (float)room->moat, grow, &dx, &dy))
                continue;
            hits++;
            p->x -= dx;
            p->y -= dy;
            q->x += dx;
            q->y += dy;
            clamp(p, room);
            clamp(q, room);
        }
    }
    return hits;
}

/* Boxes with words as long as there is room, then of dots alone. Returns the largest half height. */
static float make_boxes(struct box *at, int *order, const struct label *l, int n,
                        const struct labels_room *room)
{
    double left = FILL * room->w * room->h;
    float tallest = 0;
    for (int i = 0; i < n; i++) {
        struct box with = box_of(&l[i], room, true);
        left -= 4.0 * with.a * with.b;
        at[i] = left > 0 ? with : box_of(&l[i], room, false);
        clamp(&at[i], room);
        tallest = fmaxf(tallest, at[i].b);
        order[i] = i;
    }
    return tallest;
}

void labels_spread(struct label *l, int n, const struct labels_room *room)
{
    struct box *at = calloc((size_t)n + 1, sizeof *at);
    int *order = calloc((size_t)n + 1, sizeof *order);
    if (at && order) { /* else all stays where it is, which is worse to look at, and no error */
        float tallest = make_boxes(at, order, l, n, room);
        for (int k = 0; k < GROW + SETTLE; k++)
            if (!sweep(at, order, n, tallest, k < GROW, room))
                break;
        for (int i = 0; i < n; i++) {
            l[i].x = roundf(at[i].x - at[i].off);
            l[i].y = roundf(at[i].y);
        }
    }
    free(at);
    free(order);
}

/* ---- giving words their places --------------------------------------------------------------- */

/* What lies where: a byte for each pixel. */
struct mask {
    int w, h;
    uint8_t *taken;
};

static bool inside(const struct mask *m, int x, int y, int w, int h)
{
    return x >= 0 && y >= 0 && x + w <= m->w && y + h <= m->h;
}

/* Whether nothing lies in a box and `gap` left and right of it. */
static bool is_free(const struct mask *m, int x, int y, int w, int h, int gap)
{
    if (!inside(m, x, y, w, h))
        return false;
    int from = x - gap > 0 ? x - gap : 0, to = x + w + gap < m->w ? x + w + gap : m->w;
    for (int i = y; i < y + h; i++)
        if (memchr(m->taken + (size_t)i * (size_t)m->w + from, 1, (size_t)(to - from)))
            return false;
    return true;
}

static void take(struct mask *m, int x, int y, int w, int h)
{
    int x0 = x > 0 ? x : 0, x1 = x + w < m->w ? x + w : m->w;
    for (int i = y > 0 ? y : 0; i < y + h && i < m->h && x0 < x1; i++)
        memset(m->taken + (size_t)i * (size_t)m->w + x0, 1, (size_t)(x1 - x0));
}

/* Calls each pixel of the line from the dot's edge to its end; false stops. */
static bool along(struct mask *m, const struct label *l, float radius,
                  bool (*each)(struct mask *m, int x, int y))
{
    float dx = l->end[0] - l->x, dy = l->end[1] - l->y, d = hypotf(dx, dy);
    for (float t = radius + 3; t < d; t += .5f)
        if (!each(m, (int)(l->x + dx * t / d), (int)(l->y + dy * t / d)))
            return false;
    return true;
}

static bool pixel_free(struct mask *m, int x, int y)
{
    return is_free(m, x, y, 1, 1, 0);
}

static bool pixel_take(struct mask *m, int x, int y)
{
    take(m, x - 1, y - 1, 3, 3);
    return true;
}

static bool try_at(struct mask *m, struct label *l, float x, float y, int gap)
{
    l->left = (int)lroundf(x);
    l->top = (int)lroundf(y);
    return is_free(m, l->left, l->top, l->w, l->h, gap);
}

/* Beside the dot. */
static bool place_near(struct mask *m, struct label *l, const struct labels_room *room)
{
    static const signed char way[][2] = {{1, 0},  {-1, 0},  {0, -1}, {0, 1},
                                         {1, -1}, {-1, -1}, {1, 1},  {-1, 1}};
    float r = room->radius + (float)room->gap, s = .7f * room->radius + 1;
    for (size_t k = 0; k < sizeof way / sizeof *way; k++) {
        int i = way[k][0], j = way[k][1];
        float x = i > 0 ? (j ? s : r) : i < 0 ? -(j ? s : r) - (float)l->w : -l->w / 2.f;
        float y = j > 0 ? s + 1 : j < 0 ? -s - 1 - (float)l->h : -l->h / 2.f;
        if (!i)
            y += (float)j * .3f * room->radius + (float)j;
        if (try_at(m, l, l->x + x, l->y + y, j ? 1 : room->gap - 1))
            return true;
    }
    return false;
}

/* Further off, with a line. */
static bool place_far(struct mask *m, struct label *l, const struct labels_room *room)
{
    enum { WAYS = 24, REACH = 12 };
    for (float d = (float)l->h * .75f; d < (float)(REACH * l->h); d += (float)l->h / 3)
        for (int k = 0; k < WAYS; k++) {
            float turn = (float)(k % 2 ? k + 1 : -k) * 3.14159265f / WAYS;
            float x = l->x + cosf(turn) * (d + l->w / 2.f),
                  y = l->y + sinf(turn) * (d + l->h / 2.f);
            if (!try_at(m, l, x - l->w / 2.f, y - l->h / 2.f, room->gap))
                continue;
            float edge[2] = {(float)l->left, (float)(l->left + l->w)}, half = l->h / 2.f;
            l->end[0] = fmaxf(edge[0] - 1, fminf(l->x, edge[1] + 1));
            l->end[1] = l->end[0] > edge[0] && l->end[0] < edge[1]
                            ? (l->y > y ? (float)(l->top + l->h) : (float)l->top)
                            : (float)l->top + half;
            if (along(m, l, room->radius, pixel_free)) {
                along(m, l, room->radius, pixel_take);
                return l->line = true;
            }
        }
    return false;
}

static bool place_one(struct mask *m, struct label *l, bool far, const struct labels_room *room)
{
    l->shown = l->heading ? try_at(m, l, l->x - l->w / 2.f, l->y - l->h / 2.f, 0)
                          : (far ? place_far(m, l, room) : place_near(m, l, room));
    return l->shown;
}

/* Turn by turn, so that the first of all have a place, with a line at worst, before the last are asked. */
static void place_all(struct mask *m, struct label *l, int n, const struct labels_room *room)
{
    int r = (int)ceilf(room->radius);
    for (int i = 0; i < n; i++) {
        l[i].shown = l[i].line = false;
        if (!l[i].heading)
            take(m, (int)l[i].x - r, (int)l[i].y - r, 2 * r + 1, 2 * r + 1);
    }
    for (int from = 0; from < n; from += TURN)
        for (int far = 0; far < 2; far++)
            for (int i = from; i < n && i < from + TURN; i++)
                if (!l[i].shown && place_one(m, &l[i], far, room))
                    take(m, l[i].left, l[i].top, l[i].w, l[i].h);
}

int labels_place(struct label *l, int n, const struct labels_room *room, int *shown,
                 struct err *err)
{
    size_t size = (size_t)room->w * (size_t)room->h;
    struct mask m = {room->w, room->h, calloc(size ? size : 1, 1)};
    if (!m.taken)
        return err_nomem(err, size);
    place_all(&m, l, n, room);
    *shown = 0;
    for (int i = 0; i < n; i++)
        *shown += l[i].shown && !l[i].heading;
    free(m.taken);
    return 0;
}
