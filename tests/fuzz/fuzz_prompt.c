/* Fuzzes the prompt parsers. The first byte chooses whether the rest is a text or picks the
 * pieces of one; the second, how many steps and how long the chunks are. What they give must
 * hold together. */
#include "retrieve/concepts.h"
#include "unet/prompt.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const pieces[] = {
    "(",
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
    "1",
    "0.5",
    ":2]",
    ":.5]",
    ":1.2)",
    " AND ",
    " BREAK ",
    "<lora:",
    "<locon:",
    "<x:",
    ">",
    "<",
    "te=",
    "unet=",
    "=",
    "e9",
    "-",
    "+",
    "\n",
    "[a|b]",
    "[a:2]",
    "(a:2)",
    "\xc3\xa9",
    "\xe7\x8c\xab",
    ".",
    "((((",
    "))))",
    "a, b, ",
    "<|endoftext|>",
    "\xe3\x80\x80",
    "\xd9\xa1",
    "999999999999999999",
    "AND",
    "BREAK",
    "_",
};
#define N_PIECES (sizeof pieces / sizeof *pieces)

static struct tokenizer *letters(const char *config)
{
    static const char vocab[] =
        "{\"<|startoftext|>\":0,\"<|endoftext|>\":1,\"!\":2,\",</w>\":3,\"a</w>\":4,\"b</w>\":5,"
        "\"a\":6,\"b\":7,\"1</w>\":8,\"ab</w>\":9}";
    static const char merges[] = "a b</w>\n";
    struct tokenizer_files f = {.vocab = {vocab, sizeof vocab - 1},
                                .merges = {merges, sizeof merges - 1},
                                .config = {config, strlen(config)}};
    struct tokenizer *t = NULL;
    int rc = tokenizer_parse(&t, &f, "letters", NULL);
    assert(rc == 0);
    return rc == 0 ? t : NULL;
}

/* Three words, of 2, 1 and 5 vectors, and one that is refused. */
static struct words *three_words(const struct tokenizer *t)
{
    static const float vec[5];
    struct words *w = NULL;
    int rc = words_new(&w, t, 1, NULL);
    rc = rc < 0 ? rc : words_add(w, "<b>", vec, 2, 1, NULL);
    rc = rc < 0 ? rc : words_add(w, "ab", vec, 1, 1, NULL);
    rc = rc < 0 ? rc : words_add(w, "a b", vec, 5, 1, NULL);
    rc = rc < 0 ? rc : words_add_refused(w, "b1", "no", NULL);
    assert(rc == 0 && words_count(w) == 4 && words_add(w, "ab", vec, 1, 1, NULL) == ERR_ARG);
    return w;
}

/* Words of any name and width, as a careless user gives them; then a text that may use them. */
static void check_words(const struct tokenizer *t, const char *text, int byte)
{
    static const float vec[12];
    struct words *w = NULL;
    struct err err;
    char name[24];
    int rc = words_new(&w, t, 2, &err), n = byte % 7;
    assert(rc == 0 && words_width(w) == 2);
    snprintf(name, sizeof name, "%s", text);
    rc = words_add(w, name, vec, n, byte % 3 ? 2 : 3, &err);
    assert(rc == 0 || *err.msg);
    if (byte % 5 == 0 && words_add_refused(w, byte % 2 ? name : "b", "no", &err) == 0)
        words_add_refused(w, byte % 2 ? name : "b", "still no", &err);
    struct prompt_chunks c;
    if (prompt_chunks_make(&c, t, w, text, 8, &err) == 0)
        prompt_chunks_release(&c);
    for (int i = 0; i < words_count(w); i++)
        assert(words_find(w, words_name(w, i)) >= 0 || !words_used(w, i));
    words_free(w);
}

