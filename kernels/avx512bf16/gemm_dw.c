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
                __builtin_prefetch(at + 4 * ld); // rows lie far apart: no hardware prefetcher follows
                __builtin_prefetch(at + 5 * ld);
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

// The same from rows that are bf16 already.
ALWAYS void pack_bf16(const int width, const uint16_t *row, int64_t ld, bool second, int64_t cols,
                      int64_t stride, float *to)
{
    for (int64_t c = 0; c < cols; c += width, to += stride)
#pragma GCC unroll 2
        for (int j = 0; j < width; j += 16) {
            const __mmask16 in = v_mask(max_i64(0, min_i64(min_i64(16, width - j), cols - c - j)));
            const uint16_t *at = row + c + j;
            if (second) {
                __builtin_prefetch(at + 4 * ld);
                __builtin_prefetch(at + 5 * ld);
            }
            __m512i a = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, at));
            __m512i b = second ? _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(in, at + ld))
                               : _mm512_setzero_si512();
            _mm512_mask_storeu_epi32(to + j, v_mask(width - j), _mm512_or_si512(a, _mm512_slli_epi32(b, 16)));
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

static void dw_tile(int64_t steps, const float *dy, const float *x, const float *ahead, float *c, bool fresh)
{
    const int64_t ahead_step = ahead ? TILE_WIDTH : 0;
    const float *next = ahead ? ahead : x;
    v16 acc[TILE_ROWS * TILE_COLS];
#pragma GCC unroll 32
    for (int i = 0; i < TILE_ROWS * TILE_COLS; i++)
        acc[i] = fresh ? v_zero() : v_load(c + 16 * i);
    for (int64_t s = 0; s < steps; s++, dy += TILE_ROWS, x += TILE_WIDTH, next += ahead_step) {
        __m512i x0 = _mm512_castps_si512(v_load(x)), x1 = _mm512_castps_si512(v_load(x + 16));
        __builtin_prefetch(dy + 40 * TILE_ROWS);
        __builtin_prefetch(next, 0, 2);
        __builtin_prefetch(next + 16, 0, 2);
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
