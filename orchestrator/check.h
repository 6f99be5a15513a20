// The drift gate (architecture.md, contract 3): what engines sampled is scored again by the trainer under the weights that sampled it,
// and a difference stops the run.
//
//   probe    each engine, when it and the trainer first hold weights: a random sequence through both, op by op (trace.h)
//   check    every check.every steps of an rl stage, and of the last step when a run goes on: a share of the step's trajectories,
//            read back from the ledger with their KV history, scored again under their recorded versions
//
//   idle ── a due step's commit, or resume ─► due ── CHECK, before the next PREPARE ─► sent ── CHECK_DONE inside the gate ─► idle
//             sent ── the trainer is lost ─► due, CHECK_TRIES times          └─ outside ─► failing: the failing tokens through the
//                                                     trainer and every engine, op by op ─► the run ends, naming where they part
//
// Invariants
//   1. What is compared comes out of the ledger. Which trajectories: those with the lowest hash of (run seed, trajectory, attempt).
//   2. CHECK of step N leaves before PREPARE(N + 1), so the versions that N may hold (max_lag back) have not been pruned when the
//      trainer reads them. Files that are gone all the same (KV rows of an older version, a restart): skipped and counted.
//   3. One check is under way at most. It is part of the trainer's lease.
//   4. While the gate is failing no step is prepared, and however the run ends it ends as failed.
#ifndef ORCHESTRATOR_CHECK_H
#define ORCHESTRATOR_CHECK_H

#include <stdbool.h>
#include <stdint.h>

#include "base/json.h"
#include "ledger/ledger.h"
#include "orchestrator/peers.h"
#include "orchestrator/trace.h"
#include "proto/msg.h"

struct orch;
struct peer;

enum check_state { CHECK_IDLE, CHECK_DUE, CHECK_SENT, CHECK_FAILING };

struct check {
    enum check_state state;
    enum parity_kind kind;
    int64_t step;       // whose trajectories
    int tries;          // CHECKs sent of it
    uint64_t id;        // of the CHECK sent
    uint64_t next_id;   // of CHECK and TRACE alike
    bool loaded;        // `message` is that step's
    struct arena arena; // life of `message`, until it is sent
    struct msg_check message;
    // failing
    struct ledger_parity failed; // the row to be; its detail is written last
    int64_t failed_version;
    char engines[256];         // those whose traces agree
    char reason[768];          // the first engine's that parts
    uint32_t asked[PEERS_MAX]; // serials of the engines compared already
    int n_asked;
    struct trace trace;
    struct ledger_parity_totals totals;
};

enum status check_open(struct orch *o,
                       struct error *err) OOZE_MUST_USE; // after the rest of the state is restored
void check_close(struct orch *o);
void check_on_commit(struct orch *o, int64_t step, bool applied);
// Sends what is due. False: it is due and could not be sent; then nothing else may be.
bool check_send(struct orch *o);
bool check_busy(const struct orch *o); // due, sent or failing: the run does not end before its outcome
bool check_failing(const struct orch *o);
void check_tick(struct orch *o);
void check_on_trainer(struct orch *o); // HELLO of the trainer: what was asked is asked again
void check_on_done(struct orch *o, const struct msg_check_done *m);
void check_on_trace(struct orch *o, const struct trace_result *r);
// Ends the failing run now, with what is known. No-op unless failing.
void check_conclude(struct orch *o);
json_t *check_status(const struct orch *o);

#endif
