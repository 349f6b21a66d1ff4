/* weft combine: one adapter from several. */
#include "pick.h"

#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct combine {
    struct shelf s;
    const char *out, *style;
    int rank;
    struct pick *w;   /* [s.n] */
    double *strength; /* [s.n] */
};

#define MAX_OPTIONS 7

static void make_options(struct option *o, void *target)
{
    struct combine *c = target;
    const struct option table[] = {
        {"output", 'o', OPTION_TEXT, &c->out, "FILE", "the new file", 0, 0, NULL},
        {"rank", 0, OPTION_INT, &c->rank, "N",
         "the nearest of this rank, by singular values; default: the\nexact sum, whose rank is all "
         "ranks together",
         1, INT_MAX, NULL},
        {"style", 0, OPTION_TEXT, &c->style, "STYLE", "kohya (default), diffusers or peft", 0, 0,
         NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

/* A REF is taken whole first, else what stands behind its last ":" is the strength. */
static int open_one(struct combine *c, int i, struct err *err)
{
    const char *ref = c->s.rest[i], *colon = strrchr(ref, ':');
    char *end = NULL, *name;
    c->strength[i] = 1;
    struct err whole;
    int rc = pick_open(&c->w[i], &c->s, ref, &whole);
    if (rc == 0 && !isnan(c->w[i].a.strength) && c->w[i].a.key)
        c->strength[i] = c->w[i].a.strength;
    double x = rc < 0 && colon ? strtod(colon + 1, &end) : 0;
    if (rc == 0 || !colon || !colon[1] || *end || !isfinite(x)) {
        if (rc < 0)
            return err_set(err, rc, "%s", whole.msg);
        return 0;
    }
    pick_close(&c->w[i]);
    if (!(name = strndup(ref, (size_t)(colon - ref))))
        return err_nomem(err, strlen(ref));
    rc = pick_open(&c->w[i], &c->s, name, err);
    c->strength[i] = x;
    free(name);
    return rc;
}

static int add_up(struct combine *c, struct matrices *sum, double *kept, struct err *err)
{
    size_t n = (size_t)c->s.n, size = 0;
    const struct matrices **m = malloc(n * sizeof *m);
    char *what = NULL;
    FILE *f = open_memstream(&what, &size);
    int rc = m && f ? 0 : err_nomem(err, n * sizeof *m);
    for (size_t i = 0; i < n && rc == 0; i++) {
        m[i] = &c->w[i].m;
        if (m[i]->left)
            rc = err_set(err, ERR_UNSUPPORTED,
                         "%s: holds %d parts of kind %s, which no sum of LoRAs can hold",
                         pick_name(&c->w[i]), m[i]->left, m[i]->left_kind);
        fprintf(f, "%s%.64s:%g", i ? " + " : "sum of ", c->w[i].file->data_sha256, c->strength[i]);
    }
    rc = rc < 0 ? rc : matrices_sum(sum, c->s.n, m, c->strength, err);
    if (rc == 0 && c->rank)
        rc = matrices_truncate(sum, c->rank, 1, kept, err);
    if (f)
        fclose(f);
    rc = rc < 0 ? rc : pick_write(c->out, c->style, sum, NULL, what, err);
    free(what);
    free(m);
    return rc;
}

static void tell(const struct combine *c, const struct matrices *sum, double kept)
{
    int most = 0;
    for (int i = 0; i < sum->n; i++)
        most = sum->item[i].m.f[0].rank > most ? sum->item[i].m.f[0].rank : most;
    if (c->s.json)
        json_line(json_pack("{s:o, s:i, s:i, s:f}", "file", json_text(c->out), "sites", sum->n,
                            "rank", most, "kept", kept));
    else if (c->rank)
        printf("%s  %d weights, rank %d, %.2f %% of the energy kept\n", shown(c->out), sum->n, most,
               100 * kept);
    else
        printf("%s  %d weights, rank %d, exact\n", shown(c->out), sum->n, most);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct combine c = {.style = "kohya"};
    struct matrices sum = {0};
    struct option o[MAX_OPTIONS];
    struct err err;
    double kept = 1;

    (void)self;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 2, -1, "adapters", &err);
    if (rc == 0 && !c.out)
        rc = err_set(&err, ERR_ARG, "where to? -o FILE");
    c.w = calloc((size_t)c.s.n + 1, sizeof *c.w);
    c.strength = calloc((size_t)c.s.n + 1, sizeof *c.strength);
    if (rc == 0 && (!c.w || !c.strength))
        rc = err_nomem(&err, (size_t)c.s.n * sizeof *c.w);
    for (int i = 0; i < c.s.n && rc == 0; i++)
        rc = open_one(&c, i, &err);
    rc = rc < 0 ? rc : add_up(&c, &sum, &kept, &err);
    if (rc == 0)
        tell(&c, &sum, kept);
    for (int i = 0; c.w && i < c.s.n; i++)
        pick_close(&c.w[i]);
    free(c.w);
    free(c.strength);
    matrices_release(&sum);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_combine = {
    .name = "combine",
    .usage = "weft combine A:0.7 B:0.5... -o FILE",
    .about = "one adapter that does what several do, exactly",
    .run = run,
    .options = make_options,
    .size = sizeof(struct combine),
    .more = "REF:STRENGTH names each; the sum is of their changes of the weights, not of their "
            "factors, so\nranks may differ and strengths may be negative.",
};
