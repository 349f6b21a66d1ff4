/* cpu.h: what the files of the CPU backend share. */
#ifndef WEFT_CPU_H
#define WEFT_CPU_H

#include "kernels.h"

struct onednn; /* oneDNN's engine and stream */

struct cpu {
    const struct kernels *k;
    struct onednn *dnnl;
    void *scratch; /* grows to what the largest op asks for, then stays */
    size_t scratch_size;
};

/* At least `bytes` of memory until the next call, or NULL. */
void *cpu_scratch(struct device *dev, size_t bytes);
void *cpu_alloc(struct device *dev, size_t bytes);
void cpu_free(struct device *dev, void *p);

int onednn_open(struct onednn **out, struct err *err);
void onednn_close(struct onednn *d);
/* y = W x + b or y += W x + b; the packed weight and the primitives are kept in l->impl. */
int onednn_layer(struct device *dev, struct tensor *y, struct layer *l, const struct tensor *x,
                 bool accumulate, struct err *err);
int onednn_layer_prepare(struct device *dev, const struct tensor *y, struct layer *l,
                         const struct tensor *x, bool accumulate, struct err *err);
const char *onednn_layer_kind(const struct layer *l, int i);
void onednn_layer_release(struct device *dev, struct layer *l);

/* Values a thread takes at once of an elementwise op: enough to pay for waking it. */
#define CHUNK 16384

/* What is small stays out of parallel regions: one of another number of threads costs a new team. */
static inline bool is_small(size_t n)
{
    return n <= CHUNK;
}

static inline const struct kernels *kernels_of(const struct device *dev)
{
    return ((const struct cpu *)dev->impl)->k;
}

/* cpu_adapters.c: the ops of backend.h that adapters need. */
int cpu_gain(struct device *dev, struct tensor *y, const struct tensor *h, double s,
             const float *gain, const float *shift, struct err *err);
int cpu_scale(struct device *dev, struct tensor *y, int n, const struct share *part,
              struct err *err);
int cpu_route(struct device *dev, struct tensor *t, const struct route *how, struct err *err);
int cpu_gate(struct device *dev, struct tensor *y, const struct tensor *h, const struct gating *in,
             struct err *err);

#endif
