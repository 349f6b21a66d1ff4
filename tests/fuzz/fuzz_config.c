/* Fuzzes config.c. The first byte chooses whether the rest is JSON text or makes an object of the
 * keys a to h; the second, which keys are asked for as what. */
#include "memory_file.h"
#include "unet/config.h"

#include <assert.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const char *const values[] = {
    "1",
    "-1",
    "0",
    "2147483648",
    "1e5",
    "0.5",
    "99999999999999999999",
    "true",
    "false",
    "null",
    "\"\"",
    "\"silu\"",
    "\"\\n\\u00e9\"",
    "[]",
    "[1,2,3,4]",
    "[1,2,3,4,5]",
    "[0.5,\"x\"]",
    "[\"a\",\"b\"]",
    "[[1]]",
    "{}",
    "{\"a\":1}",
    "1e999",
    "\"1\"",
    "[true]",
    "[1,2",
    "\"a text that is longer than a message may show, so that only its kind is named there\"",
    "[\"a list that is longer than a message may show, so that only its kind is named there\"]",
    "{\"an object\":\"longer than a message may show, so that only its kind is named in there\"}",
};

static char *make(const uint8_t *data, size_t size)
{
    char *text = NULL;
    size_t len = 0;
    FILE *f = open_memstream(&text, &len);
    fputc('{', f);
    for (size_t i = 0; i + 2 <= size && i < 20; i += 2)
        fprintf(f, "%s\"%.*s%c\":%s", i ? "," : "", data[i] / 64 ? 0 : 1, "_", 'a' + data[i] % 8,
                values[data[i + 1] % (sizeof values / sizeof *values)]);
    fputc('}', f);
    fclose(f);
    return text;
}

/* An object within, asked as the whole is. */
static void ask_within(struct config *c, const char *key)
{
    struct config *sub;
    struct err err = {0};
    bool object = config_is_object(c, key), null = config_is_null(c, key);
    assert(!object || !null);
    if (config_sub(&sub, c, key, &err) < 0) {
        assert(*err.msg && !object && !null);
        return;
    }
    config_int(sub, "a", 1);
    config_expect(sub, "b", "1");
    assert(strstr(config_path(sub), key));
    config_close(sub);
}

static void ask(struct config *c, unsigned how)
{
    static const char *const ignored[] = {"h", "", NULL};
    static const char *const expected[] = {"silu", "1", "true", "false", "-1", "0.5"};
    static const char *const keys[] = {"a", "b", "c", "d", "e", "f", "g"};
    int i[4];
    double x[4];
    const char *s[4];
    for (unsigned k = 0; k < 7; k++) {
        const char *key = keys[(k + how) % 7], *text;
        int n = 0;
        switch ((k * 3 + how / 8) % 8) {
        case 0: config_int(c, key, 3); break;
        case 1: config_num(c, key, 0.5); break;
        case 2: config_bool(c, key, true); break;
        case 3:
            text = config_str(c, key, "default");
            assert(strlen(text) < 1 << 20);
            break;
        case 4:
            n = config_ints(c, key, (int)(how % 5), i, 4);
            for (int j = 0; j < n; j++)
                i[j] /= 2;
            break;
        case 5:
            n = config_nums(c, key, x, 4);
            for (int j = 0; j < n; j++)
                x[j] /= 2;
            break;
        case 6:
            n = config_strs(c, key, s, 4);
            for (int j = 0; j < n; j++)
                assert(strlen(s[j]) < 1 << 20);
            break;
        default: config_expect(c, key, expected[how % 6]); break;
        }
        assert(n >= 0 && n <= 4);
        config_has(c, key);
        if (how % 5 == 0)
            ask_within(c, key);
    }
    if (how & 1)
        config_ignore(c, ignored);
    if (how == 77)
        config_fail(c, "%s does not fit", config_path(c));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct config *c = NULL;
    struct err err = {0};
    char *text = NULL;

    if (size < 2)
        return 0;
    if (data[0] & 1) {
        text = make(data + 2, size - 2);
    } else {
        text = calloc(1, size - 1);
        memcpy(text, data + 2, size - 2);
    }
    struct memory_file m;
    int rc;
    if (data[0] > 247) { /* now and then from a file */
        memory_file_open(&m, text, strlen(text));
        rc = config_open(&c, m.path, &err);
        memory_file_close(&m);
    } else {
        rc = config_parse(&c, text, "fuzz.json", &err);
    }
    free(text); /* nothing may point into it */
    assert(rc == err.code && !rc == !!c);
    if (c) {
        ask(c, data[1]);
        rc = config_done(c, &err);
        assert(rc == err.code && !rc == !err.msg[0]);
    }
    config_close(c);
    return 0;
}
