/* Whole models against diffusers and transformers, stage by stage: tests/golden/models.py.
 * WEFT_PARITY=DIR[:DIR…] adds folders made by hand with it (the demo model, SD 1.5's real size). */
#include "compose/generate.h"
#include "unet/file.h"
#include "unet/safetensors.h"
#include "util.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* Relative L2 error of a stage; and of a latent after several steps, where errors add up. */
#define BOUND        1e-4
#define BOUND_LATENT 1e-4

struct golden {
    struct device *dev;
    struct model *m;
    struct safetensors *st;
    struct run r;
    const char *dir;
};

static void golden_open(struct golden *g, const char *dir, const char *backend)
{
    char path[600];
    struct err err;
    g->dir = dir;
    g->dev = test_device(backend);
    cr_assert_eq(model_open(&g->m, g->dev, dir, &err), 0, "%s", err.msg);
    snprintf(path, sizeof path, "%s/golden.safetensors", dir);
    cr_assert_eq(safetensors_open(&g->st, path, &err), 0, "%s", err.msg);
    run_init(&g->r, g->dev);
}

static void golden_close(struct golden *g)
{
    run_release(&g->r);
    safetensors_close(g->st);
    model_close(g->m);
    device_close(g->dev);
}

/* The golden array of that name as floats; *shape is its last dims. */
static float *values(struct golden *g, const char *name, struct array *shape)
{
    const struct array *a = safetensors_find(g->st, name);
    cr_assert(a, "%s: no '%s'", g->dir, name);
    float *f = malloc(array_count(a) * sizeof *f);
    array_to_f32(a, f);
    if (shape)
        *shape = *a;
    return f;
}

/* A golden [n, h, w, c] array as a tensor of the run. */
static struct tensor upload(struct golden *g, const char *name)
{
    struct array a;
    float *f = values(g, name, &a);
    cr_assert_eq(a.ndim, 4);
    struct tensor t = run_tensor(&g->r, (int)a.dim[0], (int)a.dim[1], (int)a.dim[2], (int)a.dim[3]);
    op_upload(&g->r, &t, f);
    free(f);
    return t;
}

/* Figures are printed only where they were asked for. */
static void figure(const struct golden *g, const char *name, double error)
{
    if (getenv("WEFT_PARITY"))
        printf("%s on %s: %-22s %.2e\n", g->dir, g->dev->be->name, name, error);
}

/* The result of a stage beside the golden of that name. */
static void compare(struct golden *g, const struct tensor *y, const char *name)
{
    struct array a;
    struct err err;
    float *want = values(g, name, &a), *got = malloc(tensor_count(y) * sizeof *got);
    cr_assert_eq(tensor_count(y), array_count(&a), "%s: %s has another size", g->dir, name);
    g->dev->be->download(g->dev, got, y, &err);
    double e = test_error(got, want, tensor_count(y));
    figure(g, name, e);
    cr_expect_leq(e, BOUND, "%s: %s is off by %.2e", g->dir, name, e);
    free(want);
    free(got);
}

typedef struct tensor stage_fn(struct golden *g, const void *arg);

/* Measures, runs and compares one stage. */
static void stage(struct golden *g, stage_fn *fn, const void *arg, const char *name)
{
    struct err err;
    run_measure(&g->r);
    fn(g, arg);
    cr_assert_eq(run_commit(&g->r, &err), 0, "%s", err.msg);
    struct tensor y = fn(g, arg);
    cr_assert_eq(run_check(&g->r, &err), 0, "%s: %s", name, err.msg);
    compare(g, &y, name);
    run_reset(&g->r);
}

static int32_t *token_ids(struct golden *g, int *n, int *len)
{
    const struct array *a = safetensors_find(g->st, "ids");
    int32_t *ids = malloc(array_count(a) * sizeof *ids);
    cr_assert(a && a->dtype == DT_I32);
    memcpy(ids, a->data, array_count(a) * sizeof *ids);
    *n = (int)a->dim[0];
    *len = (int)a->dim[1];
    return ids;
}

static struct tensor text_stage(struct golden *g, const void *arg)
{
    int n, len;
    int32_t *ids = token_ids(g, &n, &len);
    struct tensor y = clip_text_forward(g->m->text, &g->r, NULL, ids, n, len, *(const int *)arg, 0);
    free(ids);
    return y;
}

