/* The repository as a user meets it, by the real program: names of the JSON, exit codes, messages, the
 * order of syncs. */
#include "shared.h"
#include "shell.h"
#include "small_lora.h"
#include "unet/image.h"

#include <jansson.h>
#include <limits.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define MODEL "tests/golden/data/tiny-sd1"
#define LORA  "tests/golden/data/lora-kohya.safetensors"

/* A shell whose repository is its own. */
static void open_home(struct shell *s)
{
    shell_open(s);
    setenv("WEFT_HOME", in(s, "home"), 1);
    mkdir(in(s, "in"), 0777);
}

static void done(const struct shell *s)
{
    cr_assert_eq(s->code, 0, "exit code %d, stderr: %s", s->code, s->err);
}

static void fails(const struct shell *s, int code, const char *words)
{
    cr_expect_eq(s->code, code, "exit code %d, stderr: %s", s->code, s->err);
    cr_expect(strstr(s->err, words), "expected '%s' in: %s", words, s->err);
    cr_expect(!strncmp(s->err, "weft: ", 6) || strstr(s->err, "\nweft: "), "stderr: %s", s->err);
}

/* The i-th line of stdout as JSON, NULL: there are fewer. */
static json_t *line(const struct shell *s, int i)
{
    const char *p = s->out;
    while (i-- > 0 && p && *p) {
        p = strchr(p, '\n');
        p = p ? p + 1 : NULL;
    }
    if (!p || !*p)
        return NULL;
    json_t *j = json_loadb(p, strcspn(p, "\n"), 0, NULL);
    cr_assert(j, "no JSON: %s", p);
    return j;
}

static const char *text(const json_t *j, const char *key)
{
    return json_string_value(json_object_get(j, key));
}

static void expect_keys(const json_t *j, const char *const *keys)
{
    for (; *keys; keys++)
        cr_expect(json_object_get(j, *keys), "no '%s'", *keys);
}

static void copy_file(const char *from, const char *to)
{
    char *bytes;
    size_t n;
    struct err err;
    cr_assert_eq(file_read(&bytes, &n, from, 1 << 26, &err), 0, "%s", err.msg);
    cr_assert_eq(file_replace(to, bytes, n, &err), 0, "%s", err.msg);
    free(bytes);
}

/* `verify` finds nothing wrong. */
static void expect_whole(struct shell *s, int checked)
{
    weft(s, "verify", "--json", NULL);
    done(s);
    json_t *j = line(s, 0);
    cr_expect_eq(json_integer_value(json_object_get(j, "checked")), checked, "%s", s->out);
    static const char *const lists[] = {"damaged", "missing", "orphaned"};
    for (int i = 0; i < 3; i++)
        cr_expect(json_is_array(json_object_get(j, lists[i])) &&
                      !json_array_size(json_object_get(j, lists[i])),
                  "%s", s->out);
    json_decref(j);
}

/* ---- what scripts rely on -------------------------------------------------------------------- */

