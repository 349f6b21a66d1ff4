/* Jobs in SQLite: who has them, and what became of them. */
#include "queue.h"

#include "db.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

static const char schema[] = {
#include "store/queue.inc"
    0};
static const struct db_kind kind = {
    .schema = schema,
    .what = "queue",
    .damaged = "the pictures are not touched by that: move it away, and the same command takes in "
               "the jobs again",
    .other = "another folder",
    .renew = "weft batch",
};

const char *const queue_state_name[QUEUE_STATES] = {"waiting", "running", "done", "failed",
                                                    "cancelled"};

struct queue {
    struct db *db;
    int64_t worker; /* who we are; 0: nobody */
    int lease;
};

int queue_open(struct queue **out, const char *path, bool write, struct err *err)
{
    struct queue *q = calloc(1, sizeof *q);
    *out = NULL;
    if (!q)
        return err_nomem(err, sizeof *q);
    int rc = db_open(&q->db, path, write, &kind, err);
    if (rc == 0)
        rc = write ? db_migrate(q->db, err) : db_check_version(q->db, err);
    if (rc < 0)
        queue_close(q);
    else
        *out = q;
    return rc;
}

void queue_close(struct queue *q)
{
    struct err none;
    if (!q)
        return;
    if (q->db && q->worker) /* what it still has counts as given back */
        db_do(q->db, &none,
              "UPDATE job SET state = 0, worker = NULL, attempts = attempts - 1 WHERE worker = ?",
              "i", q->worker);
    if (q->db && q->worker)
        db_do(q->db, &none, "DELETE FROM worker WHERE key = ?", "i", q->worker);
    db_close(q->db);
    free(q);
}

int queue_note(struct queue *q, const char *key, char **out, struct err *err)
{
    sqlite3_stmt *s = NULL;
    *out = NULL;
    int rc = db_query(q->db, err, &s, "SELECT value FROM note WHERE key = ?", "s", key);
    rc = rc < 0 ? rc : db_next(q->db, s, err);
    if (rc == 1 && !(*out = db_copy(s, 0)))
        rc = err_nomem(err, 64);
    db_done(s);
    return rc < 0 ? rc : 0;
}

int queue_set_note(struct queue *q, const char *key, const char *value, struct err *err)
{
    return db_do(q->db, err, "INSERT OR REPLACE INTO note VALUES (?, ?)", "ss", key, value);
}

/* ---- rows ------------------------------------------------------------------------------------ */

#define COLUMNS                                                                                    \
    "n, id, asked, source, settings, batch, adapters, file, partial, state, fold, attempts, "      \
    "crashes, reason, sha256, bytes, finished, seconds"

void queue_job_release(struct queue_job *j)
{
    char *text[] = {j->id,    j->asked,    j->source, j->settings,
                    j->batch, j->adapters, j->file,   j->reason};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        free(text[i]);
    memset(j, 0, sizeof *j);
}

static int read_row(sqlite3_stmt *s, struct queue_job *j, struct err *err)
{
    char **text[] = {&j->id,    &j->asked,    &j->source, &j->settings,
                     &j->batch, &j->adapters, &j->file};
    bool there = true;
    memset(j, 0, sizeof *j);
    j->n = sqlite3_column_int64(s, 0);
    for (int i = 0; i < 7; i++)
        there = (*text[i] = db_copy(s, i + 1)) && there;
    j->partial = sqlite3_column_int(s, 8);
    j->state = (enum queue_state)sqlite3_column_int(s, 9);
    j->fold = sqlite3_column_type(s, 10) == SQLITE_NULL ? -1 : sqlite3_column_int(s, 10);
    j->attempts = sqlite3_column_int(s, 11);
    j->crashes = sqlite3_column_int(s, 12);
    j->reason = db_copy(s, 13);
    snprintf(j->sha256, sizeof j->sha256, "%s", db_text(s, 14) ? db_text(s, 14) : "");
    j->bytes = sqlite3_column_int64(s, 15);
    j->finished = sqlite3_column_int64(s, 16);
    j->seconds = sqlite3_column_double(s, 17);
    if (there && j->state < QUEUE_STATES)
        return 0;
    queue_job_release(j);
    return there ? err_set(err, ERR_FORMAT, "a job of the queue has an unknown state")
                 : err_nomem(err, 64);
}

