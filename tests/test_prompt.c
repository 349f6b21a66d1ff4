#include "unet/prompt.h"
#include "unet/text.h"

#include "tests/shared.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* The expectations in this file are what A1111's own functions give for these texts. */

/* A text of n times s. */
static char *repeat(const char *s, size_t n)
{
    size_t len = strlen(s);
    char *p = malloc(n * len + 1);
    for (size_t i = 0; i < n; i++)
        memcpy(p + i * len, s, len);
    p[n * len] = 0;
    return p;
}

static json_t *vectors(const char *name)
{
    char path[PATH_MAX];
    shared_path(path, sizeof path, "vectors/a1111_prompt_vectors.json");
    json_t *file = json_load_file(path, 0, NULL), *list = json_object_get(file, name);
    cr_assert(json_array_size(list) > 0, "%s", name);
    json_incref(list);
    json_decref(file);
    return list;
}

/* ---- weights -------------------------------------------------------------------------------- */

#define BREAK                                                                                      \
    {                                                                                              \
        "BREAK", -1                                                                                \
    }

struct want_span {
    const char *text;
    double weight;
};

static const struct {
    const char *text;
    struct want_span span[6];
} weights[] = {
    {"", {{"", 1}}},
    {"()", {{"", 1}}},
    {"normal text", {{"normal text", 1}}},
    {"an (important) word", {{"an ", 1}, {"important", 1.1}, {" word", 1}}},
    {"(a:1.2)", {{"a", 1.2}}},
    {"(a:-1)", {{"a", -1}}},
    {"(a:.5)", {{"a", .5}}},
    {"(a: 1.3 )", {{"a", 1.3}}},
    {"(a :+2)x", {{"a ", 2}, {"x", 1}}},
    {"(a:)", {{"a:", 1.1}}},
    {"(a:b:1.5)", {{"a:b", 1.5}}},
    {"[a]", {{"a", 1 / 1.1}}},
    {"[[a]]", {{"a", 1 / 1.1 * (1 / 1.1)}}},
    {"[a:1.2]", {{"a:1.2", 1 / 1.1}}},
    {"((a:0) b)", {{"a", 0}, {" b", 1.1}}},
    {"(unnecessary)(parens)", {{"unnecessaryparens", 1.1}}},
    {"\\(literal\\]", {{"(literal]", 1}}},
    {"\\\\", {{"\\", 1}}},
    {"a\\b", {{"ab", 1}}},
    {"a\\", {{"a", 1}}},
    {"\\(\\)\\[\\]", {{"()[]", 1}}},
    {"(a)b)c", {{"a", 1.1}, {"b)c", 1}}},
    {"a]b[c", {{"a]b", 1}, {"c", 1 / 1.1}}},
    {"(a(b[c", {{"a", 1.1}, {"b", 1.1 * 1.1}, {"c", 1.1 * 1.1 * (1 / 1.1)}}},
    {"a:1.2)", {{"a:1.2)", 1}}},
    {"a:b", {{"a:b", 1}}},
    {"BREAK", {{"", 1}, BREAK, {"", 1}}},
    {"a BREAK b", {{"a", 1}, BREAK, {"b", 1}}},
    {"a\n BREAK  BREAK\tb", {{"a", 1}, BREAK, {"", 1}, BREAK, {"b", 1}}},
    {"aBREAK BREAKb _BREAK", {{"aBREAK BREAKb _BREAK", 1}}},
    {"a,BREAK,b", {{"a,", 1}, BREAK, {",b", 1}}},
    {"(a:1.2)BREAK(b:1.2)", {{"a", 1.2}, {"", 1}, BREAK, {"", 1}, {"b", 1.2}}},
    {"\xe3\x80\x80"
     "BREAK"
     "\xc2\xa0x",
     {{"", 1}, BREAK, {"x", 1}}},
    {"\xe7\x8c\xab"
     "BREAK",
     {{"\xe7\x8c\xab"
       "BREAK",
       1}}},
    /* A1111's own oddities. */
    {"(a BREAK b)", {{"a", 1.1}, {"BREAK", -1.1}, {"b", 1.1}}},
    {"(BREAK:-1)", {{"", -1}, {"BREAK", 1}, {"", -1}}},
};

