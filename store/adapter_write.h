/* adapter_write.h: LoRA files in the spelling another program wants.
 *
 *     adapter_write("out.safetensors", "kohya", &matrices, meta, n_meta, &err);
 *     adapter_convert("out.safetensors", "diffusers", &file->list, meta, n_meta, &err);
 *
 * Styles: "kohya" (lora_unet_…, with alpha; what A1111, ComfyUI, Forge and kohya's scripts read),
 * "diffusers" (unet.….lora_A.weight; one file), "peft" (a folder with adapter_config.json). Values are
 * never rounded: converted arrays keep their type, computed ones are float32.
 */
#ifndef WEFT_ADAPTER_WRITE_H
#define WEFT_ADAPTER_WRITE_H

#include "unet/matrices.h"

/* Products only (matrices_truncate or matrices_sum make them). metadata: n_meta pairs. */
int adapter_write(const char *path, const char *style, const struct matrices *a,
                  const char *const (*metadata)[2], size_t n_meta, struct err *err);
/* The same deltas under other names: LoRA and LoCon, for kohya with lora_mid and DoRA too.
 * ERR_UNSUPPORTED names a delta that the style cannot hold. */
int adapter_convert(const char *path, const char *style, const struct delta_list *l,
                    const char *const (*metadata)[2], size_t n_meta, struct err *err);

#endif