/* ---- taking in ------------------------------------------------------------------------------- */

int queue_begin(struct queue *q, struct err *err)
{
    return db_begin(q->db, err);
}

int queue_end(struct queue *q, int rc, struct err *err)
{
    return db_end(q->db, rc, err);
}

int queue_find(struct queue *q, const char *id, char **asked, struct err *err)
{
    sqlite3_stmt *s = NULL;
    *asked = NULL;
    int rc = db_query(q->db, err, &s, "SELECT asked FROM job WHERE id = ?", "s", id);
    rc = rc < 0 ? rc : db_next(q->db, s, err);
    if (rc == 1 && !(*asked = db_copy(s, 0)))
        rc = err_nomem(err, 64);
    db_done(s);
    return rc;
}

int queue_last(struct queue *q, int64_t *n, struct err *err)
{
    return db_int(q->db, err, n, 0, "SELECT max(n) FROM job", "");
}

static int insert(struct queue *q, const struct queue_job *j, struct err *err)
{
    int64_t n = j->n, turn, taken = 0, last = 0;
    int rc = db_int(q->db, err, &taken, 0, "SELECT n FROM job WHERE file = ?", "s", j->file);
    if (rc == 0 && taken)
        rc = err_set(err, ERR_ARG,
                     "%s: job %lld has that file; a template with {n} or {id} in it gives each "
                     "its own",
                     j->file, (long long)taken);
    rc = rc < 0 ? rc : db_int(q->db, err, &taken, 0, "SELECT n FROM job WHERE n = ?", "i", n);
    if (rc == 0 && taken && (rc = queue_last(q, &last, err)) == 0)
        n = last + 1;
    if (rc == 0)
        rc = db_int(q->db, err, &turn, n,
                    "SELECT min(turn) FROM job WHERE batch = ? AND adapters = ?", "ss", j->batch,
                    j->adapters);
    return rc < 0
               ? rc
               : db_do(q->db, err,
                       "INSERT INTO job (n, id, asked, source, settings, partial, batch, adapters, "
                       "turn, file) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                       "issssissis", n, j->id, j->asked, j->source, j->settings,
                       (int64_t)j->partial, j->batch, j->adapters, turn, j->file);
}

static int64_t today(void)
{
    return (int64_t)time(NULL);
}

int queue_add(struct queue *q, const struct queue_job *j, const struct queue_made *made,
              struct err *err)
{
    int rc = insert(q, j, err);
    if (rc < 0 || !made)
        return rc;
    return db_do(q->db, err,
                 "UPDATE job SET state = 2, sha256 = ?, bytes = ?, seconds = ?, finished = ? "
                 "WHERE id = ?",
                 "sidis", made->sha256, made->bytes, made->seconds, today(), j->id);
}

/* ---- who is there ---------------------------------------------------------------------------- */

/* Seconds since the machine was started. */
static int64_t now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_BOOTTIME, &t);
    return (int64_t)t.tv_sec;
}

struct me {
    char host[80], boot[60], space[60];
    int64_t pid, began;
};

/* When a process of ours began, in ticks; 0: there is none. */
static int64_t process_began(int64_t pid)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%lld/stat", (long long)pid);
    FILE *f = fopen(path, "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = 0;
    char *p = strrchr(text, ')'); /* its name may hold anything; the 22nd field counts from 1 */
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    return p ? strtoll(p + 1, NULL, 10) : 0;
}

static void who(struct me *m)
{
    memset(m, 0, sizeof *m);
    gethostname(m->host, sizeof m->host - 1);
    FILE *f = fopen("/proc/sys/kernel/random/boot_id", "r");
    if (f && fgets(m->boot, sizeof m->boot, f))
        m->boot[strcspn(m->boot, "\n")] = 0;
    if (f)
        fclose(f);
    if (readlink("/proc/self/ns/pid", m->space, sizeof m->space - 1) < 0)
        m->space[0] = 0;
    m->pid = getpid();
    m->began = process_began(m->pid);
}

