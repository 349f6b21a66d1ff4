/* gates.cuh: what gates.cu and gates_back.cu share: gates in the parameters of a command, means and deviations. */
#ifndef WEFT_CUDA_GATES_CUH
#define WEFT_CUDA_GATES_CUH

#include "adapters.cuh"

enum {
    PLACES = 16,  /* of a block */
    COLUMNS = 32, /* channels that a warp takes at a time */
    STRANDS =
        32 /* sums over channels that are then put together: the k-th of columns k, k + STRANDS, ... */
};

struct gate_item {
    const void *u;
    const float *words;
    int width, at; /* its ranks, and where they begin in t and up */
    int staged;    /* and in shared memory */
    int pad;
};

/* The times' waves stand behind it, [rows, GATE_WAVES]. */
struct gate_head {
    const void *h, *t, *dy;
    void *y, *dh, *dt;
    const float *up, *gate;
    int n, ranks, pad[2];
    gate_item item[GATE_MOST];
};

struct gate_args {
    int type, c;
    int rows, places, across; /* rows of the batch; places of a row; blocks for them */
    int stride;        /* values between places of t in shared memory; 0: it is read where it is */
    int splits, share; /* of y's channels; how many are in each */
    int items, pad;    /* of norms; in gates_back.cu: places of a block */
    float2 *norms;     /* [blocks, items, PLACES], where they are made apart, else NULL */
    float *room;       /* of gates_back.cu, where shared memory is too small, else NULL */
};

/* Parameters, in host memory. */
struct gate_call {
    enum { ROWS_MOST = 512 };
    gate_head head;
    float wave[ROWS_MOST * GATE_WAVES];
    int staged; /* ranks in shared memory */

    size_t bytes(int rows) const
    {
        return sizeof head + (size_t)rows * GATE_WAVES * sizeof *wave;
    }

    /* For rows from the row-th on: of how many. */
    int begin(gate_args *a, const struct tensor *h, const struct gating *in, int row)
    {
        int n = h->n - row < ROWS_MOST ? h->n - row : (int)ROWS_MOST;
        a->type = cuda_of(h->dev)->type;
        a->c = h->c;
        a->rows = n;
        a->places = h->h * h->w;
        a->across = (int)div_up((size_t)a->places, PLACES);
        head = zeroed<gate_head>();
        head.h = tensor_rows(h, row, n).data;
        head.t = in->t ? tensor_rows(in->t, row, n).data : NULL;
        head.ranks = in->t ? in->t->c : 0;
        head.up = in->up;
        head.gate = in->gate;
        head.n = in->n;
        staged = 0;
        for (int i = 0, at = 0; i < in->n; i++) {
            head.item[i].u = in->u[i] ? tensor_rows(in->u[i], row, n).data : NULL;
            head.item[i].words = in->words[i];
            head.item[i].width = in->width[i];
            head.item[i].at = at;
            head.item[i].staged = staged;
            at += in->width[i];
            staged += (in->width[i] + 15) / 16 * 16;
        }
        memcpy(wave, in->wave + (size_t)row * GATE_WAVES, (size_t)n * GATE_WAVES * sizeof *wave);
        return n;
    }
};

/* Of n values: their mean, and squares of what they differ by from it. Put together as by Chan et al. 1979. */
struct moments {
    float n, mean, m2;

    __device__ __forceinline__ void merge(const moments &b)
    {
        float all = n + b.n, part = b.n > 0 ? b.n / all : 0, d = b.mean - mean;
        m2 += b.m2 + d * d * n * part;
        mean += d * part;
        n = all;
    }

    /* The first `left` of eight, which may be none. */
    __device__ __forceinline__ void add(const float (&v)[8], int left)
    {
        moments b = {(float)max(min(left, 8), 0), 0, 0};
        UNROLL
        for (int i = 0; i < 8; i++)
            b.mean += i < left ? v[i] : 0;
        b.mean /= fmaxf(b.n, 1);
        UNROLL
        for (int i = 0; i < 8; i++)
            b.m2 += i < left ? (v[i] - b.mean) * (v[i] - b.mean) : 0;
        merge(b);
    }

    /* Those of the lane whose number differs in such a bit. */
    __device__ __forceinline__ moments of_lane(int by) const
    {
        return {__shfl_xor_sync(0xffffffffu, n, by), __shfl_xor_sync(0xffffffffu, mean, by),
                __shfl_xor_sync(0xffffffffu, m2, by)};
    }
};

#endif
