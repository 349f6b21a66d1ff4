/* Gradients on the CPU: cuts tensors into pieces, as cpu.c does for the ops themselves. */
#include "cpu.h"

#include <math.h>
#include <omp.h>
#include <string.h>

/* ---- norms ----------------------------------------------------------------------------------- */

/* What one row's gradient needs a channel: scale and shift as the norm itself has them; of what comes back, sums. */
struct row_back {
    float *scale, *shift, *by_x, *rest, *sum, *sum_x;
};

/* Means over groups of d and d n (d what comes back times gamma, n the normed x) become what is taken off:
 * dx = scale dz - rstd (mean d + n mean(d n)). */
static void take_off(const struct norm *g, const struct row_back *b, const double *mean,
                     const double *rstd, const float *more, size_t hw)
{
    int cg = g->c / g->groups;
    for (int k = 0; k < g->groups; k++) {
        double d = 0, dn = 0, count = (double)hw * cg;
        for (int i = k * cg; i < (k + 1) * cg; i++) {
            double from = mean[k] - (double)(more ? more[i] : 0);
            d += (double)g->gamma[i] * (double)b->sum[i] / count;
            dn += (double)g->gamma[i] * ((double)b->sum_x[i] - from * (double)b->sum[i]) * rstd[k] /
                  count;
        }
        for (int i = k * cg; i < (k + 1) * cg; i++) {
            double from = mean[k] - (double)(more ? more[i] : 0);
            b->by_x[i] = (float)(-rstd[k] * rstd[k] * dn);
            b->rest[i] = (float)(rstd[k] * rstd[k] * dn * from - rstd[k] * d);
        }
    }
}

/* One row, on one thread: [hw, c]. tmp: 2c floats, stats: 3 groups doubles. */
static void group_row_back(const struct kernels *k, const struct norm *g, float *dx, const float *x,
                           const float *more, const float *dy, size_t hw, enum act act, bool add,
                           float *room, double *stats)
{
    size_t c = (size_t)g->c, groups = (size_t)g->groups;
    double *mean = stats, *m2 = mean + groups, *rstd = m2 + groups;
    struct row_back b = {room, room + c, room + 2 * c, room + 3 * c, room + 4 * c, room + 5 * c};
    int cg = g->c / g->groups;
    k->group_stats(x, more, hw, g->c, g->groups, mean, m2, b.sum); /* sum and sum_x: 2c */
    for (int i = 0; i < g->c; i++) {
        int at = i / cg;
        rstd[at] = 1 / sqrt(m2[at] / ((double)hw * cg) + (double)g->eps);
        double s = rstd[at] * (double)g->gamma[i];
        b.scale[i] = (float)s;
        b.shift[i] = (float)((double)g->beta[i] + ((double)(more ? more[i] : 0) - mean[at]) * s);
    }
    memset(b.sum, 0, 2 * c * sizeof *b.sum);
    k->group_back_sums(b.sum, b.sum_x, x, dy, hw, c, b.scale, b.shift, act);
    take_off(g, &b, mean, rstd, more, hw);
    k->group_back(dx, x, dy, hw, c, b.scale, b.shift, b.by_x, b.rest, act, add);
}

int cpu_group_norm_back(struct device *dev, struct tensor *dx, const struct norm *g,
                        const struct tensor *x, const struct tensor *more, enum act act,
                        const struct tensor *dy, bool add, struct err *err)
{
    const struct kernels *k = kernels_of(dev);
    size_t c = (size_t)x->c, hw = (size_t)x->h * (size_t)x->w, n = (size_t)x->n;
    size_t mine = 6 * c * sizeof(float), stats = 3 * (size_t)g->groups * sizeof(double);
    mine = (mine + 63) / 64 * 64;
    char *room = cpu_scratch(dev, (size_t)dev->threads * (mine + stats));
    if (!room)
        return err_nomem(err, (size_t)dev->threads * (mine + stats));
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t row = 0; row < n; row++) {
        char *own = room + (size_t)omp_get_thread_num() * (mine + stats);
        size_t at = row * hw * c;
        group_row_back(k, g, (float *)dx->data + at, (const float *)x->data + at,
                       more ? (const float *)more->data + row * c : NULL,
                       (const float *)dy->data + at, hw, act, add, (void *)own,
                       (void *)(own + mine));
    }
    return 0;
}

