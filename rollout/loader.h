// Inside the worker: the thread that fills new weights beside those in use. Two weights objects exist, both made (and their memory
// touched) before they are needed; the one that is not in use is the loader's. The compute thread's pool does the last part
// of a loading when that takes no longer than one of its steps: then the new weights are there at the end of the step that ran
// when they came, not one later.
#ifndef ROLLOUT_LOADER_H
#define ROLLOUT_LOADER_H

#include "rollout/worker.h"

struct loader;

enum status loader_open(struct worker *w, const struct worker_config *c, struct loader **ret,
                        struct error *err) OOZE_MUST_USE;
void loader_close(struct loader *l); // after the compute thread has ended
enum status loader_start(struct loader *l, const struct worker_load *load, struct error *err) OOZE_MUST_USE;
int64_t loader_newest(struct loader *l);
// Compute thread: between two steps. Takes part in the loading under way if its pool can finish it within `patience_ns` (INT64_MAX: in
// any case), and then waits as long for the weights to be given.
void loader_help(struct loader *l, struct device *d, int64_t patience_ns);
// Is there something that loader_help would do without limit?
bool loader_wants_help(struct loader *l);
// Compute thread: the weights given by worker_give_weights are in use; `old` (or NULL) is not any more.
void loader_return(struct loader *l, struct weights *old, double stall_ms, int64_t swapped_ns);

// worker.c: queues filled weights for the compute thread.
void worker_give_weights(struct worker *w, struct weights *incoming, const struct worker_load *load,
                         double load_ms);
// worker.c: there is something to help with.
void worker_wake(struct worker *w);

#endif
