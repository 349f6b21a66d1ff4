/* Gradients of a whole UNet against PyTorch's autograd through diffusers (tests/golden/grad.py): of its output, of CLoRA's
 * loss of what it attends to, of LoRA-Composer's with its regions. */
#include "compose/attended.h"
#include "compose/contrast.h"
#include "pair_fixture.h"
#include "unet/mask.h"
#include "unet/regions.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define GOLDEN DATA "grad.safetensors"

/* Relative, over all values, beside PyTorch's gradients; beside its maps and losses. */
#define TORCH 1e-4
#define MAPS  1e-5

/* dx of the sum of weight o output. x: as the golden's, or NULL for that; loss from doubles. */
static double unet_back(struct fixture *f, const float *x, float *dx)
{
    static const double t[2] = {981, 21};
    size_t n, n_text, n_w;
    float *own = test_floats(f->in, "unet_square_x", &n),
          *text = test_floats(f->in, "text", &n_text), *w = test_floats(f->want, "weight", &n_w);
    struct tensor in, c, y, back = {0};
    struct err err;
    double loss = 0;
    for (int turn = 0; turn < 2; turn++) {
        if (turn == 0)
            run_prepare(&f->r);
        else
            cr_assert_eq(run_commit(&f->r, &err), 0, "%s", err.msg);
        c = run_tensor(&f->r, 2, 32, 1, (int)(n_text / 64));
        op_upload(&f->r, &c, text);
        tape_begin(f->t, &f->r);
        in = run_tensor(&f->r, 2, 8, 8, (int)(n / 128));
        op_upload(&f->r, &in, x ? x : own);
        tape_want(f->t, &in);
        y = unet_forward(f->m->unet, &f->r, &in, t, &(struct unet_text){&c, 1}, NULL);
        for (size_t i = 0; i < n_w && turn && f->dev->value_size == sizeof(double); i++)
            loss += (double)w[i] * ((const double *)y.data)[i];
        tape_seed(f->t, &y, w);
        back = tape_back(f->t, &in);
    }
    cr_assert_eq(run_check(&f->r, &err), 0, "%s", err.msg);
    if (dx)
        f->dev->be->download(f->dev, dx, &back, &err);
    free(own), free(text), free(w);
    return loss;
}

/* Both adapters on both rows: apart, or as one (joint.c). */
static void set_branches(struct fixture *f, struct branch *b, const struct joint *j)
{
    for (int i = 0; i < 2; i++)
        b[i] = (struct branch){
            .adapter = f->a[i], .row1 = 2, .strength = i ? .5f : 1, .joint = j, .part = j ? i : 0};
    f->r.branch = b;
    f->r.n_branch = 2;
}

static void check_unet(const char *backend, enum isa isa)
{
    struct fixture f;
    struct branch b[2];
    struct joint *j;
    struct err err;
    size_t n, n_lora;
    fixture_open(&f, backend, isa, GOLDEN);
    float *want = test_floats(f.want, "dx", &n), *lora = test_floats(f.want, "dx_lora", &n_lora),
          *got = malloc(n * sizeof *got);
    cr_expect_gt(test_error(want, lora, n), .01, "adapters change it");
    unet_back(&f, NULL, got);
    double e = test_error(got, want, n);
    cr_expect_leq(e, TORCH, "%s/%d: %.2e", backend, (int)isa, e);
    cr_assert_eq(joint_new(&j, &f.m->sites, COMPONENT_UNET, 2, (const struct adapter *const *)f.a,
                           JOINT_SUM, &err),
                 0);
    for (int k = 0; k < 2; k++) {
        set_branches(&f, b, k ? j : NULL);
        unet_back(&f, NULL, got);
        e = test_error(got, lora, n);
        cr_expect_leq(e, TORCH, "%s/%d, adapters%s: %.2e", backend, (int)isa, k ? " as one" : "",
                      e);
    }
    run_bare(&f.r);
    joint_free(j);
    free(want), free(lora), free(got);
    fixture_close(&f);
}

Test(tape_unet, as_torch)
{
    check_unet("ref", ISA_PLAIN);
    check_unet("cpu", ISA_PLAIN);
    check_unet("cpu", ISA_AVX2);
    check_unet("cpu", ISA_BEST);
}

