/* The list of commands (cuda.h): kept until it is run, and captured when it comes again. */
#include "cuda.h"

#include <assert.h>
#include <stdlib.h>
#include <string.h>

enum {
    COMMANDS_MOST = 16384, /* more are run before it grows on */
    GRAPHS_MOST = 32,      /* the one that was not used for longest goes */
    GRAPH_LEAST = 8,       /* fewer commands are no worth a graph */
    PARAMS_MOST = 8 << 20, /* bytes, likewise */
    AHEAD_MOST = 3         /* runs that are asked for while another is on */
};

/* What a command is; lists are the same where these and the arguments are, byte by byte. */
struct command {
    cuda_go *go;
    uint32_t args, n_args, params, n_params; /* where they begin, in bytes; n_params 0: none */
};

struct bytes {
    unsigned char *at;
    size_t n, cap;
};

/* A list that came before. */
struct seen {
    uint64_t hash, used;
    struct bytes commands, args; /* own copies */
    cudaGraphExec_t graph;       /* NULL: none yet */
    bool again;                  /* it came before */
    bool never;                  /* it could not be captured */
};

struct cuda_list {
    struct bytes commands, args, params;
    struct seen *seen;
    int n_seen;
    uint64_t turn;
    /* What params are copied to: host memory that the chip can read, taken in turns, and the device's. */
    unsigned char *host[AHEAD_MOST], *device;
    cudaEvent_t done[AHEAD_MOST];
    size_t room;
    void *scratch;
    size_t scratch_bytes;
    struct device_runs runs;
};

/* ---- bytes ----------------------------------------------------------------------------------- */

static bool bytes_room(struct bytes *b, size_t more)
{
    if (b->n + more <= b->cap)
        return true;
    size_t cap = 2 * b->cap + more + 4096;
    unsigned char *at = realloc(b->at, cap);
    if (!at)
        return false;
    b->at = at;
    b->cap = cap;
    return true;
}

/* n bytes from the next multiple of 16 on; room was made. */
static uint32_t bytes_put(struct bytes *b, const void *from, size_t n)
{
    size_t at = (b->n + 15) / 16 * 16;
    memset(b->at + b->n, 0, at - b->n);
    memcpy(b->at + at, from, n);
    b->n = at + n;
    return (uint32_t)at;
}

static bool bytes_same(const struct bytes *a, const struct bytes *b)
{
    return a->n == b->n && !memcmp(a->at, b->at, a->n);
}

static bool bytes_copy(struct bytes *to, const struct bytes *from)
{
    *to = (struct bytes){.at = malloc(from->n + 1), .n = from->n, .cap = from->n};
    if (to->at)
        memcpy(to->at, from->at, from->n);
    return to->at != NULL;
}

/* FNV-1a, eight bytes at a time. */
static uint64_t bytes_hash(const struct bytes *b, uint64_t hash)
{
    size_t i = 0;
    for (uint64_t v; i + sizeof v <= b->n; i += sizeof v) {
        memcpy(&v, b->at + i, sizeof v);
        hash = (hash ^ v) * 0x100000001b3u;
        hash ^= hash >> 29;
    }
    for (; i < b->n; i++)
        hash = (hash ^ b->at[i]) * 0x100000001b3u;
    return hash;
}

/* ---- graphs ---------------------------------------------------------------------------------- */

static void forget(struct seen *s)
{
    if (s->graph)
        cudaGraphExecDestroy(s->graph);
    free(s->commands.at);
    free(s->args.at);
}

static void forget_all(struct cuda *c)
{
    cudaStreamSynchronize(c->stream);
    for (int i = 0; i < c->list->n_seen; i++)
        forget(&c->list->seen[i]);
    c->list->n_seen = 0;
}

/* The list as it came before, or noted now; NULL for want of memory. */
static struct seen *recall(struct cuda_list *l)
{
    uint64_t hash = bytes_hash(&l->args, bytes_hash(&l->commands, 0xcbf29ce484222325u));
    struct seen *oldest = NULL, *to;
    for (int i = 0; i < l->n_seen; i++) {
        struct seen *s = &l->seen[i];
        if (s->hash == hash && bytes_same(&s->commands, &l->commands) &&
            bytes_same(&s->args, &l->args)) {
            s->used = ++l->turn;
            s->again = true;
            return s;
        }
        oldest = !oldest || s->used < oldest->used ? s : oldest;
    }
    if (l->n_seen < GRAPHS_MOST) {
        to = &l->seen[l->n_seen++];
    } else {
        forget(oldest);
        to = oldest;
    }
    *to = (struct seen){.hash = hash, .used = ++l->turn};
    if (bytes_copy(&to->commands, &l->commands) && bytes_copy(&to->args, &l->args))
        return to;
    forget(to);
    *to = l->seen[--l->n_seen];
    return NULL;
}

