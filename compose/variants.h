/* variants.h: the prompt as each pass of a strategy with a pass for each adapter sees it (CLoRA's prompt variants).
 *
 * Adapters' words in a prompt are a trigger and what it is of, "sks dog". A pass sees the trigger of its own adapter
 * alone, "a sks dog and a cat", the base none, "a dog and a cat". Triggers are told from words by the adapter's own groups
 * of words (use.words): a group "A B" that is in the prompt, where B is a group too; whose are not so stand as they are. Prompts of one part that does not change from step to step; others all passes see alike.
 */
#ifndef WEFT_VARIANTS_H
#define WEFT_VARIANTS_H

#include "passes.h"

struct variants {
    int n;        /* adapters */
    int plain;    /* index of the prompt as it is */
    int *text;    /* [n + 1]: indices of texts, the last the base's */
    char **whole; /* [n]: "A B"; NULL: it has none. Owned */
    char **rest;  /* [n]: its B */
};
/* Texts join the conditions; before maps are opened. */
int variants_open(struct variants **out, struct passes *of, struct err *err);
void variants_close(struct variants *v);
/* Whose words (whole), or rest of them, stand for adapter i in a text; NULL: the text is no variant's, or i has no trigger. */
const char *variants_words(const struct variants *v, int text, int i);

#endif
