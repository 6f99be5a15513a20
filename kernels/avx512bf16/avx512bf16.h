// The kernels of the class avx512bf16: products of bf16 pairs by vdpbf16ps. All else is avx512's.
//
// Order of its own (kernels.h, "classes with a bf16 dot product"): the chain goes over pairs, acc = dp(x_2i x_2i+1, w_2i w_2i+1, acc)
// for i ascending from acc = 0; an odd last element is paired with 0. FP8 codes are widened to bf16 (exact) and go the same
// way inside each block of 128; gemm_dw pairs the rows 2i and 2i+1 of the batch.
#ifndef KERNELS_AVX512BF16_AVX512BF16_H
#define KERNELS_AVX512BF16_AVX512BF16_H

#include "kernels/avx512/avx512.h"

size_t avx512bf16_weight_bytes(enum dtype dtype, int64_t n, int64_t k);
void avx512bf16_weight_pack(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                            enum dtype src_dtype, bool transpose, void *dst);
void avx512bf16_gemm(struct device *d, const struct gemm_weight *w, int64_t m, const float *x, int64_t ldx,
                     const float *bias, bool accumulate, float *y, int64_t ldy);
void avx512bf16_gemm_dw(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, const float *dy,
                        int64_t lddy, const float *x, int64_t ldx, float *dw);

// Packed BF16 and FP8: [ceil(n / PANEL)][ceil(k / 2)][PANEL pairs]. A pair-row of bf16 is PANEL * 2 halves in column order. A
// pair-row of FP8 is 64 codes in the order that byte unpacking turns into two vectors of 16 columns: code j (0 or 1) of column c
// lies at c % 16 / 4 * 16 + c / 16 * 8 + c % 4 * 2 + j.

#endif
