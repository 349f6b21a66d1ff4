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
    struct making m;
    const char *prompt, *home, *out;
    bool json;
    struct curves *curves; /* [n] */
    char **name;
    int n, at;
    struct err *err; /* of the picture in the making */
};

static void make_options(struct option *o, void *target)
{
    struct profile *c = target;
    struct given *g = &c->m.given;
    const struct option table[] = {
        {"output", 'o', OPTION_TEXT, &c->out, "FILE", "a PNG with the curves; default: none", 0, 0,
         NULL},
        {"prompt", 0, OPTION_TEXT, &c->prompt, "TEXT",
         "behind the adapter's trigger words; default: these alone, else its\nclass word or name",
         0, 0, NULL},
        {"model", 'm', OPTION_TEXT, &g->model, "DIR", "as of weft render", 0, 0, NULL},
        {"size", 's', OPTION_SIZE, g->size, "WxH", "pixels; default: the model's own", 0, 0, NULL},
        {"seed", 0, OPTION_U64, &g->seed, "N", "the same for all; default 1", 0, 0, NULL},
        {"steps", 0, OPTION_INT, &g->steps, "N", "default 30", 0, 0, &g->has_steps},
        {"cfg", 0, OPTION_NUMBER, &g->cfg, "X", "default 7", 0, 0, &g->has_cfg},
        {"sampler", 0, OPTION_TEXT, &g->sampler, "NAME", "default: the model's own", 0, 0, NULL},
        {"threads", 't', OPTION_INT, &c->m.threads, "N", "default: all processors", 1, 1024, NULL},
        {"home", 0, OPTION_TEXT, &c->home, "DIR", "the repository; see weft help add", 0, 0, NULL},
        {"json", 0, OPTION_FLAG, &c->json, NULL, "JSON on stdout, an object an adapter", 0, 0,
         NULL},
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

/* ---- measuring ------------------------------------------------------------------------------- */

static int measure(struct profile *c)
{
    struct curves *v = &c->curves[c->at];
    const struct picture p = {.w = c->m.r.size[0], .h = c->m.r.size[1]};
    int f = c->m.model->vae->factor, rc = generator_look(c->m.g, c->err);
    size_t n;
    const float *x = generator_latent(c->m.g, &n);
    if (v->n == v->room) {
        int room = v->room ? 2 * v->room : 64;
        double *more = realloc(v->high, (size_t)room * N_CUTS * sizeof *more);
        if (!more)
            return err_nomem(c->err, (size_t)room * N_CUTS * sizeof *more);
        v->high = more;
        v->room = room;
    }
    for (int i = 0; i < N_CUTS && rc == 0; i++)
        rc = profile_high(x, p.h / f, p.w / f, c->m.model->vae->latent, cuts[i],
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
    if (!c->json) {
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
    int rc = repo_need(c->m.repo, name, &a, err);
    if (rc < 0)
        return rc;
    c->err = err;
    err_clear(err);
    rc = alone_open(&c->m, &a, c->prompt, &p, err);
    rc = rc < 0 ? rc : making_plan(&c->m, &p, c->at ? 0 : c->n, err);
    if (rc == 0 && (rc = generator_run(c->m.g, &im, on_step, c, err)) == ERR_STOPPED)
        rc = cli_stopped() ? rc : err->code;
    if (rc == 0) {
        const struct curves *v = &c->curves[c->at];
        rc = repo_set_profile(c->m.repo, a.data_sha256, c->m.model->fingerprint,
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
    int columns = c->n < COLUMNS ? c->n : COLUMNS, rows = (c->n + columns - 1) / columns, rc = 0;
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
    for (int i = 0; i < c->n && rc == 0; i++) {
        label[i] = c->name[i];
        rc = chart(&all[i], &c->curves[i], err);
    }
    rc = rc < 0 ? rc : sheet_draw(&out, &s, err);
    rc = rc < 0 ? rc : image_write_png(c->out, &out, NULL, 0, err);
    for (int i = 0; all && i < c->n; i++)
        image_release(&all[i]);
    image_release(&out);
    free(all);
    free(label);
    return rc;
}

/* ---- the command ----------------------------------------------------------------------------- */

static int open_all(struct profile *c, struct err *err)
{
    char *home = repo_home(c->home);
    size_t n = (size_t)c->n;
    c->curves = calloc(n, sizeof *c->curves);
    c->name = calloc(n, sizeof *c->name);
    int rc = home && c->curves && c->name ? repo_open(&c->m.repo, home, REPO_WRITE, err)
                                          : err_nomem(err, n * sizeof *c->curves);
    free(home);
    rc = rc < 0 ? rc : making_request(&c->m, "", err);
    return rc < 0 ? rc : making_model(&c->m, err);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct profile c = {.prompt = NULL};
    struct option o[OPTIONS_MAX];
    struct err err;
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);

    (void)self;
    err_clear(&err);
    cli_catch_stop();
    make_options(o, &c);
    c.m.given.seed = 1;
    c.m.given.has_seed = c.m.triggers = true;
    int rc = rest ? options_parse(o, argc, argv, rest, &c.n, &err) : err_nomem(&err, 64);
    if (rc == 0 && !c.n)
        rc = err_set(&err, ERR_ARG, "which? NAME...");
    rc = rc < 0 ? rc : open_all(&c, &err);
    for (; c.at < c.n && rc == 0; c.at++)
        rc = one(&c, rest[c.at], &err);
    if (rc == 0 && c.out)
        rc = plot(&c, &err);
    for (int i = 0; c.name && c.curves && i < c.n; i++) {
        free(c.name[i]);
        free(c.curves[i].high);
    }
    free(c.name);
    free(c.curves);
    free(rest);
    making_release(&c.m);
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
