/* repo.h: the repository: which adapters a person has, what each is, and where it lies.
 *
 * A folder with a SQLite database (weft.db) and our own copies of files (blobs/). Files stay where they
 * are unless a copy is asked for; no file of the user's is ever changed. What an adapter is comes from
 * its tensors (store/facts.h). At any kill point the repository is whole: a file is in it once its
 * bytes, its name and its row are on the disk, in this order. Several programs may use one at once.
 *
 *     struct repo *r;
 *     struct repo_adapter a;
 *     char *home = repo_home(NULL);
 *     repo_open(&r, home, REPO_WRITE, &err);
 *     repo_add(r, paths, n, &(struct repo_add){.event = print}, &sum, &err);
 *     if (repo_find(r, "ghibli", &a, &err) == 0)
 *         …                                    // a.path is what to open
 *     repo_adapter_release(&a);
 *     repo_close(r);
 *
 * Strings in structs are owned by them unless said; NULL means that there is none.
 */
#ifndef WEFT_REPO_H
#define WEFT_REPO_H

#include "unet/err.h"
#include "unet/hash.h"

#include <stdbool.h>
#include <stdint.h>

struct repo;

enum repo_mode {
    REPO_READ,  /* never changed; works on a disk that cannot be written */
    REPO_WRITE, /* made when it is not there; what a killed program left behind is cleared away */
};

/* `given`, else $WEFT_HOME, else $XDG_DATA_HOME/weft, else ~/.local/share/weft. A new string, NULL when
 * there is no memory. */
char *repo_home(const char *given);
/* Whether there is a repository. */
bool repo_exists(const char *home);
int repo_open(struct repo **out, const char *home, enum repo_mode mode, struct err *err);
void repo_close(struct repo *r);

/* ---- lists of texts -------------------------------------------------------------------------- */

struct texts {
    char **item; /* owned */
    int n;
};
/* Adds a copy. */
int texts_add(struct texts *t, const char *s, struct err *err);
bool texts_have(const struct texts *t, const char *s);
void texts_release(struct texts *t);

/* ---- one adapter ----------------------------------------------------------------------------- */

struct repo_adapter {
    int64_t key;
    char *id, *name; /* id: 12 hex digits that never change */
    char *path;      /* the file to open: where it lies, or our own copy */
    char *source;    /* where it was found; of a copy it may be gone */
    bool copied;
    int64_t bytes, mtime, missing,
        added; /* mtime: ns of the file as read; missing: since when, 0 */
    char *file_sha256, *data_sha256, *declared_hash, *config_sha256;
    char *format, *style, *kinds, *base, *unusable, *dtype; /* as in struct facts */
    int context, rank[2], sites, tensors;
    double norm, strength; /* NaN: not known, none preferred */
    char *category, *class_word, *notes, *preview;
};
void repo_adapter_release(struct repo_adapter *a);

/* What ref means: a whole name, alias, id or hash; a file that is in the repository; the beginning of an
 * id or hash (6 digits or more). ERR_MISMATCH: it means several, which the message lists; 1: nothing
 * here. */
int repo_find(struct repo *r, const char *ref, struct repo_adapter *out, struct err *err);
/* The same for whole names, aliases and ids alone; and for a file alone, named as a user does (itself,
 * with .safetensors, or a PEFT folder). */
int repo_find_name(struct repo *r, const char *ref, struct repo_adapter *out, struct err *err);
int repo_find_file(struct repo *r, const char *ref, struct repo_adapter *out, struct err *err);
/* The same, but nothing found is ERR_IO with a message. */
int repo_need(struct repo *r, const char *ref, struct repo_adapter *out, struct err *err);
/* The one with these tensors whose file is there, if any: 0 or 1. */
int repo_find_data(struct repo *r, const char *data_sha256, struct repo_adapter *out,
                   struct err *err);
/* The one with that key: 0, or 1 where it is gone. */
int repo_at(struct repo *r, int64_t key, struct repo_adapter *out, struct err *err);
/* That the file is still what was added: same size and time, or else the same tensors by their hash.
 * ERR_MISMATCH or ERR_IO say what to do. */
int repo_check(struct repo *r, const struct repo_adapter *a, struct err *err);

/* What a file is, without a repository: the same fields, key 0 and no id. */
int repo_inspect(const char *path, struct repo_adapter *out, char **metadata, char **beside,
                 struct err *err);
/* Where the base is unknown and a registered model has the same text width, its name is the base. */
int repo_name_base(struct repo *r, struct repo_adapter *a, struct err *err);

enum repo_texts {
    REPO_TAGS,
    REPO_TRIGGERS,   /* a text a group: "sks monkey, red hat" */
    REPO_CANDIDATES, /* triggers guessed from tag frequencies */
    REPO_ALIASES,
    REPO_TWINS, /* names of others with the same tensors */
};
int repo_texts(struct repo *r, int64_t key, enum repo_texts which, struct texts *out,
               struct err *err);
