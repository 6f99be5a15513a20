// The trainer's part of the parity check (contract 3): stored segments scored again under the published weights that sampled them, and
// traces of the forward pass over such weights. The weights are read from the published file, never from the trainer's memory.
//
// Memory: one weights object of the rollout's dtype, opened at the first check and kept; where the trainer's own dtype is another (FP8
// rollouts), activations of its own too.
#ifndef TRAINER_RESCORE_H
#define TRAINER_RESCORE_H

#include "base/hash.h"
#include "model/trace.h"
#include "proto/msg.h"
#include "trainer/trainer.h"

struct rescore { // zero = nothing opened yet
    struct weights *w;
    int64_t version;     // that w holds
    char hash[HASH_HEX]; // "" = none
    struct train *train; // NULL: the trainer's own
    int32_t train_rows;
    // life of the last answer
    struct trace trace;
    struct msg_trace_op *ops;
    uint64_t *digests;
    struct error error;
};

void rescore_done(struct rescore *r);

// Each fills ret; its pointers live until the next call. What cannot be done is said in the answer; STATUS_CANCELED, when the trainer is
// told to stop, is the only error.
enum status rescore_check(struct rescore *r, struct trainer *t, const struct msg_check *m,
                          struct msg_check_done *ret, struct error *err) OOZE_MUST_USE;
void rescore_trace(struct rescore *r, struct trainer *t, const struct msg_trace *m,
                   struct msg_trace_done *ret);

#endif
