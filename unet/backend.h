/* backend.h: where arithmetic happens.
 *
 * A backend is one table of functions on tensors; a device is a backend that has been opened. The
 * networks never call the table: they call the op_ functions of ops.h, which check shapes, place
 * results and then come here.
 *
 *   ref    plain C in float, ref64 the same source in double: what every op is checked against
 *   cpu    oneDNN and our own vector kernels
 *   cuda   cuBLASLt, cuDNN and our own kernels; in builds by `make cuda`. Ops return at once and are done later, in order:
 *          whoever wants to know the result downloads it
 *
 * All tensors are dense and channels last, [n, h*w, c]. Outputs never alias inputs unless the
 * comment says they may.
 */
#ifndef WEFT_BACKEND_H
#define WEFT_BACKEND_H

#include "element.h"
#include "err.h"
#include "route.h"
#include "tensor.h"

struct layer;
struct norm;
struct backend;

/* The widest vector instructions our own kernels may use. */
enum isa { ISA_BEST, ISA_PLAIN, ISA_AVX2, ISA_AVX512 };

struct device_options {
    int threads; /* 0: all the process may use */
    enum dtype
        values; /* of tensors: DT_F32, or on cuda DT_F16, DT_BF16; sums are float32 whatever it is */
    enum isa isa; /* ISA_BEST: what the processor has. oneDNN has its own ONEDNN_MAX_CPU_ISA */
};

struct device {
    const struct backend *be;
    size_t
        value_size; /* bytes of one value of a tensor that is not wide: 4, 8 on ref64, 2 for 16 bits */
    int threads;
    enum isa isa;    /* what was chosen; ISA_PLAIN where it does not apply */
    char about[160]; /* a line for people: the backend's, or what it found */
    void *impl;      /* the backend's own */
};

/* A linear or convolution layer: y = W x + b. Filled in by the loader (model code), packed by the
 * device at first use, released with layer_release. */
struct layer {
    const char *name; /* diffusers name, "down_blocks.0.resnets.0.conv1"; borrowed */
    int site;         /* index into the model's sites, -1 where no adapter can act */
    int out, in;
    int kh, kw, stride; /* 1, 1, 1 for a linear layer */
    int pad[4];         /* zeros added on top, left, bottom, right */
    bool placeless;     /* its rows are no places of the picture: a text, the time */
    struct array w;     /* [out, in] or [out, in, kh, kw]; borrowed for the layer's life */
    struct array b;     /* [out]; data NULL: no bias */
    void *impl;         /* the device's packed form, NULL until used */
};

/* Scale and shift of a group or layer norm. */
struct norm {
    const char *name;
    int c;
    int groups; /* 0 for a layer norm */
    float eps;
    int site;            /* index into the model's sites, -1 where no adapter can act */
    float *gamma, *beta; /* [c], in the device's memory as float32; owned */
    struct array gamma_file, beta_file; /* the same as they were given; borrowed */
};

/* How an attention is masked. */
struct attention {
    int heads;   /* c of q must be a multiple */
    bool causal; /* each query sees keys up to its own place: CLIP's text tower */
    /* [places] in device memory: the regions a place is in, a bit each; where q and k are of the same places, those
     * that are both in regions, but in none together, do not see each other. NULL: all see all. */
    const unsigned *region;
};

/* How much counts of a part of a tensor's channels, width wide: s, at each place times `at` [h*w] (device memory; NULL: 1),
 * or with `gate` times sigmoid(bias + words at). */
struct share {
    int width;
    float s;
    const float *at;
    bool gate;
    float bias, words;
};

/* Gates at a site (gates.h): rows of its vectors, and waves of the time. */
enum {
    GATE_BIAS,
    GATE_BASE,
    GATE_OWN,
    GATE_CROSS,
    GATE_GAIN,
    GATE_WORDS,
    GATE_TIME,
    GATE_WAVES = 16
};
enum { GATE_ROWS = GATE_TIME + GATE_WAVES, GATE_MOST = 32 };

/* What n adapters add at a site, and the gates it goes through. */
struct gating {
    int n;
    const struct tensor *t; /* what comes down of those that are products, side by side; or NULL */
    const float *up;        /* [sum of width, c] that t goes up through; device memory */
    const int *width;       /* [n] ranks; 0: no product, u has what it adds, if anything */
    const struct tensor *const *u; /* [n]; NULL where width is not 0 */
    const float *const *words;     /* [n], each [h*w] of w (gates.h) in device memory; NULL: 0 */
    const float *gate;             /* [GATE_ROWS, c]; device memory */
    const float *wave;             /* [rows of y, GATE_WAVES] of each row's time; host memory */
};

