#include "alone.h"

#include <stdlib.h>
#include <string.h>

#define SEED 1

struct option *alone_options(struct option *o, struct alone *a)
{
    struct given *g = &a->m.given;
    const struct option table[] = {
        {"prompt", 0, OPTION_TEXT, &a->prompt, "TEXT",
         "behind the adapter's trigger words; default: these alone, else its\nclass word or name",
         0, 0, NULL},
        {"negative", 'n', OPTION_TEXT, &g->negative, "TEXT", "what to keep out", 0, 0, NULL},
        {"model", 'm', OPTION_TEXT, &g->model, "DIR",
         "as of weft render; adapters of another base are refused", 0, 0, NULL},
        {"size", 's', OPTION_SIZE, g->size, "WxH", "to render; default: the model's own", 0, 0,
         NULL},
        {"seed", 0, OPTION_U64, &g->seed, "N", "the same for all; default 1", 0, 0, NULL},
        {"steps", 0, OPTION_INT, &g->steps, "N", "default 30", 0, 0, &g->has_steps},
        {"cfg", 0, OPTION_NUMBER, &g->cfg, "X", "default 7", 0, 0, &g->has_cfg},
        {"sampler", 0, OPTION_TEXT, &g->sampler, "NAME", "default: the model's own", 0, 0, NULL},
        {"home", 0, OPTION_TEXT, &a->m.home, "DIR", "the repository; see weft help add", 0, 0,
         NULL},
        {"json", 0, OPTION_FLAG, &a->json, NULL, "JSON on stdout, an object an adapter", 0, 0,
         NULL},
    };
    memcpy(o, table, sizeof table);
    return device_options(o + sizeof table / sizeof *table, &a->m.on);
}

int alone_parse(struct alone *a, const struct option *o, int argc, char **argv, struct err *err)
{
    a->m.given.seed = SEED;
    a->m.given.has_seed = a->m.triggers = true;
    a->rest = calloc((size_t)argc + 1, sizeof *a->rest);
    return a->rest ? options_parse(o, argc, argv, a->rest, &a->n, err) : err_nomem(err, 64);
}

int alone_repository(struct alone *a, struct err *err)
{
    char *home = repo_home(a->m.home);
    int rc = home ? repo_open(&a->m.repo, home, REPO_WRITE, err) : err_nomem(err, 64);
    free(home);
    return rc;
}

int alone_model(struct alone *a, struct err *err)
{
    int rc = making_request(&a->m, "", err);
    return rc < 0 ? rc : making_model(&a->m, err);
}

void alone_release(struct alone *a)
{
    free(a->rest);
    making_release(&a->m);
}

int alone_words(const struct making *m, const struct repo_adapter *a, char **out, struct err *err)
{
    struct texts triggers = {0};
    int rc = repo_texts(m->repo, a->key, REPO_TRIGGERS, &triggers, err);
    const char *text = triggers.n ? triggers.item[0] : a->class_word ? a->class_word : a->name;
    *out = rc < 0 ? NULL : strdup(text);
    for (char *s = *out; s && text == a->name && *s; s++)
        if (strchr("_()[]<>:\\|", *s))
            *s = ' '; /* words, nothing that a prompt would follow */
    texts_release(&triggers);
    return rc < 0 ? rc : *out ? 0 : err_nomem(err, 64);
}

static int check_fit(const struct making *m, const struct repo_adapter *a, struct err *err)
{
    int width = m->model->text->tower.width;
    if (a->unusable)
        return err_set(err, ERR_MISMATCH, "not renderable: %.200s", a->unusable);
    if (a->missing)
        return err_set(err, ERR_IO, "its file is gone; weft sync finds it if it was moved");
    if (a->context && a->context != width)
        return err_set(err, ERR_MISMATCH,
                       "made for %s (texts of width %d), and this model takes %d; -m names another",
                       a->base, a->context, width);
    return 0;
}

int alone_open(struct alone *a, const struct repo_adapter *adapter, struct picture *p,
               struct err *err)
{
    struct making *m = &a->m;
    char *text = NULL;
    int rc = check_fit(m, adapter, err);
    if (rc == 0 && !a->prompt)
        rc = alone_words(m, adapter, &text, err);
    else if (rc == 0 && !(text = strdup(a->prompt)))
        rc = err_nomem(err, strlen(a->prompt));
    rc = rc < 0 ? rc : making_request(m, text, err);
    rc = rc < 0 ? rc : request_add_adapter(&m->r, adapter->id, err);
    rc = rc < 0 ? rc : making_load(m, err);
    rc = rc < 0 ? rc : making_picture(m, p, err);
    free(text);
    return rc;
}
