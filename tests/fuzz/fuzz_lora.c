/* Fuzzes the adapter importers and the reading of site names. The first byte chooses: the rest is a
 * name; or a recipe for a file of nearly right keys, shapes and metadata. */
#include "store/adapter.h"
#include "store/site_name.h"
#include "unet/matrices.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const fronts[] = {
    "lora_unet_", "lora_te_", "unet.", "text_encoder.", "base_model.model.", "", "text_model.",
};
static const char *const middles[] = {
    "mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
    "mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out",
    "down_blocks_0_resnets_0_conv_shortcut",
    "up_blocks.1.resnets.0.conv1",
    "text_model_encoder_layers_0_self_attn_q_proj",
    "encoder.layers.1.self_attn.to_q",
    "conv_in",
    "__",
    "input_blocks_4_1_transformer_blocks_0_attn1_to_k",
    "output_blocks.2.1.conv",
    "middle_block_0_in_layers_2",
};
static const char *const ends[] = {
    ".lora_down.weight",
    ".lora_up.weight",
    ".alpha",
    ".lora_A.weight",
    ".lora_B.weight",
    ".lora_A.default.weight",
    ".lora_B.default.weight",
    ".lora.down.weight",
    ".lora.up.weight",
    "_lora.down.weight",
    "_lora.up.weight",
    ".lora_linear_layer.down.weight",
    ".hada_w1_a",
    ".hada_w1_b",
    ".hada_w2_a",
    ".hada_w2_b",
    ".hada_t1",
    ".hada_t2",
    ".lokr_w1",
    ".lokr_w1_a",
    ".lokr_w1_b",
    ".lokr_w2",
    ".lokr_w2_a",
    ".lokr_w2_b",
    ".lokr_t2",
    ".lora_mid.weight",
    ".lora_B.bias",
    ".lora_magnitude_vector",
    ".diff",
    ".diff_b",
    ".w_norm",
    ".b_norm",
    ".on_input",
    ".ia3_l",
    ".a1.weight",
    ".a2.weight",
    ".b1.weight",
    ".b2.weight",
    ".oft_blocks",
    ".oft_diag",
    ".rescale",
    ".oft_R.weight",
    ".boft_R",
    ".boft_s",
    ".shira_weight",
    ".shira_indices",
    ".scale",
    ".vera_lambda_b",
    ".dora_scale",
    ".weight",
};
static const char *const shapes[] = {"[]",        "[1]",   "[2,3]", "[3,2]",
                                     "[2,3,1,1]", "[0,3]", "[2]",   "[2,3,3,3]"};
static const unsigned counts[] = {1, 1, 6, 6, 6, 0, 2, 54};
static const char *const dtypes[] = {"F32", "F16", "BF16", "I64", "C64", "F8_E4M3"};
static const unsigned widths[] = {4, 2, 2, 8, 8, 1};
static const char *const metas[] = {
    "{\\\"unet.r\\\": 4, \\\"unet.lora_alpha\\\": 8}",
    "{\\\"unet.r\\\": 4, \\\"unet.alpha_pattern\\\": {\\\"to_q\\\": 2, \\\"(a+)+$\\\": 3}}",
    "{\\\"unet.use_rslora\\\": true}",
    "{\\\"unet.use_dora\\\": true}",
    "{\\\"text_encoder.init_lora_weights\\\": \\\"pissa_niter_4\\\"}",
    "{\\\"unet.feedforward_modules\\\": [\\\"conv1\\\", 3], \\\"unet.r\\\": 0}",
    "{\\\"unet.feedforward_modules\\\": \\\".*to_[qk]\\\", \\\"unet.peft_type\\\": \\\"LOKR\\\"}",
    "{\\\"unet.lora_alpha\\\": \\\"x\\\"}",
    "{\\\"unet.alpha_pattern\\\": {\\\"(\\\": 1}}",
    "{\\\"unet.use_cayley_neumann\\\": true}",
    "[1]",
    "{",
};

#define PICK(list, byte) (list)[(byte) % (sizeof(list) / sizeof *(list))]

