/* encoder.h: an adapter as a vector, by what its weights do, in a space that it shares with texts (the idea is
 * AutoLoRA's, Li et al. 2025; the maps and their training are ours: assets/train/encoder.py).
 *
 *     struct encoder *e;
 *     encoder_open(&e, model, responder, "assets/retriever", "assets/scorer", &err);
 *     float a[e->dim], b[e->dim];
 *     encoder_read(e, adapter, &response, a, &strength, &err);  // once an adapter; may be kept
 *     encoder_ask(e, "a fox in neon lines", &query, b, &err);
 *     encoder_close(e);                                         // likeness: the inner product of a and b
 *
 * It belongs to one model: a folder of config.json and model.safetensors made for it. A vector has two parts, each a
 * linear map of what is told of dW alone, however that is factored or stored, brought to length 1 / sqrt 2:
 *
 *     sketch    L dW R^T / |dW| of every site that it knows, L [p, out] and R [q, in kh kw] fixed: directions in which
 *               adapters of this model differ most, and along which a site's inputs lie; 0 where the adapter does
 *               nothing; all together brought to length 1
 *     answer    G = (A C^1/4)^T A C^1/4 of response.h, in the main directions of the states of captions, to length 1
 *
 * and a text's vector two parts that they were fitted to: the tower's vector of it, and the mean of its states times
 * C^-1/4 in the model's own text encoder, each less the mean of those learnt from and times a matrix. The strength of an
 * adapter, sqrt(sum over sites of (|dW| / |W|)^2), is told apart: the vector is the same at any.
 */
#ifndef WEFT_ENCODER_H
#define WEFT_ENCODER_H

#include "response.h"

#include "unet/scorer.h"

struct encoder {
    const struct model *m;
    const struct responder *re;
    struct scorer *scorer;
    int dim;
    char name[HASH_HEX]; /* SHA-256 of its weights: what vectors are kept under */

    /* the rest is its own */
    struct weights *weights;
    struct sites layers; /* none: what a loader asks for */
    struct encoder_site *site;
    int n_site, sketch[2], states, part[2];
    double match[4]; /* constant, of likeness, of answer; least */
    /* a map's bias [part], text [part, in] and mean [in]: of sketches, of answers */
    struct encoder_map {
        float *bias, *text, *mean;
    } map[2];
    float *main, *weight; /* [states, width]; [part, states (states + 1) / 2] */
};

/* ERR_MISMATCH: it was made for another model. The model and the responder are kept until encoder_close. */
int encoder_open(struct encoder **out, const struct model *m, const struct responder *re,
                 const char *dir, const char *scorer, struct err *err);
void encoder_close(struct encoder *e);

/* The adapter is bound to the same model, answer is what the responder says of it. out [dim]; 1: it changes nothing
 * that the encoder knows, out is 0. */
int encoder_read(const struct encoder *e, const struct adapter *a, const struct response *answer,
                 float *out, double *strength, struct err *err);
/* How likely it is that an adapter is meant by a text rather than none, as odds: from the inner product of their
 * vectors and the adapter's answer (response.h), fitted to adapters that the encoder did not learn from ("match" in
 * config.json). Among several it is odds / (1 + all odds), and from match[3] on it is worth taking. NAN and -INFINITY:
 * not known. */
double encoder_odds(const struct encoder *e, double likeness, double answer);
/* out [dim]; q is what the responder says of the text. */
int encoder_ask(struct encoder *e, const char *text, const struct query *q, float *out,
                struct err *err);

#endif
