/* Verifying, collecting what nobody needs, and handing files out. */
#include "repo_private.h"

#include "unet/file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- verify ---------------------------------------------------------------------------------- */

static int complain(struct texts *lines, struct texts *names, const char *name, const char *why,
                    struct err *err)
{
    char *line = NULL;
    if (asprintf(&line, "%s: %s", name, why) < 0)
        return err_nomem(err, strlen(why));
    int rc = texts_add(lines, line, err);
    free(line);
    return rc < 0 || !names ? rc : texts_add(names, name, err);
}

/* Reads one file whole. */
static int verify_one(const struct repo_adapter *a, struct repo_report *out, struct err *err)
{
    char sha[HASH_HEX], *config = NULL;
    struct err why;
    int rc;
    out->checked++;
    if (!file_exists(a->path))
        return complain(&out->missing, &out->names_missing, a->name, a->path, err);
    rc = hash_file(sha, a->path, &why);
    if (rc < 0)
        return complain(&out->damaged, &out->names_damaged, a->name, why.msg, err);
    if (strcmp(sha, a->file_sha256))
        return complain(&out->damaged, &out->names_damaged, a->name,
                        a->copied ? "our copy is not what was added"
                                  : "the file is not what was added; weft sync takes it as it is",
                        err);
    if (!a->config_sha256)
        return 0;
    config = beside_config(a->path);
    rc = config ? hash_file(sha, config, &why) : -1;
    free(config);
    return rc < 0 || strcmp(sha, a->config_sha256)
               ? complain(&out->damaged, &out->names_damaged, a->name,
                          "adapter_config.json is not what was added", err)
               : 0;
}

/* The database's own consistency. */
static int verify_database(struct repo *r, struct repo_report *out, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = db_query(r->db, err, &q, "PRAGMA integrity_check(10)", "");
    while (rc == 0 && (rc = db_next(r->db, q, err)) == 1) {
        rc = 0;
        if (strcmp(db_text(q, 0), "ok"))
            rc = complain(&out->damaged, NULL, "weft.db", db_text(q, 0), err);
    }
    db_done(q);
    q = NULL;
    rc = rc < 0 ? rc : db_query(r->db, err, &q, "PRAGMA foreign_key_check", "");
    while (rc == 0 && (rc = db_next(r->db, q, err)) == 1)
        rc = complain(&out->damaged, NULL, "weft.db", "a row points to one that is not there", err);
    db_done(q);
    return rc;
}

/* Whether a row is of what a file is named after, its name being that and the ending. */
static int is_named(struct repo *r, const char *name, const char *ending, const char *sql,
                    struct err *err)
{
    char stem[HASH_HEX];
    int64_t n = 0;
    size_t len = strlen(name), end = strlen(ending);
    if (len <= end || len - end >= sizeof stem || strcmp(name + len - end, ending))
        return 0;
    snprintf(stem, sizeof stem, "%.*s", (int)(len - end), name);
    int rc = db_int(r->db, err, &n, 0, sql, "s", stem);
    return rc < 0 ? rc : n == 1;
}

/* Whether a row needs this file of ours, named from home on. */
static int is_needed(struct repo *r, const char *path, struct err *err)
{
    int64_t n = 0;
    char weights[PATH_MAX];
    if (!strncmp(path, PREVIEWS "/", sizeof PREVIEWS))
        return is_named(r, path + sizeof PREVIEWS, ".png",
                        "SELECT 1 FROM adapter WHERE data_sha256 = ?", err);
    if (!strncmp(path, INDEXES "/", sizeof INDEXES))
        return is_named(r, path + sizeof INDEXES, INDEX_ENDING,
                        "SELECT 1 FROM embedding_state WHERE encoder = ? AND vectors > 0", err);
    const char *config = strstr(path, "/adapter_config.json");
    snprintf(weights, sizeof weights, "%.*s%s", config ? (int)(config - path) : (int)strlen(path),
             path, config ? "/adapter_model.safetensors" : "");
    int rc = db_int(r->db, err, &n, 0, "SELECT 1 FROM adapter WHERE blob = ?", "s", weights);
    return rc < 0 ? rc : n == 1;
}

