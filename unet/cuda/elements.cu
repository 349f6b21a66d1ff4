/* Value by value: sums, activations, what is put side by side and made larger, and the ways back. */
#include "packs.cuh"

#include <assert.h>

/* ---- sums ------------------------------------------------------------------------------------ */

enum { TERMS_MOST = 16 };

struct sum_params {
    float coef[TERMS_MOST], shift, clamp;
};

/* y = clamp(sum coef x + shift). Bit k of wide: x[k] is float32 whatever T is; bit TERMS_MOST: y is. */
struct sum : each {
    void *y;
    const void *x[TERMS_MOST];
    int terms;
    unsigned wide;

    template <class T, int N> __device__ void make(size_t at, const void *params) const
    {
        const sum_params &p = *(const sum_params *)params;
        float v[N], s[N];
        for (int i = 0; i < N; i++)
            s[i] = p.shift;
        for (int k = 0; k < terms; k++) {
            float f = p.coef[k];
            if (wide >> k & 1)
                pack_load(v, (const float *)x[k] + at);
            else
                pack_load(v, (const T *)x[k] + at);
            for (int i = 0; i < N; i++)
                s[i] += f * v[i];
        }
        if (p.clamp > 0)
            for (int i = 0; i < N; i++)
                s[i] = s[i] > p.clamp ? p.clamp : s[i] < -p.clamp ? -p.clamp : s[i];
        if (wide >> TERMS_MOST & 1)
            pack_store((float *)y + at, s);
        else
            pack_store((T *)y + at, s);
    }
};

static int push_sum(struct device *dev, struct tensor *y, int n, const struct tensor *const *x,
                    const sum_params *p, struct err *err)
{
    sum a = each_of<sum>(dev, tensor_count(y), 0);
    a.y = y->data;
    a.terms = n;
    a.packed = in_packs(y->data);
    a.wide = (unsigned)y->wide << TERMS_MOST;
    for (int k = 0; k < n; k++) {
        a.x[k] = x[k]->data;
        a.packed &= in_packs(x[k]->data);
        a.wide |= (unsigned)x[k]->wide << k;
    }
    return push_each(dev, a, p, sizeof *p, err);
}

extern "C" int cuda_lincomb(struct device *dev, struct tensor *y, int n, const double *coef,
                            const struct tensor *const *x, double clamp, struct err *err)
{
    sum_params p = zeroed<sum_params>();
    if (n < 1 || n > TERMS_MOST)
        return err_set(err, ERR_ARG, "a sum of %d tensors; 1 to %d can be had", n, TERMS_MOST);
    for (int k = 0; k < n; k++)
        p.coef[k] = (float)coef[k];
    p.clamp = (float)clamp;
    return push_sum(dev, y, n, x, &p, err);
}

extern "C" int cuda_affine(struct device *dev, struct tensor *y, const struct tensor *x, double a,
                           double b, struct err *err)
{
    sum_params p = zeroed<sum_params>();
    p.coef[0] = (float)a;
    p.shift = (float)b;
    return push_sum(dev, y, 1, &x, &p, err);
}

/* ---- activations ----------------------------------------------------------------------------- */

struct activation : each {
    void *y;
    const void *x;
    int act, pad;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        float v[N];
        pack_load(v, (const T *)x + at);
        pack_act(v, act);
        pack_store((T *)y + at, v);
    }
};

extern "C" int cuda_activate(struct device *dev, struct tensor *y, const struct tensor *x,
                             enum act act, struct err *err)
{
    activation a = each_of<activation>(dev, tensor_count(x), 0);
    assert(!x->wide && !y->wide);
    a.y = y->data;
    a.x = x->data;
    a.act = act;
    a.packed = in_packs(a.y) && in_packs(a.x);
    return push_each(dev, a, NULL, 0, err);
}

struct activation_back : each {
    void *dx;
    const void *x, *dy;
    int act, add;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        float v[N], d[N];
        pack_load(v, (const T *)x + at);
        pack_load(d, (const T *)dy + at);
        pack_slope(d, v, act);
        pack_put((T *)dx + at, d, add);
    }
};

