/* Embeddings in the repository, and the FAISS index of them, which is only a cache. */
#include "repo_fixture.h"
#include "small_lora.h"

#include "retrieve/index.h"
#include "unet/file.h"
#include "unet/rng.h"

#include <fcntl.h>
#include <math.h>
#include <signal.h>
#include <sqlite3.h>
#include <sys/resource.h>
#include <sys/stat.h>

#define ENCODER "c0ffee"
#define FILE_OF "home/index/" ENCODER ".faiss"

enum { DIM = 16, K = 10 };

/* ---- the vectors of a test ------------------------------------------------------------------- */

static const char *sha_of(int i)
{
    static char buf[4][HASH_HEX];
    static int next;
    char *b = buf[next++ % 4];
    snprintf(b, HASH_HEX, "%064x", i);
    return b;
}

static float *vectors(int n, int dim, uint64_t seed)
{
    struct rng rng;
    float *v = malloc((size_t)n * (size_t)dim * sizeof *v);
    rng_init(&rng, RNG_TORCH, seed);
    rng_normal(&rng, v, (size_t)n * (size_t)dim);
    for (int i = 0; i < n; i++) {
        double sum = 0;
        for (int k = 0; k < dim; k++)
            sum += (double)v[i * dim + k] * v[i * dim + k];
        for (int k = 0; k < dim; k++)
            v[i * dim + k] = (float)(v[i * dim + k] / sqrt(sum));
    }
    return v;
}

static void set(struct fixture *f, const char *sha, const float *v, int dim)
{
    cr_assert_eq(repo_set_embedding(f->r, sha, ENCODER, v, dim, 1.5, &f->err), 0, "%s", f->err.msg);
}

/* n vectors; the i-th becomes id i + 1. */
static float *keep(struct fixture *f, int n, int dim)
{
    float *v = vectors(n, dim, 7);
    cr_assert_eq(repo_begin(f->r, &f->err), 0);
    for (int i = 0; i < n; i++)
        set(f, sha_of(i), v + i * dim, dim);
    cr_assert_eq(repo_end(f->r, 0, &f->err), 0);
    return v;
}

static struct index *open_index(struct fixture *f, int dim)
{
    struct index *x = NULL;
    cr_assert_eq(index_open(&x, f->r, ENCODER, dim, &f->err), 0, "%s", f->err.msg);
    cr_assert(x);
    return x;
}

static double dot(const float *a, const float *b, int dim)
{
    double s = 0;
    for (int i = 0; i < dim; i++)
        s += (double)a[i] * b[i];
    return s;
}

/* Best first, by a plain loop. */
static void plain_search(const float *v, int n, int dim, const float *query, int64_t *id,
                         double *score)
{
    int have = 0;
    for (int i = 0; i < n; i++) {
        double s = dot(v + i * dim, query, dim);
        int at = have;
        while (at > 0 && score[at - 1] < s)
            at--;
        if (at == K)
            continue;
        have += have < K;
        memmove(score + at + 1, score + at, (size_t)(have - 1 - at) * sizeof *score);
        memmove(id + at + 1, id + at, (size_t)(have - 1 - at) * sizeof *id);
        score[at] = s;
        id[at] = i + 1;
    }
}

/* That the index finds exactly what the loop does. */
static void expect_exact(struct fixture *f, const struct index *x, const float *v, int n, int dim,
                         const char *when)
{
    enum { QUERIES = 20 };
    float *query = vectors(QUERIES, dim, 99), score[K];
    int64_t id[K], want[K];
    double best[K];
    int found;
    cr_expect_eq(index_count(x), n, "%s: %d vectors", when, (int)index_count(x));
    for (int q = 0; q < QUERIES; q++) {
        plain_search(v, n, dim, query + q * dim, want, best);
        cr_assert_eq(index_search(x, query + q * dim, K, id, score, &found, &f->err), 0, "%s: %s",
                     when, f->err.msg);
        cr_assert_eq(found, K, "%s", when);
        for (int i = 0; i < K; i++) {
            cr_expect_eq(id[i], want[i], "%s: query %d, place %d", when, q, i);
            cr_expect_float_eq(score[i], best[i], 1e-5, "%s: query %d, place %d", when, q, i);
        }
    }
    free(query);
}

