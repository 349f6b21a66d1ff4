#include "adapter_write.h"

#include "unet/file.h"
#include "unet/safetensors.h"

#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

/* ---- names ----------------------------------------------------------------------------------- */

static const struct style {
    const char *name, *down, *up, *mid, *magnitude; /* endings; NULL: has none */
    bool underscores;
    bool alpha; /* as a tensor of its own */
} styles[] = {
    {"kohya", "lora_down.weight", "lora_up.weight", "lora_mid.weight", "dora_scale", true, true},
    {"diffusers", "lora_A.weight", "lora_B.weight", NULL, "lora_magnitude_vector", false, false},
    {"peft", "lora_A.weight", "lora_B.weight", NULL, "lora_magnitude_vector", false, false},
};

static const struct style *style_of(const char *name, struct err *err)
{
    for (size_t i = 0; i < sizeof styles / sizeof *styles; i++)
        if (!strcmp(styles[i].name, name))
            return &styles[i];
    err_set(err, ERR_ARG, "no style '%.50s'; there are kohya, diffusers, peft", name);
    return NULL;
}

/* One site's name with an ending. two: the file also has a second text encoder. */
static int key_of(char *out, size_t size, const struct style *s, const char *site, bool two,
                  const char *end, struct err *err)
{
    const char *dot = strchr(site, '.');
    bool unet = !strncmp(site, "unet.", 5), te2 = !strncmp(site, "text_encoder_2.", 15);
    if (!dot || (!unet && !te2 && strncmp(site, "text_encoder.", 13)))
        return err_set(err, ERR_UNSUPPORTED, "%s: no weight of a known part of a model", site);
    if (!strcmp(s->name, "peft") && !unet)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: a PEFT folder holds one part of a model, and "
                       "this adapter also changes a text encoder",
                       site);
    int n;
    if (!s->underscores) {
        const char *front = !strcmp(s->name, "peft") ? "base_model.model." : "";
        n = snprintf(out, size, "%s%s.%s", front, *front ? dot + 1 : site, end);
    } else {
        const char *front = unet  ? "lora_unet_"
                            : te2 ? "lora_te2_"
                            : two ? "lora_te1_"
                                  : "lora_te_";
        n = snprintf(out, size, "%s%s", front, dot + 1);
        for (char *p = out; n > 0 && (size_t)n < size && *p; p++)
            *p = *p == '.' ? '_' : *p;
        if (n > 0 && (size_t)n < size)
            n += snprintf(out + n, size - (size_t)n, ".%s", end);
    }
    return n > 0 && (size_t)n < size ? 0 : err_set(err, ERR_FORMAT, "%s: too long a name", site);
}

/* ---- the file in the making ------------------------------------------------------------------ */

struct sheaf {
    const struct style *style;
    bool two;
    struct safetensors_item *item;
    size_t n, cap;
    void **own; /* names and numbers made here */
    size_t n_own, cap_own;
};

static void *keep(struct sheaf *s, void *p)
{
    if (p && s->n_own == s->cap_own) {
        size_t cap = s->cap_own ? 2 * s->cap_own : 256;
        void **q = realloc(s->own, cap * sizeof *q);
        if (!q) {
            free(p);
            return NULL;
        }
        s->own = q;
        s->cap_own = cap;
    }
    if (p)
        s->own[s->n_own++] = p;
    return p;
}

static int put(struct sheaf *s, const char *site, const char *end, struct array a, struct err *err)
{
    char key[600];
    int rc = key_of(key, sizeof key, s->style, site, s->two, end, err);
    if (rc < 0)
        return rc;
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 256;
        struct safetensors_item *p = realloc(s->item, cap * sizeof *p);
        if (!p)
            return err_nomem(err, cap * sizeof *p);
        s->item = p;
        s->cap = cap;
    }
    const char *name = keep(s, strdup(key));
    if (!name)
        return err_nomem(err, sizeof key);
    s->item[s->n++] = (struct safetensors_item){name, a};
    return 0;
}

static int put_alpha(struct sheaf *s, const char *site, float alpha, struct err *err)
{
    float *v = keep(s, malloc(sizeof *v));
    if (!v)
        return err_nomem(err, sizeof *v);
    *v = alpha;
    return put(s, site, "alpha", (struct array){.dtype = DT_F32, .data = v}, err);
}

