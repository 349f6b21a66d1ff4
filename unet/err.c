#include "err.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void err_printable(char *s)
{
    for (; *s; s++)
        if ((unsigned char)*s < 0x20 || *s == 0x7f)
            *s = '?';
}

int err_set(struct err *err, int code, const char *fmt, ...)
{
    if (!err)
        return code;
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(err->msg, sizeof err->msg, fmt, ap);
    va_end(ap);
    err_printable(err->msg);
    err->code = code;
    return code;
}

int err_prefix(struct err *err, const char *fmt, ...)
{
    if (!err)
        return ERR_FORMAT;
    char front[sizeof err->msg];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(front, sizeof front - 2, fmt, ap);
    va_end(ap);
    strcat(front, ": ");
    err_printable(front);
    size_t n = strlen(front), keep = sizeof err->msg - 1 - n, old = strlen(err->msg);
    memmove(err->msg + n, err->msg, old < keep ? old : keep);
    err->msg[n + (old < keep ? old : keep)] = 0;
    memcpy(err->msg, front, n);
    return err->code;
}

int err_nomem(struct err *err, size_t bytes)
{
    return err_set(err, ERR_NOMEM, "out of memory: %zu bytes could not be had", bytes);
}

void err_clear(struct err *err)
{
    err->code = 0;
    err->msg[0] = 0;
}
