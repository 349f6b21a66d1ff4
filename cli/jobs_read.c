#include "jobs_private.h"

#include "unet/file.h"
#include "unet/text.h"

#include <ctype.h>
#include <errno.h>
#include <limits.h>
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_MOST ((size_t)256 << 20) /* bytes */
enum { LINE_MOST = 1000000, JOBS_MOST = 10000000, ID_MOST = 200 };

/* ---- names and values ------------------------------------------------------------------------ */

const char *jobs_name(const char *key, struct err *err)
{
    /* What people coming from elsewhere write. width and height become size once both are known. */
    static const char *const other[][2] = {{"negative_prompt", "negative"},
                                           {"cfg_scale", "cfg"},
                                           {"clip_skip", "clip-skip"},
                                           {"allow_partial", "allow-partial"},
                                           {"adapters", "adapter"}};
    size_t n = strlen(key);
    for (size_t i = 0; i < sizeof other / sizeof *other; i++)
        if (!strcmp(key, other[i][0]))
            return other[i][1];
    if (islower((unsigned char)*key) && strspn(key, "abcdefghijklmnopqrstuvwxyz0123456789-") == n)
        return key;
    err_set(err, ERR_FORMAT, "'%.*s' cannot be the name of an option", text_shown(key, n, 80), key);
    return NULL;
}

bool jobs_whole(const json_t *v, json_int_t min, json_int_t max, json_int_t *out)
{
    const char *s = json_string_value(v);
    double real = json_real_value(v);
    char *end = NULL;
    errno = 0;
    if (json_is_integer(v))
        *out = json_integer_value(v);
    else if (json_is_real(v) && real == floor(real) && fabs(real) <= 0x1p53)
        *out = (json_int_t)real;
    else if (s && isdigit((unsigned char)s[strspn(s, " ")]))
        *out = strtoll(s, &end, 10);
    else
        return false;
    return !errno && (!end || !end[strspn(end, " ")]) && *out >= min && *out <= max;
}

int jobs_check_nul(const char *s, size_t n, struct err *err)
{
    return memchr(s, 0, n)
               ? err_set(err, ERR_FORMAT, "a NUL byte; the file is not UTF-8, or damaged")
               : 0;
}

/* A text or number as it stands on a command line, in number where it is one; else NULL. */
static const char *value_text(const json_t *v, char number[32])
{
    if (json_is_integer(v))
        snprintf(number, 32, "%lld", (long long)json_integer_value(v));
    else if (json_is_real(v))
        snprintf(number, 32, "%.17g", json_real_value(v));
    else
        return json_string_value(v);
    return number;
}

/* Null and false are as if nothing stood there. */
static bool is_given(const json_t *v)
{
    return v && !json_is_null(v) && !json_is_false(v);
}

/* What one job can have under that name. */
static int check_value(const char *name, const json_t *v, struct err *err)
{
    const json_t *part;
    json_int_t number;
    size_t i;
    if (json_is_object(v))
        return err_set(err, ERR_FORMAT, "'%s': an object is not a value", name);
    if (!strcmp(name, "prompt") && !json_is_string(v) && !json_is_null(v))
        return err_set(err, ERR_FORMAT, "'prompt' is one text");
    if (!strcmp(name, "seed") && is_given(v) && !jobs_whole(v, 0, INT64_MAX, &number))
        return err_set(err, ERR_FORMAT,
                       "'seed' is a whole number from 0 to 2^63 - 1; where it is left out, a new "
                       "one is taken");
    json_array_foreach(v, i, part)
    {
        if (!json_is_string(part) && !json_is_number(part))
            return err_set(err, ERR_FORMAT, "'%s': only texts and numbers can be in a list", name);
        if (!strcmp(name, "size") &&
            (json_array_size(v) != 2 || !jobs_whole(part, 1, 65536, &number)))
            return err_set(err, ERR_FORMAT, "'size': a list is [width, height]");
    }
    return 0;
}

/* ---- from a line to its jobs ----------------------------------------------------------------- */

/* What a line asks for. */
struct plan {
    const char *id;
    char number[32]; /* where it is one */
    json_int_t repeat, combinations;
    json_t *lists; /* values under our names; one outside a grid */
};

static int take_id(struct plan *p, const json_t *v, struct err *err)
{
    const char *s = p->id = json_is_real(v) ? NULL : value_text(v, p->number);
    if (!s || !*s)
        return err_set(err, ERR_FORMAT, "'id' is a text, not an empty one, or a whole number");
    if (strlen(s) > ID_MOST)
        return err_set(err, ERR_FORMAT, "'id': more than %d bytes", ID_MOST);
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f || *s == '/')
            return err_set(err, ERR_FORMAT,
                           "'id': files are named after it: no '/' and no control characters");
    return 0;
}

