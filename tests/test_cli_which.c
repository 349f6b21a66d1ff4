/* `weft which`: pictures of other programs and our own, and what of them is here. */
#include "shared.h"
#include "shell.h"
#include "unet/image.h"

#include <jansson.h>

#define LORA "tests/golden/data/lora-kohya.safetensors"

static void picture(const char *path, const char *parameters)
{
    uint8_t pixel[3] = {1, 2, 3};
    struct image im = {.w = 1, .h = 1, .rgb = pixel};
    struct image_text text = {(char *)"parameters", (char *)parameters};
    struct err err;
    cr_assert_eq(image_write_png(path, &im, &text, parameters ? 1 : 0, &err), 0, "%s", err.msg);
}

static json_t *which(struct shell *s, const char *path, int code)
{
    weft(s, "which", path, "--json", NULL);
    cr_assert_eq(s->code, code, "%d: %s", s->code, s->err);
    json_t *j = json_loads(s->out, JSON_DISABLE_EOF_CHECK, NULL);
    cr_assert(j, "%s", s->out);
    return j;
}

static const char *setting(const json_t *j, const char *key)
{
    return json_string_value(json_object_get(json_object_get(j, "settings"), key));
}

Test(cli_which, reads_what_a1111_writes)
{
    struct shell s;
    shell_open(&s);
    setenv("WEFT_HOME", in(&s, "none"), 1);
    const char *path = in(&s, "a.png");
    picture(path, "a (red:1.2) apple, two: three\nand a second line\nNegative prompt: mush,\nblur\n"
                  "Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 965400086, Size: 512x512, "
                  "Model: \"a, \\\"b\\\": c\", Hashes: {\"model\": \"45dee52b\"}, Version: v1.6.0");
    json_t *j = which(&s, path, 0);
    cr_expect_str_eq(json_string_value(json_object_get(j, "prompt")),
                     "a (red:1.2) apple, two: three\nand a second line");
    cr_expect_str_eq(json_string_value(json_object_get(j, "negative")), "mush,\nblur");
    cr_expect_str_eq(setting(j, "Sampler"), "Euler a");
    cr_expect_str_eq(setting(j, "Seed"), "965400086");
    cr_expect_str_eq(setting(j, "Model"), "a, \"b\": c");
    cr_expect_str_eq(setting(j, "Hashes"), "{\"model\": \"45dee52b\"}");
    cr_expect_str_eq(setting(j, "Version"), "v1.6.0");
    json_decref(j);
    picture(path, "only: a prompt, with: colons"); /* two pairs are no settings */
    j = which(&s, path, 0);
    cr_expect_str_eq(json_string_value(json_object_get(j, "prompt")),
                     "only: a prompt, with: colons");
    cr_expect_eq(json_object_size(json_object_get(j, "settings")), 0);
    json_decref(j);
    picture(path, NULL);
    weft(&s, "which", path, NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "holds no 'parameters'"), "%s", s.err);
    shell_close(&s);
}

static const char *how(const json_t *j, size_t i)
{
    return json_string_value(
        json_object_get(json_array_get(json_object_get(j, "adapters"), i), "how"));
}

Test(cli_which, finds_adapters_by_hash_then_name)
{
    struct shell s;
    char text[600], *hash;
    shell_open(&s);
    setenv("WEFT_HOME", in(&s, "home"), 1);
    weft(&s, "add", LORA, NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    weft(&s, "show", "lora-kohya", "--json", NULL);
    json_t *j = json_loads(s.out, JSON_DISABLE_EOF_CHECK, NULL);
    hash = strdup(json_string_value(json_object_get(j, "autov3")));
    json_decref(j);
    const char *path = in(&s, "a.png");
    snprintf(
        text, sizeof text,
        "a <lora:other name:0.5> b <lora:lora-kohya:1> c <lora:gone:1>\nSteps: 1, Seed: 2, Size: "
        "8x8, Lora hashes: \"other name: %s, lora-kohya: 0123456789ab\"",
        hash);
    picture(path, text);
    j = which(&s, path, 1);
    cr_expect_eq(json_array_size(json_object_get(j, "adapters")), 3, "%s", s.out);
    cr_expect_str_eq(how(j, 0), "by its hash");
    cr_expect_str_eq(how(j, 1), "by its name alone; its hash is another");
    cr_expect_str_eq(how(j, 2), "missing");
    cr_expect_eq(json_integer_value(json_object_get(j, "missing")), 1);
    cr_expect(strstr(s.err, "1 of its adapters is not here"), "%s", s.err);
    json_decref(j);
    snprintf(text, sizeof text,
             "a\nSteps: 1, Seed: 2, Size: 8x8, Hashes: {\"lora:x:y\": \"%s\", \"model\": \"1\"}",
             hash);
    picture(path, text);
    j = which(&s, path, 0);
    cr_expect_str_eq(how(j, 0), "by its hash");
    json_decref(j);
    free(hash);
    shell_close(&s);
}

/* --like on another program's picture is the same as all its settings by hand. */
Test(cli_which, like_anothers_picture)
{
    static const char *const model = "tests/golden/data/tiny-sd1";
    struct shell s;
    struct image a = {0}, b = {0};
    char text[600];
    struct err err;
    shell_open(&s);
    setenv("WEFT_HOME", in(&s, "home"), 1);
    weft(&s, "add", LORA, NULL);
    weft(&s, "tag", "lora-kohya", "--rename", "mine", NULL);
    weft(&s, "show", "mine", "--json", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    json_t *j = json_loads(s.out, JSON_DISABLE_EOF_CHECK, NULL);
    snprintf(
        text, sizeof text,
        "a cat <lora:theirs:0.7>\nNegative prompt: bad\nSteps: 3, Sampler: DPM++ 2M Karras, CFG "
        "scale: 4, Seed: 9, Size: 64x64, Clip skip: 1, Hires upscale: 2, Lora hashes: "
        "\"theirs: %s\"",
        json_string_value(json_object_get(j, "autov3")));
    json_decref(j);
    picture(in(&s, "in.png"), text);
    weft(&s, "render", "--like", in(&s, "in.png"), "--model", model, "-o", in(&s, "a.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.err, "not followed: Hires upscale: 2"), "%s", s.err);
    weft(&s, "render", "a cat <lora:mine:0.7>", "-n", "bad", "--steps", "3", "--sampler",
         "dpmpp_2m", "--schedule", "karras", "--cfg", "4", "--seed", "9", "--size", "64x64",
         "--rng", "philox", "--model", model, "-o", in(&s, "b.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_assert_eq(image_read_png(in(&s, "a.png"), &a, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(image_read_png(in(&s, "b.png"), &b, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(a.w, b.w);
    cr_expect_arr_eq(a.rgb, b.rgb, (size_t)(3 * a.w * a.h));
    image_release(&a);
    image_release(&b);

    picture(in(&s, "in.png"), "a <lora:x:1> <lora:y:1>\nSteps: 3, Seed: 9, Size: 64x64");
    weft(&s, "render", "--like", in(&s, "in.png"), "--model", model, "-o", in(&s, "c.png"), NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "not in the repository: x, y"), "%s", s.err);
    picture(in(&s, "in.png"), "a\nSteps: 3, Seed: 9, Size: 64x64, Sampler: Restart");
    weft(&s, "render", "--like", in(&s, "in.png"), "--model", model, "-o", in(&s, "c.png"), NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "'Restart'"), "%s", s.err);
    shell_close(&s);
}
