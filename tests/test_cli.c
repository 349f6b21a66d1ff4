/* The program as a user meets it: messages, exit codes, files. WEFT_BIN names the program. */
#include "shell.h"
#include "unet/file.h"
#include "unet/image.h"
#include "unet/safetensors.h"
#include "util.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <jansson.h>
#include <limits.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODEL  "tests/golden/data/tiny-sd1"
#define MODEL2 "tests/golden/data/tiny-sd2"
#define LORA   "tests/golden/data/lora-kohya.safetensors"

/* ---- ordinary use ---------------------------------------------------------------------------- */

Test(cli, version_and_help)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "--version", NULL);
    cr_expect(s.code == 0 && !strncmp(s.out, "weft ", 5));
    weft(&s, "help", NULL);
    cr_expect(s.code == 0 && strstr(s.out, "weft render PROMPT"));
    weft(&s, "help", "render", NULL);
    cr_expect_eq(s.code, 0);
    static const char *const must[] = {
        "--adapter", "--embedding", "--negative", "--model",   "--size",    "--seed",
        "--count",   "--init",      "--denoise",  "--like",    "--steps",   "--cfg",
        "--sampler", "--schedule",  "--eta",      "--compose", "--fold",    "--clip-skip",
        "--rng",     "--tile",      "--output",   "--json",    "--verbose", "--allow-partial",
        "dpmpp_2m",  "euler_a",     "BREAK"};
    for (size_t i = 0; i < sizeof must / sizeof *must; i++)
        cr_expect(strstr(s.out, must[i]), "help render says nothing of %s", must[i]);
    weft(&s, "help", "bench", NULL);
    cr_expect(s.code == 0 && strstr(s.out, "--small"));
    weft(&s, "paint", NULL);
    expect_failure(&s, 2, "no command 'paint'");
    weft(&s, "help", "paint", NULL);
    expect_failure(&s, 2, "no command 'paint'");
    shell_close(&s);
}

Test(cli, render_json)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "render", "a red apple", "-m", MODEL, "-a", LORA ":0.8", "--seed", "5", "--steps", "2",
         "--json", "-o", in(&s, "a.png"), NULL);
    expect_success(&s, 1);
    json_t *j = json_loads(s.out, 0, NULL), *a;
    cr_assert(j, "stdout is no JSON object: %s", s.out);
    cr_expect_str_eq(json_string_value(json_object_get(j, "file")), in(&s, "a.png"));
    cr_expect_eq(json_integer_value(json_object_get(j, "seed")), 5);
    cr_expect_eq(json_integer_value(json_object_get(j, "steps")), 2);
    cr_expect_eq(json_integer_value(json_object_get(j, "passes")), 4);
    cr_expect(json_is_number(json_object_get(j, "seconds")));
    cr_expect_str_eq(json_string_value(json_object_get(j, "model")), MODEL);
    a = json_array_get(json_object_get(j, "adapters"), 0);
    cr_expect_str_eq(json_string_value(json_object_get(a, "name")), "lora-kohya");
    cr_expect_eq(json_number_value(json_object_get(a, "strength")), 0.8);
    cr_expect_eq(json_integer_value(json_object_get(a, "sites")), 265);
    cr_expect_eq(json_integer_value(json_object_get(a, "matched")), 265);
    cr_expect_eq(strlen(json_string_value(json_object_get(a, "id"))), 12);
    json_decref(j);
    shell_close(&s);
}

Test(cli, cfg_1_makes_one_pass_a_step)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "render", "x", "-m", MODEL, "--steps", "3", "--cfg", "1", "--json", "-o",
         in(&s, "a.png"), NULL);
    expect_success(&s, 1);
    cr_expect(strstr(s.out, "\"passes\":3"), "%s", s.out);
    shell_close(&s);
}

/* The same bytes with one thread and with two, alone and as one of several. */
Test(cli, pixels_do_not_depend_on_threads_or_company)
{
    struct shell s;
    char *a, *b, *c;
    size_t na, nb, nc;
    struct err err;
    shell_open(&s);
    weft(&s, "render", "an owl", "-m", MODEL, "-a", LORA, "--seed", "9", "--steps", "3", "-t", "1",
         "-o", in(&s, "a.png"), NULL);
    weft(&s, "render", "an owl", "-m", MODEL, "-a", LORA, "--seed", "9", "--steps", "3", "-t", "2",
         "-o", in(&s, "b.png"), NULL);
    weft(&s, "render", "an owl", "-m", MODEL, "-a", LORA, "--seed", "8", "--steps", "3", "--count",
         "2", "-o", in(&s, "c.png"), NULL);
    expect_success(&s, 4);
    cr_assert_eq(file_read(&a, &na, in(&s, "a.png"), 1 << 24, &err), 0);
    cr_assert_eq(file_read(&b, &nb, in(&s, "b.png"), 1 << 24, &err), 0);
    cr_assert_eq(file_read(&c, &nc, in(&s, "c-9.png"), 1 << 24, &err), 0, "%s", err.msg);
    cr_expect(na == nb && !memcmp(a, b, na), "threads change the picture");
    cr_expect(na == nc && !memcmp(a, c, na), "--count changes the picture");
    free(a);
    free(b);
    free(c);
    shell_close(&s);
}

