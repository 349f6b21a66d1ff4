#include "matmul.h"

#include <cublasLt.h>
#include <stdlib.h>
#include <string.h>

/* What cuBLASLt may use while it works: as much as it recommends for Hopper. */
#define WORKSPACE ((size_t)32 << 20)

struct matmul {
    struct matmul_shape shape;
    cublasLtMatmulDesc_t what;
    cublasLtMatrixLayout_t a, b, d;
    cublasLtMatmulHeuristicResult_t how;
    struct matmul *next;
};

/* Plans by a hash of their shape. */
enum { BUCKETS = 256 };

struct cuda_blas {
    cublasLtHandle_t lt;
    struct matmul *plan[BUCKETS];
};

static int failed(struct err *err, const char *what, cublasStatus_t rc)
{
    return rc == CUBLAS_STATUS_SUCCESS
               ? 0
               : err_set(err, ERR_IO, "cuBLASLt: %s: %s", what, cublasLtGetStatusString(rc));
}

int cuda_blas_open(struct cuda_blas **out, struct cuda *c, struct err *err)
{
    (void)c;
    *out = calloc(1, sizeof **out);
    if (!*out)
        return err_nomem(err, sizeof **out);
    return failed(err, "it does not start", cublasLtCreate(&(*out)->lt));
}

static void plan_free(struct matmul *p)
{
    if (p->what)
        cublasLtMatmulDescDestroy(p->what);
    if (p->a)
        cublasLtMatrixLayoutDestroy(p->a);
    if (p->b)
        cublasLtMatrixLayoutDestroy(p->b);
    if (p->d)
        cublasLtMatrixLayoutDestroy(p->d);
    free(p);
}

void cuda_blas_close(struct cuda_blas *b)
{
    if (!b)
        return;
    for (int i = 0; i < BUCKETS; i++)
        for (struct matmul *p = b->plan[i], *next; p; p = next) {
            next = p->next;
            plan_free(p);
        }
    if (b->lt)
        cublasLtDestroy(b->lt);
    free(b);
}

static cudaDataType_t type_of(enum dtype t)
{
    return t == DT_F16 ? CUDA_R_16F : t == DT_BF16 ? CUDA_R_16BF : CUDA_R_32F;
}

/* Sums are float32 (CUBLAS_COMPUTE_32F, which is never TF32), also of parts that are summed apart. */
static cublasStatus_t describe(struct matmul *p, cudaDataType_t type)
{
    const struct matmul_shape *s = &p->shape;
    const cublasOperation_t turn = s->turned ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasLtEpilogue_t bias = CUBLASLT_EPILOGUE_BIAS;
    void *const aligned = (void *)256; /* heuristics look how it is aligned, and at nothing else */
    uint64_t n = (uint64_t)s->n, k = (uint64_t)s->k, m = (uint64_t)s->m;
    cublasStatus_t rc = cublasLtMatmulDescCreate(&p->what, CUBLAS_COMPUTE_32F, CUDA_R_32F);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatmulDescSetAttribute(p->what, CUBLASLT_MATMUL_DESC_TRANSA, &turn,
                                            sizeof turn);
    if (rc == CUBLAS_STATUS_SUCCESS && s->bias)
        rc = cublasLtMatmulDescSetAttribute(p->what, CUBLASLT_MATMUL_DESC_EPILOGUE, &bias,
                                            sizeof bias);
    if (rc == CUBLAS_STATUS_SUCCESS && s->bias)
        rc = cublasLtMatmulDescSetAttribute(p->what, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &aligned,
                                            sizeof aligned);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = s->turned ? cublasLtMatrixLayoutCreate(&p->a, type, k, n, (int64_t)k)
                       : cublasLtMatrixLayoutCreate(&p->a, type, n, k, (int64_t)n);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatrixLayoutCreate(&p->b, type, k, m, (int64_t)k);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatrixLayoutCreate(&p->d, type, n, m, (int64_t)n);
    return rc;
}

