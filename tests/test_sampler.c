#include "tests/shared.h"
#include "unet/config.h"
#include "unet/rng.h"
#include "unet/sampler.h"

#include <criterion/criterion.h>
#include <inttypes.h>
#include <limits.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GOLDEN    "tests/golden/data/sampler.txt"
#define COUNT_MAX 768

/* ---- running a table ------------------------------------------------------------------------ */

typedef double model_fn(double x, double t);

struct run {
    int n; /* values in a slot */
    float slot[SLOT_COUNT][COUNT_MAX];
    struct rng rng;
    model_fn *model;
    bool scaled; /* quirk of some published tests: the scaled sample goes into the step */
};

static double ratio_model(double x, double t)
{
    return x * t / (t + 1);
}

static double wave_model(double x, double t)
{
    return 0.8 * tanh(x) + 0.15 * sin(3 * x + t / 100) + 0.05;
}

/* Slots are float, as on a device; sums are double. */
static void apply(struct run *r, const struct sampler_op *op)
{
    for (int i = 0; i < r->n; i++) {
        double sum = 0;
        for (int k = 0; k < op->n; k++)
            sum += op->coef[k] * (double)r->slot[op->src[k]][i];
        if (op->clamp > 0)
            sum = fmin(fmax(sum, -op->clamp), op->clamp);
        r->slot[op->dst][i] = (float)sum;
    }
}

static bool reads(const struct sampler_op *op, int slot)
{
    for (int k = 0; k < op->n; k++)
        if (op->src[k] == slot)
            return true;
    return false;
}

static void evaluate(struct run *r, const struct sampler_eval *e)
{
    bool noise = false;
    for (int i = 0; i < r->n; i++) {
        float x = (float)(e->in_scale * (double)r->slot[SLOT_X][i]);
        if (r->scaled)
            r->slot[SLOT_X][i] = x;
        r->slot[SLOT_M][i] = (float)r->model((double)x, e->t);
    }
    for (int j = 0; j < e->n_op; j++)
        noise |= reads(&e->op[j], SLOT_N);
    if (noise)
        rng_normal(&r->rng, r->slot[SLOT_N], (size_t)r->n);
    for (int j = 0; j < e->n_op; j++)
        apply(r, &e->op[j]);
}

static double norm(const float *v, int n)
{
    double s = 0;
    for (int i = 0; i < n; i++)
        s += (double)v[i] * (double)v[i];
    return sqrt(s);
}

static struct sampler *open_ok(const struct schedule *s, const struct sampler_options *o)
{
    struct err err = {0};
    struct sampler *out = NULL;
    int rc = sampler_open(&out, s, o, &err);
    cr_assert_eq(rc, 0, "%s, %d steps: %s", o->name ? o->name : "(default)", o->steps, err.msg);
    return out;
}

/* ---- against diffusers, run as a pipeline runs it ------------------------------------------- */

struct golden {
    FILE *f;
    char line[8192];
    double t[128];
    float sigma[128];
    int n_t, n_sigma;
};

static float float_of(const char *hex)
{
    uint32_t bits = (uint32_t)strtoul(hex, NULL, 16);
    float v;
    memcpy(&v, &bits, 4);
    return v;
}

static bool next_line(struct golden *g)
{
    if (!fgets(g->line, sizeof g->line, g->f))
        return false;
    cr_assert_not_null(strchr(g->line, '\n'));
    return true;
}

/* Reads lines t and s where they are there; afterwards the line is the case's x. */
static void read_levels(struct golden *g)
{
    cr_assert(next_line(g));
    if (g->line[0] != 't')
        return;
    char *p = g->line + 1;
    g->n_t = (int)strtol(p, &p, 10);
    cr_assert_leq(g->n_t, 128);
    for (int i = 0; i < g->n_t; i++)
        g->t[i] = strtod(p, &p);
    cr_assert(next_line(g) && g->line[0] == 's');
    p = g->line + 1;
    g->n_sigma = (int)strtol(p, &p, 10);
    cr_assert_leq(g->n_sigma, 128);
    for (int i = 0; i < g->n_sigma; i++, p += 9)
        g->sigma[i] = float_of(p);
    cr_assert(next_line(g));
}

static void load(struct schedule *s, const char *json)
{
    struct err err = {0};
    struct config *c = NULL;
    cr_assert_eq(config_parse(&c, json, "scheduler_config.json", &err), 0, "%s", err.msg);
    cr_assert_eq(schedule_from_config(s, c, &err), 0, "%s: %s", json, err.msg);
    config_close(c);
}

/* Timesteps are equal; those that Karras sigmas make, by float32 logarithms, to one in a million of
 * the range. Sigmas to 1e-6 of themselves. */
