/* What the repository adds to a request: models by name, files that moved, trigger words. */
#include "request.h"

#include "cli.h"
#include "unet/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- the model ------------------------------------------------------------------------------- */

struct only {
    struct repo_model first;
    int n;
    char names[400];
};

static int count_models(void *user, const struct repo_model *m)
{
    struct only *o = user;
    size_t at = strlen(o->names);
    snprintf(o->names + at, sizeof o->names - at, "%s%.80s", at ? ", " : "", m->name);
    if (o->n++ == 0 && (o->first.path = strdup(m->path)) == NULL)
        return 1;
    return 0;
}

int request_model(struct request *r, struct err *err)
{
    struct repo_model m;
    struct only o = {.n = 0};
    int rc = 1;
    if (!r->repo || (r->model && file_kind(r->model) == 2))
        return 0;
    if (r->model) {
        rc = repo_model_find(r->repo, r->model, &m, err);
        if (rc == 0) {
            rc = request_set(&r->model, m.path, err);
            repo_model_release(&m);
        }
        return rc == 1 ? 0 : rc; /* then it is a folder that is not there, and said to be so */
    }
    rc = repo_model_list(r->repo, count_models, &o, err);
    if (rc == 0 && o.n == 1)
        rc = request_set(&r->model, o.first.path, err);
    else if (rc == 0 && o.n > 1)
        rc = err_set(err, ERR_ARG, "which model? --model NAME, one of %s", o.names);
    repo_model_release(&o.first);
    return rc;
}

/* ---- adapters -------------------------------------------------------------------------------- */

int request_relocate(struct request *r, struct request_adapter *a, struct err *err)
{
    struct repo_adapter row;
    if (!r->repo || a->row || !*a->sha256 || file_exists(a->path))
        return 0;
    int rc = repo_find_data(r->repo, a->sha256, &row, err);
    if (rc == 0)
        rc = request_take_row(a, &row, err);
    return rc < 0 ? rc : 0;
}

int request_check_adapter(struct request *r, struct request_adapter *a, struct err *err)
{
    int rc = request_relocate(r, a, err);
    return rc < 0 || !a->row ? rc : repo_check(r->repo, a->row, err);
}

/* ---- triggers -------------------------------------------------------------------------------- */

/* Whether the prompt's texts hold all words of a group, each as it stands between commas. */
static bool holds(const struct prompt *p, const char *group)
{
    while (*group) {
        size_t n;
        group += strspn(group, ", ");
        n = strcspn(group, ",");
        char *one = strndup(group, n);
        bool found = false;
        for (size_t k = n; one && k > 0 && one[k - 1] == ' ';)
            one[--k] = 0;
        for (size_t i = 0; one && i < p->n_part && !found; i++)
            found = strcasestr(p->part[i].text, one) != NULL;
        free(one);
        if (!found)
            return false;
        group += n;
    }
    return true;
}

/* In front of the prompt: what stands at its end may be a weight. */
static int insert(struct request *r, const char *words, struct err *err)
{
    char *text = NULL;
    if (asprintf(&text, "%s%s%s", words, *r->prompt ? ", " : "", r->prompt) < 0)
        return err_nomem(err, strlen(words));
    free(r->prompt);
    r->prompt = text;
    return 0;
}

int request_triggers(struct request *r, const struct prompt *p, bool add, bool *changed,
                     struct err *err)
{
    int rc = 0;
    *changed = false;
    for (int i = 0; i < r->n_adapter && rc == 0; i++) {
        const struct repo_adapter *row = r->adapter[i].row;
        struct texts groups = {0};
        bool found = false;
        rc = row ? repo_texts(r->repo, row->key, REPO_TRIGGERS, &groups, err) : 0;
        for (int k = 0; k < groups.n && !found; k++)
            found = holds(p, groups.item[k]);
        if (rc == 0 && groups.n && !found && add) {
            rc = insert(r, groups.item[0], err);
            *changed = true;
        } else if (rc == 0 && groups.n && !found) {
            err_printable(groups.item[0]);
            fprintf(stderr,
                    "%s: none of its triggers is in the prompt, such as '%s'; --triggers "
                    "puts it there\n",
                    row->name, groups.item[0]);
        }
        texts_release(&groups);
    }
    return rc;
}

/* ---- textual inversions ---------------------------------------------------------------------- */

static bool is_said(const struct request *r, const char *name)
{
    return (r->prompt && strcasestr(r->prompt, name)) ||
           (r->negative && strcasestr(r->negative, name));
}

static int said_of(struct repo *repo, const struct request *r, int64_t key, enum repo_texts which,
                   char **out, struct err *err)
{
    struct texts t = {0};
    int rc = *out ? 0 : repo_texts(repo, key, which, &t, err);
    for (int i = 0; i < t.n && rc == 0 && !*out; i++)
        if (is_said(r, t.item[i]))
            rc = request_set(out, t.item[i], err);
    texts_release(&t);
    return rc;
}

struct offer {
    struct request *r;
    int n_before;
    struct err *err;
};

/* name NULL: its words are called as in its own file. */
static int add_found(struct offer *o, const struct repo_adapter *a, const char *name)
{
    struct request_embedding *e = request_new_embedding(o->r, o->err);
    if (!e)
        return ERR_NOMEM;
    e->found = true;
    memcpy(e->sha256, a->data_sha256, sizeof e->sha256);
    int rc = request_set(&e->path, a->path, o->err);
    return rc < 0 ? rc : request_set(&e->name, name, o->err);
}

static int offer(void *user, const struct repo_adapter *a)
{
    struct offer *o = user;
    struct request *r = o->r;
    char *name = NULL, *own = NULL;
    for (int i = 0; i < o->n_before; i++)
        if (!strcmp(r->embedding[i].sha256, a->data_sha256) ||
            !strcmp(r->embedding[i].path, a->path))
            return 0;
    int rc = is_said(r, a->name) ? request_set(&name, a->name, o->err) : 0;
    rc = rc < 0 ? rc : said_of(r->repo, r, a->key, REPO_ALIASES, &name, o->err);
    rc = rc < 0 ? rc : said_of(r->repo, r, a->key, REPO_TRIGGERS, &own, o->err);
    rc = rc < 0 || !name ? rc : add_found(o, a, name);
    rc = rc < 0 || !own ? rc : add_found(o, a, NULL);
    free(name);
    free(own);
    return rc;
}

int request_find_embeddings(struct request *r, struct err *err)
{
    struct repo_filter words = {.kind = "textual-inversion"};
    struct offer o = {r, r->n_embedding, err};
    return r->repo ? repo_list(r->repo, &words, offer, &o, err) : 0;
}
