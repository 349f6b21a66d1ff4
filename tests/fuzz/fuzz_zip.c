/* Fuzzes the zip reader. What begins with "P" is a file as it is; else it is a recipe for a nearly right
 * one: four bytes an entry say its name, method, sizes and what is wrong with it, the last one what is
 * wrong at the end. */
#include "store/zip.h"

#include <assert.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const names[] = {
    "archive/data.pkl", "archive/data/0", "a", "b", "../a", "/a", "a\\b", "a/..", "",
    "archive/data/0"};

struct builder {
    uint8_t at[1 << 16], dir[1 << 14];
    size_t n, n_dir;
    unsigned entries;
};

static void put(uint8_t *to, uint64_t v, int n)
{
    for (int i = 0; i < n; i++)
        to[i] = (uint8_t)(v >> 8 * i);
}

/* d: name, method and flags, size, fault */
static void add(struct builder *b, const uint8_t *d)
{
    const char *name = names[d[0] % (sizeof names / sizeof *names)];
    uint8_t plain[256], packed[512], *l = b->at + b->n, *c = b->dir + b->n_dir;
    uLongf n = sizeof packed;
    size_t k = strlen(name), size = d[2];
    memset(plain, d[3], sizeof plain);
    unsigned method = d[1] % 4 == 0 ? 8 : d[1] % 4 == 1 ? 12 : 0, fault = d[3] % 16;
    if (method == 8) { /* zlib's form without its two bytes in front and four behind */
        compress2(packed, &n, plain, size, 9);
        n -= 6;
        memmove(packed, packed + 2, n);
    } else {
        memcpy(packed, plain, n = size);
    }
    bool wide = d[1] & 16;
    memset(l, 0, 30);
    memset(c, 0, 46);
    memcpy(l, "PK\3\4", 4);
    put(l + 6, d[1] & 32 ? 8 : fault == 1, 2);
    put(l + 8, method, 2);
    put(l + 14, d[1] & 64 ? 0 : crc32(0, plain, (uInt)size), 4);
    put(l + 18, n, 4);
    put(l + 22, size, 4);
    put(l + 26, k, 2);
    memcpy(l + 30, name, k);
    memcpy(l + 30 + k, packed, n);
    memcpy(c, "PK\1\2", 4);
    memcpy(c + 8, l + 6, 2);
    memcpy(c + 10, l + 8, 2);
    memcpy(c + 16, l + 14, 14);
    put(c + 42, b->n, 4);
    memcpy(c + 46, name, k);
    if (wide) {
        uint8_t *x = c + 46 + k;
        put(c + 30, 28, 2);
        put(x, 1, 2);
        put(x + 2, 24, 2);
        put(x + 4, size, 8);
        put(x + 12, n, 8);
        put(x + 20, b->n, 8);
        memset(c + 20, 0xff, 8);
        memset(c + 42, 0xff, 4);
    }
    static const struct {
        uint8_t at, n;
    } fields[] = {{20, 4}, {24, 4}, {28, 2}, {30, 2}, {42, 4}, {10, 2}, {8, 2}, {16, 4}, {0, 4}};
    if (fault >= 2 && fault < 11)
        c[fields[fault - 2].at] ^= (uint8_t)(d[0] | 1);
    if (fault == 11)
        l[30] ^= 1;
    if (fault == 12)
        put(c + 24, 1u << 30, 4);
    b->n += 30 + k + n;
    b->n_dir += 46 + k + (wide ? 28 : 0);
    b->entries++;
}

static void finish(struct builder *b, uint8_t how)
{
    size_t at = b->n, n = b->n_dir;
    memcpy(b->at + at, b->dir, n);
    uint8_t *e = b->at + at + n;
    memset(e, 0, 56 + 20 + 22 + 8);
    if (how & 1) {
        memcpy(e, "PK\6\6", 4);
        put(e + 24, b->entries, 8);
        put(e + 32, b->entries + (how >> 4 == 1), 8);
        put(e + 40, n, 8);
        put(e + 48, at + (how >> 4 == 2), 8);
        memcpy(e + 56, "PK\6\7", 4);
        put(e + 64, at + n + (how >> 4 == 3), 8);
        e += 76;
    }
    memcpy(e, "PK\5\6", 4);
    put(e + 4, how >> 4 == 4, 2);
    put(e + 8, how & 2 ? 0xffff : b->entries, 2);
    put(e + 10, how & 2 ? 0xffff : b->entries, 2);
    put(e + 12, how & 4 ? 0xffffffff : n, 4);
    put(e + 16, how & 8 ? 0xffffffff : at + (how >> 4 == 5), 4);
    put(e + 20, how >> 4 == 6 ? 3 : 0, 2);
    b->n = (size_t)(e - b->at) + 22 + (how >> 4 == 6 ? 3 : 0);
}

static void check(const uint8_t *bytes, size_t n)
{
    struct zip z;
    struct err err = {0};
    unsigned sum = 0;
    uint8_t *copy = malloc(n ? n : 1);
    memcpy(copy, bytes, n);
    int rc = zip_open(&z, copy, n, &err);
    assert(rc == 0 || (err.code == rc && *err.msg));
    for (size_t i = 0; i < z.n && rc == 0; i++) {
        const struct zip_entry *e = &z.entry[i];
        const void *out = NULL;
        void *owned = NULL;
        assert(*e->name && zip_find(&z, e->name) == e && e->data + e->packed <= n);
        if (zip_read(&z, e, &out, &owned, &err) == 0)
            for (uint64_t k = 0; k < e->size; k++)
                sum += ((const uint8_t *)out)[k];
        else
            assert(!owned);
        free(owned);
    }
    assert(rc < 0 || (!zip_find(&z, "no such entry") && sum < UINT32_MAX));
    zip_release(&z);
    free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct builder b;
    if (size && data[0] == 'P') {
        check(data, size);
        return 0;
    }
    b.n = b.n_dir = b.entries = 0;
    size_t i = 0;
    for (; i + 4 < size && b.entries < 60; i += 4)
        add(&b, data + i);
    finish(&b, i < size ? data[i] : 0);
    check(b.at, b.n);
    return 0;
}
