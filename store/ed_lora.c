/* ED-LoRA files of Mix-of-Show (Gu et al. 2023): under "params" or at the top a LoRA for the UNet, one for
 * the text encoder, and new words. alpha is not kept: the change is up times down. The new words have a
 * vector for each cross-attention layer, which embedding.h reads. */
#include "format.h"

#include <string.h>

#define WORDS "new_concept_embedding."

/* The key without "params.", and whether there was one. */
static const char *inner(const char *key, bool *wrapped)
{
    *wrapped = !strncmp(key, "params.", 7);
    return key + (*wrapped ? 7 : 0);
}

static int claims(const struct tensor_file *f)
{
    int ours = 0, lora = 0;
    bool wrapped;
    for (size_t i = 0; i < tensor_file_count(f); i++) {
        const char *key = inner(tensor_file_name(f, i), &wrapped);
        ours += wrapped || !strncmp(key, WORDS, sizeof WORDS - 1);
        lora += !strncmp(key, "unet.", 5) || !strncmp(key, "text_encoder.", 13);
    }
    return ours ? ours + lora : 0;
}

static const char *rename_key(void *user, const struct tensor_file *f, size_t i, char *buf,
                              size_t size)
{
    bool wrapped;
    const char *key = inner(tensor_file_name(f, i), &wrapped);
    (void)user, (void)buf, (void)size;
    return strncmp(key, WORDS, sizeof WORDS - 1) ? key : NULL;
}

static int view(struct tensor_file **out, const struct tensor_file *f, const char *path,
                struct err *err)
{
    bool any = false;
    int rc = tensor_file_view(out, f, rename_key, NULL, err);
    for (size_t i = 0; rc == 0 && i < tensor_file_count(*out); i++)
        any |= strstr(tensor_file_name(*out, i), "lora") != NULL;
    if (rc == 0 && !any)
        rc = err_set(err, ERR_UNSUPPORTED,
                     "%s: a merged ED-LoRA, which holds whole weights instead of changes", path);
    return rc;
}

extern const struct adapter_layout adapter_layout_mix_of_show;

const struct adapter_layout adapter_layout_mix_of_show = {
    .name = "mix-of-show",
    .claims = claims,
    .view = view,
};
