#include "format.h"

#include <math.h>
#include <string.h>

int module_number(const struct array *a, const char *what, float *out, struct err *err)
{
    if (array_count(a) != 1 || !array_readable(a))
        return err_set(err, ERR_FORMAT, "%s is not one number", what);
    array_to_f32(a, out);
    return isfinite(*out) ? 0 : err_set(err, ERR_FORMAT, "%s is not a finite number", what);
}

int module_scale(const struct module *m, const struct peft *peft, int rank, float *scale,
                 struct err *err)
{
    *scale = 1;
    if (m->part[PART_SCALE])
        return module_number(m->part[PART_SCALE], "scale", scale, err);
    if (m->part[PART_ALPHA]) {
        int rc = module_number(m->part[PART_ALPHA], "alpha", scale, err);
        *scale = rank > 0 ? *scale / (float)rank : 1;
        return rc;
    }
    if (m->site[0] == '?')
        return 0;
    int rc = peft_scale(peft, m->site, rank, scale, err);
    if (rc < 0)
        err_prefix(err, "PEFT's config");
    return rc;
}

void module_magnitude(const struct module *m, struct delta *d)
{
    const struct array *a = m->part[PART_MAGNITUDE];
    if (m->part[PART_DORA_SCALE]) { /* [out, 1, …], or in old files [1, in, …] */
        a = m->part[PART_DORA_SCALE];
        d->by_column = a->ndim > 1 && a->dim[0] == 1 && a->dim[1] > 1;
    }
    if (a)
        d->magnitude = *a;
}

int module_factor(struct factor *f, const struct module *m, enum part whole, enum part a,
                  enum part b, enum part t, const char *what, struct err *err)
{
    bool full = whole != PART_COUNT && m->part[whole], pair = m->part[a] && m->part[b];
    memset(f, 0, sizeof *f);
    if (full == pair)
        return err_set(err, ERR_FORMAT, "has %s of a %s's factors",
                       pair ? "two forms of one" : "not all", what);
    if (full) {
        f->full = *m->part[whole];
        return 0;
    }
    f->a = *m->part[a];
    f->b = *m->part[b];
    if (m->part[t]) {
        f->t = *m->part[t];
        f->across = true;
    }
    return 0;
}

int module_pair(const struct module *m, struct delta_list *list, enum delta_kind kind,
                const struct factor f[2], float scale, struct err *err)
{
    struct delta *d = delta_list_add(list, m->site, err);
    if (!d)
        return ERR_NOMEM;
    d->kind = kind;
    d->scale = scale;
    memcpy(d->f, f, sizeof d->f);
    module_magnitude(m, d);
    return 0;
}

int array_rank(const struct array *a)
{
    return a && a->ndim > 0 && a->dim[0] <= INT32_MAX ? (int)a->dim[0] : 0;
}
