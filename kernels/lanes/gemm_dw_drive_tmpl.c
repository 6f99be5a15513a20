// Template: the division of dw += dy' x, common to the classes. Outputs go block by block, the rows of the batch part by part: both
// operands of a part are packed once for all threads, in the tiles' order; then tiles are shared out. Between two parts the sums wait in
// memory as they stood in their registers, so the chain over m is never broken and knows neither blocks nor threads.
#include <assert.h>

#include "kernels/lanes/tile_tmpl.c"

#define DW_GROUP   32                                         // rows packed in one go
#define DW_ROWS    (384 * DW_GROUP / (int)DW_STEPS(DW_GROUP)) // rows of a part: 384 steps
#define DW_SEGMENT 16 // tiles of dy, or as many columns of x, packed in one go; dy's tiles of one task
#define DW_SUMS    ((int64_t)8 << 20) // bytes of sums of a block of outputs
#define TILE_WIDTH (16 * TILE_COLS)
#define TILE_AREA  (TILE_ROWS * TILE_WIDTH)

// One operand's share in the packed part: [tile][step][width] (32-bit units), zero beyond its columns.
struct dw_side {
    struct rows src;
    int64_t cols, width;
    float *packed;
};

struct gemm_dw {
    enum dtype dtype;
    int64_t n, k;
    float *dw;
    struct dw_side dy, x; // dy: of the block's outputs
    int64_t n0;           // where the block begins
    int64_t m0, m, m_all; // rows of the part, of all
    float *sums;          // [tile of x][tile of dy][TILE_AREA], or NULL: one part
    int64_t cut_n, cut_k; // tasks along both
};

// dst[tile][step][width] = columns [0, cols) of m rows of src, tiles `stride` units apart.
static void dw_pack(enum dtype dtype, struct rows src, int64_t m, int64_t cols, int64_t width, int64_t stride,
                    float *dst);
// c [TILE_ROWS, TILE_WIDTH] = (fresh ? 0 : c) continued over the steps; `ahead` of both operands' tiles is what comes next.
static void dw_tile(int64_t steps, const float *dy, const float *x, const float *ahead, float *c, bool fresh);

static int64_t dw_groups(const struct gemm_dw *g)
{
    return ceil_div(g->m, DW_GROUP);
}

static void dw_pack_unit(const struct gemm_dw *g, const struct dw_side *s, int64_t segment, int64_t group)
{
    const int64_t steps = DW_STEPS(g->m), tiles = max_i64(1, DW_SEGMENT * TILE_ROWS / s->width);
    const int64_t c0 = segment * tiles * s->width, row = group * DW_GROUP;
    dw_pack(g->dtype, rows_from(s->src, (g->m0 + row) * s->src.ld + c0), min_i64(DW_GROUP, g->m - row),
            min_i64(tiles * s->width, s->cols - c0), s->width, steps * s->width,
            s->packed + (segment * tiles * steps + DW_STEPS(row)) * s->width);
}

static int64_t dw_segments(const struct dw_side *s)
{
    return ceil_div(s->cols, max_i64(1, DW_SEGMENT * TILE_ROWS / s->width) * s->width);
}

// Units: segments of dy, then of x, each group by group.
static void dw_pack_units(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct gemm_dw *g = ctx;
    const int64_t groups = dw_groups(g), of_dy = dw_segments(&g->dy);
    for (int64_t u = begin; u < end; u++) {
        int64_t segment = u / groups;
        if (segment < of_dy)
            dw_pack_unit(g, &g->dy, segment, u % groups);
        else
            dw_pack_unit(g, &g->x, segment - of_dy, u % groups);
    }
}

// dw's lines lie apart: they are asked for when the tile begins, into the second-level cache (see gemm_begin).
static void dw_expect(const struct gemm_dw *g, int64_t n, int64_t k)
{
    for (int64_t r = 0; r < min_i64(TILE_ROWS, g->n0 + g->dy.cols - n); r++)
        for (int64_t v = 0; v < TILE_WIDTH && k + v < g->k; v += 16)
            __builtin_prefetch(g->dw + (n + r) * g->k + k + v, 1, 2);
}

static void dw_store(const struct gemm_dw *g, const float *sums, int64_t n, int64_t k)
{
    const int64_t rows = min_i64(TILE_ROWS, g->n0 + g->dy.cols - n);
    float *to = g->dw + n * g->k + k;
    if (rows == TILE_ROWS && k + TILE_WIDTH <= g->k) {
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++)
#pragma GCC unroll 2
            for (int v = 0; v < TILE_WIDTH; v += 16)
                v_store(to + r * g->k + v,
                        v_add(v_load(to + r * g->k + v), v_load(sums + r * TILE_WIDTH + v)));
        return;
    }
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < TILE_WIDTH && k + v < g->k; v += 16) {
            int64_t left = min_i64(16, g->k - k - v);
            v16 sum = v_add(v_load_n(to + r * g->k + v, left), v_load(sums + r * TILE_WIDTH + v));
            v_store_n(to + r * g->k + v, sum, left);
        }
}

