/* What a user says of an adapter, and the models that are known. */
#include "repo_private.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <utf8proc.h>

#define TEXT_MAX_BYTES 65536

/* Words that go into the database are text of one sane length. */
static int check_text(const char *s, size_t most, const char *what, struct err *err)
{
    size_t n = strlen(s);
    utf8proc_int32_t c;
    if (n > most)
        return err_set(err, ERR_ARG, "%s of %zu bytes is too long; at most %zu", what, n, most);
    for (size_t i = 0; i < n;) {
        utf8proc_ssize_t k =
            utf8proc_iterate((const unsigned char *)s + i, (utf8proc_ssize_t)(n - i), &c);
        if (k <= 0)
            return err_set(err, ERR_ARG, "%s is not UTF-8: %s", what, s);
        i += (size_t)k;
    }
    return 0;
}

static int check_name(struct repo *r, int64_t key, const char *name, struct err *err)
{
    int64_t other = 0;
    int rc = check_text(name, 200, "a name", err);
    for (const char *p = name; rc == 0 && *p; p++)
        if ((unsigned char)*p < 32 || *p == 127 || *p == '/')
            rc =
                err_set(err, ERR_ARG, "a name cannot hold slashes or control characters: %s", name);
    if (rc == 0 && !*name)
        rc = err_set(err, ERR_ARG, "a name cannot be empty");
    rc = rc < 0
             ? rc
             : db_int(r->db, err, &other, 0, "SELECT key FROM adapter WHERE name = ?", "s", name);
    if (rc == 0 && other && other != key)
        rc = err_set(err, ERR_MISMATCH, "%s: another adapter has this name", name);
    return rc;
}

int repo_set(struct repo *r, int64_t key, enum repo_field field, const char *text, struct err *err)
{
    static const char *const sql[] = {
        [REPO_NAME] = "UPDATE adapter SET name = ? WHERE key = ?",
        [REPO_CATEGORY] = "UPDATE adapter SET category = ? WHERE key = ?",
        [REPO_CLASS_WORD] = "UPDATE adapter SET class_word = ? WHERE key = ?",
        [REPO_NOTES] = "UPDATE adapter SET notes = ? WHERE key = ?",
    };
    int rc = field == REPO_NAME ? check_name(r, key, text ? text : "", err)
             : text             ? check_text(text, TEXT_MAX_BYTES, "a text", err)
                                : 0;
    rc = rc < 0 ? rc : db_do(r->db, err, sql[field], "si", text && *text ? text : NULL, key);
    return rc < 0 ? rc : row_index(r, key, err);
}

int repo_set_strength(struct repo *r, int64_t key, double strength, struct err *err)
{
    return db_do(r->db, err, "UPDATE adapter SET strength = ? WHERE key = ?", "di", strength, key);
}

int repo_tag(struct repo *r, int64_t key, const char *tag, bool on, struct err *err)
{
    int rc = check_text(tag, 200, "a tag", err);
    if (rc == 0 && !*tag)
        rc = err_set(err, ERR_ARG, "a tag cannot be empty");
    rc = rc < 0 ? rc
                : db_do(r->db, err,
                        on ? "INSERT OR IGNORE INTO tag VALUES (?, ?)"
                           : "DELETE FROM tag WHERE name = ? AND adapter = ?",
                        "si", tag, key);
    return rc < 0 ? rc : row_index(r, key, err);
}

int repo_trigger(struct repo *r, int64_t key, const char *words, struct err *err)
{
    int rc = words ? check_text(words, 1000, "a group of triggers", err) : 0;
    if (rc == 0)
        rc = db_do(r->db, err,
                   "DELETE FROM trigger_group WHERE adapter = ?1 AND NOT candidate AND "
                   "(?2 IS NULL OR words = ?2)",
                   "is", key, words);
    if (rc == 0 && words && *words)
        rc = db_do(r->db, err,
                   "INSERT INTO trigger_group SELECT ?1, ifnull(max(position), 0) + 1, ?2, 0, "
                   "'user' FROM trigger_group WHERE adapter = ?1",
                   "is", key, words);
    return rc < 0 ? rc : row_index(r, key, err);
}