/* y += s * up(route(share o down(x))) by matrix products; t is room for what comes down. */
struct chain {
    const struct layer *down, *up;
    struct tensor x, t, y;
    double s;
    /* Of t's channels, parts side by side; n_part 0: in full. Each row has its own, part[row * n_part + k], or with
     * `alike` all have part[k]. */
    const struct share *part;
    int n_part;
    bool alike;
    const struct route *route; /* of all of t's channels; NULL: none */
};
enum { CHAINS_MOST = 8 };

/* How the work of a device that does it later was handed over: lists, those that were graphs, and graphs made. */
struct device_runs {
    long lists, graphs, captured;
};

struct backend {
    const char *name;
    const char *about; /* one line for people */
    bool narrow;       /* it can compute in 16 bits */

    int (*open)(struct device *dev, const struct device_options *o, struct err *err);
    void (*close)(struct device *dev);

    /* Device memory, 64-byte aligned. NULL when there is none. */
    void *(*alloc)(struct device *dev, size_t bytes);
    void (*free)(struct device *dev, void *p);
    /* n host floats into device memory that was taken for n floats. */
    void (*store)(struct device *dev, float *p, const float *host, size_t n);
    /* A step ends here: what was asked for begins, if it has not yet. Optional: NULL where ops are done when they return. */
    int (*flush)(struct device *dev, struct err *err);
    struct device_runs (*runs)(const struct device *dev); /* so far; NULL where flush is */
    /* Host floats to and from a tensor of t's whole size. */
    int (*upload)(struct device *dev, struct tensor *t, const float *host, struct err *err);
    int (*download)(struct device *dev, float *host, const struct tensor *t, struct err *err);

    /* What layer does at its first use for these shapes, without computing: y and x have no data. */
    int (*layer_prepare)(struct device *dev, const struct tensor *y, const struct layer *l,
                         const struct tensor *x, bool accumulate, struct err *err);
    /* Which implementation runs the layer on the i-th of the shapes it has met, as the library beneath
     * names it ("brgconv:avx512_core"), or NULL beyond the last. Optional: NULL where there is but one. */
    const char *(*layer_kind)(const struct layer *l, int i);
    /* Bytes that were made of the layer's weight so far. Optional: NULL where none are. */
    size_t (*layer_bytes)(const struct layer *l);
    /* Frees l->impl. NULL-safe. */
    void (*layer_release)(struct device *dev, struct layer *l);

    /* y = W x + b, or y += W x + b when accumulate. Packs the weight at first use.
     * x [n, h*w, in], y [n, oh*ow, out]. */
    int (*layer)(struct device *dev, struct tensor *y, const struct layer *l,
                 const struct tensor *x, bool accumulate, struct err *err);

    /* Each of n chains at once, of which no two share rows of y nor, unless chains_all, a layer: the adapters of a batch, of
     * whatever ranks. prepare: without computing, as layer_prepare. Optional: NULL where one after another does as well. */
    int (*chains)(struct device *dev, const struct chain *c, int n, bool prepare, struct err *err);
    bool chains_all; /* it takes parts and routes, too, and is worth it for one chain */

    /* Group norm over (h*w, c/groups) of x + add, then the activation. add is [n, 1, c] or NULL.
     * y may be x. */
    int (*group_norm)(struct device *dev, struct tensor *y, const struct norm *g,
                      const struct tensor *x, const struct tensor *add, enum act act,
                      struct err *err);
    /* Layer norm over c. y may be x. */
    int (*layer_norm)(struct device *dev, struct tensor *y, const struct norm *g,
                      const struct tensor *x, struct err *err);

    /* o = softmax(q kᵀ / sqrt(c/heads)) v, a head at a time. q, o [n, lq, c]; k, v [n, lk, c].
     * The logits are never held whole. scratch has attention_scratch() bytes. */
    size_t (*attention_scratch)(struct device *dev, const struct tensor *q, const struct tensor *k,
                                const struct attention *a);
    int (*attention)(struct device *dev, struct tensor *o, const struct tensor *q,
                     const struct tensor *k, const struct tensor *v, const struct attention *a,
                     void *scratch, struct err *err);

    /* y = act(x); y may be x. */
    int (*activate)(struct device *dev, struct tensor *y, const struct tensor *x, enum act act,
                    struct err *err);
    /* y[.., i] = x[.., i] * gelu(x[.., c + i]); x has 2c channels. */
    int (*geglu)(struct device *dev, struct tensor *y, const struct tensor *x, struct err *err);

