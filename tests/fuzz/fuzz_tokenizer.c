/* Fuzzes the tokenizer. The first byte chooses what the rest is: a text for a small vocabulary;
 * the five files one after another; or a recipe for a vocabulary, special tokens and a text for
 * them. */
#include "unet/text.h"
#include "unet/tokenizer.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define SPECIAL "\"<|startoftext|>\":0,\"<|endoftext|>\":1"

/* What an input is read from. */
struct input {
    const uint8_t *p;
    size_t n;
};

static uint8_t take(struct input *in)
{
    if (in->n == 0)
        return 0;
    in->n--;
    return *in->p++;
}

static void check_text(const struct tokenizer *t, const char *text, size_t n)
{
    struct tokens ids = {0};
    struct err err;
    int rc = tokenizer_encode(t, text, (ptrdiff_t)n, &ids, &err);

    assert(rc == 0 || *err.msg);
    assert(rc == 0 || rc == ERR_ARG || rc == ERR_NOMEM);
    for (size_t i = 0; i < ids.n; i++)
        assert(ids.id[i] >= 0 && ids.id[i] < tokenizer_size(t));
    if (rc == 0)
        assert(ids.n <= 3 * n && text_check(text, n, "text", NULL) == 0);
    tokens_release(&ids);
}

static void check_vocabulary(const struct tokenizer *t)
{
    const int32_t special[] = {tokenizer_bos(t), tokenizer_eos(t), tokenizer_pad(t)};

    for (int i = 0; i < 3; i++)
        assert(special[i] >= 0 && special[i] < tokenizer_size(t));
    for (int32_t i = 0; i < tokenizer_size(t); i++)
        assert(tokenizer_token(t, i) && tokenizer_id(t, tokenizer_token(t, i)) == i);
}

/* The five files, each up to a byte 0xff, which no UTF-8 has; what is left is text. */
static void five_files(struct input *in)
{
    struct tokenizer_files f = {0};
    struct tokenizer_file *file[] = {&f.vocab, &f.merges, &f.special, &f.config, &f.added};
    struct tokenizer *t = NULL;
    struct err err;

    for (int i = 0; i < 5; i++) {
        const uint8_t *end = in->n ? memchr(in->p, 0xff, in->n) : NULL;
        size_t n = end ? (size_t)(end - in->p) : in->n;
        *file[i] = (struct tokenizer_file){(const char *)in->p, n};
        if (i > 1 && n == 0)
            file[i]->text = NULL;
        in->p += n + (end != NULL);
        in->n -= n + (end != NULL);
    }
    if (!f.vocab.text || !f.merges.text)
        return;
    int rc = tokenizer_parse(&t, &f, "five", &err);
    assert((rc == 0) == (t != NULL));
    if (t) {
        check_vocabulary(t);
        check_text(t, (const char *)in->p, in->n);
    } else {
        assert(*err.msg);
    }
    tokenizer_close(t);
}

/* One special token's entry in a file. */
static size_t put_special(struct input *in, char *out, size_t size, const char *sep)
{
    static const char *const keys[] = {"bos_token", "eos_token",  "pad_token",
                                       "unk_token", "mask_token", "x"};
    static const char *const values[] = {
        "\"<|endoftext|>\"",
        "\"<|startoftext|>\"",
        "\"!\"",
        "\"a\"",
        "\"<A>\"",
        "null",
        "7",
        "{\"content\":\"<|endoftext|>\",\"normalized\":true}",
        "{\"content\":\"a\",\"normalized\":false,\"special\":true}",
        "{\"content\":\"<A>\"}",
        "{\"content\":\"b\",\"single_word\":true}"};
    const char *key = keys[take(in) % 6], *value = values[take(in) % 11];
    return (size_t)snprintf(out, size, "%s\"%s\":%s", sep, key, value);
}

/* A vocabulary of a few letters and what some bytes make of them, in which nearly all is in
 * order. */
