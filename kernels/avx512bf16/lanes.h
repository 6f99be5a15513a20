// avx512's lanes and the bf16 dot product.
#ifndef KERNELS_AVX512BF16_LANES_H
#define KERNELS_AVX512BF16_LANES_H

#include "kernels/avx512/lanes.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)

// acc + x_0 w_0 + x_1 w_1 per lane, lanes being pairs of bf16, as the instruction rounds it.
ALWAYS v16 v_dot_pairs(v16 acc, v16 x, __m512i w)
{
    return _mm512_dpbf16_ps(acc, (__m512bh)_mm512_castps_si512(x), (__m512bh)w);
}

// Sixteen pairs out of two rows: a in the low halves, b in the high ones. Subnormals become 0, as they would in the product.
ALWAYS v16 v_pairs(v16 a, v16 b)
{
    const __m512i order = _mm512_set_epi16(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8, 23,
                                           7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0);
    return _mm512_castsi512_ps(_mm512_permutexvar_epi16(order, (__m512i)_mm512_cvtne2ps_pbh(b, a)));
}

#endif
#endif