static void dw_tasks(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct gemm_dw *g = ctx;
    const int64_t tn = ceil_div(g->dy.cols, TILE_ROWS), tk = ceil_div(g->k, TILE_WIDTH),
                  steps = DW_STEPS(g->m);
    const bool last = g->m0 + g->m == g->m_all;
    float here[TILE_AREA] __attribute__((aligned(64)));
    for (int64_t b = begin; b < end; b++) {
        const int64_t bi = b / g->cut_k, bj = b % g->cut_k;
        const int64_t i0 = tn * bi / g->cut_n, i1 = tn * (bi + 1) / g->cut_n;
        const int64_t j0 = tk * bj / g->cut_k, j1 = tk * (bj + 1) / g->cut_k;
        for (int64_t j = j0; j < j1; j++)
            for (int64_t i = i0; i < i1; i++) {
                float *sums = g->sums ? g->sums + (j * tn + i) * TILE_AREA : here;
                const float *dy = g->dy.packed + i * steps * TILE_ROWS,
                            *x = g->x.packed + j * steps * TILE_WIDTH;
                if (last)
                    dw_expect(g, g->n0 + i * TILE_ROWS, j * TILE_WIDTH);
                dw_tile(steps, dy, x, i + 1 == i1 && j + 1 < j1 ? x + steps * TILE_WIDTH : NULL, sums,
                        g->m0 == 0);
                if (last)
                    dw_store(g, sums, g->n0 + i * TILE_ROWS, j * TILE_WIDTH);
            }
    }
}

// Tasks of about DW_SEGMENT tiles of dy by all of x, and a number that shares out evenly as long as tiles remain to cut.
static void dw_cut(struct gemm_dw *g, int threads)
{
    const int64_t tn = ceil_div(g->dy.cols, TILE_ROWS), tk = ceil_div(g->k, TILE_WIDTH);
    g->cut_n = ceil_div(tn, DW_SEGMENT);
    g->cut_k = 1;
    for (int64_t cuts; (cuts = g->cut_n * g->cut_k) < 4 * threads && cuts % threads;)
        if (tn / g->cut_n >= tk / g->cut_k && g->cut_n < tn)
            g->cut_n++;
        else if (g->cut_k < tk)
            g->cut_k++;
        else
            break;
}

static void dw_part(struct gemm_dw *g, struct device *d, bool pack_x)
{
    const int64_t segments = dw_segments(&g->dy) + (pack_x ? dw_segments(&g->x) : 0);
    const double rows = (double)g->m, tasks = (double)(g->cut_n * g->cut_k);
    split_run(d, segments * dw_groups(g), 1, DW_GROUP * DW_SEGMENT * TILE_ROWS * 0.3, dw_pack_units, g);
    split_run(d, g->cut_n * g->cut_k, 1, rows * (double)g->dy.cols * (double)g->k * 0.005 / tasks, dw_tasks,
              g);
}

static void gemm_dw_run(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                        struct rows x, float *dw)
{
    assert(dtype == DT_F32 || dtype == DT_BF16);
    assert(dtype == DT_BF16 || (dy.dtype == DT_F32 && x.dtype == DT_F32));
    if (m == 0 || n == 0 || k == 0)
        return;
    const int64_t wide = ceil_div(k, TILE_WIDTH) * TILE_WIDTH, least = DW_SEGMENT * TILE_ROWS;
    const int64_t most = max_i64(DW_SUMS / 4 / wide / least, 1) * least; // outputs of a block
    const int64_t block = ceil_div(min_i64(n, most), TILE_ROWS) * TILE_ROWS;
    const int64_t part = min_i64(DW_ROWS, ceil_div(m, DW_GROUP) * DW_GROUP), steps = DW_STEPS(part);
    const bool parts = part < m;
    float *packed =
        scratch_shared(d, (size_t)((block + wide) * steps + (parts ? block * wide : 0)) * sizeof(float));
    struct gemm_dw g = {.dtype = dtype, .n = n, .k = k, .dw = dw, .m_all = m};
    g.x = (struct dw_side){x, k, TILE_WIDTH, packed};
    g.sums = parts ? packed + (block + wide) * steps : NULL;
    for (g.n0 = 0; g.n0 < n; g.n0 += block) {
        g.dy =
            (struct dw_side){rows_from(dy, g.n0), min_i64(block, n - g.n0), TILE_ROWS, packed + wide * steps};
        dw_cut(&g, pool_threads(d->pool));
        for (g.m0 = 0; g.m0 < m; g.m0 += part) {
            g.m = min_i64(part, m - g.m0);
            dw_part(&g, d, parts || g.n0 == 0);
        }
    }
}
