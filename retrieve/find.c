#include "find.h"
#include "response.h"

#include "store/adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_WORDS = 16, LEAST_LETTERS = 3 };

/* What is asked for: the text, and each of its words alone. */
struct asked {
    const struct responder *re;
    struct query text;
    struct query word[MOST_WORDS];
    char name[MOST_WORDS][32];
    int n;
};

static void asked_release(struct asked *q)
{
    query_release(&q->text);
    for (int i = 0; i < q->n; i++)
        query_release(&q->word[i]);
}

static int ask(struct asked *q, const char *text, struct err *err)
{
    int rc = responder_ask(q->re, text, &q->text, err);
    for (const char *p = text; *p && rc == 0 && q->n < MOST_WORDS;) {
        size_t skip = strspn(p, " ,.;:\"'()"), n = strcspn(p + skip, " ,.;:\"'()");
        struct err none;
        p += skip;
        if (n >= LEAST_LETTERS && n < sizeof q->name[0]) {
            snprintf(q->name[q->n], sizeof q->name[0], "%.*s", (int)n, p);
            if (responder_ask(q->re, q->name[q->n], &q->word[q->n], &none) == 0)
                q->n++;
            else
                query_release(&q->word[q->n]);
        }
        p += n;
    }
    return rc;
}

static void score(const struct asked *q, const struct response *a, struct found *f)
{
    double best = -INFINITY;
    f->score = response_score(q->re, a, &q->text);
    *f->word = 0;
    for (int i = 0; i < q->n; i++) {
        double x = response_score(q->re, a, &q->word[i]);
        if (x > best) {
            best = x;
            memcpy(f->word, q->name[i], sizeof f->word);
        }
    }
}

struct keys {
    int64_t *at;
    int n, room;
    struct err *err;
};

static int add_key(void *user, const struct repo_adapter *a)
{
    struct keys *k = user;
    if (a->unusable || a->missing)
        return 0;
    if (k->n == k->room) {
        int room = k->room ? 2 * k->room : 64;
        int64_t *more = realloc(k->at, (size_t)room * sizeof *more);
        if (!more)
            return err_nomem(k->err, (size_t)room * sizeof *more);
        k->at = more;
        k->room = room;
    }
    k->at[k->n++] = a->key;
    return 0;
}

/* From the file. A file that is not what was added, or does not fit, is silent and no error. */
static int read_file(struct repo *r, const struct model *m, const struct responder *re,
                     const struct repo_adapter *a, struct response *out, struct err *err)
{
    struct adapter_file *f = NULL;
    struct adapter *bound = NULL;
    struct bind_report misfits = {0};
    struct err why;
    int rc = 0;
    memset(out, 0, sizeof *out);
    out->silent = true;
    if (repo_check(r, a, &why) == 0 && adapter_file_open(&f, a->path, &why) == 0 &&
        adapter_bind(&bound, m->dev, &m->sites, &f->list, a->name, true, &misfits, &why) == 0) {
        rc = responder_read(re, bound, out, err);
        if (rc == 0)
            rc = repo_set_response(r, a->data_sha256, m->fingerprint,
                                   out->silent ? (double)NAN : out->plain, out->row,
                                   (size_t)RESPONSE_ROWS * (size_t)responder_width(re), err);
    }
    bind_report_release(&misfits);
    adapter_free(bound);
    adapter_file_close(f);
    return rc;
}

/* room: [RESPONSE_ROWS, width] for what was kept. */
static int score_one(struct repo *r, const struct model *m, const struct asked *q, float *room,
                     struct found *f, struct err *err)
{
    const struct responder *re = q->re;
    struct repo_adapter a;
    struct response kept = {.row = room}, own = {0};
    int rc = repo_at(r, f->key, &a, err);
    f->score = -INFINITY;
    if (rc != 0)
        return rc < 0 ? rc : 0;
    rc = repo_response(r, a.data_sha256, m->fingerprint, &kept.plain, room,
                       (size_t)RESPONSE_ROWS * (size_t)responder_width(re), err);
    kept.silent = isnan(kept.plain);
    if (rc == 1)
        rc = read_file(r, m, re, &a, &own, err);
    if (rc == 0)
        score(q, own.row || own.silent ? &own : &kept, f);
    response_release(&own);
    repo_adapter_release(&a);
    return rc;
}

static int best_first(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return (x->key > y->key) - (x->key < y->key);
}

static int score_all(struct repo *r, const struct model *m, const struct keys *k,
                     const struct asked *q, int (*progress)(void *user, int done, int total),
                     void *user, struct found *out, int *n, int *skipped, struct err *err)
{
    float *room = malloc((size_t)RESPONSE_ROWS * (size_t)responder_width(q->re) * sizeof *room);
    int rc = room ? 0 : err_nomem(err, (size_t)responder_width(q->re));
    for (int i = 0; i < k->n && rc == 0; i++) {
        struct found *f = &out[*n];
        if (progress && progress(user, i, k->n))
            rc = err_set(err, ERR_STOPPED, "stopped");
        f->key = k->at[i];
        rc = rc < 0 ? rc : score_one(r, m, q, room, f, err);
        if (rc == 0 && isfinite(f->score))
            ++*n;
        else
            ++*skipped;
    }
    if (rc == 0 && progress)
        progress(user, k->n, k->n);
    free(room);
    return rc;
}

int find_by_weights(struct repo *r, const struct model *m, const char *text,
                    int (*progress)(void *user, int done, int total), void *user,
                    struct found **out, int *n, int *skipped, struct err *err)
{
    const struct repo_filter fits = {.context = m->text->tower.width};
    struct keys k = {.err = err};
    struct responder *re = NULL;
    struct asked q = {.n = 0};
    *out = NULL;
    *n = *skipped = 0;
    int rc = repo_list(r, &fits, add_key, &k, err);
    rc = rc < 0 ? rc : responder_open(&re, m, err);
    q.re = re;
    rc = rc < 0 ? rc : ask(&q, text, err);
    if (rc == 0 && !(*out = malloc(((size_t)k.n + 1) * sizeof **out)))
        rc = err_nomem(err, (size_t)k.n * sizeof **out);
    rc = rc < 0 ? rc : score_all(r, m, &k, &q, progress, user, *out, n, skipped, err);
    if (rc == 0)
        qsort(*out, (size_t)*n, sizeof **out, best_first);
    asked_release(&q);
    responder_close(re);
    free(k.at);
    return rc;
}

/* ---- fusion ---------------------------------------------------------------------------------- */

static int by_key(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    return (x->key > y->key) - (x->key < y->key);
}

int find_fuse(const struct found *const *list, const int *n, int lists, struct found **out,
              int *n_out, struct err *err)
{
    enum { K = 60 };
    size_t all = 0, at = 0, kept = 0;
    for (int i = 0; i < lists; i++)
        all += (size_t)n[i];
    struct found *f = malloc((all + 1) * sizeof *f);
    *out = f;
    *n_out = 0;
    if (!f)
        return err_nomem(err, all * sizeof *f);
    for (int i = 0; i < lists; i++)
        for (int k = 0; k < n[i]; k++)
            f[at++] = (struct found){.key = list[i][k].key, .score = 1.0 / (K + k + 1)};
    qsort(f, all, sizeof *f, by_key);
    for (size_t i = 0; i < all; i++) {
        if (kept && f[kept - 1].key == f[i].key)
            f[kept - 1].score += f[i].score;
        else
            f[kept++] = f[i];
    }
    qsort(f, kept, sizeof *f, best_first);
    *n_out = (int)kept;
    return 0;
}
