// Template: the division of y = x W' into chunks of rows and panels of columns, common to the classes. Whoever includes it defines
// gemm_pick and gemm_operand afterwards. A tile runs the whole chain over K in registers, so row bits know neither the tiling nor M.
#include <assert.h>

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

// Rows m0 … of y out of the operand x (32-bit units, stride ldx), columns from n0.
typedef void gemm_fn(const struct gemm *g, int64_t m0, const float *x, int64_t ldx, int64_t n0);

// The tile of this height: TILE_COLS vectors wide, or TILE_WIDE(rows).
static gemm_fn *gemm_pick(enum dtype t, int64_t rows, bool wide);
// Rows [m0, m0 + m) of x as the tiles want them: in place, or rounded into scratch.
static const float *gemm_operand(const struct gemm *g, int64_t m0, int64_t m, int thread, int64_t *ret_ldx);

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

// Rows [m0, m0 + m) of y, columns [n0, n1); n0 is a multiple of PANEL.
static void gemm_block(const struct gemm *g, int64_t m0, int64_t m, const float *x, int64_t ldx, int64_t n0,
                       int64_t n1)
{
    enum dtype t = g->w->dtype;
    int64_t n = n0;
    if (m <= TILE_WIDE_ROWS) { // one pass over the weights with several panels in flight
        const int64_t step = 16 * TILE_WIDE((int)m);
        for (; n + step <= ceil_div(n1, PANEL) * PANEL; n += step)
            gemm_pick(t, m, true)(g, m0, x, ldx, n);
    }
    int64_t tiles = ceil_div(m, TILE_ROWS);
    for (; n < n1; n += 16 * TILE_COLS)
        for (int64_t i = 0; i < tiles; i++) { // tiles of about equal height
            int64_t r0 = m * i / tiles, r1 = m * (i + 1) / tiles;
            gemm_pick(t, r1 - r0, false)(g, m0 + r0, x + r0 * ldx, ldx, n);
        }
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

static void gemm_run(struct device *d, const struct gemm_weight *w, int64_t m, const float *x, int64_t ldx,
                     const float *bias, bool accumulate, float *y, int64_t ldy)
{
    assert(w->dtype == DT_FP8 ? w->scales != NULL : w->dtype == DT_F32 || w->dtype == DT_BF16);
    assert(m >= 0 && (m < 2 || (ldx >= w->k && ldy >= w->n)));
    struct gemm g = {d, w, m, x, ldx, bias, accumulate, y, ldy};
    int64_t chunks = ceil_div(m, GEMM_CHUNK);
    // A panel's time: its products, or at least its way here (out of the caches or out of memory).
    double rows = chunks ? (double)m / (double)chunks : 0, size = (double)dtype_bytes(w->dtype);
    double near = (double)w->n * (double)w->k * size < 16e6 ? 0.012 : 0.04;
    double products = rows * (double)w->k * PANEL * 0.01, bytes = (double)w->k * PANEL * size * near;
    split_run(d, chunks * ceil_div(w->n, PANEL), 1, products > bytes ? products : bytes, gemm_units, &g);
}
