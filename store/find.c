/* Finding adapters: by reference, in lists, by words. */
#include "repo_private.h"

#include "unet/file.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SHOWN      6 /* candidates that a message names */
#define LEAST_HASH 6 /* digits; fewer may be a word: "face", "cafe" */

/* ---- references ------------------------------------------------------------------------------ */

/* One row, or the news that there are several: 0 found, 1 none, ERR_ARG. */
static int only_one(struct repo *r, const char *ref, struct repo_adapter *out, struct err *err,
                    const char *sql, const char *types, const char *a, const char *b)
{
    sqlite3_stmt *q = NULL;
    char list[512] = "";
    int n = 0, rc = db_query(r->db, err, &q, sql, types, a, b);
    while (rc == 0 && (rc = db_next(r->db, q, err)) == 1) {
        size_t at = strlen(list);
        rc = n++ == 0 ? row_read(r, q, out, err) : 0;
        if (n <= SHOWN)
            snprintf(list + at, sizeof list - at, "%s%.60s (%s)", n > 1 ? ", " : "", db_text(q, 2),
                     db_text(q, 1));
        else if (n == SHOWN + 1)
            snprintf(list + at, sizeof list - at, " …");
    }
    db_done(q);
    if (rc < 0 || n > 1)
        repo_adapter_release(out);
    if (rc < 0)
        return rc;
    return n == 0   ? 1
           : n == 1 ? 0
                    : err_set(err, ERR_MISMATCH, "'%.100s' may mean any of %d: %s", ref, n, list);
}

static bool is_hex(const char *s, size_t least)
{
    size_t n = strspn(s, "0123456789abcdefABCDEF");
    return n >= least && !s[n];
}

int repo_find_file(struct repo *r, const char *ref, struct repo_adapter *out, struct err *err)
{
    static const char *const ending[] = {"", ".safetensors", "/adapter_model.safetensors"};
    int rc = 1;
    for (size_t i = 0; i < sizeof ending / sizeof *ending && rc == 1; i++) {
        char *path = NULL, *real;
        if (asprintf(&path, "%s%s", ref, ending[i]) < 0)
            return err_nomem(err, strlen(ref));
        real = file_kind(path) == 1 ? realpath(path, NULL) : NULL;
        if (real)
            rc = row_one(r, out, err, "SELECT " ROW_COLUMNS " FROM adapter WHERE path = ?", "b",
                         real);
        free(path);
        free(real);
        if (real)
            break;
    }
    return rc;
}

static int find_by_hash(struct repo *r, const char *ref, struct repo_adapter *out, struct err *err)
{
    char begin[HASH_HEX], end[HASH_HEX + 2];
    size_t n = strlen(ref);
    if (!is_hex(ref, LEAST_HASH) || n >= HASH_HEX)
        return 1;
    for (size_t i = 0; i <= n; i++) /* other programs show hashes in capitals */
        begin[i] = (char)tolower((unsigned char)ref[i]);
    snprintf(end, sizeof end, "%sg", begin);
    return only_one(r, ref, out, err,
                    "SELECT " ROW_COLUMNS " FROM adapter WHERE key IN ("
                    "SELECT key FROM adapter WHERE id >= ?1 AND id < ?2 UNION "
                    "SELECT key FROM adapter WHERE data_sha256 >= ?1 AND data_sha256 < ?2 UNION "
                    "SELECT key FROM adapter WHERE file_sha256 >= ?1 AND file_sha256 < ?2)",
                    "ss", begin, end);
}

int repo_find_name(struct repo *r, const char *ref, struct repo_adapter *out, struct err *err)
{
    memset(out, 0, sizeof *out);
    int rc = row_one(r, out, err, "SELECT " ROW_COLUMNS " FROM adapter WHERE name = ?", "s", ref);
    if (rc == 1)
        rc = only_one(r, ref, out, err,
                      "SELECT " ROW_COLUMNS " FROM adapter WHERE key IN "
                      "(SELECT adapter FROM alias WHERE name = ?)",
                      "s", ref, NULL);
    if (rc == 1)
        rc = row_one(r, out, err, "SELECT " ROW_COLUMNS " FROM adapter WHERE id = ?", "s", ref);
    return rc;
}

