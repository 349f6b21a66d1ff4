/* Orthogonal factors. LyCORIS and kohya turn the rows of W by blocks [n, b, b] (Diag-OFT) or stages of them
 * (BOFT), alpha times the rows bounding Q's norm; old files hold R itself. PEFT turns the columns. */
#include "format.h"

static uint64_t rows_of(const struct array *a)
{
    return a->ndim >= 3 ? a->dim[a->ndim - 3] * a->dim[a->ndim - 2] : 0;
}

static int lycoris(const struct module *m, struct rotation *r, struct err *err)
{
    const struct array *blocks = m->part[PART_OFT_BLOCKS];
    float alpha = 0;
    r->across = true;
    if (!blocks) {
        blocks = m->part[PART_OFT_DIAG];
        r->skew = SKEW_NONE;
    }
    if (!blocks)
        return err_set(err, ERR_FORMAT, "has not the blocks of an OFT");
    r->blocks = *blocks;
    r->butterfly = blocks->ndim == 4;
    if (r->butterfly)
        r->across = false;
    if (m->part[PART_OFT_RESCALE])
        r->gain = *m->part[PART_OFT_RESCALE];
    int rc = m->part[PART_ALPHA] ? module_number(m->part[PART_ALPHA], "alpha", &alpha, err) : 0;
    r->bound = (double)alpha * (double)rows_of(blocks);
    return rc;
}

static int peft_oft(const struct module *m, const struct peft *peft, struct rotation *r)
{
    r->blocks = *m->part[PART_OFT_R];
    r->skew = SKEW_TRIANGLE;
    r->columns = true;
    r->neumann = peft_true(peft, m->site, "use_cayley_neumann");
    return 0;
}

static int peft_boft(const struct module *m, struct rotation *r, struct err *err)
{
    if (!m->part[PART_BOFT_R] || !m->part[PART_BOFT_S])
        return err_set(err, ERR_FORMAT, "has not both parts of a BOFT");
    r->blocks = *m->part[PART_BOFT_R];
    r->gain = *m->part[PART_BOFT_S];
    r->skew = SKEW_HALF;
    r->columns = true;
    r->butterfly = true;
    return 0;
}

static int import(const struct module *m, const struct peft *peft, struct delta_list *list,
                  struct err *err)
{
    struct delta *d = delta_list_add(list, m->site, err);
    if (!d)
        return ERR_NOMEM;
    d->kind = DELTA_ROTATE;
    if (m->part[PART_OFT_R])
        return peft_oft(m, peft, &d->rot);
    if (m->part[PART_BOFT_R] || m->part[PART_BOFT_S])
        return peft_boft(m, &d->rot, err);
    return lycoris(m, &d->rot, err);
}

extern const struct adapter_format adapter_format_oft;

const struct adapter_format adapter_format_oft = {
    .name = "oft",
    .about = "Diag-OFT and BOFT of LyCORIS, kohya or PEFT",
    .parts = PART_BIT(PART_OFT_BLOCKS) | PART_BIT(PART_OFT_DIAG) | PART_BIT(PART_OFT_RESCALE) |
             PART_BIT(PART_OFT_R) | PART_BIT(PART_BOFT_R) | PART_BIT(PART_BOFT_S),
    .shared = PART_BIT(PART_ALPHA),
    .import = import,
};
