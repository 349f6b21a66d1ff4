/* Pictures made by strategies, bit for bit where they must agree; what is told of them. */
#include "compose_fixture.h"

#include "compose/gatemap.h"
#include "compose/generate.h"
#include "compose/influence.h"
#include "compose/maps.h"
#include "compose/variants.h"
#include "store/adapter.h"
#include "unet/sampler.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct made {
    float *latent;
    size_t n;
    int passes;
    double flops;
};

/* n adapters from the first on, six steps. */
static struct made make(struct fixture *f, const char *compose, int n, bool fold)
{
    struct generator *g;
    struct picture p;
    struct image im;
    struct cost cost;
    struct err err;
    struct made out;
    picture_init(&p, f->m);
    p.prompt = &f->prompt;
    p.negative = &f->negative;
    p.steps = 6;
    p.seed = 3;
    p.use = f->use;
    p.n_use = n;
    p.fold = fold;
    p.gates = f->gates;
    p.compose = compose;
    cr_assert_eq(generator_open(&g, f->m, &err), 0, "%s", err.msg);
    cr_assert_eq(generator_prepare(g, &p, 1, &cost, &err), 0, "%s: %s", compose, err.msg);
    cr_assert_eq(generator_run(g, &im, NULL, NULL, &err), 0, "%s: %s", compose, err.msg);
    const float *z = generator_latent(g, 0, &out.n);
    out.latent = malloc(out.n * sizeof *z);
    memcpy(out.latent, z, out.n * sizeof *z);
    out.passes = cost.passes;
    out.flops = cost.flops;
    image_release(&im);
    generator_close(g);
    return out;
}

static bool same(struct fixture *f, const char *x, int n_x, const char *y, int n_y)
{
    struct made a = make(f, x, n_x, false), b = make(f, y, n_y, false);
    bool is = a.n == b.n && !memcmp(a.latent, b.latent, a.n * sizeof *a.latent);
    free(a.latent);
    free(b.latent);
    return is;
}

Test(compose, one_adapter_is_itself_in_all)
{
    struct fixture f;
    fixture_open(&f, "an owl AND a castle:0.5");
    cr_expect(same(&f, "merge", 1, "switch", 1));
    cr_expect(same(&f, "merge", 1, "composite", 1));
    cr_expect(same(&f, "merge", 1, "composite:deepcache=1", 1));
    cr_expect(same(&f, "merge", 1, "cmlora:interval=1", 1));
    cr_expect(same(&f, "merge", 1, "superpose", 1));
    cr_expect(same(&f, "composite", 3, "cmlora:interval=1,weights=equal", 3));
    cr_expect(!same(&f, "composite", 3, "cmlora:weights=equal", 3));
    cr_expect(same(&f, "merge", 2, "merge:uncond=adapted", 2));
    cr_expect(!same(&f, "merge", 2, "merge:uncond=base", 2),
              "the halves have adapters of their own");
    cr_expect(!same(&f, "merge", 2, "composite", 2));
    cr_expect(!same(&f, "merge", 2, "switch:tau=2", 2));
    cr_expect(!same(&f, "merge", 1, "merge:deepcache=2", 1));
    fixture_close(&f);
}

/* Several adapters beside the weights draw what they draw folded into them, and each of them counts: relative
 * error of the latent after six steps. */
Test(compose, beside_is_folded)
{
    struct fixture f;
    struct made last = {0};
    fixture_open(&f, "an owl");
    for (int n = 1; n <= N_LORA; n++) {
        struct made a = make(&f, "merge", n, false), b = make(&f, "merge", n, true);
        double e = test_error(a.latent, b.latent, a.n);
        cr_expect_lt(e, 1e-4, "%d adapters: %g", n, e);
        if (last.latent)
            cr_expect_gt(test_error(a.latent, last.latent, a.n), 1e-2, "the %d. adds nothing", n);
        free(last.latent);
        free(b.latent);
        last = a;
    }
    free(last.latent);
    fixture_close(&f);
}

