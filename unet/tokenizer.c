#include "tokenizer_data.h"

#include "file.h"
#include "text.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define VOCAB_FILE_MAX  ((size_t)64 << 20)
#define CONFIG_FILE_MAX ((size_t)1 << 20)

/* ---- words into ids ------------------------------------------------------------------------- */

/* A piece of a word. Pieces form a list by place; a piece that was joined to its left is gone. */
struct piece {
    int32_t id;
    int32_t before, after; /* -1 at the ends */
    bool gone;
};

/* A pair that may be joined: the piece at `at` and the one after it. */
struct join {
    uint32_t rank;
    int32_t at, made;
};

/* One call of tokenizer_encode. */
struct encoder {
    const struct tokenizer *t;
    struct tokens *ids;
    struct err *err;
    pcre2_match_data *match;
    struct piece *piece; /* [cap] */
    struct join *heap;   /* [3 * cap], smallest first */
    size_t cap, n_heap;
};

static bool goes_before(const struct join *a, const struct join *b)
{
    return a->rank != b->rank ? a->rank < b->rank : a->at < b->at;
}

static void heap_push(struct encoder *e, struct join j)
{
    size_t i = e->n_heap++;
    while (i > 0 && goes_before(&j, &e->heap[(i - 1) / 2])) {
        e->heap[i] = e->heap[(i - 1) / 2];
        i = (i - 1) / 2;
    }
    e->heap[i] = j;
}

static struct join heap_pop(struct encoder *e)
{
    struct join top = e->heap[0], moved = e->heap[--e->n_heap];
    size_t i = 0, child;
    while ((child = 2 * i + 1) < e->n_heap) {
        if (child + 1 < e->n_heap && goes_before(&e->heap[child + 1], &e->heap[child]))
            child++;
        if (!goes_before(&e->heap[child], &moved))
            break;
        e->heap[i] = e->heap[child];
        i = child;
    }
    e->heap[i] = moved;
    return top;
}

/* The merge of two ids, or NULL. Ids beyond the vocabulary have none. */
static const struct merge *find_merge(const struct tokenizer *t, int32_t left, int32_t right)
{
    if (left >= t->n_vocab)
        return NULL;
    uint32_t lo = t->first[left], hi = t->first[left + 1];
    while (lo < hi) {
        uint32_t mid = lo + (hi - lo) / 2;
        if (t->merge[mid].right == right)
            return &t->merge[mid];
        if (t->merge[mid].right < right)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

/* Queues the joining of the piece at `at` with the next one, if they may be joined. */
static void consider(struct encoder *e, int32_t at)
{
    if (at < 0 || e->piece[at].after < 0)
        return;
    const struct merge *m = find_merge(e->t, e->piece[at].id, e->piece[e->piece[at].after].id);
    if (m)
        heap_push(e, (struct join){m->rank, at, m->made});
}

/* Joins what can be joined, the smallest rank first and of equals the leftmost, as the reference
 * does it: a queued pair still counts when its pieces have changed, if they now make the same
 * token. */
static void join_pieces(struct encoder *e, size_t n)
{
    e->n_heap = 0;
    for (size_t i = 0; i < n; i++)
        consider(e, (int32_t)i);
    while (e->n_heap > 0) {
        struct join j = heap_pop(e);
        struct piece *p = &e->piece[j.at];
        if (p->gone || p->after < 0)
            continue;
        struct piece *right = &e->piece[p->after];
        const struct merge *m = find_merge(e->t, p->id, right->id);
        if (!m || m->made != j.made)
            continue;
        p->id = m->made;
        right->gone = true;
        p->after = right->after;
        if (p->after >= 0)
            e->piece[p->after].before = j.at;
        consider(e, p->before);
        consider(e, j.at);
    }
}

static int reserve(struct encoder *e, size_t n)
{
    if (n <= e->cap)
        return 0;
    size_t cap = n < 64 ? 64 : n;
    struct piece *piece = realloc(e->piece, cap * sizeof *piece);
    if (piece)
        e->piece = piece;
    /* Each piece starts one join at most, and each join that is done starts two. */
    struct join *heap = realloc(e->heap, 3 * cap * sizeof *heap);
    if (heap)
        e->heap = heap;
    if (!piece || !heap)
        return err_nomem(e->err, cap * (sizeof *piece + 3 * sizeof *heap));
    e->cap = cap;
    return 0;
}

static int encode_word(struct encoder *e, const char *word, size_t n)
{
    const struct tokenizer *t = e->t;
    int rc = reserve(e, n);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < n; i++) {
        unsigned char b = (unsigned char)word[i];
        int32_t id = i + 1 < n ? t->byte[b] : t->last[b];
        e->piece[i] = (struct piece){.id = id < 0 ? t->unk : id,
                                     .before = (int32_t)i - 1,
                                     .after = i + 1 < n ? (int32_t)i + 1 : -1};
    }
    join_pieces(e, n);
    for (int32_t i = 0; i >= 0; i = e->piece[i].after)
        if ((rc = tokens_push(e->ids, e->piece[i].id, e->err)) < 0)
            return rc;
    return 0;
}

/* ---- text into words ------------------------------------------------------------------------ */

/* CLIP's pattern. The text has been folded, so a blank is its only white space. A special token
 * that is written out but not looked for whole is a word of its own, of which the byte level's
 * own pattern makes three: "<|", the name, "|>". */
static int compile_words(struct tokenizer *t, struct err *err)
{
    static const char form[] = "(<\\|(?:startoftext|endoftext)\\|>)|'s|'t|'re|'ve|'m|'ll|'d|"
                               "[\\p{L}%s]++|[\\p{N}%s]|[^ \\p{L}\\p{N}%s%s]++";
    PCRE2_UCHAR text[128];
    PCRE2_SIZE at;
    int code;
    char *pattern = NULL;

    if (asprintf(&pattern, form, text_more_letters, text_more_numbers, text_more_letters,
                 text_more_numbers) < 0)
        return err_nomem(err, sizeof form);
    t->words = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED, PCRE2_UTF | PCRE2_UCP,
                             &code, &at, NULL);
    free(pattern);
    if (!t->words) {
        pcre2_get_error_message(code, text, sizeof text);
        return err_set(err, ERR_UNSUPPORTED,
                       "PCRE2 cannot compile CLIP's pattern: %s; it must be built with UTF",
                       (char *)text);
    }
    /* A PCRE2 without a compiler for this machine matches all the same, only slower. */
    (void)pcre2_jit_compile(t->words, PCRE2_JIT_COMPLETE);
    return 0;
}

