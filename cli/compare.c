/* weft compare: one prompt under several strategies, on one sheet. */
#include "auto.h"
#include "axis.h"
#include "making.h"
#include "sheet_html.h"
#include "shelf.h"

#include "compose/compose.h"
#include "unet/file.h"
#include "unet/sheet.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { CELL = 320 };

struct compare {
    struct making m;
    const char *out, *html, *seeds, *x, *y;
    int cell;
    bool json;

    struct axis axis[2];   /* columns, rows */
    char *base;            /* the request that all cells begin with, as JSON; owned */
    char *title;           /* of the sheet; owned */
    struct image *picture; /* [rows, columns] */
    int w, h;
    int hand;        /* pictures made at once */
    struct use *use; /* [MAKING_HAND, adapters]: theirs */
};

static void make_options(struct option *o, void *target)
{
    struct compare *c = target;
    const struct option own[] = {
        AUTO_OPTIONS(&c->m),
        {.kind = OPTION_GROUP, .name = "", .help = "What comes out:"},
        {"output", 'o', OPTION_TEXT, &c->out, "FILE", "default compare.png", 0, 0, NULL},
        {"html", 0, OPTION_TEXT, &c->html, "FILE",
         "the same as a web page too, pictures and all in one file", 0, 0, NULL},
        {"seeds", 0, OPTION_TEXT, &c->seeds, "N,N,…", "a row for each; default: --seed", 0, 0,
         NULL},
        {"x", 'x', OPTION_TEXT, &c->x, "KEY=A,B,…", axis_help, 0, 0, NULL},
        {"y", 'y', OPTION_TEXT, &c->y, "KEY=A,B,…", "rows", 0, 0, NULL},
        {"cell", 0, OPTION_INT, &c->cell, "N",
         "width of a picture on the sheet; default: its own, at least 320", 32, 4096, NULL},
        {"json", 0, OPTION_FLAG, &c->json, NULL, "one JSON object a picture on stdout", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(making_options(o, &c->m), own, sizeof own);
}

/* ---- axes ------------------------------------------------------------------------------------ */

/* Columns are strategies and rows are seeds where nothing else is asked for. */
static int read_axes(struct compare *c, struct err *err)
{
    static const char *const usual[] = {"none", "merge"};
    const struct option_list *how = &c->m.given.compose;
    struct axis *x = &c->axis[0], *y = &c->axis[1];
    char seed[32];
    const char *const one[] = {seed};
    int rc;
    snprintf(seed, sizeof seed, "%llu", (unsigned long long)c->m.r.seed);
    x->option = c->x ? "--x" : "--compose";
    y->option = c->y ? "--y" : "--seeds";
    if (c->x && how->n > 1)
        return err_set(err, ERR_ARG,
                       "several --compose are the columns; beside --x name one, or none");
    if (c->y && c->seeds)
        return err_set(err, ERR_ARG, "--seeds are the rows; beside --y name one with --seed");
    rc = c->x ? axis_read(x, c->x, err)
              : axis_read_list(x, "compose", how->n ? how->item : usual, how->n ? how->n : 2, err);
    if (rc < 0 || c->y || !c->seeds)
        return rc < 0 ? rc
               : c->y ? axis_read(y, c->y, err)
                      : axis_read_list(y, "seed", one, 1, err);
    return axis_read_values(y, "seed", c->seeds, err);
}

/* Whether a picture of another value needs nothing else loaded. Folded weights are made of strengths. */
static bool is_light(const struct compare *c, const struct axis *a)
{
    static const char *const keys[] = {"seed",     "compose", "cfg",     "steps",     "sampler",
                                       "schedule", "eta",     "denoise", "clip-skip", NULL},
                             *const acts[] = {"strength", "from", "to", NULL};
    size_t n = strcspn(a->key, "/");
    int i = 0, k = 0;
    while (keys[i] && strcmp(keys[i], a->key))
        i++;
    while (acts[k] && (strlen(acts[k]) != n || strncmp(acts[k], a->key, n)))
        k++;
    return keys[i] || (acts[k] && !c->m.r.fold);
}

/* Whether all cells use what is loaded for the sheet. */
static bool is_loaded_once(const struct compare *c)
{
    return is_light(c, &c->axis[0]) && is_light(c, &c->axis[1]);
}

/* ---- pictures -------------------------------------------------------------------------------- */

/* The sheet remembers one picture: of the first strategy that has adapters and the first seed. */
static int first_picture(struct compare *c, struct err *err)
{
    const struct axis *x = &c->axis[0], *y = &c->axis[1];
    int i = 0, rc = c->y ? 0 : axis_set(&c->m.r, y, 0, err);
    if (rc < 0 || c->x)
        return rc;
    while (i < x->n && !strcmp(x->value[i], "none"))
        i++;
    return request_set(&c->m.r.compose, i < x->n ? x->value[i] : NULL, err);
}

static int parse(struct compare *c, int argc, char **argv, struct err *err)
{
    struct option o[OPTIONS_MAX];
    make_options(o, c);
    int rc = making_parse(&c->m, o, argc, argv, err);
    rc = rc < 0 ? rc : read_axes(c, err);
    rc = rc < 0 ? rc : first_picture(c, err);
    c->out = c->out ? c->out : "compare.png";
    return rc;
}

/* The request of a cell; i or j -1: that of all. Nothing is loaded for it. */
static int cell_request(struct compare *c, int i, int j, struct err *err)
{
    struct making *m = &c->m;
    making_forget(m);
    request_init(&m->r);
    m->r.repo = m->repo;
    m->named = true;
    int rc = request_from_json(&m->r, c->base, err);
    rc = rc < 0 || j < 0 ? rc : axis_set(&m->r, &c->axis[0], j, err);
    return rc < 0 || i < 0 ? rc : axis_set(&m->r, &c->axis[1], i, err);
}

/* The prompt, and below it the adapters with their strengths. */
static char *title(const struct making *m)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        return NULL;
    fputs(m->r.prompt, f);
    for (int i = 0; i < m->r.n_adapter; i++) {
        const struct request_adapter *a = &m->r.adapter[i];
        fprintf(f, "%s%s %g", i ? " + " : "\n", a->name ? a->name : m->file[i]->name, a->unet);
    }
    if (fclose(f) == 0)
        return text;
    free(text);
    return NULL;
}

/* The strategy of a cell, as long as the sheet is in the making. */
static void set_strategy(const struct compare *c, int i, int j, struct picture *p)
{
    const int at[2] = {j, i};
    for (int k = 0; k < 2; k++)
        if (!strcmp(c->axis[k].key, "compose"))
            p->compose = c->axis[k].value[at[k]];
    if (p->compose && !strcmp(p->compose, "none")) {
        p->compose = NULL;
        p->n_use = 0;
    }
}

/* The picture of row i and column j, the k-th in hand. */
static int open_cell(struct compare *c, int i, int j, int k, struct picture *p, struct err *err)
{
    struct making *m = &c->m;
    int rc;
    if (is_loaded_once(c)) {
        rc = axis_set(&m->r, &c->axis[0], j, err);
        rc = rc < 0 ? rc : axis_set(&m->r, &c->axis[1], i, err);
    } else {
        rc = cell_request(c, i, j, err);
        rc = rc < 0 ? rc : making_load(m, err);
    }
    rc = rc < 0 ? rc : making_picture(m, p, err);
    if (rc == 0)
        set_strategy(c, i, j, p);
    if (rc == 0 && is_loaded_once(c)) { /* others may be in hand */
        struct use *own = c->use + k * m->r.n_adapter;
        memcpy(own, m->use, (size_t)m->r.n_adapter * sizeof *own);
        p->use = own;
    }
    c->w = m->r.size[0];
    c->h = m->r.size[1];
    return rc;
}

static void report(const struct compare *c, int i, int j, const struct picture *p, int passes,
                   double seconds)
{
    if (!c->json)
        return;
    const struct axis *x = &c->axis[0], *y = &c->axis[1];
    const char *none = p->n_use < c->m.r.n_adapter ? "none" : "merge";
    json_line(json_pack(
        "{s:s, s:I, s:o, s:o, s:f, s:i}", "compose", p->compose ? p->compose : none, "seed",
        (json_int_t)p->seed, "x", json_pack("{s:o}", x->key, json_text(x->value[j])), "y",
        json_pack("{s:o}", y->key, json_text(y->value[i])), "seconds", seconds, "passes", passes));
}

/* Every value of every axis is one that can be used, before the first picture. What is loaded stays where all
 * cells use it. */
static int check_cells(struct compare *c, struct err *err)
{
    int rc = 0;
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < c->axis[k].n && rc == 0; i++)
            rc = is_loaded_once(c) ? axis_set(&c->m.r, &c->axis[k], i, err)
                                   : cell_request(c, k ? i : -1, k ? -1 : i, err);
    return rc;
}