/* Opens, compares, closes. */
static void expect_right(struct fixture *f, const float *v, int n, const char *when)
{
    struct index *x = open_index(f, DIM);
    expect_exact(f, x, v, n, DIM, when);
    index_close(x);
}

static ino_t inode(const struct fixture *f)
{
    struct stat st;
    return stat(at(f, FILE_OF), &st) == 0 ? st.st_ino : 0;
}

static void sql(struct fixture *f, const char *text)
{
    sqlite3 *db;
    char *why = NULL;
    cr_assert_eq(sqlite3_open(at(f, "home/weft.db"), &db), SQLITE_OK);
    sqlite3_busy_timeout(db, 10000);
    cr_assert_eq(sqlite3_exec(db, text, NULL, NULL, &why), SQLITE_OK, "%s", why);
    sqlite3_close(db);
}

/* ---- searching ------------------------------------------------------------------------------- */

Test(index, finds_what_a_plain_loop_finds)
{
    struct fixture f;
    fixture_open(&f);
    float *v = keep(&f, 3000, 128);
    struct index *x = open_index(&f, 128);
    expect_exact(&f, x, v, 3000, 128, "built");
    index_close(x);
    x = open_index(&f, 128);
    expect_exact(&f, x, v, 3000, 128, "read");
    repo_close(f.r);
    f.r = NULL;
    expect_exact(&f, x, v, 3000, 128, "without the repository");
    cr_assert_eq(file_replace(at(&f, FILE_OF), "x", 1, &f.err), 0);
    expect_exact(&f, x, v, 3000, 128, "with another file in its place");
    index_close(x);
    free(v);
    fixture_close(&f);
}

Test(index, more_is_asked_for_than_there_is)
{
    struct fixture f;
    struct index *x;
    int64_t id[50];
    float score[50], query[DIM] = {1};
    int n = -1;
    fixture_open(&f);
    x = open_index(&f, DIM);
    cr_expect_eq(index_search(x, query, 50, id, score, &n, &f.err), 0, "%s", f.err.msg);
    cr_expect_eq(n, 0, "found %d of nothing", n);
    cr_expect_eq(inode(&f), 0, "a file of nothing");
    index_close(x);
    float *v = keep(&f, 7, DIM);
    x = open_index(&f, DIM);
    cr_expect_eq(index_search(x, query, 50, id, score, &n, &f.err), 0, "%s", f.err.msg);
    cr_expect_eq(n, 7);
    for (int i = 0; i < n; i++) {
        cr_expect(id[i] >= 1 && id[i] <= 7, "id %d", (int)id[i]);
        cr_expect(i == 0 || score[i] <= score[i - 1]);
    }
    cr_expect_eq(index_search(x, query, 0, id, score, &n, &f.err), 0);
    cr_expect_eq(n, 0);
    query[0] = NAN; /* no place is the best one: anything but a number that is no id */
    cr_expect_eq(index_search(x, query, 7, id, score, &n, &f.err), 0);
    for (int i = 0; i < n; i++)
        cr_expect(id[i] >= 1 && id[i] <= 7, "id %d", (int)id[i]);
    index_close(x);
    free(v);
    fixture_close(&f);
}

/* One that has no vector, and one of another length, are not in it. */
Test(index, only_vectors_of_its_length)
{
    struct fixture f;
    fixture_open(&f);
    float *v = keep(&f, 200, DIM);
    set(&f, sha_of(1000), NULL, DIM);
    set(&f, sha_of(1001), v, DIM / 2);
    expect_right(&f, v, 200, "built");
    ino_t first = inode(&f);
    expect_right(&f, v, 200, "read");
    cr_expect_eq(inode(&f), first);
    free(v);
    fixture_close(&f);
}

