/* Read enqueue_read first. */
#include "enqueue.h"

#include "adapter_words.h"
#include "auto.h"
#include "axis.h"
#include "job_name.h"
#include "jobs_read.h"

#include "compose/compose.h"
#include "unet/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* A job that is to be taken in. */
struct fresh {
    struct queue_job job;
    bool made;
    char sha256[HASH_HEX];
    int64_t bytes;
};

/* The hash of an adapter's file that is in no repository, as long as the file stays the same. */
struct seen {
    char *path;
    int64_t size, mtime;
    char sha256[HASH_HEX];
};

/* ---- what is there already ------------------------------------------------------------------- */

/* Where files lie and how they are called makes no other picture: their hashes stay. */
static void forget_places(json_t *settings)
{
    static const char *const own[] = {"model", "init"}, *const of[] = {"ref",         "file",
                                                                       "name",        "id",
                                                                       "file_sha256", "mask"};
    static const char *const list[] = {"adapters", "embeddings"};
    json_t *item;
    size_t i;
    for (int k = 0; k < 2; k++) {
        json_object_del(settings, own[k]);
        json_array_foreach(json_object_get(settings, list[k]), i, item)
        {
            for (size_t n = 0; n < sizeof of / sizeof *of; n++)
                json_object_del(item, of[n]);
        }
    }
}

bool picture_is_of(const char *path, const char *settings, uint64_t *seed)
{
    struct image im = {0};
    struct image_texts t = {0};
    struct err none;
    bool same = false;
    if (file_kind(path) == 1 && image_read_png(path, &im, &t, &none) == 0) {
        const char *chunk = image_text_find(&t, "weft");
        json_t *is = chunk ? json_loads(chunk, 0, NULL) : NULL,
               *want = json_loads(settings, 0, NULL);
        const json_t *its = json_object_get(is, "seed");
        if (seed && json_is_integer(its)) {
            *seed = (uint64_t)json_integer_value(its);
            json_object_set_new(want, "seed", json_integer(json_integer_value(its)));
        }
        forget_places(is);
        forget_places(want);
        same = is && want && json_equal(is, want);
        json_decref(is);
        json_decref(want);
    }
    image_release(&im);
    image_texts_release(&t);
    return same;
}

/* A file of that name must be a picture of this job; then it is made. */
static int look_for_picture(struct enqueue *e, struct fresh *f, bool has_seed, struct err *err)
{
    char *path = file_join(e->folder, f->job.file);
    struct stat st;
    uint64_t seed = 0;
    int rc = path ? 0 : err_nomem(err, 64);
    if (rc == 0 && file_exists(path)) {
        f->made = picture_is_of(path, f->job.settings, has_seed ? NULL : &seed);
        rc = !f->made              ? err_set(err, ERR_ARG,
                                             "%s is there already, and is no picture of this job; --name or -o "
                                                          "say where else",
                                             path)
             : stat(path, &st) < 0 ? err_set(err, ERR_IO, "%s: gone", path)
                                   : hash_file(f->sha256, path, err);
        f->bytes = rc == 0 && f->made ? (int64_t)st.st_size : 0;
    }
    if (rc == 0 && f->made && !has_seed) { /* the seed that it was made with */
        json_t *j = json_loads(f->job.settings, 0, NULL);
        json_object_set_new(j, "seed", json_integer((json_int_t)seed));
        char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(17));
        json_decref(j);
        free(f->job.settings);
        f->job.settings = text;
        rc = text ? 0 : err_nomem(err, 64);
    }
    free(path);
    return rc;
}

/* ---- a whole request ------------------------------------------------------------------------- */

static int hash_adapter_file(struct enqueue *e, struct request_adapter *a, struct err *err)
{
    struct adapter_file *f = NULL;
    struct stat st = {.st_size = 0};
    stat(a->path, &st);
    int64_t mtime = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec;
    for (int i = 0; i < e->n_seen; i++)
        if (!strcmp(e->seen[i].path, a->path) && e->seen[i].size == st.st_size &&
            e->seen[i].mtime == mtime) {
            memcpy(a->sha256, e->seen[i].sha256, sizeof a->sha256);
            return 0;
        }
    int rc = adapter_file_open(&f, a->path, err);
    if (rc < 0)
        return rc;
    memcpy(a->sha256, f->data_sha256, sizeof a->sha256);
    adapter_file_close(f);
    struct seen *more = realloc(e->seen, (size_t)(e->n_seen + 1) * sizeof *more);
    char *path = strdup(a->path);
    e->seen = more ? more : e->seen;
    if (!more || !path) {
        free(path);
        return err_nomem(err, sizeof *more);
    }
    struct seen *s = &more[e->n_seen++];
    *s = (struct seen){.path = path, .size = st.st_size, .mtime = mtime};
    memcpy(s->sha256, a->sha256, sizeof s->sha256);
    return 0;
}

