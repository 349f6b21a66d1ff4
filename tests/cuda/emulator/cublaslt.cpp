/* cublaslt.cpp: matrix products (cublasLt.h). What contradicts NVIDIA's documentation of a call aborts; what it may refuse, a
 * combination of types or alignments that no algorithm has, is CUBLAS_STATUS_NOT_SUPPORTED. An algorithm is good for the
 * call it was asked for, with pointers as aligned as was promised; the first may want a workspace, which is left dirty.
 */
#include "cublasLt.h"
#include "emulator.h"

#include <set>

struct cublasLtContext {
    int unused;
};
struct emulator_matmul {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    int transpose[2]; /* A, B */
    unsigned epilogue;
    int bias_type;
    int64_t bias_stride;
    const void *bias;
};
struct emulator_layout {
    cudaDataType_t type;
    int order, batch;
    uint64_t rows, cols;
    int64_t ld, stride;
};
struct emulator_preference {
    uint64_t workspace;
    uint32_t align[4]; /* A, B, C, D */
};

namespace {

std::set<const void *> known;

template <class T> T *here(T *x, const char *what)
{
    if (!known.count(x))
        emulator_fail("cublasLt: no such %s: %p", what, (const void *)x);
    return x;
}

template <class T> cublasStatus_t made(T **to, const T &x)
{
    emulator_locked hold;
    *to = NULL;
    if (emulator_refused())
        return CUBLAS_STATUS_ALLOC_FAILED;
    *to = new T(x);
    known.insert(*to);
    return CUBLAS_STATUS_SUCCESS;
}

template <class T> cublasStatus_t gone(T *x, const char *what)
{
    emulator_locked hold;
    known.erase(here(x, what));
    delete x;
    return CUBLAS_STATUS_SUCCESS;
}

/* Sets an attribute of T from n bytes at v. */
template <class T> void set(T *to, const void *v, size_t n, int attr)
{
    if (n != sizeof(T))
        emulator_fail("cublasLt: attribute %d has %zu bytes, not %zu", attr, sizeof(T), n);
    memcpy((void *)to, v, n);
}

size_t size_of(int type)
{
    return type == CUDA_R_32F ? 4 : 2;
}

bool is_type(int type)
{
    return type == CUDA_R_32F || type == CUDA_R_16F || type == CUDA_R_16BF;
}

float get(const void *p, size_t i, int type)
{
    const unsigned short *h = (const unsigned short *)p;
    if (type == CUDA_R_32F)
        return ((const float *)p)[i];
    return type == CUDA_R_16F ? __half2float({h[i]}) : __bfloat162float({h[i]});
}

void put(void *p, size_t i, int type, float v)
{
    if (type == CUDA_R_32F)
        ((float *)p)[i] = v;
    else
        ((unsigned short *)p)[i] =
            type == CUDA_R_16F ? __float2half_rn(v).bits : __float2bfloat16_rn(v).bits;
}

/* As a product's factor: what the fast ways leave of a float. */
float factor(float v, cublasComputeType_t compute)
{
    if (compute == CUBLAS_COMPUTE_32F_FAST_16F)
        return __half2float(__float2half_rn(v));
    if (compute == CUBLAS_COMPUTE_32F_FAST_16BF)
        return __bfloat162float(__float2bfloat16_rn(v));
    if (compute == CUBLAS_COMPUTE_32F_FAST_TF32 && isfinite(v))
        return emulator_float((emulator_bits(v) + 0xfff + (emulator_bits(v) >> 13 & 1)) & ~0x1fffu);
    return v;
}

/* A call: all that has to be the same when an algorithm is asked for and used. */
struct problem {
    emulator_matmul d;
    emulator_layout l[4]; /* A, B, C, D */
    uint64_t m, n, k;

