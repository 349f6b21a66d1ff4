/* passes.h: what a picture's strategy asks of the model, known beforehand: its actions, the texts they look at
 * and the deep features they keep.
 *
 *     struct passes p = {.m = model, .p = &picture, .cond = &conditions, .compose = c, .sampler = s};
 *     passes_plan(&p, &err);                          // asks the strategy all that it will be asked
 *     passes_place(&p, &keep);                        // memory that lives as long as the picture
 *     passes_measure(&p, &run, false, &peak, &flops, &err);
 *     passes_encode(&p, &run, &err);
 *     passes_next(&p, eval, &action);                 // batch.h runs it
 *
 * A row is one condition (the negative prompt, a part of the prompt) in one pass, with the adapters of that
 * pass.
 */
#ifndef WEFT_PASSES_H
#define WEFT_PASSES_H

#include "compose.h"
#include "conditions.h"
#include "generate.h"

#include "unet/sampler.h"

/* Adapters that change the text encoder, together: texts are encoded once for each such set. */
struct text_set {
    int n;
    int adapter[COMPOSE_MAX_ADAPTERS];
    float strength[COMPOSE_MAX_ADAPTERS];
};

struct passes {
    const struct model *m;
    const struct picture *p;
    struct conditions *cond; /* regions add their texts */
    struct compose *compose;
    const struct sampler *sampler;
    bool guided; /* row 0 is the negative prompt's */

    struct action *kind;   /* actions that differ in what they run, not in by how much */
    int *which;            /* [n_probe and the sampler's evaluations] the kind of each */
    int n_probe;           /* evaluations of a first phase, those that the sampler begins with */
    int n_kind, total;     /* total: rows over all evaluations */
    struct maps *maps;     /* NULL: nothing wants any */
    struct refine *refine; /* likewise */
    struct areas *areas;
    struct layout *layout;
    struct variants *variants;
    struct text_set *set;
    int n_set, n_slot, rows; /* rows: of an action at most */

    struct tensor *hidden; /* [n_set * texts], each [n_layer, tokens, width] */
    struct tensor *deep;   /* [n_slot * conditions] */
};

int passes_plan(struct passes *p, struct err *err);
/* All evaluations there are, and which of the sampler's one of them is. */
int passes_evals(const struct passes *p);
int passes_eval(const struct passes *p, int eval);
/* What the strategy wants at an evaluation. */
void passes_next(const struct passes *p, int eval, struct action *a);
/* Every time in the same order, also while `keep` is measuring. */
void passes_place(struct passes *p, struct run *keep);
/* The text encoder for every set of adapters, measured or prepared: *peak becomes what it takes at most, *flops
 * grows by what all texts cost. */
int passes_measure(const struct passes *p, struct run *r, const struct fold *fold, bool prepare,
                   size_t *peak, double *flops, struct err *err);
int passes_encode(struct passes *p, struct run *r, const struct fold *fold, struct err *err);
void passes_release(struct passes *p);

enum half passes_half(const struct passes *p, int row);
/* Whether a pass of an action runs that row. */
bool passes_run(const struct passes *p, const struct pass *q, int row);
/* What a row of an action looks at in a step. */
const struct tensor *passes_text(const struct passes *p, const struct action *a, int pass, int row,
                                 int step);
/* Which of the texts that is. */
int passes_words(const struct passes *p, const struct action *a, int pass, int row, int step);
/* What it looks at in one of its regions (areas.h). */
const struct tensor *passes_area_text(const struct passes *p, const struct action *a, int pass,
                                      int row, int step, int area);
/* What a row counts in uncond + cfg * sum_i weight_i (cond_i - uncond), as A1111 mixes the parts of a prompt,
 * each half being the mean that the action asks for. */
double passes_weight(const struct passes *p, const struct action *a, int pass, int row);

#endif
