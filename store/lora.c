/* LoRA and LoCon files in the key styles of kohya, PEFT and diffusers (peers-and-formats: one module is
 * a down factor, an up factor and perhaps an alpha; only the spelling differs). */
#include "adapter.h"
#include "site_name.h"

#include "unet/file.h"

#include <jansson.h>
#include <math.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum part { PART_DOWN, PART_UP, PART_ALPHA };

/* Endings of keys. Between "lora_A" and ".weight" PEFT may write the adapter's name. */
static const struct ending {
    const char *style, *end;
    enum part part;
} endings[] = {
    {"kohya", ".lora_down.weight", PART_DOWN},
    {"kohya", ".lora_up.weight", PART_UP},
    {"kohya", ".alpha", PART_ALPHA},
    {"peft", ".lora_A.weight", PART_DOWN},
    {"peft", ".lora_B.weight", PART_UP},
    {"peft", ".lora_A.default.weight", PART_DOWN},
    {"peft", ".lora_B.default.weight", PART_UP},
    {"diffusers", ".lora.down.weight", PART_DOWN},
    {"diffusers", ".lora.up.weight", PART_UP},
    {"diffusers", ".lora_linear_layer.down.weight", PART_DOWN},
    {"diffusers", ".lora_linear_layer.up.weight", PART_UP},
    {"diffusers", "_lora.down.weight", PART_DOWN},
    {"diffusers", "_lora.up.weight", PART_UP},
};

static const struct ending *ending_of(const char *key, size_t *module)
{
    size_t n = strlen(key);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t k = strlen(endings[i].end);
        if (n > k && !strcmp(key + n - k, endings[i].end)) {
            *module = n - k;
            return &endings[i];
        }
    }
    return NULL;
}

static int claims(const struct tensor_file *st)
{
    int count = 0;
    size_t n;
    for (size_t i = 0; i < tensor_file_count(st); i++)
        count += ending_of(tensor_file_name(st, i), &n) != NULL;
    return count;
}

/* ---- PEFT's config --------------------------------------------------------------------------- */

/* alpha and rank as PEFT keeps them: beside the weights (adapter_config.json) or, written by diffusers,
 * in the file's metadata under "unet." and "text_encoder.". */
struct peft {
    json_t *root; /* NULL: none */
    bool prefixed;
};

static json_t *peft_get(const struct peft *p, const char *component, const char *key)
{
    char full[64];
    if (!p->prefixed)
        return json_object_get(p->root, key);
    snprintf(full, sizeof full, "%s.%s", component, key);
    return json_object_get(p->root, full);
}

static int peft_open(struct peft *p, const struct tensor_file *st, const char *path,
                     struct err *err)
{
    const char *meta = tensor_file_metadata(st, "lora_adapter_metadata");
    const char *slash = strrchr(path, '/');
    char *text = NULL, *dir = strndup(path, slash ? (size_t)(slash - path) : 0);
    char *file = dir ? file_join(slash ? dir : ".", "adapter_config.json") : NULL;
    json_error_t je;
    int rc = file ? 0 : err_nomem(err, strlen(path));

    memset(p, 0, sizeof *p);
    if (rc == 0 && meta) {
        p->prefixed = true;
        p->root = json_loads(meta, JSON_REJECT_DUPLICATES, &je);
        if (!json_is_object(p->root))
            rc = err_set(err, ERR_FORMAT, "%s: lora_adapter_metadata is no JSON object%s%s", path,
                         p->root ? "" : ": ", p->root ? "" : je.text);
    } else if (rc == 0 && !strncmp(slash ? slash + 1 : path, "adapter_model.", 14) &&
               file_kind(file) == 1) {
        rc = file_read(&text, NULL, file, 4 << 20, err);
        p->root = text ? json_loads(text, JSON_REJECT_DUPLICATES, &je) : NULL;
        if (rc == 0 && !json_is_object(p->root))
            rc = err_set(err, ERR_FORMAT, "%s: no JSON object%s%s", file, p->root ? "" : ": ",
                         p->root ? "" : je.text);
    }
    free(text);
    free(file);
    free(dir);
    return rc;
}

/* PEFT's rule: a pattern means a module when "(.*\\.)?(PATTERN)$" matches its name. 1: it does, 0: not,
 * negative: the pattern is no regular expression, or one that never ends. */
