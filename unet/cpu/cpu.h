/* cpu.h: what the files of the CPU backend share. */
#ifndef WEFT_CPU_H
#define WEFT_CPU_H

#include "kernels.h"

#include <math.h>

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
/* As backend.h has it. */
int onednn_chains(struct device *dev, const struct chain *c, int n, bool prepare, struct err *err);
/* dx = W^T dy, as a layer of its own with the weight turned over, which lies in l->impl too. */
size_t onednn_layer_back_scratch(const struct layer *l, const struct tensor *dx,
                                 const struct tensor *dy);
int onednn_layer_back(struct device *dev, struct tensor *dx, struct layer *l,
                      const struct tensor *dy, bool add, void *scratch, struct err *err);
int onednn_layer_back_prepare(struct device *dev, const struct tensor *dx, struct layer *l,
                              const struct tensor *dy, bool add, struct err *err);
const char *onednn_layer_kind(const struct layer *l, int i);
size_t onednn_layer_bytes(const struct layer *l);
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

/* cpu_back.c: gradients. */
int cpu_group_norm_back(struct device *dev, struct tensor *dx, const struct norm *g,
                        const struct tensor *x, const struct tensor *more, enum act act,
                        const struct tensor *dy, bool add, struct err *err);
int cpu_layer_norm_back(struct device *dev, struct tensor *dx, const struct norm *g,
                        const struct tensor *x, const struct tensor *dy, bool add, struct err *err);
size_t cpu_attention_back_scratch(struct device *dev, const struct tensor *q,
                                  const struct tensor *k, const struct attention *a);
int cpu_attention_back(struct device *dev, struct tensor *const d[3], const bool add[3],
                       const struct tensor *q, const struct tensor *k, const struct tensor *v,
                       const struct attention *a, const struct tensor *dout, void *scratch,
                       struct err *err);
int cpu_activate_back(struct device *dev, struct tensor *dx, const struct tensor *x, enum act act,
                      const struct tensor *dy, bool add, struct err *err);
int cpu_geglu_back(struct device *dev, struct tensor *dx, const struct tensor *x,
                   const struct tensor *dy, bool add, struct err *err);
int cpu_concat_back(struct device *dev, struct tensor *da, bool add_a, struct tensor *db,
                    bool add_b, const struct tensor *dy, struct err *err);
int cpu_upsample_back(struct device *dev, struct tensor *dx, const struct tensor *dy, bool add,
                      struct err *err);

int cpu_gate_back(struct device *dev, struct tensor *dh, struct tensor *dt, const struct tensor *h,
                  const struct gating *in, const struct tensor *dy, struct err *err);

/* cpu_adapters.c: the ops of backend.h that adapters need. */
int cpu_gain(struct device *dev, struct tensor *y, const struct tensor *h, double s,
             const float *gain, const float *shift, struct err *err);
int cpu_scale(struct device *dev, struct tensor *y, int n, const struct share *part,
              struct err *err);
int cpu_route(struct device *dev, struct tensor *t, const struct route *how, struct err *err);
int cpu_gate(struct device *dev, struct tensor *y, const struct tensor *h, const struct gating *in,
             struct err *err);

#endif
