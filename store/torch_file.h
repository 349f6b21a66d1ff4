/* torch_file.h: what torch.save wrote, without torch: the zip form (since 1.6) and the one before it.
 *
 * Only tensor_file.c calls this. The object tree is built by pickle.h, which executes nothing; here its
 * tensors are found among the file's storages, checked and copied dense: every offset, size and stride
 * must stay inside its storage. The tar form of 2016 is refused by name.
 */
#ifndef WEFT_TORCH_FILE_H
#define WEFT_TORCH_FILE_H

#include "unet/err.h"
#include "unet/tensor.h"

#include <stdbool.h>

struct torch_item {
    char *name; /* owned */
    struct array a;
};
struct torch_meta {
    char *key, *value; /* owned */
};
struct torch_file {
    const char *container;
    struct torch_item *item; /* [n], by name */
    size_t n;
    struct torch_meta *meta;
    size_t n_meta;
    void *data; /* where the arrays lie, end to end */
    size_t data_size;
};

/* Whether bytes begin as a torch file, or any pickle, does. */
bool torch_file_is(const void *bytes, size_t size);
/* Nothing of bytes is kept. Release it also after an error. */
int torch_file_read(struct torch_file *f, const void *bytes, size_t size, struct err *err);
void torch_file_release(struct torch_file *f);

#endif