/* Weights forced to 1 leave the plain sum (relative 1e-4); others do not, and half the pieces are not all. One
 * adapter alone is not routed. */
Test(compose, mora_without_routing_is_merge)
{
    struct fixture f;
    fixture_open(&f, "an owl");
    struct made sum = make(&f, "merge", 3, false), open = make(&f, "mora:tau=1e9,keep=1", 3, false),
                half = make(&f, "mora:tau=1e9,keep=.5", 3, false),
                soft = make(&f, "mora:tau=.3,keep=1", 3, false);
    cr_expect_eq(open.passes, sum.passes);
    cr_expect_lt(test_error(open.latent, sum.latent, sum.n), 1e-4);
    cr_expect_gt(test_error(half.latent, sum.latent, sum.n), 1e-3);
    cr_expect_gt(test_error(soft.latent, sum.latent, sum.n), 1e-3);
    cr_expect(same(&f, "mora:tau=.3", 1, "merge", 1));
    free(sum.latent);
    free(open.latent);
    free(half.latent);
    free(soft.latent);
    fixture_close(&f);
}

/* Through gates, one adapter or more; without gates it says so. */
/* Masks of 1 are the plain sum (relative 1e-4), and so is a picture of no words; else each has its places. */
Test(compose, attend_where_nothing_is_divided_is_merge)
{
    struct fixture f;
    fixture_open(&f, "an owl on a castle");
    struct made sum = make(&f, "merge", 3, false), all = make(&f, "attend:leak=1", 3, false),
                some = make(&f, "attend", 3, false);
    cr_expect_lt(test_error(all.latent, sum.latent, sum.n), 1e-4);
    cr_expect_gt(test_error(some.latent, sum.latent, sum.n), 1e-3);
    cr_expect_eq(some.passes, sum.passes);
    cr_expect_lt(some.flops / sum.flops, 1.02, "%g", some.flops / sum.flops);
    cr_expect(same(&f, "attend", 2, "attend", 2), "it begins anew with each picture");
    free(sum.latent);
    free(all.latent);
    free(some.latent);
    fixture_close(&f);
    fixture_open(&f, "a red mushroom");
    cr_expect(same(&f, "attend", 3, "merge", 3));
    fixture_close(&f);
}

/* What each pass of clora is told: its own adapter's trigger, of the others the rest, the base of all; who has no trigger of
 * its own, and prompts that change, stand as they are. Then each text's words are the right ones. */
Test(compose, clora_has_prompts_of_its_own)
{
    static const char *const groups[] = {"zot owl\nzot\nowl", "kra castle\ncastle", "mist"};
    struct fixture f;
    struct generator *g;
    struct picture p;
    struct err err;
    struct made alike, apart;
    fixture_open(&f, "a zot owl on a kra castle in mist");
    for (int i = 0; i < 3; i++)
        f.use[i].words = groups[i];
    picture_init(&p, f.m);
    p.prompt = &f.prompt;
    p.negative = &f.negative;
    p.steps = 3;
    p.use = f.use;
    p.n_use = 3;
    p.compose = "clora";
    cr_assert_eq(generator_open(&g, f.m, &err), 0);
    cr_assert_eq(generator_prepare(g, &p, 1, NULL, &err), 0, "%s", err.msg);
    const struct passes *of = generator_passes(g, 0);
    const struct variants *v = of->variants;
    static const char *const want[] = {"a zot owl on a castle in mist",
                                       "a owl on a kra castle in mist", "a owl on a castle in mist",
                                       "a owl on a castle in mist"};
    for (int i = 0; i < 4; i++) {
        struct tokens t = {0};
        cr_assert_eq(tokenizer_encode(f.m->tokenizer, want[i], -1, &t, &err), 0);
        const int32_t *id = of->cond->chunks[v->text[i]].id + 1;
        for (size_t k = 0; k < t.n; k++)
            cr_expect_eq(id[k], t.id[k], "%s: token %zu", want[i], k);
        tokens_release(&t);
        for (int k = 0; k < 3; k++) {
            int n, own = 0;
            const unsigned char *owns = maps_tokens(of->maps, v->text[i], k, &n);
            for (int j = 0; j < n; j++)
                own += owns[j];
            cr_expect_gt(own, 0, "%s has words of %d", want[i], k);
        }
    }
    generator_close(g);
    apart = make(&f, "clora", 2, false);
    f.use[0].words = "zot owl";
    f.use[1].words = "kra castle";
    alike = make(&f, "clora", 2, false);
    cr_expect_gt(test_error(apart.latent, alike.latent, alike.n), 1e-4);
    free(apart.latent);
    free(alike.latent);
    fixture_close(&f);
}

