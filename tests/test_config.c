#include "tests/shared.h"
#include "unet/config.h"
#include "unet/file.h"

#include <ftw.h>
#include <limits.h>
#include <string.h>

static struct config *parsed(const char *json)
{
    struct config *c = NULL;
    struct err err = {0};
    cr_assert_eq(config_parse(&c, json, "a.json", &err), 0, "%s: %s", json, err.msg);
    return c;
}

/* Finishes c, which must say phrase, or nothing where that is NULL. */
static void done(struct config *c, const char *phrase)
{
    struct err err = {0};
    int rc = config_done(c, &err);
    if (phrase) {
        cr_assert_eq(rc, ERR_FORMAT, "no error, not \"%s\"", phrase);
        cr_assert_eq(err.code, rc);
        cr_assert_eq(strncmp(err.msg, "a.json: ", 8), 0, "%s", err.msg);
        cr_assert_not_null(strstr(err.msg, phrase), "%s\nnot: %s", err.msg, phrase);
        cr_assert_null(strchr(err.msg, '\n'), "more than one line: %s", err.msg);
    } else {
        cr_assert_eq(rc, 0, "%s", err.msg);
    }
    config_close(c);
}

Test(config, values)
{
    struct config *c =
        parsed("{\"i\":-2147483648,\"j\":2147483647,\"x\":0.18215,\"n\":3,\"t\":true,"
               "\"f\":false,\"s\":\"silu\",\"e\":\"\",\"null\":null}");
    cr_assert_eq(config_int(c, "i", 7), INT_MIN);
    cr_assert_eq(config_int(c, "j", 7), INT_MAX);
    cr_assert_eq(config_num(c, "x", 1), 0.18215);
    cr_assert_eq(config_num(c, "n", 1), 3);
    cr_assert_eq(config_int(c, "n", 1), 3, "a key may be asked for twice");
    cr_assert(config_bool(c, "t", false));
    cr_assert_not(config_bool(c, "f", true));
    cr_assert_str_eq(config_str(c, "s", "x"), "silu");
    cr_assert_str_eq(config_str(c, "e", "x"), "");
    cr_assert_str_eq(config_path(c), "a.json");
    cr_assert(config_has(c, "s"));
    cr_assert_not(config_has(c, "null"));
    cr_assert_not(config_has(c, "missing"));
    done(c, NULL);
}

Test(config, defaults_where_missing_or_null)
{
    int i[4] = {5, 5, 5, 5};
    double x[4];
    const char *s[4];
    struct config *c = parsed("{\"i\":null,\"x\":null,\"t\":null,\"s\":null,\"l\":null}");
    cr_assert_eq(config_int(c, "i", 7), 7);
    cr_assert_eq(config_int(c, "none", 8), 8);
    cr_assert_eq(config_num(c, "x", 0.5), 0.5);
    cr_assert_eq(config_num(c, "none", 0.25), 0.25);
    cr_assert(config_bool(c, "t", true));
    cr_assert_not(config_bool(c, "none", false));
    cr_assert_str_eq(config_str(c, "s", "d"), "d");
    cr_assert_null(config_str(c, "none", NULL));
    cr_assert_eq(config_ints(c, "l", 4, i, 4), 0);
    cr_assert_eq(config_ints(c, "none", 0, i, 4), 0);
    cr_assert_eq(i[0], 5);
    cr_assert_eq(config_nums(c, "l", x, 4), 0);
    cr_assert_eq(config_strs(c, "none", s, 4), 0);
    done(c, NULL);
}

Test(config, lists)
{
    int i[4] = {0};
    double x[4];
    const char *s[4];
    struct config *c = parsed("{\"i\":[320,640,1280,1280],\"one\":8,\"none\":[],\"x\":[0.5,-1,1e3],"
                              "\"s\":[\"DownBlock2D\",\"\"]}");
    cr_assert_eq(config_ints(c, "i", 0, i, 4), 4);
    cr_assert_eq(i[0], 320);
    cr_assert_eq(i[3], 1280);
    cr_assert_eq(config_ints(c, "one", 3, i, 4), 3);
    cr_assert(i[0] == 8 && i[2] == 8 && i[3] == 1280);
    cr_assert_eq(config_ints(c, "none", 3, i, 4), 0);
    cr_assert_eq(config_nums(c, "x", x, 4), 3);
    cr_assert(x[0] == 0.5 && x[1] == -1 && x[2] == 1000);
    cr_assert_eq(config_strs(c, "s", s, 4), 2);
    cr_assert_str_eq(s[0], "DownBlock2D");
    cr_assert_str_eq(s[1], "");
    done(c, NULL);
}