/* Says what the pictures take, and refuses what has no room: all of them by the one that takes most where they
 * share what is loaded, else each as it comes. */
static int announce(struct compare *c, struct err *err)
{
    struct making *m = &c->m;
    struct picture p;
    struct cost cost;
    double flops = -1;
    int columns = c->axis[0].n, n = columns * c->axis[1].n, most = 0, rc = 0;
    for (int k = 0; k < n && rc == 0 && is_loaded_once(c); k++) {
        rc = open_cell(c, k / columns, k % columns, 0, &p, err);
        rc = rc < 0 ? rc : generator_prepare(m->g, &p, 1, &cost, err);
        if (rc == 0 && cost.flops > flops) {
            flops = cost.flops;
            most = k;
        }
    }
    rc = rc < 0 ? rc : open_cell(c, most / columns, most % columns, 0, &p, err);
    rc = rc < 0 ? rc : making_plan(m, &p, n, err);
    c->hand = rc < 0 || !is_loaded_once(c) ? 1 : making_hand(m, &p);
    return rc;
}

/* Cells [first, first + n) at once, column by column. */
static int make_some(struct compare *c, int first, int n, struct err *err)
{
    struct making *m = &c->m;
    struct picture p[MAKING_HAND];
    struct image im[MAKING_HAND] = {{0}};
    int rows = c->axis[1].n, columns = c->axis[0].n, rc = 0;
    double began = cli_now();
    for (int k = 0; k < n && rc == 0; k++)
        rc = open_cell(c, (first + k) % rows, (first + k) / rows, k, &p[k], err);
    if (rc == 0 && !is_loaded_once(c))
        rc = making_plan(m, p, 0, err);
    rc = rc < 0 ? rc : making_run(m, p, n, im, err);
    double seconds = cli_now() - began;
    for (int k = 0; k < n; k++) {
        int i = (first + k) % rows, j = (first + k) / rows;
        c->picture[i * columns + j] = im[k];
        if (rc == 0)
            report(c, i, j, &p[k], generator_cost(m->g, k)->passes,
                   seconds * generator_cost(m->g, k)->flops / m->cost.flops);
    }
    return rc;
}

