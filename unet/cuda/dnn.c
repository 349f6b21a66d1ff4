/* cuDNN: its handle, descriptors, and the choice of engines. */
#include "dnn.h"

#include <stdlib.h>

/* What an engine may use while it works. In float32, where tensor cores are out, the quick ones for an autoencoder's
 * pictures ask for more than 256 MiB. */
static int64_t workspace_most(cudnnDataType_t type)
{
    return (int64_t)(type == CUDNN_DATA_FLOAT ? 1024 : 256) << 20;
}

enum { CONFIGS_MOST = 64, NOTES_MOST = 32 };

static int failed(struct err *err, const char *what, cudnnStatus_t rc)
{
    char why[400] = "";
    if (rc == CUDNN_STATUS_SUCCESS)
        return 0;
    cudnnGetLastErrorString(why, sizeof why);
    return err_set(err, ERR_IO, "cuDNN: %s: %s%s%s", what, cudnnGetErrorString(rc),
                   *why ? ": " : "", why);
}

int cuda_dnn_open(struct cuda_dnn **out, struct cuda *c, struct err *err)
{
    *out = calloc(1, sizeof **out);
    if (!*out)
        return err_nomem(err, sizeof **out);
    int rc = failed(err, "it does not start", cudnnCreate(&(*out)->handle));
    return rc < 0 ? rc : failed(err, "no stream", cudnnSetStream((*out)->handle, c->stream));
}

void cuda_dnn_close(struct cuda_dnn *d)
{
    if (!d)
        return;
    conv_free_all(d);
    fused_free_all(d);
    if (d->handle)
        cudnnDestroy(d->handle);
    free(d);
}

/* ---- descriptors ----------------------------------------------------------------------------- */

struct dnn_build dnn_begin(void)
{
    return (struct dnn_build){.rc = CUDNN_STATUS_SUCCESS};
}

void dnn_end(struct dnn_build *b)
{
    while (b->n > 0)
        cudnnBackendDestroyDescriptor(b->made[--b->n]);
}

cudnnBackendDescriptor_t dnn_make(struct dnn_build *b, cudnnBackendDescriptorType_t what)
{
    cudnnBackendDescriptor_t d = NULL;
    if (b->rc == CUDNN_STATUS_SUCCESS)
        b->rc = cudnnBackendCreateDescriptor(what, &d);
    if (d)
        b->made[b->n++] = d;
    return d;
}

void dnn_set(struct dnn_build *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
             cudnnBackendAttributeType_t type, int64_t n, const void *values)
{
    if (b->rc == CUDNN_STATUS_SUCCESS)
        b->rc = cudnnBackendSetAttribute(d, name, type, n, values);
}

void dnn_set_desc(struct dnn_build *b, cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t name,
                  cudnnBackendDescriptor_t value)
{
    dnn_set(b, d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &value);
}

void dnn_finalize(struct dnn_build *b, cudnnBackendDescriptor_t d)
{
    if (b->rc == CUDNN_STATUS_SUCCESS)
        b->rc = cudnnBackendFinalize(d);
}

cudnnBackendDescriptor_t dnn_tensor(struct dnn_build *b, int64_t uid, const int64_t dim[4],
                                    const int64_t stride[4], cudnnDataType_t type, int align,
                                    enum dnn_place place)
{
    const int64_t bytes = align;
    const bool is_virtual = place == DNN_VIRTUAL, by_value = place == DNN_HOST;
    cudnnBackendDescriptor_t d = dnn_make(b, CUDNN_BACKEND_TENSOR_DESCRIPTOR);
    dnn_set(b, d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type);
    dnn_set(b, d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, 4, dim);
    dnn_set(b, d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, 4, stride);
    dnn_set(b, d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &uid);
    dnn_set(b, d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &bytes);
    dnn_set(b, d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &is_virtual);
    dnn_set(b, d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &by_value);
    dnn_finalize(b, d);
    return d;
}

cudnnBackendDescriptor_t dnn_graph(struct dnn_build *b, const struct cuda_dnn *on,
                                   const cudnnBackendDescriptor_t *op, int n)
{
    cudnnBackendDescriptor_t d = dnn_make(b, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR);
    if (on->handle)
        dnn_set(b, d, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &on->handle);
    dnn_set(b, d, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, n, op);
    dnn_finalize(b, d);
    return d;
}

cudnnDataType_t dnn_type(enum dtype t)
{
    return t == DT_F16 ? CUDNN_DATA_HALF : t == DT_BF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}

/* ---- engines --------------------------------------------------------------------------------- */

static bool has_note(cudnnBackendDescriptor_t engine, cudnnBackendAttributeName_t name,
                     cudnnBackendAttributeType_t type, int note)
{
    int notes[NOTES_MOST]; /* enumerations, all of them */
    int64_t n = 0;
    if (cudnnBackendGetAttribute(engine, name, type, NOTES_MOST, &n, notes) != CUDNN_STATUS_SUCCESS)
        return true; /* who knows */
    bool has = false;
    for (int64_t i = 0; i < n && i < NOTES_MOST; i++)
        has = has || notes[i] == note;
    return has;
}

