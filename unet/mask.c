#include "mask.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

struct level {
    int h, w;
    float *host, *at; /* [h*w]; at: device memory */
};

struct mask {
    struct device *dev;
    struct level *level;
    int n;
};

int mask_new(struct mask **out, struct device *dev, struct err *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return err_nomem(err, sizeof **out);
    (*out)->dev = dev;
    return 0;
}

void mask_free(struct mask *m)
{
    if (!m)
        return;
    for (int i = 0; i < m->n; i++) {
        free(m->level[i].host);
        m->dev->be->free(m->dev, m->level[i].at);
    }
    free(m->level);
    free(m);
}

/* Which of n values the i-th of `to` is made of, the first and how many, and of how much of each. */
struct window {
    int first, n;
    float part[2]; /* of the first and the last; those between count 1 / share */
    float share;
};

static struct window window_of(int i, int to, int n)
{
    struct window w;
    if (to < n) {
        double a = (double)i * n / to, b = (double)(i + 1) * n / to;
        w.first = (int)a;
        int last = (int)ceil(b) - 1;
        w.n = last - w.first + 1;
        w.share = (float)(b - a);
        w.part[0] = (float)(w.n == 1 ? b - a : w.first + 1 - a);
        w.part[1] = (float)(b - last);
        return w;
    }
    double at = fmin(fmax((i + .5) * n / to - .5, 0), n - 1);
    w.first = (int)at;
    w.n = w.first + 1 < n ? 2 : 1;
    w.share = 1;
    w.part[1] = (float)(at - w.first);
    w.part[0] = 1 - w.part[1];
    return w;
}

static float weight(const struct window *w, int k)
{
    return (k == 0 ? w->part[0] : k == w->n - 1 ? w->part[1] : 1) / w->share;
}

void mask_resample(float *to, int h, int w, const float *from, int from_h, int from_w)
{
    for (int y = 0; y < h; y++) {
        const struct window v = window_of(y, h, from_h);
        for (int x = 0; x < w; x++) {
            const struct window u = window_of(x, w, from_w);
            float sum = 0;
            for (int i = 0; i < v.n; i++) {
                const float *row = from + (size_t)(v.first + i) * (size_t)from_w + u.first;
                for (int j = 0; j < u.n; j++)
                    sum += weight(&v, i) * weight(&u, j) * row[j];
            }
            to[(size_t)y * (size_t)w + (size_t)x] = sum;
        }
    }
}

void mask_set(struct mask *m, const float *values, int h, int w)
{
    for (int i = 0; i < m->n; i++) {
        struct level *l = &m->level[i];
        mask_resample(l->host, l->h, l->w, values, h, w);
        m->dev->be->store(m->dev, l->at, l->host, (size_t)l->h * (size_t)l->w);
    }
}

static const float *add_level(struct mask *m, int h, int w, struct err *err)
{
    size_t n = (size_t)h * (size_t)w;
    struct level *more = realloc(m->level, (size_t)(m->n + 1) * sizeof *more), *l;
    if (more)
        m->level = more;
    l = more ? &more[m->n] : NULL;
    if (l)
        *l = (struct level){h, w, malloc(n * sizeof *l->host),
                            m->dev->be->alloc(m->dev, n * sizeof *l->at)};
    if (!l || !l->host || !l->at) {
        if (l) {
            free(l->host);
            m->dev->be->free(m->dev, l->at);
        }
        err_nomem(err, n * sizeof *l->at);
        return NULL;
    }
    for (size_t i = 0; i < n; i++)
        l->host[i] = 1;
    m->dev->be->store(m->dev, l->at, l->host, n);
    m->n++;
    return l->at;
}

const float *mask_at(struct mask *m, int h, int w, bool more, struct err *err)
{
    for (int i = 0; i < m->n; i++)
        if (m->level[i].h == h && m->level[i].w == w)
            return m->level[i].at;
    return more ? add_level(m, h, w, err) : NULL;
}
