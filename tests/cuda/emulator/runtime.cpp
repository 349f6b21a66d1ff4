/* runtime.cpp: the CUDA runtime's functions (cuda_runtime.h): streams, events, graphs. Work is done at once, in stream
 * order; it does not overlap, and its times are of no meaning.
 * Environment:
 *   WEFT_EMULATE_NO_DEVICE=1     there is none
 *   WEFT_EMULATE_MEMORY=bytes    of device memory (16 GiB)
 *   WEFT_EMULATE_CAPABILITY=80   compute capability (90)
 *   WEFT_EMULATE_SHARED=bytes    the most shared memory of a block (232448)
 *   WEFT_EMULATE_LATE=1          work waits until somebody waits for it: finds who does not
 *   WEFT_EMULATE_CHECK=1         gaps are checked after all work, not only at free and exit
 *   WEFT_EMULATE_LEAKS=1         what is not freed at exit is an error
 *   WEFT_EMULATE_FAIL=n          the n-th call from now that takes something (memory, stream, event, graph) fails
 *   WEFT_EMULATE_ORDER=seed      emulator.cpp
 */
#include "emulator.h"

#include <mutex>
#include <set>
#include <stdio.h>
#include <stdlib.h>
#include <thread>
#include <time.h>

typedef std::function<void()> task;

struct CUstream_st {
    unsigned flags;
    cudaStreamCaptureStatus capture;
    cudaStreamCaptureMode mode;
    std::thread::id by;
    std::vector<task> captured, late;
};
struct CUgraph_st {
    std::vector<task> nodes;
};
struct CUgraphExec_st {
    std::vector<task> nodes;
};
struct CUevent_st {
    unsigned flags;
    bool recorded, captured, done;
    timespec when;
    cudaStream_t on;
};

namespace {

struct {
    std::set<void *> known; /* events, graphs */
    std::set<cudaStream_t> streams;
    CUstream_st legacy;
    cudaError_t last;
    long taken;
} r;

std::recursive_mutex lock_of_all;

void invalidate(cudaStream_t s)
{
    if (s->capture == cudaStreamCaptureStatusActive)
        s->capture = cudaStreamCaptureStatusInvalidated;
}

/* The legacy stream waits for blocking streams, which cannot be where those are captured. */
cudaError_t implicit(CUstream_st *s)
{
    if (s != &r.legacy)
        return cudaSuccess;
    for (cudaStream_t x : r.streams) {
        if (x->capture != cudaStreamCaptureStatusNone && !(x->flags & cudaStreamNonBlocking)) {
            invalidate(x);
            return cudaErrorStreamCaptureImplicit;
        }
    }
    return cudaSuccess;
}

void perform(const task &t)
{
    {
        emulator_working now;
        t();
    }
    if (emulator_setting("WEFT_EMULATE_CHECK", 0))
        emulator_check_memory();
}

template <class T> T *known_of(T *x, const char *what)
{
    if (!r.known.count(x))
        emulator_fail("no such %s: %p", what, (void *)x);
    return x;
}

template <class T> void forget(T *x, const char *what)
{
    r.known.erase(known_of(x, what));
    delete x;
}

} // namespace

/* ---- for the other files ----------------------------------------------------------------------- */

emulator_locked::emulator_locked()
{
    lock_of_all.lock();
}

emulator_locked::~emulator_locked()
{
    lock_of_all.unlock();
}

long emulator_setting(const char *name, long usual)
{
    const char *v = getenv(name);
    return v && *v ? atol(v) : usual;
}

cudaError_t emulator_answer(cudaError_t rc)
{
    if (rc != cudaSuccess)
        r.last = rc;
    return rc;
}

bool emulator_absent(void)
{
    return emulator_setting("WEFT_EMULATE_NO_DEVICE", 0) != 0;
}

bool emulator_refused(void)
{
    long which = emulator_setting("WEFT_EMULATE_FAIL", 0);
    r.taken = which ? r.taken + 1 : 0;
    return which && r.taken == which;
}

size_t emulator_shared_most(void)
{
    return (size_t)emulator_setting("WEFT_EMULATE_SHARED", EMULATOR_SHARED_MOST);
}

static CUstream_st *stream_of(cudaStream_t s)
{
    if (s && !r.streams.count(s))
        emulator_fail("no such stream: %p", (void *)s);
    return s ? s : &r.legacy;
}

cudaError_t emulator_uncapturable(cudaStream_t stream)
{
    CUstream_st *s = stream_of(stream);
    if (s->capture == cudaStreamCaptureStatusNone)
        return cudaSuccess;
    bool was = s->capture == cudaStreamCaptureStatusInvalidated;
    invalidate(s);
    return was ? cudaErrorStreamCaptureInvalidated : cudaErrorStreamCaptureUnsupported;
}