/* What each file is now, so that a picture is made of just that, or not at all. */
static int hash_files(struct enqueue *e, struct request *r, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < r->n_adapter && rc == 0; i++) {
        struct request_adapter *a = &r->adapter[i];
        rc = request_check_adapter(r, a, err);
        if (rc == 0 && a->row)
            memcpy(a->sha256, a->row->data_sha256, sizeof a->sha256);
        else if (rc == 0 && !*a->sha256)
            rc = hash_adapter_file(e, a, err);
        if (rc == 0 && a->mask && !*a->mask_sha256)
            rc = hash_file(a->mask_sha256, a->mask, err);
    }
    for (int i = 0; i < r->n_embedding && rc == 0; i++) {
        struct tensor_file *f = NULL;
        size_t size = 0;
        rc = *r->embedding[i].sha256 ? 0 : tensor_file_open(&f, r->embedding[i].path, err);
        if (f) {
            const void *data = tensor_file_data(f, &size);
            rc = hash_bytes(r->embedding[i].sha256, data, size, err);
        }
        tensor_file_close(f);
    }
    return rc;
}

/* Whether the strategy is one, and has what it needs on the model; whose words are which. */
static int check_strategy(struct making *m, struct making *base, struct err *err)
{
    struct compose *c = NULL;
    int rc = m->r.compose ? compose_open(&c, m->r.compose, err) : 0;
    if (rc == 0 && c && c->strategy->gates && m->r.n_adapter && !making_gates(base))
        rc = err_set(err, ERR_ARG, "%s needs gates that were learnt for this model: --gates FILE",
                     c->strategy->name);
    if (rc == 0 && c && c->strategy->words) /* as they are now */
        rc = adapter_words_read(m, err);
    compose_close(c);
    return rc;
}

/* Everything that can be known without the adapters' weights. */
static int settle(struct enqueue *e, struct making *m, struct err *err)
{
    struct picture p;
    int rc = making_settle(m, err);
    rc = rc < 0 ? rc : making_picture(m, &p, err);
    rc = rc < 0 ? rc : hash_files(e, &m->r, err);
    rc = rc < 0 ? rc : check_strategy(m, e->base, err);
    if (rc < 0)
        return rc;
    p.compose = NULL; /* what adapters add to the checks comes when they are read */
    p.fold = false;
    return generator_check(m->model, &p, err);
}

/* ---- one job --------------------------------------------------------------------------------- */

/* Options that are the program's, not a picture's. */
static int check_keys(const json_t *options, struct err *err)
{
    static const char *const all[] = {"gates", "home",      "threads", "device",
                                      "isa",   "precision", "verbose"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (json_object_get(options, all[i]))
            return err_set(err, ERR_ARG, "'%s' is for all jobs: weft batch takes it as an option",
                           all[i]);
    return 0;
}

/* A1111's names of samplers are understood as ours. */
static int translate_sampler(json_t *options, struct err *err)
{
    const char *name = json_string_value(json_object_get(options, "sampler"));
    if (!name || !name[strcspn(name, " ABCDEFGHIJKLMNOPQRSTUVWXYZ+")])
        return 0;
    size_t n = strlen(name);
    bool karras = n > 7 && !strcmp(name + n - 7, " Karras");
    const char *ours = request_sampler_of(name, karras ? n - 7 : n);
    if (!ours)
        return err_set(err, ERR_ARG, "no sampler '%.80s'; weft help render lists them", name);
    if (karras)
        json_object_set_new(options, "schedule", json_string("karras"));
    json_object_set_new(options, "sampler", json_string(ours));
    return 0;
}

/* What the command line lays below every job, as text: options up to those that are the program's. */
static void base_text(const struct option *o, FILE *f)
{
    for (; o->name && strcmp(o->help, "And:"); o++)
        switch (o->kind) {
        case OPTION_FLAG: fprintf(f, "%s=%d\n", o->name, *(bool *)o->to); break;
        case OPTION_TEXT:
            fprintf(f, "%s=%s\n", o->name,
                    *(const char **)o->to ? *(const char **)o->to : "(none)");
            break;
        case OPTION_INT:
        case OPTION_MAYBE: fprintf(f, "%s=%d\n", o->name, *(int *)o->to); break;
        case OPTION_U64:
            fprintf(f, "%s=%llu\n", o->name, (unsigned long long)*(uint64_t *)o->to);
            break;
        case OPTION_NUMBER: fprintf(f, "%s=%.17g\n", o->name, *(double *)o->to); break;
        case OPTION_SIZE:
            fprintf(f, "%s=%dx%d\n", o->name, ((int *)o->to)[0], ((int *)o->to)[1]);
            break;
        case OPTION_LIST:
            for (int i = 0; i < ((struct option_list *)o->to)->n; i++)
                fprintf(f, "%s=%s\n", o->name, ((struct option_list *)o->to)->item[i]);
            break;
        case OPTION_GROUP: break;
        }
}

/* A hash of all that a job asks for; cell: of its axes. */
static int hash_asked(const struct enqueue *e, const struct job *job, int cell, char sha[HASH_HEX],
                      struct err *err)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        return err_nomem(err, 64);
    base_text(e->options, f);
    fprintf(f, "x=%s\ny=%s\ncell=%d\npartial=%d\nauto=%d\n", e->x ? e->x : "", e->y ? e->y : "",
            cell, e->base->allow_partial, e->base->choose);
    json_dumpf(job->options, f, JSON_SORT_KEYS | JSON_COMPACT);
    int rc = fclose(f) == 0 ? hash_bytes(sha, text, size, err) : err_nomem(err, size);
    free(text);
    return rc;
}

