/* Read workshop_run first. */
#include "workshop.h"

#include "embeddings.h"
#include "enqueue.h"

#include "compose/compose.h"
#include "unet/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

/* ---- one job --------------------------------------------------------------------------------- */

static void set_down(struct workshop *w, struct hand *h)
{
    if (h->state == HAND_BUSY) {
        generator_leave(w->base->g, h->slot);
        w->busy--;
        w->rows -= h->rows;
        w->alone = false;
        w->changed = true;
    }
    if (h->state != HAND_FREE)
        making_release(&h->m);
    queue_job_release(&h->job);
    w->ahead = w->ahead == h ? NULL : w->ahead;
    h->state = HAND_FREE;
}

/* It ends with a reason. */
static int fail(struct workshop *w, struct hand *h, const struct err *why, struct err *err)
{
    char reason[sizeof why->msg];
    snprintf(reason, sizeof reason, "%s", why->msg);
    int rc = queue_fail(w->q, &h->job, reason, err);
    if (rc == 0) {
        w->failed++;
        w->tell(w->user, WORKSHOP_FAILED, h, reason);
    }
    set_down(w, h);
    return rc < 0 ? rc : 0;
}

static int finish(struct workshop *w, struct hand *h, const char *path, struct err *err)
{
    struct queue_made made = {.seconds = h->seconds};
    char sha[HASH_HEX];
    struct stat st;
    int rc = stat(path, &st) < 0 ? err_set(err, ERR_IO, "%s: %s", path, strerror(errno))
                                 : hash_file(sha, path, err);
    made.sha256 = sha;
    made.bytes = rc < 0 ? 0 : (int64_t)st.st_size;
    rc = rc < 0 ? rc : queue_done(w->q, &h->job, &made, err);
    if (rc == 0) { /* 1: another has it by now, and makes the same */
        memcpy(h->job.sha256, sha, sizeof sha);
        h->job.bytes = made.bytes;
        h->job.seconds = made.seconds;
        w->done++;
        w->tell(w->user, WORKSHOP_DONE, h, NULL);
    }
    set_down(w, h);
    return rc < 0 ? rc : 0;
}

/* The pixels of one that has no steps left. What is wrong with them is its own; a disk that is full is everybody's. */
static int take_out(struct workshop *w, struct hand *h, struct err *err)
{
    struct image im = {0};
    struct err own;
    double began = cli_now();
    char *path = file_join(w->folder, h->job.file);
    int rc = path ? 0 : err_nomem(err, 64);
    bool wrong = rc == 0 && generator_take(w->base->g, h->slot, &im, &own) < 0;
    if (rc == 0 && !wrong)
        rc = file_make_parents(path, err);
    if (rc == 0 && !wrong)
        rc = making_write(&h->m, path, &im, err);
    h->seconds += cli_now() - began;
    if (rc == 0)
        rc = wrong ? fail(w, h, &own, err) : finish(w, h, path, err);
    image_release(&im);
    free(path);
    return rc;
}

/* ---- coming in ------------------------------------------------------------------------------- */

/* Reads ahead what jobs that wait will need. */
static int want_soon(void *user, const struct queue_job *j)
{
    json_t *settings = json_loads(j->settings, 0, NULL), *a;
    size_t i;
    (void)user;
    json_array_foreach(json_object_get(settings, "adapters"), i, a)
    {
        const char *path = json_string_value(json_object_get(a, "file"));
        int fd = path ? open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK) : -1;
        if (fd >= 0) {
            posix_fadvise(fd, 0, 0, POSIX_FADV_WILLNEED);
            close(fd);
        }
    }
    json_decref(settings);
    return 0;
}

/* A job that nobody has, in a hand that is free. 1: claimed; 0: there is none. */
static int claim(struct workshop *w, struct hand **out, struct err *err)
{
    enum { SOON = 4 };
    const char *batch = NULL;
    struct hand *h = NULL;
    for (int i = 0; i <= MAKING_HAND; i++) {
        if (w->hand[i].state == HAND_FREE)
            h = &w->hand[i];
        if (w->hand[i].state == HAND_BUSY)
            batch = w->hand[i].job.batch;
    }
    memset(h, 0, sizeof *h);
    int rc = batch ? queue_claim(w->q, batch, false, &h->job, err) : 0;
    if (rc == 0)
        rc = queue_claim(w->q, NULL, !w->busy, &h->job, err);
    if (rc != 1)
        return rc;
    h->state = HAND_CLAIMED;
    const struct making *b = w->base;
    h->m = (struct making){.repo = b->repo,
                           .dev = b->dev,
                           .pool = w->pool,
                           .allow_partial = h->job.partial,
                           .verbose = b->verbose,
                           .gates_file = b->gates_file,
                           .like = h->job.id,
                           .named = true,
                           .hush = true,
                           .lent = true};
    request_init(&h->m.r);
    h->m.r.repo = b->repo;
    *out = h;
    rc = queue_soon(w->q, h->job.batch, SOON, want_soon, NULL, err);
    return rc < 0 ? rc : 1;
}

