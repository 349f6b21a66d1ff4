#include "clip.h"

#include "config.h"

#include <stdlib.h>
#include <string.h>

static const char *const harmless[] = {"architectures",
                                       "model_type",
                                       "torch_dtype",
                                       "dtype",
                                       "transformers_version",
                                       "dropout",
                                       "attention_dropout",
                                       "initializer_factor",
                                       "initializer_range",
                                       "projection_dim",
                                       "bos_token_id",
                                       "pad_token_id",
                                       "use_cache",
                                       "tie_word_embeddings",
                                       "return_dict",
                                       "output_attentions",
                                       "output_hidden_states",
                                       "gradient_checkpointing",
                                       "is_encoder_decoder",
                                       "chunk_size_feed_forward",
                                       "problem_type",
                                       "id2label",
                                       "label2id",
                                       NULL};

static int read_config(struct clip_text *c, struct config *cfg, struct err *err)
{
    const char *act = config_str(cfg, "hidden_act", "quick_gelu");

    config_ignore(cfg, harmless);
    c->vocab = config_int(cfg, "vocab_size", 49408);
    c->width = config_int(cfg, "hidden_size", 512);
    c->mlp = config_int(cfg, "intermediate_size", 2048);
    c->layers = config_int(cfg, "num_hidden_layers", 12);
    c->heads = config_int(cfg, "num_attention_heads", 8);
    c->positions = config_int(cfg, "max_position_embeddings", 77);
    c->eos = config_int(cfg, "eos_token_id", 49407);
    if (config_num(cfg, "layer_norm_eps", 1e-5) != 1e-5)
        config_fail(cfg, "layer_norm_eps is not 1e-5");
    if (!strcmp(act, "quick_gelu"))
        c->act = ACT_QUICK_GELU;
    else if (!strcmp(act, "gelu"))
        c->act = ACT_GELU;
    else
        config_fail(cfg, "hidden_act is \"%.40s\"; weft does quick_gelu and gelu", act);
    if (c->vocab < 1 || c->width < 1 || c->mlp < 1 || c->layers < 1 || c->layers > 1000 ||
        c->heads < 1 || c->width % c->heads || c->positions < 3)
        config_fail(cfg, "its sizes do not make a text tower");
    return config_done(cfg, err);
}

static void load_block(struct clip_block *b, struct loader *ld, int width, int mlp)
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

static int load(struct clip_text *c, struct sites *sites, struct err *err)
{
    static const char *const unused[] = {"position_ids", "text_projection.weight", NULL};
    struct loader ld = {
        .dev = c->dev, .weights = c->weights, .sites = sites, .part = COMPONENT_TEXT};
    uint64_t token[2] = {(uint64_t)c->vocab, (uint64_t)c->width};
    uint64_t position[2] = {(uint64_t)c->positions, (uint64_t)c->width};

    c->block = calloc((size_t)c->layers, sizeof *c->block);
    if (!c->block)
        return err_nomem(err, (size_t)c->layers * sizeof *c->block);
    /* transformers 5 writes names without "text_model.", which stays in the sites' names */
    if (loader_has(&ld, "embeddings.token_embedding.weight"))
        ld.hidden = "text_model.";
    loader_enter(&ld, "text_model");
    loader_array(&ld, &c->token, "embeddings.token_embedding.weight", 2, token);
    loader_array(&ld, &c->position, "embeddings.position_embedding.weight", 2, position);
    for (int i = 0; i < c->layers; i++) {
        loader_enter(&ld, "encoder.layers.%d", i);
        load_block(&c->block[i], &ld, c->width, c->mlp);
        loader_leave(&ld);
    }
    loader_norm(&ld, &c->final, "final_layer_norm", c->width, 0, 1e-5f);
    loader_leave(&ld);
    return loader_done(&ld, unused, err);
}

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
        rc = read_config(c, from->config, err);
        rc = rc < 0 ? rc : load(c, sites, err);
    }
    source_close(from);
    if (rc < 0) {
        clip_text_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

void clip_text_close(struct clip_text *c)
{
    if (!c)
        return;
    for (int i = 0; c->block && i < c->layers; i++) {
        struct clip_block *b = &c->block[i];
        norm_release(c->dev, &b->norm1);
        norm_release(c->dev, &b->norm2);
        layer_release(c->dev, &b->q);
        layer_release(c->dev, &b->k);
        layer_release(c->dev, &b->v);
        layer_release(c->dev, &b->out);
        layer_release(c->dev, &b->fc1);
        layer_release(c->dev, &b->fc2);
    }
    norm_release(c->dev, &c->final);
    free(c->block);
    weights_close(c->weights);
    free(c);
}

/* Row i of a stored matrix as a view. */
static struct array matrix_row(const struct array *a, int i)
{
    struct array v = *a;
    v.ndim = 1;
    v.dim[0] = a->dim[1];
    v.data = (const char *)a->data + (size_t)i * a->dim[1] * dtype_bits(a->dtype) / 8;
    return v;
}

/* to[] += or = row i of a table; its values must be finite. */
static int take_row(float *to, float *tmp, const struct array *table, int i, bool add,
                    struct err *err)
{
    struct array row = matrix_row(table, i);
    int rc = array_to_finite(&row, add ? tmp : to, "text_encoder embeddings", err);
    for (size_t k = 0; add && rc == 0 && k < row.dim[0]; k++)
        to[k] += tmp[k];
    return rc;
}

/* Token plus position embeddings of all rows, into host. */
static int embed_rows(const struct clip_text *c, float *host, float *tmp, const int32_t *ids, int n,
                      int len, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < n * len && rc == 0; i++) {
        float *to = host + (size_t)i * (size_t)c->width;
        if (ids[i] < 0 || ids[i] >= c->vocab)
            return err_set(err, ERR_MISMATCH,
                           "token %d is not in the text encoder's vocabulary of %d: tokenizer and "
                           "text encoder do not belong together",
                           (int)ids[i], c->vocab);
        rc = take_row(to, tmp, &c->token, ids[i], false, err);
        rc = rc < 0 ? rc : take_row(to, tmp, &c->position, i % len, true, err);
    }
    return rc;
}

