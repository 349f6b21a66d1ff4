/* What a delta is once it knows its weight. */
#include "bind.h"
#include "rotate.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

void form_release(struct form *f)
{
    matrix_release(&f->m);
    matrix_release(&f->extra);
    free(f->row);
    free(f->gain);
    free(f->column);
    free(f->dense);
    free(f->bias);
    memset(f, 0, sizeof *f);
}

/* Row i of W as float32; values were checked when the layer was bound. */
static void weight_row(const struct layer *l, size_t inner, int i, float *out)
{
    struct array row = l->w;
    row.ndim = 1;
    row.dim[0] = inner;
    row.data = (const char *)l->w.data + (size_t)i * inner * (dtype_bits(l->w.dtype) / 8);
    array_to_f32(&row, out);
}

static int misfit(const struct layer *l, int rows, size_t cols, struct err *err)
{
    return err_set(err, ERR_MISMATCH, "it changes a weight of %d x %zu, the model's is %d x %zu",
                   rows, cols, l->out, (size_t)l->in * (size_t)l->kh * (size_t)l->kw);
}

static int floats_new(float **out, size_t n, struct err *err)
{
    *out = malloc((n + 1) * sizeof **out);
    return *out ? 0 : err_nomem(err, n * sizeof **out);
}

/* n values of a, whatever its shape. */
static int vector(float **out, const struct array *a, size_t n, const struct layer *l,
                  struct err *err)
{
    if (array_count(a) != n)
        return err_set(err, ERR_MISMATCH, "it has %zu values where the model's weight wants %zu",
                       array_count(a), n);
    if (!array_readable(a))
        return err_set(err, ERR_UNSUPPORTED, "%s: type %s is not computed with", l->name,
                       dtype_name(a->dtype));
    int rc = floats_new(out, n, err);
    return rc < 0 ? rc : array_to_finite(a, *out, l->name, err);
}

/* ---- DoRA ------------------------------------------------------------------------------------ */

/* Row i of V = W + M in buf [2, inner]. */
static void dora_row(const struct form *f, const struct layer *l, int i, float *buf)
{
    weight_row(l, f->inner, i, buf);
    matrix_rows(&f->m, i, 1, buf + f->inner);
    for (size_t c = 0; c < f->inner; c++)
        buf[c] += buf[f->inner + c];
}

/* g = magnitude / ||V||, rows: row = g, gain = g - 1. */
static int dora_rows(struct form *f, const struct delta *d, const struct layer *l, struct err *err)
{
    float *buf = NULL;
    int rc = vector(&f->row, &d->magnitude, (size_t)l->out, l, err);
    rc = rc < 0 ? rc : floats_new(&f->gain, (size_t)l->out, err);
    rc = rc < 0 ? rc : floats_new(&buf, 2 * f->inner, err);
    for (int i = 0; i < l->out && rc == 0; i++) {
        double s = 0;
        dora_row(f, l, i, buf);
        for (size_t c = 0; c < f->inner; c++)
            s += (double)buf[c] * buf[c];
        double g = f->row[i] / (sqrt(s) + FLT_EPSILON);
        f->row[i] = (float)g;
        f->gain[i] = (float)(g - 1);
    }
    free(buf);
    return rc;
}

/* The old layout: norms over each in channel, with all rows and taps. */
static int dora_columns(struct form *f, const struct delta *d, const struct layer *l,
                        struct err *err)
{
    float *buf = NULL;
    double *s = calloc((size_t)l->in + 1, sizeof *s);
    int rc = s ? 0 : err_nomem(err, (size_t)l->in * sizeof *s);
    rc = rc < 0 ? rc : vector(&f->column, &d->magnitude, (size_t)l->in, l, err);
    rc = rc < 0 ? rc : floats_new(&buf, 2 * f->inner, err);
    for (int i = 0; i < l->out && rc == 0; i++) {
        dora_row(f, l, i, buf);
        for (size_t c = 0; c < f->inner; c++)
            s[c / (size_t)f->taps] += (double)buf[c] * buf[c];
    }
    for (int c = 0; c < l->in && rc == 0; c++)
        f->column[c] = (float)(f->column[c] / (sqrt(s[c]) + FLT_EPSILON));
    free(buf);
    free(s);
    return rc;
}