int repo_find(struct repo *r, const char *ref, struct repo_adapter *out, struct err *err)
{
    int rc = repo_find_name(r, ref, out, err);
    rc = rc == 1 ? repo_find_file(r, ref, out, err) : rc;
    return rc == 1 ? find_by_hash(r, ref, out, err) : rc;
}

int repo_need(struct repo *r, const char *ref, struct repo_adapter *out, struct err *err)
{
    sqlite3_stmt *q = NULL;
    char near[300] = "";
    int rc = repo_find(r, ref, out, err);
    if (rc != 1)
        return rc;
    rc = db_query(r->db, err, &q,
                  "SELECT name FROM adapter WHERE instr(lower(name), lower(?1)) > 0 "
                  "ORDER BY length(name), name LIMIT 3",
                  "s", ref);
    while (rc == 0 && (rc = db_next(r->db, q, err)) == 1) {
        size_t at = strlen(near);
        snprintf(near + at, sizeof near - at, "%s%.80s",
                 at ? ", " : "; near to it: ", db_text(q, 0));
        rc = 0;
    }
    db_done(q);
    return rc < 0 ? rc
                  : err_set(err, ERR_IO, "%.200s: no such adapter in the repository%s", ref,
                            *near ? near : "; weft list shows what is there");
}

int repo_find_data(struct repo *r, const char *data_sha256, struct repo_adapter *out,
                   struct err *err)
{
    sqlite3_stmt *q = NULL;
    int found = 1;
    int rc = db_query(r->db, err, &q,
                      "SELECT " ROW_COLUMNS " FROM adapter WHERE data_sha256 = ? ORDER BY key", "s",
                      data_sha256);
    while (rc == 0 && found == 1 && (rc = db_next(r->db, q, err)) == 1) {
        rc = row_read(r, q, out, err);
        found = rc == 0 && file_kind(out->path) == 1 ? 0 : 1;
        if (rc == 0 && found)
            repo_adapter_release(out);
    }
    db_done(q);
    return rc < 0 ? rc : found;
}

/* ---- at use ---------------------------------------------------------------------------------- */

static int check_config(const struct repo_adapter *a, struct err *err)
{
    char sha[HASH_HEX] = "", *config = beside_config(a->path);
    int rc = config ? hash_file(sha, config, err) : 0;
    if (rc == 0 && strcmp(sha, a->config_sha256 ? a->config_sha256 : ""))
        rc = err_set(err, ERR_MISMATCH,
                     "%s: adapter_config.json beside %s is not what it was when it was added; "
                     "weft sync takes the new one",
                     a->name, a->path);
    free(config);
    return rc;
}

int repo_check(struct repo *r, const struct repo_adapter *a, struct err *err)
{
    struct tensor_file *st = NULL;
    struct stat sb;
    char sha[HASH_HEX];
    size_t size = 0;

    (void)r;
    if (stat(a->path, &sb) < 0 && a->copied)
        return err_set(err, ERR_IO, "%s: our copy %s: %s; add the file again", a->name, a->path,
                       strerror(errno));
    if (stat(a->path, &sb) < 0)
        return err_set(err, ERR_IO, "%s: its file %s: %s; weft sync finds it if it was moved",
                       a->name, a->path, strerror(errno));
    int rc = check_config(a, err);
    bool same = sb.st_size == a->bytes && (a->copied || file_mtime(&sb) == a->mtime);
    if (rc < 0 || same)
        return rc;
    rc = tensor_file_open(&st, a->path, err);
    if (rc == 0) {
        const void *data = tensor_file_data(st, &size);
        rc = hash_bytes(sha, data, size, err);
    }
    tensor_file_close(st);
    if (rc < 0)
        return err_prefix(err, "%s: its file is not what was added", a->name);
    if (strcmp(sha, a->data_sha256))
        return err_set(err, ERR_MISMATCH,
                       "%s: %s has other weights than when it was added; weft sync takes the new "
                       "ones, or put the old file back",
                       a->name, a->path);
    return 0;
}

/* ---- what belongs to one --------------------------------------------------------------------- */

