/* onednn.h: what the files of oneDNN's layers share: what lies in a layer's impl. */
#ifndef WEFT_CPU_ONEDNN_H
#define WEFT_CPU_ONEDNN_H

#include "cpu.h"

struct packed;    /* its weight, reordered */
struct primitive; /* the layer on one shape */

struct cpu_layer {
    struct packed *packed;
    struct primitive *primitive;
    float *bias;
    struct layer *back; /* W^T as a layer; NULL: nobody asked yet */
    bool turned;        /* this one is such a layer: l->w is another's */
};

#endif
