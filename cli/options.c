#include "cli.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int bad(const struct option *o, const char *value, const char *want, struct err *err)
{
    return err_set(err, ERR_ARG, "--%s takes %s, not '%.80s'", o->name, want, value);
}

/* The whole of s as digits, of at most max. */
static int digits(const char *s, uint64_t max, uint64_t *out)
{
    char *end;
    errno = 0;
    unsigned long long v = strtoull(s, &end, 10);
    if (!isdigit((unsigned char)*s) || *end || errno || v > max)
        return -1;
    *out = v;
    return 0;
}

/* The whole of s as a number within min … max; a range of 0 … 0 is none. */
static int parse_number(const struct option *o, const char *s, double *out, struct err *err)
{
    char *end, want[80];
    bool whole = o->kind == OPTION_INT || o->kind == OPTION_MAYBE;
    errno = 0;
    double v = strtod(s, &end);
    if (end == s || s[strspn(s, "+-.0123456789eE")] || *end || errno || !isfinite(v) ||
        (whole && (v != floor(v) || fabs(v) > INT_MAX)))
        return bad(o, s, whole ? "a whole number" : "a number", err);
    if (o->min < o->max && (v < o->min || v > o->max)) {
        snprintf(want, sizeof want, "%g to %g", o->min, o->max);
        return bad(o, s, want, err);
    }
    *out = v;
    return 0;
}

static int parse_u64(const struct option *o, const char *s, uint64_t *out, struct err *err)
{
    /* not more than JSON can say */
    return digits(s, INT64_MAX, out) ? bad(o, s, "a whole number from 0 to 2^63 - 1", err) : 0;
}

/* "512" is a square. */
static int parse_size(const struct option *o, const char *s, int *out, struct err *err)
{
    uint64_t w, h;
    char width[12];
    size_t n = strcspn(s, "x");
    snprintf(width, sizeof width, "%.*s", (int)n, s);
    if (n >= sizeof width || digits(width, 65536, &w) || digits(s[n] ? s + n + 1 : s, 65536, &h) ||
        !w || !h)
        return bad(o, s, "a size such as 512 or 512x768", err);
    out[0] = (int)w;
    out[1] = (int)h;
    return 0;
}

static int list_add(struct option_list *l, const char *s, struct err *err)
{
    const char **p = realloc(l->item, (size_t)(l->n + 1) * sizeof *p);
    if (!p)
        return err_nomem(err, (size_t)(l->n + 1) * sizeof *p);
    l->item = p;
    p[l->n++] = s;
    return 0;
}

static int set(const struct option *o, const char *s, struct err *err)
{
    double v = 0;
    int rc = 0;
    switch (o->kind) {
    case OPTION_FLAG: *(bool *)o->to = true; break;
    case OPTION_TEXT: *(const char **)o->to = s; break;
    case OPTION_INT:
    case OPTION_MAYBE:
        rc = s ? parse_number(o, s, &v, err) : 0;
        *(int *)o->to = s ? (int)v : -1;
        break;
    case OPTION_NUMBER:
        rc = parse_number(o, s, &v, err);
        *(double *)o->to = v;
        break;
    case OPTION_U64: rc = parse_u64(o, s, o->to, err); break;
    case OPTION_SIZE: rc = parse_size(o, s, o->to, err); break;
    case OPTION_LIST: rc = list_add(o->to, s, err); break;
    case OPTION_GROUP: break;
    }
    if (o->given)
        *o->given = true;
    return rc;
}

static const struct option *by_name(const struct option *o, const char *name, size_t n)
{
    for (; o->name; o++)
        if (o->kind != OPTION_GROUP && strlen(o->name) == n && !memcmp(o->name, name, n))
            return o;
    return NULL;
}

static const struct option *by_letter(const struct option *o, char letter)
{
    for (; o->name; o++)
        if (o->letter == letter && letter)
            return o;
    return NULL;
}

int options_parse(const struct option *o, int argc, char **argv, const char **rest, int *n_rest,
                  struct err *err)
{
    bool options = true;
    *n_rest = 0;
    for (int i = 1; i < argc; i++) {
        const char *a = argv[i], *value = NULL;
        const struct option *hit = NULL;
        if (!options || a[0] != '-' || !a[1]) {
            rest[(*n_rest)++] = a;
            continue;
        }
        if (!strcmp(a, "--")) {
            options = false;
            continue;
        }
        if (a[1] == '-') {
            const char *eq = strchr(a, '=');
            hit = by_name(o, a + 2, eq ? (size_t)(eq - a - 2) : strlen(a + 2));
            value = eq ? eq + 1 : NULL;
        } else {
            hit = by_letter(o, a[1]);
            value = a[2] ? a + 2 : NULL; /* -ofile */
        }
        if (!hit)
            return err_set(err, ERR_ARG, "no option '%.80s'; `weft help %s` lists them", a,
                           argv[0]);
        if (hit->kind == OPTION_FLAG && value)
            return err_set(err, ERR_ARG, "'%.80s': this option takes no value", a);
        bool alone = hit->kind == OPTION_FLAG || hit->kind == OPTION_MAYBE;
        if (!alone && !value && ++i == argc)
            return err_set(err, ERR_ARG, "'%.80s' needs a value: %s", a, hit->arg);
        int rc = set(hit, alone || value ? value : argv[i], err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

void options_help(const struct option *o)
{
    for (; o->name; o++) {
        char left[64];
        if (o->kind == OPTION_GROUP) {
            printf("\n%s\n", o->help);
            continue;
        }
        if (o->letter)
            snprintf(left, sizeof left, "-%c, --%s %s", o->letter, o->name, o->arg ? o->arg : "");
        else
            snprintf(left, sizeof left, "    --%s%s%s", o->name, o->kind == OPTION_MAYBE ? "" : " ",
                     o->arg ? o->arg : "");
        const char *line = o->help;
        for (bool first = true; line; first = false) {
            const char *nl = strchr(line, '\n');
            printf("  %-28s%.*s\n", first ? left : "", nl ? (int)(nl - line) : (int)strlen(line),
                   line);
            line = nl ? nl + 1 : NULL;
        }
    }
}
