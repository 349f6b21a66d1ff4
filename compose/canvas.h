/* canvas.h: one picture in the making: what its prompts say, where its sampler stands, its latent.
 *
 * The loop (generate.c) takes each of the pictures in hand through these:
 *
 *     canvas_open(&c, model, &picture, &err);            // checks and plans; nothing is computed
 *     canvas_place(&c, &keep);                           // device memory, also while keep is measuring
 *     canvas_start(&c, &pass, &keep, &err);              // its first latent
 *     while (canvas_turn(&c, i, &turn))                  // what the model is to be asked, into slot M
 *         canvas_advance(&c, i++, &keep, &err);          // one evaluation further
 *     canvas_end(&c, &pass, &keep, &image, &err);        // pixels
 *     canvas_release(&c);
 */
#ifndef WEFT_CANVAS_H
#define WEFT_CANVAS_H

#include "batch.h"

struct canvas {
    const struct model *m;
    struct picture p;
    struct conditions cond;
    struct sampler *sampler;
    struct compose *compose;
    struct compose_adapter *fact; /* [p.n_use], what the strategy is told */
    struct passes passes;
    struct action action; /* of the evaluation in hand */
    struct rng rng;
    struct tensor slot[SLOT_COUNT];
    float *host; /* the latent [h*w, c], and as much again for noise on its way */
    struct cost cost;
};

/* Release it also after an error. A canvas must stay where it is. */
int canvas_open(struct canvas *c, const struct model *m, const struct picture *p, struct err *err);
void canvas_release(struct canvas *c);
void canvas_place(struct canvas *c, struct run *keep);
/* The autoencoder's passes without computing, measured or made ready. */
int canvas_measure(struct canvas *c, struct run *pass, bool prepare, size_t *peak, double *flops,
                   struct err *err);
int canvas_start(struct canvas *c, struct run *pass, struct run *keep, struct err *err);
/* Before an evaluation: where a first phase is over, back to the first latent with the masks that it found. */
int canvas_rewind(struct canvas *c, int eval, struct run *pass, struct run *keep, struct err *err);
/* The turn of an evaluation, whose action is to be filled in; false: the picture has no more. */
bool canvas_turn(struct canvas *c, int eval, struct turn *t);
/* What the sampler does with slot M. */
int canvas_advance(struct canvas *c, int eval, struct run *keep, struct err *err);
/* The latent as it stands, into host. */
int canvas_look(struct canvas *c, struct run *keep, struct err *err);
int canvas_end(struct canvas *c, struct run *pass, struct run *keep, struct image *im,
               struct err *err);

#endif
