#include "zip.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#define ENTRIES_MAX 100000
#define NAME_LONG   1024
/* What all deflated entries together may expand to: so many times the file and something for small
 * ones. Weights of zeros expand a thousandfold, honest files do not. */
#define EXPAND_TIMES 32
#define EXPAND_MORE  (16u << 20)

#define END_SIZE     22
#define END64_SIZE   56
#define LOCATOR_SIZE 20
#define CENTRAL_SIZE 46
#define LOCAL_SIZE   30

static uint64_t get(const uint8_t *p, int n)
{
    uint64_t v = 0;
    for (int i = 0; i < n; i++)
        v |= (uint64_t)p[i] << 8 * i;
    return v;
}

static int damaged(struct err *err, const char *what)
{
    return err_set(err, ERR_FORMAT, "damaged zip: %s: get the file again", what);
}

/* ---- the directory --------------------------------------------------------------------------- */

struct directory {
    uint64_t n, at, size;
};

/* The record at the end, which a comment of up to 64 KiB may follow. NULL: none. */
static const uint8_t *find_end(const struct zip *z)
{
    size_t most = z->size < END_SIZE + 65535 ? z->size : END_SIZE + 65535;
    for (size_t back = END_SIZE; back <= most; back++) {
        const uint8_t *p = z->bytes + z->size - back;
        if (!memcmp(p, "PK\5\6", 4) && get(p + 20, 2) == back - END_SIZE)
            return p;
    }
    return NULL;
}

/* The sizes of zip64, where the old record's are full. */
static int find_end64(const struct zip *z, const uint8_t *end, struct directory *d, struct err *err)
{
    size_t at = (size_t)(end - z->bytes);
    const uint8_t *loc = end - LOCATOR_SIZE;
    if (at < LOCATOR_SIZE || memcmp(loc, "PK\6\7", 4))
        return d->n == 0xffff || d->at == 0xffffffff || d->size == 0xffffffff
                   ? damaged(err, "the zip64 record is missing")
                   : 0;
    uint64_t where = get(loc + 8, 8);
    if (where > at || at - where < END64_SIZE || memcmp(z->bytes + where, "PK\6\6", 4))
        return damaged(err, "the zip64 record is not where it is said to be");
    const uint8_t *p = z->bytes + where;
    if (get(p + 16, 4) != 0 || get(p + 20, 4) != 0 || get(p + 24, 8) != get(p + 32, 8))
        return err_set(err, ERR_UNSUPPORTED, "a zip in several parts");
    const struct directory old = *d;
    *d = (struct directory){get(p + 32, 8), get(p + 48, 8), get(p + 40, 8)};
    if ((old.n != 0xffff && old.n != d->n) || (old.at != 0xffffffff && old.at != d->at) ||
        (old.size != 0xffffffff && old.size != d->size))
        return damaged(err, "it has two directories");
    return 0;
}

static int find_directory(const struct zip *z, struct directory *d, struct err *err)
{
    const uint8_t *end = z->size >= END_SIZE ? find_end(z) : NULL;
    if (!end)
        return damaged(err, "its directory is missing, it may be cut short");
    if (get(end + 4, 2) != 0 || get(end + 6, 2) != 0 || get(end + 8, 2) != get(end + 10, 2))
        return err_set(err, ERR_UNSUPPORTED, "a zip in several parts");
    *d = (struct directory){get(end + 10, 2), get(end + 16, 4), get(end + 12, 4)};
    int rc = find_end64(z, end, d, err);
    if (rc < 0)
        return rc;
    uint64_t room = (uint64_t)(end - z->bytes);
    if (d->at > room || d->size > room - d->at)
        return damaged(err, "its directory lies outside the file");
    if (d->n > ENTRIES_MAX || d->n > d->size / CENTRAL_SIZE)
        return damaged(err, "more entries than the directory can hold");
    return 0;
}

/* ---- entries --------------------------------------------------------------------------------- */

/* Names that could write outside a folder are refused although nothing is ever written. */
static bool bad_name(const char *s, size_t n)
{
    if (n == 0 || n > NAME_LONG || s[0] == '/' || memchr(s, 0, n) || memchr(s, '\\', n))
        return true;
    for (size_t i = 0; i < n; i++)
        if ((i == 0 || s[i - 1] == '/') && n - i >= 2 && s[i] == '.' && s[i + 1] == '.' &&
            (n - i == 2 || s[i + 2] == '/'))
            return true;
    return false;
}