static int run_commands(struct cuda *c)
{
    struct cuda_list *l = c->list;
    const struct command *cmd = (const void *)l->commands.at;
    int rc = c->broken.code;
    for (size_t i = 0; i < l->commands.n / sizeof *cmd && rc == 0; i++)
        rc = cmd[i].go(c, l->args.at + cmd[i].args,
                       cmd[i].n_params ? l->device + cmd[i].params : NULL);
    return rc;
}

/* Makes a graph of the list; false, and nothing else has happened, where that cannot be. */
static bool capture(struct cuda *c, struct seen *s)
{
    cudaGraph_t graph = NULL;
    if (cudaStreamBeginCapture(c->stream, cudaStreamCaptureModeThreadLocal) != cudaSuccess) {
        cudaGetLastError();
        return false;
    }
    int rc = run_commands(c);
    cudaError_t end = cudaStreamEndCapture(c->stream, &graph);
    if (rc == 0 && end == cudaSuccess && graph)
        end = cudaGraphInstantiate(&s->graph, graph, 0);
    if (rc == 0 && end == cudaErrorMemoryAllocation && graph) {
        cuda_trim(c);
        end = cudaGraphInstantiate(&s->graph, graph, 0);
    }
    if (graph)
        cudaGraphDestroy(graph);
    if (rc == 0 && end == cudaSuccess && s->graph)
        return true;
    cudaGetLastError();
    err_clear(&c->broken); /* run one by one it tells again what is wrong beside capturing */
    s->graph = NULL;
    return false;
}

/* ---- running --------------------------------------------------------------------------------- */

/* Room for so many bytes of params, here and on the device: or ERR_NOMEM, and nothing else has happened. */
static int params_room(struct cuda *c, size_t bytes, struct err *err)
{
    struct cuda_list *l = c->list;
    size_t n = l->room ? l->room : 1 << 20;
    unsigned char *host[AHEAD_MOST] = {NULL};
    while (n < bytes)
        n *= 2;
    if (n == l->room)
        return 0;
    unsigned char *device = cuda_take(c, n);
    bool all = device != NULL;
    for (int i = 0; i < AHEAD_MOST && all; i++) {
        all = cudaMallocHost((void **)&host[i], n) == cudaSuccess;
        if (all && !l->done[i])
            all = cudaEventCreateWithFlags(&l->done[i], cudaEventDisableTiming) == cudaSuccess;
    }
    if (all)
        forget_all(c); /* and waits for those that read the old ones */
    for (int i = 0; i < AHEAD_MOST; i++) {
        unsigned char *gone = all ? l->host[i] : host[i];
        if (gone)
            cudaFreeHost(gone);
        l->host[i] = all ? host[i] : l->host[i];
    }
    cuda_give(c, all ? l->device : device);
    if (!all) {
        cudaGetLastError();
        return c->broken.code ? c->broken.code : err_nomem(err, n);
    }
    l->device = device;
    l->room = n;
    return 0;
}

/* Params to the device; *turn: which of the host's copies they are in. */
static int send(struct cuda *c, int *turn)
{
    struct cuda_list *l = c->list;
    *turn = (int)(l->runs.lists % AHEAD_MOST);
    int rc = cuda_failed(c, cudaEventSynchronize(l->done[*turn]));
    if (rc < 0 || !l->params.n)
        return rc;
    memcpy(l->host[*turn], l->params.at, l->params.n);
    return cuda_failed(c, cudaMemcpyAsync(l->device, l->host[*turn], l->params.n,
                                          cudaMemcpyHostToDevice, c->stream));
}

/* By its graph, or where there is no memory for that any more, one by one. */
static int launch_graph(struct cuda *c, struct seen *s)
{
    cudaError_t rc = cudaGraphLaunch(s->graph, c->stream);
    if (rc == cudaErrorMemoryAllocation) {
        cuda_trim(c);
        rc = cudaGraphLaunch(s->graph, c->stream);
    }
    if (rc != cudaErrorMemoryAllocation) {
        c->list->runs.graphs++;
        return cuda_failed(c, rc);
    }
    cudaGetLastError();
    cudaGraphExecDestroy(s->graph);
    s->graph = NULL;
    s->never = true;
    return run_commands(c);
}

static int run(struct cuda *c)
{
    struct cuda_list *l = c->list;
    bool many = l->commands.n >= GRAPH_LEAST * sizeof(struct command);
    int turn, rc = send(c, &turn);
    struct seen *s = rc == 0 && many ? recall(l) : NULL;
    if (s && s->again && !s->graph && !s->never) {
        s->never = !capture(c, s);
        l->runs.captured += s->graph != NULL;
    }
    if (s && s->graph)
        rc = launch_graph(c, s);
    else if (rc == 0)
        rc = run_commands(c);
    if (rc == 0)
        rc = cuda_failed(c, cudaEventRecord(l->done[turn], c->stream));
    l->runs.lists++;
    return rc;
}

