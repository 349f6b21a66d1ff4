#include "learn.h"

#include "algebra.h"
#include "ridge.h"

#include "unet/hash.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* What is kept: HEAD, mean [width], then n times an example. */
struct head {
    char magic[8];
    int32_t n, width;
};
static const char magic[8] = "weftlrn1";

struct learnt {
    const struct responder *re;
    int width;
    char name[HASH_HEX];
    float *mean; /* [width], of the examples' texts */
    struct ridge g;
    /* [n] of the examples: their tensors, what they answer to in states times C^1/4, and |G| */
    char (*sha)[HASH_HEX];
    float *rows;
    double *norm;
};

static size_t row_count(int width)
{
    return (size_t)RESPONSE_ROWS * (size_t)width;
}

/* ---- texts and kernels ----------------------------------------------------------------------- */

/* <G, G'> = |X Y^T|^2 */
static double inner(const float *x, const float *y, int width)
{
    double s = 0;
    for (int i = 0; i < RESPONSE_ROWS; i++)
        for (int j = 0; j < RESPONSE_ROWS; j++) {
            const float *a = x + (size_t)i * (size_t)width, *b = y + (size_t)j * (size_t)width;
            float d = 0;
            for (int k = 0; k < width; k++)
                d += a[k] * b[k];
            s += (double)d * d;
        }
    return s;
}

#define ALWAYS .1 /* that any two adapters have in common */

static double alike(const float *x, double x_norm, const float *y, double y_norm, int width)
{
    double all = x_norm * y_norm;
    return ALWAYS + (all > 0 ? inner(x, y, width) / all : 0);
}

/* to: A as it is kept, times C^1/4. Returns |G|. */
static double take_rows(const struct responder *re, const struct response *a, float *to)
{
    response_raise(re, a, to);
    return sqrt(inner(to, to, responder_width(re)));
}

/* ---- examples -------------------------------------------------------------------------------- */

struct pupil {
    char sha[HASH_HEX], *name, *text; /* owned */
    float *vector;                    /* the encoder's; owned; NULL: there is none */
    struct response answer;
};
struct class {
    struct repo *r;
    const struct model *m;
    const struct responder *re;
    struct encoder *e;
    struct pupil *at;
    int n, room;
    float *text, *mean;  /* [n, width] unit and less their mean; [width] */
    struct query *query; /* [n] */
    struct err *err;
};

static void class_release(struct class *c)
{
    for (int i = 0; i < c->n; i++) {
        free(c->at[i].name);
        free(c->at[i].text);
        free(c->at[i].vector);
        response_release(&c->at[i].answer);
        if (c->query)
            query_release(&c->query[i]);
    }
    free(c->at);
    free(c->text);
    free(c->mean);
    free(c->query);
}

/* Triggers, class word, tags and what trainers counted, with commas between. A new string, NULL: no words. */
static int words_of(struct repo *r, const struct repo_adapter *a, char **out, struct err *err)
{
    static const struct {
        enum repo_texts which;
        int most;
    } from[] = {{REPO_TRIGGERS, 4}, {REPO_TAGS, 8}, {REPO_CANDIDATES, 8}};
    char *text = NULL;
    size_t size = 0;
    int n = 0, rc = 0;
    FILE *f = open_memstream(&text, &size);
    for (size_t k = 0; f && k < sizeof from / sizeof *from && rc == 0; k++) {
        struct texts t = {0};
        rc = repo_texts(r, a->key, from[k].which, &t, err);
        for (int i = 0; i < t.n && i < from[k].most && rc == 0; i++)
            fprintf(f, "%s%s", n++ ? ", " : "", t.item[i]);
        if (k == 0 && a->class_word)
            fprintf(f, "%s%s", n++ ? ", " : "", a->class_word);
        texts_release(&t);
    }
    if (!f || fclose(f))
        rc = rc < 0 ? rc : err_nomem(err, 256);
    *out = rc == 0 && n ? text : NULL;
    if (!*out)
        free(text);
    return rc;
}

static int take_vector(const struct class *c, const struct repo_adapter *a, struct pupil *p)
{
    double strength;
    p->vector = malloc((size_t)c->e->dim * sizeof *p->vector);
    if (!p->vector)
        return err_nomem(c->err, (size_t)c->e->dim);
    int rc =
        repo_embedding(c->r, a->data_sha256, c->e->name, p->vector, c->e->dim, &strength, c->err);
    if (rc != 0) {
        free(p->vector);
        p->vector = NULL;
    }
    return rc < 0 ? rc : 0;
}