/* A loss of x, and into dx its gradient. */
typedef double loss_fn(const float *x, float *dx);

/* The gradient into want, [n], on ref64, and along a line what differences say: 1e-5. x becomes such that steps are exact. */
static void check_line(loss_fn *loss, float *x, float *want, size_t n)
{
    const double step = 1.0 / 4096;
    double side[2], along = 0;
    float *near = malloc(2 * n * sizeof *near);
    for (size_t i = 0; i < n; i++)
        x[i] = rintf(x[i] * 4096) / 4096;
    loss(x, want);
    for (int s = 0; s < 2; s++) {
        for (size_t i = 0; i < n; i++)
            near[i] = x[i] + (float)((s ? -step : step) * (double)((int)(i * 7 % 5) - 2));
        side[s] = loss(near, near + n);
    }
    for (size_t i = 0; i < n; i++)
        along += (double)want[i] * (double)((int)(i * 7 % 5) - 2);
    double found = (side[0] - side[1]) / (2 * step);
    cr_expect_leq(fabs(found - along), 1e-5 * fabs(found), "along a line %g, by differences %g",
                  along, found);
    free(near);
}

static double plain64(const float *x, float *dx)
{
    struct fixture f;
    fixture_open(&f, "ref64", ISA_PLAIN, GOLDEN);
    double loss = unet_back(&f, x, dx);
    fixture_close(&f);
    return loss;
}

Test(tape_unet, by_differences)
{
    struct fixture f;
    size_t n;
    fixture_open(&f, "cpu", ISA_BEST, GOLDEN);
    float *x = test_floats(f.in, "unet_square_x", &n), *dx = malloc(n * sizeof *dx);
    check_line(plain64, x, dx, n);
    free(x), free(dx);
    fixture_close(&f);
}

/* Both adapters through gates, some per channel, some a number a place, with w by place and each row's time: by differences
 * on ref64, and the CPU beside that. */
static void set_gates(struct fixture *f, struct branch b[2], const struct joint *j,
                      float wave[2][GATE_WAVES])
{
    struct err err;
    float w[64];
    gate_waves(981, wave[0]);
    gate_waves(21, wave[1]);
    for (int i = 0; i < 2; i++) {
        b[i] = (struct branch){.adapter = f->a[i],
                               .row1 = 2,
                               .strength = i ? .7f : 1,
                               .joint = j,
                               .part = i,
                               .gated = true};
        cr_assert_eq(mask_new(&b[i].words, f->dev, &err), 0);
        for (int p = 0; p < 64; p++)
            w[p] = (float)((i ? -1 : 1) * (p % 8 - 3)) * .5f;
        w[9] = GATE_SHUT * 1.f;
        for (int size = 8; size; size /= 2) /* all that a pass asks for */
            cr_assert(mask_at(b[i].words, size, size, true, &err));
        mask_set(b[i].words, w, 8, 8);
    }
    f->r.branch = b;
    f->r.n_branch = 2;
    f->r.gates = f->gates;
    f->r.wave = wave[0];
}

static double gated(const char *backend, enum isa isa, const float *x, float *dx)
{
    struct fixture f;
    struct branch b[2];
    struct joint *j;
    struct err err;
    float wave[2][GATE_WAVES];
    int plain = 0, full = 0;
    fixture_open(&f, backend, isa, GOLDEN);
    cr_assert_eq(joint_new(&j, &f.m->sites, COMPONENT_UNET, 2, (const struct adapter *const *)f.a,
                           JOINT_GATE, &err),
                 0);
    for (int i = 0; i < f.m->sites.n; i++)
        if (f.gates->at[i] && j->at[i])
            *(gates_plain(f.gates, i) ? &plain : &full) += 1;
    cr_expect(plain && full);
    set_gates(&f, b, j, wave);
    double loss = unet_back(&f, x, dx);
    run_bare(&f.r);
    for (int i = 0; i < 2; i++)
        mask_free(b[i].words);
    joint_free(j);
    fixture_close(&f);
    return loss;
}

