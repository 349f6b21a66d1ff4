/* weft clash: whether adapters will be in each other's way, before anything is rendered in full. */
#include "alone.h"
#include "shelf.h"

#include "compose/influence.h"
#include "unet/matrices.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { STEPS = 6 }; /* of a probe */
/* With gates, `gated` shows more than merge at every risk (test pairs of things, both: below .57 92 and 58 %, up to .7 85 and
 * 74, above 44 and 28). On pairs of the development adapters (tests/eval/README.md) merge showed both as often as superpose below .57, and
 * hardly ever from .7 on, where superpose still did. */
#define HIGH   .7
#define MIDDLE .57
#define MOST   .9 /* of what an adapter does is within its steps */

struct clash {
    struct alone a;
    int n;                   /* adapters */
    char **words;            /* [n] what calls each; owned */
    char *prompt;            /* for all together; owned */
    double *cosine;          /* [n, n] of their weights; NAN: cannot be told */
    struct influence *in;    /* [1 + n]: of the prompt, then of each one's words */
    struct prompt *said;     /* [n] */
    struct picture *p;       /* [1 + n] */
    const char *best, *calm; /* strategies for two that clash, and that do not */
    struct err *err;
};

static void make_options(struct option *o, void *target)
{
    struct clash *c = target;
    o = alone_options(o, &c->a);
    *o = (struct option){.name = NULL};
}

/* ---- what is asked --------------------------------------------------------------------------- */

/* The last word is a prompt where no adapter has that name. */
static int split(struct clash *c, struct err *err)
{
    struct alone *a = &c->a;
    struct repo_adapter row;
    c->n = a->n;
    if (c->n > 2 && !a->prompt && repo_need(a->m.repo, a->rest[c->n - 1], &row, err) < 0) {
        a->prompt = a->rest[--c->n];
        err_clear(err);
    } else if (c->n > 2 && !a->prompt) {
        repo_adapter_release(&row);
    }
    return c->n < 2 ? err_set(err, ERR_ARG, "which? NAME NAME... [PROMPT]") : 0;
}

static int take_room(struct clash *c, struct err *err)
{
    size_t n = (size_t)c->n;
    c->words = calloc(n, sizeof *c->words);
    c->cosine = calloc(n * n, sizeof *c->cosine);
    c->in = calloc(n + 1, sizeof *c->in);
    c->said = calloc(n, sizeof *c->said);
    c->p = calloc(n + 1, sizeof *c->p);
    return c->words && c->cosine && c->in && c->said && c->p ? 0 : err_nomem(err, n * n * 64);
}

/* What calls each, and all of them in one sentence unless there is a prompt. */
static int find_words(struct clash *c, struct err *err)
{
    size_t size = 1;
    int rc = 0;
    for (int i = 0; i < c->n && rc == 0; i++) {
        struct repo_adapter row;
        rc = repo_need(c->a.m.repo, c->a.rest[i], &row, err);
        if (rc < 0)
            return err_prefix(err, "%.80s", c->a.rest[i]);
        rc = alone_words(&c->a.m, &row, &c->words[i], err);
        repo_adapter_release(&row);
        size += rc == 0 ? strlen(c->words[i]) + 2 : 0;
    }
    if (rc < 0)
        return rc;
    c->prompt = c->a.prompt ? strdup(c->a.prompt) : calloc(1, size);
    if (!c->prompt)
        return err_nomem(err, size);
    for (int i = 0; i < c->n && !c->a.prompt; i++) {
        strcat(c->prompt, i ? ", " : "");
        strcat(c->prompt, c->words[i]);
    }
    return 0;
}

static int load(struct clash *c, struct err *err)
{
    struct making *m = &c->a.m;
    int rc = making_request(m, c->prompt, err);
    for (int i = 0; i < c->n && rc == 0; i++)
        rc = request_add_adapter(&m->r, c->a.rest[i], err);
    rc = rc < 0 ? rc : making_load(m, err);
    if (rc == 0) {
        c->best = making_best(m);
        c->calm = making_gates(m) ? c->best : "merge";
    }
    return rc;
}

/* ---- probes ---------------------------------------------------------------------------------- */

static int compare_weights(struct clash *c, struct err *err)
{
    struct matrices *a = calloc((size_t)c->n, sizeof *a);
    int rc = a ? 0 : err_nomem(err, (size_t)c->n * sizeof *a);
    for (int i = 0; i < c->n && rc == 0; i++)
        rc = matrices_load(&a[i], &c->a.m.file[i]->list, err);
    for (int i = 0; i < c->n && rc == 0; i++)
        for (int k = 0; k < c->n; k++) {
            double norms = matrices_norm(&a[i]) * matrices_norm(&a[k]);
            c->cosine[i * c->n + k] =
                a[i].left || a[k].left || !(norms > 0) ? NAN : matrices_inner(&a[i], &a[k]) / norms;
        }
    for (int i = 0; a && i < c->n; i++)
        matrices_release(&a[i]);
    free(a);
    return rc;
}

