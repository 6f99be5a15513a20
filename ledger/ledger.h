// The ledger: one SQLite file per run that accounts for every token (architecture.md, contract 1). The only
// door to sqlite3.h.
//
// Unit of account: (trajectory, attempt); for SFT (row, epoch). A unit's state only moves along
//
//      issued → generating → scored → ready → leased(step) → trained(step)
//         └─────────┴───────────┴────────┴────────┴──────→ dropped(reason)
//
// Invariants
//   1. One process writes: the orchestrator, through one struct ledger, which also checkpoints the WAL.
//   Readers open read-only.
//   2. An illegal move is refused (STATUS_INTERNAL) and rolls the open transaction back.
//   3. A unit is a member of at most one prepared or committed step; a step's members never change once
//   prepared.
//   4. Every *_add / *_set needs an open transaction (ledger_begin … ledger_commit). Nothing is durable
//   before ledger_commit returns.
//   5. Tokens of a unit are pieces in order of (segment, offset); a sampled piece has exactly one logprob per
//   id and version spans
//      that cover it; a given piece has neither.
// A ledger belongs to one thread.
#ifndef LEDGER_LEDGER_H
#define LEDGER_LEDGER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/buf.h"
#include "base/clock.h"
#include "base/hash.h"
#include "base/mem.h"
#include "base/status.h"

#define UNIT_STATES(X)                                                                                       \
    X(ISSUED, "issued")                                                                                      \
    X(GENERATING, "generating")                                                                              \
    X(SCORED, "scored")                                                                                      \
    X(READY, "ready")                                                                                        \
    X(LEASED, "leased")                                                                                      \
    X(TRAINED, "trained")                                                                                    \
    X(DROPPED, "dropped")
enum unit_state {
#define X(id, name) UNIT_##id,
    UNIT_STATES(X)
#undef X
        UNIT_STATE_COUNT
};

// The closed list of reasons (contract 1).
#define DROP_REASONS(X)                                                                                      \
    X(NONE, "none")                                                                                          \
    X(STALE, "stale")                                                                                        \
    X(ENVIRONMENT, "environment")                                                                            \
    X(GRADER, "grader")                                                                                      \
    X(TIMEOUT, "timeout")                                                                                    \
    X(GATEWAY, "gateway")                                                                                    \
    X(ENGINE, "engine")                                                                                      \
    X(TITO, "tito")                                                                                          \
    X(ZERO_VARIANCE, "zero_variance")                                                                        \
    X(SURPLUS, "surplus")                                                                                    \
    X(OVER_BUDGET, "over_budget")                                                                            \
    X(STEP_REJECTED, "step_rejected")                                                                        \
    X(TASK_REMOVED, "task_removed")                                                                          \
    X(CANCELLED, "cancelled")                                                                                \
    X(GROUP_INCOMPLETE, "group_incomplete")
enum drop_reason {
#define X(id, name) DROP_##id,
    DROP_REASONS(X)
#undef X
        DROP_REASON_COUNT
};

enum unit_source { SOURCE_ROLLOUT, SOURCE_SFT };
enum piece_kind {
    PIECE_GIVEN,   // prompt, tool output, template: mask 0
    PIECE_SAMPLED, // by an engine: mask 1, with logprobs and versions
    PIECE_TARGET,  // SFT: mask 1, no logprobs
};

const char *unit_state_name(enum unit_state s);
const char *drop_reason_name(enum drop_reason r);

struct ledger;

// ---- life
// -----------------------------------------------------------------------------------------------------------------

// RUN/ledger.sqlite; created when missing. WAL, synchronous NORMAL between steps. run_id "" on open =
// whatever is stored.
enum status ledger_open(const char *run_dir, const struct clock *clock, struct ledger **ret,
                        struct error *err) OOZE_MUST_USE;
void ledger_close(struct ledger *l);

enum status ledger_begin(struct ledger *l, struct error *err) OOZE_MUST_USE;
// full: fsync before returning (steps, checkpoints, anything another process acts on); else group-commit
// durability: survives the death of the process at once and of the machine after the next full commit.
enum status ledger_commit(struct ledger *l, bool full, struct error *err) OOZE_MUST_USE;
void ledger_rollback(struct ledger *l); // no-op without a transaction
bool ledger_in_transaction(const struct ledger *l);

// Next epoch of "orchestrator" or "trainer": grows by one each call, from 1.
enum status ledger_next_epoch(struct ledger *l, const char *role, int64_t *ret,
                              struct error *err) OOZE_MUST_USE;
