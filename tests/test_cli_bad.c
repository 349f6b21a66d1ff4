/* Bad models, adapters and outputs, by the real program: the message, the exit code, and no picture. */
#include "shell.h"
#include "unet/file.h"
#include "unet/image.h"
#include "unet/safetensors.h"
#include "util.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define MODEL  "tests/golden/data/tiny-sd1"
#define MODEL2 "tests/golden/data/tiny-sd2"
#define LORA   "tests/golden/data/lora-kohya.safetensors"

/* A copy of the model in the folder, to be damaged; returns its path. */
static const char *copy_model(const struct shell *s, const char *from, const char *name)
{
    char cmd[300];
    snprintf(cmd, sizeof cmd, "cp -r %s %s/%s && chmod -R u+w %s/%s", from, s->dir, name, s->dir,
             name);
    cr_assert_eq(system(cmd), 0);
    return in(s, name);
}

static void write_text(const char *path, const char *text)
{
    struct err err;
    cr_assert_eq(file_replace(path, text, strlen(text), &err), 0, "%s", err.msg);
}

static void render_with(struct shell *s, const char *model, const char *adapter)
{
    const char *o = in(s, "a.png");
    if (adapter)
        weft(s, "render", "x", "-m", model, "-a", adapter, "--steps", "1", "-o", o, NULL);
    else
        weft(s, "render", "x", "-m", model, "--steps", "1", "-o", o, NULL);
}

Test(cli, bad_models)
{
    struct shell s;
    shell_open(&s);
    render_with(&s, in(&s, "nowhere"), NULL);
    expect_failure(&s, 1, "no such folder");
    render_with(&s, s.dir, NULL);
    expect_failure(&s, 1, "no model_index.json");

    const char *m = copy_model(&s, MODEL, "index");
    write_text(in(&s, "index/model_index.json"),
               "{\"_class_name\": \"StableDiffusionXLPipeline\"}");
    render_with(&s, m, NULL);
    expect_failure(&s, 1, "StableDiffusionXLPipeline");

    m = copy_model(&s, MODEL, "cut");
    cr_assert_eq(truncate(in(&s, "cut/unet/diffusion_pytorch_model.safetensors"), 100000), 0);
    render_with(&s, m, NULL);
    expect_failure(&s, 1, "diffusion_pytorch_model.safetensors");

    m = copy_model(&s, MODEL, "gone");
    unlink(in(&s, "gone/vae/diffusion_pytorch_model.safetensors"));
    render_with(&s, m, NULL);
    expect_failure(&s, 1, "holds no diffusion_pytorch_model.safetensors");
    write_text(in(&s, "gone/vae/diffusion_pytorch_model.bin"), "x");
    render_with(&s, m, NULL);
    expect_failure(&s, 1, "pickled weights are never read");

    m = copy_model(&s, MODEL, "hostile");
    write_text(in(&s, "hostile/unet/diffusion_pytorch_model.safetensors"),
               "\xff\xff\xff\xff\xff\xff\xff\x7f{}");
    render_with(&s, m, NULL);
    expect_failure(&s, 1, "header too large");

    m = copy_model(&s, MODEL, "swapped"); /* parts of two models */
    char cmd[300];
    snprintf(cmd, sizeof cmd, "cp %s/text_encoder/* %s/swapped/text_encoder/", MODEL2, s.dir);
    cr_assert_eq(system(cmd), 0);
    render_with(&s, m, NULL);
    expect_failure(&s, 1, "the text encoder is 20 wide and the UNet attends to text 16 wide");
    shell_close(&s);
}

/* Replaces one text in a config file by another. */
static void edit(const char *path, const char *from, const char *to)
{
    char *text, *at, *all;
    struct err err;
    cr_assert_eq(file_read(&text, NULL, path, 1 << 20, &err), 0);
    cr_assert((at = strstr(text, from)), "%s: no %s", path, from);
    all = malloc(strlen(text) + strlen(to) + 1);
    sprintf(all, "%.*s%s%s", (int)(at - text), text, to, at + strlen(from));
    write_text(path, all);
    free(text);
    free(all);
}

