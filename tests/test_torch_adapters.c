/* Adapters and textual inversions in torch files, and those whose factors have no names: against the
 * order in which torch walks (tests/golden/torch_adapters.py), and files of other people. */
#include "store/adapter.h"
#include "store/embedding.h"
#include "tests/shared.h"
#include "unet/file.h"
#include "unet/safetensors.h"

#include <ftw.h>
#include <limits.h>
#include <math.h>
#include <string.h>

#define OWN "tests/golden/data/torch/"

static struct adapter_file *open_ok(const char *path)
{
    struct adapter_file *f = NULL;
    struct err err;
    cr_assert_eq(adapter_file_open(&f, path, &err), 0, "%s", err.msg);
    return f;
}

static const struct delta *find(const struct adapter_file *f, const char *site)
{
    for (int i = 0; i < f->list.n; i++)
        if (!strcmp(f->list.item[i].site, site))
            return &f->list.item[i].d;
    cr_assert_fail("%s: nothing for %s", f->path, site);
    return NULL;
}

static float first(const struct array *a)
{
    float *v = malloc(array_count(a) * sizeof *v), x;
    array_to_f32(a, v);
    x = v[0];
    free(v);
    return x;
}

/* ---- factors by their place ------------------------------------------------------------------- */

#define MOST 200

/* The lines of cloneofsimo.txt; old: with GEGLU where diffusers had it before 0.16. */
static int read_order(char line[MOST][128], bool old)
{
    FILE *f = fopen(OWN "cloneofsimo.txt", "r");
    int n = 0;
    cr_assert_not_null(f);
    while (n < MOST && fscanf(f, "%127s", line[n]) == 1)
        n++;
    fclose(f);
    cr_assert_eq(n, 144 + 48);
    for (int b = 0; old && b < 144; b += 9) {
        char ff[128];
        memcpy(ff, line[b + 8], 128);
        memmove(line[b + 5], line[b + 4], (size_t)4 * 128);
        memcpy(line[b + 4], ff, 128);
    }
    return n;
}

static uint64_t width_of(const char *site)
{
    static const struct {
        const char *part;
        uint64_t width;
    } w[] = {{"down_blocks.0", 2}, {"down_blocks.1", 4}, {"up_blocks.2", 4}, {"up_blocks.3", 2}};
    for (int i = 0; i < 4; i++)
        if (strstr(site, w[i].part))
            return w[i].width;
    return 8;
}

/* A file as cloneofsimo writes it: the up factor of pair i is i + 1. */
static void write_pairs(const char *path, char line[MOST][128], int n, const char *classes)
{
    struct safetensors_item *item = calloc((size_t)n * 2, sizeof *item);
    static float value[MOST][64], one[64];
    static char key[2 * MOST][32];
    const char *const meta[2][2] = {{"unet", classes}, {"text_encoder", "[\"CLIPAttention\"]"}};
    struct err err;
    for (int i = 0; i < n; i++) {
        bool text = !strncmp(line[i], "text", 4), ff = strstr(line[i], ".ff.");
        bool cross = strstr(line[i], "attn2.to_k") || strstr(line[i], "attn2.to_v");
        uint64_t w = text ? 6 : width_of(line[i]);
        for (int k = 0; k < 64; k++)
            value[i][k] = (float)(i + 1), one[k] = 1;
        for (int down = 0; down < 2; down++) {
            struct safetensors_item *t = &item[2 * i + down];
            snprintf(key[2 * i + down], sizeof key[0], "%s:%d:%s", text ? "text_encoder" : "unet",
                     text ? i - 144 : i, down ? "down" : "up");
            t->name = key[2 * i + down];
            t->a = (struct array){.dtype = DT_F32, .ndim = 2, .data = down ? one : value[i]};
            t->a.dim[0] = down ? 1 : ff ? 8 * w : w;
            t->a.dim[1] = down ? cross ? 3 : w : 1;
        }
    }
    cr_assert_eq(safetensors_write(path, item, (size_t)n * 2, meta, 2, &err), 0, "%s", err.msg);
    free(item);
}

