/* find.h: adapters of the repository found by what their weights do.
 *
 *     struct finder *f;
 *     struct found *list;
 *     finder_open(&f, repo, model, "assets/retriever", "assets/scorer", &err);
 *     finder_read(f, progress, user, &unread, &err);          // those that nothing is known of yet
 *     finder_ask(f, "a fox in neon lines", &list, &n, &err);
 *     for (i < n) repo_at(repo, list[i].key, &adapter, &err); // best first
 *     free(list);
 *     finder_close(f);
 *
 * Two things tell what an adapter does: its answer to the text (response.h), on any model, and the likeness of its
 * vector to the text's, where its owner had an encoder learnt (learn.h) or one was made for the model (encoder.h). Where
 * there is one, the FINDER_MOST nearest vectors (index.h) are looked at, else all adapters that fit the model. What is learnt from a file is kept in
 * the repository, by the hash of its tensors.
 */
#ifndef WEFT_FIND_H
#define WEFT_FIND_H

#include "store/repo.h"
#include "unet/model.h"

enum { FINDER_MOST = 200 };

struct found {
    int64_t key; /* of the adapter */
    /* With an encoder: how likely it is meant, 0 to 1, all of them for one thing together at most 1 (encoder.h). With a learnt one: answer and likeness in
     * deviations (learn.h). Else its answer. */
    double score;
    double likeness, answer; /* of which that is made; NAN, -INFINITY: there is none */
    char word
        [32]; /* the word of the text that it answers to most by itself; empty: not looked for */
};

struct finder;
struct lesson;
/* The repository and the model are kept until finder_close. retriever, scorer: folders of the encoder; NULL, or one
 * made for another model: by answers alone. */
int finder_open(struct finder **out, struct repo *r, const struct model *m, const char *retriever,
                const char *scorer, struct err *err);
void finder_close(struct finder *f);
/* With an encoder, whose scores are likelihoods, from which on an adapter is worth taking; NAN where there is none. */
double finder_least(const struct finder *f);

/* Reads the files of adapters that fit the model and were never read. Those that are gone, changed or damaged are left
 * out; their number goes into *unread. progress: once an adapter, nonzero stops with ERR_STOPPED. Before the first
 * finder_ask, and after adapters came in. */
int finder_read(struct finder *f, int (*progress)(void *user, int done, int total), void *user,
                int *unread, struct err *err);
/* Reads them, and learns from the words of the repository's own adapters (learn.h); keeps that where it is better than
 * all that is known without, and then it is used from the next finder_open on. */
int finder_learn(struct finder *f, int (*progress)(void *user, int done, int total), void *user,
                 struct lesson *l, struct err *err);
/* Best first; *out is new. A text of several things (concepts.h) is asked for whole and thing by thing, and the best
 * score of each adapter counts. ERR_ARG for a text without a word. */
int finder_ask(struct finder *f, const char *text, struct found **out, int *n, struct err *err);
/* Where the adapter changes most what the model makes of the text: the first of its sites by share of the answer, as
 * "up_blocks.0.attentions.1 to_v (31 %), mid_block.attentions.0 to_k (12 %)", from its file; empty: not known. */
int finder_where(const struct finder *f, int64_t key, const char *text, char *to, size_t size,
                 struct err *err);
/* Other adapters that do nearly the same, the nearest FINDER_MOST, best first: score is finder_alike. *out is new. */
int finder_near(struct finder *f, int64_t key, struct found **out, int *n, struct err *err);
/* The cosine of two adapters' vectors, else of what they answer to (G of response.h); NAN: not known. */
double finder_alike(struct finder *f, int64_t a, int64_t b);

/* Reciprocal rank fusion (Cormack, Clarke & Buettcher 2009) of several lists, best first in each: an adapter's score is
 * the sum of 1 / (60 + its place), places from 1. *out is new. */
int find_fuse(const struct found *const *list, const int *n, int lists, struct found **out,
              int *n_out, struct err *err);

#endif
