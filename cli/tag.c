/* weft tag: what a user says of an adapter. */
#include "shelf.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct tag {
    struct shelf s;
    const char *note, *category, *class_word, *rename;
    struct option_list trigger;
    double strength;
    bool has_strength, no_triggers, no_strength;
    const char **edit; /* [n_edit] "+tag", "-tag" */
    int n_edit;
};

#define MAX_OPTIONS 14

static void make_options(struct option *o, void *target)
{
    struct tag *c = target;
    const struct option table[] = {
        {"trigger", 0, OPTION_LIST, &c->trigger, "WORDS",
         "a group of trigger words: \"sks monkey, red hat\"; may be\nrepeated", 0, 0, NULL},
        {"no-triggers", 0, OPTION_FLAG, &c->no_triggers, NULL, "forget all groups first", 0, 0,
         NULL},
        {"note", 0, OPTION_TEXT, &c->note, "TEXT", "notes; \"\" forgets them", 0, 0, NULL},
        {"strength", 0, OPTION_NUMBER, &c->strength, "X", "used when a render asks for none", -100,
         100, &c->has_strength},
        {"no-strength", 0, OPTION_FLAG, &c->no_strength, NULL, "back to 1", 0, 0, NULL},
        {"category", 0, OPTION_TEXT, &c->category, "NAME", "character, style …", 0, 0, NULL},
        {"class-word", 0, OPTION_TEXT, &c->class_word, "WORD",
         "what the thing is: \"monkey\" of \"sks monkey\"", 0, 0, NULL},
        {"rename", 0, OPTION_TEXT, &c->rename, "NAME", "another name; the id stays", 0, 0, NULL},
        SHELF_OPTIONS(&c->s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static bool takes_value(const struct option *o, const char *a)
{
    for (; o->name; o++)
        if (o->kind != OPTION_FLAG && !strcmp(o->name, a + 2))
            return true;
    return false;
}

/* Takes "+tag" and "-tag" out of argv. Returns what is left of argc. */
static int take_edits(struct tag *c, const struct option *o, int argc, char **argv)
{
    int k = 1;
    for (int i = 1; i < argc; i++) {
        char *a = argv[i];
        bool edit = (a[0] == '+' || a[0] == '-') && a[1] && a[1] != '-';
        if (edit) {
            c->edit[c->n_edit++] = a;
            continue;
        }
        argv[k++] = a;
        if (!strncmp(a, "--", 2) && takes_value(o, a) && i + 1 < argc)
            argv[k++] = argv[++i];
    }
    argv[k] = NULL;
    return k;
}

static int change(struct tag *c, int64_t key, struct err *err)
{
    struct repo *r = c->s.r;
    const struct {
        const char *text;
        enum repo_field field;
    } text[] = {{c->note, REPO_NOTES},
                {c->category, REPO_CATEGORY},
                {c->class_word, REPO_CLASS_WORD},
                {c->rename, REPO_NAME}};
    int rc = c->no_triggers ? repo_trigger(r, key, NULL, err) : 0;
    for (size_t i = 0; i < sizeof text / sizeof *text && rc == 0; i++)
        if (text[i].text)
            rc = repo_set(r, key, text[i].field, text[i].text, err);
    for (int i = 0; i < c->n_edit && rc == 0; i++)
        rc = repo_tag(r, key, c->edit[i] + 1, c->edit[i][0] == '+', err);
    for (int i = 0; i < c->trigger.n && rc == 0; i++)
        rc = repo_trigger(r, key, c->trigger.item[i], err);
    if (rc == 0 && (c->has_strength || c->no_strength))
        rc = repo_set_strength(r, key, c->has_strength ? c->strength : (double)NAN, err);
    return rc;
}

static int apply(struct tag *c, struct err *err)
{
    struct repo_adapter a = {0}, after = {0};
    int rc = repo_need(c->s.r, c->s.rest[0], &a, err);
    if (rc < 0)
        return rc;
    rc = repo_begin(c->s.r, err);
    if (rc == 0)
        rc = repo_end(c->s.r, change(c, a.key, err), err);
    rc = rc < 0 ? rc : repo_need(c->s.r, a.id, &after, err);
    if (rc == 0 && c->s.json) {
        json_t *j = adapter_json(c->s.r, &after, err);
        rc = j ? 0 : err->code;
        if (j)
            json_line(j);
    } else if (rc == 0) {
        adapter_line(&after);
    }
    repo_adapter_release(&a);
    repo_adapter_release(&after);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct tag c = {.strength = 1};
    struct option o[MAX_OPTIONS];
    struct err err;

    (void)self;
    make_options(o, &c);
    c.edit = calloc((size_t)argc + 1, sizeof *c.edit);
    int rc = c.edit ? 0 : err_nomem(&err, 64);
    rc = rc < 0 ? rc
                : shelf_parse(&c.s, o, take_edits(&c, o, argc, argv), argv, 1, 1, "adapter", &err);
    rc = rc < 0 ? rc : shelf_open(&c.s, REPO_WRITE, &err);
    rc = rc < 0 ? rc : apply(&c, &err);
    free(c.edit);
    free(c.trigger.item);
    return shelf_close(&c.s, rc, &err);
}

const struct command command_tag = {
    .name = "tag",
    .usage = "weft tag NAME [+TAG] [-TAG] [options]",
    .about = "say what an adapter is to you",
    .run = run,
    .options = make_options,
    .size = sizeof(struct tag),
    .more = "+TAG adds a tag and -TAG takes it away. All of one call is done, or nothing.",
};
