/* From a pickle's tree to named, dense tensors. */
#include "torch_reader.h"

#include "unet/text.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define TENSORS_MAX 100000
#define STEPS_MAX   1000000
#define DEPTH_MAX   64
#define TEXT_TOTAL  (64u << 20) /* bytes of all names and texts: one text may be shared by many */
/* Tensors may share a storage, so together they may be larger than the file: so many times. */
#define SHARED_TIMES 4
#define SHARED_MORE  (1u << 20)

/* ---- the tree becomes a list ------------------------------------------------------------------ */

/* Counts bytes that are about to be read or kept. */
static int spend(struct reader *r, size_t n)
{
    r->text += n;
    return r->text <= TEXT_TOTAL
               ? 0
               : err_set(r->err, ERR_FORMAT, "its names and texts have more than %u bytes",
                         TEXT_TOTAL);
}

static int add_tensor(struct reader *r, const char *name, const struct pickle_value *v)
{
    size_t n = r->f->n;
    int rc = spend(r, strlen(name));
    if (rc < 0)
        return rc;
    if (n >= TENSORS_MAX)
        return err_set(r->err, ERR_FORMAT, "more than %d tensors", TENSORS_MAX);
    if ((n & (n - 1)) == 0) { /* full at each power of two */
        void *p = realloc(r->tensor, (n ? 2 * n : 1) * sizeof *r->tensor);
        if (!p)
            return err_nomem(r->err, 2 * n * sizeof *r->tensor);
        r->tensor = p;
    }
    r->tensor[n] = (struct tensor_at){strdup(*name ? name : "tensor"), v};
    r->f->n++;
    return r->tensor[n].name ? 0 : err_nomem(r->err, strlen(name));
}

/* Whether a text is UTF-8 without a NUL. */
static bool is_plain(const struct pickle_value *v)
{
    return !memchr(v->text, 0, v->n) && text_check(v->text, v->n, "", NULL) == 0;
}

/* A number, truth value or text as metadata. Texts that are no plain UTF-8 are left out. */
static int add_meta(struct reader *r, const char *name, const struct pickle_value *v)
{
    struct torch_file *f = r->f;
    char buf[40];
    int rc = spend(r, strlen(name) + (v->kind == PICKLE_TEXT ? v->n : 0));
    if (rc < 0)
        return rc;
    if (v->kind == PICKLE_INT)
        snprintf(buf, sizeof buf, "%" PRId64, v->i);
    else if (v->kind == PICKLE_FLOAT)
        snprintf(buf, sizeof buf, "%.17g", v->f);
    else if (v->kind == PICKLE_BOOL)
        snprintf(buf, sizeof buf, "%s", v->i ? "true" : "false");
    else if (v->kind != PICKLE_TEXT || !is_plain(v))
        return 0;
    if (f->n_meta >= TENSORS_MAX)
        return err_set(r->err, ERR_FORMAT, "more than %d numbers and texts", TENSORS_MAX);
    if ((f->n_meta & (f->n_meta - 1)) == 0) {
        void *p = realloc(f->meta, (f->n_meta ? 2 * f->n_meta : 1) * sizeof *f->meta);
        if (!p)
            return err_nomem(r->err, 2 * f->n_meta * sizeof *f->meta);
        f->meta = p;
    }
    struct torch_meta *m = &f->meta[f->n_meta++];
    m->key = strdup(*name ? name : "value");
    m->value = v->kind == PICKLE_TEXT ? strndup(v->text, v->n) : strdup(buf);
    return m->key && m->value ? 0 : err_nomem(r->err, v->n + strlen(name));
}

/* Adds ".key" to name[n]; a dict's key is a text or a number. Returns the new length or an error. */
static int add_key(struct reader *r, char *name, int n, const struct pickle_value *key)
{
    int k = 0, room = TORCH_NAME_MAX + 1 - n;
    const char *dot = n ? "." : "";
    if (key->kind == PICKLE_TEXT && key->n < TORCH_NAME_MAX && is_plain(key))
        k = snprintf(name + n, (size_t)room, "%s%.*s", dot, (int)key->n, key->text);
    else if (key->kind == PICKLE_INT)
        k = snprintf(name + n, (size_t)room, "%s%" PRId64, dot, key->i);
    else
        return err_set(r->err, ERR_FORMAT, "a dict in '%.100s' has a key that is no name", name);
    return k < room ? n + k
                    : err_set(r->err, ERR_FORMAT, "a name of more than %d bytes", TORCH_NAME_MAX);
}

