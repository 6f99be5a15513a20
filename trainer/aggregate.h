// Aggregation: the weight that each token's loss term has in the step's loss ("Aggregation" of algorithms.md). Separate from the losses, and
// always over the global batch of one update, never over a micro-batch: the same batch split in any way gives the same gradient.
//
//   n_i    tokens of member i that count: those with mask 1, or with `denominator: kept_tokens` those the loss also kept
//   u_i    multiplicity: padding of a group only multiplies weight
//   |y_j|  sum of n_i over all segments i of trajectory j
//
//   token_mean     w_i = u_i / sum_k u_k n_k
//   sequence_mean  w_i = u_i / (|y_j(i)| N),  N = sum of u over trajectories with |y| > 0   (GRPO, arXiv 2402.03300, Eq. 3)
//   group_mean     w_i = u_i / (T_g(i) P),    T_g = sum of u_k n_k in group g, P = number of groups with T > 0
//
// All segments of a trajectory share its multiplicity and group. Members without counted tokens get weight 0.
#ifndef TRAINER_AGGREGATE_H
#define TRAINER_AGGREGATE_H

#include <stdint.h>

#include "base/runconfig.h"
#include "base/status.h"

struct aggregate_member {
    int32_t trajectory;   // in [0, n_trajectories)
    int32_t group;        // in [0, n_groups)
    int32_t multiplicity; // >= 1
    int64_t n_counted;
};

// ret_weight [n]. STATUS_NUMERIC with a reason when the denominator is zero: the step is rejected. kind is not RUN_AGG_DEFAULT.
enum status aggregate_weights(enum run_aggregation kind, int32_t n, const struct aggregate_member *members,
                              int32_t n_trajectories, int32_t n_groups, double *ret_weight,
                              struct error *err) OOZE_MUST_USE;

#endif
