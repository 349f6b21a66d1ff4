/* weft bench: what this machine does, beside its limits. */
#include "bench.h"
#include "shelf.h"

#include "compose/generate.h"
#include "unet/file.h"

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
    const char *model, *device;
    int threads, rows, size[2];
    bool json, small;
    struct device *dev;
    double ceiling; /* FLOP/s */
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

static void figure(const struct bench *b, const char *name, double value, const char *unit)
{
    bench_figure(b->json, name, value, unit);
}

/* ---- layers ---------------------------------------------------------------------------------- */

struct shape {
    const char *name;
    int n, h, w, in, out, k;
};

/* Best seconds of one layer on one shape; its weights are zero, which costs the same. */
static int time_layer(struct bench *b, const struct shape *s, double *best, struct err *err)
{
    size_t n = (size_t)s->out * (size_t)s->in * (size_t)(s->k * s->k);
    float *w = calloc(n, sizeof *w);
    struct layer l = {
        .name = s->name,
        .site = -1,
        .out = s->out,
        .in = s->in,
        .kh = s->k,
        .kw = s->k,
        .stride = 1,
        .w = {.dtype = DT_F32,
              .ndim = 4,
              .data = w,
              .dim = {(uint64_t)s->out, (uint64_t)s->in, (uint64_t)s->k, (uint64_t)s->k}}};
    struct run r;
    int rc = w ? 0 : err_nomem(err, n * sizeof *w);

    *best = 1e9;
    for (int i = 0; i < 4; i++)
        l.pad[i] = s->k / 2;
    run_init(&r, b->dev);
    run_measure(&r);
    for (int i = 0; i < 7 && rc == 0; i++) {
        struct tensor x = run_tensor(&r, s->n, s->h, s->w, s->in);
        struct tensor y = run_layer_tensor(&r, &l, &x);
        if (i == 0) {
            rc = run_commit(&r, err);
            continue;
        }
        op_affine(&r, &x, &x, 0, 0);
        double t = cli_now();
        op_layer(&r, &y, &l, &x, false);
        t = cli_now() - t;
        rc = run_check(&r, err);
        *best = i > 1 && t < *best ? t : *best;
        run_reset(&r);
    }
    layer_release(b->dev, &l);
    run_release(&r);
    free(w);
    return rc;
}

static double shape_flops(const struct shape *s)
{
    return 2.0 * s->n * s->h * s->w * s->in * s->out * s->k * s->k;
}

/* The float32 ceiling as measured: the fastest of some products and convolutions that suit a processor
 * well. */
static int bench_ceiling(struct bench *b, struct err *err)
{
    static const struct shape s[] = {{"product 1024 x 1024 x 1024", 1, 1024, 1, 1024, 1024, 1},
                                     {"product 512 x 2048 x 1024", 1, 512, 1, 2048, 1024, 1},
                                     {"product 384 x 1280 x 1280", 1, 384, 1, 1280, 1280, 1},
                                     /* of odd sides: in as many products as are counted */
                                     {"convolution 96, 17 x 17", 2, 17, 17, 96, 96, 3},
                                     {"convolution 160, 9 x 9", 2, 9, 9, 160, 160, 3}};
    int rc = 0;
    for (size_t i = 0; i < sizeof s / sizeof *s && rc == 0; i++) {
        double t;
        rc = time_layer(b, &s[i], &t, err);
        double rate = rc == 0 ? shape_flops(&s[i]) / t : 0;
        b->ceiling = rate > b->ceiling ? rate : b->ceiling;
    }
    if (rc == 0)
        figure(b, "float32 ceiling", b->ceiling / 1e9, "GFLOP/s");
    return rc;
}

/* The layers that most of Stable Diffusion 1.5's time goes to, two rows (guidance) at 512 x 512. */
static int bench_layers(struct bench *b, struct err *err)
{
    static const struct shape shapes[] = {
        {"conv 3x3 320 -> 320, 64x64", 2, 64, 64, 320, 320, 3},
        {"conv 3x3 640 -> 320, 64x64", 2, 64, 64, 640, 320, 3},
        {"conv 3x3 640 -> 640, 32x32", 2, 32, 32, 640, 640, 3},
        {"conv 3x3 1280 -> 1280, 16x16", 2, 16, 16, 1280, 1280, 3},
        {"conv 3x3 2560 -> 1280, 8x8", 2, 8, 8, 2560, 1280, 3},
        {"linear 320 -> 2560, 64x64 (ff in)", 2, 64, 64, 320, 2560, 1},
        {"linear 1280 -> 320, 64x64 (ff out)", 2, 64, 64, 1280, 320, 1},
        {"linear 1280 -> 1280, 16x16", 2, 16, 16, 1280, 1280, 1},
        {"conv 3x3 96 -> 96, 16x16 (demo)", 2, 16, 16, 96, 96, 3},
        {"conv 3x3 32 -> 32, 32x32 (demo)", 2, 32, 32, 32, 32, 3},
    };
    int rc = 0;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes && rc == 0; i++) {
        char name[80];
        double t;
        rc = time_layer(b, &shapes[i], &t, err);
        if (rc < 0)
            break;
        figure(b, shapes[i].name, shape_flops(&shapes[i]) / t / 1e9, "GFLOP/s");
        snprintf(name, sizeof name, "%s, of the ceiling", shapes[i].name);
        figure(b, name, 100 * shape_flops(&shapes[i]) / t / b->ceiling, "%");
    }
    return rc;
}