cudaError_t emulator_unsafe(bool waits)
{
    for (cudaStream_t s : r.streams) {
        if (s->capture == cudaStreamCaptureStatusNone)
            continue;
        if (waits || s->mode == cudaStreamCaptureModeGlobal ||
            (s->mode == cudaStreamCaptureModeThreadLocal && s->by == std::this_thread::get_id()))
            return emulator_uncapturable(s);
    }
    return cudaSuccess;
}

void emulator_drain(cudaStream_t stream)
{
    CUstream_st *s = stream_of(stream);
    std::vector<task> late;
    late.swap(s->late);
    for (const task &t : late)
        perform(t);
}

void emulator_drain_all(void)
{
    for (cudaStream_t s : r.streams)
        emulator_drain(s);
    emulator_drain(NULL);
}

bool emulator_capturing(cudaStream_t s)
{
    return stream_of(s)->capture != cudaStreamCaptureStatusNone;
}

cudaError_t &emulator_last(void)
{
    return r.last;
}

cudaError_t emulator_do(cudaStream_t stream, task work)
{
    emulator_locked hold;
    CUstream_st *s = stream_of(stream);
    if (emulator_absent())
        return emulator_answer(cudaErrorNoDevice);
    if (emulator_in_kernel())
        emulator_fail("a call of the runtime from within a kernel");
    if (s->capture == cudaStreamCaptureStatusInvalidated)
        return emulator_answer(cudaErrorStreamCaptureInvalidated);
    cudaError_t rc = implicit(s);
    if (rc != cudaSuccess)
        return emulator_answer(rc);
    if (s->capture == cudaStreamCaptureStatusActive)
        s->captured.push_back(std::move(work));
    else if (emulator_setting("WEFT_EMULATE_LATE", 0))
        s->late.push_back(std::move(work));
    else
        perform(work);
    return cudaSuccess;
}

/* ---- streams and events ------------------------------------------------------------------------ */

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *s, unsigned flags)
{
    emulator_locked hold;
    *s = NULL;
    if (emulator_absent())
        return emulator_answer(cudaErrorNoDevice);
    if (flags & ~1u)
        return emulator_answer(cudaErrorInvalidValue);
    if (emulator_refused())
        return emulator_answer(cudaErrorMemoryAllocation);
    *s = new CUstream_st();
    (*s)->flags = flags;
    r.streams.insert(*s);
    return cudaSuccess;
}

cudaError_t cudaStreamCreate(cudaStream_t *s)
{
    return cudaStreamCreateWithFlags(s, cudaStreamDefault);
}

cudaError_t cudaStreamDestroy(cudaStream_t stream)
{
    emulator_locked hold;
    CUstream_st *s = stream_of(stream);
    if (!stream || s->capture != cudaStreamCaptureStatusNone)
        emulator_fail("cudaStreamDestroy of %s stream", stream ? "a capturing" : "the legacy");
    emulator_drain(stream);
    r.streams.erase(s);
    delete s;
    return cudaSuccess;
}

cudaError_t cudaStreamSynchronize(cudaStream_t stream)
{
    emulator_locked hold;
    CUstream_st *s = stream_of(stream);
    cudaError_t rc = emulator_uncapturable(stream);
    if (rc == cudaSuccess)
        rc = implicit(s);
    if (rc == cudaSuccess)
        emulator_drain(stream);
    return emulator_answer(rc);
}

cudaError_t cudaStreamQuery(cudaStream_t stream)
{
    emulator_locked hold;
    cudaError_t rc = emulator_uncapturable(stream_of(stream));
    if (rc == cudaSuccess && !stream_of(stream)->late.empty())
        return cudaErrorNotReady;
    return emulator_answer(rc);
}

cudaError_t cudaDeviceSynchronize(void)
{
    emulator_locked hold;
    if (emulator_absent())
        return emulator_answer(cudaErrorNoDevice);
    cudaError_t rc = emulator_unsafe(true);
    if (rc == cudaSuccess)
        emulator_drain_all();
    return emulator_answer(rc);
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *e, unsigned flags)
{
    emulator_locked hold;
    *e = NULL;
    if (emulator_absent() || emulator_refused())
        return emulator_answer(emulator_absent() ? cudaErrorNoDevice : cudaErrorMemoryAllocation);
    *e = new CUevent_st();
    (*e)->flags = flags;
    r.known.insert(*e);
    return cudaSuccess;
}

cudaError_t cudaEventCreate(cudaEvent_t *e)
{
    return cudaEventCreateWithFlags(e, cudaEventDefault);
}

cudaError_t cudaEventRecord(cudaEvent_t e, cudaStream_t stream)
{
    emulator_locked hold;
    CUstream_st *s = stream_of(stream);
    known_of(e, "event");
    if (s->capture == cudaStreamCaptureStatusInvalidated)
        return emulator_answer(cudaErrorStreamCaptureInvalidated);
    e->captured = s->capture == cudaStreamCaptureStatusActive;
    if (e->captured)
        return cudaSuccess;
    e->recorded = true;
    e->done = false;
    e->on = s;
    return emulator_do(stream, [e] {
        clock_gettime(CLOCK_MONOTONIC, &e->when);
        e->done = true;
    });
}

