#include "ridge.h"

#include "algebra.h"

#include <float.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Examples turned into the eigenvectors of K: K = Q diag(value) Q^T. */
struct fit {
    size_t n, out;
    const float *y;
    double *q;     /* [n, n], eigenvector k in row k */
    double *value; /* [n] */
    double *qy;    /* [n, out] Q^T Y */
    double *room;  /* [out] */
};

static int decompose(struct fit *f, struct err *err)
{
    int rc = eigen(f->q, (int)f->n, f->value, err);
    if (rc < 0)
        return rc;
    for (size_t k = 0; k < f->n; k++) {
        f->value[k] = fmax(f->value[k], 0);
        for (size_t i = 0; i < f->n; i++)
            for (size_t c = 0; c < f->out; c++)
                f->qy[k * f->out + c] += f->q[k * f->n + i] * f->y[i * f->out + c];
    }
    return 0;
}

/* Answers to all examples left out (NULL: not wanted), and their squared error. */
static double leave_out(struct fit *f, double lambda, float *answer)
{
    double error = 0;
    for (size_t i = 0; i < f->n; i++) {
        double own = 0, *fitted = f->room;
        memset(fitted, 0, f->out * sizeof *fitted);
        for (size_t k = 0; k < f->n; k++) {
            double part = f->value[k] / (f->value[k] + lambda), q = f->q[k * f->n + i];
            own += q * q * part;
            for (size_t c = 0; c < f->out; c++)
                fitted[c] += q * part * f->qy[k * f->out + c];
        }
        for (size_t c = 0; c < f->out; c++) {
            double miss = (f->y[i * f->out + c] - fitted[c]) / fmax(1 - own, 1e-9);
            error += miss * miss;
            if (answer)
                answer[i * f->out + c] = (float)(f->y[i * f->out + c] - miss);
        }
    }
    return error;
}

static int choose(struct ridge *g, struct fit *f, struct err *err)
{
    double mean = 0, best = DBL_MAX;
    int rc = decompose(f, err);
    if (rc < 0)
        return rc;
    for (size_t i = 0; i < f->n; i++)
        mean += f->value[i] / (double)f->n;
    if (!(mean > 0))
        return err_set(err, ERR_ARG, "there is nothing in these examples to learn from");
    for (int step = -12; step <= 4; step++) {
        double error = leave_out(f, ldexp(mean, step), NULL);
        if (error < best) {
            best = error;
            g->lambda = ldexp(1, step);
        }
    }
    leave_out(f, g->lambda * mean, g->left_out);
    for (size_t k = 0; k < f->n; k++)
        for (size_t i = 0; i < f->n; i++)
            for (size_t c = 0; c < f->out; c++)
                g->w[i * f->out + c] += (float)(f->q[k * f->n + i] * f->qy[k * f->out + c] /
                                                (f->value[k] + g->lambda * mean));
    return 0;
}

int ridge_fit(struct ridge *g, double *k, const float *y, int n, int out, struct err *err)
{
    size_t rows = n > 0 ? (size_t)n : 0, cols = (size_t)out;
    *g = (struct ridge){.n = n, .out = out};
    if (n < 3)
        return err_set(err, ERR_ARG, "%d examples are too few to learn from", n);
    struct fit f = {.n = rows, .out = cols, .y = y, .q = k};
    g->w = calloc(rows * cols, sizeof *g->w);
    g->left_out = malloc(rows * cols * sizeof *g->left_out);
    f.value = malloc(rows * sizeof *f.value);
    f.qy = calloc(rows * cols, sizeof *f.qy);
    f.room = malloc(cols * sizeof *f.room);
    int rc = g->w && g->left_out && f.value && f.qy && f.room
                 ? choose(g, &f, err)
                 : err_nomem(err, rows * cols * sizeof(double));
    free(f.value);
    free(f.qy);
    free(f.room);
    return rc;
}

void ridge_apply(const struct ridge *g, const double *k, float *to)
{
    for (int c = 0; c < g->out; c++) {
        double s = 0;
        for (int i = 0; i < g->n; i++)
            s += k[i] * g->w[(size_t)i * (size_t)g->out + (size_t)c];
        to[c] = (float)s;
    }
}

void ridge_release(struct ridge *g)
{
    free(g->w);
    free(g->left_out);
    memset(g, 0, sizeof *g);
}
