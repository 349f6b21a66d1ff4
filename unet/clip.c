#include "clip.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* Row i of a stored matrix as a view. */
static struct array matrix_row(const struct array *a, int i)
{
    struct array v = *a;
    v.ndim = 1;
    v.dim[0] = a->dim[1];
    v.data = (const char *)a->data + (size_t)i * a->dim[1] * dtype_bits(a->dtype) / 8;
    return v;
}

/* to[] = row i of a table; its values must be finite. */
static int take_row(float *to, const struct array *table, int i, struct err *err)
{
    struct array row = matrix_row(table, i);
    return array_to_finite(&row, to, "text_encoder embeddings", err);
}

/* The embedding of one token, or a word's vector. */
static int take_token(const struct clip_text *c, const struct words *words, float *to, int32_t id,
                      int layer, struct err *err)
{
    const float *vec = words_vector(words, id, layer);
    if (vec) {
        assert(words_width(words) == c->tower.width);
        memcpy(to, vec, (size_t)c->tower.width * sizeof *to);
        return 0;
    }
    return take_row(to, &c->token, id, err);
}

/* Token plus position embeddings of all rows, into host. */
static int embed_rows(const struct clip_text *c, const struct words *words, float *host, float *tmp,
                      const int32_t *ids, int n, int len, int layer, struct err *err)
{
    int rc = 0;
    for (int i = 0; i < n * len && rc == 0; i++) {
        float *to = host + (size_t)i * (size_t)c->tower.width;
        if (ids[i] >= c->vocab || (ids[i] < 0 && !words_vector(words, ids[i], layer)))
            return err_set(err, ERR_MISMATCH,
                           "token %d is not in the text encoder's vocabulary of %d: tokenizer and "
                           "text encoder do not belong together",
                           (int)ids[i], c->vocab);
        rc = take_token(c, words, to, ids[i], layer, err);
        rc = rc < 0 ? rc : take_row(tmp, &c->position, i % len, err);
        for (int k = 0; rc == 0 && k < c->tower.width; k++)
            to[k] += tmp[k];
    }
    return rc;
}

static struct tensor embed(const struct clip_text *c, struct run *r, const struct words *words,
                           const int32_t *ids, int n, int len, int layer)
{
    struct tensor x = run_tensor(r, n, len, 1, c->tower.width);
    size_t count = tensor_count(&x);
    if (r->measuring || r->err.code)
        return x;
    float *host = malloc((count + (size_t)c->tower.width) * sizeof *host);
    if (!host)
        err_nomem(&r->err, count * sizeof *host);
    else if (embed_rows(c, words, host, host + count, ids, n, len, layer, &r->err) == 0)
        op_upload(r, &x, host);
    free(host);
    return x;
}

static void block_forward(const struct clip_tower *t, const struct clip_block *b, struct run *r,
                          struct tensor *x, bool causal)
{
    const struct attention how = {.heads = t->heads, .causal = causal};
    unsigned mark = run_mark(r);
    struct tensor h = run_like(r, x), q = run_like(r, x), k = run_like(r, x), v = run_like(r, x);

    op_layer_norm(r, &h, &b->norm1, x);
    op_layer(r, &q, &b->q, &h, false);
    op_layer(r, &k, &b->k, &h, false);
    op_layer(r, &v, &b->v, &h, false);
    op_attention(r, &h, &q, &k, &v, &how);
    op_layer(r, x, &b->out, &h, true);
    run_pop(r, mark);

    h = run_like(r, x);
    struct tensor m = run_tensor(r, x->n, x->h, x->w, t->mlp);
    op_layer_norm(r, &h, &b->norm2, x);
    op_layer(r, &m, &b->fc1, &h, false);
    op_activate(r, &m, &m, t->act);
    op_layer(r, x, &b->fc2, &m, true);
    run_pop(r, mark);
}

void clip_tower_forward(const struct clip_tower *t, struct run *r, struct tensor *x, bool causal,
                        int skip)
{
    for (int i = 0; i < t->layers - skip; i++)
        block_forward(t, &t->block[i], r, x, causal);
}

struct tensor clip_text_forward(const struct clip_text *c, struct run *r, const struct words *words,
                                const int32_t *ids, int n, int len, int skip, int layer)
{
    struct tensor x = embed(c, r, words, ids, n, len, layer);
    clip_tower_forward(&c->tower, r, &x, true, skip);
    struct tensor y = run_like(r, &x);
    op_layer_norm(r, &y, &c->final, &x);
    run_drop(r, &x);
    return y;
}

