#include "embeddings.h"

#include "store/embedding.h"
#include "unet/file.h"

#include <stdio.h>
#include <string.h>

static bool fits(const struct embedding *e, const struct model *m)
{
    return e->width == m->text->tower.width && (!e->per_layer || e->n_vec == m->unet->n_cross);
}

static const char *misfit(char *buf, size_t size, const struct embedding *e, const struct model *m)
{
    if (e->width != m->text->tower.width)
        snprintf(buf, size, "its vectors have %d values, this model's text encoder takes %d",
                 e->width, m->text->tower.width);
    else
        snprintf(buf, size, "it has vectors for %d cross attentions, this model has %d", e->n_vec,
                 m->unet->n_cross);
    return buf;
}

/* Whether the list has e's name again with the width that fits. */
static bool has_twin(const struct embedding_list *l, const struct embedding *e, int width)
{
    for (int i = 0; i < l->n; i++)
        if (l->item[i].width == width && !strcmp(l->item[i].name, e->name))
            return true;
    return false;
}

/* Files for two text encoders (clip_l, clip_g) name a word twice; the width chooses. */
static int add(struct words *w, const struct embedding_list *l, const struct embedding *e,
               const char *name, struct err *err)
{
    if (e->width != words_width(w) && has_twin(l, e, words_width(w)))
        return 0;
    return e->per_layer ? words_add_layered(w, name, e->vec, e->n_vec, e->width, err)
                        : words_add(w, name, e->vec, e->n_vec, e->width, err);
}

static void tell(const struct embedding *e, const char *name, const char *path)
{
    fprintf(stderr, "embedding '%s': %d %s of %d%s, %s%s%s%s\n", name, e->n_vec,
            e->n_vec == 1 ? "vector" : "vectors", e->width,
            e->per_layer ? ", one for each cross attention" : "", path,
            e->declared ? " (calls itself '" : "", e->declared ? e->declared : "",
            e->declared ? "')" : "");
}

/* One file of --embedding: all of its words, or its only one under the name that was given. */
static int add_file(struct words *w, struct request_embedding *e, const struct embedding_list *l,
                    bool verbose, struct err *err)
{
    int rc = 0;
    e->first = words_count(w);
    if (l->n == 0)
        return err_set(err, ERR_FORMAT, "%s: no textual inversion in it", e->path);
    for (int i = 1; e->name && i < l->n; i++)
        if (strcmp(l->item[i].name, l->item[0].name))
            return err_set(err, ERR_ARG, "%s: holds more than one word, so =NAME is not clear",
                           e->path);
    for (int i = 0; i < l->n && rc == 0; i++) {
        const char *name = e->name ? e->name : l->item[i].name;
        rc = add(w, l, &l->item[i], name, err);
        if (rc == 0 && verbose)
            tell(&l->item[i], name, e->path);
    }
    if (rc < 0)
        err_prefix(err, "%s", e->path);
    e->n_word = words_count(w) - e->first;
    return rc == 0 && !e->name && e->n_word == 1
               ? request_set(&e->name, words_name(w, e->first), err)
               : rc;
}

/* Whether it must be this one: the prompts say embedding:NAME. */
static bool is_demanded(const struct request *r, const char *name)
{
    char whole[300];
    snprintf(whole, sizeof whole, "embedding:%.250s", name);
    return strcasestr(r->prompt, whole) || strcasestr(r->negative, whole);
}

/* One that the repository offers: its word stays an ordinary one where another has the name, or where it
 * does not fit. */
static int add_found(struct words *w, const struct request *r, const struct model *m,
                     struct request_embedding *e, const struct embedding_list *l, bool verbose,
                     struct err *err)
{
    char why[160];
    int good = 0;
    while (good < l->n && !fits(&l->item[good], m))
        good++;
    bool any = good < l->n;
    const char *name = e->name ? e->name : l->n ? l->item[any ? good : 0].name : "";
    if (l->n == 0 || words_find(w, name) >= 0)
        return 0;
    if (any)
        return add_file(w, e, l, verbose, err);
    misfit(why, sizeof why, &l->item[0], m);
    if (is_demanded(r, name))
        return words_add_refused(w, name, why, err);
    fprintf(stderr, "'%s' is an embedding of the repository, but not for this model: %s\n", name,
            why);
    return 0;
}

