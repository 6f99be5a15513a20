// Weights of f32 or bf16 as the bf16 codes that packing stores.
#ifndef KERNELS_AVX512BF16_BF16_CODES_H
#define KERNELS_AVX512BF16_BF16_CODES_H

#include "kernels/avx512/lanes.h"

#if defined(__AVX512F__) && defined(__AVX512BW__)

// Up to 32 inputs of one output as bf16 codes, 0 beyond. Integer rounding: subnormals keep their bits, as in ref.
ALWAYS v16 bf16_pairs(const enum dtype from, const void *src, int64_t i, int64_t n)
{
    if (from == DT_BF16 && n == 32)
        return v_load((const float *)(const void *)((const uint16_t *)src + i));
    if (from == DT_BF16) {
        __mmask32 m = n >= 32 ? 0xffffffffu : (1u << n) - 1;
        return _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(m, (const uint16_t *)src + i));
    }
    const float *p = (const float *)src + i;
    __m512i lo = v_bf16_high(v_load_n(p, n)),
            hi = n > 16 ? v_bf16_high(v_load_n(p + 16, n - 16)) : _mm512_setzero_si512();
    __m512i codes = _mm512_packus_epi32(_mm512_srli_epi32(lo, 16), _mm512_srli_epi32(hi, 16));
    return _mm512_castsi512_ps(_mm512_permutexvar_epi64(_mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7), codes));
}

// Codes of up to 16 neighbours in the lower halves of the lanes.
ALWAYS __m512i bf16_row(const enum dtype from, const void *src, int64_t i, int64_t n)
{
    if (from == DT_BF16)
        return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(v_mask(n), (const uint16_t *)src + i));
    return _mm512_srli_epi32(v_bf16_high(v_load_n((const float *)src + i, n)), 16);
}

#endif
#endif
