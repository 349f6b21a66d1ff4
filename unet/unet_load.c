/* Building a UNet from its config and weights; unet.c runs it. */
#include "unet.h"

#include "config.h"

#include <stdlib.h>
#include <string.h>

/* ---- config ---------------------------------------------------------------------------------- */

static const char *const harmless[] = {
    "dropout", /* off when not training */ "upcast_attention", /* it is float32 anyway */
    "reverse_transformer_layers_per_block", "attention_type_num_heads", NULL};

/* Keys that other models use to change the computation, and the only value that is done here. */
static const char *const only[][2] = {
    {"act_fn", "silu"},
    {"center_input_sample", "false"},
    {"mid_block_scale_factor", "1"},
    {"mid_block_type", "UNetMidBlock2DCrossAttn"},
    {"only_cross_attention", "false"},
    {"mid_block_only_cross_attention", "false"},
    {"dual_cross_attention", "false"},
    {"resnet_time_scale_shift", "default"},
    {"resnet_skip_time_act", "false"},
    {"resnet_out_scale_factor", "1"},
    {"time_embedding_type", "positional"},
    {"conv_in_kernel", "3"},
    {"conv_out_kernel", "3"},
    {"attention_type", "default"},
    {"class_embeddings_concat", "false"},
    {"addition_embed_type_num_heads", "64"},
};

static void block_types(struct config *c, const char *key, const char *attends, const char *plain,
                        int levels, bool *out)
{
    const char *name[UNET_MAX_LEVELS];
    int n = config_strs(c, key, name, UNET_MAX_LEVELS);
    if (n != levels)
        config_fail(c, "%s lists %d blocks where block_out_channels lists %d", key, n, levels);
    for (int i = 0; i < n && i < levels; i++) {
        out[i] = !strcmp(name[i], attends);
        if (!out[i] && strcmp(name[i], plain))
            config_fail(c, "%s has a \"%.60s\"; weft does %s and %s", key, name[i], attends, plain);
    }
}

static void check_sizes(const struct unet *u, struct config *c)
{
    int n = u->levels;
    bool good = n >= 1 && u->sample_size >= 1 && u->sample_size <= 4096 && u->in_channels >= 1 &&
                u->out_channels >= 1 && u->text_width >= 1 && u->groups >= 1 &&
                u->time_width >= 1 && u->width[0] <= UNET_MAX_WAVES;
    for (int i = 0; i < n; i++)
        good =
            good && u->width[i] >= 1 && u->width[i] <= 65536 && u->layers[i] >= 1 &&
            u->layers[i] <= 16 && u->blocks[i] >= 1 && u->blocks[i] <= 64 && u->heads[i] >= 1 &&
            u->width[i] % u->groups == 0 &&
            (u->width[i] % u->heads[i] == 0 || !(u->down_attends[i] || u->up_attends[n - 1 - i]));
    if (good && u->width[n - 1] % u->heads[n - 1])
        good = false;
    if (!good)
        config_fail(c, "its sizes do not make a UNet: every width must divide by its heads and by "
                       "norm_num_groups");
}

