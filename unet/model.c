#include "model.h"

#include "config.h"
#include "file.h"
#include "prompt.h"

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

/* dir/part, opened as a source, and its weights added to h. */
static int part_source(struct source *s, const char *dir, const char *part, const char *stem,
                       struct hash *h, struct err *err)
{
    char *path = file_join(dir, part);
    int rc = path ? source_open(s, path, stem, err) : err_nomem(err, strlen(dir));
    if (rc == 0)
        weights_hash(s->weights, h);
    free(path);
    return rc;
}

/* The files beside the weights. One that is not there counts as empty. */
static int hash_configs(const struct model *m, struct hash *h, struct err *err)
{
    static const char *const names[] = {"tokenizer/vocab.json",
                                        "tokenizer/merges.txt",
                                        "tokenizer/added_tokens.json",
                                        "tokenizer/special_tokens_map.json",
                                        "tokenizer/tokenizer_config.json",
                                        "text_encoder/config.json",
                                        "unet/config.json",
                                        "vae/config.json",
                                        "scheduler/scheduler_config.json"};
    int rc = 0;
    for (size_t i = 0; i < sizeof names / sizeof *names && rc == 0; i++) {
        char *path = file_join(m->dir, names[i]), *text = NULL;
        size_t size = 0;
        if (!path)
            rc = err_nomem(err, strlen(m->dir));
        else if (file_exists(path))
            rc = file_read(&text, &size, path, 64 << 20, err);
        if (rc == 0) {
            hash_add(h, &size, sizeof size);
            hash_add(h, text, size);
        }
        free(text);
        free(path);
    }
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
    struct hash *h = NULL;
    int rc = hash_new(&h, err);
    rc = rc < 0 ? rc : hash_configs(m, h, err);
    rc = rc < 0 ? rc : part_source(&s, m->dir, "text_encoder", "model", h, err);
    rc = rc < 0 ? rc : clip_text_open(&m->text, m->dev, &s, &m->sites, err);
    rc = rc < 0 ? rc : part_source(&s, m->dir, "unet", "diffusion_pytorch_model", h, err);
    rc = rc < 0 ? rc : unet_open(&m->unet, m->dev, &s, &m->sites, err);
    rc = rc < 0 ? rc : part_source(&s, m->dir, "vae", "diffusion_pytorch_model", h, err);
    rc = rc < 0 ? rc : vae_open(&m->vae, m->dev, &s, &m->sites, err);
    hash_end(h, m->fingerprint);
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

int model_text_states(const struct model *m, const char *text, struct prompt_chunks *c,
                      float **state, struct err *err)
{
    struct run r;
    struct tensor y = {0};
    *state = NULL;
    memset(c, 0, sizeof *c);
    int rc = prompt_chunks_make(c, m->tokenizer, NULL, text, m->text->positions, err);
    run_init(&r, m->dev);
    for (int pass = 0; pass < 2 && rc == 0; pass++) {
        if (pass == 0)
            run_measure(&r);
        y = clip_text_forward(m->text, &r, NULL, c->id, c->n_chunk, m->text->positions, 0, 0);
        rc = pass == 0 ? run_commit(&r, err) : run_check(&r, err);
    }
    if (rc == 0) {
        *state = malloc(tensor_count(&y) * sizeof **state);
        rc = *state ? m->dev->be->download(m->dev, *state, &y, err)
                    : err_nomem(err, tensor_count(&y) * sizeof **state);
    }
    run_release(&r);
    return rc;
}
