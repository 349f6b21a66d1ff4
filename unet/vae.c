#include "vae.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* x += to_out(attention(norm x)) */
static void attend(const struct vae_attention *a, struct run *r, struct tensor *x)
{
    const struct attention how = {.heads = 1};
    unsigned mark = run_mark(r);
    struct tensor h = run_like(r, x);
    op_group_norm(r, &h, &a->norm, x, NULL, ACT_NONE);
    struct tensor q = layer_forward(&a->q, r, &h);
    struct tensor k = layer_forward(&a->k, r, &h);
    struct tensor v = layer_forward(&a->v, r, &h);
    op_attention(r, &h, &q, &k, &v, &how);
    op_layer(r, x, &a->out, &h, true);
    run_pop(r, mark);
}

static void middle(const struct vae_middle *m, struct run *r, struct tensor *h)
{
    run_replace(r, h, resnet_forward(&m->resnet[0], r, h, NULL));
    if (m->attention.out.out)
        attend(&m->attention, r, h);
    run_replace(r, h, resnet_forward(&m->resnet[1], r, h, NULL));
}

/* conv(silu(norm x)) */
static struct tensor finish(const struct norm *g, const struct layer *conv, struct run *r,
                            const struct tensor *x)
{
    struct tensor y = run_layer_tensor(r, conv, x);
    unsigned mark = run_mark(r);
    struct tensor a = run_like(r, x);
    op_group_norm(r, &a, g, x, NULL, ACT_SILU);
    op_layer(r, &y, conv, &a, false);
    run_pop(r, mark);
    return y;
}

struct tensor vae_decode(const struct vae *v, struct run *r, const struct tensor *z)
{
    struct tensor h = run_like(r, z);

    op_affine(r, &h, z, 1 / v->scaling, 0);
    if (v->has_post_quant)
        run_replace(r, &h, layer_forward(&v->post_quant, r, &h));
    run_replace(r, &h, layer_forward(&v->dec_in, r, &h));
    middle(&v->dec_mid, r, &h);
    for (int i = 0; i < v->levels; i++) {
        const struct vae_level *l = &v->up[i];
        for (int j = 0; j < l->n; j++)
            run_replace(r, &h, resnet_forward(&l->resnet[j], r, &h, NULL));
        if (l->sampler.out)
            run_replace(r, &h, upsample_forward(&l->sampler, r, &h, 2 * h.h, 2 * h.w));
    }
    run_replace(r, &h, finish(&v->dec_norm, &v->dec_out, r, &h));
    return h;
}

struct tensor vae_encode(const struct vae *v, struct run *r, const struct tensor *x)
{
    struct tensor h = layer_forward(&v->enc_in, r, x);

    for (int i = 0; i < v->levels; i++) {
        const struct vae_level *l = &v->down[i];
        for (int j = 0; j < l->n; j++)
            run_replace(r, &h, resnet_forward(&l->resnet[j], r, &h, NULL));
        if (l->sampler.out)
            run_replace(r, &h, layer_forward(&l->sampler, r, &h));
    }
    middle(&v->enc_mid, r, &h);
    run_replace(r, &h, finish(&v->enc_norm, &v->enc_out, r, &h));
    if (v->has_quant)
        run_replace(r, &h, layer_forward(&v->quant, r, &h));
    return h;
}

void vae_draw(const struct vae *v, float *z, const float *moments, const float *noise, size_t n)
{
    size_t c = (size_t)v->latent;
    for (size_t i = 0; i < n; i++)
        for (size_t k = 0; k < c; k++) {
            float mean = moments[i * 2 * c + k], logvar = moments[i * 2 * c + c + k];
            logvar = logvar < -30 ? -30 : logvar > 20 ? 20 : logvar;
            if (noise)
                mean += expf(0.5f * logvar) * noise[i * c + k];
            z[i * c + k] = mean * (float)v->scaling;
        }
}

/* ---- tiles ----------------------------------------------------------------------------------- */

/* A decoded square on its way into the picture. */
struct square {
    float *rgb; /* [h, w, 3] */
    int h, w;
};