/* The picture to show of it: of weft preview, else the one that lay beside its file. A new string, NULL:
 * none is there. r NULL: of a file in no repository. */
char *repo_preview(const struct repo *r, const struct repo_adapter *a);
/* Where weft preview puts its own: by the tensors, so that twins share one and a file that changes has none.
 * Its folder is made. */
int repo_preview_path(const struct repo *r, const struct repo_adapter *a, char **out,
                      struct err *err);
/* What weft profile measured of these tensors with that model: 0 found, 1 not. And keeps it. */
int repo_profile(struct repo *r, const char *data_sha256, const char *model, double *high,
                 struct err *err);
int repo_set_profile(struct repo *r, const char *data_sha256, const char *model, double high,
                     struct err *err);
/* What it answers to texts with that model (retrieve/response.h): 0 found, 1 not. *plain is NAN for one that is
 * silent; row [n] floats, of which as many must have been kept. repo_set_response keeps it; where the repository is only
 * read, it does nothing. */
int repo_response(struct repo *r, const char *data_sha256, const char *model, double *plain,
                  float *row, size_t n, struct err *err);
/* Calls some that are not silent, at most `limit`, as good as drawn by chance. What is given is borrowed; a nonzero
 * return stops. */
int repo_responses(struct repo *r, const char *model, size_t n, int limit,
                   int (*each)(void *user, double plain, const float *row), void *user,
                   struct err *err);
int repo_set_response(struct repo *r, const char *data_sha256, const char *model, double plain,
                      const float *row, size_t n, struct err *err);
/* Metadata of the file and what lay beside it, each a JSON object or NULL. New strings. */
int repo_metadata(struct repo *r, int64_t key, char **file, char **beside, struct err *err);

/* ---- many ------------------------------------------------------------------------------------ */

struct repo_filter {
    const char *tag, *base, *kind, *category; /* NULL: any */
    const char *model;                        /* name of a registered model that it must fit */
    int context;                              /* or its cross-attention width; 0: any */
    bool missing;                             /* only those whose file is gone */
    const char *sort;                         /* name added size base rank; NULL: name */
    int limit;                                /* 0: all */
};
/* Calls each adapter; what it is given is released afterwards. A nonzero return stops. */
int repo_list(struct repo *r, const struct repo_filter *f,
              int (*each)(void *user, const struct repo_adapter *a), void *user, struct err *err);
/* Adapters whose name, tags, triggers, notes or metadata hold all words, best first; score: higher is
 * better, why: what was found, with the words in [ ]. "quoted words" are matched as they stand. Where more
 * than 5,000 adapters have one of the words, best is: all words in the name, then in name, tags and
 * triggers, then the rest, newest first in each. */
int repo_search(struct repo *r, const char *words, int limit,
                int (*each)(void *user, const struct repo_adapter *a, double score,
                            const char *why),
                void *user, struct err *err);
int repo_count(struct repo *r, int64_t *adapters, struct err *err);

/* ---- embeddings ------------------------------------------------------------------------------ */

/* Vectors that an encoder of weights gives adapters, by the hash of their tensors, so that twins share one.
 * encoder names it: letters, digits, '-' and '_', at most 64, such as a hash in hex. */

/* What is kept: 0 found, 1 never looked at (or kept with another dim). *strength is NAN for one that was looked at
 * and has none; v [dim] is zeros then. */
int repo_embedding(struct repo *r, const char *data_sha256, const char *encoder, float *v, int dim,
                   double *strength, struct err *err);
/* Keeps it; where the repository is only read, does nothing. v NULL: it has none, strength does not count. Else all
 * must be finite (ERR_ARG). */
int repo_set_embedding(struct repo *r, const char *data_sha256, const char *encoder, const float *v,
                       int dim, double strength, struct err *err);
/* Calls each of the encoder's vectors [dim] with the id by which an index knows it, in the order of ids. A nonzero
 * return stops. The vector is borrowed for the call. */
int repo_embeddings(struct repo *r, const char *encoder, int dim,
                    int (*each)(void *user, int64_t id, const float *v), void *user,
                    struct err *err);
/* Calls the adapters with the tensors of that vector: several if there are twins, none if they were removed, or the
 * vector was. What each is given is released afterwards; a nonzero return stops. */
int repo_embedding_adapters(struct repo *r, int64_t id,
                            int (*each)(void *user, const struct repo_adapter *a), void *user,
                            struct err *err);
/* A number that is another after each change to the encoder's vectors (it does not grow), and how many there are. 0
 * and 0 where there never were any. */
int repo_embedding_generation(struct repo *r, const char *encoder, int64_t *generation,
                              int64_t *count, struct err *err);
/* Calls the adapters of that text width, usable and there, that nothing is kept of by that encoder; encoder NULL: whose
 * answers with that model (repo_response) are not. Quick where there are none. */
int repo_unread(struct repo *r, int context, const char *model, const char *encoder,
                int (*each)(void *user, const struct repo_adapter *a), void *user, struct err *err);
