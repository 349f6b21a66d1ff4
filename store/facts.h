/* facts.h: what an adapter file is, told from its tensors and metadata alone.
 *
 * Says it for files that weft cannot render as well: then `unusable` is the reason. Names of files and
 * what trainers declare decide nothing here.
 *
 *     struct facts f;
 *     if (facts_read(&f, st, path, &err) < 0) …        // damaged, or no adapter at all
 *     if (f.unusable) …                                 // f.kinds and f.base say what it is
 *     facts_release(&f);
 */
#ifndef WEFT_FACTS_H
#define WEFT_FACTS_H

#include "tensor_file.h"
#include "unet/err.h"

struct facts {
    const char *format, *style; /* the importer's; NULL where none takes the file */
    char kinds[160];            /* "lora locon", by name, never empty */
    const char *base;           /* "sd1" "sd2" "sdxl" "flux" "sd3" "llm" "unknown" */
    int context;                /* width of the text that cross-attention sees; 0: not told */
    char *unusable;             /* owned; why it cannot be rendered, NULL: it can */
    int rank[2];                /* least and most; 0, 0: it has none */
    int sites, tensors;         /* weights it changes, arrays it holds */
    const char *dtype;          /* the one most bytes have */
    char *declared;             /* owned; the hash that the trainer wrote, or NULL */
    char *metadata;             /* owned; the file's __metadata__ as a JSON object, or NULL */
};

/* ERR_FORMAT: damaged, or a whole model; ERR_UNSUPPORTED: nothing known as an adapter. `path` is for
 * messages and for a PEFT config beside the file. */
int facts_read(struct facts *f, const struct tensor_file *st, const char *path, struct err *err);
void facts_release(struct facts *f);

/* What is to be said of a declared hash: "", or why it is not to be believed. */
const char *facts_declared_note(const char *declared, const char *data_sha256);

#endif
