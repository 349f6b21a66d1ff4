/* selftest_libraries.h: part of selftest.cpp: cuBLASLt and cuDNN. */
struct gemm {
    int m, n, k, batch;
    bool ta, tb, bias;
    float alpha, beta;
    cudaDataType_t in, out;
};

struct gemm_call {
    cublasLtHandle_t h;
    cublasLtMatmulDesc_t d;
    cublasLtMatrixLayout_t l[4];
    cublasLtMatmulPreference_t p;
    cublasLtMatmulHeuristicResult_t found[4];
    int n_found, ld[4];
    cublasStatus_t rc;

    explicit gemm_call(const gemm &g, const void *bias, uint64_t workspace = 1 << 20,
                       uint32_t align = 2)
    {
        cublasLtCreate(&h);
        cublasLtMatmulDescCreate(&d, CUBLAS_COMPUTE_32F, CUDA_R_32F);
        int32_t ta = g.ta ? CUBLAS_OP_T : CUBLAS_OP_N, tb = g.tb ? CUBLAS_OP_T : CUBLAS_OP_N;
        cublasLtMatmulDescSetAttribute(d, CUBLASLT_MATMUL_DESC_TRANSA, &ta, sizeof ta);
        cublasLtMatmulDescSetAttribute(d, CUBLASLT_MATMUL_DESC_TRANSB, &tb, sizeof tb);
        uint32_t epilogue = CUBLASLT_EPILOGUE_BIAS;
        if (g.bias) {
            cublasLtMatmulDescSetAttribute(d, CUBLASLT_MATMUL_DESC_EPILOGUE, &epilogue, 4);
            cublasLtMatmulDescSetAttribute(d, CUBLASLT_MATMUL_DESC_BIAS_POINTER, &bias, 8);
        }
        int rows[4] = {g.ta ? g.k : g.m, g.tb ? g.n : g.k, g.m, g.m};
        int cols[4] = {g.ta ? g.m : g.k, g.tb ? g.k : g.n, g.n, g.n};
        for (int i = 0; i < 4; i++) {
            ld[i] = rows[i] + (i < 2 ? 3 : 0);
            cublasLtMatrixLayoutCreate(&l[i], i < 2 ? g.in : g.out, (uint64_t)rows[i],
                                       (uint64_t)cols[i], ld[i]);
            int64_t stride = (int64_t)ld[i] * cols[i];
            cublasLtMatrixLayoutSetAttribute(l[i], CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &g.batch, 4);
            cublasLtMatrixLayoutSetAttribute(l[i], CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                             &stride, 8);
        }
        cublasLtMatmulPreferenceCreate(&p);
        cublasLtMatmulPreferenceSetAttribute(p, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                             &workspace, 8);
        for (int i = 0; i < 4; i++)
            cublasLtMatmulPreferenceSetAttribute(
                p,
                (cublasLtMatmulPreferenceAttributes_t)(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES +
                                                       i),
                &(align = std::max(align, i < 2                 ? g.in == CUDA_R_32F ? 4u : 2u
                                          : g.out == CUDA_R_32F ? 4u
                                                                : 2u)),
                4);
        rc = cublasLtMatmulAlgoGetHeuristic(h, d, l[0], l[1], l[2], l[3], p, 4, found, &n_found);
    }
    ~gemm_call()
    {
        cublasLtMatmulPreferenceDestroy(p);
        for (cublasLtMatrixLayout_t x : l)
            cublasLtMatrixLayoutDestroy(x);
        cublasLtMatmulDescDestroy(d);
        cublasLtDestroy(h);
    }
    gemm_call(const gemm_call &) = delete;
    cublasStatus_t run(const gemm &g, const void *a, const void *b, const void *c, void *out,
                       void *workspace, size_t bytes, int which = 0)
    {
        return cublasLtMatmul(h, d, &g.alpha, a, l[0], b, l[1], &g.beta, c, l[2], out, l[3],
                              &found[which].algo, workspace, bytes, stream);
    }
};

