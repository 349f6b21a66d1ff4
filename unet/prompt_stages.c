#include "prompt.h"
#include "prompt_scan.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

#define STEPS_MAX  10000
#define OUTPUT_MAX ((size_t)64 << 20)

/* A stretch of the text. */
struct range {
    size_t begin, end;
};

/* [before:after:when] or [a|b|…]: a piece of the text of which one choice stands at a step. */
struct choice {
    struct range all; /* with its brackets */
    int when;         /* the last step of the first option; -1: an alternation, a step for each */
    size_t option, n; /* in parser.option */
};

/* A bracket that is open. */
struct open {
    char sign;
    size_t at, mark; /* place; how many separators there were before it */
    int colons, bars;
};

/* A1111 parses with a grammar in which brackets that belong to nothing are text on the outermost
 * level only. So one bracket that does not fit makes text of all that are open around it, while
 * complete ones inside stay what they are; and a "|" has no meaning but in a complete
 * alternation. Where brackets do not fit, that grammar can be read in several ways, and which of
 * them A1111 takes changes from run to run; this is the one in which the most choices are
 * choices. */
struct parser {
    const char *text;
    int steps;
    struct err *err;
    struct open open[PROMPT_DEEP];
    int n_open;
    size_t *mark; /* places of the ":" and "|" in the open brackets */
    size_t n_mark, cap_mark;
    struct choice *choice;
    size_t n_choice, cap_choice;
    struct range *option;
    size_t n_option, cap_option;
    bool fails; /* the whole prompt is text */
    bool alternates;
};

static int add_mark(struct parser *p, size_t at)
{
    void *grown = prompt_scan_grow(p->mark, p->n_mark, &p->cap_mark, sizeof *p->mark, p->err);
    if (!grown)
        return ERR_NOMEM;
    p->mark = grown;
    p->mark[p->n_mark++] = at;
    return 0;
}

static int add_option(struct parser *p, size_t begin, size_t end)
{
    void *grown =
        prompt_scan_grow(p->option, p->n_option, &p->cap_option, sizeof *p->option, p->err);
    if (!grown)
        return ERR_NOMEM;
    p->option = grown;
    p->option[p->n_option++] = (struct range){begin, end};
    return 0;
}

static int add_choice(struct parser *p, const struct choice *c)
{
    void *grown =
        prompt_scan_grow(p->choice, p->n_choice, &p->cap_choice, sizeof *p->choice, p->err);
    if (!grown)
        return ERR_NOMEM;
    p->choice = grown;
    p->choice[p->n_choice++] = *c;
    return 0;
}

/* The step that stands at [begin, end), or -1. With a point it is a fraction of the steps. */
static int read_when(const struct parser *p, size_t begin, size_t end)
{
    const char *s = prompt_scan_space(p->text + begin);
    const char *after = prompt_scan_number(s, true);
    if (!after || prompt_scan_space(after) != p->text + end)
        return -1;
    double v = prompt_scan_value(s);
    if (memchr(s, '.', (size_t)(after - s)))
        v *= p->steps;
    if (v >= p->steps)
        return p->steps;
    return v >= 1 ? (int)v : 0;
}

/* The bracket that `open` began ends before `end`. Adds the choice it is, if it is one. Returns
 * 1 if it is complete, 0 if it is not anything. */
static int complete(struct parser *p, const struct open *open, size_t end)
{
    int n_mark = open->colons + open->bars, when = -1, rc;

    if (open->sign == '(')
        return open->colons < 2;
    if (n_mark == 0)
        return 1;
    const size_t *mark = p->mark + open->mark;
    if (open->colons > 0 && open->bars > 0)
        return 0;
    if (open->colons > 2 ||
        (open->colons > 0 && (when = read_when(p, mark[n_mark - 1] + 1, end - 1)) < 0))
        return 0;
    struct choice c = {.all = {open->at, end}, .when = when, .option = p->n_option};
    size_t begin = open->at + 1;
    if (open->colons == 1 && (rc = add_option(p, begin, begin)) < 0)
        return rc;
    for (int i = 0; i < n_mark; i++) {
        if ((rc = add_option(p, begin, mark[i])) < 0)
            return rc;
        begin = mark[i] + 1;
    }
    if (open->bars > 0 && (rc = add_option(p, begin, end - 1)) < 0)
        return rc;
    c.n = p->n_option - c.option;
    p->alternates |= open->bars > 0;
    rc = add_choice(p, &c);
    return rc < 0 ? rc : 1;
}

/* All open brackets are text. */
static void drop(struct parser *p)
{
    for (int i = 0; i < p->n_open; i++)
        p->fails |= p->open[i].bars > 0;
    p->n_open = 0;
    p->n_mark = 0;
}

static int close_bracket(struct parser *p, size_t at)
{
    if (p->n_open == 0)
        return 0;
    struct open *open = &p->open[p->n_open - 1];
    int fits = (open->sign == '(') == (p->text[at] == ')') ? complete(p, open, at + 1) : 0;
    if (fits == 0)
        drop(p);
    if (fits != 1)
        return fits;
    p->n_mark = open->mark;
    p->n_open--;
    return 0;
}

