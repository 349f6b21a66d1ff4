/* Every kind and layout of adapter against the weights that lycoris-lora and peft make of it
 * (tests/golden/deltas.py): folded, and acting beside the layer, at several strengths.
 * WEFT_DELTAS=MODEL:OUT adds what it made for another model (SDXL's widths). */
#include "store/adapter.h"
#include "unet/gates.h"
#include "unet/mask.h"
#include "unet/model.h"
#include "unet/ops.h"
#include "unet/safetensors.h"
#include "util.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DATA "tests/golden/data"

/* Relative error of a merged weight, and of a layer's output with the adapter beside it. */
#define BOUND 1e-5

static const float strengths[] = {1, 0.5f, -0.3f};

struct fixture {
    struct device *dev;
    struct model *m;
    struct safetensors *want;
    struct run r;
    double worst; /* over what was compared since it was cleared */
};

static void fixture_open(struct fixture *f, const char *model, const char *out)
{
    char golden[400];
    struct err err;
    f->dev = test_device("cpu");
    f->worst = 0;
    cr_assert_eq(model_open(&f->m, f->dev, model, &err), 0, "%s", err.msg);
    snprintf(golden, sizeof golden, "%s/deltas.safetensors", out);
    cr_assert_eq(safetensors_open(&f->want, golden, &err), 0, "%s", err.msg);
    run_init(&f->r, f->dev);
}

static void fixture_close(struct fixture *f)
{
    run_release(&f->r);
    safetensors_close(f->want);
    model_close(f->m);
    device_close(f->dev);
}

static void *room(size_t n)
{
    void *p = malloc((n + 1) * sizeof(float));
    cr_assert(p);
    return p;
}

/* base + m (golden - base), what the golden says at strength m; base itself where it says nothing. */
static float *wanted(const struct fixture *f, const char *kase, const char *site, const char *end,
                     const struct array *base, float m)
{
    char key[300];
    snprintf(key, sizeof key, "%s %s%s", kase, site + 5, end); /* without "unet." */
    const struct array *g = safetensors_find(f->want, key);
    size_t n = array_count(base);
    float *w = room(n), *v = room(n);
    array_to_f32(base, w);
    if (g) {
        cr_assert_eq(array_count(g), n, "%s", key);
        array_to_f32(g, v);
        for (size_t i = 0; i < n; i++)
            w[i] = (float)(w[i] + (double)m * ((double)v[i] - w[i]));
    }
    free(v);
    return w;
}

static void compare(struct fixture *f, const float *got, const float *want, size_t n,
                    const char *kase, const char *site, const char *what, float m)
{
    double e = test_error(got, want, n);
    f->worst = e > f->worst ? e : f->worst;
    cr_expect_leq(e, BOUND, "%s %s %s at %g: %g", kase, site, what, (double)m, e);
}

static void check_folded(struct fixture *f, const struct adapter *a, const char *kase, float m)
{
    struct fold *fold = NULL;
    struct err err;
    const struct sites *s = &f->m->sites;
    cr_assert_eq(fold_new(&fold, s, COMPONENT_UNET, 1, &a, &m, &err), 0, "%s", err.msg);
    for (int i = 0; i < s->n; i++) {
        if (!a->at[i])
            continue;
        const struct layer *l = s->at[i].layer, *got = fold->at[i];
        const char *name = s->at[i].name;
        if (l) {
            float *w = wanted(f, kase, name, "", &l->w, m);
            compare(f, got->w.data, w, array_count(&l->w), kase, name, "folded", m);
            free(w);
            if (l->b.data) {
                w = wanted(f, kase, name, " bias", &l->b, m);
                compare(f, got->b.data, w, array_count(&l->b), kase, name, "bias", m);
                free(w);
            }
        } else {
            const struct norm *g = s->at[i].norm, *n = fold->norm[i];
            float *w = wanted(f, kase, name, "", &g->gamma_file, m);
            compare(f, n->gamma, w, (size_t)g->c, kase, name, "gamma", m);
            free(w);
            w = wanted(f, kase, name, " bias", &g->beta_file, m);
            compare(f, n->beta, w, (size_t)g->c, kase, name, "beta", m);
            free(w);
        }
    }
    fold_free(fold);
}

/* ---- beside the layer ------------------------------------------------------------------------ */

