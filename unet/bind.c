#include "bind.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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

/* ---- side branches --------------------------------------------------------------------------- */

static void side_release(struct device *dev, struct side *a)
{
    layer_release(dev, &a->down);
    layer_release(dev, &a->up);
    layer_release(dev, &a->down2);
    layer_release(dev, &a->up2);
    if (a->gain)
        dev->be->free(dev, a->gain);
    if (a->shift)
        dev->be->free(dev, a->shift);
    free(a->dense);
}

static struct array float_array(const float *p, int ndim, uint64_t d0, uint64_t d1, uint64_t d2,
                                uint64_t d3)
{
    return (struct array){.dtype = DT_F32, .ndim = ndim, .dim = {d0, d1, d2, d3}, .data = p};
}

/* l's geometry with another weight and no bias. */
static struct layer like(const struct layer *l, int out, struct array w)
{
    struct layer n = *l;
    n.out = out;
    n.w = w;
    n.b.data = NULL;
    n.impl = NULL;
    n.site = -1;
    return n;
}

static struct layer narrow(const char *name, int in, int out, struct array w)
{
    return (struct layer){
        .name = name, .site = -1, .in = in, .out = out, .kh = 1, .kw = 1, .stride = 1, .w = w};
}

static void pair(struct layer *down, struct layer *up, const struct layer *l, const float *a,
                 const float *b, int rank)
{
    uint64_t r = (uint64_t)rank;
    *down = like(l, rank, float_array(b, 4, r, (uint64_t)l->in, (uint64_t)l->kh, (uint64_t)l->kw));
    *up = narrow(l->name, rank, l->out, float_array(a, 2, (uint64_t)l->out, r, 0, 0));
}

static int to_device(struct device *dev, float **out, const float *host, size_t n, struct err *err)
{
    *out = dev->be->alloc(dev, n * sizeof(float));
    if (!*out)
        return err_nomem(err, n * sizeof(float));
    dev->be->store(dev, *out, host, n);
    return 0;
}

/* y += gain o h + shift. h has the layer's bias b, which a gain of the weight alone must not touch: shift is
 * what the bias changes less gain o b. */
static int side_gain(struct side *a, struct device *dev, const struct form *f,
                     const struct layer *l, struct err *err)
{
    size_t n = (size_t)l->out;
    float *g = calloc(2 * n + 1, sizeof *g), *s = g + n;
    int rc = g ? 0 : err_nomem(err, 2 * n * sizeof *g);
    if (rc == 0 && f->gain)
        memcpy(g, f->gain, n * sizeof *g);
    if (rc == 0 && f->gain && l->b.data) {
        rc = array_to_finite(&l->b, s, l->name, err);
        for (size_t i = 0; i < n; i++)
            s[i] *= -g[i];
    }
    for (size_t i = 0; i < n && rc == 0 && f->bias; i++)
        s[i] += f->bias[i];
    rc = rc < 0 ? rc : to_device(dev, &a->gain, g, n, err);
    rc = rc < 0 ? rc : to_device(dev, &a->shift, s, n, err);
    free(g);
    return rc;
}

/* All that is neither a product nor a gain, as one matrix. */
static int side_dense(struct side *a, const struct form *f, const struct layer *l, struct err *err)
{
    size_t n = (size_t)l->out * f->inner;
    float *w0 = malloc(n * sizeof *w0);
    struct form part = *f;
    part.gain = NULL;
    a->dense = calloc(n + 1, sizeof *a->dense);
    int rc = w0 && a->dense ? 0 : err_nomem(err, n * sizeof *w0);
    if (rc == 0) {
        array_to_f32(&l->w, w0);
        rc = form_add(&part, w0, a->dense, 0, l->out, 1, err);
    }
    free(w0);
    a->scale = 1;
    a->down = like(l, l->out, l->w);
    a->down.w.dtype = DT_F32;
    a->down.w.data = a->dense;
    return rc;
}

/* A form as layers. Rows of an up factor take the form's row numbers and scale in place. */
static int side_init(struct side *a, struct device *dev, struct form *f, const struct layer *l,
                     struct err *err)
{
    int rc = f->gain || f->bias ? side_gain(a, dev, f, l, err) : 0;
    bool product = f->m.rows && f->m.kind == DELTA_PRODUCT && f->m.f[0].rank && !f->column;
    if (rc < 0 || (!f->m.rows && !f->column && !f->dense && !f->extra.rows))
        return rc;
    if (!product || f->dense)
        return side_dense(a, f, l, err);
    struct wide *w = &f->m.f[0];
    for (int i = 0; i < l->out && f->row; i++)
        for (int k = 0; k < w->rank; k++)
            w->a[(size_t)i * (size_t)w->rank + (size_t)k] *= f->row[i];
    free(f->row); /* it is in the factor now */
    f->row = NULL;
    a->scale = f->m.scale;
    pair(&a->down, &a->up, l, w->a, w->b, w->rank);
    if (f->extra.rows) /* its scale is the same */
        pair(&a->down2, &a->up2, l, f->extra.f[0].a, f->extra.f[0].b, f->extra.f[0].rank);
    return 0;
}

