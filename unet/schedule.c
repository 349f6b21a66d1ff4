#include "sampler_plan.h"

#include "config.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TRAIN_STEPS_MAX 100000

void schedule_init(struct schedule *s)
{
    *s = (struct schedule){
        .train_steps = 1000,
        .beta_start = 1e-4,
        .beta_end = 2e-2,
        .spacing = -1,
        .clip_sample_range = 1,
        .set_alpha_to_one = -1,
        .solver_order = 2,
        .lower_order_final = true,
        .original_steps = 50,
        .timestep_scaling = 10,
    };
}

void schedule_release(struct schedule *s)
{
    free(s->betas);
    s->betas = NULL;
}

/* diffusers' classes, and the betas each has where its config gives none. */
static const struct class {
    const char *name, *sampler;
    double beta_start, beta_end;
    enum beta_schedule beta;
} classes[] = {
    {"DDIMScheduler", "ddim", 1e-4, 2e-2, BETA_LINEAR},
    {"PNDMScheduler", "pndm", 1e-4, 2e-2, BETA_LINEAR},
    {"EulerDiscreteScheduler", "euler", 1e-4, 2e-2, BETA_LINEAR},
    {"EulerAncestralDiscreteScheduler", "euler_a", 1e-4, 2e-2, BETA_LINEAR},
    {"HeunDiscreteScheduler", "heun", 8.5e-4, 1.2e-2, BETA_LINEAR},
    {"DPMSolverMultistepScheduler", "dpmpp_2m", 1e-4, 2e-2, BETA_LINEAR},
    {"UniPCMultistepScheduler", "unipc", 1e-4, 2e-2, BETA_LINEAR},
    {"LCMScheduler", "lcm", 8.5e-4, 1.2e-2, BETA_SCALED_LINEAR},
};

static const struct class *find_class(const char *name)
{
    for (size_t i = 0; i < sizeof classes / sizeof *classes; i++)
        if (!strcmp(classes[i].name, name))
            return &classes[i];
    return NULL;
}

/* Keys that only some of the samplers look at, and the values weft does; one bit of
 * schedule.refused each. */
static const struct limit {
    const char *key, *values, *samplers;
} limits[] = {
    {"thresholding", "false", "ddim dpmpp_2m unipc lcm"},
    {"use_exponential_sigmas", "false", "euler heun dpmpp_2m unipc"},
    {"use_beta_sigmas", "false", "euler heun dpmpp_2m unipc"},
    {"use_flow_sigmas", "false", "dpmpp_2m unipc"},
    {"use_dynamic_shifting", "false", "dpmpp_2m unipc"},
    {"use_lu_lambdas", "false", "dpmpp_2m"},
    {"predict_x0", "true", "unipc"},
    {"timestep_type", "discrete", "euler"},
    {"interpolation_type", "linear", "euler"},
    {"final_sigmas_type", "zero sigma_min", "euler dpmpp_2m unipc"},
    {"algorithm_type", "dpmsolver++ deis", "dpmpp_2m"}, /* diffusers takes deis for dpmsolver++ */
    {"solver_type", "midpoint heun logrho bh1 bh2", "dpmpp_2m"},
    {"solver_type", "midpoint heun logrho bh2", "unipc"},
    {"variance_type", "fixed_small fixed_small_log fixed_large fixed_large_log", "dpmpp_2m"},
    {"lambda_min_clipped", "-Infinity", "dpmpp_2m"},
};

static bool is_word(const char *list, const char *word)
{
    size_t n = strlen(word);
    for (const char *p = list; n > 0 && (p = strstr(p, word)); p += n)
        if ((p == list || p[-1] == ' ') && (p[n] == ' ' || !p[n]))
            return true;
    return false;
}

static bool within(struct config *c, const struct limit *l)
{
    if (!strcmp(l->values, "true") || !strcmp(l->values, "false")) {
        bool want = !strcmp(l->values, "true");
        return config_bool(c, l->key, want) == want;
    }
    if (!strcmp(l->values, "-Infinity"))
        return config_num(c, l->key, -INFINITY) < -1e30;
    const char *value = config_str(c, l->key, NULL);
    return !value || is_word(l->values, value);
}

int schedule_check(const struct schedule *s, const char *sampler, struct err *err)
{
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (s->refused >> i & 1 && is_word(limits[i].samplers, sampler))
            return err_set(err, ERR_UNSUPPORTED,
                           "sampler %s: the model's scheduler config sets %s, which weft only does "
                           "as %s; choose another sampler",
                           sampler, limits[i].key, limits[i].values);
    return 0;
}

