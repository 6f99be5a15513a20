// Template: the division of y = x W' into chunks of rows, blocks of inputs and panels of columns, common to the classes. Whoever includes
// it defines gemm_pick and gemm_operand afterwards.
//
// Invariant: a sum is one chain over K whoever computes it. Between two blocks of inputs it waits in memory as it stood in its register,
// so row bits know neither the tiling nor M.
#include <assert.h>

// GEMM_CHUNK rows of x by GEMM_INPUTS inputs stay in the second-level cache while the weights stream by, and so do the sums of
// GEMM_COLUMNS columns that wait between blocks of inputs. Weights of more than GEMM_BIG bytes come from memory: twice the rows.
#define GEMM_CHUNK   96
#define GEMM_INPUTS  (12 * FP8_BLOCK)
#define GEMM_COLUMNS 768
#define GEMM_BIG     ((int64_t)8 << 20)

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
    // m > GEMM_CHUNK: tasks are (chunk of rows, range of columns)
    int64_t chunks, ranges;
};

// What the tiles of one pass over the panels have in common: rows [m0, m0 + m), inputs [k0, k1).
struct gemm_pass {
    const struct gemm *g;
    int64_t m0, m, k0, k1;
    const float *x; // the operand's row m0, input k0 (32-bit units)
    int64_t ldx;
    float *sums; // [columns from n0, by 16][m][16] between blocks of inputs
    int64_t n0;
    const char *ahead;  // a tile asks for two lines a step from here …
    int64_t ahead_step; // … and moves on by 128 bytes, or 0: nothing is wanted
};

// Rows [m0 + r, …) of y, columns from n.
typedef void gemm_fn(const struct gemm_pass *p, int64_t r, int64_t n);

// The tile of this height: TILE_COLS vectors wide, or TILE_WIDE(rows).
static gemm_fn *gemm_pick(enum dtype t, int64_t rows, bool wide);
// Inputs [k0, k1) of rows [m0, m0 + m) of x as the tiles want them: in place, or rounded into `to`, which has room for m (k1 - k0 + 1)
// 32-bit units.
static const float *gemm_operand(const struct gemm *g, int64_t m0, int64_t m, int64_t k0, int64_t k1,
                                 float *to, int64_t *ret_ldx);

static const char *gemm_weights(const struct gemm *g, int64_t n, int64_t k)
{
    int64_t size = (int64_t)dtype_bytes(g->w->dtype),
            panel = (int64_t)g->d->k->weight_bytes(g->w->dtype, PANEL, g->w->k);
    return (const char *)g->w->data + n / PANEL * panel + (k * PANEL + n % PANEL) * size;
}

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

ALWAYS float *gemm_sum(const struct gemm_pass *p, int64_t r, int64_t n)
{
    return p->sums + ((n - p->n0) / 16 * p->m + r) * 16;
}

// The sums as the last block of inputs left them. In the last block the lines of y are asked for: its rows lie apart, no hardware
// prefetcher foresees them. They come into the second-level cache: rows a multiple of 4 KiB apart would all fall into one set of the
// first.
ALWAYS void gemm_begin(const int rows, const int cols, const struct gemm_pass *p, int64_t r0, int64_t n,
                       v16 *acc)
{
    if (p->k1 == p->g->w->k)
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < cols; v++)
                __builtin_prefetch(p->g->y + (p->m0 + r0 + r) * p->g->ldy + n + 16 * v, 1, 2);
    if (p->k0 == 0) {
#pragma GCC unroll 32
        for (int i = 0; i < rows * cols; i++)
            acc[i] = v_zero();
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < cols; v++)
                acc[r * cols + v] = v_load(gemm_sum(p, r0 + r, n + 16 * v));
    }
}

ALWAYS void gemm_end(const int rows, const int cols, const struct gemm_pass *p, int64_t r0, int64_t n,
                     const v16 *acc)
{
    if (p->k1 == p->g->w->k) {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < cols; v++)
                gemm_finish(p->g, p->m0 + r0 + r, n + 16 * v, acc[r * cols + v]);
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < cols; v++)
                v_store(gemm_sum(p, r0 + r, n + 16 * v), acc[r * cols + v]);
    }
}

// Columns [n0, n1) of a pass; n0 is a multiple of PANEL. While the first tile of a panel computes, the next panel comes in; while the
// others do, the rows of x at `x_ahead` that the next chunk begins with.
static void gemm_panels(struct gemm_pass *p, int64_t n0, int64_t n1, const char *x_ahead, const char *x_end)
{
    const struct gemm *g = p->g;
    const enum dtype t = g->w->dtype;
    const int64_t tiles = ceil_div(p->m, TILE_ROWS);
    int64_t n = n0;
    p->ahead = (const char *)p->x;
    p->ahead_step = 0;
    if (p->m <= TILE_WIDE_ROWS) { // one pass over the weights, several panels in flight
        const int64_t step = 16 * TILE_WIDE((int)p->m);
        for (; n + step <= ceil_div(n1, PANEL) * PANEL; n += step)
            gemm_pick(t, p->m, true)(p, 0, n);
    }
    for (; n < n1; n += 16 * TILE_COLS)
        for (int64_t i = 0; i < tiles; i++) { // tiles of about equal height
            int64_t r0 = p->m * i / tiles, r1 = p->m * (i + 1) / tiles;
            p->ahead_step = 128;
            if (i == 0 && n + PANEL < n1) {
                p->ahead = gemm_weights(g, n + PANEL, p->k0);
            } else if (x_ahead < x_end) {
                p->ahead = x_ahead;
                x_ahead += (p->k1 - p->k0) / 2 * 128;
            } else {
                p->ahead = (const char *)p->x;
                p->ahead_step = 0;
            }
            gemm_pick(t, r1 - r0, false)(p, r0, n);
        }
}

