#include "sampler.h"

#include "sampler_plan.h"

#include <assert.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A new sampler is one const struct in a file of its own and a line in both of these lists. */
static const struct sampler_kind *const kinds[] = {
    &sampler_ddim, &sampler_pndm,     &sampler_euler, &sampler_euler_a,
    &sampler_heun, &sampler_dpmpp_2m, &sampler_unipc, &sampler_lcm,
};
const char *const sampler_names[] = {
    "ddim", "pndm", "euler", "euler_a", "heun", "dpmpp_2m", "unipc", "lcm", NULL,
};

#define N_KINDS (sizeof kinds / sizeof *kinds)

static const struct sampler_kind *find(const char *name)
{
    for (size_t i = 0; i < N_KINDS; i++)
        if (!strcmp(kinds[i]->name, name))
            return kinds[i];
    return NULL;
}

const char *sampler_about(const char *name)
{
    const struct sampler_kind *k = find(name);
    return k ? k->about : NULL;
}

bool sampler_takes_karras(const char *name)
{
    const struct sampler_kind *k = find(name);
    return k && k->takes & TAKES_KARRAS;
}

/* "ddim, euler and heun": the samplers that take all of `takes`. */
static const char *names_of(unsigned takes, char *buf, size_t size)
{
    size_t used = 0, n = 0, k = 0;
    for (size_t i = 0; i < N_KINDS; i++)
        n += (kinds[i]->takes & takes) == takes;
    for (size_t i = 0; i < N_KINDS; i++)
        if ((kinds[i]->takes & takes) == takes && used < size) {
            const char *before = k == 0 ? "" : k == n - 1 ? " and " : ", ";
            used += (size_t)snprintf(buf + used, size - used, "%s%s", before, kinds[i]->name);
            k++;
        }
    return buf;
}

/* ---- what can be asked for ------------------------------------------------------------------ */

static int choose(const struct sampler_kind **out, const char *name, const struct schedule *s,
                  struct err *err)
{
    char known[160];
    if (!name && !s->sampler[0])
        return err_set(err, ERR_UNSUPPORTED,
                       "the model's own scheduler is not one that weft has; choose a sampler: %s",
                       names_of(0, known, sizeof known));
    if (!name)
        name = s->sampler;
    *out = find(name);
    if (!*out)
        return err_set(err, ERR_ARG, "there is no sampler \"%.40s\"; weft has %s", name,
                       names_of(0, known, sizeof known));
    return 0;
}

/* This sampler does not take what the others named do: ERR_ARG where it was asked for, ERR_UNSUPPORTED
 * where the model has it so. */
static int refuse(const struct sampler_kind *k, unsigned takes, const char *what, int code,
                  struct err *err)
{
    char known[160];
    return err_set(err, code, "sampler %s does not take %s; only %s", k->name, what,
                   names_of(takes, known, sizeof known));
}

static int check_options(const struct sampler_kind *k, const struct schedule *s,
                         const struct sampler_options *o, struct err *err)
{
    if (o->steps < 1 || o->steps > s->train_steps)
        return err_set(err, ERR_ARG, "%d steps: must be 1 to %d, what the model was trained with",
                       o->steps, s->train_steps);
    if (!(o->eta >= 0 && o->eta <= 1))
        return err_set(err, ERR_ARG, "eta is %g, must be 0 to 1", o->eta);
    if (!(o->denoise > 0 && o->denoise <= 1))
        return err_set(err, ERR_ARG, "denoise is %g, must be above 0 and at most 1", o->denoise);
    if ((int)(o->steps * o->denoise) < 1)
        return err_set(err, ERR_ARG,
                       "denoise %g of %d step%s leaves no step to do; raise one of them",
                       o->denoise, o->steps, o->steps == 1 ? "" : "s");
    if (o->eta > 0 && !(k->takes & TAKES_ETA))
        return refuse(k, TAKES_ETA, "eta", ERR_ARG, err);
    if (o->sigmas == SIGMAS_KARRAS && !(k->takes & TAKES_KARRAS))
        return refuse(k, TAKES_KARRAS, "Karras sigmas", ERR_ARG, err);
    return 0;
}

static int check_schedule(const struct sampler_kind *k, const struct schedule *s, struct err *err)
{
    if (s->train_steps < 2)
        return err_set(err, ERR_FORMAT, "noise schedule: %d trained steps, must be 2 or more",
                       s->train_steps);
    if (s->spacing < -1 || s->spacing > SPACING_TRAILING)
        return err_set(err, ERR_FORMAT, "noise schedule: spacing is %d", s->spacing);
    if (s->steps_offset < 0 || s->steps_offset >= s->train_steps)
        return err_set(err, ERR_FORMAT, "noise schedule: steps_offset is %d, must be 0 to %d",
                       s->steps_offset, s->train_steps - 1);
    if (s->clip_sample && !(s->clip_sample_range > 0 && isfinite(s->clip_sample_range)))
        return err_set(err, ERR_FORMAT, "noise schedule: clip_sample_range is %g, must be above 0",
                       s->clip_sample_range);
    if (!(s->sigma_min >= 0 && s->sigma_max >= 0 && isfinite(s->sigma_min + s->sigma_max)))
        return err_set(err, ERR_FORMAT,
                       "noise schedule: sigma_min %g or sigma_max %g is no noise level",
                       s->sigma_min, s->sigma_max);
    if (s->prediction == PREDICT_SAMPLE && !(k->takes & TAKES_SAMPLE))
        return refuse(k, TAKES_SAMPLE, "a model that predicts the sample itself", ERR_UNSUPPORTED,
                      err);
    if (s->zero_snr && !(k->takes & TAKES_ZERO_SNR))
        return refuse(k, TAKES_ZERO_SNR, "rescale_betas_zero_snr", ERR_UNSUPPORTED, err);
    return schedule_check(s, k->name, err);
}

