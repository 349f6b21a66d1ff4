#include "prompt.h"
#include "prompt_scan.h"
#include "text.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* A stretch of the prompt's own text with a weight; several with one weight make a span. */
struct piece {
    size_t at, n;
    double weight;
};

struct parser {
    const char *text;
    struct err *err;
    struct piece *piece;
    size_t n, cap;
    size_t round[PROMPT_DEEP], square[PROMPT_DEEP]; /* the first piece after each open bracket */
    int n_round, n_square;
};

static int add(struct parser *p, size_t at, size_t n, double weight)
{
    void *grown = prompt_scan_grow(p->piece, p->n, &p->cap, sizeof *p->piece, p->err);
    if (!grown)
        return ERR_NOMEM;
    p->piece = grown;
    p->piece[p->n++] = (struct piece){at, n, weight};
    return 0;
}

static void multiply(struct parser *p, size_t from, double by)
{
    for (size_t i = from; i < p->n; i++)
        p->piece[i].weight *= by;
}

/* Text between signs, in which the word BREAK stands alone, without the white space around it.
 * A1111 tells a break from a word by the weight -1. */
static int add_text(struct parser *p, size_t at, size_t n)
{
    const char *s = p->text + at;
    size_t begin = 0;
    int rc;

    for (size_t i = 0; i + 5 <= n;) {
        if (memcmp(s + i, "BREAK", 5) != 0 || !prompt_scan_boundary(s, n, i) ||
            !prompt_scan_boundary(s, n, i + 5)) {
            i++;
            continue;
        }
        size_t end = begin + prompt_scan_trim(s + begin, i - begin);
        if ((rc = add(p, at + begin, end - begin, 1)) < 0 || (rc = add(p, at + i, 5, -1)) < 0)
            return rc;
        /* No white space goes beyond n, where a sign or the end is. */
        i = begin = (size_t)(prompt_scan_space(s + i + 5) - s);
    }
    return add(p, at + begin, n - begin, 1);
}

/* ":1.2)" at s, with white space around the number. Returns its length, and where the number is;
 * 0 if it is not that. What is taken for a number is any row of digits and points. */
static size_t weight_sign(const char *s, const char **number, size_t *n)
{
    *number = prompt_scan_space(s + 1);
    const char *p = *number + (**number == '+' || **number == '-');
    const char *row = prompt_scan_row(p), *end = prompt_scan_space(row);
    *n = (size_t)(row - *number);
    return row > p && *end == ')' ? (size_t)(end + 1 - s) : 0;
}

static int read_weight(struct parser *p, const char *number, size_t n, double *weight)
{
    const char *end = prompt_scan_number(number, false);
    *weight = end == number + n ? prompt_scan_value(number) : (double)NAN;
    if (!isfinite(*weight))
        return err_set(p->err, ERR_ARG, "prompt: \"%.*s\" is not a weight",
                       text_shown(number, n, 40), number);
    return 0;
}

static int open_bracket(struct parser *p, size_t *stack, int *depth, size_t at)
{
    if (*depth == PROMPT_DEEP)
        return prompt_scan_deep(at, p->err);
    stack[(*depth)++] = p->n;
    return 0;
}

/* Takes one sign or a stretch of text at i; *taken gets its length. */
static int take(struct parser *p, size_t i, size_t *taken)
{
    const char *s = p->text + i, *number;
    size_t n_number;
    double weight;
    int rc;

    *taken = 1;
    switch (*s) {
    case '\\':
        if (s[1] && strchr("()[]\\", s[1])) {
            *taken = 2;
            return add(p, i + 1, 1, 1);
        }
        return add(p, i + 1, 0, 1);
    case '(': return open_bracket(p, p->round, &p->n_round, i);
    case '[': return open_bracket(p, p->square, &p->n_square, i);
    case ':':
        *taken = weight_sign(s, &number, &n_number);
        if (*taken && p->n_round) {
            if ((rc = read_weight(p, number, n_number, &weight)) < 0)
                return rc;
            multiply(p, p->round[--p->n_round], weight);
            return 0;
        }
        *taken = *taken ? *taken : 1;
        break;
    case ')':
        if (p->n_round) {
            multiply(p, p->round[--p->n_round], 1.1);
            return 0;
        }
        break;
    case ']':
        if (p->n_square) {
            multiply(p, p->square[--p->n_square], 1 / 1.1);
            return 0;
        }
        break;
    default: *taken = strcspn(s, "\\()[]:");
    }
    return add_text(p, i, *taken);
}

/* Joins neighbours of equal weight and makes a span of each. */
static int make_spans(struct prompt_spans *out, const struct parser *p)
{
    size_t n_span = 0;

    out->span = calloc(p->n, sizeof *out->span);
    if (!out->span)
        return err_nomem(p->err, p->n * sizeof *out->span);
    for (size_t i = 0, j; i < p->n; i = j) {
        struct prompt_span *span = &out->span[n_span++];
        size_t n = 0;
        for (j = i; j < p->n && p->piece[j].weight == p->piece[i].weight; j++)
            n += p->piece[j].n;
        span->weight = p->piece[i].weight;
        span->text = malloc(n + 1);
        out->n = n_span;
        if (!span->text)
            return err_nomem(p->err, n + 1);
        n = 0;
        for (size_t k = i; k < j; k++) {
            memcpy(span->text + n, p->text + p->piece[k].at, p->piece[k].n);
            n += p->piece[k].n;
        }
        span->text[n] = 0;
        span->is_break = span->weight == -1 && !strcmp(span->text, "BREAK");
    }
    return 0;
}

int prompt_spans_parse(struct prompt_spans *out, const char *text, struct err *err)
{
    struct parser p = {.text = text, .err = err};
    size_t n, taken;
    int rc = prompt_scan_check(text, &n, err);

    *out = (struct prompt_spans){0};
    for (size_t i = 0; i < n && rc == 0; i += taken)
        rc = take(&p, i, &taken);
    for (int i = 0; i < p.n_round; i++)
        multiply(&p, p.round[i], 1.1);
    for (int i = 0; i < p.n_square; i++)
        multiply(&p, p.square[i], 1 / 1.1);
    if (rc == 0 && p.n == 0)
        rc = add(&p, 0, 0, 1);
    for (size_t i = 0; i < p.n && rc == 0; i++)
        if (!(fabs(p.piece[i].weight) <= (double)FLT_MAX))
            rc = err_set(err, ERR_ARG, "prompt: the weight of \"%.*s\" is too large",
                         text_shown(text + p.piece[i].at, p.piece[i].n, 40), text + p.piece[i].at);
    if (rc == 0)
        rc = make_spans(out, &p);
    if (rc < 0)
        prompt_spans_release(out);
    free(p.piece);
    return rc;
}

void prompt_spans_release(struct prompt_spans *s)
{
    for (size_t i = 0; i < s->n; i++)
        free(s->span[i].text);
    free(s->span);
    *s = (struct prompt_spans){0};
}
