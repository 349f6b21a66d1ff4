#include "beside.h"

#include "embedding.h"

#include "unet/file.h"

#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SIDECAR_MAX   (4 << 20) /* bytes */
#define CANDIDATES    8         /* tags taken from the trainer's counts */
#define TRIGGERS_MAX  64
#define TAGS_MAX      64
#define TEXT_MAX_LONG 1000 /* bytes of one group of triggers or a tag */

/* ---- collecting ------------------------------------------------------------------------------ */

/* A copy without white space and commas around it; NULL where nothing is left. */
static char *trimmed(const char *s)
{
    size_t n;
    s += strspn(s, " \t\r\n,");
    for (n = strlen(s); n > 0 && strchr(" \t\r\n,", s[n - 1]);)
        n--;
    return n == 0 || n > TEXT_MAX_LONG ? NULL : strndup(s, n);
}

static void add_trigger(struct beside *b, const char *words, bool candidate, const char *source)
{
    char *copy = words ? trimmed(words) : NULL;
    if (!copy)
        return;
    for (int i = 0; i < b->n_trigger; i++)
        if (!strcmp(b->trigger[i].words, copy) || b->n_trigger == TRIGGERS_MAX) {
            free(copy);
            return;
        }
    struct beside_trigger *p = realloc(b->trigger, (size_t)(b->n_trigger + 1) * sizeof *p);
    if (!p) {
        free(copy);
        return;
    }
    b->trigger = p;
    p[b->n_trigger++] = (struct beside_trigger){copy, candidate, source};
}

static void add_tag(struct beside *b, const char *tag)
{
    char *copy = tag ? trimmed(tag) : NULL;
    char **p =
        copy && b->n_tag < TAGS_MAX ? realloc(b->tag, (size_t)(b->n_tag + 1) * sizeof *p) : NULL;
    if (!p) {
        free(copy);
        return;
    }
    b->tag = p;
    p[b->n_tag++] = copy;
}

static void add_note(struct beside *b, const char *file, const char *what)
{
    char *old = b->note;
    if (asprintf(&b->note, "%s%s%s: %s", old ? old : "", old ? "; " : "", file, what) < 0)
        b->note = NULL;
    free(old);
}

static void set(char **to, const char *text)
{
    if (!*to && text && *text)
        *to = strdup(text);
}

static const char *text_of(const json_t *object, const char *key)
{
    return json_string_value(json_object_get(object, key));
}

static void add_words(struct beside *b, const json_t *list)
{
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        add_trigger(b, json_string_value(v), false, "beside");
    }
}

static void add_tags(struct beside *b, const json_t *list)
{
    size_t i;
    json_t *v;
    json_array_foreach(list, i, v)
    {
        add_tag(b, json_string_value(v));
    }
}

static void set_strength(struct beside *b, double v)
{
    if (isnan(b->strength) && isfinite(v) && v != 0 && fabs(v) <= 10)
        b->strength = v;
}

/* ---- the file's own metadata ----------------------------------------------------------------- */

struct count {
    const char *tag;
    double n;
};

static int by_count(const void *a, const void *b)
{
    const struct count *x = a, *y = b;
    return x->n < y->n ? 1 : x->n > y->n ? -1 : strcmp(x->tag, y->tag);
}

/* kohya's counts, folder by folder: the most frequent tags may be triggers. */
static void read_frequencies(struct beside *b, const char *text)
{
    json_t *root = text ? json_loads(text, 0, NULL) : NULL, *tags, *v;
    const char *folder, *tag;
    size_t n = 0, k = 0;
    json_object_foreach(root, folder, tags)
    {
        n += json_object_size(tags);
    }
    struct count *c = n ? malloc(n * sizeof *c) : NULL;
    if (c) {
        json_object_foreach(root, folder, tags)
        {
            json_object_foreach(tags, tag, v)
            {
                if (k < n && json_is_number(v))
                    c[k++] = (struct count){tag, json_number_value(v)};
            }
        }
        qsort(c, k, sizeof *c, by_count);
        for (size_t i = 0; i < k && i < CANDIDATES; i++)
            add_trigger(b, c[i].tag, true, "file");
    }
    free(c);
    json_decref(root);
}

static void read_own(struct beside *b, const char *metadata)
{
    json_t *m = metadata ? json_loads(metadata, 0, NULL) : NULL;
    const char *alias = text_of(m, "ss_output_name"), *list = text_of(m, "modelspec.tags");
    if (alias && *alias && strcmp(alias, "None"))
        set(&b->alias, alias);
    add_trigger(b, text_of(m, "modelspec.trigger_phrase"), false, "file");
    for (const char *p = list; p && *p;) {
        size_t n = strcspn(p, ",");
        char *one = strndup(p, n);
        add_tag(b, one);
        free(one);
        p += n + (p[n] == ',');
    }
    read_frequencies(b, text_of(m, "ss_tag_frequency"));
    json_decref(m);
}

/* ---- sidecars -------------------------------------------------------------------------------- */

static void read_a1111(struct beside *b, const json_t *j)
{
    add_trigger(b, text_of(j, "activation text"), false, "beside");
    set_strength(b, json_number_value(json_object_get(j, "preferred weight")));
    set(&b->notes, text_of(j, "notes"));
    set(&b->notes, text_of(j, "description"));
}

