/* graphs.cpp: runs graphs of convolutions, sums and attention (cudnn.cpp), one operation after another. Sums are of doubles, what
 * is between operations is floats.
 */
#include "graphs.h"

namespace dnn {

static bool overlap(const void *a, size_t n, const void *b, size_t m)
{
    return (const char *)a < (const char *)b + m && (const char *)b < (const char *)a + n;
}

void check_pointers(const run &r)
{
    const graph &g = *r.of;
    for (const auto &x : g.tensors) {
        long long uid = x.first;
        const tensor &t = x.second;
        auto p = r.at.find(x.first);
        if (t.is_virtual) {
            if (p != r.at.end())
                emulator_fail("cudnn: virtual tensor %lld has a pointer", uid);
            continue;
        }
        if (t.by_value)
            continue;
        if (p == r.at.end() || !p->second || !emulator_is_device(p->second, t.extent()))
            emulator_fail("cudnn: tensor %lld is not within an allocation of device memory", uid);
        if ((uintptr_t)p->second % (uintptr_t)t.align != 0)
            emulator_fail("cudnn: tensor %lld at %p is not aligned to %lld bytes", uid, p->second,
                          (long long)t.align);
        if (r.bytes && overlap(p->second, t.extent(), r.workspace, r.bytes))
            emulator_fail("cudnn: tensor %lld overlaps the workspace", uid);
        for (const auto &y : r.at) {
            const tensor &other = g.tensors.at(y.first);
            if (other.by_value)
                continue;
            bool same = p->second == y.second && t.dims == other.dims &&
                        t.strides == other.strides && t.type == other.type && g.ops.size() == 1 &&
                        g.ops[0].kind == S;
            if (y.first != x.first && g.made.count(x.first) && !same &&
                overlap(p->second, t.extent(), y.second, other.extent()))
                emulator_fail(
                    "cudnn: output %lld overlaps tensor %lld, and the graph is not a single "
                    "sum in place",
                    uid, (long long)y.first);
        }
    }
    if (r.bytes && (!emulator_is_device(r.workspace, r.bytes) || (uintptr_t)r.workspace % 16 != 0))
        emulator_fail(
            "cudnn: the workspace of %zu bytes at %p is not 16-byte aligned device memory", r.bytes,
            r.workspace);
}

/* Offset of the i-th place of dims, first dimension outermost; those that are 1 wide in `in` are taken again and again. */
static size_t place(size_t i, const ints &dims, const ints &in, const ints &strides)
{
    size_t at = 0;
    for (size_t d = dims.size(); d-- > 0; i /= (size_t)dims[d])
        at += in[d] == 1 ? 0 : i % (size_t)dims[d] * (size_t)strides[d];
    return at;
}

namespace {

struct memory {
    const run &r;
    std::map<int64_t, std::vector<float>> virtuals; /* dense */

    std::vector<float> load(const tensor &t, const ints &dims)
    {
        size_t n = 1;
        ints dense(t.dims.size(), 1);
        for (int64_t d : dims)
            n *= (size_t)d;
        for (size_t d = dims.size() - 1; d-- > 0;)
            dense[d] = dense[d + 1] * t.dims[d + 1];
        std::vector<float> v(n);
        const void *p = t.is_virtual ? virtuals[t.uid].data()
                        : t.by_value ? (const void *)r.values.at(t.uid).data()
                                     : r.at.at(t.uid);
        int type = t.is_virtual ? (int)CUDNN_DATA_FLOAT : t.type;
        for (size_t i = 0; i < n; i++) {
            size_t x = place(i, dims, t.dims, t.is_virtual ? dense : t.strides);
            unsigned short half = type == CUDNN_DATA_FLOAT ? 0 : ((const unsigned short *)p)[x];
            v[i] = type == CUDNN_DATA_FLOAT  ? ((const float *)p)[x]
                   : type == CUDNN_DATA_HALF ? __half2float({half})
                                             : __bfloat162float({half});
        }
        return v;
    }

