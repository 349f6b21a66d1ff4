#include "tokenizer_data.h"

#include "text.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB_MAX (1 << 20)
#define TOKEN_MAX 1024 /* bytes of a token */

/* How a message about a line of merges.txt begins. */
#define IN "%s/merges.txt line %zu: "

int tokenizer_load_json(json_t **out, const struct tokenizer_file *file, const char *dir,
                        const char *name, struct err *err)
{
    json_error_t json;

    if (!file->text)
        return 0;
    *out = json_loadb(file->text, file->size, JSON_REJECT_DUPLICATES, &json);
    if (!*out) {
        /* jansson quotes what it could not read, which may be anything. */
        bool utf8 = text_check(json.text, strlen(json.text), "", NULL) == 0;
        return err_set(err, ERR_FORMAT, "%s/%s: line %d: %.*s", dir, name, json.line,
                       utf8 ? text_shown(json.text, strlen(json.text), 120) : 0, json.text);
    }
    if (!json_is_object(*out))
        return err_set(err, ERR_FORMAT, "%s/%s: not a JSON object", dir, name);
    return 0;
}

static int load_vocab(struct tokenizer *t, const struct tokenizer_file *file, const char *dir,
                      struct err *err)
{
    const char *name;
    json_t *value;
    int rc = tokenizer_load_json(&t->vocab, file, dir, "vocab.json", err);

    if (rc < 0)
        return rc;
    size_t n = json_object_size(t->vocab);
    if (n == 0 || n > VOCAB_MAX)
        return err_set(err, ERR_FORMAT, "%s/vocab.json: %zu tokens, not 1 to %d", dir, n,
                       VOCAB_MAX);
    t->token = calloc(n, sizeof *t->token);
    if (!t->token)
        return err_nomem(err, n * sizeof *t->token);
    t->n_vocab = t->size = (int)n;
    json_object_foreach(t->vocab, name, value)
    {
        json_int_t id = json_is_integer(value) ? json_integer_value(value) : -1;
        if (id < 0 || (size_t)id >= n)
            return err_set(err, ERR_FORMAT,
                           "%s/vocab.json: \"%.*s\" has no id from 0 to %zu, the number of tokens "
                           "less one",
                           dir, text_shown(name, strlen(name), 80), name, n - 1);
        if (t->token[id])
            return err_set(err, ERR_FORMAT,
                           "%s/vocab.json: \"%.*s\" and another token have the same id", dir,
                           text_shown(name, strlen(name), 80), name);
        if (strlen(name) > TOKEN_MAX)
            return err_set(err, ERR_FORMAT,
                           "%s/vocab.json: the token of id %d is longer than %d bytes", dir,
                           (int)id, TOKEN_MAX);
        t->token[id] = name;
    }
    return 0;
}

/* The ids of the 256 bytes. Byte-level BPE writes bytes as characters: those that print in Latin-1
 * as themselves, the others from U+0100 on, in order (GPT-2's bytes_to_unicode). */
static void load_bytes(struct tokenizer *t)
{
    int32_t next = 0x100;
    for (int32_t b = 0; b < 256; b++) {
        bool prints = (b >= 33 && b <= 126) || (b >= 161 && b <= 172) || b >= 174;
        int32_t c = prints ? b : next++;
        char name[8];
        if (c < 0x80)
            snprintf(name, sizeof name, "%c", (char)c);
        else
            snprintf(name, sizeof name, "%c%c", (char)(0xc0 | c >> 6), (char)(0x80 | (c & 0x3f)));
        t->byte[b] = tokenizer_id(t, name);
        strcat(name, "</w>");
        t->last[b] = tokenizer_id(t, name);
    }
}

