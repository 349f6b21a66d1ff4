#include "index.h"

#include "unet/file.h"

#include <errno.h>
#include <faiss/c_api/AutoTune_c.h>
#include <faiss/c_api/IndexIVF_c.h>
#include <faiss/c_api/Index_c.h>
#include <faiss/c_api/error_c.h>
#include <faiss/c_api/index_factory_c.h>
#include <faiss/c_api/index_io_c.h>
#include <fcntl.h>
#include <omp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum {
    VERSION = 1, /* of the file around FAISS' bytes */
    CHUNK =
        16384, /* vectors that are added at once: few, so that threads seldom wait for each other */
    A_CELL = 64 /* vectors of which a cell's centre is learnt */
};

/* By the number of vectors; index.h says what was measured. */
static const struct {
    int64_t from;
    const char *kind;
} kinds[] = {{0, "IDMap,Flat"}, {2000, "IVF1,Flat"}, {150000, "IVF1024,Flat nprobe=32"}};

/* What stands behind FAISS' bytes in the file: whose they are, and the sum of all before it. */
struct trailer {
    char magic[8];
    uint32_t version, dim;
    int64_t generation, count; /* of the encoder's vectors in the database */
    uint64_t length;           /* of FAISS' bytes */
    char kind[40];
    uint64_t sum;
};

struct index {
    FaissIndex *faiss;
    struct trailer of; /* without length and sum */
};

static int fail(struct err *err, int code, const char *doing)
{
    return err_set(err, code == STD_EXCEPT ? ERR_NOMEM : ERR_ARG, "FAISS cannot %s: %s", doing,
                   faiss_get_last_error());
}

/* ---- the sum --------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t h, uint64_t w)
{
    h = (h ^ w) * UINT64_C(0x9e3779b97f4a7c15);
    return h << 29 | h >> 35;
}

/* Eight lanes side by side, so that it is as fast as memory. Each step can be undone knowing the word, so whatever
 * happens to a single word is noticed for certain, all else but once in 2^64. */
static uint64_t sum(uint64_t start, const void *bytes, size_t n)
{
    enum { LANES = 8 };
    uint64_t lane[LANES], w[LANES];
    const char *p = bytes;
    for (uint64_t i = 0; i < LANES; i++)
        lane[i] = start + i;
    for (size_t left = n; left > 0;) {
        size_t part = left < sizeof w ? left : sizeof w;
        if (part < sizeof w)
            memset(w, 0, sizeof w);
        memcpy(w, p, part);
#pragma GCC unroll 8
        for (int i = 0; i < LANES; i++)
            lane[i] = mix(lane[i], w[i]);
        p += part;
        left -= part;
    }
    uint64_t h = n;
    for (int i = 0; i < LANES; i++)
        h = mix(h, lane[i]);
    return h ^ h >> 32;
}

static uint64_t sum_all(const void *faiss, const struct trailer *t)
{
    return sum(sum(0, faiss, t->length), t, offsetof(struct trailer, sum));
}

/* ---- the file -------------------------------------------------------------------------------- */

/* Whether the bytes [size] are whole and what is wanted. */
static bool is_good(const struct index *x, const char *bytes, size_t size)
{
    struct trailer t, want = x->of;
    if (size < sizeof t)
        return false;
    memcpy(&t, bytes + size - sizeof t, sizeof t);
    want.length = size - sizeof t;
    want.sum = t.sum;
    return !memcmp(&t, &want, sizeof t) && sum_all(bytes, &t) == t.sum;
}

/* What lies in cells stays in the file and is mapped; the flag is that of C++, the C header's is of an older FAISS. */
static FaissIndex *read_faiss(int fd)
{
    enum { IO_FLAG_MMAP = 8 | 0x646f0000 };
    FaissIndex *out = NULL;
    int own = dup(fd);
    FILE *f = own < 0 ? NULL : fdopen(own, "rb");
    if (!f && own >= 0)
        close(own);
    if (f && faiss_read_index(f, IO_FLAG_MMAP, &out) != OK)
        out = NULL;
    if (f)
        fclose(f);
    return out;
}

/* Whether all in the file is as it was written and of what is wanted. */
static bool check(const struct index *x, int fd)
{
    struct stat st;
    char *map;
    if (fstat(fd, &st) < 0 || !S_ISREG(st.st_mode) || st.st_size <= 0)
        return false;
    size_t size = (size_t)st.st_size;
    map = mmap(NULL, size, PROT_READ, MAP_SHARED | MAP_POPULATE, fd, 0);
    if (map == MAP_FAILED)
        return false;
    bool good = is_good(x, map, size);
    munmap(map, size);
    return good;
}

