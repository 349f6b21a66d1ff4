#include "compose.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern const struct compose_strategy strategy_merge, strategy_switch, strategy_composite,
    strategy_cmlora, strategy_wswitch, strategy_wcomposite, strategy_superpose, strategy_mora,
    strategy_gated, strategy_attend, strategy_router, strategy_freefuse, strategy_clora,
    strategy_regions, strategy_composer;
const struct compose_strategy *const compose_strategies[] = {
    &strategy_merge,   &strategy_switch,     &strategy_composite, &strategy_cmlora,
    &strategy_wswitch, &strategy_wcomposite, &strategy_superpose, &strategy_mora,
    &strategy_attend,  &strategy_gated,      &strategy_router,    &strategy_freefuse,
    &strategy_clora,   &strategy_regions,    &strategy_composer,  NULL};

/* Options that every strategy takes, behind its own. */
enum { UNCOND, DEEPCACHE };
static const char *const unconds[] = {"adapted", "base", NULL};
const struct compose_option compose_common[] = {
    {"uncond",
     "base: adapters act only where the prompt is seen, not in the half\nit is set off from", 0, 0,
     1, unconds, true},
    {"deepcache",
     "so many steps share the deep features of the first (DeepCache); a\n"
     "prompt, adapter or strength that changes drops them; cmlora has its own",
     1, 1, 100, NULL, true},
    {.key = NULL},
};

/* ---- reading --------------------------------------------------------------------------------- */

static const struct compose_strategy *find(const char *name, size_t n, struct err *err)
{
    char known[200] = "";
    for (int i = 0; compose_strategies[i]; i++) {
        const char *s = compose_strategies[i]->name;
        if (strlen(s) == n && !memcmp(s, name, n))
            return compose_strategies[i];
        snprintf(known + strlen(known), sizeof known - strlen(known), "%s%s", i ? ", " : "", s);
    }
    err_set(err, ERR_ARG, "no strategy '%.*s'; known: %s", n < 60 ? (int)n : 60, name, known);
    return NULL;
}

static int index_of(const struct compose_option *o, const char *key, size_t n)
{
    for (int i = 0; o && o[i].key; i++)
        if (strlen(o[i].key) == n && !memcmp(o[i].key, key, n))
            return i;
    return -1;
}

static int read_value(const struct compose_option *o, const char *s, size_t n, double *out,
                      const char *name, struct err *err)
{
    char buf[40], words[120] = "", *end;
    snprintf(buf, sizeof buf, "%.*s", n < 39 ? (int)n : 39, s);
    for (int i = 0; o->choice && o->choice[i]; i++) {
        if (!strcmp(o->choice[i], buf)) {
            *out = i;
            return 0;
        }
        snprintf(words + strlen(words), sizeof words - strlen(words), "%s%s", i ? ", " : "",
                 o->choice[i]);
    }
    if (o->choice)
        return err_set(err, ERR_ARG, "--compose %s: %s=%s is none of: %s", name, o->key, buf,
                       words);
    *out = strtod(buf, &end);
    if (n == 0 || *end || !isfinite(*out) || *out < o->min || *out > o->max ||
        (o->whole && *out != floor(*out)))
        return err_set(err, ERR_ARG, "--compose %s: %s=%s is not a %snumber from %g to %g", name,
                       o->key, buf, o->whole ? "whole " : "", o->min, o->max);
    return 0;
}

static int unknown_key(const struct compose *c, const char *pair, size_t n, struct err *err)
{
    char known[200] = "";
    const struct compose_option *const both[] = {c->strategy->option, compose_common};
    for (int k = 0; k < 2; k++)
        for (const struct compose_option *o = both[k]; o && o->key; o++)
            snprintf(known + strlen(known), sizeof known - strlen(known),
                     "%s%s=", *known ? ", " : "", o->key);
    return err_set(err, ERR_ARG, "--compose %s: '%.*s' is none of its options; known: %s",
                   c->strategy->name, n < 60 ? (int)n : 60, pair, known);
}

static int read_pair(struct compose *c, const char *pair, size_t n, struct err *err)
{
    const char *eq = memchr(pair, '=', n);
    size_t nk = eq ? (size_t)(eq - pair) : n;
    int own = index_of(c->strategy->option, pair, nk), i = index_of(compose_common, pair, nk);
    double v = 0;
    if (!eq || (own < 0 && i < 0))
        return unknown_key(c, pair, n, err);
    const struct compose_option *o = own >= 0 ? &c->strategy->option[own] : &compose_common[i];
    int rc = read_value(o, eq + 1, n - nk - 1, &v, c->strategy->name, err);
    if (rc == 0)
        *(own >= 0 ? &c->option[own] : &c->common[i]) = v;
    return rc;
}

static void set_usual(double *to, const struct compose_option *o)
{
    for (int i = 0; o && o[i].key; i++)
        to[i] = o[i].usual;
}

