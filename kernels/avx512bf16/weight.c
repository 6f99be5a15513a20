// Packing of weights into pairs (avx512bf16.h); f32 weights keep the common panels.
#include <assert.h>

#include "kernels/avx512bf16/avx512bf16.h"
#include "kernels/ref/ref.h"

size_t avx512bf16_weight_bytes(enum dtype dtype, int64_t n, int64_t k)
{
    return ref_weight_bytes(dtype, n, dtype == DT_F32 ? k : k + k % 2);
}

struct pack {
    enum dtype dtype, src_dtype;
    int64_t n, k;
    const void *src;
    bool transpose;
    void *dst;
};

// The element's code, or 0 in the padding.
static uint16_t pack_value(const struct pack *p, int64_t n, int64_t k)
{
    if (n >= p->n || k >= p->k)
        return 0;
    int64_t i = p->transpose ? k * p->n + n : n * p->k + k;
    return p->src_dtype == DT_F32    ? f32_to_bf16(((const float *)p->src)[i])
           : p->src_dtype == DT_BF16 ? ((const uint16_t *)p->src)[i]
                                     : ((const uint8_t *)p->src)[i];
}

// Sixteen inputs at a time, as in ref/weight.c.
static void pack_panels(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct pack *p = ctx;
    int64_t k_pad = p->k + p->k % 2;
    for (int64_t n0 = begin; n0 < end; n0 += PANEL)
        for (int64_t k0 = 0; k0 < k_pad; k0 += 16)
            for (int64_t n = 0; n < PANEL; n++)
                for (int64_t k = k0; k < min_i64(k0 + 16, k_pad); k++) {
                    int64_t to = n0 * k_pad + k / 2 * 2 * PANEL + pair_place(p->dtype, n, k % 2);
                    uint16_t v = pack_value(p, n0 + n, k);
                    if (p->dtype == DT_BF16)
                        ((uint16_t *)p->dst)[to] = v;
                    else
                        ((uint8_t *)p->dst)[to] = (uint8_t)v;
                }
}

void avx512bf16_weight_pack(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                            enum dtype src_dtype, bool transpose, void *dst)
{
    if (dtype == DT_F32) {
        ref_weight_pack(d, dtype, n, k, src, src_dtype, transpose, dst);
        return;
    }
    assert(dtype == DT_FP8 ? src_dtype == DT_FP8 && !transpose : dtype == DT_BF16);
    assert(dtype == DT_FP8 || src_dtype == DT_F32 || src_dtype == DT_BF16);
    struct pack p = {dtype, src_dtype, n, k, src, transpose, dst};
    split_run(d, ceil_div(n, PANEL) * PANEL, PANEL, (double)k * 1.5, pack_panels, &p);
}
