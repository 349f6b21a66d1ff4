#include "gates.h"

#include "safetensors.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

void gate_waves(double t, float out[GATE_WAVES])
{
    enum { HALF = GATE_WAVES / 2 };
    for (int k = 0; k < HALF; k++) {
        double x = t / 1000 * (k * M_PI + M_PI / 2);
        out[k] = (float)sin(x);
        out[HALF + k] = (float)cos(x);
    }
}

static int read_one(struct gates *g, const struct sites *sites, const char *name,
                    const struct array *a, struct err *err)
{
    int s = sites_find(sites, name);
    size_t n = array_count(a);
    if (s < 0 || !sites->at[s].layer || a->ndim != 2 || array_dim(a, 0) != GATE_ROWS ||
        array_dim(a, 1) != (uint64_t)sites->at[s].layer->out)
        return err_set(err, ERR_MISMATCH, "the gates at %.100s are for another model", name);
    float *host = malloc((n + 1) * sizeof *host);
    g->at[s] = g->dev->be->alloc(g->dev, n * sizeof *host);
    int rc = host && g->at[s] ? array_to_finite(a, host, name, err) : err_nomem(err, n * 4);
    if (rc == 0)
        g->dev->be->store(g->dev, g->at[s], host, n);
    free(host);
    return rc;
}

int gates_open(struct gates **out, struct device *dev, const struct sites *sites, const char *file,
               struct err *err)
{
    struct safetensors *st = NULL;
    struct gates *g = calloc(1, sizeof *g);
    *out = NULL;
    if (!g)
        return err_nomem(err, sizeof *g);
    g->dev = dev;
    g->n_site = sites->n;
    g->at = calloc((size_t)sites->n + 1, sizeof *g->at);
    int rc = g->at ? safetensors_open(&st, file, err) : err_nomem(err, (size_t)sites->n * 8);
    for (size_t i = 0; rc == 0 && i < safetensors_count(st); i++)
        rc = read_one(g, sites, safetensors_name(st, i), safetensors_at(st, i), err);
    safetensors_close(st);
    if (rc < 0)
        gates_close(g);
    else
        *out = g;
    return rc;
}

void gates_close(struct gates *g)
{
    if (!g)
        return;
    for (int i = 0; g->at && i < g->n_site; i++)
        if (g->at[i])
            g->dev->be->free(g->dev, g->at[i]);
    free(g->at);
    free(g);
}
