/* stage.h: one op, given the same values on two devices.
 *
 *     static int run_affine(struct stage *s, const struct spec *c)
 *     {
 *         struct tensor *x = stage_in(s, c->n, c->h, c->w, c->c), *y = stage_out(s, …);
 *         return s->dev->be->affine(s->dev, y, x, .5, 1 + s->turn, &s->err);
 *     }
 *     check_op(dev, type, &(struct op){.name = "affine", .run = run_affine, …});
 *
 * check_op runs it in double and on the device, in tensors of their own and in rows of larger ones, several times with other
 * values at the same places (a list of commands that comes again, with other parameters), and the first once more, which must
 * give the same bits. Inputs are exact in the device's type. What is to be written holds NaN before. Rows beside a tensor hold
 * NaN where it is read and numbers that must stay where it is written.
 */
#ifndef WEFT_TESTS_CUDA_STAGE_H
#define WEFT_TESTS_CUDA_STAGE_H

#include "check.h"

/* A shape of an op; what d, e and how mean is the op's. */
struct spec {
    int n, h, w, c, d, e;
    unsigned how;
};

/* What becomes of a tensor: read only; written; changed; or of no interest afterwards. */
enum role { ROLE_IN, ROLE_OUT, ROLE_CHANGED, ROLE_ROOM };

struct piece {
    struct tensor whole, t; /* t: all rows of whole, but for those beside it */
    enum role role;
    float *host;             /* what was uploaded, of whole; then what came back, of t */
    float *before;           /* what was uploaded, of t */
    size_t all, from, count; /* values of whole; t's first in it, and how many */
};

enum { STAGE_MOST = 48 };
struct stage {
    struct device *dev;
    enum dtype type;
    uint64_t seed;
    bool within;        /* tensors are rows of larger ones */
    int turn;           /* the op's parameters and all values follow it */
    double slack;       /* by how much float32 may be further off: means far from zero */
    const char *cannot; /* set where the device is not asked for this */
    bool
        whole; /* inputs and weights asked for now are whole numbers, and sums of them exact in any type */
    struct err err;

    struct piece piece[STAGE_MOST];
    void *memory[STAGE_MOST];
    struct layer *layer[STAGE_MOST];
    struct norm *norm[4];
    int n_piece, n_memory, n_layer, n_norm;     /* taken */
    int at_piece, at_memory, at_layer, at_norm; /* asked for in this turn */
};

/* Tensors in the order they are asked for, the same every turn. Values about normal, times scale plus offset. */
struct tensor *stage_in(struct stage *s, int n, int h, int w, int c);
struct tensor *stage_out(struct stage *s, int n, int h, int w, int c);
struct tensor *stage_changed(struct stage *s, int n, int h, int w, int c);
struct form_of {
    enum role role;
    double scale, offset;
    bool wide;
    bool zeros; /* some places are all zero */
};
struct tensor *stage_tensor(struct stage *s, int n, int h, int w, int c, const struct form_of *f);
/* Device memory: floats as given, or so many bytes of NaN. */
float *stage_floats(struct stage *s, const float *host, size_t n);
void *stage_room(struct stage *s, size_t bytes);
/* Normal values that stay from turn to turn, on the host; owned by nobody. */
float *stage_values(struct stage *s, size_t n, double scale, int which);
/* A layer, and its numbers: kernel as kernel_of says, of values as `stored`, at no aligned address. */
struct layer *stage_layer(struct stage *s, int in, int out, int kernel, bool bias,
                          enum dtype stored);
struct norm *stage_norm(struct stage *s, int c, int groups);

/* Kernels: side, stride and pads. */
enum { KERNELS = 9 };
void kernel_of(struct layer *l, int kernel);
/* Height or width behind one, below 1 where it does not fit. */
int layer_side(const struct layer *l, int side, bool width);

struct op {
    const char *name;
    int (*run)(struct stage *s, const struct spec *c);
    enum limit bound;
    double least;             /* of results beside which errors count (error_of) */
    unsigned hows;            /* variants: every shape is run in all of them */
    const struct spec *shape; /* the first `quick` of them where it has to be quick */
    int n_shape, n_quick;
    struct spec most;            /* of random shapes */
    void (*fit)(struct spec *c); /* makes a random one possible; NULL: any is */
};
void check_op(struct device *dev, enum dtype type, const struct op *op);
/* check_NAME, a group of run_NAME. */
#define GROUP(name_, ...)                                                                          \
    static void check_##name_(struct device *dev, enum dtype type)                                 \
    {                                                                                              \
        static const struct op op = {.name = #name_, .run = run_##name_, __VA_ARGS__};             \
        check_op(dev, type, &op);                                                                  \
    }
#define SHAPES(s, quick) .shape = s, .n_shape = (int)(sizeof(s) / sizeof *(s)), .n_quick = quick

#endif
