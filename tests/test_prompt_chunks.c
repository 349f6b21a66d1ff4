#include "unet/prompt.h"

#include "tests/shared.h"

#include <criterion/criterion.h>
#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define DEMO "assets/model/tokenizer"

static struct tokenizer *open_at(const char *dir)
{
    struct tokenizer *t = NULL;
    struct err err;
    cr_assert_eq(tokenizer_open(&t, dir, &err), 0, "%s", err.msg);
    return t;
}

/* A tokenizer of single letters, "," and "!", which pads with the token of that name. */
static struct tokenizer *letters(const char *pad)
{
    static const char vocab[] =
        "{\"<|startoftext|>\":0,\"<|endoftext|>\":1,\"!\":2,\",</w>\":3,\"a</w>\":4,\"b</w>\":5,"
        "\"c</w>\":6,\"d</w>\":7,\"e</w>\":8,\"f</w>\":9,\"g</w>\":10,\"h</w>\":11,\"b\":12,"
        "\"r\":13,\"e\":14,\"a\":15,\"k</w>\":16}";
    struct tokenizer *t = NULL;
    struct err err;
    char config[64];

    snprintf(config, sizeof config, "{\"pad_token\": \"%s\"}", pad);
    struct tokenizer_files f = {
        .vocab = {vocab, strlen(vocab)}, .merges = {"", 0}, .config = {config, strlen(config)}};
    cr_assert_eq(tokenizer_parse(&t, &f, "DIR", &err), 0, "%s", err.msg);
    return t;
}

/* The ids as signs: ^ start, $ end, _ padding, letters; rows end in a blank. */
static void draw(const struct prompt_chunks *c, char *out)
{
    static const char signs[] = "^$_,abcdefghbreak";
    for (int i = 0; i < c->n_chunk; i++) {
        for (int j = 0; j < c->length; j++)
            *out++ = signs[c->id[i * c->length + j]];
        *out++ = ' ';
    }
    *out = 0;
}

/* Rows of six tokens, as A1111's tokenize_line makes them. */
static const struct {
    const char *text, *rows;
} chunks[] = {
    {"", "^$$$$$$$ "},
    {"a b", "^ab$$$$$ "},
    {"a b c d e f", "^abcdef$ "},
    {"a b c d e f g", "^abcdef$ ^g$$$$$$ "},
    /* The words after the last comma move on with what does not fit. */
    {"a b, c d e f", "^ab,$$$$ ^cdef$$$ "},
    {"a b, c d e", "^ab,cde$ "},
    {"a b c d e, f", "^abcde,$ ^f$$$$$$ "},
    {"a b c d e f, g", "^abcdef$ ^,g$$$$$ "},
    {", a b c d e f", "^,$$$$$$ ^abcdef$ "},
    {"a, b c, d e f g", "^a,bc,$$ ^defg$$$ "},
    {", , , , , , ,", "^,,,,,,$ ^,$$$$$$ "},
    /* A break fills its row up, and a row that is open at the end counts only if it has tokens. */
    {"a BREAK b", "^a$$$$$$ ^b$$$$$$ "},
    {"a BREAK", "^a$$$$$$ "},
    {"BREAK", "^$$$$$$$ "},
    {"BREAK a", "^$$$$$$$ ^a$$$$$$ "},
    {"BREAK BREAK", "^$$$$$$$ ^$$$$$$$ "},
    {"a b c d e f BREAK g", "^abcdef$ ^g$$$$$$ "},
    {"a, BREAK b c d e f g h", "^a,$$$$$ ^bcdefg$ ^h$$$$$$ "},
    {"(a BREAK b)", "^abreakb$ "},
    /* Spans are words of their own. */
    {"(a)b", "^ab$$$$$ "},
    {"a<|endoftext|>b", "^a$b$$$$ "},
};

Test(prompt_chunks, rows)
{
    struct tokenizer *t = letters("<|endoftext|>");
    struct prompt_chunks c;
    struct err err;
    char rows[256];

    for (size_t i = 0; i < sizeof chunks / sizeof *chunks; i++) {
        int length = strstr(chunks[i].text, "(a BREAK") ? 9 : 8;
        cr_assert_eq(prompt_chunks_make(&c, t, NULL, chunks[i].text, length, &err), 0, "%s: %s",
                     chunks[i].text, err.msg);
        draw(&c, rows);
        cr_expect_str_eq(rows, chunks[i].rows, "\"%s\": %s", chunks[i].text, rows);
        prompt_chunks_release(&c);
    }
    tokenizer_close(t);
}

