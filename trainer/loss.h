// Losses: what one token of a training sequence adds to the objective, and its derivative with respect to the token's
// log-probability. Every loss is a pure function of per-token arrays; how terms are averaged is aggregate.h's business, how a
// derivative with respect to a log-probability becomes a gradient of the weights is the model's.
//
// Notation ("Notation" of algorithms.md)
//   lp       log pi_theta(y_t), the trainer now
//   lp_old   the trainer's own log-probability before the first update of this batch (the array lp itself when r == 1)
//   lp_roll  what the rollout engine recorded when it sampled the token
//   A        advantage; m  1 on sampled tokens, 0 elsewhere
// Everything is to be minimised: loss = sum_t w_t term_t with the weights w of aggregate.h, gradient = sum_t w_t dlp_t d lp_t.
// Arithmetic is double with an exponential of our own (libm's picks its code by processor), so bits depend on the input alone.
// Oracle: tests/golden/make_loss.py states the same formulas in float64 torch; tests/oracle/test_loss.c compares to 1e-6.
#ifndef TRAINER_LOSS_H
#define TRAINER_LOSS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/runconfig.h"

struct loss_params {
    double eps_low, eps_high; // trust region 1 - eps_low … 1 + eps_high
    double beta;              // icepop: 1/beta … beta
};

// One training sequence; every array [n].
struct loss_input {
    int64_t n;
    const float *lp, *lp_old, *lp_roll, *advantage;
    const uint8_t *mask;
};

// Every array [n]; all 0 where mask is 0.
struct loss_output {
    double *term;  // contribution to the loss
    double *dlp;   // d term / d lp, stop-gradients as the paper has them
    uint8_t *kept; // 1 = counts under `denominator: kept_tokens` (not rejected by the loss's trust region)
};

// Added to by every call; over tokens with m = 1.
struct loss_stats {
    int64_t n;
    double ratio_sum;                  // of the loss's importance ratio, each capped at LOSS_RATIO_CAP
    int64_t masked_high, masked_low;   // rejected: ratio above / below the trust region
    int64_t clipped_high, clipped_low; // no gradient because the clipped branch of min() is the smaller one
};
#define LOSS_RATIO_CAP 1e6

struct loss {
    const char *name; // as in the run's YAML
    void (*eval)(const struct loss_params *p, const struct loss_input *in, const struct loss_output *out,
                 struct loss_stats *stats);
    bool needs_old;                   // reads lp_old
    bool needs_rollout;               // reads lp_roll: the data must come from an engine
    bool rejects;                     // kept may differ from mask
    enum run_aggregation aggregation; // what RUN_AGG_DEFAULT means
};

// Never NULL for a valid id.
const struct loss *loss_get(enum run_loss id);

// exp(x) in double by a fixed sequence of IEEE operations, relative error below 4e-16; 0 below -745, +inf above 709.7, NaN for NaN.
double loss_exp(double x);

#define LOSS(id, name, needs_old, needs_rollout, rejects, aggregation)                                       \
    void loss_##name(const struct loss_params *p, const struct loss_input *in,                               \
                     const struct loss_output *out, struct loss_stats *stats);
#include "trainer/loss.def"
#undef LOSS

#endif