/* 64-bit sizes from the extra field with id 1, in this order, each only where the old one is full. */
static int read_extra64(const uint8_t *p, size_t n, struct zip_entry *e, struct err *err)
{
    uint64_t *const full[] = {&e->size, &e->packed, &e->header};
    while (n >= 4) {
        size_t id = get(p, 2), len = get(p + 2, 2);
        if (len > n - 4)
            break;
        for (size_t i = 0, at = 4; id == 1 && i < 3; i++) {
            if (*full[i] != 0xffffffff)
                continue;
            if (at + 8 > len + 4)
                return damaged(err, "a zip64 size is missing");
            *full[i] = get(p + at, 8);
            at += 8;
        }
        p += 4 + len;
        n -= 4 + len;
    }
    return 0;
}

/* Reads one record of the directory. Returns its length, or an error. */
static int64_t read_central(const uint8_t *p, size_t room, struct zip_entry *e, struct err *err)
{
    if (room < CENTRAL_SIZE || memcmp(p, "PK\1\2", 4))
        return damaged(err, "its directory is broken");
    size_t name = get(p + 28, 2), extra = get(p + 30, 2), comment = get(p + 32, 2);
    if (name + extra + comment > room - CENTRAL_SIZE)
        return damaged(err, "its directory is cut short");
    const char *s = (const char *)p + CENTRAL_SIZE;
    if (bad_name(s, name))
        return err_set(err, ERR_FORMAT, "a zip with an entry named '%.*s': refused",
                       (int)(name < 80 ? name : 80), s);
    if (get(p + 8, 2) & 0x2041) /* encrypted; strongly; with a hidden directory */
        return err_set(err, ERR_UNSUPPORTED, "an encrypted zip ('%.*s')", (int)name, s);
    e->method = (int)get(p + 10, 2);
    if (e->method != 0 && e->method != 8)
        return err_set(err, ERR_UNSUPPORTED, "'%.*s' is packed with method %d; weft knows deflate",
                       (int)name, s, e->method);
    e->crc = (uint32_t)get(p + 16, 4);
    e->packed = get(p + 20, 4);
    e->size = get(p + 24, 4);
    e->header = get(p + 42, 4);
    if (!(e->name = strndup(s, name)))
        return err_nomem(err, name);
    int rc = read_extra64((const uint8_t *)s + name, extra, e, err);
    return rc < 0 ? rc : (int64_t)(CENTRAL_SIZE + name + extra + comment);
}

/* The local header must name the same entry. end is where the directory begins. */
static int check_local(const struct zip *z, struct zip_entry *e, uint64_t end, struct err *err)
{
    if (e->header > end || end - e->header < LOCAL_SIZE)
        return damaged(err, "an entry lies outside the file");
    const uint8_t *p = z->bytes + e->header;
    size_t name = get(p + 26, 2), extra = get(p + 28, 2), n = strlen(e->name);
    if (memcmp(p, "PK\3\4", 4) || name + extra > end - e->header - LOCAL_SIZE)
        return damaged(err, "an entry has no header");
    if (name != n || memcmp(p + LOCAL_SIZE, e->name, n))
        return err_set(err, ERR_FORMAT,
                       "a zip whose directory says '%.200s' where the entry says '%.*s': refused",
                       e->name, (int)(name < 200 ? name : 200), (const char *)p + LOCAL_SIZE);
    if (get(p + 8, 2) != (uint64_t)e->method || get(p + 6, 2) & 0x2041)
        return damaged(err, "directory and entry disagree");
    e->data = e->header + LOCAL_SIZE + name + extra;
    if (e->packed > end - e->data)
        return damaged(err, "an entry reaches beyond the file's end");
    if (e->method == 0 && e->packed != e->size)
        return damaged(err, "a stored entry with two sizes");
    return 0;
}

static int by_place(const void *va, const void *vb)
{
    const struct zip_entry *a = va, *b = vb;
    return a->header < b->header ? -1 : a->header > b->header;
}

static int by_name(const void *va, const void *vb)
{
    const struct zip_entry *a = va, *b = vb;
    return strcmp(a->name, b->name);
}