    uint64_t mark() const
    {
        uint64_t h = 14695981039346656037ull;
        auto mix = [&h](uint64_t v) { h = (h ^ v) * 1099511628211ull; };
        for (uint64_t v : {(uint64_t)d.compute, (uint64_t)d.scale, (uint64_t)d.transpose[0],
                           (uint64_t)d.transpose[1], (uint64_t)d.epilogue, (uint64_t)d.bias_type,
                           (uint64_t)d.bias_stride})
            mix(v);
        for (const emulator_layout &x : l) {
            for (uint64_t v : {(uint64_t)x.type, (uint64_t)x.batch, x.rows, x.cols, (uint64_t)x.ld,
                               (uint64_t)x.stride})
                mix(v);
        }
        return h;
    }
};

size_t extent(const emulator_layout &l)
{
    return ((size_t)(l.batch - 1) * (size_t)l.stride + (l.cols - 1) * (size_t)l.ld + l.rows) *
           size_of(l.type);
}

/* The table of types at cublasLtMatmul(), for float scales. */
bool types_known(const problem &p)
{
    int a = p.l[0].type, c = p.l[2].type;
    bool plain = p.d.compute == CUBLAS_COMPUTE_32F || p.d.compute == CUBLAS_COMPUTE_32F_PEDANTIC;
    if (p.l[1].type != a || p.l[3].type != c || p.d.scale != CUDA_R_32F)
        return false;
    if (a == CUDA_R_32F)
        return c == CUDA_R_32F && p.d.compute != CUBLAS_COMPUTE_16F;
    return plain && (c == a || c == CUDA_R_32F);
}

/* Aborts where sizes are not of a product. */
problem problem_of(emulator_matmul *d, emulator_layout *a, emulator_layout *b, emulator_layout *c,
                   emulator_layout *out)
{
    here(d, "description");
    here(out, "layout of D");
    problem p = {*d,
                 {*here(a, "layout of A"), *here(b, "layout of B"),
                  c ? *here(c, "layout of C") : *out, *out},
                 0,
                 0,
                 0};
    for (int i = 0; i < 4; i++) {
        const emulator_layout &l = p.l[i];
        bool broadcast = i == 2 && l.ld == 0;
        if (l.rows == 0 || l.cols == 0 || l.rows > INT32_MAX || l.cols > INT32_MAX)
            emulator_fail("cublasLt: %c is %llu x %llu", "ABCD"[i], (unsigned long long)l.rows,
                          (unsigned long long)l.cols);
        if (l.ld < (int64_t)l.rows && !broadcast)
            emulator_fail("cublasLt: the leading dimension of %c is %lld, its rows are %llu",
                          "ABCD"[i], (long long)l.ld, (unsigned long long)l.rows);
        if (l.batch < 1 || l.batch != p.l[0].batch)
            emulator_fail("cublasLt: %d matrices %c, but %d A", l.batch, "ABCD"[i], p.l[0].batch);
        if (l.stride < 0 ||
            (i == 3 && l.batch > 1 && l.stride < (int64_t)(l.cols - 1) * l.ld + (int64_t)l.rows))
            emulator_fail("cublasLt: matrices %c are %lld apart and overlap", "ABCD"[i],
                          (long long)l.stride);
        if (l.order != CUBLASLT_ORDER_COL)
            emulator_fail("cublasLt: only columns first is emulated");
    }
    bool ta = d->transpose[0], tb = d->transpose[1];
    p.m = ta ? a->cols : a->rows;
    p.k = ta ? a->rows : a->cols;
    p.n = tb ? b->rows : b->cols;
    uint64_t k = tb ? b->cols : b->rows;
    if (k != p.k || p.l[3].rows != p.m || p.l[3].cols != p.n || p.l[2].rows != p.m ||
        p.l[2].cols != p.n)
        emulator_fail("cublasLt: D [%llu, %llu] = A [%llu, %llu] B [%llu, %llu] + C [%llu, %llu]",
                      (unsigned long long)out->rows, (unsigned long long)out->cols,
                      (unsigned long long)p.m, (unsigned long long)p.k, (unsigned long long)k,
                      (unsigned long long)p.n, (unsigned long long)p.l[2].rows,
                      (unsigned long long)p.l[2].cols);
    if (p.d.epilogue != CUBLASLT_EPILOGUE_DEFAULT && p.d.epilogue != CUBLASLT_EPILOGUE_BIAS)
        emulator_fail("cublasLt: epilogue %u is not emulated", p.d.epilogue);
    if (p.d.bias_type == -1)
        p.d.bias_type = p.l[3].type;
    return p;
}

unsigned alignment(const void *p)
{
    uintptr_t at = (uintptr_t)p | 256;
    return (unsigned)(at & (~at + 1));
}

/* Column n of the i-th product; left: its A, [k][m]. */
void column(const problem &p, size_t i, size_t n, const float *left, float alpha, const void *b,
            float beta, const void *c, void *out)
{
    const emulator_layout *l = p.l;
    size_t at[4];
    for (int x = 0; x < 4; x++)
        at[x] = i * (size_t)l[x].stride;
    std::vector<double> sum(p.m);
    for (size_t k = 0; k < p.k; k++) {
        size_t x = p.d.transpose[1] ? k * (size_t)l[1].ld + n : n * (size_t)l[1].ld + k;
        double v = factor(get(b, at[1] + x, l[1].type), p.d.compute);
        for (size_t m = 0; m < p.m; m++)
            sum[m] += left[k * p.m + m] * v;
    }
    for (size_t m = 0; m < p.m; m++) {
        double v = alpha * sum[m];
        if (beta != 0)
            v += (double)beta * get(c, at[2] + n * (size_t)l[2].ld + m, l[2].type);
        if (p.d.epilogue == CUBLASLT_EPILOGUE_BIAS)
            v += get(p.d.bias, i * (size_t)p.d.bias_stride + m, p.d.bias_type);
        put(out, at[3] + n * (size_t)l[3].ld + m, l[3].type, (float)v);
    }
}

void multiply(const problem &p, float alpha, const void *a, const void *b, float beta,
              const void *c, void *out)
{
    std::vector<float> left(p.m * p.k);
    for (size_t i = 0; i < (size_t)p.l[0].batch; i++) {
        size_t at = i * (size_t)p.l[0].stride, ld = (size_t)p.l[0].ld;
        for (size_t x = 0; x < p.m * p.k; x++) {
            size_t m = x % p.m, k = x / p.m, of = p.d.transpose[0] ? m * ld + k : k * ld + m;
            left[x] = factor(get(a, at + of, p.l[0].type), p.d.compute);
        }
#ifdef _OPENMP
#pragma omp parallel for if (p.m * p.n * p.k > PARALLEL_LEAST)
#endif
        for (size_t n = 0; n < p.n; n++)
            column(p, i, n, left.data(), alpha, b, beta, c, out);
    }
}

bool overlap(const void *a, size_t n, const void *b, size_t m)
{
    return (const char *)a < (const char *)b + m && (const char *)b < (const char *)a + n;
}

void must_be_device(const void *p, size_t n, const char *what)
{
    if (!p || !emulator_is_device(p, n))
        emulator_fail("cublasLtMatmul: %s [%p, + %zu) is not within an allocation of device memory",
                      what, p, n);
}

void check_pointers(const problem &p, const void *const at[4], float beta, const void *workspace,
                    size_t bytes)
{
    static const char *const names[4] = {"A", "B", "C", "D"};
    size_t out = extent(p.l[3]);
    for (int i = 0; i < 4; i++) {
        if (i == 2 && beta == 0)
            continue;
        must_be_device(at[i], extent(p.l[i]), names[i]);
        if (i < 2 && overlap(at[i], extent(p.l[i]), at[3], out))
            emulator_fail("cublasLtMatmul: D overlaps %s", names[i]);
        if (bytes && overlap(at[i], extent(p.l[i]), workspace, bytes))
            emulator_fail("cublasLtMatmul: the workspace overlaps %s", names[i]);
    }
    if (beta != 0 && overlap(at[2], extent(p.l[2]), at[3], out) &&
        (at[2] != at[3] || p.l[2].ld != p.l[3].ld || p.l[2].stride != p.l[3].stride))
        emulator_fail("cublasLtMatmul: C and D overlap, but are not the same");
    if (p.d.epilogue == CUBLASLT_EPILOGUE_BIAS) {
        size_t n =
            ((size_t)(p.l[3].batch - 1) * (size_t)p.d.bias_stride + p.m) * size_of(p.d.bias_type);
        must_be_device(p.d.bias, n, "bias");
        if (overlap(p.d.bias, n, at[3], out))
            emulator_fail("cublasLtMatmul: D overlaps the bias");
    }
    if (bytes)
        must_be_device(workspace, bytes, "workspace");
}

enum { MAGIC = 0x77656674 };

} // namespace

