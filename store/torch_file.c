#include "torch_file.h"

#include "torch_reader.h"

#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PICKLE_MAX (64u << 20)

/* The first of the older form's five pickles is this number, the second its version. */
static const uint8_t magic[10] = {0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19};
#define LEGACY_VERSION 1001

/* ---- the zip --------------------------------------------------------------------------------- */

/* The one entry whose last part is data.pkl; what stands before is the prefix of all others. */
static int find_pickle(struct reader *r, const struct zip_entry **out)
{
    static const char last[] = "data.pkl";
    const struct zip_entry *found = NULL;
    for (size_t i = 0; i < r->zip.n; i++) {
        const char *name = r->zip.entry[i].name;
        size_t n = strlen(name), k = sizeof last - 1;
        if (n < k || strcmp(name + n - k, last) || (n > k && name[n - k - 1] != '/'))
            continue;
        if (found)
            return err_set(r->err, ERR_FORMAT, "a zip with two pickles, '%.200s' and '%.200s'",
                           found->name, name);
        found = &r->zip.entry[i];
        snprintf(r->prefix, sizeof r->prefix, "%.*s", (int)(n - k), name);
    }
    *out = found;
    return found ? 0 : err_set(r->err, ERR_FORMAT, "a zip, but not torch's: no data.pkl in it");
}

/* A storage is the entry data/KEY. */
static int zip_storages(struct reader *r)
{
    char name[2 * TORCH_NAME_MAX + 8];
    int rc = 0;
    for (size_t i = 0; i < r->n_storage && rc == 0; i++) {
        struct storage *s = &r->storage[i];
        const void *bytes = NULL;
        if (s->n_key > TORCH_NAME_MAX)
            continue; /* no entry is named so; the tensor's check will say it is missing */
        snprintf(name, sizeof name, "%sdata/%.*s", r->prefix, (int)s->n_key, s->key);
        const struct zip_entry *e = zip_find(&r->zip, name);
        rc = e ? zip_read(&r->zip, e, &bytes, &s->owned, r->err) : 0;
        s->bytes = bytes;
        s->size = e ? e->size : 0;
    }
    return rc;
}

static int check_byteorder(struct reader *r)
{
    char name[TORCH_NAME_MAX + 16];
    snprintf(name, sizeof name, "%sbyteorder", r->prefix);
    const struct zip_entry *e = zip_find(&r->zip, name);
    const void *bytes;
    void *owned;
    int rc = e ? zip_read(&r->zip, e, &bytes, &owned, r->err) : 0;
    if (!e || rc < 0)
        return rc;
    if (e->size != 6 || memcmp(bytes, "little", 6))
        rc = err_set(r->err, ERR_UNSUPPORTED, "a torch file of a machine with the big end first");
    free(owned);
    return rc;
}

static int read_zip(struct reader *r, const void *bytes, size_t size)
{
    const struct pickle_value *root = NULL;
    const void *program = NULL;
    void *owned = NULL;
    size_t used;
    const struct zip_entry *e = NULL;
    int rc = zip_open(&r->zip, bytes, size, r->err);
    rc = rc < 0 ? rc : find_pickle(r, &e);
    if (rc < 0)
        return rc;
    if (e->size > PICKLE_MAX)
        return err_set(r->err, ERR_FORMAT, "its data.pkl has %" PRIu64 " bytes, %u are the most",
                       e->size, PICKLE_MAX);
    r->f->container = "torch-zip";
    rc = zip_read(&r->zip, e, &program, &owned, r->err);
    rc = rc < 0 ? rc : pickle_read(&r->pickle, program, (size_t)e->size, &root, &used, r->err);
    rc = rc < 0 ? rc : check_byteorder(r);
    rc = rc < 0 ? rc : reader_list(r, root);
    rc = rc < 0 ? rc : zip_storages(r);
    rc = rc < 0 ? rc : reader_fill(r);
    free(owned);
    return rc;
}

/* ---- the older form -------------------------------------------------------------------------- */

/* The next pickle of *p; n bytes are left. */
static int next_pickle(struct reader *r, const uint8_t **p, size_t *n,
                       const struct pickle_value **root)
{
    size_t used = 0, most = *n < PICKLE_MAX ? *n : PICKLE_MAX;
    int rc = pickle_read(&r->pickle, *p, most, root, &used, r->err);
    *p += used;
    *n -= used;
    return rc;
}

static bool is_magic(const struct pickle_value *v)
{
    return v->kind == PICKLE_LONG && v->n == sizeof magic && !memcmp(v->text, magic, v->n);
}

/* The machine that wrote it must have had the little end first. */
static bool is_little(const struct pickle_value *v)
{
    for (size_t i = 0; v->kind == PICKLE_DICT && i + 1 < v->n; i += 2)
        if (v->item[i]->kind == PICKLE_TEXT && v->item[i]->n == 13 &&
            !memcmp(v->item[i]->text, "little_endian", 13))
            return v->item[i + 1]->kind == PICKLE_BOOL && v->item[i + 1]->i;
    return false;
}