/* The place of the key's text among names (NULL-terminated), dflt where it is missing. */
static int choice(struct config *c, const char *key, const char *const *names, int dflt)
{
    char known[128] = "";
    const char *value = config_str(c, key, NULL);
    if (!value)
        return dflt;
    for (int i = 0; names[i]; i++) {
        if (!strcmp(names[i], value))
            return i;
        size_t used = strlen(known);
        snprintf(known + used, sizeof known - used, "%s%s", i ? ", " : "", names[i]);
    }
    config_fail(c, "%s is \"%.60s\", weft does %s", key, value, known);
    return dflt;
}

static int read_betas(struct schedule *s, struct config *c, const struct class *class,
                      struct err *err)
{
    static const char *const shapes[] = {"linear", "scaled_linear", "squaredcos_cap_v2", NULL};

    s->train_steps = config_int(c, "num_train_timesteps", 1000);
    s->beta_start = config_num(c, "beta_start", class ? class->beta_start : 0);
    s->beta_end = config_num(c, "beta_end", class ? class->beta_end : 0);
    s->beta = choice(c, "beta_schedule", shapes, class ? (int)class->beta : BETA_LINEAR);
    if (s->train_steps < 2 || s->train_steps > TRAIN_STEPS_MAX) {
        config_fail(c, "num_train_timesteps is %d, weft does 2 to %d", s->train_steps,
                    TRAIN_STEPS_MAX);
        return 0;
    }
    if (!config_has(c, "trained_betas")) {
        if (!class && !(config_has(c, "beta_start") && config_has(c, "beta_end")))
            config_fail(c, "beta_start or beta_end is missing, and weft does not know what the "
                           "class takes for it; write them down");
        config_nums(c, "trained_betas", NULL, 0);
        return 0;
    }
    size_t size = (size_t)s->train_steps * sizeof *s->betas;
    s->betas = malloc(size);
    if (!s->betas)
        return err_nomem(err, size);
    int n = config_nums(c, "trained_betas", s->betas, s->train_steps);
    if (n != s->train_steps)
        config_fail(c, "trained_betas has %d values, num_train_timesteps is %d", n, s->train_steps);
    return 0;
}

/* Settings that matter to one sampler or another. */
static void read_solver(struct schedule *s, struct config *c)
{
    static const char *const ignored[] = {
        /* used only with thresholding, use_flow_sigmas or use_dynamic_shifting */
        "dynamic_thresholding_ratio", "sample_max_value", "flow_shift", "time_shift_type",
        /* the pipeline's word counts, see sampler.h */
        "steps_offset", "clip_sample", "clip_sample_range", NULL};

    config_ignore(c, ignored);
    s->steps_offset = 1;
    if (config_has(c, "set_alpha_to_one"))
        s->set_alpha_to_one = config_bool(c, "set_alpha_to_one", true);
    s->skip_prk_steps = config_bool(c, "skip_prk_steps", false);
    s->zero_snr = config_bool(c, "rescale_betas_zero_snr", false);
    s->karras = config_bool(c, "use_karras_sigmas", false);
    s->sigma_min = config_num(c, "sigma_min", 0);
    s->sigma_max = config_num(c, "sigma_max", 0);
    s->final_sigma_min = !strcmp(config_str(c, "final_sigmas_type", "zero"), "sigma_min");
    s->solver_order = config_int(c, "solver_order", 2);
    s->solver_heun = !strcmp(config_str(c, "solver_type", "midpoint"), "heun");
    s->lower_order_final = config_bool(c, "lower_order_final", true);
    s->euler_at_final = config_bool(c, "euler_at_final", false);
    s->original_steps = config_int(c, "original_inference_steps", 50);
    s->timestep_scaling = config_num(c, "timestep_scaling", 10);
    for (size_t i = 0; i < sizeof limits / sizeof *limits; i++)
        if (!within(c, &limits[i]))
            s->refused |= 1u << i;
}

int schedule_from_config(struct schedule *s, struct config *c, struct err *err)
{
    static const char *const predictions[] = {"epsilon", "v_prediction", "sample", NULL};
    static const char *const spacings[] = {"leading", "linspace", "trailing", NULL};
    const struct class *class = find_class(config_str(c, "_class_name", ""));

    schedule_init(s);
    snprintf(s->sampler, sizeof s->sampler, "%s", class ? class->sampler : "");
    int rc = read_betas(s, c, class, err);
    if (rc < 0)
        return rc;
    s->prediction = choice(c, "prediction_type", predictions, PREDICT_EPSILON);
    s->spacing = choice(c, "timestep_spacing", spacings, -1);
    read_solver(s, c);
    return config_done(c, err);
}