/* a's values times f, as float32; a itself where f is 1. */
static int scaled(struct sheaf *s, struct array *a, float f, struct err *err)
{
    size_t n = array_count(a);
    if (f == 1)
        return 0;
    float *v = keep(s, malloc((n + 1) * sizeof *v));
    if (!v)
        return err_nomem(err, n * sizeof *v);
    array_to_f32(a, v);
    for (size_t i = 0; i < n; i++)
        v[i] *= f;
    a->dtype = DT_F32;
    a->data = v;
    return 0;
}

static void sheaf_release(struct sheaf *s)
{
    for (size_t i = 0; i < s->n_own; i++)
        free(s->own[i]);
    free(s->own);
    free(s->item);
}

/* ---- PEFT's folder --------------------------------------------------------------------------- */

/* Which modules, and rank and alpha of each: alpha is the rank, for scales are in the factors. */
static char *peft_config(const struct sheaf *s)
{
    json_t *modules = json_array(), *ranks = json_object();
    char *text = NULL;
    bool dora = false;
    for (size_t i = 0; i < s->n; i++) {
        const char *k = s->item[i].name + strlen("base_model.model."), *end = strstr(k, ".lora_");
        dora = dora || (end && !strcmp(end, ".lora_magnitude_vector"));
        if (!end || strcmp(end, ".lora_A.weight"))
            continue;
        char *module = strndup(k, (size_t)(end - k));
        if (module) {
            json_array_append_new(modules, json_string(module));
            json_object_set_new(ranks, module, json_integer((json_int_t)s->item[i].a.dim[0]));
        }
        free(module);
    }
    json_t *root = json_pack("{s:s, s:i, s:i, s:b, s:o, s:O, s:O}", "peft_type", "LORA", "r", 8,
                             "lora_alpha", 8, "use_dora", dora, "target_modules", modules,
                             "rank_pattern", ranks, "alpha_pattern", ranks);
    if (root)
        text = json_dumps(root, JSON_INDENT(1) | JSON_SORT_KEYS);
    json_decref(ranks);
    json_decref(root);
    return text;
}

static int write_peft(const char *path, const struct sheaf *s, const char *const (*metadata)[2],
                      size_t n_meta, struct err *err)
{
    char *config = peft_config(s), *file = file_join(path, "adapter_model.safetensors");
    char *json = file_join(path, "adapter_config.json");
    int rc = config && file && json ? 0 : err_nomem(err, 1024);
    if (rc == 0 && mkdir(path, 0777) < 0 && file_kind(path) != 2)
        rc = err_set(err, ERR_IO, "%s: the folder cannot be made", path);
    rc = rc < 0 ? rc : safetensors_write(file, s->item, s->n, metadata, n_meta, err);
    rc = rc < 0 ? rc : file_replace(json, config, strlen(config), err);
    free(config);
    free(file);
    free(json);
    return rc;
}

static int finish(const char *path, const struct sheaf *s, const char *const (*metadata)[2],
                  size_t n_meta, struct err *err)
{
    if (!strcmp(s->style->name, "peft"))
        return write_peft(path, s, metadata, n_meta, err);
    return safetensors_write(path, s->item, s->n, metadata, n_meta, err);
}

/* ---- what is put in -------------------------------------------------------------------------- */

static int put_product(struct sheaf *s, const struct matrices_item *it, struct err *err)
{
    const struct wide *w = &it->m.f[0];
    uint64_t r = (uint64_t)w->rank, taps = (uint64_t)(it->kh * it->kw);
    struct array down = {.dtype = DT_F32, .ndim = 2, .dim = {r, w->cols}, .data = w->b};
    struct array up = {.dtype = DT_F32, .ndim = 2, .dim = {(uint64_t)w->rows, r}, .data = w->a};
    if (taps > 1) {
        down.ndim = up.ndim = 4;
        down.dim[1] = w->cols / taps;
        down.dim[2] = (uint64_t)it->kh;
        down.dim[3] = (uint64_t)it->kw;
        up.dim[2] = up.dim[3] = 1;
    }
    int rc = put(s, it->site, s->style->down, down, err);
    if (s->style->alpha)
        rc = rc < 0 ? rc : put_alpha(s, it->site, it->m.scale * (float)r, err);
    else
        rc = rc < 0 ? rc : scaled(s, &up, it->m.scale, err);
    return rc < 0 ? rc : put(s, it->site, s->style->up, up, err);
}

