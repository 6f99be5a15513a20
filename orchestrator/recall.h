// A share of a step's trajectories, read back from the ledger as the CHECK that has them scored again. A pure function of the ledger,
// the run's seed and the share: the trajectories with the lowest hash of (seed, trajectory, attempt), all their segments, in the step's
// order, with the KV events of their pieces and the files of all the versions that they name.
#ifndef ORCHESTRATOR_RECALL_H
#define ORCHESTRATOR_RECALL_H

#include <stdint.h>

#include "base/mem.h"
#include "base/status.h"
#include "ledger/ledger.h"
#include "proto/msg.h"

struct recall {
    struct ledger *ledger;
    uint64_t seed;
    double share; // (0, 1]; at least one trajectory
    int64_t step;
};

// *ret but for epoch and id; its arrays are in arena. As many trajectories as one message holds: none (n_segments 0) when the first
// is longer than that. STATUS_NOTFOUND without such a step, STATUS_CORRUPT when what is stored does not fit together.
enum status recall_step(const struct recall *r, struct arena *arena, struct msg_check *ret,
                        struct error *err) OOZE_MUST_USE;

#endif
