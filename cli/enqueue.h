/* enqueue.h: from lines of job files to jobs of a queue: each is a whole request, looked through before any is taken in.
 *
 *     struct enqueue e = {.base = &m, .options = o, .q = q, .folder = "out", .name = "{n}-{id}", .shard = 1, .shards = 1};
 *     rc = enqueue_read(&e, files, n, NULL, &err);        // tells of bad lines: e.bad
 *     rc = rc < 0 ? rc : enqueue_commit(&e, &err);        // all of them, or none
 *     enqueue_release(&e);
 */
#ifndef WEFT_ENQUEUE_H
#define WEFT_ENQUEUE_H

#include "making.h"

#include "store/queue.h"

struct enqueue {
    struct making *
        base; /* its model is opened where a job needs it; what it was given lies below every job's own */
    const struct option *options; /* base's table: what it was given is part of what a job asks */
    struct queue *q;
    const char *folder;
    const char *name;  /* of files (job_name.h) */
    int shard, shards; /* the first is 1 */
    const char *x, *y; /* axes that every job is multiplied by, as of weft compare; or NULL */
    /* Told of a line that makes no job. */
    void (*tell)(void *user, const char *file, int line, const char *why);
    void *user;

    int n_new, n_known, n_others, n_made,
        bad;             /* n_made: of the new, those whose picture is there */
    struct fresh *fresh; /* [n_fresh] what is to be taken in */
    int n_fresh, room;
    int64_t place; /* the last that was given */
    struct seen *seen;
    int n_seen;
};

int enqueue_read(struct enqueue *e, const char *const *path, int n_path, const char *format,
                 struct err *err);
int enqueue_commit(struct enqueue *e, struct err *err);
void enqueue_release(struct enqueue *e);

/* Whether the picture at path is there and was made by just these settings (seed NULL) or by these but for the seed, which
 * becomes its. */
bool picture_is_of(const char *path, const char *settings, uint64_t *seed);

#endif