/* A key that changes the computation and is not known is an error that names it. */
Test(cli, bad_configs)
{
    static const struct {
        const char *file, *from, *to, *words;
    } cases[] = {
        {"unet/config.json", "\"class_embed_type\": null", "\"class_embed_type\": \"timestep\"",
         "class_embed_type"},
        {"unet/config.json", "\"time_cond_proj_dim\": null", "\"time_cond_proj_dim\": 256",
         "time_cond_proj_dim"},
        {"unet/config.json", "\"act_fn\": \"silu\"", "\"act_fn\": \"gelu\"", "act_fn"},
        {"unet/config.json", "\"sample_size\": 8", "\"sample_size\": 8, \"new_trick\": 3",
         "new_trick"},
        {"unet/config.json", "\"cross_attention_dim\": 16", "\"cross_attention_dim\": 24",
         "is [8, 16]"},
        {"unet/config.json", "\"DownBlock2D\"", "\"SimpleDownBlock2D\"", "SimpleDownBlock2D"},
        {"unet/config.json", "\"norm_num_groups\": 4", "\"norm_num_groups\": 3", "norm_num_groups"},
        {"vae/config.json", "\"shift_factor\": null", "\"shift_factor\": 0.1", "shift_factor"},
        {"vae/config.json", "\"scaling_factor\": 0.18215", "\"scaling_factor\": 0", "sizes"},
        {"text_encoder/config.json", "quick_gelu", "relu", "hidden_act"},
        {"scheduler/scheduler_config.json", "scaled_linear", "sigmoid", "sigmoid"},
        {"scheduler/scheduler_config.json", "\"beta_end\": 0.012", "\"beta_end\": 12",
         "scheduler_config.json: noise schedule"},
        {"scheduler/scheduler_config.json", "\"thresholding\": false", "\"thresholding\": true",
         "thresholding"},
    };
    struct shell s;
    shell_open(&s);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        char name[20], file[80];
        snprintf(name, sizeof name, "m%zu", i);
        snprintf(file, sizeof file, "m%zu/%s", i, cases[i].file);
        const char *m = copy_model(&s, MODEL, name);
        edit(in(&s, file), cases[i].from, cases[i].to);
        render_with(&s, m, NULL);
        cr_expect(strstr(s.err, cases[i].words), "%s: %s", cases[i].to, s.err);
        cr_expect_eq(s.code, 1, "%s: exit %d", cases[i].to, s.code);
        cr_expect_eq(files(&s), 0);
    }
    shell_close(&s);
}

/* One value of one array of a file becomes NaN. */
static void poison(const char *path, const char *array)
{
    struct safetensors *st = NULL;
    struct err err;
    size_t size;
    cr_assert_eq(safetensors_open(&st, path, &err), 0);
    const struct array *a = safetensors_find(st, array);
    cr_assert(a && a->dtype == DT_F16, "%s", array);
    const char *base = safetensors_data(st, &size);
    struct stat sb;
    cr_assert_eq(stat(path, &sb), 0);
    off_t at = sb.st_size - (off_t)size + ((const char *)a->data - base);
    safetensors_close(st);
    int fd = open(path, O_WRONLY);
    const uint16_t nan = 0x7e00;
    cr_assert_eq(pwrite(fd, &nan, sizeof nan, at), (ssize_t)sizeof nan);
    close(fd);
}

Test(cli, nan_weights)
{
    struct shell s;
    char cmd[300];
    shell_open(&s);
    const char *m = copy_model(&s, MODEL, "nan");
    poison(in(&s, "nan/unet/diffusion_pytorch_model.safetensors"),
           "mid_block.resnets.0.conv1.weight");
    render_with(&s, m, NULL);
    expect_failure(&s, 1, "unet.mid_block.resnets.0.conv1: value 0 is NaN");
    m = copy_model(&s, MODEL, "nan2");
    poison(in(&s, "nan2/unet/diffusion_pytorch_model.safetensors"), "conv_norm_out.weight");
    render_with(&s, m, NULL);
    expect_failure(&s, 1, "conv_norm_out: value 0 is NaN");
    snprintf(cmd, sizeof cmd, "cp %s %s/nan.safetensors", LORA, s.dir);
    cr_assert_eq(system(cmd), 0);
    poison(in(&s, "nan.safetensors"),
           "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_up.weight");
    render_with(&s, MODEL, in(&s, "nan.safetensors"));
    expect_failure(&s, 1, "NaN");
    cr_expect(strstr(s.err, "nan.safetensors"), "%s", s.err);
    shell_close(&s);
}

Test(cli, bad_adapters)
{
    struct shell s;
    char cmd[300];
    shell_open(&s);
    render_with(&s, MODEL, in(&s, "nothing.safetensors"));
    expect_failure(&s, 1, "no such adapter file");
    snprintf(cmd, sizeof cmd, "head -c 5000 %s > %s/cut.safetensors", LORA, s.dir);
    cr_assert_eq(system(cmd), 0);
    render_with(&s, MODEL, in(&s, "cut.safetensors"));
    expect_failure(&s, 1, "cut.safetensors");
    write_text(in(&s, "zip.safetensors"), "PK\x03\x04 this is a zip");
    render_with(&s, MODEL, in(&s, "zip.safetensors"));
    expect_failure(&s, 1, "zip.safetensors");
    write_text(in(&s, "empty.safetensors"), "");
    render_with(&s, MODEL, in(&s, "empty.safetensors"));
    expect_failure(&s, 1, "empty.safetensors");
    /* made for another base: both widths are named */
    render_with(&s, MODEL2, LORA);
    expect_failure(&s, 1, "made for another base model");
    cr_expect(strstr(s.err, " 16 wide in") && strstr(s.err, "the model's weight"), "%s", s.err);
    shell_close(&s);
}

