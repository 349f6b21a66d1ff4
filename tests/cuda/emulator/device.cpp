/* device.cpp: the CUDA runtime's functions (cuda_runtime.h) about the device, errors, and memory. */
#include "emulator.h"

struct CUmemPoolHandle_st {
    int unused;
};
static CUmemPoolHandle_st pool_of_all;

/* ---- device ------------------------------------------------------------------------------------ */

cudaError_t cudaDriverGetVersion(int *version)
{
    *version = emulator_absent() ? 0 : CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaRuntimeGetVersion(int *version)
{
    *version = CUDART_VERSION;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n)
{
    *n = emulator_absent() ? 0 : 1;
    return emulator_answer(emulator_absent() ? cudaErrorNoDevice : cudaSuccess);
}

static cudaError_t device_there(int device)
{
    return emulator_answer(emulator_absent() ? cudaErrorNoDevice
                           : device != 0     ? cudaErrorInvalidDevice
                                             : cudaSuccess);
}

cudaError_t cudaGetDevice(int *device)
{
    *device = 0;
    return device_there(0);
}

cudaError_t cudaSetDevice(int device)
{
    return device_there(device);
}

cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device)
{
    cudaError_t rc = device_there(device);
    if (rc != cudaSuccess)
        return rc;
    memset(p, 0, sizeof *p);
    strcpy(p->name, "emulated");
    size_t free;
    emulator_room(&free, &p->totalGlobalMem);
    p->sharedMemPerBlock = EMULATOR_SHARED_USUAL;
    p->sharedMemPerBlockOptin = emulator_shared_most();
    p->sharedMemPerMultiprocessor = emulator_shared_most() + 1024;
    p->reservedSharedMemPerBlock = 1024;
    p->regsPerBlock = p->regsPerMultiprocessor = 65536;
    p->warpSize = 32;
    p->maxThreadsPerBlock = 1024;
    p->maxThreadsPerMultiProcessor = 2048;
    p->maxThreadsDim[0] = p->maxThreadsDim[1] = 1024;
    p->maxThreadsDim[2] = 64;
    p->maxGridSize[0] = 0x7fffffff;
    p->maxGridSize[1] = p->maxGridSize[2] = 65535;
    int capability = (int)emulator_setting("WEFT_EMULATE_CAPABILITY", 90);
    p->major = capability / 10;
    p->minor = capability % 10;
    p->multiProcessorCount = 4;
    p->canMapHostMemory = p->concurrentKernels = p->asyncEngineCount = p->unifiedAddressing = 1;
    p->memoryPoolsSupported = 1;
    p->l2CacheSize = 1 << 20;
    return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr attr, int device)
{
    struct cudaDeviceProp p;
    cudaError_t rc = cudaGetDeviceProperties(&p, device);
    if (rc != cudaSuccess)
        return rc;
    switch (attr) {
    case cudaDevAttrMaxThreadsPerBlock: *value = p.maxThreadsPerBlock; break;
    case cudaDevAttrMaxSharedMemoryPerBlock: *value = (int)p.sharedMemPerBlock; break;
    case cudaDevAttrWarpSize: *value = p.warpSize; break;
    case cudaDevAttrMultiProcessorCount: *value = p.multiProcessorCount; break;
    case cudaDevAttrIntegrated: *value = p.integrated; break;
    case cudaDevAttrMaxThreadsPerMultiProcessor: *value = p.maxThreadsPerMultiProcessor; break;
    case cudaDevAttrComputeCapabilityMajor: *value = p.major; break;
    case cudaDevAttrComputeCapabilityMinor: *value = p.minor; break;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
        *value = (int)p.sharedMemPerMultiprocessor;
        break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = (int)p.sharedMemPerBlockOptin; break;
    case cudaDevAttrMemoryPoolsSupported: *value = p.memoryPoolsSupported; break;
    default: emulator_fail("cudaDeviceGetAttribute: attribute %d is not emulated", (int)attr);
    }
    return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t *free, size_t *total)
{
    if (emulator_absent())
        return emulator_answer(cudaErrorNoDevice);
    emulator_room(free, total);
    return cudaSuccess;
}

cudaError_t cudaGetLastError(void)
{
    cudaError_t rc = emulator_last();
    emulator_last() = cudaSuccess;
    return rc;
}

cudaError_t cudaPeekAtLastError(void)
{
    return emulator_last();
}

