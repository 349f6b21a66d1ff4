#include "pickle.h"

#include "pickle_machine.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define VALUES_MAX 2000000 /* of one file: 180 MB at worst */
#define ITEMS_MAX  4000000
#define STACK_MAX  1000000
#define MEMO_MAX   1000000
#define BLOCK      512

#define CUT "it is cut short"

/* ---- values ---------------------------------------------------------------------------------- */

struct pickle_block {
    struct pickle_block *next;
    size_t n;
    struct pickle_value value[BLOCK];
};

void pickle_open(struct pickle *p)
{
    *p = (struct pickle){0};
}

void pickle_release(struct pickle *p)
{
    while (p->block) {
        struct pickle_block *b = p->block;
        p->block = b->next;
        for (size_t i = 0; i < b->n; i++)
            free(b->value[i].item);
        free(b);
    }
    *p = (struct pickle){0};
}

int machine_bad(struct machine *m, const char *what)
{
    return err_set(m->err, ERR_FORMAT, "damaged pickle at byte %zu: %s", (size_t)(m->at - m->begin),
                   what);
}

/* A new value; NULL sets the error. */
struct pickle_value *machine_make(struct machine *m, enum pickle_kind kind)
{
    struct pickle *p = m->p;
    if (p->n_value >= VALUES_MAX) {
        err_set(m->err, ERR_FORMAT, "a pickle of more than %d values", VALUES_MAX);
        return NULL;
    }
    if (!p->block || p->block->n == BLOCK) {
        struct pickle_block *b = malloc(sizeof *b);
        if (!b) {
            err_nomem(m->err, sizeof *b);
            return NULL;
        }
        b->next = p->block;
        b->n = 0;
        p->block = b;
    }
    p->n_value++;
    struct pickle_value *v = &p->block->value[p->block->n++];
    *v = (struct pickle_value){.kind = kind};
    return v;
}

static int grow(struct machine *m, struct pickle_value ***list, size_t n, size_t *cap)
{
    if (n < *cap)
        return 0;
    size_t want = *cap ? 2 * *cap : 4;
    void *p = realloc(*list, want * sizeof **list);
    if (!p)
        return err_nomem(m->err, want * sizeof **list);
    *list = p;
    *cap = want;
    return 0;
}

int machine_append(struct machine *m, struct pickle_value *to, struct pickle_value *v)
{
    if (m->p->n_item >= ITEMS_MAX)
        return err_set(m->err, ERR_FORMAT, "a pickle of more than %d items", ITEMS_MAX);
    int rc = grow(m, &to->item, to->n, &to->cap);
    m->p->n_item++;
    if (rc == 0)
        to->item[to->n++] = v;
    return rc;
}

int machine_push(struct machine *m, struct pickle_value *v)
{
    if (!v)
        return m->err ? m->err->code : ERR_FORMAT;
    if (m->n >= STACK_MAX)
        return machine_bad(m, "its stack is too deep");
    int rc = grow(m, &m->stack, m->n, &m->cap);
    if (rc == 0)
        m->stack[m->n++] = v;
    return rc;
}

int machine_push_kind(struct machine *m, enum pickle_kind kind, int64_t i)
{
    struct pickle_value *v = machine_make(m, kind);
    if (v)
        v->i = i;
    return machine_push(m, v);
}

static int push_text(struct machine *m, enum pickle_kind kind, const void *s, size_t n)
{
    struct pickle_value *v = machine_make(m, kind);
    if (v) {
        v->text = s;
        v->n = n;
    }
    return machine_push(m, v);
}

/* The topmost value, which is no mark. NULL sets the error. */
struct pickle_value *machine_pop(struct machine *m)
{
    if (m->n == 0 || m->stack[m->n - 1]->kind == PICKLE_MARK) {
        machine_bad(m, "its stack is empty");
        return NULL;
    }
    return m->stack[--m->n];
}

/* The place after the topmost mark, or -1. */
static ptrdiff_t find_mark(struct machine *m)
{
    for (size_t i = m->n; i > 0; i--)
        if (m->stack[i - 1]->kind == PICKLE_MARK)
            return (ptrdiff_t)i;
    machine_bad(m, "a mark is missing");
    return -1;
}

/* ---- arguments ------------------------------------------------------------------------------- */

static bool take(struct machine *m, size_t n, uint64_t *v)
{
    if ((size_t)(m->end - m->at) < n)
        return false;
    *v = 0;
    for (size_t i = 0; i < n; i++)
        *v |= (uint64_t)m->at[i] << 8 * i;
    m->at += n;
    return true;
}

