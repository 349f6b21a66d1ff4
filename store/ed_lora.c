/* ED-LoRA files of Mix-of-Show (Gu et al. 2023): under "params" or at the top a LoRA for the UNet, one for
 * the text encoder, and new words. alpha is not kept: the change is up times down. The new words have a
 * vector for each cross-attention layer, which embedding.h reads. */
#include "adapter.h"
#include "embedding.h"

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

static int import(const struct tensor_file *f, const char *path, struct delta_list *list,
                  const char **style, struct err *err)
{
    struct tensor_file *view = NULL;
    bool any = false;
    int rc = tensor_file_view(&view, f, rename_key, NULL, err);
    for (size_t i = 0; rc == 0 && i < tensor_file_count(view); i++)
        any |= strstr(tensor_file_name(view, i), "lora") != NULL;
    if (rc == 0 && !any)
        rc = err_set(err, ERR_UNSUPPORTED,
                     "%s: a merged ED-LoRA, which holds whole weights instead of changes", path);
    rc = rc < 0 ? rc : adapter_format_lora.import(view, path, list, style, err);
    *style = "mix-of-show";
    tensor_file_close(view);
    return rc;
}

const struct adapter_format adapter_format_ed_lora = {
    .name = "ed-lora",
    .about = "ED-LoRA of Mix-of-Show",
    .claims = claims,
    .import = import,
};
