// y = x W' on tiles (amx.h has the order). Products with f32 weights are avx512's.
//
// Any thread of the pool runs a range of (chunk of rows, panel of outputs) pairs: it rounds the chunk's x to bf16 in its scratch, whole
// tiles of it, or takes rows of bf16 where they lie if they are whole tiles, and walks its panels. Tiles 0 … 3 accumulate, 4 and 5
// hold x, 6 and 7 weights: 32 rows x 32 outputs at a time, or 16 rows x 64 outputs where the chunk has no more rows. FP8 weights are
// widened 128 x 32 at a time into scratch, where all rows of the chunk find them.
#include <assert.h>

#include "kernels/amx/amx.h"
#include "kernels/amx/tile.h"
#include "kernels/avx512/avx512.h"
#include "kernels/avx512/lanes.h"
#include "kernels/avx512bf16/fp8_bf16.h"

#define CHUNK     96                            // rows of x in scratch at a time
#define PAIR_ROW  (2 * PANEL)                   // elements of a packed pair-row
#define WIDENED   (FP8_BLOCK / 2 * PAIR_ROW)    // elements of a widened block of one panel
#define TILE_AREA (2 * TILE_DIM * 2 * TILE_DIM) // floats of four tiles

struct gemm {
    struct device *d;
    const struct gemm_weight *w;
    int64_t m;
    struct rows x;
    const float *bias;
    bool accumulate;
    float *y;
    int64_t ldy;
};

// What one thread works on and in.
struct room {
    const uint16_t *x; // the chunk's rows in whole tiles, k padded, bf16
    int64_t ldx;
    uint16_t *operand; // scratch for them
    uint16_t *widened; // two panels' block of FP8 weights as bf16
    float *total;      // [CHUNK, 2 * PANEL] sums of the blocks so far (FP8)
};

// ---- FP8 codes as bf16: a table of the low seven bits, the sign put back -------------------------------------------------

#define CODES4(q)  FP8_BF16(q), FP8_BF16((q) + 1), FP8_BF16((q) + 2), FP8_BF16((q) + 3)
#define CODES16(q) CODES4(q), CODES4((q) + 4), CODES4((q) + 8), CODES4((q) + 12)
#define CODES64(q) CODES16(q), CODES16((q) + 16), CODES16((q) + 32), CODES16((q) + 48)

static const uint16_t WIDE[128] __attribute__((aligned(64))) = {CODES64(0), CODES64(64)};

static void widen(const uint8_t *codes, int64_t n, uint16_t *to) // n: a multiple of 32
{
    const __m512i t0 = _mm512_load_si512(WIDE), t1 = _mm512_load_si512(WIDE + 32),
                  t2 = _mm512_load_si512(WIDE + 64), t3 = _mm512_load_si512(WIDE + 96);
    for (int64_t i = 0; i < n; i += 32) {
        __m512i q = _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)(const void *)(codes + i)));
        __mmask32 upper = _mm512_test_epi16_mask(q, _mm512_set1_epi16(0x40));
        __m512i h = _mm512_permutex2var_epi16(t0, q, t1);
        h = _mm512_mask_mov_epi16(h, upper, _mm512_permutex2var_epi16(t2, q, t3));
        __m512i sign = _mm512_slli_epi16(_mm512_and_si512(q, _mm512_set1_epi16(0x80)), 8);
        _mm512_storeu_si512(to + i, _mm512_or_si512(h, sign));
    }
}

// ---- products of a block: c = the chain over `steps` steps from 0 ------------------------------------------------------------

// 32 rows of x (stride ldx elements) x one panel → c [32, 32]
static void product_tall(const uint16_t *x, int64_t ldx, const uint16_t *w, int64_t steps, float *c)
{
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int64_t s = 0; s < steps; s++, x += TILE_K, w += TILE_K / 2 * PAIR_ROW) {
        TILE_LOAD(6, w, 2 * PAIR_ROW);
        TILE_LOAD(4, x, 2 * ldx);
        TILE_DOT(0, 4, 6);
        TILE_LOAD(7, w + PAIR_ROW / 2, 2 * PAIR_ROW);
        TILE_DOT(1, 4, 7);
        TILE_LOAD(5, x + TILE_DIM * ldx, 2 * ldx);
        TILE_DOT(2, 5, 6);
        TILE_DOT(3, 5, 7);
    }
    TILE_STORE(0, c, 4 * PANEL);
    TILE_STORE(1, c + TILE_DIM, 4 * PANEL);
    TILE_STORE(2, c + TILE_DIM * PANEL, 4 * PANEL);
    TILE_STORE(3, c + TILE_DIM * PANEL + TILE_DIM, 4 * PANEL);
}

