/* One adapter at a time, in turns. */
#include "compose.h"

enum { TAU };

/* The adapter of step t, counted from 0: floor((t mod n tau) / tau), Zhong et al. 2024, eq. 2. */
static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    int tau = (int)c->option[TAU];
    action_pass(a, 1);
    action_act(a, here[now->step % (n * tau) / tau], 1);
}

const struct compose_strategy strategy_switch = {
    .name = "switch",
    .about = "one adapter at a time, each for tau steps, in the order given",
    .more =
        "      One pass a step, as cheap as merge, and nothing adds up; each adapter redraws what "
        "the one\n"
        "      before it began. Put a character first. Zhong et al. 2024, Multi-LoRA Composition.",
    .option =
        (const struct compose_option[]){
            {"tau", "steps a turn", 5, 1, 1000, NULL, true},
            {.key = NULL},
        },
    .plan = plan,
};
