// Packing of weights into panels (internal.h), and the layout's size.
#include <assert.h>
#include <string.h>

#include "kernels/ref/ref.h"

size_t ref_weight_bytes(enum dtype dtype, int64_t n, int64_t k)
{
    assert(dtype == DT_F32 || dtype == DT_BF16 || dtype == DT_FP8);
    return (size_t)(ceil_div(n, PANEL) * PANEL * k) * dtype_bytes(dtype);
}

struct pack {
    enum dtype dtype, src_dtype;
    int64_t n, k;
    const void *src;
    bool transpose;
    void *dst;
};

static void pack_one(const struct pack *p, int64_t from, int64_t to)
{
    if (p->dtype == DT_FP8) {
        ((uint8_t *)p->dst)[to] = ((const uint8_t *)p->src)[from];
        return;
    }
    if (p->dtype == p->src_dtype && p->dtype == DT_BF16) {
        ((uint16_t *)p->dst)[to] = ((const uint16_t *)p->src)[from];
        return;
    }
    float f = p->src_dtype == DT_F32 ? ((const float *)p->src)[from]
                                     : bf16_to_f32(((const uint16_t *)p->src)[from]);
    if (p->dtype == DT_F32)
        ((float *)p->dst)[to] = f;
    else
        ((uint16_t *)p->dst)[to] = f32_to_bf16(f);
}

// Sixteen inputs at a time: a line of the source is used up while the panel's lines are still in the cache.
static void pack_panels(void *ctx, int64_t begin, int64_t end, int thread)
{
    (void)thread;
    const struct pack *p = ctx;
    for (int64_t n0 = begin; n0 < end; n0 += PANEL)
        for (int64_t k0 = 0; k0 < p->k; k0 += 16)
            for (int64_t n = n0; n < n0 + PANEL; n++)
                for (int64_t k = k0; k < min_i64(k0 + 16, p->k); k++) {
                    int64_t to = n0 * p->k + k * PANEL + n - n0;
                    if (n < p->n)
                        pack_one(p, p->transpose ? k * p->n + n : n * p->k + k, to);
                    else
                        memset((char *)p->dst + (size_t)to * dtype_bytes(p->dtype), 0, dtype_bytes(p->dtype));
                }
}

void ref_weight_pack(struct device *d, enum dtype dtype, int64_t n, int64_t k, const void *src,
                     enum dtype src_dtype, bool transpose, void *dst)
{
    assert(dtype == DT_FP8 ? src_dtype == DT_FP8 && !transpose : dtype == DT_F32 || dtype == DT_BF16);
    assert(dtype == DT_FP8 || src_dtype == DT_F32 || src_dtype == DT_BF16);
    struct pack p = {dtype, src_dtype, n, k, src, transpose, dst};
    split_run(d, ceil_div(n, PANEL) * PANEL, PANEL, (double)k * 1.5, pack_panels, &p);
}
