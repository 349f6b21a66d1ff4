/* embeddings.h: the words that a request's prompts may use: from --embedding, from adapters that bring words
 * of their own, and from the repository. Where two have one name the first of these is meant. One of the
 * repository takes a bare word of the prompt as AUTOMATIC1111's web UI lets it, which is said on stderr; a bare
 * word that does not fit this model stays the ordinary word, "embedding:NAME" is then an error. */
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
/* Once the prompts are read: ERR_ARG names a file given with --embedding that none of them uses. Those of
 * the repository that none uses are taken out of r, the others told on stderr. */
int embeddings_settle(const struct words *w, struct request *r, bool quiet, struct err *err);

#endif
