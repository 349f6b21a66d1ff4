#include "site_name.h"

#include <stdio.h>
#include <string.h>

/* Words of module paths that hold an underscore, longest first where one begins another. All other
 * words end at the next underscore. */
static const char *const joined[] = {
    "down_blocks",
    "up_blocks",
    "mid_block",
    "transformer_blocks",
    "conv_shortcut",
    "time_emb_proj",
    "time_embedding",
    "add_embedding",
    "conv_norm_out",
    "conv_in",
    "conv_out",
    "linear_1",
    "linear_2",
    "proj_in",
    "proj_out",
    "to_q",
    "to_k",
    "to_v",
    "to_out",
    "text_model",
    "self_attn",
    "q_proj",
    "k_proj",
    "v_proj",
    "out_proj",
    "layer_norm1",
    "layer_norm2",
    "final_layer_norm",
    "token_embedding",
    "position_embedding",
    "text_projection",
    /* Stable Diffusion's first code, and SDXL's */
    "input_blocks",
    "output_blocks",
    "middle_block",
    "time_embed",
    "label_emb",
    "in_layers",
    "out_layers",
    "emb_layers",
    "skip_connection",
};

/* Length of the word that begins s: one of `joined` when an underscore or the end follows it. */
static size_t word_length(const char *s, size_t len)
{
    for (size_t i = 0; i < sizeof joined / sizeof *joined; i++) {
        size_t n = strlen(joined[i]);
        if (n <= len && !memcmp(s, joined[i], n) && (n == len || s[n] == '_'))
            return n;
    }
    size_t n = 0;
    while (n < len && s[n] != '_')
        n++;
    return n;
}

/* a_b_c to a.b.c, word by word. */
static bool from_underscores(char *out, size_t size, const char *s, size_t len)
{
    size_t at = strlen(out);
    while (len > 0) {
        size_t n = word_length(s, len);
        if (n == 0 || at + n + 2 > size)
            return false;
        memcpy(out + at, s, n);
        at += n;
        out[at] = 0;
        s += n;
        len -= n;
        if (len > 0) { /* an underscore, and more must follow */
            out[at++] = '.';
            out[at] = 0;
            s++;
            if (--len == 0)
                return false;
        }
    }
    return true;
}

static bool begins(const char **s, size_t *len, const char *with)
{
    size_t n = strlen(with);
    if (*len <= n || memcmp(*s, with, n))
        return false;
    *s += n;
    *len -= n;
    return true;
}

static bool append(char *out, size_t size, const char *s, size_t len)
{
    size_t at = strlen(out);
    if (at + len + 1 > size)
        return false;
    memcpy(out + at, s, len);
    out[at + len] = 0;
    return true;
}

/* Replaces the ending `old` by `with`. */
static bool ending(char *out, size_t size, const char *old, const char *with)
{
    size_t n = strlen(out), k = strlen(old);
    if (n < k || strcmp(out + n - k, old))
        return true;
    out[n - k] = 0;
    return append(out, size, with, strlen(with));
}

/* Names as diffusers' attention processors had them (before 0.20). */
static bool modernise(char *out, size_t size, bool text)
{
    char *p = strstr(out, ".processor.");
    if (p)
        memmove(p, p + 10, strlen(p + 10) + 1);
    if (!text)
        return ending(out, size, ".to_out", ".to_out.0");
    return ending(out, size, "self_attn.to_q", "self_attn.q_proj") &&
           ending(out, size, "self_attn.to_k", "self_attn.k_proj") &&
           ending(out, size, "self_attn.to_v", "self_attn.v_proj") &&
           ending(out, size, "self_attn.to_out", "self_attn.out_proj");
}

/* ---- names of the first code (ldm, sgm) ------------------------------------------------------- */

#define RESNETS 2 /* a block's, in all models that have such names */

/* "in_layers.0" and so on inside a resnet; "op" and "conv" inside samplers stay or become "conv". */
static const char *const inner[][2] = {
    {"in_layers.0", "norm1"},  {"in_layers.2", "conv1"},  {"emb_layers.1", "time_emb_proj"},
    {"out_layers.0", "norm2"}, {"out_layers.3", "conv2"}, {"skip_connection", "conv_shortcut"},
};

static const char *const whole[][2] = {
    {"time_embed.0", "time_embedding.linear_1"},
    {"time_embed.2", "time_embedding.linear_2"},
    {"label_emb.0.0", "add_embedding.linear_1"},
    {"label_emb.0.2", "add_embedding.linear_2"},
    {"out.0", "conv_norm_out"},
    {"out.2", "conv_out"},
    {"input_blocks.0.0", "conv_in"},
};

static const char *resnet_word(const char *rest)
{
    for (size_t i = 0; i < sizeof inner / sizeof *inner; i++)
        if (!strcmp(rest, inner[i][0]))
            return inner[i][1];
    return NULL;
}

