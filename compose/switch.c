/* One adapter at a time, in turns. */
#include "compose.h"

#include <math.h>

enum { TAU, TAIL };

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

/* ---- with turns as long as each has a part in the prompt -------------------------------------- */

static int turn(const struct compose *c, int adapter, double most)
{
    double part = c->facts.adapter[adapter].part;
    long n = lround(c->option[TAU] * (most > 0 ? part / most : 1));
    return n > 1 ? (int)n : 1;
}

/* b_i = max(1, round(tau part_i / max part)) steps each, in order; the last steps are the first one's. */
static void weighed(const struct compose *c, const struct compose_now *now, const int *here, int n,
                    struct action *a)
{
    double most = 0;
    int cycle, at, i = 0;
    for (int k = 0; k < n; k++)
        most = fmax(most, c->facts.adapter[here[k]].part);
    cycle = turn(c, here[0], most);
    for (int k = 1; k < n; k++)
        cycle += turn(c, here[k], most);
    at = now->step % cycle;
    while (at >= turn(c, here[i], most))
        at -= turn(c, here[i++], most);
    action_pass(a, 1);
    action_act(a, now->step >= c->facts.steps - (int)c->option[TAIL] ? here[0] : here[i], 1);
}

const struct compose_strategy strategy_wswitch = {
    .name = "wswitch",
    .about = "switch, each turn as long as the adapter has a part in the prompt",
    .more = "      The part is what its trigger words change in the text encoder's mean state; the "
            "last steps\n"
            "      are the first adapter's: put a character there. Tsoumplekas et al. 2025, "
            "Prompt-Aware\n"
            "      Multi-LoRA Composition.",
    .weighs = true,
    .option =
        (const struct compose_option[]){
            {"tau", "steps of the longest turn", 5, 1, 1000, NULL, true},
            {"tail", "last steps, which are the first adapter's", 5, 0, 1000, NULL, true},
            {.key = NULL},
        },
    .plan = weighed,
};
