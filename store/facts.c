#include "facts.h"

#include "adapter.h"
#include "embedding.h"
#include "format.h"

#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define METADATA_VALUE_MAX (256 << 10) /* bytes; longer ones (pictures in base64) are left out */

/* ---- keys ------------------------------------------------------------------------------------ */

/* Pieces of keys that tell the kind; one that ends in '$' must end the key, one that begins with '^' begin
 * it. rank: which dimension of such an array is a rank, -1: none. */
static const struct sign {
    const char *piece, *kind;
    int rank;
} signs[] = {
    {"lora_down.weight", "lora", 0},
    {"lora_A.", "lora", 0},
    {"lora.down.weight", "lora", 0},
    {"lora_linear_layer.down", "lora", 0},
    {"lora_mid.", "locon", -1},
    {"lora_embedding_A", "lora", 0},
    {".hada_w1_b", "loha", 0},
    {".lokr_w1_b", "lokr", 0},
    {".lokr_w2_b", "lokr", 0},
    {".lokr_w", "lokr", -1},
    {"dora_scale$", "dora", -1},
    {"lora_magnitude_vector", "dora", -1},
    {".boft_", "boft", -1},
    {".oft_blocks", "oft", -1},
    {".oft_diag", "oft", -1},
    {".oft_r", "oft", -1},
    {".hra_", "hra", -1},
    {".ia3_", "ia3", -1},
    {".on_input", "ia3", -1},
    {".shira_", "shira", -1},
    {"lora_E", "adalora", -1},
    {".vera_", "vera", -1},
    {".randlora_", "randlora", -1},
    {".paca_", "paca", -1},
    {".a1.weight$", "glora", 0},
    {".b1.weight$", "glora", 0},
    {".diff_b$", "diff", -1},
    {".diff$", "diff", -1},
    {".w_norm$", "norm", -1},
    {".b_norm$", "norm", -1},
    {"^emb_params$", "textual-inversion", -1},
    {"string_to_param", "textual-inversion", -1},
    {":down$", "lora", 0}, /* cloneofsimo's lora */
    {".lora_a$", "lora", 1},
    {".unilora_", "unilora", -1},
    {"^clip_l$", "textual-inversion", -1},
    {"^clip_g$", "textual-inversion", -1},
};
#define N_SIGNS (sizeof signs / sizeof *signs)

static bool matches(const char *key, const char *piece)
{
    bool begin = *piece == '^', end = piece[strlen(piece) - 1] == '$';
    size_t n = strlen(piece) - begin - end, k = strlen(key);
    if (begin || end) {
        bool at_begin = k >= n && !memcmp(key, piece + begin, n);
        bool at_end = k >= n && !memcmp(key + k - n, piece + begin, n);
        return (!begin || at_begin) && (!end || at_end) && (!begin || !end || k == n);
    }
    return strstr(key, piece) != NULL;
}

static const struct sign *sign_of(const char *key)
{
    for (size_t i = 0; i < N_SIGNS; i++)
        if (matches(key, signs[i].piece))
            return &signs[i];
    return NULL;
}

/* Notes a kind by its name, once. */
static void add_kind(struct facts *f, const char *kind)
{
    size_t n = strlen(kind), at = strlen(f->kinds);
    for (const char *p = f->kinds; (p = strstr(p, kind)); p += n)
        if ((p == f->kinds || p[-1] == ' ') && (p[n] == ' ' || !p[n]))
            return;
    if (at + n + 2 < sizeof f->kinds)
        snprintf(f->kinds + at, sizeof f->kinds - at, "%s%s", at ? " " : "", kind);
}

static void add_rank(struct facts *f, uint64_t rank)
{
    int r = rank > 100000 ? 100000 : (int)rank;
    f->rank[0] = f->rank[0] && f->rank[0] < r ? f->rank[0] : r;
    f->rank[1] = r > f->rank[1] ? r : f->rank[1];
}