/* The same bits each time, sums of float32, and float32 never as TF32; compiled beforehand unless `slow`. */
static bool is_fit(cudnnBackendDescriptor_t config, cudnnDataType_t type, bool slow)
{
    static const cudnnBackendNumericalNote_t never[] = {
        CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC, CUDNN_NUMERICAL_NOTE_DOWN_CONVERT_INPUTS,
        CUDNN_NUMERICAL_NOTE_REDUCED_PRECISION_REDUCTION, CUDNN_NUMERICAL_NOTE_FFT,
        CUDNN_NUMERICAL_NOTE_WINOGRAD};
    cudnnBackendDescriptor_t engine = NULL;
    int64_t n = 0;
    bool fit =
        cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINE_DESCRIPTOR, &engine) ==
            CUDNN_STATUS_SUCCESS &&
        cudnnBackendGetAttribute(config, CUDNN_ATTR_ENGINECFG_ENGINE, CUDNN_TYPE_BACKEND_DESCRIPTOR,
                                 1, &n, &engine) == CUDNN_STATUS_SUCCESS;
    for (size_t i = 0; i < sizeof never / sizeof *never && fit; i++)
        fit = !has_note(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                        never[i]);
    if (fit && type == CUDNN_DATA_FLOAT)
        fit = !has_note(engine, CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                        CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
    if (fit && !slow)
        fit = !has_note(engine, CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE, CUDNN_TYPE_BEHAVIOR_NOTE,
                        CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION);
    if (engine)
        cudnnBackendDestroyDescriptor(engine);
    return fit;
}

/* A plan of that configuration, or NULL. */
static cudnnBackendDescriptor_t plan_of(const struct cuda_dnn *on, cudnnBackendDescriptor_t config,
                                        cudnnDataType_t type, int64_t *workspace)
{
    struct dnn_build b = dnn_begin();
    int64_t n = 0;
    cudnnBackendDescriptor_t d = dnn_make(&b, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR);
    if (on->handle)
        dnn_set(&b, d, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, 1, &on->handle);
    else
        dnn_set_desc(&b, d, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, on->chip);
    dnn_set_desc(&b, d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, config);
    dnn_finalize(&b, d);
    if (b.rc == CUDNN_STATUS_SUCCESS)
        b.rc = cudnnBackendGetAttribute(d, CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                        CUDNN_TYPE_INT64, 1, &n, workspace);
    if (b.rc == CUDNN_STATUS_SUCCESS && *workspace <= workspace_most(type))
        return d;
    dnn_end(&b);
    return NULL;
}

/* The first fit of what heuristics propose in their order of speed. */
static cudnnBackendDescriptor_t first_fit(const struct cuda_dnn *on, cudnnBackendDescriptor_t graph,
                                          cudnnBackendHeurMode_t mode, cudnnDataType_t type,
                                          bool slow, int64_t *workspace)
{
    struct dnn_build b = dnn_begin();
    cudnnBackendDescriptor_t config[CONFIGS_MOST], plan = NULL;
    int64_t n = 0;
    int made = 0;
    cudnnBackendDescriptor_t d = dnn_make(&b, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR);
    dnn_set_desc(&b, d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, graph);
    dnn_set(&b, d, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode);
    if (!on->handle)
        dnn_set_desc(&b, d, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, on->chip);
    dnn_finalize(&b, d);
    while (made < CONFIGS_MOST && b.rc == CUDNN_STATUS_SUCCESS) {
        b.rc = cudnnBackendCreateDescriptor(CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, &config[made]);
        made += b.rc == CUDNN_STATUS_SUCCESS;
    }
    if (b.rc == CUDNN_STATUS_SUCCESS)
        b.rc = cudnnBackendGetAttribute(d, CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                        CUDNN_TYPE_BACKEND_DESCRIPTOR, CONFIGS_MOST, &n, config);
    for (int64_t i = 0; i < n && i < made && !plan && b.rc == CUDNN_STATUS_SUCCESS; i++)
        if (is_fit(config[i], type, slow))
            plan = plan_of(on, config[i], type, workspace);
    while (made > 0)
        cudnnBackendDestroyDescriptor(config[--made]);
    dnn_end(&b);
    return plan;
}

cudnnBackendDescriptor_t dnn_plan(const struct cuda_dnn *on, cudnnBackendDescriptor_t graph,
                                  cudnnDataType_t type, bool slow, int64_t *workspace)
{
    cudnnBackendDescriptor_t plan = first_fit(on, graph, CUDNN_HEUR_MODE_A, type, slow, workspace);
    return plan ? plan : first_fit(on, graph, CUDNN_HEUR_MODE_FALLBACK, type, slow, workspace);
}

int dnn_run(struct cuda *c, cudnnBackendDescriptor_t plan, int n, const int64_t *uid,
            void *const *at, void *workspace, const char *what)
{
    struct dnn_build b = dnn_begin();
    cudnnBackendDescriptor_t d = dnn_make(&b, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR);
    dnn_set(&b, d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, n, uid);
    dnn_set(&b, d, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, n, at);
    dnn_set(&b, d, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace);
    dnn_finalize(&b, d);
    if (b.rc == CUDNN_STATUS_SUCCESS)
        b.rc = cudnnBackendExecute(c->dnn->handle, plan, d);
    dnn_end(&b);
    return c->broken.code ? c->broken.code : failed(&c->broken, what, b.rc);
}
