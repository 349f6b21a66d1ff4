/* weft bench retrieve: how fast the nearest of many embeddings are found. */
#include "bench.h"
#include "shelf.h"

#include "retrieve/algebra.h"
#include "retrieve/index.h"
#include "unet/file.h"
#include "unet/rng.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

enum {
    USUAL = 100000, /* rows, and adapters at most if not asked for more */
    CENTRES = 4096, /* of the mixture that vectors are drawn from */
    QUERIES = 1000, /* of the same mixture, kept under an encoder's name of their own */
    COMPARED = 200, /* of these, for the recall */
    TURNS = 50,     /* of opening */
    K = 10,
    GROUP = 10000, /* rows a transaction */
    MAX_OPTIONS = 9
};
#define ENCODER "bench"
#define ASKED   "queries"
#define NOISE   0.7 /* length, beside centres of length 1 */

struct bench {
    const char *dir, *kind;
    int rows, adapters, dim;
    bool json, keep, sd15;
    struct bench_folder in;
    char file[500];
    float *centre; /* [CENTRES, dim] */
    float *query;  /* [QUERIES, dim] */
    struct rng rng;
    struct repo *r;
};

static void make_options(struct option o[MAX_OPTIONS], struct bench *b)
{
    const struct option table[] = {
        {"rows", 0, OPTION_INT, &b->rows, "N", "vectors to have; default 100000", 1, 10000000,
         NULL},
        {"adapters", 0, OPTION_INT, &b->adapters, "N",
         "of which adapters have so many; default all, but 100000 at most", 0, 10000000, NULL},
        {"dim", 0, OPTION_INT, &b->dim, "N", "numbers in a vector; default 128", 16, 4096, NULL},
        {"kind", 0, OPTION_TEXT, &b->kind, "KIND",
         "of index (retrieve/index.h), such as IDMap,Flat; default: by the number of vectors", 0, 0,
         NULL},
        {"dir", 0, OPTION_TEXT, &b->dir, "DIR",
         "where to work, on the disk that is meant; default /tmp", 0, 0, NULL},
        {"keep", 0, OPTION_FLAG, &b->keep, NULL,
         "leave what was made there, for tests/bench/peers/faiss_index.py", 0, 0, NULL},
        {"sd15", 0, OPTION_FLAG, &b->sd15, NULL,
         "only how long a LoRA of SD 1.5's shape takes to be read (5 GB, a minute)", 0, 0, NULL},
        {"json", 0, OPTION_FLAG, &b->json, NULL, "a line a figure: name, value, unit", 0, 0, NULL},
        {.name = NULL},
    };
    memcpy(o, table, sizeof table);
}

void bench_retrieve_help(void)
{
    struct bench b;
    struct option o[MAX_OPTIONS];
    make_options(o, &b);
    bench_help("weft bench retrieve measures reading the weights of adapters, and the index of "
               "their vectors:",
               o);
}

static void figure(const struct bench *b, const char *name, double value, const char *unit)
{
    bench_figure(b->json, name, value, unit);
}

/* ---- vectors --------------------------------------------------------------------------------- */

/* The next one: near one of the centres, of length 1. */
static void draw(struct bench *b, float *v)
{
    const float *c = b->centre + (size_t)(rng_u32(&b->rng) % CENTRES) * (size_t)b->dim;
    rng_normal(&b->rng, v, (size_t)b->dim);
    for (int i = 0; i < b->dim; i++)
        v[i] = c[i] + (float)(NOISE / sqrt(b->dim)) * v[i];
    vector_unit(v, b->dim);
}

static int start(struct bench *b, struct err *err)
{
    size_t dim = (size_t)b->dim;
    b->centre = malloc(CENTRES * dim * sizeof *b->centre);
    b->query = malloc(QUERIES * dim * sizeof *b->query);
    if (!b->centre || !b->query)
        return err_nomem(err, CENTRES * dim * sizeof *b->centre);
    rng_init(&b->rng, RNG_TORCH, 1);
    rng_normal(&b->rng, b->centre, CENTRES * dim);
    for (size_t i = 0; i < CENTRES; i++)
        vector_unit(b->centre + i * dim, b->dim);
    for (size_t i = 0; i < QUERIES; i++)
        draw(b, b->query + i * dim);
    return 0;
}