Test(cli_repo, json_of_add_show_list)
{
    static const char *const add_keys[] = {"file", "status", "name", "id", "reason", NULL};
    static const char *const show_keys[] = {
        "name",          "id",     "file_sha256", "data_sha256", "autov2",   "autov3",
        "declared_hash", "format", "kinds",       "base",        "rank",     "sites",
        "tensors",       "dtype",  "bytes",       "norm",        "triggers", "tags",
        "category",      "notes",  "strength",    NULL};
    struct shell s;
    open_home(&s);
    copy_file(LORA, in(&s, "in/a.safetensors"));
    copy_file(LORA, in(&s, "in/b.safetensors"));
    copy_file("README.md", in(&s, "in/c.safetensors"));
    weft(&s, "add", in(&s, "in"), "--json", NULL);
    done(&s);
    static const char *const want[] = {"refused", "added", "duplicate"};
    for (int i = 0; i < 3; i++) {
        json_t *j = line(&s, i);
        cr_assert(j, "stdout: %s", s.out);
        expect_keys(j, add_keys);
        cr_expect_str_eq(text(j, "status"), want[i]);
        cr_expect_eq(!text(j, "id"), i == 0);
        json_decref(j);
    }
    cr_expect_null(line(&s, 3));
    weft(&s, "show", "a", "--json", NULL);
    done(&s);
    json_t *j = line(&s, 0);
    expect_keys(j, show_keys);
    cr_expect_str_eq(text(j, "autov3"), text(j, "id"));
    cr_expect_eq(strncmp(text(j, "autov2"), text(j, "file_sha256"), 10), 0);
    cr_expect_eq(json_integer_value(json_object_get(j, "sites")), 265);
    cr_expect_eq(json_array_size(json_object_get(j, "kinds")), 2);
    cr_expect_str_eq(json_string_value(json_array_get(json_object_get(j, "twins"), 0)), "b");
    json_decref(j);
    weft(&s, "list", "--json", NULL);
    done(&s);
    j = line(&s, 1);
    expect_keys(j, show_keys);
    json_decref(j);
    weft(&s, "list", NULL);
    cr_expect(s.code == 0 && strstr(s.out, "a  ") && !strchr(s.out, '\033'), "%s", s.out);
    weft(&s, "show", "a", "-v", NULL);
    cr_expect(s.code == 0 && strstr(s.out, "AutoV2") && strstr(s.out, "twins") &&
                  !strchr(s.out, '\033'),
              "%s", s.out);
    /* a file need not be in it */
    weft(&s, "show", "tests/golden/data/lora-peft", "--json", NULL);
    done(&s);
    j = line(&s, 0);
    expect_keys(j, show_keys);
    cr_expect(json_is_null(json_object_get(j, "id")));
    cr_expect_str_eq(text(j, "format"), "lora");
    json_decref(j);
    shell_close(&s);
}

Test(cli_repo, human_words_of_add)
{
    struct shell s;
    open_home(&s);
    copy_file(LORA, in(&s, "in/a.safetensors"));
    weft(&s, "add", in(&s, "in"), NULL);
    done(&s);
    cr_expect(strstr(s.out, "added     a  ") && strstr(s.out, "1 added, 0 duplicate, 0 unchanged"),
              "%s", s.out);
    cr_expect_eq(*s.err, 0, "no progress where there is no terminal: %s", s.err);
    weft(&s, "add", in(&s, "in"), NULL);
    cr_expect_str_eq(s.out, "0 added, 0 duplicate, 1 unchanged, 0 refused\n");
    weft(&s, "add", "README.md", NULL);
    fails(&s, 1, "none of 1 files");
    cr_expect(strstr(s.out, "refused") && strstr(s.out, "not a safetensors file"), "%s", s.out);
    weft(&s, "add", in(&s, "nowhere"), NULL);
    fails(&s, 1, "none of 1 files");
    weft(&s, "add", NULL);
    fails(&s, 2, "which files or folders");
    weft(&s, "add", in(&s, "in"), "--colour", NULL);
    fails(&s, 2, "no option '--colour'");
    shell_close(&s);
}