/* No bytes twice, no name twice, and not too much in all. */
static int check_all(struct zip *z, struct err *err)
{
    uint64_t most = (uint64_t)z->size * EXPAND_TIMES + EXPAND_MORE, total = 0;
    qsort(z->entry, z->n, sizeof *z->entry, by_place);
    for (size_t i = 0; i < z->n; i++) {
        const struct zip_entry *e = &z->entry[i];
        if (i > 0 && e->header < z->entry[i - 1].data + z->entry[i - 1].packed)
            return err_set(err, ERR_FORMAT, "a zip whose entries '%.100s' and '%.100s' overlap",
                           z->entry[i - 1].name, e->name);
        if (e->size > most || (total += e->size) > most)
            return err_set(err, ERR_FORMAT,
                           "a zip of %zu bytes that would expand to more than %llu: refused",
                           z->size, (unsigned long long)most);
    }
    qsort(z->entry, z->n, sizeof *z->entry, by_name);
    for (size_t i = 1; i < z->n; i++)
        if (!strcmp(z->entry[i].name, z->entry[i - 1].name))
            return err_set(err, ERR_FORMAT, "a zip with two entries '%.200s'", z->entry[i].name);
    return 0;
}

int zip_open(struct zip *z, const void *bytes, size_t size, struct err *err)
{
    struct directory d = {0};
    *z = (struct zip){.bytes = bytes, .size = size};
    int rc = find_directory(z, &d, err);
    if (rc < 0)
        return rc;
    z->entry = calloc((size_t)d.n + 1, sizeof *z->entry);
    if (!z->entry)
        return err_nomem(err, (size_t)d.n * sizeof *z->entry);
    for (uint64_t at = 0; z->n < d.n;) {
        struct zip_entry *e = &z->entry[z->n++];
        int64_t len = read_central(z->bytes + d.at + at, (size_t)(d.size - at), e, err);
        if (len < 0)
            return (int)len;
        if ((rc = check_local(z, e, d.at, err)) < 0)
            return rc;
        at += (uint64_t)len;
    }
    return check_all(z, err);
}

void zip_release(struct zip *z)
{
    for (size_t i = 0; i < z->n; i++)
        free(z->entry[i].name);
    free(z->entry);
    *z = (struct zip){0};
}

const struct zip_entry *zip_find(const struct zip *z, const char *name)
{
    struct zip_entry key = {.name = (char *)name};
    return z->n ? bsearch(&key, z->entry, z->n, sizeof *z->entry, by_name) : NULL;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static int inflate_entry(const struct zip *z, const struct zip_entry *e, uint8_t *to,
                         struct err *err)
{
    z_stream s = {.next_in = (Bytef *)(z->bytes + e->data), .next_out = to};
    uint64_t in = e->packed, out = e->size;
    int state = inflateInit2(&s, -MAX_WBITS);
    if (state != Z_OK)
        return err_nomem(err, 1 << 16);
    while (state == Z_OK) { /* zlib counts in 32 bits */
        uInt a = in > 1u << 30 ? 1u << 30 : (uInt)in, b = out > 1u << 30 ? 1u << 30 : (uInt)out;
        s.avail_in = a;
        s.avail_out = b;
        state = inflate(&s, Z_NO_FLUSH);
        in -= a - s.avail_in;
        out -= b - s.avail_out;
        if (state == Z_OK && a == s.avail_in && b == s.avail_out)
            state = Z_BUF_ERROR;
    }
    inflateEnd(&s);
    return state == Z_STREAM_END && in == 0 && out == 0
               ? 0
               : err_set(err, ERR_FORMAT, "damaged zip: '%.200s' does not expand", e->name);
}

int zip_read(const struct zip *z, const struct zip_entry *e, const void **data, void **owned,
             struct err *err)
{
    int rc = 0;
    *owned = NULL;
    *data = z->bytes + e->data;
    if (e->method == 8) {
        *owned = malloc((size_t)e->size + 1);
        rc = *owned ? inflate_entry(z, e, *owned, err) : err_nomem(err, (size_t)e->size + 1);
        *data = *owned;
    }
    /* torch can be told to write no checksums, and writes 0 */
    if (rc == 0 && e->crc != 0 && crc32_z(0, *data, (size_t)e->size) != e->crc)
        rc = err_set(err, ERR_FORMAT,
                     "damaged zip: '%.200s' has another checksum: get the file again", e->name);
    if (rc < 0) {
        free(*owned);
        *owned = NULL;
    }
    return rc;
}
