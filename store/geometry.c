#include "geometry.h"

#include "adapter.h"
#include "repo_private.h"

#include "unet/matrices.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The sketch says about a tenth: what it finds this much below is looked at exactly. */
#define MARGIN 0.3

/* One adapter to be compared. */
struct place {
    struct repo_adapter a;
    float sketch[SKETCH_SIZE];
    double norm;
    bool usable;
};

struct places {
    struct place *at;
    int n, cap;
    struct err *err;
};

static void places_release(struct places *p)
{
    for (int i = 0; i < p->n; i++)
        repo_adapter_release(&p->at[i].a);
    free(p->at);
    memset(p, 0, sizeof *p);
}

void near_free(struct near *list, int n)
{
    for (int i = 0; i < n; i++) {
        repo_adapter_release(&list[i].a);
        repo_adapter_release(&list[i].b);
    }
    free(list);
}

/* Takes a row: only its key, all else is read again later. */
static int add_key(void *user, const struct repo_adapter *a)
{
    struct places *p = user;
    if (p->n == p->cap) {
        int cap = p->cap ? 2 * p->cap : 64;
        struct place *q = realloc(p->at, (size_t)cap * sizeof *q);
        if (!q)
            return err_nomem(p->err, (size_t)cap * sizeof *q);
        p->at = q;
        p->cap = cap;
    }
    memset(&p->at[p->n], 0, sizeof *p->at);
    p->at[p->n++].a.key = a->key;
    return 0;
}

static int open_matrices(const struct repo_adapter *a, struct adapter_file **f, struct matrices *m,
                         struct err *err)
{
    memset(m, 0, sizeof *m);
    int rc = adapter_file_open(f, a->path, err);
    return rc < 0 ? rc : matrices_load(m, &(*f)->list, err);
}

static int load_sketch(struct repo *r, struct place *p, struct err *err)
{
    sqlite3_stmt *q;
    int rc = db_query(r->db, err, &q, "SELECT norm, sketch FROM sketch WHERE data_sha256 = ?", "s",
                      p->a.data_sha256);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    if (rc == 1 && sqlite3_column_bytes(q, 1) == (int)sizeof p->sketch) {
        p->norm = db_number(q, 0);
        memcpy(p->sketch, sqlite3_column_blob(q, 1), sizeof p->sketch);
    } else if (rc == 1) {
        rc = 0;
    }
    db_done(q);
    return rc;
}

static int keep_sketch(struct repo *r, const struct place *p, int left, struct err *err)
{
    return !r->write ? 0
                     : db_do(r->db, err,
                             "INSERT OR REPLACE INTO sketch (data_sha256, norm, left_out, sketch) "
                             "VALUES (?, ?, ?, ?)",
                             "sdiv", p->a.data_sha256, p->norm, (int64_t)left, p->sketch,
                             sizeof p->sketch);
}

/* What is in the table, else from the file, which is then kept. A file that is gone, changed or holds no
 * matrices is not usable, and no error. */
static int place_fill(struct repo *r, struct place *p, struct err *err)
{
    struct adapter_file *f = NULL;
    struct matrices m = {0};
    struct err why;
    int rc = load_sketch(r, p, err);
    if (rc == 0 && !p->a.missing && repo_check(r, &p->a, &why) == 0 &&
        open_matrices(&p->a, &f, &m, &why) == 0) {
        p->norm = matrices_norm(&m);
        rc = matrices_sketch(&m, p->sketch, err);
        rc = rc < 0 ? rc : keep_sketch(r, p, m.left, err);
    }
    p->usable = rc >= 0 && isfinite(p->norm) && p->norm > 0;
    matrices_release(&m);
    adapter_file_close(f);
    return rc < 0 ? rc : 0;
}

static int places_fill(struct repo *r, struct places *p,
                       int (*progress)(void *user, int done, int total), void *user, int *skipped,
                       struct err *err)
{
    int rc = 0;
    for (int i = 0; i < p->n && rc == 0; i++) {
        if (progress && progress(user, i, p->n))
            return err_set(err, ERR_STOPPED, "stopped");
        rc = repo_at(r, p->at[i].a.key, &p->at[i].a, err);
        rc = rc < 0 ? rc : place_fill(r, &p->at[i], err);
        if (skipped && rc == 0 && !p->at[i].usable)
            ++*skipped;
    }
    if (rc == 0 && progress)
        progress(user, p->n, p->n);
    return rc;
}

/* All adapters there are. */
static int places_all(struct repo *r, struct places *p,
                      int (*progress)(void *user, int done, int total), void *user, int *skipped,
                      struct err *err)
{
    struct repo_filter all = {0};
    p->err = err;
    int rc = repo_list(r, &all, add_key, p, err);
    return rc < 0 ? rc : places_fill(r, p, progress, user, skipped, err);
}

