/* `weft batch` and `weft jobs`: every job ends in a picture, the same as render's, or in a reason. */
#include "shared.h"
#include "shell.h"
#include "unet/file.h"
#include "unet/hash.h"
#include "unet/image.h"

#include <jansson.h>
#include <sys/stat.h>
#include <time.h>

#define MODEL "tests/golden/data/tiny-sd1"
#define LORA  "tests/golden/data/lora-peft.safetensors"
#define OTHER "tests/golden/data/lora-kohya.safetensors"
#define THIRD "tests/golden/data/lora-diffusers.safetensors"
#define LOKR  "tests/golden/data/deltas/lokr.safetensors"

/* Of the demo model: one whose factors cost next to nothing, and one that is a whole weight at each of its sites. */
#define KITE "assets/adapters/kite.safetensors"
#define TENT "assets/adapters/circus-tent.safetensors"

static void put(struct shell *s, const char *name, const char *text)
{
    struct err err;
    cr_assert_eq(file_replace(in(s, name), text, strlen(text), &err), 0, "%s", err.msg);
}

static void open_shell(struct shell *s)
{
    shell_open(s);
    setenv("WEFT_HOME", in(s, "home"), 1);
}

/* What the queue says of a job. */
static json_t *job(struct shell *s, const char *folder, const char *id)
{
    json_t *found = NULL;
    weft(s, "jobs", "list", in(s, folder), "--json", NULL);
    for (char *p = s->out; p && *p; p = strchr(p, '\n') ? strchr(p, '\n') + 1 : NULL) {
        json_t *j = json_loads(p, JSON_DISABLE_EOF_CHECK, NULL);
        if (!found && !strcmp(json_string_value(json_object_get(j, "id")), id))
            found = json_incref(j);
        json_decref(j);
    }
    cr_assert(found, "no job %s in %s", id, s->out);
    return found;
}

static const char *text_of(json_t *j, const char *key)
{
    const char *t = json_string_value(json_object_get(j, key));
    return t ? t : "";
}

/* Times that line of events says so. */
static int events(const struct shell *s, const char *what)
{
    char key[60];
    int n = 0;
    snprintf(key, sizeof key, "{\"event\":\"%s\"", what);
    for (const char *p = s->out; (p = strstr(p, key)); p++)
        n++;
    return n;
}

/* Files of two names hold the same bytes. */
static bool same_files(const struct shell *s, const char *a, const char *b)
{
    char sha[2][HASH_HEX];
    struct err err;
    return hash_file(sha[0], in(s, a), &err) == 0 && hash_file(sha[1], in(s, b), &err) == 0 &&
           !strcmp(sha[0], sha[1]);
}