/* All files below dir (home/rel) that no row needs, to out. */
static int find_orphans(struct repo *r, const char *rel, struct texts *out, int depth,
                        struct err *err)
{
    char *full = file_join(r->home, rel);
    DIR *d = full ? opendir(full) : NULL;
    int rc = full ? 0 : err_nomem(err, strlen(rel));
    for (struct dirent *e; d && rc == 0 && (e = readdir(d));) {
        char *path =
            !strcmp(e->d_name, ".") || !strcmp(e->d_name, "..") ? NULL : file_join(rel, e->d_name);
        char *whole = path ? file_join(r->home, path) : NULL;
        if (whole && file_kind(whole) == 2 && depth < 3)
            rc = find_orphans(r, path, out, depth + 1, err);
        else if (whole && (rc = is_needed(r, path, err)) == 0)
            rc = texts_add(out, path, err);
        rc = rc > 0 ? 0 : rc;
        free(path);
        free(whole);
    }
    if (d)
        closedir(d);
    free(full);
    return rc;
}

static int find_all_orphans(struct repo *r, struct texts *out, struct err *err)
{
    static const char *const folders[] = {"blobs", PREVIEWS, INDEXES};
    int rc = 0;
    for (size_t i = 0; i < sizeof folders / sizeof *folders && rc == 0; i++)
        rc = find_orphans(r, folders[i], out, 0, err);
    return rc;
}

/* A first look without the lock; what seems orphaned is looked at again under it, when no adder is
 * between a file's name and its row. */
static int verify_orphans(struct repo *r, struct repo_report *out, struct err *err)
{
    struct texts seen = {0};
    int rc = find_all_orphans(r, &seen, err);
    if (rc == 0 && seen.n) {
        rc = repo_lock(r, true, err);
        for (int i = 0; i < seen.n && rc == 0; i++) {
            char *whole = file_join(r->home, seen.item[i]);
            rc = is_needed(r, seen.item[i], err);
            if (rc == 0 && whole && file_exists(whole))
                rc = texts_add(&out->orphaned, seen.item[i], err);
            rc = rc > 0 ? 0 : rc;
            free(whole);
        }
        repo_unlock(r);
    }
    texts_release(&seen);
    return rc;
}

/* Keys of all rows, so that none is held open while files are read. */
static int all_keys(struct repo *r, int64_t **key, int *n, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int64_t count = 0;
    int rc = repo_count(r, &count, err);
    *n = 0;
    *key = rc < 0 ? NULL : malloc(((size_t)count + 1) * sizeof **key);
    if (rc == 0 && !*key)
        rc = err_nomem(err, (size_t)count * sizeof **key);
    rc = rc < 0 ? rc : db_query(r->db, err, &q, "SELECT key FROM adapter ORDER BY key", "");
    while (rc == 0 && *n < count && (rc = db_next(r->db, q, err)) == 1) {
        (*key)[(*n)++] = sqlite3_column_int64(q, 0);
        rc = 0;
    }
    db_done(q);
    return rc;
}

static int verify_key(struct repo *r, int64_t key, struct repo_report *out, struct err *err)
{
    struct repo_adapter a;
    int rc = repo_at(r, key, &a, err);
    if (rc != 0) /* 1: removed meanwhile */
        return rc < 0 ? rc : 0;
    rc = verify_one(&a, out, err);
    repo_adapter_release(&a);
    return rc;
}

int repo_verify(struct repo *r, const int64_t *key, int n, struct repo_report *out,
                int (*progress)(void *user, int done, int total), void *user, struct err *err)
{
    int64_t *all = NULL;
    int rc = 0;
    memset(out, 0, sizeof *out);
    if (!n) {
        rc = verify_database(r, out, err);
        rc = rc < 0 ? rc : verify_orphans(r, out, err);
        rc = rc < 0 ? rc : all_keys(r, &all, &n, err);
        key = all;
    }
    for (int i = 0; i < n && rc == 0; i++) {
        rc = verify_key(r, key[i], out, err);
        if (rc == 0 && progress && progress(user, i + 1, n))
            rc = err_set(err, ERR_STOPPED, "stopped after %d of %d adapters", i + 1, n);
    }
    free(all);
    return rc;
}

