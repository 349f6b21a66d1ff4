/* peft.h: what PEFT says of an adapter in JSON: beside the weights (adapter_config.json) or, written by
 * diffusers, in the file's metadata ("lora_adapter_metadata", names behind "unet." or "text_encoder.").
 *
 *     struct peft p;
 *     peft_open(&p, st, path, &err);
 *     peft_scale(&p, "unet.mid_block.attentions.0.proj_in", 4, &scale, &err);
 *     peft_close(&p);
 */
#ifndef WEFT_PEFT_H
#define WEFT_PEFT_H

#include "tensor_file.h"

#include <jansson.h>

struct peft {
    json_t *root; /* NULL: there is none */
    bool prefixed;
};

int peft_open(struct peft *p, const struct tensor_file *st, const char *path, struct err *err);
void peft_close(struct peft *p);
/* A value for a site's part of the model, borrowed; NULL where there is none. */
json_t *peft_get(const struct peft *p, const char *site, const char *key);
bool peft_true(const struct peft *p, const char *site, const char *key);
/* Refuses adapters that mean nothing without a base model changed in their own way. */
int peft_check(const struct peft *p, const char *path, struct err *err);
/* alpha / rank, or alpha / sqrt(rank) for rsLoRA, with alpha from a pattern that means the site or the
 * general one. `rank` is that of the factors; 0: what the config says of the site. 1 without a config. */
int peft_scale(const struct peft *p, const char *site, int rank, float *scale, struct err *err);
/* Whether a list or pattern under `key` means the site. */
bool peft_lists(const struct peft *p, const char *site, const char *key);

#endif
