/* Files of cloneofsimo's trainer: pairs of up and down factors that have no names but a place, the order
 * in which torch walks through the model's modules. A .pt is a bare list of them, up first; a
 * .safetensors calls them "unet:0:up", says in its metadata which classes of modules they belong to, and
 * may hold textual inversions besides.
 *
 * The order for Stable Diffusion 1 and 2: down blocks, up blocks, then the middle one (diffusers assigns
 * it last); in each transformer block to_q, to_k, to_v, to_out of attn1 and of attn2, and between or
 * after them the first layer of the feed-forward (GEGLU), depending on the version of diffusers: its
 * shape tells. In the text encoder k, v, q, out of each layer, as CLIPAttention declares them. */
#include "adapter.h"
#include "embedding.h"
#include "format.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BLOCKS 16

/* Transformer blocks in the order of the walk, and their widths in multiples of the first. */
static const struct {
    const char *path;
    uint64_t width;
} blocks[BLOCKS] = {
    {"down_blocks.0.attentions.0", 1}, {"down_blocks.0.attentions.1", 1},
    {"down_blocks.1.attentions.0", 2}, {"down_blocks.1.attentions.1", 2},
    {"down_blocks.2.attentions.0", 4}, {"down_blocks.2.attentions.1", 4},
    {"up_blocks.1.attentions.0", 4},   {"up_blocks.1.attentions.1", 4},
    {"up_blocks.1.attentions.2", 4},   {"up_blocks.2.attentions.0", 2},
    {"up_blocks.2.attentions.1", 2},   {"up_blocks.2.attentions.2", 2},
    {"up_blocks.3.attentions.0", 1},   {"up_blocks.3.attentions.1", 1},
    {"up_blocks.3.attentions.2", 1},   {"mid_block.attentions.0", 4},
};
static const char *const attention[] = {"to_q", "to_k", "to_v", "to_out.0"};
static const char *const clip[] = {"k_proj", "v_proj", "q_proj", "out_proj"};

/* One model's pairs within the file. */
struct half {
    const struct tensor_file *f;
    const char *name; /* "unet", "text_encoder"; NULL: the bare list */
    bool text;
    size_t n;  /* pairs */
    size_t ff; /* place of GEGLU among a block's pairs, or 9 where there is none */
};

/* The parts of a key: "7" or "unet:3:up". False: it is neither. */
static bool parse_key(const char *key, const char **name, size_t *pair, bool *up)
{
    static const char *const names[] = {"unet:", "text_encoder:"};
    char *end;
    *name = NULL;
    for (int i = 0; i < 2 && !*name; i++)
        if (!strncmp(key, names[i], strlen(names[i]))) {
            *name = i ? "text_encoder" : "unet";
            key += strlen(names[i]);
        }
    if (*key < '0' || *key > '9' || strlen(key) > 12 ||
        (key[0] == '0' && key[1] >= '0' && key[1] <= '9'))
        return false;
    unsigned long v = strtoul(key, &end, 10);
    *pair = *name ? v : v / 2;
    *up = *name ? !strcmp(end, ":up") : v % 2 == 0;
    return *name ? *up || !strcmp(end, ":down") : !*end;
}

static int claims(const struct tensor_file *f)
{
    const char *name;
    size_t pair;
    bool up;
    int n = 0;
    for (size_t i = 0; i < tensor_file_count(f); i++)
        n += parse_key(tensor_file_name(f, i), &name, &pair, &up);
    return n;
}

static const struct array *factor(const struct half *p, size_t i, bool up)
{
    char key[64];
    if (p->name)
        snprintf(key, sizeof key, "%s:%zu:%s", p->name, i, up ? "up" : "down");
    else
        snprintf(key, sizeof key, "%zu", 2 * i + !up);
    return tensor_file_find(p->f, key);
}

/* Rows of up and columns of down. False: there is no such pair, or no matrices. */
static bool pair_size(const struct half *p, size_t i, uint64_t *out, uint64_t *in)
{
    const struct array *up = factor(p, i, true), *down = factor(p, i, false);
    if (!up || !down || up->ndim != 2 || down->ndim != 2 || up->dim[1] != down->dim[0])
        return false;
    *out = up->dim[0];
    *in = down->dim[1];
    return true;
}

/* ---- which modules they belong to -------------------------------------------------------------- */

/* Every pair of a text encoder's attention is square, and all are alike. */
static bool is_text(const struct half *p)
{
    uint64_t out, in, width = 0;
    for (size_t i = 0; i < p->n; i++) {
        if (!pair_size(p, i, &out, &in) || out != in || (i && out != width))
            return false;
        width = out;
    }
    return p->n > 0 && p->n % 4 == 0;
}

/* One transformer block from pair `from` on. */
static bool is_block(const struct half *p, size_t from, size_t per, uint64_t width, uint64_t *cross)
{
    uint64_t out, in;
    size_t k = 0;
    for (size_t i = 0; i < per; i++) {
        if (!pair_size(p, from + i, &out, &in))
            return false;
        if (i == p->ff) {
            if (out != 8 * width || in != width)
                return false;
            continue;
        }
        if (k == 5 && !*cross)
            *cross = in;
        if (out != width || in != (k == 5 || k == 6 ? *cross : width))
            return false;
        k++;
    }
    return true;
}

