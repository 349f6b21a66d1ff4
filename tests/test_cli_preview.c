/* weft preview, as a user meets it. */
#include "shell.h"
#include "small_lora.h"
#include "unet/image.h"

#include <jansson.h>
#include <sys/stat.h>

#define MODEL "tests/golden/data/tiny-sd1"

static void must(struct shell *s, const char *command)
{
    cr_assert_eq(system(command), 0, "%s (%s)", command, s->dir);
}

/* A home with `film`, which has a trigger, `bare`, and `other` of another base. */
static void fill(struct shell *s)
{
    char command[600];
    shell_open(s);
    setenv("WEFT_HOME", in(s, "home"), 1);
    mkdir(in(s, "in"), 0777);
    snprintf(command, sizeof command,
             "cp tests/golden/data/lora-kohya.safetensors '%s' && cp "
             "tests/golden/data/deltas/loha.safetensors '%s'",
             in(s, "in/film.safetensors"), in(s, "in/bare.safetensors"));
    must(s, command);
    small_lora(in(s, "in/other.safetensors"), &(struct small){.width = 768});
    weft(s, "add", in(s, "in"), NULL);
    weft(s, "tag", "film", "--trigger", "film grain", NULL);
    cr_assert_eq(s->code, 0, "%s", s->err);
}

/* What show says of NAME's preview; a new string or NULL. */
static char *preview_of(struct shell *s, const char *name)
{
    weft(s, "show", name, "--json", NULL);
    json_t *j = json_loads(s->out, 0, NULL);
    cr_assert(j, "%s%s", s->out, s->err);
    const char *path = json_string_value(json_object_get(j, "preview"));
    char *out = path ? strdup(path) : NULL;
    json_decref(j);
    return out;
}

