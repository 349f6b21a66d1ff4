/* Opening and closing the repository, its lock, and lists of texts. */
#include "repo_private.h"

#include "unet/file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

/* The schema, made of schema.sql by the Makefile. */
static const char schema[] = {
#include "store/schema.inc"
    0};
static const struct db_kind kind = {
    .schema = schema,
    .what = "repository",
    .damaged = "the adapter files are not touched by that: move it away and add them again",
    .other = "another --home",
    .renew = "any command that writes, such as weft sync,",
};

/* ---- where ----------------------------------------------------------------------------------- */

char *repo_home(const char *given)
{
    const char *env = getenv("WEFT_HOME"), *data = getenv("XDG_DATA_HOME"), *home = getenv("HOME");
    if (given || (env && *env))
        return strdup(given ? given : env);
    if (data && *data == '/')
        return file_join(data, "weft");
    return file_join(home && *home ? home : "/", ".local/share/weft");
}

bool repo_exists(const char *home)
{
    char *path = file_join(home, "weft.db");
    bool there = path && file_exists(path);
    free(path);
    return there;
}

static int make_home(struct repo *r, struct err *err)
{
    static const char note[] = "Files that weft keeps. Change nothing here by hand.\n";
    char *readme = file_join(r->home, "README");
    int rc = readme ? file_make_folders(r->home, err) : err_nomem(err, 64);
    rc = rc < 0 ? rc : file_make_folders(r->blobs, err);
    rc = rc < 0 ? rc : file_make_folders(r->stages, err);
    if (rc == 0 && !file_exists(readme))
        rc = file_replace(readme, note, sizeof note - 1, err);
    free(readme);
    return rc;
}

static int open_lock(struct repo *r, struct err *err)
{
    char *path = file_join(r->home, "lock");
    int rc = path ? 0 : err_nomem(err, 64);
    if (path)
        r->lock = open(path, (r->write ? O_RDWR | O_CREAT : O_RDONLY) | O_CLOEXEC, 0666);
    if (path && r->lock < 0 && r->write)
        rc = err_set(err, ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
    free(path);
    return rc;
}

/* A new database is made in the stage and appears whole. Another that was quicker stays. */
static int make_database(struct repo *r, const char *file, struct err *err)
{
    struct stage *s = NULL;
    struct db *db = NULL;
    char *temp = NULL;
    int rc = stage_open(&s, r, err);
    if (rc == 0 && !(temp = file_join(stage_folder(s), "weft.db")))
        rc = err_nomem(err, 64);
    rc = rc < 0 ? rc : db_open(&db, temp, true, &kind, err);
    rc = rc < 0 ? rc : db_migrate(db, err);
    rc = rc < 0 ? rc : db_script(db, "PRAGMA wal_checkpoint(TRUNCATE)", err); /* all in one file */
    db_close(db);
    if (rc == 0 && renameat2(AT_FDCWD, temp, AT_FDCWD, file, RENAME_NOREPLACE) < 0 &&
        errno != EEXIST && (errno != EINVAL || rename(temp, file) < 0))
        rc = err_set(err, ERR_IO, "%s: cannot be made: %s", file, strerror(errno));
    int fd = rc < 0 ? -1 : open(r->home, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (rc == 0 && (fd < 0 || fsync(fd) < 0))
        rc = err_set(err, ERR_IO, "%s: cannot be written: %s", r->home, strerror(errno));
    if (fd >= 0)
        close(fd);
    free(temp);
    stage_close(s);
    return rc;
}

int repo_open(struct repo **out, const char *home, enum repo_mode mode, struct err *err)
{
    struct repo *r = calloc(1, sizeof *r);
    char *file = NULL;
    int rc = 0;

    *out = NULL;
    if (!r)
        return err_nomem(err, sizeof *r);
    r->lock = -1;
    r->write = mode == REPO_WRITE;
    r->home = strdup(home);
    r->blobs = file_join(home, "blobs");
    r->stages = file_join(home, "stage");
    file = file_join(home, "weft.db");
    if (!r->home || !r->blobs || !r->stages || !file)
        rc = err_nomem(err, strlen(home));
    if (rc == 0 && !r->write && !file_exists(file))
        rc = err_set(err, ERR_IO, "%s: no repository there yet; weft add FILE makes one", home);
    if (rc == 0 && r->write)
        rc = make_home(r, err);
    rc = rc < 0 ? rc : open_lock(r, err);
    if (rc == 0 && r->write && !file_exists(file))
        rc = make_database(r, file, err);
    rc = rc < 0 ? rc : db_open(&r->db, file, r->write, &kind, err);
    if (rc == 0)
        rc = r->write ? db_migrate(r->db, err) : db_check_version(r->db, err);
    if (rc == 0 && r->write)
        rc = stage_recover(r, err);
    free(file);
    if (rc < 0) {
        repo_close(r);
        return rc;
    }
    *out = r;
    return 0;
}

void repo_close(struct repo *r)
{
    if (!r)
        return;
    db_close(r->db);
    if (r->lock >= 0)
        close(r->lock);
    free(r->home);
    free(r->blobs);
    free(r->stages);
    free(r);
}

int repo_lock(struct repo *r, bool exclusive, struct err *err)
{
    int rc;
    if (r->lock < 0)
        return 0;
    do
        rc = flock(r->lock, exclusive ? LOCK_EX : LOCK_SH);
    while (rc < 0 && errno == EINTR);
    return rc < 0 ? err_set(err, ERR_IO, "%s/lock: cannot be locked: %s", r->home, strerror(errno))
                  : 0;
}

void repo_unlock(struct repo *r)
{
    if (r->lock >= 0)
        flock(r->lock, LOCK_UN);
}

int repo_begin(struct repo *r, struct err *err)
{
    return db_begin(r->db, err);
}

int repo_end(struct repo *r, int rc, struct err *err)
{
    return db_end(r->db, rc, err);
}

int repo_count(struct repo *r, int64_t *adapters, struct err *err)
{
    return db_int(r->db, err, adapters, 0, "SELECT count(*) FROM adapter", "");
}

/* ---- texts ----------------------------------------------------------------------------------- */

int texts_add(struct texts *t, const char *s, struct err *err)
{
    if ((t->n & (t->n - 1)) == 0) { /* full at powers of two */
        char **p = realloc(t->item, (size_t)(t->n ? 2 * t->n : 1) * sizeof *p);
        if (!p)
            return err_nomem(err, (size_t)t->n * sizeof *p);
        t->item = p;
    }
    char *copy = strdup(s);
    if (!copy)
        return err_nomem(err, strlen(s));
    t->item[t->n++] = copy;
    return 0;
}

bool texts_have(const struct texts *t, const char *s)
{
    for (int i = 0; i < t->n; i++)
        if (!strcmp(t->item[i], s))
            return true;
    return false;
}

void texts_release(struct texts *t)
{
    for (int i = 0; i < t->n; i++)
        free(t->item[i]);
    free(t->item);
    t->item = NULL;
    t->n = 0;
}
