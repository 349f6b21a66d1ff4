#include "infotext.h"

#include <ctype.h>
#include <jansson.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#define NEGATIVE "Negative prompt: "

void infotext_release(struct infotext *t)
{
    for (int i = 0; i < t->n; i++) {
        free(t->pair[i].key);
        free(t->pair[i].value);
    }
    free(t->pair);
    free(t->prompt);
    free(t->negative);
    memset(t, 0, sizeof *t);
}

const char *infotext_get(const struct infotext *t, const char *key)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->pair[i].key, key))
            return t->pair[i].value;
    return NULL;
}

/* ---- the line of settings -------------------------------------------------------------------- */

/* Where a value ends: a quoted one at its closing quote, a bracketed one at its own end, others at the next
 * comma. */
static const char *value_end(const char *p)
{
    int depth = 0;
    bool quoted = false;
    if (*p == '"') {
        for (p++; *p && *p != '"'; p++)
            p += *p == '\\' && p[1];
        return *p ? p + 1 : p;
    }
    if (*p != '{' && *p != '[')
        return p + strcspn(p, ",\n");
    for (; *p; p++) {
        if (quoted && *p == '\\' && p[1])
            p++;
        else if (*p == '"')
            quoted = !quoted;
        else if (!quoted && (*p == '{' || *p == '['))
            depth++;
        else if (!quoted && (*p == '}' || *p == ']') && --depth == 0)
            return p + 1;
    }
    return p;
}

/* "…" as what it says, else as it stands. */
static char *unquoted(const char *s, size_t n)
{
    json_t *j = n && *s == '"' ? json_loadb(s, n, JSON_DECODE_ANY, NULL) : NULL;
    char *out = j ? strdup(json_string_value(j)) : strndup(s, n);
    json_decref(j);
    return out;
}

static int add_pair(struct infotext *t, const char *key, size_t nk, const char *value, size_t nv,
                    struct err *err)
{
    struct infotext_pair *p = realloc(t->pair, ((size_t)t->n + 1) * sizeof *p);
    if (!p)
        return err_nomem(err, ((size_t)t->n + 1) * sizeof *p);
    t->pair = p;
    p[t->n] = (struct infotext_pair){strndup(key, nk), unquoted(value, nv)};
    if (!p[t->n].key || !p[t->n].value) {
        free(p[t->n].key);
        free(p[t->n].value);
        return err_nomem(err, nk + nv);
    }
    t->n++;
    return 0;
}

/* Letters, digits, blanks and a few signs, up to a colon: A1111's own rule. */
static size_t key_length(const char *p)
{
    size_t n = 0;
    while (isalnum((unsigned char)p[n]) || (p[n] && strchr(" -/_()", p[n])))
        n++;
    return n && p[n] == ':' && isalnum((unsigned char)*p) ? n : 0;
}

static int read_settings(struct infotext *t, const char *p, struct err *err)
{
    while (*p) {
        p += strspn(p, " ,\n\r");
        size_t nk = key_length(p);
        if (!nk) {
            p += strcspn(p, ",\n");
            continue;
        }
        const char *value = p + nk + 1 + strspn(p + nk + 1, " ");
        const char *end = value_end(value);
        size_t nv = (size_t)(end - value);
        while (nv && isspace((unsigned char)value[nv - 1]))
            nv--;
        int rc = add_pair(t, p, nk, value, nv, err);
        if (rc < 0)
            return rc;
        p = end;
    }
    return 0;
}

static void drop_pairs(struct infotext *t)
{
    for (int i = 0; i < t->n; i++) {
        free(t->pair[i].key);
        free(t->pair[i].value);
    }
    t->n = 0;
}

/* The text without blanks at its end. */
static char *trimmed(const char *s, size_t n)
{
    while (n && isspace((unsigned char)s[n - 1]))
        n--;
    while (n && isspace((unsigned char)*s))
        s++, n--;
    return strndup(s, n);
}

