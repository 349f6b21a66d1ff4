/* clip.h: CLIP's text tower (CLIPTextModel of transformers; Radford et al. 2021).
 *
 *     source_open(&from, "model/text_encoder", "model", &err);
 *     clip_text_open(&c, dev, &from, &sites, &err);
 *     y = clip_text_forward(c, &run, ids, 2, 77, 0);        // [2, 77, width]
 *
 * Token ids come from prompt.h; weights on words are applied by the caller.
 */
#ifndef WEFT_CLIP_H
#define WEFT_CLIP_H

#include "loader.h"
#include "ops.h"

struct clip_block {
    struct norm norm1, norm2;
    struct layer q, k, v, out, fc1, fc2;
};

struct clip_text {
    struct device *dev;
    struct weights *weights;
    int vocab, width, layers, heads, mlp, positions;
    int eos; /* config's eos_token_id; 2 means: the largest id of a row, as old configs have it */
    enum act act;
    struct array token, position; /* [vocab, width], [positions, width] */
    struct clip_block *block;
    struct norm final;
};

/* Builds from a config and weights (unet/loader.h), of which it takes charge whether it succeeds or
 * not, and adds its sites. A config key that changes the computation and is not known is an error that
 * names it. */
int clip_text_open(struct clip_text **out, struct device *dev, struct source *from,
                   struct sites *sites, struct err *err);
void clip_text_close(struct clip_text *c);

/* ids [n, len], len <= positions. The last hidden state after the final norm, [n, len, width].
 * skip: how many of the last blocks are left out (A1111's clip skip is this plus 1). */
struct tensor clip_text_forward(const struct clip_text *c, struct run *r, const int32_t *ids, int n,
                                int len, int skip);
/* Place of a row's end token, where the pooled output is read. */
int clip_text_end(const struct clip_text *c, const int32_t *ids, int len);

#endif