/* After the list of keys: for each in turn a count of 8 bytes and so many values. */
static int legacy_storages(struct reader *r, const struct pickle_value *keys, const uint8_t *p,
                           size_t n)
{
    if (keys->kind != PICKLE_LIST)
        return err_set(r->err, ERR_FORMAT, "damaged: its list of storages is missing");
    for (size_t i = 0; i < keys->n; i++) {
        const struct pickle_value *key = keys->item[i];
        struct storage *s = key->kind == PICKLE_TEXT ? reader_storage(r, key->text, key->n) : NULL;
        uint64_t count = 0;
        if (!s || s->bytes)
            return err_set(r->err, ERR_FORMAT, "damaged: a storage that no tensor uses");
        for (int k = 0; k < 8 && n >= 8; k++)
            count |= (uint64_t)p[k] << 8 * k;
        if (n < 8 || count > (n - 8) / s->width)
            return err_set(r->err, ERR_FORMAT, "its storages are cut short: get the file again");
        s->bytes = p + 8;
        s->size = count * s->width;
        p += 8 + s->size;
        n -= 8 + (size_t)s->size;
    }
    return n > 0 ? err_set(r->err, ERR_FORMAT, "damaged: something follows its last storage") : 0;
}

static int read_legacy(struct reader *r, const uint8_t *p, size_t n)
{
    const struct pickle_value *head = NULL, *version = NULL, *system = NULL, *root = NULL,
                              *keys = NULL;
    int rc = next_pickle(r, &p, &n, &head);
    if (rc < 0)
        return rc;
    if (!is_magic(head))
        return err_set(r->err, ERR_FORMAT, "a pickle, but not one of torch's: no tensors in it");
    rc = next_pickle(r, &p, &n, &version);
    if (rc == 0 && (version->kind != PICKLE_INT || version->i != LEGACY_VERSION))
        return err_set(r->err, ERR_UNSUPPORTED, "a torch file of another version than %d",
                       LEGACY_VERSION);
    rc = rc < 0 ? rc : next_pickle(r, &p, &n, &system);
    if (rc == 0 && !is_little(system))
        return err_set(r->err, ERR_UNSUPPORTED, "a torch file of a machine with the big end first");
    r->f->container = "torch-legacy";
    rc = rc < 0 ? rc : next_pickle(r, &p, &n, &root);
    rc = rc < 0 ? rc : next_pickle(r, &p, &n, &keys);
    rc = rc < 0 ? rc : reader_list(r, root);
    rc = rc < 0 ? rc : legacy_storages(r, keys, p, n);
    return rc < 0 ? rc : reader_fill(r);
}

/* ---- all of it ------------------------------------------------------------------------------- */

/* What a safetensors file begins with: a length below 2^32, and a JSON object. */
static bool is_length(const uint8_t *p, size_t size)
{
    return size > 8 && !memcmp(p + 4, "\0\0\0", 4) && strchr("{ \n\r\t", p[8]) && p[8];
}

static bool is_tar(const uint8_t *p, size_t size)
{
    return size >= 512 && !memcmp(p + 257, "ustar", 5);
}

/* A line of a name's characters. Returns what follows it, or NULL. */
static const uint8_t *name_line(const uint8_t *p, const uint8_t *end)
{
    const uint8_t *at = p;
    while (at < end && (isalnum(*at) || *at == '_' || *at == '.'))
        at++;
    return at > p && at < end && *at == '\n' ? at + 1 : NULL;
}

/* Pickles of protocol 0 and 1 have no head. Taken for one is what begins with a global, a text that is
 * remembered, or a container; so that a hostile one can be named, and a list of words is not. */
static bool is_old_pickle(const uint8_t *p, size_t size)
{
    const uint8_t *end = p + size, *nl = memchr(p, '\n', size);
    switch (p[0]) {
    case 'c': return (nl = name_line(p + 1, end)) && name_line(nl, end);
    case 'V':
    case 'S': return nl && nl + 1 < end && strchr("pq0.", nl[1]) && nl[1];
    case '(': return strchr("ldtSVcUX(]}", p[1]) && p[1] && memchr(p, '.', size);
    case ']':
    case '}': return strchr("(pqr.", p[1]) && p[1];
    default: return false;
    }
}

bool torch_file_is(const void *bytes, size_t size)
{
    const uint8_t *p = bytes;
    if (size < 2 || is_length(p, size))
        return false;
    return (size >= 4 && (!memcmp(p, "PK\3\4", 4) || !memcmp(p, "PK\5\6", 4))) ||
           (p[0] == 0x80 && p[1] < 16) || is_tar(p, size) || is_old_pickle(p, size);
}

int torch_file_read(struct torch_file *f, const void *bytes, size_t size, struct err *err)
{
    struct reader r = {.f = f, .file_size = size, .err = err};
    int rc;
    *f = (struct torch_file){0};
    pickle_open(&r.pickle);
    if (is_tar(bytes, size))
        rc = err_set(err, ERR_UNSUPPORTED,
                     "torch's tar form of 2016: load it with an old torch and save it again");
    else if (!memcmp(bytes, "PK", 2))
        rc = read_zip(&r, bytes, size);
    else
        rc = read_legacy(&r, bytes, size);
    for (size_t i = 0; i < r.n_storage; i++)
        free(r.storage[i].owned);
    free(r.storage);
    for (size_t i = 0; r.tensor && i < f->n; i++)
        free(r.tensor[i].name);
    free(r.tensor);
    zip_release(&r.zip);
    pickle_release(&r.pickle);
    return rc;
}

void torch_file_release(struct torch_file *f)
{
    for (size_t i = 0; f->item && i < f->n; i++)
        free(f->item[i].name);
    for (size_t i = 0; i < f->n_meta; i++) {
        free(f->meta[i].key);
        free(f->meta[i].value);
    }
    free(f->item);
    free(f->meta);
    free(f->data);
    *f = (struct torch_file){0};
}