static int encode_words(struct encoder *e, const char *s, size_t n)
{
    const PCRE2_SIZE *at = pcre2_get_ovector_pointer(e->match);
    int rc = 0;

    for (size_t pos = 0; pos < n && rc == 0; pos = at[1]) {
        int groups =
            pcre2_match(e->t->words, (PCRE2_SPTR)s, n, pos, PCRE2_NO_UTF_CHECK, e->match, NULL);
        if (groups == PCRE2_ERROR_NOMATCH)
            break;
        if (groups < 0)
            return err_set(e->err, ERR_NOMEM, "text: PCRE2 gave up with error %d", groups);
        size_t len = at[1] - at[0];
        if (groups > 1) {
            rc = encode_word(e, s + at[0], 2);
            if (rc == 0)
                rc = encode_word(e, s + at[0] + 2, len - 4);
            if (rc == 0)
                rc = encode_word(e, s + at[1] - 2, 2);
        } else {
            rc = encode_word(e, s + at[0], len);
        }
    }
    return rc;
}

/* ---- text around added tokens --------------------------------------------------------------- */

/* The added token at s, the longest there is, or NULL. */
static const struct added *added_at(const struct tokenizer *t, const char *s, size_t n, bool folded)
{
    for (size_t i = 0; i < t->n_added; i++) {
        const struct added *a = &t->added[i];
        if (a->folded == folded && a->length <= n && a->match[0] == s[0] &&
            !memcmp(a->match, s, a->length))
            return a;
    }
    return NULL;
}

/* Encodes s, in which added tokens stand for themselves: first those that are looked for in the
 * text as it was written, then, in what lies between them, those looked for after folding. */
static int encode_text(struct encoder *e, const char *s, size_t n, bool folded)
{
    size_t begin = 0;
    int rc = 0;

    for (size_t i = 0; i <= n && rc == 0;) {
        const struct added *a = i < n ? added_at(e->t, s + i, n - i, folded) : NULL;
        if (i < n && !a) {
            i++;
            continue;
        }
        if (folded) {
            rc = encode_words(e, s + begin, i - begin);
        } else if (i > begin) {
            char *text = NULL;
            size_t size = 0;
            rc = text_fold(&text, &size, s + begin, i - begin, e->err);
            if (rc == 0)
                rc = encode_text(e, text, size, true);
            free(text);
        }
        if (!a)
            break;
        if (rc == 0)
            rc = tokens_push(e->ids, a->id, e->err);
        begin = i += a->length;
    }
    return rc;
}

