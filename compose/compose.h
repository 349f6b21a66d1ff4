/* compose.h: how several adapters share one picture, as plans of plain numbers.
 *
 *     struct compose *c;
 *     compose_open(&c, "switch:tau=3,deepcache=2", &err);
 *     compose_start(c, &facts, &err);                    // once a picture
 *     compose_next(c, &now, &action, &err);              // before each evaluation of the model
 *     compose_close(c);
 *
 * A strategy sees no tensor, file or device. It is told facts (how many adapters, their strengths, how many
 * steps) and before each evaluation where the picture stands, and answers with an action: passes over the
 * UNet, the adapters that act in each, and the weights by which the passes' outputs are mixed. What it answers
 * depends on nothing else, so it can be asked beforehand what a picture will cost, and a test reads its actions
 * as a table. The loop in generate.c does what it says.
 */
#ifndef WEFT_COMPOSE_H
#define WEFT_COMPOSE_H

#include "unet/err.h"
#include "unet/route.h"

#include <stdbool.h>
#include <stddef.h>

/* Acts: some adapters in each pass of as many others, all together no more than there may be. */
enum { COMPOSE_MAX_ACTS = 320 };
enum { COMPOSE_MAX_ADAPTERS = 32, COMPOSE_MAX_OPTIONS = 16, COMPOSE_COMMON = 2 };

/* The two halves of a guided evaluation, and the places of a pair of weights. */
enum half { HALF_UNCOND, HALF_COND };

struct compose_adapter {
    double strength; /* on the UNet */
    double high;     /* share of high frequencies in what it draws (profile.h); NAN: not measured */
    double part,
        match; /* how much of the prompt is its own (relevance.h), each summing to 1; 0 in all: unknown */
    int from, to; /* steps it acts in, counted from 1; 0: from the first, to the last */
    bool placed;  /* it has words, or a place: it is not meant for the whole picture */
    bool boxed;   /* it has a place */
};

struct compose_facts {
    int n_adapter;
    const struct compose_adapter
        *adapter; /* in the order they were given; kept until the last compose_next */
    int steps;
};

/* Where the picture stands. */
struct compose_now {
    int step;       /* of the sampler, counted from 0; several evaluations may belong to one */
    int eval;       /* counted from 0 */
    bool probe;     /* of a first phase, after which the picture begins anew */
    unsigned texts; /* the same number as long as the texts are the same */
};

/* An adapter in a pass: factors on its strength, one a half. 0: it does not act there. */
struct pass_act {
    int adapter;
    double w[2];
};

/* What a pass does with the input of the last up block (Ma, Fang & Wang 2024, "DeepCache"). */
enum deep {
    DEEP_PLAIN, /* nothing */
    DEEP_KEEP,  /* a whole pass, which keeps it in the pass's slot */
    DEEP_REUSE, /* a short pass: first level down, last level up, the slot between them */
};

/* Where each adapter acts, by where its words are attended to (maps.h). sharp 0: everywhere. when: masks follow from pass
 * to pass; are looked for, while all act everywhere; or stay as they were found (whole places, `leak` in others'). top: of how many adapters
 * at a place the gates let anything through, on the way down, in the middle and on the way up (0: of all), at the sites of
 * these kinds (unet/route.h). */
enum attend_when { ATTEND_FOLLOW, ATTEND_LOOK, ATTEND_FOUND };
struct attend {
    enum attend_when when;
    float sharp, leak, keep;
    int top[ROUTE_LEVELS];
    unsigned kinds;
};

struct pass {
    int act0, n_act; /* of the action's acts */
    double mix[2];   /* weight of its output in the mix, one a half; 0: that half is not run */
    enum deep deep;
    int slot;           /* up to the number of adapters */
    struct route route; /* of all its adapters' rank-1 pieces at each place; all 0: none */
    bool gated;         /* they go through the model's gates (unet/gates.h) */
    /* And so does what they have in common (unet/bind.h), of this rank and that much of it; 0: it is not added. */
    struct {
        int rank;
        float s;
    } common;
    struct attend attend;
    /* Adapters with a place or words have regions of their own in cross attention (areas.h), where they act besides only in
     * their places, or not at all; alone: and self attention is kept to them. */
    enum { REGIONS_NONE, REGIONS_PLACED, REGIONS_CROSS } regions;
    bool alone;
    /* Its output counts where adapter `owner` has its part, -1: where the base has (refine.h). */
    int owner;
    bool placed;
};

