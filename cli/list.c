/* weft list: what is in the repository. */
#include "shelf.h"

#include <stdio.h>
#include <string.h>

struct list {
    struct shelf s;
    struct repo_filter f;
    int shown;
    bool page; /* no more than SHOWN, as nobody asked for more */
    bool more; /* than are shown */
    int rc;    /* of what is printed */
    struct err *err;
};

#define SHOWN       500 /* lines for a person; more are counted */
#define MAX_OPTIONS 14

static void make_options(struct option *o, void *target)
{
    struct list *c = target;
    const struct option table[] = {
        {"tag", 0, OPTION_TEXT, &c->f.tag, "TAG", "only those with this tag", 0, 0, NULL},
        {"base", 0, OPTION_TEXT, &c->f.base, "NAME", "sd1, sd2, sdxl …, unknown", 0, 0, NULL},
        {"kind", 0, OPTION_TEXT, &c->f.kind, "NAME", "lora, locon, loha, lokr, dora …", 0, 0, NULL},
        {"category", 0, OPTION_TEXT, &c->f.category, "NAME", "only those of this category", 0, 0,
         NULL},
        {"for", 0, OPTION_TEXT, &c->f.model, "MODEL", "only those that fit a registered model", 0,
         0, NULL},
        {"missing", 0, OPTION_FLAG, &c->f.missing, NULL, "only those whose file is gone", 0, 0,
         NULL},
        {"sort", 0, OPTION_TEXT, &c->f.sort, "BY", "name (default), added, size, base, rank", 0, 0,
         NULL},
        {"limit", 0, OPTION_INT, &c->f.limit, "N", "at most so many; default: 500, with --json all",
         1, 1e9, NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static int each(void *user, const struct repo_adapter *a)
{
    struct list *c = user;
    if (c->shown == SHOWN && c->page) {
        c->more = true;
        return 1;
    }
    struct repo_adapter shown_as = *a;
    char *base = strdup(a->base); /* may be replaced by a model's name */
    shown_as.base = base;
    c->rc = base ? repo_name_base(c->s.r, &shown_as, c->err) : err_nomem(c->err, 8);
    c->shown++;
    if (c->rc == 0 && c->s.json) {
        json_t *j = adapter_json(c->s.r, &shown_as, c->err);
        c->rc = j ? 0 : c->err->code;
        if (j)
            json_line(j);
    } else if (c->rc == 0) {
        adapter_line(&shown_as);
    }
    free(shown_as.base);
    return c->rc < 0 || cli_stopped();
}

static int run(const struct command *self, int argc, char **argv)
{
    struct list c = {.shown = 0};
    struct option o[MAX_OPTIONS];
    struct err err;

    (void)self;
    make_options(o, &c);
    c.err = &err;
    int rc = shelf_parse(&c.s, o, argc, argv, 0, 0, "options", &err);
    rc = rc < 0 ? rc : shelf_open(&c.s, REPO_READ, &err);
    c.page = !c.f.limit && !c.s.json;
    c.f.limit = c.page ? SHOWN + 1 : c.f.limit;
    rc = rc < 0 ? rc : repo_list(c.s.r, &c.f, each, &c, &err);
    rc = rc < 0 ? rc : c.rc;
    if (rc == 0 && c.more) {
        int64_t all = 0;
        rc = repo_count(c.s.r, &all, &err);
        printf("and more, of %lld in all; --limit N shows them, or filters narrow them down\n",
               (long long)all);
    }
    if (rc == 0 && !c.shown && !c.s.json)
        puts("nothing; weft add FILE brings adapters in");
    return shelf_close(&c.s, rc, &err);
}

const struct command command_list = {
    .name = "list",
    .usage = "weft list [options]",
    .about = "what is in the repository",
    .run = run,
    .options = make_options,
    .size = sizeof(struct list),
};
