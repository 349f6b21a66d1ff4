/* What a prompt asks for. */
#include "retrieve/concepts.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void expect(const char *prompt, const char *want)
{
    struct concept c[CONCEPTS_MOST];
    char got[2000] = "";
    int n = concepts_split(prompt, c);
    for (int i = 0; i < n; i++) {
        cr_expect(!strncmp(prompt + c[i].at, c[i].text, c[i].n) && !c[i].text[c[i].n], "%s",
                  prompt);
        snprintf(got + strlen(got), sizeof got - strlen(got), "%s%s", i ? "|" : "", c[i].text);
    }
    cr_expect_str_eq(got, want, "%s: %s", prompt, got);
}

Test(concepts, phrases)
{
    expect("a kite", "kite");
    expect("a kite on the left and a red lantern on the right", "kite|red lantern");
    expect("A Church above the two small Houses, neon style", "Church|small Houses|neon style");
    expect("a picture of a bubble tea with a hat in watercolour style",
           "bubble tea|hat|watercolour style");
    expect("masterpiece, best quality, (a fox:1.2), <lora:x:1>", "fox");
    expect("  kite ,, lantern.  ", "kite|lantern");
    expect("the left", "");
    expect("", "");
    expect("and", "");
    expect("sandwich", "sandwich");
    expect("a", "");
    expect("\xc3\xbc"
           "ber fox\tand  owl",
           "\xc3\xbc"
           "ber fox|owl");
}

Test(concepts, long_prompts)
{
    size_t size = 100000;
    char *p = malloc(size + 1);
    struct concept c[CONCEPTS_MOST];
    memset(p, 'x', size);
    p[size] = 0;
    cr_expect_eq(concepts_split(p, c), 0, "a word longer than a phrase may be");
    for (size_t i = 2; i < size; i += 3)
        p[i] = ',';
    cr_expect_eq(concepts_split(p, c), CONCEPTS_MOST);
    free(p);
}

/* Names and triggers, word by word. */
Test(concepts, says_a_phrase)
{
    static const struct {
        const char *text, *phrase;
        bool yes;
    } c[] = {{"My_red-Lantern.v2", "red lantern", true},
             {"lantern", "Lantern", true},
             {"sks lantern", "lantern", true},
             {"lanterns", "lantern", false},
             {"my_red-lantern", "ant", false},
             {"lantern red", "red lantern", false},
             {"red", "red lantern", false},
             {"caf\xc3\xa9", "caf", false},
             {"", "lantern", false},
             {"lantern", "", false},
             {"lantern", " -", false}};
    for (size_t i = 0; i < sizeof c / sizeof *c; i++)
        cr_expect_eq(concepts_says(c[i].text, c[i].phrase), c[i].yes, "%s, %s", c[i].text,
                     c[i].phrase);
}
