#include "tests/shared.h"
#include "unet/file.h"
#include "unet/safetensors.h"

#include <ftw.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>

/* A file made of a header and a number of data bytes 0, 1, 2, … */
static char *make(const char *header, size_t n_data, size_t *size)
{
    size_t n = strlen(header);
    char *p = malloc(8 + n + n_data);
    for (size_t i = 0; i < 8; i++)
        p[i] = (char)((uint64_t)n >> 8 * i);
    memcpy(p + 8, header, n);
    for (size_t i = 0; i < n_data; i++)
        p[8 + n + i] = (char)i;
    *size = 8 + n + n_data;
    return p;
}

/* Parses a header with data bytes after it. A phrase of NULL means it must be accepted. */
static void check(const char *header, size_t n_data, const char *phrase)
{
    struct safetensors *st = NULL;
    struct err err = {0};
    size_t size;
    char *bytes = make(header, n_data, &size);
    int rc = safetensors_parse(&st, bytes, size, &err);
    if (phrase) {
        cr_assert_lt(rc, 0, "%.200s was accepted", header);
        cr_assert_null(st);
        cr_assert_eq(err.code, rc);
        cr_assert_not_null(strstr(err.msg, phrase), "%.200s\nsays: %s\nnot: %s", header, err.msg,
                           phrase);
        cr_assert_null(strchr(err.msg, '\n'), "more than one line: %s", err.msg);
    } else {
        cr_assert_eq(rc, 0, "%.200s: %s", header, err.msg);
    }
    safetensors_close(st);
    free(bytes);
}

#define T(name, dtype, shape, from, to)                                                            \
    "\"" name "\":{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":[" #from "," #to   \
    "]}"

Test(safetensors, accepts)
{
    check("{}", 0, NULL);
    check("{}   \n\t ", 0, NULL);
    check("  {}", 0, NULL);
    check("{" T("a", "F32", "[]", 0, 4) "}", 4, NULL);
    check("{" T("a", "F32", "[0,3]", 0, 0) "}", 0, NULL);
    check("{" T("", "F32", "[1,2]", 0, 8) "}", 8, NULL);
    check("{" T("b", "U8", "[2]", 1, 3) "," T("a", "U8", "[1]", 0, 1) "}", 3, NULL);
    check("{\"__metadata__\":null}", 0, NULL);
    check("{\"__metadata__\":{}}", 0, NULL);
    check("{\"a\":{\"data_offsets\":[0,1],\"new\":[{}],\"shape\":[1],\"dtype\":\"U8\"}}", 1, NULL);
    check("{" T("a", "F4", "[2]", 0, 1) "," T("b", "F6_E2M3", "[4]", 1, 4) "}", 4, NULL);
    check("{" T("a", "U8", "[1,1,1,1,1,1,1,1]", 0, 1) "}", 1, NULL);
}

