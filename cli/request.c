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
}

void request_release(struct request *r)
{
    char *text[] = {r->model, r->prompt, r->negative, r->sampler, r->schedule, r->rng, r->init};
    for (size_t i = 0; i < sizeof text / sizeof *text; i++)
        free(text[i]);
    for (int i = 0; i < r->n_adapter; i++)
        adapter_release(&r->adapter[i]);
    free(r->adapter);
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

/* The file that a name means: itself, or with ".safetensors" behind it. NULL: none. */
static char *find_file(const char *name, size_t len)
{
    char *plain = strndup(name, len), *with = NULL;
    if (plain && file_kind(plain))
        return plain;
    if (plain && (with = malloc(len + sizeof ".safetensors"))) {
        memcpy(with, plain, len);
        strcpy(with + len, ".safetensors");
        if (file_kind(with) != 1) {
            free(with);
            with = NULL;
        }
    }
    free(plain);
    return with;
}

static int parse_double(const char *s, size_t n, double *out)
{
    char buf[40], *end;
    if (n == 0 || n >= sizeof buf)
        return -1;
    memcpy(buf, s, n);
    buf[n] = 0;
    *out = strtod(buf, &end);
    return *end || end == buf || !isfinite(*out) ? -1 : 0;
}

static int set_key(struct request_adapter *a, const char *key, size_t nk, const char *value,
                   size_t nv, struct err *err)
{
    static const char *const later[] = {"blocks", "word", "box", "mask"};
    double v = 0;
    for (size_t i = 0; i < sizeof later / sizeof *later; i++)
        if (nk == strlen(later[i]) && !memcmp(key, later[i], nk))
            return err_set(err, ERR_ARG, "-a %.80s: %s= is not in this version", a->ref, later[i]);
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
        return err_set(err, ERR_ARG,
                       "-a %.80s: '%.*s' is not unet=NUMBER, te=NUMBER, from=STEP or to=STEP",
                       a->ref, (int)(nk + nv + 1), key);
    return 0;
}

/* True for "…,key=value" with a lower-case key: where the comma is. */
static bool last_pair(const char *s, size_t n, size_t *comma, size_t *equals)
{
    size_t i = n;
    while (i > 0 && s[i - 1] != ',')
        i--;
    if (i == 0)
        return false;
    size_t e = i;
    while (e < n && islower((unsigned char)s[e]))
        e++;
    *comma = i - 1;
    *equals = e;
    return e > i && e < n && s[e] == '=';
}

/* The file that text[0..n) means: a name, or NAME:STRENGTH. *end is where the name ends. */
static char *find_ref(const char *text, size_t n, size_t *end, double *strength)
{
    char *path = find_file(text, n);
    size_t colon = n;

    *end = n;
    if (path)
        return path;
    while (colon > 0 && text[colon - 1] != ':')
        colon--;
    if (colon < 2 || parse_double(text + colon, n - colon, strength) < 0)
        return NULL;
    *end = colon - 1;
    return find_file(text, colon - 1);
}

int request_add_adapter(struct request *r, const char *text, struct err *err)
{
    struct request_adapter *a = add(r, err);
    size_t n = strlen(text), equals, end = 0;
    double strength = 1;

    if (!a)
        return ERR_NOMEM;
    int rc = request_set(&a->ref, text, err);
    /* A name may hold commas, colons and equals signs: the longest beginning that names a file, alone
     * or with a strength behind it, is the name. */
    while (rc == 0 && !(a->path = find_ref(text, n, &end, &strength)) &&
           last_pair(text, n, &n, &equals))
        strength = 1;
    if (rc == 0 && !a->path)
        return err_set(err, ERR_IO, "%.*s: no such adapter file", (int)n, text);
    a->unet = a->te = strength;
    while (rc == 0 && text[n] == ',') {
        const char *pair = text + n + 1, *eq = strchr(pair, '=');
        size_t len = strcspn(pair, ","), nk = eq ? (size_t)(eq - pair) : len;
        rc = set_key(a, pair, nk, eq ? eq + 1 : "", eq ? len - nk - 1 : 0, err);
        n += len + 1;
    }
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
    a->path = find_file(name, strlen(name));
    if (!a->path)
        return err_set(err, ERR_IO, "<lora:%.200s>: no such adapter file", name);
    return request_set(&a->ref, name, err);
}

/* ---- the weft chunk -------------------------------------------------------------------------- */

/* Every plain setting once: its key, its type, its place. */
enum field_kind { FIELD_TEXT, FIELD_INT, FIELD_NUMBER, FIELD_BOOL };
struct field {
    const char *key;
    enum field_kind kind;
    size_t at;
};
#define FIELD(name, kind)                                                                          \
    {                                                                                              \
#name, kind, offsetof(struct request, name)                                                \
    }
static const struct field fields[] = {
    FIELD(model, FIELD_TEXT),   FIELD(prompt, FIELD_TEXT),   FIELD(negative, FIELD_TEXT),
    FIELD(steps, FIELD_INT),    FIELD(clip_skip, FIELD_INT), FIELD(tile, FIELD_INT),
    FIELD(cfg, FIELD_NUMBER),   FIELD(eta, FIELD_NUMBER),    FIELD(denoise, FIELD_NUMBER),
    FIELD(sampler, FIELD_TEXT), FIELD(schedule, FIELD_TEXT), FIELD(rng, FIELD_TEXT),
    FIELD(init, FIELD_TEXT),    FIELD(fold, FIELD_BOOL),
};
#define N_FIELDS (sizeof fields / sizeof *fields)

static json_t *field_json(const struct request *r, const struct field *f)
{
    const void *p = (const char *)r + f->at;
    switch (f->kind) {
    case FIELD_TEXT: return *(char *const *)p ? json_string(*(char *const *)p) : json_null();
    case FIELD_INT: return json_integer(*(const int *)p);
    case FIELD_NUMBER: return json_real(*(const double *)p);
    case FIELD_BOOL: return json_boolean(*(const bool *)p);
    }
    return NULL;
}

static json_t *adapter_json(const struct request_adapter *a)
{
    return json_pack("{s:s, s:s, s:s, s:f, s:f, s:i, s:i, s:b}", "ref", a->ref, "file", a->path,
                     "data_sha256", a->sha256, "unet", a->unet, "te", a->te, "from", a->from, "to",
                     a->to, "in_prompt", a->in_prompt);
}

char *request_to_json(const struct request *r, struct err *err)
{
    json_t *root = json_object(), *list = json_array();
    char *text = NULL;
    int bad = !root || !list;

    bad = bad || json_object_set_new(root, "weft", json_string(WEFT_VERSION));
    bad = bad || json_object_set_new(root, "seed", json_integer((json_int_t)r->seed));
    bad = bad || json_object_set_new(root, "width", json_integer(r->size[0]));
    bad = bad || json_object_set_new(root, "height", json_integer(r->size[1]));
    for (size_t i = 0; i < N_FIELDS && !bad; i++)
        bad = json_object_set_new(root, fields[i].key, field_json(r, &fields[i]));
    for (int i = 0; i < r->n_adapter && !bad; i++)
        bad = json_array_append_new(list, adapter_json(&r->adapter[i]));
    if (!bad && json_object_set(root, "adapters", list) == 0)
        text = json_dumps(root, JSON_COMPACT | JSON_REAL_PRECISION(17));
    json_decref(list);
    json_decref(root);
    if (!text)
        err_set(err, ERR_ARG, "the settings cannot be written as JSON: a text is not valid UTF-8");
    return text;
}

static int field_read(struct request *r, const struct field *f, const json_t *v, struct err *err)
{
    void *p = (char *)r + f->at;
    if (f->kind == FIELD_TEXT && (json_is_string(v) || json_is_null(v)))
        return request_set(p, json_string_value(v), err);
    if (f->kind == FIELD_INT && json_is_integer(v))
        *(int *)p = (int)json_integer_value(v);
    else if (f->kind == FIELD_NUMBER && json_is_number(v))
        *(double *)p = json_number_value(v);
    else if (f->kind == FIELD_BOOL && json_is_boolean(v))
        *(bool *)p = json_is_true(v);
    else if (v)
        return err_set(err, ERR_FORMAT, "its weft chunk has a damaged '%s'", f->key);
    return 0;
}

static int adapter_read(struct request *r, json_t *v, struct err *err)
{
    const char *ref = NULL, *file = NULL, *sha = NULL;
    struct request_adapter *a = add(r, err);
    int in_prompt = 0;
    if (!a)
        return ERR_NOMEM;
    if (json_unpack(v, "{s:s, s:s, s:s, s:F, s:F, s:i, s:i, s:b}", "ref", &ref, "file", &file,
                    "data_sha256", &sha, "unet", &a->unet, "te", &a->te, "from", &a->from, "to",
                    &a->to, "in_prompt", &in_prompt))
        return err_set(err, ERR_FORMAT, "its weft chunk has a damaged adapter");
    a->in_prompt = in_prompt;
    snprintf(a->sha256, sizeof a->sha256, "%s", sha);
    int rc = request_set(&a->ref, ref, err);
    return rc < 0 ? rc : request_set(&a->path, file, err);
}

int request_from_json(struct request *r, const char *text, struct err *err)
{
    json_error_t je;
    json_t *root = json_loads(text, JSON_REJECT_DUPLICATES, &je), *v;
    size_t i;
    int rc = 0;

    if (!json_is_object(root)) {
        json_decref(root);
        return err_set(err, ERR_FORMAT, "its weft chunk is not JSON: %s", je.text);
    }
    for (i = 0; i < N_FIELDS && rc == 0; i++)
        rc = field_read(r, &fields[i], json_object_get(root, fields[i].key), err);
    r->seed = (uint64_t)json_integer_value(json_object_get(root, "seed"));
    r->size[0] = (int)json_integer_value(json_object_get(root, "width"));
    r->size[1] = (int)json_integer_value(json_object_get(root, "height"));
    json_array_foreach(json_object_get(root, "adapters"), i, v)
    {
        rc = rc < 0 ? rc : adapter_read(r, v, err);
    }
    json_decref(root);
    return rc;
}

/* ---- A1111's text ---------------------------------------------------------------------------- */

/* Names in A1111's menus. */
static const char *a1111_sampler(const char *name)
{
    static const char *const table[][2] = {
        {"ddim", "DDIM"}, {"pndm", "PLMS"},         {"euler", "Euler"}, {"euler_a", "Euler a"},
        {"heun", "Heun"}, {"dpmpp_2m", "DPM++ 2M"}, {"unipc", "UniPC"}, {"lcm", "LCM"}};
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i][0], name))
            return table[i][1];
    return name;
}

