/* find.h: adapters of the repository found by what their weights do.
 *
 *     struct found *list;
 *     find_by_weights(repo, model, "a fox in neon lines", progress, user, &list, &n, &skipped, &err);
 *     for (i < n) repo_at(repo, list[i].key, &adapter, &err);    // best first
 *     free(list);
 */
#ifndef WEFT_FIND_H
#define WEFT_FIND_H

#include "store/repo.h"
#include "unet/model.h"

struct found {
    int64_t key; /* of the adapter */
    double score;
    char word
        [32]; /* the word of the text that it answers to most by itself; empty: not looked for */
};

/* All adapters that fit the model, by their answers to the text (response.h), best first. What an adapter answers is
 * learnt from its file when it is first needed and kept in the repository. Those that are silent, or whose file is
 * gone, changed or unusable, are left out; their number goes into *skipped. progress: once an adapter, nonzero stops
 * with ERR_STOPPED. */
int find_by_weights(struct repo *r, const struct model *m, const char *text,
                    int (*progress)(void *user, int done, int total), void *user,
                    struct found **out, int *n, int *skipped, struct err *err);

/* Reciprocal rank fusion (Cormack, Clarke & Buettcher 2009) of several lists, best first in each: an adapter's score is
 * the sum of 1 / (60 + its place), places from 1. *out is new. */
int find_fuse(const struct found *const *list, const int *n, int lists, struct found **out,
              int *n_out, struct err *err);

#endif
