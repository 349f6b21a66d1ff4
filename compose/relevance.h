/* relevance.h: how much of a prompt is an adapter's, told from the text encoder alone; W-Switch and W-Composite
 * weigh adapters by it.
 *
 * e(text) is the mean over the tokens of the encoder's last states, without adapters. Of adapter i:
 *
 *     part  = max(1 - cos(e(prompt), e(prompt without i's trigger words)), 0.05)      (PAW)
 *     match = cos(e(prompt), e(trigger words of i))                                  (PTW)
 *
 * each divided by its sum over all adapters, as the authors' code has it (Prompt-Aware Multi-LoRA Composition,
 * Tsoumplekas et al. 2025).
 */
#ifndef WEFT_RELEVANCE_H
#define WEFT_RELEVANCE_H

#include "unet/model.h"

struct relevance {
    double part, match;
};

/* triggers[n]: words with commas between, NULL or "" where an adapter has none: it gets the least part and the
 * mean match. Prompts are read as plain text. */
int relevance_measure(const struct model *m, const char *prompt, const char *const *triggers, int n,
                      struct relevance *out, struct err *err);
/* Where n characters of words stand in a text, whatever the case, between characters that are no letters; NULL: nowhere. */
const char *relevance_find(const char *text, const char *words, size_t n);
/* text without the words of `triggers`, each group at its first place, whatever the case. A new string. */
char *relevance_without(const char *text, const char *triggers);

#endif