Test(safetensors, refuses_unreadable_headers)
{
    static const char *const bad[] = {
        "",
        "x",
        "[]",
        "1",
        "null",
        "{",
        "{}x",
        "{\"a\"}",
        "{'a':1}",
        "\xef\xbb\xbf{}",
        "{\"a\":1}",
        "{\"a\":null}",
        "{\"a\":[\"U8\",[1],[0,1]]}",
        "{\"a\":{}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1]}}",
        "{\"a\":{\"dtype\":8,\"shape\":[1],\"data_offsets\":[0,1]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":1,\"data_offsets\":[0,1]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1,1]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":{\"0\":0,\"1\":1}}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[-1,0]}}",
        "{\"a\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,\"1\"]}}",
        "{" T("a", "U8", "[1.0]", 0, 1) "}",
        "{" T("a", "U8", "[1e0]", 0, 1) "}",
        "{" T("a", "U8", "[-1]", 0, 1) "}",
        "{" T("a", "U8", "[01]", 0, 1) "}",
        "{" T("a", "U8", "[\"1\"]", 0, 1) "}",
        "{" T("a", "U8", "[null]", 0, 1) "}",
        "{" T("a\\u0000b", "U8", "[1]", 0, 1) "}",
        "{" T("a\\ud800", "U8", "[1]", 0, 1) "}",
        "{" T("a\nb", "U8", "[1]", 0, 1) "}",
        "{\"__metadata__\":[]}",
        "{\"__metadata__\":null,\"a\":null}",
        "{\"__metadata__\":{\"a\":1}}",
        "{\"__metadata__\":{\"a\":null}}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        check(bad[i], 1, "unreadable header");
    check("{" T("conv_in", "F9", "[1]", 0, 1) "}", 1, "\"conv_in\" has dtype \"F9\"");
    check("{" T("a", "f32", "[1]", 0, 4) "}", 4, "unreadable header");
}

Test(safetensors, refuses_names_that_occur_twice)
{
    check("{" T("a", "U8", "[1]", 0, 1) "," T("a", "U8", "[1]", 0, 1) "}", 1, "occurs twice");
    check("{" T("a", "U8", "[1]", 0, 1) "," T("\\u0061", "U8", "[1]", 1, 2) "}", 2, "occurs twice");
    check("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}", 0, "occurs twice");
    check("{\"__metadata__\":{},\"__metadata__\":{}}", 0, "occurs twice");
    check("{\"a\":{\"dtype\":\"U8\",\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
          "occurs twice");
}

Test(safetensors, refuses_broken_encoding)
{
    check("\xff", 0, "invalid header: not UTF-8");
    check("{\"\xc3\":1}", 0, "invalid header: not UTF-8");
    check("{\"\xed\xa0\x80\":1}", 0, "invalid header: not UTF-8");
    check("{\"\xc0\x80\":1}", 0, "invalid header: not UTF-8");
    check("{}\xf4\x90\x80\x80", 0, "invalid header: not UTF-8");
}

Test(safetensors, refuses_wrong_places)
{
    check("{" T("a", "U8", "[1]", 1, 2) "}", 2, "invalid offset: tensor \"a\"");
    check("{" T("a", "U8", "[2]", 0, 2) "," T("b", "U8", "[2]", 1, 3) "}", 3,
          "invalid offset: tensor \"b\"");
    check("{" T("a", "U8", "[2]", 0, 2) "," T("b", "U8", "[2]", 3, 5) "}", 5,
          "invalid offset: tensor \"b\"");
    check("{" T("a", "U8", "[2]", 0, 2) "," T("b", "U8", "[2]", 0, 2) "}", 2, "invalid offset");
    check("{" T("a", "U8", "[2]", 2, 0) "}", 2, "invalid offset: tensor \"a\"");
    check("{" T("a", "U8", "[0]", 0, 0) "," T("b", "U8", "[3]", 2, 1) "}", 2, "invalid offset");
    check("{" T("a", "U8", "[2]", 0, 2) "," T("b", "U8", "[3]", 2, 1) "}", 2,
          "invalid offset: tensor \"b\"");
    check("{" T("a", "U8", "[2]", 0, 9223372036854775807) "}", 2, "invalid tensor size");
    check("{" T("a", "U8", "[2]", 0, 1) "}", 1, "invalid tensor size: \"a\" with shape [2] of U8");
    check("{" T("a", "F32", "[2]", 0, 4) "}", 4, "invalid tensor size");
    check("{" T("a", "F32", "[0]", 0, 4) "}", 4, "invalid tensor size");
    check("{" T("a", "F4", "[3]", 0, 1) "}", 1, "misaligned: tensor \"a\"");
    check("{" T("a", "F6_E3M2", "[2]", 0, 1) "}", 1, "misaligned: tensor \"a\"");
    check("{" T("a", "U8", "[3]", 0, 3) "}", 2, "incomplete buffer");
    check("{" T("a", "U8", "[3]", 0, 3) "}", 4, "incomplete buffer");
    check("{}", 1, "incomplete buffer");
}

Test(safetensors, refuses_numbers_that_overflow)
{
    check("{" T("a", "U8", "[2,9223372036854775807]", 0, 1) "}", 1, "size overflow: tensor \"a\"");
    check("{" T("a", "F64", "[1152921504606846976]", 0, 1) "}", 1, "size overflow");
    check("{" T("a", "F32", "[4611686018427387904,4,0]", 0, 0) "}", 0, "size overflow");
    check("{" T("a", "U8", "[9223372036854775808]", 0, 1) "}", 1, "size overflow: too big");
    check("{" T("a", "U8", "[99999999999999999999999]", 0, 1) "}", 1, "size overflow: too big");
    check("{" T("a", "U8", "[1,1,1,1,1,1,1,1,1]", 0, 1) "}", 1, "9 dimensions");
}

Test(safetensors, refuses_lengths_that_do_not_fit)
{
    static const struct {
        const char *bytes, *phrase;
        size_t size;
    } bad[] = {
        {"", "header too small", 0},
        {"\2\0\0\0\0\0\0", "header too small", 7},
        {"\1\0\0\0\0\0\0\0", "invalid header length", 8},
        {"\3\0\0\0\0\0\0\0{}", "invalid header length", 10},
        {"\1\xe1\xf5\5\0\0\0\0{}", "header too large", 10},
        {"\0\xe1\xf5\5\0\0\0\0{}", "invalid header length", 10},
        {"\xff\xff\xff\xff\xff\xff\xff\xff{}", "header too large", 10},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct safetensors *st = NULL;
        struct err err = {0};
        cr_assert_eq(safetensors_parse(&st, bad[i].bytes, bad[i].size, &err), ERR_FORMAT);
        cr_assert_null(st);
        cr_assert_not_null(strstr(err.msg, bad[i].phrase), "%s", err.msg);
        cr_assert_not_null(strstr(err.msg, "not a safetensors file"), "%s", err.msg);
    }
}

Test(safetensors, says_what_other_files_are)
{
    static const char *const kinds[][2] = {
        {"<!DOCTYPE html><html>", "a web page"},
        {"{\"adapter\": 1, \"r\": 4}", "a JSON file"},
        {"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"},
        {"GGUF\3aaaaaaa", "a GGUF file"},
        {"PK\3\4\24aaaaaaa", "a PyTorch file (zip)"},
        {"\x80\2}q\1aaaaaaa", "a PyTorch file (pickle)"},
        {"aaaaaaaaaaaa", "damaged or of another kind"},
    };
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        struct safetensors *st = NULL;
        struct err err = {0};
        cr_assert_eq(safetensors_parse(&st, kinds[i][0], strlen(kinds[i][0]), &err), ERR_FORMAT);
        cr_assert_not_null(strstr(err.msg, kinds[i][1]), "%s", err.msg);
    }
}

/* A cut file whose header is as long as "<" or "{" is no web page and no JSON. */
Test(safetensors, a_length_is_not_taken_for_text)
{
    static const char *const cut[] = {"<\0\0\0\0\0\0\0{", "{\0\0\0\0\0\0\0{",
                                      "\x80\2\0\0\0\0\0\0{"};
    for (size_t i = 0; i < 3; i++) {
        struct safetensors *st = NULL;
        struct err err = {0};
        cr_assert_eq(safetensors_parse(&st, cut[i], 9, &err), ERR_FORMAT);
        cr_assert_not_null(strstr(err.msg, "invalid header length"), "%s", err.msg);
        cr_assert_not_null(strstr(err.msg, "damaged"), "%s", err.msg);
    }
}

/* Small files that would cost a JSON parser a lot of memory. */
Test(safetensors, refuses_headers_that_cost_too_much)
{
    enum { N = 1200000 };
    char *many = malloc(3 * N + 8), *p = many;
    memset(many, '[', N);
    many[N] = 0;
    check(many, 0, "nested too deep");
    p += sprintf(p, "{\"a\":[0");
    for (int i = 0; i < N; i++)
        p += sprintf(p, ",0");
    check(many, 0, "too many tensors or values");
    for (int i = 0; i < N; i++)
        memcpy(many + 3 * i, "{},", 3);
    many[3 * N] = 0;
    check(many, 0, "too many tensors or values");
    free(many);
}

/* Brackets and commas in a text are no values, and an escaped quote does not end it. */
Test(safetensors, long_texts_are_not_counted_as_values)
{
    enum { N = 1200000 };
    char *many = malloc(N + 64);
    int n = sprintf(many, "{\"__metadata__\":{\"k\\\"[[[[[\\\\\":\"");
    memset(many + n, ',', N);
    memset(many + n, '[', 500);
    strcpy(many + n + N, "\"}}");
    check(many, 0, NULL);
    free(many);
}

Test(safetensors, messages_cut_names_and_stay_on_a_line)
{
    struct safetensors *st = NULL;
    struct err err = {0};
    char header[1000];
    size_t size;
    snprintf(header, sizeof header, "{\"x\\n%s\":{}}",
             "éééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééééé");
    char *bytes = make(header, 0, &size);
    cr_assert_eq(safetensors_parse(&st, bytes, size, &err), ERR_FORMAT);
    cr_assert_not_null(strstr(err.msg, "\"x?é"), "%s", err.msg);
    cr_assert_not_null(strstr(err.msg, "é…\""), "%s", err.msg);
    cr_assert_lt(strlen(err.msg), 300);
    free(bytes);
}

Test(safetensors, hands_out_arrays_by_place_and_by_name)
{
    struct safetensors *st = NULL;
    struct err err = {0};
    size_t size, n_data;
    const char *key, *value;
    char *bytes = make("{\"__metadata__\":{\"format\":\"pt\",\"é\":\"a\\nb\"},"
                       "\"w\":{\"dtype\":\"U16\",\"shape\":[2,1],\"data_offsets\":[3,7]}, " T(
                           "z", "U8", "[3]", 0, 3) "," T("a", "F32", "[0]", 7, 7) "}",
                       7, &size);
    cr_assert_eq(safetensors_parse(&st, bytes, size, &err), 0, "%s", err.msg);
    cr_assert_eq(safetensors_count(st), 3);
    cr_assert_str_eq(safetensors_name(st, 0), "z");
    cr_assert_str_eq(safetensors_name(st, 1), "w");
    cr_assert_str_eq(safetensors_name(st, 2), "a");
    for (size_t i = 0; i < 3; i++)
        cr_assert_eq(safetensors_find(st, safetensors_name(st, i)), safetensors_at(st, i));
    cr_assert_null(safetensors_find(st, "y"));
    cr_assert_null(safetensors_find(st, ""));
    cr_assert_null(safetensors_find(st, "__metadata__"));

    const struct array *w = safetensors_find(st, "w");
    float f[2];
    cr_assert_eq(w->dtype, DT_U16);
    cr_assert_eq(w->ndim, 2);
    cr_assert_eq(w->dim[0], 2);
    cr_assert_eq(w->dim[1], 1);
    array_to_f32(w, f);
    cr_assert_eq(f[0], 0x0403);
    cr_assert_eq(f[1], 0x0605);

    cr_assert_eq(safetensors_data(st, &n_data), (void *)(bytes + size - 7));
    cr_assert_eq(n_data, 7);
    cr_assert_eq(safetensors_metadata_count(st), 2);
    safetensors_metadata_at(st, 1, &key, &value);
    cr_assert_str_eq(key, "é");
    cr_assert_str_eq(value, "a\nb");
    cr_assert_str_eq(safetensors_metadata(st, "format"), "pt");
    cr_assert_null(safetensors_metadata(st, "Format"));
    safetensors_close(st);
    free(bytes);
}

/* ---- files ---------------------------------------------------------------------------------- */

static char dir[64], path[128];

static void make_dir(void)
{
    strcpy(dir, "/tmp/weft-test-XXXXXX");
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/a.safetensors", dir);
}

static void remove_dir(void)
{
    unlink(path);
    cr_assert_eq(rmdir(dir), 0, "something was left behind in %s", dir);
}

Test(safetensors, open_says_which_file_and_why, .init = make_dir, .fini = remove_dir)
{
    struct safetensors *st = NULL;
    struct err err = {0};
    cr_assert_eq(safetensors_open(&st, path, &err), ERR_IO);
    cr_assert_eq(strncmp(err.msg, path, strlen(path)), 0, "%s", err.msg);
    cr_assert_eq(safetensors_open(&st, dir, &err), ERR_IO);
    cr_assert_not_null(strstr(err.msg, "not a regular file"), "%s", err.msg);
    cr_assert_eq(mkfifo(path, 0600), 0);
    cr_assert_eq(safetensors_open(&st, path, &err), ERR_IO);
    unlink(path);
    cr_assert_eq(file_replace(path, "", 0, &err), 0);
    cr_assert_eq(safetensors_open(&st, path, &err), ERR_FORMAT);
    cr_assert_eq(strncmp(err.msg, path, strlen(path)), 0, "%s", err.msg);
    cr_assert_not_null(strstr(err.msg, "header too small"), "%s", err.msg);
    cr_assert_eq(safetensors_open(&st, path, NULL), ERR_FORMAT);
    cr_assert_null(st);
}

/* The list in tests/golden/safetensors_writer.py. Byte k of tensor i is 31 i + k. */
static struct safetensors_item golden[] = {
    {"z.weight", {.dtype = DT_F32, .ndim = 2, .dim = {2, 3}}},
    {"a.weight", {.dtype = DT_F32, .ndim = 1, .dim = {5}}},
    {"scalar", {.dtype = DT_F32}},
    {"empty", {.dtype = DT_F32, .ndim = 2, .dim = {0, 4}}},
    {"half", {.dtype = DT_F16, .ndim = 2, .dim = {3, 1}}},
    {"brain", {.dtype = DT_BF16, .ndim = 3, .dim = {2, 2, 2}}},
    {"double", {.dtype = DT_F64, .ndim = 1, .dim = {2}}},
    {"i64", {.dtype = DT_I64, .ndim = 1, .dim = {1}}},
    {"i32", {.dtype = DT_I32, .ndim = 1, .dim = {1}}},
    {"i16", {.dtype = DT_I16, .ndim = 1, .dim = {3}}},
    {"i8", {.dtype = DT_I8, .ndim = 1, .dim = {3}}},
    {"u64", {.dtype = DT_U64, .ndim = 1, .dim = {1}}},
    {"u32", {.dtype = DT_U32, .ndim = 1, .dim = {1}}},
    {"u16", {.dtype = DT_U16, .ndim = 1, .dim = {1}}},
    {"u8", {.dtype = DT_U8, .ndim = 1, .dim = {5}}},
    {"truth", {.dtype = DT_BOOL, .ndim = 1, .dim = {1}}},
    {"complex", {.dtype = DT_C64, .ndim = 1, .dim = {1}}},
    {"f8.a", {.dtype = DT_F8_E5M2, .ndim = 1, .dim = {2}}},
    {"f8.b", {.dtype = DT_F8_E4M3, .ndim = 1, .dim = {2}}},
    {"f8.c", {.dtype = DT_F8_E8M0, .ndim = 1, .dim = {2}}},
    {"f8.d", {.dtype = DT_F8_E4M3FNUZ, .ndim = 1, .dim = {2}}},
    {"f8.e", {.dtype = DT_F8_E5M2FNUZ, .ndim = 1, .dim = {2}}},
    {"odd \"name\"\\\n\x1f\x7fé/日", {.dtype = DT_I8, .ndim = 1, .dim = {1}}},
};
enum { N_GOLDEN = sizeof golden / sizeof *golden };

Test(safetensors, writes_what_the_reference_writes, .init = make_dir, .fini = remove_dir)
{
    static uint8_t data[N_GOLDEN][64];
    static const char *const meta[][2] = {{"format", "pt\tü\x0b"}};
    struct err err = {0};
    char *ours = NULL, *theirs = NULL;
    size_t n_ours, n_theirs;
    for (size_t i = 0; i < N_GOLDEN; i++) {
        for (size_t k = 0; k < sizeof data[i]; k++)
            data[i][k] = (uint8_t)(31 * i + k);
        golden[i].a.data = data[i];
    }
    cr_assert_eq(safetensors_write(path, golden, N_GOLDEN, meta, 1, &err), 0, "%s", err.msg);
    cr_assert_eq(file_read(&ours, &n_ours, path, 1 << 20, &err), 0);
    cr_assert_eq(
        file_read(&theirs, &n_theirs, "tests/golden/data/writer.safetensors", 1 << 20, &err), 0,
        "%s", err.msg);
    cr_assert_eq(n_ours, n_theirs, "%.*s\n%.*s", (int)n_ours, ours + 8, (int)n_theirs, theirs + 8);
    cr_assert_arr_eq(ours, theirs, n_ours);
    free(ours);
    free(theirs);
}

Test(safetensors, what_is_written_can_be_read, .init = make_dir, .fini = remove_dir)
{
    static const float w[] = {1, 2, 3, 4, 5, 6};
    static const uint8_t packed[] = {0x12, 0x34};
    static const char *const meta[][2] = {{"b", "2"}, {"a", ""}, {"\"\\\b\f\n\r\t\x1f", "ключ"}};
    struct safetensors_item items[] = {
        {"packed", {.dtype = DT_F4, .ndim = 1, .dim = {4}, .data = packed}},
        {"w", {.dtype = DT_F32, .ndim = 2, .dim = {2, 3}, .data = w}},
        {"none", {.dtype = DT_F32, .ndim = 1}},
    };
    struct safetensors *st = NULL;
    struct err err = {0};
    size_t size;
    for (int n = 0; n <= 3; n++) {
        for (int n_meta = 0; n_meta <= 3; n_meta++) {
            cr_assert_eq(safetensors_write(path, items, (size_t)n, meta, (size_t)n_meta, &err), 0,
                         "%s", err.msg);
            cr_assert_eq(safetensors_open(&st, path, &err), 0, "%s", err.msg);
            cr_assert_eq(safetensors_count(st), n);
            cr_assert_eq(safetensors_metadata_count(st), n_meta);
            for (int i = 0; i < n_meta; i++)
                cr_assert_str_eq(safetensors_metadata(st, meta[i][0]), meta[i][1]);
            for (int i = 0; i < n; i++) {
                const struct array *a = safetensors_find(st, items[i].name);
                cr_assert_not_null(a);
                cr_assert_eq(a->dtype, items[i].a.dtype);
                cr_assert_eq(a->ndim, items[i].a.ndim);
                cr_assert_arr_eq(a->dim, items[i].a.dim, sizeof a->dim);
                size = array_count(a) * dtype_bits(a->dtype) / 8;
                cr_assert_eq(memcmp(a->data, size ? items[i].a.data : "", size), 0);
            }
            const void *data = safetensors_data(st, &size);
            cr_assert_eq((uintptr_t)data % 8, 0, "the header is padded");
            safetensors_close(st);
        }
    }
}

Test(safetensors, does_not_write_what_it_would_not_read, .init = make_dir, .fini = remove_dir)
{
    static const uint8_t data[8];
    struct array byte = {.dtype = DT_U8, .ndim = 1, .dim = {1}, .data = data};
    struct array nibble = {.dtype = DT_F4, .ndim = 1, .dim = {1}, .data = data};
    struct safetensors_item twice[] = {{"a", byte}, {"a", {.dtype = DT_F32, .data = data}}};
    struct safetensors_item latin1[] = {{"caf\xe9", byte}}, meta_name[] = {{"__metadata__", byte}};
    struct safetensors_item half_byte[] = {{"a", nibble}}, good[] = {{"a", byte}};
    static const char *const same[][2] = {{"k", "1"}, {"k", "2"}};
    struct err err = {0};
    cr_assert_eq(safetensors_write(path, twice, 2, NULL, 0, &err), ERR_FORMAT);
    cr_assert_not_null(strstr(err.msg, "occurs twice"), "%s", err.msg);
    cr_assert_eq(strncmp(err.msg, path, strlen(path)), 0, "%s", err.msg);
    cr_assert_lt(safetensors_write(path, latin1, 1, NULL, 0, &err), 0);
    cr_assert_lt(safetensors_write(path, meta_name, 1, NULL, 0, &err), 0);
    cr_assert_lt(safetensors_write(path, meta_name, 1, same, 1, &err), 0);
    cr_assert_lt(safetensors_write(path, half_byte, 1, NULL, 0, &err), 0);
    cr_assert_lt(safetensors_write(path, good, 1, same, 2, &err), 0);
    cr_assert_lt(access(path, F_OK), 0, "a file was left behind");
    cr_assert_eq(safetensors_write("/nowhere/a.safetensors", good, 1, NULL, 0, &err), ERR_IO);
}

/* ---- files from outside ---------------------------------------------------------------------- */

/* The reference reader's error classes in our words. */
static const char *phrase_of(const char *class)
{
    static const char *const words[][2] = {
        {"HeaderTooSmall", "header too small"},
        {"HeaderTooLarge", "header too large"},
        {"InvalidHeaderLength", "invalid header length"},
        {"InvalidHeader", "invalid header: not UTF-8"},
        {"InvalidHeaderDeserialization", "unreadable header"},
        {"InvalidOffset", "invalid offset"},
        {"ValidationOverflow", "size overflow"},
        {"MisalignedSlice", "misaligned"},
        {"TensorInvalidInfo", "invalid tensor size"},
        {"MetadataIncompleteBuffer", "incomplete buffer"},
    };
    for (size_t i = 0; i < sizeof words / sizeof *words; i++)
        if (!strcmp(words[i][0], class))
            return words[i][1];
    return NULL;
}

Test(safetensors, malformed_files_get_the_reference_verdict)
{
    char list[PATH_MAX], file[PATH_MAX], line[512], name[256], verdict[64];
    struct safetensors *st = NULL;
    struct err err = {0};
    int n = 0;
    FILE *f =
        fopen(shared_path(list, sizeof list, "containers/safetensors_malformed/EXPECTED.tsv"), "r");
    cr_assert_not_null(fgets(line, sizeof line, f));
    while (fgets(line, sizeof line, f)) {
        cr_assert_eq(sscanf(line, "%255s %*s %63s", name, verdict), 2, "%s", line);
        snprintf(file, sizeof file, "%.*s%s", (int)(strrchr(list, '/') - list + 1), list, name);
        int rc = safetensors_open(&st, file, &err);
        if (!strcmp(verdict, "OK")) {
            cr_assert_eq(rc, 0, "%s", err.msg);
            safetensors_close(st);
        } else {
            cr_assert_lt(rc, 0, "%s was accepted", name);
            cr_assert_not_null(strstr(err.msg, phrase_of(verdict)), "%s: %s", verdict, err.msg);
        }
        n++;
    }
    fclose(f);
    cr_assert_gt(n, 15);
}

static bool ends_with(const char *s, const char *end)
{
    size_t n = strlen(s), m = strlen(end);
    return n >= m && !strcmp(s + n - m, end);
}

static int n_good, n_bad;

static int visit(const char *file, const struct stat *sb, int type, struct FTW *at)
{
    struct safetensors *st = NULL;
    struct err err = {0};
    (void)sb;
    (void)at;
    if (type != FTW_F || strstr(file, "safetensors_malformed"))
        return 0;
    int rc = safetensors_open(&st, file, &err);
    safetensors_close(st);
    if (ends_with(file, "duplicate_keys_in_header.safetensors")) {
        cr_assert_eq(rc, ERR_FORMAT);
        cr_assert_not_null(strstr(err.msg, "occurs twice"), "%s", err.msg);
    } else if (ends_with(file, "safetensors_abuse_attempt_1.safetensors")) {
        cr_assert_eq(rc, ERR_FORMAT);
        cr_assert_not_null(strstr(err.msg, "invalid header length"), "%s", err.msg);
    } else if (ends_with(file, ".safetensors")) {
        cr_assert_eq(rc, 0, "%s", err.msg);
        n_good++;
    } else {
        cr_assert_eq(rc, ERR_FORMAT, "%s was accepted", file);
        cr_assert_not_null(strstr(err.msg, "not a safetensors file"), "%s", err.msg);
        if (ends_with(file, ".zip") || strstr(file, "candle"))
            cr_assert_not_null(strstr(err.msg, "PyTorch file (zip)"), "%s", err.msg);
        n_bad++;
    }
    return 0;
}

Test(safetensors, every_outside_container_gets_its_verdict)
{
    char top[PATH_MAX];
    nftw(shared_path(top, sizeof top, "containers"), visit, 8, FTW_PHYS);
    cr_assert_gt(n_good, 20);
    cr_assert_gt(n_bad, 10);
}

Test(safetensors, names_what_pytorch_files_are)
{
    char file[PATH_MAX];
    struct safetensors *st = NULL;
    struct err err = {0};
    shared_path(file, sizeof file, "containers/mmaitre314+picklescan/tests/data/pytorch_model.bin");
    cr_assert_eq(safetensors_open(&st, file, &err), ERR_FORMAT);
    cr_assert_not_null(strstr(err.msg, "PyTorch file (pickle)"), "%s", err.msg);
}