static void same_pixels(const char *a, const char *b)
{
    struct image x = {0}, y = {0};
    struct err err;
    cr_assert_eq(image_read_png(a, &x, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(image_read_png(b, &y, NULL, &err), 0, "%s", err.msg);
    cr_assert(x.w == y.w && x.h == y.h);
    cr_expect_arr_eq(x.rgb, y.rgb, 3 * (size_t)x.w * (size_t)x.h);
    image_release(&x);
    image_release(&y);
}

/* The thumbnail is the picture that render makes of the same words and seed, and one with its trigger. */
Test(cli_preview, is_a_picture_of_render)
{
    struct shell s;
    fill(&s);
    weft(&s, "preview", "film", "-m", MODEL, "--steps", "2", "--prompt", "a tree", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    char *path = preview_of(&s, "film");
    cr_assert(path && !strncmp(path, in(&s, "home/previews/"), strlen(in(&s, "home/previews/"))));
    weft(&s, "render", "film grain, a tree", "-a", "film", "-m", MODEL, "--steps", "2", "--seed",
         "1", "-o", in(&s, "same.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    same_pixels(path, in(&s, "same.png"));
    weft(&s, "render", "--like", path, "-o", in(&s, "again.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    same_pixels(path, in(&s, "again.png"));
    free(path);
    shell_close(&s);
}

/* --missing makes what has none, passes over the rest with the reason, and goes on where it was. */
Test(cli_preview, missing_ones)
{
    struct shell s;
    struct image im = {.w = 4, .h = 4, .rgb = calloc(48, 1)};
    struct err err;
    fill(&s);
    weft(&s, "preview", "--missing", "-m", MODEL, "--steps", "1", NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "made     film") && strstr(s.out, "made     bare"), "%s", s.out);
    cr_expect(strstr(s.out, "refused  other: made for sd1 (texts of width 768), and this model "
                            "takes 16"),
              "%s", s.out);
    cr_expect(strstr(s.out, "2 made, 1 refused"), "%s", s.out);

    weft(&s, "preview", "--missing", "-m", MODEL, "--json", NULL);
    json_t *j = json_loads(s.out, 0, NULL);
    cr_assert(s.code == 0 && j, "%s%s", s.out, s.err);
    cr_expect_str_eq(json_string_value(json_object_get(j, "name")), "other");
    cr_expect_str_eq(json_string_value(json_object_get(j, "status")), "refused");
    json_decref(j);

    weft(&s, "catalog", "-o", in(&s, "page"), NULL);
    cr_expect(strstr(s.out, "3 adapters, 2 pictures"), "%s", s.out);

    /* where a picture lies beside the file, removing ours brings that one back, untouched */
    cr_assert_eq(image_write_png(in(&s, "in/film.preview.png"), &im, NULL, 0, &err), 0);
    must(&s, "touch $WEFT_HOME/../in/film.safetensors");
    weft(&s, "sync", NULL);
    char *ours = preview_of(&s, "film");
    weft(&s, "preview", "film", "bare", "--remove", NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    char *theirs = preview_of(&s, "film"), *none = preview_of(&s, "bare");
    cr_expect(ours && strstr(ours, "/home/previews/"), "%s", ours);
    cr_expect_str_eq(theirs, in(&s, "in/film.preview.png"));
    cr_expect_null(none);
    struct image left = {0};
    cr_assert_eq(image_read_png(theirs, &left, NULL, &err), 0, "%s", err.msg);
    cr_expect(left.w == 4 && left.h == 4);
    image_release(&left);
    image_release(&im);
    free(ours);
    free(theirs);
    shell_close(&s);
}

/* Once its adapter is forgotten gc takes the picture away. */
Test(cli_preview, gc)
{
    struct shell s;
    fill(&s);
    weft(&s, "preview", "film", "bare", "-m", MODEL, "--steps", "1", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    weft(&s, "gc", NULL);
    cr_expect(!strncmp(s.out, "0 files", 7), "%s", s.out);
    weft(&s, "rm", "film", NULL);
    weft(&s, "gc", NULL);
    cr_expect(!strncmp(s.out, "1 files", 7), "%s", s.out);
    char *path = preview_of(&s, "bare");
    cr_expect(path && file_exists(path));
    free(path);
    shell_close(&s);
}

Test(cli_preview, refuses)
{
    struct shell s;
    fill(&s);
    weft(&s, "preview", NULL);
    expect_failure(&s, 2, "which? NAME, or --missing");
    weft(&s, "preview", "film", "--missing", NULL);
    expect_failure(&s, 2, "not both");
    weft(&s, "preview", "nobody", NULL);
    expect_failure(&s, 1, "nobody");
    weft(&s, "preview", "other", "-m", MODEL, NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "none of 1 could be made"), "%s", s.err);
    weft(&s, "preview", "film", "-m", in(&s, "no-model"), NULL);
    expect_failure(&s, 1, "no-model");
    shell_close(&s);
}

/* ---- weft profile ---------------------------------------------------------------------------- */

/* Numbers a step and at four cuts, a plot, and what cmlora then orders by: kept, so that another order makes
 * another picture. */
Test(cli_profile, is_measured_and_kept)
{
    struct shell s;
    struct image im = {0};
    struct err err;
    fill(&s);
    weft(&s, "profile", "film", "bare", "--model", MODEL, "--steps", "6", "--json", "-o",
         in(&s, "p.png"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    json_t *j = json_loads(s.out, JSON_DISABLE_EOF_CHECK, NULL);
    json_t *curves = json_object_get(j, "curves");
    cr_assert_eq(json_array_size(curves), 4, "%s", s.out);
    json_t *curve = json_object_get(json_array_get(curves, 1), "high");
    cr_expect_eq(json_array_size(curve), 7, "six steps and the end");
    double high = json_real_value(json_object_get(j, "high"));
    cr_expect(high > 0 && high < 1);
    cr_expect_eq(high, json_real_value(json_array_get(curve, 6)));
    json_decref(j);
    cr_assert_eq(image_read_png(in(&s, "p.png"), &im, NULL, &err), 0, "%s", err.msg);
    cr_expect_gt(im.w, 600);
    image_release(&im);

    for (int i = 0; i < 2; i++) {
        weft(&s, "render", "x", "--model", MODEL, "-a", "film", "-a", "bare", "--steps", "6",
             "--seed", "1", "--compose", i ? "cmlora:order=reverse" : "cmlora", "-o",
             in(&s, i ? "b.png" : "a.png"), NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
    }
    struct image a = {0}, b = {0};
    cr_assert_eq(image_read_png(in(&s, "a.png"), &a, NULL, &err), 0);
    cr_assert_eq(image_read_png(in(&s, "b.png"), &b, NULL, &err), 0);
    cr_expect(memcmp(a.rgb, b.rgb, 3 * (size_t)a.w * (size_t)a.h), "the order is the same");
    image_release(&a);
    image_release(&b);

    weft(&s, "profile", "other", "--model", MODEL, NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "texts of width 768"), "%s", s.err);
    weft(&s, "profile", NULL);
    cr_expect_eq(s.code, 2);
    shell_close(&s);
}

/* ---- weft clash ------------------------------------------------------------------------------ */

static double number(const json_t *j, const char *key)
{
    return json_number_value(json_object_get(j, key));
}

/* One adapter twice acts at the same places in the same direction and has the same weights: whatever the words,
 * the risk is the highest there is. Two others differ in all of it. */
Test(cli_clash, of_an_adapter_with_itself_and_with_another)
{
    struct shell s;
    fill(&s);
    weft(&s, "clash", "film", "film", "bare", "an owl", "--model", MODEL, "--json", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    json_t *j = json_loads(s.out, 0, NULL), *pairs = json_object_get(j, "pairs");
    cr_expect_str_eq(json_string_value(json_object_get(j, "prompt")), "an owl");
    cr_assert_eq(json_array_size(pairs), 3, "%s", s.out);
    json_t *self = json_array_get(pairs, 0), *other = json_array_get(pairs, 1);
    cr_expect_float_eq(number(self, "place"), 1, 1e-4);
    cr_expect_float_eq(number(self, "direction"), 1, 1e-4);
    cr_expect_float_eq(number(self, "weights"), 1, 1e-4);
    cr_expect_float_eq(number(self, "risk"), 1, 1e-4);
    cr_expect_lt(number(other, "direction"), .9);
    cr_expect_lt(number(other, "weights"), .9);
    cr_expect_gt(number(other, "place"), 0);
    cr_expect_eq(number(j, "risk"), number(self, "risk"));
    cr_expect_str_eq(json_string_value(json_object_get(j, "compose")), "superpose:uncond=base");
    json_t *film = json_array_get(json_object_get(j, "adapters"), 0);
    cr_expect_geq(number(film, "from"), 1);
    cr_expect_leq(number(film, "to"), 30);
    cr_expect_geq(number(film, "to") - number(film, "from"), 30 * .5, "it acts in all steps");
    json_decref(j);
    weft(&s, "clash", "film", "bare", "--model", MODEL, NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "try: weft render \""), "%s", s.out);
    weft(&s, "clash", "film", "--model", MODEL, NULL);
    cr_expect_eq(s.code, 2);
    weft(&s, "clash", "film", "nobody", "--model", MODEL, NULL);
    cr_expect_eq(s.code, 1);
    shell_close(&s);
}
