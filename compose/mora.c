/* All adapters in one pass, their rank-1 pieces routed at each place by what they say there. */
#include "compose.h"

enum { TAU, KEEP, LEAST };

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    struct pass *p = action_pass(a, 1);
    (void)now;
    p->route =
        (struct route){(float)c->option[TAU], (float)c->option[KEEP], (float)c->option[LEAST]};
    for (int i = 0; i < n; i++)
        action_act(a, here[i], 1);
}

const struct compose_strategy strategy_mora = {
    .name = "mora",
    .about = "in one pass, at each place mostly those ranks of all adapters that answer there most",
    .more = "      Each adapter falls into rank-1 pieces (its singular vectors); where many "
            "answer, the "
            "strongest\n"
            "      hold the others down. Nothing is trained. After MoRA's self-activated experts, "
            "whose "
            "LoRAs were\n"
            "      trained so; kinds that are no plain product act in full.",
    .option =
        (const struct compose_option[]){
            {"tau", "how far a weaker one is held down; great: not at all", 1, .01, 1e9, NULL,
             false},
            {"keep", "share of all pieces that count at a place", .5, .01, 1, NULL, false},
            {"least", "weights below count nothing; the strongest has 1", 0, 0, 1, NULL, false},
            {.key = NULL},
        },
    .plan = plan,
};
