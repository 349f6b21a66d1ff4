/* weft bench store: how fast the repository is when much is in it. */
#include "bench.h"
#include "shelf.h"

#include "unet/file.h"

#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct bench {
    const char *make, *dir;
    struct bench_folder in;
    int rows, at; /* files made so far */
    bool json;
};

#define USUAL       100000 /* rows; of more, these are measured on the way */
#define COPIES      2000   /* files that are added with --copy, before and after the others */
#define ONE         "castle_000011"
#define MAX_OPTIONS 6

static void make_options(struct option o[MAX_OPTIONS], struct bench *b)
{
    const struct option table[] = {
        {"rows", 0, OPTION_INT, &b->rows, "N",
         "adapters to have; default 100000; a million take 2 GB and a quarter of an hour", 1,
         10000000, NULL},
        {"dir", 0, OPTION_TEXT, &b->dir, "DIR",
         "where to work, on the disk that is meant; default "
         "/tmp",
         0, 0, NULL},
        {"make", 0, OPTION_TEXT, &b->make, "DIR", "only write the N small adapter files, there", 0,
         0, NULL},
        {"json", 0, OPTION_FLAG, &b->json, NULL, "a line a figure: name, value, unit", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

void bench_store_help(void)
{
    struct bench b;
    struct option o[MAX_OPTIONS];
    make_options(o, &b);
    bench_help("weft bench store measures the repository:", o);
}

static void figure(const struct bench *b, const char *name, double value, const char *unit)
{
    bench_figure(b->json, name, value, unit);
}

/* ---- files ----------------------------------------------------------------------------------- */

/* The n-th small LoRA: two sites of an SD 1.x UNet, rank 2; no two are alike. */
static int write_file(const char *dir, int n, struct err *err)
{
    static const char *const words[] = {"river",  "castle", "portrait", "neon",  "paper",
                                        "winter", "brass",  "meadow",   "robot", "silk"};
    const char *site = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k";
    char header[1200], path[600];
    uint16_t half[2 * (768 + 320)];
    uint64_t len, size = sizeof half;
    uint32_t s = (uint32_t)n * 2654435761u + 1;

    for (size_t i = 0; i < sizeof half / sizeof *half; i++) {
        s = s * 1664525u + 1013904223u;
        half[i] = (uint16_t)(0x2000 | (s >> 20)); /* halves from 0.008 to 0.03 */
    }
    snprintf(
        header, sizeof header,
        "{\"__metadata__\":{\"ss_output_name\":\"run_%d\",\"modelspec.title\":\"%s %s %d\","
        "\"modelspec.trigger_phrase\":\"sks%06d\"},"
        "\"%s.lora_down.weight\":{\"dtype\":\"F16\",\"shape\":[2,768],\"data_offsets\":[0,%d]},"
        "\"%s.lora_up.weight\":{\"dtype\":\"F16\",\"shape\":[320,2],\"data_offsets\":[%d,%d]}}",
        n / 10, words[n % 10], words[n / 10 % 10], n, n, site, 2 * 2 * 768, site, 2 * 2 * 768,
        (int)size);
    len = strlen(header);
    snprintf(path, sizeof path, "%.500s/%03d", dir, n / 1000);
    mkdir(path, 0777);
    snprintf(path, sizeof path, "%.500s/%03d/%s_%06d.safetensors", dir, n / 1000, words[n % 10], n);
    FILE *f = fopen(path, "wb");
    bool good = f && fwrite(&len, sizeof len, 1, f) == 1 && fwrite(header, len, 1, f) == 1 &&
                fwrite(half, size, 1, f) == 1;
    if (f)
        good = fclose(f) == 0 && good;
    return good ? 0 : err_set(err, ERR_IO, "%s: %s", path, strerror(errno));
}

int bench_make_files(const char *dir, int from, int n, struct err *err)
{
    int rc = 0;
    if (mkdir(dir, 0777) < 0 && errno != EEXIST)
        return err_set(err, ERR_IO, "%s: %s", dir, strerror(errno));
    for (int i = 0; i < n && rc == 0; i++)
        rc = write_file(dir, from + i, err);
    return rc;
}

void bench_remove_tree(const char *dir)
{
    char path[1000];
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (!strcmp(e->d_name, ".") || !strcmp(e->d_name, ".."))
            continue;
        snprintf(path, sizeof path, "%.700s/%.255s", dir, e->d_name);
        if (e->d_type == DT_DIR)
            bench_remove_tree(path);
        else
            unlink(path);
    }
    if (d)
        closedir(d);
    rmdir(dir);
}

/* ---- times ----------------------------------------------------------------------------------- */

/* Seconds of the whole program on the bench's repository; negative when it failed. */
static double run_weft(const struct bench *b, const char *const *arg)
{
    const char *argv[12];
    struct bench_run r;
    struct err none;
    int n = 0;
    for (; n < 9 && arg[n]; n++)
        argv[n] = arg[n];
    argv[n++] = "--home";
    argv[n++] = b->in.home;
    argv[n] = NULL;
    return bench_run(argv, NULL, &r, &none) < 0 ? -1 : r.all;
}

/* n more files, made, added, and unless they were copied removed: what is measured needs rows. */
static int bench_add(struct bench *b, int n, bool copy, struct err *err)
{
    char dir[500], name[60];
    snprintf(dir, sizeof dir, "%s/%d", b->in.files, b->at);
    snprintf(name, sizeof name, "add%s, with %d in", copy ? " --copy" : "", b->at);
    int rc = bench_make_files(dir, b->at, n, err);
    if (rc < 0)
        return rc;
    double t = run_weft(b, (const char *[]){"add", dir, copy ? "--copy" : NULL, NULL});
    if (t < 0)
        return err_set(err, ERR_IO, "weft add failed");
    if (!copy)
        bench_remove_tree(dir);
    b->at += n;
    figure(b, name, n / t, "files/s");
    return 0;
}

static int bench_read(const struct bench *b, const char *name, const char *const *arg,
                      struct err *err)
{
    char text[100];
    double best = 1e9, spent = 0;
    for (int i = 0; i < 5 && spent < 2; i++) { /* a few times, but not what is slow */
        double t = run_weft(b, arg);
        if (t < 0)
            return err_set(err, ERR_IO, "weft %s failed", arg[0]);
        best = t < best ? t : best;
        spent += t;
    }
    snprintf(text, sizeof text, "with %d in: %s", b->at, name);
    figure(b, text, 1e3 * best, "ms");
    return 0;
}

/* The beginning of an adapter's hash, as one types it. */
static int a_prefix(const struct bench *b, char out[11], struct err *err)
{
    struct repo *r = NULL;
    struct repo_adapter a;
    int rc = repo_open(&r, b->in.home, REPO_READ, err);
    rc = rc < 0 ? rc : repo_need(r, ONE, &a, err);
    if (rc == 0) {
        snprintf(out, 11, "%s", a.file_sha256);
        repo_adapter_release(&a);
    }
    repo_close(r);
    return rc;
}

static int bench_reads(const struct bench *b, struct err *err)
{
    char prefix[11];
    const struct {
        const char *name;
        const char *arg[6];
    } reads[] = {
        {"list", {"list"}},
        {"list --json, all", {"list", "--json"}},
        {"list --json --limit 100", {"list", "--json", "--limit", "100"}},
        {"list --sort added --limit 100", {"list", "--sort", "added", "--limit", "100"}},
        {"list --base sd1", {"list", "--base", "sd1"}},
        {"list --base sd1 --tag none", {"list", "--base", "sd1", "--tag", "none"}},
        {"show NAME", {"show", ONE}},
        {"show HASH", {"show", prefix}},
        {"search a word of one", {"search", "sks000011"}},
        {"search a word of a tenth of all", {"search", "castle"}},
        {"search two words", {"search", "castle", "river"}},
        {"search a word of all", {"search", "sd1"}},
        {"search the beginning of a word of all", {"search", "sks0"}},
    };
    int rc = a_prefix(b, prefix, err);
    for (size_t i = 0; i < sizeof reads / sizeof *reads && rc == 0; i++)
        rc = bench_read(b, reads[i].name, reads[i].arg, err);
    return rc;
}

/* Until there are `rows`, in at most ten steps. */
static int fill(struct bench *b, int rows, struct err *err)
{
    int rc = 0, step = (rows + 9) / 10;
    while (b->at < rows && rc == 0)
        rc = bench_add(b, rows - b->at < step ? rows - b->at : step, false, err);
    return rc;
}

static int bench_all(struct bench *b, struct err *err)
{
    int rc = bench_add(b, COPIES, true, err);
    if (b->rows > USUAL) {
        rc = rc < 0 ? rc : fill(b, USUAL, err);
        rc = rc < 0 ? rc : bench_reads(b, err);
    }
    rc = rc < 0 ? rc : fill(b, b->rows - COPIES, err);
    rc = rc < 0 ? rc : bench_add(b, COPIES, true, err);
    return rc < 0 ? rc : bench_reads(b, err);
}

int bench_store(int argc, char **argv)
{
    struct bench b = {.rows = USUAL, .dir = "/tmp"};
    struct option o[MAX_OPTIONS];
    struct err err;

    make_options(o, &b);
    int rc = bench_parse(o, argc, argv, &err);
    if (rc == 0 && b.make)
        rc = bench_make_files(b.make, 0, b.rows, &err);
    if (rc < 0 || b.make)
        return rc < 0 ? cli_fail(&err) : EXIT_DONE;
    rc = bench_folder_make(&b.in, b.dir, &err);
    if (rc < 0)
        return cli_fail(&err);
    rc = bench_all(&b, &err);
    bench_remove_tree(b.in.root);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}