int repo_texts(struct repo *r, int64_t key, enum repo_texts which, struct texts *out,
               struct err *err)
{
    static const char *const sql[] = {
        [REPO_TAGS] = "SELECT name FROM tag WHERE adapter = ? ORDER BY name",
        [REPO_TRIGGERS] = "SELECT words FROM trigger_group WHERE adapter = ? AND NOT candidate "
                          "ORDER BY position",
        [REPO_CANDIDATES] = "SELECT words FROM trigger_group WHERE adapter = ? AND candidate "
                            "ORDER BY position",
        [REPO_ALIASES] = "SELECT name FROM alias WHERE adapter = ? ORDER BY name",
        [REPO_TWINS] = "SELECT b.name FROM adapter a JOIN adapter b USING (data_sha256) "
                       "WHERE a.key = ? AND b.key <> a.key ORDER BY b.name",
    };
    sqlite3_stmt *q = NULL;
    int rc = db_query(r->db, err, &q, sql[which], "i", key);
    while (rc == 0 && (rc = db_next(r->db, q, err)) == 1)
        rc = texts_add(out, db_text(q, 0), err);
    db_done(q);
    return rc;
}

int repo_metadata(struct repo *r, int64_t key, char **file, char **beside, struct err *err)
{
    sqlite3_stmt *q = NULL;
    *file = *beside = NULL;
    int rc =
        db_query(r->db, err, &q, "SELECT file, beside FROM metadata WHERE adapter = ?", "i", key);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    if (rc == 1) {
        *file = db_copy(q, 0);
        *beside = db_copy(q, 1);
        rc = 0;
    }
    db_done(q);
    return rc;
}

/* ---- lists ----------------------------------------------------------------------------------- */

static const char *order_of(const char *sort)
{
    static const char *const orders[][2] = {{"name", "name"},
                                            {"added", "added DESC, key DESC"},
                                            {"size", "bytes DESC, key DESC"},
                                            {"base", "base, context, key"},
                                            {"rank", "rank_max DESC, key DESC"}};
    for (size_t i = 0; i < sizeof orders / sizeof *orders; i++)
        if (!sort || !strcmp(sort, orders[i][0]))
            return orders[i][1];
    return NULL;
}

int repo_list(struct repo *r, const struct repo_filter *f,
              int (*each)(void *user, const struct repo_adapter *a), void *user, struct err *err)
{
    sqlite3_stmt *q = NULL;
    char sql[1600];
    const char *order = order_of(f->sort);
    int64_t context = f->context;
    struct repo_model m;

    if (!order)
        return err_set(err, ERR_ARG, "no order '%.40s'; known: name added size base rank", f->sort);
    if (f->model) {
        int found = repo_model_find(r, f->model, &m, err);
        if (found < 0)
            return found;
        if (found == 1)
            return err_set(err, ERR_IO, "%.100s: no such model here; weft model list shows them",
                           f->model);
        context = m.context;
        repo_model_release(&m);
    }
    /* a filter that is not asked for is left out, so that the others may use their index */
    snprintf(sql, sizeof sql,
             "SELECT " ROW_COLUMNS " FROM adapter WHERE ?1 IS ?1 AND ?2 IS ?2 AND ?3 IS ?3 AND "
             "?4 IS ?4 AND ?5 IS ?5 AND ?6 IS ?6%s%s%s%s%s%s ORDER BY %s LIMIT ?6",
             f->tag ? " AND key IN (SELECT adapter FROM tag WHERE name = ?1)" : "",
             f->base ? " AND (base = ?2 OR base = 'unknown' AND context = (SELECT context FROM "
                       "model WHERE name = ?2))"
                     : "",
             f->kind ? " AND instr(' ' || kinds || ' ', ' ' || ?3 || ' ')" : "",
             f->category ? " AND category = ?4" : "", context ? " AND context = ?5" : "",
             f->missing ? " AND missing IS NOT NULL" : "", order);
    int rc = db_query(r->db, err, &q, sql, "ssssii", f->tag, f->base, f->kind, f->category, context,
                      (int64_t)(f->limit ? f->limit : -1));
    rc = rc < 0 ? rc : row_each(r, q, each, user, err);
    db_done(q);
    return rc;
}

/* ---- words ----------------------------------------------------------------------------------- */

static bool is_word(const char *s, size_t n)
{
    for (size_t i = 0; i < n; i++)
        if (isalnum((unsigned char)s[i]) || (unsigned char)s[i] >= 0x80)
            return true;
    return false;
}

/* FTS5's language: every word as the beginning of one, what stands in quotes as it is; `between` two of
 * them "AND" or "OR". */
