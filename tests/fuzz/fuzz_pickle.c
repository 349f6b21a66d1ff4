/* Fuzzes the reader of torch files. What begins with "P" or a pickle's head is a file as it is. Else the
 * first byte says what the rest is: a pickle, put into a zip or into the older form with storages "0" and
 * "1" beside it; or a recipe, each byte a piece of such a pickle. */
#include "store/tensor_file.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A piece of n bytes, which may hold NULs. */
struct piece {
    const char *at;
    size_t n;
};
#define P(text)                                                                                    \
    {                                                                                              \
        text, sizeof(text) - 1                                                                     \
    }
#define STORAGE(type, key, n)                                                                      \
    "(X\7\0\0\0storagectorch\n" type "Storage\nX\1\0\0\0" key "X\3\0\0\0cpuK" n "tQ"
static const struct piece pieces[] = {
    P("}"),
    P("]"),
    P(")"),
    P("("),
    P("N"),
    P("t"),
    P("l"),
    P("d"),
    P("a"),
    P("e"),
    P("s"),
    P("u"),
    P("R"),
    P("b"),
    P("0"),
    P("\x81"),
    P("\x85"),
    P("\x86"),
    P("\x87"),
    P("\x88"),
    P("\x89"),
    P("\x94"),
    P("q\1"),
    P("h\1"),
    P("h\2"),
    P("p3\n"),
    P("g3\n"),
    P("r\2\0\0\0"),
    P("j\2\0\0\0"),
    P("K\0"),
    P("K\1"),
    P("K\3"),
    P("M\0\1"),
    P("J\xff\xff\xff\xff"),
    P("I12\n"),
    P("I01\n"),
    P("L5L\n"),
    P("\x8a\1\xf0"),
    P("\x8a\x0al\xfc\x9c"
      "F\xf9 j\xa8P\x19"),
    P("G?\xb9\x99\x99\x99\x99\x99\x9a"),
    P("S'text'\n"),
    P("Vtext\n"),
    P("U\1a"),
    P("\x8c\1b"),
    P("X\1\0\0\0c"),
    P("T\2\0\0\0de"),
    P("X\0\0\0\0"),
    P("X\x0b\0\0\0_parameters"),
    P("ccollections\nOrderedDict\n"),
    P("ctorch\nSize\n"),
    P("ctorch._utils\n_rebuild_tensor\n"),
    P("ctorch._utils\n_rebuild_tensor_v2\n"),
    P("ctorch._utils\n_rebuild_parameter\n"),
    P("ctorch.nn.modules.container\nParameterDict\n"),
    P("cbuiltins\nset\n"),
    P("ctorch\nFloatStorage\n"),
    P("cos\nsystem\n"),
    P("ios\nsystem\n"),
    P("\x8c\5torch\x8c\4Size\x93"),
    P("o"),
    P("Q"),
    P("\x95\0\0\0\0\0\0\0\0"),
    P(STORAGE("Float", "0", "\x10")),
    P(STORAGE("Half", "1", "\x20")),
    P(STORAGE("Long", "1", "\x02")),
    P(STORAGE("Byte", "2", "\x02")),
    /* whole tensors: dense, turned, expanded, empty, reaching too far */
    P("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE("Float", "0",
                                                     "\x10") "K\0K\2K\3\x86K\3K\1\x86\x89)tR"),
    P("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE("Half", "1",
                                                     "\x20") "K\1K\2K\3\x86K\1K\2\x86\x89)tR"),
    P("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE("Float", "0",
                                                     "\x10") "K\1K\2K\x7f\x86K\0K\0\x86\x89)tR"),
    P("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE("Float", "0",
                                                     "\x10") "K\0K\0\x85K\1\x85\x89)tR"),
    P("ctorch._utils\n_rebuild_tensor_v2\n(" STORAGE("Float", "0",
                                                     "\x10") "K\x0fK\2\x85K\1\x85\x89)tR"),
    P("ctorch._utils\n_rebuild_tensor\n(" STORAGE("Float", "1", "\x10") "K\0))tR"),
};
#define N_PIECES (sizeof pieces / sizeof *pieces)

struct bytes {
    uint8_t at[1 << 17];
    size_t n;
};

static void put(struct bytes *b, const void *p, size_t n)
{
    if (n)
        memcpy(b->at + b->n, p, n);
    b->n += n;
}

static void put_number(struct bytes *b, uint64_t v, int n)
{
    for (int i = 0; i < n; i++, v >>= 8)
        b->at[b->n++] = (uint8_t)v;
}

