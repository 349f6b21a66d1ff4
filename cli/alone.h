/* alone.h: an adapter of the repository by itself, on what it is called. */
#ifndef WEFT_ALONE_H
#define WEFT_ALONE_H

#include "making.h"

/* Lays a request for this adapter alone over m->given, loads all it needs, fills in p and opens m->g. prompt is
 * what stands behind its trigger words; NULL: these alone, else its class word or name. ERR_MISMATCH for one that
 * m's model cannot use. */
int alone_open(struct making *m, const struct repo_adapter *a, const char *prompt,
               struct picture *p, struct err *err);

#endif
