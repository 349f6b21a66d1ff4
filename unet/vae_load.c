/* Building an autoencoder from its config and weights; vae.c runs it. */
#include "vae.h"

#include "config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static const char *const harmless[] = {"force_upcast" /* it is float32 anyway */, NULL};

static void only_blocks(struct config *c, const char *key, const char *type, int levels)
{
    const char *name[VAE_MAX_LEVELS];
    int n = config_strs(c, key, name, VAE_MAX_LEVELS);
    if (n != levels)
        config_fail(c, "%s lists %d blocks where block_out_channels lists %d", key, n, levels);
    for (int i = 0; i < n; i++)
        if (strcmp(name[i], type))
            config_fail(c, "%s has a \"%.60s\"; weft does %s", key, name[i], type);
}

static int read_config(struct vae *v, struct config *c, struct err *err)
{
    int n = v->levels = config_ints(c, "block_out_channels", 0, v->width, VAE_MAX_LEVELS);

    config_ignore(c, harmless);
    config_expect(c, "in_channels", "3");
    config_expect(c, "out_channels", "3");
    config_expect(c, "act_fn", "silu");
    config_expect(c, "shift_factor", "0"); /* other pipelines' models have one */
    v->layers = config_int(c, "layers_per_block", 1);
    v->latent = config_int(c, "latent_channels", 4);
    v->groups = config_int(c, "norm_num_groups", 32);
    v->sample_size = config_int(c, "sample_size", 32);
    v->scaling = config_num(c, "scaling_factor", 0.18215);
    v->has_attention = config_bool(c, "mid_block_add_attention", true);
    v->has_quant = config_bool(c, "use_quant_conv", true);
    v->has_post_quant = config_bool(c, "use_post_quant_conv", true);
    v->factor = n > 0 ? 1 << (n - 1) : 1;
    only_blocks(c, "down_block_types", "DownEncoderBlock2D", n);
    only_blocks(c, "up_block_types", "UpDecoderBlock2D", n);
    bool good = n >= 1 && v->layers >= 1 && v->layers <= 16 && v->latent >= 1 && v->latent <= 256 &&
                v->groups >= 1 && isfinite(v->scaling) && fabs(v->scaling) > 1e-6 &&
                fabs(v->scaling) < 1e6;
    for (int i = 0; i < n; i++)
        good = good && v->width[i] >= 1 && v->width[i] <= 65536 && v->width[i] % v->groups == 0;
    if (!good)
        config_fail(c, "its sizes do not make an autoencoder: every width must divide by "
                       "norm_num_groups");
    return config_done(c, err);
}

/* The names before diffusers 0.18 were query, key, value and proj_attn. */
static void attention_load(struct vae_attention *a, struct loader *ld, int width, int groups)
{
    bool old = !loader_has(ld, "to_q.weight") && loader_has(ld, "query.weight");
    loader_norm(ld, &a->norm, "group_norm", width, groups, 1e-6f);
    loader_linear(ld, &a->q, old ? "query" : "to_q", width, width, true);
    loader_linear(ld, &a->k, old ? "key" : "to_k", width, width, true);
    loader_linear(ld, &a->v, old ? "value" : "to_v", width, width, true);
    loader_linear(ld, &a->out, old ? "proj_attn" : "to_out.0", width, width, true);
}

static void resnet_at(struct resnet *b, struct loader *ld, const struct vae *v, int j, int in,
                      int out)
{
    loader_enter(ld, "resnets.%d", j);
    resnet_load(b, ld, in, out, 0, v->groups, 1e-6f);
    loader_leave(ld);
}

static void middle_load(struct vae_middle *m, struct loader *ld, const struct vae *v)
{
    int width = v->width[v->levels - 1];
    loader_enter(ld, "mid_block");
    for (int i = 0; i < 2; i++)
        resnet_at(&m->resnet[i], ld, v, i, width, width);
    if (v->has_attention) {
        loader_enter(ld, "attentions.0");
        attention_load(&m->attention, ld, width, v->groups);
        loader_leave(ld);
    }
    loader_leave(ld);
}

/* n resnets from `in` to `out` channels, and a sampler (stride 2 down, 1 up) unless it is the last. */
static void level_load(struct vae_level *l, struct loader *ld, const struct vae *v, int n, int in,
                       int out, const char *sampler, int stride)
{
    l->resnet = calloc((size_t)n, sizeof *l->resnet);
    if (!l->resnet) {
        loader_fail(ld, ERR_NOMEM, "out of memory for the autoencoder's levels");
        return;
    }
    l->n = n;
    for (int j = 0; j < n; j++)
        resnet_at(&l->resnet[j], ld, v, j, j ? out : in, out);
    if (!sampler)
        return;
    loader_conv(ld, &l->sampler, sampler, out, out, 3, stride);
    if (stride == 2)
        l->sampler.pad[0] = l->sampler.pad[1] = 0; /* the encoder pads right and below only */
}