    /* y = clamp(sum_i coef[i] * x[i]); clamp 0: none, else to ±clamp. y may be one of x. */
    int (*lincomb)(struct device *dev, struct tensor *y, int n, const double *coef,
                   const struct tensor *const *x, double clamp, struct err *err);
    /* y = a * x + b; y may be x. */
    int (*affine)(struct device *dev, struct tensor *y, const struct tensor *x, double a, double b,
                  struct err *err);
    /* y += s * (gain o h + shift), gain and shift [c] in device memory, shift NULL: 0; y may be h. */
    int (*gain)(struct device *dev, struct tensor *y, const struct tensor *h, double s,
                const float *gain, const float *shift, struct err *err);
    /* y *= the share in each of n parts of its channels, which stand side by side. */
    int (*scale)(struct device *dev, struct tensor *y, int n, const struct share *part,
                 struct err *err);
    /* t *= w at each place, as route.h says; its channels are the pieces. */
    int (*route)(struct device *dev, struct tensor *t, const struct route *how, struct err *err);
    /* y += h + what comes through the gates; where y is h, y += that alone. */
    int (*gate)(struct device *dev, struct tensor *y, const struct tensor *h,
                const struct gating *in, struct err *err);
    /* y [.., a.c + b.c] = a beside b. */
    int (*concat)(struct device *dev, struct tensor *y, const struct tensor *a,
                  const struct tensor *b, struct err *err);
    /* Nearest neighbour to y's size, as torch: source row = floor(row * h / H). */
    int (*upsample)(struct device *dev, struct tensor *y, const struct tensor *x, struct err *err);

    /* Gradients: what that of an op's result, dy, makes of that of its input. dx becomes it, or larger by it with `add`;
     * where the op may be in place dx may be dy, without add. x is what the op was given. */

    /* dx = W^T dy; the weight is packed once more at first use. scratch has layer_back_scratch() bytes. */
    size_t (*layer_back_scratch)(const struct layer *l, const struct tensor *dx,
                                 const struct tensor *dy);
    int (*layer_back_prepare)(struct device *dev, const struct tensor *dx, const struct layer *l,
                              const struct tensor *dy, bool add, struct err *err);
    int (*layer_back)(struct device *dev, struct tensor *dx, const struct layer *l,
                      const struct tensor *dy, bool add, void *scratch, struct err *err);
    int (*group_norm_back)(struct device *dev, struct tensor *dx, const struct norm *g,
                           const struct tensor *x, const struct tensor *more, enum act act,
                           const struct tensor *dy, bool add, struct err *err);
    int (*layer_norm_back)(struct device *dev, struct tensor *dx, const struct norm *g,
                           const struct tensor *x, const struct tensor *dy, bool add,
                           struct err *err);
    /* Of queries, keys and values, each NULL where it is not wanted; weights are made again, a tile at a time. */
    size_t (*attention_back_scratch)(struct device *dev, const struct tensor *q,
                                     const struct tensor *k, const struct attention *a);
    int (*attention_back)(struct device *dev, struct tensor *const d[3], const bool add[3],
                          const struct tensor *q, const struct tensor *k, const struct tensor *v,
                          const struct attention *a, const struct tensor *dout, void *scratch,
                          struct err *err);
    int (*activate_back)(struct device *dev, struct tensor *dx, const struct tensor *x,
                         enum act act, const struct tensor *dy, bool add, struct err *err);
    int (*geglu_back)(struct device *dev, struct tensor *dx, const struct tensor *x,
                      const struct tensor *dy, bool add, struct err *err);
    /* da [.., a.c] and db of dy [.., a.c + b.c]. */
    int (*concat_back)(struct device *dev, struct tensor *da, bool add_a, struct tensor *db,
                       bool add_b, const struct tensor *dy, struct err *err);
    int (*upsample_back)(struct device *dev, struct tensor *dx, const struct tensor *dy, bool add,
                         struct err *err);
    /* Of adapters that are products: dh += what comes back to h besides dy, dt becomes what comes back to t. */
    int (*gate_back)(struct device *dev, struct tensor *dh, struct tensor *dt,
                     const struct tensor *h, const struct gating *in, const struct tensor *dy,
                     struct err *err);
};

/* Opens the backend of that name; "auto": cuda where there is one, else cpu, in float32. Close with device_close. */
int device_open(struct device **out, const char *name, const struct device_options *o,
                struct err *err);
void device_close(struct device *dev);

/* Bytes of one of its values. */
static inline size_t tensor_value_size(const struct tensor *t)
{
    size_t own = t->dev->value_size;
    return t->wide && own < sizeof(float) ? sizeof(float) : own;
}

void layer_release(struct device *dev, struct layer *l);
/* Bytes the device has for it, or what its weight takes as float32 where it has not met any input yet. */
size_t layer_bytes(const struct device *dev, const struct layer *l);
/* Takes gamma and beta from arrays of c values. */
int norm_init(struct device *dev, struct norm *g, const char *name, int groups, float eps,
              const struct array *gamma, const struct array *beta, struct err *err);
void norm_release(struct device *dev, struct norm *g);

/* Refuses infinities, NaN and types that weft does not compute with, naming `name`. */
int array_finite(const struct array *a, const char *name, struct err *err);
/* The same, and a's values as float32. */
int array_to_finite(const struct array *a, float *out, const char *name, struct err *err);

#endif
