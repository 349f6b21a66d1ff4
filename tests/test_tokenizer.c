#include "unet/file.h"
#include "unet/text.h"
#include "unet/tokenizer.h"

#include "tests/shared.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define DEMO "assets/model/tokenizer"
#define GOLD "tests/golden/data/"

static struct tokenizer *open_at(const char *dir)
{
    struct tokenizer *t = NULL;
    struct err err;
    cr_assert_eq(tokenizer_open(&t, dir, &err), 0, "%s", err.msg);
    return t;
}

/* A vocabulary's two files with other files beside them, in memory. */
static int parse_with(struct tokenizer **out, const char *dir, const char *config,
                      const char *special, const char *added, struct err *err)
{
    struct tokenizer_files f = {0};
    char *vocab = NULL, *merges = NULL, path[PATH_MAX];

    snprintf(path, sizeof path, "%s/vocab.json", dir);
    cr_assert_eq(file_read(&vocab, &f.vocab.size, path, 1 << 24, err), 0, "%s", err->msg);
    snprintf(path, sizeof path, "%s/merges.txt", dir);
    cr_assert_eq(file_read(&merges, &f.merges.size, path, 1 << 24, err), 0, "%s", err->msg);
    f.vocab.text = vocab;
    f.merges.text = merges;
    if (config)
        f.config = (struct tokenizer_file){config, strlen(config)};
    if (special)
        f.special = (struct tokenizer_file){special, strlen(special)};
    if (added)
        f.added = (struct tokenizer_file){added, strlen(added)};
    int rc = tokenizer_parse(out, &f, "DIR", err);
    free(vocab);
    free(merges);
    return rc;
}

static void encode(const struct tokenizer *t, const char *text, size_t n, struct tokens *ids)
{
    struct err err;
    ids->n = 0;
    cr_assert_eq(tokenizer_encode(t, text, (ptrdiff_t)n, ids, &err), 0, "%s", err.msg);
}

static bool same(const struct tokens *ids, const int32_t *want, size_t n)
{
    return ids->n == n && (n == 0 || !memcmp(ids->id, want, n * sizeof *want));
}

/* ---- a vocabulary small enough to see through ----------------------------------------------- */

/* The vocabulary of transformers' own test of CLIPTokenizer. */
static const char toy_vocab[] =
    "{\"l\":0,\"o\":1,\"w\":2,\"e\":3,\"r\":4,\"s\":5,\"t\":6,\"i\":7,\"d\":8,\"n\":9,\"lo\":10,"
    "\"l</w>\":11,\"w</w>\":12,\"r</w>\":13,\"t</w>\":14,\"low</w>\":15,\"er</w>\":16,"
    "\"lowest</w>\":17,\"newer</w>\":18,\"wider\":19,\"<unk>\":20,\"<|startoftext|>\":21,"
    "\"<|endoftext|>\":22}";
static const char toy_merges[] = "#version: 0.2\nl o\nlo w</w>\ne r</w>\n";

static int parse_toy(struct tokenizer **out, const char *vocab, const char *merges,
                     const char *config, struct err *err)
{
    struct tokenizer_files f = {.vocab = {vocab, strlen(vocab)},
                                .merges = {merges, strlen(merges)},
                                .config = {config, config ? strlen(config) : 0}};
    return tokenizer_parse(out, &f, "DIR", err);
}

