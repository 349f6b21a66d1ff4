#include "prompt.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define CHUNKS_MAX 4096
#define LENGTH_MAX 4096
/* How many tokens may move to the next chunk with the comma before them. */
#define BACKTRACK 20

/* A chunk being filled, and those that are full. After A1111's tokenize_line. */
struct filler {
    struct prompt_chunks *out;
    const struct tokenizer *t;
    struct words *words; /* or NULL */
    struct err *err;
    int cap;            /* chunks out has room for */
    int room, n, comma; /* tokens a chunk may have and has; place of its last comma, or -1 */
    int32_t *id;        /* [room] */
    float *weight;      /* [room] */
};

static int reserve(struct prompt_chunks *c, int *cap, int n, struct err *err)
{
    if (n > CHUNKS_MAX)
        return err_set(err, ERR_ARG, "prompt: more than %d chunks of tokens", CHUNKS_MAX);
    if (n <= *cap)
        return 0;
    int want = n < 2 * *cap ? 2 * *cap : n;
    size_t count = (size_t)want * (size_t)c->length;
    int32_t *id = realloc(c->id, count * sizeof *id);
    if (id)
        c->id = id;
    float *weight = realloc(c->weight, count * sizeof *weight);
    if (weight)
        c->weight = weight;
    if (!id || !weight)
        return err_nomem(err, count * (sizeof *id + sizeof *weight));
    *cap = want;
    return 0;
}

/* Appends the chunk of n tokens; there is room. Where padding is a token of its own, everything
 * after the first end token is padding. */
static void append(struct prompt_chunks *c, const struct tokenizer *t, const int32_t *id,
                   const float *weight, int n)
{
    int32_t eos = tokenizer_eos(t), pad = tokenizer_pad(t);
    int32_t *row = c->id + (size_t)c->n_chunk * (size_t)c->length;
    float *w = c->weight + (size_t)c->n_chunk * (size_t)c->length;

    row[0] = tokenizer_bos(t);
    w[0] = 1;
    for (int i = 1; i < c->length; i++) {
        row[i] = eos;
        w[i] = 1;
    }
    for (int i = 0; i < n; i++) {
        row[i + 1] = id[i];
        w[i + 1] = weight[i];
        c->weighted |= weight[i] != 1;
    }
    int end = 0;
    while (row[end] != eos)
        end++;
    for (int i = end + 1; pad != eos && i < c->length; i++)
        row[i] = pad;
    c->n_chunk++;
}

static int next_chunk(struct filler *f)
{
    int rc = reserve(f->out, &f->cap, f->out->n_chunk + 1, f->err);
    if (rc < 0)
        return rc;
    append(f->out, f->t, f->id, f->weight, f->n);
    f->n = 0;
    f->comma = -1;
    return 0;
}

/* Room for one more: begins a new chunk when this one is full, and takes along what stands after a comma
 * not far back. */
static int make_room(struct filler *f, bool is_comma)
{
    int rc = 0;

    if (is_comma) {
        f->comma = f->n;
    } else if (f->n == f->room && f->comma >= 0 && f->n - f->comma <= BACKTRACK) {
        int first = f->comma + 1, moved = f->n - first;
        f->n = first;
        if ((rc = next_chunk(f)) < 0)
            return rc;
        memmove(f->id, f->id + first, (size_t)moved * sizeof *f->id);
        memmove(f->weight, f->weight + first, (size_t)moved * sizeof *f->weight);
        f->n = moved;
    }
    return f->n == f->room ? next_chunk(f) : 0;
}

/* All places of a word, which never part. */
static int add_word(struct filler *f, int word, float weight)
{
    int32_t first = 0;
    int n = 0, rc = words_use(f->words, word, &first, &n, f->err);
    rc = rc < 0 ? rc : make_room(f, false);
    if (rc == 0 && n > f->room)
        rc = err_set(f->err, ERR_ARG, "prompt: '%.100s' has %d vectors, %d are the most",
                     words_name(f->words, word), n, f->room);
    if (rc == 0 && n > f->room - f->n)
        rc = next_chunk(f);
    for (int i = 0; i < n && rc == 0; i++) {
        f->id[f->n] = first - i;
        f->weight[f->n++] = weight;
    }
    return rc;
}

