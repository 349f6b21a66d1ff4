#include "loader.h"

#include "config.h"
#include "file.h"
#include "hash.h"
#include "safetensors.h"

#include <assert.h>
#include <jansson.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const component_names[COMPONENT_COUNT] = {"unet", "text_encoder", "vae"};

/* ---- weights --------------------------------------------------------------------------------- */

#define MAX_SHARDS 64

struct weights {
    char *dir;
    struct safetensors *file[MAX_SHARDS];
    bool *used[MAX_SHARDS]; /* an array of a file: asked for */
    int n_file;
    float *pool; /* random weights: every array is a piece of this */
    size_t pool_size;
};

void weights_close(struct weights *w)
{
    if (!w)
        return;
    for (int i = 0; i < w->n_file; i++) {
        safetensors_close(w->file[i]);
        free(w->used[i]);
    }
    free(w->pool);
    free(w->dir);
    free(w);
}

static int add_file(struct weights *w, const char *path, struct err *err)
{
    struct safetensors *st = NULL;
    if (w->n_file == MAX_SHARDS)
        return err_set(err, ERR_FORMAT, "%s: more than %d shards", path, MAX_SHARDS);
    int rc = safetensors_open(&st, path, err);
    if (rc < 0)
        return rc;
    bool *used = calloc(safetensors_count(st) + 1, sizeof *used);
    if (!used) {
        safetensors_close(st);
        return err_nomem(err, safetensors_count(st));
    }
    w->file[w->n_file] = st;
    w->used[w->n_file++] = used;
    return 0;
}

/* Shard names come from a file: they must be plain names of files beside it. */
static int add_shard(struct weights *w, const char *index, const char *name, struct err *err)
{
    if (!*name || strchr(name, '/') || name[0] == '.')
        return err_set(err, ERR_FORMAT, "%s: '%.80s' is not the name of a file beside it", index,
                       name);
    char *path = file_join(w->dir, name);
    if (!path)
        return err_nomem(err, strlen(name));
    int rc = add_file(w, path, err);
    free(path);
    return rc;
}

static int add_index(struct weights *w, const char *path, struct err *err)
{
    json_error_t je;
    const char *seen[MAX_SHARDS] = {NULL}, *key;
    char *text = NULL;
    json_t *root = NULL, *v;
    int n = 0, rc = file_read(&text, NULL, path, 64 << 20, err);

    if (rc < 0)
        return rc;
    root = json_loads(text, JSON_REJECT_DUPLICATES, &je);
    json_t *map = json_object_get(root, "weight_map");
    if (!json_is_object(map)) {
        rc = err_set(err, ERR_FORMAT, "%s: no weight_map in this index (%s)", path,
                     root ? "the key is missing" : je.text);
        goto out;
    }
    json_object_foreach(map, key, v)
    {
        const char *name = json_string_value(v);
        int i = 0;
        while (i < n && name && strcmp(seen[i], name))
            i++;
        if (!name || (i == n && n == MAX_SHARDS)) {
            rc = err_set(err, ERR_FORMAT, "%s: weight_map is damaged at '%.80s'", path, key);
            goto out;
        }
        if (i == n) {
            seen[n++] = name;
            rc = add_shard(w, path, name, err);
            if (rc < 0)
                goto out;
        }
    }
out:
    json_decref(root);
    free(text);
    return rc;
}

static int nothing_there(const char *dir, const char *stem, struct err *err)
{
    char name[300];
    static const char *const old[] = {"bin", "fp16.bin", "ckpt"};
    if (file_kind(dir) != 2)
        return err_set(err, ERR_IO, "%s: no such folder in the model", dir);
    for (size_t i = 0; i < sizeof old / sizeof *old; i++) {
        snprintf(name, sizeof name, "%s.%s", strcmp(stem, "model") ? stem : "pytorch_model",
                 old[i]);
        char *path = file_join(dir, name);
        int kind = path ? file_kind(path) : 0;
        free(path);
        if (kind == 1)
            return err_set(err, ERR_UNSUPPORTED,
                           "%s/%s: pickled weights are never read; save the model with "
                           "safe_serialization=True",
                           dir, name);
    }
    return err_set(err, ERR_IO, "%s: holds no %s.safetensors", dir, stem);
}

