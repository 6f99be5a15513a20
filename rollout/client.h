// The orchestrator's side of the engine: the ZeroMQ job stream ("Between our own processes" of protocols.md).
//
//   connecting ── HELLO every second ──► WELCOME ──► serving ── silence, or a newer orchestrator epoch ──► connecting
//
// Invariants
//   1. A job id is one job for ever: a JOB seen again continues (what is not acknowledged is sent again), never runs twice.
//   2. Every token is kept from sampling until an ACK covers it; after each WELCOME all kept tokens are sent again.
//   3. Jobs of an orchestrator epoch older than the newest seen are aborted and forgotten.
//   4. Bounded: CLIENT_JOBS jobs at once (more are answered with FINISH_ERROR); a full send queue is waited for, nothing is dropped.
//   5. Weights older than the newest are ignored; the one held is answered LOADED again.
//
// Owner: the I/O thread.
#ifndef ROLLOUT_CLIENT_H
#define ROLLOUT_CLIENT_H

#include "proto/wire.h"
#include "rollout/worker.h"

#define CLIENT_JOBS 65536

struct client;

struct client_config {
    struct loop *loop;
    struct worker *worker;
    const char *endpoint;           // of the orchestrator
    const struct wire_curve *curve; // NULL on the same host
    bool remote;                    // on another host than the orchestrator
    const char *run, *name;         // run id and "engine-0"
    int64_t restarts;
    int32_t flush_tokens;  // of a job sent together, unless it ends
    const char *fetch_dir; // where weights fetched in chunks are put
    // The orchestrator refused this engine (another run, other numerics): the process should end.
    void (*on_refused)(void *ctx, const char *reason);
    void *ctx;
};

enum status client_open(const struct client_config *c, struct client **ret, struct error *err) OOZE_MUST_USE;
void client_close(struct client *c);
// Before client_close, when the worker has stopped: sends what is queued, waiting for room for at most 2 s, and says BYE, so that the
// jobs go on elsewhere at once from the last token that was sampled. `failed`: this engine ends of itself. Runs no callbacks. An
// orchestrator that reads too slowly may miss the end of it, and learns of the leave by the silence.
void client_finish(struct client *c, bool failed);

// The worker's callbacks, passed on. Jobs of the HTTP API are skipped.
void client_outputs(struct client *c, const struct outputs *o);
void client_loaded(struct client *c, const struct worker_loaded *l);
void client_traced(struct client *c, const struct worker_trace *t);

struct client_stats {
    bool welcome;
    int64_t orchestrator_epoch;
    int64_t jobs, kept_tokens, sent_messages, resent;
};
void client_stats(const struct client *c, struct client_stats *ret);

#endif
