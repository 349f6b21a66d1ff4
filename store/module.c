#include "module.h"

#include "adapter.h"
#include "site_name.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Endings of keys, the name of an adapter that PEFT may write inside left out. */
static const struct ending {
    const char *style, *end;
    enum part part;
} endings[] = {
    {"kohya", ".lora_down.weight", PART_LORA_DOWN},
    {"kohya", ".lora_up.weight", PART_LORA_UP},
    {"kohya", ".lora_mid.weight", PART_LORA_MID},
    {"peft", ".lora_A.weight", PART_LORA_DOWN},
    {"peft", ".lora_B.weight", PART_LORA_UP},
    {"peft", ".lora_B.bias", PART_LORA_BIAS},
    {"peft", ".lora_magnitude_vector", PART_MAGNITUDE},
    {"peft", ".lora_magnitude_vector.weight", PART_MAGNITUDE},
    {"diffusers", ".lora.down.weight", PART_LORA_DOWN},
    {"diffusers", ".lora.up.weight", PART_LORA_UP},
    {"diffusers", ".lora_linear_layer.down.weight", PART_LORA_DOWN},
    {"diffusers", ".lora_linear_layer.up.weight", PART_LORA_UP},
    {"diffusers", "_lora.down.weight", PART_LORA_DOWN},
    {"diffusers", "_lora.up.weight", PART_LORA_UP},
    {"kohya", ".alpha", PART_ALPHA},
    {"kohya", ".scale", PART_SCALE},
    {"kohya", ".dora_scale", PART_DORA_SCALE},
    {"lycoris", ".hada_w1_a", PART_HADA_W1A},
    {"lycoris", ".hada_w1_b", PART_HADA_W1B},
    {"lycoris", ".hada_w2_a", PART_HADA_W2A},
    {"lycoris", ".hada_w2_b", PART_HADA_W2B},
    {"lycoris", ".hada_t1", PART_HADA_T1},
    {"lycoris", ".hada_t2", PART_HADA_T2},
    {"lycoris", ".lokr_w1", PART_LOKR_W1},
    {"lycoris", ".lokr_w1_a", PART_LOKR_W1A},
    {"lycoris", ".lokr_w1_b", PART_LOKR_W1B},
    {"lycoris", ".lokr_w2", PART_LOKR_W2},
    {"lycoris", ".lokr_w2_a", PART_LOKR_W2A},
    {"lycoris", ".lokr_w2_b", PART_LOKR_W2B},
    {"lycoris", ".lokr_t1", PART_LOKR_T1},
    {"lycoris", ".lokr_t2", PART_LOKR_T2},
    {"lycoris", ".diff", PART_DIFF},
    {"lycoris", ".diff_b", PART_DIFF_B},
    {"lycoris", ".w_norm", PART_W_NORM},
    {"lycoris", ".b_norm", PART_B_NORM},
    {"lycoris", ".on_input", PART_ON_INPUT},
    {"lycoris", ".weight", PART_WEIGHT},
    {"peft", ".ia3_l", PART_IA3_L},
    {"lycoris", ".a1.weight", PART_GLORA_A1},
    {"lycoris", ".a2.weight", PART_GLORA_A2},
    {"lycoris", ".b1.weight", PART_GLORA_B1},
    {"lycoris", ".b2.weight", PART_GLORA_B2},
    {"lycoris", ".bm.weight", PART_GLORA_BM},
    {"lycoris", ".oft_blocks", PART_OFT_BLOCKS},
    {"kohya", ".oft_diag", PART_OFT_DIAG},
    {"lycoris", ".rescale", PART_OFT_RESCALE},
    {"peft", ".oft_R.weight", PART_OFT_R},
    {"peft", ".boft_R", PART_BOFT_R},
    {"peft", ".boft_s", PART_BOFT_S},
    {"peft", ".shira_weight", PART_SHIRA_WEIGHT},
    {"peft", ".shira_indices", PART_SHIRA_INDICES},
};

