#include "words.h"

#include "text.h"

#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define VECTORS_MAX 1000000

struct word {
    char *name, *why; /* why it is refused, or NULL */
    size_t n_name;
    struct tokens tokens; /* of the name */
    size_t first;         /* of its vectors */
    int n;                /* places */
    int layers;           /* vectors, of a word of one place, or 1 */
    bool odd;             /* begins or ends with a sign */
    bool used;
};

struct words {
    const struct tokenizer *t;
    int width;
    struct word *word;
    int n;
    float *vec; /* [n_vec, width] */
    size_t n_vec;
};

int words_new(struct words **out, const struct tokenizer *t, int width, struct err *err)
{
    struct words *w = calloc(1, sizeof *w);
    *out = w;
    if (!w)
        return err_nomem(err, sizeof *w);
    w->t = t;
    w->width = width;
    return 0;
}

static void word_release(struct word *p)
{
    free(p->name);
    free(p->why);
    tokens_release(&p->tokens);
}

void words_free(struct words *w)
{
    if (!w)
        return;
    for (int i = 0; i < w->n; i++)
        word_release(&w->word[i]);
    free(w->word);
    free(w->vec);
    free(w);
}

static int read_name(struct word *p, const struct tokenizer *t, const char *name, struct err *err)
{
    int len, rc = text_check(name, strlen(name), "name of an embedding", err);
    if (rc < 0)
        return rc;
    p->n_name = strlen(name);
    if (!(p->name = strdup(name)))
        return err_nomem(err, p->n_name);
    if ((rc = tokenizer_encode(t, name, -1, &p->tokens, err)) < 0)
        return rc;
    if (p->tokens.n == 0)
        return err_set(err, ERR_ARG, "an embedding needs a name that a prompt can have, not '%s'",
                       name);
    p->odd =
        !text_is_word(text_char(name, &len)) || !text_is_word(text_char_before(name + p->n_name));
    return 0;
}

/* Adds a word of n places whose vectors are already there, or that is refused. */
static int add(struct words *w, const char *name, int n, int layers, const char *why,
               struct err *err)
{
    struct word new = {.first = w->n_vec, .n = n, .layers = layers};
    if (words_find(w, name) >= 0)
        return err_set(err, ERR_ARG, "two embeddings are called '%.100s'", name);
    struct word *p = realloc(w->word, ((size_t)w->n + 1) * sizeof *p);
    if (!p)
        return err_nomem(err, ((size_t)w->n + 1) * sizeof *p);
    w->word = p;
    int rc = read_name(&new, w->t, name, err);
    if (rc == 0 && why && !(new.why = strdup(why)))
        rc = err_nomem(err, strlen(why));
    if (rc < 0) {
        word_release(&new);
        return rc;
    }
    p[w->n++] = new;
    w->n_vec += (size_t)n * (size_t)layers;
    return 0;
}

/* n vectors for n places, or for one where they are a layer's each. */
static int add_vectors(struct words *w, const char *name, const float *vec, int n, int width,
                       bool layered, struct err *err)
{
    if (width != w->width)
        return err_set(err, ERR_MISMATCH,
                       "the embedding '%.100s' has vectors of %d values, this model's text encoder "
                       "takes %d (768 is Stable Diffusion 1, 1024 is 2): it was made for another "
                       "base",
                       name, width, w->width);
    if (n < 1 || w->n_vec + (size_t)n > VECTORS_MAX)
        return err_set(err, ERR_ARG, "the embedding '%.100s' has %d vectors", name, n);
    for (int i = 0; layered && i < w->n; i++)
        if (w->word[i].layers > 1 && w->word[i].layers != n)
            return err_set(err, ERR_MISMATCH,
                           "the embedding '%.100s' has vectors for %d cross attentions, '%.100s' "
                           "for %d: they were made for different bases",
                           name, n, w->word[i].name, w->word[i].layers);
    size_t row = (size_t)w->width, count = (w->n_vec + (size_t)n) * row;
    float *all = realloc(w->vec, count * sizeof *all);
    if (!all)
        return err_nomem(err, count * sizeof *all);
    w->vec = all;
    memcpy(all + w->n_vec * row, vec, (size_t)n * row * sizeof *all);
    return layered ? add(w, name, 1, n, NULL, err) : add(w, name, n, 1, NULL, err);
}

int words_add(struct words *w, const char *name, const float *vec, int n, int width,
              struct err *err)
{
    return add_vectors(w, name, vec, n, width, false, err);
}

int words_add_layered(struct words *w, const char *name, const float *vec, int n_layer, int width,
                      struct err *err)
{
    return add_vectors(w, name, vec, n_layer, width, true, err);
}

