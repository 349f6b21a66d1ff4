/* selftest_kernels.h: part of selftest.cpp: kernels, streams, graphs. */
static __global__ void number(float *y)
{
    unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    unsigned i = block * (blockDim.x * blockDim.y * blockDim.z) + thread;
    y[i] = (float)i;
}

template <class T> static __global__ void turn(T *y, const T *x)
{
    DYNAMIC_SHARED(T, s);
    __shared__ float room[2];
    unsigned i = threadIdx.x, n = blockDim.x;
    bool poisoned = isnan(from(s[i])) && isnan(room[1]);
    __syncthreads();
    s[i] = x[blockIdx.x * n + i];
    if (i == 0)
        room[1] = 1;
    __syncthreads();
    y[blockIdx.x * n + i] = poisoned && room[1] == 1 ? s[n - 1 - i] : to<T>(1000);
}

static __global__ void shuffles(float *y)
{
    int i = (int)threadIdx.x;
    float v = (float)i;
    y[i] = __shfl_xor_sync(0xffffffffu, v, 5);
    y[64 + i] = __shfl_down_sync(0xffffffffu, v, 3);
    y[128 + i] = __shfl_sync(0xffffffffu, v, 37 + i);
    y[192 + i] = __shfl_down_sync(0xffffffffu, v, 3, 8);
    y[256 + i] = (float)__shfl_xor_sync(0xffffffffu, -i, 1, 2);
    __syncwarp();
    y[320 + i] = (float)__shfl_sync(0xffffffffu, (unsigned)i, i + 1, 4);
}

static void test_threads(void)
{
    array<float> y(24 * 60, false);
    check(device_launch(number, dim3(2, 3, 4), dim3(5, 4, 3), 0, stream, y.at) == cudaSuccess,
          "launch");
    y.download();
    bool all = true;
    for (size_t i = 0; i < y.host.size(); i++)
        all = all && y[i] == (double)i;
    check(all, "all threads ran");

    for (const char *order : {"", "1", "2", "77"}) {
        setenv("WEFT_EMULATE_ORDER", order, 1);
        array<__half> x(5 * 1024), z(5 * 1024, false);
        device_launch(turn<__half>, 5, 1024, 1024 * 2, stream, z.at, x.at);
        z.download();
        all = true;
        for (size_t i = 0; i < 5 * 1024; i++)
            all = all && z[i] == x[i / 1024 * 1024 + 1023 - i % 1024];
        check(all, "barriers, and poisoned shared memory");
    }
    unsetenv("WEFT_EMULATE_ORDER");

    array<float> s(384, false);
    device_launch(shuffles, 1, 64, 0, stream, s.at);
    s.download();
    all = true;
    for (int i = 0; i < 64; i++) {
        int w = i / 32 * 32, l = i % 32;
        size_t k = (size_t)i;
        all = all && s[k] == w + (l ^ 5) && s[64 + k] == (l + 3 < 32 ? i + 3 : i) &&
              s[128 + k] == w + (37 + i) % 32 && s[192 + k] == (l % 8 + 3 < 8 ? i + 3 : i) &&
              s[256 + k] == -(i ^ 1) && s[320 + k] == i / 4 * 4 + (i + 1) % 4;
    }
    check(all, "shuffles");
}

