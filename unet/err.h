/* err.h: how weft says what went wrong.
 *
 * A function that can fail returns 0, or a negative ERR_ code, and takes `struct err *err` last.
 * The message names the file, what is wrong, and what to do. Callers may put context in front.
 * It is not for bugs of our own: those are assertions.
 *
 *     struct err err;
 *     if (model_open(&m, dev, dir, &err) < 0)
 *         fprintf(stderr, "weft: %s\n", err.msg);
 */
#ifndef WEFT_ERR_H
#define WEFT_ERR_H

#include <stddef.h>

enum {
    ERR_IO = -1,          /* the operating system refused: missing, unreadable, disk full */
    ERR_FORMAT = -2,      /* a file is damaged, hostile or not what its name says */
    ERR_UNSUPPORTED = -3, /* a valid request or file that weft does not do */
    ERR_ARG = -4,         /* the caller asked for something that makes no sense */
    ERR_NOMEM = -5,       /* no memory */
    ERR_MISMATCH = -6,    /* two things that are each valid do not fit each other */
    ERR_STOPPED = -7,     /* the user asked to stop */
};

struct err {
    int code;       /* 0 or ERR_ */
    char msg[1024]; /* one line, no full stop, always terminated; cut if longer */
};

/* Stores code and message and returns code. err may be NULL; the code is returned all the same. Names
 * from files may hold anything: control characters in the message become '?'. */
int err_set(struct err *err, int code, const char *fmt, ...) __attribute__((format(printf, 3, 4)));

/* Puts "…: " in front of a message that is already there. Returns err's code (err NULL: ERR_FORMAT). */
int err_prefix(struct err *err, const char *fmt, ...) __attribute__((format(printf, 2, 3)));

/* Control characters of s become '?', so that it can be shown on a terminal, on one line. */
void err_printable(char *s);

/* ERR_NOMEM with the number of bytes that could not be had. */
int err_nomem(struct err *err, size_t bytes);

/* No error yet. */
void err_clear(struct err *err);

#endif
