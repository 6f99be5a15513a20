// Matrix products on pairs of bf16 (avx512bf16.h has the order). Products with f32 weights are avx512's.
#include "kernels/avx512bf16/avx512bf16.h"
#include "kernels/avx512bf16/lanes.h"
#include "kernels/avx512bf16/widen.h"

#define GEMM_STREAM // few rows: gemm_stream, below
#include "kernels/lanes/gemm_drive_tmpl.c"

// ---- tiles -----------------------------------------------------------------------------------------------

// Two lines asked for at every step of a loop over pairs, the next step's so many bytes on.
struct fetch {
    const char *at;
    int64_t step;
};

// acc continued over n_pairs; w is the first panel's pair-row, panels lie `panel` bytes apart. cols is even: whole panels, one after the
// other, for the widened codes of all of them together would not fit the registers. Without `fetching` f is not read.
ALWAYS void pair_chain(const int rows, const int cols, const enum dtype t, const bool fetching,
                       const struct gemm_pass *p, int64_t n_pairs, const unit *x, const char *w,
                       int64_t panel, struct fetch f, v16 *acc)
{
    const int64_t ldx = p->ldx, reach = p->reach;
    const int64_t step = 2 * PANEL * (int64_t)dtype_bytes(t);
    for (int64_t i = 0; i < n_pairs; i++, w += step) {
        v16 a[TILE_ROWS];
        if (fetching) {
            __builtin_prefetch(f.at, 0, 2);
            __builtin_prefetch(f.at + 64, 0, 2);
            f.at += f.step;
        }
#pragma GCC unroll 16
        for (int r = 0; r < rows; r++)
            a[r] = v_set(x[r * ldx + i]);
#pragma GCC unroll 8
        for (int v = 0; v < cols; v += 2) { // a panel
            const char *from = w + v / 2 * panel;
            __m512i b, c;
            if (cols > TILE_COLS) {
                __builtin_prefetch(from + reach, 0, 2);
                if (t == DT_BF16)
                    __builtin_prefetch(from + reach + 64, 0, 2);
            }
            if (t == DT_FP8) {
                widen_pairs((const uint8_t *)from, &b, &c);
            } else {
                b = _mm512_loadu_si512(from);
                c = _mm512_loadu_si512(from + 64);
            }
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++) {
                acc[r * cols + v] = v_dot_pairs(acc[r * cols + v], a[r], b);
                acc[r * cols + v + 1] = v_dot_pairs(acc[r * cols + v + 1], a[r], c);
            }
        }
    }
}

// The same, where the pass wants lines ahead of those already asked for at `done` steps.
ALWAYS void pair_ahead(const int rows, const int cols, const enum dtype t, const struct gemm_pass *p,
                       int64_t done, int64_t n_pairs, const unit *x, const char *w, int64_t panel, v16 *acc)
{
    const struct fetch ahead = {p->ahead + done * p->ahead_step, p->ahead_step};
    const int64_t asking = cols == TILE_COLS ? min_i64(max_i64(p->ahead_steps - done, 0), n_pairs) : 0;
    if (cols == TILE_COLS)
        pair_chain(rows, cols, t, true, p, asking, x, w, panel, ahead, acc);
    pair_chain(rows, cols, t, false, p, n_pairs - asking, x + asking,
               w + asking * 2 * PANEL * (int64_t)dtype_bytes(t), panel, ahead, acc);
}

// What is asked for costs a tile its time too: a high one whose steps are free asks for the lines of y row by row in the first of them,
// since all of them at once would hold its own operands up.
ALWAYS void bf16_tile(const int rows, const int cols, const struct gemm_pass *p, int64_t r0, int64_t n)
{
    const struct gemm *g = p->g;
    const int64_t k = g->w->k, panel = ceil_div(k, 2) * 2 * PANEL * 2, pairs = ceil_div(p->k1 - p->k0, 2);
    const bool apart = rows > TILE_WIDE_ROWS && p->ahead_steps < pairs;
    const int64_t first = apart && p->k1 == k ? min_i64(rows, pairs) : 0;
    const unit *x = p->x + r0 * p->ldx;
    const char *w = (const char *)g->w->data + n / PANEL * panel + p->k0 * PANEL * 2;
    const struct fetch y = {(const char *)(g->y + (p->m0 + r0) * g->ldy + n),
                            g->ldy * (int64_t)sizeof(float)};
    v16 acc[TILE_ROWS * TILE_COLS];
    gemm_begin(rows, cols, p, r0, n, acc);
    if (apart)
        pair_chain(rows, cols, DT_BF16, true, p, first, x, w, panel, y, acc);
    else
        gemm_ask(rows, cols, p, r0, n);
    pair_ahead(rows, cols, DT_BF16, p, 0, pairs - first, x + first, w + first * 2 * PANEL * 2, panel, acc);
    gemm_end(rows, cols, p, r0, n, acc);
}

