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
    "[1]",
    "{",
};

#define PICK(list, byte) (list)[(byte) % (sizeof(list) / sizeof *(list))]

/* A file of one tensor for every four bytes. */
static uint8_t *cook(const uint8_t *d, size_t n, size_t *size)
{
    char *header = malloc(200 * (n / 4 + 2));
    size_t at = 0, data = 0, len = 0;
    at += (size_t)sprintf(header, "{");
    if (n && d[0] % 3 == 0)
        at += (size_t)sprintf(header + at, "\"__metadata__\":{\"lora_adapter_metadata\":\"%s\"}%s",
                              PICK(metas, d[0] / 3), n >= 4 ? "," : "");
    for (size_t i = 0; i + 4 <= n; i += 4) {
        unsigned type = d[i + 3] / 8 % 6, shape = d[i + 3] % 8;
        size_t bytes = (size_t)counts[shape] * widths[type];
        at += (size_t)sprintf(
            header + at, "%s\"%s%s%s\":{\"dtype\":\"%s\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
            i ? "," : "", PICK(fronts, d[i]), PICK(middles, d[i + 1]), PICK(ends, d[i + 2]),
            dtypes[type], shapes[shape], data, data + bytes);
        data += bytes;
    }
    at += (size_t)sprintf(header + at, "}");
    *size = len = 8 + at + data;
    uint8_t *p = calloc(1, len);
    for (size_t i = 0; i < 8; i++)
        p[i] = (uint8_t)((uint64_t)at >> 8 * i);
    memcpy(p + 8, header, at);
    for (size_t i = 0; i < data; i++)
        p[8 + at + i] = (uint8_t)(i * 7 + n);
    free(header);
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