/* Tokens of a text, and the words that are found by their tokens. */
static int add_tokens(struct filler *f, const char *text, size_t n, float weight,
                      struct tokens *tokens)
{
    int32_t comma = tokenizer_id(f->t, ",</w>");
    int len, rc;

    tokens->n = 0;
    rc = tokenizer_encode(f->t, text, (ptrdiff_t)n, tokens, f->err);
    for (size_t j = 0; j < tokens->n && rc == 0; j += (size_t)len) {
        int word = words_at_tokens(f->words, tokens->id + j, tokens->n - j, &len);
        if (word >= 0) {
            rc = add_word(f, word, weight);
            continue;
        }
        len = 1;
        rc = make_room(f, tokens->id[j] == comma);
        if (rc == 0) {
            f->id[f->n] = tokens->id[j];
            f->weight[f->n++] = weight;
        }
    }
    return rc;
}

static int add_text(struct filler *f, const char *text, float weight, struct tokens *tokens)
{
    size_t n = strlen(text), at = 0;
    struct words_hit hit = {0};
    int rc = 0;

    do {
        rc = words_next(f->words, text, at, n, &hit, f->err);
        rc = rc < 0 ? rc : add_tokens(f, text + at, hit.begin - at, weight, tokens);
        rc = rc < 0 || hit.word < 0 ? rc : add_word(f, hit.word, weight);
        at = hit.end;
    } while (rc == 0 && hit.word >= 0);
    return rc;
}

static int fill(struct filler *f, const struct prompt_spans *spans, struct tokens *tokens)
{
    int rc = 0;

    for (size_t i = 0; i < spans->n && rc == 0; i++) {
        const struct prompt_span *s = &spans->span[i];
        rc = s->is_break ? next_chunk(f) : add_text(f, s->text, (float)s->weight, tokens);
    }
    if (rc < 0)
        return rc;
    return f->n > 0 || f->out->n_chunk == 0 ? next_chunk(f) : 0;
}

int prompt_chunks_make(struct prompt_chunks *out, const struct tokenizer *t, struct words *words,
                       const char *text, int length, struct err *err)
{
    struct filler f = {
        .out = out, .t = t, .words = words, .err = err, .room = length - 2, .comma = -1};
    struct prompt_spans spans = {0};
    struct tokens tokens = {0};
    int rc;

    *out = (struct prompt_chunks){.length = length};
    if (length < 3 || length > LENGTH_MAX)
        return err_set(err, ERR_ARG, "prompt: chunks of %d tokens, not 3 to %d", length,
                       LENGTH_MAX);
    f.id = malloc((size_t)f.room * sizeof *f.id);
    f.weight = malloc((size_t)f.room * sizeof *f.weight);
    if (!f.id || !f.weight)
        rc = err_nomem(err, (size_t)f.room * (sizeof *f.id + sizeof *f.weight));
    else if ((rc = prompt_spans_parse(&spans, text, err)) == 0)
        rc = fill(&f, &spans, &tokens);
    if (rc < 0)
        prompt_chunks_release(out);
    prompt_spans_release(&spans);
    tokens_release(&tokens);
    free(f.id);
    free(f.weight);
    return rc;
}

int prompt_chunks_pad(struct prompt_chunks *c, const struct tokenizer *t, int n, struct err *err)
{
    int cap = c->n_chunk, rc;

    if (n <= c->n_chunk)
        return 0;
    if ((rc = reserve(c, &cap, n, err)) < 0)
        return rc;
    while (c->n_chunk < n)
        append(c, t, NULL, NULL, 0);
    return 0;
}

void prompt_chunks_release(struct prompt_chunks *c)
{
    free(c->id);
    free(c->weight);
    *c = (struct prompt_chunks){0};
}
