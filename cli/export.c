/* weft export: hands an adapter's file out again. */
#include "pick.h"
#include "store/adapter_write.h"

#include <stdio.h>
#include <string.h>

struct export
{
    struct shelf s;
    const char *out, *style;
};

#define MAX_OPTIONS 6

static void make_options(struct option *o, void *target)
{
    struct export *c = target;
    const struct option table[] = {
        {"output", 'o', OPTION_TEXT, &c->out, "FILE",
         "where to; a folder for one with a PEFT config", 0, 0, NULL},
        {"style", 0, OPTION_TEXT, &c->style, "STYLE",
         "spell it as kohya (A1111, ComfyUI, Forge), diffusers or\npeft does, instead of as it is",
         0, 0, NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static int convert(struct export *c, struct err *err)
{
    static const char *const meta[][2] = {{"format", "pt"}};
    struct pick p;
    int rc = pick_open(&p, &c->s, c->s.rest[0], err);
    rc = rc < 0 ? rc : adapter_convert(c->out, c->style, &p.file->list, meta, 1, err);
    if (rc == 0 && c->s.json)
        json_line(json_pack("{s:o, s:o, s:s}", "file", json_text(c->out), "name",
                            json_text(pick_name(&p)), "style", c->style));
    else if (rc == 0)
        printf("%s  %s\n", shown(c->out), c->style);
    pick_close(&p);
    return rc;
}

static int copy(struct export *c, struct err *err)
{
    struct repo_adapter a = {0};
    int rc = shelf_open(&c->s, REPO_READ, err);
    rc = rc < 0 ? rc : repo_need(c->s.r, c->s.rest[0], &a, err);
    rc = rc < 0 ? rc : repo_export(c->s.r, &a, c->out, err);
    if (rc == 0 && c->s.json)
        json_line(json_pack("{s:o, s:o, s:o, s:o}", "file", json_text(c->out), "name",
                            json_text(a.name), "id", json_text(a.id), "file_sha256",
                            json_text(a.file_sha256)));
    else if (rc == 0)
        printf("%s  %s\n", shown(c->out), a.file_sha256);
    repo_adapter_release(&a);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct export c = {.out = NULL};
    struct option o[MAX_OPTIONS];
    struct err err;

    (void)self;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 1, 1, "adapter", &err);
    if (rc == 0 && !c.out)
        rc = err_set(&err, ERR_ARG, "where to? -o FILE");
    rc = rc < 0 ? rc : c.style ? convert(&c, &err) : copy(&c, &err);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_export = {
    .name = "export",
    .usage = "weft export NAME -o FILE",
    .about = "an adapter's file, as it was added",
    .run = run,
    .options = make_options,
    .size = sizeof(struct export),
    .more =
        "The file is written byte by byte as it was added, or not at all. In another style every "
        "value\nstays what it is; what a style cannot hold is refused.",
};
