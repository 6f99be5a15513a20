// The ledger read-only: what the CLI uses while the orchestrator writes (READONLY, NO_CKPT_ON_CLOSE), and the
// audit.
#ifndef LEDGER_READER_H
#define LEDGER_READER_H

#include "base/json.h"
#include "ledger/ledger.h"

// A struct ledger opened read-only: every reading call of ledger.h works on it, every writing call is
// refused.
enum status ledger_open_readonly(const char *run_dir, struct ledger **ret, struct error *err) OOZE_MUST_USE;

// `ooze audit`: issued = trained + dropped + in flight; each unit in at most one step; every move legal; TITO
// invariants of every stored unit; the lag bound token by token (against each stage's max_lag,
// max_lag[n_stages]); step chain without gaps; weights row per applied step; hashes of weights files that are
// still there (check_files). ret: {ok, violations:[{rule, trajectory?, attempt?, step?, text}], issued,
// trained, dropped:{reason:n}, in_flight, max_lag_seen, steps, weights_checked, parity:{checks, probes,
// failed, segments, skipped, refit_crossings, tokens, coverage, max_abs_diff}}. A parity check that failed is a
// violation. At most 1000 violations are listed.
enum status ledger_audit(struct ledger *l, const int64_t *max_lag, int32_t n_stages, bool check_files,
                         json_t **ret, struct error *err) OOZE_MUST_USE;

// {sft: {task: {success, n}}…} per eval label, in order: [{label, version, tasks:{name:{success, mean, n,
// pass_at:{k:…}}}}]
enum status ledger_eval_summary(struct ledger *l, json_t **ret, struct error *err) OOZE_MUST_USE;

// One unit as rows for `ooze show`: {trajectory, attempt, state, reason, task, group, reward, advantage,
// step, segments:[{tokens:[…]}], turns:[…]}
enum status ledger_show_unit(struct ledger *l, int64_t trajectory, int32_t attempt, json_t **ret,
                             struct error *err) OOZE_MUST_USE;
// Committed steps' metrics, newest last: [{step, stage, applied, hash, metrics:{}}], at most limit.
enum status ledger_step_metrics(struct ledger *l, int32_t limit, json_t **ret,
                                struct error *err) OOZE_MUST_USE;
// Parity checks, newest last: [{kind, step, version, peer, segments, skipped, crossing, tokens, ops, max_abs_diff, gate, ok,
// trajectory, attempt, segment, position, recorded, rescored, detail, checked_ms}], at most limit.
enum status ledger_parity_list(struct ledger *l, int32_t limit, json_t **ret,
                               struct error *err) OOZE_MUST_USE;
// Rewards of the last `limit` scored units per task: {task:{mean, last, n, series:[…]}}
enum status ledger_rewards(struct ledger *l, int32_t limit, json_t **ret, struct error *err) OOZE_MUST_USE;
// Listing for `ooze show RUN`: newest `limit` units as an array of small objects.
enum status ledger_list_units(struct ledger *l, int32_t limit, json_t **ret, struct error *err) OOZE_MUST_USE;

#endif
