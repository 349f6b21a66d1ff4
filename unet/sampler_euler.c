/* EulerDiscreteScheduler, EulerAncestralDiscreteScheduler and HeunDiscreteScheduler: Karras et al.
 * 2022, algorithms 1 and 2 without churn, in k-diffusion's terms. The sample is signal + sigma *
 * noise, and the model sees it scaled to unit variance. */
#include "sampler_plan.h"

#include <math.h>

static int euler_levels(struct plan *p, struct err *err)
{
    (void)err;
    plan_timesteps(p, TIMESTEPS_FRACTION);
    for (int i = 0; i < p->n; i++)
        p->sigma[i] = plan_sigma_at(p, p->t[i]);
    if (p->karras) {
        plan_karras(p, p->sigma[p->n - 1], p->sigma[0]);
        for (int i = 0; i < p->n; i++)
            p->t[i] = (float)p->t[i];
    }
    for (int i = 0; i < p->n; i++)
        p->sigma[i] = (float)p->sigma[i];
    p->sigma[p->n] = p->s->final_sigma_min ? p->trained[0] : 0;
    return 0;
}

/* The clean picture: the sample is 1 / alpha times one of unit variance. */
static struct form unscaled_x0(const struct plan *p, double sigma)
{
    double alpha = 1 / sqrt(sigma * sigma + 1);
    if (p->s->prediction == PREDICT_EPSILON)
        return (struct form){1, -sigma};
    struct form x0 = plan_x0(p->s->prediction, alpha, sigma * alpha);
    x0.x *= alpha;
    return x0;
}

/* op += c (X - x0) / sigma, the derivative of the sample by sigma */
static void add_slope(struct sampler_op *op, struct form x0, double sigma, double c)
{
    plan_form(op, (struct form){1 - x0.x, -x0.m}, c / sigma);
}

static int euler_eval(const struct plan *p, int i, struct sampler_eval *e, struct err *err)
{
    double sigma = p->sigma[i];
    struct sampler_op *op = plan_op(e, SLOT_X, 0);
    (void)err;
    plan_term(op, SLOT_X, 1);
    add_slope(op, unscaled_x0(p, sigma), sigma, p->sigma[i + 1] - sigma);
    return 0;
}

/* Less far down than Euler, and noise to make up for it. */
static int euler_a_eval(const struct plan *p, int i, struct sampler_eval *e, struct err *err)
{
    double from = p->sigma[i], to = p->sigma[i + 1];
    double down = to * to / from, up = sqrt(fmax(to * to - down * down, 0));
    struct sampler_op *op = plan_op(e, SLOT_X, 0);
    (void)err;
    plan_term(op, SLOT_X, 1);
    add_slope(op, unscaled_x0(p, from), from, down - from);
    plan_term(op, SLOT_N, up);
    return 0;
}

/* Each level but the first and the last is evaluated twice: at the end of a step and at the start
 * of the next. */
static int heun_levels(struct plan *p, struct err *err)
{
    int rc = euler_levels(p, err), n = p->n;
    p->sigma[2 * n - 1] = 0;
    for (int i = n - 1; i > 0; i--) {
        p->t[2 * i] = p->t[2 * i - 1] = p->t[i];
        p->sigma[2 * i] = p->sigma[2 * i - 1] = p->sigma[i];
    }
    p->n_t = 2 * n - 1;
    return rc;
}

static int heun_eval(const struct plan *p, int i, struct sampler_eval *e, struct err *err)
{
    enum { SLOPE = SLOT_H0, START, CLEAN };
    bool second = (i - p->begin) % 2;
    double sigma = p->sigma[i], dt = second ? sigma - p->sigma[i - 1] : p->sigma[i + 1] - sigma;
    struct form x0 = unscaled_x0(p, sigma);
    struct sampler_op *op = NULL;
    (void)err;

    if (p->s->clip_sample)
        plan_form(plan_op(e, CLEAN, p->s->clip_sample_range), x0, 1);
    if (!second) {
        plan_term(plan_op(e, START, 0), SLOT_X, 1);
        op = plan_op(e, SLOPE, 0);
        if (p->s->clip_sample) {
            plan_term(op, SLOT_X, 1 / sigma);
            plan_term(op, CLEAN, -1 / sigma);
        } else {
            add_slope(op, x0, sigma, 1);
        }
        op = plan_op(e, SLOT_X, 0);
        plan_term(op, SLOT_X, 1);
        plan_term(op, SLOPE, dt);
    } else {
        op = plan_op(e, SLOT_X, 0);
        if (p->s->clip_sample) {
            plan_term(op, SLOT_X, dt / 2 / sigma);
            plan_term(op, CLEAN, -dt / 2 / sigma);
        } else {
            add_slope(op, x0, sigma, dt / 2);
        }
        plan_term(op, START, 1);
        plan_term(op, SLOPE, dt / 2);
    }
    e->step = (i - p->begin) / 2;
    return 0;
}

const struct sampler_kind sampler_euler = {
    .name = "euler",
    .about = "Euler: plain and predictable",
    .spacing = SPACING_LINSPACE,
    .order = 1,
    .takes = TAKES_KARRAS | TAKES_SAMPLE | TAKES_ZERO_SNR | FLOORS_ALPHA | UNSCALED,
    .levels = euler_levels,
    .eval = euler_eval,
};

const struct sampler_kind sampler_euler_a = {
    .name = "euler_a",
    .about = "Euler ancestral: fresh noise in each step; never settles on one picture",
    .spacing = SPACING_LINSPACE,
    .order = 1,
    .takes = TAKES_ZERO_SNR | FLOORS_ALPHA | UNSCALED,
    .levels = euler_levels,
    .eval = euler_a_eval,
};

const struct sampler_kind sampler_heun = {
    .name = "heun",
    .about = "Heun: two evaluations a step, good with few steps",
    .spacing = SPACING_LINSPACE,
    .order = 2,
    .takes = TAKES_KARRAS | TAKES_SAMPLE | UNSCALED,
    .levels = heun_levels,
    .eval = heun_eval,
};
