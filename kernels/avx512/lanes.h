// Sixteen floats side by side, on AVX-512: the vocabulary in which lanes/*.c are written. avx2/lanes.h says
// the same words. Each word is one IEEE operation per lane (or a documented sequence), so both give the bits
// of ref.
#ifndef KERNELS_AVX512_LANES_H
#define KERNELS_AVX512_LANES_H
#if defined(__AVX512F__) && defined(__AVX512BW__)

#include <immintrin.h>
#include <stdint.h>

#include "kernels/internal.h"

#define LANES(name) avx512_##name
#define ALWAYS      static inline __attribute__((always_inline))

// Register tile of the matrix kernels: TILE_ROWS x TILE_COLS vectors of accumulators; skinny products take
// the wide forms.
#define TILE_ROWS       12
#define TILE_COLS       2
#define TILE_WIDE_ROWS  6
#define TILE_WIDE(rows) ((rows) <= 3 ? 8 : 4)

typedef __m512 v16;

ALWAYS __mmask16 v_mask(int64_t n)
{
    return n >= 16 ? (__mmask16)0xffff : (__mmask16)((1u << n) - 1);
}
ALWAYS v16 v_zero(void)
{
    return _mm512_setzero_ps();
}
ALWAYS v16 v_set(float f)
{
    return _mm512_set1_ps(f);
}
ALWAYS v16 v_load(const float *p)
{
    return _mm512_loadu_ps(p);
}
ALWAYS void v_store(float *p, v16 a)
{
    _mm512_storeu_ps(p, a);
}
// The first n (at most 16) lanes; the others read as 0 and are not stored.
ALWAYS v16 v_load_n(const float *p, int64_t n)
{
    return _mm512_maskz_loadu_ps(v_mask(n), p);
}
ALWAYS void v_store_n(float *p, v16 a, int64_t n)
{
    _mm512_mask_storeu_ps(p, v_mask(n), a);
}
ALWAYS float v_first(v16 a)
{
    return _mm512_cvtss_f32(a);
}
ALWAYS v16 v_add(v16 a, v16 b)
{
    return _mm512_add_ps(a, b);
}
ALWAYS v16 v_sub(v16 a, v16 b)
{
    return _mm512_sub_ps(a, b);
}
ALWAYS v16 v_mul(v16 a, v16 b)
{
    return _mm512_mul_ps(a, b);
}
ALWAYS v16 v_div(v16 a, v16 b)
{
    return _mm512_div_ps(a, b);
}
ALWAYS v16 v_sqrt(v16 a)
{
    return _mm512_sqrt_ps(a);
}
ALWAYS v16 v_max(v16 a, v16 b) // a > b ? a : b
{
    return _mm512_max_ps(a, b);
}
ALWAYS v16 v_abs(v16 a)
{
    return _mm512_abs_ps(a);
}
ALWAYS v16 v_neg(v16 a)
{
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}
ALWAYS v16 v_fma(v16 a, v16 b, v16 c) // a b + c
{
    return _mm512_fmadd_ps(a, b, c);
}
ALWAYS v16 v_fnma(v16 a, v16 b, v16 c) // -a b + c
{
    return _mm512_fnmadd_ps(a, b, c);
}
// Lanes below n of a, the others of b.
ALWAYS v16 v_first_n(v16 a, v16 b, int64_t n)
{
    return _mm512_mask_mov_ps(b, v_mask(n), a);
}
// b where a != 0 (NaN included), else 0.
ALWAYS v16 v_if_nonzero(v16 a, v16 b)
{
    return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, _mm512_setzero_ps(), _CMP_NEQ_UQ), b);
}

