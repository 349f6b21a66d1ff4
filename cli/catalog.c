/* weft catalog: all adapters as a page to look at, from the disk, without a server. */
#include "shelf.h"
#include "unet/file.h"
#include "unet/image.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* The page, made of catalog.html by the Makefile. */
static const char page[] = {
#include "cli/catalog.inc"
    0};

#define THUMBNAIL   256        /* pixels a side, at most */
#define PREVIEW_MAX (32 << 20) /* bytes of a preview that is copied as it is */

struct catalog {
    struct shelf s;
    const char *out;
    FILE *data;
    int n, pictures, done, total;
    struct err *err;
};

#define MAX_OPTIONS 5

static void make_options(struct option *o, void *target)
{
    struct catalog *c = target;
    const struct option table[] = {
        {"output", 'o', OPTION_TEXT, &c->out, "DIR",
         "the folder to write; made when it is not there", 0, 0, NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

/* ---- thumbnails ------------------------------------------------------------------------------ */

static int shrink(const char *from, const char *to, struct err *err)
{
    struct image im = {0}, small = {0};
    int rc = image_read_png(from, &im, NULL, err);
    int side = rc == 0 && im.w > im.h ? im.w : im.h;
    if (rc == 0 && side > THUMBNAIL) {
        int w = im.w * THUMBNAIL / side, h = im.h * THUMBNAIL / side;
        rc = image_resize(&small, &im, w ? w : 1, h ? h : 1, IMAGE_LANCZOS, err);
    }
    rc = rc < 0 ? rc : image_write_png(to, small.rgb ? &small : &im, NULL, 0, err);
    image_release(&im);
    image_release(&small);
    return rc;
}

static int copy(const char *from, const char *to, struct err *err)
{
    char *bytes = NULL;
    size_t n = 0;
    int rc = file_read(&bytes, &n, from, PREVIEW_MAX, err);
    rc = rc < 0 ? rc : file_replace(to, bytes, n, err);
    free(bytes);
    return rc;
}

/* The picture of an adapter as "thumbs/ID.png"; NULL where there is none that can be read. */
static char *thumbnail(struct catalog *c, const struct repo_adapter *a)
{
    char *from = repo_preview(c->s.r, a), *name = NULL, *to = NULL;
    const char *dot = from ? strrchr(from, '.') : NULL;
    struct err why;
    int rc = -1;
    if (dot && strlen(dot) <= 5 && !strchr(dot, '/') &&
        asprintf(&name, "thumbs/%s%s", a->id, dot) > 0 && (to = file_join(c->out, name)))
        rc = strcasecmp(dot, ".png") ? copy(from, to, &why) : shrink(from, to, &why);
    free(from);
    free(to);
    if (rc == 0) {
        c->pictures++;
        return name;
    }
    free(name);
    return NULL;
}

/* ---- the folder ------------------------------------------------------------------------------ */

static int each(void *user, const struct repo_adapter *a)
{
    struct catalog *c = user;
    if (shelf_progress(&c->s, c->n, c->total))
        return err_set(c->err, ERR_STOPPED, "stopped");
    json_t *j = adapter_json(c->s.r, a, c->err);
    if (!j)
        return c->err->code;
    char *name = thumbnail(c, a);
    json_object_set_new(j, "thumbnail", json_text(name));
    fputs(c->n++ ? ",\n" : "", c->data);
    int rc = json_dumpf(j, c->data, JSON_COMPACT);
    free(name);
    json_decref(j);
    return rc < 0 ? err_set(c->err, ERR_IO, "%s: cannot be written", c->out) : 0;
}

static int write_in(const struct catalog *c, const char *name, const char *text, size_t n,
                    struct err *err)
{
    char *path = file_join(c->out, name);
    int rc = path ? file_replace(path, text, n, err) : err_nomem(err, n);
    free(path);
    return rc;
}

static int make(struct catalog *c, struct err *err)
{
    struct repo_filter all = {0};
    char *text = NULL, *thumbs = file_join(c->out, "thumbs");
    size_t size = 0;
    int64_t count = 0;
    int rc = thumbs ? file_make_folders(c->out, err) : err_nomem(err, 64);
    rc = rc < 0 ? rc : file_make_folders(thumbs, err);
    rc = rc < 0 ? rc : repo_count(c->s.r, &count, err);
    c->total = (int)count;
    c->err = err;
    c->data = open_memstream(&text, &size);
    if (rc == 0 && !c->data)
        rc = err_nomem(err, 64);
    if (rc == 0) {
        fputs("const adapters = [\n", c->data);
        rc = repo_list(c->s.r, &all, each, c, err);
        fputs("\n];\n", c->data);
    }
    if (c->data)
        fclose(c->data);
    rc = rc < 0 ? rc : write_in(c, "data.js", text, size, err);
    rc = rc < 0 ? rc : write_in(c, "index.html", page, sizeof page - 1, err);
    free(text);
    free(thumbs);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct catalog c = {.out = NULL};
    struct option o[MAX_OPTIONS];
    struct err err;

    (void)self;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 0, 0, "arguments", &err);
    if (rc == 0 && !c.out)
        rc = err_set(&err, ERR_ARG, "where to? -o DIR");
    rc = rc < 0 ? rc : shelf_open(&c.s, REPO_READ, &err);
    rc = rc < 0 ? rc : make(&c, &err);
    if (rc == 0 && c.s.json)
        json_line(json_pack("{s:o, s:i, s:i}", "folder", json_text(c.out), "adapters", c.n,
                            "pictures", c.pictures));
    else if (rc == 0)
        printf("%s/index.html  %d adapters, %d pictures\n", shown(c.out), c.n, c.pictures);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_catalog = {
    .name = "catalog",
    .usage = "weft catalog -o DIR",
    .about = "a page of all adapters, to look at in a browser",
    .run = run,
    .options = make_options,
    .size = sizeof(struct catalog),
    .more =
        "Open DIR/index.html in a browser: thumbnails, triggers, bases, strengths, twins, and a "
        "box "
        "to\nsearch them. Pictures are those of weft preview, and those that lie beside the "
        "adapters' files.",
};
