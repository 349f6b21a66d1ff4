/* Chains of a batch, put together for one launch (chains.cuh). */
#include "chains.cuh"

#include <assert.h>

/* ---- launching ------------------------------------------------------------------------------- */

static size_t shared_bytes(int stride)
{
    return (size_t)(WARPS * PLACES * SUMS_ROW + PLACES * stride) * sizeof(float);
}

/* Words between rows of t, of a few sizes, so that ranks change nothing else: room for whole steps of a product, and such
 * that rows begin in banks of their own. 0: so many ranks are no work for this. */
static int stride_of(const struct cuda *c, const struct chain *chain)
{
    static const int strides[3] = {80, 272, 1040};
    int rank = chain->down->out;
    bool narrow = c->type != DT_F32 && !(chain->route && chain->route->keep > 0);
    for (int i = 0; i < 3; i++)
        if (rank <= (narrow ? 2 : 1) * strides[i])
            return shared_bytes(strides[i]) <= (size_t)c->shared_most ? strides[i] : 0;
    return 0;
}

static int go_chains(struct cuda *c, const void *args, const void *params)
{
    const chains_args &a = *(const chains_args *)args;
    dim3 grid((unsigned)a.blocks, (unsigned)a.splits);
#define CHAINS_AS(T)                                                                               \
    launch(c, add_chains<T>, grid, THREADS, shared_bytes(a.stride), a, (const chains_head *)params)
    return BY_TYPE(a.type, CHAINS_AS);
#undef CHAINS_AS
}

/* Chains, or rows of some, that are put together for one launch. */
struct batch {
    chains_args args;
    int n, n_part, rows;
    struct {
        chains_head head;
        part parts[PARTS_MOST];
    } params;
};

static void batch_begin(batch *b, const struct cuda *c, const struct chain *chain)
{
    b->args = zeroed<chains_args>();
    b->args.type = c->type;
    b->args.k = chain->x.c;
    b->args.n = chain->y.c;
    b->args.places = chain->x.h * chain->x.w;
    b->args.across = (int)div_up((size_t)b->args.places, PLACES);
    b->n = b->n_part = b->rows = 0;
    b->params.head = zeroed<chains_head>();
}

/* Where there are few blocks, each takes but some of y's columns, and t is made more than once. */
static int push_batch(struct device *dev, batch *b, struct err *err)
{
    chains_args *a = &b->args;
    int rows = 1, wanted, most = (int)div_up((size_t)a->n, WARPS * COLUMNS);
    if (!b->n)
        return 0;
    while (rows < b->rows)
        rows *= 2;
    a->blocks = rows * a->across;
    a->parts = parts_class(b->n_part);
    wanted = 2 * cuda_of(dev)->processors / a->blocks;
    wanted = wanted < 1 ? 1 : wanted < most ? wanted : most;
    a->share = (int)div_up((size_t)most, (size_t)wanted) * WARPS * COLUMNS;
    a->splits = (int)div_up((size_t)a->n, (size_t)a->share);
    memset((void *)(b->params.parts + b->n_part), 0, (size_t)(a->parts - b->n_part) * sizeof(part));
    for (int i = b->n; i <= CHAINS_MOST; i++)
        b->params.head.first[i] = b->rows * a->across;
    return cuda_push(dev, go_chains, a, sizeof *a, &b->params,
                     sizeof(chains_head) + (size_t)a->parts * sizeof(part), err);
}

