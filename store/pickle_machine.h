/* pickle_machine.h: the parts of pickle.c that pickle_objects.c needs too. Nobody else includes it. */
#ifndef WEFT_PICKLE_MACHINE_H
#define WEFT_PICKLE_MACHINE_H

#include "pickle.h"

#include <stdbool.h>

/* One call of pickle_read. */
struct machine {
    struct pickle *p;
    const uint8_t *begin, *at, *end;
    struct pickle_value **stack, **memo;
    size_t n, cap, n_memo, cap_memo;
    struct err *err;
};

/* ERR_FORMAT, with the place. */
int machine_bad(struct machine *m, const char *what);
/* A new value; NULL sets the error. */
struct pickle_value *machine_make(struct machine *m, enum pickle_kind kind);
/* v NULL: the error that making it set. */
int machine_push(struct machine *m, struct pickle_value *v);
int machine_push_kind(struct machine *m, enum pickle_kind kind, int64_t i);
/* The topmost value, which is no mark. NULL sets the error. */
struct pickle_value *machine_pop(struct machine *m);
/* v becomes the last of to's items. */
int machine_append(struct machine *m, struct pickle_value *to, struct pickle_value *v);
/* The rest of a line, without its end. */
int machine_line(struct machine *m, const char **s, size_t *n);

/* What the opcodes that name things do: GLOBAL, INST (call), STACK_GLOBAL, REDUCE and
 * NEWOBJ (fresh), BINPERSID, BUILD. */
int objects_global(struct machine *m, bool call);
int objects_stack_global(struct machine *m);
int objects_reduce(struct machine *m, bool fresh);
int objects_persistent(struct machine *m);
int objects_build(struct machine *m);

#endif
