/* passes.h: what an action says, done: its passes gathered into batches of the UNet, and their mix.
 *
 *     struct passes p = {.m = model, .use = uses, …};
 *     passes_plan(&p, compose, sampler, &err);        // asks the strategy all that it will be asked
 *     passes_place(&p, &keep);                        // memory that lives as long as the picture
 *     passes_go_through(&p, false, &flops, &err);     // measures; with true also packs the weights
 *     passes_encode(&p, clip_skip, &err);
 *     passes_predict(&p, &action, &at, &x, &mix, &err);
 *
 * A row of a batch is one condition (the negative prompt, a part of the prompt) in one pass, with the
 * adapters of that pass. Rows of all passes stand in one batch, up to PASSES_ROWS of them, so N passes cost
 * what N rows cost; what comes out of a row does not depend on the others.
 */
#ifndef WEFT_PASSES_H
#define WEFT_PASSES_H

#include "compose.h"
#include "conditions.h"
#include "generate.h"

#include "unet/sampler.h"

enum { PASSES_ROWS = 8 }; /* in a batch; more where one pass alone has more */

/* Adapters that change the text encoder, together: texts are encoded once for each such set. */
struct text_set {
    int n;
    int adapter[COMPOSE_MAX_ADAPTERS];
    float strength[COMPOSE_MAX_ADAPTERS];
};

/* A condition in a pass: what a row of a batch is. */
struct place {
    int pass, row;
};

struct passes {
    const struct model *m;
    const struct use *use;
    const struct fold *fold_unet, *fold_text; /* NULL: adapters act beside the weights */
    struct conditions *cond;
    const struct picture *p;
    bool guided;
    struct run *pass, *keep;

    struct action *kind; /* actions that differ in what they run, not in by how much */
    int *times;          /* [n_kind] evaluations of each */
    int n_kind, total;   /* total: rows over all evaluations */
    struct text_set *set;
    int n_set, n_slot, rows; /* rows: of a batch at most */

    struct tensor x, text;     /* the batch; text [n_layer * rows, tokens, width] */
    struct tensor *hidden;     /* [n_set * n_text], each [n_layer, tokens, width] */
    struct tensor *layer;      /* [n_layer] of text, for unet_text */
    struct tensor *deep;       /* [n_slot * n_row] */
    struct tensor *row;        /* [rows] of the batch, for unet_deep */
    const struct tensor **now; /* [rows] the text that each row of `text` holds */
    double *t;                 /* [rows] */
    struct place *place;       /* [rows] */
    struct branch *branch;
};

/* One evaluation: where the sampler stands. */
struct passes_at {
    int step;
    double t, in_scale;
};

int passes_plan(struct passes *p, struct compose *c, const struct sampler *s, struct err *err);
/* What the strategy wants at an evaluation. */
void passes_next(const struct passes *p, struct compose *c, const struct sampler *s, int eval,
                 struct action *a);
/* Every time in the same order, also while `keep` is measuring. */
void passes_place(struct passes *p);
/* Every kind of pass, measured or prepared; p->pass->plan.peak is the largest. *flops: of the picture's text
 * and UNet passes. */
int passes_go_through(struct passes *p, bool prepare, size_t *peak, double *flops, struct err *err);
int passes_encode(struct passes *p, struct err *err);
/* mix = the guided mean of what the action's passes say about x. */
int passes_predict(struct passes *p, const struct action *a, const struct passes_at *at,
                   const struct tensor *x, struct tensor *mix, struct err *err);
void passes_release(struct passes *p);

#endif
