#include "alone.h"

#include <stdlib.h>
#include <string.h>

/* What to ask for: nothing where triggers will be put in, else what the thing is called. */
static int find_prompt(const struct making *m, const struct repo_adapter *a, const char *given,
                       char **out, struct err *err)
{
    struct texts triggers = {0};
    int rc = repo_texts(m->repo, a->key, REPO_TRIGGERS, &triggers, err);
    const char *text = given ? given : triggers.n ? "" : a->class_word ? a->class_word : a->name;
    *out = rc < 0 ? NULL : strdup(text);
    for (char *s = *out; s && text == a->name && *s; s++)
        if (strchr("_()[]<>:\\|", *s))
            *s = ' '; /* words, nothing that a prompt would follow */
    texts_release(&triggers);
    return rc < 0 ? rc : *out ? 0 : err_nomem(err, strlen(text));
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

int alone_open(struct making *m, const struct repo_adapter *a, const char *prompt,
               struct picture *p, struct err *err)
{
    char *text = NULL;
    int rc = check_fit(m, a, err);
    rc = rc < 0 ? rc : find_prompt(m, a, prompt, &text, err);
    rc = rc < 0 ? rc : making_request(m, text, err);
    rc = rc < 0 ? rc : request_add_adapter(&m->r, a->id, err);
    rc = rc < 0 ? rc : making_load(m, err);
    rc = rc < 0 ? rc : making_picture(m, p, err);
    rc = rc < 0 ? rc : generator_open(&m->g, m->model, m->use, m->r.n_adapter, NULL, false, err);
    free(text);
    return rc;
}
