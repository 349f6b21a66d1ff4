/* All adapters in one pass. */
#include "compose.h"

#include <math.h>

enum { MODE };
static const char *const modes[] = {"sum", "blend", NULL};
#define BLEND .75 /* the sum of strengths that blending leaves */

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    double all = 0, w = 1;
    (void)now;
    for (int i = 0; i < n; i++)
        all += fabs(c->facts.adapter[here[i]].strength);
    if (c->option[MODE] == 1 && n > 1 && all > 0)
        w = BLEND / all;
    action_pass(a, 1);
    for (int i = 0; i < n; i++)
        action_act(a, here[i], w);
}

const struct compose_strategy strategy_merge = {
    .name = "merge",
    .about = "W + sum of all adapters, in one pass a step: what every program does",
    .more = "      Cheap, and right for one adapter. Several add up also where only one is meant: "
            "colours\n"
            "      and shapes of one show on the other. blend holds the sum of strengths at 0.75.",
    .option =
        (const struct compose_option[]){
            {"mode", "sum: each at its strength; blend: strengths scaled down together", 0, 0, 1,
             modes, true},
            {.key = NULL},
        },
    .plan = plan,
};