/* A length of `width` bytes and so many bytes. */
static int take_bytes(struct machine *m, size_t width, const char **s, size_t *n)
{
    uint64_t len;
    if (!take(m, width, &len) || len > (uint64_t)(m->end - m->at))
        return machine_bad(m, CUT);
    *s = (const char *)m->at;
    *n = (size_t)len;
    m->at += len;
    return 0;
}

/* The rest of a line, without its end. */
int machine_line(struct machine *m, const char **s, size_t *n)
{
    const uint8_t *nl = memchr(m->at, '\n', (size_t)(m->end - m->at));
    if (!nl)
        return machine_bad(m, "a line has no end");
    *s = (const char *)m->at;
    *n = (size_t)(nl - m->at);
    m->at = nl + 1;
    return 0;
}

/* A decimal number on a line, as protocol 0 has it: "12", "12L". */
static int take_decimal(struct machine *m, int64_t *v)
{
    const char *s = NULL;
    char buf[24], *end;
    size_t n = 0;
    int rc = machine_line(m, &s, &n);
    if (rc < 0)
        return rc;
    n -= n > 0 && s[n - 1] == 'L';
    if (n == 0 || n >= sizeof buf)
        return machine_bad(m, "a number it cannot be");
    memcpy(buf, s, n);
    buf[n] = 0;
    errno = 0;
    *v = strtoll(buf, &end, 10);
    return *end || errno || buf[strspn(buf, "-0123456789")]
               ? machine_bad(m, "a number it cannot be")
               : 0;
}

/* LONG1: two's complement of any length. */
static int push_long(struct machine *m)
{
    const char *s = NULL;
    size_t n = 0;
    int rc = take_bytes(m, 1, &s, &n);
    if (rc < 0)
        return rc;
    if (n > 8)
        return push_text(m, PICKLE_LONG, s, n);
    uint64_t v = n && (uint8_t)s[n - 1] & 0x80 ? UINT64_MAX : 0;
    for (size_t i = n; i > 0; i--)
        v = v << 8 | (uint8_t)s[i - 1];
    return machine_push_kind(m, PICKLE_INT, (int64_t)v);
}

/* BINFLOAT: eight bytes, big end first. */
static int push_float(struct machine *m)
{
    uint64_t v, swapped = 0;
    if (!take(m, 8, &v))
        return machine_bad(m, CUT);
    for (int i = 0; i < 8; i++)
        swapped = swapped << 8 | (v >> 8 * i & 0xff);
    struct pickle_value *f = machine_make(m, PICKLE_FLOAT);
    if (f)
        memcpy(&f->f, &swapped, sizeof f->f);
    return machine_push(m, f);
}

/* ---- containers ------------------------------------------------------------------------------ */

/* What lies above the mark becomes a tuple, list or dict. */
static int gather(struct machine *m, enum pickle_kind kind)
{
    ptrdiff_t from = find_mark(m);
    struct pickle_value *v = from < 0 ? NULL : machine_make(m, kind);
    int rc = v ? 0 : machine_push(m, NULL);
    if (rc == 0 && kind == PICKLE_DICT && (m->n - (size_t)from) % 2)
        rc = machine_bad(m, "a dict with a key that has no value");
    for (size_t i = (size_t)from; rc == 0 && i < m->n; i++)
        rc = machine_append(m, v, m->stack[i]);
    if (rc < 0)
        return rc;
    m->n = (size_t)from - 1;
    return machine_push(m, v);
}

static int tuple(struct machine *m, size_t n)
{
    struct pickle_value *v = machine_make(m, PICKLE_TUPLE);
    if (!v)
        return machine_push(m, v);
    for (size_t i = 0; i < n; i++)
        if (m->n < n || m->stack[m->n - 1 - i]->kind == PICKLE_MARK)
            return machine_bad(m, "its stack is empty");
    for (size_t i = 0; i < n; i++) {
        int rc = machine_append(m, v, m->stack[m->n - n + i]);
        if (rc < 0)
            return rc;
    }
    m->n -= n;
    return machine_push(m, v);
}

/* The n topmost values go into the container below them. */
static int extend(struct machine *m, enum pickle_kind kind, size_t n)
{
    if (m->n <= n || m->stack[m->n - n - 1]->kind != kind)
        return machine_bad(m, kind == PICKLE_LIST ? "it appends to what is no list"
                                                  : "it sets keys of what is no dict");
    struct pickle_value *to = m->stack[m->n - n - 1];
    for (size_t i = m->n - n; i < m->n; i++) {
        int rc = m->stack[i]->kind == PICKLE_MARK ? machine_bad(m, "a mark is no value")
                                                  : machine_append(m, to, m->stack[i]);
        if (rc < 0)
            return rc;
    }
    m->n -= n;
    return 0;
}

