// The engine: token jobs in, sampled tokens out. Pure and single-threaded: no sockets, no clock of its own, no files, so
// everything it promises is tested by calling it. worker.h puts it on a thread.
//
// Continuous batching: a step runs one forward pass over the next token of every running sequence and, within what is left
// of the step's token budget, over chunks of prompts. Sequences join and leave between any two steps.
//
// Promises (tests/unit/rollout/test_engine.c)
//   1. The tokens and log-probabilities of a job depend on its prefix, its sampling parameters, its Philox key and the
//      weights that made each row: not on the batch, the chunks, the pages, preemption, caching or threads (contract 3).
//   2. A job resumed with its streamed tokens as prefix continues as it would have gone on: the index of a draw is the
//      token's position in the segment.
//   3. A refit (engine_set_weights) drops no job; each token's version is in its span, and where keys and values of another
//      version than its own were read, the kv events tell (contract 3, `rollout.kv_on_refit`).
//   4. Nothing is allocated per token; a job that was accepted ends with exactly one output whose finish is set.
//   5. Memory short: the youngest running sequence gives its pages back and is computed again later. The oldest always
//      gets on.
//
// Owner: one thread; the device's pool works inside engine_step.
#ifndef ROLLOUT_ENGINE_H
#define ROLLOUT_ENGINE_H

#include "base/clock.h"
#include "model/trace.h"
#include "proto/msg.h"
#include "rollout/outputs.h"

struct engine;

struct engine_config {         // zero = the default in brackets
    int32_t kv_tokens;         // capacity of the KV cache [65536]
    enum kv_choice kv_dtype;   // of keys and values [KV_AUTO]
    int32_t page_tokens;       // multiple of ATTN_BLOCK [32]
    int32_t max_batch_tokens;  // rows of one step [2048]
    int32_t max_running;       // sequences at once, at most max_batch_tokens [256]
    int32_t prefill_chunk;     // rows of one prompt in one step [512]
    int32_t max_waiting;       // accepted jobs not yet running [65536]
    int32_t flush_tokens;      // tokens of a job handed out together, unless it ends [1]
    bool recompute_on_refit;   // kv_on_refit: recompute instead of keep
    bool no_prefix_cache;      // for comparison
    const struct clock *clock; // deadlines of jobs [clock_system()]
};

// The device and the model's shape are given once; weights come by engine_set_weights (until then jobs wait).
enum status engine_open(struct device *d, const struct model_config *model, enum dtype weights_dtype,
                        const struct engine_config *config, struct engine **ret,
                        struct error *err) OOZE_MUST_USE;
void engine_close(struct engine *e); // the weights are the caller's

// msg.ids is copied. FINISH_ERROR is not used for what can be refused here:
//   STATUS_INVALID: ids outside the vocabulary, bad sampling parameters, no room for one new token; STATUS_REFUSED: a training
//   job with temperature 0 or truncation; STATUS_EXISTS: that job is here already; STATUS_AGAIN: max_waiting reached.
// max_new is cut to what max_position and the KV capacity allow. Stop ids are msg.sampling.stop and, unless ignore_eos, the
// model's end-of-sequence ids.
struct engine_job {
    struct msg_job msg;
    int32_t top_logprobs; // likeliest ids reported beside each token, at most SAMPLER_TOP_MAX
    int32_t flush_tokens; // 0 = the engine's
};
enum status engine_submit(struct engine *e, const struct engine_job *job, struct error *err) OOZE_MUST_USE;
// Ends the job with FINISH_ABORT; what it sampled so far is handed out. false: no such job.
bool engine_cancel(struct engine *e, uint64_t job);
void engine_cancel_all(struct engine *e);

// One forward pass, if there is anything to do, and its results appended to `out`. Errors are the machine's (no memory for the
// activations), never a job's.
enum status engine_step(struct engine *e, struct outputs *out, struct error *err) OOZE_MUST_USE;
// Would engine_step do something now?
bool engine_ready(const struct engine *e);
// When engine_step should be called although nothing is ready: the next deadline in ms of the clock, INT64_MAX = none.
int64_t engine_wake_ms(const struct engine *e);

// Between two steps: from now on `w` (same shape and dtype) as `version`. Returns the weights held before, NULL at first.
// A version lower than or equal to the one held forgets the prefix cache, whose keys it would make ambiguous.
const struct weights *engine_set_weights(struct engine *e, const struct weights *w, int64_t version);
int64_t engine_version(const struct engine *e); // -1 = none yet

// Between two steps: the trace of a forward pass over ids [n] with the weights in use, on pages of its own; jobs notice nothing of it.
// STATUS_REFUSED: those are not `version`; STATUS_INVALID: ids that the model cannot take.
enum status engine_trace(struct engine *e, int64_t version, int32_t n, const int32_t *ids, struct trace *ret,
                         struct error *err) OOZE_MUST_USE;

// in place: running sequences stay as they are; retract: they give their pages back and wait.
enum engine_pause { ENGINE_PAUSE_IN_PLACE, ENGINE_PAUSE_RETRACT, ENGINE_PAUSE_ABORT };
void engine_pause(struct engine *e, enum engine_pause how);
void engine_continue(struct engine *e);

// Forgets cached prefixes that no running sequence holds.
void engine_flush_cache(struct engine *e);

struct engine_stats {
    int64_t version;
    int64_t running, waiting, max_running;
    int64_t kv_used, kv_capacity; // tokens in held pages
    int64_t steps, generated_tokens, prefill_tokens, cached_tokens, preemptions, refits;
    int64_t finished; // jobs
    bool paused;
};
void engine_stats(const struct engine *e, struct engine_stats *ret);

#endif