cublasStatus_t cublasLtCreate(cublasLtHandle_t *h)
{
    return emulator_absent() ? CUBLAS_STATUS_NOT_INITIALIZED : made(h, cublasLtContext());
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t h)
{
    return gone(h, "handle");
}

size_t cublasLtGetVersion(void)
{
    return CUBLAS_VERSION;
}

const char *cublasLtGetStatusName(cublasStatus_t rc)
{
    switch (rc) {
    case CUBLAS_STATUS_SUCCESS: return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_NOT_INITIALIZED: return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED: return "CUBLAS_STATUS_ALLOC_FAILED";
    case CUBLAS_STATUS_INVALID_VALUE: return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_ARCH_MISMATCH: return "CUBLAS_STATUS_ARCH_MISMATCH";
    case CUBLAS_STATUS_MAPPING_ERROR: return "CUBLAS_STATUS_MAPPING_ERROR";
    case CUBLAS_STATUS_EXECUTION_FAILED: return "CUBLAS_STATUS_EXECUTION_FAILED";
    case CUBLAS_STATUS_INTERNAL_ERROR: return "CUBLAS_STATUS_INTERNAL_ERROR";
    case CUBLAS_STATUS_NOT_SUPPORTED: return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_LICENSE_ERROR: return "CUBLAS_STATUS_LICENSE_ERROR";
    }
    return "unknown";
}