int cuda_flush(struct device *dev, struct err *err)
{
    struct cuda *c = cuda_of(dev);
    struct cuda_list *l = c->list;
    if (l->commands.n && !c->broken.code)
        run(c);
    l->commands.n = l->args.n = l->params.n = 0;
    return cuda_check(dev, err);
}

int cuda_push(struct device *dev, cuda_go *go, const void *args, size_t n_args, const void *params,
              size_t n_params, struct err *err)
{
    struct cuda *c = cuda_of(dev);
    struct cuda_list *l = c->list;
    struct command cmd = {.go = go, .n_args = (uint32_t)n_args, .n_params = (uint32_t)n_params};
    assert(n_args <= CUDA_ARGS_MOST && n_params <= CUDA_PARAMS_MOST);
    bool full = l->commands.n >= COMMANDS_MOST * sizeof cmd || l->params.n + n_params > PARAMS_MOST;
    int rc = full ? cuda_flush(dev, err) : 0;
    rc = rc < 0 ? rc : params_room(c, l->params.n + n_params + 16, err);
    if (rc < 0)
        return rc;
    if (!bytes_room(&l->commands, sizeof cmd + 16) || !bytes_room(&l->args, n_args + 16) ||
        !bytes_room(&l->params, n_params + 16))
        return err_nomem(err, n_args + n_params);
    cmd.args = bytes_put(&l->args, args, n_args);
    if (n_params)
        cmd.params = bytes_put(&l->params, params, n_params);
    memcpy(l->commands.at + l->commands.n, &cmd, sizeof cmd);
    l->commands.n += sizeof cmd;
    return cuda_check(dev, err);
}

/* Small things on their way to the device are params of a command that copies them. */
struct put_args {
    void *to;
    size_t n;
};

static int go_put(struct cuda *c, const void *args, const void *params)
{
    const struct put_args *a = args;
    return cuda_failed(c,
                       cudaMemcpyAsync(a->to, params, a->n, cudaMemcpyDeviceToDevice, c->stream));
}

int cuda_put(struct device *dev, void *to, const void *from, size_t n, struct err *err)
{
    struct cuda *c = cuda_of(dev);
    const struct put_args a = {.to = to, .n = n};
    if (!n)
        return 0;
    if (n <= CUDA_PARAMS_MOST)
        return cuda_push(dev, go_put, &a, sizeof a, from, n, err);
    int rc = cuda_flush(dev, err);
    if (rc == 0)
        rc = cuda_failed(c, cudaMemcpyAsync(to, from, n, cudaMemcpyHostToDevice, c->stream));
    if (rc == 0)
        cuda_failed(c, cudaStreamSynchronize(c->stream)); /* the caller's copy may go */
    return rc < 0 ? rc : cuda_check(dev, err);
}

void *cuda_scratch(struct device *dev, size_t bytes)
{
    struct cuda *c = cuda_of(dev);
    struct cuda_list *l = c->list;
    if (bytes <= l->scratch_bytes)
        return l->scratch;
    if (cuda_flush(dev, NULL) < 0)
        return NULL;
    forget_all(c);
    cuda_give(c, l->scratch);
    l->scratch = cuda_take(c, bytes);
    l->scratch_bytes = l->scratch ? bytes : 0;
    return l->scratch;
}

/* ---- life ------------------------------------------------------------------------------------ */

int cuda_list_new(struct cuda *c, struct err *err)
{
    c->list = calloc(1, sizeof *c->list);
    if (!c->list)
        return err_nomem(err, sizeof *c->list);
    c->list->seen = calloc(GRAPHS_MOST, sizeof *c->list->seen);
    return c->list->seen ? 0 : err_nomem(err, GRAPHS_MOST * sizeof *c->list->seen);
}

void cuda_list_free(struct cuda *c)
{
    struct cuda_list *l = c->list;
    if (!l)
        return;
    if (l->seen)
        forget_all(c);
    for (int i = 0; i < AHEAD_MOST; i++) {
        if (l->host[i])
            cudaFreeHost(l->host[i]);
        if (l->done[i])
            cudaEventDestroy(l->done[i]);
    }
    cuda_give(c, l->device);
    cuda_give(c, l->scratch);
    free(l->commands.at);
    free(l->args.at);
    free(l->params.at);
    free(l->seen);
    free(l);
    c->list = NULL;
}

struct device_runs cuda_runs(const struct device *dev)
{
    return cuda_of(dev)->list->runs;
}
