/* unet.h: the network that takes noise away: UNet2DConditionModel of diffusers, as Stable Diffusion
 * 1.x and 2.x have it (Rombach et al. 2022), at any widths, depths and mix of its block types.
 *
 *     struct unet *u;
 *     source_open(&from, "model/unet", "diffusion_pytorch_model", &err);
 *     unet_open(&u, dev, &from, &sites, &err);
 *     struct unet_text text = {&hidden, 1};                // [n, tokens, 768]
 *     y = unet_forward(u, &run, &x, t, &text, NULL);       // x, y [n, h*w, 4]
 *
 * Reads: conv_in, down blocks (each result also kept as a skip), the middle, up blocks (each takes
 * skips back), conv_out. Blocks with attention look at the text after every resnet.
 */
#ifndef WEFT_UNET_H
#define WEFT_UNET_H

#include "blocks.h"

#define UNET_MAX_LEVELS 8
#define UNET_MAX_WAVES  4096 /* channels of the first level, which carry the timestep's waves */

/* Attention: q from x, k and v from the text or from x itself. Heads divide the width. */
struct unet_attention {
    struct layer q, k, v, out;
    int heads;
};

/* BasicTransformerBlock: x += attn1(norm1 x); x += attn2(norm2 x, text); x += ff(norm3 x). */
struct unet_block {
    struct norm norm1, norm2, norm3;
    struct unet_attention attn1, attn2;
    struct layer ff_in, ff_out; /* ff.net.0.proj (GEGLU), ff.net.2 */
    int cross; /* which of the UNet's cross attentions attn2 is: on the way down, in the
                                   middle, on the way up, counted from 0 */
};

/* Transformer2DModel: y = x + proj_out(blocks(proj_in(norm x))). */
struct unet_transformer {
    struct norm norm;
    struct layer in, out; /* linear or 1x1, which is the same on channels-last data */
    struct unet_block *block;
    int n_block;
};

/* A level on the way down or up. */
struct unet_level {
    struct resnet *resnet;
    struct unet_transformer *transformer; /* one a resnet, or NULL: no attention here */
    int n;
    struct layer sampler; /* downsamplers.0.conv or upsamplers.0.conv; out 0: none */
};

struct unet {
    struct device *dev;
    struct weights *weights;
    int in_channels, out_channels, levels;
    int width[UNET_MAX_LEVELS];  /* block_out_channels */
    int heads[UNET_MAX_LEVELS];  /* attention_head_dim, which is the number of heads */
    int layers[UNET_MAX_LEVELS]; /* layers_per_block */
    int blocks[UNET_MAX_LEVELS]; /* transformer_layers_per_block */
    bool down_attends[UNET_MAX_LEVELS], up_attends[UNET_MAX_LEVELS];
    int text_width; /* cross_attention_dim */
    int n_cross;    /* cross attentions */
    int up_cross;   /* the first of those on the way up */
    int time_width;
    int groups;
    float eps;
    bool flip_sin_to_cos;
    double freq_shift;
    bool linear_projection;
    int downsample_padding;
    int sample_size; /* latent side the model was trained at */

    struct layer conv_in, conv_out, time1, time2;
    struct norm norm_out;
    struct unet_level down[UNET_MAX_LEVELS], up[UNET_MAX_LEVELS];
    struct resnet mid_resnet[2];
    struct unet_transformer mid_transformer;
};

/* Builds from a config and weights (unet/loader.h), of which it takes charge whether it succeeds or
 * not, and adds its sites. A config key that changes the computation and is not known is an error that
 * names it. */
int unet_open(struct unet **out, struct device *dev, struct source *from, struct sites *sites,
              struct err *err);
void unet_close(struct unet *u);

/* The level that one of the cross attentions lies on, 0 being the latent's own size. */
int unet_cross_level(const struct unet *u, int cross);

/* Deep features: the input of the last up block, which changes slowly from step to step (Ma, Fang & Wang
 * 2024, DeepCache). row[n] are tensors [1, h, w, unet_deep_channels], with c 0 where a row's are of no
 * interest. A pass either leaves its features there or, with reuse, begins the last up block with them and
 * leaves everything between the first level and the last out. */
struct unet_deep {
    struct tensor *row;
    bool reuse;
};
/* 0: a UNet of one level, which has none. */
int unet_deep_channels(const struct unet *u);

/* What the rows look at: at[n], each [rows, tokens, text_width]; n is 1, or n_cross: one for each cross
 * attention. */
struct unet_text {
    const struct tensor *at;
    int n;
};

/* One pass, or as much of it as is watched (map_watch.until: then the result has no channels). x [n, h*w, in_channels], t[n] the timestep of each row. deep may be NULL. Any h and w of at least 1. The result is [n, h*w, out_channels]. */
struct tensor unet_forward(const struct unet *u, struct run *r, const struct tensor *x,
                           const double *t, const struct unet_text *text,
                           const struct unet_deep *deep);

#endif
