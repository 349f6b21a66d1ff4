/* Two adapters in a whole UNet against other code (tests/golden/gates.py): through gates, in places of their own, and
 * where words are attended to. */
#include "compose/maps.h"
#include "pair_fixture.h"

#include <math.h>
#include <stdlib.h>

#define GOLDEN DATA "gates-out.safetensors"

/* Relative error of the UNet's output. */
#define BOUND 1e-5

static struct tensor forward(struct fixture *f)
{
    static const double t[2] = {981, 21};
    size_t n;
    float *v = test_floats(f->in, "unet_square_x", &n);
    struct tensor x = run_tensor(&f->r, 2, 8, 8, (int)(n / 128)), c;
    op_upload(&f->r, &x, v);
    free(v);
    v = test_floats(f->in, "text", &n);
    c = run_tensor(&f->r, 2, 32, 1, (int)(n / 64));
    op_upload(&f->r, &c, v);
    free(v);
    return unet_forward(f->m->unet, &f->r, &x, t, &(struct unet_text){&c, 1}, NULL);
}

/* The UNet's output [2, 8, 8, 4] with these branches. */
static float *output(struct fixture *f, const struct branch *b, int n, size_t *count)
{
    struct err err;
    f->r.branch = b;
    f->r.n_branch = n;
    run_measure(&f->r);
    forward(f);
    cr_assert_eq(run_commit(&f->r, &err), 0, "%s", err.msg);
    struct tensor y = forward(f);
    cr_assert_eq(run_check(&f->r, &err), 0, "%s", err.msg);
    *count = tensor_count(&y);
    float *got = malloc(*count * sizeof *got);
    f->dev->be->download(f->dev, got, &y, &err);
    return got;
}

static void check(struct fixture *f, int n, const char *name)
{
    float wave[2][GATE_WAVES];
    struct joint *j = NULL;
    struct branch b[2];
    struct err err;
    size_t count, n_want;
    cr_assert_eq(joint_new(&j, &f->m->sites, COMPONENT_UNET, n, (const struct adapter *const *)f->a,
                           JOINT_GATE, &err),
                 0, "%s", err.msg);
    gate_waves(981, wave[0]);
    gate_waves(21, wave[1]);
    for (int i = 0; i < n; i++)
        b[i] = (struct branch){
            .adapter = f->a[i], .row1 = 2, .strength = 1, .joint = j, .part = i, .gated = true};
    for (int i = 0; i < n && n > 1; i++)
        cr_assert_eq(mask_new(&b[i].words, f->dev, &err), 0);
    f->r.gates = f->gates;
    f->r.wave = wave[0];
    free(output(f, b, n, &count)); /* so that sizes are known */
    float *w = test_floats(f->want, "w", &n_want);
    for (int i = 0; i < n && n > 1; i++)
        mask_set(b[i].words, w + 16 * i, 4, 4);
    free(w);
    float *want = test_floats(f->want, name, &n_want), *got = output(f, b, n, &count);
    cr_assert_eq(count, n_want);
    double e = test_error(got, want, count);
    cr_expect_leq(e, BOUND, "%s on %d: %g", name, (int)f->dev->isa, e);
    f->r.gates = NULL; /* without gates it is another output */
    free(got);
    got = output(f, b, n, &count);
    cr_expect_gt(test_error(got, want, count), 1e-3, "%s: the gates do nothing", name);
    free(want);
    free(got);
    for (int i = 0; i < n; i++)
        mask_free(b[i].words);
    run_reset(&f->r);
    run_bare(&f->r);
    joint_free(j);
}

Test(gates, as_they_were_trained)
{
    for (int isa = ISA_PLAIN; isa <= ISA_AVX512; isa++) {
        struct fixture f = {0};
        fixture_open(&f, "cpu", (enum isa)isa, GOLDEN);
        check(&f, 2, "both");
        check(&f, 1, "one");
        fixture_close(&f);
    }
}