static void check_levels(const struct golden *g, const struct sampler *s, const char *what)
{
    cr_assert_eq(s->n_eval, g->n_t, "%s: %d evaluations, not %d", what, s->n_eval, g->n_t);
    for (int i = 0; i < g->n_t; i++) {
        bool whole = g->t[i] == floor(g->t[i]);
        cr_expect_float_eq(s->eval[i].t, g->t[i], whole ? 1e-5 : 1e-3,
                           "%s: timestep %d is %.9g, not %.9g", what, i, s->eval[i].t, g->t[i]);
        if (i < g->n_sigma)
            cr_expect_float_eq(s->eval[i].sigma, (double)g->sigma[i], 1e-6 * (double)g->sigma[i],
                               "%s: sigma %d is %.9g, not %.9g", what, i, s->eval[i].sigma,
                               (double)g->sigma[i]);
    }
}

/* Relative to the result, or where that is what cancellation left, below a hundredth of the largest
 * sample on the way, to that. */
static double error_of(const struct run *r, const float *want, double peak)
{
    float diff[COUNT_MAX];
    for (int i = 0; i < r->n; i++)
        diff[i] = r->slot[SLOT_X][i] - want[i];
    double size = norm(want, r->n);
    return norm(diff, r->n) / (size < 0.01 * peak ? peak : size);
}

static double play_case(struct golden *g, struct schedule *s, const char *head)
{
    char name[16], model[16];
    double strength, eta, clip, peak;
    int steps, offset;
    static struct run r;
    float want[16];

    cr_assert_eq(sscanf(head, "case %15s %15s %d %lf %lf %lf %d", name, model, &steps, &strength,
                        &eta, &clip, &offset),
                 7, "%s", head);
    s->clip_sample = clip > 0;
    s->clip_sample_range = clip > 0 ? clip : 1;
    s->steps_offset = offset;
    read_levels(g);

    struct sampler_options o = {.steps = steps, .eta = eta, .denoise = strength > 0 ? strength : 1};
    struct sampler *sampler = open_ok(s, &o);
    cr_assert_str_eq(sampler->name, name);
    check_levels(g, sampler, head);
    r = (struct run){.n = 16, .model = model[0] == 'r' ? ratio_model : wave_model};
    rng_init(&r.rng, RNG_TORCH, 7);
    rng_normal(&r.rng, r.slot[SLOT_N], 16);
    for (int i = 0; i < 16; i++) {
        double noise = (double)r.slot[SLOT_N][i];
        double from_picture = sampler->start_signal * (i / 8.0 - 1) + sampler->start_noise * noise;
        r.slot[SLOT_X][i] = (float)(strength > 0 ? from_picture : sampler->init_scale * noise);
    }
    for (int i = 0; i < sampler->n_eval; i++)
        evaluate(&r, &sampler->eval[i]);
    sampler_close(sampler);

    char *p = g->line + 1;
    peak = strtod(p, &p);
    for (int i = 0; i < 16; i++)
        want[i] = float_of(p + 1 + 9 * i);
    return error_of(&r, want, peak);
}

Test(sampler, is_diffusers_in_a_pipeline)
{
    static struct golden g;
    struct schedule s;
    char json[4096], head[256];
    int cases = 0;
    double worst = 0;

    g.f = fopen(GOLDEN, "r");
    cr_assert_not_null(g.f, "%s is missing: run from the repository's root", GOLDEN);
    schedule_init(&s);
    while (next_line(&g)) {
        if (g.line[0] == '{') {
            snprintf(json, sizeof json, "%.4000s", g.line);
            schedule_release(&s);
            load(&s, json);
            continue;
        }
        snprintf(head, sizeof head, "%.*s", (int)strcspn(g.line, "\n"), g.line);
        double e = play_case(&g, &s, head);
        cr_expect_leq(e, 1e-5, "%s: relative error %.3g\n%s", head, e, json);
        worst = fmax(worst, e);
        cases++;
    }
    schedule_release(&s);
    fclose(g.f);
    cr_assert_eq(cases, 441);
    cr_log_info("largest relative error of %d cases: %.3g", cases, worst);
}

/* ---- against the sums in diffusers' own tests (tests/schedulers, Apache-2.0) ---------------- */

enum { KARRAS = 1, ALPHA_ONE = 2, ALPHA_0 = 4, PRK = 8, CLIP = 16, SIGMA_MIN = 32, LOW_BETA = 64 };

