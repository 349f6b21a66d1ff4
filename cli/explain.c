#include "explain.h"

#include "unet/sheet.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { BAR = 28 };
#define LITTLE .01 /* what is below does nothing that eyes find */

int explain_begin(struct explain *e, struct making *m, struct picture *p, struct err *err)
{
    memset(e, 0, sizeof *e);
    e->m = m;
    e->rank = NAN;
    e->p = *p;
    int rc = influence_init(&e->in, m->model, &e->p, err);
    if (rc < 0)
        return rc;
    p->influence = &e->in;
    return 0;
}

void explain_end(struct explain *e)
{
    influence_release(&e->in);
    free(e->change);
    free(e->overlay);
    memset(e, 0, sizeof *e);
}

static const char *name_of(const struct explain *e, int i)
{
    const struct request_adapter *a = &e->m->r.adapter[i];
    return a->name ? a->name : e->m->file[i]->name;
}

/* ---- leaving out ----------------------------------------------------------------------------- */

static double difference(const struct image *a, const struct image *b)
{
    size_t n = (size_t)a->w * (size_t)a->h * 3;
    double sum = 0;
    for (size_t i = 0; i < n; i++) {
        double d = (a->rgb[i] - b->rgb[i]) / 255.0;
        sum += d * d;
    }
    return sqrt(sum / (double)n);
}

/* The place of x[i] among all, equal ones sharing theirs. */
static double rank_of(const double *x, int n, int i)
{
    double r = 0;
    for (int k = 0; k < n; k++)
        r += x[k] < x[i] ? 1 : x[k] == x[i] ? .5 : 0;
    return r;
}

static double spearman(const double *x, const double *y, int n)
{
    double mean = n / 2.0, xy = 0, xx = 0, yy = 0;
    for (int i = 0; i < n; i++) {
        double a = rank_of(x, n, i) - mean, b = rank_of(y, n, i) - mean;
        xy += a * b;
        xx += a * a;
        yy += b * b;
    }
    return n >= 3 && xx > 0 && yy > 0 ? xy / sqrt(xx * yy) : NAN;
}

static int without(struct explain *e, int i, struct use *rest, const struct image *im,
                   struct err *err)
{
    struct picture p = e->p;
    struct image one = {0};
    int n = 0;
    for (int k = 0; k < p.n_use; k++)
        if (k != i)
            rest[n++] = p.use[k];
    p.use = rest;
    p.n_use = n;
    p.influence = NULL;
    int rc = making_run(e->m, &p, 1, &one, err);
    if (rc == 0)
        e->change[i] = difference(im, &one);
    image_release(&one);
    return rc;
}

int explain_leave_out(struct explain *e, const struct image *im, struct err *err)
{
    int n = e->p.n_use, rc = 0;
    struct use *rest = calloc((size_t)n + 1, sizeof *rest);
    double *share = calloc((size_t)n + 1, sizeof *share);
    e->change = calloc((size_t)n + 1, sizeof *e->change);
    if (!rest || !share || !e->change)
        rc = err_nomem(err, (size_t)n * sizeof *rest);
    for (int i = 0; i < n && rc == 0; i++) {
        share[i] = influence_of(&e->in, i, -1, -1);
        rc = without(e, i, rest, im, err);
    }
    if (rc == 0)
        e->rank = spearman(share, e->change, n);
    free(rest);
    free(share);
    return rc;
}

/* ---- drawing --------------------------------------------------------------------------------- */

/* The map as a grey picture of the size of im, white where `most` is reached. */
static int heat(struct image *out, const struct influence *in, const float *map, float most,
                const struct image *im, struct err *err)
{
    size_t n = (size_t)in->h * (size_t)in->w;
    struct image small = {.w = in->w, .h = in->h, .rgb = malloc(3 * n)};
    if (!small.rgb)
        return err_nomem(err, 3 * n);
    for (size_t i = 0; i < n; i++)
        memset(small.rgb + 3 * i, most > 0 ? (int)lrintf(255 * map[i] / most) : 0, 3);
    int rc = image_resize(out, &small, im->w, im->h, IMAGE_BILINEAR, err);
    image_release(&small);
    return rc;
}

/* The picture in pale grey, orange where the map is high. */
static void lay_over(struct image *map, const struct image *im)
{
    static const int colour[3] = {240, 90, 0};
    size_t n = (size_t)im->w * (size_t)im->h;
    for (size_t i = 0; i < n; i++) {
        const uint8_t *c = im->rgb + 3 * i;
        int grey = 160 + (c[0] + c[1] + c[2]) / 8, a = map->rgb[3 * i];
        for (int k = 0; k < 3; k++)
            map->rgb[3 * i + (size_t)k] = (uint8_t)((grey * (255 - a) + colour[k] * a) / 255);
    }
}

