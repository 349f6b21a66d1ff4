/* response.h: how strongly an adapter answers to a text, told from its weights, without any training.
 *
 *     struct responder *r;
 *     struct response a;
 *     struct query q;
 *     responder_open(&r, model, NULL, 0, &err);
 *     responder_read(r, adapter, &a, &err);          // once an adapter; may be kept
 *     responder_ask(r, "a fox in neon lines", &q, &err);
 *     double x[q.n];
 *     response_tokens(r, &a, &q, x);                 // above 0: more than to most texts
 *     response_pool(x, NULL, q.n);
 *
 * A text reaches a UNet by the keys and values of its cross attentions: k = W_k h, v = W_v h, h being a state of the
 * model's own text encoder. What an adapter changes there for h is dW h. What kinds of texts it changes is told by the
 * row space of its dW: with R all rows dW / |W| of those sites, C the covariance of the states of neutral texts and m
 * their mean,
 *
 *     R C^1/4 = U diag(s) V^T,   A = diag(s^1/4) V^T C^-1/4,   answer to a state: ln |A (h - m)|
 *
 * less its mean over neutral texts, so that an adapter that answers loudly to everything gains nothing. s^1/4 instead
 * of s: what it was taught is not what it changes most; C^-1/4: what most texts have in common says little. Of V the
 * first RESPONSE_ROWS are kept. (By the train part of assets/train/zoo.py, of five captions' places: mean 1 / place .29
 * with s and without C, .50 with s^1/4, .56 with both.) Neutral texts are made of words of the model's own vocabulary.
 *
 * Trigger words, names and other metadata play no part. It knows nothing of adapters that leave those sites alone.
 */
#ifndef WEFT_RESPONSE_H
#define WEFT_RESPONSE_H

#include "unet/bind.h"
#include "unet/model.h"

enum { RESPONSE_ROWS = 16 };

struct responder;
/* The model is kept until responder_close. kept, size: what responder_keep gave for the same model, or NULL; else the
 * neutral texts are looked at, which takes seconds on a large model. ERR_UNSUPPORTED for a model without cross
 * attention. */
int responder_open(struct responder **out, const struct model *m, const void *kept, size_t size,
                   struct err *err);
void responder_close(struct responder *r);
/* What of it is worth keeping, borrowed. */
const void *responder_keep(const struct responder *r, size_t *size);
/* Of the states. */
int responder_width(const struct responder *r);

struct response {
    float *row;   /* [RESPONSE_ROWS, width]: A; owned */
    double plain; /* mean answer to neutral texts */
    bool silent;  /* it leaves the cross attentions alone: there is no answer */
};
/* The adapter is bound to the same model. Release after any result. */
int responder_read(const struct responder *r, const struct adapter *a, struct response *out,
                   struct err *err);
void response_release(struct response *a);
/* to [RESPONSE_ROWS, width] = A C^1/4, rows of nearly the length s^1/4: adapters are alike as their
 * G = (A C^1/4)^T A C^1/4 are. */
void response_raise(const struct responder *r, const struct response *a, float *to);

struct query {
    float *state; /* [n, width], a token each, less m; owned */
    int n;
};
/* A text longer than the text encoder is cut. ERR_ARG for one without a token. Release after any result. */
int responder_ask(const struct responder *r, const char *text, struct query *q, struct err *err);
void query_release(struct query *q);
/* out [width]: the mean of its states times C^-1/4, of length 1. */
int query_mean(const struct responder *r, const struct query *q, float *out, struct err *err);

/* share [sites of the model]: which part each has in the sum of |dW (h - m)|^2 / |W|^2 over tokens and sites; 0 from a
 * silent adapter. */
int responder_where(const struct responder *r, const struct adapter *a, const struct query *q,
                    double *share, struct err *err);
/* x [q->n]: the answer to each token, less plain; -INFINITY from a silent adapter. */
void response_tokens(const struct responder *r, const struct response *a, const struct query *q,
                     double *x);
/* Answers to several tokens as one, near the greatest; mean [n] (or NULL) is what adapters answer to each on the
 * average, which a token that all answer to must not count for. */
double response_pool(const double *x, const double *mean, int n);

#endif
