// The I/O thread of the trainer: one connection to the orchestrator, alive while the compute thread works.
#ifndef TRAINER_CLIENT_H
#define TRAINER_CLIENT_H

#include "trainer/session.h"

struct client_options {
    const char *endpoint; // "ipc:///…/orch"
    const char *run;      // run id
    int64_t restarts;     // how often the supervisor has started this process before
    int stop_fd;          // readable = stop soon (a signalfd); -1 = none
};

// Runs until stopped (STATUS_OK) or failed. STATUS_FENCED, STATUS_PROTOCOL and STATUS_PEER are cured by a restart; every other
// failure is not. Uses the calling thread for I/O and starts one compute thread that owns s meanwhile.
enum status client_run(struct session *s, const struct client_options *o, struct error *err) OOZE_MUST_USE;

#endif