/* Pictures of as many kinds as there are stand in one batch, and each is the file that render makes alone. */
Test(cli_batch, makes_what_render_makes)
{
    static const char *const one[][12] = {
        {"a red kite", "-a", LORA, "--steps", "4", NULL},
        {"an owl", "-a", LORA, "-a", OTHER ":0.5,unet=.3", "--steps", "6", "--cfg", "1", NULL},
        {"an owl on a castle", "-a", LORA ",word=owl", "-a", OTHER ",word=castle", "--compose",
         "attend", "--steps", "3", NULL},
        {"a [b:c:2]", "-a", OTHER, "--compose", "composite", "--sampler", "euler_a", "--steps", "5",
         NULL},
        {"x", "--sampler", "heun", "--size", "64x96", "--negative", "y, z", "--steps", "3", NULL},
    };
    static const char lines[] =
        "{\"id\":\"j0\",\"prompt\":\"a red kite\",\"adapter\":\"" LORA "\",\"steps\":4}\n"
        "{\"id\":\"j1\",\"prompt\":\"an owl\",\"adapter\":[\"" LORA "\",\"" OTHER
        ":0.5,unet=.3\"],\"steps\":6,\"cfg\":1}\n"
        "{\"id\":\"j2\",\"prompt\":\"an owl on a castle\",\"adapter\":[\"" LORA
        ",word=owl\",\"" OTHER ",word=castle\"],\"compose\":\"attend\",\"steps\":3}\n"
        "{\"id\":\"j3\",\"prompt\":\"a [b:c:2]\",\"adapter\":[\"" OTHER
        "\"],\"compose\":\"composite\",\"sampler\":\"Euler a\",\"steps\":5}\n"
        "{\"id\":\"j4\",\"prompt\":\"x\",\"sampler\":\"heun\",\"size\":[64,96],\"negative\":\"y, "
        "z\","
        "\"steps\":3}\n";
    struct shell s;
    open_shell(&s);
    put(&s, "jobs.jsonl", lines);
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "out"), "-m", MODEL, "--seed", "5",
         "--name", "{id}", "--beside", "--json", "--sheet", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect_eq(events(&s, "done"), 5, "%s", s.out);
    for (int i = 0; i < 5; i++) {
        char *argv[24] = {(char *)getenv("WEFT_BIN"), (char *)"render"}, file[30], batch[30];
        int n = 2;
        argv[0] = argv[0] ? argv[0] : (char *)"build/weft";
        for (int k = 0; one[i][k]; k++)
            argv[n++] = (char *)one[i][k];
        snprintf(file, sizeof file, "r%d.png", i);
        snprintf(batch, sizeof batch, "out/j%d.png", i);
        char *const more[] = {(char *)"-m", (char *)MODEL, (char *)"--seed",
                              (char *)"5",  (char *)"-o",  (char *)in(&s, file),
                              NULL};
        memcpy(argv + n, more, sizeof more);
        finish(&s, start(&s, argv));
        cr_assert_eq(s.code, 0, "%s", s.err);
        cr_expect(same_files(&s, file, batch), "job %d is another picture", i);
    }
    cr_expect(file_exists(in(&s, "out/index.html")) && file_exists(in(&s, "out/sheet.png")));
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "out"), "-m", MODEL, "--seed", "5",
         "--name", "{id}", "--beside", "--json", NULL);
    cr_expect(s.code == 0 && events(&s, "done") == 0, "%s", s.out);
    shell_close(&s);
}

/* Adapters of a kind that is dear beside the weights are folded, which the picture tells; so render makes it again. */
Test(cli_batch, folds_what_is_quicker_folded)
{
    struct shell s;
    struct image im;
    struct image_texts t;
    open_shell(&s);
    put(&s, "jobs.jsonl",
        "{\"id\":\"a\",\"prompt\":\"x\",\"adapter\":\"" TENT
        "\",\"steps\":4,\"repeat\":3,\"seed\":1}\n"
        "{\"id\":\"b\",\"prompt\":\"x\",\"adapter\":\"" KITE "\",\"steps\":2,\"seed\":1}\n");
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "out"), "--name", "{id}", "-v", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.err, "folded") && strstr(s.err, "beside the weights"), "%s", s.err);
    read_picture(in(&s, "out/a-2.png"), &im, &t);
    cr_expect(strstr(image_text_find(&t, "weft"), "\"fold\":true"));
    image_release(&im);
    image_texts_release(&t);
    weft(&s, "render", "--like", in(&s, "out/a-2.png"), "-o", in(&s, "again.png"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(same_files(&s, "out/a-2.png", "again.png"));
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "beside"), "--name", "{id}", "--beside",
         NULL);
    weft(&s, "render", "x", "-a", TENT, "--steps", "4", "--seed", "2", "-o", in(&s, "one.png"),
         NULL);
    cr_expect(same_files(&s, "beside/a-2.png", "one.png"));
    shell_close(&s);
}