Test(cli, picture_carries_how_it_was_made)
{
    struct shell s;
    struct image a = {0}, b = {0};
    struct image_texts t = {0};
    shell_open(&s);
    weft(&s, "render", "a (red:1.2) apple", "-n", "blue", "-m", MODEL, "-a",
         LORA ":0.8,te=0,from=1,to=2", "--seed", "9223372036854775807", "--steps", "3", "--sampler",
         "dpmpp_2m", "--schedule", "karras", "--cfg", "4.5", "--size", "64x72", "--clip-skip", "2",
         "-o", in(&s, "a.png"), NULL);
    expect_success(&s, 1);
    read_picture(in(&s, "a.png"), &a, &t);
    cr_expect(a.w == 64 && a.h == 72);
    const char *p = image_text_find(&t, "parameters");
    cr_assert(p);
    cr_expect_eq(strncmp(p,
                         "a (red:1.2) apple <lora:lora-kohya:0:0.8>\nNegative prompt: blue\n"
                         "Steps: 3, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 4.5, "
                         "Seed: 9223372036854775807, Size: 64x72, Model: tiny-sd1, Clip skip: 2, "
                         "RNG: CPU, Lora hashes: \"lora-kohya: ",
                         228),
                 0, "parameters: %s", p);
    /* the same picture from the picture alone; and with one thing changed, another */
    weft(&s, "render", "--like", in(&s, "a.png"), "-o", in(&s, "b.png"), NULL);
    expect_success(&s, 2);
    read_picture(in(&s, "b.png"), &b, NULL);
    cr_expect(!memcmp(a.rgb, b.rgb, (size_t)a.w * (size_t)a.h * 3), "--like made another picture");
    image_release(&b);
    weft(&s, "render", "--like", in(&s, "a.png"), "--seed", "1", "-o", in(&s, "c.png"), NULL);
    expect_success(&s, 3);
    read_picture(in(&s, "c.png"), &b, NULL);
    cr_expect(memcmp(a.rgb, b.rgb, (size_t)a.w * (size_t)a.h * 3), "--seed had no effect");
    image_release(&a);
    image_release(&b);
    image_texts_release(&t);
    shell_close(&s);
}

Test(cli, prompt_may_name_adapters)
{
    struct shell s;
    struct image a = {0}, b = {0}, c = {0};
    shell_open(&s);
    weft(&s, "render", "a key <lora:" LORA ":0.7>", "-m", MODEL, "--seed", "3", "--steps", "2",
         "-o", in(&s, "a.png"), NULL);
    weft(&s, "render", "a key ", "-a", LORA ":0.7", "-m", MODEL, "--seed", "3", "--steps", "2",
         "-o", in(&s, "b.png"), NULL);
    weft(&s, "render", "a key ", "-m", MODEL, "--seed", "3", "--steps", "2", "-o", in(&s, "c.png"),
         NULL);
    expect_success(&s, 3);
    read_picture(in(&s, "a.png"), &a, NULL);
    read_picture(in(&s, "b.png"), &b, NULL);
    read_picture(in(&s, "c.png"), &c, NULL);
    cr_expect(!memcmp(a.rgb, b.rgb, 64 * 64 * 3), "-a and <lora:> differ");
    cr_expect(memcmp(a.rgb, c.rgb, 64 * 64 * 3), "the adapter does nothing");
    image_release(&a);
    image_release(&b);
    image_release(&c);
    shell_close(&s);
}

/* One picture of the folder is the same as another. */
static bool same_picture(const struct shell *s, const char *a, const char *b)
{
    struct image x = {0}, y = {0};
    read_picture(in(s, a), &x, NULL);
    read_picture(in(s, b), &y, NULL);
    bool same = x.w == y.w && x.h == y.h && !memcmp(x.rgb, y.rgb, (size_t)x.w * (size_t)x.h * 3);
    image_release(&x);
    image_release(&y);
    return same;
}

/* What is given beside --like takes the place of what the picture brings. */
Test(cli, like_with_changes)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "render", "a key <lora:" LORA ":0.7>", "-m", MODEL, "--seed", "3", "--steps", "2",
         "-o", in(&s, "named.png"), NULL);
    weft(&s, "render", "a key", "-m", MODEL, "--seed", "3", "--steps", "2", "-o",
         in(&s, "plain.png"), NULL);
    weft(&s, "render", "a key", "-m", MODEL, "-a", LORA ":0.7", "--seed", "3", "--steps", "2", "-o",
         in(&s, "option.png"), NULL);
    weft(&s, "render", "a key", "-m", MODEL, "-a", LORA ":2", "--seed", "3", "--steps", "2", "-o",
         in(&s, "strong.png"), NULL);
    expect_success(&s, 4);
    weft(&s, "render", "a key", "--like", in(&s, "named.png"), "-o", in(&s, "a.png"), NULL);
    expect_success(&s, 5);
    cr_expect(same_picture(&s, "a.png", "plain.png"), "the old prompt's adapter stayed");
    weft(&s, "render", "a key <lora:" LORA ":0.7>", "--like", in(&s, "plain.png"), "-o",
         in(&s, "a.png"), NULL);
    cr_expect(same_picture(&s, "a.png", "named.png"), "the new prompt's adapter is missing");
    weft(&s, "render", "--like", in(&s, "option.png"), "-a", LORA ":2", "-o", in(&s, "a.png"),
         NULL);
    cr_expect(same_picture(&s, "a.png", "strong.png"), "the adapter is in it twice");
    weft(&s, "render", "a key", "--like", in(&s, "option.png"), "-o", in(&s, "a.png"), NULL);
    cr_expect(same_picture(&s, "a.png", "option.png"), "a new prompt dropped an adapter of -a");
    shell_close(&s);
}

