#include "tensor_file.h"

#include "torch_file.h"

#include "unet/safetensors.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* One of three: safetensors, a torch file, or a view of another. */
struct tensor_file {
    void *map; /* NULL where the bytes are the caller's */
    size_t map_size;
    struct safetensors *st;
    struct torch_file torch;      /* a view's names, too */
    const struct tensor_file *of; /* a view of it, or NULL */
};

static int parse(struct tensor_file *f, const void *bytes, size_t size, struct err *err)
{
    if (torch_file_is(bytes, size))
        return torch_file_read(&f->torch, bytes, size, err);
    return safetensors_parse(&f->st, bytes, size, err);
}

int tensor_file_parse(struct tensor_file **out, const void *bytes, size_t size, struct err *err)
{
    *out = NULL;
    struct tensor_file *f = calloc(1, sizeof *f);
    int rc = f ? parse(f, bytes, size, err) : err_nomem(err, sizeof *f);
    if (rc < 0)
        tensor_file_close(f);
    else
        *out = f;
    return rc;
}

/* All of fd into memory that is mapped, but to nothing. */
static int copy_file(void *to, size_t size, int fd)
{
    for (size_t at = 0; at < size;) {
        ssize_t n = read(fd, (char *)to + at, size - at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            errno = n ? errno : EIO; /* it became shorter meanwhile */
            return -1;
        }
        at += (size_t)n;
    }
    return mprotect(to, size, PROT_READ);
}

