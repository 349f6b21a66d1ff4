/* weft profile: how much of what an adapter draws is fine detail, step by step. */
#include "alone.h"
#include "shelf.h"

#include "compose/profile.h"
#include "unet/sheet.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

enum { N_CUTS = 4, STORED = 1, CHART_W = 320, CHART_H = 200, COLUMNS = 4 };
static const double cuts[N_CUTS] = {.1, PROFILE_CUT, .4, .6};

/* Of one adapter: H before each evaluation and after the last, one curve a cut. */
struct curves {
    double *high; /* [n, N_CUTS] */
    int n, room;
};

struct profile {
    struct alone a;
    const char *out;
    struct curves *curves; /* [a.n] */
    char **name;
    int at;
    struct err *err; /* of the picture in the making */
};

static void make_options(struct option *o, void *target)
{
    struct profile *c = target;
    const struct option own[] = {
        {"output", 'o', OPTION_TEXT, &c->out, "FILE", "a PNG with the curves; default: none", 0, 0,
         NULL},
        {.name = NULL},
    };
    memcpy(alone_options(o, &c->a), own, sizeof own);
}

/* ---- measuring ------------------------------------------------------------------------------- */

static int measure(struct profile *c)
{
    struct curves *v = &c->curves[c->at];
    const int *size = c->a.m.r.size;
    int f = c->a.m.model->vae->factor, rc = generator_look(c->a.m.g, 0, c->err);
    size_t n;
    const float *x = generator_latent(c->a.m.g, 0, &n);
    if (v->n == v->room) {
        int room = v->room ? 2 * v->room : 64;
        double *more = realloc(v->high, (size_t)room * N_CUTS * sizeof *more);
        if (!more)
            return err_nomem(c->err, (size_t)room * N_CUTS * sizeof *more);
        v->high = more;
        v->room = room;
    }
    for (int i = 0; i < N_CUTS && rc == 0; i++)
        rc = profile_high(x, size[1] / f, size[0] / f, c->a.m.model->vae->latent, cuts[i],
                          &v->high[v->n * N_CUTS + i], c->err);
    v->n++;
    return rc;
}

static int on_step(void *user, int done, int total)
{
    struct profile *c = user;
    (void)done;
    (void)total;
    return cli_stopped() || measure(c) < 0;
}

static void tell(const struct profile *c, const struct repo_adapter *a)
{
    const struct curves *v = &c->curves[c->at];
    const double *last = &v->high[(v->n - 1) * N_CUTS];
    if (!c->a.json) {
        printf("%-30s high frequencies %.3f  at the half way %.3f\n", shown(a->name), last[STORED],
               v->high[v->n / 2 * N_CUTS + STORED]);
        return;
    }
    json_t *list = json_array();
    for (int k = 0; k < N_CUTS; k++) {
        json_t *curve = json_array();
        for (int i = 0; i < v->n; i++)
            json_array_append_new(curve, json_real(v->high[i * N_CUTS + k]));
        json_array_append_new(list, json_pack("{s:f, s:o}", "cut", cuts[k], "high", curve));
    }
    json_line(json_pack("{s:o, s:o, s:f, s:o}", "name", json_text(a->name), "id", json_text(a->id),
                        "high", last[STORED], "curves", list));
}

static int one(struct profile *c, const char *name, struct err *err)
{
    struct repo_adapter a;
    struct picture p;
    struct image im = {0};
    int rc = repo_need(c->a.m.repo, name, &a, err);
    if (rc < 0)
        return rc;
    c->err = err;
    err_clear(err);
    rc = alone_open(&c->a, &a, &p, err);
    rc = rc < 0 ? rc : making_plan(&c->a.m, &p, c->at ? 0 : c->a.n, err);
    if (rc == 0 && (rc = generator_run(c->a.m.g, &im, on_step, c, err)) == ERR_STOPPED)
        rc = cli_stopped() ? rc : err->code;
    if (rc == 0) {
        const struct curves *v = &c->curves[c->at];
        rc = repo_set_profile(c->a.m.repo, a.data_sha256, c->a.m.model->fingerprint,
                              v->high[(v->n - 1) * N_CUTS + STORED], err);
    }
    if (rc == 0)
        tell(c, &a);
    if (rc == 0 && !(c->name[c->at] = strdup(shown(a.name))))
        rc = err_nomem(err, 64);
    image_release(&im);
    repo_adapter_release(&a);
    return rc < 0 ? err_prefix(err, "%.80s", name) : 0;
}

/* ---- the plot -------------------------------------------------------------------------------- */

static void dot(struct image *im, int x, int y, int grey)
{
    if (x >= 0 && y >= 0 && x < im->w && y < im->h)
        memset(&im->rgb[((size_t)y * (size_t)im->w + (size_t)x) * 3], grey, 3);
}

