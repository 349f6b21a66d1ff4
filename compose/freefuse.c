/* A first phase that finds each adapter's places, then the picture anew, with each in its own. */
#include "compose.h"

#include <math.h>

enum { PHASE, LEAK };

static int probe(const struct compose *c)
{
    return c->facts.n_adapter > 1 ? (int)ceil(c->option[PHASE] * c->facts.steps) : 0;
}

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    struct pass *p = action_pass(a, 1);
    if (n > 1)
        p->attend = (struct attend){.when = now->probe ? ATTEND_LOOK : ATTEND_FOUND,
                                    .sharp = 1,
                                    .leak = (float)c->option[LEAK],
                                    .keep = .8f};
    for (int i = 0; i < n; i++)
        action_act(a, here[i], 1);
}

const struct compose_strategy strategy_freefuse = {
    .name = "freefuse",
    .about = "a first phase finds each adapter's places; then anew, each in its own",
    .more = "      As attend, but places are divided once and whole, by the first steps of a "
            "picture that "
            "is thrown\n"
            "      away. After FreeFuse, without its likeness of features and its bias on words.",
    .words = true,
    .probe = probe,
    .option =
        (const struct compose_option[]){
            {"phase", "share of the steps that look for places", .3, .01, 1, NULL, false},
            {"leak", "how much of each adapter acts in places of others", 0, 0, 1, NULL, false},
            {.key = NULL},
        },
    .plan = plan,
};