Test(cli_repo, tag_rm_gc_export)
{
    struct shell s;
    open_home(&s);
    copy_file(LORA, in(&s, "in/a.safetensors"));
    weft(&s, "add", in(&s, "in/a.safetensors"), "--copy", NULL);
    done(&s);
    weft(&s, "tag", "a", "+people", "+not wanted", "-not wanted", "--trigger", "sks monkey, red",
         "--note", "-1 is too much", "--strength", "-0.5", "--category", "character",
         "--class-word", "monkey", "--rename", "the monkey: v2", "--json", NULL);
    done(&s);
    json_t *j = line(&s, 0);
    cr_expect_str_eq(text(j, "name"), "the monkey: v2");
    cr_expect_str_eq(text(j, "notes"), "-1 is too much");
    cr_expect_str_eq(text(j, "category"), "character");
    cr_expect_eq(json_number_value(json_object_get(j, "strength")), -0.5);
    cr_expect_eq(json_array_size(json_object_get(j, "tags")), 1);
    cr_expect_str_eq(json_string_value(json_array_get(json_object_get(j, "triggers"), 0)),
                     "sks monkey, red");
    json_decref(j);
    /* all of one call or nothing */
    weft(&s, "tag", "the monkey: v2", "+second", "--rename", "a/b", NULL);
    fails(&s, 2, "slashes");
    weft(&s, "list", "--tag", "second", "--json", NULL);
    cr_expect(s.code == 0 && !*s.out, "%s", s.out);
    weft(&s, "tag", "nobody", "+x", NULL);
    fails(&s, 1, "no such adapter");
    weft(&s, "search", "monkey", "--json", NULL);
    done(&s);
    j = line(&s, 0);
    static const char *const keys[] = {"name", "id", "score", "why", NULL};
    expect_keys(j, keys);
    json_decref(j);
    weft(&s, "export", "the monkey: v2", "-o", in(&s, "out.safetensors"), NULL);
    done(&s);
    char *x, *y;
    size_t nx, ny;
    struct err err;
    cr_assert_eq(file_read(&x, &nx, LORA, 1 << 26, &err), 0);
    cr_assert_eq(file_read(&y, &ny, in(&s, "out.safetensors"), 1 << 26, &err), 0);
    cr_expect(nx == ny && !memcmp(x, y, nx), "the exported file is another");
    free(x);
    free(y);
    weft(&s, "rm", "the monkey: v2", "nobody", NULL);
    fails(&s, 1, "nobody");
    expect_whole(&s, 1);
    weft(&s, "rm", "the monkey: v2", NULL);
    done(&s);
    weft(&s, "gc", "--json", NULL);
    done(&s);
    j = line(&s, 0);
    cr_expect_eq(json_array_size(json_object_get(j, "removed")), 1, "%s", s.out);
    json_decref(j);
    expect_whole(&s, 0);
    cr_expect_eq(access(in(&s, "in/a.safetensors"), R_OK), 0, "rm or gc touched the user's file");
    shell_close(&s);
}

/* ---- at use ---------------------------------------------------------------------------------- */

static bool same_picture(const struct shell *s, const char *a, const char *b)
{
    struct image x = {0}, y = {0};
    struct err err;
    cr_assert_eq(image_read_png(in(s, a), &x, NULL, &err), 0, "%s", err.msg);
    cr_assert_eq(image_read_png(in(s, b), &y, NULL, &err), 0, "%s", err.msg);
    bool same = x.w == y.w && x.h == y.h && !memcmp(x.rgb, y.rgb, (size_t)x.w * (size_t)x.h * 3);
    image_release(&x);
    image_release(&y);
    return same;
}

static void render(struct shell *s, const char *prompt, const char *ref, const char *out)
{
    weft(s, "render", prompt, "-a", ref, "-m", MODEL, "--seed", "4", "--steps", "2", "-o",
         in(s, out), "--json", NULL);
}

Test(cli_repo, render_by_name)
{
    struct shell s;
    open_home(&s);
    copy_file(LORA, in(&s, "in/a.safetensors"));
    weft(&s, "add", in(&s, "in"), NULL);
    weft(&s, "tag", "a", "--strength", "0.6", "--rename", "my:0.9,x", NULL);
    done(&s);
    render(&s, "a cat", LORA ":0.6", "file.png");
    render(&s, "a cat", "my:0.9,x", "name.png");
    done(&s);
    json_t *j = line(&s, 0), *a = json_array_get(json_object_get(j, "adapters"), 0);
    cr_expect_str_eq(text(a, "name"), "my:0.9,x");
    cr_expect_eq(json_number_value(json_object_get(a, "strength")), 0.6);
    char *ref = NULL;
    cr_assert(asprintf(&ref, "%.6s:0.2,te=0.6,unet=0.6", text(a, "id")) > 0);
    json_decref(j);
    cr_expect(same_picture(&s, "file.png", "name.png"), "the preferred strength is not used");
    render(&s, "a cat", ref, "id.png");
    done(&s);
    cr_expect(same_picture(&s, "file.png", "id.png"));
    free(ref);
    render(&s, "a cat", "my:0.9,x:0.1", "weak.png");
    done(&s);
    cr_expect(!same_picture(&s, "file.png", "weak.png"));
    weft(&s, "render", "a cat<lora:my:0.9,x:0.6>", "-m", MODEL, "--seed", "4", "--steps", "2", "-o",
         in(&s, "tag.png"), NULL);
    done(&s);
    cr_expect(same_picture(&s, "file.png", "tag.png"));
    render(&s, "a cat", "nobody", "x.png");
    fails(&s, 1, "nobody: no such adapter");
    render(&s, "a cat", "my:0.9", "x.png");
    fails(&s, 1, "near to it: my:0.9,x");
    shell_close(&s);
}

