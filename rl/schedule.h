// Learning-rate schedules: a pure function, so that the orchestrator computes the rate, records it in PREPARE, and a replayed
// step uses the recorded one.
#ifndef RL_SCHEDULE_H
#define RL_SCHEDULE_H

#include <stdint.h>

#include "base/runconfig.h"

// Rate of step `step` (from 0) of a stage of `total` steps. With w = warmup_steps and e = final_lr_ratio:
//   step < w          lr (step + 1) / w
//   constant          lr
//   linear            lr (1 - (1 - e) x)
//   cosine            lr (e + (1 - e) (1 + cos(pi x)) / 2)         Loshchilov & Hutter 2017, arXiv 1608.03983, Eq. 5
// with x = (step - w + 1) / (total - w), clamped to [0, 1]: the last step runs at lr * e exactly.
double schedule_lr(const struct run_optimizer *o, int64_t step, int64_t total);

#endif