// 16 rows x two panels that lie `panel` elements apart → c [16, 64]
static void product_wide(const uint16_t *x, int64_t ldx, const uint16_t *w, int64_t panel, int64_t steps,
                         float *c)
{
    TILE_ZERO(0);
    TILE_ZERO(1);
    TILE_ZERO(2);
    TILE_ZERO(3);
    for (int64_t s = 0; s < steps; s++, x += TILE_K, w += TILE_K / 2 * PAIR_ROW) {
        TILE_LOAD(4, x, 2 * ldx);
        TILE_LOAD(6, w, 2 * PAIR_ROW);
        TILE_LOAD(7, w + PAIR_ROW / 2, 2 * PAIR_ROW);
        TILE_DOT(0, 4, 6);
        TILE_DOT(1, 4, 7);
        TILE_LOAD(5, w + panel, 2 * PAIR_ROW);
        TILE_LOAD(6, w + panel + PAIR_ROW / 2, 2 * PAIR_ROW);
        TILE_DOT(2, 4, 5);
        TILE_DOT(3, 4, 6);
    }
    TILE_STORE(0, c, 8 * PANEL);
    TILE_STORE(1, c + TILE_DIM, 8 * PANEL);
    TILE_STORE(2, c + 2 * TILE_DIM, 8 * PANEL);
    TILE_STORE(3, c + 3 * TILE_DIM, 8 * PANEL);
}

// 16 rows x one panel → c [16, 32]
static void product_small(const uint16_t *x, int64_t ldx, const uint16_t *w, int64_t steps, float *c)
{
    TILE_ZERO(0);
    TILE_ZERO(1);
    for (int64_t s = 0; s < steps; s++, x += TILE_K, w += TILE_K / 2 * PAIR_ROW) {
        TILE_LOAD(4, x, 2 * ldx);
        TILE_LOAD(6, w, 2 * PAIR_ROW);
        TILE_LOAD(7, w + PAIR_ROW / 2, 2 * PAIR_ROW);
        TILE_DOT(0, 4, 6);
        TILE_DOT(1, 4, 7);
    }
    TILE_STORE(0, c, 4 * PANEL);
    TILE_STORE(1, c + TILE_DIM, 4 * PANEL);
}

// Rows [r, r + up to 32) of the chunk x the panels of width 32 or 64 → c [·, width]; returns the rows that c has now.
static int64_t product(const uint16_t *x, int64_t ldx, int64_t rows, const uint16_t *w, int64_t panel,
                       int64_t width, int64_t steps, float *c)
{
    if (width > PANEL)
        product_wide(x, ldx, w, panel, steps, c);
    else if (rows > TILE_DIM)
        product_tall(x, ldx, w, steps, c);
    else
        product_small(x, ldx, w, steps, c);
    return min_i64(rows, width > PANEL || rows <= TILE_DIM ? TILE_DIM : 2 * TILE_DIM);
}

// ---- panels -----------------------------------------------------------------------------------------------------------------

// Rows of sums [rows, width] into y from (m, n) on.
static void finish(const struct gemm *g, int64_t m, int64_t rows, int64_t n, int64_t width, const float *sums)
{
    for (int64_t r = 0; r < rows; r++)
        for (int64_t v = 0; v < width && n + v < g->w->n; v += 16) {
            int64_t left = min_i64(16, g->w->n - n - v);
            float *y = g->y + (m + r) * g->ldy + n + v;
            v16 s = v_load(sums + r * width + v);
            if (g->bias)
                s = v_add(s, v_load_n(g->bias + n + v, left));
            v_store_n(y, g->accumulate ? v_add(v_load_n(y, left), s) : s, left);
        }
}

static void panels_bf16(const struct gemm *g, int64_t m0, int64_t m, int64_t n, int64_t width,
                        const struct room *room)
{
    int64_t k = amx_padded(g->w->k);
    const uint16_t *w = (const uint16_t *)g->w->data + n * k;
    float c[TILE_AREA] __attribute__((aligned(64)));
    for (int64_t r = 0, done; r < m; r += done) {
        done = product(room->x + r * room->ldx, room->ldx, m - r, w, PANEL * k, width, k / TILE_K, c);
        finish(g, m0 + r, done, n, width, c);
    }
}

static void panels_fp8(const struct gemm *g, int64_t m0, int64_t m, int64_t n, int64_t width,
                       const struct room *room)
{
    int64_t k = amx_padded(g->w->k), blocks = ceil_div(g->w->k, FP8_BLOCK);
    const uint8_t *w = (const uint8_t *)g->w->data + n * k;
    float c[TILE_AREA] __attribute__((aligned(64)));
    for (int64_t i = 0; i < m * width; i += 16)
        v_store(room->total + i, v_zero());
    for (int64_t b = 0; b < blocks; b++) {
        int64_t k0 = b * FP8_BLOCK, inputs = min_i64(FP8_BLOCK, k - k0);
        for (int64_t p = 0; p < width; p += PANEL)
            widen(w + p * k + k0 * PANEL, inputs * PANEL, room->widened + p / PANEL * WIDENED);
        for (int64_t r = 0, done; r < m; r += done) {
            done = product(room->x + r * room->ldx + k0, room->ldx, m - r, room->widened, WIDENED, width,
                           inputs / TILE_K, c);
            for (int64_t v = 0; v < width; v += 16) {
                if (n + v >= g->w->n)
                    break;
                v16 scale = v_set(g->w->scales[(n + v) / FP8_BLOCK * blocks + b]);
                for (int64_t i = v; i < done * width; i += width) {
                    float *total = room->total + r * width + i;
                    v_store(total, v_fma(v_load(c + i), scale, v_load(total)));
                }
            }
        }
    }
    finish(g, m0, m, n, width, room->total);
}

