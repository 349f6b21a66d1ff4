/* The page of a folder of pictures, cli/gallery.html, in a browser: with chromium on the PATH it is
 * loaded beside a pictures.js of 5,000 records, most of whose files are missing, and what it drew
 * is read. */
#include "shell.h"
#include "unet/file.h"
#include "unet/image.h"

#include <jansson.h>
#include <sys/stat.h>

enum { N = 5000, STEP = 120 };

#define ODD_FILE "sub/00002 100%#1?'.png"
#define BAD_TEXT                                                                                   \
    "</script><b id=evil>a \"cat\" isn't 猫 &amp;<img src=x onerror=\"document.title='evil'\">"

/* The record of job n, from 1. */
static json_t *record(int n)
{
    char id[32], file[64], seed[32];
    snprintf(id, sizeof id, "job-%d", n);
    snprintf(file, sizeof file, "%05d-job.png", n);
    snprintf(seed, sizeof seed, "%d", 70000 + n);
    json_t *r =
        json_pack("{ss si ss ss sn ss ss ss si si si sf sn sn sn sb sn s[{ss ss sf}] sf ss ss}",
                  "id", id, "n", n, "state", "done", "file", file, "reason", "prompt",
                  "a plain kite", "negative", "mist", "seed", seed, "width", 64, "height", 32,
                  "steps", 20, "cfg", 4.5, "sampler", "schedule", "compose", "fold", 0, "model",
                  "adapters", "name", n % 2 ? "kite" : "lantern", "id", "128ede04c715", "strength",
                  0.8, "seconds", 0.41, "finished", "2026-11-29T18:00:00Z", "sha256", "5ca1ab1e");
    cr_assert(r, "record %d", n);
    return r;
}

static void set(json_t *r, const char *name, json_t *value)
{
    cr_assert_eq(json_object_set_new(r, name, value), 0);
}

/* What differs in the first few: 1 is there, as is 2, under an odd name and with bad texts; 3
 * failed; 4 waits; 5 and 6 have seeds that no double holds. The files of 5 and all after it are
 * missing. */
static void make_special(json_t *r, int n)
{
    if (n == 2) {
        set(r, "file", json_string(ODD_FILE));
        set(r, "prompt", json_string(BAD_TEXT));
        set(r, "id", json_string("odd #1 & more"));
        set(r, "compose", json_string("gated:uncond=base"));
        set(r, "adapters",
            json_pack("[{ss sn sf}]", "name", "<i>kite</i>", "id", "strength", 0.25));
    } else if (n == 3) {
        set(r, "state", json_string("failed"));
        set(r, "reason", json_string("no adapter is called '<u>lamp</u>'"));
        set(r, "file", json_null());
        set(r, "seconds", json_null());
    } else if (n == 4) {
        set(r, "state", json_string("waiting"));
        set(r, "file", json_null());
    } else if (n == 5 || n == 6) {
        set(r, "seed", json_string(n == 5 ? "9223372036854775807" : "9223372036854775806"));
        set(r, "prompt", json_string("a large seed"));
    }
}

static void write_pictures(const struct shell *s)
{
    struct image im = {.w = 64, .h = 32, .rgb = calloc(64 * 32, 3)};
    struct err err;
    FILE *f = fopen(in(s, "pictures.js"), "w");
    cr_assert(f && im.rgb);
    fputs("const pictures = [\n", f);
    for (int n = 1; n <= N; n++) {
        json_t *r = record(n);
        make_special(r, n);
        cr_assert_eq(json_dumpf(r, f, JSON_COMPACT), 0);
        fputs(n < N ? ",\n" : "\n", f);
        json_decref(r);
    }
    fputs("];\nconst batch = {\"title\":\"<jobs>.jsonl\",\"made\":\"2026-11-29T18:00:00Z\"};\n", f);
    cr_assert_eq(fclose(f), 0);
    mkdir(in(s, "sub"), 0777);
    cr_assert_eq(image_write_png(in(s, "00001-job.png"), &im, NULL, 0, &err), 0, "%s", err.msg);
    cr_assert_eq(image_write_png(in(s, ODD_FILE), &im, NULL, 0, &err), 0, "%s", err.msg);
    image_release(&im);
}

static void gallery_open(struct shell *s)
{
    if (system("command -v chromium >/dev/null"))
        cr_skip_test("no chromium");
    shell_open(s);
    write_pictures(s);
}