int tokenizer_encode(const struct tokenizer *t, const char *text, ptrdiff_t len, struct tokens *ids,
                     struct err *err)
{
    struct encoder e = {.t = t, .ids = ids, .err = err};
    size_t n = len < 0 ? strlen(text) : (size_t)len;
    int rc = text_check(text, n, "text", err);
    if (rc < 0)
        return rc;
    e.match = pcre2_match_data_create_from_pattern(t->words, NULL);
    rc = e.match ? encode_text(&e, text, n, false) : err_nomem(err, sizeof(PCRE2_SIZE));
    pcre2_match_data_free(e.match);
    free(e.piece);
    free(e.heap);
    return rc;
}

/* ---- the tokenizer -------------------------------------------------------------------------- */

int tokenizer_parse(struct tokenizer **out, const struct tokenizer_files *files, const char *dir,
                    struct err *err)
{
    int rc;

    *out = NULL;
    assert(files->vocab.text && files->merges.text);
    struct tokenizer *t = calloc(1, sizeof *t);
    if (!t)
        return err_nomem(err, sizeof *t);
    if ((rc = tokenizer_load(t, files, dir, err)) < 0 ||
        (rc = tokenizer_load_special(t, files, dir, err)) < 0 || (rc = compile_words(t, err)) < 0)
        tokenizer_close(t);
    else
        *out = t;
    return rc;
}

int tokenizer_open(struct tokenizer **out, const char *dir, struct err *err)
{
    struct tokenizer_files files = {0};
    struct {
        const char *name;
        bool needed;
        size_t max;
        struct tokenizer_file *file;
        char *text;
    } part[] = {
        {"vocab.json", true, VOCAB_FILE_MAX, &files.vocab, NULL},
        {"merges.txt", true, VOCAB_FILE_MAX, &files.merges, NULL},
        {"special_tokens_map.json", false, CONFIG_FILE_MAX, &files.special, NULL},
        {"tokenizer_config.json", false, CONFIG_FILE_MAX, &files.config, NULL},
        {"added_tokens.json", false, CONFIG_FILE_MAX, &files.added, NULL},
    };
    const size_t n = sizeof part / sizeof *part;
    int rc = 0;

    *out = NULL;
    for (size_t i = 0; i < n && rc == 0; i++) {
        char *path = file_join(dir, part[i].name);
        if (!path)
            rc = err_nomem(err, strlen(dir));
        else if (part[i].needed || file_kind(path))
            rc = file_read(&part[i].text, &part[i].file->size, path, part[i].max, err);
        part[i].file->text = part[i].text;
        free(path);
    }
    if (rc == 0)
        rc = tokenizer_parse(out, &files, dir, err);
    for (size_t i = 0; i < n; i++)
        free(part[i].text);
    return rc;
}

void tokenizer_close(struct tokenizer *t)
{
    if (!t)
        return;
    for (size_t i = 0; i < t->n_added; i++) {
        free(t->added[i].text);
        free(t->added[i].match);
    }
    free(t->added);
    free(t->first);
    free(t->merge);
    free(t->token);
    pcre2_code_free(t->words);
    json_decref(t->vocab);
    free(t);
}

const char *tokenizer_token(const struct tokenizer *t, int32_t id)
{
    return id >= 0 && id < t->size ? t->token[id] : NULL;
}

int32_t tokenizer_id(const struct tokenizer *t, const char *token)
{
    const json_t *id = json_object_get(t->vocab, token);
    if (id)
        return (int32_t)json_integer_value(id);
    for (size_t i = 0; i < t->n_added; i++)
        if (!strcmp(t->added[i].text, token))
            return t->added[i].id;
    return -1;
}

int32_t tokenizer_bos(const struct tokenizer *t)
{
    return t->bos;
}

int32_t tokenizer_eos(const struct tokenizer *t)
{
    return t->eos;
}

int32_t tokenizer_pad(const struct tokenizer *t)
{
    return t->pad;
}

int tokenizer_size(const struct tokenizer *t)
{
    return t->size;
}

int tokens_push(struct tokens *t, int32_t id, struct err *err)
{
    if (t->n == t->cap) {
        size_t cap = t->cap ? 2 * t->cap : 64;
        int32_t *grown = realloc(t->id, cap * sizeof *grown);
        if (!grown)
            return err_nomem(err, cap * sizeof *grown);
        t->id = grown;
        t->cap = cap;
    }
    t->id[t->n++] = id;
    return 0;
}

void tokens_release(struct tokens *t)
{
    free(t->id);
    *t = (struct tokens){0};
}
