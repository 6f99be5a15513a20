// Template: y = x W' over packed weights, every output one chain of f32 multiply-adds; bf16 and FP8 weights are widened in registers.
#include "kernels/lanes/gemm_drive_tmpl.c"
#include "kernels/lanes/tile_tmpl.c"

ALWAYS void gemm_tile(const int rows, const int cols, const enum dtype t, const struct gemm *g, int64_t m0,
                      const float *x, int64_t ldx, int64_t n0)
{
    const int64_t k = g->w->k, size = (int64_t)dtype_bytes(t);
    const char *w = (const char *)g->w->data + (n0 / PANEL * PANEL * k + n0 % PANEL) * size;
    struct operands o = {.a = x, .a_row = ldx, .a_k = 1, .b = w, .b_k = PANEL, .b_pair = PANEL * k};
    v16 acc[TILE_ROWS * TILE_COLS];
    if (t != DT_FP8) {
#pragma GCC unroll 32
        for (int i = 0; i < rows * cols; i++)
            acc[i] = v_zero();
        tile_chain(rows, cols, t, k, &o, -1, acc);
    } else {
        v16 total[TILE_ROWS * TILE_COLS];
        int64_t blocks = ceil_div(k, FP8_BLOCK);
        for (int i = 0; i < rows * cols; i++)
            total[i] = v_zero();
        for (int64_t b = 0; b < blocks; b++) {
#pragma GCC unroll 32
            for (int i = 0; i < rows * cols; i++)
                acc[i] = v_zero();
            o.a = x + b * FP8_BLOCK;
            o.b = w + b * FP8_BLOCK * PANEL;
            tile_chain(rows, cols, t, min_i64(FP8_BLOCK, k - b * FP8_BLOCK), &o, -1, acc);
#pragma GCC unroll 8
            for (int v = 0; v < cols; v++) {
                v16 scale = v_set(g->w->scales[(n0 + 16 * v) / FP8_BLOCK * blocks + b]);
#pragma GCC unroll 16
                for (int r = 0; r < rows; r++)
                    total[r * cols + v] = v_fma(acc[r * cols + v], scale, total[r * cols + v]);
            }
        }
#pragma GCC unroll 32
        for (int i = 0; i < rows * cols; i++)
            acc[i] = total[i];
    }
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
        for (int v = 0; v < cols; v++)
            gemm_finish(g, m0 + r, n0 + 16 * v, acc[r * cols + v]);
}

#define GEMM_DEFINE(rows, name, t)                                                                           \
    static void gemm_##name##_##rows(const struct gemm *g, int64_t m0, const float *x, int64_t ldx,          \
                                     int64_t n0)                                                             \
    {                                                                                                        \
        gemm_tile(rows, TILE_COLS, t, g, m0, x, ldx, n0);                                                    \
    }
#define GEMM_DEFINE_WIDE(rows, name, t)                                                                      \
    static void gemm_##name##_wide_##rows(const struct gemm *g, int64_t m0, const float *x, int64_t ldx,     \
                                          int64_t n0)                                                        \
    {                                                                                                        \
        gemm_tile(rows, TILE_WIDE(rows), t, g, m0, x, ldx, n0);                                              \
    }
#define GEMM_NAME(rows, name)      gemm_##name##_##rows,
#define GEMM_NAME_WIDE(rows, name) gemm_##name##_wide_##rows,
#if TILE_WIDE_ROWS == 6
#define WIDE_EACH(X, ...)                                                                                    \
    X(1, __VA_ARGS__)                                                                                        \
    X(2, __VA_ARGS__) X(3, __VA_ARGS__) X(4, __VA_ARGS__) X(5, __VA_ARGS__) X(6, __VA_ARGS__)
#else
#define WIDE_EACH(X, ...) X(1, __VA_ARGS__) X(2, __VA_ARGS__)
#endif

TILE_EACH(GEMM_DEFINE, f32, DT_F32)
TILE_EACH(GEMM_DEFINE, bf16, DT_BF16)
TILE_EACH(GEMM_DEFINE, fp8, DT_FP8)
WIDE_EACH(GEMM_DEFINE_WIDE, f32, DT_F32)
WIDE_EACH(GEMM_DEFINE_WIDE, bf16, DT_BF16)
WIDE_EACH(GEMM_DEFINE_WIDE, fp8, DT_FP8)

static gemm_fn *const NARROW[3][TILE_ROWS] = {
    {TILE_EACH(GEMM_NAME, f32)}, {TILE_EACH(GEMM_NAME, bf16)}, {TILE_EACH(GEMM_NAME, fp8)}};
static gemm_fn *const WIDE[3][TILE_WIDE_ROWS] = {
    {WIDE_EACH(GEMM_NAME_WIDE, f32)}, {WIDE_EACH(GEMM_NAME_WIDE, bf16)}, {WIDE_EACH(GEMM_NAME_WIDE, fp8)}};

static gemm_fn *gemm_pick(enum dtype t, int64_t rows, bool wide)
{
    return wide ? WIDE[t][rows - 1] : NARROW[t][rows - 1];
}

// Rounded to bf16 where the weights are bf16 or FP8.
static const float *gemm_operand(const struct gemm *g, int64_t m0, int64_t m, int thread, int64_t *ret_ldx)
{
    const float *x = g->x + m0 * g->ldx;
    *ret_ldx = g->ldx;
    if (g->w->dtype == DT_F32)
        return x;
    int64_t k = g->w->k;
    float *to = scratch_get(g->d, thread, (size_t)(m * k) * sizeof *to);
    for (int64_t r = 0; r < m; r++)
        for (int64_t i = 0; i < k; i += 16)
            v_store_n(to + r * k + i, v_round_bf16(v_load_n(x + r * g->ldx + i, min_i64(16, k - i))),
                      min_i64(16, k - i));
    *ret_ldx = k;
    return to;
}

void LANES(gemm)(struct device *d, const struct gemm_weight *w, int64_t m, const float *x, int64_t ldx,
                 const float *bias, bool accumulate, float *y, int64_t ldy)
{
    gemm_run(d, w, m, x, ldx, bias, accumulate, y, ldy);
}
