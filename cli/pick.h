/* pick.h: what the subcommands that compute with adapters' weights share.
 *
 *     struct pick w;
 *     rc = pick_open(&w, &shelf, "ghibli", &err);   // a name in the repository, or a file
 *     … w.m …
 *     pick_close(&w);
 */
#ifndef WEFT_PICK_H
#define WEFT_PICK_H

#include "shelf.h"
#include "store/adapter.h"
#include "unet/matrices.h"

struct pick {
    struct repo_adapter a; /* empty where it is a file of its own */
    struct adapter_file *file;
    struct matrices m;
};
/* The shelf must have been parsed; it is opened for reading where there is a repository. */
int pick_open(struct pick *w, struct shelf *s, const char *ref, struct err *err);
void pick_close(struct pick *w);
/* What the user calls it. */
const char *pick_name(const struct pick *w);

/* Writes the products as path in a style. what: goes into the metadata as how they were made; the file's
 * own kohya and modelspec metadata of `from` (or NULL) are kept but for ranks. */
int pick_write(const char *path, const char *style, const struct matrices *m,
               const struct adapter_file *from, const char *what, struct err *err);

#endif
