/* All adapters in one pass, each through the model's gates. */
#include "compose.h"

enum { GLOBAL, SHARE };

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    struct pass *p = action_pass(a, 1);
    (void)now;
    p->gated = true;
    if (n > 1) {
        p->attend = (struct attend){.sharp = 1, .keep = .5f};
        p->common.rank = (int)c->option[GLOBAL];
        p->common.s = (float)c->option[SHARE];
    }
    for (int i = 0; i < n; i++)
        action_act(a, here[i], 1);
}

const struct compose_strategy strategy_gated = {
    .name = "gated",
    .about = "in one pass, a gate at each site says by channel and place how much of each comes in",
    .more =
        "      Gates see what the layer makes, what the adapter adds to it, the time, and whose "
        "words "
        "the place\n"
        "      attends to; they were learnt once for the model, on other adapters (--gates FILE). "
        "AutoLoRA,\n"
        "      Li et al. 2025; the words are ours.",
    .gates = true,
    .words = true,
    .option =
        (const struct compose_option[]){
            {"global", "rank of what all have in common, added as one more; 0: it is not", 0, 0, 64,
             NULL, true},
            {"share", "how much of that", 1, 0, 1, NULL, false},
            {.key = NULL},
        },
    .plan = plan,
};
