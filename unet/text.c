#include "text.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>
#include <utf8proc.h>

/* The reference is transformers' fast CLIPTokenizer on tokenizers 0.23, whose parts know different
 * versions of Unicode: the pattern 16, lower-casing 17, NFC 9. The tables below are what separates
 * them from Debian's PCRE2 10.42 (Unicode 14) and utf8proc 2.8 (Unicode 15), found by trying every
 * code point. Newer libraries need fewer rows, and the rows do no harm there; but a PCRE2 that knows
 * Unicode 17 takes its new letters for letters, which the reference does not. */

/* Letters and numbers of Unicode 16 that are not in 14. */
const char text_more_letters[] =
    "\\x{1c89}-\\x{1c8a}\\x{a7cb}-\\x{a7cd}\\x{a7da}-\\x{a7dc}\\x{105c0}-\\x{105f3}"
    "\\x{10d4a}-\\x{10d65}\\x{10d6f}-\\x{10d85}\\x{10ec2}-\\x{10ec4}\\x{1123f}-\\x{11240}"
    "\\x{11380}-\\x{11389}\\x{1138b}\\x{1138e}\\x{11390}-\\x{113b5}\\x{113b7}\\x{113d1}\\x{113d3}"
    "\\x{11bc0}-\\x{11be0}\\x{11f02}\\x{11f04}-\\x{11f10}\\x{11f12}-\\x{11f33}\\x{1342f}"
    "\\x{13441}-\\x{13446}\\x{13460}-\\x{143fa}\\x{16100}-\\x{1611d}\\x{16d40}-\\x{16d6c}"
    "\\x{18cff}\\x{1b132}\\x{1b155}\\x{1df25}-\\x{1df2a}\\x{1e030}-\\x{1e06d}\\x{1e4d0}-\\x{1e4eb}"
    "\\x{1e5d0}-\\x{1e5ed}\\x{1e5f0}\\x{2b739}\\x{2ebf0}-\\x{2ee5d}\\x{31350}-\\x{323af}";
const char text_more_numbers[] =
    "\\x{10d40}-\\x{10d49}\\x{116d0}-\\x{116e3}\\x{11bf0}-\\x{11bf9}\\x{11f50}-\\x{11f59}"
    "\\x{16130}-\\x{16139}\\x{16d70}-\\x{16d79}\\x{1ccf0}-\\x{1ccf9}\\x{1d2c0}-\\x{1d2d3}"
    "\\x{1e4f0}-\\x{1e4f9}\\x{1e5f1}-\\x{1e5fa}";

struct range {
    int32_t first, last;
};

/* Characters that compose or reorder today and that the reference's NFC does not know: they stand
 * where they are, and nothing passes them. U+11A7 is another matter: utf8proc joins it to a Hangul
 * syllable, where it disappears. */
static const struct range inert[] = {
    {0x05c8, 0x05c9},   {0x07fd, 0x07fd},   {0x0897, 0x089f},   {0x08ca, 0x08d3},
    {0x09fe, 0x09fe},   {0x0c3c, 0x0c3c},   {0x0d3b, 0x0d3c},   {0x0eba, 0x0eba},
    {0x11a7, 0x11a7},   {0x1715, 0x1715},   {0x1abf, 0x1af0},   {0x1df6, 0x1dfa},
    {0xa82c, 0xa82c},   {0x105c9, 0x105e4}, {0x10d24, 0x10d27}, {0x10d69, 0x10d6d},
    {0x10eab, 0x10eac}, {0x10ecb, 0x10ecf}, {0x10ef0, 0x10efb}, {0x10efd, 0x10eff},
    {0x10f46, 0x10f50}, {0x10f82, 0x10f85}, {0x11070, 0x11070}, {0x1133b, 0x1133b},
    {0x11382, 0x113c9}, {0x113ce, 0x113d0}, {0x1145e, 0x1145e}, {0x11839, 0x1183a},
    {0x11930, 0x11938}, {0x1193d, 0x1193e}, {0x11943, 0x11943}, {0x119e0, 0x119e0},
    {0x11a34, 0x11a34}, {0x11a47, 0x11a47}, {0x11a99, 0x11a99}, {0x11d42, 0x11d42},
    {0x11d44, 0x11d45}, {0x11d97, 0x11d97}, {0x11f41, 0x11f42}, {0x1611e, 0x16129},
    {0x1612f, 0x1612f}, {0x16d63, 0x16d6a}, {0x16ff0, 0x16ff1}, {0x1d127, 0x1d128},
    {0x1d250, 0x1d252}, {0x1d25b, 0x1d25c}, {0x1d25f, 0x1d25f}, {0x1d280, 0x1d281},
    {0x1e08f, 0x1e08f}, {0x1e130, 0x1e136}, {0x1e2ae, 0x1e2ae}, {0x1e2ec, 0x1e2ef},
    {0x1e4ec, 0x1e4ef}, {0x1e5ee, 0x1e5ef}, {0x1e6e3, 0x1e6e3}, {0x1e6e6, 0x1e6e6},
    {0x1e6ee, 0x1e6ef}, {0x1e6f5, 0x1e6f5},
};