static int pattern_means(const char *pattern, const char *module)
{
    size_t n = strlen(module), k = strlen(pattern);
    if (!strpbrk(pattern, "\\^$*+?()[]{}|")) { /* a plain name; its dots are taken as dots */
        return n >= k && !strcmp(module + n - k, pattern) && (n == k || module[n - k - 1] == '.');
    }
    char *re = malloc(k + 16);
    int code, found = -1;
    PCRE2_SIZE at;
    if (!re)
        return -1;
    snprintf(re, k + 16, "^(.*\\.)?(%s)$", pattern);
    pcre2_code *c = pcre2_compile((PCRE2_SPTR)re, PCRE2_ZERO_TERMINATED, 0, &code, &at, NULL);
    pcre2_match_data *md = c ? pcre2_match_data_create_from_pattern(c, NULL) : NULL;
    pcre2_match_context *mc = pcre2_match_context_create(NULL);
    if (md && mc) {
        pcre2_set_match_limit(mc, 100000);
        int rc = pcre2_match(c, (PCRE2_SPTR)module, n, 0, 0, md, mc);
        found = rc >= 0 ? 1 : rc == PCRE2_ERROR_NOMATCH ? 0 : -1;
    }
    pcre2_match_context_free(mc);
    pcre2_match_data_free(md);
    pcre2_code_free(c);
    free(re);
    return found;
}

/* The alpha of this module: from a pattern that means it, else the general one. */
static int peft_alpha(const struct peft *p, const char *component, const char *module, double dflt,
                      double *alpha, struct err *err)
{
    const char *key;
    json_t *v, *map = peft_get(p, component, "alpha_pattern");
    json_t *all = peft_get(p, component, "lora_alpha");
    *alpha = json_is_number(all) ? json_number_value(all) : dflt;
    if (all && !json_is_number(all) && !json_is_null(all))
        return err_set(err, ERR_FORMAT, "lora_alpha is not a number");
    json_object_foreach(map, key, v)
    {
        int means = pattern_means(key, module);
        if (means < 0 || !json_is_number(v))
            return err_set(err, ERR_FORMAT, "alpha_pattern '%.100s' is damaged", key);
        if (means) {
            *alpha = json_number_value(v);
            return 0;
        }
    }
    return 0;
}

/* Refuses what changes the meaning of the factors and is not done here. */
static int peft_check(const struct peft *p, const char *path, struct err *err)
{
    static const char *const component[] = {"unet", "text_encoder"};
    for (int i = 0; i < 2; i++) {
        json_t *init = peft_get(p, component[i], "init_lora_weights");
        const char *s = json_string_value(init);
        if (json_is_true(peft_get(p, component[i], "use_dora")))
            return err_set(err, ERR_UNSUPPORTED, "%s: a DoRA adapter, which weft cannot use yet",
                           path);
        if (s && (!strncmp(s, "pissa", 5) || !strcmp(s, "olora") || !strcmp(s, "corda") ||
                  !strcmp(s, "lora_ga")))
            return err_set(
                err, ERR_UNSUPPORTED,
                "%s: init_lora_weights %.20s changes the base model's own weights; save it "
                "as an ordinary LoRA",
                path, s);
    }
    return 0;
}

static int peft_scale(const struct peft *p, const char *site, int rank, float *scale,
                      struct err *err)
{
    const char *dot = strchr(site, '.');
    char component[32];
    double alpha;
    snprintf(component, sizeof component, "%.*s", (int)(dot - site), site);
    int rc = peft_alpha(p, component, dot + 1, peft_get(p, component, "r") ? 8 : rank, &alpha, err);
    bool rs = json_is_true(peft_get(p, component, "use_rslora"));
    *scale = (float)(alpha / (rs ? sqrt(rank) : rank));
    return rc;
}

/* ---- modules --------------------------------------------------------------------------------- */

/* One module of the file: its parts, found under any spelling. */
struct module {
    char site[256];
    const struct array *part[3];
    const struct ending *how;
};

static int by_site(const void *a, const void *b)
{
    const struct module *x = a, *y = b;
    return strcmp(x->site, y->site);
}

/* What to say of a key that is no part of a LoRA. */
static int foreign(const char *path, const char *key, struct err *err)
{
    const char *kind = adapter_kind_of_key(key);
    if (kind)
        return adapter_refuse_kind(kind, path, key, err);
    return err_set(err, ERR_UNSUPPORTED, "%s: '%.200s' is no part of a LoRA that weft knows", path,
                   key);
}

