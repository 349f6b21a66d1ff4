/* queue.h: jobs that wait, run and are done: weft-jobs.db of a folder of pictures.
 *
 * Every job that was taken in ends in a picture or in a reason, whatever happens to the programs that work on it. A
 * job is claimed by one of them under a lease: it is given back when that program says so, when its process is gone
 * (the same machine tells), or when it has given no sign of life for too long. Leases count by the time since the machine
 * was started, so that setting the clock changes nothing. A queue lies on a disk of the machine, never on a network.
 *
 *     queue_open(&q, "out/weft-jobs.db", true, &err);
 *     queue_begin(q, &err); … queue_add(q, &new, &was, &err); … queue_end(q, rc, &err);
 *     queue_work(q, 600, &err);
 *     while (queue_claim(q, NULL, false, &job, &err) == 1) {
 *         …
 *         queue_beat(q, &err);                      // now and then
 *         queue_done(q, &job, &made, &err);         // or queue_fail, queue_give_back
 *         queue_job_release(&job);
 *     }
 *     queue_close(q);
 */
#ifndef WEFT_QUEUE_H
#define WEFT_QUEUE_H

#include "unet/err.h"
#include "unet/hash.h"

#include <stdbool.h>
#include <stdint.h>

enum queue_state {
    QUEUE_WAITING,
    QUEUE_RUNNING,
    QUEUE_DONE,
    QUEUE_FAILED,
    QUEUE_CANCELLED,
    QUEUE_STATES
};
extern const char *const queue_state_name[QUEUE_STATES];

/* Of so many crashes in a row a job is made alone, and of so many it has failed. */
enum { QUEUE_ALONE = 3, QUEUE_CRASHES = 6 };

struct queue_job {
    int64_t n;    /* its place in the files of jobs, from 1 */
    char *id;     /* unlike any other's */
    char *asked;  /* what tells two jobs of one id apart */
    char *source; /* FILE:LINE */
    char *
        settings; /* all that the picture is made from, as text that the queue does not look into */
    char *batch;  /* jobs of the same go together */
    char *adapters; /* of the same stand together */
    char *file;     /* from the folder on; unlike any other's */
    bool partial;
    /* What follows is the queue's, not queue_add's. */
    enum queue_state state;
    int fold; /* -1: nobody has chosen */
    int attempts, crashes;
    char *reason;          /* or NULL */
    char sha256[HASH_HEX]; /* "" until it is done */
    int64_t bytes, finished;
    double seconds;
};
void queue_job_release(struct queue_job *j);

/* A picture that was made. */
struct queue_made {
    const char *sha256;
    int64_t bytes;
    double seconds;
};

struct queue;
/* write: made when it is not there. */
int queue_open(struct queue **out, const char *path, bool write, struct err *err);
void queue_close(struct queue *q);

/* A text that the queue keeps for its users: *out is new, or NULL where there is none. */
int queue_note(struct queue *q, const char *key, char **out, struct err *err);
int queue_set_note(struct queue *q, const char *key, const char *value, struct err *err);

/* ---- taking in: between queue_begin and queue_end, all or nothing ---- */
int queue_begin(struct queue *q, struct err *err);
int queue_end(struct queue *q, int rc, struct err *err);
/* What the queue knows of a job of that id: 1 and *asked (new), or 0. */
int queue_find(struct queue *q, const char *id, char **asked, struct err *err);
/* The last place that a job has; 0: there are none. */
int queue_last(struct queue *q, int64_t *n, struct err *err);
/* Its file must be nobody's; its place is the next free one where that is somebody's. made: it is done already; NULL: it waits. */
int queue_add(struct queue *q, const struct queue_job *j, const struct queue_made *made,
              struct err *err);

/* ---- working ---- */
/* From here on claims are ours, as long as each is followed by a sign of life within so many seconds. Jobs of programs
 * that are gone wait again. */
int queue_work(struct queue *q, int lease, struct err *err);
/* A sign of life. Those of others that are gone give back what they had. ERR_MISMATCH: our own lease had run out, and
 * what was claimed is no longer ours. */
int queue_beat(struct queue *q, struct err *err);
/* The next job: of this batch (NULL: any), by turn. alone: nothing else is being made, so that one which crashes may be
 * tried. 1: *j is claimed, to be released; 0: none. */
int queue_claim(struct queue *q, const char *batch, bool alone, struct queue_job *j,
                struct err *err);
/* The next few that wait, as queue_each. */
int queue_soon(struct queue *q, const char *batch, int n,
               int (*each)(void *user, const struct queue_job *j), void *user, struct err *err);
/* Ends of a claim. 1: it was no longer ours, and nothing is changed. */
int queue_done(struct queue *q, const struct queue_job *j, const struct queue_made *made,
               struct err *err);
int queue_fail(struct queue *q, const struct queue_job *j, const char *reason, struct err *err);
int queue_give_back(struct queue *q, const struct queue_job *j, struct err *err);
/* How many of a batch wait that have the same adapters; and what is chosen for them all, once. */
int queue_count_alike(struct queue *q, const struct queue_job *j, int *n, struct err *err);
int queue_choose(struct queue *q, const struct queue_job *j, bool fold, struct err *err);

/* ---- looking after ---- */
int queue_counts(struct queue *q, int64_t count[QUEUE_STATES], struct err *err);
/* Calls each with every job in order, released afterwards; state below 0: all. A nonzero return stops. */
int queue_each(struct queue *q, int state, int (*each)(void *user, const struct queue_job *j),
               void *user, struct err *err);
/* One of that id: 0, or 1: there is none. */
int queue_get(struct queue *q, const char *id, struct queue_job *j, struct err *err);
/* Failed and cancelled ones wait again; waiting and failed ones are cancelled. id NULL: all of them. *n: how many. */
int queue_retry(struct queue *q, const char *id, int64_t *n, struct err *err);
int queue_cancel(struct queue *q, const char *id, int64_t *n, struct err *err);
/* Removes a job that nobody is at. */
int queue_forget(struct queue *q, const char *id, struct err *err);
/* A job of another queue with all it has become, for a queue that has none of that id; its place is another where that
 * one is taken. One that was running waits. */
int queue_copy(struct queue *q, const struct queue_job *j, struct err *err);

#endif