static void check_order(bool old)
{
    static char line[MOST][128];
    char path[] = "/tmp/weft-place-XXXXXX";
    int n = read_order(line, old);
    close(mkstemp(path));
    write_pairs(path, line, n, "[\"CrossAttention\", \"Attention\", \"GEGLU\"]");
    struct adapter_file *f = open_ok(path);
    cr_expect_str_eq(f->style, "cloneofsimo");
    cr_expect_eq(f->list.n, n);
    for (int i = 0; i < n; i++) {
        const struct delta *d = find(f, line[i]);
        cr_expect_eq(first(&d->f[0].a), (float)(i + 1), "%s has pair %g, not %d", line[i],
                     (double)first(&d->f[0].a) - 1, i);
        cr_expect_eq(d->scale, 1);
    }
    adapter_file_close(f);
    unlink(path);
}

Test(torch_adapters, factors_by_their_place)
{
    check_order(false);
    check_order(true);
}

static void expect_refused(const char *path, const char *words)
{
    struct adapter_file *f = NULL;
    struct err err = {0};
    int rc = adapter_file_open(&f, path, &err);
    cr_expect_eq(rc, ERR_UNSUPPORTED, "%s: %s", words, rc ? err.msg : "accepted");
    cr_expect(strstr(err.msg, words), "says: %s\nnot: %s", err.msg, words);
    adapter_file_close(f);
}

Test(torch_adapters, places_that_fit_no_model)
{
    static char line[MOST][128];
    char path[] = "/tmp/weft-place-XXXXXX";
    read_order(line, false);
    close(mkstemp(path));
    write_pairs(path, line, 144, "[\"ResnetBlock2D\", \"GEGLU\"]");
    expect_refused(path, "class ResnetBlock2D");
    write_pairs(path, line, 143, "[\"GEGLU\"]");
    expect_refused(path, "143 pairs of factors without names for the unet");
    memcpy(line[8], line[0], 128); /* a feed-forward that is none */
    write_pairs(path, line, 144, "[\"GEGLU\"]");
    expect_refused(path, "do not fit the UNet");
    unlink(path);
}

/* ---- named factors ---------------------------------------------------------------------------- */

Test(torch_adapters, ed_lora)
{
    static const char *const files[] = {OWN "ed_lora.pth", OWN "ed_lora_research.pth"};
    static const char *const sites[] = {
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q",
        "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k",
        "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "text_encoder.text_model.encoder.layers.0.self_attn.q_proj",
        "text_encoder.text_model.encoder.layers.1.self_attn.out_proj"};
    for (int i = 0; i < 2; i++) {
        struct adapter_file *f = open_ok(files[i]);
        struct embedding_list l = {0};
        struct err err;
        cr_expect_str_eq(f->style, "mix-of-show");
        cr_expect_str_eq(f->name, i ? "ed_lora_research" : "ed_lora");
        cr_expect_eq(f->list.n, 5);
        for (int k = 0; k < 5; k++) {
            const struct delta *d = find(f, sites[k]);
            cr_expect_eq(first(&d->f[0].a), (float)(k + 1));
            cr_expect(d->scale == 1 && delta_rank(d) == 4);
        }
        cr_assert_eq(embedding_read(&l, f->st, files[i], &err), 0, "%s", err.msg);
        cr_assert_eq(l.n, 2);
        cr_expect_str_eq(l.item[1].name, "<c2>");
        cr_expect(l.item[0].per_layer && l.item[0].n_vec == 16 && l.item[0].width == 16);
        embedding_list_release(&l);
        adapter_file_close(f);
    }
}

Test(torch_adapters, peft_folder)
{
    struct adapter_file *f = open_ok(OWN "peft");
    cr_assert_eq(f->list.n, 1);
    cr_expect_eq(f->list.item[0].d.scale, 4);
    cr_expect_str_eq(f->list.item[0].site,
                     "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q");
    adapter_file_close(f);
}

/* ---- textual inversions ------------------------------------------------------------------------ */

static struct embedding_list read_words(const char *path)
{
    struct embedding_list l = {0};
    struct tensor_file *f = NULL;
    struct err err;
    cr_assert_eq(tensor_file_open(&f, path, &err), 0, "%s", err.msg);
    cr_assert_eq(embedding_read(&l, f, path, &err), 0, "%s", err.msg);
    tensor_file_close(f);
    return l;
}

