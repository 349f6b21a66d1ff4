#include "matrices.h"

#include <limits.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void matrices_release(struct matrices *a)
{
    for (int i = 0; i < a->n; i++) {
        free(a->item[i].site);
        matrix_release(&a->item[i].m);
    }
    free(a->item);
    memset(a, 0, sizeof *a);
}

/* ---- loading --------------------------------------------------------------------------------- */

static bool is_matrix(const struct delta *d)
{
    return d->kind <= DELTA_SPARSE && !d->magnitude.data;
}

/* All kernels of these networks that are not 1 x 1 are 3 x 3, in layers of these names. */
static bool is_spatial(const char *site)
{
    static const char *const end[] = {".conv1", ".conv2", ".conv", ".conv_in", ".conv_out"};
    size_t n = strlen(site);
    for (size_t i = 0; i < sizeof end / sizeof *end; i++)
        if (n > strlen(end[i]) && !strcmp(site + n - strlen(end[i]), end[i]))
            return true;
    return false;
}

static void kernel_of(struct matrices_item *it, const struct delta *d)
{
    it->kh = it->kw = 1;
    for (int i = 0; i < 2; i++) {
        const struct array *a[] = {&d->f[i].full, &d->f[i].b, &d->f[i].t};
        for (int k = 0; k < 3; k++)
            if (a[k]->data && a[k]->ndim == 4 && a[k]->dim[2] * a[k]->dim[3] > 1 &&
                a[k]->dim[2] < 64 && a[k]->dim[3] < 64) {
                it->kh = (int)a[k]->dim[2];
                it->kw = (int)a[k]->dim[3];
            }
    }
    if (it->kh * it->kw == 1 && is_spatial(it->site) && it->m.cols % 9 == 0)
        it->kh = it->kw = 3; /* flattened in the file */
    if (it->m.cols % (size_t)(it->kh * it->kw))
        it->kh = it->kw = 1;
}

static int by_site(const void *a, const void *b)
{
    const struct matrices_item *x = a, *y = b;
    return strcmp(x->site, y->site);
}

int matrices_load(struct matrices *a, const struct delta_list *l, struct err *err)
{
    memset(a, 0, sizeof *a);
    a->item = calloc((size_t)l->n + 1, sizeof *a->item);
    if (!a->item)
        return err_nomem(err, (size_t)l->n * sizeof *a->item);
    for (int i = 0; i < l->n; i++) {
        const struct delta *d = &l->item[i].d;
        if (!is_matrix(d)) {
            a->left_kind = a->left++ ? a->left_kind : delta_kind_name(d);
            continue;
        }
        struct matrices_item *it = &a->item[a->n++];
        if (!(it->site = strdup(l->item[i].site)))
            return err_nomem(err, strlen(l->item[i].site));
        int rc = matrix_load(&it->m, d, it->site, err);
        if (rc < 0)
            return rc;
        kernel_of(it, d);
    }
    qsort(a->item, (size_t)a->n, sizeof *a->item, by_site);
    return 0;
}

/* ---- geometry -------------------------------------------------------------------------------- */

double matrices_norm(const struct matrices *a)
{
    double s = 0;
    for (int i = 0; i < a->n; i++) {
        double n = matrix_norm(&a->item[i].m);
        s += n * n;
    }
    return sqrt(s);
}

static bool same_shape(const struct matrix *a, const struct matrix *b)
{
    return (a->kind == DELTA_SPARSE && b->kind == DELTA_SPARSE) ||
           (a->rows == b->rows && a->cols == b->cols);
}

double matrices_inner(const struct matrices *a, const struct matrices *b)
{
    double s = 0;
    for (int i = 0, j = 0; i < a->n && j < b->n;) {
        int c = strcmp(a->item[i].site, b->item[j].site);
        if (c == 0 && same_shape(&a->item[i].m, &b->item[j].m))
            s += matrix_inner(&a->item[i].m, &b->item[j].m);
        i += c <= 0;
        j += c >= 0;
    }
    return s;
}

/* ---- sums ------------------------------------------------------------------------------------ */

/* All parts of one site: the next in order of names. Returns how many, and moves past them. */
static int gather(int n, const struct matrices *const *a, const double *w, int *at,
                  const struct matrix **m, double *mw, const struct matrices_item **first)
{
    int k = 0;
    *first = NULL;
    for (int i = 0; i < n; i++)
        if (at[i] < a[i]->n && (!*first || strcmp(a[i]->item[at[i]].site, (*first)->site) < 0))
            *first = &a[i]->item[at[i]];
    for (int i = 0; i < n && *first; i++)
        if (at[i] < a[i]->n && !strcmp(a[i]->item[at[i]].site, (*first)->site)) {
            m[k] = &a[i]->item[at[i]++].m;
            mw[k++] = w[i];
        }
    return k;
}