static void recipe(struct input *in)
{
    char token[64][40] = {"a", "b", "a</w>", "b</w>", "!", "<</w>"}, vocab[8192], merges[8192];
    char config[2048] = "{", special[512] = "{", added[256];
    struct tokenizer *t = NULL;
    int n = 6, w = 0, m = 0;
    size_t c = 1, s = 1;

    merges[0] = 0;
    for (int i = take(in) % 48; i > 0; i--) {
        const char *left = token[take(in) % n], *right = token[take(in) % n];
        char made[80];
        int len = snprintf(made, sizeof made, "%s%s", left, right), k = 0;
        if (len >= 40)
            continue;
        while (k < n && strcmp(token[k], made))
            k++;
        if (k == n && n < 60)
            strcpy(token[n++], made);
        m += snprintf(merges + m, sizeof merges - (size_t)m, "%s %s\n", left, right);
    }
    w = snprintf(vocab, sizeof vocab, "{" SPECIAL);
    for (int k = 0; k < n; k++)
        w += snprintf(vocab + w, sizeof vocab - (size_t)w, ",\"%s\":%d", token[k], k + 2);
    strcat(vocab, "}");
    for (int i = take(in) % 4, first = 1; i > 0; i--, first = 0)
        c += put_special(in, config + c, sizeof config - c, first ? "" : ",");
    if (take(in) % 3 == 0)
        c += (size_t)snprintf(config + c, sizeof config - c,
                              "%s\"added_tokens_decoder\":{\"%d\":{\"content\":\"<A>\","
                              "\"normalized\":%s},\"%d\":{\"content\":\"ba\"}}",
                              c > 1 ? "," : "", n + 2, take(in) % 2 ? "true" : "false", n + 3);
    if (take(in) % 3 == 0)
        c += (size_t)snprintf(config + c, sizeof config - c,
                              "%s\"additional_special_tokens\":[\"ab\",{\"content\":\"<A>\"}]",
                              c > 1 ? "," : "");
    strcat(config, "}");
    for (int i = take(in) % 3, first = 1; i > 0; i--, first = 0)
        s += put_special(in, special + s, sizeof special - s, first ? "" : ",");
    strcat(special, "}");
    snprintf(added, sizeof added, "{\"<A>\":%d,\"ab\":%d}", n + 2, n + 3);
    struct tokenizer_files f = {.vocab = {vocab, strlen(vocab)},
                                .merges = {merges, strlen(merges)}};
    uint8_t which = take(in);
    if (which & 1)
        f.config = (struct tokenizer_file){config, strlen(config)};
    if (which & 2)
        f.special = (struct tokenizer_file){special, strlen(special)};
    if (which & 4)
        f.added = (struct tokenizer_file){added, strlen(added)};
    if (tokenizer_parse(&t, &f, "recipe", NULL) == 0) {
        check_vocabulary(t);
        check_text(t, (const char *)in->p, in->n);
    }
    tokenizer_close(t);
}

/* A text of pieces that mean something, for a vocabulary that stays. */
static void pieces(const struct tokenizer *t, struct input *in)
{
    static const char *const piece[] = {"a",
                                        "b",
                                        "B",
                                        " ",
                                        "'s",
                                        "'LL",
                                        "1",
                                        "!",
                                        "<|endoftext|>",
                                        "<|EndOfText|>",
                                        "<|startoftext|>",
                                        "\xc4\xb0",
                                        "\xce\xa3",
                                        "e\xcc\x81",
                                        "\xcc\xa3",
                                        "\xe1\x86\xa7",
                                        "\xea\xb0\x80",
                                        "\xe3\x80\x80",
                                        "\xf0\x90\xb5\x90",
                                        "\xf0\x9f\x98\x82",
                                        "\xe0\xa2\x97",
                                        "\xef\xac\x81",
                                        "\xc3\x85",
                                        "\n"};
    const size_t n_piece = sizeof piece / sizeof *piece;
    char *text = malloc(16 * in->n + 1);
    size_t n = 0;

    if (!text)
        return;
    while (in->n > 0) {
        const char *p = piece[take(in) % n_piece];
        memcpy(text + n, p, strlen(p));
        n += strlen(p);
    }
    check_text(t, text, n);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static const char vocab[] = "{" SPECIAL ",\"a\":2,\"b</w>\":3,\"ab</w>\":4,\"aa\":5,\"!\":6}";
    static const char merges[] = "#version: 0.2\na b</w>\na a\n";
    static const char config[] =
        "{\"pad_token\":\"!\",\"eos_token\":{\"content\":\"<|endoftext|>\","
        "\"normalized\":true}}";
    static struct tokenizer *t;
    struct input in = {data, size};

    if (!t) {
        struct tokenizer_files f = {.vocab = {vocab, sizeof vocab - 1},
                                    .merges = {merges, sizeof merges - 1},
                                    .config = {config, sizeof config - 1}};
        int rc = tokenizer_parse(&t, &f, "small", NULL);
        assert(rc == 0);
        if (rc < 0)
            return 0;
    }
    switch (take(&in) % 4) {
    case 0: check_text(t, (const char *)in.p, in.n); break;
    case 1: five_files(&in); break;
    case 2: recipe(&in); break;
    default: pieces(t, &in);
    }
    return 0;
}
