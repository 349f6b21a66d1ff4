/* adapter.h: adapter files, from whatever trainer, as deltas.
 *
 * An importer only translates: names of weights become diffusers' site names, tensors become terms of
 * the delta algebra (unet/delta.h). The runtime never knows a file format. A family of formats is one
 * const struct adapter_format, listed in one array in adapter.c.
 *
 *     struct adapter_file *f;
 *     adapter_file_open(&f, "ghibli.safetensors", &err);
 *     adapter_bind(&a, dev, &model->sites, &f->list, f->name, &report, &err);
 *     …                                   // f is kept as long as a
 *     adapter_file_close(f);
 */
#ifndef WEFT_ADAPTER_H
#define WEFT_ADAPTER_H

#include "unet/delta.h"
#include "unet/safetensors.h"

struct adapter_format {
    const char *name; /* "lora" */
    const char *about;
    /* How many of the file's arrays this format would take. The most wins. */
    int (*claims)(const struct safetensors *st);
    /* Fills in list (and style, which is how the keys are spelt). Every array must be used. `path` is
     * for configs beside the file and for messages. */
    int (*import)(const struct safetensors *st, const char *path, struct delta_list *list,
                  const char **style, struct err *err);
};

struct adapter_file {
    char *path, *name; /* name: the file's stem */
    struct safetensors *st;
    const struct adapter_format *format;
    const char *style; /* "kohya", "peft", "diffusers" */
    struct delta_list list;
    char data_sha256[65]; /* of the tensor data, in hex: AutoV3 is its first 12 digits */
};

/* Opens, checks and imports. A folder is taken as a PEFT folder (adapter_model.safetensors). */
int adapter_file_open(struct adapter_file **out, const char *path, struct err *err);
void adapter_file_close(struct adapter_file *f);

/* Finds the format and imports; the arrays of list stay the file's. path is for messages and for
 * configs beside the file. */
int adapter_import(const struct safetensors *st, const char *path, struct delta_list *list,
                   const struct adapter_format **format, const char **style, struct err *err);

/* SHA-256 in lower-case hex. */
int hash_sha256(char out[65], const void *data, size_t size, struct err *err);

#endif
