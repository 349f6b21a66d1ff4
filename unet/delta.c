#include "delta.h"

#include <stdlib.h>
#include <string.h>

void delta_list_release(struct delta_list *l)
{
    for (int i = 0; i < l->n; i++)
        free(l->item[i].site);
    free(l->item);
    free(l->own);
    memset(l, 0, sizeof *l);
}

struct delta *delta_list_add(struct delta_list *l, const char *site, struct err *err)
{
    struct delta_item *p = l->item;
    if ((l->n & (l->n - 1)) == 0) /* full at every power of two */
        p = realloc(p, (l->n ? 2 * (size_t)l->n : 1) * sizeof *p);
    char *name = strdup(site);
    if (p)
        l->item = p;
    if (!p || !name) {
        free(name);
        err_nomem(err, sizeof *p);
        return NULL;
    }
    p[l->n] = (struct delta_item){.site = name, .d = {.scale = 1}};
    return &p[l->n++].d;
}

const char *delta_kind_name(const struct delta *d)
{
    static const char *const plain[] = {"LoRA",  "LoHa", "LoKr", "SHiRA", "IA3",
                                        "GLoRA", "OFT",  "bias", "norm"};
    if (d->magnitude.data)
        return "DoRA";
    if (d->kind == DELTA_ROTATE && d->rot.butterfly)
        return "BOFT";
    if (d->kind == DELTA_PRODUCT && d->f[0].full.data)
        return "full";
    if (d->kind == DELTA_PRODUCT && d->f[0].b.ndim == 4)
        return "LoCon";
    return plain[d->kind];
}

static int factor_rank(const struct factor *f)
{
    const struct array *a = f->across ? &f->a : &f->b; /* both begin with the rank */
    if (f->t.data)
        a = &f->t;
    return a->data && a->ndim > 0 && a->dim[0] < INT32_MAX ? (int)a->dim[0] : 0;
}

int delta_rank(const struct delta *d)
{
    int r0 = factor_rank(&d->f[0]), r1 = factor_rank(&d->f[1]);
    switch (d->kind) {
    case DELTA_PRODUCT:
    case DELTA_HADAMARD:
    case DELTA_GLORA: return r0;
    case DELTA_KRON: return r1 ? r1 : r0;
    default: return 0;
    }
}

static int64_t factor_in(const struct factor *f)
{
    const struct array *a = f->full.data ? &f->full : &f->b;
    return a->data && a->ndim > 1 && a->dim[1] < INT32_MAX ? (int64_t)a->dim[1] : 0;
}

int delta_in(const struct delta *d)
{
    int64_t in = d->kind <= DELTA_KRON || d->kind == DELTA_GLORA ? factor_in(&d->f[0]) : 0;
    if (d->kind == DELTA_KRON)
        in *= factor_in(&d->f[1]);
    return in < INT32_MAX ? (int)in : 0;
}
