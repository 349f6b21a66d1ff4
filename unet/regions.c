#include "regions.h"

#include "mask.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

int regions_new(struct regions **out, struct device *dev, int n, float least, struct err *err)
{
    assert(n > 0 && n <= REGIONS_MAX);
    *out = calloc(1, sizeof **out);
    if (!*out)
        return err_nomem(err, sizeof **out);
    (*out)->dev = dev;
    (*out)->n = n;
    (*out)->least = least;
    return 0;
}

static void level_release(struct device *dev, struct region_level *l)
{
    free(l->host);
    free(l->room);
    dev->be->free(dev, l->bits);
    dev->be->free(dev, l->weight);
}

void regions_free(struct regions *g)
{
    if (!g)
        return;
    for (int i = 0; i < g->n_level; i++)
        level_release(g->dev, &g->level[i]);
    for (int i = 0; i < g->n; i++)
        free(g->values[i]);
    free(g->level);
    free(g);
}

/* Its room: h*w floats for one region, then (n + 1) h*w for weights. */
static void fill_level(const struct regions *g, struct region_level *l)
{
    size_t places = (size_t)l->h * (size_t)l->w;
    float *room = l->room, *weight = room + places, *rest = weight + (size_t)g->n * places;
    memset(l->host, 0, places * sizeof *l->host);
    for (int i = 0; i < g->n; i++) {
        mask_resample(room, l->h, l->w, g->values[i], g->h[i], g->w[i]);
        for (size_t p = 0; p < places; p++)
            l->host[p] |= room[p] >= g->least ? 1u << i : 0;
    }
    for (size_t p = 0; p < places; p++) {
        int count = __builtin_popcount(l->host[p]);
        rest[p] = count == 0;
        for (int i = 0; i < g->n; i++)
            weight[(size_t)i * places + p] = l->host[p] >> i & 1 ? 1 / (float)count : 0;
    }
    g->dev->be->store(g->dev, l->weight, weight, (size_t)(g->n + 1) * places);
    memcpy(room, l->host, places * sizeof *room); /* bits travel as floats do */
    g->dev->be->store(g->dev, (float *)(void *)l->bits, room, places);
}

int regions_set(struct regions *g, int i, const float *values, int h, int w, struct err *err)
{
    size_t n = (size_t)h * (size_t)w;
    if (n > g->room[i]) {
        float *more = realloc(g->values[i], n * sizeof *more);
        if (!more)
            return err_nomem(err, n * sizeof *more);
        g->values[i] = more;
        g->room[i] = n;
    }
    memcpy(g->values[i], values, n * sizeof *values);
    g->h[i] = h;
    g->w[i] = w;
    for (int k = 0; k < g->n_level; k++)
        fill_level(g, &g->level[k]);
    return 0;
}

static const struct region_level *add_level(struct regions *g, int h, int w, struct err *err)
{
    size_t places = (size_t)h * (size_t)w, all = (size_t)(g->n + 1) * places;
    struct region_level *more = realloc(g->level, (size_t)(g->n_level + 1) * sizeof *more);
    if (more)
        g->level = more;
    struct region_level l = {.h = h, .w = w};
    l.room = malloc((all + places) * sizeof *l.room);
    l.host = malloc(places * sizeof *l.host);
    l.bits = g->dev->be->alloc(g->dev, places * sizeof *l.bits);
    l.weight = g->dev->be->alloc(g->dev, all * sizeof *l.weight);
    if (!more || !l.room || !l.host || !l.bits || !l.weight) {
        level_release(g->dev, &l);
        err_nomem(err, all * sizeof *l.weight);
        return NULL;
    }
    fill_level(g, &l);
    g->level[g->n_level++] = l;
    return &g->level[g->n_level - 1];
}

const struct region_level *regions_at(struct regions *g, int h, int w, bool more, struct err *err)
{
    for (int i = 0; i < g->n_level; i++)
        if (g->level[i].h == h && g->level[i].w == w)
            return &g->level[i];
    return more ? add_level(g, h, w, err) : NULL;
}
