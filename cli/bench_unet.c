/* weft bench unet: a step of the UNet beside what the device can do, with adapters and without, and what a change of
 * adapters costs. */
#include "bench.h"
#include "cli.h"
#include "device.h"

#include "unet/bind.h"
#include "unet/gates.h"
#include "unet/model.h"
#include "unet/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 8, SET = 4, RANK = 16, MAX_OPTIONS = 11, BATCHES = 16, BATCH_MOST = 64 };
#define STRENGTH .01f

const int bench_batches[] = {1, 4, 16, 0};

struct bench {
    const char *model;
    struct device_choice on;
    struct option_list batch;
    bool json, small, qkv;
};

/* A UNet with adapters, and the pictures that it is run on. */
struct scene {
    const struct bench_unets *b;
    const char *of;
    const struct unet *u;
    const struct sites *sites;
    int side, tokens, batch, rows;
    float *values;
    struct adapter *adapter[MOST];
    struct gates *gates;
    struct run keep, pass;
    struct tensor x, text;
    double t[2 * BATCH_MOST];
    float wave[2 * BATCH_MOST][GATE_WAVES];
};

static void make_options(struct option o[MAX_OPTIONS], struct bench *b)
{
    const struct option table[] = {
        {"model", 'm', OPTION_TEXT, &b->model, "DIR", "default: the demo model", 0, 0, NULL},
        {"small", 0, OPTION_FLAG, &b->small, NULL, "leave out the SD 1.5 shape (8 GB, minutes)", 0,
         0, NULL},
        {"batch", 0, OPTION_LIST, &b->batch, "N",
         "pictures at once, guided; may be given several times;\ndefault: 1, on cuda 1, 4 and 16",
         0, 0, NULL},
        {"qkv", 0, OPTION_FLAG, &b->qkv, NULL,
         "adapters on q, k, v and out alone, not on the projections and feed\nforwards beside them",
         0, 0, NULL},
        {"json", 0, OPTION_FLAG, &b->json, NULL, "a line a figure: name, value, unit", 0, 0, NULL},
    };
    memcpy(o, table, sizeof table);
    *device_options(o + sizeof table / sizeof *table, &b->on) = (struct option){.name = NULL};
}

void bench_unet_help(void)
{
    struct bench b;
    struct option o[MAX_OPTIONS];
    make_options(o, &b);
    bench_help(
        "weft bench unet measures steps of the demo model's UNet and of one of SD 1.5's shape at "
        "512 x 512,\nwith adapters of rank 16 on every layer of the attention blocks:",
        o);
}

/* ---- adapters at work ------------------------------------------------------------------------ */

/* An adapter on all those layers, or on q, k, v and out alone. */
static int bind(const struct scene *s, struct adapter **a, struct err *err)
{
    struct delta_list list = {0};
    struct bind_report report = {0};
    int rc = bench_list(&list, s->sites, RANK, s->values, 1, 0, err), all = list.n;
    *a = NULL;
    list.n = 0; /* those that are left out stand behind */
    for (int i = 0; i < all && rc == 0; i++)
        if (!s->b->qkv || strstr(list.item[i].site, ".attn")) {
            struct delta_item next = list.item[i];
            list.item[i] = list.item[list.n];
            list.item[list.n++] = next;
        }
    rc = rc < 0 ? rc : adapter_bind(a, s->b->dev, s->sites, &list, "adapter", false, &report, err);
    list.n = all;
    bind_report_release(&report);
    delta_list_release(&list);
    return rc;
}

enum how { BESIDE, GATED, FOLDED };

/* Some of them on all rows, as compose/batch.c has them: beside the weights as one joint, or folded. */
struct team {
    enum how how;
    int n;
    struct joint *joint;
    struct fold *fold;
    struct branch branch[MOST];
};

static int team_open(struct team *a, const struct scene *s, struct adapter *const *adapter, int n,
                     enum how how, struct err *err)
{
    const struct adapter *of[MOST];
    float strength[MOST];
    *a = (struct team){.how = how, .n = n};
    for (int i = 0; i < n; i++) {
        of[i] = adapter[i];
        strength[i] = STRENGTH;
    }
    if (how == FOLDED)
        return fold_new(&a->fold, s->sites, COMPONENT_UNET, n, of, strength, err);
    int rc = n > 1 || how == GATED ? joint_new(&a->joint, s->sites, COMPONENT_UNET, n, of,
                                               how == GATED ? JOINT_GATE : JOINT_SUM, err)
                                   : 0;
    for (int i = 0; i < n; i++)
        a->branch[i] = (struct branch){.adapter = of[i],
                                       .row1 = s->rows,
                                       .strength = STRENGTH,
                                       .joint = a->joint,
                                       .part = i,
                                       .gated = how == GATED};
    return rc;
}

