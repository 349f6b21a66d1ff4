/* weft render: a prompt becomes a picture. */
#include "adapter_places.h"
#include "auto.h"
#include "explain.h"

#include "unet/file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

struct render {
    struct making m;
    const char *out, *masks;
    int count;
    bool json, explain, leave_out;
    uint64_t seed; /* of the next picture */
};

static void make_options(struct option *o, void *target)
{
    struct render *d = target;
    const struct option own[] = {
        AUTO_OPTIONS(&d->m),
        {.kind = OPTION_GROUP, .name = "", .help = "What comes out:"},
        {"output", 'o', OPTION_TEXT, &d->out, "FILE",
         "default weft-SEED.png; or a folder; with --count the seed is put\nbefore .png", 0, 0,
         NULL},
        {"count", 'c', OPTION_INT, &d->count, "N", "so many pictures, with seeds from --seed up", 1,
         100000, NULL},
        {"input", 'i', OPTION_FLAG, &d->m.later, NULL,
         "a prompt a line from standard input; model and memory stay warm,\nseeds count up, and "
         "what one "
         "line has wrong stops no other",
         0, 0, NULL},
        {"explain", 0, OPTION_FLAG, &d->explain, NULL,
         "tell what each adapter did: how large what it added is beside what\nwas there, by block "
         "and "
         "step, and draw where, into FILE-influence.png",
         0, 0, NULL},
        {"leave-out", 0, OPTION_FLAG, &d->leave_out, NULL,
         "with --explain: also make the picture without each adapter, and\ntell what that changes",
         0, 0, NULL},
        {"show-masks", 0, OPTION_TEXT, &d->masks, "DIR",
         "draw where each adapter acted (--compose attend, box=, mask=) "
         "into\nDIR/FILE-ADAPTER.png, and where "
         "its words were attended to",
         0, 0, NULL},
        {"json", 0, OPTION_FLAG, &d->json, NULL, "one JSON object a picture on stdout", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(making_options(o, &d->m), own, sizeof own);
}

static int parse(struct render *d, int argc, char **argv, struct err *err)
{
    struct option o[OPTIONS_MAX];
    make_options(o, d);
    d->count = 1;
    int rc = making_parse(&d->m, o, argc, argv, err);
    if (rc == 0 && d->leave_out && !d->explain)
        rc = err_set(err, ERR_ARG, "--leave-out goes with --explain");
    if (rc == 0 && d->m.given.compose.n > 1)
        rc = err_set(err, ERR_ARG, "--compose: one strategy a picture; weft compare shows several");
    if (rc == 0 && d->m.r.seed > (uint64_t)INT64_MAX - (uint64_t)d->count + 1)
        rc = err_set(err, ERR_ARG, "--seed and --count: the last seed would be above 2^63 - 1");
    return rc;
}

/* FILE for one picture; FILE with the seed before its ending for one of several. */
static char *output_path(const struct render *d, uint64_t seed)
{
    const char *out = d->out;
    char name[64], *path = NULL;
    snprintf(name, sizeof name, "weft-%llu.png", (unsigned long long)seed);
    if (!out)
        return strdup(name);
    if (file_kind(out) == 2)
        return file_join(out, name);
    if (d->count == 1 && !d->m.later)
        return strdup(out);
    const char *dot = strrchr(out, '.'), *slash = strrchr(out, '/');
    size_t stem = dot && (!slash || dot > slash) ? (size_t)(dot - out) : strlen(out);
    if (asprintf(&path, "%.*s-%llu%s", (int)stem, out, (unsigned long long)seed, out + stem) < 0)
        return NULL;
    return path;
}

static json_t *adapter_report(const struct render *d, int i)
{
    const struct request_adapter *a = &d->m.r.adapter[i];
    char id[13];
    snprintf(id, sizeof id, "%.12s", a->id ? a->id : a->sha256);
    return json_pack("{s:s, s:s, s:f, s:i, s:i}", "name", a->name ? a->name : d->m.file[i]->name,
                     "id", id, "strength", a->unet, "sites", d->m.file[i]->list.n, "matched",
                     d->m.adapter[i]->matched);
}

static json_t *embedding_report(const struct request_embedding *e)
{
    char id[13];
    snprintf(id, sizeof id, "%.12s", e->sha256);
    return json_pack("{s:s?, s:s, s:s}", "name", e->name, "file", e->path, "id", id);
}

/* e: NULL, or the picture's receipt. */
static void report(const struct render *d, const char *path, const struct cost *cost,
                   double seconds, const struct explain *e)
{
    if (!d->json) {
        printf("%s  %dx%d  seed %llu  %d steps  %d passes  %.1f s\n", path, d->m.r.size[0],
               d->m.r.size[1], (unsigned long long)d->m.r.seed, d->m.r.steps, cost->passes,
               seconds);
        if (e)
            explain_tell(e);
        return;
    }
    json_t *list = json_array(),
           *root =
               json_pack("{s:s, s:I, s:f, s:i, s:i, s:f, s:s}", "file", path, "seed",
                         (json_int_t)d->m.r.seed, "seconds", seconds, "steps", d->m.r.steps,
                         "passes", cost->passes, "flops", cost->flops, "model", d->m.model->dir);
    for (int i = 0; i < d->m.r.n_adapter; i++)
        json_array_append_new(list, adapter_report(d, i));
    json_object_set_new(root, "adapters", list);
    list = json_array();
    for (int i = 0; i < d->m.r.n_embedding; i++)
        json_array_append_new(list, embedding_report(&d->m.r.embedding[i]));
    json_object_set_new(root, "embeddings", list);
    if (d->m.choose) {
        list = json_array();
        for (int i = 0; i < d->m.n_pick; i++)
            json_array_append_new(list, json_pack("{s:s, s:s, s:b, s:f, s:f}", "phrase",
                                                  d->m.pick[i].phrase, "name", d->m.pick[i].name,
                                                  "named", (int)d->m.pick[i].named, "score",
                                                  d->m.pick[i].score, "next", d->m.pick[i].next));
        json_object_set_new(root, "auto", list);
    }
    if (e)
        json_object_set_new(root, "influence", explain_json(e));
    char *text = json_dumps(root, JSON_COMPACT);
    puts(text ? text : "{}");
    fflush(stdout);
    free(text);
    json_decref(root);
}

/* The i-th that were made together. e: NULL, or the receipt of the picture, which is drawn beside it. */
static int write_picture(struct render *d, int i, const struct image *im, const struct cost *cost,
                         double seconds, struct explain *e, struct err *err)
{
    char *path = output_path(d, d->m.r.seed);
    int rc = path ? making_write(&d->m, path, im, err) : err_nomem(err, 64);
    if (rc == 0 && d->masks)
        rc = adapter_places_draw(&d->m, i, im, d->masks, path, err);
    if (rc == 0 && e && d->leave_out)
        rc = explain_leave_out(e, im, err);
    if (rc == 0 && e)
        rc = explain_draw(e, path, im, err);
    if (rc == 0)
        report(d, path, cost, seconds, e);
    free(path);
    return rc;
}

/* n pictures at once, with seeds from first's up; one where it is to be explained. */
static int make_some(struct render *d, const struct picture *first, int n, struct err *err)
{
    struct picture p[MAKING_HAND];
    struct image im[MAKING_HAND] = {{0}};
    struct cost cost[MAKING_HAND];
    struct explain e = {.m = NULL};
    double began = cli_now();
    for (int i = 0; i < n; i++) {
        p[i] = *first;
        p[i].seed += (uint64_t)i;
    }
    int rc = d->explain ? explain_begin(&e, &d->m, p, err) : 0;
    rc = rc < 0 ? rc : making_run(&d->m, p, n, im, err);
    double seconds = (cli_now() - began) / n;
    for (int i = 0; i < n && rc == 0; i++)
        cost[i] = *generator_cost(d->m.g, i);
    for (int i = 0; i < n && rc == 0; i++) {
        d->m.r.seed = p[i].seed;
        rc = write_picture(d, i, &im[i], &cost[i], seconds, d->explain ? &e : NULL, err);
    }
    for (int i = 0; i < n; i++)
        image_release(&im[i]);
    explain_end(&e);
    return rc;
}

static int check_output(const struct render *d, const char *path, struct err *err)
{
    json_t *text = json_string(path);
    if (!text && d->json)
        return err_set(err, ERR_ARG, "%s: its name is not UTF-8, as JSON is", path);
    json_decref(text);
    return making_can_write(&d->m, path, err);
}

static int check_outputs(const struct render *d, uint64_t seed, struct err *err)
{
    char *settings = request_to_json(&d->m.r, err);
    int rc = settings ? 0 : err->code;
    for (int i = 0; i < d->count && rc == 0; i++) {
        char *path = output_path(d, seed + (uint64_t)i);
        rc = path ? check_output(d, path, err) : err_nomem(err, 64);
        free(path);
    }
    free(settings);
    if (rc == 0 && d->masks && mkdir(d->masks, 0777) != 0 && file_kind(d->masks) != 2)
        rc = err_set(err, ERR_IO, "--show-masks %s: no folder can be made there", d->masks);
    return rc;
}

static int make_all(struct render *d, struct err *err)
{
    struct making *m = &d->m;
    struct picture p;
    int rc = making_picture(m, &p, err);
    rc = rc < 0 ? rc : check_outputs(d, p.seed, err);
    rc = rc < 0 ? rc : making_plan(m, &p, d->count, err);
    for (int done = 0, hand = rc < 0 || d->explain ? 1 : making_hand(m, &p), n;
         done < d->count && rc == 0; done += n) {
        n = d->count - done < hand ? d->count - done : hand;
        rc = make_some(d, &p, n, err);
        p.seed += (uint64_t)n;
    }
    d->seed = p.seed;
    return rc;
}

/* The pictures of one line. */
static int one_line(struct render *d, const char *line, struct err *err)
{
    int rc = making_request(&d->m, line, err);
    d->m.r.seed = d->seed;
    rc = rc < 0 ? rc : making_load(&d->m, err);
    return rc < 0 ? rc : make_all(d, err);
}

/* Every line of standard input. What is wrong with one is told and stops nothing; at the end it counts. */
static int all_lines(struct render *d, struct err *err)
{
    char *line = NULL;
    size_t room = 0;
    ssize_t n;
    int rc = 0, wrong = 0;
    d->seed = d->m.r.seed;
    while (rc == 0 && (n = getline(&line, &room, stdin)) >= 0) {
        while (n > 0 && (line[n - 1] == '\n' || line[n - 1] == '\r'))
            line[--n] = 0;
        if (!n)
            continue;
        rc = strlen(line) == (size_t)n ? one_line(d, line, err)
                                       : err_set(err, ERR_ARG, "a line holds a byte of 0");
        if (rc < 0 && rc != ERR_STOPPED && rc != ERR_NOMEM) {
            cli_fail(err);
            wrong++;
            rc = 0;
        }
    }
    free(line);
    return rc == 0 && wrong ? err_set(err, ERR_ARG, "%d lines made no picture", wrong) : rc;
}

static int run(const struct command *self, int argc, char **argv)
{
    struct render d = {0};
    struct err err;

    (void)self;
    err_clear(&err);
    cli_catch_stop();
    int rc = parse(&d, argc, argv, &err);
    if (rc == 0 && d.m.later)
        rc = all_lines(&d, &err);
    else
        rc = rc < 0 ? rc : making_load(&d.m, &err);
    if (rc == 0 && !d.m.later)
        rc = make_all(&d, &err);
    making_release(&d.m);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

const struct command command_render = {
    .name = "render",
    .usage = "weft render PROMPT [options]",
    .about = "a prompt becomes a picture",
    .run = run,
    .options = make_options,
    .size = sizeof(struct render),
    .help = making_help,
};
