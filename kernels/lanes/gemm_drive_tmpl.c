// Template: the division of y = x W' into chunks of rows, blocks of inputs and panels of columns, common to the classes. Whoever includes
// it defines gemm_pick, gemm_units, gemm_lies and gemm_operand afterwards.
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

// Up to TILE_WIDE_ROWS rows: what counts is that the weights stream. A range of columns is worth a thread from FEW_LEAST bytes of weights
// on and cut further from FEW_MOST on: every cut begins cold. A tile asks for the next one's weights if they are FEW_REACH bytes away at
// most, else FEW_NEAR bytes ahead in its own panels.
#define FEW_LEAST ((int64_t)40 << 10)
#define FEW_MOST  ((int64_t)2 << 20)
#define FEW_REACH ((int64_t)256 << 10)
#define FEW_NEAR  1536
#define VECTORS   (PANEL / 16) // of a panel

struct gemm {
    struct device *d;
    const struct gemm_weight *w;
    int64_t m;
    struct rows x;
    const float *bias;
    bool accumulate;
    float *y;
    int64_t ldy;
    bool as_is; // the tiles read x where it lies
    // m > GEMM_CHUNK or m <= TILE_WIDE_ROWS: tasks are (chunk of rows, range of columns)
    int64_t chunks, ranges;
    // else: all of x as the tiles want it, block by block of inputs, [m][gemm_units]; or NULL: x where it lies
    float *operand;
};

// A 32-bit unit of the operand x: an f32, or a pair of bf16.
typedef float __attribute__((may_alias)) unit;

// What the tiles of one pass over the panels have in common: rows [m0, m0 + m), inputs [k0, k1).
struct gemm_pass {
    const struct gemm *g;
    int64_t m0, m, k0, k1;
    const unit *x; // the operand's row m0, input k0
    int64_t ldx;
    float *sums; // [columns from n0, by 16][m][16] between blocks of inputs
    int64_t n0;
    const char *ahead;   // a tile asks for two lines from here in the first …
    int64_t ahead_steps; // … of its steps of two inputs (0: nothing is wanted) …
    int64_t ahead_step;  // … and moves on by so many bytes each time
    int64_t reach;       // a wide tile asks for the weights so many bytes beyond those it reads
};

// Rows [m0 + r, …) of y, columns from n.
typedef void gemm_fn(const struct gemm_pass *p, int64_t r, int64_t n);

// The tile of this height and of so many vectors: TILE_COLS, or whole panels up to TILE_WIDE(rows).
static gemm_fn *gemm_pick(enum dtype t, int64_t rows, int64_t cols);

// Every tile there is, as X(name, dtype, rows, cols), and where it stands in that list.
#define GEMM_TILES_3(X, name, t, cols) X(name, t, 1, cols) X(name, t, 2, cols) X(name, t, 3, cols)
#define GEMM_TILES_6(X, name, t, cols)                                                                       \
    GEMM_TILES_3(X, name, t, cols) X(name, t, 4, cols) X(name, t, 5, cols) X(name, t, 6, cols)
#define GEMM_TILES_12(X, name, t, cols)                                                                      \
    GEMM_TILES_6(X, name, t, cols)                                                                           \
    X(name, t, 7, cols)                                                                                      \
    X(name, t, 8, cols) X(name, t, 9, cols) X(name, t, 10, cols) X(name, t, 11, cols) X(name, t, 12, cols)
#if TILE_ROWS == 12
#define GEMM_TILE_COUNT 24
#define GEMM_TILES(X, name, t)                                                                               \
    GEMM_TILES_12(X, name, t, 2)                                                                             \
    GEMM_TILES_6(X, name, t, 4) GEMM_TILES_3(X, name, t, 6) GEMM_TILES_3(X, name, t, 8)
static inline int64_t gemm_tile_index(int64_t rows, int64_t cols)
{
    return (cols == 2 ? 0 : cols == 4 ? 12 : cols == 6 ? 18 : 21) + rows - 1;
}
#else
#define GEMM_TILE_COUNT        9
#define GEMM_TILES(X, name, t) GEMM_TILES_6(X, name, t, 1) X(name, t, 1, 2) X(name, t, 2, 2) X(name, t, 1, 4)
static inline int64_t gemm_tile_index(int64_t rows, int64_t cols)
{
    return (cols == 1 ? 0 : cols == 2 ? 6 : 8) + rows - 1;
}
#endif