static struct tensor embed(const struct clip_text *c, struct run *r, const int32_t *ids, int n,
                           int len)
{
    struct tensor x = run_tensor(r, n, len, 1, c->width);
    size_t count = tensor_count(&x);
    if (r->measuring || r->err.code)
        return x;
    float *host = malloc((count + (size_t)c->width) * sizeof *host);
    if (!host)
        err_nomem(&r->err, count * sizeof *host);
    else if (embed_rows(c, host, host + count, ids, n, len, &r->err) == 0)
        op_upload(r, &x, host);
    free(host);
    return x;
}

static void block_forward(const struct clip_text *c, const struct clip_block *b, struct run *r,
                          struct tensor *x)
{
    const struct attention how = {.heads = c->heads, .causal = true};
    unsigned mark = run_mark(r);
    struct tensor h = run_like(r, x), q = run_like(r, x), k = run_like(r, x), v = run_like(r, x);

    op_layer_norm(r, &h, &b->norm1, x);
    op_layer(r, &q, &b->q, &h, false);
    op_layer(r, &k, &b->k, &h, false);
    op_layer(r, &v, &b->v, &h, false);
    op_attention(r, &h, &q, &k, &v, &how);
    op_layer(r, x, &b->out, &h, true);
    run_pop(r, mark);

    h = run_like(r, x);
    struct tensor m = run_tensor(r, x->n, x->h, x->w, c->mlp);
    op_layer_norm(r, &h, &b->norm2, x);
    op_layer(r, &m, &b->fc1, &h, false);
    op_activate(r, &m, &m, c->act);
    op_layer(r, x, &b->fc2, &m, true);
    run_pop(r, mark);
}

struct tensor clip_text_forward(const struct clip_text *c, struct run *r, const int32_t *ids, int n,
                                int len, int skip)
{
    struct tensor x = embed(c, r, ids, n, len);
    for (int i = 0; i < c->layers - skip; i++)
        block_forward(c, &c->block[i], r, &x);
    struct tensor y = run_like(r, &x);
    op_layer_norm(r, &y, &c->final, &x);
    return y;
}

int clip_text_end(const struct clip_text *c, const int32_t *ids, int len)
{
    int best = 0;
    for (int i = 0; i < len; i++) {
        if (c->eos == 2 ? ids[i] > ids[best] : ids[i] == c->eos) {
            best = i;
            if (c->eos != 2)
                break;
        }
    }
    return best;
}
