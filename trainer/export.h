// Model folders out of checkpoints: `ooze export`.
#ifndef TRAINER_EXPORT_H
#define TRAINER_EXPORT_H

#include "base/status.h"
#include "kernels/dtype.h"

// Reads a checkpoint (or any Hugging Face folder that the model room reads) and writes out_dir as a complete folder in dtype F32,
// BF16 or FP8, tokenizer files included. out_dir must not exist. A checkpoint's model file is verified against its state.json.
enum status export_folder(const char *checkpoint_dir, const char *out_dir, enum dtype dtype,
                          struct error *err) OOZE_MUST_USE;

#endif
