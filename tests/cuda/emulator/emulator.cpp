/* emulator.cpp: runs kernels: the blocks of a grid one after another, the threads of a block as coroutines that change places
 * at barriers and warp collectives. It finds barriers that not all reach, what reads shared memory that nobody wrote (it
 * is NaN: all ones), copies that were not waited for, addresses that are not aligned. It has no timing and no
 * caches, and finds races only where an order shows them: WEFT_EMULATE_ORDER=seed shuffles threads and blocks.
 */
#include "emulator.h"

#include <numeric>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#if !defined(__x86_64__)
#define EMULATOR_UCONTEXT
#endif
#ifdef EMULATOR_UCONTEXT
#include <ucontext.h>
#endif

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace {

/* ---- coroutines -------------------------------------------------------------------------------- */

/* A stack that takes one thread of the block after another, until one has to wait. */
struct worker {
    void *sp = NULL;
    void *bottom = NULL;
    size_t size = 0;
    void *fake = NULL; /* ASan's */
#ifdef EMULATOR_UCONTEXT
    ucontext_t context;
#endif
};

struct copy {
    unsigned char *to;
    const unsigned char *from; /* NULL: zeros */
    unsigned group;
};

enum state { RUNNING, AT_BARRIER, AT_WARP, FINISHED };

struct thread {
    worker *on;
    state at;
    const char *file;
    int line;
    void *mine; /* what it brings to a warp collective */
    std::vector<copy> copies;
    unsigned groups; /* committed so far */
};

/* i -> a permutation of 0..n-1. */
struct order {
    unsigned long long n, start, stride;
    unsigned long long operator()(unsigned long long i) const
    {
        if (stride == 1 && start == 0)
            return i;
        return (unsigned long long)(((unsigned __int128)i * stride + start) % n);
    }
};

struct warp {
    unsigned here;
    void (*all)(void *const lane[32]);
    const char *file;
    int line;
};

enum { MOST = 1024, STACK = EMULATOR_ASAN ? 512 << 10 : 128 << 10, GUARD = 4096, BEYOND = 256 };

struct {
    const emulator_kernel *kernel; /* NULL: none runs */
    unsigned n;                    /* threads of the block */
    unsigned begun, finished, waiting, now;
    thread threads[MOST];
    warp warps[MOST / 32];
    uint3 id[MOST];
    order starts;
    unsigned ready[MOST], ready_first, n_ready;
    std::vector<worker *> *idle = new std::vector<worker *>; /* to the end of the process */
    worker host, *entering;
    unsigned char *shared; /* of the block */
    size_t n_shared;
    unsigned char *tls; /* the program's thread-local variables, of the thread that launched */
    unsigned long long random;
} b;

unsigned long long random_of(unsigned long long n)
{
    b.random = b.random * 6364136223846793005ull + 1442695040888963407ull;
    return (b.random >> 33) % n;
}

order order_of(unsigned long long n)
{
    if (!b.random)
        return {n, 0, 1};
    order o = {n, random_of(n), 1 + random_of(n)};
    while (std::gcd(o.stride, n) != 1)
        o.stride++;
    return o;
}

#ifndef EMULATOR_UCONTEXT
extern "C" void emulator_swap(void **from, void *to);
asm(".text\n.type emulator_swap,@function\nemulator_swap:\n"
    "pushq %rbp\npushq %rbx\npushq %r12\npushq %r13\npushq %r14\npushq %r15\n"
    "movq %rsp, (%rdi)\nmovq %rsi, %rsp\n"
    "popq %r15\npopq %r14\npopq %r13\npopq %r12\npopq %rbx\npopq %rbp\nret\n"
    ".size emulator_swap, .-emulator_swap\n");
#endif

void change(worker *from, worker *to)
{
    if (from == to)
        return;
#if EMULATOR_ASAN
    __sanitizer_start_switch_fiber(&from->fake, to->bottom, to->size);
#endif
#ifndef EMULATOR_UCONTEXT
    emulator_swap(&from->sp, to->sp);
#else
    swapcontext(&from->context, &to->context);
#endif
#if EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(from->fake, NULL, NULL);
#endif
}

void work(void);

worker *worker_new(void)
{
    worker *w = new worker;
    char *p = (char *)mmap(NULL, STACK + GUARD, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED || mprotect(p, GUARD, PROT_NONE) != 0)
        emulator_fail("no memory for a thread's stack");
    w->bottom = p + GUARD;
    w->size = STACK;
#ifndef EMULATOR_UCONTEXT
    void **top = (void **)(p + GUARD + STACK);
    *--top = NULL; /* work() does not return; it begins as if called */
    *--top = (void *)work;
    for (int i = 0; i < 6; i++)
        *--top = NULL;
    w->sp = top;
#else
    getcontext(&w->context);
    w->context.uc_stack.ss_sp = w->bottom;
    w->context.uc_stack.ss_size = w->size;
    w->context.uc_link = NULL;
    makecontext(&w->context, work, 0);
#endif
    return w;
}

worker *idle_worker(void)
{
    if (b.idle->empty())
        return worker_new();
    worker *w = b.idle->back();
    b.idle->pop_back();
    return w;
}

void resume(unsigned t)
{
    b.now = t;
    b.threads[t].at = RUNNING;
    threadIdx = b.id[t];
}

/* Somebody else's turn. */
void leave(worker *self)
{
    if (b.n_ready) {
        unsigned t = b.ready[b.ready_first];
        b.ready_first = (b.ready_first + 1) % MOST;
        b.n_ready--;
        resume(t);
        change(self, b.threads[t].on);
    } else if (b.begun < b.n) {
        b.entering = idle_worker();
        change(self, b.entering);
    } else {
        change(self, &b.host);
    }
}

void work(void)
{
#if EMULATOR_ASAN
    __sanitizer_finish_switch_fiber(NULL, NULL, NULL);
#endif
    worker *self = b.entering;
    for (;;) {
        while (b.begun < b.n) {
            unsigned t = (unsigned)b.starts(b.begun++);
            thread *x = &b.threads[t];
            x->on = self;
            x->groups = 0;
            if (!x->copies.empty())
                x->copies.clear();
            resume(t);
            b.kernel->run();
            b.threads[b.now].at = FINISHED;
            b.finished++;
        }
        b.idle->push_back(self);
        leave(self);
    }
}

void wait_here(state at, const char *file, int line)
{
    thread *t = &b.threads[b.now];
    t->at = at;
    t->file = file;
    t->line = line;
    leave(t->on);
}

/* Threads [from, from + n) but the one that runs may go on. */
void release(unsigned from, unsigned n)
{
    order o = order_of(n);
    for (unsigned i = 0; i < n; i++) {
        unsigned t = from + (unsigned)o(i);
        if (t != b.now)
            b.ready[(b.ready_first + b.n_ready++) % MOST] = t;
    }
}

/* ---- blocks ------------------------------------------------------------------------------------ */

__attribute__((no_sanitize("address"))) void poison(unsigned char *p, size_t n)
{
    memset(p, 0xff, n);
}

void stuck(void)
{
    unsigned barrier = 0, warp = 0;
    const thread *at[2] = {NULL, NULL};
    for (unsigned t = 0; t < b.n; t++) {
        thread *x = &b.threads[t];
        barrier += x->at == AT_BARRIER;
        warp += x->at == AT_WARP;
        if (x->at == AT_BARRIER || x->at == AT_WARP)
            at[x->at == AT_WARP] = x;
    }
    threadIdx = b.id[(at[0] ? at[0] : at[1]) - b.threads];
    emulator_fail("divergence: of %u threads %u are finished, %u wait at a barrier (%s:%d), %u for "
                  "their warp (%s:%d)",
                  b.n, b.finished, barrier, at[0] ? at[0]->file : "-", at[0] ? at[0]->line : 0,
                  warp, at[1] ? at[1]->file : "-", at[1] ? at[1]->line : 0);
}

void run_block(void)
{
    for (const emulator_piece &x : emulator_shared_pieces()) {
        if (b.tls)
            poison(b.tls + x.at, x.size);
    }
    poison(b.shared, b.n_shared + BEYOND);
#if EMULATOR_ASAN
    __asan_poison_memory_region(b.shared + b.n_shared, BEYOND);
#endif
    b.begun = b.finished = b.waiting = b.n_ready = b.ready_first = 0;
    b.starts = order_of(b.n);
    leave(&b.host);
    if (b.finished != b.n)
        stuck();
#if EMULATOR_ASAN
    __asan_unpoison_memory_region(b.shared + b.n_shared, BEYOND);
#endif
    for (size_t i = 0; i < BEYOND; i++) {
        if (b.shared[b.n_shared + i] != 0xff)
            emulator_fail("wrote beyond the %zu bytes of dynamic shared memory", b.n_shared);
    }
}

void find_host_stack(void)
{
#if EMULATOR_ASAN
    pthread_attr_t attr;
    if (pthread_getattr_np(pthread_self(), &attr) == 0) {
        pthread_attr_getstack(&attr, &b.host.bottom, &b.host.size);
        pthread_attr_destroy(&attr);
    }
#endif
}

} // namespace

