#include "safetensors.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <utf8proc.h>

#define HEADER_MAX 100000000u /* bytes, as the reference reader has it */
#define DEPTH_MAX  127        /* nested lists and objects, the same */
#define VALUES_MAX 1000000 /* JSON values: a hundred thousand tensors, 300 MB to parse at worst */
#define SHOWN_MAX  96      /* bytes of a name from the file that a message may show */

struct entry {
    const char *name;
    struct array a;
    uint64_t begin, end; /* of its bytes, from the start of the data */
};

struct pair {
    const char *key, *value;
};

struct safetensors {
    void *map; /* NULL where the bytes are the caller's */
    size_t map_size;
    const uint8_t *data;
    size_t data_size;
    struct entry *entry; /* n, in the order of their bytes */
    const struct entry **by_name;
    size_t n;
    struct pair *meta;
    size_t n_meta;
    char *text; /* names and metadata, one string after the other */
};

/* Text of the file made fit for a message: cut, and without what would break the line. */
static const char *shown(const char *s, char buf[SHOWN_MAX + 4])
{
    size_t n = 0;
    for (; n < SHOWN_MAX && s[n]; n++)
        buf[n] = s[n];
    if (s[n]) {
        while (n > 0 && ((unsigned char)s[n] & 0xc0) == 0x80) /* not inside a character */
            n--;
        memcpy(buf + n, "…", 3);
        n += 3;
    }
    buf[n] = 0;
    return buf;
}

/* What the first bytes of a file that is no safetensors file look like. Where they could as well be
 * the length of a header, nothing is said. */
static const char *kind_hint(const uint8_t *p, size_t size)
{
    static const struct {
        const char *magic, *hint;
    } kinds[] = {
        {"PK\3\4", "this is a PyTorch file (zip), convert it to safetensors"},
        {"GGUF", "this is a GGUF file, convert it to safetensors"},
        {"version https://git-lfs", "this is a Git LFS pointer, fetch the file itself"},
        {"<", "this is a web page, download the file again"},
        {"{", "this is a JSON file"},
    };
    if (size >= 8 && p[0] == 0x80 && p[1] >= 2 && p[1] <= 5 && p[2])
        return "this is a PyTorch file (pickle), convert it to safetensors";
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) {
        size_t n = strlen(kinds[i].magic);
        if (size >= 8 && size >= n && !memcmp(p, kinds[i].magic, n) && memcmp(p + 4, "\0\0\0", 4))
            return kinds[i].hint;
    }
    return "it is damaged or of another kind, get it again or convert it";
}

/* Finds the header's length. Errors: header too small, header too large, invalid header length. */
static int find_header(const uint8_t *p, size_t size, size_t *header, struct err *err)
{
    if (size < 8)
        return err_set(err, ERR_FORMAT,
                       "not a safetensors file: header too small (%zu bytes in all): %s", size,
                       kind_hint(p, size));
    uint64_t n = 0;
    for (int i = 0; i < 8; i++)
        n |= (uint64_t)p[i] << 8 * i;
    if (n > HEADER_MAX)
        return err_set(err, ERR_FORMAT,
                       "not a safetensors file: header too large (%" PRIu64
                       " bytes, at most %u): %s",
                       n, HEADER_MAX, kind_hint(p, size));
    if (n > size - 8)
        return err_set(err, ERR_FORMAT,
                       "not a safetensors file: invalid header length (%" PRIu64
                       " bytes, %zu are there): %s",
                       n, size - 8, kind_hint(p, size));
    *header = (size_t)n;
    return 0;
}

static bool is_utf8(const char *s, size_t n)
{
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)s;
    for (size_t i = 0; i < n;) {
        utf8proc_int32_t c;
        utf8proc_ssize_t len = p[i] < 0x80 ? 1 : utf8proc_iterate(p + i, (ptrdiff_t)(n - i), &c);
        if (len < 1)
            return false;
        i += (size_t)len;
    }
    return true;
}

/* The JSON parser spends up to 300 bytes on a value that takes three in the file, so values are
 * counted before it sees them. */
