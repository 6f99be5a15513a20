// The trainer's side of the conversation with the orchestrator, without sockets or threads: WELCOME, PREPARE, COMMIT_ACK,
// CHECKPOINT, CHECK and TRACE go in, STEP_DONE, CHECKPOINT, CHECK_DONE and TRACE_DONE come out (flow:
// "Between our own processes" of protocols.md, contract 1 of architecture.md).
//
//   WELCOME ──► session_welcome ── restore if needed ─┬─ checkpoint is the newest step: publish ──► STEP_DONE(step - 1)
//                                                     └─ later steps were recorded: wait for their PREPARE(replay)
//   PREPARE(N) ► session_prepare ─┬─ holds weights N: trainer_step, publish or hash ──► STEP_DONE(N)
//                                 ├─ N already done, same bytes: the same STEP_DONE again
//                                 └─ replay from the checkpoint's step: restore first
//   COMMIT_ACK ► session_commit ──┬─ ok: prune weights, write the checkpoint if PREPARE asked ──► CHECKPOINT
//                                 └─ fenced / conflict: error, the process ends
//   CHECKPOINT ► session_checkpoint ── without a path: write one of the committed step ──► CHECKPOINT
//                                   └─ recorded: prune what it names
//   CHECK ──────► session_check ──► CHECK_DONE;  TRACE ──► session_trace ──► TRACE_DONE: they touch no state of training
//
// Invariants
//   1. A prepared step is computed once per incarnation and state: repeats are answered from `done`.
//   2. A checkpoint is written only after COMMIT_ACK ok of its step.
//   3. The state in memory is at most one step ahead of what the orchestrator has committed.
#ifndef TRAINER_SESSION_H
#define TRAINER_SESSION_H

#include "base/clock.h"
#include "proto/msg.h"
#include "trainer/publish.h"
#include "trainer/rescore.h"
#include "trainer/step.h"

struct session_done { // the newest STEP_DONE
    bool valid;
    uint64_t digest; // of the PREPARE it answers
    bool checkpoint; // to be written once committed
    int64_t step, version, bytes;
    char hash[HASH_HEX], path[RUNCONFIG_PATH];
    struct step_result result;
};

struct session {
    struct trainer *trainer; // owned
    struct publish publish;
    const struct clock *clock;
    char run_dir[RUNCONFIG_PATH], run[RUNCONFIG_NAME];
    bool holding; // trainer's weights are valid
    int64_t epoch, checkpoint_step, committed_steps;
    char checkpoint[RUNCONFIG_PATH], checkpoint_hash[HASH_HEX]; // where WELCOME said to start
    struct session_done done;
    struct rescore rescore;
    struct { // written and not yet acknowledged
        bool valid;
        int64_t step;
        char path[RUNCONFIG_PATH], hash[HASH_HEX];
    } written;
};

enum status session_open(const struct run_config *c, const char *run_dir, const char *run, const char *shm,
                         const struct clock *clock, struct session **ret, struct error *err) OOZE_MUST_USE;
void session_close(struct session *s); // keeps published files; NULL is fine

// Each fills ret (type MSG_NONE = nothing to say); its pointers live until the next call. Errors end the process, except
// STATUS_CANCELED (asked to stop): STATUS_FENCED and STATUS_PROTOCOL by "restart me", others as failures.
enum status session_welcome(struct session *s, const struct msg_welcome *w, struct msg *ret,
                            struct error *err) OOZE_MUST_USE;
enum status session_prepare(struct session *s, const struct msg_prepare *p, struct msg *ret,
                            struct error *err) OOZE_MUST_USE;
enum status session_commit(struct session *s, const struct msg_commit_ack *a, struct msg *ret,
                           struct error *err) OOZE_MUST_USE;
enum status session_checkpoint(struct session *s, const struct msg_checkpoint *c, struct msg *ret,
                               struct error *err) OOZE_MUST_USE;
enum status session_check(struct session *s, const struct msg_check *c, struct msg *ret,
                          struct error *err) OOZE_MUST_USE;
enum status session_trace(struct session *s, const struct msg_trace *t, struct msg *ret,
                          struct error *err) OOZE_MUST_USE;
// The CHECKPOINT message while unacknowledged, else MSG_NONE: repeated by the caller.
void session_pending(const struct session *s, struct msg *ret);

#endif