static const char *stem(const char *path, int *len)
{
    const char *slash = strrchr(path, '/'), *s = slash ? slash + 1 : path;
    const char *end = strstr(s, ".safetensors");
    *len = end ? (int)(end - s) : (int)strlen(s);
    return s;
}

/* The prompt, with a tag for each adapter it does not name itself. */
static void put_prompt(FILE *f, const struct request *r)
{
    int n;
    fputs(r->prompt, f);
    for (int i = 0; i < r->n_adapter; i++) {
        const struct request_adapter *a = &r->adapter[i];
        const char *s = stem(a->path, &n);
        if (a->in_prompt)
            continue;
        fprintf(f, " <lora:%.*s:%g", n, s, a->te);
        if (a->unet != a->te)
            fprintf(f, ":%g", a->unet);
        fputc('>', f);
    }
    if (r->negative && *r->negative)
        fprintf(f, "\nNegative prompt: %s", r->negative);
}

static void put_hashes(FILE *f, const struct request *r)
{
    int n;
    for (int i = 0; i < r->n_adapter; i++) {
        const char *s = stem(r->adapter[i].path, &n);
        fprintf(f, "%s%.*s: %.12s", i ? ", " : ", Lora hashes: \"", n, s, r->adapter[i].sha256);
    }
    if (r->n_adapter)
        fputc('"', f);
}

