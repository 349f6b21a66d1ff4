/* Textual inversions in prompts: places and states against transformers (tests/golden/words.py), weights,
 * chunks, words with a vector for each cross attention, and what is refused. */
#include "compose/conditions.h"
#include "unet/model.h"
#include "unet/safetensors.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Relative error to transformers. */
#define BOUND 1e-5

static const struct {
    const char *name;
    int n;
} known[] = {{"birb-style", 2}, {"<krk>", 1}, {"owl", 3}, {"owl key", 1}};
static const char *const prompts[] = {"a birb-style key", "an Owl, BIRB-style.",
                                      "<krk> and a red owl <krk>",
                                      "owl birb-style owls an owl key owl", "nothing of them"};
#define N_PROMPTS 5

struct fixture {
    struct device *dev;
    struct model *m;
    struct safetensors *st;
    struct words *words;
    int width;
    float *vec;
};

static const struct array *golden(const struct fixture *f, const char *model, const char *what)
{
    char name[40];
    snprintf(name, sizeof name, "%s.%s", model, what);
    const struct array *a = safetensors_find(f->st, name);
    cr_assert(a, "no %s", name);
    return a;
}

static void fixture_open(struct fixture *f, const char *model)
{
    char dir[100];
    struct err err;
    memset(f, 0, sizeof *f);
    snprintf(dir, sizeof dir, "tests/golden/data/%s", model);
    f->dev = test_device("cpu");
    cr_assert_eq(model_open(&f->m, f->dev, dir, &err), 0, "%s", err.msg);
    cr_assert_eq(safetensors_open(&f->st, "tests/golden/data/words.safetensors", &err), 0);
    f->width = f->m->text->tower.width;
    const struct array *a = golden(f, model, "vec");
    f->vec = malloc(array_count(a) * sizeof *f->vec);
    array_to_f32(a, f->vec);
    cr_assert_eq(words_new(&f->words, f->m->tokenizer, f->width, &err), 0);
    for (int i = 0, row = 0; i < 4; row += known[i++].n)
        cr_assert_eq(
            words_add(f->words, known[i].name, f->vec + row * f->width, known[i].n, f->width, &err),
            0, "%s", err.msg);
}

static void fixture_close(struct fixture *f)
{
    words_free(f->words);
    free(f->vec);
    safetensors_close(f->st);
    model_close(f->m);
    device_close(f->dev);
}

static void check_states(struct fixture *f, const char *model)
{
    const struct array *ids = golden(f, model, "ids"), *hidden = golden(f, model, "hidden");
    size_t count = array_count(hidden), n_ids = array_count(ids);
    float *want = malloc(count * sizeof *want), *got = malloc(count * sizeof *got);
    int32_t *copy = malloc(n_ids * sizeof *copy);
    int len = (int)ids->dim[1];
    struct run r;
    struct err err;
    array_to_f32(hidden, want);
    memcpy(copy, ids->data, n_ids * sizeof *copy);
    run_init(&r, f->dev);
    run_measure(&r);
    clip_text_forward(f->m->text, &r, f->words, copy, N_PROMPTS, len, 0, 0);
    cr_assert_eq(run_commit(&r, &err), 0);
    struct tensor y = clip_text_forward(f->m->text, &r, f->words, copy, N_PROMPTS, len, 0, 0);
    cr_assert_eq(run_check(&r, &err), 0, "%s", err.msg);
    f->dev->be->download(f->dev, got, &y, &err);
    double e = test_error(got, want, count);
    cr_expect_leq(e, BOUND, "%s: off by %.2e", model, e);
    /* without the words the places are no tokens at all */
    run_reset(&r);
    clip_text_forward(f->m->text, &r, NULL, copy, N_PROMPTS, len, 0, 0);
    cr_expect_eq(run_check(&r, &err), ERR_MISMATCH);
    run_release(&r);
    free(want);
    free(got);
    free(copy);
}

static void check_model(const char *model)
{
    struct fixture f;
    struct err err;
    fixture_open(&f, model);
    const struct array *ids = golden(&f, model, "ids");
    int len = (int)ids->dim[1];
    for (int i = 0; i < N_PROMPTS; i++) {
        struct prompt_chunks c;
        cr_assert_eq(prompt_chunks_make(&c, f.m->tokenizer, f.words, prompts[i], len, &err), 0);
        cr_assert_eq(c.n_chunk, 1);
        const int32_t *want = (const int32_t *)ids->data + i * len;
        for (int k = 0; k < len; k++)
            cr_expect_eq(c.id[k], want[k], "%s: '%s' place %d: %d, not %d", model, prompts[i], k,
                         (int)c.id[k], (int)want[k]);
        prompt_chunks_release(&c);
    }
    for (int i = 0; i < 4; i++)
        cr_expect(words_used(f.words, i), "%s", known[i].name);
    check_states(&f, model);
    fixture_close(&f);
}

Test(words, places_and_states_are_the_references)
{
    check_model("tiny-sd1");
    check_model("tiny-sd2");
}

static float *layered(const struct fixture *f, const char *what, size_t *n)
{
    const struct array *a = golden(f, "layered", what);
    float *to = malloc(array_count(a) * sizeof *to);
    array_to_f32(a, to);
    *n = array_count(a);
    return to;
}