static void team_close(struct team *a)
{
    joint_free(a->joint);
    fold_free(a->fold);
}

/* From here on they are the ones. */
static void team_use(struct scene *s, const struct team *a)
{
    struct run *r = &s->pass;
    r->fold = a->fold;
    r->branch = a->branch;
    r->n_branch = a->how == FOLDED ? 0 : a->n;
    r->gates = a->how == GATED ? s->gates : NULL;
    r->wave = s->wave[0];
}

static void forward(struct scene *s)
{
    unet_forward(s->u, &s->pass, &s->x, s->t, &(struct unet_text){&s->text, 1}, NULL);
}

static int step(void *user, struct err *err)
{
    struct scene *s = user;
    const struct backend *be = s->b->dev->be;
    run_reset(&s->pass);
    forward(s);
    int rc = run_check(&s->pass, err);
    return rc < 0 || !be->flush ? rc : be->flush(s->b->dev, err);
}

/* The same, and packed for these shapes, in memory that is large enough. */
static int team_ready(struct scene *s, const struct team *a, struct err *err)
{
    team_use(s, a);
    run_prepare(&s->pass);
    forward(s);
    return run_commit(&s->pass, err);
}

/* ---- a step ---------------------------------------------------------------------------------- */

static void figure(const struct scene *s, const char *what, const char *name, double value,
                   const char *unit)
{
    char text[160];
    snprintf(text, sizeof text, "%s, %d picture%s, %s: %s", s->of, s->batch,
             s->batch == 1 ? "" : "s", what, name);
    bench_figure(s->b->json, text, value, unit);
}

struct cell {
    double seconds, flops;
    size_t bytes; /* of activations */
};

/* How long a step takes to be asked for, where it is done later: no step is shorter. */
static int report_asking(struct scene *s, const char *what, struct err *err)
{
    double best = INFINITY;
    int rc = 0;
    for (int i = 0; i < 5 && rc == 0 && s->b->dev->be->flush; i++) {
        rc = bench_wait(&s->x, err);
        double t = cli_now();
        rc = rc < 0 ? rc : step(s, err);
        best = fmin(best, cli_now() - t);
    }
    if (rc == 0 && isfinite(best))
        figure(s, what, "asking for it", best * 1e3, "ms");
    return rc;
}

static int measure(struct scene *s, const struct team *a, const char *what, struct cell *c,
                   struct err *err)
{
    const struct bench_limits *l = s->b->limits;
    team_use(s, a);
    run_measure(&s->pass);
    forward(s);
    c->flops = s->pass.flops;
    int rc = team_ready(s, a, err);
    c->bytes = s->pass.plan.peak;
    rc = rc < 0 ? rc : bench_best(&(struct bench_job){step, s, &s->x}, &c->seconds, err);
    if (rc < 0)
        return rc;
    figure(s, what, "a step", c->seconds * 1e3, "ms");
    figure(s, what, "speed", c->flops / c->seconds / l->scale, l->unit);
    figure(s, what, "of the ceiling", 100 * c->flops / c->seconds / l->flops, "%");
    return report_asking(s, what, err);
}

/* Weights are read once and activations are written at least once, whatever the order: so much must be moved. */
static void report_bytes(const struct scene *s, const struct cell *c)
{
    double weights = 0, size = (double)s->b->dev->value_size;
    for (int i = 0; i < s->sites->n; i++) {
        const struct site *at = &s->sites->at[i];
        if (at->part == COMPONENT_UNET && at->layer)
            weights += ((double)array_count(&at->layer->w) + at->layer->out) * size;
    }
    double least = (weights + (double)c->bytes) / s->b->limits->bytes;
    figure(s, "no adapter", "weights", weights / 1e6, "MB");
    figure(s, "no adapter", "activations at once", (double)c->bytes / 1e6, "MB");
    figure(s, "no adapter", "moving both once, of a step", 100 * least / c->seconds, "%");
}

static int bench_steps(struct scene *s, struct err *err)
{
    static const struct {
        const char *what;
        int n;
        enum how how;
    } way[] = {{"no adapter", 0, BESIDE},           {"1 adapter", 1, BESIDE},
               {"4 adapters", SET, BESIDE},         {"4 adapters, gated", SET, GATED},
               {"4 adapters, folded", SET, FOLDED}, {"8 adapters", MOST, BESIDE}};
    double none = 0, beside = 0;
    int rc = 0;
    for (size_t i = 0; i < sizeof way / sizeof *way && rc == 0; i++) {
        struct team a;
        struct cell c = {0};
        rc = team_open(&a, s, s->adapter, way[i].n, way[i].how, err);
        rc = rc < 0 ? rc : measure(s, &a, way[i].what, &c, err);
        team_close(&a);
        if (rc < 0)
            break;
        if (!way[i].n)
            report_bytes(s, &c);
        else
            figure(s, way[i].what, "over none", 100 * (c.seconds / none - 1), "%");
        if (way[i].how == GATED)
            figure(s, way[i].what, "over those ungated", 100 * (c.seconds / beside - 1), "%");
        none = way[i].n ? none : c.seconds;
        beside = way[i].n == SET && way[i].how == BESIDE ? c.seconds : beside;
    }
    return rc;
}

