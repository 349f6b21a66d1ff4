#include "sampler_plan.h"

#include <assert.h>
#include <math.h>
#include <stdlib.h>

#define PI 3.141592653589793238462643383279502884

/* ---- noise levels --------------------------------------------------------------------------- */

/* torch.linspace in float32: from both ends to the middle. The products stand alone, so that no
 * compiler fuses them with the sums. */
static void linspace_f32(float *out, int n, double first, double last)
{
    float a = (float)first, b = (float)last, step = (b - a) / (float)(n - 1);
    for (int i = 0; i < n; i++) {
        float way = step * (float)(i < n / 2 ? i : n - 1 - i);
        out[i] = i < n / 2 ? a + way : b - way;
    }
}

static double cosine_alpha_bar(double t)
{
    double c = cos((t + 0.008) / 1.008 * PI / 2);
    return c * c;
}

static void make_betas(float *beta, const struct schedule *s)
{
    int n = s->train_steps;
    if (s->betas)
        for (int i = 0; i < n; i++)
            beta[i] = (float)s->betas[i];
    else if (s->beta == BETA_LINEAR)
        linspace_f32(beta, n, s->beta_start, s->beta_end);
    else if (s->beta == BETA_SCALED_LINEAR)
        linspace_f32(beta, n, sqrt(s->beta_start), sqrt(s->beta_end));
    else
        for (int i = 0; i < n; i++) {
            double t1 = (double)i / n, t2 = (double)(i + 1) / n;
            beta[i] = (float)fmin(1 - cosine_alpha_bar(t2) / cosine_alpha_bar(t1), 0.999);
        }
    if (!s->betas && s->beta == BETA_SCALED_LINEAR)
        for (int i = 0; i < n; i++)
            beta[i] *= beta[i];
}

/* alphas_cumprod: float32 values of a product that is kept in double, as torch.cumprod does. */
static void cumulate(float *ac, const float *beta, int n)
{
    double product = 1;
    for (int i = 0; i < n; i++) {
        product *= 1.0f - beta[i];
        ac[i] = (float)product;
    }
}

/* Betas such that the last timestep has no signal left: Lin et al. 2023, algorithm 1. ac is used as
 * working space. */
static void rescale_zero_snr(float *beta, float *ac, int n)
{
    cumulate(ac, beta, n);
    float first = sqrtf(ac[0]), last = sqrtf(ac[n - 1]), scale = first / (first - last);
    for (int i = 0; i < n; i++) {
        float root = (sqrtf(ac[i]) - last) * scale;
        ac[i] = root * root;
    }
    for (int i = 0; i < n; i++) {
        float alpha = i ? ac[i] / ac[i - 1] : ac[i];
        beta[i] = 1.0f - alpha;
    }
}

int plan_noise(struct plan *p, bool floor_alpha, struct err *err)
{
    int n = p->s->train_steps;
    float *beta = p->trained; /* the same room, before it is needed */
    make_betas(beta, p->s);
    for (int i = 0; i < n; i++)
        if (!(beta[i] > 0 && beta[i] < 1))
            return err_set(err, ERR_FORMAT,
                           "noise schedule: beta %d is %g, must be above 0 and below 1", i,
                           (double)beta[i]);
    if (p->s->zero_snr)
        rescale_zero_snr(beta, p->ac, n);
    cumulate(p->ac, beta, n);
    if (p->s->zero_snr && floor_alpha)
        p->ac[n - 1] = 0x1p-24f;
    for (int i = 0; i < n; i++) {
        bool no_signal = p->s->zero_snr && i == n - 1;
        if (!(p->ac[i] < 1 && (p->ac[i] > 0 || no_signal)))
            return err_set(err, ERR_FORMAT,
                           "noise schedule: nothing is left of the %s at timestep %d, betas too %s",
                           p->ac[i] < 1 ? "signal" : "noise", i, p->ac[i] < 1 ? "large" : "small");
        p->trained[i] = sqrtf((1.0f - p->ac[i]) / p->ac[i]);
    }
    return 0;
}

/* ---- timesteps ------------------------------------------------------------------------------ */

/* Value i of numpy.linspace(0, last, n). */
static double linspace_at(int i, int n, double last)
{
    if (n == 1)
        return 0;
    return i == n - 1 ? last : i * (last / (n - 1));
}

void plan_timesteps(struct plan *p, enum timesteps how)
{
    int train = p->s->train_steps, n = p->n;
    int of = how == TIMESTEPS_ONE_MORE ? n + 1 : n;
    p->n_t = n;
    /* numpy.arange(train, 0, -ratio) as numpy makes it, from the difference of its first two
     * values; where that is one value too many (61 of 1000, -1), there are n all the same. */
    double ratio = (double)train / n, delta = (train - ratio) - train;
    for (int i = 0; i < n; i++) {
        int up = of - 1 - i; /* counted from the lowest */
        double t = 0;
        switch (p->spacing) {
        case SPACING_LEADING: t = (double)up * (train / of) + p->s->steps_offset; break;
        case SPACING_LINSPACE: t = linspace_at(up, of, train - 1); break;
        case SPACING_TRAILING: {
            double way = i * delta;
            t = rint(train + way) - 1;
            break;
        }
        }
        p->t[i] = how == TIMESTEPS_FRACTION ? (double)(float)t : rint(t);
    }
}