static int copy_list(struct option_list *l, struct err *err)
{
    size_t n = (size_t)l->n * sizeof *l->item;
    const char **own = n ? malloc(n) : NULL;
    if (n && !own)
        return err_nomem(err, n);
    if (n)
        memcpy(own, l->item, n);
    l->item = own;
    return 0;
}

/* A making whose options begin as base's, on all that base has open. */
static int lend(const struct enqueue *e, struct making *m, struct err *err)
{
    const struct making *b = e->base;
    *m = (struct making){.given = b->given,
                         .repo = b->repo,
                         .dev = b->dev,
                         .model = b->model,
                         .g = b->g,
                         .gates = b->gates,
                         .allow_partial = b->allow_partial,
                         .triggers = b->triggers,
                         .choose = b->choose,
                         .like = b->like,
                         .hush = true,
                         .lent = true,
                         .yes = true};
    struct option_list *own[] = {&m->given.adapter, &m->given.embedding, &m->given.compose};
    int rc = 0;
    for (int i = 0; i < 3; i++) {
        int made = rc == 0 ? copy_list(own[i], err) : rc;
        if (made < 0)
            *own[i] = (struct option_list){NULL, 0};
        rc = made;
    }
    return rc;
}

/* The request of a cell of a job, laid over what the command line says. */
static int read_request(struct making *m, char **argv, int argc, const struct axis *axis, int cell,
                        struct err *err)
{
    struct option o[OPTIONS_MAX];
    const struct option own[] = {AUTO_OPTIONS(m), {.name = NULL}};
    memcpy(making_options(o, m), own, sizeof own);
    int rc = making_parse(m, o, argc, argv, err);
    for (int k = 0; k < 2 && rc == 0; k++)
        if (axis[k].n)
            rc = axis_set(&m->r, &axis[k],
                          k ? cell / (axis[0].n ? axis[0].n : 1) : cell % axis[0].n, err);
    /* weft compare's word for a picture without adapters */
    if (rc == 0 && m->r.compose && !strcmp(m->r.compose, "none")) {
        while (m->r.n_adapter)
            request_drop_adapter(&m->r, m->r.n_adapter - 1);
        rc = request_set(&m->r.compose, NULL, err);
    }
    return rc;
}

/* base is to have the model that the job names. */
static int have_model(struct enqueue *e, struct making *m, struct err *err)
{
    struct making *b = e->base;
    int rc = request_model(&m->r, err);
    const char *want = m->r.model ? m->r.model : "", *has = b->r.model ? b->r.model : "";
    if (rc == 0 && b->model && strcmp(want, has))
        making_close_model(b);
    rc = rc < 0 ? rc : request_set(&b->r.model, m->r.model, err);
    rc = rc < 0 ? rc : making_model(b, err);
    m->dev = b->dev;
    m->model = b->model;
    m->g = b->g;
    m->gates = b->gates;
    return rc;
}

