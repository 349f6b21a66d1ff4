/* memory.cpp: device memory: one range of addresses, which can be touched only while the device works, so that host code that
 * does so crashes. What is fresh or freed is all ones (NaN); the gaps between allocations are checked.
 */
#include "emulator.h"

#include <map>
#include <mutex>
#include <signal.h>
#include <stdlib.h>
#include <sys/mman.h>

namespace {

enum { ALIGN = 256, LATER = 16 << 20, PAGE = 2 << 20 };

struct allocation {
    size_t size, room; /* room: what it takes with the gap behind */
    bool live;
};

struct {
    std::recursive_mutex lock;
    char *base;
    size_t used, room, limit, live, freed;
    std::map<char *, allocation> all;
    std::map<char *, size_t> pinned;
    int open;
    struct sigaction before;
} r;

void shut_in(void *p, size_t n)
{
#if EMULATOR_ASAN
    __asan_poison_memory_region(p, n);
#else
    (void)p, (void)n;
#endif
}
void let_out(void *p, size_t n)
{
#if EMULATOR_ASAN
    __asan_unpoison_memory_region(p, n);
#else
    (void)p, (void)n;
#endif
}

void protect(bool open)
{
    if (r.used && mprotect(r.base, r.used, open ? PROT_READ | PROT_WRITE : PROT_NONE) != 0)
        emulator_fail("mprotect of device memory failed");
}

void on_fault(int sig, siginfo_t *info, void *)
{
    char *at = (char *)info->si_addr;
    if (r.base && at >= r.base && at < r.base + r.room) {
        sigaction(sig, &r.before, NULL);
        emulator_fail("%s device memory at %p",
                      r.open ? "the device touched what is not allocated of" : "host code touched",
                      at);
    }
    sigaction(sig, &r.before, NULL); /* and fault again */
}

/* The first byte in [p, p + n) that is not all ones, or NULL. */
__attribute__((no_sanitize("address"))) const unsigned char *stained(const void *p, size_t n)
{
    const unsigned char *at = (const unsigned char *)p, *end = at + n;
    while (at < end) {
        if ((uintptr_t)at % 8 == 0 && end - at >= 8 && *(const volatile uint64_t *)at + 1 == 0)
            at += 8;
        else if (*(const volatile unsigned char *)at == 0xff)
            at++;
        else
            return at;
    }
    return NULL;
}

void check(char *p, const allocation &a)
{
    const unsigned char *bad;
    if (a.live && (bad = stained(p + a.size, a.room - a.size)) != NULL)
        emulator_fail("kernel wrote beyond allocation %p of %zu bytes, at its byte %zu", p, a.size,
                      (size_t)(bad - (unsigned char *)p));
    if (!a.live && (bad = stained(p, a.room)) != NULL)
        emulator_fail("kernel wrote to memory that was freed: %p of %zu bytes, at its byte %zu", p,
                      a.size, (size_t)(bad - (unsigned char *)p));
}

void at_exit(void)
{
    emulator_check_memory();
    for (const auto &x : r.all) {
        if (x.second.live && emulator_setting("WEFT_EMULATE_LEAKS", 0))
            emulator_fail("%zu bytes of device memory were never freed", x.second.size);
    }
}

void reserve(void)
{
    if (r.base)
        return;
    r.limit = (size_t)emulator_setting("WEFT_EMULATE_MEMORY", 16l << 30);
    r.room = r.limit * 2 + PAGE; /* what is freed is not used again at once */
    char *p = (char *)mmap(NULL, r.room + PAGE, PROT_NONE,
                           MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (p == MAP_FAILED)
        emulator_fail("no room for device memory");
    r.base = p + (PAGE - (uintptr_t)p % PAGE) % PAGE;
    madvise(r.base, r.room, MADV_DONTDUMP);
    madvise(r.base, r.room, MADV_HUGEPAGE); /* to be protected faster */
    struct sigaction a = {};
    a.sa_sigaction = on_fault;
    a.sa_flags = SA_SIGINFO;
    sigaction(SIGSEGV, &a, &r.before);
    atexit(at_exit);
}

/* Addresses are multiples of 256 but not of 512: nobody is to rely on more. */
char *take(size_t size)
{
    size_t room = (size + ALIGN + 511) / 512 * 512;
    for (auto &x : r.all) {
        if (r.freed > LATER && !x.second.live && x.second.room >= room &&
            x.second.room <= 2 * room) {
            check(x.first, x.second);
            r.freed -= x.second.room;
            x.second.size = size;
            x.second.live = true;
            return x.first;
        }
    }
    char *p = r.all.empty() ? r.base + ALIGN : r.all.rbegin()->first + r.all.rbegin()->second.room;
    size_t end = ((size_t)(p - r.base) + room + PAGE - 1) / PAGE * PAGE, grown = end - r.used;
    if (end > r.room)
        return NULL;
    if (end > r.used) {
        if (mprotect(r.base + r.used, grown, PROT_READ | PROT_WRITE) != 0)
            return NULL;
        memset(r.base + r.used, 0xff, grown);
        shut_in(r.base + r.used, grown);
        r.used = end;
    }
    r.all[p] = {size, room, true};
    return p;
}

} // namespace

emulator_working::emulator_working()
{
    r.lock.lock();
    if (r.open++ == 0)
        protect(true);
}

emulator_working::~emulator_working()
{
    if (--r.open == 0)
        protect(false);
    r.lock.unlock();
}

void emulator_check_memory(void)
{
    emulator_working now;
    for (const auto &x : r.all)
        check(x.first, x.second);
    if (r.used && stained(r.base, ALIGN))
        emulator_fail("kernel wrote before the first allocation");
}

void *emulator_take(size_t bytes)
{
    reserve();
    emulator_working now;
    char *p = bytes > r.limit - r.live ? NULL : take(bytes);
    if (p) {
        r.live += bytes;
        let_out(p, bytes);
    }
    return p;
}

void emulator_give(void *p)
{
    emulator_working now;
    auto at = r.all.find((char *)p);
    if (at == r.all.end() || !at->second.live)
        emulator_fail("cudaFree of %p, which is not an allocation that lives", p);
    check(at->first, at->second);
    memset(p, 0xff, at->second.size);
    at->second.live = false;
    r.live -= at->second.size;
    r.freed += at->second.room;
    shut_in(p, at->second.room);
}

void emulator_room(size_t *free, size_t *total)
{
    reserve();
    *total = r.limit;
    *free = r.limit - r.live;
}

void *emulator_pin(size_t bytes)
{
    void *p = aligned_alloc(ALIGN, (bytes + ALIGN - 1) / ALIGN * ALIGN);
    std::lock_guard<std::recursive_mutex> hold(r.lock);
    if (p) {
        memset(p, 0xff, bytes);
        r.pinned[(char *)p] = bytes;
    }
    return p;
}

void emulator_unpin(void *p)
{
    std::lock_guard<std::recursive_mutex> hold(r.lock);
    if (!r.pinned.erase((char *)p))
        emulator_fail("cudaFreeHost of %p, which is not pinned memory", p);
    free(p);
}

bool emulator_is_device_range(const void *p)
{
    const char *at = (const char *)p;
    return r.base && at >= r.base && at < r.base + r.room;
}

bool emulator_is_device(const void *p, size_t n)
{
    auto x = r.all.upper_bound((char *)p);
    if (x == r.all.begin())
        return false;
    --x;
    return x->second.live && (const char *)p + n <= x->first + x->second.size;
}

bool emulator_is_pinned(const void *p, size_t n)
{
    auto x = r.pinned.upper_bound((char *)p);
    if (x == r.pinned.begin())
        return false;
    --x;
    return (const char *)p + n <= x->first + x->second;
}
