/* Zips as torch writes them, and as nobody honest does. */
#include "store/tensor_file.h"
#include "store/zip.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

/* A zip being built; what is put into the fields is up to the test. */
struct builder {
    uint8_t at[1 << 17];
    size_t n, n_dir;
    uint8_t dir[1 << 13];
    int entries;
};

static void put(uint8_t *to, uint64_t v, int n)
{
    for (int i = 0; i < n; i++)
        to[i] = (uint8_t)(v >> 8 * i);
}

/* An entry; returns where its record in the directory begins. */
static uint8_t *add(struct builder *b, const char *name, int method, const void *bytes, size_t n,
                    size_t size, uint32_t crc)
{
    size_t k = strlen(name);
    uint8_t *l = b->at + b->n, *c = b->dir + b->n_dir;
    memset(l, 0, 30);
    memset(c, 0, 46);
    memcpy(l, "PK\3\4", 4);
    put(l + 8, (uint64_t)method, 2);
    put(l + 14, crc, 4);
    put(l + 18, n, 4);
    put(l + 22, size, 4);
    put(l + 26, k, 2);
    memcpy(l + 30, name, k);
    memcpy(l + 30 + k, bytes, n);
    memcpy(c, "PK\1\2", 4);
    memcpy(c + 10, l + 8, 2);
    memcpy(c + 16, l + 14, 14);
    put(c + 42, b->n, 4);
    memcpy(c + 46, name, k);
    b->n += 30 + k + n;
    b->n_dir += 46 + k;
    b->entries++;
    return c;
}

static uint8_t *store(struct builder *b, const char *name, const void *bytes, size_t n)
{
    return add(b, name, 0, bytes, n, n, (uint32_t)crc32(0, bytes, (uInt)n));
}

/* Directory and end. Returns the end's record. */
static uint8_t *finish(struct builder *b)
{
    size_t at = b->n;
    memcpy(b->at + b->n, b->dir, b->n_dir);
    uint8_t *e = b->at + b->n + b->n_dir;
    memset(e, 0, 22);
    memcpy(e, "PK\5\6", 4);
    put(e + 8, (uint64_t)b->entries, 2);
    put(e + 10, (uint64_t)b->entries, 2);
    put(e + 12, b->n_dir, 4);
    put(e + 16, at, 4);
    b->n += b->n_dir + 22;
    return e;
}

/* Opens and reads all; NULL: must be fine. */
static void check(const struct builder *b, const char *phrase)
{
    struct zip z;
    struct err err = {0};
    uint8_t *copy = malloc(b->n ? b->n : 1);
    memcpy(copy, b->at, b->n);
    int rc = zip_open(&z, copy, b->n, &err);
    for (size_t i = 0; i < z.n && rc == 0; i++) {
        const void *data;
        void *owned;
        rc = zip_read(&z, &z.entry[i], &data, &owned, &err);
        free(owned);
    }
    zip_release(&z);
    free(copy);
    cr_expect_eq(rc == 0, phrase == NULL, "%s: %s", phrase ? phrase : "honest",
                 rc ? err.msg : "accepted");
    if (phrase && rc < 0)
        cr_expect(strstr(err.msg, phrase), "says: %s\nnot: %s", err.msg, phrase);
}

static struct builder *honest(void)
{
    struct builder *b = calloc(1, sizeof *b);
    store(b, "archive/data.pkl", "\x80\x02}.", 4);
    store(b, "archive/data/0", "01234567", 8);
    return b;
}

Test(zip, honest)
{
    struct builder *b = honest();
    finish(b);
    check(b, NULL);
    /* with a comment behind it */
    memcpy(b->at + b->n, "hello", 5);
    put(b->at + b->n - 2, 5, 2);
    b->n += 5;
    check(b, NULL);
    /* a checksum of 0 is none */
    struct zip z;
    struct err err;
    memset(b, 0, sizeof *b);
    add(b, "a", 0, "xyz", 3, 3, 0);
    finish(b);
    cr_assert_eq(zip_open(&z, b->at, b->n, &err), 0, "%s", err.msg);
    cr_expect(zip_find(&z, "a") && !zip_find(&z, "b") && !zip_find(&z, ""));
    zip_release(&z);
    memset(b, 0, sizeof *b);
    finish(b);
    check(b, NULL); /* an empty one */
    free(b);
}