static void encoder_load(struct vae *v, struct loader *ld)
{
    int n = v->levels;
    loader_enter(ld, "encoder");
    loader_conv(ld, &v->enc_in, "conv_in", 3, v->width[0], 3, 1);
    for (int i = 0; i < n; i++) {
        loader_enter(ld, "down_blocks.%d", i);
        level_load(&v->down[i], ld, v, v->layers, v->width[i ? i - 1 : 0], v->width[i],
                   i < n - 1 ? "downsamplers.0.conv" : NULL, 2);
        loader_leave(ld);
    }
    middle_load(&v->enc_mid, ld, v);
    loader_norm(ld, &v->enc_norm, "conv_norm_out", v->width[n - 1], v->groups, 1e-6f);
    loader_conv(ld, &v->enc_out, "conv_out", v->width[n - 1], 2 * v->latent, 3, 1);
    loader_leave(ld);
}

static void decoder_load(struct vae *v, struct loader *ld)
{
    int n = v->levels;
    loader_enter(ld, "decoder");
    loader_conv(ld, &v->dec_in, "conv_in", v->latent, v->width[n - 1], 3, 1);
    middle_load(&v->dec_mid, ld, v);
    for (int i = 0; i < n; i++) {
        loader_enter(ld, "up_blocks.%d", i);
        level_load(&v->up[i], ld, v, v->layers + 1, v->width[i ? n - i : n - 1],
                   v->width[n - 1 - i], i < n - 1 ? "upsamplers.0.conv" : NULL, 1);
        loader_leave(ld);
    }
    loader_norm(ld, &v->dec_norm, "conv_norm_out", v->width[0], v->groups, 1e-6f);
    loader_conv(ld, &v->dec_out, "conv_out", v->width[0], 3, 3, 1);
    loader_leave(ld);
}

static int load(struct vae *v, struct sites *sites, struct err *err)
{
    struct loader ld = {
        .dev = v->dev, .weights = v->weights, .sites = sites, .part = COMPONENT_VAE};
    encoder_load(v, &ld);
    decoder_load(v, &ld);
    if (v->has_quant)
        loader_conv(&ld, &v->quant, "quant_conv", 2 * v->latent, 2 * v->latent, 1, 1);
    if (v->has_post_quant)
        loader_conv(&ld, &v->post_quant, "post_quant_conv", v->latent, v->latent, 1, 1);
    return loader_done(&ld, NULL, err);
}

int vae_open(struct vae **out, struct device *dev, struct source *from, struct sites *sites,
             struct err *err)
{
    struct vae *v = calloc(1, sizeof *v);
    int rc = v ? 0 : err_nomem(err, sizeof *v);

    *out = NULL;
    if (rc == 0) {
        v->dev = dev;
        v->weights = from->weights;
        from->weights = NULL;
        rc = read_config(v, from->config, err);
        rc = rc < 0 ? rc : load(v, sites, err);
    }
    source_close(from);
    if (rc < 0) {
        vae_close(v);
        return rc;
    }
    *out = v;
    return 0;
}

/* ---- release --------------------------------------------------------------------------------- */

static void middle_release(struct vae_middle *m, struct device *dev)
{
    resnet_release(&m->resnet[0], dev);
    resnet_release(&m->resnet[1], dev);
    norm_release(dev, &m->attention.norm);
    layer_release(dev, &m->attention.q);
    layer_release(dev, &m->attention.k);
    layer_release(dev, &m->attention.v);
    layer_release(dev, &m->attention.out);
}

static void level_release(struct vae_level *l, struct device *dev)
{
    for (int i = 0; i < l->n; i++)
        resnet_release(&l->resnet[i], dev);
    layer_release(dev, &l->sampler);
    free(l->resnet);
}

void vae_close(struct vae *v)
{
    if (!v)
        return;
    struct layer *single[] = {&v->enc_in,     &v->enc_out, &v->quant,
                              &v->post_quant, &v->dec_in,  &v->dec_out};
    for (size_t i = 0; i < sizeof single / sizeof *single; i++)
        layer_release(v->dev, single[i]);
    norm_release(v->dev, &v->enc_norm);
    norm_release(v->dev, &v->dec_norm);
    for (int i = 0; i < VAE_MAX_LEVELS; i++) {
        level_release(&v->down[i], v->dev);
        level_release(&v->up[i], v->dev);
    }
    middle_release(&v->enc_mid, v->dev);
    middle_release(&v->dec_mid, v->dev);
    weights_close(v->weights);
    free(v);
}
