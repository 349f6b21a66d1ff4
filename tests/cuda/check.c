/* Counting, comparing, numbers. */
#include "check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

double bound_of(enum limit b, enum dtype type)
{
    static const double all[][3] = {
        /*                 float32 float16 bfloat16 */
        [BOUND_EXACT] = {0, 0, 0},          [BOUND_ONCE] = {2e-6, 4.9e-4, 3.9e-3},
        [BOUND_SUM] = {5e-6, 1e-3, 8e-3},   [BOUND_BACK] = {2e-5, 2e-3, 1.2e-2},
        [BOUND_NET] = {1e-4, 1.5e-2, 8e-2}, [BOUND_NET_BACK] = {1e-4, 6e-2, 4e-1},
    };
    return all[b][type == DT_F16 ? 1 : type == DT_BF16 ? 2 : 0];
}

double error_of(const float *got, const float *want, size_t n, double least)
{
    double d = 0, s = 0, most = 0;
    for (size_t i = 0; i < n; i++) {
        if (isnan(got[i]) != isnan(want[i]) || (isinf(want[i]) && got[i] != want[i]))
            return INFINITY;
        if (isnan(want[i]) || isinf(want[i]))
            continue;
        d += pow((double)got[i] - (double)want[i], 2);
        s += (double)want[i] * (double)want[i];
    }
    double rms = fmax(sqrt(s / (double)n), least);
    for (size_t i = 0; i < n && rms > 0; i++)
        if (isfinite(want[i]))
            most = fmax(most,
                        fabs((double)got[i] - (double)want[i]) / fmax(fabs((double)want[i]), rms));
    double l2 = sqrt(rms > 0 ? d / (double)n : d) / (rms > 0 ? rms : 1);
    return isnan(l2) ? INFINITY : fmax(l2, most / 16);
}

/* ---- numbers --------------------------------------------------------------------------------- */

uint64_t random_next(struct random *r)
{
    r->s = r->s * 6364136223846793005u + 1442695040888963407u;
    uint64_t v = r->s;
    v = (v ^ v >> 33) * 0xff51afd7ed558ccdu;
    return v ^ v >> 33;
}

int random_int(struct random *r, int lo, int hi)
{
    return lo + (int)(random_next(r) % (uint64_t)(hi - lo + 1));
}

uint64_t seed_of(const char *what, uint64_t i)
{
    struct random r = {options.seed * 1000003 + i};
    for (; *what; what++)
        r.s = random_next(&r) + (unsigned char)*what;
    return random_next(&r) >> 20;
}

void fill(float *x, size_t n, uint64_t seed)
{
    struct random r = {seed};
    for (size_t i = 0; i < n; i++) {
        uint64_t v = random_next(&r);
        float sum = -2;
        for (int k = 0; k < 4; k++, v >>= 16)
            sum += (float)(v & 0xffff) * 0x1p-16f;
        x[i] = sum * 1.7320508f;
    }
}

float rounded_to(float x, enum dtype type)
{
    if (type == DT_F16)
        return half_to_f32(f32_to_half(x));
    return type == DT_BF16 ? bf16_to_f32(f32_to_bf16(x)) : x;
}

void round_to(float *x, size_t n, enum dtype type)
{
    for (size_t i = 0; i < n && type != DT_F32; i++)
        x[i] = rounded_to(x[i], type);
}

void *room_for(size_t n, size_t size)
{
    void *p = calloc(n + 1, size);
    if (!p) {
        fprintf(stderr, "no memory for %zu values\n", n);
        exit(1);
    }
    return p;
}

const char *data_path(const char *name)
{
    static char path[1024];
    snprintf(path, sizeof path, "%s/%s", options.data, name);
    return path;
}

int fuzz_count(int quick, int full)
{
    return options.fuzz >= 0 ? options.fuzz : options.quick ? quick : full;
}

/* ---- devices --------------------------------------------------------------------------------- */

int device_make(struct device **out, const char *name, enum dtype type, struct err *err)
{
    const struct device_options o = {.values = type};
    if (!strcmp(name, "rounded"))
        return rounded_open(out, type, err);
    return device_open(out, name, &o, err);
}

struct device *device_exact(void)
{
    static struct device *dev;
    struct err err;
    if (!dev)
        must(device_make(&dev, "ref64", DT_F32, &err), &err, "ref64");
    return dev;
}

static int apart(struct device *dev, const struct chain *c, struct err *err)
{
    const struct backend *be = dev->be;
    struct tensor t = c->t, y = c->y;
    const struct tensor *src = &t;
    int rc = be->layer(dev, &t, c->down, &c->x, false, err);
    for (int row = 0; row < t.n && c->n_part && rc == 0; row++) {
        struct tensor one = tensor_rows(&t, row, 1);
        rc = be->scale(dev, &one, c->n_part, c->part + (c->alike ? 0 : row * c->n_part), err);
    }
    rc = rc < 0 || !c->route ? rc : be->route(dev, &t, c->route, err);
    rc = rc < 0 ? rc : be->lincomb(dev, &t, 1, &c->s, &src, 0, err);
    return rc < 0 ? rc : be->layer(dev, &y, c->up, &t, true, err);
}

int chains_apart(struct device *dev, const struct chain *c, int n, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++)
        rc = apart(dev, &c[i], err);
    return rc;
}
