/* Strategies as tables of actions; and pictures made by them, bit for bit where they must agree. */
#include "compose_fixture.h"

#include "compose/compose.h"
#include "compose/gatemap.h"
#include "compose/generate.h"
#include "compose/influence.h"
#include "compose/profile.h"
#include "compose/relevance.h"
#include "store/adapter.h"
#include "unet/sampler.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- tables ---------------------------------------------------------------------------------- */

static struct compose *start(const char *text, int n, const struct compose_adapter *a)
{
    static const struct compose_adapter plain[COMPOSE_MAX_ADAPTERS + 1];
    struct compose_facts facts = {.n_adapter = n, .adapter = a ? a : plain, .steps = 30};
    struct compose *c;
    struct err err;
    cr_assert_eq(compose_open(&c, text, &err), 0, "%s", err.msg);
    cr_assert_eq(compose_start(c, &facts, &err), 0, "%s", err.msg);
    return c;
}

static struct action next(struct compose *c, int step)
{
    struct action a;
    struct compose_now now = {.step = step, .eval = step};
    compose_next(c, &now, &a);
    return a;
}

Test(compose, merge_is_one_pass_of_all)
{
    const struct compose_adapter two[] = {{.strength = 1}, {.strength = -0.5}};
    struct compose *c = start("merge", 2, two);
    struct action a = next(c, 0);
    cr_assert_eq(a.n_pass, 1);
    cr_assert_eq(a.n_act, 2);
    cr_expect_eq(a.pass[0].n_act, 2);
    cr_expect_eq(a.pass[0].mix[0], 1);
    cr_expect_eq(a.pass[0].mix[1], 1);
    cr_expect_eq(a.pass[0].deep, DEEP_PLAIN);
    for (int i = 0; i < 2; i++) {
        cr_expect_eq(a.act[i].adapter, i);
        cr_expect_eq(a.act[i].w[HALF_UNCOND], 1);
        cr_expect_eq(a.act[i].w[HALF_COND], 1);
    }
    cr_expect(compose_is_constant(c));
    compose_close(c);

    c = start("merge:mode=blend,uncond=base", 2, two);
    a = next(c, 0);
    cr_expect_float_eq(a.act[0].w[HALF_COND], 0.5, 1e-12, ".75 / (1 + .5)");
    cr_expect_eq(a.act[0].w[HALF_UNCOND], 0);
    cr_expect(!compose_is_constant(c));
    compose_close(c);
}

/* Zhong et al. 2024, eq. 2, counted from 0: two steps each, in order, over again. */
Test(compose, switch_takes_turns)
{
    static const int want[] = {0, 0, 1, 1, 2, 2, 0, 0, 1};
    struct compose *c = start("switch:tau=2", 3, NULL);
    for (int i = 0; i < 9; i++) {
        struct action a = next(c, i);
        cr_assert_eq(a.n_pass, 1);
        cr_assert_eq(a.n_act, 1);
        cr_expect_eq(a.act[0].adapter, want[i], "step %d", i);
    }
    compose_close(c);
}

Test(compose, composite_is_the_mean_of_each_alone)
{
    struct compose *c = start("composite", 4, NULL);
    struct action a = next(c, 7);
    cr_assert_eq(a.n_pass, 4);
    cr_assert_eq(a.n_act, 4);
    for (int i = 0; i < 4; i++) {
        cr_expect_eq(a.pass[i].act0, i);
        cr_expect_eq(a.pass[i].n_act, 1);
        cr_expect_eq(a.act[i].adapter, i);
        cr_expect_eq(a.pass[i].mix[0], .25);
        cr_expect_eq(a.pass[i].mix[1], .25);
        cr_expect_eq(a.pass[i].slot, i);
    }
    compose_close(c);
}

