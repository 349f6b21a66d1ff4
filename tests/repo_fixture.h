/* repo_fixture.h: a repository in a folder of the test's own.
 *
 *     struct fixture f;
 *     fixture_open(&f);
 *     add(&f, at(&f, "in"), false);
 *     fixture_close(&f);
 */
#ifndef WEFT_TESTS_REPO_FIXTURE_H
#define WEFT_TESTS_REPO_FIXTURE_H

#include "store/repo.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A folder with a repository in it. */
struct fixture {
    char dir[64], home[80];
    struct repo *r;
    struct repo_sum sum;
    struct texts event; /* "status name reason" */
    struct err err;
};

static inline const char *at(const struct fixture *f, const char *name)
{
    static char buf[16][300];
    static int next;
    char *b = buf[next++ % 16];
    snprintf(b, sizeof buf[0], "%s/%s", f->dir, name);
    return b;
}

static inline void reopen(struct fixture *f)
{
    repo_close(f->r);
    cr_assert_eq(repo_open(&f->r, f->home, REPO_WRITE, &f->err), 0, "%s", f->err.msg);
}

static inline void fixture_open(struct fixture *f)
{
    memset(f, 0, sizeof *f);
    strcpy(f->dir, "/tmp/weft-repo-XXXXXX");
    cr_assert(mkdtemp(f->dir), "%s", strerror(errno));
    snprintf(f->home, sizeof f->home, "%s/home", f->dir);
    reopen(f);
}

static inline void fixture_close(struct fixture *f)
{
    char cmd[100];
    repo_close(f->r);
    texts_release(&f->event);
    snprintf(cmd, sizeof cmd, "rm -rf %s", f->dir);
    cr_assert_eq(system(cmd), 0);
}

static inline void on_event(void *user, const struct repo_event *e)
{
    struct fixture *f = user;
    char line[1200];
    snprintf(line, sizeof line, "%s %s %s", e->status, e->name ? e->name : "-",
             e->reason ? e->reason : "");
    texts_add(&f->event, line, &f->err);
}

static inline void add(struct fixture *f, const char *path, bool copy)
{
    struct repo_add how = {.copy = copy, .event = on_event, .user = f};
    texts_release(&f->event);
    cr_assert_eq(repo_add(f->r, &path, 1, &how, &f->sum, &f->err), 0, "%s", f->err.msg);
}

static inline struct repo_adapter get(struct fixture *f, const char *ref)
{
    struct repo_adapter a = {0};
    cr_assert_eq(repo_find(f->r, ref, &a, &f->err), 0, "%s is not found", ref);
    return a;
}

struct hits {
    int n;
    char first[100];
};

static inline int on_row(void *user, const struct repo_adapter *a)
{
    struct hits *h = user;
    if (h->n++ == 0)
        snprintf(h->first, sizeof h->first, "%s", a->name);
    return 0;
}

/* How many a filter lets through; first: the first of them, unless NULL. */
static inline int list(struct fixture *f, struct repo_filter filter, const char *first)
{
    struct hits h = {0};
    cr_assert_eq(repo_list(f->r, &filter, on_row, &h, &f->err), 0, "%s", f->err.msg);
    if (first)
        cr_expect_str_eq(h.first, first);
    return h.n;
}

#endif
