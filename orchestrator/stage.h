// What the run does next: evaluations, stages, the end. A function of the ledger (committed steps, evaluations done), so a restart goes
// on where it was.
//
//   PHASE_START ── weights, tasks, an engine ─► eval "start" ─► PHASE_TRAIN(0) ── all steps ─► PHASE_CHECKPOINT ── recorded ─►
//   PHASE_EVAL "stage:NAME" ─► PHASE_TRAIN(1) … ─► PHASE_DONE
#ifndef ORCHESTRATOR_STAGE_H
#define ORCHESTRATOR_STAGE_H

#include <stdbool.h>
#include <stdint.h>

struct orch;

enum phase { PHASE_START, PHASE_EVAL, PHASE_TRAIN, PHASE_CHECKPOINT, PHASE_DONE };

struct stage {
    enum phase phase;
    int index;           // of the stage under way, or whose end is being evaluated
    bool entered;        // its data or groups are loaded
    bool stop_step_done; // stopping: the last step, with its checkpoint, is committed
    int64_t said_ms;
};

const char *phase_name(enum phase p);
int64_t stage_first_step(const struct orch *o, int index); // steps of the stages before it
bool stage_ends_at(const struct orch *o, int64_t step);    // `step` steps applied = the end of some stage
bool stage_training(const struct orch *o);
int stage_of_committed(
    const struct orch *o); // stage that step committed_steps belongs to; n_stages when over
void stage_advance(struct orch *o);
void stage_on_commit(struct orch *o);

#endif
