/* Which plans convolve.c and dnn.c choose for chips that are only described, asked of the cuDNN that is installed: no GPU is
 * needed. Every convolution of Stable Diffusion 1.5 and of the demo's model, its way back, those of adapters, and odd shapes.
 * Nothing is run.
 *
 *     weft-ask-cudnn [-v]      -v: a line a plan
 *
 * A line a chip and type; 0 where all is well or cuDNN cannot be asked so, 1 else.
 */
#include "ask.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct chip {
    const char *name;
    int version; /* of its compute capability: 900 is 9.0 */
    int processors, threads_most, blocks_most, shared_most;
    int l2, clock, memory_clock; /* bytes, kHz */
    int64_t memory;
};

static const struct chip chips[] = {
    {"H100", 900, 132, 2048, 32, 232448, 52428800, 1980000, 2619000, 85029158912},
    {"A100", 800, 108, 2048, 32, 166912, 41943040, 1410000, 1593000, 85029158912},
    {"RTX 4090", 890, 128, 1536, 24, 101376, 75497472, 2520000, 10501000, 25386352640},
    {"RTX 3090", 860, 82, 1536, 16, 101376, 6291456, 1695000, 9751000, 25386352640},
};

enum { TOLD_MOST = 12 }; /* failures of a chip and type that are told one by one */

static bool verbose;

/* ---- what is chosen: linked with --wrap=dnn_plan ---------------------------------------------- */

static struct {
    int tries;
    cudnnBackendDescriptor_t plan;
} chosen; /* the last */

cudnnBackendDescriptor_t __real_dnn_plan(const struct cuda_dnn *on, cudnnBackendDescriptor_t graph,
                                         cudnnDataType_t type, bool slow, int64_t *workspace);
cudnnBackendDescriptor_t __wrap_dnn_plan(const struct cuda_dnn *on, cudnnBackendDescriptor_t graph,
                                         cudnnDataType_t type, bool slow, int64_t *workspace);

cudnnBackendDescriptor_t __wrap_dnn_plan(const struct cuda_dnn *on, cudnnBackendDescriptor_t graph,
                                         cudnnDataType_t type, bool slow, int64_t *workspace)
{
    chosen.tries++;
    return chosen.plan = __real_dnn_plan(on, graph, type, slow, workspace);
}

/* Of a plan's engine. */
struct engine {
    bool known;
    int64_t index;
    unsigned numerical, behavior; /* a bit for each note */
};

static bool get(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                cudnnBackendAttributeType_t type, int64_t most, int64_t *n, void *to)
{
    return cudnnBackendGetAttribute(d, name, type, most, n, to) == CUDNN_STATUS_SUCCESS;
}

static bool notes_of(cudnnBackendDescriptor_t engine, cudnnBackendAttributeName_t name,
                     cudnnBackendAttributeType_t type, unsigned *bits)
{
    int note[32];
    int64_t n = 0;
    if (!get(engine, name, type, 32, &n, note))
        return false;
    for (int64_t i = 0; i < n && i < 32; i++)
        *bits |= 1u << note[i];
    return true;
}

static struct engine engine_of(cudnnBackendDescriptor_t plan)
{
    struct dnn_build b = dnn_begin();
    struct engine e = {.index = -1};
    int64_t n = 0;
    cudnnBackendDescriptor_t config = dnn_make(&b, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR),
                             engine = dnn_make(&b, CUDNN_BACKEND_ENGINE_DESCRIPTOR);
    e.known =
        engine &&
        get(plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n,
            &config) &&
        get(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &n, &engine) &&
        get(engine, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &n, &e.index) &&
        notes_of(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                 &e.numerical) &&
        notes_of(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE, &e.behavior);
    dnn_end(&b);
    return e;
}

/* ---- checks ---------------------------------------------------------------------------------- */

/* What is wrong with a plan, or NULL. */
static const char *wrong(const struct asked *a, const struct conv_shape *s, const struct conv *p,
                         const struct engine *e)
{
    const unsigned tensor_core = 1u << CUDNN_NUMERICAL_NOTE_TENSOR_CORE,
                   never = 1u << CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC |
                           1u << CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS |
                           1u << CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION |
                           1u << CUDNN_NUMERICAL_NOTE_FFT | 1u << CUDNN_NUMERICAL_NOTE_WINOGRAD;
    bool narrow = a->cuda.type != DT_F32,
         aligned = narrow && s->align == 16 && s->in % 8 == 0 && s->out % 8 == 0,
         large = aligned && s->in >= 32 && s->out >= 32; /* a few channels may be quicker without */
    bool compiled = strstr(conv_kind(p), "compiled") ||
                    e->behavior & 1u << CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
    return !e->known                                         ? "its engine is not told"
           : e->numerical & never                            ? "not exact, or not always the same"
           : !narrow && e->numerical & tensor_core           ? "float32 as TF32"
           : narrow && compiled                              ? "compiled at run time"
           : conv_has_bias(p) && (!s->bias || s->accumulate) ? "a bias that is not its own"
           : aligned && s->bias && !s->accumulate && !conv_has_bias(p) ? "without its bias"
           : large && !(e->numerical & tensor_core)                    ? "without tensor cores"
                                                                       : NULL;
}