static double gated64(const float *x, float *dx)
{
    return gated("ref64", ISA_PLAIN, x, dx);
}

Test(tape_unet, gates_by_differences)
{
    static const enum isa isas[] = {ISA_PLAIN, ISA_AVX2, ISA_BEST};
    struct fixture f;
    size_t n;
    fixture_open(&f, "cpu", ISA_BEST, GOLDEN);
    float *x = test_floats(f.in, "unet_square_x", &n), *want = malloc(n * sizeof *want),
          *got = malloc(n * sizeof *got);
    check_line(gated64, x, want, n);
    unet_back(&f, x, got);
    cr_expect_gt(test_error(got, want, n), .01, "adapters and their gates change it");
    for (int i = 0; i < 3; i++) {
        gated("cpu", isas[i], x, got);
        double e = test_error(got, want, n);
        cr_expect_leq(e, TORCH, "cpu/%d: %g", (int)isas[i], e);
    }
    free(x), free(want), free(got);
    fixture_close(&f);
}

/* ---- what is attended to --------------------------------------------------------------------- */

/* Watches of the four by four maps. */
struct seeing {
    const struct unet *u;
    struct attended a[3]; /* of the text or two regions; of self attention */
    int n;
};

static void saw(void *user, struct run *r, int cross, int region, const struct tensor *q,
                const struct tensor *k, const struct attention *how)
{
    struct seeing *s = user;
    for (int i = 0; i < s->n; i++)
        if (attended_counts(&s->a[i], s->u, cross, region))
            attended_see(&s->a[i], r, q, k, how);
}

static void saw_self(void *user, struct run *r, int cross, const struct tensor *q,
                     const struct tensor *k, const struct attention *how)
{
    saw(user, r, cross, ATTENDED_SELF, q, k, how);
}

/* Rows of the golden's text, row first of them first. */
static struct tensor texts(struct fixture *f, int first, int n)
{
    size_t count;
    float *v = test_floats(f->in, "text", &count);
    int width = (int)(count / 64);
    struct tensor t = run_tensor(&f->r, n, 32, 1, width);
    for (int i = 0; i < n; i++) {
        struct tensor row = tensor_rows(&t, i, 1);
        op_upload(&f->r, &row, v + (size_t)((first + i) % 2 * 32 * width));
    }
    free(v);
    return t;
}

static const float *away; /* what is added to the latent, [8, 8, 4], or NULL */

/* The golden's first latent, n times. */
static struct tensor latents(struct fixture *f, int n)
{
    size_t count;
    float *v = test_floats(f->in, "unet_square_x", &count);
    for (int i = 0; i < 256 && away; i++)
        v[i] += away[i];
    struct tensor t = run_tensor(&f->r, n, 8, 8, 4);
    for (int i = 0; i < n; i++) {
        struct tensor row = tensor_rows(&t, i, 1);
        op_upload(&f->r, &row, v);
    }
    free(v);
    return t;
}

/* One pass that ends behind the last map, measured or not, on tape or not; back comes dz [rows, 8, 8, 4]. */
static void pass(struct fixture *f, struct seeing *s, int rows, int text, struct map_watch *watch,
                 struct tape *t, float *back)
{
    static const double times[8] = {981, 981, 981, 981, 981, 981, 981, 981};
    struct tensor c = texts(f, text, rows), x, dx;
    struct err err;
    for (int i = 0; i < s->n; i++)
        attended_begin(&s->a[i], rows);
    if (t)
        tape_begin(t, &f->r);
    x = latents(f, rows);
    if (t)
        tape_want(t, &x);
    f->r.map_watch = watch;
    struct tensor y = unet_forward(f->m->unet, &f->r, &x, times, &(struct unet_text){&c, 1}, NULL);
    cr_expect(y.c == 0 || !watch->until, "the pass ended early");
    f->r.map_watch = NULL;
    for (int i = 0; i < s->n; i++)
        attended_end(&s->a[i]);
    if (!t)
        return;
    for (int i = 0; i < s->n; i++)
        attended_seed(&s->a[i], t);
    dx = tape_back(t, &x);
    if (back && !f->r.measuring) {
        cr_assert_eq(run_check(&f->r, &err), 0, "%s", err.msg);
        f->dev->be->download(f->dev, back, &dx, &err);
    }
}