static int describe(struct queue_job *j, const struct making *m, struct err *err)
{
    char *set = NULL;
    size_t size;
    FILE *f = open_memstream(&set, &size);
    if (!f)
        return err_nomem(err, 64);
    for (int i = 0; i < m->r.n_adapter; i++)
        fprintf(f, "%s%.16s %g %g", i ? "|" : "", m->r.adapter[i].sha256, m->r.adapter[i].unet,
                m->r.adapter[i].te);
    if (fclose(f) != 0)
        return err_nomem(err, size);
    j->adapters = set;
    j->settings = request_to_json(&m->r, err);
    if (!j->settings)
        return err->code;
    return asprintf(&j->batch, "%s|%dx%d", m->model->dir, m->r.size[0], m->r.size[1]) < 0
               ? err_nomem(err, 64)
               : 0;
}

/* Fills in the rest of f->job, which has n, id and asked. */
static int make_fresh(struct enqueue *e, const struct job *job, const struct axis *axis, int cell,
                      int again, struct fresh *f, struct err *err)
{
    struct making m = {.lent = true};
    char **argv = NULL;
    int argc = 0;
    int rc = check_keys(job->options, err);
    rc = rc < 0 ? rc : translate_sampler(job->options, err);
    rc = rc < 0 ? rc : job_arguments(job, "batch", &argv, &argc, err);
    rc = rc < 0 ? rc : lend(e, &m, err);
    rc = rc < 0 ? rc : read_request(&m, argv, argc, axis, cell, err);
    if (rc == 0 && e->base->given.has_seed && !json_object_get(job->options, "seed"))
        m.r.seed = (m.r.seed + (uint64_t)again) & INT64_MAX; /* as a line's own seed counts up */
    rc = rc < 0 ? rc : have_model(e, &m, err);
    rc = rc < 0 ? rc : settle(e, &m, err);
    rc = rc < 0 ? rc : describe(&f->job, &m, err);
    f->job.partial = m.allow_partial;
    if (rc == 0 && !(f->job.file = job_name(e->name, &m.r, f->job.n, f->job.id)))
        rc = err_nomem(err, 64);
    if (rc == 0 && strlen(f->job.file) > JOB_NAME_MAX)
        rc = err_set(err, ERR_ARG, "its file would be called %.80s…, which is too long",
                     f->job.file);
    rc = rc < 0 ? rc : look_for_picture(e, f, m.given.has_seed, err);
    making_release(&m);
    job_arguments_free(argv);
    return rc;
}

/* Which of the shards an id belongs to, from 1. */
static int shard_of(const char *id, int shards)
{
    char sha[HASH_HEX], head[16] = "";
    struct err none;
    if (shards > 1 && hash_bytes(sha, id, strlen(id), &none) == 0)
        snprintf(head, sizeof head, "%.15s", sha);
    return 1 + (int)(strtoull(head, NULL, 16) % (unsigned)shards);
}

/* ---- a file ---------------------------------------------------------------------------------- */

static void fresh_release(struct fresh *f)
{
    queue_job_release(&f->job);
}

static int keep(struct enqueue *e, const struct fresh *f, struct err *err)
{
    if (e->n_fresh == e->room) {
        size_t n = e->room ? 2 * (size_t)e->room : 64;
        struct fresh *more = realloc(e->fresh, n * sizeof *more);
        if (!more)
            return err_nomem(err, n * sizeof *more);
        e->fresh = more;
        e->room = (int)n;
    }
    e->fresh[e->n_fresh++] = *f;
    e->n_new++;
    e->n_made += f->made;
    return 0;
}

/* A job of the files, or a cell of one. */
struct entry {
    const struct job *job;
    const char *file;
    int cell, place; /* place: among all entries */
    char asked[HASH_HEX];
    int again;     /* repetitions of the same line before it */
    int nth;       /* of those with the same id, or that ask the same without one; from 1 */
    int twin_line; /* the line of the first with that id, 0: this is it */
    char *id;      /* owned */
    int64_t n;     /* its place in the queue; 0: it is not to be taken in, or was */
};

static void tell_bad(struct enqueue *e, const char *file, int line, const char *why)
{
    e->bad++;
    e->tell(e->user, file, line, why);
}

static int by_name(const void *va, const void *vb)
{
    const struct entry *a = *(const struct entry *const *)va, *b = *(const struct entry *const *)vb;
    int id = !!b->job->id - !!a->job->id;
    if (id == 0)
        id = a->job->id ? strcmp(a->job->id, b->job->id) : strcmp(a->asked, b->asked);
    if (id == 0 && a->job->id)
        id = a->cell - b->cell;
    return id ? id : a->place - b->place;
}