Test(cli_batch, looks_through_all_lines_before_it_takes_any)
{
    static const char lines[] = "{\"id\":\"good\",\"prompt\":\"x\",\"steps\":2,\"seed\":1}\n"
                                "{\"prompt\":\"x\",\"steps\":0}\n"
                                "\n"
                                "not a line\n"
                                "{\"prompt\":\"x\",\"adapter\":\"nobody\"}\n"
                                "{\"prompt\":\"x\",\"stepps\":3}\n"
                                "{\"id\":\"good\",\"prompt\":\"y\"}\n"
                                "{\"prompt\":\"x\",\"compose\":\"mix\"}\n"
                                "{\"prompt\":\"x\",\"sampler\":\"best\"}\n"
                                "{\"prompt\":\"x\",\"size\":[63,64]}\n"
                                "{\"prompt\":\"x\",\"threads\":2}\n"
                                "{\"prompt\":\"a (b:x) [c\",\"model\":\"nowhere\"}\n";
    static const char *const said[] = {
        "jobs:2: --steps takes 1 to 1000",      "jobs:4: ",
        "jobs:5: nobody: no such adapter",      "jobs:6: no option '--stepps=3'",
        "jobs:7: id 'good' is line 1's",        "jobs:8: ",
        "jobs:9: there is no sampler \"best\"", "jobs:10: 63x64",
        "jobs:11: 'threads' is for all jobs",   "jobs:12: nowhere"};
    struct shell s;
    open_shell(&s);
    put(&s, "jobs", lines);
    weft(&s, "batch", in(&s, "jobs"), "-o", in(&s, "out"), "-m", MODEL, "--format", "jsonl", NULL);
    cr_expect_eq(s.code, 1);
    for (size_t i = 0; i < sizeof said / sizeof *said; i++)
        cr_expect(strstr(s.err, said[i]), "no '%s' in:\n%s", said[i], s.err);
    cr_expect(strstr(s.err, "10 of 11 jobs are wrong"), "%s", s.err);
    weft(&s, "jobs", in(&s, "out"), NULL);
    cr_expect(strstr(s.out, "0 waiting, 0 running, 0 done"), "%s", s.out);
    weft(&s, "batch", in(&s, "jobs"), "-o", in(&s, "out"), "-m", MODEL, "--format", "jsonl",
         "--keep-going", NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "10 lines made no job"), "%s", s.err);
    weft(&s, "jobs", in(&s, "out"), NULL);
    cr_expect(strstr(s.out, "1 done"), "%s", s.out);
    shell_close(&s);
}

