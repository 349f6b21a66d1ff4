/* Words beside dots, and the picture they make. */
#include "tests/shared.h"
#include "unet/labels.h"
#include "unet/scatter.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 3000 };

/* Always the same numbers, 0 … 1. */
static float number(unsigned *s)
{
    *s = *s * 1664525u + 1013904223u;
    return (float)(*s >> 8) * 0x1p-24f;
}

/* n dots with names of 8 to 30 letters; crowded: most of them in a few small places. */
static void fill(struct label *l, int n, const struct labels_room *room, bool crowded,
                 unsigned seed)
{
    for (int i = 0; i < n; i++) {
        float x = number(&seed), y = number(&seed);
        if (crowded && i % 4) {
            x = (float)(i % 3) * .3f + .2f + x * .04f;
            y = .5f + y * .04f;
        }
        l[i] = (struct label){.x = x * (float)room->w,
                              .y = y * (float)room->h,
                              .w = (8 + (int)(number(&seed) * 22)) * 8,
                              .h = 17};
    }
}

static bool overlap(const struct label *a, const struct label *b)
{
    return a->left < b->left + b->w && b->left < a->left + a->w && a->top < b->top + b->h &&
           b->top < a->top + a->h;
}

/* Whether the line of a crosses the box of b. */
static bool crosses(const struct label *a, const struct label *b)
{
    for (int k = 1; k < 400; k++) {
        float t = (float)k / 400, x = a->x + (a->end[0] - a->x) * t,
              y = a->y + (a->end[1] - a->y) * t;
        if (x > (float)b->left && x < (float)(b->left + b->w) && y > (float)b->top &&
            y < (float)(b->top + b->h))
            return true;
    }
    return false;
}

/* That nothing lies on anything. Returns how many names are shown. */
static int check(const struct label *l, int n, const struct labels_room *room)
{
    int shown = 0;
    for (int i = 0; i < n; i++) {
        if (!l[i].shown)
            continue;
        shown += !l[i].heading;
        cr_assert(l[i].left >= 0 && l[i].top >= 0 && l[i].left + l[i].w <= room->w &&
                      l[i].top + l[i].h <= room->h,
                  "%d is outside", i);
        for (int j = 0; j < n; j++) {
            cr_assert(j >= i || !l[j].shown || !overlap(&l[i], &l[j]), "%d lies on %d", i, j);
            cr_assert(j == i || !l[j].shown || !l[i].line || !crosses(&l[i], &l[j]),
                      "the line of %d crosses %d", i, j);
            float dx = fmaxf(
                      0, fmaxf((float)l[i].left - l[j].x, l[j].x - (float)(l[i].left + l[i].w))),
                  dy = fmaxf(0,
                             fmaxf((float)l[i].top - l[j].y, l[j].y - (float)(l[i].top + l[i].h)));
            cr_assert(l[j].heading || hypotf(dx, dy) > room->radius - .5f,
                      "%d covers the dot of %d", i, j);
        }
    }
    return shown;
}

static int placed(struct label *l, int n, const struct labels_room *room)
{
    struct err err;
    int shown = -1;
    labels_spread(l, n, room);
    cr_assert_eq(labels_place(l, n, room, &shown, &err), 0);
    cr_assert_eq(check(l, n, room), shown);
    return shown;
}

Test(labels, three_hundred_all_have_their_place)
{
    static struct label l[MOST];
    struct labels_room room = {.w = 2400, .h = 1700, .radius = 5, .gap = 4};
    for (unsigned seed = 1; seed <= 4; seed++) {
        fill(l, 300, &room, seed % 2, seed);
        cr_expect_eq(placed(l, 300, &room), 300, "seed %u", seed);
    }
}

