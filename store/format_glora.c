/* GLoRA of LyCORIS: scale * (b1 b2 + W a1 a2). An old layout has each pair the other way round, b2 b1 and
 * a2 a1: told by the shapes, a1 being [in, r] now and [r, in] then. */
#include "format.h"

static bool is_old(const struct array *a1, const struct array *a2, const struct array *b1,
                   const struct array *b2)
{
    bool now = a1->dim[1] == a2->dim[0] && b1->dim[1] == b2->dim[0] && a1->dim[1] == b1->dim[1];
    bool then = a1->dim[0] == a2->dim[1] && b1->dim[0] == b2->dim[1] && a1->dim[0] == b1->dim[0];
    return then && !now;
}

static int import(const struct module *m, const struct peft *peft, struct delta_list *list,
                  struct err *err)
{
    const struct array *p[4];
    float scale;
    for (int i = 0; i < 4; i++) {
        p[i] = m->part[PART_GLORA_A1 + i];
        if (!p[i] || p[i]->ndim < 2)
            return err_set(err, ERR_FORMAT, "has not all four factors of a GLoRA");
    }
    bool old = is_old(p[0], p[1], p[2], p[3]);
    int rank = array_rank(old ? p[0] : p[1]);
    int rc = module_scale(m, peft, rank, &scale, err);
    struct delta *d = rc < 0 ? NULL : delta_list_add(list, m->site, err);
    if (!d)
        return rc < 0 ? rc : ERR_NOMEM;
    d->kind = DELTA_GLORA;
    d->scale = scale;
    d->f[0].a = *p[old ? 3 : 2];
    d->f[0].b = *p[old ? 2 : 3];
    d->f[1].a = *p[old ? 1 : 0];
    d->f[1].b = *p[old ? 0 : 1];
    if (m->part[PART_GLORA_BM])
        d->f[0].t = *m->part[PART_GLORA_BM];
    return 0;
}

extern const struct adapter_format adapter_format_glora;

const struct adapter_format adapter_format_glora = {
    .name = "glora",
    .about = "GLoRA of LyCORIS, both layouts",
    .parts = PART_BIT(PART_GLORA_A1) | PART_BIT(PART_GLORA_A2) | PART_BIT(PART_GLORA_B1) |
             PART_BIT(PART_GLORA_B2) | PART_BIT(PART_GLORA_BM),
    .shared = PART_BIT(PART_ALPHA) | PART_BIT(PART_SCALE),
    .import = import,
};