Test(zip, cut_short_at_every_byte)
{
    struct builder *b = honest();
    finish(b);
    for (size_t n = b->n; n-- > 0;) {
        b->n = n;
        check(b, "damaged zip");
    }
    free(b);
}

/* Any one byte changed: it may be read, but never beyond its end (under a sanitizer). */
Test(zip, any_byte_changed)
{
    struct builder *b = honest();
    struct err err;
    finish(b);
    int refused = 0;
    for (size_t i = 0; i < b->n; i++)
        for (int bit = 0; bit < 8; bit++) {
            struct tensor_file *f = NULL;
            b->at[i] ^= (uint8_t)(1 << bit);
            refused += tensor_file_parse(&f, b->at, b->n, &err) < 0;
            tensor_file_close(f);
            b->at[i] ^= (uint8_t)(1 << bit);
        }
    cr_expect_gt(refused, 500, "%d", refused);
    free(b);
}

Test(zip, names_that_climb)
{
    static const char *const names[] = {"../x",     "/etc/passwd", "a/../../x", "a/..",
                                        "a\\..\\x", "..",          ""};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++) {
        struct builder *b = calloc(1, sizeof *b);
        store(b, names[i], "x", 1);
        finish(b);
        check(b, "refused");
        free(b);
    }
    struct builder *b = calloc(1, sizeof *b);
    store(b, "a..b/..c/...", "x", 1);
    finish(b);
    check(b, NULL);
    free(b);
}

Test(zip, what_is_refused_by_name)
{
    struct builder *b = honest();
    uint8_t *c = store(b, "secret", "x", 1);
    put(c + 8, 1, 2);
    finish(b);
    check(b, "an encrypted zip ('secret')");

    memset(b, 0, sizeof *b);
    add(b, "a", 14, "x", 1, 1, 0);
    finish(b);
    check(b, "packed with method 14");

    memset(b, 0, sizeof *b);
    store(b, "a", "x", 1);
    uint8_t *e = finish(b);
    put(e + 4, 1, 2);
    check(b, "in several parts");

    memset(b, 0, sizeof *b);
    store(b, "a", "x", 1);
    store(b, "a", "y", 1);
    finish(b);
    check(b, "two entries 'a'");

    memset(b, 0, sizeof *b);
    store(b, "aa", "x", 1)[46] = 'b';
    finish(b);
    check(b, "directory says 'ba' where the entry says 'aa'");

    memset(b, 0, sizeof *b);
    add(b, "a", 0, "xyz", 3, 3, 1);
    finish(b);
    check(b, "another checksum");
    free(b);
}

Test(zip, entries_that_overlap)
{
    struct builder *b = calloc(1, sizeof *b);
    uint8_t inner[64] = {0};
    /* the bytes of one hold the other, header and all */
    memcpy(inner, "PK\3\4", 4);
    put(inner + 18, 4, 4);
    put(inner + 22, 4, 4);
    put(inner + 26, 1, 2);
    inner[30] = 'b';
    store(b, "a", inner, sizeof inner);
    uint8_t *c = b->dir + b->n_dir;
    memset(c, 0, 46);
    memcpy(c, "PK\1\2", 4);
    put(c + 20, 4, 4);
    put(c + 24, 4, 4);
    put(c + 28, 1, 2);
    put(c + 42, 31, 4);
    c[46] = 'b';
    b->n_dir += 47;
    b->entries++;
    finish(b);
    check(b, "overlap");
    free(b);
}

