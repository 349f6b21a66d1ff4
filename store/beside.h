/* beside.h: what other tools left beside an adapter file, and the words that its trainer wrote into it.
 *
 *     STEM.json            AUTOMATIC1111: activation text, preferred weight, notes
 *     STEM.civitai.info    Civitai Helper: trained words, the model's name and tags
 *     STEM.metadata.json   Lora Manager: the same, tags, notes
 *     STEM.png …           a preview
 *     adapter_config.json  PEFT, beside adapter_model.safetensors
 *
 * All of it is taken as hints for a new row; none is trusted for what the file is. A sidecar that is
 * damaged is left out and named in `note`.
 */
#ifndef WEFT_BESIDE_H
#define WEFT_BESIDE_H

#include "tensor_file.h"
#include "unet/err.h"
#include "unet/hash.h"

#include <stdbool.h>

struct beside_trigger {
    char *words; /* owned; a group */
    bool candidate;
    const char *source; /* "file", "beside" */
};

struct beside {
    struct beside_trigger *trigger;
    int n_trigger;
    char **tag; /* owned */
    int n_tag;
    char *alias, *notes, *category, *preview, *note; /* owned or NULL */
    double strength;                                 /* NaN: none */
    char *json;                   /* owned; the sidecars in one object, or NULL */
    char *config;                 /* path of the PEFT config, or NULL */
    char config_sha256[HASH_HEX]; /* "" without one */
};

/* file: the words of its textual inversions, but for one that is called as the file is, become triggers; may
 * be NULL.
 * metadata: its own, a JSON object or NULL. */
int beside_read(struct beside *b, const char *path, const struct tensor_file *file,
                const char *metadata, struct err *err);
void beside_release(struct beside *b);

/* The path of the PEFT config that means this file, a new string; NULL: none. */
char *beside_config(const char *path);

#endif
