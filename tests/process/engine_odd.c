// An engine that computes otherwise: ooze-rollout's own rooms behind another main, and one weight of one matrix changed by one unit in
// the last place after each load. Linked so that the worker's calls of engine_set_weights come here first (cmake/tests.cmake).
//
//   OOZE_TEST_ODD="TENSOR VERSION"   the matrix by its name in the model's files, and the first version of the weights to touch
//
// Compute thread.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/log.h"
#include "model/weights.h"
#include "rollout/engine.h"
#include "rollout/options.h"
#include "rollout/serve.h"

const struct weights *__real_engine_set_weights(struct engine *e, const struct weights *w, int64_t version);
const struct weights *__wrap_engine_set_weights(struct engine *e, const struct weights *w, int64_t version);

// The first element of the packed matrix that has a neighbour: its lowest bit flips.
static void nudge(const struct gemm_weight *g)
{
    uint8_t *at = g->data;
    size_t bytes = dtype_bytes(g->dtype);
    for (size_t i = 0; i < (size_t)(g->n * g->k); i++, at += bytes) {
        if (g->dtype == DT_FP8 && ((at[0] & 0x7f) < 0x10 || (at[0] & 0x7f) > 0x70))
            continue;
        if (g->dtype != DT_FP8 && (at[bytes - 1] & 0x7f) == 0)
            continue; // near 0, or nothing at all
        at[0] ^= 1;
        return;
    }
    log_event(LOG_ERROR, "odd", "cause=\"no weight to nudge\"");
    abort();
}

const struct weights *__wrap_engine_set_weights(struct engine *e, const struct weights *w, int64_t version)
{
    char tensor[128] = "";
    long long from = 0;
    const char *plan = getenv("OOZE_TEST_ODD");
    if (!plan || sscanf(plan, "%127s %lld", tensor, &from) != 2)
        abort();
    bool done = version < from;
    for (int32_t i = 0; i < w->n_linears && !done; i++)
        if (strcmp(w->linears[i]->params[0]->name, tensor) == 0) {
            nudge(&w->linears[i]->fwd[0]);
            done = true;
        }
    if (!done)
        abort();
    if (version >= from)
        log_event(LOG_INFO, "odd", "tensor=%s version=%lld", tensor, (long long)version);
    return __real_engine_set_weights(e, w, version);
}

int main(int argc, char **argv)
{
    struct options o;
    struct error err = {0};
    bool config_bad = false;
    int code = options_parse(argc, argv, &o);
    if (code >= 0)
        return code;
    log_init(o.name, LOG_INFO);
    if (serve_run(&o, &config_bad, &err)) {
        log_event(LOG_ERROR, "failed", "cause=\"%s\"", err.text);
        return 1;
    }
    return 0;
}