static struct tensor forward(struct fixture *f, const struct site *s, const struct layer *l,
                             const struct norm *g, const float *x)
{
    int c = s->layer ? s->layer->in : s->norm->c;
    struct tensor t = run_tensor(&f->r, 3, 5, 4, c), y;
    op_upload(&f->r, &t, x);
    if (l) {
        y = run_layer_tensor(&f->r, l, &t);
        op_layer(&f->r, &y, l, &t, false);
        return y;
    }
    y = run_like(&f->r, &t);
    if (g->groups)
        op_group_norm(&f->r, &y, g, &t, NULL, ACT_SILU);
    else
        op_layer_norm(&f->r, &y, g, &t);
    return y;
}

static float *output(struct fixture *f, const struct site *s, const struct layer *l,
                     const struct norm *g, const float *x, size_t *n)
{
    struct err err;
    run_measure(&f->r);
    forward(f, s, l, g, x);
    cr_assert_eq(run_commit(&f->r, &err), 0, "%s", err.msg);
    struct tensor y = forward(f, s, l, g, x);
    cr_assert_eq(run_check(&f->r, &err), 0, "%s", err.msg);
    *n = tensor_count(&y);
    float *host = room(*n);
    f->dev->be->download(f->dev, host, &y, &err);
    run_reset(&f->r);
    return host;
}

static struct array floats_of(const struct array *like, const float *v)
{
    struct array a = *like;
    a.dtype = DT_F32;
    a.data = v;
    return a;
}

/* Rows 1 and 2 of three have the adapter: row 0 must be the model's own, bit for bit. */
static void check_beside(struct fixture *f, const struct adapter *a, const char *kase, int site,
                         float m)
{
    const struct site *s = &f->m->sites.at[site];
    struct branch b = {.adapter = a, .row0 = 1, .row1 = 3, .strength = m};
    struct layer l = {0};
    struct norm g = {0};
    size_t n, count = (size_t)(3 * 20 * (s->layer ? s->layer->in : s->norm->c));
    float *x = room(count), *w, *v = NULL;
    struct err err;
    for (size_t i = 0; i < count; i++)
        x[i] = sinf((float)i * 1.7f) + (i % 7 == 0);

    float *own = output(f, s, s->layer, s->norm, x, &n);
    f->r.branch = &b;
    f->r.n_branch = 1;
    float *got = output(f, s, s->layer, s->norm, x, &n);
    f->r.n_branch = 0;
    if (s->layer) {
        l = *s->layer;
        l.impl = NULL;
        l.site = -1;
        w = wanted(f, kase, s->name, "", &s->layer->w, m);
        l.w = floats_of(&l.w, w);
        if (l.b.data) {
            v = wanted(f, kase, s->name, " bias", &s->layer->b, m);
            l.b = floats_of(&l.b, v);
        } else { /* none in the model; PEFT's may bring one */
            v = NULL;
        }
    } else {
        w = wanted(f, kase, s->name, "", &s->norm->gamma_file, m);
        v = wanted(f, kase, s->name, " bias", &s->norm->beta_file, m);
        struct array aw = floats_of(&s->norm->gamma_file, w),
                     av = floats_of(&s->norm->beta_file, v);
        cr_assert_eq(norm_init(f->dev, &g, "g", s->norm->groups, s->norm->eps, &aw, &av, &err), 0);
    }
    float *want = output(f, s, s->layer ? &l : NULL, &g, x, &n);
    cr_expect_eq(memcmp(got, own, n / 3 * sizeof *got), 0, "%s %s: touches a row without it", kase,
                 s->name);
    compare(f, got + n / 3, want + n / 3, n - n / 3, kase, s->name, "beside", m);
    layer_release(f->dev, &l);
    if (!s->layer)
        norm_release(f->dev, &g);
    free(x), free(own), free(got), free(want), free(w), free(v);
}

static int golden_count(const struct fixture *f, const char *kase)
{
    int n = 0;
    size_t len = strlen(kase);
    for (size_t i = 0; i < safetensors_count(f->want); i++) {
        const char *k = safetensors_name(f->want, i);
        n += !strncmp(k, kase, len) && k[len] == ' ' && !strchr(k + len + 1, ' ');
    }
    return n;
}

