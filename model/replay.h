// Replay: scoring stored segments again under the weights and on the keys and values that their tokens were sampled with
// (contract 3). With equal kernels the result is the recorded log-probability, bit for bit; a difference is a fault.
//
// A segment whose tokens each saw rows of their own version only (kv_on_refit: recompute; keep, when no refit came in between) is
// scored by the training pass itself, train_forward and train_logprobs, one pass a version. A segment with keys of older versions
// is computed again the way the engine did, rows on pages, dropped and replaced as its kv events tell.
//
// Versions are walked in ascending order with one weights object. Owner: the thread that owns device and weights.
#ifndef MODEL_REPLAY_H
#define MODEL_REPLAY_H

#include <stdatomic.h>

#include "model/model.h"

// Before the token at position at_token was sampled, rows [from, to) had been made anew by `version` (struct msg_kv). Rows that no
// event names were made by decoding, each under the version of the token after it.
struct replay_event {
    int32_t at_token, from, to;
    int64_t version;
};

enum replay_outcome {
    REPLAY_COMPARED,
    REPLAY_NO_WEIGHTS, // a version that it needs is gone
    REPLAY_BROKEN, // its events contradict its tokens' versions, or a token cannot be scored (not in the model's vocabulary, …)
};

struct replay_segment {
    int32_t n; // tokens
    const int32_t *ids;
    const uint8_t *mask;       // [n] 1 = sampled
    const float *logprobs;     // [n] recorded
    const int32_t *versions;   // [n] where mask is 1
    const float *temperatures; // [n] where mask is 1, > 0
    int32_t n_events;
    const struct replay_event *events; // as recorded, in order
    // out
    float *rescored; // [n] caller's; set where mask is 1, else untouched
    enum replay_outcome outcome;
    bool crossing; // two versions or more among its tokens or the rows they read
};

struct replay {
    struct device *d;
    struct weights *w;          // filled by load, on d
    struct train *train;        // of w's dtype and of kv_dtype, on d
    int32_t train_rows;         // that it was opened for; a longer segment is computed on pages
    enum dtype kv_dtype;        // the engines'
    size_t kv_bytes;            // pages alive at once; one segment may need more
    const _Atomic bool *cancel; // NULL = never; checked between two forward passes
    // Makes w hold `version`; STATUS_NOTFOUND when there is none, other failures end the replay.
    enum status (*load)(void *ctx, struct weights *w, int64_t version, struct error *err);
    void *ctx;
};

// Writes rescored, outcome and crossing of every segment. STATUS_CANCELED, STATUS_NOMEM, or what load returned.
enum status replay_run(const struct replay *r, int32_t n, struct replay_segment *segments,
                       struct error *err) OOZE_MUST_USE;

struct replay_summary {
    int32_t compared, no_weights, broken, crossing; // segments; crossing: of those compared
    int64_t tokens, tokens_skipped;                 // sampled ones
    double max_abs_diff;       // over the tokens compared; infinity for one that is not a number
    int32_t segment, position; // first token outside 0; segment -1 = none
    int32_t first_broken;      // segment, -1 = none
};
void replay_summarize(int32_t n, const struct replay_segment *segments, struct replay_summary *ret);

#endif
