/* repo_private.h: what the files of the repository share among themselves. */
#ifndef WEFT_REPO_PRIVATE_H
#define WEFT_REPO_PRIVATE_H

#include "beside.h"
#include "db.h"
#include "facts.h"
#include "repo.h"

#include <sys/stat.h>

#define GROUP_MAX 256 /* files a transaction */

#define PREVIEWS     "previews" /* folder of weft preview's pictures, below home */
#define INDEXES      "index"    /* folder of the indexes of embeddings, below home */
#define INDEX_ENDING ".faiss"

struct repo {
    char *home, *blobs, *stages;
    struct db *db;
    bool write;
    int lock; /* home/lock, for flock: shared while names are given to blobs, exclusive to remove some */
};

/* A file on its way in. */
struct intake {
    char *path; /* absolute, without links */
    int64_t bytes, mtime;
    char file_sha256[HASH_HEX], data_sha256[HASH_HEX];
    struct facts facts;
    struct beside beside;
    int64_t size_seen;
    int stage;  /* number in the stage, -1: not copied */
    char *blob; /* the copy's path from home on, or NULL */
    /* what became of it */
    const char *status;
    char *name, *id, *reason;
};
void intake_release(struct intake *in);

/* Nanoseconds of a file's last change. */
int64_t file_mtime(const struct stat *st);

/* row.c: columns of an adapter in the order that row_read expects, FROM adapter. */
#define ROW_COLUMNS                                                                                \
    "adapter.key, id, name, path, blob, bytes, mtime, file_sha256, data_sha256, declared_hash, "   \
    "config_sha256, format, style, kinds, base, context, unusable, rank_min, rank_max, sites, "    \
    "tensors, dtype, norm, category, class_word, notes, strength, preview, missing, added"
int row_read(struct repo *r, sqlite3_stmt *q, struct repo_adapter *a, struct err *err);
/* Runs a query for one adapter: 0 found, 1 not. */
int row_one(struct repo *r, struct repo_adapter *a, struct err *err, const char *sql,
            const char *types, const char *value);
/* Calls each row of a query; what it is given is released afterwards. A nonzero return stops. */
int row_each(struct repo *r, sqlite3_stmt *q, int (*each)(void *user, const struct repo_adapter *a),
             void *user, struct err *err);
/* Takes a file in within a transaction: a new row, or the renewed one of its path. Sets status, name, id
 * and reason. */
int row_take(struct repo *r, struct intake *in, struct err *err);
/* Brings the words that are searched up to date with the row. */
int row_index(struct repo *r, int64_t key, struct err *err);
/* A name that nobody has, from a wish. */
int row_free_name(struct repo *r, const char *wish, int64_t key, char **out, struct err *err);

/* stage.c: copies on their way to blobs/. */
struct stage;
int stage_open(struct stage **out, struct repo *r, struct err *err);
void stage_close(struct stage *s); /* removes it; takes NULL */
const char *stage_folder(const struct stage *s);
/* Reads the file once: hashes it whole and from `header` on, and with `copy` writes it into the stage.
 * in->bytes must be what is read. */
int stage_read(struct stage *s, struct intake *in, size_t header, bool copy, struct err *err);
/* Syncs the copies, then gives them their names in blobs/ and syncs those. Holds the lock until
 * stage_done. */
int stage_commit(struct stage *s, struct intake *in, int n, struct err *err);
/* After the rows: rc below 0 takes the names back. */
void stage_done(struct stage *s, int rc);
/* Clears away what killed programs left behind. */
int stage_recover(struct repo *r, struct err *err);
int repo_lock(struct repo *r, bool exclusive, struct err *err);
void repo_unlock(struct repo *r);

/* intake.c: looks at one file and takes groups in. */
struct group {
    struct repo *r;
    const struct repo_add *how;
    struct repo_sum *sum;
    struct stage *stage;
    struct intake *in; /* [GROUP_MAX] */
    int n;
    int64_t bytes;
    double began;
    bool sync; /* events of repo_sync */
};
int group_open(struct group *g, struct repo *r, const struct repo_add *how, struct repo_sum *sum,
               struct err *err);
int group_add(struct group *g, const char *path, struct err *err);
int group_flush(struct group *g, struct err *err);
void group_close(struct group *g);
/* Says that a file is not taken. */
void group_refuse(struct group *g, const char *path, const char *why);
/* All of them, and what is left of the last group. */
int group_take_files(struct group *g, const struct texts *files, struct err *err);
/* Paths without links: a row is of the file itself. */
void texts_resolve(struct texts *files);

/* walk.c: all adapter files below a folder, in order of their names, but none below `skip` (NULL: none).
 * Folders behind links are entered once. */
int walk(const char *folder, const char *skip, struct texts *files, struct texts *refused,
         struct err *err);
/* Whether a file's name is one an adapter may have. */
bool walk_takes(const char *name);

#endif
