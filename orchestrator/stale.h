// Trajectories that grow too old ("Staleness" of algorithms.md): dropping them, or holding a step for them (contract 2, on_stale).
#ifndef ORCHESTRATOR_STALE_H
#define ORCHESTRATOR_STALE_H

#include <stdbool.h>
#include <stdint.h>

struct orch;

// Drops what step `step` may not train any more.
void stale_sweep(struct orch *o, int64_t step);
// on_stale wait: true while step `step` should wait, within stale_wait_ms of `since_ms`, for a group that step + 1 would make stale.
bool stale_holds(struct orch *o, int64_t step, int64_t since_ms);

#endif
