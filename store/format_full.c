/* Whole differences: of weights, biases and norms. */
#include "format.h"

static int add(struct delta_list *list, const struct module *m, enum part p, enum delta_kind kind,
               struct err *err)
{
    const struct array *a = m->part[p];
    if (!a)
        return 0;
    struct delta *d = delta_list_add(list, m->site, err);
    if (!d)
        return ERR_NOMEM;
    d->kind = kind;
    if (kind == DELTA_PRODUCT)
        d->f[0].full = *a;
    else
        d->v = *a;
    return 0;
}

static int import(const struct module *m, const struct peft *peft, struct delta_list *list,
                  struct err *err)
{
    const struct array *diff = m->part[PART_DIFF];
    (void)peft;
    int rc = add(list, m, PART_DIFF, diff && diff->ndim == 1 ? DELTA_NORM : DELTA_PRODUCT, err);
    rc = rc < 0 ? rc : add(list, m, PART_DIFF_B, DELTA_BIAS, err);
    rc = rc < 0 ? rc : add(list, m, PART_W_NORM, DELTA_NORM, err);
    return rc < 0 ? rc : add(list, m, PART_B_NORM, DELTA_BIAS, err);
}

extern const struct adapter_format adapter_format_full;

const struct adapter_format adapter_format_full = {
    .name = "full",
    .about = "whole differences of weights, biases and norms",
    .parts =
        PART_BIT(PART_DIFF) | PART_BIT(PART_DIFF_B) | PART_BIT(PART_W_NORM) | PART_BIT(PART_B_NORM),
    .shared = PART_BIT(PART_ALPHA), /* written, and of no meaning */
    .import = import,
};