extern "C" int cuda_activate_back(struct device *dev, struct tensor *dx, const struct tensor *x,
                                  enum act act, const struct tensor *dy, bool add, struct err *err)
{
    activation_back a = each_of<activation_back>(dev, tensor_count(x), 0);
    assert(!x->wide && !dx->wide && !dy->wide);
    a.dx = dx->data;
    a.x = x->data;
    a.dy = dy->data;
    a.act = act;
    a.add = add;
    a.packed = in_packs(a.dx) && in_packs(a.x) && in_packs(a.dy);
    return push_each(dev, a, NULL, 0, err);
}

/* x [rows, 2c], y [rows, c] */
struct geglu : each {
    void *y;
    const void *x;
    size_t c;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        const T *from = (const T *)x + at / c * c + at;
        float v[N], gate[N];
        pack_load(v, from);
        pack_load(gate, from + c);
        for (int i = 0; i < N; i++)
            v[i] *= element_act(gate[i], ACT_GELU);
        pack_store((T *)y + at, v);
    }
};

extern "C" int cuda_geglu(struct device *dev, struct tensor *y, const struct tensor *x,
                          struct err *err)
{
    geglu a = each_of<geglu>(dev, tensor_count(y), (size_t)y->c);
    assert(!x->wide && !y->wide);
    a.y = y->data;
    a.x = x->data;
    a.c = (size_t)y->c;
    a.packed &= in_packs(a.y) && in_packs(a.x);
    return push_each(dev, a, NULL, 0, err);
}

/* Made are packs of dy's size: both of dx that come of one of dy. */
struct geglu_back : each {
    void *dx;
    const void *x, *dy;
    size_t c;
    int add, pad;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        size_t to = at / c * c + at;
        float v[N], gate[N], d[N], e[N];
        pack_load(v, (const T *)x + to);
        pack_load(gate, (const T *)x + to + c);
        pack_load(d, (const T *)dy + at);
        for (int i = 0; i < N; i++) {
            e[i] = d[i] * v[i] * element_slope(gate[i], ACT_GELU);
            d[i] *= element_act(gate[i], ACT_GELU);
        }
        pack_put((T *)dx + to, d, add);
        pack_put((T *)dx + to + c, e, add);
    }
};

extern "C" int cuda_geglu_back(struct device *dev, struct tensor *dx, const struct tensor *x,
                               const struct tensor *dy, bool add, struct err *err)
{
    geglu_back a = each_of<geglu_back>(dev, tensor_count(dy), (size_t)dy->c);
    assert(!x->wide && !dx->wide && !dy->wide);
    a.dx = dx->data;
    a.x = x->data;
    a.dy = dy->data;
    a.c = (size_t)dy->c;
    a.add = add;
    a.packed &= in_packs(a.dx) && in_packs(a.x) && in_packs(a.dy);
    return push_each(dev, a, NULL, 0, err);
}

/* ---- side by side ---------------------------------------------------------------------------- */

struct concat : each {
    void *y;
    const void *a, *b;
    size_t ca, cb;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        size_t row = at / (ca + cb), i = at - row * (ca + cb);
        pack_copy<N>((T *)y + at,
                     i < ca ? (const T *)a + row * ca + i : (const T *)b + row * cb + i - ca);
    }
};

extern "C" int cuda_concat(struct device *dev, struct tensor *y, const struct tensor *a,
                           const struct tensor *b, struct err *err)
{
    concat s = each_of<concat>(dev, tensor_count(y), (size_t)a->c);
    assert(!y->wide && !a->wide && !b->wide);
    s.y = y->data;
    s.a = a->data;
    s.b = b->data;
    s.ca = (size_t)a->c;
    s.cb = (size_t)b->c;
    s.packed &= s.cb % 8 == 0 && in_packs(s.y) && in_packs(s.a) && in_packs(s.b);
    return push_each(dev, s, NULL, 0, err);
}

/* da, db: NULL where they are not wanted. */
struct concat_back : each {
    void *da, *db;
    const void *dy;
    size_t ca, cb;
    int add_a, add_b;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        size_t row = at / (ca + cb), i = at - row * (ca + cb);
        bool first = i < ca;
        if (!(first ? da : db))
            return;
        float d[N];
        pack_load(d, (const T *)dy + at);
        pack_put(first ? (T *)da + row * ca + i : (T *)db + row * cb + i - ca, d,
                 first ? add_a : add_b);
    }
};

