/* LoHa: scale * (w1_a w1_b) o (w2_a w2_b), each with a core t where the file is Tucker's. */
#include "format.h"

#include <string.h>

static int factor(struct factor *f, const struct module *m, enum part a, enum part b, enum part t,
                  struct err *err)
{
    if (!m->part[a] || !m->part[b])
        return err_set(err, ERR_FORMAT, "has not all four factors of a LoHa");
    f->a = *m->part[a];
    f->b = *m->part[b];
    if (m->part[t]) {
        f->t = *m->part[t];
        f->across = true;
    }
    return 0;
}

static int import(const struct module *m, const struct peft *peft, struct delta_list *list,
                  struct err *err)
{
    struct factor f[2];
    float scale;
    memset(f, 0, sizeof f);
    int rc = factor(&f[0], m, PART_HADA_W1A, PART_HADA_W1B, PART_HADA_T1, err);
    rc = rc < 0 ? rc : factor(&f[1], m, PART_HADA_W2A, PART_HADA_W2B, PART_HADA_T2, err);
    rc = rc < 0 ? rc : module_scale(m, peft, array_rank(m->part[PART_HADA_W1B]), &scale, err);
    struct delta *d = rc < 0 ? NULL : delta_list_add(list, m->site, err);
    if (!d)
        return rc < 0 ? rc : ERR_NOMEM;
    d->kind = DELTA_HADAMARD;
    d->scale = scale;
    memcpy(d->f, f, sizeof f);
    module_magnitude(m, d);
    return 0;
}

extern const struct adapter_format adapter_format_loha;

const struct adapter_format adapter_format_loha = {
    .name = "loha",
    .about = "LoHa of LyCORIS or PEFT, plain or Tucker",
    .parts = PART_BIT(PART_HADA_W1A) | PART_BIT(PART_HADA_W1B) | PART_BIT(PART_HADA_W2A) |
             PART_BIT(PART_HADA_W2B) | PART_BIT(PART_HADA_T1) | PART_BIT(PART_HADA_T2),
    .shared = PART_BIT(PART_ALPHA) | PART_BIT(PART_SCALE) | PART_BIT(PART_DORA_SCALE) |
              PART_BIT(PART_MAGNITUDE),
    .import = import,
};