Test(prompt, weights)
{
    struct prompt_spans s;
    struct err err;

    for (size_t i = 0; i < sizeof weights / sizeof *weights; i++) {
        const struct want_span *want = weights[i].span;
        const char *text = weights[i].text;
        size_t n = 0;
        cr_assert_eq(prompt_spans_parse(&s, text, &err), 0, "%s: %s", text, err.msg);
        while (n < 6 && want[n].text)
            n++;
        cr_expect_eq(s.n, n, "\"%s\": %zu spans, not %zu", text, s.n, n);
        for (size_t j = 0; j < n && j < s.n; j++) {
            cr_expect_str_eq(s.span[j].text, want[j].text, "\"%s\"", text);
            cr_expect_eq(s.span[j].weight, want[j].weight, "\"%s\": %.17g", text, s.span[j].weight);
            cr_expect_eq(s.span[j].is_break, want[j].weight == -1 && !strcmp(want[j].text, "BREAK"),
                         "\"%s\"", text);
        }
        prompt_spans_release(&s);
    }
}

Test(prompt, weights_public_vectors)
{
    json_t *list = vectors("attention"), *c;
    struct prompt_spans s;
    struct err err;
    size_t i;

    json_array_foreach(list, i, c)
    {
        const char *text = json_string_value(json_object_get(c, "in"));
        json_t *want = json_object_get(c, "out");
        cr_assert_eq(prompt_spans_parse(&s, text, &err), 0, "%s: %s", text, err.msg);
        cr_assert_eq(s.n, json_array_size(want), "%s", text);
        for (size_t j = 0; j < s.n; j++) {
            json_t *pair = json_array_get(want, j);
            cr_expect_str_eq(s.span[j].text, json_string_value(json_array_get(pair, 0)));
            cr_expect_eq(s.span[j].weight, json_number_value(json_array_get(pair, 1)), "%s", text);
        }
        prompt_spans_release(&s);
    }
    json_decref(list);
}

Test(prompt, weights_refused)
{
    static const char *const bad[] = {"(a:1.2.3)", "(a:.)", "(a:..)", "(a:\xef\xbc\x91)", "a\xff"};
    struct prompt_spans s;
    struct err err;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_expect_eq(prompt_spans_parse(&s, bad[i], &err), ERR_ARG, "%s", bad[i]);
        cr_expect(s.n == 0 && !s.span, "%s", bad[i]);
    }
    char *digits = repeat("9", 400), *deep = repeat("(", 101), *squares = repeat("[", 101), *big;
    cr_expect(asprintf(&big, "(a:%s)", digits) > 0);
    cr_expect_eq(prompt_spans_parse(&s, big, &err), ERR_ARG);
    free(big);
    /* A product too large for a float, and one that would be infinity times nothing. */
    cr_expect(asprintf(&big, "((a:%.38s):%.38s)", digits, digits) > 0);
    cr_expect_eq(prompt_spans_parse(&s, big, &err), ERR_ARG);
    cr_expect(strstr(err.msg, "too large"), "%s", err.msg);
    free(big);
    cr_expect(asprintf(&big, "(((a:%.300s):%.300s):0)", digits, digits) > 0);
    cr_expect_eq(prompt_spans_parse(&s, big, &err), ERR_ARG);
    cr_expect_eq(prompt_spans_parse(&s, deep, &err), ERR_ARG);
    cr_expect(strstr(err.msg, "deep"), "%s", err.msg);
    cr_expect_eq(prompt_spans_parse(&s, squares, &err), ERR_ARG);
    deep[100] = 0;
    cr_expect_eq(prompt_spans_parse(&s, deep, &err), 0);
    prompt_spans_release(&s);
    free(big);
    free(deep);
    free(squares);
    free(digits);
}

/* ---- schedules ------------------------------------------------------------------------------ */

struct want_stage {
    int until;
    const char *text;
};

