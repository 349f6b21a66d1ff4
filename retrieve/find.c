#include "find.h"
#include "algebra.h"
#include "concepts.h"
#include "encoder.h"
#include "index.h"
#include "learn.h"
#include "response.h"

#include "store/adapter.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST_WORDS = 16, LEAST_LETTERS = 3, OTHERS = 128 };

/* What is known of an adapter by weights. */
struct known {
    int64_t key;
    struct response response;
    float *vector; /* [dim]; owned; NULL: there is none */
};

struct finder {
    struct repo *r;
    const struct model *m;
    struct responder *re;
    struct learnt *learnt; /* its owner's, or NULL */
    struct encoder *made;  /* for the model, or NULL; see encoder() */
    struct index *ix;
    int width;
    float *room; /* [RESPONSE_ROWS, width] for what was kept */
    /* some of the repository's, by which is told what all answer to; owned */
    struct response other[OTHERS];
    int n_other;
    /* where nothing can be kept: what was read in this process */
    struct known *own;
    int n_own;
};

/* ---- opening --------------------------------------------------------------------------------- */

int finder_open(struct finder **out, struct repo *r, const struct model *m, const char *retriever,
                const char *scorer, struct err *err)
{
    struct finder *f = calloc(1, sizeof *f);
    *out = NULL;
    if (!f)
        return err_nomem(err, sizeof *f);
    f->r = r;
    f->m = m;
    void *kept = NULL;
    size_t size = 0;
    int rc = repo_neutral(r, m->fingerprint, &kept, &size, err);
    bool known = rc == 0;
    rc = rc < 0 ? rc : responder_open(&f->re, m, kept, size, err);
    free(kept);
    if (rc == 0 && !known) {
        const void *told = responder_keep(f->re, &size);
        rc = repo_set_neutral(r, m->fingerprint, told, size, err);
    }
    if (rc == 0) {
        f->width = responder_width(f->re);
        f->room = malloc((size_t)RESPONSE_ROWS * (size_t)f->width * sizeof *f->room);
        rc = f->room ? 0 : err_nomem(err, (size_t)f->width);
    }
    rc = rc < 0 ? rc : learnt_open(&f->learnt, r, m, f->re, err);
    rc = rc < 0 ? rc : 0;
    if (rc == 0 && retriever && scorer) {
        rc = encoder_open(&f->made, m, f->re, retriever, scorer, err);
        if (rc == ERR_MISMATCH) { /* another model's */
            err_clear(err);
            rc = 0;
        }
    }
    if (rc < 0)
        finder_close(f);
    else
        *out = f;
    return rc;
}

/* What was learnt goes before it. */
static struct encoder *encoder(const struct finder *f)
{
    return f->learnt ? NULL : f->made;
}

/* What vectors are kept under and how long they are; NULL, 0: there are none. */
static const char *vectors(const struct finder *f, int *dim)
{
    *dim = f->learnt ? f->width : f->made ? f->made->dim : 0;
    return f->learnt ? learnt_name(f->learnt) : f->made ? f->made->name : NULL;
}

static void known_release(struct known *k)
{
    response_release(&k->response);
    free(k->vector);
}

void finder_close(struct finder *f)
{
    if (!f)
        return;
    for (int i = 0; i < f->n_own; i++)
        known_release(&f->own[i]);
    for (int i = 0; i < f->n_other; i++)
        response_release(&f->other[i]);
    free(f->own);
    free(f->room);
    index_close(f->ix);
    learnt_close(f->learnt);
    encoder_close(f->made);
    responder_close(f->re);
    free(f);
}

double finder_least(const struct finder *f)
{
    return encoder(f) ? encoder(f)->match[3] : (double)NAN;
}

/* ---- keys ------------------------------------------------------------------------------------ */

struct keys {
    struct key {
        int64_t adapter;
        double likeness; /* NAN: not known */
    } * at;              /* owned */
    int n, room;
    double now; /* the likeness of what is added */
    struct err *err;
};

static int add_key(void *user, const struct repo_adapter *a)
{
    struct keys *k = user;
    if (a->unusable || a->missing)
        return 0;
    if (k->n == k->room) {
        size_t room = k->room ? 2 * (size_t)k->room : 64;
        struct key *more = realloc(k->at, room * sizeof *more);
        if (!more)
            return err_nomem(k->err, room * sizeof *more);
        k->at = more;
        k->room = (int)room;
    }
    k->at[k->n++] = (struct key){a->key, k->now};
    return 0;
}