/* Takes the sign at text[i]; *taken gets its length. */
static int take(struct parser *p, size_t i, size_t *taken)
{
    struct open *top = p->n_open ? &p->open[p->n_open - 1] : NULL;
    char c = p->text[i];

    *taken = 1;
    switch (c) {
    case '\\': /* takes the next character's meaning away; a line's end has none to take */
        p->fails |= p->text[i + 1] == 0 || p->text[i + 1] == '\n';
        *taken = p->text[i + 1] ? 2 : 1;
        return 0;
    case '(':
    case '[':
        if (p->n_open == PROMPT_DEEP)
            return prompt_scan_deep(i, p->err);
        p->open[p->n_open++] = (struct open){.sign = c, .at = i, .mark = p->n_mark};
        return 0;
    case ')':
    case ']': return close_bracket(p, i);
    case '|':
    case ':':
        p->fails |= c == '|' && (!top || top->sign == '(');
        if (!top)
            return 0;
        *(c == '|' ? &top->bars : &top->colons) += 1;
        return add_mark(p, i);
    default: *taken = strcspn(p->text + i, "\\()[]:|"); return 0;
    }
}

static int compare_choices(const void *a, const void *b)
{
    const struct choice *x = a, *y = b;
    return x->all.begin < y->all.begin ? -1 : x->all.begin > y->all.begin;
}

/* Writes the text that holds at `step` to out, which has room for all of the text. Choices are
 * in the order of the text, those inside another one after it. */
static void write_stage(const struct parser *p, size_t n, int step, char *out)
{
    struct range inside[PROMPT_DEEP + 1]; /* end: of the stretch; begin: where to go on after it */
    int deep = 1;
    size_t at = 0, w = 0, i = 0;

    inside[0] = (struct range){n, n};
    while (deep > 0) {
        size_t end = inside[deep - 1].end;
        while (i < p->n_choice && p->choice[i].all.begin < at)
            i++;
        bool chosen = i < p->n_choice && p->choice[i].all.begin < end;
        size_t stop = chosen ? p->choice[i].all.begin : end;
        memcpy(out + w, p->text + at, stop - at);
        w += stop - at;
        if (chosen) {
            const struct choice *c = &p->choice[i];
            size_t k = c->when < 0 ? (size_t)(step - 1) % c->n : step > c->when;
            const struct range *option = &p->option[c->option + k];
            assert(deep <= PROMPT_DEEP);
            inside[deep++] = (struct range){.begin = c->all.end, .end = option->end};
            at = option->begin;
        } else {
            at = inside[--deep].begin;
        }
    }
    out[w] = 0;
}

static int compare_ints(const void *a, const void *b)
{
    const int *x = a, *y = b;
    return *x < *y ? -1 : *x > *y;
}

/* The steps after which the text changes, in order, the last being the last step. */
static int find_ends(int **out, size_t *out_n, const struct parser *p)
{
    size_t n = 0, w = 0, cap = p->n_choice + 1 + (p->alternates ? (size_t)p->steps : 0);
    int *end = malloc(cap * sizeof *end);

    if (!end)
        return err_nomem(p->err, cap * sizeof *end);
    end[n++] = p->steps;
    for (size_t i = 0; i < p->n_choice; i++)
        if (p->choice[i].when >= 1)
            end[n++] = p->choice[i].when;
    for (int i = 1; p->alternates && i <= p->steps; i++)
        end[n++] = i;
    qsort(end, n, sizeof *end, compare_ints);
    for (size_t i = 0; i < n; i++)
        if (i == 0 || end[i] != end[w - 1])
            end[w++] = end[i];
    *out = end;
    *out_n = w;
    return 0;
}

static int make_stages(struct prompt_stages *out, struct parser *p, size_t n)
{
    int *end = NULL, rc;
    size_t n_end = 0;

    if (p->n_choice > 0)
        qsort(p->choice, p->n_choice, sizeof *p->choice, compare_choices);
    if ((rc = find_ends(&end, &n_end, p)) < 0)
        return rc;
    if ((n + 1) * n_end > OUTPUT_MAX) {
        rc = err_set(p->err, ERR_ARG, "prompt: %zu bytes are too many for %zu changes of the text",
                     n, n_end);
        goto out;
    }
    out->stage = calloc(n_end, sizeof *out->stage);
    if (!out->stage) {
        rc = err_nomem(p->err, n_end * sizeof *out->stage);
        goto out;
    }
    for (size_t i = 0; i < n_end; i++) {
        struct prompt_stage *s = &out->stage[out->n++];
        s->until = end[i];
        s->text = malloc(n + 1);
        if (!s->text) {
            rc = err_nomem(p->err, n + 1);
            goto out;
        }
        write_stage(p, n, end[i], s->text);
    }
out:
    free(end);
    return rc;
}

int prompt_stages_parse(struct prompt_stages *out, const char *text, int steps, struct err *err)
{
    struct parser p = {.text = text, .steps = steps, .err = err};
    size_t n, taken;
    int rc = prompt_scan_check(text, &n, err);

    *out = (struct prompt_stages){0};
    if (rc == 0 && (steps < 1 || steps > STEPS_MAX))
        rc = err_set(err, ERR_ARG, "prompt: %d steps, not 1 to %d", steps, STEPS_MAX);
    for (size_t i = 0; i < n && rc == 0; i += taken)
        rc = take(&p, i, &taken);
    drop(&p);
    if (p.fails) {
        p.n_choice = 0;
        p.alternates = false;
    }
    if (rc == 0)
        rc = make_stages(out, &p, n);
    if (rc < 0)
        prompt_stages_release(out);
    free(p.mark);
    free(p.choice);
    free(p.option);
    return rc;
}

void prompt_stages_release(struct prompt_stages *s)
{
    for (size_t i = 0; i < s->n; i++)
        free(s->stage[i].text);
    free(s->stage);
    *s = (struct prompt_stages){0};
}
