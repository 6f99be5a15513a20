// FP8 codes as bf16, exactly: two tables of 128 bytes by the low seven bits, the sign put back.
#ifndef KERNELS_AVX512BF16_WIDEN_H
#define KERNELS_AVX512BF16_WIDEN_H

#include "kernels/avx512bf16/fp8_bf16.h"
#include "kernels/avx512bf16/lanes.h"

#if defined(__AVX512BF16__) && defined(__AVX512VBMI__)

#define WIDEN_CODES 64 // codes of 32 pairs

// Where among 64 codes number j (0 or 1) of pair c (0 … 31) lies: the order that byte unpacking turns into two vectors of pairs.
static inline int64_t widen_place(int64_t c, int64_t j)
{
    return c % 16 / 4 * 16 + c / 16 * 8 + c % 4 * 2 + j;
}

#define LOW(q)  (uint8_t)(FP8_BF16(q) & 0xff)
#define HIGH(q) (uint8_t)(FP8_BF16(q) >> 8)
#define CODES8(f, q)                                                                                         \
    f((q)), f((q) + 1), f((q) + 2), f((q) + 3), f((q) + 4), f((q) + 5), f((q) + 6), f((q) + 7)
#define CODES32(f, q) CODES8(f, q), CODES8(f, (q) + 8), CODES8(f, (q) + 16), CODES8(f, (q) + 24)
#define CODES(f)      CODES32(f, 0), CODES32(f, 32), CODES32(f, 64), CODES32(f, 96)

static const uint8_t FP8_LOW[128] __attribute__((aligned(64))) = {CODES(LOW)};
static const uint8_t FP8_HIGH[128] __attribute__((aligned(64))) = {CODES(HIGH)};

// 64 codes → the pairs 0 … 15 and 16 … 31.
ALWAYS void widen_pairs(const uint8_t *codes, __m512i *ret_a, __m512i *ret_b)
{
    __m512i q = _mm512_loadu_si512(codes);
    __m512i low = _mm512_permutex2var_epi8(_mm512_load_si512(FP8_LOW), q, _mm512_load_si512(FP8_LOW + 64));
    __m512i high = _mm512_permutex2var_epi8(_mm512_load_si512(FP8_HIGH), q, _mm512_load_si512(FP8_HIGH + 64));
    high = _mm512_ternarylogic_epi64(high, q, _mm512_set1_epi8((char)0x80), 0xf8); // high | (q & 0x80)
    *ret_a = _mm512_unpacklo_epi8(low, high);
    *ret_b = _mm512_unpackhi_epi8(low, high);
}

#endif
#endif
