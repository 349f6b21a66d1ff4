/* Whole pictures by every strategy, on the device and on another from the same seed; the same twice; several together, coming
 * and going. Of a tiny model, beside plain C, and with --model of one whose pictures mean something, beside the CPU backend. */
#include "kit.h"

#include "compose/compose.h"
#include "compose/generate.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* How alike two pictures have to be, in dB; of the tiny model two of other seeds come to UNLIKE at most. In 16 bits a pass is
 * off by a few of 1000 or of 100 (BOUND_NET), which guidance makes more of: over all strategies and six seeds "rounded" comes
 * to 50 dB in float16 and 31 in bfloat16 at least, and nearly twice as far off is allowed for another order of sums.
 * Strategies that ask who is first, or move the picture by a gradient, may decide otherwise where it is close ("rounded":
 * single seeds at 30 and 12 dB): of three seeds the middle one counts. */
enum { UNLIKE = 20 };
static double least_db(enum dtype type, bool decides)
{
    if (type == DT_F32)
        return 60;
    if (decides)
        return type == DT_F16 ? 32 : 22;
    return type == DT_F16 ? 44 : 27;
}

static bool decides(const char *compose)
{
    static const char *const those[] = {"mora", "router", "freefuse", "clora", "composer"};
    bool is = false;
    for (size_t i = 0; i < sizeof those / sizeof *those; i++)
        is = is || !strncmp(compose, those[i], strlen(those[i]));
    return is;
}

enum { ADAPTERS = 3 };

struct studio {
    struct device *dev;
    struct model *m;
    struct kit *kit[ADAPTERS];
    struct use use[ADAPTERS];
    struct gates *gates;
    struct prompt prompt, negative;
    int w, h, steps;
};

/* Which prompts the use's words are in. */
static const char *const said = "an owl on a castle";
static const float left[4] = {1, 0, 1, 0}, right[4] = {0, 1, 0, 1};

static void studio_open(struct studio *f, struct device *dev, const char *dir, const char *gates,
                        double strength)
{
    static const char *const words[ADAPTERS] = {"owl", "castle", NULL};
    struct err err;
    *f = (struct studio){.dev = dev};
    must(model_open(&f->m, dev, dir, &err), &err, "%s", dir);
    for (int i = 0; i < ADAPTERS; i++) {
        f->kit[i] = kit_new(f->m, "kit", i == 2 ? KIT_MIX | KIT_NORMS : KIT_LORA | KIT_TEXT,
                            4 + 3 * i, strength, seed_of("pictures", (uint64_t)i));
        f->use[i] = (struct use){.adapter = f->kit[i]->a,
                                 .unet = 1 - .3f * (float)i,
                                 .te = .5f,
                                 .words = words[i],
                                 .high = NAN};
    }
    if (gates)
        must(gates_open(&f->gates, dev, &f->m->sites, gates, &err), &err, "gates");
    else
        f->gates = kit_gates(f->m, seed_of("gates", 0));
    must(prompt_read(&f->prompt, said, &err), &err, "a prompt");
    must(prompt_read_negative(&f->negative, "mist", &err), &err, "a prompt");
    f->w = f->h = f->m->unet->sample_size * f->m->vae->factor;
    f->steps = 4;
    if (options.quick) {
        f->w = f->h = 8 * f->m->vae->factor;
        f->steps = 2;
    }
}

static void studio_close(struct studio *f)
{
    for (int i = 0; i < ADAPTERS; i++)
        kit_free(f->kit[i]);
    gates_close(f->gates);
    prompt_release(&f->prompt);
    prompt_release(&f->negative);
    model_close(f->m);
}

/* ---- one ------------------------------------------------------------------------------------- */

/* What is asked for: NULL and 0 are the usual. */
struct wish {
    const char *compose, *sampler;
    int n; /* adapters */
    bool boxes, fold;
    int w;
    double cfg;
};

