/* SHiRA: a few values of W change, each at its row and column. */
#include "format.h"

static int import(const struct module *m, const struct peft *peft, struct delta_list *list,
                  struct err *err)
{
    (void)peft;
    if (!m->part[PART_SHIRA_WEIGHT] || !m->part[PART_SHIRA_INDICES])
        return err_set(err, ERR_FORMAT, "has not both values and places of a SHiRA");
    struct delta *d = delta_list_add(list, m->site, err);
    if (!d)
        return ERR_NOMEM;
    d->kind = DELTA_SPARSE;
    d->v = *m->part[PART_SHIRA_WEIGHT];
    d->row = *m->part[PART_SHIRA_INDICES];
    return 0;
}

extern const struct adapter_format adapter_format_shira;

const struct adapter_format adapter_format_shira = {
    .name = "shira",
    .about = "SHiRA of PEFT",
    .parts = PART_BIT(PART_SHIRA_WEIGHT) | PART_BIT(PART_SHIRA_INDICES),
    .import = import,
};
