/* store/queue.h: who gets which job, and what becomes of those whose program is gone. */
#include "shell.h"
#include "store/queue.h"
#include "unet/file.h"

#include <sqlite3.h>
#include <sys/wait.h>
#include <time.h>

struct fixture {
    struct shell s;
    struct queue *q;
};

static const char *path_of(const struct fixture *f)
{
    return in(&f->s, "weft-jobs.db");
}

static struct queue *open_queue(const struct fixture *f, int lease)
{
    struct queue *q;
    struct err err;
    cr_assert_eq(queue_open(&q, path_of(f), true, &err), 0, "%s", err.msg);
    if (lease)
        cr_assert_eq(queue_work(q, lease, &err), 0, "%s", err.msg);
    return q;
}

/* A job n of a batch, with its adapters. */
static int add(struct queue *q, int n, const char *batch, const char *adapters, struct err *err)
{
    char id[20], file[20];
    snprintf(id, sizeof id, "job%d", n);
    snprintf(file, sizeof file, "%d.png", n);
    const struct queue_job j = {.n = n,
                                .id = id,
                                .asked = id,
                                .source = (char *)"jobs:1",
                                .settings = (char *)"{}",
                                .batch = (char *)batch,
                                .adapters = (char *)adapters,
                                .file = file};
    return queue_add(q, &j, NULL, err);
}

static void open_all(struct fixture *f, int n)
{
    struct err err;
    shell_open(&f->s);
    f->q = open_queue(f, 0);
    cr_assert_eq(queue_begin(f->q, &err), 0);
    for (int i = 1; i <= n; i++)
        cr_assert_eq(add(f->q, i, "m|64x64", "", &err), 0, "%s", err.msg);
    cr_assert_eq(queue_end(f->q, 0, &err), 0);
}

static void close_all(struct fixture *f)
{
    queue_close(f->q);
    shell_close(&f->s);
}

/* The place of the next job, 0: none. */
static int64_t claim(struct queue *q, const char *batch, bool alone, struct queue_job *j)
{
    struct err err;
    int rc = queue_claim(q, batch, alone, j, &err);
    cr_assert_geq(rc, 0, "%s", err.msg);
    return rc ? j->n : 0;
}

static int64_t count(struct queue *q, enum queue_state state)
{
    int64_t n[QUEUE_STATES];
    struct err err;
    cr_assert_eq(queue_counts(q, n, &err), 0, "%s", err.msg);
    return n[state];
}