/* ---- changes --------------------------------------------------------------------------------- */

/* One step from its beginning until it is done. */
static int time_step(struct scene *s, const struct team *a, double *best, struct err *err)
{
    int rc = bench_wait(&s->x, err);
    double t = cli_now();
    team_use(s, a);
    rc = rc < 0 ? rc : step(s, err);
    rc = rc < 0 ? rc : bench_wait(&s->x, err);
    *best = fmin(*best, cli_now() - t);
    return rc;
}

/* To and fro between sets that were there before. */
static int time_change(struct scene *s, const struct team team[2], double *first, double *same,
                       struct err *err)
{
    enum { TIMES = 20 };
    double began = cli_now();
    int rc = 0;
    for (int i = 0; i < TIMES && rc == 0 && (i < 3 || cli_now() - began < .5); i++) {
        double cold = INFINITY;
        rc = time_step(s, &team[i % 2], i < 2 ? &cold : first, err);
        rc = rc < 0 ? rc : time_step(s, &team[i % 2], i < 2 ? &cold : same, err);
        rc = rc < 0 ? rc : time_step(s, &team[i % 2], i < 2 ? &cold : same, err);
    }
    return rc;
}

/* To a set that was not there before, of adapters that were, or of others. All is done again by the next. */
static int time_new(struct scene *s, bool unbound, double *best, struct err *err)
{
    struct adapter *own[SET] = {NULL};
    struct team a = {0};
    int rc = bench_wait(&s->x, err);
    double t = cli_now();
    for (int i = 0; i < SET && unbound && rc == 0; i++)
        rc = bind(s, &own[i], err);
    rc = rc < 0 ? rc : team_open(&a, s, unbound ? own : s->adapter + 2, SET, BESIDE, err);
    rc = rc < 0 ? rc : team_ready(s, &a, err);
    rc = rc < 0 ? rc : step(s, err);
    rc = rc < 0 ? rc : bench_wait(&s->x, err);
    *best = fmin(*best, cli_now() - t);
    team_close(&a);
    for (int i = 0; i < SET; i++)
        adapter_free(own[i]);
    return rc;
}

static int bench_changes(struct scene *s, struct err *err)
{
    struct team team[2] = {{0}};
    double first = INFINITY, same = INFINITY, fresh = INFINITY, bound = INFINITY;
    int rc = 0;
    for (int k = 0; k < 2 && rc == 0; k++) {
        rc = team_open(&team[k], s, s->adapter + k * SET, SET, BESIDE, err);
        rc = rc < 0 ? rc : team_ready(s, &team[k], err);
    }
    rc = rc < 0 ? rc : time_change(s, team, &first, &same, err);
    for (int i = 0; i < 3 && rc == 0 && (i < 1 || fresh < 1); i++) {
        rc = time_new(s, false, &fresh, err);
        rc = rc < 0 ? rc : time_new(s, true, &bound, err);
    }
    for (int k = 0; k < 2; k++)
        team_close(&team[k]);
    if (rc < 0)
        return rc;
    static const char name[] = "beyond a step";
    figure(s, "switch to 4 others", name, 1e3 * (first - same), "ms");
    figure(s, "switch to 4 others, a new set", name, 1e3 * (fresh - same), "ms");
    figure(s, "switch to 4 others, not bound", name, 1e3 * (bound - same), "ms");
    return 0;
}

/* ---- a UNet ---------------------------------------------------------------------------------- */

static int place(struct scene *s, struct err *err)
{
    struct run *r = &s->keep;
    int rc = 0;
    for (int i = 0; i < 2 && rc == 0; i++) {
        if (i == 0)
            run_measure(r);
        s->x = run_tensor(r, s->rows, s->side, s->side, s->u->in_channels);
        s->text = run_tensor(r, s->rows, s->tokens, 1, s->u->text_width);
        rc = i == 0 ? run_commit(r, err) : 0;
    }
    size_t n = tensor_count(&s->x), m = tensor_count(&s->text);
    float *host = malloc((n + m) * sizeof *host);
    if (rc == 0 && !host)
        rc = err_nomem(err, (n + m) * sizeof *host);
    if (rc == 0) {
        bench_fill(host, n + m);
        op_upload(r, &s->x, host);
        op_upload(r, &s->text, host + n);
        rc = run_check(r, err);
    }
    free(host);
    return rc;
}

