/* "rounded": the plain float backend with the result of every op, and every weight, rounded to 16 bits, which is how a GPU
 * computes in them when it does so well. The bounds of networks and pictures are a few times what it is off by; and by it the
 * tests are tested. It takes chains, too, as a GPU does. */
#include "check.h"

#include <stdlib.h>
#include <string.h>

extern const struct backend backend_ref;

struct rounding {
    enum dtype type;
};

static enum dtype type_of(const struct device *dev)
{
    return ((const struct rounding *)dev->impl)->type;
}

static int done(struct device *dev, const struct tensor *y, int rc)
{
    if (rc == 0 && !y->wide)
        round_to(y->data, tensor_count(y), type_of(dev));
    return rc;
}

static void rounded_close(struct device *dev)
{
    free(dev->impl);
}

static int rounded_upload(struct device *dev, struct tensor *t, const float *host, struct err *err)
{
    return done(dev, t, backend_ref.upload(dev, t, host, err));
}

/* ---- layers ---------------------------------------------------------------------------------- */

/* Packs the layer as if its file held rounded values. */
static int pack(struct device *dev, const struct layer *cl, struct err *err)
{
    struct layer *l = (struct layer *)cl, copy = *cl; /* the packed form is a cache */
    const struct tensor none = {0};
    if (l->impl)
        return 0;
    size_t n = array_count(&l->w), nb = l->b.data ? array_count(&l->b) : 0;
    float *w = room_for(n, sizeof *w), *b = room_for(nb, sizeof *b);
    int rc = array_to_finite(&l->w, w, l->name, err);
    rc = rc < 0 || !nb ? rc : array_to_finite(&l->b, b, l->name, err);
    round_to(w, n, type_of(dev));
    round_to(b, nb, type_of(dev));
    copy.w.dtype = copy.b.dtype = DT_F32;
    copy.w.data = w;
    copy.b.data = nb ? b : NULL;
    rc = rc < 0 ? rc : backend_ref.layer_prepare(dev, &none, &copy, &none, false, err);
    l->impl = copy.impl;
    free(w);
    free(b);
    return rc;
}

static int rounded_prepare(struct device *dev, const struct tensor *y, const struct layer *l,
                           const struct tensor *x, bool accumulate, struct err *err)
{
    (void)y, (void)x, (void)accumulate;
    return pack(dev, l, err);
}

static int rounded_layer(struct device *dev, struct tensor *y, const struct layer *l,
                         const struct tensor *x, bool accumulate, struct err *err)
{
    int rc = pack(dev, l, err);
    return rc < 0 ? rc : done(dev, y, backend_ref.layer(dev, y, l, x, accumulate, err));
}

static int rounded_layer_back(struct device *dev, struct tensor *dx, const struct layer *l,
                              const struct tensor *dy, bool add, void *scratch, struct err *err)
{
    int rc = pack(dev, l, err);
    return rc < 0 ? rc : done(dev, dx, backend_ref.layer_back(dev, dx, l, dy, add, scratch, err));
}

static int rounded_chains(struct device *dev, const struct chain *c, int n, bool prepare,
                          struct err *err)
{
    int rc = 0;
    for (int i = 0; i < n && rc == 0; i++) {
        rc = pack(dev, c[i].down, err);
        rc = rc < 0 ? rc : pack(dev, c[i].up, err);
    }
    return rc < 0 || prepare ? rc : chains_apart(dev, c, n, err);
}

/* ---- ops ------------------------------------------------------------------------------------- */

#define ROUNDED(name, y, params, args)                                                             \
    static int rounded_##name params                                                               \
    {                                                                                              \
        return done(dev, y, backend_ref.name args);                                                \
    }

ROUNDED(group_norm, y,
        (struct device * dev, struct tensor *y, const struct norm *g, const struct tensor *x,
         const struct tensor *add, enum act act, struct err *err),
        (dev, y, g, x, add, act, err))
ROUNDED(layer_norm, y,
        (struct device * dev, struct tensor *y, const struct norm *g, const struct tensor *x,
         struct err *err),
        (dev, y, g, x, err))
ROUNDED(attention, o,
        (struct device * dev, struct tensor *o, const struct tensor *q, const struct tensor *k,
         const struct tensor *v, const struct attention *a, void *scratch, struct err *err),
        (dev, o, q, k, v, a, scratch, err))
ROUNDED(activate, y,
        (struct device * dev, struct tensor *y, const struct tensor *x, enum act act,
         struct err *err),
        (dev, y, x, act, err))
ROUNDED(geglu, y, (struct device * dev, struct tensor *y, const struct tensor *x, struct err *err),
        (dev, y, x, err))
ROUNDED(lincomb, y,
        (struct device * dev, struct tensor *y, int n, const double *coef,
         const struct tensor *const *x, double clamp, struct err *err),
        (dev, y, n, coef, x, clamp, err))
ROUNDED(affine, y,
        (struct device * dev, struct tensor *y, const struct tensor *x, double a, double b,
         struct err *err),
        (dev, y, x, a, b, err))
