/* Rows of adapters: read, written, renewed, and their words brought to the search. */
#include "repo_private.h"

#include "unet/file.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <utf8proc.h>

#define NAME_MAX_BYTES 200

/* ---- reading --------------------------------------------------------------------------------- */

int row_read(struct repo *r, sqlite3_stmt *q, struct repo_adapter *a, struct err *err)
{
    char *blob = db_copy(q, 4);
    memset(a, 0, sizeof *a);
    a->key = sqlite3_column_int64(q, 0);
    struct {
        char **to;
        int column;
    } text[] = {
        {&a->id, 1},          {&a->name, 2},          {&a->source, 3},         {&a->file_sha256, 7},
        {&a->data_sha256, 8}, {&a->declared_hash, 9}, {&a->config_sha256, 10}, {&a->format, 11},
        {&a->style, 12},      {&a->kinds, 13},        {&a->base, 14},          {&a->unusable, 16},
        {&a->dtype, 21},      {&a->category, 23},     {&a->class_word, 24},    {&a->notes, 25},
        {&a->preview, 27}};
    int bad = 0;
    for (size_t i = 0; i < sizeof text / sizeof *text; i++) {
        *text[i].to = db_copy(q, text[i].column);
        bad |= !*text[i].to && sqlite3_column_type(q, text[i].column) != SQLITE_NULL;
    }
    a->copied = blob != NULL;
    a->path = blob ? file_join(r->home, blob) : a->source ? strdup(a->source) : NULL;
    free(blob);
    a->bytes = sqlite3_column_int64(q, 5);
    a->mtime = sqlite3_column_int64(q, 6);
    a->context = sqlite3_column_int(q, 15);
    a->rank[0] = sqlite3_column_int(q, 17);
    a->rank[1] = sqlite3_column_int(q, 18);
    a->sites = sqlite3_column_int(q, 19);
    a->tensors = sqlite3_column_int(q, 20);
    a->norm = db_number(q, 22);
    a->strength = db_number(q, 26);
    a->missing = sqlite3_column_int64(q, 28);
    a->added = sqlite3_column_int64(q, 29);
    if (bad || !a->path) {
        repo_adapter_release(a);
        return err_nomem(err, 1024);
    }
    return 0;
}

void repo_adapter_release(struct repo_adapter *a)
{
    char *owned[] = {a->id,          a->name,          a->path,          a->source, a->file_sha256,
                     a->data_sha256, a->declared_hash, a->config_sha256, a->format, a->style,
                     a->kinds,       a->base,          a->unusable,      a->dtype,  a->category,
                     a->class_word,  a->notes,         a->preview};
    for (size_t i = 0; i < sizeof owned / sizeof *owned; i++)
        free(owned[i]);
    memset(a, 0, sizeof *a);
}

int row_one(struct repo *r, struct repo_adapter *a, struct err *err, const char *sql,
            const char *types, const char *value)
{
    sqlite3_stmt *q = NULL;
    int rc = db_query(r->db, err, &q, sql, types, value);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    if (rc == 1)
        rc = row_read(r, q, a, err);
    else if (rc == 0)
        rc = 1;
    db_done(q);
    return rc;
}

int row_each(struct repo *r, sqlite3_stmt *q, int (*each)(void *user, const struct repo_adapter *a),
             void *user, struct err *err)
{
    struct repo_adapter a;
    int rc = 0, stop = 0;
    while (!stop && (rc = db_next(r->db, q, err)) == 1) {
        rc = row_read(r, q, &a, err);
        if (rc < 0)
            break;
        stop = each(user, &a);
        repo_adapter_release(&a);
    }
    return rc < 0 ? rc : 0;
}

int repo_at(struct repo *r, int64_t key, struct repo_adapter *a, struct err *err)
{
    char text[24];
    snprintf(text, sizeof text, "%lld", (long long)key);
    return row_one(r, a, err, "SELECT " ROW_COLUMNS " FROM adapter WHERE key = ?", "s", text);
}

/* ---- names and ids --------------------------------------------------------------------------- */

/* What a user would call the file: its stem, or its folder's name where the stem says nothing. Bytes
 * that are no text become '_'. */
