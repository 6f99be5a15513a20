// The trainer: device, model, optimizer and the weights under training. One object a process; the compute thread owns it.
//
// Invariants
//   1. `weights` (the packed working copy) always equals `master` rounded to the trainer's dtype, between calls.
//   2. master, optimizer, step, stage and reset_pending are the whole state: a checkpoint holds them and nothing else, and from
//      equal states equal prepared steps give equal bits, on any number of threads.
//   3. A rejected step leaves master and optimizer untouched bit for bit; it moves `step` on, and remembers a reset of the
//      moments that it should have begun with in reset_pending.
#ifndef TRAINER_TRAINER_H
#define TRAINER_TRAINER_H

#include <stdatomic.h>

#include "base/mem.h"
#include "base/runconfig.h"
#include "model/folder.h"
#include "model/model.h"
#include "trainer/optimizer.h"

struct trainer;

// Who takes a step's weights while they are made: `before` is the step's last update, still to be done, after which the weights are
// `version`. If it has not happened when this returns (before->done), the step does it.
struct trainer_taker {
    void (*take)(void *ctx, struct trainer *t, int64_t version, struct weights_before *before);
    void *ctx;
};

struct trainer {
    const struct run_config *config; // borrowed
    struct device *device;
    struct model_config model;
    struct layout layout;
    char tokenizer_dir[RUNCONFIG_PATH]; // copied into checkpoints and exports; "" = none
    // state
    float *master; // [layout.total]
    struct optimizer optimizer;
    int64_t step;  // steps applied or rejected so far = version of the weights
    int32_t stage; // of the last step; 0 before any
    bool reset_pending;
    // workspace
    struct weights *weights;
    struct train *train; // opened for train_rows rows, reopened when a step needs more
    int32_t train_rows;
    float *grads;    // [layout.total]
    float *snapshot; // [3 layout.total], only while steps have several updates
    struct arena arena;
    _Atomic bool cancel; // set from any thread: the step under way is abandoned between two micro-batches
    _Atomic int64_t done_tokens; // rows computed so far, for PONG
    struct trainer_taker taker;  // take NULL = nobody
    double matrix_parameters;    // in the layers' products
    double peak_flops;           // of the device in f32, as measured when the trainer opened (kernels/peak.h)
};

// run_dir "" = no run directory (tests, benchmarks). Opens the device and the model's shape (model.path or the run's YAML with the
// special tokens of RUN/tokenizer); weights are undefined until one of the next two succeeds.
enum status trainer_open(const struct run_config *c, const char *run_dir, struct trainer **ret,
                         struct error *err) OOZE_MUST_USE;
void trainer_close(struct trainer *t); // NULL is fine
// The initial model, step 0: model.path, or random weights by the run's seed.
enum status trainer_restart(struct trainer *t, struct error *err) OOZE_MUST_USE;
// After master was written by someone else (restart, restore): makes invariant 1 true.
void trainer_sync_weights(struct trainer *t);
// Makes `train` large enough for micro-batches of `rows`.
enum status trainer_reserve(struct trainer *t, int32_t rows, struct error *err) OOZE_MUST_USE;

// dtype of the working weights / of the published ones.
enum dtype trainer_dtype(const struct run_config *c);
enum dtype rollout_dtype(const struct run_config *c);
// rollout.kv_dtype: trainer and engines round keys and values alike.
enum kv_choice run_kv_choice(const struct run_config *c);

#endif
