/* weft batch: jobs of a file become pictures in a folder, whatever happens meanwhile. */
#include "auto.h"
#include "enqueue.h"
#include "gallery.h"
#include "job_name.h"
#include "shelf.h"
#include "workshop.h"

#include "unet/file.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct batch {
    struct making m;
    const char *out, *name, *format, *shard, *queue, *until, *memory, *x, *y;
    int lease, hand;
    bool beside, keep_going, check, later, sheet, json;

    const char **file; /* [n_file] owned array of borrowed texts */
    int n_file;
    struct queue *q;
    struct workshop w;
    int64_t total;  /* jobs of the queue */
    int64_t before; /* that had ended before */
    bool bar;
    double shown, written;
    struct err trouble; /* of writing the index meanwhile */
};

static void make_options(struct option *o, void *target)
{
    struct batch *b = target;
    const struct option own[] = {
        AUTO_OPTIONS(&b->m),
        {.kind = OPTION_GROUP, .name = "", .help = "Which jobs, and where to:"},
        {"output", 'o', OPTION_TEXT, &b->out, "DIR",
         "the folder of pictures, with its queue weft-jobs.db; the same\ncommand again goes on "
         "where it was left",
         0, 0, NULL},
        {"name", 0, OPTION_TEXT, &b->name, "TEMPLATE",
         "of files: {n} {id} {seed} {prompt} {adapters} {compose}, also\nfolders; default {n}-{id}",
         0, 0, NULL},
        {"format", 0, OPTION_TEXT, &b->format, "NAME",
         "jsonl, csv or text (a prompt a line, as A1111's prompts from\nfile); default: by its "
         "ending or beginning",
         0, 0, NULL},
        {"x", 'x', OPTION_TEXT, &b->x, "KEY=A,B,…",
         "every job with each of these values, as weft compare's columns", 0, 0, NULL},
        {"y", 'y', OPTION_TEXT, &b->y, "KEY=A,B,…", "and with each of these", 0, 0, NULL},
        {"keep-going", 0, OPTION_FLAG, &b->keep_going, NULL,
         "take in the good lines where some are wrong", 0, 0, NULL},
        {"check", 0, OPTION_FLAG, &b->check, NULL,
         "only say what is wrong with the lines, and how many jobs they are", 0, 0, NULL},
        {"later", 0, OPTION_FLAG, &b->later, NULL,
         "only take the jobs in; weft batch -o DIR makes them", 0, 0, NULL},
        {"shard", 0, OPTION_TEXT, &b->shard, "I/N",
         "only the jobs of the I-th of N parts, by their ids; default:\nSlurm's array variables, "
         "where they are set",
         0, 0, NULL},
        {"queue", 0, OPTION_TEXT, &b->queue, "FILE",
         "the queue elsewhere than in DIR, which may lie on a network", 0, 0, NULL},
        {.kind = OPTION_GROUP, .name = "", .help = "How they are made:"},
        {"until", 0, OPTION_TEXT, &b->until, "HH:MM[:SS]",
         "begin none that would not be done by then; the others wait", 0, 0, NULL},
        {"adapter-memory", 0, OPTION_TEXT, &b->memory, "BYTES",
         "for adapters that were used of late, such as 500M or 4G;\ndefault: a quarter of what is "
         "free",
         0, 0, NULL},
        {"hand", 0, OPTION_INT, &b->hand, "N",
         "pictures in the making at once, at most; default: as many as\nfill a batch", 1,
         MAKING_HAND, NULL},
        {"beside", 0, OPTION_FLAG, &b->beside, NULL,
         "never fold adapters into the weights where that is quicker (-v\ntells): pixels are those "
         "of weft render without --fold",
         0, 0, NULL},
        {"lease", 0, OPTION_INT, &b->lease, "SECONDS",
         "so long without a sign of life, and others take what this one\nhas in hand; default 600",
         2, 1000000, NULL},
        {.kind = OPTION_GROUP, .name = "", .help = "What comes out:"},
        {"sheet", 0, OPTION_FLAG, &b->sheet, NULL, "all pictures on sheet.png too", 0, 0, NULL},
        {"json", 0, OPTION_FLAG, &b->json, NULL, "one JSON object an event on stdout", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(making_options(o, &b->m), own, sizeof own);
}

/* ---- settings -------------------------------------------------------------------------------- */

/* "500M" */
static int read_bytes(const char *text, size_t *out, struct err *err)
{
    static const char unit[] = "kMGT";
    char *end = NULL;
    double v = text ? strtod(text, &end) : (double)cli_memory_free() / 4;
    const char *u = text && *end && !end[1] ? strchr(unit, *end == 'K' ? 'k' : *end) : NULL;
    if (text && (end == text || (*end && !u) || !(v >= 0) || !isfinite(v)))
        return err_set(err, ERR_ARG,
                       "--adapter-memory takes a size such as 500M or 4G, not '%.40s'", text);
    for (const char *p = unit; u && p <= u; p++)
        v *= 1000;
    *out = v > 1e18 ? (size_t)1 << 60 : (size_t)v;
    return 0;
}

/* The next time that it is HH:MM here. */
static int read_until(const char *text, double *out, struct err *err)
{
    int h = -1, m = -1, sec = 0, n = 0;
    struct tm tm;
    time_t now = time(NULL);
    if (!text)
        return 0;
    if (sscanf(text, "%2d:%2d%n:%2d%n", &h, &m, &n, &sec, &n) < 2 || text[n] || h < 0 || h > 23 ||
        m < 0 || m > 59 || sec < 0 || sec > 59)
        return err_set(err, ERR_ARG, "--until takes a time of day such as 07:00, not '%.40s'",
                       text);
    localtime_r(&now, &tm);
    tm.tm_hour = h;
    tm.tm_min = m;
    tm.tm_sec = sec;
    tm.tm_isdst = -1;
    if (mktime(&tm) <= now) {
        tm.tm_mday++;
        tm.tm_isdst = -1;
    }
    *out = (double)mktime(&tm);
    return 0;
}

/* --shard, or what Slurm says of an array. */
static int read_shard(const char *text, int *i, int *n, struct err *err)
{
    const char *id = getenv("SLURM_ARRAY_TASK_ID"), *count = getenv("SLURM_ARRAY_TASK_COUNT");
    const char *min = getenv("SLURM_ARRAY_TASK_MIN"), *step = getenv("SLURM_ARRAY_TASK_STEP");
    int end = 0;
    *i = *n = 1;
    if (text &&
        (sscanf(text, "%d/%d%n", i, n, &end) != 2 || text[end] || *n < 1 || *i < 1 || *i > *n))
        return err_set(err, ERR_ARG, "--shard takes I/N such as 2/8, not '%.40s'", text);
    if (text || !id || !count)
        return 0;
    int by = step ? atoi(step) : 1;
    *n = atoi(count);
    *i = (atoi(id) - (min ? atoi(min) : 0)) / (by > 0 ? by : 1) + 1;
    if (*n >= 1 && *i >= 1 && *i <= *n)
        return 0;
    return err_set(
        err, ERR_ARG,
        "SLURM_ARRAY_TASK_ID %s, _MIN %s and _COUNT %s make no shard; --shard I/N says it", id,
        min ? min : "0", count);
}

/* A queue keeps to the shard that it began with. */
static int keep_shard(struct batch *b, int i, int n, struct err *err)
{
    char now[40], *was = NULL;
    snprintf(now, sizeof now, "%d/%d", i, n);
    int rc = queue_note(b->q, "shard", &was, err);
    if (rc == 0 && was && strcmp(was, now))
        rc = err_set(err, ERR_ARG, "%s: its queue is shard %s, not %s; each shard has its own -o",
                     b->out, was, now);
    if (rc == 0 && !was && !b->check)
        rc = queue_set_note(b->q, "shard", now, err);
    free(was);
    return rc;
}

/* ---- what happens ---------------------------------------------------------------------------- */

static void event(const struct batch *b, json_t *j)
{
    if (b->json) {
        json_line(j);
        fflush(stdout);
    } else {
        json_decref(j);
    }
}

static void clear_bar(const struct batch *b)
{
    if (b->bar)
        fputs("\r\033[K", stderr);
}

/* "kite, neon, 3 more" of what is in hand. */
static void names_in_hand(const struct batch *b, char *text, size_t size)
{
    int n = 0;
    *text = 0;
    for (int i = 0; i <= MAKING_HAND; i++)
        for (int k = 0; b->w.hand[i].state == HAND_BUSY && k < b->w.hand[i].p.n_use; k++) {
            const char *name = b->w.hand[i].p.use[k].adapter->name;
            if (n++ < 3 && !strstr(text, name))
                snprintf(text + strlen(text), size - strlen(text), "%s%.24s", *text ? ", " : "",
                         name);
        }
    if (n > 3)
        snprintf(text + strlen(text), size - strlen(text), ", %d more", n - 3);
}

static void show_bar(struct batch *b)
{
    char names[160], left[40] = "";
    double now = cli_now(), since = now - b->w.began;
    int64_t made = b->w.done + b->w.failed, ended = b->before + made;
    if (!b->bar || now - b->shown < .2)
        return;
    b->shown = now;
    names_in_hand(b, names, sizeof names);
    if (made) {
        double s = since / (double)made * (double)(b->total - ended);
        snprintf(left, sizeof left,
                 s < 120    ? "%.0f s left"
                 : s < 7200 ? "%.0f min left"
                            : "%.1f h left",
                 s < 120    ? s
                 : s < 7200 ? s / 60
                            : s / 3600);
    }
    fprintf(stderr, "\r\033[K%lld of %lld  %.1f a minute  %s  %s", (long long)ended,
            (long long)b->total, 60 * (double)made / since, left, shown(names));
    fflush(stderr);
}

/* The index and the page follow, now and then. */
static void write_index(struct batch *b, bool now)
{
    if (!now && cli_now() - b->written < 30)
        return;
    gallery_write(b->out, b->q, b->n_file ? b->file[0] : NULL, &b->trouble);
    b->written = cli_now();
}

static json_t *names_json(const struct hand *h)
{
    json_t *list = json_array();
    for (int i = 0; i < h->p.n_use; i++)
        json_array_append_new(list, json_text(h->p.use[i].adapter->name));
    return list;
}

static void tell(void *user, enum workshop_event what, const struct hand *h, const char *reason)
{
    struct batch *b = user;
    switch (what) {
    case WORKSHOP_BEGUN:
        event(b, json_pack("{s:s, s:s, s:o}", "event", "begun", "id", h->job.id, "adapters",
                           names_json(h)));
        break;
    case WORKSHOP_DONE:
        event(b, json_pack("{s:s, s:s, s:I, s:o, s:I, s:f, s:s, s:i, s:b, s:o}", "event", "done",
                           "id", h->job.id, "n", (json_int_t)h->job.n, "file",
                           json_text(h->job.file), "seed", (json_int_t)h->m.r.seed, "seconds",
                           h->job.seconds, "sha256", h->job.sha256, "passes", h->m.cost.passes,
                           "fold", (int)h->m.r.fold, "adapters", names_json(h)));
        if (!b->json && (!b->bar || b->m.verbose)) {
            clear_bar(b);
            printf("%s  seed %llu  %.1f s\n", shown(h->job.file), (unsigned long long)h->m.r.seed,
                   h->job.seconds);
            fflush(stdout);
        }
        break;
    case WORKSHOP_FAILED:
        clear_bar(b);
        fprintf(stderr, "weft: job %s: %s\n", h->job.id, reason);
        event(b, json_pack("{s:s, s:s, s:s, s:o}", "event", "failed", "id", h->job.id, "source",
                           h->job.source, "reason", json_text(reason)));
        break;
    case WORKSHOP_STEP: show_bar(b); write_index(b, false);
    }
}

static void bad_line(void *user, const char *file, int line, const char *why)
{
    struct batch *b = user;
    fprintf(stderr, "weft: %s:%d: %s\n", shown(file), line, why);
    event(b, json_pack("{s:s, s:o, s:i, s:o}", "event", "bad", "file", json_text(file), "line",
                       line, "reason", json_text(why)));
}

/* ---- the parts ------------------------------------------------------------------------------- */

static int parse(struct batch *b, const struct option *o, int argc, char **argv, struct err *err)
{
    b->lease = 600;
    b->file = calloc((size_t)argc + 1, sizeof *b->file);
    int rc = b->file ? options_parse(o, argc, argv, b->file, &b->n_file, err) : err_nomem(err, 64);
    if (rc == 0 && !b->out)
        rc = err_set(err, ERR_ARG, "where to? -o DIR");
    b->name = b->name ? b->name : "{n}-{id}";
    rc = rc < 0 ? rc : job_name_check(b->name, err);
    b->w = (struct workshop){.base = &b->m,
                             .folder = b->out,
                             .lease = b->lease,
                             .most = b->hand,
                             .beside = b->beside,
                             .tell = tell,
                             .user = b};
    rc = rc < 0 ? rc : read_bytes(b->memory, &b->w.adapter_memory, err);
    rc = rc < 0 ? rc : read_until(b->until, &b->w.until, err);
    return rc < 0 ? rc : making_open_repo(&b->m, err);
}

static int open_queue(struct batch *b, struct err *err)
{
    char *path = b->queue ? strdup(b->queue) : file_join(b->out, "weft-jobs.db");
    int rc = path ? 0 : err_nomem(err, 64);
    bool there = path && file_exists(path);
    if (rc == 0 && !b->n_file && !there)
        rc = err_set(err, ERR_ARG, "no file of jobs, and %s has no queue to go on with", b->out);
    if (rc == 0 && !b->check)
        rc = file_make_folders(b->out, err);
    rc = rc < 0 ? rc : queue_open(&b->q, there || !b->check ? path : ":memory:", true, err);
    free(path);
    b->w.q = b->q;
    return rc;
}

/* All files, whole, before the first job is taken in. */
static int take_in(struct batch *b, const struct option *o, int *bad, struct err *err)
{
    struct enqueue e = {.base = &b->m,
                        .options = o,
                        .q = b->q,
                        .folder = b->out,
                        .name = b->name,
                        .x = b->x,
                        .y = b->y,
                        .tell = bad_line,
                        .user = b};
    int rc = read_shard(b->shard, &e.shard, &e.shards, err);
    rc = rc < 0 ? rc : keep_shard(b, e.shard, e.shards, err);
    if (rc == 0 && b->n_file)
        rc = enqueue_read(&e, b->file, b->n_file, b->format, err);
    int good = e.n_new + e.n_known + e.n_others;
    if (rc == 0 && e.bad && !b->keep_going)
        rc = err_set(err, ERR_FORMAT,
                     "%d of %d jobs are wrong (above): none was taken in; --keep-going takes the "
                     "others",
                     e.bad, good + e.bad);
    if (rc == 0 && !b->check)
        rc = enqueue_commit(&e, err);
    if (rc == 0) {
        event(b, json_pack("{s:s, s:i, s:i, s:i, s:i, s:i}", "event", "accepted", "new", e.n_new,
                           "known", e.n_known, "there", e.n_made, "of_other_shards", e.n_others,
                           "bad", e.bad));
        if (!b->json && b->n_file && (b->check || b->m.verbose))
            fprintf(stderr, "%d new jobs, %d known, %d of other shards, %d wrong\n", e.n_new,
                    e.n_known, e.n_others, e.bad);
    }
    *bad = e.bad;
    enqueue_release(&e);
    return rc;
}

static int finish(struct batch *b, int bad, struct err *err)
{
    int64_t count[QUEUE_STATES];
    int sheets = 0;
    double seconds = cli_now() - b->w.began;
    int rc = queue_counts(b->q, count, err);
    rc = rc < 0 ? rc : gallery_write(b->out, b->q, b->n_file ? b->file[0] : NULL, err);
    if (rc == 0 && b->sheet)
        rc = gallery_sheet(b->out, b->q, 0, &sheets, err);
    if (rc < 0)
        return rc;
    struct pool_facts pool = b->w.pool ? pool_facts(b->w.pool) : (struct pool_facts){0};
    event(b, json_pack("{s:s, s:i, s:i, s:I, s:I, s:I, s:I, s:f, s:i, s:i, s:I}", "event", "end",
                       "made", b->w.done - b->w.here, "there", b->w.here, "done",
                       (json_int_t)count[QUEUE_DONE], "failed", (json_int_t)count[QUEUE_FAILED],
                       "waiting", (json_int_t)(count[QUEUE_WAITING] + count[QUEUE_RUNNING]),
                       "cancelled", (json_int_t)count[QUEUE_CANCELLED], "seconds", seconds,
                       "adapters_loaded", pool.loaded, "adapters_found", pool.found,
                       "adapter_bytes_most", (json_int_t)pool.most));
    if (!b->json)
        printf("%s  %lld pictures, %d made now in %.1f s (%.1f a minute)%s%lld wait, %lld failed\n",
               shown(b->out), (long long)count[QUEUE_DONE], b->w.done, seconds,
               60 * b->w.done / seconds, b->w.late ? ", it is late: " : ", ",
               (long long)(count[QUEUE_WAITING] + count[QUEUE_RUNNING]),
               (long long)count[QUEUE_FAILED]);
    if (count[QUEUE_FAILED])
        return err_set(err, ERR_FORMAT,
                       "%lld jobs failed; weft jobs list %s --state failed tells why, weft jobs "
                       "retry %s tries them again",
                       (long long)count[QUEUE_FAILED], b->out, b->out);
    return bad ? err_set(err, ERR_FORMAT, "%d lines made no job", bad) : 0;
}

static int make_all(struct batch *b, int bad, struct err *err)
{
    int64_t count[QUEUE_STATES];
    int rc = queue_counts(b->q, count, err);
    for (int i = 0; i < QUEUE_STATES; i++)
        b->total += count[i];
    b->before = b->total - count[QUEUE_WAITING] - count[QUEUE_RUNNING];
    b->bar = isatty(STDERR_FILENO);
    b->written = cli_now();
    b->w.began = cli_now();
    rc = rc < 0 || b->later ? rc : workshop_run(&b->w, err);
    clear_bar(b);
    if (rc == ERR_STOPPED || rc == ERR_IO) { /* what there is can be looked at */
        struct err none;
        gallery_write(b->out, b->q, b->n_file ? b->file[0] : NULL, &none);
    }
    return rc < 0 ? rc : finish(b, bad, err);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct batch b = {.n_file = 0};
    struct option o[OPTIONS_MAX];
    struct err err;
    int bad = 0;

    (void)self;
    err_clear(&err);
    cli_catch_stop();
    make_options(o, &b);
    int rc = parse(&b, o, argc, argv, &err);
    rc = rc < 0 ? rc : open_queue(&b, &err);
    rc = rc < 0 ? rc : take_in(&b, o, &bad, &err);
    if (rc == 0 && !b.check)
        rc = make_all(&b, bad, &err);
    else if (rc == 0 && bad)
        rc = err_set(&err, ERR_FORMAT, "%d lines make no job", bad);
    workshop_release(&b.w);
    queue_close(b.q);
    making_release(&b.m);
    free(b.file);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

const struct command command_batch = {
    .name = "batch",
    .usage = "weft batch FILE... -o DIR [options]",
    .about = "many pictures, as a file of jobs asks for them; goes on where it was stopped",
    .run = run,
    .options = make_options,
    .size = sizeof(struct batch),
    .more =
        "A job is a line: {\"prompt\": \"a red kite\", \"adapter\": [\"kite:0.8\"], \"seed\": 7, "
        "\"repeat\": 4,\n\"grid\": {\"cfg\": [3, 5]}, \"id\": \"kites\"}; names are those of weft "
        "render's options. Or a table with a\nfirst line of names (.csv), or a prompt a line "
        "(.txt). - is standard input. Options given here\nlie below what a line says. All lines "
        "are looked through before any is taken in.\n\nDIR has index.jsonl, a line a picture, and "
        "index.html to look at. Stopped or killed, the same\ncommand goes on; several at once "
        "share the work. weft jobs looks after the queue.",
    .help = making_help,
};