/* Whether the worker of a row (key, host, boot, space, pid, began, beat, lease, seen) is gone. *far: it is another machine's,
 * and was seen of late. */
static bool is_gone(sqlite3_stmt *s, const struct me *m, bool *far)
{
    const char *host = db_text(s, 1), *boot = db_text(s, 2), *space = db_text(s, 3);
    int64_t pid = sqlite3_column_int64(s, 4), beat = sqlite3_column_int64(s, 6),
            lease = sqlite3_column_int64(s, 7), since = today() - sqlite3_column_int64(s, 8);
    if (strcmp(boot, m->boot)) {
        *far = strcmp(host, m->host) && since >= 0 && since < lease;
        return !*far;
    }
    if (*m->space && !strcmp(space, m->space) && process_began(pid) != sqlite3_column_int64(s, 5))
        return true;
    return now() - beat > lease;
}

/* Its jobs wait again; one that has been given back so too often has failed. */
static int bury(struct queue *q, int64_t worker, struct err *err)
{
    int rc = db_do(q->db, err,
                   "UPDATE job SET state = 0, worker = NULL, crashes = crashes + 1 "
                   "WHERE worker = ? AND state = 1",
                   "i", worker);
    rc = rc < 0 ? rc
                : db_do(q->db, err,
                        "UPDATE job SET state = 3, finished = ?, reason = 'weft ended ' || "
                        "crashes || ' times while it was made' WHERE state = 0 AND crashes >= ?",
                        "ii", today(), (int64_t)QUEUE_CRASHES);
    return rc < 0 ? rc : db_do(q->db, err, "DELETE FROM worker WHERE key = ?", "i", worker);
}

