/* generate.h: from requests to pictures: the denoise loop.
 *
 *     struct generator *g;
 *     generator_open(&g, model, &err);
 *     struct picture p[2];
 *     picture_init(&p[0], model);
 *     p[0].prompt = &prompt;
 *     …
 *     generator_prepare(g, p, 2, &cost, &err);       // nothing is computed yet
 *     generator_run(g, image, progress, user, &err); // image[2]
 *     generator_close(g);
 *
 * Or pictures come and go, each at its own step:
 *
 *     generator_join(g, &p, &i, &err);               // planned: generator_cost(g, i)
 *     generator_begin(g, i, &err);
 *     while (generator_left(g, i))
 *         generator_step(g, &err);                   // of all in hand
 *     generator_take(g, i, &image, &err);
 *
 * Several pictures are made together, whatever their prompts, strategies, samplers and sizes: rows that fit
 * run in one batch. A generator keeps the model warm: memory, packed weights and folded weights stay from
 * picture to picture. Pixels depend only on the picture, not on threads, on what is made beside it or on what
 * was made before.
 */
#ifndef WEFT_GENERATE_H
#define WEFT_GENERATE_H

#include "unet/bind.h"
#include "unet/image.h"
#include "unet/model.h"
#include "unet/prompt.h"
#include "unet/rng.h"

/* An adapter at work. */
struct use {
    const struct adapter *adapter;
    float unet, te; /* strengths */
    /* Steps it acts in, counted from 1, both included; 0: from the first, to the last. Only without deltas
     * on the text encoder, or with te 0: texts are encoded once. */
    int from, to;
    double part, match; /* of the prompt (relevance.h); 0 in all: unknown */
    /* Its words in the prompt: groups of words with commas between, a line each, of which the first counts that is there
     * whole; kept as the adapter; NULL: none, or it is meant for the whole picture. For strategies that want them. */
    const char *words;
    /* What its region of the picture is of, for strategies that have regions; kept as long; NULL: its words. */
    const char *prompt;
    /* Where in the picture it may act, [where_h, where_w] of 0 to 1, kept as the adapter; NULL: everywhere. On texts it
     * acts in full. */
    const float *where;
    int where_h, where_w;
    double high; /* share of high frequencies in what it draws (profile.h); NAN: not measured */
};

struct passes;
struct picture {
    const struct prompt *prompt, *negative; /* kept until generator_run returns; neither is NULL */
    struct words *words;                    /* textual inversions for both, kept as long, or NULL */
    int w, h;                               /* pixels; multiples of the model's factor */
    int steps;                              /* at least 1 */
    double cfg;                             /* guidance; 1: the negative prompt is not computed */
    const char *sampler;                    /* NULL: the model's own */
    enum sigmas sigmas;
    double eta;
    uint64_t seed;
    enum rng_kind rng;
    int clip_skip;            /* 1: none, 2: leave out the last block, as A1111 counts */
    const struct image *init; /* start from this picture, w x h, or NULL */
    double denoise;           /* with init: above 0, up to 1: how much of it is made anew */
    int tile;                 /* decode in squares of so many latent places; 0: whole */
    const struct use *use;    /* the adapters, kept until generator_run returns */
    int n_use;
    const char *
        compose; /* how they share the picture, as compose.h reads it; NULL: "merge"; kept as long */
    /* Add the adapters to private weights once instead of running them beside the model; only where all act
     * alike in every pass. Pictures made together share them. */
    bool fold;
    const struct gates
        *gates;              /* the model's, for strategies that need them, kept as long; or NULL */
    struct gatemap *gatemap; /* to be filled in (gatemap.h), or NULL */
    struct influence *influence; /* to be filled in (influence.h), or NULL */
};
/* The model's defaults: its own size and sampler, 30 steps, cfg 7, seed 0. */
void picture_init(struct picture *p, const struct model *m);

struct cost {
    int passes;     /* runs of the UNet, one a row of the batch */
    double flops;   /* all of them, with text and autoencoder */
    size_t bytes;   /* device memory beyond the weights, for all pictures made together */
    size_t weights; /* and the weights, packed */
};

/* Called before each evaluation and after the last; a value other than 0 stops the picture with
 * ERR_STOPPED. */
typedef int generate_progress(void *user, int done, int total);

struct generator;
/* model is kept until generator_close. */
int generator_open(struct generator **out, const struct model *m, struct err *err);
void generator_close(struct generator *g);
/* Lets go of pictures and adapters; memory stays. */
void generator_forget(struct generator *g);

/* Whether a picture can be made: what generator_prepare finds before it counts anything. */
int generator_check(const struct model *m, const struct picture *p, struct err *err);
/* Checks n pictures, plans them, and says what they will cost together. Takes no device memory yet. The
 * pictures themselves are copied. */
int generator_prepare(struct generator *g, const struct picture *p, int n, struct cost *cost,
                      struct err *err);
/* Of one of the prepared pictures; borrowed until the next generator_prepare. */
const struct cost *generator_cost(const struct generator *g, int i);
/* Makes the prepared pictures: memory is taken and weights are packed before the first step. im[n] is filled
 * in; release them. */
int generator_run(struct generator *g, struct image *im, generate_progress *progress, void *user,
                  struct err *err);
/* One picture more: checked and planned, no device memory is taken yet. *slot says which it is among those in hand, for
 * all functions that take one, until it is taken or leaves. Not between generator_prepare and generator_run. After an
 * error it is not in hand. */
int generator_join(struct generator *g, const struct picture *p, int *slot, struct err *err);
/* Its memory, packed weights, texts and first latent. After an error it still has to leave. */
int generator_begin(struct generator *g, int slot, struct err *err);
/* One evaluation of every picture in hand that has any left; all of them have begun. An error is everybody's. */
int generator_step(struct generator *g, struct err *err);
/* Evaluations it has left. */
int generator_left(const struct generator *g, int slot);
/* Its pixels, when it has none left; then it leaves, also after an error, which is of this picture alone. Release im. */
int generator_take(struct generator *g, int slot, struct image *im, struct err *err);
void generator_leave(struct generator *g, int slot);
/* An adapter that no picture in hand has is about to be freed. */
void generator_drop(struct generator *g, const struct adapter *a);

/* Where the adapter of picture i acted in the last step, [*h, *w], borrowed; NULL: everywhere. Where passes have parts
 * (compose.h) one adapter more is the base. */
const float *generator_mask(const struct generator *g, int i, int adapter, int *h, int *w);
/* How much each place attended to the adapter's words, [*h, *w], the most 1; borrowed; NULL: nobody looked. */
const float *generator_words(const struct generator *g, int i, int adapter, int *h, int *w);
/* How picture i was planned (passes.h); borrowed likewise. */
const struct passes *generator_passes(const struct generator *g, int i);
/* The latent of picture i as it came out, [h*w, channels], before decoding; borrowed. Within progress, after
 * generator_look: as it stands. */
const float *generator_latent(const struct generator *g, int i, size_t *n);
int generator_look(struct generator *g, int i, struct err *err);

#endif
