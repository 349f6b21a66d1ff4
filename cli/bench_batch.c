/* weft bench batch: many pictures with many adapters, each way a whole program. */
#include "bench.h"
#include "shelf.h"

#include "store/adapter_write.h"
#include "unet/file.h"
#include "unet/model.h"
#include "unet/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST "{\"event\":\"done\"" /* of a picture */
enum { MAX_OPTIONS = 9, VALUES = 1 << 20, MOST_RANK = 16, FEW = 8 };

struct bench {
    const char *dir;
    int jobs, adapters, many, steps, rounds, pictures;
    bool json;
    struct bench_folder in;
    int made; /* adapter files */
    int turn; /* of folders of pictures */
};

static void make_options(struct option o[MAX_OPTIONS], struct bench *b)
{
    const struct option table[] = {
        {"jobs", 0, OPTION_INT, &b->jobs, "N", "default 64", 1, 100000, NULL},
        {"adapters", 0, OPTION_INT, &b->adapters, "N", "that they use by turns; default 32", 1,
         10000, NULL},
        {"many", 0, OPTION_INT, &b->many, "N",
         "so many pictures with an adapter each out of 1000, and with 8;\ndefault 0: none", 0,
         100000, NULL},
        {"pictures", 0, OPTION_INT, &b->pictures, "N",
         "memory after a tenth of so many pictures of one step, and\nafter all; default 0: none", 0,
         1000000, NULL},
        {"steps", 0, OPTION_INT, &b->steps, "N", "default 20", 1, 1000, NULL},
        {"rounds", 0, OPTION_INT, &b->rounds, "N", "the best of so many; default 1", 1, 100, NULL},
        {"dir", 0, OPTION_TEXT, &b->dir, "DIR", "where to work; default /tmp", 0, 0, NULL},
        {"json", 0, OPTION_FLAG, &b->json, NULL, "a line a figure: name, value, unit", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

void bench_batch_help(void)
{
    struct bench b;
    struct option o[MAX_OPTIONS];
    make_options(o, &b);
    bench_help("weft bench batch makes pictures of the demo model with LoRAs of ranks 2 to 16:", o);
}

/* ---- adapters and jobs ----------------------------------------------------------------------- */

static int rank_of(int i)
{
    static const int rank[] = {4, 8, 2, 16, 6};
    return rank[i % 5];
}

static int write_adapters(struct bench *b, int n, struct err *err)
{
    struct device *dev = NULL;
    struct model *m = NULL;
    struct rng rng;
    float *v = malloc((VALUES + 65536 * MOST_RANK) * sizeof *v);
    char *demo = cli_asset("model"), path[520];
    int rc =
        v ? device_open(&dev, "cpu", &(struct device_options){0}, err) : err_nomem(err, VALUES);
    if (rc == 0 && !demo)
        rc = err_set(err, ERR_IO, "the demo model is not installed");
    rc = rc < 0 ? rc : model_open(&m, dev, demo, err);
    rng_init(&rng, RNG_TORCH, 1);
    if (rc == 0)
        rng_normal(&rng, v, VALUES);
    for (size_t i = 0; rc == 0 && i < VALUES + 65536 * MOST_RANK; i++)
        v[i] = i < VALUES ? .03f * v[i] : v[i - VALUES];
    for (; b->made < n && rc == 0; b->made++) {
        struct delta_list list = {0};
        snprintf(path, sizeof path, "%.450s/a%04d.safetensors", b->in.files, b->made);
        rc = bench_list(&list, &m->sites, rank_of(b->made), v, VALUES, (size_t)b->made * 997, err);
        rc = rc < 0 ? rc : adapter_convert(path, "diffusers", &list, NULL, 0, err);
        delta_list_release(&list);
    }
    free(v);
    free(demo);
    model_close(m);
    device_close(dev);
    return rc;
}

/* n jobs with adapters by turns; NULL: `more` says nothing else of them. */
static int write_jobs(const struct bench *b, const char *name, int n, int adapters, int steps,
                      const char *more, char path[520], struct err *err)
{
    char *text = NULL;
    size_t size;
    FILE *f = open_memstream(&text, &size);
    if (!f)
        return err_nomem(err, 64);
    snprintf(path, 520, "%.450s/%s", b->in.root, name);
    for (int i = 0; i < n; i++)
        fprintf(f,
                "{\"id\":\"j%d\",\"prompt\":\"a red apple on a table, %d\",\"adapter\":"
                "\"%s/a%04d.safetensors:0.5\",\"seed\":%d,\"steps\":%d,\"cfg\":5%s}\n",
                i, i, b->in.files, i % adapters, i, steps, more ? more : "");
    int rc = fclose(f) == 0 ? file_replace(path, text, size, err) : err_nomem(err, size);
    free(text);
    return rc;
}

/* ---- running --------------------------------------------------------------------------------- */

/* The best of what was so far and of one run more, in a folder of its own. */
static int run_batch(struct bench *b, const char *jobs, const char *extra, struct bench_run *best,
                     struct err *err)
{
    char folder[520];
    struct bench_run t;
    snprintf(folder, sizeof folder, "%.450s/out-%d", b->in.root, b->turn++);
    const char *const arg[] = {"batch",  jobs,       "-o",  folder, "--json",
                               "--home", b->in.home, extra, NULL};
    int rc = bench_run(arg, FIRST, &t, err);
    bench_remove_tree(folder);
    if (rc < 0)
        return rc;
    best->all = best->all > 0 ? fmin(best->all, t.all) : t.all;
    best->first = best->first > 0 ? fmin(best->first, t.first) : t.first;
    best->bytes = fmax(best->bytes, t.bytes);
    return 0;
}

/* A process of weft render a job. */
static int run_renders(struct bench *b, struct bench_run *best, struct err *err)
{
    char adapter[540], prompt[60], seed[20], steps[20], file[520];
    double began = cli_now();
    int rc = 0;
    snprintf(file, sizeof file, "%.450s/one.png", b->in.root);
    snprintf(steps, sizeof steps, "%d", b->steps);
    for (int i = 0; i < b->jobs && rc == 0; i++) {
        struct bench_run t;
        snprintf(prompt, sizeof prompt, "a red apple on a table, %d", i);
        snprintf(adapter, sizeof adapter, "%s/a%04d.safetensors:0.5", b->in.files, i % b->adapters);
        snprintf(seed, sizeof seed, "%d", i);
        const char *const arg[] = {"render", prompt,    "-a",     adapter,    "--seed",
                                   seed,     "--steps", steps,    "--cfg",    "5",
                                   "-o",     file,      "--home", b->in.home, NULL};
        rc = bench_run(arg, FIRST, &t, err);
    }
    double all = cli_now() - began;
    best->all = best->all > 0 ? fmin(best->all, all) : all;
    return rc;
}

/* ---- figures --------------------------------------------------------------------------------- */

static void figure(const struct bench *b, const char *name, double value, const char *unit)
{
    bench_figure(b->json, name, value, unit);
}

static int bench_ways(struct bench *b, struct err *err)
{
    char jobs[520], fold[520], name[120];
    struct bench_run batch = {0}, beside = {0}, folded = {0}, single = {0}, renders = {0};
    int rc = write_jobs(b, "jobs.jsonl", b->jobs, b->adapters, b->steps, NULL, jobs, err);
    rc = rc < 0 ? rc
                : write_jobs(b, "fold.jsonl", b->jobs, b->adapters, b->steps, ",\"fold\":true",
                             fold, err);
    for (int i = 0; i < b->rounds && rc == 0; i++) {
        rc = run_batch(b, jobs, NULL, &batch, err);
        rc = rc < 0 ? rc : run_batch(b, jobs, "--beside", &beside, err);
        rc = rc < 0 ? rc : run_batch(b, fold, NULL, &folded, err);
        rc = rc < 0 ? rc : run_batch(b, jobs, "--hand=1", &single, err);
        rc = rc < 0 ? rc : run_renders(b, &renders, err);
    }
    if (rc < 0)
        return rc;
    snprintf(name, sizeof name, "%d jobs, %d adapters of ranks 2 to 16", b->jobs, b->adapters);
    figure(b, name, batch.all, "s");
    figure(b, "a picture", batch.all / b->jobs, "s");
    figure(b, "start to first picture", batch.first, "s");
    figure(b, "peak memory", batch.bytes / 1e6, "MB");
    figure(b, "over the better of folded and beside", batch.all / fmin(folded.all, beside.all),
           "times");
    figure(b, "beside the weights, in one batch", beside.all / batch.all, "times");
    figure(b, "folded, an adapter at a time", folded.all / batch.all, "times");
    figure(b, "one picture at a time", single.all / batch.all, "times");
    figure(b, "weft render, one after another", renders.all / batch.all, "times");
    return 0;
}

static int bench_many(struct bench *b, struct err *err)
{
    enum { MANY = 1000 };
    char few[520], many[520];
    struct bench_run t[2] = {{0}};
    int rc = write_adapters(b, MANY, err);
    rc = rc < 0 ? rc : write_jobs(b, "few.jsonl", b->many, FEW, b->steps, NULL, few, err);
    rc = rc < 0 ? rc : write_jobs(b, "many.jsonl", b->many, MANY, b->steps, NULL, many, err);
    for (int i = 0; i < b->rounds && rc == 0; i++) {
        rc = run_batch(b, few, NULL, &t[0], err);
        rc = rc < 0 ? rc : run_batch(b, many, "--adapter-memory=64M", &t[1], err);
    }
    if (rc < 0)
        return rc;
    figure(b, "pictures a minute with 8 adapters", 60 * b->many / t[0].all, "");
    figure(b, "with an adapter each, a pool of 64 MB, of that", t[0].all / t[1].all, "times");
    return 0;
}

static int bench_memory(struct bench *b, struct err *err)
{
    char some[520], all[520];
    struct bench_run t[2] = {{0}};
    int rc = write_jobs(b, "some.jsonl", b->pictures / 10, b->adapters, 1, NULL, some, err);
    rc = rc < 0 ? rc : write_jobs(b, "all.jsonl", b->pictures, b->adapters, 1, NULL, all, err);
    rc = rc < 0 ? rc : run_batch(b, some, NULL, &t[0], err);
    rc = rc < 0 ? rc : run_batch(b, all, NULL, &t[1], err);
    if (rc < 0)
        return rc;
    figure(b, "memory after a tenth of the pictures", t[0].bytes / 1e6, "MB");
    figure(b, "after all of them", t[1].bytes / 1e6, "MB");
    return 0;
}

int bench_batch(int argc, char **argv)
{
    struct bench b = {.dir = "/tmp", .jobs = 64, .adapters = 32, .steps = 20, .rounds = 1};
    struct option o[MAX_OPTIONS];
    struct err err;

    make_options(o, &b);
    int rc = bench_parse(o, argc, argv, &err);
    rc = rc < 0 ? rc : bench_folder_make(&b.in, b.dir, &err);
    bool made = rc == 0;
    rc = rc < 0 ? rc : write_adapters(&b, b.adapters > FEW ? b.adapters : FEW, &err);
    rc = rc < 0 ? rc : bench_ways(&b, &err);
    if (rc == 0 && b.many)
        rc = bench_many(&b, &err);
    if (rc == 0 && b.pictures)
        rc = bench_memory(&b, &err);
    if (made)
        bench_remove_tree(b.in.root);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}