static void write_picture(const char *path, const char *chunk)
{
    unsigned char rgb[64 * 64 * 3] = {0};
    struct image im = {.w = 64, .h = 64, .rgb = rgb};
    char key[] = "weft";
    char *value = strdup(chunk);
    struct image_text text = {key, value};
    struct err err;
    cr_assert_eq(image_write_png(path, &im, &text, 1, &err), 0, "%s", err.msg);
    free(value);
}

/* Pictures come from strangers: a chunk is read whole and strictly, or not at all. */
Test(cli, like_of_a_damaged_chunk)
{
    static const struct {
        const char *key, *json, *words; /* json NULL: the key is left out */
    } cases[] = {
        {"format", "2", "format 2"},
        {"format", NULL, "format 0"},
        {"steps", NULL, "no 'steps'"},
        {"steps", "0", "'steps'"},
        {"steps", "4294967298", "'steps'"},
        {"steps", "2.5", "'steps'"},
        {"cfg", "1e300", "'cfg'"},
        {"seed", "-1", "'seed'"},
        {"width", "\"64\"", "'width'"},
        {"width", "4294967360", "'width'"},
        {"prompt", "7", "'prompt'"},
        {"fold", "1", "'fold'"},
        {"model_sha256", "\"0123\"", "'model_sha256'"},
        {"adapters", "{}", "adapters"},
        {"adapters", "[7]", "damaged adapter"},
        {"adapters", "[{\"ref\": \"x\"}]", "damaged adapter"},
        {"new_trick", "3", "unknown keys"},
        {"model_sha256", "\"0000000000000000000000000000000000000000000000000000000000000000\"",
         "not the model that"},
        {"sampler", "\"magic\"", "magic"},
    };
    struct shell s;
    struct image im = {0};
    struct image_texts t = {0};
    shell_open(&s);
    weft(&s, "render", "x", "-m", MODEL, "-a", LORA, "--seed", "3", "--steps", "2", "-o",
         in(&s, "a.png"), NULL);
    expect_success(&s, 1);
    read_picture(in(&s, "a.png"), &im, &t);
    json_t *good = json_loads(image_text_find(&t, "weft"), 0, NULL);
    cr_assert(good);
    unlink(in(&s, "a.png"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        json_t *bad = json_deep_copy(good);
        if (cases[i].json)
            json_object_set_new(bad, cases[i].key,
                                json_loads(cases[i].json, JSON_DECODE_ANY, NULL));
        else
            json_object_del(bad, cases[i].key);
        char *text = json_dumps(bad, JSON_COMPACT);
        write_picture(in(&s, "bad"), text);
        weft(&s, "render", "--like", in(&s, "bad"), "-o", in(&s, "a.png"), NULL);
        expect_failure(&s, strcmp(cases[i].key, "sampler") ? 1 : 2, cases[i].words);
        free(text);
        json_decref(bad);
    }
    write_picture(in(&s, "bad"), "[1, 2");
    weft(&s, "render", "--like", in(&s, "bad"), "-o", in(&s, "a.png"), NULL);
    expect_failure(&s, 1, "not a JSON object");
    json_decref(good);
    image_release(&im);
    image_texts_release(&t);
    shell_close(&s);
}

/* A picture that began with another one asks for that one again. */
Test(cli, like_of_a_picture_from_a_picture)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "render", "x", "-m", MODEL, "--seed", "3", "--steps", "2", "-o", in(&s, "a.png"),
         NULL);
    weft(&s, "render", "y", "-m", MODEL, "--seed", "4", "--steps", "2", "--init", in(&s, "a.png"),
         "-o", in(&s, "b.png"), NULL);
    weft(&s, "render", "--like", in(&s, "b.png"), "-o", in(&s, "c.png"), NULL);
    expect_success(&s, 3);
    cr_expect(same_picture(&s, "b.png", "c.png"), "--like made another picture");
    weft(&s, "render", "y", "-m", MODEL, "--init", in(&s, "a.png"), "-o", in(&s, "a.png"), NULL);
    cr_expect(s.code == 2 && strstr(s.err, "would be replaced"), "%s", s.err);
    weft(&s, "render", "x", "-m", MODEL, "--seed", "5", "--steps", "2", "-o", in(&s, "a.png"),
         NULL);
    weft(&s, "render", "--like", in(&s, "b.png"), "-o", in(&s, "c.png"), NULL);
    cr_expect(s.code == 1 && strstr(s.err, "not the file that"), "%s", s.err);
    shell_close(&s);
}