/* An adapter that fits in part is listed and refused, unless that is asked for. */
Test(cli, partial_matches)
{
    struct shell s;
    struct safetensors *st = NULL;
    struct err err;
    struct safetensors_item item[1000];
    size_t n;
    shell_open(&s);
    cr_assert_eq(safetensors_open(&st, LORA, &err), 0);
    n = safetensors_count(st);
    for (size_t i = 0; i < n; i++)
        item[i] = (struct safetensors_item){safetensors_name(st, i), *safetensors_at(st, i)};
    /* one module under a name that no model has */
    char key[3][200];
    size_t renamed = 0;
    for (size_t i = 0; i < n; i++) {
        char *at = strstr(item[i].name, "mid_block_resnets_0_conv1.");
        if (!at)
            continue;
        cr_assert_lt(renamed, 3);
        snprintf(key[renamed], sizeof key[0], "%s", item[i].name);
        strstr(key[renamed], "resnets_0")[8] = '7';
        item[i].name = key[renamed++];
    }
    cr_assert_eq(renamed, 3);
    cr_assert_eq(safetensors_write(in(&s, "part.safetensors"), item, n, NULL, 0, &err), 0, "%s",
                 err.msg);
    render_with(&s, MODEL, in(&s, "part.safetensors"));
    expect_failure(&s, 1, "1 of its 265 weights do not fit");
    cr_expect(strstr(s.err, "not matched: unet.mid_block.resnets.7.conv1"), "%s", s.err);
    weft(&s, "render", "x", "-m", MODEL, "-a", in(&s, "part.safetensors"), "--allow-partial",
         "--steps", "1", "--json", "-o", in(&s, "a.png"), NULL);
    expect_success(&s, 1);
    cr_expect(strstr(s.out, "\"matched\":264"), "%s", s.out);
    safetensors_close(st);
    shell_close(&s);
}

Test(cli, devices)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "render", "x", "-m", MODEL, "--device", "gpu", "-o", in(&s, "a.png"), NULL);
    expect_failure(&s, 2, "no device 'gpu' in this build");
    weft(&s, "render", "x", "-m", MODEL, "--precision", "f8", "-o", in(&s, "a.png"), NULL);
    expect_failure(&s, 2, "no precision 'f8'; known: f32, f16, bf16");
    weft(&s, "render", "x", "-m", MODEL, "--device", "cpu", "--precision", "f16", "-o",
         in(&s, "a.png"), NULL);
    expect_failure(&s, 1, "device cpu computes in float32, not in F16");
    weft(&s, "render", "x", "-m", MODEL, "--steps", "1", "--device", "auto", "-v", "-o",
         in(&s, "a.png"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.err, "\ndevice c") || !strncmp(s.err, "device c", 8), "%s", s.err);
    shell_close(&s);
}

Test(cli, outputs_that_cannot_be)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "render", "x", "-m", MODEL, "--steps", "1", "-o", in(&s, "no/such/a.png"), NULL);
    expect_failure(&s, 1, "cannot be written");
    weft(&s, "render", "x", "-m", MODEL, "--steps", "1", "-o", "/dev/null", NULL);
    expect_failure(&s, 1, "a device or pipe");
    weft(&s, "render", "x", "-m", MODEL, "--steps", "1", "-o", "/proc/a.png", NULL);
    expect_failure(&s, 1, "/proc/a.png: cannot be written");
    weft(&s, "render", "--like", LORA, "-o", in(&s, "a.png"), NULL);
    expect_failure(&s, 1, "lora-kohya.safetensors");
    weft(&s, "render", "x", "--init", in(&s, "none.png"), "-m", MODEL, "-o", in(&s, "a.png"), NULL);
    expect_failure(&s, 1, "none.png");
    cr_assert_eq(mkfifo(in(&s, "pipe"), 0600), 0); /* and nobody writes to it */
    weft(&s, "render", "x", "--init", in(&s, "pipe"), "-m", MODEL, "-o", in(&s, "a.png"), NULL);
    expect_failure(&s, 1, "pipe");
    weft(&s, "render", "x", "-a", in(&s, "pipe"), "-m", MODEL, "-o", in(&s, "a.png"), NULL);
    expect_failure(&s, 1, "pipe");
    shell_close(&s);
}