Test(tokenizer, toy_vocabulary)
{
    struct tokenizer *t = NULL;
    struct tokens ids = {0};
    struct err err;

    cr_assert_eq(parse_toy(&t, toy_vocab, toy_merges, "{\"unk_token\":\"<unk>\"}", &err), 0, "%s",
                 err.msg);
    encode(t, "lower newer", 11, &ids);
    cr_assert(same(&ids, (int32_t[]){10, 2, 16, 9, 3, 2, 16}, 7));
    encode(t, "\n LOW<|endoftext|>\tz", 20, &ids);
    cr_assert(same(&ids, (int32_t[]){15, 22, 20}, 3), "a byte the vocabulary lacks is <unk>");
    encode(t, "\xc3\xa9", 2, &ids);
    cr_assert(same(&ids, (int32_t[]){20, 20}, 2), "one <unk> for each byte");
    encode(t, "", 0, &ids);
    cr_assert_eq(ids.n, 0);
    cr_assert_eq(tokenizer_size(t), 23);
    cr_assert_eq(tokenizer_bos(t), 21);
    cr_assert_eq(tokenizer_eos(t), 22);
    cr_assert_eq(tokenizer_pad(t), 22);
    cr_assert_str_eq(tokenizer_token(t, 17), "lowest</w>");
    cr_assert_eq(tokenizer_id(t, "lowest</w>"), 17);
    cr_assert_eq(tokenizer_id(t, "lowest"), -1);
    cr_assert_null(tokenizer_token(t, 23));
    cr_assert_null(tokenizer_token(t, -1));
    tokens_release(&ids);
    tokenizer_close(t);
}

Test(tokenizer, smallest_rank_goes_first)
{
    static const char vocab[] =
        "{\"a\":0,\"b\":1,\"c\":2,\"c</w>\":3,\"b</w>\":4,\"bc</w>\":5,\"ab\":6,\"aa\":7,"
        "\"abc</w>\":8,\"a</w>\":9,\"aaa\":10,\"<|startoftext|>\":11,\"<|endoftext|>\":12}";
    struct tokenizer *t = NULL;
    struct tokens ids = {0};
    struct err err;

    /* "a bc</w>" has the lowest rank but needs "b c</w>" first; "a b" is the worse way. */
    cr_assert_eq(parse_toy(&t, vocab, "a bc</w>\nb c</w>\na b\na a\r\naa a\n", NULL, &err), 0, "%s",
                 err.msg);
    encode(t, "abc", 3, &ids);
    cr_assert(same(&ids, (int32_t[]){8}, 1));
    /* Of equals the leftmost goes first: aa aa a a</w>, then aa aaa a</w>. */
    encode(t, "aaaaaa", 6, &ids);
    cr_assert(same(&ids, (int32_t[]){7, 10, 9}, 3));
    tokenizer_close(t);
    /* Listed twice, the later place counts: now "a b" goes before "b c</w>". */
    t = NULL;
    cr_assert_eq(parse_toy(&t, vocab, "b c</w>\na b\nb c</w>\n", NULL, &err), 0, "%s", err.msg);
    encode(t, "abc", 3, &ids);
    cr_assert(same(&ids, (int32_t[]){6, 3}, 2));
    tokens_release(&ids);
    tokenizer_close(t);
}

/* ---- transformers --------------------------------------------------------------------------- */

static unsigned char *read_gz(const char *path, size_t *size)
{
    size_t cap = 8 << 20, n = 0;
    unsigned char *buf = malloc(cap);
    gzFile f = gzopen(path, "rb");
    cr_assert(buf && f, "%s", path);
    for (int got; (got = gzread(f, buf + n, (unsigned)(cap - n))) > 0;)
        n += (size_t)got;
    gzclose(f);
    *size = n;
    return buf;
}

static uint16_t u16(const unsigned char **p)
{
    uint16_t v = (uint16_t)((*p)[0] | (*p)[1] << 8);
    *p += 2;
    return v;
}

/* Every generated prompt; which: 0 CLIP's vocabulary, 1 the demo model's. */
static void check_generated(const struct tokenizer *t, int which)
{
    size_t size, bad = 0;
    unsigned char *data = read_gz(GOLD "tokenizer_generated.bin.gz", &size);
    const unsigned char *p = data + 4;
    unsigned n = data[0] | data[1] << 8 | data[2] << 16;
    int32_t *want = malloc(65536 * sizeof *want);
    struct tokens ids = {0};

    cr_assert_eq(n, 5000);
    for (unsigned i = 0; i < n; i++) {
        size_t len = u16(&p);
        const char *text = (const char *)p;
        p += len;
        encode(t, text, len, &ids);
        for (int v = 0; v < 2; v++) {
            size_t k = u16(&p);
            for (size_t j = 0; j < k; j++)
                want[j] = u16(&p);
            if (v == which && !same(&ids, want, k) && bad++ < 5)
                cr_log_error("prompt %u: %.*s", i, (int)len, text);
        }
    }
    cr_assert_eq(p - data, (ptrdiff_t)size);
    cr_assert_eq(bad, 0, "%zu prompts differ from transformers", bad);
    tokens_release(&ids);
    free(want);
    free(data);
}