/* Prompts that must come to the same picture, to the last bit. */
Test(cli, prompts_that_say_the_same)
{
    static const char *const same[] = {
        "an owl",          "an owl AND a fox:0", "[an owl:a fox:100]",
        "[an owl|an owl]", "[a fox:an owl:0]",   "(an owl:1)"};
    struct shell s;
    struct image first = {0}, im = {0};
    shell_open(&s);
    for (size_t i = 0; i < sizeof same / sizeof *same; i++) {
        weft(&s, "render", same[i], "-m", MODEL, "--seed", "4", "--steps", "4", "-o",
             in(&s, "a.png"), NULL);
        expect_success(&s, 1);
        read_picture(in(&s, "a.png"), i ? &im : &first, NULL);
        cr_expect(!i || !memcmp(im.rgb, first.rgb, 64 * 64 * 3), "%s", same[i]);
        image_release(&im);
    }
    weft(&s, "render", "[an owl:a fox:2]", "-m", MODEL, "--seed", "4", "--steps", "4", "-o",
         in(&s, "a.png"), NULL);
    read_picture(in(&s, "a.png"), &im, NULL);
    cr_expect(memcmp(im.rgb, first.rgb, 64 * 64 * 3), "a schedule had no effect");
    image_release(&im);
    image_release(&first);
    shell_close(&s);
}

/* A name with colons and commas is the file of that name. */
Test(cli, adapter_names_may_hold_anything)
{
    struct shell s;
    char cmd[300];
    shell_open(&s);
    snprintf(cmd, sizeof cmd, "cp %s '%s/odd:0.5,te=1@v2.safetensors'", LORA, s.dir);
    cr_assert_eq(system(cmd), 0);
    weft(&s, "render", "x", "-m", MODEL, "-a", in(&s, "odd:0.5,te=1@v2.safetensors"), "--steps",
         "1", "--json", "-o", in(&s, "a.png"), NULL);
    expect_success(&s, 1);
    cr_expect(strstr(s.out, "\"strength\":1.0"), "%s", s.out);
    weft(&s, "render", "x", "-m", MODEL, "-a", in(&s, "odd:0.5,te=1@v2:0.25,unet=0.75"), "--steps",
         "1", "--json", "-o", in(&s, "b.png"), NULL);
    expect_success(&s, 2);
    cr_expect(strstr(s.out, "\"strength\":0.75"), "%s", s.out);
    shell_close(&s);
}

Test(cli, init_image)
{
    struct shell s;
    struct image a = {0}, b = {0};
    shell_open(&s);
    weft(&s, "render", "x", "-m", MODEL, "--seed", "1", "--steps", "2", "-o", in(&s, "a.png"),
         NULL);
    weft(&s, "render", "y", "-m", MODEL, "--seed", "1", "--steps", "10", "--init", in(&s, "a.png"),
         "--denoise", "0.1", "--json", "-o", in(&s, "b.png"), NULL);
    expect_success(&s, 2);
    cr_expect(strstr(s.out, "\"passes\":2"), "%s", s.out);
    weft(&s, "render", "y", "-m", MODEL, "--steps", "4", "--init", in(&s, "a.png"), "--size",
         "80x72", "-o", in(&s, "c.png"), NULL);
    expect_success(&s, 3);
    read_picture(in(&s, "c.png"), &a, NULL);
    cr_expect(a.w == 80 && a.h == 72);
    image_release(&a);
    image_release(&b);
    shell_close(&s);
}

Test(cli, folded_and_tiled_are_nearly_the_same)
{
    struct shell s;
    struct image a = {0}, b = {0}, c = {0};
    shell_open(&s);
    weft(&s, "render", "x", "-m", MODEL, "-a", LORA, "--seed", "1", "--steps", "2", "-o",
         in(&s, "a.png"), NULL);
    weft(&s, "render", "x", "-m", MODEL, "-a", LORA, "--seed", "1", "--steps", "2", "--fold", "-o",
         in(&s, "b.png"), NULL);
    weft(&s, "render", "x", "-m", MODEL, "-a", LORA, "--seed", "1", "--steps", "2", "--tile", "8",
         "-o", in(&s, "c.png"), NULL);
    expect_success(&s, 3);
    read_picture(in(&s, "a.png"), &a, NULL);
    read_picture(in(&s, "b.png"), &b, NULL);
    read_picture(in(&s, "c.png"), &c, NULL);
    for (int i = 0; i < 64 * 64 * 3; i++) {
        cr_assert_leq(abs(a.rgb[i] - b.rgb[i]), 1, "folded: value %d", i);
        cr_assert_leq(abs(a.rgb[i] - c.rgb[i]), 0, "one tile is the whole picture: value %d", i);
    }
    image_release(&a);
    image_release(&b);
    image_release(&c);
    shell_close(&s);
}

Test(cli, empty_and_enormous_prompts_are_fine)
{
    struct shell s;
    char *big = malloc(60001);
    shell_open(&s);
    weft(&s, "render", "", "-m", MODEL, "--steps", "1", "-o", in(&s, "a.png"), NULL);
    expect_success(&s, 1);
    big[0] = 0;
    for (int i = 0; i < 10000; i++)
        memcpy(big + 6 * i, "apple ", 7);
    weft(&s, "render", big, "-m", MODEL2, "--steps", "1", "-o", in(&s, "b.png"), NULL);
    expect_success(&s, 2);
    free(big);
    shell_close(&s);
}

