// The kernels of the class amx: products of bf16 pairs on tiles, by TDPBF16PS. All else is avx512bf16's and avx512's.
//
// Order of its own, which kernels.h leaves to the class: K goes in steps of TILE_K inputs from 0. In a step the
// products of the even inputs and those of the odd ones are two chains, each from 0 and ascending (16 fused multiply-adds of f32);
// their sum is added to the accumulator, which starts at 0:
//   acc = acc + (chain(even k of the step)(x_k, w_k) + chain(odd k of the step)(x_k, w_k))
// Every operation rounds to nearest even, reads subnormals as zero and flushes results to zero; MXCSR has no say. A last step that is
// not full is filled with zeros in both operands. FP8 codes are widened to bf16 (exact) and go the same way inside each block of 128,
// after which acc = fma(t_b, scale, acc) as in ref. gemm_dw steps through the rows of the batch instead of K.
// Every product of the class takes this order, M = 1 and tails included: rows that are missing are zeros in the tile.
//
// Never yet run on a processor that has the instructions: tests/kernels compiles these sources against a software model of them
// (tests/kernels/amx_model.h) and runs every shape on it; on a processor with AMX the same test runs the instructions beside the model.
#ifndef KERNELS_AMX_AMX_H
#define KERNELS_AMX_AMX_H

#include "kernels/internal.h"

#define TILE_K   32 // inputs (rows of the batch in gemm_dw) a step
#define TILE_DIM 16 // rows and columns of a tile of f32

// The model's build has its own names, so that one program holds both.
#ifdef AMX_TILE_HEADER
#define AMX(name) amx_model_##name
#else
#define AMX(name) amx_##name
#endif

void AMX(table)(struct kernels *k);
size_t AMX(weight_bytes)(enum dtype dtype, int64_t n, int64_t k);
void AMX(weight_pack)(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                      enum dtype src_dtype, bool transpose, void *dst);
void AMX(gemm)(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x, const float *bias,
               bool accumulate, float *y, int64_t ldy);
void AMX(gemm_dw)(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                  struct rows x, float *dw);

// n rounds of four tile products between registers, all operands 1, on the calling thread. The sum of the accumulators: the number of
// multiply-adds, exact up to 16,384 rounds.
#define AMX_PEAK_FLOPS (4 * 2.0 * TILE_DIM * TILE_DIM * TILE_K) // of one round
float AMX(peak)(int64_t n);

// Packed BF16 and FP8: [ceil(n / PANEL)][ceil(k / TILE_K) * TILE_K / 2][PANEL pairs], inputs and outputs that are not there being 0. A
// pair-row holds the inputs 2i and 2i+1 of output after output: TILE_DIM of them, TILE_K / 2 pair-rows high, are one tile as
// TDPBF16PS reads it. An FP8 pair-row is the same with codes of a byte.
static inline int64_t amx_padded(int64_t k)
{
    return ceil_div(k, TILE_K) * TILE_K;
}

#endif
