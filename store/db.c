#include "db.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define KEPT 96    /* prepared statements */
#define WAIT 30000 /* milliseconds that one waits for another writer */

struct db {
    sqlite3 *sql;
    char *path;
    const struct db_kind *kind;
    sqlite3_stmt *kept[KEPT];
    int next; /* the place that is given up when all are taken */
};

static int fail(struct db *db, struct err *err)
{
    int code = sqlite3_errcode(db->sql);
    switch (code & 0xff) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
        return err_set(err, ERR_FORMAT, "%s: the %s's database is damaged (%s); %s", db->path,
                       db->kind->what, sqlite3_errmsg(db->sql), db->kind->damaged);
    case SQLITE_FULL: return err_set(err, ERR_IO, "%s: the disk is full", db->path);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
        return err_set(err, ERR_IO, "%s: another weft has been writing to it for %d s; try again",
                       db->path, WAIT / 1000);
    case SQLITE_NOMEM: return err_nomem(err, 0);
    case SQLITE_READONLY:
    case SQLITE_PERM:
    case SQLITE_CANTOPEN:
        return err_set(err, ERR_IO, "%s: cannot be %s: %s", db->path,
                       (code & 0xff) == SQLITE_CANTOPEN ? "opened" : "written",
                       sqlite3_system_errno(db->sql) ? strerror(sqlite3_system_errno(db->sql))
                                                     : sqlite3_errmsg(db->sql));
    case SQLITE_IOERR:
        return err_set(err, ERR_IO, "%s: cannot be read or written: %s", db->path,
                       sqlite3_system_errno(db->sql) ? strerror(sqlite3_system_errno(db->sql))
                                                     : sqlite3_errmsg(db->sql));
    default: return err_set(err, ERR_ARG, "%s: %s", db->path, sqlite3_errmsg(db->sql));
    }
}

/* Whether changes lie in the log that are not in the database itself. */
static bool has_log(const struct db *db)
{
    struct stat st;
    char *log = NULL;
    bool there = asprintf(&log, "%s-wal", db->path) < 0 || (stat(log, &st) == 0 && st.st_size > 0);
    free(log);
    return there;
}

/* A repository on a disk that cannot be written is read as it stands, if nothing is in its log. */
static int open_read_only(struct db *db, struct err *err)
{
    if (sqlite3_open_v2(db->path, &db->sql, SQLITE_OPEN_READONLY, NULL) == SQLITE_OK &&
        sqlite3_busy_timeout(db->sql, WAIT) == SQLITE_OK &&
        sqlite3_exec(db->sql, "SELECT 1 FROM sqlite_schema", NULL, NULL, NULL) == SQLITE_OK)
        return 0;
    int rc = fail(db, err), code = sqlite3_errcode(db->sql) & 0xff;
    if ((code != SQLITE_CANTOPEN && code != SQLITE_READONLY && code != SQLITE_IOERR &&
         code != SQLITE_FULL) ||
        has_log(db) || strpbrk(db->path, "%?#"))
        return rc;
    sqlite3_close(db->sql);
    db->sql = NULL;
    char *uri = sqlite3_mprintf("file:%s?immutable=1", db->path);
    if (!uri)
        return err_nomem(err, strlen(db->path));
    if (sqlite3_open_v2(uri, &db->sql, SQLITE_OPEN_READONLY | SQLITE_OPEN_URI, NULL) != SQLITE_OK)
        rc = db->sql ? fail(db, err) : err_nomem(err, 0);
    else
        rc = 0;
    sqlite3_free(uri);
    return rc;
}

/* Going over to a log takes the database alone for a moment, and SQLite does not wait where another does the same. */
static int use_log(struct db *db, struct err *err)
{
    enum { PAUSE = 5 };
    for (int waited = 0;; waited += PAUSE) {
        int code = sqlite3_exec(db->sql, "PRAGMA journal_mode = WAL", NULL, NULL, NULL);
        if (code == SQLITE_OK)
            return 0;
        if (((code & 0xff) != SQLITE_BUSY && (code & 0xff) != SQLITE_LOCKED) || waited >= WAIT)
            return fail(db, err);
        sqlite3_sleep(PAUSE);
    }
}