static char *to_query(const char *words, const char *between)
{
    char *text = NULL;
    size_t size = 0;
    int terms = 0;
    FILE *f = open_memstream(&text, &size);
    for (const char *p = words; f && *p;) {
        bool quoted = *p == '"';
        size_t n;
        p += quoted;
        n = quoted ? strcspn(p, "\"") : strcspn(p, " \t\r\n\"");
        if (is_word(p, n))
            fprintf(f, " %s \"%.*s\"%s", terms++ ? between : "", (int)n, p, quoted ? "" : "*");
        p += n;
        p += (quoted && *p == '"') || (!quoted && *p && *p != '"');
    }
    if (!f || fclose(f)) {
        free(text);
        return NULL;
    }
    return text;
}

/* Ranking reads every row of every word. Where more than COMMON rows have one of the words that takes long
 * and says little, and the order is by the place where the words stand, newest first. */
#define COMMON 5000

#define HIT       "SELECT rowid, snippet(words, -1, '[', ']', '…', 8), "
#define HIT_AT(w) HIT w " FROM words WHERE words MATCH "
#define NEWEST    " ORDER BY rowid DESC LIMIT ?2"
#define IN_NAME   "{name} : (' || ?1 || ')"
#define IN_OWN    "{name tags triggers} : (' || ?1 || ')"
#define IN_ALL    "(' || ?1 || ')"

static const char by_rank[] =
    HIT_AT("-rank") "?1 AND rank MATCH 'bm25(10.0, 5.0, 5.0, 2.0, 1.0)' ORDER BY rank LIMIT ?2";

static const char *const by_place[] = {
    HIT_AT("10.0") "'" IN_NAME "'" NEWEST,
    HIT_AT("5.0") "'(" IN_OWN ") NOT (" IN_NAME ")'" NEWEST,
    HIT_AT("1.0") "'" IN_ALL " NOT (" IN_OWN ")'" NEWEST,
};

typedef int each_hit(void *user, const struct repo_adapter *a, double score, const char *why);

/* Tells the hits of one query and takes them off `left` (negative: no limit). 1: `each` wants no more. */
static int tell_hits(struct repo *r, const char *sql, const char *query, int64_t *left,
                     each_hit *each, void *user, struct err *err)
{
    sqlite3_stmt *q = NULL;
    struct repo_adapter a;
    int stop = 0, rc = db_query(r->db, err, &q, sql, "si", query, *left);
    while (rc == 0 && !stop && (rc = db_next(r->db, q, err)) == 1) {
        rc = repo_at(r, sqlite3_column_int64(q, 0), &a, err);
        if (rc == 0) {
            stop = each(user, &a, db_number(q, 2), db_text(q, 1));
            repo_adapter_release(&a);
            *left -= *left > 0;
        }
        rc = rc < 0 ? rc : 0;
    }
    db_done(q);
    return rc < 0 ? rc : stop != 0;
}

static int is_common(struct repo *r, const char *words, bool *common, struct err *err)
{
    char *any = to_query(words, "OR");
    int64_t one = 0;
    int rc = any ? 0 : err_nomem(err, strlen(words));
    rc = rc < 0 ? rc
                : db_int(r->db, err, &one, 0,
                         "SELECT 1 FROM words WHERE words MATCH ? LIMIT 1 OFFSET ?", "si", any,
                         (int64_t)COMMON);
    *common = one == 1;
    free(any);
    return rc;
}

int repo_search(struct repo *r, const char *words, int limit, each_hit *each, void *user,
                struct err *err)
{
    char *query = to_query(words, "AND");
    bool common = false;
    int64_t left = limit ? limit : -1;
    int rc = query ? 0 : err_nomem(err, strlen(words));

    if (rc == 0 && !*query)
        rc = err_set(err, ERR_ARG, "no word to search for in '%.80s'", words);
    rc = rc < 0 ? rc : is_common(r, words, &common, err);
    if (rc == 0 && !common)
        rc = tell_hits(r, by_rank, query, &left, each, user, err);
    for (size_t i = 0; i < sizeof by_place / sizeof *by_place && rc == 0 && common && left; i++)
        rc = tell_hits(r, by_place[i], query, &left, each, user, err);
    free(query);
    return rc < 0 ? rc : 0;
}