/* Finds p->ff. False: these are no pairs of a UNet of Stable Diffusion 1 or 2. */
static bool is_unet(struct half *p)
{
    size_t per = p->n / BLOCKS;
    uint64_t first, in, cross = 0;
    if (p->n % BLOCKS || (per != 8 && per != 9) || !pair_size(p, 0, &first, &in))
        return false;
    for (p->ff = per == 9 ? 4 : 9; p->ff <= 9; p->ff += p->ff == 4 ? 4 : 5) {
        size_t b = 0;
        for (cross = 0; b < BLOCKS; b++)
            if (!is_block(p, b * per, per, first * blocks[b].width, &cross))
                break;
        if (b == BLOCKS)
            return true;
    }
    return false;
}

/* The classes that the metadata names must be those that are known. */
static int check_classes(const struct half *p, const char *path, struct err *err)
{
    static const char *const known[] = {"CrossAttention", "Attention", "GEGLU", "CLIPAttention"};
    const char *text = p->name ? tensor_file_metadata(p->f, p->name) : NULL;
    json_t *list = text ? json_loads(text, 0, NULL) : NULL, *v;
    size_t i;
    int rc = 0;
    json_array_foreach(list, i, v)
    {
        const char *s = json_is_string(v) ? json_string_value(v) : "?";
        bool found = false;
        for (size_t k = 0; k < sizeof known / sizeof *known; k++)
            found |= !strcmp(known[k], s);
        if (!found && rc == 0)
            rc = err_set(err, ERR_UNSUPPORTED,
                         "%s: changes modules of class %.60s, whose order weft does not know", path,
                         s);
    }
    json_decref(list);
    return rc;
}

static int recognise(struct half *p, const char *path, struct err *err)
{
    bool text = p->name ? !strcmp(p->name, "text_encoder") : is_text(p);
    p->text = text;
    if (p->n == 0)
        return 0;
    int rc = check_classes(p, path, err);
    if (rc == 0 && !(text ? is_text(p) : is_unet(p)))
        rc = err_set(err, ERR_UNSUPPORTED,
                     "%s: %zu pairs of factors without names%s%s, which do not fit the %s of "
                     "Stable Diffusion 1 or 2",
                     path, p->n, p->name ? " for the " : "", p->name ? p->name : "",
                     text ? "text encoder" : "UNet");
    return rc;
}

/* ---- names ----------------------------------------------------------------------------------- */

/* The module of pair i. */
static void module_name(const struct half *p, size_t i, char *buf, size_t size)
{
    if (p->text) {
        snprintf(buf, size, "text_encoder.text_model.encoder.layers.%zu.self_attn.%s", i / 4,
                 clip[i % 4]);
        return;
    }
    size_t per = p->n / BLOCKS, k = i % per;
    const char *block = blocks[i / per].path;
    if (k == p->ff) {
        snprintf(buf, size, "unet.%s.transformer_blocks.0.ff.net.0.proj", block);
        return;
    }
    k -= k > p->ff;
    snprintf(buf, size, "unet.%s.transformer_blocks.0.attn%zu.%s", block, k / 4 + 1,
             attention[k % 4]);
}

/* user: the two parts, or the list and an empty one. */
static const char *rename_key(void *user, const struct tensor_file *f, size_t i, char *buf,
                              size_t size)
{
    const struct half *parts = user;
    const char *name, *key = tensor_file_name(f, i);
    char module[128];
    size_t pair;
    bool up;
    if (!parse_key(key, &name, &pair, &up))
        return key; /* not ours: the LoRA importer says what it is */
    const struct half *p = name && !strcmp(name, "text_encoder") ? &parts[1] : &parts[0];
    if (pair >= p->n)
        return key;
    module_name(p, pair, module, sizeof module);
    snprintf(buf, size, "%s.lora_%s.weight", module, up ? "up" : "down");
    return buf;
}

static int view(struct tensor_file **out, const struct tensor_file *f, const char *path,
                struct err *err)
{
    struct half parts[2] = {{.f = f, .ff = 9}, {.f = f, .name = "text_encoder", .ff = 9}};
    const char *name;
    size_t pair;
    bool up;
    for (size_t i = 0; i < tensor_file_count(f); i++)
        if (parse_key(tensor_file_name(f, i), &name, &pair, &up)) {
            parts[0].name = name ? "unet" : NULL;
            parts[name && !strcmp(name, "text_encoder")].n += up;
        }
    int rc = recognise(&parts[0], path, err);
    rc = rc < 0 ? rc : recognise(&parts[1], path, err);
    return rc < 0 ? rc : tensor_file_view(out, f, rename_key, parts, err);
}

extern const struct adapter_layout adapter_layout_cloneofsimo;

const struct adapter_layout adapter_layout_cloneofsimo = {
    .name = "cloneofsimo",
    .claims = claims,
    .view = view,
};