int db_open(struct db **out, const char *path, bool write, const struct db_kind *kind,
            struct err *err)
{
    struct db *db = calloc(1, sizeof *db);
    int rc = 0;
    *out = NULL;
    if (!db || !(db->path = strdup(path))) {
        free(db);
        return err_nomem(err, sizeof *db);
    }
    db->kind = kind;
    if (!write)
        rc = open_read_only(db, err);
    else if (sqlite3_open_v2(path, &db->sql, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, NULL) !=
             SQLITE_OK)
        rc = db->sql ? fail(db, err) : err_nomem(err, 0);
    if (rc == 0) {
        sqlite3_extended_result_codes(db->sql, 1);
        sqlite3_busy_timeout(db->sql, WAIT);
        rc = db_script(db, "PRAGMA foreign_keys = ON", err);
    }
    rc = rc < 0 || !write ? rc : use_log(db, err);
    if (rc == 0 && write)
        rc = db_script(
            db,
            "PRAGMA synchronous = FULL;"
            " PRAGMA cache_size = -65536", /* KiB at most: hashes go into indexes anywhere */
            err);
    if (rc < 0) {
        db_close(db);
        return rc;
    }
    *out = db;
    return 0;
}

void db_close(struct db *db)
{
    if (!db)
        return;
    for (int i = 0; i < KEPT; i++)
        sqlite3_finalize(db->kept[i]);
    sqlite3_close(db->sql);
    free(db->path);
    free(db);
}

/* ---- migrations ------------------------------------------------------------------------------ */

/* Where migration n begins in the schema, NULL: there is none. */
static const char *migration(const struct db *db, int n)
{
    char mark[40];
    snprintf(mark, sizeof mark, "\n-- migration %d\n", n);
    return strstr(db->kind->schema, mark);
}

static int newest(const struct db *db)
{
    int n = 0;
    while (migration(db, n + 1))
        n++;
    return n;
}

static int version(struct db *db, int *out, struct err *err)
{
    int64_t v = 0;
    int rc = db_int(db, err, &v, 0, "PRAGMA user_version", "");
    *out = (int)v;
    if (rc == 0 && v > newest(db))
        rc = err_set(err, ERR_UNSUPPORTED,
                     "%s: a newer weft made this %s (schema %d, this one knows %d); use "
                     "that one, or %s",
                     db->path, db->kind->what, (int)v, newest(db), db->kind->other);
    return rc;
}

static int migrate_one(struct db *db, int n, struct err *err)
{
    char done[60];
    const char *from = migration(db, n), *to = migration(db, n + 1);
    char *text = to ? strndup(from, (size_t)(to - from)) : strdup(from);
    int rc = text ? db_script(db, text, err) : err_nomem(err, strlen(from));
    snprintf(done, sizeof done, "PRAGMA user_version = %d", n);
    free(text);
    return rc < 0 ? rc : db_script(db, done, err);
}

int db_check_version(struct db *db, struct err *err)
{
    int v = 0;
    int rc = version(db, &v, err);
    if (rc == 0 && v < newest(db))
        rc = err_set(err, ERR_UNSUPPORTED,
                     "%s: an older weft made this %s (schema %d); %s brings it up to date",
                     db->path, db->kind->what, v, db->kind->renew);
    return rc;
}

int db_migrate(struct db *db, struct err *err)
{
    int v = 0, rc = version(db, &v, err);
    if (rc < 0 || v == newest(db))
        return rc;
    rc = db_begin(db, err);
    if (rc < 0)
        return rc;
    rc = version(db, &v, err); /* another may have been quicker */
    while (rc == 0 && v < newest(db))
        rc = migrate_one(db, ++v, err);
    return db_end(db, rc, err);
}

/* ---- statements ------------------------------------------------------------------------------ */

static sqlite3_stmt *find_kept(struct db *db, const char *sql)
{
    for (int i = 0; i < KEPT && db->kept[i]; i++)
        if (!strcmp(sqlite3_sql(db->kept[i]), sql) && !sqlite3_stmt_busy(db->kept[i]))
            return db->kept[i];
    return NULL;
}

static int prepare(struct db *db, sqlite3_stmt **out, const char *sql, struct err *err)
{
    *out = find_kept(db, sql);
    if (*out) {
        sqlite3_reset(*out);
        return 0;
    }
    if (sqlite3_prepare_v3(db->sql, sql, -1, SQLITE_PREPARE_PERSISTENT, out, NULL) != SQLITE_OK)
        return fail(db, err);
    int at = 0;
    while (at < KEPT && db->kept[at])
        at++;
    if (at == KEPT) {
        do
            at = db->next++ % KEPT;
        while (sqlite3_stmt_busy(db->kept[at]));
        sqlite3_finalize(db->kept[at]);
    }
    db->kept[at] = *out;
    return 0;
}

