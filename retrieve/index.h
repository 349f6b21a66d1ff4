/* index.h: the nearest of the embeddings that the repository keeps, by FAISS.
 *
 * What counts are the vectors in the database. An index of them lies beside it, in HOME/index, and is only a
 * cache: one that is old, damaged, cut off, of another version or not there is made again from the vectors, and
 * where it cannot be written (a disk that is full or only read) it is used from memory. Not a byte of it is given to
 * FAISS before a checksum over all of it was found right. This is the one place that knows FAISS.
 *
 *     struct index *x;
 *     int64_t id[10];
 *     float score[10];
 *     int n;
 *     index_open(&x, repo, encoder, 128, &err);
 *     index_search(x, query, 10, id, score, &n, &err);
 *     for (i < n) repo_embedding_adapters(repo, id[i], each, user, &err);   // best first
 *     index_close(x);
 *
 * Up to 2,000 vectors the index is FAISS' flat one. From there on they lie in cells, which FAISS can leave in the file
 * and map: in one cell, so that a search looks at all and is exact, and from 150,000 on in 1,024, of which the nearest
 * 32 are looked at. Measured with 128 numbers a vector, drawn around 4,096 centres, on two AVX-512 cores that others
 * kept busy (`weft bench retrieve`, medians):
 *
 *     vectors     kind                    made    file     opened   a query   of the ten best
 *     100,000     IDMap,Flat              0.6 s    52 MB   97 ms    6.4 ms    100 %     (a copy in memory)
 *     100,000     IVF1,Flat               0.6 s    52 MB   18 ms    6.2 ms    100 %
 *     100,000     IVF256,Flat nprobe=32   2.9 s    52 MB   21 ms    0.3 ms     95.9 %
 *     100,000     IVF1024,Flat nprobe=32   12 s    52 MB   22 ms    0.1 ms     99.2 %
 *     1,000,000   IVF1024,Flat nprobe=32   29 s   521 MB   351 ms   0.7 ms     99.3 %
 *
 * To open is to add up the file: 10 ms for 52 MB while others use the memory too. Each search is of one query and has
 * one thread; FAISS takes to OpenBLAS, whose threads then wait busily, from 20 queries on, thus only while an index of
 * cells is made.
 */
#ifndef WEFT_INDEX_H
#define WEFT_INDEX_H

#include "store/repo.h"

struct index;

/* An index of all vectors of the encoder (repo_embeddings), as they are now; later changes do not reach it. The
 * repository may be closed before it. */
int index_open(struct index **out, struct repo *r, const char *encoder, int dim, struct err *err);
/* The same of a kind that is named instead of chosen by the number of vectors: FAISS' factory string, for inner
 * products and with ids of its own, then maybe a space and parameters for the search: "IDMap,Flat",
 * "IVF1024,Flat nprobe=32". Less than 40 characters. It takes the place of the other kind's file. */
int index_open_as(struct index **out, struct repo *r, const char *encoder, int dim,
                  const char *kind, struct err *err);
void index_close(struct index *x); /* takes NULL */

/* The vectors with the largest inner products with query [dim], best first: their ids and those products to id and
 * score [k], their number, at most k, to *n. Several threads may search at once. */
int index_search(const struct index *x, const float *query, int k, int64_t *id, float *score,
                 int *n, struct err *err);

int64_t index_count(const struct index *x);
/* Its kind, as by index_open_as; borrowed from x. */
const char *index_kind(const struct index *x);

#endif