/* ---- a wrong command line -------------------------------------------------------------------- */

Test(cli, wrong_command_lines)
{
    struct shell s;
    shell_open(&s);
    const char *o = in(&s, "a.png");
    weft(&s, "render", "-m", MODEL, "-o", o, NULL);
    expect_failure(&s, 2, "no prompt");
    weft(&s, "render", "a", "b", "-m", MODEL, "-o", o, NULL);
    expect_failure(&s, 2, "'b' is a second");
    weft(&s, "render", "x", "-m", MODEL, "--steps", "0", "-o", o, NULL);
    expect_failure(&s, 2, "--steps takes 1 to 1000, not 0");
    weft(&s, "render", "x", "-m", MODEL, "--steps", "many", "-o", o, NULL);
    expect_failure(&s, 2, "--steps takes a whole number");
    weft(&s, "render", "x", "-m", MODEL, "--steps", "2.5", "-o", o, NULL);
    expect_failure(&s, 2, "--steps takes a whole number");
    weft(&s, "render", "x", "-m", MODEL, "--colour", "red", "-o", o, NULL);
    expect_failure(&s, 2, "no option '--colour'");
    weft(&s, "render", "x", "-m", MODEL, "-o", NULL);
    expect_failure(&s, 2, "needs a value");
    weft(&s, "render", "x", "-m", MODEL, "--sampler", "magic", "-o", o, NULL);
    expect_failure(&s, 2, "ddim");
    cr_expect(strstr(s.err, "magic") && strstr(s.err, "unipc") && strstr(s.err, "lcm"), "%s",
              s.err);
    weft(&s, "render", "x", "-m", MODEL, "--sampler", "euler_a", "--schedule", "karras", "-o", o,
         NULL);
    expect_failure(&s, 2, "euler_a");
    weft(&s, "render", "x", "-m", MODEL, "--schedule", "odd", "-o", o, NULL);
    expect_failure(&s, 2, "known: default, karras, trained");
    weft(&s, "render", "x", "-m", MODEL, "--size", "65", "-o", o, NULL);
    expect_failure(&s, 2, "multiples of 8");
    weft(&s, "render", "x", "-m", MODEL, "--size", "0x0", "-o", o, NULL);
    expect_failure(&s, 2, "--size takes a size");
    weft(&s, "render", "x", "-m", MODEL, "--size", "60000x8", "-o", o, NULL);
    expect_failure(&s, 2, "up to 8192");
    weft(&s, "render", "x", "-m", MODEL, "--size", "4294967360", "-o", o, NULL);
    expect_failure(&s, 2, "--size takes a size");
    weft(&s, "render", "x", "-m", MODEL, "--size", "64x64x64", "-o", o, NULL);
    expect_failure(&s, 2, "--size takes a size");
    weft(&s, "render", "x", "-m", MODEL, "--steps", "0x10", "-o", o, NULL);
    expect_failure(&s, 2, "--steps takes a whole number");
    weft(&s, "render", "x", "-m", MODEL, "--cfg", "nan", "-o", o, NULL);
    expect_failure(&s, 2, "--cfg takes a number");
    weft(&s, "render", "x", "-m", MODEL, "--seed", "9223372036854775807", "-c", "2", "-o", o, NULL);
    expect_failure(&s, 2, "above 2^63 - 1");
    weft(&s, "render", "x", "-m", MODEL, "-n", "bad <lora:" LORA ":1>", "-o", o, NULL);
    expect_failure(&s, 2, "negative prompt");
    weft(&s, "render", "caf\xe9", "-m", MODEL, "-o", o, NULL);
    expect_failure(&s, s.code, "UTF-8");
    weft(&s, "render", "x", "-m", MODEL, "-a", LORA ",te=0,from=900", "-o", o, NULL);
    expect_failure(&s, 2, "from");
    weft(&s, "render", "x", "-m", MODEL, "--seed", "-1", "-o", o, NULL);
    expect_failure(&s, 2, "--seed takes");
    weft(&s, "render", "x", "-m", MODEL, "--seed", "9223372036854775808", "-o", o, NULL);
    expect_failure(&s, 2, "--seed takes");
    weft(&s, "render", "x", "-m", MODEL, "--compose", "telepathy", "-o", o, NULL);
    expect_failure(&s, 2, "no strategy 'telepathy'");
    weft(&s, "render", "x", "-m", MODEL, "--clip-skip", "9", "-o", o, NULL);
    expect_failure(&s, 2, "clip skip 9");
    weft(&s, "render", "x", "-m", MODEL, "-a", LORA ",strange=1", "-o", o, NULL);
    expect_failure(&s, 2, "strange=1");
    weft(&s, "render", "x", "-m", MODEL, "-a", LORA ",te=0,from=2", "--fold", "-o", o, NULL);
    expect_failure(&s, 2, "cannot be folded");
    weft(&s, "render", "x", "-m", MODEL, "--device", "abacus", "-o", o, NULL);
    expect_failure(&s, 2, "no device 'abacus'");
    weft(&s, "render", "a <hypernet:x:1>", "-m", MODEL, "-o", o, NULL);
    expect_failure(&s, 1, "hypernet");
    shell_close(&s);
}