static int bind_one(sqlite3_stmt *q, int i, char type, va_list *ap)
{
    const char *s;
    double d;
    switch (type) {
    case 'i': return sqlite3_bind_int64(q, i, va_arg(*ap, int64_t));
    case 'd':
        d = va_arg(*ap, double);
        return isnan(d) ? sqlite3_bind_null(q, i) : sqlite3_bind_double(q, i, d);
    case 'v':
        s = va_arg(*ap, const char *);
        return sqlite3_bind_blob64(q, i, s, va_arg(*ap, size_t), SQLITE_TRANSIENT);
    case 's': return sqlite3_bind_text(q, i, va_arg(*ap, const char *), -1, SQLITE_TRANSIENT);
    default:
        s = va_arg(*ap, const char *);
        return s ? sqlite3_bind_blob(q, i, s, (int)strlen(s), SQLITE_TRANSIENT)
                 : sqlite3_bind_null(q, i);
    }
}

static int query(struct db *db, struct err *err, sqlite3_stmt **out, const char *sql,
                 const char *types, va_list *ap)
{
    int rc = prepare(db, out, sql, err);
    for (int i = 0; rc == 0 && types[i]; i++)
        if (bind_one(*out, i + 1, types[i], ap) != SQLITE_OK)
            rc = fail(db, err);
    if (rc < 0)
        *out = NULL;
    return rc;
}

int db_query(struct db *db, struct err *err, sqlite3_stmt **out, const char *sql, const char *types,
             ...)
{
    va_list ap;
    va_start(ap, types);
    int rc = query(db, err, out, sql, types, &ap);
    va_end(ap);
    return rc;
}

int db_next(struct db *db, sqlite3_stmt *q, struct err *err)
{
    int rc = sqlite3_step(q);
    if (rc == SQLITE_ROW)
        return 1;
    return rc == SQLITE_DONE ? 0 : fail(db, err);
}

void db_done(sqlite3_stmt *q)
{
    if (q)
        sqlite3_reset(q);
}

int db_do(struct db *db, struct err *err, const char *sql, const char *types, ...)
{
    sqlite3_stmt *q = NULL;
    va_list ap;
    va_start(ap, types);
    int rc = query(db, err, &q, sql, types, &ap);
    va_end(ap);
    while (rc == 0 && (rc = db_next(db, q, err)) == 1)
        rc = 0;
    db_done(q);
    return rc;
}

int db_int(struct db *db, struct err *err, int64_t *out, int64_t none, const char *sql,
           const char *types, ...)
{
    sqlite3_stmt *q = NULL;
    va_list ap;
    va_start(ap, types);
    int rc = query(db, err, &q, sql, types, &ap);
    va_end(ap);
    rc = rc < 0 ? rc : db_next(db, q, err);
    *out = rc == 1 && sqlite3_column_type(q, 0) != SQLITE_NULL ? sqlite3_column_int64(q, 0) : none;
    db_done(q);
    return rc < 0 ? rc : 0;
}

int64_t db_changes(struct db *db)
{
    return sqlite3_changes64(db->sql);
}

int db_script(struct db *db, const char *sql, struct err *err)
{
    return sqlite3_exec(db->sql, sql, NULL, NULL, NULL) == SQLITE_OK ? 0 : fail(db, err);
}

int db_begin(struct db *db, struct err *err)
{
    return db_script(db, "BEGIN IMMEDIATE", err);
}

int db_end(struct db *db, int rc, struct err *err)
{
    if (rc == 0)
        rc = db_script(db, "COMMIT", err);
    if (rc < 0 && !sqlite3_get_autocommit(db->sql))
        sqlite3_exec(db->sql, "ROLLBACK", NULL, NULL, NULL);
    return rc;
}

const char *db_text(sqlite3_stmt *q, int column)
{
    return (const char *)sqlite3_column_text(q, column);
}

char *db_copy(sqlite3_stmt *q, int column)
{
    const char *s = db_text(q, column);
    return s ? strdup(s) : NULL;
}

double db_number(sqlite3_stmt *q, int column)
{
    return sqlite3_column_type(q, column) == SQLITE_NULL ? (double)NAN
                                                         : sqlite3_column_double(q, column);
}
