#include "request.h"

#include "cli.h"
#include "unet/file.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void request_init(struct request *r)
{
    memset(r, 0, sizeof *r);
    r->steps = 30;
    r->clip_skip = 1;
    r->cfg = 7;
    r->denoise = 0.6;
}

static void adapter_release(struct request_adapter *a)
{
    free(a->ref);
    free(a->path);
    free(a->name);
    free(a->id);
    free(a->word);
    free(a->prompt);
    free(a->mask);
    if (a->row)
        repo_adapter_release(a->row);
    free(a->row);
}

static void embedding_release(struct request_embedding *e)
{
    free(e->path);
    free(e->name);
}

void request_release(struct request *r)
{
    char *text[] = {r->model,    r->prompt, r->negative, r->sampler,
                    r->schedule, r->rng,    r->init,     r->compose};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        free(text[i]);
    for (int i = 0; i < r->n_adapter; i++)
        adapter_release(&r->adapter[i]);
    for (int i = 0; i < r->n_embedding; i++)
        embedding_release(&r->embedding[i]);
    free(r->adapter);
    free(r->embedding);
    memset(r, 0, sizeof *r);
}

int request_set(char **to, const char *text, struct err *err)
{
    char *copy = text ? strdup(text) : NULL;
    if (text && !copy)
        return err_nomem(err, strlen(text));
    free(*to);
    *to = copy;
    return 0;
}

/* ---- adapters -------------------------------------------------------------------------------- */

/* A new adapter at the end of the list, everything at its default. */
static struct request_adapter *add(struct request *r, struct err *err)
{
    size_t n = (size_t)r->n_adapter + 1;
    struct request_adapter *p = realloc(r->adapter, n * sizeof *p);
    if (!p) {
        err_nomem(err, n * sizeof *p);
        return NULL;
    }
    r->adapter = p;
    p += r->n_adapter++;
    *p = (struct request_adapter){.unet = 1, .te = 1};
    return p;
}

static char *with_ending(const char *name, size_t len, const char *ending)
{
    char *s = NULL;
    return asprintf(&s, "%.*s%s", (int)len, name, ending) < 0 ? NULL : s;
}

/* The file that a name means: itself, the same with an ending of tensor files behind it, or a PEFT folder.
 * NULL: none. */
static char *find_file(const char *name, size_t len)
{
    static const char *const ending[] = {"",
                                         ".safetensors",
                                         ".pt",
                                         ".bin",
                                         ".pth",
                                         "/adapter_model.safetensors",
                                         "/adapter_model.bin"};
    for (size_t i = 0; i < sizeof ending / sizeof *ending; i++) {
        char *path = with_ending(name, len, ending[i]);
        bool found = path && file_kind(path) == 1;
        if (found && ending[i][0] != '/')
            return path;
        free(path);
        if (found)
            return with_ending(name, len, "");
    }
    return NULL;
}

int request_take_row(struct request_adapter *a, const struct repo_adapter *row, struct err *err)
{
    a->row = malloc(sizeof *a->row);
    if (!a->row)
        return err_nomem(err, sizeof *a->row);
    *a->row = *row;
    snprintf(a->file_sha256, sizeof a->file_sha256, "%s", row->file_sha256);
    int rc = request_set(&a->path, row->path, err);
    rc = rc < 0 ? rc : request_set(&a->name, row->name, err);
    rc = rc < 0 ? rc : request_set(&a->id, row->id, err);
    return rc;
}

/* What name[0..len) means: a name, alias or id of the repository; a file, which may be one of the
 * repository; the beginning of a hash. 1: found, 0: not, negative: it may be any of several, or the
 * repository cannot tell. */
