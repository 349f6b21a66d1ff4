#include "backend.h"

#include <assert.h>
#include <math.h>
#include <omp.h>
#include <stdlib.h>
#include <string.h>

extern const struct backend backend_ref, backend_ref64, backend_cpu, backend_cuda;

/* The one place that asks what was built in. */
static const struct backend *const backends[] = {&backend_cpu,
#ifdef WEFT_CUDA
                                                 &backend_cuda,
#endif
                                                 &backend_ref, &backend_ref64, NULL};

static const struct backend *find(const char *name)
{
    for (int i = 0; backends[i]; i++)
        if (!strcmp(backends[i]->name, name))
            return backends[i];
    return NULL;
}

static int no_such(const char *name, struct err *err)
{
    char known[100] = "auto";
    for (int i = 0; backends[i]; i++) {
        strcat(known, ", ");
        strcat(known, backends[i]->name);
    }
    return err_set(err, ERR_ARG, "no device '%.40s' in this build%s; known: %s", name,
                   strcmp(name, "cuda") ? "" : " (`make cuda` makes one that has it)", known);
}

static int open_one(struct device **out, const struct backend *be, const struct device_options *o,
                    struct err *err)
{
    struct device *dev = calloc(1, sizeof *dev);
    if (!dev)
        return err_nomem(err, sizeof *dev);
    dev->be = be;
    strncpy(dev->about, be->about, sizeof dev->about - 1);
    dev->threads = o->threads > 0 ? o->threads : omp_get_max_threads();
    dev->isa = ISA_PLAIN;
    int rc = o->values == DT_F32 || be->narrow
                 ? be->open(dev, o, err)
                 : err_set(err, ERR_UNSUPPORTED, "device %s computes in float32, not in %s",
                           be->name, dtype_name(o->values));
    if (rc < 0)
        free(dev);
    else
        *out = dev;
    return rc;
}

int device_open(struct device **out, const char *name, const struct device_options *o,
                struct err *err)
{
    static const struct device_options defaults;
    const struct backend *be = find(strcmp(name, "auto") ? name : "cuda");

    *out = NULL;
    if (!o)
        o = &defaults;
    if (strcmp(name, "auto"))
        return be ? open_one(out, be, o, err) : no_such(name, err);
    if (be && open_one(out, be, o, err) == 0)
        return 0;
    struct device_options plain = *o;
    plain.values = DT_F32;
    return open_one(out, find("cpu"), &plain, err);
}

void device_close(struct device *dev)
{
    if (!dev)
        return;
    dev->be->close(dev);
    free(dev);
}

struct tensor tensor_rows(const struct tensor *t, int row, int n)
{
    struct tensor v = *t;
    assert(row >= 0 && n > 0 && row + n <= t->n);
    v.n = n;
    if (t->data) {
        size_t one = (size_t)t->h * (size_t)t->w * (size_t)t->c;
        v.data = (char *)t->data + (size_t)row * one * tensor_value_size(t);
    }
    return v;
}

void layer_release(struct device *dev, struct layer *l)
{
    dev->be->layer_release(dev, l);
    l->impl = NULL;
}

size_t layer_bytes(const struct device *dev, const struct layer *l)
{
    size_t made = dev->be->layer_bytes ? dev->be->layer_bytes(l) : 0;
    return made ? made : array_count(&l->w) * sizeof(float);
}

int array_finite(const struct array *a, const char *name, struct err *err)
{
    if (!array_readable(a))
        return err_set(err, ERR_UNSUPPORTED, "%s: type %s is not one weft computes with", name,
                       dtype_name(a->dtype));
    ptrdiff_t bad = array_first_bad(a);
    if (bad < 0)
        return 0;
    struct array one = *a;
    float v = 0;
    one.ndim = 0;
    one.data = (const char *)a->data + (size_t)bad * dtype_bits(a->dtype) / 8;
    array_to_f32(&one, &v);
    return err_set(err, ERR_FORMAT, "%s: value %td is %s: the file is damaged or training diverged",
                   name, bad, isnan(v) ? "NaN" : "infinite");
}

int array_to_finite(const struct array *a, float *out, const char *name, struct err *err)
{
    int rc = array_finite(a, name, err);
    if (rc == 0)
        array_to_f32(a, out);
    for (size_t i = 0, n = array_count(a); rc == 0 && a->dtype == DT_F64 && i < n; i++)
        if (isinf(out[i]))
            rc = err_set(err, ERR_FORMAT, "%s: value %zu is beyond float32", name, i);
    return rc;
}

/* c values of `a` in device memory, as float32 whatever the device computes in. */
static float *device_floats(struct device *dev, const struct array *a, const char *name,
                            struct err *err)
{
    size_t n = array_count(a);
    float *host = malloc(n * sizeof *host), *p = NULL;

    if (!host) {
        err_nomem(err, n * sizeof *host);
        return NULL;
    }
    if (array_to_finite(a, host, name, err) == 0) {
        p = dev->be->alloc(dev, n * sizeof *p);
        if (p)
            dev->be->store(dev, p, host, n);
        else
            err_nomem(err, n * sizeof *p);
    }
    free(host);
    return p;
}

int norm_init(struct device *dev, struct norm *g, const char *name, int groups, float eps,
              const struct array *gamma, const struct array *beta, struct err *err)
{
    memset(g, 0, sizeof *g);
    assert(array_count(gamma) == array_count(beta));
    g->name = name;
    g->c = (int)array_count(gamma);
    g->groups = groups;
    g->eps = eps;
    g->site = -1;
    g->gamma_file = *gamma;
    g->beta_file = *beta;
    g->gamma = device_floats(dev, gamma, name, err);
    if (g->gamma)
        g->beta = device_floats(dev, beta, name, err);
    if (g->beta)
        return 0;
    norm_release(dev, g);
    return err ? err->code : ERR_NOMEM;
}

void norm_release(struct device *dev, struct norm *g)
{
    dev->be->free(dev, g->gamma);
    dev->be->free(dev, g->beta);
    g->gamma = g->beta = NULL;
}