// Units of k inputs of a row of x as the tiles want them.
static int64_t gemm_units(int64_t k);
// Whether they may read x where it lies.
static bool gemm_lies(const struct gemm *g);
// Inputs [k0, k1) of rows [m0, m0 + m) of x into `to` as the tiles want them, rows of gemm_units(k1 - k0). Only where x does not serve
// where it lies.
static void gemm_operand(const struct gemm *g, int64_t m0, int64_t m, int64_t k0, int64_t k1, float *to);

static const char *gemm_x(const struct gemm *g, int64_t m, int64_t k)
{
    return (const char *)g->x.at + (m * g->x.ld + k) * (int64_t)dtype_bytes(g->x.dtype);
}

static const char *gemm_weights(const struct gemm *g, int64_t n, int64_t k)
{
    int64_t size = (int64_t)dtype_bytes(g->w->dtype),
            panel = (int64_t)g->d->k->weight_bytes(g->w->dtype, PANEL, g->w->k);
    return (const char *)g->w->data + n / PANEL * panel + (k * PANEL + n % PANEL) * size;
}

// y from the sums [rows][cols] of a tile with a bias, or at the last columns.
static __attribute__((noinline)) void gemm_finish(const struct gemm *g, int rows, int cols, int64_t m,
                                                  int64_t n, const v16 *sums)
{
    for (int i = 0; i < rows * cols; i++) {
        const int64_t at = n + 16 * (i % cols), left = min_i64(16, g->w->n - at);
        if (left <= 0)
            continue;
        float *y = g->y + (m + i / cols) * g->ldy + at;
        v16 sum = sums[i];
        if (g->bias)
            sum = v_add(sum, v_load_n(g->bias + at, left));
        v_store_n(y, g->accumulate ? v_add(v_load_n(y, left), sum) : sum, left);
    }
}

ALWAYS float *gemm_sum(const struct gemm_pass *p, int64_t r, int64_t n)
{
    return p->sums + ((n - p->n0) / 16 * p->m + r) * 16;
}

// In the last block of inputs the lines of y are asked for: its rows lie apart, no hardware prefetcher foresees them. They come into the
// second-level cache: rows a multiple of 4 KiB apart would all fall into one set of the first.
ALWAYS void gemm_ask(const int rows, const int cols, const struct gemm_pass *p, int64_t r0, int64_t n)
{
    if (p->k1 < p->g->w->k)
        return;
    const float *y = p->g->y + (p->m0 + r0) * p->g->ldy + n;
#pragma GCC unroll 16
    for (int r = 0; r < rows; r++, y += p->g->ldy)
#pragma GCC unroll 8
        for (int v = 0; v < cols; v++)
            __builtin_prefetch(y + 16 * v, 1, 2);
}

// The sums as the last block of inputs left them.
ALWAYS void gemm_begin(const int rows, const int cols, const struct gemm_pass *p, int64_t r0, int64_t n,
                       v16 *acc)
{
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
    const struct gemm *g = p->g;
    if (p->k1 == g->w->k && (g->bias || n + 16 * cols > g->w->n)) {
        v16 sums[TILE_ROWS * TILE_COLS];
#pragma GCC unroll 32
        for (int i = 0; i < rows * cols; i++)
            sums[i] = acc[i];
        gemm_finish(g, rows, cols, p->m0 + r0, n, sums);
    } else if (p->k1 == g->w->k) {
        float *y = g->y + (p->m0 + r0) * g->ldy + n;
        if (g->accumulate) {
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++, y += g->ldy)
#pragma GCC unroll 8
                for (int v = 0; v < cols; v++)
                    v_store(y + 16 * v, v_add(v_load(y + 16 * v), acc[r * cols + v]));
        } else {
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++, y += g->ldy)
#pragma GCC unroll 8
                for (int v = 0; v < cols; v++)
                    v_store(y + 16 * v, acc[r * cols + v]);
        }
    } else {
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
#pragma GCC unroll 8
            for (int v = 0; v < cols; v++)
                v_store(gemm_sum(p, r0 + r, n + 16 * v), acc[r * cols + v]);
    }
}

#ifdef GEMM_STREAM
// The class has a loop of its own for columns [n0, n1) of a pass of few rows whose weights come from memory.
static void gemm_stream(const struct gemm_pass *p, int64_t n0, int64_t n1);
#else
#define gemm_stream gemm_few
#endif