static int check_amount(const char *p, size_t n, struct err *err)
{
    size_t values = 0, depth = 0;
    bool quoted = false;
    for (size_t i = 0; i < n; i++) {
        char c = p[i];
        if (quoted && c == '\\') {
            i++;
        } else if (c == '"') {
            quoted = !quoted;
        } else if (!quoted) {
            values += c == ',' || c == '{' || c == '[';
            depth += c == '{' || c == '[';
            depth -= (c == '}' || c == ']') && depth > 0;
        }
        if (depth > DEPTH_MAX || values > VALUES_MAX)
            return err_set(err, ERR_FORMAT, "unreadable header: %s",
                           depth > DEPTH_MAX ? "nested too deep" : "too many tensors or values");
    }
    return 0;
}

static int parse_json(json_t **root, const char *p, size_t n, struct err *err)
{
    json_error_t je;
    char buf[SHOWN_MAX + 4];

    if (!is_utf8(p, n))
        return err_set(err, ERR_FORMAT, "invalid header: not UTF-8");
    int rc = check_amount(p, n, err);
    if (rc < 0)
        return rc;
    *root = json_loadb(p, n, JSON_REJECT_DUPLICATES, &je);
    if (!*root && !je.text[0]) /* how jansson says that memory ran out */
        return err_nomem(err, n);
    if (!*root) {
        switch (json_error_code(&je)) {
        case json_error_duplicate_key:
            return err_set(err, ERR_FORMAT, "unreadable header: a name occurs twice: %s",
                           shown(je.text, buf));
        case json_error_numeric_overflow:
            return err_set(err, ERR_FORMAT, "size overflow: %s", shown(je.text, buf));
        default:
            return err_set(err, ERR_FORMAT, "unreadable header: not JSON, at byte %d: %s",
                           je.position, shown(je.text, buf));
        }
    }
    if (!json_is_object(*root))
        return err_set(err, ERR_FORMAT, "unreadable header: not a JSON object");
    return 0;
}

static bool take_size(const json_t *v, uint64_t *out)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0)
        return false;
    *out = (uint64_t)json_integer_value(v);
    return true;
}

static int read_entry(struct entry *e, const json_t *v, struct err *err)
{
    char buf[SHOWN_MAX + 4], buf2[SHOWN_MAX + 4];
    const json_t *dtype = json_object_get(v, "dtype"), *shape = json_object_get(v, "shape");
    const json_t *offsets = json_object_get(v, "data_offsets");

    if (!json_is_string(dtype) || !json_is_array(shape) || json_array_size(offsets) != 2 ||
        !take_size(json_array_get(offsets, 0), &e->begin) ||
        !take_size(json_array_get(offsets, 1), &e->end))
        return err_set(err, ERR_FORMAT,
                       "unreadable header: tensor \"%s\" is not described by a dtype, a shape and "
                       "two data_offsets",
                       shown(e->name, buf));
    int type = dtype_parse(json_string_value(dtype));
    if (type < 0)
        return err_set(
            err, ERR_UNSUPPORTED,
            "unreadable header: tensor \"%s\" has dtype \"%s\", which weft does not know",
            shown(e->name, buf), shown(json_string_value(dtype), buf2));
    if (json_array_size(shape) > ARRAY_MAX_DIMS)
        return err_set(err, ERR_UNSUPPORTED, "tensor \"%s\" has %zu dimensions, weft takes %d",
                       shown(e->name, buf), json_array_size(shape), ARRAY_MAX_DIMS);
    e->a.dtype = (enum dtype)type;
    e->a.ndim = (int)json_array_size(shape);
    for (int i = 0; i < e->a.ndim; i++)
        if (!take_size(json_array_get(shape, (size_t)i), &e->a.dim[i]))
            return err_set(err, ERR_FORMAT,
                           "unreadable header: the shape of tensor \"%s\" is not a list of sizes",
                           shown(e->name, buf));
    return 0;
}

/* __metadata__ may be missing or null; otherwise every value in it is a string. */
static int check_metadata(const json_t *root, size_t *text, struct err *err)
{
    char buf[SHOWN_MAX + 4];
    const char *key;
    json_t *meta = json_object_get(root, "__metadata__"), *v;

    if (meta && !json_is_object(meta) && !json_is_null(meta))
        return err_set(err, ERR_FORMAT, "unreadable header: __metadata__ is not an object");
    json_object_foreach(meta, key, v)
    {
        if (!json_is_string(v))
            return err_set(err, ERR_FORMAT,
                           "unreadable header: the value of \"%s\" in __metadata__ is not a string",
                           shown(key, buf));
        *text += strlen(key) + json_string_length(v) + 2;
    }
    return 0;
}

