/* All adapters in one pass, at each place the few whose words it attends to most. */
#include "compose.h"

enum { TOP, AT, DOWN, MIDDLE, UP };
static const char *const at[] = {"all", "attention", "ff", NULL};
static const unsigned kinds[] = {ROUTE_ALL, ROUTE_ATTENTION, ROUTE_FF};

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    struct pass *p = action_pass(a, 1);
    (void)now;
    p->gated = true;
    if (n > 1)
        p->attend = (struct attend){.sharp = 1, .keep = .5f, .kinds = kinds[(int)c->option[AT]]};
    for (int k = 0; k < ROUTE_LEVELS; k++)
        p->attend.top[k] = (int)(c->option[DOWN + k] ? c->option[DOWN + k] : c->option[TOP]);
    for (int i = 0; i < n; i++)
        action_act(a, here[i], 1);
}

const struct compose_strategy strategy_router = {
    .name = "router",
    .about = "in one pass, at each place only those k adapters whose words it attends to most",
    .more =
        "      Through the gates of `gated`, shut for all others. On cross attention, feed-forward "
        "layers or all,\n"
        "      and with another k by level, it stands for MeteoRA, MixLoRA, LLaVA-MoLE, LoRA-Mixer "
        "and MoLA,\n"
        "      whose routers were trained with their LoRAs.",
    .gates = true,
    .routes = true,
    .words = true,
    .option =
        (const struct compose_option[]){
            {"k", "adapters at a place", 1, 1, 32, NULL, true},
            {"at", "the layers where adapters are routed; elsewhere all act", 0, 0, 2, at, true},
            {"down", "k on the way down; 0: as k", 0, 0, 32, NULL, true},
            {"middle", "k in the middle", 0, 0, 32, NULL, true},
            {"up", "k on the way up", 0, 0, 32, NULL, true},
            {.key = NULL},
        },
    .plan = plan,
};
