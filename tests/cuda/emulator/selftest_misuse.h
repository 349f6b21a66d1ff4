/* selftest_misuse.h: part of selftest.cpp: what has to be found. */
static __global__ void some_wait(float *y, int n)
{
    if ((int)threadIdx.x < n)
        __syncthreads();
    y[threadIdx.x] = 1;
}
static __global__ void elsewhere(float *y)
{
    if (threadIdx.x < 32) {
        __syncthreads();
        y[0] = 1;
    } else {
        __syncthreads();
    }
}
static __global__ void some_lanes(float *y)
{
    if (threadIdx.x % 32 != 7)
        y[threadIdx.x] = __shfl_xor_sync(0xffffffffu, 1.f, 1);
}
static __global__ void mixed(float *y)
{
    if (threadIdx.x == 7)
        __syncthreads();
    else
        __syncwarp();
    y[0] = 1;
}
static __global__ void part_mask(float *y)
{
    y[threadIdx.x] = __shfl_sync(0xffffu, 1.f, 0);
}
static __global__ void write_at(float *y, long i)
{
    ((volatile float *)y)[i] = 1;
}
static __global__ void ldmatrix_at(float *y, unsigned by)
{
    DYNAMIC_SHARED(char, s);
    unsigned r[4];
    device_ldmatrix(r, s + by);
    y[0] = (float)r[0];
}
static __global__ void copy_at(const float *x, unsigned to, unsigned from)
{
    DYNAMIC_SHARED(float, s);
    device_copy16(s + to, x + from, true);
    device_copied_but<0>();
}
static __global__ void much_shared(float *y)
{
    DYNAMIC_SHARED(char, s);
    __shared__ float room[64];
    s[0] = 0;
    room[threadIdx.x] = 1;
    __syncthreads();
    y[0] = room[0] + s[0];
}
static __global__ void shared_at(unsigned i)
{
    DYNAMIC_SHARED(volatile char, s);
    s[i] = 1;
}
struct holder {
    const float *p;
    int n;
};
static __global__ void held(holder h, float *y)
{
    y[0] = h.p ? 1 : 0;
}

