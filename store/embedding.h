/* embedding.h: textual inversions (Gal et al. 2022): vectors that stand in a prompt for a word.
 *
 * Read from whatever file holds them: A1111's .pt (string_to_param), diffusers' learned_embeds (token to
 * vector) as .bin or .safetensors, emb_params, clip_l and clip_g, those bundled in a LoRA (bundle_emb,
 * cloneofsimo's, ED-LoRA's).
 *
 *     struct embedding_list l = {0};
 *     embedding_read(&l, file, "birb.pt", &err);
 *     words_add(words, l.item[0].name, l.item[0].vec, …);       // unet/words.h
 *     embedding_list_release(&l);
 */
#ifndef WEFT_EMBEDDING_H
#define WEFT_EMBEDDING_H

#include "tensor_file.h"

#include <stdbool.h>

struct embedding {
    /* What a prompt calls it: the token where the file is a dict of them, or the bundle's name; else the
     * file's own stem, as A1111 has it. */
    char *name;
    char *declared;   /* the name inside an A1111 file, or NULL */
    int n_vec, width; /* width is the text encoder's */
    float *vec;       /* [n_vec, width], finite */
    bool per_layer;   /* ED-LoRA: row i is for cross-attention layer i, not for place i */
};
struct embedding_list {
    struct embedding *item;
    int n;
};

/* Appends all that file holds; none is no error. path is for names and messages. */
int embedding_read(struct embedding_list *l, const struct tensor_file *file, const char *path,
                   struct err *err);
void embedding_list_release(struct embedding_list *l);

/* Whether tensor i belongs to a textual inversion, so that no adapter importer has to know it. */
bool embedding_owns(const struct tensor_file *file, size_t i);

#endif
