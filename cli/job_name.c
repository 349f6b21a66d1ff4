#include "job_name.h"

#include "unet/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const field[] = {"n", "id", "seed", "prompt", "adapters", "compose"};
enum { FIELDS = sizeof field / sizeof *field, PART_BYTES = 60 };

/* Which field "{...}" is, *n its length; -1: none. */
static int field_at(const char *s, size_t *n)
{
    *n = strcspn(s, "}") + 1;
    for (int i = 0; i < FIELDS; i++)
        if (strlen(field[i]) + 2 == *n && !strncmp(s + 1, field[i], *n - 2))
            return i;
    return -1;
}

int job_name_check(const char *name, struct err *err)
{
    size_t n;
    for (const char *p = name; (p = strchr(p, '{')); p++)
        if (field_at(p, &n) < 0)
            return err_set(err, ERR_ARG,
                           "--name %.80s: knows {n}, {id}, {seed}, {prompt}, {adapters}, {compose}",
                           name);
    if (!*name || *name == '/' || strstr(name, "..") || name[strlen(name) - 1] == '/')
        return err_set(err, ERR_ARG,
                       "--name %.80s: a file's name below the folder of -o, without ..", name);
    return 0;
}

/* Part of a name: what is a letter, digit, one of ._+- or beyond ASCII stays, all else is a dash. */
static void put_part(FILE *f, const char *s, size_t most)
{
    bool dash = true; /* none at the beginning, nor a dot */
    long began = ftell(f);
    for (size_t i = 0; s && s[i] && i < most; i++) {
        unsigned char c = (unsigned char)s[i];
        bool plain = c >= 0x80 || (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                     (c >= 'A' && c <= 'Z') || c == '_' || c == '+' || (c == '.' && !dash);
        if (c >= 0xc0 && i + 4 > most)
            break; /* a letter of several bytes stays whole */
        if (plain)
            fputc(c, f);
        else if (!dash)
            fputc('-', f);
        dash = !plain;
    }
    if (ftell(f) == began)
        fputc('_', f);
}

static void put_field(FILE *f, int which, const struct request *r, int64_t n, const char *id)
{
    switch (which) {
    case 0: fprintf(f, "%05lld", (long long)n); break;
    case 1: put_part(f, id, JOB_NAME_MAX); break;
    case 2: fprintf(f, "%llu", (unsigned long long)r->seed); break;
    case 3: put_part(f, r->prompt, PART_BYTES); break;
    case 4:
        fputs(r->n_adapter ? "" : "none", f);
        for (int i = 0; i < r->n_adapter; i++) {
            char *stem = r->adapter[i].name ? NULL : file_stem(r->adapter[i].path);
            fputs(i ? "+" : "", f);
            put_part(f, stem ? stem : r->adapter[i].name, PART_BYTES);
            free(stem);
        }
        break;
    default: put_part(f, r->compose ? r->compose : "merge", PART_BYTES);
    }
}

char *job_name(const char *name, const struct request *r, int64_t place, const char *id)
{
    char *out = NULL;
    size_t size, n;
    FILE *f = open_memstream(&out, &size);
    if (!f)
        return NULL;
    for (const char *p = name; *p; p += n) {
        n = 1;
        int which = *p == '{' ? field_at(p, &n) : -1;
        if (which < 0)
            fputc(*p, f);
        else
            put_field(f, which, r, place, id);
    }
    fflush(f);
    if (size < 4 || strcmp(out + size - 4, ".png"))
        fputs(".png", f);
    if (fclose(f) == 0)
        return out;
    free(out);
    return NULL;
}
