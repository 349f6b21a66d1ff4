/* jobs_private.h: what the readers of the three kinds of files share. Who wants jobs takes jobs_read.h. */
#ifndef WEFT_JOBS_PRIVATE_H
#define WEFT_JOBS_PRIVATE_H

#include "jobs_read.h"

#include <stdbool.h>

#ifndef JOBS_REPEAT_MOST /* of a line; tests want fewer */
#define JOBS_REPEAT_MOST 1000000
#endif

/* A file being read. */
struct jobs_reading {
    struct jobs *jobs;
    int first;        /* where the jobs of this file begin */
    const char *name; /* of the file, for messages */
    jobs_bad *bad;
    void *user;

    char *p, *end;   /* what is left of the text; there is a NUL at end */
    int line, start; /* where p is; where the line being read begins, which of CSV can be several */
    json_t *columns; /* their names; NULL: not CSV, or not known yet */
};

/* Adds all jobs of the line being read, or none. object has its names and values. */
int jobs_add_line(struct jobs_reading *r, json_t *object, struct err *err);

/* The name of an option that key means; NULL: none can be called that. */
const char *jobs_name(const char *key, struct err *err);
/* Whether v is a whole number of that range; cells have them as text, and other programs as 7.0. */
bool jobs_whole(const json_t *v, json_int_t min, json_int_t max, json_int_t *out);
/* ERR_FORMAT where there is one in s[0..n). */
int jobs_check_nul(const char *s, size_t n, struct err *err);
/* The record at p, which comes to the end of its last line; the first is that of the columns. */
int jobs_csv_record(struct jobs_reading *r, struct err *err);
/* A line, which is s[0..n) with a NUL behind it and is cut to pieces. */
int jobs_text_line(struct jobs_reading *r, char *s, size_t n, struct err *err);

#endif
