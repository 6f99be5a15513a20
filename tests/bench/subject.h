// What the benchmarks of the engine run: SmolLM2-135M on a device, its weights from DIR/hf when that folder is there, else random
// ones of the same shape (nothing depends on their values but the tokens).
#ifndef TESTS_BENCH_SUBJECT_H
#define TESTS_BENCH_SUBJECT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/runconfig.h"
#include "model/model.h"
#include "rollout/engine.h"

// Its shape, as a run's configuration says it.
extern const struct run_model subject_model;

// The configuration of a training step of it, as the rows train-* and the profile run it: bf16, one sequence of 1,024 tokens at a time,
// nothing computed twice, AdamW. c is all zeros before; whoever wants another shape, class or number of threads sets it afterwards.
void subject_train_config(struct run_config *c);

struct subject_options {
    const char *isa, *models; // "auto"; NULL = random weights
    int threads;              // 0 = all cores
    bool pin;                 // each thread of the pool on a core of its own, this one too
    enum dtype dtype;
};

struct subject {
    struct device *d;
    struct model_config c;
    struct layout layout;
    struct weights *w;
    int64_t
        file_bytes; // of the weights as a weights file has them: each number once, embedding and head tied
    bool random;
};

enum status subject_open(const struct subject_options *o, struct subject *ret,
                         struct error *err) OOZE_MUST_USE;
void subject_close(struct subject *s);

// Submits n jobs of `length` random ids (the same ones for the same n and length) that sample n_new tokens at temperature 1.
// round: makes job ids and draws differ between calls.
enum status subject_submit(const struct subject *s, struct engine *e, int32_t n, int32_t length,
                           int32_t n_new, uint64_t round, struct error *err) OOZE_MUST_USE;

// A place of its own for a benchmark that publishes weights: a temporary folder and a run id made of the process id. What killed benchmarks
// left in shared memory goes.
enum status subject_run(const char *bench, char ret_dir[64], char ret_run[RUNCONFIG_NAME],
                        struct error *err) OOZE_MUST_USE;

double subject_seconds(void);

// "f32", "bf16", "fp8"; false: none of them.
bool subject_dtype(const char *name, enum dtype *ret);

#endif