/* A line: the shape, what is wrong with its plan, the plan. */
static void tell(const struct asked *a, const struct conv_shape *s, const char *why,
                 const struct conv *p, const struct engine *e)
{
    printf("  %s%s %s, %s: %dx%d, %d to %d, of [%d, %d, %d]", why ? "FAILED " : "", a->chip,
           dtype_name(a->cuda.type), a->of, s->kh, s->kw, s->in, s->out, s->n, s->h, s->w);
    printf(", stride %d, padding %d%s%s%s, align %d", s->stride, s->pad_h, s->bias ? ", bias" : "",
           s->back ? ", back" : "", s->accumulate ? ", added" : "", s->align);
    if (why)
        printf(": %s", why);
    if (p)
        printf(": %s, engine %lld, workspace %zu", conv_kind(p), (long long)e->index,
               conv_workspace(p));
    printf("\n");
}

void ask(struct asked *a, const struct conv_shape *s)
{
    struct err err;
    memset(&chosen, 0, sizeof chosen);
    const struct conv *p = conv_plan(&a->dev, s, &err);
    if (p && !chosen.tries)
        return;
    struct engine e = p ? engine_of(chosen.plan) : (struct engine){0};
    const char *why = p ? wrong(a, s, p, &e) : err.msg;
    if (verbose || (why && a->failed < TOLD_MOST))
        tell(a, s, why, p, &e);
    a->passed += !why;
    a->failed += why != NULL;
    if (p && strstr(conv_kind(p), "compiled"))
        a->n_compiled++;
    else if (p)
        *(conv_has_bias(p) ? &a->n_bias : &a->n_plain) += 1;
}

/* ---- the program ----------------------------------------------------------------------------- */

/* Never called: nothing is run. */
int cuda_push(struct device *dev, cuda_go *go, const void *args, size_t n_args, const void *params,
              size_t n_params, struct err *err)
{
    (void)dev, (void)go, (void)args, (void)n_args, (void)params, (void)n_params, (void)err;
    abort();
}

void *cuda_scratch(struct device *dev, size_t bytes)
{
    (void)dev, (void)bytes;
    abort();
}

int cuda_short(struct device *dev, size_t bytes, struct err *err)
{
    (void)dev, (void)bytes, (void)err;
    abort();
}

void fused_free_all(struct cuda_dnn *d)
{
    (void)d;
}

/* cuDNN wants all of these fields. NULL: it does not take them. */
static cudnnBackendDescriptor_t describe(struct dnn_build *b, const struct chip *c)
{
    char json[1024];
    int n = snprintf(
        json, sizeof json,
        "{\"cudaDeviceId\":0,\"pciDeviceId\":0,\"driverVer\":13000,\"isTccDriver\":0,"
        "\"deviceName\":\"%s\",\"deviceVer\":%d,\"multiProcessorCount\":%d,"
        "\"maxThreadsPerSM\":%d,\"maxCtasPerSM\":%d,\"maxSharedMemoryPerBlockOptin\":%d,"
        "\"l2CacheSize\":%d,\"smClockRateKHz\":%d,\"memClockRateKHz\":%d,\"totalGlobalMem\":%lld,"
        "\"maxSharedMemoryPerBlock\":49152,\"reservedSharedMemoryPerBlock\":1024,"
        "\"maxThreadsPerBlock\":1024,\"maxBlockSize\":[1024,1024,64],"
        "\"maxGridSize\":[2147483647,65535,65535],\"maxRegistersPerSM\":65536,"
        "\"regsPerBlock\":65536,\"supportCoopLaunch\":1,\"warpSize\":32}",
        c->name, c->version, c->processors, c->threads_most, c->blocks_most, c->shared_most, c->l2,
        c->clock, c->memory_clock, (long long)c->memory);
    cudnnBackendDescriptor_t d = dnn_make(b, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
    dnn_set(b, d, CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, n + 1, json);
    dnn_finalize(b, d);
    return b->rc == CUDNN_STATUS_SUCCESS ? d : NULL;
}

/* All of it for a chip and a type; adds to what passed and failed. */
static void ask_chip(const struct chip *chip, cudnnBackendDescriptor_t described, enum dtype type,
                     int sum[2])
{
    struct asked a = {.chip = chip->name,
                      .dev = {.value_size = type == DT_F32 ? 4 : 2},
                      .cuda = {.type = type},
                      .dnn = {.chip = described}};
    a.dev.impl = &a.cuda;
    a.cuda.dnn = &a.dnn;
    ask_networks(&a);
    ask_odd_shapes(&a);
    conv_free_all(&a.dnn);
    printf("%-9s %-5s %4d passed, kinds: %d with bias, %d without, %d compiled", chip->name,
           dtype_name(type), a.passed, a.n_bias, a.n_plain, a.n_compiled);
    printf(a.failed ? ", %d FAILED\n" : "\n", a.failed);
    fflush(stdout);
    sum[0] += a.passed;
    sum[1] += a.failed;
}

int main(int n, char **arg)
{
    static const enum dtype types[] = {DT_F16, DT_BF16, DT_F32};
    int sum[2] = {0, 0};
    verbose = n > 1 && !strcmp(arg[1], "-v");
    if (cudnnGetVersion() < 90800) {
        printf("skipped: cuDNN %zu, of 9.8 on it can be asked\n", cudnnGetVersion());
        return 0;
    }
    for (size_t i = 0; i < sizeof chips / sizeof *chips; i++) {
        struct dnn_build b = dnn_begin();
        cudnnBackendDescriptor_t d = describe(&b, &chips[i]);
        if (!d)
            printf("skipped: cuDNN %zu takes no %s that is only described: %s\n", cudnnGetVersion(),
                   chips[i].name, cudnnGetErrorString(b.rc));
        for (size_t t = 0; t < sizeof types / sizeof *types && d; t++)
            ask_chip(&chips[i], d, types[t], sum);
        dnn_end(&b);
    }
    printf("%d passed, %d failed\n", sum[0], sum[1]);
    return sum[1] > 0;
}
