/* db.h: the few things weft asks of SQLite, with weft's errors. Only store/ includes it.
 *
 *     sqlite3_stmt *q;
 *     rc = db_query(db, err, &q, "SELECT name FROM adapter WHERE base = ?", "s", "sd1");
 *     while (rc == 0 && (rc = db_next(db, q, err)) == 1)
 *         rc = texts_add(&names, db_text(q, 0), err);
 *     db_done(q);
 *
 * Statements are prepared once and kept. `types` has a letter a parameter: i int64_t, d double (NaN is
 * NULL), s text or NULL, b the same stored as bytes (paths), v a pointer and a size_t of bytes.
 */
#ifndef WEFT_DB_H
#define WEFT_DB_H

#include "unet/err.h"

#include <sqlite3.h>
#include <stdbool.h>
#include <stdint.h>

struct db;

/* What a database is. */
struct db_kind {
    /* Its migrations as one text. Each begins with a line "-- migration N", N from 1 up, runs once, and then PRAGMA
     * user_version is N. */
    const char *schema;
    const char *what;    /* how people call it */
    const char *damaged; /* what to do when it is damaged */
    const char *other;   /* what to use instead of one that a newer weft made */
    const char *renew;   /* what brings an older one up to date */
};

/* Opens path; write: it may be changed, and is made when it is not there. Kept statements and the
 * connection are released by db_close, which takes NULL. kind is kept as long. */
int db_open(struct db **out, const char *path, bool write, const struct db_kind *kind,
            struct err *err);
void db_close(struct db *db);
/* Brings the schema to the newest migration. A newer one than this program knows is refused. */
int db_migrate(struct db *db, struct err *err);
/* Checks the schema's number of a database that is only read. */
int db_check_version(struct db *db, struct err *err);

/* Binds a statement. Between db_query and db_done it is busy. */
int db_query(struct db *db, struct err *err, sqlite3_stmt **out, const char *sql, const char *types,
             ...);
/* 1: a row is there; 0: no more; negative: an error. */
int db_next(struct db *db, sqlite3_stmt *q, struct err *err);
void db_done(sqlite3_stmt *q);

/* Runs a statement that gives no rows, or whose rows do not matter. */
int db_do(struct db *db, struct err *err, const char *sql, const char *types, ...);
/* The first column of the first row, or `none`. */
int db_int(struct db *db, struct err *err, int64_t *out, int64_t none, const char *sql,
           const char *types, ...);
/* Rows that the last statement changed. */
int64_t db_changes(struct db *db);
/* Runs statements as they are, several in one text. */
int db_script(struct db *db, const char *sql, struct err *err);

/* Write transactions. db_end commits when rc is 0 and rolls back otherwise; it returns rc or the commit's
 * error. */
int db_begin(struct db *db, struct err *err);
int db_end(struct db *db, int rc, struct err *err);

/* A column as text, borrowed until the next step; NULL where it is NULL. */
const char *db_text(sqlite3_stmt *q, int column);
/* The same as a new string; NULL also when there is no memory. */
char *db_copy(sqlite3_stmt *q, int column);
/* NaN where it is NULL. */
double db_number(sqlite3_stmt *q, int column);

#endif
