/* matrices.h: a whole adapter as matrices, for what is done between adapters and not to a model: their
 * geometry, their sum, lower ranks.
 *
 *     struct matrices a, b, sum;
 *     matrices_load(&a, &file_a->list, &err);
 *     double cosine = matrices_inner(&a, &b) / (matrices_norm(&a) * matrices_norm(&b));
 *     matrices_sum(&sum, 2, (const struct matrices *[]){&a, &b}, w, &err);   // exact
 *     matrices_truncate(&sum, 16, 1, &kept, &err);                           // rank 16 a site
 *     matrices_release(&sum);
 *
 * Only deltas that need no model are matrices (delta.h). Kinds that do, and biases and norms, are left out
 * and counted in `left`.
 */
#ifndef WEFT_MATRICES_H
#define WEFT_MATRICES_H

#include "delta.h"

struct matrices {
    struct matrices_item {
        char *site;
        int kh, kw; /* of the kernel; 1, 1 where the file does not say */
        struct matrix m;
    } * item; /* by site; owned */
    int n;
    int left;              /* deltas that are no matrices */
    const char *left_kind; /* what the first of them is */
};
/* Zeros a first. Release after any result. */
int matrices_load(struct matrices *a, const struct delta_list *l, struct err *err);
void matrices_release(struct matrices *a);

/* Frobenius, over all sites; sites that both have, of the same shape. */
double matrices_norm(const struct matrices *a);
double matrices_inner(const struct matrices *a, const struct matrices *b);

/* Random projections g^T dW h with signs g and h that belong to the site and the number of the projection,
 * summed over sites: the mean of a_k b_k is <a, b> (Johnson-Lindenstrauss for rank-one signs), give or
 * take sqrt(3 / SKETCH_SIZE) |a| |b|. The same for the same adapter on any machine, up to rounding. */
#define SKETCH_SIZE 256
int matrices_sketch(const struct matrices *a, float out[SKETCH_SIZE], struct err *err);
double sketch_inner(const float a[SKETCH_SIZE], const float b[SKETCH_SIZE]);

/* The sum of w[i] a[i], exact: a site's ranks add up (matrix_sum). ERR_UNSUPPORTED where a part has no exact
 * sum or was left out; the message names it. */
int matrices_sum(struct matrices *out, int n, const struct matrices *const *a, const double *w,
                 struct err *err);
/* In place: the first `rank` columns of each factor as they are, which is what a DyLoRA was trained for; all
 * must be products. *kept: of the whole adapter's squared norm. */
int matrices_slice(struct matrices *a, int rank, double *kept, struct err *err);
/* In place, each site the nearest of at most `rank`, and as low as keeps `energy` (0 … 1) of its squared
 * norm. kept (or NULL): of the whole adapter's squared norm. */
int matrices_truncate(struct matrices *a, int rank, double energy, double *kept, struct err *err);

#endif