static int decode_square(const struct vae *v, struct run *r, const float *z, int zw, int y0, int x0,
                         int h, int w, struct square *out, struct err *err)
{
    size_t c = (size_t)v->latent;
    float *piece = malloc((size_t)h * (size_t)w * c * sizeof *piece);
    out->h = h * v->factor;
    out->w = w * v->factor;
    out->rgb = malloc((size_t)out->h * (size_t)out->w * 3 * sizeof *out->rgb);
    if (!piece || !out->rgb) {
        free(piece);
        return err_nomem(err, (size_t)out->h * (size_t)out->w * 3 * sizeof *out->rgb);
    }
    for (int i = 0; i < h; i++)
        memcpy(piece + (size_t)i * (size_t)w * c,
               z + ((size_t)(y0 + i) * (size_t)zw + (size_t)x0) * c, (size_t)w * c * sizeof *piece);
    run_reset(r);
    struct tensor t = run_tensor(r, 1, h, w, v->latent);
    op_upload(r, &t, piece);
    struct tensor y = vae_decode(v, r, &t);
    int rc = run_check(r, err);
    if (rc == 0)
        rc = r->dev->be->download(r->dev, out->rgb, &y, err);
    free(piece);
    return rc;
}

static float *pixel(const struct square *s, int y, int x)
{
    return s->rgb + ((size_t)y * (size_t)s->w + (size_t)x) * 3;
}

/* The first `extent` rows (down) or columns of b fade in over the last of a. */
static void blend(const struct square *a, const struct square *b, int extent, bool down)
{
    int limit = down ? (a->h < b->h ? a->h : b->h) : (a->w < b->w ? a->w : b->w);
    if (extent > limit)
        extent = limit;
    for (int i = 0; i < extent; i++) {
        float f = (float)i / (float)extent;
        int n = down ? (a->w < b->w ? a->w : b->w) : (a->h < b->h ? a->h : b->h);
        for (int j = 0; j < n; j++) {
            float *pb = down ? pixel(b, i, j) : pixel(b, j, i);
            const float *pa =
                down ? pixel(a, a->h - extent + i, j) : pixel(a, j, a->w - extent + i);
            for (int k = 0; k < 3; k++)
                pb[k] = pa[k] * (1 - f) + pb[k] * f;
        }
    }
}

int vae_decode_tiled(const struct vae *v, struct run *r, float *rgb, const float *z, int h, int w,
                     int tile, struct err *err)
{
    int step = tile - tile / 4, f = v->factor, extent = tile * f / 4, keep = tile * f - extent;
    int cols = (w + step - 1) / step, rc = 0;
    struct square *above = calloc((size_t)cols, sizeof *above), left = {NULL, 0, 0};
    if (!above)
        return err_nomem(err, (size_t)cols * sizeof *above);

    /* Row by row; a square is blended with its upper and its left neighbour as those were after
     * their own blending, and only its first `keep` rows and columns are used. */
    for (int y0 = 0, row = 0; y0 < h && rc == 0; y0 += step, row++)
        for (int x0 = 0, col = 0; x0 < w && rc == 0; x0 += step, col++) {
            struct square s = {NULL, 0, 0};
            int th = h - y0 < tile ? h - y0 : tile, tw = w - x0 < tile ? w - x0 : tile;
            rc = decode_square(v, r, z, w, y0, x0, th, tw, &s, err);
            if (rc == 0 && row > 0)
                blend(&above[col], &s, extent, true);
            if (rc == 0 && col > 0)
                blend(&left, &s, extent, false);
            for (int i = 0; rc == 0 && i < s.h && i < keep && row * keep + i < h * f; i++) {
                int n = s.w < keep ? s.w : keep, room = w * f - col * keep;
                memcpy(rgb +
                           ((size_t)(row * keep + i) * (size_t)(w * f) + (size_t)(col * keep)) * 3,
                       pixel(&s, i, 0), (size_t)(n < room ? n : room) * 3 * sizeof *rgb);
            }
            free(above[col].rgb);
            above[col] = s;
            left = s;
        }
    for (int i = 0; i < cols; i++)
        free(above[i].rgb);
    free(above);
    return rc;
}