/* Measures and runs. */
static void both_passes(struct fixture *f, struct seeing *s, int rows, int text,
                        struct map_watch *watch, struct tape *t, float *back)
{
    struct err err;
    run_prepare(&f->r);
    pass(f, s, rows, text, watch, t, NULL);
    cr_assert_eq(run_commit(&f->r, &err), 0, "%s", err.msg);
    pass(f, s, rows, text, watch, t, back);
    cr_assert_eq(run_check(&f->r, &err), 0, "%s", err.msg);
}

/* CLoRA's tokens: of each variant, class and its places in the text. */
static const struct {
    int variant, label, token;
} clora[] = {{0, 0, 3}, {1, 0, 3}, {1, 0, 4}, {2, 0, 3},
             {0, 1, 7}, {1, 1, 7}, {2, 1, 7}, {2, 1, 8}};
enum { EMBEDDINGS = sizeof clora / sizeof *clora, PLACES = 16, TOKENS = 32 };

/* Both halves, [uncond, cond], or the second alone in the maps' means: the loss's gradient with all variants one by one. */
static void check_clora(struct fixture *f, bool halves, const char *name)
{
    static int keys[TOKENS];
    float maps[3 * TOKENS * PLACES] = {0}, m[EMBEDDINGS * PLACES], back[EMBEDDINGS * PLACES],
                            dz[256] = {0}, part[2 * 256];
    int label[EMBEDDINGS], rows = halves ? 2 : 1, text = halves ? 1 : 0;
    char key[40];
    size_t n;
    for (int i = 0; i < TOKENS; i++)
        keys[i] = i;
    struct seeing s = {.u = f->m->unet, .n = 1};
    s.a[0] = (struct attended){.level = 1, .region = -1, .key = keys, .n = TOKENS};
    struct map_watch watch = {.saw = saw, .user = &s, .until = attended_until(s.u, 1)};
    for (int turn = 0; turn < 2; turn++) /* maps, then gradients */
        for (int v = 0; v < 3; v++) {
            const struct branch b = {
                .adapter = v ? f->a[v - 1] : NULL, .row1 = rows, .strength = 1};
            f->r.branch = &b;
            f->r.n_branch = v > 0;
            if (turn) {
                memset(s.a[0].back, 0, (size_t)rows * TOKENS * PLACES * sizeof(float));
                for (int i = 0; i < EMBEDDINGS; i++)
                    for (int p = 0; p < PLACES * rows && clora[i].variant == v; p++)
                        s.a[0].back[(p / PLACES * TOKENS + clora[i].token) * PLACES + p % PLACES] +=
                            back[i * PLACES + p % PLACES] / (float)rows;
            }
            both_passes(f, &s, rows, text, &watch, turn ? f->t : NULL, part);
            for (int i = 0; i < rows * 256 && turn; i++)
                dz[i % 256] += part[i];
            for (int i = 0; i < rows * TOKENS * PLACES && !turn; i++)
                maps[v * TOKENS * PLACES + i % (TOKENS * PLACES)] += s.a[0].map[i] / (float)rows;
            if (turn || v < 2)
                continue;
            for (int i = 0; i < EMBEDDINGS; i++) {
                label[i] = clora[i].label;
                memcpy(m + i * PLACES, maps + (clora[i].variant * TOKENS + clora[i].token) * PLACES,
                       PLACES * sizeof *m);
            }
            double *room = malloc(contrast_room(EMBEDDINGS, PLACES) * sizeof *room);
            double loss = contrast_loss(m, label, EMBEDDINGS, PLACES, .5, back, room);
            free(room);
            snprintf(key, sizeof key, "%s_loss", name);
            float *want = test_floats(f->want, key, &n);
            cr_expect_float_eq(loss, want[0], MAPS * want[0], "%s: %g, not %g", name, loss,
                               want[0]);
            free(want);
        }
    cr_expect_eq(s.a[0].layers, 5);
    if (halves) { /* the golden has tokens last */
        float *want = test_floats(f->want, "clora_maps", &n), turned[3 * TOKENS * PLACES];
        for (int i = 0; i < 3 * TOKENS * PLACES; i++)
            turned[i] = want[i / (TOKENS * PLACES) * TOKENS * PLACES + i % PLACES * TOKENS +
                             i / PLACES % TOKENS];
        double e = test_error(maps, turned, n);
        cr_expect_leq(e, MAPS, "maps: %g", e);
        free(want);
    }
    snprintf(key, sizeof key, "%s_dz", name);
    float *want = test_floats(f->want, key, &n);
    double e = test_error(dz, want, n);
    cr_expect_leq(e, TORCH, "%s: %g", name, e);
    free(want);
    attended_release(&s.a[0]);
}