Test(index, other_kinds)
{
    static const char kind[] = "IVF16,Flat nprobe=16";
    static const char *const wrong[] = {"IDMap,Fat", "IVF16,Flat nprobs=3",
                                        "IVF16384,Flat; and a lot more than there is room for"};
    struct fixture f;
    struct index *x;
    fixture_open(&f);
    float *v = keep(&f, 2000, DIM);
    for (int turn = 0; turn < 2; turn++) {
        cr_assert_eq(index_open_as(&x, f.r, ENCODER, DIM, kind, &f.err), 0, "%s", f.err.msg);
        cr_expect_str_eq(index_kind(x), kind);
        expect_exact(&f, x, v, 2000, DIM,
                     turn ? "read" : "built"); /* all its cells are looked at */
        index_close(x);
    }
    ino_t cells = inode(&f);
    x = open_index(&f, DIM);
    cr_expect_str_eq(index_kind(x), "IVF1,Flat");
    cr_expect_neq(inode(&f), cells, "the file of another kind stayed");
    index_close(x);
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        cr_expect_eq(index_open_as(&x, f.r, ENCODER, DIM, wrong[i], &f.err), ERR_ARG, "%s",
                     wrong[i]);
        cr_expect_null(x);
    }
    cr_assert_eq(index_open_as(&x, f.r, ENCODER, DIM, wrong[0], &f.err), ERR_ARG);
    cr_expect(strstr(f.err.msg, "FAISS") && strstr(f.err.msg, "Fat"), "%s", f.err.msg);
    cr_expect_eq(index_open(&x, f.r, "../up", DIM, &f.err), ERR_ARG);
    cr_expect_eq(index_open(&x, f.r, "", DIM, &f.err), ERR_ARG);
    cr_expect_eq(index_open(&x, f.r, ENCODER, 0, &f.err), ERR_ARG);
    free(v);
    fixture_close(&f);
}

/* ---- the cache ------------------------------------------------------------------------------- */

Test(index, is_kept_until_something_changes)
{
    struct fixture f;
    int64_t id[1];
    float score[1], *more = vectors(1, DIM, 1234);
    int n;
    fixture_open(&f);
    float *v = keep(&f, 300, DIM);
    expect_right(&f, v, 300, "built");
    ino_t first = inode(&f);
    cr_assert(first);
    expect_right(&f, v, 300, "again");
    set(&f, sha_of(5), v + 5 * DIM, DIM); /* as it was */
    cr_assert_eq(repo_set_embedding(f.r, sha_of(5), "another", v, DIM, 1, &f.err), 0);
    reopen(&f);
    expect_right(&f, v, 300, "after what is no change");
    cr_expect_eq(inode(&f), first, "made again for nothing");

    set(&f, sha_of(300), more, DIM);
    struct index *x = open_index(&f, DIM);
    cr_assert_eq(index_search(x, more, 1, id, score, &n, &f.err), 0);
    cr_expect(n == 1 && score[0] > 0.9999f, "the new one is not found: %d, %g", n, (double)*score);
    index_close(x);
    ino_t second = inode(&f);
    cr_expect_neq(second, first);

    sql(&f, "DELETE FROM embedding WHERE data_sha256 LIKE '%12c'"); /* the new one */
    expect_right(&f, v, 300, "after a deletion");
    ino_t third = inode(&f);
    cr_expect_neq(third, second);
    set(&f, sha_of(7), more, DIM);
    memcpy(v + 7 * DIM, more, DIM * sizeof *v);
    expect_right(&f, v, 300, "after another vector");
    cr_expect_neq(inode(&f), third);
    free(v);
    free(more);
    fixture_close(&f);
}

