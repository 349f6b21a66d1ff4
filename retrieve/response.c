#include "response.h"

#include "unet/prompt.h"
#include "unet/rng.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Captions that hardly any adapter is about. */
static const char *const plain[] = {"a dog",
                                    "a house",
                                    "a pizza",
                                    "a car",
                                    "a tree",
                                    "a ball",
                                    "two people",
                                    "a picture",
                                    "a fox and a rocket",
                                    "on a blue background",
                                    "an owl above a castle",
                                    "something small",
                                    "a man with a hat",
                                    "the sea at night",
                                    "a red flower in a garden",
                                    "a city street"};
enum { N_PLAIN = sizeof plain / sizeof *plain };

struct responder {
    const struct model *m;
    int width, n_site;
    double *weight; /* [sites of the model] 1 / |W|, 0 where no text arrives */
    float *mean;    /* [width] */
    struct query plain[N_PLAIN];
};

/* ---- texts ----------------------------------------------------------------------------------- */

void query_release(struct query *q)
{
    free(q->state);
    memset(q, 0, sizeof *q);
}

/* The states of a text's own tokens, out of all that the encoder gives for its chunks. */
static int own_states(const struct model *m, const struct prompt_chunks *c, const float *all,
                      int width, struct query *q, struct err *err)
{
    int len = m->text->positions;
    q->state = malloc((size_t)c->n_chunk * (size_t)len * (size_t)width * sizeof *q->state);
    if (!q->state)
        return err_nomem(err, (size_t)len * (size_t)width * sizeof *q->state);
    for (int i = 0; i < c->n_chunk; i++) {
        int end = clip_text_end(m->text, c->id + i * len, len);
        size_t n = end > 1 ? (size_t)end - 1 : 0;
        memcpy(q->state + (size_t)q->n * (size_t)width,
               all + ((size_t)i * (size_t)len + 1) * (size_t)width,
               n * (size_t)width * sizeof *all);
        q->n += (int)n;
    }
    return q->n ? 0 : err_set(err, ERR_ARG, "no word to look for");
}

static int ask(const struct responder *r, const char *text, struct query *q, struct err *err)
{
    struct prompt_chunks c;
    float *all = NULL;
    memset(q, 0, sizeof *q);
    int rc = model_text_states(r->m, text, &c, &all, err);
    rc = rc < 0 ? rc : own_states(r->m, &c, all, r->width, q, err);
    free(all);
    prompt_chunks_release(&c);
    return rc;
}

static void centre(const struct responder *r, struct query *q)
{
    for (int i = 0; i < q->n * r->width; i++)
        q->state[i] -= r->mean[i % r->width];
}

int responder_ask(const struct responder *r, const char *text, struct query *q, struct err *err)
{
    int rc = ask(r, text, q, err);
    if (rc == 0)
        centre(r, q);
    return rc;
}

static int learn_plain(struct responder *r, struct err *err)
{
    int rc = 0, n = 0;
    for (int i = 0; i < N_PLAIN && rc == 0; i++) {
        rc = ask(r, plain[i], &r->plain[i], err);
        for (int k = 0; k < r->plain[i].n * r->width; k++)
            r->mean[k % r->width] += r->plain[i].state[k];
        n += r->plain[i].n;
    }
    for (int k = 0; k < r->width && rc == 0; k++)
        r->mean[k] /= (float)n;
    for (int i = 0; i < N_PLAIN && rc == 0; i++)
        centre(r, &r->plain[i]);
    return rc;
}

/* ---- models ---------------------------------------------------------------------------------- */

/* Where the text's states are what a layer takes in. */
static bool takes_text(const struct site *s)
{
    const char *p = s->part == COMPONENT_UNET && s->layer ? strstr(s->name, ".attn2.to_") : NULL;
    return p && (!strcmp(p, ".attn2.to_k") || !strcmp(p, ".attn2.to_v"));
}

static int weigh(struct responder *r, const struct site *s, double *weight, struct err *err)
{
    size_t n = array_count(&s->layer->w);
    float *w = malloc(n * sizeof *w);
    double sum = 0;
    int rc = w ? array_to_finite(&s->layer->w, w, s->name, err) : err_nomem(err, n * sizeof *w);
    for (size_t i = 0; i < n && rc == 0; i++)
        sum += (double)w[i] * w[i];
    *weight = sum > 0 ? 1 / sqrt(sum) : 0;
    r->n_site++;
    free(w);
    return rc;
}

