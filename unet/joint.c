#include "bind.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

/* One product bound at a site. */
struct piece {
    int part;
    const struct layer *down, *up;
    float scale;
};

static int find_pieces(struct piece *to, const struct joint *j, int site)
{
    int n = 0;
    for (int i = 0; i < j->n; i++)
        for (const struct bound *b = j->adapter[i]->at[site]; b; b = b->next) {
            float scale = b->factor * b->side.scale;
            if (b->side.up.out)
                to[n++] = (struct piece){i, &b->side.down, &b->side.up, scale};
            if (b->side.up2.out)
                to[n++] = (struct piece){i, &b->side.down2, &b->side.up2, scale};
        }
    return n;
}

/* A layer of the joint's own beside one of a piece. */
static struct layer beside(const struct layer *l, int in, int out, const float *w)
{
    struct layer n = *l;
    n.in = in;
    n.out = out;
    n.w = (struct array){.dtype = DT_F32,
                         .ndim = 4,
                         .dim = {(uint64_t)out, (uint64_t)in, (uint64_t)l->kh, (uint64_t)l->kw},
                         .data = w};
    n.impl = NULL;
    return n;
}

/* Rows of up [out, rank] into columns of the joined one [out, wide]. */
static int put_up(float *to, int wide, const struct piece *p, struct err *err)
{
    size_t rank = (size_t)p->up->in, n = rank * (size_t)p->up->out;
    float *own = malloc(n * sizeof *own);
    if (!own)
        return err_nomem(err, n * sizeof *own);
    array_to_f32(&p->up->w, own);
    for (size_t i = 0; i < n; i++)
        to[i / rank * (size_t)wide + i % rank] = own[i] * p->scale;
    free(own);
    return 0;
}

static void joined_free(struct device *dev, struct joined *j)
{
    if (!j)
        return;
    layer_release(dev, &j->down);
    layer_release(dev, &j->up);
    free(j->values);
    free(j);
}

static int join(struct joined *j, const struct piece *p, int n, struct err *err)
{
    const struct layer *down = p[0].down, *up = p[0].up;
    size_t inner = (size_t)down->in * (size_t)down->kh * (size_t)down->kw;
    int wide = 0, at = 0, rc = 0;
    j->n = n;
    for (int i = 0; i < n; i++)
        wide += p[i].down->out;
    size_t count = (size_t)wide * (inner + (size_t)up->out);
    j->values = malloc(count * sizeof *j->values);
    if (!j->values)
        return err_nomem(err, count * sizeof *j->values);
    float *ups = j->values + (size_t)wide * inner;
    for (int i = 0; i < n && rc == 0; i++) {
        array_to_f32(&p[i].down->w, j->values + (size_t)at * inner);
        rc = put_up(ups + at, wide, &p[i], err);
        j->part[i] = p[i].part;
        j->width[i] = p[i].down->out;
        at += p[i].down->out;
    }
    j->down = beside(down, down->in, wide, j->values);
    j->up = beside(up, wide, up->out, ups);
    return rc;
}

int joint_new(struct joint **out, const struct sites *sites, enum component part, int n,
              const struct adapter *const *adapter, struct err *err)
{
    struct joint *j = calloc(1, sizeof *j);
    struct piece piece[2 * JOINT_MAX];
    int rc = 0;
    assert(n > 0 && n <= JOINT_MAX);
    *out = NULL;
    if (!j)
        return err_nomem(err, sizeof *j);
    j->dev = adapter[0]->dev;
    j->n = n;
    j->n_site = sites->n;
    memcpy(j->adapter, adapter, (size_t)n * sizeof(const struct adapter *));
    j->at = calloc((size_t)j->n_site + 1, sizeof(struct joined *));
    rc = j->at ? 0 : err_nomem(err, (size_t)j->n_site * sizeof(struct joined *));
    for (int i = 0; rc == 0 && i < j->n_site; i++) {
        int k = sites->at[i].part == part ? find_pieces(piece, j, i) : 0;
        if (k < 2)
            continue;
        j->at[i] = calloc(1, sizeof *j->at[i]);
        rc = j->at[i] ? join(j->at[i], piece, k, err) : err_nomem(err, sizeof *j->at[i]);
    }
    if (rc < 0) {
        joint_free(j);
        return rc;
    }
    *out = j;
    return 0;
}

void joint_free(struct joint *j)
{
    if (!j)
        return;
    for (int i = 0; j->at && i < j->n_site; i++)
        joined_free(j->dev, j->at[i]);
    free(j->at);
    free(j);
}

size_t joint_bytes(const struct joint *j)
{
    size_t n = 0;
    for (int i = 0; i < j->n_site; i++)
        if (j->at[i])
            n += array_count(&j->at[i]->down.w) + array_count(&j->at[i]->up.w);
    return 2 * n * sizeof(float);
}
