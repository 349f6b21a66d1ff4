/* infotext.h: what A1111's web UI, Forge, Civitai and weft write into a picture's `parameters`.
 *
 *     a prompt of any lines
 *     Negative prompt: of any lines
 *     Steps: 20, Sampler: Euler a, CFG scale: 7, Seed: 1, Size: 512x512, Lora hashes: "a: 0123…, b: …"
 *
 * The last line is settings where it has three or more "Key: value" pairs; a value with a comma, colon or
 * newline is a JSON string. Civitai also writes Hashes: {"lora:a": "…", "model": "…"}.
 *
 *     struct infotext t;
 *     infotext_parse(&t, text, &err);
 *     const char *seed = infotext_get(&t, "Seed");
 *     infotext_release(&t);
 */
#ifndef WEFT_INFOTEXT_H
#define WEFT_INFOTEXT_H

#include "unet/err.h"

struct infotext {
    char *prompt, *negative; /* owned; "" where there is none */
    struct infotext_pair {
        char *key, *value;
    } * pair; /* owned */
    int n;
};
int infotext_parse(struct infotext *t, const char *text, struct err *err);
void infotext_release(struct infotext *t);
/* The value of a key, or NULL. */
const char *infotext_get(const struct infotext *t, const char *key);

/* Adapters that it names, by "Lora hashes", "Hashes" and <lora:NAME:W> in the prompt: calls each with its
 * name and hash ("" where only the prompt names it), in this order, each name once. Returns the first
 * nonzero that each returned. */
int infotext_adapters(const struct infotext *t,
                      int (*each)(void *user, const char *name, const char *hash), void *user);

#endif