Test(cli_repo, render_like_finds_what_moved)
{
    struct shell s;
    open_home(&s);
    copy_file(LORA, in(&s, "in/a.safetensors"));
    weft(&s, "add", in(&s, "in"), NULL);
    render(&s, "a cat", "a:0.7", "one.png");
    done(&s);
    cr_assert_eq(rename(in(&s, "in/a.safetensors"), in(&s, "in/b.safetensors")), 0);
    render(&s, "a cat", "a", "x.png");
    fails(&s, 1, "weft sync finds it");
    weft(&s, "sync", "--json", NULL);
    done(&s);
    cr_expect(strstr(s.out, "\"relinked\""), "%s", s.out);
    weft(&s, "render", "--like", in(&s, "one.png"), "-o", in(&s, "two.png"), NULL);
    done(&s);
    cr_expect(same_picture(&s, "one.png", "two.png"));
    /* retrained under the same name: never used silently */
    copy_file("tests/golden/data/lora-peft.safetensors", in(&s, "in/b.safetensors"));
    render(&s, "a cat", "a", "x.png");
    fails(&s, 1, "other weights than when it was added");
    weft(&s, "render", "--like", in(&s, "one.png"), "-o", in(&s, "x.png"), NULL);
    cr_expect_eq(s.code, 1, "%s", s.err);
    weft(&s, "sync", NULL);
    done(&s);
    render(&s, "a cat", "a", "new.png");
    done(&s);
    cr_expect_neq(access(in(&s, "x.png"), F_OK), 0, "a picture appeared");
    shell_close(&s);
}

Test(cli_repo, damaged_copies_are_not_used)
{
    struct shell s;
    open_home(&s);
    weft(&s, "add", LORA, "--copy", NULL);
    weft(&s, "show", "lora-kohya", "--json", NULL);
    done(&s);
    json_t *j = line(&s, 0);
    int fd = open(text(j, "file"), O_WRONLY);
    cr_assert_eq(pwrite(fd, "!", 1, (off_t)json_integer_value(json_object_get(j, "bytes")) - 1), 1);
    close(fd);
    json_decref(j);
    render(&s, "a cat", "lora-kohya", "x.png");
    fails(&s, 1, "damaged");
    weft(&s, "verify", NULL);
    fails(&s, 1, "1 damaged, 0 missing");
    weft(&s, "export", "lora-kohya", "-o", in(&s, "x"), NULL);
    fails(&s, 1, "not what was added");
    shell_close(&s);
}