/* Dots that move do not lie on each other and stay about where they were. */
Test(labels, dots_move_apart_and_not_far)
{
    static struct label l[MOST], before[MOST];
    struct labels_room room = {.w = 2400, .h = 1700, .radius = 5, .gap = 4};
    double moved = 0;
    fill(l, 300, &room, false, 5);
    memcpy(before, l, sizeof l);
    labels_spread(l, 300, &room);
    for (int i = 0; i < 300; i++) {
        moved += hypotf(l[i].x - before[i].x, l[i].y - before[i].y) / 300;
        for (int j = 0; j < i; j++)
            cr_expect_gt(hypotf(l[i].x - l[j].x, l[i].y - l[j].y), 2 * room.radius);
    }
    cr_expect_lt(moved, 100, "%g pixels", moved);
}

/* Where there is no room for all, the first ones have it. */
Test(labels, too_many)
{
    static struct label l[MOST];
    struct labels_room room = {.w = 1600, .h = 1200, .radius = 3, .gap = 3};
    int first = 0;
    fill(l, MOST, &room, true, 8);
    int shown = placed(l, MOST, &room);
    for (int i = 0; i < 100; i++)
        first += l[i].shown;
    cr_expect(shown > 200 && shown < MOST, "%d", shown);
    cr_expect_geq(first, 90, "%d of the first 100", first);
}

Test(labels, few_and_all_at_one_place)
{
    static struct label l[MOST];
    struct labels_room room = {.w = 800, .h = 600, .radius = 5, .gap = 4};
    int shown;
    struct err err;
    labels_spread(l, 0, &room);
    cr_expect_eq(labels_place(l, 0, &room, &shown, &err), 0);
    for (int n = 1; n <= 40; n += 13) {
        for (int i = 0; i < n; i++)
            l[i] = (struct label){.x = 400, .y = 300, .w = 100, .h = 17};
        cr_expect_eq(placed(l, n, &room), n);
    }
    l[0] = (struct label){.x = 400, .y = 300, .w = 2000, .h = 17}; /* wider than the room */
    cr_expect_eq(placed(l, 1, &room), 0);
    l[0] = (struct label){.x = 790, .y = 595, .w = 100, .h = 20, .heading = true};
    placed(l, 1, &room);
    cr_expect(l[0].shown, "a heading is moved inside, too");
}

static int count(const struct image *im, const uint8_t rgb[3])
{
    int n = 0;
    for (int i = 0; i < im->w * im->h; i++)
        n += !memcmp(im->rgb + 3 * i, rgb, 3);
    return n;
}

Test(labels, the_picture)
{
    static const char *const kind[] = {"one", "two"};
    static const uint8_t white[3] = {255, 255, 255}, blue[3] = {45, 108, 182};
    struct scatter_dot dot[] = {{.x = -1, .name = "left"},
                                {.x = 1, .name = "right", .kind = 1},
                                {.x = 1, .name = "\xff\xe4\xb8\x80", .kind = 99}};
    struct scatter s = {.dot = dot, .n = 3, .title = "three", .kind = kind, .kinds = 2};
    struct image im;
    struct err err;
    cr_assert_eq(scatter_draw(&im, &s, &err), 0, "%s", err.msg);
    cr_expect(im.w == s.w && im.h == s.h && s.labelled == 3);
    cr_expect(dot[0].labelled && dot[0].px < dot[1].px && dot[1].px < (float)im.w);
    cr_expect_gt(count(&im, white), im.w * im.h * 9 / 10);
    cr_expect_gt(count(&im, blue), 40, "a dot and the legend's");
    image_release(&im);
    s.w = 640;
    s.h = 480;
    cr_assert_eq(scatter_draw(&im, &s, &err), 0, "%s", err.msg);
    cr_expect(im.w == 640 && im.h == 480);
    image_release(&im);
    s.w = 100;
    cr_expect_eq(scatter_draw(&im, &s, &err), ERR_ARG);
    cr_expect(strstr(err.msg, "100 x 480") && !im.rgb, "%s", err.msg);
    s.n = 0;
    s.w = 0;
    cr_assert_eq(scatter_draw(&im, &s, &err), 0, "%s", err.msg);
    image_release(&im);
}