/* Help for a command, asked for in the middle of it; and output that has nowhere to go. */
Test(cli, help_and_a_full_disk)
{
    struct shell s;
    char cmd[400];
    const char *bin = getenv("WEFT_BIN");
    shell_open(&s);
    weft(&s, "render", "x", "-m", MODEL, "--help", NULL);
    cr_expect(s.code == 0 && strstr(s.out, "--adapter"), "%s", s.err);
    snprintf(cmd, sizeof cmd, "%s help render > /dev/full 2> %s/.err", bin ? bin : "build/weft",
             s.dir);
    int status = system(cmd);
    cr_expect(WIFEXITED(status) && WEXITSTATUS(status) == 1, "status %d", status);
    shell_close(&s);
}

/* Textual inversions: used by name, remembered by the picture, refused when they cannot act. */
#define WORDS "tests/golden/data/torch/"

static char *pixels(const struct shell *s, const char *name)
{
    struct image im = {0};
    read_picture(in(s, name), &im, NULL);
    char *copy = malloc((size_t)im.w * (size_t)im.h * 3);
    memcpy(copy, im.rgb, (size_t)im.w * (size_t)im.h * 3);
    image_release(&im);
    return copy;
}

Test(cli, embeddings)
{
    struct shell s;
    struct image im = {0};
    struct image_texts t = {0};
    shell_open(&s);
    weft(&s, "render", "a (bird:1.2) and <owl-toy>", "-m", MODEL, "--embedding",
         WORDS "a1111.pt=bird", "--embedding", WORDS "learned_embeds.bin", "--steps", "2", "--seed",
         "3", "-v", "-o", in(&s, "a.png"), NULL);
    expect_success(&s, 1);
    cr_expect(strstr(s.err, "embedding 'bird': 2 vectors of 16"), "%s", s.err);
    read_picture(in(&s, "a.png"), &im, &t);
    cr_expect(strstr(image_text_find(&t, "parameters"), "TI hashes: \"bird: "), "%s",
              image_text_find(&t, "parameters"));
    image_release(&im);
    image_texts_release(&t);
    weft(&s, "render", "--like", in(&s, "a.png"), "--json", "-o", in(&s, "b.png"), NULL);
    expect_success(&s, 2);
    cr_expect(strstr(s.out, "\"embeddings\":[{\"name\":\"bird\",\"file\":\"" WORDS "a1111.pt\""),
              "%s", s.out);
    weft(&s, "render", "a (bird:1.2) and <owl-toy>", "-m", MODEL, "--steps", "2", "--seed", "3",
         "-o", in(&s, "c.png"), NULL);
    expect_success(&s, 3);
    char *a = pixels(&s, "a.png"), *b = pixels(&s, "b.png"), *c = pixels(&s, "c.png");
    cr_expect(!memcmp(a, b, 64 * 64 * 3), "--like makes another picture");
    cr_expect(memcmp(a, c, 64 * 64 * 3), "the words had no effect");
    free(a);
    free(b);
    free(c);
    shell_close(&s);
}

Test(cli, words_in_adapters)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "render", "embedding:my.word", "-m", MODEL, "-a", WORDS "bundle.safetensors",
         "--steps", "1", "-v", "-o", in(&s, "a.png"), NULL);
    expect_success(&s, 1);
    cr_expect(strstr(s.err, "embedding 'my.word': 2 vectors of 16"), "%s", s.err);
    unlink(in(&s, "a.png"));
    char *px[2];
    for (int i = 0; i < 2; i++) {
        weft(&s, "render", i ? "a <c2>" : "a <c1>", "-m", MODEL, "-a", WORDS "ed_lora.pth:0.01",
             "--steps", "2", "--allow-partial", "-v", "-o", in(&s, "a.png"), NULL);
        expect_success(&s, 1);
        cr_expect(strstr(s.err, "'<c1>': 16 vectors of 16, one for each cross attention"), "%s",
                  s.err);
        px[i] = pixels(&s, "a.png");
        unlink(in(&s, "a.png"));
    }
    cr_expect(memcmp(px[0], px[1], 64 * 64 * 3), "both words draw the same");
    free(px[0]);
    free(px[1]);
    weft(&s, "render", "a <c1>", "-m", "assets/model", "--embedding", WORDS "ed_lora.pth",
         "--steps", "1", "-o", in(&s, "a.png"), NULL);
    expect_failure(&s, 1, "vectors of 16 values, this model's text encoder takes");
    weft(&s, "render", "<s1>", "-m", MODEL, "-a", WORDS "none.pt", "-o", in(&s, "a.png"), NULL);
    expect_failure(&s, 1, "no such adapter file");
    shell_close(&s);
}

