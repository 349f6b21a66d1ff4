/* PNDMScheduler: Liu et al. 2022. Four-step Adams-Bashforth (PLMS) that starts either with one
 * improved Euler step (skip_prk_steps, as every Stable Diffusion has it) or with three Runge-Kutta
 * steps of four evaluations each. */
#include "sampler_plan.h"

#include <math.h>

enum {
    RUNGE_KUTTA = 12,         /* evaluations */
    SLOT_ETS = SLOT_H0,       /* the last four outputs, in turn */
    SLOT_START = SLOT_H0 + 4, /* the sample at the start of the step */
    SLOT_SUM = SLOT_H0 + 5,   /* Runge-Kutta's weighted sum of outputs */
};

static int pndm_levels(struct plan *p, struct err *err)
{
    int n = p->n, k = 0, half = p->s->train_steps / n / 2;
    if (!p->s->skip_prk_steps && n < 4)
        return err_set(err, ERR_ARG,
                       "sampler pndm: needs at least 4 steps for its Runge-Kutta start "
                       "(skip_prk_steps is false), not %d",
                       n);
    if (!p->s->skip_prk_steps && p->begin > 0)
        return err_set(
            err, ERR_UNSUPPORTED,
            "sampler pndm: with its Runge-Kutta start (skip_prk_steps is false) it cannot "
            "begin part way; use denoise 1 or another sampler");
    plan_timesteps(p, TIMESTEPS_WHOLE);
    /* The n timesteps move to the end of the room, which the longer list never overtakes. */
    double *d = p->t + n + 9;
    for (int i = n - 1; i >= 0; i--)
        d[i] = p->t[i];
    if (p->s->skip_prk_steps) {
        p->t[k++] = d[0];
        for (int i = 1; i < n; i++) {
            p->t[k++] = d[i];
            if (i == 1)
                p->t[k++] = d[i];
        }
    } else {
        for (int i = 0; i < 3; i++) {
            p->t[k++] = d[i];
            p->t[k++] = d[i + 1] + half;
            p->t[k++] = d[i + 1] + half;
            p->t[k++] = d[i + 1];
        }
        for (int i = 3; i < n; i++)
            p->t[k++] = d[i];
    }
    p->n_t = k;
    return plan_index_levels(p, err);
}

/* SLOT_X = what `from` becomes when it goes from timestep t to prev (formula 9). Returns the factor
 * that the op's model outputs get; the caller adds them. */
static double transfer(const struct plan *p, struct sampler_op *op, int from, int t, int prev)
{
    double a = p->ac[t], a_prev = prev >= 0 ? p->ac[prev] : plan_final_alpha(p, false);
    double below = a * sqrt(1 - a_prev) + sqrt(a * (1 - a) * a_prev);
    double output = -(a_prev - a) / below, sample = sqrt(a_prev / a);
    if (p->s->prediction == PREDICT_V) {
        sample += output * sqrt(1 - a);
        output *= sqrt(a);
    }
    plan_term(op, from, sample);
    return output;
}

static void store(struct sampler_eval *e, int dst, int src)
{
    plan_term(plan_op(e, dst, 0), src, 1);
}

static void runge_kutta(const struct plan *p, int i, struct sampler_eval *e)
{
    int part = i % 4, t = (int)p->t[i - part];
    int prev = (int)p->t[i] - (i % 2 ? 0 : p->s->train_steps / p->n / 2);
    struct sampler_op *op;

    if (part == 0) {
        store(e, SLOT_ETS + i / 4, SLOT_M);
        store(e, SLOT_START, SLOT_X);
    }
    if (part < 3) {
        op = plan_op(e, SLOT_SUM, 0);
        if (part > 0)
            plan_term(op, SLOT_SUM, 1);
        plan_term(op, SLOT_M, part == 0 ? 1.0 / 6 : 1.0 / 3);
    }
    op = plan_op(e, SLOT_X, 0);
    double c = transfer(p, op, SLOT_START, t, prev);
    plan_term(op, SLOT_M, part < 3 ? c : c / 6);
    if (part == 3)
        plan_term(op, SLOT_SUM, c);
    e->step = i / 4;
}

/* The first step once more, now from its start and with the mean of both outputs. Where img2img
 * leaves steps out, it takes the sample to the timestep before the one that comes next, as in
 * diffusers. */
static int repeat_first(const struct plan *p, int i, struct sampler_eval *e, struct err *err)
{
    int prev = (int)p->t[i], t = prev + p->s->train_steps / p->n;
    if (t >= p->s->train_steps)
        return err_set(err, ERR_ARG,
                       "sampler pndm: %d steps reach timestep %d, but the model knows 0 to %d; use "
                       "another number of steps",
                       p->n, t, p->s->train_steps - 1);
    struct sampler_op *op = plan_op(e, SLOT_X, 0);
    double c = transfer(p, op, SLOT_START, t, prev);
    plan_term(op, SLOT_M, c / 2);
    plan_term(op, SLOT_ETS, c / 2);
    e->step = 0;
    return 0;
}

/* Adams-Bashforth over as many outputs as there are, newest first. */
static void adams_bashforth(const struct plan *p, int i, int newest, struct sampler_eval *e)
{
    static const double weights[4][4] = {
        {1},
        {3.0 / 2, -1.0 / 2},
        {23.0 / 12, -16.0 / 12, 5.0 / 12},
        {55.0 / 24, -59.0 / 24, 37.0 / 24, -9.0 / 24},
    };
    int t = (int)p->t[i];

    store(e, SLOT_ETS + newest % 4, SLOT_M);
    if (newest == 0)
        store(e, SLOT_START, SLOT_X);
    struct sampler_op *op = plan_op(e, SLOT_X, 0);
    double c = transfer(p, op, SLOT_X, t, t - p->s->train_steps / p->n);
    for (int k = 0; k <= newest && k < 4; k++)
        plan_term(op, SLOT_ETS + (newest - k) % 4, c * weights[newest < 3 ? newest : 3][k]);
    e->step = newest;
}

static int pndm_eval(const struct plan *p, int i, struct sampler_eval *e, struct err *err)
{
    int count = i - p->begin;
    if (!p->s->skip_prk_steps && i < RUNGE_KUTTA)
        runge_kutta(p, i, e);
    else if (!p->s->skip_prk_steps)
        adams_bashforth(p, i, i - RUNGE_KUTTA + 3, e);
    else if (count == 1)
        return repeat_first(p, i, e, err);
    else
        adams_bashforth(p, i, count == 0 ? 0 : count - 1, e);
    return 0;
}

const struct sampler_kind sampler_pndm = {
    .name = "pndm",
    .about = "PNDM (PLMS): what Stable Diffusion 1 came with; one evaluation more than steps",
    .spacing = SPACING_LEADING,
    .order = 1,
    .takes = BY_INDEX,
    .levels = pndm_levels,
    .eval = pndm_eval,
};
