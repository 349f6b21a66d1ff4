/* weft verify: reads every file and compares it with what was added. */
#include "shelf.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define MAX_OPTIONS 4

static void make_options(struct option *o, void *target)
{
    struct shelf *s = target;
    const struct option table[] = {
        SHELF_OPTIONS(s),
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

/* The keys of the names that were given; *n 0: none were. */
static int keys_of(struct shelf *s, int64_t **key, struct err *err)
{
    struct repo_adapter a;
    int rc = 0;
    *key = calloc((size_t)s->n + 1, sizeof **key);
    if (!*key)
        return err_nomem(err, (size_t)s->n * sizeof **key);
    for (int i = 0; i < s->n && rc == 0; i++) {
        rc = repo_need(s->r, s->rest[i], &a, err);
        if (rc == 0)
            (*key)[i] = a.key;
        if (rc == 0)
            repo_adapter_release(&a);
    }
    return rc;
}

static void print_list(const char *what, const char *tone, const struct texts *t)
{
    for (int i = 0; i < t->n; i++)
        printf("%s%-10s%s%s\n", colour(tone), what, colour(""), shown(t->item[i]));
}

static void print(const struct shelf *s, const struct repo_report *p)
{
    if (s->json) {
        json_line(json_pack("{s:I, s:o, s:o, s:o}", "checked", (json_int_t)p->checked, "damaged",
                            texts_json(&p->damaged), "missing", texts_json(&p->missing), "orphaned",
                            texts_json(&p->orphaned)));
        return;
    }
    print_list("damaged", "red", &p->damaged);
    print_list("missing", "red", &p->missing);
    print_list("orphaned", "yellow", &p->orphaned);
    printf("%lld checked, %d damaged, %d missing, %d orphaned\n", (long long)p->checked,
           p->damaged.n, p->missing.n, p->orphaned.n);
}

/* To write is only needed to clear away what a killed program left; a repository that cannot be written
 * is read. */
static int open_either(struct shelf *s, struct err *err)
{
    char *home = repo_home(s->home);
    struct err first;
    int rc = home && repo_exists(home) ? shelf_open(s, REPO_WRITE, &first) : ERR_IO;
    free(home);
    return rc == ERR_IO ? shelf_open(s, REPO_READ, err)
           : rc < 0     ? err_set(err, rc, "%s", first.msg)
                        : 0;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct shelf s = {0};
    struct repo_report p = {0};
    struct option o[MAX_OPTIONS];
    struct err err;
    int64_t *key = NULL;

    (void)self;
    make_options(o, &s);
    cli_catch_stop();
    int rc = shelf_parse(&s, o, argc, argv, 0, -1, "adapters", &err);
    rc = rc < 0 ? rc : open_either(&s, &err);
    rc = rc < 0 ? rc : keys_of(&s, &key, &err);
    progress_start(&s.bar);
    rc = rc < 0 ? rc : repo_verify(s.r, key, s.n, &p, shelf_progress, &s, &err);
    progress_end(&s.bar);
    if (rc == 0)
        print(&s, &p);
    if (rc == 0 && (p.damaged.n || p.missing.n))
        rc = err_set(&err, ERR_FORMAT, "%d damaged, %d missing", p.damaged.n, p.missing.n);
    repo_report_release(&p);
    free(key);
    return shelf_close(&s, rc, &err);
}

const struct command command_verify = {
    .name = "verify",
    .usage = "weft verify [NAME...]",
    .about = "read every file and compare it with what was added",
    .run = run,
    .options = make_options,
    .size = sizeof(struct shelf),
    .more = "Without names: all adapters, and the database itself. The exit code is 1 when "
            "something is\n"
            "damaged or missing. Orphaned are files of ours that no adapter needs; weft gc removes "
            "them.",
};
