/* concepts.h: the things that an English prompt asks for, one phrase each.
 *
 *     struct concept c[CONCEPTS_MOST];
 *     int n = concepts_split("a kite on the left and a red lantern, neon style", c);
 *     c[0].text                     // "kite"; then "red lantern", "neon style"
 *
 * Phrases end at commas, brackets and such words as and, with, above; articles and numbers in front are left out, and so
 * are phrases that only say where something is or that this is a picture. No more is known of the language.
 */
#ifndef WEFT_CONCEPTS_H
#define WEFT_CONCEPTS_H

#include <stdbool.h>
#include <stddef.h>

enum { CONCEPTS_MOST = 16 };
struct concept {
    size_t at, n; /* bytes of the prompt */
    char text[96];
};
/* How many there are; those beyond CONCEPTS_MOST, and longer phrases than text holds, are left out. */
int concepts_split(const char *prompt, struct concept out[CONCEPTS_MOST]);
/* Whether a name or a trigger has the phrase in it, word by word: "My_red-Lantern.v2" says "red lantern", not "ant". */
bool concepts_says(const char *text, const char *phrase);
/* Whether a word may be a thing: not one that joins, says where, or stands in front. */
bool concepts_is_thing(const char *word, size_t n);

#endif