static int make_all(struct compare *c, struct err *err)
{
    int n = c->axis[0].n * c->axis[1].n;
    size_t uses = (size_t)(c->m.r.n_adapter + 1) * MAKING_HAND;
    c->picture = calloc((size_t)n, sizeof *c->picture);
    c->use = calloc(uses, sizeof *c->use);
    int rc = c->picture && c->use ? announce(c, err) : err_nomem(err, uses * sizeof *c->use);
    for (int i = 0, k; i < n && rc == 0; i += k) {
        k = n - i < c->hand ? n - i : c->hand;
        rc = make_some(c, i, k, err);
    }
    return rc;
}

/* The sheet keeps the settings that its cells began with. */
static int remember(struct compare *c, struct err *err)
{
    int rc = cell_request(c, -1, -1, err);
    c->m.r.size[0] = c->w;
    c->m.r.size[1] = c->h;
    return rc;
}

static int write_sheet(struct compare *c, struct err *err)
{
    char *name[2][AXIS_MOST] = {{NULL}};
    struct image out = {0};
    int w = c->cell ? c->cell : c->w > CELL ? c->w : CELL, rc = 0;

    for (int k = 0; k < 2; k++)
        for (int i = 0; i < c->axis[k].n && rc == 0; i++)
            if (!(name[k][i] = axis_label(&c->axis[k], i)))
                rc = err_nomem(err, 64);
    const struct sheet s = {.columns = c->axis[0].n,
                            .rows = c->axis[1].n,
                            .w = w,
                            .h = (int)((int64_t)w * c->h / c->w),
                            .picture = c->picture,
                            .title = c->title,
                            .column = (const char *const *)name[0],
                            .row = c->axis[1].n > 1 ? (const char *const *)name[1] : NULL};
    rc = rc < 0 ? rc : sheet_draw(&out, &s, err);
    rc = rc < 0 ? rc : remember(c, err);
    rc = rc < 0 ? rc : making_write(&c->m, c->out, &out, err);
    if (rc == 0 && c->html)
        rc = sheet_html(c->html, &s, c->base, err);
    if (rc == 0 && !c->json)
        printf("%s  %dx%d  %d pictures\n", c->out, out.w, out.h, c->axis[0].n * c->axis[1].n);
    for (int k = 0; k < 2; k++)
        for (int i = 0; i < c->axis[k].n; i++)
            free(name[k][i]);
    image_release(&out);
    return rc;
}

static void release(struct compare *c)
{
    for (int i = 0; c->picture && i < c->axis[0].n * c->axis[1].n; i++)
        image_release(&c->picture[i]);
    axis_release(&c->axis[0]);
    axis_release(&c->axis[1]);
    free(c->picture);
    free(c->use);
    free(c->base);
    free(c->title);
    making_release(&c->m);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct compare c = {0};
    struct err err;

    (void)self;
    err_clear(&err);
    cli_catch_stop();
    int rc = parse(&c, argc, argv, &err);
    rc = rc < 0 ? rc : making_load(&c.m, &err);
    rc = rc < 0 ? rc : making_can_write(&c.m, c.out, &err);
    if (rc == 0 && c.html)
        rc = file_can_replace(c.html, &err);
    if (rc == 0 && !(c.base = request_to_json(&c.m.r, &err)))
        rc = err.code;
    if (rc == 0 && !(c.title = title(&c.m)))
        rc = err_nomem(&err, 64);
    rc = rc < 0 ? rc : check_cells(&c, &err);
    rc = rc < 0 ? rc : make_all(&c, &err);
    rc = rc < 0 ? rc : write_sheet(&c, &err);
    release(&c);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

const struct command command_compare = {
    .name = "compare",
    .usage = "weft compare PROMPT [options]",
    .about = "the same prompt under several strategies or settings, on one sheet",
    .run = run,
    .options = make_options,
    .size = sizeof(struct compare),
    .help = making_help,
};
