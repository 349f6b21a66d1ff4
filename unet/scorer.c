#include "scorer.h"

#include "config.h"
#include "file.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define BATCH 16 /* pictures a pass */

/* ---- opening --------------------------------------------------------------------------------- */

/* A size as transformers writes it: 224, {"shortest_edge": 224} or {"height": 224, "width": 224}. */
static int read_size(struct config *c, const char *key, int dflt, int *w, int *h, struct err *err)
{
    struct config *sub = NULL;
    *w = dflt;
    *h = 0;
    if (!config_is_object(c, key)) {
        *w = config_int(c, key, dflt);
        return 0;
    }
    int rc = config_sub(&sub, c, key, err);
    if (rc < 0)
        return rc;
    *w = config_int(sub, "shortest_edge", 0);
    if (*w == 0) {
        *w = config_int(sub, "width", dflt);
        *h = config_int(sub, "height", dflt);
    }
    rc = config_done(sub, err);
    config_close(sub);
    return rc;
}

static void read_three(struct config *c, const char *key, const double *dflt, float *out)
{
    double v[3] = {dflt[0], dflt[1], dflt[2]};
    int n = config_nums(c, key, v, 3);
    if (n != 0 && n != 3)
        config_fail(c, "%s has %d values, not one a colour", key, n);
    for (int i = 0; i < 3; i++)
        out[i] = (float)v[i];
}

static int read_preprocessor(struct scorer *s, struct config *c, struct err *err)
{
    static const char *const harmless[] = {
        "feature_extractor_type", "image_processor_type", "processor_class",
        "do_convert_rgb",         "data_format",          NULL};
    static const double mean[3] = {0.48145466, 0.4578275, 0.40821073};
    static const double std[3] = {0.26862954, 0.26130258, 0.27577711};
    int side = s->clip->vision.side, filter = config_int(c, "resample", 3), w, h;

    config_ignore(c, harmless);
    config_expect(c, "do_rescale", "true");
    config_expect(c, "do_normalize", "true");
    s->resize = config_bool(c, "do_resize", true);
    s->crop = config_bool(c, "do_center_crop", true);
    s->scale = (float)config_num(c, "rescale_factor", 1.0 / 255);
    read_three(c, "image_mean", mean, s->mean);
    read_three(c, "image_std", std, s->std);
    int rc = read_size(c, "size", side, &s->resize_w, &s->resize_h, err);
    rc = rc < 0 ? rc : read_size(c, "crop_size", side, &w, &h, err);
    if (rc < 0)
        return rc;
    s->crop_w = w;
    s->crop_h = h ? h : w;
    if (filter < 1 || filter > 3)
        config_fail(c, "resample is %d; weft does 1 to 3 (Lanczos, bilinear, bicubic)", filter);
    s->filter = filter == 1 ? IMAGE_LANCZOS : filter == 2 ? IMAGE_BILINEAR : IMAGE_BICUBIC;
    if (s->resize_w < 1 || s->resize_w > 4096 || s->resize_h < 0 || s->resize_h > 4096 ||
        (s->crop && (s->crop_w != side || s->crop_h != side)) ||
        (!s->crop && (s->resize_w != side || s->resize_h != side)))
        config_fail(c, "its sizes do not lead to the model's %d x %d", side, side);
    for (int i = 0; i < 3; i++)
        if (!(s->std[i] > 0))
            config_fail(c, "image_std is not above 0");
    return config_done(c, err);
}

static int open_parts(struct scorer *s, const char *dir, struct err *err)
{
    struct source from;
    struct config *c = NULL;
    char *path = file_join(dir, "preprocessor_config.json");
    int rc = path ? source_open(&from, dir, "model", err) : err_nomem(err, strlen(dir));

    rc = rc < 0 ? rc : clip_open(&s->clip, s->dev, &from, &s->sites, err);
    rc = rc < 0 ? rc : tokenizer_open(&s->tokenizer, dir, err);
    rc = rc < 0 ? rc : config_open(&c, path, err);
    rc = rc < 0 ? rc : read_preprocessor(s, c, err);
    config_close(c);
    free(path);
    return rc;
}

