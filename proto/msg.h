// The messages between our processes as plain C structs ("Between our own processes" of protocols.md); proto/ooze.proto is their envelope
// on the wire, proto/codec.c turns one into the other and checks every bound. No room but proto sees
// protobuf-c.
//
// On the wire a message is 1 + n frames: the envelope, then n raw little-endian array frames. Array frames
// are listed in the envelope (kind, element type, count), so a truncated or surplus frame is refused.
//
// Invariants of a decoded message
//   1. Arrays named in a struct have exactly the count the struct says; related arrays (ids, logprobs, masks,
//      versions, temperatures) agree in length; every id is >= 0; masks are 0 or 1; logprobs are finite and
//      <= 0 + 1e-3; spans are ordered, contiguous, non-empty, versions non-decreasing within a response.
//   2. Strings are valid UTF-8, NUL-terminated, within MSG_STRING; counts within the limits below.
//   3. Array pointers point into the received frames or the arena given to msg_decode: they live until both
//   are released.
#ifndef PROTO_MSG_H
#define PROTO_MSG_H

#include <stdbool.h>
#include <stdint.h>

#include "base/hash.h"
#include "base/mem.h"
#include "base/status.h"

#define MSG_PROTOCOL    1
#define MSG_STRING      4096
#define MSG_TOKENS_MAX  (1 << 20) // tokens of one job or sequence
#define MSG_BATCH_MAX   (1 << 27) // tokens of one prepared step
#define MSG_MEMBERS     (1 << 17)
#define MSG_METRICS     256
#define MSG_METRIC_TASK "task:" // in the last part of a metric's name, before the number of the task it is of
#define MSG_STOP_IDS    32
#define MSG_CHUNK       (4u << 20)
#define MSG_JSON        (16u << 20)
#define MSG_CHECK_KV    (1 << 18) // kv events of one check
#define MSG_WEIGHTS     1024      // versions that one check may name
#define MSG_TRACE_IDS   4096      // tokens of a trace
#define MSG_TRACE_OPS   (1 << 15)

enum msg_type {
    MSG_NONE,
    MSG_HELLO,         // any → orchestrator
    MSG_WELCOME,       // orchestrator → any
    MSG_PING,          // both ways
    MSG_PONG,          //
    MSG_JOB,           // orchestrator → engine
    MSG_TOKEN_DATA,    // engine → orchestrator ("TOKENS")
    MSG_ACK,           // orchestrator → engine
    MSG_CANCEL,        // orchestrator → engine
    MSG_PREPARE,       // orchestrator → trainer
    MSG_STEP_DONE,     // trainer → orchestrator
    MSG_COMMIT_ACK,    // orchestrator → trainer
    MSG_CHECKPOINT,    // trainer → orchestrator, and back as acknowledgement
    MSG_VERSION,       // orchestrator → engine
    MSG_LOADED,        // engine → orchestrator
    MSG_CHUNK_REQUEST, // "CREDIT": engine → whoever serves weights
    MSG_CHUNK_DATA,    // "CHUNK"
    MSG_QUERY,         // CLI → orchestrator
    MSG_REPLY,         // orchestrator → CLI
    MSG_CHECK,         // orchestrator → trainer
    MSG_CHECK_DONE,    // trainer → orchestrator
    MSG_TRACE,         // orchestrator → trainer or engine
    MSG_TRACE_DONE,    // and back
    MSG_BYE,           // engine → orchestrator
};

enum msg_role { ROLE_ENGINE = 1, ROLE_TRAINER = 2, ROLE_CLI = 3 };

// HELLO: first message of every connection and after every reconnect or change of the orchestrator's epoch.
struct msg_hello {
    int32_t role;            // enum msg_role
    const char *run;         // run id the sender belongs to
    const char *name;        // "engine-0", "trainer-0"
    const char *build;       // OOZE_VERSION and compiler
    const char *numerics_id; // contract 3
    int64_t pid;
    int64_t version;          // weights version held, -1 = none
    const char *version_hash; // "" when version is -1
    int64_t kv_tokens;        // engine: capacity
    int64_t max_running;      // engine: sequences at once
    int64_t restarts;         // how often the supervisor has started this process before
    bool remote; // engine: on another host, so paths mean nothing to it; weights come by CHUNK_REQUEST
};