int cpu_layer_norm_back(struct device *dev, struct tensor *dx, const struct norm *g,
                        const struct tensor *x, const struct tensor *dy, bool add, struct err *err)
{
    (void)err;
    const struct kernels *k = kernels_of(dev);
    size_t c = (size_t)x->c, rows = tensor_count(x) / c, step = CHUNK / c + 1;
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t r = 0; r < rows; r += step)
        k->layer_norm_back((float *)dx->data + r * c, (const float *)x->data + r * c,
                           (const float *)dy->data + r * c, rows - r < step ? rows - r : step, c,
                           g->gamma, g->eps, add);
    return 0;
}

/* ---- attention ------------------------------------------------------------------------------- */

size_t attention_back_work(int d_pad, int lk, int lk_pad)
{
    size_t d = (size_t)d_pad, tile = ATTENTION_QUERIES, keys = (size_t)lk + 16;
    size_t packed = 2 * (size_t)lk_pad * d + keys * d, rows = 4 * tile * d,
           weights = 2 * tile * (size_t)lk_pad + keys * tile, sums = 2 * keys * d;
    return (packed + rows + weights + sums + 15) / 16 * 16;
}

static struct attention_back head_back(const struct device *dev, const struct tensor *q,
                                       const struct tensor *k, const struct attention *a)
{
    const struct kernels *kernels = kernels_of(dev);
    int d = q->c / a->heads, lk = k->h * k->w, w = kernels->width, panel = kernels->key_panel;
    return (struct attention_back){.d = d,
                                   .d_pad = (d + w - 1) / w * w,
                                   .lq = q->h * q->w,
                                   .lk = lk,
                                   .lk_pad = (lk + panel - 1) / panel * panel,
                                   .stride = (size_t)q->c,
                                   .causal = a->causal,
                                   .region = a->region};
}

size_t cpu_attention_back_scratch(struct device *dev, const struct tensor *q,
                                  const struct tensor *k, const struct attention *a)
{
    struct attention_back t = head_back(dev, q, k, a);
    return (size_t)dev->threads * attention_back_work(t.d_pad, t.lk, t.lk_pad) * sizeof(float);
}

int cpu_attention_back(struct device *dev, struct tensor *const d[3], const bool add[3],
                       const struct tensor *q, const struct tensor *k, const struct tensor *v,
                       const struct attention *a, const struct tensor *dout, void *scratch,
                       struct err *err)
{
    (void)err;
    const struct attention_back whole = head_back(dev, q, k, a);
    size_t heads = (size_t)a->heads, c = (size_t)q->c;
    size_t work = attention_back_work(whole.d_pad, whole.lk, whole.lk_pad);
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t i = 0; i < (size_t)q->n * heads; i++) {
        size_t head = i % heads * (size_t)whole.d, row = i / heads;
        size_t at_q = row * (size_t)whole.lq * c + head, at_k = row * (size_t)whole.lk * c + head;
        struct attention_back t = whole;
        t.q = (const float *)q->data + at_q;
        t.dout = (const float *)dout->data + at_q;
        t.k = (const float *)k->data + at_k;
        t.v = (const float *)v->data + at_k;
        for (int p = 0; p < 3; p++) {
            t.dx[p] = d[p] ? (float *)d[p]->data + (p ? at_k : at_q) : NULL;
            t.add[p] = add[p];
        }
        t.work = (float *)scratch + (size_t)omp_get_thread_num() * work;
        kernels_of(dev)->attention_back(&t);
    }
    return 0;
}

/* ---- elementwise ----------------------------------------------------------------------------- */

