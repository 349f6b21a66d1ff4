/* The reference backend: every op as its definition reads, one source for float and double. Slow on
 * purpose; nothing here is vectorised, tiled or fused, so that it can be believed. */
#include "backend.h"

#include <math.h>

#define REAL    float
#define NAME(x) x##_f32
#include "gate_back.inc"
#include "ref.inc"
#include "ref_back.inc"
#undef REAL
#undef NAME

#define REAL    double
#define NAME(x) x##_f64
#include "gate_back.inc"
#include "ref.inc"
#include "ref_back.inc"
#undef REAL
#undef NAME

extern const struct backend backend_ref, backend_ref64;

const struct backend backend_ref = REF_TABLE("ref", "plain C, float: the oracle", f32);
const struct backend backend_ref64 =
    REF_TABLE("ref64", "plain C, double: the oracle's oracle", f64);
