/* encoder.h: an adapter as a vector, by what its weights do, in a space that it shares with texts (after AutoLoRA's
 * weight encoder, Li et al. 2025; inputs and training are ours: assets/train/encoder.py).
 *
 *     struct encoder *e;
 *     encoder_open(&e, model, "assets/retriever", "assets/scorer", &err);
 *     float a[e->dim], b[e->dim];
 *     encoder_read(e, adapter, a, &strength, &err);   // once an adapter; may be kept
 *     encoder_ask(e, "a fox in neon lines", b, &err);
 *     encoder_close(e);                               // likeness: the inner product of a and b
 *
 * It belongs to one model: a folder of config.json and model.safetensors made for it. Of every site that it knows an
 * adapter has a token, made of dW alone, however that is factored or stored:
 *
 *     sketch    L dW R^T / |dW|, L [p, out] and R [q, in kh kw] fixed: directions in which adapters of this model
 *               differ most, or along which its own inputs lie; brought to few numbers by a fixed matrix
 *     spectrum  the largest singular values by |dW|, and (sum s)^2 / sum s^2 / 16 of the first 16
 *     share     ln(|dW| / |W| / strength) / 2 + 1, strength = sqrt(sum over sites of (|dW| / |W|)^2)
 *
 * and where it does nothing one that says so. A transformer (clip.h's tower) reads the tokens and one more, whose last
 * state is brought to the space of a CLIPModel's texts and to length 1. strength is told apart: the vector is the
 * same at any. The text's vector is the tower's, less the mean of those learnt from, times a matrix, to length 1.
 */
#ifndef WEFT_ENCODER_H
#define WEFT_ENCODER_H

#include "unet/bind.h"
#include "unet/model.h"
#include "unet/scorer.h"

struct encoder {
    const struct model *m;
    struct scorer *scorer;
    int dim;
    char name[HASH_HEX]; /* SHA-256 of its weights: what vectors are kept under */

    /* the rest is its own */
    struct weights *weights;
    struct sites layers; /* the tower's, by name */
    struct clip_tower tower;
    struct norm final;
    struct run run;
    struct encoder_site *site;
    int n_site, kinds, sketch[2], kept, spectrum, tokens_in;
    double match[3];          /* constant, of likeness, of answer */
    float **kind_w, **kind_b; /* [kinds] of [width, tokens_in] and [width] */
    float *position, *absent, *head, *bias, *text, *mean;
};

/* ERR_MISMATCH: it was made for another model. The model is kept until encoder_close. */
int encoder_open(struct encoder **out, const struct model *m, const char *dir, const char *scorer,
                 struct err *err);
void encoder_close(struct encoder *e);

/* The adapter is bound to the same model. out [dim]; 1: it changes nothing that the encoder knows, out is 0. */
int encoder_read(struct encoder *e, const struct adapter *a, float *out, double *strength,
                 struct err *err);
/* How likely an adapter is meant by a text, 0 to 1: from the inner product of their vectors and the adapter's answer
 * (response.h), by a logistic regression on adapters that the encoder did not learn from ("match" in config.json). NAN
 * and -INFINITY: not known. */
double encoder_match(const struct encoder *e, double likeness, double answer);
/* out [dim]. */
int encoder_ask(struct encoder *e, const char *text, float *out, struct err *err);

#endif
