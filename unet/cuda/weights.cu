/* Weights on their way to the device: types and orders; and what layers need around a library's convolution and product. */
#include "packs.cuh"

#include <assert.h>

/* ---- types and orders ------------------------------------------------------------------------ */

template <class To, class From, int N>
static __global__ void __launch_bounds__(256) convert(To *y, const From *x, size_t n)
{
    size_t at = ((size_t)blockIdx.x * blockDim.x + threadIdx.x) * N;
    if (at + N <= n) {
        float v[N];
        pack_load(v, x + at);
        pack_store(y + at, v);
        return;
    }
    for (; at < n; at++)
        y[at] = from_float<To>(to_float(x[at]));
}

template <class To, class From>
static int convert_as(struct cuda *c, void *y, const void *x, size_t n)
{
    To *to = (To *)y;
    const From *from = (const From *)x;
    if (in_packs(x) && in_packs(y))
        return launch(c, convert<To, From, 8>, div_up(n, 256 * 8), 256, 0, to, from, n);
    return launch(c, convert<To, From, 1>, div_up(n, 256), 256, 0, to, from, n);
}

template <class From>
static int convert_from(struct cuda *c, void *y, enum dtype to, const void *x, size_t n)
{
#define CONVERT_AS(T) convert_as<T, From>(c, y, x, n)
    return BY_TYPE(to, CONVERT_AS);
#undef CONVERT_AS
}

extern "C" int cuda_convert(struct cuda *c, void *y, enum dtype to, const void *x, enum dtype from,
                            size_t n)
{
    if (n == 0)
        return 0;
    if (to == from)
        return cuda_failed(c, cudaMemcpyAsync(y, x, n * (to == DT_F32 ? 4 : 2),
                                              cudaMemcpyDeviceToDevice, c->stream));
#define CONVERT_FROM(T) convert_from<T>(c, y, to, x, n)
    return BY_TYPE(from, CONVERT_FROM);
#undef CONVERT_FROM
}

/* A block takes 256 of `in`, of one of `out`: what it reads apart lies together, and stays in the cache until all is taken. */
template <class To, class From>
static __global__ void __launch_bounds__(256) turn(To *y, const From *x, int in, int places)
{
    unsigned pieces = ((unsigned)in + 255) / 256;
    size_t out = blockIdx.x / pieces;
    int i = (int)(blockIdx.x % pieces * 256 + threadIdx.x);
    if (i >= in)
        return;
    x += (out * in + i) * places;
    y += out * in * places + i;
    for (int k = 0; k < places; k++)
        y[(size_t)k * in] = from_float<To>(to_float(x[k]));
}

struct turn_of {
    void *y;
    const void *x;
    int out, in, places;
};

template <class To, class From> static int turn_as(struct cuda *c, const turn_of &t)
{
    return launch(c, turn<To, From>, (unsigned)t.out * div_up((size_t)t.in, 256), 256, 0, (To *)t.y,
                  (const From *)t.x, t.in, t.places);
}

template <class From> static int turn_from(struct cuda *c, const turn_of &t, enum dtype to)
{
#define TURN_AS(T) turn_as<T, From>(c, t)
    return BY_TYPE(to, TURN_AS);
#undef TURN_AS
}

extern "C" int cuda_convert_weight(struct cuda *c, void *y, enum dtype to, const void *x,
                                   enum dtype from, int out, int in, int kh, int kw)
{
    const turn_of t = {y, x, out, in, kh * kw};
    if (t.places == 1)
        return cuda_convert(c, y, to, x, from, (size_t)out * (size_t)in);
#define TURN_FROM(T) turn_from<T>(c, t, to)
    return BY_TYPE(from, TURN_FROM);
#undef TURN_FROM
}

/* ---- around layers --------------------------------------------------------------------------- */

/* x [n, h, w, c] within y [n, to_h, to_w, c], from (top, left) on. */
struct frame {
    size_t c;
    int h, w, to_h, to_w, top, left;
};

static frame frame_of(const struct tensor *x, const int pad[4])
{
    frame f = zeroed<frame>();
    f.c = (size_t)x->c;
    f.h = x->h;
    f.w = x->w;
    f.to_h = x->h + pad[0] + pad[2];
    f.to_w = x->w + pad[1] + pad[3];
    f.top = pad[0];
    f.left = pad[1];
    return f;
}

struct pad : each {
    void *y;
    const void *x;
    frame f;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        size_t place = at / f.c, line = place / f.to_w, row = line / f.to_h;
        int i = (int)(line - row * f.to_h) - f.top, j = (int)(place - line * f.to_w) - f.left;
        if (i >= 0 && j >= 0 && i < f.h && j < f.w) {
            pack_copy<N>((T *)y + at,
                         (const T *)x + ((row * f.h + i) * f.w + j) * f.c + (at - place * f.c));
        } else {
            const float none[N] = {};
            pack_store((T *)y + at, none);
        }
    }
};

extern "C" int cuda_pad(struct device *dev, void *y, const struct tensor *x, const int pad_[4],
                        struct err *err)
{
    const frame f = frame_of(x, pad_);
    pad a = each_of<pad>(dev, (size_t)x->n * (size_t)f.to_h * (size_t)f.to_w * f.c, f.c);
    assert(!x->wide);
    a.y = y;
    a.x = x->data;
    a.f = f;
    a.packed &= in_packs(a.y) && in_packs(a.x);
    return push_each(dev, a, NULL, 0, err);
}

struct unpad : each {
    void *dx;
    const void *dy;
    frame f;
    int add, pad;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        size_t place = at / f.c, line = place / f.w, row = line / f.h;
        size_t i = line - row * f.h + f.top, j = place - line * f.w + f.left;
        float d[N];
        pack_load(d, (const T *)dy + ((row * f.to_h + i) * f.to_w + j) * f.c + (at - place * f.c));
        pack_put((T *)dx + at, d, add);
    }
};

extern "C" int cuda_unpad(struct device *dev, struct tensor *dx, const void *dy, const int pad_[4],
                          bool add, struct err *err)
{
    unpad a = each_of<unpad>(dev, tensor_count(dx), (size_t)dx->c);
    assert(!dx->wide);
    a.dx = dx->data;
    a.dy = dy;
    a.f = frame_of(dx, pad_);
    a.add = add;
    a.packed &= in_packs(a.dx) && in_packs(a.dy);
    return push_each(dev, a, NULL, 0, err);
}

/* b is of the device's type, as a weight is. */
struct bias : each {
    void *y;
    const void *b;
    size_t c;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        float v[N];
        pack_load(v, (const T *)b + at % c);
        pack_put((T *)y + at, v, true);
    }
};

extern "C" int cuda_bias(struct device *dev, struct tensor *y, const void *b, struct err *err)
{
    bias a = each_of<bias>(dev, tensor_count(y), (size_t)y->c);
    assert(!y->wide);
    a.y = y->data;
    a.b = b;
    a.c = (size_t)y->c;
    a.packed &= in_packs(a.y) && in_packs(a.b);
    return push_each(dev, a, NULL, 0, err);
}