static char *wish_of(const char *path)
{
    static const char *const empty[] = {"adapter_model", "pytorch_lora_weights", "learned_embeds"};
    char *name = file_stem(path);
    const char *slash = strrchr(path, '/');
    for (size_t i = 0; name && i < sizeof empty / sizeof *empty; i++)
        if (!strcmp(name, empty[i]) && slash && slash > path) {
            char *dir = strndup(path, (size_t)(slash - path));
            free(name);
            name = dir ? file_stem(dir) : NULL;
            free(dir);
            break;
        }
    if (!name)
        return NULL;
    unsigned char *out = (unsigned char *)name;
    size_t n = strlen(name), at = 0;
    for (size_t i = 0; i < n && at < NAME_MAX_BYTES;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t k =
            utf8proc_iterate((unsigned char *)name + i, (utf8proc_ssize_t)(n - i), &c);
        bool fine = k > 0 && c >= 32 && c != 127 && c != '/';
        if (fine)
            memmove(out + at, name + i, (size_t)k);
        else
            out[at] = '_';
        at += fine ? (size_t)k : 1;
        i += k > 0 ? (size_t)k : 1;
    }
    out[at] = 0;
    if (!*name)
        strcpy(name, "_"); /* a path has at least one byte */
    return name;
}

static int name_taken(struct repo *r, const char *name, int64_t key, struct err *err)
{
    int64_t other = 0;
    int rc = db_int(r->db, err, &other, 0, "SELECT key FROM adapter WHERE name = ?", "s", name);
    return rc < 0 ? rc : other != 0 && other != key;
}

int row_free_name(struct repo *r, const char *wish, int64_t key, char **out, struct err *err)
{
    int rc = name_taken(r, wish, key, err), step = 1, n = 2;
    *out = rc == 0 ? strdup(wish) : NULL;
    /* NAME-2, -3 …; with many of one name in growing steps */
    for (; rc == 1; n += step) {
        free(*out);
        if (asprintf(out, "%s-%d", wish, n) < 0) {
            *out = NULL;
            return err_nomem(err, strlen(wish) + 12);
        }
        rc = name_taken(r, *out, key, err);
        step += n > 16 ? step : 0;
    }
    if (rc < 0) {
        free(*out);
        *out = NULL;
        return rc;
    }
    return *out ? 0 : err_nomem(err, strlen(wish));
}

/* The beginning of the data's hash (AutoV3), or where another has it, of a hash that counts on. */
static int free_id(struct repo *r, const char *data_sha256, char **out, struct err *err)
{
    char text[HASH_HEX + 12], hex[HASH_HEX];
    int64_t taken = 1;
    int rc = 0;
    memcpy(hex, data_sha256, sizeof hex);
    for (int n = 1; rc == 0; n++) {
        hex[12] = 0;
        rc = db_int(r->db, err, &taken, 0, "SELECT 1 FROM adapter WHERE id = ?", "s", hex);
        if (rc < 0 || !taken)
            break;
        snprintf(text, sizeof text, "%s %d", data_sha256, n);
        rc = hash_bytes(hex, text, strlen(text), err);
    }
    *out = rc == 0 ? strdup(hex) : NULL;
    return rc < 0 ? rc : *out ? 0 : err_nomem(err, 13);
}

/* ---- words ----------------------------------------------------------------------------------- */

/* Texts of the metadata that a person may search for. */
static const char other_words[] =
    "SELECT ifnull(category, '') || ' ' || ifnull(class_word, '') || ' ' || base || ' ' || kinds "
    "|| ' ' || ifnull((SELECT group_concat(name, ' ') FROM alias WHERE adapter = key), '') || ' ' "
    "|| ifnull(json_extract(file, '$.\"modelspec.title\"'), '') || ' ' || "
    "ifnull(json_extract(file, '$.\"modelspec.description\"'), '') || ' ' || "
    "ifnull(json_extract(file, '$.\"ss_training_comment\"'), '') || ' ' || "
    "ifnull(json_extract(beside, '$.civitai.model.name'), '') || ' ' || "
    "ifnull(json_extract(beside, '$.manager.model_name'), '') "
    "FROM adapter LEFT JOIN metadata ON adapter = key WHERE key = ?1";

int row_index(struct repo *r, int64_t key, struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc = db_do(r->db, err, "DELETE FROM words WHERE rowid = ?", "i", key);
    rc = rc < 0 ? rc : db_query(r->db, err, &q, other_words, "i", key);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    if (rc == 1)
        rc =
            db_do(r->db, err,
                  "INSERT INTO words (rowid, name, tags, triggers, notes, other) SELECT key, name, "
                  "(SELECT group_concat(name, ' ') FROM tag WHERE adapter = key), "
                  "(SELECT group_concat(words, ' ') FROM trigger_group WHERE adapter = key), "
                  "notes, ?2 FROM adapter WHERE key = ?1",
                  "is", key, db_text(q, 0));
    db_done(q);
    return rc;
}

/* ---- writing --------------------------------------------------------------------------------- */

static int put_blob(struct repo *r, const struct intake *in, struct err *err)
{
    if (!in->blob)
        return 0;
    return db_do(r->db, err,
                 "INSERT INTO blob (path, sha256, bytes, config_sha256) VALUES (?, ?, ?, ?) "
                 "ON CONFLICT DO NOTHING",
                 "ssis", in->blob, in->file_sha256, in->bytes,
                 in->beside.config ? in->beside.config_sha256 : NULL);
}