ALWAYS void fp8_tile(const int rows, const int cols, const struct gemm_pass *p, int64_t r0, int64_t n)
{
    const struct gemm_weight *g = p->g->w;
    const int64_t panel = ceil_div(g->k, 2) * 2 * PANEL, blocks = ceil_div(g->k, FP8_BLOCK);
    const char *w = (const char *)g->data + n / PANEL * panel;
    v16 acc[TILE_ROWS * TILE_COLS], total[TILE_ROWS * TILE_COLS];
    gemm_ask(rows, cols, p, r0, n);
    gemm_begin(rows, cols, p, r0, n, total);
    for (int64_t k = p->k0; k < p->k1; k += FP8_BLOCK) {
#pragma GCC unroll 32
        for (int i = 0; i < rows * cols; i++)
            acc[i] = v_zero();
        const int64_t done = (k - p->k0) / 2;
        pair_ahead(rows, cols, DT_FP8, p, done, ceil_div(min_i64(FP8_BLOCK, p->k1 - k), 2),
                   p->x + r0 * p->ldx + done, w + k * PANEL, panel, acc);
#pragma GCC unroll 8
        for (int v = 0; v < cols; v++) {
            v16 scale = v_set(g->scales[(n + 16 * v) / FP8_BLOCK * blocks + k / FP8_BLOCK]);
#pragma GCC unroll 16
            for (int r = 0; r < rows; r++)
                total[r * cols + v] = v_fma(acc[r * cols + v], scale, total[r * cols + v]);
        }
    }
    gemm_end(rows, cols, p, r0, n, total);
}

#define TILE_DEFINE(name, t, rows, cols)                                                                     \
    static void name##_##rows##_##cols(const struct gemm_pass *p, int64_t r0, int64_t n)                     \
    {                                                                                                        \
        name##_tile(rows, cols, p, r0, n);                                                                   \
    }
#define TILE_NAME(name, t, rows, cols) name##_##rows##_##cols,
GEMM_TILES(TILE_DEFINE, bf16, DT_BF16)
GEMM_TILES(TILE_DEFINE, fp8, DT_FP8)

// ---- few rows ----------------------------------------------------------------------------------------------

// What counts is that the weights come as fast as memory gives them, and that is in the order in which they lie: panel after panel, by
// one load instruction, which the hardware prefetchers follow, with the lines STREAM_AHEAD bytes further on asked for. Several
// panels at once would hide the latency of the products, but four streams come a third slower than one.
#define STREAM_AHEAD 8192
#define STREAM_ROWS  TILE_WIDE_ROWS

ALWAYS void stream_chain(const int rows, const enum dtype t, int64_t n_pairs, const unit *x, int64_t ldx,
                         const char *w, v16 *acc)
{
    const int64_t step = 2 * PANEL * (int64_t)dtype_bytes(t);
    for (int64_t i = 0; i < n_pairs; i++, w += step) {
        __m512i b, c;
        __builtin_prefetch(w + STREAM_AHEAD);
        if (t == DT_FP8) {
            widen_pairs((const uint8_t *)w, &b, &c);
        } else {
            __builtin_prefetch(w + STREAM_AHEAD + 64);
            b = _mm512_loadu_si512(w);
            c = _mm512_loadu_si512(w + 64);
        }
#pragma GCC unroll 8
        for (int r = 0; r < rows; r++) {
            v16 a = v_set(x[r * ldx + i]);
            acc[2 * r] = v_dot_pairs(acc[2 * r], a, b);
            acc[2 * r + 1] = v_dot_pairs(acc[2 * r + 1], a, c);
        }
    }
}

// Columns [n0, n1).
ALWAYS void stream_panels(const int rows, const enum dtype t, const struct gemm_pass *p, int64_t n0,
                          int64_t n1)
{
    const struct gemm_weight *g = p->g->w;
    const int64_t blocks = ceil_div(g->k, FP8_BLOCK), length = t == DT_FP8 ? FP8_BLOCK : p->k1 - p->k0;
    const char *panel = gemm_weights(p->g, n0, p->k0);
    const int64_t panel_bytes = gemm_weights(p->g, PANEL, 0) - gemm_weights(p->g, 0, 0);
    for (int64_t n = n0; n < n1; n += PANEL, panel += panel_bytes) {
        v16 acc[2 * STREAM_ROWS], total[2 * STREAM_ROWS];
        const char *w = panel;
        gemm_ask(rows, 2, p, 0, n);
        gemm_begin(rows, 2, p, 0, n, total);
        for (int64_t k = p->k0; k < p->k1; k += length) {
            int64_t pairs = ceil_div(min_i64(length, p->k1 - k), 2);
#pragma GCC unroll 32
            for (int i = 0; i < 2 * rows; i++)
                acc[i] = t == DT_FP8 ? v_zero() : total[i];
            stream_chain(rows, t, pairs, p->x + (k - p->k0) / 2, p->ldx, w, acc);
            w += pairs * 2 * PANEL * (int64_t)dtype_bytes(t);
            v16 scale = v_set(t == DT_FP8 ? g->scales[n / FP8_BLOCK * blocks + k / FP8_BLOCK] : 1);
#pragma GCC unroll 32
            for (int i = 0; i < 2 * rows; i++)
                total[i] = t == DT_FP8 ? v_fma(acc[i], scale, total[i]) : acc[i];
        }
        gemm_end(rows, 2, p, 0, n, total);
    }
}