/* Whole families of a weight of 2 x 3, or of 2 x 3 x 3 x 3: what chance would hardly put together. */
static const struct member {
    const char *end, *shape;
    unsigned count;
} families[][7] = {
    {{".lora_down.weight", "[1,3]", 3}, {".lora_up.weight", "[2,1]", 2}, {".alpha", "[]", 1}},
    {{".lora_down.weight", "[1,3,3,3]", 27},
     {".lora_up.weight", "[2,1,1,1]", 2},
     {".dora_scale", "[2,1,1,1]", 2}},
    {{".lora_down.weight", "[2,3,1,1]", 6},
     {".lora_mid.weight", "[2,2,3,3]", 36},
     {".lora_up.weight", "[2,2,1,1]", 4},
     {".dora_scale", "[1,3,1,1]", 3}},
    {{".lora_A.weight", "[1,3]", 3},
     {".lora_B.weight", "[2,1]", 2},
     {".lora_magnitude_vector", "[2]", 2},
     {".lora_B.bias", "[2]", 2}},
    {{".hada_w1_a", "[2,1]", 2},
     {".hada_w1_b", "[1,3]", 3},
     {".hada_w2_a", "[2,2]", 4},
     {".hada_w2_b", "[2,3]", 6}},
    {{".hada_w1_a", "[2,2]", 4},
     {".hada_w1_b", "[2,3]", 6},
     {".hada_t1", "[2,2,3,3]", 36},
     {".hada_w2_a", "[1,2]", 2},
     {".hada_w2_b", "[1,3]", 3},
     {".hada_t2", "[1,1,3,3]", 9}},
    {{".lokr_w1", "[1,3]", 3}, {".lokr_w2_a", "[2,1]", 2}, {".lokr_w2_b", "[1,1]", 1}},
    {{".lokr_w1_a", "[2,1]", 2},
     {".lokr_w1_b", "[1,1]", 1},
     {".lokr_t2", "[1,1,3,3]", 9},
     {".lokr_w2_a", "[1,1]", 1},
     {".lokr_w2_b", "[1,3]", 3}},
    {{".lokr_w1", "[2,1]", 2}, {".lokr_w2", "[1,3,3,3]", 27}, {".scale", "[1]", 1}},
    {{".a1.weight", "[3,1]", 3},
     {".a2.weight", "[1,3]", 3},
     {".b1.weight", "[2,1]", 2},
     {".b2.weight", "[1,3]", 3}},
    {{".a1.weight", "[1,3]", 3},
     {".a2.weight", "[3,1]", 3},
     {".b1.weight", "[1,3]", 3},
     {".b2.weight", "[2,1]", 2}},
    {{".oft_blocks", "[1,2,2]", 4}, {".rescale", "[2,1]", 2}, {".alpha", "[]", 1}},
    {{".oft_blocks", "[1,1,2,2]", 4}},
    {{".oft_R.weight", "[1,3]", 3}},
    {{".boft_R", "[1,1,2,2]", 4}, {".boft_s", "[2,1]", 2}},
    {{".shira_weight", "[2]", 2}, {".shira_indices", "[2,2]", 4}},
    {{".weight", "[2]", 2}, {".on_input", "[]", 1}},
    {{".ia3_l", "[2,1]", 2}},
    {{".ia3_l", "[1,3,1,1]", 3}},
    {{".diff", "[2,3]", 6}, {".diff_b", "[2]", 2}},
    {{".w_norm", "[2]", 2}, {".b_norm", "[2]", 2}},
};
#define N_FAMILIES (sizeof families / sizeof *families)

/* A safetensors file in the making. */
struct pot {
    char *header;
    uint8_t *data;
    size_t at, used, tensors;
};

static void put(struct pot *c, const uint8_t *d, const char *end, unsigned type, const char *shape,
                unsigned count)
{
    size_t bytes = (size_t)count * widths[type];
    c->at +=
        (size_t)sprintf(c->header + c->at,
                        "%s\"%s%s%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                        c->tensors++ ? "," : "", PICK(fronts, d[0]), PICK(middles, d[1]), end,
                        dtypes[type], shape, c->used, c->used + bytes);
    for (size_t i = 0; i < bytes; i++) /* whole numbers are small ones */
        c->data[c->used + i] = type == 3 ? (i % 8 == 0 ? (uint8_t)(i / 8 % 3) : 0)
                                         : (uint8_t)(i * 7 + d[3] + (i % 4 == 3) * 60);
    c->used += bytes;
}