/* The file of a state that was, put back; that of another encoder; that of another database as large. */
Test(index, whole_files_of_something_else)
{
    struct fixture f;
    struct index *x;
    char *old, *good;
    size_t old_size, size;
    fixture_open(&f);
    float *v = keep(&f, 300, DIM);
    expect_right(&f, v, 300, "built");
    cr_assert_eq(file_read(&old, &old_size, at(&f, FILE_OF), 1 << 24, &f.err), 0);
    float swap[DIM];
    memcpy(swap, v, sizeof swap);
    set(&f, sha_of(0), v + DIM, DIM);
    set(&f, sha_of(1), swap, DIM);
    memcpy(v, v + DIM, sizeof swap);
    memcpy(v + DIM, swap, sizeof swap);
    cr_assert_eq(file_replace(at(&f, FILE_OF), old, old_size, &f.err), 0);
    expect_right(&f, v, 300, "put back");
    cr_assert_eq(file_read(&good, &size, at(&f, FILE_OF), 1 << 24, &f.err), 0);
    cr_expect(size == old_size && memcmp(good, old, size));
    for (int i = 0; i < 300; i++)
        cr_assert_eq(repo_set_embedding(f.r, sha_of(i), "0", v + (299 - i) * DIM, DIM, 1, &f.err),
                     0);
    cr_assert_eq(file_replace(at(&f, "home/index/0.faiss"), good, size, &f.err), 0);
    cr_assert_eq(index_open(&x, f.r, "0", DIM, &f.err), 0);
    int64_t id[1];
    float score[1];
    int n;
    cr_assert_eq(index_search(x, v + 299 * DIM, 1, id, score, &n, &f.err), 0);
    cr_expect(n == 1 && *id == 301, "%d", (int)*id);
    index_close(x);
    sql(&f, "DELETE FROM embedding; DELETE FROM embedding_state");
    free(v);
    v = keep(&f, 300, DIM);
    cr_assert_eq(file_replace(at(&f, FILE_OF), good, size, &f.err), 0);
    expect_right(&f, v, 300, "another database");
    free(v);
    free(old);
    free(good);
    fixture_close(&f);
}

/* Whatever happens to the file: right answers, and it is whole again. */
static void expect_mended(struct fixture *f, const float *v, int n, const char *bad, size_t size,
                          const char *good, size_t good_size, const char *what)
{
    char *now;
    size_t now_size;
    cr_assert_eq(file_replace(at(f, FILE_OF), bad, size, &f->err), 0);
    expect_right(f, v, n, what);
    cr_assert_eq(file_read(&now, &now_size, at(f, FILE_OF), 1 << 24, &f->err), 0);
    cr_expect(now_size == good_size && !memcmp(now, good, good_size), "%s: not mended", what);
    free(now);
}

Test(index, every_damage_is_mended)
{
    enum { N = 100, TRAILER = 88 };
    struct fixture f;
    char *good, *bad, what[60];
    size_t size;
    fixture_open(&f);
    float *v = keep(&f, N, DIM);
    expect_right(&f, v, N, "built");
    cr_assert_eq(file_read(&good, &size, at(&f, FILE_OF), 1 << 24, &f.err), 0);
    cr_assert_gt(size, (size_t)N * DIM * 4 + TRAILER);
    bad = malloc(size + 100);

    const size_t cut[] = {0,
                          1,
                          7,
                          8,
                          TRAILER,
                          TRAILER - 1,
                          size / 2,
                          size / 2 + 3,
                          size - 1,
                          size - 8,
                          size - 9,
                          size - TRAILER - 1,
                          size - TRAILER};
    for (size_t i = 0; i < sizeof cut / sizeof *cut; i++) {
        snprintf(what, sizeof what, "cut to %zu of %zu", cut[i], size);
        expect_mended(&f, v, N, good, cut[i], good, size, what);
        memcpy(bad, good + size - cut[i], cut[i]); /* and the end alone */
        snprintf(what, sizeof what, "the last %zu of %zu", cut[i], size);
        expect_mended(&f, v, N, bad, cut[i], good, size, what);
    }
    for (size_t i = 0; i < size; i += i < 64 || i + TRAILER >= size ? 1 : 61) {
        memcpy(bad, good, size);
        bad[i] = (char)(bad[i] ^ 1 << i % 8);
        snprintf(what, sizeof what, "a bit of byte %zu of %zu", i, size);
        expect_mended(&f, v, N, bad, size, good, size, what);
    }
    memcpy(bad, good, size);
    memset(bad + size, 0, 100);
    expect_mended(&f, v, N, bad, size + 8, good, size, "longer");
    memmove(bad + 8, good, size);
    expect_mended(&f, v, N, bad, size + 8, good, size, "moved");
    memcpy(bad, good, size);
    memcpy(bad + 64, good + 128, 64);
    memcpy(bad + 128, good + 64, 64);
    expect_mended(&f, v, N, bad, size, good, size, "blocks in another order");
    for (size_t i = 0; i < size; i++)
        bad[i] = (char)(i * 2654435761u >> 13);
    expect_mended(&f, v, N, bad, size, good, size, "garbage");
    memset(bad, 0, size);
    expect_mended(&f, v, N, bad, size, good, size, "zeros");
    unlink(at(&f, FILE_OF));
    expect_right(&f, v, N, "gone");
    cr_expect(inode(&f));
    free(good);
    free(bad);
    free(v);
    fixture_close(&f);
}

