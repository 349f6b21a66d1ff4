#include "safetensors.h"

#include "file.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The reference writer puts types in this order, the widest first, and equal types by name. */
static const uint8_t rank[DT_COUNT] = {
    [DT_U64] = 0,          [DT_I64] = 1,      [DT_F64] = 2,      [DT_C64] = 3,
    [DT_F32] = 4,          [DT_U32] = 5,      [DT_I32] = 6,      [DT_BF16] = 7,
    [DT_F16] = 8,          [DT_U16] = 9,      [DT_I16] = 10,     [DT_F8_E5M2FNUZ] = 11,
    [DT_F8_E4M3FNUZ] = 12, [DT_F8_E8M0] = 13, [DT_F8_E4M3] = 14, [DT_F8_E5M2] = 15,
    [DT_I8] = 16,          [DT_U8] = 17,      [DT_F6_E3M2] = 18, [DT_F6_E2M3] = 19,
    [DT_F4] = 20,          [DT_BOOL] = 21,
};

static int compare_items(const void *va, const void *vb)
{
    const struct safetensors_item *const *a = va, *const *b = vb;
    int by_type = rank[(*a)->a.dtype] - rank[(*b)->a.dtype];
    return by_type ? by_type : strcmp((*a)->name, (*b)->name);
}

static size_t item_bytes(const struct safetensors_item *item)
{
    assert(item->a.ndim <= ARRAY_MAX_DIMS);
    return array_count(&item->a) * dtype_bits(item->a.dtype) / 8;
}

/* A JSON string, with the escapes the reference writer uses. */
static void put_string(FILE *f, const char *s)
{
    static const char escape[32] = {
        ['\b'] = 'b', ['\f'] = 'f', ['\n'] = 'n', ['\r'] = 'r', ['\t'] = 't'};
    fputc('"', f);
    for (; *s; s++) {
        unsigned char c = (unsigned char)*s;
        if (c == '"' || c == '\\')
            fprintf(f, "\\%c", c);
        else if (c < 32 && escape[c])
            fprintf(f, "\\%c", escape[c]);
        else if (c < 32)
            fprintf(f, "\\u%04x", c);
        else
            fputc(c, f);
    }
    fputc('"', f);
}

static void put_item(FILE *f, const struct safetensors_item *item, uint64_t begin, uint64_t end)
{
    put_string(f, item->name);
    fprintf(f, ":{\"dtype\":\"%s\",\"shape\":[", dtype_name(item->a.dtype));
    for (int i = 0; i < item->a.ndim; i++)
        fprintf(f, "%s%" PRIu64, i ? "," : "", item->a.dim[i]);
    fprintf(f, "],\"data_offsets\":[%" PRIu64 ",%" PRIu64 "]}", begin, end);
}

/* The header with its length in front, padded with spaces so that the data is aligned to 8. */
static int make_header(char **out, size_t *size, const struct safetensors_item **item, size_t n,
                       const char *const (*metadata)[2], size_t n_meta, struct err *err)
{
    uint64_t at = 0;
    FILE *f = open_memstream(out, size);
    if (!f)
        return err_nomem(err, 0);
    fputs("LENGTH..{", f);
    for (size_t i = 0; i < n_meta; i++) {
        fputs(i ? "," : "\"__metadata__\":{", f);
        put_string(f, metadata[i][0]);
        fputc(':', f);
        put_string(f, metadata[i][1]);
    }
    if (n_meta)
        fputs(n ? "}," : "}", f);
    for (size_t i = 0; i < n; i++) {
        uint64_t end = at + item_bytes(item[i]);
        if (i)
            fputc(',', f);
        put_item(f, item[i], at, end);
        at = end;
    }
    fputc('}', f);
    for (off_t end = ftello(f); end > 0 && end % 8; end++)
        fputc(' ', f);
    int failed = ferror(f);
    if (fclose(f) || failed || !*out)
        return err_nomem(err, *size);
    for (int i = 0; i < 8; i++)
        (*out)[i] = (char)((uint64_t)(*size - 8) >> 8 * i);
    return 0;
}

int safetensors_write(const char *path, const struct safetensors_item *item, size_t n,
                      const char *const (*metadata)[2], size_t n_meta, struct err *err)
{
    const struct safetensors_item **sorted = NULL;
    struct safetensors *check = NULL;
    char *header = NULL, *bytes = NULL;
    size_t size = 0, at = 0;
    int rc = 0;

    sorted = malloc((n + 1) * sizeof *sorted);
    if (!sorted) {
        rc = err_nomem(err, (n + 1) * sizeof *sorted);
        goto out;
    }
    for (size_t i = 0; i < n; i++)
        sorted[i] = &item[i];
    qsort(sorted, n, sizeof *sorted, compare_items);
    rc = make_header(&header, &at, sorted, n, metadata, n_meta, err);
    if (rc < 0)
        goto out;
    size = at;
    for (size_t i = 0; i < n; i++)
        size += item_bytes(&item[i]);
    bytes = malloc(size);
    if (!bytes) {
        rc = err_nomem(err, size);
        goto out;
    }
    memcpy(bytes, header, at);
    for (size_t i = 0; i < n; i++) {
        size_t len = item_bytes(sorted[i]);
        assert(sorted[i]->a.data || !len);
        if (len)
            memcpy(bytes + at, sorted[i]->a.data, len);
        at += len;
    }
    /* Our own reader judges names, shapes and limits before anything reaches the disk. */
    rc = safetensors_parse(&check, bytes, size, err);
    if (rc < 0) {
        err_prefix(err, "%s: cannot be written", path);
        goto out;
    }
    rc = file_replace(path, bytes, size, err);
out:
    safetensors_close(check);
    free(sorted);
    free(header);
    free(bytes);
    return rc;
}