struct msg_welcome {
    const char *run;
    int64_t orchestrator_epoch; // grows with each start of the orchestrator
    int64_t epoch;              // trainer: fencing epoch of this incarnation
    bool accepted;
    const char *reason; // when refused
    int64_t ping_interval_ms, silence_ms;
    // trainer: where to start. checkpoint "" = the initial model (random or model.path).
    int64_t checkpoint_step; // steps applied in the checkpoint; 0 with checkpoint ""
    const char *checkpoint;  // path
    const char *checkpoint_hash;
    int64_t committed_steps; // steps recorded; those after checkpoint_step come as PREPARE with replay = true
    // engine: newest announced version
    int64_t version;
    const char *version_path;
    const char *version_hash;
};

struct msg_ping { // PING and PONG
    uint64_t nonce;
    int64_t version;
    int64_t running, waiting;     // sequences
    int64_t kv_used, kv_capacity; // tokens
    int64_t generated_tokens, prefill_tokens, cached_tokens, preemptions;
    int64_t step; // trainer: step under way, -1 = idle
    double busy;  // share of the last interval spent computing, 0..1
};

struct msg_sampling {
    float temperature;  // > 0 for training; 0 = greedy (eval only)
    float top_p, min_p; // 1 and 0 = off
    int32_t top_k;      // 0 = off
    int32_t max_new, min_new;
    int32_t n_stop;
    int32_t stop[MSG_STOP_IDS];
    bool ignore_eos;
    bool train; // contract 3: temperature > 0 and no truncation, or the engine refuses
};

struct msg_job {
    uint64_t job;               // unique within the run
    int64_t orchestrator_epoch; // jobs of an older epoch are aborted by the engine
    uint64_t run_seed, trajectory;
    uint32_t attempt, segment; // Philox key; index of a token = its position in the segment
    int64_t min_version;       // the engine starts only when it holds at least this
    uint64_t session;          // KV reuse key: same session = earlier turns of the same segment
    int64_t deadline_ms;       // relative; 0 = none
    struct msg_sampling sampling;
    int32_t n_ids;
    const int32_t *ids;   // [n_ids] prefix: prompt and everything before the next token
    bool prompt_logprobs; // also return logprobs of ids (rescoring); max_new may be 0
};

enum msg_finish { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_ABORT, FINISH_ERROR };
// PREFILL: a job that begins (the segment's first, its next turn, or the rest of one that another engine left) computes these
// rows. So the events name the version of every row that decoding did not make; those are of the token that follows them.
enum msg_kv_event { KV_REFIT = 1, KV_PREFIX_HIT = 2, KV_PREEMPTION = 3, KV_MIGRATION = 4, KV_PREFILL = 5 };

struct msg_span { // sampled tokens [start, end) of the job came from `version`; positions count from the
                  // job's first new token
    int64_t version;
    int32_t start, end;
};

struct msg_kv {   // positions count from the start of the segment: rows [from, to) hold KV of `version` from
                  // at_token on
    int32_t kind; // enum msg_kv_event
    int32_t at_token, from, to;
    int64_t version;
};

struct msg_tokens {
    uint64_t job;
    int32_t offset; // of ids[0], counted from the job's first new token
    int32_t n;
    const int32_t *ids;    // [n]
    const float *logprobs; // [n] under the distribution sampled from
    int32_t n_spans;
    const struct msg_span *spans; // cover [offset, offset + n)
    int32_t n_kv;
    const struct msg_kv *kv;
    int32_t finish;    // enum msg_finish; on STOP the last id is the stop id (sampled, so it has a logprob)
    const char *error; // with FINISH_ERROR
    int32_t cached_tokens; // of the prefix, taken from the prefix cache (set with the last message)
    int32_t n_prompt_logprobs;
    const float *prompt_logprobs; // [n_ids of the job] (first is 0) when asked
};

struct msg_ack {
    uint64_t job;
    int32_t durable_to; // tokens [0, durable_to) are durable; the engine may forget them. With finish: the
                        // job is forgotten.
};

struct msg_cancel {
    uint64_t job;
};

