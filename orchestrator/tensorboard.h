// TensorBoard event files: RUN/tensorboard/events.out.tfevents.*, the figures of metrics.jsonl as scalars under the same names.
//
// A file is a sequence of TFRecords: u64 length, u32 masked CRC-32C of the length, the payload, u32 masked CRC-32C of the payload, all
// little-endian. A payload is a protobuf Event (tensorflow/core/util/event.proto): wall_time = 1 (double), step = 2 (int64),
// file_version = 3 (string, first record), summary = 5 { value = 1 { tag = 1 (string), simple_value = 2 (float) } }. Those few fields
// are written by hand. Read back by the real package in tests/oracle-python/tensorboard_reads.py.
#ifndef ORCHESTRATOR_TENSORBOARD_H
#define ORCHESTRATOR_TENSORBOARD_H

#include <stdint.h>

#include "base/buf.h"
#include "base/json.h"
#include "base/status.h"

struct tensorboard;

// Makes RUN/tensorboard and a fresh file in it; each start of a run's orchestrator has its own, TensorBoard joins them.
enum status tensorboard_open(const char *run_dir, int64_t wall_ms, struct tensorboard **ret,
                             struct error *err) OOZE_MUST_USE;
void tensorboard_close(struct tensorboard *t); // NULL is fine
// Every number in the object except step and wall_ms becomes a scalar of `step`. What is not finite is left out.
enum status tensorboard_write(struct tensorboard *t, int64_t wall_ms, int64_t step, const json_t *figures,
                              struct error *err) OOZE_MUST_USE;

// One TFRecord around payload, appended to out; for tests.
void tensorboard_record(struct buf *out, const void *payload, size_t n);

#endif