int plan_index_levels(struct plan *p, struct err *err)
{
    int train = p->s->train_steps;
    for (int i = 0; i < p->n_t; i++) {
        if (!(p->t[i] >= 0 && p->t[i] < train))
            return err_set(
                err, ERR_ARG,
                "%d steps with steps_offset %d reach timestep %g, the model only knows 0 "
                "to %d; use fewer steps",
                p->n, p->s->steps_offset, p->t[i], train - 1);
        /* Finite also where the signal is gone: this one is only for display. */
        double a = fmax(p->ac[(int)p->t[i]], 0x1p-24);
        p->sigma[i] = sqrt((1 - a) / a);
    }
    p->sigma[p->n_t] = 0;
    return 0;
}

double plan_sigma_at(const struct plan *p, double t)
{
    int last = p->s->train_steps - 1;
    if (!(t > 0))
        return p->trained[0];
    if (t >= last)
        return p->trained[last];
    int j = (int)t;
    double rise = ((double)p->trained[j + 1] - p->trained[j]) * (t - j);
    return rise + p->trained[j];
}

/* The timestep whose trained sigma this is, by linear interpolation of the logarithms. */
static double timestep_of(const struct plan *p, double sigma)
{
    int last = p->s->train_steps - 1, low = 0, high = last;
    double l = log(fmax(sigma, 1e-10));
    while (high - low > 1) {
        int mid = low + (high - low) / 2;
        if (l >= (double)logf(p->trained[mid]))
            low = mid;
        else
            high = mid;
    }
    float a = logf(p->trained[low]), b = logf(p->trained[low + 1]);
    double w = fmin(fmax((a - l) / (double)(a - b), 0), 1);
    double below = (1 - w) * low, above = w * (low + 1);
    return below + above;
}

void plan_karras(struct plan *p, double low, double high)
{
    const double rho = 7;
    if (p->s->sigma_min > 0)
        low = p->s->sigma_min;
    if (p->s->sigma_max > 0)
        high = p->s->sigma_max;
    double a = pow(high, 1 / rho), b = pow(low, 1 / rho);
    for (int i = 0; i < p->n; i++) {
        double way = linspace_at(i, p->n, 1) * (b - a);
        double sigma = pow(a + way, rho);
        p->t[i] = timestep_of(p, sigma);
        p->sigma[i] = (float)sigma;
    }
    p->n_t = p->n;
}

/* ---- ops ------------------------------------------------------------------------------------ */

struct form plan_x0(enum prediction predict, double alpha, double sigma)
{
    switch (predict) {
    case PREDICT_EPSILON: return (struct form){1 / alpha, -sigma / alpha};
    case PREDICT_V: return (struct form){alpha, -sigma};
    case PREDICT_SAMPLE: break;
    }
    return (struct form){0, 1};
}

struct form plan_eps(enum prediction predict, double alpha, double sigma)
{
    switch (predict) {
    case PREDICT_EPSILON: return (struct form){0, 1};
    case PREDICT_V: return (struct form){sigma, alpha};
    case PREDICT_SAMPLE: break;
    }
    return (struct form){1 / sigma, -alpha / sigma};
}

double plan_final_alpha(const struct plan *p, bool dflt)
{
    bool one = p->s->set_alpha_to_one < 0 ? dflt : p->s->set_alpha_to_one;
    return one ? 1 : p->ac[0];
}

struct sampler_op *plan_op(struct sampler_eval *e, int dst, double clamp)
{
    assert(e->n_op < SAMPLER_MAX_OPS && dst != SLOT_M && dst != SLOT_N && dst < SLOT_COUNT);
    struct sampler_op *op = &e->op[e->n_op++];
    op->dst = dst;
    op->n = 0;
    op->clamp = clamp;
    return op;
}

void plan_term(struct sampler_op *op, int src, double coef)
{
    int i = 0;
    if (coef == 0)
        return;
    while (i < op->n && op->src[i] != src)
        i++;
    if (i == op->n) {
        assert(i < SAMPLER_MAX_TERMS && src < SLOT_COUNT);
        op->n++;
        op->src[i] = src;
        op->coef[i] = 0;
    }
    op->coef[i] += coef;
}

void plan_form(struct sampler_op *op, struct form f, double c)
{
    plan_term(op, SLOT_X, c * f.x);
    plan_term(op, SLOT_M, c * f.m);
}
