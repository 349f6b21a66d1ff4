/* workshop.h: jobs of a queue become pictures: several in hand, which come and go.
 *
 *     struct workshop w = {.base = &m, .q = q, .folder = "out", .adapter_memory = 1 << 30, .lease = 600, .tell = tell};
 *     rc = workshop_run(&w, &err);       // until nothing waits, or it is time, or the user stops it
 *     workshop_release(&w);
 *
 * Pictures of one model run together, whatever their adapters, strategies, prompts, samplers and steps, as many as fill a
 * batch. What is wrong with one job is recorded with it and stops no other. What stops them all (a full disk, a signal)
 * gives back what was in hand.
 */
#ifndef WEFT_WORKSHOP_H
#define WEFT_WORKSHOP_H

#include "making.h"

#include "store/queue.h"

/* A job in hand. */
struct hand {
    struct making m;
    struct picture p;
    struct queue_job job;
    enum { HAND_FREE, HAND_CLAIMED, HAND_LOADED, HAND_BUSY } state;
    int slot, rows;
    double seconds; /* its share of the time so far */
};

enum workshop_event { WORKSHOP_BEGUN, WORKSHOP_DONE, WORKSHOP_FAILED, WORKSHOP_STEP };

struct workshop {
    struct making *base; /* what all share; its model is opened as jobs need it */
    struct queue *q;
    const char *folder;
    size_t adapter_memory; /* bytes */
    int lease;             /* seconds */
    int most;              /* pictures in hand at most; 0: as many as fill a batch */
    bool beside;           /* adapters are never folded but where a job asks for it */
    double until;          /* when no more are begun, by the clock of time(); 0: never */
    /* Told of what happens; of a failure, with its reason. */
    void (*tell)(void *user, enum workshop_event what, const struct hand *h, const char *reason);
    void *user;

    int done, failed, here; /* here: pictures that were there already */
    bool late;              /* it was time */
    /* the rest is its own */
    struct pool *pool;
    struct hand hand[MAKING_HAND + 1], *ahead; /* ahead: has its adapters, and waits for room */
    int busy, rows;
    size_t
        bytes; /* that pictures of this model took at most; 0: it has none yet, nor packed weights */
    bool alone, changed;
    double beaten, asked, began;
};

int workshop_run(struct workshop *w, struct err *err);
void workshop_release(struct workshop *w);

#endif
