/* Adapters found by what their weights do. */
#include "compose_fixture.h"
#include "shell.h"

#include "retrieve/find.h"
#include "retrieve/response.h"
#include "unet/rng.h"

#include <math.h>

#define ADAPTERS "assets/adapters/"
#define MODEL    "assets/model"

/* ---- fusion ---------------------------------------------------------------------------------- */

Test(retrieve, ranks_are_fused)
{
    const struct found a[] = {{.key = 7}, {.key = 5}, {.key = 3}}, b[] = {{.key = 5}, {.key = 9}};
    const struct found *const list[] = {a, b};
    const int n[] = {3, 2};
    static const int64_t order[] = {5, 7, 9, 3};
    struct found *out;
    struct err err;
    int total;
    cr_assert_eq(find_fuse(list, n, 2, &out, &total, &err), 0);
    cr_assert_eq(total, 4);
    for (int i = 0; i < total; i++)
        cr_expect_eq(out[i].key, order[i], "place %d", i);
    cr_expect_float_eq(out[0].score, 1. / 62 + 1. / 61, 1e-12);
    cr_expect_float_eq(out[1].score, 1. / 61, 1e-12);
    free(out);
}

/* ---- invariance ------------------------------------------------------------------------------ */

/* An adapter of rank R on every layer that takes the text in; its factors as given by make. */
enum { RANK = 4 };
struct made {
    struct delta_list list;
    float *memory[256];
    int n;
};

static float *keep(struct made *m, size_t n)
{
    cr_assert_lt(m->n, 256);
    return m->memory[m->n++] = calloc(n, sizeof(float));
}

static struct array two(const float *v, int rows, int cols)
{
    return (struct array){
        .dtype = DT_F32, .ndim = 2, .dim = {(uint64_t)rows, (uint64_t)cols}, .data = v};
}

/* b [out, rank] and a [rank, in] become b r and r^-1 a, r being triangular with `steep` on its diagonal from 1 on. */
static void disguise(float *b, float *a, int out, int in, int rank, double steep)
{
    for (int k = 0; k < rank; k++) {
        double d = pow(steep, k);
        for (int i = 0; i < out; i++)
            b[i * rank + k] = (float)(b[i * rank + k] * d);
        for (int j = 0; j < in; j++)
            a[k * in + j] = (float)(a[k * in + j] / d);
    }
    for (int k = 1; k < rank;
         k++) { /* b's column k takes half of the one before; a gives it back */
        for (int i = 0; i < out; i++)
            b[i * rank + k] += .5f * b[i * rank + k - 1];
        for (int j = 0; j < in; j++)
            a[(k - 1) * in + j] -= .5f * a[k * in + j];
    }
}

static void make_adapter(struct made *m, const struct model *model, int extra, double steep)
{
    struct rng r;
    struct err err;
    rng_init(&r, RNG_TORCH, 5);
    for (int s = 0; s < model->sites.n; s++) {
        const struct site *site = &model->sites.at[s];
        if (!strstr(site->name, ".attn2.to_k") && !strstr(site->name, ".attn2.to_v"))
            continue;
        int out = site->layer->out, in = site->layer->in, rank = RANK + extra;
        float *b = keep(m, (size_t)(out * rank)), *a = keep(m, (size_t)(rank * in));
        float tmp[32];
        for (int i = 0; i < out; i++) {
            rng_normal(&r, tmp, 32);
            memcpy(b + i * rank, tmp, RANK * sizeof *b); /* further ranks are zeros */
        }
        for (int k = 0; k < RANK; k++)
            rng_normal(&r, a + k * in, (size_t)in);
        if (steep > 0)
            disguise(b, a, out, in, rank, steep);
        struct delta *d = delta_list_add(&m->list, site->name, &err);
        cr_assert(d);
        d->kind = DELTA_PRODUCT;
        d->f[0].a = two(b, out, rank);
        d->f[0].b = two(a, rank, in);
    }
    cr_assert_gt(m->list.n, 1);
}

static double score_of(const struct responder *re, const struct model *model, int extra,
                       double steep, const char *text)
{
    struct made m = {.n = 0};
    struct adapter *a;
    struct bind_report report = {0};
    struct response response;
    struct query q;
    struct err err;
    make_adapter(&m, model, extra, steep);
    cr_assert_eq(adapter_bind(&a, model->dev, &model->sites, &m.list, "made", true, &report, &err),
                 0, "%s", err.msg);
    cr_assert_eq(responder_read(re, a, &response, &err), 0, "%s", err.msg);
    cr_assert_eq(responder_ask(re, text, &q, &err), 0, "%s", err.msg);
    double x[64];
    cr_assert(q.n > 0 && q.n < 64);
    response_tokens(re, &response, &q, x);
    double score = response_pool(x, NULL, q.n);
    query_release(&q);
    response_release(&response);
    bind_report_release(&report);
    adapter_free(a);
    delta_list_release(&m.list);
    for (int i = 0; i < m.n; i++)
        free(m.memory[i]);
    return score;
}

/* Only dW counts, not its factors: other factors of the same product, well and badly conditioned, and empty ranks.
 * Scores to 1e-3 (they are logarithms), 1e-2 where the factors differ by 10^6. */