static void read_civitai(struct beside *b, const json_t *j)
{
    add_words(b, json_object_get(j, "trainedWords"));
    add_tags(b, json_object_get(json_object_get(j, "model"), "tags"));
}

static void read_manager(struct beside *b, const json_t *j)
{
    const char *tips = text_of(j, "usage_tips");
    json_t *usage = tips ? json_loads(tips, 0, NULL) : NULL;
    read_civitai(b, json_object_get(j, "civitai"));
    add_tags(b, json_object_get(j, "tags"));
    set(&b->notes, text_of(j, "notes"));
    set_strength(b, json_number_value(json_object_get(usage, "strength")));
    json_decref(usage);
}

static const struct {
    const char *ending, *key;
    void (*read)(struct beside *b, const json_t *j);
} sidecars[] = {
    {".json", "a1111", read_a1111},
    {".civitai.info", "civitai", read_civitai},
    {".metadata.json", "manager", read_manager},
};

/* A sidecar as JSON, or NULL: not there or damaged. */
static json_t *load(struct beside *b, const char *path, const char *ending)
{
    char *text = NULL;
    struct err why;
    json_t *j = NULL;
    if (file_kind(path) != 1)
        return NULL;
    if (file_read(&text, NULL, path, SIDECAR_MAX, &why) == 0)
        j = json_loads(text, 0, NULL);
    free(text);
    if (!json_is_object(j)) {
        add_note(b, ending, "no JSON object, left out");
        json_decref(j);
        j = NULL;
    }
    return j;
}

/* path without its last ending. */
static char *stem_of(const char *path)
{
    const char *slash = strrchr(path, '/'), *dot = strrchr(path, '.');
    return strndup(path, dot && (!slash || dot > slash + 1) ? (size_t)(dot - path) : strlen(path));
}

static void read_sidecars(struct beside *b, const char *stem, json_t *all)
{
    for (size_t i = 0; i < sizeof sidecars / sizeof *sidecars; i++) {
        char *path = NULL;
        if (asprintf(&path, "%s%s", stem, sidecars[i].ending) < 0)
            return;
        json_t *j = load(b, path, sidecars[i].ending);
        if (j)
            sidecars[i].read(b, j);
        if (j)
            json_object_set_new(all, sidecars[i].key, j);
        free(path);
    }
}

static void find_preview(struct beside *b, const char *stem)
{
    static const char *const endings[] = {".preview.png",  ".png",  ".preview.jpg",  ".jpg",
                                          ".preview.jpeg", ".jpeg", ".preview.webp", ".webp"};
    for (size_t i = 0; i < sizeof endings / sizeof *endings && !b->preview; i++) {
        char *path = NULL;
        if (asprintf(&path, "%s%s", stem, endings[i]) < 0)
            return;
        if (file_kind(path) == 1)
            b->preview = path;
        else
            free(path);
    }
}

char *beside_config(const char *path)
{
    static const char file[] = "adapter_model.safetensors";
    const char *slash = strrchr(path, '/');
    if (!slash || strcmp(slash + 1, file))
        return NULL;
    char *dir = strndup(path, (size_t)(slash - path));
    char *config = dir ? file_join(dir, "adapter_config.json") : NULL;
    free(dir);
    if (config && file_kind(config) == 1)
        return config;
    free(config);
    return NULL;
}

/* What a prompt calls the textual inversions in the file, where its name does not say it. */
static int read_words(struct beside *b, const struct tensor_file *file, const char *path,
                      struct err *err)
{
    struct embedding_list l = {0};
    char *stem = file_stem(path);
    int rc = !stem ? err_nomem(err, strlen(path)) : file ? embedding_read(&l, file, path, err) : 0;
    for (int i = 0; i < l.n && rc == 0; i++)
        if (strcmp(l.item[i].name, stem))
            add_trigger(b, l.item[i].name, false, "file");
    embedding_list_release(&l);
    free(stem);
    return rc;
}

int beside_read(struct beside *b, const char *path, const struct tensor_file *file,
                const char *metadata, struct err *err)
{
    char *stem = stem_of(path);
    json_t *all = json_object(), *config;
    int rc = stem && all ? 0 : err_nomem(err, strlen(path));

    memset(b, 0, sizeof *b);
    b->strength = (double)NAN;
    if (rc == 0) {
        read_sidecars(b, stem, all);
        read_own(b, metadata);
        find_preview(b, stem);
        b->config = beside_config(path);
    }
    rc = rc < 0 ? rc : read_words(b, file, path, err);
    if (rc == 0 && b->config)
        rc = hash_file(b->config_sha256, b->config, err);
    if (b->config && (config = load(b, b->config, "adapter_config.json")))
        json_object_set_new(all, "peft", config);
    if (rc == 0 && json_object_size(all))
        b->json = json_dumps(all, JSON_COMPACT);
    json_decref(all);
    free(stem);
    if (rc < 0)
        beside_release(b);
    return rc;
}

void beside_release(struct beside *b)
{
    for (int i = 0; i < b->n_trigger; i++)
        free(b->trigger[i].words);
    for (int i = 0; i < b->n_tag; i++)
        free(b->tag[i]);
    char *owned[] = {b->alias, b->notes, b->category, b->preview, b->note, b->json, b->config};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    free(b->trigger);
    free(b->tag);
    memset(b, 0, sizeof *b);
}
