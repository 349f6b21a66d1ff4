/* A UNet's passes with adapters at work in every way there is, as a picture's steps come: again and again with other
 * strengths, times, masks; then with other adapters, of other ranks; at another size; and the first again, which must give the
 * same bits. Forth, and back through a tape. Each beside the same in double. */
#include "kit.h"

#include "unet/mask.h"
#include "unet/regions.h"
#include "unet/tape.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* What differs from one step to the next: all that is drawn by number; who acts; the size. */
enum who { THOSE, SWAPPED, OTHERS, WHO };
struct turn {
    int number;
    enum who who; /* SWAPPED: the same two, each as the other: other ranks at the same places */
    int h, w;
};
static const struct turn turns[] = {{0, THOSE, 8, 8},   {1, THOSE, 8, 8},  {2, THOSE, 8, 8},
                                    {3, SWAPPED, 8, 8}, {4, OTHERS, 8, 8}, {5, THOSE, 5, 7},
                                    {6, SWAPPED, 8, 8}, {7, OTHERS, 5, 7}, {0, THOSE, 8, 8}},
                         quick_turns[] = {{0, THOSE, 8, 8}, {1, THOSE, 8, 8}, {0, THOSE, 8, 8}};

enum { PRODUCTS, WIDER, LITTLE, MIXED, NORMS, KITS };
enum { ROWS = 2, JOINTS = 8 };

struct step_net {
    struct device *dev;
    enum dtype type;
    struct model *m;
    struct kit *kit[KITS];
    struct gates *gates;
    struct run r;
    struct tape *tape; /* or NULL: forth only */
    uint64_t seed;
    float wave[ROWS][GATE_WAVES];
    struct branch branch[8];
    struct joint *joint[JOINTS]; /* as they were asked for first */
    int joint_of[JOINTS][2], n_joint;
    struct mask *mask[2], *words[2], *routed[2];
    struct fold *fold[2];
    struct regions *regions;
    struct tensor region_text[2];
};

/* ---- opening --------------------------------------------------------------------------------- */

static void net_open(struct step_net *f, struct device *dev, enum dtype type, bool back)
{
    static const struct {
        unsigned kinds;
        int rank;
    } kits[KITS] = {[PRODUCTS] = {KIT_LORA, 4},
                    [WIDER] = {KIT_LORA, 17},
                    [LITTLE] = {KIT_LORA | KIT_LINEAR, 1},
                    [MIXED] = {KIT_MIX, 3},
                    [NORMS] = {KIT_LORA | KIT_NORMS | KIT_LINEAR, 2}};
    struct err err;
    *f = (struct step_net){.dev = dev, .type = type, .seed = seed_of("steps", 0)};
    must(model_open(&f->m, dev, kit_model(back || options.quick), &err), &err, "a tiny model");
    for (int i = 0; i < KITS; i++)
        f->kit[i] =
            kit_new(f->m, "kit", kits[i].kinds, kits[i].rank, .3, f->seed + 77 * (uint64_t)i);
    f->gates = kit_gates(f->m, f->seed);
    for (int i = 0; i < 2; i++) {
        must(mask_new(&f->mask[i], dev, &err), &err, "a mask");
        must(mask_new(&f->words[i], dev, &err), &err, "a mask");
        must(mask_new(&f->routed[i], dev, &err), &err, "a mask");
    }
    must(back ? tape_new(&f->tape, &err) : 0, &err, "a tape");
    run_init(&f->r, dev);
}

static void net_close(struct step_net *f)
{
    tape_free(f->tape);
    run_release(&f->r);
    for (int i = 0; i < f->n_joint; i++)
        joint_free(f->joint[i]);
    for (int i = 0; i < 2; i++) {
        mask_free(f->mask[i]);
        mask_free(f->words[i]);
        mask_free(f->routed[i]);
        fold_free(f->fold[i]);
    }
    regions_free(f->regions);
    gates_close(f->gates);
    for (int i = 0; i < KITS; i++)
        kit_free(f->kit[i]);
    model_close(f->m);
}

/* ---- the ways -------------------------------------------------------------------------------- */

static float strength_of(const struct turn *t, int i)
{
    return (i ? .6f : 1) - .15f * (float)t->number;
}

static struct branch branch_of(struct step_net *f, int kit, const struct turn *t, int i, int row0,
                               int row1)
{
    return (struct branch){
        .adapter = f->kit[kit]->a, .row0 = row0, .row1 = row1, .strength = strength_of(t, i)};
}

/* Which two act. */
static const int *pair_of(const struct turn *t)
{
    static const int pair[WHO][2] = {{PRODUCTS, WIDER}, {WIDER, PRODUCTS}, {LITTLE, PRODUCTS}};
    return pair[t->who];
}