void emulator_fail(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fflush(stdout);
    fprintf(stderr, "emulator: ");
    vfprintf(stderr, format, args);
    va_end(args);
    if (b.kernel)
        fprintf(stderr,
                "\nemulator: in %s, block %u %u %u of %u %u %u, thread %u %u %u of %u %u %u",
                emulator_name(b.kernel->function), blockIdx.x, blockIdx.y, blockIdx.z, gridDim.x,
                gridDim.y, gridDim.z, threadIdx.x, threadIdx.y, threadIdx.z, blockDim.x, blockDim.y,
                blockDim.z);
    fprintf(stderr, "\n");
    abort();
}

bool emulator_in_kernel(void)
{
    return b.kernel != NULL;
}

bool emulator_is_shared(const void *p, size_t n)
{
    const unsigned char *at = (const unsigned char *)p;
    if (at >= b.shared && at + n <= b.shared + b.n_shared)
        return true;
    for (const emulator_piece &x : emulator_shared_pieces()) {
        if (b.tls && at >= b.tls + x.at && at + n <= b.tls + x.at + x.size)
            return true;
    }
    return emulator_shared_pieces().empty();
}

void emulator_run(const emulator_kernel &k, dim3 grid, dim3 block, size_t bytes)
{
    if (b.kernel)
        emulator_fail("a launch from within a kernel");
    const char *seed = getenv("WEFT_EMULATE_ORDER");
    b.random = seed ? strtoull(seed, NULL, 10) : 0;
    b.n = block.x * block.y * block.z;
    gridDim = grid;
    blockDim = block;
    find_host_stack();
    b.tls = emulator_thread_locals();
    /* Aligned to 16 bytes and no more. */
    unsigned char *room = (unsigned char *)aligned_alloc(64, (bytes + 16 + BEYOND + 63) / 64 * 64);
    if (!room)
        emulator_fail("no memory for shared memory");
    b.shared = room + 16;
    b.n_shared = bytes;
    for (unsigned t = 0; t < b.n; t++)
        b.id[t] = {t % block.x, t / block.x % block.y, t / block.x / block.y};
    b.kernel = &k;
    order blocks = order_of((unsigned long long)grid.x * grid.y * grid.z);
    for (unsigned long long i = 0; i < blocks.n; i++) {
        unsigned long long at = blocks(i);
        blockIdx = {(unsigned)(at % grid.x), (unsigned)(at / grid.x % grid.y),
                    (unsigned)(at / grid.x / grid.y)};
        run_block();
    }
    b.kernel = NULL;
    free(room);
}