static struct picture picture_of(const struct studio *f, const struct wish *wish, struct use *use,
                                 uint64_t seed)
{
    struct picture p;
    picture_init(&p, f->m);
    memcpy(use, f->use, sizeof f->use);
    for (int i = 0; i < 2 && wish->boxes; i++) {
        use[i].where = i ? right : left;
        use[i].where_h = use[i].where_w = 2;
    }
    p.prompt = &f->prompt;
    p.negative = &f->negative;
    p.w = wish->w ? wish->w : f->w;
    p.h = f->h;
    p.steps = f->steps;
    p.cfg = wish->cfg > 0 ? wish->cfg : 4;
    p.sampler = wish->sampler;
    p.seed = seed;
    p.use = use;
    p.n_use = wish->n;
    p.compose = wish->compose;
    p.fold = wish->fold;
    p.gates = f->gates;
    return p;
}

struct made {
    struct image im;
    float *latent;
    size_t n;
};

static struct made make(struct generator *g, const struct picture *p)
{
    struct made out = {0};
    struct err err;
    must(generator_prepare(g, p, 1, NULL, &err), &err, "%s", p->compose);
    must(generator_run(g, &out.im, NULL, NULL, &err), &err, "%s", p->compose);
    const float *z = generator_latent(g, 0, &out.n);
    out.latent = room_for(out.n, sizeof *z);
    memcpy(out.latent, z, out.n * sizeof *z);
    return out;
}

static void made_release(struct made *m)
{
    image_release(&m->im);
    free(m->latent);
}

static bool is_same(const struct image *a, const struct image *b)
{
    return a->w == b->w && a->h == b->h && !memcmp(a->rgb, b->rgb, (size_t)a->w * (size_t)a->h * 3);
}

/* 99 where they are the same. */
static double db_between(const struct image *a, const struct image *b)
{
    size_t n = (size_t)a->w * (size_t)a->h * 3;
    double e = 0;
    if (a->w != b->w || a->h != b->h)
        return 0;
    for (size_t i = 0; i < n; i++)
        e += pow((a->rgb[i] - b->rgb[i]) / 255.0, 2);
    return e > 0 ? fmin(10 * log10((double)n / e), 99) : 99;
}

/* The picture of one seed on both devices; twice: on the first the same bytes again. How alike they are. */
static double compare_seed(struct generator *g, struct generator *h, const struct picture *p,
                           const struct picture *q, bool twice, struct image *out)
{
    struct made got = make(g, p), want = make(h, q);
    double db = db_between(&got.im, &want.im);
    figure("%s, %d adapters: %.1f dB, latent %.2g", p->compose, p->n_use, db,
           error_of(got.latent, want.latent, got.n, 0));
    if (twice) {
        struct made again = make(g, p);
        expect_that(is_same(&got.im, &again.im), p->seed, "%s: the same bytes twice", p->compose);
        made_release(&again);
    }
    *out = got.im;
    got.im = (struct image){0};
    made_release(&got);
    made_release(&want);
    return db;
}

static double middle(double a, double b, double c)
{
    return fmax(fmin(a, b), fmin(fmax(a, b), c));
}

static void check_wish(struct studio *f, struct studio *other, enum dtype type,
                       const struct wish *wish, bool twice)
{
    enum { SEEDS = 3 };
    bool close = decides(wish->compose);
    int n = options.quick || type == DT_F32 || !close ? 1 : SEEDS;
    struct generator *g, *h;
    struct use use[2][ADAPTERS];
    struct image im[SEEDS];
    struct err err;
    double db[SEEDS];
    must(generator_open(&g, f->m, &err), &err, "a generator");
    must(generator_open(&h, other->m, &err), &err, "a generator");
    uint64_t seed = seed_of("pictures", 9);
    for (int i = 0; i < n; i++) {
        const struct picture p = picture_of(f, wish, use[0], seed + (uint64_t)i),
                             q = picture_of(other, wish, use[1], seed + (uint64_t)i);
        db[i] = compare_seed(g, h, &p, &q, twice && i == 0, &im[i]);
    }
    double all = n == SEEDS ? middle(db[0], db[1], db[2]) : db[0], least = least_db(type, close);
    expect_that(all >= least, seed, "%s%s, %d adapters: %.1f dB of %.0f", wish->compose,
                wish->fold ? " folded" : "", wish->n, all, least);
    if (n == SEEDS)
        expect_that(db_between(&im[0], &im[1]) < UNLIKE, seed, "%s: two seeds are unlike, %.1f dB",
                    wish->compose, db_between(&im[0], &im[1]));
    for (int i = 0; i < n; i++)
        image_release(&im[i]);
    generator_close(g);
    generator_close(h);
}