static const struct {
    const char *text;
    int steps;
    struct want_stage stage[5];
} schedules[] = {
    {"", 7, {{7, ""}}},
    {"[a:3]", 10, {{3, ""}, {10, "a"}}},
    {"[a::3]", 10, {{3, "a"}, {10, ""}}},
    {"[a:b:3]", 10, {{3, "a"}, {10, "b"}}},
    {"[a:b: 3 ]", 10, {{3, "a"}, {10, "b"}}},
    {"[a:3:5]", 10, {{5, "a"}, {10, "3"}}},
    {"[:3]", 10, {{3, ""}, {10, ""}}},
    {"[::3]", 10, {{3, ""}, {10, ""}}},
    {"[a|b|c]", 4, {{1, "a"}, {2, "b"}, {3, "c"}, {4, "a"}}},
    {"[fe|]male", 3, {{1, "female"}, {2, "male"}, {3, "female"}}},
    {"[|a]x", 2, {{1, "x"}, {2, "ax"}}},
    {"[a:b:0.5] [c:.25]", 20, {{5, "a "}, {10, "a c"}, {20, "b c"}}},
    {"[a:3][b:5]", 10, {{3, ""}, {5, "a"}, {10, "ab"}}},
    /* A point makes a fraction; the step is cut, never rounded, and stays within the steps. */
    {"[a:1.0]", 10, {{10, ""}}},
    {"[a:1.5]", 10, {{10, ""}}},
    {"[a:99]", 10, {{10, ""}}},
    {"[a:0]", 10, {{10, "a"}}},
    {"[a:-1]", 10, {{10, "a"}}},
    {"[a:b:1e0]", 10, {{1, "a"}, {10, "b"}}},
    {"[a:0.29]", 100, {{28, ""}, {100, "a"}}},
    {"[a:1e999]", 10, {{10, ""}}},
    /* Inside each other. */
    {"[[a:3]|b]", 4, {{1, ""}, {2, "b"}, {3, ""}, {4, "b"}}},
    {"[a:[b|c]:2]", 4, {{1, "a"}, {2, "a"}, {3, "b"}, {4, "c"}}},
    {"[[[a:1]:2]:3]", 10, {{1, ""}, {2, ""}, {3, ""}, {10, "a"}}},
    {"([a:3])", 10, {{3, "()"}, {10, "(a)"}}},
    {"(x [a:3] y:1.2)", 10, {{3, "(x  y:1.2)"}, {10, "(x a y:1.2)"}}},
    {"[(a:b):3]", 10, {{3, ""}, {10, "(a:b)"}}},
    /* What is not a schedule is text. */
    {"[a]", 10, {{10, "[a]"}}},
    {"[a:b]", 10, {{10, "[a:b]"}}},
    {"[a:b:c:3]", 10, {{10, "[a:b:c:3]"}}},
    {"[a:3", 10, {{10, "[a:3"}}},
    {"a:3]", 10, {{10, "a:3]"}}},
    {"[a:.]", 10, {{10, "[a:.]"}}},
    {"[a:3 4]", 10, {{10, "[a:3 4]"}}},
    {"[(a:b:c):3]", 10, {{10, "[(a:b:c):3]"}}},
    {"[x (a [b:3] c", 10, {{3, "[x (a  c"}, {10, "[x (a b c"}}},
    {"[a\\|b|c]", 2, {{1, "a\\|b"}, {2, "c"}}},
    {"[a\\:b:3]", 10, {{3, ""}, {10, "a\\:b"}}},
    /* A bar or a backslash that does not fit takes the other schedules with it. */
    {"a|b", 3, {{3, "a|b"}}},
    {"(a|b)", 3, {{3, "(a|b)"}}},
    {"[a|b:3]", 3, {{3, "[a|b:3]"}}},
    {"[c:1] a|b", 3, {{3, "[c:1] a|b"}}},
    {"[c:1] [a|b", 3, {{3, "[c:1] [a|b"}}},
    {"[c:1]\\", 3, {{3, "[c:1]\\"}}},
    {"[c:1]\\\n", 3, {{3, "[c:1]\\\n"}}},
};