Test(cli_batch, reads_tables_texts_grids_and_standard_input)
{
    struct shell s;
    char command[900];
    open_shell(&s);
    put(&s, "a.csv", "id,prompt,steps,seed\r\nc1,\"a, b\",2,7\r\n");
    put(&s, "b.txt", "a red kite\n--prompt \"a blue one\" --steps 3 --seed 4 --cfg_scale 2\n");
    weft(&s, "batch", in(&s, "a.csv"), in(&s, "b.txt"), "-o", in(&s, "out"), "-m", MODEL, "--steps",
         "2", "-x", "cfg=1,2,3", "-y", "seed=1,2", "--check", NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.err, "18 new jobs"), "%s", s.err);
    cr_expect(!file_exists(in(&s, "out")), "--check left a folder");
    weft(&s, "batch", in(&s, "a.csv"), in(&s, "b.txt"), "-o", in(&s, "out"), "-m", MODEL, "--steps",
         "2", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    json_t *j = job(&s, "out", "c1");
    cr_expect_str_eq(text_of(j, "prompt"), "a, b");
    cr_expect_eq(json_integer_value(json_object_get(j, "seed")), 7);
    json_decref(j);
    put(&s, "r.jsonl",
        "{\"id\":\"r\",\"prompt\":\"a\",\"repeat\":3}\n{\"id\":\"q\",\"prompt\":\"a\"}\n");
    weft(&s, "batch", in(&s, "r.jsonl"), "-o", in(&s, "r"), "-m", MODEL, "--steps", "2", "--seed",
         "5", "--later", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    for (int i = 0; i < 4; i++) {
        static const char *const id[] = {"r-1", "r-2", "r-3", "q"};
        j = job(&s, "r", id[i]);
        cr_expect_eq(json_integer_value(json_object_get(j, "seed")), i < 3 ? 5 + i : 5);
        json_decref(j);
    }
    snprintf(command, sizeof command,
             "echo '{\"prompt\":\"z\",\"grid\":{\"seed\":[1,2],\"cfg\":[1,2]},\"id\":\"g\"}' | "
             "'%s' batch - -o '%s' -m " MODEL " --steps 2 --name '{prompt}/{seed}-{id}' --later",
             getenv("WEFT_BIN") ? getenv("WEFT_BIN") : "build/weft", in(&s, "in"));
    cr_assert_eq(system(command), 0);
    weft(&s, "batch", "-o", in(&s, "in"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(file_exists(in(&s, "in/z/2-g-4.png")), "%s", s.out);
    shell_close(&s);
}

static void copy(const struct shell *s, const char *from, const char *to)
{
    char *bytes;
    size_t n;
    struct err err;
    cr_assert_eq(file_read(&bytes, &n, from, 1 << 24, &err), 0, "%s", err.msg);
    cr_assert_eq(file_replace(in(s, to), bytes, n, &err), 0, "%s", err.msg);
    free(bytes);
}

/* The same command again, whatever happened to the queue or to its lines. */
Test(cli_batch, knows_its_jobs_again)
{
    struct shell s;
    struct stat before, after;
    char command[700];
    open_shell(&s);
    put(&s, "jobs.jsonl", "{\"prompt\":\"x\",\"steps\":2}\n{\"prompt\":\"x\",\"steps\":2}\n");
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "out"), "-m", MODEL, "--name", "{n}",
         NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect(!same_files(&s, "out/00001.png", "out/00002.png"), "both have one seed");
    cr_assert_eq(stat(in(&s, "out/00002.png"), &before), 0);
    put(&s, "jobs.jsonl",
        "{\"prompt\":\"x\",\"steps\":2}\n{\"prompt\":\"x\",\"steps\":2}\n"
        "{\"id\":\"new\",\"prompt\":\"y\",\"steps\":2}\n");
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "out"), "-m", MODEL, "--name", "{n}",
         "--json", NULL);
    cr_expect_eq(events(&s, "done"), 1, "%s", s.out);
    put(&s, "other.jsonl", "{\"id\":\"new\",\"prompt\":\"z\",\"steps\":2}\n");
    weft(&s, "batch", in(&s, "other.jsonl"), "-o", in(&s, "out"), "-m", MODEL, NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "asks for something else"), "%s", s.err);
    /* a queue that was lost is made anew of the pictures */
    snprintf(command, sizeof command, "rm '%s'*", in(&s, "out/weft-jobs.db"));
    cr_assert_eq(system(command), 0);
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "out"), "-m", MODEL, "--name", "{n}",
         "--json", NULL);
    cr_expect(s.code == 0 && events(&s, "done") == 0, "%s%s", s.out, s.err);
    cr_assert_eq(stat(in(&s, "out/00002.png"), &after), 0);
    cr_expect(before.st_mtim.tv_nsec == after.st_mtim.tv_nsec && before.st_ino == after.st_ino);
    /* also where its adapters lie elsewhere by now */
    copy(&s, LORA, "a.safetensors");
    snprintf(command, sizeof command,
             "{\"prompt\":\"x\",\"adapter\":\"%s\",\"steps\":2,\"seed\":1}",
             in(&s, "a.safetensors"));
    put(&s, "place.jsonl", command);
    weft(&s, "batch", in(&s, "place.jsonl"), "-o", in(&s, "place"), "-m", MODEL, "--name", "p",
         NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    put(&s, "place.jsonl", "{\"prompt\":\"x\",\"adapter\":\"" LORA "\",\"steps\":2,\"seed\":1}");
    snprintf(command, sizeof command, "rm '%s'*", in(&s, "place/weft-jobs.db"));
    cr_assert_eq(system(command), 0);
    weft(&s, "batch", in(&s, "place.jsonl"), "-o", in(&s, "place"), "-m", MODEL, "--name", "p",
         "--json", NULL);
    cr_expect(s.code == 0 && events(&s, "done") == 0, "%s%s", s.out, s.err);
    /* a file that is no picture of the job is nobody's to replace */
    put(&s, "out/00004.png", "mine");
    put(&s, "more.jsonl", "{\"prompt\":\"q\",\"steps\":2}\n");
    weft(&s, "batch", in(&s, "jobs.jsonl"), in(&s, "more.jsonl"), "-o", in(&s, "out"), "-m", MODEL,
         "--name", "{n}", NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "00004.png is there already"), "%s", s.err);
    shell_close(&s);
}

