/* Adapter files in three key styles against peft (tests/golden/lora.py), as side branches and folded;
 * taking them away; files that do not fit or are damaged. */
#include "shared.h"
#include "store/adapter.h"
#include "store/site_name.h"
#include "unet/file.h"
#include "unet/model.h"
#include "unet/ops.h"
#include "unet/safetensors.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MODEL "tests/golden/data/tiny-sd1"

/* Relative error to peft, and of folded against unfolded: other roundings of the same sums. */
#define BOUND 1e-5

struct fixture {
    struct device *dev;
    struct model *m;
    struct safetensors *in, *want;
    struct run r;
};

static void fixture_open(struct fixture *f)
{
    struct err err;
    f->dev = test_device("cpu");
    cr_assert_eq(model_open(&f->m, f->dev, MODEL, &err), 0, "%s", err.msg);
    cr_assert_eq(safetensors_open(&f->in, MODEL "/golden.safetensors", &err), 0);
    cr_assert_eq(safetensors_open(&f->want, "tests/golden/data/lora.safetensors", &err), 0);
    run_init(&f->r, f->dev);
}

static void fixture_close(struct fixture *f)
{
    run_release(&f->r);
    safetensors_close(f->in);
    safetensors_close(f->want);
    model_close(f->m);
    device_close(f->dev);
}

static struct tensor input(struct fixture *f, const char *name, int n, int h, int w)
{
    size_t count;
    float *v = test_floats(f->in, name, &count);
    struct tensor t = run_tensor(&f->r, n, h, w, (int)(count / (size_t)(n * h * w)));
    op_upload(&f->r, &t, v);
    free(v);
    return t;
}

static struct tensor forward(struct fixture *f, bool text)
{
    static const double t[2] = {981, 21};
    if (text) {
        const struct array *ids = safetensors_find(f->in, "ids");
        int32_t copy[64];
        memcpy(copy, ids->data, sizeof copy);
        return clip_text_forward(f->m->text, &f->r, NULL, copy, 2, 32, 0, 0);
    }
    struct tensor x = input(f, "unet_square_x", 2, 8, 8), c = input(f, "text", 2, 32, 1);
    return unet_forward(f->m->unet, &f->r, &x, t, &(struct unet_text){&c, 1}, NULL);
}

/* The output with the adapters that f->r has in force, on the host. */
static float *output(struct fixture *f, bool text, size_t *n)
{
    struct err err;
    run_measure(&f->r);
    forward(f, text);
    cr_assert_eq(run_commit(&f->r, &err), 0, "%s", err.msg);
    struct tensor y = forward(f, text);
    cr_assert_eq(run_check(&f->r, &err), 0, "%s", err.msg);
    *n = tensor_count(&y);
    float *host = malloc(*n * sizeof *host);
    f->dev->be->download(f->dev, host, &y, &err);
    run_reset(&f->r);
    return host;
}

static struct adapter *bound(struct fixture *f, const char *path, struct adapter_file **file)
{
    struct bind_report report = {0};
    struct adapter *a = NULL;
    struct err err;
    cr_assert_eq(adapter_file_open(file, path, &err), 0, "%s", err.msg);
    cr_assert_eq(adapter_bind(&a, f->dev, &f->m->sites, &(*file)->list, "a", false, &report, &err),
                 0, "%s", err.msg);
    cr_expect_eq(report.n, 0, "%s: %s", path, report.n ? report.line[0] : "");
    bind_report_release(&report);
    return a;
}

static void check_style(const char *path, const char *style, const char *golden, int sites)
{
    struct fixture f;
    struct adapter_file *file = NULL;
    fixture_open(&f);
    size_t n, k;
    float *base[2] = {output(&f, false, &n), output(&f, true, &n)};
    struct adapter *a = bound(&f, path, &file);
    cr_expect_str_eq(file->style, style);
    cr_expect_eq(a->matched, sites, "%s: %d sites", path, a->matched);

    for (int text = 0; text < 2; text++)
        for (int half = 0; half < 2; half++) {
            char name[80];
            struct err err;
            struct fold *fold = NULL;
            float strength = half ? 0.5f : 1.0f;
            struct branch b = {.adapter = a, .row1 = 2, .strength = strength};
            const struct adapter *list[] = {a};
            snprintf(name, sizeof name, "%s %.1f %s", golden, (double)strength,
                     text ? "text" : "unet");
            float *want = test_floats(f.want, name, &k);

            f.r.branch = &b;
            f.r.n_branch = 1;
            float *beside = output(&f, text, &n);
            f.r.n_branch = 0;
            cr_assert_eq(fold_new(&fold, &f.m->sites, text ? COMPONENT_TEXT : COMPONENT_UNET, 1,
                                  list, &strength, &err),
                         0);
            f.r.fold = fold;
            float *folded = output(&f, text, &n);
            f.r.fold = NULL;
            fold_free(fold);
            float *after = output(&f, text, &n);

            double e = test_error(beside, want, n), ef = test_error(folded, beside, n);
            cr_expect_leq(e, BOUND, "%s: side branch is off by %.2e", name, e);
            cr_expect_leq(ef, BOUND, "%s: folded is off by %.2e", name, ef);
            cr_expect(!memcmp(after, base[text], n * sizeof *after),
                      "%s: the model is not what it was", name);
            free(want);
            free(beside);
            free(folded);
            free(after);
        }
    adapter_free(a);
    adapter_file_close(file);
    free(base[0]);
    free(base[1]);
    fixture_close(&f);
}

