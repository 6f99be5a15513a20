// Which checkpoints exist, which may go, and where the newest published weights are: facts for the next start.
#ifndef ORCHESTRATOR_CHECKPOINTS_H
#define ORCHESTRATOR_CHECKPOINTS_H

#include <stdint.h>

#include "base/status.h"

struct orch;

// The list of the ledger's meta entry; fills o->checkpoint and o->weights (when the published file is still there).
enum status checkpoints_open(struct orch *o, struct error *err) OOZE_MUST_USE;
// Into the open transaction.
enum status weights_note(struct orch *o, int64_t version, const char *path, const char *hash, int64_t bytes,
                         struct error *err) OOZE_MUST_USE;

#endif
