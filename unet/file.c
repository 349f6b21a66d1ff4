#include "file.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
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

/* Where a file of that name really is to be written: a link is followed, so that it stays a link. */
static int resolve(const char *path, char *real, size_t size, struct err *err)
{
    char target[PATH_MAX];
    if (!*path)
        return err_set(err, ERR_ARG, "an empty name is no file");
    if (realpath(path, target))
        path = target;
    int n = snprintf(real, size, "%s", path);
    return n < 0 || (size_t)n >= size ? err_set(err, ERR_ARG, "%.60s…: the path is too long", path)
                                      : 0;
}

/* A temporary file in the folder of path, open for writing; its name goes to temp. */
static int open_beside(const char *path, char *temp, size_t size, struct err *err)
{
    struct stat st;
    const char *slash = strrchr(path, '/');
    int dir = slash ? (int)(slash - path) + 1 : 0;
    int len = snprintf(temp, size, "%.*s.weft-XXXXXX", dir, path);
    if (len < 0 || (size_t)len >= size)
        return err_set(err, ERR_ARG, "%.60s…: the path is too long", path);
    if (stat(path, &st) == 0 && !S_ISREG(st.st_mode))
        return err_set(err, ERR_IO, "%s: %s, not a file that could be replaced", path,
                       S_ISDIR(st.st_mode) ? "a folder" : "a device or pipe");
    if (access(path, F_OK) == 0 && access(path, W_OK) < 0)
        return err_set(err, ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
    if (strlen(path + dir) > NAME_MAX)
        return err_set(err, ERR_IO, "%s: cannot be written: %s", path, strerror(ENAMETOOLONG));
    int fd = mkstemp(temp);
    if (fd < 0)
        return err_set(err, ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
    return fd;
}

/* While a temporary file exists nobody may end the program, or it would stay behind. */
static void hold_signals(sigset_t *old)
{
    sigset_t ending;
    sigemptyset(&ending);
    sigaddset(&ending, SIGINT);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGHUP);
    pthread_sigmask(SIG_BLOCK, &ending, old);
}

int file_can_replace(const char *path, struct err *err)
{
    char real[PATH_MAX], temp[PATH_MAX];
    sigset_t old;
    int fd = resolve(path, real, sizeof real, err);
    if (fd < 0)
        return fd;
    hold_signals(&old);
    fd = open_beside(real, temp, sizeof temp, err);
    if (fd >= 0) {
        close(fd);
        unlink(temp);
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return fd < 0 ? fd : 0;
}

static int replace(const char *path, int (*fill)(void *user, int fd), void *user, struct err *err)
{
    char temp[PATH_MAX];
    int rc = 0, fd = open_beside(path, temp, sizeof temp, err);
    if (fd < 0)
        return fd;
    mode_t mask = umask(0);
    umask(mask);
    if (fchmod(fd, 0666 & ~mask) < 0 || fill(user, fd) < 0 || fsync(fd) < 0 ||
        rename(temp, path) < 0) {
        rc = err_set(err, ERR_IO, "%s: cannot be written: %s", path, strerror(errno));
        unlink(temp);
    }
    close(fd);
    return rc;
}

int file_replace_by(const char *path, int (*fill)(void *user, int fd), void *user, struct err *err)
{
    char real[PATH_MAX];
    sigset_t old;
    int rc = resolve(path, real, sizeof real, err);
    if (rc < 0)
        return rc;
    hold_signals(&old);
    rc = replace(real, fill, user, err);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    return rc;
}

struct bytes {
    const void *at;
    size_t size;
};

static int fill_bytes(void *user, int fd)
{
    const struct bytes *b = user;
    return write_all(fd, b->at, b->size);
}

int file_replace(const char *path, const void *bytes, size_t size, struct err *err)
{
    return file_replace_by(path, fill_bytes, &(struct bytes){bytes, size}, err);
}

int file_read(char **out, size_t *size, const char *path, size_t max, struct err *err)
{
    char *buf = NULL;
    size_t n = 0;
    int rc = 0;

    *out = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    FILE *f = fd < 0 ? NULL : fdopen(fd, "rb");
    if (!f) {
        rc = err_set(err, ERR_IO, "%s: %s", path, strerror(errno));
        if (fd >= 0)
            close(fd);
        return rc;
    }
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

int file_exists(const char *path)
{
    struct stat st;
    return lstat(path, &st) == 0;
}

char *file_stem(const char *path)
{
    static const char *const ends[] = {".safetensors", ".pt", ".bin", ".pth", ".ckpt"};
    size_t n = strlen(path), from;
    while (n > 1 && path[n - 1] == '/')
        n--;
    for (from = n; from > 0 && path[from - 1] != '/';)
        from--;
    for (size_t i = 0; i < sizeof ends / sizeof *ends; i++) {
        size_t k = strlen(ends[i]);
        if (n - from > k && !memcmp(path + n - k, ends[i], k)) {
            n -= k;
            break;
        }
    }
    return strndup(path + from, n - from);
}

/* Those above the last part. */
static int make_above(char *path, struct err *err)
{
    for (char *s = path; (s = strchr(s + 1, '/'));) {
        *s = 0;
        int bad = mkdir(path, 0777) < 0 ? errno : 0;
        if (bad && bad != EEXIST && file_kind(path) != 2)
            return err_set(err, ERR_IO, "%s: cannot be made: %s", path, strerror(bad));
        *s = '/';
    }
    return 0;
}

int file_make_parents(const char *path, struct err *err)
{
    char *own = strdup(path);
    int rc = own ? make_above(own, err) : err_nomem(err, strlen(path));
    free(own);
    return rc;
}

int file_make_folders(const char *path, struct err *err)
{
    int rc = file_make_parents(path, err);
    if (rc == 0 && mkdir(path, 0777) < 0 && errno != EEXIST)
        rc = err_set(err, ERR_IO, "%s: cannot be made: %s", path, strerror(errno));
    return rc == 0 && file_kind(path) != 2
               ? err_set(err, ERR_IO, "%s: is there, and no folder", path)
               : rc;
}

int file_kind(const char *path)
{
    struct stat st;
    if (stat(path, &st) < 0)
        return 0;
    return S_ISREG(st.st_mode) ? 1 : S_ISDIR(st.st_mode) ? 2 : 0;
}
