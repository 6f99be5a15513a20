// A linear map of the model over the GEMM ops, forward and both gradients. Runs on the thread that owns the weights; no
// state.
#include <assert.h>

#include "model/weights.h"

void linear_forward(struct device *d, const struct linear *l, int64_t m, const float *x, int64_t ldx,
                    bool accumulate, float *y, int64_t ldy)
{
    int64_t n0 = 0;
    for (int i = 0; i < l->n_parts; i++) {
        d->k->gemm(d, &l->fwd[i], m, x, ldx, l->bias ? l->bias + n0 : NULL, accumulate, y + n0, ldy);
        n0 += l->fwd[i].n;
    }
}

void linear_grad_x(struct device *d, const struct linear *l, int64_t m, const float *dy, int64_t lddy,
                   bool accumulate, float *dx, int64_t lddx)
{
    int64_t n0 = 0;
    for (int i = 0; i < l->n_parts; i++) {
        assert(l->bwd[i].data); // opened with train = true
        d->k->gemm(d, &l->bwd[i], m, dy + n0, lddy, NULL, accumulate || i > 0, dx, lddx);
        n0 += l->fwd[i].n;
    }
}

void linear_grad_w(struct device *d, const struct linear *l, enum dtype dtype, int64_t m, const float *dy,
                   int64_t lddy, const float *x, int64_t ldx, float *grads)
{
    int64_t n0 = 0;
    for (int i = 0; i < l->n_parts; i++) {
        // Packed as one means adjacent in the flat vector, gradients too.
        d->k->gemm_dw(d, dtype, m, l->fwd[i].n, l->k, dy + n0, lddy, x, ldx, grads + l->params[i]->offset);
        n0 += l->fwd[i].n;
    }
    n0 = 0;
    for (int i = 0; i < l->n_params; i++) {
        if (l->biases[i])
            d->k->bias_grad(d, m, l->params[i]->rows, dy + n0, lddy, grads + l->biases[i]->offset);
        n0 += l->params[i]->rows;
    }
}
