// Template: packing of weights into panels of PANEL outputs (internal.h), the bytes of ref/weight.c. A matrix that lies by outputs
// (W [n, k]) is turned in squares of 16 x 16 in registers; one that lies by inputs (transpose) only needs its rows cut.
//
// Either way a panel's rows of the source lie far apart, where no hardware prefetcher follows: the squares ask for the lines they will
// want next.
#include <assert.h>
#include <string.h>

#define PACK_GROUP                                                                                           \
    4 // panels that go together when rows are cut: what is read of a row is a few lines in sequence
#define PACK_AHEAD 8 // rows or lines of the source asked for in advance

struct pack {
    int64_t n, k;
    const void *src;
    void *dst;
};

// Up to 16 elements of the source as f32.
ALWAYS v16 pack_load(const enum dtype from, const void *src, int64_t i, int64_t n)
{
    return from == DT_F32 ? v_load_n((const float *)src + i, n) : v_load_bf16_n((const uint16_t *)src + i, n);
}

// bf16 codes travel as they are, so that NaNs keep their bits; f32 is rounded.
ALWAYS void pack_store(const enum dtype to, const enum dtype from, void *dst, int64_t i, v16 a)
{
    if (to == DT_F32)
        v_store((float *)dst + i, a);
    else if (from == DT_F32)
        v_store_bf16((uint16_t *)dst + i, a);
    else
        v_store_upper((uint16_t *)dst + i, a);
}

// Outputs n0 … n0 + 15 (n0 in the padding too), inputs k0 … k0 + 15.
ALWAYS void pack_square(const enum dtype to, const enum dtype from, const struct pack *p, int64_t n0,
                        int64_t k0)
{
    const int64_t cols = min_i64(16, p->k - k0), size = (int64_t)dtype_bytes(from);
    v16 a[16];
#pragma GCC unroll 16
    for (int64_t i = 0; i < 16; i++) {
        int64_t at = (n0 + i) * p->k + k0;
        __builtin_prefetch((const char *)p->src + at * size + 64 * PACK_AHEAD);
        a[i] = n0 + i < p->n ? pack_load(from, p->src, at, cols) : v_zero();
    }
    v_transpose(a);
    int64_t dst = n0 / PANEL * PANEL * p->k + k0 * PANEL + n0 % PANEL;
    for (int64_t i = 0; i < cols; i++)
        pack_store(to, from, p->dst, dst + i * PANEL, a[i]);
}

ALWAYS void pack_turned(const enum dtype to, const enum dtype from, const struct pack *p, int64_t begin,
                        int64_t end)
{
    for (int64_t n0 = begin; n0 < end; n0 += PANEL)
        for (int64_t k0 = 0; k0 < p->k; k0 += 16)
            for (int64_t half = 0; half < PANEL; half += 16)
                pack_square(to, from, p, n0 + half, k0);
}

// src [k, n]
ALWAYS void pack_cut(const enum dtype to, const enum dtype from, const struct pack *p, int64_t begin,
                     int64_t end)
{
    const int64_t group = PACK_GROUP * PANEL, size = (int64_t)dtype_bytes(from);
    for (int64_t g = begin; g < end; g += group)
        for (int64_t k = 0; k < p->k; k++) {
            int64_t stop = min_i64(g + group, end);
            for (int64_t n = g; n < stop; n += 16) {
                int64_t at = k * p->n + n, cols = max_i64(0, min_i64(16, p->n - n));
                __builtin_prefetch((const char *)p->src + (at + PACK_AHEAD * p->n) * size);
                v16 a = cols ? pack_load(from, p->src, at, cols) : v_zero();
                pack_store(to, from, p->dst, n / PANEL * PANEL * p->k + k * PANEL + n % PANEL, a);
            }
        }
}

// Sixteen codes; those past n are 0.
ALWAYS __m128i codes_load(const uint8_t *p, int64_t n)
{
    if (n >= 16)
        return _mm_loadu_si128((const __m128i *)p);
    uint8_t part[16] = {0};
    memcpy(part, p, (size_t)n);
    return _mm_loadu_si128((const __m128i *)part);
}