/* Adapters that are gone, others or not numbers when a picture is to be made: each a reason, and the others are made. */
Test(cli_batch, records_what_is_wrong_with_one)
{
    struct shell s;
    char lines[3000];
    struct err err;
    char *bytes;
    size_t n;
    open_shell(&s);
    copy(&s, LORA, "gone.safetensors");
    copy(&s, THIRD, "changed.safetensors");
    cr_assert_eq(file_read(&bytes, &n, LORA, 1 << 24, &err), 0);
    memset(bytes + n - 2048, 0xff, 2048); /* NaN in any format */
    cr_assert_eq(file_replace(in(&s, "nan.safetensors"), bytes, n, &err), 0);
    free(bytes);
    snprintf(lines, sizeof lines,
             "{\"id\":\"gone\",\"prompt\":\"x\",\"adapter\":\"%s\"}\n"
             "{\"id\":\"good\",\"prompt\":\"x\",\"adapter\":\"" LORA "\"}\n"
             "{\"id\":\"nan\",\"prompt\":\"x\",\"adapter\":\"%s\"}\n"
             "{\"id\":\"changed\",\"prompt\":\"x\",\"adapter\":\"%s\"}\n"
             "{\"id\":\"strong\",\"prompt\":\"x\",\"adapter\":\"" LORA ":1e30\"}\n"
             "{\"id\":\"plain\",\"prompt\":\"x\"}\n",
             in(&s, "gone.safetensors"), in(&s, "nan.safetensors"), in(&s, "changed.safetensors"));
    put(&s, "jobs.jsonl", lines);
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "out"), "-m", MODEL, "--steps", "2",
         "--later", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_assert_eq(unlink(in(&s, "gone.safetensors")), 0);
    copy(&s, OTHER, "changed.safetensors");
    weft(&s, "batch", "-o", in(&s, "out"), NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "4 jobs failed"), "%s", s.err);
    const char *const reason[][2] = {{"gone", "No such file"},
                                     {"changed", "its weights differ"},
                                     {"nan", "is NaN"},
                                     {"strong", "NaN"}};
    for (int i = 0; i < 4; i++) {
        json_t *j = job(&s, "out", reason[i][0]);
        cr_expect_str_eq(text_of(j, "state"), "failed");
        cr_expect(strstr(text_of(j, "reason"), reason[i][1]), "%s: %s", reason[i][0],
                  text_of(j, "reason"));
        json_decref(j);
    }
    json_t *j = job(&s, "out", "plain");
    cr_expect_str_eq(text_of(j, "state"), "done");
    json_decref(j);
    copy(&s, LORA, "gone.safetensors");
    copy(&s, THIRD, "changed.safetensors");
    weft(&s, "jobs", "retry", in(&s, "out"), "gone", "changed", NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    weft(&s, "jobs", "cancel", in(&s, "out"), "nan", "strong", NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    weft(&s, "jobs", "cancel", in(&s, "out"), "nobody", NULL);
    cr_expect_eq(s.code, 2);
    weft(&s, "batch", "-o", in(&s, "out"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(same_files(&s, "out/00001-gone.png", "out/00001-gone.png"));
    weft(&s, "jobs", in(&s, "out"), "--json", NULL);
    cr_expect(strstr(s.out, "\"done\":4") && strstr(s.out, "\"cancelled\":2"), "%s", s.out);
    shell_close(&s);
}

/* What adapters took at most, as the last event has it. */
static long most_bytes(const struct shell *s)
{
    const char *p = strstr(s->out, "\"adapter_bytes_most\":");
    cr_assert(p, "%s", s->out);
    return strtol(p + 21, NULL, 10);
}

/* More adapters than there is memory for; the limit is kept where one alone does not pass it. */
Test(cli_batch, a_small_pool_is_enough)
{
    struct shell s;
    char limit[30];
    open_shell(&s);
    put(&s, "jobs.jsonl",
        "{\"prompt\":\"x\",\"grid\":{\"adapter\":[\"" LORA "\",\"" OTHER "\",\"" LOKR
        "\"],\"seed\":[1,2,3]}}\n");
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "small"), "-m", MODEL, "--steps", "2",
         "--adapter-memory", "1k", "--json", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    cr_expect_eq(events(&s, "done"), 9, "%s", s.out);
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "large"), "-m", MODEL, "--steps", "2",
         "--json", NULL);
    cr_expect(strstr(s.out, "\"adapters_loaded\":3"), "%s", s.out);
    long all = most_bytes(&s);
    snprintf(limit, sizeof limit, "%ld", all - 1); /* two of the three have room */
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "two"), "-m", MODEL, "--steps", "2",
         "--hand", "1", "--adapter-memory", limit, "--json", NULL);
    cr_expect(s.code == 0 && events(&s, "done") == 9, "%s", s.err);
    cr_expect_lt(most_bytes(&s), all);
    cr_expect_gt(most_bytes(&s), all / 4);
    weft(&s, "jobs", "list", in(&s, "small"), "--json", NULL);
    char *small = strdup(s.out);
    json_t *j = json_loads(small, JSON_DISABLE_EOF_CHECK, NULL);
    char a[300], b[300];
    snprintf(a, sizeof a, "small/%.200s", text_of(j, "file"));
    snprintf(b, sizeof b, "large/%.200s", text_of(j, "file"));
    cr_expect(same_files(&s, a, b), "%s", a);
    json_decref(j);
    free(small);
    shell_close(&s);
}

