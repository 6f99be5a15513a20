// Packing of weights into pairs (avx512bf16.h); f32 weights keep the common panels. A pair of inputs is one 32-bit lane: matrices that
// lie by outputs are turned in squares of 16 outputs x 16 pairs, those that lie by inputs interleave two rows. See lanes/weight_tmpl.c.
#include <assert.h>

#include "kernels/avx512bf16/avx512bf16.h"
#include "kernels/avx512bf16/bf16_codes.h"
#include "kernels/avx512bf16/lanes.h"
#include "kernels/ref/ref.h"

#define PACK_GROUP 4 // panels that go together when rows are cut
#define PACK_AHEAD 8 // rows or lines of the source asked for in advance

size_t avx512bf16_weight_bytes(enum dtype dtype, int64_t n, int64_t k)
{
    return ref_weight_bytes(dtype, n, dtype == DT_F32 ? k : k + k % 2);
}

struct pack {
    int64_t n, k, k_pad; // k_pad: k rounded up to whole pairs
    const void *src;
    void *dst;
    bool past; // whole lines go past the caches: codes that come as such are weights being loaded
};

ALWAYS void line_store(const bool past, void *dst, __m512i line)
{
    if (past)
        _mm512_stream_si512(dst, line);
    else
        _mm512_storeu_si512(dst, line);
}

// 16 outputs from n0 on, up to 32 inputs from k0 on.
ALWAYS void turn_square(const enum dtype from, const struct pack *p, int64_t n0, int64_t k0, int64_t left,
                        const bool whole, const bool past)
{
    v16 a[16];
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; i++) {
        int64_t n = n0 + i, at = n * p->k + k0;
        if (from == DT_F32) {
            __builtin_prefetch((const char *)p->src + at * 4 + 64 * PACK_AHEAD);
            __builtin_prefetch((const char *)p->src + at * 4 + 64 * PACK_AHEAD + 64);
        }
        a[i] = whole || n < p->n ? bf16_pairs(from, p->src, at, left) : v_zero();
    }
    v_transpose(a);
    uint16_t *dst = (uint16_t *)p->dst + n0 / PANEL * PANEL * p->k_pad + k0 * PANEL + 2 * (n0 % PANEL);
    for (int64_t i = 0; 2 * i < left; i++)
        line_store(past, dst + i * 2 * PANEL, _mm512_castps_si512(a[i]));
}

// src [n, k]. Meanwhile the lines of the next panel come, each asked for once.
ALWAYS void pack_turned(const enum dtype from, const struct pack *p, int64_t begin, int64_t end,
                        const bool past)
{
    for (int64_t n0 = begin; n0 < end; n0 += PANEL) {
        bool whole = n0 + PANEL <= p->n;
        const char *next = (const char *)p->src + (n0 + PANEL) * p->k * 2;
        for (int64_t k0 = 0; k0 < p->k; k0 += 32) {
            for (int64_t i = 0; i < PANEL && from == DT_BF16; i++)
                _mm_prefetch(next + k0 * PANEL * 2 + 64 * i, _MM_HINT_T1);
            for (int64_t half = 0; half < PANEL; half += 16)
                if (whole && k0 + 32 <= p->k)
                    turn_square(from, p, n0 + half, k0, 32, true, past);
                else
                    turn_square(from, p, n0 + half, k0, min_i64(32, p->k - k0), false, past);
        }
    }
}