static struct tensor unet_stage(struct golden *g, const void *arg)
{
    char name[60];
    struct array ta;
    double t[16];
    snprintf(name, sizeof name, "unet_%s_t", (const char *)arg);
    float *tf = values(g, name, &ta);
    for (size_t i = 0; i < ta.dim[0]; i++)
        t[i] = (double)tf[i];
    free(tf);
    snprintf(name, sizeof name, "unet_%s_x", (const char *)arg);
    struct tensor x = upload(g, name);
    struct array ha;
    float *hf = values(g, "text", &ha);
    struct tensor text = run_tensor(&g->r, (int)ha.dim[0], (int)ha.dim[1], 1, (int)ha.dim[2]);
    op_upload(&g->r, &text, hf);
    free(hf);
    return unet_forward(g->m->unet, &g->r, &x, t, &(struct unet_text){&text, 1}, NULL);
}

static struct tensor decode_stage(struct golden *g, const void *arg)
{
    (void)arg;
    struct tensor z = upload(g, "vae_z");
    return vae_decode(g->m->vae, &g->r, &z);
}

static struct tensor encode_stage(struct golden *g, const void *arg)
{
    (void)arg;
    struct tensor x = upload(g, "vae_x");
    return vae_encode(g->m->vae, &g->r, &x);
}

static void check_tiles(struct golden *g)
{
    struct array a, ya;
    struct err err;
    float *z = values(g, "tile_z", &a), *want = values(g, "tile_y", &ya);
    float *rgb = malloc(array_count(&ya) * sizeof *rgb);
    run_measure(&g->r);
    struct tensor t = run_tensor(&g->r, 1, 8, 8, g->m->vae->latent);
    vae_decode(g->m->vae, &g->r, &t);
    cr_assert_eq(run_commit(&g->r, &err), 0);
    cr_assert_eq(vae_decode_tiled(g->m->vae, &g->r, rgb, z, (int)a.dim[1], (int)a.dim[2], 8, &err),
                 0, "%s", err.msg);
    double e = test_error(rgb, want, array_count(&ya));
    figure(g, "tile_y", e);
    cr_expect_leq(e, BOUND, "%s: tiled decoding is off by %.2e", g->dir, e);
    free(z);
    free(want);
    free(rgb);
}

static void check_stages(const char *dir, const char *backend)
{
    struct golden g;
    const int none = 0, one = 1;
    golden_open(&g, dir, backend);
    stage(&g, text_stage, &none, "text");
    stage(&g, text_stage, &one, "text_skip1");
    stage(&g, unet_stage, "square", "unet_square_y");
    stage(&g, unet_stage, "odd", "unet_odd_y");
    stage(&g, decode_stage, NULL, "vae_y");
    stage(&g, encode_stage, NULL, "vae_moments");
    check_tiles(&g);
    golden_close(&g);
}

/* ---- whole pictures -------------------------------------------------------------------------- */

static double psnr(const uint8_t *a, const float *b, size_t n)
{
    double e = 0;
    for (size_t i = 0; i < n; i++) {
        double d = a[i] / 255.0 - (double)b[i];
        e += d * d;
    }
    return 10 * log10((double)n / e);
}

