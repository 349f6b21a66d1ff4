/* blocks.h: the parts that UNet and autoencoder share, as diffusers builds and names them. */
#ifndef WEFT_BLOCKS_H
#define WEFT_BLOCKS_H

#include "loader.h"
#include "ops.h"

/* ResnetBlock2D: y = shortcut(x) + conv2(silu(norm2(conv1(silu(norm1(x))) + time))). */
struct resnet {
    struct norm norm1, norm2;
    struct layer conv1, conv2;
    struct layer time;     /* time_emb_proj; out 0: none */
    struct layer shortcut; /* conv_shortcut; out 0: the identity */
};
/* time_width 0: no time embedding (autoencoder). */
void resnet_load(struct resnet *b, struct loader *ld, int in, int out, int time_width, int groups,
                 float eps);
/* time: silu of the time embedding, [n, 1, time_width], or NULL. The result is a new tensor. */
struct tensor resnet_forward(const struct resnet *b, struct run *r, const struct tensor *x,
                             const struct tensor *time);
void resnet_release(struct resnet *b, struct device *dev);

/* Upsample2D: nearest to h x w, then a convolution. */
struct tensor upsample_forward(const struct layer *conv, struct run *r, const struct tensor *x,
                               int h, int w);

/* A convolution in a result of its own. */
struct tensor layer_forward(const struct layer *l, struct run *r, const struct tensor *x);

#endif
