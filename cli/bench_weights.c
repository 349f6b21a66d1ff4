/* weft bench retrieve: how long an adapter takes to be read by its weights. */
#include "bench.h"
#include "cli.h"

#include "retrieve/encoder.h"
#include "store/adapter.h"
#include "unet/loader.h"
#include "unet/rng.h"

#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { RANK = 32, TURNS = 3, MOST = 200 };

/* ---- the shipped adapters -------------------------------------------------------------------- */

struct reading {
    struct device *dev;
    struct model *m;
    struct responder *re;
    struct encoder *e;
    double answer[MOST], vector[MOST];
    int n;
};

static int read_bound(struct reading *b, const struct adapter *a, struct err *err)
{
    struct response answer;
    double strength, at = cli_now();
    float *v = malloc((size_t)(b->e ? b->e->dim : 1) * sizeof *v);
    int rc = v ? responder_read(b->re, a, &answer, err) : err_nomem(err, 1);
    if (!v)
        return rc;
    b->answer[b->n] = cli_now() - at;
    at = cli_now();
    if (rc == 0 && b->e)
        rc = encoder_read(b->e, a, &answer, v, &strength, err);
    b->vector[b->n++] = cli_now() - at;
    response_release(&answer);
    free(v);
    return rc < 0 ? rc : 0;
}

static int read_path(struct reading *b, const char *path, struct err *err)
{
    struct adapter_file *f = NULL;
    struct adapter *a = NULL;
    struct bind_report report = {0};
    int rc = adapter_file_open(&f, path, err);
    rc = rc < 0 ? rc : adapter_bind(&a, b->dev, &b->m->sites, &f->list, path, true, &report, err);
    rc = rc < 0 ? rc : read_bound(b, a, err);
    bind_report_release(&report);
    adapter_free(a);
    adapter_file_close(f);
    return rc;
}

static int read_shipped(struct reading *b, const char *dir, struct err *err)
{
    DIR *d = opendir(dir);
    int rc = d ? 0 : err_set(err, ERR_IO, "%s: cannot be opened", dir);
    for (const struct dirent *e; d && rc == 0 && b->n < MOST && (e = readdir(d));) {
        char path[1200];
        if (!strstr(e->d_name, ".safetensors"))
            continue;
        snprintf(path, sizeof path, "%.800s/%.300s", dir, e->d_name);
        rc = read_path(b, path, err);
    }
    if (d)
        closedir(d);
    return rc;
}

static int bench_shipped(bool json, struct err *err)
{
    static const char *const part[] = {"model", "retriever", "scorer", "adapters"};
    struct reading b = {.n = 0};
    char *dir[4];
    int rc = device_open(&b.dev, "cpu", &(struct device_options){.threads = 1}, err);
    for (int i = 0; i < 4; i++)
        if (!(dir[i] = cli_asset(part[i])) && rc == 0)
            rc = err_set(err, ERR_IO, "the demo's %s is not installed", part[i]);
    rc = rc < 0 ? rc : model_open(&b.m, b.dev, dir[0], err);
    rc = rc < 0 ? rc : responder_open(&b.re, b.m, NULL, 0, err);
    rc = rc < 0 ? rc : encoder_open(&b.e, b.m, b.re, dir[1], dir[2], err);
    rc = rc < 0 ? rc : read_shipped(&b, dir[3], err);
    if (rc == 0 && b.n) {
        bench_percentiles(json, "demo, an adapter's answer", b.answer, b.n);
        bench_percentiles(json, "demo, its vector", b.vector, b.n);
    }
    encoder_close(b.e);
    responder_close(b.re);
    model_close(b.m);
    device_close(b.dev);
    for (int i = 0; i < 4; i++)
        free(dir[i]);
    return rc;
}

/* ---- at SD 1.5's shape ----------------------------------------------------------------------- */

static const char text_config[] =
    "{\"hidden_act\": \"quick_gelu\", \"hidden_size\": 768, \"intermediate_size\": 3072, "
    "\"num_attention_heads\": 12, \"num_hidden_layers\": 12, \"max_position_embeddings\": 77, "
    "\"vocab_size\": %d, \"layer_norm_eps\": 1e-5, \"eos_token_id\": %d}";

/* A UNet and a text encoder of SD 1.5's widths that were never trained, the demo's tokenizer. */
static int open_sd15(struct reading *b, struct model *m, const struct model *demo, struct err *err)
{
    struct source from;
    char config[1200];
    int words = tokenizer_size(demo->tokenizer);
    *m = (struct model){.dev = b->dev, .tokenizer = demo->tokenizer};
    b->m = m;
    snprintf(config, sizeof config, text_config, words, words - 1);
    int rc = source_random(&from, config, "SD 1.5's texts", 1, err);
    rc = rc < 0 ? rc : clip_text_open(&m->text, b->dev, &from, &m->sites, err);
    snprintf(config, sizeof config, bench_sd15_unet, 768);
    rc = rc < 0 ? rc : source_random(&from, config, "SD 1.5", 1, err);
    rc = rc < 0 ? rc : unet_open(&m->unet, b->dev, &from, &m->sites, err);
    return rc < 0 ? rc : sites_finish(&m->sites, err);
}

static int bench_sd15(bool json, struct err *err)
{
    const size_t n = 1 << 20;
    struct reading b = {.n = 0};
    struct model *demo = NULL, m = {.dir = NULL};
    struct adapter *a = NULL;
    struct rng r;
    char *dir = cli_asset("model");
    float *sample = malloc(n * sizeof *sample);
    int rc = dir && sample ? device_open(&b.dev, "cpu", &(struct device_options){.threads = 1}, err)
                           : err_set(err, ERR_IO, "the demo model is not installed");
    rc = rc < 0 ? rc : model_open(&demo, b.dev, dir, err);
    rc = rc < 0 ? rc : open_sd15(&b, &m, demo, err);
    double at = cli_now();
    rc = rc < 0 ? rc : responder_open(&b.re, &m, NULL, 0, err);
    if (rc == 0)
        bench_figure(json, "SD 1.5's shape, neutral texts, once a model", cli_now() - at, "s");
    if (rc == 0) {
        rng_init(&r, RNG_TORCH, 1);
        rng_normal(&r, sample, n);
        rc = bench_bind(&a, b.dev, &m.sites, RANK, sample, n / 2, "rank 32", err);
    }
    for (int i = 0; i < TURNS && rc == 0; i++)
        rc = read_bound(&b, a, err);
    if (rc == 0)
        bench_percentiles(json, "SD 1.5's shape, the answer of a rank 32 LoRA", b.answer, b.n);
    adapter_free(a);
    responder_close(b.re);
    unet_close(m.unet);
    clip_text_close(m.text);
    sites_release(&m.sites);
    model_close(demo);
    device_close(b.dev);
    free(sample);
    free(dir);
    return rc;
}

int bench_weights(bool json, bool sd15, struct err *err)
{
    return sd15 ? bench_sd15(json, err) : bench_shipped(json, err);
}
