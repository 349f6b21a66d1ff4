/* weft gc: removes copies that no adapter needs any more. */
#include "shelf.h"

#include <stdio.h>
#include <string.h>

struct gc {
    struct shelf s;
    bool dry;
};

#define MAX_OPTIONS 5

static void make_options(struct option *o, void *target)
{
    struct gc *c = target;
    const struct option table[] = {
        {"dry-run", 0, OPTION_FLAG, &c->dry, NULL, "only say which", 0, 0, NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct gc c = {.dry = false};
    struct option o[MAX_OPTIONS];
    struct texts removed = {0};
    struct err err;
    int64_t bytes = 0;
    char size[32];

    (void)self;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 0, 0, "options", &err);
    rc = rc < 0 ? rc : shelf_open(&c.s, REPO_WRITE, &err);
    rc = rc < 0 ? rc : repo_gc(c.s.r, c.dry, &removed, &bytes, &err);
    if (rc == 0 && c.s.json)
        json_line(json_pack("{s:o, s:I, s:b}", "removed", texts_json(&removed), "bytes",
                            (json_int_t)bytes, "dry_run", c.dry));
    else if (rc == 0)
        printf("%d files, %s%s\n", removed.n, human_bytes(size, sizeof size, (double)bytes),
               c.dry ? " could be removed" : " removed");
    texts_release(&removed);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_gc = {
    .name = "gc",
    .usage = "weft gc [--dry-run]",
    .about = "remove copies that no adapter needs",
    .run = run,
    .options = make_options,
    .size = sizeof(struct gc),
    .more = "Only files inside the repository's own folder are ever removed.",
};
