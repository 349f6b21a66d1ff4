/* attended.h: how much each place of a picture attends to single keys, and the way back from that to the latent.
 *
 *     struct attended a = {.level = 2, .region = -1, .key = key, .n = n};
 *     attended_begin(&a, rows);                       // before each pass, measured or not
 *     attended_see(&a, &run, &q, &k, &how);           // at the attentions of interest
 *     attended_end(&a);                               // map has the means
 *     … a.back[i] = dL / d map[i] …
 *     attended_seed(&a, tape);                        // before tape_back
 *     attended_release(&a);
 *
 * map[row, i, p] is the mean over attentions seen, and their heads, of the weight of key i at place p:
 *
 *     softmax_j(q_p k_j / sqrt d) at j = key[i]
 *
 * (CLoRA's and LoRA-Composer's maps.) The weights come from op_attention with values that are 1 at one key in one channel
 * of a head, so maps need no kernel of their own, and the tape finds its way back through them.
 */
#ifndef WEFT_ATTENDED_H
#define WEFT_ATTENDED_H

#include "unet/tape.h"
#include "unet/unet.h"

enum { ATTENDED_SELF = -2 };

struct attended {
    int level;  /* of the UNet, counted from 0, whose attentions count */
    int first;  /* and none before this cross attention, or beside it */
    int region; /* whose keys: a region's, the whole picture's text (-1), or ATTENDED_SELF */
    const int *
        key; /* [n], or [rows / rows_a_key, n]; -1: none, its map is 0; NULL: all there are. Kept by the caller */
    int rows_a_key; /* 0: all rows have the same keys; else so many rows after one another */
    int n;          /* found while measuring where key is NULL */

    int rows, h, w, layers;
    float *map, *back; /* [rows, n, h*w]; back stays as the caller left it */
    struct made {      /* each attention with values of its own */
        struct tensor o;
        int first, n, heads;
    } * made;
    int n_made, cap;
    float *host;
    size_t room, values; /* of host; of map and back */
};

void attended_begin(struct attended *a, int rows);
/* Whether a cross attention, or the self attention beside it, counts. */
bool attended_counts(const struct attended *a, const struct unet *u, int cross, int region);
/* Errors are the run's. Sizes are taken while it measures. */
void attended_see(struct attended *a, struct run *r, const struct tensor *q, const struct tensor *k,
                  const struct attention *how);
void attended_end(struct attended *a);
/* With the run's tape, begun before the pass; also while measuring. */
void attended_seed(struct attended *a, struct tape *t);
void attended_release(struct attended *a);

/* Of the levels with cross attention, each half of the one before, that whose maps are nearest to 1/divide of the latent's
 * side; of two the smaller. */
int attended_level(const struct unet *u, int divide);
/* The cross attentions of that level end behind this many of the UNet's. */
int attended_until(const struct unet *u, int level);

#endif
