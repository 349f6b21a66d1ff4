/* vae.h: from latents to pictures and back: AutoencoderKL of diffusers, any number of levels.
 *
 *     source_open(&from, "model/vae", "diffusion_pytorch_model", &err);
 *     vae_open(&v, dev, &from, &sites, &err);
 *     y = vae_decode(v, &run, &z);             // z [n, h*w, latent], y [n, (h*f)*(w*f), 3] in -1 … 1
 *
 * A latent as samplers see it is scaled: z = latent * scaling_factor. Both directions here take and give
 * scaled latents. f is 2 to the number of levels less one.
 */
#ifndef WEFT_VAE_H
#define WEFT_VAE_H

#include "blocks.h"

#define VAE_MAX_LEVELS 8

/* One-headed self-attention in the middle. */
struct vae_attention {
    struct norm norm;
    struct layer q, k, v, out;
};

struct vae_middle {
    struct resnet resnet[2];
    struct vae_attention attention; /* out.out 0: none (mid_block_add_attention false) */
};

struct vae_level {
    struct resnet *resnet;
    int n;
    struct layer sampler; /* out 0: none */
};

struct vae {
    struct device *dev;
    struct weights *weights;
    int levels, layers, groups, latent;
    int width[VAE_MAX_LEVELS];
    int factor; /* pixels a latent place, each way */
    int sample_size;
    double scaling;
    bool has_attention, has_quant, has_post_quant;

    struct layer enc_in, enc_out, quant, post_quant, dec_in, dec_out;
    struct norm enc_norm, dec_norm;
    struct vae_level down[VAE_MAX_LEVELS], up[VAE_MAX_LEVELS];
    struct vae_middle enc_mid, dec_mid;
};

/* Builds from a config and weights (unet/loader.h), of which it takes charge whether it succeeds or
 * not, and adds its sites. A config key that changes the computation and is not known is an error that
 * names it. */
int vae_open(struct vae **out, struct device *dev, struct source *from, struct sites *sites,
             struct err *err);
void vae_close(struct vae *v);

/* z [n, h*w, latent], scaled. [n, (h*f)*(w*f), 3]. */
struct tensor vae_decode(const struct vae *v, struct run *r, const struct tensor *z);
/* x [n, h*w, 3] in -1 … 1, sides multiples of f. [n, (h/f)*(w/f), 2 * latent]: mean, then log
 * variance, of the unscaled latent. */
struct tensor vae_encode(const struct vae *v, struct run *r, const struct tensor *x);
/* The scaled latent of one picture drawn from what vae_encode gave: (mean + noise * deviation) * scaling. All host arrays, channels last; noise NULL: the mean. n places of `latent` channels. */
void vae_draw(const struct vae *v, float *z, const float *moments, const float *noise, size_t n);

/* One picture decoded in overlapping squares of `tile` latent places, blended as diffusers'
 * enable_tiling does (overlap a quarter), so that memory does not grow with the picture. z and rgb are
 * host arrays: [h*w, latent] scaled, [(h*f)*(w*f), 3]. The run must have been measured for one tile. */
int vae_decode_tiled(const struct vae *v, struct run *r, float *rgb, const float *z, int h, int w,
                     int tile, struct err *err);

#endif
