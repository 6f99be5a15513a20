// The tile instructions in software, for kernels/amx on machines without them: the operations of Intel's manual (LDTILECFG, TILEZERO,
// TILELOADD, TILESTORED, TDPBF16PS, TILERELEASE) step by step, state per thread, and what would raise #UD or #GP fails an assertion.
// Included through kernels/amx/tile.h when AMX_TILE_HEADER names it.
//
// TDPBF16PS c, a, b:  for each row m of c
//   t[0 … 2N) = 0;  for k, n ascending: t[2n] = fma(a[m][2k], b[k][2n], t[2n]), t[2n+1] = fma(a[m][2k+1], b[k][2n+1], t[2n+1])
//   c[m][n] = c[m][n] + (t[2n] + t[2n+1]), rows past the last of c become 0; nearest even, DAZ, FTZ, whatever MXCSR says.
// Here the arithmetic is the processor's own with the same modes set in MXCSR, as every kernel thread has them.
#ifndef TESTS_KERNELS_AMX_MODEL_H
#define TESTS_KERNELS_AMX_MODEL_H

#include <assert.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <xmmintrin.h>

enum { MODEL_TILES = 8, MODEL_ROWS = 16, MODEL_BYTES = 64 };

struct model_config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
};

struct model {
    bool configured;
    struct model_config config;
    uint8_t tile[MODEL_TILES][MODEL_ROWS][MODEL_BYTES];
};

static _Thread_local struct model model;

static inline void model_loadconfig(const struct model_config *c)
{
    _Static_assert(sizeof *c == 64, "LDTILECFG reads 64 bytes");
    assert(c->palette == 1 && c->start_row == 0);
    for (int i = 0; i < 16; i++) {
        assert(i < 14 ? c->reserved[i] == 0 : true);
        assert(i < MODEL_TILES ? c->row_bytes[i] <= MODEL_BYTES && c->rows[i] <= MODEL_ROWS
                               : c->row_bytes[i] == 0 && c->rows[i] == 0);
        assert((c->row_bytes[i] == 0) == (c->rows[i] == 0));
    }
    memset(&model, 0, sizeof model);
    model.config = *c;
    model.configured = true;
}

static inline void model_usable(int t)
{
    assert(model.configured && t >= 0 && t < MODEL_TILES && model.config.rows[t]);
}

static inline void model_zero(int t)
{
    model_usable(t);
    memset(model.tile[t], 0, sizeof model.tile[t]);
}

static inline void model_load(int t, const void *p, int64_t bytes)
{
    model_usable(t);
    memset(model.tile[t], 0, sizeof model.tile[t]);
    for (int r = 0; r < model.config.rows[t]; r++)
        memcpy(model.tile[t][r], (const char *)p + r * bytes, model.config.row_bytes[t]);
}

static inline void model_store(int t, void *p, int64_t bytes)
{
    model_usable(t);
    for (int r = 0; r < model.config.rows[t]; r++)
        memcpy((char *)p + r * bytes, model.tile[t][r], model.config.row_bytes[t]);
}

// The f32 of the even (half 0) or odd (half 1) bf16 of a pair.
static inline float model_half(uint32_t pair, int half)
{
    uint32_t u = half ? pair & 0xffff0000u : pair << 16;
    float f;
    memcpy(&f, &u, 4);
    return f;
}

static inline void model_dot(int c, int a, int b)
{
    model_usable(c);
    model_usable(a);
    model_usable(b);
    const struct model_config *g = &model.config;
    assert(c != a && c != b && a != b);
    assert(g->rows[c] == g->rows[a] && g->row_bytes[c] == g->row_bytes[b]);
    assert(g->row_bytes[a] % 4 == 0 && g->row_bytes[c] % 4 == 0 && g->row_bytes[a] / 4 == g->rows[b]);
    assert((_mm_getcsr() & 0xe040u) == 0x8040u); // FTZ, nearest even, DAZ
    int n_pairs = g->row_bytes[a] / 4, n_cols = g->row_bytes[c] / 4;
    float bf[2][16][16]; // b taken apart: [half][k][n]
    for (int k = 0; k < n_pairs; k++) {
        uint32_t pairs[16];
        memcpy(pairs, model.tile[b][k], sizeof pairs);
        for (int n = 0; n < 16; n++) {
            bf[0][k][n] = model_half(pairs[n], 0);
            bf[1][k][n] = model_half(pairs[n], 1);
        }
    }
    for (int m = 0; m < g->rows[c]; m++) {
        float even[16] = {0}, odd[16] = {0}, sum[16];
        uint32_t pairs[16];
        memcpy(pairs, model.tile[a][m], sizeof pairs);
        for (int k = 0; k < n_pairs; k++) {
            float a0 = model_half(pairs[k], 0), a1 = model_half(pairs[k], 1);
            for (int n = 0; n < 16; n++) {
                even[n] = __builtin_fmaf(a0, bf[0][k][n], even[n]);
                odd[n] = __builtin_fmaf(a1, bf[1][k][n], odd[n]);
            }
        }
        memcpy(sum, model.tile[c][m], sizeof sum);
        for (int n = 0; n < n_cols; n++)
            sum[n] = sum[n] + (even[n] + odd[n]);
        memcpy(model.tile[c][m], sum, (size_t)n_cols * 4);
    }
    for (int m = g->rows[c]; m < MODEL_ROWS; m++)
        memset(model.tile[c][m], 0, MODEL_BYTES);
}

static inline void tile_begin(void)
{
    assert(!model.configured); // every op gives its tiles back
    struct model_config c = {.palette = 1};
    for (int t = 0; t < MODEL_TILES; t++) {
        c.row_bytes[t] = MODEL_BYTES;
        c.rows[t] = MODEL_ROWS;
    }
    model_loadconfig(&c);
}
static inline void tile_end(void)
{
    assert(model.configured);
    model.configured = false;
}
#define TILE_ZERO(t)            model_zero(t)
#define TILE_LOAD(t, p, bytes)  model_load(t, p, bytes)
#define TILE_STORE(t, p, bytes) model_store(t, p, bytes)
#define TILE_DOT(c, a, b)       model_dot(c, a, b)

#endif