int responder_open(struct responder **out, const struct model *m, struct err *err)
{
    struct responder *r = calloc(1, sizeof *r);
    const struct sites *s = &m->sites;
    int rc = 0;
    *out = NULL;
    if (!r)
        return err_nomem(err, sizeof *r);
    r->m = m;
    r->width = m->text->tower.width;
    r->weight = calloc((size_t)s->n + 1, sizeof *r->weight);
    r->mean = calloc((size_t)r->width, sizeof *r->mean);
    if (!r->weight || !r->mean)
        rc = err_nomem(err, (size_t)s->n * sizeof *r->weight);
    for (int i = 0; i < s->n && rc == 0; i++)
        if (takes_text(&s->at[i]) && s->at[i].layer->in == r->width)
            rc = weigh(r, &s->at[i], &r->weight[i], err);
    if (rc == 0 && !r->n_site)
        rc = err_set(err, ERR_UNSUPPORTED, "no layer of this model looks at the text");
    rc = rc < 0 ? rc : learn_plain(r, err);
    if (rc < 0)
        responder_close(r);
    else
        *out = r;
    return rc;
}

void responder_close(struct responder *r)
{
    if (!r)
        return;
    for (int i = 0; i < N_PLAIN; i++)
        query_release(&r->plain[i]);
    free(r->weight);
    free(r->mean);
    free(r);
}

int responder_width(const struct responder *r)
{
    return r->width;
}

/* ---- adapters -------------------------------------------------------------------------------- */

/* Rows whose products with themselves add up to G. When they are too many the largest directions stay. */
enum { ROOM = 256, KEPT = 64, SAMPLED = 128, SMALL = 256 * 256 };
struct rows {
    float *v; /* [ROOM, width] */
    int n, width;
};

static int shrink(struct rows *s, int most, struct err *err)
{
    struct matrix all = {.kind = DELTA_PRODUCT, .rows = s->n, .cols = (size_t)s->width, .scale = 1},
                  few;
    double kept, sigma[ROOM];
    all.f[0] = (struct wide){.rows = s->n, .cols = (size_t)s->width, .b = s->v};
    if (s->n <= most)
        return 0;
    int rc = matrix_truncate(&few, &all, most, &kept, sigma, err);
    if (rc < 0)
        return rc;
    s->n = few.f[0].rank;
    for (int i = 0; i < s->n * s->width; i++)
        s->v[i] = (float)sigma[i / s->width] * few.f[0].b[i];
    matrix_release(&few);
    return 0;
}

static int add_row(struct rows *s, const float *v, double scale, struct err *err)
{
    int rc = s->n == ROOM ? shrink(s, KEPT, err) : 0;
    float *to = s->v + (size_t)s->n * (size_t)s->width;
    for (int i = 0; i < s->width && rc == 0; i++)
        to[i] = (float)(scale * v[i]);
    s->n += rc == 0;
    return rc;
}

/* Of a large dW, SAMPLED sums of its rows with random signs: their mean product is dW^T dW. */
static int add_sampled(struct rows *s, const float *w, int out, double weight, struct err *err)
{
    size_t width = (size_t)s->width;
    float *sum = malloc(width * sizeof *sum);
    struct rng r;
    int rc = sum ? 0 : err_nomem(err, width * sizeof *sum);
    rng_init(&r, RNG_TORCH, 0); /* the same for all */
    for (int k = 0; k < SAMPLED && rc == 0; k++) {
        memset(sum, 0, width * sizeof *sum);
        for (int i = 0; i < out; i++) {
            float sign = rng_u32(&r) >> 31 ? 1 : -1;
            for (size_t j = 0; j < width; j++)
                sum[j] += sign * w[(size_t)i * width + j];
        }
        rc = add_row(s, sum, weight / sqrt(SAMPLED), err);
    }
    free(sum);
    return rc;
}