/* As many of a chain's rows from the row-th on as there is room for. */
static int batch_put(batch *b, const struct chain *c, int row, const void *down, const void *up,
                     int stride)
{
    assert(c->n_part <= PARTS_MOST);
    int left = c->x.n - row, room = b->n < CHAINS_MOST ? PARTS_MOST - b->n_part : -1;
    bool one = c->alike || !c->n_part;
    int rows = room < c->n_part ? 0 : one ? left : room / c->n_part;
    if (rows < 1)
        return 0;
    rows = rows < left ? rows : left;
    struct tensor x = tensor_rows(&c->x, row, rows), y = tensor_rows(&c->y, row, rows);
    chain_item *to = &b->params.head.chain[b->n];
    to->x = x.data;
    to->y = y.data;
    to->down = down;
    to->up = up;
    to->s = (float)c->s;
    to->rank = c->down->out;
    to->route = routing_of(c->route, c->down->out);
    to->n_part = c->n_part;
    to->part = b->n_part;
    to->step = one ? 0 : c->n_part;
    for (int i = 0; i < (one ? 1 : rows); i++, b->n_part += c->n_part)
        parts_fill(b->params.parts + b->n_part,
                   c->part + (one ? 0 : (size_t)(row + i) * (size_t)c->n_part), c->n_part,
                   c->n_part);
    b->params.head.first[b->n++] = b->rows * b->args.across;
    b->rows += rows;
    b->args.stride = b->args.stride < stride ? stride : b->args.stride;
    return rows;
}

/* ---- one after another ------------------------------------------------------------------------- */

static int scale_rows(struct device *dev, const struct chain *c, int row, int n, struct err *err)
{
    struct share p[2 * GATE_MOST] = {};
    struct tensor t = tensor_rows(&c->t, row, n);
    int k = c->n_part ? c->n_part : 1;
    p[0].width = t.c;
    p[0].s = 1;
    assert(k <= 2 * GATE_MOST);
    if (c->n_part)
        memcpy(p, c->part + (c->alike ? 0 : (size_t)row * (size_t)k), (size_t)k * sizeof *p);
    for (int i = 0; i < k; i++)
        p[i].s *= (float)c->s;
    return cuda_scale(dev, &t, k, p, err);
}

/* A chain whose ranks are too many for shared memory, by products as layers have them. */
static int run_apart(struct device *dev, const struct chain *c, bool prepare, struct err *err)
{
    struct tensor t = c->t, y = c->y;
    if (prepare) {
        int rc = cuda_layer_prepare(dev, &t, c->down, &c->x, false, err);
        return rc < 0 ? rc : cuda_layer_prepare(dev, &y, c->up, &t, true, err);
    }
    int rc = cuda_layer(dev, &t, c->down, &c->x, false, err);
    int n = c->alike || !c->n_part ? t.n : 1;
    for (int row = 0; row < t.n && rc == 0; row += n)
        rc = scale_rows(dev, c, row, n, err);
    if (rc == 0 && c->route && c->route->keep > 0)
        rc = cuda_route(dev, &t, c->route, err);
    return rc < 0 ? rc : cuda_layer(dev, &y, c->up, &t, true, err);
}

static int put_chain(struct device *dev, batch *b, const struct chain *c, int stride, bool prepare,
                     struct err *err)
{
    struct err own;
    err = err ? err : &own;
    const void *down = cuda_weight(dev, c->down, err),
               *up = down ? cuda_weight(dev, c->up, err) : NULL;
    if (!up)
        return err->code;
    for (int row = 0, n; row < c->x.n && !prepare; row += n) {
        n = batch_put(b, c, row, down, up, stride);
        if (n)
            continue;
        int rc = push_batch(dev, b, err);
        if (rc < 0)
            return rc;
        batch_begin(b, cuda_of(dev), c);
    }
    return 0;
}

extern "C" int cuda_chains(struct device *dev, const struct chain *c, int n, bool prepare,
                           struct err *err)
{
    batch b;
    int rc = 0;
    if (n < 1)
        return 0;
    batch_begin(&b, cuda_of(dev), c);
    for (int i = 0; i < n && rc == 0; i++) {
        int stride = stride_of(cuda_of(dev), &c[i]);
        assert(!c[i].x.wide && !c[i].y.wide && c[i].x.c == c->x.c && c[i].y.c == c->y.c &&
               c[i].x.h * c[i].x.w == c->x.h * c->x.w);
        rc = stride ? put_chain(dev, &b, &c[i], stride, prepare, err)
                    : run_apart(dev, &c[i], prepare, err);
    }
    return rc < 0 ? rc : push_batch(dev, &b, err);
}
