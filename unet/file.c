#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int write_all(int fd, const void *bytes, size_t size)
{
    const char *p = bytes;
    while (size > 0) {
        ssize_t n = write(fd, p, size);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -1;
        p += n;
        size -= (size_t)n;
    }
    return 0;
}

/* A temporary file beside path, open for writing; its name goes to temp. */
static int open_beside(const char *path, char *temp, size_t size, struct err *err)
{
    struct stat st;
    int len = snprintf(temp, size, "%s.XXXXXX", path);
    if (len < 0 || (size_t)len >= size)
        return err_set(err, ERR_ARG, "%.60s…: the path is too long", path);
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return err_set(err, ERR_IO, "%s: %s, not a file that could be replaced", path,
                       S_ISDIR(st.st_mode) ? "a folder" : "a device or pipe");
    int fd = mkstemp(temp);
    if (fd < 0)
        return err_set(err, ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
    return fd;
}

int file_can_replace(const char *path, struct err *err)
{
    char temp[PATH_MAX];
    int fd = open_beside(path, temp, sizeof temp, err);
    if (fd < 0)
        return fd;
    close(fd);
    unlink(temp);
    return 0;
}

int file_replace(const char *path, const void *bytes, size_t size, struct err *err)
{
    char temp[PATH_MAX];
    int rc = 0, fd = open_beside(path, temp, sizeof temp, err);
    if (fd < 0)
        return fd;
    mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd, 0666 & ~mask) < 0 || write_all(fd, bytes, size) < 0 || fsync(fd) < 0 ||
        rename(temp, path) < 0) {
        rc = err_set(err, ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
        unlink(temp);
    }
    close(fd);
    return rc;
}

int file_read(char **out, size_t *size, const char *path, size_t max, struct err *err)
{
    char *buf = NULL;
    size_t n = 0;
    int rc = 0;

    *out = NULL;
    FILE *f = fopen(path, "rb");
    if (!f)
        return err_set(err, ERR_IO, "%s: %s", path, strerror(errno));
    struct stat st;
    if (fstat(fileno(f), &st) < 0 || !S_ISREG(st.st_mode)) {
        rc = err_set(err, ERR_IO, "%s: not a regular file", path);
        goto out;
    }
    if ((uintmax_t)st.st_size > max) {
        rc = err_set(err, ERR_FORMAT,
                     "%s: %jd bytes, more than the %zu a file of this kind may have", path,
                     (intmax_t)st.st_size, max);
        goto out;
    }
    size_t want = (size_t)st.st_size;
    buf = malloc(want + 1);
    if (!buf) {
        rc = err_nomem(err, want + 1);
        goto out;
    }
    n = fread(buf, 1, want, f);
    if (n != want) {
        rc = err_set(err, ERR_IO, "%s: cannot be read whole: %s", path,
                     ferror(f) ? strerror(errno) : "it became shorter while being read");
        goto out;
    }
    buf[n] = 0;
    *out = buf;
    buf = NULL;
    if (size)
        *size = n;
out:
    free(buf);
    fclose(f);
    return rc;
}

char *file_join(const char *dir, const char *name)
{
    size_t n = strlen(dir), need = n + strlen(name) + 2;
    char *p = malloc(need);
    if (p)
        snprintf(p, need, "%s%s%s", dir, n && dir[n - 1] == '/' ? "" : "/", name);
    return p;
}

int file_kind(const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return 0;
    return S_ISREG(st.st_mode) ? 1 : S_ISDIR(st.st_mode) ? 2 : 0;
}