Test(cli_repo, triggers)
{
    struct shell s;
    struct image im = {0};
    struct image_texts t = {0};
    struct err err;
    open_home(&s);
    weft(&s, "add", LORA, NULL);
    weft(&s, "tag", "lora-kohya", "--trigger", "sks monkey, red hat", "--trigger", "bare", NULL);
    done(&s);
    render(&s, "a Red Hat and a sks monkey", "lora-kohya", "a.png");
    cr_expect(s.code == 0 && !*s.err, "a hint where all words are there: %s", s.err);
    render(&s, "a monkey", "lora-kohya", "b.png");
    cr_expect(s.code == 0 && strstr(s.err, "sks monkey, red hat") && strstr(s.err, "--triggers"),
              "%s", s.err);
    weft(&s, "render", "a lake:1.2", "-a", "lora-kohya", "-m", MODEL, "--triggers", "--seed", "1",
         "--steps", "1", "-o", in(&s, "c.png"), NULL);
    cr_expect(s.code == 0 && !*s.err, "%s", s.err);
    cr_assert_eq(image_read_png(in(&s, "c.png"), &im, &t, &err), 0);
    cr_expect(strstr(image_text_find(&t, "weft"), "\"sks monkey, red hat, a lake:1.2\""), "%s",
              image_text_find(&t, "weft"));
    cr_expect(strstr(image_text_find(&t, "weft"), "\"file_sha256\""));
    image_release(&im);
    image_texts_release(&t);
    shell_close(&s);
}

Test(cli_repo, models)
{
    struct shell s;
    open_home(&s);
    weft(&s, "model", "add", MODEL, "--name", "tiny", "--json", NULL);
    done(&s);
    weft(&s, "model", "list", "--json", NULL);
    json_t *j = line(&s, 0);
    cr_expect_str_eq(text(j, "name"), "tiny");
    cr_expect_eq(json_integer_value(json_object_get(j, "context")), 16);
    json_decref(j);
    weft(&s, "add", LORA, NULL);
    weft(&s, "list", "--for", "tiny", "--json", NULL);
    j = line(&s, 0);
    cr_expect_str_eq(text(j, "base"), "tiny");
    json_decref(j);
    /* the only one is the default, and its name is known */
    weft(&s, "render", "x", "--steps", "1", "--seed", "1", "-o", in(&s, "a.png"), NULL);
    done(&s);
    weft(&s, "render", "x", "--steps", "1", "--seed", "1", "-m", "tiny", "-o", in(&s, "b.png"),
         NULL);
    done(&s);
    cr_expect(same_picture(&s, "a.png", "b.png"));
    weft(&s, "model", "add", "tests/golden/data/tiny-sd2", NULL);
    done(&s);
    weft(&s, "render", "x", "--steps", "1", "-o", in(&s, "c.png"), NULL);
    fails(&s, 2, "which model");
    weft(&s, "model", "verify", NULL);
    done(&s);
    weft(&s, "model", "rm", "tiny-sd2", NULL);
    done(&s);
    weft(&s, "model", "show", "tiny-sd2", NULL);
    fails(&s, 1, "no such model");
    weft(&s, "model", "fly", NULL);
    fails(&s, 2, "not 'fly'");
    shell_close(&s);
}

/* ---- trouble --------------------------------------------------------------------------------- */

Test(cli_repo, nothing_there_yet)
{
    struct shell s;
    open_home(&s);
    weft(&s, "list", NULL);
    fails(&s, 1, "no repository there yet");
    weft(&s, "verify", NULL);
    fails(&s, 1, "no repository there yet");
    weft(&s, "show", "x", NULL);
    fails(&s, 1, "no such file");
    cr_expect_neq(access(in(&s, "home"), F_OK), 0, "a command that only reads made a repository");
    weft(&s, "render", "x", "-m", MODEL, "--steps", "1", "-o", in(&s, "a.png"), NULL);
    done(&s);
    copy_file("README.md", in(&s, "plain"));
    weft(&s, "add", LORA, "--home", in(&s, "plain"), NULL);
    fails(&s, 1, "plain");
    shell_close(&s);
}

Test(cli_repo, a_database_that_is_none)
{
    struct shell s;
    open_home(&s);
    mkdir(in(&s, "home"), 0777);
    copy_file("README.md", in(&s, "home/weft.db"));
    static const char *const commands[] = {"list", "verify", "sync", "gc"};
    for (int i = 0; i < 4; i++) {
        weft(&s, commands[i], NULL);
        fails(&s, 1, "damaged");
    }
    shell_close(&s);
}

