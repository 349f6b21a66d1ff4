/* weft model: the base models that the repository knows. */
#include "shelf.h"

#include "unet/file.h"
#include "unet/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct models {
    struct shelf s;
    const char *name;
    int bad;
};

#define MAX_OPTIONS 5

static void make_options(struct option *o, void *target)
{
    struct models *c = target;
    const struct option table[] = {
        {"name", 0, OPTION_TEXT, &c->name, "NAME", "add: how to call it; default: its folder's", 0,
         0, NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

/* Reads a folder's weights for their fingerprint. */
static int look_at(const char *dir, struct repo_model *m, struct err *err)
{
    struct device_options how = {0};
    struct device *dev = NULL;
    struct model *model = NULL;
    int rc = device_open(&dev, "cpu", &how, err);
    rc = rc < 0 ? rc : model_open(&model, dev, dir, err);
    if (rc == 0) {
        m->context = model->unet->text_width;
        m->fingerprint = strdup(model->fingerprint);
        rc = m->fingerprint ? 0 : err_nomem(err, HASH_HEX);
    }
    model_close(model);
    device_close(dev);
    return rc;
}

static int print(void *user, const struct repo_model *m)
{
    struct models *c = user;
    if (c->s.json)
        json_line(json_pack("{s:o, s:o, s:s, s:i, s:I}", "name", json_text(m->name), "file",
                            json_text(m->path), "fingerprint", m->fingerprint, "context",
                            m->context, "added", (json_int_t)m->added));
    else
        printf("%s%-24s%s %.12s  text width %-5d %s\n", colour("bold"), shown(m->name), colour(""),
               m->fingerprint, m->context, shown(m->path));
    return 0;
}

static int add(struct models *c, struct err *err)
{
    struct repo_model m = {0};
    m.path = realpath(c->s.rest[1], NULL);
    m.name = c->name ? strdup(c->name) : m.path ? file_stem(m.path) : NULL;
    int rc = m.path ? 0 : err_set(err, ERR_IO, "%s: no such folder", c->s.rest[1]);
    if (rc == 0 && !m.name)
        rc = err_nomem(err, 64);
    rc = rc < 0 ? rc : look_at(m.path, &m, err);
    rc = rc < 0 ? rc : repo_begin(c->s.r, err);
    if (rc == 0)
        rc = repo_end(c->s.r, repo_model_add(c->s.r, &m, err), err);
    if (rc == 0)
        print(c, &m);
    repo_model_release(&m);
    return rc;
}

static int one(struct models *c, struct repo_model *m, struct err *err)
{
    int rc = repo_model_find(c->s.r, c->s.rest[1], m, err);
    return rc == 1 ? err_set(err, ERR_IO, "%.100s: no such model here; weft model list shows them",
                             c->s.rest[1])
                   : rc;
}

static int verify_each(void *user, const struct repo_model *m)
{
    struct models *c = user;
    struct repo_model now = {0};
    struct err why;
    int rc = look_at(m->path, &now, &why);
    const char *status = rc < 0                                    ? "damaged"
                         : strcmp(now.fingerprint, m->fingerprint) ? "changed"
                                                                   : "unchanged";
    c->bad += rc < 0 || strcmp(status, "unchanged");
    if (c->s.json)
        json_line(json_pack("{s:o, s:s, s:o}", "name", json_text(m->name), "status", status,
                            "reason", rc < 0 ? json_text(why.msg) : json_null()));
    else
        printf("%-10s%s%s%s\n", status, shown(m->name), rc < 0 ? "  " : "",
               rc < 0 ? shown(why.msg) : "");
    repo_model_release(&now);
    return 0;
}

static int dispatch(struct models *c, struct err *err)
{
    static const struct {
        const char *verb;
        int arguments;
        enum repo_mode mode;
    } verbs[] = {{"add", 1, REPO_WRITE},
                 {"list", 0, REPO_READ},
                 {"show", 1, REPO_READ},
                 {"verify", 0, REPO_READ},
                 {"rm", 1, REPO_WRITE}};
    struct repo_model m = {0};
    size_t v = 0;
    while (v < 5 && strcmp(verbs[v].verb, c->s.rest[0]))
        v++;
    if (v == 5 || c->s.n != verbs[v].arguments + 1)
        return err_set(err, ERR_ARG,
                       "weft model add DIR, list, show NAME, verify or rm NAME, not '%.40s'",
                       c->s.rest[0]);
    int rc = shelf_open(&c->s, verbs[v].mode, err);
    if (rc < 0)
        return rc;
    switch (v) {
    case 0: return add(c, err);
    case 1: return repo_model_list(c->s.r, print, c, err);
    case 3:
        rc = repo_model_list(c->s.r, verify_each, c, err);
        return rc == 0 && c->bad ? err_set(err, ERR_MISMATCH,
                                           "%d of the models are not what was "
                                           "added",
                                           c->bad)
                                 : rc;
    default: rc = one(c, &m, err); break;
    }
    if (rc == 0 && v == 4)
        rc = repo_model_remove(c->s.r, m.name, err);
    if (rc == 0)
        print(c, &m);
    repo_model_release(&m);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct models c = {.name = NULL};
    struct option o[MAX_OPTIONS];
    struct err err;

    (void)self;
    make_options(o, &c);
    int rc = shelf_parse(&c.s, o, argc, argv, 1, 2, "of add, list, show, verify, rm", &err);
    rc = rc < 0 ? rc : dispatch(&c, &err);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_model = {
    .name = "model",
    .usage = "weft model add|list|show|verify|rm",
    .about = "the base models that are known",
    .run = run,
    .options = make_options,
    .size = sizeof(struct models),
    .more = "  weft model add DIR      a folder in diffusers' layout; it stays where it is\n"
            "  weft model list         what is known\n"
            "  weft model show NAME    one of them\n"
            "  weft model verify       whether each is still what was added\n"
            "  weft model rm NAME      forget it; the folder stays\n\n"
            "weft render --model NAME then uses it, and weft list --for NAME shows what fits it.",
};
