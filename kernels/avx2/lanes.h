// Sixteen floats side by side, on AVX2 with FMA and F16C, as two registers: the words of avx512/lanes.h, the
// same bits.
#ifndef KERNELS_AVX2_LANES_H
#define KERNELS_AVX2_LANES_H
#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#include "kernels/internal.h"

#define LANES(name) avx2_##name
#define ALWAYS      static inline __attribute__((always_inline))

#define TILE_ROWS       6
#define TILE_COLS       1
#define TILE_WIDE_ROWS  2
#define TILE_WIDE(rows) ((rows) <= 1 ? 4 : 2)

typedef struct {
    __m256 lo, hi;
} v16;

// All bits set in lanes below n.
ALWAYS __m256i v_mask8(int64_t n)
{
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n > 8   ? 8
                                                : n < 0 ? 0
                                                        : (int)n),
                              _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
ALWAYS v16 v_zero(void)
{
    return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()};
}
ALWAYS v16 v_set(float f)
{
    return (v16){_mm256_set1_ps(f), _mm256_set1_ps(f)};
}
ALWAYS v16 v_load(const float *p)
{
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
ALWAYS void v_store(float *p, v16 a)
{
    _mm256_storeu_ps(p, a.lo);
    _mm256_storeu_ps(p + 8, a.hi);
}
ALWAYS v16 v_load_n(const float *p, int64_t n)
{
    if (n >= 16)
        return v_load(p);
    return (v16){_mm256_maskload_ps(p, v_mask8(n)), _mm256_maskload_ps(p + 8, v_mask8(n - 8))};
}
ALWAYS void v_store_n(float *p, v16 a, int64_t n)
{
    if (n >= 16) {
        v_store(p, a);
        return;
    }
    _mm256_maskstore_ps(p, v_mask8(n), a.lo);
    _mm256_maskstore_ps(p + 8, v_mask8(n - 8), a.hi);
}
ALWAYS float v_first(v16 a)
{
    return _mm256_cvtss_f32(a.lo);
}
ALWAYS v16 v_add(v16 a, v16 b)
{
    return (v16){_mm256_add_ps(a.lo, b.lo), _mm256_add_ps(a.hi, b.hi)};
}
ALWAYS v16 v_sub(v16 a, v16 b)
{
    return (v16){_mm256_sub_ps(a.lo, b.lo), _mm256_sub_ps(a.hi, b.hi)};
}
ALWAYS v16 v_mul(v16 a, v16 b)
{
    return (v16){_mm256_mul_ps(a.lo, b.lo), _mm256_mul_ps(a.hi, b.hi)};
}
ALWAYS v16 v_div(v16 a, v16 b)
{
    return (v16){_mm256_div_ps(a.lo, b.lo), _mm256_div_ps(a.hi, b.hi)};
}
ALWAYS v16 v_sqrt(v16 a)
{
    return (v16){_mm256_sqrt_ps(a.lo), _mm256_sqrt_ps(a.hi)};
}
ALWAYS v16 v_max(v16 a, v16 b)
{
    return (v16){_mm256_max_ps(a.lo, b.lo), _mm256_max_ps(a.hi, b.hi)};
}
ALWAYS v16 v_abs(v16 a)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_andnot_ps(sign, a.lo), _mm256_andnot_ps(sign, a.hi)};
}
ALWAYS v16 v_neg(v16 a)
{
    __m256 sign = _mm256_set1_ps(-0.0f);
    return (v16){_mm256_xor_ps(sign, a.lo), _mm256_xor_ps(sign, a.hi)};
}
ALWAYS v16 v_fma(v16 a, v16 b, v16 c)
{
    return (v16){_mm256_fmadd_ps(a.lo, b.lo, c.lo), _mm256_fmadd_ps(a.hi, b.hi, c.hi)};
}
ALWAYS v16 v_fnma(v16 a, v16 b, v16 c)
{
    return (v16){_mm256_fnmadd_ps(a.lo, b.lo, c.lo), _mm256_fnmadd_ps(a.hi, b.hi, c.hi)};
}
ALWAYS v16 v_first_n(v16 a, v16 b, int64_t n)
{
    return (v16){_mm256_blendv_ps(b.lo, a.lo, _mm256_castsi256_ps(v_mask8(n))),
                 _mm256_blendv_ps(b.hi, a.hi, _mm256_castsi256_ps(v_mask8(n - 8)))};
}
ALWAYS v16 v_if_nonzero(v16 a, v16 b)
{
    __m256 zero = _mm256_setzero_ps();
    return (v16){_mm256_and_ps(_mm256_cmp_ps(a.lo, zero, _CMP_NEQ_UQ), b.lo),
                 _mm256_and_ps(_mm256_cmp_ps(a.hi, zero, _CMP_NEQ_UQ), b.hi)};
}

