/* lbw.h: strengths block by block, in the order that A1111's LoRA Block Weight extension made usual.
 *
 *     26 numbers: BASE, IN00 … IN11, M00, OUT00 … OUT11
 *     17 numbers: BASE, IN01 IN02 IN04 IN05 IN07 IN08, M00, OUT03 … OUT11; all other blocks 0
 *
 * BASE is the text encoder; IN, M and OUT are the blocks of Stable Diffusion 1.x and 2.x as its first code
 * counts them (input_blocks, middle_block, output_blocks). Weights in none of them, as the time embedding,
 * keep 1.
 */
#ifndef WEFT_LBW_H
#define WEFT_LBW_H

#include "err.h"

#include <stdbool.h>

#define LBW_BLOCKS 26

struct lbw {
    int n;               /* 17 or 26 as it was given; 0: none */
    float w[LBW_BLOCKS]; /* as given */
};

/* Reads "1/0.5/0/…", 17 or 26 numbers. */
int lbw_parse(struct lbw *b, const char *s, size_t len, struct err *err);
/* Which of the 26 a site is in, -1: none. */
int lbw_block(const char *site);
/* What a site's delta is multiplied by. */
float lbw_factor(const struct lbw *b, const char *site);

#endif