static int read_config(struct unet *u, struct config *c, struct err *err)
{
    int n = config_ints(c, "block_out_channels", 0, u->width, UNET_MAX_LEVELS);
    for (int i = 0; i < n; i++) /* before anything is computed from them */
        if (u->width[i] < 1 || u->width[i] > 65536) {
            config_fail(c, "block_out_channels holds %d", u->width[i]);
            u->width[i] = 1;
        }

    config_ignore(c, harmless);
    for (size_t i = 0; i < sizeof only / sizeof *only; i++)
        config_expect(c, only[i][0], only[i][1]);
    if (config_is_null(c, "mid_block_type")) /* which here does not mean the default */
        config_fail(c,
                    "mid_block_type is null: no middle block; weft does UNetMidBlock2DCrossAttn");
    u->levels = n;
    u->in_channels = config_int(c, "in_channels", 4);
    u->out_channels = config_int(c, "out_channels", 4);
    u->sample_size = config_int(c, "sample_size", 64);
    u->text_width = config_int(c, "cross_attention_dim", 1280);
    u->groups = config_int(c, "norm_num_groups", 32);
    u->eps = (float)config_num(c, "norm_eps", 1e-5);
    u->flip_sin_to_cos = config_bool(c, "flip_sin_to_cos", true);
    u->freq_shift = config_num(c, "freq_shift", 0);
    u->linear_projection = config_bool(c, "use_linear_projection", false);
    u->downsample_padding = config_int(c, "downsample_padding", 1);
    u->time_width = config_int(c, "time_embedding_dim", n ? 4 * u->width[0] : 0);
    if (u->downsample_padding != 0 && u->downsample_padding != 1)
        config_fail(c, "downsample_padding is %d; weft does 0 and 1", u->downsample_padding);
    /* diffusers calls the number of heads attention_head_dim; num_attention_heads wins if given */
    const char *heads =
        config_has(c, "num_attention_heads") ? "num_attention_heads" : "attention_head_dim";
    int dim[UNET_MAX_LEVELS];
    if (config_ints(c, "attention_head_dim", n, dim, UNET_MAX_LEVELS) == 0)
        for (int i = 0; i < n; i++)
            dim[i] = 8;
    memcpy(u->heads, dim, sizeof dim);
    if (!strcmp(heads, "num_attention_heads"))
        config_ints(c, heads, n, u->heads, UNET_MAX_LEVELS);
    for (int i = 0; i < n; i++)
        u->layers[i] = 2, u->blocks[i] = 1;
    config_ints(c, "layers_per_block", n, u->layers, UNET_MAX_LEVELS);
    config_ints(c, "transformer_layers_per_block", n, u->blocks, UNET_MAX_LEVELS);
    block_types(c, "down_block_types", "CrossAttnDownBlock2D", "DownBlock2D", n, u->down_attends);
    block_types(c, "up_block_types", "CrossAttnUpBlock2D", "UpBlock2D", n, u->up_attends);
    check_sizes(u, c);
    return config_done(c, err);
}

/* ---- layers ---------------------------------------------------------------------------------- */

static void attention_load(struct unet_attention *a, struct loader *ld, int width, int from,
                           int heads)
{
    a->heads = heads;
    loader_linear(ld, &a->q, "to_q", width, width, false);
    loader_linear(ld, &a->k, "to_k", from, width, false);
    loader_linear(ld, &a->v, "to_v", from, width, false);
    loader_linear(ld, &a->out, "to_out.0", width, width, true);
}

static void block_load(struct unet_block *b, struct loader *ld, int width, int text, int heads)
{
    loader_norm(ld, &b->norm1, "norm1", width, 0, 1e-5f);
    loader_enter(ld, "attn1");
    attention_load(&b->attn1, ld, width, width, heads);
    loader_leave(ld);
    loader_norm(ld, &b->norm2, "norm2", width, 0, 1e-5f);
    loader_enter(ld, "attn2");
    attention_load(&b->attn2, ld, width, text, heads);
    b->attn2.k.placeless = b->attn2.v.placeless = true;
    loader_leave(ld);
    loader_norm(ld, &b->norm3, "norm3", width, 0, 1e-5f);
    loader_linear(ld, &b->ff_in, "ff.net.0.proj", width, 8 * width, true);
    loader_linear(ld, &b->ff_out, "ff.net.2", 4 * width, width, true);
}

/* proj_in or proj_out: linear, or a 1x1 convolution in older models. */
static void projection_load(struct layer *l, struct loader *ld, const struct unet *u,
                            const char *name, int width)
{
    if (u->linear_projection)
        loader_linear(ld, l, name, width, width, true);
    else
        loader_conv(ld, l, name, width, width, 1, 1);
}