/* Collects tensors and metadata below v, whose name is name[0..n). */
static int flatten(struct reader *r, const struct pickle_value *v, char *name, int n, int depth)
{
    int rc = 0;
    struct pickle_value place = {.kind = PICKLE_INT};
    bool dict = v->kind == PICKLE_DICT;
    name[n] = 0;
    if (v->kind == PICKLE_TENSOR)
        return add_tensor(r, name, v);
    if (!dict && v->kind != PICKLE_LIST && v->kind != PICKLE_TUPLE)
        return add_meta(r, name, v);
    if (depth == DEPTH_MAX)
        return err_set(r->err, ERR_FORMAT, "its dicts and lists are more than %d deep", DEPTH_MAX);
    for (size_t i = 0; i < v->n && rc == 0; i += dict ? 2 : 1) {
        place.i = (int64_t)i;
        rc = add_key(r, name, n, dict ? v->item[i] : &place);
        /* sharing makes a small pickle a large tree, so steps are counted too */
        if (rc >= 0 && ++r->steps > STEPS_MAX)
            rc = err_set(r->err, ERR_FORMAT, "its dicts and lists hold too much");
        rc = rc < 0 ? rc : flatten(r, v->item[dict ? i + 1 : i], name, rc, depth + 1);
    }
    name[n] = 0;
    return rc;
}

static int by_name(const void *va, const void *vb)
{
    const struct tensor_at *a = va, *b = vb;
    return strcmp(a->name, b->name);
}

/* ---- storages -------------------------------------------------------------------------------- */

/* Order of keys: by length, then by bytes. */
static int compare_keys(const void *va, const void *vb)
{
    const struct storage *a = va, *b = vb;
    if (a->n_key != b->n_key)
        return a->n_key < b->n_key ? -1 : 1;
    return a->n_key ? memcmp(a->key, b->key, a->n_key) : 0;
}

struct storage *reader_storage(struct reader *r, const char *key, size_t n)
{
    struct storage want = {.key = key, .n_key = n};
    return r->n_storage ? bsearch(&want, r->storage, r->n_storage, sizeof want, compare_keys)
                        : NULL;
}

/* One of each storage that the tensors name. */
static int list_storages(struct reader *r)
{
    size_t n = r->f->n, k = 0;
    r->storage = calloc(n + 1, sizeof *r->storage);
    if (!r->storage)
        return err_nomem(r->err, n * sizeof *r->storage);
    for (size_t i = 0; i < n; i++) {
        const struct pickle_value *v = r->tensor[i].v->item[0];
        r->storage[i] =
            (struct storage){.key = v->text, .n_key = v->n, .width = dtype_bits(v->dtype) / 8};
    }
    if (n)
        qsort(r->storage, n, sizeof *r->storage, compare_keys);
    for (size_t i = 0; i < n; i++) {
        if (k == 0 || compare_keys(&r->storage[k - 1], &r->storage[i]))
            r->storage[k++] = r->storage[i];
        else if (r->storage[k - 1].width != r->storage[i].width)
            return err_set(r->err, ERR_FORMAT, "damaged: a storage of two types");
    }
    r->n_storage = k;
    return 0;
}

/* ---- tensors --------------------------------------------------------------------------------- */

static const struct storage *storage_of(struct reader *r, const struct tensor_at *t)
{
    return reader_storage(r, t->v->item[0]->text, t->v->item[0]->n);
}

/* Checks v against its storage. *bytes gets what it takes when dense. */
static int check_tensor(struct reader *r, const struct tensor_at *t, const struct storage *s,
                        struct array *a, uint64_t *bytes)
{
    const struct pickle_value *store = t->v->item[0], *dim = t->v->item[1], *stride = t->v->item[2];
    uint64_t width = dtype_bits(store->dtype) / 8, count = 1, last = (uint64_t)t->v->i, step;
    bool over = false;
    *a = (struct array){.dtype = store->dtype, .ndim = (int)dim->n};
    for (size_t i = 0; i < dim->n; i++) {
        a->dim[i] = (uint64_t)dim->item[i]->i;
        over |= __builtin_mul_overflow(count, a->dim[i], &count);
    }
    for (size_t i = 0; i < dim->n && count > 0; i++) {
        over |= __builtin_mul_overflow(a->dim[i] - 1, (uint64_t)stride->item[i]->i, &step);
        over |= __builtin_add_overflow(last, step, &last);
    }
    over |= __builtin_mul_overflow(count, width, bytes);
    if (!s->bytes)
        return err_set(r->err, ERR_FORMAT, "damaged: the storage of '%.200s' is missing", t->name);
    if ((uint64_t)store->i > s->size / width)
        return err_set(r->err, ERR_FORMAT,
                       "damaged: the storage of '%.200s' should have %" PRId64
                       " values and has %" PRIu64 " bytes",
                       t->name, store->i, s->size);
    if (over || (count > 0 && last >= (uint64_t)store->i))
        return err_set(r->err, ERR_FORMAT,
                       "damaged: '%.200s' reaches beyond its storage of %" PRId64 " values",
                       t->name, store->i);
    return 0;
}