static int on_progress(void *user, int done, int total)
{
    (void)user;
    (void)done;
    (void)total;
    return cli_stopped();
}

/* A few steps of the prompt and of each one's words alone, all adapters acting, all at once. */
static int probe(struct clash *c, struct err *err)
{
    struct making *m = &c->a.m;
    struct image *im = calloc((size_t)c->n + 1, sizeof *im);
    int rc = im ? 0 : err_nomem(err, ((size_t)c->n + 1) * sizeof *im);
    for (int i = 0; i <= c->n && rc == 0; i++) {
        rc = making_picture(m, &c->p[i], err);
        c->p[i].steps = m->given.has_steps ? m->given.steps : STEPS;
        c->p[i].sampler = m->given.sampler ? m->given.sampler : "ddim";
        if (rc == 0 && i > 0) {
            rc = prompt_read(&c->said[i - 1], c->words[i - 1], err);
            c->p[i].prompt = &c->said[i - 1];
        }
        rc = rc < 0 ? rc : influence_init(&c->in[i], m->model, &c->p[i], err);
        if (rc == 0 && i == 0)
            rc = influence_want_pairs(&c->in[i], err);
        c->p[i].influence = &c->in[i];
    }
    rc = rc < 0 ? rc : generator_prepare(m->g, c->p, c->n + 1, &m->cost, err);
    rc = rc < 0 ? rc : generator_run(m->g, im, on_progress, NULL, err);
    for (int i = 0; im && i <= c->n; i++)
        image_release(&im[i]);
    free(im);
    return rc;
}

/* ---- what it means --------------------------------------------------------------------------- */

static double strength(const struct clash *c, int i)
{
    return influence_of(&c->in[0], i, -1, -1);
}

/* How much adapter i acts on the words of k, as a part of what it does on its own. */
static double wakes(const struct clash *c, int i, int k)
{
    double own = influence_of(&c->in[1 + i], i, -1, -1);
    return own > 0 ? influence_of(&c->in[1 + k], i, -1, -1) / own : 0;
}

/* Both act at the same places, and at least one also on the other's words. */
static double risk(const struct clash *c, int i, int k)
{
    double w = fmin(1, fmax(wakes(c, i, k), wakes(c, k, i)));
    return influence_overlap(&c->in[0], i, k) * w;
}

static double worst(const struct clash *c)
{
    double r = 0;
    for (int i = 0; i < c->n; i++)
        for (int k = i + 1; k < c->n; k++)
            r = fmax(r, risk(c, i, k));
    return r;
}

static const char *strategy(const struct clash *c)
{
    return worst(c) >= MIDDLE ? c->best : c->calm;
}

/* The strength at which it does as much as the middle one of all, halved or half as much again at most. */
static double suggested(const struct clash *c, int i)
{
    double log_mean = 0, now = c->a.m.r.adapter[i].unet;
    for (int k = 0; k < c->n; k++)
        log_mean += log(fmax(strength(c, k), 1e-6)) / c->n;
    double f = exp(log_mean) / fmax(strength(c, i), 1e-6);
    f = f < .67 ? .67 : f > 1.5 ? 1.5 : f;
    return round(now * f * 20) / 20;
}

/* The shortest run of steps, counted from 1 as in a whole picture, in which it does most of what it does. */
static void window(const struct clash *c, int i, int *from, int *to)
{
    int probed = c->p[0].steps, steps = c->a.m.r.steps, best = probed, first = 0;
    double all = 0;
    for (int s = 0; s < probed; s++)
        all += influence_of(&c->in[0], i, -1, s);
    for (int lo = 0; lo < probed; lo++) {
        double sum = 0;
        for (int hi = lo; hi < probed && hi - lo + 1 < best; hi++) {
            sum += influence_of(&c->in[0], i, -1, hi);
            if (sum >= MOST * all) {
                best = hi - lo + 1;
                first = lo;
            }
        }
    }
    *from = first * steps / probed + 1;
    *to = ((first + best) * steps + probed - 1) / probed;
}

static const char *name_of(const struct clash *c, int i)
{
    const struct request_adapter *a = &c->a.m.r.adapter[i];
    return a->name ? a->name : c->a.m.file[i]->name;
}