Test(torch_adapters, textual_inversions)
{
    struct embedding_list l = read_words(OWN "a1111.pt");
    cr_assert_eq(l.n, 1);
    cr_expect_str_eq(l.item[0].name, "a1111");
    cr_expect_str_eq(l.item[0].declared, "inner name");
    cr_expect(l.item[0].n_vec == 2 && l.item[0].width == 16 && !l.item[0].per_layer);
    for (int i = 0; i < 32; i++)
        cr_expect_eq(l.item[0].vec[i], (float)i / 16 - 1);
    embedding_list_release(&l);

    static const char *const tokens[] = {OWN "learned_embeds.bin",
                                         OWN "learned_embeds.safetensors"};
    for (int i = 0; i < 2; i++) {
        l = read_words(tokens[i]);
        cr_assert_eq(l.n, 1);
        cr_expect_str_eq(l.item[0].name, "<owl-toy>");
        cr_expect(l.item[0].n_vec == 1 && l.item[0].width == 16 && !l.item[0].declared);
        cr_expect_eq(l.item[0].vec[3], 3.f / 16 - 1);
        embedding_list_release(&l);
    }
    l = read_words(OWN "both.safetensors");
    cr_assert_eq(l.n, 2);
    cr_expect(l.item[0].width + l.item[1].width == 48);
    cr_expect(!strcmp(l.item[0].name, "both") && !strcmp(l.item[1].name, "both"));
    embedding_list_release(&l);

    l = read_words(OWN "bundle.safetensors");
    cr_assert_eq(l.n, 2);
    cr_expect(!strcmp(l.item[0].name, "my.word") || !strcmp(l.item[1].name, "my.word"));
    embedding_list_release(&l);
    struct adapter_file *f = open_ok(OWN "bundle.safetensors");
    cr_expect_eq(f->list.n, 1);
    adapter_file_close(f);
    expect_refused(OWN "a1111.pt", "a textual inversion");
}

/* ---- files of other people ---------------------------------------------------------------------- */

/* Both files change the same weights at the same ranks; equal: with the same values. */
static void check_pair(const char *torch, const char *st, int n, bool equal)
{
    struct adapter_file *a = open_ok(torch), *b = open_ok(st);
    cr_assert(a->list.n == n && b->list.n == n, "%d and %d", a->list.n, b->list.n);
    for (int i = 0; i < n; i++) {
        const struct delta *x = &a->list.item[i].d, *y = find(b, a->list.item[i].site);
        size_t up = array_count(&x->f[0].a) * dtype_bits(x->f[0].a.dtype) / 8;
        size_t down = array_count(&x->f[0].b) * dtype_bits(x->f[0].b.dtype) / 8;
        cr_assert(delta_rank(x) == delta_rank(y) && x->scale == y->scale &&
                  x->f[0].a.dtype == y->f[0].a.dtype);
        cr_assert(array_count(&x->f[0].a) == array_count(&y->f[0].a) &&
                  array_count(&x->f[0].b) == array_count(&y->f[0].b));
        cr_expect_eq(!memcmp(x->f[0].a.data, y->f[0].a.data, up), equal);
        cr_expect_eq(!memcmp(x->f[0].b.data, y->f[0].b.data, down), equal);
    }
    adapter_file_close(a);
    adapter_file_close(b);
}

Test(torch_adapters, one_lora_in_two_containers)
{
    check_pair(OWN "lora-diffusers.bin", "tests/golden/data/lora-diffusers.safetensors", 128, true);
}

/* These two have one name and hold two trainings: torch too finds not one equal tensor. */
Test(torch_adapters, two_trainings_of_the_same_weights)
{
    char a[PATH_MAX], b[PATH_MAX];
    shared_path(a, sizeof a,
                "adapters/catundchat+stable-diffusion-v1.5-lora/pytorch_lora_weights.bin");
    shared_path(b, sizeof b,
                "adapters/catundchat+stable-diffusion-v1.5-lora/pytorch_lora_weights.safetensors");
    check_pair(a, b, 128, false);
}