Test(lora, peft)
{
    check_style("tests/golden/data/lora-peft.safetensors", "peft", "peft", 265);
}

Test(lora, kohya)
{
    check_style("tests/golden/data/lora-kohya.safetensors", "kohya", "peft", 265);
}

Test(lora, diffusers_before_020)
{
    check_style("tests/golden/data/lora-diffusers.safetensors", "diffusers", "diffusers", 128);
}

/* Two adapters on a batch whose rows differ: row 0 has one, row 1 the other, as if run alone. */
Test(lora, each_row_may_have_its_own)
{
    struct fixture f;
    struct adapter_file *file[2];
    struct adapter *a[2];
    size_t n;
    fixture_open(&f);
    a[0] = bound(&f, "tests/golden/data/lora-kohya.safetensors", &file[0]);
    a[1] = bound(&f, "tests/golden/data/lora-diffusers.safetensors", &file[1]);
    struct branch mixed[2] = {{.adapter = a[0], .row0 = 0, .row1 = 1, .strength = 1},
                              {.adapter = a[1], .row0 = 1, .row1 = 2, .strength = 1}};
    struct branch first = {.adapter = a[0], .row1 = 2, .strength = 1},
                  second = {.adapter = a[1], .row1 = 2, .strength = 1};
    f.r.branch = mixed, f.r.n_branch = 2;
    float *both = output(&f, false, &n);
    f.r.branch = &first, f.r.n_branch = 1;
    float *one = output(&f, false, &n);
    f.r.branch = &second;
    float *two = output(&f, false, &n);
    cr_expect(!memcmp(both, one, n / 2 * sizeof *one), "row 0 is not what it is alone");
    cr_expect(!memcmp(both + n / 2, two + n / 2, n / 2 * sizeof *two), "row 1 is not");
    free(both);
    free(one);
    free(two);
    for (int i = 0; i < 2; i++) {
        adapter_free(a[i]);
        adapter_file_close(file[i]);
    }
    fixture_close(&f);
}

/* ---- names ----------------------------------------------------------------------------------- */

