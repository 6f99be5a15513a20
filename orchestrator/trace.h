// One sequence of tokens through the trainer and through an engine, at a version of the weights that both have, compared op by op: where
// do they part?
//
//   idle ── trace_start ─► asking: TRACE to both ── both answered ─► compared: trace_done is called, idle
//            asking ── the engine has newer weights by now, or the version's file is gone ─► asking, at the version that it has now
//            asking ── the engine is lost, or no answer within lease_ms ─► trace_done with an error, idle
//
// Invariants
//   1. One comparison at a time.
//   2. The trainer reads the file of the version, the engine uses what it samples with: a file damaged on its way, a wrong conversion
//      and a wrong op show alike.
//   3. A restarted trainer is asked again. An answer to an earlier question (other id) is not looked at.
#ifndef ORCHESTRATOR_TRACE_H
#define ORCHESTRATOR_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/mem.h"
#include "base/status.h"
#include "proto/msg.h"

struct orch;
struct peer;

struct trace_answer {
    uint64_t id; // asked under it, 0 = not asked
    bool have;
    struct arena arena; // life of m
    struct msg_trace_done m;
};

struct trace_result {
    const char *error;  // "" = there is a comparison
    const char *engine; // its name
    int64_t version;
    int32_t n_ops;    // of the trainer's trace
    int32_t n_layers; // of the model, as the trace has them
    bool parted;      // `op` is the first whose digests differ
    struct msg_trace_op op;
    double max_abs_diff; // of the log-probabilities; NAN when one is not a number
};

struct trace {
    bool active;
    uint32_t engine; // serial
    int64_t version; // -1 = not chosen yet
    int64_t deadline_ms;
    int tries;
    int32_t n_ids;
    int32_t ids[MSG_TRACE_IDS];
    struct trace_answer trainer, of_engine;
    char why[512]; // of the last refusal
};

void trace_open(struct trace *t);
void trace_close(struct trace *t);
// ids [n], n at most MSG_TRACE_IDS. Takes the place of a comparison under way.
void trace_start(struct orch *o, const struct peer *engine, const int32_t *ids, int32_t n);
void trace_tick(struct orch *o);       // asks what is to be asked, gives up what is over
void trace_on_trainer(struct orch *o); // the trainer is a new incarnation, or said HELLO again
void trace_on_answer(struct orch *o, const struct peer *p, const struct msg_trace_done *m);
// "layer 3, block mlp, op gemm (its 2.)"
void trace_place(const struct trace_result *r, char *ret, size_t n);

#endif