/* Where nothing can be written, what only reads still works. */
Test(cli_repo, a_folder_that_cannot_be_written)
{
    struct shell s;
    open_home(&s);
    weft(&s, "add", LORA, "--copy", NULL);
    done(&s);
    char *argv[] = {
        (char[]){"/usr/bin/setpriv"}, (char[]){"--reuid=65534"}, (char[]){"--clear-groups"},
        (char *)getenv("WEFT_BIN"),   (char[]){"list"},          NULL};
    if (getuid() || access(argv[0], X_OK) || !argv[3])
        cr_skip_test("only root with setpriv can become somebody else");
    cr_assert_eq(chmod(s.dir, 0755), 0);
    int o = open(in(&s, ".out"), O_CREAT | O_WRONLY, 0666), e = open(in(&s, ".err"), O_CREAT, 0666);
    close(o);
    close(e);
    finish(&s, start(&s, argv));
    cr_expect(s.code == 0 && strstr(s.out, "lora-kohya"), "%d %s", s.code, s.err);
    argv[4] = (char[]){"verify"};
    finish(&s, start(&s, argv));
    cr_expect(s.code == 0 && strstr(s.out, "1 checked, 0 damaged"), "%d %s", s.code, s.err);
    argv[4] = (char[]){"sync"};
    finish(&s, start(&s, argv));
    fails(&s, 1, "cannot be written");
    shell_close(&s);
}

/* Files by other people, good and bad: all named, none in the way of another. */
Test(cli_repo, files_from_outside)
{
    struct shell s;
    char path[PATH_MAX];
    open_home(&s);
    weft(&s, "add", shared_path(path, sizeof path, "adapters"), "--json", NULL);
    done(&s);
    int in_it = 0, refused = 0;
    json_t *j;
    for (int i = 0; (j = line(&s, i)); i++) {
        bool no = !strcmp(text(j, "status"), "refused");
        refused += no;
        in_it += !no;
        cr_expect(!no || (text(j, "reason") && *text(j, "reason")), "no reason: %s",
                  text(j, "file"));
        json_decref(j);
    }
    cr_expect_geq(in_it, 10, "%d taken", in_it);
    cr_expect_geq(refused, 10, "%d refused", refused);
    static const char *const base[][2] = {{"smart_falcon_4_lokr", "sd1"},
                                          {"sd-pokemon-model-lora", "sd1"},
                                          {"0000100_adapters", "llm"},
                                          {"lora_disney", "sd1"}};
    for (int i = 0; i < 4; i++) {
        weft(&s, "show", base[i][0], "--json", NULL);
        done(&s);
        j = line(&s, 0);
        cr_expect_str_eq(text(j, "base"), base[i][1], "%s", base[i][0]);
        json_decref(j);
    }
    weft(&s, "add", shared_path(path, sizeof path, "containers"), "--copy", "--json", NULL);
    for (int i = 0; (j = line(&s, i)); i++) {
        cr_expect_str_eq(text(j, "status"), "refused", "%s", text(j, "file"));
        json_decref(j);
    }
    cr_expect_eq(s.code, 1);
    expect_whole(&s, in_it);
    shell_close(&s);
}

/* Several at once: two that add the same and other files, one that lists, one that verifies. */
Test(cli_repo, several_at_once)
{
    struct shell s, t[4];
    const char *bin = getenv("WEFT_BIN");
    char weft_path[PATH_MAX], make[32];
    open_home(&s);
    snprintf(weft_path, sizeof weft_path, "%s", bin ? bin : "build/weft");
    strcpy(make, "400");
    weft(&s, "bench", "store", "--make", in(&s, "in"), "--rows", make, NULL);
    done(&s);
    weft(&s, "list", NULL);
    char *args[4][5] = {
        {weft_path, (char[]){"add"}, (char *)in(&s, "in"), (char[]){"--copy"}, NULL},
        {weft_path, (char[]){"add"}, (char *)in(&s, "in"), (char[]){"--copy"}, NULL},
        {weft_path, (char[]){"list"}, (char[]){"--json"}, NULL},
        {weft_path, (char[]){"verify"}, NULL}};
    weft(&s, "add", LORA, NULL);
    pid_t pid[4];
    for (int i = 0; i < 4; i++) {
        shell_open(&t[i]);
        pid[i] = start(&t[i], args[i]);
    }
    for (int i = 0; i < 4; i++) {
        finish(&t[i], pid[i]);
        cr_expect_eq(t[i].code, 0, "%s: %s%s", args[i][1], t[i].err, t[i].out);
        shell_close(&t[i]);
    }
    expect_whole(&s, 401);
    shell_close(&s);
}