Test(site_name, spellings)
{
    static const char *const table[][2] = {
        {"lora_unet_down_blocks_0_attentions_1_transformer_blocks_0_attn1_to_q",
         "unet.down_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"},
        {"lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0",
         "unet.up_blocks.3.attentions.2.transformer_blocks.0.attn2.to_out.0"},
        {"lora_unet_mid_block_attentions_0_transformer_blocks_0_ff_net_0_proj",
         "unet.mid_block.attentions.0.transformer_blocks.0.ff.net.0.proj"},
        {"lora_unet_down_blocks_1_resnets_0_conv_shortcut",
         "unet.down_blocks.1.resnets.0.conv_shortcut"},
        {"lora_unet_down_blocks_1_resnets_0_time_emb_proj",
         "unet.down_blocks.1.resnets.0.time_emb_proj"},
        {"lora_unet_down_blocks_0_downsamplers_0_conv", "unet.down_blocks.0.downsamplers.0.conv"},
        {"lora_unet_time_embedding_linear_1", "unet.time_embedding.linear_1"},
        {"lora_unet_conv_in", "unet.conv_in"},
        {"lora_te_text_model_encoder_layers_11_self_attn_out_proj",
         "text_encoder.text_model.encoder.layers.11.self_attn.out_proj"},
        {"lora_te_text_model_encoder_layers_0_mlp_fc1",
         "text_encoder.text_model.encoder.layers.0.mlp.fc1"},
        {"unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_out",
         "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0"},
        {"mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q",
         "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q"},
        {"base_model.model.up_blocks.1.resnets.0.conv1", "unet.up_blocks.1.resnets.0.conv1"},
        {"text_encoder.text_model.encoder.layers.3.self_attn.to_q",
         "text_encoder.text_model.encoder.layers.3.self_attn.q_proj"},
        {"text_encoder.encoder.layers.3.mlp.fc2",
         "text_encoder.text_model.encoder.layers.3.mlp.fc2"},
        /* Stable Diffusion's first code and SDXL's */
        {"lora_unet_input_blocks_0_0", "unet.conv_in"},
        {"lora_unet_input_blocks_1_0_in_layers_2", "unet.down_blocks.0.resnets.0.conv1"},
        {"lora_unet_input_blocks_3_0_op", "unet.down_blocks.0.downsamplers.0.conv"},
        {"lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k",
         "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"},
        {"lora_unet_input_blocks_8_0_emb_layers_1", "unet.down_blocks.2.resnets.1.time_emb_proj"},
        {"lora_unet_middle_block_1_proj_in", "unet.mid_block.attentions.0.proj_in"},
        {"lora_unet_middle_block_2_out_layers_3", "unet.mid_block.resnets.1.conv2"},
        {"lora_unet_output_blocks_2_1_conv", "unet.up_blocks.0.upsamplers.0.conv"},
        {"lora_unet_output_blocks_2_2_conv", "unet.up_blocks.0.upsamplers.0.conv"},
        {"lora_unet_output_blocks_5_1_transformer_blocks_1_ff_net_0_proj",
         "unet.up_blocks.1.attentions.2.transformer_blocks.1.ff.net.0.proj"},
        {"lora_unet_output_blocks_11_0_skip_connection",
         "unet.up_blocks.3.resnets.2.conv_shortcut"},
        {"lora_unet_time_embed_0", "unet.time_embedding.linear_1"},
        {"lora_unet_label_emb_0_2", "unet.add_embedding.linear_2"},
        {"lora_unet_out_2", "unet.conv_out"},
        {"model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_v",
         "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_v"},
        {"diffusion_model.middle_block.0.in_layers.0", "unet.mid_block.resnets.0.norm1"},
        {"lora_te2_text_model_encoder_layers_31_mlp_fc2",
         "text_encoder_2.text_model.encoder.layers.31.mlp.fc2"},
        {"lora_te1_text_model_encoder_layers_0_self_attn_k_proj",
         "text_encoder.text_model.encoder.layers.0.self_attn.k_proj"},
        {"lora_te2_text_projection", "text_encoder_2.text_projection"},
        {"lycoris_mid_block_resnets_0_conv1", "unet.mid_block.resnets.0.conv1"},
        {"lora_prior_unet_conv_in", "unet.conv_in"},
        {"lora.lora_unet_conv_in", "unet.conv_in"},
        {"cond_stage_model.transformer.text_model.encoder.layers.0.mlp.fc1",
         "text_encoder.text_model.encoder.layers.0.mlp.fc1"},
    };
    char out[256];
    for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
        cr_assert(site_name(out, sizeof out, table[i][0], strlen(table[i][0])), "%s", table[i][0]);
        cr_expect_str_eq(out, table[i][1]);
    }
}

Test(site_name, refuses_what_it_does_not_know)
{
    static const char *const bad[] = {"",
                                      "lora_unet_",
                                      "lora_unet__a",
                                      "lora_unet_a_",
                                      "foo.bar",
                                      "transformer.blocks.0.attn.to_q",
                                      "lora_unet_input_blocks_0_1_to_q",
                                      "lora_unet_output_blocks_1_7",
                                      "lora_unet_middle_block_1"};
    char out[256], small[20], big[2000];
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        cr_expect(!site_name(out, sizeof out, bad[i], strlen(bad[i])), "%s", bad[i]);
    memset(big, 'a', sizeof big);
    memcpy(big, "lora_unet_", 10);
    cr_expect(!site_name(out, sizeof out, big, sizeof big));
    cr_expect(!site_name(small, sizeof small, "lora_unet_mid_block_resnets_0_conv1", 35));
}

/* Fills `set` with the first column of a list, cut before its last ".": one line a name. */
static char *names_of(const char *list)
{
    char path[300], line[600], *set = calloc(1, 4 << 20), *at = set;
    shared_path(path, sizeof path, list);
    FILE *f = fopen(path, "r");
    cr_assert(f, "%s", path);
    at += sprintf(at, "\n");
    while (fgets(line, sizeof line, f)) {
        line[strcspn(line, "\t\n")] = 0;
        char *dot = strrchr(line, '.');
        at += sprintf(at, "%.*s\n", dot ? (int)(dot - line) : 0, line);
    }
    fclose(f);
    return set;
}