static pid_t start_batch(struct shell *s, const char *folder)
{
    char *argv[] = {(char *)(getenv("WEFT_BIN") ? getenv("WEFT_BIN") : "build/weft"),
                    (char *)"batch",
                    (char *)in(s, "jobs.jsonl"),
                    (char *)"-o",
                    (char *)in(s, folder),
                    (char *)"-m",
                    (char *)MODEL,
                    (char *)"--name",
                    (char *)"{n}",
                    NULL};
    return start(s, argv);
}

static int pictures_in(const struct shell *s, const char *folder)
{
    struct shell at = *s;
    snprintf(at.dir, sizeof at.dir, "%.40s/%.20s", s->dir, folder);
    return files(&at);
}

static void wait_for_pictures(const struct shell *s, const char *folder, int n)
{
    for (int i = 0; i < 2000 && pictures_in(s, folder) < n; i++)
        nanosleep(&(struct timespec){.tv_nsec = 5000000}, NULL);
    cr_assert_geq(pictures_in(s, folder), n);
}

/* Killed, and stopped by a signal, in the middle; then the same command makes the rest, and nothing twice. */
Test(cli_batch, goes_on_where_it_was_stopped)
{
    struct shell s;
    json_t *j;
    open_shell(&s);
    put(&s, "jobs.jsonl",
        "{\"id\":\"k\",\"prompt\":\"x\",\"steps\":150,\"repeat\":12,\"seed\":1}\n");
    pid_t pid = start_batch(&s, "out");
    wait_for_pictures(&s, "out", 1);
    kill(pid, SIGKILL);
    finish(&s, pid);
    cr_assert_eq(s.code, 128 + SIGKILL);
    int before = pictures_in(&s, "out");
    cr_expect_lt(before, 12, "it was too quick to be killed");
    pid = start_batch(&s, "out");
    wait_for_pictures(&s, "out", before + 1);
    kill(pid, SIGTERM);
    finish(&s, pid);
    cr_expect_eq(s.code, 1, "%s", s.err);
    cr_expect(strstr(s.err, "stopped"), "%s", s.err);
    weft(&s, "jobs", in(&s, "out"), NULL);
    cr_expect(strstr(s.out, " 0 running"), "%s", s.out);
    pid = start_batch(&s, "out");
    finish(&s, pid);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect_eq(pictures_in(&s, "out"), 12);
    pid = start_batch(&s, "whole");
    finish(&s, pid);
    for (int i = 1; i <= 12; i++) {
        char a[40], b[40], id[20];
        snprintf(a, sizeof a, "out/%05d.png", i);
        snprintf(b, sizeof b, "whole/%05d.png", i);
        snprintf(id, sizeof id, "k-%d", i);
        cr_expect(same_files(&s, a, b), "%s", a);
        j = job(&s, "out", id);
        cr_expect_leq(json_integer_value(json_object_get(j, "attempts")), 2);
        json_decref(j);
    }
    shell_close(&s);
}