// Columns [n0, n1) of a pass of few rows: one pass over the weights in tiles of about equal width, several panels in flight.
static void gemm_few(struct gemm_pass *p, int64_t n0, int64_t n1)
{
    const struct gemm *g = p->g;
    const int64_t panels = ceil_div(n1 - n0, PANEL), tiles = ceil_div(panels * VECTORS, TILE_WIDE((int)p->m));
    const int64_t panel = gemm_weights(g, PANEL, 0) - gemm_weights(g, 0, 0);
    for (int64_t i = 0; i < tiles; i++) {
        int64_t a = panels * i / tiles, b = panels * (i + 1) / tiles, next = (b - a) * panel;
        p->reach = i + 1 < tiles && next <= FEW_REACH ? next : FEW_NEAR;
        p->ahead = gemm_weights(g, n0 + a * PANEL, p->k0) + p->reach; // one panel wide: the same
        p->ahead_step = 2 * PANEL * (int64_t)dtype_bytes(g->w->dtype);
        p->ahead_steps = ceil_div(p->k1 - p->k0, 2);
        gemm_pick(g->w->dtype, p->m, (b - a) * VECTORS)(p, 0, n0 + a * PANEL);
    }
}

// Columns [n0, n1) of a pass of more rows; n0 is a multiple of PANEL. While the first tile of a panel computes, the next panel comes in;
// while the others of the last panels do, a row of x each of the `x_rows` at x_ahead that this thread reads next.
static void gemm_many(struct gemm_pass *p, int64_t n0, int64_t n1, const char *x_ahead, int64_t x_rows)
{
    const struct gemm *g = p->g;
    const int64_t tiles = ceil_div(p->m, TILE_ROWS), inputs = p->k1 - p->k0;
    const int64_t x_bytes = (int64_t)dtype_bytes(g->x.dtype);
    const int64_t last = n1 - ceil_div(x_rows, max_i64(tiles - 1, 1)) * PANEL;
    p->ahead_step = 128;
    for (int64_t n = n0; n < n1; n += 16 * TILE_COLS)
        for (int64_t i = 0; i < tiles; i++) { // tiles of about equal height
            int64_t r0 = p->m * i / tiles, r1 = p->m * (i + 1) / tiles;
            p->ahead = (const char *)p->x;
            p->ahead_steps = 0;
            if (i == 0 && n + PANEL < n1) {
                p->ahead = gemm_weights(g, n + PANEL, p->k0);
                p->ahead_steps = ceil_div(inputs, 2);
            } else if (n >= last && x_rows > 0) {
                p->ahead = x_ahead;
                p->ahead_steps = ceil_div(inputs * x_bytes, p->ahead_step);
                x_ahead += g->x.ld * x_bytes;
                x_rows--;
            }
            gemm_pick(g->w->dtype, r1 - r0, TILE_COLS)(p, r0, n);
        }
}

// Inputs of a block: blocks of about equal depth, whole blocks of scales.
static int64_t gemm_inputs(int64_t k)
{
    const int64_t least = max_i64(ceil_div(k, GEMM_INPUTS), 1);
    return max_i64(ceil_div(ceil_div(k, least), FP8_BLOCK), 1) * FP8_BLOCK;
}

// Weights that may lie in a cache: then the latency of the products counts, not the way they come. FP8 is what engines serve, a model at
// a time: never.
static bool gemm_cached(const struct gemm_weight *w)
{
    return w->dtype != DT_FP8 && w->n * w->k * (int64_t)dtype_bytes(w->dtype) <= GEMM_BIG;
}

