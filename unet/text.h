/* text.h: UTF-8 and kinds of characters, for the tokenizer and the prompt parsers.
 *
 * Not a Unicode library: just what those two need, and pinned to what the reference tokenizer does
 * whatever version of Unicode the system's PCRE2 and utf8proc know (see text.c).
 *
 *     if ((rc = text_check(s, n, "prompt", &err)) < 0) ...
 *     for (int len; *s; s += len)
 *         if (text_is_word(text_char(s, &len))) ...
 */
#ifndef WEFT_TEXT_H
#define WEFT_TEXT_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The most bytes a text may have. */
#define TEXT_MAX (1u << 20)

/* ERR_ARG unless s is valid UTF-8 of at most TEXT_MAX bytes. what begins the message. */
int text_check(const char *s, size_t n, const char *what, struct err *err);

/* How much of s[n] a message shows: whole characters, no control characters, at most max bytes. */
int text_shown(const char *s, size_t n, size_t max);

/* The code point at s, which is valid UTF-8 (a NUL counts); *len gets its bytes. */
int32_t text_char(const char *s, int *len);
/* The code point that ends before s, which is not where the text starts. */
int32_t text_char_before(const char *s);

/* Unicode's White_Space. */
bool text_is_space(int32_t c);
/* What \w means in Python's re: letters, numbers, the underscore. */
bool text_is_word(int32_t c);
/* What \d means there: decimal digits of any script. */
bool text_is_digit(int32_t c);

/* A new string, the text as CLIP's vocabulary knows it: NFC, runs of white space as one blank,
 * lower case. s is valid UTF-8 and may hold NULs. More than 256 combining marks in a row are
 * ERR_ARG. */
int text_fold(char **out, size_t *out_n, const char *s, size_t n, struct err *err);

/* Ranges to add to \p{L} and \p{N} in a PCRE2 pattern to make them the reference's. */
extern const char text_more_letters[], text_more_numbers[];

#endif
