/* weft bench compose: what each strategy costs, for one adapter to eight. */
#include "bench.h"
#include "device.h"
#include "shelf.h"

#include "compose/compose.h"
#include "compose/generate.h"
#include "unet/config.h"
#include "unet/gates.h"
#include "unet/ops.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MOST = 8, RANK = 16, MAX_OPTIONS = 10 };

struct bench {
    const char *model;
    struct device_choice on;
    bool json, sd15;
    int steps;      /* timed, of each */
    double around;  /* operations of a picture beside its steps */
    const char *of; /* what the figures are */

    struct device *dev;
    struct model *demo, *m;
    struct model other; /* the demo model with another UNet */
    float *values;      /* of all factors */
    struct use use[MOST];
    struct gates *gates;
    struct run keep;
    struct tensor any; /* of the device's, to wait for it */
    struct prompt prompt, negative;
    struct generator *g;
};

static void make_options(struct option o[MAX_OPTIONS], struct bench *b)
{
    const struct option table[] = {
        {"model", 'm', OPTION_TEXT, &b->model, "DIR", "default: the demo model", 0, 0, NULL},
        {"sd15", 0, OPTION_FLAG, &b->sd15, NULL,
         "a UNet of SD 1.5's shape at 512 x 512 instead (5 GB, some minutes)", 0, 0, NULL},
        {"json", 0, OPTION_FLAG, &b->json, NULL, "a line a figure: name, value, unit", 0, 0, NULL},
    };
    memcpy(o, table, sizeof table);
    *device_options(o + sizeof table / sizeof *table, &b->on) = (struct option){.name = NULL};
}

void bench_compose_help(void)
{
    struct bench b;
    struct option o[MAX_OPTIONS];
    make_options(o, &b);
    bench_help(
        "weft bench compose measures strategies, with adapters of rank 16 on every attention "
        "layer:",
        o);
}

/* ---- a model and adapters -------------------------------------------------------------------- */

/* The demo model's texts and autoencoder around a UNet of SD 1.5's widths that was never trained. */
static int open_sd15(struct bench *b, struct err *err)
{
    b->other = *b->demo;
    b->m = &b->other;
    return bench_open_sd15(&b->other.unet, &b->other.sites, b->dev, b->demo->text->tower.width,
                           err);
}

/* All factors share the same small values: what they are costs nothing. */
static int bind(struct bench *b, struct use *use, const char *name, const char *word,
                struct err *err)
{
    struct adapter *a = NULL;
    int rc = bench_bind(&a, b->dev, &b->m->sites, RANK, b->values, 1, name, err);
    *use =
        (struct use){.adapter = a, .unet = .01f, .part = 1, .match = 1, .words = word, .high = NAN};
    return rc;
}

static int keep_any(struct bench *b, struct err *err)
{
    run_init(&b->keep, b->dev);
    run_measure(&b->keep);
    run_tensor(&b->keep, 1, 1, 1, 1);
    int rc = run_commit(&b->keep, err);
    b->any = run_tensor(&b->keep, 1, 1, 1, 1);
    return rc;
}

static int open_all(struct bench *b, struct err *err)
{
    /* each adapter's own in the prompt below */
    static const char *const word[MOST] = {"one",  "red",   "apple",  "on",
                                           "blue", "plate", "beside", "cats"};
    char *demo = cli_asset("model");
    int rc = device_choose(&b->dev, &b->on, err);
    if (rc == 0 && !b->model && !demo)
        rc = err_set(err, ERR_IO, "the demo model is not installed; name a model with --model DIR");
    rc = rc < 0 ? rc : model_open(&b->demo, b->dev, b->model ? b->model : demo, err);
    b->m = b->demo;
    if (rc == 0 && b->sd15)
        rc = open_sd15(b, err);
    if (rc == 0) {
        b->values = bench_factors(&b->m->sites, RANK);
        rc = b->values ? keep_any(b, err) : err_nomem(err, RANK * sizeof *b->values);
    }
    for (int i = 0; i < MOST && rc == 0; i++) {
        char name[32];
        snprintf(name, sizeof name, "adapter %d", i + 1);
        rc = bind(b, &b->use[i], name, word[i], err);
    }
    rc = rc < 0 ? rc : bench_gates(&b->gates, b->dev, &b->m->sites, err);
    rc = rc < 0 ? rc : prompt_read(&b->prompt, "one red apple on a blue plate beside cats", err);
    rc = rc < 0 ? rc : prompt_read_negative(&b->negative, "", err);
    rc = rc < 0 ? rc : generator_open(&b->g, b->m, err);
    free(demo);
    return rc;
}

