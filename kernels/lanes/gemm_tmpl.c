// Template: y = x W' over packed weights, every output one chain of f32 multiply-adds; bf16 and FP8 weights are widened in registers.
#include "kernels/lanes/gemm_drive_tmpl.c"
#include "kernels/lanes/tile_tmpl.c"

ALWAYS void gemm_tile(const int rows, const int cols, const enum dtype t, const struct gemm_pass *p,
                      int64_t r0, int64_t n)
{
    const struct gemm_weight *g = p->g->w;
    const int64_t size = (int64_t)dtype_bytes(t);
    const char *w = (const char *)g->data + (n / PANEL * PANEL * g->k + n % PANEL + p->k0 * PANEL) * size;
    struct operands o = {
        .a = p->x + r0 * p->ldx, .a_row = p->ldx, .a_k = 1, .b = w, .b_k = PANEL, .b_pair = PANEL * g->k};
    v16 acc[TILE_ROWS * TILE_COLS];
    gemm_ask(rows, cols, p, r0, n);
    gemm_begin(rows, cols, p, r0, n, acc);
    if (t != DT_FP8) {
        tile_chain(rows, cols, t, p->k1 - p->k0, &o, -1, acc);
    } else {
        v16 t_b[TILE_ROWS * TILE_COLS];
        int64_t blocks = ceil_div(g->k, FP8_BLOCK);
        for (int64_t k = p->k0; k < p->k1; k += FP8_BLOCK) {
#pragma GCC unroll 32
            for (int i = 0; i < rows * cols; i++)
                t_b[i] = v_zero();
            o.a = p->x + r0 * p->ldx + k - p->k0;
            o.b = w + (k - p->k0) * PANEL;
            tile_chain(rows, cols, t, min_i64(FP8_BLOCK, p->k1 - k), &o, -1, t_b);
#pragma GCC unroll 8
            for (int v = 0; v < cols; v++) {
                v16 scale = v_set(g->scales[(n + 16 * v) / FP8_BLOCK * blocks + k / FP8_BLOCK]);
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++)
                    acc[r * cols + v] = v_fma(t_b[r * cols + v], scale, acc[r * cols + v]);
            }
        }
    }
    gemm_end(rows, cols, p, r0, n, acc);
}

#define GEMM_DEFINE(name, t, rows, cols)                                                                     \
    static void gemm_##name##_##rows##_##cols(const struct gemm_pass *p, int64_t r0, int64_t n)              \
    {                                                                                                        \
        gemm_tile(rows, cols, t, p, r0, n);                                                                  \
    }
#define GEMM_NAME(name, t, rows, cols) gemm_##name##_##rows##_##cols,

GEMM_TILES(GEMM_DEFINE, f32, DT_F32)
GEMM_TILES(GEMM_DEFINE, bf16, DT_BF16)
GEMM_TILES(GEMM_DEFINE, fp8, DT_FP8)

static gemm_fn *gemm_pick(enum dtype t, int64_t rows, int64_t cols)
{
    static gemm_fn *const tiles[3][GEMM_TILE_COUNT] = {{GEMM_TILES(GEMM_NAME, f32, DT_F32)},
                                                       {GEMM_TILES(GEMM_NAME, bf16, DT_BF16)},
                                                       {GEMM_TILES(GEMM_NAME, fp8, DT_FP8)}};
    return tiles[t][gemm_tile_index(rows, cols)];
}

static int64_t gemm_units(int64_t k)
{
    return k;
}

static bool gemm_lies(const struct gemm *g)
{
    return g->w->dtype == DT_F32;
}

// As f32: rounded to bf16, or widened.
static void gemm_operand(const struct gemm *g, int64_t m0, int64_t m, int64_t k0, int64_t k1, float *to)
{
    const int64_t k = k1 - k0;
    for (int64_t r = 0; r < m; r++) {
        const void *row = gemm_x(g, m0 + r, k0);
        for (int64_t i = 0; i < k; i += 16) {
            const int64_t n = min_i64(16, k - i);
            v16 a = g->x.dtype == DT_BF16 ? v_load_bf16_n((const uint16_t *)row + i, n)
                                          : v_round_bf16(v_load_n((const float *)row + i, n));
            v_store_n(to + r * k + i, a, n);
        }
    }
}

void LANES(gemm)(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x, const float *bias,
                 bool accumulate, float *y, int64_t ldy)
{
    gemm_run(d, w, m, x, bias, accumulate, y, ldy);
}
