/* weft search: finds adapters by words. */
#include "shelf.h"

#include <stdio.h>
#include <string.h>

struct search {
    struct shelf s;
    int limit, hits, rc;
    struct err *err;
};

#define MAX_OPTIONS 5

static void make_options(struct option *o, void *target)
{
    struct search *c = target;
    const struct option table[] = {
        {"limit", 0, OPTION_INT, &c->limit, "N", "at most so many; default 20", 1, 1e9, NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static int each(void *user, const struct repo_adapter *a, double score, const char *why)
{
    struct search *c = user;
    c->hits++;
    if (c->s.json) {
        json_line(json_pack("{s:o, s:o, s:f, s:o}", "name", json_text(a->name), "id",
                            json_text(a->id), "score", score, "why", json_text(why)));
        return 0;
    }
    adapter_line(a);
    printf("    %s%s%s\n", colour("dim"), shown(why), colour(""));
    return 0;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct search c = {.limit = 20};
    struct option o[MAX_OPTIONS];
    struct err err;
    char *words = NULL;
    size_t size = 0;

    (void)self;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 1, -1, "words", &err);
    FILE *f = open_memstream(&words, &size);
    for (int i = 0; f && rc == 0 && i < c.s.n; i++)
        fprintf(f, "%s ", c.s.rest[i]);
    if ((!f || fclose(f)) && rc == 0)
        rc = err_nomem(&err, size);
    rc = rc < 0 ? rc : shelf_open(&c.s, REPO_READ, &err);
    rc = rc < 0 ? rc : repo_search(c.s.r, words, c.limit, each, &c, &err);
    if (rc == 0 && !c.hits && !c.s.json)
        puts("nothing has these words");
    free(words);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_search = {
    .name = "search",
    .usage = "weft search WORDS",
    .about = "adapters whose names, tags or notes have these words",
    .run = run,
    .options = make_options,
    .size = sizeof(struct search),
    .more =
        "All words must occur, each as the beginning of a word, in the name, tags, triggers, "
        "notes\n"
        "or metadata. Words in double quotes are found exactly as they stand, one after the "
        "other.\n"
        "Of a word that more than 5,000 have, those are first that have it in the name, then in "
        "tags\n"
        "and triggers, the newest first.",
};