/* The first prompt by one sampler, as diffusers' pipeline made it: "latent NAME[ karras]". */
static void check_picture(struct golden *g, const char *name, const struct image *init)
{
    struct prompt prompt, negative;
    struct generator *gen = NULL;
    struct picture p;
    struct image im = {0};
    struct err err;
    char sampler[40];
    json_t *texts = json_loads(safetensors_metadata(g->st, "prompts"), 0, NULL);
    size_t n;

    cr_assert_eq(prompt_read(&prompt, json_string_value(json_array_get(texts, 0)), &err), 0);
    cr_assert_eq(prompt_read_negative(&negative, safetensors_metadata(g->st, "negative"), &err), 0);
    snprintf(sampler, sizeof sampler, "%s", init ? "ddim" : name + strlen("latent "));
    picture_init(&p, g->m);
    char *space = strchr(sampler, ' ');
    if (space) {
        *space = 0;
        p.sigmas = SIGMAS_KARRAS;
    }
    p.sampler = sampler;
    p.prompt = &prompt;
    p.negative = &negative;
    p.steps = atoi(safetensors_metadata(g->st, "steps"));
    p.cfg = 4;
    p.seed = 7;
    p.init = init;
    p.denoise = 0.6;
    cr_assert_eq(generator_open(&gen, g->m, &err), 0, "%s", err.msg);
    cr_assert_eq(generator_prepare(gen, &p, 1, NULL, &err), 0, "%s: %s", name, err.msg);
    cr_assert_eq(generator_run(gen, &im, NULL, NULL, &err), 0, "%s: %s", name, err.msg);
    float *want = values(g, name, NULL);
    const float *got = generator_latent(gen, 0, &n);
    double e = test_error(got, want, n);
    figure(g, name, e);
    cr_expect_leq(e, BOUND_LATENT, "%s: %s is off by %.2e", g->dir, name, e);
    free(want);
    if (!strcmp(name, "latent ddim")) {
        want = values(g, "picture ddim", NULL);
        double db = psnr(im.rgb, want, (size_t)im.w * (size_t)im.h * 3);
        figure(g, "picture, dB", db);
        cr_expect_geq(db, 50, "%s: the picture is only %.1f dB from diffusers'", g->dir, db);
        free(want);
    }
    image_release(&im);
    generator_close(gen);
    prompt_release(&prompt);
    prompt_release(&negative);
    json_decref(texts);
}

static void check_pictures(const char *dir, const char *backend)
{
    struct golden g;
    struct array a;
    golden_open(&g, dir, backend);
    for (size_t i = 0; i < safetensors_count(g.st); i++) {
        const char *name = safetensors_name(g.st, i);
        if (!strncmp(name, "latent ", 7) && strcmp(name, "latent init"))
            check_picture(&g, name, NULL);
    }
    float *f = values(&g, "init", &a);
    struct image init = {.h = (int)a.dim[1], .w = (int)a.dim[2]};
    init.rgb = malloc(array_count(&a));
    for (size_t i = 0; i < array_count(&a); i++)
        init.rgb[i] = (uint8_t)f[i];
    check_picture(&g, "latent init", &init);
    free(init.rgb);
    free(f);
    golden_close(&g);
}

Test(model, stages_of_a_tiny_sd1)
{
    check_stages("tests/golden/data/tiny-sd1", "cpu");
    check_stages("tests/golden/data/tiny-sd1", "ref");
}

Test(model, stages_of_a_tiny_sd2)
{
    check_stages("tests/golden/data/tiny-sd2", "cpu");
    check_stages("tests/golden/data/tiny-sd2", "ref");
}

Test(model, pictures_of_a_tiny_sd1)
{
    check_pictures("tests/golden/data/tiny-sd1", "cpu");
}

Test(model, pictures_of_a_tiny_sd2)
{
    check_pictures("tests/golden/data/tiny-sd2", "cpu");
}

/* ---- other layouts of the same files --------------------------------------------------------- */

/* A copy of the tiny model in a folder of its own; unet_path is its UNet's weights. */
static void copy_model(char *dir, char *unet_path, size_t size)
{
    char cmd[300];
    cr_assert(mkdtemp(dir));
    snprintf(cmd, sizeof cmd, "cp -r tests/golden/data/tiny-sd1/* %s && chmod -R u+w %s", dir, dir);
    cr_assert_eq(system(cmd), 0);
    snprintf(unet_path, size, "%s/unet/diffusion_pytorch_model.safetensors", dir);
}

static void remove_model(const char *dir)
{
    char cmd[100];
    snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    cr_assert_eq(system(cmd), 0);
}

/* The UNet's output of a model folder. */
static float *unet_output(const char *dir, size_t *n)
{
    struct golden g;
    struct err err;
    golden_open(&g, dir, "cpu");
    run_measure(&g.r);
    unet_stage(&g, "square");
    cr_assert_eq(run_commit(&g.r, &err), 0);
    struct tensor y = unet_stage(&g, "square");
    float *host = malloc((*n = tensor_count(&y)) * sizeof *host);
    g.dev->be->download(g.dev, host, &y, &err);
    golden_close(&g);
    return host;
}

static void expect_same_unet(const char *dir)
{
    size_t n, m;
    float *a = unet_output("tests/golden/data/tiny-sd1", &n), *b = unet_output(dir, &m);
    cr_expect(n == m && !memcmp(a, b, n * sizeof *a), "%s gives another picture", dir);
    free(a);
    free(b);
}