static void close_all(struct bench *b)
{
    generator_close(b->g);
    for (int i = 0; i < MOST; i++)
        adapter_free((struct adapter *)b->use[i].adapter);
    gates_close(b->gates);
    run_release(&b->keep);
    prompt_release(&b->prompt);
    prompt_release(&b->negative);
    free(b->values);
    unet_close(b->other.unet);
    sites_release(&b->other.sites);
    model_close(b->demo);
    device_close(b->dev);
}

/* ---- measuring ------------------------------------------------------------------------------- */

struct cell {
    double seconds, flops; /* of a step, on the average */
    size_t bytes;
};

/* Stops after the steps: what comes behind them is not of interest. */
struct watch_steps {
    int steps;
    double began, ended;
    const struct tensor *any;
};

static int on_step(void *user, int done, int total)
{
    struct watch_steps *w = user;
    struct err none;
    (void)total;
    if (done == 0 || done == w->steps)
        bench_wait(w->any, &none); /* the next step fails if this did */
    if (done == 0)
        w->began = cli_now();
    w->ended = cli_now();
    return done == w->steps;
}

static int measure(struct bench *b, const char *compose, int n, bool fold, struct cell *c,
                   struct err *err)
{
    struct picture p;
    struct cost cost;
    struct image im;
    struct watch_steps w = {.steps = b->steps, .any = &b->any};
    int times = b->dev->be->flush ? 4 : 2; /* until all that comes again has been captured */
    int side = b->m->unet->sample_size * b->m->vae->factor;
    picture_init(&p, b->m);
    p.steps = b->steps;
    p.prompt = &b->prompt;
    p.negative = &b->negative;
    p.w = p.h = side;
    p.use = b->use;
    p.n_use = n;
    p.compose = compose;
    p.fold = fold;
    p.gates = b->gates;
    p.sampler = "ddim";
    int rc = 0;
    if (n == 0) { /* all steps are alike: what twice as many do not take twice is not theirs */
        p.steps *= 2;
        rc = generator_prepare(b->g, &p, 1, &cost, err);
        b->around = -cost.flops;
        p.steps = b->steps;
    }
    rc = rc < 0 ? rc : generator_prepare(b->g, &p, 1, &cost, err);
    b->around += n == 0 ? 2 * cost.flops : 0;
    c->seconds = INFINITY;
    for (int i = 0; i < times && rc == 0; i++) {
        rc = generator_run(b->g, &im, on_step, &w, err);
        rc = rc == ERR_STOPPED ? 0 : rc;
        c->seconds = fmin(c->seconds, (w.ended - w.began) / b->steps);
    }
    c->flops = rc == 0 ? (cost.flops - b->around) / b->steps : 0;
    c->bytes = rc == 0 ? cost.bytes : 0;
    return rc;
}

static void figure(const struct bench *b, const char *what, int n, const char *name, double value,
                   const char *unit)
{
    char text[160];
    snprintf(text, sizeof text, "%s, %s, %d adapter%s: %s", b->of, what, n, n == 1 ? "" : "s",
             name);
    bench_figure(b->json, text, value, unit);
}

/* A cell beside a step without adapters. */
static void row(const struct bench *b, const char *compose, int n, const struct cell *c,
                const struct cell *bare, double plan)
{
    double time = c->seconds / bare->seconds, flops = c->flops / bare->flops,
           bytes = ((double)c->bytes - (double)bare->bytes) / 1e6;
    if (!b->json) {
        printf("%-20s %d %10.1f %8.2f %8.2f %8.1f %10.5f\n", compose, n, c->seconds * 1e3, time,
               flops, bytes, 100 * plan / c->seconds);
        fflush(stdout);
        return;
    }
    figure(b, compose, n, "a step", c->seconds * 1e3, "ms");
    figure(b, compose, n, "of a step without adapters", time, "times");
    figure(b, compose, n, "operations, of the same", flops, "times");
    figure(b, compose, n, "memory beyond it", bytes, "MB");
    figure(b, compose, n, "planning, of a step", 100 * plan / c->seconds, "%");
}

