/* cudnn.cpp: convolutions, sums and attention as cuDNN's graph API describes them (cudnn.h). What contradicts NVIDIA's documentation
 * aborts; what an engine may refuse is CUDNN_STATUS_NOT_SUPPORTED. Sums are exact to about a float, virtual tensors are floats.
 * The engines are made up to be a trial to who chooses among them:
 *   0  with tensor cores: floats lose all but 10 bits of their mantissa, as in TF32; at times with a workspace
 *   1  no plan of it can be finalized
 *   2  not deterministic: its results differ from one time to the next
 *   3  wants a workspace, which it leaves dirty
 *   4  (fallback only) has no faults
 * There is none of them for graphs of several nodes whose channels are no multiples of 16 bytes, for paddings that differ
 * before and after, or with WEFT_EMULATE_NO_FUSION=1 for any graph of several nodes.
 */
#include "graphs.h"

using namespace dnn;

struct cudnnContext {
    cudaStream_t stream;
};

namespace {

std::map<void *, link> known;
std::set<cudnnHandle_t> handles;

/* ---- attributes -------------------------------------------------------------------------------- */

enum { MANY = 1 << 20 };

/* An attribute that can be set: of which types, how many elements at most, and whether it has to be. */
struct rule {
    int of, attr, type, or_type;
    int64_t most;
    bool needed;
    std::set<int> links_to; /* types of descriptors */
};

rule one(int of, int attr, int type, bool needed = true)
{
    return {of, attr, type, type, 1, needed, {}};
}
rule some(int of, int attr, int type, int64_t most = CUDNN_DIM_MAX)
{
    return {of, attr, type, type, most, true, {}};
}
rule scale(int of, int attr, bool needed)
{
    return {of, attr, CUDNN_TYPE_FLOAT, CUDNN_TYPE_DOUBLE, 1, needed, {}};
}
rule links(int of, int attr, std::set<int> to, int64_t most = 1)
{
    return {of, attr, CUDNN_TYPE_BACKEND_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR, most, true, to};
}

const rule rules[] = {
    one(T, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64),
    one(T, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE),
    one(T, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64),
    some(T, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64),
    some(T, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64),
    one(T, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, false),
    one(T, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, false),
    one(C, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE),
    one(C, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE),
    some(C, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64),
    some(C, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64),
    some(C, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64),
    some(C, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64),
    one(C, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64),
    one(P, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE),
    one(P, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE),
    links(F, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, {C}),
    links(F, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X, {T}),
    links(F, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, {T}),
    links(F, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y, {T}),
    scale(F, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, true),
    scale(F, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA, true),
    links(B, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, {C}),
    links(B, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX, {T}),
    links(B, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, {T}),
    links(B, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY, {T}),
    scale(B, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, true),
    scale(B, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA, true),
    links(S, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, {P}),
    links(S, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, {T}),
    links(S, CUDNN_ATTR_OPERATION_POINTWISE_BDESC, {T}),
    links(S, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, {T}),
    scale(S, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA1, false),
    scale(S, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA2, false),
    links(A, CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, {T}),
    links(A, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC, {T}),
    links(A, CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, {T}),
    links(A, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC, {T}),
    links(A, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC, {T}),
    one(G, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE),
    links(G, CUDNN_ATTR_OPERATIONGRAPH_OPS, {F, B, S, A}, MANY),
    links(H, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, {G}),
    one(H, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE),
    links(E, CUDNN_ATTR_ENGINE_OPERATION_GRAPH, {G}),
    one(E, CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64),
    links(K, CUDNN_ATTR_ENGINECFG_ENGINE, {E}),
    one(X, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_TYPE_HANDLE, false),
    links(X, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, {K}),
    some(V, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, MANY),
    some(V, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, MANY),
    one(V, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, false),
};

size_t size_of(int type)
{
    switch (type) {
    case CUDNN_TYPE_BOOLEAN: return sizeof(bool);
    case CUDNN_TYPE_HANDLE:
    case CUDNN_TYPE_INT64:
    case CUDNN_TYPE_DOUBLE:
    case CUDNN_TYPE_VOID_PTR:
    case CUDNN_TYPE_BACKEND_DESCRIPTOR: return 8;
    default: return 4;
    }
}

link here(void *d)
{
    auto x = known.find(d);
    if (x == known.end())
        emulator_fail("cudnn: no such descriptor: %p", d);
    return x->second;
}

void set_attribute(descriptor *d, int attr, int type, int64_t n, const void *v)
{
    const rule *r = std::find_if(std::begin(rules), std::end(rules),
                                 [=](const rule &x) { return x.of == d->type && x.attr == attr; });
    if (r == std::end(rules))
        emulator_fail(
            "cudnn: descriptor %d has no attribute %d that could be set, or that is emulated",
            d->type, attr);
    if (d->final)
        emulator_fail("cudnn: attribute %d is set after finalization", attr);
    if ((type != r->type && type != r->or_type) || n < 1 || n > r->most || !v)
        emulator_fail("cudnn: attribute %d is not %lld of type %d", attr, (long long)n, type);
    value x = {type, n, {}, {}};
    x.bytes.assign((const char *)v, (const char *)v + (size_t)n * size_of(type));
    for (int64_t i = 0; type == CUDNN_TYPE_BACKEND_DESCRIPTOR && i < n; i++) {
        link to = here(((void *const *)v)[i]);
        if (!to->final || !r->links_to.count(to->type))
            emulator_fail("cudnn: attribute %d is given a descriptor of type %d%s", attr, to->type,
                          to->final ? "" : " that is not finalized");
        x.links.push_back(to);
    }
    if (type == CUDNN_TYPE_HANDLE && !handles.count(*(const cudnnHandle_t *)v))
        emulator_fail("cudnn: attribute %d is not a handle", attr);
    d->set[attr] = x;
}

/* ---- engines ----------------------------------------------------------------------------------- */

bool has_engines(const graph &g)
{
    for (const operation &o : g.ops) {
        bool floats = o.out.type == CUDNN_DATA_FLOAT, alone = g.ops.size() == 1;
        if (o.before != o.after || (!alone && emulator_setting("WEFT_EMULATE_NO_FUSION", 0)))
            return false;
        if (o.kind == A && (floats || !alone || o.in[0].dims[3] % 8 != 0 || o.in[0].dims[3] > 256 ||
                            o.out.dims[3] % 8 != 0 || o.out.dims[3] > 256))
            return false;
        for (const tensor &t : o.all()) {
            if (!alone && (t.dims.size() < 2 || t.dims[1] % (floats ? 4 : 8) != 0))
                return false;
        }
    }
    return true;
}

std::vector<int> engines_for(const graph &g, int mode)
{
    if (!has_engines(g))
        return {};
    if (mode == CUDNN_HEUR_MODE_FALLBACK)
        return {FAULTLESS};
    return {TENSOR_CORES, BROKEN, UNSTEADY, HUNGRY};
}

int64_t workspace_of(const descriptor &d)
{
    int64_t n = (int64_t)d.of->tensors.begin()->second.count();
    return d.engine == HUNGRY || (d.engine == TENSOR_CORES && n % 3 == 0) ? 4096 + n % 1000 * 16
                                                                          : 0;
}

std::vector<int> notes_of(const descriptor &d)
{
    bool floats = d.of->ops[0].in[0].type == CUDNN_DATA_FLOAT;
    std::vector<int> notes;
    if (d.engine == TENSOR_CORES || !floats)
        notes.push_back(CUDNN_NUMERICAL_NOTE_TENSOR_CORE);
    if (d.engine == UNSTEADY)
        notes.push_back(CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC);
    return notes;
}

cudnnStatus_t finalize(descriptor *d)
{
    if (d->final)
        emulator_fail("cudnn: a descriptor of type %d is finalized twice", d->type);
    for (const rule &r : rules) {
        if (r.of == d->type && r.needed && !d->set.count(r.attr))
            emulator_fail("cudnn: descriptor %d is finalized without attribute %d", d->type,
                          r.attr);
    }
    switch (d->type) {
    case T: check_tensor(*d); break;
    case C: check_convolution(*d); break;
    case P:
        if (get<int>(*d, CUDNN_ATTR_POINTWISE_MODE) != CUDNN_POINTWISE_ADD ||
            get<int>(*d, CUDNN_ATTR_POINTWISE_MATH_PREC) != CUDNN_DATA_FLOAT)
            emulator_fail("cudnn: only sums of floats are emulated");
        break;
    case F:
    case B:
    case S:
    case A: operation_of(*d); break;
    case G: {
        cudnnStatus_t rc = build_graph(d);
        if (rc != CUDNN_STATUS_SUCCESS)
            return rc;
        break;
    }
    case H: d->of = get_link(*d, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH).of; break;
    case E:
        d->of = get_link(*d, CUDNN_ATTR_ENGINE_OPERATION_GRAPH).of;
        d->engine = (int)get<int64_t>(*d, CUDNN_ATTR_ENGINE_GLOBAL_INDEX);
        if (d->engine < 0 || d->engine >= ENGINES)
            emulator_fail("cudnn: there is no engine %d", d->engine);
        if (!has_engines(*d->of))
            return CUDNN_STATUS_NOT_SUPPORTED;
        break;
    case K:
        d->of = get_link(*d, CUDNN_ATTR_ENGINECFG_ENGINE).of;
        d->engine = get_link(*d, CUDNN_ATTR_ENGINECFG_ENGINE).engine;
        break;
    case X:
        d->of = get_link(*d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).of;
        d->engine = get_link(*d, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG).engine;
        if (d->engine == BROKEN)
            return CUDNN_STATUS_NOT_SUPPORTED;
        break;
    case V: {
        if (d->set[CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS].n !=
            d->set[CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS].n)
            emulator_fail("cudnn: a pack has not as many ids as pointers");
        ints ids = get_ints(*d, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
        if (std::set<int64_t>(ids.begin(), ids.end()).size() != ids.size())
            emulator_fail("cudnn: a pack has an id twice");
        break;
    }
    }
    d->final = true;
    return CUDNN_STATUS_SUCCESS;
}

/* What a finalized descriptor answers; results that are descriptors have to be there, and become what they stand for. */
void get_attribute(descriptor *d, int attr, int type, int64_t most, int64_t *n, void *v)
{
    std::vector<char> bytes;
    int is = -1;
    auto add = [&](const void *p, size_t size) {
        bytes.insert(bytes.end(), (const char *)p, (const char *)p + size);
    };
    int64_t count = 0;
    std::vector<int> engines;
    if (d->type == H && attr == CUDNN_ATTR_ENGINEHEUR_RESULTS) {
        is = CUDNN_TYPE_BACKEND_DESCRIPTOR;
        engines = engines_for(*d->of, get<int>(*d, CUDNN_ATTR_ENGINEHEUR_MODE));
    } else if (d->type == K && attr == CUDNN_ATTR_ENGINECFG_ENGINE) {
        is = CUDNN_TYPE_BACKEND_DESCRIPTOR;
        engines = {d->engine};
    } else if (d->type == E && attr == CUDNN_ATTR_ENGINE_NUMERICAL_NOTE) {
        is = CUDNN_TYPE_NUMERICAL_NOTE;
        for (int note : notes_of(*d))
            add(&note, sizeof note);
    } else if (d->type == E && attr == CUDNN_ATTR_ENGINE_BEHAVIOR_NOTE) {
        is = CUDNN_TYPE_BEHAVIOR_NOTE;
        int note = CUDNN_BEHAVIOR_NOTE_RUNTIME_COMPILATION;
        if ((d->of->ops.size() > 1 && d->engine != HUNGRY) || d->of->ops[0].kind == A)
            add(&note, sizeof note);
    } else if (d->type == E && attr == CUDNN_ATTR_ENGINE_GLOBAL_INDEX) {
        is = CUDNN_TYPE_INT64;
        int64_t index = d->engine;
        add(&index, sizeof index);
    } else if (d->type == G && attr == CUDNN_ATTR_OPERATIONGRAPH_ENGINE_GLOBAL_COUNT) {
        is = CUDNN_TYPE_INT64;
        int64_t all = has_engines(*d->of) ? ENGINES : 0;
        add(&all, sizeof all);
    } else if (d->type == X && attr == CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE) {
        is = CUDNN_TYPE_INT64;
        int64_t size = workspace_of(*d);
        add(&size, sizeof size);
    } else if (d->set.count(attr) && d->set[attr].links.empty()) {
        is = d->set[attr].type;
        bytes = d->set[attr].bytes;
    } else {
        emulator_fail("cudnn: attribute %d of a descriptor of type %d cannot be asked for", attr,
                      d->type);
    }
    if (!d->final)
        emulator_fail("cudnn: attribute %d is asked for before finalization", attr);
    if (type != is || most < 0 || (most > 0 && !v))
        emulator_fail("cudnn: attribute %d is asked for as %lld of type %d", attr, (long long)most,
                      type);
    count = engines.empty() ? (int64_t)(bytes.size() / size_of(is)) : (int64_t)engines.size();
    for (int64_t i = 0; i < std::min(most, (int64_t)engines.size()); i++) {
        link to = here(((void **)v)[i]);
        if (to->type != (d->type == H ? (int)K : (int)E) || to->final || !to->set.empty())
            emulator_fail("cudnn: result %lld has to be a fresh descriptor of its type",
                          (long long)i);
        to->of = d->of;
        to->engine = engines[(size_t)i];
        to->final = true;
    }
    if (!bytes.empty() && most > 0)
        memcpy(v, bytes.data(), std::min((size_t)most * size_of(is), bytes.size()));
    if (n) /* all that there are, perhaps more than were asked for */
        *n = count;
}

} // namespace

size_t cudnnGetVersion(void)
{
    return CUDNN_VERSION;
}

size_t cudnnGetCudartVersion(void)
{
    return CUDART_VERSION;
}

const char *cudnnGetErrorString(cudnnStatus_t rc)
{
    switch (rc) {
    case CUDNN_STATUS_SUCCESS: return "CUDNN_STATUS_SUCCESS";
    case CUDNN_STATUS_NOT_INITIALIZED: return "CUDNN_STATUS_NOT_INITIALIZED";
    case CUDNN_STATUS_NOT_SUPPORTED: return "CUDNN_STATUS_NOT_SUPPORTED";
    case CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN:
        return "CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN";
    case CUDNN_STATUS_EXECUTION_FAILED: return "CUDNN_STATUS_EXECUTION_FAILED";
    default: return "CUDNN_STATUS_INTERNAL_ERROR";
    }
}

void cudnnGetLastErrorString(char *text, size_t size)
{
    if (size)
        strncpy(text, "emulated", size - 1)[size - 1] = 0;
}

cudnnStatus_t cudnnCreate(cudnnHandle_t *h)
{
    emulator_locked hold;
    *h = NULL;
    if (emulator_absent())
        return CUDNN_STATUS_NOT_INITIALIZED;
    if (emulator_refused())
        return CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    *h = new cudnnContext();
    handles.insert(*h);
    return CUDNN_STATUS_SUCCESS;
}

static cudnnHandle_t handle_here(cudnnHandle_t h)
{
    if (!handles.count(h))
        emulator_fail("cudnn: no such handle: %p", (void *)h);
    return h;
}

cudnnStatus_t cudnnDestroy(cudnnHandle_t h)
{
    emulator_locked hold;
    handles.erase(handle_here(h));
    delete h;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnSetStream(cudnnHandle_t h, cudaStream_t s)
{
    emulator_locked hold;
    emulator_capturing(s);
    handle_here(h)->stream = s;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnGetStream(cudnnHandle_t h, cudaStream_t *s)
{
    emulator_locked hold;
    *s = handle_here(h)->stream;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendCreateDescriptor(cudnnBackendDescriptorType_t type,
                                           cudnnBackendDescriptor_t *d)
{
    emulator_locked hold;
    *d = NULL;
    if (emulator_refused())
        return CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED;
    link x = std::make_shared<descriptor>();
    x->type = type;
    *d = x.get();
    known[*d] = x;
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendDestroyDescriptor(cudnnBackendDescriptor_t d)
{
    emulator_locked hold;
    known.erase(here(d).get());
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendSetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t attr,
                                       cudnnBackendAttributeType_t type, int64_t n, const void *v)
{
    emulator_locked hold;
    set_attribute(here(d).get(), attr, type, n, v);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendGetAttribute(cudnnBackendDescriptor_t d, cudnnBackendAttributeName_t attr,
                                       cudnnBackendAttributeType_t type, int64_t most, int64_t *n,
                                       void *v)
{
    emulator_locked hold;
    get_attribute(here(d).get(), attr, type, most, n, v);
    return CUDNN_STATUS_SUCCESS;
}

cudnnStatus_t cudnnBackendFinalize(cudnnBackendDescriptor_t d)
{
    emulator_locked hold;
    return finalize(here(d).get());
}

cudnnStatus_t cudnnBackendExecute(cudnnHandle_t h, cudnnBackendDescriptor_t plan,
                                  cudnnBackendDescriptor_t pack)
{
    emulator_locked hold;
    link p = here(plan), v = here(pack);
    handle_here(h);
    if (p->type != X || v->type != V || !p->final || !v->final)
        emulator_fail("cudnnBackendExecute wants a finalized plan and a finalized pack");
    if (p->of->handle != h)
        emulator_fail("cudnnBackendExecute: the plan is of another handle");
    run r = {p->of, p->engine, {}, {}, NULL, (size_t)workspace_of(*p), h->stream};
    ints ids = get_ints(*v, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS);
    for (size_t i = 0; i < ids.size(); i++) {
        if (!r.of->tensors.count(ids[i]))
            emulator_fail("cudnnBackendExecute: the graph has no tensor %lld", (long long)ids[i]);
        r.at[ids[i]] =
            ((void *const *)v->set[CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS].bytes.data())[i];
    }
    for (const auto &x : r.of->tensors) {
        if (!x.second.by_value)
            continue;
        if (!r.at.count(x.first) || !r.at[x.first] || emulator_is_device_range(r.at[x.first]))
            emulator_fail("cudnnBackendExecute: tensor %lld by value has no host memory",
                          (long long)x.first);
        const char *from = (const char *)r.at[x.first];
        r.values[x.first].assign(from, from + x.second.extent());
    }
    if (v->set.count(CUDNN_ATTR_VARIANT_PACK_WORKSPACE))
        r.workspace = get<void *>(*v, CUDNN_ATTR_VARIANT_PACK_WORKSPACE);
    check_pointers(r);
    cudaError_t rc = emulator_do(r.stream, [r] {
        check_pointers(r);
        execute(r);
    });
    return rc == cudaSuccess ? CUDNN_STATUS_SUCCESS : CUDNN_STATUS_EXECUTION_FAILED;
}