int infotext_parse(struct infotext *t, const char *text, struct err *err)
{
    memset(t, 0, sizeof *t);
    size_t n = strlen(text);
    while (n && isspace((unsigned char)text[n - 1]))
        n--;
    const char *last = text + n;
    while (last > text && last[-1] != '\n')
        last--;
    char *line = strndup(last, (size_t)(text + n - last));
    int rc = line ? read_settings(t, line, err) : err_nomem(err, n);
    free(line);
    if (rc == 0 && t->n < 3) { /* a prompt that happens to hold a colon */
        drop_pairs(t);
        last = text + n;
    }
    const char *negative = text;
    while (negative && negative < last && strncmp(negative, NEGATIVE, sizeof NEGATIVE - 1)) {
        negative = memchr(negative, '\n', (size_t)(last - negative));
        negative = negative ? negative + 1 : NULL;
    }
    if (!negative || negative >= last)
        negative = last;
    const char *from = negative < last ? negative + sizeof NEGATIVE - 1 : last;
    t->prompt = trimmed(text, (size_t)(negative - text));
    t->negative = trimmed(from, (size_t)(last - from));
    if (rc == 0 && (!t->prompt || !t->negative))
        rc = err_nomem(err, n);
    if (rc < 0)
        infotext_release(t);
    return rc;
}

/* ---- adapters -------------------------------------------------------------------------------- */

struct named {
    int (*each)(void *user, const char *name, const char *hash);
    void *user;
    char **name;
    int n;
};

static int tell(struct named *k, const char *name, size_t n, const char *hash, size_t nh)
{
    for (int i = 0; i < k->n; i++)
        if (strlen(k->name[i]) == n && !memcmp(k->name[i], name, n))
            return 0;
    char **p = realloc(k->name, ((size_t)k->n + 1) * sizeof *p);
    char *copy = strndup(name, n), *h = strndup(hash, nh);
    k->name = p ? p : k->name;
    if (!p || !copy || !h) {
        free(copy);
        free(h);
        return -1;
    }
    p[k->n++] = copy;
    int rc = k->each(k->user, copy, h);
    free(h);
    return rc;
}

/* "a: 0123, b: 4567" */
static int from_list(struct named *k, const char *p)
{
    int rc = 0;
    while (p && *p && rc == 0) {
        p += strspn(p, " ,");
        size_t n = strcspn(p, ",");
        const char *colon = memchr(p, ':', n);
        for (const char *c = colon; c; c = memchr(c + 1, ':', n - (size_t)(c + 1 - p)))
            colon = c; /* names may hold colons; hashes do not */
        if (colon) {
            const char *hash = colon + 1 + strspn(colon + 1, " ");
            rc = tell(k, p, (size_t)(colon - p), hash, n - (size_t)(hash - p));
        }
        p += n;
    }
    return rc;
}

static int from_json(struct named *k, const char *text)
{
    json_t *j = text ? json_loads(text, 0, NULL) : NULL, *v;
    const char *key;
    int rc = 0;
    json_object_foreach(j, key, v)
    {
        const char *h = json_string_value(v);
        if (h && !strncasecmp(key, "lora:", 5) && rc == 0)
            rc = tell(k, key + 5, strlen(key + 5), h, strlen(h));
    }
    json_decref(j);
    return rc;
}

static int from_prompt(struct named *k, const char *p)
{
    int rc = 0;
    while (rc == 0 && (p = strstr(p, "<lora:"))) {
        p += 6;
        size_t n = strcspn(p, ":>");
        if (n)
            rc = tell(k, p, n, "", 0);
    }
    return rc;
}

int infotext_adapters(const struct infotext *t,
                      int (*each)(void *user, const char *name, const char *hash), void *user)
{
    struct named k = {each, user, NULL, 0};
    int rc = from_list(&k, infotext_get(t, "Lora hashes"));
    rc = rc ? rc : from_json(&k, infotext_get(t, "Hashes"));
    rc = rc ? rc : from_prompt(&k, t->prompt);
    for (int i = 0; i < k.n; i++)
        free(k.name[i]);
    free(k.name);
    return rc;
}