/* The model it is for becomes base's: 1: not while others are in hand. */
static int have_model(struct workshop *w, struct hand *h, struct err *err)
{
    struct making *b = w->base;
    const char *want = h->m.r.model ? h->m.r.model : "", *has = b->r.model ? b->r.model : "";
    if (b->model && strcmp(want, has)) {
        if (w->busy)
            return 1;
        pool_clear(w->pool);
        making_close_model(b);
        w->bytes = 0;
    }
    int rc = b->model ? 0 : request_set(&b->r.model, h->m.r.model, err);
    rc = rc < 0 ? rc : making_model(b, err);
    h->m.dev = b->dev;
    h->m.model = b->model;
    h->m.g = b->g;
    h->m.gates = b->gates;
    return rc;
}

/* Everything it needs in memory. 1: not while others are in hand. */
static int load(struct workshop *w, struct hand *h, struct err *err)
{
    int rc = request_from_json(&h->m.r, h->job.settings, err);
    if (rc == 0 && h->job.fold >= 0)
        h->m.r.fold = h->job.fold;
    rc = rc < 0 ? rc : have_model(w, h, err);
    rc = rc != 0 ? rc : making_load(&h->m, err);
    if (h->m.gates && !w->base->gates)
        w->base->gates = h->m.gates; /* they serve all that follow */
    rc = rc != 0 ? rc : making_picture(&h->m, &h->p, err);
    if (rc == 0)
        h->state = HAND_LOADED;
    return rc;
}

/* One that could not be loaded for want of room becomes a claim again. */
static void unload(struct hand *h)
{
    making_forget(&h->m);
    request_init(&h->m.r);
    h->m.r.repo = h->m.repo;
    h->state = HAND_CLAIMED;
}

/* Measured on the demo model, in operations of its passes that take as long: what adding adapters to one weight takes; and
 * an operation of an adapter's beside it, whose products are narrow. And the share of its time that a picture loses which
 * shares no batch. */
static const double FOLD_WEIGHT = 500, FOLD_BESIDE = 2.2, FOLD_APART = .08;
/* What is not gained is not worth other bits than weft render's; and the free memory, in copies of the weights that are
 * touched, without which nothing is folded. */
static const double FOLD_LEAST = .03, FOLD_ROOM = 2;

static double weights_touched(const struct hand *h)
{
    const struct sites *s = &h->m.model->sites;
    double n = 0;
    for (int i = 0; i < s->n; i++) {
        bool any = false;
        for (int k = 0; k < h->p.n_use; k++)
            any = any || h->p.use[k].adapter->at[i];
        if (any && s->at[i].layer)
            n += (double)array_count(&s->at[i].layer->w);
    }
    return n;
}

static bool can_fold(const struct hand *h)
{
    struct compose *c = NULL;
    struct err none;
    bool can = h->p.n_use > 0 &&
               compose_open(&c, h->p.compose ? h->p.compose : "merge", &none) == 0 &&
               compose_is_constant(c);
    compose_close(c);
    for (int i = 0; i < h->p.n_use; i++)
        can = can && !h->p.use[i].from && !h->p.use[i].to && !h->p.use[i].where;
    return can;
}

static bool any_folded(const struct workshop *w)
{
    bool any = false;
    for (int i = 0; i <= MAKING_HAND; i++)
        any = any || (w->hand[i].state == HAND_BUSY && w->hand[i].p.fold);
    return any;
}

/* Whether all that have the same adapters are quicker with folded weights, by operations counted. 1: not while others are
 * in hand whose weights are. */
static int choose_fold(struct workshop *w, struct hand *h, struct err *err)
{
    struct picture bare = h->p;
    int slot, alike = 0;
    if (h->job.fold >= 0 || h->p.fold || w->beside || !can_fold(h))
        return 0;
    if (any_folded(w))
        return 1;
    int rc = generator_join(w->base->g, &h->p, &slot, err);
    double with = rc < 0 ? 0 : generator_cost(w->base->g, slot)->flops;
    if (rc == 0)
        generator_leave(w->base->g, slot);
    bare.n_use = 0;
    rc = rc < 0 ? rc : generator_join(w->base->g, &bare, &slot, err);
    double without = rc < 0 ? 0 : generator_cost(w->base->g, slot)->flops;
    if (rc == 0)
        generator_leave(w->base->g, slot);
    rc = rc < 0 ? rc : queue_count_alike(w->q, &h->job, &alike, err);
    if (rc < 0)
        return rc;
    double gain = FOLD_BESIDE * (with - without) - (FOLD_LEAST + FOLD_APART / alike) * without;
    double weights = weights_touched(h), room = (double)cli_memory_free();
    bool fold = alike * gain > FOLD_WEIGHT * weights &&
                (room == 0 || room > FOLD_ROOM * (double)sizeof(float) * weights);
    if (w->base->verbose)
        fprintf(stderr, "%s: %d alike, %.3f of the operations without adapters: %s\n", h->job.id,
                alike, with / without, fold ? "folded" : "beside the weights");
    h->job.fold = fold;
    rc = queue_choose(w->q, &h->job, fold, err);
    if (rc == 0 && fold) { /* bound as those that are to be folded are */
        unload(h);
        rc = load(w, h, err);
    }
    return rc;
}