static void transformer_load(struct unet_transformer *t, struct loader *ld, struct unet *u,
                             int level)
{
    int width = u->width[level];

    t->block = calloc((size_t)u->blocks[level], sizeof *t->block);
    if (!t->block) {
        loader_fail(ld, ERR_NOMEM, "out of memory for the UNet's attention");
        return;
    }
    t->n_block = u->blocks[level];
    loader_norm(ld, &t->norm, "norm", width, u->groups, 1e-6f);
    projection_load(&t->in, ld, u, "proj_in", width);
    for (int i = 0; i < t->n_block; i++) {
        loader_enter(ld, "transformer_blocks.%d", i);
        block_load(&t->block[i], ld, width, u->text_width, u->heads[level]);
        t->block[i].cross = u->n_cross++;
        loader_leave(ld);
    }
    projection_load(&t->out, ld, u, "proj_out", width);
}

/* resnets.j and, where the level attends, attentions.j. */
static void pair_load(struct unet_level *l, struct loader *ld, struct unet *u, int j, int in,
                      int level)
{
    loader_enter(ld, "resnets.%d", j);
    resnet_load(&l->resnet[j], ld, in, u->width[level], u->time_width, u->groups, u->eps);
    loader_leave(ld);
    if (!l->transformer)
        return;
    loader_enter(ld, "attentions.%d", j);
    transformer_load(&l->transformer[j], ld, u, level);
    loader_leave(ld);
}

/* Room for n resnets, and as many transformers when the level attends. */
static int level_room(struct unet_level *l, struct loader *ld, int n, bool attends)
{
    l->resnet = calloc((size_t)n, sizeof *l->resnet);
    if (attends)
        l->transformer = calloc((size_t)n, sizeof *l->transformer);
    if (!l->resnet || (attends && !l->transformer)) {
        loader_fail(ld, ERR_NOMEM, "out of memory for the UNet's levels");
        return -1;
    }
    l->n = n;
    return 0;
}

static void down_load(struct unet *u, struct loader *ld, int i)
{
    struct unet_level *l = &u->down[i];

    if (level_room(l, ld, u->layers[i], u->down_attends[i]) < 0)
        return;
    for (int j = 0; j < l->n; j++)
        pair_load(l, ld, u, j, u->width[j || !i ? i : i - 1], i);
    if (i == u->levels - 1)
        return;
    loader_conv(ld, &l->sampler, "downsamplers.0.conv", u->width[i], u->width[i], 3, 2);
    if (u->downsample_padding == 0)
        l->sampler.pad[0] = l->sampler.pad[1] = 0; /* and one on the right and below */
}

/* skips: widths of what the way down left, n of them; the last are taken first. */
static void up_load(struct unet *u, struct loader *ld, int i, const int *skips, int *n)
{
    struct unet_level *l = &u->up[i];
    int level = u->levels - 1 - i, width = u->width[level];

    if (level_room(l, ld, u->layers[level] + 1, u->up_attends[i]) < 0)
        return;
    for (int j = 0; j < l->n; j++)
        pair_load(l, ld, u, j, u->width[j || !i ? level : level + 1] + skips[--*n], level);
    if (i < u->levels - 1)
        loader_conv(ld, &l->sampler, "upsamplers.0.conv", width, width, 3, 1);
}

static void middle_load(struct unet *u, struct loader *ld)
{
    int last = u->levels - 1, width = u->width[last];
    loader_enter(ld, "mid_block");
    for (int i = 0; i < 2; i++) {
        loader_enter(ld, "resnets.%d", i);
        resnet_load(&u->mid_resnet[i], ld, width, width, u->time_width, u->groups, u->eps);
        loader_leave(ld);
    }
    loader_enter(ld, "attentions.0");
    transformer_load(&u->mid_transformer, ld, u, last);
    loader_leave(ld);
    loader_leave(ld);
}

