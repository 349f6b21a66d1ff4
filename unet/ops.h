/* ops.h: what networks are made of, and the memory they run in.
 *
 * A `struct run` is one forward pass in the making: the device, one arena of device memory, the
 * adapters in force, and the first error. An op places nothing itself: the caller makes the output
 * with run_tensor() and ops fill it in. After an error every further op does nothing, so a forward
 * pass reads straight down and asks run_check() once at the end.
 *
 *     struct run r;
 *     run_init(&r, dev);
 *     run_measure(&r);                  // the same calls, but only sizes and FLOPs are counted
 *     y = unet_forward(u, &r, &x, t, &text, NULL);
 *     run_commit(&r, &err);             // takes the arena in one piece
 *     y = unet_forward(u, &r, &x, t, &text, NULL);
 *     run_check(&r, &err);
 *     run_reset(&r);                    // the arena is empty again, and stays
 *     run_release(&r);
 *
 * Temporaries: m = run_mark(&r); … ; run_pop(&r, m) gives back everything made since the mark,
 * run_drop(&r, &t) one tensor.
 */
#ifndef WEFT_OPS_H
#define WEFT_OPS_H

#include "arena.h"
#include "backend.h"

struct adapter;
struct gates;
struct joint;
struct mask;
struct fold;
struct branch;
struct regions;
struct run;
struct tape;

/* An adapter acting as a side branch on the rows [row0, row1) of a batch. */
struct branch {
    const struct adapter *adapter;
    int row0, row1;
    float strength; /* multiplies every delta of the adapter */
    /* Or NULL; else as many branches as it has parts stand here, on the same rows and in its order. */
    const struct joint *joint;
    int part;           /* which of them this is */
    struct route route; /* of the joint's pieces */
    bool gated;         /* goes through the run's gates */
    /* Where in the picture it acts; NULL: everywhere. Norms it changes everywhere. */
    struct mask *mask;
    struct mask *words; /* w of the gates (gates.h); NULL: 0 */
    /* The same where it is routed, by level and at sites of these kinds (route.h); NULL: as words. */
    struct mask *routed[ROUTE_LEVELS];
    unsigned kinds;
};

/* Told of every layer with a branch what it gives without any on that branch's rows, base, and what this branch alone
 * adds, part, both [rows, h*w, c]; in full, whatever routes and gates let through. Neither changes what is computed. */
struct watch {
    void (*saw)(void *user, struct run *r, const struct layer *l, const struct branch *b,
                const struct tensor *base, const struct tensor *part);
    void *user;
};

/* Told of every layer with gates what goes through them: h and what the branches b[0], b[1], ... of a joint add, before
 * it is added; of plain gates only who acts (width not 0), w and the time. */
struct gate_watch {
    void (*saw)(void *user, struct run *r, const struct layer *l, const struct branch *b,
                const struct tensor *h, const struct gating *in);
    void *user;
};

/* Told of the attentions of a UNet: their queries [rows, h*w, c] and keys [rows, tokens or h*w, c], and which of its
 * cross attentions it is, counted as unet.h does, or beside which one; before any of it is dropped, so it may run ops of
 * its own. */
struct map_watch {
    /* region: whose text the keys are of (regions.h), -1: the whole picture's. */
    void (*saw)(void *user, struct run *r, int cross, int region, const struct tensor *q,
                const struct tensor *k, const struct attention *a);
    void *user;
    int until; /* after so many cross attentions the pass is over, and gives nothing; 0: it goes on */
    void (*saw_self)(void *user, struct run *r, int cross, const struct tensor *q,
                     const struct tensor *k, const struct attention *a); /* or NULL */
};

struct run {
    struct device *dev;
    struct err err; /* the first failure; code 0 while there is none */

    struct arena plan; /* where tensors lie; plan.peak is what was measured */
    char *memory;      /* the device's */
    size_t size;
    bool measuring; /* sizes only: tensors have no data and nothing is computed */
    bool preparing; /* while measuring: layers also pack their weights for the shapes they meet */
    bool wide;      /* tensors are made wide (tensor.h): set by who has latents in it */
    double flops;   /* counted by every op, 2 a multiply-add; reset by the caller */

