#include "adapter_places.h"

#include "unet/file.h"
#include "unet/mask.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { GRID = 64 }; /* places a side that a box is drawn on */

/* How much of the i-th of GRID parts of 0..1 lies within a..b. */
static double covered(int i, double a, double b)
{
    return fmax(0, fmin(b * GRID, i + 1) - fmax(a * GRID, i));
}

static int draw_box(float **out, struct use *u, const double box[4], struct err *err)
{
    float *v = malloc(GRID * GRID * sizeof *v);
    if (!v)
        return err_nomem(err, GRID * GRID * sizeof *v);
    for (int y = 0; y < GRID; y++)
        for (int x = 0; x < GRID; x++)
            v[y * GRID + x] = (float)(covered(x, box[0], box[2]) * covered(y, box[1], box[3]));
    *out = v;
    u->where_h = u->where_w = GRID;
    return 0;
}

/* A picture's brightness. */
static int read_mask(float **out, struct use *u, struct request_adapter *a, const char *like,
                     struct err *err)
{
    struct image im = {0};
    char sha[HASH_HEX];
    int rc = hash_file(sha, a->mask, err);
    if (rc == 0 && *a->mask_sha256 && strcmp(sha, a->mask_sha256))
        rc = err_set(err, ERR_MISMATCH,
                     "%s: not the mask that %s was made with; -a %s,mask=PNG says what to use",
                     a->mask, like ? like : "the picture", a->ref);
    rc = rc < 0 ? rc : image_read_png(a->mask, &im, NULL, err);
    size_t n = (size_t)im.w * (size_t)im.h;
    *out = rc < 0 ? NULL : malloc(n * sizeof **out);
    if (rc == 0 && !*out)
        rc = err_nomem(err, n * sizeof **out);
    for (size_t i = 0; i < n && rc == 0; i++)
        (*out)[i] = (float)(im.rgb[3 * i] + im.rgb[3 * i + 1] + im.rgb[3 * i + 2]) / 765;
    memcpy(a->mask_sha256, sha, sizeof sha);
    u->where_h = im.h;
    u->where_w = im.w;
    image_release(&im);
    return rc;
}

int adapter_places_read(struct making *m, struct err *err)
{
    int rc = 0;
    m->where = calloc((size_t)m->r.n_adapter + 1, sizeof *m->where);
    if (!m->where)
        return err_nomem(err, (size_t)m->r.n_adapter * sizeof *m->where);
    for (int i = 0; i < m->r.n_adapter && rc == 0; i++) {
        struct request_adapter *a = &m->r.adapter[i];
        if (a->mask)
            rc = read_mask(&m->where[i], &m->use[i], a, m->like, err);
        else if (a->box[2] > 0)
            rc = draw_box(&m->where[i], &m->use[i], a->box, err);
        m->use[i].where = m->where[i];
        m->use[i].prompt = a->prompt;
    }
    return rc;
}

/* ---- drawing --------------------------------------------------------------------------------- */

/* FOLDER/STEM-NAME.png, or STEM-NAME-words.png; what cannot be in a file's name becomes a line. */
static char *drawn_path(const char *folder, const char *path, const char *name, bool words)
{
    const char *base = strrchr(path, '/') ? strrchr(path, '/') + 1 : path,
               *dot = strrchr(base, '.');
    char *file = NULL, *out;
    if (asprintf(&file, "%.*s-%s%s.png", dot ? (int)(dot - base) : (int)strlen(base), base, name,
                 words ? "-words" : "") < 0)
        return NULL;
    for (char *p = file; *p; p++)
        *p = *p == '/' ? '-' : *p;
    out = file_join(folder, file);
    free(file);
    return out;
}

static int draw_one(const struct image *im, const float *mask, int h, int w, const char *path,
                    struct err *err)
{
    size_t n = (size_t)im->w * (size_t)im->h;
    struct image dark = {im->w, im->h, malloc(3 * n)};
    float *v = malloc(n * sizeof *v);
    int rc = dark.rgb && v ? 0 : err_nomem(err, 3 * n);
    if (rc == 0)
        mask_resample(v, im->h, im->w, mask, h, w);
    for (size_t i = 0; i < 3 * n && rc == 0; i++)
        dark.rgb[i] = (uint8_t)((float)im->rgb[i] * (.1f + .9f * v[i / 3]) + .5f);
    rc = rc < 0 ? rc : image_write_png(path, &dark, NULL, 0, err);
    free(v);
    image_release(&dark);
    return rc;
}

int adapter_places_draw(const struct making *m, int i, const struct image *im, const char *folder,
                        const char *path, struct err *err)
{
    int rc = 0;
    for (int k = 0; k < 2 * m->r.n_adapter && rc == 0; k++) {
        const struct request_adapter *a = &m->r.adapter[k / 2];
        int h, w;
        const float *mask = k % 2 ? generator_words(m->g, i, k / 2, &h, &w)
                                  : generator_mask(m->g, i, k / 2, &h, &w);
        if (!mask)
            continue;
        char *to = drawn_path(folder, path, a->name ? a->name : m->file[k / 2]->name, k % 2);
        rc = to ? draw_one(im, mask, h, w, to, err) : err_nomem(err, 256);
        free(to);
    }
    return rc;
}
