/* learn.h: an encoder of one's own: from what adapters answer to, to the words their owner has for them.
 *
 *     learn_run(repo, model, responder, encoder, &learnt, &lesson, &err);   // after finder_read
 *     if (lesson.better)
 *         learnt_keep(learnt, repo, model, &err);
 *     …
 *     learnt_open(&learnt, repo, model, responder, &err);          // 1: there is none
 *     learnt_read(learnt, &response, vector);                      // [width], of length 1
 *     learnt_ask(learnt, &query, vector);                          // likeness: their inner product
 *     learnt_close(learnt);
 *
 * On any base, in minutes. Examples are adapters with triggers, tags, a class word or trainers' tag frequencies. In the
 * base's own text space: a text is the mean of its tokens' states times C^-1/4 (response.h), to length 1, less the
 * examples' mean. Adapters are alike as <G, G'> / |G| |G'| + 1/10, G = A^T A of what they answer to (response.h, in
 * states times C^1/4); from that kernel ridge regression (ridge.h) says the text. It is measured by what it says of each
 * example that it did not see, and used only where answers and it together find more of them than answers alone, than
 * an encoder that was made for the model (encoder.h), and than words in names.
 */
#ifndef WEFT_LEARN_H
#define WEFT_LEARN_H

#include "encoder.h"

#include "store/repo.h"

enum { LEARN_LEAST = 8, LEARN_MOST = 2000 }; /* examples */

/* Of adapters asked for by their own words among all examples; examples of the same words are as right. */
struct recall {
    double first, five; /* shares */
    double mean;        /* of 1 / place */
};
struct lesson {
    int n; /* examples */
    struct recall together, learnt, answers, encoder, names, chance;
    bool has_encoder, better;
};

struct learnt;
/* The responder is kept until learnt_close. e: the encoder made for the model, or NULL. ERR_ARG for fewer than
 * LEARN_LEAST examples. */
int learn_run(struct repo *r, const struct model *m, const struct responder *re, struct encoder *e,
              struct learnt **out, struct lesson *l, struct err *err);
int learnt_keep(const struct learnt *l, struct repo *r, const struct model *m, struct err *err);
int learnt_open(struct learnt **out, struct repo *r, const struct model *m,
                const struct responder *re, struct err *err);
void learnt_close(struct learnt *l);
/* What its vectors are kept under. */
const char *learnt_name(const struct learnt *l);
/* out [width]; 1: a silent adapter, out is 0. */
int learnt_read(const struct learnt *l, const struct response *a, float *out, struct err *err);
int learnt_ask(const struct learnt *l, const struct query *q, float *out, struct err *err);
/* to [n]: answers and likenesses of n adapters to one text, each in deviations from its mean over them, added up; what
 * is not finite is taken as an answer of -3 and a likeness of 0. */
void learnt_join(double *to, const double *answer, const double *likeness, int n);

#endif
