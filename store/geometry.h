/* geometry.h: adapters compared by their weights alone.
 *
 * Every adapter has a sketch (unet/matrices.h), made when it is first needed and kept in the repository;
 * from two sketches the cosine of two adapters is known to about a tenth. Those that may be near are then
 * compared exactly, by the factors of both files.
 *
 *     struct near *list;
 *     geometry_near(repo, &adapter, 0.3, progress, user, &list, &n, &err);
 *     near_free(list, n);
 */
#ifndef WEFT_GEOMETRY_H
#define WEFT_GEOMETRY_H

#include "repo.h"

struct near {
    struct repo_adapter a, b; /* b only from geometry_pairs */
    double cosine;            /* of both dW over all sites, exact */
    double ratio;             /* |b| / |a| */
};
void near_free(struct near *list, int n);

/* Adapters whose cosine with `a` is at least `least` in absolute value, nearest first; not `a` itself.
 * Those whose file is missing or cannot be compared are left out; their number goes into *skipped (NULL:
 * not wanted). progress: once an adapter, nonzero stops with ERR_STOPPED. */
int geometry_near(struct repo *r, const struct repo_adapter *a, double least,
                  int (*progress)(void *user, int done, int total), void *user, struct near **out,
                  int *n, int *skipped, struct err *err);
/* All pairs in the repository that near each other. */
int geometry_pairs(struct repo *r, double least, int (*progress)(void *user, int done, int total),
                   void *user, struct near **out, int *n, int *skipped, struct err *err);

/* The sketches of these adapters as directions: unit [n, SKETCH_SIZE], rows of length 1, whose inner products
 * are about the adapters' cosines. A row of zeros: its file is missing or it cannot be compared. */
int geometry_sketches(struct repo *r, const int64_t *key, int n,
                      int (*progress)(void *user, int done, int total), void *user, float *unit,
                      struct err *err);

#endif