static int locate(const struct request *r, struct request_adapter *a, const char *name, size_t len,
                  struct err *err)
{
    struct repo_adapter row;
    char *ref = strndup(name, len), *path = NULL;
    int rc = !ref ? err_nomem(err, len) : r->repo ? repo_find_name(r->repo, ref, &row, err) : 1;
    if (rc == 1)
        path = find_file(name, len);
    if (rc == 1 && r->repo)
        rc = path ? repo_find_file(r->repo, ref, &row, err) : repo_find(r->repo, ref, &row, err);
    if (rc == 0) {
        rc = request_take_row(a, &row, err);
        rc = rc < 0 ? rc : 1;
    } else if (rc == 1 && path) {
        a->path = path;
        path = NULL;
    } else if (rc == 1) {
        rc = 0;
    }
    free(path);
    free(ref);
    return rc;
}

static int no_such_adapter(const struct request *r, const char *ref, size_t len, struct err *err)
{
    struct repo_adapter row;
    char *path = with_ending(ref, len, "");
    bool folder = path && file_kind(path) == 2;
    bool name = path && !strchr(path, '/') && !strstr(path, ".safetensors");
    if (r->repo && name && !folder && repo_need(r->repo, path, &row, err) < 0) {
        free(path);
        return err->code;
    }
    free(path);
    return err_set(err, ERR_IO, "%.*s: %s", (int)len, ref,
                   folder ? "a folder without adapter_model.safetensors or .bin"
                          : "no such adapter file");
}

static int parse_double(const char *s, size_t n, double *out)
{
    char buf[40], *end;
    if (n == 0 || n >= sizeof buf)
        return -1;
    memcpy(buf, s, n);
    buf[n] = 0;
    if (strspn(buf, "+-.0123456789eE") != n)
        return -1;
    *out = strtod(buf, &end);
    return *end || end == buf || !isfinite(*out) ? -1 : 0;
}

static bool is_box(const double b[4])
{
    return b[0] >= 0 && b[1] >= 0 && b[2] <= 1 && b[3] <= 1 && b[0] < b[2] && b[1] < b[3];
}

/* LEFT/TOP/RIGHT/BOTTOM */
static int parse_box(struct request_adapter *a, const char *text, size_t n, struct err *err)
{
    int k = 0;
    for (const char *p = text, *end = text + n; p <= end && k >= 0; p++, k++) {
        size_t len = strcspn(p, "/,");
        len = p + len > end ? (size_t)(end - p) : len;
        if (k == 4 || parse_double(p, len, &a->box[k]) < 0)
            k = -2;
        p += len;
    }
    if (k == 4 && is_box(a->box))
        return 0;
    return err_set(err, ERR_ARG,
                   "-a %.80s: box=%.*s is not LEFT/TOP/RIGHT/BOTTOM in shares of the picture, as "
                   "box=0/0/.5/1 for its left half",
                   a->ref, (int)n, text);
}

/* word=, prompt=, box= or mask=: 1, and 0 for another key. */
static int set_place(struct request_adapter *a, const char *key, size_t nk, const char *value,
                     size_t nv, struct err *err)
{
    bool word = nk == 4 && !memcmp(key, "word", 4), mask = nk == 4 && !memcmp(key, "mask", 4),
         prompt = nk == 6 && !memcmp(key, "prompt", 6);
    if (nk == 3 && !memcmp(key, "box", 3))
        return parse_box(a, value, nv, err) < 0 ? err->code : 1;
    if (!word && !mask && !prompt)
        return 0;
    char **to = word ? &a->word : mask ? &a->mask : &a->prompt;
    free(*to);
    *to = strndup(value, nv);
    return *to ? 1 : err_nomem(err, nv);
}

