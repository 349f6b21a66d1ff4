/* Looking at all known files and folders again. */
#include "repo_private.h"

#include "unet/file.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Files of the folders that are known, in the order of the folders. */
static int known_folders(struct group *g, struct texts *folders, struct texts *copied,
                         struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = db_query(g->r->db, err, &q, "SELECT path, copy FROM folder ORDER BY path", "");
    while (rc == 0 && (rc = db_next(g->r->db, q, err)) == 1)
        rc = texts_add(sqlite3_column_int(q, 1) ? copied : folders, db_text(q, 0), err);
    db_done(q);
    return rc;
}

/* Rows in place: those that are there are looked at again; those that are gone are listed. */
static int known_files(struct group *g, struct texts *files, struct texts *gone, struct err *err)
{
    sqlite3_stmt *q = NULL;
    struct stat st;
    int rc = db_query(g->r->db, err, &q,
                      "SELECT path FROM adapter WHERE blob IS NULL AND path IS NOT NULL "
                      "ORDER BY key",
                      "");
    while (rc == 0 && (rc = db_next(g->r->db, q, err)) == 1) {
        const char *path = db_text(q, 0);
        rc = texts_add(stat(path, &st) == 0 ? files : gone, path, err);
    }
    db_done(q);
    return rc;
}

/* Marks what was gone before and is nobody's path anymore only if it still is. */
static int mark_missing(struct group *g, const struct texts *gone, struct err *err)
{
    struct repo_adapter a;
    int rc = db_begin(g->r->db, err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < gone->n && rc == 0; i++) {
        rc = row_one(g->r, &a, err, "SELECT " ROW_COLUMNS " FROM adapter WHERE path = ?", "b",
                     gone->item[i]);
        if (rc == 1) { /* relinked */
            rc = 0;
            continue;
        }
        if (rc < 0)
            break;
        struct repo_event e = {gone->item[i], "missing", a.name, a.id, "the file is gone"};
        rc = db_do(g->r->db, err, "UPDATE adapter SET missing = ifnull(missing, ?) WHERE key = ?",
                   "ii", (int64_t)time(NULL), a.key);
        g->sum->missing++;
        if (g->how->event)
            g->how->event(g->how->user, &e);
        repo_adapter_release(&a);
    }
    return db_end(g->r->db, rc, err);
}

static int sync_folders(struct group *g, const struct texts *folders, const char *home,
                        struct texts *files, struct err *err)
{
    struct texts refused = {0};
    int rc = 0;
    for (int i = 0; i < folders->n && rc == 0; i++)
        rc = walk(folders->item[i], home, files, &refused, err);
    for (int i = 0; i < refused.n && rc == 0; i++)
        group_refuse(g, refused.item[i], "cannot be entered, or its path is too long");
    texts_release(&refused);
    texts_resolve(files);
    return rc;
}

/* A row that could not be rendered, looked at by this program's importers. */
static int retry_one(struct group *g, const struct repo_adapter *a, struct err *err)
{
    struct tensor_file *st = NULL;
    struct facts f = {0};
    struct err why;
    int rc = 0;
    if (tensor_file_open(&st, a->path, &why) < 0)
        return 0;
    if (facts_read(&f, st, a->path, &why) == 0 && !f.unusable) {
        struct repo_event e = {a->path, "changed", a->name, a->id, "weft can render it now"};
        rc =
            db_do(g->r->db, err,
                  "UPDATE adapter SET unusable = NULL, format = ?, style = ?, kinds = ?, base = ?, "
                  "context = ?, rank_min = ?, rank_max = ?, sites = ? WHERE key = ?",
                  "ssssiiiii", f.format, f.style, f.kinds, f.base, (int64_t)f.context,
                  (int64_t)f.rank[0], (int64_t)f.rank[1], (int64_t)f.sites, a->key);
        g->sum->changed++;
        if (rc == 0 && g->how->event)
            g->how->event(g->how->user, &e);
    }
    facts_release(&f);
    tensor_file_close(st);
    return rc;
}

/* A newer weft may render what an older one could only keep. */
static int retry_unusable(struct group *g, struct err *err)
{
    sqlite3_stmt *q = NULL;
    struct repo_adapter a;
    int rc = db_begin(g->r->db, err);
    if (rc < 0)
        return rc;
    rc = db_query(
        g->r->db, err, &q,
        "SELECT " ROW_COLUMNS " FROM adapter WHERE unusable IS NOT NULL AND missing IS NULL", "");
    while (rc == 0 && (rc = db_next(g->r->db, q, err)) == 1) {
        rc = row_read(g->r, q, &a, err);
        if (rc < 0)
            break;
        rc = retry_one(g, &a, err);
        repo_adapter_release(&a);
    }
    db_done(q);
    return db_end(g->r->db, rc, err);
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Sorts and drops what is there twice. */
static void unique(struct texts *t)
{
    int k = 0;
    if (t->n)
        qsort(t->item, (size_t)t->n, sizeof *t->item, by_text);
    for (int i = 0; i < t->n; i++) {
        if (k > 0 && !strcmp(t->item[k - 1], t->item[i]))
            free(t->item[i]);
        else
            t->item[k++] = t->item[i];
    }
    t->n = k;
}

int repo_sync(struct repo *r, const struct repo_add *how, struct repo_sum *sum, struct err *err)
{
    struct group g;
    struct texts folders = {0}, copied = {0}, files = {0}, more = {0}, gone = {0};
    struct repo_add in_place = *how, copies = *how;
    char *home = realpath(r->home, NULL);
    int rc = group_open(&g, r, how, sum, err);

    in_place.copy = false;
    copies.copy = true;
    g.sync = true;
    rc = rc < 0 ? rc : known_folders(&g, &folders, &copied, err);
    rc = rc < 0 ? rc : known_files(&g, &files, &gone, err);
    rc = rc < 0 ? rc : sync_folders(&g, &folders, home, &files, err);
    rc = rc < 0 ? rc : sync_folders(&g, &copied, home, &more, err);
    unique(&files);
    unique(&more);
    g.how = &copies;
    rc = rc < 0 ? rc : group_take_files(&g, &more, err);
    g.how = &in_place;
    rc = rc < 0 ? rc : group_take_files(&g, &files, err);
    rc = rc < 0 ? rc : mark_missing(&g, &gone, err);
    rc = rc < 0 ? rc : retry_unusable(&g, err);
    group_close(&g);
    texts_release(&folders);
    texts_release(&copied);
    texts_release(&files);
    texts_release(&more);
    texts_release(&gone);
    free(home);
    return rc;
}
