#include "config.h"

#include "file.h"

#include <assert.h>
#include <ctype.h>
#include <jansson.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MAX (4u << 20)

struct config {
    char *path;
    json_t *root;
    json_t *asked;    /* an object with every key that was asked for */
    struct err first; /* code 0 while nothing is wrong */
};

/* Python's json module writes minus infinity as -Infinity, which is no JSON; diffusers uses it for "no
 * limit" (lambda_min_clipped). Outside of texts it becomes null, which here means the same: not set.
 * The other two, Infinity and NaN, stay errors. */
static void replace_infinity(char *json, size_t size)
{
    static const char word[] = "-Infinity", null[] = "null     ";
    bool text = false;
    for (size_t i = 0; i < size; i++) {
        if (text && json[i] == '\\')
            i++;
        else if (json[i] == '"')
            text = !text;
        else if (!text && size - i >= sizeof word - 1 && !memcmp(json + i, word, sizeof word - 1))
            memcpy(json + i, null, sizeof word - 1);
    }
}

/* json is changed. */
static int parse(struct config **out, char *json, size_t size, const char *what, struct err *err)
{
    json_error_t je;
    int rc = 0;

    *out = NULL;
    struct config *c = calloc(1, sizeof *c);
    if (!c)
        return err_nomem(err, sizeof *c);
    c->path = strdup(what);
    c->asked = json_object();
    if (!c->path || !c->asked) {
        rc = err_nomem(err, strlen(what));
        goto out;
    }
    replace_infinity(json, size);
    c->root = json_loadb(json, size, JSON_REJECT_DUPLICATES, &je);
    /* Python writes whole numbers that no 64 bits hold, as "no limit"; they become doubles. */
    if (!c->root && json_error_code(&je) == json_error_numeric_overflow)
        c->root = json_loadb(json, size, JSON_REJECT_DUPLICATES | JSON_DECODE_INT_AS_REAL, &je);
    if (!c->root && !je.text[0]) { /* how jansson says that memory ran out */
        rc = err_nomem(err, size);
        goto out;
    }
    if (!c->root) {
        for (char *p = je.text; *p; p++)
            *p = iscntrl((unsigned char)*p) ? '?' : *p;
        rc = err_set(err, ERR_FORMAT, "%s: not valid JSON: line %d, column %d: %s", what, je.line,
                     je.column, je.text);
        goto out;
    }
    if (!json_is_object(c->root)) {
        rc = err_set(err, ERR_FORMAT, "%s: not a JSON object ({ … })", what);
        goto out;
    }
    *out = c;
    c = NULL;
out:
    config_close(c);
    return rc;
}

int config_parse(struct config **out, const char *json, const char *what, struct err *err)
{
    char *copy = strdup(json);
    *out = NULL;
    int rc = copy ? parse(out, copy, strlen(copy), what, err) : err_nomem(err, strlen(json));
    free(copy);
    return rc;
}

int config_open(struct config **out, const char *path, struct err *err)
{
    char *json = NULL;
    size_t size = 0;

    *out = NULL;
    int rc = file_read(&json, &size, path, FILE_MAX, err);
    if (rc == 0)
        rc = parse(out, json, size, path, err);
    free(json);
    return rc;
}

bool config_is_null(const struct config *c, const char *key)
{
    return json_is_null(json_object_get(c->root, key));
}

bool config_is_object(const struct config *c, const char *key)
{
    return json_is_object(json_object_get(c->root, key));
}