/* base + sum of (adapter - base), base being the pass before the adapters'. */
Test(compose, superpose_sums_what_each_changes)
{
    struct compose *c = start("superpose", 3, NULL);
    struct action a = next(c, 7);
    cr_assert_eq(a.n_pass, 4);
    cr_assert_eq(a.n_act, 3);
    cr_expect_eq(a.pass[0].n_act, 0);
    cr_expect_eq(a.pass[0].slot, 3);
    for (int half = 0; half < 2; half++)
        cr_expect_eq(a.pass[0].mix[half], -2);
    for (int i = 0; i < 3; i++) {
        cr_expect_eq(a.pass[i + 1].n_act, 1);
        cr_expect_eq(a.pass[i + 1].slot, i);
        cr_expect_eq(a.act[i].adapter, i);
        cr_expect_eq(a.pass[i + 1].mix[HALF_COND], 1);
    }
    compose_close(c);

    c = start("superpose:scale=0.25", 4, NULL);
    a = next(c, 0);
    cr_expect_eq(a.n_pass, 4, "the mean, without a pass of its own for what counts nothing");
    cr_expect_eq(a.pass[3].mix[HALF_COND], .25);
    compose_close(c);

    c = start("superpose", COMPOSE_MAX_ADAPTERS, NULL);
    cr_expect_eq(next(c, 0).n_pass, COMPOSE_MAX_ADAPTERS + 1);
    compose_close(c);
}

/* No adapter acts in it, so one pass runs it for all: a whole one, where there is one. */
Test(compose, a_bare_unconditional_half_runs_once)
{
    static const struct {
        const char *text;
        int n, pass; /* which runs it */
    } row[] = {{"superpose:uncond=base", 3, 0},
               {"composite:uncond=base", 3, 0},
               {"merge:uncond=base", 2, 0}};
    for (size_t k = 0; k < sizeof row / sizeof *row; k++) {
        struct compose *c = start(row[k].text, row[k].n, NULL);
        struct action a = next(c, 0);
        for (int i = 0; i < a.n_pass; i++) {
            cr_expect_float_eq(a.pass[i].mix[HALF_UNCOND], i == row[k].pass, 1e-12, "%s",
                               row[k].text);
            for (int j = 0; j < a.n_act; j++)
                cr_expect_eq(a.act[j].w[HALF_UNCOND], 0);
        }
        compose_close(c);
    }
    struct compose *c = start("cmlora:uncond=base", 3, NULL);
    for (int step = 0; step < 20; step++) {
        struct action a = next(c, step);
        int whole = 0;
        double mix = 0;
        for (int i = 0; i < a.n_pass; i++) {
            mix += a.pass[i].mix[HALF_UNCOND];
            whole += a.pass[i].deep != DEEP_REUSE;
        }
        cr_expect_float_eq(mix, 1, 1e-12);
        for (int i = 0; i < a.n_pass && whole; i++)
            cr_expect(a.pass[i].mix[HALF_UNCOND] == 0 || a.pass[i].deep != DEEP_REUSE, "step %d",
                      step);
    }
    compose_close(c);
}

/* Those outside their steps are not there: composite divides by those that are. */
Test(compose, step_windows_hold_for_all)
{
    const struct compose_adapter two[] = {{.strength = 1, .to = 3},
                                          {.strength = 1, .from = 3, .to = 5}};
    static const char *const text[] = {"merge", "switch:tau=1", "composite"};
    for (size_t k = 0; k < sizeof text / sizeof *text; k++) {
        struct compose *c = start(text[k], 2, two);
        struct action a = next(c, 0);
        cr_expect(a.n_act == 1 && a.act[0].adapter == 0, "%s", text[k]);
        cr_expect_eq(a.pass[0].mix[1], 1);
        a = next(c, 2);
        cr_expect(a.n_act == (k == 1 ? 1 : 2), "%s", text[k]);
        a = next(c, 4);
        cr_expect(a.n_act == 1 && a.act[0].adapter == 1, "%s", text[k]);
        a = next(c, 5);
        cr_expect(a.n_pass == 1 && a.n_act == 0 && a.pass[0].mix[1] == 1, "%s", text[k]);
        compose_close(c);
    }
}