extern "C" int cuda_concat_back(struct device *dev, struct tensor *da, bool add_a,
                                struct tensor *db, bool add_b, const struct tensor *dy,
                                struct err *err)
{
    if (!da && !db)
        return 0;
    int ca = da ? da->c : dy->c - db->c;
    concat_back a = each_of<concat_back>(dev, tensor_count(dy), (size_t)ca);
    assert(!dy->wide && !(da && da->wide) && !(db && db->wide));
    a.da = da ? da->data : NULL;
    a.db = db ? db->data : NULL;
    a.dy = dy->data;
    a.ca = (size_t)ca;
    a.cb = (size_t)(dy->c - ca);
    a.add_a = add_a;
    a.add_b = add_b;
    a.packed &= a.cb % 8 == 0 && in_packs(a.da) && in_packs(a.db) && in_packs(a.dy);
    return push_each(dev, a, NULL, 0, err);
}

/* ---- larger ---------------------------------------------------------------------------------- */

/* Between x [n, h, w, c] and y [n, to_h, to_w, c]. */
struct sizes {
    size_t c;
    int h, w, to_h, to_w;
    float scale_h, scale_w;
};

static sizes sizes_of(const struct tensor *x, const struct tensor *y)
{
    sizes s = zeroed<sizes>();
    s.c = (size_t)x->c;
    s.h = x->h;
    s.w = x->w;
    s.to_h = y->h;
    s.to_w = y->w;
    s.scale_h = (float)x->h / (float)y->h;
    s.scale_w = (float)x->w / (float)y->w;
    return s;
}

struct upsample : each {
    void *y;
    const void *x;
    sizes s;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        size_t place = at / s.c, line = place / s.to_w, row = line / s.to_h;
        int i = element_nearest((int)(line - row * s.to_h), s.scale_h, s.h);
        int j = element_nearest((int)(place - line * s.to_w), s.scale_w, s.w);
        pack_copy<N>((T *)y + at,
                     (const T *)x + ((row * s.h + i) * s.w + j) * s.c + (at - place * s.c));
    }
};

extern "C" int cuda_upsample(struct device *dev, struct tensor *y, const struct tensor *x,
                             struct err *err)
{
    upsample a = each_of<upsample>(dev, tensor_count(y), (size_t)y->c);
    assert(!y->wide && !x->wide);
    a.y = y->data;
    a.x = x->data;
    a.s = sizes_of(x, y);
    a.packed &= in_packs(a.y) && in_packs(a.x);
    return push_each(dev, a, NULL, 0, err);
}

/* The places [*first, *end) of n_to that element_nearest takes from place `of`. */
static __device__ __forceinline__ void taken_from(int of, float scale, int n_from, int n_to,
                                                  int *first, int *end)
{
    int i = max((int)((float)of / scale) - 2, 0);
    while (i < n_to && element_nearest(i, scale, n_from) < of)
        i++;
    *first = i;
    while (i < n_to && element_nearest(i, scale, n_from) == of)
        i++;
    *end = i;
}

struct upsample_back : each {
    void *dx;
    const void *dy;
    sizes s;
    int add, pad;

    template <class T, int N> __device__ void make(size_t at, const void *) const
    {
        size_t place = at / s.c, line = place / s.w, row = line / s.h, ch = at - place * s.c;
        int i, j, end_i, first, end;
        float v[N], sum[N] = {};
        taken_from((int)(line - row * s.h), s.scale_h, s.h, s.to_h, &i, &end_i);
        taken_from((int)(place - line * s.w), s.scale_w, s.w, s.to_w, &first, &end);
        for (; i < end_i; i++)
            for (j = first; j < end; j++) {
                pack_load(v, (const T *)dy + ((row * s.to_h + i) * s.to_w + j) * s.c + ch);
                for (int k = 0; k < N; k++)
                    sum[k] += v[k];
            }
        pack_put((T *)dx + at, sum, add);
    }
};

extern "C" int cuda_upsample_back(struct device *dev, struct tensor *dx, const struct tensor *dy,
                                  bool add, struct err *err)
{
    upsample_back a = each_of<upsample_back>(dev, tensor_count(dx), (size_t)dx->c);
    assert(!dx->wide && !dy->wide);
    a.dx = dx->data;
    a.dy = dy->data;
    a.s = sizes_of(dx, dy);
    a.add = add;
    a.packed &= in_packs(a.dx) && in_packs(a.dy);
    return push_each(dev, a, NULL, 0, err);
}
