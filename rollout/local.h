// `ooze-rollout --model DIR --generate` and `--score`: JSON lines in, JSON lines out, no sockets, no threads beside the
// device's. What `ooze generate` and the comparison with transformers use. Owner: the main thread.
#ifndef ROLLOUT_LOCAL_H
#define ROLLOUT_LOCAL_H

#include <stdio.h>

#include "rollout/engine.h"

struct local_config {
    const char *model_dir; // Hugging Face folder
    const char *isa;
    int threads;
    enum dtype dtype;
    struct engine_config engine;
    bool score; // log-probabilities of the given ids instead of new ones
};

// Answers every line of `in` on `out`, in order; a line that cannot be answered gets {"error": "…"}. Errors returned are those that
// end everything: an unreadable model, no memory, a broken output.
enum status local_run(const struct local_config *c, FILE *in, FILE *out, struct error *err) OOZE_MUST_USE;

#endif