#define ERRORS(X)                                                                                  \
    X(cudaSuccess, "no error")                                                                     \
    X(cudaErrorInvalidValue, "invalid argument")                                                   \
    X(cudaErrorMemoryAllocation, "out of memory")                                                  \
    X(cudaErrorInitializationError, "initialization error")                                        \
    X(cudaErrorInvalidConfiguration, "invalid configuration argument")                             \
    X(cudaErrorInvalidMemcpyDirection, "invalid copy direction for memcpy")                        \
    X(cudaErrorInsufficientDriver, "CUDA driver version is insufficient for CUDA runtime version") \
    X(cudaErrorNoDevice, "no CUDA-capable device is detected")                                     \
    X(cudaErrorInvalidDevice, "invalid device ordinal")                                            \
    X(cudaErrorInvalidResourceHandle, "invalid resource handle")                                   \
    X(cudaErrorIllegalState, "the operation cannot be performed in the present state")             \
    X(cudaErrorNotReady, "device not ready")                                                       \
    X(cudaErrorIllegalAddress, "an illegal memory access was encountered")                         \
    X(cudaErrorLaunchOutOfResources, "too many resources requested for launch")                    \
    X(cudaErrorNotPermitted, "operation not permitted")                                            \
    X(cudaErrorNotSupported, "operation not supported")                                            \
    X(cudaErrorStreamCaptureUnsupported, "operation not permitted when stream is capturing")       \
    X(cudaErrorStreamCaptureInvalidated,                                                           \
      "operation failed due to a previous error during capture")                                   \
    X(cudaErrorStreamCaptureMerge,                                                                 \
      "operation would result in a merge of separate capture sequences")                           \
    X(cudaErrorStreamCaptureUnmatched, "capture was not ended in the same stream as it began")     \
    X(cudaErrorStreamCaptureUnjoined, "capturing stream has unjoined work")                        \
    X(cudaErrorStreamCaptureIsolation, "dependency created on uncaptured work in another stream")  \
    X(cudaErrorStreamCaptureImplicit,                                                              \
      "operation would make the legacy stream depend on a capturing blocking stream")              \
    X(cudaErrorCapturedEvent, "operation not permitted on an event last recorded in a capturing "  \
                              "stream")                                                            \
    X(cudaErrorStreamCaptureWrongThread,                                                           \
      "attempt to terminate a thread-local capture sequence from another thread")                  \
    X(cudaErrorUnknown, "unknown error")

const char *cudaGetErrorString(cudaError_t rc)
{
    switch (rc) {
#define X(name, text)                                                                              \
    case name: return text;
        ERRORS(X)
#undef X
    }
    return "unrecognized error code";
}

const char *cudaGetErrorName(cudaError_t rc)
{
    switch (rc) {
#define X(name, text)                                                                              \
    case name: return #name;
        ERRORS(X)
#undef X
    }
    return "unrecognized error code";
}

/* ---- memory ------------------------------------------------------------------------------------ */

static cudaError_t take(void **p, size_t bytes)
{
    *p = NULL;
    if (emulator_absent())
        return cudaErrorNoDevice;
    if (bytes && (emulator_refused() || !(*p = emulator_take(bytes))))
        return cudaErrorMemoryAllocation;
    return cudaSuccess;
}

cudaError_t cudaMalloc(void **p, size_t bytes)
{
    emulator_locked hold;
    cudaError_t rc = emulator_unsafe(false);
    return emulator_answer(rc != cudaSuccess ? rc : take(p, bytes));
}

cudaError_t cudaFree(void *p)
{
    emulator_locked hold;
    cudaError_t rc = emulator_unsafe(false);
    if (rc != cudaSuccess || !p)
        return emulator_answer(rc);
    emulator_drain_all();
    emulator_give(p);
    return cudaSuccess;
}

static void never_captured(cudaStream_t s, const char *what)
{
    if (emulator_capturing(s))
        emulator_fail("%s while its stream is captured: memory of graphs is not emulated", what);
}

cudaError_t cudaMallocAsync(void **p, size_t bytes, cudaStream_t s)
{
    emulator_locked hold;
    never_captured(s, "cudaMallocAsync");
    return emulator_answer(take(p, bytes));
}

cudaError_t cudaFreeAsync(void *p, cudaStream_t s)
{
    emulator_locked hold;
    never_captured(s, "cudaFreeAsync");
    if (!p)
        return cudaSuccess;
    return emulator_do(s, [p] { emulator_give(p); });
}

cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t *pool, int device)
{
    *pool = &pool_of_all;
    return device_there(device);
}

cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, enum cudaMemPoolAttr attr, void *value)
{
    if (pool != &pool_of_all || attr != cudaMemPoolAttrReleaseThreshold || !value)
        emulator_fail("cudaMemPoolSetAttribute: attribute %d is not emulated", (int)attr);
    return cudaSuccess;
}

cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t)
{
    if (pool != &pool_of_all)
        emulator_fail("no such pool");
    return cudaSuccess;
}

cudaError_t cudaHostAlloc(void **p, size_t bytes, unsigned flags)
{
    emulator_locked hold;
    *p = NULL;
    cudaError_t rc = emulator_absent() ? cudaErrorNoDevice : emulator_unsafe(false);
    if (rc != cudaSuccess)
        return emulator_answer(rc);
    if (flags & ~7u)
        return emulator_answer(cudaErrorInvalidValue);
    if (bytes && (emulator_refused() || !(*p = emulator_pin(bytes))))
        return emulator_answer(cudaErrorMemoryAllocation);
    return cudaSuccess;
}

cudaError_t cudaMallocHost(void **p, size_t bytes)
{
    return cudaHostAlloc(p, bytes, cudaHostAllocDefault);
}

cudaError_t cudaFreeHost(void *p)
{
    emulator_locked hold;
    cudaError_t rc = emulator_unsafe(false);
    if (rc != cudaSuccess || !p)
        return emulator_answer(rc);
    emulator_drain_all();
    emulator_unpin(p);
    return cudaSuccess;
}

static void check_side(const char *what, const void *p, size_t n, bool device)
{
    if (device && !emulator_is_device(p, n))
        emulator_fail("memcpy: %s [%p, + %zu) is not within an allocation of device memory", what,
                      p, n);
    if (!device && (!p || emulator_is_device_range(p)))
        emulator_fail("memcpy: %s %p is not host memory", what, p);
}

cudaError_t cudaMemcpyAsync(void *to, const void *from, size_t n, enum cudaMemcpyKind kind,
                            cudaStream_t stream)
{
    emulator_locked hold;
    if (n == 0)
        return cudaSuccess;
    if (kind == cudaMemcpyDefault)
        kind = (cudaMemcpyKind)(2 * emulator_is_device_range(from) + emulator_is_device_range(to));
    if (kind < cudaMemcpyHostToHost || kind > cudaMemcpyDeviceToDevice)
        return emulator_answer(cudaErrorInvalidMemcpyDirection);
    bool to_device = kind & 1, from_device = kind & 2;
    check_side("to", to, n, to_device);
    check_side("from", from, n, from_device);
    if ((const char *)to < (const char *)from + n && (const char *)from < (const char *)to + n)
        emulator_fail("memcpy: [%p, + %zu) and [%p, + %zu) overlap", to, n, from, n);
    bool pageable = (!to_device && !emulator_is_pinned(to, n)) ||
                    (!from_device && !emulator_is_pinned(from, n));
    if (pageable) {
        cudaError_t rc = emulator_uncapturable(stream);
        if (rc != cudaSuccess)
            return emulator_answer(rc);
    }
    auto checked = [=] {
        check_side("to", to, n, to_device);
        check_side("from", from, n, from_device);
        memcpy(to, from, n);
    };
    if (!pageable)
        return emulator_do(stream, checked);
    /* Pageable memory is read before the call returns, and written before it, too. */
    cudaError_t rc = emulator_do(stream, checked);
    emulator_drain(stream);
    return rc;
}

cudaError_t cudaMemcpy(void *to, const void *from, size_t n, enum cudaMemcpyKind kind)
{
    emulator_locked hold;
    cudaError_t rc = emulator_unsafe(false);
    if (rc == cudaSuccess)
        rc = cudaMemcpyAsync(to, from, n, kind, NULL);
    emulator_drain_all();
    return emulator_answer(rc);
}

cudaError_t cudaMemsetAsync(void *p, int value, size_t n, cudaStream_t stream)
{
    emulator_locked hold;
    if (n == 0)
        return cudaSuccess;
    check_side("memset", p, n, true);
    return emulator_do(stream, [=] {
        check_side("memset", p, n, true);
        memset(p, value, n);
    });
}

cudaError_t cudaMemset(void *p, int value, size_t n)
{
    emulator_locked hold;
    cudaError_t rc = emulator_unsafe(false);
    return emulator_answer(rc != cudaSuccess ? rc : cudaMemsetAsync(p, value, n, NULL));
}
