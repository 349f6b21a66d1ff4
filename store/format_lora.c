/* LoRA and LoCon in all spellings, with lora_mid, DoRA's magnitude and PEFT's bias. */
#include "format.h"

static int import(const struct module *m, const struct peft *peft, struct delta_list *list,
                  struct err *err)
{
    const struct array *down = m->part[PART_LORA_DOWN], *up = m->part[PART_LORA_UP];
    float scale;
    if (!down || !up)
        return err_set(err, ERR_FORMAT, "has only %s of its two factors",
                       down ? "the down one"
                       : up ? "the up one"
                            : "other parts and none");
    if (down->ndim < 2 || up->ndim < 2 || array_rank(down) < 1 || !array_count(down) ||
        !array_count(up))
        return err_set(err, ERR_FORMAT, "has factors that are no matrices");
    int rc = module_scale(m, peft, array_rank(down), &scale, err);
    struct delta *d = rc < 0 ? NULL : delta_list_add(list, m->site, err);
    if (!d)
        return rc < 0 ? rc : ERR_NOMEM;
    d->kind = DELTA_PRODUCT;
    d->scale = scale;
    d->f[0].a = *up;
    d->f[0].b = *down;
    if (m->part[PART_LORA_MID])
        d->f[0].t = *m->part[PART_LORA_MID];
    module_magnitude(m, d);
    if (!m->part[PART_LORA_BIAS])
        return 0;
    if (!(d = delta_list_add(list, m->site, err)))
        return ERR_NOMEM;
    d->kind = DELTA_BIAS;
    d->scale = scale;
    d->v = *m->part[PART_LORA_BIAS];
    return 0;
}

extern const struct adapter_format adapter_format_lora;

const struct adapter_format adapter_format_lora = {
    .name = "lora",
    .about = "LoRA, LoCon and their DoRA, keys of kohya, PEFT or diffusers",
    .parts = PART_BIT(PART_LORA_DOWN) | PART_BIT(PART_LORA_UP) | PART_BIT(PART_LORA_MID) |
             PART_BIT(PART_LORA_BIAS),
    .shared = PART_BIT(PART_ALPHA) | PART_BIT(PART_SCALE) | PART_BIT(PART_DORA_SCALE) |
              PART_BIT(PART_MAGNITUDE),
    .import = import,
};