/* Whole passes every third step; another adapter's or another text's features are never taken. */
Test(compose, deepcache_keeps_and_reuses)
{
    struct compose *c = start("composite:deepcache=3", 2, NULL);
    for (int i = 0; i < 9; i++) {
        struct action a = next(c, i);
        for (int k = 0; k < 2; k++)
            cr_expect_eq(a.pass[k].deep, i % 3 ? DEEP_REUSE : DEEP_KEEP, "step %d", i);
    }
    struct compose_facts facts = c->facts;
    struct err err;
    cr_assert_eq(compose_start(c, &facts, &err), 0);
    cr_expect_eq(next(c, 1).pass[0].deep, DEEP_KEEP, "a new picture begins with nothing");
    struct action a;
    compose_next(c, &(struct compose_now){.step = 2, .texts = 5}, &a);
    cr_expect_eq(a.pass[0].deep, DEEP_KEEP, "another text");
    compose_close(c);

    c = start("switch:tau=2,deepcache=4", 2, NULL);
    static const enum deep want[] = {DEEP_KEEP, DEEP_REUSE, DEEP_KEEP, DEEP_REUSE, DEEP_KEEP};
    for (int i = 0; i < 5; i++)
        cr_expect_eq(next(c, i).pass[0].deep, want[i], "step %d: the slot held another adapter's",
                     i);
    compose_close(c);
}

/* The paper's schedule: T = 220 has 92 refreshes, 200 has 85, 100 has 43. */
Test(compose, cmlora_refreshes_as_published)
{
    static const int want[][2] = {{220, 92}, {200, 85}, {100, 43}};
    for (int k = 0; k < 3; k++) {
        struct compose_adapter one = {.strength = 1, .high = NAN};
        struct compose *c = start("cmlora", 1, &one);
        int n = 0;
        c->facts.steps = want[k][0];
        for (int i = 0; i < want[k][0]; i++)
            n += next(c, i).pass[0].deep == DEEP_KEEP;
        cr_expect_eq(n, want[k][1], "%d steps: %d", want[k][0], n);
        compose_close(c);
    }
}

/* Weights sum to n; one whole pass at a refresh but at the first step; high ones early, low ones late. */
Test(compose, cmlora_turns)
{
    const struct compose_adapter four[] = {
        {.high = .2}, {.high = .9}, {.high = .8}, {.high = .85}}; /* the first is the low one */
    struct compose *c = start("cmlora", 4, four);
    static const int early[] = {1, 1, 3, 3, 2, 2, 1, 1, 3, 3};
    for (int i = 0; i < 30; i++) {
        struct action a = next(c, i);
        double sum = 0, most = 0;
        int who = -1, whole = 0;
        for (int k = 0; k < 4; k++) {
            sum += a.pass[k].mix[1];
            who = a.pass[k].mix[1] > most ? k : who;
            most = a.pass[k].mix[1] > most ? a.pass[k].mix[1] : most;
            whole += a.pass[k].deep == DEEP_KEEP;
        }
        cr_expect_float_eq(sum, 1, 1e-12);
        cr_expect_float_eq(most, 0.5385, 1e-4, "N = 4 of the published weights");
        cr_expect_leq(whole, i ? 1 : 4, "step %d", i);
        cr_expect(i || whole == 4);
        cr_expect(i >= 10 || who == early[i], "step %d: %d", i, who);
        cr_expect(i >= 16 || who != 0, "the low one comes late");
        cr_expect(i != 16 || who == 0, "and then first");
    }
    compose_close(c);
    /* who was not measured stands with the mean, and hinders nobody's place */
    const struct compose_adapter part[] = {{.high = .2}, {.high = NAN}, {.high = .9}};
    c = start("cmlora", 3, part);
    cr_expect_gt(next(c, 0).pass[2].mix[1], .5, "the highest first");
    cr_expect_gt(next(c, 2).pass[1].mix[1], .5, "then the mean");
    compose_close(c);
    c = start("cmlora:order=reverse", 4, four);
    struct action a = next(c, 3);
    cr_expect_gt(a.pass[0].mix[1], .5, "reverse begins with the low one");
    compose_close(c);
    for (int k = 0; k < 2; k++) { /* two: neither is a deviation below the mean; they take turns */
        c = start(k ? "cmlora:order=reverse" : "cmlora", 2, four);
        cr_expect_gt(next(c, 0).pass[k ? 0 : 1].mix[1], .5);
        cr_expect_gt(next(c, 2).pass[k ? 1 : 0].mix[1], .5);
        compose_close(c);
    }
}

