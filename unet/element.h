/* element.h: arithmetic of single values that more than one backend does: what the CPU's tests find true of it holds on a
 * GPU too. In C it is inline functions; unet/cuda/device/device.cuh makes them functions of both sides.
 */
#ifndef WEFT_ELEMENT_H
#define WEFT_ELEMENT_H

#include <math.h>
#include <stdbool.h>

#ifndef ELEMENT
#define ELEMENT static inline
#endif

enum act { ACT_NONE, ACT_SILU, ACT_GELU, ACT_GELU_TANH, ACT_QUICK_GELU };

ELEMENT float element_sigmoid(float v)
{
    return 1 / (1 + expf(-v));
}

ELEMENT float element_act(float v, int act)
{
    switch (act) {
    case ACT_SILU: return v * element_sigmoid(v);
    case ACT_QUICK_GELU: return v * element_sigmoid(1.702f * v);
    case ACT_GELU: return 0.5f * v * (1 + erff(v * 0.70710678f));
    case ACT_GELU_TANH: return 0.5f * v * (1 + tanhf(0.79788456f * (v + 0.044715f * v * v * v)));
    default: return v;
    }
}

/* d act(v) / dv */
ELEMENT float element_slope(float v, int act)
{
    float s;
    switch (act) {
    case ACT_SILU: s = element_sigmoid(v); return s * (1 + v * (1 - s));
    case ACT_QUICK_GELU: s = element_sigmoid(1.702f * v); return s * (1 + 1.702f * v * (1 - s));
    case ACT_GELU:
        return 0.5f * (1 + erff(v * 0.70710678f)) + v * expf(-0.5f * v * v) * 0.39894228f;
    case ACT_GELU_TANH:
        s = tanhf(0.79788456f * (v + 0.044715f * v * v * v));
        return 0.5f * (1 + s) + 0.5f * v * (1 - s * s) * 0.79788456f * (1 + 3 * 0.044715f * v * v);
    default: return 1;
    }
}

/* torch's rule for "nearest": floor(to * from_size / to_size), in float32; scale = from_size / to_size. */
ELEMENT int element_nearest(int to, float scale, int from_size)
{
    int from = (int)floorf((float)to * scale);
    return from < from_size ? from : from_size - 1;
}

/* Whether a query in these regions must not see a key in those (struct attention). */
ELEMENT bool element_hidden(unsigned query, unsigned key)
{
    return query && key && !(query & key);
}

/* A w of GATE_SHUT lets nothing in, whatever the gates are; resampled, where most of a place is shut, and where less is
 * nothing is known of w: it counts as 0. */
enum { GATE_SHUT = -1000 };
ELEMENT bool gate_shut(float w)
{
    return w < GATE_SHUT / 2;
}
ELEMENT float gate_word(float w)
{
    return w < GATE_SHUT / 100 ? 0 : w;
}

/* struct share at one place: `at` is at[place], or where at is NULL 1, with a gate 0. */
ELEMENT float element_share(float s, bool gate, float bias, float words, float at)
{
    if (!gate)
        return s * at;
    return gate_shut(at) ? 0 : s * element_sigmoid(bias + words * gate_word(at));
}

/* How much counts of a piece that answers with v, the strongest with `most`, all together with `norm`, the root of their
 * squares (route.h). */
ELEMENT float element_route(float v, float most, float norm, float tau, float least)
{
    float w = expf((fabsf(v) - most) / norm / tau);
    return w >= least ? w : 0;
}

#endif