/* v is a value, or of a grid a list of values. */
static int take_option(struct plan *p, bool grid, const char *key, json_t *v, struct err *err)
{
    const char *name = jobs_name(key, err);
    json_t *list = grid ? json_incref(v) : json_pack("[O]", v);
    size_t n = json_array_size(list);
    int rc = name ? 0 : err->code;
    if (rc == 0 && json_object_get(p->lists, name))
        rc = err_set(err, ERR_FORMAT, "'%s': %s is given twice", key, name);
    if (rc == 0 && grid && n == 0)
        rc = err_set(err, ERR_FORMAT, "'grid': '%s' is a list of at least one value", name);
    for (size_t i = 0; i < n && rc == 0; i++)
        rc = check_value(name, json_array_get(list, i), err);
    if (rc == 0 && (json_int_t)n > LINE_MOST / p->combinations)
        rc = err_set(err, ERR_FORMAT, "more than %d pictures of one line", LINE_MOST);
    if (rc == 0 && json_object_set(p->lists, name, list) < 0)
        rc = err_nomem(err, 64);
    p->combinations *= rc == 0 ? (json_int_t)n : 1;
    json_decref(list);
    return rc;
}

/* All that is in a line, or in its grid. */
static int take_all(struct plan *p, bool grid, json_t *from, struct err *err)
{
    const char *key;
    json_t *v;
    int rc = 0;
    json_object_foreach(from, key, v)
    {
        bool id = !strcmp(key, "id"), repeat = !strcmp(key, "repeat"), list = !strcmp(key, "grid");
        if (rc < 0)
            break;
        if (!id && !repeat && !list)
            rc = take_option(p, grid, key, v, err);
        else if (grid)
            rc = err_set(err, ERR_FORMAT, "'grid': '%s' can only stand beside it", key);
        else if (json_is_null(v))
            continue; /* tables turned into JSON have all columns in all rows */
        else if (id)
            rc = take_id(p, v, err);
        else if (list)
            rc = json_is_object(v) ? take_all(p, true, v, err)
                                   : err_set(err, ERR_FORMAT, "'grid' is an object of lists");
        else if (!jobs_whole(v, 1, JOBS_REPEAT_MOST, &p->repeat))
            rc = err_set(err, ERR_FORMAT, "'repeat' is a whole number from 1 to %d",
                         JOBS_REPEAT_MOST);
    }
    return rc;
}

/* What can be said once a job has all of its options; it is the k-th of those that count up from its seed. */
static int finish(json_t *options, json_int_t k, json_int_t repeat, struct err *err)
{
    const json_t *width = json_object_get(options, "width"),
                 *height = json_object_get(options, "height");
    json_int_t w, h, seed;
    int rc = 0;
    if (is_given(width) || is_given(height)) {
        if (!jobs_whole(width, 1, 65536, &w) || !jobs_whole(height, 1, 65536, &h))
            return err_set(err, ERR_FORMAT,
                           "'width' and 'height' go together, whole numbers from 1 to 65536");
        if (is_given(json_object_get(options, "size")))
            return err_set(err, ERR_FORMAT, "'size' says what 'width' and 'height' say");
        rc = json_object_set_new(options, "size",
                                 json_sprintf("%lldx%lld", (long long)w, (long long)h));
    }
    json_object_del(options, "width");
    json_object_del(options, "height");
    if (!json_is_string(json_object_get(options, "prompt")) &&
        !is_given(json_object_get(options, "like")))
        return err_set(err, ERR_FORMAT, "no prompt; an empty one is written \"\"");
    if (rc == 0 && jobs_whole(json_object_get(options, "seed"), 0, INT64_MAX, &seed)) {
        if (seed > INT64_MAX - (repeat - 1))
            return err_set(err, ERR_FORMAT, "'seed' and 'repeat': the last seed is above 2^63 - 1");
        rc = json_object_set_new(options, "seed", json_integer(seed + k));
    }
    return rc < 0 ? err_nomem(err, 64) : 0;
}

/* All from the n-th on go. */
static void drop(struct jobs *j, int n)
{
    while (j->n > n) {
        struct job *job = &j->at[--j->n];
        free(job->id);
        json_decref(job->options);
    }
}

void jobs_release(struct jobs *j)
{
    drop(j, 0);
    free(j->at);
    *j = (struct jobs){0};
}

static struct job *new_job(struct jobs *j, int line)
{
    if (j->n == j->room) {
        size_t room = (size_t)j->room * 2 + 16;
        struct job *p = room <= INT_MAX ? realloc(j->at, room * sizeof *p) : NULL;
        if (!p)
            return NULL;
        j->at = p;
        j->room = (int)room;
    }
    j->at[j->n] = (struct job){.line = line, .options = json_object()};
    return &j->at[j->n++];
}