/* ---- UNets ----------------------------------------------------------------------------------- */

const char bench_sd15_unet[] =
    "{\"block_out_channels\": [320, 640, 1280, 1280], \"cross_attention_dim\": %d,"
    " \"attention_head_dim\": 8, \"down_block_types\": [\"CrossAttnDownBlock2D\","
    " \"CrossAttnDownBlock2D\", \"CrossAttnDownBlock2D\", \"DownBlock2D\"],"
    " \"up_block_types\": [\"UpBlock2D\", \"CrossAttnUpBlock2D\", \"CrossAttnUpBlock2D\","
    " \"CrossAttnUpBlock2D\"]}";

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
        figure(b, name, 100 * flops / best / b->ceiling, "%");
        snprintf(name, sizeof name, "%s, activations", what);
        figure(b, name, (double)pass.size / 1e6, "MB");
    }
    run_release(&pass);
    run_release(&keep);
    return rc;
}

static int bench_sd15(struct bench *b, struct err *err)
{
    struct source from;
    struct sites sites = {0};
    struct unet *u = NULL;
    char config[1200];
    snprintf(config, sizeof config, bench_sd15_unet, 768);
    int rc = source_random(&from, config, "SD 1.5", 1, err);
    rc = rc < 0 ? rc : unet_open(&u, b->dev, &from, &sites, err);
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
    const char *const arg[] = {"render", "a red apple", "--model", b->model,    "--seed",
                               "1",      "--steps",     "20",      "--threads", threads,
                               "-o",     png,           NULL};
    int rc = bench_run(arg, NULL, &r, err);
    bench_remove_tree(out);
    if (rc < 0)
        return rc;
    figure(b, "demo picture, 20 steps, start to PNG", r.all, "s");
    figure(b, "demo picture, peak memory", r.bytes / 1e6, "MB");
    return 0;
}

/* ---- command --------------------------------------------------------------------------------- */

#define MAX_OPTIONS 10

static void make_options(struct option *o, void *target)
{
    struct bench *b = target;
    const struct option table[] = {
        {"model", 'm', OPTION_TEXT, &b->model, "DIR", "default: the demo model", 0, 0, NULL},
        {"threads", 't', OPTION_INT, &b->threads, "N", "default: all processors", 1, 1024, NULL},
        {"device", 0, OPTION_TEXT, &b->device, "NAME", "default: cpu", 0, 0, NULL},
        {"small", 0, OPTION_FLAG, &b->small, NULL, "leave out the SD 1.5 shape (4 GB, a minute)", 0,
         0, NULL},
        {"json", 0, OPTION_FLAG, &b->json, NULL, "a line a figure: name, value, unit", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    void (*help)(void);
} parts[] = {{"store", bench_store, bench_store_help},
             {"batch", bench_batch, bench_batch_help},
             {"compose", bench_compose, bench_compose_help},
             {"retrieve", bench_retrieve, bench_retrieve_help},
             {"grad", bench_grad, bench_grad_help}};

static int run(const struct command *self, int argc, char **argv)
{
    struct bench b = {.device = "cpu"};
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
    struct device_options how = {.threads = b.threads};
    rc = rc < 0 ? rc : device_open(&b.dev, b.device, &how, &err);
    rc = rc < 0 ? rc : bench_ceiling(&b, &err);
    rc = rc < 0 ? rc : bench_layers(&b, &err);
    if (rc == 0 && b.model)
        rc = bench_demo(&b, &err);
    if (rc == 0 && b.model)
        rc = bench_picture(&b, &err);
    if (rc == 0 && !b.small)
        rc = bench_sd15(&b, &err);
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
    .usage = "weft bench [store|batch|compose|retrieve|grad] [options]",
    .about = "what this machine does, beside its limits",
    .run = run,
    .options = make_options,
    .size = sizeof(struct bench),
    .more = "Times are the best of a few; compare figures of one run only.",
    .help = help,
};
