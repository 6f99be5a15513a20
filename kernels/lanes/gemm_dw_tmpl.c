// Template: weight gradients, every element of dw one chain of f32 multiply-adds over the rows of the batch.
#define DW_STEPS(m) (m)
#include "kernels/lanes/gemm_dw_drive_tmpl.c"

static void dw_tile(int64_t steps, const float *dy, const float *x, struct dw_ahead ahead, float *c,
                    bool fresh)
{
    (void)ahead;
    struct operands o = {.a = dy, .a_row = 1, .a_k = TILE_ROWS, .b = x, .b_k = TILE_WIDTH, .b_pair = 32};
    tile_memory(TILE_ROWS, DT_F32, false, steps, &o, -1, c, TILE_WIDTH, fresh);
}

// Columns [i, i + n), n <= 16, as a product in `dtype` takes them.
ALWAYS v16 row_load(enum dtype dtype, const struct rows *r, int64_t i, int64_t n)
{
    if (r->dtype == DT_BF16)
        return v_load_bf16_n((const uint16_t *)r->at + i, n);
    v16 a = v_load_n((const float *)r->at + i, n);
    return dtype == DT_BF16 ? v_round_bf16(a) : a;
}

static void dw_pack(enum dtype dtype, struct rows src, int64_t m, int64_t cols, int64_t width, int64_t stride,
                    float *dst)
{
    const int64_t bytes = (int64_t)dtype_bytes(src.dtype);
    for (int64_t i = 0; i < m; i++, dst += width) {
        float *to = dst;
        for (int64_t c = 0; c < cols; c += width, to += stride)
            for (int64_t j = 0; j < width; j += 16) {
                int64_t in = max_i64(0, min_i64(min_i64(16, width - j), cols - c - j));
                if (i + 4 < m) // rows lie far apart: no hardware prefetcher follows
                    __builtin_prefetch((const char *)src.at + ((i + 4) * src.ld + c + j) * bytes);
                v_store_n(to + j, row_load(dtype, &src, i * src.ld + c + j, in), min_i64(16, width - j));
            }
    }
}

void LANES(gemm_dw)(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                    struct rows x, float *dw)
{
    gemm_dw_run(d, dtype, m, n, k, dy, x, dw);
}