ROUNDED(gain, y,
        (struct device * dev, struct tensor *y, const struct tensor *h, double s, const float *gain,
         const float *shift, struct err *err),
        (dev, y, h, s, gain, shift, err))
ROUNDED(scale, y,
        (struct device * dev, struct tensor *y, int n, const struct share *part, struct err *err),
        (dev, y, n, part, err))
ROUNDED(route, t, (struct device * dev, struct tensor *t, const struct route *how, struct err *err),
        (dev, t, how, err))
ROUNDED(gate, y,
        (struct device * dev, struct tensor *y, const struct tensor *h, const struct gating *in,
         struct err *err),
        (dev, y, h, in, err))
ROUNDED(group_norm_back, dx,
        (struct device * dev, struct tensor *dx, const struct norm *g, const struct tensor *x,
         const struct tensor *more, enum act act, const struct tensor *dy, bool add,
         struct err *err),
        (dev, dx, g, x, more, act, dy, add, err))
ROUNDED(layer_norm_back, dx,
        (struct device * dev, struct tensor *dx, const struct norm *g, const struct tensor *x,
         const struct tensor *dy, bool add, struct err *err),
        (dev, dx, g, x, dy, add, err))
ROUNDED(activate_back, dx,
        (struct device * dev, struct tensor *dx, const struct tensor *x, enum act act,
         const struct tensor *dy, bool add, struct err *err),
        (dev, dx, x, act, dy, add, err))
ROUNDED(geglu_back, dx,
        (struct device * dev, struct tensor *dx, const struct tensor *x, const struct tensor *dy,
         bool add, struct err *err),
        (dev, dx, x, dy, add, err))
ROUNDED(upsample_back, dx,
        (struct device * dev, struct tensor *dx, const struct tensor *dy, bool add,
         struct err *err),
        (dev, dx, dy, add, err))

static int rounded_attention_back(struct device *dev, struct tensor *const d[3], const bool add[3],
                                  const struct tensor *q, const struct tensor *k,
                                  const struct tensor *v, const struct attention *a,
                                  const struct tensor *dout, void *scratch, struct err *err)
{
    int rc = backend_ref.attention_back(dev, d, add, q, k, v, a, dout, scratch, err);
    for (int i = 0; i < 3; i++)
        if (d[i])
            done(dev, d[i], rc);
    return rc;
}

static int rounded_concat_back(struct device *dev, struct tensor *da, bool add_a, struct tensor *db,
                               bool add_b, const struct tensor *dy, struct err *err)
{
    int rc = backend_ref.concat_back(dev, da, add_a, db, add_b, dy, err);
    if (da)
        done(dev, da, rc);
    if (db)
        done(dev, db, rc);
    return rc;
}

static int rounded_gate_back(struct device *dev, struct tensor *dh, struct tensor *dt,
                             const struct tensor *h, const struct gating *in,
                             const struct tensor *dy, struct err *err)
{
    int rc = backend_ref.gate_back(dev, dh, dt, h, in, dy, err);
    return done(dev, dt, done(dev, dh, rc));
}

/* ---- opening --------------------------------------------------------------------------------- */

static struct backend table(void)
{
    struct backend be = backend_ref;
    be.name = "rounded";
    be.about = "plain C, every result rounded";
    be.narrow = true;
    be.close = rounded_close;
    be.upload = rounded_upload;
    be.layer_prepare = rounded_prepare;
    be.layer = rounded_layer;
    be.chains = rounded_chains;
    be.chains_all = true;
    be.group_norm = rounded_group_norm;
    be.layer_norm = rounded_layer_norm;
    be.attention = rounded_attention;
    be.activate = rounded_activate;
    be.geglu = rounded_geglu;
    be.lincomb = rounded_lincomb;
    be.affine = rounded_affine;
    be.gain = rounded_gain;
    be.scale = rounded_scale;
    be.route = rounded_route;
    be.gate = rounded_gate;
    be.layer_back_prepare = rounded_prepare;
    be.layer_back = rounded_layer_back;
    be.group_norm_back = rounded_group_norm_back;
    be.layer_norm_back = rounded_layer_norm_back;
    be.attention_back = rounded_attention_back;
    be.activate_back = rounded_activate_back;
    be.geglu_back = rounded_geglu_back;
    be.concat_back = rounded_concat_back;
    be.upsample_back = rounded_upsample_back;
    be.gate_back = rounded_gate_back;
    return be;
}

int rounded_open(struct device **out, enum dtype type, struct err *err)
{
    static struct backend be;
    struct device *dev = calloc(1, sizeof *dev);
    struct rounding *r = calloc(1, sizeof *r);
    *out = NULL;
    if (!dev || !r) {
        free(dev);
        free(r);
        return err_nomem(err, sizeof *dev);
    }
    be = table();
    r->type = type;
    *dev = (struct device){
        .be = &be, .value_size = sizeof(float), .threads = 1, .isa = ISA_PLAIN, .impl = r};
    *out = dev;
    return 0;
}
