/* Strengths block by block: which block a weight is in, and what that does to it. */
#include "store/adapter.h"
#include "util.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

Test(lbw, blocks_as_the_first_code_counts_them)
{
    static const struct {
        const char *site;
        int block;
    } table[] = {
        {"text_encoder.text_model.encoder.layers.3.mlp.fc1", 0},
        {"unet.conv_in", 1},
        {"unet.down_blocks.0.resnets.0.conv1", 2},
        {"unet.down_blocks.0.attentions.1.proj_in", 3},
        {"unet.down_blocks.0.downsamplers.0.conv", 4},
        {"unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 5},
        {"unet.down_blocks.2.resnets.1.time_emb_proj", 9},
        {"unet.down_blocks.3.resnets.1.conv2", 12},
        {"unet.mid_block.resnets.1.conv1", 13},
        {"unet.up_blocks.0.resnets.0.conv1", 14},
        {"unet.up_blocks.0.upsamplers.0.conv", 16},
        {"unet.up_blocks.1.attentions.0.proj_out", 17},
        {"unet.up_blocks.3.resnets.2.conv_shortcut", 25},
        {"unet.time_embedding.linear_1", -1},
        {"unet.conv_out", -1},
        {"unet.down_blocks.4.resnets.0.conv1", -1},
        {"unet.down_blocks.0.resnets.3.conv1", -1},
        {"unet.down_blocks.x", -1},
    };
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        cr_expect_eq(lbw_block(table[i].site), table[i].block, "%s: %d", table[i].site,
                     lbw_block(table[i].site));
}

Test(lbw, lists)
{
    static const char *const bad[] = {"",      "1",
                                      "1/2/3", "1/1/1/1/1/1/1/1/1/1/1/1/1/1/1/1/1/",
                                      "1,1",   "nan/1/1/1/1/1/1/1/1/1/1/1/1/1/1/1/1"};
    const char *seventeen = "1/0/0.5/0/0/0/0/2/0/0/0/0/0/0/0/0/-1";
    const char *all = "0/1/2/3/4/5/6/7/8/9/10/11/12/13/14/15/16/17/18/19/20/21/22/23/24/25";
    struct lbw b;
    struct err err;
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_expect_eq(lbw_parse(&b, bad[i], strlen(bad[i]), &err), ERR_ARG, "%s", bad[i]);
    cr_assert_eq(lbw_parse(&b, seventeen, strlen(seventeen), &err), 0, "%s", err.msg);
    cr_expect_eq(lbw_factor(&b, "text_encoder.x"), 1);
    cr_expect_eq(lbw_factor(&b, "unet.down_blocks.0.attentions.0.proj_in"), 0); /* IN01 */
    cr_expect_eq(lbw_factor(&b, "unet.down_blocks.0.attentions.1.proj_in"), 0.5f);
    cr_expect_eq(lbw_factor(&b, "unet.mid_block.attentions.0.proj_in"), 2);
    cr_expect_eq(lbw_factor(&b, "unet.up_blocks.3.attentions.2.proj_in"), -1); /* OUT11 */
    cr_expect_eq(lbw_factor(&b, "unet.up_blocks.0.resnets.0.conv1"), 0); /* no number of its own */
    cr_expect_eq(lbw_factor(&b, "unet.time_embedding.linear_1"), 1);
    cr_assert_eq(lbw_parse(&b, all, strlen(all), &err), 0, "%s", err.msg);
    cr_expect_eq(lbw_factor(&b, "unet.up_blocks.0.resnets.0.conv1"), 14);
    cr_expect_eq(lbw_factor(&b, "unet.up_blocks.3.attentions.2.proj_in"), 25);
}

/* Two layers of a model with the right blocks: their delta times the block's number, folded. */
Test(lbw, weighs_a_bound_adapter)
{
    static const char *const name[] = {"unet.down_blocks.3.resnets.1.conv1",
                                       "unet.mid_block.resnets.0.conv1"};
    static float zero[4], up[2] = {1, 2}, down[2] = {3, 4};
    struct array w = {.dtype = DT_F32, .ndim = 2, .dim = {2, 2}, .data = zero};
    struct device *dev = test_device("ref");
    struct layer l[2];
    struct site at[2];
    int order[2] = {0, 1};
    struct sites sites = {.at = at, .n = 2, .order = order};
    struct delta_list list = {0};
    struct bind_report report = {0};
    struct adapter *a = NULL;
    struct fold *fold = NULL;
    struct lbw b = {.n = 26};
    struct err err;
    for (int i = 0; i < 2; i++) {
        l[i] = (struct layer){
            .name = name[i], .site = i, .out = 2, .in = 2, .kh = 1, .kw = 1, .stride = 1, .w = w};
        at[i] = (struct site){(char *)name[i], COMPONENT_UNET, &l[i], NULL};
        struct delta *d = delta_list_add(&list, name[i], &err);
        d->f[0].a = (struct array){.dtype = DT_F32, .ndim = 2, .dim = {2, 1}, .data = up};
        d->f[0].b = (struct array){.dtype = DT_F32, .ndim = 2, .dim = {1, 2}, .data = down};
    }
    cr_assert_eq(adapter_bind(&a, dev, &sites, &list, "a", true, &report, &err), 0, "%s", err.msg);
    b.w[12] = 0.5f;
    b.w[13] = -2;
    cr_assert_eq(adapter_weigh(a, &sites, &b, &err), 0, "%s", err.msg);
    const float strength = 2;
    const struct adapter *one = a;
    cr_assert_eq(fold_new(&fold, &sites, COMPONENT_UNET, 1, &one, &strength, &err), 0);
    cr_expect_eq(((const float *)fold->at[0]->w.data)[3], 2 * 0.5f * 8);
    cr_expect_eq(((const float *)fold->at[1]->w.data)[3], 2 * -2.0f * 8);
    fold_free(fold);
    sites.n = 1; /* another model: without the last level */
    order[0] = 0;
    at[0].name = (char *)name[1];
    cr_expect_eq(adapter_weigh(a, &sites, &b, &err), ERR_MISMATCH);
    b.n = 0;
    cr_expect_eq(adapter_weigh(a, &sites, &b, &err), 0);
    adapter_free(a);
    delta_list_release(&list);
    device_close(dev);
}
