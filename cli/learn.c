/* weft learn: an encoder of one's own. */
#include "making.h"
#include "shelf.h"

#include "retrieve/find.h"
#include "retrieve/learn.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct learn {
    struct shelf s;
    struct making m;
    bool forget;
};

#define MAX_OPTIONS 8

static void make_options(struct option *o, void *target)
{
    struct learn *c = target;
    const struct option table[] = {
        {"for", 0, OPTION_TEXT, &c->m.given.model, "MODEL",
         "the base model; default: as of weft render", 0, 0, NULL},
        {"forget", 0, OPTION_FLAG, &c->forget, NULL, "what was learnt for it", 0, 0, NULL},
        {"threads", 't', OPTION_INT, &c->m.on.threads, "N", "default: all processors", 1, 1024,
         NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static void tell_one(const struct learn *c, const char *name, const struct recall *r)
{
    if (c->s.json)
        json_line(json_pack("{s:s, s:f, s:f, s:f}", "by", name, "recall@1", r->first, "recall@5",
                            r->five, "mrr", r->mean));
    else
        printf("%-34s %5.1f %% %5.1f %% %8.3f\n", name, 100 * r->first, 100 * r->five, r->mean);
}

static void tell(const struct learn *c, const struct lesson *l)
{
    if (!c->s.json) {
        printf(
            "%d adapters with words of their own; each asked for by these, its words hidden:\n\n",
            l->n);
        printf("%-34s   first  of five  1/place\n", "");
    }
    tell_one(c, "weights and what was learnt", &l->together);
    tell_one(c, "what was learnt alone", &l->learnt);
    tell_one(c, "weights alone", &l->answers);
    if (l->has_encoder)
        tell_one(c, "the encoder that came with it", &l->encoder);
    tell_one(c, "words in names", &l->names);
    tell_one(c, "chance", &l->chance);
    if (c->s.json)
        json_line(json_pack("{s:i, s:b}", "adapters", l->n, "kept", (int)l->better));
    else
        puts(l->better ? "\nKept: weft search uses it."
                       : "\nNot kept: it finds no more than there is without it.");
}

static int learn(struct learn *c, struct finder *f, struct err *err)
{
    struct lesson l;
    progress_start(&c->s.bar);
    int rc = finder_learn(f, shelf_progress, &c->s, &l, err);
    progress_end(&c->s.bar);
    if (rc == 0)
        tell(c, &l);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct learn c = {.m.on.name = "cpu"}; /* answers are compared with those of other days */
    struct option o[MAX_OPTIONS];
    struct finder *f = NULL;
    struct err err;

    (void)self;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 0, 0, "arguments", &err);
    rc = rc < 0 ? rc : shelf_open(&c.s, REPO_WRITE, &err);
    c.m.repo = c.s.r;
    rc = rc < 0 ? rc : making_request(&c.m, "", &err);
    rc = rc < 0 ? rc : making_model(&c.m, &err);
    if (rc == 0 && c.forget) {
        rc = repo_set_learnt(c.s.r, c.m.model->fingerprint, NULL, NULL, 0, &err);
    } else if (rc == 0) {
        rc = making_finder(&c.m, &f, &err);
        rc = rc < 0 ? rc : learn(&c, f, &err);
        finder_close(f);
    }
    c.m.repo = NULL; /* the shelf's */
    making_release(&c.m);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_learn = {
    .name = "learn",
    .usage = "weft learn",
    .about = "learns from the words of your own adapters to find others by their weights",
    .run = run,
    .options = make_options,
    .size = sizeof(struct learn),
    .more = "From triggers, tags, class words and what trainers noted, to what the weights change: "
            "for adapters\nwhose names say nothing. Prints how many of those that have words are "
            "found by them when they are\nhidden, and keeps what was learnt only where that is "
            "more than without.",
};