int repo_remove(struct repo *r, int64_t key, struct err *err)
{
    int rc = db_do(r->db, err, "DELETE FROM words WHERE rowid = ?", "i", key);
    return rc < 0 ? rc : db_do(r->db, err, "DELETE FROM adapter WHERE key = ?", "i", key);
}

int repo_forget_folder(struct repo *r, const char *path, struct err *err)
{
    int64_t known = 0;
    int rc = db_int(r->db, err, &known, 0, "SELECT 1 FROM folder WHERE path = ?", "b", path);
    if (rc < 0 || !known)
        return rc < 0 ? rc : 1;
    return db_do(r->db, err, "DELETE FROM folder WHERE path = ?", "b", path);
}

/* ---- models ---------------------------------------------------------------------------------- */

void repo_model_release(struct repo_model *m)
{
    free(m->name);
    free(m->path);
    free(m->fingerprint);
    memset(m, 0, sizeof *m);
}

static int read_model(sqlite3_stmt *q, struct repo_model *m, struct err *err)
{
    *m = (struct repo_model){db_copy(q, 0), db_copy(q, 1), db_copy(q, 2), sqlite3_column_int(q, 3),
                             sqlite3_column_int64(q, 4)};
    if (m->name && m->path && m->fingerprint)
        return 0;
    repo_model_release(m);
    return err_nomem(err, 256);
}

int repo_model_add(struct repo *r, const struct repo_model *m, struct err *err)
{
    int64_t other = 0;
    int rc = check_text(m->name, 200, "a name", err);
    if (rc == 0 && (!*m->name || strchr(m->name, '/')))
        rc = err_set(err, ERR_ARG, "a model's name cannot be empty or hold slashes");
    rc = rc < 0 ? rc
                : db_int(r->db, err, &other, 0, "SELECT 1 FROM model WHERE name = ? AND path <> ?",
                         "sb", m->name, m->path);
    if (rc == 0 && other)
        return err_set(err, ERR_MISMATCH, "%s: another model has this name; --name gives one",
                       m->name);
    rc = rc < 0 ? rc : db_do(r->db, err, "DELETE FROM model WHERE path = ?", "b", m->path);
    return rc < 0 ? rc
                  : db_do(r->db, err, "INSERT INTO model VALUES (?, ?, ?, ?, ?)", "sbsii", m->name,
                          m->path, m->fingerprint, (int64_t)m->context, (int64_t)time(NULL));
}

int repo_model_find(struct repo *r, const char *name, struct repo_model *out, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = db_query(r->db, err, &q,
                      "SELECT name, path, fingerprint, context, added FROM model WHERE name = ?",
                      "s", name);
    memset(out, 0, sizeof *out);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    rc = rc == 1 ? read_model(q, out, err) : rc == 0 ? 1 : rc;
    db_done(q);
    return rc;
}

int repo_model_list(struct repo *r, int (*each)(void *user, const struct repo_model *m), void *user,
                    struct err *err)
{
    sqlite3_stmt *q = NULL;
    struct repo_model m;
    int stop = 0;
    int rc =
        db_query(r->db, err, &q,
                 "SELECT name, path, fingerprint, context, added FROM model ORDER BY name", "");
    while (rc == 0 && !stop && (rc = db_next(r->db, q, err)) == 1) {
        rc = read_model(q, &m, err);
        if (rc < 0)
            break;
        stop = each(user, &m);
        repo_model_release(&m);
    }
    db_done(q);
    return rc < 0 ? rc : 0;
}

int repo_model_remove(struct repo *r, const char *name, struct err *err)
{
    return db_do(r->db, err, "DELETE FROM model WHERE name = ?", "s", name);
}