/* One line "left right", without its end. */
static int parse_merge(const struct tokenizer *t, struct merge *m, const char *line, size_t n,
                       size_t number, const char *dir, struct err *err)
{
    char left[TOKEN_MAX + 1], right[TOKEN_MAX + 1], made[2 * TOKEN_MAX + 1];

    const char *blank = memchr(line, ' ', n);
    size_t n_left = blank ? (size_t)(blank - line) : n;
    size_t n_right = blank ? n - n_left - 1 : 0;
    if (!blank || memchr(blank + 1, ' ', n_right) || memchr(line, 0, n) || !n_left || !n_right)
        return err_set(err, ERR_FORMAT, IN "not two tokens with a blank between", dir, number);
    if (n_left > TOKEN_MAX || n_right > TOKEN_MAX)
        return err_set(err, ERR_FORMAT, IN "longer than any token", dir, number);
    snprintf(left, sizeof left, "%.*s", (int)n_left, line);
    snprintf(right, sizeof right, "%.*s", (int)n_right, blank + 1);
    snprintf(made, sizeof made, "%s%s", left, right);
    m->left = tokenizer_id(t, left);
    m->right = tokenizer_id(t, right);
    m->made = tokenizer_id(t, made);
    const char *lacks = m->left < 0 ? left : m->right < 0 ? right : m->made < 0 ? made : NULL;
    if (!lacks)
        return 0;
    bool utf8 = text_check(lacks, strlen(lacks), "", NULL) == 0;
    return err_set(err, ERR_FORMAT, IN "\"%.*s\" is not in vocab.json", dir, number,
                   utf8 ? text_shown(lacks, strlen(lacks), 80) : 0, lacks);
}

static int compare_merges(const void *a, const void *b)
{
    const struct merge *x = a, *y = b;
    if (x->left != y->left)
        return x->left < y->left ? -1 : 1;
    if (x->right != y->right)
        return x->right < y->right ? -1 : 1;
    return x->rank < y->rank ? -1 : x->rank > y->rank;
}

/* Sorts merge[n] and makes the index over it. Of a pair listed twice the later one counts, as in
 * the reference. */
static int index_merges(struct tokenizer *t, size_t n, struct err *err)
{
    size_t w = 0;

    if (n > 0)
        qsort(t->merge, n, sizeof *t->merge, compare_merges);
    for (size_t i = 0; i < n; i++) {
        struct merge *m = &t->merge[i];
        if (w > 0 && m->left == t->merge[w - 1].left && m->right == t->merge[w - 1].right)
            w--;
        t->merge[w++] = *m;
    }
    size_t n_first = (size_t)t->n_vocab + 1;
    t->first = calloc(n_first, sizeof *t->first);
    if (!t->first)
        return err_nomem(err, n_first * sizeof *t->first);
    for (size_t i = 0; i < w; i++)
        t->first[t->merge[i].left + 1]++;
    for (size_t i = 1; i < n_first; i++)
        t->first[i] += t->first[i - 1];
    return 0;
}

static int load_merges(struct tokenizer *t, const struct tokenizer_file *file, const char *dir,
                       struct err *err)
{
    const char *end = file->text + file->size;
    size_t lines = 1, n = 0, number = 0;
    int rc;

    for (const char *p = file->text; (p = memchr(p, '\n', (size_t)(end - p))) != NULL; p++)
        lines++;
    if (lines > VOCAB_MAX)
        return err_set(err, ERR_FORMAT, "%s/merges.txt: more than %d lines", dir, VOCAB_MAX);
    t->merge = calloc(lines, sizeof *t->merge);
    if (!t->merge)
        return err_nomem(err, lines * sizeof *t->merge);
    for (const char *p = file->text, *next; p < end; p = next) {
        const char *eol = memchr(p, '\n', (size_t)(end - p));
        next = eol ? eol + 1 : end;
        size_t len = (size_t)((eol ? eol : end) - p);
        if (eol && len > 0 && p[len - 1] == '\r')
            len--;
        number++;
        if (len >= 8 && !memcmp(p, "#version", 8))
            continue;
        if ((rc = parse_merge(t, &t->merge[n], p, len, number, dir, err)) < 0)
            return rc;
        t->merge[n].rank = (uint32_t)n;
        n++;
    }
    assert(n <= lines);
    return index_merges(t, n, err);
}

int tokenizer_load(struct tokenizer *t, const struct tokenizer_files *files, const char *dir,
                   struct err *err)
{
    int rc;
    if ((rc = load_vocab(t, &files->vocab, dir, err)) < 0)
        return rc;
    load_bytes(t);
    return load_merges(t, &files->merges, dir, err);
}