/* ---- where nothing can be written ------------------------------------------------------------ */

Test(index, a_file_where_the_folder_should_be)
{
    struct fixture f;
    fixture_open(&f);
    float *v = keep(&f, 100, DIM);
    cr_assert_eq(file_replace(at(&f, "home/index"), "x", 1, &f.err), 0);
    expect_right(&f, v, 100, "no folder");
    unlink(at(&f, "home/index"));
    cr_assert_eq(mkdir(at(&f, "home/index"), 0777), 0);
    cr_assert_eq(mkdir(at(&f, FILE_OF), 0777), 0);
    expect_right(&f, v, 100, "a folder of its name");
    cr_assert_eq(rmdir(at(&f, FILE_OF)), 0);
    cr_assert_eq(mkfifo(at(&f, FILE_OF), 0666), 0);
    expect_right(&f, v, 100, "a pipe of its name");
    free(v);
    fixture_close(&f);
}

Test(index, a_disk_that_is_full)
{
    struct fixture f;
    fixture_open(&f);
    float *v = keep(&f, 1000, DIM);
    signal(SIGXFSZ, SIG_IGN);
    cr_assert_eq(setrlimit(RLIMIT_FSIZE, &(struct rlimit){20000, 20000}), 0);
    expect_right(&f, v, 1000, "full");
    cr_expect_eq(inode(&f), 0);
    cr_expect_neq(rmdir(at(&f, "home/index")), -1, "half a file is left");
    free(v);
    fixture_close(&f);
}

Test(index, somebody_elses_folder)
{
    struct fixture f;
    if (getuid())
        cr_skip_test("only root can become somebody else");
    fixture_open(&f);
    float *v = keep(&f, 100, DIM);
    cr_assert_eq(seteuid(65534), 0);
    expect_right(&f, v, 100, "no right to write");
    cr_assert_eq(seteuid(0), 0);
    cr_expect_eq(inode(&f), 0);
    free(v);
    fixture_close(&f);
}

/* A repository that is only read: nothing is written, what is there is used. */
Test(index, only_reading)
{
    struct fixture f;
    double strength;
    float *v, got[DIM];
    fixture_open(&f);
    v = keep(&f, 100, DIM);
    for (int turn = 0; turn < 2; turn++) {
        repo_close(f.r);
        cr_assert_eq(repo_open(&f.r, f.home, REPO_READ, &f.err), 0, "%s", f.err.msg);
        ino_t before = inode(&f);
        cr_assert_eq(before != 0, turn);
        expect_right(&f, v, 100, turn ? "with a file" : "without");
        cr_expect_eq(inode(&f), before);
        set(&f, sha_of(500), v, DIM);
        cr_expect_eq(repo_embedding(f.r, sha_of(500), ENCODER, got, DIM, &strength, &f.err), 1);
        reopen(&f);
        expect_right(&f, v, 100, "made");
    }
    cr_assert_eq(file_replace(at(&f, FILE_OF), "x", 1, &f.err), 0);
    repo_close(f.r);
    cr_assert_eq(repo_open(&f.r, f.home, REPO_READ, &f.err), 0, "%s", f.err.msg);
    expect_right(&f, v, 100, "a damaged file");
    free(v);
    fixture_close(&f);
}