static const struct published {
    const char *name;
    enum prediction prediction;
    int steps, from; /* the step an added noise belongs to, 0: none */
    unsigned flags;
    double sum, mean; /* of the absolute values; 0 where it is not published */
} published[] = {
    {"ddim", PREDICT_EPSILON, 10, 0, CLIP | ALPHA_ONE, 172.0067, 0.223967},
    {"ddim", PREDICT_V, 10, 0, CLIP | ALPHA_ONE, 52.5302, 0.0684},
    {"ddim", PREDICT_EPSILON, 10, 0, CLIP | ALPHA_ONE | LOW_BETA, 149.8295, 0.1951},
    {"ddim", PREDICT_EPSILON, 10, 0, CLIP | ALPHA_0 | LOW_BETA, 149.0784, 0.1941},
    {"ddim", PREDICT_EPSILON, 10, 8, CLIP | ALPHA_ONE, 354.5418, 0.4616},
    {"euler", PREDICT_EPSILON, 10, 0, 0, 10.0807, 0.0131},
    {"euler", PREDICT_V, 10, 0, 0, 0.0002, 2.2676e-06},
    {"euler", PREDICT_EPSILON, 10, 0, KARRAS, 124.52299499511719, 0.16213932633399963},
    {"euler", PREDICT_EPSILON, 10, 8, 0, 57062.9297, 74.3007},
    {"euler_a", PREDICT_EPSILON, 10, 0, 0, 152.3192, 0.1983},
    {"euler_a", PREDICT_V, 10, 0, 0, 108.4439, 0.1412},
    {"euler_a", PREDICT_EPSILON, 10, 8, 0, 56163.0508, 73.1290},
    {"heun", PREDICT_EPSILON, 10, 0, 0, 0.1233, 0.0002},
    {"heun", PREDICT_V, 10, 0, 0, 4.6934e-07, 6.1112e-10},
    {"heun", PREDICT_EPSILON, 10, 8, 0, 75074.8906, 97.7538},
    {"dpmpp_2m", PREDICT_EPSILON, 10, 0, SIGMA_MIN, 0, 0.3301},
    {"dpmpp_2m", PREDICT_EPSILON, 10, 5, SIGMA_MIN, 318.4111, 0.4146},
    {"dpmpp_2m", PREDICT_V, 10, 0, SIGMA_MIN, 0, 0.2251},
    {"dpmpp_2m", PREDICT_V, 10, 0, SIGMA_MIN | KARRAS, 0, 0.2096},
    {"unipc", PREDICT_EPSILON, 10, 0, SIGMA_MIN, 0, 0.2464},
    {"unipc", PREDICT_EPSILON, 10, 0, SIGMA_MIN | KARRAS, 0, 0.2925},
    {"unipc", PREDICT_V, 10, 0, SIGMA_MIN, 0, 0.1014},
    {"unipc", PREDICT_V, 10, 0, SIGMA_MIN | KARRAS, 0, 0.1966},
    {"unipc", PREDICT_EPSILON, 10, 8, SIGMA_MIN, 315.5757, 0.4109},
    {"pndm", PREDICT_EPSILON, 10, 0, PRK, 198.1318, 0.2580},
    {"pndm", PREDICT_V, 10, 0, PRK, 67.3986, 0.0878},
    {"pndm", PREDICT_EPSILON, 10, 0, PRK | ALPHA_ONE | LOW_BETA, 230.0399, 0.2995},
    {"pndm", PREDICT_EPSILON, 10, 0, PRK | ALPHA_0 | LOW_BETA, 186.9482, 0.2434},
    {"lcm", PREDICT_EPSILON, 1, 0, 0, 18.7097, 0.0244},
    {"lcm", PREDICT_EPSILON, 10, 0, 0, 197.7616, 0.2575},
};

static bool is_one_of(const char *name, const char *a, const char *b, const char *c)
{
    return !strcmp(name, a) || !strcmp(name, b) || !strcmp(name, c);
}

static struct schedule published_schedule(const struct published *p)
{
    struct schedule s;
    schedule_init(&s);
    s.prediction = p->prediction;
    if (is_one_of(p->name, "euler", "euler_a", "heun"))
        s.train_steps = 1100;
    if (!strcmp(p->name, "lcm")) {
        s.beta = BETA_SCALED_LINEAR;
        s.beta_start = 0.00085;
        s.beta_end = 0.012;
    }
    if (p->flags & LOW_BETA)
        s.beta_start = 0.01;
    if (p->flags & (ALPHA_ONE | ALPHA_0))
        s.set_alpha_to_one = p->flags & ALPHA_ONE ? 1 : 0;
    s.skip_prk_steps = !(p->flags & PRK);
    s.clip_sample = p->flags & CLIP;
    s.final_sigma_min = p->flags & SIGMA_MIN;
    s.lower_order_final = strcmp(p->name, "dpmpp_2m") != 0;
    return s;
}