/* Every key to a module of its own; merged afterwards. */
static int read_keys(const struct tensor_file *st, const char *path, struct module *m,
                     struct err *err)
{
    for (size_t i = 0; i < tensor_file_count(st); i++) {
        const char *key = tensor_file_name(st, i);
        size_t len = 0;
        const struct ending *e = ending_of(key, &len);
        if (!e)
            return foreign(path, key, err);
        memset(&m[i], 0, sizeof m[i]);
        m[i].how = e;
        m[i].part[e->part] = tensor_file_at(st, i);
        if (!site_name(m[i].site, sizeof m[i].site, key, len))
            snprintf(m[i].site, sizeof m[i].site, "?.%.*s", (int)(len < 250 ? len : 250), key);
    }
    return 0;
}

/* Joins neighbours of one site. Returns how many modules there are, or an error. */
static int merge(struct module *m, int n, const char *path, struct err *err)
{
    int k = 0;
    qsort(m, (size_t)n, sizeof *m, by_site);
    for (int i = 0; i < n; i++) {
        if (k == 0 || strcmp(m[k - 1].site, m[i].site)) {
            m[k++] = m[i];
            continue;
        }
        for (int p = 0; p < 3; p++) {
            if (!m[i].part[p])
                continue;
            if (m[k - 1].part[p])
                return err_set(err, ERR_FORMAT, "%s: changes %s twice", path, m[i].site);
            m[k - 1].part[p] = m[i].part[p];
        }
    }
    return k;
}

static int read_alpha(const struct array *a, int rank, float *scale)
{
    float v = 0;
    if (array_count(a) != 1 || !array_readable(a))
        return -1;
    array_to_f32(a, &v);
    *scale = v / (float)rank;
    return isfinite(v) ? 0 : -1;
}

static int to_delta(const struct module *m, const struct peft *peft, const char *path,
                    struct delta *d, struct err *err)
{
    const struct array *down = m->part[PART_DOWN], *up = m->part[PART_UP];
    if (!down || !up)
        return err_set(err, ERR_FORMAT, "%s: %s has only %s of its two factors", path, m->site,
                       down ? "the down one"
                       : up ? "the up one"
                            : "alpha and none");
    if (down->ndim < 2 || up->ndim < 2 || down->dim[0] < 1 || down->dim[0] > INT32_MAX ||
        !array_count(down) || !array_count(up))
        return err_set(err, ERR_FORMAT, "%s: %s has factors that are no matrices", path, m->site);
    if (!array_readable(down) || !array_readable(up))
        return err_set(err, ERR_UNSUPPORTED, "%s: %s has type %s, which weft does not compute with",
                       path, m->site, dtype_name(array_readable(down) ? up->dtype : down->dtype));
    d->rank = (int)down->dim[0];
    d->down = *down;
    d->up = *up;
    d->scale = 1;
    if (m->part[PART_ALPHA]) {
        if (read_alpha(m->part[PART_ALPHA], d->rank, &d->scale) < 0)
            return err_set(err, ERR_FORMAT, "%s: %s: alpha is not one finite number", path,
                           m->site);
    } else if (peft->root && m->site[0] != '?' &&
               peft_scale(peft, m->site, d->rank, &d->scale, err) < 0) {
        err_prefix(err, "%s: PEFT's config", path);
        return ERR_FORMAT;
    }
    return 0;
}

static int import(const struct tensor_file *st, const char *path, struct delta_list *list,
                  const char **style, struct err *err)
{
    size_t n = tensor_file_count(st);
    struct module *m = malloc(n * sizeof *m);
    struct peft peft = {NULL, false};
    int count = 0, rc = m ? 0 : err_nomem(err, n * sizeof *m);

    rc = rc < 0 ? rc : peft_open(&peft, st, path, err);
    rc = rc < 0 ? rc : peft_check(&peft, path, err);
    rc = rc < 0 ? rc : read_keys(st, path, m, err);
    if (rc == 0)
        rc = count = merge(m, (int)n, path, err);
    if (rc < 0)
        goto out;
    rc = 0;
    list->item = calloc((size_t)count, sizeof *list->item);
    if (!list->item)
        rc = err_nomem(err, (size_t)count * sizeof *list->item);
    for (int i = 0; i < count && rc == 0; i++) {
        rc = to_delta(&m[i], &peft, path, &list->item[i].d, err);
        if (rc == 0 && !(list->item[list->n++].site = strdup(m[i].site)))
            rc = err_nomem(err, strlen(m[i].site));
    }
    *style = m[0].how->style;
out:
    json_decref(peft.root);
    free(m);
    return rc;
}

const struct adapter_format adapter_format_lora = {
    .name = "lora",
    .about = "LoRA and LoCon, keys of kohya, PEFT or diffusers",
    .claims = claims,
    .import = import,
};
