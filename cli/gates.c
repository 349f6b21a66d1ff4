/* weft gates: how far the gates open for each adapter of a picture, by site and step. */
#include "making.h"
#include "shelf.h"

#include "compose/compose.h"
#include "compose/gatemap.h"
#include "unet/sheet.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELL = 8 }; /* pixels of one site in one step */

struct gates_command {
    struct making m;
    const char *out;
    bool json;
    struct gatemap map;
    int *site, n_site; /* those with gates that an adapter met */
};

static void make_options(struct option *o, void *target)
{
    struct gates_command *c = target;
    const struct option own[] = {
        {"output", 'o', OPTION_TEXT, &c->out, "FILE",
         "a PNG: a panel an adapter, a row a site, a column a step, white where\nall comes in", 0,
         0, NULL},
        {"json", 0, OPTION_FLAG, &c->json, NULL, "one JSON object", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(making_options(o, &c->m), own, sizeof own);
}

static const char *name_of(const struct gates_command *c, int i)
{
    const struct request_adapter *a = &c->m.r.adapter[i];
    return a->name ? a->name : c->m.file[i]->name;
}

static const char *site_name(const struct gates_command *c, int i)
{
    return c->m.model->sites.at[c->site[i]].name;
}

/* ---- the map --------------------------------------------------------------------------------- */

static int list_sites(struct gates_command *c, struct err *err)
{
    int n = c->m.model->sites.n;
    c->site = calloc((size_t)n + 1, sizeof *c->site);
    if (!c->site)
        return err_nomem(err, (size_t)n * sizeof *c->site);
    for (int s = 0; s < n; s++) {
        bool met = false;
        for (int a = 0; a < c->map.n_adapter; a++)
            met = met || !isnan(gatemap_mean(&c->map, a, s, -1));
        if (met)
            c->site[c->n_site++] = s;
    }
    return c->n_site ? 0
                     : err_set(err, ERR_MISMATCH,
                               "no adapter changes a site that the model has gates for");
}

static void square(struct image *im, int column, int row, double v)
{
    int grey = isnan(v) ? 0 : (int)lround(40 + 215 * fmin(fmax(v, 0), 1));
    for (int y = row * CELL; y < (row + 1) * CELL; y++)
        for (int x = column * CELL; x < (column + 1) * CELL; x++) {
            unsigned char *p = &im->rgb[((size_t)y * (size_t)im->w + (size_t)x) * 3];
            p[0] = (unsigned char)grey;
            p[1] = (unsigned char)grey;
            p[2] = isnan(v) ? 60 : (unsigned char)grey;
        }
}

static int panel(const struct gates_command *c, int adapter, struct image *im, struct err *err)
{
    *im = (struct image){.w = c->map.n_step * CELL, .h = c->n_site * CELL};
    im->rgb = malloc((size_t)im->w * (size_t)im->h * 3);
    if (!im->rgb)
        return err_nomem(err, (size_t)im->w * (size_t)im->h * 3);
    for (int i = 0; i < c->n_site; i++)
        for (int t = 0; t < c->map.n_step; t++)
            square(im, t, i, gatemap_mean(&c->map, adapter, c->site[i], t));
    return 0;
}

static int draw(const struct gates_command *c, struct err *err)
{
    size_t n = (size_t)c->map.n_adapter;
    struct image *one = calloc(n, sizeof *one), out = {0};
    const char **label = calloc(n, sizeof *label);
    int rc = one && label ? 0 : err_nomem(err, n * sizeof *one);
    for (int i = 0; i < c->map.n_adapter && rc == 0; i++) {
        label[i] = name_of(c, i);
        rc = panel(c, i, &one[i], err);
    }
    struct sheet s = {.columns = c->map.n_adapter,
                      .rows = 1,
                      .w = c->map.n_step * CELL,
                      .h = c->n_site * CELL,
                      .picture = one,
                      .column = label,
                      .title = "How much comes in: sites from the first block (above) to the "
                               "last, steps from left to right; white: all, or more"};
    rc = rc < 0 ? rc : sheet_draw(&out, &s, err);
    rc = rc < 0 ? rc : image_write_png(c->out, &out, NULL, 0, err);
    for (size_t i = 0; one && i < n; i++)
        image_release(&one[i]);
    image_release(&out);
    free(one);
    free(label);
    return rc;
}

/* ---- telling --------------------------------------------------------------------------------- */

static const char *const by[GATEMAP_BY] = {"site", "step", "place", "adapter"};

static void tell_json(const struct gates_command *c, const double share[GATEMAP_BY])
{
    json_t *list = json_array(), *explained = json_object();
    for (int a = 0; a < c->map.n_adapter; a++) {
        json_t *sites = json_object();
        for (int i = 0; i < c->n_site; i++) {
            json_t *steps = json_array();
            for (int t = 0; t < c->map.n_step; t++) {
                double v = gatemap_mean(&c->map, a, c->site[i], t);
                json_array_append_new(steps, isnan(v) ? json_null() : json_real(v));
            }
            json_object_set_new(sites, site_name(c, i), steps);
        }
        double all = gatemap_mean(&c->map, a, -1, -1);
        json_array_append_new(list,
                              json_pack("{s:o, s:o, s:o}", "name", json_text(name_of(c, a)), "mean",
                                        isnan(all) ? json_null() : json_real(all), "sites", sites));
    }
    for (int k = 0; k < GATEMAP_BY; k++)
        json_object_set_new(explained, by[k], isnan(share[k]) ? json_null() : json_real(share[k]));
    json_line(json_pack("{s:o, s:o}", "adapters", list, "explained", explained));
}

static void tell(const struct gates_command *c)
{
    double share[GATEMAP_BY], rest = 1;
    gatemap_explained(&c->map, share);
    if (c->json) {
        tell_json(c, share);
        return;
    }
    for (int a = 0; a < c->map.n_adapter; a++)
        printf(
            "%-30s %.3f of it comes in on the average, %.3f in the first step, %.3f in the last\n",
            shown(name_of(c, a)), gatemap_mean(&c->map, a, -1, -1), gatemap_mean(&c->map, a, -1, 0),
            gatemap_mean(&c->map, a, -1, c->map.n_step - 1));
    fputs("of their variance lies between", stdout);
    for (int k = 0; k < GATEMAP_BY; k++) {
        printf("%s %ss %.1f %%", k ? "," : "", by[k], 100 * share[k]);
        rest -= share[k];
    }
    printf("; several together %.1f %%\n", 100 * rest);
}

/* ---- the command ----------------------------------------------------------------------------- */

static int make(struct gates_command *c, struct err *err)
{
    struct picture p, watched;
    struct image im = {0};
    int rc = making_picture(&c->m, &p, err);
    watched = p;
    rc = rc < 0 ? rc : gatemap_init(&c->map, c->m.model, &watched, err);
    p.gatemap = &c->map;
    rc = rc < 0 ? rc : making_plan(&c->m, &p, 1, err);
    rc = rc < 0 ? rc : making_run(&c->m, &p, 1, &im, err);
    image_release(&im);
    rc = rc < 0 ? rc : list_sites(c, err);
    if (rc == 0)
        tell(c);
    return rc < 0 || !c->out ? rc : draw(c, err);
}

static int parse(struct gates_command *c, int argc, char **argv, struct err *err)
{
    struct option o[OPTIONS_MAX];
    make_options(o, c);
    int rc = making_parse(&c->m, o, argc, argv, err);
    if (rc == 0 && !c->m.r.compose)
        rc = request_set(&c->m.r.compose, "gated", err);
    struct compose *s = NULL;
    rc = rc < 0 ? rc : compose_open(&s, c->m.r.compose, err);
    if (rc == 0 && !s->strategy->gates)
        rc = err_set(err, ERR_ARG, "--compose %.40s has no gates; gated has", c->m.r.compose);
    compose_close(s);
    if (rc == 0 && c->out)
        rc = making_can_write(&c->m, c->out, err);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct gates_command c = {0};
    struct err err;
    (void)self;
    err_clear(&err);
    cli_catch_stop();
    int rc = parse(&c, argc, argv, &err);
    rc = rc < 0 ? rc : making_load(&c.m, &err);
    if (rc == 0 && c.m.r.n_adapter == 0)
        rc = err_set(&err, ERR_ARG, "which adapters? name them with -a");
    rc = rc < 0 ? rc : make(&c, &err);
    gatemap_release(&c.map);
    free(c.site);
    making_release(&c.m);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

const struct command command_gates = {
    .name = "gates",
    .usage = "weft gates PROMPT -a A -a B...",
    .about = "how far the gates open for each adapter",
    .run = run,
    .options = make_options,
    .size = sizeof(struct gates_command),
    .more = "Makes the picture with --compose gated and keeps of each gate its mean over channels: "
            "by adapter,\n"
            "site, step and place; and tells which of these it depends on. The picture itself is "
            "not kept.",
};