static int weights_open(struct weights **out, const char *dir, const char *stem, struct err *err)
{
    static const char *const form[] = {"%s.safetensors", "%s.safetensors.index.json",
                                       "%s.fp16.safetensors", "%s.safetensors.index.fp16.json"};
    struct weights *w = calloc(1, sizeof *w);
    int rc = 0, found = 0;

    *out = NULL;
    if (!w || !(w->dir = strdup(dir))) {
        free(w);
        return err_nomem(err, sizeof *w);
    }
    for (int i = 0; i < 4 && !found && rc == 0; i++) {
        char name[300];
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wformat-nonliteral"
        snprintf(name, sizeof name, form[i], stem);
#pragma GCC diagnostic pop
        char *path = file_join(dir, name);
        if (!path) {
            rc = err_nomem(err, sizeof name);
        } else if (file_exists(
                       path)) { /* a link that leads nowhere is an error, not another file */
            found = 1;
            rc = i % 2 ? add_index(w, path, err) : add_file(w, path, err);
        }
        free(path);
    }
    if (rc == 0 && !found)
        rc = nothing_there(dir, stem, err);
    if (rc < 0) {
        weights_close(w);
        return rc;
    }
    *out = w;
    return 0;
}

/* Small values, about normal (sum of four uniforms), from a linear congruence. */
static int weights_random(struct weights **out, uint64_t seed, struct err *err)
{
    struct weights *w = calloc(1, sizeof *w);
    size_t n = (size_t)32 << 20; /* more than the largest layer of SD 1.5 */
    float *p = malloc(n * sizeof *p);

    *out = NULL;
    if (!w || !p) {
        free(w);
        free(p);
        return err_nomem(err, n * sizeof *p);
    }
    for (size_t i = 0; i < n; i++) {
        float s = 0;
        for (int k = 0; k < 4; k++) {
            seed = seed * 6364136223846793005u + 1442695040888963407u;
            s += (float)(seed >> 40) * 0x1p-24f - 0.5f;
        }
        p[i] = s * 0.035f;
    }
    w->pool = p;
    w->pool_size = n;
    *out = w;
    return 0;
}

static const struct array *weights_find(const struct weights *w, const char *name)
{
    for (int f = 0; f < w->n_file; f++) {
        ptrdiff_t i = safetensors_index(w->file[f], name);
        if (i >= 0) {
            w->used[f][i] = true;
            return safetensors_at(w->file[f], (size_t)i);
        }
    }
    return NULL;
}

static void hash_file_of(const struct safetensors *st, struct hash *h)
{
    enum { BLOCK = 4096, BLOCKS = 256 };
    size_t size;
    const char *data = safetensors_data(st, &size);
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const struct array *a = safetensors_at(st, i);
        const char *name = safetensors_name(st, i);
        hash_add(h, name, strlen(name) + 1);
        hash_add(h, dtype_name(a->dtype), strlen(dtype_name(a->dtype)) + 1);
        hash_add(h, a->dim, (size_t)a->ndim * sizeof *a->dim);
    }
    if (size <= (size_t)BLOCK * BLOCKS) {
        hash_add(h, data, size);
        return;
    }
    for (size_t i = 0; i < BLOCKS; i++)
        hash_add(h, data + (size - BLOCK) / (BLOCKS - 1) * i, BLOCK);
}

void weights_hash(const struct weights *w, struct hash *h)
{
    for (int i = 0; i < w->n_file; i++)
        hash_file_of(w->file[i], h);
}

/* ---- sources --------------------------------------------------------------------------------- */

int source_open(struct source *s, const char *dir, const char *stem, struct err *err)
{
    char *path = file_join(dir, "config.json");

    memset(s, 0, sizeof *s);
    int rc = path ? config_open(&s->config, path, err) : err_nomem(err, strlen(dir));
    rc = rc < 0 ? rc : weights_open(&s->weights, dir, stem, err);
    free(path);
    if (rc < 0)
        source_close(s);
    return rc;
}

int source_random(struct source *s, const char *config_json, const char *what, uint64_t seed,
                  struct err *err)
{
    memset(s, 0, sizeof *s);
    int rc = config_parse(&s->config, config_json, what, err);
    rc = rc < 0 ? rc : weights_random(&s->weights, seed, err);
    if (rc < 0)
        source_close(s);
    return rc;
}

void source_close(struct source *s)
{
    config_close(s->config);
    weights_close(s->weights);
    memset(s, 0, sizeof *s);
}

/* ---- sites ----------------------------------------------------------------------------------- */

/* One of l and g. */
static int sites_add(struct sites *s, enum component part, const char *name, struct layer *l,
                     struct norm *g)
{
    if (s->n == s->cap) {
        int cap = s->cap ? 2 * s->cap : 256;
        struct site *p = realloc(s->at, (size_t)cap * sizeof *p);
        if (!p)
            return -1;
        s->at = p;
        s->cap = cap;
    }
    size_t size = strlen(component_names[part]) + strlen(name) + 2;
    char *full = malloc(size);
    if (!full)
        return -1;
    snprintf(full, size, "%s.%s", component_names[part], name);
    if (l)
        l->site = s->n;
    else
        g->site = s->n;
    struct site *site = &s->at[s->n++];
    site->name = full;
    site->part = part;
    site->layer = l;
    site->norm = g;
    return 0;
}