/* ---- reading --------------------------------------------------------------------------------- */

static int learn(struct finder *f, const struct adapter *bound, struct known *k, double *strength,
                 struct err *err)
{
    int dim, rc = responder_read(f->re, bound, &k->response, err);
    vectors(f, &dim);
    if (rc < 0 || !dim)
        return rc;
    k->vector = malloc((size_t)dim * sizeof *k->vector);
    rc = !k->vector  ? err_nomem(err, (size_t)dim)
         : f->learnt ? learnt_read(f->learnt, &k->response, k->vector, err)
                     : encoder_read(f->made, bound, &k->response, k->vector, strength, err);
    if (rc == 1) {
        free(k->vector);
        k->vector = NULL;
    }
    return rc < 0 ? rc : 0;
}

static int keep(struct finder *f, const struct repo_adapter *a, const struct known *k,
                double strength, struct err *err)
{
    const struct response *p = &k->response;
    int dim, rc = repo_set_response(f->r, a->data_sha256, f->m->fingerprint,
                                    p->silent ? (double)NAN : p->plain, p->row,
                                    (size_t)RESPONSE_ROWS * (size_t)f->width, err);
    const char *name = vectors(f, &dim);
    if (rc == 0 && name)
        rc = repo_set_embedding(f->r, a->data_sha256, name, k->vector, dim, strength, err);
    return rc;
}

/* What was learnt needs answers alone, which may be kept: then 0, else 1. */
static int read_kept(struct finder *f, const struct repo_adapter *a, struct known *k,
                     struct err *err)
{
    struct response kept = {.row = f->room};
    if (!f->learnt)
        return 1;
    int rc = repo_response(f->r, a->data_sha256, f->m->fingerprint, &kept.plain, f->room,
                           (size_t)RESPONSE_ROWS * (size_t)f->width, err);
    if (rc != 0)
        return rc;
    kept.silent = isnan(kept.plain);
    k->response = kept;
    k->response.row = malloc((size_t)RESPONSE_ROWS * (size_t)f->width * sizeof(float));
    k->vector = malloc((size_t)f->width * sizeof *k->vector);
    if (!k->response.row || !k->vector)
        return err_nomem(err, (size_t)f->width * sizeof *k->vector);
    memcpy(k->response.row, f->room, (size_t)RESPONSE_ROWS * (size_t)f->width * sizeof(float));
    rc = learnt_read(f->learnt, &kept, k->vector, err);
    if (rc == 1) {
        free(k->vector);
        k->vector = NULL;
    }
    return rc < 0 ? rc
                  : repo_set_embedding(f->r, a->data_sha256, learnt_name(f->learnt), k->vector,
                                       f->width, 1, err);
}

/* An adapter of the repository from its file, bound. */
struct opened {
    struct adapter_file *file;
    struct adapter *bound;
};

static void opened_release(struct opened *o)
{
    adapter_free(o->bound);
    adapter_file_close(o->file);
}

/* 1 for one that is not what was added, or does not fit. */
static int open_one(const struct finder *f, const struct repo_adapter *a, struct opened *o)
{
    struct bind_report misfits = {0};
    struct err why;
    *o = (struct opened){NULL, NULL};
    bool good = repo_check(f->r, a, &why) == 0 && adapter_file_open(&o->file, a->path, &why) == 0 &&
                adapter_bind(&o->bound, f->m->dev, &f->m->sites, &o->file->list, a->name, true,
                             &misfits, &why) == 0;
    bind_report_release(&misfits);
    return !good;
}

static int read_file(struct finder *f, const struct repo_adapter *a, struct known *k,
                     struct err *err)
{
    struct opened o;
    double strength = 0;
    int rc = open_one(f, a, &o);
    rc = rc ? rc : learn(f, o.bound, k, &strength, err);
    rc = rc ? rc : keep(f, a, k, strength, err);
    opened_release(&o);
    return rc;
}

