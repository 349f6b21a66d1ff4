/* tensor.h: numbers in memory: types, views of stored arrays, and the tensors a network computes with.
 *
 * Two things, on purpose apart:
 *   struct array   a read-only view of numbers as a file holds them (any type, any shape);
 *   struct tensor  an activation on a device: dense, channels last, [n, h*w, c].
 *
 *     struct array a = *safetensors_at(st, i);
 *     float *f = malloc(array_count(&a) * sizeof *f);
 *     array_to_f32(&a, f);
 */
#ifndef WEFT_TENSOR_H
#define WEFT_TENSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define ARRAY_MAX_DIMS 8

enum dtype {
    DT_F32,
    DT_F64,
    DT_F16,
    DT_BF16,
    DT_I64,
    DT_I32,
    DT_I16,
    DT_I8,
    DT_U64,
    DT_U32,
    DT_U16,
    DT_U8,
    DT_BOOL,
    DT_C64,
    DT_F8_E4M3,
    DT_F8_E5M2,
    DT_F8_E8M0,
    DT_F8_E4M3FNUZ,
    DT_F8_E5M2FNUZ,
    DT_F6_E2M3,
    DT_F6_E3M2,
    DT_F4,
    DT_COUNT,
};

/* "F32", as safetensors spells it. */
const char *dtype_name(enum dtype t);
/* The type spelled so, or -1. */
int dtype_parse(const char *name);
/* Bits a value; 4 and 6 for the sub-byte types. */
unsigned dtype_bits(enum dtype t);

/* A stored array, row-major. Borrowed: whoever made the view says how long it lives. */
struct array {
    enum dtype dtype;
    int ndim;                     /* 0 is a scalar */
    uint64_t dim[ARRAY_MAX_DIMS]; /* outermost first */
    const void *data;             /* need not be aligned; NULL is "no array" */
};

/* Number of values: the product of dims, 1 for a scalar. */
size_t array_count(const struct array *a);
/* Dim i, 1 beyond the last. */
uint64_t array_dim(const struct array *a, int i);
/* Writes "[320, 768]" into buf and returns buf. */
const char *array_shape(const struct array *a, char *buf, size_t size);
/* True where array_to_f32 can convert: F32 F64 F16 BF16, I64 I32 U8 BOOL and the other integers. */
bool array_readable(const struct array *a);
/* Converts all values to float32, rounding to nearest. The array must be readable. */
void array_to_f32(const struct array *a, float *out);
/* Index of the first value that is infinite or NaN, -1 when all are finite. (Doubles that are finite but
 * beyond float32 become infinite on conversion.) */
ptrdiff_t array_first_bad(const struct array *a);

float half_to_f32(uint16_t h);
uint16_t f32_to_half(float f); /* to nearest, ties to even; overflow is infinity */
float bf16_to_f32(uint16_t h);
uint16_t f32_to_bf16(float f);

struct device;

/* An activation: n rows (pictures, prompts) of h*w places with c channels each, dense. */
struct tensor {
    struct device *dev;
    void *data; /* in dev's memory; NULL while a run is only being measured */
    int n, h, w, c;
    unsigned block; /* the run's name for its place */
    bool wide;      /* of float32 at least, where the device computes in less: latents */
};

size_t tensor_count(const struct tensor *t);
bool tensor_same_shape(const struct tensor *a, const struct tensor *b);
/* Rows [row, row + n) of t, sharing its memory. */
struct tensor tensor_rows(const struct tensor *t, int row, int n);

#endif
