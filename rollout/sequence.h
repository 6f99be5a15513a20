// A sequence: one job's timeline of tokens and of KV rows; and the inside of struct engine. Shared by engine.c (its life),
// schedule.c (which rows run next) and decode.c (running them); nobody else includes this. Owner: the compute thread.
//
//              engine_submit                    schedule_admit
//   (new) ───────────────────► SEQ_WAITING ───────────────────────► SEQ_RUNNING
//                                    ▲   sequence_retract (no memory,     │
//                                    └──── refit with recompute) ◄────────┤
//                                    │                                    │ stop id, max_new, cancel, deadline
//                                    └──── cancel, deadline ───────► SEQ_FINISHED ── engine_step hands out the rest ──► (gone)
//
// Invariants
//   1. n_computed < n_ids while waiting or running, or the sequence is finished: the last token's row is what runs next.
//   2. Rows [0, n_computed) are in pages[0 .. ceil(n_computed / page_tokens)); the first n_registered pages are registered,
//      the others are full of nobody else's rows. A waiting sequence holds no pages.
//   3. runs cover [0, n_computed) in order: which version made which rows.
//   4. `running` is in order of admission: its last member is the youngest.
#ifndef ROLLOUT_SEQUENCE_H
#define ROLLOUT_SEQUENCE_H

#include "base/rng.h"
#include "rollout/engine.h"
#include "rollout/pages.h"
#include "rollout/sampler.h"
#include "rollout/sessions.h"

enum sequence_state { SEQ_WAITING, SEQ_RUNNING, SEQ_FINISHED };

struct row_run { // rows up to `end` (from where the run before ends) were made by `version`
    int32_t end;
    int64_t version;
};

struct sequence {
    uint64_t job;
    enum sequence_state state;
    struct msg_sampling sampling; // max_new cut to what fits
    float inv_temp;
    struct rng_token_key key;
    uint64_t session;
    int64_t min_version;
    int64_t deadline_ms; // of the clock; INT64_MAX = none
    int32_t n_top, flush_tokens;
    int32_t n_stop;
    int32_t stop[MSG_STOP_IDS + MODEL_EOS_MAX];

    int32_t n_prompt, n_ids, cap_ids;
    int32_t *ids;            // [n_ids] prefix and sampled
    float *logprobs;         // [cap_ids - n_prompt] of the sampled
    int32_t *top_ids;        // [cap_ids - n_prompt, n_top]
    float *top_logprobs;     //
    float *prompt_logprobs;  // [n_prompt] or NULL when not asked
    int32_t n_prompt_scored; // prompt_logprobs[0 .. n_prompt_scored) are known
    struct msg_span *spans;  // of the sampled tokens
    int32_t n_spans, cap_spans;
    struct msg_kv *kv; // not handed out yet
    int32_t n_kv, cap_kv;

    int32_t n_computed;
    int32_t *pages;
    int32_t n_pages, n_registered, cap_pages;
    struct row_run *runs;
    int32_t n_runs, cap_runs;
    int32_t restarted;      // enum msg_kv_event that took its rows away, 0 = none
    uint64_t next_page_key; // while prefilling: the page it will fill next (schedule.c)
    int32_t n_cached;       // prefix tokens found in the cache at first admission

    int32_t n_flushed; // sampled tokens handed out
    enum msg_finish finish;
    const char *error;              // static text
    struct sequence *older, *newer; // waiting queue
    struct sequence *chain;         // job table
};

struct row { // a row whose logits are wanted
    struct sequence *seq;
    int32_t row;    // of the batch
    int32_t target; // of a row to be scored
};

#define JOB_BUCKETS 4096

struct engine {
    struct device *d;
    struct model_config model;
    struct engine_config config;
    int32_t max_tokens; // of one sequence: what positions and KV capacity allow
    const struct weights *weights;
    int64_t version;
    bool paused;

    struct kv *kv;
    struct pages *pages;
    struct sessions *sessions;
    struct sampler *sampler;

    struct sequence *buckets[JOB_BUCKETS];
    struct sequence *first, *last; // waiting
    int32_t n_waiting, n_deadlines;
    struct sequence **running; // [max_running]
    int32_t n_running;
    struct sequence **finished; // to be handed out
    int32_t n_finished, cap_finished;

    // the step under way
    struct arena step;
    int32_t n_rows, n_seqs, n_to_sample, n_to_score;
    int32_t *ids, *pos;        // [max_batch_tokens]
    struct attn_seq *attn;     // [max_running]
    struct sequence **members; // [max_running] whose attn entry it is
    struct row *to_sample;     // [max_running]
    struct row *to_score;      // [max_batch_tokens]
    float *hidden;             // [max_batch_tokens, C]
    float *gathered;           // [logit_rows, C]
    float *logits;             // [logit_rows, V]
    int32_t logit_rows;
    struct sampler_row *sampled;                       // [logit_rows]
    float *score_inv_temp, *score_logprob, *score_lse; // [logit_rows]
    int32_t *score_target;                             // [logit_rows]
    int32_t *matched, *matched2;                       // [pages of the longest sequence] of a lookup
    int32_t *page_versions;                            // [page_tokens]

    struct engine_stats stats;
};

// engine.c
void sequence_add_kv(struct sequence *s, enum msg_kv_event kind, int32_t from, int32_t to, int64_t version);
void sequence_end(struct engine *e, struct sequence *s, enum msg_finish finish,
                  const char *error); // RUNNING or WAITING → FINISHED
void sequence_release_pages(struct engine *e, struct sequence *s);
void sequence_unqueue(struct engine *e, struct sequence *s);
// RUNNING → WAITING, first in the queue; `why` becomes the kv event of its return.
void sequence_retract(struct engine *e, int32_t index, enum msg_kv_event why);
// Rows up to n_computed are now made: notes their version and registers pages that became full.
void sequence_advance(struct engine *e, struct sequence *s, int32_t rows);

// schedule.c: fills n_rows, n_seqs, ids, pos, attn, members, to_sample, to_score.
void schedule_step(struct engine *e);
bool schedule_ready(const struct engine *e);

// decode.c: runs the scheduled rows, samples, ends what is done.
enum status decode_step(struct engine *e, struct error *err) OOZE_MUST_USE;
// Hands out what is due.
void decode_flush(struct engine *e, struct outputs *out);

#endif