static bool same_adapters(const struct picture *a, const struct picture *b)
{
    bool same = a->n_use == b->n_use;
    for (int i = 0; i < a->n_use && same; i++)
        same = a->use[i].adapter == b->use[i].adapter && a->use[i].unet == b->use[i].unet &&
               a->use[i].te == b->use[i].te;
    return same;
}

/* Whether it can stand beside those in hand. */
static bool fits(const struct workshop *w, const struct hand *h)
{
    if (w->busy && (w->rows + h->rows > HAND_ROWS || (w->most && w->busy >= w->most)))
        return false;
    for (int i = 0; i <= MAKING_HAND; i++) {
        const struct hand *o = &w->hand[i];
        if (o->state == HAND_BUSY && o->p.fold != h->p.fold)
            return false;
        if (o->state == HAND_BUSY && h->p.fold && !same_adapters(&o->p, &h->p))
            return false;
    }
    return true;
}

/* Whether there is room for what it takes beyond what the model's other pictures took. */
static int have_room(struct workshop *w, struct hand *h, struct err *err)
{
    struct cost need = h->m.cost;
    if (w->bytes) {
        need.weights = 0;
        need.bytes = need.bytes > w->bytes ? need.bytes - w->bytes : 0;
    }
    return making_room(&h->m, &need, err);
}

/* From memory into the generator. 1: not while others are in hand. */
static int join(struct workshop *w, struct hand *h, struct err *err)
{
    struct generator *g = w->base->g;
    int rc = 0;
    if (!fits(w, h)) /* its rows are known only behind this, the first time */
        return 1;
    rc = generator_join(g, &h->p, &h->slot, err);
    if (rc < 0)
        return rc;
    h->m.cost = *generator_cost(g, h->slot);
    h->rows = making_rows(&h->m, &h->p);
    bool stands = fits(w, h);
    rc = stands ? embeddings_settle(h->m.words, &h->m.r, true, err) : 1;
    rc = rc != 0 ? rc : have_room(w, h, err);
    rc = rc != 0 ? rc : generator_begin(g, h->slot, err);
    if (rc != 0) {
        generator_leave(g, h->slot);
        return rc == ERR_NOMEM && w->busy ? 1 : rc;
    }
    pool_count(w->pool);
    h->m.cost = *generator_cost(g, h->slot);
    w->bytes = h->m.cost.bytes > w->bytes ? h->m.cost.bytes : w->bytes;
    h->state = HAND_BUSY;
    w->busy++;
    w->rows += h->rows;
    w->alone = h->job.crashes >= QUEUE_ALONE;
    w->tell(w->user, WORKSHOP_BEGUN, h, NULL);
    return 0;
}

/* A claimed job comes into hand, if its picture is not there already. 1: later; an error is its own. */
static int enter(struct workshop *w, struct hand *h, struct err *err)
{
    int rc = 0;
    if (h->state == HAND_CLAIMED) {
        rc = load(w, h, err);
        if (rc == ERR_NOMEM && w->busy)
            rc = 1;
        if (rc != 0) {
            if (rc == 1)
                unload(h);
            return rc;
        }
    }
    rc = choose_fold(w, h, err);
    return rc != 0 ? rc : join(w, h, err);
}

/* The program may have ended between a picture and its record. */
static int take_what_is_there(struct workshop *w, struct hand *h, bool *there, struct err *err)
{
    char *path = file_join(w->folder, h->job.file);
    int rc = path ? 0 : err_nomem(err, 64);
    *there = rc == 0 && file_exists(path) && picture_is_of(path, h->job.settings, NULL);
    if (*there) {
        w->here++;
        rc = request_from_json(&h->m.r, h->job.settings, err); /* for who is told of it */
        rc = rc < 0 ? rc : finish(w, h, path, err);
    }
    free(path);
    return rc;
}

