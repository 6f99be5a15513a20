// Checkpoints: RUN/checkpoints/step-N/, the whole state of the trainer after N steps.
//
//   model.safetensors      f32 master weights, Hugging Face names; with config.json and the tokenizer's files a complete folder
//   optimizer.safetensors  exp_avg, exp_avg_sq [layout.total] f32, in the layout of the flat vector
//   state.json             {format, step, stage, updates, reset_pending, numerics_id, run, dtype, model_hash, optimizer_hash}
//
// The checkpoint's hash is the SHA-256 of state.json, which holds the hashes of the two weight files (base/hash.h): one value
// stands for every byte that a resume reads. Written to a temporary name, fsync'ed, renamed (an older one of the same step is
// swapped out atomically): readers see the old or the new one. A read verifies every hash before anything is replaced.
#ifndef TRAINER_CHECKPOINT_H
#define TRAINER_CHECKPOINT_H

#include "base/hash.h"
#include "trainer/trainer.h"

// dir: RUN/checkpoints/step-N. run: the run's id.
enum status checkpoint_write(const struct trainer *t, const char *dir, const char *run,
                             char ret_hash[HASH_HEX], struct error *err) OOZE_MUST_USE;
// Replaces the trainer's state. expect_hash NULL or "" = any. A checkpoint of other numerics (contract 3), shape or damaged bytes is
// refused and the trainer keeps what it has.
enum status checkpoint_read(struct trainer *t, const char *dir, const char *expect_hash,
                            struct error *err) OOZE_MUST_USE;
// A folder with a state.json: is its model.safetensors the one that state.json names? A folder without one passes.
enum status checkpoint_verify_model(const char *dir, struct error *err) OOZE_MUST_USE;
// Removes run_dir/checkpoints/step-N trees; any other path is refused (STATUS_REFUSED), a missing one is fine.
enum status checkpoint_remove(const char *run_dir, const char *path, struct error *err) OOZE_MUST_USE;
// Unfinished temporaries under run_dir/checkpoints, left by a killed trainer.
enum status checkpoint_clean(const char *run_dir, struct error *err) OOZE_MUST_USE;

#endif