Test(tape_unet, clora)
{
    static const enum isa isas[] = {ISA_PLAIN, ISA_AVX2, ISA_BEST};
    for (int i = 0; i < 3; i++) {
        struct fixture f;
        fixture_open(&f, "cpu", isas[i], GOLDEN);
        check_clora(&f, true, "clora");
        check_clora(&f, false, "clora_cond");
        fixture_close(&f);
    }
}

/* ---- regions --------------------------------------------------------------------------------- */

static const double boxes[2][4] = {{.1, 0, 1, .5}, {0, .5, .9, 1}}; /* top, left, bottom, right */
enum { FINE = 160 };

/* Regions as the golden's boxes have them, of places that lie wholly inside. */
static struct regions *golden_regions(struct fixture *f)
{
    struct regions *g;
    struct err err;
    float *v = malloc(FINE * FINE * sizeof *v);
    cr_assert_eq(regions_new(&g, f->dev, 2, .999f, &err), 0);
    for (int i = 0; i < 2; i++) {
        for (int p = 0; p < FINE * FINE; p++) {
            double y = (p / FINE + .5) / FINE, x = (p % FINE + .5) / FINE;
            v[p] = y > boxes[i][0] && y < boxes[i][2] && x > boxes[i][1] && x < boxes[i][3];
        }
        cr_assert_eq(regions_set(g, i, v, FINE, FINE, &err), 0);
    }
    free(v);
    g->alone = true;
    return g;
}

/* The two adapters as they act in a region: on its text's keys and values and what comes out, which is all that a region
 * asks of them. Elsewhere none acts. */
static void set_regions(struct fixture *f, struct regions *g, struct branch b[2],
                        struct tensor text[2])
{
    for (int i = 0; i < 2; i++) {
        text[i] = texts(f, i ? 0 : 1, 1);
        b[i] = (struct branch){.adapter = f->a[i], .row1 = 1, .strength = 1};
        g->at[i] = (struct region){.text = &text[i], .branch = &b[i], .n_branch = 1};
    }
    f->r.branch = NULL;
    f->r.n_branch = 0;
    f->r.regions = g;
}

static double square(const float *v, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += (double)v[i] * (double)v[i];
    return s;
}

/* Losses of the golden's maps, or of ours: their gradients into back. */
static void golden_losses(struct seeing *s, const struct regions *g, const double factor[3],
                          double loss[3])
{
    const struct region_level *l = NULL;
    unsigned char in[PLACES];
    double *room = malloc(layout_room(4, 4) * sizeof *room);
    for (int i = 0; i < g->n_level; i++)
        l = g->level[i].h == 4 ? &g->level[i] : l;
    for (int i = 0; i < 3; i++)
        memset(s->a[i].back, 0, (size_t)s->a[i].n * PLACES * sizeof(float));
    float self[PLACES * PLACES], self_back[PLACES * PLACES] = {0};
    for (int i = 0; i < PLACES * PLACES; i++) /* maps are [key, query] */
        self[i] = s->a[2].map[i % PLACES * PLACES + i / PLACES];
    for (int i = 0; i < 2; i++) {
        for (int p = 0; p < PLACES; p++)
            in[p] = l->host[p] >> i & 1;
        layout_loss(loss, factor, 4, 4, in, s->a[i].map, s->a[i].n, s->a[i].back, self, self_back,
                    room);
    }
    for (int i = 0; i < PLACES * PLACES; i++)
        s->a[2].back[i % PLACES * PLACES + i / PLACES] = self_back[i];
    free(room);
}