/* The index-th of the line's jobs: grids multiplied out, and of each combination those that differ in their seeds. */
static int add_job(struct jobs *j, const struct plan *p, int line, json_int_t index,
                   struct err *err)
{
    json_int_t which = index / p->repeat, block = p->combinations;
    struct job *job = new_job(j, line);
    json_t *list;
    const char *name;
    char number[24] = "";
    int rc = job ? 0 : -1;
    json_object_foreach(p->lists, name, list)
    {
        json_int_t n = (json_int_t)json_array_size(list);
        block /= n;
        list = json_array_get(list, (size_t)(which / block % n));
        rc = rc < 0 ? rc : json_object_set(job->options, name, list);
    }
    if (p->combinations * p->repeat > 1)
        snprintf(number, sizeof number, "-%lld", (long long)index + 1);
    if (rc == 0 && p->id && asprintf(&job->id, "%s%s", p->id, number) < 0) {
        job->id = NULL;
        rc = -1;
    }
    return rc < 0 ? err_nomem(err, sizeof *job)
                  : finish(job->options, index % p->repeat, p->repeat, err);
}

int jobs_add_line(struct jobs_reading *r, json_t *object, struct err *err)
{
    struct plan p = {.repeat = 1, .combinations = 1, .lists = json_object()};
    int before = r->jobs->n, rc = take_all(&p, false, object, err);
    json_int_t n = p.combinations * p.repeat;
    if (rc == 0 && n > LINE_MOST)
        rc = err_set(err, ERR_FORMAT, "%lld pictures of one line, more than %d", (long long)n,
                     LINE_MOST);
    if (rc == 0 && n > JOBS_MOST - (before - r->first))
        rc = err_set(err, ERR_FORMAT, "with this line the file has more than %d pictures",
                     JOBS_MOST);
    for (json_int_t i = 0; i < n && rc == 0; i++)
        rc = add_job(r->jobs, &p, r->start, i, err);
    if (rc < 0)
        drop(r->jobs, before);
    json_decref(p.lists);
    return rc;
}

/* ---- files ----------------------------------------------------------------------------------- */

static int json_line(struct jobs_reading *r, char *s, size_t n, struct err *err)
{
    json_error_t je;
    json_t *object = json_loadb(s, n, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, &je);
    int rc;
    if (!object && !*je.text) /* that is how jansson says it */
        rc = err_nomem(err, n);
    else if (!object)
        rc = err_set(err, ERR_FORMAT, "column %d: %s", je.column, je.text);
    else if (!json_is_object(object))
        rc = err_set(err, ERR_FORMAT, "not an object, {\"prompt\": …}, which each line is");
    else
        rc = jobs_add_line(r, object, err);
    json_decref(object);
    return rc;
}

static const struct form {
    const char *name, *ending;
    int (*each)(struct jobs_reading *r, char *s, size_t n, struct err *err); /* NULL: CSV */
} forms[] = {
    {"jsonl", ".jsonl", json_line},   {"csv", ".csv", NULL},
    {"text", ".txt", jobs_text_line}, {"jsonl", ".ndjson", json_line},
    {"jsonl", ".json", json_line},
};
enum { N_FORMS = sizeof forms / sizeof *forms };

/* NULL: there is none of that name, or the ending says nothing. */
static const struct form *form_of(const char *path, const char *format)
{
    const char *dot = strrchr(path, '.');
    for (size_t i = 0; i < N_FORMS; i++)
        if (format ? !strcmp(format, forms[i].name) : dot && !strcasecmp(dot, forms[i].ending))
            return &forms[i];
    return NULL;
}

/* p comes to the next line with something in it; false: there is none. */
static bool next_line(struct jobs_reading *r)
{
    char *s = r->p;
    while (s < r->end && isspace((unsigned char)*s))
        if (*s++ == '\n') {
            r->p = s;
            r->line++;
        }
    r->start = r->line;
    return s < r->end;
}

/* The line at p, which is all: without white space at its end, and with a NUL behind it. */
static int read_line(struct jobs_reading *r, const struct form *form, struct err *err)
{
    char *s = r->p, *stop = memchr(s, '\n', (size_t)(r->end - s));
    r->p = stop ? stop + 1 : r->end;
    r->line++;
    stop = stop ? stop : r->end;
    while (isspace((unsigned char)stop[-1]))
        stop--;
    *stop = 0;
    int rc = jobs_check_nul(s, (size_t)(stop - s), err);
    return rc < 0 ? rc : form->each(r, s, (size_t)(stop - s), err);
}