static bool is_late(struct workshop *w)
{
    double now = (double)time(NULL), each = 0;
    int made = w->done + w->failed;
    if (!w->until)
        return false;
    if (made) /* those in hand end together, more or less */
        each = (cli_now() - w->began) / made * (w->busy + 1);
    w->late = w->late || now + each >= w->until;
    return w->late;
}

/* As many jobs as there is room for. The first picture is made by itself: it is there soon. */
static int fill(struct workshop *w, struct err *err)
{
    int rc = 0;
    if (!w->changed && cli_now() - w->asked < 1)
        return 0;
    w->changed = false;
    w->asked = cli_now();
    while (rc == 0 && !w->alone && w->busy < MAKING_HAND && !is_late(w) && !cli_stopped() &&
           !(w->busy && !w->done)) {
        struct hand *h = w->ahead;
        struct err own;
        bool there = false;
        if (!h && (rc = claim(w, &h, err)) != 1)
            return rc;
        rc = w->ahead ? 0 : take_what_is_there(w, h, &there, err);
        if (rc < 0 || there)
            continue;
        w->ahead = NULL;
        err_clear(&own);
        int in = enter(w, h, &own);
        if (in == 1) {
            w->ahead = h;
            return 0;
        }
        if (in < 0)
            rc = fail(w, h, &own, err);
    }
    return rc;
}

/* ---- going on -------------------------------------------------------------------------------- */

/* A sign of life. Where it came too late, what is in hand is another's. */
static int beat(struct workshop *w, struct err *err)
{
    if (cli_now() - w->beaten < w->lease / 4.0)
        return 0;
    w->beaten = cli_now();
    int rc = queue_beat(w->q, err);
    if (rc != ERR_MISMATCH)
        return rc;
    fprintf(stderr, "weft: %s\n", err->msg);
    err_clear(err);
    for (int i = 0; i <= MAKING_HAND; i++)
        set_down(w, &w->hand[i]);
    return 0;
}

/* So many at once have no room after all: those in hand wait again, and are made one at a time. */
static int one_by_one(struct workshop *w, struct err *err)
{
    int rc = 0;
    err_clear(err);
    w->most = 1;
    for (int i = 0; i <= MAKING_HAND && rc == 0; i++) {
        struct hand *h = &w->hand[i];
        if (h->state == HAND_FREE)
            continue;
        rc = queue_give_back(w->q, &h->job, err);
        rc = rc < 0 ? rc : 0; /* 1: it was another's already */
        set_down(w, h);
    }
    return rc;
}

static int step(struct workshop *w, struct err *err)
{
    double began = cli_now();
    int rc = generator_step(w->base->g, err);
    if (rc == ERR_NOMEM && w->busy > 1)
        return one_by_one(w, err);
    double each = (cli_now() - began) / w->busy;
    for (int i = 0; i <= MAKING_HAND && rc == 0; i++) {
        struct hand *h = &w->hand[i];
        if (h->state != HAND_BUSY)
            continue;
        h->seconds += each;
        if (!generator_left(w->base->g, h->slot))
            rc = take_out(w, h, err);
    }
    if (rc == 0)
        w->tell(w->user, WORKSHOP_STEP, NULL, NULL);
    return rc;
}

/* Nothing is to be had. 1: nor is anything being made by others. */
static int wait_for_others(struct workshop *w, struct err *err)
{
    int64_t count[QUEUE_STATES];
    int rc = queue_counts(w->q, count, err);
    if (rc < 0 || w->late || (!count[QUEUE_RUNNING] && !count[QUEUE_WAITING]))
        return rc < 0 ? rc : 1;
    nanosleep(&(struct timespec){.tv_nsec = 300000000}, NULL);
    w->changed = true;
    w->beaten = 0; /* what others have may be left over any moment */
    return 0;
}

static void gone(void *user, const struct adapter *a)
{
    struct workshop *w = user;
    if (w->base->g)
        generator_drop(w->base->g, a);
}

int workshop_run(struct workshop *w, struct err *err)
{
    int rc = pool_open(&w->pool, w->adapter_memory, gone, w, err);
    rc = rc < 0 ? rc : queue_work(w->q, w->lease, err);
    w->began = w->beaten = cli_now();
    w->changed = true;
    while (rc == 0) {
        rc = cli_stopped() ? err_set(err, ERR_STOPPED, "stopped") : beat(w, err);
        rc = rc < 0 ? rc : fill(w, err);
        if (rc == 0)
            rc = w->busy ? step(w, err) : wait_for_others(w, err);
    }
    for (int i = 0; i <= MAKING_HAND; i++) {
        struct err none;
        if (w->hand[i].state != HAND_FREE)
            queue_give_back(w->q, &w->hand[i].job, &none);
        set_down(w, &w->hand[i]);
    }
    return rc < 0 ? rc : 0;
}

void workshop_release(struct workshop *w)
{
    pool_close(w->pool);
    w->pool = NULL;
}
