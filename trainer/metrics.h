// Metrics of one step: sums over its trained tokens (token-weighted, multiplicities not counted), turned into named numbers
// once. Names are those of "Files" of protocols.md; per-task ones end in /TASK.
//
//   entropy                    mean of -sum_v p log p at the sampling temperature, in nats
//   ratio_mean                 mean of the loss's importance ratio
//   masked_high, masked_low    share of tokens rejected by the loss's trust region; clipped_*: share on min()'s clipped branch
//   rollout_logprob_abs_diff   mean |lp - lp_roll|: trainer now against rollout then, policy lag included
//   mismatch_kl                mean of exp(d) - 1 - d with d = lp - lp_roll: the k3 estimator of KL(rollout || trainer)
//                              (Schulman 2020, "Approximating KL divergence"); d is held within ±20
// With several updates a step, each token is measured by the weights of its own update.
//
// tokens counts the rows that updates compute, shared_tokens those that they need not because another sequence's serve (prefix.h).
//
// perf/train_gflops is the model's floating-point operations per second of the step: 2 a parameter of the layers' matrices and row,
// 2 a parameter of the head and row with a target, 4 an element of q and key attended; three times that with the backward pass. What is
// computed twice to save memory counts once, what is shared where it is computed. perf/mfu is their share of the device's measured peak of f32 multiply-adds
// (kernels/peak.h); classes with faster products of bf16 may exceed 1.
#ifndef TRAINER_METRICS_H
#define TRAINER_METRICS_H

#include "base/runconfig.h"
#include "proto/msg.h"
#include "trainer/loss.h"

#define METRICS_TASKS 32 // numbers of their own for the first so many tasks of the ledger

struct metrics_sums {
    int64_t n;
    double entropy, abs_diff, kl;
    struct loss_stats loss;
};

struct metrics {
    struct metrics_sums all, task[METRICS_TASKS];
    double loss, entropy_bonus, grad_norm; // sums over updates
    int64_t updates, tokens, tokens_trained, shared_tokens, micro_batches, sequences;
    double flops; // of the model, all passes of the step
};

// The numbers as they travel; names live in `text`.
struct metrics_list {
    int32_t n;
    struct msg_metric items[MSG_METRICS];
    char text[MSG_METRICS][64];
};

// One sequence: entropy [in->n]; rollout: in->lp_roll holds an engine's log-probabilities. task < 0 = none.
void metrics_add(struct metrics *m, const struct loss_input *in, const float *entropy, bool rollout,
                 int32_t task, const struct loss_stats *stats);
void metrics_put(struct metrics_list *l, const char *name, double value); // dropped when full or not finite
void metrics_finish(const struct metrics *m, bool rollout, double lr, struct metrics_list *ret);

#endif