static struct adapter *bound(struct fixture *f, const struct adapter_file *file, const char *kase,
                             bool fold)
{
    struct adapter *a = NULL;
    struct bind_report report = {0};
    struct err err;
    cr_assert_eq(adapter_bind(&a, f->dev, &f->m->sites, &file->list, kase, fold, &report, &err), 0,
                 "%s: %s", kase, err.msg);
    cr_expect_eq(report.n, 0, "%s: %s", kase, report.n ? report.line[0] : "");
    bind_report_release(&report);
    return a;
}

static void check_case(struct fixture *f, const char *kase, const char *path)
{
    struct adapter_file *file = NULL;
    struct err err;
    int sites = 0;
    cr_assert_eq(adapter_file_open(&file, path, &err), 0, "%s", err.msg);
    struct adapter *beside = bound(f, file, kase, false), *folded = bound(f, file, kase, true);
    f->worst = 0;
    for (size_t i = 0; i < sizeof strengths / sizeof *strengths; i++) {
        check_folded(f, folded, kase, strengths[i]);
        for (int s = 0; s < f->m->sites.n; s++)
            if (beside->at[s])
                check_beside(f, beside, kase, s, strengths[i]);
    }
    for (int s = 0; s < f->m->sites.n; s++)
        sites += beside->at[s] != NULL;
    cr_expect_eq(sites, golden_count(f, kase), "%s: %d sites", kase, sites);
    fprintf(stderr, "%-20s %-6s %-8s %2d sites  worst %.1e\n", kase,
            delta_kind_name(&file->list.item[0].d), file->style, sites, f->worst);
    adapter_free(beside);
    adapter_free(folded);
    adapter_file_close(file);
}

/* All that deltas.py left in OUT for MODEL. */
static void check_cases(const char *model, const char *out)
{
    struct fixture f;
    struct dirent **entry;
    char dir[300];
    snprintf(dir, sizeof dir, "%s/deltas", out);
    int n = scandir(dir, &entry, NULL, alphasort), cases = 0;
    cr_assert(n > 2, "no %s", dir);
    fixture_open(&f, model, out);
    for (int i = 0; i < n; i++) {
        char path[600], kase[260];
        snprintf(path, sizeof path, "%s/%s", dir, entry[i]->d_name);
        snprintf(kase, sizeof kase, "%.*s", (int)strcspn(entry[i]->d_name, "."), entry[i]->d_name);
        if (*kase) {
            check_case(&f, kase, path);
            cases++;
        }
        free(entry[i]);
    }
    free(entry);
    fixture_close(&f);
    cr_expect_eq(cases, 40, "%d cases", cases);
}

Test(delta, every_kind_makes_the_weights_of_its_oracle)
{
    check_cases(DATA "/tiny-sd1", DATA);
}

/* Adapters joined at a site are the sum of what they are apart, to the roundings of other sums; all others act
 * as they do alone. Row 0 has no adapter. */
static void check_joined(struct fixture *f, const struct adapter *const *a, int n)
{
    struct branch b[JOINT_MAX];
    struct joint *j = NULL;
    struct err err;
    int joined = 0, more = 0;
    cr_assert_eq(joint_new(&j, &f->m->sites, COMPONENT_UNET, n, a, JOINT_SUM, &err), 0, "%s",
                 err.msg);
    for (int i = 0; i < n; i++)
        b[i] = (struct branch){.adapter = a[i],
                               .row0 = 1,
                               .row1 = 3,
                               .strength = i % 3 ? .4f * (float)i : 1,
                               .part = i};
    f->r.branch = b;
    f->r.n_branch = n;
    for (int s = 0; s < f->m->sites.n; s++) {
        const struct site *at = &f->m->sites.at[s];
        size_t len;
        if (!at->layer || at->part != COMPONENT_UNET)
            continue;
        float *x = room((size_t)(3 * 20 * at->layer->in));
        test_fill(x, (size_t)(3 * 20 * at->layer->in), 5);
        for (int i = 0; i < n; i++)
            b[i].joint = NULL;
        float *want = output(f, at, at->layer, NULL, x, &len);
        for (int i = 0; i < n; i++)
            b[i].joint = j;
        float *got = output(f, at, at->layer, NULL, x, &len);
        double e = test_error(got, want, len);
        cr_expect_leq(e, 1e-6, "%s: %g", at->name, e);
        joined += j->at[s] != NULL;
        more += j->at[s] && j->at[s]->n > 5;
        free(x), free(want), free(got);
    }
    f->r.n_branch = 0;
    cr_expect(joined >= 4 && more >= 4, "%d joined, %d of many", joined, more);
    cr_expect_gt(joint_bytes(j), 0);
    joint_free(j);
}