// One training sequence of a prepared step: a segment of a trajectory, or an SFT row.
struct msg_member {
    uint64_t trajectory; // SFT: row
    uint32_t attempt;    // SFT: epoch
    uint32_t segment;
    uint64_t group; // group key (SFT: row)
    int32_t n_tokens;
    int32_t multiplicity; // >= 1; padding of a group ("Advantages and filters" of algorithms.md)
    float advantage;      // SFT: 1
    int32_t task;         // index for metrics, -1 = none
};

struct msg_prepare {
    int64_t epoch;      // fencing epoch of the trainer it is meant for
    int64_t step;       // N: consumes weights N, produces weights N + 1
    int32_t stage;      // index into run_config.stages
    int64_t stage_step; // step within the stage, from 0: learning-rate schedule
    bool stage_first;   // fresh optimizer state
    double lr;          // of every update of this step
    uint64_t packing_seed;
    int32_t updates; // optimizer updates of this step
    bool publish;    // write weights N + 1 where engines find them
    bool checkpoint; // write a checkpoint after the acknowledgement
    bool replay;     // recorded earlier: recompute and compare with expect_hash
    const char *expect_hash;
    bool optimizer_reset; // reset_on_sync fired
    int32_t n_members;
    const struct msg_member *members;
    int64_t n_tokens;          // sum of members' n_tokens; the arrays below are concatenated in member order
    const int32_t *ids;        // [n_tokens]
    const uint8_t *mask;       // [n_tokens] 1 = trained
    const float *logprobs;     // [n_tokens] 0 where mask is 0 and for SFT
    const int32_t *versions;   // [n_tokens] -1 where mask is 0 and for SFT
    const float *temperatures; // [n_tokens] 1 where mask is 0 and for SFT
};

enum msg_outcome { STEP_APPLIED = 1, STEP_REJECTED = 2 };

struct msg_metric {
    const char *name;
    double value;
};

struct msg_step_done {
    int64_t epoch, step; // step -1: the initial weights (version 0) or a restored checkpoint were published
    int32_t outcome;     // enum msg_outcome
    const char *reason;  // when rejected
    int64_t version;     // version these weights are: step + 1
    const char *hash;    // of the weights as published (or as they would be)
    const char *path;    // "" when not published
    int64_t bytes;
    int32_t n_metrics;
    const struct msg_metric *metrics;
};

enum msg_commit { COMMIT_OK = 1, COMMIT_FENCED = 2, COMMIT_CONFLICT = 3 };

struct msg_commit_ack {
    int64_t epoch, step;
    int32_t result; // enum msg_commit
    const char *reason;
};

// trainer → orchestrator: written and renamed. Back: recorded; or, with an empty path, write one of this step now.
struct msg_checkpoint {
    int64_t epoch, step; // steps applied in it
    const char *path;
    const char *hash; // SHA-256 of its state.json, which names the hashes of its files
    int32_t n_prune;  // in the acknowledgement: checkpoints that may be removed now
    const char *const *prune;
};

struct msg_version {
    int64_t version;
    const char *path; // same host; "" = fetch by CHUNK_REQUEST
    const char *hash;
    int64_t bytes;
};

struct msg_loaded {
    int64_t version;
    const char *hash;
    bool ok;
    const char *error;
    double load_ms, stall_ms;
};

struct msg_chunk_request {
    int64_t version;
    int64_t offset, bytes; // bytes <= MSG_CHUNK
};

struct msg_chunk_data { // total 0: that version is not to be had (any more)
    int64_t version, offset, total;
    int64_t n;
    const uint8_t *data; // [n]
};

struct msg_query {
    uint64_t id;
    const char *verb; // status | task_register | task_list | task_remove | stop | eval | …
    const char *args; // JSON object
};

struct msg_reply {
    uint64_t id;
    int32_t status;   // enum status
    const char *json; // JSON object, or {"error": "…"}
};

// One stored segment to be rescored (contract 3).
struct msg_check_segment {
    uint64_t trajectory;
    uint32_t attempt, segment;
    int32_t n_tokens; // >= 1
    int32_t n_kv;     // of the check's kv events, in order: as recorded, those of an earlier response first
};

// Weights of a version as published; path "" or a file that is gone: segments that need it are skipped and counted.
struct msg_weights {
    int64_t version;
    const char *path;
    const char *hash;
};