/* The part of a block that member j of entry i stands for. */
static int block_name(char *out, size_t size, const char *way, int i, int j, const char *rest)
{
    bool down = *way == 'd';
    int n = down ? i - 1 : i, block = n / (RESNETS + 1), layer = n % (RESNETS + 1);
    const char *word = resnet_word(rest);
    if (down && i < 1)
        return -1;
    if (word && j == 0)
        return snprintf(out, size, "%s_blocks.%d.resnets.%d.%s", way, block, layer, word);
    if (!strcmp(rest, "op") && down && layer == RESNETS && j == 0)
        return snprintf(out, size, "down_blocks.%d.downsamplers.0.conv", block);
    if (!strcmp(rest, "conv") && !down && j > 0)
        return snprintf(out, size, "up_blocks.%d.upsamplers.0.conv", block);
    if (j == 1 && !word)
        return snprintf(out, size, "%s_blocks.%d.attentions.%d.%s", way, block, layer, rest);
    return -1;
}

static int middle_name(char *out, size_t size, int j, const char *rest)
{
    const char *word = resnet_word(rest);
    if (j == 1 && !word)
        return snprintf(out, size, "mid_block.attentions.0.%s", rest);
    return word && (j == 0 || j == 2) ? snprintf(out, size, "mid_block.resnets.%d.%s", j / 2, word)
                                      : -1;
}

/* path, dotted, without "unet."; becomes diffusers' where it is an old one. False: it is old, and unknown. */
static bool from_ldm(char *path, size_t size)
{
    char out[256], rest[256] = "";
    int i, j, n = 0, end = 0;
    for (size_t k = 0; k < sizeof whole / sizeof *whole; k++)
        if (!strcmp(path, whole[k][0]))
            n = snprintf(out, sizeof out, "%s", whole[k][1]);
    if (n == 0 && sscanf(path, "input_blocks.%d.%d.%n%255s", &i, &j, &end, rest) == 3 && end)
        n = block_name(out, sizeof out, "down", i, j, rest);
    else if (n == 0 && sscanf(path, "output_blocks.%d.%d.%n%255s", &i, &j, &end, rest) == 3 && end)
        n = block_name(out, sizeof out, "up", i, j, rest);
    else if (n == 0 && sscanf(path, "middle_block.%d.%n%255s", &j, &end, rest) == 2 && end)
        n = middle_name(out, sizeof out, j, rest);
    else if (n == 0)
        return strncmp(path, "input_blocks", 12) && strncmp(path, "output_blocks", 13) &&
               strncmp(path, "middle_block", 12);
    if (n < 0 || (size_t)n >= sizeof out || (size_t)n >= size)
        return false;
    memcpy(path, out, (size_t)n + 1);
    return true;
}

static bool is_unet_path(const char *s, size_t len, char sep)
{
    static const char *const first[] = {
        "down_blocks",   "up_blocks",      "mid_block",     "conv_in",      "conv_out",
        "conv_norm_out", "time_embedding", "add_embedding", "input_blocks", "output_blocks",
        "middle_block",  "time_embed",     "label_emb",     "out"};
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) {
        size_t n = strlen(first[i]);
        if (len >= n && !memcmp(s, first[i], n) && (len == n || s[n] == sep))
            return true;
    }
    return false;
}

/* What stands before a module's path. */
static const struct prefix {
    const char *s, *part;
    bool dotted;
} prefixes[] = {
    {"lora_unet_", "unet", false},
    {"lora_prior_unet_", "unet", false},
    {"lycoris_unet_", "unet", false},
    {"lora_te_", "text_encoder", false},
    {"lora_te1_", "text_encoder", false},
    {"lora_te2_", "text_encoder_2", false},
    {"lycoris_te_", "text_encoder", false},
    {"lycoris_te1_", "text_encoder", false},
    {"lycoris_te2_", "text_encoder_2", false},
    {"unet.", "unet", true},
    {"model.diffusion_model.", "unet", true},
    {"diffusion_model.", "unet", true},
    {"text_encoder.", "text_encoder", true},
    {"text_encoder_2.", "text_encoder_2", true},
    {"cond_stage_model.transformer.", "text_encoder", true},
    {"conditioner.embedders.0.transformer.", "text_encoder", true},
};

/* The part of the model a name without any prefix belongs to, or NULL. */
static const char *bare_part(const char *s, size_t len, bool *dotted)
{
    char sep = *dotted ? '.' : '_';
    if (is_unet_path(s, len, sep))
        return "unet";
    if (len > 11 && !memcmp(s, "text_model", 10) && s[10] == sep)
        return "text_encoder";
    return NULL;
}

static const char *part_of(const char **module, size_t *len, bool *dotted)
{
    for (size_t i = 0; i < sizeof prefixes / sizeof *prefixes; i++)
        if (begins(module, len, prefixes[i].s)) {
            *dotted = prefixes[i].dotted;
            return prefixes[i].part;
        }
    *dotted = !begins(module, len, "lycoris_");
    return bare_part(*module, *len, dotted);
}

bool site_name(char *out, size_t size, const char *module, size_t len)
{
    bool dotted;

    begins(&module, &len, "base_model.model.");
    begins(&module, &len, "lora."); /* "lora.lora_unet_…" */
    const char *part = part_of(&module, &len, &dotted);
    if (!part)
        return false;
    bool text = *part == 't';
    int n = snprintf(out, size, "%s.", part);
    /* transformers 5 names the tower's parts without "text_model" */
    if (text && dotted && len > 8 && !memcmp(module, "encoder.", 8))
        append(out, size, "text_model.", 11);
    if (dotted ? !append(out, size, module, len) : !from_underscores(out, size, module, len))
        return false;
    if (!text && !from_ldm(out + n, size - (size_t)n))
        return false;
    return modernise(out, size, text);
}
