/* All adapters in one pass, each where the picture attends to its words. */
#include "compose.h"

enum { SHARP, LEAK, KEEP };

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    struct pass *p = action_pass(a, 1);
    (void)now;
    if (n > 1)
        p->attend = (struct attend){.sharp = (float)c->option[SHARP],
                                    .leak = (float)c->option[LEAK],
                                    .keep = (float)c->option[KEEP]};
    for (int i = 0; i < n; i++)
        action_act(a, here[i], 1);
}

const struct compose_strategy strategy_attend = {
    .name = "attend",
    .about = "in one pass, each adapter mostly where the picture attends to its words",
    .more =
        "      What a place attends to among the adapters' triggers says whose it is, from step "
        "to step; each\n"
        "      adapter's part in the layers there follows that. Styles, and adapters none of "
        "whose words is in\n"
        "      the prompt, act everywhere. Our own, after FreeFuse's masks, without its first "
        "phase.",
    .words = true,
    .option =
        (const struct compose_option[]){
            {"sharp", "how sharply places are divided", 4, .01, 100, NULL, false},
            {"leak", "how much of each adapter acts in places of others", .3, 0, 1, NULL, false},
            {"keep", "how much of a step's division stays in the next", .5, 0, .99, NULL, false},
            {.key = NULL},
        },
    .plan = plan,
};
