/* That work which comes again is handed over as one graph, whatever its numbers are: coefficients, times, masks, strengths, and
 * which adapters; and that other shapes, or memory that moved, are other graphs. */
#include "check.h"

#include "unet/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WIDE = 24, PLACES = 12, RANKS = 2, LONG = 16 };

/* Two adapters of a linear layer, of other ranks, and what they act on. */
struct bench_of {
    struct device *dev;
    struct run r;
    struct layer down[RANKS], up[RANKS];
    float *values[2 * RANKS];
    enum dtype type;
    uint64_t seed;
};

static struct layer layer_of(int out, int in, float *w)
{
    struct layer l = {.name = "adapter", .site = -1, .out = out, .in = in};
    l.kh = l.kw = l.stride = 1;
    l.w = (struct array){.dtype = DT_F32, .ndim = 2, .data = w};
    l.w.dim[0] = (uint64_t)out;
    l.w.dim[1] = (uint64_t)in;
    return l;
}

static void open_bench(struct bench_of *f, struct device *dev, enum dtype type)
{
    static const int rank[RANKS] = {4, 7};
    *f = (struct bench_of){.dev = dev, .type = type, .seed = seed_of("lists", 1)};
    run_init(&f->r, dev);
    for (int i = 0; i < RANKS; i++) {
        size_t n = (size_t)(rank[i] * WIDE);
        for (int k = 0; k < 2; k++) {
            float *v = f->values[2 * i + k] = room_for(n, sizeof *v);
            fill(v, n, f->seed + (uint64_t)(2 * i + k));
            round_to(v, n, type);
            for (size_t j = 0; j < n; j++)
                v[j] *= k ? .5f : .125f;
        }
        f->down[i] = layer_of(rank[i], WIDE, f->values[2 * i]);
        f->up[i] = layer_of(WIDE, rank[i], f->values[2 * i + 1]);
    }
}

static void close_bench(struct bench_of *f)
{
    for (int i = 0; i < RANKS; i++) {
        layer_release(f->dev, &f->down[i]);
        layer_release(f->dev, &f->up[i]);
    }
    run_release(&f->r);
    for (int i = 0; i < 2 * RANKS; i++)
        free(f->values[i]);
}

/* A step of `places` places: its numbers follow `turn`, its adapter is the which-th. */
static struct tensor step(struct bench_of *f, int places, int turn, int which, bool prepare)
{
    struct run *r = &f->r;
    float v[PLACES * WIDE], at[PLACES];
    struct share part = {.width = f->down[which].out, .s = .5f + (float)turn};
    run_reset(r);
    if (prepare)
        run_prepare(r);
    struct tensor x = run_tensor(r, 1, places, 1, WIDE), y = run_like(r, &x);
    struct tensor mask =
        run_tensor(r, 1, places, 1, 2); /* of float32, also where values are 16 bits */
    fill(v, (size_t)(places * WIDE), f->seed + 100 + (uint64_t)turn);
    round_to(v, (size_t)(places * WIDE), f->type);
    for (int i = 0; i < places; i++)
        at[i] = (float)((i + turn) % 3) / 2;
    op_upload(r, &x, v);
    op_affine(r, &y, &x, .25 + turn, -.5);
    if (!r->measuring)
        f->dev->be->store(f->dev, mask.data, at, (size_t)places);
    part.at = mask.data;
    struct chain c = {.down = &f->down[which],
                      .up = &f->up[which],
                      .x = x,
                      .y = y,
                      .s = 1. / (1 + turn),
                      .part = &part,
                      .n_part = 1,
                      .alike = true};
    c.t = run_tensor(r, 1, places, 1, c.down->out);
    if (!r->err.code && f->dev->be->chains_all && (!r->measuring || prepare))
        f->dev->be->chains(f->dev, &c, 1, prepare, &r->err);
    else if (!r->err.code && !r->measuring)
        chains_apart(f->dev, &c, 1, &r->err);
    for (int i = 0; i < LONG; i++)
        op_affine(r, &y, &y, i % 2 ? .5 : 1.5, 0);
    return y;
}

static struct device_runs check_step(struct bench_of *f, struct bench_of *exact, int places,
                                     int turn, int which)
{
    struct err err;
    float got[PLACES * WIDE], want[PLACES * WIDE];
    struct tensor y = step(f, places, turn, which, false);
    must(run_check(&f->r, &err), &err, "turn %d", turn);
    must(f->dev->be->download(f->dev, got, &y, &err), &err, "turn %d", turn);
    y = step(exact, places, turn, which, false);
    must(run_check(&exact->r, &err), &err, "turn %d in double", turn);
    must(exact->dev->be->download(exact->dev, want, &y, &err), &err, "turn %d", turn);
    expect(error_of(got, want, (size_t)(places * WIDE), 0), LONG * bound_of(BOUND_ONCE, f->type),
           f->seed, "turn %d of %d places, adapter %d", turn, places, which);
    return f->dev->be->runs ? f->dev->be->runs(f->dev) : (struct device_runs){0};
}

static void check_graphs(struct device *dev, enum dtype type)
{
    struct bench_of f, exact;
    struct err err;
    open_bench(&f, dev, type);
    open_bench(&exact, device_exact(), type);
    for (int i = 0; i < RANKS; i++) {
        step(&f, PLACES, 0, i, true);
        must(run_commit(&f.r, &err), &err, "memory");
        step(&exact, PLACES, 0, i, true);
        must(run_commit(&exact.r, &err), &err, "memory in double");
    }
    struct device_runs was = dev->be->runs ? dev->be->runs(dev) : (struct device_runs){0}, is;
    for (int turn = 0; turn < 5; turn++)
        is = check_step(&f, &exact, PLACES, turn, turn % RANKS);
    if (dev->be->runs) {
        expect_that(is.lists - was.lists == 5, f.seed, "a list a step, not %ld of 5",
                    is.lists - was.lists);
        expect_that(is.captured - was.captured == 1 && is.graphs - was.graphs == 4, f.seed,
                    "one graph for all adapters, from the second step on: %ld made, %ld launched",
                    is.captured - was.captured, is.graphs - was.graphs);
    } else {
        skipped("this device does its work at once");
    }
    for (int turn = 0; turn < 4; turn++)
        is = check_step(&f, &exact, PLACES - 5 * (turn % 2), turn, 0);
    if (dev->be->runs)
        expect_that(is.captured - was.captured == 2 && is.graphs - was.graphs == 7, f.seed,
                    "another shape is another graph: %ld made, %ld launched",
                    is.captured - was.captured, is.graphs - was.graphs);
    close_bench(&f);
    close_bench(&exact);
}

const struct group list_groups[] = {{"lists/graphs", check_graphs, 0}, {NULL, NULL, 0}};