static int add_pupil(void *user, const struct repo_adapter *a)
{
    struct class *c = user;
    struct pupil p = {.answer.row = malloc(row_count(responder_width(c->re)) * sizeof(float))};
    int rc = p.answer.row ? words_of(c->r, a, &p.text, c->err)
                          : err_nomem(c->err, row_count(responder_width(c->re)));
    bool good = rc == 0 && p.text && !a->unusable && c->n < LEARN_MOST;
    if (good) {
        rc = repo_response(c->r, a->data_sha256, c->m->fingerprint, &p.answer.plain, p.answer.row,
                           row_count(responder_width(c->re)), c->err);
        good = rc == 0 && isfinite(p.answer.plain);
    }
    if (good && c->e)
        rc = take_vector(c, a, &p);
    good = good && rc == 0;
    if (good && c->n == c->room) {
        size_t room = c->room ? 2 * (size_t)c->room : 64;
        struct pupil *more = realloc(c->at, room * sizeof *more);
        good = more;
        if (more) {
            c->at = more;
            c->room = (int)room;
        } else {
            rc = err_nomem(c->err, room * sizeof *more);
        }
    }
    snprintf(p.sha, sizeof p.sha, "%s", a->data_sha256);
    p.name = good ? strdup(a->name) : NULL;
    if (good && p.name) {
        c->at[c->n++] = p;
        return 0;
    }
    response_release(&p.answer);
    free(p.text);
    free(p.vector);
    return rc < 0 ? rc : 0;
}

static int read_texts(struct class *c, struct err *err)
{
    size_t n = (size_t)c->n, width = (size_t)responder_width(c->re);
    int rc = 0;
    c->text = calloc(n * width, sizeof *c->text);
    c->mean = calloc(width, sizeof *c->mean);
    c->query = calloc(n, sizeof *c->query);
    if (!c->text || !c->mean || !c->query)
        rc = err_nomem(err, n * width * sizeof *c->text);
    for (size_t i = 0; i < n && rc == 0; i++) {
        rc = responder_ask(c->re, c->at[i].text, &c->query[i], err);
        rc = rc < 0 ? rc : query_mean(c->re, &c->query[i], c->text + i * width, err);
        for (size_t k = 0; k < width; k++)
            c->mean[k] += c->text[i * width + k] / (float)n;
    }
    for (size_t i = 0; i < n * width && rc == 0; i++)
        c->text[i] -= c->mean[i % width];
    return rc;
}

/* ---- measuring ------------------------------------------------------------------------------- */

static bool same(const struct class *c, int i, int j)
{
    return !strcmp(c->at[i].text, c->at[j].text);
}

/* The place of example i by scores [n]; equals share theirs. */
static double place(const struct class *c, const double *score, int i)
{
    double best = score[i], at = 1;
    for (int j = 0; j < c->n; j++)
        best = same(c, i, j) ? fmax(best, score[j]) : best;
    for (int j = 0; j < c->n; j++)
        if (!same(c, i, j))
            at += score[j] > best ? 1 : score[j] == best ? .5 : 0;
    return at;
}

static void count(struct recall *r, double at, int n)
{
    r->first += at <= 1 ? 1. / n : 0;
    r->five += at <= 5 ? 1. / n : 0;
    r->mean += 1 / at / n;
}

/* How many words of a text are in a name. */
static double in_name(const char *text, const char *name)
{
    double n = 0;
    for (const char *p = text; *p;) {
        char word[32];
        size_t skip = strspn(p, " ,.;:\"'()_-"), len = strcspn(p + skip, " ,.;:\"'()_-");
        p += skip;
        if (len >= 3 && len < sizeof word) {
            snprintf(word, sizeof word, "%.*s", (int)len, p);
            n += strcasestr(name, word) != NULL;
        }
        p += len;
    }
    return n;
}

