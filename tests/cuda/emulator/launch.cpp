/* launch.cpp: whether a launch is one that a chip would take; then emulator.cpp runs it. */
#include "emulator.h"

#include <map>
#include <sys/mman.h>

static std::map<const void *, size_t> allowed; /* cudaFuncSetAttribute */

/* Of static and dynamic shared memory of a kernel together. */
static size_t shared_allowed(const void *kernel)
{
    auto x = allowed.find(kernel);
    return x == allowed.end() ? (size_t)EMULATOR_SHARED_USUAL : x->second;
}

/* Whether a word of a struct can but be an address of the program's; numbers side by side are hardly one that is mapped. */
static bool is_host_address(const void *p)
{
    uintptr_t at = (uintptr_t)p;
    unsigned char in;
    return at >> 32 >= 0x5000 && at >> 47 == 0 && mincore((void *)(at / 4096 * 4096), 1, &in) == 0;
}

/* Pointers among the arguments, or in structs, have to be to device memory that lives, or its end, or to pinned memory. */
static void check_arguments(const emulator_kernel &k)
{
    for (size_t i = 0; i < k.args.size(); i++) {
        const std::vector<unsigned char> &bytes = k.args[i];
        for (size_t at = 0; at + 8 <= bytes.size(); at += 8) {
            char *p;
            memcpy(&p, bytes.data() + at, 8);
            if (!p || emulator_is_device(p, 0) || emulator_is_pinned(p, 0))
                continue;
            if (emulator_is_device_range(p))
                emulator_fail("%s: argument %zu points to device memory that is not allocated",
                              emulator_name(k.function), i);
            if (k.pointer[i] || is_host_address(p))
                emulator_fail("%s: argument %zu points to host memory", emulator_name(k.function),
                              i);
        }
    }
}

cudaError_t emulator_launch(const emulator_kernel &k, dim3 grid, dim3 block, size_t bytes,
                            cudaStream_t stream)
{
    emulator_locked hold;
    size_t threads = (size_t)block.x * block.y * block.z;
    size_t fixed = emulator_static_shared(k.function);
    const char *name = emulator_name(k.function);
    if (!grid.x || !grid.y || !grid.z || !threads)
        emulator_fail("%s: a dimension is 0: grid %u %u %u, block %u %u %u", name, grid.x, grid.y,
                      grid.z, block.x, block.y, block.z);
    if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535)
        emulator_fail("%s: the grid is too large: %u %u %u", name, grid.x, grid.y, grid.z);
    if (threads > 1024 || block.x > 1024 || block.y > 1024 || block.z > 64)
        emulator_fail("%s: the block is too large: %u %u %u", name, block.x, block.y, block.z);
    if (fixed > EMULATOR_SHARED_USUAL || bytes + fixed > shared_allowed(k.function))
        emulator_fail("%s: %zu bytes of static and %zu of dynamic shared memory, %zu are allowed",
                      name, fixed, bytes, shared_allowed(k.function));
    check_arguments(k);
    return emulator_do(stream, [k, grid, block, bytes] {
        check_arguments(k);
        emulator_run(k, grid, block, bytes);
    });
}

cudaError_t cudaFuncSetAttribute(const void *func, enum cudaFuncAttribute attr, int value)
{
    emulator_locked hold;
    if (emulator_absent())
        return emulator_answer(cudaErrorNoDevice);
    if (attr != cudaFuncAttributeMaxDynamicSharedMemorySize)
        return cudaSuccess;
    size_t sum = (size_t)value + emulator_static_shared(func);
    if (value < 0 || sum > emulator_shared_most())
        return emulator_answer(cudaErrorInvalidValue);
    allowed[func] = sum;
    return cudaSuccess;
}
