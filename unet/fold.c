/* Private copies of weights with adapters added. */
#include "bind.h"

#include <stdlib.h>
#include <string.h>

static void folded_free(struct device *dev, struct layer *l)
{
    if (!l)
        return;
    layer_release(dev, l);
    free((void *)l->w.data);
    free((void *)l->b.data);
    free(l);
}

void fold_free(struct fold *f)
{
    if (!f)
        return;
    for (int i = 0; f->at && i < f->n_site; i++)
        folded_free(f->dev, f->at[i]);
    for (int i = 0; f->norm && i < f->n_site; i++)
        if (f->norm[i]) {
            norm_release(f->dev, f->norm[i]);
            free(f->norm[i]);
        }
    free(f->at);
    free(f->norm);
    free(f);
}

/* A copy of the layer with its weight in float32, and its bias: zeros where it has none. */
static int folded_new(struct layer **out, const struct layer *l, struct err *err)
{
    size_t n = array_count(&l->w), nb = (size_t)l->out;
    struct layer *c = malloc(sizeof *c);
    float *w = malloc(n * sizeof *w), *b = calloc(nb, sizeof *b);
    int rc = c && w && b ? array_to_finite(&l->w, w, l->name, err) : err_nomem(err, n * sizeof *w);
    if (rc == 0 && l->b.data)
        rc = array_to_finite(&l->b, b, l->name, err);
    if (rc < 0) {
        free(c);
        free(w);
        free(b);
        return rc;
    }
    *c = *l;
    c->impl = NULL;
    c->w.dtype = DT_F32;
    c->w.data = w;
    c->b = (struct array){.dtype = DT_F32, .ndim = 1, .dim = {nb}, .data = b};
    *out = c;
    return 0;
}

int bound_add(const struct bound *b, const struct layer *l, float *w, float *bias, float strength,
              struct err *err)
{
    struct form own, *f = (struct form *)&b->form;
    float *w0 = NULL;
    int rc = 0;

    if (b->simple) { /* has no form yet */
        f = &own;
        rc = form_bind(f, &b->d, l, err);
    }
    if (rc == 0 && (f->gain || f->column)) {
        w0 = malloc(array_count(&l->w) * sizeof *w0);
        rc = w0 ? array_to_finite(&l->w, w0, l->name, err)
                : err_nomem(err, array_count(&l->w) * sizeof *w0);
    }
    if (rc == 0)
        rc = form_add(f, w0 ? w0 : w, w, 0, l->out, strength * b->factor, err);
    for (int i = 0; i < l->out && rc == 0 && f->bias && bias; i++)
        bias[i] += strength * b->factor * f->bias[i];
    if (b->simple)
        form_release(f);
    free(w0);
    return rc;
}

int bound_whole(float **out, const struct bound *b, const struct layer *l, struct err *err)
{
    size_t n = (size_t)l->out * (size_t)l->in * (size_t)l->kh * (size_t)l->kw;
    float *w = calloc(n, sizeof *w);
    int rc = w ? 0 : err_nomem(err, n * sizeof *w);
    for (; b && rc == 0; b = b->next)
        rc = bound_add(b, l, w, NULL, 1, err);
    if (rc < 0) {
        free(w);
        w = NULL;
    }
    *out = w;
    return rc;
}

bool bound_is_product(const struct bound *b)
{
    return b->simple && b->d.kind == DELTA_PRODUCT && b->d.f[0].a.data && !b->next;
}

static int fold_layer(struct fold *f, const struct site *site, int s, const struct adapter *a,
                      float strength, struct err *err)
{
    int rc = f->at[s] ? 0 : folded_new(&f->at[s], site->layer, err);
    for (const struct bound *b = a->at[s]; b && rc == 0; b = b->next)
        rc = bound_add(b, site->layer, (float *)f->at[s]->w.data, (float *)f->at[s]->b.data,
                       strength, err);
    return rc;
}

/* gamma and beta with all adapters' changes. */
static int fold_norm(struct fold *f, const struct norm *g, int s, int n,
                     const struct adapter *const *adapter, const float *strength, struct err *err)
{
    size_t c = (size_t)g->c;
    float *v = malloc(2 * c * sizeof *v);
    struct array gamma = {.dtype = DT_F32, .ndim = 1, .dim = {c}, .data = v};
    struct array beta = gamma;
    int rc = v ? 0 : err_nomem(err, 2 * c * sizeof *v);
    if (rc == 0) {
        beta.data = v + c;
        norm_values(g, v, v + c);
        for (int i = 0; i < n; i++)
            for (const struct bound *b = adapter[i]->at[s]; b; b = b->next)
                norm_add(v, v + c, g->c, b, strength[i]);
        f->norm[s] = malloc(sizeof **f->norm);
        rc = f->norm[s]
                 ? norm_init(f->dev, f->norm[s], g->name, g->groups, g->eps, &gamma, &beta, err)
                 : err_nomem(err, sizeof **f->norm);
    }
    free(v);
    return rc;
}

int fold_new(struct fold **out, const struct sites *sites, enum component part, int n,
             const struct adapter *const *adapter, const float *strength, struct err *err)
{
    struct fold *f = calloc(1, sizeof *f);
    int rc = 0;

    *out = NULL;
    if (!f || !(f->at = calloc((size_t)sites->n + 1, sizeof *f->at)) ||
        !(f->norm = calloc((size_t)sites->n + 1, sizeof *f->norm))) {
        fold_free(f);
        return err_nomem(err, (size_t)sites->n * sizeof *f->at);
    }
    f->n_site = sites->n;
    for (int s = 0; s < sites->n && rc == 0; s++)
        for (int i = 0; sites->at[s].part == part && i < n && rc == 0; i++) {
            if (!adapter[i]->at[s] || strength[i] == 0)
                continue;
            f->dev = adapter[i]->dev;
            if (sites->at[s].layer)
                rc = fold_layer(f, &sites->at[s], s, adapter[i], strength[i], err);
            else if (!f->norm[s])
                rc = fold_norm(f, sites->at[s].norm, s, n, adapter, strength, err);
        }
    if (rc < 0) {
        fold_free(f);
        return rc;
    }
    *out = f;
    return 0;
}
