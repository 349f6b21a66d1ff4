/* CMLoRA: a pass for each adapter, one of them dominant in turns, and old deep features for the others. */
#include "compose.h"

#include <math.h>
#include <stdlib.h>

enum { INTERVAL, ORDER, WEIGHTS };
static const char *const orders[] = {"paper", "reverse", NULL}, *const weights[] = {"paper",
                                                                                    "equal", NULL};

/* The refresh steps: every second step, every third from .375 T to .875 T. Only its dominant adapter's
 * features are renewed at one. */
static bool is_refresh(int interval, int i, int steps)
{
    int a = (int)(.375 * steps), b = (int)(.875 * steps);
    if (interval)
        return i % interval == 0;
    return i < a ? i % 2 == 0 : i < b ? (i - a) % 3 == 0 : (i - b) % 2 == 0;
}

/* Of the steps: where the authors' code changes the set it rotates over, 120 of 220. */
#define PHASE .545
#define TIE   1e-9 /* of two adapters the lower lies on mean - dev itself: it is not below */

/* here[n] by falling share of high frequencies, those without a measure as the mean; returns how many of them are
 * the high ones: all that are not more than a standard deviation below the mean. */
static int rank(const struct compose *c, const int *here, int n, int *out)
{
    double share[COMPOSE_MAX_ADAPTERS], sum = 0, square = 0;
    int measured = 0, high = 0;
    for (int i = 0; i < n; i++) {
        double h = c->facts.adapter[here[i]].high;
        measured += !isnan(h);
        sum += isnan(h) ? 0 : h;
        square += isnan(h) ? 0 : h * h;
    }
    double mean = measured ? sum / measured : 0;
    double dev = measured ? sqrt(fmax(0, square / measured - mean * mean)) : 0;
    for (int i = 0; i < n; i++) {
        double h = c->facts.adapter[here[i]].high;
        int k = i;
        h = isnan(h) ? mean : h;
        high += h >= mean - dev - TIE;
        for (; k > 0 && h > share[k - 1]; k--) {
            out[k] = out[k - 1];
            share[k] = share[k - 1];
        }
        out[k] = here[i];
        share[k] = h;
    }
    return high;
}

/* Early the high ones take turns, late all of them, the others first. reverse: by rising share, the low ones
 * early. */
static int dominant(const struct compose *c, int step, const int *here, int n)
{
    int order[COMPOSE_MAX_ADAPTERS], early = rank(c, here, n, order), turn = -1;
    int steps = c->facts.steps, phase = (int)(PHASE * steps);
    if (c->option[ORDER] == 1) {
        for (int i = 0; i < n / 2; i++) {
            int last = order[n - 1 - i];
            order[n - 1 - i] = order[i];
            order[i] = last;
        }
        early = early < n ? n - early : n;
    }
    bool late = step >= phase && early < n;
    for (int i = late ? phase : 0; i <= step; i++)
        turn += i == (late ? phase : 0) || is_refresh((int)c->option[INTERVAL], i, steps);
    return late ? order[(early + turn) % n] : order[turn % early];
}

static void plan(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a)
{
    int who = dominant(c, now->step, here, n), interval = (int)c->option[INTERVAL];
    bool refresh = is_refresh(interval, now->step, c->facts.steps);
    double over = n - .5, other = n / (over + n - 1);
    for (int i = 0; i < n; i++) {
        double w = c->option[WEIGHTS] == 1 ? 1 : here[i] == who ? over * other : other;
        struct pass *p = action_pass(a, w / n);
        p->slot = here[i];
        p->deep = interval == 1 || (refresh && here[i] == who) ? DEEP_KEEP : DEEP_REUSE;
        action_act(a, here[i], 1);
    }
}

const struct compose_strategy strategy_cmlora = {
    .name = "cmlora",
    .about = "composite with a dominant adapter in turns; the others' deep features are kept",
    .more = "      The dominant one counts n - 1/2 times as much as another. Who comes when "
            "follows the measured\n"
            "      share of high frequencies (weft profile): high ones early. By count a fifth of "
            "composite's\n"
            "      operations on the demo model (n = 4), two fifths on SD 1.5. Zou et al. 2025, "
            "CMLoRA, "
            "as its text has it; the released code never reuses anything.",
    .option =
        (const struct compose_option[]){
            {"interval", "steps between refreshes; 0: 2, 3, then 2 as in the paper; 1: no caching",
             0, 0, 1000, NULL, true},
            {"order", "high frequencies first, or last", 0, 0, 1, orders, true},
            {"weights", "of the dominant adapter and the others", 0, 0, 1, weights, true},
            {.key = NULL},
        },
    .plan = plan,
};
