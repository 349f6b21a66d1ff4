#include "tests/shared.h"
#include "unet/sheet.h"

#include <stdlib.h>
#include <string.h>

enum { SIDE = 64 };

/* One colour all over; owned by the caller. */
static struct image plain(int w, int h, uint8_t r, uint8_t g, uint8_t b)
{
    struct image im = {.w = w, .h = h, .rgb = malloc(3 * (size_t)w * (size_t)h)};
    cr_assert_not_null(im.rgb);
    for (int i = 0; i < w * h; i++)
        memcpy(im.rgb + 3 * i, (uint8_t[]){r, g, b}, 3);
    return im;
}

static const uint8_t *at(const struct image *im, int x, int y)
{
    return im->rgb + 3 * ((size_t)y * (size_t)im->w + (size_t)x);
}

/* Pixels of that colour, and the rectangle that holds them. */
static int find(const struct image *im, const uint8_t colour[3], int box[4])
{
    int n = 0;
    box[0] = box[1] = 1 << 20;
    box[2] = box[3] = -1;
    for (int y = 0; y < im->h; y++)
        for (int x = 0; x < im->w; x++)
            if (!memcmp(at(im, x, y), colour, 3)) {
                n++;
                box[0] = x < box[0] ? x : box[0];
                box[1] = y < box[1] ? y : box[1];
                box[2] = x > box[2] ? x : box[2];
                box[3] = y > box[3] ? y : box[3];
            }
    return n;
}

/* Dark grey pixels, the words', in a band of rows. */
static int ink(const struct image *im, int y0, int y1)
{
    int n = 0;
    for (int y = y0; y < y1; y++)
        for (int x = 0; x < im->w; x++) {
            const uint8_t *p = at(im, x, y);
            n += p[0] == p[1] && p[1] == p[2] && p[0] < 128;
        }
    return n;
}

static struct image drawn(const struct sheet *s)
{
    struct image out = {0};
    struct err err = {0};
    cr_assert_eq(sheet_draw(&out, s, &err), 0, "%s", err.msg);
    return out;
}

/* Every picture stands whole in its own cell, row by row, and an empty cell stays white. */
Test(sheet, pictures_stand_in_their_cells)
{
    static const uint8_t red[3] = {250, 0, 0}, blue[3] = {0, 0, 250}, green[3] = {0, 250, 0};
    struct image p[4] = {
        plain(SIDE, SIDE, 250, 0, 0), plain(SIDE, SIDE, 0, 0, 250), {0}, plain(16, 16, 0, 250, 0)};
    struct sheet s = {.columns = 2, .rows = 2, .w = SIDE, .h = SIDE, .picture = p};
    struct image out = drawn(&s);
    int r[4], b[4], g[4];
    cr_assert_eq(find(&out, red, r), SIDE * SIDE);
    cr_assert_eq(find(&out, blue, b), SIDE * SIDE);
    cr_assert_eq(find(&out, green, g), SIDE * SIDE, "a smaller picture is enlarged to its cell");
    cr_assert(r[1] == b[1] && r[2] < b[0] && g[0] == b[0] && g[1] > b[3]);
    cr_assert_eq(ink(&out, 0, out.h), 0, "no words were asked for");
    for (int i = 0; i < 4; i++)
        image_release(&p[i]);
    image_release(&out);
}

/* Words make room for themselves, more of them more room, and never touch a picture. */
Test(sheet, words_have_their_room)
{
    static const uint8_t red[3] = {250, 0, 0};
    struct image p = plain(128, 128, 250, 0, 0);
    struct sheet s = {.columns = 1, .rows = 1, .w = 128, .h = 128, .picture = &p};
    struct image bare = drawn(&s);
    s.label = (const char *const[]){"a fox"};
    struct image one = drawn(&s);
    s.label = (const char *const[]){"a fox on the left and a pizza on the right, as large as life"};
    struct image more = drawn(&s);
    s.title = "\xc3\xa9\xff a broken text with \xe2\x80\xa6 a line\nand another";
    s.column = (const char *const[]){"merge"};
    s.row = (const char *const[]){"strength 0.8"};
    struct image all = drawn(&s);
    int box[4];

    cr_assert(bare.h < one.h && one.h < more.h && more.h < all.h && more.w < all.w);
    cr_assert_eq(find(&all, red, box), 128 * 128, "the picture is whole");
    cr_assert(ink(&all, 0, box[1]) > 50 && ink(&all, box[1], box[3]) > 20 &&
              ink(&all, box[3] + 1, all.h) > 50);
    image_release(&bare);
    image_release(&one);
    image_release(&more);
    image_release(&all);
    image_release(&p);
}

/* A text without end is cut; a sheet too large is refused by its size. */
Test(sheet, limits)
{
    struct image p = plain(64, 64, 250, 0, 0), out;
    char *text = malloc(100001);
    memset(text, 'W', 100000);
    text[100000] = 0;
    struct sheet s = {.columns = 1, .rows = 1, .w = 64, .h = 64, .picture = &p};
    s.label = (const char *const[]){text};
    struct image cut = drawn(&s);
    cr_assert_lt(cut.h, 400);

    struct err err = {0};
    s.w = s.h = IMAGE_MAX_SIDE;
    cr_assert_eq(sheet_draw(&out, &s, &err), ERR_ARG);
    cr_assert(strstr(err.msg, "16384") && !out.rgb, "%s", err.msg);
    image_release(&cut);
    image_release(&p);
    free(text);
}