Test(sampler, is_what_diffusers_tests_publish)
{
    static struct run r;
    for (size_t c = 0; c < sizeof published / sizeof *published; c++) {
        const struct published *p = &published[c];
        bool sigmas = is_one_of(p->name, "euler", "euler_a", "heun");
        struct schedule s = published_schedule(p);
        struct sampler_options o = {
            .name = p->name,
            .steps = p->steps,
            .sigmas = p->flags & KARRAS ? SIGMAS_KARRAS : SIGMAS_DEFAULT,
            .denoise = p->from ? (p->steps - p->from + 0.5) / p->steps : 1,
        };
        struct sampler *t = open_ok(&s, &o);
        r = (struct run){.n = COUNT_MAX, .model = ratio_model, .scaled = sigmas};
        rng_init(&r.rng, RNG_TORCH, 0);
        /* value k of an array [3, 8, 8, 4] seen as [4, 3, 8, 8], in whose order noise is drawn */
        for (int i = 0; i < COUNT_MAX; i++) {
            int k = i % 192 * 4 + i / 192;
            double x = t->init_scale * (k / 768.0), noise = (767 - k) / 768.0;
            r.slot[SLOT_X][i] = (float)(p->from ? t->start_signal * x + t->start_noise * noise : x);
        }
        for (int i = 0; i < t->n_eval; i++)
            evaluate(&r, &t->eval[i]);
        sampler_close(t);
        double sum = 0;
        for (int i = 0; i < COUNT_MAX; i++)
            sum += fabs((double)r.slot[SLOT_X][i]);
        /* diffusers' own bounds, drawn tighter where the sum is not what cancellation left */
        double bound = p->sum < 1e-3 ? 1e-2 : fmin(1e-2, 1e-4 * p->sum + 6e-5);
        if (p->sum > 0)
            cr_expect_float_eq(sum, p->sum, bound, "%s %zu: sum %.6g, published %.6g", p->name, c,
                               sum, p->sum);
        cr_expect_float_eq(sum / COUNT_MAX, p->mean, 1e-3, "%s %zu: mean %.6g, published %.6g",
                           p->name, c, sum / COUNT_MAX, p->mean);
    }
}

static void check_timesteps(const struct schedule *s, const char *name, int steps,
                            const double *want)
{
    struct sampler_options o = {.name = name, .steps = steps, .denoise = 1};
    struct sampler *t = open_ok(s, &o);
    for (int i = 0; i < t->n_eval; i++)
        cr_assert_eq(t->eval[i].t, want[i], "%s: timestep %d is %g", name, i, t->eval[i].t);
    sampler_close(t);
}

Test(sampler, published_timesteps)
{
    struct schedule s;
    schedule_init(&s);
    s.steps_offset = 1;
    check_timesteps(&s, "ddim", 5, (double[]){801, 601, 401, 201, 1});
    check_timesteps(&s, "pndm", 10,
                    (double[]){901, 851, 851, 801, 801, 751, 751, 701, 701, 651, 651, 601, 601, 501,
                               401, 301, 201, 101, 1});
}

/* ---- what every table promises -------------------------------------------------------------- */

/* Slots are written before they are read; numbers are finite; steps go up by one and all are
 * there. */
static void check_table(const struct sampler *t, const char *what, int steps)
{
    unsigned written = 1u << SLOT_X | 1u << SLOT_M | 1u << SLOT_N;
    int step = 0;
    cr_assert_geq(t->n_eval, 1, "%s", what);
    cr_assert(isfinite(t->init_scale) && t->init_scale > 0, "%s", what);
    cr_assert(isfinite(t->start_signal) && isfinite(t->start_noise), "%s", what);
    for (int i = 0; i < t->n_eval; i++) {
        const struct sampler_eval *e = &t->eval[i];
        cr_assert(isfinite(e->t) && isfinite(e->sigma) && isfinite(e->in_scale), "%s", what);
        cr_assert(e->t >= 0 && e->sigma > 0 && e->in_scale > 0, "%s", what);
        cr_assert(e->step == step || e->step == step + 1, "%s: step %d", what, e->step);
        step = e->step;
        cr_assert(e->n_op >= 1 && e->n_op <= SAMPLER_MAX_OPS, "%s", what);
        for (int j = 0; j < e->n_op; j++) {
            const struct sampler_op *op = &e->op[j];
            cr_assert(op->n >= 1 && op->n <= SAMPLER_MAX_TERMS, "%s: %d terms", what, op->n);
            cr_assert(op->dst == SLOT_X || (op->dst >= SLOT_H0 && op->dst < SLOT_COUNT), "%s",
                      what);
            for (int k = 0; k < op->n; k++) {
                cr_assert(isfinite(op->coef[k]), "%s", what);
                cr_assert(written >> op->src[k] & 1, "%s: slot %d is empty", what, op->src[k]);
            }
            written |= 1u << op->dst;
        }
        cr_assert_eq(e->op[e->n_op - 1].dst, SLOT_X, "%s", what);
    }
    cr_assert_eq(step, steps - 1, "%s: ends with step %d", what, step);
}

