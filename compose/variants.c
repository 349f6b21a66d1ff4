#include "variants.h"

#include "relevance.h"

#include <stdlib.h>
#include <string.h>
#include <strings.h>

/* Whether s[0..n) is one of the groups. */
static bool is_group(const char *groups, const char *s, size_t n)
{
    for (const char *g = groups; *g; g += strcspn(g, "\n"), g += *g == '\n')
        if (strcspn(g, "\n") == n && !strncasecmp(g, s, n))
            return true;
    return false;
}

/* The first group "A B" that is in the prompt, B being one too. */
static int find_trigger(struct variants *v, int i, const char *prompt, const char *groups,
                        struct err *err)
{
    for (const char *g = groups; g && *g; g += strcspn(g, "\n"), g += *g == '\n') {
        size_t n = strcspn(g, "\n");
        if (!relevance_find(prompt, g, n))
            continue;
        for (size_t k = 1; k + 1 < n; k++) {
            if (g[k] != ' ' || !is_group(groups, g + k + 1, n - k - 1))
                continue;
            v->whole[i] = strndup(g, n);
            v->rest[i] = strndup(g + k + 1, n - k - 1);
            return v->whole[i] && v->rest[i] ? 0 : err_nomem(err, n);
        }
        return 0; /* the first that is there is what counts */
    }
    return 0;
}

/* The prompt without the triggers of all but one, new. */
static char *text_of(const struct variants *v, const char *prompt, int but)
{
    char *text = strdup(prompt);
    for (int i = 0; text && i < v->n; i++) {
        if (i == but || !v->whole[i])
            continue;
        const char *at = relevance_find(text, v->whole[i], strlen(v->whole[i]));
        size_t cut = strlen(v->whole[i]) - strlen(v->rest[i]);
        if (at)
            memmove(text + (at - text), at + cut, strlen(at + cut) + 1);
    }
    return text;
}

int variants_open(struct variants **out, struct passes *of, struct err *err)
{
    const struct prompt *p = of->p->prompt;
    const struct condition_row *row = &of->cond->row[of->guided ? 1 : 0];
    struct variants *v = calloc(1, sizeof *v);
    int rc = 0;
    *out = v;
    if (!v)
        return err_nomem(err, sizeof *v);
    v->n = of->p->n_use;
    v->plain = row->first;
    v->text = malloc(((size_t)v->n + 1) * sizeof *v->text);
    v->whole = calloc((size_t)v->n + 1, sizeof *v->whole);
    v->rest = calloc((size_t)v->n + 1, sizeof *v->rest);
    if (!v->text || !v->whole || !v->rest)
        return err_nomem(err, (size_t)v->n * sizeof *v->whole);
    bool plain = p->n_part == 1 && row->stages.n == 1;
    for (int i = 0; i < v->n && plain && rc == 0; i++)
        rc = find_trigger(v, i, p->part[0].text, of->p->use[i].words, err);
    for (int i = 0; i <= v->n && rc == 0; i++) {
        char *text = text_of(v, p->part[0].text, i);
        v->text[i] = row->first;
        if (!text)
            rc = err_nomem(err, 64);
        else if (strcmp(text, p->part[0].text) != 0)
            rc = conditions_add(of->cond, of->m->tokenizer, of->p->words, text, &v->text[i], err);
        free(text);
    }
    return rc;
}

void variants_close(struct variants *v)
{
    if (!v)
        return;
    for (int i = 0; i < v->n; i++) {
        if (v->whole)
            free(v->whole[i]);
        if (v->rest)
            free(v->rest[i]);
    }
    free(v->whole);
    free(v->rest);
    free(v->text);
    free(v);
}

const char *variants_words(const struct variants *v, int text, int i)
{
    for (int k = 0; k <= v->n && text != v->plain; k++)
        if (v->text[k] == text && v->whole[i])
            return k == i ? v->whole[i] : v->rest[i];
    return NULL;
}