/* Capitals since Unicode 15.1, and what is to be added to them. */
static const struct lower {
    int32_t first, last, add;
} more_lower[] = {
    {0x1c89, 0x1c89, 1},      {0xa7cb, 0xa7cb, 0x264 - 0xa7cb},
    {0xa7cc, 0xa7cc, 1},      {0xa7ce, 0xa7ce, 1},
    {0xa7d2, 0xa7d2, 1},      {0xa7d4, 0xa7d4, 1},
    {0xa7da, 0xa7da, 1},      {0xa7dc, 0xa7dc, 0x19b - 0xa7dc},
    {0x10d50, 0x10d65, 0x20}, {0x16ea0, 0x16eb8, 0x1b},
};

/* utf8proc sorts combining marks by exchanging neighbours: long runs would take for ever. */
#define MARKS_MAX 256

int text_check(const char *s, size_t n, const char *what, struct err *err)
{
    const utf8proc_uint8_t *p = (const utf8proc_uint8_t *)s;
    utf8proc_int32_t c;

    if (n > TEXT_MAX)
        return err_set(err, ERR_ARG, "%s: %zu bytes of text, %u are the most", what, n, TEXT_MAX);
    for (size_t i = 0; i < n;) {
        utf8proc_ssize_t len = utf8proc_iterate(p + i, (utf8proc_ssize_t)(n - i), &c);
        if (len <= 0)
            return err_set(err, ERR_ARG, "%s: the text is not UTF-8 at byte %zu", what, i);
        i += (size_t)len;
    }
    return 0;
}

int text_shown(const char *s, size_t n, size_t max)
{
    size_t i = 0;
    for (int len; i < n; i += (size_t)len) {
        int32_t c = text_char(s + i, &len);
        if (c < 0x20 || c == 0x7f || i + (size_t)len > max)
            break;
    }
    return (int)i;
}

int32_t text_char(const char *s, int *len)
{
    const unsigned char *p = (const unsigned char *)s;
    if (p[0] < 0x80) {
        *len = 1;
        return p[0];
    }
    if (p[0] < 0xe0) {
        *len = 2;
        return (p[0] & 0x1f) << 6 | (p[1] & 0x3f);
    }
    if (p[0] < 0xf0) {
        *len = 3;
        return (p[0] & 0xf) << 12 | (p[1] & 0x3f) << 6 | (p[2] & 0x3f);
    }
    *len = 4;
    return (p[0] & 7) << 18 | (p[1] & 0x3f) << 12 | (p[2] & 0x3f) << 6 | (p[3] & 0x3f);
}

int32_t text_char_before(const char *s)
{
    int len;
    do
        s--;
    while (((unsigned char)*s & 0xc0) == 0x80);
    return text_char(s, &len);
}

bool text_is_space(int32_t c)
{
    return (c >= 9 && c <= 13) || c == ' ' || c == 0x85 || c == 0xa0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200a) || c == 0x2028 || c == 0x2029 || c == 0x202f ||
           c == 0x205f || c == 0x3000;
}