Test(tokenizer, generated_prompts_demo_vocabulary)
{
    struct tokenizer *t = open_at(DEMO);
    cr_assert_eq(tokenizer_size(t), 1152);
    check_generated(t, 1);
    tokenizer_close(t);
}

Test(tokenizer, generated_prompts_clip_vocabulary)
{
    char dir[PATH_MAX];
    struct tokenizer *t = open_at(shared_path(dir, sizeof dir, "tokenizer"));
    cr_assert_eq(tokenizer_size(t), 49408);
    check_generated(t, 0);
    tokenizer_close(t);
}

static uint64_t fnv(const struct tokens *ids)
{
    uint64_t h = 0xcbf29ce484222325;
    for (size_t i = 0; i < ids->n; i++)
        for (int b = 0; b < 4; b++)
            h = (h ^ ((uint32_t)ids->id[i] >> 8 * b & 0xff)) * 0x100000001b3;
    return h;
}

/* The prompts of one file: lines, the first column, or the "prompt" of objects. */
static void check_file(const char *path, struct tokenizer *const t[2], const unsigned char **want,
                       size_t *seen, size_t *bad)
{
    char *text = NULL;
    size_t size;
    struct tokens ids = {0};
    struct err err;

    cr_assert_eq(file_read(&text, &size, path, 1 << 24, &err), 0, "%s", err.msg);
    for (char *line = text, *eol; (eol = strchr(line, '\n')); line = eol + 1) {
        *eol = 0;
        json_t *object = NULL;
        const char *prompt = line;
        if (strstr(path, ".tsv")) {
            line[strcspn(line, "\t")] = 0;
        } else if (strstr(path, ".jsonl")) {
            object = json_loads(line, 0, NULL);
            prompt = json_string_value(json_object_get(object, "prompt"));
        }
        for (int v = 0; v < 2; v++) {
            uint64_t h = 0;
            for (int b = 0; b < 8; b++)
                h |= (uint64_t) * (*want)++ << 8 * b;
            encode(t[v], prompt, strlen(prompt), &ids);
            if (fnv(&ids) != h && (*bad)++ < 5)
                cr_log_error("vocabulary %d: %s", v, prompt);
        }
        ++*seen;
        json_decref(object);
    }
    tokens_release(&ids);
    free(text);
}

Test(tokenizer, shared_prompts)
{
    static const char *const names[] = {"3d_spatial_val.txt",
                                        "PartiPrompts.tsv",
                                        "color_val.txt",
                                        "complex_val.txt",
                                        "evaluation_metadata.jsonl",
                                        "generation_prompts.txt",
                                        "non_spatial_val.txt",
                                        "numeracy_val.txt",
                                        "shape_val.txt",
                                        "spatial_val.txt",
                                        "texture_val.txt"};
    char path[PATH_MAX], name[128], *data = NULL;
    size_t size, seen = 0, bad = 0;
    struct err err;

    struct tokenizer *t[2] = {open_at(shared_path(path, sizeof path, "tokenizer")), open_at(DEMO)};
    cr_assert_eq(file_read(&data, &size, GOLD "tokenizer_shared.bin", 1 << 20, &err), 0, "%s",
                 err.msg);
    cr_assert_eq(size, 5133 * 16);
    const unsigned char *want = (unsigned char *)data;
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        snprintf(name, sizeof name, "prompts/%s", names[i]);
        check_file(shared_path(path, sizeof path, name), t, &want, &seen, &bad);
    }
    cr_assert_eq(seen, 5133);
    cr_assert_eq(bad, 0, "%zu prompts differ from transformers", bad);
    free(data);
    tokenizer_close(t[0]);
    tokenizer_close(t[1]);
}