Test(config, wrong_types_are_errors)
{
    static const struct {
        const char *json, *phrase;
    } ints[] = {
        {"{\"k\":\"4\"}", "k is \"4\", it should be a whole number"},
        {"{\"k\":4.5}", "k is 4.5, it"},
        {"{\"k\":true}", "k is true"},
        {"{\"k\":[4]}", "k is [4]"},
        {"{\"k\":2147483648}", "k is 2147483648"},
        {"{\"k\":-2147483649}", "k is -2147483649"},
        {"{\"k\":1000000000000000019884624838656}", "k is 1e+30"},
    };
    for (size_t i = 0; i < sizeof ints / sizeof *ints; i++) {
        struct config *c = parsed(ints[i].json);
        cr_assert_eq(config_int(c, "k", 9), 9);
        done(c, ints[i].phrase);
    }
    struct config *c = parsed("{\"k\":\"0.5\"}");
    cr_assert_eq(config_num(c, "k", 9), 9);
    done(c, "it should be a number");
    c = parsed("{\"k\":1}");
    cr_assert(config_bool(c, "k", true));
    done(c, "k is 1, it should be true or false");
    c = parsed("{\"k\":1}");
    cr_assert_str_eq(config_str(c, "k", "d"), "d");
    done(c, "k is 1, it should be a text");
}

Test(config, wrong_lists_are_errors)
{
    int i[2];
    double x[2];
    const char *s[2];
    struct config *c = parsed("{\"k\":[1,2,3]}");
    cr_assert_eq(config_ints(c, "k", 0, i, 2), 0);
    done(c, "k has 3 values, weft takes at most 2");
    c = parsed("{\"k\":[1,\"2\"]}");
    cr_assert_eq(config_ints(c, "k", 0, i, 2), 0);
    done(c, "k is [1, \"2\"], it should be a list of whole numbers");
    c = parsed("{\"k\":5}");
    cr_assert_eq(config_ints(c, "k", 0, i, 2), 0, "no number to repeat it was given");
    done(c, "k is 5, it should be a list of whole numbers");
    c = parsed("{\"k\":[1,2.5]}");
    cr_assert_eq(config_ints(c, "k", 1, i, 2), 0);
    done(c, "it should be a list of whole numbers");
    c = parsed("{\"k\":[1,null]}");
    cr_assert_eq(config_nums(c, "k", x, 2), 0);
    done(c, "it should be a list of numbers");
    c = parsed("{\"k\":0.5}");
    cr_assert_eq(config_nums(c, "k", x, 2), 0);
    done(c, "it should be a list of numbers");
    c = parsed("{\"k\":[\"a\",1]}");
    cr_assert_eq(config_strs(c, "k", s, 2), 0);
    done(c, "it should be a list of texts");
    c = parsed("{\"k\":{\"a\":1}}");
    cr_assert_eq(config_strs(c, "k", s, 2), 0);
    done(c, "k is {\"a\": 1}, it should be a list of texts");
}

Test(config, the_first_error_is_kept)
{
    struct config *c = parsed("{\"a\":1,\"b\":\"x\",\"c\":1}");
    config_str(c, "a", "");
    config_int(c, "b", 0);
    config_fail(c, "third");
    done(c, "a is 1");
    c = parsed("{\"unknown\":1}");
    config_fail(c, "%d heads do not divide %d channels", 3, 320);
    done(c, "a.json: 3 heads do not divide 320 channels");
}

Test(config, what_nobody_asked_for_is_an_error)
{
    done(parsed("{\"dual_cross_attention\":true}"), "\"dual_cross_attention\" (it is true)");
    done(parsed("{\"k\":0}"), "\"k\" (it is 0)");
    done(parsed("{\"k\":\"x\"}"), "\"k\" (it is \"x\")");
    done(parsed("{\"k\":[0]}"), "\"k\" (it is [0])");
    done(parsed("{\"k\":{\"a\":null}}"), "\"k\" (it is {\"a\": null})");
    done(parsed("{\"two\\nlines\":1}"), "\"two\\nlines\"");
    done(parsed("{\"\":1}"), "the key \"\"");
    done(parsed("{\"a\":null,\"b\":false,\"c\":\"\",\"d\":[],\"e\":{},\"_note\":1}"), NULL);

    static const char *const ignored[] = {"sample_size", "torch_dtype", NULL};
    struct config *c = parsed("{\"sample_size\":64,\"torch_dtype\":\"float16\"}");
    config_ignore(c, ignored);
    done(c, NULL);
    c = parsed("{\"a\":1}");
    cr_assert(config_has(c, "a"));
    done(c, "\"a\"");
}

