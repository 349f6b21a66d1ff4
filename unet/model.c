#include "model.h"

#include "config.h"
#include "file.h"

#include <stdlib.h>
#include <string.h>

/* model_index.json: the pipeline must be one weft runs. Its other keys name Python classes. */
static int check_index(const char *dir, struct err *err)
{
    struct config *c = NULL;
    char *path = file_join(dir, "model_index.json");
    int rc = path ? 0 : err_nomem(err, strlen(dir));

    if (rc == 0 && file_kind(dir) != 2)
        rc = err_set(err, ERR_IO, "%s: no such folder; a model is a folder in diffusers' layout",
                     dir);
    else if (rc == 0 && file_kind(path) != 1)
        rc =
            err_set(err, ERR_FORMAT,
                    "%s: no model_index.json in it; a model is a folder in diffusers' layout", dir);
    rc = rc < 0 ? rc : config_open(&c, path, err);
    if (rc == 0) {
        const char *name = config_str(c, "_class_name", "");
        if (strcmp(name, "StableDiffusionPipeline") &&
            strcmp(name, "StableDiffusionImg2ImgPipeline"))
            rc = err_set(err, ERR_UNSUPPORTED,
                         "%s: this is a %.60s; weft runs Stable Diffusion 1.x and 2.x "
                         "(StableDiffusionPipeline)",
                         path, *name ? name : "model without _class_name");
    }
    config_close(c);
    free(path);
    return rc;
}

/* dir/part, opened as a source. */
static int part_source(struct source *s, const char *dir, const char *part, const char *stem,
                       struct err *err)
{
    char *path = file_join(dir, part);
    int rc = path ? source_open(s, path, stem, err) : err_nomem(err, strlen(dir));
    free(path);
    return rc;
}

static int open_tokenizer(struct model *m, struct err *err)
{
    char *path = file_join(m->dir, "tokenizer");
    int rc = path ? tokenizer_open(&m->tokenizer, path, err) : err_nomem(err, strlen(m->dir));
    free(path);
    return rc;
}

static int open_schedule(struct model *m, struct err *err)
{
    struct config *c = NULL;
    char *path = file_join(m->dir, "scheduler/scheduler_config.json");
    int rc = path ? config_open(&c, path, err) : err_nomem(err, strlen(m->dir));
    rc = rc < 0 ? rc : schedule_from_config(&m->schedule, c, err);
    config_close(c);
    free(path);
    return rc;
}

static int open_networks(struct model *m, struct err *err)
{
    struct source s;
    int rc = part_source(&s, m->dir, "text_encoder", "model", err);
    rc = rc < 0 ? rc : clip_text_open(&m->text, m->dev, &s, &m->sites, err);
    rc = rc < 0 ? rc : part_source(&s, m->dir, "unet", "diffusion_pytorch_model", err);
    rc = rc < 0 ? rc : unet_open(&m->unet, m->dev, &s, &m->sites, err);
    rc = rc < 0 ? rc : part_source(&s, m->dir, "vae", "diffusion_pytorch_model", err);
    rc = rc < 0 ? rc : vae_open(&m->vae, m->dev, &s, &m->sites, err);
    return rc < 0 ? rc : sites_finish(&m->sites, err);
}

/* The parts must be made for each other. */
static int check_parts(const struct model *m, struct err *err)
{
    if (m->text->tower.width != m->unet->text_width)
        return err_set(err, ERR_MISMATCH,
                       "%s: the text encoder is %d wide and the UNet attends to text %d wide",
                       m->dir, m->text->tower.width, m->unet->text_width);
    if (m->unet->out_channels != m->vae->latent)
        return err_set(err, ERR_MISMATCH, "%s: the UNet makes %d channels and the VAE takes %d",
                       m->dir, m->unet->out_channels, m->vae->latent);
    if (m->unet->in_channels != m->vae->latent)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: the UNet takes %d channels where the VAE has %d: an inpainting or "
                       "depth model, which weft does not run",
                       m->dir, m->unet->in_channels, m->vae->latent);
    if (tokenizer_size(m->tokenizer) > m->text->vocab)
        return err_set(err, ERR_MISMATCH, "%s: the tokenizer knows %d tokens, the text encoder %d",
                       m->dir, tokenizer_size(m->tokenizer), m->text->vocab);
    return 0;
}

int model_open(struct model **out, struct device *dev, const char *dir, struct err *err)
{
    struct model *m = calloc(1, sizeof *m);
    int rc = 0;

    *out = NULL;
    if (!m || !(m->dir = strdup(dir)))
        rc = err_nomem(err, sizeof *m);
    if (rc == 0) {
        m->dev = dev;
        schedule_init(&m->schedule);
        rc = check_index(dir, err);
    }
    rc = rc < 0 ? rc : open_tokenizer(m, err);
    rc = rc < 0 ? rc : open_schedule(m, err);
    rc = rc < 0 ? rc : open_networks(m, err);
    rc = rc < 0 ? rc : check_parts(m, err);
    if (rc < 0) {
        model_close(m);
        return rc;
    }
    *out = m;
    return 0;
}

void model_close(struct model *m)
{
    if (!m)
        return;
    tokenizer_close(m->tokenizer);
    clip_text_close(m->text);
    unet_close(m->unet);
    vae_close(m->vae);
    schedule_release(&m->schedule);
    sites_release(&m->sites);
    free(m->dir);
    free(m);
}

enum base model_base(const struct model *m)
{
    return m->unet->text_width == 768    ? BASE_SD1
           : m->unet->text_width == 1024 ? BASE_SD2
                                         : BASE_UNKNOWN;
}

const char *base_name(enum base b)
{
    static const char *const names[] = {"unknown", "sd1", "sd2"};
    return names[b];
}