/* Gives back what the dead had. Within a transaction. */
static int bury_all(struct queue *q, struct err *err)
{
    struct me m;
    bool far = false;
    int64_t gone = 0;
    who(&m);
    for (int rc = 0; rc == 0;) {
        sqlite3_stmt *s = NULL;
        gone = 0;
        rc = db_query(q->db, err, &s,
                      "SELECT key, host, boot, space, pid, began, beat, lease, seen FROM worker "
                      "WHERE key <> ?",
                      "i", q->worker);
        while (rc == 0 && !gone && (rc = db_next(q->db, s, err)) == 1) {
            gone = is_gone(s, &m, &far) ? sqlite3_column_int64(s, 0) : 0;
            if (far)
                err_set(err, ERR_IO,
                        "the queue is being worked on from another machine, %s; a queue is one "
                        "machine's: give each its own folder and --shard",
                        db_text(s, 1));
            rc = far ? ERR_IO : 0;
        }
        db_done(s);
        if (rc < 0 || !gone)
            return rc;
        rc = bury(q, gone, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

static int enter(struct queue *q, struct err *err)
{
    struct me m;
    who(&m);
    int rc = db_do(q->db, err,
                   "INSERT INTO worker (host, boot, space, pid, began, beat, lease, seen) VALUES "
                   "(?, ?, ?, ?, ?, ?, ?, ?)",
                   "sssiiiii", m.host, m.boot, m.space, m.pid, m.began, now(), (int64_t)q->lease,
                   today());
    return rc < 0 ? rc : db_int(q->db, err, &q->worker, 0, "SELECT last_insert_rowid()", "");
}

int queue_work(struct queue *q, int lease, struct err *err)
{
    q->lease = lease;
    int rc = db_begin(q->db, err);
    if (rc < 0)
        return rc;
    rc = bury_all(q, err);
    rc = rc < 0 ? rc : enter(q, err);
    return db_end(q->db, rc, err);
}

int queue_beat(struct queue *q, struct err *err)
{
    bool lost = false;
    int rc = db_begin(q->db, err);
    if (rc < 0)
        return rc;
    rc = db_do(q->db, err, "UPDATE worker SET beat = ?, seen = ? WHERE key = ?", "iii", now(),
               today(), q->worker);
    if (rc == 0 && db_changes(q->db) == 0) {
        lost = true;
        rc = enter(q, err);
    }
    rc = rc < 0 ? rc : bury_all(q, err);
    rc = db_end(q->db, rc, err);
    return rc == 0 && lost
               ? err_set(
                     err, ERR_MISMATCH,
                     "nothing was heard of this weft for longer than its lease of %d s: what it "
                     "had in hand is being made by another",
                     q->lease)
               : rc;
}

/* ---- claims ---------------------------------------------------------------------------------- */

/* The next that waits, still unclaimed. */
static int next(struct queue *q, const char *batch, bool alone, struct queue_job *j,
                struct err *err)
{
    sqlite3_stmt *s = NULL;
    int64_t most = alone ? QUEUE_CRASHES : QUEUE_ALONE;
    int rc = batch ? db_query(q->db, err, &s,
                              "SELECT " COLUMNS " FROM job WHERE state = 0 AND batch = ? AND "
                              "crashes < ? ORDER BY turn, n LIMIT 1",
                              "si", batch, most)
                   : db_query(q->db, err, &s,
                              "SELECT " COLUMNS " FROM job WHERE state = 0 AND crashes < ? "
                              "ORDER BY crashes >= 3, turn, n LIMIT 1",
                              "i", most);
    rc = rc < 0 ? rc : db_next(q->db, s, err);
    if (rc == 1 && read_row(s, j, err) < 0)
        rc = err->code;
    db_done(s);
    return rc;
}

int queue_claim(struct queue *q, const char *batch, bool alone, struct queue_job *j,
                struct err *err)
{
    int rc = db_begin(q->db, err), found = 0;
    if (rc < 0)
        return rc;
    found = next(q, batch, alone, j, err);
    rc = found < 0 ? found : 0;
    if (found == 1)
        rc = db_do(q->db, err,
                   "UPDATE job SET state = 1, worker = ?, attempts = attempts + 1 WHERE n = ?",
                   "ii", q->worker, j->n);
    rc = db_end(q->db, rc, err);
    if (rc < 0 && found == 1)
        queue_job_release(j);
    if (rc < 0 || found != 1)
        return rc;
    j->state = QUEUE_RUNNING;
    j->attempts++;
    return 1;
}

/* Whether the last statement changed a job that is ours. */
static int ours(struct queue *q, int rc)
{
    return rc < 0 ? rc : db_changes(q->db) == 0;
}

int queue_done(struct queue *q, const struct queue_job *j, const struct queue_made *made,
               struct err *err)
{
    return ours(q, db_do(q->db, err,
                         "UPDATE job SET state = 2, worker = NULL, sha256 = ?, bytes = ?, seconds "
                         "= ?, finished = ?, reason = NULL WHERE n = ? AND worker = ?",
                         "sidiii", made->sha256, made->bytes, made->seconds, today(), j->n,
                         q->worker));
}

int queue_fail(struct queue *q, const struct queue_job *j, const char *reason, struct err *err)
{
    return ours(q, db_do(q->db, err,
                         "UPDATE job SET state = 3, worker = NULL, reason = ?, finished = ? WHERE "
                         "n = ? AND worker = ?",
                         "siii", reason, today(), j->n, q->worker));
}

int queue_give_back(struct queue *q, const struct queue_job *j, struct err *err)
{
    return ours(q, db_do(q->db, err,
                         "UPDATE job SET state = 0, worker = NULL, attempts = attempts - 1 WHERE n "
                         "= ? AND worker = ?",
                         "ii", j->n, q->worker));
}

int queue_count_alike(struct queue *q, const struct queue_job *j, int *n, struct err *err)
{
    int64_t count = 0;
    int rc = db_int(q->db, err, &count, 0,
                    "SELECT count(*) FROM job WHERE batch = ? AND adapters = ? AND state <= 1",
                    "ss", j->batch, j->adapters);
    *n = (int)count;
    return rc;
}

int queue_choose(struct queue *q, const struct queue_job *j, bool fold, struct err *err)
{
    return db_do(q->db, err,
                 "UPDATE job SET fold = ? WHERE batch = ? AND adapters = ? AND fold IS NULL AND "
                 "state <= 1",
                 "iss", (int64_t)fold, j->batch, j->adapters);
}

/* ---- looking after --------------------------------------------------------------------------- */

int queue_counts(struct queue *q, int64_t count[QUEUE_STATES], struct err *err)
{
    sqlite3_stmt *s = NULL;
    int rc = db_query(q->db, err, &s, "SELECT state, count(*) FROM job GROUP BY state", "");
    memset(count, 0, QUEUE_STATES * sizeof *count);
    while (rc == 0 && (rc = db_next(q->db, s, err)) == 1) {
        int state = sqlite3_column_int(s, 0);
        if (state >= 0 && state < QUEUE_STATES)
            count[state] = sqlite3_column_int64(s, 1);
        rc = 0;
    }
    db_done(s);
    return rc;
}

/* The rows of a query to each. */
static int call_each(struct queue *q, int rc, sqlite3_stmt *s,
                     int (*each)(void *user, const struct queue_job *j), void *user,
                     struct err *err)
{
    struct queue_job j;
    while (rc == 0 && (rc = db_next(q->db, s, err)) == 1) {
        rc = read_row(s, &j, err);
        if (rc < 0)
            break;
        rc = each(user, &j);
        queue_job_release(&j);
    }
    db_done(s);
    return rc;
}

int queue_each(struct queue *q, int state, int (*each)(void *user, const struct queue_job *j),
               void *user, struct err *err)
{
    sqlite3_stmt *s = NULL;
    int rc =
        db_query(q->db, err, &s, "SELECT " COLUMNS " FROM job WHERE ? < 0 OR state = ? ORDER BY n",
                 "ii", (int64_t)state, (int64_t)state);
    return call_each(q, rc, s, each, user, err);
}

int queue_soon(struct queue *q, const char *batch, int n,
               int (*each)(void *user, const struct queue_job *j), void *user, struct err *err)
{
    sqlite3_stmt *s = NULL;
    int rc = db_query(q->db, err, &s,
                      "SELECT " COLUMNS
                      " FROM job WHERE state = 0 AND batch = ? ORDER BY turn, n LIMIT ?",
                      "si", batch, (int64_t)n);
    return call_each(q, rc, s, each, user, err);
}

int queue_get(struct queue *q, const char *id, struct queue_job *j, struct err *err)
{
    sqlite3_stmt *s = NULL;
    int rc = db_query(q->db, err, &s, "SELECT " COLUMNS " FROM job WHERE id = ?", "s", id);
    rc = rc < 0 ? rc : db_next(q->db, s, err);
    if (rc == 1 && read_row(s, j, err) < 0)
        rc = err->code;
    db_done(s);
    return rc < 0 ? rc : rc == 0;
}

int queue_retry(struct queue *q, const char *id, int64_t *n, struct err *err)
{
    int rc = db_do(q->db, err,
                   "UPDATE job SET state = 0, crashes = 0, reason = NULL, finished = NULL WHERE "
                   "state IN (3, 4) AND (? IS NULL OR id = ?)",
                   "ss", id, id);
    *n = rc == 0 ? db_changes(q->db) : 0;
    return rc;
}

int queue_cancel(struct queue *q, const char *id, int64_t *n, struct err *err)
{
    int rc = db_do(q->db, err,
                   "UPDATE job SET state = 4 WHERE state IN (0, 3) AND (? IS NULL OR id = ?)", "ss",
                   id, id);
    *n = rc == 0 ? db_changes(q->db) : 0;
    return rc;
}

int queue_forget(struct queue *q, const char *id, struct err *err)
{
    return db_do(q->db, err, "DELETE FROM job WHERE id = ? AND state <> 1", "s", id);
}

int queue_copy(struct queue *q, const struct queue_job *j, struct err *err)
{
    int64_t state = j->state == QUEUE_RUNNING ? QUEUE_WAITING : (int64_t)j->state;
    int rc = insert(q, j, err);
    return rc < 0
               ? rc
               : db_do(q->db, err,
                       "UPDATE job SET state = ?, attempts = ?, crashes = ?, fold = ?, reason = ?, "
                       "sha256 = nullif(?, ''), bytes = ?, seconds = ?, finished = nullif(?, 0) "
                       "WHERE id = ?",
                       "iiidssidis", state, (int64_t)j->attempts, (int64_t)j->crashes,
                       j->fold < 0 ? (double)NAN : j->fold, j->reason, j->sha256, j->bytes,
                       j->seconds, j->finished, j->id);
}