/* An adder that is killed in the middle, again and again: what was said to be in is in, and the rest is
 * as if never begun. */
Test(cli_repo, killed_while_adding)
{
    struct shell s, t;
    char path[PATH_MAX];
    const char *bin = getenv("WEFT_BIN");
    int named = 0, killed = 0;
    open_home(&s);
    snprintf(path, sizeof path, "%s", bin ? bin : "build/weft");
    weft(&s, "bench", "store", "--make", in(&s, "in"), "--rows", "300", NULL);
    done(&s);
    char *argv[] = {
        path, (char[]){"add"}, (char *)in(&s, "in"), (char[]){"--copy"}, (char[]){"--json"}, NULL};
    for (int i = 0; i < 8; i++) {
        shell_open(&t);
        pid_t pid = start(&t, argv);
        usleep(20000u + 35000u * (unsigned)i);
        kill(pid, SIGKILL);
        finish(&t, pid);
        killed += t.code == 128 + SIGKILL;
        named = 0;
        for (const char *p = t.out; (p = strstr(p, "\"added\"")); p++)
            named++;
        for (const char *p = t.out; (p = strstr(p, "\"unchanged\"")); p++)
            named++;
        shell_close(&t);
        if (access(in(&s, "home/weft.db"), F_OK) < 0)
            continue;
        weft(&s, "verify", "--json", NULL);
        done(&s);
        json_t *j = line(&s, 0);
        cr_expect_geq(json_integer_value(json_object_get(j, "checked")), named, "%s", s.out);
        json_decref(j);
        expect_whole(&s, (int)strtol(strstr(s.out, "checked\":") + 9, NULL, 10));
    }
    cr_expect_gt(killed, 0, "nothing was killed");
    weft(&s, "add", in(&s, "in"), "--copy", NULL);
    done(&s);
    expect_whole(&s, 300);
    shell_close(&s);
}

/* ---- the order of syncs ---------------------------------------------------------------------- */

/* Where in the log the n-th call with both words is, from `from` on; NULL: nowhere. */
static const char *call(const char *from, const char *name, const char *what)
{
    for (const char *p = from; p && (p = strstr(p, name)); p++) {
        size_t n = strcspn(p, "\n");
        const char *hit = strstr(p, what);
        if (hit && hit < p + n)
            return p;
    }
    return NULL;
}

static char *trace(struct shell *s, const char *what)
{
    char out[300], *log = NULL, bin[PATH_MAX];
    struct err err;
    const char *name = getenv("WEFT_BIN");
    if (access("/usr/bin/strace", X_OK))
        cr_skip_test("strace is not here");
    snprintf(out, sizeof out, "%s", in(s, "log"));
    snprintf(bin, sizeof bin, "%s", name ? name : "build/weft");
    char *argv[] = {(char[]){"/usr/bin/strace"},
                    (char[]){"-f"},
                    (char[]){"-y"},
                    (char[]){"-s300"},
                    (char[]){"-e"},
                    (char[]){"trace=fdatasync,fsync,syncfs,rename,renameat,renameat2,pwrite64"},
                    (char[]){"-o"},
                    out,
                    bin,
                    (char[]){"add"},
                    (char[]){"--copy"},
                    (char *)(uintptr_t)what,
                    NULL};
    char *asan = getenv("ASAN_OPTIONS");
    char *old = asan ? strdup(asan) : NULL;
    setenv("ASAN_OPTIONS", "detect_leaks=0",
           1); /* the leak checker and strace cannot both look on */
    finish(s, start(s, argv));
    if (old)
        setenv("ASAN_OPTIONS", old, 1);
    free(old);
    if (s->code == 1 && strstr(s->err, "ptrace"))
        cr_skip_test("strace may not look on here");
    done(s);
    cr_assert_eq(file_read(&log, NULL, out, 1 << 26, &err), 0, "%s", err.msg);
    return log;
}

