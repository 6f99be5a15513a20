// Inside the worker: the thread that fills new weights beside those in use. At most two weights objects exist; the one
// that is not in use is the loader's.
#ifndef ROLLOUT_LOADER_H
#define ROLLOUT_LOADER_H

#include "rollout/worker.h"

struct loader;

enum status loader_open(struct worker *w, const struct worker_config *c, struct loader **ret,
                        struct error *err) OOZE_MUST_USE;
void loader_close(struct loader *l); // after the compute thread has ended
enum status loader_start(struct loader *l, const struct worker_load *load, struct error *err) OOZE_MUST_USE;
int64_t loader_newest(struct loader *l);
// Compute thread: the weights given by worker_give_weights are in use; `old` (or NULL) is not any more.
void loader_return(struct loader *l, struct weights *old, double stall_ms);

// worker.c: queues filled weights for the compute thread.
void worker_give_weights(struct worker *w, struct weights *incoming, const struct worker_load *load,
                         double load_ms);

#endif
