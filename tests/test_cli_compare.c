/* weft compare, as a user meets it. */
#include "shell.h"
#include "unet/file.h"
#include "unet/image.h"

#include <jansson.h>
#include <openssl/evp.h>

#define MODEL "tests/golden/data/tiny-sd1"
#define LORA  "tests/golden/data/lora-kohya.safetensors"

static struct image picture(const char *path)
{
    struct image im = {0};
    struct err err;
    cr_assert_eq(image_read_png(path, &im, NULL, &err), 0, "%s", err.msg);
    return im;
}

/* How often small stands in large, pixel for pixel. */
static int occurs(const struct image *large, const struct image *small)
{
    size_t line = 3 * (size_t)small->w;
    int n = 0;
    for (int y = 0; y + small->h <= large->h; y++)
        for (int x = 0; x + small->w <= large->w; x++) {
            int i = 0;
            while (i < small->h &&
                   !memcmp(large->rgb + 3 * ((size_t)(y + i) * (size_t)large->w + (size_t)x),
                           small->rgb + line * (size_t)i, line))
                i++;
            n += i == small->h;
        }
    return n;
}

/* A cell is the picture that weft render makes, to the pixel. */
Test(cli_compare, cells_are_the_pictures)
{
    struct shell s;
    shell_open(&s);
    const char *with[2] = {in(&s, "with1.png"), in(&s, "with2.png")};
    const char *without[2] = {in(&s, "without1.png"), in(&s, "without2.png")};
    for (int i = 0; i < 2; i++) {
        const char *seed = i ? "2" : "1";
        weft(&s, "render", "an apple", "-m", MODEL, "-a", LORA, "--seed", seed, "--steps", "2",
             "-o", with[i], NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        weft(&s, "render", "an apple", "-m", MODEL, "--seed", seed, "--steps", "2", "-o",
             without[i], NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
    }
    struct image one = picture(with[0]);
    char cell[12];
    snprintf(cell, sizeof cell, "%d", one.w);
    weft(&s, "compare", "an apple", "-m", MODEL, "-a", LORA, "--seeds", "1,2", "--steps", "2",
         "--cell", cell, "-o", in(&s, "sheet.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    struct image sheet = picture(in(&s, "sheet.png"));
    for (int i = 0; i < 2; i++) {
        struct image a = picture(with[i]), b = picture(without[i]);
        cr_expect_eq(occurs(&sheet, &a), 1);
        cr_expect_eq(occurs(&sheet, &b), 1);
        image_release(&a);
        image_release(&b);
    }
    /* the sheet remembers how it was made: its first picture with all adapters */
    weft(&s, "render", "--like", in(&s, "sheet.png"), "-o", in(&s, "again.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    struct image again = picture(in(&s, "again.png"));
    cr_expect_eq(occurs(&again, &one), 1);
    image_release(&again);
    image_release(&sheet);
    image_release(&one);
    shell_close(&s);
}

Test(cli_compare, says_what_it_makes)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "compare", "an apple", "-m", MODEL, "-a", LORA, "--seed", "5", "--steps", "1",
         "--compose", "merge", "--json", "-o", in(&s, "sheet.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    json_t *j = json_loads(s.out, 0, NULL);
    cr_assert(j, "not one JSON object: %s", s.out);
    cr_expect_str_eq(json_string_value(json_object_get(j, "compose")), "merge");
    cr_expect_eq(json_integer_value(json_object_get(j, "seed")), 5);
    cr_expect_eq(json_integer_value(json_object_get(j, "passes")), 2);
    json_decref(j);
    cr_expect_eq(files(&s), 1);
    shell_close(&s);
}

/* Rows and columns of any setting are the pictures that render makes with it. */
Test(cli_compare, sweeps)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "compare", "a red apple", "-m", MODEL, "-a", LORA, "--seed", "1", "--steps", "2",
         "--x", "strength=0,0.5,1", "--y", "cfg=3,5", "--cell", "64", "-o", in(&s, "sheet.png"),
         "--json", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    struct image sheet = picture(in(&s, "sheet.png"));
    static const char *const strength[] = {":0", ":0.5", ":1"}, *const cfg[] = {"3", "5"};
    for (int i = 0; i < 6; i++) {
        char ref[200];
        snprintf(ref, sizeof ref, "%s%s", LORA, strength[i % 3]);
        weft(&s, "render", "a red apple", "-m", MODEL, "-a", ref, "--seed", "1", "--steps", "2",
             "--cfg", cfg[i / 3], "-o", in(&s, "one.png"), NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        struct image one = picture(in(&s, "one.png"));
        cr_expect_eq(occurs(&sheet, &one), 1, "%d", i);
        image_release(&one);
    }
    image_release(&sheet);
    weft(&s, "compare", "a red apple", "-m", MODEL, "--x", "prompt=red,blue", "--y",
         "adapter=none," LORA, "--steps", "2", "--seed", "1", "--cell", "64", "-o",
         in(&s, "words.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    weft(&s, "render", "a blue apple", "-m", MODEL, "-a", LORA, "--seed", "1", "--steps", "2", "-o",
         in(&s, "blue.png"), NULL);
    struct image words = picture(in(&s, "words.png")), blue = picture(in(&s, "blue.png"));
    cr_expect_eq(occurs(&words, &blue), 1);
    image_release(&words);
    image_release(&blue);
    shell_close(&s);
}

static void no_axis(struct shell *s, const char *x, const char *why)
{
    weft(s, "compare", "an apple", "-m", MODEL, "-a", LORA, "--x", x, "-o", in(s, "a.png"), NULL);
    expect_failure(s, 2, why);
}

/* The page holds every picture whole and no word of the prompt as markup. */
Test(cli_compare, web_page)
{
    static const char open[] = "data:image/png;base64,";
    struct shell s;
    struct err err;
    struct image page = {0};
    char *text = NULL;
    int n = 0;
    shell_open(&s);
    weft(&s, "compare", "an <b>owl & \"key\"", "-m", MODEL, "--x", "cfg=3,5", "--y", "seed=1,2",
         "--steps", "2", "-o", in(&s, "sheet.png"), "--html", in(&s, "sheet.html"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_assert_eq(file_read(&text, NULL, in(&s, "sheet.html"), 1 << 24, &err), 0, "%s", err.msg);
    cr_expect(!strstr(text, "<b>") && strstr(text, "an &lt;b>owl &amp; &quot;key&quot;"));
    cr_expect(strstr(text, "cfg 5") && strstr(text, "seed 2"));
    for (char *p = text; (p = strstr(p, open)); n++) {
        p += sizeof open - 1;
        size_t len = strcspn(p, "\"");
        unsigned char *png = malloc(len);
        char end = p[len];
        p[len] = 0;
        int size = EVP_DecodeBlock(png, (unsigned char *)p, (int)len);
        p[len] = end;
        cr_assert_gt(size, 100);
        cr_expect_eq(image_decode_png(png, (size_t)size, &page, NULL, &err), 0, "%s", err.msg);
        cr_expect_eq(page.w, 64);
        image_release(&page);
        free(png);
    }
    cr_expect_eq(n, 4);
    free(text);
    shell_close(&s);
}

Test(cli_compare, refuses_axes)
{
    struct shell s;
    shell_open(&s);
    no_axis(&s, "cfg", "--x takes KEY=A,B");
    no_axis(&s, "cfg=", "--x takes KEY=A,B");
    no_axis(&s, "cfg=3,many", "--x takes numbers, not 'many'");
    no_axis(&s, "cfg=3,5000", "--cfg takes");
    no_axis(&s, "steps=2.5", "--x takes whole numbers");
    no_axis(&s, "mood=3", "--x: no key 'mood'");
    no_axis(&s, "prompt=pear,plum", "'pear' is nowhere in the prompt");
    no_axis(&s, "compose=merge,glue", "no strategy 'glue'");
    no_axis(&s, "strength/film=1", "no such adapter in the picture");
    no_axis(&s, "from=0", "--x takes steps from 1 up");
    shell_close(&s);
}

Test(cli_compare, refuses)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "compare", "an apple", "-m", MODEL, "--compose", "glue", "-o", in(&s, "a.png"), NULL);
    expect_failure(
        &s, 2, "no strategy 'glue'; known: merge, switch, composite, cmlora, wswitch, wcomposite");
    static const char *const seeds[] = {"", "1,", "one", "1,-2", "1 2", "99999999999999999999"};
    for (size_t i = 0; i < sizeof seeds / sizeof *seeds; i++) {
        weft(&s, "compare", "an apple", "-m", MODEL, "--seeds", seeds[i], "-o", in(&s, "a.png"),
             NULL);
        expect_failure(&s, 2, "--seeds takes whole numbers such as 1,2,3");
    }
    weft(&s, "compare", "an apple", "-m", MODEL, "-o", in(&s, "nowhere/a.png"), NULL);
    expect_failure(&s, 1, "nowhere");
    shell_close(&s);
}
