/* model.h: a Stable Diffusion model as diffusers lays it out in a folder.
 *
 *     model/
 *       model_index.json
 *       tokenizer/     vocab.json merges.txt
 *       text_encoder/  config.json model.safetensors
 *       unet/          config.json diffusion_pytorch_model.safetensors
 *       vae/           the same
 *       scheduler/     scheduler_config.json
 *
 * Weights are mapped read-only and packed for the device as they are first used. Every number comes
 * from the config files.
 *
 *     struct model *m;
 *     model_open(&m, dev, "assets/model", &err);
 *     adapter_bind(&a, dev, &m->sites, …);
 *     model_close(m);
 */
#ifndef WEFT_MODEL_H
#define WEFT_MODEL_H

#include "clip.h"
#include "hash.h"
#include "sampler.h"
#include "tokenizer.h"
#include "unet.h"
#include "vae.h"

struct model {
    char *dir;
    struct device *dev;
    struct tokenizer *tokenizer;
    struct clip_text *text;
    struct unet *unet;
    struct vae *vae;
    struct schedule schedule;
    struct sites sites;
    /* SHA-256 of the tokenizer, every config and (weights_hash) the weights: models of the same
     * fingerprint make the same pictures. */
    char fingerprint[HASH_HEX];
};

int model_open(struct model **out, struct device *dev, const char *dir, struct err *err);
void model_close(struct model *m);

/* What the model's text encoder makes of a plain text, without adapters: *state [c->n_chunk * c->length, width] on the
 * host, new; c is released by prompt_chunks_release also after an error. */
struct prompt_chunks;
int model_text_states(const struct model *m, const char *text, struct prompt_chunks *c,
                      float **state, struct err *err);

#endif
