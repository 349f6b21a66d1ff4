/* tokenizer.h: text to CLIP token ids, from a model's own vocab.json and merges.txt.
 *
 * Agrees with the fast CLIPTokenizer of transformers 5: NFC, white space to one blank, lower
 * case, CLIP's pattern, byte-level BPE with "</w>" at word ends; special tokens are recognised
 * in the text. It knows nothing of weights or chunks: see prompt.h.
 *
 *     struct tokenizer *t;
 *     tokenizer_open(&t, "model/tokenizer", &err);
 *     struct tokens ids = {0};
 *     tokenizer_encode(t, "a red apple", -1, &ids, &err);      // no start, no end token
 *     tokens_release(&ids);
 */
#ifndef WEFT_TOKENIZER_H
#define WEFT_TOKENIZER_H

#include "err.h"

#include <stddef.h>
#include <stdint.h>

struct tokenizer;

struct tokens {
    int32_t *id; /* owned, grows */
    size_t n, cap;
};

/* A file's bytes; NULL where there is no such file. */
struct tokenizer_file {
    const char *text;
    size_t size;
};

/* What a tokenizer's folder holds. The first two must be there. */
struct tokenizer_files {
    struct tokenizer_file vocab;   /* vocab.json */
    struct tokenizer_file merges;  /* merges.txt */
    struct tokenizer_file special; /* special_tokens_map.json */
    struct tokenizer_file config;  /* tokenizer_config.json */
    struct tokenizer_file added;   /* added_tokens.json */
};

/* dir holds vocab.json and merges.txt; special_tokens_map.json, tokenizer_config.json and
 * added_tokens.json say which tokens start, end and pad, and which are added, where they are
 * there. */
int tokenizer_open(struct tokenizer **out, const char *dir, struct err *err);
/* The same from memory, of which nothing is kept. dir is for messages. */
int tokenizer_parse(struct tokenizer **out, const struct tokenizer_files *files, const char *dir,
                    struct err *err);
void tokenizer_close(struct tokenizer *t);

/* Appends the ids of text (UTF-8, len bytes, -1: to its NUL). Text that is not UTF-8 or longer than
 * 1 MiB is an error. May be called from several threads at once. */
int tokenizer_encode(const struct tokenizer *t, const char *text, ptrdiff_t len, struct tokens *ids,
                     struct err *err);
/* The token's text as the vocabulary spells it, or NULL. */
const char *tokenizer_token(const struct tokenizer *t, int32_t id);
/* The id the vocabulary gives that spelling, or -1. */
int32_t tokenizer_id(const struct tokenizer *t, const char *token);

int32_t tokenizer_bos(const struct tokenizer *t);
int32_t tokenizer_eos(const struct tokenizer *t);
int32_t tokenizer_pad(const struct tokenizer *t);
/* Number of ids: they are 0 … size - 1. */
int tokenizer_size(const struct tokenizer *t);

int tokens_push(struct tokens *t, int32_t id, struct err *err);
void tokens_release(struct tokens *t);

#endif
