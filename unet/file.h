/* file.h: whole files, read with a limit and replaced without ever being half there. */
#ifndef WEFT_FILE_H
#define WEFT_FILE_H

#include "err.h"

/* Writes bytes to path by way of a temporary file beside it: written, synced, renamed. Nothing is
 * left behind on failure. The message begins with the path. */
int file_replace(const char *path, const void *bytes, size_t size, struct err *err);

/* The same where the bytes are not at hand: fill writes them to fd, which may also be read and mapped, and
 * returns -1 with errno where it cannot. */
int file_replace_by(const char *path, int (*fill)(void *user, int fd), void *user, struct err *err);

/* Whether file_replace could write there now: folder, permission, kind. Leaves nothing behind. */
int file_can_replace(const char *path, struct err *err);

/* Reads a whole file of at most max bytes. *out is malloc'd and has a NUL after its last byte;
 * size may be NULL. */
int file_read(char **out, size_t *size, const char *path, size_t max, struct err *err);

/* Makes a folder and those above it, where they are not there yet. */
int file_make_folders(const char *path, struct err *err);
/* The folders that a file of that path lies in. */
int file_make_parents(const char *path, struct err *err);

/* A new string "dir/name". NULL when there is no memory. */
char *file_join(const char *dir, const char *name);

/* 1 a regular file, 2 a directory, 0 neither or not there. */
int file_kind(const char *path);
/* Whether something is there under that name, be it a link that leads nowhere. */
int file_exists(const char *path);
/* The last part of a path without slashes at its end and the ending of a tensor file (.safetensors, .pt,
 * .bin, .pth, .ckpt): what a user calls it. A new string, NULL when there is no memory. */
char *file_stem(const char *path);

#endif
