/* hash.h: SHA-256, of bytes at hand and piece by piece.
 *
 *     struct hash *h;
 *     hash_new(&h, &err);
 *     hash_add(h, bytes, n);
 *     hash_end(h, hex);              // also frees it
 */
#ifndef WEFT_HASH_H
#define WEFT_HASH_H

#include "err.h"

#define HASH_HEX 65 /* characters of a SHA-256 in hex, with NUL */

struct hash;

int hash_new(struct hash **out, struct err *err);
void hash_add(struct hash *h, const void *bytes, size_t n);
/* Lower-case hex into hex (NULL: not wanted). Frees h, which may be NULL. */
void hash_end(struct hash *h, char hex[HASH_HEX]);

int hash_bytes(char hex[HASH_HEX], const void *bytes, size_t n, struct err *err);
int hash_file(char hex[HASH_HEX], const char *path, struct err *err);

#endif
