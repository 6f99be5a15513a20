// The serving process: loop, worker, and the doors to it that the options ask for (job stream, HTTP API). Owner: the main
// thread, which becomes the I/O thread.
#ifndef ROLLOUT_SERVE_H
#define ROLLOUT_SERVE_H

#include "rollout/options.h"

// An engine of a run; STATUS_INVALID and friends from the configuration come with *ret_config_bad set.
enum status serve_run(const struct options *o, bool *ret_config_bad, struct error *err) OOZE_MUST_USE;
// A model folder by HTTP.
enum status serve_model(const struct options *o, struct error *err) OOZE_MUST_USE;

#endif
