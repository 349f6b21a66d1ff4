#include "shelf.h"

#include "making.h"

#include "retrieve/find.h"
#include "store/facts.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <utf8proc.h>

int shelf_parse(struct shelf *s, const struct option *o, int argc, char **argv, int least, int most,
                const char *what, struct err *err)
{
    s->rest = calloc((size_t)argc + 1, sizeof *s->rest);
    int rc = s->rest ? options_parse(o, argc, argv, s->rest, &s->n, err)
                     : err_nomem(err, (size_t)argc * sizeof *s->rest);
    if (rc == 0 && s->n < least)
        rc = err_set(err, ERR_ARG, "which %s? `weft help %s` says more", what, argv[0]);
    if (rc == 0 && most >= 0 && s->n > most)
        rc = err_set(err, ERR_ARG, "'%.60s' is too much; `weft help %s` says more", s->rest[most],
                     argv[0]);
    return rc;
}

int shelf_open(struct shelf *s, enum repo_mode mode, struct err *err)
{
    char *home = repo_home(s->home);
    int rc = home ? repo_open(&s->r, home, mode, err) : err_nomem(err, 64);
    free(home);
    return rc;
}

int shelf_open_any(struct shelf *s, struct err *err)
{
    int rc = shelf_open(s, REPO_WRITE, err);
    return rc == ERR_IO ? shelf_open(s, REPO_READ, err) : rc;
}

int shelf_close(struct shelf *s, int rc, const struct err *err)
{
    repo_close(s->r);
    free(s->rest);
    return rc < 0 ? cli_fail(err) : EXIT_DONE;
}

int shelf_progress(void *user, int done, int total)
{
    struct shelf *s = user;
    progress_show(&s->bar, done, total);
    return cli_stopped();
}

int shelf_finder(struct shelf *s, struct making *m, bool needed, struct finder **f, struct err *err)
{
    int unread;
    m->repo = s->r;
    *f = NULL;
    int rc = making_request(m, "", err);
    rc = rc < 0 ? rc : making_model(m, err);
    rc = rc < 0 ? rc : making_finder(m, f, err);
    if (rc < 0 && !needed && !m->given.model) {
        err_clear(err);
        return 1;
    }
    progress_start(&s->bar);
    rc = rc < 0 ? rc : finder_read(*f, shelf_progress, s, &unread, err);
    progress_end(&s->bar);
    return rc;
}

void shelf_skipped(const struct shelf *s, int skipped)
{
    if (skipped && !s->json)
        fprintf(stderr,
                "%d adapters could not be compared: gone, changed, or of a kind that needs "
                "its model\n",
                skipped);
}

/* ---- texts ----------------------------------------------------------------------------------- */

/* Bytes of the character at s when it can be shown as it is, else 0. */
static size_t plain(const char *s, bool control_too)
{
    utf8proc_int32_t c;
    utf8proc_ssize_t n = utf8proc_iterate((const unsigned char *)s, -1, &c);
    bool control = n > 0 && (c < 32 || (c >= 127 && c < 160) || c == 0x2028 || c == 0x2029);
    return n > 0 && (control_too || !control) ? (size_t)n : 0;
}

static char *escaped(const char *s, bool control_too)
{
    char *out = malloc(4 * strlen(s) + 1), *p = out;
    while (out && *s) {
        size_t n = plain(s, control_too);
        if (n) {
            memcpy(p, s, n);
            p += n;
            s += n;
        } else if (*s == '\n' || *s == '\t') {
            p += sprintf(p, *s++ == '\n' ? "\\n" : "\\t");
        } else {
            p += sprintf(p, "\\x%02x", (unsigned char)*s++);
        }
    }
    if (out)
        *p = 0;
    return out;
}

const char *shown(const char *s)
{
    static char *kept[16];
    static int next;
    char **at = &kept[next++ % 16];
    free(*at);
    *at = escaped(s ? s : "", false);
    return *at ? *at : "";
}

json_t *json_text(const char *s)
{
    json_t *j = s ? json_string(s) : json_null();
    char *text = j ? NULL : escaped(s, true);
    if (!j && text)
        j = json_string(text);
    free(text);
    return j;
}

void json_line(json_t *j)
{
    char *text = json_dumps(j, JSON_COMPACT | JSON_REAL_PRECISION(9));
    puts(text ? text : "{}");
    free(text);
    json_decref(j);
}

const char *colour(const char *name)
{
    static const char *const codes[][2] = {{"", "\033[0m"},       {"bold", "\033[1m"},
                                           {"dim", "\033[2m"},    {"red", "\033[31m"},
                                           {"green", "\033[32m"}, {"yellow", "\033[33m"}};
    if (!isatty(STDOUT_FILENO) || getenv("NO_COLOR"))
        return "";
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        if (!strcmp(codes[i][0], name))
            return codes[i][1];
    return "";
}

/* ---- adapters -------------------------------------------------------------------------------- */

