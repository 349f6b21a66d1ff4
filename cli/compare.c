/* weft compare: one prompt under several strategies, on one sheet. */
#include "making.h"

#include "compose/compose.h"
#include "unet/sheet.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { MAX_COLUMNS = 16, MAX_SEEDS = 64, CELL = 320 };

struct compare {
    struct making m;
    const char *out, *seeds;
    int cell;
    bool json;

    const char *column[MAX_COLUMNS]; /* strategies */
    uint64_t seed[MAX_SEEDS];
    int n_column, n_seed;
    struct image *picture; /* [n_seed, n_column] */
};

static void make_options(struct option *o, void *target)
{
    struct compare *c = target;
    const struct option own[] = {
        {.kind = OPTION_GROUP, .name = "", .help = "What comes out:"},
        {"output", 'o', OPTION_TEXT, &c->out, "FILE", "default compare.png", 0, 0, NULL},
        {"seeds", 0, OPTION_TEXT, &c->seeds, "N,N,…", "a row for each; default: --seed", 0, 0,
         NULL},
        {"cell", 0, OPTION_INT, &c->cell, "N",
         "width of a picture on the sheet; default: its own, at least 320", 32, 4096, NULL},
        {"json", 0, OPTION_FLAG, &c->json, NULL, "one JSON object a picture on stdout", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(making_options(o, &c->m), own, sizeof own);
}

static int parse_seeds(struct compare *c, struct err *err)
{
    const char *s = c->seeds;
    if (!s) {
        c->seed[c->n_seed++] = c->m.r.seed;
        return 0;
    }
    do {
        char *end;
        unsigned long long v = strtoull(s, &end, 10);
        if (*s < '0' || *s > '9' || (*end && *end != ',') || v > INT64_MAX)
            return err_set(err, ERR_ARG, "--seeds takes whole numbers such as 1,2,3, not '%.80s'",
                           c->seeds);
        if (c->n_seed == MAX_SEEDS)
            return err_set(err, ERR_ARG, "--seeds: at most %d", MAX_SEEDS);
        c->seed[c->n_seed++] = v;
        s = *end ? end + 1 : NULL;
    } while (s);
    c->m.r.seed = c->seed[0];
    return 0;
}

static int parse_columns(struct compare *c, struct err *err)
{
    static const char *const usual[] = {"none", "merge"};
    const struct option_list given = c->m.given.compose;
    const char *const *name = given.n ? given.item : usual;
    int n = given.n ? given.n : 2;
    if (n > MAX_COLUMNS)
        return err_set(err, ERR_ARG, "--compose: at most %d strategies on a sheet", MAX_COLUMNS);
    for (int i = 0; i < n; i++) {
        struct compose *how = NULL;
        if (strcmp(name[i], "none") && compose_open(&how, name[i], err) < 0)
            return err->code;
        compose_close(how);
        c->column[c->n_column++] = name[i];
    }
    return 0;
}

static int parse(struct compare *c, int argc, char **argv, struct err *err)
{
    struct option o[OPTIONS_MAX];
    make_options(o, c);
    int rc = making_parse(&c->m, o, argc, argv, err);
    rc = rc < 0 ? rc : parse_columns(c, err);
    rc = rc < 0 ? rc : parse_seeds(c, err);
    c->out = c->out ? c->out : "compare.png";
    return rc;
}

static int open_generator(struct making *m, const char *strategy, struct err *err)
{
    generator_close(m->g);
    m->g = NULL;
    int n = strcmp(strategy, "none") ? m->r.n_adapter : 0;
    return generator_open(&m->g, m->model, m->use, n, n ? strategy : NULL, m->r.fold, err);
}

static void report(const struct compare *c, const char *strategy, uint64_t seed, double seconds)
{
    if (!c->json)
        return;
    json_t *root = json_pack("{s:s, s:I, s:f, s:i}", "compose", strategy, "seed", (json_int_t)seed,
                             "seconds", seconds, "passes", c->m.cost.passes);
    char *text = json_dumps(root, JSON_COMPACT);
    puts(text ? text : "{}");
    fflush(stdout);
    free(text);
    json_decref(root);
}

/* All pictures. What they need at most is known, and said, before the first. */
static int make_all(struct compare *c, struct picture *p, struct err *err)
{
    struct making *m = &c->m;
    c->picture = calloc((size_t)c->n_seed * (size_t)c->n_column, sizeof *c->picture);
    int rc = c->picture ? 0 : err_nomem(err, sizeof *c->picture);
    rc = rc < 0 ? rc : open_generator(m, "merge", err);
    rc = rc < 0 ? rc : making_plan(m, p, c->n_seed * c->n_column, err);
    for (int j = 0; j < c->n_column && rc == 0; j++) {
        rc = open_generator(m, c->column[j], err);
        for (int i = 0; i < c->n_seed && rc == 0; i++) {
            double began = cli_now();
            p->seed = c->seed[i];
            rc = making_run(m, p, &c->picture[i * c->n_column + j], err);
            if (rc == 0)
                report(c, c->column[j], p->seed, cli_now() - began);
        }
    }
    return rc;
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

static int write_sheet(const struct compare *c, const struct picture *p, struct err *err)
{
    const char *row[MAX_SEEDS], *column[MAX_COLUMNS];
    char seed[MAX_SEEDS][32];
    char *head = title(&c->m);
    struct image out = {0};
    int w = c->cell ? c->cell : p->w > CELL ? p->w : CELL;

    for (int i = 0; i < c->n_seed; i++) {
        snprintf(seed[i], sizeof seed[i], "seed %llu", (unsigned long long)c->seed[i]);
        row[i] = seed[i];
    }
    for (int j = 0; j < c->n_column; j++)
        column[j] = strcmp(c->column[j], "none") ? c->column[j] : "without adapters";
    const struct sheet s = {.columns = c->n_column,
                            .rows = c->n_seed,
                            .w = w,
                            .h = (int)((int64_t)w * p->h / p->w),
                            .picture = c->picture,
                            .title = head,
                            .column = column,
                            .row = c->n_seed > 1 ? row : NULL};
    int rc = head ? sheet_draw(&out, &s, err) : err_nomem(err, 64);
    rc = rc < 0 ? rc : making_write(&c->m, c->out, &out, err);
    if (rc == 0 && !c->json)
        printf("%s  %dx%d  %d pictures\n", c->out, out.w, out.h, c->n_seed * c->n_column);
    image_release(&out);
    free(head);
    return rc;
}

static void release(struct compare *c)
{
    for (int i = 0; c->picture && i < c->n_seed * c->n_column; i++)
        image_release(&c->picture[i]);
    free(c->picture);
    making_release(&c->m);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct compare c = {0};
    struct picture p;
    struct err err;

    (void)self;
    err_clear(&err);
    cli_catch_stop();
    int rc = parse(&c, argc, argv, &err);
    rc = rc < 0 ? rc : making_load(&c.m, &err);
    rc = rc < 0 ? rc : making_can_write(&c.m, c.out, &err);
    rc = rc < 0 ? rc : making_picture(&c.m, &p, &err);
    rc = rc < 0 ? rc : make_all(&c, &p, &err);
    rc = rc < 0 ? rc : write_sheet(&c, &p, &err);
    release(&c);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

const struct command command_compare = {
    .name = "compare",
    .usage = "weft compare PROMPT [options]",
    .about = "the same prompt under several strategies, on one sheet",
    .run = run,
    .options = make_options,
    .size = sizeof(struct compare),
    .help = making_help,
};