static int map_file(struct tensor_file *f, const char *path, bool copy, struct err *err)
{
    struct stat sb;
    int rc = 0,
        fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    if (fd < 0)
        return err_set(err, ERR_IO, "%s: %s", path, strerror(errno));
    if (fstat(fd, &sb) < 0 || !S_ISREG(sb.st_mode)) {
        rc = err_set(err, ERR_IO, "%s: not a regular file", path);
    } else if (sb.st_size > 0) {
        void *map = copy ? mmap(NULL, (size_t)sb.st_size, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
                         : mmap(NULL, (size_t)sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED)
            rc = err_set(err, ERR_IO, "%s: cannot be mapped: %s", path, strerror(errno));
        else
            f->map = map, f->map_size = (size_t)sb.st_size;
        if (rc == 0 && copy && copy_file(map, (size_t)sb.st_size, fd) < 0)
            rc = err_set(err, ERR_IO, "%s: cannot be read: %s", path, strerror(errno));
    }
    close(fd);
    return rc;
}

static int open_file(struct tensor_file **out, const char *path, bool copy, struct err *err)
{
    *out = NULL;
    struct tensor_file *f = calloc(1, sizeof *f);
    if (!f)
        return err_nomem(err, sizeof *f);
    int rc = map_file(f, path, copy, err);
    if (rc == 0 && (rc = parse(f, f->map, f->map_size, err)) < 0)
        err_prefix(err, "%s", path);
    if (rc < 0)
        tensor_file_close(f);
    else
        *out = f;
    return rc;
}

int tensor_file_open(struct tensor_file **out, const char *path, struct err *err)
{
    return open_file(out, path, false, err);
}

int tensor_file_read(struct tensor_file **out, const char *path, struct err *err)
{
    return open_file(out, path, true, err);
}

size_t tensor_file_bytes(const struct tensor_file *f)
{
    return f->of ? tensor_file_bytes(f->of) : f->map_size + f->torch.data_size;
}

void tensor_file_close(struct tensor_file *f)
{
    if (!f)
        return;
    safetensors_close(f->st);
    torch_file_release(&f->torch);
    if (f->map)
        munmap(f->map, f->map_size);
    free(f);
}

const char *tensor_file_container(const struct tensor_file *f)
{
    return f->of ? tensor_file_container(f->of) : f->st ? "safetensors" : f->torch.container;
}

/* ---- tensors --------------------------------------------------------------------------------- */

size_t tensor_file_count(const struct tensor_file *f)
{
    return f->st ? safetensors_count(f->st) : f->torch.n;
}

const char *tensor_file_name(const struct tensor_file *f, size_t i)
{
    if (f->st)
        return safetensors_name(f->st, i);
    assert(i < f->torch.n);
    return f->torch.item[i].name;
}

const struct array *tensor_file_at(const struct tensor_file *f, size_t i)
{
    if (f->st)
        return safetensors_at(f->st, i);
    assert(i < f->torch.n);
    return &f->torch.item[i].a;
}

static int by_name(const void *va, const void *vb)
{
    const struct torch_item *a = va, *b = vb;
    return strcmp(a->name, b->name);
}

const struct array *tensor_file_find(const struct tensor_file *f, const char *name)
{
    const struct torch_item key = {.name = (char *)name}, *hit;
    if (f->st)
        return safetensors_find(f->st, name);
    hit = f->torch.n ? bsearch(&key, f->torch.item, f->torch.n, sizeof key, by_name) : NULL;
    return hit ? &hit->a : NULL;
}

const void *tensor_file_data(const struct tensor_file *f, size_t *size)
{
    if (f->of)
        return tensor_file_data(f->of, size);
    if (f->st)
        return safetensors_data(f->st, size);
    *size = f->torch.data_size;
    return f->torch.data;
}

/* ---- metadata -------------------------------------------------------------------------------- */

size_t tensor_file_metadata_count(const struct tensor_file *f)
{
    if (f->of)
        return tensor_file_metadata_count(f->of);
    return f->st ? safetensors_metadata_count(f->st) : f->torch.n_meta;
}

void tensor_file_metadata_at(const struct tensor_file *f, size_t i, const char **key,
                             const char **value)
{
    if (f->of || f->st) {
        f->of ? tensor_file_metadata_at(f->of, i, key, value)
              : safetensors_metadata_at(f->st, i, key, value);
        return;
    }
    assert(i < f->torch.n_meta);
    *key = f->torch.meta[i].key;
    *value = f->torch.meta[i].value;
}

const char *tensor_file_metadata(const struct tensor_file *f, const char *key)
{
    for (size_t i = 0; i < tensor_file_metadata_count(f); i++) {
        const char *k, *value;
        tensor_file_metadata_at(f, i, &k, &value);
        if (!strcmp(k, key))
            return value;
    }
    return NULL;
}

/* ---- views ----------------------------------------------------------------------------------- */

static int fill_view(struct tensor_file *v, tensor_file_rename *rename, void *user, struct err *err)
{
    char buf[512];
    size_t n = tensor_file_count(v->of);
    struct torch_item *item = v->torch.item = calloc(n + 1, sizeof *item);
    if (!item)
        return err_nomem(err, n * sizeof *item);
    for (size_t i = 0; i < n; i++) {
        const char *name = rename(user, v->of, i, buf, sizeof buf);
        if (!name)
            continue;
        struct torch_item *to = &item[v->torch.n++];
        to->a = *tensor_file_at(v->of, i);
        if (!(to->name = strdup(name)))
            return err_nomem(err, strlen(name));
    }
    if (v->torch.n)
        qsort(item, v->torch.n, sizeof *item, by_name);
    for (size_t i = 1; i < v->torch.n; i++)
        if (!strcmp(item[i].name, item[i - 1].name))
            return err_set(err, ERR_FORMAT, "two tensors mean '%.200s'", item[i].name);
    return 0;
}

int tensor_file_view(struct tensor_file **out, const struct tensor_file *f,
                     tensor_file_rename *rename, void *user, struct err *err)
{
    *out = NULL;
    struct tensor_file *v = calloc(1, sizeof *v);
    if (!v)
        return err_nomem(err, sizeof *v);
    v->of = f;
    int rc = fill_view(v, rename, user, err);
    if (rc < 0)
        tensor_file_close(v);
    else
        *out = v;
    return rc;
}
