// Plain movements of device arrays that are no arithmetic: copies and zeroing. A device other than the CPU
// gets its own versions here and nowhere else.
#ifndef MODEL_ARRAY_H
#define MODEL_ARRAY_H

#include <stdint.h>
#include <string.h>

#include "kernels/kernels.h"

static inline void array_copy(float *dst, const float *src, int64_t n)
{
    if (n > 0)
        memcpy(dst, src, (size_t)n * sizeof(float));
}
static inline void array_zero(float *dst, int64_t n)
{
    if (n > 0)
        memset(dst, 0, (size_t)n * sizeof(float));
}
// dst [rows, cols] contiguous out of src [rows, cols] with row stride ld.
static inline void array_gather(float *dst, const float *src, int64_t rows, int64_t cols, int64_t ld)
{
    for (int64_t r = 0; r < rows; r++)
        array_copy(dst + r * cols, src + r * ld, cols);
}

// Cuts one block of floats into arrays whose starts are 64-byte aligned relative to it. With base NULL it
// only counts: the same function that lays arrays out says how much room they take.
struct carve {
    float *base;
    int64_t used; // floats
};
static inline float *carve_take(struct carve *c, int64_t n)
{
    float *p = c->base ? c->base + c->used : NULL;
    c->used += (n + 15) / 16 * 16;
    return p;
}
// n numbers of activations for products with weights of `dtype` (kernels.h, rows_dtype).
static inline void *carve_rows(struct carve *c, enum dtype dtype, int64_t n)
{
    return carve_take(c, rows_dtype(dtype) == DT_F32 ? n : (n + 1) / 2);
}

#endif