struct msg_check {
    int64_t epoch; // fencing epoch of the trainer it is meant for
    uint64_t id;   // answered by CHECK_DONE
    int64_t step;  // whose members these were; for the log
    int32_t n_segments;
    const struct msg_check_segment *segments;
    int32_t n_weights; // versions ascending
    const struct msg_weights *weights;
    int32_t n_kv; // sum of the segments' n_kv
    const struct msg_kv *kv;
    int64_t n_tokens;   // sum of the segments' n_tokens; the arrays are concatenated in order of the segments
    const int32_t *ids; // [n_tokens]
    const uint8_t *mask;       // [n_tokens] 1 = sampled: compared
    const float *logprobs;     // [n_tokens] as recorded, 0 where mask is 0
    const int32_t *versions;   // [n_tokens] -1 where mask is 0
    const float *temperatures; // [n_tokens] 1 where mask is 0
};

struct msg_check_done {
    int64_t epoch;
    uint64_t id;
    int32_t compared,
        skipped;      // segments; skipped: weights that are gone, or a history that cannot be replayed
    int32_t crossing; // of those compared: two versions or more among sampled tokens or the keys they read
    int64_t tokens;   // compared
    int64_t tokens_skipped; // sampled tokens of the skipped segments
    double max_abs_diff;    // of recorded and rescored log-probabilities; 0 = not one bit
    // The first token outside 0, in the check's order. differs false: there is none and the fields are 0.
    bool differs;
    uint64_t trajectory;
    uint32_t attempt, segment;
    int32_t position; // in the segment
    int64_t version;  // that sampled it
    float recorded, rescored;
    // Nothing compared or skipped: why the check could not be made. Else the first history that contradicts itself (counted as
    // skipped). "" = neither.
    const char *error;
};

// Runs the forward pass over ids from position 0 and digests what every op computes. An engine does it with the weights in use
// and refuses when they are not `version`; a trainer with the file named.
struct msg_trace {
    int64_t epoch; // trainer: its fencing epoch; engines: 0
    uint64_t id;   // answered by TRACE_DONE
    int64_t version;
    const char *path, *hash; // trainer: the published weights; engine: ""
    int32_t n_ids;           // 2 to MSG_TRACE_IDS
    const int32_t *ids;      // [n_ids]
};

struct msg_trace_op {
    int32_t layer;     // -1 = embedding, number of layers = final norm and head
    int32_t nth;       // how many ops of that name the block ran before
    const char *block; // "embedding", "attention", "mlp", "head", …
    const char *op;    // "gemm", "rope", …
};

struct msg_trace_done {
    int64_t epoch;
    uint64_t id;
    int64_t version;
    bool ok; // false: no trace, `error` says why, the counts are 0
    const char *error;
    int32_t n_ops; // in order of execution
    const struct msg_trace_op *ops;
    const uint64_t *digests; // [n_ops] of the rows the op has written
    int32_t n_logprobs;      // the trace's n_ids
    const float *logprobs;   // [n_logprobs] of each id after those before it, temperature 1; the first is 0
};

// The sender ends: nothing comes after this. What it did not send will not come either.
struct msg_bye {
    bool failed; // of itself, and not because it was told to
};

// Where two traces part: index into a->ops of the first op that both have and whose digests differ; -1 = nowhere. Ops that only
// one of them has (the trainer keeps more than the engine) are passed over.
int32_t msg_trace_compare(const struct msg_trace_done *a, const struct msg_trace_done *b);

struct msg {
    enum msg_type type;
    union {
        struct msg_hello hello;
        struct msg_welcome welcome;
        struct msg_ping ping;
        struct msg_job job;
        struct msg_tokens tokens;
        struct msg_ack ack;
        struct msg_cancel cancel;
        struct msg_prepare prepare;
        struct msg_step_done step_done;
        struct msg_commit_ack commit_ack;
        struct msg_checkpoint checkpoint;
        struct msg_version version;
        struct msg_loaded loaded;
        struct msg_chunk_request chunk_request;
        struct msg_chunk_data chunk_data;
        struct msg_query query;
        struct msg_reply reply;
        struct msg_check check;
        struct msg_check_done check_done;
        struct msg_trace trace;
        struct msg_trace_done trace_done;
        struct msg_bye bye;
    };
};

const char *msg_type_name(enum msg_type t);

#endif
