// Template: weight gradients, every element of dw one chain of f32 multiply-adds over the rows of the batch.
#define DW_STEPS(m) (m)
#include "kernels/lanes/gemm_dw_drive_tmpl.c"

static void dw_tile(int64_t steps, const float *dy, const float *x, const float *ahead, float *c, bool fresh)
{
    (void)ahead;
    struct operands o = {.a = dy, .a_row = 1, .a_k = TILE_ROWS, .b = x, .b_k = TILE_WIDTH, .b_pair = 32};
    tile_memory(TILE_ROWS, DT_F32, false, steps, &o, -1, c, TILE_WIDTH, fresh);
}

static void dw_pack(enum dtype dtype, const float *src, int64_t ld, int64_t m, int64_t cols, int64_t width,
                    int64_t stride, float *dst)
{
    for (int64_t i = 0; i < m; i++, dst += width) {
        float *to = dst;
        for (int64_t c = 0; c < cols; c += width, to += stride)
            for (int64_t j = 0; j < width; j += 16) {
                int64_t in = max_i64(0, min_i64(min_i64(16, width - j), cols - c - j));
                v16 a = v_load_n(src + i * ld + c + j, in);
                if (i + 4 < m) // rows lie far apart: no hardware prefetcher follows
                    __builtin_prefetch(src + (i + 4) * ld + c + j);
                v_store_n(to + j, dtype == DT_BF16 ? v_round_bf16(a) : a, min_i64(16, width - j));
            }
    }
}

void LANES(gemm_dw)(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, const float *dy,
                    int64_t lddy, const float *x, int64_t ldx, float *dw)
{
    gemm_dw_run(d, dtype, m, n, k, dy, lddy, x, ldx, dw);
}
