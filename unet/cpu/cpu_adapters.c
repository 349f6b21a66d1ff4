/* What adapters do beside layers: gains, scales, routing, gates. */
#include "cpu.h"

#include <math.h>
#include <omp.h>

static void gain_row(float *y, const float *h, size_t c, float f, const float *gain,
                     const float *shift)
{
    for (size_t i = 0; i < c; i++)
        y[i] += f * (gain[i] * h[i] + (shift ? shift[i] : 0));
}

int cpu_gain(struct device *dev, struct tensor *y, const struct tensor *h, double s,
             const float *gain, const float *shift, struct err *err)
{
    (void)err;
    size_t c = (size_t)y->c, n = tensor_count(y);
    float *py = y->data;
    const float *ph = h->data;
    if (is_small(n)) {
        for (size_t i = 0; i < n; i += c)
            gain_row(py + i, ph + i, c, (float)s, gain, shift);
        return 0;
    }
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t i = 0; i < n; i += c)
        gain_row(py + i, ph + i, c, (float)s, gain, shift);
    return 0;
}

static void scale_row(float *y, int n, const struct share *part, size_t place)
{
    for (int k = 0; k < n; y += part[k++].width) {
        const struct share *p = &part[k];
        float at = p->at ? p->at[place] : p->gate ? 0 : 1;
        float f = element_share(p->s, p->gate, p->bias, p->words, at);
        for (int i = 0; i < part[k].width; i++)
            y[i] *= f;
    }
}

int cpu_scale(struct device *dev, struct tensor *y, int n, const struct share *part,
              struct err *err)
{
    (void)err;
    size_t c = (size_t)y->c, count = tensor_count(y) / c, places = count / (size_t)y->n;
    float *py = y->data;
    if (is_small(count * c)) {
        for (size_t i = 0; i < count; i++)
            scale_row(py + i * c, n, part, i % places);
        return 0;
    }
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t i = 0; i < count; i++)
        scale_row(py + i * c, n, part, i % places);
    return 0;
}

int cpu_route(struct device *dev, struct tensor *t, const struct route *how, struct err *err)
{
    const struct kernels *k = kernels_of(dev);
    size_t c = (size_t)t->c, rows = tensor_count(t) / c, step = CHUNK / c + 1;
    size_t wide = c + (size_t)k->width, bytes = (size_t)dev->threads * wide * sizeof(float);
    float *work = cpu_scratch(dev, bytes), *v = t->data;
    if (!work)
        return err_nomem(err, bytes);
    if (is_small(rows * c)) {
        k->route(v, rows, c, how, work);
        return 0;
    }
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t r = 0; r < rows; r += step)
        k->route(v + r * c, rows - r < step ? rows - r : step, c, how,
                 work + (size_t)omp_get_thread_num() * wide);
    return 0;
}

size_t gate_work(int c)
{
    return (1 + 2 * GATE_PLACES) * (size_t)c;
}

/* The tile-th GATE_PLACES places of a row. */
static void gate_tile(const struct kernels *k, struct tensor *y, const struct tensor *h,
                      const struct gating *in, size_t row, size_t tile, float *work)
{
    const float *u[GATE_MOST], *words[GATE_MOST];
    size_t places = (size_t)y->h * (size_t)y->w, first = tile * GATE_PLACES, left = places - first;
    size_t place = row * places + first, at = place * (size_t)y->c;
    for (int i = 0; i < in->n; i++) {
        u[i] = in->u[i] ? (const float *)in->u[i]->data + at : NULL;
        words[i] = in->words[i] ? in->words[i] + first : NULL;
    }
    struct gate_tile g = {
        .c = y->c,
        .n = left < GATE_PLACES ? (int)left : GATE_PLACES,
        .y = (float *)y->data + at,
        .h = (const float *)h->data + at,
        .adapters = in->n,
        .t = in->t ? (const float *)in->t->data + place * (size_t)in->t->c : NULL,
        .t_stride = in->t ? (size_t)in->t->c : 0,
        .up = in->up,
        .width = in->width,
        .u = u,
        .words = words,
        .gate = in->gate,
        .wave = in->wave + row * GATE_WAVES,
        .work = work,
    };
    k->gate(&g);
}

int cpu_gate(struct device *dev, struct tensor *y, const struct tensor *h, const struct gating *in,
             struct err *err)
{
    const struct kernels *k = kernels_of(dev);
    size_t places = (size_t)y->h * (size_t)y->w, one = gate_work(y->c);
    size_t tiles = (places + GATE_PLACES - 1) / GATE_PLACES, all = (size_t)y->n * tiles;
    size_t bytes = (size_t)dev->threads * one * sizeof(float);
    float *work = cpu_scratch(dev, bytes);
    if (!work)
        return err_nomem(err, bytes);
    if (is_small(tensor_count(y))) {
        for (size_t i = 0; i < all; i++)
            gate_tile(k, y, h, in, i / tiles, i % tiles, work);
        return 0;
    }
#pragma omp parallel for schedule(static) num_threads(dev->threads)
    for (size_t i = 0; i < all; i++)
        gate_tile(k, y, h, in, i / tiles, i % tiles, work + (size_t)omp_get_thread_num() * one);
    return 0;
}
