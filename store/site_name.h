/* site_name.h: the many spellings of one weight's name, as diffusers' own.
 *
 *     lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q
 *     unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.processor.to_q
 *     base_model.model.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q
 *
 * are all unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q. Works on names alone: no
 * model is needed to say which weight a file means.
 */
#ifndef WEFT_SITE_NAME_H
#define WEFT_SITE_NAME_H

#include <stdbool.h>
#include <stddef.h>

/* Writes the canonical name of module[0..len) and returns true; or false when the name is not of a
 * kind known here, or does not fit. */
bool site_name(char *out, size_t size, const char *module, size_t len);

#endif