ALWAYS __m256 exp_half(__m256 x)
{
    __m256 magic = _mm256_set1_ps(12582912.0f);
    __m256 shifted = _mm256_fmadd_ps(x, _mm256_set1_ps(1.44269504f), magic);
    __m256 n = _mm256_sub_ps(shifted, magic);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-0.693145752f), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-1.42860677e-6f), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(1.9875691500e-4f), r, _mm256_set1_ps(1.3981999507e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(8.3334519073e-3f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(4.1665795894e-2f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.6666665459e-1f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(5.0000001201e-1f));
    p = _mm256_add_ps(_mm256_fmadd_ps(p, _mm256_mul_ps(r, r), r), _mm256_set1_ps(1.0f));
    p = _mm256_castsi256_ps(
        _mm256_add_epi32(_mm256_castps_si256(p), _mm256_slli_epi32(_mm256_castps_si256(shifted), 23)));
    p = _mm256_andnot_ps(_mm256_cmp_ps(x, _mm256_set1_ps(-87.3f), _CMP_LT_OQ), p);
    p = _mm256_blendv_ps(p, _mm256_set1_ps(__builtin_inff()),
                         _mm256_cmp_ps(x, _mm256_set1_ps(88.7f), _CMP_GT_OQ));
    return _mm256_blendv_ps(p, x, _mm256_cmp_ps(x, x, _CMP_UNORD_Q));
}
ALWAYS v16 v_exp(v16 x)
{
    return (v16){exp_half(x.lo), exp_half(x.hi)};
}

ALWAYS float v_fold(v16 a)
{
    __m256 h = _mm256_add_ps(a.lo, a.hi);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
ALWAYS float v_fold_max(v16 a)
{
    __m256 h = _mm256_max_ps(a.lo, a.hi);
    __m128 q = _mm_max_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
    q = _mm_max_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_max_ss(q, _mm_movehdup_ps(q)));
}

// ---- number formats
// ------------------------------------------------------------------------------------------------

ALWAYS __m256 widen_bf16_half(__m128i h)
{
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(h), 16));
}
ALWAYS v16 v_load_bf16(const uint16_t *p)
{
    return (v16){widen_bf16_half(_mm_loadu_si128((const __m128i *)p)),
                 widen_bf16_half(_mm_loadu_si128((const __m128i *)(p + 8)))};
}
ALWAYS v16 v_load_bf16_n(const uint16_t *p, int64_t n)
{
    if (n >= 16)
        return v_load_bf16(p);
    uint16_t part[16] = {0};
    memcpy(part, p, (size_t)n * sizeof *p);
    return v_load_bf16(part);
}
ALWAYS __m256i bf16_high_half(__m256 a)
{
    __m256i u = _mm256_castps_si256(a);
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 16), _mm256_set1_epi32(1));
    __m256i r = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7fff)), odd);
    __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    r = _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x400000)), nan);
    return _mm256_and_si256(r, _mm256_set1_epi32((int)0xffff0000u));
}
ALWAYS v16 v_round_bf16(v16 a)
{
    return (v16){_mm256_castsi256_ps(bf16_high_half(a.lo)), _mm256_castsi256_ps(bf16_high_half(a.hi))};
}
// The upper halves of the lanes: of numbers that are bf16 already, their codes.
ALWAYS __m256i upper_halves(__m256i lo, __m256i hi)
{
    return _mm256_permute4x64_epi64(_mm256_packus_epi32(_mm256_srli_epi32(lo, 16), _mm256_srli_epi32(hi, 16)),
                                    0xd8);
}
ALWAYS void v_store_upper(uint16_t *p, v16 a)
{
    _mm256_storeu_si256((__m256i *)p, upper_halves(_mm256_castps_si256(a.lo), _mm256_castps_si256(a.hi)));
}
ALWAYS void v_store_bf16(uint16_t *p, v16 a)
{
    _mm256_storeu_si256((__m256i *)p, upper_halves(bf16_high_half(a.lo), bf16_high_half(a.hi)));
}
ALWAYS void v_store_bf16_n(uint16_t *p, v16 a, int64_t n)
{
    if (n >= 16) {
        v_store_bf16(p, a);
        return;
    }
    uint16_t part[16];
    v_store_bf16(part, a);
    memcpy(p, part, (size_t)n * sizeof *p);
}
ALWAYS v16 v_load_fp8(const uint8_t *p)
{
    __m256i w = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    __m256i low = _mm256_and_si256(w, _mm256_set1_epi16(0x7f));
    __m256i h = _mm256_or_si256(_mm256_slli_epi16(_mm256_xor_si256(w, low), 8), _mm256_slli_epi16(low, 7));
    __m256i nan = _mm256_cmpeq_epi16(low, _mm256_set1_epi16(0x7f));
    h = _mm256_or_si256(h, _mm256_and_si256(nan, _mm256_set1_epi16(0x7e00)));
    __m256 scale = _mm256_set1_ps(256.0f);
    return (v16){_mm256_mul_ps(_mm256_cvtph_ps(_mm256_castsi256_si128(h)), scale),
                 _mm256_mul_ps(_mm256_cvtph_ps(_mm256_extracti128_si256(h, 1)), scale)};
}
ALWAYS v16 v_load_fp8_n(const uint8_t *p, int64_t n)
{
    if (n >= 16)
        return v_load_fp8(p);
    uint8_t part[16] = {0};
    memcpy(part, p, (size_t)n);
    return v_load_fp8(part);
}
ALWAYS __m256i fp8_half(__m256 a)
{
    __m256i all = _mm256_castps_si256(a), u = _mm256_and_si256(all, _mm256_set1_epi32(0x7fffffff));
    __m256i sign = _mm256_and_si256(_mm256_srli_epi32(all, 24), _mm256_set1_epi32(0x80));
    __m256i odd = _mm256_and_si256(_mm256_srli_epi32(u, 20), _mm256_set1_epi32(1));
    __m256i q = _mm256_add_epi32(_mm256_add_epi32(u, _mm256_set1_epi32(0x7ffff)), odd);
    q = _mm256_sub_epi32(_mm256_srli_epi32(q, 20), _mm256_set1_epi32(120 << 3));
    __m256 shifted = _mm256_add_ps(_mm256_castsi256_ps(u), _mm256_set1_ps(16384.0f));
    __m256i small = _mm256_and_si256(_mm256_castps_si256(shifted), _mm256_set1_epi32(0xff));
    q = _mm256_blendv_epi8(q, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), u));
    q = _mm256_blendv_epi8(q, _mm256_set1_epi32(0x7e), _mm256_cmpgt_epi32(u, _mm256_set1_epi32(0x43dfffff)));
    q = _mm256_blendv_epi8(q, _mm256_set1_epi32(0x7f), _mm256_cmpgt_epi32(u, _mm256_set1_epi32(0x7f800000)));
    return _mm256_or_si256(q, sign);
}
ALWAYS void v_store_fp8_n(uint8_t *p, v16 a, int64_t n)
{
    __m256i h = _mm256_permute4x64_epi64(_mm256_packus_epi32(fp8_half(a.lo), fp8_half(a.hi)), 0xd8);
    uint8_t part[16];
    _mm_storeu_si128((__m128i *)part,
                     _mm_packus_epi16(_mm256_castsi256_si128(h), _mm256_extracti128_si256(h, 1)));
    memcpy(p, part, (size_t)(n < 16 ? n : 16));
}

