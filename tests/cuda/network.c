/* Whole networks: the tiny models stage by stage beside what diffusers and transformers made of them (tests/golden/models.py,
 * clip.py), the text tower with adapters, the autoencoder at sizes of its own. */
#include "kit.h"

#include "unet/clip.h"
#include "unet/safetensors.h"
#include "unet/scorer.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A model on the device, and its golden. */
struct net {
    struct device *dev;
    enum dtype type;
    struct model *m;
    struct safetensors *st;
    struct run r;
    const char *name;
    uint64_t seed;
    int h, w; /* of stages that have no golden */
    const struct branch *branch;
};

typedef struct tensor stage_fn(struct net *f, const void *arg);

static void net_open(struct net *f, struct device *dev, enum dtype type, const char *name)
{
    char path[200];
    struct err err;
    *f = (struct net){.dev = dev, .type = type, .name = name, .seed = seed_of(name, 0)};
    must(model_open(&f->m, dev, data_path(name), &err), &err, "%s", name);
    snprintf(path, sizeof path, "%s/golden.safetensors", name);
    must(safetensors_open(&f->st, data_path(path), &err), &err, "%s", path);
    run_init(&f->r, dev);
}

static void net_close(struct net *f)
{
    run_release(&f->r);
    safetensors_close(f->st);
    model_close(f->m);
}

static float *golden(const struct safetensors *st, const char *name, struct array *shape)
{
    const struct array *a = safetensors_find(st, name);
    struct err err;
    must(a ? 0 : err_set(&err, ERR_FORMAT, "it is missing"), &err, "golden %s", name);
    float *v = room_for(array_count(a), sizeof *v);
    array_to_f32(a, v);
    if (shape)
        *shape = *a;
    return v;
}

/* A golden of [n, h, w, c] or [n, places, c] as a tensor of the run. */
static struct tensor upload(struct net *f, const char *name)
{
    struct array a;
    float *v = golden(f->st, name, &a);
    bool flat = a.ndim == 3;
    struct tensor t = run_tensor(&f->r, (int)a.dim[0], (int)a.dim[1], flat ? 1 : (int)a.dim[2],
                                 (int)a.dim[flat ? 2 : 3]);
    op_upload(&f->r, &t, v);
    free(v);
    return t;
}

/* What a stage gives, on the host: new. */
static float *result_of(struct net *f, stage_fn *fn, const void *arg, size_t *n)
{
    struct err err;
    run_prepare(&f->r);
    f->r.branch = f->branch;
    f->r.n_branch = f->branch != NULL;
    fn(f, arg);
    must(run_commit(&f->r, &err), &err, "%s", f->name);
    struct tensor y = fn(f, arg);
    must(run_check(&f->r, &err), &err, "%s", f->name);
    *n = tensor_count(&y);
    float *v = room_for(*n, sizeof *v);
    must(f->dev->be->download(f->dev, v, &y, &err), &err, "%s", f->name);
    run_bare(&f->r);
    run_reset(&f->r);
    return v;
}

static void compare(struct net *f, stage_fn *fn, const void *arg, const char *name)
{
    size_t n;
    struct array a;
    float *want = golden(f->st, name, &a), *got = result_of(f, fn, arg, &n);
    expect_that(n == array_count(&a), f->seed, "%s: %s has another size", f->name, name);
    double e = error_of(got, want, n, 0);
    figure("%s %s: %.2g", f->name, name, e);
    expect(e, bound_of(BOUND_NET, f->type), f->seed, "%s: %s", f->name, name);
    free(want);
    free(got);
}

/* ---- stages ---------------------------------------------------------------------------------- */

static struct tensor text_stage(struct net *f, const void *skip)
{
    const struct array *a = safetensors_find(f->st, "ids");
    int32_t ids[1024];
    memcpy(ids, a->data, array_count(a) * sizeof *ids);
    return clip_text_forward(f->m->text, &f->r, NULL, ids, (int)a->dim[0], (int)a->dim[1],
                             *(const int *)skip, 0);
}

