/* LoHa: scale * (w1_a w1_b) o (w2_a w2_b), each with a core t where the file is Tucker's. */
#include "format.h"

static int import(const struct module *m, const struct peft *peft, struct delta_list *list,
                  struct err *err)
{
    struct factor f[2];
    float scale;
    int rc = module_factor(&f[0], m, PART_COUNT, PART_HADA_W1A, PART_HADA_W1B, PART_HADA_T1, "LoHa",
                           err);
    rc = rc < 0 ? rc
                : module_factor(&f[1], m, PART_COUNT, PART_HADA_W2A, PART_HADA_W2B, PART_HADA_T2,
                                "LoHa", err);
    rc = rc < 0 ? rc : module_scale(m, peft, array_rank(m->part[PART_HADA_W1B]), &scale, err);
    return rc < 0 ? rc : module_pair(m, list, DELTA_HADAMARD, f, scale, err);
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