/* All adapters' parts and the base's sum up to 1. */
static void check_parts(const struct generator *g, int adapters)
{
    int h, w;
    const float *part[4];
    for (int i = 0; i <= adapters; i++)
        cr_assert(part[i] = generator_mask(g, 0, i, &h, &w));
    for (int p = 0; p < h * w; p++) {
        float sum = 0;
        for (int i = 0; i <= adapters; i++) {
            cr_expect(part[i][p] >= 0 && part[i][p] <= 1);
            sum += part[i][p];
        }
        cr_expect_float_eq(sum, 1, 1e-6);
    }
}

/* Each adapter's pass counts in its part alone: one step with places that are given, and where the second's are not nothing
 * of it is seen, to the bit. Parts that follow from words sum up to 1, and moving the picture changes it. */
Test(compose, clora_has_parts)
{
    static const float left[2] = {1, 0}, right[2] = {0, 1};
    struct fixture f;
    struct generator *g;
    struct picture p;
    struct err err;
    float *first = NULL, strength[2] = {1, .3f};
    fixture_open(&f, "an owl on a castle");
    for (int turn = 0; turn < 2; turn++) {
        struct use use[2] = {f.use[0], f.use[1]};
        struct image im;
        size_t n, differ = 0;
        for (int i = 0; i < 2; i++) {
            use[i].where = i ? right : left;
            use[i].where_h = 1;
            use[i].where_w = 2;
            use[i].te = 0;
        }
        use[1].unet = strength[turn];
        picture_init(&p, f.m);
        p.prompt = &f.prompt;
        p.negative = &f.negative;
        p.steps = 1;
        p.use = use;
        p.n_use = 2;
        p.compose = "clora:every=0";
        cr_assert_eq(generator_open(&g, f.m, &err), 0);
        cr_assert_eq(generator_prepare(g, &p, 1, NULL, &err), 0, "%s", err.msg);
        cr_assert_eq(generator_run(g, &im, NULL, NULL, &err), 0, "%s", err.msg);
        const float *z = generator_latent(g, 0, &n);
        check_parts(g, 2);
        size_t row = n / (size_t)(im.h / f.m->vae->factor);
        for (size_t i = 0; i < n && turn; i++) {
            bool is_left = i % row < row / 4;
            cr_expect(!is_left || z[i] == first[i], "value %zu", i);
            differ += i % row >= row / 2 && z[i] != first[i];
        }
        cr_expect(!turn || differ > n / 3, "%zu differ on the right", differ);
        if (!turn)
            first = memcpy(malloc(n * sizeof *z), z, n * sizeof *z);
        image_release(&im);
        generator_close(g);
    }
    free(first);
    picture_init(&p,
                 f.m); /* the second step reuses deep features: where is looked at all the same */
    p.prompt = &f.prompt;
    p.negative = &f.negative;
    p.steps = 2;
    p.use = f.use;
    p.n_use = 2;
    p.compose = "clora:deepcache=2";
    struct image im;
    int h, w, base = 0;
    cr_assert_eq(generator_open(&g, f.m, &err), 0);
    cr_assert_eq(generator_prepare(g, &p, 1, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(generator_run(g, &im, NULL, NULL, &err), 0, "%s", err.msg);
    const float *part = generator_mask(g, 0, 2, &h, &w);
    for (int i = 0; i < h * w; i++)
        base += part[i] == 1;
    cr_expect_lt(base, h * w, "not all is the base's");
    image_release(&im);
    generator_close(g);
    struct made still = make(&f, "clora:every=0", 3, false), moved = make(&f, "clora", 3, false),
                far = make(&f, "clora:rate=2000,maps=both", 3, false),
                apart = make(&f, "clora:rate=2000,maps=both,memory=least", 3, false);
    cr_expect_gt(test_error(far.latent, still.latent, still.n), 1e-2);
    cr_expect_lt(test_error(apart.latent, far.latent, far.n), 1e-4, "one by one is the same");
    cr_expect_gt(apart.flops, far.flops);
    free(far.latent);
    free(apart.latent);
    cr_expect_eq(still.passes, moved.passes);
    cr_expect_gt(moved.flops, still.flops);
    cr_expect_gt(test_error(moved.latent, still.latent, still.n), 1e-5);
    free(still.latent);
    free(moved.latent);
    f.use[0].words = f.use[1].words = "";
    cr_expect(same(&f, "clora", 2, "merge", 2), "who has no words is meant for the whole picture");
    cr_expect(same(&f, "composer", 2, "merge", 2));
    fixture_close(&f);
}

/* A first phase whose picture is thrown away: with masks of 1 behind it, merge. */
Test(compose, freefuse_begins_anew)
{
    struct fixture f;
    fixture_open(&f, "an owl on a castle");
    struct made sum = make(&f, "merge", 2, false), all = make(&f, "freefuse:leak=1", 2, false),
                some = make(&f, "freefuse", 2, false);
    cr_expect_lt(test_error(all.latent, sum.latent, sum.n), 1e-4);
    cr_expect_gt(test_error(some.latent, sum.latent, sum.n), 1e-3);
    cr_expect_eq(some.passes, sum.passes / 6 * (6 + 2), "two of six steps come first");
    cr_expect(same(&f, "freefuse", 2, "freefuse", 2));
    cr_expect(same(&f, "freefuse", 1, "merge", 1));
    free(sum.latent);
    free(all.latent);
    free(some.latent);
    fixture_close(&f);
}

Test(compose, gated)
{
    struct fixture f;
    fixture_open(&f, "an owl");
    cr_expect(!same(&f, "gated", 2, "merge", 2));
    cr_expect(!same(&f, "gated", 1, "merge", 1), "one goes through gates too");
    cr_expect(same(&f, "gated", 0, "merge", 0));
    struct generator *g;
    struct picture p;
    struct err err;
    picture_init(&p, f.m);
    p.prompt = &f.prompt;
    p.negative = &f.negative;
    p.use = f.use;
    p.n_use = 2;
    p.compose = "gated";
    cr_assert_eq(generator_open(&g, f.m, &err), 0);
    cr_expect_eq(generator_prepare(g, &p, 1, NULL, &err), ERR_ARG);
    cr_expect(strstr(err.msg, "gates"), "%s", err.msg);
    generator_close(g);
    fixture_close(&f);
}

/* Watching gates changes no pixel; every step of every site with gates is seen, for each adapter that it has. */
Test(compose, gates_are_watched)
{
    struct fixture f;
    struct gatemap map;
    struct generator *g;
    struct picture p;
    struct image im;
    struct err err;
    size_t n;
    fixture_open(&f, "an owl");
    struct made plain = make(&f, "gated", 2, false);
    picture_init(&p, f.m);
    p.prompt = &f.prompt;
    p.negative = &f.negative;
    p.steps = 6;
    p.seed = 3;
    p.use = f.use;
    p.n_use = 2;
    p.gates = f.gates;
    p.compose = "gated";
    cr_assert_eq(gatemap_init(&map, f.m, &p, &err), 0);
    p.gatemap = &map;
    cr_assert_eq(generator_open(&g, f.m, &err), 0);
    cr_assert_eq(generator_prepare(g, &p, 1, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(generator_run(g, &im, NULL, NULL, &err), 0, "%s", err.msg);
    const float *z = generator_latent(g, 0, &n);
    cr_expect(n == plain.n && !memcmp(z, plain.latent, n * sizeof *z), "another picture");
    double share[GATEMAP_BY], all = 0;
    int seen = 0;
    for (int s = 0; s < f.m->sites.n; s++)
        for (int a = 0; a < 2; a++) {
            bool met = f.gates->at[s] && f.use[a].adapter->at[s];
            seen += met;
            for (int t = 0; t < 6; t++) {
                double v = gatemap_mean(&map, a, s, t);
                cr_expect(met ? isfinite(v) && v != 0 : isnan(v), "%s, adapter %d: %g",
                          f.m->sites.at[s].name, a, v);
            }
        }
    cr_expect_gt(seen, 8);
    gatemap_explained(&map, share);
    for (int k = 0; k < GATEMAP_BY; k++) {
        cr_expect(share[k] >= 0 && share[k] <= 1, "%d: %g", k, share[k]);
        all += share[k];
    }
    cr_expect(all > .1 && all <= 1, "random gates differ most by site: %g", all);
    image_release(&im);
    generator_close(g);
    gatemap_release(&map);
    free(plain.latent);
    fixture_close(&f);
}

/* A switch whose turns are longer than the picture is its first adapter, and its texts. */
Test(compose, a_long_turn_is_the_first_adapter)
{
    struct fixture f;
    fixture_open(&f, "an owl");
    cr_expect(same(&f, "switch:tau=6", 3, "merge", 1));
    cr_expect(!same(&f, "switch:tau=5", 3, "merge", 1));
    fixture_close(&f);
}

/* Five passes of three rows go in two batches of eight rows: the mean of composite is that of the passes, each
 * alone. Compared after one step, where the mean is all there is: relative 1e-5. */
Test(compose, batches_change_nothing)
{
    struct fixture f;
    fixture_open(&f, "an owl AND a castle:0.5");
    struct use three[N_LORA];
    memcpy(three, f.use, sizeof three);
    struct use many[5] = {three[0], three[1], three[2], three[0], three[1]};
    struct generator *g;
    struct picture p;
    struct image im;
    struct err err;
    float *sum = NULL, *all = NULL;
    size_t n = 0;
    picture_init(&p, f.m);
    p.prompt = &f.prompt;
    p.negative = &f.negative;
    p.steps = 1;
    p.seed = 3;
    for (int k = 0; k < 6; k++) { /* five alone, then all */
        p.use = k < 5 ? &many[k] : many;
        p.n_use = k < 5 ? 1 : 5;
        p.compose = "composite";
        cr_assert_eq(generator_open(&g, f.m, &err), 0);
        cr_assert_eq(generator_prepare(g, &p, 1, NULL, &err), 0, "%s", err.msg);
        cr_assert_eq(generator_run(g, &im, NULL, NULL, &err), 0, "%s", err.msg);
        const float *z = generator_latent(g, 0, &n);
        if (!sum) {
            sum = calloc(n, sizeof *sum);
            all = calloc(n, sizeof *all);
        }
        for (size_t i = 0; i < n; i++)
            if (k < 5)
                sum[i] += z[i] / 5;
            else
                all[i] = z[i];
        image_release(&im);
        generator_close(g);
    }
    double e = test_error(all, sum, n);
    cr_expect_lt(e, 1e-5, "%g", e);
    free(sum);
    free(all);
    fixture_close(&f);
}

/* Pictures made together, as different as they come: strategies, adapters, prompts of one chunk and two,
 * samplers with one evaluation a step and two, sizes, guidance or none, lengths. */
enum { TOGETHER = 24 };
static const struct {
    const char *compose, *prompt, *sampler;
    int first, n, steps, w;
    double cfg;
} together[TOGETHER] = {
    {"merge", "an owl", NULL, 0, 3, 6, 64, 7},
    {"merge", "an owl", NULL, 0, 3, 6, 64, 7}, /* another seed */
    {"switch:tau=2", "an owl", NULL, 0, 3, 6, 64, 7},
    {"composite:deepcache=2", "an owl", "euler", 0, 3, 5, 64, 7},
    {"cmlora", "an owl AND a castle:0.5", NULL, 1, 2, 6, 64, 3},
    {"superpose:uncond=base,deepcache=2", "an owl AND a castle:0.5", NULL, 0, 3, 5, 64, 7},
    {"wswitch", "an owl", "heun", 0, 2, 4, 64, 7},
    {NULL, "a red owl", "euler_a", 0, 0, 7, 64, 1},
    {"merge:uncond=base", "an owl BREAK a castle", NULL, 0, 2, 3, 64, 7},
    {"composite", "an [owl:castle:2]", NULL, 2, 1, 6, 96, 7},
    {"merge:mode=blend", "a castle", "dpmpp_2m", 0, 3, 6, 96, 7},
    {"mora", "an owl", NULL, 0, 3, 6, 64, 7},
    {"gated", "an owl", NULL, 0, 3, 6, 64, 7},
    {"gated:uncond=base", "an owl", "euler", 0, 1, 5, 64, 7},
    {"attend", "an owl on a castle", NULL, 0, 3, 6, 64, 7},
    {"freefuse", "an owl on a castle", NULL, 0, 3, 6, 64, 7},
    {"freefuse:phase=.4,deepcache=2", "an owl on a castle", "heun", 0, 2, 5, 64, 3},
    {"clora", "an owl on a castle", NULL, 0, 3, 6, 64, 7},
    {"clora:uncond=base,extra=1,maps=both,deepcache=2", "a [castle:castle, an owl:2]", "heun", 0, 2,
     5, 96, 3},
    {"composer:rate=5,phase=.4", "an owl on a castle", NULL, 0, 3, 5, 64, 7},
    {"composer:uncond=base,act=cross,until=1", "an owl and a castle", "euler", 0, 2, 4, 96, 3},
    {"regions:alone=yes", "an owl on a castle", NULL, 0, 3, 4, 64, 7},
    {"router:at=attention", "an owl on a castle", NULL, 0, 3, 6, 64, 7},
    {"attend:uncond=base,deepcache=2", "an [owl:castle:2] AND a red castle", "heun", 0, 2, 5, 96,
     3},
};

static void compare_together(struct fixture *f, const struct picture *p)
{
    struct generator *g, *alone;
    struct image im[TOGETHER], one;
    struct err err;
    struct cost all, cost;
    int passes = 0;
    double flops = 0;
    cr_assert_eq(generator_open(&g, f->m, &err), 0);
    cr_assert_eq(generator_open(&alone, f->m, &err), 0);
    cr_assert_eq(generator_prepare(g, p, TOGETHER, &all, &err), 0, "%s", err.msg);
    cr_assert_eq(generator_run(g, im, NULL, NULL, &err), 0, "%s", err.msg);
    for (int i = 0; i < TOGETHER; i++) {
        size_t n, m;
        cr_assert_eq(generator_prepare(alone, &p[i], 1, &cost, &err), 0, "%s", err.msg);
        cr_assert_eq(generator_run(alone, &one, NULL, NULL, &err), 0, "%s", err.msg);
        const float *x = generator_latent(alone, 0, &n), *y = generator_latent(g, i, &m);
        cr_expect(n == m && !memcmp(x, y, n * sizeof *x), "%d: %s is another picture", i,
                  together[i].compose);
        cr_expect(one.w == im[i].w && one.h == im[i].h &&
                  !memcmp(one.rgb, im[i].rgb, (size_t)one.w * (size_t)one.h * 3));
        cr_expect_eq(generator_cost(g, i)->passes, cost.passes);
        cr_expect_eq(generator_cost(g, i)->flops, cost.flops);
        passes += cost.passes;
        flops += cost.flops;
        image_release(&one);
        image_release(&im[i]);
    }
    cr_expect_eq(all.passes, passes);
    cr_expect_float_eq(all.flops / flops, 1, 1e-12);
    generator_close(g);
    generator_close(alone);
}

/* At most five in hand, and not more than one comes with each step; one of them leaves in the middle and comes again. */
static void compare_coming(struct fixture *f, const struct picture *p)
{
    enum { HAND = 5 };
    struct generator *g, *alone;
    struct image im, one;
    struct err err;
    int at[HAND], of[HAND] = {-1, -1, -1, -1, -1}, next = 0, done = 0, slot, gone = 0;
    cr_assert_eq(generator_open(&g, f->m, &err), 0);
    cr_assert_eq(generator_open(&alone, f->m, &err), 0);
    while (done < TOGETHER) {
        int k = 0;
        while (k < HAND && of[k] >= 0)
            k++;
        if (k < HAND && next < TOGETHER) {
            cr_assert_eq(generator_join(g, &p[next], &at[k], &err), 0, "%s", err.msg);
            cr_assert_eq(generator_begin(g, at[k], &err), 0, "%s", err.msg);
            of[k] = next++;
            if (of[k] == 3 && gone++ == 0) {
                cr_assert_eq(generator_step(g, &err), 0, "%s", err.msg);
                generator_leave(g, at[k]);
                of[k] = -1;
                next = 3;
            }
        }
        cr_assert_eq(generator_step(g, &err), 0, "%s", err.msg);
        for (k = 0; k < HAND; k++) {
            if (of[k] < 0 || generator_left(g, at[k]))
                continue;
            int i = of[k];
            cr_assert_eq(generator_take(g, at[k], &im, &err), 0, "%s", err.msg);
            cr_assert_eq(generator_prepare(alone, &p[i], 1, NULL, &err), 0, "%s", err.msg);
            cr_assert_eq(generator_run(alone, &one, NULL, NULL, &err), 0, "%s", err.msg);
            cr_expect(one.w == im.w && one.h == im.h &&
                          !memcmp(one.rgb, im.rgb, (size_t)one.w * (size_t)one.h * 3),
                      "%d: %s is another picture", i, together[i].compose);
            image_release(&im);
            image_release(&one);
            of[k] = -1;
            done++;
        }
    }
    /* what cannot be planned is not in hand, and hurts nobody */
    struct picture bad = p[0];
    bad.steps = 1;
    bad.sampler = "none of them";
    cr_expect_lt(generator_join(g, &bad, &slot, &err), 0);
    cr_expect_eq(generator_step(g, &err), 0);
    generator_close(g);
    generator_close(alone);
}

Test(compose, pictures_made_together_are_those_made_alone)
{
    struct fixture f;
    struct prompt prompt[TOGETHER];
    struct picture p[TOGETHER];
    struct err err;
    fixture_open(&f, "an owl");
    for (int i = 0; i < TOGETHER; i++) {
        cr_assert_eq(prompt_read(&prompt[i], together[i].prompt, &err), 0, "%s", err.msg);
        picture_init(&p[i], f.m);
        p[i].prompt = &prompt[i];
        p[i].negative = &f.negative;
        p[i].seed = 3 + (uint64_t)i;
        p[i].use = f.use + together[i].first;
        p[i].n_use = together[i].n;
        p[i].compose = together[i].compose;
        p[i].sampler = together[i].sampler;
        p[i].steps = together[i].steps;
        p[i].w = together[i].w;
        p[i].cfg = together[i].cfg;
        p[i].gates = f.gates;
        p[i].eta = i == 2 ? .5 : 0;
    }
    compare_together(&f, p);
    compare_coming(&f, p);
    for (int i = 0; i < TOGETHER; i++)
        prompt_release(&prompt[i]);
    fixture_close(&f);
}

/* ---- receipts -------------------------------------------------------------------------------- */

/* Watching changes no pixel; the same adapter bound twice, at .3 and .6, acts exactly twice as much; outside its
 * turns nothing acts; the text encoder's part stands apart. */
Test(compose, influence)
{
    struct fixture f;
    struct generator *g;
    struct picture p;
    struct image im[2];
    struct influence in[2];
    struct err err;
    struct adapter *again;
    struct bind_report report = {0};
    fixture_open(&f, "an owl");
    cr_assert_eq(
        adapter_bind(&again, f.dev, &f.m->sites, &f.file[0]->list, "again", false, &report, &err),
        0);
    bind_report_release(&report);
    struct use twice[2] = {{.adapter = f.use[0].adapter, .unet = .3f, .te = .3f},
                           {.adapter = again, .unet = .6f, .te = .6f}};
    cr_assert_eq(generator_open(&g, f.m, &err), 0);
    for (int i = 0; i < 2; i++) {
        picture_init(&p, f.m);
        p.prompt = &f.prompt;
        p.negative = &f.negative;
        p.steps = 4;
        p.use = twice;
        p.n_use = 2;
        p.compose = i ? "switch:tau=1" : "merge";
        cr_assert_eq(influence_init(&in[i], f.m, &p, &err), 0, "%s", err.msg);
        for (int watched = 0; watched < 2; watched++) {
            p.influence = watched ? &in[i] : NULL;
            cr_assert_eq(generator_prepare(g, &p, 1, NULL, &err), 0, "%s", err.msg);
            cr_assert_eq(generator_run(g, &im[watched], NULL, NULL, &err), 0, "%s", err.msg);
        }
        cr_expect(!memcmp(im[0].rgb, im[1].rgb, (size_t)im[0].w * (size_t)im[0].h * 3),
                  "watching changes the picture");
        image_release(&im[0]);
        image_release(&im[1]);
    }
    cr_expect_gt(influence_of(&in[0], 0, -1, -1), 1e-3);
    for (int s = -1; s < 4; s++) {
        double a = influence_of(&in[0], 0, -1, s), b = influence_of(&in[0], 1, -1, s);
        cr_expect_float_eq(b / a, 2, 1e-3, "step %d: %g and %g", s, a, b);
        if (s >= 0) {
            cr_expect_eq(influence_of(&in[1], 0, -1, s) > 0, s % 2 == 0);
            cr_expect_eq(influence_of(&in[1], 1, -1, s) > 0, s % 2 == 1);
        }
    }
    double text = influence_of(&in[0], 1, in[0].n_block - 1, -1);
    cr_expect_str_eq(in[0].block[in[0].n_block - 1], "text_encoder");
    cr_expect_gt(text, 1e-3);
    influence_release(&in[1]);
    p.fold = true;
    cr_expect_eq(influence_init(&in[1], f.m, &p, &err), ERR_ARG);
    influence_release(&in[0]);
    influence_release(&in[0]);
    influence_release(&in[1]);
    generator_close(g);
    adapter_free(again);
    fixture_close(&f);
}

/* Six steps of two conditions: what is counted is what is run. */
Test(compose, costs_are_counted)
{
    struct fixture f;
    fixture_open(&f, "an owl");
    struct made merge = make(&f, "merge", 3, false), comp = make(&f, "composite", 3, false),
                deep = make(&f, "composite:deepcache=3", 3, false),
                sup = make(&f, "superpose", 3, false),
                bare = make(&f, "superpose:uncond=base", 3, false);
    cr_expect_eq(merge.passes, 12);
    cr_expect_eq(comp.passes, 36);
    cr_expect_eq(deep.passes, 36);
    cr_expect_eq(sup.passes, 48);
    cr_expect_eq(bare.passes, 30, "four halves that see the prompt, one that does not");
    cr_expect_lt(bare.flops, .7 * sup.flops);
    cr_expect_gt(comp.flops, 1.5 * merge.flops);
    cr_expect_lt(deep.flops, .8 * comp.flops);
    free(merge.latent);
    free(comp.latent);
    free(deep.latent);
    free(sup.latent);
    free(bare.latent);
    fixture_close(&f);
}