void repo_report_release(struct repo_report *p)
{
    texts_release(&p->damaged);
    texts_release(&p->missing);
    texts_release(&p->orphaned);
    texts_release(&p->names_damaged);
    texts_release(&p->names_missing);
}

/* ---- gc -------------------------------------------------------------------------------------- */

static int remove_orphans(struct repo *r, bool dry, struct texts *removed, int64_t *bytes,
                          struct err *err)
{
    struct stat st;
    int rc = find_all_orphans(r, removed, err);
    for (int i = 0; i < removed->n && rc == 0; i++) {
        char *whole = file_join(r->home, removed->item[i]), *slash;
        if (!whole)
            return err_nomem(err, strlen(removed->item[i]));
        if (stat(whole, &st) == 0)
            *bytes += st.st_size;
        if (!dry && unlink(whole) < 0 && errno != ENOENT)
            rc = err_set(err, ERR_IO, "%s: cannot be removed: %s", whole, strerror(errno));
        if (!dry && (slash = strrchr(whole, '/'))) {
            *slash = 0;
            rmdir(whole); /* a folder with a PEFT config, when it is empty */
        }
        free(whole);
    }
    return rc;
}

int repo_gc(struct repo *r, bool dry, struct texts *removed, int64_t *bytes, struct err *err)
{
    *bytes = 0;
    int rc = repo_lock(r, true, err);
    if (rc < 0)
        return rc;
    if (!dry)
        rc = db_do(
            r->db, err,
            "DELETE FROM embedding WHERE data_sha256 NOT IN (SELECT data_sha256 FROM adapter)", "");
    rc = rc < 0 ? rc : remove_orphans(r, dry, removed, bytes, err);
    if (rc == 0 && !dry)
        rc = db_do(r->db, err,
                   "DELETE FROM blob WHERE path NOT IN (SELECT blob FROM adapter WHERE blob IS "
                   "NOT NULL)",
                   "");
    repo_unlock(r);
    return rc;
}

/* ---- previews -------------------------------------------------------------------------------- */

static char *preview_of(const struct repo *r, const struct repo_adapter *a)
{
    char *path = NULL;
    return asprintf(&path, "%s/" PREVIEWS "/%s.png", r->home, a->data_sha256) < 0 ? NULL : path;
}

char *repo_preview(const struct repo *r, const struct repo_adapter *a)
{
    char *path = r ? preview_of(r, a) : NULL;
    if (path && file_exists(path))
        return path;
    free(path);
    return a->preview && file_exists(a->preview) ? strdup(a->preview) : NULL;
}

int repo_preview_path(const struct repo *r, const struct repo_adapter *a, char **out,
                      struct err *err)
{
    char *dir = file_join(r->home, PREVIEWS);
    *out = dir ? preview_of(r, a) : NULL;
    int rc = *out ? 0 : err_nomem(err, 64);
    if (rc == 0 && mkdir(dir, 0777) < 0 && errno != EEXIST)
        rc = err_set(err, ERR_IO, "%s: %s", dir, strerror(errno));
    free(dir);
    return rc;
}

/* ---- profiles -------------------------------------------------------------------------------- */

int repo_profile(struct repo *r, const char *data_sha256, const char *model, double *high,
                 struct err *err)
{
    sqlite3_stmt *q;
    int rc =
        db_query(r->db, err, &q, "SELECT high FROM profile WHERE data_sha256 = ? AND model = ?",
                 "ss", data_sha256, model);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    if (rc == 1)
        *high = db_number(q, 0);
    db_done(q);
    return rc < 0 ? rc : !rc;
}

int repo_set_profile(struct repo *r, const char *data_sha256, const char *model, double high,
                     struct err *err)
{
    sqlite3_stmt *q;
    int rc = db_query(r->db, err, &q,
                      "INSERT OR REPLACE INTO profile (data_sha256, model, high) VALUES (?, ?, ?)",
                      "ssd", data_sha256, model, high);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    db_done(q);
    return rc < 0 ? rc : 0;
}

/* ---- answers to texts ------------------------------------------------------------------------ */