static const struct joint *joint_of(struct step_net *f, const struct turn *t, int n,
                                    enum joint_for what)
{
    const struct adapter *a[2] = {f->kit[pair_of(t)[0]]->a, f->kit[pair_of(t)[1]]->a};
    struct err err;
    for (int i = 0; i < f->n_joint; i++)
        if (f->joint_of[i][0] == (int)t->who && f->joint_of[i][1] == (int)what * 4 + n)
            return f->joint[i];
    must(joint_new(&f->joint[f->n_joint], &f->m->sites, COMPONENT_UNET, n, a, what, &err), &err,
         "a joint");
    f->joint_of[f->n_joint][0] = (int)t->who;
    f->joint_of[f->n_joint][1] = (int)what * 4 + n;
    return f->joint[f->n_joint++];
}

/* Both of the pair on all rows, as one or apart. */
static void set_pair(struct step_net *f, const struct turn *t, const struct joint *j)
{
    for (int i = 0; i < 2; i++) {
        f->branch[i] = branch_of(f, pair_of(t)[i], t, i, 0, ROWS);
        f->branch[i].joint = j;
        f->branch[i].part = j ? i : 0;
    }
    f->r.n_branch = 2;
}

/* 4 x 4 values, for all sizes that were asked for. */
static void set_mask(struct step_net *f, struct mask *m, const struct turn *t, int i, bool words)
{
    float v[16];
    fill(v, 16, f->seed + 5 * (uint64_t)i + 100 * (uint64_t)t->number);
    for (int p = 0; p < 16; p++)
        v[p] = words ? (p % 7 == 3 ? GATE_SHUT : v[p]) : fminf(fmaxf(.5f + v[p], 0), 1);
    mask_set(m, v, 4, 4);
}

static void way_bare(struct step_net *f, const struct turn *t)
{
    (void)f, (void)t;
}

static void way_one(struct step_net *f, const struct turn *t)
{
    f->branch[0] = branch_of(f, pair_of(t)[1], t, 0, 0, ROWS);
    f->r.n_branch = 1;
}

/* Each row has its own: what chains are for. */
static void way_apart(struct step_net *f, const struct turn *t)
{
    for (int i = 0; i < ROWS; i++)
        f->branch[i] = branch_of(f, pair_of(t)[i], t, i, i, i + 1);
    f->r.n_branch = ROWS;
}

static void way_both(struct step_net *f, const struct turn *t)
{
    set_pair(f, t, NULL);
}

static void way_joint(struct step_net *f, const struct turn *t)
{
    set_pair(f, t, joint_of(f, t, 2, JOINT_SUM));
}

static void way_mixed(struct step_net *f, const struct turn *t)
{
    f->branch[0] = branch_of(f, t->who == OTHERS ? NORMS : PRODUCTS, t, 0, 0, 1);
    f->branch[1] = branch_of(f, MIXED, t, 1, 1, 2);
    f->r.n_branch = 2;
}

/* The same of both rows, as much as each has of it. */
static void way_norms(struct step_net *f, const struct turn *t)
{
    for (int i = 0; i < ROWS; i++)
        f->branch[i] = branch_of(f, NORMS, t, i, i, i + 1);
    f->r.n_branch = t->who == OTHERS ? 1 : ROWS;
}

static void set_masks(struct step_net *f, const struct turn *t)
{
    for (int i = 0; i < 2; i++) {
        set_mask(f, f->mask[i], t, i, false);
        f->branch[i].mask = f->mask[i];
    }
}

static void way_masks(struct step_net *f, const struct turn *t)
{
    way_joint(f, t);
    set_masks(f, t);
}

static void way_masks_apart(struct step_net *f, const struct turn *t)
{
    if (t->who == OTHERS)
        way_mixed(f, t);
    else
        way_apart(f, t);
    set_masks(f, t);
}

/* In 16 bits nobody is cut off: who is among the strongest would hang on how they are rounded. */
static void way_route(struct step_net *f, const struct turn *t)
{
    const struct route how = {.tau = .5f + .1f * (float)t->number,
                              .keep = f->type == DT_F32 ? .5f : 1};
    set_pair(f, t, joint_of(f, t, 2, JOINT_ROUTE));
    f->branch[0].route = f->branch[1].route = how;
}

/* Some gates are a number a place, some look at every channel. */
static void way_gates(struct step_net *f, const struct turn *t)
{
    set_pair(f, t, joint_of(f, t, 2, JOINT_GATE));
    for (int i = 0; i < 2; i++) {
        set_mask(f, f->words[i], t, i, true);
        f->branch[i].words = f->words[i];
        f->branch[i].gated = true;
    }
    f->r.gates = f->gates;
    f->r.wave = f->wave[0];
}