/* The same with what lies above the mark. */
static int extend_many(struct machine *m, enum pickle_kind kind)
{
    ptrdiff_t from = find_mark(m);
    if (from < 0)
        return ERR_FORMAT;
    size_t n = m->n - (size_t)from;
    if (kind == PICKLE_DICT && n % 2)
        return machine_bad(m, "a key that has no value");
    memmove(&m->stack[from - 1], &m->stack[from], n * sizeof *m->stack);
    m->n--;
    return extend(m, kind, n);
}

/* ---- memo ------------------------------------------------------------------------------------ */

static int put(struct machine *m, uint64_t i)
{
    if (m->n == 0 || m->stack[m->n - 1]->kind == PICKLE_MARK || i >= MEMO_MAX)
        return machine_bad(m, "it cannot remember that");
    if (i >= m->cap_memo) {
        size_t n = (size_t)i + 1 < 2 * m->cap_memo ? 2 * m->cap_memo : (size_t)i + 64;
        struct pickle_value **p = realloc(m->memo, n * sizeof *p);
        if (!p)
            return err_nomem(m->err, n * sizeof *p);
        memset(p + m->cap_memo, 0, (n - m->cap_memo) * sizeof *p);
        m->memo = p;
        m->cap_memo = n;
    }
    m->n_memo += !m->memo[i];
    m->memo[i] = m->stack[m->n - 1];
    return 0;
}

static int recall(struct machine *m, uint64_t i)
{
    return i < m->cap_memo && m->memo[i] ? machine_push(m, m->memo[i])
                                         : machine_bad(m, "it recalls what it never had");
}

/* PUT, GET and their kin: the index is a decimal line (width 0) or so many bytes. */
static int memo(struct machine *m, size_t width, bool store)
{
    int64_t line = 0;
    uint64_t i = 0;
    int rc = width ? 0 : take_decimal(m, &line);
    if (rc < 0)
        return rc;
    if (width && !take(m, width, &i))
        return machine_bad(m, CUT);
    i = width ? i : (uint64_t)line;
    return store ? put(m, i) : recall(m, i);
}

/* ---- opcodes --------------------------------------------------------------------------------- */

/* An unsigned number of so many bytes; of four it has a sign. */
static int push_int(struct machine *m, size_t width)
{
    uint64_t v;
    if (!take(m, width, &v))
        return machine_bad(m, CUT);
    return machine_push_kind(m, PICKLE_INT, width == 4 ? (int32_t)(uint32_t)v : (int64_t)v);
}

static int push_sized_text(struct machine *m, size_t width)
{
    const char *s = NULL;
    size_t n = 0;
    int rc = take_bytes(m, width, &s, &n);
    return rc < 0 ? rc : push_text(m, PICKLE_TEXT, s, n);
}

/* 'text' in quotes (STRING), or bare (UNICODE). Escapes are left as they are. */
static int push_line_text(struct machine *m, bool quoted)
{
    const char *s = NULL;
    size_t n = 0;
    int rc = machine_line(m, &s, &n);
    if (rc < 0 || !quoted)
        return rc < 0 ? rc : push_text(m, PICKLE_TEXT, s, n);
    if (n < 2 || (s[0] != '\'' && s[0] != '"') || s[n - 1] != s[0])
        return machine_bad(m, "a text without quotes");
    return push_text(m, PICKLE_TEXT, s + 1, n - 2);
}

/* INT: a number, or a truth value in two digits. */
static int push_decimal(struct machine *m)
{
    bool truth = m->end - m->at > 2 && m->at[0] == '0' && m->at[2] == '\n';
    int64_t v;
    int rc = take_decimal(m, &v);
    return rc < 0 ? rc : machine_push_kind(m, truth ? PICKLE_BOOL : PICKLE_INT, v);
}

/* PROTO has a number that must be known, FRAME a length that says nothing new. */
static int skip(struct machine *m, uint8_t op)
{
    uint64_t v;
    if (!take(m, op == 0x95 ? 8 : 1, &v))
        return machine_bad(m, CUT);
    if (op == 0x80 && v > 5)
        return err_set(m->err, ERR_UNSUPPORTED, "a pickle of protocol %d", (int)v);
    return 0;
}

