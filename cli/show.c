/* weft show: all that is known of one adapter, in the repository or not. */
#include "norms.h"
#include "shelf.h"

#include "store/adapter.h"

#include "store/facts.h"
#include "unet/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 5

static void make_options(struct option *o, void *target)
{
    struct shelf *s = target;
    const struct option table[] = {
        {"verbose", 'v', OPTION_FLAG, &s->verbose, NULL, "the file's metadata and its sidecars", 0,
         0, NULL},
        SHELF_OPTIONS(s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static void field(const char *name, const char *value)
{
    if (value && *value)
        printf("  %s%-10s%s%s\n", colour("dim"), name, colour(""), shown(value));
}

static int list_field(const struct shelf *s, const struct repo_adapter *a, const char *name,
                      enum repo_texts which, struct err *err)
{
    struct texts t = {0};
    int rc = s->r && a->key ? repo_texts(s->r, a->key, which, &t, err) : 0;
    for (int i = 0; i < t.n; i++)
        field(i ? "" : name, t.item[i]);
    texts_release(&t);
    return rc;
}

static void print_facts(const struct repo_adapter *a)
{
    char text[300], size[32];
    const char *note = facts_declared_note(a->declared_hash, a->data_sha256);
    printf("%s%s%s%s%s\n", colour("bold"), shown(a->name), colour(""), a->id ? "  " : "",
           a->id ? a->id : "");
    field("kinds", a->kinds);
    if (a->format) {
        snprintf(text, sizeof text, "%s, keys of %s", a->format, a->style ? a->style : "?");
        field("format", text);
    }
    field("base", a->base);
    if (a->unusable) {
        snprintf(text, sizeof text, "not renderable: %.250s", a->unusable);
        field("!", text);
    }
    if (a->rank[1]) {
        snprintf(text, sizeof text, a->rank[0] == a->rank[1] ? "%d" : "%d to %d", a->rank[0],
                 a->rank[1]);
        field("rank", text);
    }
    snprintf(text, sizeof text, "%d weights by %d tensors of %s, %s", a->sites, a->tensors,
             a->dtype, human_bytes(size, sizeof size, (double)a->bytes));
    field("changes", text);
    field("file", a->path);
    if (a->copied)
        field("from", a->source);
    if (a->missing)
        field("!", "its file is gone; weft sync finds it if it was moved");
    field("sha256", a->file_sha256);
    field("tensors", a->data_sha256);
    snprintf(text, sizeof text, "AutoV2 %.10s, AutoV3 %.12s", a->file_sha256, a->data_sha256);
    field("", text);
    if (a->declared_hash) {
        snprintf(text, sizeof text, "%.80s%s%s", a->declared_hash, *note ? ": " : "", note);
        field("declared", text);
    }
}

static int print_words(const struct shelf *s, const struct repo_adapter *a, struct err *err)
{
    char text[40], *picture = repo_preview(s->r, a);
    int rc = list_field(s, a, "triggers", REPO_TRIGGERS, err);
    rc = rc < 0 ? rc : list_field(s, a, "maybe", REPO_CANDIDATES, err);
    rc = rc < 0 ? rc : list_field(s, a, "tags", REPO_TAGS, err);
    rc = rc < 0 ? rc : list_field(s, a, "aliases", REPO_ALIASES, err);
    rc = rc < 0 ? rc : list_field(s, a, "twins", REPO_TWINS, err);
    field("category", a->category);
    field("class", a->class_word);
    field("notes", a->notes);
    if (!isnan(a->strength)) {
        snprintf(text, sizeof text, "%g", a->strength);
        field("strength", text);
    }
    field("preview", picture);
    free(picture);
    return rc;
}

static void print_metadata(const char *title, const char *json)
{
    json_t *j = json ? json_loads(json, 0, NULL) : NULL, *v;
    const char *key;
    if (j)
        printf("%s\n", title);
    json_object_foreach(j, key, v)
    {
        char *text = json_is_string(v) ? strdup(json_string_value(v))
                                       : json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY);
        printf("  %s = %.300s\n", shown(key), shown(text));
        free(text);
    }
    json_decref(j);
}

/* In the repository, else a file of its own. */
static int find(struct shelf *s, struct repo_adapter *a, char **file, char **beside,
                struct err *err)
{
    char *home = repo_home(s->home), *ending = NULL;
    const char *ref = s->rest[0];
    bool there = home && repo_exists(home);
    int rc = there ? shelf_open(s, REPO_READ, err) : 0;
    rc = rc < 0 ? rc : there ? repo_find(s->r, ref, a, err) : 1;
    if (rc == 0) {
        rc = repo_name_base(s->r, a, err);
        rc = rc < 0 ? rc : repo_metadata(s->r, a->key, file, beside, err);
    } else if (rc == 1 && file_exists(ref)) {
        rc = repo_inspect(ref, a, file, beside, err);
    } else if (rc == 1 && asprintf(&ending, "%s.safetensors", ref) > 0 && file_exists(ending)) {
        rc = repo_inspect(ending, a, file, beside, err);
    } else if (rc == 1) {
        rc = there ? repo_need(s->r, ref, a, err)
                   : err_set(err, ERR_IO, "%.200s: no such file, and no repository in %s yet", ref,
                             home ? home : "?");
    }
    free(ending);
    free(home);
    return rc;
}

/* From the file as it is now; none where it is gone or its kind needs the model. */
static void measure(struct norms *n, struct repo_adapter *a)
{
    struct adapter_file *f = NULL;
    struct matrices m = {0};
    struct err why;
    memset(n, 0, sizeof *n);
    if (!a->missing && adapter_file_open(&f, a->path, &why) == 0 &&
        matrices_load(&m, &f->list, &why) == 0 && norms_init(n, &m))
        a->norm = n->all;
    matrices_release(&m);
    adapter_file_close(f);
}

static int print(const struct shelf *s, struct repo_adapter *a, const char *file,
                 const char *beside, struct err *err)
{
    struct norms norms;
    measure(&norms, a);
    if (s->json) {
        json_t *j = adapter_json(a->key ? s->r : NULL, a, err);
        if (!j)
            return err->code;
        json_t *meta = file ? json_loads(file, 0, NULL) : NULL;
        json_object_set_new(j, "metadata", meta ? meta : json_null());
        json_line(j);
        return 0;
    }
    print_facts(a);
    if (norms.n) {
        char text[64];
        snprintf(text, sizeof text, "%.4g", norms.all);
        field("norm", text);
        norms_print(&norms);
    }
    int rc = print_words(s, a, err);
    if (rc == 0 && s->verbose) {
        print_metadata("metadata of the file", file);
        print_metadata("beside it", beside);
    }
    return rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct shelf s = {0};
    struct repo_adapter a = {0};
    struct option o[MAX_OPTIONS];
    struct err err;
    char *file = NULL, *beside = NULL;

    (void)self;
    make_options(o, &s);
    int rc = shelf_parse(&s, o, argc, argv, 1, 1, "adapter", &err);
    rc = rc < 0 ? rc : find(&s, &a, &file, &beside, &err);
    rc = rc < 0 ? rc : print(&s, &a, file, beside, &err);
    repo_adapter_release(&a);
    free(file);
    free(beside);
    return shelf_close(&s, rc, &err);
}

const struct command command_show = {
    .name = "show",
    .usage = "weft show NAME|FILE",
    .about = "all that is known of one adapter",
    .run = run,
    .options = make_options,
    .size = sizeof(struct shelf),
    .more =
        "NAME is a name, an alias, an id or the beginning of a hash; or a file, in the "
        "repository\n"
        "or not. The kind and the base are told from tensors, never from names. A declared hash "
        "is\n"
        "what the trainer wrote; weft computes its own.",
};
