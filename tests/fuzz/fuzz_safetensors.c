/* Fuzzes safetensors_parse. The first byte chooses what the rest is: a whole file, a header, or
 * recipes for tensors, from which a nearly right file is made. */
#include "memory_file.h"
#include "unet/safetensors.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* A file with this header and n zero bytes after it, in memory of just that size. */
static uint8_t *make(const char *header, size_t len, size_t n, size_t *size)
{
    uint8_t *p = calloc(1, 8 + len + n);
    for (size_t i = 0; i < 8; i++)
        p[i] = (uint8_t)((uint64_t)len >> 8 * i);
    memcpy(p + 8, header, len);
    *size = 8 + len + n;
    return p;
}

static const char *const shapes[] = {
    "[4611686018427387904]",
    "[1099511627776,1099511627776]",
    "[18446744073709551615]",
    "[99999999999999999999]",
    "[-1]",
    "[1.0]",
    "1",
    "[\"1\"]",
    "[[1]]",
    "null",
    "[0,0,0]",
};
static const char *const metadata[] = {
    "{}", "null", "[]", "{\"format\":\"pt\"}", "{\"n\":1}", "{\"\":\"\\u00e9\\n\",\"b\":\"\"}",
};
static const char *const names[] = {
    "",
    "layer.weight.",
    "\\u0061",
    "é",
    "\\ud83c\\udf4e",
    "a name so long that no message can show all of it, ééééééééééééééééééééééééééééééééééé ",
};
#define PICK(list, i) (list)[(i) % (sizeof(list) / sizeof *(list))]

/* Five bytes a tensor: type, first size, dimensions and shape, name, and how its place is wrong. */
static uint8_t *cook(const uint8_t *data, size_t size, size_t *out_size)
{
    char *text = NULL;
    size_t len = 0, at = 0;
    FILE *f = open_memstream(&text, &len);
    fprintf(f, "{\"__metadata__\":%s", PICK(metadata, data[0]));
    for (size_t i = 1; i + 5 <= size && i < 400; i += 5) {
        const uint8_t *d = data + i;
        enum dtype type = (enum dtype)(d[0] % DT_COUNT);
        size_t dim = d[1] % 9, ndim = d[2] % 10;
        size_t bytes = (ndim ? dim : 1) * dtype_bits(type) / 8;
        const char *shape = d[2] < 200 ? NULL : PICK(shapes, d[2]);
        fprintf(f, ",\"%s%c%zu", PICK(names, d[3]), 'a' + d[3] % 26, i % 40);
        fprintf(f, "\":{\"dtype\":\"%s\",\"shape\":", d[4] == 1 ? "F12" : dtype_name(type));
        fprintf(f, "%s", shape ? shape : "[");
        for (size_t k = 0; !shape && k < ndim; k++)
            fprintf(f, "%s%zu", k ? "," : "", k ? 1 : dim);
        fprintf(f, "%s,\"%s\":[%zu,%zu]}", shape ? "" : "]", d[4] == 2 ? "offsets" : "data_offsets",
                at + (d[4] == 3), at + bytes + (d[4] == 4));
        at += bytes;
    }
    for (size_t i = 0; data[0] == 254 && i < 300; i++)
        fputs(i ? "[" : ",\"deep\":", f);
    fputc('}', f);
    fclose(f);
    uint8_t *p = make(text, len, at + (data[0] == 255), out_size);
    free(text);
    return p;
}

/* What must hold for every file that is accepted. */
static void check(const struct safetensors *st)
{
    size_t n_data, used = 0;
    const uint8_t *all = safetensors_data(st, &n_data);
    const char *key, *value;
    char shape[64];
    for (size_t i = 0; i < safetensors_count(st); i++) {
        const struct array *a = safetensors_at(st, i);
        size_t n = array_count(a), bytes = n * dtype_bits(a->dtype) / 8;
        assert(safetensors_find(st, safetensors_name(st, i)) == a);
        assert((const uint8_t *)a->data == all + used && bytes <= n_data - used);
        used += bytes;
        array_shape(a, shape, sizeof shape);
        if (array_readable(a)) {
            float *f = malloc(n * sizeof *f);
            array_to_f32(a, f);
            free(f);
        }
    }
    assert(used == n_data);
    const struct array *any = safetensors_find(st, "conv_in.weight");
    assert(!any || safetensors_count(st) > 0);
    value = safetensors_metadata(st, "format");
    assert(!value || safetensors_metadata_count(st) > 0);
    for (size_t i = 0; i < safetensors_metadata_count(st); i++) {
        safetensors_metadata_at(st, i, &key, &value);
        assert(safetensors_metadata(st, key) == value);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct safetensors *st = NULL;
    struct err err = {0};
    uint8_t *file = NULL;
    size_t n = 0;

    if (size < 2)
        return 0;
    if (data[0] % 3 == 0) {
        n = size - 1;
        file = malloc(n);
        memcpy(file, data + 1, n);
    } else if (data[0] % 3 == 1) {
        file = make((const char *)data + 2, size - 2, data[1], &n);
    } else {
        file = cook(data + 1, size - 1, &n);
    }
    struct memory_file m;
    int rc;
    if (data[0] > 247) { /* now and then from a file */
        memory_file_open(&m, file, n);
        rc = safetensors_open(&st, m.path, &err);
        memory_file_close(&m);
    } else {
        rc = safetensors_parse(&st, file, n, &err);
    }
    assert(rc == err.code && !rc == !!st && !rc == !err.msg[0]);
    if (st)
        check(st);
    safetensors_close(st);
    free(file);
    return 0;
}
