/* All adapter files below a folder. */
#include "repo_private.h"

#include "unet/file.h"

#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define DEPTH_MAX 100

struct walker {
    struct texts *files, *refused;
    struct seen {
        dev_t dev;
        ino_t ino;
    } * seen; /* folders entered: a link may lead back to one */
    size_t n_seen;
};

bool walk_takes(const char *name)
{
    static const char *const endings[] = {".safetensors", ".pt", ".pth", ".bin", ".ckpt"};
    size_t n = strlen(name);
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t k = strlen(endings[i]);
        if (n > k && !strcasecmp(name + n - k, endings[i]))
            return true;
    }
    return false;
}

/* 1: new, 0: been there, negative: no memory. */
static int enter(struct walker *w, const struct stat *st, struct err *err)
{
    for (size_t i = 0; i < w->n_seen; i++)
        if (w->seen[i].dev == st->st_dev && w->seen[i].ino == st->st_ino)
            return 0;
    if ((w->n_seen & (w->n_seen - 1)) == 0) {
        void *p = realloc(w->seen, (w->n_seen ? 2 * w->n_seen : 1) * sizeof *w->seen);
        if (!p)
            return err_nomem(err, w->n_seen * sizeof *w->seen);
        w->seen = p;
    }
    w->seen[w->n_seen++] = (struct seen){st->st_dev, st->st_ino};
    return 1;
}

static int by_bytes(const struct dirent **a, const struct dirent **b)
{
    return strcmp((*a)->d_name, (*b)->d_name);
}

static int walk_folder(struct walker *w, const char *folder, int depth, struct err *err);

static int walk_entry(struct walker *w, const char *path, const char *name, int depth,
                      struct err *err)
{
    struct stat st;
    if (strlen(path) >= PATH_MAX)
        return walk_takes(name) ? texts_add(w->refused, path, err) : 0;
    if (stat(path, &st) < 0) /* a link that leads nowhere, or gone meanwhile */
        return 0;
    if (S_ISDIR(st.st_mode))
        return name[0] == '.' ? 0 : walk_folder(w, path, depth + 1, err);
    return S_ISREG(st.st_mode) && walk_takes(name) && strncmp(name, ".weft-", 6)
               ? texts_add(w->files, path, err)
               : 0;
}

static int walk_folder(struct walker *w, const char *folder, int depth, struct err *err)
{
    struct dirent **entry = NULL;
    struct stat st;
    if (depth > DEPTH_MAX || stat(folder, &st) < 0)
        return 0;
    int rc = enter(w, &st, err);
    if (rc <= 0)
        return rc;
    int n = scandir(folder, &entry, NULL, by_bytes);
    if (n < 0)
        return texts_add(w->refused, folder, err);
    rc = 0;
    for (int i = 0; i < n; i++) {
        const char *name = entry[i]->d_name;
        char *path =
            rc == 0 && strcmp(name, ".") && strcmp(name, "..") ? file_join(folder, name) : NULL;
        if (path)
            rc = walk_entry(w, path, name, depth, err);
        free(path);
        free(entry[i]);
    }
    free(entry);
    return rc;
}

int walk(const char *folder, const char *skip, struct texts *files, struct texts *refused,
         struct err *err)
{
    struct walker w = {files, refused, NULL, 0};
    struct stat st;
    int rc = skip && stat(skip, &st) == 0 ? enter(&w, &st, err) : 1;
    rc = rc < 0 ? rc : walk_folder(&w, folder, 0, err);
    free(w.seen);
    return rc;
}