/* Every sampler x spacing x prediction x sigmas x 1 to 200 steps; what is refused must be one of
 * the few known refusals. */
Test(sampler, tables_are_sound)
{
    int made = 0, refused = 0;
    for (int k = 0; sampler_names[k]; k++)
        for (int spacing = SPACING_LEADING; spacing <= SPACING_TRAILING; spacing++)
            for (int predict = PREDICT_EPSILON; predict <= PREDICT_SAMPLE; predict++)
                for (int sigmas = SIGMAS_DEFAULT; sigmas <= SIGMAS_KARRAS; sigmas++)
                    for (int steps = 1; steps <= 200; steps++) {
                        const char *name = sampler_names[k];
                        struct schedule s;
                        struct err err = {0};
                        struct sampler *t = NULL;
                        char what[128];
                        struct sampler_options o = {.name = name,
                                                    .steps = steps,
                                                    .sigmas = (enum sigmas)sigmas,
                                                    .denoise = 1};
                        schedule_init(&s);
                        s.beta = BETA_SCALED_LINEAR;
                        s.beta_start = 0.00085;
                        s.beta_end = 0.012;
                        s.steps_offset = 1;
                        s.spacing = spacing;
                        s.prediction = (enum prediction)predict;
                        s.skip_prk_steps = steps % 2;
                        snprintf(what, sizeof what,
                                 "%s spacing %d prediction %d sigmas %d steps %d", name, spacing,
                                 predict, sigmas, steps);
                        bool expect = (sigmas == SIGMAS_KARRAS && !sampler_takes_karras(name)) ||
                                      (predict == PREDICT_SAMPLE &&
                                       is_one_of(name, "pndm", "euler_a", "euler_a")) ||
                                      (!strcmp(name, "lcm") && steps > 50) ||
                                      (!strcmp(name, "pndm") && steps == 2);
                        int rc = sampler_open(&t, &s, &o, &err);
                        cr_assert_eq(rc < 0, expect, "%s: %s", what, err.msg);
                        if (rc == 0)
                            check_table(t, what, steps);
                        made += rc == 0;
                        refused += rc < 0;
                        sampler_close(t);
                    }
    cr_assert_gt(made, 15000);
    cr_assert_gt(refused, 1000);
}

/* The last steps of a run in full are those of img2img; only what remembers earlier ones
 * differs. */
Test(sampler, denoise_leaves_out_the_first_steps)
{
    struct schedule s;
    schedule_init(&s);
    s.skip_prk_steps = true;
    for (int k = 0; sampler_names[k]; k++) {
        struct sampler_options all = {.name = sampler_names[k], .steps = 20, .denoise = 1};
        struct sampler_options part = {.name = sampler_names[k], .steps = 20, .denoise = 0.6};
        struct sampler *a = open_ok(&s, &all), *b = open_ok(&s, &part);
        int evaluations = strcmp(a->name, "heun") == 0   ? 23
                          : strcmp(a->name, "pndm") == 0 ? 13
                                                         : 12;
        cr_assert_eq(b->n_eval, evaluations, "%s", a->name);
        check_table(b, a->name, 12);
        for (int i = 0; i < b->n_eval; i++)
            cr_assert_eq(b->eval[i].t, a->eval[a->n_eval - b->n_eval + i].t);
        cr_assert_eq(b->steps, 20);
        cr_assert_lt(b->start_noise, a->start_noise);
        sampler_close(a);
        sampler_close(b);
    }
}

/* ---- configs -------------------------------------------------------------------------------- */