/* Several at once on one folder: each picture is made by one of them. */
Test(cli_batch, several_share_a_queue)
{
    struct shell s[3];
    pid_t pid[3];
    int made = 0;
    open_shell(&s[0]);
    put(&s[0], "jobs.jsonl",
        "{\"id\":\"k\",\"prompt\":\"x\",\"steps\":20,\"repeat\":20,\"seed\":1}\n");
    for (int i = 1; i < 3; i++)
        shell_open(&s[i]);
    for (int i = 0; i < 3; i++) {
        char *argv[] = {(char *)(getenv("WEFT_BIN") ? getenv("WEFT_BIN") : "build/weft"),
                        (char *)"batch",
                        (char *)in(&s[0], "jobs.jsonl"),
                        (char *)"-o",
                        (char *)in(&s[0], "out"),
                        (char *)"-m",
                        (char *)MODEL,
                        (char *)"--json",
                        NULL};
        pid[i] = start(&s[i], argv);
    }
    for (int i = 0; i < 3; i++) {
        finish(&s[i], pid[i]);
        cr_expect_eq(s[i].code, 0, "%s", s[i].err);
        made += events(&s[i], "done");
    }
    cr_expect_eq(made, 20, "%d pictures were made of 20 jobs", made);
    for (int i = 1; i < 3; i++)
        shell_close(&s[i]);
    weft(&s[0], "jobs", in(&s[0], "out"), NULL);
    cr_expect(strstr(s[0].out, "20 done"), "%s", s[0].out);
    shell_close(&s[0]);
}

/* Shards are parts of the jobs, each with its queue, and merge into what one run would have made. */
Test(cli_batch, shards_and_their_merging)
{
    struct shell s;
    open_shell(&s);
    put(&s, "jobs.jsonl", "{\"id\":\"k\",\"prompt\":\"x\",\"steps\":2,\"repeat\":9,\"seed\":1}\n");
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "one"), "-m", MODEL, "--shard", "1/2",
         NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "one"), "-m", MODEL, "--shard", "1/3",
         NULL);
    cr_expect_eq(s.code, 2);
    cr_expect(strstr(s.err, "shard 1/2, not 1/3"), "%s", s.err);
    weft(&s, "jobs", "merge", in(&s, "all"), in(&s, "one"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    setenv("SLURM_ARRAY_TASK_ID", "7", 1);
    setenv("SLURM_ARRAY_TASK_MIN", "5", 1);
    setenv("SLURM_ARRAY_TASK_STEP", "2", 1);
    setenv("SLURM_ARRAY_TASK_COUNT", "2", 1);
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "two"), "-m", MODEL, "--later", NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    weft(&s, "jobs", "merge", in(&s, "all"), in(&s, "two"), NULL);
    cr_expect_eq(s.code, 1); /* some have no picture yet */
    cr_expect(strstr(s.err, "of the jobs have no picture"), "%s", s.err);
    weft(&s, "batch", "-o", in(&s, "two"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    unsetenv("SLURM_ARRAY_TASK_ID");
    weft(&s, "jobs", "merge", in(&s, "all"), in(&s, "two"), in(&s, "one"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect(strstr(s.out, "9 pictures, 0 failed, 0 wait"), "%s", s.out);
    cr_expect_eq(pictures_in(&s, "all"), 9);
    cr_expect(pictures_in(&s, "one") > 0 && pictures_in(&s, "two") > 0);
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "whole"), "-m", MODEL, NULL);
    for (int i = 1; i <= 9; i++) {
        char a[40], b[40];
        snprintf(a, sizeof a, "all/%05d-k-%d.png", i, i);
        snprintf(b, sizeof b, "whole/%05d-k-%d.png", i, i);
        cr_expect(same_files(&s, a, b), "%s", a);
    }
    put(&s, "all/00001-k-1.png", "spoilt");
    weft(&s, "jobs", "merge", in(&s, "more"), in(&s, "all"), NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "not the picture that was made"), "%s", s.err);
    shell_close(&s);
}

/* What cannot be written stops the run, and loses no job. */
Test(cli_batch, a_folder_that_cannot_be_written)
{
    struct shell s;
    open_shell(&s);
    put(&s, "jobs.jsonl", "{\"prompt\":\"x\",\"steps\":2,\"repeat\":3}\n");
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "out"), "-m", MODEL, "--later", "--name",
         "a/{n}", NULL);
    cr_assert_eq(s.code, 0, "%s", s.err);
    put(&s, "out/a", "in the way");
    weft(&s, "batch", "-o", in(&s, "out"), NULL);
    cr_expect_eq(s.code, 1);
    cr_expect(strstr(s.err, "out/a"), "%s", s.err);
    weft(&s, "jobs", in(&s, "out"), NULL);
    cr_expect(strstr(s.out, "3 waiting, 0 running, 0 done, 0 failed"), "%s", s.out);
    cr_assert_eq(unlink(in(&s, "out/a")), 0);
    weft(&s, "batch", "-o", in(&s, "out"), NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    shell_close(&s);
}

