/* Strategies as tables of actions. */
#include "compose_fixture.h"

#include "compose/compose.h"
#include "compose/layout.h"
#include "compose/profile.h"
#include "compose/relevance.h"
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

Test(compose, gated_is_one_pass_through_gates)
{
    struct compose *c = start("gated", 2, NULL);
    struct action a = next(c, 0);
    cr_expect(a.n_pass == 1 && a.pass[0].n_act == 2 && a.pass[0].gated);
    cr_expect(!compose_is_constant(c));
    cr_expect_eq(a.pass[0].common.rank, 0);
    compose_close(c);
    c = start("gated:global=4,share=.3", 2, NULL);
    a = next(c, 0);
    cr_expect(a.n_pass == 1 && a.pass[0].n_act == 2 && a.pass[0].common.rank == 4);
    cr_expect_float_eq(a.pass[0].common.s, .3f, 1e-9);
    compose_close(c);
    c = start("gated:global=4", 1, NULL);
    cr_expect_eq(next(c, 0).pass[0].common.rank, 0, "of one alone nothing is common");
    compose_close(c);
}

Test(compose, freefuse_looks_first)
{
    struct compose *c = start("freefuse:phase=.25,leak=.1", 2, NULL);
    struct action a;
    cr_expect_eq(c->strategy->probe(c), 8, "a quarter of 30 steps");
    compose_next(c, &(struct compose_now){.probe = true}, &a);
    cr_expect(a.n_pass == 1 && a.pass[0].attend.when == ATTEND_LOOK);
    a = next(c, 0);
    cr_expect(a.n_pass == 1 && a.pass[0].n_act == 2 && a.pass[0].attend.when == ATTEND_FOUND);
    cr_expect_float_eq(a.pass[0].attend.leak, .1f, 1e-9);
    compose_close(c);
    c = start("freefuse", 1, NULL);
    cr_expect_eq(c->strategy->probe(c), 0, "one alone has the picture");
    compose_close(c);
}

Test(compose, clora_has_a_pass_for_each)
{
    const struct compose_adapter three[] = {
        {.strength = 1, .placed = true}, {.strength = 1}, {.strength = 1, .placed = true}};
    struct compose *c = start("clora:rate=7,every=2,extra=5,apart=.2,until=.5", 3, three);
    struct action a = next(c, 0);
    cr_assert_eq(a.n_pass, 3, "base and two with words");
    for (int i = 0; i < 3; i++) {
        const struct pass *p = &a.pass[i];
        cr_expect(p->placed && p->n_act == 1 + (i > 0), "who is meant for all acts in all");
        cr_expect_float_eq(p->mix[HALF_COND], 1 / 3., 1e-12);
        cr_expect_eq(a.act[p->act0].adapter, i == 0 ? 1 : i == 1 ? 0 : 2);
        cr_expect_eq(a.act[p->act0 + p->n_act - 1].adapter, 1);
    }
    cr_expect(a.refine.how == REFINE_CONTRAST && a.refine.divide == 4 && !a.refine.halves);
    cr_expect_float_eq(a.refine.rate, 7, 1e-6);
    static const int want[][2] = {{0, 7}, {1, 2}, {6, 7}, {12, 7}, {14, 2}, {15, 0}, {29, 0}};
    for (size_t i = 0; i < sizeof want / sizeof *want; i++)
        cr_expect_eq(next(c, want[i][0]).refine.times, want[i][1], "step %d", want[i][0]);
    compose_close(c);
    c = start("clora:preset=paper,rate=7", 3, three);
    cr_expect_eq(next(c, 0).refine.times, 20);
    cr_expect_eq(next(c, 1).refine.times, 0);
    cr_expect_eq(next(c, 12).refine.times, 20);
    cr_expect(next(c, 0).refine.halves && !next(c, 0).refine.up);
    compose_close(c);
    c = start("clora", 2, three); /* one with words */
    a = next(c, 0);
    cr_expect(a.n_pass == 2 && a.refine.times == 0, "nothing to be told apart");
    compose_close(c);
    c = start("clora", 1, three + 1);
    a = next(c, 0);
    cr_expect(a.n_pass == 1 && !a.pass[0].placed && a.refine.how == REFINE_NONE);
    compose_close(c);
}