static void check_chunks(const struct tokenizer *t, struct words *words, const char *text,
                         int length)
{
    struct prompt_chunks c;
    struct err err;
    int more = 0;

    if (prompt_chunks_make(&c, t, words, text, length, &err) < 0) {
        assert(!c.id && !c.weight && *err.msg);
        return;
    }
    if (c.n_chunk < 4096)
        more = prompt_chunks_pad(&c, t, c.n_chunk + 1, &err) == 0;
    assert(more || c.n_chunk == 4096);
    for (int i = 0; i < c.n_chunk * length; i++) {
        assert(c.id[i] < tokenizer_size(t) && isfinite(c.weight[i]));
        assert(c.id[i] >= 0 || words_vector(words, c.id[i], i % 5));
        assert(i % length || (c.id[i] == tokenizer_bos(t) && c.weight[i] == 1));
        assert(c.weighted || c.weight[i] == 1);
    }
    prompt_chunks_release(&c);
}

static void check_spans(const char *text)
{
    struct prompt_spans s;
    size_t n = 0;

    if (prompt_spans_parse(&s, text, NULL) < 0)
        return;
    for (size_t i = 0; i < s.n; i++) {
        n += strlen(s.span[i].text);
        assert(isfinite(s.span[i].weight));
        assert(!s.span[i].is_break || !strcmp(s.span[i].text, "BREAK"));
    }
    assert(s.n > 0 && n <= strlen(text));
    prompt_spans_release(&s);
}

static void check_stages(const struct tokenizer *t, struct words *words, const char *text,
                         int steps, int length)
{
    struct prompt_stages s;

    if (prompt_stages_parse(&s, text, steps, NULL) < 0)
        return;
    assert(s.n >= 1 && s.n <= (size_t)steps && s.stage[s.n - 1].until == steps);
    for (size_t i = 0; i < s.n; i++) {
        assert(s.stage[i].until > (i ? s.stage[i - 1].until : 0));
        assert(strlen(s.stage[i].text) <= strlen(text));
        check_chunks(t, words, s.stage[i].text, length);
    }
    prompt_stages_release(&s);
}

/* Phrases stand in the text where they say, in order, apart. */
static void check_concepts(const char *text)
{
    struct concept c[CONCEPTS_MOST];
    size_t end = 0;
    int n = concepts_split(text, c);
    assert(n >= 0 && n <= CONCEPTS_MOST);
    for (int i = 0; i < n; i++) {
        assert(c[i].at >= end && c[i].n > 1 && strlen(c[i].text) == c[i].n);
        assert(!memcmp(text + c[i].at, c[i].text, c[i].n));
        end = c[i].at + c[i].n;
    }
    assert(end <= strlen(text));
}

static void check(const struct tokenizer *t, struct words *words, const char *text, int steps,
                  int length)
{
    struct prompt p;
    struct err err;

    check_spans(text);
    check_concepts(text);
    check_stages(t, words, text, steps, length);
    if (prompt_read(&p, text, &err) < 0) {
        assert(!p.part && !p.adapter && *err.msg);
        return;
    }
    assert(p.n_part > 0);
    for (size_t i = 0; i < p.n_adapter; i++)
        assert(*p.adapter[i].name && isfinite(p.adapter[i].te) && isfinite(p.adapter[i].unet));
    for (size_t i = 0; i < p.n_part; i++) {
        assert(isfinite(p.part[i].weight));
        check_stages(t, words, p.part[i].text, steps, length);
    }
    prompt_release(&p);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct tokenizer *t[2];
    static struct words *words[2];
    size_t longest = 0, n = 0;

    if (!t[0]) {
        t[0] = letters("{}");
        t[1] = letters("{\"pad_token\":\"!\"}");
        words[0] = three_words(t[0]);
        words[1] = three_words(t[1]);
    }
    if (size < 2)
        return 0;
    for (size_t i = 0; i < N_PIECES; i++)
        longest = strlen(pieces[i]) > longest ? strlen(pieces[i]) : longest;
    char *text = malloc(longest * size);
    if (!text)
        return 0;
    for (size_t i = 2; i < size; i++)
        if (data[0] % 4 == 0) {
            text[n++] = (char)(data[i] ? data[i] : ' ');
        } else {
            const char *piece = pieces[data[i] % N_PIECES];
            memcpy(text + n, piece, strlen(piece));
            n += strlen(piece);
        }
    text[n] = 0;
    check(t[data[0] >> 7], data[0] & 64 ? words[data[0] >> 7] : NULL, text, 1 + data[1] % 12,
          3 + (data[1] >> 4));
    check_words(t[data[0] >> 7], text, data[1]);
    free(text);
    return 0;
}
