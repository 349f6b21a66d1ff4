/* All adapters in one pass, each through the model's gates. */
#include "compose.h"

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    (void)c, (void)now;
    action_pass(a, 1)->gated = true;
    for (int i = 0; i < n; i++)
        action_act(a, here[i], 1);
}

const struct compose_strategy strategy_gated = {
    .name = "gated",
    .about = "in one pass, a gate at each site says by channel and place how much of each comes in",
    .more =
        "      Gates see what the layer makes, what the adapter adds to it and the time; they were "
        "learnt once\n"
        "      for the model, on other adapters (--gates FILE; none ship). AutoLoRA, Li et al. "
        "2025.",
    .gates = true,
    .plan = plan,
};
