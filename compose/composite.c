/* A pass for each adapter, and the mean of what they say. */
#include "compose.h"

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    (void)c;
    (void)now;
    for (int i = 0; i < n; i++) {
        action_pass(a, 1.0 / n)->slot = here[i];
        action_act(a, here[i], 1);
    }
}

const struct compose_strategy strategy_composite = {
    .name = "composite",
    .about = "a pass for each adapter alone, and the mean of their predictions",
    .more = "      n passes a step. No adapter disturbs another's features, but each counts only "
            "one n-th.\n"
            "      Zhong et al. 2024, Multi-LoRA Composition.",
    .plan = plan,
};
