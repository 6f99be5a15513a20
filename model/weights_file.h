// Inside the room: the producer behind weights_file_write, weights_file_hash and model_folder_write
// (folder.h).
#ifndef MODEL_WEIGHTS_FILE_H
#define MODEL_WEIGHTS_FILE_H

#include "model/folder.h"

// weights_file_rewrite, and: d NULL: one thread. version -1: a folder's file, without version in the metadata and readable by all;
// else mode 0600. ret_bytes may be NULL.
enum status weights_file_emit(const struct weights_output *out, bool durable, struct device *d,
                              const struct layout *l, const float *master, enum dtype dtype, int64_t version,
                              char ret_hash[HASH_HEX], int64_t *ret_bytes, struct error *err) OOZE_MUST_USE;

#endif