/* Parts 4 : 2 : 1 of tau 4 are turns of 4, 2, 1; the last five steps of 30 are the first one's. Nothing known: a
 * plain switch. */
Test(compose, mora_is_one_routed_pass)
{
    struct compose *c = start("mora:tau=.5,keep=.25,least=.1", 3, NULL);
    struct action a = next(c, 4);
    cr_expect(a.n_pass == 1 && a.pass[0].n_act == 3);
    cr_expect_float_eq(a.pass[0].route.tau, .5f, 1e-9);
    cr_expect_float_eq(a.pass[0].route.keep, .25f, 1e-9);
    cr_expect_float_eq(a.pass[0].route.least, .1f, 1e-9);
    cr_expect(!compose_is_constant(c), "it cannot be folded");
    compose_close(c);
}

Test(compose, wswitch_turns_are_as_long_as_parts)
{
    const struct compose_adapter three[] = {{.part = 2. / 7}, {.part = 4. / 7}, {.part = 1. / 7}};
    static const int want[] = {0, 0, 1, 1, 1, 1, 2, 0, 0, 1};
    struct compose *c = start("wswitch:tau=4", 3, three);
    for (int i = 0; i < 30; i++) {
        struct action a = next(c, i);
        cr_assert_eq(a.n_act, 1);
        cr_expect(i >= 10 || a.act[0].adapter == want[i], "step %d", i);
        cr_expect(i < 25 || a.act[0].adapter == 0, "step %d", i);
    }
    compose_close(c);
    c = start("wswitch:tau=2,tail=0", 2, NULL);
    for (int i = 0; i < 8; i++)
        cr_expect_eq(next(c, i).act[0].adapter, i / 2 % 2);
    compose_close(c);
}

Test(compose, wcomposite_mixes_by_match)
{
    const struct compose_adapter two[] = {{.match = .75}, {.match = .25}};
    struct compose *c = start("wcomposite", 2, two);
    struct action a = next(c, 0);
    cr_expect_eq(a.pass[0].mix[1], .75);
    cr_expect_eq(a.pass[1].mix[0], .25);
    compose_close(c);
    c = start("wcomposite", 4, NULL);
    cr_expect_eq(next(c, 0).pass[3].mix[1], .25, "nothing known: composite");
    compose_close(c);
}

static void refused(const char *text, const char *why)
{
    struct compose *c;
    struct err err;
    cr_expect_eq(compose_open(&c, text, &err), ERR_ARG, "%s", text);
    cr_expect(strstr(err.msg, why), "%s: %s", text, err.msg);
}

Test(compose, refusals)
{
    refused("glue",
            "no strategy 'glue'; known: merge, switch, composite, cmlora, wswitch, wcomposite");
    refused("", "no strategy ''");
    refused("switch:tau=0", "tau=0 is not a whole number from 1 to 1000");
    refused("switch:tau=1.5", "tau=1.5 is not a whole");
    refused("switch:tau=", "tau= is not");
    refused("switch:tau=nan", "tau=nan is not");
    refused("switch:tau", "'tau' is none of its options; known: tau=, uncond=, deepcache=");
    refused("merge:mode=mean", "mode=mean is none of: sum, blend");
    refused("composite:tau=3", "'tau=3' is none of its options");
    struct compose_facts facts = {.n_adapter = COMPOSE_MAX_ADAPTERS + 1};
    struct compose *c = start("composite", 0, NULL);
    struct err err;
    cr_expect_eq(compose_start(c, &facts, &err), ERR_ARG);
    compose_close(c);
}

/* One wave has one frequency: radius 10 of 22, of which the eighteen from 4.4 up count. Its place, phase and
 * the channels' number mean nothing; a plain latent has no high frequencies; a grating's square has more. */