int words_add_refused(struct words *w, const char *name, const char *why, struct err *err)
{
    int i = words_find(w, name);
    char *copy = i < 0 ? NULL : strdup(why);
    if (i < 0)
        return add(w, name, 0, 1, why, err);
    if (!copy)
        return err_nomem(err, strlen(why));
    free(w->word[i].why);
    w->word[i].why = copy;
    return 0;
}

int words_count(const struct words *w)
{
    return w->n;
}

const char *words_name(const struct words *w, int i)
{
    return w->word[i].name;
}

int words_width(const struct words *w)
{
    return w->width;
}

bool words_used(const struct words *w, int i)
{
    return w->word[i].used;
}

int words_find(const struct words *w, const char *name)
{
    for (int i = 0; i < w->n; i++)
        if (!strcmp(w->word[i].name, name))
            return i;
    return -1;
}

int words_at_tokens(const struct words *w, const int32_t *ids, size_t n, int *len)
{
    int best = -1;
    *len = 0;
    for (int i = 0; w && i < w->n; i++) {
        const struct tokens *t = &w->word[i].tokens;
        if (t->n > (size_t)*len && t->n <= n && !memcmp(ids, t->id, t->n * sizeof *ids)) {
            best = i;
            *len = (int)t->n;
        }
    }
    return best;
}

/* ---- by letters ------------------------------------------------------------------------------- */

/* No letter of the text may run on where the name has one. */
static bool stands_alone(const char *text, size_t n, size_t begin, size_t end)
{
    int len;
    bool before = begin > 0 && text_is_word(text_char_before(text + begin));
    bool after = end < n && text_is_word(text_char(text + end, &len));
    return !(before && text_is_word(text_char(text + begin, &len))) &&
           !(after && text_is_word(text_char_before(text + end)));
}

/* The longest name that stands at text[at], or -1. */
static int longest(const struct words *w, const char *text, size_t at, size_t n, bool odd_only,
                   size_t *end)
{
    int best = -1;
    for (int i = 0; w && i < w->n; i++) {
        const struct word *p = &w->word[i];
        if ((odd_only && !p->odd) || p->n_name > n - at ||
            strncasecmp(text + at, p->name, p->n_name) ||
            !stands_alone(text, n, at, at + p->n_name) || (best >= 0 && at + p->n_name <= *end))
            continue;
        best = i;
        *end = at + p->n_name;
    }
    return best;
}

int words_next(const struct words *w, const char *text, size_t at, size_t n, struct words_hit *hit,
               struct err *err)
{
    static const char prefix[] = "embedding:";
    const size_t k = sizeof prefix - 1;
    for (int len; at < n; at += (size_t)len) {
        text_char(text + at, &len);
        hit->begin = at;
        hit->word = longest(w, text, at, n, true, &hit->end);
        if (hit->word >= 0)
            return 0;
        int next;
        if (n - at <= k || strncasecmp(text + at, prefix, k) ||
            !stands_alone(text, n, at, at + k) || text_is_space(text_char(text + at + k, &next)))
            continue;
        hit->word = longest(w, text, at + k, n, false, &hit->end);
        if (hit->word >= 0)
            return 0;
        size_t shown = at + k;
        while (shown < n && !text_is_space(text_char(text + shown, &next)))
            shown += (size_t)next;
        return err_set(err, ERR_ARG, "prompt: no embedding '%.*s'; --embedding FILE gives one",
                       text_shown(text + at + k, shown - at - k, 60), text + at + k);
    }
    *hit = (struct words_hit){-1, n, n};
    return 0;
}

int words_use(struct words *w, int i, int32_t *first, int *n, struct err *err)
{
    struct word *p = &w->word[i];
    if (p->why)
        return err_set(err, ERR_UNSUPPORTED, "prompt: '%.100s': %s", p->name, p->why);
    p->used = true;
    *first = -1 - (int32_t)p->first;
    *n = p->n;
    return 0;
}

int words_layers(const struct words *w, int32_t id)
{
    size_t row = (size_t)(-1 - (int64_t)id);
    for (int i = 0; w && id < 0 && i < w->n; i++)
        if (w->word[i].first == row && w->word[i].layers > 1)
            return w->word[i].layers;
    return 1;
}

const float *words_vector(const struct words *w, int32_t id, int layer)
{
    size_t row = (size_t)(-1 - (int64_t)id) + (layer < words_layers(w, id) ? (size_t)layer : 0);
    return w && id < 0 && row < w->n_vec ? w->vec + row * (size_t)w->width : NULL;
}
