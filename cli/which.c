/* weft which: what a picture was made with, and whether it is here. */
#include "infotext.h"
#include "shelf.h"
#include "unet/image.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct which {
    struct shelf s;
    int found, missing;
    json_t *list;
    struct err *err;
};

#define MAX_OPTIONS 4

static void make_options(struct option *o, void *target)
{
    struct which *c = target;
    const struct option table[] = {
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

/* By hash (AutoV3 or AutoV2 or longer), else by name. 1: not here. */
static int look_up(struct which *c, const char *name, const char *hash, struct repo_adapter *a,
                   bool *by_hash)
{
    int rc = 1;
    *by_hash = strlen(hash) >= 6;
    if (c->s.r && *by_hash)
        rc = repo_find(c->s.r, hash, a, c->err);
    if (c->s.r && rc == 1) {
        *by_hash = false;
        rc = repo_find_name(c->s.r, name, a, c->err);
    }
    return rc == ERR_MISMATCH ? 1 : rc; /* several: none is sure */
}

static int each(void *user, const char *name, const char *hash)
{
    struct which *c = user;
    struct repo_adapter a = {0};
    bool by_hash;
    int rc = look_up(c, name, hash, &a, &by_hash);
    if (rc < 0)
        return rc;
    bool here = rc == 0 && !a.missing;
    const char *how = !here     ? "missing"
                      : by_hash ? "by its hash"
                      : *hash   ? "by its name alone; its hash is another"
                                : "by its name";
    c->found += here;
    c->missing += !here;
    if (c->s.json)
        json_array_append_new(c->list, json_pack("{s:o, s:o, s:o, s:o, s:s}", "name",
                                                 json_text(name), "hash", json_text(hash), "here",
                                                 here ? json_text(a.name) : json_null(), "id",
                                                 here ? json_text(a.id) : json_null(), "how", how));
    else
        printf("  %s%-30s%s %-12s  %s%s%s\n", colour(here ? "green" : "red"), shown(name),
               colour(""), hash, here ? shown(a.name) : "", here ? ", " : "", how);
    repo_adapter_release(&a);
    return 0;
}

static int tell(struct which *c, const char *file, const struct infotext *t)
{
    if (!c->s.json) {
        printf("%s\n", shown(t->prompt));
        if (*t->negative)
            printf("%sNegative prompt:%s %s\n", colour("dim"), colour(""), shown(t->negative));
        for (int i = 0; i < t->n; i++)
            printf("%s%s:%s %s%s", colour("dim"), shown(t->pair[i].key), colour(""),
                   shown(t->pair[i].value), i + 1 < t->n ? ", " : "\n");
        return infotext_adapters(t, each, c);
    }
    json_t *settings = json_object();
    c->list = json_array();
    for (int i = 0; i < t->n; i++)
        json_object_set_new(settings, shown(t->pair[i].key), json_text(t->pair[i].value));
    int rc = infotext_adapters(t, each, c);
    json_line(json_pack("{s:o, s:o, s:o, s:o, s:o, s:i}", "file", json_text(file), "prompt",
                        json_text(t->prompt), "negative", json_text(t->negative), "settings",
                        settings, "adapters", c->list, "missing", c->missing));
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct which c = {.found = 0};
    struct option o[MAX_OPTIONS];
    struct err err = {0};
    struct image_texts texts = {0};
    struct infotext t = {0};

    (void)self;
    c.err = &err;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 1, 1, "picture", &err);
    if (rc == 0) {
        char *home = repo_home(c.s.home);
        struct image im = {0};
        if (home && repo_exists(home))
            rc = shelf_open(&c.s, REPO_READ, &err);
        free(home);
        rc = rc < 0 ? rc : image_read_png(c.s.rest[0], &im, &texts, &err);
        image_release(&im);
    }
    if (rc == 0) {
        const char *text = image_text_find(&texts, "parameters");
        rc = text ? infotext_parse(&t, text, &err)
                  : err_set(&err, ERR_FORMAT,
                            "%s: holds no 'parameters' text; A1111, Forge and weft write it, and "
                            "editors and sites often remove it",
                            c.s.rest[0]);
    }
    rc = rc < 0 ? rc : tell(&c, c.s.rest[0], &t);
    if (rc == 0 && c.missing)
        rc = err_set(&err, ERR_MISMATCH, "%s: %d of its adapters %s not here", c.s.rest[0],
                     c.missing, c.missing == 1 ? "is" : "are");
    infotext_release(&t);
    image_texts_release(&texts);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_which = {
    .name = "which",
    .usage = "weft which IMAGE.png",
    .about = "what a picture was made with, and what of it is here",
    .run = run,
    .options = make_options,
    .size = sizeof(struct which),
    .more =
        "Reads the text that A1111, Forge, Civitai and weft put into a PNG. Adapters are looked "
        "up "
        "in the\nrepository by their hash, where there is none by their name.",
};
