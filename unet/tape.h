/* tape.h: gradients through a pass: what its ops did, in their order, and the way back.
 *
 *     struct tape *t;
 *     tape_new(&t, &err);
 *     … while the run measures, and again when it runs:
 *     tape_begin(t, &run);                      // from here on ops are recorded
 *     tape_want(t, &x);                         // L's gradient with respect to x is what is wanted
 *     y = unet_forward(u, &run, &x, …);
 *     tape_seed(t, &y, dy);                     // dL/dy, known to the caller; of as many tensors as L is made of
 *     struct tensor dx = tape_back(t, &x);      // dL/dx, in the run's arena
 *     tape_free(t);
 *
 * With respect to activations only: weights are fixed, so a layer keeps nothing. What is kept, until the way back has
 * passed it, is what norms, activations and attentions were given (queries, keys and values, never weights of attention);
 * it stays in the arena through drops and pops, and is copied only where an op is about to overwrite it. Whatever does not
 * depend on a wanted tensor leaves no trace. A run that only measures finds out how much memory all this takes.
 *
 * Branches of adapters are followed (products, dense deltas, gains, norms, masks; through gates products alone, whose w counts
 * as given); routes are not: ERR_UNSUPPORTED. Branches that were in force are so again on the way back, and must still be there, as
 * folded weights must.
 */
#ifndef WEFT_TAPE_H
#define WEFT_TAPE_H

#include "ops.h"

struct tape;
int tape_new(struct tape **out, struct err *err);
void tape_free(struct tape *t);
/* Forgets all, and records what the run does from now on, until tape_back or run_reset. */
void tape_begin(struct tape *t, struct run *r);
void tape_want(struct tape *t, const struct tensor *x);
/* dy [count of y], of the host; NULL while measuring. Before tape_back; y may be gone. A tensor that does not depend on
 * what is wanted is no error. */
void tape_seed(struct tape *t, const struct tensor *y, const float *dy);
/* Goes back to x, which was wanted; zero where nothing comes back. Ends the recording. Errors are the run's. */
struct tensor tape_back(struct tape *t, const struct tensor *x);

/* ---- for the ops ----------------------------------------------------------------------------- */

enum step_kind {
    STEP_LAYER,
    STEP_GROUP_NORM,
    STEP_LAYER_NORM,
    STEP_ATTENTION,
    STEP_ACTIVATE,
    STEP_GEGLU,
    STEP_SUM,   /* y = sum of coef[i] x[i] */
    STEP_SCALE, /* y *= share */
    STEP_CONCAT,
    STEP_UPSAMPLE,
};

enum { STEP_MOST = 4 };

/* One op: y from x[0 .. n), or with `more` y larger by that. keeps: the values of x are needed on the way back. */
struct step {
    enum step_kind kind;
    struct tensor y, x[STEP_MOST];
    int n;
    bool more, keeps;
    const void *what; /* the layer or norm */
    struct attention how;
    enum act act;
    double coef[STEP_MOST];
    struct share share;
    /* Filled in by tape_note: of which x gradients are wanted, a bit each; whether y is one of x; the blocks that x had
     * (where a copy was made of what was overwritten, x is that). */
    unsigned needs, of[STEP_MOST];
    bool same;
    const struct branch *branch; /* that were in force */
    int n_branch;
};

/* Before the op is done: notes it, if anything wanted goes into it, and saves what it will overwrite. */
void tape_note(struct run *r, const struct step *s);
/* An op that there is no way back through: an error where something wanted goes into it. */
void tape_refuse(struct run *r, const struct tensor *x, const char *what);
/* dx becomes, or with `add` larger by, what of dy comes back through a layer with all that adapters do beside it, and
 * through a norm as they change it (ops_back.c, ops.c). */
void layer_back(struct run *r, struct tensor *dx, const struct layer *l, const struct tensor *x,
                const struct tensor *dy, bool add);
void norm_back(struct run *r, struct tensor *dx, const struct norm *g, const struct tensor *x,
               const struct tensor *more, enum act act, const struct tensor *dy, bool add);

#endif