static void check_composer(struct fixture *f)
{
    static const int first[2] = {3, 4}, second[1] = {7};
    static const char *const name[] = {"composer_ce_dz", "composer_fill_dz", "composer_region_dz",
                                       "composer_dz"};
    struct seeing s = {.u = f->m->unet, .n = 3};
    struct branch b[2];
    struct tensor text[2], y;
    struct err err;
    float dz[256], self[PLACES * PLACES];
    size_t n;
    struct regions *g = golden_regions(f);
    s.a[0] = (struct attended){.level = 1, .region = 0, .key = first, .n = 2};
    s.a[1] = (struct attended){.level = 1, .region = 1, .key = second, .n = 1};
    s.a[2] = (struct attended){.level = 1, .region = ATTENDED_SELF};
    struct map_watch watch = {
        .saw = saw, .user = &s, .saw_self = saw_self, .until = attended_until(s.u, 1)};
    /* the picture */
    for (int turn = 0; turn < 2; turn++) {
        static const double t[1] = {981};
        if (turn == 0)
            run_prepare(&f->r);
        else
            cr_assert_eq(run_commit(&f->r, &err), 0, "%s", err.msg);
        set_regions(f, g, b, text);
        struct tensor c = texts(f, 0, 1), x = latents(f, 1);
        y = unet_forward(f->m->unet, &f->r, &x, t, &(struct unet_text){&c, 1}, NULL);
    }
    cr_assert_eq(run_check(&f->r, &err), 0, "%s", err.msg);
    f->dev->be->download(f->dev, dz, &y, &err);
    float *want = test_floats(f->want, "composer_out", &n);
    double e = test_error(dz, want, n);
    cr_expect_leq(e, MAPS, "output: %g", e);
    free(want);
    /* losses, each and all */
    float *losses = test_floats(f->want, "composer_loss", &n);
    for (int k = 0; k < 4; k++) {
        double factor[3] = {k == 0 || k == 3, k == 1 || k == 3, k == 2 || k == 3}, loss[3] = {0};
        for (int turn = 0; turn < 3; turn++) { /* measured, maps, maps and gradients */
            if (turn == 0)
                run_prepare(&f->r);
            else if (turn == 1)
                cr_assert_eq(run_commit(&f->r, &err), 0, "%s", err.msg);
            else
                run_reset(&f->r);
            set_regions(f, g, b, text);
            pass(f, &s, 1, 0, &watch, f->t, turn == 2 ? dz : NULL);
            if (turn == 1)
                golden_losses(&s, g, factor, loss);
        }
        cr_assert_eq(run_check(&f->r, &err), 0, "%s", err.msg);
        want = test_floats(f->want, name[k], &n);
        e = test_error(dz, want, n);
        cr_expect_leq(e, TORCH, "%s: %g", name[k], e);
        free(want);
        for (int i = 0; i < PLACES * PLACES; i++)
            self[i] = s.a[2].map[i % PLACES * PLACES + i / PLACES];
        float step[256];
        double before = loss[0] + loss[1] + loss[2], after[3] = {0};
        for (int i = 0; i < 256; i++) /* 1 % of the way a latent is long */
            step[i] = -dz[i] * .16f / (float)sqrt(square(dz, 256));
        away = step;
        run_reset(&f->r);
        set_regions(f, g, b, text);
        pass(f, &s, 1, 0, &watch, NULL, NULL);
        away = NULL;
        golden_losses(&s, g, factor, after);
        cr_expect_lt(after[0] + after[1] + after[2], before, "%s: a step leads down", name[k]);
        for (int i = 0; i < 3 && k == 3; i++)
            cr_expect_float_eq(loss[i], losses[i + 1], MAPS * losses[i + 1], "loss %d: %g, not %g",
                               i, loss[i], losses[i + 1]);
    }
    want = test_floats(f->want, "composer_self", &n);
    e = test_error(self, want, n);
    cr_expect_leq(e, MAPS, "self attention: %g", e);
    for (int i = 0; i < PLACES * PLACES; i++)
        if (want[i] == 0)
            cr_expect_lt(self[i], 1e-30f, "between regions there is none");
    free(want), free(losses);
    for (int i = 0; i < 3; i++)
        attended_release(&s.a[i]);
    run_bare(&f->r);
    regions_free(g);
}