static int by_name(const void *a, const void *b, void *sites)
{
    const struct sites *s = sites;
    return strcmp(s->at[*(const int *)a].name, s->at[*(const int *)b].name);
}

int sites_finish(struct sites *s, struct err *err)
{
    free(s->order);
    s->order = malloc((size_t)(s->n + 1) * sizeof *s->order);
    if (!s->order)
        return err_nomem(err, (size_t)s->n * sizeof *s->order);
    for (int i = 0; i < s->n; i++)
        s->order[i] = i;
    qsort_r(s->order, (size_t)s->n, sizeof *s->order, by_name, s);
    return 0;
}

void site_block(char *out, size_t size, const char *site)
{
    static const char *const numbered[] = {"unet.down_blocks.", "unet.up_blocks."};
    for (int i = 0; i < 2; i++) {
        size_t n = strlen(numbered[i]);
        if (!strncmp(site, numbered[i], n)) {
            snprintf(out, size, "%.*s", (int)(n + strcspn(site + n, ".")), site);
            return;
        }
    }
    if (!strncmp(site, "unet.mid_block.", 15))
        snprintf(out, size, "unet.mid_block");
    else
        snprintf(out, size, "%.*s", (int)strcspn(site, "."), site);
}

int sites_find(const struct sites *s, const char *name)
{
    int lo = 0, hi = s->n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2, c = strcmp(name, s->at[s->order[mid]].name);
        if (c == 0)
            return s->order[mid];
        if (c < 0)
            hi = mid;
        else
            lo = mid + 1;
    }
    return -1;
}

void sites_release(struct sites *s)
{
    for (int i = 0; i < s->n; i++)
        free(s->at[i].name);
    free(s->at);
    free(s->order);
    memset(s, 0, sizeof *s);
}

/* ---- loader ---------------------------------------------------------------------------------- */

void loader_fail(struct loader *ld, int code, const char *fmt, ...)
{
    char msg[sizeof ld->err.msg];
    va_list ap;
    if (ld->err.code)
        return;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    err_set(&ld->err, code, "%s", msg);
}

/* path + name + end. Names are ours and short; one that does not fit would only not be found. */
struct full {
    char s[320];
};

static struct full full_name(const struct loader *ld, const char *name, const char *end)
{
    struct full f;
    snprintf(f.s, sizeof f.s, "%s%s%s", ld->path, name, end);
    return f;
}

void loader_enter(struct loader *ld, const char *fmt, ...)
{
    size_t n = strlen(ld->path);
    va_list ap;
    assert(ld->depth < (int)(sizeof ld->mark / sizeof *ld->mark) && n + 2 < sizeof ld->path);
    ld->mark[ld->depth++] = n;
    va_start(ap, fmt);
    vsnprintf(ld->path + n, sizeof ld->path - n - 1, fmt, ap);
    va_end(ap);
    strcat(ld->path, ".");
}

void loader_leave(struct loader *ld)
{
    assert(ld->depth > 0);
    ld->path[ld->mark[--ld->depth]] = 0;
}

bool loader_has(const struct loader *ld, const char *name)
{
    return ld->weights->pool || weights_find(ld->weights, full_name(ld, name, "").s);
}

static void random_array(struct loader *ld, struct array *a)
{
    const struct weights *w = ld->weights;
    a->dtype = DT_F32;
    a->data = w->pool;
    if (array_count(a) > w->pool_size)
        loader_fail(ld, ERR_UNSUPPORTED, "a random array of %zu values is too large",
                    array_count(a));
}

static void find_array(struct loader *ld, struct array *a, const char *name, int ndim,
                       const uint64_t *dim)
{
    struct array want = {.ndim = ndim};
    char have[96], wish[96];

    memset(a, 0, sizeof *a);
    if (ld->err.code)
        return;
    memcpy(want.dim, dim, (size_t)ndim * sizeof *dim);
    if (ld->hidden && !strncmp(name, ld->hidden, strlen(ld->hidden)))
        name += strlen(ld->hidden);
    if (ld->weights->pool) {
        *a = want;
        random_array(ld, a);
        return;
    }
    const struct array *found = weights_find(ld->weights, name);
    if (!found) {
        loader_fail(ld, ERR_FORMAT, "%s: %s is missing", ld->weights->dir, name);
        return;
    }
    if (found->ndim != ndim || memcmp(found->dim, dim, (size_t)ndim * sizeof *dim)) {
        loader_fail(ld, ERR_MISMATCH, "%s: %s is %s where the config asks for %s", ld->weights->dir,
                    name, array_shape(found, have, sizeof have),
                    array_shape(&want, wish, sizeof wish));
        return;
    }
    if (!array_readable(found)) {
        loader_fail(ld, ERR_UNSUPPORTED, "%s: %s has type %s, which weft does not compute with",
                    ld->weights->dir, name, dtype_name(found->dtype));
        return;
    }
    *a = *found;
}