static void way_routed(struct step_net *f, const struct turn *t)
{
    way_gates(f, t);
    for (int i = 0; i < 2; i++) {
        set_mask(f, f->routed[i], t, 7 + i, true);
        f->branch[i].kinds = ROUTE_ATTENTION;
        for (int k = 0; k < ROUTE_LEVELS; k++)
            f->branch[i].routed[k] = f->routed[i];
    }
}

static void way_one_gated(struct step_net *f, const struct turn *t)
{
    way_one(f, t);
    f->branch[0] = branch_of(f, pair_of(t)[0], t, 0, 0, ROWS);
    f->branch[0].joint = joint_of(f, t, 1, JOINT_GATE);
    f->branch[0].gated = true;
    f->r.gates = f->gates;
    f->r.wave = f->wave[0];
}

static void way_fold(struct step_net *f, const struct turn *t)
{
    const int which = t->who == OTHERS;
    const struct adapter *a[2] = {f->kit[which ? MIXED : PRODUCTS]->a, f->kit[NORMS]->a};
    const float s[2] = {.8f, -.5f};
    struct err err;
    if (!f->fold[which])
        must(fold_new(&f->fold[which], &f->m->sites, COMPONENT_UNET, 2, a, s, &err), &err,
             "folding");
    f->r.fold = f->fold[which];
}

static struct tensor text_of(struct step_net *f, const struct turn *t, int which);

/* Two regions with adapters and texts of their own, which do not see each other. */
static void way_regions(struct step_net *f, const struct turn *t)
{
    float v[2][16];
    struct err err;
    if (!f->regions)
        must(regions_new(&f->regions, f->dev, 2, .5f, &err), &err, "regions");
    for (int p = 0; p < 16; p++) {
        v[0][p] = p % 4 < 2 + t->number % 2;
        v[1][p] = p % 4 >= 2 && p / 4 < 3;
    }
    for (int i = 0; i < 2; i++) {
        must(regions_set(f->regions, i, v[i], 4, 4, &err), &err, "regions");
        f->branch[i] = branch_of(f, pair_of(t)[i], t, i, 0, ROWS);
        f->region_text[i] = text_of(f, t, 1 + i);
        f->regions->at[i] =
            (struct region){.text = &f->region_text[i], .branch = &f->branch[i], .n_branch = 1};
    }
    f->regions->alone = true;
    f->r.n_branch = 0;
    f->r.regions = f->regions;
}

/* ---- passes ---------------------------------------------------------------------------------- */

static struct tensor text_of(struct step_net *f, const struct turn *t, int which)
{
    int tokens = options.quick ? 5 : 32;
    struct tensor c = run_tensor(&f->r, ROWS, tokens, 1, f->m->unet->text_width);
    float *v = room_for(tensor_count(&c), sizeof *v);
    fill(v, tensor_count(&c), f->seed + 900 + (uint64_t)(which + 10 * t->number));
    op_upload(&f->r, &c, v);
    free(v);
    return c;
}

typedef void way_fn(struct step_net *f, const struct turn *t);

/* The output, or with a tape the gradient of a sum of it. */
static struct tensor pass(struct step_net *f, way_fn *way, const struct turn *t)
{
    const double times[ROWS] = {981 - 80. * t->number, 21 + 40. * t->number};
    size_t n = (size_t)(ROWS * t->h * t->w * 4);
    float *v = room_for(2 * n, sizeof *v);
    fill(v, 2 * n, f->seed + 300 + (uint64_t)t->number);
    for (int i = 0; i < ROWS; i++)
        gate_waves(times[i], f->wave[i]);
    run_bare(&f->r);
    memset(f->branch, 0, sizeof f->branch);
    f->r.branch = f->branch;
    way(f, t);
    struct tensor c = text_of(f, t, 0);
    if (f->tape)
        tape_begin(f->tape, &f->r);
    struct tensor x = run_tensor(&f->r, ROWS, t->h, t->w, 4);
    op_upload(&f->r, &x, v);
    if (f->tape)
        tape_want(f->tape, &x);
    struct tensor y = unet_forward(f->m->unet, &f->r, &x, times, &(struct unet_text){&c, 1}, NULL);
    if (f->tape) {
        tape_seed(f->tape, &y, v + n);
        y = tape_back(f->tape, &x);
    }
    free(v);
    return y;
}

/* All sizes are known, all weights packed, and there is memory, before the first step; as generate.c does. */
static void get_ready(struct step_net *f, way_fn *way, const struct turn *t, int n)
{
    size_t peak = 0;
    struct err err;
    for (int i = 0; i < n; i++) {
        run_prepare(&f->r);
        pass(f, way, &t[i]);
        must(run_check(&f->r, &err), &err, "measuring turn %d", i);
        peak = f->r.plan.peak > peak ? f->r.plan.peak : peak;
    }
    must(run_reserve(&f->r, peak, &err), &err, "memory");
}