Test(retrieve, only_the_product_counts)
{
    struct fixture f;
    struct responder *re;
    struct err err;
    fixture_open(&f, "an owl");
    cr_assert_eq(responder_open(&re, f.m, NULL, 0, &err), 0, "%s", err.msg);
    static const char *const texts[] = {"an owl", "a castle at night", "two red things"};
    double spread = 0, first = 0;
    for (int i = 0; i < 3; i++) {
        double plain = score_of(re, f.m, 0, 0, texts[i]);
        cr_expect(isfinite(plain));
        cr_expect_float_eq(score_of(re, f.m, 0, 2, texts[i]), plain, 1e-3, "%s", texts[i]);
        cr_expect_float_eq(score_of(re, f.m, 0, 100, texts[i]), plain, 1e-2, "%s", texts[i]);
        cr_expect_float_eq(score_of(re, f.m, 3, 0, texts[i]), plain, 1e-3, "%s", texts[i]);
        first = i ? first : plain;
        spread = fmax(spread, fabs(plain - first));
    }
    cr_expect_gt(spread, 1e-2, "the text makes no difference");
    struct query q;
    cr_expect_eq(responder_ask(re, "", &q, &err), ERR_ARG);
    query_release(&q);
    responder_close(re);
    fixture_close(&f);
}

/* ---- the command ----------------------------------------------------------------------------- */

static void search(struct shell *s, const char *text, const char *how)
{
    weft(s, "search", text, "--home", in(s, "home"), "--for", MODEL, "--json", how, NULL);
    cr_assert_eq(s->code, 0, "%s", s->err);
}

static const char *first_name(const struct shell *s)
{
    static char name[64];
    const char *p = strstr(s->out, "\"name\":\"");
    snprintf(name, sizeof name, "%.*s", p ? (int)strcspn(p + 8, "\"") : 0, p ? p + 8 : "");
    return name;
}

static double first_score(const struct shell *s)
{
    const char *p = strstr(s->out, "\"score\":");
    return p ? strtod(p + 8, NULL) : NAN;
}

/* Files without names or metadata are found by what they draw; so is the same adapter in other layouts, precisions and
 * factors, with the same score. */
Test(retrieve, nameless_files_are_found)
{
    static const char *const what[] = {"kite",     "tower",   "monkey",
                                       "cucumber", "lantern", "saxophone"};
    struct shell s;
    shell_open(&s);
    for (int i = 0; i < 6; i++) {
        char from[80], to[80], query[80];
        snprintf(from, sizeof from, ADAPTERS "%s.safetensors", what[i]);
        snprintf(to, sizeof to, "%.40s/%d.safetensors", s.dir, i);
        weft(&s, "resize", from, "--rank", "8", "-o", to, "--home", in(&s, "other"), NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        weft(&s, "add", to, "--home", in(&s, "home"), NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        snprintf(query, sizeof query, "%s", what[i]);
    }
    for (int turn = 0; turn < 2; turn++) /* read from the files, then from what was kept */
        for (int i = 0; i < 6; i++) {
            char query[80], name[16];
            snprintf(query, sizeof query, "a %s", what[i]);
            snprintf(name, sizeof name, "%d", i);
            search(&s, query, "--weights-only");
            cr_expect_str_eq(first_name(&s), name, "%s: %s", query, s.out);
        }
    search(&s, "a kite", "--words-only");
    cr_expect(!*s.out, "%s", s.out);
    shell_close(&s);
}

Test(retrieve, the_layout_makes_no_difference)
{
    static const char *const style[] = {"kohya", "diffusers", "peft"};
    struct shell s;
    shell_open(&s);
    double want = 0;
    for (int i = 0; i < 4; i++) {
        char file[80], home[80];
        snprintf(file, sizeof file, "%.40s/x%d.safetensors", s.dir, i);
        snprintf(home, sizeof home, "%.40s/home%d", s.dir, i);
        if (i < 3)
            weft(&s, "export", ADAPTERS "kite.safetensors", "--style", style[i], "-o", file,
                 "--home", home, NULL);
        else
            weft(&s, "resize", ADAPTERS "kite.safetensors", "--keep", "1", "-o", file, "--home",
                 home, NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        weft(&s, "add", file, "--home", home, NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        weft(&s, "search", "a kite", "--home", home, "--for", MODEL, "--weights-only", "--json",
             NULL);
        cr_assert_eq(s.code, 0, "%s", s.err);
        want = i ? want : first_score(&s);
        cr_expect_gt(want, .1, "%s", s.out);
        cr_expect_float_eq(first_score(&s), want, 2e-3, "%s", i < 3 ? style[i] : "resized");
    }
    shell_close(&s);
}

/* Words and weights together; what was asked for in writing alone stays as it was; a file that is gone is no error. */
Test(retrieve, words_and_weights)
{
    struct shell s;
    shell_open(&s);
    weft(&s, "add", ADAPTERS "kite.safetensors", ADAPTERS "tower.safetensors",
         ADAPTERS "neon.safetensors", "--copy", "--home", in(&s, "home"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    weft(&s, "tag", "tower", "+glow", "--category", "place", "--home", in(&s, "home"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    search(&s, "kite", NULL);
    cr_expect_str_eq(first_name(&s), "kite");
    cr_expect(strstr(s.out, "[kite]") && strstr(s.out, "most to kite"), "%s", s.out);
    search(&s, "glow", "--words-only");
    cr_expect_str_eq(first_name(&s), "tower");
    weft(&s, "search", "a kite", "--home", in(&s, "home"), "--for", MODEL, "--where",
         "category:place", "--json", "--weights-only", NULL);
    cr_expect(!strstr(s.out, "\"kite\""), "%s", s.out);
    weft(&s, "search", "a kite", "--home", in(&s, "home"), "--where", "colour:red", NULL);
    cr_expect_eq(s.code, 2);
    weft(&s, "search", "a kite", "--home", in(&s, "home"), "--weights-only", "--words-only", NULL);
    cr_expect_eq(s.code, 2);
    weft(&s, "search", "a kite", "--home", in(&s, "home"), "--for", in(&s, "nothing"), NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "nothing"), "%s", s.err);
    shell_close(&s);
}
