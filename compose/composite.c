/* A pass for each adapter, and the mean of what they say. */
#include "compose.h"

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    double all = 0;
    (void)now;
    for (int i = 0; i < n && c->strategy->weighs; i++)
        all += c->facts.adapter[here[i]].match;
    for (int i = 0; i < n; i++) {
        double share = all > 0 ? c->facts.adapter[here[i]].match / all : 1.0 / n;
        action_pass(a, share)->slot = here[i];
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

const struct compose_strategy strategy_wcomposite = {
    .name = "wcomposite",
    .about = "composite, each counting as much as its trigger words are like the prompt",
    .more = "      The text encoder weighs them; an adapter without trigger words gets the mean.\n"
            "      Tsoumplekas et al. 2025, Prompt-Aware Multi-LoRA Composition.",
    .weighs = true,
    .plan = plan,
};