int config_sub(struct config **out, struct config *c, const char *key, struct err *err)
{
    json_t *v = json_object_get(c->root, key);
    struct config *sub = calloc(1, sizeof *sub);
    size_t size = strlen(c->path) + strlen(key) + 3;

    *out = NULL;
    if (!sub)
        return err_nomem(err, sizeof *sub);
    sub->path = malloc(size);
    sub->asked = json_object();
    sub->root = v && !json_is_null(v) ? json_incref(v) : json_object();
    json_object_set_new(c->asked, key, json_true());
    if (!sub->path || !sub->asked || !sub->root) {
        config_close(sub);
        return err_nomem(err, size);
    }
    snprintf(sub->path, size, "%s: %s", c->path, key);
    if (!json_is_object(sub->root)) {
        int rc = err_set(err, ERR_FORMAT, "%s is not an object", sub->path);
        config_close(sub);
        return rc;
    }
    *out = sub;
    return 0;
}

void config_close(struct config *c)
{
    if (!c)
        return;
    json_decref(c->root);
    json_decref(c->asked);
    free(c->path);
    free(c);
}

const char *config_path(const struct config *c)
{
    return c->path;
}

void config_fail(struct config *c, const char *fmt, ...)
{
    char msg[sizeof c->first.msg];
    va_list ap;
    if (c->first.code)
        return;
    va_start(ap, fmt);
    vsnprintf(msg, sizeof msg, fmt, ap);
    va_end(ap);
    err_set(&c->first, ERR_FORMAT, "%s: %s", c->path, msg);
}

/* A value as the file has it, on one line; only its kind where that is too long for a message. */
static const char *shown(const json_t *v, char *buf, size_t size)
{
    static const char *const kinds[] = {
        [JSON_OBJECT] = "an object", [JSON_ARRAY] = "a list", [JSON_STRING] = "a long text"};
    if (json_is_number(v)) {
        snprintf(buf, size, "%.12g", json_number_value(v));
        return buf;
    }
    size_t n = json_dumpb(v, buf, size - 1, JSON_ENCODE_ANY);
    if (n >= size)
        n = (size_t)snprintf(buf, size, "%s", kinds[json_typeof(v)]);
    buf[n] = 0;
    return buf;
}

/* Ticks the key off. NULL where it is missing or null. */
static const json_t *ask(struct config *c, const char *key)
{
    if (json_object_set_new(c->asked, key, json_true()) < 0 && !c->first.code)
        err_nomem(&c->first, strlen(key));
    const json_t *v = json_object_get(c->root, key);
    return json_is_null(v) ? NULL : v;
}

static void wrong_type(struct config *c, const char *key, const json_t *v, const char *want)
{
    char buf[80];
    config_fail(c, "%s is %s, it should be %s", key, shown(v, buf, sizeof buf), want);
}

static bool take_int(const json_t *v, int *out)
{
    double d = json_number_value(v);
    if (!json_is_number(v) || !(d >= INT_MIN && d <= INT_MAX) || d != (int)d)
        return false;
    *out = (int)d;
    return true;
}

bool config_has(const struct config *c, const char *key)
{
    const json_t *v = json_object_get(c->root, key);
    return v && !json_is_null(v);
}

int config_int(struct config *c, const char *key, int dflt)
{
    int i = dflt;
    const json_t *v = ask(c, key);
    if (v && !take_int(v, &i))
        wrong_type(c, key, v, "a whole number of at most 32 bits");
    return i;
}

double config_num(struct config *c, const char *key, double dflt)
{
    const json_t *v = ask(c, key);
    if (v && !json_is_number(v))
        wrong_type(c, key, v, "a number");
    return json_is_number(v) ? json_number_value(v) : dflt;
}

bool config_bool(struct config *c, const char *key, bool dflt)
{
    const json_t *v = ask(c, key);
    if (v && !json_is_boolean(v))
        wrong_type(c, key, v, "true or false");
    return json_is_boolean(v) ? json_is_true(v) : dflt;
}

const char *config_str(struct config *c, const char *key, const char *dflt)
{
    const json_t *v = ask(c, key);
    if (v && !json_is_string(v))
        wrong_type(c, key, v, "a text");
    return json_is_string(v) ? json_string_value(v) : dflt;
}