// ---- the division of work ---------------------------------------------------------------------------------------------------

// Rows [m0, m0 + m) of x as bf16, k filled up to whole steps and the rows to whole tiles with zeros.
static void operand(const struct gemm *g, int64_t m0, int64_t m, uint16_t *to)
{
    int64_t k = g->w->k, k_pad = amx_padded(k);
    for (int64_t r = 0; r < ceil_div(m, TILE_DIM) * TILE_DIM; r++, to += k_pad)
        for (int64_t i = 0; i < k_pad; i += 16) {
            int64_t at = (m0 + r) * g->x.ld + i;
            __mmask16 in = r < m && i < k ? v_mask(min_i64(16, k - i)) : 0;
            __m256i h =
                g->x.dtype == DT_BF16
                    ? _mm256_maskz_loadu_epi16(in, (const uint16_t *)g->x.at + at)
                    : (__m256i)_mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(in, (const float *)g->x.at + at));
            _mm256_storeu_si256((__m256i *)(void *)(to + i), h);
        }
}

// Rows [m0, m0 + m) as the tiles load them.
static void room_fill(const struct gemm *g, int64_t m0, int64_t m, struct room *room)
{
    if (g->x.dtype == DT_BF16 && m % TILE_DIM == 0 && g->w->k % TILE_K == 0) {
        room->x = (const uint16_t *)g->x.at + m0 * g->x.ld;
        room->ldx = g->x.ld;
        return;
    }
    operand(g, m0, m, room->operand);
    room->x = room->operand;
    room->ldx = amx_padded(g->w->k);
}

static struct room room_get(const struct gemm *g, int thread)
{
    size_t x = (size_t)(min_i64(CHUNK, ceil_div(g->m, TILE_DIM) * TILE_DIM) * amx_padded(g->w->k)) * 2;
    size_t widened = 2 * WIDENED * 2, total = (size_t)CHUNK * 2 * PANEL * sizeof(float);
    char *p = scratch_get(g->d, thread, x + widened + total); // x is a multiple of 64 bytes
    return (struct room){.operand = (uint16_t *)(void *)p,
                         .widened = (uint16_t *)(void *)(p + x),
                         .total = (float *)(void *)(p + x + widened)};
}

// Units are (chunk of rows, panel) pairs, chunk by chunk.
static void gemm_units(void *ctx, int64_t begin, int64_t end, int thread)
{
    const struct gemm *g = ctx;
    int64_t panels = ceil_div(g->w->n, PANEL);
    struct room room = room_get(g, thread);
    tile_begin();
    while (begin < end) {
        int64_t chunk = begin / panels, p0 = begin % panels, p1 = min_i64(panels, p0 + end - begin);
        int64_t m0 = chunk * CHUNK, m = min_i64(CHUNK, g->m - m0);
        room_fill(g, m0, m, &room);
        for (int64_t p = p0, width; p < p1; p += width / PANEL) {
            width = m <= TILE_DIM && p + 1 < p1 ? 2 * PANEL : PANEL;
            if (g->w->dtype == DT_FP8)
                panels_fp8(g, m0, m, p * PANEL, width, &room);
            else
                panels_bf16(g, m0, m, p * PANEL, width, &room);
        }
        begin += p1 - p0;
    }
    tile_end();
}

void AMX(gemm)(struct device *d, const struct gemm_weight *w, int64_t m, struct rows x, const float *bias,
               bool accumulate, float *y, int64_t ldy)
{
    if (w->dtype == DT_F32) {
        avx512_gemm(d, w, m, x, bias, accumulate, y, ldy);
        return;
    }
    assert(w->dtype == DT_FP8 ? w->scales != NULL : w->dtype == DT_BF16);
    assert(x.dtype == DT_F32 || x.dtype == DT_BF16);
    assert(m >= 0 && (m < 2 || (x.ld >= w->k && ldy >= w->n)));
    struct gemm g = {d, w, m, x, bias, accumulate, y, ldy};
    int64_t chunks = ceil_div(m, CHUNK);
    // A panel's time: its products, or at least its way here out of memory.
    double rows = chunks ? (double)m / (double)chunks : 0, size = (double)dtype_bytes(w->dtype);
    double products = rows * (double)w->k * PANEL * 0.001, bytes = (double)w->k * PANEL * size * 0.04;
    split_run(d, chunks * ceil_div(w->n, PANEL), 1, products > bytes ? products : bytes, gemm_units, &g);
}