    const struct gates *gates;   /* or NULL; borrowed */
    const float *wave;           /* [rows, GATE_WAVES] of the rows' times, for gates; borrowed */
    const struct branch *branch; /* side branches in force; borrowed */
    int n_branch;
    float *norm; /* host: gamma and beta of a norm that adapters change; grows while measuring */
    size_t n_norm;
    const struct fold *fold;             /* weights with adapters folded in, or NULL; borrowed */
    const struct watch *watch;           /* or NULL; borrowed */
    const struct gate_watch *gate_watch; /* or NULL; borrowed */
    const struct map_watch *map_watch;   /* or NULL; borrowed */
    struct regions *regions;             /* of the picture (regions.h), or NULL; borrowed */
    struct tape *tape;                   /* what notes the ops (tape.h), or NULL; borrowed */
};

void run_init(struct run *r, struct device *dev);
/* From here on only measure, from an empty arena. */
void run_measure(struct run *r);
/* As run_measure, and every layer met gets ready: afterwards no pass of these shapes packs or allocates,
 * and damaged weights have been found. */
void run_prepare(struct run *r);
/* One or the other. */
void run_begin(struct run *r, bool prepare);
/* From here on no adapter acts, and nothing is watched. */
void run_bare(struct run *r);
/* Ends measuring: makes the arena as large as what was measured (it never shrinks) and empties it. */
int run_commit(struct run *r, struct err *err);
/* The same for a size that was measured before (run.plan.peak). */
int run_reserve(struct run *r, size_t bytes, struct err *err);
/* Empties the arena and forgets an error. Tensors made before are gone. */
void run_reset(struct run *r);
/* 0, or the first failure, copied to err. */
int run_check(const struct run *r, struct err *err);
void run_release(struct run *r);

/* A tensor in the arena; its values are undefined. */
struct tensor run_tensor(struct run *r, int n, int h, int w, int c);
struct tensor run_like(struct run *r, const struct tensor *t);
unsigned run_mark(const struct run *r);
void run_pop(struct run *r, unsigned mark);
void run_drop(struct run *r, const struct tensor *t);
/* Drops *t and puts `next` in its place: h = f(h) without keeping the old h. */
void run_replace(struct run *r, struct tensor *t, struct tensor next);

void op_upload(struct run *r, struct tensor *t, const float *host);
/* y = W x + b and what the run's adapters add; accumulate: y += that. */
void op_layer(struct run *r, struct tensor *y, const struct layer *l, const struct tensor *x,
              bool accumulate);
/* The place op_layer's result takes: height and width after stride and padding. */
struct tensor run_layer_tensor(struct run *r, const struct layer *l, const struct tensor *x);
void op_group_norm(struct run *r, struct tensor *y, const struct norm *g, const struct tensor *x,
                   const struct tensor *add, enum act act);
void op_layer_norm(struct run *r, struct tensor *y, const struct norm *g, const struct tensor *x);
void op_attention(struct run *r, struct tensor *o, const struct tensor *q, const struct tensor *k,
                  const struct tensor *v, const struct attention *a);
void op_activate(struct run *r, struct tensor *y, const struct tensor *x, enum act act);
void op_geglu(struct run *r, struct tensor *y, const struct tensor *x);
void op_lincomb(struct run *r, struct tensor *y, int n, const double *coef,
                const struct tensor *const *x, double clamp);
/* y = a * x + b */
void op_affine(struct run *r, struct tensor *y, const struct tensor *x, double a, double b);
/* y *= the share in each of n parts of its channels */
void op_scale(struct run *r, struct tensor *y, int n, const struct share *part);
/* t *= w at each place, its channels being pieces (route.h) */
void op_route(struct run *r, struct tensor *t, const struct route *how);
/* y += h + what comes through the gates; y += that alone where both lie at the same place */
void op_gate(struct run *r, struct tensor *y, const struct tensor *h, const struct gating *in);
void op_copy(struct run *r, struct tensor *y, const struct tensor *x);
void op_add(struct run *r, struct tensor *y, const struct tensor *x); /* y += x */
void op_concat(struct run *r, struct tensor *y, const struct tensor *a, const struct tensor *b);
void op_upsample(struct run *r, struct tensor *y, const struct tensor *x);

#endif
