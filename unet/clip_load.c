/* Building CLIP's towers from config and weights; clip.c runs them. */
#include "clip.h"

#include "config.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Keys of transformers' configs that say nothing about these towers. */
static const char *const harmless[] = {"architectures",
                                       "model_type",
                                       "torch_dtype",
                                       "dtype",
                                       "transformers_version",
                                       "dropout",
                                       "attention_dropout",
                                       "initializer_factor",
                                       "initializer_range",
                                       "logit_scale_init_value",
                                       "bos_token_id",
                                       "pad_token_id",
                                       "use_cache",
                                       "tie_word_embeddings",
                                       "return_dict",
                                       "chunk_size_feed_forward",
                                       "id2label",
                                       "label2id",
                                       "text_config_dict",
                                       "vision_config_dict",
                                       "length_penalty",
                                       "max_length",
                                       "min_length",
                                       "num_beams",
                                       "num_beam_groups",
                                       "num_return_sequences",
                                       "repetition_penalty",
                                       "diversity_penalty",
                                       "temperature",
                                       "top_k",
                                       "top_p",
                                       "typical_p",
                                       "no_repeat_ngram_size",
                                       "encoder_no_repeat_ngram_size",
                                       "pruned_heads",
                                       NULL};

void clip_tower_read(struct clip_tower *t, struct config *c, int heads)
{
    const char *act = config_str(c, "hidden_act", "quick_gelu");

    config_ignore(c, harmless);
    t->width = config_int(c, "hidden_size", heads == 8 ? 512 : 768);
    t->mlp = config_int(c, "intermediate_size", 4 * t->width);
    t->layers = config_int(c, "num_hidden_layers", 12);
    t->heads = config_int(c, "num_attention_heads", heads);
    if (config_num(c, "layer_norm_eps", 1e-5) != 1e-5)
        config_fail(c, "layer_norm_eps is not 1e-5");
    if (!strcmp(act, "quick_gelu"))
        t->act = ACT_QUICK_GELU;
    else if (!strcmp(act, "gelu"))
        t->act = ACT_GELU;
    else
        config_fail(c, "hidden_act is \"%.40s\"; weft does quick_gelu and gelu", act);
    if (t->width < 1 || t->width > 65536 || t->mlp < 1 || t->mlp > 1 << 20 || t->layers < 1 ||
        t->layers > 1000 || t->heads < 1 || t->width % t->heads)
        config_fail(c, "its sizes do not make a transformer");
}

static void read_text(struct clip_text *t, struct config *c)
{
    clip_tower_read(&t->tower, c, 8);
    config_int(c, "projection_dim", 512);
    t->vocab = config_int(c, "vocab_size", 49408);
    t->positions = config_int(c, "max_position_embeddings", 77);
    t->eos = config_int(c, "eos_token_id", 49407);
    if (t->vocab < 1 || t->positions < 3)
        config_fail(c, "its sizes do not make a text tower");
}

static void read_vision(struct clip_vision *v, struct config *c)
{
    clip_tower_read(&v->tower, c, 12);
    config_int(c, "projection_dim", 512);
    config_expect(c, "num_channels", "3");
    v->side = config_int(c, "image_size", 224);
    v->patch = config_int(c, "patch_size", 32);
    if (v->patch < 1 || v->side < v->patch || v->side > 4096 || v->side % v->patch)
        config_fail(c, "image_size %d is no multiple of patch_size %d", v->side, v->patch);
}

/* ---- layers ---------------------------------------------------------------------------------- */

static void block_load(struct clip_block *b, struct loader *ld, int width, int mlp)
{
    loader_linear(ld, &b->q, "self_attn.q_proj", width, width, true);
    loader_linear(ld, &b->k, "self_attn.k_proj", width, width, true);
    loader_linear(ld, &b->v, "self_attn.v_proj", width, width, true);
    loader_linear(ld, &b->out, "self_attn.out_proj", width, width, true);
    loader_norm(ld, &b->norm1, "layer_norm1", width, 0, 1e-5f);
    loader_linear(ld, &b->fc1, "mlp.fc1", width, mlp, true);
    loader_linear(ld, &b->fc2, "mlp.fc2", mlp, width, true);
    loader_norm(ld, &b->norm2, "layer_norm2", width, 0, 1e-5f);
}

void clip_tower_load(struct clip_tower *t, struct loader *ld)
{
    t->block = calloc((size_t)t->layers, sizeof *t->block);
    if (!t->block) {
        loader_fail(ld, ERR_NOMEM, "out of memory for CLIP's blocks");
        return;
    }
    for (int i = 0; i < t->layers; i++) {
        loader_enter(ld, "encoder.layers.%d", i);
        block_load(&t->block[i], ld, t->width, t->mlp);
        loader_leave(ld);
    }
}

static void text_load(struct clip_text *c, struct loader *ld)
{
    uint64_t token[2] = {(uint64_t)c->vocab, (uint64_t)c->tower.width};
    uint64_t position[2] = {(uint64_t)c->positions, (uint64_t)c->tower.width};

    loader_enter(ld, "text_model");
    loader_array(ld, &c->token, "embeddings.token_embedding.weight", 2, token);
    loader_array(ld, &c->position, "embeddings.position_embedding.weight", 2, position);
    clip_tower_load(&c->tower, ld);
    loader_norm(ld, &c->final, "final_layer_norm", c->tower.width, 0, 1e-5f);
    loader_leave(ld);
}

