/* `weft catalog`: the folder's data and pictures. (The page itself was looked at in a browser; with
 * chromium on the PATH it is loaded here too, and must draw a card an adapter.) */
#include "shared.h"
#include "shell.h"
#include "unet/file.h"
#include "unet/image.h"

#include <jansson.h>
#include <sys/stat.h>

static json_t *data_of(struct shell *s)
{
    char *text;
    struct err err;
    static const char begin[] = "const adapters = ";
    cr_assert_eq(file_read(&text, NULL, in(s, "cat/data.js"), 1 << 20, &err), 0, "%s", err.msg);
    cr_assert(!strncmp(text, begin, sizeof begin - 1), "%.60s", text);
    json_t *j = json_loads(text + sizeof begin - 1, JSON_DISABLE_EOF_CHECK, NULL);
    cr_assert(j, "%.300s", text);
    free(text);
    return j;
}

static void fill(struct shell *s)
{
    char command[1200];
    struct image im = {.w = 600, .h = 300, .rgb = calloc(600 * 300, 3)};
    struct err err;
    setenv("WEFT_HOME", in(s, "home"), 1);
    mkdir(in(s, "in"), 0777);
    snprintf(command, sizeof command, "cp tests/golden/data/lora-kohya.safetensors '%s'",
             in(s, "in/a.safetensors"));
    cr_assert_eq(system(command), 0);
    snprintf(command, sizeof command, "cp tests/golden/data/deltas/loha.safetensors '%s'",
             in(s, "in/b.safetensors"));
    cr_assert_eq(system(command), 0);
    cr_assert_eq(image_write_png(in(s, "in/a.preview.png"), &im, NULL, 0, &err), 0);
    image_release(&im);
    weft(s, "add", in(s, "in"), NULL);
    weft(s, "tag", "a", "+film", "--trigger", "sks \"fox\"", "--note", "</script><b>", "--strength",
         "0.8", NULL);
    cr_assert_eq(s->code, 0, "%s", s->err);
}

Test(cli_catalog, writes_what_the_page_shows)
{
    struct shell s;
    struct image im = {0};
    struct err err;
    shell_open(&s);
    fill(&s);
    weft(&s, "catalog", "-o", in(&s, "cat"), "--json", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    json_t *list = data_of(&s), *a = json_array_get(list, 0);
    cr_expect_eq(json_array_size(list), 2);
    cr_expect_str_eq(json_string_value(json_object_get(a, "name")), "a");
    cr_expect_eq(json_number_value(json_object_get(a, "strength")), 0.8);
    cr_expect_str_eq(json_string_value(json_array_get(json_object_get(a, "triggers"), 0)),
                     "sks \"fox\"");
    const char *thumbnail = json_string_value(json_object_get(a, "thumbnail"));
    char path[100];
    cr_assert(thumbnail, "%s", s.out);
    snprintf(path, sizeof path, "cat/%s", thumbnail);
    cr_assert_eq(image_read_png(in(&s, path), &im, NULL, &err), 0, "%s", err.msg);
    cr_expect(im.w == 256 && im.h == 128, "%d x %d", im.w, im.h);
    cr_expect(json_is_null(json_object_get(json_array_get(list, 1), "thumbnail")));
    cr_expect(file_exists(in(&s, "cat/index.html")));
    image_release(&im);
    json_decref(list);
    weft(&s, "catalog", "-o", in(&s, "cat"), NULL); /* again, over itself */
    cr_expect_eq(s.code, 0, "%s", s.err);
    weft(&s, "catalog", "-o", in(&s, "in/a.safetensors"), NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "no folder"), "%s", s.err);
    shell_close(&s);
}

Test(cli_catalog, the_page_draws_a_card_an_adapter)
{
    struct shell s;
    char command[1200], *dom;
    struct err err;
    if (system("command -v chromium >/dev/null"))
        cr_skip_test("no chromium");
    shell_open(&s);
    fill(&s);
    weft(&s, "catalog", "-o", in(&s, "cat"), NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    snprintf(command, sizeof command,
             "timeout 60 chromium --headless --no-sandbox --disable-gpu --virtual-time-budget=3000 "
             "--dump-dom 'file://%s' >'%s' 2>/dev/null",
             in(&s, "cat/index.html"), in(&s, "dom"));
    cr_assert_eq(system(command), 0);
    cr_assert_eq(file_read(&dom, NULL, in(&s, "dom"), 1 << 20, &err), 0);
    cr_expect(strstr(dom, "2 of 2"), "%.300s", dom);
    cr_expect(strstr(dom, "sks \"fox\"") && strstr(dom, "&lt;/script&gt;&lt;b&gt;"), "%s", dom);
    free(dom);
    shell_close(&s);
}