/* Opcodes that hold data. 1: not one of them. */
static int step_data(struct machine *m, uint8_t op)
{
    switch (op) {
    case 'N': return machine_push_kind(m, PICKLE_NONE, 0);
    case 0x88:
    case 0x89: return machine_push_kind(m, PICKLE_BOOL, op == 0x88);
    case 'I':
    case 'L': return push_decimal(m);
    case 'J': return push_int(m, 4);
    case 'K': return push_int(m, 1);
    case 'M': return push_int(m, 2);
    case 0x8a: return push_long(m);
    case 'G': return push_float(m);
    case 'S': return push_line_text(m, true);
    case 'V': return push_line_text(m, false);
    case 'U':
    case 0x8c: return push_sized_text(m, 1);
    case 'T':
    case 'X': return push_sized_text(m, 4);
    case ')': return machine_push_kind(m, PICKLE_TUPLE, 0);
    case ']': return machine_push_kind(m, PICKLE_LIST, 0);
    case '}': return machine_push_kind(m, PICKLE_DICT, 0);
    default: return 1;
    }
}

/* Opcodes that join, remember and name. 1: not one of them. */
static int step_shape(struct machine *m, uint8_t op)
{
    switch (op) {
    case '(': return machine_push_kind(m, PICKLE_MARK, 0);
    case '0': return machine_pop(m) ? 0 : ERR_FORMAT;
    case 't': return gather(m, PICKLE_TUPLE);
    case 'l': return gather(m, PICKLE_LIST);
    case 'd': return gather(m, PICKLE_DICT);
    case 0x85:
    case 0x86:
    case 0x87: return tuple(m, op - 0x84u);
    case 'a': return extend(m, PICKLE_LIST, 1);
    case 'e': return extend_many(m, PICKLE_LIST);
    case 's': return extend(m, PICKLE_DICT, 2);
    case 'u': return extend_many(m, PICKLE_DICT);
    case 'p': return memo(m, 0, true);
    case 'q': return memo(m, 1, true);
    case 'r': return memo(m, 4, true);
    case 'g': return memo(m, 0, false);
    case 'h': return memo(m, 1, false);
    case 'j': return memo(m, 4, false);
    case 0x94: return put(m, m->n_memo);
    case 'c':
    case 'i': return objects_global(m, op == 'i');
    case 0x93: return objects_stack_global(m);
    case 'R': return objects_reduce(m, false);
    case 0x81: return objects_reduce(m, true);
    case 'Q': return objects_persistent(m);
    case 'b': return objects_build(m);
    case 0x80:
    case 0x95: return skip(m, op);
    default: return 1;
    }
}

/* Opcodes that Python has and this reader refuses, by name. */
static int refuse_opcode(struct machine *m, uint8_t op)
{
    static const struct {
        uint8_t op;
        const char *name;
    } names[] = {{'o', "OBJ"},

                 {0x92, "NEWOBJ_EX"},
                 {'P', "PERSID"},
                 {0x82, "EXT1"},
                 {0x83, "EXT2"},
                 {0x84, "EXT4"},
                 {0x8b, "LONG4"},
                 {'F', "FLOAT"},
                 {'B', "BINBYTES"},
                 {'C', "SHORT_BINBYTES"},
                 {0x8e, "BINBYTES8"},
                 {0x8d, "BINUNICODE8"},
                 {0x8f, "EMPTY_SET"},
                 {0x90, "ADDITEMS"},
                 {0x91, "FROZENSET"},
                 {0x96, "BYTEARRAY8"},
                 {0x97, "NEXT_BUFFER"},
                 {0x98, "READONLY_BUFFER"},
                 {'1', "POP_MARK"},
                 {'2', "DUP"}};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (names[i].op == op)
            return err_set(m->err, ERR_FORMAT,
                           "this pickle has an opcode that tensors do not need (%s): refused",
                           names[i].name);
    return machine_bad(m, "an opcode that Python does not have");
}

static int run(struct machine *m, const struct pickle_value **root)
{
    while (m->at < m->end) {
        uint8_t op = *m->at++;
        if (op == '.') {
            *root = machine_pop(m);
            return !*root ? ERR_FORMAT : m->n ? machine_bad(m, "it leaves something behind") : 0;
        }
        int rc = step_data(m, op);
        rc = rc == 1 ? step_shape(m, op) : rc;
        rc = rc == 1 ? refuse_opcode(m, op) : rc;
        if (rc < 0)
            return rc;
    }
    return machine_bad(m, CUT);
}

int pickle_read(struct pickle *p, const void *bytes, size_t size, const struct pickle_value **root,
                size_t *used, struct err *err)
{
    struct err own = {0};
    struct machine m = {.p = p, .begin = bytes, .at = bytes, .err = err ? err : &own};
    m.end = m.begin + size;
    int rc = run(&m, root);
    *used = (size_t)(m.at - m.begin);
    free(m.stack);
    free(m.memo);
    return rc;
}
