/* The convolutions of networks, as layers.c asks for them, and odd ones. */
#include "ask.h"

/* k x k from in to out channels at a square; pad -1: one on the right and below, which layers.c makes beforehand. */
static struct conv_shape square(int n, int side, int in, int out, int k, int stride, int pad)
{
    int x = side + (pad < 0), p = pad < 0 ? 0 : pad;
    struct conv_shape s = {.n = n, .h = x, .w = x, .in = in, .out = out, .bias = true, .align = 16};
    s.kh = s.kw = k;
    s.stride = stride;
    s.pad_h = s.pad_w = p;
    s.oh = s.ow = (x + 2 * p - k) / stride + 1;
    return s;
}

/* dx of dy, by itself and added to what is there. */
static void ask_back(struct asked *a, struct conv_shape s)
{
    s.back = true;
    s.bias = false;
    for (int i = 0; i < 2; i++) {
        s.accumulate = i;
        ask(a, &s);
    }
}

struct network {
    const char *name;
    int rows, side; /* of what comes in */
    int in, latent, out;
    int levels, width[4], layers;
};

/* latent 0: a UNet, with skips, and gradients and adapters besides. Else an autoencoder, there and back. */
static const struct network networks[] = {
    {"SD 1.5", 2, 64, 4, 0, 4, 4, {320, 640, 1280, 1280}, 2},
    {"SD's autoencoder", 1, 512, 3, 4, 3, 4, {128, 256, 512, 512}, 2},
    {"the demo's UNet", 2, 32, 4, 0, 4, 3, {32, 96, 160}, 1},
    {"the demo's autoencoder", 1, 128, 3, 4, 3, 3, {16, 32, 64}, 1},
};

static void layer(struct asked *a, const struct network *net, struct conv_shape s, bool added)
{
    static const int ranks[] = {4, 16, 0};
    s.accumulate = added;
    ask(a, &s);
    if (net->latent)
        return;
    ask_back(a, s);
    s.accumulate = s.bias = false;
    for (const int *rank = ranks; *rank; rank++) { /* an adapter's way down, and back up */
        s.out = *rank;
        ask(a, &s);
        ask_back(a, s);
    }
}

static void resnet(struct asked *a, const struct network *net, int side, int in, int out)
{
    layer(a, net, square(net->rows, side, in, out, 3, 1, 1), false);
    layer(a, net, square(net->rows, side, out, out, 3, 1, 1), true);
}

/* As unet.c and vae.c go through it. */
static void ask_network(struct asked *a, const struct network *net)
{
    int n = net->rows, side = net->side, c = net->width[0], skip[32] = {0}, skips = 0;
    a->of = net->name;
    layer(a, net, square(n, side, net->in, c, 3, 1, 1), false);
    skip[skips++] = c;
    for (int i = 0; i < net->levels; i++) {
        for (int j = 0; j < net->layers; j++, skip[skips++] = c) {
            resnet(a, net, side, c, net->width[i]);
            c = net->width[i];
        }
        if (i == net->levels - 1)
            break;
        layer(a, net, square(n, side, c, c, 3, 2, net->latent ? -1 : 1), false);
        skip[skips++] = c;
        side /= 2;
    }
    resnet(a, net, side, c, c);
    if (net->latent) { /* latents, with their spread; and from them */
        layer(a, net, square(n, side, c, 2 * net->latent, 3, 1, 1), false);
        layer(a, net, square(n, side, net->latent, c, 3, 1, 1), false);
    }
    for (int i = net->levels - 1; i >= 0; i--) {
        for (int j = 0; j <= net->layers; j++, c = net->width[i])
            resnet(a, net, side, c + (net->latent ? 0 : skip[--skips]), net->width[i]);
        if (i == 0)
            break;
        side *= 2;
        layer(a, net, square(n, side, c, c, 3, 1, 1), false);
    }
    layer(a, net, square(n, side, c, net->out, 3, 1, 1), false);
}

void ask_networks(struct asked *a)
{
    for (size_t i = 0; i < sizeof networks / sizeof *networks; i++)
        ask_network(a, &networks[i]);
}

/* Patches of CLIP, odd channels and sizes, strides, and addresses that are a multiple of one value only. */
void ask_odd_shapes(struct asked *a)
{
    const struct conv_shape shapes[] = {
        square(1, 224, 3, 1024, 14, 14, 0), square(1, 128, 3, 128, 16, 16, 0),
        square(2, 64, 320, 320, 3, 1, 1),   square(3, 9, 7, 5, 3, 1, 1),
        square(3, 9, 7, 5, 3, 2, 1),        square(1, 11, 1, 1, 3, 1, 1),
        square(2, 10, 13, 24, 3, 2, -1),    square(1, 8, 9, 3, 5, 1, 2),
        square(5, 7, 16, 16, 1, 2, 0),      square(1, 1, 8, 8, 3, 1, 1),
    };
    struct conv_shape oblong = square(3, 9, 7, 5, 3, 2, 1);
    oblong.w = 7, oblong.kh = 5, oblong.oh = 4, oblong.ow = 4;
    a->of = "odd shapes";
    for (size_t i = 0; i <= sizeof shapes / sizeof *shapes; i++)
        for (int how = 0; how < 8; how++) {
            struct conv_shape s = i < sizeof shapes / sizeof *shapes ? shapes[i] : oblong;
            s.align = how & 1 ? (int)a->dev.value_size : 16;
            s.bias = how & 2;
            s.accumulate = how & 4;
            ask(a, &s);
            ask_back(a, s);
        }
}