/* The bytes reach the disk, then the name, then the name's folder is synced, then the row. */
Test(cli_repo, order_of_syncs)
{
    struct shell s;
    open_home(&s);
    weft(&s, "add", "tests/golden/data/lora-peft.safetensors", "--copy", NULL);
    done(&s);
    /* one copy: it is synced by itself */
    char *log = trace(&s, LORA);
    const char *data = call(log, "fdatasync(", "/stage/"), *name = call(log, "rename(", "/blobs/");
    const char *folder = call(name, "fsync(", "/blobs/"), *row = call(folder, "pwrite64(", "-wal");
    const char *commit = call(row, "fdatasync(", "-wal");
    cr_expect(data && name && data < name, "the copy got its name before it was on the disk");
    cr_expect_not_null(folder, "the folder was not synced after the name");
    cr_expect_not_null(row, "no row after the folder");
    cr_expect_not_null(commit, "the row was not synced");
    cr_expect_null(call(commit, "rename(", "/blobs/"));
    free(log);
    /* many: all bytes before any name, all names before any row */
    weft(&s, "bench", "store", "--make", in(&s, "in"), "--rows", "12", NULL);
    done(&s);
    log = trace(&s, in(&s, "in"));
    data = call(log, "syncfs(", "/stage/");
    name = call(log, "rename(", "/blobs/");
    const char *last = name;
    int names = 0;
    for (const char *p = name; p; p = call(p + 1, "rename(", "/blobs/")) {
        last = p;
        names++;
    }
    cr_expect_eq(names, 12);
    cr_expect(data && name && data < name);
    folder = call(last, "fsync(", "/blobs/");
    cr_expect_not_null(folder);
    row = call(name, "pwrite64(", "-wal");
    cr_expect(row && row > folder, "a row was written before the folders of the names were synced");
    cr_expect_not_null(call(row, "fdatasync(", "-wal"));
    free(log);
    shell_close(&s);
}

/* ---- many ------------------------------------------------------------------------------------ */

Test(cli_repo, ten_thousand_files)
{
    struct shell s, files;
    char dir[] = "/dev/shm/weft-files-XXXXXX", cmd[100];
    open_home(&s);
    if (!mkdtemp(dir))
        cr_skip_test("no /dev/shm");
    shell_open(&files);
    setenv("WEFT_HOME", strcat(strcpy(cmd, dir), "/home"), 1);
    weft(&files, "bench", "store", "--make", dir, "--rows", "10000", NULL);
    done(&files);
    weft(&files, "add", dir, NULL);
    done(&files);
    cr_expect(strstr(files.out, "10000 added, 0 duplicate, 0 unchanged, 0 refused"));
    weft(&files, "add", dir, NULL);
    cr_expect_str_eq(files.out, "0 added, 0 duplicate, 10000 unchanged, 0 refused\n");
    weft(&files, "sync", NULL);
    cr_expect(strstr(files.out, "10000 unchanged, 0 added"), "%s", files.out);
    weft(&files, "search", "sks001234", NULL);
    cr_expect(files.code == 0 && strstr(files.out, "[sks001234]"), "%s%s", files.out, files.err);
    weft(&files, "list", "--json", "--limit", "10000", NULL);
    int lines = 0;
    for (const char *p = files.out; *p; p++)
        lines += *p == '\n';
    cr_expect_eq(lines, 10000);
    shell_close(&files);
    shell_close(&s);
    snprintf(cmd, sizeof cmd, "rm -rf %s", dir);
    cr_assert_eq(system(cmd), 0);
}