static void test_kernel_misuse(void)
{
    array<float> y(1024, false), x(1024);
    dies("divergence", [&] { device_launch(some_wait, 1, 64, 0, stream, y.at, 60); });
    dies("32 are finished, 32 wait", [&] { device_launch(some_wait, 1, 64, 0, stream, y.at, 32); });
    dies("divergence", [&] { device_launch(elsewhere, 1, 64, 0, stream, y.at); });
    dies("divergence", [&] { device_launch(some_lanes, 1, 64, 0, stream, y.at); });
    dies("divergence", [&] { device_launch(mixed, 1, 32, 0, stream, y.at); });
    dies("mask", [&] { device_launch(part_mask, 1, 32, 0, stream, y.at); });
    dies("in a warp of 16 lanes", [&] { device_launch(some_lanes, 1, 48, 0, stream, y.at); });
    dies("block is too large", [&] { device_launch(number, 1, dim3(32, 33), 0, stream, y.at); });
    dies("grid is too large", [&] { device_launch(number, dim3(1, 65536), 1, 0, stream, y.at); });
    dies("dimension is 0", [&] { device_launch(number, 0, 32, 0, stream, y.at); });
    dies("are allowed", [&] { device_launch(much_shared, 1, 32, 49152, stream, y.at); });
    check(device_launch(much_shared, 1, 32, 232448, stream, y.at) == cudaErrorInvalidValue,
          "more shared memory than there is");
    check(device_launch(much_shared, 1, 32, 232448 - 256, stream, y.at) == cudaSuccess,
          "all the shared memory there is");
    dies("without dynamic shared memory",
         [&] { device_launch(much_shared, 1, 32, 0, stream, y.at); });
    dies("row is not 16-byte aligned",
         [&] { device_launch(ldmatrix_at, 1, 32, 64, stream, y.at, 8u); });
    dies("not in shared memory", [&] { device_launch(ldmatrix_at, 1, 32, 64, stream, y.at, 64u); });
    dies("not 16-byte aligned", [&] { device_launch(copy_at, 1, 1, 64, stream, x.at, 1u, 0u); });
    dies("not 16-byte aligned", [&] { device_launch(copy_at, 1, 1, 64, stream, x.at, 0u, 2u); });
    dies("not to shared", [&] { device_launch(copy_at, 1, 1, 64, stream, x.at, 16u, 0u); });
    dies("not from device", [&] { device_launch(copy_at, 1, 1, 64, stream, x.at, 0u, 1024u); });
    float host[4] = {0};
    dies("points to host memory", [&] { device_launch(add, 1, 4, 0, stream, y.at, host, 1.f); });
    dies("points to host memory", [&] {
        device_launch(held, 1, 1, 0, stream, holder{host, 1}, y.at);
    });
    dies("not allocated", [&] {
        float *p;
        cudaMalloc(&p, 64);
        cudaFree(p);
        device_launch(held, 1, 1, 0, stream, holder{p, 1}, y.at);
    });
    dies("touched device memory", [&] { ((volatile float *)y.at)[0] = 1; });
    dies("a barrier outside", [] { __syncthreads(); });
#if defined(__SANITIZE_ADDRESS__) /* finds these itself */
    const char *beyond = "use-after-poison", *freed = beyond, *shared = beyond;
#else
    const char *beyond = "beyond allocation", *freed = "memory that was freed";
    const char *shared = "beyond the 64 bytes of dynamic";
#endif
    dies(beyond, [&] {
        device_launch(write_at, 1, 1, 0, stream, y.at, 1025l);
        cudaFree(y.at);
    });
    dies(freed, [&] {
        float *p;
        cudaMalloc(&p, 4096);
        cudaFree(p);
        device_launch(write_at, 1, 1, 0, stream, y.at, (long)(p - y.at));
        exit(0);
    });
    dies(shared, [&] { device_launch(shared_at, 1, 1, 64, stream, 64u); });
}

static void test_runtime_misuse(void)
{
    array<float> y(16, false);
    float host[32] = {0};
    dies("not within an allocation",
         [&] { cudaMemcpyAsync(y.at + 1, host, 64, cudaMemcpyHostToDevice, stream); });
    dies("not host memory",
         [&] { cudaMemcpyAsync(y.at, y.at + 8, 32, cudaMemcpyDeviceToHost, stream); });
    dies("not within an allocation",
         [&] { cudaMemcpyAsync(host, host + 16, 32, cudaMemcpyHostToDevice, stream); });
    dies("overlap", [&] { cudaMemcpyAsync(y.at, y.at + 1, 32, cudaMemcpyDeviceToDevice, stream); });
    dies("not within an allocation", [&] { cudaMemsetAsync(y.at, 0, 65, stream); });
    dies("not an allocation that lives", [&] { cudaFree(y.at + 64); });
    dies("not pinned memory", [&] { cudaFreeHost(host); });
    dies("no such stream", [&] { cudaStreamSynchronize((cudaStream_t)host); });
    dies("never freed", [&] {
        setenv("WEFT_EMULATE_LEAKS", "1", 1);
        exit(0);
    });
    dies("is not within an allocation", [&] { /* a graph that outlives its memory */
                                              float *p;
                                              cudaGraph_t g;
                                              cudaGraphExec_t e;
                                              cudaMalloc(&p, 64);
                                              cudaStreamBeginCapture(stream,
                                                                     cudaStreamCaptureModeRelaxed);
                                              cudaMemsetAsync(p, 0, 64, stream);
                                              cudaStreamEndCapture(stream, &g);
                                              cudaGraphInstantiate(&e, g, 0);
                                              cudaFree(p);
                                              cudaGraphLaunch(e, stream);
    });
}

