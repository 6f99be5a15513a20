// Advantages of a batch of scored trajectories: pure functions, any thread.
//
// R_i is the reward of member i, G the members of its group that have a policy outcome (distinct members: padding is a
// multiplicity and never enters a statistic).
//
//   grpo            A_i = (R_i - mean(R)) / (std(R) + 1e-6), std unbiased      DeepSeekMath, arXiv 2402.03300, §4.1
//   group_centered  A_i = R_i - mean(R)                                        GLM-5 report, arXiv 2602.15763, §4.1
//   rloo            A_i = R_i - sum_{j != i} R_j / (G - 1)                      Ahmadian et al., arXiv 2402.14740, eq. 6
//   reinforce_pp    A_i = (R_i - mean(batch)) / (std(batch) + 1e-6)             REINFORCE++, arXiv 2501.03262, eq. 8
//
// Groups are told apart by key, never by position or size. Sums run in double, in the order of the rows of a group.
// Where all rewards of the scope are equal the advantage is exactly 0.
#ifndef RL_ADVANTAGE_H
#define RL_ADVANTAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/runconfig.h"

#define ADVANTAGE_EPS 1e-6

// True when the advantage needs the whole prepared step (reinforce_pp), not only its group.
bool advantage_is_batch(enum run_advantage a);
// Members with a policy outcome that a group needs before it may be trained on.
int advantage_least_members(enum run_advantage a);
const char *advantage_name(enum run_advantage a);

// groups [n] int64 in: group key of each row, in any order
// rewards [n] f64 in, finite
// ret [n] f64 out
// A group below advantage_least_members gets 0 throughout.
void advantage_compute(enum run_advantage a, const int64_t *groups, const double *rewards, int n,
                       double *ret);

#endif