/* SD 2: everything after the first end token of a row is padding, whatever stood there. */
Test(prompt_chunks, padding_of_its_own)
{
    struct tokenizer *t = letters("!");
    struct prompt_chunks c;
    struct err err;
    char rows[256];

    cr_assert_eq(prompt_chunks_make(&c, t, NULL, "a b c d e f g BREAK a<|endoftext|>b", 8, &err), 0,
                 "%s", err.msg);
    cr_assert_eq(prompt_chunks_pad(&c, t, 4, &err), 0);
    cr_assert_eq(prompt_chunks_pad(&c, t, 2, &err), 0);
    draw(&c, rows);
    cr_assert_str_eq(rows, "^abcdef$ ^g$_____ ^a$_____ ^$______ ");
    prompt_chunks_release(&c);
    tokenizer_close(t);
}

Test(prompt_chunks, weights_go_with_their_tokens)
{
    struct tokenizer *t = letters("<|endoftext|>");
    struct prompt_chunks c;
    struct err err;
    const float w = 1.5f, v = (float)(1 / 1.1);
    const float want[] = {1, 1, 1, 1, 1, 1, 1, 1, 1, w, w, v, 1, 1, 1, 1};

    cr_assert_eq(prompt_chunks_make(&c, t, NULL, "a b, (c d:1.5)[e]f g", 8, &err), 0, "%s",
                 err.msg);
    cr_assert_eq(c.n_chunk, 2);
    cr_assert_arr_eq(c.weight, want, sizeof want);
    cr_assert(c.weighted);
    prompt_chunks_release(&c);
    cr_assert_eq(prompt_chunks_make(&c, t, NULL, "(a:1.0) b", 8, &err), 0, "%s", err.msg);
    cr_assert(!c.weighted);
    cr_assert_eq(prompt_chunks_pad(&c, t, 3, &err), 0);
    cr_assert_eq(c.n_chunk, 3);
    for (int i = 0; i < 24; i++)
        cr_assert_eq(c.weight[i], 1);
    prompt_chunks_release(&c);
    tokenizer_close(t);
}

/* CLIP's rows of 75: a comma may be 20 tokens back, not 21. */
Test(prompt_chunks, how_far_back_a_comma_may_be)
{
    struct tokenizer *t = letters("<|endoftext|>");
    struct prompt_chunks c;
    struct err err;

    for (int back = 19; back <= 22; back++) {
        /* The comma is token 75 - back, counted from 0. */
        char text[400], *p = text;
        for (int i = 0; i < 80; i++)
            p += sprintf(p, "%s ", i == 75 - back ? "," : "a");
        cr_assert_eq(prompt_chunks_make(&c, t, NULL, text, 77, &err), 0, "%s", err.msg);
        cr_assert_eq(c.n_chunk, 2);
        int first = back <= 20 ? 75 - back + 1 : 75;
        cr_expect_eq(c.id[first], back <= 20 ? 3 : 4, "%d back", back);
        cr_expect_eq(c.id[first + 1], 1, "%d back", back);
        cr_expect_eq(c.id[77 + 80 - first], 4, "%d back", back);
        cr_expect_eq(c.id[77 + 80 - first + 1], 1, "%d back", back);
        prompt_chunks_release(&c);
    }
    tokenizer_close(t);
}

Test(prompt_chunks, the_models_own_tokenizer)
{
    struct tokenizer *t = open_at(DEMO);
    struct prompt_chunks c;
    struct tokens ids = {0};
    struct err err;

    cr_assert_eq(prompt_chunks_make(&c, t, NULL, "a (red:1.2) apple", 32, &err), 0, "%s", err.msg);
    cr_assert_eq(tokenizer_encode(t, "a red apple", -1, &ids, &err), 0);
    cr_assert_eq(c.n_chunk, 1);
    cr_assert_eq(c.id[0], tokenizer_bos(t));
    cr_assert_arr_eq(c.id + 1, ids.id, ids.n * sizeof *ids.id);
    for (size_t i = ids.n + 1; i < 32; i++)
        cr_assert_eq(c.id[i], tokenizer_eos(t));
    prompt_chunks_release(&c);
    tokens_release(&ids);
    tokenizer_close(t);
}