static bool same_name(const struct entry *a, const struct entry *b)
{
    if (!a->job->id || !b->job->id)
        return !a->job->id && !b->job->id && !strcmp(a->asked, b->asked);
    return !strcmp(a->job->id, b->job->id) && a->cell == b->cell;
}

/* Numbers those that are alike, in their order. */
static int number(struct entry *at, int n, struct err *err)
{
    struct entry **order = malloc(((size_t)n + 1) * sizeof *order);
    if (!order)
        return err_nomem(err, (size_t)n * sizeof *order);
    for (int i = 0; i < n; i++)
        order[i] = &at[i];
    qsort(order, (size_t)n, sizeof *order, by_name);
    for (int i = 0, first = 0; i < n; i++) {
        first = i && same_name(order[i - 1], order[i]) ? first : i;
        order[i]->nth = i - first + 1;
        order[i]->twin_line = i > first && order[i]->job->id ? order[first]->job->line : 0;
    }
    free(order);
    return 0;
}

/* The id of a job: its own, or the beginning of what it asks; with a number where several would have it. */
static char *id_of(const struct entry *at, int cells)
{
    char *id = NULL;
    int n = at->job->id   ? asprintf(&id, cells > 1 ? "%s-%d" : "%s", at->job->id, at->cell + 1)
            : at->nth > 1 ? asprintf(&id, "%.12s-%d", at->asked, at->nth)
                          : asprintf(&id, "%.12s", at->asked);
    return n < 0 ? NULL : id;
}

/* The place of the next job: that of its line, unless another has it. */
static int place_of(struct enqueue *e, int line_place, int64_t *n, struct err *err)
{
    int64_t last = 0;
    int rc = queue_last(e->q, &last, err);
    e->place = last > e->place ? last : e->place;
    *n = line_place > e->place ? line_place : e->place + 1;
    return rc;
}

/* What becomes of one: other shards', known, or fresh, which has a place then. An error is the line's own. */
static int look_up(struct enqueue *e, struct entry *at, int cells, struct err *err)
{
    char *asked = NULL;
    int rc = (at->id = id_of(at, cells)) ? 0 : err_nomem(err, 64);
    if (rc < 0)
        return rc;
    if (at->twin_line)
        return err_set(err, ERR_ARG, "id '%.80s' is line %d's", at->id, at->twin_line);
    if (shard_of(at->id, e->shards) != e->shard) {
        e->n_others++;
        return 0;
    }
    rc = queue_find(e->q, at->id, &asked, err);
    bool other = rc == 1 && strcmp(asked, at->asked);
    free(asked);
    if (other)
        return err_set(err, ERR_ARG,
                       "the queue has a job '%.80s' that asks for something else; another id, or "
                       "another -o",
                       at->id);
    e->n_known += rc == 1;
    rc = rc != 0 ? rc : place_of(e, at->place, &at->n, err);
    e->place = at->n > e->place ? at->n : e->place;
    return rc < 0 ? rc : 0;
}

/* A fresh one, to the others. An error is the line's own. */
static int take(struct enqueue *e, struct entry *at, const struct axis *axis, struct err *err)
{
    struct fresh f = {.job = {.n = at->n, .id = at->id, .asked = strdup(at->asked)}};
    at->id = NULL;
    at->n = 0;
    int rc = f.job.asked && asprintf(&f.job.source, "%s:%d", at->file, at->job->line) >= 0
                 ? make_fresh(e, at->job, axis, at->cell, at->again, &f, err)
                 : err_nomem(err, 64);
    rc = rc < 0 ? rc : keep(e, &f, err);
    if (rc < 0)
        fresh_release(&f);
    return rc;
}

/* What is wrong with a line is told; what stops them all is returned. */
static int go_on(struct enqueue *e, const struct entry *at, int rc, struct err *err)
{
    if (rc < 0 && rc != ERR_NOMEM && rc != ERR_STOPPED) {
        tell_bad(e, at->file, at->job->line, err->msg);
        err_clear(err);
        rc = 0;
    }
    return rc == 0 && cli_stopped() ? err_set(err, ERR_STOPPED, "stopped") : rc;
}