/* What is told of gates is what they do. */
Test(gates, values_are_what_is_computed)
{
    struct fixture f = {0};
    fixture_open(&f, "cpu", ISA_BEST, GOLDEN);
    int s = 0, plain = 0;
    for (int i = 0; i < f.gates->n_site; i++)
        plain += gates_plain(f.gates, i);
    cr_expect_gt(plain, 2, "both kinds are here");
    while (!f.gates->at[s] || gates_plain(f.gates, s))
        s++;
    int c = f.m->sites.at[s].layer->out, places = 12;
    size_t n = (size_t)(places * c);
    float *h = malloc(n * sizeof *h), *u = malloc(n * sizeof *u), *got = malloc(n * sizeof *got),
          *want = malloc(n * sizeof *want), wave[GATE_WAVES];
    struct err err;
    test_fill(h, n, 1);
    test_fill(u, n, 2);
    float w[12];
    gate_waves(321, wave);
    test_fill(w, 12, 3);
    for (int i = 0; i < places; i++) {
        gates_values(f.gates, s, c, h + i * c, u + i * c, wave, w[i], want + i * c);
        for (int k = i * c; k < (i + 1) * c; k++)
            want[k] = h[k] + want[k] * u[k];
    }
    for (int live = 0; live < 2; live++) {
        if (!live)
            run_measure(&f.r);
        struct tensor y = run_tensor(&f.r, 1, 3, 4, c), t = run_tensor(&f.r, 1, 3, 4, c);
        const struct tensor *given = &t;
        const float *words = w;
        const int width = 0;
        struct gating in = {1, NULL, NULL, &width, &given, &words, f.gates->at[s], wave};
        op_upload(&f.r, &y, h);
        op_upload(&f.r, &t, u);
        op_gate(&f.r, &y, &y, &in);
        if (live)
            f.dev->be->download(f.dev, got, &y, &err);
        else
            cr_assert_eq(run_commit(&f.r, &err), 0);
    }
    double e = test_error(got, want, n);
    cr_expect_leq(e, 2e-6, "%g", e);
    free(h), free(u), free(got), free(want);
    fixture_close(&f);
}

/* Of rows 1 and 11 of the routing systems (MixLoRA, MeteoRA): routed to one adapter alone, a layer gives what that adapter
 * alone gives through its gates. */
static int check_forced(struct fixture *f, int s, const struct joint *both, const struct joint *one,
                        int i)
{
    const struct layer *l = f->m->sites.at[s].layer;
    static const float open = 0, shut = GATE_SHUT;
    struct branch b[2],
        alone = {.adapter = f->a[i], .row1 = 2, .strength = 1, .joint = one, .gated = true};
    struct err err;
    float *got[2], *x = malloc((size_t)(2 * 20 * l->in) * sizeof *x);
    size_t n = (size_t)(2 * 20 * l->out);
    test_fill(x, (size_t)(2 * 20 * l->in), 9);
    for (int k = 0; k < 2; k++) {
        b[k] = (struct branch){.adapter = f->a[k],
                               .row1 = 2,
                               .strength = 1,
                               .joint = both,
                               .part = k,
                               .gated = true,
                               .kinds = ROUTE_ALL};
        for (int at = 0; at < ROUTE_LEVELS; at++)
            cr_assert_eq(mask_new(&b[k].routed[at], f->dev, &err), 0);
    }
    for (int which = 0; which < 2; which++) {
        f->r.branch = which ? &alone : b;
        f->r.n_branch = which ? 1 : 2;
        got[which] = malloc(n * sizeof **got);
        for (int live = 0; live < 2; live++) {
            if (!live)
                run_measure(&f->r);
            struct tensor t = run_tensor(&f->r, 2, 5, 4, l->in), y = run_layer_tensor(&f->r, l, &t);
            op_upload(&f->r, &t, x);
            op_layer(&f->r, &y, l, &t, false);
            if (!live)
                cr_assert_eq(run_commit(&f->r, &err), 0);
            else
                f->dev->be->download(f->dev, got[which], &y, &err);
            for (int k = 0; k < 2 && !live && !which; k++)
                for (int at = 0; at < ROUTE_LEVELS; at++)
                    mask_set(b[k].routed[at], k == i ? &open : &shut, 1, 1);
        }
        run_reset(&f->r);
    }
    double e = test_error(got[0], got[1], n);
    cr_expect_leq(e, 1e-5, "%s to %d: %g", f->m->sites.at[s].name, i, e);
    for (int k = 0; k < 2; k++)
        for (int at = 0; at < ROUTE_LEVELS; at++)
            mask_free(b[k].routed[at]);
    free(got[0]), free(got[1]), free(x);
    return 1;
}