struct d16 {
    __m256d q[4];
};
ALWAYS struct d16 d_zero(void)
{
    __m256d z = _mm256_setzero_pd();
    return (struct d16){{z, z, z, z}};
}
ALWAYS struct d16 d_add_square(struct d16 s, v16 a)
{
    __m256d x[4] = {
        _mm256_cvtps_pd(_mm256_castps256_ps128(a.lo)), _mm256_cvtps_pd(_mm256_extractf128_ps(a.lo, 1)),
        _mm256_cvtps_pd(_mm256_castps256_ps128(a.hi)), _mm256_cvtps_pd(_mm256_extractf128_ps(a.hi, 1))};
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        s.q[i] = _mm256_fmadd_pd(x[i], x[i], s.q[i]);
    return s;
}
ALWAYS double d_fold(struct d16 s)
{
    __m256d q = _mm256_add_pd(_mm256_add_pd(s.q[0], s.q[2]), _mm256_add_pd(s.q[1], s.q[3]));
    __m128d h = _mm_add_pd(_mm256_castpd256_pd128(q), _mm256_extractf128_pd(q, 1));
    return _mm_cvtsd_f64(_mm_add_sd(h, _mm_unpackhi_pd(h, h)));
}

// Eight rows of eight become columns.
ALWAYS void transpose_half(__m256 a[8])
{
    __m256 b[8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 2) {
        b[i] = _mm256_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm256_unpackhi_ps(a[i], a[i + 1]);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i += 4) {
        a[i] = _mm256_shuffle_ps(b[i], b[i + 2], 0x44);
        a[i + 1] = _mm256_shuffle_ps(b[i], b[i + 2], 0xee);
        a[i + 2] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0x44);
        a[i + 3] = _mm256_shuffle_ps(b[i + 1], b[i + 3], 0xee);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 4; i++) {
        b[i] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x20);
        b[i + 4] = _mm256_permute2f128_ps(a[i], a[i + 4], 0x31);
    }
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++)
        a[i] = b[i];
}
// Four squares of eight; the two off the diagonal change places.
ALWAYS void v_transpose(v16 a[16])
{
    __m256 q[4][8];
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        q[0][i] = a[i].lo;
        q[1][i] = a[i].hi;
        q[2][i] = a[i + 8].lo;
        q[3][i] = a[i + 8].hi;
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++)
        transpose_half(q[i]);
#pragma GCC unroll 8
    for (int i = 0; i < 8; i++) {
        a[i] = (v16){q[0][i], q[2][i]};
        a[i + 8] = (v16){q[1][i], q[3][i]};
    }
}

#endif
#endif
