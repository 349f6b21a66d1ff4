#include "response.h"

#include "algebra.h"

#include "unet/rng.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NEUTRAL = 200, HAND = 20, LONGEST = 32, STATES = 256 };

/* What neutral texts tell of a model, as it is kept: mean [width], in and out [width, width], which are C^1/4 and
 * C^-1/4, and some of the states, less the mean. */
struct responder {
    const struct model *m;
    int width, n_site;
    double *weight; /* [sites of the model] 1 / |W|, 0 where no text arrives */
    float *kept;    /* owned; the next four point into it */
    float *mean, *in, *out, *state;
};

static size_t kept_floats(int width)
{
    size_t w = (size_t)width;
    return w + 2 * w * w + STATES * w;
}

/* ---- texts ----------------------------------------------------------------------------------- */

void query_release(struct query *q)
{
    free(q->state);
    memset(q, 0, sizeof *q);
}

/* Ids of n texts [n, *len], each from its start token on, filled up with the end token; own[i] of its own. */
static int32_t *tokenize(const struct model *m, const char *const *text, int n, int *len, int *own,
                         struct err *err)
{
    int most = m->text->positions, width = 1, rc = 0;
    int32_t *id = malloc((size_t)n * (size_t)most * sizeof *id);
    if (!id)
        err_nomem(err, (size_t)n * (size_t)most * sizeof *id);
    for (int i = 0; id && i < n && rc == 0; i++) {
        struct tokens t = {0};
        rc = tokenizer_encode(m->tokenizer, text[i], -1, &t, err);
        own[i] = (int)(t.n < (size_t)most - 2 ? t.n : (size_t)most - 2);
        for (int k = 0; k < most && rc == 0; k++)
            id[i * most + k] = k == 0        ? tokenizer_bos(m->tokenizer)
                               : k <= own[i] ? t.id[k - 1]
                                             : tokenizer_eos(m->tokenizer);
        width = own[i] + 1 > width ? own[i] + 1 : width;
        tokens_release(&t);
    }
    if (id && rc < 0) {
        free(id);
        return NULL;
    }
    width = (width + 7) / 8 * 8; /* few different shapes */
    *len = width < most ? width : most;
    for (int i = 1; id && i < n; i++)
        memmove(id + i * *len, id + i * most, (size_t)*len * sizeof *id);
    return id;
}

/* The states of the texts' own tokens, one behind the other. What comes later in a row changes nothing before it. */
static int states(const struct model *m, const char *const *text, int n, struct query *q,
                  struct err *err)
{
    int len = 0, own[HAND], width = m->text->tower.width, rc = 0;
    int32_t *id = tokenize(m, text, n, &len, own, err);
    struct tensor y = {0};
    struct run r;
    if (!id)
        return err->code;
    run_init(&r, m->dev);
    for (int live = 0; live < 2 && rc == 0; live++) {
        if (!live)
            run_measure(&r);
        y = clip_text_forward(m->text, &r, NULL, id, n, len, 0, 0);
        rc = live ? run_check(&r, err) : run_commit(&r, err);
    }
    size_t all = (size_t)n * (size_t)len * (size_t)width;
    float *state = malloc((all ? all : 1) * sizeof *state);
    rc = rc < 0   ? rc
         : !state ? err_nomem(err, all * sizeof *state)
                  : m->dev->be->download(m->dev, state, &y, err);
    for (int i = 0; i < n && rc == 0; i++) {
        memmove(state + (size_t)q->n * (size_t)width,
                state + ((size_t)i * (size_t)len + 1) * (size_t)width,
                (size_t)own[i] * (size_t)width * sizeof *state);
        q->n += own[i];
    }
    q->state = state;
    run_release(&r);
    free(id);
    return rc;
}