/* x [n]: the answers of all examples to the text of the i-th. room [n, tokens]. */
static int all_answers(const struct class *c, int i, double *x, struct err *err)
{
    const struct query *q = &c->query[i];
    size_t tokens = (size_t)q->n;
    double *all = malloc(((size_t)c->n + 1) * tokens * sizeof *all);
    if (!all)
        return err_nomem(err, (size_t)c->n * tokens * sizeof *all);
    double *mean = all + (size_t)c->n * tokens;
    memset(mean, 0, tokens * sizeof *mean);
    for (int j = 0; j < c->n; j++) {
        response_tokens(c->re, &c->at[j].answer, q, all + (size_t)j * tokens);
        for (size_t t = 0; t < tokens; t++)
            mean[t] += fmax(all[(size_t)j * tokens + t], -3) / c->n;
    }
    for (int j = 0; j < c->n; j++)
        x[j] = response_pool(all + (size_t)j * tokens, mean, q->n);
    free(all);
    return 0;
}

static void add_deviations(double *to, const double *x, double none, int n)
{
    double mean = 0, squares = 0;
    for (int i = 0; i < n; i++)
        mean += (isfinite(x[i]) ? x[i] : none) / n;
    for (int i = 0; i < n; i++) {
        double d = (isfinite(x[i]) ? x[i] : none) - mean;
        squares += d * d / n;
    }
    for (int i = 0; i < n && squares > 0; i++)
        to[i] += ((isfinite(x[i]) ? x[i] : none) - mean) / sqrt(squares);
}

void learnt_join(double *to, const double *answer, const double *likeness, int n)
{
    for (int i = 0; i < n; i++)
        to[i] = 0;
    add_deviations(to, answer, -3, n);
    add_deviations(to, likeness, 0, n);
}

/* odds [n] by the encoder of all examples to be meant by the text of the i-th. */
static int by_encoder(const struct class *c, int i, const double *answer, double *odds,
                      struct err *err)
{
    float *v = malloc((size_t)c->e->dim * sizeof *v);
    int rc = v ? encoder_ask(c->e, c->at[i].text, &c->query[i], v, err)
               : err_nomem(err, (size_t)c->e->dim);
    for (int j = 0; j < c->n && rc == 0; j++) {
        const float *of = c->at[j].vector;
        odds[j] = encoder_odds(c->e, of ? vector_dot(of, v, c->e->dim) : (double)NAN, answer[j]);
    }
    free(v);
    return rc;
}

/* said [n, width]: of each example by what was learnt without it. */
static int measure(const struct class *c, float *said, struct lesson *l, struct err *err)
{
    size_t n = (size_t)c->n;
    int width = responder_width(c->re), rc = 0;
    double *x = malloc(5 * n * sizeof *x);
    if (!x)
        return err_nomem(err, 5 * n * sizeof *x);
    double *answer = x, *learnt = x + n, *name = x + 2 * n, *both = x + 3 * n, *odds = x + 4 * n;
    for (size_t i = 0; i < n; i++)
        vector_unit(said + i * (size_t)width, width);
    for (int i = 0; i < c->n && rc == 0; i++) {
        rc = all_answers(c, i, answer, err);
        for (size_t j = 0; j < n && rc == 0; j++) {
            learnt[j] =
                vector_dot(said + j * (size_t)width, c->text + (size_t)i * (size_t)width, width);
            name[j] = in_name(c->at[i].text, c->at[j].name);
        }
        learnt_join(both, answer, learnt, c->n);
        count(&l->together, place(c, both, i), c->n);
        count(&l->learnt, place(c, learnt, i), c->n);
        count(&l->answers, place(c, answer, i), c->n);
        rc = rc < 0 || !c->e ? rc : by_encoder(c, i, answer, odds, err);
        if (c->e)
            count(&l->encoder, place(c, odds, i), c->n);
        count(&l->names, place(c, name, i), c->n);
        l->chance.mean += 1. / (i + 1) / c->n;
    }
    l->chance.first = 1. / c->n;
    l->chance.five = fmin(1, 5. / c->n);
    l->better =
        l->together.five >= l->answers.five && l->together.mean > l->answers.mean &&
        l->together.five > l->names.five &&
        !(c->e && (l->together.five < l->encoder.five || l->together.mean <= l->encoder.mean));
    l->has_encoder = c->e;
    free(x);
    return rc;
}

/* ---- learning -------------------------------------------------------------------------------- */

