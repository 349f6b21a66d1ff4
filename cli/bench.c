/* weft bench: what this machine does, beside its limits. */
#include "bench.h"
#include "device.h"
#include "shelf.h"

#include "compose/generate.h"
#include "unet/file.h"
#include "unet/gates.h"

#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

struct bench {
    const char *model;
    int rows, size[2];
    struct device_choice on;
    bool json, small;
    struct device *dev;
    struct bench_limits limits;
};

int bench_parse(const struct option *o, int argc, char **argv, struct err *err)
{
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    int n = 0, rc = rest ? options_parse(o, argc, argv, rest, &n, err) : err_nomem(err, 64);
    if (rc == 0 && n)
        rc = err_set(err, ERR_ARG, "'%.60s' is no option of bench %s", rest[0], argv[0]);
    free(rest);
    return rc;
}

void bench_help(const char *about, const struct option *o)
{
    printf("\n%s\n", about);
    options_help(o);
}

int bench_folder_make(struct bench_folder *f, const char *dir, struct err *err)
{
    snprintf(f->root, sizeof f->root, "%.250s/weft-bench-XXXXXX", dir);
    if (!mkdtemp(f->root))
        return err_set(err, ERR_IO, "%s: no temporary folder can be made", f->root);
    snprintf(f->home, sizeof f->home, "%s/home", f->root);
    snprintf(f->files, sizeof f->files, "%s/files", f->root);
    return mkdir(f->files, 0777) < 0 ? err_set(err, ERR_IO, "%s: cannot be made", f->files) : 0;
}

void bench_figure(bool json, const char *name, double value, const char *unit)
{
    if (json)
        json_line(json_pack("{s:s, s:f, s:s}", "name", name, "value", value, "unit", unit));
    else
        printf("%-64s %10.4g %s\n", name, value, unit);
    fflush(stdout);
}

