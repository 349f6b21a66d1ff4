#include "gallery.h"

#include "cli.h"

#include "unet/file.h"
#include "unet/sheet.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* The page, made of gallery.html by the Makefile. */
static const char page[] = {
#include "cli/gallery.inc"
    0};

/* ---- records --------------------------------------------------------------------------------- */

static json_t *time_json(int64_t t)
{
    char text[40];
    struct tm tm;
    time_t at = (time_t)t;
    if (!t || !gmtime_r(&at, &tm) || !strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &tm))
        return json_null();
    return json_string(text);
}

/* An adapter's name: its own, or its file's. */
static json_t *adapter_json(const json_t *a)
{
    const char *name = json_string_value(json_object_get(a, "name"));
    const char *id = json_string_value(json_object_get(a, "id"));
    const char *file = json_string_value(json_object_get(a, "file"));
    const char *sha = json_string_value(json_object_get(a, "data_sha256"));
    char *stem = name ? NULL : file_stem(file ? file : "");
    char head[13];
    snprintf(head, sizeof head, "%.12s", id ? id : sha ? sha : "");
    json_t *j = json_pack("{s:s?, s:s, s:O?}", "name", name ? name : stem, "id", head, "strength",
                          json_object_get(a, "unet"));
    free(stem);
    return j;
}

json_t *gallery_record(const struct queue_job *j)
{
    static const char *const same[] = {"prompt",   "negative", "seed",  "width",
                                       "height",   "steps",    "cfg",   "sampler",
                                       "schedule", "compose",  "model", NULL};
    bool made = j->state == QUEUE_DONE, ended = made || j->state == QUEUE_FAILED;
    json_t *settings = json_loads(j->settings, 0, NULL), *list = json_array(), *a;
    json_t *r = json_pack("{s:s, s:I, s:s, s:s, s:s?, s:i}", "id", j->id, "n", (json_int_t)j->n,
                          "state", queue_state_name[j->state], "file", j->file, "reason", j->reason,
                          "attempts", j->attempts);
    size_t i;
    for (int k = 0; same[k]; k++)
        json_object_set(r, same[k], json_object_get(settings, same[k]));
    json_array_foreach(json_object_get(settings, "adapters"), i, a)
    {
        json_array_append_new(list, adapter_json(a));
    }
    json_object_set_new(r, "adapters", list);
    if (j->fold < 0)
        json_object_set(r, "fold", json_object_get(settings, "fold"));
    else
        json_object_set_new(r, "fold", json_boolean(j->fold));
    json_object_set_new(r, "seconds", made ? json_real(j->seconds) : json_null());
    json_object_set_new(r, "bytes", made ? json_integer(j->bytes) : json_null());
    json_object_set_new(r, "sha256", made ? json_string(j->sha256) : json_null());
    json_object_set_new(r, "finished", ended ? time_json(j->finished) : json_null());
    json_decref(settings);
    return r;
}

/* ---- files ----------------------------------------------------------------------------------- */

struct writing {
    FILE *index, *page;
    int n;
};

static int write_record(void *user, const struct queue_job *j)
{
    struct writing *w = user;
    json_t *r = gallery_record(j);
    if (j->state == QUEUE_DONE || j->state == QUEUE_FAILED) {
        json_dumpf(r, w->index, JSON_COMPACT | JSON_REAL_PRECISION(9));
        fputc('\n', w->index);
    }
    /* JavaScript rounds large numbers */
    json_int_t seed = json_integer_value(json_object_get(r, "seed"));
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)seed);
    json_object_set_new(r, "seed", json_string(text));
    fputs(w->n++ ? ",\n" : "", w->page);
    json_dumpf(r, w->page, JSON_COMPACT | JSON_REAL_PRECISION(9) | JSON_ENSURE_ASCII);
    json_decref(r);
    return 0;
}

static int replace(const char *folder, const char *name, const char *text, size_t size,
                   struct err *err)
{
    char *path = file_join(folder, name);
    int rc = path ? file_replace(path, text, size, err) : err_nomem(err, size);
    free(path);
    return rc;
}