static int add_hash(void *user, const struct repo_adapter *a)
{
    struct err none;
    return texts_add(user, a->data_sha256, &none);
}

/* Files without copies, and gone once they are in: only rows are needed. */
static int add_adapters(struct bench *b, struct texts *hashes, struct err *err)
{
    const char *dir = b->in.files;
    struct repo_sum sum;
    int rc = bench_make_files(b->in.files, 0, b->adapters, err);
    rc = rc < 0 ? rc : repo_add(b->r, &dir, 1, &(struct repo_add){.copy = false}, &sum, err);
    rc = rc < 0 ? rc : repo_list(b->r, &(struct repo_filter){.tag = NULL}, add_hash, hashes, err);
    bench_remove_tree(b->in.files);
    return rc;
}

static int add_vectors(struct bench *b, const struct texts *hashes, struct err *err)
{
    float *v = malloc((size_t)b->dim * sizeof *v);
    int rc = v ? 0 : err_nomem(err, (size_t)b->dim * sizeof *v);
    for (int i = 0; i < b->rows + QUERIES && rc == 0; i++) {
        char made_up[HASH_HEX];
        snprintf(made_up, sizeof made_up, "%064x", i);
        const char *hash = i < hashes->n ? hashes->item[i] : made_up;
        if (i % GROUP == 0)
            rc = repo_begin(b->r, err);
        if (i < b->rows)
            draw(b, v);
        else
            memcpy(v, b->query + (size_t)(i - b->rows) * (size_t)b->dim,
                   (size_t)b->dim * sizeof *v);
        rc = rc < 0
                 ? rc
                 : repo_set_embedding(b->r, hash, i < b->rows ? ENCODER : ASKED, v, b->dim, 1, err);
        if (i % GROUP == GROUP - 1 || i == b->rows + QUERIES - 1 || rc < 0)
            rc = repo_end(b->r, rc, err);
    }
    free(v);
    return rc;
}

static int fill(struct bench *b, struct err *err)
{
    struct texts hashes = {0};
    int rc = start(b, err);
    rc = rc < 0 ? rc : repo_open(&b->r, b->in.home, REPO_WRITE, err);
    double t = cli_now();
    rc = rc < 0 ? rc : add_adapters(b, &hashes, err);
    double added = cli_now();
    rc = rc < 0 ? rc : add_vectors(b, &hashes, err);
    texts_release(&hashes);
    if (rc == 0 && b->adapters)
        figure(b, "adapters are added", b->adapters / (added - t), "files/s");
    if (rc == 0)
        figure(b, "vectors are kept", b->rows / (cli_now() - added), "/s");
    repo_close(b->r);
    b->r = NULL;
    return rc;
}

/* ---- figures --------------------------------------------------------------------------------- */

/* MB that /proc/self/status says of us: "VmRSS:", "VmHWM:" (the most since reset_peak). 0: not known. */
static double memory(const char *field)
{
    char line[200];
    double kb = 0;
    FILE *f = fopen("/proc/self/status", "r");
    while (f && fgets(line, sizeof line, f))
        if (!strncmp(line, field, strlen(field)))
            kb = strtod(line + strlen(field), NULL);
    if (f)
        fclose(f);
    return kb * 1024 / 1e6;
}

static void reset_peak(void)
{
    FILE *f = fopen("/proc/self/clear_refs", "w");
    if (f) {
        fputs("5", f);
        fclose(f);
    }
}

/* Sorts the seconds and says the 50th and 99th of a hundred. */
static int open_index(const struct bench *b, struct repo *r, struct index **x, struct err *err)
{
    return index_open_as(x, r, ENCODER, b->dim, b->kind, err);
}

