/* IA3: LyCORIS adds weight * W along rows or in channels; PEFT multiplies W (and the bias) by l. */
#include "format.h"

static int lycoris(const struct module *m, struct delta *d, struct err *err)
{
    float on_input;
    if (!m->part[PART_WEIGHT] || !m->part[PART_ON_INPUT])
        return err_set(err, ERR_UNSUPPORTED,
                       "has a 'weight' that no adapter weft knows would have");
    int rc = module_number(m->part[PART_ON_INPUT], "on_input", &on_input, err);
    d->v = *m->part[PART_WEIGHT];
    d->columns = rc == 0 && on_input != 0;
    return rc;
}

/* Linear layers: [1, in] or [out, 1]; convolutions have n at the second place either way, and only the
 * config knows. */
static void peft_ia3(const struct module *m, const struct peft *peft, struct delta *d)
{
    const struct array *l = m->part[PART_IA3_L];
    d->v = *l;
    d->less = 1;
    if (l->ndim == 4)
        d->columns = peft_lists(peft, m->site, "feedforward_modules");
    else
        d->columns = l->ndim == 2 && l->dim[0] == 1 && l->dim[1] > 1;
    d->with_bias = !d->columns;
}

static int import(const struct module *m, const struct peft *peft, struct delta_list *list,
                  struct err *err)
{
    struct delta *d = delta_list_add(list, m->site, err);
    if (!d)
        return ERR_NOMEM;
    d->kind = DELTA_GAIN;
    if (!m->part[PART_IA3_L])
        return lycoris(m, d, err);
    peft_ia3(m, peft, d);
    return 0;
}

extern const struct adapter_format adapter_format_ia3;

const struct adapter_format adapter_format_ia3 = {
    .name = "ia3",
    .about = "IA3 of LyCORIS or PEFT",
    .parts = PART_BIT(PART_WEIGHT) | PART_BIT(PART_ON_INPUT) | PART_BIT(PART_IA3_L),
    .shared = PART_BIT(PART_ALPHA),
    .import = import,
};