/* Ids from public test suites, with a start and an end token. */
static void check_vectors(const char *name, size_t least)
{
    char path[PATH_MAX], dir[PATH_MAX];
    struct tokenizer *clip = open_at(shared_path(dir, sizeof dir, "tokenizer")), *owl = NULL;
    struct tokens ids = {0};
    struct err err;
    json_t *file = json_load_file(shared_path(path, sizeof path, name), JSON_ALLOW_NUL, NULL);
    json_t *cases = json_object_get(file, "cases"), *c;
    size_t i;

    cr_assert_eq(parse_with(&owl, dir, "{\"pad_token\": \"!\"}", NULL, NULL, &err), 0, "%s",
                 err.msg);
    cr_assert_geq(json_array_size(cases), least);
    json_array_foreach(cases, i, c)
    {
        const json_t *text = json_object_get(c, "text"), *want = json_object_get(c, "ids");
        const char *kind = json_string_value(json_object_get(c, "tokenizer"));
        const struct tokenizer *t = kind && !strncmp(kind, "owlvit", 6) ? owl : clip;
        encode(t, json_string_value(text), json_string_length(text), &ids);
        cr_expect_eq(ids.n + 2, json_array_size(want), "%s", json_string_value(text));
        for (size_t j = 0; j < ids.n; j++)
            cr_expect_eq(ids.id[j], json_integer_value(json_array_get(want, j + 1)), "%s: id %zu",
                         json_string_value(text), j);
    }
    json_decref(file);
    tokens_release(&ids);
    tokenizer_close(owl);
    tokenizer_close(clip);
}

Test(tokenizer, public_vectors_hf)
{
    check_vectors("vectors/clip_tokens_hf.json", 26);
}

Test(tokenizer, public_vectors_simple)
{
    check_vectors("vectors/clip_tokens_simple.json", 38);
}

/* ---- special tokens ------------------------------------------------------------------------- */

#define S        "<|startoftext|>"
#define E        "<|endoftext|>"
#define TOKEN(c) "{\"content\":\"" c "\",\"normalized\":true}"
#define PLAIN(c) "{\"content\":\"" c "\",\"normalized\":false,\"special\":true}"
#define ALL      "\"bos_token\":" TOKEN(S) ",\"eos_token\":" TOKEN(E) ",\"unk_token\":" TOKEN(E)

/* Which of the words of `text` each way of naming special tokens takes whole: what transformers
 * does with the demo model's vocabulary and these files. */
static const struct special {
    const char *what, *config, *special, *added;
    int32_t pad;
    const char *whole; /* a letter for each word below */
} specials[] = {
    {"no file", NULL, NULL, NULL, 1151, "a"},
    {"SD 1.5", "{" ALL ",\"pad_token\":\"" E "\"}", NULL, NULL, 1151, "as"},
    {"a map of objects", NULL, "{" ALL ",\"pad_token\":" TOKEN(E) "}", NULL, 1151, "aAs"},
    {"the map goes before the config", "{" ALL "}", "{\"bos_token\":\"" S "\"}", NULL, 1151, "a"},
    {"SD 2", "{" ALL ",\"pad_token\":\"" E "\"}", "{" ALL ",\"pad_token\":\"!\"}", NULL, 0, "aAs!"},
    {"SDXL's second",
     "{\"pad_token\":\"!\",\"added_tokens_decoder\":{\"0\":" PLAIN("!") ",\"1150\":" TOKEN(
         S) ",\"1151\":" TOKEN(E) "}}",
     "{\"pad_token\":\"" E "\"}", NULL, 0, "aAs!"},
    {"a list without flags",
     "{\"eos_token\":\"" E "\",\"added_tokens_decoder\":{\"1151\":{\"content\":\"" E "\"}}}", NULL,
     NULL, 1151, "a"},
    {"a new token", NULL, NULL, "{\"<SKS>\":1152}", 1151, "akK"},
    {"a new special token", "{\"mask_token\":\"<SKS>\"}", NULL, "{\"<SKS>\":1152}", 1151, "aK"},
    {"an extra token", "{\"additional_special_tokens\":[\"<SKS>\"]}", NULL, "{\"<SKS>\":1152}",
     1151, "aK"},
};