static void vision_load(struct clip_vision *v, struct loader *ld)
{
    uint64_t w = (uint64_t)v->tower.width, side = (uint64_t)(v->side / v->patch);
    uint64_t token[1] = {w}, position[2] = {side * side + 1, w};

    loader_enter(ld, "vision_model");
    loader_array(ld, &v->token, "embeddings.class_embedding", 1, token);
    loader_array(ld, &v->position, "embeddings.position_embedding.weight", 2, position);
    loader_patches(ld, &v->embed, "embeddings.patch_embedding", 3, v->tower.width, v->patch);
    loader_norm(ld, &v->pre, "pre_layrnorm", v->tower.width, 0, 1e-5f); /* so spelt */
    clip_tower_load(&v->tower, ld);
    loader_norm(ld, &v->post, "post_layernorm", v->tower.width, 0, 1e-5f);
    loader_leave(ld);
}

/* ---- opening --------------------------------------------------------------------------------- */

static const char *const unused[] = {"position_ids", "text_projection.weight", NULL};

int clip_text_open(struct clip_text **out, struct device *dev, struct source *from,
                   struct sites *sites, struct err *err)
{
    struct clip_text *c = calloc(1, sizeof *c);
    int rc = c ? 0 : err_nomem(err, sizeof *c);

    *out = NULL;
    if (rc == 0) {
        c->dev = dev;
        c->weights = from->weights;
        from->weights = NULL;
        read_text(c, from->config);
        rc = config_done(from->config, err);
    }
    if (rc == 0) {
        struct loader ld = {
            .dev = dev, .weights = c->weights, .sites = sites, .part = COMPONENT_TEXT};
        /* transformers 5 writes names without "text_model.", which stays in the sites' names */
        if (loader_has(&ld, "embeddings.token_embedding.weight"))
            ld.hidden = "text_model.";
        text_load(c, &ld);
        rc = loader_done(&ld, unused, err);
    }
    source_close(from);
    if (rc < 0) {
        clip_text_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

static int read_config(struct clip *c, struct config *cfg, struct err *err)
{
    struct config *text = NULL, *vision = NULL;
    int rc = config_sub(&text, cfg, "text_config", err);
    rc = rc < 0 ? rc : config_sub(&vision, cfg, "vision_config", err);
    if (rc == 0) {
        read_text(&c->text, text);
        read_vision(&c->vision, vision);
        config_ignore(cfg, harmless);
        c->dim = config_int(cfg, "projection_dim", 512);
        if (c->dim < 1 || c->dim > 65536)
            config_fail(cfg, "projection_dim is %d", c->dim);
        rc = config_done(text, err);
    }
    rc = rc < 0 ? rc : config_done(vision, err);
    rc = rc < 0 ? rc : config_done(cfg, err);
    config_close(text);
    config_close(vision);
    return rc;
}

int clip_open(struct clip **out, struct device *dev, struct source *from, struct sites *sites,
              struct err *err)
{
    static const char *const none[] = {"position_ids", NULL};
    const uint64_t scalar[1] = {0}; /* no dims */
    struct clip *c = calloc(1, sizeof *c);
    struct array scale = {0};
    int rc = c ? 0 : err_nomem(err, sizeof *c);

    *out = NULL;
    if (rc == 0) {
        c->dev = c->text.dev = dev;
        c->weights = from->weights;
        from->weights = NULL;
        rc = read_config(c, from->config, err);
    }
    if (rc == 0) {
        struct loader ld = {
            .dev = dev, .weights = c->weights, .sites = sites, .part = COMPONENT_TEXT};
        text_load(&c->text, &ld);
        loader_linear(&ld, &c->text_projection, "text_projection", c->text.tower.width, c->dim,
                      false);
        vision_load(&c->vision, &ld);
        loader_linear(&ld, &c->visual_projection, "visual_projection", c->vision.tower.width,
                      c->dim, false);
        loader_array(&ld, &scale, "logit_scale", 0, scalar);
        rc = loader_done(&ld, none, err);
    }
    if (rc == 0) {
        float s = 0;
        rc = array_to_finite(&scale, &s, "logit_scale", err);
        c->scale = exp(s);
    }
    source_close(from);
    if (rc < 0) {
        clip_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

/* ---- release --------------------------------------------------------------------------------- */

void clip_tower_release(struct clip_tower *t, struct device *dev)
{
    for (int i = 0; t->block && i < t->layers; i++) {
        struct clip_block *b = &t->block[i];
        norm_release(dev, &b->norm1);
        norm_release(dev, &b->norm2);
        layer_release(dev, &b->q);
        layer_release(dev, &b->k);
        layer_release(dev, &b->v);
        layer_release(dev, &b->out);
        layer_release(dev, &b->fc1);
        layer_release(dev, &b->fc2);
    }
    free(t->block);
    t->block = NULL;
}

void clip_text_close(struct clip_text *c)
{
    if (!c)
        return;
    clip_tower_release(&c->tower, c->dev);
    norm_release(c->dev, &c->final);
    weights_close(c->weights);
    free(c);
}

void clip_close(struct clip *c)
{
    if (!c)
        return;
    clip_tower_release(&c->text.tower, c->dev);
    norm_release(c->dev, &c->text.final);
    clip_tower_release(&c->vision.tower, c->dev);
    norm_release(c->dev, &c->vision.pre);
    norm_release(c->dev, &c->vision.post);
    layer_release(c->dev, &c->vision.embed);
    layer_release(c->dev, &c->text_projection);
    layer_release(c->dev, &c->visual_projection);
    weights_close(c->weights);
    free(c);
}