Test(profile, waves)
{
    enum { N = 32, C = 3 };
    float x[N * N * C];
    double high;
    struct err err;
    for (int y = 0; y < N; y++)
        for (int i = 0; i < N; i++)
            for (int c = 0; c < C; c++)
                x[(y * N + i) * C + c] = (float)(2 * cos(2 * M_PI * (6 * y + 8 * i) / N + .7));
    cr_assert_eq(profile_high(x, N, N, C, PROFILE_CUT, &high, &err), 0);
    cr_expect_float_eq(high, 1.0 / 18, 1e-6, "%g", high);
    cr_assert_eq(profile_high(x, N, N, C, .5, &high, &err), 0);
    cr_expect_lt(high, 1e-6, "beyond 11: %g", high);
    for (int i = 0; i < N * N * C; i++)
        x[i] = 5;
    cr_assert_eq(profile_high(x, N, N, C, PROFILE_CUT, &high, &err), 0);
    cr_expect_lt(high, 1e-6);
    test_fill(x, (size_t)N * N * C, 3);
    cr_assert_eq(profile_high(x, N, N, C, PROFILE_CUT, &high, &err), 0);
    cr_expect_gt(high, .4, "noise: %g", high);
}

/* By hand, 4 x 6: one point of 1 has amplitude 1 everywhere, so q is 1 at every radius. */
Test(profile, a_point_is_flat)
{
    float x[4 * 6] = {[9] = 1};
    double high;
    struct err err;
    cr_assert_eq(profile_high(x, 4, 6, 1, PROFILE_CUT, &high, &err), 0);
    cr_expect_float_eq(high, 1, 1e-9);
}

static void without(const char *text, const char *triggers, const char *want)
{
    char *got = relevance_without(text, triggers);
    cr_expect_str_eq(got, want, "%s | %s", text, triggers);
    free(got);
}

Test(relevance, words_are_taken_out_whole)
{
    without("a sks monkey and a pizza", "sks monkey", "a  and a pizza");
    without("a SKS Monkey, red hat", "sks monkey, red hat", "a , ");
    without("monkeys", "monkey", "monkeys");
    without("a cat", "", "a cat");
    without("a cat", " , ,", "a cat");
    without("a cat a cat", "cat", "a  a cat");
}

/* Parts and matches sum to 1; whose words fill the prompt has more of both; who has none has the least. */
Test(relevance, the_encoder_weighs)
{
    static const char *const triggers[] = {"red apple on a blue table", "owl", NULL};
    struct device *dev = test_device("cpu");
    struct model *m;
    struct relevance r[3];
    struct err err;
    cr_assert_eq(model_open(&m, dev, "assets/model", &err), 0, "%s", err.msg);
    cr_assert_eq(relevance_measure(m, "red apple on a blue table, owl", triggers, 3, r, &err), 0,
                 "%s", err.msg);
    cr_expect_float_eq(r[0].part + r[1].part + r[2].part, 1, 1e-9);
    cr_expect_float_eq(r[0].match + r[1].match + r[2].match, 1, 1e-9);
    cr_expect(r[0].part > r[1].part && r[1].part >= r[2].part, "%g %g %g", r[0].part, r[1].part,
              r[2].part);
    cr_expect(r[0].match > r[1].match, "%g %g", r[0].match, r[1].match);
    cr_expect_float_eq(r[2].match, (r[0].match + r[1].match) / 2, 1e-9);
    cr_assert_eq(relevance_measure(m, "owl", triggers + 2, 1, r, &err), 0);
    cr_expect(r[0].part == 1 && r[0].match == 1);
    model_close(m);
    device_close(dev);
}

/* ---- pictures -------------------------------------------------------------------------------- */

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
Test(compose, gated)
{
    struct fixture f;
    fixture_open(&f, "an owl");
    struct compose *c = start("gated", 2, NULL);
    struct action a = next(c, 0);
    cr_expect(a.n_pass == 1 && a.pass[0].n_act == 2 && a.pass[0].gated);
    cr_expect(!compose_is_constant(c));
    compose_close(c);
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
                cr_expect(met ? v > 0 && v < 1 : isnan(v), "%s, adapter %d: %g",
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
enum { TOGETHER = 14 };
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
