/* weft preview: what an adapter does, as a thumbnail that the repository keeps. */
#include "alone.h"
#include "shelf.h"

#include "unet/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define SIDE 256 /* pixels of a thumbnail, at most */

struct preview {
    struct alone a;
    bool missing, remove;
    struct texts id; /* of the adapters to do */
    int at, made, refused;
    struct err *err;
};

static void make_options(struct option *o, void *target)
{
    struct preview *c = target;
    const struct option own[] = {
        {"missing", 0, OPTION_FLAG, &c->missing, NULL, "all that have no picture yet", 0, 0, NULL},
        {"remove", 0, OPTION_FLAG, &c->remove, NULL,
         "throw the thumbnail away; a picture beside the file stays", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(alone_options(o, &c->a), own, sizeof own);
}

/* ---- which ----------------------------------------------------------------------------------- */

static int collect(void *user, const struct repo_adapter *a)
{
    struct preview *c = user;
    char *picture = repo_preview(c->a.m.repo, a);
    bool wanted = !picture && !a->unusable && !a->missing;
    free(picture);
    return wanted ? texts_add(&c->id, a->id, c->err) : 0;
}

static int choose(struct preview *c, const char *const *name, int n, struct err *err)
{
    struct repo_filter all = {0};
    c->err = err;
    int rc = c->missing ? repo_list(c->a.m.repo, &all, collect, c, err) : 0;
    for (int i = 0; i < n && rc == 0; i++) {
        struct repo_adapter a;
        rc = repo_need(c->a.m.repo, name[i], &a, err);
        rc = rc < 0 ? rc : texts_add(&c->id, a.id, err);
        if (rc == 0)
            repo_adapter_release(&a);
    }
    return rc;
}

/* ---- one ------------------------------------------------------------------------------------- */

static int make(struct preview *c, const struct repo_adapter *a, struct image *im, struct err *err)
{
    struct picture p;
    int rc = alone_open(&c->a, a, &p, err);
    rc = rc < 0 ? rc : making_plan(&c->a.m, &p, c->made ? 0 : c->id.n, err);
    return rc < 0 ? rc : making_run(&c->a.m, &p, 1, im, err);
}

static int keep(struct preview *c, const char *path, const struct image *im, struct err *err)
{
    struct image small = {0};
    int side = im->w > im->h ? im->w : im->h, rc = 0;
    if (side > SIDE) {
        int w = im->w * SIDE / side, h = im->h * SIDE / side;
        rc = image_resize(&small, im, w ? w : 1, h ? h : 1, IMAGE_LANCZOS, err);
    }
    rc = rc < 0 ? rc : making_write(&c->a.m, path, small.rgb ? &small : im, err);
    image_release(&small);
    return rc;
}

static void tell(const struct preview *c, const struct repo_adapter *a, const char *status,
                 const char *path, const char *reason)
{
    if (c->a.json)
        json_line(json_pack("{s:o, s:o, s:s, s:o, s:o}", "name", json_text(a->name), "id",
                            json_text(a->id), "status", status, "file", json_text(path), "reason",
                            json_text(reason)));
    else
        printf("%d of %d  %-8s %s%s%s\n", c->at + 1, c->id.n, status, shown(a->name),
               reason ? ": " : "", shown(reason));
    fflush(stdout);
}

/* What is wrong with one adapter is told and stops nothing. */
static int one(struct preview *c, const char *id, struct err *err)
{
    struct repo_adapter a;
    struct image im = {0};
    struct err why;
    char *path = NULL;
    int rc = repo_need(c->a.m.repo, id, &a, err);
    if (rc < 0)
        return rc;
    rc = repo_preview_path(c->a.m.repo, &a, &path, err);
    if (rc == 0 && c->remove) {
        c->made++;
        tell(c, &a, unlink(path) == 0 ? "removed" : "none", NULL, NULL);
    } else if (rc == 0 && (rc = make(c, &a, &im, &why)) < 0) {
        if (rc == ERR_STOPPED || rc == ERR_NOMEM)
            *err = why;
        else
            rc = 0;
        c->refused++;
        tell(c, &a, "refused", NULL, why.msg);
    } else if (rc == 0 && (rc = keep(c, path, &im, err)) == 0) {
        c->made++;
        tell(c, &a, "made", path, NULL);
    }
    image_release(&im);
    free(path);
    repo_adapter_release(&a);
    return rc;
}

static int run_all(struct preview *c, struct err *err)
{
    int rc = 0;
    if (c->id.n && !c->remove) {
        rc = alone_model(&c->a, err);
    }
    for (c->at = 0; c->at < c->id.n && rc == 0; c->at++)
        rc = one(c, c->id.item[c->at], err);
    if (rc == 0 && !c->a.json)
        printf("%d %s, %d refused\n", c->made, c->remove ? "done" : "made", c->refused);
    if (rc == 0 && c->refused && !c->made && !c->missing)
        rc = err_set(err, ERR_MISMATCH, "none of %d could be made", c->refused);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct preview c = {.missing = false};
    struct option o[OPTIONS_MAX];
    struct err err;

    (void)self;
    err_clear(&err);
    cli_catch_stop();
    make_options(o, &c);
    int rc = alone_parse(&c.a, o, argc, argv, &err);
    if (rc == 0 && (c.a.n > 0) == c.missing)
        rc = err_set(&err, ERR_ARG,
                     c.a.n ? "--missing, or names: not both" : "which? NAME, or --missing");
    rc = rc < 0 ? rc : alone_repository(&c.a, &err);
    rc = rc < 0 ? rc : choose(&c, c.a.rest, c.a.n, &err);
    rc = rc < 0 ? rc : run_all(&c, &err);
    texts_release(&c.id);
    alone_release(&c.a);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

const struct command command_preview = {
    .name = "preview",
    .usage = "weft preview NAME...|--missing",
    .about = "a thumbnail of what an adapter does",
    .run = run,
    .options = make_options,
    .size = sizeof(struct preview),
    .more =
        "Each adapter alone, at its preferred strength, with its trigger words. The pictures lie "
        "in\n"
        "the repository, never beside your files; show and catalog use them, and render --like\n"
        "makes one again at full size. Stopped and called again, --missing goes on.",
};
