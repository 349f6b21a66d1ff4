#include "lbw.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define LAYERS 2 /* a block's */

/* The 17 among the 26. */
static const signed char among[17] = {0, 2, 3, 5, 6, 8, 9, 13, 17, 18, 19, 20, 21, 22, 23, 24, 25};

int lbw_parse(struct lbw *b, const char *s, size_t len, struct err *err)
{
    char text[26 * 16], *p = text;
    b->n = 0;
    if (len >= sizeof text)
        return err_set(err, ERR_ARG, "too long a list of block strengths");
    memcpy(text, s, len);
    text[len] = 0;
    while (*p && b->n < LBW_BLOCKS) {
        char *end;
        float v = strtof(p, &end);
        if (end == p || !isfinite(v) || (*end && *end != '/'))
            break;
        b->w[b->n++] = v;
        p = *end ? end + 1 : end;
    }
    if (*p || (b->n != 17 && b->n != 26) || (len && s[len - 1] == '/'))
        return err_set(err, ERR_ARG,
                       "block strengths are 17 or 26 numbers with / between (BASE/IN…/M00/OUT…)");
    return 0;
}

int lbw_block(const char *site)
{
    int block, layer, end = 0;
    const char *p;
    if (!strncmp(site, "text_encoder", 12))
        return 0;
    if (!strncmp(site, "unet.mid_block.", 15))
        return 13;
    if (!strcmp(site, "unet.conv_in"))
        return 1;
    bool down = sscanf(site, "unet.down_blocks.%d.%n", &block, &end) == 1 && end;
    if (!down && (sscanf(site, "unet.up_blocks.%d.%n", &block, &end) != 1 || !end))
        return -1;
    p = site + end;
    if (block < 0 || block > 3)
        return -1;
    if (!strncmp(p, "downsamplers.", 13))
        layer = LAYERS;
    else if (!strncmp(p, "upsamplers.", 11))
        layer = LAYERS;
    else if (sscanf(p, "resnets.%d.", &layer) != 1 && sscanf(p, "attentions.%d.", &layer) != 1)
        return -1;
    if (layer < 0 || layer > LAYERS)
        return -1;
    return (down ? 2 : 14) + block * (LAYERS + 1) + layer;
}

float lbw_factor(const struct lbw *b, const char *site)
{
    int k = lbw_block(site);
    if (b->n == 0 || k < 0)
        return 1;
    if (b->n == 26)
        return b->w[k];
    for (int i = 0; i < 17; i++)
        if (among[i] == k)
            return b->w[i];
    return 0;
}