Test(gates, routed_to_one_is_that_one)
{
    struct fixture f = {0};
    struct joint *both, *one[2];
    struct err err;
    float wave[2][GATE_WAVES];
    int seen = 0, n = 0;
    fixture_open(&f, "cpu", ISA_BEST, GOLDEN);
    const struct adapter *const *a = (const struct adapter *const *)f.a;
    cr_assert_eq(joint_new(&both, &f.m->sites, COMPONENT_UNET, 2, a, JOINT_GATE, &err), 0);
    for (int i = 0; i < 2; i++) {
        cr_assert_eq(joint_new(&one[i], &f.m->sites, COMPONENT_UNET, 1, a + i, JOINT_GATE, &err),
                     0);
        gate_waves(981 - 960 * i, wave[i]);
    }
    f.r.gates = f.gates;
    f.r.wave = wave[0];
    for (int s = 0; s < f.gates->n_site; s++)
        if (f.gates->at[s] && f.a[0]->at[s] && f.a[1]->at[s] &&
            !f.m->sites.at[s].layer->placeless) {
            seen += gates_plain(f.gates, s);
            for (int i = 0; i < 2; i++)
                n += check_forced(&f, s, both, one[i], i);
        }
    cr_expect(n >= 4 && seen && 2 * seen < n, "%d cases, %d plain sites", n, seen);
    run_bare(&f.r);
    joint_free(both);
    joint_free(one[0]);
    joint_free(one[1]);
    fixture_close(&f);
}

/* What ships is for the demo model, a number a place, and lets one adapter alone in whole (float16's precision). */
Test(gates, shipped)
{
    struct fixture f = {0};
    struct model *demo;
    struct gates *g;
    struct err err;
    int n = 0;
    fixture_open(&f, "cpu", ISA_BEST, GOLDEN);
    cr_assert_eq(model_open(&demo, f.dev, "assets/model", &err), 0);
    cr_assert_eq(gates_open(&g, f.dev, &demo->sites, "assets/gates/gates.safetensors", &err), 0,
                 "%s", err.msg);
    cr_expect_str_eq(g->model, demo->fingerprint);
    for (int i = 0; i < g->n_site; i++)
        if (g->at[i]) {
            float z[2], wave[GATE_WAVES];
            gate_waves(500, wave);
            cr_expect(gates_plain(g, i), "%s", demo->sites.at[i].name);
            float gain = gates_line(g, i, demo->sites.at[i].layer->out, wave, z);
            cr_expect_float_eq(gain / (1 + expf(-z[0])), 1, 2e-3, "%s", demo->sites.at[i].name);
            n++;
        }
    cr_expect_gt(n, 60);
    gates_close(g);
    model_close(demo);
    fixture_close(&f);
}

/* Gates of another model are refused by name. */
Test(gates, of_another_model)
{
    struct fixture f = {0};
    struct model *other;
    struct gates *g = NULL;
    struct err err;
    fixture_open(&f, "cpu", ISA_BEST, GOLDEN);
    cr_assert_eq(model_open(&other, f.dev, "assets/model", &err), 0);
    cr_expect_eq(gates_open(&g, f.dev, &other->sites, DATA "gates.safetensors", &err),
                 ERR_MISMATCH);
    cr_expect(!g && strstr(err.msg, "another model"), "%s", err.msg);
    cr_expect_eq(gates_open(&g, f.dev, &other->sites, DATA "nothing.safetensors", &err), ERR_IO);
    model_close(other);
    fixture_close(&f);
}

/* ---- places ---------------------------------------------------------------------------------- */