int repo_response(struct repo *r, const char *data_sha256, const char *model, double *plain,
                  float *row, size_t n, struct err *err)
{
    sqlite3_stmt *q;
    int rc = db_query(r->db, err, &q,
                      "SELECT plain, vectors FROM response WHERE data_sha256 = ? AND model = ?",
                      "ss", data_sha256, model);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    if (rc == 1 && sqlite3_column_bytes(q, 1) == (int)(n * sizeof *row)) {
        *plain = db_number(q, 0);
        memcpy(row, sqlite3_column_blob(q, 1), n * sizeof *row);
    } else if (rc == 1) {
        rc = 0; /* of another version: as if it was not there */
    }
    db_done(q);
    return rc < 0 ? rc : !rc;
}

int repo_responses(struct repo *r, const char *model, size_t n, int limit,
                   int (*each)(void *user, double plain, const float *row), void *user,
                   struct err *err)
{
    sqlite3_stmt *q;
    int stop = 0;
    int rc = db_query(r->db, err, &q,
                      "SELECT plain, vectors FROM response WHERE model = ? AND plain IS NOT NULL "
                      "ORDER BY data_sha256 LIMIT ?",
                      "si", model, (int64_t)limit);
    while (rc >= 0 && !stop && (rc = db_next(r->db, q, err)) == 1)
        if (sqlite3_column_bytes(q, 1) == (int)(n * sizeof(float)))
            stop = each(user, db_number(q, 0), sqlite3_column_blob(q, 1));
    db_done(q);
    return rc < 0 ? rc : 0;
}

int repo_set_response(struct repo *r, const char *data_sha256, const char *model, double plain,
                      const float *row, size_t n, struct err *err)
{
    return !r->write ? 0
                     : db_do(r->db, err,
                             "INSERT OR REPLACE INTO response (data_sha256, model, plain, vectors) "
                             "VALUES (?, ?, ?, ?)",
                             "ssdv", data_sha256, model, plain, row, n * sizeof *row);
}

/* ---- export ---------------------------------------------------------------------------------- */

static int copy_out(const char *from, const char *sha256, const char *to, struct err *err)
{
    struct stat st;
    char sha[HASH_HEX];
    void *map = NULL;
    int rc = 0, fd = open(from, O_RDONLY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        rc = err_set(err, ERR_IO, "%s: %s", from, strerror(errno));
    } else if (st.st_size > 0) {
        map = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            rc = err_set(err, ERR_IO, "%s: cannot be mapped: %s", from, strerror(errno));
    }
    rc = rc < 0 ? rc : hash_bytes(sha, map, (size_t)st.st_size, err);
    if (rc == 0 && strcmp(sha, sha256))
        rc = err_set(err, ERR_MISMATCH, "%s: is not what was added; weft verify tells more", from);
    rc = rc < 0 ? rc : file_replace(to, map, (size_t)st.st_size, err);
    if (map && map != MAP_FAILED)
        munmap(map, (size_t)st.st_size);
    if (fd >= 0)
        close(fd);
    return rc;
}

/* A PEFT adapter is two files. */
static int export_folder(const struct repo_adapter *a, const char *to, struct err *err)
{
    char *config = beside_config(a->path), *weights = file_join(to, "adapter_model.safetensors");
    char *json = file_join(to, "adapter_config.json");
    int rc = weights && json ? 0 : err_nomem(err, strlen(to));
    if (rc == 0 && !config)
        rc = err_set(err, ERR_IO, "%s: its adapter_config.json is gone from beside %s", a->name,
                     a->path);
    if (rc == 0 && mkdir(to, 0777) < 0 && (errno != EEXIST || file_kind(to) != 2))
        rc = err_set(err, ERR_IO,
                     "%s: cannot be made: %s; this adapter has a PEFT config and becomes a folder",
                     to, strerror(errno));
    rc = rc < 0 ? rc : copy_out(config, a->config_sha256, json, err);
    rc = rc < 0 ? rc : copy_out(a->path, a->file_sha256, weights, err);
    free(config);
    free(weights);
    free(json);
    return rc;
}

int repo_export(struct repo *r, const struct repo_adapter *a, const char *to, struct err *err)
{
    (void)r;
    return a->config_sha256 ? export_folder(a, to, err)
                            : copy_out(a->path, a->file_sha256, to, err);
}