/* Everything that the file itself tells. */
static int put_facts(struct repo *r, const struct intake *in, int64_t key, struct err *err)
{
    const struct facts *f = &in->facts;
    int rc = put_blob(r, in, err);
    rc = rc < 0 ? rc
                : db_do(r->db, err,
                        "UPDATE adapter SET path = ?, blob = ifnull(?, blob), bytes = ?, "
                        "mtime = ?, file_sha256 = ?, data_sha256 = ?, declared_hash = ?, "
                        "config_sha256 = ?, format = ?, style = ?, kinds = ?, base = ?, "
                        "context = ?, unusable = ?, rank_min = ?, rank_max = ?, sites = ?, "
                        "tensors = ?, dtype = ?, norm = NULL, missing = NULL, "
                        "preview = ifnull(?, preview) WHERE key = ?",
                        "bsiissssssssisiiiisbi", in->path, in->blob, in->bytes, in->mtime,
                        in->file_sha256, in->data_sha256, f->declared,
                        in->beside.config ? in->beside.config_sha256 : NULL, f->format, f->style,
                        f->kinds, f->base, (int64_t)f->context, f->unusable, (int64_t)f->rank[0],
                        (int64_t)f->rank[1], (int64_t)f->sites, (int64_t)f->tensors, f->dtype,
                        in->beside.preview, key);
    return rc < 0 ? rc
                  : db_do(r->db, err, "INSERT OR REPLACE INTO metadata VALUES (?, ?, ?)", "iss",
                          key, f->metadata, in->beside.json);
}

/* What the file and its neighbours suggest. again: the row is not new, so that tags and triggers may have
 * been edited since; only what is guessed from the file is brought. */
static int put_hints(struct repo *r, const struct intake *in, int64_t key, bool again,
                     struct err *err)
{
    const struct beside *b = &in->beside;
    int rc = 0;
    if (b->alias && strcmp(b->alias, in->name))
        rc = db_do(r->db, err, "INSERT OR IGNORE INTO alias VALUES (?, ?)", "si", b->alias, key);
    for (int i = 0; i < b->n_tag && rc == 0 && !again; i++)
        rc = db_do(r->db, err, "INSERT OR IGNORE INTO tag VALUES (?, ?)", "si", b->tag[i], key);
    for (int i = 0; i < b->n_trigger && rc == 0; i++)
        rc = again && !b->trigger[i].candidate
                 ? 0
                 : db_do(r->db, err,
                         "INSERT INTO trigger_group SELECT ?1, ifnull(max(position), 0) + 1, ?2, "
                         "?3, ?4 "
                         "FROM trigger_group WHERE adapter = ?1",
                         "isis", key, b->trigger[i].words, (int64_t)b->trigger[i].candidate,
                         b->trigger[i].source);
    return rc;
}

static int new_row(struct repo *r, struct intake *in, struct err *err)
{
    char *wish = wish_of(in->path);
    int64_t key = 0;
    int rc = wish ? row_free_name(r, wish, 0, &in->name, err) : err_nomem(err, strlen(in->path));
    rc = rc < 0 ? rc : free_id(r, in->data_sha256, &in->id, err);
    rc = rc < 0 ? rc
                : db_do(r->db, err,
                        "INSERT INTO adapter (id, name, bytes, mtime, file_sha256, data_sha256, "
                        "kinds, base, sites, tensors, dtype, notes, strength, category, added) "
                        "VALUES (?, ?, 0, 0, '', '', '', '', 0, 0, '', ?, ?, ?, ?)",
                        "sssdsi", in->id, in->name, in->beside.notes, in->beside.strength,
                        in->beside.category, (int64_t)time(NULL));
    rc = rc < 0 ? rc : db_int(r->db, err, &key, 0, "SELECT last_insert_rowid()", "");
    rc = rc < 0 ? rc : put_facts(r, in, key, err);
    rc = rc < 0 ? rc : put_hints(r, in, key, false, err);
    rc = rc < 0 ? rc : row_index(r, key, err);
    if (rc == 0 && wish && strcmp(wish, in->name) && !in->reason &&
        asprintf(&in->reason, "%s is taken", wish) < 0)
        in->reason = NULL;
    free(wish);
    return rc;
}