/* The page's elements at that address, without its scripts, after `script` ran behind them. The
 * caller frees it. */
static char *load(const struct shell *s, const char *hash, const char *script)
{
    char command[1200], *page, *dom;
    struct err err;
    cr_assert_eq(file_read(&page, NULL, "cli/gallery.html", 1 << 20, &err), 0, "%s", err.msg);
    FILE *f = fopen(in(s, "index.html"), "w");
    cr_assert(f);
    fprintf(f, "%s<script>%s</script>", page, script);
    cr_assert_eq(fclose(f), 0);
    snprintf(command, sizeof command,
             "timeout 60 chromium --headless --no-sandbox --disable-gpu --user-data-dir='%s' "
             "--virtual-time-budget=20000 --dump-dom 'file://%s%s' >'%s' 2>/dev/null",
             in(s, "profile"), in(s, "index.html"), hash, in(s, "dom"));
    cr_assert_eq(system(command), 0);
    cr_assert_eq(file_read(&dom, NULL, in(s, "dom"), 1 << 22, &err), 0, "%s", err.msg);
    char *end = strstr(dom, "<script");
    cr_assert(end, "%.300s", dom);
    *end = 0;
    free(page);
    return dom;
}

static int count(const char *text, const char *word)
{
    int n = 0;
    for (; (text = strstr(text, word)); text++)
        n++;
    return n;
}

/* Each of the texts, the last NULL, is in the page. */
static void expect_all(const char *dom, ...)
{
    va_list ap;
    va_start(ap, dom);
    for (const char *text; (text = va_arg(ap, const char *));)
        cr_expect(strstr(dom, text), "'%s' is not in %.20000s", text, dom);
    va_end(ap);
}

Test(gallery, draws_a_step_of_the_cards)
{
    struct shell s;
    gallery_open(&s);
    char *dom = load(&s, "", "");
    expect_all(dom, ">5000 of 5000<", "<title>&lt;jobs&gt;.jsonl: pictures</title>", NULL);
    cr_expect_eq(count(dom, "<article"), STEP, "%d cards", count(dom, "<article"));
    expect_all(dom, "&lt;/script&gt;&lt;b id=evil&gt;a \"cat\" isn't 猫 &amp;amp;&lt;img src=x",
               ">&lt;i&gt;kite&lt;/i&gt; 0.25 · gated:uncond=base<",
               ">seed 9223372036854775807 · 20 steps · cfg 4.5<", NULL);
    cr_expect(!strstr(dom, "<b id=\"evil\"") && !strstr(dom, "<i>kite") && !strstr(dom, "<u>lamp"));
    /* Pictures that are there stay, as wide as they should be; others say why they are none. */
    expect_all(dom, "src=\"00001-job.png\"", "src=\"sub/00002%20100%25%231%3F'.png\"",
               "aspect-ratio: 64 / 32", ">no adapter is called '&lt;u&gt;lamp&lt;/u&gt;'<",
               ">waiting<", ">00005-job.png is missing<", NULL);
    cr_expect(!strstr(dom, "src=\"00005-job.png\""));
    cr_expect(strstr(dom, "<select id=\"model\" aria-label=\"model\" hidden"), "one model");
    free(dom);
    shell_close(&s);
}

Test(gallery, shows_what_the_address_asks_for)
{
    struct shell s;
    gallery_open(&s);
    char *dom = load(&s, "#state=failed", "");
    expect_all(dom, ">1 of 5000<", ">no adapter is called '&lt;u&gt;lamp&lt;/u&gt;'<", NULL);
    cr_expect_eq(count(dom, "<article"), 1);
    free(dom);
    dom = load(&s, "#q=mist+CAT+gated&adapter=%3Ci%3Ekite%3C%2Fi%3E", "");
    expect_all(dom, ">1 of 5000<", "a \"cat\" isn't 猫", NULL);
    free(dom);
    dom = load(&s, "#q=7001&adapter=kite", ""); /* the seeds 70011 to 70019 */
    expect_all(dom, ">5 of 5000<", ">seed 70011 ", ">seed 70019 ", NULL);
    free(dom);
    dom = load(&s, "#q=large&order=seed", "");
    const char *less = strstr(dom, ">seed 9223372036854775806 ");
    const char *more = strstr(dom, ">seed 9223372036854775807 ");
    cr_expect(less && more && less < more);
    free(dom);
    dom = load(&s, "#model=gone", ""); /* a choice there is no more */
    expect_all(dom, ">0 of 5000<", ">gone (0)<", NULL);
    free(dom);
    shell_close(&s);
}

