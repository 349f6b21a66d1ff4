/* clip.h: CLIP's two towers (CLIPModel and CLIPTextModel of transformers; Radford et al. 2021).
 *
 * The text tower alone is what Stable Diffusion attends to:
 *
 *     source_open(&from, "model/text_encoder", "model", &err);
 *     clip_text_open(&c, dev, &from, &sites, &err);
 *     y = clip_text_forward(c, &run, NULL, ids, 2, 77, 0, 0);       // [2, 77, width]
 *
 * Both together place pictures and texts in one space: see scorer.h. Token ids come from prompt.h;
 * weights on words are the caller's.
 */
#ifndef WEFT_CLIP_H
#define WEFT_CLIP_H

#include "loader.h"
#include "ops.h"
#include "words.h"

struct clip_block {
    struct norm norm1, norm2;
    struct layer q, k, v, out, fc1, fc2;
};

/* The transformer that both towers are. */
struct clip_tower {
    int width, layers, heads, mlp;
    enum act act;
    struct clip_block *block; /* [layers] */
};
/* Sizes from a config; heads where it says nothing: 8 is the text tower's, 12 the vision tower's. */
void clip_tower_read(struct clip_tower *t, struct config *c, int heads);
/* Weights from "encoder.layers.I." below where the loader is. */
void clip_tower_load(struct clip_tower *t, struct loader *ld);
/* x [n, places, width], in place, through all blocks but the last `skip`. */
void clip_tower_forward(const struct clip_tower *t, struct run *r, struct tensor *x, bool causal,
                        int skip);
void clip_tower_release(struct clip_tower *t, struct device *dev);

struct clip_text {
    struct device *dev;
    struct weights *weights; /* NULL where a struct clip has them */
    struct clip_tower tower;
    int vocab, positions;
    int eos; /* config's eos_token_id; 2 means: the largest id of a row, as old configs have it */
    struct array token, position; /* [vocab, width], [positions, width] */
    struct norm final;
};

/* Builds from a config and weights (unet/loader.h), of which it takes charge whether it succeeds or
 * not, and adds its sites. A config key that changes the computation and is not known is an error that
 * names it. */
int clip_text_open(struct clip_text **out, struct device *dev, struct source *from,
                   struct sites *sites, struct err *err);
void clip_text_close(struct clip_text *c);

/* ids [n, len], len <= positions. The last hidden state after the final norm, [n, len, width].
 * skip: how many of the last blocks are left out (A1111's clip skip is this plus 1). Where an id is
 * negative the token's embedding is that vector of `words`; NULL: there are none. layer: for which of the
 * UNet's cross attentions, where that makes a difference (words_layers), else any. */
struct tensor clip_text_forward(const struct clip_text *c, struct run *r, const struct words *words,
                                const int32_t *ids, int n, int len, int skip, int layer);
/* Place of a row's end token, where the pooled output is read. */
int clip_text_end(const struct clip_text *c, const int32_t *ids, int len);

/* The vision transformer: patches, a class token in front, pre- and post-norm. */
struct clip_vision {
    struct clip_tower tower;
    int side, patch;              /* pixels of the picture and of a patch */
    struct array token, position; /* [width], [1 + patches, width] */
    struct layer embed;           /* patch_embedding */
    struct norm pre, post;
};

struct clip {
    struct device *dev;
    struct weights *weights;
    struct clip_text text;
    struct clip_vision vision;
    struct layer text_projection, visual_projection;
    int dim;      /* of the common space */
    double scale; /* exp(logit_scale): what transformers multiplies cosines by */
};

/* A whole CLIPModel. Takes charge of the source; adds its sites. */
int clip_open(struct clip **out, struct device *dev, struct source *from, struct sites *sites,
              struct err *err);
void clip_close(struct clip *c);
/* Not normalised, [n, 1, dim]. ids [n, len]; x [n, side*side, 3], normalised as the model wants it. */
struct tensor clip_embed_text(const struct clip *c, struct run *r, const int32_t *ids, int n,
                              int len);
struct tensor clip_embed_image(const struct clip *c, struct run *r, const struct tensor *x);

#endif
