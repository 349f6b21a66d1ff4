/* weft rm: forgets adapters. */
#include "shelf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 4

static void make_options(struct option *o, void *target)
{
    struct shelf *s = target;
    const struct option table[] = {
        SHELF_OPTIONS(s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static void print_line(const json_t *v)
{
    const char *name = json_string_value(json_object_get(v, "name"));
    const char *file = json_string_value(json_object_get(v, "file"));
    printf("removed   %s%s\n", shown(name ? name : file), name ? "" : "  no longer looked through");
}

/* One adapter or known folder; what it was goes to lines. */
static int remove_one(struct shelf *s, const char *ref, json_t *lines, struct err *err)
{
    struct repo_adapter a;
    char *folder = realpath(ref, NULL);
    int rc = repo_find(s->r, ref, &a, err);
    if (rc == 1 && folder && repo_forget_folder(s->r, folder, err) == 0) {
        json_array_append_new(lines, json_pack("{s:s, s:n, s:n, s:o}", "status", "removed", "name",
                                               "id", "file", json_text(folder)));
        free(folder);
        return 0;
    }
    free(folder);
    rc = rc == 1 ? repo_need(s->r, ref, &a, err) : rc;
    if (rc < 0)
        return rc;
    rc = repo_remove(s->r, a.key, err);
    json_array_append_new(lines, json_pack("{s:s, s:o, s:o, s:o}", "status", "removed", "name",
                                           json_text(a.name), "id", json_text(a.id), "file",
                                           json_text(a.path)));
    repo_adapter_release(&a);
    return rc;
}

/* All of them or none. */
static int remove_all(struct shelf *s, struct err *err)
{
    json_t *lines = json_array();
    json_t *v;
    size_t at;
    int rc = repo_begin(s->r, err);
    bool begun = rc == 0;
    for (int i = 0; i < s->n && rc == 0; i++)
        rc = remove_one(s, s->rest[i], lines, err);
    if (begun)
        rc = repo_end(s->r, rc, err);
    json_array_foreach(lines, at, v)
    {
        if (rc == 0 && s->json)
            json_line(json_incref(v));
        else if (rc == 0)
            print_line(v);
    }
    json_decref(lines);
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct shelf s = {0};
    struct option o[MAX_OPTIONS];
    struct err err;

    (void)self;
    make_options(o, &s);
    int rc = shelf_parse(&s, o, argc, argv, 1, -1, "adapters", &err);
    rc = rc < 0 ? rc : shelf_open(&s, REPO_WRITE, &err);
    rc = rc < 0 ? rc : remove_all(&s, &err);
    return shelf_close(&s, rc, &err);
}

const struct command command_rm = {
    .name = "rm",
    .usage = "weft rm NAME|DIR...",
    .about = "forget adapters; files stay",
    .run = run,
    .options = make_options,
    .size = sizeof(struct shelf),
    .more = "Files used in place are left alone (and are found again by weft sync where their "
            "folder is\n"
            "known). A copy of our own stays until weft gc.",
};
