/* device.cuh: what unet/cuda/device/device.cuh has, by a processor, for tests: launches, shared memory, products of tiles.
 * The semantics are those that its comments document. */
#ifndef WEFT_CUDA_DEVICE_CUH
#define WEFT_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <functional>
#include <tuple>
#include <type_traits>
#include <vector>

#define ELEMENT static __host__ __device__ __forceinline__

#define DYNAMIC_SHARED(type, name) type *name = (type *)emulator_dynamic_shared()

void *emulator_dynamic_shared(void);

/* A kernel with its arguments, and these as bytes, to be searched for pointers. */
struct emulator_kernel {
    std::function<void()> run;
    const void *function;
    std::vector<std::vector<unsigned char>> args;
    std::vector<bool> pointer; /* whether an argument is one */
};
cudaError_t emulator_launch(const emulator_kernel &k, dim3 grid, dim3 block, size_t bytes,
                            cudaStream_t stream);

template <class... P, class... A>
static inline cudaError_t device_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes,
                                        cudaStream_t stream, A... args)
{
    static_assert((std::is_trivially_copyable<P>::value && ...), "arguments are copied as bytes");
    static_assert((sizeof(P) + ... + 0) <= 4096, "more arguments than all chips take");
    if (bytes > 48 * 1024) {
        cudaError_t rc = cudaFuncSetAttribute(
            (const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
        if (rc != cudaSuccess)
            return rc;
    }
    std::tuple<P...> all{static_cast<P>(args)...};
    emulator_kernel k;
    k.run = [kernel, all] { std::apply(kernel, all); };
    k.function = (const void *)kernel;
    std::apply(
        [&k](const P &...p) {
            (k.args.emplace_back((const unsigned char *)&p, (const unsigned char *)&p + sizeof p),
             ...);
        },
        all);
    k.pointer = {std::is_pointer<P>::value...};
    return emulator_launch(k, grid, block, bytes, stream);
}

struct emulator_product {
    float *d;
    const unsigned *a, *b;
};
struct emulator_rows {
    unsigned *r;
    const void *row;
};
void emulator_mma_half(void *const lane[32]);
void emulator_mma_bfloat16(void *const lane[32]);
void emulator_ldmatrix(void *const lane[32]);
void emulator_ldmatrix_turned(void *const lane[32]);
void emulator_copy16(void *to, const void *from, bool there);
void emulator_copy_group(void);
void emulator_copied_but(int n);

static inline void device_mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], __half,
                              EMULATOR_HERE)
{
    emulator_product p = {d, a, b};
    emulator_warp(emulator_mma_half, &p, 0xffffffffu, file, line);
}
static inline void device_mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2],
                              __nv_bfloat16, EMULATOR_HERE)
{
    emulator_product p = {d, a, b};
    emulator_warp(emulator_mma_bfloat16, &p, 0xffffffffu, file, line);
}
static inline void device_ldmatrix(unsigned (&r)[4], const void *row, EMULATOR_HERE)
{
    emulator_rows p = {r, row};
    emulator_warp(emulator_ldmatrix, &p, 0xffffffffu, file, line);
}
static inline void device_ldmatrix_turned(unsigned (&r)[4], const void *row, EMULATOR_HERE)
{
    emulator_rows p = {r, row};
    emulator_warp(emulator_ldmatrix_turned, &p, 0xffffffffu, file, line);
}
static inline void device_copy16(void *to, const void *from, bool there)
{
    emulator_copy16(to, from, there);
}
static inline void device_copy_group(void)
{
    emulator_copy_group();
}
template <int N> static inline void device_copied_but(void)
{
    static_assert(N >= 0, "a number of groups");
    emulator_copied_but(N);
}

#endif