static void expect_near(const struct fixture *f, const struct tensor *y, const char *what)
{
    size_t n;
    struct err err;
    float *want = layered(f, what, &n), *got = malloc(n * sizeof *got);
    cr_assert_eq(tensor_count(y), n);
    f->dev->be->download(f->dev, got, y, &err);
    double e = test_error(got, want, n);
    cr_expect_leq(e, BOUND, "%s: off by %.2e", what, e);
    free(want);
    free(got);
}

/* Each of the 16 cross attentions looks at its own encoding of the prompt. */
static struct tensor look(struct fixture *f, struct run *r, struct conditions *c,
                          const struct tensor *hidden, const float *x)
{
    struct tensor at[16], in = run_tensor(r, 1, 8, 8, 4);
    double t = 321;
    for (int i = 0; i < 16; i++)
        at[i] = tensor_rows(hidden, i, 1);
    op_upload(r, &in, x);
    return unet_forward(f->m->unet, r, &in, &t, &(struct unet_text){at, c->n_layer}, NULL);
}

static void check_layers(struct fixture *f, struct conditions *c)
{
    struct run keep, r;
    struct err err;
    struct tensor hidden, y;
    size_t n;
    float *x = layered(f, "x", &n);
    run_init(&keep, f->dev);
    run_init(&r, f->dev);
    run_measure(&keep);
    run_tensor(&keep, 16, 32, 1, 16);
    cr_assert_eq(run_commit(&keep, &err), 0);
    hidden = run_tensor(&keep, 16, 32, 1, 16);
    cr_assert_eq(conditions_encode(c, f->m->text, 0, &r, &hidden, &err), 0, "%s", err.msg);
    expect_near(f, &hidden, "hidden");
    run_measure(&r);
    look(f, &r, c, &hidden, x);
    cr_assert_eq(run_commit(&r, &err), 0);
    y = look(f, &r, c, &hidden, x);
    cr_assert_eq(run_check(&r, &err), 0, "%s", err.msg);
    expect_near(f, &y, "y");
    free(x);
    run_release(&r);
    run_release(&keep);
}

Test(words, a_vector_for_each_cross_attention)
{
    struct fixture f;
    struct conditions c;
    struct err err;
    struct prompt p;
    size_t n;
    fixture_open(&f, "tiny-sd1");
    float *vec = layered(&f, "vec", &n);
    cr_assert_eq(words_add_layered(f.words, "<c1>", vec, 16, 16, &err), 0, "%s", err.msg);
    cr_expect_eq(words_add_layered(f.words, "<c2>", vec, 15, 16, &err), ERR_MISMATCH);
    cr_expect(strstr(err.msg, "'<c2>' has vectors for 15 cross attentions, '<c1>' for 16"), "%s",
              err.msg);
    cr_assert_eq(prompt_read(&p, "a red <c1> and a key", &err), 0);
    cr_assert_eq(conditions_parse(&c, f.m->tokenizer, f.words, 32, &p, NULL, 5, &err), 0);
    cr_assert_eq(c.n_layer, 16);
    cr_assert_eq(c.n_encode, 16);
    const int32_t *ids = golden(&f, "layered", "ids")->data;
    for (int i = 0; i < 32; i++)
        cr_expect((ids[i] < 0 && c.chunks[0].id[i] < 0) || ids[i] == c.chunks[0].id[i]);
    check_layers(&f, &c);
    conditions_release(&c);
    prompt_release(&p);
    free(vec);
    fixture_close(&f);
}

/* The ids of a prompt's first chunk between start and end: "w0w0w1 t" where the last letters say that a
 * place is of word 0, 1, … or a token. */
static void shape(struct fixture *f, const char *text, char *out)
{
    struct prompt_chunks c;
    struct err err;
    cr_assert_eq(prompt_chunks_make(&c, f->m->tokenizer, f->words, text, 32, &err), 0, "%s: %s",
                 text, err.msg);
    int32_t eos = tokenizer_eos(f->m->tokenizer);
    *out = 0;
    for (int i = 1; c.id[i] != eos; i++) {
        int row = -1 - c.id[i], w = 0;
        for (; w < 3 && row >= known[w].n; w++)
            row -= known[w].n;
        strcat(out, c.id[i] >= 0 ? "." : w == 0 ? "b" : w == 1 ? "k" : w == 2 ? "o" : "y");
    }
    prompt_chunks_release(&c);
}

Test(words, how_they_may_be_written)
{
    static const char *const cases[][2] = {
        {"<krk>", "k"},
        {"<krk>, <krk>.", "k.k."}, /* beside signs, where tokens run together */
        {"a <krk><krk>", ".kk"},
        {"(<krk>:1.2)", "k"},
        {"embedding:owl", "ooo"},
        {"embedding:birb-style, embedding:<krk>", "bb.k"},
        {"Embedding:OWL key", "y"},
        {"(embedding:owl:1.3)", "ooo"},
        {"owl", "ooo"},
        {"[owl]", "ooo"},
        {"an owl_owl", ".ooo.ooo"}, /* by tokens, as A1111: _ is one */
    };
    struct fixture f;
    char got[100];
    fixture_open(&f, "tiny-sd1");
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        shape(&f, cases[i][0], got);
        cr_expect_str_eq(got, cases[i][1], "'%s': %s, not %s", cases[i][0], got, cases[i][1]);
    }
    shape(&f, "embedding: owls", got); /* a word like others */
    cr_expect(!strchr(got, 'o'), "%s", got);
    shape(&f, "birb-styles", got);
    cr_expect(!strchr(got, 'b'), "%s", got);
    fixture_close(&f);
}

