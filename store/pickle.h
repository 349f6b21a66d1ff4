/* pickle.h: Python's pickles as plain data, for torch's files: nothing is ever executed.
 *
 * A pickle is a program for a small stack machine that may import and call anything. This one knows
 * only the opcodes that data and tensors need, and of "globals" only the names in a table at the head
 * of pickle.c: torch's storages, the functions that put a tensor together, OrderedDict, Size. None is
 * called: a tensor becomes a note of storage, offset, shape and strides. Any other global is an error
 * that names it, any other opcode too. Memory and depth are bounded.
 *
 *     struct pickle p;
 *     pickle_open(&p);
 *     pickle_read(&p, bytes, size, &root, &used, &err);    // may be called again for the next one
 *     …root->kind == PICKLE_DICT, root->item[0] the first key…
 *     pickle_release(&p);
 */
#ifndef WEFT_PICKLE_H
#define WEFT_PICKLE_H

#include "unet/err.h"
#include "unet/tensor.h"

#include <stdint.h>

enum pickle_kind {
    PICKLE_MARK, /* only while reading */
    PICKLE_NONE,
    PICKLE_BOOL,
    PICKLE_INT,
    PICKLE_LONG, /* beyond 64 bits: text is its little-endian bytes */
    PICKLE_FLOAT,
    PICKLE_TEXT,
    PICKLE_TUPLE,
    PICKLE_LIST,
    PICKLE_DICT,    /* item: key, value, key, value … */
    PICKLE_GLOBAL,  /* i: its place in the table */
    PICKLE_STORAGE, /* dtype, text: its key, i: values it has */
    PICKLE_TENSOR,  /* item: storage, tuple of sizes, tuple of strides; i: offset in values */
};

struct pickle_value {
    enum pickle_kind kind;
    enum dtype dtype;
    int64_t i;
    double f;
    const char *text; /* not terminated, within the bytes read */
    size_t n;         /* of text or item */
    size_t cap;
    struct pickle_value **item; /* owned by the pickle, as every value is */
};

struct pickle_block;
struct pickle {
    struct pickle_block *block;
    size_t n_value, n_item; /* so far, of all that were read */
};

void pickle_open(struct pickle *p);
/* Reads one pickle from the beginning of bytes, which are kept until pickle_release. *used gets its
 * length. */
int pickle_read(struct pickle *p, const void *bytes, size_t size, const struct pickle_value **root,
                size_t *used, struct err *err);
void pickle_release(struct pickle *p);

#endif