// fmath_exp, lane by lane.
ALWAYS v16 v_exp(v16 x)
{
    v16 magic = v_set(12582912.0f);
    v16 shifted = v_fma(x, v_set(1.44269504f), magic);
    v16 n = v_sub(shifted, magic);
    v16 r = v_fma(n, v_set(-0.693145752f), x);
    r = v_fma(n, v_set(-1.42860677e-6f), r);
    v16 p = v_fma(v_set(1.9875691500e-4f), r, v_set(1.3981999507e-3f));
    p = v_fma(p, r, v_set(8.3334519073e-3f));
    p = v_fma(p, r, v_set(4.1665795894e-2f));
    p = v_fma(p, r, v_set(1.6666665459e-1f));
    p = v_fma(p, r, v_set(5.0000001201e-1f));
    p = v_add(v_fma(p, v_mul(r, r), r), v_set(1.0f));
    p = _mm512_castsi512_ps(
        _mm512_add_epi32(_mm512_castps_si512(p), _mm512_slli_epi32(_mm512_castps_si512(shifted), 23)));
    p = _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, v_set(-87.3f), _CMP_LT_OQ), v_zero());
    p = _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, v_set(88.7f), _CMP_GT_OQ), v_set(__builtin_inff()));
    return _mm512_mask_mov_ps(p, _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q), x);
}