static void tell(const struct clash *c)
{
    puts("each, in this prompt:");
    for (int i = 0; i < c->n; i++) {
        int from, to;
        window(c, i, &from, &to);
        printf("  %-28s acts %5.1f %%, most of it in steps %d to %d of %d; strength %g, to act as "
               "much as the others %g\n",
               name_of(c, i), 100 * strength(c, i), from, to, c->a.m.r.steps,
               (double)c->a.m.r.adapter[i].unet, suggested(c, i));
    }
    puts("pairs:                                 same place  wakes on the other's words  weights "
         "alike  risk");
    for (int i = 0; i < c->n; i++)
        for (int k = i + 1; k < c->n; k++) {
            char both[64];
            double alike = c->cosine[i * c->n + k];
            snprintf(both, sizeof both, "%s, %s", name_of(c, i), name_of(c, k));
            printf("  %-36.36s %8.0f %%  %10.0f %%, %3.0f %%  ", both,
                   100 * influence_overlap(&c->in[0], i, k), 100 * wakes(c, i, k),
                   100 * wakes(c, k, i));
            if (isnan(alike))
                printf("%16s", "?");
            else
                printf("%16.2f", alike);
            printf("  %5.2f %s\n", risk(c, i, k),
                   risk(c, i, k) >= HIGH     ? "high"
                   : risk(c, i, k) >= MIDDLE ? "middling"
                                             : "low");
        }
    printf("try: weft render \"%s\"", c->prompt);
    for (int i = 0; i < c->n; i++)
        printf(" -a %s:%g", name_of(c, i), suggested(c, i));
    if (strcmp(strategy(c), "merge"))
        printf(" --compose %s", strategy(c));
    putchar('\n');
}

static void tell_json(const struct clash *c)
{
    json_t *each = json_array(), *pairs = json_array();
    for (int i = 0; i < c->n; i++) {
        int from, to;
        window(c, i, &from, &to);
        json_array_append_new(
            each, json_pack("{s:o, s:f, s:f, s:f, s:i, s:i}", "name", json_text(name_of(c, i)),
                            "share", strength(c, i), "strength", (double)c->a.m.r.adapter[i].unet,
                            "suggested", suggested(c, i), "from", from, "to", to));
    }
    for (int i = 0; i < c->n; i++)
        for (int k = i + 1; k < c->n; k++) {
            double alike = c->cosine[i * c->n + k];
            json_array_append_new(pairs, json_pack("{s:o, s:o, s:f, s:f, s:[f, f], s:o, s:f}",
                                                   "first", json_text(name_of(c, i)), "second",
                                                   json_text(name_of(c, k)), "place",
                                                   influence_overlap(&c->in[0], i, k), "direction",
                                                   influence_cosine(&c->in[0], i, k), "wakes",
                                                   wakes(c, i, k), wakes(c, k, i), "weights",
                                                   isnan(alike) ? json_null() : json_real(alike),
                                                   "risk", risk(c, i, k)));
        }
    json_line(json_pack("{s:o, s:o, s:o, s:s, s:f}", "prompt", json_text(c->prompt), "adapters",
                        each, "pairs", pairs, "compose", strategy(c), "risk", worst(c)));
}

/* ---- the command ----------------------------------------------------------------------------- */

static void release(struct clash *c)
{
    for (int i = 0; c->in && c->said && c->words && i <= c->n; i++) {
        influence_release(&c->in[i]);
        if (i < c->n) {
            prompt_release(&c->said[i]);
            free(c->words[i]);
        }
    }
    free(c->in);
    free(c->said);
    free(c->p);
    free(c->words);
    free(c->cosine);
    free(c->prompt);
    alone_release(&c->a);
}

static int run(const struct command *self, int argc, char **argv)
{
    struct clash c = {.n = 0};
    struct option o[OPTIONS_MAX];
    struct err err;

    (void)self;
    err_clear(&err);
    cli_catch_stop();
    make_options(o, &c);
    int rc = alone_parse(&c.a, o, argc, argv, &err);
    rc = rc < 0 ? rc : alone_repository(&c.a, &err);
    rc = rc < 0 ? rc : split(&c, &err);
    rc = rc < 0 ? rc : take_room(&c, &err);
    rc = rc < 0 ? rc : find_words(&c, &err);
    rc = rc < 0 ? rc : load(&c, &err);
    rc = rc < 0 ? rc : compare_weights(&c, &err);
    rc = rc < 0 ? rc : probe(&c, &err);
    if (rc == 0 && c.a.json)
        tell_json(&c);
    else if (rc == 0)
        tell(&c);
    release(&c);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}

const struct command command_clash = {
    .name = "clash",
    .usage = "weft clash NAME NAME... [PROMPT]",
    .about = "whether adapters will be in each other's way, before rendering",
    .run = run,
    .options = make_options,
    .size = sizeof(struct clash),
    .more =
        "A few steps with all of them, of the prompt (default: their trigger words) and of each "
        "one's words alone:\nhow much each acts and when, whether two act at the same places, and "
        "whether one wakes where only the\nother is called. The product of the last two is the "
        "risk; from .57 on another strategy than merge is\nsuggested, as the demo world showed it. "
        "Strengths that make all act alike are a rule of thumb. Steps are\ntold, not suggested: "
        "holding two adapters to steps of their own made merges worse there.",
};