/* Whether what is set is kept. */
bool repo_writes(const struct repo *r);
/* What a model makes of neutral texts (responder_keep): 0 found, *told is new, 1 not. And keeps it. */
int repo_neutral(struct repo *r, const char *model, void **told, size_t *size, struct err *err);
int repo_set_neutral(struct repo *r, const char *model, const void *told, size_t size,
                     struct err *err);
/* What was learnt for a model (retrieve/learn.h) and its name: 0 found, *told is new, 1 not. And keeps it, told NULL:
 * forgets it. */
int repo_learnt(struct repo *r, const char *model, char name[HASH_HEX], void **told, size_t *size,
                struct err *err);
int repo_set_learnt(struct repo *r, const char *model, const char *name, const void *told,
                    size_t size, struct err *err);
/* Where the index of the encoder's vectors is kept (retrieve/index.h), a new string. 1: the repository is only read,
 * so that nothing may be written there; else its folder is made, if that can be. */
int repo_index_path(struct repo *r, const char *encoder, char **out, struct err *err);

/* ---- bringing in ----------------------------------------------------------------------------- */

struct repo_event { /* borrowed texts; NULL where there is none */
    const char *path, *status, *name, *id, *reason;
};
struct repo_add {
    bool copy;
    /* Called for each file once what is said of it is on the disk. status: added duplicate unchanged
     * refused; repo_sync also: relinked changed missing. */
    void (*event)(void *user, const struct repo_event *e);
    int (*progress)(void *user, int done, int total); /* nonzero stops; NULL: none */
    void *user;
};
struct repo_sum {
    int added, duplicate, unchanged, refused, relinked, changed, missing;
    int64_t bytes_read;
};
/* Files, and everything in folders, which are looked through again by repo_sync. A bad file is an event,
 * never an error; errors are of the repository itself (disk full, damaged). */
int repo_add(struct repo *r, const char *const *path, int n, const struct repo_add *how,
             struct repo_sum *sum, struct err *err);
/* Looks at every file and folder again: takes what is new or changed, finds what was moved by its
 * tensors, marks what is gone. */
int repo_sync(struct repo *r, const struct repo_add *how, struct repo_sum *sum, struct err *err);

/* ---- editing --------------------------------------------------------------------------------- */

enum repo_field { REPO_NAME, REPO_CATEGORY, REPO_CLASS_WORD, REPO_NOTES };
/* text "" or NULL: none (a name must be). */
int repo_set(struct repo *r, int64_t key, enum repo_field field, const char *text, struct err *err);
/* NaN: none. */
int repo_set_strength(struct repo *r, int64_t key, double strength, struct err *err);
int repo_tag(struct repo *r, int64_t key, const char *tag, bool on, struct err *err);
/* Adds a group of trigger words; words NULL: forgets all groups. */
int repo_trigger(struct repo *r, int64_t key, const char *words, struct err *err);
/* Forgets the adapter. The file stays; so does our copy, until repo_gc. */
int repo_remove(struct repo *r, int64_t key, struct err *err);
/* Looks at a folder no more; its adapters stay. 1: it was not one of those. */
int repo_forget_folder(struct repo *r, const char *path, struct err *err);
/* Several edits as one: all or none. */
int repo_begin(struct repo *r, struct err *err);
int repo_end(struct repo *r, int rc, struct err *err);

/* ---- care ------------------------------------------------------------------------------------ */

struct repo_report {
    int64_t checked;
    struct texts damaged, missing,
        orphaned; /* "NAME: why"; orphaned: files of ours that no row needs */
    struct texts names_damaged, names_missing; /* the names alone */
};
/* Reads every file and compares hashes; n 0: all adapters, and the database itself. */
int repo_verify(struct repo *r, const int64_t *key, int n, struct repo_report *out,
                int (*progress)(void *user, int done, int total), void *user, struct err *err);
void repo_report_release(struct repo_report *p);
/* Removes copies, previews and embeddings that no adapter needs, and indexes of no embeddings. dry: only says which
 * files. */
int repo_gc(struct repo *r, bool dry, struct texts *removed, int64_t *bytes, struct err *err);
/* Copies the adapter's file to `to`, byte by byte, or refuses when it is not what was added. One with a
 * PEFT config becomes a folder. */
int repo_export(struct repo *r, const struct repo_adapter *a, const char *to, struct err *err);

/* ---- models ---------------------------------------------------------------------------------- */

struct repo_model {
    char *name, *path, *fingerprint;
    int context; /* width of the text that cross-attention sees */
    int64_t added;
};
void repo_model_release(struct repo_model *m);
int repo_model_add(struct repo *r, const struct repo_model *m, struct err *err);
/* 1: no such model. */
int repo_model_find(struct repo *r, const char *name, struct repo_model *out, struct err *err);
int repo_model_list(struct repo *r, int (*each)(void *user, const struct repo_model *m), void *user,
                    struct err *err);
int repo_model_remove(struct repo *r, const char *name, struct err *err);

#endif
