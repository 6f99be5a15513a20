// The conversation with the trainer: contract 1, steps 1 to 6.
//
//   LINK_NONE ── HELLO, new epoch ─► LINK_RESTORING ── STEP_DONE of the restored weights ─► LINK_READY
//                                        └── recorded steps after the checkpoint ─► LINK_REPLAYING ── the last one ─► LINK_READY
//   LINK_READY ── PREPARE(N) … STEP_DONE(N) … COMMIT … COMMIT_ACK ─► LINK_READY
//   any ── lost, or lease over (fence, and the process is ended) ─► LINK_NONE ── not heard of for lease_ms ─► the process is ended
//
// Invariants
//   1. One incarnation of the trainer holds the epoch; words of another epoch are answered FENCED and change nothing.
//   2. A step commits once. The same hash again is acknowledged again; another hash stops the run and names both.
//   3. PREPARE(N + 1) leaves only after COMMIT_ACK(N); a version is announced only after its commit.
#ifndef ORCHESTRATOR_TRAINER_H
#define ORCHESTRATOR_TRAINER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"
#include "proto/msg.h"

struct orch;
struct peer;

enum link_state { LINK_NONE, LINK_RESTORING, LINK_REPLAYING, LINK_READY };

#define TRAINER_CHECKPOINTS 256
#define TRAINER_PRUNED      16

struct trainer_link {
    enum link_state state;
    int64_t epoch;         // granted to the present incarnation, 0 = none yet
    int64_t pid, restarts; // whose it is
    bool fenced;
    int64_t position;    // steps applied in the trainer's weights, as far as we were told
    int64_t sent;        // step of the PREPARE under way, -1 = none
    int64_t deadline_ms; // lease
    int rejected;        // steps in a row, since the start
    char rejected_first[300];
    bool ack_pending;
    struct msg_commit_ack ack;
    struct { // recorded and not pruned, oldest first
        int64_t step;
        char path[1024], hash[HASH_HEX];
        bool stage_end;
        double eval; // NAN = unknown
    } checkpoints[TRAINER_CHECKPOINTS];
    int n_checkpoints;
    char pruned[TRAINER_PRUNED][1024]; // may be removed, and were not seen to be gone
    int n_pruned;
};

enum status trainer_open(struct orch *o, struct error *err) OOZE_MUST_USE;
// HELLO: grants the epoch. False when the run failed over it.
bool trainer_on_hello(struct orch *o, struct peer *p, const struct msg_hello *h, bool again);
void trainer_fill_welcome(struct orch *o, struct msg_welcome *w);
void trainer_after_welcome(struct orch *o);
void trainer_on_lost(struct orch *o);
void trainer_on_step_done(struct orch *o, struct peer *p, const struct msg_step_done *m);
// Asks the idle trainer to write a checkpoint of the last committed step.
void trainer_ask_checkpoint(struct orch *o);
void trainer_on_checkpoint(struct orch *o, struct peer *p, const struct msg_checkpoint *m);
void trainer_send(
    struct orch *o); // whatever is due: acknowledgement, PREPARE of the prepared step or of a replay
void trainer_tick(struct orch *o);
void trainer_lease(struct orch *o);          // what the trainer owes is due lease_ms from now
bool trainer_is_ready(const struct orch *o); // holds version committed_steps and computes nothing
bool trainer_has_checkpoint(const struct orch *o, int64_t step);
// The evaluation of version `step` is known: for keep_best.
void trainer_note_eval(struct orch *o, int64_t step, double mean);

#endif