static struct learnt *learnt_new(const struct responder *re, int n, struct err *err)
{
    struct learnt *l = calloc(1, sizeof *l);
    size_t width = (size_t)responder_width(re), most = (size_t)n;
    if (l) {
        l->re = re;
        l->width = (int)width;
        l->mean = malloc(width * sizeof *l->mean);
        l->sha = calloc(most, sizeof *l->sha);
        l->rows = malloc(most * row_count((int)width) * sizeof *l->rows);
        l->norm = calloc(most, sizeof *l->norm);
    }
    if (!l || !l->mean || !l->sha || !l->rows || !l->norm) {
        err_nomem(err, most * row_count((int)width) * sizeof *l->rows);
        learnt_close(l);
        return NULL;
    }
    return l;
}

void learnt_close(struct learnt *l)
{
    if (!l)
        return;
    free(l->mean);
    free(l->sha);
    free(l->rows);
    free(l->norm);
    ridge_release(&l->g);
    free(l);
}

/* Its bytes, new. */
static char *pack(const struct learnt *l, size_t *size, struct err *err)
{
    size_t width = (size_t)l->width * sizeof(float), one = HASH_HEX - 1 + width;
    const struct head h = {.n = l->g.n, .width = l->width};
    *size = sizeof h + width + (size_t)l->g.n * one;
    char *p = malloc(*size), *to = p;
    if (!p) {
        err_nomem(err, *size);
        return NULL;
    }
    memcpy(to, &h, sizeof h);
    memcpy(to, magic, sizeof magic);
    memcpy(to + sizeof h, l->mean, width);
    to += sizeof h + width;
    for (int i = 0; i < l->g.n; i++, to += one) {
        memcpy(to, l->sha[i], HASH_HEX - 1);
        memcpy(to + HASH_HEX - 1, l->g.w + (size_t)i * (size_t)l->width, width);
    }
    return p;
}

static int study(struct class *c, struct learnt *l, struct lesson *lesson, struct err *err)
{
    size_t n = (size_t)c->n, rows = row_count(l->width);
    double *k = malloc(n * n * sizeof *k);
    if (!k)
        return err_nomem(err, n * n * sizeof *k);
    for (size_t i = 0; i < n; i++) {
        memcpy(l->sha[i], c->at[i].sha, HASH_HEX);
        l->norm[i] = take_rows(c->re, &c->at[i].answer, l->rows + i * rows);
        for (size_t j = 0; j <= i; j++)
            k[i * n + j] = k[j * n + i] =
                alike(l->rows + i * rows, l->norm[i], l->rows + j * rows, l->norm[j], l->width);
    }
    memcpy(l->mean, c->mean, (size_t)l->width * sizeof *l->mean);
    int rc = ridge_fit(&l->g, k, c->text, c->n, l->width, err);
    rc = rc < 0 ? rc : measure(c, l->g.left_out, lesson, err);
    free(k);
    return rc;
}

int learn_run(struct repo *r, const struct model *m, const struct responder *re, struct encoder *e,
              struct learnt **out, struct lesson *l, struct err *err)
{
    const struct repo_filter fits = {.context = responder_width(re), .sort = "added"};
    struct class c = {.r = r, .m = m, .re = re, .e = e, .err = err};
    size_t size;
    *out = NULL;
    memset(l, 0, sizeof *l);
    int rc = repo_list(r, &fits, add_pupil, &c, err);
    l->n = c.n;
    if (rc == 0 && c.n < LEARN_LEAST)
        rc = err_set(err, ERR_ARG,
                     "%d adapters for this model have words of their own (triggers, tags, a class "
                     "word); at least %d are needed: weft tag gives them some",
                     c.n, LEARN_LEAST);
    rc = rc < 0 ? rc : read_texts(&c, err);
    if (rc == 0 && !(*out = learnt_new(re, c.n, err)))
        rc = err->code;
    rc = rc < 0 ? rc : study(&c, *out, l, err);
    char *bytes = rc == 0 ? pack(*out, &size, err) : NULL;
    if (rc == 0)
        rc = bytes ? hash_bytes((*out)->name, bytes, size, err) : err->code;
    free(bytes);
    class_release(&c);
    if (rc < 0) {
        learnt_close(*out);
        *out = NULL;
    }
    return rc;
}