static float *step(struct step_net *f, way_fn *way, const struct turn *t)
{
    struct err err;
    run_reset(&f->r);
    struct tensor y = pass(f, way, t);
    must(run_check(&f->r, &err), &err, "turn %d", t->number);
    float *v = room_for(tensor_count(&y), sizeof *v);
    must(f->dev->be->download(f->dev, v, &y, &err), &err, "turn %d", t->number);
    return v;
}

static void check_way(struct device *dev, enum dtype type, way_fn *way, const char *name, bool back)
{
    const struct turn *t = options.quick ? quick_turns : turns;
    int n = (int)(options.quick ? sizeof quick_turns : sizeof turns) / (int)sizeof *turns;
    struct step_net f, exact;
    float *first = NULL;
    net_open(&f, dev, type, back);
    net_open(&exact, device_exact(), type, back);
    get_ready(&f, way, t, n);
    get_ready(&exact, way, t, n);
    for (int i = 0; i < n; i++) {
        size_t count = (size_t)(ROWS * t[i].h * t[i].w * 4);
        float *want = step(&exact, way, &t[i]), *got = step(&f, way, &t[i]);
        double e = error_of(got, want, count, 0);
        figure("turn %d, %d x %d%s: %.2g", i, t[i].h, t[i].w,
               t[i].who == OTHERS    ? ", others"
               : t[i].who == SWAPPED ? ", swapped"
                                     : "",
               e);
        expect(e, bound_of(back ? BOUND_NET_BACK : BOUND_NET, type), f.seed,
               "%s%s, turn %d, %d x %d%s", name, back ? " back" : "", i, t[i].h, t[i].w,
               t[i].who == OTHERS    ? ", others"
               : t[i].who == SWAPPED ? ", swapped"
                                     : "");
        if (i == n - 1)
            expect_that(!memcmp(first, got, count * sizeof *got), f.seed,
                        "%s%s: the first step again has the same bits", name, back ? " back" : "");
        free(want);
        if (i)
            free(got);
        else
            first = got;
    }
    free(first);
    run_bare(&f.r);
    run_bare(&exact.r);
    net_close(&f);
    net_close(&exact);
}

#define WAY(name)                                                                                  \
    static void check_##name(struct device *dev, enum dtype type)                                  \
    {                                                                                              \
        check_way(dev, type, way_##name, #name, false);                                            \
    }
#define WAY_BACK(name)                                                                             \
    static void back_##name(struct device *dev, enum dtype type)                                   \
    {                                                                                              \
        check_way(dev, type, way_##name, #name, true);                                             \
    }

WAY(bare)
WAY(one)
WAY(apart)
WAY(both)
WAY(joint)
WAY(mixed)
WAY(norms)
WAY(masks)
WAY(masks_apart)
WAY(route)
WAY(gates)
WAY(routed)
WAY(one_gated)
WAY(fold)
WAY(regions)
WAY_BACK(bare)
WAY_BACK(apart)
WAY_BACK(joint)
WAY_BACK(mixed)
WAY_BACK(norms)
WAY_BACK(masks)
WAY_BACK(gates)
WAY_BACK(fold)
WAY_BACK(regions)

const struct group step_groups[] = {
    {"steps/bare", check_bare, GROUP_TWICE},
    {"steps/one", check_one, GROUP_ONCE},
    {"steps/apart", check_apart, 0},
    {"steps/both", check_both, GROUP_ONCE},
    {"steps/joint", check_joint, GROUP_TWICE},
    {"steps/mixed", check_mixed, 0},
    {"steps/norms", check_norms, GROUP_ONCE},
    {"steps/masks", check_masks, GROUP_TWICE},
    {"steps/masks_apart", check_masks_apart, GROUP_ONCE},
    {"steps/route", check_route, GROUP_TWICE},
    {"steps/gates", check_gates, 0},
    {"steps/routed", check_routed, GROUP_ONCE},
    {"steps/one_gated", check_one_gated, GROUP_ONCE},
    {"steps/fold", check_fold, GROUP_TWICE},
    {"steps/regions", check_regions, GROUP_TWICE},
    {"steps/back_bare", back_bare, GROUP_ONCE},
    {"steps/back_apart", back_apart, GROUP_ONCE},
    {"steps/back_joint", back_joint, GROUP_TWICE},
    {"steps/back_mixed", back_mixed, 0},
    {"steps/back_norms", back_norms, GROUP_ONCE},
    {"steps/back_masks", back_masks, GROUP_ONCE},
    {"steps/back_gates", back_gates, GROUP_TWICE},
    {"steps/back_fold", back_fold, GROUP_ONCE},
    {"steps/back_regions", back_regions, GROUP_TWICE},
    {NULL, NULL, 0},
};
