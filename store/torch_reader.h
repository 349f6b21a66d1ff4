/* torch_reader.h: the parts of torch_file.c that torch_tensors.c needs too. Nobody else includes it. */
#ifndef WEFT_TORCH_READER_H
#define WEFT_TORCH_READER_H

#include "pickle.h"
#include "torch_file.h"
#include "zip.h"

#define TORCH_NAME_MAX 1024

/* A storage that some tensor uses. */
struct storage {
    const char *key; /* not terminated */
    size_t n_key;
    unsigned width;       /* bytes a value */
    const uint8_t *bytes; /* NULL until it is found in the file */
    uint64_t size;
    void *owned; /* the bytes, where they had to be expanded */
};

/* What a tensor is made of. */
struct tensor_at {
    char *name;
    const struct pickle_value *v;
};

struct reader {
    struct torch_file *f;
    struct pickle pickle;
    struct zip zip;
    char prefix[TORCH_NAME_MAX + 1]; /* of the zip's names, "archive/" */
    struct storage *storage;         /* [n_storage], by key */
    size_t n_storage;
    struct tensor_at *tensor; /* [f->n], by name */
    size_t file_size, steps, text;
    struct err *err;
};

/* First: the tensors, numbers and texts of the tree below root, and the storages they name. */
int reader_list(struct reader *r, const struct pickle_value *root);
/* NULL: no tensor names that storage. */
struct storage *reader_storage(struct reader *r, const char *key, size_t n);
/* Last, when all storages have their bytes: the tensors, checked and dense. */
int reader_fill(struct reader *r);

#endif