// Free-form facts of the run ("run_id", "numerics_id", "stage", "dataset_cursor/…"). get: STATUS_NOTFOUND
// when absent; free() the value.
enum status ledger_meta_set(struct ledger *l, const char *key, const char *value,
                            struct error *err) OOZE_MUST_USE;
enum status ledger_meta_get(struct ledger *l, const char *key, char **ret, struct error *err) OOZE_MUST_USE;

// ---- tasks, groups, units
// -----------------------------------------------------------------------------------------------------

struct ledger_task {
    int64_t id;                      // chosen by the caller: 0, 1, 2, … never reused
    const char *name, *url, *origin; // origin: config | cli | service
    double ratio;
    int64_t max_concurrency;
    bool removed;
};
enum status ledger_task_set(struct ledger *l, const struct ledger_task *t,
                            struct error *err) OOZE_MUST_USE; // insert or update

struct ledger_group {
    int64_t id; // chosen by the caller, > 0, never reused
    int32_t stage;
    int64_t task; // -1 for SFT
    int64_t prompt_index, prompt_epoch;
    uint64_t seed;
    int32_t size;
};
enum status ledger_group_add(struct ledger *l, const struct ledger_group *g, struct error *err) OOZE_MUST_USE;

struct ledger_unit {
    int64_t trajectory; // chosen by the caller, > 0, never reused; SFT: row number in the stage's file +
                        // offset of the stage
    int32_t attempt;    // from 0; SFT: epoch
    int64_t group;
    int32_t member; // index in the group
    int32_t stage;
    int64_t task;
    enum unit_source source;
};
enum status ledger_unit_add(struct ledger *l, const struct ledger_unit *u,
                            struct error *err) OOZE_MUST_USE; // state issued

// Moves one unit. issued→generating, …→dropped(reason). Others have their own call below.
enum status ledger_unit_generating(struct ledger *l, int64_t trajectory, int32_t attempt, const char *episode,
                                   struct error *err) OOZE_MUST_USE;
enum status ledger_unit_drop(struct ledger *l, int64_t trajectory, int32_t attempt, enum drop_reason reason,
                             const char *detail, struct error *err) OOZE_MUST_USE;
// generating→scored. components: JSON object or NULL. truncated: a limit ended it (policy).
enum status ledger_unit_scored(struct ledger *l, int64_t trajectory, int32_t attempt, double reward,
                               const char *components, bool truncated, struct error *err) OOZE_MUST_USE;
// scored→ready with its advantage (SFT: issued→ready).
enum status ledger_unit_ready(struct ledger *l, int64_t trajectory, int32_t attempt, double advantage,
                              struct error *err) OOZE_MUST_USE;

struct ledger_span {
    int64_t version;
    int32_t start, end; // within the piece
};

struct ledger_piece {
    int64_t trajectory;
    int32_t attempt, segment;
    int32_t offset; // position of ids[0] in the segment
    int32_t turn;
    enum piece_kind kind;
    int32_t n;
    const int32_t *ids;
    const float *logprobs; // [n], PIECE_SAMPLED only
    int32_t n_spans;
    const struct ledger_span *spans; // PIECE_SAMPLED only
    float temperature;
    const void *kv; // kv_events as the engine sent them (opaque bytes), may be NULL
    int32_t kv_bytes;
};
// Refused when it does not continue the segment exactly where it ends.
enum status ledger_piece_add(struct ledger *l, const struct ledger_piece *p, struct error *err) OOZE_MUST_USE;

// A task's reply, durable before the next generation starts. turn -1 = the episode's creation. reply: JSON
// text as received.
struct ledger_turn {
    int64_t trajectory;
    int32_t attempt, turn;
    const char *message; // the assistant message sent (NULL for turn -1)
    const char *reply;
    bool done;
};
// That the turn's sampled piece ended in a stop id although its last token does not tell: one of the model's that the chat does not
// know. With the piece, in its transaction; asked for when an episode goes on after a crash.
enum status ledger_turn_stopped_set(struct ledger *l, int64_t trajectory, int32_t attempt, int32_t turn,
                                    struct error *err) OOZE_MUST_USE;
enum status ledger_turn_stopped(struct ledger *l, int64_t trajectory, int32_t attempt, int32_t turn,
                                bool *ret, struct error *err) OOZE_MUST_USE;
enum status ledger_turn_add(struct ledger *l, const struct ledger_turn *t, struct error *err) OOZE_MUST_USE;

// ---- steps
// -------------------------------------------------------------------------------------------------------------------

