/* delta.h: what an adapter does to a model, whatever file it came from.
 *
 * A delta is the change of one weight W [out, in * kh * kw] (or of a bias, or of a norm's scale), in a
 * small algebra of terms. A delta_list is a whole adapter as its importer (store/) leaves it: site names
 * and deltas, no file format, no model.
 *
 * One rule holds for every kind: bound to its W, a delta is a fixed dW, and a strength m gives W + m dW.
 * (So a DoRA, an IA3 or a rotation at strength 0.5 lies half way between the model and its full effect,
 * as A1111 and ComfyUI have it; peers that put the strength inside the norm differ where m is not 1.)
 *
 *     kind           dW
 *     PRODUCT        scale * F0                      LoRA, LoCon (with a core: LoCon's lora_mid), diff
 *     HADAMARD       scale * F0 o F1                 LoHa (Hyeon-Woo et al. 2022, FedPara)
 *     KRON           scale * F0 (x) F1               LoKr (Edalati et al. 2022, KronA)
 *     SPARSE         scale * v at (row, column)      SHiRA
 *     GAIN           rows or columns of W times v    IA3 (Liu et al. 2022)
 *     GLORA          scale * (F0 + W F1)             GLoRA (Chavan et al. 2023)
 *     ROTATE         R W - W or W R - W              Diag-OFT (Qiu et al. 2023), BOFT (Liu et al. 2024)
 *     BIAS, NORM     v, added to a bias or to a norm's scale
 *
 * and the first three may carry a magnitude, which makes them DoRA (Liu et al. 2024): with V = W + dW,
 * W' = magnitude * V / ||V||, norms taken a row or a column.
 */
#ifndef WEFT_DELTA_H
#define WEFT_DELTA_H

#include "err.h"
#include "tensor.h"

/* A matrix [rows, cols] as a file holds it; every array is borrowed, data NULL where there is none.
 * full [rows, cols]; or a [rows, r] · b [r, cols]; or with a core t [p, q, kh, kw] the sum over p and q of
 * a[row, p] t[p, q, k] b[q, c], cols being (c, k). `across`: a lies as [p, rows]. Trailing dims count as
 * columns, so kernels are [r, in, kh, kw]. */
struct factor {
    struct array full, a, b, t;
    bool across;
};

enum delta_kind {
    DELTA_PRODUCT,
    DELTA_HADAMARD,
    DELTA_KRON,
    DELTA_SPARSE,
    DELTA_GAIN,
    DELTA_GLORA,
    DELTA_ROTATE,
    DELTA_BIAS,
    DELTA_NORM,
};

/* How the blocks of a rotation give R: a matrix B as Q = B - B^T; half of that; the upper triangle of Q row
 * by row; or R itself. */
enum delta_skew { SKEW_WHOLE, SKEW_HALF, SKEW_TRIANGLE, SKEW_NONE };

struct rotation {
    struct array
        blocks;        /* [n, b, b], butterfly [stages, n, b, b], or triangles [n, b (b - 1) / 2] */
    struct array gain; /* [out] rescales the rows of the result, or none */
    enum delta_skew skew;
    double bound; /* of the norm of all Q of a stage; 0: none */
    bool columns; /* of W (PEFT), else its rows (LyCORIS) */
    bool neumann; /* five terms of the series for the inverse (PEFT's default), else exact */
    bool butterfly;
    bool across; /* blocks act transposed */
};

struct delta {
    enum delta_kind kind;
    struct factor f[2];
    float scale;            /* alpha / rank; 1 where the file gives none */
    struct array magnitude; /* [out, ...] or [1, in, ...]: DoRA; data NULL: none */
    bool by_column;         /* norms of columns (in channels), else of rows */
    struct array v;         /* values of SPARSE, GAIN, BIAS, NORM */
    struct array row, col;  /* SPARSE: [n] each, or row [2, n] and no col */
    float less;             /* GAIN: what of v leaves W alone: 1 in PEFT, 0 in LyCORIS */
    bool columns;           /* GAIN: of W's in channels, else its rows */
    bool with_bias;         /* GAIN: the bias's values are multiplied too (PEFT) */
    struct rotation rot;
};

struct delta_item {
    char *site; /* canonical, "unet.mid_block.attentions.0.proj_in"; owned */
    struct delta d;
};

struct delta_list {
    struct delta_item *item; /* owned */
    int n;
    void *own; /* memory that arrays of the list point into, if any; owned */
};
void delta_list_release(struct delta_list *l);
/* A new last item, all zero but site and scale 1; NULL when there is no memory. Pointers into the list are
 * good until the next. */
struct delta *delta_list_add(struct delta_list *l, const char *site, struct err *err);

const char *
delta_kind_name(const struct delta *d); /* "LoRA", "LoCon", "LoHa", "DoRA", … for people */
/* As trainers count it: the width of the factors (a LoHa's dW may reach its square, a LoKr's more); 0 where
 * the kind has none. */
int delta_rank(const struct delta *d);
/* In channels of the weight it changes, where its factors tell; else 0. */
int delta_in(const struct delta *d);

/* ---- matrices ---------------------------------------------------------------------------------
 * The part of a delta that needs no W (PRODUCT, HADAMARD, KRON, SPARSE, GLORA's F0), its factors as
 * float32 in memory of its own. */

struct wide { /* one factor: a · b, or b alone where rank is 0 */
    int rows, rank;
    size_t cols;
    float *a, *b; /* [rows, rank], [rank, cols] or [rows, cols] */
};
struct matrix {
    enum delta_kind kind; /* one of the four */
    int rows;
    size_t cols;
    float scale;
    struct wide f[2];
    size_t n; /* SPARSE: ordered by row, then column */
    uint32_t *row, *col;
    float *v;
};
/* `what` names the site in messages. Factors must multiply and hold finite values. Release with
 * matrix_release, also after an error. */
int matrix_load(struct matrix *m, const struct delta *d, const char *what, struct err *err);
/* The same for one factor alone, as a PRODUCT with scale 1. */
int matrix_load_factor(struct matrix *m, const struct factor *f, const char *what, struct err *err);
void matrix_release(struct matrix *m);
/* out [n, cols] = rows [row0, row0 + n), scaled. */
void matrix_rows(const struct matrix *m, int row0, int n, float *out);

/* Frobenius norm and inner product <A, B> = sum of A_ij B_ij, in double. Products by their factors alone,
 * O(r^2 (rows + cols)); KRON with KRON of the same split by its two; all others a few rows at a time, so
 * dW is never whole in memory. Shapes must be the same. NAN when there is no memory. */
double matrix_norm(const struct matrix *m);
double matrix_inner(const struct matrix *a, const struct matrix *b);

/* The sum of w[i] * m[i] as one product of rank sum r_i, exact: factors side by side. Each must be a PRODUCT
 * or a KRON whose second factor has a rank (kron(A, u v) = kron(A, u) · kron(I, v)). ERR_UNSUPPORTED
 * else. */
int matrix_sum(struct matrix *out, int n, const struct matrix *const *m, const double *w,
               struct err *err);
/* The nearest matrix of at most that rank (Eckart-Young), as a product: up holds U S, down V^T. For products
 * by QR of both factors, exact; others by a full SVD. `kept`: part of the squared norm that remains.
 * sigma (or NULL) takes min(rank, …) singular values, largest first; their count is out->f[0].rank. */
int matrix_truncate(struct matrix *out, const struct matrix *m, int rank, double *kept,
                    double *sigma, struct err *err);

#endif