/* What a strategy's answers cost, by themselves. */
static double plan_seconds(const struct bench *b, const char *compose, int n, struct err *err)
{
    enum { TIMES = 200 };
    struct compose *c;
    struct compose_adapter fact[MOST] = {{0}};
    struct compose_facts facts = {n, fact, b->steps};
    struct action a;
    if (compose_open(&c, compose, err) < 0)
        return NAN;
    for (int i = 0; i < n; i++)
        fact[i] = (struct compose_adapter){.strength = 1, .high = NAN, .part = 1, .match = 1};
    double t = cli_now();
    for (int k = 0; k < TIMES && compose_start(c, &facts, err) == 0; k++)
        for (int i = 0; i < b->steps; i++)
            compose_next(c, &(struct compose_now){.step = i, .eval = i}, &a);
    t = (cli_now() - t) / (TIMES * b->steps);
    compose_close(c);
    return t;
}

static int bench_strategies(struct bench *b, const struct cell *bare, struct err *err)
{
    /* the second time gates look at features too, channel by channel */
    static const char full[] = "gated";
    const char *const compose[] = {"merge",
                                   "gated",
                                   full,
                                   "mora",
                                   "attend",
                                   "merge:uncond=base",
                                   "merge:deepcache=3",
                                   "switch:tau=1",
                                   "wswitch",
                                   "composite",
                                   "wcomposite",
                                   "cmlora",
                                   "superpose",
                                   "superpose:uncond=base"};
    static const int counts[] = {1, 2, 3, 4, 5, 6, 8}, few[] = {1, 2};
    const int *n = b->sd15 ? few : counts;
    int n_count = b->sd15 ? 2 : (int)(sizeof counts / sizeof *counts), rc = 0;
    if (!b->json)
        printf("\n%-20s n         ms    times      ops       MB  planning %%\n", b->of);
    for (size_t i = 0; i < sizeof compose / sizeof *compose && rc == 0; i++) {
        for (int s = 0; s < b->gates->n_site; s++)
            b->gates->plain[s] = b->gates->host[s] && compose[i] != full;
        for (int k = 0; k < n_count && rc == 0; k++) {
            struct cell c = {0};
            rc = measure(b, compose[i], n[k], false, &c, err);
            if (rc < 0)
                break;
            row(b, compose[i] == full ? "gated, in full" : compose[i], n[k], &c, bare,
                plan_seconds(b, compose[i], n[k], err));
        }
    }
    return rc;
}

/* Adapters beside the weights against the operations they must cost, and folded. */
static int bench_branches(struct bench *b, const struct cell *bare, struct err *err)
{
    static const int counts[] = {1, 4, 8};
    int rc = 0;
    for (int k = 0; k < 3 && rc == 0; k++) {
        struct cell beside = {0}, folded = {0};
        rc = measure(b, "merge", counts[k], false, &beside, err);
        rc = rc < 0 ? rc : measure(b, "merge", counts[k], true, &folded, err);
        if (rc < 0)
            break;
        double time = beside.seconds / bare->seconds, flops = beside.flops / bare->flops;
        figure(b, "beside the weights", counts[k], "time", time, "times");
        figure(b, "beside the weights", counts[k], "operations", flops, "times");
        figure(b, "beside the weights", counts[k], "time over operations", time / flops, "times");
        figure(b, "folded", counts[k], "time", folded.seconds / bare->seconds, "times");
    }
    return rc;
}

int bench_compose(int argc, char **argv)
{
    struct bench b = {0};
    struct option o[MAX_OPTIONS];
    struct cell bare = {0};
    struct err err;

    make_options(o, &b);
    int rc = bench_parse(o, argc, argv, &err);
    b.of = b.sd15 ? "SD 1.5 UNet" : "demo UNet";
    b.steps = b.sd15 ? 2 : 20;
    rc = rc < 0 ? rc : open_all(&b, &err);
    rc = rc < 0 ? rc : measure(&b, "merge", 0, false, &bare, &err);
    if (rc == 0)
        figure(&b, "guided", 0, "a step", bare.seconds * 1e3, "ms");
    rc = rc < 0 ? rc : bench_branches(&b, &bare, &err);
    rc = rc < 0 ? rc : bench_strategies(&b, &bare, &err);
    close_all(&b);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}