/* At a time of day no more are begun; those in hand end, the others wait. */
Test(cli_batch, ends_when_it_is_late)
{
    struct shell s;
    char until[20];
    time_t at = time(NULL) + 3;
    struct tm tm;
    open_shell(&s);
    put(&s, "jobs.jsonl", "{\"prompt\":\"x\",\"steps\":300,\"repeat\":1000,\"seed\":1}\n");
    strftime(until, sizeof until, "%H:%M:%S", localtime_r(&at, &tm));
    weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "out"), "-m", MODEL, "--until", until,
         "--json", NULL);
    cr_expect_eq(s.code, 0, "%s", s.err);
    cr_expect_lt((double)time(NULL), (double)at + 60);
    int done = events(&s, "done");
    cr_expect(done >= 1 && done < 1000, "%d", done);
    char waiting[40];
    snprintf(waiting, sizeof waiting, "\"waiting\":%d,", 1000 - done);
    cr_expect(strstr(s.out, waiting), "%s in %s", waiting, s.out + strlen(s.out) - 300);
    shell_close(&s);
}

Test(cli_batch, refuses_what_makes_no_sense)
{
    struct shell s;
    static const char *const bad[][4] = {{"--until", "25:00", "--until takes a time"},
                                         {"--until", "7:00:0x", "--until takes a time"},
                                         {"--adapter-memory", "much", "--adapter-memory takes"},
                                         {"--name", "{what}", "knows {n}"},
                                         {"--name", "../x", "below the folder"},
                                         {"--shard", "3/2", "--shard takes I/N"}};
    open_shell(&s);
    put(&s, "jobs.jsonl", "{\"prompt\":\"x\",\"steps\":2}\n");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        weft(&s, "batch", in(&s, "jobs.jsonl"), "-o", in(&s, "out"), "-m", MODEL, bad[i][0],
             bad[i][1], NULL);
        cr_expect_eq(s.code, 2, "%s", s.err);
        cr_expect(strstr(s.err, bad[i][2]), "%s", s.err);
    }
    weft(&s, "batch", in(&s, "jobs.jsonl"), NULL);
    cr_expect_eq(s.code, 2);
    weft(&s, "batch", "-o", in(&s, "new"), NULL);
    cr_expect_eq(s.code, 2);
    cr_expect(strstr(s.err, "no queue to go on with"), "%s", s.err);
    weft(&s, "jobs", "list", in(&s, "nowhere"), NULL);
    cr_expect_eq(s.code, 1);
    shell_close(&s);
}
