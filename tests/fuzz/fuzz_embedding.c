/* Fuzzes the readers of textual inversions and of adapters whose factors have only a place. The first byte
 * chooses: a file of keys such as they have; or a whole list of pairs for a model, with a few things
 * wrong. */
#include "store/adapter.h"
#include "store/embedding.h"

#include <assert.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const keys[] = {
    "string_to_param.*",
    "emb_params",
    "clip_l",
    "clip_g",
    "<s1>",
    "word",
    "bundle_emb.a.b.string_to_param.*",
    "bundle_emb.c.clip_g",
    "bundle_emb.",
    "params.new_concept_embedding.<c1>",
    "new_concept_embedding.<c2>",
    "new_concept_embedding.",
    "params.unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_down.weight",
    "params.unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_up.weight",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q_lora.down.weight",
    "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q_lora.up.weight",
    "params.unet.conv_in.weight",
    "tensor",
    "0",
    "1",
    "2",
    "3",
    "unet:0:up",
    "unet:0:down",
    "text_encoder:0:up",
    "text_encoder:0:down",
    "text_encoder:1:up",
    "text_encoder:999999999:down",
    "unet:1:sideways",
    "unet:01:up",
    "fish",
};
static const char *const shapes[] = {"[4]", "[2,2]", "[1,4]", "[4,1]", "[1,2,2]", "[0,4]", "[]"};
static const unsigned counts[] = {4, 4, 4, 4, 4, 0, 1};
#define N(list) (sizeof(list) / sizeof *(list))

struct cook {
    char *header;
    size_t at, room, data;
    int n;
};

static void put(struct cook *c, const char *key, const char *shape, unsigned count)
{
    if (c->room - c->at < 400)
        return;
    c->at += (size_t)sprintf(c->header + c->at,
                             ",\"%s\":{\"dtype\":\"U8\",\"shape\":%s,\"data_offsets\":[%zu,%zu]}",
                             key, shape, c->data, c->data + count);
    c->data += count;
    c->n++;
}

static void put_pair(struct cook *c, const char *front, unsigned i, unsigned out, unsigned in,
                     unsigned rank)
{
    char key[40], shape[40];
    for (int down = 0; down < 2; down++) {
        snprintf(key, sizeof key, *front ? "%s:%u:%s" : "%s%u", front,
                 *front ? i : 2 * i + (unsigned)down, down ? "down" : "up");
        snprintf(shape, sizeof shape, "[%u,%u]", down ? rank : out, down ? in : rank);
        put(c, key, shape, rank * (down ? in : out));
    }
}

/* d[0]: which list, d[1]: where GEGLU is, then pairs of place and fault. */
static void put_list(struct cook *c, const uint8_t *d, size_t n)
{
    static const uint8_t width[] = {1, 1, 2, 2, 4, 4, 4, 4, 4, 2, 2, 2, 1, 1, 1, 4};
    const char *front = d[0] & 1 ? "" : "unet";
    unsigned ff = d[1] % 3 == 0 ? 4 : d[1] % 3 == 1 ? 8 : 9, per = ff == 9 ? 8 : 9;
    bool text = d[0] & 2;
    for (unsigned i = 0; i < (text ? 8 : 16 * per); i++) {
        unsigned b = i / per, k = i % per, w = text ? 3 : width[b];
        unsigned attn = k - (k > ff), out = k == ff && !text ? 8 * w : w;
        unsigned in = !text && k != ff && (attn == 5 || attn == 6) ? 3 : w, fault = 0;
        for (size_t j = 2; j + 1 < n; j += 2)
            fault = d[j] == i ? d[j + 1] % 8 : fault;
        if (fault == 1)
            continue;
        put_pair(c, text && *front ? "text_encoder" : front, i, out + (fault == 2),
                 in + (fault == 3), 1 + (fault == 4));
    }
    if (d[0] & 4 && *front)
        put_pair(c, "text_encoder", 0, 2, 2, 1), put_pair(c, "text_encoder", 1, 2, 2, 1),
            put_pair(c, "text_encoder", 2, 2, 2, 1), put_pair(c, "text_encoder", 3, 2, 2, 1);
}

static const char *const metas[] = {
    "\"unet\":\"[\\\"GEGLU\\\", \\\"Attention\\\"]\"",
    "\"unet\":\"[\\\"ResnetBlock2D\\\"]\"",
    "\"unet\":\"[1]\",\"text_encoder\":\"{\"",
    "\"<s1>\":\"<embed>\",\"word\":\"<embed>\",\"name\":\"inner\"",
};

static void check(const uint8_t *bytes, size_t n)
{
    struct tensor_file *f = NULL;
    struct embedding_list words = {0};
    struct delta_list list = {0};
    const struct adapter_format *format = NULL;
    const char *style = NULL;
    struct err err = {0};
    if (tensor_file_parse(&f, bytes, n, &err) < 0)
        return;
    if (embedding_read(&words, f, "dir/stem.pt", &err) == 0)
        for (int i = 0; i < words.n; i++) {
            const struct embedding *e = &words.item[i];
            assert(*e->name && e->n_vec > 0 && e->width > 0 &&
                   e->vec[e->n_vec * e->width - 1] < 256);
        }
    int rc = adapter_import(f, "dir/stem.pt", &list, &format, &style, &err);
    assert(rc < 0 ? err.code == rc && *err.msg : format && style && list.n > 0);
    for (int i = 0; i < list.n; i++)
        assert(list.item[i].site &&
               (list.item[i].d.kind != DELTA_PRODUCT || delta_rank(&list.item[i].d) > 0));
    delta_list_release(&list);
    embedding_list_release(&words);
    tensor_file_close(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct cook c = {.room = 1 << 16};
    if (size < 3)
        return 0;
    uint8_t *file = malloc(c.room + (1 << 16));
    c.header = (char *)file + 8;
    c.at = (size_t)sprintf(c.header, "{\"__metadata__\":{%s}", metas[data[0] / 2 % N(metas)]);
    if (data[0] & 1)
        put_list(&c, data + 1, size - 1);
    else
        for (size_t i = 1; i + 1 < size; i += 2)
            put(&c, keys[data[i] % N(keys)], shapes[data[i + 1] % N(shapes)],
                counts[data[i + 1] % N(shapes)]);
    c.header[c.at++] = '}';
    for (size_t i = 0; i < 8; i++)
        file[i] = (uint8_t)((uint64_t)c.at >> 8 * i);
    for (size_t i = 0; i < c.data; i++)
        file[8 + c.at + i] = (uint8_t)(i * 7);
    check(file, 8 + c.at + c.data);
    free(file);
    return 0;
}
