/* Vectors that encoders of weights give adapters, and where an index of them is kept. */
#include "repo_private.h"

#include "unet/file.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The vector in a column when it is of that length, else NULL. */
static const float *vector_of(sqlite3_stmt *q, int column, int dim)
{
    return sqlite3_column_bytes(q, column) == dim * (int)sizeof(float)
               ? sqlite3_column_blob(q, column)
               : NULL;
}

int repo_embedding(struct repo *r, const char *data_sha256, const char *encoder, float *v, int dim,
                   double *strength, struct err *err)
{
    sqlite3_stmt *q;
    int found = 1;
    int rc = db_query(r->db, err, &q,
                      "SELECT strength, vector FROM embedding WHERE data_sha256 = ? AND "
                      "encoder = ?",
                      "ss", data_sha256, encoder);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    const float *kept = rc == 1 ? vector_of(q, 1, dim) : NULL;
    if (kept || (rc == 1 && sqlite3_column_type(q, 1) == SQLITE_NULL)) {
        found = 0;
        *strength = db_number(q, 0);
        memset(v, 0, (size_t)dim * sizeof *v);
        if (kept)
            memcpy(v, kept, (size_t)dim * sizeof *v);
    }
    db_done(q);
    return rc < 0 ? rc : found;
}

int repo_set_embedding(struct repo *r, const char *data_sha256, const char *encoder, const float *v,
                       int dim, double strength, struct err *err)
{
    bool good = !v || isfinite(strength);
    for (int i = 0; i < dim && v; i++)
        good = good && isfinite(v[i]);
    if (!good)
        return err_set(err, ERR_ARG, "%.12s: an embedding that is no number", data_sha256);
    /* what stays as it was leaves the index as it is */
    return !r->write ? 0
                     : db_do(r->db, err,
                             "INSERT INTO embedding (data_sha256, encoder, strength, vector) "
                             "VALUES (?, ?, ?, ?) ON CONFLICT (data_sha256, encoder) DO UPDATE "
                             "SET strength = excluded.strength, vector = excluded.vector "
                             "WHERE strength IS NOT excluded.strength OR "
                             "vector IS NOT excluded.vector",
                             "ssdv", data_sha256, encoder, v ? strength : (double)NAN, v,
                             (size_t)dim * sizeof *v);
}

int repo_embeddings(struct repo *r, const char *encoder, int dim,
                    int (*each)(void *user, int64_t id, const float *v), void *user,
                    struct err *err)
{
    sqlite3_stmt *q;
    int stop = 0;
    int rc = db_query(r->db, err, &q,
                      "SELECT id, vector FROM embedding WHERE encoder = ? AND vector IS NOT NULL "
                      "ORDER BY id",
                      "s", encoder);
    while (rc >= 0 && !stop && (rc = db_next(r->db, q, err)) == 1) {
        const float *v = vector_of(q, 1, dim);
        stop = v ? each(user, sqlite3_column_int64(q, 0), v) : 0;
    }
    db_done(q);
    return rc < 0 ? rc : 0;
}

int repo_embedding_adapters(struct repo *r, int64_t id,
                            int (*each)(void *user, const struct repo_adapter *a), void *user,
                            struct err *err)
{
    sqlite3_stmt *q;
    int rc = db_query(r->db, err, &q,
                      "SELECT " ROW_COLUMNS " FROM adapter WHERE data_sha256 = "
                      "(SELECT data_sha256 FROM embedding WHERE embedding.id = ?) ORDER BY key",
                      "i", id);
    rc = rc < 0 ? rc : row_each(r, q, each, user, err);
    db_done(q);
    return rc;
}

int repo_embedding_generation(struct repo *r, const char *encoder, int64_t *generation,
                              int64_t *count, struct err *err)
{
    sqlite3_stmt *q;
    int rc =
        db_query(r->db, err, &q,
                 "SELECT generation, vectors FROM embedding_state WHERE encoder = ?", "s", encoder);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    *generation = rc == 1 ? sqlite3_column_int64(q, 0) : 0;
    *count = rc == 1 ? sqlite3_column_int64(q, 1) : 0;
    db_done(q);
    return rc < 0 ? rc : 0;
}

/* ---- who was looked at ----------------------------------------------------------------------- */

#define UNREAD(table, column)                                                                      \
    " FROM adapter WHERE context = ?1 AND unusable IS NULL AND missing IS NULL AND NOT EXISTS "    \
    "(SELECT 1 FROM " table " AS t WHERE t.data_sha256 = adapter.data_sha256 AND t." column        \
    " = ?2)"