static int load(struct unet *u, struct sites *sites, struct err *err)
{
    struct loader ld = {
        .dev = u->dev, .weights = u->weights, .sites = sites, .part = COMPONENT_UNET};
    int skips[UNET_MAX_LEVELS * 17 + 1], n = 0;

    loader_conv(&ld, &u->conv_in, "conv_in", u->in_channels, u->width[0], 3, 1);
    loader_linear(&ld, &u->time1, "time_embedding.linear_1", u->width[0], u->time_width, true);
    loader_linear(&ld, &u->time2, "time_embedding.linear_2", u->time_width, u->time_width, true);
    u->time1.placeless = u->time2.placeless = true;
    skips[n++] = u->width[0];
    for (int i = 0; i < u->levels; i++) {
        loader_enter(&ld, "down_blocks.%d", i);
        down_load(u, &ld, i);
        loader_leave(&ld);
        for (int j = 0; j < u->layers[i] + (i < u->levels - 1); j++)
            skips[n++] = u->width[i];
    }
    middle_load(u, &ld);
    u->up_cross = u->n_cross;
    for (int i = 0; i < u->levels; i++) {
        loader_enter(&ld, "up_blocks.%d", i);
        up_load(u, &ld, i, skips, &n);
        loader_leave(&ld);
    }
    loader_norm(&ld, &u->norm_out, "conv_norm_out", u->width[0], u->groups, u->eps);
    loader_conv(&ld, &u->conv_out, "conv_out", u->width[0], u->out_channels, 3, 1);
    return loader_done(&ld, NULL, err);
}

int unet_open(struct unet **out, struct device *dev, struct source *from, struct sites *sites,
              struct err *err)
{
    struct unet *u = calloc(1, sizeof *u);
    int rc = u ? 0 : err_nomem(err, sizeof *u);

    *out = NULL;
    if (rc == 0) {
        u->dev = dev;
        u->weights = from->weights;
        from->weights = NULL;
        rc = read_config(u, from->config, err);
        rc = rc < 0 ? rc : load(u, sites, err);
    }
    source_close(from);
    if (rc < 0) {
        unet_close(u);
        return rc;
    }
    *out = u;
    return 0;
}

/* ---- release --------------------------------------------------------------------------------- */

static void attention_release(struct unet_attention *a, struct device *dev)
{
    layer_release(dev, &a->q);
    layer_release(dev, &a->k);
    layer_release(dev, &a->v);
    layer_release(dev, &a->out);
}

static void transformer_release(struct unet_transformer *t, struct device *dev)
{
    norm_release(dev, &t->norm);
    layer_release(dev, &t->in);
    layer_release(dev, &t->out);
    for (int i = 0; i < t->n_block; i++) {
        struct unet_block *b = &t->block[i];
        norm_release(dev, &b->norm1);
        norm_release(dev, &b->norm2);
        norm_release(dev, &b->norm3);
        attention_release(&b->attn1, dev);
        attention_release(&b->attn2, dev);
        layer_release(dev, &b->ff_in);
        layer_release(dev, &b->ff_out);
    }
    free(t->block);
}

static void level_release(struct unet_level *l, struct device *dev)
{
    for (int i = 0; i < l->n; i++) {
        resnet_release(&l->resnet[i], dev);
        if (l->transformer)
            transformer_release(&l->transformer[i], dev);
    }
    layer_release(dev, &l->sampler);
    free(l->resnet);
    free(l->transformer);
}

void unet_close(struct unet *u)
{
    if (!u)
        return;
    layer_release(u->dev, &u->conv_in);
    layer_release(u->dev, &u->conv_out);
    layer_release(u->dev, &u->time1);
    layer_release(u->dev, &u->time2);
    norm_release(u->dev, &u->norm_out);
    for (int i = 0; i < UNET_MAX_LEVELS; i++) {
        level_release(&u->down[i], u->dev);
        level_release(&u->up[i], u->dev);
    }
    resnet_release(&u->mid_resnet[0], u->dev);
    resnet_release(&u->mid_resnet[1], u->dev);
    transformer_release(&u->mid_transformer, u->dev);
    weights_close(u->weights);
    free(u);
}
