#include "concepts.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

static const char *const between[] = {
    "and",    "with",   "without", "beside", "besides", "above",  "below",   "under",   "over",
    "behind", "near",   "next",    "on",     "in",      "at",     "by",      "of",      "against",
    "inside", "around", "between", "to",     "from",    "before", "wearing", "holding", "riding",
    "like",   "as",     "is",      "are",    "that",    "or",     "for",     NULL};
static const char *const in_front[] = {"a",    "an",  "the", "one", "two",   "three", "four",
                                       "some", "his", "her", "its", "their", "my",    NULL};
static const char *const nothing[] = {
    "left",  "right",       "top",        "bottom",  "middle",   "center",       "centre",
    "side",  "front",       "back",       "corner",  "each",     "other",        "picture",
    "photo", "photograph",  "image",      "drawing", "painting", "illustration", "style",
    "scene", "foreground",  "background", "ground",  "plain",    "close",        "up",
    "view",  "masterpiece", "best",       "quality", "detailed", "highly",       "4k",
    "8k",    NULL};

static bool is_in(const char *const *list, const char *word, size_t n)
{
    for (; *list; list++)
        if (strlen(*list) == n && !strncasecmp(*list, word, n))
            return true;
    return false;
}

bool concepts_is_thing(const char *word, size_t n)
{
    return !is_in(between, word, n) && !is_in(in_front, word, n) && !is_in(nothing, word, n);
}

/* A phrase without what stands in front of it, unless nothing is left that is a thing. */
static bool take(const char *prompt, size_t at, size_t end, struct concept *c)
{
    bool thing = false, first = true;
    for (size_t i = at; i < end;) {
        size_t n = strcspn(prompt + i, " \t");
        n = i + n > end ? end - i : n;
        if (first && is_in(in_front, prompt + i, n)) {
            i += n + strspn(prompt + i + n, " \t");
            at = i;
            continue;
        }
        first = false;
        thing = thing || !is_in(nothing, prompt + i, n);
        i += n + strspn(prompt + i + n, " \t");
    }
    while (end > at && (prompt[end - 1] == ' ' || prompt[end - 1] == '\t'))
        end--;
    if (!thing || end <= at + 1 || end - at >= sizeof c->text)
        return false;
    c->at = at;
    c->n = end - at;
    snprintf(c->text, sizeof c->text, "%.*s", (int)c->n, prompt + at);
    return true;
}

int concepts_split(const char *prompt, struct concept out[CONCEPTS_MOST])
{
    static const char ends[] = ",.;:!?()[]{}<>|\"\n";
    size_t i = strspn(prompt, " \t"), begin = i;
    int n = 0;
    for (;;) {
        size_t word = strcspn(prompt + i, " \t,.;:!?()[]{}<>|\"\n");
        bool stop = !prompt[i] || strchr(ends, prompt[i]) || is_in(between, prompt + i, word);
        if (stop && n < CONCEPTS_MOST)
            n += take(prompt, begin, i, &out[n]);
        if (!prompt[i])
            return n;
        i += prompt[i] == '<' ? strcspn(prompt + i, ">") : word ? word : 1; /* <lora:NAME:1> */
        i += strspn(prompt + i, " \t");
        if (stop)
            begin = i;
    }
}

/* Past what is no letter or digit of ASCII; bytes of other letters count as letters. */
static const char *word_begin(const char *p)
{
    while (*p && (unsigned char)*p < 128 && !isalnum((unsigned char)*p))
        p++;
    return p;
}

static const char *word_end(const char *p)
{
    while (*p && ((unsigned char)*p >= 128 || isalnum((unsigned char)*p)))
        p++;
    return p;
}

static bool begins(const char *text, const char *phrase)
{
    for (phrase = word_begin(phrase); *phrase; phrase = word_begin(word_end(phrase))) {
        size_t n = (size_t)(word_end(phrase) - phrase);
        if ((size_t)(word_end(text) - text) != n || strncasecmp(text, phrase, n) != 0)
            return false;
        text = word_begin(text + n);
    }
    return true;
}

bool concepts_says(const char *text, const char *phrase)
{
    if (!*word_begin(phrase))
        return false;
    for (text = word_begin(text); *text; text = word_begin(word_end(text)))
        if (begins(text, phrase))
            return true;
    return false;
}