Test(prompt, schedules)
{
    struct prompt_stages s;
    struct err err;

    for (size_t i = 0; i < sizeof schedules / sizeof *schedules; i++) {
        const struct want_stage *want = schedules[i].stage;
        const char *text = schedules[i].text;
        size_t n = 0;
        cr_assert_eq(prompt_stages_parse(&s, text, schedules[i].steps, &err), 0, "%s: %s", text,
                     err.msg);
        while (n < 5 && want[n].until)
            n++;
        cr_expect_eq(s.n, n, "\"%s\": %zu stages, not %zu", text, s.n, n);
        for (size_t j = 0; j < n && j < s.n; j++) {
            cr_expect_eq(s.stage[j].until, want[j].until, "\"%s\": %d", text, s.stage[j].until);
            cr_expect_str_eq(s.stage[j].text, want[j].text, "\"%s\"", text);
        }
        prompt_stages_release(&s);
    }
}

Test(prompt, schedules_public_vectors)
{
    json_t *list = vectors("schedule_10_steps"), *c;
    struct prompt_stages s;
    struct err err;
    size_t i;

    json_array_foreach(list, i, c)
    {
        const char *text = json_string_value(json_object_get(c, "in"));
        json_t *want = json_object_get(c, "out");
        cr_assert_eq(prompt_stages_parse(&s, text, 10, &err), 0, "%s: %s", text, err.msg);
        cr_assert_eq(s.n, json_array_size(want), "%s", text);
        for (size_t j = 0; j < s.n; j++) {
            json_t *pair = json_array_get(want, j);
            cr_expect_eq(s.stage[j].until, json_integer_value(json_array_get(pair, 0)));
            cr_expect_str_eq(s.stage[j].text, json_string_value(json_array_get(pair, 1)));
        }
        prompt_stages_release(&s);
    }
    json_decref(list);
}

Test(prompt, schedules_refused)
{
    char *deep = repeat("[", 101), *wide = repeat("[a:1][b|c]", 100000);
    struct prompt_stages s;
    struct err err;

    cr_expect_eq(prompt_stages_parse(&s, "a", 0, &err), ERR_ARG);
    cr_expect_eq(prompt_stages_parse(&s, "a", 10001, &err), ERR_ARG);
    cr_expect_eq(prompt_stages_parse(&s, "\x80", 10, &err), ERR_ARG);
    cr_expect_eq(prompt_stages_parse(&s, deep, 10, &err), ERR_ARG);
    cr_expect(strstr(err.msg, "deep"), "%s", err.msg);
    cr_expect_eq(prompt_stages_parse(&s, wide, 1000, &err), ERR_ARG);
    cr_expect(strstr(err.msg, "too many"), "%s", err.msg);
    cr_expect(s.n == 0 && !s.stage);
    /* As deep as it may be, and as many as there are. */
    char *open = repeat("[", 100), *close = repeat(":1]", 100), *text;
    cr_expect(asprintf(&text, "%sx%s", open, close) > 0);
    cr_expect_eq(prompt_stages_parse(&s, text, 2, &err), 0, "%s", err.msg);
    cr_expect_eq(s.n, 2);
    cr_expect_str_eq(s.stage[0].text, "");
    cr_expect_str_eq(s.stage[1].text, "x");
    prompt_stages_release(&s);
    cr_expect_eq(prompt_stages_parse(&s, wide, 4, &err), 0, "%s", err.msg);
    cr_expect_eq(s.n, 4);
    cr_expect_eq(strlen(s.stage[0].text), 100000);
    cr_expect_eq(strlen(s.stage[1].text), 200000);
    prompt_stages_release(&s);
    free(text);
    free(open);
    free(close);
    free(deep);
    free(wide);
}

/* ---- parts and adapters --------------------------------------------------------------------- */