Test(zip, two_pickles)
{
    struct builder *b = honest();
    struct tensor_file *f = NULL;
    struct err err = {0};
    store(b, "other/data.pkl", "\x80\x02}.", 4);
    finish(b);
    cr_expect_eq(tensor_file_parse(&f, b->at, b->n, &err), ERR_FORMAT);
    cr_expect(strstr(err.msg, "two pickles, 'archive/data.pkl' and 'other/data.pkl'"), "%s",
              err.msg);
    tensor_file_close(f);
    free(b);
}

/* 64 MB of zeros in a file of 64 KB: refused before a byte is expanded. */
Test(zip, bombs)
{
    struct builder *b = calloc(1, sizeof *b);
    uint8_t *packed = malloc(1 << 17), *zeros = calloc(1, 1 << 20);
    z_stream s = {.next_out = packed, .avail_out = 1 << 17};
    cr_assert_eq(deflateInit2(&s, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY), Z_OK);
    for (int i = 0; i < 64; i++) {
        s.next_in = zeros;
        s.avail_in = 1 << 20;
        deflate(&s, i == 63 ? Z_FINISH : Z_NO_FLUSH);
    }
    size_t n = s.total_out;
    deflateEnd(&s);
    add(b, "data.pkl", 8, packed, n, 64u << 20, 0);
    finish(b);
    check(b, "would expand to more than");
    /* the same, said to be small; and said to be larger than it is */
    memset(b, 0, sizeof *b);
    add(b, "data.pkl", 8, packed, n, 1000, 0);
    finish(b);
    check(b, "does not expand");
    memset(b, 0, sizeof *b);
    add(b, "data.pkl", 8, "\x03\x00", 2, 1000, 0);
    finish(b);
    check(b, "does not expand");
    memset(b, 0, sizeof *b);
    add(b, "data.pkl", 8, "\x03\x00", 2, 0, 0);
    finish(b);
    check(b, NULL);
    free(packed);
    free(zeros);
    free(b);
}

/* One entry whose sizes and place stand in the extra field, and the directory's in zip64's record. */
Test(zip, zip64)
{
    struct builder *b = calloc(1, sizeof *b);
    uint8_t *c = store(b, "a", "0123456789", 10);
    put(c + 20, 0xffffffff, 4);
    put(c + 24, 0xffffffff, 4);
    put(c + 42, 0xffffffff, 4);
    put(c + 30, 28, 2);
    uint8_t *x = c + 47;
    put(x, 1, 2);
    put(x + 2, 24, 2);
    put(x + 4, 10, 8);
    put(x + 12, 10, 8);
    put(x + 20, 0, 8);
    b->n_dir += 28;
    size_t dir = b->n, n_dir = b->n_dir;
    memcpy(b->at + b->n, b->dir, n_dir);
    uint8_t *e = b->at + dir + n_dir;
    memset(e, 0, 56 + 20 + 22);
    memcpy(e, "PK\6\6", 4);
    put(e + 24, 1, 8);
    put(e + 32, 1, 8);
    put(e + 40, n_dir, 8);
    put(e + 48, dir, 8);
    memcpy(e + 56, "PK\6\7", 4);
    put(e + 64, dir + n_dir, 8);
    memcpy(e + 76, "PK\5\6", 4);
    put(e + 84, 0xffff, 2);
    put(e + 86, 0xffff, 2);
    put(e + 88, 0xffffffff, 4);
    put(e + 92, 0xffffffff, 4);
    b->n = dir + n_dir + 98;
    check(b, NULL);
    put(e + 84, 7, 2); /* the two directories disagree */
    put(e + 86, 7, 2);
    check(b, "two directories");
    put(e + 84, 0xffff, 2);
    put(e + 86, 0xffff, 2);
    put(e + 64, 1u << 30, 8);
    check(b, "the zip64 record is not where");
    e[57] = 'Q';
    check(b, "the zip64 record is missing");
    free(b);
}