int clip_text_end(const struct clip_text *c, const int32_t *ids, int len)
{
    int best = 0;
    for (int i = 0; i < len; i++) {
        if (c->eos == 2 ? ids[i] > ids[best] : ids[i] == c->eos) {
            best = i;
            if (c->eos != 2)
                break;
        }
    }
    return best;
}

/* Place i of every row of x, [n, 1, c]. */
static void gather(struct run *r, struct tensor *y, const struct tensor *x, const int *place)
{
    for (int i = 0; i < x->n; i++) {
        struct tensor to = tensor_rows(y, i, 1), row = tensor_rows(x, i, 1);
        /* a row as a batch of its places, of which one is taken */
        struct tensor places = row;
        places.n = row.h * row.w;
        places.h = places.w = 1;
        struct tensor from = tensor_rows(&places, place[i], 1);
        op_copy(r, &to, &from);
    }
}

#define MAX_ROWS 64

struct tensor clip_embed_text(const struct clip *c, struct run *r, const int32_t *ids, int n,
                              int len)
{
    struct tensor y = run_tensor(r, n, 1, 1, c->dim),
                  end = run_tensor(r, n, 1, 1, c->text.tower.width);
    int place[MAX_ROWS];

    assert(n <= MAX_ROWS);
    for (int i = 0; i < n; i++)
        place[i] = clip_text_end(&c->text, ids + (size_t)i * (size_t)len, len);
    struct tensor h = clip_text_forward(&c->text, r, NULL, ids, n, len, 0, 0);
    gather(r, &end, &h, place);
    op_layer(r, &y, &c->text_projection, &end, false);
    run_drop(r, &h);
    run_drop(r, &end);
    return y;
}

/* Patches with the class token in front, all with their positions: [n, 1 + patches, width]. */
static struct tensor patches(const struct clip_vision *v, struct run *r, const struct tensor *x)
{
    int w = v->tower.width, side = v->side / v->patch, n = side * side;
    struct tensor p = run_layer_tensor(r, &v->embed, x), all = run_tensor(r, x->n, n + 1, 1, w);
    struct tensor extra = run_tensor(r, 1, n + 1, 1, w);
    float *host = NULL;

    op_layer(r, &p, &v->embed, x, false);
    if (!r->measuring && !r->err.code) {
        host = malloc((size_t)(n + 2) * (size_t)w * sizeof *host);
        if (!host)
            err_nomem(&r->err, (size_t)(n + 2) * (size_t)w * sizeof *host);
    }
    if (host && array_to_finite(&v->position, host, "vision_model positions", &r->err) == 0) {
        float *token = host + (size_t)(n + 1) * (size_t)w;
        array_to_finite(&v->token, token, "vision_model class token", &r->err);
        for (int k = 0; k < w; k++)
            host[k] += token[k];
        op_upload(r, &extra, host);
    }
    free(host);
    for (int i = 0; i < x->n; i++) {
        struct tensor to = tensor_rows(&all, i, 1), from = tensor_rows(&p, i, 1), rest = to;
        op_copy(r, &to, &extra);
        /* places 1 … n of the row are the patches' */
        rest.n = n + 1;
        rest.h = rest.w = 1;
        rest = tensor_rows(&rest, 1, n);
        from.n = n;
        from.h = from.w = 1;
        op_add(r, &rest, &from);
    }
    run_drop(r, &p);
    run_drop(r, &extra);
    return all;
}

struct tensor clip_embed_image(const struct clip *c, struct run *r, const struct tensor *x)
{
    const struct clip_vision *v = &c->vision;
    int first[MAX_ROWS] = {0};
    struct tensor y = run_tensor(r, x->n, 1, 1, c->dim),
                  head = run_tensor(r, x->n, 1, 1, v->tower.width);

    assert(x->n <= MAX_ROWS);
    struct tensor h = patches(v, r, x);
    op_layer_norm(r, &h, &v->pre, &h);
    clip_tower_forward(&v->tower, r, &h, false, 0);
    gather(r, &head, &h, first);
    op_layer_norm(r, &head, &v->post, &head);
    op_layer(r, &y, &c->visual_projection, &head, false);
    run_drop(r, &h);
    run_drop(r, &head);
    return y;
}
