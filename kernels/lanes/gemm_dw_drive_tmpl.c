// Template: the division of work of dw += dy' x, common to the classes. x is packed once for all threads, in the tiles' order. Then each
// task takes some tiles of dy, which its thread packs for itself part by part of the batch, in its own cache, and goes over all of x with
// them. Between two parts the sums wait in memory as they stood in their registers, so the chain over m is never broken and knows neither
// tasks nor parts nor threads.
#include <assert.h>

#include "kernels/lanes/tile_tmpl.c"

#define DW_GROUP   32   // rows of x packed in one go
#define DW_LONGEST 1024 // steps of a part, at most
#define DW_TILES   10 // tiles of dy of a task, at most: with a part's steps, half a second-level cache of 1 MiB
#define DW_PACKED  ((int64_t)16 << 20) // bytes of packed x, about
#define TILE_WIDTH (16 * TILE_COLS)
#define TILE_AREA  (TILE_ROWS * TILE_WIDTH)

struct gemm_dw {
    struct device *d;
    enum dtype dtype;
    int64_t m, n, k, steps;
    struct rows dy, x;
    float *dw;
    int64_t k0, k1;       // the block of inputs whose x is packed
    float *packed;        // [tile of x][step][TILE_WIDTH], zero beyond the columns
    int64_t part;         // rows of a part
    int64_t cut_n, cut_k; // tasks along both
};

// A task's tiles: outputs [n0, n1), tiles [j0, j1) of the block of inputs.
struct dw_task {
    const struct gemm_dw *g;
    int64_t n0, n1, j0, j1;
    float *dy;   // [tile][step of the part][TILE_ROWS], zero beyond the columns
    float *sums; // [tile of x][tile of dy][TILE_AREA]
};

// What is asked for into the second-level cache while a tile is computed: step by step the next `stride` units.
struct dw_ahead {
    const float *at;
    int64_t stride;
};

// dst[tile][step][width] = columns [0, cols) of m rows of src, tiles `stride` units of 32 bits apart.
static void dw_pack(enum dtype dtype, struct rows src, int64_t m, int64_t cols, int64_t width, int64_t stride,
                    float *dst);
// c [TILE_ROWS, TILE_WIDTH] = (fresh ? 0 : c) continued over the steps.
static void dw_tile(int64_t steps, const float *dy, const float *x, struct dw_ahead ahead, float *c,
                    bool fresh);

static void dw_pack_x(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct gemm_dw *g = ctx;
    for (int64_t row = begin * DW_GROUP; row < min_i64(end * DW_GROUP, g->m); row += DW_GROUP)
        dw_pack(g->dtype, rows_from(g->x, row * g->x.ld + g->k0), min_i64(DW_GROUP, g->m - row),
                g->k1 - g->k0, TILE_WIDTH, g->steps * TILE_WIDTH, g->packed + DW_STEPS(row) * TILE_WIDTH);
}

// dw's lines lie apart: they are asked for when the tile begins, into the second-level cache (see gemm_ask).
static void dw_expect(const struct gemm_dw *g, int64_t n, int64_t rows, int64_t k)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < TILE_WIDTH && k + v < g->k1; v += 16)
            __builtin_prefetch(g->dw + (n + r) * g->k + k + v, 1, 2);
}

// The next tile's sums, into the first-level cache.
static void dw_expect_sums(const float *sums)
{
    for (int64_t i = 0; i < TILE_AREA; i += 16)
        __builtin_prefetch(sums + i, 1, 3);
}

static void dw_store(const struct gemm_dw *g, const float *sums, int64_t n, int64_t rows, int64_t k)
{
    float *to = g->dw + n * g->k + k;
    if (rows == TILE_ROWS && k + TILE_WIDTH <= g->k1) {
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 2
            for (int v = 0; v < TILE_WIDTH; v += 16)
                v_store(to + r * g->k + v,
                        v_add(v_load(to + r * g->k + v), v_load(sums + r * TILE_WIDTH + v)));
        return;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < TILE_WIDTH && k + v < g->k1; v += 16) {
            int64_t left = min_i64(16, g->k1 - k - v);
            v16 sum = v_add(v_load_n(to + r * g->k + v, left), v_load(sums + r * TILE_WIDTH + v));
            v_store_n(to + r * g->k + v, sum, left);
        }
}