/* The list under key, checked to be one of at most max values. */
static const json_t *ask_list(struct config *c, const char *key, int max, const char *want)
{
    const json_t *v = ask(c, key);
    if (v && !json_is_array(v)) {
        wrong_type(c, key, v, want);
        return NULL;
    }
    if (json_array_size(v) > (size_t)max) {
        config_fail(c, "%s has %zu values, weft takes at most %d", key, json_array_size(v), max);
        return NULL;
    }
    return v;
}

int config_ints(struct config *c, const char *key, int n, int *out, int max)
{
    static const char want[] = "a list of whole numbers";
    int one;
    assert(n <= max);
    const json_t *v = ask(c, key);
    if (n > 0 && v && take_int(v, &one)) {
        for (int i = 0; i < n; i++)
            out[i] = one;
        return n;
    }
    v = ask_list(c, key, max, want);
    for (size_t i = 0; i < json_array_size(v); i++)
        if (!take_int(json_array_get(v, i), &out[i])) {
            wrong_type(c, key, v, want);
            return 0;
        }
    return (int)json_array_size(v);
}

int config_nums(struct config *c, const char *key, double *out, int max)
{
    static const char want[] = "a list of numbers";
    const json_t *v = ask_list(c, key, max, want);
    for (size_t i = 0; i < json_array_size(v); i++) {
        if (!json_is_number(json_array_get(v, i))) {
            wrong_type(c, key, v, want);
            return 0;
        }
        out[i] = json_number_value(json_array_get(v, i));
    }
    return (int)json_array_size(v);
}

int config_strs(struct config *c, const char *key, const char **out, int max)
{
    static const char want[] = "a list of texts";
    const json_t *v = ask_list(c, key, max, want);
    for (size_t i = 0; i < json_array_size(v); i++) {
        out[i] = json_string_value(json_array_get(v, i));
        if (!out[i]) {
            wrong_type(c, key, v, want);
            return 0;
        }
    }
    return (int)json_array_size(v);
}

void config_expect(struct config *c, const char *key, const char *value)
{
    char buf[80], *end = NULL;
    bool truth = !strcmp(value, "true"), boolean = truth || !strcmp(value, "false");
    bool number = isdigit((unsigned char)*value) || *value == '-', same;
    double d = strtod(value, &end);
    const json_t *v = ask(c, key);

    number = number && !*end;
    if (boolean)
        same = json_is_boolean(v) && json_is_true(v) == truth;
    else if (number)
        same = json_is_number(v) && json_number_value(v) == d;
    else
        same = json_is_string(v) && !strcmp(json_string_value(v), value);
    const char *quote = boolean || number ? "" : "\"";
    if (v && !same)
        config_fail(c, "%s is %s, weft only does %s%s%s", key, shown(v, buf, sizeof buf), quote,
                    value, quote);
}

void config_ignore(struct config *c, const char *const *keys)
{
    for (; *keys; keys++)
        ask(c, *keys);
}

static bool says_nothing(const json_t *v)
{
    switch (json_typeof(v)) {
    case JSON_NULL:
    case JSON_FALSE: return true;
    case JSON_STRING: return json_string_length(v) == 0;
    case JSON_ARRAY: return json_array_size(v) == 0;
    case JSON_OBJECT: return json_object_size(v) == 0;
    default: return false;
    }
}

int config_done(struct config *c, struct err *err)
{
    char buf[80], name[80];
    const char *key;
    json_t *v;

    json_object_foreach(c->root, key, v)
    {
        if (key[0] == '_' || says_nothing(v) || json_object_get(c->asked, key))
            continue;
        json_t *k = json_string(key);
        config_fail(c,
                    "the key %s (it is %s) is not known to weft, which will not guess what it does",
                    shown(k, name, sizeof name), shown(v, buf, sizeof buf));
        json_decref(k);
    }
    if (!c->first.code)
        return 0;
    return err_set(err, c->first.code, "%s", c->first.msg);
}
