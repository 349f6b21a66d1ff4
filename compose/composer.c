/* Each adapter in its own region of cross attention, regions apart in self attention, and the picture moved until each is
 * attended to inside. */
#include "compose.h"

#include <math.h>

enum { RATE, UNTIL, LEVEL, FROM, ENHANCE, FILL, APART, RELAY, ALONE, ACT, PHASE };
static const char *const from[] = {"all", "up", NULL}, *const yes[] = {"no", "yes", NULL},
                         *const act[] = {"cross", "placed", NULL};

static int placed(const struct compose *c)
{
    int n = 0;
    for (int i = 0; i < c->facts.n_adapter; i++)
        n += c->facts.adapter[i].placed;
    return n;
}

/* Places that are not given are looked for before; where all are, in no steps. */
static int probe(const struct compose *c)
{
    bool open = false;
    for (int i = 0; i < c->facts.n_adapter; i++)
        open |= c->facts.adapter[i].placed && !c->facts.adapter[i].boxed;
    return open && placed(c) > 1 ? (int)ceil(c->option[PHASE] * c->facts.steps) : 0;
}

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    struct pass *p = action_pass(a, 1);
    for (int i = 0; i < n; i++)
        action_act(a, here[i], 1);
    if (now->probe) {
        p->attend = (struct attend){.when = ATTEND_LOOK, .sharp = 1, .keep = .8f};
        return;
    }
    if (!placed(c))
        return;
    p->regions = c->option[ACT] == 0 ? REGIONS_CROSS : REGIONS_PLACED;
    p->alone = c->option[ALONE] == 1;
    double at = (double)now->step / c->facts.steps;
    if (at >= c->option[UNTIL] && now->eval)
        return;
    a->refine = (struct refine_step){.how = REFINE_LAYOUT,
                                     .times = at < c->option[UNTIL],
                                     .rate = (float)(c->option[RATE] * sqrt(1 - .5 * at)),
                                     .divide = (int)c->option[LEVEL],
                                     .up = c->option[FROM] == 1,
                                     .enhance = (float)c->option[ENHANCE],
                                     .fill = (float)c->option[FILL],
                                     .apart = (float)c->option[APART],
                                     .relay = now->eval == 0 && c->option[RELAY] == 1};
}

const struct compose_strategy strategy_composer = {
    .name = "composer",
    .about = "in one pass, each adapter in its region; regions are apart, and the picture moves in",
    .more = "      -a NAME,box=L/T/R/B,prompt=TEXT as regions. Before each step the picture goes "
            "against "
            "the gradient of\n"
            "      what LoRA-Composer asks for: words are attended to inside their region, all "
            "over it, "
            "and its places do\n"
            "      not look outside. Yang et al. 2024, whose adapters act on cross attention alone "
            "(act=cross). Without\n"
            "      boxes a first phase finds places.",
    .words = true,
    .regions = true,
    .probe = probe,
    .option =
        (const struct compose_option[]){
            {"rate", "of each step against the gradient, in the first", 20, 0, 1e4, NULL, false},
            {"until", "share of the steps that do so", .5, 0, 1, NULL, false},
            {"level", "attentions at one so-manieth of the latent's side", 4, 1, 64, NULL, true},
            {"from", "of which of them: all, or those on the way up", 0, 0, 1, from, true},
            {"enhance", "how much counts that words are attended to inside", 1, 0, 100, NULL,
             false},
            {"fill", "that they are all over", 1, 0, 100, NULL, false},
            {"apart", "that places do not look outside", 1, 0, 100, NULL, false},
            {"relay", "whether the first noise is laid anew", 1, 0, 1, yes, true},
            {"alone", "whether regions are apart in self attention", 1, 0, 1, yes, true},
            {"act", "where adapters act: on what regions attend to, or on all layers there", 1, 0,
             1, act, true},
            {"phase", "share of the steps that look for places, without boxes", .3, .01, 1, NULL,
             false},
            {.key = NULL},
        },
    .plan = plan,
};