Test(gallery, opens_a_picture_with_all_its_settings)
{
    struct shell s;
    gallery_open(&s);
    char *dom = load(&s, "#adapter=lantern&open=job-8", "");
    char *view = strstr(dom, "<dialog");
    expect_all(view, "open=\"\"", ">3 of 2499<", ">weft render --like 00008-job.png<", NULL);
    static const char *const row[][2] = {
        {"id", "job-8"},        {"n", "8"},
        {"state", "done"},      {"file", "00008-job.png"},
        {"seed", "70008"},      {"prompt", "a plain kite"},
        {"negative", "mist"},   {"width", "64"},
        {"height", "32"},       {"steps", "20"},
        {"cfg", "4.5"},         {"sampler", "default"},
        {"compose", "default"}, {"adapters", "lantern 0.8 (128ede04c715)"},
        {"fold", "no"},         {"schedule", "default"},
        {"model", "default"},   {"finished", "2026-11-29T18:00:00Z"},
        {"seconds", "0.41"},    {"sha256", "5ca1ab1e"}};
    for (size_t i = 0; i < sizeof row / sizeof *row; i++) {
        char text[200];
        snprintf(text, sizeof text, ">%s</th><td>%s</td>", row[i][0], row[i][1]);
        cr_expect(strstr(view, text), "%s", text);
    }
    free(dom);
    dom = load(&s, "#open=odd+%231+%26+more", "");
    expect_all(strstr(dom, "<dialog"), ">2 of 5000<",
               ">adapters</th><td>&lt;i&gt;kite&lt;/i&gt; 0.25<", "<a href=\"file:///tmp/",
               ">weft render --like 'sub/00002 100%#1?'\\''.png'<", NULL);
    free(dom);
    dom = load(&s, "#open=job-3", "");
    view = strstr(dom, "<dialog");
    expect_all(view, ">reason</th><td>no adapter is called '&lt;u&gt;lamp&lt;/u&gt;'<", NULL);
    cr_expect(!strstr(view, "weft render") && !strstr(view, "copy command"));
    free(dom);
    shell_close(&s);
}

Test(gallery, is_used_by_clicks_and_keys)
{
    static const char script[] =
        "(async () => {\n"
        "const said = [], wait = () => new Promise(done => setTimeout(done, 600));\n"
        "const clipboard = {writeText: async text => { said.push(text); }};\n"
        "Object.defineProperty(navigator, 'clipboard', {value: clipboard});\n"
        "const press = key => (document.activeElement ?? document.body).dispatchEvent(\n"
        "    new KeyboardEvent('keydown', {key, bubbles: true}));\n"
        "list.children[6].click();\n"
        "press('ArrowRight'); press('ArrowRight'); press('ArrowLeft');\n"
        "for (const b of byId('copies').children) b.click();\n"
        "await wait(); said.push(byId('place').textContent, location.hash);\n"
        "byId('close').click(); await wait(); said.push(location.hash, "
        "document.activeElement.ariaLabel);\n"
        "press('ArrowRight'); said.push(document.activeElement.ariaLabel);\n"
        "byId('q').value = 'Plain'; byId('q').dispatchEvent(new Event('input'));\n"
        "await wait(); said.push(location.hash, byId('count').textContent);\n"
        "scrollTo(0, 1e6); dispatchEvent(new Event('scroll')); said.push(list.children.length > "
        "120);\n"
        "byId('size').value = 80; byId('size').dispatchEvent(new Event('input'));\n"
        "await wait(); said.push(location.hash);\n"
        "document.title = said.join('|');\n"
        "})();\n";
    struct shell s;
    gallery_open(&s);
    char *dom = load(&s, "", script);
    expect_all(dom,
               "<title>a plain kite|70008|weft render --like 00008-job.png|8 of 5000|#open=job-8||"
               "job-8, done: a plain kite|job-9, done: a plain kite|#q=Plain|4997 of 5000|true|"
               "#q=Plain&amp;size=80</title>",
               NULL);
    free(dom);
    shell_close(&s);
}
