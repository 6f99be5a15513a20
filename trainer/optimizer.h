// AdamW (Loshchilov & Hutter 2019, arXiv 1711.05101, Alg. 2) over the flat parameter vector, with f32 master weights, and
// clipping of the gradient by its global norm (Pascanu et al. 2013, arXiv 1211.5063).
//
//   norm = sqrt(sum g^2) over all parameters; g' = g min(1, clip / norm); clip 0 = off
//   m = b1 m + (1 - b1) g';  v = b2 v + (1 - b2) g'^2;  p = p - lr wd p - lr (m / (1 - b1^k)) / (sqrt(v / (1 - b2^k)) + eps)
// k counts updates since the moments were last reset. Weight decay applies to matrices, embedding and head, not to norms and
// biases. The norm is one fixed reduction (kernels.h, sumsq); everything else is elementwise: bits are independent of threads.
#ifndef TRAINER_OPTIMIZER_H
#define TRAINER_OPTIMIZER_H

#include "base/runconfig.h"
#include "kernels/kernels.h"
#include "model/config.h"

struct optimizer {
    float *m, *v;    // [layout.total] each, same layout as the weights
    int64_t updates; // k: applied since the last reset
};

enum status optimizer_init(struct optimizer *o, const struct layout *l, struct error *err) OOZE_MUST_USE;
void optimizer_done(struct optimizer *o);
// Moments 0, k = 0.
void optimizer_reset(struct optimizer *o, const struct layout *l);

// Global norm of grads [layout.total]; not finite when any element is not.
double optimizer_grad_norm(struct device *d, const struct layout *l, const float *grads);
// What to multiply the gradient with: min(1, clip / norm).
double optimizer_clip_scale(double norm, double clip);
// One update of master [layout.total] by scale * grads.
void optimizer_update(struct optimizer *o, struct device *d, const struct layout *l,
                      const struct run_optimizer *config, double lr, double scale, const float *grads,
                      float *master);

// The same in ranges: optimizer_begin counts the update, then optimizer_apply once for every element of every parameter, on any
// threads, each with a device of its own. The bits are those of optimizer_update.
struct optimizer_pass {
    float *m, *v, *master;
    const float *grads;
    float scale, lr, beta1, beta2, eps, weight_decay, bc1, bc2;
};
struct optimizer_pass optimizer_begin(struct optimizer *o, const struct run_optimizer *config, double lr,
                                      double scale, const float *grads, float *master);
// Elements [begin, end) of p.
void optimizer_apply(const struct optimizer_pass *pass, struct device *d, const struct param *p,
                     int64_t begin, int64_t end);

#endif
