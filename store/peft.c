#include "peft.h"

#include "unet/file.h"

#include <math.h>
#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int not_object(const char *what, json_t *root, const json_error_t *je, struct err *err)
{
    return err_set(err, ERR_FORMAT, "%s is no JSON object%s%s", what, root ? "" : ": ",
                   root ? "" : je->text);
}

int peft_open(struct peft *p, const struct tensor_file *st, const char *path, struct err *err)
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
        if (!json_is_object(p->root)) {
            rc = not_object("lora_adapter_metadata", p->root, &je, err);
            err_prefix(err, "%s", path);
        }
    } else if (rc == 0 && !strncmp(slash ? slash + 1 : path, "adapter_model.", 14) &&
               file_kind(file) == 1) {
        rc = file_read(&text, NULL, file, 4 << 20, err);
        p->root = text ? json_loads(text, JSON_REJECT_DUPLICATES, &je) : NULL;
        if (rc == 0 && !json_is_object(p->root))
            rc = not_object(file, p->root, &je, err);
    }
    free(text);
    free(file);
    free(dir);
    return rc;
}

void peft_close(struct peft *p)
{
    json_decref(p->root);
    p->root = NULL;
}

json_t *peft_get(const struct peft *p, const char *site, const char *key)
{
    char full[96];
    if (!p->prefixed)
        return json_object_get(p->root, key);
    snprintf(full, sizeof full, "%.*s.%s", (int)(strcspn(site, ".") % 32), site, key);
    return json_object_get(p->root, full);
}

bool peft_true(const struct peft *p, const char *site, const char *key)
{
    return json_is_true(peft_get(p, site, key));
}

int peft_check(const struct peft *p, const char *path, struct err *err)
{
    static const char *const part[] = {"unet", "text_encoder"};
    static const char *const changing[] = {"pissa", "olora", "corda", "lora_ga", "loftq", "mica"};
    for (int i = 0; i < 2; i++) {
        const char *s = json_string_value(peft_get(p, part[i], "init_lora_weights"));
        for (size_t k = 0; s && k < sizeof changing / sizeof *changing; k++)
            if (!strncmp(s, changing[k], strlen(changing[k])))
                return err_set(
                    err, ERR_UNSUPPORTED,
                    "%s: init_lora_weights %.20s changes the base model's own weights, so "
                    "these factors mean nothing without that base; save it from PEFT "
                    "with path_initial_model_for_weight_conversion, as an ordinary LoRA",
                    path, s);
    }
    return 0;
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

/* The number for this site: from a pattern that means it, else the general one, else `dflt`. */
static int number_for(const struct peft *p, const char *site, const char *patterns,
                      const char *general, double dflt, double *out, struct err *err)
{
    const char *key, *dot = strchr(site, '.');
    json_t *v, *map = peft_get(p, site, patterns), *all = peft_get(p, site, general);
    *out = json_is_number(all) ? json_number_value(all) : dflt;
    if (all && !json_is_number(all) && !json_is_null(all))
        return err_set(err, ERR_FORMAT, "%s is not a number", general);
    json_object_foreach(map, key, v)
    {
        int means = pattern_means(key, dot ? dot + 1 : site);
        if (means < 0 || !json_is_number(v))
            return err_set(err, ERR_FORMAT, "%s '%.100s' is damaged", patterns, key);
        if (means) {
            *out = json_number_value(v);
            return 0;
        }
    }
    return 0;
}

int peft_scale(const struct peft *p, const char *site, int rank, float *scale, struct err *err)
{
    const char *kind = json_string_value(peft_get(p, site, "peft_type"));
    /* LoHa and LoKr call it alpha, LoRA lora_alpha; each has 8 where it says nothing */
    bool lycoris = kind && (!strcmp(kind, "LOHA") || !strcmp(kind, "LOKR"));
    double alpha, r = rank;
    *scale = 1;
    if (!p->root)
        return 0;
    double dflt = peft_get(p, site, "r") ? 8 : rank;
    int rc =
        number_for(p, site, "alpha_pattern", lycoris ? "alpha" : "lora_alpha", dflt, &alpha, err);
    if (rc == 0 && rank == 0)
        rc = number_for(p, site, "rank_pattern", "r", 8, &r, err);
    if (rc == 0 && !(r > 0))
        rc = err_set(err, ERR_FORMAT, "r is not above 0");
    *scale = rc < 0 ? 1 : (float)(alpha / (peft_true(p, site, "use_rslora") ? sqrt(r) : r));
    return rc;
}

bool peft_lists(const struct peft *p, const char *site, const char *key)
{
    json_t *v = peft_get(p, site, key), *item;
    const char *dot = strchr(site, '.');
    size_t i;
    const char *module = dot ? dot + 1 : site;
    if (json_is_string(v))
        return pattern_means(json_string_value(v), module) == 1;
    json_array_foreach(v, i, item)
    {
        const char *s = json_string_value(item);
        size_t n = strlen(module), k = s ? strlen(s) : 0;
        if (s && n >= k && !strcmp(module + n - k, s) && (n == k || module[n - k - 1] == '.'))
            return true;
    }
    return false;
}
