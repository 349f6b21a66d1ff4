/* bind.h: adapters joined to a model.
 *
 * adapter_bind takes a list of deltas (delta.h) to a model's sites. Bound, an adapter acts as a side branch
 * (struct branch in ops.h), or fold_new adds it to private copies of the weights; the model itself never
 * changes.
 *
 * Every kind of delta comes down to one form on its weight W, in this order:
 *
 *     dW = row o M + gain o W,   or   (W + M) o column - W,   or   a dense matrix
 *
 * M being what the file holds, row and gain a number a row, column a number an in channel. DoRA's rows are
 * row = g, gain = g - 1; IA3's are gain; GLoRA adds (W a1) a2. As a side branch a product runs as two
 * narrow layers and gain on the layer's own output h; all else as one dense layer of dW.
 */
#ifndef WEFT_BIND_H
#define WEFT_BIND_H

#include "backend.h"
#include "delta.h"
#include "lbw.h"
#include "loader.h"

/* dW of one delta on one weight. Owns everything in it. */
struct form {
    int out;
    size_t inner;        /* in * kh * kw */
    int taps;            /* kh * kw */
    struct matrix m;     /* rows 0: none */
    struct matrix extra; /* GLoRA's second product; rows 0: none */
    float *row;          /* [out] or NULL */
    float *gain;         /* [out] or NULL */
    float *column;       /* [in] or NULL */
    float *dense;        /* [out, inner] or NULL */
    float *bias;         /* [out] added to the layer's bias, or NULL */
};
/* ERR_MISMATCH when the delta has another shape than W: then err says how it differs. l's weight and bias
 * are read, not kept. Release after any result. */
int form_bind(struct form *f, const struct delta *d, const struct layer *l, struct err *err);
void form_release(struct form *f);
/* w [n, inner] += strength * rows [row0, row0 + n) of dW. w0: the same rows of W itself. Fails only for want
 * of memory. */
int form_add(const struct form *f, const float *w0, float *w, int row0, int n, float strength,
             struct err *err);

/* What a delta does beside its layer, as a side branch. Layers' weights are borrowed from the file or the form. */
struct side {
    struct layer down,
        up; /* y += scale * up(down(x)); up.out 0: y += scale * down(x), a dense dW */
    struct layer down2, up2; /* GLoRA's; up2.out 0: none */
    float scale;
    float *gain, *shift; /* [out], device memory: y += gain o h + shift; NULL: neither */
    float *dense;        /* host memory of a dense dW; owned */
};

/* One delta at one site; more may follow. */
struct bound {
    struct delta d;
    struct form form; /* empty when simple */
    struct side side; /* empty on norms */
    float factor;     /* of its block; multiplies every strength */
    bool simple;      /* a plain product, which needs no form to act */
    float *norm[2];   /* at a norm: [c] added to gamma, to beta; NULL: nothing */
    struct bound *next;
};

struct adapter {
    char *name;
    struct device *dev;
    int n_site;
    struct bound **at; /* [n_site], NULL where the adapter does nothing */
    int matched;       /* deltas that found their weight */
    int matched_in[COMPONENT_COUNT];
};

/* What of a list did not fit the model, one line an item: "NAME: why". */
struct bind_report {
    char **line; /* owned */
    int n;
};
void bind_report_release(struct bind_report *r);

/* Binds every delta whose site the model has and whose shape fits; misfits are listed in `report`. The
 * arrays in `l` are kept until adapter_free. fold: it will only be folded, never run as a side branch, and
 * no dense dW is made. ERR_MISMATCH when nothing matches, or when more weights have another width than
 * fit: then the adapter was made for another base, and both widths are named. Values must be finite. */
int adapter_bind(struct adapter **out, struct device *dev, const struct sites *sites,
                 const struct delta_list *l, const char *name, bool fold,
                 struct bind_report *report, struct err *err);
void adapter_free(struct adapter *a);
/* Strengths block by block. ERR_MISMATCH when the model has not the blocks that they are for: four levels of
 * two layers. */
int adapter_weigh(struct adapter *a, const struct sites *sites, const struct lbw *b,
                  struct err *err);
/* w [out, in * kh * kw] += strength * dW of one delta on l's own weight, and bias [out] (NULL: not wanted) likewise. */
int bound_add(const struct bound *b, const struct layer *l, float *w, float *bias, float strength,
              struct err *err);
/* All that is bound there as one dW on l's own weight, [out, in kh kw], new. */
int bound_whole(float **out, const struct bound *b, const struct layer *l, struct err *err);
/* Whether that is one plain product of two factors. */
bool bound_is_product(const struct bound *b);
/* Bytes its factors take once packed. */
size_t adapter_bytes(const struct adapter *a);

enum { JOINT_MAX = GATE_MOST };

/* What a joint is for: their sum; routing, for which each product U S V^T stands there as U and S V^T, however its
 * file has it; gates, which one adapter alone goes through too. */
enum joint_for { JOINT_SUM, JOINT_ROUTE, JOINT_GATE };

/* Several adapters' products at one site as one: sum_i s_i B_i A_i = [B_1 .. B_n] diag(s) [A_1; ..; A_n], two
 * layers where there were 2n. What their strengths leave alone (alpha / rank, factors of blocks) is in `up`. */
struct joined {
    struct layer down, up;
    int n;                                         /* products, side by side */
    int part[2 * JOINT_MAX], width[2 * JOINT_MAX]; /* whose each is, and its rank */
    bool has[JOINT_MAX];                           /* whose products these are */
    float *values;                                 /* of both layers; owned */
    float *turned; /* JOINT_GATE: up as [ranks, out], device memory; owned */
};
/* Adapters that act together; what is no product, or the only one at its site, acts as it would alone. */
struct joint {
    struct device *dev;
    enum joint_for what;
    int n, n_site;
    const struct adapter *adapter[JOINT_MAX]; /* borrowed */
    struct joined **at;                       /* [n_site], NULL: nothing is joined there */
};
/* At the sites of one component; n: 1 to JOINT_MAX. */
int joint_new(struct joint **out, const struct sites *sites, enum component part, int n,
              const struct adapter *const *adapter, enum joint_for what, struct err *err);
void joint_free(struct joint *j);
/* Bytes its factors take once packed, and as they are kept. */
size_t joint_bytes(const struct joint *j);
/* What several do in common, as an adapter: at each site of the component the `rank` largest directions of the sum of
 * strength_i dW_i, over those that are products there (AutoLoRA's Global LoRA). Owns its factors. */
int adapter_common(struct adapter **out, const struct sites *sites, enum component part, int n,
                   const struct adapter *const *adapter, const float *strength, int rank,
                   struct err *err);

/* Private weights with adapters added: W + sum_i strength_i * dW_i, for the sites of one component
 * that any of them touches. */
struct fold {
    struct device *dev;
    int n_site;
    struct layer **at; /* [n_site], NULL: the model's own */
    struct norm **norm;
};
int fold_new(struct fold **out, const struct sites *sites, enum component part, int n,
             const struct adapter *const *adapter, const float *strength, struct err *err);
void fold_free(struct fold *f);

/* gamma [c] and beta [c] as the model has them. */
void norm_values(const struct norm *g, float *gamma, float *beta);
/* Adds what a delta bound at a norm does to them. */
void norm_add(float *gamma, float *beta, int c, const struct bound *b, float strength);

#endif