Test(config, long_values_are_named_by_their_kind)
{
    char json[300], text[200];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    snprintf(json, sizeof json, "{\"k\":\"%s\"}", text);
    done(parsed(json), "\"k\" (it is a long text)");
    snprintf(json, sizeof json, "{\"k\":[\"%s\"]}", text);
    done(parsed(json), "\"k\" (it is a list)");
    snprintf(json, sizeof json, "{\"k\":{\"%s\":1}}", text);
    done(parsed(json), "\"k\" (it is an object)");
    snprintf(json, sizeof json, "{\"%s\":1}", text);
    done(parsed(json), "the key a long text (it is 1)");
}

Test(config, expect)
{
    struct config *c = parsed("{\"act_fn\":\"silu\",\"n\":32,\"x\":1e-5,\"m\":-1,\"t\":true,"
                              "\"f\":false,\"null\":null,\"text\":\"nan\"}");
    config_expect(c, "act_fn", "silu");
    config_expect(c, "n", "32");
    config_expect(c, "x", "0.00001");
    config_expect(c, "m", "-1");
    config_expect(c, "t", "true");
    config_expect(c, "f", "false");
    config_expect(c, "null", "silu");
    config_expect(c, "missing", "1");
    config_expect(c, "text", "nan");
    done(c, NULL);

    static const char *const wrong[][4] = {
        {"\"gelu\"", "silu", "k is \"gelu\", weft only does \"silu\""},
        {"1", "silu", "k is 1, weft only does \"silu\""},
        {"33", "32", "k is 33, weft only does 32"},
        {"\"32\"", "32", "k is \"32\", weft only does 32"},
        {"true", "false", "k is true, weft only does false"},
        {"\"true\"", "true", "k is \"true\", weft only does true"},
        {"1", "true", "k is 1, weft only does true"},
        {"[]", "silu", "k is [], weft only does \"silu\""},
        {"false", "1", "k is false, weft only does 1"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        char json[64];
        snprintf(json, sizeof json, "{\"k\":%s}", wrong[i][0]);
        c = parsed(json);
        config_expect(c, "k", wrong[i][1]);
        done(c, wrong[i][2]);
    }
}

Test(config, refuses_what_is_no_json_object)
{
    static const char *const bad[][2] = {
        {"", "a.json: not valid JSON: line 1"},
        {"{\n\"a\":1,\n}", "line 3"},
        {"{\"a\":1,\"a\":2}", "duplicate object key"},
        {"{\"a\":{\"b\":1,\"b\":2}}", "duplicate object key"},
        {"{\"a\":NaN}", "not valid JSON"},
        {"{\"a\":1e999}", "not valid JSON"},
        {"{\"a\":\"\xff\"}", "not valid JSON"},
        {"{\"a\":\"\\u0000\"}", "not valid JSON"},
        {"{} {}", "not valid JSON"},
        {"{\"a\":\"\n\"}", "not valid JSON"},
        {"[1]", "a.json: not a JSON object"},
        {"1", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct config *c = NULL;
        struct err err = {0};
        cr_assert_eq(config_parse(&c, bad[i][0], "a.json", &err), ERR_FORMAT, "%s", bad[i][0]);
        cr_assert_null(c);
        cr_assert_not_null(strstr(err.msg, bad[i][1]), "%s\nnot: %s", err.msg, bad[i][1]);
        cr_assert_null(strchr(err.msg, '\n'), "more than one line: %s", err.msg);
    }
    enum { DEEP = 100000 };
    struct config *c = NULL;
    struct err err = {0};
    char *deep = malloc(DEEP + 1);
    memset(deep, '[', DEEP);
    deep[DEEP] = 0;
    cr_assert_eq(config_parse(&c, deep, "a.json", &err), ERR_FORMAT);
    cr_assert_not_null(strstr(err.msg, "maximum parsing depth"), "%s", err.msg);
    free(deep);
}

Test(config, files)
{
    enum { BIG = (4 << 20) + 1 };
    char dir[] = "/tmp/weft-test-XXXXXX", path[64];
    struct config *c = NULL;
    struct err err = {0};
    cr_assert_not_null(mkdtemp(dir));
    snprintf(path, sizeof path, "%s/config.json", dir);
    cr_assert_eq(config_open(&c, path, &err), ERR_IO);
    cr_assert_eq(strncmp(err.msg, path, strlen(path)), 0, "%s", err.msg);
    cr_assert_eq(file_replace(path, "{\"a\":\0001}", 8, &err), 0);
    cr_assert_eq(config_open(&c, path, &err), ERR_FORMAT, "a NUL inside");
    cr_assert_eq(strncmp(err.msg, path, strlen(path)), 0, "%s", err.msg);
    cr_assert_eq(file_replace(path, "{\"a\":12}", 8, &err), 0);
    cr_assert_eq(config_open(&c, path, &err), 0, "%s", err.msg);
    cr_assert_str_eq(config_path(c), path);
    cr_assert_eq(config_int(c, "a", 0), 12);
    config_close(c);
    char *big = malloc(BIG);
    memset(big, ' ', BIG);
    memcpy(big, "{}", 2);
    cr_assert_eq(file_replace(path, big, BIG, &err), 0);
    cr_assert_eq(config_open(&c, path, &err), ERR_FORMAT);
    cr_assert_not_null(strstr(err.msg, "4194304"), "%s", err.msg);
    cr_assert_eq(file_replace(path, big, BIG - 1, &err), 0);
    cr_assert_eq(config_open(&c, path, &err), 0, "%s", err.msg);
    config_close(c);
    free(big);
    unlink(path);
    rmdir(dir);
}

/* ---- files from outside ---------------------------------------------------------------------- */

Test(config, the_unet_of_stable_diffusion)
{
    static const char *const known[] = {"sample_size", "center_input_sample", NULL};
    char path[PATH_MAX];
    int width[4], heads[4];
    const char *block[4];
    struct config *c = NULL;
    struct err err = {0};
    shared_path(path, sizeof path, "model-configs/sd15/unet/config.json");
    cr_assert_eq(config_open(&c, path, &err), 0, "%s", err.msg);
    cr_assert_eq(config_int(c, "in_channels", 0), 4);
    cr_assert_eq(config_int(c, "out_channels", 0), 4);
    cr_assert_eq(config_int(c, "cross_attention_dim", 0), 768);
    cr_assert_eq(config_int(c, "layers_per_block", 0), 2);
    cr_assert_eq(config_num(c, "norm_eps", 0), 1e-5);
    cr_assert_eq(config_num(c, "mid_block_scale_factor", 0), 1);
    cr_assert_eq(config_ints(c, "block_out_channels", 0, width, 4), 4);
    cr_assert_eq(width[3], 1280);
    cr_assert_eq(config_ints(c, "attention_head_dim", 4, heads, 4), 4);
    cr_assert_eq(heads[3], 8);
    cr_assert_eq(config_strs(c, "down_block_types", block, 4), 4);
    cr_assert_str_eq(block[0], "CrossAttnDownBlock2D");
    cr_assert_eq(config_strs(c, "up_block_types", block, 4), 4);
    cr_assert_str_eq(block[0], "UpBlock2D");
    config_expect(c, "act_fn", "silu");
    config_expect(c, "flip_sin_to_cos", "true");
    config_expect(c, "freq_shift", "0");
    config_expect(c, "norm_num_groups", "32");
    config_ignore(c, known);
    cr_assert_eq(config_done(c, &err), ERR_FORMAT, "downsample_padding was not asked for");
    cr_assert_not_null(strstr(err.msg, "\"downsample_padding\" (it is 1)"), "%s", err.msg);
    config_expect(c, "downsample_padding", "1");
    cr_assert_eq(config_done(c, &err), ERR_FORMAT, "the first error stays");
    config_close(c);
}

static int n_files;

static int visit(const char *file, const struct stat *sb, int type, struct FTW *at)
{
    struct config *c = NULL;
    struct err err = {0};
    (void)sb;
    (void)at;
    if (type != FTW_F)
        return 0;
    cr_assert_eq(config_open(&c, file, &err), 0, "%s", err.msg);
    config_close(c);
    n_files++;
    return 0;
}

Test(config, every_outside_config_can_be_read)
{
    char top[PATH_MAX];
    nftw(shared_path(top, sizeof top, "model-configs"), visit, 8, FTW_PHYS);
    cr_assert_gt(n_files, 25);
}

/* As diffusers writes "no limit"; in a text it stays what it is. */
Test(config, minus_infinity_is_not_set)
{
    struct config *c = NULL;
    struct err err;
    cr_assert_eq(config_parse(&c,
                              "{\"a\": -Infinity, \"b\": \"-Infinity \\\" -Infinity\", \"c\": [1]}",
                              "test", &err),
                 0, "%s", err.msg);
    cr_assert(!config_has(c, "a"));
    cr_assert_eq(config_num(c, "a", 7), 7);
    cr_assert_str_eq(config_str(c, "b", ""), "-Infinity \" -Infinity");
    config_close(c);
    cr_assert_eq(config_parse(&c, "{\"a\": NaN}", "test", &err), ERR_FORMAT);
    cr_assert_eq(config_parse(&c, "{\"a\": -Infinity", "test", &err), ERR_FORMAT);
}
