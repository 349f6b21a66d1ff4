/* weft render --auto: adapters by what the prompt asks for. */
#include "shell.h"

#include "unet/file.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Shipped adapters under names that say nothing. */
static void fill(struct shell *s)
{
    static const char *const what[] = {"tower",  "kite",   "gorilla",   "lantern",
                                       "church", "teapot", "speedboat", "peach"};
    for (int i = 0; i < 8; i++) {
        char path[80], name[16];
        snprintf(path, sizeof path, "assets/adapters/%s.safetensors", what[i]);
        snprintf(name, sizeof name, "x%d", i);
        weft(s, "add", path, "--home", in(s, "home"), NULL);
        cr_assert_eq(s->code, 0, "%s", s->err);
        weft(s, "tag", what[i], "--rename", name, "--home", in(s, "home"), NULL);
        cr_assert_eq(s->code, 0, "%s", s->err);
    }
}

static void render(struct shell *s, const char *prompt, const char *how, const char *model)
{
    weft(s, "render", prompt, "--home", in(s, "home"), "--seed", "1", "--steps", "2", "-o",
         in(s, "auto.png"), "--json", how, model ? "--model" : NULL, model, NULL);
}

Test(cli_auto, chooses_by_weights)
{
    static const char prompt[] = "a kite on the left and a lantern on the right";
    struct shell s;
    char *a, *b;
    size_t n_a, n_b;
    struct image im[2];
    struct err err;
    shell_open(&s);
    fill(&s);
    render(&s, prompt, "--auto", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"phrase\":\"kite\",\"name\":\"x1\""), "%s", s.out);
    cr_expect(strstr(s.out, "\"phrase\":\"lantern\",\"name\":\"x3\""), "%s", s.out);
    /* the same by hand */
    weft(&s, "render", "a sks kite on the left and a sks lantern on the right", "-a", "x1", "-a",
         "x3", "--compose", "gated:uncond=base", "--home", in(&s, "home"), "--seed", "1", "--steps",
         "2", "-o", in(&s, "hand.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    read_picture(in(&s, "auto.png"), &im[0], NULL);
    read_picture(in(&s, "hand.png"), &im[1], NULL);
    cr_expect(!memcmp(im[0].rgb, im[1].rgb, (size_t)im[0].w * (size_t)im[0].h * 3),
              "not the picture made by hand");
    image_release(&im[0]);
    image_release(&im[1]);
    /* whose words are which is remembered, the phrases that they were chosen for too */
    weft(&s, "render", "--like", in(&s, "auto.png"), "--home", in(&s, "home"), "-o",
         in(&s, "like.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_assert_eq(file_read(&a, &n_a, in(&s, "auto.png"), 1 << 24, &err), 0, "%s", err.msg);
    cr_assert_eq(file_read(&b, &n_b, in(&s, "like.png"), 1 << 24, &err), 0, "%s", err.msg);
    cr_expect(n_a == n_b && !memcmp(a, b, n_a), "--like is another picture");
    free(a);
    free(b);
    shell_close(&s);
}

/* The likeliest are taken, in the order of the prompt; who is left out is named. */
Test(cli_auto, takes_no_more_than_can_share)
{
    static const char prompt[] = "a gorilla, a kite and a lantern";
    struct shell s;
    shell_open(&s);
    fill(&s);
    render(&s, prompt, "--auto=3", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"x1\"") && strstr(s.out, "\"x2\"") && strstr(s.out, "\"x3\""), "%s",
              s.out);
    cr_expect(!strstr(s.err, "left out"), "%s", s.err);
    render(&s, prompt, "--auto", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"name\":\"x2\"") && strstr(s.out, "\"name\":\"x3\""), "%s", s.out);
    cr_expect(strstr(s.err, "x1 is left out") && strstr(s.err, "--auto=3"), "%s", s.err);
    /* only the kite's trigger is left to say so itself */
    weft(&s, "tag", "x2", "--no-triggers", "--home", in(&s, "home"), NULL);
    weft(&s, "tag", "x3", "--no-triggers", "--home", in(&s, "home"), NULL);
    render(&s, prompt, "--auto=1", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"name\":\"x1\"") && !strstr(s.out, "\"name\":\"x3\""), "%s", s.out);
    shell_close(&s);
}

/* A model that no encoder was made for: the demo model but for a space in a file that says what it is. */
static const char *other_model(struct shell *s)
{
    char command[300];
    snprintf(command, sizeof command,
             "cp -r assets/model '%.60s/other' && chmod -R u+w '%.60s/other' && "
             "echo >> '%.60s/other/unet/config.json'",
             s->dir, s->dir, s->dir);
    cr_assert_eq(system(command), 0);
    return in(s, "other");
}

/* Where how sure it is was never measured, it proposes and waits for a yes. */
Test(cli_auto, asks_where_it_cannot_be_sure)
{
    static const char prompt[] = "a kite on the left and a lantern on the right";
    struct shell s;
    shell_open(&s);
    fill(&s);
    render(&s, prompt, "--auto", other_model(&s));
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "-a x1 -a x3") && strstr(s.err, "--yes"), "%s", s.err);
    weft(&s, "render", prompt, "--home", in(&s, "home"), "--seed", "1", "--steps", "2", "-o",
         in(&s, "auto.png"), "--json", "--auto", "--yes", "--model", in(&s, "other"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"phrase\":\"kite\",\"name\":\"x1\""), "%s", s.out);
    cr_expect(strstr(s.out, "\"phrase\":\"lantern\",\"name\":\"x3\""), "%s", s.out);
    shell_close(&s);
}

/* What the model knows by itself, or nobody has, brings no adapter in. */
Test(cli_auto, chooses_none)
{
    struct shell s;
    shell_open(&s);
    render(&s, "a dog", "--auto", NULL);
    cr_expect_eq(s.code, 2, "no repository");
    cr_expect(strstr(s.err, "weft add"), "%s", s.err);
    fill(&s);
    render(&s, "a dog and a pizza on a plain background", "--auto", NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"adapters\":[]") && strstr(s.out, "\"auto\":[]"), "%s", s.out);
    cr_expect(strstr(s.err, "no adapter fits"), "%s", s.err);
    render(&s, "a dog", "--auto=0", NULL);
    cr_expect_eq(s.code, 2);
    shell_close(&s);
}

/* A name or trigger that says the phrase needs less of the weights; one that they contradict is not taken. */
Test(cli_auto, a_name_that_says_so)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "add", "assets/adapters", "--home", in(&s, "home"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    render(&s, "a melon", "--auto", NULL); /* .31 by weights, .35 is asked for */
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"name\":\"melon\",\"named\":true"), "%s", s.out);
    weft(&s, "tag", "melon", "--rename", "x", "--no-triggers", "--home", in(&s, "home"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    weft(&s, "tag", "scooter", "--rename", "melon", "--home", in(&s, "home"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    render(&s, "a melon", "--auto", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "\"auto\":[]"), "%s", s.out);
    shell_close(&s);
}