static void read_kind(struct facts *f, const char *key, const struct array *a)
{
    const struct sign *s = sign_of(key);
    if (!s)
        return;
    bool conv = !strcmp(s->kind, "lora") && a->ndim == 4 && a->dim[2] * a->dim[3] > 1;
    add_kind(f, conv ? "locon" : s->kind);
    if (s->rank >= 0 && a->ndim > s->rank)
        add_rank(f, a->dim[s->rank]);
}

/* How long the part of the key is that names the changed weight. */
static size_t module_length(const char *key)
{
    static const char *const tails[] = {
        ".lora",   "_lora.",    ".hada_",  ".lokr_",  ".dora_", ".oft_", ".boft_", ".diff",
        ".ia3_",   ".alpha",    ".vera_",  ".shira_", ".a1.",   ".a2.",  ".b1.",   ".b2.",
        ".weight", ".on_input", ".w_norm", ".b_norm", ".scale", ".bias"};
    size_t least = strlen(key);
    for (size_t i = 0; i < sizeof tails / sizeof *tails; i++) {
        const char *at = strstr(key, tails[i]);
        if (at && (size_t)(at - key) < least)
            least = (size_t)(at - key);
    }
    return least;
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* The weights a file changes, counted by name; for files that no importer takes. */
static int count_modules(struct facts *f, const struct tensor_file *st, struct err *err)
{
    size_t n = tensor_file_count(st), k = 0;
    char **name = calloc(n + 1, sizeof *name);
    int rc = name ? 0 : err_nomem(err, n * sizeof *name);
    for (; rc == 0 && k < n; k++) {
        const char *key = tensor_file_name(st, k);
        if (!(name[k] = strndup(key, module_length(key))))
            rc = err_nomem(err, strlen(key));
    }
    if (rc == 0) {
        qsort(name, n, sizeof *name, compare);
        for (size_t i = 0; i < n; i++)
            f->sites += i == 0 || strcmp(name[i], name[i - 1]) != 0;
    }
    for (size_t i = 0; name && i < k; i++)
        free(name[i]);
    free(name);
    return rc;
}

/* ---- base ------------------------------------------------------------------------------------ */

/* What the keys of a file told about its base so far. */
struct hints {
    int cross, text; /* widths of cross-attention's and the text encoder's inputs */
    bool sdxl, flux, sd3, llm, sd;
};

/* The number behind "transformer_blocks_" or "transformer_blocks.", -1: it is not there. */
static int block_number(const char *key)
{
    static const char word[] = "transformer_blocks";
    const char *p = strstr(key, word);
    if (!p || (p[sizeof word - 1] != '_' && p[sizeof word - 1] != '.'))
        return -1;
    p += sizeof word;
    return *p >= '0' && *p <= '9' ? atoi(p) : -1;
}

static bool has(const char *key, const char *piece)
{
    return strstr(key, piece) != NULL;
}

static void take_hint(struct hints *h, const char *key, const struct array *a)
{
    bool blocks = has(key, "down_blocks") || has(key, "up_blocks") || has(key, "mid_block") ||
                  has(key, "input_blocks") || has(key, "output_blocks") || has(key, "middle_block");
    h->sd |= blocks;
    h->flux |= has(key, "double_blocks") || has(key, "single_blocks") ||
               has(key, "single_transformer_blocks");
    h->sd3 |= has(key, "joint_blocks");
    h->llm |= has(key, "model.layers.") || has(key, "decoder.layers.") || has(key, "lm_head") ||
              has(key, "SelfAttention") || has(key, "EncDecAttention");
    h->sdxl |= !strncmp(key, "lora_te1_", 9) || !strncmp(key, "lora_te2_", 9) ||
               !strncmp(key, "text_encoder_2.", 15) || has(key, "add_embedding") ||
               has(key, "label_emb") || (blocks && block_number(key) >= 2);
    if (has(key, "emb_params") && a->ndim == 2 && a->dim[1] < 1 << 20)
        h->text = (int)a->dim[1];
    h->sdxl |= !strcmp(key, "clip_g");
}

/* A change of the weight of that name with so many in channels. */
static void take_width(struct hints *h, const char *name, int width)
{
    if (width && has(name, "attn2") && (has(name, "to_k") || has(name, "to_v")))
        h->cross = width;
    if (width && (has(name, "text_model") || has(name, "text_encoder") || has(name, "lora_te_")) &&
        (has(name, "q_proj") || has(name, "to_q")))
        h->text = width;
}

static const char *base_of_width(int width, bool sdxl_too)
{
    return width == 768 ? "sd1" : width == 1024 ? "sd2" : width == 2048 && sdxl_too ? "sdxl" : NULL;
}

static void read_base(struct facts *f, const struct hints *h)
{
    const char *by_cross = base_of_width(h->cross, true), *by_text = base_of_width(h->text, false);
    f->context = h->cross ? h->cross : h->sdxl || h->flux || h->sd3 || h->llm ? 0 : h->text;
    f->base = h->flux              ? "flux"
              : h->sd3             ? "sd3"
              : h->sdxl            ? "sdxl"
              : by_cross           ? by_cross
              : h->cross           ? "unknown"
              : by_text && !h->llm ? by_text
              : h->llm && !h->sd   ? "llm"
                                   : "unknown";
}

/* ---- the rest -------------------------------------------------------------------------------- */

static const char *most_bytes(const struct tensor_file *st)
{
    uint64_t bytes[DT_COUNT] = {0};
    int best = 0;
    for (size_t i = 0; i < tensor_file_count(st); i++) {
        const struct array *a = tensor_file_at(st, i);
        bytes[a->dtype] += array_count(a) * dtype_bits(a->dtype);
    }
    for (int t = 0; t < DT_COUNT; t++)
        best = bytes[t] > bytes[best] ? t : best;
    return dtype_name((enum dtype)best);
}

static int read_metadata(struct facts *f, const struct tensor_file *st, struct err *err)
{
    const char *declared = tensor_file_metadata(st, "sshs_model_hash");
    json_t *all = json_object();
    for (size_t i = 0; all && i < tensor_file_metadata_count(st); i++) {
        const char *key, *value;
        tensor_file_metadata_at(st, i, &key, &value);
        if (strlen(value) <= METADATA_VALUE_MAX)
            json_object_set_new(all, key, json_string(value));
    }
    if (!declared)
        declared = tensor_file_metadata(st, "modelspec.hash_sha256");
    if (declared && *declared)
        f->declared = strndup(declared, 200);
    if (json_object_size(all))
        f->metadata = json_dumps(all, JSON_COMPACT);
    bool bad = !all || (json_object_size(all) && !f->metadata);
    json_decref(all);
    return bad ? err_nomem(err, 0) : 0;
}

/* ---- what the importers make of it ----------------------------------------------------------- */

/* "lora", "locon", …: as users filter by. DoRA is a kind beside that of its factors. */
static void add_delta(struct facts *f, const struct delta *d)
{
    char name[16];
    struct delta plain = *d;
    if (d->magnitude.data)
        add_kind(f, "dora");
    plain.magnitude.data = NULL;
    snprintf(name, sizeof name, "%s", delta_kind_name(&plain));
    for (char *p = name; *p; p++)
        *p = (char)tolower((unsigned char)*p);
    bool diff = !strcmp(name, "full") || !strcmp(name, "bias");
    add_kind(f, diff ? "diff" : name);
    if (delta_rank(d))
        add_rank(f, (uint64_t)delta_rank(d));
}

static void take_deltas(struct facts *f, struct hints *h, const struct delta_list *l)
{
    for (int i = 0; i < l->n; i++) {
        add_delta(f, &l->item[i].d);
        take_width(h, l->item[i].site, delta_in(&l->item[i].d));
    }
}

/* The input width of an array that stands on a weight's input side, 0: it does not. */
static int input_width(const char *key, const struct array *a)
{
    static const char *const sides[] = {"lora_down.weight", "lora_A.", "lora.down.weight",
                                        "lora_linear_layer.down"};
    if (a->ndim < 2 || a->dim[1] > 1 << 20)
        return 0;
    for (size_t i = 0; i < sizeof sides / sizeof *sides; i++)
        if (matches(key, sides[i]))
            return (int)a->dim[1];
    return 0;
}

/* The same from keys alone, of a file that no importer takes. */
static void take_keys(struct facts *f, struct hints *h, const struct tensor_file *st)
{
    for (size_t i = 0; i < tensor_file_count(st); i++) {
        const char *key = tensor_file_name(st, i);
        const struct array *a = tensor_file_at(st, i);
        read_kind(f, key, a);
        take_width(h, key, input_width(key, a));
    }
}

/* Whether some of its weights are of a UNet or a text encoder (the importer marks others with '?'). */
static bool knows_a_site(const struct delta_list *l)
{
    for (int i = 0; i < l->n; i++)
        if (l->item[i].site[0] != '?')
            return true;
    return false;
}

/* Whether weft can render it, and as what. A valid file of a kind that no importer takes is still an
 * adapter. */
static int try_import(struct facts *f, struct hints *h, const struct tensor_file *st,
                      const char *path, struct err *err)
{
    struct delta_list list = {0};
    const struct adapter_format *format = NULL;
    struct err why;
    size_t n = strlen(path);

    int rc = adapter_import(st, path, &list, &format, &f->style, &why);
    if (rc == ERR_UNSUPPORTED)
        take_keys(f, h, st);
    if (rc == 0) {
        f->format = format->name;
        f->sites = list.n;
        take_deltas(f, h, &list);
        if (!knows_a_site(&list) &&
            asprintf(&f->unusable, "none of its %d weights is one of a UNet or text encoder",
                     list.n) < 0)
            rc = err_nomem(err, 64);
    } else if (rc == ERR_UNSUPPORTED && *f->kinds) {
        const char *text = why.msg;
        if (!strncmp(text, path, n) && !strncmp(text + n, ": ", 2))
            text += n + 2;
        f->style = NULL;
        f->unusable = strdup(text);
        rc = f->unusable ? count_modules(f, st, err) : err_nomem(err, strlen(text));
    } else {
        rc = err_set(err, why.code, "%s", why.msg);
    }
    delta_list_release(&list);
    return rc;
}

int facts_read(struct facts *f, const struct tensor_file *st, const char *path, struct err *err)
{
    struct hints h = {0};
    memset(f, 0, sizeof *f);
    f->tensors = (int)tensor_file_count(st);
    f->dtype = most_bytes(st);
    for (size_t i = 0; i < tensor_file_count(st); i++) {
        const char *key = tensor_file_name(st, i);
        if (*key == '<' && embedding_owns(st, i)) /* "<birb-style>", as diffusers' trainer has it */
            add_kind(f, "textual-inversion");
        take_hint(&h, key, tensor_file_at(st, i));
    }
    int rc = try_import(f, &h, st, path, err);
    read_base(f, &h);
    if (rc == 0 && !f->unusable &&
        (!strcmp(f->base, "flux") || !strcmp(f->base, "sd3") || !strcmp(f->base, "llm") ||
         !strcmp(f->base, "sdxl")) &&
        asprintf(&f->unusable, "made for %s, which weft does not run yet", f->base) < 0)
        rc = err_nomem(err, 64);
    rc = rc < 0 ? rc : read_metadata(f, st, err);
    if (rc < 0)
        facts_release(f);
    return rc;
}

void facts_release(struct facts *f)
{
    free(f->unusable);
    free(f->declared);
    free(f->metadata);
    memset(f, 0, sizeof *f);
}

const char *facts_declared_note(const char *declared, const char *data_sha256)
{
    bool prefix = declared && !strncmp(declared, "0x", 2);
    const char *hex = declared ? declared + (prefix ? 2 : 0) : "";
    size_t n = strlen(hex);
    if (n == 0)
        return "";
    if (!strncmp(hex, "e3b0c44298fc", n < 12 ? n : 12))
        return "the hash of nothing at all: a trainer's mistake";
    if (n < 12 || strncmp(hex, data_sha256, n))
        return "not the hash of these tensors";
    return prefix ? "right, written with 0x" : "";
}
