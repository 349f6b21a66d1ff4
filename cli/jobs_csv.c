/* CSV files of jobs, as RFC 4180 has them; the first line names the columns. */
#include "jobs_private.h"

#include "unet/text.h"

#include <string.h>
#include <strings.h>

/* p is at the opening quote, and then behind the closing one; the text, unquoted, begins where the quote stood. */
static int read_quoted(struct jobs_reading *r, size_t *n, struct err *err)
{
    char *start = r->p++, *out = start;
    for (; r->p < r->end; *out++ = *r->p++) {
        if (*r->p == '"' && *++r->p != '"') {
            *n = (size_t)(out - start);
            return 0;
        }
        r->line += *r->p == '\n';
    }
    return err_set(err, ERR_FORMAT, "a quote is not closed");
}

/* Adds the cell at p to record, null where nothing stands. p comes to the comma, the line's end or the file's. */
static int read_cell(struct jobs_reading *r, json_t *record, struct err *err)
{
    const char *start = r->p, *rest;
    bool quoted = *start == '"';
    size_t n = 0, more;
    if (quoted && read_quoted(r, &n, err) < 0)
        return err->code;
    rest = r->p;
    while (r->p < r->end && *r->p != ',' && *r->p != '\n')
        r->p++;
    more = (size_t)(r->p - rest);
    more -= more && rest[more - 1] == '\r' && *r->p != ',';
    if (quoted && more)
        return err_set(err, ERR_FORMAT, "text behind a closing quote");
    if (memchr(rest, '"', more))
        return err_set(err, ERR_FORMAT, "a quote in a cell that does not begin with one");
    n += more;
    if (jobs_check_nul(start, n, err) < 0)
        return err->code;
    json_t *v = quoted || n ? json_stringn_nocheck(start, n) : json_null();
    return json_array_append_new(record, v) < 0 ? err_nomem(err, n) : 0;
}

/* p comes to the end of a line, after a bad cell too. */
static int read_record(struct jobs_reading *r, json_t *record, struct err *err)
{
    int rc = read_cell(r, record, err);
    while (rc == 0 && *r->p == ',') {
        r->p++;
        rc = read_cell(r, record, err);
    }
    while (r->p < r->end && *r->p != '\n')
        r->p++;
    return rc;
}

/* Blanks around them go. */
static int name_columns(struct jobs_reading *r, json_t *record, struct err *err)
{
    const json_t *v;
    size_t i;
    json_array_foreach(record, i, v)
    {
        const char *s = json_is_null(v) ? "" : json_string_value(v);
        if (text_check(s, strlen(s), "the names of the columns", err) < 0)
            return err->code;
        s += strspn(s, " \t");
        size_t n = strlen(s);
        while (n && strchr(" \t", s[n - 1]))
            n--;
        if (!n)
            return err_set(err, ERR_FORMAT, "column %zu has no name", i + 1);
        if (json_array_set_new(record, i, json_stringn(s, n)) < 0)
            return err_nomem(err, n);
        s = json_string_value(json_array_get(record, i));
        if (!strcmp(s, "grid"))
            return err_set(err, ERR_FORMAT, "'grid' cannot be a column; JSON lines can have it");
        if (!jobs_name(s, err))
            return err->code;
    }
    r->columns = json_incref(record);
    return 0;
}

/* Into a row, where a second cell of one name makes a list. */
static int put_cell(json_t *row, const char *name, json_t *v, struct err *err)
{
    static const char *const flags[] = {"fold", "triggers", "allow-partial", "allow_partial",
                                        "yes"};
    json_t *old = json_object_get(row, name);
    const char *s = json_string_value(v);
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++)
        if (!strcmp(name, flags[i]) && (!strcasecmp(s, "true") || !strcasecmp(s, "false")))
            v = json_boolean(!strcasecmp(s, "true"));
    int rc = json_is_array(old) ? json_array_append(old, v)
             : old              ? json_object_set_new(row, name, json_pack("[OO]", old, v))
                                : json_object_set(row, name, v);
    return rc < 0 ? err_nomem(err, 64) : 0;
}

static int add_row(struct jobs_reading *r, const json_t *record, struct err *err)
{
    json_t *row = json_object(), *v;
    size_t i;
    int rc = row ? 0 : err_nomem(err, 64);
    if (json_array_size(record) != json_array_size(r->columns))
        rc = err_set(err, ERR_FORMAT, "%zu cells, where the first line names %zu columns",
                     json_array_size(record), json_array_size(r->columns));
    json_array_foreach(record, i, v)
    {
        const char *name = json_string_value(json_array_get(r->columns, i));
        if (rc == 0 && !json_is_null(v))
            rc = text_check(json_string_value(v), json_string_length(v), name, err);
        if (rc == 0 && !json_is_null(v))
            rc = put_cell(row, name, v, err);
    }
    rc = rc < 0 ? rc : jobs_add_line(r, row, err);
    json_decref(row);
    return rc;
}

int jobs_csv_record(struct jobs_reading *r, struct err *err)
{
    json_t *record = json_array();
    int rc = read_record(r, record, err);
    if (rc == 0 && r->columns)
        rc = add_row(r, record, err);
    else if (rc == 0)
        rc = name_columns(r, record, err);
    json_decref(record);
    return rc;
}
