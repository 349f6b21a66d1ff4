/* A pass for each adapter and one without any, each in its part of the picture; which part follows from what they attend
 * to, which is pulled apart before. */
#include "compose.h"

enum { PRESET, RATE, EVERY, EXTRA, APART, UNTIL, LEVEL, FROM, MAPS, MASK, OVERLAP, MEMORY };
static const char *const presets[] = {"own", "paper", "notebook", NULL};
static const char *const maps[] = {"both", "cond", NULL}, *const from[] = {"all", "up", NULL},
                         *const overlap[] = {"share", "most", NULL},
                         *const memory[] = {"more", "least", NULL};

/* What the authors set: in their paper, which moves the picture thrice, and in their notebook, which does so all along. */
static const double authors[2][OVERLAP + 1] = {{1, 20, 0, 20, .2, .5, 4, 0, 0, .4, 0},
                                               {2, 20, 1, 20, .1, .5, 4, 0, 0, .4, 0}};

/* Steps against the gradient before a step of the sampler: `every` in each up to `until`, and `extra` in the first and
 * those `apart` and twice that later, as shares of all steps. */
static int times(const struct compose *c, const double *o, int step)
{
    double n = c->facts.steps, until = o[UNTIL] * n;
    int all = step < until ? (int)o[EVERY] : 0;
    for (int i = 0; i < 3; i++)
        if ((i == 0 || o[APART] > 0) && step < until && step == (int)(i * o[APART] * n + .5))
            all += (int)o[EXTRA];
    return all;
}

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    const double *o = c->option[PRESET] > 0 ? authors[(int)c->option[PRESET] - 1] : c->option;
    int parts = 1;
    for (int i = 0; i < n; i++)
        parts += c->facts.adapter[here[i]].placed;
    for (int i = -1; i < n;
         i++) { /* the base, then each adapter that has a part; the others act in all */
        if (i >= 0 && !c->facts.adapter[here[i]].placed)
            continue;
        struct pass *p = action_pass(a, 1.0 / parts);
        p->placed = parts > 1;
        p->owner = i < 0 ? -1 : here[i];
        p->slot = i < 0 ? c->facts.n_adapter : here[i];
        if (i >= 0)
            action_act(a, here[i], 1);
        for (int k = 0; k < n; k++)
            if (!c->facts.adapter[here[k]].placed)
                action_act(a, here[k], 1);
    }
    if (parts > 1)
        a->refine = (struct refine_step){.how = REFINE_CONTRAST,
                                         .times = parts > 2 ? times(c, o, now->step) : 0,
                                         .rate = (float)o[RATE],
                                         .divide = (int)o[LEVEL],
                                         .up = o[FROM] == 1,
                                         .halves = o[MAPS] == 0,
                                         .most = o[OVERLAP] == 1,
                                         .least = c->option[MEMORY] == 1,
                                         .mask = (float)o[MASK]};
}

const struct compose_strategy strategy_clora = {
    .name = "clora",
    .about = "a pass for each adapter, each in the part of the picture that attends to its words",
    .more =
        "      Before that the picture is moved so that different adapters' words are attended to "
        "in different\n"
        "      places (NT-Xent, against its gradient). CLoRA, Meral et al. 2025; all passes see "
        "the "
        "same prompt.",
    .words = true,
    .variants = true,
    .option =
        (const struct compose_option[]){
            {"preset", "the authors' settings instead of all below", 0, 0, 2, presets, true},
            {"rate", "of each step against the gradient", 20, 0, 1e4, NULL, false},
            {"every", "such steps before each step of the sampler", 1, 0, 100, NULL, true},
            {"extra", "more of them in the first, and two more", 0, 0, 100, NULL, true},
            {"apart", "how far apart those lie, a share of all steps", .1, 0, .5, NULL, false},
            {"until", "share of the steps that do so", .5, 0, 1, NULL, false},
            {"level", "attentions at one so-manieth of the latent's side", 4, 1, 64, NULL, true},
            {"from", "of which of them: all, or those on the way up", 1, 0, 1, from, true},
            {"maps", "of which halves", 1, 0, 1, maps, true},
            {"mask", "a place is an adapter's above this share of its words' most", .05, .01, .99,
             NULL, false},
            {"overlap", "who has a place that is several's: all of them, or who has most", 1, 0, 1,
             overlap, true},
            {"memory",
             "least: passes are looked at one by one, which takes longer (so are large pictures')",
             0, 0, 1, memory, true},
            {.key = NULL},
        },
    .plan = plan,
};