/* ---- plain products -------------------------------------------------------------------------- */

/* A LoRA or LoCon with nothing special: the file's own arrays can act. */
static bool is_simple(const struct delta *d)
{
    const struct factor *f = &d->f[0];
    return d->kind == DELTA_PRODUCT && f->a.data && f->b.data && !f->full.data && !f->t.data &&
           !f->across && !d->magnitude.data;
}

/* Why a plain product cannot act on the layer. A kernel of 1 x 1 is the same as none. */
static int simple_misfit(const struct delta *d, const struct layer *l, struct err *err)
{
    const struct array *up = &d->f[0].a, *down = &d->f[0].b;
    unsigned long long in = array_dim(down, 1), out = array_dim(up, 0);
    unsigned long long kh = array_dim(down, 2), kw = array_dim(down, 3);

    if (array_dim(down, 0) < 1 || array_dim(up, 1) != array_dim(down, 0) ||
        array_dim(down, 0) > INT32_MAX || down->ndim > 4 || up->ndim > 4 || array_dim(up, 2) != 1 ||
        array_dim(up, 3) != 1)
        return err_set(err, ERR_MISMATCH, "its factors do not multiply");
    if (in != (unsigned)l->in || out != (unsigned)l->out)
        return err_set(err, ERR_MISMATCH,
                       "it is %llu wide in and %llu out, the model's weight %d and %d", in, out,
                       l->in, l->out);
    if (kh != (unsigned)l->kh || kw != (unsigned)l->kw)
        return err_set(err, ERR_MISMATCH, "its kernel is %llux%llu, the model's %dx%d", kh, kw,
                       l->kh, l->kw);
    return 0;
}

static int simple_init(struct side *a, const struct delta *d, const struct layer *l,
                       struct err *err)
{
    const struct array *up = &d->f[0].a, *down = &d->f[0].b;
    int rc = array_finite(down, l->name, err), rank = (int)array_dim(down, 0);
    rc = rc < 0 ? rc : array_finite(up, l->name, err);
    if (rc == 0 && !isfinite(d->scale))
        rc = err_set(err, ERR_FORMAT, "%s: alpha is not a finite number", l->name);
    a->scale = d->scale;
    a->down = like(l, rank, *down);
    a->up = narrow(l->name, rank, l->out, *up);
    return rc;
}

/* ---- norms ----------------------------------------------------------------------------------- */

static int bind_norm(struct bound *b, const struct norm *g, struct err *err)
{
    const struct array *v = &b->d.v;
    bool scale = b->d.kind == DELTA_NORM;
    if (!scale && b->d.kind != DELTA_BIAS)
        return err_set(err, ERR_MISMATCH, "the model has a norm there, which it cannot change");
    if (array_count(v) != (size_t)g->c)
        return err_set(err, ERR_MISMATCH, "it has %zu values, the model's norm %d", array_count(v),
                       g->c);
    if (!array_readable(v))
        return err_set(err, ERR_UNSUPPORTED, "%s: type %s is not computed with", g->name,
                       dtype_name(v->dtype));
    float **to = &b->norm[scale ? 0 : 1];
    *to = malloc((size_t)g->c * sizeof **to);
    return *to ? array_to_finite(v, *to, g->name, err) : err_nomem(err, (size_t)g->c * 4);
}

void norm_values(const struct norm *g, float *gamma, float *beta)
{
    array_to_f32(&g->gamma_file, gamma);
    array_to_f32(&g->beta_file, beta);
}

void norm_add(float *gamma, float *beta, int c, const struct bound *b, float strength)
{
    for (int i = 0; i < c; i++) {
        gamma[i] += b->norm[0] ? strength * b->factor * b->norm[0][i] : 0;
        beta[i] += b->norm[1] ? strength * b->factor * b->norm[1][i] : 0;
    }
}

/* ---- binding --------------------------------------------------------------------------------- */

static void bound_free(struct device *dev, struct bound *b)
{
    if (!b)
        return;
    bound_free(dev, b->next);
    side_release(dev, &b->side);
    form_release(&b->form);
    free(b->norm[0]);
    free(b->norm[1]);
    free(b);
}

void adapter_free(struct adapter *a)
{
    if (!a)
        return;
    for (int i = 0; a->at && i < a->n_site; i++)
        bound_free(a->dev, a->at[i]);
    free(a->at);
    free(a->name);
    free(a);
}

