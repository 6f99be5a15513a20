// One optimizer step without sockets or files: (state, prepared step) → new state and metrics.
//
// Deterministic: the same state and prepared step give the same bits on any number of threads (packing, reductions and updates
// depend on content alone). A prepared step that cannot be trained, a non-finite loss, gradient or gradient norm, and a zero
// denominator reject the step: weights and optimizer stay bit for bit, `step` moves on.
#ifndef TRAINER_STEP_H
#define TRAINER_STEP_H

#include "proto/msg.h"
#include "trainer/metrics.h"
#include "trainer/trainer.h"

struct step_result {
    enum msg_outcome outcome;
    char reason[1024]; // when rejected
    double flops;      // of the model, as metrics.h counts them
    struct metrics_list metrics;
};

// msg->step must be t->step (STATUS_PROTOCOL otherwise). STATUS_CANCELED when t->cancel was set: the state is as before.
// STATUS_NOMEM when the machine cannot hold the step. ret is the caller's, large: keep it on the heap.
enum status trainer_step(struct trainer *t, const struct msg_prepare *msg, struct step_result *ret,
                         struct error *err) OOZE_MUST_USE;

// The gradient alone, for tests: of update `update` at the present weights into t->grads; nothing is applied.
enum status trainer_gradient(struct trainer *t, const struct msg_prepare *msg, int32_t update,
                             double *ret_loss, struct error *err) OOZE_MUST_USE;

#endif