#define STREAM_DEFINE(name, t, rows)                                                                         \
    static void stream_##name##_##rows(const struct gemm_pass *p, int64_t n0, int64_t n1)                    \
    {                                                                                                        \
        stream_panels(rows, t, p, n0, n1);                                                                   \
    }
#define STREAM_NAME(name, t, rows) stream_##name##_##rows,
#define STREAM_EACH(X, name, t)                                                                              \
    X(name, t, 1) X(name, t, 2) X(name, t, 3) X(name, t, 4) X(name, t, 5) X(name, t, 6)
STREAM_EACH(STREAM_DEFINE, bf16, DT_BF16)
STREAM_EACH(STREAM_DEFINE, fp8, DT_FP8)

static void gemm_stream(const struct gemm_pass *p, int64_t n0, int64_t n1)
{
    static void (*const run[2][STREAM_ROWS])(const struct gemm_pass *, int64_t, int64_t) = {
        {STREAM_EACH(STREAM_NAME, bf16, DT_BF16)}, {STREAM_EACH(STREAM_NAME, fp8, DT_FP8)}};
    run[p->g->w->dtype == DT_FP8][p->m - 1](p, n0, n1);
}

static gemm_fn *gemm_pick(enum dtype t, int64_t rows, int64_t cols)
{
    static gemm_fn *const tiles[2][GEMM_TILE_COUNT] = {{GEMM_TILES(TILE_NAME, bf16, DT_BF16)},
                                                       {GEMM_TILES(TILE_NAME, fp8, DT_FP8)}};
    return tiles[t == DT_FP8][gemm_tile_index(rows, cols)];
}

static int64_t gemm_units(int64_t k)
{
    return ceil_div(k, 2);
}

// Rows of bf16 are pairs already, if no row begins or ends within one.
static bool gemm_lies(const struct gemm *g)
{
    return g->x.dtype == DT_BF16 && g->w->k % 2 == 0 && (g->m == 1 || g->x.ld % 2 == 0) &&
           (uintptr_t)g->x.at % sizeof(unit) == 0;
}

static void pairs_copy(const uint16_t *x, int64_t k, float *to)
{
    for (int64_t i = 0; i < k; i += 32) {
        __mmask32 in = k - i >= 32 ? ~(__mmask32)0 : ((__mmask32)1 << (k - i)) - 1;
        _mm512_mask_storeu_epi32(to + i / 2, v_mask(min_i64(16, ceil_div(k - i, 2))),
                                 _mm512_maskz_loadu_epi16(in, x + i));
    }
}

// x as pairs of bf16, rows padded to whole pairs.
static void gemm_operand(const struct gemm *g, int64_t m0, int64_t m, int64_t k0, int64_t k1, float *to)
{
    int64_t k = k1 - k0, pairs = ceil_div(k, 2);
    for (int64_t r = 0; r < m; r++) {
        const void *from = gemm_x(g, m0 + r, k0);
        float *row = to + r * pairs;
        if (g->x.dtype == DT_BF16) {
            pairs_copy(from, k, row);
            continue;
        }
        const float *x = from;
        int64_t i = 0;
        for (; i + 32 <= k; i += 32) // the higher half comes first
            _mm512_storeu_si512(row + i / 2, (__m512i)_mm512_cvtne2ps_pbh(v_load(x + i + 16), v_load(x + i)));
        for (; i < k; i += 16) {
            __m256i h = (__m256i)_mm512_cvtneps_pbh(v_load_n(x + i, min_i64(16, k - i)));
            _mm256_mask_storeu_epi32(row + i / 2, (__mmask8)v_mask(min_i64(8, pairs - i / 2)), h);
        }
    }
}

void avx512bf16_gemm(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x,
                     const float *bias, bool accumulate, float *y, int64_t ldy)
{
    if (w->dtype == DT_F32)
        avx512_gemm(d, w, m, x, bias, accumulate, y, ldy);
    else
        gemm_run(d, w, m, x, bias, accumulate, y, ldy);
}