/* Every weight that a real SDXL adapter names in the old way is one that SDXL has. */
Test(site_name, a_real_sdxl_adapter)
{
    static const char *const part[][2] = {
        {"unet.", "vectors/keys/sdxl_unet_diffusers.tsv"},
        {"text_encoder.", "vectors/keys/sdxl_text_encoder_diffusers.tsv"},
        {"text_encoder_2.", "vectors/keys/sdxl_text_encoder_2_diffusers.tsv"}};
    char path[300], line[600], out[256], want[300];
    shared_path(path, sizeof path, "vectors/keys/lora_kohya_sdxl_alien_style.tsv");
    char *has[3];
    int count[3] = {0};
    for (int i = 0; i < 3; i++)
        has[i] = names_of(part[i][1]);
    FILE *f = fopen(path, "r");
    while (fgets(line, sizeof line, f)) {
        size_t n = strcspn(line, ".");
        cr_assert(site_name(out, sizeof out, line, n), "%.*s", (int)n, line);
        for (int i = 0; i < 3; i++) {
            if (strncmp(out, part[i][0], strlen(part[i][0])))
                continue;
            snprintf(want, sizeof want, "\n%s\n", out + strlen(part[i][0]));
            cr_expect(strstr(has[i], want), "%s is no weight of SDXL", out);
            count[i]++;
        }
    }
    fclose(f);
    cr_expect(count[0] > 1000 && count[1] > 100 && count[2] > 100, "%d %d %d", count[0], count[1],
              count[2]);
    for (int i = 0; i < 3; i++)
        free(has[i]);
}

/* Every module name of a real kohya SD 1.5 adapter's key list is one that the model would have. */
Test(site_name, all_names_of_a_model_from_underscores)
{
    struct device *dev = test_device("cpu");
    struct model *m = NULL;
    struct err err;
    cr_assert_eq(model_open(&m, dev, MODEL, &err), 0, "%s", err.msg);
    for (int i = 0; i < m->sites.n; i++) {
        char flat[300], out[256];
        const struct site *s = &m->sites.at[i];
        if (s->part == COMPONENT_VAE)
            continue;
        const char *rest = strchr(s->name, '.') + 1;
        snprintf(flat, sizeof flat, "%s%s", s->part == COMPONENT_UNET ? "lora_unet_" : "lora_te_",
                 rest);
        for (char *p = flat; *p; p++)
            *p = *p == '.' ? '_' : *p;
        cr_assert(site_name(out, sizeof out, flat, strlen(flat)), "%s", flat);
        cr_expect_str_eq(out, s->name);
    }
    model_close(m);
    device_close(dev);
}

/* ---- files that cannot be used --------------------------------------------------------------- */

/* Writes a file of `n` float32 arrays of the given names and shapes (two dims), all values v. */
static void write_file(const char *path, const char *const *name, const uint64_t (*dim)[2], int n,
                       float v)
{
    struct safetensors_item item[8];
    struct err err;
    float *data = malloc(1 << 20);
    for (int i = 0; i < 1 << 18; i++)
        data[i] = v;
    for (int i = 0; i < n; i++) {
        item[i].name = name[i];
        item[i].a = (struct array){.dtype = DT_F32, .ndim = 2, .data = data};
        memcpy(item[i].a.dim, dim[i], sizeof dim[i]);
    }
    cr_assert_eq(safetensors_write(path, item, (size_t)n, NULL, 0, &err), 0, "%s", err.msg);
    free(data);
}

#define Q "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"

/* Opening or binding fails, and the message says these words. */
static void expect_refused(const char *const *name, const uint64_t (*dim)[2], int n, float v,
                           int code, const char *words)
{
    char path[] = "/tmp/weft-lora-XXXXXX";
    struct fixture f;
    struct adapter_file *file = NULL;
    struct adapter *a = NULL;
    struct bind_report report = {0};
    struct err err;
    close(mkstemp(path));
    write_file(path, name, dim, n, v);
    fixture_open(&f);
    int rc = adapter_file_open(&file, path, &err);
    if (rc == 0)
        rc = adapter_bind(&a, f.dev, &f.m->sites, &file->list, "x", false, &report, &err);
    cr_expect_eq(rc, code, "'%s' for: %s", rc ? err.msg : "accepted", words);
    cr_expect(rc == 0 || strstr(err.msg, words), "message was: %s", err.msg);
    adapter_free(a);
    adapter_file_close(file);
    bind_report_release(&report);
    fixture_close(&f);
    unlink(path);
}

