/* prompt_scan.h: what prompt.c, prompt_spans.c and prompt_stages.c share to read a prompt's
 * text. */
#ifndef WEFT_PROMPT_SCAN_H
#define WEFT_PROMPT_SCAN_H

#include "err.h"

#include <stdbool.h>
#include <stddef.h>

/* How deep brackets may be. */
#define PROMPT_DEEP 100

/* ERR_ARG unless text is one a prompt may have; *n gets its length. */
int prompt_scan_check(const char *text, size_t *n, struct err *err);
int prompt_scan_deep(size_t at, struct err *err);

/* The first character at or after s that is not white space, as Python's \s has it, and the end of
 * s[n] without the white space before it. */
const char *prompt_scan_space(const char *s);
size_t prompt_scan_trim(const char *s, size_t n);

/* Whether \b holds at text[i], n being the text's length. */
bool prompt_scan_boundary(const char *text, size_t n, size_t i);

/* The end of a row of digits of any script and points. A number of other digits than 0 to 9 is
 * refused where A1111 would take it, not read as text. */
const char *prompt_scan_row(const char *s);
/* The end of a number at s: sign, digits with a point or without, and, where exponent is set, an
 * exponent. NULL if there is none. */
const char *prompt_scan_number(const char *s, bool exponent);
/* The value of a number that prompt_scan_number found; may be infinite. Knows no locale. */
double prompt_scan_value(const char *s);

/* A new string of s[n], NULL when there is no memory. */
char *prompt_scan_copy(const char *s, size_t n);
/* The array with room for one more thing of that size, moved if need be; NULL when there is no
 * memory, and then it is where it was. */
void *prompt_scan_grow(void *array, size_t n, size_t *cap, size_t size, struct err *err);

#endif