Test(prompt_chunks, refused)
{
    struct tokenizer *t = letters("!");
    struct prompt_chunks c;
    struct err err;
    size_t n = 4097;
    char *many = malloc(6 * n + 1);

    cr_expect_eq(prompt_chunks_make(&c, t, NULL, "a", 2, &err), ERR_ARG);
    cr_expect_eq(prompt_chunks_make(&c, t, NULL, "a", 1 << 20, &err), ERR_ARG);
    cr_expect_eq(prompt_chunks_make(&c, t, NULL, "\xff", 8, &err), ERR_ARG);
    for (size_t i = 0; i < n; i++)
        memcpy(many + 6 * i, "BREAK ", 7);
    cr_expect_eq(prompt_chunks_make(&c, t, NULL, many, 8, &err), ERR_ARG);
    cr_expect(strstr(err.msg, "4096 chunks"), "%s", err.msg);
    cr_expect(!c.id && !c.weight);
    cr_expect_eq(prompt_chunks_make(&c, t, NULL, many + 6, 8, &err), 0, "%s", err.msg);
    cr_expect_eq(c.n_chunk, 4096);
    cr_expect_eq(prompt_chunks_pad(&c, t, 4097, &err), ERR_ARG);
    prompt_chunks_release(&c);
    free(many);
    tokenizer_close(t);
}

/* ---- chance --------------------------------------------------------------------------------- */

static unsigned chance(unsigned *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

/* What must hold of any text: nothing breaks, and what comes out is what it should be. */
static void check_any(const struct tokenizer *t, const char *text, int steps, unsigned *chunked)
{
    struct prompt p;
    struct prompt_stages s;
    struct prompt_chunks c;
    struct err err;

    if (prompt_read(&p, text, &err) < 0)
        return;
    cr_assert_geq(p.n_part, 1);
    for (size_t i = 0; i < p.n_adapter; i++)
        cr_assert(*p.adapter[i].name && isfinite(p.adapter[i].te) && isfinite(p.adapter[i].unet));
    for (size_t i = 0; i < p.n_part; i++) {
        cr_assert(isfinite(p.part[i].weight));
        if (prompt_stages_parse(&s, p.part[i].text, steps, &err) < 0)
            continue;
        cr_assert(s.n >= 1 && s.n <= (size_t)steps && s.stage[s.n - 1].until == steps);
        for (size_t j = 0; j < s.n; j++) {
            cr_assert_gt(s.stage[j].until, j ? s.stage[j - 1].until : 0);
            cr_assert_leq(strlen(s.stage[j].text), strlen(p.part[i].text));
            if (prompt_chunks_make(&c, t, NULL, s.stage[j].text, 8, &err) < 0)
                continue;
            ++*chunked;
            for (int k = 0; k < c.n_chunk * 8; k++) {
                cr_assert(c.id[k] >= 0 && c.id[k] < tokenizer_size(t));
                cr_assert(isfinite(c.weight[k]));
                cr_assert(k % 8 || c.id[k] == tokenizer_bos(t));
                cr_assert(k % 8 < 7 || c.id[k] == tokenizer_eos(t));
            }
            prompt_chunks_release(&c);
        }
        prompt_stages_release(&s);
    }
    prompt_release(&p);
}

Test(prompt_chunks, random_text)
{
    static const char *const bits[] = {"(",
                                       ")",
                                       "[",
                                       "]",
                                       ":",
                                       "|",
                                       "\\",
                                       "a",
                                       "b",
                                       ",",
                                       " ",
                                       "1.5",
                                       ":0.5",
                                       "AND ",
                                       "BREAK",
                                       "<lora:",
                                       "x",
                                       ">",
                                       "<",
                                       "\n",
                                       ":2]",
                                       ":1.2)",
                                       "-",
                                       "3",
                                       "te=",
                                       "e9",
                                       "[a|b]",
                                       "\xc3\xa9",
                                       "\xe7\x8c\xab",
                                       "\xe3\x80\x80"};
    struct tokenizer *t = open_at(DEMO);
    unsigned seed = 7, chunked = 0;

    for (int i = 0; i < 20000; i++) {
        char text[200] = "";
        for (unsigned n = chance(&seed) % 20; n > 0; n--)
            strcat(text, bits[chance(&seed) % (sizeof bits / sizeof *bits)]);
        /* Every eighth text has a byte somewhere that may be anything but the end. */
        if (i % 8 == 0 && *text)
            text[chance(&seed) % strlen(text)] = (char)(1 + chance(&seed) % 255);
        check_any(t, text, 1 + i % 12, &chunked);
    }
    cr_assert_gt(chunked, 15000);
    tokenizer_close(t);
}