static int set_key(struct request_adapter *a, const char *key, size_t nk, const char *value,
                   size_t nv, struct err *err)
{
    double v = 0;
    int rc = set_place(a, key, nk, value, nv, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    if (nk == 6 && !memcmp(key, "blocks", 6)) {
        rc = lbw_parse(&a->blocks, value, nv, err);
        return rc < 0 ? err_prefix(err, "-a %.80s", a->ref) : 0;
    }
    bool number = parse_double(value, nv, &v) == 0;
    bool step = number && v == floor(v) && v >= 1 && v <= 1000;
    if (nk == 4 && !memcmp(key, "unet", 4) && number)
        a->unet = v;
    else if (nk == 2 && !memcmp(key, "te", 2) && number)
        a->te = v;
    else if (nk == 4 && !memcmp(key, "from", 4) && step)
        a->from = (int)v;
    else if (nk == 2 && !memcmp(key, "to", 2) && step)
        a->to = (int)v;
    else
        return err_set(
            err, ERR_ARG,
            "-a %.80s: '%.*s' is not unet=NUMBER, te=NUMBER, from=STEP, to=STEP, blocks=LIST, "
            "word=WORDS, prompt=TEXT, box=LEFT/TOP/RIGHT/BOTTOM or mask=PNG",
            a->ref, (int)(nk + nv + 1), key);
    return 0;
}

/* Whether ",key=" with a lower-case key stands there. */
static bool is_pair(const char *s)
{
    size_t n = 1;
    while (islower((unsigned char)s[n]))
        n++;
    return *s == ',' && n > 1 && s[n] == '=';
}

/* Where in s[0..n) the last ",key=" is; false: there is none. What follows it may have commas of its own. */
static bool last_pair(const char *s, size_t n, size_t *comma)
{
    while (n-- > 0)
        if (is_pair(s + n)) {
            *comma = n;
            return true;
        }
    return false;
}

/* What text[0..n) means: a name, or NAME:STRENGTH. 1: found, its strength is set. */
static int find_ref(const struct request *r, struct request_adapter *a, const char *text, size_t n,
                    struct err *err)
{
    double strength = 1;
    size_t colon = n;
    int rc = locate(r, a, text, n, err);
    if (rc == 1 && a->row && !isnan(a->row->strength))
        strength = a->row->strength;
    if (rc == 0) {
        while (colon > 0 && text[colon - 1] != ':')
            colon--;
        if (colon < 2 || parse_double(text + colon, n - colon, &strength) < 0)
            return 0;
        rc = locate(r, a, text, colon - 1, err);
    }
    a->unet = a->te = strength;
    return rc;
}

void request_drop_adapter(struct request *r, int i)
{
    adapter_release(&r->adapter[i]);
    memmove(&r->adapter[i], &r->adapter[i + 1],
            (size_t)(--r->n_adapter - i) * sizeof r->adapter[0]);
}

void request_drop_named(struct request *r)
{
    for (int i = r->n_adapter; i-- > 0;)
        if (r->adapter[i].in_prompt)
            request_drop_adapter(r, i);
}

/* The last adapter replaces those of the same file that came with a picture: they have their hash. */
static void drop_older(struct request *r)
{
    for (int i = r->n_adapter - 1; i-- > 0;)
        if (*r->adapter[i].sha256 && !r->adapter[i].in_prompt &&
            !strcmp(r->adapter[i].path, r->adapter[r->n_adapter - 1].path))
            request_drop_adapter(r, i);
}

int request_add_adapter(struct request *r, const char *text, struct err *err)
{
    struct request_adapter *a = add(r, err);
    size_t n = strlen(text);

    if (!a)
        return ERR_NOMEM;
    int rc = request_set(&a->ref, text, err);
    /* A name may hold commas, colons and equals signs: the longest beginning that names something,
     * alone or with a strength behind it, is the name. */
    while (rc == 0 && (rc = find_ref(r, a, text, n, err)) == 0 && last_pair(text, n, &n))
        ;
    if (rc == 0)
        return no_such_adapter(r, text, n, err);
    rc = rc < 0 ? rc : 0;
    while (rc == 0 && text[n] == ',') {
        const char *pair = text + n + 1;
        size_t nk = strcspn(pair, "="), len = nk;
        while (pair[len] && !is_pair(pair + len))
            len++;
        rc = set_key(a, pair, nk, pair + nk + 1, len - nk - 1, err);
        n += len + 1;
    }
    if (rc == 0)
        drop_older(r);
    return rc;
}

int request_add_named(struct request *r, const char *name, double te, double unet, struct err *err)
{
    struct request_adapter *a = add(r, err);
    if (!a)
        return ERR_NOMEM;
    a->te = te;
    a->unet = unet;
    a->in_prompt = true;
    int rc = locate(r, a, name, strlen(name), err);
    if (rc == 0)
        return no_such_adapter(r, name, strlen(name), err);
    return rc < 0 ? rc : request_set(&a->ref, name, err);
}

/* ---- textual inversions ---------------------------------------------------------------------- */

struct request_embedding *request_new_embedding(struct request *r, struct err *err)
{
    size_t n = (size_t)r->n_embedding + 1;
    struct request_embedding *p = realloc(r->embedding, n * sizeof *p);
    if (!p) {
        err_nomem(err, n * sizeof *p);
        return NULL;
    }
    r->embedding = p;
    p += r->n_embedding++;
    *p = (struct request_embedding){0};
    return p;
}

void request_drop_embedding(struct request *r, int i)
{
    embedding_release(&r->embedding[i]);
    memmove(&r->embedding[i], &r->embedding[i + 1],
            (size_t)(--r->n_embedding - i) * sizeof *r->embedding);
}

int request_add_embedding(struct request *r, const char *text, struct err *err)
{
    struct request_embedding *e = request_new_embedding(r, err);
    const char *equals = strrchr(text, '=');
    size_t n = strlen(text);
    if (!e)
        return ERR_NOMEM;
    e->given = true;
    e->path = find_file(text, n); /* a file's own name may hold "=" */
    if (!e->path && equals) {
        n = (size_t)(equals - text);
        e->path = find_file(text, n);
        e->name = strdup(equals + 1);
        if (!e->name)
            return err_nomem(err, strlen(equals));
    }
    if (!e->path || file_kind(e->path) != 1)
        return err_set(err, ERR_IO, "%.*s: no such embedding file", (int)n, text);
    for (int i = r->n_embedding - 1; i-- > 0;)
        if (!r->embedding[i].given && !strcmp(r->embedding[i].path, e->path)) {
            request_drop_embedding(r, i);
            e--;
        }
    return 0;
}

/* ---- the weft chunk -------------------------------------------------------------------------- */

#define CHUNK_FORMAT 1

/* Every plain setting once: its key, its type, its place, and where the least and most are. */
enum field_kind { FIELD_TEXT, FIELD_INT, FIELD_U64, FIELD_NUMBER, FIELD_BOOL, FIELD_HASH };
struct field {
    const char *key, *option;
    enum field_kind kind;
    size_t at;
    double min, max;
};
#define AT(name) offsetof(struct request, name)
static const struct field fields[] = {
    {"model", NULL, FIELD_TEXT, AT(model), 0, 0},
    {"model_sha256", NULL, FIELD_HASH, AT(model_sha256), 0, 0},
    {"prompt", NULL, FIELD_TEXT, AT(prompt), 0, 0},
    {"negative", NULL, FIELD_TEXT, AT(negative), 0, 0},
    {"seed", "seed", FIELD_U64, AT(seed), 0, 0},
    {"width", "size", FIELD_INT, AT(size[0]), 0, 65536},
    {"height", "size", FIELD_INT, AT(size[1]), 0, 65536},
    {"steps", "steps", FIELD_INT, AT(steps), 1, 1000},
    {"cfg", "cfg", FIELD_NUMBER, AT(cfg), -100, 100},
    {"sampler", NULL, FIELD_TEXT, AT(sampler), 0, 0},
    {"schedule", NULL, FIELD_TEXT, AT(schedule), 0, 0},
    {"eta", "eta", FIELD_NUMBER, AT(eta), 0, 1},
    {"clip_skip", "clip-skip", FIELD_INT, AT(clip_skip), 1, 100},
    {"rng", NULL, FIELD_TEXT, AT(rng), 0, 0},
    {"init", NULL, FIELD_TEXT, AT(init), 0, 0},
    {"init_sha256", NULL, FIELD_HASH, AT(init_sha256), 0, 0},
    {"denoise", "denoise", FIELD_NUMBER, AT(denoise), 0, 1},
    {"tile", "tile", FIELD_INT, AT(tile), 0, 4096},
    {"compose", NULL, FIELD_TEXT, AT(compose), 0, 0},
    {"fold", NULL, FIELD_BOOL, AT(fold), 0, 0},
};
#define N_FIELDS (sizeof fields / sizeof *fields)

static const void *place(const struct request *r, const struct field *f)
{
    return (const char *)r + f->at;
}

int request_check(const struct request *r, struct err *err)
{
    for (size_t i = 0; i < N_FIELDS; i++) {
        const struct field *f = &fields[i];
        if (f->kind != FIELD_INT && f->kind != FIELD_NUMBER)
            continue;
        double v = f->kind == FIELD_INT ? *(const int *)place(r, f) : *(const double *)place(r, f);
        if (!(v >= f->min && v <= f->max))
            return err_set(err, ERR_ARG, "--%s takes %g to %g, not %g", f->option, f->min, f->max,
                           v);
    }
    return 0;
}

static json_t *field_json(const struct request *r, const struct field *f)
{
    const void *p = place(r, f);
    switch (f->kind) {
    case FIELD_TEXT: return *(char *const *)p ? json_string(*(char *const *)p) : json_null();
    case FIELD_INT: return json_integer(*(const int *)p);
    case FIELD_U64: return json_integer((json_int_t) * (const uint64_t *)p);
    case FIELD_NUMBER: return json_real(*(const double *)p);
    case FIELD_BOOL: return json_boolean(*(const bool *)p);
    case FIELD_HASH: return json_string(p);
    }
    return NULL;
}

static json_t *adapter_json(const struct request_adapter *a)
{
    json_t *j = json_pack("{s:s, s:s, s:s, s:f, s:f, s:i, s:i, s:b}", "ref", a->ref, "file",
                          a->path, "data_sha256", a->sha256, "unet", a->unet, "te", a->te, "from",
                          a->from, "to", a->to, "in_prompt", a->in_prompt);
    json_t *blocks = a->blocks.n ? json_array() : NULL;
    for (int i = 0; i < a->blocks.n; i++)
        json_array_append_new(blocks, json_real((double)a->blocks.w[i]));
    if (j && blocks)
        json_object_set_new(j, "blocks", blocks);
    if (j && a->word)
        json_object_set_new(j, "word", json_string(a->word));
    if (j && a->prompt)
        json_object_set_new(j, "prompt", json_string(a->prompt));
    if (j && is_box(a->box))
        json_object_set_new(j, "box",
                            json_pack("[f,f,f,f]", a->box[0], a->box[1], a->box[2], a->box[3]));
    if (j && a->mask)
        json_object_update_new(
            j, json_pack("{s:s, s:s}", "mask", a->mask, "mask_sha256", a->mask_sha256));
    if (j && a->name && a->id &&
        json_object_update_new(j, json_pack("{s:s, s:s, s:s}", "name", a->name, "id", a->id,
                                            "file_sha256", a->file_sha256)) < 0) {
        json_decref(j);
        return NULL;
    }
    return j;
}

static json_t *embedding_json(const struct request_embedding *e)
{
    return json_pack("{s:s, s:s?, s:s}", "file", e->path, "name", e->name, "data_sha256",
                     e->sha256);
}

/* Only where there are any: pictures without them are as they were before weft knew them. */
static int put_embeddings(json_t *root, const struct request *r)
{
    json_t *list = json_array();
    int bad = !list;
    for (int i = 0; i < r->n_embedding && !bad; i++)
        bad = json_array_append_new(list, embedding_json(&r->embedding[i]));
    if (r->n_embedding && !bad)
        bad = json_object_set(root, "embeddings", list);
    json_decref(list);
    return bad;
}

char *request_to_json(const struct request *r, struct err *err)
{
    json_t *root = json_pack("{s:s, s:i}", "weft", WEFT_VERSION, "format", CHUNK_FORMAT);
    json_t *list = json_array();
    char *text = NULL;
    int bad = !root || !list;

    for (size_t i = 0; i < N_FIELDS && !bad; i++)
        bad = json_object_set_new(root, fields[i].key, field_json(r, &fields[i]));
    for (int i = 0; i < r->n_adapter && !bad; i++)
        bad = json_array_append_new(list, adapter_json(&r->adapter[i]));
    bad = bad || put_embeddings(root, r);
    if (!bad && json_object_set(root, "adapters", list) == 0)
        text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(list);
    json_decref(root);
    if (!text)
        err_set(err, ERR_ARG,
                "the settings cannot be kept in the picture: the prompt or a file's name is not "
                "valid UTF-8");
    return text;
}

/* A SHA-256 in hex, or "". */
static bool is_hash(const char *s)
{
    size_t n = s ? strlen(s) : 1;
    return n == 0 || (n == HASH_HEX - 1 && strspn(s, "0123456789abcdef") == n);
}

static bool field_is(const struct field *f, const json_t *v)
{
    json_int_t i = json_integer_value(v);
    switch (f->kind) {
    case FIELD_TEXT: return json_is_string(v) || json_is_null(v);
    case FIELD_INT: return json_is_integer(v) && i >= f->min && i <= f->max;
    case FIELD_U64: return json_is_integer(v) && i >= 0;
    case FIELD_NUMBER:
        return json_is_number(v) && json_number_value(v) >= f->min &&
               json_number_value(v) <= f->max;
    case FIELD_BOOL: return json_is_boolean(v);
    case FIELD_HASH: return json_is_string(v) && is_hash(json_string_value(v));
    }
    return false;
}

static int field_read(struct request *r, const struct field *f, const json_t *v, struct err *err)
{
    void *p = (char *)r + f->at;
    if (!v || !field_is(f, v))
        return err_set(err, ERR_FORMAT, "its weft chunk has %s '%s'", v ? "a damaged" : "no",
                       f->key);
    switch (f->kind) {
    case FIELD_TEXT: return request_set(p, json_string_value(v), err);
    case FIELD_INT: *(int *)p = (int)json_integer_value(v); break;
    case FIELD_U64: *(uint64_t *)p = (uint64_t)json_integer_value(v); break;
    case FIELD_NUMBER: *(double *)p = json_number_value(v); break;
    case FIELD_BOOL: *(bool *)p = json_is_true(v); break;
    case FIELD_HASH: strcpy(p, json_string_value(v)); break;
    }
    return 0;
}

static bool read_blocks(struct lbw *b, const json_t *list)
{
    size_t n = json_array_size(list);
    if (n != 17 && n != LBW_BLOCKS)
        return false;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        if (!json_is_number(v) || !isfinite((float)json_number_value(v)))
            return false;
        b->w[i] = (float)json_number_value(v);
    }
    b->n = (int)n;
    return true;
}