/* Every strategy there is, as it usually is; where it has to be quick in 16 bits a few of them. */
static void check_all(struct studio *f, struct studio *other, enum dtype type)
{
    for (int i = 0; compose_strategies[i]; i++) {
        const struct compose_strategy *s = compose_strategies[i];
        const struct wish wish = {.compose = s->name, .n = 2, .boxes = s->regions};
        if (!options.quick || type == DT_F32 || (i % 4 == 0 && !decides(s->name)))
            check_wish(f, other, type, &wish, !options.quick || i == 0);
    }
}

/* The device's, and another's of a backend that is right. */
struct pair {
    struct studio f, other;
    struct device *dev;
};

static void pair_open(struct pair *p, struct device *dev, const char *beside, const char *dir,
                      const char *gates, double strength)
{
    struct err err;
    must(device_make(&p->dev, beside, DT_F32, &err), &err, "%s", beside);
    studio_open(&p->f, dev, dir, gates, strength);
    studio_open(&p->other, p->dev, dir, gates, strength);
}

static void pair_close(struct pair *p)
{
    studio_close(&p->f);
    studio_close(&p->other);
    device_close(p->dev);
}

/* Of test data. */
static void tiny_open(struct pair *p, struct device *dev)
{
    pair_open(p, dev, "ref", kit_model(options.quick), NULL, .3);
}

static void check_strategies(struct device *dev, enum dtype type)
{
    struct pair p;
    tiny_open(&p, dev);
    check_all(&p.f, &p.other, type);
    pair_close(&p);
}

/* ---- options --------------------------------------------------------------------------------- */

static const struct wish wishes[] = {
    {.compose = "merge", .n = 0},
    {.compose = "merge:uncond=base", .n = 3, .sampler = "euler_a"},
    {.compose = "composite:deepcache=2", .n = 3, .sampler = "dpmpp_2m"},
    {.compose = "merge", .n = 3, .fold = true},
    {.compose = "merge", .n = 1, .cfg = 1, .sampler = "heun"},
    {.compose = "mora:tau=.3,keep=1", .n = 3},
    {.compose = "gated:uncond=base", .n = 1},
    {.compose = "gated:global=3", .n = 3},
    {.compose = "router:at=attention,k=1", .n = 3, .sampler = "unipc"},
    {.compose = "attend:uncond=base,deepcache=2", .n = 2, .sampler = "heun"},
    {.compose = "freefuse:phase=.5", .n = 2, .boxes = true},
    {.compose = "clora:uncond=base,maps=both,rate=5", .n = 2},
    {.compose = "clora:memory=least,rate=50", .n = 2},
    {.compose = "composer:act=cross,until=1", .n = 2, .boxes = true},
    {.compose = "composer:rate=5", .n = 2},
    {.compose = "regions:alone=yes", .n = 3, .boxes = true},
    {.compose = "superpose:uncond=base", .n = 3, .sampler = "lcm"},
};

static void check_options(struct device *dev, enum dtype type)
{
    struct pair p;
    tiny_open(&p, dev);
    for (size_t i = 0; i < sizeof wishes / sizeof *wishes; i++)
        if (!options.quick || i % 6 == 5)
            check_wish(&p.f, &p.other, type, &wishes[i], !options.quick);
    pair_close(&p);
}

/* ---- together -------------------------------------------------------------------------------- */