/* Gates that are open for all let the plain sum through, whatever kind it comes from; shut ones nothing. */
static void check_gates(struct fixture *f, const struct adapter *const *a, int n)
{
    struct branch b[JOINT_MAX];
    struct joint *j = NULL;
    float wave[3 * GATE_WAVES] = {0}, *at[1000] = {NULL};
    struct gates g = {.dev = f->dev, .n_site = f->m->sites.n, .at = at};
    struct err err;
    cr_assert(f->m->sites.n <= 1000);
    cr_assert_eq(joint_new(&j, &f->m->sites, COMPONENT_UNET, n, a, JOINT_GATE, &err), 0);
    for (int i = 0; i < n; i++)
        b[i] = (struct branch){.adapter = a[i],
                               .row0 = 1,
                               .row1 = 3,
                               .strength = .5f,
                               .joint = j,
                               .part = i,
                               .gated = true};
    f->r.branch = b;
    f->r.n_branch = n;
    f->r.wave = wave;
    for (int s = 0; s < f->m->sites.n; s++) {
        const struct site *site = &f->m->sites.at[s];
        size_t len;
        if (!site->layer || site->part != COMPONENT_UNET)
            continue;
        size_t c = (size_t)site->layer->out, count = (size_t)(3 * 20 * site->layer->in);
        float *x = room(count), *own, *want, *open, *shut;
        at[s] = calloc(GATE_ROWS * c, sizeof(float));
        test_fill(x, count, 5);
        f->r.gates = NULL;
        want = output(f, site, site->layer, NULL, x, &len);
        f->r.gates = &g;
        for (size_t i = 0; i < c; i++) {
            at[s][GATE_BIAS * c + i] = 40;
            at[s][GATE_GAIN * c + i] = 1;
        }
        open = output(f, site, site->layer, NULL, x, &len);
        double e = test_error(open, want, len);
        cr_expect_leq(e, 1e-6, "%s: %g", site->name, e);
        for (size_t i = 0; i < c; i++)
            at[s][GATE_GAIN * c + i] = 0;
        shut = output(f, site, site->layer, NULL, x, &len);
        f->r.n_branch = 0;
        own = output(f, site, site->layer, NULL, x, &len);
        f->r.n_branch = n;
        cr_expect(!memcmp(shut, own, len * sizeof *own), "%s: shut gates let some through",
                  site->name);
        free(at[s]);
        at[s] = NULL;
        free(x), free(own), free(want), free(open), free(shut);
    }
    run_bare(&f->r);
    joint_free(j);
}

/* What adapters add comes in by their masks, whatever kind it is, joined or apart: own + mask o (full - own), and
 * nothing at all where the mask is 0; on texts and times everywhere. */
static void check_masks(struct fixture *f, const struct adapter *const *a, int n)
{
    struct branch b[JOINT_MAX];
    struct joint *j = NULL;
    struct mask *m;
    float mask[20];
    struct err err;
    cr_assert_eq(joint_new(&j, &f->m->sites, COMPONENT_UNET, n, a, JOINT_SUM, &err), 0);
    cr_assert_eq(mask_new(&m, f->dev, &err), 0);
    for (int i = 0; i < 20; i++)
        mask[i] = .5f * (float)(i % 3);
    for (int i = 0; i < 2 * n * f->m->sites.n; i += n) {
        const struct site *s = &f->m->sites.at[i / n / 2];
        size_t len, count = (size_t)(3 * 20 * (s->layer ? s->layer->in : 1));
        if (!s->layer || s->part != COMPONENT_UNET || s->layer->stride > 1)
            continue;
        float *x = room(count), *own, *full, *got;
        test_fill(x, count, 5);
        own = output(f, s, s->layer, NULL, x, &len);
        for (int k = 0; k < n; k++)
            b[k] = (struct branch){.adapter = a[k],
                                   .row0 = 1,
                                   .row1 = 3,
                                   .strength = .5f,
                                   .joint = i / n % 2 ? j : NULL,
                                   .part = k};
        f->r.branch = b;
        f->r.n_branch = n;
        full = output(f, s, s->layer, NULL, x, &len);
        for (int k = 0; k < n; k++)
            b[k].mask = m;
        free(output(f, s, s->layer, NULL, x, &len)); /* so that the size is known */
        mask_set(m, mask, 5, 4);
        got = output(f, s, s->layer, NULL, x, &len);
        f->r.n_branch = 0;
        size_t c = (size_t)s->layer->out;
        for (size_t p = 0; p < len; p++) {
            float by = s->layer->placeless ? 1 : mask[p / c % 20];
            cr_expect(by > 0 || got[p] == own[p], "%s: something where the mask is 0", s->name);
            full[p] = own[p] + by * (full[p] - own[p]);
        }
        double e = test_error(got, full, len);
        cr_expect_leq(e, 1e-6, "%s: %g", s->name, e);
        free(x), free(own), free(full), free(got);
    }
    mask_free(m);
    joint_free(j);
}