int bench_run(const char *const *arg, const char *first, struct bench_run *r, struct err *err)
{
    const char *argv[24] = {"weft"};
    struct rusage ru;
    int out[2], status = -1, n = 1;
    char line[4096];
    while (arg[n - 1] && n < 22) {
        argv[n] = arg[n - 1];
        n++;
    }
    *r = (struct bench_run){.first = NAN};
    if (pipe2(out, O_CLOEXEC) < 0)
        return err_set(err, ERR_IO, "no pipe can be made");
    double began = cli_now();
    pid_t pid = fork();
    if (pid == 0) {
        dup2(out[1], 1);
        execv("/proc/self/exe", (char *const *)argv);
        _exit(127);
    }
    close(out[1]);
    FILE *f = fdopen(out[0], "r");
    while (f && fgets(line, sizeof line, f))
        if (first && isnan(r->first) && !strncmp(line, first, strlen(first)))
            r->first = cli_now() - began;
    if (f)
        fclose(f);
    if (pid < 0 || wait4(pid, &status, 0, &ru) < 0 || status)
        return err_set(err, ERR_IO, "weft %s could not be run", arg[0]);
    r->all = cli_now() - began;
    r->bytes = (double)ru.ru_maxrss * 1024;
    return 0;
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

void bench_percentiles(bool json, const char *what, double *t, int n)
{
    char name[120];
    qsort(t, (size_t)n, sizeof *t, by_size);
    snprintf(name, sizeof name, "%s, p50", what);
    bench_figure(json, name, 1e3 * t[n / 2], "ms");
    snprintf(name, sizeof name, "%s, p99", what);
    bench_figure(json, name, 1e3 * t[(99 * n + 99) / 100 - 1], "ms");
}

bool bench_adapts(const struct site *s)
{
    return s->part == COMPONENT_UNET && s->layer && strstr(s->name, "attentions.");
}

float *bench_factors(const struct sites *sites, int rank)
{
    int most = 0;
    for (int i = 0; i < sites->n; i++)
        if (bench_adapts(&sites->at[i])) {
            const struct layer *l = sites->at[i].layer;
            most = l->out > most ? l->out : most;
            most = l->in > most ? l->in : most;
        }
    size_t n = (size_t)most * (size_t)rank;
    float *v = malloc((n + 1) * sizeof *v);
    for (size_t i = 0; v && i <= n; i++)
        v[i] = (float)(i * 37 % 1009) / 1009 - .5f;
    return v;
}

int bench_list(struct delta_list *list, const struct sites *sites, int rank, const float *values,
               size_t places, size_t at, struct err *err)
{
    enum { APART = 8191 };
    for (int i = 0; i < sites->n; i++) {
        const struct layer *l = sites->at[i].layer;
        if (!bench_adapts(&sites->at[i]))
            continue;
        struct delta *d = delta_list_add(list, sites->at[i].name, err);
        if (!d)
            return err->code;
        d->kind = DELTA_PRODUCT;
        d->scale = 1;
        for (int k = 0; k < 2; k++) {
            uint64_t r = (uint64_t)rank, wide = (uint64_t)(k ? l->in : l->out);
            struct array *to = k ? &d->f[0].b : &d->f[0].a;
            *to = (struct array){.dtype = DT_F32,
                                 .ndim = 2,
                                 .dim = {k ? r : wide, k ? wide : r},
                                 .data = values + at % places};
            at += APART;
        }
    }
    return 0;
}

int bench_bind(struct adapter **a, struct device *dev, const struct sites *sites, int rank,
               const float *values, size_t places, const char *name, struct err *err)
{
    struct delta_list list = {0};
    struct bind_report report = {0};
    *a = NULL;
    int rc = bench_list(&list, sites, rank, values, places, 0, err);
    rc = rc < 0 ? rc : adapter_bind(a, dev, sites, &list, name, false, &report, err);
    bind_report_release(&report);
    delta_list_release(&list);
    return rc;
}

static int open_gate(struct gates *g, int site, size_t c, struct err *err)
{
    size_t n = GATE_ROWS * c;
    float *host = calloc(n + 1, sizeof *host);
    g->host[site] = host;
    g->at[site] = g->dev->be->alloc(g->dev, n * sizeof *host);
    if (!host || !g->at[site])
        return err_nomem(err, n * sizeof *host);
    for (size_t k = 0; k < c; k++) {
        host[GATE_BIAS * c + k] = 4;
        host[GATE_GAIN * c + k] = 1;
    }
    g->dev->be->store(g->dev, g->at[site], host, n);
    g->plain[site] = true;
    return 0;
}

int bench_gates(struct gates **out, struct device *dev, const struct sites *sites, struct err *err)
{
    struct gates *g = calloc(1, sizeof *g);
    size_t n = (size_t)sites->n + 1;
    *out = g;
    if (!g)
        return err_nomem(err, sizeof *g);
    g->dev = dev;
    g->n_site = sites->n;
    g->at = calloc(n, sizeof *g->at);
    g->host = calloc(n, sizeof *g->host);
    g->plain = calloc(n, sizeof *g->plain);
    int rc = g->at && g->host && g->plain ? 0 : err_nomem(err, n * sizeof *g->at);
    for (int i = 0; i < sites->n && rc == 0; i++)
        if (bench_adapts(&sites->at[i]))
            rc = open_gate(g, i, (size_t)sites->at[i].layer->out, err);
    return rc;
}

static void figure(const struct bench *b, const char *name, double value, const char *unit)
{
    bench_figure(b->json, name, value, unit);
}

/* ---- UNets ----------------------------------------------------------------------------------- */

const char bench_sd15_unet[] =
    "{\"block_out_channels\": [320, 640, 1280, 1280], \"cross_attention_dim\": %d,"
    " \"attention_head_dim\": 8, \"down_block_types\": [\"CrossAttnDownBlock2D\","
    " \"CrossAttnDownBlock2D\", \"CrossAttnDownBlock2D\", \"DownBlock2D\"],"
    " \"up_block_types\": [\"UpBlock2D\", \"CrossAttnUpBlock2D\", \"CrossAttnUpBlock2D\","
    " \"CrossAttnUpBlock2D\"]}";

int bench_open_sd15(struct unet **u, struct sites *sites, struct device *dev, int width,
                    struct err *err)
{
    struct source from;
    char config[1200];
    *u = NULL;
    memset(sites, 0, sizeof *sites);
    snprintf(config, sizeof config, bench_sd15_unet, width);
    int rc = source_random(&from, config, "SD 1.5", 1, err);
    rc = rc < 0 ? rc : unet_open(u, dev, &from, sites, err);
    return rc < 0 ? rc : sites_finish(sites, err);
}

/* Best seconds of a UNet pass over `rows` rows, after one that packs the weights. */
static int time_unet(struct bench *b, const struct unet *u, int rows, int h, int w, int tokens,
                     int times, const char *what, struct err *err)
{
    double t[16] = {0}, best = 1e9, flops = 0;
    char name[80];
    struct run keep, pass;
    int rc = 0;

    run_init(&keep, b->dev);
    run_init(&pass, b->dev);
    run_measure(&keep);
    struct tensor x = run_tensor(&keep, rows, h, w, u->in_channels);
    struct tensor text = run_tensor(&keep, rows, tokens, 1, u->text_width);
    rc = run_commit(&keep, err);
    x = run_tensor(&keep, rows, h, w, u->in_channels);
    text = run_tensor(&keep, rows, tokens, 1, u->text_width);
    if (rc == 0) {
        op_affine(&keep, &x, &x, 0, 0.5);
        op_affine(&keep, &text, &text, 0, 0.1);
    }
    for (int i = 0; i < times + 2 && rc == 0; i++) {
        if (i == 0)
            run_measure(&pass);
        else
            run_reset(&pass);
        double began = cli_now();
        unet_forward(u, &pass, &x, t, &(struct unet_text){&text, 1}, NULL);
        began = cli_now() - began;
        if (i == 0)
            flops = pass.flops;
        rc = i == 0 ? run_commit(&pass, err) : run_check(&pass, err);
        best = i > 1 && began < best ? began : best;
    }
    if (rc == 0) {
        snprintf(name, sizeof name, "%s, one step", what);
        figure(b, name, best * 1e3, "ms");
        snprintf(name, sizeof name, "%s, speed", what);
        figure(b, name, flops / best / 1e9, "GFLOP/s");
        snprintf(name, sizeof name, "%s, of the ceiling", what);
        figure(b, name, 100 * flops / best / b->limits.flops, "%");
        snprintf(name, sizeof name, "%s, activations", what);
        figure(b, name, (double)pass.size / 1e6, "MB");
    }
    run_release(&pass);
    run_release(&keep);
    return rc;
}

static int bench_sd15(struct bench *b, struct err *err)
{
    struct sites sites;
    struct unet *u;
    int rc = bench_open_sd15(&u, &sites, b->dev, 768, err);
    rc = rc < 0 ? rc : time_unet(b, u, 2, 64, 64, 77, 3, "SD 1.5 UNet, 512x512, guided", err);
    struct rusage ru;
    if (rc == 0 && getrusage(RUSAGE_SELF, &ru) == 0)
        figure(b, "SD 1.5 UNet, peak memory with weights", (double)ru.ru_maxrss * 1024 / 1e6, "MB");
    unet_close(u);
    sites_release(&sites);
    return rc;
}

static int bench_demo(struct bench *b, struct err *err)
{
    struct model *m = NULL;
    int rc = model_open(&m, b->dev, b->model, err);
    if (rc == 0) {
        int side = m->unet->sample_size, tokens = m->text->positions;
        rc = time_unet(b, m->unet, 2, side, side, tokens, 20, "demo UNet, guided", err);
    }
    if (rc == 0) {
        int side = m->unet->sample_size, tokens = m->text->positions;
        rc = time_unet(b, m->unet, 8, side, side, tokens, 8, "demo UNet, four pictures", err);
    }
    model_close(m);
    return rc;
}

/* ---- the whole program ----------------------------------------------------------------------- */

/* From start to PNG in a process of its own, and the most memory it had. */
static int bench_picture(struct bench *b, struct err *err)
{
    char out[] = "/tmp/weft-bench-XXXXXX", png[64], threads[16];
    struct bench_run r;
    if (!mkdtemp(out))
        return err_set(err, ERR_IO, "%s: no temporary folder can be made", out);
    snprintf(png, sizeof png, "%s/a.png", out);
    snprintf(threads, sizeof threads, "%d", b->dev->threads);
    const char *const arg[] = {"render",
                               "a red apple",
                               "--model",
                               b->model,
                               "--seed",
                               "1",
                               "--steps",
                               "20",
                               "--threads",
                               threads,
                               "-o",
                               png,
                               "--device",
                               b->dev->be->name,
                               b->on.precision ? "--precision" : NULL,
                               b->on.precision,
                               NULL};
    int rc = bench_run(arg, NULL, &r, err);
    bench_remove_tree(out);
    if (rc < 0)
        return rc;
    figure(b, "demo picture, 20 steps, start to PNG", r.all, "s");
    figure(b, "demo picture, peak memory", r.bytes / 1e6, "MB");
    return 0;
}

/* ---- command --------------------------------------------------------------------------------- */

#define MAX_OPTIONS 12

static void make_options(struct option *o, void *target)
{
    struct bench *b = target;
    const struct option table[] = {
        {"model", 'm', OPTION_TEXT, &b->model, "DIR", "default: the demo model", 0, 0, NULL},
        {"small", 0, OPTION_FLAG, &b->small, NULL, "leave out the SD 1.5 shape (4 GB, a minute)", 0,
         0, NULL},
        {"json", 0, OPTION_FLAG, &b->json, NULL, "a line a figure: name, value, unit", 0, 0, NULL},
    };
    memcpy(o, table, sizeof table);
    *device_options(o + sizeof table / sizeof *table, &b->on) = (struct option){.name = NULL};
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    void (*help)(void);
} parts[] = {{"store", bench_store, bench_store_help},
             {"batch", bench_batch, bench_batch_help},
             {"compose", bench_compose, bench_compose_help},
             {"retrieve", bench_retrieve, bench_retrieve_help},
             {"grad", bench_grad, bench_grad_help},
             {"unet", bench_unet, bench_unet_help}};

static int bench_all(struct bench *b, struct err *err)
{
    bool later = b->dev->be->flush;
    int rc = bench_limits(&b->limits, b->dev, &b->on, b->json, err);
    rc = rc < 0 ? rc : bench_layers(b->dev, &b->limits, b->json, err);
    if (rc == 0 && later) {
        const struct bench_unets u = {.dev = b->dev,
                                      .limits = &b->limits,
                                      .model = b->model,
                                      .batch = bench_batches,
                                      .small = b->small,
                                      .json = b->json};
        rc = bench_unets(&u, err);
    }
    if (rc == 0 && b->model && !later)
        rc = bench_demo(b, err);
    if (rc == 0 && b->model)
        rc = bench_picture(b, err);
    return rc < 0 || b->small || later ? rc : bench_sd15(b, err);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct bench b = {0};
    struct option o[MAX_OPTIONS];
    struct err err;
    const char **rest = calloc((size_t)argc + 1, sizeof *rest);
    char *demo = cli_asset("model");
    int n = 0;

    (void)self;
    for (size_t i = 0; i < sizeof parts / sizeof *parts && argc > 1; i++)
        if (!strcmp(argv[1], parts[i].name)) {
            free(rest);
            free(demo);
            return parts[i].run(argc - 1, argv + 1);
        }
    make_options(o, &b);
    int rc = rest ? options_parse(o, argc, argv, rest, &n, &err) : err_nomem(&err, 64);
    if (rc == 0 && n)
        rc = err_set(&err, ERR_ARG, "'%.60s' is no option of bench", rest[0]);
    b.model = b.model ? b.model : demo;
    rc = rc < 0 ? rc : device_choose(&b.dev, &b.on, &err);
    rc = rc < 0 ? rc : bench_all(&b, &err);
    device_close(b.dev);
    free(rest);
    free(demo);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

static void help(void)
{
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        parts[i].help();
}

const struct command command_bench = {
    .name = "bench",
    .usage = "weft bench [store|batch|compose|retrieve|grad|unet] [options]",
    .about = "what this machine does, beside its limits",
    .run = run,
    .options = make_options,
    .size = sizeof(struct bench),
    .more = "Times are the best of a few; compare figures of one run only.",
    .help = help,
};
