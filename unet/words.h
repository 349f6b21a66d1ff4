/* words.h: words of a prompt that stand for vectors of their own (textual inversion, Gal et al. 2022).
 *
 * Each word takes as many places as it has vectors, and there the text tower's input embeddings are the
 * vectors. prompt_chunks_make finds them in a text; their places are negative ids, which
 * clip_text_forward looks up here.
 *
 *     words_new(&w, tokenizer, 768, &err);
 *     words_add(w, "birb-style", vec, 2, 768, &err);
 *     prompt_chunks_make(&c, tokenizer, w, "a (birb-style:1.2) owl", 77, &err);
 *     y = clip_text_forward(clip, &run, w, c.id, c.n_chunk, c.length, 0, 0);
 *
 * A bare name is found as AUTOMATIC1111's web UI finds it: where the text's tokens are the name's, so
 * capitals make no difference; of several the one with most tokens. Names that begin or end with a sign
 * ("<birb>") are also found beside other signs, where the tokens run together. "embedding:NAME", as
 * ComfyUI writes it, must name a known word.
 */
#ifndef WEFT_WORDS_H
#define WEFT_WORDS_H

#include "err.h"
#include "tokenizer.h"

#include <stdbool.h>

struct words;

/* t is kept until words_free. width: of the text tower. */
int words_new(struct words **out, const struct tokenizer *t, int width, struct err *err);
void words_free(struct words *w);

/* Copies vec [n, width]. A width that does not fit and a name that is there already are errors. */
int words_add(struct words *w, const char *name, const float *vec, int n, int width,
              struct err *err);
/* A word of one place that is another vector for each of the UNet's cross attentions, vec [n_layer, width]
 * (Voynov et al. 2023, "P+"; ED-LoRA's). Texts that have it are encoded once for each. */
int words_add_layered(struct words *w, const char *name, const float *vec, int n_layer, int width,
                      struct err *err);
/* A word that is known, but not possible here: prompts that use it are refused with the reason. One that
 * is there already becomes so. */
int words_add_refused(struct words *w, const char *name, const char *why, struct err *err);

int words_count(const struct words *w);
const char *words_name(const struct words *w, int i);
int words_width(const struct words *w);
/* Whether a prompt made with it has the word. */
bool words_used(const struct words *w, int i);
/* -1: no word of that name. */
int words_find(const struct words *w, const char *name);

/* ---- for prompt_chunks.c and clip.c ----------------------------------------------------------- */

/* The word whose tokens begin ids[0..n), or -1; *len gets how many they are. */
int words_at_tokens(const struct words *w, const int32_t *ids, size_t n, int *len);
/* The next word in text[at..n) that must be found by its letters. w may be NULL. "embedding:" with an
 * unknown name is ERR_ARG. */
struct words_hit {
    int word; /* -1: none */
    size_t begin, end;
};
int words_next(const struct words *w, const char *text, size_t at, size_t n, struct words_hit *hit,
               struct err *err);
/* Marks a word as used. *first gets the id of its first place; the others count down from there. *n gets
 * how many. */
int words_use(struct words *w, int i, int32_t *first, int *n, struct err *err);
/* The vector [width] of a negative id for a cross attention counted from 0, or NULL when there is none. */
const float *words_vector(const struct words *w, int32_t id, int layer);
/* For how many cross attentions an id has vectors of their own; 1: it is the same for all. */
int words_layers(const struct words *w, int32_t id);

#endif
