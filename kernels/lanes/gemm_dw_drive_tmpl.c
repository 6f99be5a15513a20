// Template: the division of dw += dy' x, common to the classes. Both operands are packed, DW_ROWS rows of the batch at a time,
// into the tiles' order; the accumulators of a task's block of dw wait in scratch between those rows, so the
// chain over m is never broken.
#include <assert.h>

#include "kernels/lanes/tile_tmpl.c"

#define DW_ROWS    128 // rows of dy and x packed at once
#define DW_N       192 // most outputs and inputs of one task's block
#define DW_K       256
#define TILE_WIDTH (16 * TILE_COLS)

struct gemm_dw {
    struct device *d;
    enum dtype dtype;
    int64_t m, n, k;
    const float *dy;
    int64_t lddy;
    const float *x;
    int64_t ldx;
    float *dw;
    int64_t cut_n, cut_k; // blocks along N and K
};

// dst[tile][step][width] (32-bit units) = columns [c0, c1) of m rows of src, tile by tile, zero beyond.
static void dw_pack(const struct gemm_dw *g, const float *src, int64_t ld, int64_t m, int64_t c0, int64_t c1,
                    int64_t width, float *dst);
// c [TILE_ROWS, TILE_WIDTH] = (fresh ? 0 : c) continued over the steps.
static void dw_tile(int64_t steps, const struct operands *o, float *c, bool fresh);

static void dw_store(const struct gemm_dw *g, const float *acc, int64_t n, int64_t n1, int64_t k, int64_t k1)
{
    for (int64_t r = 0; r < min_i64(TILE_ROWS, n1 - n); r++)
        for (int64_t v = 0; v < TILE_WIDTH && k + v < k1; v += 16) {
            float *to = g->dw + (n + r) * g->k + k + v;
            int64_t left = min_i64(16, k1 - k - v);
            v_store_n(to, v_add(v_load_n(to, left), v_load(acc + r * TILE_WIDTH + v)), left);
        }
}

// The block [n0, n1) x [k0, k1) of dw.
static void dw_block(const struct gemm_dw *g, int64_t n0, int64_t n1, int64_t k0, int64_t k1, int thread)
{
    int64_t tn = ceil_div(n1 - n0, TILE_ROWS), tk = ceil_div(k1 - k0, TILE_WIDTH),
            area = TILE_ROWS * TILE_WIDTH;
    float *acc = scratch_get(
        g->d, thread, (size_t)(tn * tk * area + DW_ROWS * (tn * TILE_ROWS + tk * TILE_WIDTH)) * sizeof *acc);
    float *dy = acc + tn * tk * area, *x = dy + DW_ROWS * tn * TILE_ROWS;
    for (int64_t m0 = 0; m0 < g->m; m0 += DW_ROWS) {
        int64_t m = min_i64(DW_ROWS, g->m - m0), steps = DW_STEPS(m);
        dw_pack(g, g->dy + m0 * g->lddy, g->lddy, m, n0, n1, TILE_ROWS, dy);
        dw_pack(g, g->x + m0 * g->ldx, g->ldx, m, k0, k1, TILE_WIDTH, x);
        for (int64_t j = 0; j < tk; j++)
            for (int64_t i = 0; i < tn; i++) {
                struct operands o = {.a = dy + i * steps * TILE_ROWS,
                                     .a_row = 1,
                                     .a_k = TILE_ROWS,
                                     .b = x + j * steps * TILE_WIDTH,
                                     .b_k = TILE_WIDTH,
                                     .b_pair = 32};
                float *c = acc + (i * tk + j) * area;
                dw_tile(steps, &o, c, m0 == 0);
                if (m0 + m == g->m)
                    dw_store(g, c, n0 + i * TILE_ROWS, n1, k0 + j * TILE_WIDTH, k1);
            }
    }
}

static int64_t cut(int64_t n, int64_t unit, int64_t pieces, int64_t i)
{
    return min_i64(ceil_div(n, unit) * i / pieces * unit, n);
}

static void dw_blocks(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct gemm_dw *g = ctx;
    for (int64_t b = begin; b < end; b++) {
        int64_t i = b / g->cut_k, j = b % g->cut_k;
        dw_block(g, cut(g->n, TILE_ROWS, g->cut_n, i), cut(g->n, TILE_ROWS, g->cut_n, i + 1),
                 cut(g->k, TILE_WIDTH, g->cut_k, j), cut(g->k, TILE_WIDTH, g->cut_k, j + 1), thread);
    }
}

static void gemm_dw_run(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, const float *dy,
                        int64_t lddy, const float *x, int64_t ldx, float *dw)
{
    assert(dtype == DT_F32 || dtype == DT_BF16);
    if (m == 0 || n == 0 || k == 0)
        return;
    struct gemm_dw g = {d, dtype, m, n, k, dy, lddy, x, ldx, dw, ceil_div(n, DW_N), ceil_div(k, DW_K)};
    // Enough blocks for every thread, and a number that shares out evenly, as long as tiles remain to cut.
    int threads = pool_threads(d->pool);
    while (g.cut_n * g.cut_k < 4 * threads && (g.cut_n * g.cut_k < threads || g.cut_n * g.cut_k % threads)) {
        if (k / g.cut_k >= n / g.cut_n && k / g.cut_k > TILE_WIDTH)
            g.cut_k++;
        else if (n / g.cut_n > TILE_ROWS)
            g.cut_n++;
        else
            break;
    }
    int64_t blocks = g.cut_n * g.cut_k;
    split_run(d, blocks, 1, (double)m * (double)n * (double)k * 0.01 / (double)blocks, dw_blocks, &g);
}
