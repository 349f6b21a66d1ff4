/* tensor_file.h: any file of named tensors, read-only: safetensors, or what torch.save wrote.
 *
 * What a file is, its bytes say, never its name. safetensors are mapped and their tensors are views;
 * torch files go through a reader of our own that executes nothing (pickle.h, torch_file.h), and their
 * tensors are copies, dense and in the order of their names. A torch file's nested dicts and lists
 * become flat names, "a.b" and "list.0"; a tensor alone is "tensor". Its numbers and texts are
 * metadata under names of the same kind.
 *
 *     struct tensor_file *f;
 *     if (tensor_file_open(&f, "learned_embeds.bin", &err) < 0) …
 *     const struct array *a = tensor_file_find(f, "<birb-style>");
 *     tensor_file_close(f);
 */
#ifndef WEFT_TENSOR_FILE_H
#define WEFT_TENSOR_FILE_H

#include "unet/err.h"
#include "unet/tensor.h"

struct tensor_file;

/* Maps, recognises and checks path. The message begins with the path. */
int tensor_file_open(struct tensor_file **out, const char *path, struct err *err);
/* The same with a copy of its bytes: what becomes of the file afterwards changes nothing. */
int tensor_file_read(struct tensor_file **out, const char *path, struct err *err);
/* The same on bytes in memory, which are kept until tensor_file_close and must not change. */
int tensor_file_parse(struct tensor_file **out, const void *bytes, size_t size, struct err *err);
void tensor_file_close(struct tensor_file *f);
/* Bytes of the file, and of what was copied out of it. */
size_t tensor_file_bytes(const struct tensor_file *f);

/* "safetensors", "torch-zip", "torch-legacy" (before torch 1.6). */
const char *tensor_file_container(const struct tensor_file *f);

/* safetensors: in order of their place in the file. torch: in order of their names. */
size_t tensor_file_count(const struct tensor_file *f);
const char *tensor_file_name(const struct tensor_file *f, size_t i);
const struct array *tensor_file_at(const struct tensor_file *f, size_t i);
/* NULL: no tensor of that name. */
const struct array *tensor_file_find(const struct tensor_file *f, const char *name);

/* The value of a key, or NULL. */
const char *tensor_file_metadata(const struct tensor_file *f, const char *key);
size_t tensor_file_metadata_count(const struct tensor_file *f);
void tensor_file_metadata_at(const struct tensor_file *f, size_t i, const char **key,
                             const char **value);

/* safetensors: the bytes AutoV3 is taken over. torch: all tensors, end to end in order of names. */
const void *tensor_file_data(const struct tensor_file *f, size_t *size);

/* The name that a tensor of f has in a view of it: NULL leaves it out. buf is room for one. */
typedef const char *tensor_file_rename(void *user, const struct tensor_file *f, size_t i, char *buf,
                                       size_t size);
/* f's tensors under other names, without copying; metadata and data are f's, which is kept until the
 * view is closed. A name twice is ERR_FORMAT. */
int tensor_file_view(struct tensor_file **out, const struct tensor_file *f,
                     tensor_file_rename *rename, void *user, struct err *err);

#endif