Test(tokenizer, special_tokens)
{
    static const struct {
        char letter;
        const char *word;
        int32_t id;
    } words[] = {{'a', E, 1151}, {'A', "<|EndOfText|>", 1151}, {'s', "<|STARTOFTEXT|>", 1150},
                 {'!', "!", 0},  {'k', "<sks>", 1152},         {'K', "<SKS>", 1152}};
    struct tokens ids = {0};
    struct err err;

    for (size_t i = 0; i < sizeof specials / sizeof *specials; i++) {
        const struct special *s = &specials[i];
        struct tokenizer *t = NULL;
        int rc = parse_with(&t, DEMO, s->config, s->special, s->added, &err);
        cr_assert_eq(rc, 0, "%s: %s", s->what, err.msg);
        cr_expect_eq(tokenizer_pad(t), s->pad, "%s", s->what);
        for (size_t j = 0; j < sizeof words / sizeof *words; j++) {
            encode(t, words[j].word, strlen(words[j].word), &ids);
            bool whole = ids.n == 1 && ids.id[0] == words[j].id;
            cr_expect_eq(whole, strchr(s->whole, words[j].letter) != NULL, "%s: %s", s->what,
                         words[j].word);
        }
        cr_expect_eq(tokenizer_size(t), s->added ? 1153 : 1152, "%s", s->what);
        if (s->added)
            cr_expect_str_eq(tokenizer_token(t, 1152), "<SKS>");
        tokenizer_close(t);
    }
    tokens_release(&ids);
}

Test(tokenizer, longest_added_token_is_taken)
{
    struct tokenizer *t = NULL;
    struct tokens ids = {0};
    struct err err;

    cr_assert_eq(parse_with(&t, DEMO, NULL, NULL, "{\"foob\":1153,\"foo\":1152,\"ob\":1154}", &err),
                 0, "%s", err.msg);
    encode(t, "fooFOOBob", 9, &ids);
    cr_assert(same(&ids, (int32_t[]){1152, 1153, 1154}, 3));
    tokens_release(&ids);
    tokenizer_close(t);
}

/* ---- what is refused ------------------------------------------------------------------------ */