Test(lora, refusals)
{
    const char *pair[] = {Q ".lora_down.weight", Q ".lora_up.weight"};
    const uint64_t wide[][2] = {{2, 320}, {320, 2}}, good[][2] = {{2, 16}, {16, 2}};
    const uint64_t torn[][2] = {{2, 16}, {16, 3}}, none[][2] = {{0, 16}, {16, 0}};
    /* another base: both widths are named */
    expect_refused(pair, wide, 2, 1, ERR_MISMATCH,
                   "320 wide in and 320 out, the model's weight 16");
    expect_refused(pair, torn, 2, 1, ERR_MISMATCH, "its factors do not multiply");
    expect_refused(pair, none, 2, 1, ERR_FORMAT, "no matrices");
    expect_refused(pair, good, 1, 1, ERR_FORMAT, "only the down one");
    expect_refused(pair, good, 2, NAN, ERR_FORMAT, "NaN");
    expect_refused(pair, good, 2, INFINITY, ERR_FORMAT, "infinite");
    const char *twice[] = {
        Q ".lora_down.weight", Q ".lora_up.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"};
    const uint64_t four[][2] = {{2, 16}, {16, 2}, {2, 16}, {16, 2}};
    expect_refused(twice, four, 4, 1, ERR_FORMAT, "twice");
    const char *hada[] = {Q ".lora_down.weight", Q ".hada_w1_a"};
    expect_refused(hada, good, 2, 1, ERR_FORMAT, "only the down one");
    const char *odd[] = {Q ".lora_down.weight", Q ".sideways"};
    expect_refused(odd, good, 2, 1, ERR_UNSUPPORTED, "no part of an adapter");
    const char *vera[] = {Q ".lora_down.weight", Q ".vera_lambda_b"};
    expect_refused(vera, good, 2, 1, ERR_UNSUPPORTED, "VeRA");
    const char *model[] = {"conv_in.weight", "conv_out.weight"};
    expect_refused(model, good, 2, 1, ERR_FORMAT, "a whole model");
    const char *strange[] = {"fish", "chips"};
    expect_refused(strange, good, 2, 1, ERR_UNSUPPORTED, "no adapter format weft knows");
    const char *flux[] = {"transformer.x.lora_A.weight", "transformer.x.lora_B.weight"};
    expect_refused(flux, good, 2, 1, ERR_MISMATCH, "the model has no such weight");
}

/* Real files by other people are at least read, and their scale is what their config says. */
Test(lora, peft_folder_and_its_config)
{
    char dir[] = "/tmp/weft-peft-XXXXXX", path[100], config[100];
    const char *pair[] = {
        "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight",
        "base_model.model.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_B.weight"};
    const uint64_t good[][2] = {{4, 16}, {16, 4}};
    static const struct {
        const char *json;
        float scale;
    } cases[] = {
        {"{\"r\": 4, \"lora_alpha\": 16}", 4},
        {"{\"r\": 4, \"lora_alpha\": 16, \"use_rslora\": true}", 8},
        {"{\"r\": 4, \"lora_alpha\": 16, \"alpha_pattern\": {\"attn1.to_q\": 2}}", 0.5},
        {"{\"r\": 4, \"lora_alpha\": 16, \"alpha_pattern\": {\"attn2.to_q\": 2}}", 4},
        {"{\"r\": 8, \"lora_alpha\": 2, \"rank_pattern\": {\"to_q\": 4}}", 0.5},
        {"{\"r\": 4}", 2},
    };
    struct err err;
    cr_assert(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/adapter_model.safetensors", dir);
    snprintf(config, sizeof config, "%s/adapter_config.json", dir);
    write_file(path, pair, good, 2, 1);
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct adapter_file *f = NULL;
        cr_assert_eq(file_replace(config, cases[i].json, strlen(cases[i].json), &err), 0);
        cr_assert_eq(adapter_file_open(&f, dir, &err), 0, "%s", err.msg);
        cr_expect_eq(f->list.item[0].d.scale, cases[i].scale, "%s: scale %g", cases[i].json,
                     (double)f->list.item[0].d.scale);
        adapter_file_close(f);
    }
    const char *pissa = "{\"r\": 4, \"init_lora_weights\": \"pissa\"}";
    struct adapter_file *f = NULL;
    cr_assert_eq(file_replace(config, pissa, strlen(pissa), &err), 0);
    cr_assert_eq(adapter_file_open(&f, dir, &err), ERR_UNSUPPORTED);
    unlink(path);
    unlink(config);
    rmdir(dir);
}