    void store(const tensor &t, const std::vector<double> &v)
    {
        static unsigned times;
        times++;
        for (size_t i = 0; i < v.size(); i++) {
            float x = (float)v[i];
            if (r.engine == UNSTEADY && (i + times) % 3 == 0)
                x = nextafterf(x, INFINITY);
            if (t.is_virtual) {
                virtuals[t.uid].push_back(x);
                continue;
            }
            void *p = r.at.at(t.uid);
            size_t at = place(i, t.dims, t.dims, t.strides);
            if (t.type == CUDNN_DATA_FLOAT)
                ((float *)p)[at] = x;
            else
                ((unsigned short *)p)[at] = t.type == CUDNN_DATA_HALF ? __float2half_rn(x).bits
                                                                      : __float2bfloat16_rn(x).bits;
        }
    }
};

} // namespace

/* What one channel of the output, forward k and back c, has of one of the input, at the n-th picture: x [h, w], w [r, s],
 * y [p, q]. */
static void convolve_plane(const operation &o, const float *in, const float *w, double *out)
{
    bool forward = o.kind == F;
    const ints &x = forward ? o.in[0].dims : o.out.dims, &y = forward ? o.out.dims : o.in[0].dims;
    const ints &f = o.in[1].dims;
    for (int64_t rs = 0; rs < f[2] * f[3]; rs++) {
        int64_t r = o.flip ? f[2] - 1 - rs / f[3] : rs / f[3];
        int64_t s = o.flip ? f[3] - 1 - rs % f[3] : rs % f[3];
        int64_t shift = s * o.dilation[1] - o.before[1], step = o.stride[1];
        int64_t first = shift < 0 ? (-shift + step - 1) / step : 0;
        int64_t end = std::min(y[3], (x[3] - shift + step - 1) / step);
        for (int64_t p = 0; p < y[2]; p++) {
            int64_t h = p * o.stride[0] + r * o.dilation[0] - o.before[0];
            int64_t of_x = h * x[3] + shift, of_y = p * y[3];
            for (int64_t q = first; q < end && h >= 0 && h < x[2]; q++) {
                if (forward)
                    out[of_y + q] += (double)in[of_x + q * step] * w[rs];
                else
                    out[of_x + q * step] += (double)in[of_y + q] * w[rs];
            }
        }
    }
}

/* x [n, c, h, w], w [k, c, r, s], y [n, k, p, q]; forward, or to x. */
static std::vector<double> convolve(const operation &o, const std::vector<float> &in,
                                    const std::vector<float> &w)
{
    const ints &from = o.in[0].dims, &to = o.out.dims, &f = o.in[1].dims;
    int64_t from_plane = from[2] * from[3], to_plane = to[2] * to[3];
    std::vector<double> sum(o.out.count());
#ifdef _OPENMP
#pragma omp parallel for
#endif
    for (int64_t i = 0; i < to[0] * to[1]; i++) {
        for (int64_t j = 0; j < from[1]; j++) {
            int64_t k = o.kind == F ? i % to[1] : j, c = o.kind == F ? j : i % to[1];
            convolve_plane(o, &in[(size_t)((i / to[1] * from[1] + j) * from_plane)],
                           &w[(size_t)((k * f[1] + c) * f[2] * f[3])],
                           &sum[(size_t)(i * to_plane)]);
        }
    }
    return sum;
}

static void as_tf32(std::vector<float> &v)
{
    for (float &x : v) {
        unsigned u = emulator_bits(x);
        if (isfinite(x))
            x = emulator_float((u + 0xfff + (u >> 13 & 1)) & ~0x1fffu);
    }
}

static std::vector<double> attend(const operation &o, const std::vector<float> &q,
                                  const std::vector<float> &k, const std::vector<float> &v,
                                  float by)
{
    const ints &of_q = o.in[0].dims, &of_v = o.in[2].dims;
    size_t heads = (size_t)(of_q[0] * of_q[1]), lq = (size_t)of_q[2], c = (size_t)of_q[3];
    size_t lk = (size_t)of_v[2], wide = (size_t)of_v[3];
    std::vector<double> out(o.out.count()), w(lk);
#ifdef _OPENMP
#pragma omp parallel for firstprivate(w) if (heads * lq * lk * c > PARALLEL_LEAST)
#endif
    for (size_t i = 0; i < heads * lq; i++) {
        size_t first = i / lq * lk;
        double most = -INFINITY, sum = 0;
        for (size_t j = 0; j < lk; j++) {
            w[j] = 0;
            for (size_t x = 0; x < c; x++)
                w[j] += (double)q[i * c + x] * k[(first + j) * c + x];
            most = std::max(most, w[j] *= by);
        }
        for (size_t j = 0; j < lk; j++)
            sum += w[j] = exp(w[j] - most);
        for (size_t j = 0; j < lk; j++) {
            for (size_t x = 0; x < wide; x++)
                out[i * wide + x] += w[j] / sum * v[(first + j) * wide + x];
        }
    }
    return out;
}

void execute(const run &r)
{
    memory m = {r, {}};
    for (const operation &o : r.of->ops) {
        bool sum = o.kind == S, convolution = !sum && o.kind != A;
        std::vector<std::vector<float>> in;
        for (const tensor &t : o.in) {
            in.push_back(m.load(t, sum ? o.out.dims : t.dims));
            if (convolution && r.engine == TENSOR_CORES)
                as_tf32(in.back());
        }
        std::vector<double> out(o.out.count());
        for (size_t i = 0; i < out.size() && sum; i++)
            out[i] = o.scale[0] * in[0][i] + o.scale[1] * in[1][i];
        if (convolution)
            out = convolve(o, in[0], in[1]);
        else if (!sum)
            out = attend(o, in[0], in[1], in[2], in[3][0]);
        if (convolution && o.scale[1] != 0)
            in[0] = m.load(o.out, o.out.dims);
        for (size_t i = 0; i < out.size() && convolution; i++)
            out[i] = o.scale[0] * out[i] + (o.scale[1] != 0 ? o.scale[1] * in[0][i] : 0);
        m.store(o.out, out);
    }
    if (r.bytes)
        memset(r.workspace, 0xff, r.bytes);
}

} // namespace dnn