Test(weights, fp16_variant)
{
    char dir[] = "/tmp/weft-model-XXXXXX", path[200], to[200];
    copy_model(dir, path, sizeof path);
    snprintf(to, sizeof to, "%s/unet/diffusion_pytorch_model.fp16.safetensors", dir);
    cr_assert_eq(rename(path, to), 0);
    expect_same_unet(dir);
    remove_model(dir);
}

/* Splits the file's arrays over two shards, with or without ".fp16" in the names. */
static void split(const char *dir, const char *path, const char *variant)
{
    struct safetensors *st = NULL;
    struct safetensors_item item[2][1000];
    size_t n[2] = {0, 0};
    struct err err;
    char name[100], file[300];
    json_t *map = json_object();
    cr_assert_eq(safetensors_open(&st, path, &err), 0);
    for (size_t i = 0; i < safetensors_count(st); i++) {
        int k = i % 3 == 0;
        item[k][n[k]++] =
            (struct safetensors_item){safetensors_name(st, i), *safetensors_at(st, i)};
        snprintf(name, sizeof name, "diffusion_pytorch_model%s-0000%d-of-00002.safetensors",
                 variant, k + 1);
        json_object_set_new(map, safetensors_name(st, i), json_string(name));
    }
    for (int k = 0; k < 2; k++) {
        snprintf(file, sizeof file, "%s/unet/diffusion_pytorch_model%s-0000%d-of-00002.safetensors",
                 dir, variant, k + 1);
        cr_assert_eq(safetensors_write(file, item[k], n[k], NULL, 0, &err), 0, "%s", err.msg);
    }
    safetensors_close(st);
    unlink(path);
    json_t *index = json_pack("{s:o}", "weight_map", map);
    snprintf(file, sizeof file, "%s/unet/diffusion_pytorch_model.safetensors.index%s.json", dir,
             variant);
    cr_assert_eq(json_dump_file(index, file, 0), 0);
    json_decref(index);
}

Test(weights, shards)
{
    static const char *const variants[] = {"", ".fp16"};
    for (int i = 0; i < 2; i++) {
        char dir[] = "/tmp/weft-model-XXXXXX", path[200];
        copy_model(dir, path, sizeof path);
        split(dir, path, variants[i]);
        expect_same_unet(dir);
        remove_model(dir);
    }
}

/* An index is from a stranger: names that lead elsewhere, or nowhere, are refused. */
Test(weights, hostile_index)
{
    static const char *const bad[][2] = {
        {"{\"weight_map\": {\"a\": \"../../../etc/passwd\"}}", "not the name of a file beside it"},
        {"{\"weight_map\": {\"a\": \"/etc/passwd\"}}", "not the name of a file beside it"},
        {"{\"weight_map\": {\"a\": \"none.safetensors\"}}", "none.safetensors"},
        {"{\"weight_map\": {\"a\": 1}}", "weight_map is damaged"},
        {"{\"weight_map\": 3}", "no weight_map"},
        {"{", "no weight_map"},
        {"{\"weight_map\": {}}", "is missing"},
    };
    char dir[] = "/tmp/weft-model-XXXXXX", path[200], index[240];
    struct device *dev = test_device("cpu");
    struct model *m = NULL;
    struct err err;
    copy_model(dir, path, sizeof path);
    unlink(path);
    snprintf(index, sizeof index, "%s.index.json", path);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        cr_assert_eq(file_replace(index, bad[i][0], strlen(bad[i][0]), &err), 0);
        cr_expect(model_open(&m, dev, dir, &err) < 0, "%s", bad[i][0]);
        cr_expect(strstr(err.msg, bad[i][1]), "%s: %s", bad[i][0], err.msg);
    }
    remove_model(dir);
    device_close(dev);
}

/* ---- by hand --------------------------------------------------------------------------------- */

Test(model, by_hand, .timeout = 0)
{
    const char *dirs = getenv("WEFT_PARITY");
    char *copy = dirs ? strdup(dirs) : NULL, *save = NULL;
    if (!dirs)
        cr_skip_test("WEFT_PARITY names no folder made by tests/golden/models.py");
    for (char *d = strtok_r(copy, ":", &save); d; d = strtok_r(NULL, ":", &save)) {
        check_stages(d, "cpu");
        check_pictures(d, "cpu");
    }
    free(copy);
}
