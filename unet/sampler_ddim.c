/* DDIMScheduler and LCMScheduler: each step reads alphas_cumprod at whole timesteps. */
#include "sampler_plan.h"

#include <math.h>

static int ddim_levels(struct plan *p, struct err *err)
{
    plan_timesteps(p, TIMESTEPS_WHOLE);
    return plan_index_levels(p, err);
}

/* Where no signal is left, the noise in it says nothing of the picture. */
static int no_signal(const struct plan *p, double alpha, double t, struct err *err)
{
    if (alpha > 0 || p->s->prediction != PREDICT_EPSILON)
        return 0;
    return err_set(err, ERR_UNSUPPORTED,
                   "rescale_betas_zero_snr leaves no signal at timestep %g, which a model that "
                   "predicts epsilon cannot start from; use euler, dpmpp_2m or unipc",
                   t);
}

/* The clean picture, cut to range where the schedule asks for it, as a term of op with factor c. */
static void add_x0(const struct plan *p, struct sampler_op *op, struct form x0, double c)
{
    if (p->s->clip_sample)
        plan_term(op, SLOT_H0, c);
    else
        plan_form(op, x0, c);
}

static void clip_x0(const struct plan *p, struct sampler_eval *e, struct form x0)
{
    if (p->s->clip_sample)
        plan_form(plan_op(e, SLOT_H0, p->s->clip_sample_range), x0, 1);
}

/* Song et al. 2021, formula 12, with sigma of formula 16. The noise is that of the model's output
 * before any clipping. */
static int ddim_eval(const struct plan *p, int i, struct sampler_eval *e, struct err *err)
{
    int t = (int)p->t[i], prev = t - p->s->train_steps / p->n;
    double a = p->ac[t], a_prev = prev >= 0 ? p->ac[prev] : plan_final_alpha(p, true);
    double variance = (1 - a_prev) / (1 - a) * (1 - a / a_prev);
    double std = p->eta * sqrt(variance);
    struct form x0 = plan_x0(p->s->prediction, sqrt(a), sqrt(1 - a));
    struct form eps = plan_eps(p->s->prediction, sqrt(a), sqrt(1 - a));
    int rc = no_signal(p, a, t, err);
    if (rc < 0)
        return rc;
    clip_x0(p, e, x0);
    struct sampler_op *op = plan_op(e, SLOT_X, 0);
    add_x0(p, op, x0, sqrt(a_prev));
    plan_form(op, eps, sqrt(fmax(1 - a_prev - std * std, 0)));
    plan_term(op, SLOT_N, std);
    return 0;
}

/* A subset, evenly spread, of the timesteps that the model was distilled with. */
static int lcm_levels(struct plan *p, struct err *err)
{
    int train = p->s->train_steps, original = p->s->original_steps;
    if (original < 1 || original > train)
        return err_set(err, ERR_FORMAT,
                       "sampler lcm: original_inference_steps is %d, must be 1 to %d", original,
                       train);
    if (!(p->s->timestep_scaling > 0 && isfinite(p->s->timestep_scaling)))
        return err_set(err, ERR_FORMAT, "sampler lcm: timestep_scaling is %g, must be above 0",
                       p->s->timestep_scaling);
    if (p->n > original)
        return err_set(err, ERR_ARG,
                       "sampler lcm: %d steps are more than the %d this model was distilled with "
                       "(original_inference_steps); 4 to 8 are usual",
                       p->n, original);
    double every = (double)original / p->n;
    p->n_t = p->n;
    for (int i = 0; i < p->n; i++)
        p->t[i] = (double)(original - (int)floor(i * every)) * (train / original) - 1;
    return plan_index_levels(p, err);
}

/* Luo et al. 2023, algorithm 3: the clean picture by the consistency function, then noise again. */
static int lcm_eval(const struct plan *p, int i, struct sampler_eval *e, struct err *err)
{
    const double data = 0.5;
    double a = p->ac[(int)p->t[i]], s = p->t[i] * p->s->timestep_scaling;
    double skip = data * data / (s * s + data * data), out = s / sqrt(s * s + data * data);
    bool last = i == p->n_t - 1;
    double a_next = last ? 1 : p->ac[(int)p->t[i + 1]];
    struct form x0 = plan_x0(p->s->prediction, sqrt(a), sqrt(1 - a));
    int rc = no_signal(p, a, p->t[i], err);
    if (rc < 0)
        return rc;
    clip_x0(p, e, x0);
    struct sampler_op *op = plan_op(e, SLOT_X, 0);
    add_x0(p, op, x0, sqrt(a_next) * out);
    plan_term(op, SLOT_X, sqrt(a_next) * skip);
    plan_term(op, SLOT_N, sqrt(1 - a_next));
    return 0;
}

const struct sampler_kind sampler_ddim = {
    .name = "ddim",
    .about = "DDIM: one straight step at a time; with eta, noise in each",
    .spacing = SPACING_LEADING,
    .order = 1,
    .takes = TAKES_ETA | TAKES_SAMPLE | TAKES_ZERO_SNR | BY_INDEX,
    .levels = ddim_levels,
    .eval = ddim_eval,
};

const struct sampler_kind sampler_lcm = {
    .name = "lcm",
    .about = "latent consistency: 4 to 8 steps, for models and adapters distilled for it",
    .spacing = SPACING_LEADING,
    .order = 1,
    .takes = TAKES_SAMPLE | TAKES_ZERO_SNR | BY_INDEX,
    .levels = lcm_levels,
    .eval = lcm_eval,
};