// Rows [m0, m0 + m) of the batch.
static void dw_part(const struct dw_task *t, int64_t m0, int64_t m)
{
    const struct gemm_dw *g = t->g;
    const int64_t steps = DW_STEPS(m), tiles = ceil_div(t->n1 - t->n0, TILE_ROWS);
    const bool first = m0 == 0, last = m0 + m == g->m, whole = first && last;
    dw_pack(g->dtype, rows_from(g->dy, m0 * g->dy.ld + t->n0), m, t->n1 - t->n0, TILE_ROWS, steps * TILE_ROWS,
            t->dy);
    for (int64_t j = t->j0; j < t->j1; j++) {
        const float *x = g->packed + (j * g->steps + DW_STEPS(m0)) * TILE_WIDTH;
        const float *next = j + 1 < t->j1 ? x + g->steps * TILE_WIDTH : x;
        const int64_t stride = ceil_div(TILE_WIDTH, tiles), k = g->k0 + j * TILE_WIDTH;
        for (int64_t i = 0; i < tiles; i++) {
            const int64_t n = t->n0 + i * TILE_ROWS, rows = min_i64(TILE_ROWS, t->n1 - n);
            float *sums = t->sums + (whole ? 0 : (j - t->j0) * tiles + i) * TILE_AREA;
            if (last)
                dw_expect(g, n, rows, k);
            if (!whole)
                dw_expect_sums(sums + TILE_AREA);
            dw_tile(steps, t->dy + i * steps * TILE_ROWS, x,
                    (struct dw_ahead){next + i * steps * stride, stride}, sums, first);
            if (last)
                dw_store(g, sums, n, rows, k);
        }
    }
}

static void dw_tasks(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct gemm_dw *g = ctx;
    const int64_t tn = ceil_div(g->n, TILE_ROWS), tk = ceil_div(g->k1 - g->k0, TILE_WIDTH);
    for (int64_t b = begin; b < end; b++) {
        const int64_t i = b / g->cut_k, j = b % g->cut_k;
        struct dw_task t = {.g = g, .j0 = tk * j / g->cut_k, .j1 = tk * (j + 1) / g->cut_k};
        t.n0 = tn * i / g->cut_n * TILE_ROWS;
        t.n1 = min_i64(tn * (i + 1) / g->cut_n * TILE_ROWS, g->n);
        const int64_t tiles = ceil_div(t.n1 - t.n0, TILE_ROWS);
        const int64_t sums = (g->part < g->m ? tiles * (t.j1 - t.j0) : 1) * TILE_AREA;
        t.sums =
            scratch_get(g->d, thread, (size_t)(sums + DW_STEPS(g->part) * tiles * TILE_ROWS) * sizeof(float));
        t.dy = t.sums + sums;
        for (int64_t m0 = 0; m0 < g->m; m0 += g->part)
            dw_part(&t, m0, min_i64(g->part, g->m - m0));
    }
}

// Tasks of at most DW_TILES tiles of dy by all of x, and a number that shares out evenly as long as tiles remain to cut.
static void dw_cut(struct gemm_dw *g, int threads)
{
    const int64_t tn = ceil_div(g->n, TILE_ROWS), tk = ceil_div(g->k1 - g->k0, TILE_WIDTH);
    g->cut_n = ceil_div(tn, DW_TILES);
    g->cut_k = 1;
    for (int64_t cuts; (cuts = g->cut_n * g->cut_k) < 4 * threads && cuts % threads;)
        if (tn / g->cut_n >= tk / g->cut_k && g->cut_n < tn)
            g->cut_n++;
        else if (g->cut_k < tk)
            g->cut_k++;
        else
            break;
}

static void gemm_dw_run(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                        struct rows x, float *dw)
{
    assert(dtype == DT_F32 || dtype == DT_BF16);
    assert(dtype == DT_BF16 || (dy.dtype == DT_F32 && x.dtype == DT_F32));
    if (m == 0 || n == 0 || k == 0)
        return;
    struct gemm_dw g = {
        .d = d, .dtype = dtype, .m = m, .n = n, .k = k, .steps = DW_STEPS(m), .dy = dy, .x = x, .dw = dw};
    const int64_t tk = ceil_div(k, TILE_WIDTH);
    const int64_t fit = max_i64(DW_PACKED / (g.steps * TILE_WIDTH * (int64_t)sizeof(float)), 8);
    const int64_t block = ceil_div(tk, ceil_div(tk, fit)) * TILE_WIDTH;
    const int64_t pairs = ceil_div(m, 2), longest = DW_LONGEST / (int64_t)DW_STEPS(2);
    g.part = 2 * ceil_div(pairs, ceil_div(pairs, longest)); // parts of one length, whole pairs of rows
    g.packed = scratch_shared(d, (size_t)(block * g.steps) * sizeof(float));
    for (g.k0 = 0; g.k0 < k; g.k0 = g.k1) {
        g.k1 = min_i64(g.k0 + block, k);
        dw_cut(&g, pool_threads(d->pool));
        const double cols = (double)(g.k1 - g.k0), tasks = (double)(g.cut_n * g.cut_k);
        split_run(d, ceil_div(m, DW_GROUP), 1, DW_GROUP * cols * 0.1, dw_pack_x, &g);
        split_run(d, g.cut_n * g.cut_k, 1, (double)m * (double)n * cols * 0.005 / tasks, dw_tasks, &g);
    }
}