/* The right singular vectors of m. */
static int add_matrix(struct rows *s, const struct matrix *m, double weight, struct err *err)
{
    struct matrix few = {0};
    double kept, sigma[KEPT];
    int rc = matrix_truncate(&few, m, KEPT, &kept, sigma, err);
    for (int i = 0; i < few.f[0].rank && rc == 0; i++)
        rc = add_row(s, few.f[0].b + (size_t)i * m->cols, sigma[i] * weight, err);
    matrix_release(&few);
    return rc;
}

static int add_product(struct rows *s, const struct bound *b, const char *site, double weight,
                       struct err *err)
{
    struct matrix m = {0};
    int rc = matrix_load(&m, &b->d, site, err);
    rc = rc < 0 ? rc : add_matrix(s, &m, weight * b->factor, err);
    matrix_release(&m);
    return rc;
}

/* Any other dW, written out. */
static int add_whole(struct rows *s, const struct bound *b, const struct layer *l, double weight,
                     struct err *err)
{
    size_t n = (size_t)l->out * (size_t)l->in;
    float *w = calloc(n, sizeof *w);
    const struct matrix m = {.kind = DELTA_PRODUCT,
                             .rows = l->out,
                             .cols = (size_t)l->in,
                             .scale = 1,
                             .f[0] = {.rows = l->out, .cols = (size_t)l->in, .b = w}};
    int rc = w ? 0 : err_nomem(err, n * sizeof *w);
    for (; b && rc == 0; b = b->next)
        rc = bound_add(b, l, w, NULL, 1, err);
    if (rc == 0)
        rc = n <= SMALL ? add_matrix(s, &m, weight, err) : add_sampled(s, w, l->out, weight, err);
    free(w);
    return rc;
}

static bool is_product(const struct bound *b)
{
    return b->simple && b->d.kind == DELTA_PRODUCT && b->d.f[0].a.data && !b->next;
}

/* sqrt((h - m)^T G (h - m)), its mean over the tokens. */
static double answer(const struct response *a, const struct query *q, int width)
{
    double sum = 0;
    for (int t = 0; t < q->n; t++) {
        const float *h = q->state + (size_t)t * (size_t)width;
        double squares = 0;
        for (int k = 0; k < RESPONSE_ROWS; k++) {
            const float *row = a->row + (size_t)k * (size_t)width;
            double dot = 0;
            for (int i = 0; i < width; i++)
                dot += (double)row[i] * h[i];
            squares += dot * dot;
        }
        sum += sqrt(squares);
    }
    return q->n ? sum / q->n : 0;
}

int responder_read(const struct responder *r, const struct adapter *a, struct response *out,
                   struct err *err)
{
    struct rows s = {.width = r->width};
    const struct sites *sites = &r->m->sites;
    int rc = 0;
    memset(out, 0, sizeof *out);
    s.v = malloc((size_t)ROOM * (size_t)r->width * sizeof *s.v);
    out->row = calloc((size_t)RESPONSE_ROWS * (size_t)r->width, sizeof *out->row);
    if (!s.v || !out->row)
        rc = err_nomem(err, (size_t)ROOM * (size_t)r->width * sizeof *s.v);
    for (int i = 0; i < sites->n && rc == 0; i++) {
        const struct bound *b = a->at[i];
        if (!b || r->weight[i] == 0)
            continue;
        rc = is_product(b) ? add_product(&s, b, sites->at[i].name, r->weight[i], err)
                           : add_whole(&s, b, sites->at[i].layer, r->weight[i], err);
    }
    rc = rc < 0 ? rc : shrink(&s, RESPONSE_ROWS, err);
    if (rc == 0) {
        memcpy(out->row, s.v, (size_t)s.n * (size_t)r->width * sizeof *s.v);
        for (int i = 0; i < N_PLAIN; i++)
            out->plain += log(answer(out, &r->plain[i], r->width)) / N_PLAIN;
        out->silent = !isfinite(out->plain);
    }
    free(s.v);
    return rc;
}

void response_release(struct response *a)
{
    free(a->row);
    memset(a, 0, sizeof *a);
}

double response_score(const struct responder *r, const struct response *a, const struct query *q)
{
    double x = a->silent ? 0 : answer(a, q, r->width);
    return x > 0 ? log(x) - a->plain : -INFINITY;
}
