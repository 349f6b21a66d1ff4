/* Adapters that act in places of their own: box=, mask= and word= of -a, --show-masks. */
#include "shell.h"

#include "unet/image.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define MODEL "tests/golden/data/tiny-sd1"
#define LORA  "tests/golden/data/lora-kohya.safetensors"

/* box=, mask= and word= change the picture, are remembered, and draw their masks; an altered mask is told. */
Test(cli_places, are_kept_and_drawn)
{
    struct shell s;
    struct image a = {0}, b = {0};
    struct err err;
    shell_open(&s);
    uint8_t half[2 * 3] = {255, 255, 255, 0, 0, 0};
    const struct image left = {2, 1, half};
    const char *mask = in(&s, "left.png");
    char with[300];
    cr_assert_eq(image_write_png(mask, &left, NULL, 0, &err), 0);
    snprintf(with, sizeof with, LORA ",te=0,mask=%s", mask);
    const char *const adapter[] = {LORA ",te=0", LORA ",te=0,box=0/0/.5/1", with,
                                   LORA ",te=0,word=an apple"};
    for (int i = 0; i < 4; i++) {
        char name[20], file[300], again[300];
        snprintf(name, sizeof name, "%d.png", i);
        snprintf(file, sizeof file, "%s", in(&s, name));
        snprintf(again, sizeof again, "%s", in(&s, "again.png"));
        weft(&s, "render", "an apple on a table", "-m", MODEL, "-a", adapter[i], "-a",
             "tests/golden/data/lora-peft.safetensors,te=0,word=table", "--compose",
             i == 3 ? "attend" : "merge", "--seed", "1", "--steps", "3", "--show-masks",
             in(&s, "masks"), "-o", file, NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        weft(&s, "render", "--like", file, "-o", again, NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        read_picture(file, &a, NULL);
        read_picture(again, &b, NULL);
        size_t n = (size_t)a.w * (size_t)a.h * 3;
        cr_expect(!memcmp(a.rgb, b.rgb, n), "%s is not made again", adapter[i]);
        image_release(&b);
        if (i) {
            read_picture(in(&s, "0.png"), &b, NULL);
            cr_expect(memcmp(a.rgb, b.rgb, n), "%s changes nothing", adapter[i]);
            image_release(&b);
        }
        image_release(&a);
    }
    read_picture(in(&s, "1.png"), &a, NULL);
    read_picture(in(&s, "masks/1-lora-kohya.png"), &b, NULL);
    for (int x = 0; x < a.w; x++) /* light on the left, dark on the right */
        cr_expect_eq(b.rgb[3 * x], (int)((float)a.rgb[3 * x] * (x < a.w / 2 ? 1 : .1f) + .5f));
    image_release(&a);
    image_release(&b);
    read_picture(in(&s, "masks/3-lora-peft.png"), &b, NULL);
    image_release(&b);
    read_picture(in(&s, "masks/3-lora-peft-words.png"), &b, NULL);
    image_release(&b);
    cr_expect(access(in(&s, "masks/1-lora-kohya-words.png"), F_OK) < 0, "merge looks at no words");
    cr_expect_neq(access(in(&s, "masks/0-lora-kohya.png"), F_OK), 0, "it acted everywhere");
    half[0] = 0;
    cr_assert_eq(image_write_png(mask, &left, NULL, 0, &err), 0);
    weft(&s, "render", "--like", in(&s, "2.png"), "-o", in(&s, "again.png"), NULL);
    cr_expect(s.code == 1 && strstr(s.err, "not the mask that"), "%s", s.err);
    shell_close(&s);
}

Test(cli_places, that_are_none)
{
    struct shell s;
    shell_open(&s);
    const char *o = in(&s, "o.png");
    static const char *const boxes[] = {"0:0:1:1",   "0/0/1", "0/0/1/1/1", ".5/0/.5/1", "0/0/1.1/1",
                                        "-.1/0/1/1", "",      "a/b/c/d",   "0/0/nan/1"};
    for (size_t i = 0; i < sizeof boxes / sizeof *boxes; i++) {
        char arg[200];
        snprintf(arg, sizeof arg, LORA ",box=%s", boxes[i]);
        weft(&s, "render", "x", "-m", MODEL, "-a", arg, "-o", o, NULL);
        expect_failure(&s, 2, "is not LEFT/TOP/RIGHT/BOTTOM");
    }
    weft(&s, "render", "x", "-m", MODEL, "-a", LORA ",mask=nothing.png", "-o", o, NULL);
    expect_failure(&s, 1, "nothing.png");
    weft(&s, "render", "x", "-m", MODEL, "-a", LORA ",box=0/0/.5/1", "--fold", "-o", o, NULL);
    expect_failure(&s, 2, "cannot be folded");
    shell_close(&s);
}

/* A region's prompt may have commas, changes the picture, and is remembered; without boxes the composer looks for places. */
Test(cli_places, regions_have_prompts)
{
    static const char *const one[] = {LORA ",te=0,box=0/0/.5/1",
                                      LORA ",te=0,box=0/0/.5/1,prompt=a red owl, sitting",
                                      LORA ",te=0,prompt=a red owl, sitting,box=0/0/.5/1"};
    struct shell s;
    struct image a = {0}, b = {0};
    shell_open(&s);
    for (int i = 0; i < 5; i++) {
        char name[20], file[300], again[300];
        snprintf(name, sizeof name, "%d.png", i);
        snprintf(file, sizeof file, "%s", in(&s, name));
        snprintf(again, sizeof again, "%s", in(&s, "again.png"));
        weft(&s, "render", "an apple, and a table", "-m", MODEL, "-a",
             i < 3 ? one[i] : LORA ",te=0,word=apple", "-a",
             "tests/golden/data/lora-peft.safetensors,word=table", "--compose",
             i < 3    ? "regions"
             : i == 3 ? "composer"
                      : "clora",
             "--seed", "1", "--steps", "4", "--show-masks", in(&s, "masks"), "-o", file, NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        weft(&s, "render", "--like", file, "-o", again, NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        read_picture(file, &a, NULL);
        read_picture(again, &b, NULL);
        size_t n = (size_t)a.w * (size_t)a.h * 3;
        cr_expect(!memcmp(a.rgb, b.rgb, n), "%d is not made again", i);
        image_release(&b);
        if (i == 1 || i == 2) {
            read_picture(in(&s, i == 1 ? "0.png" : "1.png"), &b, NULL);
            cr_expect_eq(!memcmp(a.rgb, b.rgb, n), i == 2, "%d", i);
            image_release(&b);
        }
        image_release(&a);
    }
    for (int i = 3; i < 5; i++) {
        char name[60];
        snprintf(name, sizeof name, "masks/%d-lora-kohya-words.png", i);
        read_picture(in(&s, name), &b, NULL);
        image_release(&b);
    }
    shell_close(&s);
}