static int bench_build(struct bench *b, struct err *err)
{
    struct index *x = NULL;
    struct stat st;
    int rc = repo_open(&b->r, b->in.home, REPO_WRITE, err);
    double before = memory("VmRSS:");
    reset_peak();
    double t = cli_now();
    rc = rc < 0 ? rc : open_index(b, b->r, &x, err);
    t = cli_now() - t;
    if (rc == 0 && index_count(x) != b->rows)
        rc = err_set(err, ERR_MISMATCH, "%lld of %d vectors are in the index",
                     (long long)index_count(x), b->rows);
    if (rc == 0 && stat(b->file, &st) < 0)
        rc = err_set(err, ERR_IO, "%s: %s", b->file, strerror(errno));
    if (rc == 0) {
        if (!b->json)
            printf("an index of kind %s\n", index_kind(x));
        figure(b, "built from the database and written", t, "s");
        figure(b, "memory meanwhile, at most", memory("VmHWM:") - before, "MB");
        figure(b, "size of its file", (double)st.st_size / 1e6, "MB");
    }
    index_close(x);
    repo_close(b->r);
    b->r = NULL;
    return rc;
}

struct exact {
    const struct bench *b;
    int64_t id[COMPARED][K]; /* best first */
    float score[COMPARED][K];
    int n;
};

static float dot(const float *x, const float *y, int dim)
{
    float s[8] = {0}, sum = 0;
    for (int i = 0; i + 8 <= dim; i += 8)
        for (int k = 0; k < 8; k++)
            s[k] += x[i + k] * y[i + k];
    for (int i = dim & ~7; i < dim; i++)
        sum += x[i] * y[i];
    for (int k = 0; k < 8; k++)
        sum += s[k];
    return sum;
}

static int each_exact(void *user, int64_t id, const float *v)
{
    struct exact *e = user;
    for (int q = 0; q < COMPARED; q++) {
        float s = dot(e->b->query + (size_t)q * (size_t)e->b->dim, v, e->b->dim);
        int at = e->n < K ? e->n : K;
        if (at == K && s <= e->score[q][K - 1])
            continue;
        for (at -= at == K; at > 0 && e->score[q][at - 1] < s; at--) {
            e->score[q][at] = e->score[q][at - 1];
            e->id[q][at] = e->id[q][at - 1];
        }
        e->score[q][at] = s;
        e->id[q][at] = id;
    }
    e->n++;
    return 0;
}

/* The part of what a plain loop finds that the index finds. */
static int bench_recall(const struct bench *b, struct repo *r, const struct index *x,
                        struct err *err)
{
    struct exact *e = calloc(1, sizeof *e);
    int64_t id[K];
    float score[K];
    int n, same = 0, of = 0;
    int rc = e ? 0 : err_nomem(err, sizeof *e);
    if (e)
        e->b = b;
    rc = rc < 0 ? rc : repo_embeddings(r, ENCODER, b->dim, each_exact, e, err);
    for (int q = 0; q < COMPARED && rc == 0; q++) {
        rc = index_search(x, b->query + (size_t)q * (size_t)b->dim, K, id, score, &n, err);
        of += e->n < K ? e->n : K;
        for (int i = 0; i < n && rc == 0; i++)
            for (int k = 0; k < K && k < e->n; k++)
                same += id[i] == e->id[q][k];
    }
    free(e);
    if (rc == 0)
        figure(b, "recall at 10", 100.0 * same / of, "%");
    return rc;
}

static int bench_warm(struct bench *b, struct err *err)
{
    struct index *x = NULL;
    double t[QUERIES];
    int64_t id[K];
    float score[K];
    int n;
    int rc = repo_open(&b->r, b->in.home, REPO_WRITE, err);
    double before = memory("VmRSS:");
    rc = rc < 0 ? rc : open_index(b, b->r, &x, err);
    if (rc == 0)
        figure(b, "memory of an open index", memory("VmRSS:") - before, "MB");
    for (int i = 0; i < QUERIES && rc == 0; i++) {
        t[i] = cli_now();
        rc = index_search(x, b->query + (size_t)i * (size_t)b->dim, K, id, score, &n, err);
        t[i] = cli_now() - t[i];
    }
    if (rc == 0)
        bench_percentiles(b->json, "a query for ten, warm", t, QUERIES);
    rc = rc < 0 ? rc : bench_recall(b, b->r, x, err);
    index_close(x);
    repo_close(b->r);
    b->r = NULL;
    return rc;
}