/* What becomes of each. */
Test(torch_adapters, verdicts)
{
#define CLONE "adapters/cloneofsimo+lora/"
#define PEFT  "adapters/huggingface+peft/"
#define REGR  PEFT "tests/regression/"
    static const struct {
        const char *file;
        int deltas, words; /* deltas 0: refused with the phrase */
        const char *phrase;
    } files[] = {
        {CLONE "example_loras/lora_pop.pt", 128, 0, ""},
        {CLONE "example_loras/analog_svd_rank4.safetensors", 192, 0, ""},
        {CLONE "example_loras/lora_disney.safetensors", 192, 2, ""},
        {CLONE "example_loras/lora_disney_inpainting.safetensors", 192, 2, ""},
        {CLONE "example_loras/analog_svd_distill.text_encoder.pt", 48, 0, ""},
        {CLONE "example_loras/lora_kiriko2.text_encoder.pt", 48, 0, ""},
        {CLONE "contents/lora_kiriko.text_encoder.pt", 92, 0, ""},
        {CLONE "example_loras/lora_kiriko2.ti.pt", 0, 1, "a textual inversion"},
        {"adapters/fastai+diffusion-nbs/learned_embeds.bin", 0, 1, "a textual inversion"},
        {"adapters/huggingface+diffusers/examples/textual_inversion/textual_inversion_frida/"
         "learned_embeds_1.bin",
         0, 1, "a textual inversion"},
        {"adapters/huggingface+diffusers/examples/textual_inversion/automatic_embed/flora.pt", 0, 1,
         "a textual inversion"},
        {PEFT "sd21_text_inv.pt", 0, 1, "a textual inversion"},
        {"adapters/invoke-ai+InvokeAI/tests/backend/model_manager/data/test_files/"
         "test_embedding.safetensors",
         0, 1, "a textual inversion"},
        {"adapters/huggingface+diffusers/cat.pt", 0, 0, "no adapter format weft knows"},
        {"adapters/huggingface+diffusers/dog.pt", 0, 0, "no adapter format weft knows"},
        {REGR "lora_opt-125m_bnb_4bit/0.5.0/adapter_model.bin", 24, 0, ""},
        {REGR "lora_conv2d/0.6.1/adapter_model.bin", 1, 0, ""},
        {REGR "lora_mlp/0.6.1/adapter_model.bin", 1, 0, ""},
    };
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        char path[PATH_MAX];
        struct adapter_file *f = NULL;
        struct err err = {0};
        int rc = adapter_file_open(&f, shared_path(path, sizeof path, files[i].file), &err);
        cr_expect_eq(rc == 0 ? f->list.n : 0, files[i].deltas, "%s: %d deltas: %s", path,
                     rc == 0 ? f->list.n : 0, rc ? err.msg : "");
        if (rc < 0)
            cr_expect(*files[i].phrase && strstr(err.msg, files[i].phrase), "%s", err.msg);
        struct embedding_list l = read_words(path);
        cr_expect_eq(l.n, files[i].words, "%s: %d words", path, l.n);
        embedding_list_release(&l);
        adapter_file_close(f);
    }
}

/* No file of the folder crashes, and those that cannot be used say why in one line. */
static int used, refused;

static int try_file(const char *path, const struct stat *st, int type, struct FTW *ftw)
{
    struct adapter_file *f = NULL;
    struct err err = {0};
    (void)st, (void)ftw;
    if (type != FTW_F)
        return 0;
    int rc = adapter_file_open(&f, path, &err);
    used += rc == 0;
    refused += rc < 0;
    if (rc < 0)
        cr_expect(strlen(err.msg) > strlen(path) && !strncmp(err.msg, path, strlen(path)), "%s",
                  err.msg);
    adapter_file_close(f);
    return 0;
}

Test(torch_adapters, every_file_has_a_verdict)
{
    char path[PATH_MAX];
    cr_assert_eq(nftw(shared_path(path, sizeof path, "adapters"), try_file, 16, FTW_PHYS), 0);
    cr_assert_eq(nftw(shared_path(path, sizeof path, "containers"), try_file, 16, FTW_PHYS), 0);
    cr_expect_geq(used, 13, "%d", used);
    cr_expect_geq(refused, 60, "%d", refused);
}
