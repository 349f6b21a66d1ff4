#include "delta.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void delta_list_release(struct delta_list *l)
{
    for (int i = 0; i < l->n; i++)
        free(l->item[i].site);
    free(l->item);
    l->item = NULL;
    l->n = 0;
}

void bind_report_release(struct bind_report *r)
{
    for (int i = 0; i < r->n; i++)
        free(r->line[i]);
    free(r->line);
    r->line = NULL;
    r->n = 0;
}

static int report_add(struct bind_report *r, const char *site, const char *why, struct err *err)
{
    size_t size = strlen(site) + strlen(why) + 3;
    char **p = realloc(r->line, (size_t)(r->n + 1) * sizeof *p);
    if (!p)
        return err_nomem(err, size);
    r->line = p;
    p[r->n] = malloc(size);
    if (!p[r->n])
        return err_nomem(err, size);
    snprintf(p[r->n++], size, "%s: %s", site, why);
    return 0;
}

/* ---- binding --------------------------------------------------------------------------------- */

static void branch_free(struct device *dev, struct delta_branch *b)
{
    if (!b)
        return;
    layer_release(dev, &b->down);
    layer_release(dev, &b->up);
    free(b);
}

void adapter_free(struct adapter *a)
{
    if (!a)
        return;
    for (int i = 0; a->at && i < a->n_site; i++)
        branch_free(a->dev, a->at[i]);
    free(a->at);
    free(a->delta);
    free(a->name);
    free(a);
}

size_t adapter_bytes(const struct adapter *a)
{
    size_t n = 0;
    for (int i = 0; i < a->n_site; i++)
        if (a->at[i])
            n += array_count(&a->at[i]->down.w) + array_count(&a->at[i]->up.w);
    return n * sizeof(float);
}

/* Dim i of an array, 1 beyond its last. */
static uint64_t dim_of(const struct array *a, int i)
{
    return i < a->ndim ? a->dim[i] : 1;
}

/* Why the delta cannot act on the layer, or NULL. A kernel of 1 x 1 is the same as none. */
static const char *misfit(const struct delta *d, const struct layer *l, char *buf, size_t size)
{
    unsigned long long in = dim_of(&d->down, 1), out = dim_of(&d->up, 0);
    unsigned long long kh = dim_of(&d->down, 2), kw = dim_of(&d->down, 3);

    if (d->rank < 1 || dim_of(&d->down, 0) != (uint64_t)d->rank ||
        dim_of(&d->up, 1) != (uint64_t)d->rank || d->down.ndim > 4 || d->up.ndim > 4 ||
        dim_of(&d->up, 2) != 1 || dim_of(&d->up, 3) != 1)
        return "its factors do not multiply";
    if (in != (unsigned)l->in || out != (unsigned)l->out) {
        snprintf(buf, size, "it is %llu wide in and %llu out, the model's weight %d and %d", in,
                 out, l->in, l->out);
        return buf;
    }
    if (kh != (unsigned)l->kh || kw != (unsigned)l->kw) {
        snprintf(buf, size, "its kernel is %llux%llu, the model's %dx%d", kh, kw, l->kh, l->kw);
        return buf;
    }
    return NULL;
}

static int bind_one(struct adapter *a, int site, const struct layer *l, const struct delta *d,
                    struct err *err)
{
    int rc = array_finite(&d->down, l->name, err);
    rc = rc < 0 ? rc : array_finite(&d->up, l->name, err);
    if (rc < 0)
        return rc;
    if (!isfinite(d->scale))
        return err_set(err, ERR_FORMAT, "%s: alpha is not a finite number", l->name);
    struct delta_branch *b = calloc(1, sizeof *b);
    if (!b)
        return err_nomem(err, sizeof *b);
    b->scale = d->scale;
    b->down = *l;
    b->down.out = d->rank;
    b->down.w = d->down;
    b->up = (struct layer){.name = l->name, .site = -1, .kh = 1, .kw = 1, .stride = 1};
    b->up.in = d->rank;
    b->up.out = l->out;
    b->up.w = d->up;
    b->down.b.data = NULL;
    b->down.impl = NULL;
    b->down.site = -1;
    a->at[site] = b;
    a->delta[site] = *d;
    a->matched++;
    return 0;
}

/* The verdict when all deltas were tried: `wrong` of them have another width than the model's weights,
 * the first of which is described in `first`. */
static int bind_verdict(const struct adapter *a, const struct delta_list *l, int wrong,
                        const char *first, const struct bind_report *report, struct err *err)
{
    if (wrong > a->matched)
        return err_set(err, ERR_MISMATCH, "made for another base model: %s", first);
    if (a->matched == 0)
        return err_set(err, ERR_MISMATCH, "none of its %d weights can act here; the first: %.400s",
                       l->n, report->n ? report->line[0] : "there is none");
    return 0;
}

