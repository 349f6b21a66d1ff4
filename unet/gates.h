/* gates.h: how much of each adapter comes in, by site, channel, place and time.
 *
 * At a site with base output h and what adapter i adds to it, u_i, each a place's c channels,
 *
 *     z_i = bias + base o n(h) + own o n(u_i) + cross o n(h) o n(u_i) + time s(t) + words w_i
 *     out = h + sum_i gain o sigmoid(z_i) o u_i
 *
 * n being a layer norm without scale and shift, s(t) sines and cosines of the time, and w_i how much the place attends to
 * i's words rather than to the others' (compose/maps.h; 0 where that is not known, and on texts): AutoLoRA, arXiv
 * 2508.02107; the terms in t and w are ours. The vectors are the same for all adapters, so they serve those that they
 * never saw. assets/train/gates.py makes them.
 *
 * Plain gates, whose channels are all alike and that look neither at h nor at u, are a number a place: they come in at the
 * ranks (share in backend.h) and cost nothing.
 */
#ifndef WEFT_GATES_H
#define WEFT_GATES_H

#include "backend.h"
#include "hash.h"
#include "loader.h"

struct gates {
    struct device *dev;
    int n_site;
    float **host; /* the same as at, in host memory */
    float **
        at; /* [n_site] of GATE_ROWS x out, device memory; NULL: what is added there comes in whole */
    bool *plain;          /* [n_site] */
    char model[HASH_HEX]; /* the fingerprint of the model they were learnt for; "": not told */
};

/* FILE is a safetensors of "unet.SITE" [GATE_ROWS, out], or [GATE_ROWS, 1] where all channels are alike. ERR_MISMATCH when a site is not in the model or has another
 * width. */
int gates_open(struct gates **out, struct device *dev, const struct sites *sites, const char *file,
               struct err *err);
void gates_close(struct gates *g);
/* Whether those at a site are. */
bool gates_plain(const struct gates *g, int site);
/* z of plain gates as z[0] + z[1] w; returns their gain. wave NULL: without the time. */
float gates_line(const struct gates *g, int site, int c, const float *wave, float z[2]);
/* gain o sigmoid(z) of one place of one adapter, [c]: what the devices compute, in plain C for looking at. */
void gates_values(const struct gates *g, int site, int c, const float *h, const float *u,
                  const float *wave, float w, float *out);
/* s(t) of a time in [0, 1000). */
void gate_waves(double t, float out[GATE_WAVES]);

#endif