/* Products of a [16, 16] and b [16, 8], through ldmatrix; b turned. */
template <class T> static __global__ void product(float *d, const T *a, const T *b)
{
    DYNAMIC_SHARED(T, s);
    for (unsigned i = threadIdx.x; i < 384; i += 32)
        s[i] = i < 256 ? a[i] : b[i - 256];
    __syncthreads();
    unsigned lane = threadIdx.x, fa[4], fb[4];
    float sum[4] = {1, 1, 1, 1};
    device_ldmatrix(fa, s + (lane % 16) * 16 + lane / 16 * 8);
    device_ldmatrix_turned(fb, s + 256 + lane % 16 * 8);
    unsigned half[2] = {fb[0], fb[1]};
    device_mma(sum, fa, half, T());
    for (unsigned i = 0; i < 4; i++)
        d[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

template <class T> static void test_product(void)
{
    array<T> a(256), b(128);
    array<float> d(128, false);
    device_launch(product<T>, 1, 32, 768, stream, d.at, a.at, b.at);
    d.download();
    bool all = true;
    for (size_t i = 0; i < 128; i++) {
        double sum = 1;
        for (size_t k = 0; k < 16; k++)
            sum += a[i / 8 * 16 + k] * b[k * 8 + i % 8];
        all = all && near(d[i], sum, 1e-6);
    }
    check(all, "a product of tiles");
}

static __global__ void matrices(float *y)
{
    DYNAMIC_SHARED(unsigned short, s);
    for (unsigned i = threadIdx.x; i < 256; i += 32)
        s[i] = (unsigned short)i;
    __syncwarp();
    unsigned r[4], lane = threadIdx.x;
    device_ldmatrix(r, s + lane * 8);
    for (int i = 0; i < 4; i++) {
        y[lane * 16 + i * 2] = (float)(r[i] & 0xffff);
        y[lane * 16 + i * 2 + 1] = (float)(r[i] >> 16);
    }
    device_ldmatrix_turned(r, s + lane * 8);
    for (int i = 0; i < 4; i++) {
        y[lane * 16 + 8 + i * 2] = (float)(r[i] & 0xffff);
        y[lane * 16 + 8 + i * 2 + 1] = (float)(r[i] >> 16);
    }
}

static __global__ void copies(float *y, const float *x, int n)
{
    DYNAMIC_SHARED(float, s);
    unsigned i = threadIdx.x;
    s[4 * i] = s[4 * i + 128] = 7;
    device_copy16(s + 4 * i, x + 4 * i, true);
    device_copy_group();
    device_copy16(s + 4 * i + 128, x + 4 * i + 128, (int)i < n);
    device_copy_group();
    float early = s[4 * i];
    device_copied_but<1>();
    float first = s[4 * i], second = s[4 * i + 128];
    device_copied_but<0>();
    __syncwarp();
    y[i] = isnan(early) && isnan(second) ? first : -1;
    y[32 + i] = s[4 * i + 128];
}

static void test_tiles(void)
{
    test_product<__half>();
    test_product<__nv_bfloat16>();
    array<float> m(512, false);
    device_launch(matrices, 1, 32, 512, stream, m.at);
    m.download();
    bool all = true;
    for (size_t lane = 0; lane < 32; lane++) {
        size_t g = lane / 4, q = lane % 4;
        for (size_t i = 0; i < 4; i++) {
            for (size_t k = 0; k < 2; k++) {
                all = all && m[lane * 16 + i * 2 + k] == (double)(i * 64 + g * 8 + 2 * q + k);
                all = all && m[lane * 16 + 8 + i * 2 + k] == (double)(i * 64 + (2 * q + k) * 8 + g);
            }
        }
    }
    check(all, "ldmatrix, straight and turned");

    array<float> x(256), y(64, false);
    device_launch(copies, 1, 32, 1024, stream, y.at, x.at, 20);
    y.download();
    all = true;
    for (size_t i = 0; i < 32; i++)
        all = all && y[i] == x[4 * i] && y[32 + i] == (i < 20 ? x[128 + 4 * i] : 0);
    check(all, "asynchronous copies");
}

static void test_types(void)
{
    bool all = true;
    for (unsigned u = 0; u < 65536; u++) {
        __half h = {(unsigned short)u};
        __nv_bfloat16 b = {(unsigned short)u};
        float f = __half2float(h), g = __bfloat162float(b);
        all = all && (isnan(f) ? __half_as_ushort(__float2half_rn(f)) == 0x7fff
                               : __half_as_ushort(__float2half_rn(f)) == u);
        all = all && (isnan(g) ? __bfloat16_as_ushort(__float2bfloat16_rn(g)) == 0x7fff
                               : __bfloat16_as_ushort(__float2bfloat16_rn(g)) == u);
        /* Halfway to the next: to the even one. */
        float next = __half2float({(unsigned short)(u + 1)});
        if ((u & 0x7fff) < 0x7bff)
            all = all && __float2half_rn((f + next) / 2).bits == (u & 1 ? u + 1 : u) &&
                  __float2half_rn(nextafterf((f + next) / 2, next)).bits == u + 1 &&
                  __float2half_rn(nextafterf((f + next) / 2, f)).bits == u;
    }
    all = all && __float2half_rn(65520).bits == 0x7c00 && __float2half_rn(65519.99f).bits == 0x7bff;
    all = all && __half2float({1}) == ldexpf(1, -24) && __half2float({0x3c00}) == 1;
    check(all, "16-bit types");
}

/* ---- the runtime ------------------------------------------------------------------------------- */

static __global__ void add(float *y, const float *x, float by)
{
    y[threadIdx.x] = x[threadIdx.x] + by;
}

static void test_graphs(void)
{
    array<float> x(32), y(32, false), z(32, false);
    float *pinned;
    cudaMallocHost(&pinned, 128);
    cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal);
    cudaMemsetAsync(z.at, 0, 128, stream);
    device_launch(add, 1, 32, 0, stream, y.at, x.at, 1.f);
    device_launch(add, 1, 32, 0, stream, z.at, y.at, 2.f);
    cudaMemcpyAsync(pinned, z.at, 128, cudaMemcpyDeviceToHost, stream);
    cudaStreamCaptureStatus status;
    cudaStreamIsCapturing(stream, &status);
    check(status == cudaStreamCaptureStatusActive, "capturing");
    cudaGraph_t g;
    cudaGraphExec_t e;
    check(cudaStreamEndCapture(stream, &g) == cudaSuccess, "end of capture");
    size_t n = 0;
    cudaGraphGetNodes(g, NULL, &n);
    check(n == 4 && isnan(pinned[0]), "four nodes, none has run");
    check(cudaGraphInstantiate(&e, g, 0) == cudaSuccess, "instantiate");
    cudaGraphDestroy(g);
    for (int time = 0; time < 2; time++) {
        for (float &v : x.host)
            v = noise();
        x.upload();
        cudaGraphUpload(e, stream);
        check(cudaGraphLaunch(e, stream) == cudaSuccess, "graph launch");
        cudaStreamSynchronize(stream);
        check(pinned[31] == (x.host[31] + 1) + 2, "a graph's result");
    }
    cudaGraphExecDestroy(e);

    /* What is forbidden ends the capture. */
    std::vector<float> pageable(32);
    void *p;
    const std::function<cudaError_t()> forbidden[] = {
        [&] { return cudaMalloc(&p, 16); },
        [&] { return cudaStreamSynchronize(stream); },
        [&] { return cudaDeviceSynchronize(); },
        [&] { return cudaMemcpyAsync(y.at, pageable.data(), 128, cudaMemcpyHostToDevice, stream); },
        [&] { return cudaMemcpy(pinned, y.at, 128, cudaMemcpyDeviceToHost); },
    };
    for (const auto &f : forbidden) {
        cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal);
        check(f() == cudaErrorStreamCaptureUnsupported, "forbidden while capturing");
        check(cudaGetLastError() == cudaErrorStreamCaptureUnsupported, "the last error");
        check(device_launch(add, 1, 32, 0, stream, y.at, x.at, 1.f) ==
                  cudaErrorStreamCaptureInvalidated,
              "a capture that is broken");
        check(cudaStreamEndCapture(stream, &g) == cudaErrorStreamCaptureInvalidated && !g,
              "the end of one");
        cudaGetLastError();
    }
    cudaFreeHost(pinned);
}

