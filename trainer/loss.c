// loss: the table of losses out of loss.def, and the exponential they share. Pure; any thread.
#include "trainer/loss.h"

#include <assert.h>
#include <math.h>

static const struct loss losses[] = {
#define LOSS(id, name, needs_old, needs_rollout, rejects, aggregation)                                       \
    [RUN_LOSS_##id] = {#name, loss_##name, needs_old, needs_rollout, rejects, RUN_AGG_##aggregation},
#include "trainer/loss.def"
#undef LOSS
};

const struct loss *loss_get(enum run_loss id)
{
    assert((size_t)id < sizeof losses / sizeof losses[0] && losses[id].name);
    return &losses[id];
}

// x = k ln 2 + r with |r| <= ln 2 / 2 (ln 2 in two parts, so that k ln 2 is exact to 2^-85); exp(r) by its Taylor series of
// degree 13, whose first omitted term is below 5e-18.
double loss_exp(double x)
{
    static const double ln2_hi = 0x1.62e42fefa38p-1, ln2_lo = 0x1.ef35793c7673p-45,
                        inv_ln2 = 0x1.71547652b82fep0;
    static const double inv_factorial[] = {1.0,
                                           1.0,
                                           1.0 / 2,
                                           1.0 / 6,
                                           1.0 / 24,
                                           1.0 / 120,
                                           1.0 / 720,
                                           1.0 / 5040,
                                           1.0 / 40320,
                                           1.0 / 362880,
                                           1.0 / 3628800,
                                           1.0 / 39916800,
                                           1.0 / 479001600,
                                           1.0 / 6227020800.0};
    if (isnan(x))
        return x;
    if (x > 709.7)
        return INFINITY;
    if (x < -745.0)
        return 0;
    double k = rint(x * inv_ln2);
    double r = (x - k * ln2_hi) - k * ln2_lo;
    double y = inv_factorial[13];
    for (int i = 12; i >= 0; i--)
        y = y * r + inv_factorial[i];
    return ldexp(y, (int)k);
}
