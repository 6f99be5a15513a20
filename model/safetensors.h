// safetensors files: u64 little-endian header length, a JSON header {name: {dtype, shape, data_offsets}},
// then the bytes of the tensors without gaps. Read through a bounded parser; any inconsistency is an error
// that names file and tensor.
//
// Invariants of an open file
//   1. Every tensor lies inside the file, its bytes equal the product of its shape times the size of its
//   dtype.
//   2. Tensors neither overlap nor leave holes: they tile the data section exactly.
//   3. Names are unique.
// A file that shrinks while it is mapped raises SIGBUS, as with any map; writers here only ever rename
// complete files.
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include "base/file.h"
#include "base/json.h"
#include "kernels/dtype.h"

#define SAFETENSORS_DIMS       4
#define SAFETENSORS_HEADER_MAX ((size_t)64 << 20)

struct safetensor {
    const char *name; // owned by the header
    enum dtype dtype; // F32, BF16, F16, F8_E4M3, I32, U8; others are refused
    int n_dims;
    int64_t dims[SAFETENSORS_DIMS];
    size_t begin, bytes; // in the data section
    const uint8_t *data;
};

struct safetensors {
    struct file_map map; // empty when parsed from memory
    json_t *header;
    struct safetensor *tensors; // sorted by name
    size_t n;
};

enum status safetensors_open(const char *path, bool nofollow, struct safetensors *ret,
                             struct error *err) OOZE_MUST_USE;
// The same out of memory that outlives `ret`; `what` names it in errors.
enum status safetensors_parse(const void *data, size_t len, const char *what, struct safetensors *ret,
                              struct error *err) OOZE_MUST_USE;
void safetensors_close(struct safetensors *s); // NULL and half-built are fine
const struct safetensor *safetensors_find(const struct safetensors *s, const char *name); // NULL when absent
// A string of __metadata__, NULL when absent.
const char *safetensors_metadata(const struct safetensors *s, const char *key);

#endif
