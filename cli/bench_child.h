// A program of tests/bench (ours or a peer) as a child that is kept alive and asked for one measured run at a time.
//
//   child → us   {"ready":true, …}       once, prepared and warm; "name" of the peer, "isa", "threads", "bytes", "goal" are looked at
//   us → child   run
//   child → us   {"value": X, …}         X in the unit of the row; "bound", "bound_name", "parts", "limits" are looked at
//   us → child   quit                    or the end of its stdin: it exits
//   child → us   {"error": "why"}        instead of any answer: the benchmark ends with that sentence
//
// Lines on stdout that do not begin with { are passed on to our stderr: libraries like to talk. A child waits for its next line in
// read(2), so that it takes no time from the one that runs; bench_child_cpu tells whether that is so. Owner: the thread of the loop.
#ifndef CLI_BENCH_CHILD_H
#define CLI_BENCH_CHILD_H

#include "base/json.h"
#include "net/loop.h"

struct bench_child;

// Starts it; `name` is used in errors. argv is NULL-terminated. *stop, which outlives the child: set by a callback of the loop that also
// stops the loop, it ends every wait for an answer.
enum status bench_child_open(struct loop *l, const char *name, const char *const *argv, const bool *stop,
                             struct bench_child **ret, struct error *err) OOZE_MUST_USE;
// Its next line of JSON, at most timeout_ms from now. STATUS_PEER: it ended, or answered {"error":…}; STATUS_TIMEOUT; both name the
// child. STATUS_CANCELED: *stop. ret: a reference for the caller.
enum status bench_child_answer(struct bench_child *c, int64_t timeout_ms, json_t **ret,
                               struct error *err) OOZE_MUST_USE;
// "run", then its answer, checked to hold a finite value.
enum status bench_child_run(struct bench_child *c, int64_t timeout_ms, json_t **ret,
                            struct error *err) OOZE_MUST_USE;
// CPU seconds that all its threads took so far; 0 when it has ended.
double bench_child_cpu(const struct bench_child *c);
// Asks it to quit and waits a moment; what is still there, or owes an answer, is killed.
void bench_child_close(struct bench_child *c); // NULL is fine

#endif
