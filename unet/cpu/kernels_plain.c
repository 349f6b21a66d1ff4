/* Vectors of four, as every processor has; no instruction set is named. */
#define VW    4
#define MR    4
#define VF    float __attribute__((vector_size(16)))
#define VI    int __attribute__((vector_size(16)))
#define V_MAX plain_max
#define V_MIN plain_min

#include <string.h>

static inline VF plain_pick(VI mask, VF a, VF b)
{
    VI x, y;
    memcpy(&x, &a, sizeof x);
    memcpy(&y, &b, sizeof y);
    x = (mask & x) | (~mask & y);
    memcpy(&a, &x, sizeof a);
    return a;
}

static inline VF plain_max(VF a, VF b)
{
    return plain_pick(a > b, a, b);
}

static inline VF plain_min(VF a, VF b)
{
    return plain_pick(a < b, a, b);
}

#define TABLE      kernels_plain
#define TABLE_NAME "plain"
#include "kernels.inc"