/* Dense copy of a strided tensor, one value after the other. */
static void copy_values(uint8_t *to, const uint8_t *from, const struct array *a,
                        const struct pickle_value *stride)
{
    size_t width = dtype_bits(a->dtype) / 8, count = array_count(a), at = 0;
    uint64_t place[ARRAY_MAX_DIMS] = {0};
    for (size_t i = 0; i < count; i++) {
        memcpy(to + i * width, from + at * width, width);
        for (int d = a->ndim - 1; d >= 0; d--) {
            at += (size_t)stride->item[d]->i;
            if (++place[d] < a->dim[d])
                break;
            at -= (size_t)a->dim[d] * (size_t)stride->item[d]->i;
            place[d] = 0;
        }
    }
}

static bool is_dense(const struct array *a, const struct pickle_value *stride)
{
    uint64_t want = 1;
    for (int d = a->ndim - 1; d >= 0; d--) {
        if (a->dim[d] != 1 && (uint64_t)stride->item[d]->i != want)
            return false;
        want *= a->dim[d];
    }
    return true;
}

static int measure_tensors(struct reader *r)
{
    struct torch_file *f = r->f;
    uint64_t most = (uint64_t)r->file_size * SHARED_TIMES + SHARED_MORE, total = 0, bytes = 0;
    for (size_t i = 0; i < r->n_storage; i++) /* of a packed zip, what it expands to */
        most += r->storage[i].owned ? r->storage[i].size : 0;
    for (size_t i = 0; i < f->n; i++) {
        const struct storage *s = storage_of(r, &r->tensor[i]);
        int rc = check_tensor(r, &r->tensor[i], s, &f->item[i].a, &bytes);
        if (rc < 0)
            return rc;
        f->item[i].name = r->tensor[i].name;
        r->tensor[i].name = NULL;
        if (bytes > most || (total += bytes) > most)
            return err_set(r->err, ERR_FORMAT,
                           "its tensors share storages and would take more than %" PRIu64 " bytes",
                           most);
    }
    f->data_size = (size_t)total;
    return 0;
}

static int copy_tensors(struct reader *r)
{
    struct torch_file *f = r->f;
    f->data = malloc(f->data_size + 1);
    if (!f->data)
        return err_nomem(r->err, f->data_size);
    uint8_t *to = f->data;
    for (size_t i = 0; i < f->n; i++) {
        const struct pickle_value *v = r->tensor[i].v;
        struct array *a = &f->item[i].a;
        size_t width = dtype_bits(a->dtype) / 8, bytes = array_count(a) * width;
        const struct storage *s = storage_of(r, &r->tensor[i]);
        if (bytes && is_dense(a, v->item[2]))
            memcpy(to, s->bytes + (size_t)v->i * width, bytes);
        else if (bytes)
            copy_values(to, s->bytes + (size_t)v->i * width, a, v->item[2]);
        a->data = to;
        to += bytes;
    }
    return 0;
}

int reader_list(struct reader *r, const struct pickle_value *root)
{
    char name[TORCH_NAME_MAX + 2] = "";
    struct torch_file *f = r->f;
    int rc = flatten(r, root, name, 0, 0);
    if (rc < 0)
        return rc;
    if (f->n)
        qsort(r->tensor, f->n, sizeof *r->tensor, by_name);
    for (size_t i = 1; i < f->n; i++)
        if (!strcmp(r->tensor[i].name, r->tensor[i - 1].name))
            return err_set(r->err, ERR_FORMAT, "the name '%.200s' occurs twice", r->tensor[i].name);
    return list_storages(r);
}

int reader_fill(struct reader *r)
{
    r->f->item = calloc(r->f->n + 1, sizeof *r->f->item);
    if (!r->f->item)
        return err_nomem(r->err, r->f->n * sizeof *r->f->item);
    int rc = measure_tensors(r);
    return rc < 0 ? rc : copy_tensors(r);
}