static const struct {
    const char *text;
    struct want_span part[3];
} parts[] = {
    {"a", {{"a", 1}}},
    {"a AND b", {{"a", 1}, {" b", 1}}},
    {"a AND b :0.5", {{"a", 1}, {" b", .5}}},
    {"a:1.2", {{"a", 1.2}}},
    {"AND", {{"", 1}, {"", 1}}},
    {"a and b", {{"a and b", 1}}},
    {"aAND b ANDc AND_", {{"aAND b ANDc AND_", 1}}},
    {"(a AND b:2)", {{"(a", 1}, {" b:2)", 1}}},
    {"a:1:2 AND b:-.5", {{"a:1", 2}, {" b", -.5}}},
    {"a: 1. \n", {{"a", 1}}},
    {"a:.", {{"a:.", 1}}},
    {"a:1.5.2", {{"a:1.5.2", 1}}},
    {"a : +3 AND", {{"a", 3}, {"", 1}}},
    {"x:1e3", {{"x:1e3", 1}}},
    {"a\nb:2", {{"a\nb", 2}}},
    {":2", {{"", 2}}},
    {"7", {{"7", 1}}},
};

Test(prompt, parts)
{
    struct prompt p;
    struct err err;

    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
        const char *text = parts[i].text;
        size_t n = 0;
        cr_assert_eq(prompt_read(&p, text, &err), 0, "%s: %s", text, err.msg);
        while (n < 3 && parts[i].part[n].text)
            n++;
        cr_expect_eq(p.n_part, n, "\"%s\"", text);
        for (size_t j = 0; j < n && j < p.n_part; j++) {
            cr_expect_str_eq(p.part[j].text, parts[i].part[j].text, "\"%s\"", text);
            cr_expect_eq(p.part[j].weight, parts[i].part[j].weight, "\"%s\"", text);
        }
        cr_expect_eq(p.n_adapter, 0);
        prompt_release(&p);
    }
}

static const struct {
    const char *text, *rest, *name;
    double te, unet;
} adapters[] = {
    {"a <lora:x> b", "a  b", "x", 1, 1},
    {"<lora:x:0.8>a", "a", "x", .8, .8},
    {"<lora:x:.5:-1>", "", "x", .5, -1},
    {"<lora:x: 0.8 :1e-1>", "", "x", .8, .1},
    {"<lora:x:te=0.5>", "", "x", .5, .5},
    {"<lora:x:unet=0.5>", "", "x", 1, .5},
    {"<lora:x:0.2:unet=0.5>", "", "x", .2, .5},
    {"<lora:x:0.2:0.3:te=0.5>", "", "x", .5, .3},
    {"<lora:x:te=1:te=2>", "", "x", 2, 2},
    {"<lyco:x:2>", "", "x", 2, 2},
    {"<locon:x:2>", "", "x", 2, 2},
    {"<lora:a:b c:0.5>", "", "a:b c", .5, .5},
    {"<lora:C:/x>", "", "C:/x", 1, 1},
    {"<lora:v=2:0.5>", "", "v=2", .5, .5},
    {"<lora:7:0.5>", "", "7", .5, .5},
    {"<lora:a<b:0.5>", "", "a<b", .5, .5},
    {"<<lora:x>>", "<>", "x", 1, 1},
    {"[<lora:x:1>:0.5]", "[:0.5]", "x", 1, 1},
    {"<lora:\xe7\x8c\xab:2>", "", "\xe7\x8c\xab", 2, 2},
};

Test(prompt, adapters)
{
    struct prompt p;
    struct err err;

    for (size_t i = 0; i < sizeof adapters / sizeof *adapters; i++) {
        const char *text = adapters[i].text;
        cr_assert_eq(prompt_read(&p, text, &err), 0, "%s: %s", text, err.msg);
        cr_assert_eq(p.n_adapter, 1, "%s", text);
        cr_expect_str_eq(p.adapter[0].name, adapters[i].name, "%s", text);
        cr_expect_eq(p.adapter[0].te, adapters[i].te, "%s", text);
        cr_expect_eq(p.adapter[0].unet, adapters[i].unet, "%s", text);
        cr_expect_str_eq(p.part[0].text, adapters[i].rest, "%s", text);
        prompt_release(&p);
    }
    cr_assert_eq(prompt_read(&p, "a<lora:x:2> AND <lyco:y>b<lora:x>:3", &err), 0, "%s", err.msg);
    cr_assert_eq(p.n_adapter, 3);
    cr_expect_str_eq(p.adapter[1].name, "y");
    cr_expect_str_eq(p.adapter[2].name, "x");
    cr_assert_eq(p.n_part, 2);
    cr_expect_str_eq(p.part[1].text, " b");
    cr_expect_eq(p.part[1].weight, 3);
    prompt_release(&p);
}