/* Joined and apart; a mask of nothing leaves the model's own output, one of everything changes nothing. */
Test(masks, each_in_its_own_places)
{
    struct fixture f = {0};
    struct joint *j;
    struct err err;
    size_t n, count;
    fixture_open(&f, "cpu", ISA_BEST, GOLDEN);
    cr_assert_eq(joint_new(&j, &f.m->sites, COMPONENT_UNET, 2, (const struct adapter *const *)f.a,
                           JOINT_SUM, &err),
                 0);
    float *mask = test_floats(f.want, "mask", &n), *want = test_floats(f.want, "masked", &count);
    float *own = output(&f, NULL, 0, &count);
    for (int joined = 0; joined < 2; joined++) {
        struct branch b[2];
        for (int i = 0; i < 2; i++)
            b[i] = (struct branch){
                .adapter = f.a[i], .row1 = 2, .strength = 1, .joint = joined ? j : NULL, .part = i};
        float *full = output(&f, b, 2, &count);
        for (int i = 0; i < 2; i++)
            cr_assert_eq(mask_new(&b[i].mask, f.dev, &err), 0);
        float *got = output(&f, b, 2, &count);
        double e = test_error(got, full, count);
        cr_expect_leq(e, 1e-6, "masks of 1: %g", e);
        for (int i = 0; i < 2; i++)
            mask_set(b[i].mask, mask + 16 * i, 4, 4);
        free(got);
        got = output(&f, b, 2, &count);
        e = test_error(got, want, count);
        cr_expect_leq(e, BOUND, "joined %d: %g", joined, e);
        cr_expect_gt(test_error(got, full, count), 1e-3);
        cr_expect_gt(test_error(own, full, count), 1e-3);
        free(got);
        free(full);
        mask_free(b[0].mask);
        mask_free(b[1].mask);
    }
    free(mask), free(want), free(own);
    run_bare(&f.r);
    joint_free(j);
    fixture_close(&f);
}

/* torch's area and bilinear at whole ratios, means of what lies under a place at others. */
Test(masks, sites_have_levels_and_kinds)
{
    cr_expect_eq(route_level("unet.down_blocks.1.resnets.0.conv1"), ROUTE_DOWN);
    cr_expect_eq(route_level("mid_block.attentions.0.proj_in"), ROUTE_MIDDLE);
    cr_expect_eq(route_level("up_blocks.0.attentions.1.proj_out"), ROUTE_UP);
    cr_expect_eq(route_kind("up_blocks.0.attentions.1.transformer_blocks.0.attn2.to_q"),
                 ROUTE_ATTENTION);
    cr_expect_eq(route_kind("up_blocks.0.attentions.1.transformer_blocks.0.ff.net.2"), ROUTE_FF);
    cr_expect_eq(route_kind("up_blocks.0.attentions.1.proj_out"), ROUTE_OTHER);
}

Test(masks, resampled)
{
    static const float from[] = {1, 2, 3, 4, 5, 6, 7, 8, 9};
    float to[36];
    mask_resample(to, 1, 1, from, 3, 3);
    cr_expect_float_eq(to[0], 5, 1e-6);
    mask_resample(to, 2, 2, from, 3, 3); /* a place covers one and a half, both ways */
    cr_expect_float_eq(to[0], (1 + .5f * 2 + .5f * 4 + .25f * 5) / 2.25f, 1e-6);
    cr_expect_float_eq(to[3], (9 + .5f * 8 + .5f * 6 + .25f * 5) / 2.25f, 1e-6);
    mask_resample(to, 1, 6, from, 1, 3); /* torch: 1, 1.25, 1.75, 2.25, 2.75, 3 */
    for (int i = 0; i < 6; i++)
        cr_expect_float_eq(to[i], fminf(fmaxf(.75f + .5f * (float)i, 1), 3), 1e-6);
    mask_resample(to, 3, 3, from, 3, 3);
    cr_expect(!memcmp(to, from, sizeof from));
}

struct looking {
    struct maps *maps;
    int seen;
};

static void saw(void *user, struct run *r, int cross, int region, const struct tensor *q,
                const struct tensor *k, const struct attention *how)
{
    struct looking *l = user;
    struct err err;
    l->seen++;
    cr_expect_eq(region, -1);
    cr_expect_eq(maps_add(l->maps, r, cross, q, k, how, 0, 0, &err), 0);
}

/* What an open maps sees of one pass with both adapters; its grid is 8 x 8. */
static void look(struct fixture *f, struct maps *m, const struct attend *how)
{
    struct looking l = {m, 0};
    const struct map_watch watch = {.saw = saw, .user = &l};
    struct branch b[2];
    size_t count;
    for (int i = 0; i < 2; i++)
        b[i] = (struct branch){.adapter = f->a[i], .row1 = 2, .strength = 1};
    f->r.map_watch = &watch;
    free(output(f, b, 2, &count));
    cr_expect_eq(l.seen, 2 * f->m->unet->n_cross, "measured and run");
    f->r.map_watch = NULL;
    maps_turn(m, how);
}