static bool read_box(double to[4], json_t *v)
{
    return json_unpack(v, "[F,F,F,F!]", &to[0], &to[1], &to[2], &to[3]) == 0 && is_box(to);
}

static int adapter_read(struct request *r, json_t *v, struct err *err)
{
    const char *ref = NULL, *file = NULL, *sha = NULL, *name = NULL, *id = NULL, *whole = "";
    const char *word = NULL, *prompt = NULL, *mask = NULL, *mask_sha = "";
    struct request_adapter *a = add(r, err);
    json_t *blocks = NULL, *box = NULL;
    int in_prompt = 0;
    if (!a)
        return ERR_NOMEM;
    if (json_unpack(v,
                    "{s:s, s:s, s:s, s:F, s:F, s:i, s:i, s:b, s?s, s?s, s?s, s?o, s?s, s?s, s?o, "
                    "s?s, s?s!}",
                    "ref", &ref, "file", &file, "data_sha256", &sha, "unet", &a->unet, "te", &a->te,
                    "from", &a->from, "to", &a->to, "in_prompt", &in_prompt, "name", &name, "id",
                    &id, "file_sha256", &whole, "blocks", &blocks, "word", &word, "prompt", &prompt,
                    "box", &box, "mask", &mask, "mask_sha256", &mask_sha) ||
        (blocks && !read_blocks(&a->blocks, blocks)) || !*sha || !is_hash(whole) || !is_hash(sha) ||
        !is_hash(mask_sha) || !mask != !*mask_sha || (box && !read_box(a->box, box)) ||
        a->from < 0 || a->to < 0)
        return err_set(err, ERR_FORMAT, "its weft chunk has a damaged adapter");
    a->in_prompt = in_prompt;
    strcpy(a->sha256, sha);
    strcpy(a->file_sha256, whole);
    strcpy(a->mask_sha256, mask_sha);
    int rc = request_set(&a->ref, ref, err);
    rc = rc < 0 ? rc : request_set(&a->name, name, err);
    rc = rc < 0 ? rc : request_set(&a->id, id, err);
    rc = rc < 0 ? rc : request_set(&a->word, word, err);
    rc = rc < 0 ? rc : request_set(&a->prompt, prompt, err);
    rc = rc < 0 ? rc : request_set(&a->mask, mask, err);
    return rc < 0 ? rc : request_set(&a->path, file, err);
}