Test(compose, composer_moves_into_regions)
{
    const struct compose_adapter boxed[] = {{.strength = 1, .placed = true, .boxed = true},
                                            {.strength = 1},
                                            {.strength = 1, .placed = true, .boxed = true}};
    struct compose *c = start("composer:rate=8,until=.5,enhance=2,fill=3,apart=4", 3, boxed);
    struct action a = next(c, 0);
    cr_expect_eq(c->strategy->probe(c), 0, "places are given");
    cr_expect(a.n_pass == 1 && a.pass[0].n_act == 3 && a.pass[0].regions == REGIONS_PLACED &&
              a.pass[0].alone);
    cr_expect(a.refine.how == REFINE_LAYOUT && a.refine.times == 1 && a.refine.relay);
    cr_expect(a.refine.enhance == 2 && a.refine.fill == 3 && a.refine.apart == 4);
    cr_expect_float_eq(a.refine.rate, 8, 1e-6);
    a = next(c, 12);
    cr_expect(a.refine.times == 1 && !a.refine.relay);
    cr_expect_float_eq(a.refine.rate, 8 * sqrt(1 - .5 * 12 / 30), 1e-6);
    cr_expect_eq(next(c, 15).refine.how, REFINE_NONE);
    compose_close(c);
    struct compose_adapter open[3];
    memcpy(open, boxed, sizeof open);
    open[2].boxed = false;
    c = start("composer:act=cross,alone=no,relay=no,phase=.2", 3, open);
    cr_expect_eq(c->strategy->probe(c), 6, "one has to be looked for");
    compose_next(c, &(struct compose_now){.probe = true}, &a);
    cr_expect(a.pass[0].attend.when == ATTEND_LOOK && a.pass[0].regions == REGIONS_NONE);
    a = next(c, 0);
    cr_expect(a.pass[0].regions == REGIONS_CROSS && !a.pass[0].alone && !a.refine.relay);
    compose_close(c);
    c = start("composer", 1, boxed + 1);
    a = next(c, 0);
    cr_expect(a.pass[0].regions == REGIONS_NONE && a.refine.how == REFINE_NONE);
    compose_close(c);
    c = start("regions", 3, boxed);
    a = next(c, 0);
    cr_expect(a.pass[0].regions == REGIONS_PLACED && !a.pass[0].alone && !a.refine.how);
    compose_close(c);
}

/* What is best under a region's words is laid there; all keeps its mean and deviation. */
Test(compose, relaid_noise_keeps_its_mean_and_deviation)
{
    enum { W = 8, C = 2, ALL = W * W * C };
    float z[ALL], before[ALL], room[ALL], map[2][16] = {{0}};
    unsigned char in[2][16] = {{0}};
    const unsigned char *const ins[2] = {in[0], in[1]};
    const float *const maps[2] = {map[0], map[1]};
    double mean[2] = {0}, square[2] = {0};
    test_fill(z, ALL, 4);
    for (int i = 0; i < ALL; i++)
        z[i] += i < 16 ? 3 : 0;
    memcpy(before, z, sizeof z);
    for (int i = 0; i < 16; i++) { /* of 4 x 4 cells: the left column pair's upper half; one cell */
        in[0][i] = i / 4 < 2 && i % 4 < 2;
        in[1][i] = i == 15;
        map[0][i] =
            i / 4 >= 1 && i / 4 < 3 && i % 4 >= 2; /* most of it two cells right, one down */
        map[1][i] = i == 0;
    }
    layout_relay(z, room, W, W, C, 2, 4, 4, ins, maps);
    for (int i = 0; i < ALL; i++) {
        mean[0] += (double)before[i] / ALL, mean[1] += (double)z[i] / ALL;
        square[0] += (double)before[i] * (double)before[i] / ALL;
        square[1] += (double)z[i] * (double)z[i] / ALL;
    }
    cr_expect_float_eq(mean[0], mean[1], 1e-6);
    cr_expect_float_eq(square[0], square[1], 1e-5);
    double slope = ((double)z[1] - (double)z[0]) /
                   ((double)before[(2 * W + 4) * C + 1] - (double)before[(2 * W + 4) * C]);
    for (int y = 0; y < 4; y++)
        for (int i = 0; i < 4 * C; i++) {
            double from = (double)before[(y + 2) * W * C + 4 * C + i] -
                          (double)before[(2 * W + 4) * C],
                   to = (double)z[y * W * C + i] - (double)z[0];
            cr_expect_float_eq(to, slope * from, 1e-4);
        }
    cr_expect_float_eq((double)z[(7 * W + 7) * C] - (double)z[0],
                       slope * ((double)before[(W + 1) * C] - (double)before[(2 * W + 4) * C]),
                       1e-4, "the first cell's last place lies in the last one");
}

Test(compose, router_says_how_many_and_where)
{
    struct compose *c = start("router:k=2,at=ff,middle=1", 3, NULL);
    struct action a = next(c, 0);
    cr_expect(a.n_pass == 1 && a.pass[0].n_act == 3 && a.pass[0].gated);
    cr_expect(a.pass[0].attend.top[ROUTE_DOWN] == 2 && a.pass[0].attend.top[ROUTE_MIDDLE] == 1 &&
              a.pass[0].attend.top[ROUTE_UP] == 2);
    cr_expect_eq(a.pass[0].attend.kinds, ROUTE_FF);
    compose_close(c);
}

Test(compose, attend_is_one_pass_by_words)
{
    struct compose *c = start("attend:sharp=2,leak=.1,keep=0", 2, NULL);
    struct action a = next(c, 0);
    cr_expect(a.n_pass == 1 && a.pass[0].n_act == 2);
    cr_expect_float_eq(a.pass[0].attend.sharp, 2, 1e-9);
    cr_expect_float_eq(a.pass[0].attend.leak, .1f, 1e-9);
    cr_expect_float_eq(a.pass[0].attend.keep, 0, 1e-9);
    cr_expect(!compose_is_constant(c));
    compose_close(c);
    c = start("attend", 1, NULL);
    a = next(c, 0);
    cr_expect_eq(a.pass[0].attend.sharp, 0, "one alone acts everywhere");
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
