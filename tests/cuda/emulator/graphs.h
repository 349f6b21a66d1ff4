/* graphs.h: descriptors of cudnn.cpp, what describe.cpp makes of them, and graphs.cpp runs. */
#ifndef WEFT_EMULATOR_GRAPHS_H
#define WEFT_EMULATOR_GRAPHS_H

#include "cudnn.h"
#include "emulator.h"

#include <map>
#include <memory>
#include <set>

namespace dnn {

typedef std::vector<int64_t> ints;

/* Types of descriptors. */
enum {
    T = CUDNN_BACKEND_TENSOR_DESCRIPTOR,
    C = CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR,
    P = CUDNN_BACKEND_POINTWISE_DESCRIPTOR,
    F = CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
    B = CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
    S = CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR,
    A = CUDNN_BACKEND_OPERATION_SDPA_FWD_DESCRIPTOR,
    G = CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR,
    H = CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR,
    E = CUDNN_BACKEND_ENGINE_DESCRIPTOR,
    K = CUDNN_BACKEND_ENGINECFG_DESCRIPTOR,
    X = CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR,
    V = CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR
};

struct tensor {
    int64_t uid = 0, align = 0;
    int type = 0;
    bool is_virtual = false, by_value = false;
    ints dims, strides;

    size_t count() const
    {
        size_t n = 1;
        for (int64_t d : dims)
            n *= (size_t)d;
        return n;
    }
    size_t extent() const /* bytes */
    {
        size_t n = 1;
        for (size_t i = 0; i < dims.size(); i++)
            n += (size_t)((dims[i] - 1) * strides[i]);
        return n * (type == CUDNN_DATA_FLOAT ? 4 : 2);
    }
};

struct operation {
    int kind = 0; /* of descriptor */
    std::vector<tensor> in;
    tensor out;
    double scale[2] = {1, 0}; /* alpha and beta, alpha1 and alpha2 */
    ints stride, dilation, before, after;
    bool flip = false;

    std::vector<tensor> all() const
    {
        std::vector<tensor> v = in;
        v.push_back(out);
        return v;
    }
};

struct graph {
    cudnnHandle_t handle;
    std::vector<operation> ops; /* in order of dependence */
    std::map<int64_t, tensor> tensors;
    std::set<int64_t> made; /* outputs of operations */
};

struct descriptor;
typedef std::shared_ptr<descriptor> link;

struct value {
    int type;
    int64_t n;
    std::vector<char> bytes;
    std::vector<link> links; /* of descriptors */
};

struct descriptor {
    int type;
    bool final = false;
    std::map<int, value> set;
    std::shared_ptr<const graph> of; /* of a graph and what comes from one */
    int engine = -1;
};

/* One element of an attribute that is known to be set. */
template <class Type> Type get(const descriptor &d, int attr)
{
    Type v;
    memcpy(&v, d.set.at(attr).bytes.data(), sizeof v);
    return v;
}

inline double get_scale(const descriptor &d, int attr, double usual)
{
    if (!d.set.count(attr))
        return usual;
    return d.set.at(attr).type == CUDNN_TYPE_FLOAT ? get<float>(d, attr) : get<double>(d, attr);
}

inline ints get_ints(const descriptor &d, int attr)
{
    const value &v = d.set.at(attr);
    const int64_t *p = (const int64_t *)v.bytes.data();
    return ints(p, p + v.n);
}

inline const descriptor &get_link(const descriptor &d, int attr)
{
    return *d.set.at(attr).links[0];
}

/* describe.cpp. They abort where attributes do not fit each other. */
void check_tensor(const descriptor &d);
void check_convolution(const descriptor &d);
operation operation_of(const descriptor &d);
/* Puts operations in order of dependence and checks how tensors are used. */
cudnnStatus_t build_graph(descriptor *d);

/* cudnn.cpp says what they are. */
enum { TENSOR_CORES, BROKEN, UNSTEADY, HUNGRY, FAULTLESS, ENGINES };

/* An execution. */
struct run {
    std::shared_ptr<const graph> of;
    int engine;
    std::map<int64_t, void *> at;
    std::map<int64_t, std::vector<char>> values; /* of tensors by value: read by the call */
    void *workspace;
    size_t bytes;
    cudaStream_t stream;
};

/* Aborts where a pointer is not what its tensor promises. */
void check_pointers(const run &r);
void execute(const run &r);

} // namespace dnn

#endif
