// Template: y = x W' over packed weights. A product is cut into chunks of rows and panels of columns; a tile
// of rows x cols vectors runs the whole chain over K in registers, so row bits know neither the tiling nor M.
#include <assert.h>

#include "kernels/lanes/tile_tmpl.c"

#define GEMM_CHUNK 96 // rows whose x (96 x K) stays in the second-level cache while the weights stream by

struct gemm {
    struct device *d;
    const struct gemm_weight *w;
    int64_t m;
    const float *x;
    int64_t ldx;
    const float *bias;
    bool accumulate;
    float *y;
    int64_t ldy;
};

// Rows m0 … of the chunk at x (already rounded where the format asks for it), columns from n0.
typedef void gemm_fn(const struct gemm *g, int64_t m0, const float *x, int64_t ldx, int64_t n0);

ALWAYS void gemm_finish(const struct gemm *g, int64_t m, int64_t n, v16 sum)
{
    int64_t left = g->w->n - n;
    if (left <= 0)
        return;
    float *y = g->y + m * g->ldy + n;
    if (left >= 16) {
        if (g->bias)
            sum = v_add(sum, v_load(g->bias + n));
        v_store(y, g->accumulate ? v_add(v_load(y), sum) : sum);
    } else {
        if (g->bias)
            sum = v_add(sum, v_load_n(g->bias + n, left));
        v_store_n(y, g->accumulate ? v_add(v_load_n(y, left), sum) : sum, left);
    }
}

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

// Rows [m0, m0 + m) of y, columns [n0, n1); n0 is a multiple of PANEL.
static void gemm_block(const struct gemm *g, int64_t m0, int64_t m, const float *x, int64_t ldx, int64_t n0,
                       int64_t n1)
{
    enum dtype t = g->w->dtype;
    int64_t n = n0;
    if (m <= TILE_WIDE_ROWS) { // one pass over the weights with several panels in flight
        const int64_t step = 16 * TILE_WIDE((int)m);
        for (; n + step <= ceil_div(n1, PANEL) * PANEL; n += step)
            WIDE[t][m - 1](g, m0, x, ldx, n);
    }
    int64_t tiles = ceil_div(m, TILE_ROWS);
    for (; n < n1; n += 16 * TILE_COLS)
        for (int64_t i = 0; i < tiles; i++) { // tiles of about equal height
            int64_t r0 = m * i / tiles, r1 = m * (i + 1) / tiles;
            NARROW[t][r1 - r0 - 1](g, m0 + r0, x + r0 * ldx, ldx, n);
        }
}

// Rows m0 … of x as the chunk's operand: rounded to bf16 where the weights are bf16 or FP8.
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

// Units are (chunk of rows, panel) pairs, chunk by chunk.
static void gemm_units(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct gemm *g = ctx;
    int64_t panels = ceil_div(g->w->n, PANEL), ldx;
    while (begin < end) {
        int64_t chunk = begin / panels, p0 = begin % panels, p1 = min_i64(panels, p0 + end - begin);
        int64_t m0 = chunk * GEMM_CHUNK, m = min_i64(GEMM_CHUNK, g->m - m0);
        const float *x = gemm_operand(g, m0, m, thread, &ldx);
        gemm_block(g, m0, m, x, ldx, p0 * PANEL, min_i64(p1 * PANEL, g->w->n));
        begin += p1 - p0;
    }
}

void LANES(gemm)(struct device *d, const struct gemm_weight *w, int64_t m, const float *x, int64_t ldx,
                 const float *bias, bool accumulate, float *y, int64_t ldy)
{
    assert(w->dtype == DT_FP8 ? w->scales != NULL : w->dtype == DT_F32 || w->dtype == DT_BF16);
    assert(m >= 0 && (m < 2 || (ldx >= w->k && ldy >= w->n)));
    struct gemm g = {d, w, m, x, ldx, bias, accumulate, y, ldy};
    int64_t chunks = ceil_div(m, GEMM_CHUNK);
    // A panel's time: its products, or at least its way from memory.
    double rows = chunks ? (double)m / (double)chunks : 0;
    double products = rows * (double)w->k * PANEL * 0.02,
           bytes = (double)w->k * PANEL * (double)dtype_bytes(w->dtype) * 0.05;
    split_run(d, chunks * ceil_div(w->n, PANEL), 1, products > bytes ? products : bytes, gemm_units, &g);
}
