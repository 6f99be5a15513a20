// The engine on a thread of its own, and a second thread that prepares new weights beside the old ones (contract 2). The I/O
// thread (the loop's) talks to both through bounded queues and never waits for them.
//
//   I/O thread ── commands ──► compute thread ── outputs ──► I/O thread     (worker_on_outputs)
//        └─────── load ──────► loader thread ── weights ──► compute thread (swapped between two steps)
//                                     └────── result ─────► I/O thread     (worker_on_loaded)
//
// Invariants
//   1. The engine, its device and its weights are touched by the compute thread only. A weights object is the loader's while it is
//      filled, the engine's while it computes; ownership passes under the lock.
//   2. Every queue has a limit: commands (WORKER_COMMANDS, then STATUS_AGAIN), outputs (the compute thread waits), loads (one under
//      way, one waiting: the newest).
//   3. Callbacks run on the loop's thread, inside loop_run or worker_stop; none after worker_close.
#ifndef ROLLOUT_WORKER_H
#define ROLLOUT_WORKER_H

#include "base/hash.h"
#include "net/loop.h"
#include "rollout/engine.h"

#define WORKER_COMMANDS 65536
#define WORKER_TRACES   4 // asked for and not delivered

struct worker;

// Where weights come from: a file of weights_file_write, or a Hugging Face folder of the same shape.
struct worker_load {
    int64_t version;
    bool folder;
    char path[4096];
    char hash[HASH_HEX]; // expected, "" = not checked; a folder has none
};

struct worker_loaded {
    struct worker_load load;
    bool ok;
    char error[1024];
    double load_ms;     // beside the running engine
    double stall_ms;    // in which no step could run though there was something to do
    int64_t swapped_ns; // of the clock: from here on steps compute with them
};

// A trace of the weights in use, and its answer.
struct worker_trace {
    uint64_t id;
    int64_t epoch, version;
    int32_t n;
    int32_t *ids; // [n] behind the struct
    bool ok;
    char error[1024];
    struct trace trace; // when ok
    struct worker_trace *next;
};

struct worker_config {
    const char *isa; // highest kernel class: "auto", …
    int threads;     // of the compute thread's pool; 0 = all cores this process may use
    const int *pin;  // [threads] the CPUs they are pinned to, or NULL
    struct model_config model;
    enum dtype dtype; // of the weights
    struct engine_config engine;
    struct loop *loop; // of the I/O thread
    void (*on_outputs)(void *ctx, const struct outputs *o);
    void (*on_loaded)(void *ctx, const struct worker_loaded *l);
    void (*on_traced)(void *ctx, const struct worker_trace *t); // NULL: worker_trace is not used
    void (*on_failed)(void *ctx,
                      const struct error *err); // the compute thread gave up; the process should end
    void *ctx;
};

struct worker_stats {
    struct engine_stats engine;
    int64_t busy_ns; // spent in steps since the start
    char version_hash[HASH_HEX];
    int64_t loads;
    double last_load_ms, last_stall_ms;
};

enum status worker_open(const struct worker_config *c, struct worker **ret, struct error *err) OOZE_MUST_USE;
// Ends the compute thread after the step it is in, and hands the outputs that have not been delivered yet to on_outputs, before it
// returns: outside of loop_run. Then only worker_stats and worker_close make sense; jobs that go on inside the engine end without a word.
void worker_stop(struct worker *w);
void worker_close(struct worker *w);
const char *worker_numerics_id(const struct worker *w);
const char *worker_device_name(const struct worker *w);

// The job's ids are copied. What the engine refuses comes back as an output with FINISH_ERROR. STATUS_AGAIN: queue full.
enum status worker_submit(struct worker *w, const struct engine_job *job, struct error *err) OOZE_MUST_USE;
// These have room beyond the queue's limit, since each answers something that had room itself.
void worker_cancel(struct worker *w, uint64_t job); // an unknown job is no error
void worker_cancel_all(struct worker *w);
void worker_pause(struct worker *w, enum engine_pause how);
void worker_continue(struct worker *w);
void worker_flush_cache(struct worker *w);

// Starts loading; worker_on_loaded tells the end. A load that waits is replaced (and reported as not ok) by a newer version.
// STATUS_EXISTS: that version or a newer one is held, under way or waiting. STATUS_INVALID: no version (0 … 2^31 - 1). STATUS_AGAIN: it
// would replace one that waits, and the loop has not run for long enough to be told of so many.
enum status worker_load_start(struct worker *w, const struct worker_load *load,
                              struct error *err) OOZE_MUST_USE;
// The version held or on its way, -1 = none.
int64_t worker_newest(struct worker *w);

// on_traced tells the answer, also of what the engine refuses. STATUS_AGAIN: WORKER_TRACES are under way.
enum status worker_trace(struct worker *w, const struct msg_trace *m, struct error *err) OOZE_MUST_USE;

void worker_stats(struct worker *w, struct worker_stats *ret);

#endif