int compose_open(struct compose **out, const char *text, struct err *err)
{
    struct compose *c = calloc(1, sizeof *c);
    size_t n = strcspn(text, ":");
    int rc = 0;
    *out = NULL;
    if (!c)
        return err_nomem(err, sizeof *c);
    c->strategy = find(text, n, err);
    if (!c->strategy)
        rc = err->code;
    set_usual(c->common, compose_common);
    set_usual(c->option, c->strategy ? c->strategy->option : NULL);
    for (const char *p = text + n; *p && rc == 0; p += n) {
        n = strcspn(++p, ",");
        rc = read_pair(c, p, n, err);
    }
    if (rc < 0)
        compose_close(c);
    else
        *out = c;
    return rc;
}

void compose_close(struct compose *c)
{
    free(c);
}

/* ---- planning -------------------------------------------------------------------------------- */

struct pass *action_pass(struct action *a, double mix)
{
    struct pass *p = &a->pass[a->n_pass];
    *p = (struct pass){.act0 = a->n_act, .mix = {mix, mix}, .slot = a->n_pass};
    a->n_pass++;
    return p;
}

void action_act(struct action *a, int adapter, double w)
{
    a->act[a->n_act++] = (struct pass_act){adapter, {w, w}};
    a->pass[a->n_pass - 1].n_act++;
}

static void forget(struct compose *c)
{
    for (int i = 0; i <= COMPOSE_MAX_ADAPTERS; i++)
        c->kept[i].step = -1;
}

int compose_start(struct compose *c, const struct compose_facts *facts, struct err *err)
{
    if (facts->n_adapter > COMPOSE_MAX_ADAPTERS)
        return err_set(err, ERR_ARG, "%d adapters: %s takes up to %d", facts->n_adapter,
                       c->strategy->name, COMPOSE_MAX_ADAPTERS);
    c->facts = *facts;
    forget(c);
    return 0;
}

/* Whether a slot holds what the pass would make, in both halves that count. */
static bool holds(const struct kept *k, const struct pass *p, const struct pass_act *a)
{
    bool same = k->n_act == p->n_act;
    for (int half = 0; half < 2; half++)
        same = same && (k->half[half] || p->mix[half] == 0);
    for (int i = 0; i < p->n_act && same; i++)
        same = k->act[i].adapter == a[i].adapter && k->act[i].w[0] == a[i].w[0] &&
               k->act[i].w[1] == a[i].w[1];
    return same;
}

/* Deep features are taken only where the pass's slot holds those of the same adapters and texts; else the
 * pass is whole and fills it. deepcache is laid over strategies that do not cache on their own. */
static void set_deep(struct compose *c, const struct compose_now *now, struct action *a)
{
    int interval = (int)c->common[DEEPCACHE];
    for (int i = 0; i < a->n_pass; i++) {
        struct pass *p = &a->pass[i];
        struct kept *k = &c->kept[p->slot];
        const struct pass_act *act = &a->act[p->act0];
        if (interval > 1 && p->deep == DEEP_PLAIN)
            p->deep = now->step / interval == k->step / interval ? DEEP_REUSE : DEEP_KEEP;
        if (p->deep == DEEP_REUSE && (k->step < 0 || now->texts != k->texts || !holds(k, p, act)))
            p->deep = DEEP_KEEP;
        if (p->deep != DEEP_KEEP)
            continue;
        k->step = now->step;
        k->texts = now->texts;
        for (int half = 0; half < 2; half++)
            k->half[half] = p->mix[half] != 0;
        k->n_act = p->n_act;
        memcpy(k->act, act, (size_t)p->n_act * sizeof *act);
    }
}

/* Where no adapter acts in the unconditional half it is the same in all passes: one pass makes it, a whole one if
 * there is any. */
static void bare_uncond(struct action *a)
{
    int whole = 0;
    double mix = 0;
    for (int i = 0; i < a->n_act; i++)
        a->act[i].w[HALF_UNCOND] = 0;
    while (whole < a->n_pass && a->pass[whole].deep == DEEP_REUSE)
        whole++;
    for (int i = 0; i < a->n_pass; i++) {
        mix += a->pass[i].mix[HALF_UNCOND];
        a->pass[i].mix[HALF_UNCOND] = 0;
    }
    a->pass[whole < a->n_pass ? whole : 0].mix[HALF_UNCOND] = mix;
}

void compose_next(struct compose *c, const struct compose_now *now, struct action *a)
{
    int here[COMPOSE_MAX_ADAPTERS], n = 0;
    a->n_pass = a->n_act = 0;
    a->refine = (struct refine_step){0};
    if (now->probe != c->probing)
        forget(c);
    c->probing = now->probe;
    for (int i = 0; i < c->facts.n_adapter; i++) {
        const struct compose_adapter *b = &c->facts.adapter[i];
        if (now->step + 1 >= b->from && (!b->to || now->step + 1 <= b->to))
            here[n++] = i;
    }
    if (n)
        c->strategy->plan(c, now, here, n, a);
    else
        action_pass(a, 1);
    if (c->common[UNCOND] == 1)
        bare_uncond(a);
    set_deep(c, now, a);
}

bool compose_is_constant(const struct compose *c)
{
    return c->strategy == &strategy_merge && c->common[UNCOND] == 0;
}
