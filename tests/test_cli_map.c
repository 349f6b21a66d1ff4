/* `weft map`: the picture, what is said of it, and what is refused. The layout and the names' places are
 * tested in test_layout.c and test_labels.c. */
#include "shared.h"
#include "shell.h"
#include "unet/image.h"

#include <jansson.h>

enum { SHIPPED = 51, DORA = 5 }; /* DORA: of these, kinds that need the model to be compared */

static void home(struct shell *s, const char *what)
{
    shell_open(s);
    setenv("WEFT_HOME", in(s, "home"), 1);
    weft(s, "add", what, NULL);
    cr_assert_eq(s->code, 0, "%s", s->err);
}

/* Stdout as a list, a line each. */
static json_t *lines(const struct shell *s)
{
    json_t *list = json_array();
    for (const char *p = s->out; *p;) {
        size_t n = strcspn(p, "\n");
        json_array_append_new(list, json_loadb(p, n, 0, NULL));
        p += n + (p[n] != 0);
    }
    return list;
}

static json_t *of(const json_t *list, const char *name, const char *key)
{
    size_t i;
    json_t *j;
    json_array_foreach(list, i, j) if (!strcmp(json_string_value(json_object_get(j, "name")),
                                               name)) return json_object_get(j, key);
    return NULL;
}

Test(cli_map, shows_all_that_ship)
{
    struct shell s;
    struct image im = {0};
    struct image_texts text = {0};
    struct err err;
    home(&s, "assets/adapters");
    weft(&s, "map", "-o", in(&s, "map.png"), "--size", "1400x1000", "--json", NULL);
    expect_success(&s, 1);
    json_t *list = lines(&s), *j;
    size_t i;
    cr_expect_eq(json_array_size(list), SHIPPED);
    json_array_foreach(list, i, j)
    {
        const char *name = json_string_value(json_object_get(j, "name"));
        double x = json_number_value(json_object_get(j, "x")),
               y = json_number_value(json_object_get(j, "y"));
        bool there = json_is_number(json_object_get(j, "x"));
        cr_expect_eq(there, i < SHIPPED - DORA, "%s", name);
        cr_expect(!there || (x > 0 && x < 1400 && y > 0 && y < 1000), "%s: %g %g", name, x, y);
        cr_expect_eq(json_is_true(json_object_get(j, "labelled")), there, "%s", name);
        cr_expect_str_eq(json_string_value(json_object_get(j, "base")), "unknown");
        cr_expect_eq(json_is_integer(json_object_get(j, "cluster")), there, "%s", name);
        cr_expect_eq(strlen(json_string_value(json_object_get(j, "id"))), 12);
    }
    cr_assert_eq(image_read_png(in(&s, "map.png"), &im, &text, &err), 0, "%s", err.msg);
    cr_expect(im.w == 1400 && im.h == 1000, "%d x %d", im.w, im.h);
    cr_expect_eq(text.n, 0);
    image_release(&im);
    image_texts_release(&text);
    json_decref(list);

    char *first = strdup(s.out); /* again, over itself, now from the sketches that were kept */
    weft(&s, "map", "-o", in(&s, "map.png"), "--size", "1400x1000", "--json", NULL);
    cr_expect_str_eq(s.out, first);
    weft(&s, "map", "-o", in(&s, "map.png"), NULL);
    expect_success(&s, 1);
    cr_expect(strstr(s.out, "46 adapters, 46 with their names"), "%s", s.out);
    free(first);
    shell_close(&s);
}

Test(cli_map, only_some_and_their_colours)
{
    struct shell s;
    home(&s, "assets/adapters");
    weft(&s, "tag", "neon", "+film", "--category", "style", NULL);
    weft(&s, "tag", "sepia", "+film", "--category", "style", NULL);
    weft(&s, "tag", "llama", "+film", NULL);
    weft(&s, "map", "-o", in(&s, "map.png"), "--where", "tag:film", "--json", NULL);
    expect_success(&s, 1);
    json_t *list = lines(&s);
    cr_expect_eq(json_array_size(list), 3, "%s", s.out);
    cr_expect_str_eq(json_string_value(of(list, "neon", "category")), "style");
    cr_expect(json_is_null(of(list, "llama", "category")));
    json_decref(list);
    weft(&s, "map", "-o", in(&s, "map.png"), "--colour", "cluster", "--where", "kind:lokr", NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    weft(&s, "map", "-o", in(&s, "map.png"), "--colour", "base", "--where", "category:style", NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "2 adapters, 2 with"), "%s", s.out);
    shell_close(&s);
}

/* One of a kind that needs its model is not on the map, and that is said. */
Test(cli_map, what_cannot_be_placed)
{
    struct shell s;
    home(&s, "tests/golden/data/deltas/oft.safetensors");
    weft(&s, "map", "-o", in(&s, "map.png"), NULL);
    expect_failure(&s, 1, "none of 1 adapters can be placed");
    weft(&s, "add", "tests/golden/data/deltas/locon.safetensors", NULL);
    weft(&s, "map", "-o", in(&s, "map.png"), NULL);
    expect_success(&s, 1);
    cr_expect(strstr(s.out, "1 adapters, 1 with"), "%s", s.out);
    cr_expect(strstr(s.err, "1 adapters could not be compared"), "%s", s.err);
    shell_close(&s);
}

Test(cli_map, errors)
{
    struct shell s;
    shell_open(&s);
    setenv("WEFT_HOME", in(&s, "home"), 1);
    weft(&s, "map", "-o", in(&s, "map.png"), NULL);
    expect_failure(&s, 1, "no repository there yet");
    cr_expect(!file_exists(in(&s, "home")), "none is made");
    weft(&s, "add", "assets/adapters/neon.safetensors", NULL);
    weft(&s, "map", "-o", in(&s, "map.png"), "--where", "tag:none", NULL);
    expect_failure(&s, 1, "no adapter is tag:none");
    weft(&s, "map", "-o", in(&s, "map.png"), "--where", "colour:red", NULL);
    expect_failure(&s, 2, "--where takes");
    weft(&s, "map", "-o", in(&s, "map.png"), "--colour", "red", NULL);
    expect_failure(&s, 2, "--colour takes category, base or cluster, not 'red'");
    weft(&s, "map", "-o", in(&s, "map.png"), "--size", "100x100", NULL);
    expect_failure(&s, 2, "too few");
    weft(&s, "map", "-o", in(&s, "no/map.png"), NULL);
    expect_failure(&s, 1, "no/map.png");
    weft(&s, "map", "neon", NULL);
    expect_failure(&s, 2, "'neon' is too much");
    weft(&s, "rm", "neon", NULL);
    weft(&s, "map", "-o", in(&s, "map.png"), NULL);
    expect_failure(&s, 1, "the repository is empty");
    shell_close(&s);
}