static int read_one(struct finder *f, int64_t key, int *unread, struct err *err)
{
    struct repo_adapter a;
    struct known k = {.key = key};
    int rc = repo_at(f->r, key, &a, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    rc = read_kept(f, &a, &k, err);
    rc = rc == 1 ? read_file(f, &a, &k, err) : rc;
    *unread += rc == 1;
    if (rc == 0 && !repo_writes(f->r)) {
        struct known *more = realloc(f->own, ((size_t)f->n_own + 1) * sizeof *more);
        if (more) {
            f->own = more;
            f->own[f->n_own++] = k;
            k = (struct known){0};
        } else {
            rc = err_nomem(err, sizeof *more);
        }
    }
    known_release(&k);
    repo_adapter_release(&a);
    return rc < 0 ? rc : 0;
}

static const struct known *own(const struct finder *f, int64_t key)
{
    for (int i = 0; i < f->n_own; i++)
        if (f->own[i].key == key)
            return &f->own[i];
    return NULL;
}

int finder_read(struct finder *f, int (*progress)(void *user, int done, int total), void *user,
                int *unread, struct err *err)
{
    struct keys k = {.err = err};
    int dim;
    *unread = 0;
    int rc = repo_unread(f->r, f->width, f->m->fingerprint, vectors(f, &dim), add_key, &k, err);
    for (int i = 0; i < k.n && rc == 0; i++) {
        if (progress && progress(user, i, k.n))
            rc = err_set(err, ERR_STOPPED, "stopped");
        else if (!own(f, k.at[i].adapter))
            rc = read_one(f, k.at[i].adapter, unread, err);
    }
    if (rc == 0 && progress)
        progress(user, k.n, k.n);
    free(k.at);
    return rc;
}

int finder_learn(struct finder *f, int (*progress)(void *user, int done, int total), void *user,
                 struct lesson *l, struct err *err)
{
    struct learnt *learnt = NULL;
    int unread;
    learnt_close(f->learnt); /* what comes is to be better than there is without it */
    f->learnt = NULL;
    int rc = finder_read(f, progress, user, &unread, err);
    rc = rc < 0 ? rc : learn_run(f->r, f->m, f->re, f->made, &learnt, l, err);
    if (rc == 0 && l->better)
        rc = learnt_keep(learnt, f->r, f->m, err);
    learnt_close(learnt);
    return rc;
}

/* ---- asking ---------------------------------------------------------------------------------- */

struct take {
    struct finder *f;
    struct err *err;
};

static int add_other(void *user, double plain, const float *row)
{
    struct take *t = user;
    struct finder *f = t->f;
    size_t n = (size_t)RESPONSE_ROWS * (size_t)f->width * sizeof *row;
    float *copy = malloc(n);
    if (!copy)
        return err_nomem(t->err, n);
    memcpy(copy, row, n);
    f->other[f->n_other++] = (struct response){.row = copy, .plain = plain};
    return 0;
}

static int take_others(struct finder *f, struct err *err)
{
    struct take t = {f, err};
    for (int i = 0; i < f->n_other; i++)
        response_release(&f->other[i]);
    f->n_other = 0;
    int rc = repo_responses(f->r, f->m->fingerprint, (size_t)RESPONSE_ROWS * (size_t)f->width,
                            OTHERS, add_other, &t, err);
    for (int i = 0; i < f->n_own && f->n_other < OTHERS && rc == 0; i++)
        if (!f->own[i].response.silent)
            rc = add_other(&t, f->own[i].response.plain, f->own[i].response.row);
    return rc;
}

/* One text that is asked for: its states, and what the others answer to each. */
struct question {
    struct query q;
    double *mean, *now; /* [q.n] */
    char name[32];
};

static void question_release(struct question *q)
{
    query_release(&q->q);
    free(q->mean);
}

static int question_make(const struct finder *f, struct question *q, const char *text,
                         struct err *err)
{
    enum { DOUBT = 4 }; /* so many more that answer to nothing */
    int rc = responder_ask(f->re, text, &q->q, err);
    if (rc < 0)
        return rc;
    size_t n = (size_t)q->q.n;
    q->mean = calloc(2 * n, sizeof *q->mean);
    if (!q->mean)
        return err_nomem(err, n * sizeof *q->mean);
    q->now = q->mean + n;
    for (int i = 0; i < f->n_other; i++) {
        response_tokens(f->re, &f->other[i], &q->q, q->now);
        for (size_t k = 0; k < n; k++)
            q->mean[k] += fmax(q->now[k], -3) / (f->n_other + DOUBT);
    }
    return 0;
}

static double pooled(const struct finder *f, const struct response *a, const struct question *q)
{
    response_tokens(f->re, a, &q->q, q->now);
    return response_pool(q->now, q->mean, q->q.n);
}

/* What is asked for: the text, and each of its words alone. */
struct asked {
    struct question text, word[MOST_WORDS];
    int n;
};

static void asked_release(struct asked *q)
{
    question_release(&q->text);
    for (int i = 0; i < q->n; i++)
        question_release(&q->word[i]);
}

static int ask(const struct finder *f, struct asked *q, const char *text, struct err *err)
{
    int rc = question_make(f, &q->text, text, err);
    for (const char *p = text; *p && rc == 0 && q->n < MOST_WORDS;) {
        size_t skip = strspn(p, " ,.;:\"'()"), n = strcspn(p + skip, " ,.;:\"'()");
        struct question *w = &q->word[q->n];
        struct err none;
        p += skip;
        if (n >= LEAST_LETTERS && n < sizeof w->name && concepts_is_thing(p, n)) {
            snprintf(w->name, sizeof w->name, "%.*s", (int)n, p);
            if (question_make(f, w, w->name, &none) == 0)
                q->n++;
            else
                question_release(w);
        }
        p += n;
    }
    return rc;
}

static void score(const struct finder *f, const struct asked *q, const struct response *a,
                  struct found *to)
{
    double best = -INFINITY;
    to->answer = pooled(f, a, &q->text);
    *to->word = 0;
    for (int i = 0; i < q->n; i++) {
        double x = pooled(f, a, &q->word[i]);
        if (x > best) {
            best = x;
            memcpy(to->word, q->word[i].name, sizeof to->word);
        }
    }
    to->score = encoder(f) ? encoder_odds(encoder(f), to->likeness, to->answer) : to->answer;
}

static int score_one(struct finder *f, const struct asked *q, struct found *to, struct err *err)
{
    const struct known *k = own(f, to->key);
    struct response kept = {.row = f->room};
    struct repo_adapter a;
    if (k) {
        score(f, q, &k->response, to);
        return 0;
    }
    to->score = -INFINITY;
    int rc = repo_at(f->r, to->key, &a, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    rc = repo_response(f->r, a.data_sha256, f->m->fingerprint, &kept.plain, f->room,
                       (size_t)RESPONSE_ROWS * (size_t)f->width, err);
    kept.silent = isnan(kept.plain);
    if (rc == 0)
        score(f, q, &kept, to);
    repo_adapter_release(&a);
    return rc < 0 ? rc : 0;
}

/* Those whose vectors are nearest to the text's. */
static int nearest(struct finder *f, const char *text, const struct query *q, struct keys *k,
                   struct err *err)
{
    int dim, n = 0;
    const char *name = vectors(f, &dim);
    int64_t id[FINDER_MOST];
    float near[FINDER_MOST], *v = malloc((size_t)dim * sizeof *v);
    int rc = !v          ? err_nomem(err, (size_t)dim)
             : f->learnt ? learnt_ask(f->learnt, q, v, err)
                         : encoder_ask(f->made, text, q, v, err);
    index_close(f->ix);
    f->ix = NULL;
    rc = rc < 0 ? rc : index_open(&f->ix, f->r, name, dim, err);
    rc = rc < 0 ? rc : index_search(f->ix, v, FINDER_MOST, id, near, &n, err);
    for (int i = 0; i < n && rc == 0; i++) {
        k->now = near[i];
        rc = repo_embedding_adapters(f->r, id[i], add_key, k, err);
    }
    for (int i = 0; i < f->n_own && rc == 0; i++) {
        const struct repo_adapter a = {.key = f->own[i].key};
        k->now = f->own[i].vector ? vector_dot(f->own[i].vector, v, dim) : (double)NAN;
        rc = add_key(k, &a);
    }
    free(v);
    return rc;
}

static int best_first(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    if (x->score != y->score)
        return x->score < y->score ? 1 : -1;
    return (x->key > y->key) - (x->key < y->key);
}

static int join(struct found *list, int n, struct err *err)
{
    double *x = malloc(3 * ((size_t)n + 1) * sizeof *x);
    if (!x)
        return err_nomem(err, 3 * (size_t)n * sizeof *x);
    for (int i = 0; i < n; i++) {
        x[i] = list[i].answer;
        x[n + i] = list[i].likeness;
    }
    learnt_join(x + 2 * n, x, x + n, n);
    for (int i = 0; i < n; i++)
        list[i].score = x[2 * n + i];
    free(x);
    return 0;
}

/* Odds to likelihoods. */
static void share(struct found *list, int n)
{
    double all = 1;
    for (int i = 0; i < n; i++)
        all += list[i].score;
    for (int i = 0; i < n; i++)
        list[i].score /= all;
}

static int ask_once(struct finder *f, const char *text, struct found **out, int *n, struct err *err)
{
    const struct repo_filter fits = {.context = f->width};
    struct keys k = {.err = err, .now = NAN};
    struct asked q = {.n = 0};
    int dim;
    *out = NULL;
    *n = 0;
    int rc = ask(f, &q, text, err);
    if (rc == 0)
        rc = vectors(f, &dim) ? nearest(f, text, &q.text.q, &k, err)
                              : repo_list(f->r, &fits, add_key, &k, err);
    if (rc == 0 && !(*out = malloc(((size_t)k.n + 1) * sizeof **out)))
        rc = err_nomem(err, (size_t)k.n * sizeof **out);
    for (int i = 0; i < k.n && rc == 0; i++) {
        struct found *to = &(*out)[*n];
        *to = (struct found){
            .key = k.at[i].adapter, .likeness = k.at[i].likeness, .answer = -INFINITY};
        rc = score_one(f, &q, to, err);
        *n += isfinite(to->score);
    }
    if (rc == 0 && f->learnt)
        rc = join(*out, *n, err);
    if (rc == 0 && encoder(f))
        share(*out, *n);
    if (rc == 0)
        qsort(*out, (size_t)*n, sizeof **out, best_first);
    asked_release(&q);
    free(k.at);
    return rc;
}

/* The better of one adapter first. */
static int by_key(const void *a, const void *b)
{
    const struct found *x = a, *y = b;
    return x->key != y->key ? (x->key > y->key) - (x->key < y->key) : best_first(a, b);
}

/* Of each adapter in both lists the better; *a is new. */
static int better(struct found **a, int *n, const struct found *b, int n_b, struct err *err)
{
    struct found *all = malloc(((size_t)*n + (size_t)n_b + 1) * sizeof *all);
    int kept = 0;
    if (!all)
        return err_nomem(err, ((size_t)*n + (size_t)n_b) * sizeof *all);
    memcpy(all, *a, (size_t)*n * sizeof *all);
    memcpy(all + *n, b, (size_t)n_b * sizeof *all);
    qsort(all, (size_t)(*n + n_b), sizeof *all, by_key);
    for (int i = 0; i < *n + n_b; i++)
        if (!kept || all[kept - 1].key != all[i].key)
            all[kept++] = all[i];
    free(*a);
    *a = all;
    *n = kept;
    return 0;
}

int finder_ask(struct finder *f, const char *text, struct found **out, int *n, struct err *err)
{
    struct concept c[CONCEPTS_MOST];
    int parts = concepts_split(text, c), rc = take_others(f, err);
    *out = NULL;
    *n = 0;
    rc = rc < 0 ? rc : ask_once(f, text, out, n, err);
    for (int i = 0; i < parts && parts > 1 && rc == 0; i++) {
        struct found *more = NULL;
        char part[sizeof c[i].text + 2];
        int count = 0;
        snprintf(part, sizeof part, "a %s", c[i].text);
        rc = ask_once(f, part, &more, &count, err);
        rc = rc < 0 ? rc : better(out, n, more, count, err);
        free(more);
    }
    if (rc == 0)
        qsort(*out, (size_t)*n, sizeof **out, best_first);
    return rc;
}

/* ---- where ------------------------------------------------------------------------------------ */

/* "unet.up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_v" as "up_blocks.0.attentions.1 to_v". */
static void short_name(const char *site, char *to, size_t size)
{
    const char *from = strncmp(site, "unet.", 5) ? site : site + 5, *last = strrchr(from, '.');
    const char *block = strstr(from, ".transformer_blocks.");
    snprintf(to, size, "%.*s%s%s", (int)(block ? block - from : (int)strlen(from)), from,
             block ? " " : "", block && last ? last + 1 : "");
}

static int name_best(const struct finder *f, const struct adapter *a, const char *text, char *to,
                     size_t size, struct err *err)
{
    enum { NAMED = 2 };
    int n = f->m->sites.n;
    double *share = malloc((size_t)n * sizeof *share);
    struct query q;
    int rc = responder_ask(f->re, text, &q, err);
    if (rc == 0 && !share)
        rc = err_nomem(err, (size_t)n * sizeof *share);
    rc = rc < 0 ? rc : responder_where(f->re, a, &q, share, err);
    for (int k = 0; k < NAMED && rc == 0; k++) {
        char name[96];
        int best = 0;
        for (int i = 1; i < n; i++)
            best = share[i] > share[best] ? i : best;
        if (!(share[best] > 0))
            break;
        short_name(f->m->sites.at[best].name, name, sizeof name);
        size_t used = strlen(to);
        snprintf(to + used, size - used, "%s%s (%.0f %%)", k ? ", " : "", name, 100 * share[best]);
        share[best] = 0;
    }
    query_release(&q);
    free(share);
    return rc;
}

int finder_where(const struct finder *f, int64_t key, const char *text, char *to, size_t size,
                 struct err *err)
{
    struct repo_adapter a;
    struct opened o;
    *to = 0;
    int rc = repo_at(f->r, key, &a, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    rc = open_one(f, &a, &o);
    rc = rc ? 0 : name_best(f, o.bound, text, to, size, err);
    opened_release(&o);
    repo_adapter_release(&a);
    return rc;
}

/* ---- adapters among themselves --------------------------------------------------------------- */

/* What an adapter does, as numbers to compare: its vector, else the rows of its answer. */
static int compared(struct finder *f, int64_t key, float *to, struct err *err)
{
    const struct known *k = own(f, key);
    size_t n = (size_t)RESPONSE_ROWS * (size_t)f->width;
    struct repo_adapter a;
    double number;
    const struct encoder *e = encoder(f);
    if (k && e && !k->vector)
        return 1;
    if (k) {
        memcpy(to, e ? k->vector : k->response.row, (e ? (size_t)e->dim : n) * sizeof *to);
        return 0;
    }
    int rc = repo_at(f->r, key, &a, err);
    if (rc != 0)
        return rc;
    rc = e ? repo_embedding(f->r, a.data_sha256, e->name, to, e->dim, &number, err)
           : repo_response(f->r, a.data_sha256, f->m->fingerprint, &number, to, n, err);
    repo_adapter_release(&a);
    return rc;
}

/* |X Y^T|^2 / (|X X^T| |Y Y^T|): the cosine of the two G (response.h). */
static double answers_alike(const float *x, const float *y, int width)
{
    double s[3] = {0};
    const float *of[3][2] = {{x, y}, {x, x}, {y, y}};
    for (int p = 0; p < 3; p++)
        for (int i = 0; i < RESPONSE_ROWS; i++)
            for (int j = 0; j < RESPONSE_ROWS; j++) {
                double d = vector_dot(of[p][0] + i * width, of[p][1] + j * width, width);
                s[p] += d * d;
            }
    return s[0] / sqrt(s[1] * s[2]);
}

double finder_alike(struct finder *f, int64_t a, int64_t b)
{
    size_t n = (size_t)RESPONSE_ROWS * (size_t)f->width;
    const struct encoder *e = encoder(f);
    n = e && (size_t)e->dim > n ? (size_t)e->dim : n;
    float *x = calloc(2 * n, sizeof *x);
    struct err none;
    double s = NAN;
    if (x && compared(f, a, x, &none) == 0 && compared(f, b, x + n, &none) == 0)
        s = e ? vector_dot(x, x + n, e->dim) : answers_alike(x, x + n, f->width);
    free(x);
    return s;
}

int finder_near(struct finder *f, int64_t key, struct found **out, int *n, struct err *err)
{
    const struct repo_filter fits = {.context = f->width};
    struct keys k = {.err = err, .now = NAN};
    int rc = repo_list(f->r, &fits, add_key, &k, err);
    *n = 0;
    *out = malloc(((size_t)k.n + 1) * sizeof **out);
    if (rc == 0 && !*out)
        rc = err_nomem(err, (size_t)k.n * sizeof **out);
    for (int i = 0; i < k.n && rc == 0; i++) {
        double alike = k.at[i].adapter == key ? (double)NAN : finder_alike(f, key, k.at[i].adapter);
        if (isfinite(alike))
            (*out)[(*n)++] = (struct found){.key = k.at[i].adapter, .score = alike};
    }
    free(k.at);
    if (rc == 0)
        qsort(*out, (size_t)*n, sizeof **out, best_first);
    *n = *n < FINDER_MOST ? *n : FINDER_MOST;
    return rc;
}

/* ---- fusion ---------------------------------------------------------------------------------- */

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