enum { TOGETHER = 8, HAND = 3 };
static const struct wish many[TOGETHER] = {
    {.compose = "merge", .n = 3},
    {.compose = "switch:tau=1", .n = 2},
    {.compose = "composite", .n = 3, .sampler = "euler"},
    {.compose = "gated", .n = 2},
    {.compose = "mora:keep=1", .n = 3, .w = 96},
    {.compose = "attend", .n = 2},
    {.compose = "clora", .n = 2},
    {.compose = "merge", .n = 1, .cfg = 1, .sampler = "heun"},
};

/* A picture made in company beside itself made alone, on the same device. */
static void compare_alone(struct studio *f, enum dtype type, const struct picture *p,
                          const struct image *im, const char *how)
{
    struct generator *g;
    struct err err;
    must(generator_open(&g, f->m, &err), &err, "a generator");
    struct made alone = make(g, p);
    double db = db_between(im, &alone.im), least = least_db(type, decides(p->compose));
    expect_that(db >= least, p->seed, "%s %s: %.1f dB of %.0f", p->compose, how, db, least);
    if (!is_same(im, &alone.im))
        figure("%s %s: other bytes than alone, %.1f dB", p->compose, how, db);
    made_release(&alone);
    generator_close(g);
}

static void come_and_go(struct studio *f, enum dtype type, const struct picture *p, int n)
{
    struct generator *g;
    struct err err;
    int at[HAND], of[HAND], next = 0, done = 0;
    must(generator_open(&g, f->m, &err), &err, "a generator");
    for (int k = 0; k < HAND; k++)
        of[k] = -1;
    while (done < n) {
        int k = 0;
        while (k < HAND && of[k] >= 0)
            k++;
        if (k < HAND && next < n) {
            must(generator_join(g, &p[next], &at[k], &err), &err, "%s joins", p[next].compose);
            must(generator_begin(g, at[k], &err), &err, "%s begins", p[next].compose);
            of[k] = next++;
        }
        must(generator_step(g, &err), &err, "a step");
        for (k = 0; k < HAND; k++) {
            struct image im;
            if (of[k] < 0 || generator_left(g, at[k]))
                continue;
            must(generator_take(g, at[k], &im, &err), &err, "a picture");
            compare_alone(f, type, &p[of[k]], &im, "among others that come and go");
            image_release(&im);
            of[k] = -1;
            done++;
        }
    }
    generator_close(g);
}

static void check_together(struct device *dev, enum dtype type)
{
    struct pair both;
    struct generator *g;
    struct use use[TOGETHER][ADAPTERS];
    struct picture p[TOGETHER];
    struct image im[TOGETHER];
    struct err err;
    int n = options.quick ? 2 : TOGETHER;
    tiny_open(&both, dev);
    struct studio *f = &both.f;
    for (int i = 0; i < n; i++)
        p[i] = picture_of(f, &many[i], use[i], 40 + (uint64_t)i);
    must(generator_open(&g, f->m, &err), &err, "a generator");
    must(generator_prepare(g, p, n, NULL, &err), &err, "all");
    must(generator_run(g, im, NULL, NULL, &err), &err, "all");
    for (int i = 0; i < n; i++) {
        compare_alone(f, type, &p[i], &im[i], "among others");
        image_release(&im[i]);
    }
    generator_close(g);
    come_and_go(f, type, p, n);
    pair_close(&both);
}

/* ---- a model of some size -------------------------------------------------------------------- */

static void check_model(struct device *dev, enum dtype type)
{
    char gates[1100];
    struct pair p;
    snprintf(gates, sizeof gates, "%s/../gates/gates.safetensors", options.model); /* shipped so */
    pair_open(&p, dev, "cpu", options.model, access(gates, R_OK) == 0 ? gates : NULL, .1);
    check_all(&p.f, &p.other, type);
    pair_close(&p);
}

const struct group picture_groups[] = {
    {"pictures/strategies", check_strategies, 0},
    {"pictures/options", check_options, GROUP_ONCE},
    {"pictures/together", check_together, GROUP_ONCE},
    {"pictures/model", check_model, GROUP_MODEL},
    {NULL, NULL, 0},
};
