/* response.h: how strongly an adapter answers to a text, told from its weights, without any training.
 *
 *     struct responder *r;
 *     struct response a;
 *     struct query q;
 *     responder_open(&r, model, &err);
 *     responder_read(r, adapter, &a, &err);          // once an adapter; may be kept
 *     responder_ask(r, "a fox in neon lines", &q, &err);
 *     response_score(r, &a, &q);                     // above 0: more than to what it has nothing to do with
 *
 * A text reaches a UNet by the keys and values of its cross attentions: k = W_k h, v = W_v h, h being a state of
 * the model's own text encoder. What an adapter changes there for h is dW h, so with
 *
 *     G = sum over those sites of dW^T dW / |W|^2       (Frobenius),  h^T G h = sum |dW h|^2 / |W|^2
 *
 * its answer to a text is the mean over the text's tokens of sqrt((h - m)^T G (h - m)), m being the mean state of a
 * fixed set of plain captions: what all texts have in common says nothing. The score is the logarithm of the answer
 * less its mean over those captions, so an adapter that answers loudly to everything gains nothing by it. Of G the
 * largest RESPONSE_ROWS eigenvectors are kept. Trigger words, names and other metadata play no part.
 *
 * It knows nothing of adapters that leave those sites alone.
 */
#ifndef WEFT_RESPONSE_H
#define WEFT_RESPONSE_H

#include "unet/bind.h"
#include "unet/model.h"

enum { RESPONSE_ROWS = 16 };

struct responder;
/* The model is kept until responder_close. ERR_UNSUPPORTED for a model without cross attention. */
int responder_open(struct responder **out, const struct model *m, struct err *err);
void responder_close(struct responder *r);
/* Of the states. */
int responder_width(const struct responder *r);

struct response {
    float *row;   /* [RESPONSE_ROWS, width]: G is about row^T row; owned */
    double plain; /* mean logarithm of the answers to the plain captions */
    bool silent;  /* it leaves the cross attentions alone: there is no score */
};
/* The adapter is bound to the same model. Release after any result. */
int responder_read(const struct responder *r, const struct adapter *a, struct response *out,
                   struct err *err);
void response_release(struct response *a);

struct query {
    float *state; /* [n, width], less m; owned */
    int n;
};
/* ERR_ARG for a text without a token. Release after any result. */
int responder_ask(const struct responder *r, const char *text, struct query *q, struct err *err);
void query_release(struct query *q);

/* -INFINITY for a silent adapter. */
double response_score(const struct responder *r, const struct response *a, const struct query *q);

#endif