static const char *keep(char **end, const char *s)
{
    size_t n = strlen(s) + 1;
    char *at = memcpy(*end, s, n);
    *end += n;
    return at;
}

/* Copies names and metadata out of the JSON, whose own memory is ten times that. */
static int read_header(struct safetensors *st, const json_t *root, struct err *err)
{
    const char *key;
    json_t *v, *meta = json_object_get(root, "__metadata__");
    size_t text = 1, n = json_object_size(root), n_meta = json_object_size(meta);

    int rc = check_metadata(root, &text, err);
    if (rc < 0)
        return rc;
    json_object_foreach((json_t *)root, key, v) text += strlen(key) + 1;
    st->text = malloc(text);
    st->entry = calloc(n + 1, sizeof *st->entry);
    st->by_name = calloc(n + 1, sizeof *st->by_name);
    st->meta = calloc(n_meta + 1, sizeof *st->meta);
    if (!st->text || !st->entry || !st->by_name || !st->meta)
        return err_nomem(err, text + (n + 1) * sizeof *st->entry);

    char *end = st->text;
    json_object_foreach(meta, key, v)
    {
        st->meta[st->n_meta].key = keep(&end, key);
        st->meta[st->n_meta++].value = keep(&end, json_string_value(v));
    }
    json_object_foreach((json_t *)root, key, v)
    {
        if (!strcmp(key, "__metadata__"))
            continue;
        struct entry *e = &st->entry[st->n++];
        e->name = keep(&end, key);
        rc = read_entry(e, v, err);
        if (rc < 0)
            return rc;
    }
    return 0;
}

/* The bytes an array takes. Returns -1 where the count overflows and -2 where sub-byte values do
 * not end on a byte. */
static int array_bytes(const struct array *a, uint64_t *bytes)
{
    uint64_t bits = 1;
    for (int i = 0; i < a->ndim; i++)
        if (__builtin_mul_overflow(bits, a->dim[i], &bits))
            return -1;
    if (__builtin_mul_overflow(bits, dtype_bits(a->dtype), &bits))
        return -1;
    *bytes = bits / 8;
    return bits % 8 ? -2 : 0;
}

/* The bytes of the tensors must lie end to end and fill the data: nothing shared, nothing spare. */
static int check_places(const struct safetensors *st, struct err *err)
{
    char buf[SHOWN_MAX + 4], dims[128];
    uint64_t at = 0, bytes = 0;
    for (size_t i = 0; i < st->n; i++) {
        const struct entry *e = &st->entry[i];
        if (e->begin != at || e->end < at)
            return err_set(err, ERR_FORMAT,
                           "invalid offset: tensor \"%s\" is said to lie at %" PRIu64 " to %" PRIu64
                           ", the one before it ends at %" PRIu64,
                           shown(e->name, buf), e->begin, e->end, at);
        at = e->end;
        array_shape(&e->a, dims, sizeof dims);
        int bad = array_bytes(&e->a, &bytes);
        if (bad == -1)
            return err_set(err, ERR_FORMAT, "size overflow: tensor \"%s\" has shape %s",
                           shown(e->name, buf), dims);
        if (bad)
            return err_set(err, ERR_FORMAT,
                           "misaligned: tensor \"%s\" with shape %s of %s does not end on a byte",
                           shown(e->name, buf), dims, dtype_name(e->a.dtype));
        if (bytes != e->end - e->begin)
            return err_set(err, ERR_FORMAT,
                           "invalid tensor size: \"%s\" with shape %s of %s needs %" PRIu64
                           " bytes and has %" PRIu64,
                           shown(e->name, buf), dims, dtype_name(e->a.dtype), bytes,
                           e->end - e->begin);
    }
    if (at != st->data_size)
        return err_set(err, ERR_FORMAT,
                       "incomplete buffer: the tensors take %" PRIu64 " bytes, %zu are there: the "
                       "file %s",
                       at, st->data_size,
                       at > st->data_size ? "is cut short, get it again"
                                          : "has something after its end");
    return 0;
}

/* The name settles the order of empty tensors, which may share a place. */
static int compare_places(const void *va, const void *vb)
{
    const struct entry *a = va, *b = vb;
    if (a->begin != b->begin)
        return a->begin < b->begin ? -1 : 1;
    if (a->end != b->end)
        return a->end < b->end ? -1 : 1;
    return strcmp(a->name, b->name);
}