/* All files of the golden, in their order, JOINT_MAX of them at once. */
Test(delta, joined_is_their_sum)
{
    struct fixture f;
    struct dirent **entry;
    struct adapter_file *file[64];
    struct adapter *a[64];
    struct err err;
    int n = scandir(DATA "/deltas", &entry, NULL, alphasort), k = 0;
    fixture_open(&f, DATA "/tiny-sd1", DATA);
    for (int i = 0; i < n && k < 64; i++) {
        char path[600];
        snprintf(path, sizeof path, DATA "/deltas/%s", entry[i]->d_name);
        if (entry[i]->d_name[0] != '.') {
            cr_assert_eq(adapter_file_open(&file[k], path, &err), 0, "%s", err.msg);
            a[k] = bound(&f, file[k], entry[i]->d_name, false);
            k++;
        }
        free(entry[i]);
    }
    free(entry);
    cr_assert_gt(k, JOINT_MAX);
    check_joined(&f, (const struct adapter *const *)a, JOINT_MAX);
    check_joined(&f, (const struct adapter *const *)a + k - JOINT_MAX, JOINT_MAX);
    check_gates(&f, (const struct adapter *const *)a, JOINT_MAX);
    check_masks(&f, (const struct adapter *const *)a, JOINT_MAX);
    check_masks(&f, (const struct adapter *const *)a + k - JOINT_MAX, JOINT_MAX);
    check_gates(&f, (const struct adapter *const *)a + k - JOINT_MAX, JOINT_MAX);
    for (int i = 0; i < k; i++) {
        adapter_free(a[i]);
        adapter_file_close(file[i]);
    }
    fixture_close(&f);
}

/* [n, n], I plus a strict upper triangle, and its inverse. */
static void triangle(int n, double *q, double *inverse)
{
    for (int i = 0; i < n; i++)
        for (int j = 0; j < n; j++) {
            q[i * n + j] = i == j ? 1 + .5 * i : i < j ? .4 * sin(3 * i + j) : 0;
            inverse[i * n + j] = 0;
        }
    for (int j = 0; j < n; j++)
        for (int i = j; i >= 0; i--) { /* back substitution */
            double s = i == j;
            for (int k = i + 1; k <= j; k++)
                s -= q[i * n + k] * inverse[k * n + j];
            inverse[i * n + j] = s / q[i * n + i];
        }
}

/* left [rows, n] times right [n, cols] */
static float *product(const double *left, const double *right, int rows, int n, int cols)
{
    float *out = room((size_t)(rows * cols));
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            double s = 0;
            for (int k = 0; k < n; k++)
                s += left[i * n + k] * right[k * cols + j];
            out[i * cols + j] = (float)s;
        }
    return out;
}

static double *wide_of(const struct array *a)
{
    size_t n = array_count(a);
    float *f = room(n);
    double *d = malloc((n + 1) * sizeof *d);
    array_to_f32(a, f);
    for (size_t i = 0; i < n; i++)
        d[i] = f[i];
    free(f);
    return d;
}