static void test_library_misuse(void)
{
    array<float> a(1024), b(1024), d(1024, false), w(1 << 18, false);
    gemm g = {8, 8, 8, 1, false, false, false, 1, 0, CUDA_R_32F, CUDA_R_32F};
    dies("the algorithm wants", [&] {
        for (g.m = 8; g.m < 32; g.m++) { /* until one wants a workspace */
            gemm_call c(g, NULL);
            c.run(g, a.at, b.at, NULL, d.at, NULL, 0);
        }
    });
    dies("of another product", [&] {
        gemm_call c(g, NULL);
        int32_t t = CUBLAS_OP_T;
        cublasLtMatmulDescSetAttribute(c.d, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
        c.run(g, a.at, b.at, NULL, d.at, w.at, 1 << 20);
    });
    dies("-byte alignment", [&] {
        gemm_call c(g, NULL, 1 << 20, 16);
        c.run(g, a.at + 1, b.at, NULL, d.at, w.at, 1 << 20);
    });
    dies("B [", [&] {
        gemm_call c(g, NULL);
        uint64_t rows = 7;
        cublasLtMatrixLayoutSetAttribute(c.l[1], CUBLASLT_MATRIX_LAYOUT_ROWS, &rows, sizeof rows);
        c.run(g, a.at, b.at, NULL, d.at, w.at, 1 << 20);
    });
    dies("leading dimension", [&] {
        gemm_call c(g, NULL);
        int64_t ld = 7;
        cublasLtMatrixLayoutSetAttribute(c.l[0], CUBLASLT_MATRIX_LAYOUT_LD, &ld, sizeof ld);
        c.run(g, a.at, b.at, NULL, d.at, w.at, 1 << 20);
    });
    dies("D overlaps A", [&] { gemm_call(g, NULL).run(g, a.at, b.at, NULL, a.at, w.at, 1 << 20); });
    dies("not within an allocation",
         [&] { gemm_call(g, NULL).run(g, a.at + 1000, b.at, NULL, d.at, w.at, 1 << 20); });
    dies("attribute 3 has 4 bytes, not 8", [&] {
        gemm_call c(g, NULL);
        int64_t t = 0;
        cublasLtMatmulDescSetAttribute(c.d, CUBLASLT_MATMUL_DESC_TRANSA, &t, sizeof t);
    });

    conv c = {1, 8, 4, 4, 8, 3, 1, 1, 1, false, false, 0};
    int n_broken = 0;
    desc plan = plans(conv_graph(c, CUDNN_DATA_FLOAT), CUDNN_HEUR_MODE_A, &n_broken)[2];
    dies("the workspace of", [&] { execute(plan, {1, 2, 3}, {a.at, w.at, d.at}, NULL); });
    dies("has no tensor 9", [&] { execute(plan, {1, 2, 9}, {a.at, w.at, d.at}, b.at); });
    dies("tensor 3 is not within", [&] { execute(plan, {1, 2}, {a.at, w.at}, w.at + 1024); });
    dies("output 3 overlaps", [&] { execute(plan, {1, 2, 3}, {a.at, w.at, a.at}, w.at + 1024); });
    dies("is not aligned", [&] {
        execute(plan, {1, 2, 3}, {(char *)a.at + 2, w.at, d.at}, w.at + 1024);
    });
    dies("without attribute", [] { cudnnBackendFinalize(make(CUDNN_BACKEND_TENSOR_DESCRIPTOR)); });
    dies("after finalization", [] {
        int64_t uid = 2;
        desc t = tensor(1, {1, 1, 1, 1}, CUDNN_DATA_FLOAT);
        set(t, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    });
    dies("is not 1 of type", [] {
        int uid = 2;
        set(make(CUDNN_BACKEND_TENSOR_DESCRIPTOR), CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT32, 1,
            &uid);
    });
    dies("do not fit", [&] {
        desc x = tensor(1, {1, 8, 4, 4}, CUDNN_DATA_FLOAT);
        convolution(c, x, tensor(2, {8, 8, 3, 3}, CUDNN_DATA_FLOAT),
                    tensor(3, {1, 8, 3, 4}, CUDNN_DATA_FLOAT));
    });
    dies("not finalized", [&] {
        link(make(CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR), CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH,
             make(CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR));
    });
}
