/* weft bench grad: what the way back through the UNet takes, beside the way forth. */
#include "bench.h"
#include "cli.h"
#include "device.h"

#include "compose/attended.h"
#include "unet/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_OPTIONS = 10, TURNS = 8, KEYS = 4 };

struct bench {
    const char *model;
    int rows;
    struct device_choice on;
    bool json;
    struct device *dev;
    struct model *m;
    struct run r;
    struct tape *tape;
    struct attended seen;
    float *x, *text, *dy; /* of the host */
    struct tensor any;    /* of the device's, to wait for it */
};

/* One way of running: all of it or to the last map; noted; and back. */
struct way {
    bool maps, noted, back;
    double forth, home, flops, bytes; /* best seconds; operations; of the arena */
};

static void make_options(struct option o[MAX_OPTIONS], struct bench *b)
{
    const struct option table[] = {
        {"model", 'm', OPTION_TEXT, &b->model, "DIR", "default: the demo model", 0, 0, NULL},
        {"rows", 0, OPTION_INT, &b->rows, "N", "pictures at once, default 3", 1, 8, NULL},
        {"json", 0, OPTION_FLAG, &b->json, NULL, "a line a figure: name, value, unit", 0, 0, NULL},
    };
    memcpy(o, table, sizeof table);
    *device_options(o + sizeof table / sizeof *table, &b->on) = (struct option){.name = NULL};
}

void bench_grad_help(void)
{
    struct bench b;
    struct option o[MAX_OPTIONS];
    make_options(o, &b);
    bench_help("weft bench grad measures gradients with respect to the latent, from the UNet's "
               "output and from\nthe maps that CLoRA looks at:",
               o);
}

static void saw(void *user, struct run *r, int cross, int region, const struct tensor *q,
                const struct tensor *k, const struct attention *how)
{
    struct bench *b = user;
    if (attended_counts(&b->seen, b->m->unet, cross, region))
        attended_see(&b->seen, r, q, k, how);
}

/* The time when all that was asked for is done. */
static double done_at(struct bench *b)
{
    if (!b->r.measuring && !b->r.err.code)
        bench_wait(&b->any, &b->r.err);
    return cli_now();
}

static void pass(struct bench *b, struct way *w)
{
    static const double t[8] = {801, 801, 801, 801, 801, 801, 801, 801};
    const struct unet *u = b->m->unet;
    const struct map_watch watch = {
        .saw = saw, .user = b, .until = attended_until(u, b->seen.level)};
    int side = u->sample_size;
    struct tensor text = run_tensor(&b->r, b->rows, b->m->text->positions, 1, u->text_width);
    op_upload(&b->r, &text, b->text);
    struct tensor x = run_tensor(&b->r, b->rows, side, side, u->in_channels);
    op_upload(&b->r, &x, b->x);
    attended_begin(&b->seen, b->rows);
    b->any = x;
    double at = done_at(b);
    if (w->noted) {
        tape_begin(b->tape, &b->r);
        tape_want(b->tape, &x);
    }
    b->r.map_watch = w->maps ? &watch : NULL;
    struct tensor y = unet_forward(u, &b->r, &x, t, &(struct unet_text){&text, 1}, NULL);
    b->r.map_watch = NULL;
    attended_end(&b->seen);
    w->forth = fmin(w->forth, done_at(b) - at);
    at = cli_now();
    if (w->back) {
        if (w->maps)
            attended_seed(&b->seen, b->tape);
        else
            tape_seed(b->tape, &y, b->dy);
        tape_back(b->tape, &x);
    }
    w->home = fmin(w->home, done_at(b) - at);
}

static int measure(struct bench *b, struct way *w, struct err *err)
{
    int rc = 0;
    run_prepare(&b->r);
    pass(b, w);
    w->flops = b->r.flops;
    w->bytes = (double)b->r.plan.peak;
    rc = run_commit(&b->r, err);
    for (int i = 0; i < TURNS && rc == 0; i++) {
        run_reset(&b->r);
        w->forth = i == 1 ? INFINITY : w->forth; /* the first time everything is cold */
        w->home = i == 1 ? INFINITY : w->home;
        pass(b, w);
        rc = run_check(&b->r, err);
    }
    return rc;
}

static int report(struct bench *b, bool maps, const char *what, struct err *err)
{
    struct way forth = {.maps = maps}, back = {.maps = maps, .noted = true, .back = true};
    char name[120];
    int rc = measure(b, &forth, err);
    rc = rc < 0 ? rc : measure(b, &back, err);
    if (rc < 0)
        return rc;
    const struct {
        const char *name;
        double value;
        const char *unit;
    } figures[] = {
        {"forth", forth.forth * 1e3, "ms"},
        {"forth, noted", back.forth * 1e3, "ms"},
        {"back", back.home * 1e3, "ms"},
        {"back over forth, time", back.home / forth.forth, "times"},
        {"back over forth, operations", (back.flops - forth.flops) / forth.flops, "times"},
        {"activations without the way back", forth.bytes / 1e6, "MB"},
        {"activations with it", back.bytes / 1e6, "MB"},
    };
    for (size_t i = 0; i < sizeof figures / sizeof *figures; i++) {
        snprintf(name, sizeof name, "%s, %d rows, %s", what, b->rows, figures[i].name);
        bench_figure(b->json, name, figures[i].value, figures[i].unit);
    }
    return 0;
}

static int fill(float **out, size_t n, struct err *err)
{
    *out = malloc(n * sizeof **out);
    if (!*out)
        return err_nomem(err, n * sizeof **out);
    for (size_t i = 0; i < n; i++)
        (*out)[i] = (float)sin((double)(i * 7919 % 10007));
    return 0;
}

static int open_all(struct bench *b, struct err *err)
{
    char *demo = cli_asset("model");
    int rc = b->model || demo ? device_choose(&b->dev, &b->on, err)
                              : err_set(err, ERR_IO, "there is no demo model");
    rc = rc < 0 ? rc : model_open(&b->m, b->dev, b->model ? b->model : demo, err);
    free(demo);
    if (rc < 0)
        return rc;
    const struct unet *u = b->m->unet;
    size_t places = (size_t)b->rows * (size_t)u->sample_size * (size_t)u->sample_size;
    run_init(&b->r, b->dev);
    b->seen.level = attended_level(u, 4);
    rc = fill(&b->x, places * (size_t)u->in_channels, err);
    rc = rc < 0 ? rc : fill(&b->dy, places * (size_t)u->out_channels, err);
    rc = rc < 0
             ? rc
             : fill(&b->text,
                    (size_t)b->rows * (size_t)b->m->text->positions * (size_t)u->text_width, err);
    return rc < 0 ? rc : tape_new(&b->tape, err);
}

int bench_grad(int argc, char **argv)
{
    static const int keys[KEYS] = {1, 2, 5, 6};
    struct bench b = {.rows = 3, .seen = {.region = -1, .key = keys, .n = KEYS}};
    struct option o[MAX_OPTIONS];
    struct err err;
    make_options(o, &b);
    int rc = bench_parse(o, argc, argv, &err);
    rc = rc < 0 ? rc : open_all(&b, &err);
    rc = rc < 0 ? rc : report(&b, false, "from the output", &err);
    rc = rc < 0 ? rc : report(&b, true, "from maps", &err);
    tape_free(b.tape);
    attended_release(&b.seen);
    run_release(&b.r);
    free(b.x);
    free(b.text);
    free(b.dy);
    model_close(b.m);
    device_close(b.dev);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}
