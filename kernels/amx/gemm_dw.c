// dw += dy' x on tiles (amx.h has the order); in f32 it is avx512's.
//
// Any thread of the pool runs blocks of dw. Both operands are packed SLAB rows of the batch at a time into tiles of bf16 pairs (pairs of
// rows of the batch); the accumulators of a block wait in scratch between slabs, so the order knows nothing of slabs and blocks.
#include <assert.h>

#include "kernels/amx/amx.h"
#include "kernels/amx/tile.h"
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/lanes.h"

#define SLAB      256 // rows of the batch packed at once, whole steps
#define BLOCK     192 // most outputs and inputs of a task's block
#define SQUARE    32  // outputs and inputs of four tiles
#define TILE_SIZE (TILE_DIM * TILE_K)

struct gemm_dw {
    struct device *d;
    int64_t m, n, k;
    struct rows dy, x;
    float *dw;
    int64_t cut_n, cut_k; // blocks along N and K
};

// Sixteen columns from element i on in the low halves of 32-bit lanes, or 0 where the row or a column is not there.
ALWAYS __m512i row_halves(const struct rows *r, int64_t i, bool there, int64_t cols)
{
    if (!there)
        return _mm512_setzero_si512();
    return _mm512_cvtepu16_epi32(r->dtype == DT_BF16
                                     ? _mm256_maskz_loadu_epi16(v_mask(cols), (const uint16_t *)r->at + i)
                                     : (__m256i)_mm512_cvtneps_pbh(v_load_n((const float *)r->at + i, cols)));
}

// Rows 2i and 2i+1 of 16 columns as sixteen pairs of bf16.
ALWAYS v16 row_pair(const struct rows *r, int64_t at, int64_t rows, int64_t cols)
{
    __m512i lo = row_halves(r, at, rows > 0, cols), hi = row_halves(r, at + r->ld, rows > 1, cols);
    return _mm512_castsi512_ps(_mm512_or_si512(lo, _mm512_slli_epi32(hi, 16)));
}

// Columns [c0, c1) of rows [m0, m0 + m) of src → tiles [column / 16][step], zeros beyond, the columns filled up to whole squares. A tile
// has one pair-row of the batch after the other (x), or is turned: one column after the other (dy).
static void pack(const struct rows *src, int64_t m0, int64_t m, int64_t c0, int64_t c1, bool turned,
                 uint16_t *to)
{
    for (int64_t c = c0; c < c0 + ceil_div(c1 - c0, SQUARE) * SQUARE; c += TILE_DIM)
        for (int64_t r = 0; r < m; r += TILE_K, to += TILE_SIZE) {
            v16 a[16];
            int64_t cols = max_i64(0, min_i64(TILE_DIM, c1 - c));
            for (int64_t i = 0; i < 16; i++)
                a[i] = cols ? row_pair(src, (m0 + r + 2 * i) * src->ld + c, m - r - 2 * i, cols) : v_zero();
            if (turned)
                v_transpose(a);
            for (int64_t i = 0; i < 16; i++)
                _mm512_storeu_ps(to + 32 * i, a[i]);
        }
}

// c [32, 32] (fresh: from 0) continued over the steps of 32 outputs of dy and 32 inputs of x; `next` elements to their second tiles.
static void square(const uint16_t *dy, const uint16_t *x, int64_t next, int64_t steps, bool fresh, float *c)
{
    if (fresh) {
        TILE_ZERO(0);
        TILE_ZERO(1);
        TILE_ZERO(2);
        TILE_ZERO(3);
    } else {
        TILE_LOAD(0, c, 4 * SQUARE);
        TILE_LOAD(1, c + TILE_DIM, 4 * SQUARE);
        TILE_LOAD(2, c + TILE_DIM * SQUARE, 4 * SQUARE);
        TILE_LOAD(3, c + TILE_DIM * SQUARE + TILE_DIM, 4 * SQUARE);
    }
    for (int64_t s = 0; s < steps; s++, dy += TILE_SIZE, x += TILE_SIZE) {
        TILE_LOAD(4, dy, 64);
        TILE_LOAD(6, x, 64);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, x + next, 64);
        TILE_DOT(1, 4, 7);
        TILE_LOAD(5, dy + next, 64);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
    }
    TILE_STORE(0, c, 4 * SQUARE);
    TILE_STORE(1, c + TILE_DIM, 4 * SQUARE);
    TILE_STORE(2, c + TILE_DIM * SQUARE, 4 * SQUARE);
    TILE_STORE(3, c + TILE_DIM * SQUARE + TILE_DIM, 4 * SQUARE);
}

