// How far generation may run ahead of training (contract 2; AReaL, arXiv 2505.24298, §5.1), and what a lag is. Pure.
//
// Versions are counted within the stage here: version 0 is the stage's first weights.
#ifndef RL_ADMISSION_H
#define RL_ADMISSION_H

#include <stdbool.h>
#include <stdint.h>

// Groups that may exist, running and accepted (trained included, dropped excluded) together, while `version` is what the engines
// hold:  (max_lag + version + 1) * groups_per_step, and never more than the stage needs (steps * groups_per_step).
int64_t admission_bound(int64_t max_lag, int64_t version, int64_t groups_per_step, int64_t steps);

// True when one more group may start.
bool admission_open(int64_t running, int64_t accepted, int64_t bound);

// Lag of a trajectory in the step that consumes weights `step`: step - smallest version over its sampled tokens.
int64_t lag_of(int64_t step, int64_t version_min);
// True when step `step` may not train it any more: lag_of > max_lag.
bool lag_is_stale(int64_t step, int64_t version_min, int64_t max_lag);

#endif