/* ---- the kinds ------------------------------------------------------------------------------- */

static int bind_matrix(struct form *f, const struct delta *d, const struct layer *l,
                       struct err *err)
{
    int rc = matrix_load(&f->m, d, l->name, err);
    if (rc < 0)
        return rc;
    if (d->kind == DELTA_SPARSE && f->m.rows <= l->out && f->m.cols <= f->inner) {
        f->m.rows = l->out; /* the file knows only the places it changes */
        f->m.cols = f->inner;
    }
    if (f->m.rows != l->out || f->m.cols != f->inner)
        return misfit(l, f->m.rows, f->m.cols, err);
    if (!d->magnitude.data)
        return 0;
    return d->by_column ? dora_columns(f, d, l, err) : dora_rows(f, d, l, err);
}

static int bind_gain(struct form *f, const struct delta *d, const struct layer *l, struct err *err)
{
    float **to = d->columns ? &f->column : &f->gain;
    size_t n = (size_t)(d->columns ? l->in : l->out);
    int rc = vector(to, &d->v, n, l, err);
    /* a column says by what W is multiplied, a gain what is added of it */
    for (size_t i = 0; i < n && rc == 0; i++)
        (*to)[i] += (d->columns ? 1 : 0) - d->less;
    if (rc < 0 || d->columns || !d->with_bias || !l->b.data)
        return rc;
    rc = vector(&f->bias, &l->b, n, l, err);
    for (size_t i = 0; i < n && rc == 0; i++)
        f->bias[i] *= f->gain[i];
    return rc;
}

static int bind_bias(struct form *f, const struct delta *d, const struct layer *l, struct err *err)
{
    int rc = vector(&f->bias, &d->v, (size_t)l->out, l, err);
    for (int i = 0; i < l->out && rc == 0; i++)
        f->bias[i] *= d->scale;
    return rc;
}

/* u [r] = one tap of W's row w, times a1 [in, r]. */
static void through_a1(float *u, const float *w, const struct wide *a, size_t taps, size_t tap)
{
    size_t r = (size_t)a->rank;
    memset(u, 0, r * sizeof *u);
    for (size_t c = 0; c < (size_t)a->rows; c++)
        for (size_t k = 0; k < r; k++)
            u[k] += w[c * taps + tap] * a->a[c * r + k];
}

/* Of a kernel: (W a1) a2 as one dense matrix, each tap by itself. buf [inner + r] */
static int glora_taps(struct form *f, const struct layer *l, const struct wide *a, float scale,
                      float *buf, struct err *err)
{
    size_t in = a->cols, r = (size_t)a->rank, taps = (size_t)f->taps;
    float *u = buf + f->inner;
    int rc = floats_new(&f->dense, (size_t)l->out * f->inner, err);
    for (int i = 0; i < l->out && rc == 0; i++) {
        float *o = f->dense + (size_t)i * f->inner;
        weight_row(l, f->inner, i, buf);
        for (size_t t = 0; t < taps; t++) {
            through_a1(u, buf, a, taps, t);
            for (size_t c = 0; c < in; c++) {
                float s = 0;
                for (size_t k = 0; k < r; k++)
                    s += u[k] * a->b[k * in + c];
                o[c * taps + t] = scale * s;
            }
        }
    }
    return rc;
}

/* Else as a product: (W a1) and a2, which is taken from a. buf [inner] */
static int glora_product(struct form *f, const struct layer *l, struct wide *a, float scale,
                         float *buf, struct err *err)
{
    struct wide *w = &f->extra.f[0];
    f->extra =
        (struct matrix){.kind = DELTA_PRODUCT, .rows = l->out, .cols = a->cols, .scale = scale};
    *w = (struct wide){.rows = l->out, .rank = a->rank, .cols = a->cols, .b = a->b};
    a->b = NULL;
    int rc = floats_new(&w->a, (size_t)l->out * (size_t)a->rank, err);
    for (int i = 0; i < l->out && rc == 0; i++) {
        weight_row(l, f->inner, i, buf);
        through_a1(w->a + (size_t)i * (size_t)a->rank, buf, a, 1, 0);
    }
    return rc;
}

