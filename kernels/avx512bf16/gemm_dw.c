// Weight gradients on pairs of bf16: rows 2i and 2i+1 of the batch make one step of the chain. In f32 they are avx512's.
#include "kernels/avx512bf16/avx512bf16.h"
#include "kernels/avx512bf16/lanes.h"

#define DW_STEPS(m) (((m) + 1) / 2)
#include "kernels/lanes/gemm_dw_drive_tmpl.c"

// Rows i and i + 1 as pairs, tiles of a width known to the compiler.
ALWAYS void pack_f32(const int width, const float *row, int64_t ld, bool second, int64_t cols, int64_t stride,
                     float *to)
{
    int64_t c = 0;
    if (second)
        for (; c + ceil_div(width, 16) * 16 <= cols; c += width, to += stride)
#pragma GCC unroll 2
            for (int j = 0; j < width; j += 16) {
                const float *at = row + c + j;
                __builtin_prefetch(at + 32 * ld); // rows lie far apart: no hardware prefetcher follows
                __builtin_prefetch(at + 33 * ld);
                _mm512_mask_storeu_ps(to + j, v_mask(width - j), v_pairs(v_load(at), v_load(at + ld)));
            }
    for (; c < cols; c += width, to += stride)
        for (int j = 0; j < width; j += 16) {
            int64_t in = max_i64(0, min_i64(min_i64(16, width - j), cols - c - j));
            const float *at = row + c + j;
            v16 b = second ? v_load_n(at + ld, in) : v_zero();
            v_store_n(to + j, v_pairs(v_load_n(at, in), b), min_i64(16, width - j));
        }
}

// Lane l: columns first + l of two rows of halves.
ALWAYS __m512i pair_order(int first)
{
    const __m512i lane = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    __m512i a = _mm512_add_epi32(lane, _mm512_set1_epi32(first));
    return _mm512_or_si512(a, _mm512_slli_epi32(_mm512_add_epi32(a, _mm512_set1_epi32(32)), 16));
}

ALWAYS __mmask32 mask_halves(int64_t n)
{
    return n >= 32 ? (__mmask32)-1 : ((__mmask32)1 << n) - 1;
}

// The same from rows that are bf16 already: two vectors of pairs at a time, two tiles of dy or one of x.
ALWAYS void pack_bf16(const int width, const uint16_t *row, int64_t ld, bool second, int64_t cols,
                      int64_t stride, float *to)
{
    const int lanes = width < 16 ? width : 16;
    const int64_t other = width < 16 ? stride : 16, next = width < 16 ? 2 * stride : stride;
    const __m512i low = pair_order(0), high = pair_order(lanes);
    for (int64_t c = 0; c < cols; c += 2 * lanes, to += next) {
        const __mmask32 in = mask_halves(min_i64(2 * lanes, cols - c));
        __m512i a = _mm512_maskz_loadu_epi16(in, row + c), b = _mm512_setzero_si512();
        if (second) {
            b = _mm512_maskz_loadu_epi16(in, row + ld + c);
            __builtin_prefetch(row + c + 32 * ld); // rows lie far apart: no hardware prefetcher follows
            __builtin_prefetch(row + c + 33 * ld);
        }
        _mm512_mask_storeu_epi32(to, v_mask(lanes), _mm512_permutex2var_epi16(a, low, b));
        if (width > 16 || c + lanes < cols)
            _mm512_mask_storeu_epi32(to + other, v_mask(lanes), _mm512_permutex2var_epi16(a, high, b));
    }
}

static void dw_pack(enum dtype dtype, struct rows src, int64_t m, int64_t cols, int64_t width, int64_t stride,
                    float *dst)
{
    (void)dtype;
    const int64_t ld = src.ld;
    for (int64_t i = 0; i < m; i += 2, dst += width) {
        const struct rows row = rows_from(src, i * ld);
        const bool second = i + 1 < m;
        if (src.dtype == DT_BF16 && width == TILE_ROWS)
            pack_bf16(TILE_ROWS, row.at, ld, second, cols, stride, dst);
        else if (src.dtype == DT_BF16)
            pack_bf16(TILE_WIDTH, row.at, ld, second, cols, stride, dst);
        else if (width == TILE_ROWS)
            pack_f32(TILE_ROWS, row.at, ld, second, cols, stride, dst);
        else
            pack_f32(TILE_WIDTH, row.at, ld, second, cols, stride, dst);
    }
}

static void dw_tile(int64_t steps, const float *dy, const float *x, struct dw_ahead ahead, float *c,
                    bool fresh)
{
    v16 acc[TILE_ROWS * TILE_COLS];
#pragma GCC unroll 32
    for (int i = 0; i < TILE_ROWS * TILE_COLS; i++)
        acc[i] = fresh ? v_zero() : v_load(c + 16 * i);
    for (int64_t s = 0; s < steps; s++, dy += TILE_ROWS, x += TILE_WIDTH, ahead.at += ahead.stride) {
        __m512i x0 = _mm512_castps_si512(v_load(x)), x1 = _mm512_castps_si512(v_load(x + 16));
        __builtin_prefetch(dy + 40 * TILE_ROWS);
        __builtin_prefetch(ahead.at, 0, 2);
        __builtin_prefetch(ahead.at + 16, 0, 2);
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++) {
            v16 a = v_set(dy[r]);
            acc[2 * r] = v_dot_pairs(acc[2 * r], a, x0);
            acc[2 * r + 1] = v_dot_pairs(acc[2 * r + 1], a, x1);
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < TILE_ROWS * TILE_COLS; i++)
        v_store(c + 16 * i, acc[i]);
}

void avx512bf16_gemm_dw(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                        struct rows x, float *dw)
{
    if (dtype == DT_F32)
        avx512_gemm_dw(d, dtype, m, n, k, dy, x, dw);
    else
        gemm_dw_run(d, dtype, m, n, k, dy, x, dw);
}
