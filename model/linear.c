// A linear map of the model over the GEMM ops, forward and both gradients. Runs on the thread that owns the weights; no
// state.
#include <assert.h>

#include "model/weights.h"

// Part i of W, or of its transpose, ready for a product.
static struct gemm_weight linear_part(struct device *d, const struct linear *l, int i, bool transposed)
{
    struct gemm_weight g = l->fwd[i];
    if (!l->room) {
        assert(!transposed); // gradients need weights opened for training
        return g;
    }
    struct pack_slot *slot = &l->room->slot[transposed];
    if (transposed) {
        g.n = l->fwd[i].k;
        g.k = l->fwd[i].n;
    }
    if (slot->linear != l || slot->part != i) {
        d->k->weight_pack(d, g.dtype, g.n, g.k, l->room->master + l->params[i]->offset, DT_F32, transposed,
                          slot->data);
        slot->linear = l;
        slot->part = i;
    }
    g.data = slot->data;
    return g;
}

struct rows linear_rows(struct device *d, enum dtype weights, int64_t t, int64_t c, const float *x,
                        int64_t ldx, void *to, int64_t ldto)
{
    if (rows_dtype(weights) == DT_F32)
        return rows_f32(x, ldx);
    d->k->to_bf16_rows(d, t, c, x, ldx, to, ldto);
    return rows_bf16(to, ldto);
}

void linear_forward(struct device *d, const struct linear *l, int64_t m, struct rows x, bool accumulate,
                    float *y, int64_t ldy)
{
    int64_t n0 = 0;
    for (int i = 0; i < l->n_parts; i++) {
        struct gemm_weight g = linear_part(d, l, i, false);
        d->k->gemm(d, &g, m, x, l->bias ? l->bias + n0 : NULL, accumulate, y + n0, ldy);
        n0 += l->fwd[i].n;
    }
}

void linear_grad_x(struct device *d, const struct linear *l, int64_t m, struct rows dy, bool accumulate,
                   float *dx, int64_t lddx)
{
    int64_t n0 = 0;
    for (int i = 0; i < l->n_parts; i++) {
        struct gemm_weight g = linear_part(d, l, i, true);
        d->k->gemm(d, &g, m, rows_from(dy, n0), NULL, accumulate || i > 0, dx, lddx);
        n0 += l->fwd[i].n;
    }
}

void linear_grad_w(struct device *d, const struct linear *l, enum dtype dtype, int64_t m, struct rows dy,
                   struct rows x, float *grads)
{
    int64_t n0 = 0;
    for (int i = 0; i < l->n_parts; i++) {
        // Packed as one means adjacent in the flat vector, gradients too.
        d->k->gemm_dw(d, dtype, m, l->fwd[i].n, l->k, rows_from(dy, n0), x, grads + l->params[i]->offset);
        n0 += l->fwd[i].n;
    }
}

void linear_grad_bias(struct device *d, const struct linear *l, int64_t m, const float *dy, int64_t lddy,
                      float *grads)
{
    int64_t n0 = 0;
    for (int i = 0; i < l->n_params; i++) {
        if (l->biases[i])
            d->k->bias_grad(d, m, l->params[i]->rows, dy + n0, lddy, grads + l->biases[i]->offset);
        n0 += l->params[i]->rows;
    }
}