Test(schedule, reads_real_configs)
{
    static const struct {
        const char *name, *sampler;
        enum prediction prediction;
    } models[] = {
        {"sd15", "pndm", PREDICT_EPSILON},  {"sd15-inpainting", "ddim", PREDICT_EPSILON},
        {"sd21", "ddim", PREDICT_V},        {"sd21-base", "pndm", PREDICT_EPSILON},
        {"sdxl", "euler", PREDICT_EPSILON},
    };
    for (size_t i = 0; i < sizeof models / sizeof *models; i++) {
        char name[64], path[PATH_MAX];
        struct err err = {0};
        struct config *c = NULL;
        struct schedule s;
        snprintf(name, sizeof name, "model-configs/%s/scheduler/scheduler_config.json",
                 models[i].name);
        shared_path(path, sizeof path, name);
        cr_assert_eq(config_open(&c, path, &err), 0, "%s", err.msg);
        cr_assert_eq(schedule_from_config(&s, c, &err), 0, "%s", err.msg);
        cr_assert_str_eq(s.sampler, models[i].sampler);
        cr_assert_eq(s.prediction, models[i].prediction);
        cr_assert_eq(s.beta, BETA_SCALED_LINEAR);
        cr_assert_eq(s.beta_start, 0.00085);
        cr_assert_eq(s.beta_end, 0.012);
        cr_assert_eq(s.steps_offset, 1);
        cr_assert(s.skip_prk_steps && !s.clip_sample && s.set_alpha_to_one == 0);
        /* and every sampler can be used with it */
        for (int k = 0; sampler_names[k]; k++) {
            struct sampler_options o = {.name = sampler_names[k], .steps = 20, .denoise = 1};
            sampler_close(open_ok(&s, &o));
        }
        schedule_release(&s);
        config_close(c);
    }
}

/* What schedule_from_config says to a config; "" if nothing. */
static const char *complaint(const char *json)
{
    static struct err err;
    struct config *c = NULL;
    struct schedule s;
    err_clear(&err);
    cr_assert_eq(config_parse(&c, json, "scheduler_config.json", &err), 0, "%s", err.msg);
    int rc = schedule_from_config(&s, c, &err);
    cr_assert_eq(rc < 0, err.msg[0] != 0);
    schedule_release(&s);
    config_close(c);
    return err.msg;
}

#define SD "\"beta_start\":0.00085,\"beta_end\":0.012,\"beta_schedule\":\"scaled_linear\""

Test(schedule, refuses_what_it_cannot_read)
{
    static const struct {
        const char *json, *names;
    } bad[] = {
        {"{\"_class_name\":\"DDIMScheduler\",\"beta_schedule\":\"sigmoid\"}", "beta_schedule"},
        {"{\"_class_name\":\"DDIMScheduler\",\"prediction_type\":\"flow_prediction\"}",
         "prediction_type"},
        {"{\"_class_name\":\"DDIMScheduler\",\"timestep_spacing\":\"log\"}", "timestep_spacing"},
        {"{\"_class_name\":\"DDIMScheduler\",\"num_train_timesteps\":1}", "num_train_timesteps"},
        {"{\"_class_name\":\"DDIMScheduler\",\"num_train_timesteps\":2000000000}",
         "num_train_timesteps"},
        {"{\"_class_name\":\"DDIMScheduler\",\"num_train_timesteps\":\"1000\"}",
         "num_train_timesteps"},
        {"{\"_class_name\":\"DDIMScheduler\",\"num_train_timesteps\":3,\"trained_betas\":[0.1,0.2]"
         "}",
         "trained_betas"},
        {"{\"_class_name\":\"DDIMScheduler\",\"num_train_timesteps\":2,"
         "\"trained_betas\":[0.1,0.2,0.3]}",
         "trained_betas"},
        {"{\"_class_name\":\"DDIMScheduler\",\"shift\":3.0}", "shift"},
        {"{\"_class_name\":\"UniPCMultistepScheduler\",\"solver_p\":{\"a\":1}}", "solver_p"},
        {"{\"_class_name\":\"UniPCMultistepScheduler\",\"disable_corrector\":[0]}",
         "disable_corrector"},
        {"{\"_class_name\":\"KDPM2DiscreteScheduler\"}", "beta_start"},
        {"{}", "beta_start"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        const char *msg = complaint(bad[i].json);
        cr_assert(strstr(msg, bad[i].names) && strstr(msg, "scheduler_config.json"), "%s: \"%s\"",
                  bad[i].json, msg);
    }
    cr_assert_str_empty(complaint("{\"_class_name\":\"DDIMScheduler\"}"));
    cr_assert_str_empty(complaint("{\"_class_name\":\"KDPM2DiscreteScheduler\"," SD "}"));
    cr_assert_str_empty(complaint("{\"_class_name\":\"UniPCMultistepScheduler\",\"solver_p\":null,"
                                  "\"disable_corrector\":[],\"predict_x0\":true}"));
}

/* Keys that matter to some samplers stop those and no others. */
Test(schedule, refuses_a_key_where_it_matters)
{
    static const struct {
        const char *pair, *key, *samplers;
    } limits[] = {
        {"\"thresholding\":true", "thresholding", "ddim dpmpp_2m unipc lcm"},
        {"\"use_exponential_sigmas\":true", "use_exponential_sigmas", "euler heun dpmpp_2m unipc"},
        {"\"use_beta_sigmas\":true", "use_beta_sigmas", "euler heun dpmpp_2m unipc"},
        {"\"use_flow_sigmas\":true", "use_flow_sigmas", "dpmpp_2m unipc"},
        {"\"use_lu_lambdas\":true", "use_lu_lambdas", "dpmpp_2m"},
        {"\"predict_x0\":false", "predict_x0", "unipc"},
        {"\"timestep_type\":\"continuous\"", "timestep_type", "euler"},
        {"\"interpolation_type\":\"log_linear\"", "interpolation_type", "euler"},
        {"\"algorithm_type\":\"sde-dpmsolver++\"", "algorithm_type", "dpmpp_2m"},
        {"\"algorithm_type\":\"dpmsolver\"", "algorithm_type", "dpmpp_2m"},
        {"\"solver_type\":\"bh1\"", "solver_type", "unipc"},
        {"\"solver_order\":3", "solver_order", "dpmpp_2m unipc"},
        {"\"variance_type\":\"learned_range\"", "variance_type", "dpmpp_2m"},
        {"\"lambda_min_clipped\":-5.1", "lambda_min_clipped", "dpmpp_2m"},
        {"\"rescale_betas_zero_snr\":true,\"prediction_type\":\"v_prediction\"",
         "rescale_betas_zero_snr", "pndm heun"},
        {"\"prediction_type\":\"sample\"", "predicts the sample", "pndm euler_a"},
    };
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++) {
        char json[512], padded[64], word[32];
        struct schedule s;
        snprintf(json, sizeof json, "{\"_class_name\":\"DDIMScheduler\"," SD ",%s}",
                 limits[i].pair);
        snprintf(padded, sizeof padded, " %s ", limits[i].samplers);
        load(&s, json);
        for (int k = 0; sampler_names[k]; k++) {
            struct sampler_options o = {.name = sampler_names[k], .steps = 10, .denoise = 1};
            struct sampler *t = NULL;
            struct err err = {0};
            snprintf(word, sizeof word, " %s ", sampler_names[k]);
            bool stops = strstr(padded, word);
            int rc = sampler_open(&t, &s, &o, &err);
            cr_assert_eq(rc < 0, stops, "%s with %s: %s", limits[i].pair, o.name, err.msg);
            if (stops) {
                cr_assert_eq(rc, ERR_UNSUPPORTED);
                cr_assert(strstr(err.msg, limits[i].key) && !t, "%s", err.msg);
            }
            sampler_close(t);
        }
        schedule_release(&s);
    }
}

