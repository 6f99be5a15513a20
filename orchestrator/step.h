// The step under way: from ready groups (or SFT rows) to the recorded PREPARE that the trainer gets.
//
// Invariants
//   1. At most one step is prepared and not committed. Its members are recorded before anything is sent (contract 1).
//   2. What is sent is read back from the ledger, for a first PREPARE, a repeated one and a replay alike: same N, same bytes.
//   3. Members stand in order of (group, member, segment); groups are those whose tokens are oldest, then lowest id.
#ifndef ORCHESTRATOR_STEP_H
#define ORCHESTRATOR_STEP_H

#include <stdbool.h>
#include <stdint.h>

#include "ledger/ledger.h"
#include "proto/msg.h"

struct orch;

struct step {
    bool prepared;      // step committed_steps is recorded and waits for its outcome
    int64_t loaded;     // which step `message` is, -1 = none
    struct arena arena; // life of `message`
    struct msg_prepare message;
    char hash[HASH_HEX]; // recorded hash of a committed step
    bool recorded_checkpoint;
    int64_t hold_since_ms; // since when enough groups are ready, 0 = they are not
    int64_t idle_since_ms; // since when the trainer waits for a batch
    int64_t prepared_ms;
    double wait_ms;
};

// Prepares the next step when the stage, the trainer and the groups allow it.
void step_try(struct orch *o);
// Reads step n from the ledger into o->step.message (epoch, replay, publish as recorded).
enum status step_load(struct orch *o, int64_t n, struct error *err) OOZE_MUST_USE;
void step_close(struct orch *o);
int64_t step_consumed_groups(const struct orch *o); // of the present stage: steps prepared * groups_per_step
// What the step after the present one does beside training; pure functions of the configuration and the stage's step.
bool step_publishes(const struct orch *o, int64_t stage_step);
bool step_checkpoints(const struct orch *o, int64_t stage_step);
bool step_evaluates(const struct orch *o, int64_t stage_step); // eval.every fires after it

// What one PREPARE holds: STATUS_UNSUPPORTED over MSG_MEMBERS members (segments) or MSG_BATCH_MAX tokens, naming what to lower.
enum status step_fits(int64_t step, const char *stage, int64_t n_members, int64_t n_tokens,
                      struct error *err) OOZE_MUST_USE;
// Records a step with these members (ordered) and hands it to the trainer. One that no message holds is not recorded: the run ends.
void step_prepare(struct orch *o, const struct ledger_member *members, int32_t n);

#endif