/* The largest singular value of m [rows, cols], by turns of m' m. */
static double largest(const float *m, size_t rows, size_t cols)
{
    double *v = malloc(cols * sizeof *v), *to = malloc(cols * sizeof *to), size = 0;
    for (size_t j = 0; j < cols; j++)
        v[j] = sin(1 + (double)j);
    for (int turn = 0; turn < 200; turn++) {
        double before = 0, after = 0;
        memset(to, 0, cols * sizeof *to);
        for (size_t i = 0; i < rows; i++) {
            double u = 0;
            for (size_t j = 0; j < cols; j++)
                u += (double)m[i * cols + j] * v[j];
            for (size_t j = 0; j < cols; j++)
                to[j] += u * (double)m[i * cols + j];
        }
        for (size_t j = 0; j < cols; j++) {
            before += v[j] * v[j];
            after += to[j] * to[j];
        }
        size = sqrt(sqrt(after / before));
        for (size_t j = 0; j < cols; j++)
            v[j] = to[j] / sqrt(after);
    }
    free(v), free(to);
    return size;
}

static double square(const float *m, size_t n)
{
    double s = 0;
    for (size_t i = 0; i < n; i++)
        s += (double)m[i] * (double)m[i];
    return s;
}

/* At one site: of rank 1 as long as the sum's largest direction, and that much of the sum (Eckart and Young); of more
 * rank than there is, all of the sum. Relative 1e-4. */
static void check_common(const struct fixture *f, const struct adapter *const *a, const float *by,
                         const struct adapter *one, const struct adapter *all, int s)
{
    const struct layer *l = f->m->sites.at[s].layer;
    size_t cols = (size_t)l->in * (size_t)l->kh * (size_t)l->kw, n = (size_t)l->out * cols;
    float *sum = calloc(n, sizeof *sum), *first, *whole;
    struct err err;
    for (int i = 0; i < 2; i++)
        for (const struct bound *b = a[i]->at[s]; b; b = b->next)
            cr_assert_eq(bound_add(b, l, sum, NULL, by[i], &err), 0, "%s", err.msg);
    cr_assert_eq(bound_whole(&first, one->at[s], l, &err), 0, "%s", err.msg);
    cr_assert_eq(bound_whole(&whole, all->at[s], l, &err), 0, "%s", err.msg);
    double e = test_error(whole, sum, n), top = largest(sum, (size_t)l->out, cols);
    cr_expect_leq(e, 1e-4, "%s: the whole sum: %g", l->name, e);
    cr_expect_float_eq(square(first, n) / (top * top), 1, 1e-4, "%s", l->name);
    double rest = square(sum, n) - top * top;
    for (size_t i = 0; i < n; i++)
        sum[i] -= first[i];
    cr_expect_leq(fabs(square(sum, n) - rest), 1e-4 * top * top, "%s: what remains", l->name);
    free(sum), free(first), free(whole);
}

Test(delta, common_is_their_sums_largest_part)
{
    static const char *const name[] = {"peft-lora", "peft-patterns"};
    const float by[] = {.7f, -1.5f};
    struct fixture f;
    struct adapter_file *file[2];
    struct adapter *a[2], *one, *all;
    struct err err;
    int n = 0;
    fixture_open(&f, DATA "/tiny-sd1", DATA);
    for (int i = 0; i < 2; i++) {
        char path[300];
        snprintf(path, sizeof path, DATA "/deltas/%s", name[i]);
        cr_assert_eq(adapter_file_open(&file[i], path, &err), 0, "%s", err.msg);
        a[i] = bound(&f, file[i], name[i], false);
    }
    const struct adapter *const *both = (const struct adapter *const *)a;
    cr_assert_eq(adapter_common(&one, &f.m->sites, COMPONENT_UNET, 2, both, by, 1, &err), 0);
    cr_assert_eq(adapter_common(&all, &f.m->sites, COMPONENT_UNET, 2, both, by, 64, &err), 0);
    for (int s = 0; s < f.m->sites.n; s++) {
        bool any = f.m->sites.at[s].part == COMPONENT_UNET && (a[0]->at[s] || a[1]->at[s]);
        cr_expect_eq(any, one->at[s] != NULL, "%s", f.m->sites.at[s].name);
        if (any)
            check_common(&f, both, by, one, all, s);
        n += any;
    }
    cr_expect(n >= 4 && one->matched == n, "%d sites, %d", n, one->matched);
    adapter_free(one);
    adapter_free(all);
    for (int i = 0; i < 2; i++) {
        adapter_free(a[i]);
        adapter_file_close(file[i]);
    }
    fixture_close(&f);
}