/* The row of this very path, renewed. */
static int renew(struct repo *r, struct intake *in, const struct repo_adapter *old, struct err *err)
{
    bool same_file = !strcmp(old->file_sha256, in->file_sha256);
    bool same_data = !strcmp(old->data_sha256, in->data_sha256);
    bool config = strcmp(old->config_sha256 ? old->config_sha256 : "", in->beside.config_sha256);
    const char *why = !same_data   ? "its weights are others than before"
                      : config     ? "its PEFT config is another than before"
                      : !same_file ? "only its metadata changed"
                      : in->blob   ? "now kept as a copy"
                                   : NULL;
    in->status = same_data && !config ? "unchanged" : "changed";
    in->name = strdup(old->name);
    in->id = strdup(old->id);
    in->reason = why ? strdup(why) : NULL;
    int rc = in->name && in->id ? put_facts(r, in, old->key, err) : err_nomem(err, 64);
    if (rc == 0 && !same_file)
        rc = db_do(r->db, err, "DELETE FROM trigger_group WHERE adapter = ? AND candidate", "i",
                   old->key);
    if (rc == 0 && !same_file)
        rc = put_hints(r, in, old->key, true, err);
    return rc < 0 ? rc : row_index(r, old->key, err);
}

/* Where the file itself was found, be there a copy or not. */
static const char *found_at(const struct repo_adapter *a)
{
    return a->copied ? a->source : a->path;
}

/* A row whose file is gone and had the same tensors: this is where it went. One that we keep a copy of must
 * be the same file, byte by byte. */
static int find_moved(struct repo *r, const struct intake *in, struct repo_adapter *old,
                      struct err *err)
{
    sqlite3_stmt *q = NULL;
    int rc =
        db_query(r->db, err, &q,
                 "SELECT " ROW_COLUMNS " FROM adapter WHERE data_sha256 = ?1 AND (blob IS NULL "
                 "OR path IS NOT NULL AND file_sha256 = ?2) "
                 "ORDER BY file_sha256 = ?2 DESC, key",
                 "ss", in->data_sha256, in->file_sha256);
    while (rc == 0 && (rc = db_next(r->db, q, err)) == 1) {
        rc = row_read(r, q, old, err);
        if (rc == 0 && !file_exists(found_at(old)) && (errno == ENOENT || errno == ENOTDIR) &&
            !strcmp(old->config_sha256 ? old->config_sha256 : "", in->beside.config_sha256)) {
            db_done(q);
            return 1;
        }
        if (rc == 0)
            repo_adapter_release(old);
    }
    db_done(q);
    return rc;
}

static int relink(struct repo *r, struct intake *in, const struct repo_adapter *old,
                  struct err *err)
{
    in->status = "relinked";
    in->name = strdup(old->name);
    in->id = strdup(old->id);
    if (asprintf(&in->reason, "moved from %s", found_at(old)) < 0)
        in->reason = NULL;
    int rc = in->name && in->id ? put_facts(r, in, old->key, err) : err_nomem(err, 64);
    return rc < 0 ? rc : row_index(r, old->key, err);
}

/* A file that is new here: is it a twin of one that is in? */
static int take_new(struct repo *r, struct intake *in, struct err *err)
{
    struct repo_adapter twin;
    int found =
        row_one(r, &twin, err,
                "SELECT " ROW_COLUMNS " FROM adapter WHERE data_sha256 = ? ORDER BY key LIMIT 1",
                "s", in->data_sha256);
    if (found < 0)
        return found;
    in->status = found == 0 ? "duplicate" : "added";
    if (found == 0 &&
        asprintf(&in->reason, "%s as %s",
                 strcmp(twin.file_sha256, in->file_sha256) ? "the same tensors, other metadata,"
                                                           : "the same file",
                 twin.name) < 0)
        in->reason = NULL;
    if (found == 0)
        repo_adapter_release(&twin);
    return new_row(r, in, err);
}

int row_take(struct repo *r, struct intake *in, struct err *err)
{
    struct repo_adapter old;
    int rc =
        row_one(r, &old, err, "SELECT " ROW_COLUMNS " FROM adapter WHERE path = ?", "b", in->path);
    if (rc < 0)
        return rc;
    bool other =
        rc == 0 && (strcmp(old.file_sha256, in->file_sha256) ||
                    strcmp(old.config_sha256 ? old.config_sha256 : "", in->beside.config_sha256));
    if (rc == 0 && old.copied && other) {
        /* the original became another file; our copy of the first stays what it was */
        rc = db_do(r->db, err, "UPDATE adapter SET path = NULL WHERE key = ?", "i", old.key);
        repo_adapter_release(&old);
        return rc < 0 ? rc : take_new(r, in, err);
    }
    if (rc == 0) {
        rc = renew(r, in, &old, err);
        repo_adapter_release(&old);
        return rc;
    }
    rc = find_moved(r, in, &old, err);
    if (rc == 1) {
        rc = relink(r, in, &old, err);
        repo_adapter_release(&old);
        return rc;
    }
    return rc < 0 ? rc : take_new(r, in, err);
}