int cpu_activate_back(struct device *dev, struct tensor *dx, const struct tensor *x, enum act act,
                      const struct tensor *dy, bool add, struct err *err)
{
    (void)err;
    const struct kernels *k = kernels_of(dev);
    size_t n = tensor_count(x);
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t i = 0; i < n; i += CHUNK)
        k->activate_back((float *)dx->data + i, (const float *)x->data + i,
                         (const float *)dy->data + i, n - i < CHUNK ? n - i : CHUNK, act, add);
    return 0;
}

int cpu_geglu_back(struct device *dev, struct tensor *dx, const struct tensor *x,
                   const struct tensor *dy, bool add, struct err *err)
{
    (void)err;
    const struct kernels *k = kernels_of(dev);
    size_t c = (size_t)dy->c, rows = tensor_count(dy) / c, step = CHUNK / c + 1;
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t r = 0; r < rows; r += step)
        k->geglu_back((float *)dx->data + r * 2 * c, (const float *)x->data + r * 2 * c,
                      (const float *)dy->data + r * c, rows - r < step ? rows - r : step, c, add);
    return 0;
}

/* to [n] becomes from, or larger by it. */
static void put(float *to, const float *from, size_t n, bool add)
{
    for (size_t i = 0; i < n; i++)
        to[i] = add ? to[i] + from[i] : from[i];
}

int cpu_concat_back(struct device *dev, struct tensor *da, bool add_a, struct tensor *db,
                    bool add_b, const struct tensor *dy, struct err *err)
{
    (void)err;
    size_t c = (size_t)dy->c, ca = da ? (size_t)da->c : 0, cb = db ? (size_t)db->c : c - ca;
    ca = c - cb; /* whether or not it is wanted */
    size_t rows = tensor_count(dy) / c;
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t r = 0; r < rows; r++) {
        const float *from = (const float *)dy->data + r * c;
        if (da)
            put((float *)da->data + r * ca, from, ca, add_a);
        if (db)
            put((float *)db->data + r * cb, from + ca, cb, add_b);
    }
    return 0;
}

int cpu_upsample_back(struct device *dev, struct tensor *dx, const struct tensor *dy, bool add,
                      struct err *err)
{
    (void)err;
    float sh = (float)dx->h / (float)dy->h, sw = (float)dx->w / (float)dy->w;
    size_t c = (size_t)dx->c, row = (size_t)dx->w * c;
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (int n = 0; n < dx->n; n++) {
        float *to = (float *)dx->data + (size_t)n * (size_t)dx->h * row;
        if (!add)
            memset(to, 0, (size_t)dx->h * row * sizeof *to);
        for (int i = 0; i < dy->h; i++) {
            const float *from = (const float *)dy->data +
                                ((size_t)n * (size_t)dy->h + (size_t)i) * (size_t)dy->w * c;
            float *line = to + (size_t)element_nearest(i, sh, dx->h) * row;
            for (int j = 0; j < dy->w; j++)
                put(line + (size_t)element_nearest(j, sw, dx->w) * c, from + (size_t)j * c, c,
                    true);
        }
    }
    return 0;
}

/* ---- gates ----------------------------------------------------------------------------------- */

#define REAL    float
#define NAME(x) x##_cpu
#include "../gate_back.inc"

int cpu_gate_back(struct device *dev, struct tensor *dh, struct tensor *dt, const struct tensor *h,
                  const struct gating *in, const struct tensor *dy, struct err *err)
{
    size_t c = (size_t)h->c, wide = (size_t)dt->c, places = (size_t)h->h * (size_t)h->w;
    size_t bytes = (size_t)dev->threads * 6 * c * sizeof(float);
    float *room = cpu_scratch(dev, bytes);
    if (!room)
        return err_nomem(err, bytes);
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t p = 0; p < (size_t)h->n * places; p++)
        gate_place_back_cpu((float *)dh->data + p * c, (float *)dt->data + p * wide,
                            (const float *)h->data + p * c, (const float *)in->t->data + p * wide,
                            (const float *)dy->data + p * c, h->c, in, p % places,
                            in->wave + p / places * GATE_WAVES,
                            room + (size_t)omp_get_thread_num() * 6 * c);
    return 0;
}
