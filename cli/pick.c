#include "pick.h"

#include "store/adapter_write.h"
#include "unet/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int find(struct pick *w, struct shelf *s, const char *ref, char **path, struct err *err)
{
    char *home = repo_home(s->home);
    bool there = home && repo_exists(home);
    int rc = there && !s->r ? shelf_open(s, REPO_READ, err) : 0;
    rc = rc < 0 ? rc : s->r ? repo_find(s->r, ref, &w->a, err) : 1;
    if (rc == 0)
        rc = repo_check(s->r, &w->a, err);
    if (rc == 0)
        *path = strdup(w->a.path);
    else if (rc == 1 && file_exists(ref))
        *path = strdup(ref);
    else if (rc == 1)
        rc = s->r ? repo_need(s->r, ref, &w->a, err)
                  : err_set(err, ERR_IO, "%.200s: no such file, and no repository in %s yet", ref,
                            home ? home : "?");
    free(home);
    if (rc >= 0 && !*path)
        rc = err_nomem(err, strlen(ref));
    return rc < 0 ? rc : 0;
}

int pick_open(struct pick *w, struct shelf *s, const char *ref, struct err *err)
{
    char *path = NULL;
    memset(w, 0, sizeof *w);
    int rc = find(w, s, ref, &path, err);
    rc = rc < 0 ? rc : adapter_file_open(&w->file, path, err);
    if (rc == 0) {
        rc = matrices_load(&w->m, &w->file->list, err);
        if (rc < 0)
            err_prefix(err, "%s", path);
    }
    free(path);
    return rc;
}

void pick_close(struct pick *w)
{
    matrices_release(&w->m);
    adapter_file_close(w->file);
    repo_adapter_release(&w->a);
}

const char *pick_name(const struct pick *w)
{
    return w->a.name ? w->a.name : w->file->name;
}

/* Metadata that is not true any more of an adapter made from this one. */
static bool is_stale(const char *key)
{
    static const char *const stale[] = {
        "sshs_model_hash",       "sshs_legacy_hash",      "ss_network_dim", "ss_network_alpha",
        "lora_adapter_metadata", "modelspec.hash_sha256", "format"};
    for (size_t i = 0; i < sizeof stale / sizeof *stale; i++)
        if (!strcmp(key, stale[i]))
            return true;
    return false;
}

int pick_write(const char *path, const char *style, const struct matrices *m,
               const struct adapter_file *from, const char *what, struct err *err)
{
    size_t n = from ? tensor_file_metadata_count(from->st) : 0, k = 0;
    const char *(*meta)[2] = malloc((n + 3) * sizeof *meta);
    if (!meta)
        return err_nomem(err, n * sizeof *meta);
    meta[k][0] = "format", meta[k++][1] = "pt";
    meta[k][0] = "weft.made", meta[k++][1] = what;
    for (size_t i = 0; i < n; i++) {
        tensor_file_metadata_at(from->st, i, &meta[k][0], &meta[k][1]);
        k += !is_stale(meta[k][0]) && strcmp(meta[k][0], "weft.made");
    }
    int rc = adapter_write(path, style, m, (const char *const(*)[2])meta, k, err);
    free(meta);
    return rc;
}