/* ---- the table ------------------------------------------------------------------------------- */

Test(index, an_embedding_comes_back)
{
    struct fixture f;
    float v[DIM] = {1, 2, 3}, got[DIM] = {0};
    double strength = 0;
    int64_t generation, count, last = 0;
    fixture_open(&f);
    cr_expect_eq(repo_embedding_generation(f.r, ENCODER, &last, &count, &f.err), 0);
    cr_expect(last == 0 && count == 0);
    cr_expect_eq(repo_embedding(f.r, sha_of(1), ENCODER, got, DIM, &strength, &f.err), 1);
    set(&f, sha_of(1), v, DIM);
    reopen(&f);
    cr_expect_eq(repo_embedding(f.r, sha_of(1), ENCODER, got, DIM, &strength, &f.err), 0);
    cr_expect(!memcmp(v, got, sizeof v) && strength == 1.5);
    cr_expect_eq(repo_embedding(f.r, sha_of(1), ENCODER, got, DIM - 1, &strength, &f.err), 1);
    cr_expect_eq(repo_embedding(f.r, sha_of(1), "0", got, DIM, &strength, &f.err), 1);
    cr_assert_eq(repo_embedding_generation(f.r, ENCODER, &generation, &count, &f.err), 0);
    cr_expect(generation != last && count == 1);
    last = generation;

    set(&f, sha_of(1), NULL, DIM);
    cr_expect_eq(repo_embedding(f.r, sha_of(1), ENCODER, got, DIM, &strength, &f.err), 0);
    cr_expect(isnan(strength) && got[0] == 0, "looked at, but has none: %g", strength);
    cr_assert_eq(repo_embedding_generation(f.r, ENCODER, &generation, &count, &f.err), 0);
    cr_expect(generation != last && count == 0);
    last = generation;
    v[3] = INFINITY;
    cr_expect_eq(repo_set_embedding(f.r, sha_of(1), ENCODER, v, DIM, 1, &f.err), ERR_ARG);
    v[3] = 0;
    cr_expect_eq(repo_set_embedding(f.r, sha_of(1), ENCODER, v, DIM, NAN, &f.err), ERR_ARG);
    cr_assert_eq(repo_embedding_generation(f.r, ENCODER, &generation, &count, &f.err), 0);
    cr_expect(generation == last && count == 0);
    set(&f, sha_of(1), v, DIM);
    set(&f, sha_of(2), v, DIM);
    sql(&f, "DELETE FROM embedding WHERE id = 1");
    cr_assert_eq(repo_embedding_generation(f.r, ENCODER, &generation, &count, &f.err), 0);
    cr_expect(generation != last && count == 1, "%d", (int)count);
    fixture_close(&f);
}

static int name_of(void *user, const struct repo_adapter *a)
{
    char *names = user;
    snprintf(names + strlen(names), 200 - strlen(names), "%s ", a->name);
    return 0;
}

static void expect_adapters(struct fixture *f, int64_t id, const char *want)
{
    char names[200] = "";
    cr_assert_eq(repo_embedding_adapters(f->r, id, name_of, names, &f->err), 0, "%s", f->err.msg);
    cr_expect_str_eq(names, want);
}