Test(tokenizer, refuses_files)
{
    static const struct {
        const char *vocab, *merges, *config;
        int code;
        const char *why;
    } bad[] = {
        {"{", toy_merges, NULL, ERR_FORMAT, "vocab.json"},
        {"[]", toy_merges, NULL, ERR_FORMAT, "vocab.json"},
        {"{}", toy_merges, NULL, ERR_FORMAT, "0 tokens"},
        {"{\"a\":0,\"a\":1}", "", NULL, ERR_FORMAT, "duplicate"},
        {"{\"a\":0,\"b\":0}", "", NULL, ERR_FORMAT, "the same id"},
        {"{\"a\":0,\"b\":2}", "", NULL, ERR_FORMAT, "has no id"},
        {"{\"a\":0,\"b\":-1}", "", NULL, ERR_FORMAT, "has no id"},
        {"{\"a\":0,\"b\":1.0}", "", NULL, ERR_FORMAT, "has no id"},
        {"{\"a\":0,\"b\":18446744073709551616}", "", NULL, ERR_FORMAT, "vocab.json"},
        {toy_vocab, "l o\n\nlo w</w>\n", NULL, ERR_FORMAT, "line 2"},
        {toy_vocab, "#version\nl o\nl  o", NULL, ERR_FORMAT, "line 3"},
        {toy_vocab, "l o w", NULL, ERR_FORMAT, "line 1"},
        {toy_vocab, " o", NULL, ERR_FORMAT, "line 1"},
        {toy_vocab, "l w", NULL, ERR_FORMAT, "\"lw\" is not in vocab.json"},
        {toy_vocab, "l x", NULL, ERR_FORMAT, "\"x\" is not in vocab.json"},
        {"{\"a\":0}", "", NULL, ERR_FORMAT, "<|startoftext|>"},
        {toy_vocab, toy_merges, "{\"pad_token\":\"<pad>\"}", ERR_FORMAT, "<pad>"},
        {toy_vocab, toy_merges, "{\"pad_token\":7}", ERR_FORMAT, "pad_token"},
        {toy_vocab, toy_merges, "{\"pad_token\":\"\"}", ERR_FORMAT, "pad_token"},
        {toy_vocab, toy_merges, "{\"eos_token\":{\"content\":\"l\",\"single_word\":true}}",
         ERR_UNSUPPORTED, "single_word"},
        {toy_vocab, toy_merges, "{\"added_tokens_decoder\":[]}", ERR_FORMAT, "not an object"},
        {toy_vocab, toy_merges, "{\"added_tokens_decoder\":{\"24\":{\"content\":\"new\"}}}",
         ERR_FORMAT, "has id 24, not 23"},
        {toy_vocab, toy_merges, "{\"added_tokens_decoder\":{\"x\":{\"content\":\"l\"}}}",
         ERR_FORMAT, "has id -1"},
        {toy_vocab, toy_merges, "[]", ERR_FORMAT, "not a JSON object"},
    };
    struct err err;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tokenizer *t = NULL;
        int rc = parse_toy(&t, bad[i].vocab, bad[i].merges, bad[i].config, &err);
        cr_expect_eq(rc, bad[i].code, "case %zu", i);
        cr_expect_null(t);
        cr_expect(!strncmp(err.msg, "DIR/", 4) && strstr(err.msg, bad[i].why), "case %zu: %s", i,
                  err.msg);
        tokenizer_close(t);
    }
}

Test(tokenizer, refuses_a_missing_folder)
{
    struct tokenizer *t = NULL;
    struct err err;
    cr_assert_eq(tokenizer_open(&t, "no/such/folder", &err), ERR_IO);
    cr_assert_null(t);
    cr_assert(strstr(err.msg, "no/such/folder/vocab.json"), "%s", err.msg);
}

Test(tokenizer, refuses_text)
{
    static const char *const bad[] = {"\x80",
                                      "a\xff",
                                      "\xc3",
                                      "\xe2\x82",
                                      "\xc0\x80",
                                      "\xed\xa0\x80",
                                      "\xf4\x90\x80\x80",
                                      "\xf0\x80\x80\x80"};
    struct tokenizer *t = open_at(DEMO);
    struct tokens ids = {0};
    struct err err;

    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_expect_eq(tokenizer_encode(t, bad[i], -1, &ids, &err), ERR_ARG, "case %zu", i);
    char *big = malloc(TEXT_MAX + 2);
    memset(big, 'a', TEXT_MAX + 1);
    big[TEXT_MAX + 1] = 0;
    cr_expect_eq(tokenizer_encode(t, big, -1, &ids, &err), ERR_ARG);
    char marks[2 * 257 + 2] = "e";
    for (int i = 0; i < 257; i++)
        strcat(marks, i % 2 ? "\xcc\xa3" : "\xcc\x81");
    cr_expect_eq(tokenizer_encode(t, marks, -1, &ids, &err), ERR_ARG);
    cr_expect(strstr(err.msg, "combining marks"), "%s", err.msg);
    marks[strlen(marks) - 2] = 0;
    cr_expect_eq(tokenizer_encode(t, marks, -1, &ids, &err), 0, "%s", err.msg);
    free(big);
    tokens_release(&ids);
    tokenizer_close(t);
}