template <class T, class O> static void test_gemm(const gemm &g)
{
    int ra = g.ta ? g.k : g.m, ca = g.ta ? g.m : g.k, rb = g.tb ? g.n : g.k, cb = g.tb ? g.k : g.n;
    array<T> a((size_t)((ra + 3) * ca * g.batch)), b((size_t)((rb + 3) * cb * g.batch));
    array<O> c((size_t)(g.m * g.n * g.batch)), d(c.host.size(), false), bias((size_t)g.m);
    array<float> workspace(1 << 18, false);
    gemm_call call(g, bias.at);
    check(call.rc == CUBLAS_STATUS_SUCCESS && call.n_found > 0, "an algorithm");
    bool all = true;
    for (int which = 0; which < call.n_found; which++) {
        call.run(g, a.at, b.at, g.beta != 0 ? c.at : NULL, d.at, workspace.at,
                 call.found[which].workspaceSize, which);
        d.download();
        for (int i = 0; i < g.m * g.n * g.batch; i++) {
            int m = i % g.m, n = i / g.m % g.n, s = i / g.m / g.n;
            double sum = 0;
            for (int k = 0; k < g.k; k++)
                sum +=
                    a[(size_t)(s * (ra + 3) * ca + (g.ta ? m * (ra + 3) + k : k * (ra + 3) + m))] *
                    b[(size_t)(s * (rb + 3) * cb + (g.tb ? k * (rb + 3) + n : n * (rb + 3) + k))];
            sum = g.alpha * sum + (g.beta != 0 ? g.beta * c[(size_t)i] : 0) +
                  (g.bias ? bias[(size_t)m] : 0);
            all = all && near(d[(size_t)i], sum, sizeof(O) == 4 ? 1e-6 : 8e-3);
        }
    }
    check(all, "a matrix product");
}

static void test_gemms(void)
{
    for (int i = 0; i < 16; i++) {
        gemm g = {5 + i,
                  7,
                  9,
                  1 + i / 4 % 3,
                  (i & 1) != 0,
                  (i & 2) != 0,
                  (i & 4) != 0,
                  0.5f,
                  i & 8 ? 1.f : 0.f,
                  CUDA_R_32F,
                  CUDA_R_32F};
        test_gemm<float, float>(g);
        g.in = g.out = CUDA_R_16F;
        test_gemm<__half, __half>(g);
        g.in = g.out = CUDA_R_16BF;
        test_gemm<__nv_bfloat16, __nv_bfloat16>(g);
        g.out = CUDA_R_32F;
        test_gemm<__nv_bfloat16, float>(g);
    }
    gemm bad = {4, 4, 4, 1, false, false, false, 1, 0, CUDA_R_32F, CUDA_R_16F};
    gemm_call call(bad, NULL);
    check(call.rc == CUBLAS_STATUS_NOT_SUPPORTED, "types that no product has");
}

/* ---- cuDNN ------------------------------------------------------------------------------------- */

typedef cudnnBackendDescriptor_t desc;
typedef std::vector<int64_t> ints;

static desc make(cudnnBackendDescriptorType_t type)
{
    desc d;
    cudnnBackendCreateDescriptor(type, &d);
    return d;
}

static void set(desc d, cudnnBackendAttributeName_t attr, cudnnBackendAttributeType_t type,
                int64_t n, const void *v)
{
    cudnnBackendSetAttribute(d, attr, type, n, v);
}

static void link(desc d, cudnnBackendAttributeName_t attr, desc to)
{
    set(d, attr, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &to);
}

