/* ops_branches.h: what ops.c and ops_layer.c share: which of the branches in force act at a site. */
#ifndef WEFT_OPS_BRANCHES_H
#define WEFT_OPS_BRANCHES_H

#include "bind.h"
#include "gates.h"
#include "ops.h"

/* What a gating's arrays point to. */
struct gating_room {
    const struct tensor *at[GATE_MOST];
    const float *words[GATE_MOST];
    int width[GATE_MOST];
};

/* True where the op is to be computed now. */
static inline bool live(const struct run *r)
{
    return !r->err.code && !r->measuring;
}

/* Whether gates at a site are no more than a share of what a branch adds. */
static inline bool is_shared(const struct run *r, const struct branch *b, int site)
{
    return b->gated && r->gates && gates_plain(r->gates, site);
}

/* Whether what a branch adds at a site goes through gates there, other than as a share. (Without a joint there was no memory for it.) */
static inline bool is_gated(const struct run *r, const struct branch *b, int site)
{
    return b->gated && b->joint && r->gates && r->gates->at[site] && !is_shared(r, b, site);
}

/* What a branch does at a site, unless that goes through gates; or NULL. */
static inline const struct bound *acts(const struct run *r, const struct branch *b, int site)
{
    const struct bound *d = site < 0 || b->strength == 0 ? NULL : b->adapter->at[site];
    return d && !is_gated(r, b, site) ? d : NULL;
}

/* Of all branches in force: the next bound delta after *b of branch *i, or NULL at the end. Begin with *i = -1. */
static inline const struct bound *next_bound(const struct run *r, int site, int *i,
                                             const struct bound *b)
{
    b = b ? b->next : NULL;
    while (!b && ++*i < r->n_branch)
        b = acts(r, &r->branch[*i], site);
    return b;
}

/* Whether all that a branch adds at a layer comes in whole, whatever its strength. b NULL: it does. */
bool is_whole(const struct run *r, const struct branch *b, const struct layer *l);
/* t *= how much of what the branch adds comes in. */
void op_share(struct run *r, struct tensor *t, const struct branch *b, const struct layer *l);
/* t, the ranks of a joint's parts, by their strengths and how much of them comes in; b[0] is the first of its branches. */
void op_shares(struct run *r, struct tensor *t, const struct joined *j, const struct branch *b,
               const struct layer *l);
/* Whether any branch goes through gates there, other than as a share. */
bool any_gated(const struct run *r, int site);
/* The layer alone, as the run has it: folded, with gains of branches. */
void base_layer(struct run *r, struct tensor *y, const struct layer *l, const struct tensor *x,
                bool accumulate);
/* What goes into a joint's gates, whose first branch is b: products come down as t, all else of its adapters is made into u
 * [GATE_MOST]; the arrays have room for as many. */
struct gating gating_of(struct run *r, const struct layer *l, const struct tensor *h,
                        const struct branch *b, const struct tensor *x, struct tensor *t,
                        struct tensor *u, struct gating_room *room);
bool has_gain(const struct run *r, int site);

#endif