int adapter_weigh(struct adapter *a, const struct sites *sites, const struct lbw *b,
                  struct err *err)
{
    if (b->n && (sites_find(sites, "unet.down_blocks.3.resnets.1.conv1") < 0 ||
                 sites_find(sites, "unet.down_blocks.0.resnets.2.conv1") >= 0))
        return err_set(err, ERR_MISMATCH,
                       "block strengths are for models with the blocks of Stable "
                       "Diffusion 1.x and 2.x, which this is not");
    for (int i = 0; i < a->n_site; i++)
        for (struct bound *p = a->at[i]; p; p = p->next)
            p->factor = lbw_factor(b, sites->at[i].name);
    return 0;
}

static size_t side_bytes(const struct device *dev, const struct side *a)
{
    size_t n = 0;
    const struct layer *l[] = {&a->down, &a->up, &a->down2, &a->up2};
    for (int i = 0; i < 4; i++)
        n += l[i]->out ? layer_bytes(dev, l[i]) : 0;
    return n;
}

size_t adapter_bytes(const struct adapter *a)
{
    size_t n = 0;
    for (int i = 0; i < a->n_site; i++)
        for (const struct bound *b = a->at[i]; b; b = b->next)
            n += side_bytes(a->dev, &b->side);
    return n;
}

static int bind_site(struct bound *b, struct device *dev, const struct site *s, bool fold,
                     struct err *err)
{
    int rc;
    if (s->norm)
        return bind_norm(b, s->norm, err);
    if ((b->simple = is_simple(&b->d))) {
        rc = simple_misfit(&b->d, s->layer, err);
        return rc < 0 ? rc : simple_init(&b->side, &b->d, s->layer, err);
    }
    rc = form_bind(&b->form, &b->d, s->layer, err);
    return rc < 0 || fold ? rc : side_init(&b->side, dev, &b->form, s->layer, err);
}

/* Whether the file changes the same thing of a site twice. */
static bool is_double(const struct bound *first, const struct delta *d)
{
    for (; first; first = first->next)
        if ((first->d.kind == DELTA_BIAS) == (d->kind == DELTA_BIAS))
            return true;
    return false;
}

struct verdict {
    int wrong;       /* deltas of another shape than the model's weights */
    char first[512]; /* the first of them */
};

static int bind_item(struct adapter *a, const struct sites *sites, const struct delta_item *it,
                     bool fold, struct bind_report *report, struct verdict *v, struct err *err)
{
    int s = sites_find(sites, it->site), rc;
    if (s < 0)
        return report_add(report, it->site, "the model has no such weight", err);
    if (is_double(a->at[s], &it->d))
        return report_add(report, it->site, "the file changes this weight twice", err);
    struct bound *b = calloc(1, sizeof *b);
    if (!b)
        return err_nomem(err, sizeof *b);
    b->d = it->d;
    b->factor = 1;
    rc = bind_site(b, a->dev, &sites->at[s], fold, err);
    if (rc == 0) {
        b->next = a->at[s];
        a->at[s] = b;
        a->matched++;
        a->matched_in[sites->at[s].part]++;
        return 0;
    }
    bound_free(a->dev, b);
    if (rc != ERR_MISMATCH)
        return rc;
    if (v->wrong++ == 0)
        snprintf(v->first, sizeof v->first, "%.200s: %.300s", it->site, err->msg);
    return report_add(report, it->site, err->msg, err);
}

static int bind_all(struct adapter *a, const struct sites *sites, const struct delta_list *l,
                    bool fold, struct bind_report *report, struct err *err)
{
    struct verdict v = {0, ""};
    struct err own = {0};
    err = err ? err : &own;
    for (int i = 0; i < l->n; i++) {
        int rc = bind_item(a, sites, &l->item[i], fold, report, &v, err);
        if (rc < 0)
            return rc;
    }
    if (v.wrong > a->matched)
        return err_set(err, ERR_MISMATCH, "made for another base model: %s", v.first);
    if (a->matched == 0)
        return err_set(err, ERR_MISMATCH, "none of its %d weights can act here; the first: %.400s",
                       l->n, report->n ? report->line[0] : "there is none");
    return 0;
}

int adapter_bind(struct adapter **out, struct device *dev, const struct sites *sites,
                 const struct delta_list *l, const char *name, bool fold,
                 struct bind_report *report, struct err *err)
{
    struct adapter *a = calloc(1, sizeof *a);

    *out = NULL;
    if (!a)
        return err_nomem(err, sizeof *a);
    a->dev = dev;
    a->n_site = sites->n;
    a->name = strdup(name);
    a->at = calloc((size_t)sites->n + 1, sizeof *a->at);
    int rc = a->name && a->at ? 0 : err_nomem(err, (size_t)sites->n * sizeof *a->at);
    if (rc == 0)
        rc = bind_all(a, sites, l, fold, report, err);
    if (rc < 0) {
        adapter_free(a);
        return rc;
    }
    *out = a;
    return 0;
}
