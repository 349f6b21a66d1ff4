/* LoKr: scale * kron(w1, w2), either whole or two factors, the second also with a core. */
#include "format.h"

/* The rank is that of w2's factors, else of w1's. With both whole LyCORIS has no scale; PEFT has alpha /
 * r always. */
static int scale_of(const struct module *m, const struct peft *peft, float *scale, struct err *err)
{
    int rank = array_rank(m->part[PART_LOKR_W2B]);
    if (rank == 0)
        rank = array_rank(m->part[PART_LOKR_W1B]);
    return module_scale(m, peft, rank, scale, err);
}

static int import(const struct module *m, const struct peft *peft, struct delta_list *list,
                  struct err *err)
{
    struct factor f[2];
    float scale;
    int rc = module_factor(&f[0], m, PART_LOKR_W1, PART_LOKR_W1A, PART_LOKR_W1B, PART_LOKR_T1,
                           "LoKr", err);
    rc = rc < 0 ? rc
                : module_factor(&f[1], m, PART_LOKR_W2, PART_LOKR_W2A, PART_LOKR_W2B, PART_LOKR_T2,
                                "LoKr", err);
    rc = rc < 0 ? rc : scale_of(m, peft, &scale, err);
    return rc < 0 ? rc : module_pair(m, list, DELTA_KRON, f, scale, err);
}

extern const struct adapter_format adapter_format_lokr;

const struct adapter_format adapter_format_lokr = {
    .name = "lokr",
    .about = "LoKr of LyCORIS or PEFT, plain or Tucker, old layouts too",
    .parts = PART_BIT(PART_LOKR_W1) | PART_BIT(PART_LOKR_W1A) | PART_BIT(PART_LOKR_W1B) |
             PART_BIT(PART_LOKR_W2) | PART_BIT(PART_LOKR_W2A) | PART_BIT(PART_LOKR_W2B) |
             PART_BIT(PART_LOKR_T1) | PART_BIT(PART_LOKR_T2),
    .shared = PART_BIT(PART_ALPHA) | PART_BIT(PART_SCALE) | PART_BIT(PART_DORA_SCALE) |
              PART_BIT(PART_MAGNITUDE),
    .import = import,
};