int repo_unread(struct repo *r, int context, const char *model, const char *encoder,
                int (*each)(void *user, const struct repo_adapter *a), void *user, struct err *err)
{
    const char *who = encoder ? encoder : model,
               *rest = encoder ? UNREAD("embedding", "encoder") : UNREAD("response", "model");
    char sql[1200];
    sqlite3_stmt *q;
    int64_t all = 0;
    int rc = db_int(r->db, err, &all, 0, "SELECT count(*) FROM looked WHERE who = ?", "s", who);
    if (rc < 0 || all)
        return rc;
    snprintf(sql, sizeof sql, "SELECT " ROW_COLUMNS "%s", rest);
    rc = db_query(r->db, err, &q, sql, "is", (int64_t)context, who);
    rc = rc < 0 ? rc : row_each(r, q, each, user, err);
    db_done(q);
    if (rc < 0 || !r->write)
        return rc;
    snprintf(sql, sizeof sql,
             "INSERT OR IGNORE INTO looked SELECT ?2 WHERE NOT EXISTS (SELECT 1%s)", rest);
    return db_do(r->db, err, sql, "is", (int64_t)context, who);
}

bool repo_writes(const struct repo *r)
{
    return r->write;
}

/* A copy of the bytes in a column, new: 0, or 1 where there are none. */
static int take_bytes(sqlite3_stmt *q, int column, void **out, size_t *size, struct err *err)
{
    int n = sqlite3_column_bytes(q, column);
    *size = n > 0 ? (size_t)n : 0;
    *out = n > 0 ? malloc(*size) : NULL;
    if (n > 0 && !*out)
        return err_nomem(err, *size);
    if (*out)
        memcpy(*out, sqlite3_column_blob(q, column), *size);
    return !*out;
}

int repo_neutral(struct repo *r, const char *model, void **told, size_t *size, struct err *err)
{
    sqlite3_stmt *q;
    *told = NULL;
    *size = 0;
    int rc = db_query(r->db, err, &q, "SELECT told FROM neutral WHERE model = ?", "s", model);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    rc = rc == 1 ? take_bytes(q, 0, told, size, err) : rc < 0 ? rc : 1;
    db_done(q);
    return rc;
}

int repo_set_neutral(struct repo *r, const char *model, const void *told, size_t size,
                     struct err *err)
{
    return !r->write
               ? 0
               : db_do(r->db, err, "INSERT OR REPLACE INTO neutral (model, told) VALUES (?, ?)",
                       "sv", model, told, size);
}

int repo_learnt(struct repo *r, const char *model, char name[HASH_HEX], void **told, size_t *size,
                struct err *err)
{
    sqlite3_stmt *q;
    *told = NULL;
    *size = 0;
    int rc = db_query(r->db, err, &q, "SELECT name, told FROM learnt WHERE model = ?", "s", model);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    if (rc == 1)
        snprintf(name, HASH_HEX, "%s", (const char *)sqlite3_column_text(q, 0));
    rc = rc == 1 ? take_bytes(q, 1, told, size, err) : rc < 0 ? rc : 1;
    db_done(q);
    return rc;
}

int repo_set_learnt(struct repo *r, const char *model, const char *name, const void *told,
                    size_t size, struct err *err)
{
    if (!told)
        return db_do(r->db, err, "DELETE FROM learnt WHERE model = ?", "s", model);
    return db_do(r->db, err, "INSERT OR REPLACE INTO learnt (model, name, told) VALUES (?, ?, ?)",
                 "ssv", model, name, told, size);
}

/* ---- the index ------------------------------------------------------------------------------- */

int repo_index_path(struct repo *r, const char *encoder, char **out, struct err *err)
{
    size_t n = strspn(encoder, "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_");
    char *folder = file_join(r->home, INDEXES);
    int rc = r->write ? 0 : 1;
    *out = NULL;
    if (!n || encoder[n] || n >= HASH_HEX)
        rc = err_set(err, ERR_ARG, "'%.80s' cannot name an encoder", encoder);
    else if (!folder || asprintf(out, "%s/%s" INDEX_ENDING, folder, encoder) < 0)
        rc = err_nomem(err, n);
    else if (r->write)
        mkdir(folder, 0777); /* writing tells */
    free(folder);
    return rc;
}