// Rows [m0, m0 + m), columns [n0, n1); next: the row that this thread's next chunk begins with, or m.
static void gemm_chunk(const struct gemm *g, int64_t m0, int64_t m, int64_t n0, int64_t n1, int64_t next,
                       int thread)
{
    const int64_t k = g->w->k, inputs = gemm_inputs(k), blocks = max_i64(ceil_div(k, inputs), 1);
    const int64_t columns = blocks > 1 ? GEMM_COLUMNS : n1 - n0;
    const int64_t room = g->as_is || g->operand ? 0 : ceil_div(m * gemm_units(min_i64(inputs, k)), 16) * 16;
    float *operand =
        scratch_get(g->d, thread, (size_t)(room + (blocks > 1 ? m * columns : 0)) * sizeof(float));
    struct gemm_pass p = {.g = g, .m0 = m0, .m = m, .sums = operand + room};
    for (p.n0 = n0; p.n0 < n1; p.n0 += columns)
        for (int64_t b = 0; b < blocks; b++) {
            p.k0 = b * inputs;
            p.k1 = min_i64(p.k0 + inputs, k);
            p.ldx = g->as_is ? g->x.ld * (int64_t)dtype_bytes(g->x.dtype) / (int64_t)sizeof(unit)
                             : gemm_units(p.k1 - p.k0);
            p.x = g->as_is     ? (const unit *)(const void *)gemm_x(g, m0, p.k0)
                  : g->operand ? g->operand + b * g->m * gemm_units(inputs) + m0 * p.ldx
                               : operand;
            if (room && (p.n0 == n0 || blocks > 1))
                gemm_operand(g, m0, m, p.k0, p.k1, operand);
            // What is read next: the next block, of this pass over the blocks or the next one, or the next chunk's first.
            const bool again = b + 1 < blocks || (blocks > 1 && p.n0 + columns < n1);
            const int64_t row = again ? m0 : next, rows = g->operand ? 0 : min_i64(m, g->m - row);
            const char *ahead = gemm_x(g, row, (b + 1) % blocks * inputs);
            if (m <= TILE_WIDE_ROWS && gemm_cached(g->w))
                gemm_few(&p, p.n0, min_i64(p.n0 + columns, n1));
            else if (m <= TILE_WIDE_ROWS)
                gemm_stream(&p, p.n0, min_i64(p.n0 + columns, n1));
            else
                gemm_many(&p, p.n0, min_i64(p.n0 + columns, n1), ahead, rows);
        }
}

static void gemm_columns(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct gemm *g = ctx;
    gemm_chunk(g, 0, g->m, begin, min_i64(end, g->w->n), g->m, thread);
}

static void gemm_round(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct gemm *g = ctx;
    const int64_t k = g->w->k, inputs = gemm_inputs(k);
    for (int64_t k0 = 0; k0 < k; k0 += inputs) {
        int64_t k1 = min_i64(k0 + inputs, k);
        gemm_operand(g, begin, end - begin, k0, k1,
                     g->operand + k0 / inputs * g->m * gemm_units(inputs) + begin * gemm_units(k1 - k0));
    }
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

static void gemm_run(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x,
                     const float *bias, bool accumulate, float *y, int64_t ldy)
{
    assert(w->dtype == DT_FP8 ? w->scales != NULL : w->dtype == DT_F32 || w->dtype == DT_BF16);
    assert(x.dtype == DT_F32 || (x.dtype == DT_BF16 && w->dtype != DT_F32));
    assert(m >= 0 && (m < 2 || (x.ld >= w->k && ldy >= w->n)));
    if (m == 0)
        return;
    struct gemm g = {d, w, m, x, bias, accumulate, y, ldy, false, 1, 1, NULL};
    g.as_is = gemm_lies(&g);
    const int64_t threads = pool_threads(d->pool), bytes = w->n * w->k * (int64_t)dtype_bytes(w->dtype);
    const int64_t chunk = bytes > GEMM_BIG ? 2 * GEMM_CHUNK : GEMM_CHUNK;
    if (m <= TILE_WIDE_ROWS) {
        int64_t each = threads == 1 ? 1 : min_i64(max_i64(bytes / threads / FEW_MOST, 1), 8);
        g.ranges = max_i64(min_i64(min_i64(threads * each, ceil_div(w->n, PANEL)), bytes / FEW_LEAST), 1);
        pool_run(d->pool, (int)g.ranges, gemm_task, &g);
        return;
    }
    if (m <= GEMM_CHUNK) {
        // A panel's time: its products, or at least its way here (out of the caches or out of memory).
        double near = w->dtype == DT_FP8     ? 0.045
                      : (double)bytes < 16e6 ? 0.012
                                             : 0.04,
               way = (double)bytes / (double)w->n * near;
        double products = (double)m * (double)w->k * 0.01;
        if (!g.as_is) { // rounded once, not by every task
            const int64_t inputs = gemm_inputs(w->k), blocks = max_i64(ceil_div(w->k, inputs), 1);
            g.operand = scratch_shared(d, (size_t)(m * gemm_units(inputs) * blocks) * sizeof(float));
            split_run(d, m, 1, (double)w->k * 0.1, gemm_round, &g);
        }
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