// The folds of sum16: l += l + 8, 4, 2, 1.
ALWAYS float v_fold(v16 a)
{
    __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
ALWAYS float v_fold_max(v16 a)
{
    __m256 h = _mm256_max_ps(_mm512_castps512_ps256(a), _mm512_extractf32x8_ps(a, 1));
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

// ---- number formats
// ------------------------------------------------------------------------------------------------

ALWAYS v16 v_widen_bf16(__m256i h)
{
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(h), 16));
}
ALWAYS v16 v_load_bf16(const uint16_t *p)
{
    return v_widen_bf16(_mm256_loadu_si256((const __m256i *)p));
}
ALWAYS v16 v_load_bf16_n(const uint16_t *p, int64_t n)
{
    return v_widen_bf16(_mm256_maskz_loadu_epi16(v_mask(n), p));
}
// f32_to_bf16 in the upper halves of 32-bit lanes, the lower halves 0.
ALWAYS __m512i v_bf16_high(v16 a)
{
    __m512i u = _mm512_castps_si512(a);
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 16), _mm512_set1_epi32(1));
    __m512i r = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7fff)), odd);
    r = _mm512_mask_mov_epi32(r, _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q),
                              _mm512_or_si512(u, _mm512_set1_epi32(0x400000)));
    return _mm512_and_si512(r, _mm512_set1_epi32((int)0xffff0000u));
}
ALWAYS v16 v_round_bf16(v16 a)
{
    return _mm512_castsi512_ps(v_bf16_high(a));
}
// The upper halves of the lanes: of numbers that are bf16 already, their codes.
ALWAYS void v_store_upper(uint16_t *p, v16 a)
{
    _mm256_storeu_si256((__m256i *)p, _mm512_cvtepi32_epi16(_mm512_srli_epi32(_mm512_castps_si512(a), 16)));
}
ALWAYS void v_store_bf16(uint16_t *p, v16 a)
{
    v_store_upper(p, v_round_bf16(a));
}
// Stores of halves under a mask are slow: only tails take them.
ALWAYS void v_store_bf16_n(uint16_t *p, v16 a, int64_t n)
{
    if (n >= 16) {
        v_store_bf16(p, a);
        return;
    }
    _mm256_mask_storeu_epi16(p, v_mask(n), _mm512_cvtepi32_epi16(_mm512_srli_epi32(v_bf16_high(a), 16)));
}
// E4M3 by way of half precision: the code's seven low bits make a half 2^-8 of the value (vcvtph2ps heeds
// subnormals whatever DAZ says); 0x7f becomes NaN.
ALWAYS v16 v_widen_fp8(__m128i q)
{
    __m256i w = _mm256_cvtepu8_epi16(q), low = _mm256_and_si256(w, _mm256_set1_epi16(0x7f));
    __m256i h = _mm256_or_si256(_mm256_slli_epi16(_mm256_xor_si256(w, low), 8), _mm256_slli_epi16(low, 7));
    __m256i nan = _mm256_cmpeq_epi16(low, _mm256_set1_epi16(0x7f));
    h = _mm256_or_si256(h, _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
    return _mm512_mul_ps(_mm512_cvtph_ps(h), _mm512_set1_ps(256.0f));
}
ALWAYS v16 v_load_fp8(const uint8_t *p)
{
    return v_widen_fp8(_mm_loadu_si128((const __m128i *)p));
}
ALWAYS v16 v_load_fp8_n(const uint8_t *p, int64_t n)
{
    return v_widen_fp8(_mm_maskz_loadu_epi8(v_mask(n), p));
}
// f32_to_fp8, lane by lane.
ALWAYS void v_store_fp8_n(uint8_t *p, v16 a, int64_t n)
{
    __m512i all = _mm512_castps_si512(a), u = _mm512_and_si512(all, _mm512_set1_epi32(0x7fffffff));
    __m512i sign = _mm512_and_si512(_mm512_srli_epi32(all, 24), _mm512_set1_epi32(0x80));
    __m512i odd = _mm512_and_si512(_mm512_srli_epi32(u, 20), _mm512_set1_epi32(1));
    __m512i q = _mm512_add_epi32(_mm512_add_epi32(u, _mm512_set1_epi32(0x7ffff)), odd);
    q = _mm512_sub_epi32(_mm512_srli_epi32(q, 20), _mm512_set1_epi32(120 << 3));
    v16 shifted = _mm512_add_ps(_mm512_castsi512_ps(u), _mm512_set1_ps(16384.0f));
    __m512i small = _mm512_and_si512(_mm512_castps_si512(shifted), _mm512_set1_epi32(0xff));
    q = _mm512_mask_mov_epi32(q, _mm512_cmplt_epi32_mask(u, _mm512_set1_epi32(0x3c800000)), small);
    q = _mm512_mask_mov_epi32(q, _mm512_cmpge_epi32_mask(u, _mm512_set1_epi32(0x43e00000)),
                              _mm512_set1_epi32(0x7e));
    q = _mm512_mask_mov_epi32(q, _mm512_cmpgt_epi32_mask(u, _mm512_set1_epi32(0x7f800000)),
                              _mm512_set1_epi32(0x7f));
    _mm_mask_storeu_epi8(p, v_mask(n), _mm512_cvtepi32_epi8(_mm512_or_si512(q, sign)));
}

// Sixteen partial sums in double.
struct d16 {
    __m512d lo, hi;
};
ALWAYS struct d16 d_zero(void)
{
    return (struct d16){_mm512_setzero_pd(), _mm512_setzero_pd()};
}
ALWAYS struct d16 d_add_square(struct d16 s, v16 a)
{
    __m512d lo = _mm512_cvtps_pd(_mm512_castps512_ps256(a)),
            hi = _mm512_cvtps_pd(_mm512_extractf32x8_ps(a, 1));
    return (struct d16){_mm512_fmadd_pd(lo, lo, s.lo),
                        _mm512_fmadd_pd(hi, hi, s.hi)}; // the square is exact either way
}
ALWAYS double d_fold(struct d16 s)
{
    __m512d e = _mm512_add_pd(s.lo, s.hi);
    __m256d q = _mm256_add_pd(_mm512_castpd512_pd256(e), _mm512_extractf64x4_pd(e, 1));
    __m128d h = _mm_add_pd(_mm256_castpd256_pd128(q), _mm256_extractf128_pd(q, 1));
    return _mm_cvtsd_f64(_mm_add_sd(h, _mm_unpackhi_pd(h, h)));
}

// Rows a[0..15] become columns.
ALWAYS void v_transpose(v16 a[16])
{
    v16 b[16];
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm512_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm512_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        b[i] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_f32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_f32x4(a[i + 8], a[i + 12], 0xdd);
    }
#pragma GCC unroll 16
    for (int i = 0; i < 4; i++) {
        a[i] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0x88);
        a[i + 8] = _mm512_shuffle_f32x4(b[i], b[i + 8], 0xdd);
        a[i + 4] = _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0x88);
        a[i + 12] = _mm512_shuffle_f32x4(b[i + 4], b[i + 12], 0xdd);
    }
}

#endif
#endif
