// What may be asked of the engine in JSON: the same bounds for the HTTP API and for JSON lines, each under its own names. Pure
// functions, any thread.
#ifndef ROLLOUT_REQUEST_H
#define ROLLOUT_REQUEST_H

#include "base/json.h"
#include "proto/msg.h"

// An array of at most `max` token ids, which nobody has compared with the vocabulary yet; free() it.
enum status request_ids(const json_t *j, const char *what, int64_t max, int32_t **ret, int32_t *ret_n,
                        struct error *err) OOZE_MUST_USE;

// Names of the fields that are not called the same everywhere, and the seed of a request without one.
struct request_style {
    const char *max_new, *min_new, *seed;
    int64_t default_seed;
};
// Fields of the object `params` that are absent keep their defaults (protocols.md). What the sampler cannot do is refused by
// sampler_check.
enum status request_sampling(const json_t *params, const char *what, const struct request_style *style,
                             struct msg_sampling *ret, int64_t *ret_seed, struct error *err) OOZE_MUST_USE;

#endif
