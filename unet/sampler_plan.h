/* sampler_plan.h: what the files of samplers share. Not for anyone else: see sampler.h.
 *
 * A sampler is one const struct sampler_kind at the foot of its file, listed in sampler.c. It says
 * at which timesteps and noise levels the model is evaluated (levels), and then what to do with
 * each output (eval). sampler.c does the rest.
 */
#ifndef WEFT_SAMPLER_PLAN_H
#define WEFT_SAMPLER_PLAN_H

#include "sampler.h"

/* A schedule and options being made into a table. Noise levels are float32 because diffusers' are:
 * 1 - alpha of the first timesteps has only three digits there, and pictures depend on them. */
struct plan {
    const struct schedule *s;
    int n; /* steps asked for */
    double eta;
    bool karras;
    enum spacing spacing;
    float *ac;      /* [train_steps] alphas_cumprod */
    float *trained; /* [train_steps] sqrt((1 - ac) / ac) */
    int n_t;        /* evaluations of all n steps */
    double *t;      /* [n_t] timesteps */
    double *sigma;  /* [n_t + 1] noise levels; the last is what remains at the end */
    int begin;      /* the first evaluation that runs; others are left out (img2img) */
};

enum {
    TAKES_KARRAS = 1,
    TAKES_ETA = 2,
    TAKES_SAMPLE = 4,   /* prediction_type sample */
    TAKES_ZERO_SNR = 8, /* rescale_betas_zero_snr */
    FLOORS_ALPHA = 16,  /* and then its last alphas_cumprod is 2^-24 instead of 0 */
    BY_INDEX = 32,      /* timesteps are indices of ac, levels are read there */
    UNSCALED = 64,      /* the sample is signal + sigma * noise, not of unit variance */
};

struct sampler_kind {
    const char *name;
    const char *about;
    enum spacing spacing; /* where the schedule does not say */
    int order;            /* evaluations that img2img skips with each step */
    unsigned takes;
    /* Fills n_t, t and sigma, which have room for 2n + 9 and one more. */
    int (*levels)(struct plan *p, struct err *err);
    /* Adds evaluation i's ops to e, where t, sigma, in_scale and step (i - begin) are already
     * set. */
    int (*eval)(const struct plan *p, int i, struct sampler_eval *e, struct err *err);
};

extern const struct sampler_kind sampler_ddim, sampler_pndm, sampler_euler, sampler_euler_a,
    sampler_heun, sampler_dpmpp_2m, sampler_unipc, sampler_lcm;

/* ERR_UNSUPPORTED where the config's file had a value that weft does not do for this sampler. */
int schedule_check(const struct schedule *s, const char *sampler, struct err *err);

/* Makes ac and trained. */
int plan_noise(struct plan *p, bool floor_alpha, struct err *err);

/* How diffusers' classes choose n of the trained timesteps. */
enum timesteps {
    TIMESTEPS_WHOLE,    /* ddim, pndm: whole numbers */
    TIMESTEPS_FRACTION, /* euler, heun: linspace is not rounded */
    TIMESTEPS_ONE_MORE, /* dpmpp_2m, unipc: n + 1 whole numbers, the last dropped */
};
/* Fills n_t = n and t, the highest first. */
void plan_timesteps(struct plan *p, enum timesteps how);
/* ERR_ARG where a timestep is no index of ac; fills sigma from it. */
int plan_index_levels(struct plan *p, struct err *err);
/* The trained sigma at a timestep between two. */
double plan_sigma_at(const struct plan *p, double t);
/* n sigmas from high to low after Karras et al. 2022, and their timesteps. */
void plan_karras(struct plan *p, double low, double high);

/* A linear form in the sample and the model's output. */
struct form {
    double x, m;
};
/* What the output says of the clean picture and of the noise, where X = alpha x0 + sigma eps. */
struct form plan_x0(enum prediction predict, double alpha, double sigma);
struct form plan_eps(enum prediction predict, double alpha, double sigma);
/* alphas_cumprod after the last step: 1 or that of timestep 0. */
double plan_final_alpha(const struct plan *p, bool dflt);

/* A new op of e: slot[dst] = clamp(sum of the terms added to it). Terms of one slot are summed, a
 * coefficient of 0 adds none. */
struct sampler_op *plan_op(struct sampler_eval *e, int dst, double clamp);
void plan_term(struct sampler_op *op, int src, double coef);
/* c * (f.x X + f.m M) */
void plan_form(struct sampler_op *op, struct form f, double c);

#endif