Test(schedule, config_decides_what_is_not_asked)
{
    struct schedule s;
    struct err err = {0};
    struct sampler *a = NULL, *b = NULL;
    load(&s, "{\"_class_name\":\"EulerDiscreteScheduler\"," SD ",\"use_karras_sigmas\":true,"
             "\"clip_sample\":true,\"steps_offset\":0}");
    /* the pipeline's word, not the file's */
    cr_assert(!s.clip_sample && s.steps_offset == 1);
    a = open_ok(&s, &(struct sampler_options){.steps = 10, .denoise = 1});
    b = open_ok(&s, &(struct sampler_options){.steps = 10, .denoise = 1, .sigmas = SIGMAS_TRAINED});
    cr_assert_str_eq(a->name, "euler");
    cr_assert_gt(fabs(b->eval[5].sigma - a->eval[5].sigma), 0.1);
    sampler_close(a);
    sampler_close(b);
    /* euler_a has no such key in diffusers: the model's wish for Karras sigmas passes it by */
    a = open_ok(&s, &(struct sampler_options){.name = "euler_a", .steps = 10, .denoise = 1});
    sampler_close(a);
    schedule_release(&s);

    load(&s, "{\"_class_name\":\"KDPM2DiscreteScheduler\"," SD "}");
    cr_assert_str_empty(s.sampler);
    struct sampler_options o = {.steps = 10, .denoise = 1};
    cr_assert_eq(sampler_open(&a, &s, &o, &err), ERR_UNSUPPORTED);
    cr_assert(strstr(err.msg, "dpmpp_2m"), "%s", err.msg);
    schedule_release(&s);
}

/* ---- what is refused ------------------------------------------------------------------------ */

static void expect_refusal(const struct schedule *s, struct sampler_options o, int code,
                           const char *words)
{
    struct sampler *t = NULL;
    struct err err = {0};
    if (o.denoise == 0)
        o.denoise = 1;
    cr_expect_eq(sampler_open(&t, s, &o, &err), code, "%s", words);
    cr_expect_null(t);
    cr_expect(strstr(err.msg, words), "\"%s\" is not in \"%s\"", words, err.msg);
    sampler_close(t);
}

