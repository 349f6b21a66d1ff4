/* weft add: takes adapter files and folders into the repository. */
#include "making.h"
#include "shelf.h"

#include "retrieve/find.h"

#include <stdio.h>
#include <string.h>

struct add {
    struct shelf s;
    struct making m;
    bool copy, unread;
};

#define MAX_OPTIONS 8

static void make_options(struct option *o, void *target)
{
    struct add *c = target;
    const struct option table[] = {
        {"copy", 0, OPTION_FLAG, &c->copy, NULL,
         "keep a copy of our own; without it files are used where they lie", 0, 0, NULL},
        {"for", 0, OPTION_TEXT, &c->m.given.model, "MODEL",
         "the model for which weights are read; default: as of weft render", 0, 0, NULL},
        {"unread", 0, OPTION_FLAG, &c->unread, NULL,
         "leave the weights to the first weft search or --auto", 0, 0, NULL},
        {"verbose", 'v', OPTION_FLAG, &c->s.verbose, NULL, "name unchanged files as well", 0, 0,
         NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

void shelf_event(void *user, const struct repo_event *e)
{
    struct shelf *s = user;
    const char *tone = !strcmp(e->status, "refused") || !strcmp(e->status, "missing") ? "red"
                       : !strcmp(e->status, "duplicate")                              ? "yellow"
                                                                                      : "green";
    if (s->json) {
        json_line(json_pack("{s:o, s:s, s:o, s:o, s:o}", "file", json_text(e->path), "status",
                            e->status, "name", json_text(e->name), "id", json_text(e->id), "reason",
                            json_text(e->reason)));
        fflush(stdout);
        return;
    }
    if (!strcmp(e->status, "unchanged") && !s->verbose && !e->reason)
        return;
    progress_end(&s->bar);
    printf("%s%-10s%s%s%s%s%s%s\n", colour(tone), e->status, colour(""),
           shown(e->name ? e->name : e->path), e->id ? "  " : "", e->id ? e->id : "",
           e->reason ? "  " : "", shown(e->reason));
}

/* What the weights of those that fit the model do, so that the first search need not. Without a model nothing is. */
static int read_weights(struct add *c, struct err *err)
{
    struct finder *f;
    int rc = shelf_finder(&c->s, &c->m, false, &f, err);
    finder_close(f);
    return rc < 0 ? rc : 0;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct add c = {.copy = false};
    struct repo_sum sum = {0};
    struct option o[MAX_OPTIONS];
    struct err err;

    (void)self;
    make_options(o, &c);
    cli_catch_stop();
    int rc = shelf_parse(&c.s, o, argc, argv, 1, -1, "files or folders", &err);
    rc = rc < 0 ? rc : shelf_open(&c.s, REPO_WRITE, &err);
    struct repo_add how = {c.copy, shelf_event, shelf_progress, &c.s};
    progress_start(&c.s.bar);
    rc = rc < 0 ? rc : repo_add(c.s.r, c.s.rest, c.s.n, &how, &sum, &err);
    progress_end(&c.s.bar);
    if (rc == 0 && !c.s.json)
        printf("%d added, %d duplicate, %d unchanged, %d refused\n", sum.added, sum.duplicate,
               sum.unchanged, sum.refused);
    if (rc == 0 && sum.added && !c.unread && !cli_stopped())
        rc = read_weights(&c, &err);
    if ((rc == 0 && cli_stopped()) || rc == ERR_STOPPED)
        rc = err_set(&err, ERR_STOPPED, "stopped; what is named above is in");
    if (rc == 0 && sum.refused && !sum.added && !sum.duplicate && !sum.unchanged)
        rc = err_set(&err, ERR_FORMAT, "%s: none of %d files could be taken", shown(c.s.rest[0]),
                     sum.refused);
    c.m.repo = NULL; /* the shelf's */
    making_release(&c.m);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_add = {
    .name = "add",
    .usage = "weft add FILE|DIR... [--copy]",
    .about = "take adapters into the repository",
    .run = run,
    .options = make_options,
    .size = sizeof(struct add),
    .more =
        "Folders are searched with all that is in them, and looked through again by weft sync.\n"
        "Each file is read once; one of the same size and time as before is not read again. A "
        "file\n"
        "that cannot be taken is named with the reason and does not stop the others; the exit "
        "code\n"
        "is 1 when none could be taken. What the weights do is then read for the model, as weft "
        "search\n"
        "needs it, and kept.",
};
