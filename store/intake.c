/* Files on their way in: looked at one by one, taken in by groups; and adding. */
#include "repo_private.h"

#include "unet/file.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define GROUP_BYTES   (256 << 20) /* copied bytes after which a group is taken in */
#define GROUP_SECONDS 2           /* and time */

int64_t file_mtime(const struct stat *st)
{
    return (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec;
}

void intake_release(struct intake *in)
{
    facts_release(&in->facts);
    beside_release(&in->beside);
    free(in->path);
    free(in->blob);
    free(in->name);
    free(in->id);
    free(in->reason);
    memset(in, 0, sizeof *in);
}

static double seconds(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* ---- one file -------------------------------------------------------------------------------- */

/* Whatever is wrong with a file is the file's own trouble, unless memory ran out. */
static int as_refusal(struct err *err)
{
    if (err->code != ERR_NOMEM)
        err->code = ERR_FORMAT;
    return err->code;
}

/* Checks the container and tells what it is; then reads it once, whole. */
static int look_at(struct group *g, struct intake *in, struct err *err)
{
    struct tensor_file *st = NULL;
    struct stat before, after;
    char tensors[HASH_HEX] = "";
    size_t data = 0;
    bool torch = false;
    int rc;

    if (stat(in->path, &before) < 0)
        return err_set(err, ERR_FORMAT, "%s: %s", in->path, strerror(errno));
    in->bytes = before.st_size;
    in->mtime = file_mtime(&before);
    rc = tensor_file_open(&st, in->path, err);
    rc = rc < 0 ? rc : facts_read(&in->facts, st, in->path, err);
    if (rc == 0) {
        const void *p = tensor_file_data(st, &data);
        torch = strcmp(tensor_file_container(st), "safetensors") != 0;
        rc = torch ? hash_bytes(tensors, p, data, err) : 0; /* they lie apart in the file */
    }
    rc = rc < 0 ? rc : beside_read(&in->beside, in->path, st, in->facts.metadata, err);
    tensor_file_close(st);
    if (rc < 0)
        return as_refusal(err);
    if (in->beside.note)
        in->reason = strdup(in->beside.note);
    rc = stage_read(g->stage, in, torch ? (size_t)in->bytes : (size_t)in->bytes - data,
                    g->how->copy, err);
    if (torch)
        memcpy(in->data_sha256, tensors, sizeof tensors);
    if (rc == 0 && (stat(in->path, &after) < 0 || after.st_size != before.st_size ||
                    file_mtime(&after) != in->mtime || after.st_ino != before.st_ino))
        rc = err_set(err, ERR_FORMAT, "%s: it is being written to; try again later", in->path);
    g->sum->bytes_read += in->bytes;
    return rc;
}

/* Whether a row has this path with the same size and time (and a copy, when one is wanted): 1. */
static int is_unchanged(struct group *g, const char *path, struct err *err)
{
    struct repo_adapter a;
    struct stat st;
    char sha[HASH_HEX] = "";
    int rc =
        row_one(g->r, &a, err, "SELECT " ROW_COLUMNS " FROM adapter WHERE path = ?", "b", path);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    bool same = stat(path, &st) == 0 && st.st_size == a.bytes && file_mtime(&st) == a.mtime &&
                !a.missing && (a.copied || !g->how->copy);
    char *config = same ? beside_config(path) : NULL;
    if (config && hash_file(sha, config, err) < 0)
        *sha = 0;
    same = same && !strcmp(sha, a.config_sha256 ? a.config_sha256 : "");
    free(config);
    if (same) {
        struct repo_event e = {path, "unchanged", a.name, a.id, NULL};
        g->sum->unchanged++;
        if (g->how->event && !g->sync)
            g->how->event(g->how->user, &e);
    }
    repo_adapter_release(&a);
    return same;
}

/* ---- groups ---------------------------------------------------------------------------------- */

int group_open(struct group *g, struct repo *r, const struct repo_add *how, struct repo_sum *sum,
               struct err *err)
{
    memset(g, 0, sizeof *g);
    memset(sum, 0, sizeof *sum);
    g->r = r;
    g->how = how;
    g->sum = sum;
    g->in = calloc(GROUP_MAX, sizeof *g->in);
    return g->in ? stage_open(&g->stage, r, err) : err_nomem(err, GROUP_MAX * sizeof *g->in);
}

void group_close(struct group *g)
{
    for (int i = 0; g->in && i < GROUP_MAX; i++)
        intake_release(&g->in[i]);
    free(g->in);
    stage_close(g->stage);
    memset(g, 0, sizeof *g);
}

static void tell(struct group *g, const struct intake *in)
{
    struct repo_sum *s = g->sum;
    const char *status = in->status;
    if (!strcmp(status, "changed") && !g->sync)
        status = "added";
    if (!strcmp(status, "relinked") && !g->sync)
        status = "unchanged";
    const struct {
        const char *status;
        int *count;
    } counts[] = {{"added", &s->added},         {"duplicate", &s->duplicate},
                  {"unchanged", &s->unchanged}, {"refused", &s->refused},
                  {"relinked", &s->relinked},   {"changed", &s->changed}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        *counts[i].count += !strcmp(status, counts[i].status);
    struct repo_event e = {in->path, status, in->name, in->id, in->reason};
    if (g->how->event && !(g->sync && !strcmp(status, "unchanged")))
        g->how->event(g->how->user, &e);
}

int group_flush(struct group *g, struct err *err)
{
    int rc = g->n ? stage_commit(g->stage, g->in, g->n, err) : 0;
    bool begun = false;
    if (rc == 0 && g->n) {
        rc = db_begin(g->r->db, err);
        begun = rc == 0;
    }
    for (int i = 0; i < g->n && rc == 0; i++)
        rc = row_take(g->r, &g->in[i], err);
    if (begun)
        rc = db_end(g->r->db, rc, err);
    stage_done(g->stage, rc);
    for (int i = 0; i < g->n; i++) {
        if (rc == 0)
            tell(g, &g->in[i]);
        intake_release(&g->in[i]);
    }
    g->n = 0;
    g->bytes = 0;
    return rc;
}

void group_refuse(struct group *g, const char *path, const char *why)
{
    size_t n = strlen(path);
    if (!strncmp(why, path, n) && !strncmp(why + n, ": ", 2))
        why += n + 2;
    struct intake in = {.path = strdup(path), .status = "refused", .reason = strdup(why)};
    if (in.path)
        tell(g, &in);
    intake_release(&in);
}

int group_add(struct group *g, const char *path, struct err *err)
{
    struct intake *in = &g->in[g->n];
    int rc = is_unchanged(g, path, err);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    if (g->n == 0)
        g->began = seconds();
    in->path = strdup(path);
    rc = in->path ? look_at(g, in, err) : err_nomem(err, strlen(path));
    if (rc == ERR_FORMAT || rc == ERR_UNSUPPORTED) {
        group_refuse(g, path, err->msg);
        intake_release(in);
        return 0;
    }
    if (rc < 0) {
        intake_release(in);
        return rc;
    }
    g->bytes += g->how->copy ? in->bytes : 0;
    g->n++;
    return g->n == GROUP_MAX || g->bytes > GROUP_BYTES || seconds() - g->began > GROUP_SECONDS
               ? group_flush(g, err)
               : 0;
}

/* ---- add ------------------------------------------------------------------------------------- */

int group_take_files(struct group *g, const struct texts *files, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < files->n && rc == 0; i++) {
        rc = group_add(g, files->item[i], err);
        if (rc == 0 && g->how->progress && g->how->progress(g->how->user, i + 1, files->n))
            break;
    }
    /* what was looked at before the trouble is taken in all the same */
    struct err later;
    int end = group_flush(g, rc < 0 ? &later : err);
    return rc < 0 ? rc : end;
}

static int remember_folder(struct repo *r, const char *path, bool copy, struct err *err)
{
    return db_do(r->db, err,
                 "INSERT INTO folder VALUES (?, ?) ON CONFLICT DO UPDATE SET copy = excluded.copy",
                 "bi", path, (int64_t)copy);
}

/* One argument of add: a file, a PEFT folder, a folder of files. */
static int collect(struct group *g, const char *given, const char *home, struct texts *files,
                   struct texts *refused, struct err *err)
{
    char *path = realpath(given, NULL);
    int rc = 0;
    if (!path) {
        group_refuse(g, given, strerror(errno));
        return 0;
    }
    if (file_kind(path) == 2) {
        rc = remember_folder(g->r, path, g->how->copy, err);
        rc = rc < 0 ? rc : walk(path, home, files, refused, err);
    } else if (file_kind(path) == 1) {
        rc = texts_add(files, path, err);
    } else {
        group_refuse(g, path, "neither a file nor a folder");
    }
    free(path);
    return rc;
}

/* Links are followed: a row is of the file itself. */
void texts_resolve(struct texts *files)
{
    for (int i = 0; i < files->n; i++) {
        char *real = realpath(files->item[i], NULL);
        if (real) {
            free(files->item[i]);
            files->item[i] = real;
        }
    }
}

int repo_add(struct repo *r, const char *const *path, int n, const struct repo_add *how,
             struct repo_sum *sum, struct err *err)
{
    struct group g;
    struct texts files = {0}, refused = {0};
    char *home = realpath(r->home, NULL);
    int rc = group_open(&g, r, how, sum, err);
    for (int i = 0; i < n && rc == 0; i++)
        rc = collect(&g, path[i], home, &files, &refused, err);
    for (int i = 0; i < refused.n && rc == 0; i++)
        group_refuse(&g, refused.item[i], "cannot be entered, or its path is too long");
    texts_resolve(&files);
    rc = rc < 0 ? rc : group_take_files(&g, &files, err);
    group_close(&g);
    texts_release(&files);
    texts_release(&refused);
    free(home);
    return rc;
}