/* Twins are both found, removed ones are not; what nobody needs any more goes with gc. */
Test(index, twins_and_removed_adapters)
{
    struct fixture f;
    struct texts removed = {0};
    struct repo_report report;
    int64_t bytes, generation, count;
    fixture_open(&f);
    small_lora(at(&f, "a.safetensors"), &(struct small){.seed = 1});
    small_lora(at(&f, "b.safetensors"), &(struct small){.seed = 1, .meta = {{"note", "other"}}});
    small_lora(at(&f, "c.safetensors"), &(struct small){.seed = 2});
    add(&f, at(&f, "a.safetensors"), false);
    add(&f, at(&f, "b.safetensors"), false);
    add(&f, at(&f, "c.safetensors"), false);
    struct repo_adapter a = get(&f, "a"), b = get(&f, "b"), c = get(&f, "c");
    cr_assert_str_eq(a.data_sha256, b.data_sha256);
    float *v = vectors(2, DIM, 3);
    set(&f, a.data_sha256, v, DIM);
    set(&f, c.data_sha256, v + DIM, DIM);
    expect_adapters(&f, 1, "a b ");
    expect_adapters(&f, 2, "c ");
    expect_adapters(&f, 3, "");
    index_close(open_index(&f, DIM));
    cr_assert_eq(repo_verify(f.r, NULL, 0, &report, NULL, NULL, &f.err), 0);
    cr_expect_eq(report.orphaned.n, 0, "the index is taken for an orphan");
    repo_report_release(&report);

    cr_assert_eq(repo_remove(f.r, a.key, &f.err), 0);
    expect_adapters(&f, 1, "b ");
    cr_assert_eq(repo_remove(f.r, b.key, &f.err), 0);
    expect_adapters(&f, 1, "");
    cr_assert_eq(repo_gc(f.r, true, &removed, &bytes, &f.err), 0);
    cr_assert_eq(repo_embedding_generation(f.r, ENCODER, &generation, &count, &f.err), 0);
    cr_expect_eq(count, 2, "a dry run removed something");
    cr_assert_eq(repo_gc(f.r, false, &removed, &bytes, &f.err), 0);
    cr_assert_eq(repo_embedding_generation(f.r, ENCODER, &generation, &count, &f.err), 0);
    cr_expect(count == 1 && removed.n == 0 && inode(&f));
    expect_adapters(&f, 2, "c ");
    cr_assert_eq(repo_remove(f.r, c.key, &f.err), 0);
    cr_assert_eq(repo_gc(f.r, false, &removed, &bytes, &f.err), 0);
    cr_expect(removed.n == 1 && !strcmp(removed.item[0], "index/" ENCODER ".faiss"), "%d",
              removed.n);
    cr_expect_eq(inode(&f), 0);
    texts_release(&removed);
    repo_adapter_release(&a);
    repo_adapter_release(&b);
    repo_adapter_release(&c);
    free(v);
    fixture_close(&f);
}

/* A repository as it was before there were embeddings: writing brings it up to date, and loses nothing. */
Test(index, an_older_repository)
{
    struct fixture f;
    float row[4] = {1, 2, 3, 4}, got[4];
    double plain, high;
    fixture_open(&f);
    small_lora(at(&f, "a.safetensors"), &(struct small){.seed = 1});
    add(&f, at(&f, "a.safetensors"), false);
    cr_assert_eq(repo_set_profile(f.r, sha_of(1), "model", .5, &f.err), 0);
    cr_assert_eq(repo_set_response(f.r, sha_of(1), "model", 2.5, row, 4, &f.err), 0);
    repo_close(f.r);
    f.r = NULL;
    sql(&f,
        "DROP TABLE embedding; DROP TABLE embedding_state; DROP TABLE neutral; DROP TABLE learnt; "
        "DROP TRIGGER adapter_comes; DROP TRIGGER adapter_changes; DROP TABLE looked; "
        "PRAGMA user_version = 4");
    cr_expect_eq(repo_open(&f.r, f.home, REPO_READ, &f.err), ERR_UNSUPPORTED);
    cr_expect(strstr(f.err.msg, "older weft") && strstr(f.err.msg, "schema 4"), "%s", f.err.msg);
    reopen(&f);
    struct repo_adapter a = get(&f, "a");
    cr_expect_eq(repo_profile(f.r, sha_of(1), "model", &high, &f.err), 0);
    cr_expect(high == .5);
    cr_expect_eq(repo_response(f.r, sha_of(1), "model", &plain, got, 4, &f.err), 1,
                 "answers as they were told before");
    float *v = keep(&f, 50, DIM);
    expect_right(&f, v, 50, "afterwards");
    free(v);
    repo_adapter_release(&a);
    fixture_close(&f);
}