static int overlay(struct explain *e, struct image *cell, const char **label,
                   const struct image *im, struct err *err)
{
    size_t places = (size_t)e->in.h * (size_t)e->in.w, n = (size_t)e->p.n_use;
    float *map = calloc(n * places + 1, sizeof *map), most = 0;
    int rc = map ? image_crop(&cell[0], im, 0, 0, im->w, im->h, err)
                 : err_nomem(err, n * places * sizeof *map);
    for (size_t i = 0; i < n && rc == 0; i++) {
        influence_map(&e->in, (int)i, map + i * places);
        for (size_t k = 0; k < places; k++)
            most = fmaxf(most, map[i * places + k]);
    }
    label[0] = "the picture";
    for (size_t i = 0; i < n && rc == 0; i++) {
        rc = heat(&cell[i + 1], &e->in, map + i * places, most, im, err);
        if (rc == 0)
            lay_over(&cell[i + 1], im);
        label[i + 1] = name_of(e, (int)i);
    }
    free(map);
    return rc;
}

int explain_draw(struct explain *e, const char *path, const struct image *im, struct err *err)
{
    size_t n = (size_t)e->p.n_use + 1;
    const char *dot = strrchr(path, '.'), *slash = strrchr(path, '/');
    size_t stem = dot && (!slash || dot > slash) ? (size_t)(dot - path) : strlen(path);
    struct image *cell = calloc(n, sizeof *cell), sheet = {0};
    const char **label = calloc(n, sizeof *label);
    int rc = cell && label ? 0 : err_nomem(err, n * sizeof *cell);
    if (rc == 0 && asprintf(&e->overlay, "%.*s-influence.png", (int)stem, path) < 0) {
        e->overlay = NULL;
        rc = err_nomem(err, stem);
    }
    rc = rc < 0 ? rc : overlay(e, cell, label, im, err);
    const struct sheet s = {.columns = (int)n,
                            .rows = 1,
                            .w = im->w > 256 ? im->w : 256,
                            .h = im->w > 256 ? im->h : 256 * im->h / im->w,
                            .picture = cell,
                            .label = label,
                            .title = "Where each adapter acted: orange, the same scale for all"};
    rc = rc < 0 ? rc : sheet_draw(&sheet, &s, err);
    rc = rc < 0 ? rc : image_write_png(e->overlay, &sheet, NULL, 0, err);
    for (size_t i = 0; cell && i < n; i++)
        image_release(&cell[i]);
    image_release(&sheet);
    free(cell);
    free(label);
    return rc;
}

/* ---- telling --------------------------------------------------------------------------------- */

static void bar(double share, double most)
{
    for (int i = 0; i < BAR && most > 0 && i < (int)(share / most * BAR + .5); i++)
        fputs("▪", stdout);
}

static void tell_steps(const struct explain *e, int i)
{
    static const char *const height[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    double most = 0;
    for (int s = 0; s < e->in.n_step; s++)
        most = fmax(most, influence_of(&e->in, i, -1, s));
    printf("    %-20s", "by step");
    for (int s = 0; s < e->in.n_step && most > 0; s++)
        fputs(height[(int)lrint(8 * influence_of(&e->in, i, -1, s) / most)], stdout);
    printf("  up to %.1f %%\n", 100 * most);
}

void explain_tell(const struct explain *e)
{
    double most = 0;
    for (int i = 0; i < e->p.n_use; i++)
        for (int b = 0; b < e->in.n_block; b++)
            most = fmax(most, influence_of(&e->in, i, b, -1));
    for (int i = 0; i < e->p.n_use; i++) {
        double all = influence_of(&e->in, i, -1, -1);
        printf("  %s acted %.1f %%", name_of(e, i), 100 * all);
        if (all < LITTLE)
            fputs(": raise it or drop it", stdout);
        if (e->change)
            printf("; without it pixels change by %.1f %%", 100 * e->change[i]);
        putchar('\n');
        for (int b = 0; b < e->in.n_block; b++) {
            double share = influence_of(&e->in, i, b, -1);
            if (share <= 0)
                continue;
            printf("    %-20s%6.1f %%  ", e->in.block[b], 100 * share);
            bar(share, most);
            putchar('\n');
        }
        tell_steps(e, i);
    }
    if (e->change && !isnan(e->rank))
        printf("  rank correlation of influence and change: %.2f\n", e->rank);
    if (e->overlay)
        printf("  %s\n", e->overlay);
}

static json_t *one_json(const struct explain *e, int i)
{
    json_t *blocks = json_object(), *steps = json_array(),
           *root = json_pack("{s:s, s:f}", "name", name_of(e, i), "share",
                             influence_of(&e->in, i, -1, -1));
    for (int b = 0; b < e->in.n_block; b++)
        json_object_set_new(blocks, e->in.block[b], json_real(influence_of(&e->in, i, b, -1)));
    for (int s = 0; s < e->in.n_step; s++)
        json_array_append_new(steps, json_real(influence_of(&e->in, i, -1, s)));
    json_object_set_new(root, "blocks", blocks);
    json_object_set_new(root, "steps", steps);
    if (e->change)
        json_object_set_new(root, "change", json_real(e->change[i]));
    return root;
}

json_t *explain_json(const struct explain *e)
{
    json_t *list = json_array();
    for (int i = 0; i < e->p.n_use; i++)
        json_array_append_new(list, one_json(e, i));
    return json_pack("{s:o, s:s?, s:o}", "adapters", list, "overlay", e->overlay, "rank",
                     e->change && !isnan(e->rank) ? json_real(e->rank) : json_null());
}
