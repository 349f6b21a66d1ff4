/* format.h: what the families of adapters share: one const struct adapter_format each, at the foot of its
 * file, listed in adapter.c. To add a family: its endings into module.c's table, a file like
 * format_shira.c, a row in adapter.c.
 */
#ifndef WEFT_FORMAT_H
#define WEFT_FORMAT_H

#include "module.h"
#include "peft.h"

#include "unet/delta.h"

#define PART_BIT(p) ((uint64_t)1 << (p))

struct adapter_format {
    const char *name; /* "lora" */
    const char *about;
    uint64_t parts;  /* PART_BITs that are this family's */
    uint64_t shared; /* and those it reads where they are, which other families have too */
    /* Adds what one module of the family means to list. err need not name the file or the site. */
    int (*import)(const struct module *m, const struct peft *peft, struct delta_list *list,
                  struct err *err);
};

/* Files whose keys are of another kind altogether: seen under names that module.c knows. */
struct adapter_layout {
    const char *name; /* the style it is called */
    /* How many of the file's arrays are spelt so. */
    int (*claims)(const struct tensor_file *f);
    int (*view)(struct tensor_file **out, const struct tensor_file *f, const char *path,
                struct err *err);
};

/* alpha / rank as the file says it (".scale" goes before ".alpha"), else PEFT's config, else 1. rank 0:
 * the file has no factor of a rank, and only PEFT knows one. */
int module_scale(const struct module *m, const struct peft *peft, int rank, float *scale,
                 struct err *err);
/* The one number an array holds. */
int module_number(const struct array *a, const char *what, float *out, struct err *err);
/* Puts the module's magnitude, if any, on d. */
void module_magnitude(const struct module *m, struct delta *d);
/* One factor from its parts: `whole` (PART_COUNT: the family has none), or a and b, perhaps with a core t.
 * what: the family, for messages. */
int module_factor(struct factor *f, const struct module *m, enum part whole, enum part a,
                  enum part b, enum part t, const char *what, struct err *err);
/* Adds a delta of two factors, with the module's magnitude if it has one. */
int module_pair(const struct module *m, struct delta_list *list, enum delta_kind kind,
                const struct factor f[2], float scale, struct err *err);
/* dim[0] of an array that is there, else 0. */
int array_rank(const struct array *a);

#endif