int matrices_sum(struct matrices *out, int n, const struct matrices *const *a, const double *w,
                 struct err *err)
{
    size_t total = 1;
    memset(out, 0, sizeof *out);
    for (int i = 0; i < n; i++) {
        if (a[i]->left)
            return err_set(err, ERR_UNSUPPORTED,
                           "holds %d parts of kind %s, which no sum of low "
                           "rank can hold",
                           a[i]->left, a[i]->left_kind);
        total += (size_t)a[i]->n;
    }
    int *at = calloc((size_t)n + 1, sizeof *at);
    const struct matrix **m = malloc(((size_t)n + 1) * sizeof *m);
    double *mw = malloc(((size_t)n + 1) * sizeof *mw);
    const struct matrices_item *first;
    int rc = 0, k;
    out->item = calloc(total, sizeof *out->item);
    if (!at || !m || !mw || !out->item)
        rc = err_nomem(err, total * sizeof *out->item);
    while (rc == 0 && (k = gather(n, a, w, at, m, mw, &first)) > 0) {
        struct matrices_item *it = &out->item[out->n];
        rc = matrix_sum(&it->m, k, m, mw, err);
        if (rc < 0) {
            err_prefix(err, "%s", first->site);
            break;
        }
        it->kh = first->kh;
        it->kw = first->kw;
        out->n++;
        if (!(it->site = strdup(first->site)))
            rc = err_nomem(err, strlen(first->site));
    }
    free(at);
    free(m);
    free(mw);
    return rc;
}

/* ---- lower ranks ----------------------------------------------------------------------------- */

/* The lowest rank that keeps the energy: from singular values of a first truncation. */
static int rank_for(const double *sigma, int n, double all, double energy)
{
    double s = 0;
    int k = 0;
    while (k < n && s < energy * all * (1 - 1e-12)) {
        s += sigma[k] * sigma[k];
        k++;
    }
    return k < 1 ? 1 : k;
}

/* A product of its first `rank` columns, in place. */
static void cut(struct matrix *m, int rank)
{
    struct wide *w = &m->f[0];
    for (int i = 0; i < w->rows; i++)
        memmove(w->a + (size_t)i * (size_t)rank, w->a + (size_t)i * (size_t)w->rank,
                (size_t)rank * sizeof *w->a);
    w->rank = rank;
}

static int truncate_one(struct matrix *m, int rank, double energy, double *lost, struct err *err)
{
    struct matrix t;
    int most = m->rows < (int)m->cols ? m->rows : (int)m->cols;
    double *sigma = malloc((size_t)most * sizeof *sigma), kept = 1;
    int rc = sigma ? 0 : err_nomem(err, (size_t)most * sizeof *sigma);
    rc = rc < 0 ? rc : matrix_truncate(&t, m, rank < most ? rank : most, &kept, sigma, err);
    if (rc == 0) {
        double all = 0, some = 0;
        int n = t.f[0].rank;
        for (int i = 0; i < n; i++)
            all += sigma[i] * sigma[i];
        all /= kept > 0 ? kept : 1;
        int k = energy < 1 ? rank_for(sigma, n, all, energy) : n;
        if (k < n)
            cut(&t, k);
        for (int i = 0; i < (k < n ? k : n); i++)
            some += sigma[i] * sigma[i];
        *lost += all - some;
        matrix_release(m);
        *m = t;
    }
    free(sigma);
    return rc;
}

int matrices_slice(struct matrices *a, int rank, double *kept, struct err *err)
{
    double before = matrices_norm(a);
    for (int i = 0; i < a->n; i++) {
        struct matrix *m = &a->item[i].m;
        if (m->kind != DELTA_PRODUCT || !m->f[0].rank)
            return err_set(err, ERR_UNSUPPORTED, "%s is no product of two factors to be sliced",
                           a->item[i].site);
        if (rank < m->f[0].rank)
            cut(m, rank);
    }
    double after = matrices_norm(a);
    *kept = before > 0 ? after * after / (before * before) : 1;
    return 0;
}

int matrices_truncate(struct matrices *a, int rank, double energy, double *kept, struct err *err)
{
    double all = matrices_norm(a), lost = 0;
    for (int i = 0; i < a->n; i++) {
        if (a->item[i].m.cols > INT_MAX)
            return err_set(err, ERR_UNSUPPORTED, "%s is too wide", a->item[i].site);
        int rc = truncate_one(&a->item[i].m, rank, energy, &lost, err);
        if (rc < 0) {
            err_prefix(err, "%s", a->item[i].site);
            return rc;
        }
    }
    if (kept)
        *kept = all > 0 ? 1 - lost / (all * all) : 1;
    return 0;
}