int gallery_write(const char *folder, struct queue *q, const char *title, struct err *err)
{
    char *index = NULL, *data = NULL;
    size_t n_index = 0, n_data = 0;
    struct writing w = {.index = open_memstream(&index, &n_index),
                        .page = open_memstream(&data, &n_data)};
    int rc = w.index && w.page ? 0 : err_nomem(err, 64);
    if (rc == 0) {
        json_t *batch = json_pack("{s:s?, s:o}", "title", title, "made", time_json(time(NULL)));
        fputs("const pictures = [\n", w.page);
        rc = queue_each(q, -1, write_record, &w, err);
        fputs("\n];\nconst batch = ", w.page);
        json_dumpf(batch, w.page, JSON_COMPACT | JSON_ENSURE_ASCII);
        fputs(";\n", w.page);
        json_decref(batch);
    }
    if (w.index && fclose(w.index) != 0 && rc == 0)
        rc = err_nomem(err, n_index);
    if (w.page && fclose(w.page) != 0 && rc == 0)
        rc = err_nomem(err, n_data);
    rc = rc < 0 ? rc : replace(folder, "index.jsonl", index, n_index, err);
    rc = rc < 0 ? rc : replace(folder, "pictures.js", data, n_data, err);
    rc = rc < 0 ? rc : replace(folder, "index.html", page, sizeof page - 1, err);
    free(index);
    free(data);
    return rc;
}

/* ---- sheets ---------------------------------------------------------------------------------- */

enum { COLUMNS = 8, ROWS = 8, CELL = 256, CELLS = 256 };

struct sheets {
    const char *folder;
    int columns, n, cells; /* n: sheets so far; cells: on this one */
    struct image picture[CELLS];
    char *label[CELLS];
    struct err *err;
};

static int end_sheet(struct sheets *s)
{
    char name[40];
    struct image out = {0};
    int rows = (s->cells + s->columns - 1) / s->columns, w = s->picture[0].w;
    struct sheet sheet = {.columns = s->cells < s->columns ? s->cells : s->columns,
                          .rows = rows,
                          .w = w < CELL ? w : CELL,
                          .picture = s->picture,
                          .label = (const char *const *)s->label};
    int rc = 0;
    if (s->cells) {
        sheet.h = (int)((int64_t)sheet.w * s->picture[0].h / w);
        snprintf(name, sizeof name, s->n ? "sheet-%d.png" : "sheet.png", s->n + 1);
        char *path = file_join(s->folder, name);
        rc = path ? sheet_draw(&out, &sheet, s->err) : err_nomem(s->err, 64);
        rc = rc < 0 ? rc : image_write_png(path, &out, NULL, 0, s->err);
        s->n++;
        free(path);
        image_release(&out);
    }
    for (int i = 0; i < s->cells; i++) {
        image_release(&s->picture[i]);
        free(s->label[i]);
    }
    memset(s->picture, 0, sizeof s->picture);
    memset(s->label, 0, sizeof s->label);
    s->cells = 0;
    return rc;
}

/* Its place, prompt and seed, and its adapters. */
static char *label_of(const struct queue_job *j)
{
    char *text = NULL;
    size_t size, i;
    json_t *r = gallery_record(j), *a;
    FILE *f = open_memstream(&text, &size);
    const char *prompt = json_string_value(json_object_get(r, "prompt"));
    if (f) {
        fprintf(f, "%lld  %.60s  %lld", (long long)j->n, prompt ? prompt : "",
                (long long)json_integer_value(json_object_get(r, "seed")));
        json_array_foreach(json_object_get(r, "adapters"), i, a)
        {
            fprintf(f, "%s%s %g", i ? " + " : "\n", json_string_value(json_object_get(a, "name")),
                    json_number_value(json_object_get(a, "strength")));
        }
    }
    json_decref(r);
    if (f && fclose(f) == 0)
        return text;
    free(text);
    return NULL;
}

static int add_picture(void *user, const struct queue_job *j)
{
    struct sheets *s = user;
    char *path = file_join(s->folder, j->file);
    int rc =
        path ? image_read_png(path, &s->picture[s->cells], NULL, s->err) : err_nomem(s->err, 64);
    free(path);
    if (rc == ERR_IO) { /* somebody took it away: that is theirs to do */
        err_clear(s->err);
        return 0;
    }
    if (rc < 0)
        return rc;
    s->label[s->cells++] = label_of(j);
    int most = s->columns * ROWS < CELLS ? s->columns * ROWS : CELLS - CELLS % s->columns;
    return s->cells == most ? end_sheet(s) : 0;
}

int gallery_sheet(const char *folder, struct queue *q, int columns, int *n, struct err *err)
{
    struct sheets *s = calloc(1, sizeof *s);
    if (!s)
        return err_nomem(err, sizeof *s);
    s->folder = folder;
    s->columns = columns > 0 && columns <= CELLS ? columns : COLUMNS;
    s->err = err;
    int rc = queue_each(q, QUEUE_DONE, add_picture, s, err);
    rc = rc < 0 ? rc : end_sheet(s);
    if (rc < 0) { /* what it holds */
        struct err none;
        s->err = &none;
        for (int i = 0; i < s->cells; i++) {
            image_release(&s->picture[i]);
            free(s->label[i]);
        }
    }
    *n = s->n;
    free(s);
    return rc;
}
