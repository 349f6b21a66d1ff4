/* The arithmetic of single values that GPUs share with the CPU (element.h), against the same in double and against ref64. */
#include "unet/element.h"
#include "unet/ops.h"
#include "util.h"

#include <criterion/criterion.h>
#include <math.h>
#include <stdlib.h>

enum { N = 4001 };

/* From -20 to 20, and 0. */
static float value(int i)
{
    return (float)(i - N / 2) / 100;
}

/* What ref64 makes of the values with one op; new. */
static float *ref64(enum act act, const float *dy)
{
    struct device *dev = test_device("ref64");
    struct run r;
    struct err err;
    float *x = malloc(N * sizeof *x), *out = malloc(N * sizeof *out);
    struct tensor t, d;
    for (int i = 0; i < N; i++)
        x[i] = value(i);
    run_init(&r, dev);
    for (int turn = 0; turn < 2; turn++) {
        if (turn == 0)
            run_measure(&r);
        else
            cr_assert_eq(run_commit(&r, &err), 0, "%s", err.msg);
        t = run_tensor(&r, 1, N, 1, 1);
        d = run_like(&r, &t);
    }
    op_upload(&r, &t, x);
    if (dy) {
        op_upload(&r, &d, dy);
        dev->be->activate_back(dev, &d, &t, act, &d, false, &err);
    } else {
        op_activate(&r, &d, &t, act);
    }
    dev->be->download(dev, out, &d, &err);
    run_release(&r);
    device_close(dev);
    free(x);
    return out;
}

Test(element, activations_and_slopes_are_those_of_double)
{
    float one[N];
    for (int i = 0; i < N; i++)
        one[i] = 1;
    for (int act = ACT_NONE; act <= ACT_QUICK_GELU; act++) {
        float *want = ref64((enum act)act, NULL), *slope = ref64((enum act)act, one);
        for (int i = 0; i < N; i++) {
            float v = value(i), size = fabsf(v) + 1;
            cr_assert_leq(fabsf(element_act(v, act) - want[i]), 4e-7f * size, "act %d of %g", act,
                          (double)v);
            cr_assert_leq(fabsf(element_slope(v, act) - slope[i]), 2e-6f * size, "slope %d of %g",
                          act, (double)v);
        }
        free(want);
        free(slope);
    }
}

Test(element, nearest_is_the_row_that_torch_takes)
{
    for (int from = 1; from < 40; from++)
        for (int to = 1; to < 90; to++)
            for (int i = 0; i < to; i++) {
                int at = element_nearest(i, (float)from / (float)to, from);
                cr_assert(at >= 0 && at < from);
                for (int k = 1; k <= 32; k *= 2) /* where float32 has the quotient */
                    cr_assert(to != k * from || at == i / k, "%d of %d to %d", i, to, from);
            }
}

Test(element, who_is_hidden_from_whom)
{
    cr_assert(element_hidden(1, 2) && element_hidden(6, 8));
    cr_assert(!element_hidden(3, 2) && !element_hidden(0, 2) && !element_hidden(1, 0));
}

Test(element, shares_are_gates_or_numbers)
{
    cr_assert_float_eq(element_share(2, false, 0, 0, .25f), .5f, 1e-7);
    cr_assert_float_eq(element_share(2, true, .5f, 3, .25f), 2 / (1 + exp(-1.25)), 1e-6);
    cr_assert_eq(element_share(2, true, .5f, 3, GATE_SHUT), 0);
    /* resampled, mostly open: nothing is known of w */
    cr_assert_float_eq(element_share(2, true, .5f, 3, GATE_SHUT / 50.f), 2 / (1 + exp(-.5)), 1e-6);
}

Test(element, routes_are_those_of_ref64)
{
    enum { PIECES = 7 };
    const float t[PIECES] = {.5f, -2, 1, 0, -.25f, 1.5f, .75f};
    const struct route how = {.tau = .3f, .keep = 1, .least = .2f};
    struct device *dev = test_device("ref64");
    struct run r;
    struct err err;
    struct tensor x;
    float want[PIECES], most = 2, sum = 0;
    run_init(&r, dev);
    run_measure(&r);
    run_tensor(&r, 1, 1, 1, PIECES);
    cr_assert_eq(run_commit(&r, &err), 0, "%s", err.msg);
    x = run_tensor(&r, 1, 1, 1, PIECES);
    op_upload(&r, &x, t);
    op_route(&r, &x, &how);
    dev->be->download(dev, want, &x, &err);
    for (int i = 0; i < PIECES; i++)
        sum += t[i] * t[i];
    for (int i = 0; i < PIECES; i++)
        cr_assert_float_eq(t[i] * element_route(t[i], most, sqrtf(sum), how.tau, how.least),
                           want[i], 1e-6, "piece %d", i);
    run_release(&r);
    device_close(dev);
}
