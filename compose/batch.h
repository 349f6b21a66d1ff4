/* batch.h: rows of several pictures, run together.
 *
 *     struct batch b = {.m = model, .run = &pass};
 *     batch_room(&b, rows, n_layer, &err);
 *     struct turn t = {.of = &passes, .a = &action, .x = &latent, .mix = &mix, .t = 801, .in_scale = 1};
 *     batch_measure(&b, &t, 1, false, &peak, &flops, &err);
 *     batch_predict(&b, &t, 1, &err);
 *
 * Rows that run the same layers on the same shapes stand in one batch, up to BATCH_ROWS of them, whatever
 * picture, strategy or pass they belong to, each with its own adapters. What comes out of a row does not depend
 * on the others, and a picture's rows are mixed in their own order, so its pixels do not either.
 */
#ifndef WEFT_BATCH_H
#define WEFT_BATCH_H

#include "passes.h"

enum { BATCH_ROWS = 8 };

/* One picture's evaluation of the model. */
struct turn {
    const struct passes *of;
    const struct action *a;
    int step;
    double t, in_scale;
    const struct tensor *x; /* [1, h*w, c] */
    struct tensor *mix;     /* becomes the guided mean of what the passes say about x */
    bool begun;             /* mix holds some of it */
};

struct place {
    struct turn *turn;
    int pass, row;
};

/* What a set of adapters has in common. */
struct common {
    int n, rank;
    const struct adapter *of[COMPOSE_MAX_ADAPTERS];
    float strength[COMPOSE_MAX_ADAPTERS];
    struct adapter *a;
};

struct batch {
    const struct model *m;
    const struct fold *fold; /* NULL: adapters act beside the weights */
    struct run *run;

    struct place *todo; /* rows that wait */
    int n_todo;
    struct tensor *layer; /* the batch's texts */
    struct place at[BATCH_ROWS];
    struct tensor deep[BATCH_ROWS];
    double t[BATCH_ROWS];
    float wave[BATCH_ROWS][GATE_WAVES];
    struct branch branch[BATCH_ROWS * (COMPOSE_MAX_ADAPTERS + 1)];
    struct joint **joint; /* of each set of adapters met so far */
    int n_joint;
    struct common *common; /* of each set and its strengths likewise */
    int n_common;
    struct watch watch;           /* of pictures with an influence to fill in */
    struct gate_watch gate_watch; /* of pictures with a map of their gates */
    struct map_watch map_watch;   /* of passes that follow what places attend to */
};

/* Some rows' passes, up to BATCH_ROWS, for what they attend to alone: as far as the watch wants it, noted on the tape, if
 * there is one, from x on, the rows' input as the model is given it. All stays in the run. */
struct look {
    struct map_watch watch;
    struct tape *tape;
    struct tensor x;
};
/* turn.x -= rate times the sum of the rows of dx, gradients with respect to what the model is given: so much the model's
 * input moves, whatever the sampler's scale. */
void turn_move(struct run *r, struct turn *t, const struct tensor *dx, double rate);
void batch_look(struct batch *b, const struct place *at, int n, struct look *l);

/* rows: of all turns at once, at most; n_layer: of their texts. May be asked again. */
int batch_room(struct batch *b, int rows, int n_layer, struct err *err);
/* Forgets what was made of sets with an adapter that is about to go. */
void batch_drop(struct batch *b, const struct adapter *a);
void batch_release(struct batch *b);
/* The same passes without computing: measured, or with prepare made ready. *peak becomes what they take at
 * most, *flops grows by what they cost. */
int batch_measure(struct batch *b, struct turn *turn, int n, bool prepare, size_t *peak,
                  double *flops, struct err *err);
int batch_predict(struct batch *b, struct turn *turn, int n, struct err *err);

#endif