struct ledger_member {
    int64_t trajectory;
    int32_t attempt, segment;
    int32_t multiplicity;
    double advantage;
};
struct ledger_step {
    int64_t step;
    int32_t stage;
    int64_t stage_step;
    bool stage_first, publish, checkpoint, optimizer_reset;
    double lr;
    uint64_t packing_seed;
    int32_t updates;
    int32_t n_members;
    const struct ledger_member *members; // in order; every segment of a unit
};
// PREPARE(N): inserts the step, its ordered members, and moves the members' units ready→leased(N). N must be
// the next step.
enum status ledger_step_prepare(struct ledger *l, const struct ledger_step *s,
                                struct error *err) OOZE_MUST_USE;

struct ledger_weights {
    int64_t version;
    const char *hash, *path;
    int64_t bytes;
};
// COMMIT: the step's outcome, members leased→trained (or dropped step_rejected), the weights row (version =
// step + 1). Repeated with the same hash: STATUS_EXISTS and nothing changes. Repeated with another hash:
// STATUS_CORRUPT.
enum status ledger_step_commit(struct ledger *l, int64_t step, bool applied, const char *reason,
                               const struct ledger_weights *w, const char *metrics_json,
                               struct error *err) OOZE_MUST_USE;
// Where the file of a version was written last. STATUS_NOTFOUND when the version is unknown or was never published.
struct ledger_weights_file {
    char path[1024], hash[HASH_HEX];
};
enum status ledger_weights_read(struct ledger *l, int64_t version, struct ledger_weights_file *ret,
                                struct error *err) OOZE_MUST_USE;
// Version 0, or an earlier version published again at another path. Other hash for a known version:
// STATUS_CORRUPT.
enum status ledger_weights_set(struct ledger *l, const struct ledger_weights *w,
                               struct error *err) OOZE_MUST_USE;

struct ledger_checkpoint {
    int64_t step; // steps applied
    char path[1024];
    char hash[HASH_HEX];
    bool stage_end;
    double eval; // mean held-out score when known, else NAN
};
enum status ledger_checkpoint_add(struct ledger *l, const struct ledger_checkpoint *c,
                                  struct error *err) OOZE_MUST_USE;
enum status ledger_checkpoint_pruned(struct ledger *l, int64_t step, struct error *err) OOZE_MUST_USE;

struct ledger_eval {
    int64_t version;
    int32_t stage;
    const char *label; // "start", "stage:sft", "step:40"
    int64_t task, prompt_index;
    int32_t sample;
    double reward;
    bool success; // reward at the top of the task's range
    int32_t n_tokens;
};
enum status ledger_eval_add(struct ledger *l, const struct ledger_eval *e, struct error *err) OOZE_MUST_USE;

// ---- parity: stored trajectories scored again under their recorded weights (architecture.md, contract 3)

enum parity_kind {
    PARITY_STEP,   // trajectories of a step, after its commit
    PARITY_RESUME, // the same of the last step, when a run goes on
    PARITY_PROBE,  // one random sequence, op by op, by the trainer and an engine
};
const char *parity_kind_name(enum parity_kind k);

struct ledger_parity {
    enum parity_kind kind;
    int64_t step;              // whose trajectories; a probe: steps committed when it was made
    int64_t version;           // a probe's; else -1
    const char *peer;          // a probe: the engine; else ""
    int64_t segments, skipped; // scored again; left out since a file of their weights is gone
    int64_t crossing;          // of the scored ones, those with more than one version in tokens or KV history
    int64_t tokens;            // sampled tokens compared
    int64_t ops;               // a probe: ops whose outputs were compared
    double max_abs_diff, gate; // of a logprob, in nats; NAN = nothing was compared
    bool ok;                   // max_abs_diff <= gate (a probe under a gate of 0: every digest is equal)
    int64_t trajectory;        // first token outside the gate, -1 = none; then the rest is void
    int32_t attempt, segment, position; // position within the segment
    double recorded, rescored;
    const char *detail; // what the two parted in, or why nothing was compared; ""
};
enum status ledger_parity_add(struct ledger *l, const struct ledger_parity *p,
                              struct error *err) OOZE_MUST_USE;

struct ledger_parity_totals {
    int64_t checks, probes, failed; // rows: of trajectories, of probes, of either not ok
    int64_t segments, skipped, crossing;
    int64_t tokens;         // sampled tokens scored again; of a step that was checked twice, once
    int64_t tokens_trained; // sampled tokens trained on so far
    double max_abs_diff;    // largest of all, 0 without any
};
enum status ledger_parity_totals_read(struct ledger *l, struct ledger_parity_totals *ret,
                                      struct error *err) OOZE_MUST_USE;