/* The fresh ones of the model that one of them names: a model is opened once. */
static int take_model(struct enqueue *e, struct entry *first, struct entry *end,
                      const struct axis *axis, struct err *err)
{
    const json_t *model = json_object_get(first->job->options, "model");
    int rc = 0;
    for (struct entry *at = first; at < end && rc == 0; at++) {
        const json_t *own = json_object_get(at->job->options, "model");
        if (at->n && (own == model || (own && model && json_equal(own, model))))
            rc = go_on(e, at, take(e, at, axis, err), err);
    }
    return rc;
}

struct reading {
    struct enqueue *e;
    const char *file;
};

static void bad_line(void *user, int line, const char *why)
{
    const struct reading *r = user;
    tell_bad(r->e, r->file, line, why);
}

static int take_all(struct enqueue *e, struct entry *at, int n, const struct axis *axis, int cells,
                    struct err *err)
{
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++)
        if ((rc = hash_asked(e, at[i].job, at[i].cell, at[i].asked, err)) == 0)
            at[i].place = i + 1;
    rc = rc < 0 ? rc : number(at, n, err);
    for (int i = cells; i < n && rc == 0; i++)
        if (at[i].file == at[i - cells].file && at[i].job->line == at[i - cells].job->line &&
            !strcmp(at[i].asked, at[i - cells].asked))
            at[i].again = at[i - cells].again + 1;
    for (int i = 0; i < n && rc == 0; i++)
        rc = go_on(e, &at[i], look_up(e, &at[i], cells, err), err);
    for (int i = 0; i < n && rc == 0; i++)
        if (at[i].n)
            rc = take_model(e, &at[i], at + n, axis, err);
    for (int i = 0; i < n; i++)
        free(at[i].id);
    return rc;
}

int enqueue_read(struct enqueue *e, const char *const *path, int n_path, const char *format,
                 struct err *err)
{
    struct jobs jobs = {0};
    struct axis axis[2] = {{.option = "--x"}, {.option = "--y"}};
    int *until = calloc((size_t)n_path + 1, sizeof *until), cells = 1, rc = 0;
    struct entry *at = NULL;
    if (!until)
        return err_nomem(err, 64);
    for (int i = 0; i < n_path && rc == 0; i++) {
        struct reading r = {e, path[i]};
        rc = jobs_read(&jobs, path[i], format, bad_line, &r, err);
        until[i] = jobs.n;
    }
    if (rc == 0 && e->x)
        rc = axis_read(&axis[0], e->x, err);
    if (rc == 0 && e->y)
        rc = axis_read(&axis[1], e->y, err);
    cells = (axis[0].n ? axis[0].n : 1) * (axis[1].n ? axis[1].n : 1);
    at = rc < 0 ? NULL : calloc((size_t)jobs.n * (size_t)cells + 1, sizeof *at);
    if (rc == 0 && !at)
        rc = err_nomem(err, (size_t)jobs.n * sizeof *at);
    for (int i = 0, file = 0; rc == 0 && i < jobs.n * cells; i++) {
        while (i / cells >= until[file])
            file++;
        at[i] = (struct entry){
            .job = &jobs.at[i / cells], .file = path[file], .cell = cells > 1 ? i % cells : 0};
    }
    rc = rc < 0 ? rc : take_all(e, at, jobs.n * cells, axis, cells, err);
    axis_release(&axis[0]);
    axis_release(&axis[1]);
    free(at);
    free(until);
    jobs_release(&jobs);
    return rc;
}

/* Unless another took it in meanwhile. */
static int add(struct enqueue *e, struct fresh *f, int *known, struct err *err)
{
    const struct queue_made made = {f->sha256, f->bytes, 0};
    char *asked = NULL;
    int rc = queue_find(e->q, f->job.id, &asked, err);
    bool same = rc == 1 && !strcmp(asked, f->job.asked);
    free(asked);
    *known += same;
    if (rc < 0 || same)
        return rc < 0 ? rc : 0;
    rc = queue_add(e->q, &f->job, f->made ? &made : NULL, err);
    return rc < 0 ? err_prefix(err, "%s", f->job.source) : 0;
}

int enqueue_commit(struct enqueue *e, struct err *err)
{
    int known = 0, rc = queue_begin(e->q, err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < e->n_fresh && rc == 0; i++)
        rc = add(e, &e->fresh[i], &known, err);
    rc = queue_end(e->q, rc, err);
    e->n_known += known;
    e->n_new -= known;
    return rc;
}

void enqueue_release(struct enqueue *e)
{
    for (int i = 0; i < e->n_fresh; i++)
        fresh_release(&e->fresh[i]);
    for (int i = 0; i < e->n_seen; i++)
        free(e->seen[i].path);
    free(e->fresh);
    free(e->seen);
}
