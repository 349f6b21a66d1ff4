/* embeddings.h: the words that a request's prompts may use: from --embedding, and from adapters that bring
 * words of their own. */
#ifndef WEFT_CLI_EMBEDDINGS_H
#define WEFT_CLI_EMBEDDINGS_H

#include "request.h"

#include "store/adapter.h"
#include "unet/model.h"
#include "unet/words.h"

/* Reads them all for this model; hashes go into r. file: [r->n_adapter]. verbose: says on stderr what was
 * read. Free *out with words_free, also after an error. */
int embeddings_open(struct words **out, struct request *r, const struct model *m,
                    struct adapter_file *const *file, bool verbose, struct err *err);
/* Once the prompts are read: ERR_ARG names a file given with --embedding that none of them uses. */
int embeddings_check_used(const struct words *w, const struct request *r, struct err *err);

#endif