const char *cublasLtGetStatusString(cublasStatus_t rc)
{
    return cublasLtGetStatusName(rc);
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *d, cublasComputeType_t compute,
                                        cudaDataType_t scale)
{
    return made(
        d, emulator_matmul{
               compute, scale, {CUBLAS_OP_N, CUBLAS_OP_N}, CUBLASLT_EPILOGUE_DEFAULT, -1, 0, NULL});
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d,
                                              cublasLtMatmulDescAttributes_t attr, const void *v,
                                              size_t n)
{
    emulator_locked hold;
    here(d, "description");
    int32_t x = 0;
    switch (attr) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE: set(&d->compute, v, n, attr); break;
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE: set(&d->scale, v, n, attr); break;
    case CUBLASLT_MATMUL_DESC_TRANSA: set(&d->transpose[0], v, n, attr); break;
    case CUBLASLT_MATMUL_DESC_TRANSB: set(&d->transpose[1], v, n, attr); break;
    case CUBLASLT_MATMUL_DESC_EPILOGUE: set(&d->epilogue, v, n, attr); break;
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER: set(&d->bias, v, n, attr); break;
    case CUBLASLT_MATMUL_DESC_BIAS_BATCH_STRIDE: set(&d->bias_stride, v, n, attr); break;
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE: set(&d->bias_type, v, n, attr); break;
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
    case CUBLASLT_MATMUL_DESC_TRANSC: set(&x, v, n, attr); break;
    default: x = 1;
    }
    if (x != 0)
        emulator_fail("cublasLt: attribute %d of a product, or this of it, is not emulated", attr);
    for (int t : d->transpose) {
        if (t < CUBLAS_OP_N || t > CUBLAS_OP_C)
            emulator_fail("cublasLt: no such operation: %d", t);
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t d)
{
    return gone(d, "description");
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *l, cudaDataType type,
                                          uint64_t rows, uint64_t cols, int64_t ld)
{
    if (!is_type(type))
        emulator_fail("cublasLt: type %d is not emulated", type);
    return made(l, emulator_layout{type, CUBLASLT_ORDER_COL, 1, rows, cols, ld, 0});
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l,
                                                cublasLtMatrixLayoutAttribute_t attr, const void *v,
                                                size_t n)
{
    emulator_locked hold;
    here(l, "layout");
    switch (attr) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE: set(&l->type, v, n, attr); break;
    case CUBLASLT_MATRIX_LAYOUT_ORDER: set(&l->order, v, n, attr); break;
    case CUBLASLT_MATRIX_LAYOUT_ROWS: set(&l->rows, v, n, attr); break;
    case CUBLASLT_MATRIX_LAYOUT_COLS: set(&l->cols, v, n, attr); break;
    case CUBLASLT_MATRIX_LAYOUT_LD: set(&l->ld, v, n, attr); break;
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT: set(&l->batch, v, n, attr); break;
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET: set(&l->stride, v, n, attr); break;
    default: emulator_fail("cublasLt: attribute %d of a layout is not emulated", attr);
    }
    if (!is_type(l->type))
        emulator_fail("cublasLt: type %d is not emulated", l->type);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t l)
{
    return gone(l, "layout");
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *p)
{
    return made(p, emulator_preference{0, {256, 256, 256, 256}});
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t attr,
                                                    const void *v, size_t n)
{
    emulator_locked hold;
    here(p, "preference");
    uint32_t x;
    switch (attr) {
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: set(&p->workspace, v, n, attr); break;
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: set(&x, v, n, attr); break;
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        set(&x, v, n, attr);
        if (x == 0 || (x & (x - 1)) != 0)
            emulator_fail("cublasLt: an alignment of %u bytes", x);
        p->align[attr - CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES] = x;
        break;
    default: emulator_fail("cublasLt: preference %d is not emulated", attr);
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t p)
{
    return gone(p, "preference");
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t h, cublasLtMatmulDesc_t d,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t out,
                                              cublasLtMatmulPreference_t preference, int most,
                                              cublasLtMatmulHeuristicResult_t found[], int *n)
{
    emulator_locked hold;
    here(h, "handle");
    here(preference, "preference");
    *n = 0;
    if (most < 1)
        emulator_fail("cublasLtMatmulAlgoGetHeuristic: %d algorithms are asked for", most);
    problem p = problem_of(d, a, b, c, out);
    if (!types_known(p) || (p.d.epilogue == CUBLASLT_EPILOGUE_BIAS && p.d.bias_type != p.l[3].type))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    for (int i = 0; i < 4; i++) {
        if (preference->align[i] < size_of(p.l[i].type))
            return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    uint64_t mark = p.mark(), wants = 256 + 512 * (mark % 97);
    bool hungry = mark % 3 != 0 && wants <= preference->workspace;
    for (; *n < std::min(most, hungry ? 2 : 1); ++*n) {
        cublasLtMatmulHeuristicResult_t *x = &found[*n];
        memset(x, 0, sizeof *x);
        x->workspaceSize = hungry && *n == 0 ? wants : 0;
        x->wavesCount = 1;
        x->state = CUBLAS_STATUS_SUCCESS;
        uint64_t data[8] = {MAGIC,
                            mark,
                            x->workspaceSize,
                            alignment(p.d.bias),
                            preference->align[0],
                            preference->align[1],
                            preference->align[2],
                            preference->align[3]};
        memcpy(x->algo.data, data, sizeof data);
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmul(cublasLtHandle_t h, cublasLtMatmulDesc_t d, const void *alpha,
                              const void *a, cublasLtMatrixLayout_t al, const void *b,
                              cublasLtMatrixLayout_t bl, const void *beta, const void *c,
                              cublasLtMatrixLayout_t cl, void *out, cublasLtMatrixLayout_t ol,
                              const cublasLtMatmulAlgo_t *algo, void *workspace, size_t bytes,
                              cudaStream_t s)
{
    emulator_locked hold;
    here(h, "handle");
    problem p = problem_of(d, al, bl, cl, ol);
    const void *at[4] = {a, b, c, out};
    if (!alpha || !beta || emulator_is_device_range(alpha) || emulator_is_device_range(beta))
        emulator_fail("cublasLtMatmul: alpha and beta have to be in host memory");
    if (!types_known(p) || (p.d.epilogue == CUBLASLT_EPILOGUE_BIAS && p.d.bias_type != p.l[3].type))
        return CUBLAS_STATUS_NOT_SUPPORTED;
    float by = *(const float *)alpha, and_by = *(const float *)beta;
    uint64_t own[8] = {MAGIC, p.mark(), 0, 1, 1, 1, 1, 1};
    const uint64_t *x = algo ? algo->data : own;
    if (x[0] != MAGIC || x[1] != p.mark())
        emulator_fail("cublasLtMatmul: the algorithm is of another product");
    if (bytes < x[2])
        emulator_fail("cublasLtMatmul: %zu bytes of workspace, the algorithm wants %zu", bytes,
                      (size_t)x[2]);
    if ((uintptr_t)workspace % 16 != 0)
        emulator_fail("cublasLtMatmul: the workspace is not 16-byte aligned");
    for (int i = 0; i < 4; i++) {
        size_t align = std::max((size_t)x[4 + i], size_of(p.l[i].type));
        if ((i != 2 || and_by != 0) && (uintptr_t)at[i] % align != 0)
            emulator_fail("cublasLtMatmul: %c is at %p, the algorithm wants %zu-byte alignment",
                          "ABCD"[i], at[i], align);
    }
    if (p.d.epilogue == CUBLASLT_EPILOGUE_BIAS &&
        (uintptr_t)p.d.bias % std::max((size_t)x[3], size_of(p.d.bias_type)) != 0)
        emulator_fail("cublasLtMatmul: the bias is at %p, less aligned than when the algorithm was "
                      "asked for",
                      p.d.bias);
    check_pointers(p, at, and_by, workspace, bytes);
    cudaError_t rc = emulator_do(s, [=] {
        const void *now[4] = {a, b, c, out};
        check_pointers(p, now, and_by, workspace, bytes);
        multiply(p, by, a, b, and_by, c, out);
        if (bytes)
            memset(workspace, 0xff, bytes);
    });
    return rc == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
