#include "blocks.h"

#include <string.h>

void resnet_load(struct resnet *b, struct loader *ld, int in, int out, int time_width, int groups,
                 float eps)
{
    memset(b, 0, sizeof *b);
    loader_norm(ld, &b->norm1, "norm1", in, groups, eps);
    loader_conv(ld, &b->conv1, "conv1", in, out, 3, 1);
    if (time_width)
        loader_linear(ld, &b->time, "time_emb_proj", time_width, out, true);
    b->time.placeless = true;
    loader_norm(ld, &b->norm2, "norm2", out, groups, eps);
    loader_conv(ld, &b->conv2, "conv2", out, out, 3, 1);
    if (in != out)
        loader_conv(ld, &b->shortcut, "conv_shortcut", in, out, 1, 1);
}

struct tensor resnet_forward(const struct resnet *b, struct run *r, const struct tensor *x,
                             const struct tensor *time)
{
    struct tensor y = run_tensor(r, x->n, x->h, x->w, b->conv2.out), t;
    unsigned mark = run_mark(r);

    if (b->time.out) {
        t = run_tensor(r, x->n, 1, 1, b->time.out);
        op_layer(r, &t, &b->time, time, false);
    }
    struct tensor h = run_like(r, &y);
    unsigned inner = run_mark(r);
    struct tensor a = run_like(r, x);
    op_group_norm(r, &a, &b->norm1, x, NULL, ACT_SILU);
    op_layer(r, &h, &b->conv1, &a, false);
    run_pop(r, inner);
    op_group_norm(r, &h, &b->norm2, &h, b->time.out ? &t : NULL, ACT_SILU);
    if (b->shortcut.out)
        op_layer(r, &y, &b->shortcut, x, false);
    else
        op_copy(r, &y, x);
    op_layer(r, &y, &b->conv2, &h, true);
    run_pop(r, mark);
    return y;
}

void resnet_release(struct resnet *b, struct device *dev)
{
    norm_release(dev, &b->norm1);
    norm_release(dev, &b->norm2);
    layer_release(dev, &b->conv1);
    layer_release(dev, &b->conv2);
    layer_release(dev, &b->time);
    layer_release(dev, &b->shortcut);
}

struct tensor layer_forward(const struct layer *l, struct run *r, const struct tensor *x)
{
    struct tensor y = run_layer_tensor(r, l, x);
    op_layer(r, &y, l, x, false);
    return y;
}

struct tensor upsample_forward(const struct layer *conv, struct run *r, const struct tensor *x,
                               int h, int w)
{
    struct tensor y = run_tensor(r, x->n, h, w, conv->out);
    unsigned mark = run_mark(r);
    struct tensor up = run_tensor(r, x->n, h, w, x->c);
    op_upsample(r, &up, x);
    op_layer(r, &y, conv, &up, false);
    run_pop(r, mark);
    return y;
}
