/* A file looked at without being taken in. */
#include "repo_private.h"

#include "adapter.h"
#include "unet/file.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static char *copy(const char *s)
{
    return s && *s ? strdup(s) : NULL;
}

static char *take(char **from)
{
    char *s = *from;
    *from = NULL;
    return s;
}

/* The file's own words; what is the row's alone stays empty. */
static int fill(struct repo_adapter *a, const char *path, struct facts *f, struct beside *b,
                struct err *err)
{
    a->name = file_stem(path);
    a->path = strdup(path);
    a->source = strdup(path);
    a->file_sha256 = calloc(1, HASH_HEX);
    a->data_sha256 = calloc(1, HASH_HEX);
    a->declared_hash = take(&f->declared);
    a->config_sha256 = copy(b->config_sha256);
    a->format = copy(f->format);
    a->style = copy(f->style);
    a->kinds = strdup(f->kinds);
    a->base = copy(f->base);
    a->unusable = take(&f->unusable);
    a->dtype = copy(f->dtype);
    a->notes = take(&b->notes);
    a->preview = take(&b->preview);
    a->context = f->context;
    a->rank[0] = f->rank[0];
    a->rank[1] = f->rank[1];
    a->sites = f->sites;
    a->tensors = f->tensors;
    a->norm = (double)NAN;
    a->strength = b->strength;
    return a->name && a->path && a->source && a->file_sha256 && a->data_sha256 && a->kinds &&
                   a->base && a->dtype
               ? 0
               : err_nomem(err, 1024);
}

int repo_inspect(const char *path, struct repo_adapter *out, char **metadata, char **beside,
                 struct err *err)
{
    char *file = file_kind(path) == 2 ? file_join(path, "adapter_model.safetensors") : strdup(path);
    struct tensor_file *st = NULL;
    struct facts f = {0};
    struct beside b = {0};
    struct stat sb;
    size_t size = 0;
    int rc = file ? tensor_file_open(&st, file, err) : err_nomem(err, strlen(path));

    memset(out, 0, sizeof *out);
    *metadata = *beside = NULL;
    rc = rc < 0 ? rc : facts_read(&f, st, file, err);
    rc = rc < 0 ? rc : beside_read(&b, file, st, f.metadata, err);
    rc = rc < 0 ? rc : fill(out, file, &f, &b, err);
    if (rc == 0) {
        const void *data = tensor_file_data(st, &size);
        rc = hash_bytes(out->data_sha256, data, size, err);
    }
    rc = rc < 0 ? rc : hash_file(out->file_sha256, file, err);
    if (rc == 0 && stat(file, &sb) == 0) {
        out->bytes = sb.st_size;
        out->mtime = file_mtime(&sb);
    }
    if (rc == 0) {
        *metadata = take(&f.metadata);
        *beside = take(&b.json);
    } else {
        repo_adapter_release(out);
    }
    facts_release(&f);
    beside_release(&b);
    tensor_file_close(st);
    free(file);
    return rc;
}

int repo_name_base(struct repo *r, struct repo_adapter *a, struct err *err)
{
    sqlite3_stmt *q = NULL;
    if (strcmp(a->base, "unknown") || !a->context)
        return 0;
    int rc = db_query(r->db, err, &q, "SELECT name FROM model WHERE context = ? ORDER BY added",
                      "i", (int64_t)a->context);
    rc = rc < 0 ? rc : db_next(r->db, q, err);
    if (rc == 1) {
        free(a->base);
        a->base = db_copy(q, 0);
        rc = a->base ? 0 : err_nomem(err, 64);
    }
    db_done(q);
    return rc;
}
