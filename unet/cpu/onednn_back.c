/* The way back through layers (cpu.h): convolutions with the weight turned over. */
#include "onednn.h"

#include <stdlib.h>
#include <string.h>

/* dx = W^T dy is a convolution of dy with the weight turned over; where the layer strides, of dy with zeros between. */
static struct layer *back_of(struct layer *l, struct err *err)
{
    struct cpu_layer *cl = l->impl ? l->impl : calloc(1, sizeof *cl), *own;
    l->impl = cl;
    if (!cl || cl->back)
        return cl ? cl->back : NULL;
    struct layer *b = calloc(1, sizeof *b);
    own = calloc(1, sizeof *own);
    if (!b || !own) {
        free(b);
        free(own);
        err_nomem(err, sizeof *b);
        return NULL;
    }
    *b = *l;
    b->in = l->out;
    b->out = l->in;
    b->stride = 1;
    b->pad[0] = l->kh - 1 - l->pad[0];
    b->pad[1] = l->kw - 1 - l->pad[1];
    b->pad[2] = l->stride > 1 ? l->pad[0] : l->kh - 1 - l->pad[2];
    b->pad[3] = l->stride > 1 ? l->pad[1] : l->kw - 1 - l->pad[3];
    b->b.data = NULL;
    own->turned = true;
    b->impl = own;
    cl->back = b;
    return b;
}

/* dy with zeros between: of dx's size. */
static struct tensor spread_of(const struct layer *l, const struct tensor *dx,
                               const struct tensor *dy, float *room)
{
    struct tensor t = *dy;
    if (l->stride == 1)
        return t;
    t.h = dx->h;
    t.w = dx->w;
    t.data = room;
    return t;
}

static void spread(struct tensor *t, const struct tensor *dy, int stride)
{
    size_t c = (size_t)t->c;
    memset(t->data, 0, tensor_count(t) * sizeof(float));
    for (int n = 0; n < dy->n; n++)
        for (int i = 0; i < dy->h; i++)
            for (int j = 0; j < dy->w; j++) {
                size_t to = ((size_t)n * (size_t)t->h + (size_t)(i * stride)) * (size_t)t->w +
                            (size_t)(j * stride);
                size_t from = ((size_t)n * (size_t)dy->h + (size_t)i) * (size_t)dy->w + (size_t)j;
                memcpy((float *)t->data + to * c, (const float *)dy->data + from * c,
                       c * sizeof(float));
            }
}

size_t onednn_layer_back_scratch(const struct layer *l, const struct tensor *dx,
                                 const struct tensor *dy)
{
    struct tensor t = spread_of(l, dx, dy, NULL);
    return l->stride > 1 ? tensor_count(&t) * sizeof(float) : 0;
}

/* Whether zeros between fit into dx's size, and pads are not negative. */
static int check_back(const struct layer *l, const struct tensor *dx, const struct tensor *dy,
                      struct err *err)
{
    bool fits = (dy->h - 1) * l->stride < dx->h && (dy->w - 1) * l->stride < dx->w;
    if (fits && l->pad[0] < l->kh && l->pad[1] < l->kw && l->pad[2] < l->kh && l->pad[3] < l->kw)
        return 0;
    return err_set(err, ERR_UNSUPPORTED, "%s: no gradient for these pads", l->name);
}

int onednn_layer_back_prepare(struct device *dev, const struct tensor *dx, struct layer *l,
                              const struct tensor *dy, bool add, struct err *err)
{
    struct layer *b = back_of(l, err);
    struct tensor t = spread_of(l, dx, dy, NULL);
    int rc = b ? check_back(l, dx, dy, err) : ERR_NOMEM;
    return rc < 0 ? rc : onednn_layer_prepare(dev, dx, b, &t, add, err);
}

int onednn_layer_back(struct device *dev, struct tensor *dx, struct layer *l,
                      const struct tensor *dy, bool add, void *scratch, struct err *err)
{
    struct layer *b = back_of(l, err);
    struct tensor t = spread_of(l, dx, dy, scratch);
    int rc = b ? check_back(l, dx, dy, err) : ERR_NOMEM;
    if (rc == 0 && l->stride > 1)
        spread(&t, dy, l->stride);
    return rc < 0 ? rc : onednn_layer(dev, dx, b, &t, add, err);
}
