#include "bind.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* One product bound at a site. */
struct piece {
    int part;
    const struct layer *down, *up;
    float scale;
};

/* Whether all that an adapter does at a site is products. */
static bool is_products(const struct bound *b)
{
    bool yes = b != NULL;
    for (; b; b = b->next)
        yes = yes && b->side.up.out && !b->side.gain && !b->norm[0] && !b->norm[1];
    return yes;
}

/* Of what goes through gates, only adapters that are nothing else: the others are added up before. */
static int find_pieces(struct piece *to, const struct joint *j, int site)
{
    int n = 0;
    for (int i = 0; i < j->n; i++)
        for (const struct bound *b = j->adapter[i]->at[site]; b; b = b->next) {
            if (j->what == JOINT_GATE && !is_products(j->adapter[i]->at[site]))
                continue;
            float scale = b->factor * b->side.scale;
            if (b->side.up.out)
                to[n++] = (struct piece){i, &b->side.down, &b->side.up, scale};
            if (b->side.up2.out)
                to[n++] = (struct piece){i, &b->side.down2, &b->side.up2, scale};
        }
    return n;
}

/* A layer of the joint's own beside one of a piece. */
static struct layer beside(const struct layer *l, int in, int out, const float *w)
{
    struct layer n = *l;
    n.in = in;
    n.out = out;
    n.w = (struct array){.dtype = DT_F32,
                         .ndim = 4,
                         .dim = {(uint64_t)out, (uint64_t)in, (uint64_t)l->kh, (uint64_t)l->kw},
                         .data = w};
    n.impl = NULL;
    return n;
}

static void joined_free(struct device *dev, struct joined *j)
{
    if (!j)
        return;
    layer_release(dev, &j->down);
    layer_release(dev, &j->up);
    if (j->turned)
        dev->be->free(dev, j->turned);
    free(j->values);
    free(j);
}

/* The piece as a product of its own, its scale in `up`. */
static int load(struct matrix *m, const struct piece *p, struct err *err)
{
    struct wide *f = &m->f[0];
    memset(m, 0, sizeof *m);
    m->kind = DELTA_PRODUCT;
    m->scale = 1;
    m->rows = f->rows = p->up->out;
    m->cols = f->cols = (size_t)p->down->in * (size_t)p->down->kh * (size_t)p->down->kw;
    f->rank = p->down->out;
    size_t up = (size_t)f->rows * (size_t)f->rank, down = (size_t)f->rank * f->cols;
    f->a = malloc(up * sizeof *f->a);
    f->b = malloc(down * sizeof *f->b);
    if (!f->a || !f->b)
        return err_nomem(err, (up + down) * sizeof *f->a);
    array_to_f32(&p->up->w, f->a);
    array_to_f32(&p->down->w, f->b);
    for (size_t i = 0; i < up; i++)
        f->a[i] *= p->scale;
    return 0;
}

/* U S V^T instead, as U and S V^T: up keeps lengths, so what comes down is as large as what it changes. */
static int canonical(struct matrix *m, struct err *err)
{
    struct matrix own;
    struct wide *f = &own.f[0];
    double all, *sigma = malloc((size_t)m->f[0].rank * sizeof *sigma);
    if (!sigma)
        return err_nomem(err, (size_t)m->f[0].rank * sizeof *sigma);
    int rc = matrix_truncate(&own, m, m->f[0].rank, &all, sigma, err);
    for (int k = 0; k < f->rank && rc == 0; k++) {
        float s = (float)sigma[k];
        for (int i = 0; i < f->rows && s > 0; i++)
            f->a[(size_t)i * (size_t)f->rank + (size_t)k] /= s;
        for (size_t i = 0; i < f->cols; i++)
            f->b[(size_t)k * f->cols + i] *= s;
    }
    free(sigma);
    matrix_release(m);
    *m = own;
    return rc;
}

/* Products side by side: m has n of them. */
static int put(struct joined *j, const struct matrix *m, struct err *err)
{
    size_t inner = m[0].cols, out = (size_t)m[0].rows, wide = 0, at = 0;
    for (int i = 0; i < j->n; i++)
        wide += (size_t)j->width[i];
    j->values = malloc(wide * (inner + out) * sizeof *j->values);
    if (!j->values)
        return err_nomem(err, wide * (inner + out) * sizeof *j->values);
    float *up = j->values + wide * inner;
    for (int i = 0; i < j->n; i++) {
        size_t rank = (size_t)j->width[i];
        memcpy(j->values + at * inner, m[i].f[0].b, rank * inner * sizeof *j->values);
        for (size_t r = 0; r < out; r++)
            memcpy(up + r * wide + at, m[i].f[0].a + r * rank, rank * sizeof *up);
        at += rank;
    }
    return 0;
}

/* The up factor row by row, as gates want it. */
static int turn(struct joined *j, struct device *dev, struct err *err)
{
    const float *up = j->up.w.data;
    size_t wide = (size_t)j->up.in, out = (size_t)j->up.out, n = wide * out;
    float *host = malloc(n * sizeof *host);
    j->turned = dev->be->alloc(dev, n * sizeof *host);
    int rc = host && j->turned ? 0 : err_nomem(err, n * sizeof *host);
    for (size_t i = 0; i < n && rc == 0; i++)
        host[i] = up[i % out * wide + i / out];
    if (rc == 0)
        dev->be->store(dev, j->turned, host, n);
    free(host);
    return rc;
}