static cublasStatus_t prefer(cublasLtMatmulPreference_t pref, const struct matmul_shape *s)
{
    static const cublasLtMatmulPreferenceAttributes_t align[4] = {
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
        CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES};
    const size_t most = WORKSPACE;
    const uint32_t bytes = (uint32_t)s->align,
                   sums = CUBLASLT_REDUCTION_SCHEME_NONE | CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    cublasStatus_t rc = cublasLtMatmulPreferenceSetAttribute(
        pref, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &most, sizeof most);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatmulPreferenceSetAttribute(pref, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                                  &sums, sizeof sums);
    for (int i = 0; i < 4 && rc == CUBLAS_STATUS_SUCCESS; i++)
        rc = cublasLtMatmulPreferenceSetAttribute(pref, align[i], &bytes, sizeof bytes);
    return rc;
}

/* The first that cuBLASLt proposes: the same each time, which timing them would not be. */
static cublasStatus_t choose(struct cuda_blas *b, struct matmul *p)
{
    cublasLtMatmulPreference_t pref = NULL;
    int found = 0;
    cublasStatus_t rc = cublasLtMatmulPreferenceCreate(&pref);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = prefer(pref, &p->shape);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = cublasLtMatmulAlgoGetHeuristic(b->lt, p->what, p->a, p->b, p->d, p->d, pref, 1,
                                            &p->how, &found);
    if (rc == CUBLAS_STATUS_SUCCESS && found > 0)
        rc = p->how.state;
    if (pref)
        cublasLtMatmulPreferenceDestroy(pref);
    return rc == CUBLAS_STATUS_SUCCESS && !found ? CUBLAS_STATUS_NOT_SUPPORTED : rc;
}

static bool same(const struct matmul_shape *a, const struct matmul_shape *b)
{
    return a->m == b->m && a->n == b->n && a->k == b->k && a->turned == b->turned &&
           a->bias == b->bias && a->accumulate == b->accumulate && a->align == b->align;
}

const struct matmul *matmul_plan(struct device *dev, const struct matmul_shape *s, struct err *err)
{
    struct cuda_blas *b = cuda_of(dev)->blas;
    unsigned hash = ((unsigned)s->m * 31 + (unsigned)s->n) * 31 + (unsigned)s->k;
    struct matmul **at = &b->plan[(hash ^ hash >> 8) % BUCKETS], *p = *at;
    while (p && !same(&p->shape, s))
        p = p->next;
    if (p)
        return p;
    p = calloc(1, sizeof *p);
    if (!p) {
        err_nomem(err, sizeof *p);
        return NULL;
    }
    p->shape = *s;
    cublasStatus_t rc = describe(p, type_of(cuda_of(dev)->type));
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc = choose(b, p);
    if (rc != CUBLAS_STATUS_SUCCESS) {
        err_set(err, ERR_UNSUPPORTED, "cuBLASLt has no product of [%d, %d] and [%d, %d] in %s: %s",
                s->m, s->k, s->k, s->n, dtype_name(cuda_of(dev)->type),
                cublasLtGetStatusString(rc));
        plan_free(p);
        return NULL;
    }
    p->next = *at;
    *at = p;
    return p;
}

size_t matmul_workspace(const struct matmul *p)
{
    return p->how.workspaceSize;
}

struct matmul_args {
    const struct matmul *plan;
    void *y, *workspace;
    const void *x, *w, *b;
};

static int go(struct cuda *c, const void *args, const void *params)
{
    const struct matmul_args *a = args;
    const struct matmul *p = a->plan;
    const float alpha = 1, beta = p->shape.accumulate ? 1 : 0;
    cublasStatus_t rc = CUBLAS_STATUS_SUCCESS;
    (void)params;
    if (p->shape.bias)
        rc = cublasLtMatmulDescSetAttribute(p->what, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &a->b,
                                            sizeof a->b);
    if (rc == CUBLAS_STATUS_SUCCESS)
        rc =
            cublasLtMatmul(c->blas->lt, p->what, &alpha, a->w, p->a, a->x, p->b, &beta, a->y, p->d,
                           a->y, p->d, &p->how.algo, a->workspace, p->how.workspaceSize, c->stream);
    return c->broken.code ? c->broken.code : failed(&c->broken, "a product", rc);
}

int matmul_push(struct device *dev, const struct matmul *p, void *y, const void *x, const void *w,
                const void *b, struct err *err)
{
    struct matmul_args a = {.plan = p, .y = y, .x = x, .w = w, .b = b};
    if (p->how.workspaceSize && !(a.workspace = cuda_scratch(dev, p->how.workspaceSize)))
        return cuda_short(dev, p->how.workspaceSize, err);
    return cuda_push(dev, go, &a, sizeof a, NULL, 0, err);
}