Test(sampler, refuses_by_name)
{
    struct schedule s;
    schedule_init(&s);
    expect_refusal(&s, (struct sampler_options){.name = "ddpm", .steps = 10}, ERR_ARG,
                   "\"ddpm\"; weft has ddim, pndm, euler, euler_a, heun, dpmpp_2m, unipc and lcm");
    expect_refusal(&s, (struct sampler_options){.name = "ddim", .steps = 0}, ERR_ARG, "1 to 1000");
    expect_refusal(&s, (struct sampler_options){.name = "ddim", .steps = -1}, ERR_ARG, "1 to 1000");
    expect_refusal(&s, (struct sampler_options){.name = "euler", .steps = 1001}, ERR_ARG,
                   "1 to 1000");
    expect_refusal(&s, (struct sampler_options){.name = "lcm", .steps = 51}, ERR_ARG,
                   "original_inference_steps");
    expect_refusal(&s, (struct sampler_options){.name = "pndm", .steps = 3}, ERR_ARG,
                   "at least 4 steps");
    expect_refusal(&s,
                   (struct sampler_options){.name = "euler_a", .steps = 9, .sigmas = SIGMAS_KARRAS},
                   ERR_ARG, "only euler, heun, dpmpp_2m and unipc");
    expect_refusal(&s, (struct sampler_options){.name = "euler", .steps = 10, .eta = 0.5}, ERR_ARG,
                   "only ddim");
    expect_refusal(&s, (struct sampler_options){.name = "ddim", .steps = 10, .eta = NAN}, ERR_ARG,
                   "eta");
    expect_refusal(&s, (struct sampler_options){.name = "ddim", .steps = 10, .denoise = 1.5},
                   ERR_ARG, "denoise");
    expect_refusal(&s, (struct sampler_options){.name = "ddim", .steps = 10, .denoise = NAN},
                   ERR_ARG, "denoise");
    expect_refusal(&s, (struct sampler_options){.name = "ddim", .steps = 10, .denoise = 0.05},
                   ERR_ARG, "leaves no step");
    expect_refusal(&s, (struct sampler_options){.name = "pndm", .steps = 10, .denoise = 0.5},
                   ERR_UNSUPPORTED, "skip_prk_steps");
    s.spacing = SPACING_LEADING;
    expect_refusal(&s, (struct sampler_options){.name = "unipc", .steps = 1000}, ERR_ARG,
                   "use fewer steps");
    s.steps_offset = 1;
    expect_refusal(&s, (struct sampler_options){.name = "ddim", .steps = 1000}, ERR_ARG,
                   "reach timestep 1000");
    s.spacing = SPACING_TRAILING;
    s.zero_snr = true;
    expect_refusal(&s, (struct sampler_options){.name = "ddim", .steps = 10}, ERR_UNSUPPORTED,
                   "predicts epsilon");
}

Test(sampler, refuses_impossible_schedules)
{
    struct sampler_options o = {.name = "euler", .steps = 10};
    struct schedule s;
    schedule_init(&s);
    s.beta_end = 1;
    expect_refusal(&s, o, ERR_FORMAT, "beta 999");
    s.beta_end = NAN;
    expect_refusal(&s, o, ERR_FORMAT, "beta");
    s.beta_start = s.beta_end = 1e-12;
    expect_refusal(&s, o, ERR_FORMAT, "nothing is left of the noise");
    s.beta_start = s.beta_end = 0.9;
    expect_refusal(&s, o, ERR_FORMAT, "nothing is left of the signal");
    schedule_init(&s);
    s.train_steps = 0;
    expect_refusal(&s, o, ERR_FORMAT, "trained steps");
    schedule_init(&s);
    s.spacing = 3;
    expect_refusal(&s, o, ERR_FORMAT, "spacing");
    schedule_init(&s);
    s.steps_offset = -1;
    expect_refusal(&s, o, ERR_FORMAT, "steps_offset");
    schedule_init(&s);
    s.clip_sample = true;
    s.clip_sample_range = 0;
    expect_refusal(&s, o, ERR_FORMAT, "clip_sample_range");
    schedule_init(&s);
    s.sigma_min = -1;
    expect_refusal(&s, o, ERR_FORMAT, "sigma_min");
}

Test(sampler, names)
{
    int n = 0;
    for (; sampler_names[n]; n++)
        cr_assert_not_null(sampler_about(sampler_names[n]));
    cr_assert_eq(n, 8);
    cr_assert_null(sampler_about("nothing"));
    cr_assert(sampler_takes_karras("dpmpp_2m") && !sampler_takes_karras("ddim"));
    cr_assert(!sampler_takes_karras("nothing"));
}