/* (W a1) a2; a1 and a2 act on the in channels. */
static int bind_glora(struct form *f, const struct delta *d, const struct layer *l, struct err *err)
{
    struct matrix m;
    struct wide *a = &m.f[0];
    float *buf = NULL;
    int rc = matrix_load_factor(&m, &d->f[1], l->name, err);
    if (rc == 0 && (a->rank == 0 || m.rows != l->in || m.cols != (size_t)l->in))
        rc = misfit(l, m.rows, m.cols, err);
    rc = rc < 0 ? rc : floats_new(&buf, f->inner + (size_t)a->rank, err);
    if (rc == 0 && f->taps > 1)
        rc = glora_taps(f, l, a, d->scale, buf, err);
    else if (rc == 0)
        rc = glora_product(f, l, a, d->scale, buf, err);
    free(buf);
    matrix_release(&m);
    return rc;
}

static int bind_rotation(struct form *f, const struct delta *d, const struct layer *l,
                         struct err *err)
{
    float *w = NULL;
    size_t n = (size_t)l->out * f->inner;
    int rc = floats_new(&f->dense, n, err);
    rc = rc < 0 ? rc : floats_new(&w, n, err);
    if (rc == 0)
        array_to_f32(&l->w, w);
    if (rc == 0)
        memcpy(f->dense, w, n * sizeof *w);
    rc = rc < 0 ? rc : rotate(f->dense, l->out, l->in, f->taps, &d->rot, l->name, err);
    for (size_t i = 0; i < n && rc == 0; i++)
        f->dense[i] -= w[i];
    free(w);
    return rc;
}

int form_bind(struct form *f, const struct delta *d, const struct layer *l, struct err *err)
{
    int rc;
    memset(f, 0, sizeof *f);
    f->out = l->out;
    f->taps = l->kh * l->kw;
    f->inner = (size_t)l->in * (size_t)f->taps;
    switch (d->kind) {
    case DELTA_GAIN: return bind_gain(f, d, l, err);
    case DELTA_BIAS: return bind_bias(f, d, l, err);
    case DELTA_ROTATE: return bind_rotation(f, d, l, err);
    case DELTA_GLORA: rc = bind_matrix(f, d, l, err); return rc < 0 ? rc : bind_glora(f, d, l, err);
    case DELTA_NORM:
        return err_set(err, ERR_MISMATCH, "it changes a norm, the model has a layer there");
    default: return bind_matrix(f, d, l, err);
    }
}

/* ---- adding ---------------------------------------------------------------------------------- */

/* buf [inner]: scratch */
static void add_row(const struct form *f, const float *w0, float *w, int i, float s, float *buf)
{
    size_t n = f->inner;
    bool file = f->m.rows > 0;
    if (file)
        matrix_rows(&f->m, i, 1, buf);
    if (f->column) {
        for (size_t c = 0; c < n; c++) {
            float v = w0[c] + (file ? buf[c] : 0);
            w[c] += s * (v * f->column[c / (size_t)f->taps] - w0[c]);
        }
    } else if (file) {
        float r = f->row ? s * f->row[i] : s;
        for (size_t c = 0; c < n; c++)
            w[c] += r * buf[c];
    }
    if (f->gain)
        for (size_t c = 0; c < n; c++)
            w[c] += s * f->gain[i] * w0[c];
    if (f->extra.rows) {
        matrix_rows(&f->extra, i, 1, buf);
        for (size_t c = 0; c < n; c++)
            w[c] += s * buf[c];
    }
    if (f->dense)
        for (size_t c = 0; c < n; c++)
            w[c] += s * f->dense[(size_t)i * n + c];
}

int form_add(const struct form *f, const float *w0, float *w, int row0, int n, float strength,
             struct err *err)
{
    bool failed = false;
#pragma omp parallel
    {
        float *buf = malloc((f->inner + 1) * sizeof *buf);
        if (!buf) {
#pragma omp atomic write
            failed = true;
        }
#pragma omp for schedule(static)
        for (int i = 0; i < n; i++)
            if (buf)
                add_row(f, w0 + (size_t)i * f->inner, w + (size_t)i * f->inner, row0 + i, strength,
                        buf);
        free(buf);
    }
    return failed ? err_nomem(err, f->inner * sizeof(float)) : 0;
}