/* Channels last. */
static desc tensor(int64_t uid, const ints &dims, cudnnDataType_t type, bool is_virtual = false,
                   bool by_value = false)
{
    desc d = make(CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    int64_t align = type == CUDNN_DATA_FLOAT ? 4 : 2;
    int64_t strides[4] = {dims[1] * dims[2] * dims[3], 1, dims[1] * dims[3], dims[1]};
    set(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    set(d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    set(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &align);
    set(d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dims.data());
    set(d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, strides);
    set(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    set(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    cudnnBackendFinalize(d);
    return d;
}

struct conv {
    int64_t n, c, h, w, k, r, stride, pad, dilation;
    bool back, bias;
    double beta;

    int64_t out(int64_t from) const
    {
        return (from + 2 * pad - ((r - 1) * dilation + 1)) / stride + 1;
    }
};

static desc convolution(const conv &c, desc x, desc w, desc y)
{
    desc d = make(CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR);
    int64_t two = 2, stride[2] = {c.stride, c.stride}, pad[2] = {c.pad, c.pad};
    int64_t dilation[2] = {c.dilation, c.dilation};
    cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
    set(d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    set(d, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode);
    set(d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &two);
    set(d, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, 2, stride);
    set(d, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, 2, dilation);
    set(d, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
    set(d, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, 2, pad);
    cudnnBackendFinalize(d);
    double one = 1;
    desc op;
    if (c.back) {
        op = make(CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR);
        link(op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, d);
        link(op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, x);
        link(op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, w);
        link(op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, y);
        set(op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_TYPE_DOUBLE, 1, &one);
        set(op, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, CUDNN_TYPE_DOUBLE, 1, &c.beta);
    } else {
        op = make(CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR);
        link(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, d);
        link(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, x);
        link(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, w);
        link(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, y);
        set(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_TYPE_DOUBLE, 1, &one);
        set(op, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, CUDNN_TYPE_DOUBLE, 1, &c.beta);
    }
    cudnnBackendFinalize(op);
    return op;
}

static desc sum(desc x, desc b, desc y)
{
    desc p = make(CUDNN_BACKEND_POINTWISE_DESCRIPTOR);
    desc op = make(CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR);
    cudnnPointwiseMode_t mode = CUDNN_POINTWISE_ADD;
    cudnnDataType_t sums = CUDNN_DATA_FLOAT;
    set(p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode);
    set(p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &sums);
    cudnnBackendFinalize(p);
    link(op, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, p);
    link(op, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x);
    link(op, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, b);
    link(op, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y);
    cudnnBackendFinalize(op);
    return op;
}

static cudnnHandle_t handle;

static desc graph(const std::vector<desc> &ops, cudnnStatus_t *rc = NULL)
{
    desc g = make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    set(g, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
    set(g, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, (int64_t)ops.size(),
        ops.data());
    cudnnStatus_t status = cudnnBackendFinalize(g);
    if (rc)
        *rc = status;
    return g;
}

static std::vector<desc> plans(desc g, cudnnBackendHeurMode_t mode, int *n_broken)
{
    desc h = make(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    link(h, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, g);
    set(h, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    cudnnBackendFinalize(h);
    int64_t n = 0;
    cudnnBackendGetAttribute(h, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, 0, &n,
                             NULL);
    std::vector<desc> configs, good;
    for (int64_t i = 0; i < n; i++)
        configs.push_back(make(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR));
    cudnnBackendGetAttribute(h, CUDNN_ATTR_ENGINEHEUR_RESULTS, CUDNN_TYPE_BACKEND_DESCRIPTOR, n, &n,
                             configs.data());
    for (desc c : configs) {
        desc p = make(CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
        set(p, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &handle);
        link(p, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, c);
        if (cudnnBackendFinalize(p) == CUDNN_STATUS_SUCCESS)
            good.push_back(p);
        else
            ++*n_broken;
        cudnnBackendDestroyDescriptor(c);
    }
    cudnnBackendDestroyDescriptor(h);
    return good;
}

static std::vector<int> notes(desc plan_graph, int64_t engine)
{
    desc e = make(CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    link(e, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, plan_graph);
    set(e, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &engine);
    cudnnBackendFinalize(e);
    std::vector<int> v(CUDNN_NUMERICAL_NOTE_TYPE_COUNT);
    int64_t n = 0;
    cudnnBackendGetAttribute(e, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                             (int64_t)v.size(), &n, v.data());
    v.resize((size_t)n);
    return v;
}

static cudnnStatus_t execute(desc plan, const ints &ids, const std::vector<void *> &at,
                             void *workspace)
{
    desc v = make(CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    set(v, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, (int64_t)ids.size(), ids.data());
    set(v, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, (int64_t)at.size(),
        at.data());
    set(v, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    cudnnBackendFinalize(v);
    cudnnStatus_t rc = cudnnBackendExecute(handle, plan, v);
    cudnnBackendDestroyDescriptor(v);
    return rc;
}

/* The graph of c: x 1, w 2, y 3, bias 4, between 5. */
static desc conv_graph(const conv &c, cudnnDataType_t type)
{
    desc x = tensor(1, {c.n, c.c, c.h, c.w}, type), w = tensor(2, {c.k, c.c, c.r, c.r}, type);
    ints dims = {c.n, c.k, c.out(c.h), c.out(c.w)};
    desc y = tensor(3, dims, type);
    if (!c.bias)
        return graph({convolution(c, x, w, y)});
    desc between = tensor(5, dims, CUDNN_DATA_FLOAT, true);
    return graph({sum(between, tensor(4, {1, c.k, 1, 1}, type), y), convolution(c, x, w, between)});
}

template <class T> static void test_conv(const conv &c, cudnnDataType_t type)
{
    int64_t p = c.out(c.h), q = c.out(c.w);
    array<T> x((size_t)(c.n * c.h * c.w * c.c)), w((size_t)(c.k * c.r * c.r * c.c));
    array<T> y((size_t)(c.n * p * q * c.k)), bias((size_t)c.k);
    array<float> workspace(1 << 16, false);
    array<T> &out = c.back ? x : y;
    const array<T> &in = c.back ? y : x;
    std::vector<double> want(out.host.size());
    for (size_t i = 0; i < want.size(); i++)
        want[i] = c.beta * out[i] + (c.bias ? bias[i % (size_t)c.k] : 0);
    for (int64_t i = 0; i < c.n * p * q * c.r * c.r; i++) {
        int64_t s = i % c.r, r = i / c.r % c.r, row = i / c.r / c.r;
        int64_t h = row / q % p * c.stride + r * c.dilation - c.pad;
        int64_t v = row % q * c.stride + s * c.dilation - c.pad;
        for (int64_t k = 0; k < c.k * c.c && h >= 0 && h < c.h && v >= 0 && v < c.w; k++) {
            size_t of_x = (size_t)(((row / q / p * c.h + h) * c.w + v) * c.c + k % c.c);
            size_t of_y = (size_t)(row * c.k + k / c.c);
            size_t of_w = (size_t)(((k / c.c * c.r + r) * c.r + s) * c.c + k % c.c);
            want[c.back ? of_x : of_y] += in[c.back ? of_y : of_x] * w[of_w];
        }
    }
    std::vector<T> before = out.host;
    int n_broken = 0;
    desc g = conv_graph(c, type);
    std::vector<desc> all = plans(g, CUDNN_HEUR_MODE_A, &n_broken);
    std::vector<desc> more = plans(g, CUDNN_HEUR_MODE_FALLBACK, &n_broken);
    all.insert(all.end(), more.begin(), more.end());
    check(all.size() == 4 && n_broken == 1, "plans, and one that cannot be");
    double by[4] = {1e-2, 1e-5, 1e-5, 1e-5}; /* the first is as TF32 */
    for (size_t i = 0; i < all.size(); i++) {
        out.host = before;
        out.upload();
        ints ids = {1, 2, 3, 4};
        std::vector<void *> at = {x.at, w.at, y.at, bias.at};
        ids.resize(c.bias ? 4 : 3);
        at.resize(ids.size());
        cudnnStatus_t rc = execute(all[i], ids, at, workspace.at);
        out.download();
        bool good = rc == CUDNN_STATUS_SUCCESS;
        for (size_t k = 0; k < want.size(); k++)
            good = good && near(out[k], want[k], sizeof(T) == 4 ? by[i] : 1e-2);
        check(good, "a convolution");
        cudnnBackendDestroyDescriptor(all[i]);
    }
}

static void test_attention(void)
{
    desc op = make(CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR);
    cudnnDataType_t type = CUDNN_DATA_HALF;
    link(op, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, tensor(1, {2, 3, 5, 8}, type));
    link(op, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, tensor(2, {2, 3, 7, 8}, type));
    link(op, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, tensor(3, {2, 3, 7, 8}, type));
    link(op, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, tensor(4, {2, 3, 5, 8}, type));
    link(op, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC,
         tensor(5, {1, 1, 1, 1}, CUDNN_DATA_FLOAT, false, true));
    cudnnBackendFinalize(op);
    int n_broken = 0;
    std::vector<desc> all = plans(graph({op}), CUDNN_HEUR_MODE_FALLBACK, &n_broken);
    array<__half> q(2 * 3 * 5 * 8), k(2 * 3 * 7 * 8), v(2 * 3 * 7 * 8), o(2 * 3 * 5 * 8, false);
    float scale = 0.7f;
    check(all.size() == 1 && execute(all[0], {1, 2, 3, 4, 5}, {q.at, k.at, v.at, o.at, &scale},
                                     NULL) == CUDNN_STATUS_SUCCESS,
          "attention runs");
    o.download();
    bool good = true;
    for (size_t i = 0; i < 2 * 3 * 5; i++) { /* tensor() has its second dimension innermost */
        size_t n = i / 15, head = i / 5 % 3, row = i % 5;
        double w[7], total = 0;
        for (size_t j = 0; j < 7; j++) {
            w[j] = 0;
            for (size_t c = 0; c < 8; c++)
                w[j] += q[n * 120 + row * 24 + c * 3 + head] * k[n * 168 + j * 24 + c * 3 + head];
            total += w[j] = exp(scale * w[j]);
        }
        for (size_t c = 0; c < 8; c++) {
            double want = 0;
            for (size_t j = 0; j < 7; j++)
                want += w[j] / total * v[n * 168 + j * 24 + c * 3 + head];
            good = good && near(o[n * 120 + row * 24 + c * 3 + head], want, 1e-3);
        }
    }
    check(good, "attention");
}

static void test_dnn(void)
{
    cudnnCreate(&handle);
    cudnnSetStream(handle, stream);
    const conv all[] = {
        {2, 4, 7, 6, 8, 3, 1, 1, 1, false, false, 0}, {1, 4, 9, 8, 4, 3, 2, 1, 1, false, false, 0},
        {1, 8, 5, 5, 4, 1, 1, 0, 1, false, false, 1}, {1, 3, 8, 9, 5, 3, 2, 1, 1, true, false, 0},
        {2, 4, 6, 7, 3, 3, 1, 1, 1, true, false, 1},  {1, 3, 9, 9, 4, 3, 1, 2, 2, false, false, 0},
        {2, 8, 6, 6, 8, 3, 2, 1, 1, false, true, 0}};
    for (const conv &c : all) {
        test_conv<float>(c, CUDNN_DATA_FLOAT);
        test_conv<__half>(c, CUDNN_DATA_HALF);
        test_conv<__nv_bfloat16>(c, CUDNN_DATA_BFLOAT16);
    }
    desc g = conv_graph(all[0], CUDNN_DATA_FLOAT);
    check(notes(g, 0) == std::vector<int>{CUDNN_NUMERICAL_NOTE_TENSOR_CORE} &&
              notes(g, 2) == std::vector<int>{CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC} &&
              notes(g, 3).empty(),
          "notes of engines");
    cudnnStatus_t rc;
    desc x = tensor(1, {1, 8, 4, 4}, CUDNN_DATA_FLOAT),
         y = tensor(2, {1, 8, 4, 4}, CUDNN_DATA_FLOAT);
    desc in_place = graph({sum(x, y, x)}, &rc);
    int n_broken = 0;
    std::vector<desc> p = plans(in_place, CUDNN_HEUR_MODE_FALLBACK, &n_broken);
    array<float> a(128), b(128);
    double want = a[5] + b[5];
    check(rc == CUDNN_STATUS_SUCCESS &&
              execute(p[0], {1, 2}, {a.at, b.at}, NULL) == CUDNN_STATUS_SUCCESS,
          "a sum in place runs");
    a.download();
    check(near(a[5], want, 1e-6), "a sum in place");
    conv same = {1, 8, 4, 4, 8, 3, 1, 1, 1, false, false, 0};
    desc between = tensor(3, {1, 8, 4, 4}, CUDNN_DATA_FLOAT, true);
    desc w = tensor(4, {8, 8, 3, 3}, CUDNN_DATA_FLOAT);
    graph({convolution(same, x, w, between), sum(between, y, x)}, &rc);
    check(rc == CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN, "two operations in place");
    conv odd = {1, 8, 4, 4, 5, 3, 1, 1, 1, false, true, 0};
    check(plans(conv_graph(odd, CUDNN_DATA_FLOAT), CUDNN_HEUR_MODE_A, &n_broken).empty(),
          "fusions of odd channels");
    test_attention();
}