/* ---- the table ------------------------------------------------------------------------------ */

/* How the sample starts: from noise alone, or as add_noise makes it from a picture. */
static void start(const struct sampler_kind *k, const struct plan *p, struct sampler *out)
{
    double sigma = p->sigma[p->begin], alpha = 1 / sqrt(sigma * sigma + 1), top = 0;

    out->init_scale = 1;
    out->start_signal = alpha;
    out->start_noise = sigma * alpha;
    if (k->takes & BY_INDEX) {
        double a = p->ac[(int)p->t[p->begin]];
        out->start_signal = sqrt(a);
        out->start_noise = sqrt(1 - a);
    } else if (k->takes & UNSCALED) {
        for (int i = 0; i < p->n_t; i++)
            top = fmax(top, p->sigma[i]);
        out->init_scale = p->spacing == SPACING_LEADING ? sqrt(top * top + 1) : top;
        out->start_signal = 1;
        out->start_noise = sigma;
    }
}

static bool is_finite(const struct sampler_eval *e)
{
    double sum = e->t + e->sigma + e->in_scale;
    for (int j = 0; j < e->n_op; j++)
        for (int k = 0; k < e->op[j].n; k++)
            sum += e->op[j].coef[k];
    return isfinite(sum);
}

static int fill(struct sampler *out, const struct sampler_kind *k, const struct plan *p,
                struct err *err)
{
    for (int i = 0; i < out->n_eval; i++) {
        struct sampler_eval *e = &out->eval[i];
        double sigma = p->sigma[p->begin + i];
        e->t = p->t[p->begin + i];
        e->sigma = sigma;
        e->in_scale = k->takes & UNSCALED ? 1 / sqrt(sigma * sigma + 1) : 1;
        e->step = i;
        int rc = k->eval(p, p->begin + i, e, err);
        if (rc < 0)
            return rc;
        if (!is_finite(e))
            return err_set(
                err, ERR_ARG,
                "sampler %s: in %d steps of this noise schedule two follow each other at "
                "one noise level; use fewer steps",
                k->name, p->n);
    }
    return 0;
}

/* diffusers' get_timesteps: the last int(steps * denoise) of the steps run. */
static int first_evaluation(const struct sampler_kind *k, const struct sampler_options *o)
{
    return (o->steps - (int)(o->steps * o->denoise)) * k->order;
}

static int plan_levels(struct plan *p, const struct sampler_kind *k,
                       const struct sampler_options *o, const struct schedule *s, struct err *err)
{
    size_t room = 2 * (size_t)o->steps + 10, train = (size_t)s->train_steps;

    *p = (struct plan){
        .s = s,
        .n = o->steps,
        .eta = o->eta,
        .karras = k->takes & TAKES_KARRAS &&
                  (o->sigmas == SIGMAS_KARRAS || (o->sigmas == SIGMAS_DEFAULT && s->karras)),
        .spacing = s->spacing < 0 ? k->spacing : (enum spacing)s->spacing,
        .begin = first_evaluation(k, o),
    };
    p->ac = malloc(train * sizeof *p->ac);
    p->trained = malloc(train * sizeof *p->trained);
    p->t = calloc(room, sizeof *p->t);
    p->sigma = calloc(room, sizeof *p->sigma);
    if (!p->ac || !p->trained || !p->t || !p->sigma)
        return err_nomem(err, train * (sizeof *p->ac + sizeof *p->trained));
    int rc = plan_noise(p, k->takes & FLOORS_ALPHA, err);
    if (rc < 0)
        return rc;
    return k->levels(p, err);
}

int sampler_open(struct sampler **out, const struct schedule *s, const struct sampler_options *o,
                 struct err *err)
{
    const struct sampler_kind *k = NULL;
    struct plan p = {0};
    struct sampler *new = NULL;

    *out = NULL;
    int rc = choose(&k, o->name, s, err);
    if (rc == 0)
        rc = check_schedule(k, s, err);
    if (rc == 0)
        rc = check_options(k, s, o, err);
    if (rc == 0)
        rc = plan_levels(&p, k, o, s, err);
    if (rc < 0)
        goto out;

    new = calloc(1, sizeof *new);
    if (!new) {
        rc = err_nomem(err, sizeof *new);
        goto out;
    }
    new->name = k->name;
    new->steps = o->steps;
    new->n_eval = p.n_t - p.begin;
    new->eval = calloc((size_t) new->n_eval, sizeof *new->eval);
    if (!new->eval) {
        rc = err_nomem(err, (size_t) new->n_eval * sizeof *new->eval);
        goto out;
    }
    start(k, &p, new);
    rc = fill(new, k, &p, err);
    if (rc < 0)
        goto out;
    *out = new;
    new = NULL;
out:
    sampler_close(new);
    free(p.ac);
    free(p.trained);
    free(p.t);
    free(p.sigma);
    return rc;
}

void sampler_close(struct sampler *s)
{
    if (!s)
        return;
    free(s->eval);
    free(s);
}
