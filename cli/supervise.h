// The processes of a run on this host: started, watched, restarted, ended together.
//
// Invariants
//   1. Whoever supervises holds RUN/lock (flock); a second supervisor is refused.
//   2. Children die with the supervisor (parent-death signal), also when it is killed.
//   3. A child that ends unasked is started again with --restarts N+1, after a pause that doubles from 100 ms to 5 s; a task service at
//      once. max_restarts restarts of one process without a committed step between them end the run, naming the first cause.
//   4. The orchestrator decides when a run is over: its exit 0 ends the other processes.
#ifndef CLI_SUPERVISE_H
#define CLI_SUPERVISE_H

#include "base/runconfig.h"
#include "base/status.h"

// Takes the lock, runs to the end, prints progress to stdout. STATUS_OK: done or stopped in order (then ret_stopped); CANCELED: stopped
// at once by a second Ctrl-C, still resumable.
enum status supervise_run(const char *run_dir, const struct run_config *c, bool quiet, bool *ret_stopped,
                          struct error *err) OOZE_MUST_USE;

#endif