int scorer_open(struct scorer **out, struct device *dev, const char *dir, struct err *err)
{
    struct scorer *s = calloc(1, sizeof *s);
    *out = NULL;
    if (!s)
        return err_nomem(err, sizeof *s);
    s->dev = dev;
    run_init(&s->run, dev);
    int rc = open_parts(s, dir, err);
    if (rc < 0) {
        scorer_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void scorer_close(struct scorer *s)
{
    if (!s)
        return;
    clip_close(s->clip);
    tokenizer_close(s->tokenizer);
    sites_release(&s->sites);
    run_release(&s->run);
    free(s);
}

/* ---- embedding ------------------------------------------------------------------------------- */

static int normalise(float *v, int dim, const char *what, struct err *err)
{
    double sum = 0;
    for (int i = 0; i < dim; i++)
        sum += (double)v[i] * v[i];
    if (!isfinite(sum) || sum == 0)
        return err_set(err, ERR_FORMAT, "the scorer makes nothing of %s: its weights are damaged",
                       what);
    for (int i = 0; i < dim; i++)
        v[i] = (float)(v[i] / sqrt(sum));
    return 0;
}

int scorer_text(struct scorer *s, const char *text, float *out, struct err *err)
{
    int length = s->clip->text.positions;
    struct tokens t = {0};
    int rc = tokens_push(&t, tokenizer_bos(s->tokenizer), err);

    rc = rc < 0 ? rc : tokenizer_encode(s->tokenizer, text, -1, &t, err);
    if (rc == 0 && t.n > (size_t)length - 1)
        t.n = (size_t)length - 1;
    rc = rc < 0 ? rc : tokens_push(&t, tokenizer_eos(s->tokenizer), err);
    while (rc == 0 && t.n < (size_t)length)
        rc = tokens_push(&t, tokenizer_pad(s->tokenizer), err);
    if (rc == 0) {
        run_measure(&s->run);
        clip_embed_text(s->clip, &s->run, t.id, 1, length);
        rc = run_commit(&s->run, err);
    }
    if (rc == 0) {
        struct tensor y = clip_embed_text(s->clip, &s->run, t.id, 1, length);
        rc = run_check(&s->run, err);
        rc = rc < 0 ? rc : s->dev->be->download(s->dev, out, &y, err);
        run_reset(&s->run);
    }
    tokens_release(&t);
    return rc < 0 ? rc : normalise(out, s->clip->dim, "the text", err);
}

/* The size im is brought to before the crop, as transformers' get_resize_output_image_size. */
static void target_size(const struct scorer *s, const struct image *im, int *w, int *h)
{
    *w = s->resize_w;
    *h = s->resize_h;
    if (*h)
        return;
    int shorter = im->w < im->h ? im->w : im->h, longer = im->w < im->h ? im->h : im->w;
    int other = (int)((int64_t)s->resize_w * longer / shorter);
    *w = im->w < im->h ? s->resize_w : other;
    *h = im->w < im->h ? other : s->resize_w;
}

int scorer_pixels(const struct scorer *s, const struct image *im, float *out, struct err *err)
{
    struct image sized = {0}, cut = {0};
    int w = im->w, h = im->h, side = s->clip->vision.side;

    if (s->resize)
        target_size(s, im, &w, &h);
    int rc = image_resize(&sized, im, w, h, s->filter, err);
    if (rc == 0 && (w < side || h < side))
        rc = err_set(err, ERR_ARG, "a picture of %d x %d is too small for this scorer", im->w,
                     im->h);
    rc = rc < 0 ? rc : image_crop(&cut, &sized, (w - side) / 2, (h - side) / 2, side, side, err);
    for (size_t i = 0; rc == 0 && i < (size_t)side * (size_t)side * 3; i++)
        out[i] = ((float)cut.rgb[i] * s->scale - s->mean[i % 3]) / s->std[i % 3];
    image_release(&sized);
    image_release(&cut);
    return rc;
}

static int image_batch(struct scorer *s, const struct image *im, int n, float *px, float *out,
                       struct err *err)
{
    int side = s->clip->vision.side, rc = 0;
    for (int i = 0; i < n && rc == 0; i++)
        rc = scorer_pixels(s, &im[i], px + (size_t)i * (size_t)side * (size_t)side * 3, err);
    for (int live = 0; live < 2 && rc == 0; live++) {
        if (!live)
            run_measure(&s->run);
        struct tensor x = run_tensor(&s->run, n, side, side, 3);
        op_upload(&s->run, &x, px);
        struct tensor y = clip_embed_image(s->clip, &s->run, &x);
        rc = live ? run_check(&s->run, err) : run_commit(&s->run, err);
        if (rc == 0 && live)
            rc = s->dev->be->download(s->dev, out, &y, err);
    }
    run_reset(&s->run);
    for (int i = 0; i < n && rc == 0; i++)
        rc = normalise(out + (size_t)i * (size_t)s->clip->dim, s->clip->dim, "the picture", err);
    return rc;
}

int scorer_images(struct scorer *s, const struct image *im, int n, float *out, struct err *err)
{
    size_t one = (size_t)s->clip->vision.side * (size_t)s->clip->vision.side * 3;
    int most = n < BATCH ? n : BATCH, rc = 0;
    float *px = malloc((size_t)(most > 0 ? most : 1) * one * sizeof *px);
    if (!px)
        return err_nomem(err, (size_t)most * one * sizeof *px);
    for (int i = 0; i < n && rc == 0; i += most)
        rc = image_batch(s, im + i, n - i < most ? n - i : most, px,
                         out + (size_t)i * (size_t)s->clip->dim, err);
    free(px);
    return rc;
}

int scorer_image(struct scorer *s, const struct image *im, float *out, struct err *err)
{
    return scorer_images(s, im, 1, out, err);
}

double scorer_cosine(const struct scorer *s, const float *a, const float *b)
{
    double sum = 0;
    for (int i = 0; i < s->clip->dim; i++)
        sum += (double)a[i] * b[i];
    return sum;
}