/* False where the file cannot be used as it is. Files appear by rename, so that what is open does not change. */
static bool load(struct index *x, const char *path)
{
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a pipe must not make us wait */
    if (fd < 0)
        return false;
    if (check(x, fd))
        x->faiss = read_faiss(fd);
    close(fd);
    if (x->faiss && ((uint32_t)faiss_Index_d(x->faiss) != x->of.dim ||
                     faiss_Index_ntotal(x->faiss) > x->of.count)) {
        faiss_Index_free(x->faiss);
        x->faiss = NULL;
    }
    return x->faiss != NULL;
}

/* Behind FAISS' bytes in fd, of which f is the stream. */
static int write_trailer(const struct index *x, FILE *f, int fd)
{
    struct trailer t = x->of;
    struct stat st;
    if (fflush(f) || fstat(fd, &st) < 0)
        return -1;
    t.length = (uint64_t)st.st_size;
    void *map = mmap(NULL, t.length, PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return -1;
    t.sum = sum_all(map, &t);
    munmap(map, t.length);
    return fwrite(&t, sizeof t, 1, f) == 1 ? 0 : -1;
}

static int fill_file(void *user, int fd)
{
    const struct index *x = user;
    int own = dup(fd);
    FILE *f = own < 0 ? NULL : fdopen(own, "wb");
    if (!f) {
        if (own >= 0)
            close(own);
        return -1;
    }
    int rc = faiss_write_index(x->faiss, f) == OK ? write_trailer(x, f, fd) : -1;
    return fclose(f) ? -1 : rc;
}

/* ---- building -------------------------------------------------------------------------------- */

struct batch {
    struct index *x;
    float *v;    /* [room, dim] */
    int64_t *id; /* [room] */
    int n, room;
    int64_t seen, every; /* of the sample */
    struct err *err;
    int rc;
};

static int batch_init(struct batch *b, struct index *x, int room, struct err *err)
{
    *b = (struct batch){.x = x, .room = room, .err = err};
    b->v = malloc((size_t)room * x->of.dim * sizeof *b->v);
    b->id = malloc((size_t)room * sizeof *b->id);
    return b->v && b->id ? 0 : err_nomem(err, (size_t)room * x->of.dim * sizeof *b->v);
}

static void batch_release(struct batch *b)
{
    free(b->v);
    free(b->id);
}

static void take(struct batch *b, int64_t id, const float *v)
{
    memcpy(b->v + (size_t)b->n * b->x->of.dim, v, b->x->of.dim * sizeof *v);
    b->id[b->n++] = id;
}

static int flush(struct batch *b)
{
    int code = b->n ? faiss_Index_add_with_ids(b->x->faiss, b->n, b->v, b->id) : OK;
    b->n = 0;
    return b->rc = code == OK ? 0 : fail(b->err, code, "take the vectors in");
}

static int each_added(void *user, int64_t id, const float *v)
{
    struct batch *b = user;
    take(b, id, v);
    return b->n == b->room ? flush(b) : 0;
}

static int each_sampled(void *user, int64_t id, const float *v)
{
    struct batch *b = user;
    if (b->seen++ % b->every == 0)
        take(b, id, v);
    return b->n == b->room;
}

static int64_t cells(const struct index *x)
{
    const FaissIndexIVF *ivf = faiss_IndexIVF_cast(x->faiss);
    return ivf ? (int64_t)faiss_IndexIVF_nlist(ivf) : 1;
}

/* Of vectors from all over; where there is one cell, any do. */
static int train(struct index *x, struct repo *r, const char *encoder, struct err *err)
{
    struct batch b;
    int64_t count = x->of.count, want = A_CELL * cells(x);
    int rc = batch_init(&b, x, (int)(want < count ? want : count) + 1, err);
    b.every = cells(x) > 1 && count > want ? count / want : 1;
    rc = rc < 0 ? rc : repo_embeddings(r, encoder, (int)x->of.dim, each_sampled, &b, err);
    int code = rc < 0 ? OK : faiss_Index_train(x->faiss, b.n, b.v);
    batch_release(&b);
    return code == OK ? rc : fail(err, code, "learn its cells");
}

static int add_all(struct index *x, struct repo *r, const char *encoder, struct err *err)
{
    struct batch b;
    int rc = batch_init(&b, x, CHUNK, err);
    rc = rc < 0 ? rc : repo_embeddings(r, encoder, (int)x->of.dim, each_added, &b, err);
    rc = rc < 0 ? rc : b.rc;
    rc = rc < 0 ? rc : flush(&b);
    batch_release(&b);
    return rc;
}

/* An empty index of the kind. */
static int make(struct index *x, struct err *err)
{
    char kind[sizeof x->of.kind], *space;
    FaissParameterSpace *p = NULL;
    memcpy(kind, x->of.kind, sizeof kind);
    if ((space = strchr(kind, ' ')))
        *space = 0;
    int code = faiss_index_factory(&x->faiss, (int)x->of.dim, kind, METRIC_INNER_PRODUCT);
    if (code != OK) {
        x->faiss = NULL;
        return fail(err, code, "make such an index");
    }
    if (!space)
        return 0;
    code = faiss_ParameterSpace_new(&p);
    if (code == OK) {
        code = faiss_ParameterSpace_set_index_parameters(p, x->faiss, space + 1);
        faiss_ParameterSpace_free(p);
    }
    return code == OK ? 0 : fail(err, code, "set that parameter");
}

/* With one cell there is nothing that threads could share, only waiting for each other. */
static int build(struct index *x, struct repo *r, const char *encoder, struct err *err)
{
    int rc = make(x, err), threads = omp_get_max_threads();
    if (rc < 0)
        return rc;
    if (cells(x) == 1)
        omp_set_num_threads(1);
    if (!faiss_Index_is_trained(x->faiss))
        rc = train(x, r, encoder, err);
    rc = rc < 0 ? rc : add_all(x, r, encoder, err);
    omp_set_num_threads(threads);
    return rc;
}

/* ---- opening --------------------------------------------------------------------------------- */

/* What the index is to be of. The generation is asked for before the vectors are read: when they change in between,
 * the file passes for old, not for new. */
static int describe(struct index *x, struct repo *r, const char *encoder, int dim, const char *kind,
                    struct err *err)
{
    struct trailer *t = &x->of;
    if (dim < 1 || dim > 1 << 16 || (kind && strlen(kind) >= sizeof t->kind))
        return err_set(err, ERR_ARG, "no index of %d numbers, kind %.60s", dim, kind ? kind : "");
    memcpy(t->magic, "weft-idx", sizeof t->magic);
    t->version = VERSION;
    t->dim = (uint32_t)dim;
    int rc = repo_embedding_generation(r, encoder, &t->generation, &t->count, err);
    for (size_t i = 0; i < sizeof kinds / sizeof *kinds && !kind; i++)
        if (i + 1 == sizeof kinds / sizeof *kinds || t->count < kinds[i + 1].from)
            kind = kinds[i].kind;
    snprintf(t->kind, sizeof t->kind, "%s", kind);
    return rc;
}

int index_open_as(struct index **out, struct repo *r, const char *encoder, int dim,
                  const char *kind, struct err *err)
{
    struct index *x = calloc(1, sizeof *x);
    char *path = NULL;
    struct err none;
    *out = NULL;
    if (!x)
        return err_nomem(err, sizeof *x);
    int rc = repo_index_path(r, encoder, &path, err);
    bool write = rc == 0;
    rc = rc < 0 ? rc : describe(x, r, encoder, dim, kind, err);
    if (rc == 0 && (!x->of.count || !load(x, path))) {
        rc = build(x, r, encoder, err);
        if (rc == 0 && write && x->of.count)
            file_replace_by(path, fill_file, x, &none); /* as well without */
    }
    free(path);
    if (rc < 0)
        index_close(x);
    else
        *out = x;
    return rc;
}

int index_open(struct index **out, struct repo *r, const char *encoder, int dim, struct err *err)
{
    return index_open_as(out, r, encoder, dim, NULL, err);
}

void index_close(struct index *x)
{
    if (!x)
        return;
    if (x->faiss)
        faiss_Index_free(x->faiss);
    free(x);
}

int64_t index_count(const struct index *x)
{
    return faiss_Index_ntotal(x->faiss);
}

const char *index_kind(const struct index *x)
{
    return x->of.kind;
}

/* ---- searching ------------------------------------------------------------------------------- */

/* Of an index with cells: those nearest to the query, and what is in them. FAISS' own search would have a thread a
 * cell read ahead, which takes longer than to search. */
static int search_cells(const FaissIndexIVF *ivf, const float *query, int k, int64_t *id,
                        float *score)
{
    enum { MOST = 64 };
    size_t n = faiss_IndexIVF_nprobe(ivf), all = faiss_IndexIVF_nlist(ivf);
    int64_t cell[MOST];
    float near[MOST];
    n = n > all ? all : n;
    if (n > MOST)
        return faiss_Index_search(ivf, 1, query, k, score, id);
    int code = faiss_Index_search(faiss_IndexIVF_quantizer(ivf), 1, query, (int64_t)n, near, cell);
    return code != OK
               ? code
               : faiss_IndexIVF_search_preassigned(ivf, 1, query, k, cell, near, score, id, 0);
}

int index_search(const struct index *x, const float *query, int k, int64_t *id, float *score,
                 int *n, struct err *err)
{
    int64_t have = index_count(x);
    *n = 0;
    k = k > have ? (int)have : k;
    if (k < 1)
        return 0;
    const FaissIndexIVF *ivf = faiss_IndexIVF_cast(x->faiss);
    int code = ivf ? search_cells(ivf, query, k, id, score)
                   : faiss_Index_search(x->faiss, 1, query, k, score, id);
    if (code != OK)
        return fail(err, code, "search");
    for (int i = 0; i < k; i++) /* where it found less, it says -1 */
        if (id[i] >= 0) {
            id[*n] = id[i];
            score[(*n)++] = score[i];
        }
    return 0;
}