/* What is done to the picture before the passes (refine.h, layout.h). */
enum refine_how { REFINE_NONE, REFINE_CONTRAST, REFINE_LAYOUT };
struct refine_step {
    enum refine_how how;
    int times;  /* steps against the loss's gradient */
    float rate; /* of each */
    int divide; /* of the attentions at 1/divide of the latent's side */
    bool up;    /* only those on the way up */
    bool
        least; /* passes are looked at one by one, forth twice: as much memory for many as for one */
    bool halves; /* the maps are means over both halves, not of the prompt's alone */
    bool
        most; /* a place is one\'s alone, whose words have most of it, each map over its mean; else all share it who may have it */
    float
        mask; /* a place is an adapter's where its words have more than that of their largest; 0: parts stay */
    float enhance, fill, apart; /* how much each of the layout's losses counts */
    bool relay;                 /* and before all of that it is laid anew */
};

struct action {
    struct pass pass[COMPOSE_MAX_ADAPTERS + 1];
    struct pass_act act[COMPOSE_MAX_ACTS];
    int n_pass, n_act;
    struct refine_step refine;
};

/* An option of a strategy: a number, or with `choice` the index of one of these words. */
struct compose_option {
    const char *key, *help;
    double usual, min, max;
    const char *const *choice; /* ends with NULL; NULL: a number */
    bool whole;                /* the number is */
};

struct compose;
struct compose_strategy {
    const char *name;
    const char *about; /* one line */
    const char *more;  /* how, and whose */
    bool gates;        /* needs the model's */
    bool routes;       /* uses attend.top */
    bool weighs;       /* wants to know part and match */
    bool words;        /* and the adapters' words */
    bool regions;      /* adapters have regions (areas.h) */
    bool variants;     /* each pass sees its own adapter's trigger alone (variants.h) */
    /* Steps of a first phase, whose picture is thrown away; NULL: none. */
    int (*probe)(const struct compose *c);
    const struct compose_option *option; /* ends with key NULL; NULL: none of its own */
    /* Fills in passes with their acts and mix; deep features and `uncond` are laid over them by compose_next.
     * `here` are the adapters that act in this step, at least one. */
    void (*plan)(const struct compose *c, const struct compose_now *now, const int *here, int n,
                 struct action *a);
};
extern const struct compose_strategy *const compose_strategies[]; /* ends with NULL */
extern const struct compose_option compose_common[]; /* that all take besides; ends with key NULL */

struct compose {
    const struct compose_strategy *strategy;
    double option[COMPOSE_MAX_OPTIONS]; /* in the order of strategy->option */
    struct compose_facts facts;
    double common[COMPOSE_COMMON]; /* in the order of compose_common */
    bool probing;                  /* the last evaluation was of a first phase */
    struct kept {                  /* what each slot holds */
        int step;                  /* of the pass that kept it, -1: nothing */
        unsigned texts;
        bool half[2]; /* those it ran */
        int n_act;
        struct pass_act act[COMPOSE_MAX_ADAPTERS];
    } kept[COMPOSE_MAX_ADAPTERS + 1];
};

/* Reads NAME[:key=value,...]. ERR_ARG names what is wrong and what is known. */
int compose_open(struct compose **out, const char *text, struct err *err);
void compose_close(struct compose *c);
/* Begins a picture (again). ERR_ARG for more than COMPOSE_MAX_ADAPTERS adapters. */
int compose_start(struct compose *c, const struct compose_facts *facts, struct err *err);
/* The action of the next evaluation; `now` moves forward only, but for once, behind a first phase. */
void compose_next(struct compose *c, const struct compose_now *now, struct action *a);
/* Whether the adapters act alike in all passes of all steps that they act in, so that they could as well be
 * folded into the weights. */
bool compose_is_constant(const struct compose *c);

/* For strategies: opens a pass at the end, and adds an act to the last pass. */
struct pass *action_pass(struct action *a, double mix);
void action_act(struct action *a, int adapter, double w);

#endif
