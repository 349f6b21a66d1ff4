/* describe.cpp: what cuDNN's descriptors describe: tensors, operations, graphs. */
#include "graphs.h"

namespace dnn {

static tensor tensor_of(const descriptor &d)
{
    tensor t;
    t.uid = get<int64_t>(d, CUDNN_ATTR_TENSOR_UNIQUE_ID);
    t.align = get<int64_t>(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT);
    t.type = get<int>(d, CUDNN_ATTR_TENSOR_DATA_TYPE);
    t.is_virtual =
        d.set.count(CUDNN_ATTR_TENSOR_IS_VIRTUAL) && get<bool>(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL);
    t.by_value =
        d.set.count(CUDNN_ATTR_TENSOR_IS_BY_VALUE) && get<bool>(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE);
    t.dims = get_ints(d, CUDNN_ATTR_TENSOR_DIMENSIONS);
    t.strides = get_ints(d, CUDNN_ATTR_TENSOR_STRIDES);
    return t;
}

void check_tensor(const descriptor &d)
{
    tensor t = tensor_of(d);
    long long uid = t.uid;
    if (t.type != CUDNN_DATA_FLOAT && t.type != CUDNN_DATA_HALF && t.type != CUDNN_DATA_BFLOAT16)
        emulator_fail("cudnn: tensor %lld is of type %d, which is not emulated", uid, t.type);
    if (t.align < (t.type == CUDNN_DATA_FLOAT ? 4 : 2) || (t.align & (t.align - 1)) != 0)
        emulator_fail("cudnn: tensor %lld is aligned to %lld bytes", uid, (long long)t.align);
    if (t.by_value && (t.is_virtual || t.count() != 1))
        emulator_fail("cudnn: tensor %lld by value is virtual or has many values", uid);
    if (t.dims.size() != t.strides.size())
        emulator_fail("cudnn: tensor %lld has %zu dimensions and %zu strides", uid, t.dims.size(),
                      t.strides.size());
    for (size_t i = 0; i < t.dims.size(); i++) {
        if (t.dims[i] < 1 || t.strides[i] < 1)
            emulator_fail("cudnn: tensor %lld has a dimension of %lld with a stride of %lld", uid,
                          (long long)t.dims[i], (long long)t.strides[i]);
    }
    /* Sorted by stride, each has to begin beyond the end of the last: no two places are one. */
    std::vector<std::pair<int64_t, int64_t>> order;
    for (size_t i = 0; i < t.dims.size(); i++) {
        if (t.dims[i] > 1)
            order.push_back({t.strides[i], t.dims[i]});
    }
    std::sort(order.begin(), order.end());
    int64_t end = 1;
    for (auto &x : order) {
        if (x.first < end)
            emulator_fail("cudnn: tensor %lld overlaps itself", uid);
        end = x.first * x.second;
    }
}

void check_convolution(const descriptor &d)
{
    int64_t n = get<int64_t>(d, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS);
    if (n != 2 || get<int>(d, CUDNN_ATTR_CONVOLUTION_COMP_TYPE) != CUDNN_DATA_FLOAT)
        emulator_fail("cudnn: only convolutions in two dimensions and floats are emulated");
    for (int attr : {CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES,
                     CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS}) {
        bool pad = attr == CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS ||
                   attr == CUDNN_ATTR_CONVOLUTION_POST_PADDINGS;
        ints v = get_ints(d, attr);
        if ((int64_t)v.size() != n || *std::min_element(v.begin(), v.end()) < (pad ? 0 : 1))
            emulator_fail("cudnn: attribute %d of a convolution does not fit", attr);
    }
}

static operation convolution_of(const descriptor &d)
{
    bool forward = d.type == F;
    operation o;
    o.kind = d.type;
    o.in.resize(2);
    o.in[0] = tensor_of(get_link(d, forward ? CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X
                                            : CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY));
    o.in[1] = tensor_of(get_link(d, forward ? CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W
                                            : CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W));
    o.out = tensor_of(get_link(d, forward ? CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y
                                          : CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX));
    o.scale[0] = get_scale(d,
                           forward ? CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA
                                   : CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA,
                           1);
    o.scale[1] = get_scale(d,
                           forward ? CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA
                                   : CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA,
                           0);
    const descriptor &c =
        get_link(d, forward ? CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC
                            : CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC);
    o.stride = get_ints(c, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES);
    o.dilation = get_ints(c, CUDNN_ATTR_CONVOLUTION_DILATIONS);
    o.before = get_ints(c, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS);
    o.after = get_ints(c, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS);
    o.flip = get<int>(c, CUDNN_ATTR_CONVOLUTION_CONV_MODE) == CUDNN_CONVOLUTION;
    const tensor &x = forward ? o.in[0] : o.out, &w = o.in[1], &y = forward ? o.out : o.in[0];
    if (x.dims.size() != 4 || w.dims.size() != 4 || y.dims.size() != 4)
        emulator_fail("cudnn: a convolution's tensors have to have 4 dimensions");
    bool fits = x.dims[0] == y.dims[0] && w.dims[0] == y.dims[1] && w.dims[1] == x.dims[1];
    for (size_t i = 0; i < 2; i++) {
        int64_t from = x.dims[2 + i] + o.before[i] + o.after[i];
        int64_t wide = (w.dims[2 + i] - 1) * o.dilation[i] + 1;
        fits = fits && from >= wide && y.dims[2 + i] == (from - wide) / o.stride[i] + 1;
    }
    if (!fits)
        emulator_fail("cudnn: the dimensions of a convolution's tensors do not fit (groups are not "
                      "emulated)");
    return o;
}

static operation sum_of(const descriptor &d)
{
    operation o;
    o.kind = d.type;
    o.in.resize(2);
    o.in[0] = tensor_of(get_link(d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC));
    o.in[1] = tensor_of(get_link(d, CUDNN_ATTR_OPERATION_POINTWISE_BDESC));
    o.out = tensor_of(get_link(d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC));
    o.scale[0] = get_scale(d, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA1, 1);
    o.scale[1] = get_scale(d, CUDNN_ATTR_OPERATION_POINTWISE_ALPHA2, 1);
    for (const tensor &t : o.in) {
        if (t.dims.size() != o.out.dims.size())
            emulator_fail("cudnn: a sum's tensors have different numbers of dimensions");
        for (size_t i = 0; i < t.dims.size(); i++) {
            if (t.dims[i] != o.out.dims[i] && t.dims[i] != 1)
                emulator_fail("cudnn: the dimensions of a sum's tensors do not fit");
        }
    }
    return o;
}

/* [n, heads, places, width]; scale is one number. */
static operation attention_of(const descriptor &d)
{
    operation o;
    o.kind = d.type;
    for (int attr : {CUDNN_ATTR_OPERATION_SDPA_FWD_QDESC, CUDNN_ATTR_OPERATION_SDPA_FWD_KDESC,
                     CUDNN_ATTR_OPERATION_SDPA_FWD_VDESC, CUDNN_ATTR_OPERATION_SDPA_FWD_SCALEDESC})
        o.in.push_back(tensor_of(get_link(d, attr)));
    o.out = tensor_of(get_link(d, CUDNN_ATTR_OPERATION_SDPA_FWD_ODESC));
    const ints &q = o.in[0].dims, &k = o.in[1].dims, &v = o.in[2].dims;
    if (q.size() != 4 || k.size() != 4 || v.size() != 4 || k[0] != q[0] || v[0] != q[0] ||
        k[1] != q[1] || v[1] != q[1] || k[2] != v[2] || k[3] != q[3] ||
        o.out.dims != ints{q[0], q[1], q[2], v[3]} || o.in[3].count() != 1)
        emulator_fail("cudnn: the dimensions of an attention's tensors do not fit");
    return o;
}

operation operation_of(const descriptor &d)
{
    return d.type == S ? sum_of(d) : d.type == A ? attention_of(d) : convolution_of(d);
}

cudnnStatus_t build_graph(descriptor *d)
{
    auto g = std::make_shared<graph>();
    g->handle = get<cudnnHandle_t>(*d, CUDNN_ATTR_OPERATIONGRAPH_HANDLE);
    std::vector<operation> left;
    std::set<int64_t> read;
    for (const link &x : d->set[CUDNN_ATTR_OPERATIONGRAPH_OPS].links)
        left.push_back(operation_of(*x));
    for (const operation &o : left) {
        for (const tensor &t : o.all()) {
            const tensor &x = g->tensors.insert({t.uid, t}).first->second;
            if (x.dims != t.dims || x.strides != t.strides || x.type != t.type ||
                x.is_virtual != t.is_virtual || x.by_value != t.by_value)
                emulator_fail("cudnn: two different tensors have the id %lld", (long long)t.uid);
        }
        for (const tensor &t : o.in)
            read.insert(t.uid);
        if (!g->made.insert(o.out.uid).second)
            emulator_fail("cudnn: tensor %lld is the output of two operations",
                          (long long)o.out.uid);
    }
    for (const auto &x : g->tensors) {
        if (x.second.by_value && g->made.count(x.first))
            emulator_fail("cudnn: tensor %lld is by value, but made", (long long)x.first);
        if (x.second.is_virtual && (!g->made.count(x.first) || !read.count(x.first)))
            emulator_fail("cudnn: virtual tensor %lld is not both made and used",
                          (long long)x.first);
    }
    /* "Graphs with more than one operation node do not support in-place operations (that is, where any of the input UIDs
     * matches any of the output UIDs)"; graphs of one do. */
    std::set<int64_t> done;
    while (!left.empty()) {
        auto ready = std::find_if(left.begin(), left.end(), [&](const operation &o) {
            for (const tensor &t : o.in) {
                if (g->made.count(t.uid) && !done.count(t.uid) &&
                    d->set[CUDNN_ATTR_OPERATIONGRAPH_OPS].n > 1)
                    return false;
            }
            return true;
        });
        if (ready == left.end())
            return CUDNN_STATUS_NOT_SUPPORTED_GRAPH_PATTERN;
        done.insert(ready->out.uid);
        g->ops.push_back(*ready);
        left.erase(ready);
    }
    d->of = g;
    return CUDNN_STATUS_SUCCESS;
}

} // namespace dnn
