/* device.cuh: what kernels ask of the compiler and the chip: launches, shared memory, products of tiles. All else that they
 * are made of is plain C++, which a processor can run too (tests/cuda/emulator has a file of this name). */
#ifndef WEFT_CUDA_DEVICE_CUH
#define WEFT_CUDA_DEVICE_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define ELEMENT static __host__ __device__ __forceinline__

/* `type *name`: the block's dynamic shared memory, 16-byte aligned. Once a kernel. */
#define DYNAMIC_SHARED(type, name)                                                                 \
    extern __shared__ __align__(16) unsigned char weft_shared[];                                   \
    type *name = (type *)weft_shared

/* Values as a launch wants them: each by its address. */
template <class... P>
static inline cudaError_t device_launch_values(const void *kernel, dim3 grid, dim3 block,
                                               size_t bytes, cudaStream_t stream, P... value)
{
    void *at[] = {(void *)&value...};
    return cudaLaunchKernel(kernel, grid, block, at, bytes, stream);
}

/* cudaSuccess, or why it cannot run. `bytes` of dynamic shared memory, also above 48 KiB. */
template <class... P, class... A>
static inline cudaError_t device_launch(void (*kernel)(P...), dim3 grid, dim3 block, size_t bytes,
                                        cudaStream_t stream, A... args)
{
    if (bytes > 48 * 1024) { /* never less than before: captured launches may have more */
        cudaFuncAttributes is;
        cudaError_t rc = cudaFuncGetAttributes(&is, (const void *)kernel);
        if (rc == cudaSuccess && is.maxDynamicSharedSizeBytes < (int)bytes)
            rc = cudaFuncSetAttribute((const void *)kernel,
                                      cudaFuncAttributeMaxDynamicSharedMemorySize, (int)bytes);
        if (rc != cudaSuccess)
            return rc;
    }
    return device_launch_values<P...>((const void *)kernel, grid, block, bytes, stream,
                                      static_cast<P>(args)...);
}

/* ---- products of tiles, a warp each ------------------------------------------------------------
 *
 * PTX ISA, "Matrix fragments for mma.m16n8k16": with g = lane / 4, q = lane % 4,
 *     a[0] (g, 2q), a[1] (g + 8, 2q), a[2] (g, 2q + 8), a[3] (g + 8, 2q + 8)   row, column of A [16, 16]; two columns each
 *     b[0] (2q, g), b[1] (2q + 8, g)                                           row, column of B [16, 8]; two rows each
 *     d[0] (g, 2q), d[1] (g, 2q + 1), d[2] (g + 8, 2q), d[3] (g + 8, 2q + 1)   of D [16, 8]
 * the lower of two in the lower half of the word. d += a b; all 32 lanes take part. */
__device__ __forceinline__ void device_mma(float (&d)[4], const unsigned (&a)[4],
                                           const unsigned (&b)[2], __half)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

__device__ __forceinline__ void device_mma(float (&d)[4], const unsigned (&a)[4],
                                           const unsigned (&b)[2], __nv_bfloat16)
{
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
                 "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/* PTX ISA, "ldmatrix": four 8x8 matrices of 16-bit values out of shared memory; lane 8 i + k gives the address of row k of
 * the i-th (16 bytes, so aligned), lane gets of the i-th (row lane / 4, columns 2 (lane % 4) and one more) in r[i]; turned:
 * (rows 2 (lane % 4) and one more, column lane / 4). */
__device__ __forceinline__ void device_ldmatrix(unsigned (&r)[4], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

__device__ __forceinline__ void device_ldmatrix_turned(unsigned (&r)[4], const void *row)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

/* 16 bytes from device to shared memory, both so aligned, without waiting; 16 zeros where there is nothing to read
 * (`from` is then not looked at, but must be an address). device_copied_but(n): all but the last n groups are there, for
 * this thread; a __syncthreads() makes it so for all. */
__device__ __forceinline__ void device_copy16(void *to, const void *from, bool there)
{
    unsigned at = (unsigned)__cvta_generic_to_shared(to);
    int bytes = there ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(at), "l"(from), "r"(bytes)
                 : "memory");
}
__device__ __forceinline__ void device_copy_group(void)
{
    asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int N> __device__ __forceinline__ void device_copied_but(void)
{
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

#endif