static int count_one(void *user, const struct repo_adapter *a)
{
    (void)a;
    ++*(int *)user;
    return 0;
}

/* All that a search by vector does: [4] seconds of opening the repository, the index, searching, and reading the
 * adapters. */
static int search_once(struct bench *b, const float *query, double t[4], int *found,
                       struct err *err)
{
    struct index *x = NULL;
    int64_t id[K];
    float score[K];
    int n = 0;
    double at[5] = {cli_now()};
    int rc = repo_open(&b->r, b->in.home, REPO_WRITE, err);
    at[1] = cli_now();
    rc = rc < 0 ? rc : open_index(b, b->r, &x, err);
    at[2] = cli_now();
    rc = rc < 0 ? rc : index_search(x, query, K, id, score, &n, err);
    at[3] = cli_now();
    for (int i = 0; i < n && rc == 0; i++)
        rc = repo_embedding_adapters(b->r, id[i], count_one, found, err);
    at[4] = cli_now();
    for (int i = 0; i < 4; i++)
        t[i] = at[i + 1] - at[i];
    index_close(x);
    repo_close(b->r);
    b->r = NULL;
    return rc;
}

static int bench_cold(struct bench *b, struct err *err)
{
    static const char *const name[] = {"  opening the repository", "  opening the index",
                                       "  the query", "  the adapters"};
    double t[4][TURNS], all[TURNS];
    int found = 0, rc = 0;
    for (int i = 0; i < TURNS && rc == 0; i++) {
        double one[4];
        rc = search_once(b, b->query + (size_t)i * (size_t)b->dim, one, &found, err);
        all[i] = 0;
        for (int k = 0; k < 4 && rc == 0; k++) {
            t[k][i] = one[k];
            all[i] += one[k];
        }
    }
    if (rc < 0)
        return rc;
    bench_percentiles(b->json, "opening, one query, its adapters", all, TURNS);
    for (int k = 0; k < 4; k++)
        bench_percentiles(b->json, name[k], t[k], TURNS);
    figure(b, "  adapters found", (double)found / TURNS, "a query");
    return 0;
}

/* ---- the command ----------------------------------------------------------------------------- */

static int bench_all(struct bench *b, struct err *err)
{
    int rc = bench_weights(b->json, false, err);
    rc = rc < 0 ? rc : fill(b, err);
    rc = rc < 0 ? rc : bench_build(b, err);
    rc = rc < 0 ? rc : bench_warm(b, err);
    return rc < 0 ? rc : bench_cold(b, err);
}

int bench_retrieve(int argc, char **argv)
{
    struct bench b = {.rows = USUAL, .adapters = -1, .dim = 128, .dir = "/tmp"};
    struct option o[MAX_OPTIONS];
    struct err err;

    make_options(o, &b);
    int rc = bench_parse(o, argc, argv, &err);
    if (rc < 0)
        return cli_fail(&err);
    if (b.sd15)
        return bench_weights(b.json, true, &err) < 0 ? cli_fail(&err) : EXIT_DONE;
    if (b.adapters < 0)
        b.adapters = b.rows < USUAL ? b.rows : USUAL;
    rc = bench_folder_make(&b.in, b.dir, &err);
    if (rc < 0)
        return cli_fail(&err);
    snprintf(b.file, sizeof b.file, "%s/index/" ENCODER ".faiss", b.in.home);
    rc = bench_all(&b, &err);
    repo_close(b.r);
    if (b.keep && !b.json)
        printf("kept: %s\n", b.in.home);
    else if (!b.keep)
        bench_remove_tree(b.in.root);
    free(b.centre);
    free(b.query);
    return rc < 0 ? cli_fail(&err) : EXIT_DONE;
}
