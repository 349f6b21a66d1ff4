/* memory_file.h: bytes as a file that has a path but lies in memory, so that opening is fuzzed too. */
#ifndef WEFT_FUZZ_MEMORY_FILE_H
#define WEFT_FUZZ_MEMORY_FILE_H

#include <assert.h>
#include <stdio.h>
#include <sys/mman.h>
#include <unistd.h>

struct memory_file {
    int fd;
    char path[40];
};

static inline void memory_file_open(struct memory_file *f, const void *bytes, size_t size)
{
    f->fd = memfd_create("fuzz", 0);
    assert(f->fd >= 0 && write(f->fd, bytes, size) == (ssize_t)size);
    snprintf(f->path, sizeof f->path, "/proc/self/fd/%d", f->fd);
}

static inline void memory_file_close(struct memory_file *f)
{
    close(f->fd);
}

#endif
