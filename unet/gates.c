#include "gates.h"

#include "safetensors.h"

#include <math.h>
#include <stdio.h>
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

static bool is_plain(const float *rows, int c)
{
    bool plain = true;
    for (int i = 0; i < GATE_ROWS * c && plain; i++) {
        int row = i / c;
        bool looks = row == GATE_BASE || row == GATE_OWN || row == GATE_CROSS;
        plain = looks ? rows[i] == 0 : rows[i] == rows[row * c];
    }
    return plain;
}

static int read_one(struct gates *g, const struct sites *sites, const char *name,
                    const struct array *a, struct err *err)
{
    int s = sites_find(sites, name);
    size_t out = s >= 0 && sites->at[s].layer ? (size_t)sites->at[s].layer->out : 0,
           wide = (size_t)array_dim(a, 1), n = GATE_ROWS * out;
    if (!out || a->ndim != 2 || array_dim(a, 0) != GATE_ROWS || (wide != out && wide != 1))
        return err_set(err, ERR_MISMATCH, "its gates at %.100s are for another model", name);
    float *own = malloc(GATE_ROWS * wide * sizeof *own);
    g->host[s] = malloc(n * sizeof *own);
    g->at[s] = g->dev->be->alloc(g->dev, n * sizeof *own);
    int rc = own && g->host[s] && g->at[s] ? array_to_finite(a, own, name, err)
                                           : err_nomem(err, n * sizeof *own);
    for (size_t i = 0; i < n && rc == 0; i++)
        g->host[s][i] = own[wide == 1 ? i / out : i];
    if (rc == 0) {
        g->dev->be->store(g->dev, g->at[s], g->host[s], n);
        g->plain[s] = is_plain(g->host[s], (int)out);
    }
    free(own);
    return rc;
}

bool gates_plain(const struct gates *g, int site)
{
    return site >= 0 && g->plain && g->plain[site];
}

float gates_line(const struct gates *g, int site, int c, const float *wave, float z[2])
{
    const float *p = g->host[site];
    z[0] = p[GATE_BIAS * c];
    for (int k = 0; k < GATE_WAVES && wave; k++)
        z[0] += wave[k] * p[(GATE_TIME + k) * c];
    z[1] = p[GATE_WORDS * c];
    return p[GATE_GAIN * c];
}

struct normal {
    double mean, rstd;
};

static struct normal normal_of(const float *x, int c)
{
    double mean = 0, var = 0;
    for (int i = 0; i < c; i++)
        mean += (double)x[i] / c;
    for (int i = 0; i < c; i++)
        var += ((double)x[i] - mean) * ((double)x[i] - mean) / c;
    return (struct normal){mean, 1 / sqrt(var + 1e-5)};
}

void gates_values(const struct gates *g, int site, int c, const float *h, const float *u,
                  const float *wave, float w, float *out)
{
    const float *p = g->host[site];
    struct normal base = normal_of(h, c), own = normal_of(u, c);
    for (int i = 0; i < c; i++) {
        double nh = ((double)h[i] - base.mean) * base.rstd,
               nu = ((double)u[i] - own.mean) * own.rstd;
        double z = (double)p[GATE_BIAS * c + i] +
                   (double)p[GATE_WORDS * c + i] * (double)gate_word(w) +
                   (double)p[GATE_BASE * c + i] * nh + (double)p[GATE_OWN * c + i] * nu +
                   (double)p[GATE_CROSS * c + i] * nh * nu;
        for (int k = 0; k < GATE_WAVES; k++)
            z += (double)wave[k] * (double)p[(GATE_TIME + k) * c + i];
        out[i] = gate_shut(w) ? 0 : (float)((double)p[GATE_GAIN * c + i] / (1 + exp(-z)));
    }
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
    g->host = calloc((size_t)sites->n + 1, sizeof *g->host);
    g->plain = calloc((size_t)sites->n + 1, sizeof *g->plain);
    int rc = g->at && g->host && g->plain ? safetensors_open(&st, file, err)
                                          : err_nomem(err, (size_t)sites->n * 8);
    for (size_t i = 0; rc == 0 && i < safetensors_count(st); i++)
        rc = read_one(g, sites, safetensors_name(st, i), safetensors_at(st, i), err);
    const char *model = rc == 0 ? safetensors_metadata(st, "model") : NULL;
    snprintf(g->model, sizeof g->model, "%s", model ? model : "");
    if (st && rc < 0 && rc != ERR_NOMEM)
        err_prefix(err, "%.200s", file);
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
    for (int i = 0; g->at && g->host && i < g->n_site; i++) {
        if (g->at[i])
            g->dev->be->free(g->dev, g->at[i]);
        free(g->host[i]);
    }
    free(g->at);
    free(g->host);
    free(g->plain);
    free(g);
}