/* The exact cosine, or NaN when a file cannot be read any more. */
static double exact(const struct place *x, const struct place *y)
{
    struct adapter_file *f = NULL, *g = NULL;
    struct matrices a = {0}, b = {0};
    struct err why;
    double c = NAN;
    if (open_matrices(&x->a, &f, &a, &why) == 0 && open_matrices(&y->a, &g, &b, &why) == 0)
        c = matrices_inner(&a, &b) / (x->norm * y->norm);
    matrices_release(&a);
    matrices_release(&b);
    adapter_file_close(f);
    adapter_file_close(g);
    return c;
}

/* Adds the pair when it is near enough. */
static int try_pair(struct repo *r, const struct place *x, const struct place *y, double least,
                    bool both, struct near **list, int *n, struct err *err)
{
    if (!x->usable || !y->usable ||
        fabs(sketch_inner(x->sketch, y->sketch)) < (least - MARGIN) * x->norm * y->norm)
        return 0;
    double c = strcmp(x->a.data_sha256, y->a.data_sha256) ? exact(x, y) : 1;
    if (!(fabs(c) >= least))
        return 0;
    struct near *p = realloc(*list, ((size_t)*n + 1) * sizeof *p);
    if (!p)
        return err_nomem(err, ((size_t)*n + 1) * sizeof *p);
    *list = p;
    p[*n] = (struct near){.cosine = c, .ratio = y->norm / x->norm};
    int rc = repo_at(r, both ? x->a.key : y->a.key, &p[*n].a, err);
    if (rc == 0 && both)
        rc = repo_at(r, y->a.key, &p[*n].b, err);
    ++*n;
    return rc < 0 ? rc : 0;
}

static int nearest_first(const void *a, const void *b)
{
    double x = fabs(((const struct near *)a)->cosine), y = fabs(((const struct near *)b)->cosine);
    if (x != y)
        return x < y ? 1 : -1;
    return strcmp(((const struct near *)a)->a.name, ((const struct near *)b)->a.name);
}

int geometry_near(struct repo *r, const struct repo_adapter *a, double least,
                  int (*progress)(void *user, int done, int total), void *user, struct near **out,
                  int *n, int *skipped, struct err *err)
{
    struct places p = {0};
    int self = -1;
    *out = NULL;
    *n = 0;
    int rc = places_all(r, &p, progress, user, skipped, err);
    for (int i = 0; i < p.n && rc == 0; i++)
        self = p.at[i].a.key == a->key ? i : self;
    if (rc == 0 && (self < 0 || !p.at[self].usable))
        rc = err_set(err, ERR_UNSUPPORTED,
                     "%s: its weights cannot be compared: the file is gone or changed, or they are "
                     "no matrices without the model",
                     a->name);
    for (int i = 0; i < p.n && rc == 0; i++)
        if (i != self)
            rc = try_pair(r, &p.at[self], &p.at[i], least, false, out, n, err);
    if (*n)
        qsort(*out, (size_t)*n, sizeof **out, nearest_first);
    places_release(&p);
    return rc;
}

int geometry_pairs(struct repo *r, double least, int (*progress)(void *user, int done, int total),
                   void *user, struct near **out, int *n, int *skipped, struct err *err)
{
    struct places p = {0};
    *out = NULL;
    *n = 0;
    int rc = places_all(r, &p, progress, user, skipped, err);
    for (int i = 0; i < p.n && rc == 0; i++)
        for (int j = i + 1; j < p.n && rc == 0; j++)
            rc = try_pair(r, &p.at[i], &p.at[j], least, true, out, n, err);
    if (*n)
        qsort(*out, (size_t)*n, sizeof **out, nearest_first);
    places_release(&p);
    return rc;
}

int geometry_sketches(struct repo *r, const int64_t *key, int n,
                      int (*progress)(void *user, int done, int total), void *user, float *unit,
                      struct err *err)
{
    struct places p = {.err = err};
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++)
        rc = add_key(&p, &(struct repo_adapter){.key = key[i]});
    rc = rc < 0 ? rc : places_fill(r, &p, progress, user, NULL, err);
    for (int i = 0; i < n && rc == 0; i++) {
        double norm = sqrt(sketch_inner(p.at[i].sketch, p.at[i].sketch) * SKETCH_SIZE);
        bool usable = p.at[i].usable && isfinite(norm) && norm > 0;
        for (int k = 0; k < SKETCH_SIZE; k++)
            unit[(size_t)i * SKETCH_SIZE + (size_t)k] =
                usable ? (float)(p.at[i].sketch[k] / norm) : 0;
    }
    places_release(&p);
    return rc;
}
