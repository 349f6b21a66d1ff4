/* tokenizer_data.h: what a tokenizer is made of, for tokenizer.c, tokenizer_load.c and
 * tokenizer_special.c alone. */
#ifndef WEFT_TOKENIZER_DATA_H
#define WEFT_TOKENIZER_DATA_H

#include "tokenizer.h"

#include <jansson.h>
#include <stdbool.h>

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

/* A pair of tokens that becomes one. Sorted by left, then right. */
struct merge {
    int32_t left, right, made;
    uint32_t rank; /* place in merges.txt: the smallest goes first */
};

/* Where the flags of an added token are from. */
enum added_from {
    ADDED_NAMED,  /* a file names it as a special token, no list of added tokens has it */
    ADDED_LISTED, /* added_tokens_decoder: those flags stay */
    ADDED_VAGUE,  /* added_tokens_decoder, which does not say whether it is folded */
    ADDED_PLAIN,  /* added_tokens.json, which has no flags */
};

/* A token that is found in the text whole, before any word is looked at. */
struct added {
    char *text;    /* owned */
    char *match;   /* owned; what is looked for: text, or its folded form where folded is set */
    size_t length; /* of match */
    int32_t id;    /* -1 until it is known */
    bool folded;   /* looked for in the text after it has been folded */
    enum added_from from;
};

struct tokenizer {
    json_t *vocab;      /* vocab.json: the way from a token to its id, and owner of the names */
    const char **token; /* [n_vocab + new added tokens], borrowed from vocab or added */
    int size, n_vocab;
    struct merge *merge;
    uint32_t
        *first; /* [n_vocab + 1]: merge[first[l]] … merge[first[l + 1] - 1] have l on the left */
    struct added *added; /* longest match first */
    size_t n_added;
    int32_t bos, eos, unk, pad;
    int32_t byte[256], last[256]; /* ids of a byte inside a word and at its end; -1: none */
    pcre2_code *words;
};

/* A file that is a JSON object; *out is left alone where there is no such file. */
int tokenizer_load_json(json_t **out, const struct tokenizer_file *file, const char *dir,
                        const char *name, struct err *err);
/* vocab.json and merges.txt into t. */
int tokenizer_load(struct tokenizer *t, const struct tokenizer_files *files, const char *dir,
                   struct err *err);
/* The other files into t, which has its vocabulary. */
int tokenizer_load_special(struct tokenizer *t, const struct tokenizer_files *files,
                           const char *dir, struct err *err);

#endif