int adapter_write(const char *path, const char *style, const struct matrices *a,
                  const char *const (*metadata)[2], size_t n_meta, struct err *err)
{
    struct sheaf s = {.style = style_of(style, err)};
    int rc = s.style ? 0 : ERR_ARG;
    for (int i = 0; i < a->n; i++)
        s.two = s.two || !strncmp(a->item[i].site, "text_encoder_2.", 15);
    for (int i = 0; i < a->n && rc == 0; i++)
        rc =
            a->item[i].m.kind == DELTA_PRODUCT && a->item[i].m.f[0].rank
                ? put_product(&s, &a->item[i], err)
                : err_set(err, ERR_UNSUPPORTED, "%s is no product of two factors", a->item[i].site);
    rc = rc < 0 ? rc : finish(path, &s, metadata, n_meta, err);
    sheaf_release(&s);
    return rc;
}

/* What a style cannot hold of a delta, or NULL. */
static const char *unheld(const struct style *s, const struct delta *d)
{
    if (d->kind != DELTA_PRODUCT || d->f[0].full.data || d->f[0].across)
        return delta_kind_name(d);
    if (d->f[0].t.data && !s->mid)
        return "LoCon with a middle factor";
    if (d->magnitude.data && d->by_column && !s->underscores)
        return "DoRA by columns";
    return NULL;
}

/* [out] as each style spells it: kohya [out, 1, …] as W has dims, others [out], convolutions [1, out, 1,
 * 1]. */
static struct array magnitude_as(const struct style *s, const struct delta *d)
{
    struct array m = d->magnitude;
    uint64_t n = array_count(&m);
    int ndim = d->f[0].b.ndim;
    if (d->by_column)
        return m;
    if (s->underscores) {
        m.ndim = ndim;
        m.dim[0] = n;
        m.dim[1] = m.dim[2] = m.dim[3] = 1;
    } else if (ndim == 4) {
        m.ndim = 4;
        m.dim[1] = n;
        m.dim[0] = m.dim[2] = m.dim[3] = 1;
    } else {
        m.ndim = 1;
        m.dim[0] = n;
    }
    return m;
}

static int put_delta(struct sheaf *s, const struct delta_item *it, struct err *err)
{
    const struct delta *d = &it->d;
    const char *kind = unheld(s->style, d);
    if (kind)
        return err_set(err, ERR_UNSUPPORTED,
                       "%s: %s cannot be written in %s's style; resize makes "
                       "a LoRA of it",
                       it->site, kind, s->style->name);
    struct array up = d->f[0].a;
    int rank = delta_rank(d), rc = put(s, it->site, s->style->down, d->f[0].b, err);
    if (s->style->alpha)
        rc = rc < 0 ? rc : put_alpha(s, it->site, d->scale * (float)rank, err);
    else
        rc = rc < 0 ? rc : scaled(s, &up, d->scale, err);
    rc = rc < 0 ? rc : put(s, it->site, s->style->up, up, err);
    if (rc == 0 && d->f[0].t.data)
        rc = put(s, it->site, s->style->mid, d->f[0].t, err);
    if (rc == 0 && d->magnitude.data)
        rc = put(s, it->site, s->style->magnitude, magnitude_as(s->style, d), err);
    return rc;
}

int adapter_convert(const char *path, const char *style, const struct delta_list *l,
                    const char *const (*metadata)[2], size_t n_meta, struct err *err)
{
    struct sheaf s = {.style = style_of(style, err)};
    int rc = s.style ? 0 : ERR_ARG;
    for (int i = 0; i < l->n; i++)
        s.two = s.two || !strncmp(l->item[i].site, "text_encoder_2.", 15);
    for (int i = 0; i < l->n && rc == 0; i++)
        rc = put_delta(&s, &l->item[i], err);
    rc = rc < 0 ? rc : finish(path, &s, metadata, n_meta, err);
    sheaf_release(&s);
    return rc;
}
