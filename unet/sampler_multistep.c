/* DPMSolverMultistepScheduler (dpmsolver++, Lu et al. 2022) and UniPCMultistepScheduler (Zhao et
 * al. 2023): solvers in lambda = log(alpha / sigma), which is minus the log of k-diffusion's
 * sigma, that remember earlier clean pictures. */
#include "sampler_plan.h"

#include <math.h>

static int multistep_levels(struct plan *p, struct err *err)
{
    int train = p->s->train_steps, n = p->n, order = p->s->solver_order;
    if (order != 1 && order != 2)
        return err_set(err, ERR_UNSUPPORTED,
                       "the model's scheduler config sets solver_order to %d, weft does 1 and 2; "
                       "choose a sampler other than dpmpp_2m and unipc",
                       order);
    plan_timesteps(p, TIMESTEPS_ONE_MORE);
    for (int i = 0; i < n; i++)
        p->sigma[i] = (float)plan_sigma_at(p, p->t[i]);
    if (p->karras)
        plan_karras(p, p->trained[0], p->trained[train - 1]);
    p->sigma[n] = p->s->final_sigma_min ? p->trained[0] : 0;
    return 0;
}

static int dpmpp_2m_levels(struct plan *p, struct err *err)
{
    int rc = multistep_levels(p, err);
    if (rc < 0)
        return rc;
    /* diffusers rounds Karras timesteps except for the cosine schedule, where it cuts them. */
    bool cut = p->s->beta == BETA_COSINE;
    for (int i = 0; i < p->n; i++)
        p->t[i] = cut ? trunc(p->t[i]) : rint(p->t[i]);
    return 0;
}

static int unipc_levels(struct plan *p, struct err *err)
{
    int rc = multistep_levels(p, err);
    if (rc < 0)
        return rc;
    for (int i = 0; i < p->n; i++)
        p->t[i] = rint(p->t[i]);
    if (p->karras && p->s->final_sigma_min)
        p->sigma[p->n] = p->sigma[p->n - 1];
    return 0;
}

static double alpha_of(double sigma)
{
    return 1 / sqrt(sigma * sigma + 1);
}

/* exp(-h) - 1, h being the way in lambda from one sigma to another. */
static double expm1_minus_h(double from, double to)
{
    return (to - from) / from;
}

static double lambda_way(double from, double to)
{
    return log(from / to);
}

/* What is left of the sample on its way from one noise level to another. */
static double kept(double from, double to)
{
    return to * alpha_of(to) / (from * alpha_of(from));
}

static void add_x0_op(const struct plan *p, int i, struct sampler_eval *e, int dst)
{
    double alpha = alpha_of(p->sigma[i]);
    plan_form(plan_op(e, dst, 0), plan_x0(p->s->prediction, alpha, p->sigma[i] * alpha), 1);
}

static int dpmpp_2m_eval(const struct plan *p, int i, struct sampler_eval *e, struct err *err)
{
    const struct schedule *s = p->s;
    double from = p->sigma[i], to = p->sigma[i + 1];
    double minus = expm1_minus_h(from, to), alpha = alpha_of(to);
    int now = SLOT_H0 + i % 2, before = SLOT_H0 + (i + 1) % 2;
    bool final = i == p->n - 1 &&
                 (s->euler_at_final || (s->lower_order_final && p->n < 15) || !s->final_sigma_min);
    (void)err;

    add_x0_op(p, i, e, now);
    struct sampler_op *op = plan_op(e, SLOT_X, 0);
    plan_term(op, SLOT_X, kept(from, to));
    plan_term(op, now, -alpha * minus);
    if (s->solver_order == 2 && i > p->begin && !final) {
        double h = lambda_way(from, to), h0 = lambda_way(p->sigma[i - 1], from);
        double c = s->solver_heun ? alpha * (minus / h + 1) : -0.5 * alpha * minus;
        plan_term(op, now, c * h / h0);
        plan_term(op, before, -c * h / h0);
    }
    return 0;
}