/* ---- size and chance ------------------------------------------------------------------------ */

/* A word of a megabyte: each step must be cheap for this to end. */
Test(tokenizer, a_very_long_word)
{
    struct tokenizer *t = open_at(DEMO);
    struct tokens ids = {0}, part = {0};
    char *big = malloc(TEXT_MAX);

    for (size_t i = 0; i < TEXT_MAX; i++)
        big[i] = "roro"[i % 4];
    encode(t, big, TEXT_MAX, &ids);
    encode(t, "roro", 4, &part);
    /* "r o" is a merge: the inside is one token for two letters. */
    cr_assert_eq(ids.n, TEXT_MAX / 2 + (part.n == 3));
    for (size_t i = 0; i + 2 < ids.n; i++)
        cr_assert_eq(ids.id[i], tokenizer_id(t, "ro"));
    free(big);
    tokens_release(&ids);
    tokens_release(&part);
    tokenizer_close(t);
}

Test(tokenizer, many_words_are_words)
{
    struct tokenizer *t = open_at(DEMO);
    struct tokens one = {0}, all = {0};
    static const char word[] = "Dragon's castle, 3 owls! ";
    const size_t n = 2500; /* 10,000 words and signs */
    char *text = malloc(n * (sizeof word - 1));

    for (size_t i = 0; i < n; i++)
        memcpy(text + i * (sizeof word - 1), word, sizeof word - 1);
    encode(t, word, sizeof word - 1, &one);
    encode(t, text, n * (sizeof word - 1), &all);
    cr_assert_eq(all.n, n * one.n);
    for (size_t i = 0; i < all.n; i++)
        cr_assert_eq(all.id[i], one.id[i % one.n]);
    free(text);
    tokens_release(&one);
    tokens_release(&all);
    tokenizer_close(t);
}

/* The next of a fixed row of numbers without much order. */
static unsigned chance(unsigned *seed)
{
    *seed = *seed * 1664525 + 1013904223;
    return *seed >> 8;
}

/* Writes c, which is no surrogate, as UTF-8. */
static size_t put(char *s, unsigned c)
{
    static const unsigned char lead[] = {0, 0, 0xc0, 0xe0, 0xf0};
    size_t n = c < 0x80 ? 1 : c < 0x800 ? 2 : c < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, c >>= 6)
        s[i] = (char)(0x80 | (c & 0x3f));
    s[0] = (char)(lead[n] | c);
    return n;
}

Test(tokenizer, random_text)
{
    static const unsigned below[] = {0x80, 0x400, 0xd800, 0x110000};
    struct tokenizer *t = open_at(DEMO);
    struct tokens ids = {0};
    struct err err;
    unsigned seed = 1, refused = 0;
    char text[256];

    for (int i = 0; i < 20000; i++) {
        size_t n = 0, chars = chance(&seed) % 40;
        for (size_t j = 0; j < chars; j++) {
            unsigned c = chance(&seed) % below[chance(&seed) % 4];
            n += put(text + n, c >= 0xd800 && c < 0xe000 ? 'x' : c);
        }
        /* Every fourth text has a byte somewhere that may not be UTF-8. */
        if (i % 4 == 0 && n > 0)
            text[chance(&seed) % n] = (char)chance(&seed);
        ids.n = 0;
        int rc = tokenizer_encode(t, text, (ptrdiff_t)n, &ids, &err);
        cr_assert(rc == 0 || (rc == ERR_ARG && i % 4 == 0));
        refused += rc != 0;
        for (size_t j = 0; j < ids.n; j++)
            cr_assert(ids.id[j] >= 0 && ids.id[j] < tokenizer_size(t));
        /* A token has a byte or more; NFC and lower case make at most three times as many. */
        cr_assert_leq(ids.n, 3 * n);
    }
    cr_assert(refused > 1000 && refused < 5000);
    tokens_release(&ids);
    tokenizer_close(t);
}
