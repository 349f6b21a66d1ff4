#include "adapter_words.h"
#include "auto.h"

#include "compose/relevance.h"
#include "unet/file.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* All texts with commas between: a new string. */
static char *join(const struct texts *t)
{
    char *out = NULL;
    size_t size;
    FILE *f = open_memstream(&out, &size);
    for (int i = 0; f && i < t->n; i++)
        fprintf(f, "%s%s", i ? ", " : "", t->item[i]);
    return f && fclose(f) == 0 ? out : NULL;
}

/* What the repository has of an adapter, also of one that a picture brought along: NULL where it has none. *own is to be
 * released. */
static int row_of(const struct making *m, int i, struct repo_adapter *own,
                  const struct repo_adapter **row, struct err *err)
{
    const struct request_adapter *a = &m->r.adapter[i];
    memset(own, 0, sizeof *own);
    *row = a->row;
    if (a->row || !a->id || !m->repo)
        return 0;
    int rc = repo_find_data(m->repo, a->sha256, own, err);
    if (rc == 0)
        *row = own;
    return rc < 0 ? rc : 0;
}

/* What the adapters' trigger words are to the prompt. */
int adapter_words_weigh(struct making *m, struct err *err)
{
    size_t n = (size_t)m->r.n_adapter + 1;
    struct relevance *out = calloc(n, sizeof *out);
    struct texts *words = calloc(n, sizeof *words);
    char **joined = calloc(n, sizeof *joined);
    int rc = out && words && joined ? 0 : err_nomem(err, n * sizeof *out);
    for (int i = 0; i < m->r.n_adapter && rc == 0; i++) {
        struct repo_adapter own;
        const struct repo_adapter *row;
        rc = row_of(m, i, &own, &row, err);
        if (rc == 0 && row) {
            rc = repo_texts(m->repo, row->key, REPO_TRIGGERS, &words[i], err);
            joined[i] = rc == 0 ? join(&words[i]) : NULL;
            if (rc == 0 && !joined[i])
                rc = err_nomem(err, 64);
        }
        repo_adapter_release(&own);
    }
    rc = rc < 0 ? rc
                : relevance_measure(m->model, m->prompt.part[0].text, (const char *const *)joined,
                                    m->r.n_adapter, out, err);
    for (int i = 0; i < m->r.n_adapter && rc == 0; i++) {
        m->use[i].part = out[i].part;
        m->use[i].match = out[i].match;
    }
    for (int i = 0; words && joined && i < m->r.n_adapter; i++) {
        texts_release(&words[i]);
        free(joined[i]);
    }
    free(out);
    free(words);
    free(joined);
    return rc;
}

/* Whether a text has the word "style". */
static bool says_style(const char *text)
{
    for (const char *p = text; p && (p = strcasestr(p, "style")); p += 5)
        if ((p == text || !isalnum((unsigned char)p[-1])) && !isalnum((unsigned char)p[5]))
            return true;
    return false;
}

/* A line; whose style it is, *style becomes true. */
static void say(FILE *f, bool *style, const char *text, const char *and)
{
    fprintf(f, "%s%s%s\n", text, *and? " " : "", and);
    *style = *style || says_style(text);
}

/* A new string for one adapter, or NULL in *out for a style. */
static int words_of(const struct making *m, int i, char **out, struct err *err)
{
    struct repo_adapter own;
    const struct repo_adapter *row;
    struct texts groups = {0};
    size_t size;
    int rc = row_of(m, i, &own, &row, err);
    bool style = row && row->category && !strcasecmp(row->category, "style");
    if (rc == 0 && row)
        rc = repo_texts(m->repo, row->key, REPO_TRIGGERS, &groups, err);
    const struct request_adapter *a = &m->r.adapter[i];
    char *text = NULL, *name = row ? strdup(row->name) : file_stem(a->path);
    FILE *f = open_memstream(&text, &size);
    for (int with = 1; with >= 0 && f; with--)
        for (int k = 0; k < groups.n; k++)
            if (!with || (row->class_word && !strchr(groups.item[k], ',')))
                say(f, &style, groups.item[k], with ? row->class_word : "");
    if (f && row && row->class_word)
        say(f, &style, row->class_word, "");
    for (int k = 0; k < m->n_pick && f && row; k++)
        if (!strcmp(m->pick[k].name, row->name))
            say(f, &style, m->pick[k].phrase, "");
    for (char *p = name; p && *p; p++)
        *p = *p == '-' || *p == '_' ? ' ' : *p;
    if (f && name)
        say(f, &style, name, "");
    if (!f || fclose(f) || !name)
        rc = err_nomem(err, 256);
    free(name);
    texts_release(&groups);
    repo_adapter_release(&own);
    if (rc < 0 || style) {
        free(text);
        text = NULL;
    }
    *out = text;
    return rc;
}

int adapter_words_read(struct making *m, struct err *err)
{
    int rc = 0;
    m->word = calloc((size_t)m->r.n_adapter + 1, sizeof *m->word);
    if (!m->word)
        return err_nomem(err, (size_t)m->r.n_adapter * sizeof *m->word);
    for (int i = 0; i < m->r.n_adapter && rc == 0; i++) {
        struct request_adapter *a = &m->r.adapter[i];
        if (!a->word) { /* the picture remembers them: tags may change */
            rc = words_of(m, i, &m->word[i], err);
            rc = rc < 0 ? rc : request_set(&a->word, m->word[i] ? m->word[i] : "", err);
        } else if (!(m->word[i] = strdup(a->word))) {
            rc = err_nomem(err, strlen(a->word));
        }
        if (m->use)
            m->use[i].words = m->word[i];
    }
    return rc;
}
