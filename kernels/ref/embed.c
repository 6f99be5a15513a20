// Token embedding: rows out of a table, and their gradients back into it.
#include <assert.h>
#include <string.h>

#include "kernels/ref/ref.h"

void ref_embed(struct device *d, enum dtype dtype, const void *table, int64_t c, int64_t t,
               const int32_t *ids, float *y)
{
    (void)d;
    assert(dtype == DT_F32 || dtype == DT_BF16);
    for (int64_t i = 0; i < t; i++) {
        assert(ids[i] >= 0);
        if (dtype == DT_F32)
            memcpy(y + i * c, (const float *)table + ids[i] * c, (size_t)c * sizeof(float));
        else
            for (int64_t j = 0; j < c; j++)
                y[i * c + j] = bf16_to_f32(((const uint16_t *)table)[ids[i] * c + j]);
    }
}

void ref_embed_grad(struct device *d, int64_t c, int64_t t, const int32_t *ids, const float *dy,
                    float *dtable)
{
    (void)d;
    for (int64_t i = 0; i < t; i++)
        for (int64_t j = 0; j < c; j++)
            dtable[ids[i] * c + j] = dtable[ids[i] * c + j] + dy[i * c + j];
}
