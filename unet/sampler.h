/* sampler.h: noise schedules and samplers, planned as a table before the first step.
 *
 * Every sampler here only ever forms linear combinations of what it has: the sample, the model's
 * output, earlier outputs, fresh noise. So a sampler is not code that runs beside the model; it is
 * a table made once: for each model evaluation the timestep, the factor on the model's input, and a
 * short list of assignments. Whoever runs it needs no knowledge of samplers (generate.c does it on
 * the device with op_lincomb), and a test can read it.
 *
 *     struct sampler *s;
 *     sampler_open(&s, &schedule, &options, &err);
 *     for (int i = 0; i < s->n_eval; i++) {
 *         const struct sampler_eval *e = &s->eval[i];
 *         slot[SLOT_M] = model(e->in_scale * slot[SLOT_X], e->t);
 *         for (int j = 0; j < e->n_op; j++)
 *             apply(&e->op[j], slot);      // slot[dst] = clamp(sum coef * slot[src])
 *     }
 *     // slot[SLOT_X] is the picture's latent
 *
 * Formulas are those of diffusers' schedulers of the same names (DDIM, PNDM, EulerDiscrete,
 * EulerAncestralDiscrete, HeunDiscrete, DPMSolverMultistep, UniPCMultistep, LCM) and are named
 * there.
 */
#ifndef WEFT_SAMPLER_H
#define WEFT_SAMPLER_H

#include "err.h"

#include <stdbool.h>

struct config;

/* Numbered places for arrays of the latent's size. */
enum {
    SLOT_X,  /* the sample */
    SLOT_M,  /* the model's output of this evaluation, after guidance */
    SLOT_N,  /* standard normal noise, drawn once for each evaluation whose ops read it */
    SLOT_H0, /* the sampler's memory: SLOT_H0 … SLOT_COUNT - 1 */
    SLOT_COUNT = 10,
};

#define SAMPLER_MAX_TERMS 8
#define SAMPLER_MAX_OPS   8

struct sampler_op {
    int dst; /* may also be a source */
    int n;
    int src[SAMPLER_MAX_TERMS];
    double coef[SAMPLER_MAX_TERMS];
    double clamp; /* 0: none, else the result is cut to ±clamp */
};

struct sampler_eval {
    double t;        /* timestep for the model, may be fractional */
    double sigma;    /* noise level of SLOT_X in the k-diffusion sense, for feedback and display */
    double in_scale; /* the model sees in_scale * SLOT_X */
    int step; /* the step this belongs to, from 0 for the first that runs; heun makes two a step */
    int n_op;
    struct sampler_op op[SAMPLER_MAX_OPS];
};

/* The scheduler_config.json of a model, or the same things by hand after schedule_init. */
enum beta_schedule { BETA_LINEAR, BETA_SCALED_LINEAR, BETA_COSINE /* squaredcos_cap_v2 */ };
enum prediction { PREDICT_EPSILON, PREDICT_V, PREDICT_SAMPLE };
enum spacing { SPACING_LEADING, SPACING_LINSPACE, SPACING_TRAILING };

struct schedule {
    int train_steps; /* num_train_timesteps */
    double beta_start, beta_end;
    enum beta_schedule beta;
    double *betas; /* trained_betas, train_steps of them, or NULL; owned */
    enum prediction prediction;
    int spacing; /* enum spacing, or -1: the sampler's own default in diffusers */
    int steps_offset;
    bool clip_sample; /* ddim, heun, lcm */
    double clip_sample_range;
    int set_alpha_to_one; /* ddim, pndm, lcm: 0, 1, or -1: the sampler's own default */
    bool skip_prk_steps;  /* pndm */
    bool zero_snr;        /* rescale_betas_zero_snr; pndm and heun are refused */

    /* euler, heun, dpmpp_2m, unipc */
    bool karras;                 /* use_karras_sigmas */
    double sigma_min, sigma_max; /* ends of the Karras sigmas; 0: the schedule's */
    bool final_sigma_min; /* final_sigmas_type: end at the smallest sigma, not at 0; not heun */

    /* dpmpp_2m, unipc */
    int solver_order;       /* 1 or 2 */
    bool solver_heun;       /* solver_type; dpmpp_2m */
    bool lower_order_final; /* unipc always, dpmpp_2m below 15 steps */
    bool euler_at_final;    /* dpmpp_2m */

    int original_steps;      /* lcm: original_inference_steps, 50 */
    double timestep_scaling; /* lcm: 10 */

    /* Filled by schedule_from_config: keys with values weft does not do, which sampler_open refuses
     * for the samplers they matter to; our name for the config's class, "" where there is none. */
    unsigned refused;
    char sampler[16];
};

/* Reads scheduler_config.json into s, which needs no schedule_init; release it also after an error.
 * As diffusers' StableDiffusionPipeline does with any config: steps_offset is 1 and clip_sample is
 * off, whatever the file says. Keys that change the computation and are not known are an error;
 * those that matter only to some samplers are an error when such a sampler is opened. */
int schedule_from_config(struct schedule *s, struct config *c, struct err *err);
/* diffusers' defaults: 1000 linear steps, 1e-4 to 2e-2, epsilon; no clipping. */
void schedule_init(struct schedule *s);
void schedule_release(struct schedule *s);

/* Sigmas: as the schedule says (its field karras), as trained, or Karras et al. 2022 with rho 7,
 * which only euler, heun, dpmpp_2m and unipc take. */
enum sigmas { SIGMAS_DEFAULT, SIGMAS_KARRAS, SIGMAS_TRAINED };

struct sampler_options {
    const char *name; /* "euler" …; NULL: the schedule's own */
    int steps;        /* 1 to the schedule's train_steps */
    enum sigmas sigmas;
    double eta;     /* ddim only: 0 deterministic, 1 as noisy as ddpm */
    double denoise; /* 1: all steps; less: only the last int(steps * denoise) of them (img2img) */
};

struct sampler {
    const char *name;
    int steps;  /* the user's, as asked for */
    int n_eval; /* model evaluations */
    struct sampler_eval *eval;
    double init_scale;                /* from nothing: SLOT_X starts as init_scale * noise */
    double start_signal, start_noise; /* from a picture: as signal * latent + noise * noise */
};

int sampler_open(struct sampler **out, const struct schedule *s, const struct sampler_options *o,
                 struct err *err);
void sampler_close(struct sampler *s);

/* Names of all samplers, NULL-terminated, for messages and help, and what each is in a line. */
extern const char *const sampler_names[];
const char *sampler_about(const char *name);
/* True where `name` can use Karras sigmas. */
bool sampler_takes_karras(const char *name);

#endif