static void add_square(const struct gemm_dw *g, const float *c, int64_t n, int64_t n1, int64_t k, int64_t k1)
{
    for (int64_t r = 0; r < min_i64(SQUARE, n1 - n); r++)
        for (int64_t v = 0; v < SQUARE && k + v < k1; v += 16) {
            float *to = g->dw + (n + r) * g->k + k + v;
            int64_t left = min_i64(16, k1 - k - v);
            v_store_n(to, v_add(v_load_n(to, left), v_load(c + r * SQUARE + v)), left);
        }
}

// The block [n0, n1) x [k0, k1) of dw.
static void dw_block(const struct gemm_dw *g, int64_t n0, int64_t n1, int64_t k0, int64_t k1, int thread)
{
    int64_t sn = ceil_div(n1 - n0, SQUARE), sk = ceil_div(k1 - k0, SQUARE), area = SQUARE * SQUARE;
    float *acc = scratch_get(
        g->d, thread, (size_t)(sn * sk * area) * sizeof *acc + (size_t)(SLAB * (sn + sk) * SQUARE) * 2);
    uint16_t *dy = (uint16_t *)(void *)(acc + sn * sk * area), *x = dy + SLAB * sn * SQUARE;
    for (int64_t m0 = 0; m0 < g->m; m0 += SLAB) {
        int64_t m = min_i64(SLAB, g->m - m0), steps = ceil_div(m, TILE_K), next = steps * TILE_SIZE;
        pack(&g->dy, m0, m, n0, n1, true, dy);
        pack(&g->x, m0, m, k0, k1, false, x);
        for (int64_t i = 0; i < sn; i++)
            for (int64_t j = 0; j < sk; j++) {
                float *c = acc + (i * sk + j) * area;
                square(dy + 2 * i * next, x + 2 * j * next, next, steps, m0 == 0, c);
                if (m0 + m == g->m)
                    add_square(g, c, n0 + i * SQUARE, n1, k0 + j * SQUARE, k1);
            }
    }
}

static int64_t cut(int64_t n, int64_t pieces, int64_t i)
{
    return min_i64(ceil_div(n, SQUARE) * i / pieces * SQUARE, n);
}

static void dw_blocks(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct gemm_dw *g = ctx;
    tile_begin();
    for (int64_t b = begin; b < end; b++) {
        int64_t i = b / g->cut_k, j = b % g->cut_k;
        dw_block(g, cut(g->n, g->cut_n, i), cut(g->n, g->cut_n, i + 1), cut(g->k, g->cut_k, j),
                 cut(g->k, g->cut_k, j + 1), thread);
    }
    tile_end();
}

void AMX(gemm_dw)(struct device *d, enum dtype dtype, int64_t m, int64_t n, int64_t k, struct rows dy,
                  struct rows x, float *dw)
{
    if (dtype == DT_F32) {
        avx512_gemm_dw(d, dtype, m, n, k, dy, x, dw);
        return;
    }
    assert(dtype == DT_BF16);
    if (m == 0 || n == 0 || k == 0)
        return;
    struct gemm_dw g = {d, m, n, k, dy, x, dw, ceil_div(n, BLOCK), ceil_div(k, BLOCK)};
    // Enough blocks for every thread as long as squares remain to cut; where the cuts lie moves no bits.
    while (g.cut_n * g.cut_k < 4 * pool_threads(d->pool)) {
        if (k / g.cut_k >= n / g.cut_n && k / g.cut_k > SQUARE)
            g.cut_k++;
        else if (n / g.cut_n > SQUARE)
            g.cut_n++;
        else
            break;
    }
    int64_t blocks = g.cut_n * g.cut_k;
    split_run(d, blocks, 1, (double)m * (double)n * (double)k * 0.001 / (double)blocks, dw_blocks, &g);
}