// src [k, n]
ALWAYS void pack_cut(const enum dtype from, const struct pack *p, int64_t begin, int64_t end)
{
    const int64_t group = PACK_GROUP * PANEL, size = (int64_t)dtype_bytes(from);
    for (int64_t g = begin; g < end; g += group)
        for (int64_t k = 0; k < p->k; k += 2) {
            int64_t stop = min_i64(g + group, end);
            for (int64_t n = g; n < stop; n += 16) {
                int64_t at = k * p->n + n, cols = max_i64(0, min_i64(16, p->n - n));
                __builtin_prefetch((const char *)p->src + (at + PACK_AHEAD * p->n) * size);
                __builtin_prefetch((const char *)p->src + (at + (PACK_AHEAD + 1) * p->n) * size);
                __m512i a = _mm512_setzero_si512(), b = a;
                if (cols)
                    a = bf16_row(from, p->src, at, cols);
                if (cols && k + 1 < p->k)
                    b = bf16_row(from, p->src, at + p->n, cols);
                int64_t dst = n / PANEL * PANEL * p->k_pad + k * PANEL + 2 * (n % PANEL);
                _mm512_storeu_si512((uint16_t *)p->dst + dst, _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
            }
        }
}

// Sixteen codes; those past n are 0.
ALWAYS __m128i codes_load(const struct pack *p, int64_t n, int64_t k)
{
    if (n >= p->n)
        return _mm_setzero_si128();
    return _mm_maskz_loadu_epi8(v_mask(p->k - k), (const uint8_t *)p->src + n * p->k + k);
}

// FP8: 32 outputs from n0 on, up to 16 inputs from k0 on.
ALWAYS void codes_square(const struct pack *p, int64_t n0, int64_t k0, const bool whole, const bool past)
{
    const uint8_t *src = (const uint8_t *)p->src + n0 * p->k + k0;
    __m512i a[8], b[8];
#pragma GCC unroll 8
    for (int64_t r = 0; r < 8; r++) {
        int64_t i = r % 4 + r / 4 * 16;
        __m128i x[4];
#pragma GCC unroll 4
        for (int64_t q = 0; q < 4; q++)
            x[q] = whole ? _mm_loadu_si128((const __m128i *)(const void *)(src + (i + 4 * q) * p->k))
                         : codes_load(p, n0 + i + 4 * q, k0);
        a[r] = _mm512_inserti32x4(_mm512_castsi128_si512(x[0]), x[1], 1);
        a[r] = _mm512_inserti32x4(_mm512_inserti32x4(a[r], x[2], 2), x[3], 3);
    }
#pragma GCC unroll 3
    for (int round = 0; round < 3; round++) {
#pragma GCC unroll 4
        for (int i = 0; i < 4; i++) {
            b[2 * i] = _mm512_unpacklo_epi16(a[i], a[i + 4]);
            b[2 * i + 1] = _mm512_unpackhi_epi16(a[i], a[i + 4]);
        }
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++)
            a[i] = b[i];
    }
    uint8_t *dst = (uint8_t *)p->dst + n0 * p->k_pad + k0 * PANEL;
#pragma GCC unroll 8
    for (int64_t i = 0; i < 8; i++)
        if (whole || k0 + 2 * i < p->k)
            line_store(past, dst + i * 2 * PANEL, a[i]);
}

// src [n, k]: the order that avx512bf16.h gives. A pair-row is four lanes of 128 bits; lane q holds the pairs of the columns 4q … 4q+3,
// then those of 16+4q … 19+4q. So register r takes the r-th of these eight columns of every lane, and squares of 8 x 8
// pairs are turned inside the lanes. Meanwhile the lines of the next panel come, each asked for once.
ALWAYS void pack_codes(const struct pack *p, int64_t begin, int64_t end, const bool past)
{
    for (int64_t n0 = begin; n0 < end; n0 += PANEL) {
        bool whole = n0 + PANEL <= p->n;
        const char *next = (const char *)p->src + (n0 + PANEL) * p->k;
        for (int64_t k0 = 0; k0 < p->k; k0 += 16) {
#pragma GCC unroll 8
            for (int64_t i = 0; i < 8; i++)
                _mm_prefetch(next + k0 * PANEL + 64 * i, _MM_HINT_T1);
            if (whole && k0 + 16 <= p->k)
                codes_square(p, n0, k0, true, past);
            else
                codes_square(p, n0, k0, false, past);
        }
    }
}

static void codes(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct pack *p = ctx;
    if (p->past) {
        pack_codes(p, begin, end, true);
        _mm_sfence(); // such stores come after others unless told
    } else {
        pack_codes(p, begin, end, false);
    }
}

static void turned_bf16(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct pack *p = ctx;
    if (p->past) {
        pack_turned(DT_BF16, p, begin, end, true);
        _mm_sfence();
    } else {
        pack_turned(DT_BF16, p, begin, end, false);
    }
}

static void turned_f32(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    pack_turned(DT_F32, ctx, begin, end, false);
}

#define PACK_DEFINE(name, way, from)                                                                         \
    static void name(void *ctx, int64_t begin, int64_t end, int thread)                                      \
    {                                                                                                        \
        (void)thread;                                                                                        \
        way(from, ctx, begin, end);                                                                          \
    }
PACK_DEFINE(cut_f32, pack_cut, DT_F32)
PACK_DEFINE(cut_bf16, pack_cut, DT_BF16)

void avx512bf16_weight_pack(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                            enum dtype src_dtype, bool transpose, void *dst)
{
    static split_fn *const fns[2][2] = {{turned_f32, turned_bf16}, {cut_f32, cut_bf16}};
    if (dtype == DT_F32) {
        avx512_weight_pack(d, dtype, n, k, src, src_dtype, transpose, dst);
        return;
    }
    assert(dtype == DT_FP8 ? src_dtype == DT_FP8 && !transpose : dtype == DT_BF16);
    assert(dtype == DT_FP8 || src_dtype == DT_F32 || src_dtype == DT_BF16);
    struct pack p = {n, k, k + k % 2, src, dst, false};
    p.past = (uintptr_t)dst % 64 == 0;
    split_fn *fn = dtype == DT_FP8 ? codes : fns[transpose][src_dtype == DT_BF16];
    split_run(d, ceil_div(n, PANEL) * PANEL, PANEL, (double)k * 0.3, fn, &p);
}