static int compare_names(const void *va, const void *vb)
{
    const struct entry *const *a = va, *const *b = vb;
    return strcmp((*a)->name, (*b)->name);
}

int safetensors_parse(struct safetensors **out, const void *bytes, size_t size, struct err *err)
{
    struct safetensors *st = NULL;
    json_t *root = NULL;
    size_t header = 0;

    *out = NULL;
    int rc = find_header(bytes, size, &header, err);
    if (rc < 0)
        goto out;
    rc = parse_json(&root, (const char *)bytes + 8, header, err);
    if (rc < 0)
        goto out;
    st = calloc(1, sizeof *st);
    if (!st) {
        rc = err_nomem(err, sizeof *st);
        goto out;
    }
    st->data = (const uint8_t *)bytes + 8 + header;
    st->data_size = size - 8 - header;
    rc = read_header(st, root, err);
    if (rc < 0)
        goto out;
    qsort(st->entry, st->n, sizeof *st->entry, compare_places);
    rc = check_places(st, err);
    if (rc < 0)
        goto out;
    for (size_t i = 0; i < st->n; i++) {
        st->entry[i].a.data = st->data + st->entry[i].begin;
        st->by_name[i] = &st->entry[i];
    }
    qsort(st->by_name, st->n, sizeof *st->by_name, compare_names);
    *out = st;
    st = NULL;
out:
    json_decref(root);
    safetensors_close(st);
    return rc;
}

int safetensors_open(struct safetensors **out, const char *path, struct err *err)
{
    void *map = NULL;
    size_t size = 0;
    struct stat sb;
    int rc = 0;

    *out = NULL;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    if (fd < 0)
        return err_set(err, ERR_IO, "%s: %s", path, strerror(errno));
    if (fstat(fd, &sb) < 0 || !S_ISREG(sb.st_mode)) {
        rc = err_set(err, ERR_IO, "%s: not a regular file", path);
        goto out;
    }
    size = (size_t)sb.st_size;
    if (size > 0) {
        map = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (map == MAP_FAILED) {
            rc = err_set(err, ERR_IO, "%s: cannot be mapped: %s", path, strerror(errno));
            map = NULL;
            goto out;
        }
    }
    rc = safetensors_parse(out, map, size, err);
    if (rc < 0) {
        err_prefix(err, "%s", path);
        goto out;
    }
    (*out)->map = map;
    (*out)->map_size = size;
    map = NULL;
out:
    if (map)
        munmap(map, size);
    close(fd);
    return rc;
}

void safetensors_close(struct safetensors *st)
{
    if (!st)
        return;
    if (st->map)
        munmap(st->map, st->map_size);
    free(st->entry);
    free(st->by_name);
    free(st->meta);
    free(st->text);
    free(st);
}

size_t safetensors_count(const struct safetensors *st)
{
    return st->n;
}

const char *safetensors_name(const struct safetensors *st, size_t i)
{
    assert(i < st->n);
    return st->entry[i].name;
}

const struct array *safetensors_at(const struct safetensors *st, size_t i)
{
    assert(i < st->n);
    return &st->entry[i].a;
}

ptrdiff_t safetensors_index(const struct safetensors *st, const char *name)
{
    struct entry key = {.name = name};
    const struct entry *k = &key, **found;
    found = bsearch(&k, st->by_name, st->n, sizeof *st->by_name, compare_names);
    return found ? *found - st->entry : -1;
}

const struct array *safetensors_find(const struct safetensors *st, const char *name)
{
    ptrdiff_t i = safetensors_index(st, name);
    return i < 0 ? NULL : &st->entry[i].a;
}

const char *safetensors_metadata(const struct safetensors *st, const char *key)
{
    for (size_t i = 0; i < st->n_meta; i++)
        if (!strcmp(st->meta[i].key, key))
            return st->meta[i].value;
    return NULL;
}

size_t safetensors_metadata_count(const struct safetensors *st)
{
    return st->n_meta;
}

void safetensors_metadata_at(const struct safetensors *st, size_t i, const char **key,
                             const char **value)
{
    assert(i < st->n_meta);
    *key = st->meta[i].key;
    *value = st->meta[i].value;
}

const void *safetensors_data(const struct safetensors *st, size_t *size)
{
    *size = st->data_size;
    return st->data;
}