static void sql(const struct fixture *f, const char *text)
{
    sqlite3 *db;
    char *why = NULL;
    cr_assert_eq(sqlite3_open(path_of(f), &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 5000);
    cr_assert_eq(sqlite3_exec(db, text, NULL, NULL, &why), SQLITE_OK, "%s", why);
    sqlite3_close(db);
}

Test(queue, gives_each_job_once_and_like_ones_together)
{
    struct fixture f;
    struct err err;
    struct queue_job j;
    static const int want[] = {1, 3, 5, 2, 4};
    open_all(&f, 0);
    for (int i = 1; i <= 5; i++)
        cr_assert_eq(add(f.q, i, "m", i % 2 ? "a" : "b", &err), 0, "%s", err.msg);
    cr_assert_eq(add(f.q, 6, "other", "a", &err), 0);
    struct queue *one = open_queue(&f, 60), *two = open_queue(&f, 60);
    for (int i = 0; i < 5; i++) {
        int64_t n = claim(i % 2 ? two : one, "m", false, &j);
        cr_expect_eq(n, want[i], "%lld", (long long)n);
        cr_expect(j.state == QUEUE_RUNNING && j.attempts == 1 && j.fold == -1);
        queue_job_release(&j);
    }
    cr_expect_eq(claim(one, "m", true, &j), 0);
    cr_expect_eq(claim(one, NULL, false, &j), 6);
    queue_job_release(&j);
    cr_expect_eq(count(one, QUEUE_RUNNING), 6);
    queue_close(one); /* what it had waits again, and was not tried */
    cr_expect_eq(count(two, QUEUE_WAITING), 4);
    cr_expect_eq(claim(two, NULL, false, &j), 1);
    cr_expect(j.attempts == 1 && j.crashes == 0);
    queue_job_release(&j);
    queue_close(two);
    close_all(&f);
}

Test(queue, remembers_what_became_of_a_job)
{
    struct fixture f;
    struct err err;
    struct queue_job j;
    const struct queue_made made = {
        "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef", 99, 1.5};
    int64_t n;
    int alike;
    open_all(&f, 3);
    struct queue *q = open_queue(&f, 60);
    claim(q, NULL, false, &j);
    cr_expect_eq(queue_count_alike(q, &j, &alike, &err), 0);
    cr_expect_eq(alike, 3);
    cr_expect_eq(queue_choose(q, &j, true, &err), 0);
    cr_expect_eq(queue_choose(q, &j, false, &err), 0); /* too late */
    cr_expect_eq(queue_done(q, &j, &made, &err), 0);
    cr_expect_eq(queue_done(q, &j, &made, &err), 1); /* no longer ours */
    queue_job_release(&j);
    claim(q, NULL, false, &j);
    cr_expect_eq(j.fold, 1);
    cr_expect_eq(queue_fail(q, &j, "no such thing", &err), 0);
    queue_job_release(&j);
    claim(q, NULL, false, &j);
    cr_expect_eq(queue_give_back(q, &j, &err), 0);
    cr_expect_eq(queue_give_back(q, &j, &err), 1);
    queue_job_release(&j);
    cr_assert_eq(queue_get(q, "job1", &j, &err), 0);
    cr_expect(j.state == QUEUE_DONE && j.bytes == 99 && j.seconds == 1.5 &&
              j.finished > 1600000000);
    cr_expect_str_eq(j.sha256, made.sha256);
    queue_job_release(&j);
    cr_assert_eq(queue_get(q, "job2", &j, &err), 0);
    cr_expect_str_eq(j.reason, "no such thing");
    queue_job_release(&j);
    cr_expect_eq(queue_get(q, "job9", &j, &err), 1);
    cr_expect(count(q, QUEUE_DONE) == 1 && count(q, QUEUE_FAILED) == 1);
    cr_expect_eq(queue_cancel(q, NULL, &n, &err), 0);
    cr_expect_eq(n, 2); /* done ones stay */
    cr_expect_eq(queue_retry(q, "job3", &n, &err), 0);
    cr_expect_eq(n, 1);
    cr_expect_eq(queue_retry(q, "job1", &n, &err), 0);
    cr_expect_eq(n, 0);
    cr_expect_eq(claim(q, NULL, false, &j), 3);
    queue_job_release(&j);
    queue_close(q);
    close_all(&f);
}

Test(queue, takes_in_all_or_nothing)
{
    struct fixture f;
    struct err err;
    char *note;
    open_all(&f, 1);
    cr_assert_eq(queue_begin(f.q, &err), 0);
    cr_assert_eq(add(f.q, 2, "m", "", &err), 0);
    struct queue_job twin = {.n = 3,
                             .id = (char *)"x",
                             .asked = (char *)"x",
                             .source = (char *)"",
                             .settings = (char *)"{}",
                             .batch = (char *)"m",
                             .adapters = (char *)"",
                             .file = (char *)"1.png"};
    cr_expect_eq(queue_end(f.q, queue_add(f.q, &twin, NULL, &err), &err), ERR_ARG);
    cr_expect(strstr(err.msg, "job 1 has that file"), "%s", err.msg);
    cr_expect_eq(count(f.q, QUEUE_WAITING), 1);
    cr_expect_eq(queue_note(f.q, "shard", &note, &err), 0);
    cr_expect_null(note);
    cr_expect_eq(queue_set_note(f.q, "shard", "1/2", &err), 0);
    cr_expect_eq(queue_note(f.q, "shard", &note, &err), 0);
    cr_expect_str_eq(note, "1/2");
    free(note);
    close_all(&f);
}

/* Claims the next job in another process, which then ends or stops without a word. */
static pid_t claim_elsewhere(const struct fixture *f, int lease, bool alone, int sig)
{
    pid_t pid = fork();
    if (pid == 0) {
        struct queue *q;
        struct queue_job j;
        struct err err;
        bool ok = queue_open(&q, path_of(f), true, &err) == 0 && queue_work(q, lease, &err) == 0 &&
                  queue_claim(q, NULL, alone, &j, &err) == 1;
        if (!ok)
            _exit(9);
        kill(getpid(), sig);
        ok = queue_beat(q, &err) == ERR_MISMATCH &&
             queue_done(q, &j, &(struct queue_made){.sha256 = ""}, &err) == 1;
        _exit(ok ? 0 : 8);
    }
    int status;
    cr_assert_eq(waitpid(pid, &status, WUNTRACED), pid);
    cr_assert(WIFSIGNALED(status) || WIFSTOPPED(status), "%x", (unsigned)status);
    return pid;
}

/* A job whose program is killed waits again at once; after some such ends it is made alone, after more it has failed. */
Test(queue, a_killed_program_gives_back_what_it_had)
{
    struct fixture f;
    struct err err;
    struct queue_job j;
    open_all(&f, 2);
    for (int i = 0; i < QUEUE_CRASHES; i++) {
        claim_elsewhere(&f, 600, i >= QUEUE_ALONE, SIGKILL);
        if (i == 0)
            sql(&f, "UPDATE job SET state = 4 WHERE n = 2");
        struct queue *q = open_queue(&f, 60);
        cr_assert_eq(queue_get(q, "job1", &j, &err), 0);
        cr_expect_eq(j.crashes, i + 1);
        cr_expect_eq(j.state, i + 1 < QUEUE_CRASHES ? QUEUE_WAITING : QUEUE_FAILED, "crash %d", i);
        queue_job_release(&j);
        if (i + 1 >= QUEUE_ALONE)
            cr_expect_eq(claim(q, NULL, false, &j), 0, "crash %d", i);
        queue_close(q);
    }
    cr_assert_eq(queue_get(f.q, "job1", &j, &err), 0);
    cr_expect(strstr(j.reason, "weft ended 6 times"), "%s", j.reason);
    queue_job_release(&j);
    close_all(&f);
}

/* One that is alive keeps its jobs as long as its lease, and then learns that it lost them. */
Test(queue, a_lease_runs_out)
{
    struct fixture f;
    struct err err;
    struct queue_job j;
    int status;
    open_all(&f, 1);
    pid_t pid = claim_elsewhere(&f, 2, false, SIGSTOP);
    struct queue *q = open_queue(&f, 60);
    cr_expect_eq(claim(q, NULL, false, &j), 0);
    sql(&f, "UPDATE worker SET seen = seen + 1000000"); /* clocks that are set do not matter */
    nanosleep(&(struct timespec){.tv_sec = 4}, NULL);
    cr_expect_eq(queue_beat(q, &err), 0, "%s", err.msg);
    cr_expect_eq(claim(q, NULL, false, &j), 1);
    kill(pid, SIGCONT);
    cr_assert_eq(waitpid(pid, &status, 0), pid);
    cr_expect_eq(status, 0, "%x", (unsigned)status);
    const struct queue_made made = {.sha256 = "ours"};
    cr_expect_eq(queue_done(q, &j, &made, &err), 0);
    queue_job_release(&j);
    queue_close(q);
    close_all(&f);
}

Test(queue, another_machine_is_kept_out_while_it_is_there)
{
    struct fixture f;
    struct queue *q;
    struct queue_job j;
    struct err err;
    open_all(&f, 1);
    pid_t pid = claim_elsewhere(&f, 600, false, SIGKILL);
    cr_assert(pid > 0);
    sql(&f, "UPDATE worker SET host = 'elsewhere', boot = 'another'");
    cr_assert_eq(queue_open(&q, path_of(&f), true, &err), 0);
    cr_expect_eq(queue_work(q, 60, &err), ERR_IO);
    cr_expect(strstr(err.msg, "another machine, elsewhere"), "%s", err.msg);
    sql(&f, "UPDATE worker SET seen = seen - 1000");
    cr_expect_eq(queue_work(q, 60, &err), 0, "%s", err.msg);
    cr_expect_eq(claim(q, NULL, false, &j), 1);
    queue_job_release(&j);
    queue_close(q);
    /* this machine started anew: nobody of before is there */
    claim_elsewhere(&f, 600, false, SIGKILL);
    sql(&f, "UPDATE worker SET boot = 'yesterday'");
    q = open_queue(&f, 60);
    cr_expect_eq(claim(q, NULL, false, &j), 1);
    queue_job_release(&j);
    queue_close(q);
    close_all(&f);
}

static int copy_to(void *user, const struct queue_job *j)
{
    struct err err;
    return queue_copy(user, j, &err);
}

Test(queue, jobs_go_over_to_another_queue)
{
    struct fixture f;
    struct err err;
    struct queue_job j;
    struct queue *to;
    const struct queue_made made = {.sha256 = "abc", .seconds = 2};
    open_all(&f, 3);
    struct queue *q = open_queue(&f, 60);
    claim(q, NULL, false, &j);
    cr_assert_eq(queue_done(q, &j, &made, &err), 0);
    queue_job_release(&j);
    claim(q, NULL, false, &j);
    queue_job_release(&j);
    cr_assert_eq(queue_open(&to, in(&f.s, "to.db"), true, &err), 0);
    const struct queue_job other = {.n = 1,
                                    .id = (char *)"first",
                                    .asked = (char *)"",
                                    .source = (char *)"",
                                    .settings = (char *)"{}",
                                    .batch = (char *)"m",
                                    .adapters = (char *)"",
                                    .file = (char *)"first.png"};
    cr_assert_eq(queue_add(to, &other, NULL, &err), 0);
    cr_assert_eq(queue_each(q, -1, copy_to, to, &err), 0);
    cr_assert_eq(queue_get(to, "job1", &j, &err), 0);
    cr_expect(j.state == QUEUE_DONE && j.n == 2 && !strcmp(j.sha256, "abc") && j.seconds == 2);
    queue_job_release(&j);
    cr_expect(count(to, QUEUE_WAITING) == 3 && count(to, QUEUE_RUNNING) == 0);
    queue_close(to);
    queue_close(q);
    close_all(&f);
}

/* Many that make it at the same moment: nobody is turned away. */
Test(queue, many_open_a_new_one_at_once)
{
    enum { MANY = 12, TIMES = 8 };
    struct shell s;
    shell_open(&s);
    for (int t = 0; t < TIMES; t++) {
        char name[20];
        pid_t pid[MANY];
        int status;
        snprintf(name, sizeof name, "%d.db", t);
        for (int i = 0; i < MANY; i++)
            if ((pid[i] = fork()) == 0) {
                struct queue *q;
                struct err err;
                bool ok =
                    queue_open(&q, in(&s, name), true, &err) == 0 && queue_work(q, 60, &err) == 0;
                if (!ok)
                    fprintf(stderr, "%s\n", err.msg);
                queue_close(ok ? q : NULL);
                _exit(!ok);
            }
        for (int i = 0; i < MANY; i++) {
            cr_assert_eq(waitpid(pid[i], &status, 0), pid[i]);
            cr_expect_eq(status, 0);
        }
    }
    shell_close(&s);
}

Test(queue, a_damaged_one_is_refused_by_name)
{
    struct fixture f;
    struct queue *q;
    struct err err;
    shell_open(&f.s);
    cr_assert_eq(file_replace(path_of(&f), "this is no database, but it is long enough", 42, &err),
                 0);
    cr_expect_eq(queue_open(&q, path_of(&f), true, &err), ERR_FORMAT);
    cr_expect(strstr(err.msg, "the queue's database is damaged") && strstr(err.msg, "weft-jobs.db"),
              "%s", err.msg);
    cr_expect_null(q);
    shell_close(&f.s);
}
