/* maps.h: where a picture attends to each adapter's words, and the masks that follow from it.
 *
 *     struct maps *m;
 *     maps_open(&m, model, &picture, &conditions, &err);
 *     branch.mask = maps_mask(m, adapter);             // all 1 until the first maps_turn
 *     maps_add(m, &run, cross, &q, &k, &how, row, text, &err);   // at each cross attention of a pass
 *     maps_turn(m, &attend);                           // after the pass: its maps become masks
 *     maps_close(m);
 *
 * At a cross attention with queries q_p of the places p and keys k_j of the text's tokens j, of head h,
 *
 *     a_i(p) = mean over h of  sum over adapter i's tokens j of softmax_j(q_p k_j / sqrt d)
 *     b_i    = a_i / mean over p of a_i                    so that quiet words count as loud ones
 *
 * over the cross attentions on the way up with at most MAPS_PLACES places (on the way down and in the middle places are
 * hardly told apart), each counting by the square of how much its maps exclude each other: the mean over pairs of -r,
 * their correlation, where that is below 0. (What is not about places has maps that are alike or have nothing to do with
 * each other.) Their mean B_i is then averaged over the steps, M <- keep M + (1 - keep) B, and of adapter i acts at p
 *
 *     leak + (1 - leak) M_i(p)^sharp / sum over j of M_j(p)^sharp
 *
 * (in a first phase that looks for whole places, FreeFuse's: 1 where ln M_i + bias_i is the largest by a vote of the 3 x 3
 * places around, and leak elsewhere, the biases evening out who has how much; without their likeness of features and
 * gravity), or, for a strategy with gates, what these see of it (w in unet/gates.h) is
 *
 *     w_i(p) = ln M_i(p) - mean of ln M_j(p) over the others, within MAPS_MOST either way
 *
 * and for one that routes besides, by level, the same for the `top` adapters whose w is largest at the place, and
 * GATE_SHUT for all others.
 *
 * An adapter none of whose words is in the texts, and one that is meant for the whole picture, has no mask and no part
 * in the others'; nor has one that was given a place (use.where), whose mask stays that, in whatever pass it acts. Sums of
 * softmaxes over tokens come from op_attention with values that say whose each token is.
 */
#ifndef WEFT_MAPS_H
#define WEFT_MAPS_H

#include "compose.h"
#include "conditions.h"
#include "generate.h"

#include "unet/mask.h"

enum { MAPS_PLACES = 1024, MAPS_MOST = 4 };

struct maps;
/* p and cond are kept until maps_close. how: the strategy; if it has gates the masks are
 * w, not how much acts. */
int maps_open(struct maps **out, const struct model *m, const struct picture *p,
              const struct conditions *cond, const struct compose_strategy *how, struct err *err);
void maps_close(struct maps *m);
/* Where the picture's i-th adapter acts in a pass that attends to words, or not; NULL: everywhere. */
struct mask *maps_mask(const struct maps *m, int i, bool attends);
/* Its w, and that where it is routed at a level; NULL: 0, not routed. */
struct mask *maps_words(const struct maps *m, int i);
struct mask *maps_routed(const struct maps *m, int i, enum route_level level);
/* By which words adapter i is to be found in a text that is no row's, as use.words has them. */
int maps_say(struct maps *m, const struct conditions *cond, int text, int i, const char *groups,
             struct err *err);
/* Which of a text's tokens are adapter i's words: 1 each, [*n], borrowed. */
const unsigned char *maps_tokens(const struct maps *m, int text, int i, int *n);
/* Forgets all steps: masks are 1 again, or what was given. */
void maps_restart(struct maps *m);
/* The row-th of a cross attention's rows, which sees that text of the conditions. Runs in r, also while that measures. */
int maps_add(struct maps *m, struct run *r, int cross, const struct tensor *q,
             const struct tensor *k, const struct attention *how, int row, int text,
             struct err *err);
/* Takes what came since the last one; nothing came: all stays. */
void maps_turn(struct maps *m, const struct attend *how);
/* The mask of adapter i as it stands, [*h, *w], borrowed; NULL: it acts everywhere, so far, or gates say where. */
const float *maps_values(const struct maps *m, int i, int *h, int *w);

/* M_i over its most, likewise; NULL: its words were not looked for, or nowhere. */
const float *maps_attended(struct maps *m, int i, int *h, int *w);

#endif