struct ledger_unit_key {
    int64_t trajectory;
    int32_t attempt;
};
// The units of a step, each once, in the step's order.
enum status ledger_step_units(struct ledger *l, int64_t step, struct arena *arena,
                              struct ledger_unit_key **ret, int32_t *ret_n, struct error *err) OOZE_MUST_USE;
// All tokens of the step's units, prepared or committed.
enum status ledger_step_tokens(struct ledger *l, int64_t step, int64_t *ret, struct error *err) OOZE_MUST_USE;
// Sampled tokens of the step's units that were trained.
enum status ledger_step_trained_tokens(struct ledger *l, int64_t step, int64_t *ret,
                                       struct error *err) OOZE_MUST_USE;

// ---- recovery: what the orchestrator reads when it starts
// ---------------------------------------------------------------------

struct ledger_state {
    int64_t next_group, next_trajectory, next_step; // next unused
    int64_t committed_steps;                        // steps with an outcome
    bool has_prepared;                              // step committed_steps is prepared and not committed
    int64_t version;                                // newest weights row, -1 = none
    char version_path[1024], version_hash[HASH_HEX];
    bool has_checkpoint;
    struct ledger_checkpoint checkpoint; // newest recorded and not pruned
};
enum status ledger_state_read(struct ledger *l, struct ledger_state *ret, struct error *err) OOZE_MUST_USE;

// A stored step with everything PREPARE needs; arrays in `arena`.
struct ledger_sequence { // one member with its tokens
    struct ledger_member member;
    int64_t group, task;
    int32_t n;
    const int32_t *ids;
    const uint8_t *mask;
    const float *logprobs;     // 0 where mask is 0
    const int32_t *versions;   // -1 where mask is 0 or SFT
    const float *temperatures; // 1 where mask is 0 or SFT
    const void *kv;            // kv_events of its pieces, one behind the other, as they were stored
    int32_t kv_bytes;
};
struct ledger_step_full {
    struct ledger_step step;
    bool committed, applied;
    char hash[HASH_HEX];
    struct ledger_sequence *sequences; // [step.n_members]
};
enum status ledger_step_read(struct ledger *l, int64_t step, struct arena *arena,
                             struct ledger_step_full *ret, struct error *err) OOZE_MUST_USE;
// All segments of a unit, in order.
enum status ledger_unit_tokens(struct ledger *l, int64_t trajectory, int32_t attempt, struct arena *arena,
                               struct ledger_sequence **ret, int32_t *ret_n, struct error *err) OOZE_MUST_USE;

// Units not trained and not dropped, ordered by (group, member, attempt): called once per unit. A callback
// error stops the walk.
struct ledger_unit_row {
    struct ledger_unit unit;
    enum unit_state state;
    enum drop_reason reason;
    double reward, advantage;
    bool truncated;
    const char *episode;
    int64_t leased_step; // -1 = none
    int32_t n_turns;     // durable replies, the creation not counted
    int32_t n_tokens, n_sampled;
    int64_t version_min, version_max; // over sampled tokens, -1 = none
};
// Groups that still have a unit short of trained/dropped, with ALL their units (dropped ones too), group by
// group.
enum status ledger_open_groups(struct ledger *l, int32_t stage,
                               enum status (*fn)(void *ctx, const struct ledger_group *g,
                                                 const struct ledger_unit_row *u, struct error *err),
                               void *ctx, struct error *err) OOZE_MUST_USE;
// Durable turns of a unit in order (creation first): fn(ctx, turn).
enum status ledger_turns(struct ledger *l, int64_t trajectory, int32_t attempt,
                         enum status (*fn)(void *ctx, const struct ledger_turn *t, struct error *err),
                         void *ctx, struct error *err) OOZE_MUST_USE;
// Raw pieces of a unit in order, without joining.
enum status ledger_pieces(struct ledger *l, int64_t trajectory, int32_t attempt,
                          enum status (*fn)(void *ctx, const struct ledger_piece *p, struct error *err),
                          void *ctx, struct error *err) OOZE_MUST_USE;
enum status ledger_tasks(struct ledger *l,
                         enum status (*fn)(void *ctx, const struct ledger_task *t, struct error *err),
                         void *ctx, struct error *err) OOZE_MUST_USE;

// ---- figures
// -----------------------------------------------------------------------------------------------------------------

struct ledger_counts {
    int64_t units[UNIT_STATE_COUNT];
    int64_t dropped[DROP_REASON_COUNT];
    int64_t tokens_generated, tokens_trained, tokens_dropped; // sampled tokens
};
enum status ledger_counts_read(struct ledger *l, struct ledger_counts *ret, struct error *err) OOZE_MUST_USE;

#endif
