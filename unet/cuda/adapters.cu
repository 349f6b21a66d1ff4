/* What adapters do to tensors as a whole: gains, shares, routes. Their products are in chains.cu, gates in gates.cu. */
#include "adapters.cuh"
#include "packs.cuh"

#include <assert.h>

/* ---- gains ----------------------------------------------------------------------------------- */

struct gain_params {
    const float *gain, *shift; /* shift NULL: 0 */
    float s, pad[3];
};

/* y += s (gain o h + shift) */
struct gaining : each {
    void *y;
    const void *h;
    size_t c;

    template <class T, int N> __device__ void make(size_t at, const void *params) const
    {
        const gain_params &p = *(const gain_params *)params;
        size_t channel = at % c;
        float v[N], gain[N], shift[N] = {};
        pack_load(v, (const T *)h + at);
        pack_load(gain, p.gain + channel);
        if (p.shift)
            pack_load(shift, p.shift + channel);
        for (int i = 0; i < N; i++)
            v[i] = p.s * (gain[i] * v[i] + shift[i]);
        pack_put((T *)y + at, v, true);
    }
};

extern "C" int cuda_gain(struct device *dev, struct tensor *y, const struct tensor *h, double s,
                         const float *gain, const float *shift, struct err *err)
{
    gaining a = each_of<gaining>(dev, tensor_count(y), (size_t)y->c);
    gain_params p = zeroed<gain_params>();
    assert(!y->wide && !h->wide);
    a.y = y->data;
    a.h = h->data;
    a.c = (size_t)y->c;
    a.packed &= in_packs(a.y) && in_packs(a.h) && in_packs(gain) && in_packs(shift);
    p.gain = gain;
    p.shift = shift;
    p.s = (float)s;
    return push_each(dev, a, &p, sizeof p, err);
}

/* ---- shares ---------------------------------------------------------------------------------- */

/* y *= the share in each part of its channels */
struct scaling : each {
    void *y;
    size_t c, places;

    template <class T, int N> __device__ void make(size_t at, const void *params) const
    {
        const part *p = (const part *)params;
        size_t row = at / c;
        int place = (int)(row % places), channel = (int)(at - row * c);
        float v[N];
        while (p->end <= channel)
            p++;
        float f = share_at(*p, place);
        pack_load(v, (const T *)y + at);
        for (int i = 0; i < N; i++) {
            if (channel + i >= p->end) {
                while (p->end <= channel + i)
                    p++;
                f = share_at(*p, place);
            }
            v[i] *= f;
        }
        pack_store((T *)y + at, v);
    }
};

extern "C" int cuda_scale(struct device *dev, struct tensor *y, int n, const struct share *shares,
                          struct err *err)
{
    scaling a = each_of<scaling>(dev, tensor_count(y), (size_t)y->c);
    part p[256];
    int room = parts_class(n);
    assert(!y->wide && n <= 256);
    parts_fill(p, shares, n, room);
    a.y = y->data;
    a.c = (size_t)y->c;
    a.places = (size_t)y->h * (size_t)y->w;
    a.packed &= in_packs(a.y);
    return push_each(dev, a, p, (size_t)room * sizeof *p, err);
}

/* ---- routes ---------------------------------------------------------------------------------- */

struct route_args {
    void *t;
    size_t rows;
    int c, type;
};

enum { ROUTE_WARPS = 8 };

template <class T>
__global__ void __launch_bounds__(ROUTE_WARPS * 32)
    route_rows(const route_args a, const routing *how)
{
    size_t row = (size_t)blockIdx.x * ROUTE_WARPS + threadIdx.x / 32;
    if (row < a.rows)
        route_row((T *)a.t + row * a.c, a.c, *how, (int)threadIdx.x % 32);
}

static int go_route(struct cuda *c, const void *args, const void *params)
{
    const route_args &a = *(const route_args *)args;
    unsigned blocks = div_up(a.rows, ROUTE_WARPS);
#define ROUTE_AS(T)                                                                                \
    launch(c, route_rows<T>, blocks, ROUTE_WARPS * 32, 0, a, (const routing *)params)
    return BY_TYPE(a.type, ROUTE_AS);
#undef ROUTE_AS
}

extern "C" int cuda_route(struct device *dev, struct tensor *t, const struct route *how,
                          struct err *err)
{
    route_args a = zeroed<route_args>();
    routing r = routing_of(how, t->c);
    assert(!t->wide && r.keep > 0);
    a.t = t->data;
    a.rows = tensor_count(t) / (size_t)t->c;
    a.c = t->c;
    a.type = cuda_of(dev)->type;
    return cuda_push(dev, go_route, &a, sizeof a, &r, sizeof r, err);
}
