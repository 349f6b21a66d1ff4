/* emulator.h: what the files of the emulator share. */
#ifndef WEFT_EMULATOR_H
#define WEFT_EMULATOR_H

#include "device.cuh"

#include <string>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define EMULATOR_ASAN 1
#else
#define EMULATOR_ASAN 0
#endif

/* Multiplications that are worth a second thread (OpenMP). */
enum { PARALLEL_LEAST = 1 << 22 };

enum { EMULATOR_SHARED_USUAL = 49152, EMULATOR_SHARED_MOST = 232448 };

/* Prints "emulator: ..." and where in which kernel it was, if in any, and aborts. */
[[noreturn]] __attribute__((format(printf, 1, 2))) void emulator_fail(const char *format, ...);

/* ---- emulator.cpp ---- */

/* Runs all blocks now. */
void emulator_run(const emulator_kernel &k, dim3 grid, dim3 block, size_t bytes);
bool emulator_in_kernel(void);
/* n bytes at p are shared memory of the block. */
bool emulator_is_shared(const void *p, size_t n);

/* ---- symbols.cpp ---- */

struct emulator_piece {
    size_t at, size; /* at: within the program's thread-local variables */
    std::string name;
};
/* Static shared memory of all kernels; none is known of a program without symbols. */
const std::vector<emulator_piece> &emulator_shared_pieces(void);
/* The calling thread's thread-local variables of the program. */
unsigned char *emulator_thread_locals(void);
const char *emulator_name(const void *function);
/* Bytes of static shared memory in a kernel itself. */
size_t emulator_static_shared(const void *kernel);

/* ---- memory.cpp ---- */

/* Device memory can be touched as long as one of these lives. */
struct emulator_working {
    emulator_working();
    ~emulator_working();
    emulator_working(const emulator_working &) = delete;
    emulator_working &operator=(const emulator_working &) = delete;
};

void *emulator_take(size_t bytes);
void emulator_give(void *p);
void emulator_room(size_t *free, size_t *total);
void *emulator_pin(size_t bytes);
void emulator_unpin(void *p);
/* Whether all gaps and what is freed are still as they were; fails otherwise. */
void emulator_check_memory(void);
/* n bytes at p are within one allocation that lives; n may be 0 at its end. */
bool emulator_is_device(const void *p, size_t n);
/* p is within what device memory is given out of. */
bool emulator_is_device_range(const void *p);
bool emulator_is_pinned(const void *p, size_t n);

/* ---- runtime.cpp ---- */

/* A number of the environment. */
long emulator_setting(const char *name, long usual);

/* One call of the runtime or a library at a time. */
struct emulator_locked {
    emulator_locked();
    ~emulator_locked();
    emulator_locked(const emulator_locked &) = delete;
    emulator_locked &operator=(const emulator_locked &) = delete;
};

/* Works with device memory open, or notes the work, while the stream is captured. */
cudaError_t emulator_do(cudaStream_t s, std::function<void()> work);
/* Does what was put off (WEFT_EMULATE_LATE). */
void emulator_drain(cudaStream_t s);
void emulator_drain_all(void);
bool emulator_capturing(cudaStream_t s);
/* What a stream answers when it is to do something that cannot be captured: success where it is not. */
cudaError_t emulator_uncapturable(cudaStream_t s);
/* Of calls that may wait for the device, or change its memory: forbidden by captures that are not relaxed. */
cudaError_t emulator_unsafe(bool waits);
/* rc, noted for cudaGetLastError. */
cudaError_t emulator_answer(cudaError_t rc);
cudaError_t &emulator_last(void);
bool emulator_absent(void);
/* Of a call that takes something: whether it is this one's turn to fail. */
bool emulator_refused(void);
size_t emulator_shared_most(void);

#endif