/* ---- keeping --------------------------------------------------------------------------------- */

int learnt_keep(const struct learnt *l, struct repo *r, const struct model *m, struct err *err)
{
    size_t size;
    char *bytes = pack(l, &size, err);
    int rc = bytes ? repo_set_learnt(r, m->fingerprint, l->name, bytes, size, err) : err->code;
    free(bytes);
    return rc;
}

/* From what was kept: the answers of the examples are still in the repository. 1: they are not. */
static int unpack(struct learnt *l, struct repo *r, const struct model *m, const char *bytes,
                  struct err *err)
{
    size_t width = (size_t)l->width, one = HASH_HEX - 1 + width * sizeof(float);
    float *row = malloc(row_count(l->width) * sizeof *row);
    int n = l->g.n, rc = row ? 0 : err_nomem(err, row_count(l->width));
    l->g.w = malloc((size_t)n * width * sizeof *l->g.w);
    if (!l->g.w)
        rc = err_nomem(err, (size_t)n * width * sizeof *l->g.w);
    memcpy(l->mean, bytes + sizeof(struct head), width * sizeof *l->mean);
    bytes += sizeof(struct head) + width * sizeof *l->mean;
    for (int i = 0; i < n && rc == 0; i++, bytes += one) {
        struct response kept = {.row = row};
        memcpy(l->sha[i], bytes, HASH_HEX - 1);
        memcpy(l->g.w + (size_t)i * width, bytes + HASH_HEX - 1, width * sizeof *l->g.w);
        rc =
            repo_response(r, l->sha[i], m->fingerprint, &kept.plain, row, row_count(l->width), err);
        if (rc == 0)
            l->norm[i] = take_rows(l->re, &kept, l->rows + (size_t)i * row_count(l->width));
    }
    free(row);
    return rc;
}

int learnt_open(struct learnt **out, struct repo *r, const struct model *m,
                const struct responder *re, struct err *err)
{
    char name[HASH_HEX];
    void *bytes = NULL;
    size_t size = 0, width = (size_t)responder_width(re);
    struct head h = {.n = 0};
    *out = NULL;
    int rc = repo_learnt(r, m->fingerprint, name, &bytes, &size, err);
    if (rc != 0)
        return rc;
    bool good = size >= sizeof h;
    if (good) {
        memcpy(&h, bytes, sizeof h);
        good = !memcmp(h.magic, magic, sizeof magic) && h.n > 0 && h.n <= LEARN_MOST &&
               h.width == (int)width &&
               size == sizeof h + width * sizeof(float) +
                           (size_t)h.n * (HASH_HEX - 1 + width * sizeof(float));
    }
    if (good && !(*out = learnt_new(re, h.n, err)))
        rc = err->code;
    if (*out) {
        (*out)->g.n = h.n;
        (*out)->g.out = (int)width;
        memcpy((*out)->name, name, sizeof name);
        rc = unpack(*out, r, m, bytes, err);
    }
    free(bytes);
    if (rc != 0) {
        learnt_close(*out);
        *out = NULL;
    }
    return rc < 0 ? rc : !*out;
}

const char *learnt_name(const struct learnt *l)
{
    return l->name;
}

int learnt_read(const struct learnt *l, const struct response *a, float *out, struct err *err)
{
    size_t rows = row_count(l->width), n = (size_t)l->g.n;
    memset(out, 0, (size_t)l->width * sizeof *out);
    if (a->silent)
        return 1;
    float *own = malloc(rows * sizeof *own);
    double *k = malloc(n * sizeof *k);
    int rc = own && k ? 0 : err_nomem(err, rows * sizeof *own);
    if (rc == 0) {
        double norm = take_rows(l->re, a, own);
        for (size_t i = 0; i < n; i++)
            k[i] = alike(own, norm, l->rows + i * rows, l->norm[i], l->width);
        ridge_apply(&l->g, k, out);
        vector_unit(out, l->width);
    }
    free(own);
    free(k);
    return rc;
}

int learnt_ask(const struct learnt *l, const struct query *q, float *out, struct err *err)
{
    int rc = query_mean(l->re, q, out, err);
    for (int i = 0; i < l->width && rc == 0; i++)
        out[i] -= l->mean[i];
    if (rc == 0)
        vector_unit(out, l->width);
    return rc;
}