static int bind_all(struct adapter *a, const struct sites *sites, const struct delta_list *l,
                    struct bind_report *report, struct err *err)
{
    char buf[128], first[512] = "";
    int wrong = 0;
    for (int i = 0; i < l->n; i++) {
        const struct delta_item *it = &l->item[i];
        int s = sites_find(sites, it->site), rc;
        const char *why = s < 0 ? "the model has no such weight" : NULL;
        if (!why)
            why = misfit(&it->d, sites->at[s].layer, buf, sizeof buf);
        if (!why && a->at[s])
            why = "the file changes this weight twice";
        if (why == buf && wrong++ == 0)
            snprintf(first, sizeof first, "%s: %s", it->site, why);
        if (why) {
            rc = report_add(report, it->site, why, err);
        } else {
            rc = bind_one(a, s, sites->at[s].layer, &it->d, err);
            a->matched_in[sites->at[s].part]++;
        }
        if (rc < 0)
            return rc;
    }
    return bind_verdict(a, l, wrong, first, report, err);
}

int adapter_bind(struct adapter **out, struct device *dev, const struct sites *sites,
                 const struct delta_list *l, const char *name, struct bind_report *report,
                 struct err *err)
{
    struct adapter *a = calloc(1, sizeof *a);

    *out = NULL;
    if (!a)
        return err_nomem(err, sizeof *a);
    a->dev = dev;
    a->n_site = sites->n;
    a->name = strdup(name);
    a->at = calloc((size_t)sites->n + 1, sizeof *a->at);
    a->delta = calloc((size_t)sites->n + 1, sizeof *a->delta);
    int rc = a->name && a->at && a->delta ? 0 : err_nomem(err, (size_t)sites->n * sizeof *a->delta);
    if (rc == 0)
        rc = bind_all(a, sites, l, report, err);
    if (rc < 0) {
        adapter_free(a);
        return rc;
    }
    *out = a;
    return 0;
}

/* ---- folding --------------------------------------------------------------------------------- */

/* w [out, inner] += s * up [out, rank] · down [rank, inner], a row at a time. */
static void add_product(float *w, const float *up, const float *down, int out, size_t inner,
                        int rank, float s)
{
#pragma omp parallel for schedule(static)
    for (int o = 0; o < out; o++) {
        float *row = w + (size_t)o * inner;
        for (int k = 0; k < rank; k++) {
            float f = s * up[(size_t)o * (size_t)rank + (size_t)k];
            const float *d = down + (size_t)k * inner;
            for (size_t i = 0; i < inner; i++)
                row[i] += f * d[i];
        }
    }
}

static int add_delta(float *w, const struct layer *l, const struct delta *d, float strength,
                     struct err *err)
{
    size_t n_up = array_count(&d->up), n_down = array_count(&d->down);
    float *f = malloc((n_up + n_down) * sizeof *f);
    if (!f)
        return err_nomem(err, (n_up + n_down) * sizeof *f);
    array_to_f32(&d->up, f);
    array_to_f32(&d->down, f + n_up);
    add_product(w, f, f + n_up, l->out, (size_t)l->in * (size_t)l->kh * (size_t)l->kw, d->rank,
                strength * d->scale);
    free(f);
    return 0;
}

static void folded_free(struct device *dev, struct layer *l)
{
    if (!l)
        return;
    layer_release(dev, l);
    free((void *)l->w.data);
    free(l);
}

void fold_free(struct fold *f)
{
    if (!f)
        return;
    for (int i = 0; f->at && i < f->n_site; i++)
        folded_free(f->dev, f->at[i]);
    free(f->at);
    free(f);
}

/* A copy of the layer with its weight in float32. */
static int folded_new(struct layer **out, const struct layer *l, struct err *err)
{
    size_t n = array_count(&l->w);
    struct layer *c = malloc(sizeof *c);
    float *w = malloc(n * sizeof *w);
    int rc = c && w ? array_to_finite(&l->w, w, l->name, err) : err_nomem(err, n * sizeof *w);
    if (rc < 0) {
        free(c);
        free(w);
        return rc;
    }
    *c = *l;
    c->impl = NULL;
    c->w.dtype = DT_F32;
    c->w.data = w;
    *out = c;
    return 0;
}

int fold_new(struct fold **out, const struct sites *sites, enum component part, int n,
             const struct adapter *const *adapter, const float *strength, struct err *err)
{
    struct fold *f = calloc(1, sizeof *f);
    int rc = 0;

    *out = NULL;
    if (!f || !(f->at = calloc((size_t)sites->n + 1, sizeof *f->at))) {
        fold_free(f);
        return err_nomem(err, (size_t)sites->n * sizeof *f->at);
    }
    f->n_site = sites->n;
    for (int s = 0; s < sites->n && rc == 0; s++)
        for (int i = 0; sites->at[s].part == part && i < n && rc == 0; i++) {
            if (!adapter[i]->at[s] || strength[i] == 0)
                continue;
            f->dev = adapter[i]->dev;
            if (!f->at[s])
                rc = folded_new(&f->at[s], sites->at[s].layer, err);
            if (rc == 0)
                rc = add_delta((float *)f->at[s]->w.data, sites->at[s].layer, &adapter[i]->delta[s],
                               strength[i], err);
        }
    if (rc < 0) {
        fold_free(f);
        return rc;
    }
    *out = f;
    return 0;
}
