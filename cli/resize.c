/* weft resize: an adapter of lower rank. */
#include "pick.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct resize {
    struct shelf s;
    const char *out, *style;
    int rank;
    double keep;
    bool slice;
};

#define MAX_OPTIONS 9

static void make_options(struct option *o, void *target)
{
    struct resize *c = target;
    const struct option table[] = {
        {"output", 'o', OPTION_TEXT, &c->out, "FILE", "the new file", 0, 0, NULL},
        {"rank", 0, OPTION_INT, &c->rank, "N", "at most this rank at each weight", 1, INT_MAX,
         NULL},
        {"keep", 0, OPTION_NUMBER, &c->keep, "X",
         "the lowest ranks that keep this part of each weight's\nenergy (its squared norm): 0.95",
         0, 1, NULL},
        {"slice", 0, OPTION_FLAG, &c->slice, NULL,
         "take the first N columns as they are, for a DyLoRA, which\nis trained so", 0, 0, NULL},
        {"style", 0, OPTION_TEXT, &c->style, "STYLE", "kohya (default), diffusers or peft", 0, 0,
         NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static void ranks(const struct matrices *m, int *low, int *high)
{
    *low = INT_MAX;
    *high = 0;
    for (int i = 0; i < m->n; i++) {
        int r = m->item[i].m.f[0].rank;
        *low = r < *low ? r : *low;
        *high = r > *high ? r : *high;
    }
}

static int make(struct resize *c, struct pick *w, double *kept, struct err *err)
{
    char what[200];
    if (w->m.left)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: holds %d parts of kind %s, which a LoRA cannot hold", pick_name(w),
                       w->m.left, w->m.left_kind);
    int rank = c->rank ? c->rank : INT_MAX;
    int rc = c->slice ? matrices_slice(&w->m, rank, kept, err)
                      : matrices_truncate(&w->m, rank, c->keep ? c->keep : 1, kept, err);
    snprintf(what, sizeof what, "resize of %.64s, %.4f of its energy", w->file->data_sha256, *kept);
    return rc < 0 ? rc : pick_write(c->out, c->style, &w->m, w->file, what, err);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct resize c = {.style = "kohya"};
    struct pick w = {0};
    struct option o[MAX_OPTIONS];
    struct err err;
    double kept = 1;
    int low, high;

    (void)self;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 1, 1, "adapter", &err);
    if (rc == 0 && !c.out)
        rc = err_set(&err, ERR_ARG, "where to? -o FILE");
    if (rc == 0 && !c.rank && !(c.keep > 0))
        rc = err_set(&err, ERR_ARG, "to which rank? --rank N or --keep 0.95");
    rc = rc < 0 ? rc : pick_open(&w, &c.s, c.s.rest[0], &err);
    rc = rc < 0 ? rc : make(&c, &w, &kept, &err);
    if (rc == 0) {
        ranks(&w.m, &low, &high);
        if (c.s.json)
            json_line(json_pack("{s:o, s:o, s:[i,i], s:f, s:i}", "file", json_text(c.out), "from",
                                json_text(pick_name(&w)), "rank", low, high, "kept", kept, "sites",
                                w.m.n));
        else
            printf("%s  rank %d to %d, %.2f %% of the energy kept\n", shown(c.out), low, high,
                   100 * kept);
    }
    pick_close(&w);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_resize = {
    .name = "resize",
    .usage = "weft resize NAME|FILE --rank N -o FILE",
    .about = "a smaller copy of an adapter",
    .run = run,
    .options = make_options,
    .size = sizeof(struct resize),
    .more = "The nearest adapter of that rank, by singular values; what it keeps is said. LoHa and "
            "LoKr\nbecome LoRA. The source is not touched.",
};