static int embedding_read_json(struct request *r, json_t *v, struct err *err)
{
    const char *file = NULL, *sha = NULL;
    json_t *name = NULL;
    struct request_embedding *e = request_new_embedding(r, err);
    if (!e)
        return ERR_NOMEM;
    if (json_unpack(v, "{s:s, s:o, s:s!}", "file", &file, "name", &name, "data_sha256", &sha) ||
        !(json_is_string(name) || json_is_null(name)) || !*sha || !is_hash(sha))
        return err_set(err, ERR_FORMAT, "its weft chunk has a damaged embedding");
    strcpy(e->sha256, sha);
    int rc = request_set(&e->name, json_string_value(name), err);
    return rc < 0 ? rc : request_set(&e->path, file, err);
}

static int chunk_read(struct request *r, json_t *root, struct err *err)
{
    json_t *list = json_object_get(root, "adapters"), *v;
    json_t *words = json_object_get(root, "embeddings");
    json_int_t format = json_integer_value(json_object_get(root, "format"));
    size_t i;
    int rc = 0;

    if (format != CHUNK_FORMAT)
        return err_set(err, ERR_UNSUPPORTED,
                       "its weft chunk has format %lld, this weft reads format %d",
                       (long long)format, CHUNK_FORMAT);
    for (i = 0; i < N_FIELDS && rc == 0; i++)
        rc = field_read(r, &fields[i], json_object_get(root, fields[i].key), err);
    /* "weft", "format", "adapters", the fields, and perhaps "embeddings" */
    if (rc == 0 && (!json_is_array(list) || (words && !json_is_array(words)) ||
                    json_object_size(root) != N_FIELDS + 3 + (words != NULL)))
        rc = err_set(err, ERR_FORMAT, "its weft chunk has no list of adapters, or unknown keys");
    json_array_foreach(list, i, v)
    {
        rc = rc < 0 ? rc : adapter_read(r, v, err);
    }
    json_array_foreach(words, i, v)
    {
        rc = rc < 0 ? rc : embedding_read_json(r, v, err);
    }
    return rc;
}

int request_from_json(struct request *r, const char *text, struct err *err)
{
    json_error_t je;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &je);
    int rc = json_is_object(root)
                 ? chunk_read(r, root, err)
                 : err_set(err, ERR_FORMAT, "its weft chunk is not a JSON object: %s", je.text);
    json_decref(root);
    return rc;
}
