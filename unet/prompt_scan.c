#include "prompt_scan.h"

#include "text.h"

#include <locale.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

int prompt_scan_check(const char *text, size_t *n, struct err *err)
{
    *n = strlen(text);
    return text_check(text, *n, "prompt", err);
}

int prompt_scan_deep(size_t at, struct err *err)
{
    return err_set(err, ERR_ARG, "prompt: brackets are more than %d deep at byte %zu", PROMPT_DEEP,
                   at);
}

static bool is_space(int32_t c)
{
    return text_is_space(c) || (c >= 0x1c && c <= 0x1f);
}

const char *prompt_scan_space(const char *s)
{
    int len;
    while (is_space(text_char(s, &len)))
        s += len;
    return s;
}

size_t prompt_scan_trim(const char *s, size_t n)
{
    while (n > 0 && is_space(text_char_before(s + n)))
        do
            n--;
        while (((unsigned char)s[n] & 0xc0) == 0x80);
    return n;
}

bool prompt_scan_boundary(const char *text, size_t n, size_t i)
{
    int len;
    bool before = i > 0 && text_is_word(text_char_before(text + i));
    bool after = i < n && text_is_word(text_char(text + i, &len));
    return before != after;
}

const char *prompt_scan_row(const char *s)
{
    int len;
    for (int32_t c; (c = text_char(s, &len)) == '.' || text_is_digit(c);)
        s += len;
    return s;
}

static const char *digits(const char *s)
{
    while (*s >= '0' && *s <= '9')
        s++;
    return s;
}

const char *prompt_scan_number(const char *s, bool exponent)
{
    const char *p = s + (*s == '+' || *s == '-');
    const char *whole = digits(p), *end = whole;
    if (*whole == '.')
        end = digits(whole + 1);
    if (end - p == (*whole == '.'))
        return NULL;
    if (exponent && (*end == 'e' || *end == 'E')) {
        const char *e = end + 1 + (end[1] == '+' || end[1] == '-');
        if (digits(e) > e)
            end = digits(e);
    }
    return end;
}

double prompt_scan_value(const char *s)
{
    locale_t c = newlocale(LC_ALL_MASK, "C", (locale_t)0);
    double v = c ? strtod_l(s, NULL, c) : (double)NAN;
    if (c)
        freelocale(c);
    return v;
}

char *prompt_scan_copy(const char *s, size_t n)
{
    char *p = malloc(n + 1);
    if (p) {
        memcpy(p, s, n);
        p[n] = 0;
    }
    return p;
}

void *prompt_scan_grow(void *array, size_t n, size_t *cap, size_t size, struct err *err)
{
    if (n < *cap)
        return array;
    size_t want = *cap ? 2 * *cap : 16;
    void *grown = realloc(array, want * size);
    if (grown)
        *cap = want;
    else
        err_nomem(err, want * size);
    return grown;
}
