/* weft similar, weft dupes: adapters that change the model alike. */
#include "making.h"
#include "shelf.h"

#include "retrieve/find.h"
#include "store/geometry.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct similar {
    struct shelf s;
    struct making m;
    double least;
    int limit;
};

#define NEAR .5 /* from which on two that change other weights are told as doing the same */

#define MAX_OPTIONS 6

static void make_options(struct option *o, void *target)
{
    struct similar *c = target;
    const struct option table[] = {
        {"least", 0, OPTION_NUMBER, &c->least, "X",
         "the lowest cosine to show, 0 to 1; default 0.2 (dupes: 0.8)", 0, 1, NULL},
        {"limit", 0, OPTION_INT, &c->limit, "N", "at most so many; default 20 (dupes: all)", 1, 1e9,
         NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

/* What two near adapters are to each other. */
static const char *relation(const struct near *p)
{
    const struct repo_adapter *a = &p->a, *b = &p->b;
    if (!strcmp(a->data_sha256, b->data_sha256))
        return "the same tensors";
    if (p->cosine > 0.9999 && fabs(p->ratio - 1) < 1e-2)
        return strcmp(a->dtype ? a->dtype : "", b->dtype ? b->dtype : "")
                   ? "the same in another precision"
                   : "the same, rounded or written anew";
    /* a truncation is its source's projection: then the cosine is the ratio of the norms */
    double ratio = p->ratio < 1 ? p->ratio : 1 / p->ratio;
    if ((a->rank[1] != b->rank[1] || a->rank[0] != b->rank[0]) && fabs(p->cosine - ratio) < 1e-3)
        return "one resized from the other";
    if (p->cosine < -0.5)
        return "nearly opposites";
    return p->cosine > 0.5 ? "two states of one training, or one trained on from the other"
                           : "related";
}

/* Those that do nearly what a does, by a model that both fit; none without one. */
static int look_at_weights(struct similar *c, const struct repo_adapter *a, struct found **list,
                           int *n, struct err *err)
{
    struct finder *f;
    int kept = 0, rc = shelf_finder(&c->s, &c->m, false, &f, err);
    if (rc == 1)
        return 0;
    rc = rc < 0 ? rc : finder_near(f, a->key, list, n, err);
    finder_close(f);
    for (int i = 0; i < *n; i++)
        if ((*list)[i].score >= fmax(c->least, NEAR))
            (*list)[kept++] = (*list)[i];
    *n = kept;
    return rc;
}

/* NAN: not among those near by it. */
static void tell_similar(const struct similar *c, const struct repo_adapter *a, double weights,
                         double effect)
{
    const char *why = isnan(effect)    ? "cosine of weights"
                      : isnan(weights) ? "cosine of what they do"
                                       : "cosine of weights, and of what they do";
    if (c->s.json) {
        json_line(json_pack("{s:o, s:o, s:f, s:o, s:o, s:s}", "name", json_text(a->name), "id",
                            json_text(a->id), "score", isnan(weights) ? effect : weights, "weights",
                            isnan(weights) ? json_null() : json_real(weights), "effect",
                            isnan(effect) ? json_null() : json_real(effect), "why", why));
        return;
    }
    printf(isnan(weights) ? "       " : "%6.3f ", weights);
    printf(isnan(effect) ? "        " : "%6.3f  ", effect);
    adapter_line(a);
}

/* Both lists as one, by the places in them. */
static int tell_both(struct similar *c, const struct near *near, int n, const struct found *effect,
                     int n_effect, struct err *err)
{
    struct found *both = NULL, *list = malloc(((size_t)n + 1) * sizeof *list);
    const struct found *const lists[] = {list, effect};
    const int counts[] = {n, n_effect};
    int total = 0;
    if (!list)
        return err_nomem(err, (size_t)n * sizeof *list);
    for (int i = 0; i < n; i++)
        list[i] = (struct found){.key = near[i].a.key};
    int rc = find_fuse(lists, counts, 2, &both, &total, err);
    for (int i = 0; i < total && i < c->limit && rc == 0; i++) {
        double weights = NAN, does = NAN;
        struct repo_adapter a = {0};
        for (int k = 0; k < n; k++)
            weights = near[k].a.key == both[i].key ? near[k].cosine : weights;
        for (int k = 0; k < n_effect; k++)
            does = effect[k].key == both[i].key ? effect[k].score : does;
        rc = repo_at(c->s.r, both[i].key, &a, err);
        if (rc == 0)
            tell_similar(c, &a, weights, does);
        repo_adapter_release(&a);
    }
    free(list);
    free(both);
    return rc < 0 ? rc : 0;
}

static int run_similar(const struct command *self, int argc, char **argv)
{
    struct similar c = {.least = 0.2, .limit = 20};
    struct repo_adapter a = {0};
    struct option o[MAX_OPTIONS];
    struct near *list = NULL;
    struct found *effect = NULL;
    struct err err;
    int n = 0, skipped = 0, n_effect = 0;

    (void)self;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 1, 1, "adapter", &err);
    rc = rc < 0 ? rc : shelf_open_any(&c.s, &err);
    rc = rc < 0 ? rc : repo_need(c.s.r, c.s.rest[0], &a, &err);
    rc = rc < 0
             ? rc
             : geometry_near(c.s.r, &a, c.least, shelf_progress, &c.s, &list, &n, &skipped, &err);
    rc = rc < 0 ? rc : look_at_weights(&c, &a, &effect, &n_effect, &err);
    rc = rc < 0 ? rc : tell_both(&c, list, n, effect, n_effect, &err);
    if (rc == 0)
        shelf_skipped(&c.s, skipped);
    near_free(list, n);
    free(effect);
    repo_adapter_release(&a);
    c.m.repo = NULL; /* the shelf's */
    making_release(&c.m);
    return shelf_close(&c.s, rc, &err);
}

static int run_dupes(const struct command *self, int argc, char **argv)
{
    struct similar c = {.least = 0.8, .limit = 1000000000};
    struct option o[MAX_OPTIONS];
    struct near *list = NULL;
    struct err err;
    int n = 0, skipped = 0;

    (void)self;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 0, 0, "arguments", &err);
    rc = rc < 0 ? rc : shelf_open_any(&c.s, &err);
    rc = rc < 0 ? rc
                : geometry_pairs(c.s.r, c.least, shelf_progress, &c.s, &list, &n, &skipped, &err);
    for (int i = 0; i < n && i < c.limit && rc == 0; i++) {
        const struct near *p = &list[i];
        if (c.s.json)
            json_line(json_pack("{s:[o,o], s:[o,o], s:f, s:f, s:s}", "names", json_text(p->a.name),
                                json_text(p->b.name), "ids", json_text(p->a.id), json_text(p->b.id),
                                "score", p->cosine, "ratio", p->ratio, "why", relation(p)));
        else
            printf("%6.4f  %s  %s\n        %s%s%s\n", p->cosine, shown(p->a.name), shown(p->b.name),
                   colour("dim"), relation(p), colour(""));
    }
    if (rc == 0)
        shelf_skipped(&c.s, skipped);
    near_free(list, n);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_similar = {
    .name = "similar",
    .usage = "weft similar NAME",
    .about = "adapters that change the weights alike, or do the same",
    .run = run_similar,
    .options = make_options,
    .size = sizeof(struct similar),
    .more =
        "The first cosine is between what two adapters do to all weights: 1 is the same change, "
        "0 unrelated,\n-1 the opposite. The second is between what their weights do, as weft "
        "search knows it for the\ndefault model, from .5 up. The list is by the places in both. "
        "The first call reads every file once;\nwhat it learns is kept.",
};

const struct command command_dupes = {
    .name = "dupes",
    .usage = "weft dupes",
    .about = "copies, resizes and other epochs of one adapter",
    .run = run_dupes,
    .options = make_options,
    .size = sizeof(struct similar),
    .more = "The cosine is between what two adapters do to all weights: 1 is the same change, 0 "
            "unrelated, -1\nthe opposite. The first call reads every file once; what it learns is "
            "kept.",
};