/* What each adapter did, told, drawn and checked by leaving it out; the picture is the same as without asking. */
Test(cli, explain)
{
    struct shell s;
    struct image im = {0};
    struct err err;
    shell_open(&s);
    weft(&s, "render", "an owl", "-m", MODEL, "-a", LORA, "--leave-out", NULL);
    expect_failure(&s, 2, "--leave-out goes with --explain");
    weft(&s, "render", "an owl", "-m", MODEL, "-a", LORA, "--explain", "--fold", "-o",
         in(&s, "c.png"), NULL);
    expect_failure(&s, 2, "folded adapters cannot be told apart");
    weft(&s, "render", "an owl", "-m", MODEL, "-a", LORA, "--seed", "9", "--steps", "3", "-o",
         in(&s, "a.png"), NULL);
    weft(&s, "render", "an owl", "-m", MODEL, "-a", LORA, "--seed", "9", "--steps", "3", "-o",
         in(&s, "b.png"), "--explain", "--leave-out", NULL);
    expect_success(&s, 3);
    cr_expect(strstr(s.out, "lora-kohya acted ") && strstr(s.out, "without it pixels change by") &&
                  strstr(s.out, "unet.mid_block") && strstr(s.out, "by step"),
              "%s", s.out);
    char *a = pixels(&s, "a.png"), *b = pixels(&s, "b.png");
    cr_expect(!memcmp(a, b, 64 * 64 * 3), "to explain changes the picture");
    free(a);
    free(b);
    cr_assert_eq(image_read_png(in(&s, "b-influence.png"), &im, NULL, &err), 0, "%s", err.msg);
    cr_expect_gt(im.w, 2 * 256);
    image_release(&im);
    weft(&s, "render", "an owl", "-m", MODEL, "-a", LORA, "--seed", "9", "--steps", "3", "-o",
         in(&s, "b.png"), "--explain", "--json", NULL);
    expect_success(&s, 3);
    json_t *root = json_loads(s.out, 0, NULL);
    cr_assert(root, "%s", s.out);
    json_t *one =
        json_array_get(json_object_get(json_object_get(root, "influence"), "adapters"), 0);
    cr_expect_gt(json_real_value(json_object_get(one, "share")), 0);
    cr_expect_eq(json_array_size(json_object_get(one, "steps")), 3);
    json_decref(root);
    shell_close(&s);
}

