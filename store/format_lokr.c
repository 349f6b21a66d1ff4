/* LoKr: scale * kron(w1, w2), either whole or two factors, the second also with a core. */
#include "format.h"

#include <string.h>

static int factor(struct factor *f, const struct module *m, enum part whole, enum part a,
                  enum part b, enum part t, struct err *err)
{
    bool pair = m->part[a] && m->part[b];
    if (!m->part[whole] == !pair)
        return err_set(err, ERR_FORMAT, "has %s of a LoKr's factors",
                       pair ? "two forms of one" : "not all");
    if (m->part[whole]) {
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
    memset(f, 0, sizeof f);
    int rc = factor(&f[0], m, PART_LOKR_W1, PART_LOKR_W1A, PART_LOKR_W1B, PART_LOKR_T1, err);
    rc = rc < 0 ? rc
                : factor(&f[1], m, PART_LOKR_W2, PART_LOKR_W2A, PART_LOKR_W2B, PART_LOKR_T2, err);
    rc = rc < 0 ? rc : scale_of(m, peft, &scale, err);
    struct delta *d = rc < 0 ? NULL : delta_list_add(list, m->site, err);
    if (!d)
        return rc < 0 ? rc : ERR_NOMEM;
    d->kind = DELTA_KRON;
    d->scale = scale;
    memcpy(d->f, f, sizeof f);
    module_magnitude(m, d);
    return 0;
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