static const struct compose_strategy *strategy(const char *name)
{
    int i = 0;
    while (strcmp(compose_strategies[i]->name, name) != 0)
        i++;
    return compose_strategies[i];
}

/* For gates there is w, of two the one's less the other's; routed, the smaller is shut, where one is to be open. */
static void check_routes(struct fixture *f, const struct picture *p, const struct conditions *cond)
{
    const struct attend how = {.sharp = 1, .top = {1, 2, 0}};
    struct maps *m;
    struct err err;
    cr_assert_eq(maps_open(&m, f->m, p, cond, strategy("router"), &err), 0, "%s", err.msg);
    cr_expect(!maps_mask(m, 0, true) && maps_words(m, 0) && !maps_words(m, 2));
    look(f, m, &how); /* all sizes are asked for here, since no branch has the masks */
    const float *w[2], *routed[2][ROUTE_LEVELS];
    for (int i = 0; i < 2; i++) {
        w[i] = mask_at(maps_words(m, i), 8, 8, true, &err);
        for (int k = 0; k < ROUTE_LEVELS; k++)
            routed[i][k] = mask_at(maps_routed(m, i, (enum route_level)k), 8, 8, true, &err);
    }
    look(f, m, &how);
    for (int i = 0; i < 64; i++) {
        cr_expect(fabsf(w[0][i] + w[1][i]) < 1e-5f && fabsf(w[0][i]) <= MAPS_MOST);
        for (int a = 0; a < 2; a++) {
            bool less = w[a][i] < w[1 - a][i] || (a && w[a][i] == w[0][i]);
            cr_expect_eq(routed[a][ROUTE_DOWN][i], less ? GATE_SHUT : w[a][i]);
            cr_expect_eq(routed[a][ROUTE_MIDDLE][i], w[a][i], "two may be open");
            cr_expect_eq(routed[a][ROUTE_UP][i], w[a][i], "0: all");
        }
    }
    maps_restart(m);
    cr_expect(w[0][9] == 0 && routed[1][ROUTE_DOWN][9] == 0);
    maps_close(m);
}

Test(masks, follow_what_is_attended_to)
{
    struct fixture f = {0};
    struct prompt prompt;
    struct conditions cond;
    struct maps *m;
    struct err err;
    size_t n;
    int h, w;
    fixture_open(&f, "cpu", ISA_BEST, GOLDEN);
    const struct use use[] = {{.adapter = f.a[0], .words = "owl red\nred owl"},
                              {.adapter = f.a[1], .words = "castle"},
                              {.adapter = f.a[1], .words = "a town"}};
    const struct picture p = {.use = use, .n_use = 3};
    const struct attend how = {.sharp = 4, .leak = .3f, .keep = .5f};
    cr_assert_eq(prompt_read(&prompt, "a red (owl:1.3) beside a castle", &err), 0);
    cr_assert_eq(conditions_parse(&cond, f.m->tokenizer, NULL, 32, &prompt, NULL, 3, &err), 0);
    cr_assert_eq(maps_open(&m, f.m, &p, &cond, strategy("attend"), &err), 0, "%s", err.msg);
    cr_expect(maps_mask(m, 0, true) && maps_mask(m, 1, true));
    cr_expect(!maps_mask(m, 2, true), "its words are not there");
    cr_expect(!maps_mask(m, 0, false), "the pass does not attend to words");
    cr_expect(!maps_words(m, 0) && !maps_routed(m, 0, ROUTE_UP), "it has no gates");
    cr_expect(!maps_values(m, 0, &h, &w), "before the first turn there are none");
    look(&f, m, &how);
    float *want = test_floats(f.want, "spread", &n);
    for (int i = 0; i < 2; i++) {
        const float *got = maps_values(m, i, &h, &w);
        cr_assert(got && h == 8 && w == 8, "%dx%d", w, h);
        double e = test_error(got, want + 64 * i, 64);
        cr_expect_leq(e, BOUND, "%d: %g", i, e);
    }
    cr_expect(!maps_values(m, 2, &h, &w));
    maps_turn(m, &how); /* nothing came: all stays */
    cr_expect_leq(test_error(maps_values(m, 0, &h, &w), want, 64), BOUND);
    free(want);
    maps_close(m);
    check_routes(&f, &p, &cond);
    conditions_release(&cond);
    prompt_release(&prompt);
    run_bare(&f.r);
    fixture_close(&f);
}
