/* adapter.h: adapter files, from whatever trainer, as deltas.
 *
 * An importer only translates: names of weights become diffusers' site names, tensors become terms of
 * the delta algebra (unet/delta.h). The runtime never knows a file format. A family of formats is one
 * const struct adapter_format (format.h), listed in one array in adapter.c; a file may hold several.
 *
 *     struct adapter_file *f;
 *     adapter_file_open(&f, "ghibli.safetensors", &err);
 *     adapter_bind(&a, dev, &model->sites, &f->list, f->name, &report, &err);
 *     …                                   // f is kept as long as a
 *     adapter_file_close(f);
 */
#ifndef WEFT_ADAPTER_H
#define WEFT_ADAPTER_H

#include "tensor_file.h"

#include "unet/bind.h"
#include "unet/hash.h"

struct adapter_format; /* format.h: a family of formats */

struct adapter_file {
    char *path, *name; /* name: the file's stem */
    struct tensor_file *st;
    const struct adapter_format *format; /* that of most of its weights */
    const char *style;                   /* "kohya", "peft", "diffusers", "lycoris" */
    struct delta_list list;
    char data_sha256[HASH_HEX]; /* of the tensor data: AutoV3 is its first 12 digits */
};

/* Opens, checks and imports. A folder is taken as a PEFT folder (adapter_model.safetensors,
 * else adapter_model.bin). */
int adapter_file_open(struct adapter_file **out, const char *path, struct err *err);
/* The same with a copy of its bytes, for one that is kept for long: what becomes of the file changes nothing. */
int adapter_file_read(struct adapter_file **out, const char *path, struct err *err);
void adapter_file_close(struct adapter_file *f);

/* Finds the format and imports; the arrays of list stay the file's. Textual inversions in it are passed
 * over (embedding.h reads them). path is for messages and for
 * configs beside the file. */
int adapter_import(const struct tensor_file *st, const char *path, struct delta_list *list,
                   const struct adapter_format **format, const char **style, struct err *err);

/* The kind of adapter that a key belongs to, of the kinds weft knows by name but cannot use; or NULL. */
const char *adapter_kind_of_key(const char *key);
/* The refusal that names it. */
int adapter_refuse_kind(const char *kind, const char *path, const char *key, struct err *err);

#endif