void loader_array(struct loader *ld, struct array *a, const char *name, int ndim,
                  const uint64_t *dim)
{
    find_array(ld, a, full_name(ld, name, "").s, ndim, dim);
}

/* Makes the layer a site, whose name it has from then on, and finds its arrays. */
static void fill_layer(struct loader *ld, struct layer *l, const char *name, int ndim, bool bias)
{
    uint64_t dim[4] = {(uint64_t)l->out, (uint64_t)l->in, (uint64_t)l->kh, (uint64_t)l->kw};

    l->site = -1;
    l->name = component_names[ld->part];
    if (ld->err.code)
        return;
    if (sites_add(ld->sites, ld->part, full_name(ld, name, "").s, l, NULL) < 0) {
        loader_fail(ld, ERR_NOMEM, "out of memory for the model's sites");
        return;
    }
    l->name = ld->sites->at[l->site].name;
    find_array(ld, &l->w, full_name(ld, name, ".weight").s, ndim, dim);
    if (bias)
        find_array(ld, &l->b, full_name(ld, name, ".bias").s, 1, dim);
}

void loader_linear(struct loader *ld, struct layer *l, const char *name, int in, int out, bool bias)
{
    *l = (struct layer){.out = out, .in = in, .kh = 1, .kw = 1, .stride = 1};
    fill_layer(ld, l, name, 2, bias);
}

void loader_conv(struct loader *ld, struct layer *l, const char *name, int in, int out, int k,
                 int stride)
{
    *l = (struct layer){.out = out, .in = in, .kh = k, .kw = k, .stride = stride};
    for (int i = 0; i < 4; i++)
        l->pad[i] = k / 2;
    fill_layer(ld, l, name, 4, true);
}

void loader_patches(struct loader *ld, struct layer *l, const char *name, int in, int out, int k)
{
    *l = (struct layer){.out = out, .in = in, .kh = k, .kw = k, .stride = k};
    fill_layer(ld, l, name, 4, false);
}

void loader_norm(struct loader *ld, struct norm *g, const char *name, int c, int groups, float eps)
{
    struct full full = full_name(ld, name, "");
    uint64_t dim = (uint64_t)c;
    struct array gamma, beta;
    struct err err;

    memset(g, 0, sizeof *g);
    if (groups < 0 || (groups && c % groups)) {
        loader_fail(ld, ERR_FORMAT, "%s: %d channels do not divide into %d groups", full.s, c,
                    groups);
        return;
    }
    find_array(ld, &gamma, full_name(ld, name, ".weight").s, 1, &dim);
    find_array(ld, &beta, full_name(ld, name, ".bias").s, 1, &dim);
    if (!ld->err.code && norm_init(ld->dev, g, full.s, groups, eps, &gamma, &beta, &err) < 0)
        loader_fail(ld, err.code, "%s", err.msg);
    if (!ld->err.code && sites_add(ld->sites, ld->part, full_name(ld, name, "").s, NULL, g) < 0)
        loader_fail(ld, ERR_NOMEM, "out of memory for the model's sites");
    g->name = ld->err.code ? component_names[ld->part] : ld->sites->at[g->site].name;
}

static bool ignored(const char *name, const char *const *ignore)
{
    size_t n = strlen(name);
    for (; ignore && *ignore; ignore++) {
        size_t k = strlen(*ignore);
        if (n >= k && !strcmp(name + n - k, *ignore))
            return true;
    }
    return false;
}

int loader_done(struct loader *ld, const char *const *ignore, struct err *err)
{
    const struct weights *w = ld->weights;
    for (int f = 0; f < w->n_file; f++)
        for (size_t i = 0; i < safetensors_count(w->file[f]); i++) {
            const char *name = safetensors_name(w->file[f], i);
            if (!w->used[f][i] && !ignored(name, ignore))
                loader_fail(ld, ERR_UNSUPPORTED,
                            "%s: %s belongs to no part weft knows; this is another architecture",
                            w->dir, name);
        }
    if (ld->err.code && err)
        *err = ld->err;
    return ld->err.code;
}