static int unipc_order(const struct plan *p, int i)
{
    int order = p->s->solver_order, done = i - p->begin;
    if (p->s->lower_order_final && order > p->n - i)
        order = p->n - i;
    return order > done + 1 ? done + 1 : order;
}

/* Slots of the clean pictures: this evaluation's, and those of one and two before. */
static int unipc_slot(const struct plan *p, int i)
{
    return SLOT_H0 + (i - p->begin) % 3;
}

enum { SLOT_LAST = SLOT_H0 + 3 }; /* the sample this evaluation's step began with, corrected */

/* UniC with B(h) = exp(-h) - 1 (bh2): the last step once more, now that the output at its end is
 * known. */
static void unipc_correct(const struct plan *p, int i, struct sampler_eval *e)
{
    double from = p->sigma[i - 1], to = p->sigma[i];
    double minus = expm1_minus_h(from, to), hh = -lambda_way(from, to), alpha = alpha_of(to);
    int m0 = unipc_slot(p, i - 1);
    double now = 0.5, before = 0;
    struct sampler_op *op = plan_op(e, SLOT_LAST, 0);

    plan_term(op, SLOT_LAST, kept(from, to));
    plan_term(op, m0, -alpha * minus);
    if (unipc_order(p, i - 1) == 2) {
        double rk = lambda_way(from, p->sigma[i - 2]) / -hh;
        double phi2 = minus / hh - 1, phi3 = phi2 / hh - 0.5;
        double b1 = phi2 / minus, b2 = 2 * phi3 / minus;
        before = (b1 - b2) / (1 - rk);
        now = b1 - before;
        int m1 = unipc_slot(p, i - 2);
        plan_term(op, m1, -alpha * minus * before / rk);
        plan_term(op, m0, alpha * minus * before / rk);
    }
    plan_term(op, unipc_slot(p, i), -alpha * minus * now);
    plan_term(op, m0, alpha * minus * now);
}

static int unipc_eval(const struct plan *p, int i, struct sampler_eval *e, struct err *err)
{
    double from = p->sigma[i], to = p->sigma[i + 1];
    double minus = expm1_minus_h(from, to), alpha = alpha_of(to);
    int m0 = unipc_slot(p, i);
    (void)err;

    add_x0_op(p, i, e, m0);
    if (i > p->begin)
        unipc_correct(p, i, e);
    else
        plan_term(plan_op(e, SLOT_LAST, 0), SLOT_X, 1);

    struct sampler_op *op = plan_op(e, SLOT_X, 0);
    plan_term(op, SLOT_LAST, kept(from, to));
    plan_term(op, m0, -alpha * minus);
    if (unipc_order(p, i) == 2) {
        double c = -0.5 * alpha * minus * lambda_way(from, to);
        c /= lambda_way(from, p->sigma[i - 1]);
        plan_term(op, unipc_slot(p, i - 1), c);
        plan_term(op, m0, -c);
    }
    return 0;
}

const struct sampler_kind sampler_dpmpp_2m = {
    .name = "dpmpp_2m",
    .about = "DPM-Solver++ of second order: good in 20 steps, best with Karras sigmas",
    .spacing = SPACING_LINSPACE,
    .order = 1,
    .takes = TAKES_KARRAS | TAKES_SAMPLE | TAKES_ZERO_SNR | FLOORS_ALPHA,
    .levels = dpmpp_2m_levels,
    .eval = dpmpp_2m_eval,
};

const struct sampler_kind sampler_unipc = {
    .name = "unipc",
    .about = "UniPC: predicts and corrects with one evaluation a step; good in 10 steps",
    .spacing = SPACING_LINSPACE,
    .order = 1,
    .takes = TAKES_KARRAS | TAKES_SAMPLE | TAKES_ZERO_SNR | FLOORS_ALPHA,
    .levels = unipc_levels,
    .eval = unipc_eval,
};