char *request_to_parameters(const struct request *r, const char *model_name,
                            const char *sampler_name, struct err *err)
{
    char *text = NULL;
    size_t size = 0;
    FILE *f = open_memstream(&text, &size);
    if (!f) {
        err_nomem(err, 1024);
        return NULL;
    }
    put_prompt(f, r);
    fprintf(f, "\nSteps: %d, Sampler: %s", r->steps, a1111_sampler(sampler_name));
    if (r->schedule && !strcmp(r->schedule, "karras"))
        fputs(", Schedule type: Karras", f);
    fprintf(f, ", CFG scale: %g, Seed: %llu, Size: %dx%d, Model: %s", r->cfg,
            (unsigned long long)r->seed, r->size[0], r->size[1], model_name);
    if (r->init)
        fprintf(f, ", Denoising strength: %g", r->denoise);
    if (r->clip_skip > 1)
        fprintf(f, ", Clip skip: %d", r->clip_skip);
    fprintf(f, ", RNG: %s", r->rng && !strcmp(r->rng, "philox") ? "NV" : "CPU");
    put_hashes(f, r);
    fprintf(f, ", Version: weft " WEFT_VERSION);
    if (fclose(f)) {
        free(text);
        err_nomem(err, size);
        return NULL;
    }
    return text;
}