// Rows [m0, m0 + m), columns [n0, n1); next: the row that this thread's next chunk begins with, or m.
static void gemm_chunk(const struct gemm *g, int64_t m0, int64_t m, int64_t n0, int64_t n1, int64_t next,
                       int thread)
{
    const int64_t k = g->w->k, least = max_i64(ceil_div(k, GEMM_INPUTS), 1);
    const int64_t inputs = max_i64(ceil_div(ceil_div(k, least), FP8_BLOCK), 1) * FP8_BLOCK;
    const int64_t blocks = max_i64(ceil_div(k, inputs), 1);
    const int64_t columns = blocks > 1 ? GEMM_COLUMNS : n1 - n0;
    const size_t room = (size_t)(m * (min_i64(inputs, k) + 1) + 15) / 16 * 16;
    float *operand =
        scratch_get(g->d, thread, (room + (size_t)(blocks > 1 ? m * columns : 0)) * sizeof(float));
    struct gemm_pass p = {.g = g, .m0 = m0, .m = m, .sums = operand + room};
    for (p.n0 = n0; p.n0 < n1; p.n0 += columns)
        for (int64_t b = 0; b < blocks; b++) {
            p.k0 = b * inputs;
            p.k1 = min_i64(p.k0 + inputs, k);
            if (p.n0 == n0 || blocks > 1)
                p.x = gemm_operand(g, m0, m, p.k0, p.k1, operand, &p.ldx);
            const char *ahead = NULL, *end = NULL;
            if (blocks == 1 && next < g->m) {
                ahead = (const char *)(g->x + next * g->ldx);
                end = (const char *)(g->x + min_i64(next + m, g->m) * g->ldx);
            }
            gemm_panels(&p, p.n0, min_i64(p.n0 + columns, n1), ahead, end);
        }
}

static void gemm_columns(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct gemm *g = ctx;
    gemm_chunk(g, 0, g->m, begin, min_i64(end, g->w->n), g->m, thread);
}

static void gemm_task(void *ctx, int task, int thread)
{
    const struct gemm *g = ctx;
    int64_t chunk = task / g->ranges, range = task % g->ranges, panels = ceil_div(g->w->n, PANEL);
    int64_t m0 = g->m * chunk / g->chunks, m1 = g->m * (chunk + 1) / g->chunks;
    int64_t after = min_i64(chunk + max_i64(1, pool_threads(g->d->pool) / g->ranges), g->chunks);
    gemm_chunk(g, m0, m1 - m0, panels * range / g->ranges * PANEL,
               min_i64(panels * (range + 1) / g->ranges * PANEL, g->w->n), g->m * after / g->chunks, thread);
}

static void gemm_run(struct device *d, const struct gemm_weight *w, int64_t m, const float *x, int64_t ldx,
                     const float *bias, bool accumulate, float *y, int64_t ldy)
{
    assert(w->dtype == DT_FP8 ? w->scales != NULL : w->dtype == DT_F32 || w->dtype == DT_BF16);
    assert(m >= 0 && (m < 2 || (ldx >= w->k && ldy >= w->n)));
    if (m == 0)
        return;
    struct gemm g = {d, w, m, x, ldx, bias, accumulate, y, ldy, 1, 1};
    const int64_t threads = pool_threads(d->pool), bytes = w->n * w->k * (int64_t)dtype_bytes(w->dtype);
    const int64_t chunk = bytes > GEMM_BIG ? 2 * GEMM_CHUNK : GEMM_CHUNK;
    if (m <= GEMM_CHUNK) {
        // A panel's time: its products, or at least its way here (out of the caches or out of memory).
        double near = w->dtype == DT_FP8     ? 0.045
                      : (double)bytes < 16e6 ? 0.012
                                             : 0.04,
               way = (double)bytes / (double)w->n * near;
        double products = (double)m * (double)w->k * 0.01;
        split_run(d, w->n, PANEL, products > way ? products : way, gemm_columns, &g);
        return;
    }
    // As many chunks for every thread, or else as many ranges of columns of a chunk.
    g.chunks = ceil_div(m, chunk);
    if (ceil_div(g.chunks, threads) * threads <= m / (chunk / 2))
        g.chunks = ceil_div(g.chunks, threads) * threads;
    else
        while (g.ranges < ceil_div(w->n, PANEL) && g.chunks * g.ranges < 4 * threads &&
               (g.chunks * g.ranges < threads || g.chunks * g.ranges % threads))
            g.ranges++;
    pool_run(d->pool, (int)(g.chunks * g.ranges), gemm_task, &g);
}