static int bench_batch_of(struct scene *s, int batch, struct err *err)
{
    s->batch = batch;
    s->rows = 2 * batch;
    run_init(&s->keep, s->b->dev);
    run_init(&s->pass, s->b->dev);
    for (int i = 0; i < s->rows; i++) {
        s->t[i] = 801;
        gate_waves(s->t[i], s->wave[i]);
    }
    int rc = place(s, err);
    rc = rc < 0 ? rc : bench_steps(s, err);
    rc = rc < 0 ? rc : bench_changes(s, err);
    run_release(&s->pass);
    run_release(&s->keep);
    return rc;
}

static int bench_scene(struct scene *s, struct err *err)
{
    const struct bench_unets *b = s->b;
    s->values = bench_factors(s->sites, RANK);
    int rc = s->values ? bench_gates(&s->gates, b->dev, s->sites, err)
                       : err_nomem(err, RANK * sizeof *s->values);
    for (int i = 0; i < MOST && rc == 0; i++)
        rc = bind(s, &s->adapter[i], err);
    for (const int *n = b->batch; *n && rc == 0; n++)
        rc = bench_batch_of(s, *n, err);
    for (int i = 0; i < MOST; i++)
        adapter_free(s->adapter[i]);
    gates_close(s->gates);
    free(s->values);
    return rc;
}

static int bench_demo(const struct bench_unets *b, struct err *err)
{
    struct model *m = NULL;
    int rc = model_open(&m, b->dev, b->model, err);
    if (rc == 0) {
        struct scene s = {.b = b,
                          .of = "demo UNet",
                          .u = m->unet,
                          .sites = &m->sites,
                          .side = m->unet->sample_size,
                          .tokens = m->text->positions};
        rc = bench_scene(&s, err);
    }
    model_close(m);
    return rc;
}

static int bench_sd15(const struct bench_unets *b, struct err *err)
{
    struct sites sites;
    struct unet *u;
    int rc = bench_open_sd15(&u, &sites, b->dev, 768, err);
    if (rc == 0) {
        struct scene s = {
            .b = b, .of = "SD 1.5 UNet", .u = u, .sites = &sites, .side = 64, .tokens = 77};
        rc = bench_scene(&s, err);
    }
    unet_close(u);
    sites_release(&sites);
    return rc;
}

/* ---- command --------------------------------------------------------------------------------- */

int bench_unets(const struct bench_unets *b, struct err *err)
{
    int rc = 0;
    for (const int *n = b->batch; *n && rc == 0; n++)
        rc = bench_ops(b->dev, *n, b->limits, b->json, err);
    if (rc == 0 && b->model)
        rc = bench_demo(b, err);
    return rc < 0 || b->small ? rc : bench_sd15(b, err);
}

/* The list as numbers, 0 behind the last; as it was where it is empty. */
static int read_batches(const struct option_list *l, int batch[BATCHES + 1], struct err *err)
{
    for (int i = 0; i < l->n; i++) {
        char *end;
        long n = strtol(l->item[i], &end, 10);
        if (*end || n < 1 || n > BATCH_MOST || l->n > BATCHES)
            return err_set(err, ERR_ARG, "--batch takes 1 to %d, not '%.40s', at most %d times",
                           BATCH_MOST, l->item[i], BATCHES);
        batch[i] = (int)n;
        batch[i + 1] = 0;
    }
    return 0;
}

int bench_unet(int argc, char **argv)
{
    struct bench b = {0};
    struct option o[MAX_OPTIONS];
    struct bench_limits limits;
    struct device *dev = NULL;
    int batch[BATCHES + 1] = {1, 0};
    char *demo = cli_asset("model");
    struct err err;

    make_options(o, &b);
    int rc = bench_parse(o, argc, argv, &err);
    rc = rc < 0 ? rc : device_choose(&dev, &b.on, &err);
    if (rc == 0 && dev->be->flush)
        memcpy(batch, bench_batches, sizeof bench_batches);
    rc = rc < 0 ? rc : read_batches(&b.batch, batch, &err);
    rc = rc < 0 ? rc : bench_limits(&limits, dev, &b.on, b.json, &err);
    if (rc == 0)
        rc = bench_unets(&(struct bench_unets){.dev = dev,
                                               .limits = &limits,
                                               .model = b.model ? b.model : demo,
                                               .batch = batch,
                                               .small = b.small,
                                               .json = b.json,
                                               .qkv = b.qkv},
                         &err);
    device_close(dev);
    free(b.batch.item);
    free(demo);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}