/* key without ".default" where PEFT wrote its adapter's name: before ".weight" or ".bias", or last. */
static size_t plain_key(char *out, size_t size, const char *key)
{
    const char *p = strstr(key, ".default");
    int n;
    if (p && (!p[8] || !strcmp(p + 8, ".weight") || !strcmp(p + 8, ".bias")))
        n = snprintf(out, size, "%.*s%s", (int)(p - key), key, p + 8);
    else
        n = snprintf(out, size, "%s", key);
    return n > 0 ? (size_t)n : 0;
}

/* The longest ending of the key; *module becomes the length of what stands before. */
static const struct ending *ending_of(const char *key, size_t *module)
{
    const struct ending *best = NULL;
    size_t n = strlen(key), most = 0;
    for (size_t i = 0; i < sizeof endings / sizeof *endings; i++) {
        size_t k = strlen(endings[i].end);
        if (n > k && k > most && !strcmp(key + n - k, endings[i].end)) {
            best = &endings[i];
            most = k;
        }
    }
    *module = n - most;
    return best;
}

#define KEY_SIZE 1024

bool module_knows(const char *key)
{
    char plain[KEY_SIZE];
    size_t n;
    return plain_key(plain, sizeof plain, key) < sizeof plain && ending_of(plain, &n);
}

static int by_site(const void *a, const void *b)
{
    const struct module *x = a, *y = b;
    return strcmp(x->site, y->site);
}

/* What to say of a key that has no known ending. */
static int foreign(const char *path, const char *key, struct err *err)
{
    const char *kind = adapter_kind_of_key(key);
    if (kind)
        return adapter_refuse_kind(kind, path, key, err);
    return err_set(err, ERR_UNSUPPORTED, "%s: '%.200s' is no part of an adapter that weft knows",
                   path, key);
}

/* Every key to a module of its own; merged afterwards. */
static int read_keys(struct modules *m, const struct tensor_file *st, const char *path,
                     struct err *err)
{
    for (size_t i = 0; i < tensor_file_count(st); i++) {
        char plain[KEY_SIZE];
        const char *key = tensor_file_name(st, i);
        size_t len = 0;
        const struct ending *e = NULL;
        if (plain_key(plain, sizeof plain, key) < sizeof plain)
            e = ending_of(plain, &len);
        if (!e)
            return foreign(path, key, err);
        struct module *one = &m->at[m->n++];
        memset(one, 0, sizeof *one);
        one->style = e->style;
        one->part[e->part] = tensor_file_at(st, i);
        if (!site_name(one->site, sizeof one->site, plain, len))
            snprintf(one->site, sizeof one->site, "?.%.*s", (int)(len < 250 ? len : 250), plain);
    }
    return 0;
}

/* Joins neighbours of one site. */
static int merge(struct modules *m, const char *path, struct err *err)
{
    int k = 0;
    qsort(m->at, (size_t)m->n, sizeof *m->at, by_site);
    for (int i = 0; i < m->n; i++) {
        struct module *last = k ? &m->at[k - 1] : NULL;
        if (!last || strcmp(last->site, m->at[i].site)) {
            m->at[k++] = m->at[i];
            continue;
        }
        for (int p = 0; p < PART_COUNT; p++) {
            if (!m->at[i].part[p])
                continue;
            if (last->part[p])
                return err_set(err, ERR_FORMAT, "%s: changes %s twice", path, m->at[i].site);
            last->part[p] = m->at[i].part[p];
            if (p != PART_ALPHA) /* which all styles write alike */
                last->style = m->at[i].style;
        }
    }
    m->n = k;
    return 0;
}

int modules_read(struct modules *m, const struct tensor_file *st, const char *path, struct err *err)
{
    size_t n = tensor_file_count(st);
    m->n = 0;
    m->at = malloc((n + 1) * sizeof *m->at);
    if (!m->at)
        return err_nomem(err, n * sizeof *m->at);
    int rc = read_keys(m, st, path, err);
    rc = rc < 0 ? rc : merge(m, path, err);
    if (rc < 0)
        modules_release(m);
    return rc;
}

void modules_release(struct modules *m)
{
    free(m->at);
    m->at = NULL;
    m->n = 0;
}