cudaError_t cudaEventSynchronize(cudaEvent_t e)
{
    emulator_locked hold;
    known_of(e, "event");
    if (e->captured)
        return emulator_answer(cudaErrorCapturedEvent);
    if (e->recorded && !e->done)
        emulator_drain(e->on);
    return cudaSuccess;
}

cudaError_t cudaEventQuery(cudaEvent_t e)
{
    emulator_locked hold;
    known_of(e, "event");
    if (e->captured)
        return emulator_answer(cudaErrorCapturedEvent);
    return e->recorded && !e->done ? cudaErrorNotReady : cudaSuccess;
}

cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t from, cudaEvent_t to)
{
    emulator_locked hold;
    known_of(from, "event");
    known_of(to, "event");
    if (!from->recorded || !to->recorded || (from->flags | to->flags) & cudaEventDisableTiming)
        return emulator_answer(cudaErrorInvalidResourceHandle);
    if (!from->done || !to->done)
        return cudaErrorNotReady;
    *ms = (float)((double)(to->when.tv_sec - from->when.tv_sec) * 1e3 +
                  (double)(to->when.tv_nsec - from->when.tv_nsec) * 1e-6);
    return cudaSuccess;
}

cudaError_t cudaEventDestroy(cudaEvent_t e)
{
    emulator_locked hold;
    known_of(e, "event");
    if (e->recorded && !e->done)
        emulator_drain(e->on);
    forget(e, "event");
    return cudaSuccess;
}

/* ---- graphs ------------------------------------------------------------------------------------ */

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode)
{
    emulator_locked hold;
    CUstream_st *s = stream_of(stream);
    if (s == &r.legacy)
        return emulator_answer(cudaErrorStreamCaptureUnsupported);
    if (s->capture != cudaStreamCaptureStatusNone)
        return emulator_answer(cudaErrorIllegalState);
    s->capture = cudaStreamCaptureStatusActive;
    s->mode = mode;
    s->by = std::this_thread::get_id();
    s->captured.clear();
    return cudaSuccess;
}

cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *g)
{
    emulator_locked hold;
    CUstream_st *s = stream_of(stream);
    *g = NULL;
    if (s->capture == cudaStreamCaptureStatusNone)
        return emulator_answer(cudaErrorIllegalState);
    if (s->mode != cudaStreamCaptureModeRelaxed && s->by != std::this_thread::get_id()) {
        invalidate(s);
        return emulator_answer(cudaErrorStreamCaptureWrongThread);
    }
    bool good = s->capture == cudaStreamCaptureStatusActive;
    s->capture = cudaStreamCaptureStatusNone;
    if (!good) {
        s->captured.clear();
        return emulator_answer(cudaErrorStreamCaptureInvalidated);
    }
    *g = new CUgraph_st();
    (*g)->nodes.swap(s->captured);
    r.known.insert(*g);
    return cudaSuccess;
}

cudaError_t cudaStreamIsCapturing(cudaStream_t stream, enum cudaStreamCaptureStatus *status)
{
    emulator_locked hold;
    CUstream_st *s = stream_of(stream);
    cudaError_t rc = implicit(s);
    *status = s->capture;
    return emulator_answer(rc);
}

cudaError_t cudaGraphInstantiate(cudaGraphExec_t *e, cudaGraph_t g, unsigned long long flags)
{
    emulator_locked hold;
    *e = NULL;
    known_of(g, "graph");
    if (flags & ~15ull)
        return emulator_answer(cudaErrorInvalidValue);
    if (emulator_refused())
        return emulator_answer(cudaErrorMemoryAllocation);
    *e = new CUgraphExec_st();
    (*e)->nodes = g->nodes;
    r.known.insert(*e);
    return cudaSuccess;
}

cudaError_t cudaGraphUpload(cudaGraphExec_t e, cudaStream_t stream)
{
    emulator_locked hold;
    known_of(e, "executable graph");
    return emulator_answer(emulator_uncapturable(stream_of(stream)));
}

cudaError_t cudaGraphLaunch(cudaGraphExec_t e, cudaStream_t stream)
{
    emulator_locked hold;
    std::vector<task> nodes = known_of(e, "executable graph")->nodes;
    return emulator_do(stream, [nodes] {
        for (const task &t : nodes)
            t();
    });
}

cudaError_t cudaGraphExecDestroy(cudaGraphExec_t e)
{
    emulator_locked hold;
    forget(e, "executable graph");
    return cudaSuccess;
}

cudaError_t cudaGraphDestroy(cudaGraph_t g)
{
    emulator_locked hold;
    forget(g, "graph");
    return cudaSuccess;
}

cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t *nodes, size_t *n)
{
    emulator_locked hold;
    known_of(g, "graph");
    if (nodes)
        emulator_fail("cudaGraphGetNodes: only their number is emulated");
    *n = g->nodes.size();
    return cudaSuccess;
}
