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
#define SEED 1

struct preview {
    struct making m;
    const char *prompt, *home;
    bool missing, remove, json;
    struct texts id; /* of the adapters to do */
    int at, made, refused;
    struct err *err;
};

static void make_options(struct option *o, void *target)
{
    struct preview *c = target;
    struct given *g = &c->m.given;
    const struct option table[] = {
        {"missing", 0, OPTION_FLAG, &c->missing, NULL, "all that have no picture yet", 0, 0, NULL},
        {"remove", 0, OPTION_FLAG, &c->remove, NULL,
         "throw the thumbnail away; a picture beside the file stays", 0, 0, NULL},
        {"prompt", 0, OPTION_TEXT, &c->prompt, "TEXT",
         "behind the adapter's trigger words; default: these alone, else its\nclass word or name",
         0, 0, NULL},
        {"negative", 'n', OPTION_TEXT, &g->negative, "TEXT", "what to keep out", 0, 0, NULL},
        {"model", 'm', OPTION_TEXT, &g->model, "DIR",
         "as of weft render; adapters of another base are passed over", 0, 0, NULL},
        {"size", 's', OPTION_SIZE, g->size, "WxH", "to render; the thumbnail has 256 at most", 0, 0,
         NULL},
        {"seed", 0, OPTION_U64, &g->seed, "N", "the same for all; default 1", 0, 0, NULL},
        {"steps", 0, OPTION_INT, &g->steps, "N", "default 30", 0, 0, &g->has_steps},
        {"cfg", 0, OPTION_NUMBER, &g->cfg, "X", "default 7", 0, 0, &g->has_cfg},
        {"sampler", 0, OPTION_TEXT, &g->sampler, "NAME", "default: the model's own", 0, 0, NULL},
        {"threads", 't', OPTION_INT, &c->m.threads, "N", "default: all processors", 1, 1024, NULL},
        {"device", 0, OPTION_TEXT, &c->m.device, "NAME", "cpu, or ref (slow, the reference)", 0, 0,
         NULL},
        {"home", 0, OPTION_TEXT, &c->home, "DIR", "the repository; see weft help add", 0, 0, NULL},
        {"json", 0, OPTION_FLAG, &c->json, NULL, "JSON on stdout, an object an adapter", 0, 0,
         NULL},
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

/* ---- which ----------------------------------------------------------------------------------- */

static int collect(void *user, const struct repo_adapter *a)
{
    struct preview *c = user;
    char *picture = repo_preview(c->m.repo, a);
    bool wanted = !picture && !a->unusable && !a->missing;
    free(picture);
    return wanted ? texts_add(&c->id, a->id, c->err) : 0;
}

static int choose(struct preview *c, const char *const *name, int n, struct err *err)
{
    struct repo_filter all = {0};
    c->err = err;
    int rc = c->missing ? repo_list(c->m.repo, &all, collect, c, err) : 0;
    for (int i = 0; i < n && rc == 0; i++) {
        struct repo_adapter a;
        rc = repo_need(c->m.repo, name[i], &a, err);
        rc = rc < 0 ? rc : texts_add(&c->id, a.id, err);
        if (rc == 0)
            repo_adapter_release(&a);
    }
    return rc;
}

static int open_repository(struct preview *c, struct err *err)
{
    char *home = repo_home(c->home);
    int rc = home ? repo_open(&c->m.repo, home, REPO_WRITE, err) : err_nomem(err, 64);
    free(home);
    return rc;
}

/* ---- one ------------------------------------------------------------------------------------- */

static int make(struct preview *c, const struct repo_adapter *a, struct image *im, struct err *err)
{
    struct picture p;
    int rc = alone_open(&c->m, a, c->prompt, &p, err);
    rc = rc < 0 ? rc : making_plan(&c->m, &p, c->made ? 0 : c->id.n, err);
    return rc < 0 ? rc : making_run(&c->m, &p, im, err);
}

static int keep(struct preview *c, const char *path, const struct image *im, struct err *err)
{
    struct image small = {0};
    int side = im->w > im->h ? im->w : im->h, rc = 0;
    if (side > SIDE) {
        int w = im->w * SIDE / side, h = im->h * SIDE / side;
        rc = image_resize(&small, im, w ? w : 1, h ? h : 1, IMAGE_LANCZOS, err);
    }
    rc = rc < 0 ? rc : making_write(&c->m, path, small.rgb ? &small : im, err);
    image_release(&small);
    return rc;
}

static void tell(const struct preview *c, const struct repo_adapter *a, const char *status,
                 const char *path, const char *reason)
{
    if (c->json)
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
    int rc = repo_need(c->m.repo, id, &a, err);
    if (rc < 0)
        return rc;
    rc = repo_preview_path(c->m.repo, &a, &path, err);
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
        rc = making_request(&c->m, "", err);
        rc = rc < 0 ? rc : making_model(&c->m, err);
    }
    for (c->at = 0; c->at < c->id.n && rc == 0; c->at++)
        rc = one(c, c->id.item[c->at], err);
    if (rc == 0 && !c->json)
        printf("%d %s, %d refused\n", c->made, c->remove ? "done" : "made", c->refused);
    if (rc == 0 && c->refused && !c->made && !c->missing)
        rc = err_set(err, ERR_MISMATCH, "none of %d could be made", c->refused);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct preview c = {.prompt = NULL};
    struct option o[OPTIONS_MAX];
    struct err err;
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    int n = 0;

    (void)self;
    err_clear(&err);
    cli_catch_stop();
    make_options(o, &c);
    c.m.given.seed = SEED;
    c.m.given.has_seed = c.m.triggers = true;
    int rc = rest ? options_parse(o, argc, argv, rest, &n, &err) : err_nomem(&err, 64);
    if (rc == 0 && (n > 0) == c.missing)
        rc = err_set(&err, ERR_ARG,
                     n ? "--missing, or names: not both" : "which? NAME, or --missing");
    rc = rc < 0 ? rc : open_repository(&c, &err);
    rc = rc < 0 ? rc : choose(&c, rest, n, &err);
    rc = rc < 0 ? rc : run_all(&c, &err);
    free(rest);
    texts_release(&c.id);
    making_release(&c.m);
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