Test(prompt, signs_that_are_no_tags_stay)
{
    static const char *const texts[] = {"I <3 you", "<sks> dog", "a < b > c", "<:x>",
                                        "<a b:c>",  "<smile:",   "<x:>",      "<",
                                        "<<>>",     "<lora>",    "a <-> b:c>"};
    struct prompt p;
    struct err err;

    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        cr_assert_eq(prompt_read(&p, texts[i], &err), 0, "%s: %s", texts[i], err.msg);
        cr_expect_str_eq(p.part[0].text, texts[i]);
        cr_expect_eq(p.n_adapter, 0);
        prompt_release(&p);
    }
}

Test(prompt, tags_refused)
{
    static const struct {
        const char *text, *why;
        int code;
    } bad[] = {
        {"a <hypernet:x:1>", "prompt: <hypernet:…> is not something weft does", ERR_UNSUPPORTED},
        {"<Lora:x>", "<Lora:…> is not something weft does", ERR_UNSUPPORTED},
        {"<lora:x:1:1:4>", "third number", ERR_UNSUPPORTED},
        {"<lora:x:dyn=4>", "dyn= is not something weft does", ERR_UNSUPPORTED},
        {"<lora:x:1:lbw=IN>", "lbw= is not something weft does", ERR_UNSUPPORTED},
        {"<lora:x:te=high>", "te=high is not a strength", ERR_ARG},
        {"<lora:x:1e999>", "too large", ERR_ARG},
        {"<lora:x:te=>", "te= is not a strength", ERR_ARG},
        {"<lora:x:>", "a strength is missing", ERR_ARG},
        {"<lora:x::1>", "a strength is missing", ERR_ARG},
        {"<lora:>", "names no adapter", ERR_ARG},
        {"<lora::1>", "names no adapter", ERR_ARG},
        {"a <lora:x:1", "no > at its end", ERR_ARG},
        {"> <lora:x:1", "no > at its end", ERR_ARG},
        {"a:\xd9\xa1", "is not a weight", ERR_ARG},
        {"\xff", "not UTF-8", ERR_ARG},
    };
    struct prompt p;
    struct err err;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_expect_eq(prompt_read(&p, bad[i].text, &err), bad[i].code, "%s", bad[i].text);
        cr_expect(strstr(err.msg, bad[i].why), "%s: %s", bad[i].text, err.msg);
        cr_expect(p.n_part == 0 && !p.part && !p.adapter);
    }
}

Test(prompt, limits_of_parts)
{
    struct prompt p;
    struct err err;
    char *many = repeat("AND ", 256), *tags = repeat("<lora:x>", 1025);
    char *big = repeat("a", TEXT_MAX + 1), *digits = repeat("9", 400), *text;

    cr_expect_eq(prompt_read(&p, many, &err), ERR_ARG);
    cr_expect_eq(prompt_read(&p, many + 4, &err), 0);
    cr_expect_eq(p.n_part, 256);
    prompt_release(&p);
    cr_expect_eq(prompt_read(&p, tags, &err), ERR_ARG);
    cr_expect_eq(prompt_read(&p, tags + 8, &err), 0);
    cr_expect_eq(p.n_adapter, 1024);
    prompt_release(&p);
    cr_expect_eq(prompt_read(&p, big, &err), ERR_ARG);
    cr_expect_eq(prompt_read(&p, big + 1, &err), 0);
    prompt_release(&p);
    cr_expect(asprintf(&text, "a:%s", digits) > 0);
    cr_expect_eq(prompt_read(&p, text, &err), ERR_ARG);
    /* A "<" and a word that never end: looking for a ">" again and again would take for ever. */
    char *open = repeat("<a:", TEXT_MAX / 3);
    cr_expect_eq(prompt_read(&p, open, &err), 0);
    prompt_release(&p);
    free(open);
    free(text);
    free(digits);
    free(big);
    free(tags);
    free(many);
}
