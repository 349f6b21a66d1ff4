/* layout.h: many-dimensional vectors as places in the plane, the alike near each other.
 *
 *     layout_plane(x, n, dim, NULL, NULL, NULL, place, &err);    // x [n, dim], place [n, 2]
 *     layout_clusters(place, n, cluster, density, &err);
 *
 * t-SNE (van der Maaten, Hinton: Visualizing Data using t-SNE, JMLR 9, 2008): what is near in the vectors is
 * near in the plane; far distances and the axes mean nothing. Chosen over PCA and MDS, which draw distances as
 * such, because adapters' vectors are nearly orthogonal: only who is whose neighbour says anything, and there
 * is no plane that most of them lie near. Affinities are of the nearest neighbours alone, three times the
 * perplexity (van der Maaten: Accelerating t-SNE using Tree-Based Algorithms, JMLR 15, 2014); what pushes
 * apart is summed exactly, n^2 a round, without a tree: 3,000 take seconds. It begins at the first two
 * principal components (Kobak, Berens: The art of using t-SNE for single-cell transcriptomics, 2019), so that
 * there is no luck in it: the same vectors give the same places, whatever the threads.
 */
#ifndef WEFT_LAYOUT_H
#define WEFT_LAYOUT_H

#include "unet/err.h"

/* x [n, dim]: rows of unit length, without NaN; nearness is the cosine. island [n], numbers from 0, or NULL:
 * vectors that have nothing to do with each other; each island is laid out by itself, and islands lie beside
 * each other with a gap. place [n, 2] is filled in: x and y within -1 … 1, wider than high. Equal vectors may
 * have equal places. Memory: a copy of an island's x, and 200 numbers a vector. progress (or NULL): done of
 * total, nonzero stops with ERR_STOPPED. */
int layout_plane(const float *x, int n, int dim, const int *island,
                 int (*progress)(void *user, int done, int total), void *user, float *place,
                 struct err *err);

/* Which places belong together: each is linked to its nearest neighbour of higher density, unless that is far
 * (Vedaldi, Soatto: Quick Shift and Kernel Methods for Mode Seeking, 2008); the densest of a tree is its
 * middle. cluster [n]: numbers from 0, the largest first; density [n], or NULL: higher is more central. Returns
 * how many there are. */
int layout_clusters(const float *place, int n, int *cluster, float *density, struct err *err);

#endif