static int join(struct joined *j, struct device *dev, const struct piece *p, int n,
                enum joint_for what, struct err *err)
{
    struct matrix m[2 * JOINT_MAX] = {{.kind = DELTA_PRODUCT}};
    int wide = 0, rc = 0;
    j->n = n;
    for (int i = 0; i < n && rc == 0; i++) {
        rc = load(&m[i], &p[i], err);
        rc = rc == 0 && what == JOINT_ROUTE ? canonical(&m[i], err) : rc;
        j->part[i] = p[i].part;
        j->has[p[i].part] = true;
        j->width[i] = m[i].f[0].rank;
        wide += j->width[i];
    }
    rc = rc < 0 ? rc : put(j, m, err);
    if (rc == 0) {
        const float *up = j->values + (size_t)wide * m[0].cols;
        j->down = beside(p[0].down, p[0].down->in, wide, j->values);
        j->up = beside(p[0].up, wide, p[0].up->out, up);
    }
    for (int i = 0; i < n; i++)
        matrix_release(&m[i]);
    return rc == 0 && what == JOINT_GATE ? turn(j, dev, err) : rc;
}

/* The pieces' sum as one product, by strengths. */
static int sum(struct matrix *all, const struct piece *p, int n, const float *strength,
               struct err *err)
{
    struct matrix m[2 * JOINT_MAX] = {{.kind = DELTA_PRODUCT}};
    const struct matrix *at[2 * JOINT_MAX];
    double w[2 * JOINT_MAX];
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        rc = load(&m[i], &p[i], err);
        at[i] = &m[i];
        w[i] = (double)strength[p[i].part];
    }
    rc = rc < 0 ? rc : matrix_sum(all, n, at, w, err);
    for (int i = 0; i < n; i++)
        matrix_release(&m[i]);
    return rc;
}

static int common_at(struct bound **out, const struct piece *p, int n, const float *strength,
                     int rank, struct err *err)
{
    struct bound *b = calloc(1, sizeof *b);
    struct matrix all = {.kind = DELTA_PRODUCT};
    double kept;
    *out = b;
    if (!b)
        return err_nomem(err, sizeof *b);
    int rc = sum(&all, p, n, strength, err);
    rc = rc < 0 ? rc : matrix_truncate(&b->form.m, &all, rank, &kept, NULL, err);
    matrix_release(&all);
    if (rc < 0)
        return rc;
    const struct wide *f = &b->form.m.f[0];
    b->form.out = f->rows;
    b->form.inner = f->cols;
    b->form.taps = p[0].down->kh * p[0].down->kw;
    b->factor = 1;
    b->side.scale = b->form.m.scale;
    b->side.down = beside(p[0].down, p[0].down->in, f->rank, f->b);
    b->side.up = beside(p[0].up, f->rank, p[0].up->out, f->a);
    return 0;
}

int adapter_common(struct adapter **out, const struct sites *sites, enum component part, int n,
                   const struct adapter *const *adapter, const float *strength, int rank,
                   struct err *err)
{
    struct adapter *a = calloc(1, sizeof *a);
    struct joint all = {.what = JOINT_SUM, .n = n};
    struct piece piece[2 * JOINT_MAX];
    assert(n > 0 && n <= JOINT_MAX && rank > 0);
    *out = NULL;
    if (!a)
        return err_nomem(err, sizeof *a);
    a->dev = adapter[0]->dev;
    a->n_site = sites->n;
    a->name = strdup("what they have in common");
    a->at = calloc((size_t)sites->n + 1, sizeof *a->at);
    memcpy(all.adapter, adapter, (size_t)n * sizeof(const struct adapter *));
    int rc = a->name && a->at ? 0 : err_nomem(err, (size_t)sites->n * sizeof *a->at);
    for (int i = 0; rc == 0 && i < sites->n; i++) {
        int k = sites->at[i].part == part ? find_pieces(piece, &all, i) : 0;
        if (!k)
            continue;
        rc = common_at(&a->at[i], piece, k, strength, rank, err);
        a->matched_in[part] = ++a->matched;
    }
    if (rc < 0) {
        adapter_free(a);
        return rc;
    }
    *out = a;
    return 0;
}

int joint_new(struct joint **out, const struct sites *sites, enum component part, int n,
              const struct adapter *const *adapter, enum joint_for what, struct err *err)
{
    struct joint *j = calloc(1, sizeof *j);
    struct piece piece[2 * JOINT_MAX];
    int rc = 0;
    assert(n > 0 && n <= JOINT_MAX);
    *out = NULL;
    if (!j)
        return err_nomem(err, sizeof *j);
    j->dev = adapter[0]->dev;
    j->n = n;
    j->what = what;
    j->n_site = sites->n;
    memcpy(j->adapter, adapter, (size_t)n * sizeof(const struct adapter *));
    j->at = calloc((size_t)j->n_site + 1, sizeof(struct joined *));
    rc = j->at ? 0 : err_nomem(err, (size_t)j->n_site * sizeof(struct joined *));
    for (int i = 0; rc == 0 && i < j->n_site; i++) {
        int k = sites->at[i].part == part ? find_pieces(piece, j, i) : 0;
        if (k < (what == JOINT_GATE ? 1 : 2))
            continue;
        j->at[i] = calloc(1, sizeof *j->at[i]);
        rc = j->at[i] ? join(j->at[i], j->dev, piece, k, what, err)
                      : err_nomem(err, sizeof *j->at[i]);
    }
    if (rc < 0) {
        joint_free(j);
        return rc;
    }
    *out = j;
    return 0;
}

void joint_free(struct joint *j)
{
    if (!j)
        return;
    for (int i = 0; j->at && i < j->n_site; i++)
        joined_free(j->dev, j->at[i]);
    free(j->at);
    free(j);
}

size_t joint_bytes(const struct joint *j)
{
    size_t n = 0;
    for (int i = 0; i < j->n_site; i++)
        if (j->at[i])
            n += array_count(&j->at[i]->down.w) + array_count(&j->at[i]->up.w);
    return 2 * n * sizeof(float);
}
