/* A pass for each adapter, one without any, and the sum of what each adapter changes:
 * base + scale * sum of (adapter - base). */
#include "compose.h"

enum { SCALE };

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    double w = n > 1 ? c->option[SCALE] : 1, base = 1 - w * n;
    (void)now;
    if (base != 0)
        action_pass(a, base)->slot = c->facts.n_adapter;
    for (int i = 0; i < n; i++) {
        action_pass(a, w)->slot = here[i];
        action_act(a, here[i], 1);
    }
}

const struct compose_strategy strategy_superpose = {
    .name = "superpose",
    .about = "a pass for each adapter alone, and the sum of what each changes",
    .more =
        "      base + sum of (adapter - base), n + 1 passes a step, about half as many operations "
        "with\n"
        "      uncond=base. No adapter disturbs another's features, and each counts in full. Our "
        "own, after\n"
        "      Liu et al. 2022, Composable Diffusion, which sums prompts so.",
    .option =
        (const struct compose_option[]){
            {"scale", "of what each changes; 1/n would be composite", 1, 0, 4, NULL, false},
            {.key = NULL},
        },
    .plan = plan,
};
