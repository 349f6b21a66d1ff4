/* Each adapter in its own region, with a prompt of its own: what users do by hand. */
#include "compose.h"

enum { ALONE };
static const char *const alone[] = {"no", "yes", NULL};

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    struct pass *p = action_pass(a, 1);
    (void)now;
    p->regions = REGIONS_PLACED;
    p->alone = c->option[ALONE] == 1;
    for (int i = 0; i < n; i++)
        action_act(a, here[i], 1);
}

const struct compose_strategy strategy_regions = {
    .name = "regions",
    .about = "in one pass, each adapter in its box or mask alone, which attends to its own prompt",
    .more = "      -a NAME,box=L/T/R/B,prompt=TEXT: what lies in the box attends to that text (by "
            "default what\n"
            "      the prompt says of the adapter's words), all else to the picture's prompt; "
            "where boxes overlap, half each.",
    .words = true,
    .regions = true,
    .option =
        (const struct compose_option[]){
            {"alone", "whether regions see each other in self attention", 0, 0, 1, alone, true},
            {.key = NULL},
        },
    .plan = plan,
};