bool text_is_word(int32_t c)
{
    switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_NO: return true;
    default: return c == '_';
    }
}

bool text_is_digit(int32_t c)
{
    return utf8proc_category(c) == UTF8PROC_CATEGORY_ND;
}

static bool is_inert(int32_t c)
{
    size_t lo = 0, hi = sizeof inert / sizeof *inert;
    if (c < inert[0].first)
        return false;
    while (lo < hi) {
        size_t mid = lo + (hi - lo) / 2;
        if (c < inert[mid].first)
            hi = mid;
        else if (c > inert[mid].last)
            lo = mid + 1;
        else
            return true;
    }
    return false;
}

/* The lower case of c except for U+0130, the only letter that becomes two. */
static int32_t lower(int32_t c)
{
    for (size_t i = 0; c >= more_lower[0].first && i < sizeof more_lower / sizeof *more_lower; i++)
        if (c >= more_lower[i].first && c <= more_lower[i].last)
            return c + more_lower[i].add;
    return utf8proc_tolower(c);
}

/* Puts the NFC of s[n], which holds no inert character, at out[cap]. Returns the number of code
 * points or a negative number. */
static utf8proc_ssize_t compose(int32_t *out, size_t cap, const char *s, size_t n)
{
    const utf8proc_option_t how = UTF8PROC_STABLE | UTF8PROC_COMPOSE;
    utf8proc_ssize_t len = utf8proc_decompose((const utf8proc_uint8_t *)s, (utf8proc_ssize_t)n, out,
                                              (utf8proc_ssize_t)cap, how);
    if (len < 0)
        return len;
    assert((size_t)len <= cap);
    return utf8proc_normalize_utf32(out, len, how);
}

/* NFC of the whole of s as code points at out[cap]: pieces between inert characters, one by one. */
static int compose_all(int32_t *out, size_t *out_n, size_t cap, const char *s, size_t n,
                       struct err *err)
{
    size_t begin = 0, marks = 0, w = 0;
    int len = 0;

    for (size_t i = 0; i <= n; i += (size_t)len) {
        int32_t c = i < n ? text_char(s + i, &len) : -1;
        marks = c >= 0 && utf8proc_get_property(c)->combining_class ? marks + 1 : 0;
        if (marks > MARKS_MAX)
            return err_set(err, ERR_ARG, "text: more than %d combining marks in a row", MARKS_MAX);
        if (c >= 0 && !is_inert(c))
            continue;
        utf8proc_ssize_t got = compose(out + w, cap - w, s + begin, i - begin);
        if (got < 0)
            return err_set(err, ERR_UNSUPPORTED, "text: cannot be normalised: %s",
                           utf8proc_errmsg(got));
        w += (size_t)got;
        if (c < 0)
            break;
        out[w++] = c;
        begin = i + (size_t)len;
    }
    *out_n = w;
    return 0;
}

int text_fold(char **out, size_t *out_n, const char *s, size_t n, struct err *err)
{
    int32_t *cp = NULL;
    char *text = NULL;
    size_t n_cp = 0, w = 0;
    /* Two bytes become three code points at most, under NFC's decomposition. */
    size_t cap = 2 * n + 16;
    int rc;

    *out = NULL;
    cp = malloc(cap * sizeof *cp);
    text = malloc(4 * cap);
    if (!cp || !text) {
        rc = err_nomem(err, 8 * cap);
        goto out;
    }
    if ((rc = compose_all(cp, &n_cp, cap, s, n, err)) < 0)
        goto out;
    for (size_t i = 0; i < n_cp; i++) {
        if (text_is_space(cp[i])) {
            if (i == 0 || !text_is_space(cp[i - 1]))
                text[w++] = ' ';
        } else if (cp[i] == 0x130) {
            memcpy(text + w, "i\xcc\x87", 3);
            w += 3;
        } else {
            w += (size_t)utf8proc_encode_char(lower(cp[i]), (utf8proc_uint8_t *)text + w);
        }
    }
    text[w] = 0;
    *out = text;
    *out_n = w;
    text = NULL;
out:
    free(text);
    free(cp);
    return rc;
}
