// Packing of weights into tile order (amx.h); f32 weights keep the common panels. A pair of inputs is one 32-bit lane: matrices that
// lie by outputs are turned in squares of 16 outputs x 16 pairs, those that lie by inputs interleave two rows. Run by the pool's
// threads, a range of panels each.
#include <assert.h>

#include "kernels/amx/amx.h"
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/lanes.h"
#include "kernels/avx512bf16/bf16_codes.h"
#include "kernels/ref/ref.h"

size_t AMX(weight_bytes)(enum dtype dtype, int64_t n, int64_t k)
{
    return ref_weight_bytes(dtype, n, dtype == DT_F32 ? k : amx_padded(k));
}

struct pack {
    int64_t n, k;
    enum dtype from;
    const void *src;
    char *dst;
};

// Up to 32 codes of one output, 0 beyond: a pair in the low half of each lane.
ALWAYS __m512i code_pairs(const struct pack *p, int64_t at, int64_t n)
{
    __mmask32 m = n >= 32 ? 0xffffffffu : (1u << n) - 1;
    return _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi8(m, (const uint8_t *)p->src + at));
}

// src [n, k]
static void pack_by_outputs(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct pack *p = ctx;
    int64_t k_pad = amx_padded(p->k);
    bool fp8 = p->from == DT_FP8;
    for (int64_t n0 = begin; n0 < end; n0 += TILE_DIM)
        for (int64_t k0 = 0; k0 < p->k; k0 += TILE_K) {
            v16 a[16];
            for (int64_t i = 0; i < 16; i++) {
                int64_t n = n0 + i, at = n * p->k + k0, left = min_i64(TILE_K, p->k - k0);
                a[i] = n >= p->n ? v_zero()
                       : fp8     ? _mm512_castsi512_ps(code_pairs(p, at, left))
                                 : bf16_pairs(p->from, p->src, at, left);
            }
            v_transpose(a);
            int64_t size = fp8 ? 1 : 2; // bytes of an element
            char *to = p->dst + (n0 / PANEL * PANEL * k_pad + k0 * PANEL + n0 % PANEL * 2) * size;
            for (int64_t i = 0; i < TILE_K / 2; i++, to += 2 * PANEL * size) {
                if (fp8)
                    _mm256_storeu_si256((__m256i *)(void *)to,
                                        _mm512_cvtepi32_epi16(_mm512_castps_si512(a[i])));
                else
                    _mm512_storeu_ps(to, a[i]);
            }
        }
}

// Up to 16 neighbours of input k as bf16 in the low halves of the lanes; 0 beyond the matrix.
ALWAYS __m512i input_row(const struct pack *p, int64_t k, int64_t n)
{
    int64_t left = min_i64(16, p->n - n), at = k * p->n + n;
    return k < p->k && left > 0 ? bf16_row(p->from, p->src, at, left) : _mm512_setzero_si512();
}

// src [k, n]
static void pack_by_inputs(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct pack *p = ctx;
    int64_t k_pad = amx_padded(p->k);
    for (int64_t n0 = begin; n0 < end; n0 += PANEL)
        for (int64_t k = 0; k < k_pad; k += 2)
            for (int64_t n = n0; n < n0 + PANEL; n += 16) {
                __m512i pairs =
                    _mm512_or_si512(input_row(p, k, n), _mm512_slli_epi32(input_row(p, k + 1, n), 16));
                _mm512_storeu_si512(p->dst + 2 * (n0 * k_pad + k * PANEL + (n - n0) * 2), pairs);
            }
}

void AMX(weight_pack)(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                      enum dtype src_dtype, bool transpose, void *dst)
{
    if (dtype == DT_F32) {
        avx512_weight_pack(d, dtype, n, k, src, src_dtype, transpose, dst);
        return;
    }
    assert(dtype == DT_FP8 ? src_dtype == DT_FP8 && !transpose : dtype == DT_BF16);
    assert(dtype == DT_FP8 || src_dtype == DT_F32 || src_dtype == DT_BF16);
    struct pack p = {n, k, src_dtype, src, dst};
    split_run(d, ceil_div(n, PANEL) * PANEL, PANEL, (double)k * 0.3,
              transpose ? pack_by_inputs : pack_by_outputs, &p);
}