// Row i of sixteen becomes column i, byte by byte: four rounds that interleave rows 8 apart.
ALWAYS void codes_transpose(__m128i a[16])
{
    __m128i b[16];
#pragma GCC unroll 4
    for (int round = 0; round < 4; round++) {
#pragma GCC unroll 8
        for (int i = 0; i < 8; i++) {
            b[2 * i] = _mm_unpacklo_epi8(a[i], a[i + 8]);
            b[2 * i + 1] = _mm_unpackhi_epi8(a[i], a[i + 8]);
        }
#pragma GCC unroll 16
        for (int i = 0; i < 16; i++)
            a[i] = b[i];
    }
}

static void pack_codes(const struct pack *p, int64_t begin, int64_t end)
{
    const uint8_t *src = p->src;
    for (int64_t n0 = begin; n0 < end; n0 += PANEL)
        for (int64_t k0 = 0; k0 < p->k; k0 += 16)
            for (int64_t half = 0; half < PANEL; half += 16) {
                int64_t cols = min_i64(16, p->k - k0);
                __m128i a[16];
#pragma GCC unroll 16
                for (int64_t i = 0; i < 16; i++) {
                    int64_t n = n0 + half + i;
                    __builtin_prefetch(src + n * p->k + k0 + 64 * PACK_AHEAD);
                    a[i] = n < p->n ? codes_load(src + n * p->k + k0, cols) : _mm_setzero_si128();
                }
                codes_transpose(a);
                uint8_t *dst = (uint8_t *)p->dst + n0 * p->k + k0 * PANEL + half;
                for (int64_t i = 0; i < cols; i++)
                    _mm_storeu_si128((__m128i *)(dst + i * PANEL), a[i]);
            }
}

#define PACK_DEFINE(name, way, to, from)                                                                     \
    static void name(void *ctx, int64_t begin, int64_t end, int thread)                                      \
    {                                                                                                        \
        (void)thread;                                                                                        \
        way(to, from, ctx, begin, end);                                                                      \
    }
PACK_DEFINE(turned_f32_f32, pack_turned, DT_F32, DT_F32)
PACK_DEFINE(turned_f32_bf16, pack_turned, DT_F32, DT_BF16)
PACK_DEFINE(turned_bf16_f32, pack_turned, DT_BF16, DT_F32)
PACK_DEFINE(turned_bf16_bf16, pack_turned, DT_BF16, DT_BF16)
PACK_DEFINE(cut_f32_f32, pack_cut, DT_F32, DT_F32)
PACK_DEFINE(cut_f32_bf16, pack_cut, DT_F32, DT_BF16)
PACK_DEFINE(cut_bf16_f32, pack_cut, DT_BF16, DT_F32)
PACK_DEFINE(cut_bf16_bf16, pack_cut, DT_BF16, DT_BF16)

static void codes(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    pack_codes(ctx, begin, end);
}

void LANES(weight_pack)(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                        enum dtype src_dtype, bool transpose, void *dst)
{
    static split_fn *const fns[2][2][2] = {
        {{turned_f32_f32, turned_f32_bf16}, {turned_bf16_f32, turned_bf16_bf16}},
        {{cut_f32_f32, cut_f32_bf16}, {cut_bf16_f32, cut_bf16_bf16}}};
    assert(dtype == DT_FP8 ? src_dtype == DT_FP8 && !transpose : dtype == DT_F32 || dtype == DT_BF16);
    assert(dtype == DT_FP8 || src_dtype == DT_F32 || src_dtype == DT_BF16);
    struct pack p = {n, k, src, dst};
    split_fn *fn = dtype == DT_FP8 ? codes : fns[transpose][dtype == DT_BF16][src_dtype == DT_BF16];
    split_run(d, ceil_div(n, PANEL) * PANEL, PANEL, (double)k * 0.3, fn, &p);
}