/* text has a NUL behind its size bytes. */
static int read_text(struct jobs_reading *r, const struct form *form, char *text, size_t size,
                     struct err *err)
{
    struct err why;
    int rc = 0;
    r->p = text;
    r->end = text + size;
    r->line = 1;
    while (next_line(r)) {
        rc = form->each ? read_line(r, form, &why) : jobs_csv_record(r, &why);
        if (rc == ERR_NOMEM || (rc < 0 && !form->each && !r->columns))
            break;
        if (rc < 0 && r->bad)
            r->bad(r->user, r->start, why.msg);
        rc = 0;
    }
    json_decref(r->columns);
    return rc < 0 ? err_set(err, rc, "%s: line %d: %s", r->name, r->start, why.msg) : 0;
}

/* What file_read does for a file, for a pipe. */
static int read_stream(char **out, size_t *size, FILE *f, size_t max, struct err *err)
{
    char *buf = malloc(max + 2); /* of which the system gives what is written to */
    int rc = 0;
    if (!buf)
        return err_nomem(err, max + 2);
    *size = fread(buf, 1, max + 1, f);
    buf[*size] = 0;
    if (ferror(f))
        rc = err_set(err, ERR_IO, "standard input: %s", strerror(errno));
    else if (*size > max)
        rc = err_set(err, ERR_FORMAT, "standard input: more than %zu bytes", max);
    if (rc < 0)
        free(buf);
    *out = rc < 0 ? NULL : buf;
    return rc;
}

int jobs_read(struct jobs *j, const char *path, const char *format, jobs_bad *bad, void *user,
              struct err *err)
{
    bool piped = !strcmp(path, "-");
    struct jobs_reading r = {.jobs = j,
                             .first = j->n,
                             .name = piped ? "standard input" : path,
                             .bad = bad,
                             .user = user};
    const struct form *form = form_of(path, format);
    char *text = NULL;
    size_t n = 0;
    if (format && !form)
        return err_set(err, ERR_ARG, "no format of jobs '%.80s'; there are jsonl, csv and text",
                       format);
    int rc = piped ? read_stream(&text, &n, stdin, FILE_MOST, err)
                   : file_read(&text, &n, path, FILE_MOST, err);
    if (rc == 0) {
        size_t bom = strncmp(text, "\xef\xbb\xbf", 3) ? 0 : 3;
        if (!form)
            form = &forms[text[bom + strspn(text + bom, " \t\r\n\v\f")] == '{' ? 0 : 2];
        rc = read_text(&r, form, text + bom, n - bom, err);
    }
    free(text);
    return rc;
}

/* ---- as a command line ----------------------------------------------------------------------- */

struct arguments {
    char **at;
    int n;
};

/* Takes s; NULL: there was no memory for it. */
static int add_argument(struct arguments *a, char *s, struct err *err)
{
    char **p = s ? realloc(a->at, ((size_t)a->n + 2) * sizeof *p) : NULL;
    if (!p) {
        free(s);
        return err_nomem(err, 64);
    }
    a->at = p;
    p[a->n++] = s;
    p[a->n] = NULL;
    return 0;
}

static int add_option(struct arguments *a, const char *name, const json_t *v, struct err *err)
{
    char number[32], *s = NULL;
    const char *text = value_text(v, number);
    json_int_t w, h;
    json_t *part;
    size_t i;
    int rc = 0;
    if (!strcmp(name, "size") && json_array_size(v) == 2 &&
        jobs_whole(json_array_get(v, 0), 1, 65536, &w) &&
        jobs_whole(json_array_get(v, 1), 1, 65536, &h)) {
        snprintf(number, sizeof number, "%lldx%lld", (long long)w, (long long)h);
        text = number;
    } else if (json_is_array(v)) {
        json_array_foreach(v, i, part)
        {
            rc = rc < 0 ? rc : add_option(a, name, part, err);
        }
        return rc;
    }
    if (!is_given(v))
        return 0;
    if (!text && !json_is_true(v))
        return err_set(err, ERR_ARG, "'%s' has a value that no option can have", name);
    rc = asprintf(&s, "--%s%s%s", name, text ? "=" : "", text ? text : "");
    return add_argument(a, rc < 0 ? NULL : s, err);
}

int job_arguments(const struct job *j, const char *command, char ***argv, int *argc,
                  struct err *err)
{
    struct arguments a = {0};
    const char *prompt = json_string_value(json_object_get(j->options, "prompt")), *name;
    json_t *v;
    int rc = add_argument(&a, strdup(command), err);
    json_object_foreach(j->options, name, v)
    {
        if (rc == 0 && strcmp(name, "prompt"))
            rc = add_option(&a, name, v, err);
    }
    if (rc == 0 && prompt)
        rc = add_argument(&a, strdup("--"), err);
    if (rc == 0 && prompt)
        rc = add_argument(&a, strdup(prompt), err);
    if (rc < 0) {
        job_arguments_free(a.at);
        a = (struct arguments){0};
    }
    *argv = a.at;
    *argc = a.n;
    return rc;
}

void job_arguments_free(char **argv)
{
    for (char **p = argv; p && *p; p++)
        free(*p);
    free(argv);
}
