/* What a file is, told from its tensors: base, kinds, and what trainers declare. */
#include "small_lora.h"
#include "store/facts.h"

#include <unistd.h>

#define SITE "lora_unet_down_blocks_0_attentions_0_transformer_blocks_"

Test(facts, base_and_kind_from_tensors)
{
    static const struct {
        const char *a, *b, *base, *kinds;
        int width;
        bool usable;
    } cases[] = {
        {SITE "0_attn2_to_k.lora_down.weight", SITE "0_attn2_to_k.lora_up.weight", "sd1", "lora",
         768, true},
        {SITE "0_attn2_to_k.lora_down.weight", SITE "0_attn2_to_k.lora_up.weight", "sd2", "lora",
         1024, true},
        {SITE "0_attn2_to_k.lora_down.weight", SITE "0_attn2_to_k.lora_up.weight", "sdxl", "lora",
         2048, false},
        {SITE "0_attn2_to_k.lora_down.weight", SITE "0_attn2_to_k.lora_up.weight", "unknown",
         "lora", 192, true},
        /* self-attention alone: only the block's number tells */
        {SITE "7_attn1_to_k.lora_down.weight", SITE "7_attn1_to_k.lora_up.weight", "sdxl", "lora",
         640, false},
        {SITE "1_attn1_to_k.lora_down.weight", SITE "1_attn1_to_k.lora_up.weight", "unknown",
         "lora", 640, true},
        {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
         "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", "sd1", "lora", 768,
         true},
        {"lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
         "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", "sd2", "lora", 1024,
         true},
        {"lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_down.weight",
         "lora_te1_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight", "sdxl", "lora",
         768, false},
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight",
         "lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight", "flux", "lora", 3072, false},
        {"base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
         "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight", "llm", "lora", 768,
         false},
        {SITE "0_attn2_to_k.lora_down.weight", SITE "0_attn2_to_k.lora_E", "sd1", "adalora lora",
         768, false},
        {"emb_params", "string_to_param", "sd1", "textual-inversion", 768, false},
    };
    char path[] = "/tmp/weft-facts-XXXXXX";
    struct err err;
    int fd = mkstemp(path);
    cr_assert(fd >= 0);
    close(fd);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tensor_file *st;
        struct facts f;
        small_lora(path,
                   &(struct small){.width = cases[i].width, .a = cases[i].a, .b = cases[i].b});
        cr_assert_eq(tensor_file_open(&st, path, &err), 0, "%s", err.msg);
        cr_assert_eq(facts_read(&f, st, path, &err), 0, "%s: %s", cases[i].a, err.msg);
        cr_expect_str_eq(f.base, cases[i].base, "%s with %d: %s", cases[i].a, cases[i].width,
                         f.base);
        cr_expect_str_eq(f.kinds, cases[i].kinds, "%s: %s", cases[i].a, f.kinds);
        if (!strcmp(cases[i].kinds, "lora"))
            cr_expect_eq(!f.unusable, cases[i].usable, "%s: %s", cases[i].a,
                         f.unusable ? f.unusable : "usable");
        facts_release(&f);
        tensor_file_close(st);
    }
    unlink(path);
}

/* Names of whole models hold pieces that look like an adapter's. */
Test(facts, models_are_no_adapters)
{
    static const char *const keys[][2] = {
        {"model.diffusion_model.input_blocks.0.0.weight", "model.diffusion_model.out.0.weight"},
        {"model.diffusion_model.double_blocks.0.img_attn.qkv.weight", "model.diffusion_model.x"},
        {"text_encoders.clip_l.transformer.a.weight", "text_encoders.clip_g.transformer.a.weight"},
        {"down_blocks.0.resnets.0.conv1.weight", "soft_blocks.weight"},
    };
    char path[] = "/tmp/weft-facts-XXXXXX";
    struct err err;
    int fd = mkstemp(path);
    cr_assert(fd >= 0);
    close(fd);
    for (size_t i = 0; i < sizeof keys / sizeof *keys; i++) {
        struct tensor_file *st;
        struct facts f;
        small_lora(path, &(struct small){.a = keys[i][0], .b = keys[i][1]});
        cr_assert_eq(tensor_file_open(&st, path, &err), 0, "%s", err.msg);
        int rc = facts_read(&f, st, path, &err);
        cr_expect_lt(rc, 0, "%s was taken for an adapter: %s", keys[i][0], f.kinds);
        if (rc == 0)
            facts_release(&f);
        tensor_file_close(st);
    }
    unlink(path);
}

Test(facts, declared_hashes_are_not_believed)
{
    const char *data = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
    cr_expect_str_eq(facts_declared_note(NULL, data), "");
    cr_expect_str_eq(facts_declared_note(data, data), "");
    cr_expect_str_eq(facts_declared_note("0123456789ab", data), "");
    cr_expect(strstr(facts_declared_note("0x0123456789ab", data), "0x"));
    cr_expect(strstr(facts_declared_note("0123", data), "not the hash"));
    cr_expect(strstr(facts_declared_note("0123456789ac", data), "not the hash"));
    cr_expect(strstr(facts_declared_note(
                         "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855", data),
                     "nothing at all"));
}