/* A file that was moved is found again by its vectors. */
static int relocate(struct request *r, struct request_embedding *e, struct err *err)
{
    struct repo_adapter a;
    if (!r->repo || !*e->sha256 || file_exists(e->path))
        return 0;
    int rc = repo_find_data(r->repo, e->sha256, &a, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    rc = request_set(&e->path, a.path, err);
    repo_adapter_release(&a);
    return rc;
}

static int open_file(struct words *w, struct request *r, const struct model *m, int i, bool verbose,
                     struct err *err)
{
    struct request_embedding *e = &r->embedding[i];
    struct embedding_list l = {0};
    struct tensor_file *f = NULL;
    char sha[HASH_HEX];
    size_t size = 0;
    int rc = relocate(r, e, err);
    if (rc == 0 && e->found && !file_exists(e->path) && !is_demanded(r, e->name ? e->name : "")) {
        fprintf(stderr, "'%s' would be an embedding of the repository, but %s is gone\n",
                e->name ? e->name : "?", e->path);
        return 0;
    }
    rc = rc < 0 ? rc : tensor_file_open(&f, e->path, err);
    if (rc == 0) {
        const void *data = tensor_file_data(f, &size);
        rc = hash_bytes(sha, data, size, err);
    }
    if (rc == 0 && *e->sha256 && strcmp(sha, e->sha256))
        rc = err_set(err, ERR_MISMATCH,
                     e->found ? "%s: not what was added; weft sync takes it as it is"
                              : "%s: not the file the picture was made with (its vectors differ)",
                     e->path);
    if (rc == 0)
        memcpy(e->sha256, sha, sizeof sha);
    rc = rc < 0 ? rc : embedding_read(&l, f, e->path, err);
    rc = rc < 0     ? rc
         : e->found ? add_found(w, r, m, e, &l, verbose, err)
                    : add_file(w, e, &l, verbose, err);
    embedding_list_release(&l);
    tensor_file_close(f);
    return rc;
}

/* Words that an adapter brings. --embedding goes before them; what two adapters bring is not clear, and
 * what does not fit matters only to a prompt that uses it. n_given: words of --embedding. */
static int add_bundled(struct words *w, const struct model *m, int n_given,
                       const struct adapter_file *f, bool verbose, struct err *err)
{
    struct embedding_list l = {0};
    int rc = embedding_read(&l, f->st, f->path, err), before = words_count(w);
    for (int i = 0; i < l.n && rc == 0; i++) {
        const struct embedding *e = &l.item[i];
        int old = words_find(w, e->name);
        char why[120];
        if (old >= 0 && old < n_given)
            continue;
        if (old >= 0 && old < before)
            rc =
                words_add_refused(w, e->name, "two of the adapters bring a word of this name", err);
        else if (!fits(e, m) && (e->width == words_width(w) || !has_twin(&l, e, words_width(w))))
            rc = words_add_refused(w, e->name, misfit(why, sizeof why, e, m), err);
        else
            rc = add(w, &l, e, e->name, err);
        if (rc == 0 && verbose)
            tell(e, e->name, f->path);
    }
    embedding_list_release(&l);
    return rc;
}

int embeddings_open(struct words **out, struct request *r, const struct model *m,
                    struct adapter_file *const *file, bool verbose, struct err *err)
{
    int rc = words_new(out, m->tokenizer, m->text->tower.width, err);
    for (int i = 0; i < r->n_embedding && rc == 0; i++)
        rc = open_file(*out, r, m, i, verbose, err);
    int n_given = *out ? words_count(*out) : 0;
    for (int i = 0; i < r->n_adapter && rc == 0; i++)
        rc = add_bundled(*out, m, n_given, file[i], verbose, err);
    int i = r->n_embedding;
    rc = rc < 0 ? rc : request_find_embeddings(r, err);
    for (; i < r->n_embedding && rc == 0; i++)
        rc = open_file(*out, r, m, i, verbose, err);
    return rc;
}

int embeddings_settle(const struct words *w, struct request *r, bool quiet, struct err *err)
{
    for (int i = r->n_embedding - 1; i >= 0; i--) {
        const struct request_embedding *e = &r->embedding[i];
        bool used = false;
        for (int k = e->first; k < e->first + e->n_word; k++)
            used |= words_used(w, k);
        if (!used && e->found)
            request_drop_embedding(r, i);
        else if (e->found && !quiet)
            fprintf(stderr, "'%s' in the prompt is the embedding %s\n", words_name(w, e->first),
                    e->path);
        else if (!used && e->given)
            return err_set(err, ERR_ARG,
                           "%s: neither prompt has its word '%.100s'%s; --embedding FILE=NAME "
                           "calls it NAME",
                           e->path, words_name(w, e->first), e->n_word > 1 ? " or another" : "");
    }
    return 0;
}