/* A word of the repository needs no option: by its name there, by embedding:NAME, by the word in its file. */
Test(cli, embeddings_of_the_repository)
{
    struct shell s;
    struct image im = {0};
    struct image_texts t = {0};
    char command[400];
    shell_open(&s);
    setenv("WEFT_HOME", in(&s, "home"), 1);
    mkdir(in(&s, "in"), 0777);
    snprintf(command, sizeof command, "cp " WORDS "a1111.pt %s; cp " WORDS "learned_embeds.bin %s",
             in(&s, "in/bird.pt"), in(&s, "in/toy.bin"));
    cr_assert_eq(system(command), 0);
    weft(&s, "add", in(&s, "in"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
#define RENDER(prompt, to)                                                                         \
    weft(&s, "render", prompt, "-m", MODEL, "--steps", "2", "--seed", "3", "-o", in(&s, to),       \
         NULL);                                                                                    \
    cr_assert_eq(s.code, 0, "%s", s.err)
    RENDER("a (bird:1.2) and <owl-toy>", "a.png");
    cr_expect(strstr(s.err, "'bird' in the prompt is the embedding ") &&
                  strstr(s.err, "'<owl-toy>' in the prompt is the embedding "),
              "%s", s.err);
    RENDER("a (embedding:BIRD:1.2) and <owl-toy>", "b.png");
    RENDER("a (embedding:bird:1.2) and <owl-toy>, birdsong", "c.png");
    RENDER("birdsong", "d.png"); /* only a beginning: not the word */
    cr_expect_eq(*s.err, 0, "%s", s.err);
    read_picture(in(&s, "d.png"), &im, &t);
    cr_expect(!strstr(image_text_find(&t, "weft"), "embeddings"));
    image_release(&im);
    image_texts_release(&t);

    /* the same as with --embedding, and remembered; the file may move */
    unsetenv("WEFT_HOME");
    weft(&s, "render", "a (bird:1.2) and <owl-toy>", "-m", MODEL, "--embedding",
         in(&s, "in/bird.pt"), "--embedding", in(&s, "in/toy.bin"), "--steps", "2", "--seed", "3",
         "-o", in(&s, "e.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    setenv("WEFT_HOME", in(&s, "home"), 1);
    cr_assert_eq(rename(in(&s, "in/bird.pt"), in(&s, "in/crow.pt")), 0);
    weft(&s, "sync", NULL);
    weft(&s, "render", "--like", in(&s, "a.png"), "-o", in(&s, "f.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    char *p[6];
    for (int i = 0; i < 6; i++)
        p[i] = pixels(&s, (char[]){(char)('a' + i), '.', 'p', 'n', 'g', 0});
    cr_expect(!memcmp(p[0], p[1], 64 * 64 * 3) && memcmp(p[0], p[2], 64 * 64 * 3));
    cr_expect(!memcmp(p[0], p[4], 64 * 64 * 3), "--embedding makes another picture");
    cr_expect(!memcmp(p[0], p[5], 64 * 64 * 3), "--like makes another picture");
    for (int i = 0; i < 6; i++)
        free(p[i]);
    shell_close(&s);
}

/* One of another width stays an ordinary word, unless it is asked for by embedding:. */
Test(cli, embeddings_of_the_repository_that_do_not_fit)
{
    struct shell s;
    shell_open(&s);
    setenv("WEFT_HOME", in(&s, "home"), 1);
    weft(&s, "add", WORDS "a1111.pt", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    weft(&s, "tag", "a1111", "--rename", "bird", NULL);
    weft(&s, "render", "a bird", "-m", MODEL2, "--steps", "1", "-o", in(&s, "a.png"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.err, "'bird' is an embedding of the repository, but not for this model"),
              "%s", s.err);
    unlink(in(&s, "a.png"));
    weft(&s, "render", "a embedding:bird", "-m", MODEL2, "--steps", "1", "-o", in(&s, "a.png"),
         NULL);
    expect_failure(&s, 1, "this model's text encoder takes");
    shell_close(&s);
}

Test(cli, embeddings_that_cannot_be)
{
    struct shell s;
    shell_open(&s);
#define TRY(prompt, embedding)                                                                     \
    weft(&s, "render", prompt, "-m", MODEL, "--embedding", embedding, "-o", in(&s, "a.png"), NULL)
    TRY("a bird", WORDS "a1111.pt");
    expect_failure(&s, 2, "neither prompt has its word 'a1111'");
    TRY("a bird", WORDS "none.pt=bird");
    expect_failure(&s, 1, "no such embedding file");
    TRY("a bird", LORA "=bird");
    expect_failure(&s, 1, "no textual inversion in it");
    TRY("a bird", WORDS "bundle.safetensors=bird");
    expect_failure(&s, 2, "more than one word");
    TRY("a bird", WORDS "both.safetensors=");
    expect_failure(&s, 2, "needs a name");
    TRY("a embedding:ghost", WORDS "a1111.pt");
    expect_failure(&s, 2, "no embedding 'ghost'");
    weft(&s, "render", "both", "-m", MODEL2, "--embedding", WORDS "both.safetensors", "-o",
         in(&s, "a.png"), NULL);
    cr_expect(s.code == 0 || strstr(s.err, "made for another base"), "%s", s.err);
    unlink(in(&s, "a.png"));
    weft(&s, "render", "x", "-m", MODEL, "-a", WORDS "a1111.pt", "-o", in(&s, "a.png"), NULL);
    expect_failure(&s, 1, "--embedding takes it");
    shell_close(&s);
}

/* Ctrl-C in the middle: nothing half-written, one line, exit 1. */
Test(cli, interrupt_leaves_nothing)
{
    struct shell s;
    const char *bin = getenv("WEFT_BIN");
    shell_open(&s);
    char *argv[] = {strdup(bin ? bin : "build/weft"),
                    (char *)"render",
                    (char *)"x",
                    (char *)"-m",
                    (char *)MODEL,
                    (char *)"--steps",
                    (char *)"900",
                    (char *)"--size",
                    (char *)"256",
                    (char *)"-o",
                    strdup(in(&s, "a.png")),
                    NULL};
    pid_t pid = start(&s, argv);
    usleep(700000);
    kill(pid, SIGINT);
    finish(&s, pid);
    expect_failure(&s, 1, "stopped");
    free(argv[0]);
    free(argv[10]);
    shell_close(&s);
}

/* Prompts from standard input: each is the picture that render makes alone, seeds count up, an empty line is
 * none, and a wrong one stops no other. */
Test(cli, prompts_from_standard_input)
{
    struct shell s;
    char command[9000], program[PATH_MAX], model[PATH_MAX];
    shell_open(&s);
    cr_assert(realpath(getenv("WEFT_BIN"), program) &&
              realpath("tests/golden/data/tiny-sd1", model));
    weft(&s, "render", "-i", "x", "-m", "tests/golden/data/tiny-sd1", NULL);
    expect_failure(&s, 2, "prompts come from standard input");
    snprintf(
        command, sizeof command,
        "cd '%s' && printf 'an owl\\n\\n<lora:nowhere:1> x\\na castle\\n' | '%s' render -i -m '%s' "
        "--seed 7 --steps 2 >out 2>err; test $? = 2",
        s.dir, program, model);
    cr_assert_eq(system(command), 0, "%s", command);
    weft(&s, "render", "a castle", "-m", "tests/golden/data/tiny-sd1", "--seed", "8", "--steps",
         "2", "-o", in(&s, "one.png"), NULL);
    struct image a = {0}, b = {0};
    struct err err;
    cr_assert_eq(image_read_png(in(&s, "weft-8.png"), &a, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(image_read_png(in(&s, "one.png"), &b, NULL, &err), 0, "%s", err.msg);
    cr_expect(!memcmp(a.rgb, b.rgb, 3 * (size_t)a.w * (size_t)a.h));
    cr_expect_eq(access(in(&s, "weft-7.png"), R_OK), 0);
    image_release(&a);
    image_release(&b);
    shell_close(&s);
}

/* The demo model and its adapter, as `make demo` uses them. */
Test(cli, demo_model_is_found)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "render", "a sks monkey", "-a", "assets/adapters/monkey.safetensors", "--seed", "7",
         "--steps", "2", "-v", "-o", in(&s, "a.png"), NULL);
    expect_success(&s, 1);
    cr_expect(strstr(s.err, "adapter monkey: lora (peft), 42 of 42"), "%s", s.err);
    shell_close(&s);
}