json_t *texts_json(const struct texts *t)
{
    json_t *list = json_array();
    for (int i = 0; i < t->n; i++)
        json_array_append_new(list, json_text(t->item[i]));
    return list;
}

static json_t *number_or_null(double v)
{
    return isnan(v) ? json_null() : json_real(v);
}

/* "lora locon" as a list. */
static json_t *words_json(const char *s)
{
    json_t *list = json_array();
    while (*s) {
        size_t n = strcspn(s, " ");
        json_array_append_new(list, json_stringn(s, n));
        s += n + (s[n] == ' ');
    }
    return list;
}

static json_t *head(const char *s, size_t n)
{
    return json_stringn(s, strlen(s) < n ? strlen(s) : n);
}

static int put_lists(json_t *j, struct repo *r, int64_t key, struct err *err)
{
    static const struct {
        const char *name;
        enum repo_texts which;
    } lists[] = {{"triggers", REPO_TRIGGERS},
                 {"trigger_candidates", REPO_CANDIDATES},
                 {"tags", REPO_TAGS},
                 {"aliases", REPO_ALIASES},
                 {"twins", REPO_TWINS}};
    int rc = 0;
    for (size_t i = 0; i < sizeof lists / sizeof *lists && rc == 0; i++) {
        struct texts t = {0};
        rc = r ? repo_texts(r, key, lists[i].which, &t, err) : 0;
        json_object_set_new(j, lists[i].name, texts_json(&t));
        texts_release(&t);
    }
    return rc;
}

json_t *adapter_json(struct repo *r, const struct repo_adapter *a, struct err *err)
{
    json_t *j = json_object();
    char *picture = repo_preview(r, a);
    json_t *rank = a->rank[1] ? json_pack("[i, i]", a->rank[0], a->rank[1]) : json_null();
    const struct {
        const char *key;
        json_t *value;
    } fields[] = {
        {"name", json_text(a->name)},
        {"id", json_text(a->id)},
        {"file", json_text(a->path)},
        {"file_sha256", json_text(a->file_sha256)},
        {"data_sha256", json_text(a->data_sha256)},
        {"autov2", head(a->file_sha256, 10)},
        {"autov3", head(a->data_sha256, 12)},
        {"declared_hash", json_text(a->declared_hash)},
        {"declared_note", json_text(facts_declared_note(a->declared_hash, a->data_sha256))},
        {"format", json_text(a->format)},
        {"style", json_text(a->style)},
        {"kinds", words_json(a->kinds)},
        {"base", json_text(a->base)},
        {"renderable", json_boolean(!a->unusable)},
        {"not_renderable", json_text(a->unusable)},
        {"rank", rank},
        {"sites", json_integer(a->sites)},
        {"tensors", json_integer(a->tensors)},
        {"dtype", json_text(a->dtype)},
        {"bytes", json_integer(a->bytes)},
        {"norm", number_or_null(a->norm)},
        {"category", json_text(a->category)},
        {"class_word", json_text(a->class_word)},
        {"notes", json_text(a->notes)},
        {"strength", number_or_null(a->strength)},
        {"preview", json_text(picture)},
        {"copied", json_boolean(a->copied)},
        {"source", json_text(a->source)},
        {"missing", json_boolean(a->missing != 0)},
        {"added", json_integer(a->added)},
    };
    for (size_t i = 0; i < sizeof fields / sizeof *fields; i++)
        json_object_set_new(j, fields[i].key, fields[i].value);
    free(picture);
    if (put_lists(j, r, a->key, err) < 0) {
        json_decref(j);
        return NULL;
    }
    return j;
}

/* Columns that s takes on a terminal. */
static int width_of(const char *s)
{
    utf8proc_int32_t c;
    int w = 0;
    while (*s) {
        utf8proc_ssize_t n = utf8proc_iterate((const unsigned char *)s, -1, &c);
        w += n > 0 ? utf8proc_charwidth(c) : 1;
        s += n > 0 ? n : 1;
    }
    return w;
}

void adapter_line(const struct repo_adapter *a)
{
    char rank[32] = "", size[32];
    const char *name = shown(a->name);
    int pad = 32 - width_of(name);
    if (a->rank[1] && a->rank[0] != a->rank[1])
        snprintf(rank, sizeof rank, "%d-%d", a->rank[0], a->rank[1]);
    else if (a->rank[1])
        snprintf(rank, sizeof rank, "%d", a->rank[1]);
    printf("%s%s%s%*s  %s  %-9s %-14s %6s %8s", colour("bold"), name, colour(""), pad > 0 ? pad : 0,
           "", a->id, a->base, a->kinds, rank, human_bytes(size, sizeof size, (double)a->bytes));
    if (a->missing)
        printf("  %smissing%s", colour("red"), colour(""));
    else if (a->unusable)
        printf("  %snot renderable%s", colour("yellow"), colour(""));
    putchar('\n');
}