/* fault: a member that is left out, or has another shape. */
static void put_family(struct pot *c, const uint8_t *d)
{
    const struct member *m = families[d[2] % N_FAMILIES];
    unsigned type = d[3] / 8 % 3, fault = d[3] % 8, places = 3;
    for (unsigned k = 0; k < 7 && m[k].end; k++) {
        if (fault == k + 2 && d[3] & 64)
            continue;
        bool other = fault == k + 2;
        bool whole = strstr(m[k].end, "indices") != NULL;
        put(c, d, m[k].end, whole ? places : type, other ? "[2,3]" : m[k].shape,
            other ? 6 : m[k].count);
    }
}

/* Every four bytes are a tensor, or a family of them. */
static uint8_t *cook(const uint8_t *d, size_t n, size_t *size)
{
    struct pot c = {malloc(1400 * (n / 4 + 2)), malloc(1200 * (n / 4 + 1)), 0, 0, 0};
    c.at += (size_t)sprintf(c.header, "{");
    if (n && d[0] % 3 == 0)
        c.at += (size_t)sprintf(c.header + c.at,
                                "\"__metadata__\":{\"lora_adapter_metadata\":\"%s\"}%s",
                                PICK(metas, d[0] / 3), n >= 4 ? "," : "");
    for (size_t i = 0; i + 4 <= n; i += 4) {
        unsigned shape = d[i + 3] % 8;
        if (d[i + 2] >= 128)
            put_family(&c, d + i);
        else
            put(&c, d + i, PICK(ends, d[i + 2]), d[i + 3] / 8 % 6, shapes[shape], counts[shape]);
    }
    c.at += (size_t)sprintf(c.header + c.at, "}");
    *size = 8 + c.at + c.used;
    uint8_t *p = calloc(1, *size);
    for (size_t i = 0; i < 8; i++)
        p[i] = (uint8_t)((uint64_t)c.at >> 8 * i);
    memcpy(p + 8, c.header, c.at);
    memcpy(p + 8 + c.at, c.data, c.used);
    free(c.header);
    free(c.data);
    return p;
}

/* Against a weight of 2 x 3 and one of 2 x 3 x 3 x 3. */
static void check_bound(const struct delta *d)
{
    float w[54], out[54];
    for (int i = 0; i < 54; i++)
        w[i] = (float)(i % 7) - 3;
    for (int k = 1; k <= 3; k += 2) {
        struct layer l = {.name = "x", .site = -1, .out = 2, .in = 3, .kh = k, .kw = k};
        struct form f;
        l.w = (struct array){.dtype = DT_F32, .ndim = 4, .dim = {2, 3, k, k}, .data = w};
        l.b = (struct array){.dtype = DT_F32, .ndim = 1, .dim = {2}, .data = w};
        memset(out, 0, sizeof out);
        if (form_bind(&f, d, &l, NULL) == 0)
            form_add(&f, w, out, 0, 2, 0.5f, NULL);
        form_release(&f);
    }
}

static void check_list(const struct delta_list *l)
{
    struct matrices m;
    double kept;
    for (int i = 0; i < l->n; i++) {
        const struct delta *d = &l->item[i].d;
        assert(l->item[i].site && delta_rank(d) >= 0 && *delta_kind_name(d));
        check_bound(d);
    }
    if (matrices_load(&m, l, NULL) == 0) {
        assert(!(matrices_norm(&m) < 0));
        matrices_truncate(&m, 2, 0.9, &kept, NULL);
    }
    matrices_release(&m);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct tensor_file *st = NULL;
    struct delta_list list = {0};
    const struct adapter_format *format = NULL;
    const char *style = NULL;
    struct err err;
    if (size < 1)
        return 0;
    if (data[0] % 4 == 0) {
        char out[256], small[24];
        bool fits = site_name(small, sizeof small, (const char *)data + 1, size - 1);
        if (site_name(out, sizeof out, (const char *)data + 1, size - 1))
            assert(strchr(out, '.') && strlen(out) < sizeof out);
        else
            assert(!fits);
        return 0;
    }
    size_t n;
    uint8_t *file = cook(data + 1, size - 1, &n);
    if (tensor_file_parse(&st, file, n, &err) == 0) {
        if (adapter_import(st, "x.safetensors", &list, &format, &style, &err) == 0) {
            assert(format && style && list.n > 0);
            check_list(&list);
        } else {
            assert(err.code < 0 && *err.msg);
        }
    }
    delta_list_release(&list);
    tensor_file_close(st);
    free(file);
    return 0;
}