/* Every product B A becomes (B Q^-1) (Q A). */
static void refactor(struct delta_list *l)
{
    for (int i = 0; i < l->n; i++) {
        struct factor *f = &l->item[i].d.f[0];
        int r = (int)array_dim(&f->b, 0), out = (int)array_dim(&f->a, 0);
        double q[64], inverse[64], *up = wide_of(&f->a), *down = wide_of(&f->b);
        cr_assert(r <= 8);
        triangle(r, q, inverse);
        f->b = floats_of(&f->b, product(q, down, r, r, (int)(array_count(&f->b) / (size_t)r)));
        f->a = floats_of(&f->a, product(up, inverse, out, r, r));
        free(up);
        free(down);
    }
}

/* Routing goes by what a product does, not by how its file has it: relative 1e-4. */
Test(delta, routed_the_same_however_it_is_factored)
{
    static const char *const name[] = {"peft-lora", "peft-patterns", "peft-lora"};
    struct fixture f;
    struct adapter_file *file[3];
    struct adapter *a[3];
    struct branch b[2];
    struct err err;
    int joined = 0;
    fixture_open(&f, DATA "/tiny-sd1", DATA);
    for (int i = 0; i < 3; i++) {
        char path[300];
        snprintf(path, sizeof path, DATA "/deltas/%s", name[i]);
        cr_assert_eq(adapter_file_open(&file[i], path, &err), 0, "%s", err.msg);
        if (i == 2)
            refactor(&file[i]->list);
        a[i] = bound(&f, file[i], name[i], false);
    }
    for (int s = 0; s < f.m->sites.n; s++) {
        const struct site *at = &f.m->sites.at[s];
        float *got[3];
        size_t n = 0;
        if (!at->layer || at->part != COMPONENT_UNET || !a[0]->at[s] || !a[1]->at[s])
            continue;
        float *x = room((size_t)(3 * 20 * at->layer->in));
        test_fill(x, (size_t)(3 * 20 * at->layer->in), 5);
        for (int k = 0; k < 3; k++) { /* as they are; refactored; not routed */
            const struct adapter *two[] = {a[k == 1 ? 2 : 0], a[1]};
            struct joint *j = NULL;
            cr_assert_eq(joint_new(&j, &f.m->sites, COMPONENT_UNET, 2, two, JOINT_ROUTE, &err), 0);
            for (int i = 0; i < 2; i++)
                b[i] = (struct branch){.adapter = two[i],
                                       .row1 = 3,
                                       .strength = 1,
                                       .joint = j,
                                       .part = i,
                                       .route = {.3f, k < 2 ? .5f : 0, 0}};
            f.r.branch = b;
            f.r.n_branch = 2;
            got[k] = output(&f, at, at->layer, NULL, x, &n);
            joint_free(j);
        }
        double e = test_error(got[1], got[0], n);
        cr_expect_leq(e, 1e-4, "%s: %g", at->name, e);
        cr_expect_gt(test_error(got[2], got[0], n), 1e-3, "%s is not routed", at->name);
        joined++;
        for (int k = 0; k < 3; k++)
            free(got[k]);
        free(x);
    }
    cr_expect_geq(joined, 2);
    for (int i = 0; i < 3; i++)
        adapter_free(a[i]);
    for (int i = 0; i < file[2]->list.n; i++) {
        free((void *)file[2]->list.item[i].d.f[0].a.data);
        free((void *)file[2]->list.item[i].d.f[0].b.data);
    }
    for (int i = 0; i < 3; i++)
        adapter_file_close(file[i]);
    f.r.n_branch = 0;
    fixture_close(&f);
}

Test(delta, by_hand, .timeout = 0)
{
    const char *both = getenv("WEFT_DELTAS"), *colon = both ? strchr(both, ':') : NULL;
    char model[300];
    if (!colon)
        cr_skip_test("WEFT_DELTAS names no MODEL:OUT of tests/golden/deltas.py");
    snprintf(model, sizeof model, "%.*s", (int)(colon - both), both);
    check_cases(model, colon + 1);
}