/* ---- what kernels call ------------------------------------------------------------------------- */

static void within(const char *what)
{
    if (!b.kernel)
        emulator_fail("%s outside of a kernel", what);
}

void *emulator_dynamic_shared(void)
{
    within("shared memory");
    if (!b.n_shared)
        emulator_fail("launched without dynamic shared memory, but has some");
    return b.shared;
}

void emulator_barrier(const char *file, int line)
{
    within("a barrier");
    static const char *first;
    static int first_line;
    if (b.waiting == 0) {
        first = file;
        first_line = line;
    } else if (line != first_line || (file != first && strcmp(file, first) != 0)) {
        emulator_fail("divergence: a thread is at the barrier %s:%d, others at %s:%d", file, line,
                      first, first_line);
    }
    if (++b.waiting < b.n) {
        wait_here(AT_BARRIER, file, line);
        return;
    }
    b.waiting = 0;
    release(0, b.n);
}

void emulator_warp(void (*all)(void *const lane[32]), void *mine, unsigned mask, const char *file,
                   int line)
{
    within("a warp collective");
    unsigned first = b.now / 32 * 32;
    warp *w = &b.warps[b.now / 32];
    if (mask != 0xffffffffu)
        emulator_fail("a mask of %08x (%s:%d): only full ones are emulated", mask, file, line);
    if (first + 32 > b.n)
        emulator_fail("a warp collective (%s:%d) in a warp of %u lanes", file, line, b.n - first);
    if (w->here == 0) {
        w->all = all;
        w->file = file;
        w->line = line;
    } else if (w->line != line || w->all != all ||
               (w->file != file && strcmp(w->file, file) != 0)) {
        emulator_fail("divergence: a lane is at %s:%d, others of its warp at %s:%d", file, line,
                      w->file, w->line);
    }
    b.threads[b.now].mine = mine;
    if (++w->here < 32) {
        wait_here(AT_WARP, file, line);
        return;
    }
    w->here = 0;
    if (all) {
        void *lane[32];
        for (int i = 0; i < 32; i++)
            lane[i] = b.threads[first + i].mine;
        all(lane);
    }
    release(first, 32);
}

void emulator_copy16(void *to, const void *from, bool there)
{
    within("device_copy16");
    if ((uintptr_t)to % 16 != 0 || (there && (uintptr_t)from % 16 != 0))
        emulator_fail("device_copy16: not 16-byte aligned, to %p from %p", to, from);
    if (!emulator_is_shared(to, 16))
        emulator_fail("device_copy16: not to shared memory");
    if (there && !emulator_is_device(from, 16))
        emulator_fail("device_copy16: not from device memory");
    thread *t = &b.threads[b.now];
    poison((unsigned char *)to, 16);
    t->copies.push_back(
        {(unsigned char *)to, there ? (const unsigned char *)from : NULL, t->groups});
}

void emulator_copy_group(void)
{
    within("device_copy_group");
    b.threads[b.now].groups++;
}

void emulator_copied_but(int n)
{
    within("device_copied_but");
    thread *t = &b.threads[b.now];
    size_t done = 0;
    for (; done < t->copies.size(); done++) {
        const copy &c = t->copies[done];
        if (c.group + (unsigned)n >= t->groups)
            break;
        if (c.from)
            memcpy(c.to, c.from, 16);
        else
            memset(c.to, 0, 16);
    }
    t->copies.erase(t->copies.begin(), t->copies.begin() + (ptrdiff_t)done);
}