static struct tensor unet_stage(struct net *f, const void *arg)
{
    char name[60];
    double t[16];
    struct array a;
    snprintf(name, sizeof name, "unet_%s_t", (const char *)arg);
    float *v = golden(f->st, name, &a);
    for (size_t i = 0; i < a.dim[0]; i++)
        t[i] = (double)v[i];
    free(v);
    snprintf(name, sizeof name, "unet_%s_x", (const char *)arg);
    struct tensor x = upload(f, name), text = upload(f, "text");
    return unet_forward(f->m->unet, &f->r, &x, t, &(struct unet_text){&text, 1}, NULL);
}

static struct tensor decode_stage(struct net *f, const void *arg)
{
    (void)arg;
    struct tensor z = upload(f, "vae_z");
    return vae_decode(f->m->vae, &f->r, &z);
}

static struct tensor encode_stage(struct net *f, const void *arg)
{
    (void)arg;
    struct tensor x = upload(f, "vae_x");
    return vae_encode(f->m->vae, &f->r, &x);
}

static void check_tiles(struct net *f)
{
    struct array a, ya;
    struct err err;
    float *z = golden(f->st, "tile_z", &a), *want = golden(f->st, "tile_y", &ya);
    float *rgb = room_for(array_count(&ya), sizeof *rgb);
    run_measure(&f->r);
    struct tensor t = run_tensor(&f->r, 1, 8, 8, f->m->vae->latent);
    vae_decode(f->m->vae, &f->r, &t);
    must(run_commit(&f->r, &err), &err, "tiles");
    must(vae_decode_tiled(f->m->vae, &f->r, rgb, z, (int)a.dim[1], (int)a.dim[2], 8, &err), &err,
         "tiles");
    double e = error_of(rgb, want, array_count(&ya), 0);
    figure("%s tile_y: %.2g", f->name, e);
    expect(e, bound_of(BOUND_NET, f->type), f->seed, "%s: tiles", f->name);
    free(z);
    free(want);
    free(rgb);
    run_reset(&f->r);
}

static void check_golden(struct device *dev, enum dtype type)
{
    static const char *const names[] = {"tiny-sd1", "tiny-sd2"};
    const int none = 0, one = 1;
    for (int i = 0; i < 2; i++) {
        struct net f;
        net_open(&f, dev, type, names[i]);
        compare(&f, text_stage, &none, "text");
        compare(&f, unet_stage, "square", "unet_square_y");
        if (!options.quick) {
            compare(&f, text_stage, &one, "text_skip1");
            compare(&f, unet_stage, "odd", "unet_odd_y");
            compare(&f, decode_stage, NULL, "vae_y");
            compare(&f, encode_stage, NULL, "vae_moments");
            check_tiles(&f);
        }
        net_close(&f);
    }
}

/* ---- sizes without a golden ------------------------------------------------------------------ */

static struct tensor small_decode(struct net *f, const void *arg)
{
    float v[400];
    (void)arg;
    struct tensor z = run_tensor(&f->r, 1, f->h, f->w, f->m->vae->latent);
    fill(v, tensor_count(&z), f->seed);
    op_upload(&f->r, &z, v);
    return vae_decode(f->m->vae, &f->r, &z);
}

static struct tensor small_encode(struct net *f, const void *arg)
{
    (void)arg;
    struct tensor x = run_tensor(&f->r, 1, f->h * f->m->vae->factor, f->w * f->m->vae->factor, 3);
    float *v = room_for(tensor_count(&x), sizeof *v);
    fill(v, tensor_count(&x), f->seed);
    op_upload(&f->r, &x, v);
    free(v);
    return vae_encode(f->m->vae, &f->r, &x);
}

static struct tensor small_text(struct net *f, const void *arg)
{
    int32_t ids[3 * 16];
    struct random r = {f->seed};
    const int len = options.quick ? 5 : 16;
    (void)arg;
    for (int i = 0; i < 3 * len; i++)
        ids[i] = random_int(&r, 0, f->m->text->vocab - 1);
    return clip_text_forward(f->m->text, &f->r, NULL, ids, 3, len, 0, 0);
}

/* On the device and in double. */
static void compare_exact(struct net *f, struct net *exact, stage_fn *fn, const char *what)
{
    size_t n;
    float *want = result_of(exact, fn, NULL, &n), *got = result_of(f, fn, NULL, &n);
    double e = error_of(got, want, n, 0);
    figure("%s %s: %.2g", f->name, what, e);
    expect(e, bound_of(BOUND_NET, f->type), f->seed, "%s: %s, %d x %d", f->name, what, f->h, f->w);
    free(want);
    free(got);
}