static void put_entry(struct bytes *b, struct bytes *dir, const char *name, const void *p, size_t n)
{
    size_t at = b->n, k = strlen(name);
    for (int central = 0; central < 2; central++) {
        struct bytes *to = central ? dir : b;
        put(to, central ? "PK\1\2\0\0" : "PK\3\4", central ? 6 : 4);
        put_number(to, 0, 14); /* version, flags, method, time, checksum */
        put_number(to, n, 4);
        put_number(to, n, 4);
        put_number(to, k, 2);
        put_number(to, 0, central ? 12 : 2);
        if (central)
            put_number(to, at, 4);
        put(to, name, k);
    }
    put(b, p, n);
}

static void make_zip(struct bytes *b, const struct bytes *pickle)
{
    static struct bytes dir;
    uint8_t storage[64];
    memset(storage, 7, sizeof storage);
    b->n = dir.n = 0;
    put_entry(b, &dir, "a/data.pkl", pickle->at, pickle->n);
    put_entry(b, &dir, "a/byteorder", pickle->n % 64 == 1 ? "bigend" : "little", 6);
    put_entry(b, &dir, "a/data/0", storage, 64);
    put_entry(b, &dir, "a/data/1", storage, 64);
    size_t at = b->n;
    put(b, dir.at, dir.n);
    put(b, "PK\5\6\0\0\0\0\4\0\4\0", 12);
    put_number(b, dir.n, 4);
    put_number(b, at, 4);
    put_number(b, 0, 2);
}

static void make_legacy(struct bytes *b, const struct bytes *pickle, uint8_t how)
{
    static const char head[] = "\x80\2\x8a\x0al\xfc\x9c"
                               "F\xf9 j\xa8P\x19.\x80\2M\xe9\3.";
    static const char little[] = "\x80\2}X\x0d\0\0\0little_endian\x88s.";
    b->n = 0;
    put(b, head, sizeof head - 1);
    if (how % 8 == 7)
        b->at[b->n - 3] ^= 1;
    put(b, little, sizeof little - 1 - (how % 8 == 6));
    put(b, pickle->at, pickle->n);
    put(b,
        "\x80\2](X\1\0\0\0"
        "0X\1\0\0\0"
        "1e.",
        how % 8 == 5 ? 3 : 18);
    if (how % 8 == 5)
        put(b, ".", 1);
    put_number(b, 16, 8);
    b->n += 64;
    put_number(b, how % 8 == 4 ? 99 : 32, 8);
    b->n += 64 + (how % 8 == 3);
}

static void check(const uint8_t *bytes, size_t n)
{
    struct tensor_file *f = NULL;
    struct err err = {0};
    size_t size = 0, total = 0;
    unsigned sum = 0;
    uint8_t *copy = malloc(n ? n : 1);
    memcpy(copy, bytes, n);
    int rc = tensor_file_parse(&f, copy, n, &err);
    free(copy); /* a torch file keeps nothing of it */
    if (rc < 0) {
        assert(!f && err.code == rc && *err.msg);
        return;
    }
    if (strcmp(tensor_file_container(f), "safetensors")) {
        const uint8_t *data = tensor_file_data(f, &size);
        for (size_t i = 0; i < size; i++)
            sum += data[i];
        for (size_t i = 0; i < tensor_file_count(f); i++) {
            const struct array *a = tensor_file_at(f, i);
            assert(tensor_file_find(f, tensor_file_name(f, i)) == a);
            assert(!i || strcmp(tensor_file_name(f, i - 1), tensor_file_name(f, i)) < 0);
            assert((const uint8_t *)a->data == data + total);
            total += array_count(a) * dtype_bits(a->dtype) / 8;
        }
        assert(total == size && sum + 1);
        for (size_t i = 0; i < tensor_file_metadata_count(f); i++) {
            const char *key, *value;
            tensor_file_metadata_at(f, i, &key, &value);
            assert(strlen(key) <= 1024 && tensor_file_metadata(f, key) && value);
        }
    }
    tensor_file_close(f);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static struct bytes pickle, file;
    if (size == 0)
        return 0;
    if (data[0] == 'P' || data[0] == 0x80) {
        check(data, size);
        return 0;
    }
    pickle.n = 0;
    put(&pickle, "\x80\2", 2);
    if (data[0] & 1) {
        put(&pickle, data + 1, size - 1);
    } else {
        for (size_t i = 1; i < size && pickle.n < sizeof pickle.at - 4096; i++)
            put(&pickle, pieces[data[i] % N_PIECES].at, pieces[data[i] % N_PIECES].n);
        put(&pickle, ".", 1);
    }
    if (data[0] & 2)
        make_zip(&file, &pickle);
    else
        make_legacy(&file, &pickle, data[0] >> 2);
    check(file.at, file.n);
    return 0;
}
