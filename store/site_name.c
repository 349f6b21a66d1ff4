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

static bool is_unet_path(const char *s, size_t len)
{
    static const char *const first[] = {"down_blocks.", "up_blocks.",      "mid_block.",
                                        "conv_in",      "time_embedding.", "conv_out"};
    for (size_t i = 0; i < sizeof first / sizeof *first; i++) {
        size_t n = strlen(first[i]);
        if (len >= n && !memcmp(s, first[i], n))
            return true;
    }
    return false;
}

bool site_name(char *out, size_t size, const char *module, size_t len)
{
    bool text = false, dotted = true;

    begins(&module, &len, "base_model.model.");
    if (begins(&module, &len, "lora_unet_"))
        dotted = false;
    else if (begins(&module, &len, "lora_te_"))
        dotted = false, text = true;
    else if (begins(&module, &len, "unet."))
        text = false;
    else if (begins(&module, &len, "text_encoder."))
        text = true;
    else if (is_unet_path(module, len))
        text = false;
    else if (len > 11 && !memcmp(module, "text_model.", 11))
        text = true;
    else
        return false;

    snprintf(out, size, "%s", text ? "text_encoder." : "unet.");
    /* transformers 5 names the tower's parts without "text_model" */
    if (text && dotted && len > 8 && !memcmp(module, "encoder.", 8))
        append(out, size, "text_model.", 11);
    if (dotted ? !append(out, size, module, len) : !from_underscores(out, size, module, len))
        return false;
    return modernise(out, size, text);
}
