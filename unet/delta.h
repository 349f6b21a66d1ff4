/* delta.h: what an adapter does to a model, whatever file it came from.
 *
 * A delta is one weight's change, in a small algebra of terms; a delta_list is a whole adapter as its
 * importer (store/) leaves it: site names and deltas, no file format, no model. adapter_bind joins it
 * to a model's sites and packs it for a device. Bound, it acts as a side branch (struct branch in
 * ops.h), or fold_new adds it to private copies of the weights; the model itself never changes.
 *
 * Terms so far: low rank, dW = scale * up · down, W being [out, in * kh * kw] (LoRA, Hu et al. 2021;
 * on convolutions LoCon: down is a kh x kw convolution to `rank` channels, up a 1 x 1).
 */
#ifndef WEFT_DELTA_H
#define WEFT_DELTA_H

#include "backend.h"
#include "loader.h"

struct delta {
    int rank;
    struct array down; /* [rank, in] or [rank, in, kh, kw]; borrowed */
    struct array up;   /* [out, rank] or [out, rank, 1, 1]; borrowed */
    float scale;       /* alpha / rank; 1 where the file gives none */
};

struct delta_item {
    char *site; /* canonical, "unet.mid_block.attentions.0.proj_in"; owned */
    struct delta d;
};

struct delta_list {
    struct delta_item *item; /* owned */
    int n;
};
void delta_list_release(struct delta_list *l);

/* A bound adapter: packed branches by site. */
struct delta_branch {
    struct layer down, up;
    float scale;
};
struct adapter {
    char *name;
    struct device *dev;
    int n_site;
    struct delta_branch **at; /* [n_site], NULL where the adapter does nothing */
    struct delta *delta;      /* [n_site] the same as terms, for folding; rank 0: nothing */
    int matched;
    int matched_in[COMPONENT_COUNT]; /* of each component */
};

/* What of a list did not fit the model, one line an item: "NAME: why". */
struct bind_report {
    char **line; /* owned */
    int n;
};
void bind_report_release(struct bind_report *r);

/* Binds every delta whose site the model has and whose shape fits; misfits are listed in `report`. The
 * arrays in `l` are kept until adapter_free. ERR_MISMATCH when nothing matches, or when more weights have
 * another width than fit: then the adapter was made for another base, and both widths are named. Values
 * must be finite. */
int adapter_bind(struct adapter **out, struct device *dev, const struct sites *sites,
                 const struct delta_list *l, const char *name, struct bind_report *report,
                 struct err *err);
void adapter_free(struct adapter *a);
/* Bytes its factors take once packed. */
size_t adapter_bytes(const struct adapter *a);

/* Private weights with adapters added: W + sum_i strength_i * dW_i, for the sites of one component
 * that any of them touches. */
struct fold {
    struct device *dev;
    int n_site;
    struct layer **at; /* [n_site], NULL: the model's own */
};
int fold_new(struct fold **out, const struct sites *sites, enum component part, int n,
             const struct adapter *const *adapter, const float *strength, struct err *err);
void fold_free(struct fold *f);

#endif