static int height(double v)
{
    return CHART_H - 1 - (int)lround(v * (CHART_H - 1));
}

/* H from 0 at the bottom to 1, from the first step to the last; the stored cut is black. */
static void curve(struct image *im, const struct curves *v, int cut)
{
    for (int x = 0; x < CHART_W; x++) {
        double at = (double)x / (CHART_W - 1) * (v->n - 1), part = at - floor(at);
        int i = (int)at, k = i + 1 < v->n ? i + 1 : i;
        double y = (1 - part) * v->high[i * N_CUTS + cut] + part * v->high[k * N_CUTS + cut];
        for (int d = 0; d < (cut == STORED ? 2 : 1); d++)
            dot(im, x, height(y) + d, cut == STORED ? 0 : 140);
    }
}

static int chart(struct image *im, const struct curves *v, struct err *err)
{
    *im = (struct image){.w = CHART_W, .h = CHART_H};
    im->rgb = malloc((size_t)CHART_W * CHART_H * 3);
    if (!im->rgb)
        return err_nomem(err, (size_t)CHART_W * CHART_H * 3);
    memset(im->rgb, 250, (size_t)CHART_W * CHART_H * 3);
    for (int i = 0; i <= 4; i++)
        for (int x = 0; x < CHART_W; x++)
            dot(im, x, height(i / 4.0), 210);
    for (int k = 0; k < N_CUTS; k++)
        curve(im, v, k);
    return 0;
}

static int plot(const struct profile *c, struct err *err)
{
    int columns = c->a.n < COLUMNS ? c->a.n : COLUMNS, rows = (c->a.n + columns - 1) / columns,
        rc = 0;
    size_t cells = (size_t)columns * (size_t)rows;
    struct image *all = calloc(cells, sizeof *all), out = {0};
    const char **label = calloc(cells, sizeof *label);
    struct sheet s = {
        .columns = columns,
        .rows = rows,
        .w = CHART_W,
        .h = CHART_H,
        .picture = all,
        .label = label,
        .title = "Share of high frequencies from the first step to the last, 0 to 1: beyond 0.2 of "
                 "the radius (black), 0.1, 0.4, 0.6"};
    if (!all || !label)
        rc = err_nomem(err, cells * sizeof *all);
    for (int i = 0; i < c->a.n && rc == 0; i++) {
        label[i] = c->name[i];
        rc = chart(&all[i], &c->curves[i], err);
    }
    rc = rc < 0 ? rc : sheet_draw(&out, &s, err);
    rc = rc < 0 ? rc : image_write_png(c->out, &out, NULL, 0, err);
    for (int i = 0; all && i < c->a.n; i++)
        image_release(&all[i]);
    image_release(&out);
    free(all);
    free(label);
    return rc;
}

/* ---- the command ----------------------------------------------------------------------------- */

static int take_room(struct profile *c, struct err *err)
{
    size_t n = (size_t)c->a.n;
    c->curves = calloc(n, sizeof *c->curves);
    c->name = calloc(n, sizeof *c->name);
    return c->curves && c->name ? 0 : err_nomem(err, n * sizeof *c->curves);
}

static void release(struct profile *c)
{
    for (int i = 0; c->name && c->curves && i < c->a.n; i++) {
        free(c->name[i]);
        free(c->curves[i].high);
    }
    free(c->name);
    free(c->curves);
    alone_release(&c->a);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct profile c = {.out = NULL};
    struct option o[OPTIONS_MAX];
    struct err err;

    (void)self;
    err_clear(&err);
    cli_catch_stop();
    make_options(o, &c);
    int rc = alone_parse(&c.a, o, argc, argv, &err);
    if (rc == 0 && !c.a.n)
        rc = err_set(&err, ERR_ARG, "which? NAME...");
    rc = rc < 0 ? rc : alone_repository(&c.a, &err);
    rc = rc < 0 ? rc : take_room(&c, &err);
    rc = rc < 0 ? rc : alone_model(&c.a, &err);
    for (; rc == 0 && c.at < c.a.n; c.at++)
        rc = one(&c, c.a.rest[c.at], &err);
    if (rc == 0 && c.out)
        rc = plot(&c, &err);
    release(&c);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

const struct command command_profile = {
    .name = "profile",
    .usage = "weft profile NAME...",
    .about = "how much of what an adapter draws is fine detail",
    .run = run,
    .options = make_options,
    .size = sizeof(struct profile),
    .more = "Each adapter alone, with its trigger words: the share of high frequencies in the "
            "latent, at every\n"
            "step and at the end. The last is kept with the adapter and this model; --compose "
            "cmlora orders by it.",
};