static void test_runtime(void)
{
    float *p, *pinned;
    check(cudaMalloc(&p, (size_t)1 << 50) == cudaErrorMemoryAllocation && !p, "too much memory");
    check(cudaGetLastError() == cudaErrorMemoryAllocation && cudaGetLastError() == cudaSuccess,
          "errors are told once");
    cudaDeviceProp prop;
    cudaGetDeviceProperties(&prop, 0);
    check(prop.major == 9 && prop.sharedMemPerBlockOptin == 232448, "properties");
    int n = 5;
    setenv("WEFT_EMULATE_NO_DEVICE", "1", 1);
    check(cudaGetDeviceCount(&n) == cudaErrorNoDevice && n == 0, "no device");
    unsetenv("WEFT_EMULATE_NO_DEVICE");
    cudaGetLastError();
    check(cudaGetDeviceCount(&n) == cudaSuccess && n == 1, "a device");
    check(cudaFuncSetAttribute(number, cudaFuncAttributeMaxDynamicSharedMemorySize, 232448) ==
                  cudaSuccess &&
              cudaFuncSetAttribute(number, cudaFuncAttributeMaxDynamicSharedMemorySize, 232449) ==
                  cudaErrorInvalidValue,
          "how much shared memory may be had");
    cudaGetLastError();

    setenv("WEFT_EMULATE_FAIL", "2", 1);
    check(cudaMallocHost(&pinned, 64) == cudaSuccess &&
              cudaMalloc(&p, 64) == cudaErrorMemoryAllocation && cudaMalloc(&p, 64) == cudaSuccess,
          "the second that is taken fails");
    unsetenv("WEFT_EMULATE_FAIL");
    cudaGetLastError();
    cudaFree(p);
    cudaFreeHost(pinned);

    array<float> x(32), y(32, false);
    cudaMallocHost(&pinned, 128);
    setenv("WEFT_EMULATE_LATE", "1", 1);
    device_launch(add, 1, 32, 0, stream, y.at, x.at, 1.f);
    cudaMemcpyAsync(pinned, y.at, 128, cudaMemcpyDeviceToHost, stream);
    cudaEvent_t e;
    cudaEventCreateWithFlags(&e, cudaEventDefault);
    cudaEventRecord(e, stream);
    bool late = isnan(pinned[0]) && cudaEventQuery(e) == cudaErrorNotReady;
    cudaEventSynchronize(e);
    check(late && pinned[0] == x.host[0] + 1, "work that waits to be waited for");
    unsetenv("WEFT_EMULATE_LATE");
    float ms = -1;
    check(cudaEventElapsedTime(&ms, e, e) == cudaSuccess && ms == 0, "elapsed time");
    cudaEventDestroy(e);
    cudaFreeHost(pinned);
}
