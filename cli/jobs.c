/* weft jobs: what a queue of weft batch holds, and what is to become of it. */
#include "gallery.h"
#include "shelf.h"

#include "unet/file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct jobs_command {
    struct shelf s; /* rest: what to do, the folder, and names */
    const char *state, *queue;
    struct queue *q;
    int n;
};

#define MAX_OPTIONS 5

static void make_options(struct option *o, void *target)
{
    struct jobs_command *c = target;
    const struct option table[] = {
        {"state", 0, OPTION_TEXT, &c->state, "NAME",
         "list: only those that are waiting, running, done, failed or\ncancelled", 0, 0, NULL},
        {"queue", 0, OPTION_TEXT, &c->queue, "FILE", "the queue, where it is not in the folder", 0,
         0, NULL},
        {"json", 0, OPTION_FLAG, &c->s.json, NULL, "JSON on stdout, an object a line", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static int open_queue(struct queue **q, const char *folder, const char *queue, bool write,
                      struct err *err)
{
    char *path = queue ? strdup(queue) : file_join(folder, "weft-jobs.db");
    int rc = path ? 0 : err_nomem(err, 64);
    if (rc == 0 && !file_exists(path))
        rc = err_set(err, ERR_IO, "%s: no queue there; weft batch FILE -o DIR makes one", path);
    rc = rc < 0 ? rc : queue_open(q, path, write, err);
    free(path);
    return rc;
}

/* ---- list ------------------------------------------------------------------------------------ */

static int print_job(void *user, const struct queue_job *j)
{
    struct jobs_command *c = user;
    c->n++;
    if (c->s.json) {
        json_line(gallery_record(j));
        return 0;
    }
    printf("%-10s %-20s %s", queue_state_name[j->state], shown(j->id), shown(j->file));
    if (j->state == QUEUE_DONE)
        printf("  %.1f s", j->seconds);
    if (j->reason)
        printf("  %s", shown(j->reason));
    if (j->state != QUEUE_DONE && j->attempts > 1)
        printf("  (attempt %d)", j->attempts);
    putchar('\n');
    return cli_stopped();
}

static int print_counts(struct jobs_command *c, struct err *err)
{
    int64_t count[QUEUE_STATES];
    json_t *j = json_object();
    int rc = queue_counts(c->q, count, err);
    for (int i = 0; i < QUEUE_STATES && rc == 0; i++) {
        json_object_set_new(j, queue_state_name[i], json_integer((json_int_t)count[i]));
        if (!c->s.json)
            printf("%s%lld %s", i ? ", " : "", (long long)count[i], queue_state_name[i]);
    }
    if (rc == 0 && c->s.json)
        json_line(json_incref(j));
    else if (rc == 0)
        putchar('\n');
    json_decref(j);
    return rc;
}

static int list(struct jobs_command *c, struct err *err)
{
    int state = -1;
    for (int i = 0; c->state && i < QUEUE_STATES; i++)
        if (!strcmp(c->state, queue_state_name[i]))
            state = i;
    if (c->state && state < 0)
        return err_set(err, ERR_ARG, "--state takes waiting, running, done, failed or cancelled");
    return queue_each(c->q, state, print_job, c, err) < 0 ? err->code : 0;
}

/* ---- retry and cancel ------------------------------------------------------------------------ */

static int change(struct jobs_command *c, bool retry, struct err *err)
{
    int64_t all = 0, n = 0;
    const char *const *id = c->s.rest + 2;
    int n_id = c->s.n - 2, rc = 0;
    for (int i = 0; i < (n_id ? n_id : 1) && rc == 0; i++) {
        const char *one = n_id ? id[i] : NULL;
        rc = retry ? queue_retry(c->q, one, &n, err) : queue_cancel(c->q, one, &n, err);
        if (rc == 0 && one && !n)
            rc = err_set(err, ERR_ARG, "%s: no job of that id %s; weft jobs list shows them", one,
                         retry ? "failed or was cancelled" : "waits or failed");
        all += n;
    }
    if (rc == 0 && c->s.json)
        json_line(json_pack("{s:I}", retry ? "waiting" : "cancelled", (json_int_t)all));
    else if (rc == 0)
        printf(retry ? "%lld wait again; weft batch -o %s makes them\n" : "%lld of %s cancelled\n",
               (long long)all, shown(c->s.rest[1]));
    return rc;
}

/* ---- merge ----------------------------------------------------------------------------------- */

struct merge {
    struct queue *to;
    const char *folder, *from;
    int taken, same, open;
    struct err *err;
};

/* The picture, if its file is what its record says; another file of that name is not touched. */
static int copy_picture(const struct merge *m, const struct queue_job *j, struct err *err)
{
    enum { PICTURE_MAX = 1 << 30 };
    char *from = file_join(m->from, j->file), *to = file_join(m->folder, j->file), *bytes = NULL;
    char sha[HASH_HEX];
    size_t n = 0;
    int rc = from && to ? file_read(&bytes, &n, from, PICTURE_MAX, err) : err_nomem(err, 64);
    rc = rc < 0 ? rc : hash_bytes(sha, bytes, n, err);
    if (rc == 0 && strcmp(sha, j->sha256))
        rc = err_set(err, ERR_FORMAT,
                     "%s: not the picture that was made (its SHA-256 differs); weft jobs retry and "
                     "weft batch make it again",
                     from);
    if (rc == 0 && file_exists(to)) {
        rc = hash_file(sha, to, err);
        if (rc == 0 && strcmp(sha, j->sha256))
            rc = err_set(err, ERR_FORMAT, "%s: is there already, and is another picture", to);
    } else if (rc == 0) {
        rc = file_make_parents(to, err);
        rc = rc < 0 ? rc : file_replace(to, bytes, n, err);
    }
    free(bytes);
    free(from);
    free(to);
    return rc;
}

/* A job that this folder knows better than what was merged so far. */
static int merge_job(void *user, const struct queue_job *j)
{
    struct merge *m = user;
    struct queue_job has;
    int rc = queue_get(m->to, j->id, &has, m->err);
    if (rc < 0)
        return rc;
    bool known = rc == 0, better = !known || (j->state == QUEUE_DONE && has.state != QUEUE_DONE) ||
                                   (j->state == QUEUE_FAILED && has.state == QUEUE_WAITING);
    rc = 0;
    if (known && strcmp(has.asked, j->asked))
        rc = err_set(m->err, ERR_MISMATCH, "%s: job %s asks for something else than in the others",
                     m->from, j->id);
    if (rc == 0 && better && j->state == QUEUE_DONE)
        rc = copy_picture(m, j, m->err);
    if (rc == 0 && better && known)
        rc = queue_forget(m->to, j->id, m->err);
    if (rc == 0 && better)
        rc = queue_copy(m->to, j, m->err);
    m->taken += better;
    m->same += !better;
    if (known)
        queue_job_release(&has);
    return rc;
}

static int merge_folder(struct merge *m, const char *from, struct err *err)
{
    struct queue *q = NULL;
    m->from = from;
    m->err = err;
    int rc = open_queue(&q, from, NULL, false, err);
    rc = rc < 0 ? rc : queue_begin(m->to, err);
    if (rc == 0) {
        rc = queue_each(q, -1, merge_job, m, err);
        rc = queue_end(m->to, rc, err);
    }
    queue_close(q);
    return rc;
}

static int merge(struct jobs_command *c, struct err *err)
{
    struct merge m = {.folder = c->s.rest[1]};
    int64_t count[QUEUE_STATES];
    char *path = c->queue ? strdup(c->queue) : file_join(m.folder, "weft-jobs.db");
    int rc = path ? 0 : err_nomem(err, 64);
    if (rc == 0 && c->s.n < 3)
        rc = err_set(err, ERR_ARG, "merge what? weft jobs merge INTO DIR...");
    rc = rc < 0 ? rc : file_make_folders(m.folder, err);
    rc = rc < 0 ? rc : queue_open(&m.to, path, true, err);
    for (int i = 2; i < c->s.n && rc == 0; i++)
        rc = merge_folder(&m, c->s.rest[i], err);
    rc = rc < 0 ? rc : queue_counts(m.to, count, err);
    rc = rc < 0 ? rc : gallery_write(m.folder, m.to, NULL, err);
    if (rc == 0 && c->s.json)
        json_line(json_pack("{s:i, s:i, s:I, s:I, s:I}", "taken", m.taken, "known", m.same, "done",
                            (json_int_t)count[QUEUE_DONE], "failed",
                            (json_int_t)count[QUEUE_FAILED], "waiting",
                            (json_int_t)(count[QUEUE_WAITING] + count[QUEUE_RUNNING])));
    else if (rc == 0)
        printf("%s  %lld pictures, %lld failed, %lld wait\n", shown(m.folder),
               (long long)count[QUEUE_DONE], (long long)count[QUEUE_FAILED],
               (long long)(count[QUEUE_WAITING] + count[QUEUE_RUNNING]));
    if (rc == 0 && count[QUEUE_FAILED] + count[QUEUE_WAITING] + count[QUEUE_RUNNING])
        rc =
            err_set(err, ERR_FORMAT, "%lld of the jobs have no picture",
                    (long long)(count[QUEUE_FAILED] + count[QUEUE_WAITING] + count[QUEUE_RUNNING]));
    queue_close(m.to);
    free(path);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    static const char *const verbs[] = {"show", "list", "retry", "cancel", "merge"};
    struct jobs_command c = {.n = 0};
    struct option o[MAX_OPTIONS];
    struct err err;
    int verb = 0;

    (void)self;
    make_options(o, &c);
    cli_catch_stop();
    int rc = shelf_parse(&c.s, o, argc, argv, 1, -1, "a folder", &err);
    bool bare = rc == 0 && c.s.n == 1; /* weft jobs DIR */
    const char *const *rest = bare ? (const char *const[]){verbs[0], c.s.rest[0]} : c.s.rest;
    while (rc == 0 && verb < 5 && strcmp(rest[0], verbs[verb]))
        verb++;
    if (rc == 0 && verb == 5)
        rc = err_set(&err, ERR_ARG, "'%.40s' is none of list, retry, cancel, merge", rest[0]);
    if (rc == 0 && verb < 2 && c.s.n > 2)
        rc = err_set(&err, ERR_ARG, "'%.80s' is one too many", rest[2]);
    if (rc == 0 && verb < 4)
        rc = open_queue(&c.q, rest[1], c.queue, verb > 1, &err);
    if (rc == 0)
        rc = verb == 0   ? print_counts(&c, &err)
             : verb == 1 ? list(&c, &err)
             : verb == 4 ? merge(&c, &err)
                         : change(&c, verb == 2, &err);
    queue_close(c.q);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_jobs = {
    .name = "jobs",
    .usage = "weft jobs [list|retry|cancel|merge] DIR [ID... | DIR...]",
    .about = "looks after the queue of weft batch",
    .run = run,
    .options = make_options,
    .size = sizeof(struct jobs_command),
    .more = "weft jobs DIR                  how many wait, are done, failed\n"
            "weft jobs list DIR             a line a job\n"
            "weft jobs retry DIR [ID...]    failed and cancelled ones wait again, all or these\n"
            "weft jobs cancel DIR [ID...]   those that wait or failed are not made, all or these\n"
            "weft jobs merge DIR FROM...    pictures and records of several folders (shards) into "
            "one;\n"
            "                               fails while a job has no picture",
};