int responder_ask(const struct responder *r, const char *text, struct query *q, struct err *err)
{
    memset(q, 0, sizeof *q);
    int rc = states(r->m, &text, 1, q, err);
    if (rc == 0 && !q->n)
        rc = err_set(err, ERR_ARG, "no word to look for");
    for (int i = 0; i < q->n * r->width && rc == 0; i++)
        q->state[i] -= r->mean[i % r->width];
    return rc;
}

/* ---- neutral texts --------------------------------------------------------------------------- */

static int by_text(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

/* Whether a vocabulary's token is a whole word of letters. */
static bool is_word(const char *token)
{
    size_t n = token ? strspn(token, "abcdefghijklmnopqrstuvwxyz") : 0;
    return n >= 2 && n <= 15 && !strcmp(token + n, "</w>");
}

/* The vocabulary's words in order; *n 0 where it has none. */
static const char **vocabulary(const struct tokenizer *t, int *n, struct err *err)
{
    const char **word = malloc(((size_t)tokenizer_size(t) + 1) * sizeof *word);
    *n = 0;
    if (!word) {
        err_nomem(err, (size_t)tokenizer_size(t) * sizeof *word);
        return NULL;
    }
    for (int i = 0; i < tokenizer_size(t); i++)
        if (is_word(tokenizer_token(t, i)))
            word[(*n)++] = tokenizer_token(t, i);
    qsort(word, (size_t)*n, sizeof *word, by_text);
    return word;
}

/* The i-th text; words are taken from all over the vocabulary, the k-th by the golden section. */
static void write_text(char *to, size_t size, int i, const char *const *word, int n, int *picked)
{
    static const char *const form[] = {"a # #", "a picture of a #", "a # on a #", "a # in # style",
                                       "#, #, #"};
    size_t at = 0;
    for (const char *p = form[i % 5]; *p && at + 20 < size; p++) {
        if (*p != '#') {
            to[at++] = *p;
            continue;
        }
        double part = fmod(++*picked * 0.61803398874989485, 1);
        const char *w = word[(int)(part * n)];
        at += (size_t)snprintf(to + at, size - at, "%.*s", (int)strcspn(w, "<"), w);
    }
    to[at] = 0;
}

/* The states of all neutral texts. */
static int look(const struct responder *r, struct query *all, struct err *err)
{
    static const char *common[] = {"dog",   "house", "tree", "car",   "ball",  "red",
                                   "small", "man",   "city", "water", "night", "hat",
                                   "food",  "paper", "wood", "light"};
    int n = 0, picked = 0, rc = 0;
    size_t width = (size_t)r->width;
    const char **word = vocabulary(r->m->tokenizer, &n, err);
    if (!word)
        return err->code;
    for (int i = 0; i < NEUTRAL && rc == 0; i += HAND) {
        char text[HAND][96];
        const char *of[HAND];
        struct query q = {0};
        for (int k = 0; k < HAND; k++) {
            write_text(text[k], sizeof text[k], i + k, n ? word : common, n ? n : 16, &picked);
            of[k] = text[k];
        }
        rc = states(r->m, of, HAND, &q, err);
        float *more =
            rc == 0 ? realloc(all->state, (size_t)(all->n + q.n) * width * sizeof *more) : NULL;
        if (more) {
            all->state = more;
            memcpy(more + (size_t)all->n * width, q.state, (size_t)q.n * width * sizeof *more);
            all->n += q.n;
        } else if (rc == 0) {
            rc = err_nomem(err, (size_t)(all->n + q.n) * width * sizeof *more);
        }
        query_release(&q);
    }
    free(word);
    return rc;
}

/* c [width, width] = the covariance of the states. */
static void covariance(const struct query *all, const float *mean, int width, double *c)
{
    double *x = c + (size_t)width * (size_t)width; /* room for one */
    memset(c, 0, (size_t)width * (size_t)width * sizeof *c);
    for (int t = 0; t < all->n; t++) {
        for (int i = 0; i < width; i++)
            x[i] = (double)all->state[(size_t)t * (size_t)width + (size_t)i] - mean[i];
        for (int i = 0; i < width; i++)
            for (int j = 0; j <= i; j++)
                c[(size_t)i * (size_t)width + (size_t)j] += x[i] * x[j] / all->n;
    }
    for (int i = 0; i < width; i++)
        for (int j = 0; j < i; j++)
            c[(size_t)j * (size_t)width + (size_t)i] = c[(size_t)i * (size_t)width + (size_t)j];
}

/* to = V diag(value^power) V^T; eigenvector k lies in row k of v. */
static int power(float *to, const double *v, const double *value, double p, int width,
                 struct err *err)
{
    size_t n = (size_t)width * (size_t)width;
    double *scaled = calloc(2 * n, sizeof *scaled);
    if (!scaled)
        return err_nomem(err, 2 * n * sizeof *scaled);
    double *made = scaled + n;
    for (size_t i = 0; i < n; i++)
        scaled[i] = v[i] * pow(value[i / (size_t)width], p);
    multiply(made, scaled, v, width, width, width, true, 0);
    for (size_t i = 0; i < n; i++)
        to[i] = (float)made[i];
    free(scaled);
    return 0;
}

/* to = v m, m [width, width]. */
static void turn(float *to, const float *v, const float *m, int width)
{
    size_t w = (size_t)width;
    memset(to, 0, w * sizeof *to);
    for (size_t i = 0; i < w; i++)
        for (size_t j = 0; j < w; j++)
            to[j] += v[i] * m[i * w + j];
}

/* C^1/4, C^-1/4 and the states that are kept. A LEAST-th of the mean more on all values, since few texts leave many
 * directions out. */
static int whiten(struct responder *r, const struct query *all, struct err *err)
{
    enum { LEAST = 10 };
    int n = r->width;
    size_t w = (size_t)n;
    double *c = malloc((w * w + w) * sizeof *c), *value = malloc(w * sizeof *value), mean = 0;
    int rc = c && value ? 0 : err_nomem(err, w * w * sizeof *c);
    if (rc == 0) {
        covariance(all, r->mean, n, c);
        rc = eigen(c, n, value, err);
    }
    for (int i = 0; i < n && rc == 0; i++)
        mean += value[i] / n;
    if (rc == 0 && !(mean > 0))
        rc = err_set(err, ERR_FORMAT,
                     "the text encoder makes the same of all texts: its weights are damaged");
    for (int i = 0; i < n && rc == 0; i++)
        value[i] = fmax(value[i], 0) + mean / LEAST;
    rc = rc < 0 ? rc : power(r->in, c, value, .25, n, err);
    rc = rc < 0 ? rc : power(r->out, c, value, -.25, n, err);
    for (int k = 0; k < STATES && rc == 0; k++) { /* from all over the texts */
        const float *h = all->state + (size_t)(k * all->n / STATES) * w;
        for (size_t i = 0; i < w; i++)
            r->state[(size_t)k * w + i] = h[i] - r->mean[i];
    }
    free(c);
    free(value);
    return rc;
}

int query_mean(const struct responder *r, const struct query *q, float *out, struct err *err)
{
    int width = r->width;
    float *x = calloc((size_t)width, sizeof *x);
    if (!x)
        return err_nomem(err, (size_t)width * sizeof *x);
    for (int i = 0; i < q->n * width; i++)
        x[i % width] += q->state[i] / (float)q->n;
    turn(out, x, r->out, width);
    vector_unit(out, width);
    free(x);
    return 0;
}

void response_raise(const struct responder *r, const struct response *a, float *to)
{
    for (int k = 0; k < RESPONSE_ROWS; k++)
        turn(to + (size_t)k * (size_t)r->width, a->row + (size_t)k * (size_t)r->width, r->in,
             r->width);
}

static int learn_neutral(struct responder *r, struct err *err)
{
    struct query all = {0};
    int rc = look(r, &all, err);
    for (int k = 0; k < all.n * r->width && rc == 0; k++)
        r->mean[k % r->width] += all.state[k] / (float)all.n;
    rc = rc < 0 ? rc : whiten(r, &all, err);
    query_release(&all);
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

int responder_open(struct responder **out, const struct model *m, const void *kept, size_t size,
                   struct err *err)
{
    struct responder *r = calloc(1, sizeof *r);
    const struct sites *s = &m->sites;
    int rc = 0;
    *out = NULL;
    if (!r)
        return err_nomem(err, sizeof *r);
    r->m = m;
    r->width = m->text->tower.width;
    size_t w = (size_t)r->width, n = kept_floats(r->width);
    r->weight = calloc((size_t)s->n + 1, sizeof *r->weight);
    r->kept = calloc(n, sizeof *r->kept);
    if (!r->weight || !r->kept)
        rc = err_nomem(err, n * sizeof *r->kept);
    for (int i = 0; i < s->n && rc == 0; i++)
        if (takes_text(&s->at[i]) && s->at[i].layer->in == r->width)
            rc = weigh(r, &s->at[i], &r->weight[i], err);
    if (rc == 0 && !r->n_site)
        rc = err_set(err, ERR_UNSUPPORTED, "no layer of this model looks at the text");
    r->mean = r->kept;
    r->in = r->mean + w;
    r->out = r->in + w * w;
    r->state = r->out + w * w;
    if (rc == 0 && kept && size == n * sizeof *r->kept)
        memcpy(r->kept, kept, size);
    else
        rc = rc < 0 ? rc : learn_neutral(r, err);
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
    free(r->weight);
    free(r->kept);
    free(r);
}

const void *responder_keep(const struct responder *r, size_t *size)
{
    *size = kept_floats(r->width) * sizeof *r->kept;
    return r->kept;
}

int responder_width(const struct responder *r)
{
    return r->width;
}

/* ---- adapters -------------------------------------------------------------------------------- */

/* Rows x of dW / |W|, and H = in^T (sum x^T x) in. */
enum { ROOM = 512, SAMPLED = 128, SMALL = 256 * 256 };
struct rows {
    const float *in;   /* [width, width] */
    float *v, *turned; /* [ROOM, width] */
    double *wide, *h;  /* [ROOM, width]: their products need more digits; [width, width] */
    int n, width;
};

static void rows_release(struct rows *s)
{
    free(s->v);
    free(s->turned);
    free(s->wide);
    free(s->h);
}

static int rows_open(struct rows *s, const struct responder *r, struct err *err)
{
    size_t w = (size_t)r->width;
    *s = (struct rows){.width = r->width, .in = r->in};
    s->v = malloc(ROOM * w * sizeof *s->v);
    s->turned = malloc(ROOM * w * sizeof *s->turned);
    s->wide = malloc(ROOM * w * sizeof *s->wide);
    s->h = calloc(w * w, sizeof *s->h);
    return s->v && s->turned && s->wide && s->h ? 0 : err_nomem(err, 2 * (ROOM + w) * w * 8);
}

static void flush(struct rows *s)
{
    multiply_floats(s->turned, s->v, s->in, s->n, s->width, s->width);
    for (int i = 0; i < s->n * s->width; i++)
        s->wide[i] = s->turned[i];
    add_gram(s->h, s->wide, s->n, s->width);
    s->n = 0;
}

static void add_row(struct rows *s, const float *v, double scale)
{
    if (s->n == ROOM)
        flush(s);
    float *to = s->v + (size_t)s->n++ * (size_t)s->width;
    for (int i = 0; i < s->width; i++)
        to[i] = (float)(scale * v[i]);
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
        add_row(s, sum, weight / sqrt(SAMPLED));
    }
    free(sum);
    return rc;
}

/* b a as sqrt(b^T b) a: its rows have the same products with themselves, and are few. */
static int add_product(struct rows *s, const struct bound *b, const char *site, double weight,
                       struct err *err)
{
    struct matrix m = {0};
    int rc = matrix_load(&m, &b->d, site, err), r = m.f[0].rank;
    size_t n = (size_t)r, w = (size_t)s->width, tall = (size_t)m.rows;
    double *up = malloc((tall * n + 2 * n * n + n + n * w) * sizeof *up);
    if (rc == 0 && !up)
        rc = err_nomem(err, (tall + w) * n * sizeof *up);
    if (rc == 0) {
        double *v = up + tall * n, *value = v + n * n, *down = value + n, *root = down + n * w;
        for (size_t i = 0; i < tall * n; i++)
            up[i] = m.f[0].a[i];
        for (size_t i = 0; i < n * w; i++)
            down[i] = m.f[0].b[i];
        multiply(v, up, up, r, m.rows, r, true, 0);
        rc = eigen(v, r, value, err);
        for (size_t i = 0; i < n * n && rc == 0; i++)
            root[i] = v[i] * sqrt(fmax(value[i / n], 0)) * m.scale * b->factor * weight;
        for (int i = 0; i < r && rc == 0; i += ROOM) {
            int some = r - i < ROOM ? r - i : ROOM;
            if (s->n + some > ROOM)
                flush(s);
            multiply(s->wide, root + (size_t)i * n, down, some, r, s->width, false, 0);
            for (size_t k = 0; k < (size_t)some * w; k++)
                s->v[(size_t)s->n * w + k] = (float)s->wide[k];
            s->n += some;
        }
    }
    free(up);
    matrix_release(&m);
    return rc;
}

/* Any other dW, written out. */
static int add_whole(struct rows *s, const struct bound *b, const struct layer *l, double weight,
                     struct err *err)
{
    size_t n = (size_t)l->out * (size_t)l->in;
    float *w = NULL;
    int rc = bound_whole(&w, b, l, err);
    for (int i = 0; i < l->out && rc == 0 && n <= SMALL; i++)
        add_row(s, w + (size_t)i * (size_t)l->in, weight);
    if (rc == 0 && n > SMALL)
        rc = add_sampled(s, w, l->out, weight, err);
    free(w);
    return rc;
}

/* The sum of |dW h|^2 over states. dW = up down, or whole. */
static int answer_of(const struct bound *b, const struct site *site, const struct query *q,
                     double *sum, struct err *err)
{
    const struct layer *l = site->layer;
    struct matrix m = {0};
    size_t in = (size_t)l->in;
    float *whole = NULL;
    *sum = 0;
    int rc = bound_is_product(b) ? matrix_load(&m, &b->d, site->name, err)
                                 : bound_whole(&whole, b, l, err);
    int rank = whole ? l->out : m.f[0].rank;
    const float *down = whole ? whole : m.f[0].b;
    double *x = malloc((size_t)(rank ? rank : 1) * sizeof *x);
    if (rc == 0 && !x)
        rc = err_nomem(err, (size_t)rank * sizeof *x);
    for (int t = 0; t < q->n && rc == 0; t++) {
        for (int k = 0; k < rank; k++)
            x[k] = vector_dot(down + (size_t)k * in, q->state + (size_t)t * in, l->in);
        for (int i = 0; i < l->out; i++) {
            double y = whole ? x[i] : 0;
            for (int k = 0; k < rank && !whole; k++)
                y += m.f[0].a[(size_t)i * (size_t)rank + (size_t)k] * x[k];
            *sum += y * y;
        }
    }
    if (!whole)
        *sum *= (double)m.scale * m.scale * b->factor * b->factor;
    matrix_release(&m);
    free(whole);
    free(x);
    return rc;
}

int responder_where(const struct responder *r, const struct adapter *a, const struct query *q,
                    double *share, struct err *err)
{
    const struct sites *s = &r->m->sites;
    double all = 0;
    int rc = 0;
    for (int i = 0; i < s->n && rc == 0; i++) {
        share[i] = 0;
        if (!a->at[i] || r->weight[i] == 0)
            continue;
        rc = answer_of(a->at[i], &s->at[i], q, &share[i], err);
        share[i] *= r->weight[i] * r->weight[i];
        all += share[i];
    }
    for (int i = 0; i < s->n && all > 0 && rc == 0; i++)
        share[i] /= all;
    return rc;
}

/* x [n]: ln |A h| of states less the mean; -INFINITY where that is nothing. */
static void answers(const struct response *a, const float *state, int n, int width, double *x)
{
    for (int t = 0; t < n; t++) {
        const float *h = state + (size_t)t * (size_t)width;
        double squares = 0;
        for (int k = 0; k < RESPONSE_ROWS; k++) {
            const float *row = a->row + (size_t)k * (size_t)width;
            double dot = 0;
            for (int i = 0; i < width; i++)
                dot += (double)row[i] * h[i];
            squares += dot * dot;
        }
        x[t] = log(squares) / 2;
    }
}

static int gather(const struct responder *r, const struct adapter *a, struct rows *s,
                  struct err *err)
{
    const struct sites *sites = &r->m->sites;
    int rc = 0;
    for (int i = 0; i < sites->n && rc == 0; i++) {
        const struct bound *b = a->at[i];
        if (!b || r->weight[i] == 0)
            continue;
        rc = bound_is_product(b) ? add_product(s, b, sites->at[i].name, r->weight[i], err)
                                 : add_whole(s, b, sites->at[i].layer, r->weight[i], err);
    }
    return rc;
}

/* ---- main directions ------------------------------------------------------------------------- */

enum { BLOCK = 24, ROUNDS = 14 };

static double dot(const double *a, const double *b, int n)
{
    double s[4] = {0};
    int i = 0;
    for (; i + 4 <= n; i += 4)
        for (int k = 0; k < 4; k++)
            s[k] += a[i + k] * b[i + k];
    for (; i < n; i++)
        s[0] += a[i] * b[i];
    return s[0] + s[1] + s[2] + s[3];
}

/* The rows of v [BLOCK, n] to right angles and length 1; one that hangs on those before becomes 0. */
static void square_up(double *v, int n)
{
    for (int k = 0; k < BLOCK; k++) {
        double *x = v + (size_t)k * (size_t)n, before = dot(x, x, n);
        for (int j = 0; j < 2 * k; j++) { /* twice is enough */
            const double *y = v + (size_t)(j % k) * (size_t)n;
            double s = dot(x, y, n);
            for (int i = 0; i < n; i++)
                x[i] -= s * y[i];
        }
        double after = dot(x, x, n), scale = after > 1e-20 * before ? 1 / sqrt(after) : 0;
        for (int i = 0; i < n; i++)
            x[i] *= scale;
    }
}

/* The largest eigenvalues of h [n, n] and their vectors, by iterating a subspace (Rutishauser 1969): value [BLOCK],
 * rising, v [BLOCK, n]. */
static int main_directions(const double *h, int n, double *v, double *value, struct err *err)
{
    size_t all = (size_t)n * BLOCK;
    double t[BLOCK * BLOCK], *y = malloc(all * sizeof *y);
    struct rng r;
    if (!y)
        return err_nomem(err, all * sizeof *y);
    rng_init(&r, RNG_TORCH, 0); /* the same for all */
    for (size_t i = 0; i < all; i++)
        v[i] = rng_u32(&r) >> 31 ? 1 : -1;
    square_up(v, n);
    double last = 0, sum = 1;
    for (int k = 0; k < ROUNDS && fabs(sum - last) > 1e-9 * fabs(sum); k++) {
        multiply(y, v, h, BLOCK, n, n, false, 0); /* h is symmetric */
        last = sum;
        sum = 0;
        for (size_t i = 0; i < RESPONSE_ROWS; i++)
            sum += dot(v + i * (size_t)n, y + i * (size_t)n, n);
        multiply(v, y, h, BLOCK, n, n, false, 0); /* once more, before what costs as much */
        square_up(v, n);
    }
    multiply(y, v, h, BLOCK, n, n, false, 0);
    for (size_t i = 0; i < BLOCK; i++)
        for (size_t j = 0; j < BLOCK; j++)
            t[i * BLOCK + j] = dot(v + i * (size_t)n, y + j * (size_t)n, n);
    int rc = eigen(t, BLOCK, value, err);
    multiply(y, t, v, BLOCK, BLOCK, n, false, 0);
    memcpy(v, y, all * sizeof *v);
    free(y);
    return rc;
}

/* A's rows: s^1/4 v^T out. */
static int write_rows(const struct responder *r, const double *h, float *row, struct err *err)
{
    enum { TOLD = 10000 }; /* s that are smaller than the greatest by that are rounding */
    size_t w = (size_t)r->width;
    double value[BLOCK], *v = malloc(w * BLOCK * sizeof *v);
    float *x = malloc(w * sizeof *x);
    int rc = v && x ? main_directions(h, r->width, v, value, err)
                    : err_nomem(err, w * BLOCK * sizeof *v);
    for (int k = 0; k < RESPONSE_ROWS && rc == 0; k++) {
        double s = sqrt(fmax(value[BLOCK - 1 - k], 0)), most = sqrt(fmax(value[BLOCK - 1], 0));
        if (!(s > most / TOLD))
            break;
        for (size_t i = 0; i < w; i++)
            x[i] = (float)(pow(s, .25) * v[(size_t)(BLOCK - 1 - k) * w + i]);
        turn(row + (size_t)k * w, x, r->out, r->width);
    }
    free(v);
    free(x);
    return rc;
}

int responder_read(const struct responder *r, const struct adapter *a, struct response *out,
                   struct err *err)
{
    struct rows s;
    size_t n = (size_t)RESPONSE_ROWS * (size_t)r->width;
    double x[STATES], sum = 0;
    memset(out, 0, sizeof *out);
    out->row = calloc(n, sizeof *out->row);
    int rc = rows_open(&s, r, err);
    if (rc == 0 && !out->row)
        rc = err_nomem(err, n * sizeof *out->row);
    rc = rc < 0 ? rc : gather(r, a, &s, err);
    if (rc == 0) {
        flush(&s);
        for (int i = 0; i < s.width; i++)
            for (int j = 0; j < i; j++)
                s.h[(size_t)j * (size_t)s.width + (size_t)i] =
                    s.h[(size_t)i * (size_t)s.width + (size_t)j];
        rc = write_rows(r, s.h, out->row, err);
    }
    if (rc == 0) {
        answers(out, r->state, STATES, r->width, x);
        for (int i = 0; i < STATES; i++)
            sum += x[i];
        out->plain = sum / STATES;
        out->silent = !isfinite(out->plain);
    }
    rows_release(&s);
    return rc;
}

void response_release(struct response *a)
{
    free(a->row);
    memset(a, 0, sizeof *a);
}

void response_tokens(const struct responder *r, const struct response *a, const struct query *q,
                     double *x)
{
    if (!a->silent)
        answers(a, q->state, q->n, r->width, x);
    for (int i = 0; i < q->n; i++)
        x[i] = a->silent ? -INFINITY : x[i] - a->plain;
}

double response_pool(const double *x, const double *mean, int n)
{
    const double softness = .12;
    double most = -INFINITY, sum = 0;
    for (int i = 0; i < n; i++)
        most = fmax(most, x[i] - (mean ? mean[i] : 0));
    for (int i = 0; i < n && isfinite(most); i++)
        sum += exp((x[i] - (mean ? mean[i] : 0) - most) / softness);
    return isfinite(most) ? most + softness * log(sum) : -INFINITY;
}