Test(tape_unet, composer)
{
    static const enum isa isas[] = {ISA_PLAIN, ISA_AVX2, ISA_BEST};
    for (int i = 0; i < 3; i++) {
        struct fixture f;
        fixture_open(&f, "cpu", isas[i], GOLDEN);
        check_composer(&f);
        fixture_close(&f);
    }
}

/* One region that is the whole picture, of the pass's own text, is an adapter of these layers as it always acts. */
Test(tape_unet, one_full_region_is_the_adapter)
{
    static const double t[1] = {981};
    struct fixture f;
    struct adapter *narrow;
    struct bind_report report = {0};
    struct err err;
    float got[2][256];
    const float all[1] = {1};
    struct regions *g;
    fixture_open(&f, "cpu", ISA_BEST, GOLDEN);
    struct delta_list *l = &f.file[0]->list;
    for (int i = 0; i < l->n; i++) { /* other sites are none of the model's */
        char *at = strstr(l->item[i].site, "attn2.to_");
        if (!at || at[strlen("attn2.to_")] == 'q')
            l->item[i].site[0] = '-';
    }
    cr_assert_eq(adapter_bind(&narrow, f.dev, &f.m->sites, l, "narrow", false, &report, &err), 0,
                 "%s", err.msg);
    bind_report_release(&report);
    cr_assert_eq(regions_new(&g, f.dev, 1, .999f, &err), 0);
    cr_assert_eq(regions_set(g, 0, all, 1, 1, &err), 0);
    const struct branch b = {.adapter = narrow, .row1 = 1, .strength = 1};
    for (int k = 0; k < 2; k++)
        for (int turn = 0; turn < 2; turn++) {
            if (turn == 0)
                run_prepare(&f.r);
            else
                cr_assert_eq(run_commit(&f.r, &err), 0, "%s", err.msg);
            struct tensor c = texts(&f, 0, 1), x = latents(&f, 1);
            g->at[0] = (struct region){.text = &c, .branch = &b, .n_branch = 1};
            f.r.regions = k ? g : NULL;
            f.r.branch = &b;
            f.r.n_branch = !k;
            struct tensor y =
                unet_forward(f.m->unet, &f.r, &x, t, &(struct unet_text){&c, 1}, NULL);
            if (turn)
                f.dev->be->download(f.dev, got[k], &y, &err);
        }
    cr_assert_eq(run_check(&f.r, &err), 0, "%s", err.msg);
    double e = test_error(got[1], got[0], 256);
    cr_expect_leq(e, 1e-5, "%g", e);
    run_bare(&f.r);
    adapter_free(narrow);
    regions_free(g);
    fixture_close(&f);
}

/* Levels of 8, 4, 2 and 1 places a side, all with cross attention. */
Test(tape_unet, levels)
{
    static const int want[][2] = {{1, 0}, {2, 1}, {3, 2}, {4, 2}, {8, 3}, {64, 3}};
    struct fixture f;
    fixture_open(&f, "cpu", ISA_BEST, GOLDEN);
    const struct unet *u = f.m->unet;
    for (size_t i = 0; i < sizeof want / sizeof *want; i++) {
        int level = attended_level(u, want[i][0]);
        cr_expect_eq(level, want[i][1], "1/%d: %d", want[i][0], level);
        cr_expect_gt(attended_until(u, level), 0);
    }
    for (int i = 0, last = 0; i < u->n_cross; i++) {
        int level = unet_cross_level(u, i);
        cr_expect(level >= 0 && level < u->levels && abs(level - last) <= 1, "%d lies on %d", i,
                  level);
        last = level;
    }
    cr_expect_eq(unet_cross_level(u, u->up_cross), u->levels - 1 - (u->up[0].transformer == NULL));
    fixture_close(&f);
}