static void check_sizes(struct device *dev, enum dtype type)
{
    static const int sizes[][2] = {{2, 1}, {5, 3}, {1, 8}};
    struct net f, exact;
    net_open(&f, dev, type, "tiny-sd2");
    net_open(&exact, device_exact(), type, "tiny-sd2");
    for (int i = 0; i < (options.quick ? 1 : 3); i++) {
        f.h = exact.h = sizes[i][0];
        f.w = exact.w = sizes[i][1];
        compare_exact(&f, &exact, small_decode, "decoding");
        compare_exact(&f, &exact, small_encode, "encoding");
    }
    net_close(&f);
    net_close(&exact);
}

/* The text tower with an adapter, on some of the rows. */
static void check_text(struct device *dev, enum dtype type)
{
    static const unsigned kinds[] = {KIT_LORA | KIT_TEXT, KIT_MIX | KIT_TEXT | KIT_NORMS};
    struct net f[2];
    net_open(&f[0], dev, type, "tiny-sd1");
    net_open(&f[1], device_exact(), type, "tiny-sd1");
    for (int i = 0; i < 2; i++) {
        struct kit *k[2];
        struct branch b[2];
        for (int j = 0; j < 2; j++) {
            k[j] = kit_new(f[j].m, "text", kinds[i], 4, .3, f[j].seed);
            b[j] = (struct branch){.adapter = k[j]->a, .row0 = 1, .row1 = 3, .strength = .8f};
            f[j].branch = &b[j];
        }
        compare_exact(&f[0], &f[1], small_text, i ? "text with any kind" : "text with products");
        kit_free(k[0]);
        kit_free(k[1]);
    }
    net_close(&f[0]);
    net_close(&f[1]);
}

/* ---- CLIP ------------------------------------------------------------------------------------ */

static void check_clip(struct device *dev, enum dtype type)
{
    struct scorer *s;
    struct safetensors *st;
    struct array a;
    struct err err;
    uint64_t seed = seed_of("clip", 0);
    int32_t ids[1024];
    must(scorer_open(&s, dev, data_path("tiny-clip"), &err), &err, "tiny-clip");
    must(safetensors_open(&st, data_path("tiny-clip/golden.safetensors"), &err), &err, "tiny-clip");
    const struct array *id = safetensors_find(st, "ids"), *px = safetensors_find(st, "image");
    memcpy(ids, id->data, array_count(id) * sizeof *ids);
    float *want = golden(st, "text", &a), *got = room_for(array_count(&a), sizeof *got);
    run_measure(&s->run);
    clip_embed_text(s->clip, &s->run, ids, (int)id->dim[0], (int)id->dim[1]);
    must(run_commit(&s->run, &err), &err, "text");
    struct tensor y = clip_embed_text(s->clip, &s->run, ids, (int)id->dim[0], (int)id->dim[1]);
    must(run_check(&s->run, &err), &err, "text");
    must(dev->be->download(dev, got, &y, &err), &err, "text");
    double e = error_of(got, want, array_count(&a), 0);
    figure("text: %.2g", e);
    expect(e, bound_of(BOUND_NET, type), seed, "the text tower");
    run_reset(&s->run);
    free(want);
    free(got);
    want = golden(st, "vision", &a);
    got = room_for(array_count(&a), sizeof *got);
    const struct image im = {(int)px->dim[1], (int)px->dim[0], (uint8_t *)px->data};
    must(scorer_image(s, &im, got, &err), &err, "a picture");
    double length = 0;
    for (int i = 0; i < s->clip->dim; i++)
        length += (double)want[i] * (double)want[i];
    for (int i = 0; i < s->clip->dim; i++)
        want[i] = (float)(want[i] / sqrt(length));
    e = error_of(got, want, (size_t)s->clip->dim, 0);
    figure("vision: %.2g", e);
    expect(e, bound_of(BOUND_NET, type), seed, "the vision tower");
    free(want);
    free(got);
    safetensors_close(st);
    scorer_close(s);
}

const struct group network_groups[] = {
    {"network/golden", check_golden, 0},
    {"network/sizes", check_sizes, 0},
    {"network/text", check_text, 0},
    {"network/clip", check_clip, 0},
    {NULL, NULL, 0},
};
