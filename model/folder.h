// Model folders and weight files on disk: safetensors in the Hugging Face layout.
#ifndef MODEL_FOLDER_H
#define MODEL_FOLDER_H

#include "base/hash.h"
#include "kernels/device.h"
#include "model/config.h"
#include "model/kept.h"

// Reads dir/*.safetensors (single file or index; F32, BF16, F16, F8_E4M3 with weight_scale_inv) into the flat
// f32 vector (mem_alloc'ed by the callee, mem_free). Truncated files, missing, surplus or misshapen tensors
// are errors naming file and tensor.
enum status model_folder_read(const char *dir, const struct model_config *c, const struct layout *l,
                              float **ret_master, struct error *err) OOZE_MUST_USE;
// Writes a complete HF folder: config.json, model.safetensors in dtype (F32, BF16 or FP8), and copies
// tokenizer*, vocab, merges, special_tokens_map, chat_template.jinja, generation_config.json from
// tokenizer_dir when given. Atomic: temporary folder, fsync, rename; an existing folder is refused.
enum status model_folder_write(const char *dir, const struct model_config *c, const struct layout *l,
                               const float *master, enum dtype dtype, const char *tokenizer_dir,
                               char ret_hash[HASH_HEX], struct error *err) OOZE_MUST_USE;

// One weights file (contract 2): safetensors layout, __metadata__ {version, dtype}; the bytes depend only on
// (config, weights, version, dtype). Temporary name, fsync (durable = true), rename; 0600, O_EXCL,
// O_NOFOLLOW; all its room is reserved first. ret_hash is the weights hash of base/hash.h, computed while the bytes
// are produced. dtype: DT_F32; DT_BF16 (every tensor); DT_FP8 (params with .fp8 as F8_E4M3 + scale_inv, the
// others BF16). d: the threads of its pool share the work, the bytes do not depend on it; NULL: the caller alone.
enum status weights_file_write(const char *path, struct device *d, const struct layout *l,
                               const float *master, enum dtype dtype, int64_t version, bool durable,
                               char ret_hash[HASH_HEX], int64_t *ret_bytes, struct error *err) OOZE_MUST_USE;
// What has to happen to weights before they are written, while they are on their way through the caches anyway: the optimizer's
// update. fn gets every element of every parameter exactly once, in ranges [begin, end) of a parameter whose bounds are multiples of
// 16 or its end, on any thread of the device's pool with that thread's solo device, and may change master there and nothing else
// that the writer reads. When the writing fails, `done` says whether all of it has happened or nothing.
struct weights_before {
    void (*fn)(void *ctx, struct device *solo, const struct param *p, int64_t begin, int64_t end);
    void *ctx;
    bool done; // result
};

// The same with more wishes, each of which may be NULL:
struct weights_output {
    const char *path; // NULL: the hash alone, *ret_bytes as it would be
    // Not durable: write into the pages of this file, which goes, because touching fresh ones takes longer than everything else. If a
    // reader holds it (file_share), or it is not there, fresh ones it is; it must have no other name that readers know.
    const char *old;
    struct kept *kept;             // where the map stays for the time these pages come round again
    struct weights_before *before; // first
};
enum status weights_file_rewrite(const struct weights_output *out, bool durable, struct device *d,
                                 const struct layout *l, const float *master, enum dtype dtype,
                                 int64_t version, char ret_hash[HASH_HEX], int64_t *ret_bytes,
                                 struct error *err) OOZE_MUST_USE;
// The hash alone, without writing.
enum status weights_file_hash(struct device *d, const struct layout *l, const float *master, enum dtype dtype,
                              int64_t version, char ret_hash[HASH_HEX], struct error *err) OOZE_MUST_USE;

#endif
