/* weft sync: looks at all known files and folders again. */
#include "shelf.h"

#include <stdio.h>
#include <string.h>

#define MAX_OPTIONS 5

static void make_options(struct option *o, void *target)
{
    struct shelf *s = target;
    const struct option table[] = {
        {"verbose", 'v', OPTION_FLAG, &s->verbose, NULL, "name refused files as well", 0, 0, NULL},
        SHELF_OPTIONS(s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

/* Files of the folders that are no adapters are the same each time. */
static void event(void *user, const struct repo_event *e)
{
    const struct shelf *s = user;
    if (s->json || s->verbose || strcmp(e->status, "refused") != 0)
        shelf_event(user, e);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct shelf s = {0};
    struct repo_sum sum = {0};
    struct option o[MAX_OPTIONS];
    struct err err;

    (void)self;
    make_options(o, &s);
    cli_catch_stop();
    int rc = shelf_parse(&s, o, argc, argv, 0, 0, "options", &err);
    rc = rc < 0 ? rc : shelf_open(&s, REPO_WRITE, &err);
    struct repo_add how = {false, event, shelf_progress, &s};
    progress_start(&s.bar);
    rc = rc < 0 ? rc : repo_sync(s.r, &how, &sum, &err);
    progress_end(&s.bar);
    if (rc == 0 && !s.json)
        printf("%d unchanged, %d added, %d duplicate, %d changed, %d relinked, %d missing, "
               "%d refused\n",
               sum.unchanged, sum.added, sum.duplicate, sum.changed, sum.relinked, sum.missing,
               sum.refused);
    return shelf_close(&s, rc, &err);
}

const struct command command_sync = {
    .name = "sync",
    .usage = "weft sync",
    .about = "look at all known files and folders again",
    .run = run,
    .options = make_options,
    .size = sizeof(struct shelf),
    .more = "New files of known folders are added, changed ones are read again, one that was moved "
            "is\n"
            "found by its tensors and keeps its name, tags and id; one that is gone is marked "
            "missing.",
};
