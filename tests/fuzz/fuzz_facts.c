/* Fuzzes what the repository reads of strangers' files: kinds and bases from keys, the trainer's metadata,
 * and the sidecars of other tools. The first byte chooses: a file of keys put together from pieces, or
 * the rest as metadata or as one of three sidecars. */
#include "store/beside.h"
#include "store/facts.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const fronts[] = {"lora_unet_",
                                     "lora_te_",
                                     "lora_te1_",
                                     "text_encoder.",
                                     "text_encoder_2.",
                                     "base_model.model.",
                                     "text_encoder:0",
                                     "unet.",
                                     "",
                                     "model.layers.0.",
                                     "model.diffusion_model."};
static const char *const middles[] = {
    "down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
    "up_blocks.1.attentions.0.transformer_blocks.3.attn1.to_q",
    "text_model_encoder_layers_0_self_attn_q_proj",
    "double_blocks_0_img",
    "joint_blocks_1",
    "transformer_blocks.x",
    "add_embedding",
    "",
};
static const char *const ends[] = {".lora_down.weight",
                                   ".lora_up.weight",
                                   ".lora_mid.weight",
                                   ".alpha",
                                   ".hada_w1_b",
                                   ".lokr_w1",
                                   ".lokr_w1_b",
                                   ".lokr_w2",
                                   ".lokr_w2_b",
                                   ".oft_blocks",
                                   ".diff",
                                   ".diff_b",
                                   ".w_norm",
                                   ":down",
                                   ".lora_a",
                                   "emb_params",
                                   "clip_g",
                                   ".a1.weight",
                                   ".ia3_l",
                                   ".weight"};
static const unsigned sides[] = {1, 2, 4, 768, 1024, 2048, 0, 3};

#define PICK(list, byte) (list)[(byte) % (sizeof(list) / sizeof *(list))]

/* A file of one tensor for every four bytes: three pieces of a key and a shape. */
static uint8_t *cook(const uint8_t *d, size_t n, size_t *size)
{
    char *header = malloc(240 * (n / 4 + 2));
    size_t at = (size_t)sprintf(header, "{"), data = 0;
    for (size_t i = 0; i + 4 <= n && i < 400; i += 4) {
        unsigned a = sides[d[i + 3] % 8], b = sides[d[i + 3] / 8 % 8];
        b = a * b > 8192 ? 4 : b; /* large files only cost time */
        bool conv = d[i + 3] & 64;
        size_t bytes = (size_t)a * b * (conv ? 9 : 1);
        at += (size_t)sprintf(header + at,
                              "%s\"%s%s%s\":{\"dtype\":\"U8\",\"shape\":[%u,%u%s],"
                              "\"data_offsets\":[%zu,%zu]}",
                              i ? "," : "", PICK(fronts, d[i]), PICK(middles, d[i + 1]),
                              PICK(ends, d[i + 2]), a, b, conv ? ",3,3" : "", data, data + bytes);
        data += bytes;
    }
    at += (size_t)sprintf(header + at, "}");
    *size = 8 + at + data;
    uint8_t *p = calloc(1, *size);
    for (size_t i = 0; i < 8; i++)
        p[i] = (uint8_t)((uint64_t)at >> 8 * i);
    memcpy(p + 8, header, at);
    free(header);
    return p;
}

static void fuzz_file(const uint8_t *d, size_t n)
{
    struct tensor_file *st = NULL;
    struct facts f;
    struct err err;
    size_t size;
    uint8_t *file = cook(d, n, &size);
    if (tensor_file_parse(&st, file, size, &err) == 0) {
        if (facts_read(&f, st, "x.safetensors", &err) == 0) {
            assert(*f.kinds && f.base && f.dtype && f.rank[0] <= f.rank[1] && f.sites > 0);
            assert(f.context >= 0 && f.tensors > 0 && (f.format || f.unusable));
            facts_release(&f);
        } else {
            assert(err.code < 0 && *err.msg);
        }
    }
    tensor_file_close(st);
    free(file);
}

static void check(const struct beside *b)
{
    assert(isnan(b->strength) || (b->strength != 0 && fabs(b->strength) <= 10));
    for (int i = 0; i < b->n_trigger; i++)
        assert(*b->trigger[i].words && strlen(b->trigger[i].words) <= 1000);
    for (int i = 0; i < b->n_tag; i++)
        assert(*b->tag[i]);
}

static const char *const keys[] = {"activation text",
                                   "preferred weight",
                                   "notes",
                                   "description",
                                   "trainedWords",
                                   "model",
                                   "tags",
                                   "civitai",
                                   "usage_tips",
                                   "ss_output_name",
                                   "ss_tag_frequency",
                                   "modelspec.trigger_phrase",
                                   "modelspec.tags",
                                   "x"};
static const char *const values[] = {"\"kiki, black dress \"",
                                     "0.7",
                                     "-1e300",
                                     "\"\"",
                                     "\" , \"",
                                     "[\"a\",\"b, c\",3,null]",
                                     "{\"tags\":[\"t\"],\"trainedWords\":[\"w\"]}",
                                     "{\"trainedWords\":[\"w\"],\"model\":{\"tags\":[\"u\"]}}",
                                     "\"{\\\"strength\\\":0.8}\"",
                                     "\"{\\\"1_a\\\":{\\\"x\\\":3,\\\"y\\\":3.5,\\\"z\\\":{}}}\"",
                                     "\"one,two,,three\"",
                                     "\"None\"",
                                     "[]"};

/* An object of a key and a value for every two bytes. */
static char *cook_json(const uint8_t *d, size_t n)
{
    char *text = malloc(100 * (n / 2 + 2));
    size_t at = (size_t)sprintf(text, "{");
    for (size_t i = 0; i + 2 <= n; i += 2)
        at += (size_t)sprintf(text + at, "%s\"%s\":%s", i ? "," : "", PICK(keys, d[i]),
                              PICK(values, d[i + 1]));
    sprintf(text + at, "}");
    return text;
}

/* which 0: metadata, 1 to 3: a sidecar. */
static void fuzz_text(const uint8_t *d, size_t n, int which, bool raw)
{
    static const char *const endings[] = {"", "json", "civitai.info", "metadata.json"};
    static char dir[] = "/dev/shm/weft-fuzz-XXXXXX";
    static bool made;
    char path[80], stem[80];
    struct beside b;
    struct err err;
    if (!made && !mkdtemp(dir))
        abort();
    made = true;
    char *text = raw ? malloc(n + 1) : cook_json(d, n);
    if (raw) {
        memcpy(text, d, n);
        text[n] = 0;
    }
    snprintf(stem, sizeof stem, "%s/x.safetensors", dir);
    snprintf(path, sizeof path, "%s/x.%s", dir, endings[which]);
    if (which) {
        FILE *f = fopen(path, "wb");
        if (!f || fwrite(text, 1, raw ? n : strlen(text), f) == SIZE_MAX || fclose(f))
            abort();
    }
    if (beside_read(&b, stem, NULL, which ? NULL : text, &err) == 0) {
        check(&b);
        beside_release(&b);
    }
    if (which)
        unlink(path);
    free(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    if (size < 1)
        return 0;
    if (data[0] % 8 < 4)
        fuzz_text(data + 1, size - 1, data[0] % 4, data[0] & 8);
    else
        fuzz_file(data + 1, size - 1);
    return 0;
}
