/* What computes with weights, by the real program: resize, combine, similar, dupes, export --style, show's
 * norms. The numbers behind them are tested in test_matrix.c and test_adapter_write.c. */
#include "shared.h"
#include "shell.h"
#include "unet/file.h"

#include <jansson.h>
#include <math.h>

#define DATA "tests/golden/data/deltas/"

static void home(struct shell *s)
{
    shell_open(s);
    setenv("WEFT_HOME", in(s, "home"), 1);
    weft(s, "add", DATA "locon.safetensors", DATA "peft-lora", DATA "loha.safetensors",
         DATA "oft.safetensors", "--json", NULL);
    cr_assert_eq(s->code, 0, "%s", s->err);
}

/* The first line of stdout with that text in it, as JSON. */
static json_t *object(const struct shell *s, const char *with)
{
    for (const char *p = s->out; p && *p;) {
        size_t n = strcspn(p, "\n");
        if (memmem(p, n, with, strlen(with)))
            return json_loadb(p, n, 0, NULL);
        p += n + (p[n] != 0);
    }
    return NULL;
}

static double number(const json_t *j, const char *key)
{
    const json_t *v = json_object_get(j, key);
    cr_assert(json_is_number(v), "no '%s'", key);
    return json_number_value(v);
}

Test(cli_pick, resize_and_what_dupes_says_of_it)
{
    struct shell s;
    home(&s);
    weft(&s, "resize", "locon", "--rank", "2", "-o", in(&s, "small.safetensors"), "--json", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    json_t *j = object(&s, "kept");
    double kept = number(j, "kept");
    cr_expect(kept > 0.5 && kept < 0.95, "%g", kept);
    cr_expect_eq(json_integer_value(json_array_get(json_object_get(j, "rank"), 1)), 2);
    json_decref(j);
    weft(&s, "add", in(&s, "small.safetensors"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    for (int again = 0; again < 2; again++) { /* the second time from the sketches */
        weft(&s, "dupes", "--json", NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        j = object(&s, "small");
        cr_assert(j, "%s", s.out);
        cr_expect_str_eq(json_string_value(json_object_get(j, "why")),
                         "one resized from the other");
        cr_expect_float_eq(number(j, "score"), sqrt(kept), 1e-4);
        json_decref(j);
    }
    shell_close(&s);
}

Test(cli_pick, combine_is_exact_and_similar_finds_it)
{
    struct shell s;
    home(&s);
    weft(&s, "combine", "locon:0.7", "peft-lora:-1.5", "-o", in(&s, "sum.safetensors"), "--json",
         NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    json_t *j = object(&s, "kept");
    cr_expect_eq(number(j, "rank"), 8);
    json_decref(j);
    weft(&s, "combine", in(&s, "sum.safetensors"), "peft-lora:1.5", "-o",
         in(&s, "back.safetensors"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    weft(&s, "add", in(&s, "back.safetensors"), NULL);
    weft(&s, "similar", "back", "--json", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    j = object(&s, "\"locon\"");
    cr_assert(j, "%s", s.out);
    cr_expect_float_eq(number(j, "score"), 1, 1e-6);
    json_decref(j);
    weft(&s, "similar", "oft", NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "cannot be compared"), "%s", s.err);
    weft(&s, "combine", "locon", "oft", "-o", in(&s, "no.safetensors"), NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "oft: holds 5 parts of kind OFT"), "%s", s.err);
    cr_expect(!file_exists(in(&s, "no.safetensors")));
    shell_close(&s);
}

Test(cli_pick, export_in_another_style)
{
    struct shell s;
    home(&s);
    weft(&s, "export", "locon", "--style", "diffusers", "-o", in(&s, "d.safetensors"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    weft(&s, "add", in(&s, "d.safetensors"), NULL);
    weft(&s, "similar", "d", "--json", NULL);
    json_t *j = object(&s, "\"locon\"");
    cr_assert(j, "%s %s", s.out, s.err);
    cr_expect_float_eq(number(j, "score"), 1, 1e-9);
    json_decref(j);
    weft(&s, "export", "loha", "--style", "kohya", "-o", in(&s, "k.safetensors"), NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "LoHa cannot be written in kohya's style"), "%s", s.err);
    cr_expect(!file_exists(in(&s, "k.safetensors")));
    shell_close(&s);
}

Test(cli_pick, show_says_how_much_is_changed_where)
{
    struct shell s;
    home(&s);
    weft(&s, "show", "locon", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "unet.mid_block") && strstr(s.out, "▪▪▪"), "%s", s.out);
    weft(&s, "show", "locon", "--json", NULL);
    json_t *j = object(&s, "norm");
    cr_expect_gt(number(j, "norm"), 0.1);
    json_decref(j);
    weft(&s, "show", "oft", "--json", NULL);
    j = object(&s, "norm");
    cr_expect(json_is_null(json_object_get(j, "norm")));
    json_decref(j);
    shell_close(&s);
}
