// Weight gradients on pairs of bf16: rows 2i and 2i+1 of the batch make one step of the chain. In f32 they are avx512's.
#include "kernels/avx512bf16/avx512bf16.h"
#include "kernels/avx512bf16/lanes.h"

#define DW_STEPS(m) (((m) + 1) / 2)
#include "kernels/lanes/gemm_dw_drive_tmpl.c"

static void dw_pack(const struct gemm_dw *g, const float *src, int64_t ld, int64_t m, int64_t c0, int64_t c1,
                    int64_t width, float *dst)
{
    (void)g;
    int64_t steps = DW_STEPS(m);
    for (int64_t i = 0; i < m; i += 2, dst += width) {
        float *to = dst;
        for (int64_t c = c0; c < c1; c += width, to += steps * width)
            for (int64_t j = 0; j < width; j += 16) {
                int64_t in = max_i64(0, min_i64(min_i64(16, width - j), c1 - c - j));
                const float *row = src + i * ld + c + j;
                v16 a = v_load_n(row, in), b = i + 1 < m ? v_load_n(row + ld, in) : v_zero();
                if (i + 5 < m) { // rows lie far apart: no hardware prefetcher follows
                    __builtin_prefetch(row + 4 * ld);
                    __builtin_prefetch(row + 5 * ld);
                }
                v_store_n(to + j, v_pairs(a, b), min_i64(16, width - j));
            }
    }
}

static void dw_tile(int64_t steps, const struct operands *o, float *c, bool fresh)
{
    v16 acc[TILE_ROWS * TILE_COLS];
#pragma GCC unroll 32
    for (int i = 0; i < TILE_ROWS * TILE_COLS; i++)
        acc[i] = fresh ? v_zero() : v_load(c + 16 * i);
    const float *a = o->a, *b = o->b;
    for (int64_t s = 0; s < steps; s++, a += TILE_ROWS, b += TILE_WIDTH) {
        __m512i b0 = _mm512_castps_si512(v_load(b)), b1 = _mm512_castps_si512(v_load(b + 16));
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++) {
            v16 av = v_set(a[r]);
            acc[2 * r] = v_dot_pairs(acc[2 * r], av, b0);
            acc[2 * r + 1] = v_dot_pairs(acc[2 * r + 1], av, b1);
        }
    }
#pragma GCC unroll 32
    for (int i = 0; i < TILE_ROWS * TILE_COLS; i++)
        v_store(c + 16 * i, acc[i]);
}

void avx512bf16_gemm_dw(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, const float *dy,
                        int64_t lddy, const float *x, int64_t ldx, float *dw)
{
    if (dtype == DT_F32)
        avx512_gemm_dw(d, dtype, m, n, k, dy, lddy, x, ldx, dw);
    else
        gemm_dw_run(d, dtype, m, n, k, dy, lddy, x, ldx, dw);
}