Test(words, weights)
{
    struct fixture f;
    struct prompt_chunks c;
    struct err err;
    fixture_open(&f, "tiny-sd1");
    cr_assert_eq(
        prompt_chunks_make(&c, f.m->tokenizer, f.words, "a (birb-style:1.2) [<krk>]", 32, &err), 0);
    int places = 0;
    for (int i = 0; i < 32; i++)
        if (c.id[i] < 0) {
            float want = places++ < 2 ? 1.2f : 1 / 1.1f;
            cr_expect_float_eq(c.weight[i], want, 1e-6, "%g", (double)c.weight[i]);
        }
    cr_expect(places == 3 && c.weighted);
    prompt_chunks_release(&c);
    fixture_close(&f);
}

/* A word's places never part: what does not fit goes into the next chunk, as in A1111. */
Test(words, chunks)
{
    struct fixture f;
    struct prompt_chunks c;
    struct err err;
    float *many = calloc(40 * 64, sizeof *many);
    fixture_open(&f, "tiny-sd1");
    /* room for 6: "an an an an" fills 4, three vectors do not fit any more */
    cr_assert_eq(prompt_chunks_make(&c, f.m->tokenizer, f.words, "a a a a owl a", 8, &err), 0);
    cr_assert_eq(c.n_chunk, 2);
    cr_expect(c.id[5] >= 0 && c.id[8 + 1] < 0 && c.id[8 + 3] == c.id[8 + 1] - 2);
    cr_expect_eq(c.id[8 + 4], c.id[1]);
    prompt_chunks_release(&c);
    /* with a comma near, what follows it moves along */
    cr_assert_eq(prompt_chunks_make(&c, f.m->tokenizer, f.words, "a, owl a a", 8, &err), 0);
    cr_assert_eq(c.n_chunk, 2);
    cr_expect(c.id[3] == tokenizer_eos(f.m->tokenizer) && c.id[8 + 1] < 0);
    prompt_chunks_release(&c);
    cr_assert_eq(words_add(f.words, "many", many, 40, f.width, &err), 0);
    cr_expect_eq(prompt_chunks_make(&c, f.m->tokenizer, f.words, "many", 32, &err), ERR_ARG);
    cr_expect(strstr(err.msg, "40 vectors, 30 are the most"), "%s", err.msg);
    free(many);
    fixture_close(&f);
}

Test(words, refusals)
{
    struct fixture f;
    struct prompt_chunks c;
    struct err err;
    fixture_open(&f, "tiny-sd1");
    const struct {
        const char *name;
        int n, width, code;
        const char *phrase;
    } bad[] = {
        {"wide", 1, 768, ERR_MISMATCH, "vectors of 768 values, this model's text encoder takes 16"},
        {"owl", 1, 16, ERR_ARG, "two embeddings are called 'owl'"},
        {"none", 0, 16, ERR_ARG, "0 vectors"},
        {"", 1, 16, ERR_ARG, "needs a name"},
        {"  ", 1, 16, ERR_ARG, "needs a name"},
        {"\xff", 1, 16, ERR_ARG, "not UTF-8"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        int rc = words_add(f.words, bad[i].name, f.vec, bad[i].n, bad[i].width, &err);
        cr_expect_eq(rc, bad[i].code, "%s: %d", bad[i].phrase, rc);
        cr_expect(rc == 0 || strstr(err.msg, bad[i].phrase), "%s", err.msg);
    }
    cr_assert_eq(words_add_refused(f.words, "<c1>", "one vector a layer", &err), 0);
    cr_expect_eq(prompt_chunks_make(&c, f.m->tokenizer, f.words, "a <c1>", 32, &err),
                 ERR_UNSUPPORTED);
    cr_expect(strstr(err.msg, "'<c1>': one vector a layer"), "%s", err.msg);
    /* one that was fine is refused too, once it is not clear any more which it is */
    cr_assert_eq(words_add_refused(f.words, "owl", "two files bring it", &err), 0);
    cr_expect_eq(prompt_chunks_make(&c, f.m->tokenizer, f.words, "owl", 32, &err), ERR_UNSUPPORTED);
    /* a name nobody gave is never read as text */
    for (int i = 0; i < 2; i++) {
        cr_expect_eq(prompt_chunks_make(&c, f.m->tokenizer, i ? f.words : NULL,
                                        "a embedding:nobody, b", 32, &err),
                     ERR_ARG);
        cr_expect(strstr(err.msg, "no embedding 'nobody,'"), "%s", err.msg);
    }
    fixture_close(&f);
}
