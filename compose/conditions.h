/* conditions.h: what a picture's prompts say, step by step, and their encodings.
 *
 * A picture has one row for the negative prompt (unless guidance is off) and one for each AND part of
 * its prompt. Each row has a schedule of texts. All distinct texts are encoded once, before the first
 * step, padded to the same number of chunks, so that any of them can stand in a batch beside any other.
 *
 *     conditions_parse(&c, tokenizer, NULL, length, &prompt, &negative, steps, &err);
 *     conditions_encode(&c, clip, skip, &pass, hidden, &err);
 *     text = &hidden[conditions_at(&c, row, step)];
 */
#ifndef WEFT_CONDITIONS_H
#define WEFT_CONDITIONS_H

#include "unet/clip.h"
#include "unet/prompt.h"

struct condition_row {
    struct prompt_stages stages;
    int first;     /* index of the first stage's text; the others follow */
    double weight; /* of an AND part; the negative's is not used */
};

struct conditions {
    struct condition_row *row;
    int n_row;
    struct prompt_chunks *chunks; /* [n_text] */
    int n_text, n_chunk, length;
    int n_own;   /* of the texts the first so many are of rows */
    int n_layer; /* encodings of each text: 1, or one for each of the UNet's cross attentions, where a
                     word has vectors for each (words_add_layered) */
    int n_encode;              /* runs of the text tower for all */
    const struct words *words; /* that the chunks refer to, or NULL */
};

/* negative NULL: guidance is off, and row 0 is the first part. words may be NULL, else they are kept
 * until conditions_release. Release it also after an error. */
int conditions_parse(struct conditions *c, const struct tokenizer *t, struct words *words,
                     int length, const struct prompt *prompt, const struct prompt *negative,
                     int steps, struct err *err);
/* One more text, which no row has; *index says which it is. Before any is encoded. */
int conditions_add(struct conditions *c, const struct tokenizer *t, struct words *words,
                   const char *text, int *index, struct err *err);
/* Fills in hidden[n_text], each [n_layer, n_chunk * length, width]. Words are weighted as A1111 does: each token's
 * state times its weight, then the chunk scaled back to the mean it had. `pass` is measured and committed
 * here; the adapters in force are its own. */
int conditions_encode(struct conditions *c, const struct clip_text *clip, int skip,
                      struct run *pass, struct tensor *hidden, struct err *err);
/* Index of the text that row has at a step, counted from 0. A stage holds while step <= until, as in
 * A1111, whose "[a:b:10]" so gives a eleven steps. */
int conditions_at(const struct conditions *c, int row, int step);
void conditions_release(struct conditions *c);

#endif
