/* route.h: how much each of several rank-1 pieces counts at a place, by how strongly it answers there. */
#ifndef WEFT_ROUTE_H
#define WEFT_ROUTE_H

/* Pieces answer a place with t_1..t_n; z_i = |t_i| / sqrt(sum_j t_j^2). Of piece i then counts
 *
 *     w_i = exp((z_i - max_j z_j) / tau)    among the ceil(keep n) strongest, where it is at least `least`; else 0
 *
 * that is their softmax at temperature tau over its own largest, so that great tau leaves everything as it is
 * (MoRA's self-activated experts; a sum of 1 would make little of many pieces). */
struct route {
    float tau, keep, least; /* keep 0: all count in full */
};

/* Or adapters are routed as wholes, at sites of some kinds, by level. */
enum route_level { ROUTE_DOWN, ROUTE_MIDDLE, ROUTE_UP, ROUTE_LEVELS };
enum { ROUTE_ATTENTION = 1, ROUTE_FF = 2, ROUTE_OTHER = 4, ROUTE_ALL = 7 };
/* By a site's name as diffusers has it. */
enum route_level route_level(const char *name);
unsigned route_kind(const char *name);

#endif
