#include "axis.h"

#include "compose/compose.h"
#include "unet/file.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char axis_help[] = "strength, strength/NAME, adapter, cfg, steps, sampler, schedule,\n"
                         "seed, compose, denoise, clip-skip, eta, from, to; or\n"
                         "prompt=WORDS,OTHERS,…, which puts the others in place of the words";

/* ---- reading --------------------------------------------------------------------------------- */

static int add_value(struct axis *a, const char *s, size_t n, struct err *err)
{
    if (a->n == AXIS_MOST)
        return err_set(err, ERR_ARG, "%s: at most %d values", a->option, AXIS_MOST);
    a->value[a->n] = strndup(s, n);
    return a->value[a->n++] ? 0 : err_nomem(err, n);
}

int axis_read_values(struct axis *a, const char *key, const char *text, struct err *err)
{
    int rc = (a->key = strdup(key)) ? 0 : err_nomem(err, 16);
    for (const char *p = text; rc == 0; p++) {
        size_t n = strcspn(p, ",");
        rc = add_value(a, p, n, err);
        p += n;
        if (!*p)
            break;
    }
    return rc;
}

int axis_read(struct axis *a, const char *text, struct err *err)
{
    const char *eq = strchr(text, '=');
    if (!eq || eq == text || !eq[1])
        return err_set(err, ERR_ARG, "%s takes KEY=A,B,… such as cfg=3,5,7, not '%.80s'", a->option,
                       text);
    char *key = strndup(text, (size_t)(eq - text));
    int rc = key ? axis_read_values(a, key, eq + 1, err) : err_nomem(err, strlen(text));
    free(key);
    return rc;
}

int axis_read_list(struct axis *a, const char *key, const char *const *item, int n, struct err *err)
{
    int rc = (a->key = strdup(key)) ? 0 : err_nomem(err, 16);
    for (int i = 0; i < n && rc == 0; i++)
        rc = add_value(a, item[i], strlen(item[i]), err);
    return rc;
}

void axis_release(struct axis *a)
{
    for (int i = 0; i < a->n; i++)
        free(a->value[i]);
    free(a->key);
}

/* ---- laying over a request ------------------------------------------------------------------- */

static int not_a_value(const struct axis *a, const char *value, const char *what, struct err *err)
{
    return err_set(err, ERR_ARG, "%s takes %s, not '%.80s'", a->option, what, value);
}

static int set_seed(struct request *r, const struct axis *a, const char *value, struct err *err)
{
    char *end;
    unsigned long long v = strtoull(value, &end, 10);
    if (*value < '0' || *value > '9' || *end || v > INT64_MAX)
        return not_a_value(a, value, "whole numbers such as 1,2,3", err);
    r->seed = v;
    return 0;
}

/* Every place of the first value becomes this one. */
static int replace_words(struct request *r, const struct axis *a, const char *value,
                         struct err *err)
{
    const char *from = a->value[0], *p = r->prompt, *q;
    char *out = NULL;
    size_t size, n = strlen(from);
    if (!n || !strstr(p, from))
        return err_set(err, ERR_ARG, "%s: '%.80s' is nowhere in the prompt", a->option, from);
    FILE *f = open_memstream(&out, &size);
    if (!f)
        return err_nomem(err, strlen(p));
    for (; (q = strstr(p, from)); p = q + n)
        fprintf(f, "%.*s%s", (int)(q - p), p, value);
    fputs(p, f);
    if (fclose(f) != 0)
        return err_nomem(err, size);
    int rc = request_set(&r->prompt, out, err);
    free(out);
    return rc;
}

/* strength, from and to: of all adapters, or of the one behind the slash. */
static int set_adapters(struct request *r, const struct axis *a, double v, struct err *err)
{
    const char *name = strchr(a->key, '/');
    int found = 0;
    for (int i = 0; i < r->n_adapter; i++) {
        struct request_adapter *b = &r->adapter[i];
        char *stem = b->name ? strdup(b->name) : file_stem(b->path);
        bool it = !name || (stem && !strcmp(stem, name + 1));
        free(stem);
        if (!it)
            continue;
        found++;
        if (!strncmp(a->key, "strength", 8))
            b->unet = b->te = v;
        else if (!strncmp(a->key, "from", 4))
            b->from = (int)v;
        else
            b->to = (int)v;
    }
    return found ? 0
                 : err_set(err, ERR_ARG, "%s %s: no such adapter in the picture; -a names them",
                           a->option, a->key);
}

static int set_number(struct request *r, const struct axis *a, const char *value, struct err *err)
{
    const struct {
        const char *key;
        double *real;
        int *whole;
    } field[] = {{"cfg", &r->cfg, NULL},
                 {"steps", NULL, &r->steps},
                 {"denoise", &r->denoise, NULL},
                 {"clip-skip", NULL, &r->clip_skip},
                 {"eta", &r->eta, NULL}};
    size_t len = strcspn(a->key, "/");
    char *end;
    double v = strtod(value, &end);
    if (!*value || *end || !isfinite(v))
        return not_a_value(a, value, "numbers", err);
    for (size_t i = 0; i < sizeof field / sizeof *field; i++)
        if (!strcmp(a->key, field[i].key)) {
            if (field[i].whole && (v != floor(v) || fabs(v) > 1e6))
                return not_a_value(a, value, "whole numbers", err);
            if (field[i].whole)
                *field[i].whole = (int)v;
            else
                *field[i].real = v;
            return request_check(r, err);
        }
    if (len == 4 && !strncmp(a->key, "from", 4) && (v < 1 || v > 1000 || v != floor(v)))
        return not_a_value(a, value, "steps from 1 up", err);
    if (len == 2 && !strncmp(a->key, "to", 2) && (v < 1 || v > 1000 || v != floor(v)))
        return not_a_value(a, value, "steps from 1 up", err);
    if ((len == 8 && !strncmp(a->key, "strength", 8)) ||
        (len == 4 && !strncmp(a->key, "from", 4)) || (len == 2 && !strncmp(a->key, "to", 2)))
        return set_adapters(r, a, v, err);
    return err_set(err, ERR_ARG, "%s: no key '%.40s'; weft help compare lists them", a->option,
                   a->key);
}

static int set_strategy(struct request *r, const char *value, struct err *err)
{
    struct compose *how = NULL;
    int rc = strcmp(value, "none") ? compose_open(&how, value, err) : 0;
    compose_close(how);
    return rc < 0 ? rc : request_set(&r->compose, value, err);
}

int axis_set(struct request *r, const struct axis *a, int i, struct err *err)
{
    const char *value = a->value[i];
    if (!strcmp(a->key, "compose"))
        return set_strategy(r, value, err);
    if (!strcmp(a->key, "seed"))
        return set_seed(r, a, value, err);
    if (!strcmp(a->key, "sampler"))
        return request_set(&r->sampler, value, err);
    if (!strcmp(a->key, "schedule"))
        return request_set(&r->schedule, value, err);
    if (!strcmp(a->key, "prompt"))
        return replace_words(r, a, value, err);
    if (!strcmp(a->key, "adapter"))
        return strcmp(value, "none") ? request_add_adapter(r, value, err) : 0;
    return set_number(r, a, value, err);
}

char *axis_label(const struct axis *a, int i)
{
    char *out = NULL;
    const char *v = a->value[i];
    bool alone = !strcmp(a->key, "compose") || !strcmp(a->key, "prompt");
    if (!strcmp(a->key, "compose") && !strcmp(v, "none"))
        return strdup("without adapters");
    return asprintf(&out, "%s%s%s", alone ? "" : a->key, alone ? "" : " ", v) < 0 ? NULL : out;
}
